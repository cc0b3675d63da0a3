"""`exchange journal archive` and `restore`: what keeps a journal small, and brings it back.

What they move and copy is in `journal.archive`; here is what an operator types and reads. `archive`
works beside a running venue.
"""

import argparse
import os
from contextlib import ExitStack, closing, suppress
from pathlib import Path

from exchange.config import CONFIG_NAME
from journal import FolderStorage, JournalDamaged, SnapshotFolder, SnapshotHead
from journal.archive import (
    archivable_count,
    archive_lines,
    archive_segments,
    restore_segments,
)
from journal.copies import storage_errors
from journal.damage import diagnose
from journal.findings import COMMANDS
from journal.snapshot import KEPT_MIN
from tools.errors import UsageError
from tools.journal_folders import (
    DATA_NAME,
    VenueFolders,
    commands_folder,
    folder_errors,
    hold,
    lock_stopped,
    open_folders,
    refuse_root,
)
from tools.journal_snapshots import NICENESS, can_restore, check_snapshot

__all__ = ["run_archive", "run_restore"]


def run_archive(arguments: argparse.Namespace) -> int:
    """Move what no start needs."""
    folders = VenueFolders(commands_folder(arguments.directory))
    refuse_root(folders.commands)
    target: Path = arguments.to
    _check_apart(folders, target)
    if not target.parent.is_dir():
        raise UsageError(f"{target.parent}: no such folder; is the archive's disk mounted?")
    os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
    with folder_errors(), ExitStack() as held:
        held.enter_context(hold(folders.commands))
        archive = FolderStorage(target)
        held.enter_context(hold(target))
        commands = FolderStorage(folders.commands)
        starts = _find_starts(folders)
        count = archivable_count(commands, starts, arguments.keep)
        moved_count = archive_segments(commands, archive, count, _say)
    if moved_count:
        print(f"{moved_count} segments moved to {target}")
    elif len(starts) < KEPT_MIN:
        found = f"{len(starts)} of the {KEPT_MIN} good snapshots that an archiving needs"
        print(f"nothing moved: there are {found}; see `exchange journal snapshots`")
    else:
        print("nothing moved: the two newest snapshots, or --keep, need every segment that is here")
    return 0


def _check_apart(folders: VenueFolders, target: Path) -> None:
    """An archive in the venue's folder would be taken for its journal. Raises UsageError."""
    data, archive = folders.commands.resolve().parent, target.resolve()
    own = data.parent if (data.parent / CONFIG_NAME).is_file() else data
    if archive in (own, *own.parents) or own in archive.parents:
        raise UsageError(f"{target}: the archive and the folder of the venue are to be apart")


def _find_starts(folders: VenueFolders) -> list[SnapshotHead]:
    """The two newest snapshots that a venue can start from."""
    if not folders.snapshots.is_dir():
        return []
    snapshots = SnapshotFolder(FolderStorage(folders.snapshots, is_read_only=True))
    starts: list[SnapshotHead] = []
    with storage_errors("look at the snapshots"):
        heads = snapshots.heads()
    for head in heads:
        if len(starts) < KEPT_MIN:
            defect = check_snapshot(folders, snapshots, head).defect
            _say(f"snapshot {head.sequence}: {defect or 'good'}")
            if not defect:
                starts.append(head)
    return starts


def run_restore(arguments: argparse.Namespace) -> int:
    """Bring segments back."""
    source: Path = arguments.archive
    if not source.is_dir():
        raise UsageError(f"{source}: no such folder; is the archive's disk mounted?")
    folders = VenueFolders(_restore_target(arguments.directory))
    refuse_root(folders.commands)
    if folders.commands.exists() and source.samefile(folders.commands):
        raise UsageError(f"{source}: archive and journal are the same folder")
    with folder_errors(), ExitStack() as held:
        archive_lines(FolderStorage(source, is_read_only=True))  # Before anything is made.
        folders.commands.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        commands = held.enter_context(closing(FolderStorage(folders.commands)))
        held.enter_context(hold(folders.commands))
        held.enter_context(hold(source))
        lock_stopped(commands, "exchange")
        restored = restore_segments(FolderStorage(source), commands, _say)
        found = diagnose(open_folders(folders, commands), can_restore)
    print(f"{restored.segment_count} segments restored to {folders.commands}")
    if restored.head is not None:
        print(
            f"the journal ends where the archive does, at sequence {restored.head.sequence}: "
            "whatever came after it is lost\n"
            f"the next start begins term {restored.term}, so that clients and consumers notice"
        )
    for note in found.notes:
        print(f"{note.place}: {note.text}")
    if not found.is_sound:
        print(f"it is damaged: next, exchange journal repair {arguments.directory}")
        return JournalDamaged.exit_code
    print(f"the journal is sound to sequence {found.head.sequence}; start the venue")
    return 0


def _restore_target(directory: Path) -> Path:
    """The folder of the segments, which may have to be made. Raises UsageError."""
    with suppress(UsageError):
        return commands_folder(directory)
    if directory.name == COMMANDS:
        return directory
    if (directory / COMMANDS).is_dir():
        return directory / COMMANDS
    is_venue = (directory / DATA_NAME).is_dir() or (directory / CONFIG_NAME).is_file()
    if directory.exists() and not is_venue and any(directory.iterdir()):
        raise UsageError(f"{directory}: not the folder of a venue, and not empty")
    return directory / DATA_NAME / COMMANDS


def _say(line: str) -> None:
    print(line, flush=True)
