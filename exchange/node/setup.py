"""A new venue: folder, first admin key, configuration, and the journal's first record.

`serve` never makes a journal, so a wrong or unmounted folder cannot become an empty venue. The
configuration is written last: a folder without it is one that was not finished.
"""

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from exchange.clock import Clock, SystemClock
from exchange.config import (
    CONFIG_NAME,
    ConfigError,
    FeedSettings,
    LineSettings,
    MarketDataSettings,
    MetricsSettings,
    SnapshotSettings,
    ThrottleSettings,
)
from exchange.core.engine import RULES_VERSION, Engine
from exchange.core.limits import GENESIS_CEILINGS, GENESIS_DEFAULTS
from journal import FolderStorage, Journal, Storage, run_inline
from protocol import wire
from protocol.records import FROM_VENUE, Genesis

__all__ = [
    "BARRED_FOLDER",
    "COMMANDS_FOLDER",
    "EVENTS_FOLDER",
    "POSITION_NAME",
    "SNAPSHOTS_FOLDER",
    "Initialised",
    "initialise",
    "write_genesis",
]

COMMANDS_FOLDER: Final = "commands"
"""The journal, inside the data folder."""
BARRED_FOLDER: Final = "barred"
"""Payloads that are refused, inside the data folder."""
EVENTS_FOLDER: Final = "events"
"""The event log, inside the data folder; made from the journal when it is missing."""
SNAPSHOTS_FOLDER: Final = "snapshots"
"""States that the replica has written, inside the data folder; a start needs none."""
POSITION_NAME: Final = "position"
"""The socket that says how far both may be read, inside the data folder."""
FIRST_TERM: Final = 1
EPOCH_BITS: Final = 40
TERM_BITS: Final = 20
"""A venue's epoch is drawn, so that two venues on the same groups are told apart; the lower bits
count the terms from there."""
SEGMENT_SIZE: Final = 64 * 1024 * 1024
"""Bytes of the first file of the journal; the configuration starts with the same."""

_CONFIG: Final = """\
# Settings of a Brier venue. Relative paths are relative to this file; times and sizes have their
# unit in the name. A change takes effect at the next start.

[venue]
name = "{venue}"            # As in the journal's first record; it cannot change any more.
data = "data"               # Folder of the journal (commands/), what is derived from it (events/,
                            # snapshots/, the socket position) and barred payloads (barred/).

[order_entry]
host = "127.0.0.1"          # Only trusted networks: nothing here is encrypted.
port = {port}                 # 0: any free port; the ready line says which.

[journal]
segment_size = {segment_size}     # Bytes of one file of the journal; for the files to come.

[market_data]
group = "{market_data.group}"      # Multicast group of channel 1; the next 127 belong to it too.
port = {market_data.port}                 # UDP port of all groups.
interface = "{market_data.interface}"     # An IPv4 address of this machine; packets leave there.
ttl = {market_data.ttl}                     # Networks that a packet crosses; 0: it stays here.
{line_b}
# What one session may send: commands a second, and how many at once after a silence.
[throttle]
orders_per_second = {throttle.orders_per_second}   # New orders and replaces.
orders_burst = {throttle.orders_burst}
cancels_per_second = {throttle.cancels_per_second}
cancels_burst = {throttle.cancels_burst}
other_per_second = {throttle.other_per_second}     # Everything else.
other_burst = {throttle.other_burst}

[metrics]
host = "{metrics.host}"          # Prometheus scrapes here; nothing is encrypted.
port = {metrics.port}                 # 0: any free port; the ready line says which.

# The feed server (exchange feed), a process of its own that reads events/.
[feed]
host = "{feed.host}"          # Subscribers connect here; nothing is encrypted.
port = {feed.port}                 # 0: any free port; the ready line says which.
metrics_host = "{feed.metrics_host}"
metrics_port = {feed.metrics_port}
snapshot_rate = {feed.snapshot_rate}     # Bytes a second on each line, for snapshots; 0: none.

# The replica (exchange replica), a process of its own that makes snapshots of the venue's state, so
# that a start reads only what came after the newest one.
[snapshots]
keep = {snapshots.keep}                    # At least 2.
every_commands = {snapshots.every_commands}    # A new one after so many commands,
every_bytes = {snapshots.every_bytes}     # or so many bytes of the journal,
every_s = {snapshots.every_s}               # or so many seconds in which something new came.
metrics_host = "{snapshots.metrics_host}"
metrics_port = {snapshots.metrics_port}

# The engine's limits are part of the journal's first record and cannot change any more. They are
# here for reading; a start compares them.
[limits]
{limits}
"""

_LINE_B: Final = """
# Line B: the same packets once more, best over another network. Without this table there is none.
[market_data.line_b]
group = "{line.group}"      # As above, and none of the groups above at the same port.
port = {line.port}
interface = "{line.interface}"
ttl = {line.ttl}
"""

TWO_LINES: Final = MarketDataSettings(line_b=LineSettings("239.255.67.1"))
"""What a new venue has."""


class Initialised(NamedTuple):
    """What was made."""

    config: Path
    admin_key: Path


def initialise(
    folder: Path,
    *,
    name: str,
    port: int = 9001,
    limits: Mapping[str, int] | None = None,
    market_data: MarketDataSettings = TWO_LINES,
    clock: Clock | None = None,
) -> Initialised:
    """Make a venue in a folder that is missing or empty. Raises ConfigError, JournalError.

    Port 0, any free one, is for venues beside others: their metrics then have any free port too.
    """
    values = {**GENESIS_DEFAULTS, **(limits or {})}
    private_key = Ed25519PrivateKey.generate()
    public_key = private_key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    genesis = _genesis(name, public_key, values)
    try:
        _make_folders(folder)
        private_pem = private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        admin_key = folder / "keys" / "admin.pem"
        _write_new(admin_key, private_pem)
        _write_new(folder / "keys" / "admin.pub", public_key.hex().encode() + b"\n")
        write_genesis(
            FolderStorage(folder / "data" / COMMANDS_FOLDER), genesis, clock or SystemClock()
        )
        rows = "\n".join(f"{key} = {value}" for key, value in values.items())
        line_b = market_data.line_b
        content = _CONFIG.format(
            segment_size=SEGMENT_SIZE,
            venue=name,
            port=port,
            market_data=market_data,
            line_b="" if line_b is None else _LINE_B.format(line=line_b),
            throttle=ThrottleSettings(),
            metrics=MetricsSettings() if port else MetricsSettings(port=0),
            feed=FeedSettings() if port else FeedSettings(port=0, metrics_port=0),
            snapshots=SnapshotSettings() if port else SnapshotSettings(metrics_port=0),
            limits=rows,
        )
        _write_new(folder / CONFIG_NAME, content.encode())
        _sync_folder(folder)
    except OSError as error:
        raise ConfigError(f"{error.filename or folder}: {error.strerror}") from None
    return Initialised(folder / CONFIG_NAME, admin_key)


def write_genesis(
    storage: Storage, genesis: Genesis, clock: Clock, *, segment_size: int = SEGMENT_SIZE
) -> None:
    """Make a journal whose first record holds this command, and stop it cleanly."""
    journal = Journal.open(storage, segment_size=segment_size, prepare=run_inline)
    try:
        for _ in journal.records():
            raise ConfigError("there is a journal already")
        journal.start(FIRST_TERM)
        engine = Engine()
        now_ns = clock.time_ns()
        sequence = engine.submit(FROM_VENUE, 0, 0, 0, now_ns, now_ns, wire.encode(genesis))
        assert sequence == 1, "Genesis is the first command"
        batch = engine.take_batch()
        journal.write(
            journal.build(batch.commands, batch.command_count, batch.events_crc, RULES_VERSION)
        )
        journal.sync()
    except BaseException:
        journal.close()
        raise
    journal.stop()


def _genesis(venue: str, admin_key: bytes, values: Mapping[str, int]) -> Genesis:
    """The checked first command."""
    for name, value in values.items():
        ceiling = GENESIS_CEILINGS.get(name)
        if ceiling is None:
            raise ConfigError(f"unknown limit {name}; there are {', '.join(GENESIS_CEILINGS)}")
        if not 1 <= value <= ceiling:
            raise ConfigError(f"{name} is {value}, allowed is 1 to {ceiling}")
    try:
        # Decoded again, because encoding alone does not check the name.
        epoch = secrets.randbits(EPOCH_BITS) << TERM_BITS
        encoded = wire.encode(Genesis(venue, admin_key, RULES_VERSION, **values, epoch=epoch))
        return msgspec.msgpack.decode(encoded, type=Genesis)
    except msgspec.ValidationError as error:
        raise ConfigError(f"venue {venue!r}: {error}") from None


def _make_folders(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is there already and is not an empty folder")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in ("keys", "data", f"data/{BARRED_FOLDER}"):
        (folder / name).mkdir(mode=0o700)


def _write_new(path: Path, content: bytes) -> None:
    """A new file that only its owner can read, synced."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    """Make the names in the folder and in those below it durable."""
    for folder in (path / "keys", path / "data", path, path.absolute().parent):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
