"""Preparing segments in the background, and failures: the first one latches."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from random import Random

import pytest

from journal import (
    Journal,
    JournalFailed,
    JournalHeld,
    run_in_thread,
    verify,
)
from journal.faulty import Fault, FaultyStorage, Kind
from journal.manifest import encode_manifest
from journal.memory import MemoryStorage
from journal.prepare import WORKER_NICENESS
from tests.journal.life import (
    FIRST,
    SEGMENT_SIZE,
    append,
    append_built,
    append_two,
    noise,
    read,
    refuse,
    start,
    stopped,
)

# Preparing.


def test_an_append_waits_for_the_next_segment() -> None:
    jobs: list[Callable[[], None]] = []

    def run_when_waited_for(job: Callable[[], None]) -> Callable[[], bool]:
        jobs.append(job)

        def join() -> bool:
            jobs.remove(job)
            job()
            return True

        return join

    storage = MemoryStorage()
    journal = Journal.open(storage, segment_size=SEGMENT_SIZE, prepare=run_when_waited_for)
    assert list(journal.records()) == []
    journal.start(term=1)
    for _ in range(3):
        append(journal, noise(3000))
        assert len(jobs) == 1
    journal.stop()
    assert not jobs
    assert verify(storage).sealed_count == 2


def test_a_prepared_segment_is_zero_and_durable() -> None:
    survived = 0
    for seed in range(20):
        storage = MemoryStorage()
        start(storage)
        storage.crash(Random(seed))
        image = storage.images().get("00000000000000000002.prepared")
        assert image in (None, bytes(SEGMENT_SIZE))
        survived += image is not None
    assert survived


def test_a_segment_that_is_not_ready_in_time_fails_the_journal() -> None:
    journal = Journal.open(
        MemoryStorage(), segment_size=SEGMENT_SIZE, prepare=lambda job: lambda: False
    )
    assert list(journal.records()) == []
    journal.start(term=1)
    append(journal, noise(3000))
    batch = journal.build(noise(3000), 1, 0, 1)
    with pytest.raises(JournalFailed, match="not done in time"):
        journal.write(batch)
    journal.close()


def test_a_thread_prepares() -> None:
    storage = MemoryStorage()
    journal = Journal.open(storage, segment_size=SEGMENT_SIZE, prepare=run_in_thread)
    assert list(journal.records()) == []
    journal.start(term=1)
    for _ in range(20):
        append(journal, noise(2000))
    journal.stop()
    assert verify(storage).sealed_count == 19


# Failures.


def fail_from_now(storage: FaultyStorage, kind: Kind, error: int, is_persistent: bool) -> None:
    storage.faults = (Fault(kind, storage.counts[kind] + 1, error, is_persistent),)


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize("is_persistent", [False, True])
@pytest.mark.parametrize("kind", ["write", "sync"])
def test_the_first_failure_latches(kind: Kind, is_persistent: bool, error: int) -> None:
    memory = MemoryStorage()
    storage = FaultyStorage(memory)
    journal = start(storage)
    append(journal, b"durable")
    fail_from_now(storage, kind, error, is_persistent)
    batch = journal.build(b"lost", 1, 0, 1)
    with pytest.raises(JournalFailed) as caught:
        append_built(journal, batch)
    failure = caught.value
    assert failure.exit_code == 74
    assert journal.head_sequence == 1
    counts = dict(storage.counts)
    calls: list[Callable[[], object]] = [
        journal.sync,
        lambda: journal.write(batch),
        lambda: journal.build(b"more", 1, 0, 1),
        journal.sync,
        lambda: list(journal.records()),
    ]
    for call in calls:
        with pytest.raises(JournalFailed) as again:
            call()
        assert again.value is failure
    assert dict(storage.counts) == counts, "nothing is tried again"
    journal.close()
    memory.crash(Random(1))
    assert bytes(read(memory)[0].payload) == b"durable"


@pytest.mark.parametrize("kind", ["create", "open", "write", "sync", "rename", "sync_folder"])
def test_a_failure_of_the_roll_over_latches(kind: Kind) -> None:
    """At every operation of that kind, from the roll-over to the end of the work behind it."""
    at, last_at = 0, 0
    while at <= last_at:
        memory = MemoryStorage()
        storage = FaultyStorage(memory)
        journal = start(storage)
        append(journal, noise(3000))
        batch = journal.build(noise(2000), 1, 0, 1)
        if not at:
            at = storage.counts[kind]
            append_built(journal, batch)
            last_at = storage.counts[kind]
            assert last_at > at
            at += 1
            continue
        storage.faults = (Fault(kind, at, errno.EIO),)
        with pytest.raises(JournalFailed) as caught:
            append_two(journal, batch)
        with pytest.raises(JournalFailed) as again:
            journal.stop()
        assert again.value is caught.value
        memory.crash(Random(at))
        assert 1 <= len(read(memory)) <= 2
        at += 1


def test_a_failure_in_the_background_latches() -> None:
    storage = FaultyStorage(MemoryStorage())
    journal = start(storage)
    fail_from_now(storage, "create", errno.ENOSPC, is_persistent=True)
    append(journal, noise(3000))
    batch = journal.build(noise(3000), 1, 0, 1)
    journal.check_failure()
    journal.write(batch)  # The segment was prepared at start; the one after it cannot be.
    with pytest.raises(JournalFailed, match=r"prepare segment 3: .*No space left"):
        journal.check_failure()
    with pytest.raises(JournalFailed, match=r"prepare segment 3: .*No space left"):
        journal.sync()
    with pytest.raises(JournalFailed):
        journal.stop()


@pytest.mark.parametrize("kind", ["open", "read", "sync", "sync_folder"])
def test_a_failure_at_open_or_while_reading_is_a_failure(kind: Kind) -> None:
    memory = stopped()
    counting = FaultyStorage(memory)
    assert len(read(counting)) == 5
    before = memory.images()
    for at in range(1, counting.counts[kind] + 1):
        faulty = FaultyStorage(memory, [Fault(kind, at, errno.EIO)])
        with pytest.raises(JournalFailed) as caught:
            read(faulty)
        assert caught.value.exit_code == 74
        assert memory.images() == before


def test_errors_are_one_line_with_place_and_code() -> None:
    files = stopped().images()
    image = bytearray(files[FIRST])
    image[600] ^= 4
    del files["clean-stop"]
    files["manifest"] = encode_manifest([])
    error = refuse(MemoryStorage({**files, FIRST: bytes(image)}))
    assert str(error) == (
        f"journal damaged: {FIRST} at offset 512, after sequence 0: payload checksum differs"
    )
    assert error.exit_code == 66
    assert JournalHeld("/srv/x").exit_code == 69
    assert "\n" not in str(JournalHeld("/srv/x"))
    assert str(JournalFailed("sync a record", OSError(5, "I/O"))) == (
        "journal failed: sync a record: [Errno 5] I/O"
    )


@pytest.mark.parametrize("is_forbidden", [False, True])
def test_background_work_is_done_at_a_lower_priority_or_at_all(
    monkeypatch: pytest.MonkeyPatch, is_forbidden: bool
) -> None:
    def forbid(*_: int) -> None:
        raise PermissionError(errno.EPERM, "filtered")

    if is_forbidden:
        monkeypatch.setattr(os, "setpriority", forbid)
    found: list[int] = []
    join = run_in_thread(
        lambda: found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
    )
    assert join()
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert found == [own if is_forbidden else WORKER_NICENESS]
