"""Reading a journal back: every record applied, compared, and handed to whoever keeps some of it.

The event log gets what it lacks, the sessions' rings their last reports, and the last events are
kept for the packets that are sent once more. A start that is refused has changed nothing in the
journal. What it all works on is in `Surroundings`: everything of a venue that touches the world.
"""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from exchange.clock import Clock
from exchange.config import ThrottleSettings
from exchange.core.engine import RULES_VERSION, Engine
from exchange.logs import Log
from exchange.multicast import DatagramSender
from exchange.node.commit import Committer
from exchange.node.failure import Exit, ServiceError
from exchange.node.ingress import Ingress
from exchange.node.limits import (
    CLOCK_BEHIND_MAX_NS,
    CONNECTIONS_MAX,
    REPUBLISH_RECORDS_MAX,
    REPUBLISH_SIZE_MAX,
)
from journal import EventLog, Journal, Record, Storage, run_in_thread
from journal.prepare import Execute
from protocol.records import COMMAND_HEAD, Genesis

__all__ = ["LastEvents", "Recovered", "Surroundings", "recover"]

NANOSECONDS_PER_MILLISECOND: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a venue touches of the world. A simulator brings its own."""

    clock: Clock
    commands: Storage
    events: Storage
    barred: Storage
    log: Log
    make_committer: Callable[[Journal], Committer]
    senders: Mapping[str, DatagramSender]
    """Of the lines of market data, by name."""
    throttle: ThrottleSettings | None = None
    """None: nothing is counted."""
    prepare: Execute = run_in_thread
    segment_size: int = 64 * 1024 * 1024
    connections_max: int = CONNECTIONS_MAX


@dataclass(frozen=True, slots=True)
class Recovered:
    """An engine that has applied a whole journal, the journal, which can be started, the log of
    what it caused, and the sessions' rings, which are in the ingress."""

    engine: Engine
    ingress: Ingress
    journal: Journal
    event_log: EventLog
    genesis: Genesis
    last_events: bytes
    """Events of the last records, for the packets that are sent again."""

    def close(self) -> None:
        """Let go of all files; the venue does not start."""
        self.event_log.close()
        self.journal.close()


def recover(surroundings: Surroundings) -> Recovered:
    """Read the journal and apply it. Raises JournalError, ServiceError; then nothing is held."""
    journal = Journal.open(
        surroundings.commands,
        segment_size=surroundings.segment_size,
        prepare=surroundings.prepare,
    )
    try:
        event_log = EventLog.open(surroundings.events, execute=surroundings.prepare)
    except BaseException:
        journal.close()
        raise
    try:
        recovered = _read_journal(surroundings, journal, event_log)
        event_log.start(recovered.engine.sequence)
    except BaseException:
        event_log.close()
        journal.close()
        raise
    return recovered


def _read_journal(surroundings: Surroundings, journal: Journal, event_log: EventLog) -> Recovered:
    """Apply every record and hand its events to whoever keeps some."""
    start_ns = surroundings.clock.monotonic_ns()
    engine = Engine()
    ingress = _make_ingress(engine, surroundings.throttle)
    last_events = LastEvents()
    genesis: Genesis | None = None
    record_count = 0
    for record in journal.records():
        _check_rules(record)
        if genesis is None:
            genesis = _read_genesis(record)
        events = _replay(engine, record)
        event_log.check(
            record.first_sequence,
            record.command_count,
            record.rules_version,
            events,
            record.events_crc,
        )
        ingress.rings.remember(events)
        last_events.add(events)
        record_count += 1
    if genesis is None:
        text = "the journal has no record; `exchange init` makes a new venue"
        raise ServiceError(Exit.CONFIGURATION, text)
    _check_clock(surroundings.clock, engine)
    taken_ms = (surroundings.clock.monotonic_ns() - start_ns) // NANOSECONDS_PER_MILLISECOND
    surroundings.log.info(
        "recovered", sequence=engine.sequence, records=record_count, duration_ms=taken_ms
    )
    return Recovered(engine, ingress, journal, event_log, genesis, last_events.join())


def _make_ingress(engine: Engine, throttle: ThrottleSettings | None) -> Ingress:
    ingress = Ingress(engine.hot)
    if throttle is not None:
        ingress.set_budgets(
            (throttle.orders_per_second, throttle.orders_burst),
            (throttle.cancels_per_second, throttle.cancels_burst),
            (throttle.other_per_second, throttle.other_burst),
        )
    return ingress


class LastEvents:
    """The events of the last records, as many as are sent again."""

    def __init__(self) -> None:
        self._records: deque[bytes] = deque()
        self._size = 0

    def add(self, events: bytes) -> None:
        self._records.append(events)
        self._size += len(events)
        while len(self._records) > 1 and (
            len(self._records) > REPUBLISH_RECORDS_MAX or self._size > REPUBLISH_SIZE_MAX
        ):
            self._size -= len(self._records.popleft())

    def join(self) -> bytes:
        return b"".join(self._records)


def _check_rules(record: Record) -> None:
    """Before anything in it is read: other rules may have other messages."""
    if record.rules_version != RULES_VERSION:
        place = f"record of sequence {record.first_sequence}"
        text = f"{place} has rules {record.rules_version}, this build replays {RULES_VERSION}"
        raise ServiceError(Exit.CONFIGURATION, text)


def _replay(engine: Engine, record: Record) -> bytes:
    """Apply a record; its events."""
    place = f"record of sequence {record.first_sequence}"
    try:
        events, events_crc = engine.replay(
            record.first_sequence, record.command_count, record.payload
        )
    except Exception as error:
        raise ServiceError(
            Exit.ASSERTION, f"replay failed: {place}, command {engine.sequence}: {error}"
        ) from error
    if events_crc != record.events_crc:
        text = f"replay differs: {place}: events {events_crc:08x}, were {record.events_crc:08x}"
        raise ServiceError(Exit.ASSERTION, text)
    return events


def _check_clock(clock: Clock, engine: Engine) -> None:
    behind_ns = engine.time_ns - clock.time_ns()
    if behind_ns > CLOCK_BEHIND_MAX_NS:
        text = f"the machine's clock is {behind_ns // 10**9} s behind the journal; set it right"
        raise ServiceError(Exit.CONFIGURATION, text)


def _read_genesis(record: Record) -> Genesis:
    try:
        return msgspec.msgpack.decode(_first_payload(record), type=Genesis)
    except msgspec.DecodeError:
        text = "the journal does not begin with Genesis"
        raise ServiceError(Exit.JOURNAL_DAMAGED, text) from None


def _first_payload(record: Record) -> memoryview:
    length: int = COMMAND_HEAD.unpack_from(record.payload)[0]
    return record.payload[COMMAND_HEAD.size : length]
