"""An event log that grows on command, in place of a venue: the input of a fan-out measurement.

The records are made by the engine before anything is measured, from the standard mix of orders, so
that what a feed server reads is the real thing and nobody spends time on matching meanwhile. The
player writes them into a data folder and tells the position, as a venue does.
"""

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from msgspec import Struct

from exchange.client import generate_key, public_key_bytes
from exchange.core.engine import RULES_VERSION, Engine
from exchange.core.replay import replay_record
from journal import EventLog, FolderStorage, Position, encode_position, read_only, run_inline
from protocol.admin import Account, Deposit, Event, Instrument, Key, Participant
from protocol.codes import EventKind, Role
from protocol.framing import HEADER_SIZE
from protocol.records import FROM_CLIENT, FROM_VENUE, Connect
from protocol.wire import encode
from tools.bench_script import SCRIPT_COUNT, make_script
from tools.journal_folders import open_journal

__all__ = ["LogPlayer", "Record", "make_records"]

INSTRUMENT_COUNT: Final = 100
CASH: Final = 10**15
CURRENCY: Final = "USD"
KEEPALIVE_MS: Final = 30_000
STEP_NS: Final = 1_000_000
"""Between two commands, as the log has it; nothing depends on it."""
EPOCH: Final = 1
TERM: Final = 1
ID_SIZE: Final = 8
OPERATOR: Final = 1
TRADER: Final = 2
"""Sessions, by their ids."""


class Record(NamedTuple):
    """A record of events/, as the log takes it."""

    first_sequence: int
    command_count: int
    rules_version: int
    events: bytes
    events_crc: int


class _Venue:
    """An engine that is told what to do, without a node."""

    def __init__(self, folder: Path) -> None:
        self._engine = Engine()
        self._now_ns = time.time_ns()
        self._numbers: dict[int, int] = {}
        self.records: list[Record] = []
        with open_journal(folder) as storage:
            for record in read_only(storage).records():
                events = replay_record(self._engine, record)
                head = (record.first_sequence, record.command_count, RULES_VERSION)
                self.records.append(Record(*head, events, record.events_crc))

    def connect(self, key_id: int, session: int) -> None:
        """Log a key on to a new session."""
        message = Connect(key_id, f"s{session}", 0, KEEPALIVE_MS, 0, 0, 0)
        self._submit(FROM_VENUE, session, 0, encode(message))

    def command(self, session: int, message: Struct | bytes) -> None:
        """A command of a session."""
        payload = message if isinstance(message, bytes) else encode(message)
        number = self._numbers[session] = self._numbers.get(session, 0) + 1
        self._submit(FROM_CLIENT, session, number, payload)

    def _submit(self, kind: int, session: int, number: int, payload: bytes) -> None:
        self._now_ns += STEP_NS
        times = (self._now_ns, self._now_ns)
        sequence = self._engine.submit(kind, session, 1, number, *times, payload)
        assert sequence, "a batch has room for it"

    def close_batch(self) -> None:
        """The commands since the last time are a record."""
        batch = self._engine.take_batch()
        head = (batch.first_sequence, batch.command_count, RULES_VERSION)
        self.records.append(Record(*head, batch.events, batch.events_crc))


def make_records(folder: Path, count: int, commands: int, seed: int) -> tuple[list[Record], int]:
    """The records of a venue whose folder `exchange init` made: reference data first, then `count`
    of `commands` orders each. Returns how many come before these, too."""
    venue = _Venue(folder)
    venue.connect(1, OPERATOR)
    for message in (
        Participant("bench"),
        Account(2, "main", CURRENCY),
        Key(2, public_key_bytes(generate_key()), Role.TRADE),
        Deposit(1, 1, CASH),
    ):
        venue.command(OPERATOR, message)
    for number in range(1, INSTRUMENT_COUNT + 1):
        symbol = f"BENCH-{number}"
        venue.command(OPERATOR, Event(symbol, EventKind.BINARY, symbol, CURRENCY))
        definition = Instrument(number, symbol, symbol, 0, 10_000, [(0, 100)], 100)
        venue.command(OPERATOR, definition)
    venue.connect(2, TRADER)
    venue.close_batch()
    before = len(venue.records)
    payloads = _orders(seed)
    for _ in range(count):
        for _ in range(commands):
            venue.command(TRADER, next(payloads))
        venue.close_batch()
    return venue.records, before


def _orders(seed: int) -> Iterator[bytes]:
    """Orders and cancels of the standard mix, for ever; each block has higher ids."""
    frames, offsets, id_offsets = make_script(1, INSTRUMENT_COUNT, seed)
    turn = 0
    while True:
        for place, at in enumerate(id_offsets):
            start = offsets[place] + HEADER_SIZE
            payload = bytearray(frames[start : offsets[place + 1]])
            here = slice(at - start, at - start + ID_SIZE)
            client_order_id = int.from_bytes(payload[here], "big") + SCRIPT_COUNT * turn
            payload[here] = client_order_id.to_bytes(ID_SIZE, "big")
            yield bytes(payload)
        turn += 1


class LogPlayer:
    """The data folder of a venue that writes what it is told. A context manager.

    One thread waits for readers of the position; `play` may be called from any one other.
    """

    def __init__(self, data: Path) -> None:
        self._log = EventLog.open(FolderStorage(data / "events"), execute=run_inline)
        self._log.start(0)
        self._lock = threading.Lock()
        self._readers: list[socket.socket] = []
        self._door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._door.bind(str(data / "position"))
        self._door.listen()
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._door.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._door.close()
        for reader in self._readers:
            reader.close()
        self._log.close()

    def write(self, *records: Record) -> None:
        """Write some records at once, and tell the position."""
        with self._lock:
            for record in records:
                self._log.append(*record)
            message = self._position()
            for reader in self._readers:
                reader.sendall(message)

    def play(self, records: list[Record], interval_ns: int) -> None:
        """Write one record each interval, by a schedule that does not wait for anybody."""
        due_ns = time.monotonic_ns()
        for record in records:
            time.sleep(max(due_ns - time.monotonic_ns(), 0) / 1e9)
            self.write(record)
            due_ns += interval_ns

    def _position(self) -> bytes:
        at = self._log.position
        return encode_position(Position(at.sequence, 1, 0, at.segment, at.offset, EPOCH, TERM))

    def _accept(self) -> None:
        while True:
            try:
                reader, _ = self._door.accept()
            except OSError:
                return  # It is over.
            with self._lock:
                reader.sendall(self._position())
                self._readers.append(reader)
