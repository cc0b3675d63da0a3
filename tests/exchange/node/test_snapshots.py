"""Starting from a snapshot: the newest that can be used, else an older one, else the first record;
the venue is the same, whichever it was."""

import errno

import pytest

from exchange.core.engine import RULES_VERSION
from exchange.core.replay import ReplayError, restore_engine
from exchange.node import recovery
from exchange.node.failure import Exit
from exchange.node.run import failure_of
from journal import (
    JournalDamaged,
    SnapshotFolder,
    SnapshotHead,
    hash_image,
)
from journal.faulty import Fault, FaultyStorage
from journal.memory import MemoryStorage
from protocol import wire
from protocol.order_entry import CancelOrder
from protocol.records import FROM_CLIENT
from tests.exchange.node.market import make_world
from tests.exchange.node.snapshots import (
    ORDERS,
    fail_behind,
    head_at,
    passed_over,
    replayed,
    spoil,
    start_from_the_first_record,
    start_of,
    take_snapshot,
    trade,
    traded_world,
    used,
)
from tests.exchange.node.world import World


@pytest.mark.parametrize("back", [0, 1, 7, ORDERS])
def test_a_start_from_a_snapshot_is_a_start_from_the_first_record(back: int) -> None:
    world = traded_world()
    expected = start_from_the_first_record(world)
    head = take_snapshot(world, world.engine.sequence - back)
    world.boot()
    assert (used(world), passed_over(world)) == (head.sequence, [])
    assert start_of(world) == expected
    assert world.venue.replayed.snapshot_sequence == head.sequence
    assert world.venue.replayed.command_count == back
    trade(world, range(ORDERS + 1, 2 * ORDERS))
    digest = world.engine.digest()
    world.venue.close()
    engine, _, _ = replayed(world, world.engine.sequence)
    assert engine.digest() == digest, "and what it writes goes on from there"


def test_a_start_before_there_is_any_record_needs_no_snapshot() -> None:
    """One of Genesis alone: the smallest image that there is."""
    world = World()
    world.boot()
    world.venue.close()
    head = take_snapshot(world, 1)
    world.boot()
    assert used(world) == head.sequence == 1


@pytest.mark.parametrize("offset", [-1, 20])
def test_an_older_one_takes_the_place_of_a_damaged_one(offset: int) -> None:
    world = traded_world()
    expected = start_from_the_first_record(world)
    old = take_snapshot(world, world.engine.sequence - 20)
    new = take_snapshot(world, world.engine.sequence - 5)
    world.snapshots_disk = spoil(world.snapshots_disk, new.name, offset)
    world.boot()
    assert used(world) == old.sequence
    assert len(passed_over(world)) == 1
    assert start_of(world) == expected


def test_without_a_good_one_it_starts_from_the_first_record() -> None:
    world = traded_world()
    expected = start_from_the_first_record(world)
    sequence = world.engine.sequence
    for back in (20, 5):
        head = take_snapshot(world, sequence - back)
        world.snapshots_disk = spoil(world.snapshots_disk, head.name, -1)
    world.boot()
    assert used(world) == 0
    assert len(passed_over(world)) == 2
    assert start_of(world) == expected


def other_image(world: World, sequence: int) -> bytes:
    """An image of this sequence and time whose state is not what the records give: in place of the
    last command the first trader's first order was canceled."""
    engine = replayed(world, sequence - 1)[0]
    time_ns = replayed(world, sequence)[0].time_ns
    number = engine.session(2).last_client_number + 1
    payload = wire.encode(CancelOrder(1))
    engine.submit(FROM_CLIENT, 2, engine.session(2).connection, number, time_ns, time_ns, payload)
    engine.take_batch()
    assert (engine.sequence, engine.time_ns) == (sequence, time_ns)
    return engine.image()


def sequence_of_order(world: World, number: int) -> int:
    """Sequence of the first trader's command with this number."""
    sequences = range(2, world.engine.sequence)
    done = (one for one in sequences if last_number(world, one) == number)
    return next(done)


def last_number(world: World, sequence: int) -> int:
    engine = replayed(world, sequence)[0]
    return engine.session(2).last_client_number if engine.session_count >= 2 else 0


def put(world: World, head: SnapshotHead, image: bytes) -> None:
    """Write a snapshot whose image has the hash that the head says."""
    head = head._replace(image_size=len(image), image_hash=hash_image(image))
    SnapshotFolder(world.snapshots_disk).write(head, image).publish()


def test_one_that_leads_to_other_events_is_passed_over() -> None:
    """The records behind it prove it: their events would differ."""
    world = traded_world()
    expected = start_from_the_first_record(world)
    sequence = world.engine.sequence
    old = take_snapshot(world, sequence - 20)
    head, _ = head_at(world, sequence_of_order(world, 26))
    put(world, head, other_image(world, head.sequence))
    world.boot()
    (reason,) = passed_over(world)
    assert reason.startswith(("replay differs: record of sequence", "replay failed: record of"))
    assert used(world) == old.sequence
    assert start_of(world) == expected


def test_one_that_is_a_record_late_is_passed_over() -> None:
    world = traded_world()
    sequence = world.engine.sequence
    head, _ = head_at(world, sequence - 4)
    put(world, head, head_at(world, sequence - 3)[1])
    world.boot()
    assert passed_over(world)[0].startswith(f"its image is of sequence {sequence - 3}, time ")
    assert used(world) == 0


def test_one_of_other_rules_is_passed_over() -> None:
    world = traded_world()
    take_snapshot(world, world.engine.sequence - 4, rules_version=RULES_VERSION + 1)
    world.boot()
    text = f"it was made under rules {RULES_VERSION + 1}, this build has {RULES_VERSION}"
    assert passed_over(world) == [text]


def test_an_image_that_is_none_is_passed_over() -> None:
    world = traded_world()
    head, image = head_at(world, world.engine.sequence - 4)
    put(world, head, image[:-8])
    world.boot()
    assert passed_over(world)[0].startswith("its image is none: ")
    assert used(world) == 0
    assert restore_engine(head, image).digest() == hash_image(image).hex(), "a good one is one"


def test_a_disk_that_cannot_read_it_is_no_reason_to_stay_away() -> None:
    world = traded_world(
        wrap_snapshots=lambda disk: FaultyStorage(disk, [Fault("read", 4, errno.EIO)])
    )
    old = take_snapshot(world, world.engine.sequence - 9)
    take_snapshot(world, world.engine.sequence - 4)
    world.boot()
    assert used(world) == old.sequence
    assert len(passed_over(world)) == 1


def test_a_folder_that_cannot_be_listed_stops_the_start() -> None:
    """How far the journal must reach is not known then."""
    world = traded_world()
    take_snapshot(world, world.engine.sequence - 4)

    class Unlisted(MemoryStorage):
        def names(self) -> list[str]:
            raise OSError(errno.EIO, "injected")

    world.snapshots_disk = Unlisted()
    with pytest.raises(OSError, match="injected") as caught:
        world.boot()
    assert failure_of(caught.value).exit_code == Exit.STORAGE_FAILED
    world.disk.lock()


def test_a_journal_that_ends_below_the_newest_is_refused_unchanged() -> None:
    """Damaged or not: the head of a snapshot proves what was durable."""
    world = traded_world()
    short = (world.disk.images(), world.events_disk.images())
    world.boot()
    trade(world, range(ORDERS + 1, 2 * ORDERS))
    world.venue.close()
    head = take_snapshot(world, world.engine.sequence)
    world.disk, world.events_disk = (MemoryStorage(each) for each in short)
    world.snapshots_disk = spoil(world.snapshots_disk, head.name, -1)
    with pytest.raises(JournalDamaged, match=f"durable up to sequence {head.sequence}") as caught:
        world.boot()
    assert caught.value.exit_code == Exit.JOURNAL_DAMAGED
    assert (world.disk.images(), world.events_disk.images()) == short


def test_the_snapshot_of_another_journal_is_refused() -> None:
    world, other = traded_world(), make_world()
    trade(other, range(1, ORDERS + 9))
    other.venue.close()
    take_snapshot(other, world.engine.sequence - 3)
    world.snapshots_disk = other.snapshots_disk
    world.events_disk = other.events_disk
    with pytest.raises(JournalDamaged) as caught:
        world.boot()
    assert caught.value.exit_code == Exit.JOURNAL_DAMAGED


@pytest.mark.parametrize("field", ["record_hash", "previous_hash"])
def test_a_snapshot_of_another_record_is_refused(field: str) -> None:
    """Not passed over: one of the two is another history, and nobody here knows which."""
    world = traded_world()
    take_snapshot(world, world.engine.sequence - 20)
    take_snapshot(world, world.engine.sequence - 3, **{field: bytes(32)})
    with pytest.raises(JournalDamaged, match="is not of this journal") as caught:
        world.boot()
    assert caught.value.exit_code == Exit.JOURNAL_DAMAGED
    assert passed_over(world) == []


def test_a_replay_that_differs_from_every_start_ends_the_venue(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is the build, not the snapshot: the text names the record, the code says why."""
    world = traded_world()
    sequence = world.engine.sequence
    for back in (9, 6):
        take_snapshot(world, sequence - back)
    monkeypatch.setattr(recovery, "replay_record", fail_behind(sequence - 3))
    with pytest.raises(ReplayError) as caught:
        world.boot()
    assert caught.value.exit_code == Exit.ASSERTION
    assert str(caught.value) == f"replay differs: {sequence - 2}"
    assert passed_over(world) == [str(caught.value)], "twice at one record is enough"
    world.snapshots_disk.remove(sorted(world.snapshots_disk.names())[0])
    with pytest.raises(ReplayError):
        world.boot()
    assert len(passed_over(world)) == 2, "with one there was, all records were tried"
