"""Record bytes: golden, against the page, and every way to be bad by its name."""

from __future__ import annotations

import re
import struct
from hashlib import blake2b
from random import Random
from zlib import crc32

import pytest

from journal.record import (
    FORMAT_VERSION,
    HEADER_FIELDS,
    HEADER_SIZE,
    PAYLOAD_SIZE_MAX,
    RECORD_SIZE_MAX,
    SECTOR_SIZE,
    START,
    Defect,
    Head,
    RecordError,
    build_record,
    has_blank_sector,
    read_header,
    read_record,
)
from tests.source_tree import SOURCE

PAGE = SOURCE / "journal" / "FORMAT.md"
HEAD = Head(sequence=41, hash=bytes(range(32)), term=7, rules_version=3)


def section(title: str) -> str:
    """The text of one section of the page."""
    return PAGE.read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_golden_record() -> None:
    built = build_record(
        HEAD, b"two commands", command_count=2, events_crc=0xDEADBEEF, rules_version=3
    )
    header = (
        "4252494552524543"  # BRIERREC
        "01000000"  # format version
        "03000000"  # rules version
        "0700000000000000"  # term
        "2a00000000000000"  # first sequence
        "02000000"  # commands
        "0c000000"  # payload size
        "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
        "efbeadde"  # events
        "8f2a81d6"  # payload
        "270c75ea"  # header
    )
    expected = bytes.fromhex(header) + b"two commands" + b"\xff" * (512 - 84 - 12)
    assert built.content == expected
    assert built.head == Head(
        43, bytes.fromhex("1eb36e46ec6c6538a25a543f143e6f6b60078b1a8cf31ae60bbf6b055386c44c"), 7, 3
    )
    assert built.first_sequence == 42


def test_page_has_the_offsets_of_the_code() -> None:
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (\w+) \|", section("2. Record"), re.MULTILINE)
    offset = 0
    expected = []
    for name, code in HEADER_FIELDS:
        size = struct.calcsize("<" + code)
        expected.append((str(offset), str(size), name))
        offset += size
    assert rows == expected
    assert offset == HEADER_SIZE


def test_page_has_the_numbers_of_the_code() -> None:
    text = section("2. Record")
    assert f"at most {RECORD_SIZE_MAX} bytes" in text
    assert f"1 to {PAYLOAD_SIZE_MAX}" in text
    assert f"CRC32 of bytes 0 to {HEADER_SIZE - 5}" in text
    assert f"| format_version | {FORMAT_VERSION} |" in text


def test_page_lists_the_defects_in_order() -> None:
    names = re.findall(r"^\| (\w+) \| [^|]+ \|$", section("2. Record"), re.MULTILINE)
    assert names[1:] == [defect.name.lower() for defect in Defect]


@pytest.mark.parametrize(
    ("payload_size", "sector_count"),
    [(1, 1), (428, 1), (429, 2), (940, 2), (941, 3), (PAYLOAD_SIZE_MAX, 512)],
)
def test_round_trip_at_the_edges_of_sectors(payload_size: int, sector_count: int) -> None:
    payload = Random(payload_size).randbytes(payload_size)
    built = build_record(HEAD, payload, 5, 9, 3)
    assert len(built.content) == sector_count * SECTOR_SIZE
    record = read_record(memoryview(built.content + bytes(512)), HEAD, 12, 1024)
    assert bytes(record.payload) == payload
    assert record.head == built.head
    assert (record.first_sequence, record.command_count, record.events_crc) == (42, 5, 9)
    assert (record.segment_number, record.offset, record.size) == (12, 1024, len(built.content))
    assert built.head.hash == blake2b(built.content, digest_size=32).digest()


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_payload_may_be_any_buffer_of_bytes(kind: type) -> None:
    assert build_record(START, kind(b"abc"), 1, 0, 1) == build_record(START, b"abc", 1, 0, 1)


def forge(payload: bytes = b"payload", **fields: int | bytes) -> bytes:
    """A record with some header fields replaced and checksums made right, unless they are given."""
    values: dict[str, int | bytes] = {
        "magic": b"BRIERREC",
        "format_version": 1,
        "rules_version": 3,
        "term": 7,
        "first_sequence": 42,
        "command_count": 2,
        "payload_size": len(payload),
        "previous_hash": HEAD.hash,
        "events_crc": 0,
        "payload_crc": crc32(payload),
    }
    header_crc = fields.pop("header_crc", None)
    values.update(fields)
    body = struct.pack("<8sIIQQII32sII", *values.values())
    tail = struct.pack("<I", crc32(body) if header_crc is None else header_crc)
    return (body + tail + payload).ljust(512, b"\xff")


DEFECTS: list[tuple[bytes, Defect]] = [
    (bytes(512), Defect.MAGIC),
    (b"", Defect.MAGIC),
    (forge()[:83], Defect.MAGIC),
    (forge(magic=b"BRIERREX"), Defect.MAGIC),
    (forge(header_crc=1), Defect.HEADER_CRC),
    (forge(format_version=2, header_crc=1), Defect.HEADER_CRC),
    (forge(format_version=2), Defect.FORMAT_VERSION),
    (forge(format_version=0), Defect.FORMAT_VERSION),
    (forge(payload_size=0), Defect.BOUNDS),
    (forge(payload_size=PAYLOAD_SIZE_MAX + 1), Defect.BOUNDS),
    (forge(command_count=0), Defect.BOUNDS),
    (forge(first_sequence=0), Defect.BOUNDS),
    (forge(payload_size=429), Defect.EXTENT),
    (forge(first_sequence=41), Defect.SEQUENCE),
    (forge(first_sequence=43), Defect.SEQUENCE),
    (forge(previous_hash=bytes(32)), Defect.CHAIN),
    (forge(term=6), Defect.TERM),
    (forge(rules_version=4), Defect.RULES_VERSION),
    (forge(payload_crc=1), Defect.PAYLOAD_CRC),
    (forge(payload_size=8), Defect.PAYLOAD_CRC),
    (forge()[:511] + b"\xfe", Defect.PADDING),
    (forge()[:91] + b"\x00" + forge()[92:], Defect.PADDING),
]


@pytest.mark.parametrize(("content", "defect"), DEFECTS)
def test_every_defect_has_its_name(content: bytes, defect: Defect) -> None:
    with pytest.raises(RecordError) as caught:
        read_record(memoryview(content), HEAD, 1, 1024)
    assert caught.value.defect is defect


def test_every_defect_is_in_the_table_above() -> None:
    assert {defect for _, defect in DEFECTS} == set(Defect)


def test_forged_record_without_a_defect_is_read() -> None:
    assert bytes(read_record(memoryview(forge()), HEAD, 1, 1024).payload) == b"payload"
    assert read_record(memoryview(forge(term=8)), HEAD, 1, 1024).term == 8
    # The rules version may change where a segment begins.
    assert read_record(memoryview(forge(rules_version=4)), HEAD, 2, 512).rules_version == 4


def test_header_is_read_at_an_offset() -> None:
    assert read_header(bytes(512) + forge(), 512).first_sequence == 42
    with pytest.raises(RecordError):
        read_header(bytes(512) + forge(), 0)


def test_blank_sectors_are_found_exactly() -> None:
    full = b"\x01" * 512
    assert not has_blank_sector(full * 3)
    assert has_blank_sector(full + bytes(512) + full)
    for bit in range(512 * 8):
        sector = (1 << bit).to_bytes(512, "little")
        assert has_blank_sector(full + sector)
        # Two bits are enough, in one byte or in two, whatever their distance.
        other = (bit * 7 + 1) % 4096
        assert other != bit
        sector = (1 << bit | 1 << other).to_bytes(512, "little")
        assert not has_blank_sector(full + sector)
    # Zeros across two sectors are no zero sector.
    assert not has_blank_sector(b"\x03" + bytes(1022) + b"\x03" + full)


def test_builder_refuses_blank_sectors() -> None:
    payload = b"x" * (1024 - HEADER_SIZE) + bytes(512) + b"x"
    with pytest.raises(AssertionError, match="single bit"):
        build_record(START, payload, 1, 0, 1)
    single = bytearray(payload)
    single[1024 - HEADER_SIZE + 300] = 0x10
    with pytest.raises(AssertionError, match="single bit"):
        build_record(START, single, 1, 0, 1)
    single[1024 - HEADER_SIZE + 200] = 0x10
    assert len(build_record(START, single, 1, 0, 1).content) == 2048


@pytest.mark.parametrize(
    ("payload", "command_count"), [(b"", 1), (b"x" * (PAYLOAD_SIZE_MAX + 1), 1), (b"x", 0)]
)
def test_builder_asserts_its_arguments(payload: bytes, command_count: int) -> None:
    with pytest.raises(AssertionError):
        build_record(START, payload, command_count, 0, 1)
