"""Reading a journal back: every record applied, compared, and handed to whoever keeps some of it.

The event log gets what it lacks, the sessions' rings their last reports, and the last events are
kept for the packets that are sent once more. A start that is refused has changed nothing in the
journal. What it all works on is in `Surroundings`: everything of a venue that touches the world.

The replay begins with the newest snapshot that can be used, else with an older one, else with the
first record: a snapshot only saves time, and the log says why one was passed over. What rings and
packets would have kept of the records before it is read from events/.
"""

import secrets
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from exchange.clock import Clock
from exchange.config import ThrottleSettings
from exchange.core.engine import RULES_VERSION, Engine
from exchange.core.replay import (
    EXIT_OTHER_RULES,
    ReplayError,
    RestoreError,
    is_way_out,
    replay_record,
    restore_engine,
)
from exchange.logs import Log
from exchange.multicast import DatagramSender
from exchange.node.commit import Committer
from exchange.node.failure import Exit, ServiceError
from exchange.node.ingress import Ingress
from exchange.node.limits import (
    CLOCK_BEHIND_MAX_NS,
    CONNECTIONS_MAX,
    REFILL_SIZE,
    REPUBLISH_RECORDS_MAX,
    REPUBLISH_SIZE_MAX,
)
from exchange.node.progress import Progress
from journal import (
    EventLog,
    EventPosition,
    EventReader,
    Journal,
    JournalDamaged,
    SnapshotDamaged,
    SnapshotFolder,
    SnapshotHead,
    Storage,
    run_in_thread,
)
from journal.event_format import EVENT_SEGMENT_SIZE
from journal.manifest import ARCHIVED_NAME
from journal.prepare import Execute

__all__ = ["LastEvents", "Recovered", "Replayed", "Surroundings", "recover"]

NANOSECONDS_PER_MILLISECOND: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a venue touches of the world. A simulator brings its own."""

    clock: Clock
    commands: Storage
    events: Storage
    snapshots: Storage
    barred: Storage
    log: Log
    make_committer: Callable[[Journal], Committer]
    senders: Mapping[str, DatagramSender]
    """Of the lines of market data, by name."""
    throttle: ThrottleSettings | None = None
    """None: nothing is counted."""
    prepare: Execute = run_in_thread
    random_bytes: Callable[[int], bytes] = secrets.token_bytes
    status: Callable[[str], None] = lambda line: None
    """Takes a line about the recovery, one a second and one a snapshot; systemd shows it."""
    segment_size: int = 64 * 1024 * 1024
    event_segment_size: int = EVENT_SEGMENT_SIZE
    connections_max: int = CONNECTIONS_MAX


class Replayed(NamedTuple):
    """What a recovery has done."""

    command_count: int
    duration_ns: int
    snapshot_sequence: int
    """Of the snapshot that it began with, 0: it began with the first record."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """An engine that has applied a whole journal, the journal, which can be started, the log of
    what it caused, and the sessions' rings, which are in the ingress."""

    engine: Engine
    ingress: Ingress
    journal: Journal
    event_log: EventLog
    last_events: bytes
    """Events of the last records, for the packets that are sent again."""
    replayed: Replayed

    def close(self) -> None:
        """Let go of all files; the venue does not start."""
        self.event_log.close()
        self.journal.close()


class _UnusableError(Exception):
    """A snapshot cannot be used; the text says why."""


def recover(surroundings: Surroundings) -> Recovered:
    """Read the journal and apply it. Raises JournalError, ReplayError, ServiceError, OSError, and
    then holds nothing."""
    start_ns = surroundings.clock.monotonic_ns()
    folder = SnapshotFolder(surroundings.snapshots)
    heads = folder.heads()
    for name, defect in folder.bad:
        surroundings.log.error("snapshot_passed_over", file=name, reason=defect)
    # It has been made of durable records: the journal may not end below it.
    floor_sequence = heads[0].sequence if heads else 0
    # What stops the venue where the records before the snapshots are not here.
    stopped: ReplayError | None = None
    if heads and heads[0].rules_version != RULES_VERSION:
        text = f"the newest snapshot has rules {heads[0].rules_version}, this build {RULES_VERSION}"
        stopped = ReplayError(EXIT_OTHER_RULES, text, heads[0].sequence)
    for head in _newest_first(folder, heads):
        try:
            return _recover(surroundings, folder, head, floor_sequence, start_ns)
        except _UnusableError as error:
            reason = str(error)
        except ReplayError as error:
            if not is_way_out(error, stopped):
                raise
            stopped, reason = error, str(error)
        except JournalDamaged as error:
            if error.file != ARCHIVED_NAME:
                raise
            reason = str(error)
        surroundings.log.error("snapshot_passed_over", file=head.name, reason=reason)
    try:
        return _recover(surroundings, folder, None, floor_sequence, start_ns)
    except JournalDamaged as error:
        if error.file == ARCHIVED_NAME and stopped is not None:
            raise stopped from None
        raise


def _newest_first(folder: SnapshotFolder, heads: list[SnapshotHead]) -> Iterator[SnapshotHead]:
    """Each head once. A replica that is behind may make newer ones meanwhile, and remove those
    that were found; then the newer ones are next."""
    tried = set()
    while heads:
        head = heads[0]
        tried.add(head.name)
        yield head
        heads = [other for other in folder.heads() if other.name not in tried]


def _recover(
    surroundings: Surroundings,
    folder: SnapshotFolder,
    head: SnapshotHead | None,
    floor_sequence: int,
    start_ns: int,
) -> Recovered:
    """Read the journal behind a snapshot, or all of it. Raises _UnusableError too."""
    journal = Journal.open(
        surroundings.commands,
        start=head,
        floor_sequence=floor_sequence,
        segment_size=surroundings.segment_size,
        prepare=surroundings.prepare,
    )
    try:
        # From here on events/ are what the disk has.
        event_log = EventLog.open(
            surroundings.events,
            segment_size=surroundings.event_segment_size,
            execute=surroundings.prepare,
        )
    except BaseException:
        journal.close()
        raise
    try:
        progress = Progress(surroundings.clock, surroundings.log, surroundings.status)
        reading = _begin(surroundings, folder, head, event_log, progress)
        command_count = reading.read(surroundings, journal, event_log, progress)
        event_log.start(reading.engine.sequence)
    except BaseException:
        event_log.close()
        journal.close()
        raise
    duration_ns = surroundings.clock.monotonic_ns() - start_ns
    replayed = Replayed(command_count, duration_ns, head.sequence if head is not None else 0)
    surroundings.log.info(
        "recovered",
        sequence=reading.engine.sequence,
        snapshot=replayed.snapshot_sequence,
        commands=command_count,
        duration_ms=duration_ns // NANOSECONDS_PER_MILLISECOND,
    )
    last_events = reading.last_events.join()
    return Recovered(reading.engine, reading.ingress, journal, event_log, last_events, replayed)


def _begin(
    surroundings: Surroundings,
    folder: SnapshotFolder,
    head: SnapshotHead | None,
    event_log: EventLog,
    progress: Progress,
) -> "_Reading":
    """As of a snapshot, or before the first record. Raises _UnusableError, JournalFailed."""
    if head is None:
        return _Reading(Engine(), surroundings.throttle)
    if not event_log.begin_behind(head):
        raise _UnusableError("events/ do not reach it")
    progress.restore(head)
    try:
        engine = restore_engine(head, folder.read(head))
    except (SnapshotDamaged, RestoreError) as error:
        raise _UnusableError(str(error)) from error
    for size in (REFILL_SIZE, 0):
        reading = _Reading(engine, surroundings.throttle)
        try:
            reading.refill(surroundings.events, head, size)
        except (JournalDamaged, AssertionError) as error:
            # What is before the segment that the snapshot proves is only good to have.
            surroundings.log.error("events_damaged", before=head.events_segment, what=str(error))
        else:
            return reading
    raise _UnusableError("events/ are not what it was made of")


class _Reading:
    """Everything in memory that comes of the records."""

    def __init__(self, engine: Engine, throttle: ThrottleSettings | None) -> None:
        self.engine = engine
        self.ingress = _make_ingress(engine, throttle)
        self.last_events = LastEvents()

    def read(
        self,
        surroundings: Surroundings,
        journal: Journal,
        event_log: EventLog,
        progress: Progress,
    ) -> int:
        """Apply every record; how many commands that were."""
        engine = self.engine
        first_sequence = engine.sequence
        progress.begin(first_sequence, (surroundings.commands, surroundings.events))
        for record in journal.records():
            events = replay_record(engine, record)
            event_log.check(
                record.first_sequence,
                record.command_count,
                record.rules_version,
                events,
                record.events_crc,
            )
            self.ingress.rings.remember(events)
            self.last_events.add(events)
            progress.note(engine.sequence)
        if not engine.sequence:
            text = "the journal has no record; `exchange init` makes a new venue"
            raise ServiceError(Exit.CONFIGURATION, text)
        _check_clock(surroundings.clock, engine)
        return engine.sequence - first_sequence

    def refill(self, storage: Storage, head: SnapshotHead, size_min: int) -> None:
        """Keep what there would be of the records before a snapshot, of so many bytes of events/
        and what whole segments have more. Raises JournalDamaged, AssertionError.

        A record's checksum is over payloads. Numbers prove themselves, as those of a session have
        no gap; everything else in the heads is proven only in the segment that the snapshot has
        the checksum of, and nothing else is published again.
        """
        until = EventPosition(head.sequence, head.events_segment, head.events_offset)
        reader = EventReader(storage, until)
        size, first_sequence = head.events_offset, head.events_segment
        for first in reversed(reader.segments()[:-1]):
            if size >= size_min:
                break
            size += head.events_segment_size
            first_sequence = first
        for record in reader.records(first_sequence):
            self.ingress.rings.remember(record.events)
            if record.header.first_sequence >= head.events_segment:
                self.last_events.add(record.events)
        rings, engine = self.ingress.rings, self.engine
        for session in range(1, engine.session_count + 1):
            found, expected = rings.next_number(session), engine.session(session).next_number
            is_right = found in (0, expected)
            assert is_right, f"session {session} ends at number {found}, not at {expected}"


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


def _check_clock(clock: Clock, engine: Engine) -> None:
    behind_ns = engine.time_ns - clock.time_ns()
    if behind_ns > CLOCK_BEHIND_MAX_NS:
        text = f"the machine's clock is {behind_ns // 10**9} s behind the journal; set it right"
        raise ServiceError(Exit.CONFIGURATION, text)
