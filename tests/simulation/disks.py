"""The disks of a venue's machine, and a watch over commands/ from below: which records are durable.

A record is durable when its bytes were synced in a file whose name the folder has made durable too.
That is read from what the disk is told, never from the journal's word, so it is the measure of
everything that a venue says. The watch outlives processes and power losses, as the disk does.

Every process that is started gets the folders anew, each behind a layer that can make it fail.
"""

import errno
import struct
from collections.abc import Callable
from hashlib import blake2b
from random import Random
from typing import Any, Final, NamedTuple

from journal import Storage
from journal.faulty import Fault, FaultyStorage
from journal.memory import AttachedStorage, MemoryFile, MemoryStorage, PowerLoss
from journal.storage import LOCK_NAME
from tests.simulation.world import Process

__all__ = [
    "PLENTY",
    "SECTOR_SIZE",
    "Disks",
    "DurableRecord",
    "RecordWatch",
    "Violation",
    "WatchedFile",
    "WriteCut",
]

PLENTY: Final = 2**62
"""Bytes that are left on a disk that is never full."""

PAGE_SIZE: Final = 4096
"""A process that is killed in the middle of a write has written whole pages."""
SECTOR_SIZE: Final = 512
"""Records are whole sectors; a power loss may leave any of them."""

LOSSES: Final = (
    PowerLoss(),
    *(PowerLoss(zeroed=0),) * 3,
    PowerLoss(kept=8),
    PowerLoss(dropped=8),
    PowerLoss(kept=1, dropped=0, zeroed=0),
    PowerLoss(kept=0, dropped=1, zeroed=0),
    PowerLoss(is_folder_ordered=False),
)
"""How hard a power loss may be."""

RECORD_MAGIC: Final = b"BRIERREC"
RECORD_HEADER: Final = struct.Struct("<8sIIQQII32sIII")
"""FORMAT.md, section 2; written down again, because a checker trusts nobody."""


class Violation(Exception):
    """Something that must never be has happened."""


class DurableRecord(NamedTuple):
    """A record that the disk has."""

    first_sequence: int
    command_count: int
    events_crc: int
    previous_hash: bytes
    payload: bytes
    hash: bytes
    segment: int
    end: int
    """Where it ends in its segment."""

    @property
    def last_sequence(self) -> int:
        return self.first_sequence + self.command_count - 1

    @property
    def start(self) -> int:
        """Where it begins in its segment."""
        size = RECORD_HEADER.size + len(self.payload)
        return self.end - -(-size // SECTOR_SIZE) * SECTOR_SIZE

    def is_in(self, segment: bytes) -> bool:
        """Whether the segment has it as it was written."""
        return blake2b(segment[self.start : self.end], digest_size=32).digest() == self.hash


class _Written(NamedTuple):
    """A record as it was written."""

    offset: int
    content: bytes


class WriteCut(NamedTuple):
    """The venue's end in a write of a record."""

    end: Callable[[], object]
    size_min: int
    """Of the record, in bytes: smaller ones are let pass."""
    is_part: bool
    """Some of its pages are written; else all of them are, and none is synced."""

    def written_size(self, offset: int, size: int) -> int:
        """How much of a record of this place and size is written; 0: it is let pass."""
        if size < self.size_min:
            return 0
        if not self.is_part:
            return size
        inner = range(PAGE_SIZE - offset % PAGE_SIZE, size, PAGE_SIZE)
        return inner[len(inner) // 2] if inner else 0


class _File:
    """What is known of one file, whatever its name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.unsynced: list[_Written] = []
        self.doubtful: list[_Written] = []
        """What a failed sync may have left out."""
        self.unnamed: list[_Written] = []
        """Synced, but the name of the file is not."""


class RecordWatch:
    """See the module. `on_durable` is called with every record as soon as it is durable."""

    def __init__(self, on_durable: Callable[[DurableRecord], None]) -> None:
        self.sequence = 0
        self.hash = bytes(32)
        self.segment = 0
        self.end = 0
        """Of the last durable record."""
        self.long_count = 0
        """Durable records of more than one sector."""
        self.cuts: list[WriteCut] = []
        """Each of the next record that it fits."""
        self._on_durable = on_durable
        self._files: dict[str, _File] = {}
        self._synced: dict[str, _File] = {}

    def wrote(self, file: _File, offset: int, content: bytes) -> None:
        """A write went to the cache."""
        if content[:8] == RECORD_MAGIC and file.name.endswith(".segment"):
            file.unsynced.append(_Written(offset, bytes(content)))

    def synced(self, file: _File) -> None:
        """A sync of the file has returned."""
        if file.unsynced:
            file.unnamed += file.unsynced
            file.unsynced.clear()
            if self._synced.get(file.name) is file:
                self._take(file)

    def rewind(self, record: DurableRecord) -> None:
        """A repair has lost every durable record behind this one, and what was not durable yet."""
        self.sequence, self.hash = record.last_sequence, record.hash
        self.segment, self.end = record.segment, record.end
        for file in {*self._files.values(), *self._synced.values()}:
            for written in (file.unsynced, file.doubtful, file.unnamed):
                written.clear()

    def take_cut(self, offset: int, content: bytes) -> tuple[int, WriteCut] | None:
        """What happens in this write, and how much of it is done before; None: nothing."""
        if self.cuts and content[:8] == RECORD_MAGIC:
            for cut in self.cuts:
                if size := cut.written_size(offset, len(content)):
                    self.cuts.remove(cut)
                    return size, cut
        return None

    def sync_failed(self, file: _File) -> None:
        """A sync of the file has failed; what it should have written is marked clean."""
        file.doubtful += file.unsynced
        file.unsynced.clear()

    def settled(self, file: _File, read: Callable[[int, int], bytes]) -> None:
        """Synced, and what is read from now on is what the disk has."""
        doubtful, file.doubtful = file.doubtful, []
        file.unsynced += [one for one in doubtful if _is_there(one, read)]
        self.synced(file)

    def folder_synced(self) -> None:
        """The names of the folder are durable."""
        self._synced = dict(self._files)
        for file in sorted(self._files.values(), key=lambda file: file.name):
            if file.unnamed:
                self._take(file)

    def crashed(self, storage: MemoryStorage) -> None:
        """The machine has lost power; look at what the disk has."""
        written = [
            one
            for file in self._files.values()
            for one in (*file.unsynced, *file.doubtful, *file.unnamed)
        ]
        self._files = {name: _File(name) for name in storage.names()}
        self._synced = dict(self._files)
        for name, file in sorted(self._files.items()):
            if name.endswith(".segment") and written:
                read = storage.open(name).read
                file.unnamed = [one for one in written if _is_there(one, read)]
                self._take(file)

    def file(self, name: str) -> _File:
        """The file that has the name now."""
        file = self._files.get(name)
        if file is None:
            file = self._files[name] = _File(name)
        return file

    def created(self, name: str) -> _File:
        file = self._files[name] = _File(name)
        return file

    def renamed(self, source: str, target: str) -> None:
        file = self.file(source)
        del self._files[source]
        self._files[target] = file
        file.name = target

    def removed(self, name: str) -> None:
        self._files.pop(name, None)

    def _take(self, file: _File) -> None:
        """Records of the file have become durable."""
        for written in file.unnamed:
            record = _read(written, int(file.name[:20]))
            if record.hash == self.hash and record.last_sequence == self.sequence:
                continue  # The same bytes again.
            if record.first_sequence != self.sequence + 1:
                raise Violation(
                    f"a record from sequence {record.first_sequence} is durable after "
                    f"{self.sequence}"
                )
            if record.previous_hash != self.hash:
                raise Violation(f"the record from {record.first_sequence} does not go on the chain")
            self.sequence, self.hash = record.last_sequence, record.hash
            self.segment, self.end = record.segment, record.end
            self.long_count += len(written.content) > SECTOR_SIZE
            self._on_durable(record)
        file.unnamed.clear()


def _is_there(written: _Written, read: Callable[[int, int], bytes]) -> bool:
    return read(written.offset, len(written.content)) == written.content


def _read(written: _Written, segment: int) -> DurableRecord:
    content = written.content
    head = RECORD_HEADER.unpack_from(content)
    size = RECORD_HEADER.size
    return DurableRecord(
        first_sequence=head[4],
        command_count=head[5],
        events_crc=head[8],
        previous_hash=head[7],
        payload=content[size : size + head[6]],
        hash=blake2b(content, digest_size=32).digest(),
        segment=segment,
        end=written.offset + len(content),
    )


class WatchedFile:
    """An open file of a `WatchedStorage`."""

    def __init__(self, file: MemoryFile, known: _File, watch: RecordWatch) -> None:
        self._file = file
        self._known = known
        self._watch = watch
        self.size = file.size
        self.read = file.read
        self.read_cached = file.read_cached
        self.close = file.close

    def write(self, offset: int, content: bytes) -> None:
        taken = self._watch.take_cut(offset, content)
        size = taken[0] if taken is not None else len(content)
        self._file.write(offset, content[:size])
        if size == len(content):
            self._watch.wrote(self._known, offset, content)
        if taken is not None:
            taken[1].end()
            raise OSError(errno.EBADF, "ended in a write")

    def sync_data(self) -> None:
        self._file.sync_data()
        self._watch.synced(self._known)

    def sync(self) -> None:
        self._file.sync()
        self._watch.synced(self._known)

    def settle(self) -> None:
        self._file.settle()
        self._watch.settled(self._known, self._file.read)

    def fail_sync(self, dice: Random) -> None:
        self._file.fail_sync(dice)
        self._watch.sync_failed(self._known)


class WatchedStorage:
    """commands/ as one process has it."""

    def __init__(self, storage: AttachedStorage, watch: RecordWatch) -> None:
        self._storage = storage
        self._watch = watch

    def create(self, name: str) -> Any:
        file = self._storage.create(name)
        return WatchedFile(file, self._watch.created(name), self._watch)

    def open(self, name: str, *, is_writable: bool = False) -> Any:
        file = self._storage.open(name, is_writable=is_writable)
        return WatchedFile(file, self._watch.file(name), self._watch)

    def rename(self, source: str, target: str) -> None:
        self._storage.rename(source, target)
        self._watch.renamed(source, target)

    def remove(self, name: str) -> None:
        self._storage.remove(name)
        self._watch.removed(name)

    def sync_folder(self) -> None:
        self._storage.sync_folder()
        self._watch.folder_synced()

    def lock(self) -> None:
        self._storage.lock()

    def names(self) -> list[str]:
        return self._storage.names()

    def free_size(self) -> int:
        return self._storage.free_size()

    def close(self) -> None:
        self._storage.close()


class Disks:
    """See the module. They outlive every process, and the machine's power; `Disk` of a machine."""

    def __init__(self, dice: Random, on_durable: Callable[[DurableRecord], None]) -> None:
        self.folders: dict[str, MemoryStorage] = {}
        self.watch = RecordWatch(on_durable)
        self.at_open: dict[tuple[str, str], list[Fault]] = {}
        """Faults for the process of that name that opens that folder next."""
        self.may_fail = False
        """Whether an operation of the venue was made to fail, or the disk was full, since it
        began."""
        self._is_full = False
        self._dice = dice
        self._attached: dict[Process, list[AttachedStorage]] = {}
        self._open: dict[Process, dict[str, FaultyStorage]] = {}

    def folder(self, name: str) -> MemoryStorage:
        """The folder of that name; an empty one when there is none."""
        folder = self.folders.get(name)
        if folder is None:
            # The lock of a real folder is a file, by which a journal is told from an archive.
            images = {LOCK_NAME: b""} if name == "commands" else {}
            folder = self.folders[name] = MemoryStorage(images)
        return folder

    # For the processes.

    def open(self, process: Process, folder: str, *, is_read_only: bool = False) -> Storage:
        """A folder as this process has it."""
        storage = self.folder(folder).attach(is_read_only=is_read_only)
        self._attached.setdefault(process, []).append(storage)
        is_journal = folder == "commands" and process.name == "exchange"
        faulty = FaultyStorage(
            WatchedStorage(storage, self.watch) if is_journal else storage, sync_dice=self._dice
        )
        faulty.faults = tuple(self.at_open.pop((process.name, folder), ()))
        self._open.setdefault(process, {})[folder] = faulty
        return faulty

    def ended(self, process: Process) -> None:
        """The process is no more: its files are closed, its locks free."""
        folders = self._open.pop(process, {})
        self.may_fail |= any(folder.hits for folder in folders.values())
        for storage in self._attached.pop(process, []):
            storage.detach()

    def opened(self, process: Process | None, folder: str) -> FaultyStorage | None:
        """A folder as a process has it, None when it has none."""
        return self._open.get(process, {}).get(folder) if process is not None else None

    def begin_venue(self) -> None:
        """The venue is started: what was before does not matter any more."""
        self.may_fail = self._is_full

    # For who makes faults.

    def lose_power(self) -> None:
        """The machine is gone, and with it what was not synced."""
        loss = self._dice.choice(LOSSES)
        for name in sorted(self.folders):
            is_torn = name != "commands"
            self.folders[name].crash(self._dice, loss._replace(torn=1) if is_torn else loss)
        self._attached.clear()
        self._open.clear()
        self.watch.crashed(self.folder("commands"))

    def fill(self, free_size: int) -> None:
        """So many bytes are left, in each folder."""
        self._is_full = free_size < PLENTY
        self.may_fail |= self._is_full
        for folder in self.folders.values():
            folder.free_bytes = free_size

    def wipe(self, name: str) -> None:
        """Remove every file of a folder, durably."""
        folder = self.folder(name)
        for one in folder.names():
            folder.remove(one)
        folder.sync_folder()

    def calm(self) -> None:
        """Nothing fails any more, and there is room."""
        for folders in self._open.values():
            for folder in folders.values():
                folder.faults = ()
        self.at_open.clear()
        self.fill(PLENTY)
