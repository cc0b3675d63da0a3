"""Packets out: order, heartbeats, a full socket, a network that fails, and old packets again."""

import asyncio
import errno
import socket
import struct
from collections.abc import Iterator
from typing import cast

import pytest
import uvloop

from exchange.config import ConfigError, MarketDataSettings
from exchange.logs import Log
from exchange.node.limits import PACE_PACKETS, PACE_S, PUBLISH_QUEUE_MAX
from exchange.node.publisher import MulticastSender, Publisher
from protocol.packer import Packer
from protocol.packets import DATA, HEARTBEAT, HEARTBEAT_INTERVAL_NS, Packet
from tests.exchange.node.wires import Wire
from tests.exchange.node.world import START_NS, StepLoop
from tests.protocol.test_packer import EPOCH, Message

INTERVAL_S = HEARTBEAT_INTERVAL_NS / 1e9


class Desk:
    """A publisher on virtual time."""

    def __init__(self, *, is_released: bool = True) -> None:
        self.loop = StepLoop(START_NS)
        self.lines: list[str] = []
        self.wire = Wire(lambda: self.loop.now_ns)
        self.publisher = Publisher(
            self.wire,
            EPOCH,
            lambda: self.loop.now_ns,
            cast("asyncio.AbstractEventLoop", self.loop),
            Log(lambda: self.loop.now_ns, self.lines.append),
        )
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
    publisher = desk.publisher
    assert publisher.packet_count == len(expected) == 3
    assert publisher.packet_size == sum(len(packet) for _, packet in expected)
    assert (publisher.heartbeat_count, publisher.republished_count) == (0, 0)
    assert (publisher.dropped_count, publisher.error_count, publisher.queued_count) == (0, 0, 0)


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
    assert desk.publisher.heartbeat_count == 3


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
    assert desk.publisher.heartbeat_count == 0


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
    assert desk.publisher.queued_count == 3
    desk.wire.drain(2)
    assert desk.numbers() == [(2, 1), (1, 2)]
    desk.publish(1)
    assert desk.numbers() == [], "behind what waits"
    desk.wire.drain(2**62)
    assert desk.numbers() == [(3, 1), (1, 3)]
    desk.publish(1)
    assert desk.numbers() == [(1, 4)]
    assert desk.publisher.packet_count == 6
    assert desk.publisher.dropped_count == 0
    assert desk.lines == []


def test_a_full_socket_gets_no_heartbeats_while_packets_wait() -> None:
    desk = Desk()
    desk.wire.room = 0
    desk.publish(1)
    desk.loop.sleep(1)
    assert desk.publisher.heartbeat_count == 0
    desk.wire.drain(2**62)
    desk.loop.sleep(INTERVAL_S)
    kinds = [(packet.kind, packet.number) for packet in desk.wire.packets()]
    assert kinds == [(DATA, 1), (HEARTBEAT, 2)]


def test_a_full_queue_loses_the_newest_counts_and_says_so_once_a_second() -> None:
    desk = Desk()
    desk.wire.room = 0
    for _ in range(PUBLISH_QUEUE_MAX + 10):
        desk.publish(1)
    assert desk.publisher.queued_count == PUBLISH_QUEUE_MAX
    assert desk.publisher.dropped_count == 10
    (line,) = desk.lines
    assert "level=error event=packets_lost dropped=1 errors=0 reason=" in line
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
    lost = desk.publisher.error_count
    assert lost == 4
    desk.loop.sleep(2)
    assert desk.publisher.error_count == lost + 8, "heartbeats"
    assert len(desk.lines) == 3
    assert f"errors=1 reason={errno.errorcode[error]}" in desk.lines[0]
    desk.wire.error = 0
    desk.publish(1)
    assert desk.numbers() == [(1, 101)]
    assert (desk.publisher.packet_count, desk.publisher.packet_size) == (1, 75)
    assert (desk.publisher.dropped_count, desk.publisher.queued_count) == (0, 0)


def test_an_error_while_the_queue_drains_loses_what_waits() -> None:
    desk = Desk()
    desk.wire.room = 0
    for _ in range(3):
        desk.publish(1)
    desk.wire.error = errno.ENETDOWN
    desk.wire.drain(2**62)
    assert (desk.publisher.error_count, desk.publisher.queued_count) == (3, 0)


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
    assert (desk.publisher.republished_count, desk.publisher.packet_count) == (2, 1)


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
    assert (desk.publisher.republished_count, desk.publisher.packet_count) == (30, 1)
    for start in range(START_NS, START_NS + 5 * pace_ns, pace_ns // 4):
        burst = [sent for sent in data if start <= sent.time_ns < start + 10 * pace_ns]
        assert len(burst) * 2304 < 212_992, "what the kernel counts for a packet of this size"


def test_a_full_socket_delays_old_packets_too() -> None:
    desk = Desk(is_released=False)
    desk.wire.room = 3
    done: list[int] = []
    desk.publisher.republish(desk.events(1, 5, 1300), lambda: done.append(1))
    desk.loop.sleep(1)
    assert (len(desk.wire.sent), done) == (3, [])
    desk.wire.room = 2**62
    desk.loop.sleep(PACE_S)
    assert desk.numbers() == [(1, number) for number in range(1, 6)]
    assert done == [1]


def test_a_closed_publisher_sends_nothing_more() -> None:
    desk = Desk()
    desk.publish(1)
    desk.wire.room = 0
    desk.publish(1)
    desk.publisher.close()
    assert desk.wire.is_closed
    desk.loop.sleep(2)
    assert desk.numbers() == [(1, 1)]


# Real sockets: groups and ports of these tests' own.

PORT = 29_417


def receiver(group: str, port: int) -> socket.socket:
    """Bound to the group's address, so that nothing of other groups arrives."""
    bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((group, port))
    member = struct.pack("4s4s", socket.inet_aton(group), socket.inet_aton("127.0.0.1"))
    bound.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
    bound.settimeout(30)
    return bound


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = uvloop.new_event_loop()
    yield loop
    loop.close()


def test_each_channel_has_its_group_and_other_venues_other_ports(
    loop: asyncio.AbstractEventLoop,
) -> None:
    first = MulticastSender(MarketDataSettings("239.255.217.1", PORT), loop)
    second = MulticastSender(MarketDataSettings("239.255.217.1", PORT + 1), loop)
    with (
        receiver("239.255.217.1", PORT) as one,
        receiver("239.255.217.64", PORT) as sixty_four,
        receiver("239.255.217.1", PORT + 1) as other,
    ):
        assert second.send(1, b"other venue")
        assert first.send(64, b"channel 64")
        assert first.send(1, b"channel 1")
        assert one.recv(100) == b"channel 1"
        assert sixty_four.recv(100) == b"channel 64"
        assert other.recv(100) == b"other venue"
        for nothing in (one, sixty_four, other):
            nothing.setblocking(False)
            with pytest.raises(BlockingIOError):
                nothing.recv(100)
    first.close()
    second.close()


def test_a_writable_socket_is_told_once(loop: asyncio.AbstractEventLoop) -> None:
    sender = MulticastSender(MarketDataSettings("239.255.217.1", PORT), loop)
    calls: list[int] = []

    def note() -> None:
        calls.append(len(calls))
        if len(calls) < 3:
            sender.when_writable(note)
        else:
            loop.call_later(0.01, loop.stop)

    sender.when_writable(note)
    loop.run_forever()
    assert calls == [0, 1, 2]
    sender.close()


def test_an_address_of_another_machine_is_refused(loop: asyncio.AbstractEventLoop) -> None:
    settings = MarketDataSettings(interface="192.0.2.1")
    with pytest.raises(ConfigError) as caught:
        MulticastSender(settings, loop)
    text = "market_data.interface: 192.0.2.1 is not an address of this machine"
    assert str(caught.value) == text
