"""Reads events/ from anywhere: by sequence, by a session's or a channel's numbers.

A reader gets the position up to which it may read from the venue (`journal.position`); without one
it reads a log that nobody writes to, up to its last good record. Sealed segments are searched by
their index, the open one from its beginning. Nothing is changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Final, NamedTuple

from journal.errors import JournalDamaged
from journal.event_format import (
    INDEX_SUFFIX,
    MARKET_DATA,
    RECORD_HEADER_SIZE,
    REPORT,
    SEGMENT_HEADER_SIZE,
    SEGMENT_SUFFIX,
    Entry,
    RecordHeader,
    decode_record_header,
    encode_record_header,
    entries,
    index_name,
    is_segment_header,
    is_whole,
    parse_name,
    segment_name,
)
from journal.event_index import POINT_SPACING, Index, build_index, decode_index
from journal.events import EventPosition
from journal.reader import read_only
from journal.segment import BLOCK_SIZE
from journal.storage import File, Storage
from journal.streams import SegmentScanner
from journal.streams import private_events as walk_private_events

__all__ = [
    "EventReader",
    "EventRecord",
    "PrivateEvent",
    "check_events",
    "private_events",
    "split_records",
]

_TO_THE_END: Final = EventPosition(2**62, 2**62, 0)


class EventRecord(NamedTuple):
    """What one batch caused: events as they left the core, heads of 40 bytes and payloads."""

    header: RecordHeader
    events: bytes

    @property
    def content(self) -> bytes:
        """The bytes of the record as they are in its segment."""
        return encode_record_header(self.header) + self.events

    @property
    def size(self) -> int:
        """Bytes of it in its segment."""
        return RECORD_HEADER_SIZE + self.header.size


class PrivateEvent(NamedTuple):
    """A report of a session, or a record of who is who (kind REFERENCE, session 0).

    `event_index` counts the private events of one command from 0, over the whole venue.
    """

    sequence: int
    event_index: int
    time_ns: int
    kind: int
    session: int
    number: int
    payload: bytes


def private_events(events: bytes) -> list[PrivateEvent]:
    """The private events of a record in order. Raises ValueError when it is not a run of events."""
    return walk_private_events(events, PrivateEvent._make)


def split_records(content: bytes | memoryview) -> tuple[list[EventRecord], int]:
    """The whole and good records that the bytes begin with, one behind another, and the bytes that
    they take. What follows is the beginning of the next one, or damage: raises JournalDamaged when
    it is the first record that is not what was written; none when it is not all there."""
    view = memoryview(content)
    records: list[EventRecord] = []
    offset = 0
    while True:
        try:
            record = _first_record(view[offset:])
        except JournalDamaged:
            if not records:
                raise
            break
        if record is None or (records and not _follows(record, records[-1])):
            break
        records.append(record)
        offset += record.size
    return records, offset


def _first_record(content: memoryview) -> EventRecord | None:
    """The record that the bytes begin with; None when not all of it is there."""
    if len(content) < RECORD_HEADER_SIZE:
        return None
    header = decode_record_header(bytes(content[:RECORD_HEADER_SIZE]))
    if header is None:
        raise JournalDamaged("not the record that was written")
    end = RECORD_HEADER_SIZE + header.size
    if len(content) < end:
        return None
    events = bytes(content[RECORD_HEADER_SIZE:end])
    if not is_whole(events, header):
        raise JournalDamaged("not the record that was written")
    return EventRecord(header, events)


def _follows(record: EventRecord, previous: EventRecord) -> bool:
    return record.header.first_sequence == previous.header.last_sequence + 1


class EventReader:
    """See the module. `until` bounds what is read; it may be moved on with `allow`."""

    def __init__(self, storage: Storage, until: EventPosition | None = None) -> None:
        self._storage = storage
        self._until = until or _TO_THE_END
        self._is_bounded = until is not None

    def allow(self, until: EventPosition) -> None:
        """The venue says that it may be read up to here."""
        assert until.sequence >= self._until.sequence or not self._is_bounded, "it only goes on"
        self._until = until
        self._is_bounded = True

    def records(self, from_sequence: int = 1) -> Iterator[EventRecord]:
        """Records in order, from the one that has this sequence on. Raises JournalDamaged when one
        is missing or is not what was written, JournalDamaged too when `from_sequence` is older
        than the log."""
        firsts = self.segments()
        begin = max((first for first in firsts if first <= from_sequence), default=0)
        if firsts and not begin:
            raise JournalDamaged(f"events/ begins at {firsts[0]}", sequence=from_sequence - 1)
        expected = begin
        for first in firsts:
            if first < begin:
                continue
            if first != expected:
                raise JournalDamaged("a segment of events/ is missing", file=segment_name(expected))
            for record in self._segment(first, self._offset_of(first, from_sequence)):
                expected = record.header.last_sequence + 1
                if record.header.last_sequence >= from_sequence:
                    yield record

    def end_of(self, sequence: int) -> EventPosition:
        """Where the record ends whose last sequence this is; for 0 where the first one begins.
        Raises JournalDamaged when there is none."""
        if sequence == 0:
            return EventPosition(0, 1, SEGMENT_HEADER_SIZE)
        first = max((first for first in self.segments() if first <= sequence), default=0)
        missing = f"no record of events/ ends at sequence {sequence}"
        if not first:
            raise JournalDamaged(missing)
        index = self._index(first)
        offset = index.find_sequence(sequence) if index else self._scan(first, sequence)
        with closing(self._storage.open(segment_name(first))) as file:
            record = _read(file, offset) if offset else None
        if record is None or record.header.last_sequence != sequence:
            raise JournalDamaged(missing, file=segment_name(first))
        return EventPosition(sequence, first, offset + record.size)

    def _scan(self, first: int, sequence: int) -> int:
        """Offset of the record that has the sequence in a segment without an index; 0: none has."""
        scanner = SegmentScanner(POINT_SPACING)
        with closing(self._storage.open(segment_name(first))) as file, suppress(ValueError):
            # It may end in half a record, or in what a crash has left.
            while block := file.read(scanner.size, BLOCK_SIZE):
                scanner.feed(block)
        return scanner.find_sequence(sequence)

    def session(self, session: int, from_number: int = 1) -> Iterator[Entry]:
        """Reports of a session from this number on, in order."""
        return self._stream(REPORT, session, from_number)

    def channel(self, channel: int, from_number: int = 1) -> Iterator[Entry]:
        """Market data of a channel from this number on, in order."""
        return self._stream(MARKET_DATA, channel, from_number)

    def _stream(self, kind: int, stream_id: int, from_number: int) -> Iterator[Entry]:
        """Raises JournalDamaged when a number is missing in between, or the first is too old."""
        expected = from_number
        for first in self.segments():
            index = self._index(first)
            offset = SEGMENT_HEADER_SIZE
            if index is not None:
                offset = index.find(kind, stream_id, from_number)
                if not offset:
                    continue
            for record in self._segment(first, offset):
                for entry in entries(record.events):
                    owner = entry.session if kind == REPORT else entry.channel
                    is_its = entry.kind == kind and owner == stream_id
                    if not is_its or entry.number < from_number:
                        continue
                    if entry.number != expected:
                        name = "session" if kind == REPORT else "channel"
                        raise JournalDamaged(
                            f"number {expected} of {name} {stream_id} is missing",
                            file=segment_name(first),
                        )
                    yield entry
                    expected += 1

    def segments(self) -> list[int]:
        """First sequences of the segments that may be read, in order."""
        found = []
        for name in self._storage.names():
            parsed = parse_name(name)
            if parsed is not None and parsed[1] == SEGMENT_SUFFIX:
                found.append(parsed[0])
        until = self._until
        if self._is_bounded and until.offset and until.segment not in found:
            raise JournalDamaged(
                "a segment of events/ is missing", file=segment_name(until.segment)
            )
        return [first for first in sorted(found) if first <= until.segment]

    def _index(self, first: int) -> Index | None:
        try:
            file = self._storage.open(index_name(first))
        except FileNotFoundError:
            return None
        with closing(file):
            return decode_index(file.read(0, file.size()))

    def _offset_of(self, first: int, sequence: int) -> int:
        """Where to begin in a segment, to find the record that has the sequence."""
        if sequence <= first:
            return SEGMENT_HEADER_SIZE
        index = self._index(first)
        offset = index.find_sequence(sequence) if index else self._scan(first, sequence)
        return offset or SEGMENT_HEADER_SIZE

    def _segment(self, first: int, offset: int) -> Iterator[EventRecord]:
        """The records of one segment from an offset on."""
        name = segment_name(first)
        is_open = not self._is_bounded and first == self.segments()[-1]
        with closing(self._storage.open(name)) as file:
            is_last = self._is_bounded and first == self._until.segment
            end = self._until.offset if is_last else file.size()
            is_begun = is_segment_header(file.read(0, SEGMENT_HEADER_SIZE), first)
            if not is_begun and end and not is_open:
                raise JournalDamaged("segment header is damaged", file=name, offset=0)
            while is_begun and offset < end:
                record = _read(file, offset)
                if record is None and is_open:
                    return  # The end of an open segment, as a crash has left it.
                if record is None:
                    raise JournalDamaged(
                        "not the record that was written", file=name, offset=offset
                    )
                yield record
                offset += RECORD_HEADER_SIZE + record.header.size


def _read(file: File, offset: int) -> EventRecord | None:
    """The record at an offset, None when there is no good one."""
    header = decode_record_header(file.read(offset, RECORD_HEADER_SIZE))
    if header is None:
        return None
    events = file.read(offset + RECORD_HEADER_SIZE, header.size)
    return EventRecord(header, events) if is_whole(events, header) else None


def check_events(commands: Storage, events: Storage, *, is_partial: bool = False) -> int:
    """Compare every record of events/ with that of commands/, and every index with its segment.

    Partial: only records of segments that were not archived. Returns the last sequence that
    events/ reaches. Raises JournalDamaged.
    """
    reader = EventReader(events)
    journal = read_only(commands, is_partial=is_partial)
    found = reader.records(journal.first_sequence)
    sequence = 0
    for record in journal.records():
        event = next(found, None)
        if event is None:
            break
        header = event.header
        said = (header.first_sequence, header.command_count, header.rules_version)
        meant = (record.first_sequence, record.command_count, record.rules_version)
        if said != meant or header.events_crc != record.events_crc:
            raise JournalDamaged("events/ has not what the journal caused", sequence=sequence)
        sequence = header.last_sequence
    if next(found, None) is not None:
        raise JournalDamaged("events/ goes on behind the journal", sequence=sequence)
    for name in events.names():
        parsed = parse_name(name)
        if parsed is not None and parsed[1] == INDEX_SUFFIX:
            with closing(events.open(name)) as file:
                content = file.read(0, file.size())
            has_segment = segment_name(parsed[0]) in events.names()
            if not has_segment or content != _index_of(events, parsed[0]):
                raise JournalDamaged("the index is not that of its segment", file=name)
    return sequence


def _index_of(storage: Storage, first: int) -> bytes:
    """The index that the segment ought to have; nothing when it is no log of events."""
    try:
        return build_index(storage, first)
    except ValueError:
        return b""
