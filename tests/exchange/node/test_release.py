"""What leaves after the reports: packets, the event log, the position; in this order, once durable.

And what leaves once more after a start, and what a start refuses.
"""

import errno
from random import Random
from typing import Any

import pytest

from exchange.core.engine import Engine
from exchange.node.failure import Exit, Failure
from exchange.node.limits import REPUBLISH_RECORDS_MAX, REPUBLISH_SIZE_MAX
from exchange.node.recovery import LastEvents
from journal import JournalDamaged, read_only
from journal.faulty import Fault, FaultyStorage
from journal.memory import MemoryFile, MemoryStorage
from protocol.market_data import (
    EventDefinition,
    InstrumentDefinition,
    OrderAdded,
    OrderExecuted,
    Trade,
)
from protocol.order_entry import CancelOrder, OrderAccepted
from protocol.packer import Packer
from protocol.packets import DATA, HEARTBEAT, Packet, decode_message
from protocol.records import EVENT_HEAD, MARKET_DATA
from tests.exchange.node.market import buy, kinds, logged_on, make_world, open_market, sell
from tests.exchange.node.pipes import Pipe
from tests.exchange.node.traders import Trader
from tests.exchange.node.world import EPOCH, World

EVENTS_SUFFIX = ".events"


def messages_in(packets: list[Packet]) -> list[Any]:
    return [decode_message(block.payload) for packet in packets for block in packet.blocks]


def numbers_in(packets: list[Packet]) -> list[tuple[int, int]]:
    """(channel, number) of every message."""
    return [(p.channel, p.number + i) for p in packets for i in range(len(p.blocks))]


def record_events(world: World) -> list[bytes]:
    """The events of every record, as an engine of its own gives them."""
    engine = Engine()
    return [
        engine.replay(record.first_sequence, record.command_count, record.payload)[0]
        for record in read_only(world.disk).records()
    ]


def public_events(events: bytes) -> int:
    """How many messages for everybody there are."""
    count, offset = 0, 0
    while offset < len(events):
        head = EVENT_HEAD.unpack_from(events, offset)
        count += head[1] == MARKET_DATA
        offset += head[0]
    return count


def test_a_market_and_its_trades_are_multicast() -> None:
    world = make_world()
    packets = world.wire.packets()
    assert kinds(messages_in(packets)) == [EventDefinition, InstrumentDefinition]
    one, two = logged_on(world), logged_on(world, 3)
    one.ask(buy(1))
    two.ask(sell(1, 300))
    packets += world.wire.packets()
    assert kinds(messages_in(packets)[2:]) == [OrderAdded, OrderExecuted, Trade, OrderAdded]
    assert numbers_in(packets) == [(1, n) for n in range(1, 7)]
    assert {(packet.kind, packet.epoch) for packet in packets} == {(DATA, EPOCH)}
    world.loop.sleep(0.3)
    (beat,) = world.wire.packets()
    assert (beat.kind, beat.channel, beat.number) == (HEARTBEAT, 1, 7)
    assert world.venue.epoch == EPOCH, "the first term's"


class NotedFile:
    """Says when something is written."""

    def __init__(self, file: MemoryFile, steps: list[str]) -> None:
        self._file = file
        self._steps = steps

    def write(self, offset: int, content: bytes) -> None:
        self._steps.append("event log")
        self._file.write(offset, content)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class NotedStorage:
    """A folder whose event files say when they are written."""

    def __init__(self, storage: MemoryStorage, steps: list[str]) -> None:
        self._storage = storage
        self._steps = steps

    def _note(self, name: str, file: MemoryFile) -> Any:
        return NotedFile(file, self._steps) if name.endswith(EVENTS_SUFFIX) else file

    def create(self, name: str) -> Any:
        return self._note(name, self._storage.create(name))

    def open(self, name: str, *, is_writable: bool = False) -> Any:
        return self._note(name, self._storage.open(name, is_writable=is_writable))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)


def test_a_batch_leaves_in_one_order() -> None:
    steps: list[str] = []
    world = make_world(wrap_events=lambda disk: NotedStorage(disk, steps))
    peer = logged_on(world)
    reader = Pipe(world.venue.positions.accept())
    tell = reader.write

    def noted_tell(data: bytes | bytearray | memoryview) -> None:
        steps.append("position")
        tell(data)

    reader.write = noted_tell  # type: ignore[method-assign]  # to see it among the others
    peer.transport.on_write = lambda data: steps.append("report")
    world.wire.on_send = lambda packet: steps.append("packet")
    world.hold()
    steps.clear()
    peer.send(buy(1))
    world.loop.run()
    world.committer.write()
    world.loop.run()
    assert steps == [], "nothing before it is durable"
    world.committer.sync()
    assert steps == []
    world.loop.run()
    assert steps == ["report", "packet", "event log", "position"]
    sequence = world.venue.sequencer.durable_sequence
    last = reader.positions[-1]
    assert (last.sequence, last.epoch, last.term) == (sequence, EPOCH, 1)
    assert (last.commands_segment, last.commands_offset) == world.venue.journal.position
    assert (last.sequence, last.events_segment, last.events_offset) == (
        world.venue.event_log.position
    )


@pytest.mark.parametrize("seed", range(3))
def test_positions_never_run_ahead_of_what_is_durable(seed: int) -> None:
    dice = Random(seed)
    world = make_world()
    quick = Pipe(world.venue.positions.accept())
    slow = Pipe(world.venue.positions.accept(), room=1)
    trader = Trader(world, 2, dice)
    world.hold()
    for _ in range(200):
        trader.act()
        if dice.random() < 0.5:
            world.committer.sync()
        world.loop.turn()
        durable = read_only(MemoryStorage(world.disk.images()))
        for _ in durable.records():
            pass
        assert quick.positions[-1].sequence == world.venue.sequencer.durable_sequence
        assert quick.positions[-1].sequence <= durable.head.sequence, f"seed {seed}"
    world.finish()
    assert len(quick.positions) > 20, f"seed {seed}"
    slow.make_room(10)
    assert slow.positions[-1] == quick.positions[-1]
    assert len(slow.positions) == 3


def test_the_event_log_is_the_journals_events() -> None:
    world = make_world()
    logged_on(world).ask(buy(1))
    assert world.venue.close() is None
    images = world.events_disk.images()
    content = b"".join(images[name] for name in sorted(images) if name.endswith(EVENTS_SUFFIX))
    for events in record_events(world):
        assert events in content
        content = content[content.index(events) + len(events) :]


def test_a_lost_or_cut_event_log_is_written_again() -> None:
    world = make_world()
    peer = logged_on(world)
    for number in range(1, 20):
        peer.ask(buy(number))
    assert world.venue.close() is None
    images = world.events_disk.images()
    (name,) = [name for name in images if name.endswith(EVENTS_SUFFIX)]
    for kept in (None, 0, 700, len(images[name]) - 1):
        left = {} if kept is None else {**images, name: images[name][:kept]}
        world.events_disk = MemoryStorage(left)
        world.boot()
        again = world.events_disk.images()[name]
        assert again.startswith(images[name]), f"{kept} bytes were left"
        images = world.events_disk.images()
        world.crash(Random(1))


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
def test_an_event_log_that_cannot_be_written_ends_the_venue(error: int) -> None:
    storages: list[FaultyStorage] = []

    def wrap(disk: MemoryStorage) -> FaultyStorage:
        storages.append(FaultyStorage(disk))
        return storages[-1]

    world = make_world(wrap_events=wrap)
    peer = logged_on(world)
    reader = Pipe(world.venue.positions.accept())
    told = reader.taken
    storages[-1].faults = (Fault("write", storages[-1].counts["write"] + 1, error),)
    (report,) = peer.ask(buy(1))
    assert isinstance(report, OrderAccepted), "it was durable"
    assert peer.transport.is_gone
    failure = world.venue.ended.result()
    assert failure.exit_code == Exit.STORAGE_FAILED
    assert isinstance(failure, Failure)
    assert reader.taken == told, "no position beyond the event log"
    assert world.venue.close() == failure
    world.boot()
    assert world.engine.open_order_count == 1


# Once more after a start.


def republished(world: World) -> list[bytes]:
    """The packets that the last records give, as they are to be sent."""
    events = LastEvents()
    for one in record_events(world):
        events.add(one)
    sent_ns = world.wire.sent[0].packet.send_time_ns
    return [packet for _, packet in Packer(EPOCH).pack(events.join(), sent_ns)]


def test_after_a_start_the_last_market_data_goes_out_again_before_anything_new() -> None:
    world = make_world()
    one = logged_on(world, cancel_on_disconnect=3)
    for number in range(1, 6):
        one.ask(buy(number))
    before = world.wire.packets()
    world.crash(Random(1))
    expected = record_events(world)
    world.boot()
    world.loop.sleep(0.1)
    again = [sent.data for sent in world.wire.sent]
    old = Packer(EPOCH).pack(b"".join(expected), world.wire.sent[0].packet.send_time_ns)
    assert again[: len(old)] == [packet for _, packet in old]
    packets = world.wire.packets()
    assert numbers_in(packets[: len(old)]) == numbers_in(before)
    assert messages_in(packets[: len(old)]) == messages_in(before)
    assert world.venue.publisher.lines["a"].republished_count == len(old)
    # The orders of the lost session are canceled by the start: new numbers, behind the old ones.
    new = numbers_in(packets[len(old) :])
    assert new == [(1, len(numbers_in(before)) + n) for n in range(1, 6)]


def test_a_start_with_nothing_to_say_again_says_nothing() -> None:
    world = World()
    world.boot()
    world.loop.sleep(1)
    assert world.wire.packets() == []


def test_only_the_last_records_go_out_again() -> None:
    world = make_world()
    one = logged_on(world)
    count = REPUBLISH_RECORDS_MAX + 20
    for number in range(1, count + 1):
        one.ask(buy(number))
    world.crash(Random(1))
    world.boot()
    world.loop.sleep(1)
    packets = [packet for packet in world.wire.packets() if packet.kind == DATA]
    last = 2 + count
    assert numbers_in(packets) == [
        (1, n) for n in range(last - REPUBLISH_RECORDS_MAX + 1, last + 1)
    ]


def test_last_events_are_bounded_and_the_last_record_always_counts() -> None:
    events = LastEvents()
    assert events.join() == b""
    third = REPUBLISH_SIZE_MAX // 3
    for byte in b"abcd":
        events.add(bytes([byte]) * third)
    assert events.join() == b"b" * third + b"c" * third + b"d" * third
    events.add(b"e" * (REPUBLISH_SIZE_MAX + 1))
    assert events.join() == b"e" * (REPUBLISH_SIZE_MAX + 1)
    events.add(b"f")
    assert events.join() == b"f"


def test_what_comes_while_old_packets_leave_waits_behind_them() -> None:
    world = make_world()
    one = logged_on(world)
    one.send(buy(1))
    for number in range(2, 600):
        one.send(buy(number))
    world.loop.run()
    world.crash(Random(1))
    world.boot()
    peer = logged_on(world)
    peer.ask(CancelOrder(599))
    sent = world.wire.packets()
    assert numbers_in(sent)[-1][1] < 601, "paced: not all is out yet"
    world.loop.sleep(1)
    sent += [packet for packet in world.wire.packets() if packet.kind == DATA]
    assert numbers_in(sent) == [(1, n) for n in range(1, 603)]


# What a start refuses.


def test_a_journal_that_ends_below_the_event_log_is_refused_unchanged() -> None:
    world = World()
    world.boot()
    assert world.venue.close() is None
    earlier = world.disk.images()
    world.boot()
    open_market(world)
    logged_on(world).ask(buy(1))
    assert world.venue.close() is None
    world.disk = MemoryStorage(earlier)
    later = world.events_disk.images()
    with pytest.raises(JournalDamaged) as caught:
        world.boot()
    assert caught.value.exit_code == Exit.JOURNAL_DAMAGED
    assert world.disk.images() == earlier
    assert world.events_disk.images() == later
    world.disk.lock()
