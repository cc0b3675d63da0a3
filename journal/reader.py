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
    MANIFEST_NAME,
    MARKER_NAME,
    Marker,
    Sealed,
    decode_manifest,
    decode_marker,
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
from journal.storage import TEMPORARY_SUFFIX, File, Storage
from journal.tail import Tail, judge_tail

UNSEALED_COUNT_MAX: Final = 2  # The one that takes records, and the one that is being sealed.


@dataclass(frozen=True, slots=True)
class Folder:
    """What is in the folder of a journal, names and small files checked."""

    names: tuple[str, ...]  # segments, in order
    sealed: tuple[Sealed, ...]  # the first of them
    has_manifest: bool
    marker: Marker | None
    leftovers: tuple[str, ...]  # to be removed at start

    @property
    def unsealed_names(self) -> tuple[str, ...]:
        return self.names[len(self.sealed) :]


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
    names = [name for name in every if name.endswith(SEGMENT_SUFFIX)]
    for index, name in enumerate(names):
        number, _ = parse_name(name)
        if number != index + 1:
            raise JournalDamaged(f"segment {index + 1} expected here", file=name)
    has_manifest = MANIFEST_NAME in every
    sealed = decode_manifest(read_text(storage, MANIFEST_NAME)) if has_manifest else []
    for name, entry in zip(names, sealed, strict=False):
        if parse_name(name)[1] != entry.first_sequence:
            raise JournalDamaged("first sequence differs from the manifest", file=name)
    unsealed_count = len(names) - len(sealed)
    if has_manifest and not 1 <= unsealed_count <= UNSEALED_COUNT_MAX:
        raise JournalDamaged(
            f"{len(names)} segments do not fit a manifest of {len(sealed)}", file=MANIFEST_NAME
        )
    if not has_manifest and len(names) > 1:
        raise JournalDamaged("manifest is missing", file=MANIFEST_NAME)
    has_marker = MARKER_NAME in every
    marker = decode_marker(read_text(storage, MARKER_NAME)) if has_marker else None
    leftovers = [name for name in every if name.endswith((TEMPORARY_SUFFIX, PREPARED_SUFFIX))]
    return Folder(tuple(names), tuple(sealed), has_manifest, marker, tuple(leftovers))


class JournalReader:
    """Reads the journal in `storage` once, from its first record to its head."""

    def __init__(self, storage: Storage, folder: Folder, floor_sequence: int = 0) -> None:
        self.folder = folder
        self.head: Head = START
        self.tail: Tail | None = None  # None: no segment
        self.unsealed: list[OpenSegment] = []
        self.record_count = 0
        self.is_finished = False
        self._storage = storage
        self._floor_sequence = floor_sequence
        self._is_begun = False

    def records(self) -> Iterator[Record]:
        """Every record, checked, and at the end the journal as a whole. Call it once."""
        assert not self._is_begun, "a journal is read once"
        self._is_begun = True
        try:
            for index, name in enumerate(self.folder.names):
                with closing(self._storage.open(name)) as file:
                    yield from self._read_segment(file, name, index)
        except OSError as error:
            raise JournalFailed("read", error) from error
        self._check_end()
        self.is_finished = True

    def _read_segment(self, file: File, name: str, index: int) -> Iterator[Record]:
        segment = read_header(file, name)
        if segment.first_sequence != self.head.sequence + 1:
            raise self._damaged(name, "first sequence does not continue the segment before")
        if segment.previous_hash != self.head.hash:
            raise self._damaged(name, "hash does not continue the segment before")
        sealed = self.folder.sealed[index] if index < len(self.folder.sealed) else None
        if sealed is not None and hash_file(file) != sealed.hash:
            raise self._damaged(name, "hash of the sealed segment differs from the manifest")
        reader = SegmentReader(file, segment, self.head)
        for record in reader.records():
            self.head = record.head
            self.record_count += 1
            yield record
        self.tail = judge_tail(file, segment, reader.offset, self.head, reader.defect)
        is_last = index == len(self.folder.names) - 1
        if self.tail.torn_size and not is_last:
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
        if self.head.sequence < self._floor_sequence:
            name = self.folder.names[-1] if self.folder.names else ""
            why = f"journal ends here, but was durable up to sequence {self._floor_sequence}"
            raise self._damaged(name, why, self.tail.offset if self.tail else None)

    def _damaged(self, name: str, why: str, offset: int | None = 0) -> JournalDamaged:
        return JournalDamaged(why, file=name, offset=offset, sequence=self.head.sequence)


def read_only(storage: Storage, floor_sequence: int = 0) -> JournalReader:
    """A reader for offline use; changes no file. Lock the storage first if a venue may use it."""
    try:
        return JournalReader(storage, survey(storage), floor_sequence)
    except OSError as error:
        raise JournalFailed("read", error) from error


def verify(storage: Storage, floor_sequence: int = 0) -> Summary:
    """Read everything and sum it up. Raises JournalDamaged, JournalFailed."""
    reader = read_only(storage, floor_sequence)
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
