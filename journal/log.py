"""The journal: read everything, then append, one record at a time.

A journal is opened, read to its end (`records`; from a snapshot on, if there is one), started, and
then takes records: `build`, `write`, `sync`, again.

Who owns what, so that a record may be built while the one before it is being synced:
- the building side (`build`, `next_sequence`) belongs to one thread, the loop;
- the writing side (`write`, `sync`, `fits`) belongs to one thread at a time, the loop or a worker,
  never two at once;
- `head` and `position` are one reference each, replaced by `sync`, readable anywhere; so is the
  latched failure;
- everything else (`records`, `start`, `stop`, `close`) needs both sides at rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Final, NamedTuple

from journal.errors import JournalDamaged, JournalFailed
from journal.manifest import (
    ARCHIVED_NAME,
    MANIFEST_NAME,
    MARKER_NAME,
    Marker,
    encode_manifest,
    encode_marker,
)
from journal.prepare import Execute, Latch, Preparer, run_in_thread
from journal.reader import JournalReader, OpenSegment, describe_tail, survey
from journal.record import (
    HEADER_SIZE,
    NO_HASH,
    RECORD_SIZE_MAX,
    SECTOR_SIZE,
    Buffer,
    BuiltRecord,
    Head,
    Record,
    build_record,
)
from journal.segment import (
    SEGMENT_SIZE_DEFAULT,
    Segment,
    check_segment_size,
    encode_header,
    zeros,
)
from journal.snapshot import SnapshotHead
from journal.storage import File, Storage, free_name, write_durably

TERM_MAX: Final = 2**62  # As all stored numbers.


class CommandsPosition(NamedTuple):
    """How far commands/ may be read: number of a segment, and where its last synced record ends."""

    segment: int
    offset: int


class Journal:
    """See the module. Made by `open`; after a failure everything but `close` raises it."""

    def __init__(
        self,
        storage: Storage,
        latch: Latch,
        reader: JournalReader,
        segment_size: int,
        execute: Execute,
    ) -> None:
        self._storage = storage
        self._latch = latch
        self._reader = reader
        self._preparer = Preparer(storage, latch, reader.folder.sealed, segment_size, execute)
        self._repaired: str | None = None
        self._is_started = False
        self._head = reader.head  # durable
        self._built = reader.head  # building side
        self._writer: _Writer | None = None
        self._position = CommandsPosition(0, 0)

    @classmethod
    def open(
        cls,
        storage: Storage,
        *,
        start: SnapshotHead | None = None,
        floor_sequence: int = 0,
        segment_size: int = SEGMENT_SIZE_DEFAULT,
        prepare: Execute = run_in_thread,
    ) -> Journal:
        """Lock the folder, look at it, make durable what an earlier process left. Changes no file.

        `start`: read what follows the record of this snapshot, instead of everything.
        `floor_sequence` is the highest sequence that something else proves to have been durable.
        `segment_size` in bytes is for new segments. Raises JournalHeld, JournalDamaged,
        JournalFailed.
        """
        check_segment_size(segment_size)
        latch = Latch()
        with latch.guard("lock the folder"):
            storage.lock()
        is_open = False
        try:
            with latch.guard("look at the folder"):
                folder = survey(storage)
            if folder.is_archive:
                raise JournalDamaged("an archive, which takes no records", file=ARCHIVED_NAME)
            reader = JournalReader(storage, folder, floor_sequence, start)
            with latch.guard("sync what was left"):
                for name in folder.unsealed_names:
                    with closing(storage.open(name)) as file:
                        file.settle()
                storage.sync_folder()
            is_open = True
        finally:
            if not is_open:
                storage.close()
        return cls(storage, latch, reader, segment_size, prepare)

    # Reading.

    def records(self) -> Iterator[Record]:
        """Every record in order, once. Raises JournalDamaged, JournalFailed; close it then."""
        self._latch.check()
        yield from self._reader.records()
        self._head = self._built = self._reader.head

    @property
    def head(self) -> Head:
        """The last durable record: its last sequence, hash, term and rules version."""
        return self._head

    @property
    def position(self) -> CommandsPosition:
        """Of the last durable record; once the journal is started."""
        return self._position

    @property
    def head_sequence(self) -> int:
        return self._head.sequence

    @property
    def head_hash(self) -> bytes:
        return self._head.hash

    @property
    def is_empty(self) -> bool:
        return self._head.sequence == 0

    @property
    def minimum_term(self) -> int:
        """The term with which a start goes on: that of the head, or a higher one when records may
        have been lost that others have seen."""
        return max(self._head.term, self._reader.folder.minimum_term)

    @property
    def repaired(self) -> str | None:
        """What `start` cut off the end, or None."""
        return self._repaired

    def check_failure(self) -> None:
        """Raise the latched JournalFailed, if there is one: that of the background work shows
        nowhere else while nobody appends."""
        self._latch.check()

    # Starting and stopping.

    def start(self, term: int) -> None:
        """Repair a torn end, clear leftovers, and take records from now on, in `term`."""
        assert self._reader.is_finished, "a journal takes records after it was read to its end"
        assert not self._is_started, "a journal is started once"
        assert self.minimum_term <= term <= TERM_MAX, f"term {term} after term {self.minimum_term}"
        folder = self._reader.folder
        with self._latch.guard("remove leftovers"):
            for name in folder.leftovers:
                # An archiving beside this start may have given its file the final name meanwhile.
                with suppress(FileNotFoundError):
                    self._storage.remove(name)
        with self._latch.guard("repair the end"):
            self._cut_torn_tail()
        full = list(self._reader.unsealed)
        if not full:
            full.append(self._create_first_segment())
        with self._latch.guard("begin to append"):
            if not folder.has_manifest:
                write_durably(self._storage, MANIFEST_NAME, [encode_manifest([])])
            if folder.marker is not None:
                self._storage.remove(MARKER_NAME)
            self._storage.sync_folder()
            open_segment = full.pop()
            file = self._storage.open(open_segment.segment.name, is_writable=True)
        self._writer = _Writer(file, open_segment, self._head)
        self._position = self._writer.position
        self._built = self._head._replace(term=term)
        self._preparer.begin(open_segment.segment.number + 1, full)
        self._is_started = True

    def stop(self) -> None:
        """A clean stop: wait for the background work, leave the marker, close."""
        assert self._is_started, "a journal that was not started is only closed"
        assert self._writer is not None
        try:
            self._latch.check()
            assert self._writer.unsynced is None, "stop with an unsynced record"
            self._preparer.wait()
            marker = Marker(self._head.sequence, self._head.hash)
            with self._latch.guard("write the clean-stop marker"):
                write_durably(self._storage, MARKER_NAME, [encode_marker(marker)])
        finally:
            self.close()

    def close(self) -> None:
        """Let go of files and lock without a marker: after a failure, a refusal or mere reading."""
        if self._writer is not None:
            self._writer.file.close()
        # A failure was raised to whoever wrote, or nobody writes any more.
        with suppress(JournalFailed):
            self._preparer.wait()
        self._storage.close()

    # Building side.

    @property
    def next_sequence(self) -> int:
        """The first sequence of the next record to be built."""
        return self._built.sequence + 1

    @property
    def payload_size_max(self) -> int:
        """The largest payload that a record of this journal can have, in bytes."""
        return min(RECORD_SIZE_MAX, self._preparer.segment_size - SECTOR_SIZE) - HEADER_SIZE

    def build(
        self, payload: Buffer, command_count: int, events_crc: int, rules_version: int
    ) -> BuiltRecord:
        """The record after the last built one; no I/O. What is built must be written, in order."""
        self._latch.check()
        assert self._is_started, "the journal is started"
        assert len(payload) <= self.payload_size_max, f"payload of {len(payload)} bytes"
        batch = build_record(self._built, payload, command_count, events_crc, rules_version)
        self._built = batch.head
        return batch

    # Writing side.

    def fits(self, batch: BuiltRecord) -> bool:
        """Whether `write` is one write; else it begins a segment: a wait, a rename, two syncs."""
        assert self._writer is not None, "the journal is started"
        return self._writer.fits(batch)

    def write(self, batch: BuiltRecord) -> None:
        """Write, not durable yet. Waits for the next segment if that is needed and not ready."""
        self._latch.check()
        writer = self._writer
        assert writer is not None, "the journal is started"
        assert writer.unsynced is None, "at most one record is unsynced"
        assert batch.previous.hash == writer.head.hash, "records are written as they were built"
        assert batch.previous.sequence == writer.head.sequence, "no record is left out"
        if not writer.fits(batch):
            self._begin_segment(batch)
            writer = self._writer
            assert writer is not None
            assert writer.fits(batch), "a record fits an empty segment"
        try:
            writer.write(batch)
        except OSError as error:
            raise self._latch.fail("write a record", error) from error

    def sync(self) -> None:
        """Make the written record durable; releases the GIL meanwhile."""
        self._latch.check()
        writer = self._writer
        assert writer is not None, "the journal is started"
        assert writer.unsynced is not None, "there is a record to sync"
        try:
            writer.file.sync_data()
        except OSError as error:
            raise self._latch.fail("sync a record", error) from error
        self._head = writer.unsynced
        self._position = writer.position
        writer.unsynced = None

    def _begin_segment(self, batch: BuiltRecord) -> None:
        assert self._writer is not None
        full = self._writer.finish()
        prepared = self._preparer.take()
        number = full.segment.number + 1
        segment = Segment(
            number, self._preparer.segment_size, batch.first_sequence, batch.previous.hash
        )
        with self._latch.guard(f"begin segment {number}"):
            with closing(self._storage.open(prepared, is_writable=True)) as file:
                file.write(0, encode_header(segment))
                file.sync_data()
            self._storage.rename(prepared, segment.name)
            self._storage.sync_folder()
            file = self._storage.open(segment.name, is_writable=True)
        self._writer.file.close()
        opened = OpenSegment(segment, SECTOR_SIZE, full.last_sequence, 0)
        self._writer = _Writer(file, opened, self._writer.head)
        self._preparer.begin(number + 1, [full])

    # Pieces of start.

    def _create_first_segment(self) -> OpenSegment:
        segment = Segment(1, self._preparer.segment_size, 1, NO_HASH)
        rest = zeros(segment.size - SECTOR_SIZE)
        with self._latch.guard("create the first segment"):
            write_durably(self._storage, segment.name, [encode_header(segment), *rest])
        return OpenSegment(segment, SECTOR_SIZE, 0, 0)

    def _cut_torn_tail(self) -> None:
        tail = self._reader.tail
        if tail is None or not tail.torn_size:
            return
        segment = self._reader.unsealed[-1].segment
        copy = free_name(self._storage, f"torn-{segment.number:020}-{tail.offset:020}")
        with closing(self._storage.open(segment.name, is_writable=True)) as file:
            write_durably(self._storage, copy, [file.read(tail.offset, tail.torn_size)])
            file.write(tail.offset, bytes(tail.torn_size))
            file.sync_data()
        self._repaired = f"{describe_tail(self._reader)}; cut, copy in {copy}"


class _Writer:
    """The segment that takes records. Belongs to the writing side."""

    def __init__(self, file: File, opened: OpenSegment, head: Head) -> None:
        self.file = file
        self.head = head  # of the last record that was written
        self.unsynced: Head | None = None
        self._segment = opened.segment
        self._end = opened.end
        self._record_count = opened.record_count

    @property
    def position(self) -> CommandsPosition:
        return CommandsPosition(self._segment.number, self._end)

    def fits(self, batch: BuiltRecord) -> bool:
        if self._end + len(batch.content) > self._segment.size:
            return False
        is_same_rules = batch.head.rules_version == self.head.rules_version
        return is_same_rules or self._end == SECTOR_SIZE

    def write(self, batch: BuiltRecord) -> None:
        assert self._end % SECTOR_SIZE == 0, "a record starts on a sector"
        self.file.write(self._end, batch.content)
        self._end += len(batch.content)
        self._record_count += 1
        self.head = self.unsynced = batch.head

    def finish(self) -> OpenSegment:
        return OpenSegment(self._segment, self._end, self.head.sequence, self._record_count)
