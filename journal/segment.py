"""One segment: its name, its header sector, its zeros, and reading its records in order.

FORMAT.md, section 3. Nothing here decides about the end of the journal; see `tail.py`.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from hashlib import blake2b
from typing import Final, NamedTuple
from zlib import crc32

from journal.errors import JournalDamaged
from journal.record import (
    HASH_SIZE,
    RECORD_SIZE_MAX,
    SECTOR_SIZE,
    Defect,
    Head,
    Record,
    RecordError,
    read_record,
)
from journal.storage import File

MAGIC: Final = b"BRIERSEG"
FORMAT_VERSION: Final = 1
SEGMENT_SIZE_DEFAULT: Final = 64 * 1024 * 1024
SEGMENT_SIZE_MIN: Final = 2 * SECTOR_SIZE  # Header and one record; tests run on such segments.
SEGMENT_SIZE_MAX: Final = 1024 * 1024 * 1024  # A seal reads all of it in the background.
BLOCK_SIZE: Final = 4 * RECORD_SIZE_MAX  # What is read, zeroed or hashed at once.

HEADER_FIELDS: Final = (
    ("magic", "8s"),
    ("format_version", "I"),
    ("number", "Q"),
    ("segment_size", "Q"),
    ("first_sequence", "Q"),
    ("previous_hash", "32s"),
    ("header_crc", "I"),
)
_HEADER: Final = struct.Struct("<" + "".join(code for _, code in HEADER_FIELDS))
_BODY: Final = struct.Struct("<" + "".join(code for _, code in HEADER_FIELDS[:-1]))
_NAME: Final = re.compile(r"([0-9]{20})-([0-9]{20})\.segment", re.ASCII)
_ZEROS: Final = bytes(BLOCK_SIZE)

SEGMENT_SUFFIX: Final = ".segment"
PREPARED_SUFFIX: Final = ".prepared"


class Segment(NamedTuple):
    """What the header of a segment says."""

    number: int
    size: int
    first_sequence: int
    previous_hash: bytes

    @property
    def name(self) -> str:
        return f"{self.number:020}-{self.first_sequence:020}{SEGMENT_SUFFIX}"


def prepared_name(number: int) -> str:
    return f"{number:020}{PREPARED_SUFFIX}"


def parse_name(name: str) -> tuple[int, int]:
    """Number and first sequence in the name of a segment. Raises JournalDamaged."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise JournalDamaged("not the name of a segment", file=name)
    return int(match[1]), int(match[2])


def check_segment_size(size: int) -> None:
    assert SEGMENT_SIZE_MIN <= size <= SEGMENT_SIZE_MAX, f"segment size {size} is out of range"
    assert size % SECTOR_SIZE == 0, f"segment size {size} is not a multiple of {SECTOR_SIZE}"


def encode_header(segment: Segment) -> bytes:
    """The header sector."""
    body = _BODY.pack(MAGIC, FORMAT_VERSION, *segment)
    return (body + struct.pack("<I", crc32(body))).ljust(SECTOR_SIZE, b"\xff")


def read_header(file: File, name: str) -> Segment:
    """The checked header of the segment `name`. Raises JournalDamaged."""
    sector = file.read(0, SECTOR_SIZE)
    if len(sector) < SECTOR_SIZE:
        raise JournalDamaged("segment is shorter than its header", file=name)
    magic, version, number, size, first, previous_hash, header_crc = _HEADER.unpack_from(sector)
    if magic != MAGIC or crc32(sector[: _BODY.size]) != header_crc:
        raise JournalDamaged("segment header is damaged", file=name, offset=0)
    if version != FORMAT_VERSION:
        raise JournalDamaged(f"unknown format version {version}", file=name, offset=0)
    segment = Segment(number, size, first, previous_hash)
    if encode_header(segment) != sector:
        raise JournalDamaged("segment header is not padded with 0xFF", file=name, offset=0)
    if segment.name != name:
        raise JournalDamaged(f"segment header belongs to {segment.name}", file=name, offset=0)
    if file.size() != size:
        raise JournalDamaged(f"segment has {file.size()} bytes instead of {size}", file=name)
    return segment


def zeros(size: int) -> Iterator[bytes]:
    """`size` zero bytes in blocks."""
    while size > 0:
        block = _ZEROS[: min(size, BLOCK_SIZE)]
        yield block
        size -= len(block)


def is_zero(content: bytes | memoryview) -> bool:
    """Whether all of `content` (at most a block) is zero."""
    assert len(content) <= BLOCK_SIZE, "at most a block"
    # Not `==`, which compares a view item by item.
    return _ZEROS.startswith(content)


def hash_file(file: File) -> bytes:
    """BLAKE2b-256 of the whole file."""
    digest = blake2b(digest_size=HASH_SIZE)
    offset = 0
    while block := file.read(offset, BLOCK_SIZE):
        digest.update(block)
        offset += len(block)
    return digest.digest()


class SegmentReader:
    """Reads records until one is not valid; then the attributes tell where and why."""

    def __init__(
        self,
        file: File,
        segment: Segment,
        head: Head,
        offset: int = SECTOR_SIZE,
        record_count: int = 0,
    ) -> None:
        """From `offset` on, where `head` is that of the journal after `record_count` records."""
        self.head = head  # after the last valid record
        self.offset = offset  # P: end of the last valid record
        self.record_count = record_count  # of the segment, up to there
        self.defect: Defect | None = None  # None: the segment is full to its end
        self._file = file
        self._segment = segment

    def records(self) -> Iterator[Record]:
        number, size = self._segment.number, self._segment.size
        block = memoryview(b"")
        start = offset = self.offset
        safe_end = -1
        while offset < size:
            # The view reaches to the end of the largest record, or to the end of the segment.
            if offset > safe_end:
                start = offset
                block = memoryview(self._file.read(start, min(BLOCK_SIZE, size - start)))
                end = start + len(block)
                safe_end = end - RECORD_SIZE_MAX if end < size else size
            try:
                record = read_record(block[offset - start :], self.head, number, offset)
            except RecordError as bad:
                self.defect = bad.defect
                return
            self.head = record.head
            self.offset = offset = offset + record.size
            self.record_count += 1
            yield record
