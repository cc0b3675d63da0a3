"""The replica beside its venue: it follows it whatever becomes of it, never beyond what is durable,
goes on from a snapshot, and ends loudly when the journal is not the one that it has replayed."""

import asyncio
import errno
import threading
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import msgspec
import pytest

from exchange import position as position_module
from exchange.core.reference import IMAGE_HASH_SIZE, Names
from exchange.core.replay import ReplayError
from exchange.position import PositionError
from exchange.replica import service as service_module
from exchange.replica.failure import ReplicaFailure
from exchange.replica.limits import SLICE_SIZE
from exchange.replica.replica import Replica
from exchange.replica.snapshotter import Snapshotter
from exchange.replica.source import LocalSource
from journal import (
    JournalDamaged,
    JournalHeld,
    Record,
    SnapshotFolder,
    SnapshotHead,
    Storage,
    hash_image,
)
from journal.faulty import Fault, FaultyFile, FaultyStorage
from journal.snapshot import encode_snapshot_head
from tests.exchange.loops import PATIENCE_S, on_both_loops, until
from tests.exchange.node import world as world_module
from tests.exchange.node.snapshots import head_at, take_snapshot
from tests.exchange.replica.desk import (
    Desk,
    ManualClock,
    TradingWorld,
    check_snapshots,
    make_snapshot_settings,
    trading_world,
)

NEVER = make_snapshot_settings()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(position_module, "RECONNECT_PAUSE_MIN_S", 0.001)
    monkeypatch.setattr(position_module, "RECONNECT_PAUSE_MAX_S", 0.004)


def restart(world: TradingWorld) -> None:
    """The venue is killed and comes back; the machine stays."""
    for trader in world.traders:
        trader.forget_connection()
    world.disk.close()
    world.boot()


@on_both_loops
@pytest.mark.parametrize("slice_size", [1, 5_000, SLICE_SIZE])
async def test_it_follows_in_slices(monkeypatch: pytest.MonkeyPatch, slice_size: int) -> None:
    monkeypatch.setattr(service_module, "SLICE_SIZE", slice_size)
    world = trading_world(1, turns=60)
    async with Desk.open(world, NEVER) as desk:
        assert not desk.service.caught_up.done()
        await desk.follow()
        assert desk.service.caught_up.done()
        for _ in range(10):
            world.trade(4)
            await desk.follow()
            assert desk.service.lag == 0
        assert desk.service.replica.record_count > 100
    assert world.snapshots_disk.names() == []


@on_both_loops
async def test_what_the_venue_has_not_told_of_is_not_read() -> None:
    world = trading_world(2)
    async with Desk.open(world, NEVER) as desk:
        await desk.follow()
        for _ in range(5):
            known = world.position
            world.trade(4)
            assert world.position.sequence > known.sequence
            desk.say(known)
            for _ in range(20):
                await asyncio.sleep(0)
            assert desk.engine.sequence == known.sequence
            await desk.follow()


@on_both_loops
async def test_a_venue_that_comes_back_is_followed_again() -> None:
    world = trading_world(3)
    async with Desk.open(world, make_snapshot_settings(every_commands=40)) as desk:
        for _ in range(6):
            await desk.follow()
            assert desk.service.source.is_connected
            desk.is_venue_up = False
            desk.connections[-1].abort()
            await until(lambda: not desk.service.source.is_connected)
            restart(world)
            world.trade(10)
            desk.is_venue_up = True
            await desk.connected(len(desk.connections) + 1)
        await desk.follow()
        assert desk.made_count >= 3
        assert sum("venue_connected" in line for line in desk.lines) == 7
    check_snapshots(world, world.snapshots_disk)


@on_both_loops
@pytest.mark.parametrize("is_of_other_rules", [True, False])
async def test_it_goes_on_from_the_newest_good_snapshot(is_of_other_rules: bool) -> None:
    world = trading_world(4, turns=40)
    for share in (0.2, 0.5, 0.9):
        take_snapshot(world, int(world.engine.sequence * share))
    heads = SnapshotFolder(world.snapshots_disk).heads()
    for spoil in (None, "image", "header", "other"):
        newest = heads.pop(0) if spoil is not None else heads[0]
        if spoil in ("image", "header"):
            world.snapshots_disk.flip(newest.name, 8 * (300 if spoil == "image" else 20))
        if spoil == "other":
            file = world.snapshots_disk.open(newest.name, is_writable=True)
            other = newest._replace(events_segment_size=7)
            if is_of_other_rules:
                other = newest._replace(rules_version=7)
            file.write(0, encode_snapshot_head(other))
        async with Desk.open(world, NEVER) as desk:
            expected = heads[0].sequence if heads else 0
            assert desk.engine.sequence == expected
            await desk.follow()
            assert (desk.service.snapshotter.newest is not None) == bool(heads)
            passed = [line for line in desk.lines if "snapshot_passed_over" in line]
            assert len(passed) == {None: 0, "image": 1, "header": 1, "other": 2}[spoil]
            bad_count = desk.service.snapshotter.bad_count
            assert bad_count == {None: 0, "image": 1, "header": 2, "other": 3}[spoil]


@on_both_loops
async def test_what_does_not_restore_is_not_counted_among_the_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two are newer than all that a replica can make at first, and cannot be used: what it makes
    stays, and they go when there are newer ones."""
    monkeypatch.setattr(service_module, "SLICE_SIZE", 1)
    world = trading_world(20, turns=60)
    last = world.engine.sequence
    bad = [take_snapshot(world, last - back).name for back in (30, 0)]
    for name in bad:
        world.snapshots_disk.flip(name, 8 * 300)
    snapshotter: Snapshotter
    async with Desk.open(world, make_snapshot_settings(every_commands=last // 8)) as desk:
        snapshotter = desk.service.snapshotter
        assert (snapshotter.kept_count, snapshotter.bad_count) == (0, 2)
        await until(lambda: snapshotter.kept_count == 2)
        assert snapshotter.newest is not None
        assert snapshotter.newest.head.sequence < last - 30
        assert snapshotter.bad_count == 2
        assert len(world.snapshots_disk.names()) == 4
        await desk.follow()
        monkeypatch.setattr(service_module, "SLICE_SIZE", SLICE_SIZE)
        for _ in range(2):
            while world.trade(2) < snapshotter._sequence + last // 8:
                pass
            await desk.attempt()
        assert (snapshotter.kept_count, snapshotter.bad_count) == (2, 0)
    assert len(check_snapshots(world, world.snapshots_disk)) == 2


def take_wrong(world: TradingWorld, sequence: int) -> SnapshotHead:
    """A snapshot that is whole, of a state in which the next order gets another id."""
    head, image = head_at(world, sequence)
    names, words = msgspec.msgpack.decode(image[IMAGE_HASH_SIZE:], type=tuple[Names, bytes])
    next_order_id = int.from_bytes(words[16:24], "little") + 1
    words = words[:16] + next_order_id.to_bytes(8, "little") + words[24:]
    body = msgspec.msgpack.encode((names, words))
    image = blake2b(body, digest_size=IMAGE_HASH_SIZE).digest() + body
    head = head._replace(image_size=len(image), image_hash=hash_image(image))
    SnapshotFolder(world.snapshots_disk).write(head, image).publish()
    return head


def passed_over(desk: Desk) -> list[str]:
    return [line.partition("event=")[2] for line in desk.lines if "snapshot_passed_over" in line]


@on_both_loops
@pytest.mark.parametrize("older", [0, 1])
async def test_one_that_leads_to_other_events_is_passed_over(older: int) -> None:
    """As the venue does it: for the one before it, else for all records. The file stays until
    there are as many good ones as are kept."""
    world = trading_world(24, turns=40)
    last = world.engine.sequence
    expected = take_snapshot(world, last // 3).sequence if older else 0
    wrong = take_wrong(world, last // 2)
    for _ in range(2):
        async with Desk.open(world, NEVER) as desk:
            assert desk.engine.sequence == wrong.sequence
            await desk.follow()
            (line,) = passed_over(desk)
            assert line.startswith(f'snapshot_passed_over file={wrong.name} reason="replay ')
            assert desk.service.snapshotter.bad_count == 1
            assert desk.service.snapshotter.kept_count == older
            newest = desk.service.snapshotter.newest
            assert (newest.head.sequence if newest else 0) == expected
    async with Desk.open(world, make_snapshot_settings(every_commands=1)) as desk:
        await desk.attempt()
        assert wrong.name in world.snapshots_disk.names()
        world.trade(3)
        await desk.attempt()
        assert desk.service.snapshotter.bad_count == 0
        assert desk.service.snapshotter.kept_count == 2
    assert wrong.name not in world.snapshots_disk.names()
    assert len(check_snapshots(world, world.snapshots_disk)) == 2


@on_both_loops
async def test_two_that_lead_to_the_same_record_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the build, or the record: no third is tried, and all stay."""
    world = trading_world(25, turns=40)
    last = world.engine.sequence
    taken = [take_snapshot(world, last * share // 5).name for share in (1, 2, 3)]
    apply = Replica.apply

    def differ(self: Replica, record: Any) -> None:
        is_late = record.first_sequence > last * 4 // 5
        apply(self, record._replace(events_crc=record.events_crc ^ is_late))

    monkeypatch.setattr(Replica, "apply", differ)
    async with Desk.open(world, NEVER) as desk:
        error = await desk.failed()
        assert isinstance(error, ReplayError)
        assert error.exit_code == 65
        (line,) = passed_over(desk)
        assert taken[2] in line
    assert set(taken) <= set(world.snapshots_disk.names())


@on_both_loops
async def test_the_only_one_is_wrong_and_the_first_records_are_archived(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What differs is why it ends."""
    monkeypatch.setattr(world_module, "SEGMENT_SIZE", 4096)
    world = trading_world(26, turns=40)
    wrong = take_wrong(world, world.engine.sequence // 2)
    segments = [name for name in world.disk.names() if name.endswith(".segment")]
    assert wrong.commands_segment > 1
    world.disk.remove(segments[0])
    async with Desk.open(world, NEVER) as desk:
        error = await desk.failed()
        assert isinstance(error, ReplayError)
        assert error.exit_code == 65
        assert len(passed_over(desk)) == 1


@on_both_loops
async def test_after_a_snapshot_of_its_own_a_difference_ends_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its memory may have failed since: the next start begins with the one that was proven."""
    world = trading_world(27, turns=40)
    take_snapshot(world, world.engine.sequence // 2)
    apply = Replica.apply

    def differ(self: Replica, record: Any) -> None:
        apply(self, record._replace(events_crc=record.events_crc ^ 1))

    async with Desk.open(world, make_snapshot_settings(every_commands=1)) as desk:
        await desk.attempt()
        assert desk.made_count >= 1
        monkeypatch.setattr(Replica, "apply", differ)
        world.trade(3)
        desk.say()
        assert isinstance(await desk.failed(), ReplayError)
        assert passed_over(desk) == []
    check_snapshots(world, world.snapshots_disk)


@on_both_loops
async def test_a_snapshot_of_another_journal_is_refused() -> None:
    world, other = trading_world(5), trading_world(6)
    take_snapshot(other, other.engine.sequence // 2)
    (head,) = SnapshotFolder(other.snapshots_disk).heads()
    image = SnapshotFolder(other.snapshots_disk).read(head)
    SnapshotFolder(world.snapshots_disk).write(head, image).publish()
    async with Desk.open(world, NEVER) as desk:
        error = await desk.failed()
        assert isinstance(error, JournalDamaged)
        assert error.exit_code == 66


@on_both_loops
async def test_another_process_has_the_folder() -> None:
    world = trading_world(7, turns=1)
    async with Desk.open(world, NEVER):
        with pytest.raises(JournalHeld):
            Desk(world, NEVER)
    async with Desk.open(world, NEVER) as desk:
        await desk.follow()


@on_both_loops
async def test_other_events_end_it_and_the_venue_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    world = trading_world(8)
    apply = Replica.apply
    async with Desk.open(world, NEVER) as desk:
        await desk.follow()

        def differ(self: Replica, record: Any) -> None:
            apply(self, record._replace(events_crc=record.events_crc ^ 1))

        monkeypatch.setattr(Replica, "apply", differ)
        world.trade(3)
        desk.say()
        error = await desk.failed()
        assert isinstance(error, ReplayError)
        assert error.exit_code == 65
        assert "replay differs: record of sequence" in str(error)
        sequence = world.engine.sequence
        assert world.trade(3) > sequence


@on_both_loops
async def test_a_journal_that_was_set_back_ends_it() -> None:
    world = trading_world(9)
    async with Desk.open(world, NEVER) as desk:
        await desk.follow()
        position = world.position
        desk.say(position._replace(sequence=position.sequence - 1))
        error = await desk.failed()
        assert isinstance(error, ReplicaFailure)
        assert (error.exit_code, "was known" in str(error)) == (66, True)


@on_both_loops
async def test_a_journal_that_was_set_back_and_grew_again_ends_it() -> None:
    """The venue's folder has another history, longer than what was read."""
    for is_longer in (False, True):
        world, other = trading_world(10, turns=30), trading_world(11, turns=60)
        assert other.position.sequence > world.position.sequence
        async with Desk.open(world, NEVER) as desk:
            await desk.follow()
            count = len(desk.connections)
            desk.connections[-1].abort()
            for name in world.disk.names():
                world.disk.remove(name)
            for name, content in other.disk.images().items():
                world.disk.create(name).write(0, content)
            await desk.connected(count + 1)
            if is_longer:
                desk.say(other.position)
            error = await desk.failed()
            assert isinstance(error, JournalDamaged)
            assert "is not there" in str(error)


@on_both_loops
async def test_another_venue_ends_it() -> None:
    world = trading_world(12)
    async with Desk.open(world, NEVER) as desk:
        await desk.follow()
        desk.say(world.position._replace(epoch=1 << 21))
        error = await desk.failed()
        assert isinstance(error, ReplicaFailure)
        assert (error.exit_code, "another venue" in str(error)) == (66, True)


@on_both_loops
async def test_a_journal_that_is_damaged_ends_it() -> None:
    world = trading_world(13)
    async with Desk.open(world, NEVER) as desk:
        await desk.follow()
        until_now = world.position.commands_offset
        world.trade(3)
        (name,) = [name for name in world.disk.names() if name.endswith(".segment")]
        world.disk.flip(name, 8 * (until_now + 200))
        desk.say()
        error = await desk.failed()
        assert isinstance(error, JournalDamaged)
        assert f"after sequence {desk.engine.sequence}" in str(error)


@on_both_loops
async def test_what_is_no_position_ends_it() -> None:
    world = trading_world(14, turns=1)
    async with Desk.open(world, NEVER) as desk:
        await desk.follow()
        desk.connections[-1]._protocol.data_received(b"Y" * 64)
        assert isinstance(await desk.failed(), PositionError)


@on_both_loops
async def test_a_record_that_is_durable_before_its_events_are_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The place in commands/ may be ahead of the sequence for a moment: what is there is applied,
    a snapshot waits for the venue to say that it has the events, and nothing spins meanwhile."""
    world = trading_world(15)
    async with Desk.open(world, make_snapshot_settings(every_commands=1)) as desk:
        await desk.attempt()
        before = world.position
        world.trade(3)
        ahead = world.position
        at_the_sync = before._replace(
            commands_segment=ahead.commands_segment, commands_offset=ahead.commands_offset
        )
        count = desk.made_count
        reads: list[int] = []
        read = LocalSource.read

        def count_and_read(self: LocalSource, size_max: int) -> Sequence[Record]:
            reads.append(size_max)
            return read(self, size_max)

        monkeypatch.setattr(LocalSource, "read", count_and_read)
        desk.say(at_the_sync)
        await until(lambda: desk.engine.sequence == ahead.sequence)
        for _ in range(100):
            await asyncio.sleep(0)
        assert (desk.made_count, desk.service.lag) == (count, 0)
        assert len(reads) <= 3
        await desk.attempt()
        assert desk.made_count == count + 1
    assert check_snapshots(world, world.snapshots_disk)[0].sequence == ahead.sequence


@on_both_loops
async def test_a_snapshot_comes_with_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when nobody says anything: the replica wakes by itself."""
    world = trading_world(16)
    clock = ManualClock()
    timeouts: list[float | None] = []
    timeout = asyncio.timeout

    def hurry(delay_s: float | None) -> asyncio.Timeout:
        if delay_s is None or delay_s > PATIENCE_S:
            timeouts.append(delay_s)
            if delay_s is not None:
                clock.now_ns += int(delay_s * 1e9)
                delay_s = 0.001
        return timeout(delay_s)

    settings = make_snapshot_settings(every_s=300)
    monkeypatch.setattr(asyncio, "timeout", hurry)
    async with Desk.open(world, settings, clock=clock) as desk:
        await desk.connected()
        await until(lambda: desk.made_count == 1)
        assert 300.0 in timeouts
        # Nothing new: nothing is due.
        await until(lambda: timeouts[-1] is None)
        assert desk.made_count == 1
    (head,) = check_snapshots(world, world.snapshots_disk)
    assert head == head_at(world, world.engine.sequence)[0]


@on_both_loops
async def test_stopping_waits_for_the_step_that_was_begun() -> None:
    """Nobody works in the folder after it; what lies aside then, the next start removes."""
    world = trading_world(17)
    for turns in range(30):
        world.trade(1)
        desk = Desk(world, make_snapshot_settings(every_commands=1))
        await desk.connected()
        for _ in range(turns):
            await asyncio.sleep(0)
        await desk.close()
        world.snapshots_disk.lock()  # Free again: nobody works in it.
        world.snapshots_disk.close()
        check_snapshots(world, world.snapshots_disk)
    async with Desk.open(world, NEVER):
        assert not [name for name in world.snapshots_disk.names() if name.endswith(".tmp")]


class HeldStorage(FaultyStorage):
    """A file is made only when the test says so."""

    def __init__(self, storage: Storage) -> None:
        super().__init__(storage)
        self.begun = threading.Event()
        self.allowed = threading.Event()

    def create(self, name: str) -> FaultyFile:
        self.begun.set()
        assert self.allowed.wait(PATIENCE_S)
        return super().create(name)


@on_both_loops
async def test_the_folder_is_held_until_the_step_has_ended() -> None:
    world = trading_world(18)
    held = HeldStorage(world.snapshots_disk.attach())
    desk = Desk(world, make_snapshot_settings(every_commands=1), snapshots=held)
    await until(held.begun.is_set)
    closing = asyncio.ensure_future(desk.close())
    for _ in range(50):
        await asyncio.sleep(0)
    assert not closing.done()
    with pytest.raises(JournalHeld):
        world.snapshots_disk.lock()
    held.allowed.set()
    await closing
    world.snapshots_disk.lock()
    assert [name[-4:] for name in world.snapshots_disk.names()] == [".tmp"], "a step, no more"


@on_both_loops
async def test_a_start_that_fails_holds_nothing() -> None:
    world = trading_world(19, turns=1)
    aside = "00000000000000000009.snapshot.tmp"
    world.snapshots_disk.create(aside)
    faults = (Fault("remove", 1, errno.EIO),)
    with pytest.raises(OSError, match="Input/output error"):
        Desk(world, NEVER, snapshots=FaultyStorage(world.snapshots_disk.attach(), faults))
    async with Desk.open(world, NEVER) as desk:
        await desk.follow()
    assert world.snapshots_disk.names() == []
