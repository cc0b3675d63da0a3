"""The life of a journal: append, read back, roll over, seal, start again, one at a time."""

from __future__ import annotations

from hashlib import blake2b
from threading import Event, Thread

import pytest

from journal import (
    Journal,
    JournalHeld,
    run_inline,
    verify,
)
from journal.faulty import FaultyFile, FaultyStorage
from journal.memory import MemoryStorage
from journal.record import NO_HASH
from tests.journal.life import (
    FIRST,
    SEGMENT_SIZE,
    append,
    noise,
    read,
    start,
)


def test_a_new_journal_is_empty() -> None:
    storage = MemoryStorage()
    journal = Journal.open(storage, segment_size=SEGMENT_SIZE, prepare=run_inline)
    assert list(journal.records()) == []
    assert storage.images() == {}, "reading makes no file"
    assert journal.is_empty
    assert (journal.head_sequence, journal.head_hash) == (0, NO_HASH)
    journal.start(term=5)
    assert journal.next_sequence == 1
    journal.stop()
    assert sorted(storage.images()) == [
        FIRST,
        "00000000000000000002.prepared",
        "clean-stop",
        "manifest",
    ]
    assert read(storage) == []


def test_what_was_appended_is_read_back() -> None:
    storage = MemoryStorage()
    journal = start(storage, term=3)
    built = [append(journal, noise(size), size % 3 + 1) for size in (1, 428, 429, 3000, 77)]
    assert [batch.first_sequence for batch in built] == [1, 3, 6, 7, 8]
    assert journal.head_sequence == 10
    assert journal.next_sequence == 11
    assert journal.head_hash == built[-1].head.hash
    journal.stop()
    records = read(storage)
    assert [bytes(record.payload) for record in records] == [
        noise(size) for size in (1, 428, 429, 3000, 77)
    ]
    assert [record.first_sequence for record in records] == [1, 3, 6, 7, 8]
    assert [record.command_count for record in records] == [2, 3, 1, 1, 3]
    assert {record.term for record in records} == {3}
    assert [record.events_crc for record in records] == [1, 428, 429, 3000, 77]
    assert [record.head for record in records] == [batch.head for batch in built]


def test_it_continues_over_restarts() -> None:
    storage = MemoryStorage()
    expected: list[tuple[bytes, int]] = []
    for term in range(1, 6):
        journal = start(storage, term)
        assert journal.head_sequence == len(expected)
        for size in (10, 600, 1100):
            append(journal, noise(size + term))
            expected.append((noise(size + term), term))
        journal.stop() if term % 2 else journal.close()
    assert [(bytes(record.payload), record.term) for record in read(storage)] == expected
    assert verify(storage).segment_count == 5


def test_the_term_never_decreases() -> None:
    storage = MemoryStorage()
    journal = start(storage, term=3)
    append(journal, b"x")
    journal.stop()
    with pytest.raises(AssertionError, match="term 2 after term 3"):
        start(storage, term=2)


def test_records_roll_over_and_are_sealed() -> None:
    storage = MemoryStorage()
    journal = start(storage)
    for _ in range(7):
        assert journal.fits(append(journal, noise(428))) is (journal.head_sequence < 7)
    batch = journal.build(noise(3000), 2, 0, 1)
    assert not journal.fits(batch)
    journal.write(batch)
    journal.sync()
    journal.stop()
    files = storage.images()
    second = "00000000000000000002-00000000000000000008.segment"
    assert sorted(name for name in files if name.endswith(".segment")) == [FIRST, second]
    assert {len(files[FIRST]), len(files[second])} == {SEGMENT_SIZE}
    digest = blake2b(files[FIRST], digest_size=32).hexdigest()
    assert files["manifest"].decode().splitlines()[:2] == [
        "brier manifest 1",
        f"1 1 7 7 4096 {digest}",
    ]
    assert files[second][512:520] == b"BRIERREC", "a record starts in its own segment"


def test_a_segment_can_be_filled_to_its_last_byte() -> None:
    storage = MemoryStorage()
    journal = start(storage)
    assert journal.payload_size_max == 3584 - 84
    append(journal, noise(3500))
    append(journal, noise(3500))
    journal.stop()
    assert [len(record.payload) for record in read(storage)] == [3500, 3500]
    with pytest.raises(AssertionError, match="payload of 3501 bytes"):
        start(storage).build(noise(3501), 1, 0, 1)


def test_the_segment_size_may_change() -> None:
    storage = MemoryStorage()
    for segment_size in (2048, 1024, 8192, 4096):
        journal = start(storage, segment_size=segment_size)
        for size in (300, 400, 20):
            append(journal, noise(size))
        journal.stop()
    assert len(read(storage)) == 12
    sizes = [len(image) for name, image in sorted(storage.images().items()) if "segment" in name]
    assert sizes == [2048, 1024, 1024, 1024, 8192]


def test_new_rules_begin_a_segment() -> None:
    storage = MemoryStorage()
    journal = start(storage)
    append(journal, b"old", rules=1)
    append(journal, b"new", rules=2)
    append(journal, b"new", rules=2)
    append(journal, b"back", rules=1)
    journal.stop()
    places = [(record.segment_number, record.offset) for record in read(storage)]
    assert places == [(1, 512), (2, 512), (2, 1024), (3, 512)]
    assert [record.rules_version for record in read(storage)] == [1, 2, 2, 1]


def test_the_next_record_is_built_while_one_is_synced() -> None:
    """A worker is inside sync while the loop builds; assertions hold the order of writes."""
    entered, release = Event(), Event()

    class SlowFile(FaultyFile):
        def sync_data(self) -> None:
            entered.set()
            assert release.wait(10)
            super().sync_data()

    class SlowStorage(FaultyStorage):
        is_slow = False

        def open(self, name: str, *, is_writable: bool = False) -> FaultyFile:
            file = memory.open(name, is_writable=is_writable)
            return SlowFile(file, self) if self.is_slow else FaultyFile(file, self)

    memory = MemoryStorage()
    storage = SlowStorage(memory)
    start(storage).close()
    journal = Journal.open(storage, segment_size=SEGMENT_SIZE, prepare=run_inline)
    assert list(journal.records()) == []
    release.set()
    storage.is_slow = True
    journal.start(term=1)
    release.clear()
    entered.clear()
    first = journal.build(b"first", 2, 0, 1)
    journal.write(first)
    worker = Thread(target=journal.sync)
    worker.start()
    assert entered.wait(10)
    second = journal.build(b"second", 1, 0, 1)
    third = journal.build(b"third", 1, 0, 1)
    assert second.previous == first.head
    assert journal.head_sequence == 0, "not durable yet"
    with pytest.raises(AssertionError, match="at most one record is unsynced"):
        journal.write(second)
    release.set()
    worker.join(10)
    assert journal.head_sequence == 2
    with pytest.raises(AssertionError, match="as they were built"):
        journal.write(third)
    journal.write(second)
    journal.sync()
    with pytest.raises(AssertionError, match="a record to sync"):
        journal.sync()
    journal.close()
    assert [bytes(record.payload) for record in read(storage)] == [b"first", b"second"]


def test_misuse_is_asserted() -> None:
    storage = MemoryStorage()
    journal = Journal.open(storage, segment_size=SEGMENT_SIZE, prepare=run_inline)
    with pytest.raises(AssertionError, match="read to its end"):
        journal.start(term=1)
    with pytest.raises(AssertionError, match="started"):
        journal.build(b"x", 1, 0, 1)
    assert list(journal.records()) == []
    with pytest.raises(AssertionError, match="read once"):
        list(journal.records())
    journal.start(term=1)
    with pytest.raises(AssertionError, match="started once"):
        journal.start(term=1)
    journal.write(journal.build(b"x", 1, 0, 1))
    with pytest.raises(AssertionError, match="unsynced"):
        journal.stop()


# The lock.


def test_a_journal_is_open_once() -> None:
    storage = MemoryStorage()
    journal = start(storage)
    with pytest.raises(JournalHeld):
        Journal.open(storage)
    append(journal, b"x")
    journal.stop()
    assert len(read(storage)) == 1
