"""Damage in sealed segments of events/, which a start does not read: a repair finds it, and takes
out what the next start can make anew."""

from __future__ import annotations

import errno
from random import Random

import pytest

from journal import JournalFailed, SnapshotFolder
from journal.archive import archive_segments, restore_segments
from journal.damage import diagnose
from journal.faulty import Fault
from journal.memory import MemoryStorage, PowerLoss
from tests.journal.damaged import SNAPSHOTS_AT, Disk, names_of, start
from tests.journal.test_repair import check_copies, made, mend, repair_on, shared, spoil


def event_files(disk: Disk) -> list[str]:
    """Names of the full segments."""
    return [name[:20] for name in disk.events.names() if name.endswith(".index")]


def flip_tail(disk: Disk, name: str) -> None:
    """One bit near the end of a file of events/."""
    disk.events.flip(name, 8 * (len(disk.events.images()[name]) - 10))


@pytest.mark.parametrize("snapshots_at", [(), SNAPSHOTS_AT])
def test_events_that_are_not_what_their_index_says_are_made_anew(
    snapshots_at: tuple[int, ...],
) -> None:
    disk, history = made(snapshots_at=snapshots_at)
    right = disk.events.images()
    name = event_files(disk)[1]
    flip_tail(disk, f"{name}.events")
    spoiled = disk.events.images()
    started = disk.copy()
    start(started, history.batches)
    assert started.events.images()[f"{name}.events"] == spoiled[f"{name}.events"], "it trusts it"
    found = diagnose(disk.folders)
    assert (found.is_sound, found.is_whole, found.is_lossy) == (True, False, False)
    assert [(note.place, note.text[:31]) for note in found.notes] == [
        (f"events/{name}.events", "is not what its index says; onc")
    ]
    before = disk.copy()
    _, aside = mend(disk)
    check_copies(before, disk, aside)
    assert f"{name}.index" not in disk.events.names()
    assert start(disk, history.batches)[1] == 1, "nothing is lost"
    assert disk.events.images() == right
    assert diagnose(disk.folders).is_whole


@pytest.mark.parametrize("is_applied", [False, True])
def test_crash_at_every_step_of_taking_events_out(is_applied: bool) -> None:
    disk, history = made()
    right = disk.events.images()
    name = event_files(disk)[1]
    flip_tail(disk, f"{name}.events")
    disk.events.sync_folder()
    counting = shared(disk.copy(), MemoryStorage())
    repair_on(counting)
    for at in range(1, counting[0].counts["change"] + 1):
        tried, aside = disk.copy(), MemoryStorage()
        fault = Fault("change", at, errno.EIO, is_persistent=True, is_applied=is_applied)
        with pytest.raises(JournalFailed):
            repair_on(shared(tried, aside, fault))
        for storage in (*tried.all, aside):
            storage.crash(Random(at), PowerLoss(is_folder_ordered=at % 2 == 0))
        if not diagnose(tried.folders).is_whole:
            mend(tried)
        start(tried, history.batches)
        assert tried.events.images() == right, at


def test_a_damaged_index_is_made_anew() -> None:
    disk, history = made()
    right = disk.events.images()
    name = event_files(disk)[1]
    flip_tail(disk, f"{name}.index")
    found, _ = mend(disk)
    assert [action.name for action in found.event_actions] == [f"{name}.index"]
    start(disk, history.batches)
    assert disk.events.images() == right


def test_events_that_no_start_could_make_anew_stay() -> None:
    """Neither where the records are archived, nor where they are damaged and a snapshot is behind
    them; but what is behind the snapshot may go."""
    for is_archived in (True, False):
        disk, history = made(snapshots_at=(6, 8))
        archive = MemoryStorage()
        if is_archived:
            archive_segments(disk.commands, archive, 2, lambda line: None)
        else:
            spoil(disk, names_of(disk.commands)[1])
        heads = SnapshotFolder(disk.snapshots).heads()
        before, behind = event_files(disk)[0], event_files(disk)[-1]
        assert int(before) < heads[-1].events_segment <= heads[0].events_segment < int(behind)
        flip_tail(disk, f"{before}.events")
        found = diagnose(disk.folders)
        assert found.is_whole
        assert "restore first what was archived or is damaged" in found.notes[-1].text
        flip_tail(disk, f"{behind}.events")
        found, _ = mend(disk)
        names = [action.name for action in found.event_actions]
        assert names == [f"{behind}.events", f"{behind}.index"]
        start(disk.copy(), history.batches)
        if is_archived:
            restore_segments(archive, disk.commands, lambda line: None)
            found, _ = mend(disk)
            assert found.event_actions[0].name == f"{before}.events"
            start(disk, history.batches)
            assert diagnose(disk.folders).is_whole
