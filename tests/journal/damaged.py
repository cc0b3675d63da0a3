"""A venue's folders with some history, started as a venue does, for the tests of the repair."""

from __future__ import annotations

from collections.abc import Sequence

from journal import CommandsState, EventLog, Journal, SnapshotFolder, run_inline
from journal.event_proof import find_unindexed
from journal.findings import Folders
from journal.memory import MemoryStorage
from journal.record import BuiltRecord, Head
from journal.storage import Storage
from tests.journal.event_life import SEGMENT_SIZE as EVENTS_SEGMENT_SIZE
from tests.journal.event_life import Batch, make_batches
from tests.journal.life import noise
from tests.journal.snapshot_life import make_head

SEGMENT_SIZE = 2560  # Four sectors for records.
BATCH_COUNT = 16
SNAPSHOTS_AT = (7, 12)
"""Records after which there is a snapshot, where a test wants some."""


class History:
    """What happened: batches, their payloads, and the heads after each."""

    def __init__(self, batch_count: int = BATCH_COUNT) -> None:
        self.batches = make_batches(batch_count)
        self.payloads = [noise(300 + 150 * (step % 7)) for step in range(batch_count)]
        self.built: list[BuiltRecord] = []

    @property
    def last_sequence(self) -> int:
        return self.batches[-1].last_sequence

    def count_to(self, sequence: int) -> int:
        """How many records end at or before a sequence."""
        return sum(batch.last_sequence <= sequence for batch in self.batches)


class Disk:
    """The three folders."""

    def __init__(
        self,
        commands: MemoryStorage | None = None,
        events: MemoryStorage | None = None,
        snapshots: MemoryStorage | None = None,
    ) -> None:
        self.commands = commands or MemoryStorage()
        self.events = events or MemoryStorage()
        self.snapshots = snapshots or MemoryStorage()

    @property
    def all(self) -> tuple[MemoryStorage, ...]:
        return self.commands, self.events, self.snapshots

    @property
    def folders(self) -> Folders:
        return Folders(*self.all)

    def copy(self) -> Disk:
        return Disk(*(MemoryStorage(storage.images()) for storage in self.all))


def run(
    disk: Disk,
    history: History,
    *,
    is_stopped: bool = True,
    snapshots_at: Sequence[int] = (),
) -> None:
    """One life of a venue in which the whole history happens."""
    journal = Journal.open(disk.commands, segment_size=SEGMENT_SIZE, prepare=run_inline)
    assert not list(journal.records())
    journal.start(1)
    log = EventLog.open(disk.events, segment_size=EVENTS_SEGMENT_SIZE, execute=run_inline)
    log.start(0)
    for step, batch in enumerate(history.batches):
        built = journal.build(
            history.payloads[step], batch.command_count, batch.events_crc, batch.rules_version
        )
        journal.write(built)
        journal.sync()
        log.append(*batch)
        history.built.append(built)
        if step + 1 in snapshots_at:
            take_snapshot(disk, journal, log, built)
    if is_stopped:
        log.stop()
        journal.stop()
    else:
        log.close()
        journal.close()


def take_snapshot(disk: Disk, journal: Journal, log: EventLog, built: BuiltRecord) -> None:
    segment, end = journal.position
    offset = end - len(built.content)
    count = 0 if offset == 512 else 1
    at = CommandsState(segment, offset, count, built.previous, built.head)
    image = noise(400 + built.head.sequence)
    head = make_head(at, log.position, disk.events, EVENTS_SEGMENT_SIZE, image)
    SnapshotFolder(disk.snapshots).write(head, image).publish()


def start(disk: Disk, batches: Sequence[Batch]) -> tuple[Head, int]:
    """Start as a venue does, from the newest snapshot that can be used, else with everything; head
    and least term. Raises JournalError.

    `batches` are the history, of which the journal has the beginning.
    """
    heads = SnapshotFolder(disk.snapshots).heads()
    base = next((head for head in heads if find_unindexed(disk.events, head) is not None), None)
    journal = Journal.open(
        disk.commands,
        start=base,
        floor_sequence=max((head.sequence for head in heads), default=0),
        segment_size=SEGMENT_SIZE,
        prepare=run_inline,
    )
    try:
        list(journal.records())
        log = EventLog.open(disk.events, segment_size=EVENTS_SEGMENT_SIZE, execute=run_inline)
        try:
            if base is not None:
                assert log.begin_behind(base)
            for batch in batches:
                if log.position.sequence < batch.last_sequence <= journal.head.sequence:
                    log.check(*batch)
            log.start(journal.head.sequence)
        finally:
            log.close()
        head, term = journal.head, journal.minimum_term
        journal.start(term)
        journal.write(journal.build(b"goes on", 1, 0, batches[0].rules_version))
        journal.sync()
    finally:
        journal.close()
    return head, term


def names_of(storage: Storage, suffix: str = ".segment") -> list[str]:
    return [name for name in storage.names() if name.endswith(suffix)]
