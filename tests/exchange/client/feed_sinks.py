"""What tests of the feed client give to a scripted feed, and take from it."""

import asyncio
from typing import Any

from protocol.market_data import Candle
from protocol.packets import HEARTBEAT, SNAPSHOT, SelectedBlock, decode_message, decode_packet
from tests.exchange.client.feed import NOW, Feed

__all__ = ["Numbers", "candle", "numbers_of", "some_feed"]


def some_feed(count: int = 40) -> Feed:
    feed = Feed(seed=5)
    feed.list_event(1)
    feed.list_instrument(1)
    feed.random_commands(count)
    return feed


class Numbers:
    """A sink for packets: the numbers of all messages, and what kinds came."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.messages: list[Any] = []
        self.kinds: list[int] = []
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []

    def __call__(self, data: bytes) -> None:
        packet = decode_packet(data)
        self.kinds.append(packet.kind)
        if packet.kind == SNAPSHOT:
            return
        number = packet.number
        for block in packet.blocks:
            self.numbers.append(block.number if isinstance(block, SelectedBlock) else number)
            self.messages.append(decode_message(block.payload))
            number += 1
        reached = packet.number if packet.kind == HEARTBEAT else 0
        for number, waiter in self._waiters:
            if reached >= number and not waiter.done():
                waiter.set_result(None)

    async def reach(self, number: int) -> None:
        """Wait for a heartbeat that says that all below a number was sent."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append((number, waiter))
        await waiter


def numbers_of(packets: list[bytes]) -> list[int]:
    sink = Numbers()
    for packet in packets:
        sink(packet)
    return sink.numbers


def candle(start_s: int, instrument_id: int = 1, interval_s: int = 60) -> Candle:
    times = (interval_s, start_s * 10**9)
    return Candle(9, NOW, 1, instrument_id, 5, *times, 50, 60, 40, 55, 700, 3, 900, 1)
