"""What a start refuses and what it mends: marker, floor, segments, manifest, leftovers."""

from __future__ import annotations

from random import Random

import pytest

from journal import (
    Journal,
    run_inline,
)
from journal.manifest import decode_manifest, encode_manifest
from journal.memory import MemoryStorage
from journal.segment import Segment, encode_header
from tests.journal.life import (
    FIRST,
    SEGMENT_SIZE,
    append,
    noise,
    read,
    refuse,
    start,
    stopped,
)

# The clean-stop marker and the floor.


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
