"""A venue whose journal was set back while a client had no connection: two histories with the same
numbers are never joined."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

import msgspec
import pytest

from exchange.client import (
    DropCopyPosition,
    FeedClient,
    JournalSetBackError,
    Subscription,
)
from exchange.client import feed_requests as requests_module
from exchange.client import streams as streams_module
from protocol.codes import SubscriptionForm, SubscriptionStart
from protocol.feed import DropCopyMark, DropCopyRequest, Subscribe, Subscribed, Unsubscribe
from protocol.packets import DATA, SELECTED, Block, Packet, SelectedBlock, encode_packet
from protocol.wire import encode
from tests.exchange.client.feed import EPOCH, NOW, Feed, heartbeat
from tests.exchange.client.feed_peer import FeedLine, FeedPeer, copied
from tests.exchange.client.feed_sinks import Numbers, numbers_of, some_feed
from tests.exchange.loops import on_both_loops

NUMBER: Final = SubscriptionStart.NUMBER
TRADES: Final = SubscriptionForm.TRADES
ORDERS: Final = SubscriptionForm.ORDERS


def set_back(feed: Feed, number: int, count: int) -> Feed:
    """The same messages below a number, and from it on others, which are later."""
    other = Feed()
    later = [
        (flags, msgspec.structs.replace(message, time_ns=NOW + 1))
        for flags, message in feed.messages[number - 1 :]
    ]
    other.messages = feed.messages[: number - 1] + (later * count)[:count]
    return other


class Reader:
    """A subscription from number 1 that has everything of its feed, and what it is told."""

    def __init__(self, peer: FeedPeer, client: FeedClient, form: SubscriptionForm) -> None:
        self.sink = Numbers()
        self.notices: list[Any] = []
        self.ends: list[Any] = []
        self.on_end: Callable[[Any], None] = self.ends.append
        self.form = form
        self._peer = peer
        self._client = client

    async def open(self) -> Subscription:
        reached = asyncio.ensure_future(self.sink.reach(self._peer.feed.next_number))
        subscription = await self._client.subscribe(
            1,
            form=self.form,
            start=NUMBER,
            from_number=1,
            on_packet=self.sink,
            on_notice=self.notices.append,
            on_end=self.on_end,
        )
        await reached
        return subscription

    async def told(self) -> str:
        """Wait for the end; what it says."""
        while not self.ends:
            await asyncio.sleep(0)
        (reason,) = self.ends
        assert isinstance(reason, JournalSetBackError)
        return str(reason)


def last_of(feed: Feed, form: SubscriptionForm) -> int:
    """Number of the last message: the peer takes every third for one that was not asked for."""
    last = feed.next_number - 1
    return last if form is ORDERS or last % 3 else last - 1


async def overtaken(feed: Feed, form: SubscriptionForm) -> None:
    async with FeedPeer(feed) as peer, await peer.client() as client:
        reader = Reader(peer, client, form)
        subscription = await reader.open()
        had = list(reader.sink.messages)
        peer.feed = set_back(feed, feed.next_number - 8, 20)
        peer.line.close()
        last = last_of(feed, form)
        assert f"no longer has message {last} of channel 1" in await reader.told()
        assert reader.sink.messages == had, "nothing of the other history"
        assert [one.from_number for one in peer.asked(Subscribe)] == [1, last]
        assert not subscription.is_open
        assert client.is_connected
        assert numbers_of(await client.replay(1, 1, 4)) == [1, 2, 3, 4]
        assert len(peer.asked(Unsubscribe)) == 1, "the feed is to send no more"


@on_both_loops
async def test_a_history_that_has_overtaken_the_reader() -> None:
    for size in (40, 41, 42):
        for form in (ORDERS, TRADES):
            await overtaken(some_feed(size), form)


async def the_same(feed: Feed, form: SubscriptionForm) -> None:
    async with FeedPeer(feed) as peer, await peer.client() as client:
        reader = Reader(peer, client, form)
        subscription = await reader.open()
        end, last = feed.next_number, last_of(feed, form)
        peer.feed = set_back(feed, end, 0)
        peer.feed.messages += set_back(feed, end - 3, 3).messages[-3:]
        peer.time_ns = NOW + 1
        peer.line.close()
        await reader.sink.reach(end + 3)
        numbers = range(1, end + 3)
        assert reader.sink.numbers == [one for one in numbers if form is ORDERS or one % 3]
        assert [one.from_number for one in peer.asked(Subscribe)] == [1, last]
        assert [notice.next_number for notice in reader.notices] == [1, end]
        assert subscription.subscribed == reader.notices[-1]
        assert not reader.ends


@on_both_loops
async def test_a_history_that_is_the_same_goes_on() -> None:
    """It is asked for from the last message, and the user sees nothing of that."""
    for size in (40, 41, 42):
        for form in (ORDERS, TRADES):
            await the_same(some_feed(size), form)


@on_both_loops
async def test_the_last_message_came_in_a_packet_with_known_ones() -> None:
    feed = some_feed()
    end = feed.next_number
    async with FeedPeer(feed) as peer, await peer.client() as client:
        reader = Reader(peer, client, ORDERS)
        await reader.open()
        feed.messages += feed.messages[-2:]
        blocks = [Block(flags, encode(message)) for flags, message in feed.messages[end - 3 :]]
        packet = Packet(DATA, 1, EPOCH, end - 2, NOW, blocks)
        peer.line.send_packets(ORDERS, encode_packet(packet))
        while reader.sink.numbers[-1] != end + 1:
            await asyncio.sleep(0)
        peer.line.close()
        while len(peer.asked(Subscribe)) < 2:
            await asyncio.sleep(0)
        assert peer.asked(Subscribe)[1].from_number == end + 1


@on_both_loops
async def test_messages_of_another_epoch_are_not_expected() -> None:
    feed = some_feed()
    async with FeedPeer(feed) as peer, await peer.client() as client:
        reader = Reader(peer, client, ORDERS)
        await reader.open()
        peer.epoch += 1
        peer.answers[Subscribe] = lambda line, asked: line.send(
            Subscribed(asked.request_id, 1, peer.epoch, asked.from_number)
        )
        for count in (2, 3):
            peer.line.close()
            while len(reader.notices) < count:
                await asyncio.sleep(0)
        assert [one.from_number for one in peer.asked(Subscribe)] == [1, 1, 1]
        assert not reader.ends


@on_both_loops
async def test_a_feed_that_is_past_the_time_and_not_at_the_number() -> None:
    feed = some_feed()
    async with FeedPeer(feed) as peer, await peer.client() as client:
        reader = Reader(peer, client, ORDERS)
        await reader.open()
        peer.feed = set_back(feed, feed.next_number - 8, 8)
        del peer.feed.messages[-1:]
        peer.time_ns = NOW + 1
        peer.line.close()
        assert f"message {feed.next_number - 1} of channel 1" in await reader.told()
        assert len(peer.asked(Subscribe)) == 1, "nothing was asked for"


@on_both_loops
async def test_a_message_that_nobody_can_read_proves_nothing() -> None:
    """Whoever takes packets as bytes may be given anything."""
    unknown, broken = bytes([0x92, 0x7F, 1]), bytes([0x92])
    for payload in (unknown, broken):
        feed = some_feed()
        async with FeedPeer(feed) as peer, await peer.client() as client:
            reader = Reader(peer, client, ORDERS)
            subscription = await reader.open()
            packet = encode_packet(
                Packet(DATA, 1, EPOCH, feed.next_number, NOW, [Block(3, payload)])
            )
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(subscription._stream, "give", len)
                peer.line.send_packets(ORDERS, packet)
                while subscription.next_number == feed.next_number:
                    await asyncio.sleep(0)
            peer.time_ns = NOW + 1
            peer.line.close()
            while len(peer.asked(Subscribe)) < 2:
                await asyncio.sleep(0)
            assert peer.asked(Subscribe)[1].from_number == feed.next_number
            assert not reader.ends


@on_both_loops
async def test_the_end_of_one_may_close_another() -> None:
    feed = some_feed()
    async with FeedPeer(feed) as peer, await peer.client() as client:
        reader = Reader(peer, client, ORDERS)
        others: list[Subscription] = []

        def close_others(reason: Any) -> None:
            reader.ends.append(reason)
            others[0].close()

        reader.on_end = close_others
        await reader.open()
        best = SubscriptionForm.BEST_PRICES
        peer.answers[Subscribe] = lambda line, asked: line.send(
            Subscribed(asked.request_id, 1, EPOCH, feed.next_number)
        )
        others.append(await client.subscribe(1, form=best, on_message=reader.notices.append))
        peer.feed = set_back(feed, feed.next_number - 8, 0)
        peer.time_ns = NOW + 1
        peer.line.close()
        await reader.told()
        await client.replay(1, 1, 1)
        assert len(peer.asked(Subscribe)) == 2, "what is closed is not asked for"


@on_both_loops
async def test_a_feed_that_may_be_behind_is_asked_until_it_has_the_number() -> None:
    feed = some_feed()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(requests_module, "BEHIND_WAIT_S", 0.001)
        async with FeedPeer(feed) as peer, await peer.client() as client:
            reader = Reader(peer, client, ORDERS)
            await reader.open()
            had = list(reader.sink.numbers)
            peer.feed = set_back(feed, feed.next_number - 8, 0)
            peer.line.close()
            while len(peer.asked(Subscribe)) < 5:
                await asyncio.sleep(0)
            assert not reader.ends
            peer.feed = set_back(feed, feed.next_number - 8, 9)
            await reader.told()
            assert reader.sink.numbers == had


@on_both_loops
async def test_a_feed_that_is_about_to_give_the_number_again() -> None:
    feed = some_feed()
    last = feed.next_number - 1
    async with FeedPeer(feed) as peer, await peer.client() as client:
        reader = Reader(peer, client, ORDERS)
        await reader.open()
        had, heard = list(reader.sink.numbers), len(reader.sink.kinds)
        peer.feed = set_back(feed, last, 0)
        peer.line.close()
        while len(reader.notices) < 2:
            await asyncio.sleep(0)
        await client.replay(1, 1, 1)  # The heartbeat below our number has come, and is not given.
        assert (len(reader.sink.kinds), reader.ends) == (heard, [])
        peer.feed = set_back(feed, last, 1)
        peer.line.send_packets(ORDERS, *peer.line.packets(last))
        await reader.told()
        assert reader.sink.numbers == had


async def not_selected(feed: Feed, *, is_silent: bool) -> None:
    end = feed.next_number
    async with FeedPeer(feed) as peer, await peer.client() as client:
        reader = Reader(peer, client, TRADES)
        await reader.open()
        had = list(reader.sink.numbers)

        def accept(line: FeedLine, asked: Subscribe) -> None:
            line.send(Subscribed(asked.request_id, 1, EPOCH, asked.from_number))
            if not is_silent:
                block = SelectedBlock(3, encode(feed.messages[-1][1]), end + 1)
                packet = Packet(SELECTED, 1, EPOCH, end, NOW, [block])
                line.send_packets(TRADES, encode_packet(packet))
            line.send_packets(TRADES, heartbeat(end + 2))

        peer.answers[Subscribe] = accept
        peer.line.close()
        await reader.told()
        assert reader.sink.numbers == had


@on_both_loops
async def test_a_message_that_is_not_selected_any_more() -> None:
    for is_silent in (True, False):
        await not_selected(some_feed(), is_silent=is_silent)


@on_both_loops
async def test_what_was_said_long_ago_is_not_asked_for_again() -> None:
    feed = some_feed()
    last = last_of(feed, TRADES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams_module, "OVERLAP_MAX", 10)
        for end, asked in ((last + 10, last), (last + 11, last + 11)):
            async with FeedPeer(feed) as peer, await peer.client() as client:
                reader = Reader(peer, client, TRADES)
                await reader.open()
                peer.line.send_packets(TRADES, heartbeat(end))
                await reader.sink.reach(end)
                peer.line.close()
                while len(peer.asked(Subscribe)) < 2:
                    await asyncio.sleep(0)
                assert peer.asked(Subscribe)[1].from_number == asked


@on_both_loops
async def test_an_iterator_gives_what_came_and_then_the_error() -> None:
    feed = some_feed()
    expected = [message for _, message in feed.messages]
    async with FeedPeer(feed) as peer, await peer.client() as client:
        subscription = await client.subscribe(1, start=NUMBER, from_number=1)
        while subscription.next_number < feed.next_number:
            await asyncio.sleep(0)
        peer.feed = set_back(feed, feed.next_number - 8, 20)
        peer.line.close()
        assert [await anext(subscription) for _ in expected] == expected
        with pytest.raises(JournalSetBackError):
            await anext(subscription)
        assert [message async for message in subscription] == []


@on_both_loops
async def test_a_drop_copy_of_a_feed_that_is_past_the_time_and_not_at_the_place() -> None:
    feed = some_feed()
    async with FeedPeer(feed) as peer, await peer.client() as client:
        peer.copies = [copied(sequence, 0) for sequence in (11, 12)]
        copy = await client.drop_copy(position=DropCopyPosition(1, 0))
        assert [(await anext(copy)).sequence for _ in range(2)] == [11, 12]
        peer.line.close()  # The feed is at 10, and not later: it reads on.
        while len(peer.asked(DropCopyRequest)) < 2:
            await asyncio.sleep(0)
        peer.time_ns = NOW + 1
        peer.line.close()
        with pytest.raises(JournalSetBackError, match="no longer has sequence 12"):
            await anext(copy)
        assert len(peer.asked(DropCopyRequest)) == 2


@on_both_loops
async def test_a_mark_without_a_time_proves_nothing() -> None:
    """As they come while the past is told: the feed may be behind such a mark later."""
    async with FeedPeer(some_feed()) as peer, await peer.client() as client:

        def answer(line: FeedLine, asked: DropCopyRequest) -> None:
            line.drop_copy(asked)
            line.send(DropCopyMark(asked.request_id, 20, 0))

        peer.answers[DropCopyRequest] = answer
        peer.copies = [copied(9, 0)]
        copy = await client.drop_copy(position=DropCopyPosition(1, 0), on_report=print)
        await copy.wait_for(20)
        peer.time_ns = NOW + 1
        peer.line.close()
        while len(peer.asked(DropCopyRequest)) < 2:
            await asyncio.sleep(0)
        assert copy.is_open
