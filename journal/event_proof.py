"""What the files of events/ prove: which segments may be trusted unread, and how far they go.

Reads only. A full segment is proven by its index, an open one record by record; a snapshot proves
the beginning of one by a checksum. FORMAT.md, sections 9.4 and 10.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import pairwise
from typing import Final
from zlib import crc32

from journal.errors import JournalFailed
from journal.event_format import (
    RECORD_HEADER_SIZE,
    SEGMENT_HEADER_SIZE,
    SEGMENT_SUFFIX,
    RecordHeader,
    decode_record_header,
    encode_segment_header,
    index_name,
    is_segment_header,
    is_whole,
    parse_name,
    segment_name,
)
from journal.event_index import INDEX_HEAD_SIZE, Index, decode_index, decode_index_head
from journal.segment import BLOCK_SIZE
from journal.snapshot import SnapshotHead
from journal.storage import File, Storage

WHOLE_INDEXES: Final = 64
"""Segments right before a snapshot whose indexes are read whole, a millisecond each where records
are small: a gigabyte of events. Of the thousands that may be before only the heads are read, so
that a start takes no longer from year to year; whoever uses such an index checks it then."""


WALKS_MAX: Final = 8
"""Segments without a good index that are read whole in its place, some tenths of a second each."""


def events_reach(storage: Storage, head: SnapshotHead, *, since: int = 1) -> bool:
    """Whether events/ have everything up to a snapshot, without a gap: the segments before by their
    indexes, its own by the checksum. Segments before `since`, the first sequence of one, were
    proven earlier and are not looked at. Raises JournalFailed.

    Where the venue has not indexed a full segment yet, they do not; a moment later they do.
    """
    return find_unindexed(storage, head, may_lack=False, since=since) is not None


def find_unindexed(
    storage: Storage, head: SnapshotHead, *, may_lack: bool = True, since: int = 1
) -> list[int] | None:
    """First sequences of the segments before a snapshot whose index is damaged or, if that may be,
    missing, and whose records were all found to be good; None: events/ do not reach the snapshot.
    Raises JournalFailed."""
    try:
        return _find_unindexed(storage, head, may_lack, since)
    except OSError as error:
        raise JournalFailed("look at events/", error) from error


def _find_unindexed(
    storage: Storage, head: SnapshotHead, may_lack: bool, since: int
) -> list[int] | None:
    names = set(storage.names())
    firsts = [*_segments_before(names, head.events_segment), head.events_segment]
    unindexed: list[int] = []
    if firsts[0] != 1 or segment_name(firsts[-1]) not in names:
        return None
    for place, (first, following) in enumerate(pairwise(firsts), 1):
        is_near = len(firsts) - place <= WHOLE_INDEXES
        look = _last_by_index if is_near else _last_by_head
        is_proven = first < since
        if is_proven or look(storage, first, head.events_segment_size) == following - 1:
            continue
        is_allowed = may_lack or index_name(first) in names
        if not is_allowed or len(unindexed) == WALKS_MAX:
            return None
        if _last_by_records(storage, first, head.events_segment_size) != following - 1:
            return None
        unindexed.append(first)
    return unindexed if _is_own(storage, head) else None


def _is_own(storage: Storage, head: SnapshotHead) -> bool:
    """Whether the segment with the snapshot's events has its checksum."""
    with closing(storage.open(segment_name(head.events_segment))) as file:
        header = encode_segment_header(head.events_segment, head.events_segment_size)
        if file.read(0, SEGMENT_HEADER_SIZE) != header:
            return False
        return _crc_to(file, head.events_offset) == head.events_crc


def _segments_before(names: Iterable[str], limit: int) -> list[int]:
    """First sequences of the segments before this one, in order."""
    parsed = [parse_name(name) for name in names]
    found = [part[0] for part in parsed if part is not None and part[1] == SEGMENT_SUFFIX]
    return sorted(first for first in found if first < limit)


def _last_by_index(storage: Storage, first_sequence: int, segment_size: int) -> int:
    """Last sequence of a full segment whose index is whole; 0: it has none."""
    index = read_trusted(storage, first_sequence, segment_size)
    return index.last_sequence if index is not None else 0


def _last_by_head(storage: Storage, first_sequence: int, segment_size: int) -> int:
    """The same of one whose index says so in its head."""
    size = _size_of(storage, first_sequence, segment_size)
    try:
        file = storage.open(index_name(first_sequence))
    except FileNotFoundError:
        return 0
    with closing(file):
        found = decode_index_head(file.read(0, INDEX_HEAD_SIZE))
    is_its = found is not None and (found.first_sequence, found.size) == (first_sequence, size)
    return found.last_sequence if found is not None and is_its else 0


def _last_by_records(storage: Storage, first_sequence: int, segment_size: int) -> int:
    """The same of one that has good records to its end, and nothing else."""
    size = _size_of(storage, first_sequence, segment_size)
    end, last_sequence = SEGMENT_HEADER_SIZE, 0
    for header, _ in good_records(storage, first_sequence):
        end += RECORD_HEADER_SIZE + header.size
        last_sequence = header.last_sequence
    return last_sequence if end == size else 0


def _size_of(storage: Storage, first_sequence: int, segment_size: int) -> int:
    """Bytes of a segment; -1 when it has another header."""
    with closing(storage.open(segment_name(first_sequence))) as file:
        header = encode_segment_header(first_sequence, segment_size)
        return file.size() if file.read(0, SEGMENT_HEADER_SIZE) == header else -1


def _crc_to(file: File, end: int) -> int:
    """CRC32 of the file up to `end`, or as far as it goes."""
    crc = offset = 0
    while offset < end and (block := file.read(offset, min(BLOCK_SIZE, end - offset))):
        crc = crc32(block, crc)
        offset += len(block)
    return crc if offset == end else -1


def read_trusted(storage: Storage, first_sequence: int, segment_size: int) -> Index | None:
    """The index of a full segment; None when it has none or the segment is another."""
    size = _size_of(storage, first_sequence, segment_size)
    return read_index(storage, first_sequence, size) if size >= 0 else None


def read_index(storage: Storage, first_sequence: int, size: int) -> Index | None:
    """The index of a segment of this size; None when it is missing or is that of other bytes."""
    try:
        file = storage.open(index_name(first_sequence))
    except FileNotFoundError:
        return None
    with closing(file):
        index = decode_index(file.read(0, file.size()))
    is_its = index is not None and (index.first_sequence, index.size) == (first_sequence, size)
    return index if is_its else None


def good_records(storage: Storage, first_sequence: int) -> Iterator[tuple[RecordHeader, bytes]]:
    """The records that a segment begins with, as far as they are good and follow each other."""
    with closing(storage.open(segment_name(first_sequence))) as file:
        if not is_segment_header(file.read(0, SEGMENT_HEADER_SIZE), first_sequence):
            return
        offset, sequence = SEGMENT_HEADER_SIZE, first_sequence
        while (header := decode_record_header(file.read(offset, RECORD_HEADER_SIZE))) is not None:
            events = file.read(offset + RECORD_HEADER_SIZE, header.size)
            if header.first_sequence != sequence or not is_whole(events, header):
                return
            yield header, events
            sequence = header.last_sequence + 1
            offset += RECORD_HEADER_SIZE + header.size


def last_valid(
    storage: Storage, first_sequence: int, offset: int = SEGMENT_HEADER_SIZE, sequence: int = 0
) -> int:
    """Last sequence that the beginning of a segment proves to have been durable, 0 for none.

    Records count whose headers are good and follow each other, up to the last whose events are
    whole; a good segment header proves the record before it. What is before `offset`, where
    `sequence` is the last one, is known to be good.
    """
    sequence = sequence or first_sequence - 1
    with closing(storage.open(segment_name(first_sequence))) as file:
        if not is_segment_header(file.read(0, SEGMENT_HEADER_SIZE), first_sequence):
            return 0
        index = read_index(storage, first_sequence, file.size())
        if index is not None:
            return index.last_sequence
        found: list[tuple[int, RecordHeader]] = []
        expected = sequence + 1
        while True:
            header = decode_record_header(file.read(offset, RECORD_HEADER_SIZE))
            if header is None or header.first_sequence != expected:
                break
            found.append((offset, header))
            expected = header.last_sequence + 1
            offset += RECORD_HEADER_SIZE + header.size
        while found:
            offset, header = found.pop()
            if is_whole(file.read(offset + RECORD_HEADER_SIZE, header.size), header):
                return header.last_sequence
    return sequence
