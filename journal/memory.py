"""A folder in memory that forgets at a crash what was not synced, for simulator and tests.

Each file has a durable and a current content. At a crash every sector written since the file's last
sync is, by the dice that are passed in, kept, dropped (its durable content) or zeroed,
independently of the others; of the creations, renames and removals since the folder's last sync the
first few are kept and the others lost.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from random import Random

from journal.errors import JournalHeld

_SECTOR_SIZE = 512


class _Content:
    """Content of one file, whatever its names."""

    def __init__(self, content: bytes = b"") -> None:
        self.durable = bytes(content)
        self.current = bytearray(content)
        self.unsynced: set[int] = set()  # indexes of sectors

    def write(self, offset: int, content: bytes) -> None:
        end = offset + len(content)
        if end > len(self.current):
            self.current.extend(bytes(end - len(self.current)))
        self.current[offset:end] = content
        self.unsynced.update(range(offset // _SECTOR_SIZE, -(-end // _SECTOR_SIZE)))

    def sync(self) -> None:
        if self.unsynced:
            self.durable = bytes(self.current)
            self.unsynced.clear()

    def crash(self, dice: Random) -> None:
        survived = bytearray(self.durable)
        for index in sorted(self.unsynced):
            start, end = index * _SECTOR_SIZE, (index + 1) * _SECTOR_SIZE
            outcome = dice.randrange(3)
            if outcome == 0:
                continue
            sector = self.current[start:end]
            if len(survived) < start + len(sector):
                survived.extend(bytes(start + len(sector) - len(survived)))
            survived[start : start + len(sector)] = sector if outcome == 1 else bytes(len(sector))
        self.durable = bytes(survived)
        self.current = survived
        self.unsynced.clear()


class MemoryFile:
    """An open file; dead after a crash."""

    def __init__(self, content: _Content, storage: MemoryStorage, is_writable: bool) -> None:
        self._content = content
        self._storage = storage
        self._crash_count = storage.crash_count
        self._is_writable = is_writable

    def _check(self) -> None:
        if self._crash_count != self._storage.crash_count:
            raise OSError(errno.EBADF, "file was open at a crash")

    def size(self) -> int:
        self._check()
        return len(self._content.current)

    def read(self, offset: int, size: int) -> bytes:
        self._check()
        return bytes(self._content.current[offset : offset + size])

    def read_cached(self, offset: int, buffer: memoryview) -> int:
        content = self.read(offset, len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def write(self, offset: int, content: bytes) -> None:
        self._check()
        assert self._is_writable, "file is open for reading"
        self._content.write(offset, content)

    def sync_data(self) -> None:
        self._check()
        self._content.sync()

    def sync(self) -> None:
        self.sync_data()

    def settle(self) -> None:
        self.sync_data()

    def close(self) -> None:
        """Nothing to release."""


class MemoryStorage:
    """A folder in memory. `images` are the first files, durable."""

    def __init__(self, images: Mapping[str, bytes] | None = None) -> None:
        self.crash_count = 0
        self.free_bytes = 2**62  # until a test fills the disk
        self._is_locked = False
        files = {name: _Content(content) for name, content in (images or {}).items()}
        # What the folder looked like at its last sync, then after each change since.
        self._versions: list[dict[str, _Content]] = [files]

    def images(self) -> dict[str, bytes]:
        """Content of all files as a reader sees it now."""
        return {name: bytes(content.current) for name, content in self._files().items()}

    def crash(self, dice: Random) -> None:
        """Lose power: forget what was not synced, kill all open files, release the lock."""
        files = self._versions[dice.randrange(len(self._versions))]
        for name in sorted(files):
            files[name].crash(dice)
        self._versions = [files]
        self._is_locked = False
        self.crash_count += 1

    def lock(self) -> None:
        if self._is_locked:
            raise JournalHeld("the folder in memory")
        self._is_locked = True

    def names(self) -> list[str]:
        return sorted(self._files())

    def create(self, name: str) -> MemoryFile:
        if name in self._files():
            raise FileExistsError(errno.EEXIST, "file exists", name)
        content = _Content()
        self._change()[name] = content
        return MemoryFile(content, self, is_writable=True)

    def open(self, name: str, *, is_writable: bool = False) -> MemoryFile:
        return MemoryFile(self._find(name), self, is_writable)

    def rename(self, source: str, target: str) -> None:
        content = self._find(source)
        files = self._change()
        del files[source]
        files[target] = content

    def remove(self, name: str) -> None:
        self._find(name)
        del self._change()[name]

    def sync_folder(self) -> None:
        self._versions = [self._files()]

    def free_size(self) -> int:
        return self.free_bytes

    def close(self) -> None:
        self._is_locked = False

    def _files(self) -> dict[str, _Content]:
        return self._versions[-1]

    def _change(self) -> dict[str, _Content]:
        self._versions.append(dict(self._files()))
        return self._versions[-1]

    def _find(self, name: str) -> _Content:
        content = self._files().get(name)
        if content is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", name)
        return content
