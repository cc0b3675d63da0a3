"""The simulator's disk: what a power loss, a failed sync, a dead process, a full disk leave behind.

Everything is drawn many times: what may happen happens, and nothing else does.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from random import Random

import pytest

from journal import JournalHeld
from journal.faulty import Fault, FaultyStorage
from journal.memory import MemoryStorage, PowerLoss
from journal.storage import write_durably

ROUNDS = 300
Files = dict[str, bytes]


def outcomes(prepare: Callable[[MemoryStorage, Random], None], loss: PowerLoss) -> set[bytes]:
    """Contents of the file "a" after a power loss."""
    found = set()
    for seed in range(ROUNDS):
        storage, dice = MemoryStorage(), Random(seed)
        prepare(storage, dice)
        storage.crash(dice, loss)
        found.add(storage.images().get("a", b"no such file"))
    return found


def overwrite(storage: MemoryStorage, dice: Random) -> None:
    del dice
    write_durably(storage, "a", [b"o" * 1024])
    storage.open("a", is_writable=True).write(0, b"n" * 1024)


def test_weights_decide_what_becomes_of_a_sector() -> None:
    assert outcomes(overwrite, PowerLoss(kept=1, dropped=0, zeroed=0)) == {b"n" * 1024}
    assert outcomes(overwrite, PowerLoss(kept=0, dropped=1, zeroed=0)) == {b"o" * 1024}
    assert outcomes(overwrite, PowerLoss(kept=0, dropped=0, zeroed=1)) == {bytes(1024)}


def test_a_torn_sector_is_new_before_some_byte_and_old_behind_it() -> None:
    torn = outcomes(overwrite, PowerLoss(kept=0, dropped=0, zeroed=0, torn=1))
    assert len(torn) > ROUNDS // 2
    for content in torn:
        for sector in (content[:512], content[512:]):
            assert sector == sector.lstrip(b"n").rjust(512, b"n")
            assert set(sector) <= set(b"no")


def test_what_was_overwritten_twice_goes_back_to_what_was_synced() -> None:
    def prepare(storage: MemoryStorage, dice: Random) -> None:
        overwrite(storage, dice)
        storage.open("a", is_writable=True).write(100, b"m" * 600)

    assert outcomes(prepare, PowerLoss(kept=0, zeroed=0)) == {b"o" * 1024}


def test_a_sync_in_the_middle_is_what_remains() -> None:
    def prepare(storage: MemoryStorage, dice: Random) -> None:
        overwrite(storage, dice)
        file = storage.open("a", is_writable=True)
        file.sync_data()
        file.write(512, b"m" * 512)

    assert outcomes(prepare, PowerLoss(kept=0, zeroed=0)) == {b"n" * 1024}


def failed(storage: MemoryStorage, dice: Random) -> None:
    """A sync of what was overwritten fails, and the next one does not."""
    overwrite(storage, dice)
    file = storage.open("a", is_writable=True)
    file.fail_sync(dice, PowerLoss(kept=0, dropped=1, zeroed=0))
    file.sync()


def test_what_a_failed_sync_left_out_is_not_written_by_the_next_one() -> None:
    assert outcomes(failed, PowerLoss(kept=1, dropped=0, zeroed=0)) == {b"o" * 1024}


def test_what_a_failed_sync_left_out_is_read_until_it_is_settled() -> None:
    storage = MemoryStorage()
    failed(storage, Random(1))
    file = storage.open("a")
    assert file.read(0, 2000) == b"n" * 1024
    file.settle()
    assert file.read(0, 2000) == b"o" * 1024


def test_what_is_written_again_after_a_failed_sync_is_synced() -> None:
    def prepare(storage: MemoryStorage, dice: Random) -> None:
        failed(storage, dice)
        file = storage.open("a", is_writable=True)
        file.write(512, b"m" * 512)
        file.sync_data()

    assert outcomes(prepare, PowerLoss()) == {b"o" * 512 + b"m" * 512}


def test_a_failed_sync_of_an_extension_may_leave_the_file_as_it_was() -> None:
    def prepare(storage: MemoryStorage, dice: Random) -> None:
        write_durably(storage, "a", [b"o" * 100])
        file = storage.open("a", is_writable=True)
        file.write(100, b"n" * 1000)
        file.fail_sync(dice)
        file.settle()

    assert {len(content) for content in outcomes(prepare, PowerLoss())} == {100, 512, 1024, 1100}


def test_who_had_the_file_open_is_told_once_of_a_failed_sync() -> None:
    storage = MemoryStorage({"a": b"x" * 512})
    files = [storage.attach().open("a", is_writable=True) for _ in range(3)]
    files[0].write(0, b"y" * 512)
    files[0].fail_sync(Random(1))
    later = storage.attach().open("a", is_writable=True)
    files[1].write(0, b"z" * 512)
    with pytest.raises(OSError, match="Input/output"):
        files[1].sync_data()
    with pytest.raises(OSError, match="Input/output"):
        files[2].settle()
    for file in (*files, later):
        file.sync()


def test_a_faulty_storage_with_dice_leaves_clean_pages() -> None:
    memory = MemoryStorage()
    storage = FaultyStorage(memory, [Fault("sync", 1, errno.EIO)], sync_dice=Random(4))
    file = storage.create("a")
    storage.sync_folder()
    file.write(0, b"n" * 5120)
    with pytest.raises(OSError, match="Input/output"):
        file.sync()
    file.sync()
    memory.crash(Random(1), PowerLoss(kept=1, dropped=0, zeroed=0))
    assert memory.images()["a"] != b"n" * 5120
    assert [fault.kind for fault in storage.hits] == ["sync"]


def test_a_fault_counts_from_when_it_is_added_and_calls_before_it_raises() -> None:
    called: list[int] = []
    storage = FaultyStorage(MemoryStorage())
    storage.create("a")
    storage.add(Fault("create", 2, errno.EIO, then=lambda: called.append(len(storage.names()))))
    storage.create("b")
    with pytest.raises(OSError, match="Input/output"):
        storage.create("c")
    assert called == [2]


def names_after(loss: PowerLoss) -> set[tuple[str, ...]]:
    found = set()
    for seed in range(ROUNDS):
        storage = MemoryStorage({"a": b"1", "b": b"2"})
        storage.rename("a", "c")
        storage.remove("b")
        storage.create("d")
        storage.crash(Random(seed), loss)
        found.add(tuple(storage.names()))
    return found


def test_changes_of_the_folder_are_lost_from_the_last_one_on_or_anywhere() -> None:
    assert names_after(PowerLoss()) == {("a", "b"), ("b", "c"), ("c",), ("c", "d")}
    anywhere = names_after(PowerLoss(is_folder_ordered=False))
    assert len(anywhere) == 8
    assert {("a",), ("a", "b", "d")} <= anywhere
    assert not any("a" in names and "c" in names for names in anywhere), "a rename is one change"


def test_a_process_dies_alone() -> None:
    storage = MemoryStorage()
    first, second = storage.attach(), storage.attach()
    first.lock()
    with pytest.raises(JournalHeld):
        second.lock()
    file = first.create("a")
    file.write(0, b"x")
    other = second.open("a", is_writable=True)
    first.detach()
    calls: list[Callable[[], object]] = [
        lambda: file.write(0, b"y"),
        lambda: file.read(0, 1),
        file.sync,
        first.names,
        first.sync_folder,
        lambda: first.create("b"),
        lambda: first.open("a"),
        lambda: first.rename("a", "b"),
        lambda: first.remove("a"),
    ]
    for call in calls:
        with pytest.raises(OSError, match="open at a crash"):
            call()
    second.lock()
    assert other.read(0, 9) == b"x", "the page cache stays"
    storage.crash(Random(1))
    with pytest.raises(OSError, match="open at a crash"):
        other.read(0, 9)


def test_readers_share_the_lock() -> None:
    storage = MemoryStorage()
    readers = [storage.attach(is_read_only=True) for _ in range(2)]
    for reader in readers:
        reader.lock()
    with pytest.raises(JournalHeld):
        storage.attach().lock()
    with pytest.raises(AssertionError, match="read-only"):
        readers[0].create("a")
    for reader in readers:
        reader.close()
    storage.attach().lock()


def test_a_full_disk_takes_what_does_not_grow() -> None:
    storage = MemoryStorage()
    file = storage.create("a")
    file.write(0, b"x" * 1000)
    storage.free_bytes = 100
    file.write(500, b"y" * 500)
    with pytest.raises(OSError, match="No space left"):
        file.write(900, b"z" * 201)
    file.write(900, b"z" * 200)
    assert storage.free_size() == 0
    storage.remove("a")
    assert storage.free_size() == 1100


def test_a_bit_flips_for_good() -> None:
    storage = MemoryStorage()
    write_durably(storage, "a", [b"\0\0"])
    storage.flip("a", 9)
    storage.crash(Random(1))
    assert storage.images() == {"a": b"\0\2"}


def test_what_is_put_is_durable() -> None:
    storage = MemoryStorage({"a": b"old"})
    storage.put("a", b"new")
    storage.put("b", b"more")
    storage.crash(Random(1))
    assert storage.images() == {"a": b"new", "b": b"more"}
