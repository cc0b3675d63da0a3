"""Offline reading: sums up, changes nothing, and says what a start would cut."""

from __future__ import annotations

import errno

import pytest

from journal import Journal, JournalDamaged, JournalFailed, Summary, read_only, run_inline, verify
from journal.faulty import Fault, FaultyStorage
from journal.manifest import (
    TEXT_SIZE_MAX,
    Marker,
    Sealed,
    decode_manifest,
    decode_marker,
    encode_manifest,
    encode_marker,
)
from journal.memory import MemoryStorage
from journal.record import NO_HASH

SEGMENT_SIZE = 4096


def make(payload_sizes: list[int], is_stopped: bool = False) -> MemoryStorage:
    storage = MemoryStorage()
    journal = Journal.open(storage, segment_size=SEGMENT_SIZE, prepare=run_inline)
    assert list(journal.records()) == []
    journal.start(term=1)
    for size in payload_sizes:
        journal.write(journal.build(b"p" * size, 3, 0, 1))
        journal.sync()
    if is_stopped:
        journal.stop()
    journal.close()
    return storage


def test_an_empty_folder_is_an_empty_journal() -> None:
    assert verify(MemoryStorage()) == Summary(0, 0, 0, 0, 0, 0, 0, NO_HASH, False, "clean")
    assert verify(make([])) == Summary(1, 0, 0, 0, 0, 0, 0, NO_HASH, False, "clean")


def test_a_summary() -> None:
    storage = make([100, 3000, 700, 1000], is_stopped=True)
    before = storage.images()
    reader = read_only(storage)
    records = list(reader.records())
    assert reader.head == records[-1].head
    assert verify(storage) == Summary(
        segment_count=3,
        sealed_count=2,
        record_count=4,
        command_count=12,
        first_sequence=1,
        last_sequence=12,
        record_bytes=512 + 3584 + 1024 + 1536,
        head_hash=records[-1].head.hash,
        has_marker=True,
        end="clean",
    )
    assert storage.images() == before
    # Nothing is locked, and a journal that is open can be looked at in tests.
    storage.lock()
    assert verify(storage).record_count == 4


def test_a_torn_end_is_described_and_left() -> None:
    files = make([100, 1000]).images()
    name = max(name for name in files if name.endswith(".segment"))
    image = bytearray(files[name])
    image[1536:2048] = bytes(512)
    storage = MemoryStorage({**files, name: bytes(image)})
    summary = verify(storage)
    assert summary.end == (
        f"torn: {name} at offset 1024, after sequence 3: 1536 bytes, sectors never written"
    )
    assert (summary.record_count, summary.last_sequence) == (1, 3)
    assert storage.images()[name] == bytes(image)


def test_the_floor_holds_offline_too() -> None:
    storage = make([100])
    assert verify(storage, floor_sequence=3).last_sequence == 3
    with pytest.raises(JournalDamaged, match="durable up to sequence 4"):
        verify(storage, floor_sequence=4)


@pytest.mark.parametrize("kind", ["open", "read"])
def test_a_failing_disk_is_a_failure(kind: str) -> None:
    storage = make([100, 3000])
    for at in (1, 2, 3):
        fault = Fault("open" if kind == "open" else "read", at, errno.EIO)
        with pytest.raises(JournalFailed, match=r"read: .*Input/output"):
            verify(FaultyStorage(storage, [fault]))


# The two text files.

ENTRIES = [Sealed(1, 1, 10, 2, 4096, bytes(range(32))), Sealed(2, 11, 11, 1, 1024, NO_HASH)]
MANIFEST = (
    b"brier manifest 1\n"
    b"1 1 10 2 4096 000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f\n"
    b"2 11 11 1 1024 0000000000000000000000000000000000000000000000000000000000000000\n"
    b"crc32 92d4b137\n"
)
MARKER = (
    b"brier clean-stop 1\n"
    b"sequence 77\n"
    b"hash 000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f\n"
    b"crc32 413c2de1\n"
)


def test_golden_texts() -> None:
    assert encode_manifest(ENTRIES) == MANIFEST
    assert decode_manifest(MANIFEST) == ENTRIES
    assert encode_marker(Marker(77, bytes(range(32)))) == MARKER
    assert decode_marker(MARKER) == Marker(77, bytes(range(32)))
    assert decode_manifest(encode_manifest([])) == []


@pytest.mark.parametrize("text", [MANIFEST, MARKER])
def test_every_bit_and_every_length_of_the_texts(text: bytes) -> None:
    def decode(content: bytes) -> object:
        return decode_manifest(content) if text is MANIFEST else decode_marker(content)

    for bit in range(len(text) * 8):
        bad = bytearray(text)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(JournalDamaged):
            decode(bytes(bad))
    for length in range(len(text)):
        with pytest.raises(JournalDamaged):
            decode(text[:length])
    for suffix in (b"\n", b"x", text):
        with pytest.raises(JournalDamaged):
            decode(text + suffix)


def test_a_second_spelling_is_refused() -> None:
    for old, new in ((b" 4096 ", b" 04096 "), (b" 10 ", b" +10 "), (b"0a0b", b"0A0B")):
        assert old in MANIFEST
        with pytest.raises(JournalDamaged):
            decode_manifest(MANIFEST.replace(old, new))


def test_segments_out_of_order_are_refused() -> None:
    with pytest.raises(JournalDamaged, match="in order"):
        decode_manifest(encode_manifest(ENTRIES[1:]))
    with pytest.raises(JournalDamaged, match="in order"):
        decode_manifest(encode_manifest(ENTRIES[::-1]))


def test_a_huge_text_is_not_read() -> None:
    storage = MemoryStorage({"manifest": bytes(TEXT_SIZE_MAX + 1)})
    with pytest.raises(JournalDamaged, match="too large"):
        verify(storage)
