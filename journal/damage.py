"""What is wrong with a journal, how much of it can be kept, and what is lost then. Changes nothing.

The chain is followed from its beginning (`walk.py`), and where it breaks, from where a start from
the newest snapshot would follow it: damage before that hinders no start. Then the clean-stop
marker, events/ and the snapshots are asked what they have seen beyond. FORMAT.md, section 13.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing

from journal.copies import storage_errors
from journal.errors import JournalDamaged, SnapshotDamaged
from journal.event_format import RECORD_HEADER_SIZE, SEGMENT_HEADER_SIZE, parse_name, segment_name
from journal.event_format import SEGMENT_SUFFIX as EVENTS_SUFFIX
from journal.event_proof import events_reach, good_records, last_valid
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
from journal.manifest import MARKER_NAME, TERM_NAME, Marker, decode_term, read_text
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
        whole = _examine(folders, snapshots, None)
        if whole.is_sound:
            return whole
        for base in snapshots.usable:
            found = _examine(folders, snapshots, base)
            if found.head.sequence >= base.sequence:
                # The newest snapshot that stays: an older one would not lead further.
                break
        else:
            return whole
    if not found.is_sound and found.head.sequence <= whole.head.sequence:
        return whole
    # What only the whole history needs does not hinder a start.
    for finding in whole.findings:
        if finding not in found.findings and finding.place.startswith(f"{COMMANDS}/"):
            text = f"{finding.text}; the snapshot of sequence {base.sequence} is behind it"
            found.notes.append(Finding(finding.place, text))
    return found


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
            if folders.events is None or not events_reach(folders.events, head):
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
    if found.findings and not (found.kept and found.head.sequence):
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
    if last and not any(other.commands_segment > last for other in starts):
        text = f"none that the journal could start from without the segments 1 to {last}"
        found.find(f"{SNAPSHOTS}/", text)
        found.obstacle = f"segments 1 to {last} are archived, and it needs them"


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


def _events_end(events: Storage, first: int, head_sequence: int) -> int:
    """Where the last record ends that belongs to the journal."""
    end = SEGMENT_HEADER_SIZE
    for header, content in good_records(events, first):
        if header.last_sequence > head_sequence:
            break
        end += RECORD_HEADER_SIZE + len(content)
    return end


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
