"""Reads commands/ while the venue writes them: what a replica applies.

The venue says how far its records are durable (`journal.position`); up to there this reads them in
order, over the ends of segments, and checks the whole chain. It takes no lock and changes no file.
The venue may seal segments and begin new ones meanwhile. FORMAT.md, section 12.
"""

from __future__ import annotations

from typing import NamedTuple

from journal.errors import JournalDamaged
from journal.log import CommandsPosition
from journal.record import (
    RECORD_SIZE_MAX,
    SECTOR_SIZE,
    START,
    Head,
    Record,
    RecordError,
    read_record,
)
from journal.segment import SEGMENT_SUFFIX, Segment, read_header
from journal.snapshot import SnapshotHead
from journal.storage import File, Storage


class CommandsState(NamedTuple):
    """Where the last record is that was given out: what the head of a snapshot says of it."""

    segment: int
    record_offset: int
    """Where it begins in its segment."""
    record_count: int
    """Records of the segment before it."""
    previous: Head
    head: Head
    """Of the journal before it and behind it; the sequence of `head` is 0 before the first."""


class CommandsFollower:
    """See the module. Reads what follows the record of `start`, or everything."""

    def __init__(self, storage: Storage, start: SnapshotHead | None = None) -> None:
        """Touches no file yet."""
        self._storage = storage
        self._state = CommandsState(1, SECTOR_SIZE, 0, START, START)
        if start is not None:
            self._state = CommandsState(
                start.commands_segment,
                start.record_offset,
                start.record_count,
                start.previous,
                start.head,
            )
        self._open: _OpenSegment | None = None

    @property
    def state(self) -> CommandsState:
        """Of the last record that was given out, or of that of the snapshot."""
        return self._state

    def read(self, until: CommandsPosition, size_max: int) -> list[Record]:
        """The next records up to `until`, checked: at least one unless there is none, and not many
        more bytes than `size_max`. Raises JournalDamaged, OSError.
        """
        assert size_max >= 1, "room for a record"
        records: list[Record] = []
        size = 0
        while size < size_max:
            opened = self._open or self._enter()
            here = CommandsPosition(opened.segment.number, opened.offset)
            if until < here:
                raise opened.damaged(f"read up to here, but durable only up to {until}")
            if until == here:
                break
            is_last = until.segment == here.segment
            end = until.offset if is_last else opened.segment.size
            found = opened.read(end, size_max - size)
            if found:
                records += found
                size += sum(record.size for record in found)
                self._state = opened.state
            elif is_last:
                raise opened.damaged(opened.defect)
            else:
                self._go_on(opened)
        return records

    def look_again(self) -> None:
        """The venue came back, and its folder may be another one: the next read looks whether the
        last record is still there, and raises JournalDamaged when it is not."""
        self.close()

    def close(self) -> None:
        """Let go of the file; the next read opens it again."""
        if self._open is not None:
            self._open.file.close()
            self._open = None

    def _enter(self) -> _OpenSegment:
        """The segment of the last record, which must still be there, behind that record."""
        state = self._state
        opened = self._open_segment(state.segment)
        if state.head.sequence:
            opened.go_to(state)
            opened.read(opened.segment.size, 1)
            if opened.state != state:
                opened.file.close()
                raise opened.damaged(f"the record of sequence {state.head.sequence} is not there")
        self._open = opened
        return opened

    def _go_on(self, full: _OpenSegment) -> None:
        """To the next segment, whose header proves that the one before was read to its end."""
        head = full.head
        following = self._open_segment(full.segment.number + 1)
        begin = (following.segment.first_sequence, following.segment.previous_hash)
        if begin != (head.sequence + 1, head.hash):
            following.file.close()
            raise full.damaged(f"{full.defect}, and a segment follows that continues another")
        following.head = head
        full.file.close()
        self._open = following

    def _open_segment(self, number: int) -> _OpenSegment:
        prefix = f"{number:020}-"
        for name in self._storage.names():
            if name.startswith(prefix) and name.endswith(SEGMENT_SUFFIX):
                file = self._storage.open(name)
                try:
                    return _OpenSegment(file, read_header(file, name))
                except BaseException:
                    file.close()
                    raise
        raise JournalDamaged(f"segment {number} is missing", sequence=self._state.head.sequence)


class _OpenSegment:
    """The segment that is being read, and the next record's place in it."""

    def __init__(self, file: File, segment: Segment) -> None:
        self.file = file
        self.segment = segment
        self.offset = SECTOR_SIZE
        self.head = START
        self.defect = "no room"  # why `read` found no record
        self.state = CommandsState(segment.number, SECTOR_SIZE, 0, START, START)
        self._record_count = 0

    def go_to(self, state: CommandsState) -> None:
        """To the beginning of a record."""
        self.offset = state.record_offset
        self.head = state.previous
        self._record_count = state.record_count

    def read(self, end: int, size_max: int) -> list[Record]:
        """Records from here on up to `end`, none that begins `size_max` bytes behind the first."""
        size = min(end - self.offset, max(size_max, RECORD_SIZE_MAX))
        block = memoryview(self.file.read(self.offset, size))
        begin = self.offset
        records: list[Record] = []
        while self.offset - begin < min(size_max, size):
            view = block[self.offset - begin :]
            try:
                record = read_record(view, self.head, self.segment.number, self.offset)
            except RecordError as bad:
                # Behind other records it may only be that the block ends here.
                self.defect = bad.defect.value
                break
            self.state = CommandsState(
                self.segment.number, self.offset, self._record_count, self.head, record.head
            )
            records.append(record)
            self.head = record.head
            self.offset += record.size
            self._record_count += 1
        return records

    def damaged(self, defect: str) -> JournalDamaged:
        sequence = self.head.sequence
        return JournalDamaged(defect, file=self.segment.name, offset=self.offset, sequence=sequence)
