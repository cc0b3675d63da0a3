"""The cycle of snapshots in virtual time: its pace, its numbers, and lines that fail."""

import asyncio
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Final, cast

import pytest

from exchange.feed.cycle import CYCLE_NS, TICK_S, Cycle
from exchange.feed.market import Market
from exchange.feed.snapshots import Snapshots
from exchange.logs import Log
from protocol.market_data import (
    InstrumentDefinition,
    OrderAdded,
    SnapshotBegin,
    SnapshotEnd,
    SnapshotInstrument,
)
from protocol.packets import (
    SNAPSHOT_INTERVAL_NS,
    Packet,
    decode_packet,
    decode_snapshot_message,
)
from tests.exchange.feed.truth import EPOCH, Truth

NOW: Final = 1_800_000_000_000_000_000
SECOND_NS: Final = 1_000_000_000
TICK_NS: Final = int(TICK_S * SECOND_NS)
PART: Final = 7
"""Packets that a line takes at a time, as the real one takes a bounded number."""


class Wire:
    """A line that keeps what it takes: a part at a time, nothing, or an error."""

    def __init__(self) -> None:
        self.packets: list[tuple[int, bytes]] = []
        self.is_full = False
        self.error: OSError | None = None
        self.is_closed = False

    def send(self, packets: list[tuple[int, bytes]]) -> int:
        if self.error is not None:
            raise self.error
        if self.is_full:
            return 0
        self.packets += packets[:PART]
        return len(packets[:PART])

    def when_writable(self, action: Callable[[], None]) -> None:
        raise AssertionError("the cycle waits for no line")

    def close(self) -> None:
        self.is_closed = True


class World:
    """A market, a cycle on two lines, and a clock."""

    def __init__(self, rate: int = 1_000_000) -> None:
        self.now_ns = NOW
        self.truth = Truth(1)
        self.market = Market(EPOCH)
        self.wires = {"a": Wire(), "b": Wire()}
        snapshots = Snapshots(self.market)
        self.cycle = Cycle(self.market, snapshots, self.wires, rate, lambda: self.now_ns)

    def fill(self, channel_count: int, order_count: int) -> None:
        """A channel has an event, an instrument and so many orders."""
        for channel in range(1, channel_count + 1):
            self.truth.list_event(channel, channel)
            self.truth.list_instrument(channel, channel, channel)
            for number in range(order_count):
                head = self.truth.begin()
                what = (channel, channel * 100_000 + number, 1, 100, 100)
                self.truth.say(channel, OrderAdded(*head, *what))
        self.market.apply(self.truth.record())

    def run(self, duration_ns: int, tick_ns: int = TICK_NS) -> list[str]:
        """Tick for so long; what the cycle had to say."""
        said = []
        for _ in range(duration_ns // tick_ns):
            self.now_ns += tick_ns
            if problem := self.cycle.tick():
                said.append(problem)
        return said

    def packets(self, name: str = "a") -> list[Packet]:
        return [decode_packet(packet) for _, packet in self.wires[name].packets]


def messages(packets: list[Packet]) -> list[object]:
    return [decode_snapshot_message(block.payload) for one in packets for block in one.blocks]


def test_a_small_market_goes_round_in_less_than_half_a_second() -> None:
    world = World()
    world.fill(channel_count=3, order_count=20)
    assert world.run(10 * SECOND_NS) == []
    assert 24 <= world.cycle.cycle_count <= 25
    assert world.cycle.cycle_ns <= CYCLE_NS
    assert world.wires["a"].packets == world.wires["b"].packets
    for channel in (1, 2, 3):
        mine = [one for one in world.packets() if one.channel == channel]
        number = NOW // 1_000
        assert abs(mine[0].number - number) < 1_000_000
        number = mine[0].number
        for packet in mine:
            assert packet.number == number, "consecutive over all cycles"
            number += len(packet.blocks)
        said = messages(mine)
        assert sum(isinstance(one, SnapshotBegin) for one in said) in (24, 25, 26)
        times = [one.send_time_ns for one in mine if begins(one)]
        assert max(b - a for a, b in pairwise(times)) < 2 * CYCLE_NS
    assert [channel for channel, _ in world.wires["a"].packets[:3]] == [1, 2, 3]
    line = world.cycle.lines["a"]
    assert line.packet_count == len(world.wires["a"].packets)
    assert line.packet_size == sum(len(packet) for _, packet in world.wires["a"].packets)
    assert (line.dropped_count, line.error_count) == (0, 0)


def begins(packet: Packet) -> bool:
    return isinstance(decode_snapshot_message(packet.blocks[0].payload), SnapshotBegin)


def test_packets_are_spread_over_the_cycle() -> None:
    world = World()
    world.fill(channel_count=2, order_count=8_000)
    world.run(3 * SECOND_NS)
    bursts = Counter(
        one.send_time_ns for one in world.packets() if one.send_time_ns > NOW + SECOND_NS
    )
    cycle_size = sum(len(p) for _, p in world.wires["a"].packets) // world.cycle.cycle_count
    assert world.cycle.cycle_ns <= CYCLE_NS
    assert max(bursts.values()) * 1_300 < cycle_size // 20, "a tick has a small part of it"


@pytest.mark.parametrize("rate", [20_000, 40_000, 200_000])
def test_the_rate_is_kept_and_all_come_in_time(rate: int) -> None:
    world = World(rate)
    world.fill(channel_count=2, order_count=8_000)
    said = world.run(25 * SECOND_NS)
    packets = world.packets()
    size = sum(len(packet) for _, packet in world.wires["a"].packets)
    assert rate * 24 < size <= rate * 25 + 2_800
    if not said:
        for instrument_id in (1, 2):
            times = [
                packet.send_time_ns
                for packet in packets
                for one in messages([packet])
                if isinstance(one, SnapshotInstrument) and one.instrument_id == instrument_id
            ]
            gaps = [b - a for a, b in zip([NOW, *times], [*times, world.now_ns], strict=True)]
            assert max(gaps) <= SNAPSHOT_INTERVAL_NS
    assert bool(said) == (world.cycle.cycle_ns > SNAPSHOT_INTERVAL_NS)


def test_a_rate_that_is_too_low_is_told_with_one_that_would_do() -> None:
    world = World(rate=10_000)
    world.fill(channel_count=1, order_count=10_000)
    said = world.run(60 * SECOND_NS)
    assert said
    text = said[0]
    assert "5000 are promised: snapshot_rate is 10000, " in text
    enough = int(text.split()[-3])
    world = World(rate=enough)
    world.fill(channel_count=1, order_count=10_000)
    assert world.run(60 * SECOND_NS) == []
    assert 11 <= world.cycle.cycle_count <= 16


def test_a_process_that_was_held_up_does_not_make_up_for_it() -> None:
    world = World(rate=100_000)
    world.fill(channel_count=1, order_count=10_000)
    world.run(2 * SECOND_NS)
    before = world.cycle.lines["a"].packet_size
    world.run(10 * SECOND_NS, tick_ns=10 * SECOND_NS)
    assert world.cycle.lines["a"].packet_size - before < 100_000


def test_what_is_listed_later_is_in_the_next_cycle() -> None:
    world = World()
    assert world.run(SECOND_NS) == []
    assert world.packets() == []
    world.fill(channel_count=1, order_count=3)
    world.run(SECOND_NS)
    world.truth.list_event(9, 2)
    world.truth.list_instrument(9, 9, 2)
    world.market.apply(world.truth.record())
    world.wires["a"].packets.clear()
    world.run(SECOND_NS)
    listed = {
        one.instrument_id
        for one in messages(world.packets())
        if isinstance(one, InstrumentDefinition)
    }
    assert listed == {1, 9}


def test_a_line_that_takes_nothing_harms_no_other() -> None:
    world = World()
    world.fill(channel_count=2, order_count=100)
    world.wires["a"].is_full = True
    assert world.run(SECOND_NS) == []
    whole = messages(world.packets("b"))
    assert sum(isinstance(one, SnapshotEnd) for one in whole) >= 4
    assert world.cycle.lines["a"].dropped_count == world.cycle.lines["b"].packet_count > 0
    world.wires["a"].is_full = False
    world.wires["a"].error = OSError(101, "Network is unreachable")
    assert set(world.run(SECOND_NS)) == {"line a: Network is unreachable"}
    assert world.cycle.lines["a"].error_count > 0
    world.wires["a"].error = None
    world.wires["a"].packets.clear()
    assert world.run(SECOND_NS) == []
    numbers = [one.number for one in world.packets("a")]
    assert set(numbers) <= {one.number for one in world.packets("b")}


class Timer:
    """A timer that fires when the test says so."""

    def __init__(self, delay: float, action: Callable[[], object]) -> None:
        self.delay = delay
        self.action = action
        self.is_canceled = False

    def cancel(self) -> None:
        self.is_canceled = True


class Timers:
    """What the cycle uses of a loop."""

    def __init__(self) -> None:
        self.timers: list[Timer] = []

    def call_later(self, delay: float, action: Callable[..., object], *arguments: object) -> Timer:
        self.timers.append(Timer(delay, lambda: action(*arguments)))
        return self.timers[-1]


def test_it_runs_until_it_is_closed_and_complains_once_a_minute() -> None:
    world, timers = World(), Timers()
    lines: list[str] = []
    world.fill(channel_count=1, order_count=3)
    world.wires["b"].error = OSError(101, "Network is unreachable")
    log = Log(lambda: NOW, lines.append)
    world.cycle.start(cast(asyncio.AbstractEventLoop, timers), log)
    for _ in range(7_000):
        timer = timers.timers.pop()
        assert timer.delay == TICK_S
        world.now_ns += TICK_NS
        timer.action()
    assert len(lines) == 2
    assert 'event=snapshots_fail reason="line b: Network is unreachable"' in lines[0]
    world.cycle.close()
    assert [timer.is_canceled for timer in timers.timers] == [True]
    assert world.wires["a"].is_closed
    assert world.wires["b"].is_closed
