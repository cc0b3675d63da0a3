"""A follower gives out every record once, in order, up to the position that it was told, while the
journal grows and rolls over; what is not the journal's is damage."""

from __future__ import annotations

import errno
from random import Random

import pytest

from journal import (
    CommandsFollower,
    CommandsPosition,
    CommandsState,
    Journal,
    JournalDamaged,
    Record,
    SnapshotHead,
    run_inline,
)
from journal.faulty import Fault, FaultyStorage
from journal.memory import MemoryStorage
from journal.record import START
from tests.journal.event_life import make_batches
from tests.journal.snapshot_life import SEGMENT_SIZE, append_batch, make_venue
from tests.journal.test_crash import run_when_waited_for

VENUE = make_venue(40)
SEGMENTS = [name for name in VENUE.commands if name.endswith(".segment")]
POSITIONS = [
    CommandsPosition(record.segment_number, record.offset + record.size) for record in VENUE.records
]
END = POSITIONS[-1]


def assert_at(follower: CommandsFollower, head: SnapshotHead) -> None:
    """The follower says what the head of a snapshot needs. The rules before the record are not
    in it."""
    segment, offset, count, previous, last = follower.state
    found = head._replace(
        commands_segment=segment,
        record_offset=offset,
        record_count=count,
        previous_sequence=previous.sequence,
        previous_term=previous.term,
        previous_hash=previous.hash,
    )
    assert (found, last) == (head, head.head)


def read_all(
    follower: CommandsFollower, until: CommandsPosition, size_max: int = 2**20
) -> list[Record]:
    records: list[Record] = []
    while found := follower.read(until, size_max):
        records += found
    return records


def read_into(records: list[Record], follower: CommandsFollower) -> None:
    """Until an error is raised."""
    while True:
        records += follower.read(END, 1)


def test_from_every_snapshot_to_every_position() -> None:
    storage = MemoryStorage(VENUE.commands)
    starts: list[SnapshotHead | None] = [None, *VENUE.heads]
    for first, start in enumerate(starts):
        for last in range(max(first - 1, 0), 40, 3):
            follower = CommandsFollower(storage, start)
            assert read_all(follower, POSITIONS[last]) == VENUE.records[first : last + 1]
            assert_at(follower, VENUE.heads[last])
            assert follower.read(POSITIONS[last], 1) == []
    assert storage.images() == VENUE.commands


def test_nothing_is_read_before_the_first_record() -> None:
    follower = CommandsFollower(MemoryStorage(VENUE.commands))
    assert follower.read(CommandsPosition(1, 512), 2**20) == []
    assert follower.state == CommandsState(1, 512, 0, START, START)


def test_a_follower_gives_out_what_it_is_asked_for() -> None:
    """One record at least, and none that begins behind `size_max`."""
    storage = MemoryStorage(VENUE.commands)
    for size_max in (1, 512, 513, 1500, 5000, 2**30):
        follower = CommandsFollower(storage)
        records: list[Record] = []
        while found := follower.read(END, size_max):
            assert sum(record.size for record in found[:-1]) < size_max
            records += found
            assert_at(follower, VENUE.heads[len(records) - 1])
        assert records == VENUE.records


def test_beside_a_journal_that_grows() -> None:
    """Told of every record, or of some; the sealing early or late; read in small pieces."""
    for seed in range(6):
        dice = Random(seed)
        batches = make_batches(60, seed)
        storage = MemoryStorage()
        prepare = run_inline if seed % 2 else run_when_waited_for
        journal = Journal.open(storage, segment_size=SEGMENT_SIZE, prepare=prepare)
        assert list(journal.records()) == []
        journal.start(1)
        follower = CommandsFollower(storage)
        sequences: list[int] = []
        for batch in batches:
            append_batch(journal, batch, dice)
            if dice.randrange(4) == 0:
                records = read_all(follower, journal.position, dice.randrange(1, 4000))
                sequences += [record.first_sequence for record in records]
                assert follower.state.head == journal.head
            if dice.randrange(10) == 0:
                follower.look_again()
        read_all(follower, journal.position)
        assert follower.state.head == journal.head
        assert sequences == [batch.first_sequence for batch in batches][: len(sequences)]
        journal.close()


def test_it_never_reads_beyond_the_position() -> None:
    """What is behind it may be anything."""
    for last in range(39):
        segment, offset = POSITIONS[last]
        images = {name: VENUE.commands[name] for name in SEGMENTS[:segment]}
        content = images[SEGMENTS[segment - 1]]
        garbage = Random(last).randbytes(len(content) - offset)
        images[SEGMENTS[segment - 1]] = content[:offset] + garbage
        follower = CommandsFollower(MemoryStorage(images))
        assert read_all(follower, POSITIONS[last]) == VENUE.records[: last + 1]


def test_damage_is_raised_where_it_is() -> None:
    """A flip anywhere in a record: those before it were given out, it is not."""
    dice = Random(3)
    for index, record in enumerate(VENUE.records):
        name = SEGMENTS[record.segment_number - 1]
        for _ in range(5):
            content = bytearray(VENUE.commands[name])
            content[record.offset + dice.randrange(record.size)] ^= 1 << dice.randrange(8)
            follower = CommandsFollower(MemoryStorage({**VENUE.commands, name: bytes(content)}))
            found: list[Record] = []
            with pytest.raises(JournalDamaged) as caught:
                read_into(found, follower)
            assert found == VENUE.records[:index]
            assert (caught.value.file, caught.value.offset) == (name, record.offset)


def test_every_flip_in_a_segment_header_is_raised() -> None:
    for bit in range(8 * 512):
        content = bytearray(VENUE.commands[SEGMENTS[1]])
        content[bit // 8] ^= 1 << bit % 8
        follower = CommandsFollower(MemoryStorage({**VENUE.commands, SEGMENTS[1]: bytes(content)}))
        with pytest.raises(JournalDamaged):
            read_all(follower, END)


def test_a_segment_that_is_missing_or_of_another_journal() -> None:
    images = dict(VENUE.commands)
    del images[SEGMENTS[3]]
    with pytest.raises(JournalDamaged, match="segment 4 is missing"):
        read_all(CommandsFollower(MemoryStorage(images)), END)
    other = make_venue(40, term=2).commands
    names = [name for name in other if name.endswith(".segment")]
    images = {**VENUE.commands, names[3]: other[names[3]]}
    assert names == SEGMENTS
    with pytest.raises(JournalDamaged, match="a segment follows that continues another"):
        read_all(CommandsFollower(MemoryStorage(images)), END)


def test_a_snapshot_of_another_journal() -> None:
    good = VENUE.heads[9]
    for head in (good._replace(record_hash=bytes(32)), good._replace(previous_hash=bytes(32))):
        with pytest.raises(JournalDamaged, match=r"the record of sequence \d+ is not there"):
            CommandsFollower(MemoryStorage(VENUE.commands), head).read(END, 1)
    head = VENUE.heads[9]._replace(commands_segment=99)
    with pytest.raises(JournalDamaged, match="segment 99 is missing"):
        CommandsFollower(MemoryStorage(VENUE.commands), head).read(END, 1)


def test_looking_again() -> None:
    """In the same folder it goes on; in one that was set back or is another, it does not."""
    for last in range(0, 39, 2):
        follower = CommandsFollower(MemoryStorage(VENUE.commands))
        read_all(follower, POSITIONS[last])
        follower.look_again()
        assert read_all(follower, END) == VENUE.records[last + 1 :]
        for other in (make_venue(last) if last else None, make_venue(40, term=2)):
            storage = MemoryStorage(VENUE.commands)
            follower = CommandsFollower(storage)
            read_all(follower, POSITIONS[last])
            for name in storage.names():
                storage.remove(name)
            for name, content in (other.commands if other else {}).items():
                storage.create(name).write(0, content)
            follower.look_again()
            with pytest.raises(JournalDamaged):
                follower.read(END, 1)


def test_a_position_behind_what_was_read() -> None:
    follower = CommandsFollower(MemoryStorage(VENUE.commands))
    read_all(follower, POSITIONS[20])
    with pytest.raises(JournalDamaged, match="read up to here, but durable only up to"):
        follower.read(POSITIONS[19], 1)


def test_a_position_inside_a_record() -> None:
    segment, offset = POSITIONS[20]
    follower = CommandsFollower(MemoryStorage(VENUE.commands))
    with pytest.raises(JournalDamaged):
        read_all(follower, CommandsPosition(segment, offset - 512))


def test_a_disk_that_does_not_read() -> None:
    """The error comes as it is; afterwards it goes on where it was."""
    counted = FaultyStorage(MemoryStorage(VENUE.commands))
    read_all(CommandsFollower(counted), END, 2000)
    for at in range(1, counted.counts["read"] + 1):
        disk = FaultyStorage(MemoryStorage(VENUE.commands), [Fault("read", at, errno.EIO)])
        follower = CommandsFollower(disk)
        found: list[Record] = []
        with pytest.raises(OSError, match="Input/output error"):
            read_into(found, follower)
        found += read_all(follower, END)
        assert [record.offset for record in found] == [record.offset for record in VENUE.records]
