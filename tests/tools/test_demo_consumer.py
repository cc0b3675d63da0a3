"""The demo's consumer as a process: what it shows, what it misses, and how it ends."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from protocol import market_data, packets, wire
from protocol.books import Book, public_digest
from protocol.codes import Phase, Side
from protocol.market_data import InstrumentDefinition, OrderAdded, OrderExecuted, Trade
from tools.demo_consumer import ConsumerProcess, Seen
from tools.errors import ToolError
from tools.venue_settings import INTERFACE, own_settings

RAIN = InstrumentDefinition(3, 1, 1, 1, "RAIN", "Rain", 0, 10_000, [(0, 100)], 100, Phase.OPEN)


class Multicast:
    """Sends messages the way a venue does, on a group and port of its own."""

    def __init__(self) -> None:
        settings = own_settings()
        self.group, self.port = (
            str(settings["market_data.group"]),
            int(settings["market_data.port"]),
        )
        self.number = 1
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        interface = socket.inet_aton(INTERFACE)
        self.socket.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, interface)
        self.socket.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 0)

    def send(self, *messages: market_data.MarketDataMessage) -> None:
        """One packet; each message is a command of its own."""
        flags = packets.FIRST | packets.LAST
        blocks = [packets.Block(flags, wire.encode(message)) for message in messages]
        packet = packets.Packet(packets.DATA, 1, 9, self.number, 0, blocks)
        self.socket.sendto(packets.encode_packet(packet), (self.group, self.port))
        self.number += len(messages)


@contextmanager
def started() -> Iterator[tuple[Multicast, ConsumerProcess]]:
    venue = Multicast()
    with venue.socket, ConsumerProcess(venue.group, venue.port) as consumer:
        yield venue, consumer


def test_it_sees_books_and_trades() -> None:
    with started() as (venue, consumer):
        assert consumer.look().seen == ()
        venue.send(RAIN)
        venue.send(
            OrderAdded(4, 1, 1, 11, Side.BUY, 4_000, 500),
            OrderAdded(5, 1, 1, 12, Side.SELL, 4_200, 300),
            OrderAdded(6, 1, 1, 13, Side.BUY, 4_000, 100),
            OrderExecuted(7, 1, 1, 11, 1, 200, 300),
            Trade(7, 1, 1, 1, 4_000, 200, Side.SELL, 200),
        )
        look = consumer.finish()
    assert look.seen == (Seen(1, False, 4_000, 400, 4_200, 300, 4_000, 200, 1),)
    assert (look.messages, look.packets, look.gaps, look.dropped) == (6, 2, 0, 0)
    assert look.receive_buffer_size > 0
    book = Book(RAIN)
    book.add(11, Side.BUY, 4_000, 300)
    book.add(12, Side.SELL, 4_200, 300)
    book.add(13, Side.BUY, 4_000, 100)
    assert look.digest == public_digest([book])


def test_after_a_gap_it_shows_no_prices_and_no_digest() -> None:
    with started() as (venue, consumer):
        venue.send(RAIN, OrderAdded(4, 1, 1, 11, Side.BUY, 4_000, 500))
        venue.number += 1
        venue.send(Trade(9, 1, 1, 2, 4_100, 700, Side.BUY, 900))
        look = consumer.finish()
    assert look.seen == (Seen(1, True, last_price=4_100, volume=700, trade_count=1),)
    assert (look.gaps, look.digest) == (1, "")


def test_whoever_heard_nothing_has_no_digest() -> None:
    with started() as (_, consumer):
        assert consumer.finish().digest == ""


def test_a_consumer_that_fails_is_one_line() -> None:
    with pytest.raises(ToolError, match=r"the consumer failed: OSError: .*"):
        ConsumerProcess("127.0.0.1", 9)
