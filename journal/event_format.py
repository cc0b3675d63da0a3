"""The bytes of events/: segment header, record header, and the heads of the entries in a record.

FORMAT.md, section 9. Everything here is a pure function of the records of commands/ and the segment
size, so that a log that is built again is the same log. The journal does not know messages: of an
entry it reads the head only, whose layout is restated here.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple
from zlib import crc32

from journal.streams import payloads_crc

FORMAT_VERSION: Final = 1
EVENT_SEGMENT_SIZE: Final = 16 * 1024 * 1024
"""Bytes of a segment. A full one is synced in one go, on the journal's disk: with 64 MiB the
slowest thousandth of all orders waited 22 ms for that, with 16 MiB 8 ms, as without any sync."""
EVENT_SEGMENT_SIZE_MIN: Final = 256
EVENT_SEGMENT_SIZE_MAX: Final = 1024 * 1024 * 1024
BODY_SIZE_MAX: Final = 16 * 1024 * 1024
"""Events of one record: several times the core's buffer, and bounds what a reader believes."""

SEGMENT_MAGIC: Final = b"BRIEREVT"
RECORD_MAGIC: Final = b"BREV"

_SEGMENT: Final = struct.Struct("<8sIIQQ28xI")
_SEGMENT_BODY: Final = struct.Struct("<8sIIQQ28x")
SEGMENT_HEADER_SIZE: Final = _SEGMENT.size
assert SEGMENT_HEADER_SIZE == 64, "FORMAT.md says 64"

_RECORD: Final = struct.Struct("<4sIQIIII")
_RECORD_BODY: Final = struct.Struct("<4sIQIII")
RECORD_HEADER_SIZE: Final = _RECORD.size
assert RECORD_HEADER_SIZE == 32, "FORMAT.md says 32"

ENTRY_HEAD: Final = struct.Struct("<IBBHIIQQQ")
"""length (head included), kind, flags, channel, session, connection, number, sequence, time."""
REPORT: Final = 1
MARKET_DATA: Final = 3
REFERENCE: Final = 4
"""Who is who: one stream of the venue, with id 0."""

SEGMENT_SUFFIX: Final = ".events"
INDEX_SUFFIX: Final = ".index"
_NAME: Final = re.compile(r"([0-9]{20})(\.events|\.index)", re.ASCII)


class RecordHeader(NamedTuple):
    """What stands before the events of one record."""

    rules_version: int
    first_sequence: int
    command_count: int
    size: int
    """Bytes of the events that follow."""
    events_crc: int
    """As in the record of commands/: over the payloads of the events, without their heads."""

    @property
    def last_sequence(self) -> int:
        return self.first_sequence + self.command_count - 1


class Entry(NamedTuple):
    """One event."""

    kind: int
    channel: int
    session: int
    connection: int
    number: int
    sequence: int
    time_ns: int
    payload: bytes

    def encode(self) -> bytes:
        """The bytes that it was read from."""
        kind, channel, *fields, payload = self
        return ENTRY_HEAD.pack(ENTRY_HEAD.size + len(payload), kind, 0, channel, *fields) + payload


def segment_name(first_sequence: int) -> str:
    return f"{first_sequence:020}{SEGMENT_SUFFIX}"


def index_name(first_sequence: int) -> str:
    return f"{first_sequence:020}{INDEX_SUFFIX}"


def parse_name(name: str) -> tuple[int, str] | None:
    """First sequence and suffix in the name of a file of ours, None for any other."""
    match = _NAME.fullmatch(name)
    return (int(match[1]), match[2]) if match else None


def check_segment_size(size: int) -> None:
    is_valid = EVENT_SEGMENT_SIZE_MIN <= size <= EVENT_SEGMENT_SIZE_MAX
    assert is_valid, f"event segment size {size} is out of range"


def has_room(end: int, size: int, segment_size: int) -> bool:
    """Whether a segment of which `end` bytes are used takes a record with `size` bytes of events;
    the first record always fits."""
    return end == SEGMENT_HEADER_SIZE or end + RECORD_HEADER_SIZE + size <= segment_size


def encode_segment_header(first_sequence: int, segment_size: int) -> bytes:
    body = _SEGMENT_BODY.pack(SEGMENT_MAGIC, FORMAT_VERSION, 0, segment_size, first_sequence)
    return body + struct.pack("<I", crc32(body))


def is_segment_header(content: bytes, first_sequence: int) -> bool:
    """Whether a file that begins so is the segment of this sequence, of whatever size."""
    if len(content) < SEGMENT_HEADER_SIZE:
        return False
    segment_size: int = _SEGMENT.unpack_from(content)[3]
    return content[:SEGMENT_HEADER_SIZE] == encode_segment_header(first_sequence, segment_size)


def encode_record_header(header: RecordHeader) -> bytes:
    body = _RECORD_BODY.pack(RECORD_MAGIC, *header)
    return body + struct.pack("<I", crc32(body))


def decode_record_header(content: bytes) -> RecordHeader | None:
    """The header that these bytes begin with; None when they do not begin with one."""
    if len(content) < RECORD_HEADER_SIZE:
        return None
    magic, *fields, _ = _RECORD.unpack_from(content)
    header = RecordHeader(*fields)
    if magic != RECORD_MAGIC or encode_record_header(header) != content[:RECORD_HEADER_SIZE]:
        return None
    if header.command_count < 1 or header.size > BODY_SIZE_MAX:
        return None
    return header


def entries(events: bytes) -> Iterator[Entry]:
    """The events of a record in order. Raises ValueError when the bytes are not a run of them."""
    offset = 0
    while offset < len(events):
        if len(events) - offset < ENTRY_HEAD.size:
            raise ValueError(f"an event ends inside its head, at offset {offset}")
        length, kind, _, channel, session, connection, number, sequence, time_ns = (
            ENTRY_HEAD.unpack_from(events, offset)
        )
        if not ENTRY_HEAD.size <= length <= len(events) - offset:
            raise ValueError(f"an event has {length} bytes, at offset {offset}")
        payload = events[offset + ENTRY_HEAD.size : offset + length]
        yield Entry(kind, channel, session, connection, number, sequence, time_ns, payload)
        offset += length


def is_whole(events: bytes, header: RecordHeader) -> bool:
    """Whether these are all the events that the header means."""
    try:
        return len(events) == header.size and payloads_crc(events) == header.events_crc
    except ValueError:
        return False
