"""Snapshots: when one is made, that it is the right one, and that no failing disk, missing event or
kill leaves anything behind that a start could take for one."""

import errno
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from exchange.core.engine import Engine
from exchange.replica import snapshotter as snapshotter_module
from exchange.replica.replica import Replica
from exchange.replica.snapshotter import Snapshotter
from exchange.replica.surroundings import Surroundings
from journal import SnapshotFolder
from journal.event_format import INDEX_SUFFIX, segment_name
from journal.faulty import Fault, FaultyStorage, Kind
from journal.memory import MemoryStorage, PowerLoss
from tests.exchange.loops import on_both_loops
from tests.exchange.node.snapshots import head_at
from tests.exchange.replica.desk import (
    Desk,
    ManualClock,
    check_snapshots,
    make_snapshot_settings,
    trading_world,
)

SECOND_NS = 1_000_000_000
ALWAYS = make_snapshot_settings(every_commands=1)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshotter_module, "EVENTS_PAUSE_S", 0.001)


class Counted:
    """A replica as far as the counts go."""

    def __init__(self, sequence: int = 0, record_size: int = 0) -> None:
        self.sequence = sequence
        self.record_size = record_size


def make_snapshotter(clock: ManualClock, **settings: int) -> Snapshotter:
    memory = MemoryStorage()
    nobody: Any = None  # Neither log nor venue is asked.
    around = Surroundings(clock, memory, memory, memory, nobody, nobody, reserve_size=0)
    return Snapshotter(around, make_snapshot_settings(**settings))


def test_when_one_is_due() -> None:
    clock = ManualClock()
    counted: Any = Counted(100, 5_000)
    one = make_snapshotter(clock, every_commands=50, every_bytes=1_000, every_s=30)
    one.begin(counted, None)
    assert one.due_in_ns(counted) is None, "there is nothing new"
    clock.now_ns += 40 * SECOND_NS
    assert one.due_in_ns(counted) is None
    counted.sequence = 101
    assert one.due_in_ns(counted) == 0, "the time has passed"
    clock.now_ns -= 11 * SECOND_NS
    assert one.due_in_ns(counted) == 1 * SECOND_NS
    counted.sequence = 149
    assert one.due_in_ns(counted) == 1 * SECOND_NS
    counted.sequence = 150
    assert one.due_in_ns(counted) == 0, "so many commands"
    counted.sequence, counted.record_size = 149, 5_999
    assert one.due_in_ns(counted) == 1 * SECOND_NS
    counted.record_size = 6_000
    assert one.due_in_ns(counted) == 0, "so many bytes"
    assert one.waiting_ns(counted) == 29 * SECOND_NS
    counted.sequence = 0
    assert one.waiting_ns(counted) == 0


class SlowStorage(FaultyStorage):
    """Every file that is made takes its time."""

    def __init__(self, storage: Any, clock: ManualClock, delay_ns: int) -> None:
        super().__init__(storage)
        self._clock = clock
        self._delay_ns = delay_ns

    def create(self, name: str) -> Any:
        self._clock.now_ns += self._delay_ns
        return super().create(name)


@on_both_loops
async def test_snapshots_take_a_fifth_of_the_time_at_most() -> None:
    world = trading_world(1)
    clock = ManualClock()
    slow = SlowStorage(world.snapshots_disk.attach(), clock, 3 * SECOND_NS)
    async with Desk.open(world, ALWAYS, snapshots=slow, clock=clock) as desk:
        await desk.attempt()
        assert desk.made_count == 1
        newest = desk.service.snapshotter.newest
        assert newest is not None
        assert newest.total_ns == 3 * SECOND_NS
        world.trade(5)
        await desk.follow()
        assert desk.service.snapshotter.due_in_ns(desk.service.replica) == 12 * SECOND_NS
        clock.now_ns += 12 * SECOND_NS - 1
        world.trade(5)
        await desk.follow()
        assert desk.made_count == 1
        clock.now_ns += 1
        await desk.attempt()
        assert desk.made_count == 2


@on_both_loops
async def test_it_is_the_snapshot_that_others_would_make() -> None:
    """Byte for byte; and the replica goes on with the engine that was restored from it."""
    world = trading_world(2)
    for keep in (2, 3):
        settings = make_snapshot_settings(every_commands=1, keep=keep)
        async with Desk.open(world, settings) as desk:
            await desk.connected()
            for _ in range(5):
                before = desk.engine
                world.trade(8)
                await desk.attempt()
                assert desk.engine is not before, "it goes on with what it has restored"
                assert desk.engine.digest() == world.engine.digest()
                newest = desk.service.snapshotter.newest
                assert newest is not None
                head, image = head_at(world, world.engine.sequence)
                assert newest.head == head
                assert SnapshotFolder(world.snapshots_disk).read(head) == image
            heads = check_snapshots(world, world.snapshots_disk)
            assert len(heads) == keep == desk.service.snapshotter.kept_count
            assert desk.service.snapshotter.waiting_ns(desk.service.replica) == 0
            assert desk.made_count >= 5
            # Those that are older than the newest were proven by every record up to the next.
            sequences = [head.sequence for head in heads]
            assert sequences == sorted(sequences, reverse=True)


KINDS: list[Kind] = ["create", "open", "read", "write", "sync", "rename", "remove", "sync_folder"]


@on_both_loops
async def test_a_disk_that_fails_at_any_step_does_no_harm() -> None:
    """Every operation on snapshots/ fails once: nobody hears of it but the log and a count, what
    was there stays good, and the next attempt succeeds."""
    world = trading_world(4)
    counts = dict.fromkeys(KINDS, 0)
    async with Desk.open(
        world, ALWAYS, snapshots=(probe := FaultyStorage(world.snapshots_disk.attach()))
    ) as desk:
        for _ in range(3):
            world.trade(2)
            before = dict(probe.counts)
            await desk.attempt()
        counts = {kind: probe.counts[kind] - before.get(kind, 0) for kind in KINDS}
    assert all(counts[kind] for kind in KINDS), counts
    failed = 0
    for kind in KINDS:
        for at in range(1, counts[kind] + 1):
            faulty = FaultyStorage(world.snapshots_disk.attach())
            async with Desk.open(world, ALWAYS, snapshots=faulty) as desk:
                await desk.follow()
                world.trade(2)
                place = faulty.counts[kind] + at
                faulty.faults = (Fault(kind, place, errno.EIO, is_applied=at % 2 == 0),)
                await desk.attempt()
                assert faulty.counts[kind] >= place, "it was reached"
                failed += desk.failure_count
                heads = check_snapshots(world, world.snapshots_disk)
                assert len(heads) >= 2
                world.trade(2)
                await desk.attempt()
                assert desk.made_count + desk.failure_count == 2
                assert desk.made_count >= 1
                assert check_snapshots(world, world.snapshots_disk)[0].sequence == (
                    world.engine.sequence
                )
            assert not [name for name in world.snapshots_disk.names() if name.endswith(".tmp")]
    assert failed >= 8, "most of them keep a snapshot from being made"


class PowerCut(Exception):
    """The machine is off."""


class CutStorage(FaultyStorage):
    """Power is lost at one operation."""

    cut_at = 0

    def step(self, kind: Kind, action: Callable[[], Any], *args: Any) -> Any:
        if kind not in ("open", "read"):
            self.cut_at -= 1
            if self.cut_at == 0:
                raise PowerCut(kind)
        return super().step(kind, action, *args)


@on_both_loops
async def test_power_lost_at_any_step_leaves_good_snapshots() -> None:
    world = trading_world(5)
    async with Desk.open(world, ALWAYS) as desk:
        for _ in range(2):
            world.trade(2)
            await desk.attempt()
    dice = Random(5)
    cut_count = 0
    for cut_at in range(1, 60):
        world.trade(1)
        expected = check_snapshots(world, world.snapshots_disk)
        cut = CutStorage(world.snapshots_disk.attach())
        desk = Desk(world, ALWAYS, snapshots=cut)
        cut.cut_at = cut_at
        try:
            await desk.attempt()
        except PowerCut:
            cut_count += 1
        is_cut = desk.running.done()
        await desk.close()
        world.snapshots_disk.crash(dice)
        heads = check_snapshots(world, world.snapshots_disk)
        assert len(heads) >= 2
        assert heads[0].sequence in (expected[0].sequence, world.engine.sequence)
        assert heads[0] in expected or heads[1] in expected
        if not is_cut:
            break
    assert cut_count >= 6
    assert cut_at < 59, "there is an end"


@on_both_loops
async def test_what_the_disk_gives_back_is_what_counts() -> None:
    world = trading_world(6)

    class Spoiling(FaultyStorage):
        is_spoiling = False

        def open(self, name: str, *, is_writable: bool = False) -> Any:
            if self.is_spoiling and name.endswith(".tmp"):
                world.snapshots_disk.flip(name, 8 * 216 + 12_345)
            return super().open(name, is_writable=is_writable)

    spoiling = Spoiling(world.snapshots_disk.attach())
    async with Desk.open(world, ALWAYS, snapshots=spoiling) as desk:
        spoiling.is_spoiling = True
        await desk.attempt()
        assert (desk.made_count, desk.failure_count) == (0, 1)
        assert "image is not the one that was written" in desk.lines[-1]
        assert world.snapshots_disk.names() == []
        spoiling.is_spoiling = False
        world.trade(2)
        await desk.attempt()
        assert (desk.made_count, desk.failure_count) == (1, 1)
    assert len(check_snapshots(world, world.snapshots_disk)) == 1


@on_both_loops
async def test_a_snapshot_that_events_do_not_reach_is_not_made() -> None:
    world = trading_world(7, turns=60)
    index = next(name for name in world.events_disk.names() if name.endswith(INDEX_SUFFIX))
    content = world.events_disk.images()[index]
    world.events_disk.remove(index)
    async with Desk.open(world, ALWAYS) as desk:
        await desk.attempt()
        assert (desk.made_count, desk.failure_count) == (0, 1)
        assert "events/ has not what the journal caused" in desk.lines[-1]
        assert world.snapshots_disk.names() == []
        world.events_disk.create(index).write(0, content)
        world.trade(2)
        await desk.attempt()
        assert (desk.made_count, desk.failure_count) == (1, 1)
        # What was found once is not looked at for every snapshot, until the venue has started.
        world.events_disk.remove(index)
        world.trade(2)
        await desk.attempt()
        assert (desk.made_count, desk.failure_count) == (2, 1)
        desk.connections[-1].abort()
        await desk.connected(2)
        world.trade(2)
        await desk.attempt()
        assert (desk.made_count, desk.failure_count) == (2, 2)
    assert len(check_snapshots(world, world.snapshots_disk)) == 2


@on_both_loops
async def test_the_end_of_events_is_looked_at_for_every_snapshot() -> None:
    world = trading_world(12)
    async with Desk.open(world, ALWAYS) as desk:
        await desk.attempt()
        assert desk.made_count == 1
        world.trade(2)
        segment = segment_name(world.position.events_segment)
        world.events_disk.flip(segment, 8 * world.position.events_offset - 100)
        await desk.attempt()
        assert (desk.made_count, desk.failure_count) == (1, 1)


@on_both_loops
async def test_a_failed_sync_of_events_is_never_taken_for_a_later_good_one() -> None:
    """The system calls pages clean that never reached the disk: a second sync succeeds, and what is
    in memory looks right. No snapshot may count on it."""
    world = trading_world(31, turns=30)
    async with Desk.open(world, ALWAYS) as desk:
        segment = world.events_disk.open(segment_name(world.position.events_segment))
        segment.fail_sync(Random(1), PowerLoss(kept=0, dropped=1, zeroed=0))
        await desk.attempt()
        assert (desk.made_count, desk.failure_count) == (0, 1)
        assert "events/ has not what the journal caused" in desk.lines[-1]
    assert world.snapshots_disk.names() == []


@on_both_loops
async def test_events_up_to_a_snapshot_are_durable() -> None:
    """Power is lost right after one was made: a start finds events/ that reach it."""
    for seed in range(8):
        world = trading_world(seed + 20, turns=30)
        async with Desk.open(world, ALWAYS) as desk:
            await desk.attempt()
            assert desk.made_count == 1
        world.crash(Random(seed))
        (head,) = check_snapshots(world, world.snapshots_disk)
        world.boot()
        assert world.venue.replayed.snapshot_sequence == head.sequence


@on_both_loops
async def test_the_venues_disk_keeps_room() -> None:
    world = trading_world(8)
    image_size = len(world.engine.image())
    async with Desk.open(world, ALWAYS) as desk:
        around = desk.service.snapshotter._surroundings
        object.__setattr__(around, "reserve_size", 10_000)
        world.snapshots_disk.free_bytes = image_size + 9_999
        await desk.attempt()
        assert (desk.made_count, desk.failure_count) == (0, 1)
        assert f"{image_size + 9_999} bytes are free" in desk.lines[-1]
        assert world.snapshots_disk.names() == []
        world.trade(1)
        world.snapshots_disk.free_bytes = 2 * image_size + 10_000
        await desk.attempt()
        assert (desk.made_count, desk.failure_count) == (1, 1)


@on_both_loops
async def test_an_image_that_does_not_restore_ends_the_replica(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """That is a defect of the build, and says so; nothing is published."""
    world = trading_world(9)
    restore = Engine.restore

    def forget_an_order(image: bytes) -> Engine:
        engine = restore(image)
        engine.advance(engine.time_ns + 1)
        session = engine.session_count
        engine.hot.disconnect(session, engine.session(session).connection, 1)
        return engine

    monkeypatch.setattr(Engine, "restore", forget_an_order)
    async with Desk.open(world, ALWAYS) as desk:
        error = await desk.failed()
        assert isinstance(error, AssertionError)
        assert "its image restores to another one" in str(error)
    assert SnapshotFolder(world.snapshots_disk).heads() == []


@on_both_loops
async def test_snapshot_of_the_state_one_record_before_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A planted defect: the image is older than its head says."""
    world = trading_world(10)
    image = Engine.image
    old: list[bytes] = []
    apply = Replica.apply

    def remember(self: Replica, record: Any) -> None:
        old.append(image(self.engine))
        apply(self, record)

    monkeypatch.setattr(Replica, "apply", remember)
    monkeypatch.setattr(Engine, "image", lambda self: old[-1])
    async with Desk.open(world, ALWAYS) as desk:
        assert isinstance(await desk.failed(), AssertionError)
    assert SnapshotFolder(world.snapshots_disk).heads() == []
