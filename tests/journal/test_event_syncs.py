"""A sync of events/ that fails leaves pages in memory that the disk never gets: whatever fails, and
whoever is told of it, what has an index can be read after a loss of power."""

from __future__ import annotations

import errno
from collections.abc import Callable
from random import Random

import pytest

from journal import EventLog, EventReader, JournalFailed, Storage, run_inline
from journal.events import SEAL_BACKLOG_MAX
from journal.faulty import Fault, FaultyStorage
from journal.memory import MemoryStorage, PowerLoss
from journal.prepare import Join
from tests.journal.event_life import SEGMENT_SIZE, Batch, images_of, make_batches

BATCHES = make_batches(60)
NOTHING_LOST = PowerLoss(kept=1, dropped=0, zeroed=0)
"""Of what is unsynced; what was marked clean without having been written is lost all the same."""


def opened(storage: Storage) -> EventLog:
    return EventLog.open(storage, segment_size=SEGMENT_SIZE, execute=run_inline)


def live(storage: Storage, first: int = 0) -> int:
    """Check what was appended so far, go on; how many batches the log has when it fails or ends."""
    log = opened(storage)
    try:
        for batch in BATCHES[:first]:
            log.check(*batch)
        log.start(BATCHES[first - 1].last_sequence if first else 0)
        for batch in BATCHES[first:]:
            log.append(*batch)
        log.stop()
    except JournalFailed:
        log.close()
    return sum(batch.last_sequence <= log.position.sequence for batch in BATCHES)


def append_until_failure(log: EventLog, batches: list[Batch]) -> int:
    """How many it has taken."""
    count = 0
    try:
        for batch in batches:
            log.append(*batch)
            count += 1
    except JournalFailed:
        log.close()
    return count


def check_all_is_there(disk: MemoryStorage) -> None:
    """After a loss of power and a start."""
    disk.crash(Random(1), NOTHING_LOST)
    assert live(disk.attach(), len(BATCHES)) == len(BATCHES)
    found = [record.events for record in EventReader(disk).records()]
    assert found == [batch.events for batch in BATCHES]
    assert disk.images() == images_of(BATCHES)


@pytest.mark.parametrize("at", range(1, 16))
@pytest.mark.parametrize("seed", range(4))
def test_a_sync_that_fails_in_the_venue(at: int, seed: int) -> None:
    """Of a segment that is sealed, or of its index."""
    disk = MemoryStorage()
    faulty = FaultyStorage(disk.attach(), [Fault("sync", at, errno.EIO)], sync_dice=Random(seed))
    count = live(faulty)
    assert 0 < count < len(BATCHES)
    assert len(faulty.hits) == 1
    assert live(disk.attach(), count) == len(BATCHES)
    check_all_is_there(disk)


@pytest.mark.parametrize("at", [3, 10, 25, 40])
@pytest.mark.parametrize("seed", range(4))
def test_a_sync_that_fails_in_another_process(at: int, seed: int) -> None:
    """A replica's, which syncs the segment that is being written; the venue is told by its own
    next sync, which is that of the seal."""
    disk = MemoryStorage()
    log = opened(disk.attach())
    log.start(0)
    for batch in BATCHES[:at]:
        log.append(*batch)
    newest = max(name for name in disk.names() if name.endswith(".events"))
    disk.attach().open(newest).fail_sync(Random(seed))
    count = at + append_until_failure(log, BATCHES[at:])
    assert at < count < len(BATCHES)
    assert live(disk.attach(), count) == len(BATCHES)
    check_all_is_there(disk)


@pytest.mark.parametrize("seed", range(4))
def test_a_sync_that_fails_in_another_process_while_a_start_writes_all_again(seed: int) -> None:
    """What is written aside is durable before it has its name, so there is nothing to lose."""
    disk = MemoryStorage()
    failed: list[str] = []

    def run_late(job: Callable[[], None]) -> Join:
        """The worker has not begun before somebody waits for it; meanwhile another process syncs
        in vain what the log has not opened yet to seal it."""

        def join() -> bool:
            segments = [name for name in disk.names() if name.endswith(".events")]
            for name in segments[SEAL_BACKLOG_MAX + 1 :] if not failed else ():
                disk.attach().open(name).fail_sync(Random(seed))
                failed.append(name)
            job()
            return True

        return join

    log = EventLog.open(disk.attach(), segment_size=SEGMENT_SIZE, execute=run_late)
    for batch in BATCHES:
        log.check(*batch)
    log.start(BATCHES[-1].last_sequence)
    log.stop()
    assert failed
    check_all_is_there(disk)
