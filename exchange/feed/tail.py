"""Follows events/ as far as it may be read, and hands every record on, in order and once.

It reads in blocks. What is in memory, as the end of a log that is being written is, is read at
once; what only the disk has is read on a thread, so that a slow disk holds nobody up. After a slice
of time the loop gets its turn. Files are found by sequence: when one is not as it must be, as for
a moment while a starting venue mends its log, the tail looks for its place again, for a while.
Whenever it looks for its place, what was read last must still be in front of it: a log that was put
back and has grown again is another one, though it has the same sequences.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

from exchange.feed.surroundings import Surroundings
from journal import (
    EventPosition,
    EventReader,
    EventRecord,
    JournalDamaged,
    Storage,
    split_records,
)
from journal.event_format import (
    RECORD_HEADER_SIZE,
    SEGMENT_HEADER_SIZE,
    RecordHeader,
    decode_record_header,
    is_segment_header,
    segment_name,
)
from journal.storage import File

__all__ = ["EventTail", "OtherLogError", "RecordSink"]

BLOCK_SIZE: Final = 256 * 1024
"""Bytes that are read at once: a quarter of a ms of checking, four if all records are the smallest.
A larger record is read by itself."""

SLICE_NS: Final = 2_000_000
"""How long records are handed on before the loop gets its turn; the last one may take longer."""

TROUBLE_MAX: Final = 50
TROUBLE_PAUSE_S: Final = 0.1
"""How often in a row, and after which pause, the log is looked at again when it is not what it
must be: a venue that starts puts a file in the place of another within a few syncs."""

RecordSink = Callable[[EventRecord], None]
"""Is given every record once, in order, on the loop's thread."""

_Result = TypeVar("_Result")


class OtherLogError(Exception):
    """What was read is not in the log; `is_certain`: other records are there in its place."""

    def __init__(self, text: str, *, is_certain: bool) -> None:
        super().__init__(text)
        self.is_certain = is_certain


class EventTail:
    """See the module. Made on the loop; `run` is its one task."""

    def __init__(
        self,
        surroundings: Surroundings,
        sink: RecordSink,
        sequence: int,
        last_header: RecordHeader | None,
    ) -> None:
        """Records are handed on from the one that begins behind `sequence`; `last_header` is that
        of the last record up to there that has events, None when none has."""
        self.until = EventPosition(sequence, 0, 0)
        """How far may be read."""
        self.position = EventPosition(sequence, 0, 0)
        """Where the record ends that was handed on last; the segment is 0 until it is found."""
        self.segments: list[int] = []
        """First sequences of the segments up to there."""
        self.generation = 0
        """Counts how often `segments` was not a continuation of what it was."""
        self._last_header = last_header
        self._clock = surroundings.clock
        self._storage = surroundings.events
        self._sink = sink
        self._log = surroundings.log
        self._loop = asyncio.get_running_loop()
        self._thread = surroundings.make_threads(1, "feed-tail")
        self._buffer = memoryview(bytearray(BLOCK_SIZE))
        self._file: File | None = None
        self._is_lost = True  # where the next record is has to be found
        self._news = asyncio.Event()
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []

    def allow(self, until: EventPosition) -> None:
        """It may be read up to here now."""
        assert until.sequence >= self.until.sequence, "the position only goes on"
        self.until = until
        self._news.set()

    def look_again(self) -> None:
        """The files may be others than before."""
        self._is_lost = True
        self._news.set()

    async def reach(self, sequence: int) -> None:
        """Wait until this one was handed on, and where it is was found."""
        if self.position.sequence < sequence or not self.position.segment:
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._waiters.append((sequence, waiter))
            await waiter

    async def run(self) -> None:
        """Hand records on for ever. Raises JournalDamaged or OSError when it stays impossible, and
        OtherLogError when the log has not what was read."""
        trouble_count = 0
        while True:
            try:
                records = await self._next_records()
            except (JournalDamaged, OSError, OtherLogError) as error:
                is_certain = isinstance(error, OtherLogError) and error.is_certain
                trouble_count += 1
                if is_certain or trouble_count > TROUBLE_MAX:
                    raise
                if trouble_count == 1:
                    self._log.error("event_log_trouble", what=str(error))
                await asyncio.sleep(TROUBLE_PAUSE_S)
                self._is_lost = True
            else:
                trouble_count = 0
                await self._hand_on(records)

    def close(self) -> None:
        """Let go of the file; `run` has been canceled or has ended."""
        file, self._file = self._file, None
        if file is not None:
            # Behind a read that may still be under way.
            self._thread.submit(file.close)
        self._thread.shutdown(wait=False)

    # Inside.

    async def _next_records(self) -> list[EventRecord]:
        """Wait for the records that come next, at least one; they follow what was handed on."""
        while True:
            self._news.clear()
            if self._is_lost:
                await self._find()
            elif self.position.sequence >= self.until.sequence:
                await self._news.wait()
            else:
                records = await self._read()
                # Of files that may be others by now nothing is taken.
                if not self._is_lost:
                    break
        if records[0].header.first_sequence != self.position.sequence + 1:
            raise self._damage(f"a record of sequence {records[0].header.first_sequence}")
        return records

    async def _find(self) -> None:
        """Find where the next record is, and which segments there are up to there."""
        self._is_lost = False
        self._close_file()
        reader = EventReader(self._storage)
        sequence = self.position.sequence
        find = partial(_find_end, reader, sequence, self._last_header)
        self.position = await self._in_thread(find)
        segments = await self._in_thread(reader.segments) if sequence else []
        segments = [first for first in segments if first <= sequence]
        if segments != self.segments:
            self.segments = segments
            self.generation += 1
        self._tell_waiters()

    async def _read(self) -> list[EventRecord]:
        """The records of a block."""
        if self._file is None:
            await self._open(self.position.segment)
        limit = self._limit()
        if self.position.offset == limit and self.position.segment < self.until.segment:
            await self._open(self.position.sequence + 1)
            limit = self._limit()
        wanted = min(limit - self.position.offset, BLOCK_SIZE)
        if wanted <= 0:
            raise self._damage("the segment ends before what was written")
        return self._read_cached(wanted, limit) or await self._read_from_disk(wanted, limit)

    def _read_cached(self, size: int, limit: int) -> list[EventRecord]:
        """Whole records that are in memory; none: not even the first one is."""
        file, offset = self._file, self.position.offset
        assert file is not None, "it was opened"
        while True:
            content = self._buffer[: file.read_cached(offset, self._buffer[:size])]
            records = self._split(content)
            needed = _size_of_record(content)
            if records or not size < needed <= limit - offset:
                return records
            # A record that is larger than a block: the next ones may be so too.
            size = needed
            if len(self._buffer) < size:
                self._buffer = memoryview(bytearray(size))

    async def _read_from_disk(self, size: int, limit: int) -> list[EventRecord]:
        """At least one record, whole: what was in memory was not enough."""
        file, offset = self._file, self.position.offset
        assert file is not None, "it was opened"
        while True:
            content = await self._in_thread(partial(file.read, offset, size))
            records = self._split(content)
            if records:
                return records
            needed = _size_of_record(content)
            if not size < needed <= limit - offset:
                raise self._damage("the segment ends before what was written")
            size = needed

    async def _hand_on(self, records: list[EventRecord]) -> None:
        monotonic_ns = self._clock.monotonic_ns
        slice_end_ns = monotonic_ns() + SLICE_NS
        for record in records:
            _, segment, offset = self.position
            sequence = record.header.last_sequence
            self.position = EventPosition(sequence, segment, offset + record.size)
            if record.events:
                self._last_header = record.header
            self._sink(record)
            if monotonic_ns() >= slice_end_ns:
                self._tell_waiters()
                await asyncio.sleep(0)
                slice_end_ns = monotonic_ns() + SLICE_NS
        self._tell_waiters()

    def _limit(self) -> int:
        """Where what may be read of the present segment ends."""
        if self.position.segment == self.until.segment:
            return self.until.offset
        assert self._file is not None, "it was opened"
        return self._file.size()

    async def _open(self, first: int) -> None:
        """Go on in this segment: the present one, or the one that begins with the next record."""
        self._close_file()
        self._file = await self._in_thread(lambda: _open_segment(self._storage, first))
        if first != self.position.segment:
            self.position = EventPosition(self.position.sequence, first, SEGMENT_HEADER_SIZE)
        if not self.segments or self.segments[-1] != first:
            self.segments.append(first)

    def _split(self, content: bytes | memoryview) -> list[EventRecord]:
        try:
            return split_records(content)[0]
        except JournalDamaged as error:
            raise self._damage(error.defect) from None

    def _damage(self, defect: str) -> JournalDamaged:
        sequence, segment, offset = self.position
        return JournalDamaged(defect, file=segment_name(segment), offset=offset, sequence=sequence)

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _tell_waiters(self) -> None:
        for sequence, waiter in self._waiters:
            if sequence <= self.position.sequence and not waiter.done():
                waiter.set_result(None)
        if self._waiters:
            self._waiters = [item for item in self._waiters if not item[1].done()]

    async def _in_thread(self, job: Callable[[], _Result]) -> _Result:
        return await self._loop.run_in_executor(self._thread, job)


def _find_end(
    reader: EventReader, sequence: int, last_header: RecordHeader | None
) -> EventPosition:
    """Where the record ends whose last sequence this is, and `last_header` that of the last record
    with events up to there. Raises OtherLogError, OSError.

    A record without events is the same in many logs; in one with events is the time of each, so
    that its checksum says whether this is the history that was read.
    """
    try:
        found = _last_header(reader, sequence, last_header)
        end = reader.end_of(sequence)
    except JournalDamaged as error:
        raise OtherLogError(str(error), is_certain=False) from error
    if found != last_header:
        raise _other(last_header.first_sequence if last_header is not None else 1)
    return end


def _last_header(
    reader: EventReader, sequence: int, last_header: RecordHeader | None
) -> RecordHeader | None:
    """Header of the last record with events up to a sequence, looked for from where it must be."""
    if not sequence:
        return None
    found = None
    first = last_header.first_sequence if last_header is not None else 1
    for header, events in reader.records(first):
        if events and header != last_header:
            raise _other(header.first_sequence)
        if events:
            found = header
        if header.last_sequence >= sequence:
            break
    return found


def _other(sequence: int) -> OtherLogError:
    text = f"the record of sequence {sequence} is not the one that was read: it is another log"
    return OtherLogError(text, is_certain=True)


def _size_of_record(content: bytes | memoryview) -> int:
    """Bytes of the record that begins so; 0: its header is not there."""
    header = decode_record_header(bytes(content[:RECORD_HEADER_SIZE]))
    return RECORD_HEADER_SIZE + header.size if header is not None else 0


def _open_segment(storage: Storage, first: int) -> File:
    """The segment that begins with this sequence. Raises JournalDamaged, OSError."""
    file = storage.open(segment_name(first))
    if not is_segment_header(file.read(0, SEGMENT_HEADER_SIZE), first):
        file.close()
        raise JournalDamaged("segment header is damaged", file=segment_name(first), offset=0)
    return file
