"""The operator's archive: segments are moved away while the venue runs, and brought back.

What `exchange journal archive` and `restore` do to the disks, in a process that may die at any
operation. At the end the journal that is made of the archive and of what is left has every record.
"""

from typing import Final

from exchange.core.replay import RestoreError, restore_engine
from journal import JournalError, SnapshotFolder, SnapshotHead, Storage, events_reach, read_only
from journal.archive import archivable_count, archive_segments, restore_segments
from journal.manifest import ARCHIVED_NAME
from journal.memory import MemoryStorage
from tests.simulation.disks import Disks, Violation
from tests.simulation.truth import Truth, check_folder
from tests.simulation.units import Rules, Unit
from tests.simulation.world import Process, S

__all__ = ["ArchiveProgram", "check_journal", "is_archived", "movable_count", "put_back"]

FAILED: Final = 1
NO_RESTART: Final = Rules(frozenset(range(256)), S, S, 1)
"""A person has started it, and starts it again."""


class ArchiveProgram:
    """`exchange journal archive`: everything that no start needs is moved."""

    def __init__(self) -> None:
        self.name = "archive"
        self.rules = NO_RESTART
        self.moved_count = 0

    async def main(self, unit: Unit, process: Process) -> int:
        disk = unit.machine.disk
        commands, archive = disk.open(process, "commands"), disk.open(process, "archive")
        snapshots = disk.open(process, "snapshots", is_read_only=True)
        events = disk.open(process, "events", is_read_only=True)
        try:
            starts = _find_starts(snapshots, events)
            count = archivable_count(commands, starts, 0)
            self.moved_count += archive_segments(commands, archive, count, lambda line: None)
        except (JournalError, OSError) as error:
            process.world.note(repr(process), "failed", error)
            return FAILED
        return 0


def _find_starts(snapshots: Storage, events: Storage) -> list[SnapshotHead]:
    """Those that a venue can start from, newest first."""
    folder = SnapshotFolder(snapshots)
    starts = []
    for head in folder.heads():
        try:
            restore_engine(head, folder.read(head))
        except (JournalError, RestoreError):
            continue
        if events_reach(events, head):
            starts.append(head)
    return starts


def movable_count(disks: Disks) -> int:
    """How many segments an archiving would move now."""
    try:
        starts = _find_starts(disks.folder("snapshots"), disks.folder("events"))
        return archivable_count(disks.folder("commands"), starts, 0)
    except JournalError:
        return 0


def is_archived(commands: MemoryStorage) -> bool:
    """Whether segments of the journal may be missing."""
    return ARCHIVED_NAME in commands.names()


def put_back(disks: Disks) -> None:
    """`exchange journal restore`; the venue does not run."""
    restore_segments(disks.folder("archive"), disks.folder("commands"), lambda line: None)


def check_journal(disks: Disks, truth: Truth) -> None:
    """The journal has every durable record, here or in the archive."""
    commands = disks.folder("commands")
    if is_archived(commands):
        _check_archived(disks, truth)
    else:
        check_folder(commands, truth)


def _check_archived(disks: Disks, truth: Truth) -> None:
    """What is left begins where the archive ends, and both together are the whole journal."""
    commands = disks.folder("commands")
    records = [*read_only(commands, is_partial=True).records()]
    expected = [record.hash for record in truth.records]
    if [record.head.hash for record in records] != expected[-len(records) :]:
        raise Violation("what was not archived has other records")
    copy = MemoryStorage(commands.images())
    archive = MemoryStorage(disks.folder("archive").images())
    restore_segments(archive, copy, lambda line: None)
    check_folder(copy, truth)
