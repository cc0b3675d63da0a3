"""A journal in part archived lacks a segment that nobody has: restore and repair lead out of it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from journal import JournalFailed
from journal.archive import archive_segments, restore_segments
from journal.damage import diagnose
from journal.faulty import Fault, FaultyStorage
from journal.findings import COMMANDS, Folders, SetAside
from journal.manifest import ARCHIVED_NAME, TERM_NAME, decode_archived
from journal.memory import MemoryStorage
from journal.repair import repair
from journal.storage import Storage
from tests.journal.damaged import SNAPSHOTS_AT, Disk, History, names_of, run, start

COUNT = 3
"""Segments that are archived."""


@dataclass
class Scene:
    """Segments 1 to COUNT are archived, there are no snapshots, and segment `gone` is lost."""

    disk: Disk
    history: History
    archive: MemoryStorage
    last_kept: int
    """Sequence of the last record before the segment that is lost."""


def scene(gone: int, *, has_snapshots: bool = False) -> Scene:
    disk, history, archive = Disk(), History(), MemoryStorage()
    run(disk, history, snapshots_at=SNAPSHOTS_AT if has_snapshots else ())
    names = names_of(disk.commands)
    assert len(names) > gone + 1, "it was sealed, and a later one is here"
    archive_segments(disk.commands, archive, COUNT, quiet)
    disk.commands.remove(names[gone - 1])
    disk.commands.sync_folder()
    return Scene(disk, history, archive, int(names[gone - 1][21:41]) - 1)


def quiet(line: str) -> None:
    assert line


def mend(disk: Disk) -> int:
    """Repair; the sequence that the journal ends with."""
    found = diagnose(disk.folders)
    assert found.is_lossy
    repair_on(disk, disk.commands)
    return found.head.sequence


def repair_on(disk: Disk, commands: Storage) -> None:
    """Repair the disk, with this storage for commands/."""
    found = diagnose(disk.folders)
    folders = Folders(commands, disk.events, disk.snapshots)
    repair(folders, found, MemoryStorage(), {}, "page\n", quiet)


def without_term(disk: Disk) -> dict[str, bytes]:
    """commands/; a repair that is done again may begin a later term."""
    return {name: image for name, image in disk.commands.images().items() if name != TERM_NAME}


def texts(disk: Disk) -> list[str]:
    return [f"{finding.place}: {finding.text}" for finding in diagnose(disk.folders).findings]


def check_start(one: Scene) -> None:
    """A venue starts from what was kept, in a new term."""
    head, term = start(one.disk.copy(), one.history.batches)
    assert (head.sequence, term) == (one.last_kept, 2)
    assert head == one.history.built[one.history.count_to(one.last_kept) - 1].head


@pytest.mark.parametrize("gone", [COUNT + 1, COUNT + 2, COUNT + 3])
def test_restore_brings_back_what_there_is_and_repair_cuts(gone: int) -> None:
    one = scene(gone)
    found = diagnose(one.disk.folders)
    assert found.obstacle == f"segments 1 to {COUNT} are archived, and it needs them"
    assert texts(one.disk)[0] == f"commands/: segment {gone} is missing, and later ones are here"
    assert not any("nothing says" in text for text in texts(one.disk))

    lines: list[str] = []
    restored = restore_segments(one.archive, one.disk.commands, lines.append)
    assert restored.segment_count == COUNT
    assert lines[-1] == f"segment {gone}: it is neither here nor in this archive"
    assert ARCHIVED_NAME not in one.disk.commands.names()

    found = diagnose(one.disk.folders)
    assert (found.obstacle, found.head.sequence) == ("", one.last_kept)
    assert mend(one.disk) == one.last_kept
    assert texts(one.disk) == []
    check_start(one)


@pytest.mark.parametrize("gone", [COUNT + 1, COUNT + 3])
def test_what_a_restore_that_died_has_left_is_repaired_too(gone: int) -> None:
    """All segments are back, and `archived` is still there: it may name no segment that is open."""
    one = scene(gone)
    said = one.disk.commands.images()[ARCHIVED_NAME]
    restore_segments(one.archive, one.disk.commands, quiet)
    one.disk.commands = MemoryStorage({**one.disk.commands.images(), ARCHIVED_NAME: said})
    before = one.disk.copy()
    is_open = gone == COUNT + 1
    text = f"commands/archived: names segments 1 to {COUNT}, the last one that can be kept is 3"
    assert (text in texts(one.disk)) == is_open
    assert mend(one.disk) == one.last_kept
    assert (ARCHIVED_NAME in one.disk.commands.names()) == (not is_open)
    check_start(one)

    # A repair that dies anywhere comes to the same end.
    expected = without_term(one.disk)
    counting = FaultyStorage(before.copy().commands)
    repair_on(before.copy(), counting)
    assert counting.counts["change"] > 5
    for at in range(1, counting.counts["change"] + 1):
        disk = before.copy()
        with pytest.raises(JournalFailed):
            repair_on(
                disk, FaultyStorage(disk.commands, [Fault("change", at, 5, is_persistent=True)])
            )
        is_done = at == counting.counts["change"]  # All but the sync of the folder.
        assert diagnose(disk.folders).is_whole == is_done, f"operation {at}"
        if not is_done:
            repair_on(disk, disk.commands)
        assert without_term(disk) == expected, f"operation {at}"
        assert start(disk, one.history.batches)[0].sequence == one.last_kept


def test_a_segment_that_the_archive_has_lost_too() -> None:
    """What comes before it can still be kept, once nothing more can be brought back."""
    one = scene(COUNT + 2)
    name = names_of(one.archive)[1]
    one.archive.flip(name, 8 * 700)
    assert restore_segments(one.archive, one.disk.commands, quiet).segment_count == 2
    assert ARCHIVED_NAME in one.disk.commands.names()
    assert texts(one.disk)[0] == (
        "commands/: segment 2 was archived and is not back, and later ones are here"
    )
    one.last_kept = int(name[21:41]) - 1
    assert mend(one.disk) == one.last_kept
    assert ARCHIVED_NAME not in one.disk.commands.names()
    check_start(one)


def test_a_snapshot_behind_it_makes_it_count_as_archived() -> None:
    """And when the snapshots are lost later, there is still a way."""
    one = scene(COUNT + 1, has_snapshots=True)
    found = diagnose(one.disk.folders)
    assert (found.is_lossy, found.obstacle) == (False, "")
    assert texts(one.disk) == [
        "commands/archived: segment 4 is not here, and nothing says that it was archived"
    ]
    repair(one.disk.folders, found, MemoryStorage(), {}, "page\n", quiet)
    assert decode_archived(one.disk.commands.images()[ARCHIVED_NAME]).segment == COUNT + 1
    head = one.history.built[-1].head
    assert start(one.disk.copy(), one.history.batches)[0] == head

    restore_segments(one.archive, one.disk.commands, quiet)
    assert ARCHIVED_NAME in one.disk.commands.names()
    found = diagnose(one.disk.folders)
    assert found.is_sound
    [note] = [note.text for note in found.notes]
    assert note.startswith("segment 4 was archived and is not back, and later ones are here; the ")
    assert start(one.disk.copy(), one.history.batches)[0] == head
    one.disk.snapshots = MemoryStorage()
    assert mend(one.disk) == one.last_kept
    check_start(one)


def test_nothing_is_said_of_what_is_archived_when_the_file_is_lost() -> None:
    one = scene(COUNT + 2)
    one.disk.commands.remove(ARCHIVED_NAME)
    found = diagnose(one.disk.folders)
    assert found.obstacle == f"segments 1 to {COUNT} are not here, and it needs them"
    restore_segments(one.archive, one.disk.commands, quiet)
    assert mend(one.disk) == one.last_kept
    check_start(one)


def test_a_damaged_file_that_nothing_needs_is_taken_out() -> None:
    one = scene(COUNT + 2)
    restore_segments(one.archive, one.disk.commands, quiet)
    one.disk.commands = MemoryStorage({**one.disk.commands.images(), ARCHIVED_NAME: b"what"})
    found = diagnose(one.disk.folders)
    assert SetAside(COMMANDS, ARCHIVED_NAME) in found.later_actions
    assert mend(one.disk) == one.last_kept
    assert ARCHIVED_NAME not in one.disk.commands.names()
    check_start(one)
