"""Where the folders of a venue are, and how its tools keep out of each other's way.

A venue holds the lock of commands/ as long as it runs. The tools that change files hold the folder
itself too (`hold`), so that an archiving beside a running venue, which cannot have that lock, never
meets a repair. Whoever is root works as the owner of the folder, or not at all: a file of root's in
there would keep the venue from starting.
"""

import fcntl
import os
import pwd
import shlex
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from journal import FolderStorage, JournalFailed, JournalHeld
from journal.findings import COMMANDS, EVENTS, SNAPSHOTS, Folders
from journal.manifest import ARCHIVED_NAME, MANIFEST_NAME
from journal.segment import SEGMENT_SUFFIX
from journal.storage import Storage
from journal.walk import refuse_archive
from tools.errors import HeldError, UsageError

__all__ = [
    "DATA_NAME",
    "VenueFolders",
    "commands_folder",
    "folder_errors",
    "hold",
    "lock_stopped",
    "open_folders",
    "open_journal",
    "refuse_root",
]

DATA_NAME: Final = "data"
FEED_NAME: Final = "feed"


@dataclass(frozen=True)
class VenueFolders:
    """The folders beside each other."""

    commands: Path

    @property
    def events(self) -> Path:
        return self.commands.parent / EVENTS

    @property
    def snapshots(self) -> Path:
        return self.commands.parent / SNAPSHOTS

    @property
    def feed(self) -> Path:
        """Locked by a feed server that runs on this machine."""
        return self.commands.parent / FEED_NAME


def commands_folder(directory: Path) -> Path:
    """The folder with the segments: `directory` itself or below it. Raises UsageError."""
    for path in (directory, directory / COMMANDS, directory / DATA_NAME / COMMANDS):
        has_text = any((path / name).is_file() for name in (MANIFEST_NAME, ARCHIVED_NAME))
        if has_text or any(path.glob(f"*{SEGMENT_SUFFIX}")):
            return path
    if not directory.exists():
        raise UsageError(f"{directory}: no such folder")
    raise UsageError(
        f"{directory}: no journal here; `exchange init` makes a new one, and `exchange journal "
        "restore` one of an archive"
    )


@contextmanager
def open_journal(directory: Path) -> Iterator[FolderStorage]:
    """The journal's folder, locked against a venue that would write to it."""
    path = commands_folder(directory)
    try:
        with closing(FolderStorage(path, is_read_only=True)) as storage:
            storage.lock()
            yield storage
    except PermissionError as error:
        raise UsageError(f"{path}: {error.strerror}") from None


def open_folders(folders: VenueFolders, commands: Storage) -> Folders:
    """For a diagnosis."""
    others = [
        FolderStorage(path) if path.is_dir() else None
        for path in (folders.events, folders.snapshots)
    ]
    return Folders(commands, *others)


def lock_stopped(storage: Storage, service: str) -> None:
    """Lock a folder that only one process may have open. Raises HeldError with what to type, and
    OperationRefused for an archive, which is not to get a lock."""
    refuse_archive(storage)
    try:
        storage.lock()
    except JournalHeld as error:
        raise HeldError(f"{error}; stop it first: systemctl stop {service}") from None


@contextmanager
def folder_errors() -> Iterator[None]:
    """Turn what the system says into the code of the process: rights are the user's matter (64),
    everything else is the disk's (74)."""
    try:
        yield
    except PermissionError as error:
        raise UsageError(f"{error.filename}: {error.strerror}") from None
    except OSError as error:
        raise JournalFailed(f"open {error.filename}", error.strerror) from error


@contextmanager
def hold(path: Path) -> Iterator[None]:
    """Keep other tools that change files away from a folder. Raises JournalHeld."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise JournalHeld(str(path)) from None
    finally:
        os.close(descriptor)


def refuse_root(path: Path) -> None:
    """Raises UsageError, with the command to type, for root in a folder of somebody else's; of one
    that is to be made, the nearest above it counts."""
    while not path.exists():
        path = path.parent
    owner = path.stat().st_uid
    if os.geteuid() == 0 and owner != 0:
        try:
            name = pwd.getpwuid(owner).pw_name
        except KeyError:
            name = f"'#{owner}'"
        command = shlex.join(sys.argv)
        raise UsageError(f"{path} belongs to {name}: runuser -u {name} -- {command}")
