"""Real folder and folder in memory keep one contract; the wrapper fails what it is told to; a crash
forgets.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from journal import (
    FolderStorage,
    Journal,
    JournalFailed,
    JournalHeld,
    Storage,
    run_in_thread,
    verify,
)
from journal.faulty import Fault, FaultyStorage, Kind
from journal.memory import MemoryStorage
from journal.storage import write_durably

FIRST = "00000000000000000001-00000000000000000001.segment"


@pytest.fixture(params=["folder", "memory", "faulty"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "folder":
        return FolderStorage(tmp_path / "commands")
    if request.param == "memory":
        return MemoryStorage()
    return FaultyStorage(MemoryStorage())


def content(storage: Storage, name: str) -> bytes:
    file = storage.open(name)
    try:
        return file.read(0, file.size() + 1)
    finally:
        file.close()


# The contract.


def test_files_are_written_and_read_anywhere(storage: Storage) -> None:
    file = storage.create("a")
    assert file.size() == 0
    assert file.read(0, 10) == b""
    file.write(5, b"world")
    file.write(0, b"hello")
    file.write(12, b"!")
    file.sync()
    file.sync_data()
    file.settle()
    assert file.size() == 13
    assert file.read(0, 100) == b"helloworld\0\0!"
    assert file.read(5, 3) == b"wor"
    assert file.read(13, 1) == b""
    assert file.read(100, 1) == b""
    buffer = bytearray(8)
    assert file.read_cached(13, memoryview(buffer)) == 0
    file.close()
    again = storage.open("a", is_writable=True)
    again.write(0, b"J")
    again.close()
    assert content(storage, "a") == b"Jelloworld\0\0!"


def test_names_are_sorted_and_changed(storage: Storage) -> None:
    for name in ("b", "a", "c"):
        storage.create(name).close()
    assert storage.names() == ["a", "b", "c"]
    storage.rename("a", "d")
    storage.remove("b")
    storage.sync_folder()
    assert storage.names() == ["c", "d"]


def test_rename_replaces(storage: Storage) -> None:
    write_durably(storage, "a", [b"old"])
    write_durably(storage, "b", [b"n", b"ew"])
    storage.rename("b", "a")
    assert storage.names() == ["a"]
    assert content(storage, "a") == b"new"


def test_what_is_missing_or_there_is_an_error(storage: Storage) -> None:
    storage.create("a").close()
    with pytest.raises(FileExistsError):
        storage.create("a")
    calls: list[Callable[[], object]] = [
        lambda: storage.open("x"),
        lambda: storage.remove("x"),
        lambda: storage.rename("x", "y"),
    ]
    for call in calls:
        with pytest.raises(FileNotFoundError):
            call()


def test_a_file_that_was_renamed_stays_open(storage: Storage) -> None:
    file = storage.create("a")
    storage.rename("a", "b")
    file.write(0, b"x")
    file.close()
    assert content(storage, "b") == b"x"


def test_the_lock_is_held_until_close() -> None:
    memory = MemoryStorage()
    memory.lock()
    with pytest.raises(JournalHeld):
        memory.lock()
    memory.close()
    memory.lock()


# The real folder.


def test_a_folder_is_held_by_one(tmp_path: Path) -> None:
    first = FolderStorage(tmp_path / "commands")
    first.lock()
    second = FolderStorage(tmp_path / "commands")
    with pytest.raises(JournalHeld, match="commands"):
        second.lock()
    reader = FolderStorage(tmp_path / "commands", is_read_only=True)
    with pytest.raises(JournalHeld):
        reader.lock()
    first.close()
    reader.lock()
    with pytest.raises(JournalHeld):
        second.lock()
    reader.close()
    second.lock()
    second.close()


def test_a_folder_is_held_against_another_process(tmp_path: Path) -> None:
    storage = FolderStorage(tmp_path / "commands")
    storage.lock()
    script = "import sys, journal; journal.Journal.open(journal.FolderStorage(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "commands")],
        capture_output=True,
        text=True,
        check=False,
    )
    storage.close()
    assert done.returncode == 1
    assert "JournalHeld: journal held: another process has" in done.stderr


def test_short_writes_and_reads_are_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dice = Random(3)
    real_write, real_read = os.pwrite, os.pread

    def short_write(descriptor: int, data: bytes | memoryview, offset: int) -> int:
        return real_write(descriptor, data[: dice.randint(1, 9)], offset)

    def short_read(descriptor: int, size: int, offset: int) -> bytes:
        return real_read(descriptor, min(size, dice.randint(1, 9)), offset)

    monkeypatch.setattr(os, "pwrite", short_write)
    monkeypatch.setattr(os, "pread", short_read)
    file = FolderStorage(tmp_path).create("a")
    data = dice.randbytes(1000)
    file.write(7, data)
    assert file.read(7, 1000) == data
    assert file.read(7, 2000) == data
    file.close()


def test_what_is_in_memory_is_read_without_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = FolderStorage(tmp_path).create("a")
    file.write(0, b"hello world")
    flags: list[int] = []
    answers: list[int | OSError] = [
        5,
        OSError(errno.EAGAIN, "try again"),
        OSError(errno.EOPNOTSUPP, "not supported"),
        OSError(errno.EIO, "Input/output error"),
    ]

    def read(descriptor: int, buffers: list[memoryview], offset: int, flag: int) -> int:
        flags.append(flag)
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        buffers[0][:answer] = os.pread(descriptor, answer, offset)
        return answer

    monkeypatch.setattr(os, "preadv", read)
    buffer = memoryview(bytearray(7))
    assert file.read_cached(4, buffer) == 5
    assert bytes(buffer) == b"o wor\0\0"
    assert file.read_cached(0, buffer) == 0, "it is on the disk"
    assert file.read_cached(0, buffer) == 0, "the file system cannot say"
    with pytest.raises(OSError, match="Input/output"):
        file.read_cached(0, buffer)
    assert flags == [os.RWF_NOWAIT] * 4
    file.close()


@pytest.mark.parametrize("make", [MemoryStorage, lambda: FaultyStorage(MemoryStorage())])
def test_what_is_in_memory_always_is_read_at_once(make: Callable[[], Storage]) -> None:
    file = make().create("a")
    file.write(0, b"hello world")
    buffer = memoryview(bytearray(7))
    assert file.read_cached(6, buffer) == 5
    assert bytes(buffer) == b"world\0\0"


def test_a_write_that_writes_nothing_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, offset: 0)
    file = FolderStorage(tmp_path).create("a")
    with pytest.raises(OSError, match="nothing written"):
        file.write(0, b"x")
    file.close()


def test_which_system_calls_make_things_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for name in ("pwrite", "fsync", "fdatasync", "rename", "posix_fadvise"):
        real = getattr(os, name)

        def spy(*arguments: object, name: str = name, real: Callable[..., object] = real) -> object:
            calls.append(name)
            return real(*arguments)

        monkeypatch.setattr(os, name, spy)
    storage = FolderStorage(tmp_path / "commands")
    assert calls == ["fsync"], "the parent of a new folder"
    calls.clear()
    write_durably(storage, "a", [b"x", b"y"])
    assert calls == ["pwrite", "pwrite", "fsync", "rename", "fsync"]
    calls.clear()
    file = storage.open("a", is_writable=True)
    file.sync_data()
    file.settle()
    file.close()
    assert calls == ["fdatasync", "fsync", "posix_fadvise"]


def test_a_read_only_folder_is_not_touched(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        FolderStorage(tmp_path / "missing", is_read_only=True).names()
    assert list(tmp_path.iterdir()) == []
    storage = FolderStorage(tmp_path, is_read_only=True)
    storage.lock()
    assert list(tmp_path.iterdir()) == []
    calls: list[Callable[[], object]] = [
        lambda: storage.create("a"),
        lambda: storage.open("a", is_writable=True),
        lambda: storage.rename("a", "b"),
        lambda: storage.remove("a"),
        storage.sync_folder,
    ]
    for call in calls:
        with pytest.raises(AssertionError, match="read-only"):
            call()


def test_a_journal_on_a_real_folder(tmp_path: Path) -> None:
    dice = Random(8)
    payloads = [dice.randbytes(dice.randint(1, 60_000)) for _ in range(60)]
    folder = tmp_path / "commands"
    for life in range(3):
        journal = Journal.open(
            FolderStorage(folder), segment_size=256 * 1024, prepare=run_in_thread
        )
        found = [bytes(record.payload) for record in journal.records()]
        assert found == payloads[: life * 20]
        journal.start(term=life)
        for payload in payloads[life * 20 : life * 20 + 20]:
            journal.write(journal.build(payload, 1, 0, 1))
            journal.sync()
        journal.stop()
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}
    storage = FolderStorage(folder, is_read_only=True)
    storage.lock()
    summary = verify(storage)
    storage.close()
    assert (summary.record_count, summary.end) == (60, "clean")
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}
    assert after == before
    digest = subprocess.run(
        ["b2sum", "-l", "256", str(folder / FIRST)], capture_output=True, text=True, check=True
    )
    line = (folder / "manifest").read_text().splitlines()[1]
    assert line.split()[-1] == digest.stdout.split()[0]


def test_a_record_on_a_real_folder_is_one_write_and_one_fdatasync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal.open(FolderStorage(tmp_path / "commands"), segment_size=64 * 1024)
    assert list(journal.records()) == []
    journal.start(term=1)
    journal.stop()
    journal = Journal.open(FolderStorage(tmp_path / "commands"), prepare=lambda job: lambda: True)
    assert list(journal.records()) == []
    journal.start(term=1)
    calls: list[str] = []
    for name in ("pwrite", "fsync", "fdatasync"):
        real = getattr(os, name)

        def spy(*arguments: object, name: str = name, real: Callable[..., object] = real) -> object:
            calls.append(name)
            return real(*arguments)

        monkeypatch.setattr(os, name, spy)
    batch = journal.build(b"x" * 5000, 1, 0, 1)
    assert calls == []
    journal.write(batch)
    assert calls == ["pwrite"]
    journal.sync()
    assert calls == ["pwrite", "fdatasync"]
    journal.close()


# Faults.


def test_faults_hit_the_operation_that_they_name() -> None:
    storage = FaultyStorage(MemoryStorage(), [Fault("write", 2, errno.ENOSPC)])
    file = storage.create("a")
    file.write(0, b"1")
    with pytest.raises(OSError, match="No space left") as caught:
        file.write(1, b"2")
    assert caught.value.errno == errno.ENOSPC
    file.write(2, b"3")
    assert file.read(0, 9) == b"1\x003"
    assert storage.counts == Counter({"change": 4, "write": 3, "create": 1, "read": 1})


def test_persistent_and_applied_faults() -> None:
    memory = MemoryStorage()
    faults = [
        Fault("rename", 1, errno.EIO, is_persistent=True, is_applied=True),
        Fault("sync", 1, errno.EIO, is_persistent=True),
    ]
    storage = FaultyStorage(memory, faults)
    file = storage.create("a")
    for source, target in (("a", "b"), ("b", "c")):
        with pytest.raises(OSError, match="Input/output"):
            storage.rename(source, target)
    assert memory.names() == ["c"]
    for call in (file.sync, file.sync_data, file.settle):
        with pytest.raises(OSError, match="Input/output"):
            call()


@pytest.mark.parametrize(
    "kind",
    ["create", "open", "read", "write", "sync", "rename", "remove", "sync_folder", "change"],
)
def test_every_kind_can_fail(kind: Kind) -> None:
    storage = FaultyStorage(MemoryStorage(), [Fault(kind, 1, errno.EIO)])

    def everything() -> None:
        write_durably(storage, "a", [b"x"])
        content(storage, "a")
        storage.remove("a")

    with pytest.raises(OSError, match="Input/output"):
        everything()


# Crashes.


def after_crash(storage: MemoryStorage, seed: int) -> dict[str, bytes]:
    storage.crash(Random(seed))
    return storage.images()


def outcomes(prepare: Callable[[MemoryStorage], None]) -> set[tuple[tuple[str, bytes], ...]]:
    found = set()
    for seed in range(300):
        storage = MemoryStorage()
        prepare(storage)
        found.add(tuple(sorted(after_crash(storage, seed).items())))
    return found


def test_what_was_synced_survives() -> None:
    def prepare(storage: MemoryStorage) -> None:
        write_durably(storage, "a", [b"x" * 700, b"y" * 700])

    assert outcomes(prepare) == {(("a", b"x" * 700 + b"y" * 700),)}


def test_unsynced_sectors_are_kept_dropped_or_zeroed_one_by_one() -> None:
    old, new = b"o" * 1024, b"n" * 1024

    def prepare(storage: MemoryStorage) -> None:
        write_durably(storage, "a", [old])
        storage.open("a", is_writable=True).write(0, new)

    kinds = (b"o" * 512, b"n" * 512, bytes(512))
    assert outcomes(prepare) == {(("a", one + two),) for one in kinds for two in kinds}


def test_an_unsynced_extension_may_be_lost() -> None:
    def prepare(storage: MemoryStorage) -> None:
        write_durably(storage, "a", [b"o" * 100])
        storage.open("a", is_writable=True).write(600, b"n")

    lengths = {len(files[0][1]) for files in outcomes(prepare)}
    assert lengths == {100, 601}


def test_unsynced_folder_changes_survive_in_order_or_not_at_all() -> None:
    def prepare(storage: MemoryStorage) -> None:
        write_durably(storage, "a", [b"a"])
        write_durably(storage, "b", [b"b"])
        storage.rename("b", "a")
        storage.create("c")
        storage.remove("a")

    assert {tuple(name for name, _ in files) for files in outcomes(prepare)} == {
        ("a", "b"),
        ("a",),
        ("a", "c"),
        ("c",),
    }


def test_open_files_die_in_a_crash_and_the_lock_is_free() -> None:
    storage = MemoryStorage()
    storage.lock()
    file = storage.create("a")
    storage.crash(Random(1))
    storage.lock()
    calls: list[Callable[[], object]] = [
        file.size,
        file.sync,
        file.sync_data,
        file.settle,
        lambda: file.read(0, 1),
        lambda: file.write(0, b"x"),
    ]
    for call in calls:
        with pytest.raises(OSError, match="open at a crash"):
            call()


def test_a_file_open_for_reading_is_not_written() -> None:
    storage = MemoryStorage({"a": b"x"})
    with pytest.raises(AssertionError, match="for reading"):
        storage.open("a").write(0, b"y")


def test_full_disk_at_first_start_is_a_failure(tmp_path: Path) -> None:
    folder = FolderStorage(tmp_path / "commands")
    storage = FaultyStorage(folder, [Fault("write", 1, errno.ENOSPC, is_persistent=True)])
    journal = Journal.open(storage, segment_size=4096)
    assert list(journal.records()) == []
    with pytest.raises(JournalFailed, match=r"create the first segment: .*No space left"):
        journal.start(term=1)
    journal.close()
    again = Journal.open(FolderStorage(tmp_path / "commands"), segment_size=4096)
    assert list(again.records()) == []
    again.start(term=1)
    again.stop()
