"""Moves sealed segments of commands/ to an archive, and back. FORMAT.md, section 11.

An archive is a folder with segments 1 to k as they were, a `manifest` of exactly these, and the
file `archived`. Every step is durable before the next one begins, and a segment is removed only
after its copy was read back from the disk; so a crash anywhere loses nothing, and running it again
goes on where it was.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from typing import Final, NamedTuple

from journal.copies import (
    OperationRefused,
    Report,
    copy_durably,
    has_hash,
    is_zero_from,
    replace_durably,
    storage_errors,
)
from journal.errors import JournalDamaged, JournalFailed
from journal.manifest import (
    ARCHIVED_NAME,
    MANIFEST_NAME,
    NOTHING_ARCHIVED,
    TERM_NAME,
    Archived,
    Sealed,
    decode_archived,
    decode_manifest,
    decode_term,
    encode_archived,
    encode_manifest,
    encode_term,
    read_text,
)
from journal.reader import Folder, is_archive, is_only_archive, survey
from journal.record import NO_HASH, SECTOR_SIZE, START, Head
from journal.segment import (
    PREPARED_SUFFIX,
    SEGMENT_SUFFIX,
    Segment,
    SegmentReader,
    encode_header,
    hash_file,
    parse_name,
    read_header,
    zeros,
)
from journal.snapshot import KEPT_MIN, SnapshotHead
from journal.storage import TEMPORARY_SUFFIX, Storage, free_name
from journal.tail import judge_tail

ASIDE_NAME: Final = "archived.aside"
"""What `archived` is written to first. A venue that starts meanwhile leaves it alone."""
FREE_SIZE_RESERVED: Final = 64 * 1024 * 1024
"""Bytes that stay free where segments are copied to."""
FOLDERS_OF_A_DISK: Final = ("lost+found",)
"""What a folder has that nobody has written to."""
TERM_STEP: Final = 1024
"""A journal that is made anew begins a multiple of this: a term that is lost, and that nothing here
knows of, came of fewer repairs, each of which adds one."""
TERM_UNREADABLE: Final = 64 * TERM_STEP - 1
"""What a damaged file counts for: fewer journals have been made of one archive."""
SURVEY_TRIES: Final = 3
"""Looks at a folder that a venue changes meanwhile; it does so once in many seconds."""


class Restored(NamedTuple):
    """What a restore has done."""

    segment_count: int
    """Segments that were copied."""
    head: Head | None
    """Where the journal ends, when it was made anew from the archive; None when it was there."""
    term: int
    """The least term of the next start, when the journal was made anew."""


def archivable_count(commands: Storage, starts: Sequence[SnapshotHead], keep: int) -> int:
    """How many segments, counted from the first one, no start from these valid snapshots (newest
    first) needs, less the newest `keep` of them; 0 with fewer than two snapshots. Raises
    JournalDamaged, JournalFailed."""
    if len(starts) < KEPT_MIN:
        return 0
    with storage_errors("look at the journal"):
        sealed_count = len(_survey_live(commands).sealed)
    needed = min(start.commands_segment for start in starts[:KEPT_MIN])
    return max(0, min(needed - 1, sealed_count) - keep)


def archive_segments(commands: Storage, archive: Storage, count: int, report: Report) -> int:
    """Move the segments 1 to `count` of a journal to its archive, as far as they are not there yet;
    how many were moved. Works beside a venue that appends; one at a time.

    Raises OperationRefused, JournalDamaged, JournalFailed; what was moved before has been moved.
    """
    with storage_errors("archive"):
        folder = _survey_live(commands)
        assert count <= len(folder.sealed), "only sealed segments are moved"
        with suppress(FileNotFoundError):
            commands.remove(ASIDE_NAME)
        mover = _Mover(commands, archive, folder, report)
        mover.mend()
        here = set(commands.names())
        for sealed in folder.sealed[: max(count, folder.archived.segment)]:
            if _name_of(sealed) in here:
                mover.move(sealed)
        mover.note_term()
        return mover.moved_count


class _Mover:
    """Moves segments, lowest first."""

    def __init__(self, commands: Storage, archive: Storage, folder: Folder, report: Report) -> None:
        self.moved_count = 0
        self._commands = commands
        self._archive = archive
        self._folder = folder
        self._report = report
        self._lines = _check_archive(archive, folder.sealed)
        gone = folder.archived.segment
        if gone > len(self._lines):
            raise OperationRefused(
                f"segments 1 to {gone} of this journal were archived before, and this archive has "
                f"{len(self._lines)} of them: name the archive that has them all"
            )

    def mend(self) -> None:
        """Begin the archive, or make right what a crash or a disk has left of its small files."""
        if self._lines:
            _write_manifest(self._archive, self._lines)
        said = self._archived_with(self._lines[-1]) if self._lines else NOTHING_ARCHIVED
        _write_archived(self._archive, said)

    def move(self, sealed: Sealed) -> None:
        """One segment: copied, listed, said to be archived, removed; each step durable."""
        name = _name_of(sealed)
        if sealed.number > len(self._lines) or not has_hash(self._archive, name, sealed.hash):
            self._check_room(sealed)
            copy_durably(self._commands, name, self._archive, name, sealed.hash)
        if sealed.number > len(self._lines):
            self._lines.append(sealed)
            _write_manifest(self._archive, self._lines)
        if sealed.number > self._folder.archived.segment:
            archived = self._archived_with(sealed)
            _write_archived(self._archive, archived)
            content = encode_archived(archived)
            with closing(self._commands.create(ASIDE_NAME)) as file:
                file.write(0, content)
                file.sync()
            self._commands.rename(ASIDE_NAME, ARCHIVED_NAME)
            self._commands.sync_folder()
        self._commands.remove(name)
        self._commands.sync_folder()
        self.moved_count += 1
        self._report(
            f"segment {sealed.number}: {sealed.size} bytes moved, "
            f"sequences {sealed.first_sequence} to {sealed.last_sequence}"
        )

    def note_term(self) -> None:
        """The archive knows of every term that this journal was told to begin."""
        term = max(self._folder.minimum_term, _noted_term(self._archive))
        if term:
            _write_if_other(self._archive, TERM_NAME, encode_term(term))

    def _archived_with(self, sealed: Sealed) -> Archived:
        """What is archived with this segment; the segment behind it says what its last hash is."""
        if sealed.number == self._folder.archived.segment:
            return self._folder.archived
        names = [name for name in self._commands.names() if name.endswith(SEGMENT_SUFFIX)]
        [following] = [name for name in names if parse_name(name)[0] == sealed.number + 1]
        with closing(self._commands.open(following)) as file:
            header = read_header(file, following)
        if header.first_sequence != sealed.last_sequence + 1:
            raise JournalDamaged("first sequence does not continue the manifest", file=following)
        return Archived(sealed.number, sealed.last_sequence, header.previous_hash)

    def _check_room(self, sealed: Sealed) -> None:
        check_room(self._archive, sealed.size, f"segment {sealed.number} into the archive")


def check_room(storage: Storage, size: int, what: str) -> None:
    """Raises JournalFailed when a disk is too full for what is to be copied to it."""
    free = storage.free_size()
    if free < size + FREE_SIZE_RESERVED:
        needed = size + FREE_SIZE_RESERVED
        raise JournalFailed(f"copy {what}", f"{free} bytes are free there, {needed} are needed")


def restore_segments(archive: Storage, commands: Storage, report: Report) -> Restored:
    """Bring back from an archive what a journal lacks, or make the journal anew where there is
    none. Nobody may have the journal open.

    Archived segments that are missing, or are not what the manifest says, are replaced; without a
    manifest the archive's counts. Of others it is only said, so that a repair can go on with the
    rest; where nothing can be brought back, it is refused. A journal that is made anew ends where
    the archive does, and its next start begins a new term, since what came after is lost. Raises
    OperationRefused, JournalDamaged, JournalFailed; may be run again.
    """
    with storage_errors("restore"):
        lines = archive_lines(archive)
        if not lines:
            raise OperationRefused("the archive is empty")
        if is_only_archive(commands):
            raise OperationRefused("what is to be restored is an archive itself")
        sealed = _readable_manifest(commands)
        if sealed is None and _is_unused(commands, lines):
            return _make_anew(archive, lines, commands, report)
        return _put_back(archive, lines, commands, lines if sealed is None else sealed, report)


def _readable_manifest(commands: Storage) -> list[Sealed] | None:
    if MANIFEST_NAME not in commands.names():
        return None
    try:
        return decode_manifest(read_text(commands, MANIFEST_NAME))
    except JournalDamaged:
        return None


def _is_unused(commands: Storage, lines: Sequence[Sealed]) -> bool:
    """Whether there is no journal here, but at most what an earlier try to restore has left."""
    names = commands.names()
    own = {_name_of(line) for line in lines}
    following = Segment(len(lines) + 1, 0, lines[-1].last_sequence + 1, NO_HASH).name
    if MANIFEST_NAME in names or ARCHIVED_NAME in names:
        return False
    for name in names:
        if name.endswith(PREPARED_SUFFIX) or (
            name.endswith(SEGMENT_SUFFIX) and name not in own and name != following
        ):
            return False
    if following not in names:
        return True
    with closing(commands.open(following)) as file:
        return is_zero_from(file, SECTOR_SIZE)


def _put_back(
    archive: Storage,
    lines: Sequence[Sealed],
    commands: Storage,
    sealed: Sequence[Sealed],
    report: Report,
) -> Restored:
    _check_same(lines, sealed)
    if len(lines) > len(sealed):
        raise OperationRefused(
            f"this journal is older than the archive, which goes on to sequence "
            f"{lines[-1].last_sequence}: move the folder away, and restore into an empty one"
        )
    here = set(commands.names())
    bad = [line for line in sealed if not has_hash(commands, _name_of(line), line.hash)]
    wanted = [line for line in bad if line.number <= len(lines)]
    lost = [line.number for line in bad[len(wanted) :] if _name_of(line) not in here]
    if lost and not wanted and not _is_all_back(commands, sealed):
        raise OperationRefused(
            f"segments {', '.join(map(str, lost))} are neither here nor in the archive, "
            f"which has 1 to {len(lines)}"
        )
    check_room(commands, 2 * sum(line.size for line in wanted), "segments into the journal")
    restored_count = sum(
        _put_segment_back(archive, commands, line, report) for line in reversed(wanted)
    )
    for line in bad[len(wanted) :]:
        what = "it is neither here nor in this archive"
        if line.number not in lost:
            what = "it is damaged, and the archive does not have it"
        report(f"segment {line.number}: {what}")
    # What a try that was cut off has renamed is durable before nothing says any more that it may
    # be missing.
    commands.sync_folder()
    if _is_all_back(commands, sealed):
        commands.remove(ARCHIVED_NAME)
        commands.sync_folder()
    return Restored(restored_count, None, 0)


def _is_all_back(commands: Storage, sealed: Sequence[Sealed]) -> bool:
    """Whether `archived` is there, and every segment that it names is too; of a damaged one nobody
    knows which it names, so then it is about all that are sealed."""
    here = set(commands.names())
    if ARCHIVED_NAME not in here:
        return False
    count = len(sealed)
    with suppress(JournalDamaged):
        count = decode_archived(read_text(commands, ARCHIVED_NAME)).segment
    return count <= len(sealed) and all(_name_of(line) in here for line in sealed[:count])


def _put_segment_back(archive: Storage, commands: Storage, line: Sealed, report: Report) -> bool:
    """One segment; what is there is only replaced by what is right, in one step."""
    name = _name_of(line)
    if not has_hash(archive, name, line.hash):
        report(f"segment {line.number}: damaged in the archive; what is here stays as it is")
        return False
    if name in commands.names():
        kept = free_name(commands, f"replaced-{line.number:020}")
        copy_durably(commands, name, commands, kept)
        report(f"segment {line.number}: it was damaged, and is kept as {kept}")
    copy_durably(archive, name, commands, name, line.hash)
    report(f"segment {line.number}: {line.size} bytes copied")
    return True


def _make_anew(
    archive: Storage, lines: Sequence[Sealed], commands: Storage, report: Report
) -> Restored:
    head = _read_archive(archive, lines)
    last = lines[-1]
    following = Segment(last.number + 1, last.size, head.sequence + 1, head.hash)
    wanted = [line for line in lines if not has_hash(commands, _name_of(line), line.hash)]
    check_room(commands, sum(line.size for line in wanted) + last.size, "the archive")
    known = max(head.term, _noted_term(archive), _noted_term(commands))
    # First the archive: its manifest may have been made anew just now.
    _write_manifest(archive, lines)
    _write_archived(archive, Archived(last.number, head.sequence, head.hash))
    term = (known // TERM_STEP + 1) * TERM_STEP
    # First the archive: whatever becomes of this journal, no other one gets the term.
    replace_durably(archive, TERM_NAME, [encode_term(term)])
    replace_durably(commands, TERM_NAME, [encode_term(term)])
    for line in wanted:
        copy_durably(archive, _name_of(line), commands, _name_of(line), line.hash)
        report(f"segment {line.number}: {line.size} bytes copied")
    rest = zeros(following.size - SECTOR_SIZE)
    replace_durably(commands, following.name, [encode_header(following), *rest])
    # Last the manifest: without it no venue starts here.
    replace_durably(commands, MANIFEST_NAME, [encode_manifest(lines)])
    return Restored(len(wanted), head, term)


def _read_archive(archive: Storage, lines: Sequence[Sealed]) -> Head:
    """Read all records of an archive; the head at its end. Raises JournalDamaged."""
    head = START
    for line in lines:
        name = _name_of(line)
        with in_archive():
            if not has_hash(archive, name, line.hash):
                raise JournalDamaged("its hash differs from the manifest", file=name)
            with closing(archive.open(name)) as file:
                segment = read_header(file, name)
                reader = SegmentReader(file, segment, head)
                deque(reader.records(), maxlen=0)
            if (segment.previous_hash, reader.head.sequence) != (head.hash, line.last_sequence):
                raise JournalDamaged("contents differ from the manifest", file=name)
        head = reader.head
    return head


def _check_archive(archive: Storage, sealed: Sequence[Sealed]) -> list[Sealed]:
    """What an archive has; nothing in a folder where none was begun. Raises OperationRefused."""
    names = archive.names()
    if ARCHIVED_NAME not in names:
        others = [name for name in names if name not in FOLDERS_OF_A_DISK]
        # The very first file of an archive may have been under way.
        if others and others != [ARCHIVED_NAME + TEMPORARY_SUFFIX]:
            raise OperationRefused(f"{others[0]}: the folder has other files and is no archive")
        return []
    lines = archive_lines(archive)
    _check_same(lines, sealed)
    if len(lines) > len(sealed):
        raise OperationRefused(
            f"the archive has segments 1 to {len(lines)}, of the journal 1 to {len(sealed)} are "
            "sealed: the archive of another journal, or the journal has lost some"
        )
    return lines


def archive_lines(archive: Storage) -> list[Sealed]:
    """The segments of an archive, by its manifest, or by the chain of its records when that cannot
    be read. Raises OperationRefused, JournalDamaged."""
    if not is_archive(archive):
        why = "this is no archive"
        if ARCHIVED_NAME in archive.names():
            why += ": a venue had it open; if it is one all the same, remove `lock` from it"
        raise OperationRefused(why)
    names = [name for name in archive.names() if name.endswith(SEGMENT_SUFFIX)]
    try:
        lines = decode_manifest(read_text(archive, MANIFEST_NAME))
    except (JournalDamaged, FileNotFoundError):
        return _follow_chain(archive, names)
    last = max((parse_name(name)[0] for name in names), default=0)
    if last > len(lines) + 1:
        raise OperationRefused("this is no archive: it has segments behind its manifest")
    if last > len(lines):
        # It was copied and compared, and the manifest was under way.
        with suppress(JournalDamaged):
            found = _follow_chain(archive, names)
            return found if found[: len(lines)] == lines else lines
    return lines


def _follow_chain(archive: Storage, names: Sequence[str]) -> list[Sealed]:
    """The lines of the manifest that an archive with these segments has."""
    head, lines = START, list[Sealed]()
    for name in names:
        with closing(archive.open(name)) as file, in_archive():
            segment = read_header(file, name)
            reader = SegmentReader(file, segment, head)
            deque(reader.records(), maxlen=0)
            begin = (segment.number, segment.first_sequence, segment.previous_hash)
            is_next = begin == (len(lines) + 1, head.sequence + 1, head.hash)
            tail = judge_tail(file, segment, reader.offset, reader.head, reader.defect)
            if not is_next or tail.torn_size:
                raise JournalDamaged("it does not continue the one before", file=name)
            lines.append(
                Sealed(
                    segment.number,
                    segment.first_sequence,
                    reader.head.sequence,
                    reader.record_count,
                    segment.size,
                    hash_file(file),
                )
            )
        head = reader.head
    return lines


@contextmanager
def in_archive() -> Iterator[None]:
    """Say of what is damaged that it is in the archive."""
    try:
        yield
    except JournalDamaged as error:
        place = f"{error.file} of the archive"
        raise JournalDamaged(error.defect, file=place, offset=error.offset) from None


def _write_manifest(archive: Storage, lines: Sequence[Sealed]) -> None:
    _write_if_other(archive, MANIFEST_NAME, encode_manifest(lines))


def _write_archived(archive: Storage, archived: Archived) -> None:
    _write_if_other(archive, ARCHIVED_NAME, encode_archived(archived))


def _write_if_other(storage: Storage, name: str, content: bytes) -> None:
    if name not in storage.names() or read_text(storage, name) != content:
        replace_durably(storage, name, [content])


def _check_same(lines: Sequence[Sealed], sealed: Sequence[Sealed]) -> None:
    """The archive is that of this journal. Raises OperationRefused."""
    for ours, other in zip(sealed, lines, strict=False):
        if ours != other:
            raise OperationRefused(
                f"segment {ours.number} of the archive is another one than that of the journal: "
                "the archive of another journal, or the journal was cut and went on"
            )


def _noted_term(storage: Storage) -> int:
    """The least term that was written here. One that cannot be read is taken for a high one."""
    try:
        return decode_term(read_text(storage, TERM_NAME))
    except FileNotFoundError:
        return 0
    except JournalDamaged:
        return TERM_UNREADABLE


def _survey_live(commands: Storage) -> Folder:
    """`survey` beside a venue, which may seal a segment while the folder is looked at."""
    for _ in range(SURVEY_TRIES - 1):
        with suppress(JournalDamaged, FileNotFoundError):
            return survey(commands)
    return survey(commands)


def _name_of(sealed: Sealed) -> str:
    return Segment(sealed.number, sealed.size, sealed.first_sequence, NO_HASH).name
