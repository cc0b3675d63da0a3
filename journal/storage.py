"""What the journal asks of a file system, and the real one.

The interface is small on purpose: `memory.py` and `faulty.py` implement it too, so the same journal
runs on a simulated disk. Every method raises OSError as it comes; nothing is ever retried here or
above. One `Storage` is one folder; names are plain file names in it.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterable
from contextlib import closing
from typing import Protocol

from journal.errors import JournalHeld

LOCK_NAME = "lock"
TEMPORARY_SUFFIX = ".tmp"


class File(Protocol):
    """An open file. Offsets and sizes in bytes."""

    def size(self) -> int: ...

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`, fewer only at the end of the file."""

    def read_cached(self, offset: int, buffer: memoryview) -> int:
        """Fill the buffer from `offset` on without waiting for the disk; how many bytes could be
        had so. None may mean the end of the file, or bytes that only the disk has: `read` tells.
        """

    def write(self, offset: int, content: bytes) -> None:
        """Write all of `content`; durable only after a sync."""

    def sync_data(self) -> None:
        """Make the content durable, and of the metadata what reading it needs (fdatasync)."""

    def sync(self) -> None:
        """Make content and metadata durable (fsync)."""

    def settle(self) -> None:
        """Sync, then drop cached content where possible: the next read shows the disk."""

    def close(self) -> None: ...


class Storage(Protocol):
    """A folder."""

    def lock(self) -> None:
        """Hold the folder until `close`. Raises JournalHeld when another process does."""

    def names(self) -> list[str]:
        """Names of all files, sorted."""

    def create(self, name: str) -> File:
        """A new empty file, open for writing. Raises FileExistsError."""

    def open(self, name: str, *, is_writable: bool = False) -> File: ...

    def rename(self, source: str, target: str) -> None:
        """Rename; replaces `target`. Durable only after `sync_folder`."""

    def remove(self, name: str) -> None: ...

    def sync_folder(self) -> None:
        """Make creations, renames and removals durable."""

    def free_size(self) -> int:
        """Bytes that the folder's disk still takes."""

    def close(self) -> None:
        """Release the lock. Files that are open stay usable."""


def write_durably(storage: Storage, name: str, chunks: Iterable[bytes]) -> None:
    """Create or replace `name` atomically: write aside, sync, rename, sync the folder."""
    aside = name + TEMPORARY_SUFFIX
    with closing(storage.create(aside)) as file:
        offset = 0
        for chunk in chunks:
            file.write(offset, chunk)
            offset += len(chunk)
        file.sync()
    storage.rename(aside, name)
    storage.sync_folder()


def free_name(storage: Storage, stem: str) -> str:
    """`stem`, with the first number from 1 on that is not in use."""
    names = set(storage.names())
    copy = 1
    while (name := f"{stem}-{copy}.bin") in names:
        copy += 1
    return name


class FolderFile:
    """File of a real folder."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def read(self, offset: int, size: int) -> bytes:
        content = os.pread(self._descriptor, size, offset)
        if len(content) == size or not content:
            return content
        chunks = [content]
        have = len(content)
        while have < size:
            content = os.pread(self._descriptor, size - have, offset + have)
            if not content:
                break
            chunks.append(content)
            have += len(content)
        return b"".join(chunks)

    def read_cached(self, offset: int, buffer: memoryview) -> int:
        try:
            return os.preadv(self._descriptor, [buffer], offset, os.RWF_NOWAIT)
        except OSError as error:
            # The page is not in memory, or the file system cannot say.
            if error.errno in (errno.EAGAIN, errno.EOPNOTSUPP):
                return 0
            raise

    def write(self, offset: int, content: bytes) -> None:
        written = os.pwrite(self._descriptor, content, offset)
        while written < len(content):
            # A short write is no error by itself: the rest either goes through or says why not.
            count = os.pwrite(self._descriptor, memoryview(content)[written:], offset + written)
            if count == 0:
                raise OSError(errno.EIO, "nothing written, no error reported")
            written += count

    def sync_data(self) -> None:
        os.fdatasync(self._descriptor)

    def sync(self) -> None:
        os.fsync(self._descriptor)

    def settle(self) -> None:
        os.fsync(self._descriptor)
        os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Idempotent: after a failure nobody needs to know how far things went."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class FolderStorage:
    """A real folder, made if missing (its parent must exist). Read-only, it changes nothing."""

    def __init__(self, path: str | os.PathLike[str], *, is_read_only: bool = False) -> None:
        self._path = os.fspath(path)
        self._is_read_only = is_read_only
        self._lock: int | None = None
        if not is_read_only and not os.path.isdir(self._path):
            os.mkdir(self._path, 0o700)
            _sync_folder(os.path.dirname(os.path.abspath(self._path)))

    def lock(self) -> None:
        """Exclusive; shared when read-only, and then only if there is a lock file."""
        assert self._lock is None, "the folder is locked once"
        path = os.path.join(self._path, LOCK_NAME)
        if self._is_read_only:
            if not os.path.exists(path):
                return
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            operation = fcntl.LOCK_SH
        else:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            operation = fcntl.LOCK_EX
        try:
            fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise JournalHeld(self._path) from None
        except OSError:
            os.close(descriptor)
            raise
        self._lock = descriptor

    def names(self) -> list[str]:
        return sorted(os.listdir(self._path))

    def create(self, name: str) -> FolderFile:
        assert not self._is_read_only, "read-only"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        return FolderFile(os.open(os.path.join(self._path, name), flags, 0o600))

    def open(self, name: str, *, is_writable: bool = False) -> FolderFile:
        assert not (is_writable and self._is_read_only), "read-only"
        flags = (os.O_RDWR if is_writable else os.O_RDONLY) | os.O_CLOEXEC
        return FolderFile(os.open(os.path.join(self._path, name), flags))

    def rename(self, source: str, target: str) -> None:
        assert not self._is_read_only, "read-only"
        os.rename(os.path.join(self._path, source), os.path.join(self._path, target))

    def remove(self, name: str) -> None:
        assert not self._is_read_only, "read-only"
        os.remove(os.path.join(self._path, name))

    def sync_folder(self) -> None:
        assert not self._is_read_only, "read-only"
        _sync_folder(self._path)

    def free_size(self) -> int:
        usage = os.statvfs(self._path)
        return usage.f_bavail * usage.f_frsize

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _sync_folder(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
