"""The index of a sealed segment of events/: its records, and where each stream is in it.

A stream is a session (its reports) or a channel (its market data). Per stream the index has the
first and the last number in the segment and sparse points: from a point on, the number is not far.
The index also proves the segment: its size and checksum, and that of every record. FORMAT.md, 9.3.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import closing
from typing import Final, NamedTuple
from zlib import crc32

from journal.event_format import FORMAT_VERSION, segment_name
from journal.segment import BLOCK_SIZE
from journal.storage import Storage
from journal.streams import SegmentScanner

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


class Stream(NamedTuple):
    """One session or channel; `points` are (number, offset of the record that has it)."""

    kind: int
    id: int
    first_number: int
    last_number: int
    points: Sequence[tuple[int, int]]

    def offset_of(self, number: int) -> int:
        """Offset of a record at or before the one that has the number."""
        place = bisect_right(self.points, (number, 2**32)) - 1
        return self.points[max(place, 0)][1]


class Index(NamedTuple):
    """What is known of a sealed segment. Sizes and offsets in bytes."""

    first_sequence: int
    last_sequence: int
    size: int
    crc: int
    rows: Sequence[Row]
    streams: Sequence[Stream]

    def stream(self, kind: int, stream_id: int) -> Stream | None:
        """The stream, if anything of it is in the segment."""
        for stream in self.streams:
            if (stream.kind, stream.id) == (kind, stream_id):
                return stream
        return None


def decode_index(content: bytes) -> Index | None:
    """The index in these bytes, None when they are not one."""
    if len(content) < _HEAD.size + _CRC.size:
        return None
    body = content[: -_CRC.size]
    magic, version, row_count, stream_count, first, last, size, crc = _HEAD.unpack_from(body)
    if magic != INDEX_MAGIC or version != FORMAT_VERSION:
        return None
    if _CRC.pack(crc32(body)) != content[-_CRC.size :]:
        return None
    # The checksum holds: what follows was written by `build_index`.
    offset = _HEAD.size + row_count * _ROW.size
    rows = [Row(*fields) for fields in _ROW.iter_unpack(body[_HEAD.size : offset])]
    streams = []
    for _ in range(stream_count):
        kind, stream_id, point_count, first_number, last_number = _STREAM.unpack_from(body, offset)
        offset += _STREAM.size
        end = offset + point_count * _POINT.size
        points = list(_POINT.iter_unpack(body[offset:end]))
        streams.append(Stream(kind, stream_id, first_number, last_number, points))
        offset = end
    assert offset == len(body), "an index with a good checksum is whole"
    return Index(first, last, size, crc, rows, streams)


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
