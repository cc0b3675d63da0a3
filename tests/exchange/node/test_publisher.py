"""Packets out: order, heartbeats, a full socket, a network that fails, old packets again, and two
lines that do not harm each other.
"""

import asyncio
import errno
from typing import cast

import pytest

from exchange.logs import Log
from exchange.node.limits import (
    DRAIN_PACKETS,
    PACE_PACKETS,
    PACE_S,
    PACE_STALLS_MAX,
    PUBLISH_QUEUE_MAX,
    SEND_ERRORS_MAX,
)
from exchange.node.line import Line
from exchange.node.publisher import Publisher
from protocol.packer import Packer
from protocol.packets import DATA, HEARTBEAT, HEARTBEAT_INTERVAL_NS, Packet, decode_packet
from tests.exchange.node.wires import Wire
from tests.exchange.node.world import START_NS, StepLoop
from tests.protocol.test_packer import EPOCH, Message

INTERVAL_S = HEARTBEAT_INTERVAL_NS / 1e9


class Desk:
    """A publisher on virtual time, with line A and, if wanted, line B."""

    def __init__(self, *, is_released: bool = True, has_line_b: bool = False) -> None:
        self.loop = StepLoop(START_NS)
        self.lines: list[str] = []
        self.wires = {name: Wire(lambda: self.loop.now_ns) for name in "ab"[: 1 + has_line_b]}
        self.wire = self.wires["a"]
        self.publisher = Publisher(
            self.wires,
            EPOCH,
            lambda: self.loop.now_ns,
            cast("asyncio.AbstractEventLoop", self.loop),
            Log(lambda: self.loop.now_ns, self.lines.append),
        )
        self.line: Line = self.publisher.lines["a"]
        self.next = dict.fromkeys(range(1, 65), 1)
        self.sequence = 0
        if is_released:
            self.publisher.republish(b"", lambda: None)

    def events(self, channel: int, count: int = 1, size: int = 40) -> bytes:
        """The events of `count` commands with a message each."""
        found = b""
        for _ in range(count):
            self.sequence += 1
            found += Message(channel, self.next[channel], self.sequence, b"m" * size).entry()
            self.next[channel] += 1
        return found

    def publish(self, channel: int = 1, count: int = 1, size: int = 40) -> None:
        self.publisher.publish(self.events(channel, count, size))

    def numbers(self) -> list[tuple[int, int]]:
        """(channel, number of the first message) of what was sent since the last call."""
        return [(packet.channel, packet.number) for packet in self.wire.packets()]


def test_a_batch_leaves_at_once_in_the_packers_packets() -> None:
    desk = Desk()
    events = desk.events(1, 50) + desk.events(3, 2)
    desk.publisher.publish(events)
    expected = Packer(EPOCH).pack(events, START_NS)
    assert [(sent.channel, sent.data) for sent in desk.wire.sent] == expected
    line = desk.line
    assert line.packet_count == len(expected) == 3
    assert line.packet_size == sum(len(packet) for _, packet in expected)
    assert (line.heartbeat_count, line.republished_count) == (0, 0)
    assert (line.dropped_count, line.error_count, line.queued_count) == (0, 0, 0)


def test_a_silent_channel_says_its_next_number_every_quarter_second() -> None:
    desk = Desk()
    desk.publish(1, 3)
    desk.wire.sent.clear()
    desk.loop.sleep(INTERVAL_S - 1e-9)
    assert desk.wire.sent == []
    desk.loop.sleep(1e-9)
    desk.loop.sleep(2 * INTERVAL_S)
    due = [START_NS + i * HEARTBEAT_INTERVAL_NS for i in (1, 2, 3)]
    assert [sent.time_ns for sent in desk.wire.sent] == due
    expected = [Packet(HEARTBEAT, 1, EPOCH, 4, time_ns, []) for time_ns in due]
    assert desk.wire.packets() == expected
    assert desk.line.heartbeat_count == 3


def test_every_channel_has_its_own_silence() -> None:
    desk = Desk()
    desk.publish(1)
    desk.loop.sleep(0.1)
    desk.publish(2)
    desk.loop.sleep(0.1)
    desk.publish(1)
    desk.wire.sent.clear()
    desk.loop.sleep(0.5)
    beats = [(sent.time_ns - START_NS, sent.channel, sent.packet.number) for sent in desk.wire.sent]
    ms = 1_000_000
    assert beats == [(350 * ms, 2, 2), (450 * ms, 1, 3), (600 * ms, 2, 2), (700 * ms, 1, 3)]


def test_a_busy_channel_has_no_heartbeat() -> None:
    desk = Desk()
    for _ in range(20):
        desk.publish(1)
        desk.loop.sleep(0.2)
    assert all(packet.kind == DATA for packet in desk.wire.packets())
    assert desk.line.heartbeat_count == 0


def test_channels_in_use_at_a_start_have_heartbeats() -> None:
    desk = Desk(is_released=False)
    desk.publisher.begin([(2, 17), (5, 1)])
    desk.publisher.republish(b"", lambda: None)
    desk.loop.sleep(INTERVAL_S)
    assert desk.numbers() == [(2, 17), (5, 1)]
    desk.next[2] = 18
    with pytest.raises(AssertionError, match="channel 2: 18 instead of 17"):
        desk.publish(2)


def test_a_full_socket_delays_and_keeps_the_order() -> None:
    desk = Desk()
    desk.wire.room = 1
    for channel in (1, 2, 1, 3):
        desk.publish(channel)
    assert desk.numbers() == [(1, 1)]
    assert desk.line.queued_count == 3
    desk.wire.drain(2)
    assert desk.numbers() == [(2, 1), (1, 2)]
    desk.publish(1)
    assert desk.numbers() == [], "behind what waits"
    desk.wire.drain(2**62)
    assert desk.numbers() == [(3, 1), (1, 3)]
    desk.publish(1)
    assert desk.numbers() == [(1, 4)]
    assert desk.line.packet_count == 6
    assert desk.line.dropped_count == 0
    assert desk.lines == []


def test_a_full_socket_gets_no_heartbeats_while_packets_wait() -> None:
    desk = Desk()
    desk.wire.room = 0
    desk.publish(1)
    desk.loop.sleep(1)
    assert desk.line.heartbeat_count == 0
    desk.wire.drain(2**62)
    desk.loop.sleep(INTERVAL_S)
    kinds = [(packet.kind, packet.number) for packet in desk.wire.packets()]
    assert kinds == [(DATA, 1), (HEARTBEAT, 2)]


def test_a_full_queue_loses_the_newest_counts_and_says_so_once_a_second() -> None:
    desk = Desk()
    desk.wire.room = 0
    for _ in range(PUBLISH_QUEUE_MAX + 10):
        desk.publish(1)
    assert desk.line.queued_count == PUBLISH_QUEUE_MAX
    assert desk.line.dropped_count == 10
    (line,) = desk.lines
    assert "level=error event=packets_lost line=a dropped=1 errors=0 reason=" in line
    desk.loop.sleep(0.999_999_999)
    desk.publish(1)
    assert len(desk.lines) == 1
    desk.loop.sleep(1e-9)
    desk.publish(1)
    assert "dropped=12 " in desk.lines[1]
    desk.wire.drain(2**62)
    assert desk.numbers() == [(1, number) for number in range(1, PUBLISH_QUEUE_MAX + 1)]
    # The numbers go on: a consumer sees what it lacks, at the latest by a heartbeat.
    desk.loop.sleep(INTERVAL_S)
    assert desk.numbers() == [(1, PUBLISH_QUEUE_MAX + 13)]


@pytest.mark.parametrize("error", [errno.ENETUNREACH, errno.EPERM, errno.ENOBUFS, errno.EIO])
def test_a_network_that_fails_loses_packets_and_nothing_else(error: int) -> None:
    desk = Desk()
    desk.wire.error = error
    desk.publish(1, 100)
    lost = desk.line.error_count
    assert lost == 4
    desk.loop.sleep(2)
    assert desk.line.error_count == lost + 8, "heartbeats"
    assert len(desk.lines) == 3
    assert f"errors=1 reason={errno.errorcode[error]}" in desk.lines[0]
    desk.wire.error = 0
    desk.publish(1)
    assert desk.numbers() == [(1, 101)]
    assert (desk.line.packet_count, desk.line.packet_size) == (1, 75)
    assert (desk.line.dropped_count, desk.line.queued_count) == (0, 0)


def test_an_error_while_the_queue_drains_loses_what_waits() -> None:
    desk = Desk()
    desk.wire.room = 0
    for _ in range(3):
        desk.publish(1)
    desk.wire.error = errno.ENETDOWN
    desk.wire.drain(2**62)
    assert (desk.line.error_count, desk.line.queued_count) == (3, 0)


def test_nothing_leaves_before_what_is_sent_again() -> None:
    desk = Desk(is_released=False)
    old = desk.events(1, 5) + desk.events(2, 1)
    desk.publish(1, 1)
    desk.loop.sleep(1)
    assert desk.wire.sent == []
    done: list[int] = []
    desk.publisher.republish(old, lambda: done.append(desk.loop.now_ns))
    assert desk.numbers() == [(1, 1), (2, 1), (1, 6)]
    assert done == [desk.loop.now_ns]
    assert (desk.line.republished_count, desk.line.packet_count) == (2, 1)


def test_old_packets_are_paced_and_new_ones_wait_behind_them() -> None:
    desk = Desk(is_released=False)
    old = desk.events(1, 30, 1300)
    packets = Packer(EPOCH).pack(old, START_NS)
    assert len(packets) == 30
    done: list[int] = []
    desk.publisher.begin([(1, 31)])
    desk.publisher.republish(old, lambda: done.append(desk.loop.now_ns))
    desk.publish(1)
    assert len(desk.wire.sent) == PACE_PACKETS
    desk.loop.sleep(1)
    pace_ns = round(PACE_S * 1e9)
    data = [sent for sent in desk.wire.sent if sent.packet.kind == DATA]
    assert [sent.data for sent in data[:30]] == [packet for _, packet in packets]
    assert [sent.time_ns for sent in data] == [
        START_NS + i // PACE_PACKETS * pace_ns for i in range(31)
    ]
    assert data[30].packet.number == 31
    assert done == [START_NS + 3 * pace_ns]
    assert (desk.line.republished_count, desk.line.packet_count) == (30, 1)
    for start in range(START_NS, START_NS + 5 * pace_ns, pace_ns // 4):
        burst = [sent for sent in data if start <= sent.time_ns < start + 10 * pace_ns]
        assert len(burst) * 2304 < 212_992, "what the kernel counts for a packet of this size"


def test_what_falls_due_over_a_stop_is_kept_and_paced_to_the_end() -> None:
    """More than may wait later, and more turns than a line may stall."""
    desk = Desk(is_released=False)
    count = (PACE_STALLS_MAX + 50) * PACE_PACKETS
    assert count > PUBLISH_QUEUE_MAX
    for _ in range(count):
        desk.publish(1)
    assert (desk.line.queued_count, desk.line.dropped_count) == (count, 0)
    done: list[int] = []
    desk.publisher.republish(b"", lambda: done.append(desk.loop.now_ns))
    desk.loop.sleep(PACE_STALLS_MAX * PACE_S)
    assert len(desk.wire.sent) == (PACE_STALLS_MAX + 1) * PACE_PACKETS
    desk.loop.sleep(1)
    assert done == [START_NS + (PACE_STALLS_MAX + 49) * round(PACE_S * 1e9)]
    data = [packet for packet in desk.wire.packets() if packet.kind == DATA]
    assert [packet.number for packet in data] == list(range(1, count + 1))


def test_old_packets_that_cannot_be_sent_are_not_counted_as_others() -> None:
    desk = Desk(is_released=False)
    old = desk.events(1, 3, 1300)
    desk.publish(1)
    desk.wire.error = errno.EPERM
    desk.publisher.republish(old, lambda: None)
    assert (desk.line.error_count, desk.line.queued_count) == (4, 0)
    desk.wire.error = 0
    desk.publish(1)
    assert (desk.line.republished_count, desk.line.packet_count) == (0, 1)


def test_a_full_socket_delays_old_packets_too() -> None:
    desk = Desk(is_released=False)
    desk.wire.room = 3
    done: list[int] = []
    desk.publisher.republish(desk.events(1, 5, 1300), lambda: done.append(1))
    desk.loop.sleep(0.5)
    assert (len(desk.wire.sent), done) == (3, [])
    assert (desk.line.republished_count, desk.line.packet_count) == (3, 0)
    desk.wire.room = 2**62
    desk.loop.sleep(PACE_S)
    assert desk.numbers() == [(1, number) for number in range(1, 6)]
    assert done == [1]


def test_a_socket_that_takes_part_of_a_batch_gets_the_rest_in_order() -> None:
    desk = Desk()
    desk.wire.room = 2
    for channel in range(1, 6):
        desk.next[channel] = 10
    events = b"".join(desk.events(channel) for channel in range(1, 6))
    desk.publisher.publish(events)
    assert desk.numbers() == [(1, 10), (2, 10)]
    assert desk.line.queued_count == 3
    desk.wire.drain(2)
    assert desk.numbers() == [(3, 10), (4, 10)]
    desk.wire.drain(2)
    assert desk.numbers() == [(5, 10)]
    assert (desk.line.packet_count, desk.line.dropped_count) == (5, 0)


def test_a_queue_without_room_for_a_whole_batch_keeps_its_head() -> None:
    desk = Desk()
    desk.wire.room = 0
    for _ in range(PUBLISH_QUEUE_MAX - 2):
        desk.publish(1)
    desk.publish(1, 5, 1300)
    assert (desk.line.queued_count, desk.line.dropped_count) == (PUBLISH_QUEUE_MAX, 3)
    desk.wire.drain(2**62)
    assert desk.numbers() == [(1, number) for number in range(1, PUBLISH_QUEUE_MAX + 1)]


def test_what_waited_is_handed_over_in_parts() -> None:
    desk = Desk()
    desk.wire.room = 0
    for _ in range(2 * DRAIN_PACKETS + 1):
        desk.publish(1)
    desk.wire.drain(DRAIN_PACKETS + 1)
    assert desk.line.queued_count == DRAIN_PACKETS
    desk.wire.drain(DRAIN_PACKETS)
    assert desk.line.queued_count == 0
    assert desk.numbers() == [(1, number) for number in range(1, 2 * DRAIN_PACKETS + 2)]


def test_both_lines_carry_the_same_bytes() -> None:
    desk = Desk(is_released=False, has_line_b=True)
    old = desk.events(1, 20, 1300)
    desk.publisher.begin([(1, 21), (2, 1)])
    desk.publisher.republish(old, lambda: None)
    for _ in range(5):
        desk.publish(1, 60)
        desk.publish(2)
        desk.loop.sleep(0.4)
    sent = [[(one.channel, one.data) for one in wire.sent] for wire in desk.wires.values()]
    assert sent[0] == sent[1]
    line_a, line_b = desk.publisher.lines.values()
    assert line_a.heartbeat_count == line_b.heartbeat_count > 0
    assert line_a.packet_size == line_b.packet_size == sum(len(data) for _, data in sent[0])
    assert line_a.republished_count == line_b.republished_count == 20


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("is_full", [True, False])
def test_a_line_that_fails_is_nothing_to_the_other(name: str, is_full: bool) -> None:
    desk = Desk(has_line_b=True)
    other = "b" if name == "a" else "a"
    bad, good = desk.wires[name], desk.wires[other]
    line_bad, line_good = desk.publisher.lines[name], desk.publisher.lines[other]
    bad.room, bad.error = (0, 0) if is_full else (2**62, errno.ENETUNREACH)
    for _ in range(PUBLISH_QUEUE_MAX + 3):
        desk.publish(1)
    desk.loop.sleep(1)
    kinds = [packet.kind for packet in good.packets()]
    assert kinds == [DATA] * (PUBLISH_QUEUE_MAX + 3) + [HEARTBEAT] * 4
    assert bad.sent == []
    assert (line_good.dropped_count, line_good.error_count, line_good.queued_count) == (0, 0, 0)
    if is_full:
        assert (line_bad.queued_count, line_bad.dropped_count) == (PUBLISH_QUEUE_MAX, 3)
    else:
        assert (line_bad.error_count, line_bad.dropped_count) == (PUBLISH_QUEUE_MAX + 3 + 4, 0)
    assert desk.lines
    assert all(f"event=packets_lost line={name} " in line for line in desk.lines)


def test_the_first_line_that_is_through_opens_the_venue() -> None:
    desk = Desk(is_released=False, has_line_b=True)
    desk.wires["b"].room = 0
    done: list[int] = []
    desk.publisher.begin([(1, 11)])
    desk.publisher.republish(desk.events(1, 10, 1300), lambda: done.append(desk.loop.now_ns))
    assert (len(desk.wire.sent), done) == (PACE_PACKETS, [])
    desk.loop.sleep(PACE_S)
    assert done == [START_NS + round(PACE_S * 1e9)]
    desk.publish(1)
    assert desk.numbers() == [(1, number) for number in range(1, 12)]
    line_b = desk.publisher.lines["b"]
    assert line_b.queued_count == 11
    # Its packets are not lost: it has them when there is room again.
    desk.wires["b"].drain(2**62)
    assert [packet.number for packet in desk.wires["b"].packets()] == list(range(1, 12))
    assert (line_b.republished_count, line_b.packet_count, line_b.dropped_count) == (10, 1, 0)


@pytest.mark.parametrize("has_line_b", [False, True])
@pytest.mark.parametrize("every", [2**62, 1, 499])
def test_lines_that_take_too_little_at_a_start_are_not_waited_for(
    has_line_b: bool, every: int
) -> None:
    """Nothing, a packet in every turn, or a packet now and then: a second of that, and no more."""
    desk = Desk(is_released=False, has_line_b=has_line_b)
    for wire in desk.wires.values():
        wire.room = 0
    done: list[int] = []
    count = 2 * PACE_PACKETS * PACE_STALLS_MAX
    for _ in range(count):
        desk.publish(1)
    desk.publisher.republish(b"", lambda: done.append(desk.loop.now_ns))
    for turn in range(1, PACE_STALLS_MAX):
        assert done == [], turn
        for wire in desk.wires.values():
            wire.room += turn % every == 0
        desk.loop.sleep(PACE_S)
    assert done == [desk.loop.now_ns]
    for wire in desk.wires.values():
        wire.drain(2**62)
        assert [packet.number for packet in wire.packets()] == list(range(1, count + 1))


def test_a_broken_line_costs_a_few_calls_whatever_the_batch() -> None:
    desk = Desk(has_line_b=True)
    desk.wires["b"].error = errno.ENETUNREACH
    for _ in range(2):
        calls = desk.publisher.lines["b"].send_count
        desk.publish(1, 500, 1300)
        assert desk.publisher.lines["b"].send_count - calls == SEND_ERRORS_MAX
    assert desk.publisher.lines["b"].error_count == 1_000
    assert (desk.line.packet_count, desk.line.send_count) == (1_000, 2 * 8)
    desk.wires["b"].error = 0
    desk.publish(1)
    assert [packet.number for packet in desk.wires["b"].packets()] == [1_001]


def test_one_bad_packet_costs_itself() -> None:
    """As a kernel does it: what is before it is taken, then it is refused, then the others go."""
    desk = Desk()
    bad = {4, *range(3, 30, 2)}
    assert len(bad) > SEND_ERRORS_MAX
    take = desk.wire.send

    def send(packets: list[tuple[int, bytes]]) -> int:
        numbers = [decode_packet(data).number for _, data in packets]
        first_bad = next((i for i, number in enumerate(numbers) if number in bad), len(packets))
        if first_bad == 0:
            raise OSError(errno.EPERM, "refused")
        return take(packets[:first_bad])

    desk.wire.send = send  # type: ignore[method-assign]  # a network with a filter
    desk.publish(1, 40, 1300)
    assert [number for _, number in desk.numbers()] == [n for n in range(1, 41) if n not in bad]
    assert (desk.line.packet_count, desk.line.error_count) == (40 - len(bad), len(bad))


def test_a_closed_publisher_sends_nothing_more() -> None:
    desk = Desk()
    desk.publish(1)
    desk.wire.room = 0
    desk.publish(1)
    desk.publisher.close()
    assert desk.wire.is_closed
    desk.loop.sleep(2)
    assert desk.numbers() == [(1, 1)]
