"""A receiver of market data with everything that it tells, for tests."""

from typing import Final

import pytest

from exchange.client.limits import HELD_NS
from exchange.client.receiver import MarketDataReceiver
from exchange.client.recovery import NO_MEANS, Gap, Means, Recovery, Replay, Snapshot
from protocol.books import StaleBookError
from protocol.market_data import MarketDataMessage
from protocol.packets import DATA, FIRST, LAST, Block, Packet, encode_packet
from protocol.wire import encode
from tests.exchange.client.feed import EPOCH, NOW, Feed, digest

__all__ = [
    "BOTH",
    "NOT_COMING",
    "REPLACED",
    "REPLAY_ONLY",
    "SNAPSHOT_ONLY",
    "WHOLE",
    "Listener",
    "T",
    "check_right",
    "check_says_nothing",
    "wanted",
    "whole",
]

T: Final = 10**12
"""A monotonic reading."""
NOT_COMING: Final = "messages did not come"
WHOLE: Final = FIRST | LAST
BOTH: Final = Means(can_replay=True, can_snapshot=True)
REPLAY_ONLY: Final = Means(can_replay=True)
SNAPSHOT_ONLY: Final = Means(can_snapshot=True)
REPLACED: Final = "messages did not come; a snapshot took their place"


class Listener:
    """A receiver and all that it tells."""

    def __init__(self, *channels: int, means: Means = NO_MEANS) -> None:
        self.messages: list[MarketDataMessage] = []
        self.gaps: list[Gap] = []
        self.epochs: list[int] = []
        self.recoveries: list[Recovery] = []
        self.now_ns = T
        self.receiver = MarketDataReceiver(
            channels or (1,),
            means=means,
            on_message=self.messages.append,
            on_gap=self.gaps.append,
            on_recovered=self.recoveries.append,
            on_epoch=self.epochs.append,
        )

    def hear(self, *packets: bytes, channel: int = 1) -> None:
        for packet in packets:
            self.receiver.receive(channel, packet, self.now_ns)
            self.go_on()

    def hear_snapshot(self, *packets: bytes, channel: int = 1, source: int = 0) -> None:
        for packet in packets:
            self.receiver.receive_snapshot(channel, packet, self.now_ns, source)
            self.go_on()

    def go_on(self) -> None:
        while self.receiver.deadline_ns == 1:
            self.receiver.go_on(self.now_ns)

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


def wanted(listener: Listener) -> Replay | Snapshot | None:
    [*all_wanted] = listener.receiver.wanted
    assert len(all_wanted) <= 1
    return all_wanted[0] if all_wanted else None


def check_right(listener: Listener, feed: Feed) -> None:
    assert listener.is_complete()
    assert listener.next_number == feed.next_number
    assert listener.receiver.public_digest() == digest(feed.truths)
    assert wanted(listener) is None
    assert listener.receiver.deadline_ns == 0
    assert not any(book.is_stale for book in listener.receiver.market.books.values())


def check_says_nothing(listener: Listener) -> None:
    assert not listener.is_complete()
    with pytest.raises(StaleBookError):
        listener.receiver.public_digest()
    for book in listener.receiver.market.books.values():
        assert book.phase is None
        with pytest.raises(StaleBookError):
            _ = book.best_bid
        with pytest.raises(StaleBookError):
            book.queue_position(1)
