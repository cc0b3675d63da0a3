"""What is wrong with a journal, how much of it can be kept, and what is lost then. Changes nothing.

The chain is followed from its beginning (`walk.py`), and where it breaks, from where a start from
the newest snapshot would follow it: damage before that hinders no start. Then the clean-stop
marker, events/ and the snapshots are asked what they have seen beyond. Last, every full segment of
events/ is read, which a start does not do where there is an index. FORMAT.md, section 13.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing

from journal.copies import storage_errors
from journal.errors import JournalDamaged, SnapshotDamaged
from journal.event_format import (
    RECORD_HEADER_SIZE,
    SEGMENT_HEADER_SIZE,
    index_name,
    parse_name,
    segment_name,
)
from journal.event_format import SEGMENT_SUFFIX as EVENTS_SUFFIX
from journal.event_index import build_index, decode_index
from journal.event_proof import WALKS_MAX, find_unindexed, good_records, last_valid
from journal.findings import (
    COMMANDS,
    EVENTS,
    SNAPSHOTS,
    Cut,
    Diagnosis,
    Finding,
    Folders,
    Remnant,
    SetAside,
)
from journal.manifest import (
    ARCHIVED_NAME,
    MANIFEST_NAME,
    MARKER_NAME,
    TERM_NAME,
    Marker,
    decode_term,
    read_text,
)
from journal.snapshot import SnapshotFolder, SnapshotHead
from journal.storage import Storage
from journal.walk import Walk, read_marker, scan_records

CanRestore = Callable[[SnapshotHead, bytes], bool]
"""Whether an engine can be made of an image."""


def diagnose(folders: Folders, can_restore: CanRestore = lambda head, image: True) -> Diagnosis:
    """Look at everything. Nobody may write to the folders. Raises OperationRefused for an archive,
    JournalFailed when the disk cannot be read."""
    with storage_errors("read"):
        snapshots = _Snapshots(folders, can_restore)
        found, base = _find_way(folders, snapshots)
        if folders.events is not None:
            gone = {action.name for action in found.later_actions}
            starts = [base] if base is not None else snapshots.usable
            starts = [start for start in starts if start.name not in gone]
            is_all_here = base is None and not found.archived.segment
            _look_behind_indexes(folders.events, found, starts, is_all_here)
    return found


def _find_way(folders: Folders, snapshots: _Snapshots) -> tuple[Diagnosis, SnapshotHead | None]:
    """What keeps most, and from which snapshot on that reads; None: from the first record on."""
    whole = _examine(folders, snapshots, None)
    if whole.is_sound:
        return whole, None
    for base in snapshots.usable:
        found = _examine(folders, snapshots, base)
        if found.head.sequence >= base.sequence:
            # The newest snapshot that stays: an older one would not lead further.
            break
    else:
        return whole, None
    if not found.is_sound and found.head.sequence <= whole.head.sequence:
        return whole, None
    # What only the whole history needs does not hinder a start.
    texts = (ARCHIVED_NAME, MANIFEST_NAME, MARKER_NAME, TERM_NAME)
    others = tuple(f"{COMMANDS}/{name}" for name in texts)
    for finding in whole.findings:
        is_history = finding.place.startswith(f"{COMMANDS}/") and finding.place not in others
        if is_history and finding not in found.findings:
            text = f"{finding.text}; the snapshot of sequence {base.sequence} is behind it"
            found.notes.append(Finding(finding.place, text))
    return found, base


class _Snapshots:
    """The snapshots, and which of them a start could take, newest first."""

    def __init__(self, folders: Folders, can_restore: CanRestore) -> None:
        self.heads: list[SnapshotHead] = []
        self.bad: list[tuple[str, str]] = []
        self.usable: list[SnapshotHead] = []
        if folders.snapshots is None:
            return
        folder = SnapshotFolder(folders.snapshots)
        self.heads, self.bad = folder.heads(), folder.bad
        for head in self.heads:
            if folders.events is None or find_unindexed(folders.events, head) is None:
                continue
            try:
                image = folder.read(head)
            except SnapshotDamaged as error:
                self.bad.append((head.name, error.defect))
                continue
            if can_restore(head, image):
                self.usable.append(head)


def _examine(folders: Folders, snapshots: _Snapshots, base: SnapshotHead | None) -> Diagnosis:
    """Everything, from the first record on, or from where a start from `base` reads."""
    found = Diagnosis()
    for name, why in snapshots.bad:
        found.notes.append(Finding(f"{SNAPSHOTS}/{name}", f"cannot be used: {why}"))
    Walk(folders.commands, found, snapshots.heads, base).look()
    if folders.events is not None:
        _look_at_events(folders.events, found)
    _look_at_snapshots(found, snapshots)
    _look_at_marker(folders.commands, found)
    _choose_term(folders.commands, found, snapshots.heads)
    # What no repair brings back.
    if found.findings and not found.obstacle and not (found.kept and found.head.sequence):
        found.obstacle = "not a single record can be kept"
    return found


def read_remnants(commands: Storage, found: Diagnosis) -> Iterator[Remnant]:
    """Whole records behind `found.head`, from whichever segments, in the order of their places.
    Raises OSError."""
    for name, offset in found.remnants:
        with closing(commands.open(name)) as file:
            for remnant in scan_records(file, offset):
                if remnant.first_sequence > found.head.sequence:
                    yield remnant


def _look_at_snapshots(found: Diagnosis, snapshots: _Snapshots) -> None:
    head, usable = found.head.sequence, snapshots.usable
    for stranger in found.strangers:
        finding = Finding(f"{SNAPSHOTS}/{stranger.name}", "is of another journal than this one")
        (found.findings if stranger in usable[:1] else found.notes).append(finding)
        found.later_actions.append(SetAside(SNAPSHOTS, stranger.name))
    for other in snapshots.heads:
        if other.sequence > head:
            text = f"is of sequence {other.sequence}, the journal ends with {head}"
            found.lose(f"{SNAPSHOTS}/{other.name}", text, other.sequence)
            found.later_actions.append(SetAside(SNAPSHOTS, other.name))
    last = found.archived.segment
    gone = {action.name for action in found.later_actions}
    starts = [other for other in usable if other.name not in gone]
    can_start = found.kept and any(other.commands_segment > last for other in starts)
    if last and not can_start:
        text = f"none that the journal could start from without the segments 1 to {last}"
        found.find(f"{SNAPSHOTS}/", text)
        where = "not here" if found.is_archived_new else "archived"
        found.obstacle = f"segments 1 to {last} are {where}, and it needs them"


def _look_at_events(events: Storage, found: Diagnosis) -> None:
    """Events of commands that are not in the journal."""
    names: dict[int, list[str]] = {}
    for name in events.names():
        parsed = parse_name(name)
        if parsed is not None:
            names.setdefault(parsed[0], []).append(name)
    head = found.head.sequence
    ahead: dict[int, int] = {}
    for first in sorted(names, reverse=True):
        if segment_name(first) in names[first]:
            last = last_valid(events, first)
            if last > head:
                ahead[first] = last
        if first <= head:
            break
    if not ahead:
        return
    first, last = max(ahead.items(), key=lambda item: item[1])
    text = f"has events to sequence {last}, the journal ends with {head}"
    found.lose(f"{EVENTS}/{segment_name(first)}", text, last)
    for first in sorted(names, reverse=True):
        if first > head:
            found.later_actions.extend(SetAside(EVENTS, name) for name in sorted(names[first]))
        elif first in ahead:
            indexes = [name for name in names[first] if not name.endswith(EVENTS_SUFFIX)]
            found.later_actions.extend(SetAside(EVENTS, name) for name in indexes)
            end = _events_end(events, first, head)
            found.later_actions.append(Cut(EVENTS, segment_name(first), b"", end, end))


def _events_end(events: Storage, first: int, head_sequence: int | None = None) -> int:
    """Where the last good record ends that belongs to the journal, or that there is."""
    end = SEGMENT_HEADER_SIZE
    for header, content in good_records(events, first):
        if head_sequence is not None and header.last_sequence > head_sequence:
            break
        end += RECORD_HEADER_SIZE + len(content)
    return end


def _look_behind_indexes(
    events: Storage, found: Diagnosis, starts: Sequence[SnapshotHead], is_all_here: bool
) -> None:
    """Full segments that are not what their index says, and indexes that are none.

    A start makes what is taken out anew if it reads the records: all of them, or those behind one
    of `starts`. Else it stays: without it no start might be possible.
    """
    names = set(events.names())
    firsts = [parsed[0] for parsed in map(parse_name, names) if parsed is not None]
    firsts = sorted(first for first in set(firsts) if segment_name(first) in names)
    touched = {action.name for action in found.later_actions if action.folder == EVENTS}
    missing_count = sum(index_name(first) not in names for first in firsts[:-1])
    for first in firsts:
        name, index = segment_name(first), index_name(first)
        if name in touched or index not in names or not _is_damaged(events, first):
            continue
        if _is_only_index(events, first) and (is_all_here or missing_count < WALKS_MAX):
            missing_count += 1
            text = "the index is damaged; once it is taken out, a start makes it anew"
            found.notes.append(Finding(f"{EVENTS}/{index}", text))
            found.event_actions.append(SetAside(EVENTS, index))
        elif is_all_here or any(start.events_segment < first for start in starts):
            text = "is not what its index says; once both are taken out, a start makes them anew"
            found.notes.append(Finding(f"{EVENTS}/{name}", text))
            # First the segment: an index alone is nothing, and is removed by a start.
            found.event_actions.extend(SetAside(EVENTS, one) for one in (name, index))
        else:
            why = "needs the whole journal; restore first what was archived or is damaged"
            text = f"is not what its index says; to make it anew a start {why}"
            found.notes.append(Finding(f"{EVENTS}/{name}", text))


def _is_damaged(events: Storage, first: int) -> bool:
    """Whether a full segment and its index do not fit each other."""
    with closing(events.open(index_name(first))) as file:
        content = file.read(0, file.size())
    try:
        return content != build_index(events, first)
    except ValueError:
        return True


def _is_only_index(events: Storage, first: int) -> bool:
    """Of those that do not fit: whether the records are good, and the index is none."""
    with closing(events.open(index_name(first))) as file:
        is_index = decode_index(file.read(0, file.size())) is not None
    with closing(events.open(segment_name(first))) as file:
        size = file.size()
    return not is_index and _events_end(events, first) == size


def _look_at_marker(commands: Storage, found: Diagnosis) -> None:
    if MARKER_NAME not in commands.names():
        return
    marker, place = read_marker(commands), f"{COMMANDS}/{MARKER_NAME}"
    if marker == Marker(found.head.sequence, found.head.hash):
        return
    if marker is None:
        found.find(place, "it is damaged")
    elif marker.sequence > found.head.sequence:
        text = f"the venue stopped at sequence {marker.sequence}, the journal ends with "
        found.lose(place, f"{text}{found.head.sequence}", marker.sequence)
    else:
        found.find(place, f"it is of sequence {marker.sequence}, and of another record")
    found.later_actions.append(SetAside(COMMANDS, MARKER_NAME))


def _choose_term(commands: Storage, found: Diagnosis, heads: Sequence[SnapshotHead]) -> None:
    noted = 0
    is_damaged = False
    try:
        if TERM_NAME in commands.names():
            noted = decode_term(read_text(commands, TERM_NAME))
    except JournalDamaged as error:
        found.find(f"{COMMANDS}/{TERM_NAME}", error.defect)
        is_damaged = True
    if found.is_lossy or is_damaged:
        known = [found.head.term, noted, found.remnant_term, *(head.term for head in heads)]
        found.term = max(known) + 1
