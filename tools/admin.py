"""`exchange admin`: one command to a running venue over the admin session, one line with the id.

Prices, quantities and amounts are decimals; what the venue is asked for is shown on the line in the
same form. Each call logs on, sends one command, waits until it is durable, and logs out.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from exchange import config
from exchange.client import connect, generate_key, load_key, public_key_bytes, write_key
from protocol import wire
from protocol.admin import (
    Account,
    Deposit,
    Event,
    Halt,
    Instrument,
    Key,
    Participant,
    Resume,
    Withdraw,
)
from protocol.codes import EventKind, Role
from protocol.errors import MessageError
from tools.errors import UsageError
from tools.units import (
    format_amount,
    format_price,
    format_quantity,
    parse_amount,
    parse_price,
    parse_quantity,
)

__all__ = ["ADMIN_KEY", "add_commands", "build_command"]

ADMIN_KEY: Final = Path("keys") / "admin.pem"
"""Where `exchange init` writes it, beside the configuration; --key names another one."""

SESSION_NAME: Final = "admin"

PUBLIC_KEY_DIGITS: Final = 64

AdminCommand = Participant | Account | Key | Event | Instrument | Deposit | Withdraw | Halt | Resume
Built = tuple[AdminCommand, str]
"""The command, and what it says in human units."""


def build_command(arguments: argparse.Namespace) -> Built:
    """The message for the parsed command line. Raises UsageError."""
    build: Callable[[argparse.Namespace], Built] = arguments.build
    command, story = build(arguments)
    try:
        wire.decode_command(wire.encode(command))
    except MessageError as error:
        raise UsageError(error.text) from None
    return command, story


def _participant(arguments: argparse.Namespace) -> Built:
    return Participant(arguments.name), f"name={arguments.name}"


def _account(arguments: argparse.Namespace) -> Built:
    command = Account(arguments.participant_id, arguments.name, arguments.currency)
    return command, (
        f"participant_id={arguments.participant_id} name={arguments.name} "
        f"currency={arguments.currency}"
    )


def _key(arguments: argparse.Namespace) -> Built:
    public_key = _read_public_key(arguments.public_key)
    roles = parse_roles(arguments.roles)
    command = Key(arguments.participant_id, public_key, roles)
    return command, (
        f"participant_id={arguments.participant_id} public_key={public_key.hex()} "
        f"roles={arguments.roles}"
    )


def _event(arguments: argparse.Namespace) -> Built:
    kind = EventKind[arguments.kind.upper()]
    command = Event(arguments.symbol, kind, arguments.title, arguments.currency)
    return command, f"symbol={arguments.symbol} kind={arguments.kind}"


def _instrument(arguments: argparse.Namespace) -> Built:
    floor, cap = parse_price(arguments.floor), parse_price(arguments.cap)
    ticks = parse_tick_table(arguments.ticks, floor)
    step = parse_quantity(arguments.quantity_step)
    command = Instrument(
        arguments.event_id, arguments.symbol, arguments.title, floor, cap, ticks, step
    )
    shown = ",".join(f"{format_price(start)}:{format_price(size)}" for start, size in ticks)
    return command, (
        f"event_id={arguments.event_id} symbol={arguments.symbol} floor={format_price(floor)} "
        f"cap={format_price(cap)} ticks={shown} quantity_step={format_quantity(step)}"
    )


def _transfer(arguments: argparse.Namespace) -> Built:
    amount = parse_amount(arguments.amount)
    if amount <= 0:
        raise UsageError(f"amount {arguments.amount} is not above zero")
    transfer_id = arguments.transfer_id or time.time_ns()
    kind: type[Deposit] | type[Withdraw] = arguments.message
    command = kind(arguments.account_id, transfer_id, amount)
    return command, (
        f"account_id={arguments.account_id} amount={format_amount(amount)} "
        f"transfer_id={transfer_id}"
    )


def _phase(arguments: argparse.Namespace) -> Built:
    kind: type[Halt] | type[Resume] = arguments.message
    return kind(arguments.instrument_id), f"instrument_id={arguments.instrument_id}"


def parse_roles(text: str) -> int:
    """`"trade,cancel-only"` as a bit set; `"none"` is 0. Raises UsageError."""
    roles = 0
    for word in text.lower().split(","):
        if word == "none":
            continue
        try:
            roles |= Role[word.replace("-", "_").upper()]
        except KeyError:
            known = ", ".join(str(role.name).lower().replace("_", "-") for role in Role)
            raise UsageError(f"unknown role {word!r}; roles are {known} and none") from None
    return roles


def parse_tick_table(text: str, floor_price: int) -> list[tuple[int, int]]:
    """`"0.01"` or `"0:0.001,0.1:0.01"` (from this price on: this step). Raises UsageError."""
    rows = []
    for row in text.split(","):
        start, separator, size = row.rpartition(":")
        rows.append((parse_price(start) if separator else floor_price, parse_price(size)))
    if any(start < floor_price or size <= 0 for start, size in rows):
        raise UsageError(f"ticks {text!r}: steps are above zero and begin at the floor")
    return rows


def _read_public_key(text: str) -> bytes:
    """64 hexadecimal digits, or the file of a private key. Raises UsageError."""
    if Path(text).exists():
        return public_key_bytes(load_key(Path(text)))
    try:
        public_key = bytes.fromhex(text)
    except ValueError:
        public_key = b""
    if len(text) != PUBLIC_KEY_DIGITS or not public_key:
        raise UsageError(f"{text}: neither a key file nor {PUBLIC_KEY_DIGITS} hexadecimal digits")
    return public_key


def run_keygen(arguments: argparse.Namespace) -> int:
    """Write a new private key and print the public one."""
    key = generate_key()
    write_key(arguments.file, key)
    public_key = public_key_bytes(key).hex()
    print(json.dumps({"public_key": public_key}) if arguments.json else public_key)
    return 0


def run_command(arguments: argparse.Namespace) -> int:
    """Send one command and print the id that the venue answers."""
    command, story = build_command(arguments)
    host, port, key = find_venue(arguments)
    identity = asyncio.run(_send(host, port, key, arguments.session, command))
    name = type(command).__name__.lower()
    if arguments.json:
        print(json.dumps({"command": name, "id": identity}))
    else:
        print(f"{name} id={identity} {story}")
    return 0


async def _send(host: str, port: int, key: Path, session: str, command: AdminCommand) -> int:
    async with await connect(host, port, key=key, session=session, reconnect=None) as client:
        return await client.admin(command)


def find_venue(arguments: argparse.Namespace) -> tuple[str, int, Path]:
    """Address and key from --config, or --connect and --key. Raises UsageError, ConfigError."""
    key: Path | None = arguments.key
    if arguments.config:
        settings = config.load(arguments.config)
        folder = arguments.config if arguments.config.is_dir() else arguments.config.parent
        host, port = settings.order_entry.host, settings.order_entry.port
        if port == 0:
            raise UsageError(
                "order_entry.port is 0: the system chose one; give the address that the ready "
                "line of `exchange serve` names by --connect, and --key"
            )
        return host, port, key or folder / ADMIN_KEY
    if not arguments.connect or key is None:
        raise UsageError("give --config FILE, or --connect HOST:PORT and --key FILE")
    host, separator, text = arguments.connect.rpartition(":")
    if not separator or not text.isdecimal() or not 0 < int(text) < 2**16:
        raise UsageError(f"--connect {arguments.connect!r}: HOST:PORT expected")
    return host.strip("[]"), int(text), key


EXAMPLES: Final = """\
examples:
  exchange admin --config venue/exchange.toml participant acme
  exchange admin --config venue/exchange.toml account 2 main USD
  exchange admin --config venue/exchange.toml deposit 1 25,000.00
  exchange admin --config venue/exchange.toml key 2 acme.pem trade,cancel-only
  exchange admin --config venue/exchange.toml event RAIN-NYC binary "Rain in New York?" USD
  exchange admin --config venue/exchange.toml instrument 1 RAIN-NYC "Rain" --ticks 0.01
  exchange admin --connect 10.0.0.5:9001 --key admin.pem halt 1
"""


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Mount `admin` with its actions."""
    admin = commands.add_parser(
        "admin",
        help="administer a running venue: participants, keys, instruments, cash, halts",
        description="Send one command to a running venue and print the id that it gives back.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    admin.add_argument("--config", type=Path, metavar="FILE", help="configuration of the venue")
    admin.add_argument("--connect", metavar="HOST:PORT", help="address, instead of --config")
    admin.add_argument("--key", type=Path, metavar="FILE", help="private key of an administrator")
    admin.add_argument("--session", default=SESSION_NAME, metavar="NAME", help="default: admin")
    admin.add_argument("--json", action="store_true", help="print a JSON object")
    actions = admin.add_subparsers(metavar="ACTION", required=True)
    _add_parties(actions)
    _add_listing(actions)
    _add_cash(actions)


def _add_parties(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    keygen = actions.add_parser("keygen", help="make a private key file (no venue needed)")
    keygen.add_argument("file", type=Path, metavar="FILE")
    _add_json(keygen)
    keygen.set_defaults(run=run_keygen)

    participant = _add(actions, "participant", _participant, "admit a firm or a person")
    participant.add_argument("name", metavar="NAME")

    account = _add(actions, "account", _account, "open an account of a participant")
    account.add_argument("participant_id", metavar="PARTICIPANT_ID", type=_id)
    account.add_argument("name", metavar="NAME")
    account.add_argument("currency", metavar="CURRENCY", help="three to eight capitals, as USD")

    key = _add(actions, "key", _key, "give a public key roles; none revokes it")
    key.add_argument("participant_id", metavar="PARTICIPANT_ID", type=_id)
    key.add_argument("public_key", metavar="KEY", help="64 hexadecimal digits, or a key file")
    key.add_argument("roles", metavar="ROLES", help="trade,cancel-only,... or none")


def _add_listing(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    event = _add(actions, "event", _event, "list a question that is traded about")
    event.add_argument("symbol", metavar="SYMBOL")
    event.add_argument("kind", choices=("binary", "scalar"))
    event.add_argument("title", metavar="TITLE")
    event.add_argument("currency", metavar="CURRENCY")

    instrument = _add(actions, "instrument", _instrument, "list the instrument of an event")
    instrument.add_argument("event_id", metavar="EVENT_ID", type=_id)
    instrument.add_argument("symbol", metavar="SYMBOL")
    instrument.add_argument("title", metavar="TITLE")
    instrument.add_argument("--floor", default="0", metavar="PRICE", help="default: 0")
    instrument.add_argument("--cap", default="1", metavar="PRICE", help="default: 1")
    instrument.add_argument(
        "--ticks",
        default="0.01",
        metavar="TABLE",
        help="price step, or START:STEP,START:STEP,...; default: 0.01",
    )
    instrument.add_argument(
        "--quantity-step", default="1", metavar="CONTRACTS", help="default: 1 (whole contracts)"
    )
    for name, message, text in (
        ("halt", Halt, "stop trading in an instrument; cancels still work"),
        ("resume", Resume, "open a halted instrument again"),
    ):
        phase = _add(actions, name, _phase, text)
        phase.add_argument("instrument_id", metavar="INSTRUMENT_ID", type=_id)
        phase.set_defaults(message=message)


def _add_cash(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    for name, message, text in (
        ("deposit", Deposit, "credit an account"),
        ("withdraw", Withdraw, "debit an account, up to what is available"),
    ):
        transfer = _add(actions, name, _transfer, text)
        transfer.add_argument("account_id", metavar="ACCOUNT_ID", type=_id)
        transfer.add_argument("amount", metavar="AMOUNT", help="decimal, as 25,000.00")
        transfer.add_argument(
            "--transfer-id",
            type=_id,
            metavar="N",
            help="increases for each account; give it to make a repetition safe (default: time)",
        )
        transfer.set_defaults(message=message)


def _add(
    actions: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    build: Callable[[argparse.Namespace], Built],
    text: str,
) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=text, description=text)
    parser.set_defaults(run=run_command, build=build)
    _add_json(parser)
    return parser


def _add_json(parser: argparse.ArgumentParser) -> None:
    """--json is understood before and behind the action; without it the first stands."""
    parser.add_argument(
        "--json", action="store_true", default=argparse.SUPPRESS, help="print a JSON object"
    )


def _id(text: str) -> int:
    """A positive whole number, for argparse."""
    if not text.isdecimal() or not 0 < int(text) < 2**62:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above zero")
    return int(text)
