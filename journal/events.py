"""events/: what the commands caused, for readers in other processes; derived, and built again.

A start hands every record of commands/ to `check`, in order, with the events that the replay gave.
What is there is compared; what is missing, cut or different is written *aside*, segment by segment,
so that no file changes before `start` knows that the journal does not end below this log. Then the
log takes one record after each durable batch, by one write that is not synced. A full segment is
synced and indexed by a job that never runs on the caller's thread. FORMAT.md, section 9.

All of it belongs to one thread; only the sealing job runs elsewhere, on files that are full.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import closing, suppress
from threading import Lock
from typing import Final, NamedTuple

from journal.errors import JournalDamaged, JournalFailed
from journal.event_format import (
    EVENT_SEGMENT_SIZE,
    INDEX_SUFFIX,
    RECORD_HEADER_SIZE,
    SEGMENT_HEADER_SIZE,
    SEGMENT_SUFFIX,
    RecordHeader,
    check_segment_size,
    encode_record_header,
    encode_segment_header,
    has_room,
    index_name,
    parse_name,
    segment_name,
)
from journal.event_index import build_index
from journal.event_proof import (
    find_unindexed,
    good_records,
    last_valid,
    read_index,
    read_trusted,
)
from journal.prepare import Execute, Join, Latch, run_in_thread
from journal.segment import BLOCK_SIZE
from journal.snapshot import SnapshotHead
from journal.storage import TEMPORARY_SUFFIX, File, Storage, write_durably

__all__ = ["EventLog", "EventPosition"]

SEAL_BACKLOG_MAX: Final = 4
"""Full segments that wait for their index; a disk that is further behind makes the venue wait."""


class EventPosition(NamedTuple):
    """How far events/ may be read: the last sequence, the first sequence in the name of its
    segment, and where its record ends there."""

    sequence: int
    segment: int
    offset: int


class EventLog:
    """See the module. Made by `open`; after a failure everything but `close` raises it."""

    def __init__(self, storage: Storage, segment_size: int, execute: Execute) -> None:
        check_segment_size(segment_size)
        self._storage = storage
        self._segment_size = segment_size
        self._latch = Latch()
        self._sealer = _Sealer(storage, self._latch, execute)
        self._known: dict[int, set[str]] = {}  # first sequence to the suffixes that are there
        self._leftovers: list[str] = []
        self._checked: _CheckedSegment | None = None
        self._passed: list[_CheckedSegment] = []
        self._trusted: set[int] = set()  # segments that stay without having been checked
        self._unindexed: list[int] = []  # those of them that have no good index
        self._is_started = False
        self._file: File | None = None
        self._position = EventPosition(0, 1, 0)

    @classmethod
    def open(
        cls,
        storage: Storage,
        *,
        segment_size: int = EVENT_SEGMENT_SIZE,
        execute: Execute = run_in_thread,
    ) -> EventLog:
        """Look at the folder, and make sure that what is read of it from now on is on the disk:
        where a sync has failed, the cache may have pages that the disk has not and never gets.
        Changes no file; raises JournalFailed.

        `segment_size` in bytes; with another one than before, everything is written again.
        """
        log = cls(storage, segment_size, execute)
        with log._latch.guard("look at events/"):
            for name in storage.names():
                parsed = parse_name(name)
                if parsed is not None:
                    log._known.setdefault(parsed[0], set()).add(parsed[1])
                elif name.endswith(
                    (SEGMENT_SUFFIX + TEMPORARY_SUFFIX, INDEX_SUFFIX + TEMPORARY_SUFFIX)
                ):
                    log._leftovers.append(name)
            for first, suffixes in sorted(log._known.items()):
                if suffixes == {SEGMENT_SUFFIX}:  # An index is made of what is on the disk.
                    with closing(storage.open(segment_name(first))) as file:
                        file.settle()
        return log

    def begin_behind(self, base: SnapshotHead) -> bool:
        """Check records behind this snapshot only. False, and nothing has changed: the log does not
        reach it. Raises JournalFailed.

        A segment before it that lacks its index gets one at the start.
        """
        if base.events_segment_size != self._segment_size:
            return False
        unindexed = find_unindexed(self._storage, base)
        if unindexed is None:
            return False
        first, end = base.events_segment, base.events_offset
        self._unindexed = unindexed
        self._trusted = {
            other
            for other, suffixes in self._known.items()
            if other < first and SEGMENT_SUFFIX in suffixes
        }
        with self._latch.guard("look at events/"):
            self._checked = self._look_into(first, end)
        self._position = EventPosition(base.sequence, first, end)
        return True

    @property
    def position(self) -> EventPosition:
        """Of the last record; one reference, readable anywhere."""
        return self._position

    def check_failure(self) -> None:
        """Raise the latched JournalFailed, if there is one: that of the sealing shows nowhere else
        while nobody appends."""
        self._latch.check()

    # Start.

    def check(
        self,
        first_sequence: int,
        command_count: int,
        rules_version: int,
        events: bytes,
        events_crc: int,
    ) -> None:
        """Compare the next record, from sequence 1 on or the first behind the base, with what is
        there. Raises JournalFailed."""
        assert not self._is_started, "records are checked before the start"
        assert first_sequence == self._position.sequence + 1, "records are checked in order"
        checked, size = self._checked, len(events)
        # Once for every record of the journal: no context manager, which costs as much as the rest,
        # and no header where an index has the record.
        self._latch.check()
        try:
            if checked is None or not has_room(checked.end, size, self._segment_size):
                checked = self._enter(first_sequence)
            if not checked.pass_indexed(first_sequence, size, events_crc):
                header = RecordHeader(
                    rules_version, first_sequence, command_count, size, events_crc
                )
                checked.take(header, events)
        except OSError as error:
            raise self._latch.fail("check events/", error) from error
        last_sequence = first_sequence + command_count - 1
        self._position = EventPosition(last_sequence, checked.first_sequence, checked.end)

    def start(self, head_sequence: int) -> None:
        """Take records from now on, after the one that ends at `head_sequence`.

        Raises JournalDamaged, and has changed no file, when the log goes on behind it;
        JournalFailed.
        """
        assert head_sequence == self._position.sequence, "every record was checked"
        with self._latch.guard("look for what is ahead"):
            ahead = self._find_ahead(head_sequence)
        if ahead is not None:
            self._forget_aside()
            name, sequence = ahead
            raise JournalDamaged(
                f"the journal ends at sequence {head_sequence}, events/ at {sequence}",
                file=name,
                sequence=head_sequence,
            )
        with self._latch.guard("mend events/"):
            self._mend()
        self._is_started = True

    def resume(self) -> None:
        """In place of `check` and `start`, for a copy that has no journal: take records from now on
        behind the last good one. Segments with an index are trusted, records behind them checked;
        what follows the first that is not good, or is missing, is cut off. Raises JournalFailed.
        """
        assert not self._is_started, "the log is started once"
        assert not self._position.sequence, "nothing was checked"
        with self._latch.guard("resume events/"):
            segments = {first for first, found in self._known.items() if SEGMENT_SUFFIX in found}
            while (first := self._position.sequence + 1) in segments:
                index = read_trusted(self._storage, first, self._segment_size)
                if index is None:
                    break
                self._trusted.add(first)
                self._position = EventPosition(index.last_sequence, first, index.size)
            while (first := self._position.sequence + 1) in segments:
                for header, events in good_records(self._storage, first):
                    rules_version, first_sequence, command_count, _, events_crc = header
                    self.check(first_sequence, command_count, rules_version, events, events_crc)
                if self._position.sequence < first:
                    break
            self._mend()
        self._is_started = True

    def _enter(self, first_sequence: int) -> _CheckedSegment:
        """The segment that is checked begins here; the one before is full."""
        if self._checked is not None:
            self._checked.finish()
            self._passed.append(self._checked)
        self._checked = self._look_into(first_sequence, SEGMENT_HEADER_SIZE)
        return self._checked

    def _look_into(self, first_sequence: int, end: int) -> _CheckedSegment:
        header = encode_segment_header(first_sequence, self._segment_size)
        is_there = SEGMENT_SUFFIX in self._known.get(first_sequence, ())
        return _CheckedSegment(self._storage, first_sequence, header, is_there, end)

    def _find_ahead(self, head_sequence: int) -> tuple[str, int] | None:
        """File and last sequence of the valid records that go on behind the journal's head."""
        for first in sorted(self._known, reverse=True):
            if SEGMENT_SUFFIX in self._known[first]:
                last = self._last_of(first, head_sequence)
                if last > head_sequence:
                    return segment_name(first), last
            if first <= head_sequence:
                break
        return None

    def _last_of(self, first: int, head_sequence: int) -> int:
        """The last sequence that a segment proves."""
        checked = self._checked
        if checked is not None and checked.first_sequence == first and not checked.is_aside:
            # Up to the head it was found right just now.
            return last_valid(self._storage, first, checked.end, head_sequence)
        return last_valid(self._storage, first)

    def _forget_aside(self) -> None:
        """Remove what was written aside, as far as that goes."""
        for segment in (*self._passed, self._checked):
            if segment is not None:
                with suppress(OSError):
                    segment.discard()

    def _mend(self) -> None:
        """Put what was written aside in its place, and remove what does not belong here."""
        segments = [*self._passed]
        if self._checked is not None:
            self._checked.finish()
            segments.append(self._checked)
        expected = {segment.first_sequence for segment in segments}
        # What is left from an earlier start was replaced when it was written aside again.
        aside = {segment.aside_name for segment in segments if segment.is_aside}
        for name in self._leftovers:
            if name not in aside:
                self._storage.remove(name)
        for first, suffixes in self._known.items():
            for suffix in suffixes:
                is_stale = first not in expected and first not in self._trusted
                if is_stale:
                    self._storage.remove(f"{first:020}{suffix}")
        for segment in segments:
            is_full = segment is not self._checked
            has_index = INDEX_SUFFIX in self._known.get(segment.first_sequence, ())
            if has_index and not (is_full and segment.is_proven):
                self._storage.remove(index_name(segment.first_sequence))
            segment.put_in_place()
        self._storage.sync_folder()
        full = [one.first_sequence for one in self._passed if not one.is_proven]
        for first in (*self._unindexed, *full):
            self._sealer.add(first, self._storage.open(segment_name(first), is_writable=True))
        if self._checked is not None:
            name = segment_name(self._checked.first_sequence)
            self._file = self._storage.open(name, is_writable=True)
        self._passed = []
        self._checked = None

    # Live.

    def append(
        self,
        first_sequence: int,
        command_count: int,
        rules_version: int,
        events: bytes,
        events_crc: int,
    ) -> None:
        """Write the record of a batch that is durable. Raises JournalFailed."""
        self._latch.check()
        assert self._is_started, "the log is started"
        assert first_sequence == self._position.sequence + 1, "no record is left out"
        size = len(events)
        header = RecordHeader(rules_version, first_sequence, command_count, size, events_crc)
        content = encode_record_header(header) + events
        try:
            if self._file is None or not has_room(self._position.offset, size, self._segment_size):
                self._begin_segment(first_sequence)
            assert self._file is not None
            self._file.write(self._position.offset, content)
        except OSError as error:
            raise self._latch.fail("write to events/", error) from error
        end = self._position.offset + len(content)
        self._position = EventPosition(header.last_sequence, self._position.segment, end)

    def _begin_segment(self, first_sequence: int) -> None:
        full, self._file = self._file, None
        if full is not None:
            self._sealer.add(self._position.segment, full)
        self._file = self._storage.create(segment_name(first_sequence))
        self._file.write(0, encode_segment_header(first_sequence, self._segment_size))
        sequence = self._position.sequence
        self._position = EventPosition(sequence, first_sequence, SEGMENT_HEADER_SIZE)

    def stop(self) -> None:
        """A clean stop: wait for the sealing, then close. Raises JournalFailed."""
        try:
            self._sealer.wait()
            self._latch.check()
        finally:
            self.close()

    def close(self) -> None:
        """Let go of all files, after a failure, a refusal or mere checking."""
        if not self._is_started:
            self._forget_aside()
        if self._file is not None:
            self._file.close()
            self._file = None
        # A failure was raised to whoever wrote, or nobody writes any more.
        with suppress(JournalFailed):
            self._sealer.wait()


class _CheckedSegment:
    """A segment during the start: what is there, as long as it is right, then a copy aside."""

    def __init__(
        self, storage: Storage, first_sequence: int, header: bytes, is_there: bool, end: int
    ) -> None:
        """What is before `end` is known to be right."""
        self.first_sequence = first_sequence
        self.end = end  # of the records that were taken
        self.is_aside = False
        self._storage = storage
        self._header = header
        self._aside: File | None = None
        self._file: File | None = None
        self._rows: Iterator[tuple[int, ...]] | None = None  # of the index that follow, if any
        self._block = b""  # of a file without an index, from `_block_offset` on
        self._block_offset = 0
        self._is_proven = False
        if is_there:
            self._file = storage.open(segment_name(first_sequence))
            if self._file.read(0, len(header)) == header:
                index = read_index(storage, first_sequence, self._file.size())
                self._rows = index.rows(index.place_of(end)) if index is not None else None
            else:
                self._file.close()
                self._file = None

    @property
    def is_proven(self) -> bool:
        """Whether the index is right and stays; known when the segment is finished."""
        return self._is_proven

    @property
    def aside_name(self) -> str:
        return segment_name(self.first_sequence) + TEMPORARY_SUFFIX

    def pass_indexed(self, first_sequence: int, size: int, events_crc: int) -> bool:
        """Take the next record, with so many bytes of events, if the index has it.

        The index was made from the whole segment when it was full: no need to read that again.
        """
        if self._rows is None or next(self._rows, None) != (first_sequence, self.end, events_crc):
            return False
        self.end += RECORD_HEADER_SIZE + size
        return True

    def take(self, header: RecordHeader, events: bytes) -> None:
        """The next record, which no index has: compared while all is right, then written."""
        if not self.is_aside and not self._is_same(header, events):
            self._copy_aside()
        if self._aside is not None:
            self._aside.write(self.end, encode_record_header(header) + events)
        self.end += RECORD_HEADER_SIZE + len(events)

    def finish(self) -> None:
        """No record follows: nothing else may, either."""
        if not self.is_aside and (self._file is None or self._file.size() != self.end):
            self._copy_aside()
        if self._rows is not None:
            self._is_proven = next(self._rows, None) is None
        if self._aside is not None:
            self._aside.sync()
        # They are large, and there may be many segments.
        self._rows = None
        self._block = b""
        for file in (self._aside, self._file):
            if file is not None:
                file.close()
        self._aside = self._file = None

    def put_in_place(self) -> None:
        if self.is_aside:
            self._storage.rename(self.aside_name, segment_name(self.first_sequence))

    def discard(self) -> None:
        for file in (self._aside, self._file):
            if file is not None:
                file.close()
        self._aside = self._file = None
        if self.is_aside:
            self.is_aside = False
            self._storage.remove(self.aside_name)

    def _is_same(self, header: RecordHeader, events: bytes) -> bool:
        if self._file is None or self._rows is not None:
            return False
        size = RECORD_HEADER_SIZE + len(events)
        begin = self.end - self._block_offset
        if begin + size > len(self._block):
            begin, self._block_offset = 0, self.end
            self._block = self._file.read(self.end, max(size, BLOCK_SIZE))
        has_header = self._block.startswith(encode_record_header(header), begin)
        return has_header and self._block.startswith(events, begin + RECORD_HEADER_SIZE)

    def _copy_aside(self) -> None:
        """Go on in a copy of what is right so far."""
        self.is_aside = True
        self._rows = None
        with suppress(FileNotFoundError):
            self._storage.remove(self.aside_name)
        self._aside = self._storage.create(self.aside_name)
        if self._file is None:
            self._aside.write(0, self._header)
            return
        offset = 0
        while offset < self.end:
            block = self._file.read(offset, min(BLOCK_SIZE, self.end - offset))
            self._aside.write(offset, block)
            offset += len(block)
        self._file.close()
        self._file = None


class _Sealer:
    """Syncs and indexes full segments, one after another, where `execute` says.

    A segment is synced through the file that it was written through: the system tells each open
    file once that writing back has failed, and one that is opened later may never hear of it.
    """

    def __init__(self, storage: Storage, latch: Latch, execute: Execute) -> None:
        self._storage = storage
        self._latch = latch
        self._execute = execute
        self._lock = Lock()
        self._backlog: deque[tuple[int, File]] = deque()
        self._is_running = False
        self._join: Join | None = None

    def add(self, first_sequence: int, file: File) -> None:
        """Seal this segment later and close its file. Waits, bounded, when too many are waiting."""
        if len(self._backlog) >= SEAL_BACKLOG_MAX:
            self.wait()
        with self._lock:
            self._backlog.append((first_sequence, file))
            if self._is_running:
                return
            self._is_running = True
        self._join = self._execute(self._work)

    def wait(self) -> None:
        """Wait until all is sealed. Raises JournalFailed."""
        if self._join is not None:
            join, self._join = self._join, None
            if not join():
                raise self._latch.fail("seal a segment of events/", "not done in time")
        self._latch.check()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._backlog:
                    self._is_running = False
                    return
                first_sequence, file = self._backlog.popleft()
            try:
                self._seal(first_sequence, file)
            except Exception as error:  # noqa: BLE001 - on a thread nobody else would hear of it
                self._latch.fail(f"seal {segment_name(first_sequence)}", error)
                with self._lock:
                    for _, other in self._backlog:
                        other.close()
                    self._backlog.clear()

    def _seal(self, first_sequence: int, file: File) -> None:
        with closing(file):
            file.sync()
        content = build_index(self._storage, first_sequence)
        write_durably(self._storage, index_name(first_sequence), [content])
