"""What a diagnosis of a journal finds, and what a repair does about it. FORMAT.md, section 13."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from journal.manifest import NOTHING_ARCHIVED, Archived, Sealed
from journal.record import START, Head
from journal.segment import Segment
from journal.snapshot import SnapshotHead
from journal.storage import File, Storage

Patch = tuple[int, bytes]
"""An offset, and what belongs there."""

COMMANDS: Final = "commands"
EVENTS: Final = "events"
SNAPSHOTS: Final = "snapshots"


@dataclass(frozen=True, slots=True)
class Folders:
    """The folders of a venue that a repair looks at. A venue may have no events/ or snapshots/."""

    commands: Storage
    events: Storage | None
    snapshots: Storage | None

    def of(self, name: str) -> Storage:
        """COMMANDS, EVENTS or SNAPSHOTS."""
        found = {COMMANDS: self.commands, EVENTS: self.events, SNAPSHOTS: self.snapshots}[name]
        assert found is not None, f"there is no {name}/"
        return found


class Finding(NamedTuple):
    """One thing that is wrong, and where."""

    place: str
    text: str


class Proof(NamedTuple):
    """Something that has seen a durable command."""

    place: str
    sequence: int


class Kept(NamedTuple):
    """A segment that stays, with its header as it must be."""

    segment: Segment
    last_sequence: int
    record_count: int
    hash: bytes
    """Of the file; nothing when it is to be written anew."""


class Cut(NamedTuple):
    """Write a file anew: this header, the old bytes up to `kept_size`, with the patches over them,
    zeros up to `size`."""

    folder: str
    name: str
    header: bytes
    kept_size: int
    size: int
    patches: tuple[Patch, ...] = ()


class SetAside(NamedTuple):
    """Take a file out of its folder."""

    folder: str
    name: str


class Remnant(NamedTuple):
    """A whole record behind what can be kept: it can be read, but not be replayed."""

    first_sequence: int
    command_count: int
    term: int
    payload: bytes


@dataclass
class Diagnosis:
    """What was found, and what a repair would do."""

    head: Head = START
    """Where the journal would end."""
    findings: list[Finding] = field(default_factory=list)
    """What hinders a start."""
    notes: list[Finding] = field(default_factory=list)
    """What does not."""
    proofs: list[Proof] = field(default_factory=list)
    """What has seen commands behind `head`."""
    remnants: list[tuple[str, int]] = field(default_factory=list)
    """Segments with records behind `head`, and from which offset on; see `read_remnants`."""
    remnant_term: int = 0
    """The highest term in these."""
    kept: list[Kept] = field(default_factory=list)
    lines: tuple[Sealed, ...] = ()
    """Of the manifest as it is."""
    archived: Archived = NOTHING_ARCHIVED
    """As it is, or as it is to be."""
    is_manifest_new: bool = False
    is_archived_new: bool = False
    segment_actions: list[Cut | SetAside] = field(default_factory=list)
    """In the order in which they are to be done, and before manifest and `archived`."""
    later_actions: list[Cut | SetAside] = field(default_factory=list)
    """After these: whatever has seen more goes last."""
    event_actions: list[SetAside] = field(default_factory=list)
    """Damaged files of events/ that a start would trust; it makes anew what is not there. In the
    order in which they are to be taken out."""
    strangers: list[SnapshotHead] = field(default_factory=list)
    """Snapshots whose record should be in what was read, and is not."""
    is_lossy: bool = False
    """Whether durable records are lost, or may be."""
    term: int = 0
    """The least term of the next start; 0: it stays as it is."""
    obstacle: str = ""
    """Why no repair is possible."""

    @property
    def is_sound(self) -> bool:
        """Whether a venue starts."""
        return not self.findings

    @property
    def is_whole(self) -> bool:
        """Whether there is nothing to repair."""
        return self.is_sound and not self.event_actions

    @property
    def lost_to(self) -> int:
        """The highest sequence that something has seen behind `head`; 0: nothing has."""
        return max((proof.sequence for proof in self.proofs), default=0)

    def find(self, place: str, text: str) -> None:
        self.findings.append(Finding(place, text))

    def lose(self, place: str, text: str, seen_sequence: int = 0) -> None:
        """A finding with which durable records are lost, or may be."""
        self.find(place, text)
        self.is_lossy = True
        self.prove(place, seen_sequence)

    def prove(self, place: str, sequence: int) -> None:
        if sequence > self.head.sequence:
            self.proofs.append(Proof(place, sequence))


def sealed_line(kept: Kept) -> Sealed:
    """The line of the manifest for a segment, once it is as it stays."""
    segment = kept.segment
    return Sealed(
        segment.number,
        segment.first_sequence,
        kept.last_sequence,
        kept.record_count,
        segment.size,
        kept.hash,
    )


class MendedFile:
    """A file as it should be: as large, with zeros where it ends too early, and with what was
    healed in its place. For reading."""

    def __init__(self, file: File, size: int, patches: Sequence[Patch] = ()) -> None:
        self._file = file
        self._size = size
        self.patches = list(patches)

    def size(self) -> int:
        return self._size

    def read(self, offset: int, size: int) -> bytes:
        wanted = max(0, min(size, self._size - offset))
        content = self._file.read(offset, wanted).ljust(wanted, b"\0")
        for at, patch in self.patches:
            begin, end = max(at, offset), min(at + len(patch), offset + wanted)
            if begin < end:
                middle = patch[begin - at : end - at]
                content = content[: begin - offset] + middle + content[end - offset :]
        return content

    def read_cached(self, offset: int, buffer: memoryview) -> int:
        del offset, buffer
        return 0  # Only the disk has it: nobody here is in a hurry.

    def write(self, offset: int, content: bytes) -> None:
        raise AssertionError(f"{len(content)} bytes at {offset}: this is for reading")

    def sync_data(self) -> None:
        """Nothing was written."""

    def sync(self) -> None:
        """Nothing was written."""

    def settle(self) -> None:
        """Nothing was written."""

    def close(self) -> None:
        self._file.close()
