"""The life of a journal: append, read back, roll over, seal, stop, start again, refuse, latch."""

from __future__ import annotations

import errno
from collections.abc import Callable
from hashlib import blake2b
from random import Random
from threading import Event, Thread

import pytest

from journal import (
    BuiltRecord,
    Journal,
    JournalDamaged,
    JournalFailed,
    JournalHeld,
    Record,
    Storage,
    run_in_thread,
    run_inline,
    verify,
)
from journal.faulty import Fault, FaultyStorage, Kind
from journal.manifest import decode_manifest, encode_manifest
from journal.memory import MemoryFile, MemoryStorage
from journal.record import NO_HASH
from journal.segment import Segment, encode_header

SEGMENT_SIZE = 4096  # Seven sectors for records.
FIRST = "00000000000000000001-00000000000000000001.segment"


def start(storage: Storage, term: int = 1, segment_size: int = SEGMENT_SIZE) -> Journal:
    """A journal that was read to its end and takes records."""
    journal = Journal.open(storage, segment_size=segment_size, prepare=run_inline)
    for _ in journal.records():
        pass
    journal.start(term)
    return journal


def append(journal: Journal, payload: bytes, command_count: int = 1, rules: int = 1) -> BuiltRecord:
    batch = journal.build(payload, command_count, events_crc=len(payload), rules_version=rules)
    append_built(journal, batch)
    return batch


def append_two(journal: Journal, batch: BuiltRecord) -> None:
    append_built(journal, batch)
    journal.build(b"a second one", 1, 0, 1)


def append_built(journal: Journal, batch: BuiltRecord) -> None:
    journal.write(batch)
    journal.sync()


def read(storage: Storage, floor_sequence: int = 0) -> list[Record]:
    journal = Journal.open(storage, floor_sequence=floor_sequence, prepare=run_inline)
    try:
        return list(journal.records())
    finally:
        journal.close()


def refuse(storage: MemoryStorage, floor_sequence: int = 0) -> JournalDamaged:
    """The refusal to read this folder; checks that no file changed and that the lock is free."""
    before = storage.images()
    with pytest.raises(JournalDamaged) as caught:
        read(storage, floor_sequence)
    assert storage.images() == before
    storage.lock()
    storage.close()
    return caught.value


def noise(size: int) -> bytes:
    return Random(size).randbytes(size)


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

    class SlowFile(MemoryFile):
        def sync_data(self) -> None:
            entered.set()
            assert release.wait(10)
            super().sync_data()

    class SlowStorage(MemoryStorage):
        is_slow = False

        def open(self, name: str, *, is_writable: bool = False) -> MemoryFile:
            if not self.is_slow:
                return super().open(name, is_writable=is_writable)
            return SlowFile(self._find(name), self, is_writable)

    storage = SlowStorage()
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


# The clean-stop marker and the floor.


def stopped() -> MemoryStorage:
    storage = MemoryStorage()
    journal = start(storage)
    for size in (100, 700, 900, 1300, 50):
        append(journal, noise(size), 2)
    journal.stop()
    return storage


def test_the_marker_says_where_the_journal_ends() -> None:
    storage = stopped()
    records = read(storage)
    lines = storage.images()["clean-stop"].decode().splitlines()
    assert lines[:3] == ["brier clean-stop 1", "sequence 10", f"hash {records[-1].head.hash.hex()}"]
    journal = start(storage)
    assert "clean-stop" not in storage.images()
    append(journal, b"more")
    journal.close()
    assert len(read(storage)) == 6


def test_the_marker_is_gone_for_good_before_the_first_append() -> None:
    for seed in range(20):
        storage = stopped()
        journal = start(storage)
        append(journal, b"more")
        storage.crash(Random(seed))
        assert "clean-stop" not in storage.images()
        assert len(read(storage)) == 6


def test_a_journal_below_its_marker_is_refused() -> None:
    storage = stopped()
    files = storage.images()
    [_, name] = sorted(name for name in files if name.endswith(".segment"))
    image = files[name]
    shorter = image[:512].ljust(len(image), b"\0")
    error = refuse(MemoryStorage({**files, name: shorter}))
    assert error.file == "clean-stop"
    assert error.defect == "journal ends at sequence 6, marker at 10"
    # Without the marker nothing is wrong with it.
    del files["clean-stop"]
    assert len(read(MemoryStorage({**files, name: shorter}))) == 3


def test_a_journal_beyond_or_beside_its_marker_is_refused() -> None:
    old = stopped().images()["clean-stop"]
    storage = stopped()
    journal = start(storage)
    append(journal, b"more")
    journal.close()
    assert refuse(MemoryStorage({**storage.images(), "clean-stop": old})).sequence is None
    other = MemoryStorage()
    journal = start(other)
    append(journal, b"another journal", 10)
    journal.stop()
    error = refuse(MemoryStorage({**other.images(), "clean-stop": old}))
    assert error.defect == "hash of the record with sequence 10 differs"


def test_a_damaged_marker_is_refused() -> None:
    files = stopped().images()
    marker = files["clean-stop"]
    for length in range(len(marker)):
        assert refuse(MemoryStorage({**files, "clean-stop": marker[:length]})).file == "clean-stop"
    for bit in range(0, len(marker) * 8, 3):
        bad = bytearray(marker)
        bad[bit // 8] ^= 1 << bit % 8
        assert refuse(MemoryStorage({**files, "clean-stop": bytes(bad)})).file == "clean-stop"


def test_a_journal_below_the_floor_is_refused() -> None:
    storage = stopped()
    error = refuse(storage, floor_sequence=11)
    assert (error.sequence, error.offset) == (10, 512 + 1536 + 512)
    assert error.defect == "journal ends here, but was durable up to sequence 11"
    assert refuse(MemoryStorage(), floor_sequence=1).sequence == 0
    journal = Journal.open(storage, floor_sequence=10, prepare=run_inline)
    assert len(list(journal.records())) == 5
    journal.close()


def test_a_torn_end_below_the_floor_is_refused() -> None:
    files = stopped().images()
    del files["clean-stop"]
    name = max(name for name in files if name.endswith(".segment"))
    image = bytearray(files[name])
    image[1024:1536] = bytes(512)
    image[2048:2560] = bytes(512)
    torn = MemoryStorage({**files, name: bytes(image)})
    assert refuse(torn, floor_sequence=7).sequence == 6
    journal = Journal.open(torn, floor_sequence=6, segment_size=SEGMENT_SIZE, prepare=run_inline)
    assert len(list(journal.records())) == 3
    journal.start(term=1)
    assert journal.repaired is not None
    assert f"{name} at offset 512, after sequence 6" in journal.repaired
    append(journal, b"after the cut")
    journal.close()
    assert bytes(read(torn)[3].payload) == b"after the cut"


# Segments and manifest.


def test_an_altered_sealed_segment_is_refused() -> None:
    files = stopped().images()
    assert len(files["manifest"].splitlines()) == 3
    image = bytearray(files[FIRST])
    image[-1] ^= 1  # in the zeros behind its records
    error = refuse(MemoryStorage({**files, FIRST: bytes(image)}))
    assert error.file == FIRST
    assert error.defect == "hash of the sealed segment differs from the manifest"


def test_a_segment_of_another_journal_is_refused() -> None:
    storage, other = MemoryStorage(), MemoryStorage()
    for target, fill in ((storage, b"a"), (other, b"b")):
        journal = start(target)
        for _ in range(2):
            append(journal, fill * 3000)
        journal.close()
    name = "00000000000000000002-00000000000000000002.segment"
    error = refuse(MemoryStorage({**storage.images(), name: other.images()[name]}))
    assert error.defect == "hash does not continue the segment before"


def test_a_segment_that_leaves_out_sequences_is_refused() -> None:
    """A forged header: intact, chained by its hash, but the count does not fit."""
    storage = MemoryStorage()
    journal = start(storage)
    append(journal, noise(3000), 7)
    append(journal, noise(3000))
    journal.close()
    files = storage.images()
    image = files.pop("00000000000000000002-00000000000000000008.segment")
    forged = Segment(2, SEGMENT_SIZE, 9, image[36:68])
    error = refuse(MemoryStorage({**files, forged.name: encode_header(forged) + image[512:]}))
    assert (error.file, error.offset, error.sequence) == (forged.name, 0, 7)
    assert error.defect == "first sequence does not continue the segment before"


@pytest.mark.parametrize("field", ["last_sequence", "record_count", "size"])
def test_a_manifest_that_counts_wrong_is_refused(field: str) -> None:
    files = stopped().images()
    [entry] = decode_manifest(files["manifest"])
    forged = entry._replace(**{field: getattr(entry, field) + 1})
    error = refuse(MemoryStorage({**files, "manifest": encode_manifest([forged])}))
    assert (error.file, error.defect) == (FIRST, "contents differ from the manifest")


def test_a_renamed_segment_is_refused() -> None:
    files = stopped().images()
    image = files.pop(FIRST)
    later = "00000000000000000003-00000000000000000001.segment"
    assert refuse(MemoryStorage({**files, later: image})).defect == "segment 1 expected here"
    other = "00000000000000000001-00000000000000000002.segment"
    assert refuse(MemoryStorage({**files, other: image})).file == other


def test_two_segments_with_one_number_are_refused() -> None:
    files = stopped().images()
    twin = "00000000000000000001-00000000000000000002.segment"
    error = refuse(MemoryStorage({**files, twin: files[FIRST]}))
    assert error.defect == "segment 2 expected here"


def test_an_old_manifest_is_refused() -> None:
    storage = MemoryStorage()
    journal = start(storage)
    manifests = [storage.images()["manifest"]]
    for _ in range(4):
        append(journal, noise(3000))
        manifests.append(storage.images()["manifest"])
    journal.close()
    files = storage.images()
    assert len(read(MemoryStorage({**files, "manifest": manifests[3]}))) == 4, (
        "one behind is a crash"
    )
    for old in manifests[:3]:
        error = refuse(MemoryStorage({**files, "manifest": old}))
        assert error.file == "manifest"


def test_a_full_segment_that_was_not_sealed_is_sealed_at_start() -> None:
    storage = MemoryStorage()
    journal = start(storage)
    append(journal, noise(3000))
    before = storage.images()["manifest"]
    append(journal, noise(3000))
    journal.close()
    after = storage.images()["manifest"]
    assert before != after
    late = MemoryStorage({**storage.images(), "manifest": before})
    start(late).close()
    assert late.images()["manifest"] == after


def test_a_manifest_may_be_missing_only_before_the_first_record() -> None:
    storage = MemoryStorage()
    start(storage).close()
    files = storage.images()
    del files["manifest"]
    assert read(MemoryStorage(files)) == []
    journal = start(storage)
    append(journal, b"x")
    journal.close()
    files = storage.images()
    del files["manifest"]
    assert refuse(MemoryStorage(files)).defect == "manifest is missing"


def test_leftovers_are_removed_at_start_and_other_files_left_alone() -> None:
    storage = stopped()
    extra = {"x.tmp": b"1", "manifest.tmp": b"2", "00000000000000000009.prepared": b"3"}
    kept = {"lost+found": b"4", "notes.txt": b"5", "torn-1-512-1.bin": b"6"}
    storage = MemoryStorage({**storage.images(), **extra, **kept})
    journal = start(storage)
    journal.close()
    assert not set(extra) & set(storage.images())
    assert kept.items() <= storage.images().items()


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
    journal.write(batch)  # The segment was prepared at start; the one after it cannot be.
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
