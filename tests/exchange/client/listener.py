"""A receiver of market data with everything that it tells, for tests."""

from typing import Final

import pytest

from exchange.client.channel import Gap
from exchange.client.limits import HELD_NS
from exchange.client.receiver import MarketDataReceiver
from protocol.books import StaleBookError
from protocol.market_data import MarketDataMessage
from protocol.packets import DATA, FIRST, LAST, Block, Packet, encode_packet
from protocol.wire import encode
from tests.exchange.client.feed import EPOCH, NOW, Feed, digest

__all__ = ["NOT_COMING", "WHOLE", "Listener", "T", "whole"]

T: Final = 10**12
"""A monotonic reading."""
NOT_COMING: Final = "messages did not come"
WHOLE: Final = FIRST | LAST


class Listener:
    """A receiver and all that it tells."""

    def __init__(self, *channels: int) -> None:
        self.messages: list[MarketDataMessage] = []
        self.gaps: list[Gap] = []
        self.epochs: list[int] = []
        self.now_ns = T
        self.receiver = MarketDataReceiver(
            channels or (1,),
            on_message=self.messages.append,
            on_gap=self.gaps.append,
            on_epoch=self.epochs.append,
        )

    def hear(self, *packets: bytes, channel: int = 1) -> None:
        for packet in packets:
            self.receiver.receive(channel, packet, self.now_ns)

    def wait(self, wait_ns: int = HELD_NS) -> None:
        self.now_ns += wait_ns
        self.receiver.tick(self.now_ns)

    @property
    def next_number(self) -> int:
        return self.receiver.channels[1].next_number

    def is_complete(self) -> bool:
        return self.receiver.is_complete

    def check(self, feed: Feed) -> None:
        """Everything up to now was understood, and nothing was missed."""
        assert self.receiver.gaps == []
        assert self.receiver.is_complete
        assert self.next_number == feed.next_number
        assert self.receiver.public_digest() == digest(feed.truths)
        assert self.messages == [message for _, message in feed.messages]

    def check_stale(self, feed: Feed, *gaps: tuple[int, int, str]) -> None:
        """Exactly these gaps were told, and no book says anything."""
        found = [(gap.first_number, gap.count, gap.reason) for gap in self.gaps]
        assert found == list(gaps)
        assert self.receiver.gaps == self.gaps
        assert not self.receiver.is_complete
        assert self.next_number == feed.next_number
        assert all(book.is_stale for book in self.receiver.market.books.values())
        with pytest.raises(StaleBookError, match="not complete"):
            self.receiver.public_digest()


def whole(message: MarketDataMessage, number: int, flags: int = WHOLE) -> bytes:
    """A packet with one message."""
    return encode_packet(Packet(DATA, 1, EPOCH, number, NOW, [Block(flags, encode(message))]))
