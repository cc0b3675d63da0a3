"""The index of a sealed segment of events/: its records, and where each stream is in it.

A stream is a session (its reports) or a channel (its market data). Per stream the index has the
first and the last number in the segment and sparse points: from a point on, the number is not far.
The index also proves the segment: its size and checksum, and that of every record. FORMAT.md, 9.3.
"""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import closing
from typing import Final, NamedTuple
from zlib import crc32

from journal.event_format import FORMAT_VERSION, segment_name
from journal.segment import BLOCK_SIZE
from journal.storage import Storage
from journal.streams import SegmentScanner, find_stream

INDEX_MAGIC: Final = b"BRIERIDX"
POINT_SPACING: Final = 64 * 1024
"""Bytes of the segment between two points of a stream: what a reader passes over at most, and a
record."""

_HEAD: Final = struct.Struct("<8sIIIQQQI")
_ROW: Final = struct.Struct("<QII")
_STREAM: Final = struct.Struct("<IIIQQ")
_POINT: Final = struct.Struct("<QI")
_CRC: Final = struct.Struct("<I")


class Row(NamedTuple):
    """A record: its first sequence, its offset in the segment, and its events_crc."""

    first_sequence: int
    offset: int
    events_crc: int


class IndexHead(NamedTuple):
    """What an index says of its segment, unproven: the checksum is over all of it."""

    first_sequence: int
    last_sequence: int
    size: int


INDEX_HEAD_SIZE: Final = _HEAD.size


class Index:
    """What is known of a sealed segment; sizes and offsets in bytes. Made by `decode_index`.

    Everything is looked up in the bytes as they are: an index may have 100,000 rows.
    """

    __slots__ = (
        "_content",
        "_stream_count",
        "_streams_offset",
        "crc",
        "first_sequence",
        "last_sequence",
        "row_count",
        "size",
    )

    first_sequence: int
    last_sequence: int
    row_count: int
    size: int
    crc: int

    def __init__(self, content: bytes) -> None:
        _, _, self.row_count, self._stream_count, *fields = _HEAD.unpack_from(content)
        self.first_sequence, self.last_sequence, self.size, self.crc = fields
        self._content = content
        self._streams_offset = _HEAD.size + self.row_count * _ROW.size

    def row(self, place: int) -> Row:
        """The record that is in this place, from 0."""
        assert 0 <= place < self.row_count, f"row {place} of {self.row_count}"
        return Row(*_ROW.unpack_from(self._content, _HEAD.size + place * _ROW.size))

    def rows(self, place: int) -> Iterator[tuple[int, ...]]:
        """The fields of the records from this place on."""
        begin = _HEAD.size + place * _ROW.size
        return _ROW.iter_unpack(memoryview(self._content)[begin : self._streams_offset])

    def find_sequence(self, sequence: int) -> int:
        """Offset of the record that has the sequence; 0: it is not in the segment."""
        if not self.first_sequence <= sequence <= self.last_sequence:
            return 0
        rows = range(self.row_count)
        place = bisect_right(rows, sequence, key=lambda row: self.row(row).first_sequence)
        return self.row(place - 1).offset

    def next_row(self, offset: int) -> int:
        """Offset of the first record at or behind this one; 0: there is none."""
        place = self.place_of(offset)
        return self.row(place).offset if place < self.row_count else 0

    def place_of(self, offset: int) -> int:
        """Place of the first record at or behind this offset; their count: there is none."""
        rows = range(self.row_count)
        return bisect_left(rows, offset, key=lambda row: self.row(row).offset)

    def last_number(self, kind: int, stream_id: int) -> int:
        """The last number of a stream; 0: nothing of it is in the segment."""
        place = self._find_stream(kind, stream_id)
        last_number: int = _STREAM.unpack_from(self._content, place)[4] if place else 0
        return last_number

    def find(self, kind: int, stream_id: int, number: int) -> int:
        """Offset of a record near before the one that has the number, or of that itself; 0: the
        stream does not reach the number in the segment."""
        place = self._find_stream(kind, stream_id)
        if not place:
            return 0
        _, _, point_count, _, last_number = _STREAM.unpack_from(self._content, place)
        if last_number < number:
            return 0
        first = place + _STREAM.size

        def point(at: int) -> tuple[int, int]:
            found: tuple[int, int] = _POINT.unpack_from(self._content, first + at * _POINT.size)
            return found

        behind = bisect_right(range(point_count), number, key=lambda at: point(at)[0])
        return point(max(behind - 1, 0))[1]

    def _find_stream(self, kind: int, stream_id: int) -> int:
        count, offset = self._stream_count, self._streams_offset
        return find_stream(self._content, count, offset, kind, stream_id)


def decode_index_head(content: bytes) -> IndexHead | None:
    """What the first INDEX_HEAD_SIZE bytes of an index say, None when they are not those of one."""
    if len(content) < INDEX_HEAD_SIZE:
        return None
    magic, version, _, _, first_sequence, last_sequence, size, _ = _HEAD.unpack_from(content)
    if magic != INDEX_MAGIC or version != FORMAT_VERSION:
        return None
    return IndexHead(first_sequence, last_sequence, size)


def decode_index(content: bytes) -> Index | None:
    """The index in these bytes, None when they are not one."""
    if len(content) < _HEAD.size + _CRC.size:
        return None
    magic, version, *_ = _HEAD.unpack_from(content)
    if magic != INDEX_MAGIC or version != FORMAT_VERSION:
        return None
    if _CRC.pack(crc32(memoryview(content)[: -_CRC.size])) != content[-_CRC.size :]:
        return None
    # The checksum holds: what is there was written by `build_index`.
    return Index(content)


def build_index(storage: Storage, first_sequence: int) -> bytes:
    """The index of a full segment. ValueError when it holds anything but whole records."""
    scanner = SegmentScanner(POINT_SPACING)
    size = crc = 0
    with closing(storage.open(segment_name(first_sequence))) as file:
        # Large blocks: summing and walking them leave the interpreter to the loop meanwhile.
        while block := file.read(size, BLOCK_SIZE):
            crc = crc32(block, crc)
            scanner.feed(block)
            size += len(block)
    if not scanner.is_whole:
        raise ValueError(f"{segment_name(first_sequence)} ends inside a record")
    head = _HEAD.pack(
        INDEX_MAGIC,
        FORMAT_VERSION,
        scanner.row_count,
        scanner.stream_count,
        first_sequence,
        scanner.last_sequence,
        size,
        crc,
    )
    streams = (content for _, _, content in sorted(scanner.streams()))
    content = b"".join((head, scanner.rows(), *streams))
    return content + _CRC.pack(crc32(content))
