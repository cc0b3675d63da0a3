"""One record: header, payload, padding, and the chain from record to record.

Pure: bytes in, bytes out, no I/O. `build_record` is the only writer of record bytes and
`read_record` the only reader; both carry a `Head`, the state of the chain after a record.
FORMAT.md, section 2, is the specification.
"""

from __future__ import annotations

import enum
import struct
from hashlib import blake2b
from typing import Final, NamedTuple
from zlib import crc32

from journal.chain import unpack_chained_header, unpack_header, unpack_record

SECTOR_SIZE: Final = 512  # What a disk writes whole or not at all.
RECORD_SIZE_MAX: Final = 256 * 1024  # Bounds what a torn write can touch, and the reader's memory.
HASH_SIZE: Final = 32
NO_HASH: Final = bytes(HASH_SIZE)
MAGIC: Final = b"BRIERREC"
FORMAT_VERSION: Final = 1

HEADER_FIELDS: Final = (
    ("magic", "8s"),
    ("format_version", "I"),
    ("rules_version", "I"),
    ("term", "Q"),
    ("first_sequence", "Q"),
    ("command_count", "I"),
    ("payload_size", "I"),
    ("previous_hash", "32s"),
    ("events_crc", "I"),
    ("payload_crc", "I"),
    ("header_crc", "I"),
)
_HEADER: Final = struct.Struct("<" + "".join(code for _, code in HEADER_FIELDS))
_BODY: Final = struct.Struct("<" + "".join(code for _, code in HEADER_FIELDS[:-1]))
_CRC: Final = struct.Struct("<I")
HEADER_SIZE: Final = _HEADER.size
PAYLOAD_SIZE_MAX: Final = RECORD_SIZE_MAX - HEADER_SIZE
assert HEADER_SIZE <= SECTOR_SIZE, "a header lies in the first sector"
assert RECORD_SIZE_MAX % SECTOR_SIZE == 0, "the largest record ends on a sector"

_PADDING: Final = b"\xff" * SECTOR_SIZE
_ZERO_HALF: Final = bytes(SECTOR_SIZE // 2)

Buffer = bytes | bytearray | memoryview


class Defect(enum.StrEnum):
    """Every way in which a record can be bad, in the order in which it is checked."""

    MAGIC = "no record magic"
    HEADER_CRC = "header checksum differs"
    FORMAT_VERSION = "unknown format version"
    BOUNDS = "header field out of bounds"
    EXTENT = "record passes the end of the segment"
    SEQUENCE = "sequence does not continue"
    CHAIN = "hash of the previous record differs"
    TERM = "term decreased"
    RULES_VERSION = "rules version changed inside a segment"
    PAYLOAD_CRC = "payload checksum differs"
    PADDING = "padding is not 0xFF"


_DEFECTS: Final = tuple(Defect)
"""By their places, as chain.pyx tells them."""


class RecordError(Exception):
    """Raised by the readers of this module; callers decide what it means for the journal."""

    def __init__(self, defect: Defect) -> None:
        super().__init__(defect.value)
        self.defect = defect


class Head(NamedTuple):
    """State of the chain after a record: what the next one must continue."""

    sequence: int  # of the last command; 0 before the first
    hash: bytes
    term: int
    rules_version: int


START: Final = Head(sequence=0, hash=NO_HASH, term=0, rules_version=0)


class Header(NamedTuple):
    """The header of a record, checksum verified."""

    magic: bytes
    format_version: int
    rules_version: int
    term: int
    first_sequence: int
    command_count: int
    payload_size: int
    previous_hash: bytes
    events_crc: int
    payload_crc: int
    header_crc: int

    @property
    def record_size(self) -> int:
        """Bytes on disk, padding included."""
        return padded_size(HEADER_SIZE + self.payload_size)


class BuiltRecord(NamedTuple):
    """A record to be written: its bytes, and the chain before and after it."""

    content: bytes
    command_count: int
    previous: Head
    head: Head

    @property
    def first_sequence(self) -> int:
        return self.previous.sequence + 1


class Record(NamedTuple):
    """A record that was read and found valid. `payload` is a view of bytes that never change."""

    first_sequence: int
    command_count: int
    rules_version: int
    term: int
    events_crc: int
    payload: memoryview
    head: Head  # the chain after it
    segment_number: int
    offset: int  # in the segment
    size: int  # on disk, padding included


_KINDS: Final = (Head, Record)
"""What chain.pyx makes."""


def padded_size(size: int) -> int:
    """`size` rounded up to whole sectors."""
    return -(-size // SECTOR_SIZE) * SECTOR_SIZE


def has_blank_sector(content: bytes) -> bool:
    """Whether a sector of `content` (whole sectors) is all zero or has a single bit set.

    Such a sector has a half of zeros, so one fast search for a half rules out almost every record.
    """
    if _ZERO_HALF not in content:
        return False
    for offset in range(0, len(content), SECTOR_SIZE):
        if int.from_bytes(content[offset : offset + SECTOR_SIZE], "little").bit_count() <= 1:
            return True
    return False


def build_record(
    previous: Head, payload: Buffer, command_count: int, events_crc: int, rules_version: int
) -> BuiltRecord:
    """The record that continues `previous`, in the term of `previous`.

    `payload` holds `command_count` commands, `events_crc` is the CRC32 of their events.
    """
    assert command_count >= 1, "a record has at least one command"
    payload_size = len(payload)
    assert 1 <= payload_size <= PAYLOAD_SIZE_MAX, f"payload of {payload_size} bytes"
    body = _BODY.pack(
        MAGIC,
        FORMAT_VERSION,
        rules_version,
        previous.term,
        previous.sequence + 1,
        command_count,
        payload_size,
        previous.hash,
        events_crc,
        crc32(payload),
    )
    padding = _PADDING[: -(HEADER_SIZE + payload_size) % SECTOR_SIZE]
    content = b"".join((body, _CRC.pack(crc32(body)), payload, padding))
    assert len(content) % SECTOR_SIZE == 0, "payload items are bytes"
    assert not has_blank_sector(content), "a sector of the record is zero or has a single bit set"
    digest = blake2b(content, digest_size=HASH_SIZE).digest()
    head = Head(previous.sequence + command_count, digest, previous.term, rules_version)
    return BuiltRecord(content, command_count, previous, head)


def read_header(content: Buffer, offset: int = 0) -> Header:
    """The header at `offset`. Raises RecordError when it is invalid; does not look at the chain."""
    found = unpack_header(content, offset)
    if isinstance(found, int):
        raise RecordError(_DEFECTS[found])
    return Header._make(found)


def read_chained_header(content: Buffer, previous: Head, is_first_of_segment: bool) -> Header:
    """The header at the start of `content`, valid and chained to `previous`.

    `content` reaches to the end of the segment or of the largest record. Raises RecordError.
    """
    found = unpack_chained_header(content, previous, is_first_of_segment)
    if isinstance(found, int):
        raise RecordError(_DEFECTS[found])
    return Header._make(found)


def read_record(content: memoryview, previous: Head, segment_number: int, offset: int) -> Record:
    """The record at the start of `content`, valid and continuing `previous`.

    `content` reaches to the end of the segment or of the largest record; `segment_number` and
    `offset` say where it starts. Raises RecordError.
    """
    is_first = offset == SECTOR_SIZE
    found = unpack_record(content, previous, segment_number, offset, is_first, _KINDS)
    if isinstance(found, int):
        raise RecordError(_DEFECTS[found])
    return found
