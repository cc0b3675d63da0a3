"""The consumer on real multicast, on the loopback interface with groups of its own."""

import asyncio
import socket
from typing import Any, Final

import pytest

from exchange.client import Book, Consumer, Gap, NotConnectedError, StaleBookError
from exchange.client import channel as channel_module
from exchange.client import lines as lines_module
from exchange.client import sockets as sockets_module
from exchange.client.sockets import group_of
from protocol.market_data import MarketDataMessage, Trade
from tests.exchange.client.feed import EPOCH, Feed, digest, heartbeat
from tests.exchange.loops import on_both_loops

GROUP: Final = "239.255.77.16"
LOOPBACK: Final = "127.0.0.1"


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind((LOOPBACK, 0))
        port: int = udp.getsockname()[1]
        return port


class Publisher:
    """Sends packets to the groups of a port; TTL 0 keeps them on this host."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 0)
        self._socket.setsockopt(
            socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(LOOPBACK)
        )

    def __enter__(self) -> "Publisher":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, *packets: bytes, channel: int = 1, group: str = GROUP) -> None:
        for packet in packets:
            self._socket.sendto(packet, (group_of(group, channel), self.port))


@pytest.fixture(autouse=True)
def _small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's memory for all sockets together is bounded too."""
    monkeypatch.setattr(sockets_module, "RECEIVE_BUFFER_SIZE", 1 << 20)


def new_feed(channel: int = 1, commands: int = 200) -> Feed:
    feed = Feed(seed=channel, channel=channel)
    feed.list_event(channel)
    feed.list_instrument(channel)
    feed.random_commands(commands)
    return feed


def test_groups_of_channels() -> None:
    assert group_of("239.255.66.1", 1) == "239.255.66.1"
    assert group_of("239.255.66.1", 64) == "239.255.66.64"
    assert group_of("239.255.66.255", 2) == "239.255.67.0"


@on_both_loops
async def test_books_from_multicast() -> None:
    feed = new_feed()
    events: list[MarketDataMessage] = []
    trades: list[Trade] = []
    epochs: list[int] = []
    callbacks: dict[str, Any] = {"on_trade": trades.append, "on_epoch": epochs.append}
    with Publisher(free_port()) as publisher:
        async with Consumer(GROUP, publisher.port, on_event=events.append, **callbacks) as consumer:
            assert consumer.epoch == 0
            publisher.send(*feed.pack())
            await consumer.wait_for(feed.next_number)
            await consumer.wait_for(1)
            assert consumer.is_complete
            assert consumer.public_digest() == digest(feed.truths)
            assert epochs == [EPOCH] == [consumer.epoch]
            assert events == [message for _, message in feed.messages]
            assert trades == [event for event in events if isinstance(event, Trade)]
            assert [*consumer.books] == [*consumer.instruments] == [*consumer.events] == [1]
            book = consumer.book("I1")
            assert isinstance(book, Book)
            assert book is consumer.books[1]
            assert book.last_trade == trades[-1]
            assert consumer.channel(1).next_number == feed.next_number
            assert consumer.message_count == len(feed.messages)
            assert consumer.packet_count > 10
            assert (consumer.gap_count, consumer.gaps) == (0, [])
            assert (consumer.duplicate_count, consumer.error_count) == (0, 0)
            assert consumer.dropped_count == 0
            assert consumer.receive_buffer_size > 0
            assert 0 <= consumer.silent_ns(1) < 10**9 * 60
            with pytest.raises(KeyError):
                consumer.book("I2")
        assert consumer.public_digest() == digest(feed.truths), "what is known stays"


@on_both_loops
async def test_a_lost_packet_is_told_without_another_one_coming() -> None:
    """The timer of the event loop ends the wait."""
    feed = new_feed()
    packets = feed.pack(cut=10)
    told: asyncio.Future[Gap] = asyncio.get_running_loop().create_future()
    with Publisher(free_port()) as publisher:
        async with Consumer(
            GROUP, publisher.port, snapshots=False, on_gap=told.set_result
        ) as consumer:
            publisher.send(*packets[:3], *packets[4:])
            assert await told == Gap(EPOCH, 1, 31, 10, "messages did not come")
            assert consumer.channel(1).next_number == feed.next_number
            assert consumer.gap_count == 1
            with pytest.raises(StaleBookError):
                consumer.public_digest()
            with pytest.raises(StaleBookError):
                _ = consumer.book("I1").best_bid


@on_both_loops
async def test_a_heartbeat_shows_the_loss_of_the_end() -> None:
    feed = new_feed()
    told: asyncio.Future[Gap] = asyncio.get_running_loop().create_future()
    with Publisher(free_port()) as publisher:
        async with Consumer(
            GROUP, publisher.port, snapshots=False, on_gap=told.set_result
        ) as consumer:
            publisher.send(*feed.pack(cut=10)[:-1])
            waiting = asyncio.ensure_future(consumer.wait_for(feed.next_number))
            publisher.send(feed.heartbeat())
            assert (await told).reason == "messages did not come"
            await waiting
            assert not consumer.is_complete


@on_both_loops
async def test_channels_have_groups_of_their_own() -> None:
    feeds = [new_feed(channel) for channel in (1, 2, 4)]
    port = free_port()
    with Publisher(port) as publisher:
        async with (
            Consumer(GROUP, port, channels=[1, 2]) as consumer,
            Consumer(GROUP, port, channels=[4]) as other,
        ):
            for feed in reversed(feeds):
                publisher.send(*feed.pack(), channel=feed.channel)
            # Not theirs: another venue's group, a packet in the wrong group, and no packet.
            publisher.send(heartbeat(10**6), group="239.255.77.200")
            publisher.send(heartbeat(10**6, channel=4), channel=2)
            publisher.send(b"", b"?", bytes(1_401), bytes(9_000), channel=2)
            for feed in feeds[:2]:
                await consumer.wait_for(feed.next_number, channel=feed.channel)
            await other.wait_for(feeds[2].next_number, channel=4)
            while consumer.error_count < 4:
                await asyncio.sleep(0)
            assert consumer.public_digest() == digest(feeds[0].truths | feeds[1].truths)
            assert other.public_digest() == digest(feeds[2].truths)
            assert consumer.receiver.foreign_count == 1
            assert consumer.receiver.last_error == "1401 bytes, not in 32..1400"
            assert other.error_count == other.receiver.foreign_count == 0


@on_both_loops
async def test_two_consumers_of_one_group_both_hear_everything() -> None:
    feed = new_feed()
    with Publisher(free_port()) as publisher:
        async with (
            Consumer(GROUP, publisher.port) as first,
            Consumer(GROUP, publisher.port) as second,
        ):
            publisher.send(*feed.pack())
            for consumer in (first, second):
                await consumer.wait_for(feed.next_number)
                assert consumer.public_digest() == digest(feed.truths)


@on_both_loops
async def test_what_does_not_fit_the_buffer_is_counted_and_told() -> None:
    """The process is too slow: the kernel drops, the consumer says so and is marked."""
    feed = new_feed(commands=3_000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sockets_module, "RECEIVE_BUFFER_SIZE", 4_096)
        with Publisher(free_port()) as publisher:
            async with Consumer(GROUP, publisher.port, snapshots=False) as consumer:
                packets = feed.pack(cut=20)
                publisher.send(*packets)  # Nothing is read meanwhile.
                while consumer.packet_count == 0:
                    await asyncio.sleep(0)
                read_count = consumer.packet_count
                publisher.send(feed.heartbeat())
                await consumer.wait_for(feed.next_number)
                assert consumer.dropped_count == len(packets) - read_count > 0
                assert consumer.gap_count == 1
                assert not consumer.is_complete
                missed_count = consumer.gaps[0].count
                assert consumer.message_count == len(feed.messages) - missed_count


@on_both_loops
async def test_a_long_queue_is_read_in_turns() -> None:
    """Others of the event loop have their turn, and a hole is not judged while packets wait,
    even when the time for it is over."""
    feed = new_feed(commands=2_000)
    packets = feed.pack(cut=4)
    second = packets.pop(1)
    with Publisher(free_port()) as publisher, pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines_module, "DATAGRAMS_MAX", 4)
        patch.setattr(channel_module, "HELD_NS", 0)
        async with Consumer(GROUP, publisher.port) as consumer:
            publisher.send(*packets[:40], second, *packets[40:])
            turns = 0
            while consumer.channel(1).next_number < feed.next_number:
                await asyncio.sleep(0)
                turns += 1
            assert turns > len(packets) // 8 - 2, "a timer may read as well"
            assert consumer.gaps == []
            assert consumer.public_digest() == digest(feed.truths)


@on_both_loops
async def test_callbacks_that_raise_end_nothing() -> None:
    feed = new_feed(commands=20)
    complaints: list[str] = []
    loop = asyncio.get_running_loop()

    def broken(what: object) -> None:
        raise KeyError(type(what).__name__)

    callbacks: dict[str, Any] = dict.fromkeys(
        ("on_event", "on_trade", "on_gap", "on_epoch"), broken
    )
    with Publisher(free_port()) as publisher:
        async with Consumer(GROUP, publisher.port, snapshots=False, **callbacks) as consumer:
            loop.set_exception_handler(
                lambda _, context: complaints.append(str(context["exception"]))
            )
            publisher.send(*feed.pack(), heartbeat(feed.next_number + 1))
            await consumer.wait_for(feed.next_number + 1)
            assert consumer.book("I1").is_stale
    assert {"'int'", "'OrderAdded'", "'Gap'"} <= {*complaints}


@on_both_loops
async def test_closing_from_a_callback() -> None:
    feed = new_feed(commands=20)
    with Publisher(free_port()) as publisher:
        consumer = Consumer(GROUP, publisher.port, on_event=lambda _: consumer.close())
        consumer.open()
        waiting = asyncio.ensure_future(consumer.wait_for(10**9))
        await asyncio.sleep(0)
        publisher.send(*feed.pack(cut=1))
        with pytest.raises(NotConnectedError, match="the consumer was closed"):
            await waiting
        with pytest.raises(NotConnectedError, match="not open"):
            await consumer.wait_for(10**9)
        consumer.close()


@on_both_loops
async def test_a_wait_can_be_given_up() -> None:
    feed = new_feed(commands=20)
    with Publisher(free_port()) as publisher:
        async with Consumer(GROUP, publisher.port) as consumer:
            given_up = asyncio.ensure_future(consumer.wait_for(2))
            await asyncio.sleep(0)
            given_up.cancel()
            publisher.send(*feed.pack())
            await consumer.wait_for(feed.next_number)
            assert given_up.cancelled()


@on_both_loops
async def test_an_interface_that_is_not_there() -> None:
    consumer = Consumer(GROUP, free_port(), interface="192.0.2.1", channels=[1, 2])
    with pytest.raises(OSError, match="No such device"):
        consumer.open()
    consumer.close()
