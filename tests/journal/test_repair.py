"""Diagnosis and repair: what is found is what hinders a start, and nothing goes without a copy."""

from __future__ import annotations

import errno
from collections import Counter
from contextlib import closing
from random import Random
from zlib import crc32

import pytest

from journal import Journal, JournalError, JournalFailed, SnapshotFolder, run_inline
from journal.archive import archive_segments, restore_segments
from journal.copies import OperationRefused
from journal.damage import diagnose, read_remnants
from journal.faulty import Fault, FaultyStorage
from journal.findings import Diagnosis, Folders
from journal.healing import find_flipped_bit
from journal.manifest import ARCHIVED_NAME, MANIFEST_NAME, MARKER_NAME, TERM_NAME, decode_term
from journal.memory import MemoryStorage, PowerLoss
from journal.record import HEADER_SIZE
from journal.repair import PAGE_NAME, begin_new_term, repair
from tests.journal.damaged import SNAPSHOTS_AT, Disk, History, names_of, run, start

PAPERS = {"lost.txt": [b"who ", b"knows\n"]}
PAGE = "found: something\n"


def made(*, is_stopped: bool = True, snapshots_at: tuple[int, ...] = ()) -> tuple[Disk, History]:
    disk, history = Disk(), History()
    run(disk, history, is_stopped=is_stopped, snapshots_at=snapshots_at)
    return disk, history


def spoil(disk: Disk, name: str) -> None:
    """Damage the first record of a segment beyond healing."""
    with closing(disk.commands.open(name, is_writable=True)) as file:
        file.write(700, bytes(byte ^ 255 for byte in file.read(700, 8)))
        file.sync()


def mend(disk: Disk) -> tuple[Diagnosis, MemoryStorage]:
    """Diagnose and repair; what was found, and the folder with the copies."""
    found = diagnose(disk.folders)
    aside = MemoryStorage()
    repair(disk.folders, found, aside, PAPERS, PAGE, lambda line: None)
    return found, aside


def check_copies(before: Disk, after: Disk, aside: MemoryStorage) -> None:
    """Every file that is not as it was has a copy."""
    copies = aside.images()
    for folder, old, new in zip(
        ("commands", "events", "snapshots"), before.all, after.all, strict=True
    ):
        for name, content in old.images().items():
            if new.images().get(name) != content:
                assert copies[f"{folder}-{name}"] == content, name
    page = copies[PAGE_NAME].decode()
    assert page.startswith("found: something\n")
    assert page.endswith("state: done\n")
    assert copies["lost.txt"] == b"who knows\n"


def texts(found: Diagnosis) -> list[str]:
    return [f"{finding.place}: {finding.text}" for finding in found.findings]


def mend_and_start(disk: Disk, history: History) -> tuple[Diagnosis, int]:
    """Repair, check the copies and that a venue starts; what was found and the records kept."""
    before = disk.copy()
    with pytest.raises(JournalError):
        start(disk.copy(), history.batches)
    found, aside = mend(disk)
    check_copies(before, disk, aside)
    head, term = start(disk.copy(), history.batches)
    assert head == found.head
    assert term == (found.term or 1)
    assert (found.term > 0) == found.is_lossy
    count = history.count_to(head.sequence)
    assert head == history.built[count - 1].head
    return found, count


def test_nothing_is_wrong() -> None:
    for is_stopped in (True, False):
        disk, history = made(is_stopped=is_stopped)
        before = [storage.images() for storage in disk.all]
        found = diagnose(disk.folders)
        assert (found.is_sound, found.notes, found.term) == (True, [], 0)
        assert found.head == history.built[-1].head
        assert [storage.images() for storage in disk.all] == before
    assert diagnose(Disk().folders).is_sound


def test_a_flipped_bit_in_the_middle() -> None:
    disk, history = made()
    name = names_of(disk.commands)[3]
    first = int(name[21:41])
    spoil(disk, name)
    found, count = mend_and_start(disk, history)
    assert texts(found)[0] == (
        f"commands/{name} at offset 512, after sequence {first - 1}: payload checksum differs"
    )
    assert found.head.sequence == first - 1
    assert (found.is_lossy, found.lost_to) == (True, history.last_sequence)
    places = {proof.place.split("/")[0] for proof in found.proofs}
    assert places == {"commands", "events"}
    assert count < len(history.batches)


def test_remnants_are_what_is_behind_the_damage() -> None:
    disk, history = made()
    spoil(disk, names_of(disk.commands)[3])
    found = diagnose(disk.folders)
    count = history.count_to(found.head.sequence)
    remnants = list(read_remnants(disk.commands, found))
    assert [remnant.payload for remnant in remnants] == history.payloads[count + 1 :]
    assert [remnant.first_sequence for remnant in remnants] == [
        batch.first_sequence for batch in history.batches[count + 1 :]
    ]


def test_every_flipped_bit_of_a_record_is_put_back() -> None:
    """Of its header, payload and padding, where the next record, the next segment or the marker
    says what it was."""
    disk, history = made()
    before = disk.commands.images()
    segments = names_of(disk.commands)
    dice = Random(1)
    for name in (segments[3], segments[-1]):
        size = len(before[name].rstrip(b"\0"))
        header = range(8 * 512, 8 * (512 + HEADER_SIZE))
        rest = dice.sample(range(8 * (512 + HEADER_SIZE), 8 * size), 150)
        for bit in (*header[::9], *rest):
            images = dict(before)
            content = bytearray(images[name])
            content[bit // 8] ^= 1 << bit % 8
            images[name] = bytes(content)
            damaged = Disk(MemoryStorage(images), disk.events, disk.snapshots)
            found = diagnose(damaged.folders)
            assert (found.is_lossy, len(found.findings)) == (False, 1), bit
            assert "it is known what was there, and it is put back" in found.findings[0].text
            if bit % 7 == 0:
                mend(damaged)
                assert damaged.commands.images() == before
    assert start(Disk(MemoryStorage(before), disk.events), history.batches)


def test_a_last_record_that_nothing_proves_is_not_guessed() -> None:
    """Whether it was durable is not known either: a new term it is."""
    disk, history = made(is_stopped=False)
    disk.events = MemoryStorage()
    name = names_of(disk.commands)[-1]
    disk.commands.flip(name, 8 * 700)
    found, count = mend_and_start(disk, history)
    assert (found.is_lossy, found.proofs, found.term) == (True, [], 2)
    assert count == len(history.batches) - 1


def test_a_last_segment_that_is_too_short() -> None:
    """The marker says whether something is missing; without it nobody knows."""
    for is_stopped in (True, False):
        disk, history = made(is_stopped=is_stopped)
        images = disk.commands.images()
        name = names_of(disk.commands)[-1]
        images[name] = images[name].rstrip(b"\0")
        assert len(images[name]) < 2560
        disk.commands = MemoryStorage(images)
        found, count = mend_and_start(disk, history)
        assert f"commands/{name}: has {len(images[name])} bytes instead of 2560" in texts(found)
        assert (found.is_lossy, count) == (not is_stopped, len(history.batches))


def test_a_new_term_is_above_every_one_that_was_seen() -> None:
    disk, history = made()
    name = names_of(disk.commands)[-1]
    spoil(disk, name)
    assert diagnose(disk.folders).term == 2
    disk, history = made()
    journal = Journal.open(disk.commands, segment_size=2560, prepare=run_inline)
    assert list(journal.records())
    journal.start(7)
    for _ in range(4):
        journal.write(journal.build(bytes(range(200)), 1, 0, history.batches[0].rules_version))
        journal.sync()
    journal.close()
    spoil(disk, name)
    assert diagnose(disk.folders).term == 8


def test_a_snapshot_whose_record_is_lost_is_no_way_around_older_damage() -> None:
    disk, history = made(snapshots_at=SNAPSHOTS_AT)
    newest, older = SnapshotFolder(disk.snapshots).heads()
    names = names_of(disk.commands)
    assert newest.commands_segment - older.commands_segment >= 2
    spoil(disk, names[newest.commands_segment - 1])
    spoil(disk, names[newest.commands_segment - 2])
    found, _ = mend_and_start(disk, history)
    assert found.head.sequence == int(names[newest.commands_segment - 2][21:41]) - 1


def test_a_snapshot_proves_the_last_record() -> None:
    disk, history = made(is_stopped=False, snapshots_at=(16,))
    disk.commands.flip(names_of(disk.commands)[-1], 8 * 700)
    found, count = mend_and_start(disk, history)
    assert (found.is_lossy, count) == (False, 16)


@pytest.mark.parametrize("size", [1, 2, 100, 4096])
def test_the_bit_that_a_checksum_misses(size: int) -> None:
    content = Random(size).randbytes(size)
    for bit in range(0, 8 * size, max(1, size // 10)):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        assert find_flipped_bit(changed, crc32(content)) == bit
        if size > 1:
            changed[0] ^= 2
            changed[-1] ^= 8
            found = find_flipped_bit(changed, crc32(content))
            assert found is None or bit in (1, 8 * size - 5)


@pytest.mark.parametrize("place", [0, 2, -1])
def test_a_damaged_header_costs_nothing(place: int) -> None:
    disk, history = made()
    disk.commands.flip(names_of(disk.commands)[place], 8 * 30)
    found, count = mend_and_start(disk, history)
    assert (found.is_lossy, count) == (False, len(history.batches))
    assert "the header of the segment is damaged" in texts(found)[0]
    assert len(found.findings) == 1


def test_rubbish_behind_the_last_record_costs_nothing() -> None:
    disk, history = made()
    before = disk.commands.images()
    roomy = next(name for name in names_of(disk.commands) if not any(before[name][-512:]))
    assert roomy != names_of(disk.commands)[-1], "a sealed one has room left"
    disk.commands.flip(roomy, 8 * (len(before[roomy]) - 10))
    found, count = mend_and_start(disk, history)
    assert (found.is_lossy, count) == (False, len(history.batches))
    assert disk.commands.images() == before


@pytest.mark.parametrize("is_gone", [False, True])
def test_a_manifest_is_made_anew_as_it_was(is_gone: bool) -> None:
    disk, history = made()
    before = disk.commands.images()
    if is_gone:
        disk.commands.remove(MANIFEST_NAME)
    else:
        disk.commands.flip(MANIFEST_NAME, 999)
    found, count = mend_and_start(disk, history)
    assert (found.is_lossy, count) == (False, len(history.batches))
    assert disk.commands.images() == before


def test_a_damaged_marker_is_taken_out() -> None:
    disk, history = made()
    disk.commands.flip(MARKER_NAME, 200)
    found, count = mend_and_start(disk, history)
    assert texts(found) == ["commands/clean-stop: it is damaged"]
    assert (found.is_lossy, count) == (False, len(history.batches))
    assert MARKER_NAME not in disk.commands.names()


def test_a_missing_segment() -> None:
    disk, history = made()
    name = names_of(disk.commands)[4]
    disk.commands.remove(name)
    found, count = mend_and_start(disk, history)
    assert "commands/: segment 5 is missing, and later ones are here" in texts(found)
    assert found.head.sequence == int(name[21:41]) - 1
    assert found.lost_to == history.last_sequence
    assert 0 < count < len(history.batches)


def test_the_last_segments_are_missing() -> None:
    disk, history = made()
    names = names_of(disk.commands)
    for name in names[-2:]:
        disk.commands.remove(name)
    found, _ = mend_and_start(disk, history)
    assert found.head.sequence == int(names[-2][21:41]) - 1
    assert found.is_lossy


def test_a_lost_end_is_proven_by_events_snapshot_and_marker() -> None:
    disk, history = made()
    name = names_of(disk.commands)[-1]
    images = disk.commands.images()
    images[name] = images[name][:512].ljust(2560, b"\0")
    disk = Disk(MemoryStorage(images), disk.events, disk.snapshots)
    found, _ = mend_and_start(disk, history)
    assert {proof.place for proof in found.proofs} >= {"commands/clean-stop"}
    assert found.head.sequence == int(name[21:41]) - 1
    assert found.lost_to == history.last_sequence


def test_events_that_go_on_are_cut_and_their_beginning_stays() -> None:
    disk, history = made()
    spoil(disk, names_of(disk.commands)[3])
    found, aside = mend(disk)
    kept = history.count_to(found.head.sequence)
    expected, other = Disk(), History()
    other.batches, other.payloads = history.batches[:kept], history.payloads[:kept]
    run(expected, other)
    segments = {name: disk.events.images()[name] for name in names_of(disk.events, ".events")}
    assert segments == expected.events.images()
    assert any(name.startswith("events-") for name in aside.names())


def test_not_a_single_record() -> None:
    disk, _ = made()
    spoil(disk, names_of(disk.commands)[0])
    before = [storage.images() for storage in disk.all]
    found = diagnose(disk.folders)
    assert found.obstacle == "not a single record can be kept"
    aside = MemoryStorage()
    with pytest.raises(OperationRefused, match="not a single record"):
        repair(disk.folders, found, aside, PAPERS, PAGE, print)
    assert [storage.images() for storage in disk.all] == before
    assert not aside.names()


def test_a_snapshot_of_another_journal_is_taken_out() -> None:
    disk, history = made()
    other, strange = Disk(), History()
    strange.payloads = [payload[::-1] for payload in history.payloads]
    run(other, strange, snapshots_at=SNAPSHOTS_AT)
    disk = Disk(disk.commands, disk.events, other.snapshots)
    found, count = mend_and_start(disk, history)
    assert (found.is_lossy, count) == (False, len(history.batches))
    text = "is of another journal than this one"
    assert [other.text for other in (*found.findings, *found.notes)] == [text, text]
    assert disk.snapshots.names() == []


def test_damage_before_the_newest_snapshot_hinders_no_start() -> None:
    """It is said, and a repair has nothing to do: a copy of the segment may come later."""
    disk, history = made(snapshots_at=SNAPSHOTS_AT)
    name = names_of(disk.commands)[2]
    spoil(disk, name)
    found = diagnose(disk.folders)
    assert (found.is_sound, found.is_lossy) == (True, False)
    sequence = history.batches[SNAPSHOTS_AT[-1] - 1].last_sequence
    assert found.notes[0].place.startswith(f"commands/{name} at offset 512")
    assert found.notes[0].text == (
        f"payload checksum differs; the snapshot of sequence {sequence} is behind it"
    )
    assert start(disk, history.batches)[0] == history.built[-1].head


def test_a_missing_segment_before_the_newest_snapshot_loses_nothing_of_the_state() -> None:
    disk, history = made(snapshots_at=SNAPSHOTS_AT)
    disk.commands.remove(names_of(disk.commands)[2])
    found, count = mend_and_start(disk, history)
    assert (found.is_lossy, count) == (False, len(history.batches))
    assert texts(found) == [
        "commands/archived: segment 3 is not here, and nothing says that it was archived"
    ]


def test_damage_behind_the_newest_snapshot_costs_what_follows() -> None:
    disk, history = made(snapshots_at=SNAPSHOTS_AT)
    names = names_of(disk.commands)
    spoil(disk, names[2])
    spoil(disk, names[-1])
    found, count = mend_and_start(disk, history)
    assert found.is_lossy
    assert count == history.count_to(int(names[-1][21:41]) - 1)
    assert len(disk.snapshots.names()) == 2


def test_a_snapshot_that_does_not_restore_is_not_counted_on() -> None:
    disk, _ = made(snapshots_at=SNAPSHOTS_AT)
    spoil(disk, names_of(disk.commands)[2])
    assert diagnose(disk.folders).is_sound
    found = diagnose(disk.folders, lambda head, image: False)
    assert found.is_lossy
    assert found.head.sequence < min(int(name[:20]) for name in disk.snapshots.names())


def test_a_read_error_is_no_damage() -> None:
    disk, _ = made()
    for at in range(1, 20):
        faulty = FaultyStorage(disk.commands, [Fault("read", at, errno.EIO)])
        with pytest.raises(JournalFailed, match="Input/output error"):
            diagnose(Folders(faulty, disk.events, disk.snapshots))


def archived() -> tuple[Disk, History, MemoryStorage]:
    disk, history = made(snapshots_at=SNAPSHOTS_AT)
    archive = MemoryStorage()
    archive_segments(disk.commands, archive, 3, lambda line: None)
    return disk, history, archive


def test_an_archived_journal_is_sound_and_an_archive_is_refused() -> None:
    disk, history, archive = archived()
    found = diagnose(disk.folders)
    assert (found.is_sound, found.notes) == (True, [])
    assert found.head[:2] == history.built[-1].head[:2]
    with pytest.raises(OperationRefused, match="this is an archive"):
        diagnose(Disk(archive).folders)


def test_damage_behind_what_is_archived() -> None:
    disk, history, archive = archived()
    name = names_of(disk.commands)[5]
    spoil(disk, name)
    found, aside = mend(disk)
    assert found.is_lossy
    assert found.head.sequence == int(name[21:41]) - 1
    restore_segments(archive, disk.commands, lambda line: None)
    head, term = start(disk.copy(), history.batches)
    assert (head.sequence, term) == (found.head.sequence, 2)
    assert f"commands-{name}" in aside.names()


def test_the_file_that_says_what_is_archived_is_made_anew() -> None:
    for damage in ("flip", "remove"):
        disk, history, archive = archived()
        before = disk.commands.images()
        if damage == "flip":
            disk.commands.flip(ARCHIVED_NAME, 300)
        else:
            disk.commands.remove(ARCHIVED_NAME)
        found, _ = mend(disk)
        assert not found.is_lossy
        assert disk.commands.images() == before
        restore_segments(archive, disk.commands, lambda line: None)
        assert start(disk.copy(), history.batches)[0] == history.built[-1].head


def test_a_lost_manifest_of_an_archived_journal_needs_the_archive() -> None:
    disk, history, archive = archived()
    disk.commands.remove(MANIFEST_NAME)
    found = diagnose(disk.folders)
    assert "restore them first" in found.obstacle
    restore_segments(archive, disk.commands, lambda line: None)
    found, count = mend_and_start(disk, history)
    assert (found.is_lossy, count) == (False, len(history.batches))


def test_a_new_term_of_an_older_copy() -> None:
    disk, history = made()
    for term in (1024, 2048):
        assert begin_new_term(disk.commands, diagnose(disk.folders)) == term
        assert decode_term(disk.commands.images()[TERM_NAME]) == term
    assert start(disk, history.batches) == (history.built[-1].head, 2048)


def damage_of(disk: Disk, dice: Random) -> str:
    """Damage commands/ somewhere; says how."""
    images = disk.commands.images()
    name = dice.choice([name for name in images if not name.endswith(".prepared")])
    content = bytearray(images[name])
    what = dice.choice(("flip", "flip", "zeros", "noise", "cut", "grow", "remove", "swap"))
    at = dice.randrange(len(content)) if content else 0
    size = dice.choice((1, 8, 512, 1024))
    if what == "flip" and content:
        content[at] ^= 1 << dice.randrange(8)
    elif what == "zeros":
        content[at : at + size] = bytes(len(content[at : at + size]))
    elif what == "noise":
        content[at : at + size] = dice.randbytes(len(content[at : at + size]))
    elif what == "cut":
        del content[at:]
    elif what == "grow":
        content.extend(dice.randbytes(size))
    images[name] = bytes(content)
    if what == "remove":
        del images[name]
    elif what == "swap":
        other = dice.choice(names_of(disk.commands))
        images[name], images[other] = images[other], images[name]
    disk.commands = MemoryStorage(images)
    return f"{what} {name} at {at}"


@pytest.mark.parametrize("seed", range(150))
def test_any_damage_is_found_and_repaired(seed: int) -> None:
    """What is sound starts, what is not does not; after a repair it starts with what is kept."""
    dice = Random(seed)
    snapshots_at = dice.choice(((), SNAPSHOTS_AT, (2, 15)))
    disk, history = made(is_stopped=dice.random() < 0.7, snapshots_at=snapshots_at)
    story = [damage_of(disk, dice) for _ in range(dice.choice((1, 1, 1, 2, 3)))]
    print(seed, story)
    found = diagnose(disk.folders)
    try:
        start(disk.copy(), history.batches)
        has_started = True
    except JournalError as error:
        print(error)
        has_started = False
    print(texts(found))
    assert found.is_sound == has_started
    if found.is_sound or found.obstacle:
        return
    before = disk.copy()
    _, aside = mend(disk)
    check_copies(before, disk, aside)
    head, term = start(disk.copy(), history.batches)
    count = history.count_to(head.sequence)
    assert head == history.built[count - 1].head, "what is kept is the beginning of what happened"
    if count < len(history.batches):
        assert found.is_lossy
        assert term >= 2


def spoiled(damage: str) -> tuple[Disk, History]:
    """One kind of damage, durably there."""
    disk, history = made()
    names = names_of(disk.commands)
    if damage == "middle":
        spoil(disk, names[3])
    elif damage == "bit":
        disk.commands.flip(names[3], 8 * 700)
    elif damage == "end":
        disk.events = MemoryStorage()
        disk.commands.remove(MARKER_NAME)
        spoil(disk, names[-1])
    elif damage == "gap":
        disk.commands.remove(names[4])
    elif damage == "manifest":
        disk.commands.flip(MANIFEST_NAME, 500)
    else:
        disk.commands.flip(MARKER_NAME, 100)
    disk.commands.sync_folder()
    return disk, history


def shared(disk: Disk, aside: MemoryStorage, fault: Fault | None = None) -> list[FaultyStorage]:
    """The folders on one machine: their operations are counted together."""
    faults = [fault] if fault else []
    every = [FaultyStorage(storage, faults) for storage in (*disk.all, aside)]
    for storage in every:
        storage.counts = every[0].counts
    return every


def repair_on(every: list[FaultyStorage]) -> None:
    folders = Folders(*every[:3])
    repair(folders, diagnose(folders), every[3], PAPERS, PAGE, lambda line: None)


@pytest.mark.parametrize("is_applied", [False, True])
@pytest.mark.parametrize("damage", ["middle", "bit", "end", "gap", "manifest", "marker"])
def test_crash_at_every_step_of_a_repair(damage: str, is_applied: bool) -> None:
    """A second diagnosis comes to the same end, and a repair finishes what was begun."""
    disk, history = spoiled(damage)
    expected = diagnose(disk.folders)
    counting = shared(disk, MemoryStorage())
    repair_on(counting)
    final = sorted(disk.commands.names())
    outcomes: Counter[str] = Counter()
    for at in range(1, counting[0].counts["change"] + 1):
        disk, _ = spoiled(damage)
        aside = MemoryStorage()
        fault = Fault("change", at, errno.EIO, is_persistent=True, is_applied=is_applied)
        with pytest.raises(JournalFailed):
            repair_on(shared(disk, aside, fault))
        for storage in (*disk.all, aside):
            storage.crash(Random(at), PowerLoss(is_folder_ordered=at % 2 == 0))
        found = diagnose(disk.folders)
        outcomes["done" if found.is_sound else "again"] += 1
        assert found.head.sequence == expected.head.sequence, at
        if found.is_sound:
            names = [name for name in disk.commands.names() if not name.endswith(".tmp")]
            assert names == final, at
        else:
            with pytest.raises(JournalError):
                start(disk.copy(), history.batches)
            mend(disk)
        head, term = start(disk.copy(), history.batches)
        assert head == expected.head, at
        assert (term >= 2) == expected.is_lossy, at
        if expected.is_lossy:
            assert decode_term(disk.commands.images()[TERM_NAME]) == term
    assert outcomes["again"] > 5
