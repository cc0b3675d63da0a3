"""A start from a snapshot ends exactly where a start from the first record ends, sees damage in
what it reads, and refuses a snapshot of another journal."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

import pytest

from journal import (
    Journal,
    JournalDamaged,
    JournalReader,
    Record,
    SnapshotHead,
    check_events,
    read_only,
    run_inline,
    verify,
)
from journal.manifest import (
    Archived,
    decode_manifest,
    encode_archived,
    encode_manifest,
    encode_term,
)
from journal.memory import MemoryStorage
from tests.journal.event_life import images_of, make_batches, other_history
from tests.journal.snapshot_life import SEGMENT_SIZE, append_batch, make_venue
from tests.journal.test_crash import run_when_waited_for

VENUE = make_venue(40)
SEGMENTS = [name for name in VENUE.commands if name.endswith(".segment")]
SEALED = decode_manifest(VENUE.commands["manifest"])
assert len(SEALED) == len(SEGMENTS) - 1 >= 8, "several sealed segments and one that takes records"


def unsealed_twice() -> dict[str, bytes]:
    """The folder as a kill leaves it before the last full segment is in the manifest."""
    return {**VENUE.commands, "manifest": encode_manifest(SEALED[:-1])}


def read(
    images: Mapping[str, bytes], start: SnapshotHead | None, floor_sequence: int = 0
) -> JournalReader:
    """A reader that has read everything, and has checked that no file was changed."""
    storage = MemoryStorage(images)
    reader = read_only(storage, floor_sequence, start)
    found = list(reader.records())
    assert storage.images() == images
    first = VENUE.heads.index(start) + 1 if start is not None else 0
    assert found == VENUE.records[first:]
    return reader


def refused(images: Mapping[str, bytes], start: SnapshotHead | None) -> JournalDamaged:
    """The refusal by a journal that is opened to take records; it lets go of the lock."""
    storage = MemoryStorage(images)
    with pytest.raises(JournalDamaged) as caught:
        open_and_read(storage, start)
    assert storage.images() == images
    storage.lock()
    return caught.value


def open_and_read(storage: MemoryStorage, start: SnapshotHead | None) -> None:
    journal = Journal.open(storage, start=start, prepare=run_inline)
    try:
        list(journal.records())
    finally:
        journal.close()


def test_every_snapshot_leads_to_the_same_end() -> None:
    for images in (VENUE.commands, unsealed_twice()):
        full = read(images, None)
        for start in VENUE.heads:
            reader = read(images, start, floor_sequence=VENUE.heads[-1].sequence)
            assert (reader.head, reader.tail) == (full.head, full.tail)
            assert reader.unsealed == full.unsealed


def test_a_journal_goes_on_behind_every_snapshot() -> None:
    """To the same files as after a start from the first record; sealing included."""
    batches = make_batches(55)
    assert batches[:40] == VENUE.batches

    def go_on(images: Mapping[str, bytes], start: SnapshotHead | None) -> dict[str, bytes]:
        storage = MemoryStorage(images)
        journal = Journal.open(
            storage, start=start, segment_size=SEGMENT_SIZE, prepare=run_when_waited_for
        )
        assert len(list(journal.records())) == len(VENUE.records) - (
            VENUE.heads.index(start) + 1 if start is not None else 0
        )
        assert journal.head == VENUE.records[-1].head
        journal.start(journal.minimum_term)
        dice = Random(2)
        for batch in batches[40:]:
            append_batch(journal, batch, dice)
        journal.stop()
        return storage.images()

    for images in (VENUE.commands, unsealed_twice()):
        expected = go_on(images, None)
        for start in VENUE.heads:
            assert go_on(images, start) == expected


def test_a_torn_end_is_cut_behind_a_snapshot() -> None:
    last = VENUE.records[-1]
    for start in VENUE.heads[:-1]:
        content = bytearray(VENUE.commands[SEGMENTS[-1]])
        content[last.offset : last.offset + 512] = bytes(512)
        storage = MemoryStorage({**VENUE.commands, SEGMENTS[-1]: bytes(content)})
        journal = Journal.open(storage, start=start, segment_size=SEGMENT_SIZE, prepare=run_inline)
        list(journal.records())
        assert journal.head == VENUE.heads[-1].previous
        journal.start(1)
        journal.close()


def test_only_what_is_needed_is_read() -> None:
    """Damage in a sealed segment before the snapshot is not seen, from its own segment on it is."""
    start = VENUE.heads[20]
    for index, name in enumerate(SEGMENTS):
        content = bytearray(VENUE.commands[name])
        content[700] ^= 4
        images = {**VENUE.commands, name: bytes(content)}
        if index + 1 < start.commands_segment:
            read(images, start)
        else:
            assert refused(images, start).file == name


def test_every_flip_behind_a_snapshot_is_refused() -> None:
    """And before it in its segment: what is not sealed is read whole."""
    start, last = VENUE.heads[-1], VENUE.records[-1]
    assert last.offset > 512, "not the first of its segment"
    content = VENUE.commands[SEGMENTS[-1]]
    for bit in range(0, 8 * (last.offset + last.size), 11):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        refused({**VENUE.commands, SEGMENTS[-1]: bytes(flipped)}, start)


def test_every_length_of_a_segment_behind_a_snapshot_is_refused() -> None:
    start = VENUE.heads[-1]
    name = SEGMENTS[-1]
    for size in range(0, SEGMENT_SIZE, 7):
        refused({**VENUE.commands, name: VENUE.commands[name][:size]}, start)
    images = dict(VENUE.commands)
    del images[name]
    refused(images, start)


def test_damage_anywhere_is_refused_or_changes_nothing() -> None:
    """Several flips, zeroed sectors or swapped ones in any file, from any snapshot."""
    refused_count = 0
    for seed in range(1500):
        dice = Random(seed)
        images = dict(VENUE.commands if dice.randrange(2) else unsealed_twice())
        for _ in range(dice.randrange(1, 4)):
            name = dice.choice(sorted(images))
            content = bytearray(images[name])
            place = dice.randrange(len(content)) if content else 0
            sector = place - place % 512
            match dice.randrange(3):
                case 0 if content:
                    content[place] ^= 1 << dice.randrange(8)
                case 1:
                    content[sector : sector + 512] = bytes(len(content[sector : sector + 512]))
                case _:
                    other = 512 * dice.randrange(max(len(content) // 512, 1))
                    content[sector : sector + 512], content[other : other + 512] = (
                        content[other : other + 512],
                        content[sector : sector + 512],
                    )
            images[name] = bytes(content)
        start = dice.choice([None, *VENUE.heads])
        storage = MemoryStorage(images)
        found: list[Record] = []
        try:
            reader = read_only(storage, VENUE.heads[-1].sequence, start)
            found.extend(reader.records())
        except JournalDamaged:
            refused_count += 1
        first = VENUE.heads.index(start) + 1 if start is not None else 0
        assert found == VENUE.records[first : first + len(found)], f"seed {seed}"
        assert storage.images() == images
    assert 500 < refused_count < 1400, "both happened"


def test_a_snapshot_of_another_journal() -> None:
    """Each field that says where its record is, wrong by a little."""
    for start in VENUE.heads[1:-1]:
        later = VENUE.heads[VENUE.heads.index(start) + 1]
        wrong = [
            start._replace(record_hash=bytes(32)),
            start._replace(previous_hash=bytes(32)),
            start._replace(sequence=start.sequence + 1),
            start._replace(previous_sequence=start.previous_sequence - 1),
            start._replace(term=2),
            start._replace(rules_version=9),
            start._replace(record_offset=start.record_offset + 512),
            start._replace(record_offset=2 * SEGMENT_SIZE),
            start._replace(commands_segment=len(SEGMENTS) + 1),
            start._replace(
                commands_segment=later.commands_segment, record_offset=later.record_offset
            ),
        ]
        for head in wrong:
            error = refused(VENUE.commands, head)
            assert f"the snapshot of sequence {head.sequence} is not of this" in error.defect
    # One record too few or too many before it differs from the manifest, where that says so.
    start = VENUE.heads[20]
    error = refused(VENUE.commands, start._replace(record_count=start.record_count + 1))
    assert error.defect == "contents differ from the manifest"


def test_a_journal_that_ends_before_the_snapshot() -> None:
    """Rolled back to an older copy."""
    shorter = make_venue(30)
    assert shorter.heads == VENUE.heads[:30]
    for start in VENUE.heads[30:]:
        assert "is not of this journal" in refused(shorter.commands, start).defect
    error = refused_below_floor(shorter.commands, VENUE.heads[10], VENUE.heads[30].sequence)
    assert "but was durable up to sequence" in error.defect


def refused_below_floor(
    images: Mapping[str, bytes], start: SnapshotHead, floor_sequence: int
) -> JournalDamaged:
    reader = read_only(MemoryStorage(images), floor_sequence, start)
    with pytest.raises(JournalDamaged) as caught:
        list(reader.records())
    return caught.value


def test_the_marker_holds_behind_a_snapshot_too() -> None:
    storage = MemoryStorage(VENUE.commands)
    journal = Journal.open(storage, start=VENUE.heads[-1], prepare=run_inline)
    assert list(journal.records()) == []
    journal.start(1)
    journal.stop()
    marker = storage.images()["clean-stop"]
    read({**VENUE.commands, "clean-stop": marker}, VENUE.heads[-1])
    shorter = make_venue(30)
    error = refused({**shorter.commands, "clean-stop": marker}, VENUE.heads[20])
    assert error.file == "clean-stop"


# Archived segments.


def archived_up_to(segment: int) -> Archived:
    last = max(
        (record for record in VENUE.records if record.segment_number == segment),
        key=lambda record: record.offset,
    )
    return Archived(segment, last.head.sequence, last.head.hash)


def without(count: int, archived: Archived) -> dict[str, bytes]:
    """The folder without its first `count` segments."""
    images = dict(VENUE.commands)
    for name in SEGMENTS[:count]:
        del images[name]
    return {**images, "archived": encode_archived(archived)}


def test_archived_segments_may_be_missing() -> None:
    for segment in range(1, len(SEALED) + 1):
        archived = archived_up_to(segment)
        for count in range(segment + 1):
            images = without(count, archived)
            for start in VENUE.heads[::4]:
                if start.commands_segment > count:
                    read(images, start)
            if count:
                error = refused(images, None)
                assert error.defect.startswith(f"segments 1 to {segment} are archived")
                assert refused(images, VENUE.heads[0]).file == "archived"
            else:
                read(images, None)


def test_more_than_the_archived_ones_may_not_be_missing() -> None:
    archived = archived_up_to(3)
    error = refused(without(4, archived), VENUE.heads[-1])
    assert (error.file, error.defect) == (SEGMENTS[4], "segment 4 expected here")
    images = without(3, archived)
    del images[SEGMENTS[5]]
    error = refused(images, VENUE.heads[-1])
    assert (error.file, error.defect) == (SEGMENTS[6], "segment 6 expected here")


def test_what_an_archiving_has_left_is_passed_over() -> None:
    """A crash while the archived segments are removed may leave any of them."""
    archived = archived_up_to(4)
    for mask in range(1 << 4):
        images = without(4, archived)
        kept = [name for bit, name in enumerate(SEGMENTS[:4]) if mask >> bit & 1]
        images |= {name: VENUE.commands[name] for name in kept}
        reader = read(images, VENUE.heads[-1])
        reach = next(n for n in range(5) if all(name in kept for name in SEGMENTS[n:4]))
        assert reader.folder.names == tuple(SEGMENTS[reach:])


def test_what_was_archived_must_be_of_this_journal() -> None:
    archived = archived_up_to(3)
    start = next(head for head in VENUE.heads if head.commands_segment == 4)
    unsealed = {**without(3, archived), "manifest": encode_manifest(SEALED[:2])}
    assert refused(unsealed, start).file == "archived"
    error = refused(without(3, archived._replace(sequence=archived.sequence + 1)), start)
    assert error.file == "archived"
    last = len(SEALED)
    images = without(last, archived_up_to(last)._replace(hash=bytes(32)))
    error = refused(images, VENUE.heads[-1])
    assert (error.file, error.defect) == (
        SEGMENTS[last],
        "hash does not continue the segment before",
    )


def test_an_archive_is_read_but_takes_no_records() -> None:
    archived = archived_up_to(3)
    images = {name: VENUE.commands[name] for name in SEGMENTS[:3]}
    images["manifest"] = encode_manifest(SEALED[:3])
    images["archived"] = encode_archived(archived)
    reader = read_only(MemoryStorage(images))
    records = list(reader.records())
    assert records == [record for record in VENUE.records if record.segment_number <= 3]
    assert (reader.head.sequence, reader.folder.is_archive) == (archived.sequence, True)
    assert refused(images, None).defect == "an archive, which takes no records"
    # One that ends elsewhere than it says.
    images["archived"] = encode_archived(archived._replace(hash=bytes(32)))
    with pytest.raises(JournalDamaged, match="the archive ends with another record"):
        list(read_only(MemoryStorage(images)).records())
    # A venue whose last segment is lost, everything before being archived, is none.
    images = without(len(SEALED), archived_up_to(len(SEALED)))
    del images[SEGMENTS[-1]]
    assert refused(images, VENUE.heads[-1]).file == "manifest"


def test_what_was_not_archived_is_read_and_compared_with_events() -> None:
    events = MemoryStorage(VENUE.events)
    for segment in range(len(SEALED) + 1):
        archived = archived_up_to(segment) if segment else Archived(0, 0, bytes(32))
        for count in {0, segment}:
            storage = MemoryStorage(without(count, archived))
            records = list(read_only(storage, is_partial=True).records())
            assert records == [r for r in VENUE.records if r.segment_number > segment]
            summary = verify(storage, is_partial=True)
            assert (summary.first_sequence, summary.record_count) == (
                records[0].first_sequence,
                len(records),
            )
            assert check_events(storage, events, is_partial=True) == VENUE.heads[-1].sequence
    other = MemoryStorage(images_of(other_history(VENUE.batches, 39)))
    storage = MemoryStorage(without(3, archived_up_to(3)))
    with pytest.raises(JournalDamaged, match="events/ has not what the journal caused"):
        check_events(storage, other, is_partial=True)
    with pytest.raises(JournalDamaged, match="segments 1 to 3 are archived"):
        check_events(storage, events)
    # Of an archive everything is read.
    images = {name: VENUE.commands[name] for name in SEGMENTS[:3]}
    images["manifest"] = encode_manifest(SEALED[:3])
    images["archived"] = encode_archived(archived_up_to(3))
    assert verify(MemoryStorage(images), is_partial=True).first_sequence == 1


# The least term.


def test_least_term_of_a_start() -> None:
    storage = MemoryStorage({**VENUE.commands, "term": encode_term(7)})
    journal = Journal.open(storage, segment_size=SEGMENT_SIZE, prepare=run_inline)
    list(journal.records())
    assert (journal.head.term, journal.minimum_term) == (1, 7)
    with pytest.raises(AssertionError, match="term 6 after term 7"):
        journal.start(6)
    journal.start(7)
    append_batch(journal, make_batches(41)[40], Random(3))
    journal.close()
    assert [record.term for record in read_only(storage).records()][-2:] == [1, 7]


def test_a_lower_least_term_changes_nothing() -> None:
    venue = make_venue(3, term=4)
    storage = MemoryStorage({**venue.commands, "term": encode_term(2)})
    journal = Journal.open(storage, start=venue.heads[1], prepare=run_inline)
    list(journal.records())
    assert journal.minimum_term == 4
    journal.close()


def test_bytes_and_flips_of_the_small_files() -> None:
    archived = archived_up_to(3)
    assert encode_archived(Archived(3, 25, bytes(range(32)))) == (
        b"brier archived 1\nsegment 3\nsequence 25\n"
        b"hash 000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f\ncrc32 67a525bd\n"
    )
    assert encode_term(7) == b"brier term 1\nterm 7\ncrc32 b8c3daa4\n"
    for name, content in {"archived": encode_archived(archived), "term": encode_term(7)}.items():
        for bit in range(8 * len(content)):
            flipped = bytearray(content)
            flipped[bit // 8] ^= 1 << bit % 8
            error = refused({**VENUE.commands, name: bytes(flipped)}, None)
            assert (error.file, error.defect) == (name, "file is damaged")
        for size in range(len(content)):
            assert refused({**VENUE.commands, name: content[:size]}, None).file == name
