"""Reads a whole journal and changes no file: the read mode of `log.py`, and the offline tools.

`JournalReader` looks at the folder when it is made, gives out the records in order, and at the end
knows head and tail. Whatever does not add up raises JournalDamaged; a failing disk raises
JournalFailed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Final

from journal.errors import JournalDamaged, JournalFailed
from journal.manifest import (
    ARCHIVED_NAME,
    MANIFEST_NAME,
    MARKER_NAME,
    NOTHING_ARCHIVED,
    TERM_NAME,
    Archived,
    Marker,
    Sealed,
    decode_archived,
    decode_manifest,
    decode_marker,
    decode_term,
    read_text,
)
from journal.record import START, Head, Record
from journal.segment import (
    PREPARED_SUFFIX,
    SEGMENT_SUFFIX,
    Segment,
    SegmentReader,
    hash_file,
    parse_name,
    read_header,
)
from journal.snapshot import SnapshotHead
from journal.storage import LOCK_NAME, TEMPORARY_SUFFIX, File, Storage
from journal.tail import Tail, judge_tail

UNSEALED_COUNT_MAX: Final = 2  # The one that takes records, and the one that is being sealed.


@dataclass(frozen=True, slots=True)
class Folder:
    """What is in the folder of a journal, names and small files checked."""

    names: tuple[str, ...]  # segments, in order
    sealed: tuple[Sealed, ...]  # segments 1 to k, whether they are here or archived
    has_manifest: bool
    marker: Marker | None
    archived: Archived
    minimum_term: int  # of the next start
    leftovers: tuple[str, ...]  # to be removed at start
    is_kept_apart: bool  # with `archived`, and without what a venue leaves in its folder

    @property
    def unsealed_names(self) -> tuple[str, ...]:
        return tuple(name for name in self.names if parse_name(name)[0] > len(self.sealed))

    @property
    def is_archive(self) -> bool:
        """Whether this is where the first segments were archived to: nothing is open here. An
        archiving that was cut off may not have said so of the last segment yet."""
        is_counted = len(self.sealed) - 1 <= self.archived.segment <= len(self.sealed)
        return bool(self.is_kept_apart and self.sealed and is_counted and not self.unsealed_names)


@dataclass(frozen=True, slots=True)
class OpenSegment:
    """A segment that is not in the manifest yet, as it was read."""

    segment: Segment
    end: int  # P
    last_sequence: int
    record_count: int


@dataclass(frozen=True, slots=True)
class Summary:
    """What `verify` found. Sizes in bytes."""

    segment_count: int
    sealed_count: int
    record_count: int
    command_count: int
    first_sequence: int  # 0 when there is no record
    last_sequence: int
    record_bytes: int  # records with header and padding
    head_hash: bytes
    has_marker: bool
    end: str  # "clean", or what a start would cut


def survey(storage: Storage) -> Folder:
    """Look at the folder. Raises JournalDamaged, OSError."""
    every = storage.names()
    archived = NOTHING_ARCHIVED
    if ARCHIVED_NAME in every:
        archived = decode_archived(read_text(storage, ARCHIVED_NAME))
    has_manifest = MANIFEST_NAME in every
    has_marker = MARKER_NAME in every
    folder = Folder(
        names=_present(every, archived.segment),
        sealed=tuple(decode_manifest(read_text(storage, MANIFEST_NAME)) if has_manifest else ()),
        has_manifest=has_manifest,
        marker=decode_marker(read_text(storage, MARKER_NAME)) if has_marker else None,
        archived=archived,
        minimum_term=decode_term(read_text(storage, TERM_NAME)) if TERM_NAME in every else 0,
        leftovers=tuple(
            name for name in every if name.endswith((TEMPORARY_SUFFIX, PREPARED_SUFFIX))
        ),
        is_kept_apart=is_archive(storage),
    )
    _check_folder(folder)
    return folder


def is_only_archive(storage: Storage) -> bool:
    """Whether a folder is an archive, and cannot be that of a venue: no segment is behind those
    that its manifest lists. Raises OSError."""
    if not is_archive(storage):
        return False
    try:
        count = len(decode_manifest(read_text(storage, MANIFEST_NAME)))
    except (JournalDamaged, FileNotFoundError):
        return True
    # Names begin with the number.
    behind = f"{count + 1:020}"
    return not any(name.endswith(SEGMENT_SUFFIX) and name >= behind for name in storage.names())


def is_archive(storage: Storage) -> bool:
    """Whether a folder has what an archive has, and nothing that only a venue leaves there; what
    the files say is not looked at. Raises OSError."""
    names = storage.names()
    is_used = LOCK_NAME in names or MARKER_NAME in names
    return (
        ARCHIVED_NAME in names
        and not is_used
        and not any(name.endswith(PREPARED_SUFFIX) for name in names)
    )


def _present(every: list[str], archived_count: int) -> tuple[str, ...]:
    """Names of the segments without a gap, in order. What an archiving has not removed yet before
    a gap is passed over."""
    names = [name for name in every if name.endswith(SEGMENT_SUFFIX)]
    begin, expected = 0, 1
    for index, name in enumerate(names):
        number, _ = parse_name(name)
        needed = max(expected, archived_count + 1)
        if not expected <= number <= needed:
            raise JournalDamaged(f"segment {needed} expected here", file=name)
        if number != expected:
            begin = index
        expected = number + 1
    return tuple(names[begin:])


def _check_folder(folder: Folder) -> None:
    sealed, archived = folder.sealed, folder.archived
    for name in folder.names:
        number, first_sequence = parse_name(name)
        if number <= len(sealed) and sealed[number - 1].first_sequence != first_sequence:
            raise JournalDamaged("first sequence differs from the manifest", file=name)
    if archived.segment:
        is_sealed = archived.segment <= len(sealed)
        if not is_sealed or sealed[archived.segment - 1].last_sequence != archived.sequence:
            raise JournalDamaged("what was archived differs from the manifest", file=ARCHIVED_NAME)
    unsealed_count = len(folder.unsealed_names)
    is_count_right = 1 <= unsealed_count <= UNSEALED_COUNT_MAX or folder.is_archive
    if folder.has_manifest and not is_count_right:
        count = len(folder.names)
        raise JournalDamaged(
            f"{count} segments do not fit a manifest of {len(sealed)}", file=MANIFEST_NAME
        )
    if not folder.has_manifest and len(folder.names) > 1:
        raise JournalDamaged("manifest is missing", file=MANIFEST_NAME)


class JournalReader:
    """Reads the journal in `storage` once, to its head, from its first record, or from what
    follows the record of a snapshot."""

    def __init__(
        self,
        storage: Storage,
        folder: Folder,
        floor_sequence: int = 0,
        start: SnapshotHead | None = None,
        *,
        is_partial: bool = False,
    ) -> None:
        """Partial: from the first segment that was not archived. Raises JournalDamaged when the
        folder has not the segments that it takes."""
        self.folder = folder
        self.head: Head = START
        self.tail: Tail | None = None  # None: no segment
        self.unsealed: list[OpenSegment] = []
        self.record_count = 0  # that were read
        self.is_finished = False
        self._storage = storage
        self._floor_sequence = floor_sequence
        self._start = start
        is_after_archived = is_partial and not folder.is_archive
        self._names = self._choose_names(folder.archived.segment + 1 if is_after_archived else 1)
        self._is_begun = False

    def _choose_names(self, first_number: int) -> tuple[str, ...]:
        """Segments that are read: from this one on, or those of the snapshot and behind it, and all
        that are unsealed, since the start goes on with them."""
        names = self.folder.names
        if self._start is not None:
            first_number = min(self._start.commands_segment, len(self.folder.sealed) + 1)
        names = tuple(name for name in names if parse_name(name)[0] >= first_number)
        has_first = bool(names) and parse_name(names[0])[0] == first_number
        is_archived = first_number <= self.folder.archived.segment
        if is_archived and not has_first:
            last = self.folder.archived.segment
            raise JournalDamaged(
                f"segments 1 to {last} are archived: restore them, or start from a snapshot",
                file=ARCHIVED_NAME,
            )
        if self._start is not None and self._start.commands_segment > first_number + len(names) - 1:
            raise self._not_of_this("the journal ends before its segment")
        return names

    @property
    def first_sequence(self) -> int:
        """Of the first segment that is read."""
        return parse_name(self._names[0])[1] if self._names else 1

    def records(self) -> Iterator[Record]:
        """Every record, checked, and at the end the journal as a whole. Call it once."""
        assert not self._is_begun, "a journal is read once"
        self._is_begun = True
        try:
            for name in self._names:
                with closing(self._storage.open(name)) as file:
                    yield from self._read_segment(file, name)
        except OSError as error:
            raise JournalFailed("read", error) from error
        self._check_end()
        self.is_finished = True

    def _read_segment(self, file: File, name: str) -> Iterator[Record]:
        segment = read_header(file, name)
        self._check_continues(segment)
        sealed = None
        if segment.number <= len(self.folder.sealed):
            sealed = self.folder.sealed[segment.number - 1]
        if sealed is not None and hash_file(file) != sealed.hash:
            raise self._damaged(name, "hash of the sealed segment differs from the manifest")
        reader = SegmentReader(file, segment, self.head)
        start = self._start
        if start is not None and segment.number == start.commands_segment and sealed is not None:
            # What is before the snapshot's record was hashed just now.
            offset, count = start.record_offset, start.record_count
            self.head = start.previous
            reader = SegmentReader(file, segment, self.head, offset, count)
        records = reader.records()
        if start is not None and segment.number <= start.commands_segment:
            self._pass_over(reader, records, segment, start)
        for record in records:
            self.head = record.head
            self.record_count += 1
            yield record
        self._finish_segment(file, reader, segment, sealed)

    def _check_continues(self, segment: Segment) -> None:
        """Whether the segment begins where the one before has ended, as far as that is known."""
        expected = (self.head.sequence + 1, self.head.hash)
        if segment.name == self._names[0] and segment.number > 1:
            expected = (segment.first_sequence, segment.previous_hash)
            archived = self.folder.archived
            if segment.number == archived.segment + 1:
                expected = (archived.sequence + 1, archived.hash)
            # Of the record before, the term and the rules are not known; nobody asks for more.
            self.head = Head(segment.first_sequence - 1, segment.previous_hash, 0, 0)
        if segment.first_sequence != expected[0]:
            why = "first sequence does not continue the segment before"
            raise self._damaged(segment.name, why)
        if segment.previous_hash != expected[1]:
            raise self._damaged(segment.name, "hash does not continue the segment before")

    def _pass_over(
        self,
        reader: SegmentReader,
        records: Iterator[Record],
        segment: Segment,
        start: SnapshotHead,
    ) -> None:
        """What is not given out: up to the record of the snapshot, or the whole segment."""
        is_its = segment.number == start.commands_segment
        expected = (start.record_offset, start.record_count, start.previous[:2], start.head)
        for record in records:
            previous, self.head = self.head, record.head
            self.record_count += 1
            if is_its and record.offset >= start.record_offset:
                found = (record.offset, reader.record_count - 1, previous[:2], record.head)
                if found != expected:
                    why = "another record is in its place"
                    raise self._not_of_this(why, segment.name, record.offset)
                return
        if is_its:
            raise self._not_of_this("its record is not there", segment.name, reader.offset)

    def _finish_segment(
        self, file: File, reader: SegmentReader, segment: Segment, sealed: Sealed | None
    ) -> None:
        """The end of a segment whose records were read."""
        name = segment.name
        self.tail = judge_tail(file, segment, reader.offset, self.head, reader.defect)
        if self.tail.torn_size and name != self._names[-1]:
            why = f"{self.tail.reason}, and a segment follows"
            raise self._damaged(name, why, reader.offset)
        if sealed is None:
            self.unsealed.append(
                OpenSegment(segment, reader.offset, self.head.sequence, reader.record_count)
            )
            return
        found = (self.head.sequence, reader.record_count, segment.size)
        if found != (sealed.last_sequence, sealed.record_count, sealed.size):
            raise self._damaged(name, "contents differ from the manifest")

    def _check_end(self) -> None:
        is_used = self.record_count > 0 or (self.tail is not None and self.tail.torn_size > 0)
        if not self.folder.has_manifest and is_used:
            raise JournalDamaged("manifest is missing", file=MANIFEST_NAME)
        marker = self.folder.marker
        if marker is not None and marker != Marker(self.head.sequence, self.head.hash):
            why = f"journal ends at sequence {self.head.sequence}, marker at {marker.sequence}"
            if marker.sequence == self.head.sequence:
                why = f"hash of the record with sequence {marker.sequence} differs"
            raise JournalDamaged(why, file=MARKER_NAME)
        archived = self.folder.archived
        is_whole = (self.head.sequence, self.head.hash) == archived[1:]
        is_said = archived.segment == len(self.folder.sealed)
        if self.folder.is_archive and is_said and not is_whole:
            raise JournalDamaged("the archive ends with another record", file=ARCHIVED_NAME)
        if self.head.sequence < self._floor_sequence:
            name = self.folder.names[-1] if self.folder.names else ""
            why = f"journal ends here, but was durable up to sequence {self._floor_sequence}"
            raise self._damaged(name, why, self.tail.offset if self.tail else None)

    def _damaged(self, name: str, why: str, offset: int | None = 0) -> JournalDamaged:
        return JournalDamaged(why, file=name, offset=offset, sequence=self.head.sequence)

    def _not_of_this(self, why: str, name: str = "", offset: int | None = None) -> JournalDamaged:
        assert self._start is not None
        what = f"the snapshot of sequence {self._start.sequence} is not of this journal: {why}"
        return JournalDamaged(what, file=name, offset=offset)


def read_only(
    storage: Storage,
    floor_sequence: int = 0,
    start: SnapshotHead | None = None,
    *,
    is_partial: bool = False,
) -> JournalReader:
    """A reader for offline use, of a journal or of an archive; changes no file. Lock the storage
    first if a venue may use it. Partial: what was not archived. Raises JournalDamaged,
    JournalFailed."""
    try:
        folder = survey(storage)
        return JournalReader(storage, folder, floor_sequence, start, is_partial=is_partial)
    except OSError as error:
        raise JournalFailed("read", error) from error


def verify(storage: Storage, floor_sequence: int = 0, *, is_partial: bool = False) -> Summary:
    """Read everything, or what was not archived, and sum it up. Raises JournalDamaged,
    JournalFailed."""
    reader = read_only(storage, floor_sequence, is_partial=is_partial)
    first_sequence = command_count = record_bytes = 0
    for record in reader.records():
        first_sequence = first_sequence or record.first_sequence
        command_count += record.command_count
        record_bytes += record.size
    return Summary(
        segment_count=len(reader.folder.names),
        sealed_count=len(reader.folder.sealed),
        record_count=reader.record_count,
        command_count=command_count,
        first_sequence=first_sequence,
        last_sequence=reader.head.sequence,
        record_bytes=record_bytes,
        head_hash=reader.head.hash,
        has_marker=reader.folder.marker is not None,
        end=describe_tail(reader),
    )


def describe_tail(reader: JournalReader) -> str:
    """One line about the end of a journal that was read."""
    assert reader.is_finished, "the journal was read to its end"
    tail = reader.tail
    if tail is None or not tail.torn_size:
        return "clean"
    return (
        f"torn: {reader.folder.names[-1]} at offset {tail.offset}, after sequence "
        f"{reader.head.sequence}: {tail.torn_size} bytes, {tail.reason}"
    )
