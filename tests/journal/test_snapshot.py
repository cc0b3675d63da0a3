"""Snapshots: exact bytes, every way in which a file can be bad, and every step at which the maker
can end."""

from __future__ import annotations

import errno
import re
from random import Random
from typing import Any

import pytest

from journal import SnapshotDamaged, SnapshotFolder, SnapshotHead, hash_image
from journal.faulty import Fault, FaultyFile, FaultyStorage, Kind
from journal.memory import MemoryStorage
from journal.snapshot import (
    HEADER_FIELDS,
    SNAPSHOT_HEADER_SIZE,
    decode_snapshot_head,
    encode_snapshot_head,
)
from tests.journal.snapshot_life import make_image, make_venue
from tests.source_tree import SOURCE

PAGE = SOURCE / "journal" / "FORMAT.md"

VENUE = make_venue(12)
OLD, MIDDLE, NEW = (VENUE.heads[index] for index in (3, 7, 11))

GOLDEN_HEAD = SnapshotHead(
    rules_version=3,
    sequence=1_000_000,
    time_ns=1_700_000_000_123_456_789,
    term=5,
    record_hash=bytes(range(32)),
    previous_sequence=999_750,
    previous_term=4,
    previous_hash=bytes(range(32, 64)),
    commands_segment=7,
    record_offset=512 * 1_001,
    record_count=77,
    events_segment=990_001,
    events_offset=1_234_567,
    events_segment_size=16 * 1024 * 1024,
    events_crc=0xDEADBEEF,
    image_size=1_048_577,
    image_hash=bytes(range(64, 96)),
)
GOLDEN = bytes.fromhex(
    "4252494552534e50010000000300000040420f000000000015cd853dfe9c97170500000000000000"
    "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f46410f0000000000"
    "0400000000000000202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f"
    "070000000000000000d20700000000004d00000000000000311b0f000000000087d6120000000000"
    "0000000100000000efbeadde0100100000000000404142434445464748494a4b4c4d4e4f50515253"
    "5455565758595a5b5c5d5e5f1bc67e81"
)


def folder_with(*heads: SnapshotHead) -> MemoryStorage:
    """A folder in which these snapshots were written, durably."""
    storage = MemoryStorage()
    for head in heads:
        SnapshotFolder(storage).write(head, make_image(head.sequence)).publish()
    return storage


# Bytes.


def test_golden_header() -> None:
    assert encode_snapshot_head(GOLDEN_HEAD) == GOLDEN
    assert decode_snapshot_head(GOLDEN) == GOLDEN_HEAD
    assert GOLDEN_HEAD.name == "00000000000001000000.snapshot"


def test_the_page_says_what_the_code_does() -> None:
    page = PAGE.read_text("utf-8")
    section = page[page.index("## 10. Snapshots") : page.index("## 11.")]
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (\w+) \|", section, re.MULTILINE)
    sizes = {"I": 4, "Q": 8, "8s": 8, "32s": 32}
    offset = 0
    expected = []
    for name, code in HEADER_FIELDS:
        expected.append((str(offset), str(sizes[code]), name))
        offset += sizes[code]
    assert rows == expected
    assert offset == SNAPSHOT_HEADER_SIZE


def test_file_is_header_and_image() -> None:
    assert folder_with(NEW).images() == {
        NEW.name: encode_snapshot_head(NEW) + make_image(NEW.sequence)
    }


def test_every_flip_in_a_header_is_seen() -> None:
    for bit in range(8 * SNAPSHOT_HEADER_SIZE):
        content = bytearray(GOLDEN)
        content[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SnapshotDamaged):
            decode_snapshot_head(bytes(content))


def test_an_impossible_header_is_refused() -> None:
    """With a good checksum, as only another writer makes it."""
    changes: list[dict[str, Any]] = [
        {"previous_sequence": GOLDEN_HEAD.sequence},
        {"previous_term": 6},
        {"commands_segment": 0},
        {"record_offset": 513},
        {"record_offset": 0},
        {"record_offset": 512},
        {"record_count": 0},
        {"events_segment": 0},
        {"events_segment": GOLDEN_HEAD.sequence + 1},
        {"events_offset": 64},
        {"image_size": 0},
        {"image_size": 2**34 + 1},
    ]
    for change in changes:
        with pytest.raises(AssertionError, match="no head of a snapshot"):
            encode_snapshot_head(GOLDEN_HEAD._replace(**change))


# Reading.


def test_heads_newest_first_and_images() -> None:
    storage = folder_with(MIDDLE, OLD, NEW)
    folder = SnapshotFolder(storage)
    assert folder.heads() == [NEW, MIDDLE, OLD]
    assert folder.bad == []
    assert [folder.read(head) for head in (OLD, NEW)] == [
        make_image(OLD.sequence),
        make_image(NEW.sequence),
    ]


def test_every_flip_and_every_length_of_a_file() -> None:
    """In the header it is seen by `heads`, in the image by `read`; the older one is not touched."""
    images = folder_with(OLD, NEW).images()
    content = images[NEW.name]
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        folder = SnapshotFolder(MemoryStorage({**images, NEW.name: bytes(flipped)}))
        if bit < 8 * SNAPSHOT_HEADER_SIZE:
            assert folder.heads() == [OLD]
            assert [name for name, _ in folder.bad] == [NEW.name]
        else:
            assert folder.heads() == [NEW, OLD]
        with pytest.raises(SnapshotDamaged):
            folder.read(NEW)
    for size in range(len(content)):
        folder = SnapshotFolder(MemoryStorage({**images, NEW.name: content[:size]}))
        assert folder.heads() == [OLD]
        with pytest.raises(SnapshotDamaged):
            folder.read(NEW)
    folder = SnapshotFolder(MemoryStorage({**images, NEW.name: content + b"\0"}))
    assert folder.heads() == [OLD]
    (bad,) = folder.bad
    assert bad == (
        NEW.name,
        f"{len(content) + 1} bytes, the header says an image of {NEW.image_size}",
    )
    with pytest.raises(SnapshotDamaged):
        folder.read(NEW)


def test_a_file_under_another_name_is_bad() -> None:
    storage = folder_with(NEW)
    storage.rename(NEW.name, OLD.name)
    folder = SnapshotFolder(storage)
    assert folder.heads() == []
    assert folder.bad == [(OLD.name, f"header belongs to {NEW.name}")]


def test_other_files_are_left_alone() -> None:
    images = folder_with(OLD).images()
    others = {
        "lock": b"",
        "notes.txt": b"mine",
        "1.snapshot": images[OLD.name],
        NEW.name + ".tmp": b"half",
    }
    folder = SnapshotFolder(MemoryStorage({**images, **others}))
    assert folder.heads() == [OLD]
    assert folder.bad == []


def test_a_disk_that_does_not_read_is_a_bad_snapshot() -> None:
    """One that can be read is taken; the fault is told."""
    disk = FaultyStorage(folder_with(OLD, NEW), [Fault("read", 1, errno.EIO)])
    folder = SnapshotFolder(disk)
    assert folder.heads() == [OLD]
    assert folder.bad == [(NEW.name, "[Errno 5] Input/output error")]
    folder = SnapshotFolder(FaultyStorage(folder_with(OLD), [Fault("read", 1, errno.EIO)]))
    with pytest.raises(SnapshotDamaged, match="Input/output error") as caught:
        folder.read(OLD)
    assert (caught.value.exit_code, caught.value.file) == (66, OLD.name)


def test_one_that_is_removed_meanwhile_is_not_there() -> None:
    class Vanishing(MemoryStorage):
        def names(self) -> list[str]:
            return [*super().names(), NEW.name]

    folder = SnapshotFolder(Vanishing(folder_with(OLD).images()))
    assert folder.heads() == [OLD]
    assert folder.bad == []


# Writing.


def test_nothing_counts_before_it_is_published() -> None:
    storage = folder_with(OLD)
    folder = SnapshotFolder(storage)
    written = folder.write(NEW, make_image(NEW.sequence))
    assert written.image == make_image(NEW.sequence)
    assert folder.heads() == [OLD]
    written.discard()
    assert storage.images() == folder_with(OLD).images()


def test_what_is_left_of_an_earlier_attempt_is_replaced() -> None:
    storage = folder_with(OLD)
    folder = SnapshotFolder(storage)
    folder.write(NEW, make_image(NEW.sequence))
    folder.write(NEW, make_image(NEW.sequence)).publish()
    assert folder.heads() == [NEW, OLD]
    folder.write(MIDDLE, make_image(MIDDLE.sequence))
    folder.remove_leftovers()
    assert storage.names() == [OLD.name, NEW.name]


def test_a_disk_that_gives_back_something_else_is_found_out() -> None:
    class SpoiledFile(FaultyFile):
        def read(self, offset: int, size: int) -> bytes:
            content = bytearray(super().read(offset, size))
            content[-1] ^= offset >= SNAPSHOT_HEADER_SIZE
            return bytes(content)

    class SpoilingStorage(FaultyStorage):
        def open(self, name: str, *, is_writable: bool = False) -> FaultyFile:
            return SpoiledFile(storage.open(name, is_writable=is_writable), self)

    storage = MemoryStorage()
    image = make_image(NEW.sequence)
    with pytest.raises(SnapshotDamaged, match="image is not the one that was written"):
        SnapshotFolder(SpoilingStorage(storage)).write(NEW, image)
    assert storage.images() == {}


def test_a_large_image_is_synced_in_pieces() -> None:
    image = Random(1).randbytes(5 * 1024 * 1024 // 2)
    head = NEW._replace(image_size=len(image), image_hash=hash_image(image))
    disk = FaultyStorage(MemoryStorage())
    SnapshotFolder(disk).write(head, image).publish()
    # Header and three pieces, each synced; once more to settle.
    assert (disk.counts["write"], disk.counts["sync"], disk.counts["sync_folder"]) == (4, 5, 1)


def test_pruning() -> None:
    storage = folder_with(*VENUE.heads[:6])
    names = storage.names()
    disk = FaultyStorage(storage)
    folder = SnapshotFolder(disk)
    assert folder.prune(6) == []
    assert disk.counts["change"] == 0
    assert folder.prune(4) == [names[1], names[0]]
    assert (disk.counts["remove"], disk.counts["sync_folder"]) == (2, 1)
    assert storage.names() == names[2:]
    with pytest.raises(AssertionError, match="too few"):
        folder.prune(1)


def test_bad_files_do_not_count_as_kept() -> None:
    """Those that are older than the kept ones go; newer ones stay for people."""
    heads = VENUE.heads[:6]
    images = folder_with(*heads).images()
    for bad in (0, 3, 5):
        name = heads[bad].name
        images[name] = images[name][:-1]
    storage = MemoryStorage(images)
    folder = SnapshotFolder(storage)
    assert folder.prune(2) == [heads[1].name, heads[0].name]
    assert folder.heads() == [heads[4], heads[2]]
    assert storage.names() == [head.name for head in heads[2:]]


def test_those_that_nobody_can_use_do_not_count_as_kept() -> None:
    storage = folder_with(*VENUE.heads[:6])
    names = storage.names()
    folder = SnapshotFolder(storage)
    assert folder.prune(2, {names[5], names[4], names[1]}) == [names[1], names[0]]
    assert storage.names() == names[2:]
    assert folder.prune(2, names[3:]) == [], "the one that is good, and no second"


def make_next(storage: FaultyStorage) -> None:
    """What a maker does, from its start to its end."""
    folder = SnapshotFolder(storage)
    folder.remove_leftovers()
    written = folder.write(NEW, make_image(NEW.sequence))
    assert hash_image(written.image) == NEW.image_hash
    written.publish()
    folder.prune(2)


def count_changes() -> int:
    disk = FaultyStorage(folder_with(OLD, MIDDLE))
    make_next(disk)
    return disk.counts["change"]


def is_good(storage: MemoryStorage) -> list[SnapshotHead]:
    """The heads, each with a good image, and nothing bad."""
    folder = SnapshotFolder(storage)
    heads = folder.heads()
    assert folder.bad == []
    for head in heads:
        assert folder.read(head) == make_image(head.sequence)
    return heads


def test_power_loss_at_every_step() -> None:
    """The older ones are there until the new one is durable; that is whole or not there; the next
    maker goes on."""
    seen = set()
    for at in range(1, count_changes() + 1):
        for is_applied in (False, True):
            for seed in range(15):
                storage = folder_with(OLD, MIDDLE)
                fault = Fault("change", at, errno.EIO, True, is_applied)
                with pytest.raises(OSError, match="Input/output error"):
                    make_next(FaultyStorage(storage, [fault]))
                storage.crash(Random(seed))
                heads = is_good(storage)
                seen.add(tuple(heads))
                assert heads in ([MIDDLE, OLD], [NEW, MIDDLE, OLD], [NEW, MIDDLE])
                make_next(FaultyStorage(storage))
                assert is_good(storage) == [NEW, MIDDLE]
                assert storage.names() == [MIDDLE.name, NEW.name]
    assert len(seen) == 3, "each of the outcomes happened"


def test_failure_of_every_step() -> None:
    """What fails once is raised; nothing that was there is lost, and it can be tried again."""
    faults: list[tuple[Kind, int]] = [
        ("change", errno.ENOSPC),
        ("read", errno.EIO),
        ("open", errno.EIO),
    ]
    for kind, error in faults:
        disk = FaultyStorage(folder_with(OLD, MIDDLE))
        make_next(disk)
        for at in range(1, disk.counts[kind] + 1):
            storage = folder_with(OLD, MIDDLE)
            faulty = FaultyStorage(storage, [Fault(kind, at, error)])
            failed = False
            try:
                make_next(faulty)
            except OSError as raised:
                failed = raised.errno == error
            # Pruning passes over a head that it cannot read.
            assert failed or is_good(storage)[:2] == [NEW, MIDDLE]
            assert is_good(storage)[-2:] in ([MIDDLE, OLD], [NEW, MIDDLE])
            make_next(faulty)
            assert is_good(storage) == [NEW, MIDDLE]
