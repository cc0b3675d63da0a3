"""A wrapper around any storage that counts operations by kind and fails the ones it is told to.

Kinds: `create`, `open`, `read`, `write`, `sync` (of a file, either way), `rename`, `remove`,
`sync_folder`, and `change`, which counts all of them but `open` and `read`. A count starts at 1.
A sync that fails over a folder in memory does there what Linux does, when there are dice for it.
Counting is not thread-safe: use it with `run_inline`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Literal, Protocol, TypeVar, runtime_checkable

from journal.storage import File, Storage

Kind = Literal[
    "create", "open", "read", "write", "sync", "rename", "remove", "sync_folder", "change"
]
_READING: frozenset[Kind] = frozenset({"open", "read"})
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Fault:
    """Fail the operation number `at` of `kind`, and all later ones of it if persistent.

    `is_applied` lets the operation happen before the error is raised: a disk may write, then fail.
    """

    kind: Kind
    at: int
    error: int  # an errno, such as errno.EIO
    is_persistent: bool = False
    is_applied: bool = False
    then: Callable[[], None] | None = None
    """Called before the error is raised; the process may die there."""


@runtime_checkable
class FailingSync(Protocol):
    """A file, such as one in memory, that knows what a failed sync leaves behind."""

    def fail_sync(self, dice: Random) -> None: ...


class FaultyFile:
    """An open file of a `FaultyStorage`."""

    def __init__(self, file: File, storage: FaultyStorage) -> None:
        self._file = file
        self._storage = storage

    def size(self) -> int:
        return self._file.size()

    def read(self, offset: int, size: int) -> bytes:
        return self._storage.step("read", lambda: self._file.read(offset, size))

    def read_cached(self, offset: int, buffer: memoryview) -> int:
        return self._storage.step("read", lambda: self._file.read_cached(offset, buffer))

    def write(self, offset: int, content: bytes) -> None:
        self._storage.step("write", lambda: self._file.write(offset, content))

    def sync_data(self) -> None:
        self._storage.step("sync", self._file.sync_data, self._fail_sync)

    def sync(self) -> None:
        self._storage.step("sync", self._file.sync, self._fail_sync)

    def settle(self) -> None:
        self._storage.step("sync", self._file.settle, self._fail_sync)

    def close(self) -> None:
        self._file.close()

    def _fail_sync(self) -> None:
        dice = self._storage.sync_dice
        if dice is not None and isinstance(self._file, FailingSync):
            self._file.fail_sync(dice)


class FaultyStorage:
    """`storage` with faults. `counts` are the operations asked for so far, by kind."""

    def __init__(
        self, storage: Storage, faults: Sequence[Fault] = (), sync_dice: Random | None = None
    ) -> None:
        self.counts: Counter[Kind] = Counter()
        self.faults = tuple(faults)
        self.hits: list[Fault] = []  # faults that have come true, once each time
        self.sync_dice = sync_dice
        """For what a failed sync leaves behind; None: what is unsynced stays unsynced."""
        self._storage = storage

    def add(self, fault: Fault) -> None:
        """One more fault; its `at` counts from now on."""
        self.faults = (*self.faults, replace(fault, at=self.counts[fault.kind] + fault.at))

    def step(
        self,
        kind: Kind,
        action: Callable[[], _Result],
        failed: Callable[[], None] | None = None,
    ) -> _Result:
        """Count one operation; do it, or fail it, and let `failed` leave its traces then."""
        kinds: tuple[Kind, ...] = (kind,) if kind in _READING else (kind, "change")
        for counted in kinds:
            self.counts[counted] += 1
        for fault in self.faults:
            count = self.counts[fault.kind]
            is_hit = count == fault.at or (fault.is_persistent and count > fault.at)
            if fault.kind in kinds and is_hit:
                self.hits.append(fault)
                if fault.is_applied:
                    action()
                elif failed is not None:
                    failed()
                if fault.then is not None:
                    fault.then()
                raise OSError(fault.error, os.strerror(fault.error))
        return action()

    def lock(self) -> None:
        self._storage.lock()

    def names(self) -> list[str]:
        return self._storage.names()

    def create(self, name: str) -> FaultyFile:
        return FaultyFile(self.step("create", lambda: self._storage.create(name)), self)

    def open(self, name: str, *, is_writable: bool = False) -> FaultyFile:
        file = self.step("open", lambda: self._storage.open(name, is_writable=is_writable))
        return FaultyFile(file, self)

    def rename(self, source: str, target: str) -> None:
        self.step("rename", lambda: self._storage.rename(source, target))

    def remove(self, name: str) -> None:
        self.step("remove", lambda: self._storage.remove(name))

    def sync_folder(self) -> None:
        self.step("sync_folder", self._storage.sync_folder)

    def free_size(self) -> int:
        return self._storage.free_size()

    def close(self) -> None:
        self._storage.close()
