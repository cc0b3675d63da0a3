"""Segment headers: golden, against the page, every damage by name; zero tests and file hashes."""

from __future__ import annotations

import re
import struct
from hashlib import blake2b
from random import Random
from zlib import crc32

import pytest

from journal.errors import JournalDamaged
from journal.memory import MemoryStorage
from journal.segment import (
    BLOCK_SIZE,
    HEADER_FIELDS,
    SEGMENT_SIZE_DEFAULT,
    SEGMENT_SIZE_MAX,
    Segment,
    check_segment_size,
    encode_header,
    hash_file,
    is_zero,
    parse_name,
    prepared_name,
    read_header,
    zeros,
)
from tests.source_tree import SOURCE

PAGE = SOURCE / "journal" / "FORMAT.md"
SEGMENT = Segment(number=3, size=4096, first_sequence=1234567, previous_hash=bytes(range(32)))
NAME = "00000000000000000003-00000000000001234567.segment"


def image() -> bytes:
    return encode_header(SEGMENT).ljust(4096, b"\0")


def damage(content: bytes, name: str = NAME) -> JournalDamaged:
    with pytest.raises(JournalDamaged) as caught:
        read_header(MemoryStorage({name: content}).open(name), name)
    return caught.value


def test_golden_header() -> None:
    expected = (
        "4252494552534547"  # BRIERSEG
        "01000000"  # format version
        "0300000000000000"  # number
        "0010000000000000"  # size
        "87d6120000000000"  # first sequence
        "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
        "9bcc87ce"
    )
    assert encode_header(SEGMENT) == bytes.fromhex(expected) + b"\xff" * 440
    assert SEGMENT.name == NAME
    assert prepared_name(4) == "00000000000000000004.prepared"


def test_page_has_the_offsets_of_the_code() -> None:
    text = PAGE.read_text().split("\n## 3. Segment\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (\w+) \|", text, re.MULTILINE)
    offset = 0
    expected = []
    for name, code in HEADER_FIELDS:
        size = struct.calcsize("<" + code)
        expected.append((str(offset), str(size), name))
        offset += size
    assert rows == expected
    assert f"CRC32 of bytes 0 to {offset - 5}" in text
    assert f"{SEGMENT_SIZE_DEFAULT // 2**20} MiB unless configured" in text


def test_header_round_trip() -> None:
    assert read_header(MemoryStorage({NAME: image()}).open(NAME), NAME) == SEGMENT


def test_every_bit_of_the_header_sector_matters() -> None:
    good = image()
    for bit in range(512 * 8):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        assert damage(bytes(bad)).file == NAME


def test_damages_have_names() -> None:
    header = encode_header(SEGMENT)
    assert damage(b"").defect == "segment is shorter than its header"
    assert damage(header[:511]).defect == "segment is shorter than its header"
    assert damage(image()[:-1]).defect == "segment has 4095 bytes instead of 4096"
    assert damage(image() + b"\0").defect == "segment has 4097 bytes instead of 4096"
    assert damage(bytes(4096)).defect == "segment header is damaged"
    assert damage(header[:511] + b"\xfe" + bytes(3584)).defect.endswith("padded with 0xFF")
    other = SEGMENT._replace(number=4)
    assert damage(image(), other.name).defect == f"segment header belongs to {NAME}"


def test_unknown_version_is_named() -> None:
    body = b"BRIERSEG" + struct.pack("<I", 2) + image()[12:68]
    crc = struct.pack("<I", crc32(body))
    content = (body + crc).ljust(512, b"\xff") + bytes(3584)
    assert damage(content).defect == "unknown format version 2"


def test_names() -> None:
    assert parse_name(NAME) == (3, 1234567)
    for name in (
        "3-1234567.segment",
        NAME + "x",
        "x" + NAME,
        NAME.replace("-", "_"),
        NAME.replace("0", "\u0660"),
        ".segment",
    ):
        with pytest.raises(JournalDamaged, match="not the name of a segment"):
            parse_name(name)


@pytest.mark.parametrize("size", [0, 512, 1023, 1025, SEGMENT_SIZE_MAX + 512])
def test_segment_sizes_are_bounded(size: int) -> None:
    with pytest.raises(AssertionError):
        check_segment_size(size)


@pytest.mark.parametrize("size", [0, 1, 512, BLOCK_SIZE, BLOCK_SIZE + 1, 3 * BLOCK_SIZE])
def test_zeros(size: int) -> None:
    blocks = list(zeros(size))
    assert b"".join(blocks) == bytes(size)
    assert all(is_zero(block) for block in blocks)


def test_is_zero_sees_every_byte() -> None:
    assert is_zero(b"")
    for index in range(600):
        assert not is_zero(bytes(index) + b"\x80" + bytes(599 - index))


def test_hash_of_a_file_is_that_of_its_bytes() -> None:
    content = Random(1).randbytes(BLOCK_SIZE + 777)
    file = MemoryStorage({"x": content}).open("x")
    assert hash_file(file) == blake2b(content, digest_size=32).digest()
