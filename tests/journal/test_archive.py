"""Archive and restore: what is moved is moved whole, at every crash, and comes back the same."""

from __future__ import annotations

import errno
from random import Random

import pytest

from journal import Journal, JournalDamaged, JournalFailed, SnapshotHead, run_inline, verify
from journal.archive import archivable_count, archive_segments, restore_segments
from journal.copies import OperationRefused
from journal.faulty import Fault, FaultyStorage
from journal.manifest import ARCHIVED_NAME, MANIFEST_NAME, TERM_NAME, decode_term, encode_term
from journal.memory import MemoryStorage, PowerLoss
from journal.reader import survey
from journal.record import NO_HASH
from journal.storage import Storage, write_durably
from tests.journal.life import append, noise, read, start

SEGMENT_SIZE = 2560  # Four sectors for records.
SEEDS = 3
LOSSES = [PowerLoss(), PowerLoss(), PowerLoss(is_folder_ordered=False)]


def quiet(line: str) -> None:
    assert line


def live(storage: Storage, count: int, *, is_stopped: bool = True) -> Journal:
    """A life of a journal with `count` records of 300 to 1100 bytes."""
    journal = start(storage, segment_size=SEGMENT_SIZE)
    for step in range(count):
        append(journal, noise(300 + 100 * (step % 9)), command_count=2)
    if is_stopped:
        journal.stop()
    return journal


def made() -> MemoryStorage:
    """A journal of many segments, stopped."""
    storage = MemoryStorage()
    live(storage, 14)
    return storage


def segment_names(storage: Storage) -> list[str]:
    return [name for name in storage.names() if name.endswith(".segment")]


def payloads(storage: Storage) -> list[bytes]:
    return [bytes(record.payload) for record in read(storage)]


def same_journal(found: MemoryStorage, expected: MemoryStorage) -> bool:
    """The same files; who looked at them may have left the lock."""
    return found.images() == expected.images()


def test_what_is_moved_comes_back_the_same() -> None:
    commands, archive = made(), MemoryStorage()
    names = segment_names(commands)
    assert len(names) > 5
    assert archive_segments(commands, archive, 4, quiet) == 4
    assert segment_names(commands) == names[4:]
    assert segment_names(archive) == names[:4]
    summary = verify(archive)
    assert (summary.segment_count, summary.sealed_count, summary.end) == (4, 4, "clean")
    with pytest.raises(JournalDamaged, match="archived"):
        read(commands)
    lines: list[str] = []
    restored = restore_segments(archive, commands, lines.append)
    assert (restored.segment_count, restored.head) == (4, None)
    assert lines[0] == "segment 4: 2560 bytes copied"
    assert same_journal(commands, made())


def test_it_goes_on_in_turns_and_beside_a_running_venue() -> None:
    commands, archive = MemoryStorage(), MemoryStorage()
    journal = live(commands, 8, is_stopped=False)
    assert archive_segments(commands, archive, 2, quiet) == 2
    for step in range(8):
        append(journal, noise(400 + step), command_count=1)
    assert archive_segments(commands, archive, 5, quiet) == 3
    assert archive_segments(commands, archive, 5, quiet) == 0
    journal.stop()
    restore_segments(archive, commands, quiet)
    assert len(payloads(commands)) == 16


def test_another_archive_is_refused() -> None:
    commands, archive = made(), MemoryStorage()
    archive_segments(commands, archive, 2, quiet)
    other, journal = MemoryStorage(), MemoryStorage()
    with pytest.raises(OperationRefused, match="archived before, and this archive has 0"):
        archive_segments(commands, other, 3, quiet)
    live(journal, 9)
    append_other = MemoryStorage()
    open_journal = start(append_other, segment_size=SEGMENT_SIZE)
    for _ in range(9):
        append(open_journal, noise(777))
    open_journal.stop()
    with pytest.raises(OperationRefused, match="segment 1 of the archive is another one"):
        archive_segments(append_other, archive, 1, quiet)
    with pytest.raises(OperationRefused, match="segment 1 of the archive is another one"):
        restore_segments(archive, append_other, quiet)
    with pytest.raises(OperationRefused, match="is no archive"):
        archive_segments(commands, journal, 3, quiet)
    assert not other.names(), "a folder that is refused stays as it was"
    with pytest.raises(OperationRefused, match="no archive"):
        restore_segments(MemoryStorage(), commands, quiet)


def test_a_damaged_segment_stays_where_it_is() -> None:
    commands, archive = made(), MemoryStorage()
    names = segment_names(commands)
    before = commands.images()
    commands.flip(names[1], 8 * 1000)
    with pytest.raises(JournalDamaged, match="hash of the sealed segment differs"):
        archive_segments(commands, archive, 3, quiet)
    assert segment_names(commands) == names[1:]
    assert segment_names(archive) == names[:1]
    assert archive.names() == sorted([names[0], MANIFEST_NAME, ARCHIVED_NAME])
    commands.flip(names[1], 8 * 1000)
    assert archive_segments(commands, archive, 3, quiet) == 2
    restore_segments(archive, commands, quiet)
    assert commands.images() == before


def test_a_damaged_copy_is_made_again() -> None:
    """An archiving that was cut off between copy and removal."""
    commands, archive = made(), MemoryStorage()
    names = segment_names(commands)
    kept = commands.images()
    archive_segments(commands, archive, 2, quiet)
    commands = MemoryStorage({**commands.images(), names[1]: kept[names[1]]})
    archive.flip(names[1], 8 * 900)
    assert archive_segments(commands, archive, 2, quiet) == 1
    assert archive.images()[names[1]] == kept[names[1]]
    assert segment_names(commands) == names[2:]


def test_restore_replaces_what_is_damaged_and_keeps_it() -> None:
    commands, archive = made(), MemoryStorage()
    expected = commands.images()
    names = segment_names(commands)
    archive_segments(commands, archive, 3, quiet)
    commands = MemoryStorage({**expected, names[1]: noise(2560)})
    with pytest.raises(JournalDamaged):
        read(commands)
    assert restore_segments(archive, commands, quiet).segment_count == 1
    found = commands.images()
    assert found.pop("replaced-00000000000000000002-1.bin") == noise(2560)
    assert found == expected


def test_what_is_here_stays_when_the_archive_is_damaged_too() -> None:
    """The segments around it come back all the same."""
    commands, archive = made(), MemoryStorage()
    expected = commands.images()
    names = segment_names(commands)
    archive_segments(commands, archive, 4, quiet)
    archive.flip(names[1], 8 * 1500)
    damaged = noise(2560)
    commands = MemoryStorage({**commands.images(), names[1]: damaged})
    lines: list[str] = []
    assert restore_segments(archive, commands, lines.append).segment_count == 3
    assert "segment 2: damaged in the archive; what is here stays as it is" in lines
    found = commands.images()
    assert (found[names[1]], found[names[0]]) == (damaged, expected[names[0]])
    assert not any(name.startswith("replaced-") for name in found)
    assert ARCHIVED_NAME not in found

    commands = made()
    archive_segments(commands, MemoryStorage(), 4, quiet)
    restore_segments(archive, commands, quiet)
    assert names[1] not in commands.names()
    assert ARCHIVED_NAME in commands.names(), "what is missing counts as archived"


def test_an_older_copy_of_the_journal_is_refused() -> None:
    """Its open segment lacks records that the archive has."""
    commands, archive = MemoryStorage(), MemoryStorage()
    journal = live(commands, 6, is_stopped=False)
    older = MemoryStorage(commands.images())
    for step in range(8):
        append(journal, noise(400 + step))
    journal.stop()
    archive_segments(commands, archive, 4, quiet)
    before = older.images()
    with pytest.raises(OperationRefused, match="older than the archive, which goes on to sequence"):
        restore_segments(archive, older, quiet)
    assert older.images() == before


@pytest.mark.parametrize("name", [MANIFEST_NAME, ARCHIVED_NAME, TERM_NAME])
@pytest.mark.parametrize("damage", ["flip", "cut", "older"])
def test_the_small_files_of_an_archive_are_made_anew(name: str, damage: str) -> None:
    """By the next archiving, and by a restore into a new folder; no segment is ever given up."""

    def spoiled() -> tuple[MemoryStorage, MemoryStorage, dict[str, bytes]]:
        commands, archive = made(), MemoryStorage()
        write_durably(commands, TERM_NAME, [encode_term(5)])
        archive_segments(commands, archive, 3, quiet)
        older = archive.images()
        archive_segments(commands, archive, 4, quiet)
        expected, content = archive.images(), archive.images()[name]
        changed = {"flip": content[:30] + b"?" + content[31:], "cut": content[:30]}
        images = {**expected, name: changed.get(damage, older[name])}
        return commands, MemoryStorage(images), expected

    commands, archive, expected = spoiled()
    assert archive_segments(commands, archive, 4, quiet) == 0
    found = archive.images()
    if name == TERM_NAME:
        assert decode_term(found.pop(name)) >= decode_term(expected.pop(name))
    assert found == expected
    assert verify(archive).segment_count == 4

    commands, archive, expected = spoiled()
    anew = MemoryStorage()
    restored = restore_segments(archive, anew, quiet)
    assert restored.segment_count == 4
    is_unknown = name == TERM_NAME and damage != "older"
    assert restored.term == (65536 if is_unknown else 1024)
    assert restore_segments(archive, commands, quiet).segment_count == 4
    assert payloads(commands) == payloads(made())


def test_an_archive_and_a_journal_are_not_mixed_up() -> None:
    commands, archive = made(), MemoryStorage()
    archive_segments(commands, archive, 3, quiet)
    before = [commands.images(), archive.images()]
    with pytest.raises(OperationRefused, match="no archive"):
        restore_segments(commands, archive, quiet)
    with pytest.raises(OperationRefused, match="is an archive itself"):
        restore_segments(archive, MemoryStorage(archive.images()), quiet)
    with pytest.raises(OperationRefused, match="no archive"):
        archive_segments(made(), commands, 3, quiet)
    with pytest.raises(JournalDamaged):
        read(archive)
    assert [commands.images(), archive.images()] == before
    touched = MemoryStorage({**archive.images(), "lock": b""})
    with pytest.raises(OperationRefused, match="remove `lock` from it"):
        restore_segments(touched, commands, quiet)


def test_restore_says_what_the_archive_has_not() -> None:
    commands, archive = made(), MemoryStorage()
    names = segment_names(commands)
    archive_segments(commands, archive, 2, quiet)
    commands.remove(names[3])
    commands.flip(names[4], 9999)
    before = {**made().images(), names[4]: commands.images()[names[4]]}
    del before[names[3]]
    lines: list[str] = []
    restored = restore_segments(archive, commands, lines.append)
    assert (restored.segment_count, restored.head) == (2, None)
    assert lines[2:] == [
        "segment 4: it is neither here nor in this archive",
        "segment 5: it is damaged, and the archive does not have it",
    ]
    assert commands.images() == before
    with pytest.raises(OperationRefused, match="segments 4 are neither here"):
        restore_segments(archive, commands, quiet)
    assert commands.images() == before
    commands = made()
    commands.flip(names[3], 9999)
    lines = []
    assert restore_segments(archive, commands, lines.append).segment_count == 0
    assert lines == ["segment 4: it is damaged, and the archive does not have it"]


@pytest.mark.parametrize("archived", [2, 3])
def test_what_is_said_to_be_archived_stays_so_until_it_is_here(archived: int) -> None:
    """An archive that lacks the last one of them brings back the others."""
    commands, archive, longer = made(), MemoryStorage(), MemoryStorage()
    expected = commands.images()
    names = segment_names(commands)
    archive_segments(made(), archive, 2, quiet)
    archive_segments(commands, longer, archived, quiet)
    commands.remove(names[4])
    said = commands.images()[ARCHIVED_NAME]
    lines: list[str] = []
    assert restore_segments(archive, commands, lines.append).segment_count == 2
    assert f"segment {archived + 1}: it is neither here nor in this archive" not in lines
    del expected[names[4]]
    if archived == 3:
        assert "segment 3: it is neither here nor in this archive" in lines
        del expected[names[2]]
        assert commands.images() == {**expected, ARCHIVED_NAME: said}
        with pytest.raises(OperationRefused, match="segments 3, 5 are neither here"):
            restore_segments(archive, commands, quiet)
        assert restore_segments(longer, commands, quiet).segment_count == 1
        expected = {**expected, names[2]: made().images()[names[2]]}
    assert commands.images() == expected


def test_a_journal_is_made_anew_in_a_new_term() -> None:
    commands, archive = made(), MemoryStorage()
    all_payloads = payloads(commands)
    archive_segments(commands, archive, 4, quiet)
    found = MemoryStorage()
    restored = restore_segments(archive, found, quiet)
    assert restored.head is not None
    assert (restored.segment_count, restored.head.term, restored.term) == (4, 1, 1024)
    assert verify(found).last_sequence == restored.head.sequence
    begun = payloads(found)
    assert begun == all_payloads[: len(begun)]
    assert begun
    journal = Journal.open(found, segment_size=SEGMENT_SIZE, prepare=run_inline)
    assert len(list(journal.records())) == len(begun)
    assert journal.minimum_term == 1024
    journal.start(journal.minimum_term)
    append(journal, b"goes on")
    journal.stop()
    assert payloads(found) == [*begun, b"goes on"]
    # A second disaster before anything else was archived: never the same term.
    assert restore_segments(archive, MemoryStorage(), quiet).term == 2048
    assert decode_term(archive.images()[TERM_NAME]) == 2048


def test_the_archive_knows_the_terms_that_a_repair_has_begun() -> None:
    commands, archive = made(), MemoryStorage()
    archive_segments(commands, archive, 2, quiet)
    assert TERM_NAME not in archive.names()
    write_durably(commands, TERM_NAME, [encode_term(1500)])
    assert archive_segments(commands, archive, 2, quiet) == 0
    assert decode_term(archive.images()[TERM_NAME]) == 1500
    assert restore_segments(archive, MemoryStorage(), quiet).term == 2048


def test_a_journal_without_a_manifest_is_not_overwritten() -> None:
    """It gets back what was archived; a repair makes the manifest."""
    commands, archive = made(), MemoryStorage()
    expected = commands.images()
    names = segment_names(commands)
    archive_segments(commands, archive, 4, quiet)
    for step in range(2):
        commands.remove(MANIFEST_NAME if not step else ARCHIVED_NAME)
        restored = restore_segments(archive, commands, quiet)
        assert (restored.segment_count, restored.head) == (4, None)
        found = commands.images()
        assert found == {key: expected[key] for key in expected if key != MANIFEST_NAME}
        for name in names[:4]:
            commands.remove(name)
        commands = MemoryStorage({**commands.images(), ARCHIVED_NAME: b"whatever"})


def test_too_little_room_is_said_before_anything_is_written() -> None:
    commands, archive = made(), MemoryStorage()
    expected = commands.images()
    archive.free_bytes = 1_000_000
    with pytest.raises(JournalFailed, match="bytes are free there, 67111424 are needed"):
        archive_segments(commands, archive, 4, quiet)
    assert commands.images() == expected


def joined(
    commands: MemoryStorage, archive: MemoryStorage, fault: Fault | None = None
) -> tuple[FaultyStorage, FaultyStorage]:
    """Both folders on one machine: their operations are counted together."""
    faults = [fault] if fault else []
    first, second = FaultyStorage(commands, faults), FaultyStorage(archive, faults)
    second.counts = first.counts
    return first, second


@pytest.mark.parametrize("is_applied", [False, True])
def test_crash_at_every_step_of_an_archiving(is_applied: bool) -> None:
    expected = made().images()
    counting, other = joined(made(), MemoryStorage())
    archive_segments(counting, other, 3, quiet)
    for at in range(1, counting.counts["change"] + 1):
        for seed in range(SEEDS):
            commands, archive = made(), MemoryStorage()
            fault = Fault("change", at, errno.EIO, is_persistent=True, is_applied=is_applied)
            with pytest.raises(JournalFailed):
                archive_segments(*joined(commands, archive, fault), 3, quiet)
            dice = Random(at * 100 + seed)
            commands.crash(dice, LOSSES[seed])
            archive.crash(dice, LOSSES[seed])
            place = f"operation {at}, seed {seed}"
            if MANIFEST_NAME in archive.names():
                assert verify(archive).end == "clean", place
            survey(commands)  # A venue may start now, from a snapshot.
            both = {*segment_names(commands), *segment_names(archive)}
            assert both == {name for name in expected if name.endswith(".segment")}, place
            if seed:
                # What is left may also go back.
                if any(name not in commands.names() for name in both):
                    restore_segments(archive, commands, quiet)
                    found = {key: commands.images()[key] for key in both}
                    assert found == {key: expected[key] for key in both}, place
                    assert len(payloads(commands)) == 14, place
                continue
            archive_segments(commands, archive, 3, quiet)
            assert len(segment_names(archive)) == 3, place
            assert verify(archive).segment_count == 3, place
            restore_segments(archive, commands, quiet)
            assert commands.images() == expected, place


@pytest.mark.parametrize(("is_anew", "gone"), [(False, 0), (False, 4), (True, 0)])
def test_crash_at_every_step_of_a_restore(is_anew: bool, gone: int) -> None:
    """Also with a segment gone that was not archived."""

    def archived() -> tuple[MemoryStorage, MemoryStorage]:
        commands, archive = made(), MemoryStorage()
        archive_segments(commands, archive, 3, quiet)
        if gone:
            commands.remove(names[gone - 1])
            commands.sync_folder()
        return (MemoryStorage() if is_anew else commands), archive

    def restore(fault: Fault | None = None) -> tuple[MemoryStorage, MemoryStorage, FaultyStorage]:
        commands, archive = archived()
        first, second = joined(commands, archive, fault)
        if fault is None:
            restore_segments(second, first, quiet)
        else:
            with pytest.raises(JournalFailed):
                restore_segments(second, first, quiet)
        return commands, archive, first

    names = segment_names(made())
    expected, _, counting = restore()
    assert ARCHIVED_NAME not in expected.names()
    count = 0 if gone else len(payloads(expected))
    for at in range(1, counting.counts["change"] + 1):
        for seed in range(SEEDS):
            fault = Fault("change", at, errno.EIO, is_persistent=True, is_applied=bool(seed % 2))
            commands, archive, _ = restore(fault)
            dice = Random(at * 100 + seed)
            commands.crash(dice, LOSSES[seed])
            archive.crash(dice, LOSSES[seed])
            place = f"operation {at}, seed {seed}"
            if not is_anew and ARCHIVED_NAME not in commands.names():
                assert segment_names(commands) == segment_names(expected), place
            if is_anew and MANIFEST_NAME not in commands.names() and segment_names(commands):
                with pytest.raises(JournalDamaged):
                    read(commands)
            if gone and ARCHIVED_NAME not in commands.names():
                with pytest.raises(OperationRefused):  # Nothing is left to be done.
                    restore_segments(archive, commands, quiet)
            else:
                restore_segments(archive, commands, quiet)
            assert gone or len(payloads(commands)) == count, place
            if is_anew:
                assert decode_term(commands.images()[TERM_NAME]) >= 2, place
            else:
                assert commands.images() == expected.images(), place


def test_what_a_restore_that_died_has_renamed_is_durable_before_the_end() -> None:
    """Of the second try the disk may remember nothing but that `archived` is removed."""
    names = segment_names(made())
    outcomes = set()
    for seed in range(20):
        commands, archive = made(), MemoryStorage()
        archive_segments(commands, archive, 2, quiet)
        for fault in (
            Fault("sync_folder", 2, errno.EIO, is_persistent=True),
            Fault("remove", 1, errno.EIO, is_persistent=True, is_applied=True),
        ):
            with pytest.raises(JournalFailed):
                restore_segments(archive, FaultyStorage(commands, [fault]), quiet)
            assert segment_names(commands) == names
        commands.crash(Random(seed), PowerLoss(is_folder_ordered=False))
        outcomes.add(ARCHIVED_NAME in commands.names())
        assert segment_names(commands) == names, f"seed {seed}"
    assert outcomes == {True, False}


def head_at(segment: int, sequence: int) -> SnapshotHead:
    return SnapshotHead(
        *(1, sequence, 0, 1, NO_HASH, sequence - 1, 1, NO_HASH, segment, 512, 0),
        *(1, 100, 1 << 20, 0, 10, NO_HASH),
    )


def test_what_two_snapshots_no_longer_need() -> None:
    commands = made()
    sealed = verify(commands).sealed_count
    assert archivable_count(commands, [head_at(9, 90)], 0) == 0
    assert archivable_count(commands, [head_at(5, 90), head_at(4, 80), head_at(2, 30)], 0) == 3
    assert archivable_count(commands, [head_at(5, 90), head_at(4, 80)], 2) == 1
    assert archivable_count(commands, [head_at(5, 90), head_at(1, 80)], 0) == 0
    assert archivable_count(commands, [head_at(99, 90), head_at(99, 80)], 0) == sealed
