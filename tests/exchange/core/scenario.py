"""Scenarios: acceptance tables that a trader can read, run against anything that takes commands.

A line is `[clock] who does what -> event`; further events follow on lines that begin with `->`,
in order, and nothing else may happen. Names of sessions stand before events of other sessions.
A scenario that begins with `public` has the market data too: `public added 1 buy 10 @ 0.40`, with
the channel, `public 2 added ...`, when that is not 1.
Prices, quantities and cash are decimals as people write them. Set-up lines, without events:

    limits work 2 levels 3 orders 9 orders-per-account 4 positions 8
    instrument RAIN binary | instrument HEAT scalar -10 to 40, then [tick 0.5] [step 0.01]
    trader alice 100.00 [cancel never|on-disconnect|on-log-out|always] [grace 5s]
    session desk of alice [cancel-only] [cancel ...] [grace ...]

`operator event RAIN binary [channel 2]` and `operator instrument RAIN on RAIN [tick 0.01] [step 1]`
list what the scenario wants to see listed.

`book`, `cash` and `position` ask what the reports so far add up to; `cash` also asks the venue
what is available. The book must also be what the market data alone adds up to.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from msgspec import Struct
from msgspec.msgpack import encode

from protocol import admin
from protocol.codes import (
    CancelOnDisconnect,
    DisconnectReason,
    EventKind,
    OrderType,
    Role,
    Side,
    TimeInForce,
)
from protocol.order_entry import CancelOrder, NewOrder, ReplaceOrder
from protocol.records import (
    FROM_CLIENT,
    FROM_VENUE,
    MARKET_DATA,
    REFERENCE,
    Connect,
    Continuation,
    Disconnect,
    Genesis,
    TimeAdvance,
    VenueStarted,
)
from tests.exchange.core.onlooker import (
    CASH,
    PRICE,
    QUANTITY,
    Onlooker,
    parse_decimal,
    show_decimal,
    show_price,
    show_quantity,
    tell,
    tell_public,
)
from tests.exchange.core.public_books import PublicBooks
from tests.exchange.core.side_by_side import commands_of, events_of
from tests.exchange.core.strategies import Step
from tests.model.model import Command, decode
from tests.model.state import EventOut

__all__ = ["Line", "Scenario", "Venue", "read"]

MIDNIGHT_NS: Final = 1_767_571_200_000_000_000
OPERATOR: Final = "operator"
LIMITS: Final = {
    "work": "work_per_command_max",
    "levels": "levels_per_side_max",
    "orders": "orders_max",
    "orders-per-account": "orders_per_account_max",
    "positions": "positions_max",
}
MARKS: Final = {TimeAdvance: "time advances", Continuation: "continues"}
"""What the sequencer puts in by itself is told too."""


class Venue(Protocol):
    """What a scenario runs on."""

    def apply(self, step: Step) -> tuple[int, bytes, bytes]:
        """First sequence, command entries and event entries of what the step leads to."""

    def available(self, account_id: int) -> int:
        """What the account has available."""


class Line(NamedTuple):
    """What happens, where it is written, and the events that are expected."""

    number: int
    words: list[str]
    expected: list[str]


def read(path: Path) -> list[Line]:
    """The lines of a scenario; comments and empty lines are left out."""
    lines: list[Line] = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        left, _, right = text.partition("#")[0].partition("->")
        if left.split():
            lines.append(Line(number, left.split(), []))
        if right.split():
            lines[-1].expected.append(" ".join(right.split()))
    return lines


def parse_clock(text: str) -> int:
    """HH:MM, HH:MM:SS or HH:MM:SS.fff to nanoseconds since the epoch."""
    hours, minutes, *seconds = text.split(":")
    since_midnight_ns = parse_decimal(seconds[0] if seconds else "0", 9)
    since_midnight_ns += (int(hours) * 60 + int(minutes)) * 60 * 10**9
    return MIDNIGHT_NS + since_midnight_ns


def options_of(words: list[str]) -> dict[str, str]:
    """`name value name value ...`"""
    return dict(zip(words[::2], words[1::2], strict=True))


@dataclass
class Client:
    """A session as its client sees it."""

    session_id: int
    key_id: int
    participant_id: int
    account_id: int
    cancel_on_disconnect: int = 0
    cancel_grace_ms: int = 0
    connection: int = 0
    number: int = 0


@dataclass
class Scenario:
    """Runs the lines of one scenario on a venue and says what happens."""

    venue: Venue
    clock_ns: int = MIDNIGHT_NS
    limits: dict[str, int] = field(default_factory=dict)
    clients: dict[str, Client] = field(default_factory=dict)
    symbols: list[str] = field(default_factory=list)
    transfers: dict[int, int] = field(default_factory=dict)
    """By account id, deposits less withdrawals."""
    onlooker: Onlooker = field(default_factory=Onlooker)
    public_books: PublicBooks = field(default_factory=PublicBooks)
    is_public: bool = False
    """Whether market data is told."""
    event_symbols: list[str] = field(default_factory=list)

    def run(self, words: list[str]) -> list[str]:
        """What happens, in the words of the table."""
        if words[0][:2].isdigit():
            self.clock_ns = parse_clock(words[0])
            words = words[1:]
        verbs: dict[str, Callable[[list[str]], list[str]]] = {
            "limits": self._set_limits,
            "public": self._tell_public,
            "instrument": self._list_instrument,
            "trader": self._admit_trader,
            "session": self._add_session,
            "book": self._show_book,
            "cash": self._show_cash,
            "position": self._show_position,
            "time": lambda _: self._apply(self.clock_ns, ""),
            "venue": lambda _: self._from_venue("", 0, 0, VenueStarted()),
            OPERATOR: self._operate,
        }
        if words[0] in verbs:
            return verbs[words[0]](words[1:])
        return self._act(words[0], words[1], words[2:])

    # -- Set-up

    def _set_limits(self, words: list[str]) -> list[str]:
        self.limits = {LIMITS[name]: int(value) for name, value in options_of(words).items()}
        return []

    def _tell_public(self, _: list[str]) -> list[str]:
        self.is_public = True
        return []

    def _start(self) -> None:
        """Genesis and the operator's log-on, before the first line that needs a venue."""
        if OPERATOR not in self.clients:
            limits = {**dict.fromkeys(Genesis.__struct_fields__[3:-1], 100), **self.limits}
            self._from_venue("", 0, 0, Genesis("brier", bytes(32), 3, **limits, epoch=1 << 20))
            self.clients[OPERATOR] = Client(1, 1, 1, 0)
            self._connect(OPERATOR, [])

    def _list_instrument(self, words: list[str]) -> list[str]:
        self._start()
        symbol, kind, *rest = words
        floor_price, cap_price = 0, 10_000
        if kind == "scalar":
            floor_price, cap_price = parse_decimal(rest[0], PRICE), parse_decimal(rest[2], PRICE)
            rest = rest[3:]
        self._set_up(self._event(symbol, kind, []))
        self._set_up(self._instrument(symbol, symbol, floor_price, cap_price, options_of(rest)))
        return []

    def _event(self, symbol: str, kind: str, words: list[str]) -> admin.Event:
        self.event_symbols.append(symbol)
        channel = int(options_of(words).get("channel", "1"))
        return admin.Event(symbol, EventKind[kind.upper()], symbol, "USD", channel)

    def _instrument(
        self, symbol: str, event: str, floor_price: int, cap_price: int, options: dict[str, str]
    ) -> admin.Instrument:
        ticks = [(floor_price, parse_decimal(options.get("tick", "0.01"), PRICE))]
        step = parse_decimal(options.get("step", "1"), QUANTITY)
        self.symbols.append(symbol)
        self.onlooker.floor_prices[len(self.symbols)] = floor_price
        event_id = self.event_symbols.index(event) + 1
        return admin.Instrument(event_id, symbol, symbol, floor_price, cap_price, ticks, step)

    def _admit_trader(self, words: list[str]) -> list[str]:
        """A participant with one account, one key and one session."""
        self._start()
        name, cash, *options = words
        account_id = len(self.transfers) + 1
        self.transfers[account_id] = parse_decimal(cash, CASH)
        self._set_up(admin.Participant(name))
        self._set_up(admin.Account(account_id + 1, "main", "USD"))
        self._set_up(admin.Deposit(account_id, 1, self.transfers[account_id]))
        self._log_on_first(name, account_id, options)
        return []

    def _add_session(self, words: list[str]) -> list[str]:
        """Another session, with a key of its own, for the account of a trader."""
        name, _, owner, *options = words
        self._log_on_first(name, self.clients[owner].account_id, options)
        return []

    def _log_on_first(self, name: str, account_id: int, options: list[str]) -> None:
        role = Role.CANCEL_ONLY if "cancel-only" in options else Role.TRADE
        named = options_of([word for word in options if word != "cancel-only"])
        mode = named.get("cancel", "never").replace("-", "_").upper()
        number = len(self.clients) + 1
        client = Client(number, number, account_id + 1, account_id, CancelOnDisconnect[mode])
        client.cancel_grace_ms = parse_decimal(named.get("grace", "0").removesuffix("s"), 3)
        self._set_up(admin.Key(client.participant_id, bytes([number]) * 32, role))
        self.clients[name] = client
        self._connect(name, [])

    def _set_up(self, message: Struct) -> None:
        """Have the operator do something that must succeed."""
        answer, *_ = self._from_client(OPERATOR, message)
        assert answer.startswith("done"), answer

    # -- Commands

    def _act(self, name: str, verb: str, words: list[str]) -> list[str]:
        client = self.clients[name]
        match verb:
            case "new":
                return self._from_client(name, self._new_order(client, words))
            case "cancel":
                return self._from_client(name, cancel(words))
            case "replace":
                return self._from_client(name, replacement(words))
            case "connect":
                return self._connect(name, words)
        assert verb == "disconnect", f"nobody knows how to {verb}"
        message = Disconnect(DisconnectReason[words[0].replace("-", "_").upper()])
        return self._from_venue(name, client.session_id, client.connection, message)

    def _new_order(self, client: Client, words: list[str]) -> NewOrder:
        """`1 RAIN buy 10 @ 0.60 [gtd CLOCK|ioc|fok]` or `1 RAIN buy 10 market [gtc|fok]`."""
        client_order_id, symbol, side, quantity, *rest = words
        is_market = rest[0] == "market"
        price = 0 if is_market else parse_decimal(rest[1], PRICE)
        rest = rest[1:] if is_market else rest[2:]
        time_in_force = rest[0] if rest else "ioc" if is_market else "gtc"
        return NewOrder(
            client_order_id=int(client_order_id),
            instrument_id=self._instrument_id(symbol),
            account_id=client.account_id,
            side=Side[side.upper()],
            price=price,
            quantity=parse_decimal(quantity, QUANTITY),
            order_type=OrderType.MARKET if is_market else OrderType.LIMIT,
            time_in_force=TimeInForce[time_in_force.upper()],
            expire_time_ns=parse_clock(rest[1]) if time_in_force == "gtd" else 0,
        )

    def _instrument_id(self, symbol: str) -> int:
        """Id of a listed instrument; any other symbol gets an id that nothing has."""
        return self.symbols.index(symbol) + 1 if symbol in self.symbols else 99

    def _operate(self, words: list[str]) -> list[str]:
        """`halt RAIN`, `resume RAIN`, `deposit alice 2 5.00`, `withdraw alice 3 5.00`, listings."""
        verb, name, *rest = words
        if verb == "event":
            return self._from_client(OPERATOR, self._event(name, rest[0], rest[1:]))
        if verb == "instrument":
            instrument = self._instrument(name, rest[1], 0, 10_000, options_of(rest[2:]))
            return self._from_client(OPERATOR, instrument)
        if verb in ("halt", "resume"):
            change = admin.Halt if verb == "halt" else admin.Resume
            return self._from_client(OPERATOR, change(self._instrument_id(name)))
        account_id = self.clients[name].account_id
        transfer_id, amount = int(rest[0]), parse_decimal(rest[1], CASH)
        transfer = admin.Deposit if verb == "deposit" else admin.Withdraw
        happened = self._from_client(OPERATOR, transfer(account_id, transfer_id, amount))
        if happened[-1].startswith("done"):
            self.transfers[account_id] += amount if verb == "deposit" else -amount
        return happened

    def _connect(self, name: str, words: list[str]) -> list[str]:
        """`connect [next NUMBER]`"""
        client = self.clients[name]
        message = Connect(
            key_id=client.key_id,
            session=name,
            next_number=int(words[1]) if words else 0,
            keepalive_ms=1000,
            cancel_on_disconnect=client.cancel_on_disconnect,
            cancel_grace_ms=client.cancel_grace_ms,
            minor=0,
        )
        happened = self._from_venue(name, client.session_id, client.connection + 1, message)
        client.connection += happened[-1].startswith("logged on")
        return happened

    def _from_client(self, name: str, message: Struct) -> list[str]:
        client = self.clients[name]
        client.number += 1
        envelope = (FROM_CLIENT, client.session_id, client.connection, client.number)
        return self._apply(Command(*envelope, self.clock_ns, self.clock_ns, encode(message)), name)

    def _from_venue(
        self, name: str, session_id: int, connection: int, message: Struct
    ) -> list[str]:
        envelope = (FROM_VENUE, session_id, connection, 0)
        return self._apply(Command(*envelope, 0, self.clock_ns, encode(message)), name)

    def _apply(self, step: Step, actor: str) -> list[str]:
        """Apply a step; events of others than the actor get the name of their session."""
        first_sequence, commands, events = self.venue.apply(step)
        happened = []
        for sequence, command in enumerate(commands_of(commands), first_sequence):
            mark = MARKS.get(type(decode(command.payload)))
            happened += [mark] if mark else []
            for event in events_of(events):
                if event.sequence == sequence:
                    self.onlooker.read(event.session, event.message)
                    happened += self._tell(event, actor)
        self.public_books.read_all(events_of(events))
        return happened

    def _tell(self, event: EventOut, actor: str) -> list[str]:
        """A line about an event; none for market data in a scenario that is not about it.

        Who is who is for readers of the log of events: no client sees it happen.
        """
        if event.kind == REFERENCE:
            return []
        if event.kind == MARKET_DATA:
            channel = "" if event.channel == 1 else f" {event.channel}"
            return [f"public{channel} {tell_public(event.message)}"] if self.is_public else []
        name = self._name_of(event.session)
        return [f"{'' if name == actor else name} {tell(event.message)}".strip()]

    def _name_of(self, session_id: int) -> str:
        return next(name for name, one in self.clients.items() if one.session_id == session_id)

    # -- Questions

    def _show_book(self, words: list[str]) -> list[str]:
        """One line per order, buys first: side, leaves, price, session."""
        instrument_id = self._instrument_id(words[0])
        orders = self.onlooker.book(instrument_id)
        shown = [
            (order.side, order.price, order.quantity)
            for side in Side
            for order in self.public_books.side(instrument_id, side)
        ]
        assert shown == [(order.side, order.price, order.leaves) for order in orders]
        return [
            f"{Side(order.side).name.lower()} {show_quantity(order.leaves)}"
            f" @ {show_price(order.price)} {self._name_of(order.session_id)}"
            for order in orders
        ]

    def _show_cash(self, words: list[str]) -> list[str]:
        account_id = self.clients[words[0]].account_id
        cash = self.transfers[account_id] + self.onlooker.cash.get(account_id, 0)
        free = self.venue.available(account_id)
        return [f"{show_decimal(cash, CASH)} available {show_decimal(free, CASH)}"]

    def _show_position(self, words: list[str]) -> list[str]:
        row = (self.clients[words[0]].account_id, self._instrument_id(words[1]))
        return [show_quantity(self.onlooker.positions.get(row, 0))]


def cancel(words: list[str]) -> CancelOrder:
    """`1` by client order id, `order 1` by order id."""
    return CancelOrder(*((0, int(words[1])) if words[0] == "order" else (int(words[0]), 0)))


def replacement(words: list[str]) -> ReplaceOrder:
    """`2 for 1 10 @ 0.60` by client order id, `2 for order 1 10 @ 0.60` by order id."""
    client_order_id, _, *target, quantity, _, price = words
    return ReplaceOrder(
        client_order_id=int(client_order_id),
        target_client_order_id=0 if target[0] == "order" else int(target[0]),
        order_id=int(target[1]) if target[0] == "order" else 0,
        price=parse_decimal(price, PRICE),
        quantity=parse_decimal(quantity, QUANTITY),
    )
