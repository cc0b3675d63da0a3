"""Goes over the segments of a damaged journal as far as the chain does, and says what is wrong.

Unlike a start, which refuses at the first thing that does not add up, this goes on where the rest
proves that no record is missing: a bad header, a bad manifest, rubbish behind the last record.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from typing import Final
from zlib import crc32

from journal.copies import OperationRefused
from journal.errors import JournalDamaged
from journal.findings import (
    COMMANDS,
    Cut,
    Diagnosis,
    Finding,
    Kept,
    MendedFile,
    Remnant,
    SetAside,
    sealed_line,
)
from journal.healing import heal_record
from journal.manifest import (
    ARCHIVED_NAME,
    MANIFEST_NAME,
    MARKER_NAME,
    NOTHING_ARCHIVED,
    Archived,
    Marker,
    decode_archived,
    decode_manifest,
    decode_marker,
    read_text,
)
from journal.reader import UNSEALED_COUNT_MAX, is_only_archive
from journal.record import (
    HEADER_SIZE,
    RECORD_SIZE_MAX,
    SECTOR_SIZE,
    Head,
    RecordError,
    read_header,
)
from journal.segment import (
    BLOCK_SIZE,
    SEGMENT_SUFFIX,
    Segment,
    SegmentReader,
    encode_header,
    hash_file,
    is_zero,
    parse_name,
)
from journal.segment import read_header as read_segment_header
from journal.snapshot import SnapshotHead
from journal.storage import File, Storage
from journal.tail import judge_tail

HEALED_MAX: Final = 16
"""Records of a segment that are healed; with more something else is wrong, and each takes time."""

_SIZE_FIELD: Final = slice(20, 28)
"""Of the size in the header of a segment."""


def refuse_archive(storage: Storage) -> None:
    """Raise OperationRefused for a folder that is nothing but an archive."""
    if is_only_archive(storage):
        raise OperationRefused(
            "this is an archive: the next `exchange journal archive` or `restore` mends its "
            "manifest; a damaged segment can only come from another copy of it"
        )


class Walk:
    """Goes over the segments, from the first one on, as far as the chain does."""

    def __init__(
        self,
        storage: Storage,
        found: Diagnosis,
        heads: Sequence[SnapshotHead],
        base: SnapshotHead | None,
    ) -> None:
        """`base`: only what a start from this snapshot reads."""
        self._base = base
        self._storage = storage
        self._found = found
        self._names: dict[int, list[str]] = {}
        self._every = storage.names()
        self._heads = {(head.commands_segment, head.record_offset): head for head in heads}
        self._marker = read_marker(storage)
        self._cuts: list[Cut] = []
        self._archived_count = 0  # as the file says

    def look(self) -> None:
        """Everything about commands/ but the marker."""
        self._read_names()
        self._read_texts()
        first = number = self._find_beginning() if self._base is None else self._begin_behind()
        while self._names and number <= max(self._names) and self._look_at(number):
            number += 1
        self._set_rest_aside(first)
        self._found.segment_actions.extend(self._cuts)
        self._check_manifest()
        self._check_archived()
        self._check_snapshots()

    def _read_names(self) -> None:
        for name in self._every:
            if not name.endswith(SEGMENT_SUFFIX):
                continue
            try:
                self._names.setdefault(parse_name(name)[0], []).append(name)
            except JournalDamaged as error:
                self._found.find(f"{COMMANDS}/{name}", error.defect)
                self._found.segment_actions.append(SetAside(COMMANDS, name))

    def _read_texts(self) -> None:
        found = self._found
        found.is_manifest_new = True
        try:
            if MANIFEST_NAME in self._every:
                found.lines = tuple(decode_manifest(read_text(self._storage, MANIFEST_NAME)))
                found.is_manifest_new = False
        except JournalDamaged as error:
            found.find(f"{COMMANDS}/{MANIFEST_NAME}", error.defect)
        try:
            if ARCHIVED_NAME in self._every:
                found.archived = decode_archived(read_text(self._storage, ARCHIVED_NAME))
                self._archived_count = found.archived.segment
        except JournalDamaged as error:
            found.find(f"{COMMANDS}/{ARCHIVED_NAME}", error.defect)
            found.is_archived_new = True
        refuse_archive(self._storage)

    def _find_beginning(self) -> int:
        """The first segment that is looked at; the head before it is known then."""
        found, behind = self._found, self._found.archived.segment + 1
        if not self._names:
            if found.lines or found.archived.segment:
                found.lose(f"{COMMANDS}/", "there is no segment at all")
            return 1
        if 1 in self._names:
            # Archived segments go lowest first and come back highest first: what a restore could
            # bring back is here.
            found.archived = NOTHING_ARCHIVED
            return 1
        if behind > 1:
            found.head = Head(found.archived.sequence, found.archived.hash, 0, 0)
            return behind
        first = min(self._names)
        segment = self._read_header(self._names[first][0])
        if segment is None:
            return first
        found.find(
            f"{COMMANDS}/{ARCHIVED_NAME}",
            f"segments 1 to {first - 1} are not here, and nothing says that they were archived",
        )
        found.archived = Archived(first - 1, segment.first_sequence - 1, segment.previous_hash)
        found.is_archived_new = True
        found.head = Head(segment.first_sequence - 1, segment.previous_hash, 0, 0)
        return first

    def _begin_behind(self) -> int:
        """As `_find_beginning`, for a start from the base: all that is not sealed is read, and what
        is before the segment of the base only has to be there, or to be archived."""
        found, lines = self._found, self._found.lines
        assert self._base is not None
        first = min(self._base.commands_segment, len(lines) + 1)
        for line in lines[: first - 1]:
            name = Segment(line.number, 0, line.first_sequence, b"").name
            for other in self._names.pop(line.number, []):
                if other == name:
                    self._names.setdefault(line.number, []).append(name)
                else:
                    found.find(f"{COMMANDS}/{other}", "the manifest has another one of this number")
                    found.segment_actions.append(SetAside(COMMANDS, other))
        missing = [line.number for line in lines[: first - 1] if line.number not in self._names]
        last = missing[-1] if missing else 0
        header = self._read_header(self._names[first][0]) if first in self._names else None
        if header is None:
            return first
        if last > found.archived.segment:
            text = f"segment {last} is not here, and nothing says that it was archived"
            found.find(f"{COMMANDS}/{ARCHIVED_NAME}", text)
            self._pass_over(last, first)
        found.head = Head(header.first_sequence - 1, header.previous_hash, 0, 0)
        return first

    def _pass_over(self, last: int, first: int) -> None:
        """Let the segments up to `last` count as archived, or more of them before `first`, when the
        one that follows cannot say what they end with."""
        for number in range(last + 1, first + 1):
            header = self._read_header(self._names[number][0])
            if header is not None:
                begin = header.first_sequence - 1
                self._found.archived = Archived(number - 1, begin, header.previous_hash)
                self._found.is_archived_new = True
                return

    def _look_at(self, number: int) -> bool:
        """One segment; whether the chain goes on behind it."""
        found, names = self._found, self._names.get(number, [])
        if not names:
            was_archived = number <= self._archived_count
            what = "was archived and is not back" if was_archived else "is missing"
            found.lose(f"{COMMANDS}/", f"segment {number} {what}, and later ones are here")
            return False
        wanted = Segment(number, 0, found.head.sequence + 1, found.head.hash)
        name = wanted.name
        if name not in names:
            claimed = parse_name(names[0])[1]
            text = f"begins with sequence {claimed}, but what is before it ends with "
            found.lose(f"{COMMANDS}/{names[0]}", f"{text}{found.head.sequence}", claimed - 1)
            return False
        header = self._read_header(name)
        if header is not None and header.previous_hash != wanted.previous_hash:
            found.lose(f"{COMMANDS}/{name}", "continues another record than the one before it")
            return False
        with closing(self._storage.open(name)) as file:
            size = header.size if header is not None else self._guess_size(file, number)
            return self._read_segment(file, wanted._replace(size=size), header is not None)

    def _read_segment(self, file: File, segment: Segment, has_header: bool) -> bool:
        """The records of a segment; whether the chain goes on behind it."""
        found, place = self._found, f"{COMMANDS}/{segment.name}"
        sized = MendedFile(file, segment.size)
        reader, defects = self._read_records(sized, segment)
        found.head = reader.head
        is_proven = self._is_proven(segment.number)
        if not has_header:
            defects.append(Finding(f"{place} at offset 0", "the header of the segment is damaged"))
        if file.size() != segment.size:
            text = f"has {file.size()} bytes instead of {segment.size}"
            defects.append(Finding(place, text))
        trouble = self._judge(sized, segment, reader)
        if trouble:
            where = f"{place} at offset {reader.offset}, after sequence {found.head.sequence}"
            defects.append(Finding(where, trouble))
        found.findings.extend(defects)
        is_short = file.size() < segment.size or (not has_header and not reader.record_count)
        is_cut = bool(trouble or is_short) and not is_proven
        if is_cut:
            found.is_lossy = True
            self._find_remnants(file, segment.name, reader.offset)
        if defects:
            self._cuts.append(
                Cut(
                    COMMANDS,
                    segment.name,
                    encode_header(segment),
                    reader.offset,
                    segment.size,
                    tuple(sized.patches),
                )
            )
        digest = hash_file(file) if not defects else b""
        found.kept.append(Kept(segment, found.head.sequence, reader.record_count, digest))
        return not is_cut

    def _read_records(
        self, file: MendedFile, segment: Segment
    ) -> tuple[SegmentReader, list[Finding]]:
        """Everything that is good or can be healed, and what was healed."""
        healed: list[Finding] = []
        reader = SegmentReader(file, segment, self._found.head)
        while True:
            for record in reader.records():
                head = self._heads.get((segment.number, record.offset))
                if head is not None and head.record_hash == record.head.hash:
                    del self._heads[segment.number, record.offset]
            if reader.defect is None or len(healed) == HEALED_MAX:
                return reader, healed
            good = self._heal(file, segment, reader)
            if good is None:
                return reader, healed
            file.patches.append((reader.offset, good))
            place = f"{COMMANDS}/{segment.name} at offset {reader.offset}"
            text = f"{reader.defect.value}; it is known what was there, and it is put back"
            healed.append(Finding(place, text))
            reader = SegmentReader(file, segment, reader.head, reader.offset, reader.record_count)

    def _heal(self, file: MendedFile, segment: Segment, reader: SegmentReader) -> bytes | None:
        """The record behind the last good one as it was written, if that can be proven."""
        offset = reader.offset
        content = file.read(offset, min(RECORD_SIZE_MAX, segment.size - offset))
        if is_zero(content[:SECTOR_SIZE]):
            return None

        def find_hash(last_sequence: int, size: int) -> bytes | None:
            following = file.read(offset + size, SECTOR_SIZE)
            with suppress(RecordError):
                header = read_header(following)
                if header.first_sequence == last_sequence + 1:
                    return header.previous_hash
            for name in self._names.get(segment.number + 1, ()):
                if parse_name(name)[1] == last_sequence + 1:
                    found = self._read_header(name)
                    return found.previous_hash if found is not None else None
            if self._marker is not None and self._marker.sequence == last_sequence:
                return self._marker.hash
            head = self._heads.get((segment.number, offset))
            return head.record_hash if head is not None else None

        return heal_record(content, reader.head, offset == SECTOR_SIZE, find_hash)

    def _judge(self, file: MendedFile, segment: Segment, reader: SegmentReader) -> str:
        """What is wrong behind the last good record; nothing when a start would say nothing."""
        try:
            tail = judge_tail(file, segment, reader.offset, reader.head, reader.defect)
        except JournalDamaged as error:
            return error.defect
        if tail.torn_size and segment.number < max(self._names):
            return f"{tail.reason}, and a segment follows"
        if tail.torn_size:
            text = f"torn at offset {reader.offset}: {tail.reason}; the next start cuts it off"
            self._found.notes.append(Finding(f"{COMMANDS}/{segment.name}", text))
        return ""

    def _is_proven(self, number: int) -> bool:
        """Whether the head is known to be the end of this segment: by the next one, or, of the
        last one, by the clean-stop marker."""
        head = self._found.head
        if number == max(self._names):
            return self._marker == Marker(head.sequence, head.hash)
        name = Segment(number + 1, 0, head.sequence + 1, head.hash).name
        return name in self._names.get(number + 1, ())

    def _read_header(self, name: str) -> Segment | None:
        """The header of a segment, whatever size its file has; None when it is damaged."""
        with closing(self._storage.open(name)) as file:
            size = int.from_bytes(file.read(0, SECTOR_SIZE)[_SIZE_FIELD], "little")
            try:
                return read_segment_header(MendedFile(file, size), name)
            except JournalDamaged:
                return None

    def _guess_size(self, file: File, number: int) -> int:
        """The size that a segment with a damaged header had."""
        if number <= len(self._found.lines):
            return self._found.lines[number - 1].size
        if self._found.kept:
            return self._found.kept[-1].segment.size
        return max(2, -(-file.size() // SECTOR_SIZE)) * SECTOR_SIZE

    def _find_remnants(self, file: File, name: str, offset: int) -> None:
        found = self._found
        last = 0
        for remnant in scan_records(file, offset):
            last = max(last, remnant.first_sequence + remnant.command_count - 1)
            found.remnant_term = max(found.remnant_term, remnant.term)
        if last > found.head.sequence:
            found.remnants.append((name, offset))
            found.prove(f"{COMMANDS}/{name}", last)

    def _set_rest_aside(self, first: int) -> None:
        """Segments that the chain does not reach, the last one first; those before `first` were
        archived, and stay until the next archiving."""
        kept = {kept.segment.name for kept in self._found.kept}
        rest = [
            name
            for number in sorted(self._names, reverse=True)
            for name in self._names[number]
            if number >= first and name not in kept
        ]
        for name in reversed(rest):
            with closing(self._storage.open(name)) as file:
                self._find_remnants(file, name, SECTOR_SIZE)
        for name in rest:
            if parse_name(name)[0] in {kept.segment.number for kept in self._found.kept}:
                self._found.find(f"{COMMANDS}/{name}", "another segment has this number")
        self._found.segment_actions.extend(SetAside(COMMANDS, name) for name in rest)

    def _check_manifest(self) -> None:
        found = self._found
        place = f"{COMMANDS}/{MANIFEST_NAME}"
        if not found.kept:
            return
        last = found.kept[-1].segment.number
        is_used = last > 1 or found.kept[0].record_count > 0
        if found.is_manifest_new and MANIFEST_NAME not in self._every and is_used:
            found.find(place, "it is missing")
        lines = {line.number: line for line in found.lines}
        for kept in found.kept:
            line = lines.get(kept.segment.number)
            if line is None or line == sealed_line(kept):
                continue
            found.is_manifest_new = True
            if kept.hash:
                found.find(place, f"says other things about segment {kept.segment.number}")
        if found.lines and len(found.lines) >= last:
            text = f"lists {len(found.lines)} segments, the last one that can be kept is {last}"
            found.lose(place, text, found.lines[-1].last_sequence)
            found.is_manifest_new = True
        elif not found.is_manifest_new and last - len(found.lines) > UNSEALED_COUNT_MAX:
            text = f"lists {len(found.lines)} segments, the last one here is {last}"
            found.find(place, text)
            found.is_manifest_new = True
        found.is_manifest_new = found.is_manifest_new and is_used
        if found.is_manifest_new and len(found.lines) < found.archived.segment:
            found.obstacle = (
                f"the manifest is lost, and segments 1 to {found.archived.segment}, which it "
                "lists too, are archived: restore them first"
            )

    def _check_archived(self) -> None:
        """The file names sealed segments only, so not the last one that is kept; and where the
        first one is kept, none that is missing."""
        found, count = self._found, self._archived_count
        if not found.kept:
            return
        first, last = found.kept[0].segment, found.kept[-1].segment.number
        if count >= last:
            text = f"names segments 1 to {count}, the last one that can be kept is {last}"
            found.find(f"{COMMANDS}/{ARCHIVED_NAME}", text)
            begin = first.first_sequence - 1
            found.archived = Archived(first.number - 1, begin, first.previous_hash)
            found.is_archived_new = True
        if found.is_archived_new and not found.archived.segment:
            found.is_archived_new = False
            found.later_actions.append(SetAside(COMMANDS, ARCHIVED_NAME))

    def _check_snapshots(self) -> None:
        """Those whose record should have been met and was not."""
        found = self._found
        numbers = {kept.segment.number for kept in found.kept}
        for (number, _), head in sorted(self._heads.items()):
            if number in numbers and head.sequence <= found.head.sequence:
                found.strangers.append(head)


def scan_records(file: File, offset: int) -> Iterator[Remnant]:
    """Every whole record from an offset on, wherever a sector begins one."""
    size = file.size()
    while offset < size:
        window = file.read(offset, BLOCK_SIZE + RECORD_SIZE_MAX)
        step = 0
        while step < min(BLOCK_SIZE, len(window)):
            remnant, record_size = _record_at(window, step)
            if remnant is not None:
                yield remnant
            step += record_size
        offset += step


def _record_at(window: bytes, start: int) -> tuple[Remnant | None, int]:
    """The record that begins here, and its size; else none, and that of a sector."""
    try:
        header = read_header(window, start)
    except RecordError:
        return None, SECTOR_SIZE
    begin = start + HEADER_SIZE
    payload = window[begin : begin + header.payload_size]
    if len(payload) != header.payload_size or crc32(payload) != header.payload_crc:
        return None, SECTOR_SIZE
    found = Remnant(header.first_sequence, header.command_count, header.term, payload)
    return found, header.record_size


def read_marker(commands: Storage) -> Marker | None:
    """The clean-stop marker; None when it is missing or damaged. Raises OSError."""
    try:
        return decode_marker(read_text(commands, MARKER_NAME))
    except (JournalDamaged, FileNotFoundError):
        return None
