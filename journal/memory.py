"""A folder in memory that forgets at a power loss what was not synced, for simulator and tests.

Each file has its current content, as every process sees it, and a list of what was overwritten
since its last sync, from which the content that the disk has can be had back. At a power loss every
sector written since the last sync is, by the dice that are passed in, kept, dropped (what the disk
has), zeroed or torn, independently of the others; the size follows the sectors that are kept. Of
the creations, renames and removals since the folder's last sync the first few are kept and the
others lost, or, where that is asked for, each is kept or lost by itself.

A sync that fails leaves the pages that it did not write marked clean, as Linux does: they are read
as they were written, a later sync does not write them, and `settle` or a power loss forgets them.
Whoever had the file open then is told by the next sync of his own, once; who opens it later is not.

Several processes have one folder: each has it through `attach`, and dies alone with `detach`.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from itertools import accumulate
from random import Random
from typing import Final, NamedTuple

from journal.errors import JournalHeld

_SECTOR_SIZE: Final = 512
_KEPT, _DROPPED, _ZEROED, _TORN = range(4)


class PowerLoss(NamedTuple):
    """How hard a power loss is: weights of what may become of an unsynced sector, and whether
    changes of the folder are lost from the last one on, or anywhere."""

    kept: int = 1
    dropped: int = 1
    zeroed: int = 1
    torn: int = 0
    """Part of it is new, the rest is old: for files that do not count on whole sectors."""
    is_folder_ordered: bool = True


DEFAULT_LOSS: Final = PowerLoss()


class _Content:
    """Content of one file, whatever its names."""

    def __init__(self, content: bytes = b"") -> None:
        self.current = bytearray(content)
        self.synced_size = len(content)  # of the file on the disk
        self.failed_sync_count = 0
        self._overwritten: list[tuple[int, int, bytes]] = []
        """(offset, end, what was there), whole sectors, since the last sync, oldest first."""
        self._forgotten: dict[int, bytes] = {}
        """What the disk has of sectors that are marked clean and were not written."""

    def write(self, offset: int, content: bytes) -> None:
        current = self.current
        end = offset + len(content)
        size = len(current)
        first = offset - offset % _SECTOR_SIZE
        last = end + -end % _SECTOR_SIZE
        self._overwritten.append((first, last, bytes(current[first:last])))
        if end > size:
            current.extend(bytes(end - size))
        current[offset:end] = content

    def sync(self) -> None:
        if self._overwritten:
            if self._forgotten:
                for sector in self._unsynced():
                    self._forgotten.pop(sector, None)
            self._overwritten.clear()
            self.synced_size = len(self.current)

    def fail_sync(self, dice: Random, loss: PowerLoss) -> None:
        """Some of what is unsynced reaches the disk, and all of it counts as synced."""
        self.failed_sync_count += 1
        disk = self._on_disk(dice, loss)
        for sector in self._unsynced():
            start = sector * _SECTOR_SIZE
            self._forgotten[sector] = bytes(disk[start : start + _SECTOR_SIZE])
        self._overwritten.clear()
        self.synced_size = len(disk)

    def settle(self) -> None:
        """Sync, and read from the disk what was only in memory."""
        self.sync()
        if self._forgotten:
            self._put_back(self.current, self._forgotten)
            del self.current[self.synced_size :]
            self._forgotten.clear()

    def lose_power(self, dice: Random, loss: PowerLoss) -> None:
        self.current = self._on_disk(dice, loss)
        self.synced_size = len(self.current)
        self._overwritten.clear()
        self._forgotten.clear()

    def flip(self, bit: int) -> None:
        self.current[bit // 8] ^= 1 << bit % 8

    def _put_back(self, target: bytearray, sectors: Mapping[int, bytes]) -> None:
        """What the disk has of these sectors, which ends where the file ends on the disk."""
        for sector, content in sectors.items():
            start = sector * _SECTOR_SIZE
            size = min(_SECTOR_SIZE, self.synced_size - start)
            if size > 0:
                target[start : start + size] = content[:size].ljust(size, b"\0")

    def _unsynced(self) -> dict[int, bytes]:
        """Sectors written since the last sync, and what the last sync made durable of them."""
        found: dict[int, bytes] = {}
        for offset, end, before in reversed(self._overwritten):
            for start in range(offset, end, _SECTOR_SIZE):
                at = start - offset
                found[start // _SECTOR_SIZE] = before[at : at + _SECTOR_SIZE]
        return found

    def _on_disk(self, dice: Random, loss: PowerLoss) -> bytearray:
        """What the disk has after a power loss now."""
        unsynced = self._unsynced()
        survived = self.current[: self.synced_size]
        self._put_back(survived, {**unsynced, **self._forgotten})
        bounds = list(accumulate(loss[:4]))
        for sector in sorted(unsynced):
            draw = dice.randrange(bounds[-1])
            outcome = sum(draw >= bound for bound in bounds)
            start = sector * _SECTOR_SIZE
            written = self.current[start : start + _SECTOR_SIZE]
            if outcome == _DROPPED or not written:
                continue
            if len(survived) < start + len(written):
                survived.extend(bytes(start + len(written) - len(survived)))
            if outcome == _TORN:
                written = written[: dice.randrange(len(written))]
            size = len(written)
            survived[start : start + size] = bytes(size) if outcome == _ZEROED else written
        return survived


class _Life:
    """Of a process, or of the machine: what it has open is gone with it."""

    def __init__(self) -> None:
        self.is_over = False

    def check(self) -> None:
        if self.is_over:
            raise OSError(errno.EBADF, "file was open at a crash")


class MemoryFile:
    """An open file; dead after a crash."""

    def __init__(
        self, content: _Content, storage: MemoryStorage, life: _Life, is_writable: bool
    ) -> None:
        self._content = content
        self._storage = storage
        self._life = life
        self._is_writable = is_writable
        self._failed_sync_count = content.failed_sync_count  # as far as this file has been told

    def size(self) -> int:
        self._life.check()
        return len(self._content.current)

    def read(self, offset: int, size: int) -> bytes:
        self._life.check()
        return bytes(self._content.current[offset : offset + size])

    def read_cached(self, offset: int, buffer: memoryview) -> int:
        content = self.read(offset, len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def write(self, offset: int, content: bytes) -> None:
        self._life.check()
        assert self._is_writable, "file is open for reading"
        growth = offset + len(content) - len(self._content.current)
        if growth > 0:
            self._storage.take_space(growth)
        self._content.write(offset, content)

    def sync_data(self) -> None:
        self._life.check()
        self._content.sync()
        self._tell_failure()

    def sync(self) -> None:
        self.sync_data()

    def settle(self) -> None:
        self._life.check()
        self._content.sync()
        self._tell_failure()
        self._content.settle()

    def fail_sync(self, dice: Random, loss: PowerLoss = DEFAULT_LOSS) -> None:
        """What a sync does that fails: see the module."""
        self._life.check()
        self._content.fail_sync(dice, loss)
        self._failed_sync_count = self._content.failed_sync_count

    def _tell_failure(self) -> None:
        """As Linux does: each file that was open when a sync failed is told once, by its own."""
        if self._failed_sync_count != self._content.failed_sync_count:
            self._failed_sync_count = self._content.failed_sync_count
            raise OSError(errno.EIO, "Input/output error: another sync of this file has failed")

    def close(self) -> None:
        """Nothing to release."""


class AttachedStorage:
    """A folder as one process has it; see `MemoryStorage.attach`."""

    def __init__(self, storage: MemoryStorage, life: _Life, is_read_only: bool) -> None:
        self._storage = storage
        self._life = life
        self._is_read_only = is_read_only

    def detach(self) -> None:
        """The process dies: its files are closed and its lock is free; nothing else changes."""
        self._life.is_over = True
        self._storage.release(self._life)

    def lock(self) -> None:
        self._life.check()
        self._storage.hold(self._life, is_shared=self._is_read_only)

    def names(self) -> list[str]:
        self._life.check()
        return self._storage.names()

    def create(self, name: str) -> MemoryFile:
        self._change()
        return self._storage.create(name, self._life)

    def open(self, name: str, *, is_writable: bool = False) -> MemoryFile:
        self._life.check()
        assert not (is_writable and self._is_read_only), "read-only"
        return self._storage.open(name, is_writable=is_writable, life=self._life)

    def rename(self, source: str, target: str) -> None:
        self._change()
        self._storage.rename(source, target)

    def remove(self, name: str) -> None:
        self._change()
        self._storage.remove(name)

    def sync_folder(self) -> None:
        self._change()
        self._storage.sync_folder()

    def free_size(self) -> int:
        self._life.check()
        return self._storage.free_size()

    def close(self) -> None:
        self._storage.release(self._life)

    def _change(self) -> None:
        self._life.check()
        assert not self._is_read_only, "read-only"


class _Change(NamedTuple):
    """Of the folder: names that go, and the name that appears with its content."""

    gone: str | None
    name: str | None
    content: _Content | None


class MemoryStorage:
    """A folder in memory. `images` are the first files, durable."""

    def __init__(self, images: Mapping[str, bytes] | None = None) -> None:
        self.free_bytes = 2**62  # until a test fills the disk; what files grow by is taken off
        self._files = {name: _Content(content) for name, content in (images or {}).items()}
        self._synced = dict(self._files)  # what the folder looked like at its last sync,
        self._changes: list[_Change] = []  # and what has changed since
        self._life = _Life()
        self._lives: list[_Life] = []  # of the processes that are attached
        self._holders: list[_Life] = []  # of the lock
        self._is_held_alone = False

    def images(self) -> dict[str, bytes]:
        """Content of all files as a reader sees it now."""
        return {name: bytes(content.current) for name, content in self._files.items()}

    def attach(self, *, is_read_only: bool = False) -> AttachedStorage:
        """The folder for one process, which may die by itself. Read-only it shares the lock."""
        life = _Life()
        self._lives.append(life)
        return AttachedStorage(self, life, is_read_only)

    def crash(self, dice: Random, loss: PowerLoss = DEFAULT_LOSS) -> None:
        """Lose power: forget what was not synced, kill all open files, release the lock."""
        self._files = self._survived(dice, loss)
        for name in sorted(self._files):
            self._files[name].lose_power(dice, loss)
        self._synced = dict(self._files)
        self._changes.clear()
        for life in (self._life, *self._lives):
            life.is_over = True
        self._life = _Life()
        self._lives.clear()
        self._holders.clear()

    def flip(self, name: str, bit: int) -> None:
        """Flip one bit of a file, counted from its beginning."""
        self._find(name).flip(bit)

    def put(self, name: str, content: bytes) -> None:
        """Something else on the machine makes or replaces a file, durably."""
        self._files[name] = self._synced[name] = _Content(content)

    def lock(self) -> None:
        self.hold(self._life, is_shared=False)

    def hold(self, life: _Life, is_shared: bool) -> None:
        """The lock, for one of the processes."""
        if self._holders and (self._is_held_alone or not is_shared):
            raise JournalHeld("the folder in memory")
        self._holders.append(life)
        self._is_held_alone = not is_shared

    def release(self, life: _Life) -> None:
        """Give the lock back, if this process has it."""
        if life in self._holders:
            self._holders.remove(life)

    def names(self) -> list[str]:
        return sorted(self._files)

    def create(self, name: str, life: _Life | None = None) -> MemoryFile:
        if name in self._files:
            raise FileExistsError(errno.EEXIST, "file exists", name)
        content = self._files[name] = _Content()
        self._changes.append(_Change(None, name, content))
        return MemoryFile(content, self, life or self._life, is_writable=True)

    def open(
        self, name: str, *, is_writable: bool = False, life: _Life | None = None
    ) -> MemoryFile:
        return MemoryFile(self._find(name), self, life or self._life, is_writable)

    def rename(self, source: str, target: str) -> None:
        content = self._find(source)
        del self._files[source]
        self._files[target] = content
        self._changes.append(_Change(source, target, content))

    def remove(self, name: str) -> None:
        self.free_bytes += len(self._find(name).current)
        del self._files[name]
        self._changes.append(_Change(name, None, None))

    def sync_folder(self) -> None:
        if self._changes:
            self._synced = dict(self._files)
            self._changes.clear()

    def free_size(self) -> int:
        return self.free_bytes

    def take_space(self, size: int) -> None:
        """A file grows. Raises OSError when the disk is full."""
        if size > self.free_bytes:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.free_bytes -= size

    def close(self) -> None:
        self.release(self._life)

    def _survived(self, dice: Random, loss: PowerLoss) -> dict[str, _Content]:
        """The names that the disk has after a power loss now."""
        files = dict(self._synced)
        if loss.is_folder_ordered:
            kept = self._changes[: dice.randrange(len(self._changes) + 1)]
        else:
            kept = [change for change in self._changes if dice.randrange(2)]
        for gone, name, content in kept:
            if gone is not None:
                files.pop(gone, None)
            if name is not None and content is not None:
                files[name] = content
        return files

    def _find(self, name: str) -> _Content:
        content = self._files.get(name)
        if content is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", name)
        return content
