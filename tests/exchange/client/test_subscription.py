"""Subscriptions over lost connections: every message once, whatever byte a connection ends at."""

import asyncio
import random
from typing import Any, Final

import pytest

from exchange.client import (
    FeedMarketData,
    NotConnectedError,
    TerminatedError,
)
from exchange.client import arrivals as arrivals_module
from protocol.codes import (
    RejectCode,
    SubscriptionForm,
    SubscriptionStart,
    TerminateCode,
)
from protocol.feed import (
    Skipped,
    Subscribe,
    Subscribed,
    Unsubscribe,
)
from protocol.market_data import BestPrices, Levels
from protocol.packets import (
    HEARTBEAT,
    SNAPSHOT,
    Block,
    Packet,
    encode_packet,
)
from protocol.wire import encode
from tests.exchange.client.feed import EPOCH, NOW, Feed, heartbeat
from tests.exchange.client.feed_peer import FeedLine, FeedPeer, snapshot_packets
from tests.exchange.client.feed_sinks import Numbers, some_feed
from tests.exchange.loops import on_both_loops

NUMBER: Final = SubscriptionStart.NUMBER
LIVE: Final = SubscriptionStart.LIVE
TRADES: Final = SubscriptionForm.TRADES
ORDERS: Final = SubscriptionForm.ORDERS


async def through_cuts(seed: int, form: SubscriptionForm, expected: list[int]) -> None:
    """Subscribe from number 1, and lose the connection again and again after any byte."""
    rng = random.Random(seed)
    feed = some_feed()
    async with FeedPeer(feed) as peer:
        peer.cuts = [rng.randrange(0, 500) for _ in range(40)]
        sink = Numbers()
        async with await peer.client() as client:
            reached = asyncio.ensure_future(sink.reach(feed.next_number))
            await client.subscribe(1, form=form, start=NUMBER, from_number=1, on_packet=sink)
            await reached
        assert sink.numbers == expected, f"seed {seed}"
        assert sink.messages == [feed.messages[number - 1][1] for number in expected]
        assert len(peer.asked(Subscribe)) > 3, "connections were lost meanwhile"


@on_both_loops
async def test_every_message_once_wherever_connections_end() -> None:
    count = some_feed().next_number
    for seed in range(12):
        await through_cuts(seed, ORDERS, list(range(1, count)))


@on_both_loops
async def test_every_selected_message_once_wherever_connections_end() -> None:
    count = some_feed().next_number
    for seed in range(12):
        await through_cuts(seed, TRADES, [number for number in range(1, count) if number % 3])


@on_both_loops
async def test_begins_with_the_number_that_was_asked_for() -> None:
    feed = some_feed()
    async with FeedPeer(feed) as peer, await peer.client() as client:
        for number in range(1, 10):
            form = TRADES if number % 2 else ORDERS
            sink = Numbers()
            reached = asyncio.ensure_future(sink.reach(feed.next_number))
            subscription = await client.subscribe(
                1, form=form, start=NUMBER, from_number=number, on_packet=sink
            )
            await reached
            wanted = range(number, feed.next_number)
            assert sink.numbers == [one for one in wanted if form is ORDERS or one % 3]
            assert subscription.next_number == feed.next_number
            subscription.close()
        assert [one.request_id for one in peer.asked(Unsubscribe)] == list(range(1, 9))


@on_both_loops
async def test_lost_in_a_snapshot_asks_for_another_and_then_goes_on_by_number() -> None:
    feed = some_feed()
    async with FeedPeer(feed) as peer:

        def half(line: FeedLine, asked: Subscribe) -> None:
            peer.answers[Subscribe] = FeedLine.subscribe
            line.send(Subscribed(asked.request_id, 1, EPOCH, feed.next_number))
            line.send_packets(1, snapshot_packets(feed.next_number)[0])
            line.close()

        peer.answers[Subscribe] = half
        sink = Numbers()
        notices: list[Any] = []
        async with await peer.client() as client:
            reached = asyncio.ensure_future(sink.reach(feed.next_number))
            subscription = await client.subscribe(1, on_packet=sink, on_notice=notices.append)
            await reached
            assert not subscription.snapshot_is_open
            peer.line.close()
            await sink.reach(feed.next_number)
        asked = [(one.start, one.from_number) for one in peer.asked(Subscribe)]
        snapshot, number = SubscriptionStart.SNAPSHOT, SubscriptionStart.NUMBER
        assert asked == [(snapshot, 0), (snapshot, 0), (number, feed.next_number)]
        assert sink.kinds == [SNAPSHOT, SNAPSHOT, SNAPSHOT, HEARTBEAT, HEARTBEAT]
        assert [type(notice) for notice in notices] == [Subscribed] * 3
        assert {one.request_id for one in peer.asked(Subscribe)} == {1}


@on_both_loops
async def test_who_was_too_slow_is_told_and_goes_on_behind_a_snapshot() -> None:
    feed = some_feed()
    async with FeedPeer(feed) as peer:
        sink = Numbers()
        notices: list[Any] = []
        async with await peer.client() as client:
            reached = asyncio.ensure_future(sink.reach(feed.next_number))
            subscription = await client.subscribe(
                1, start=LIVE, on_packet=sink, on_notice=notices.append
            )
            await reached
            skipped = Skipped(1, 1, feed.next_number, feed.next_number + 10)
            peer.line.send(skipped)
            peer.line.send_packets(1, *snapshot_packets(feed.next_number + 10))
            peer.line.send_packets(1, heartbeat(feed.next_number + 10))
            await sink.reach(feed.next_number + 10)
            assert subscription.skipped_count == 1
            assert subscription.next_number == feed.next_number + 10
            assert notices[1:] == [skipped]


@on_both_loops
async def test_a_new_epoch_begins_again() -> None:
    feed = some_feed()
    async with FeedPeer(feed) as peer:
        sink = Numbers()
        async with await peer.client() as client:
            reached = asyncio.ensure_future(sink.reach(feed.next_number))
            await client.subscribe(1, start=NUMBER, from_number=3, on_packet=sink)
            await reached
            sink.numbers.clear()
            peer.epoch = EPOCH + 5
            peer.line.close()
            await sink.reach(feed.next_number)
            assert sink.numbers == list(range(1, feed.next_number))


@on_both_loops
async def test_a_feed_that_is_behind_is_asked_again() -> None:
    """After its restart it knows less than the client, for a moment."""
    feed, behind = some_feed(), Feed(seed=5)
    behind.list_event(1)
    async with FeedPeer(feed) as peer:
        sink = Numbers()
        async with await peer.client() as client:
            reached = asyncio.ensure_future(sink.reach(feed.next_number))
            await client.subscribe(1, start=NUMBER, from_number=1, on_packet=sink)
            await reached
            peer.feed = behind
            line = peer.line
            line.close()
            while len(peer.asked(Subscribe)) < 2:
                await asyncio.sleep(0)
            peer.feed = feed
            await sink.reach(feed.next_number)
            assert len(peer.asked(Subscribe)) == 3
            assert sink.numbers == list(range(1, feed.next_number))


@on_both_loops
async def test_what_was_known_once_is_asked_for_again() -> None:
    """A feed whose log was cut by a power loss, and that reads on, knows it later."""
    feed = some_feed()
    async with FeedPeer(feed) as peer, await peer.client() as client:
        sink = Numbers()
        subscription = await client.subscribe(1, start=LIVE, events=[1], on_packet=sink)
        peer.answers[Subscribe] = lambda line, asked: line.refuse(
            asked, RejectCode.UNKNOWN_EVENT, 7, 1
        )
        peer.line.close()
        while len(peer.asked(Subscribe)) < 3:
            await asyncio.sleep(0)
        assert subscription.is_open
        peer.answers[Subscribe] = FeedLine.subscribe
        count = len(peer.asked(Subscribe))
        while len(peer.asked(Subscribe)) == count:
            await asyncio.sleep(0)
        assert subscription.is_open


@on_both_loops
async def test_a_hole_ends_the_client() -> None:
    feed = some_feed()
    async with FeedPeer(feed) as peer, await peer.client() as client:
        sink = Numbers()
        ends: list[Any] = []
        reached = asyncio.ensure_future(sink.reach(feed.next_number))
        subscription = await client.subscribe(1, start=LIVE, on_packet=sink, on_end=ends.append)
        await reached
        peer.line.send_packets(1, heartbeat(feed.next_number + 1))
        while not ends:
            await asyncio.sleep(0)
        (reason,) = ends
        assert isinstance(reason, TerminatedError)
        assert (reason.code, reason.by_venue) == (TerminateCode.PROTOCOL_VIOLATION, False)
        assert f"message {feed.next_number + 1} came instead of {feed.next_number}" in str(reason)
        assert subscription.reason is reason
        with pytest.raises(NotConnectedError, match="came instead"):
            await client.subscribe(1)


@on_both_loops
async def test_messages_come_decoded_to_a_callback_or_an_iterator() -> None:
    feed = some_feed()
    expected = [message for _, message in feed.messages]
    async with FeedPeer(feed) as peer, await peer.client() as client:
        told: list[FeedMarketData] = []
        subscription = await client.subscribe(
            1, start=NUMBER, from_number=1, on_message=told.append
        )
        while len(told) < len(expected):
            await asyncio.sleep(0)
        assert told == expected
        with pytest.raises(RuntimeError, match="callback"):
            await anext(subscription)
        subscription.close()
        iterated = await client.subscribe(1, start=NUMBER, from_number=1)
        assert [await anext(iterated) for _ in expected] == expected
        iterated.close()
        assert [message async for message in iterated] == []


@on_both_loops
async def test_a_slow_iterator_holds_the_socket() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrivals_module, "REPORTS_MAX", 10)
        patch.setattr(arrivals_module, "REPORTS_RESUME", 5)
        feed = some_feed(2_000)
        expected = [message for _, message in feed.messages]
        async with FeedPeer(feed) as peer, await peer.client() as client:
            subscription = await client.subscribe(1, start=NUMBER, from_number=1)
            got = [await anext(subscription)]
            for _ in range(100):
                await asyncio.sleep(0)
            assert subscription.is_full
            assert subscription.next_number < feed.next_number, "the rest is not read"
            got += [await anext(subscription) for _ in expected[1:]]
            assert got == expected
            assert not subscription.is_full


@on_both_loops
async def test_what_a_callback_raises_is_reported_and_nothing_is_lost() -> None:
    feed = some_feed()
    loop = asyncio.get_running_loop()
    complaints: list[Any] = []
    loop.set_exception_handler(lambda _, context: complaints.append(context["exception"]))
    async with FeedPeer(feed) as peer, await peer.client() as client:
        sink = Numbers()

        def fail(data: bytes) -> None:
            sink(data)
            raise ZeroDivisionError

        reached = asyncio.ensure_future(sink.reach(feed.next_number))
        await client.subscribe(1, start=NUMBER, from_number=1, on_packet=fail)
        await reached
        assert sink.numbers == list(range(1, feed.next_number))
        assert {type(error) for error in complaints} == {ZeroDivisionError}


@on_both_loops
async def test_states_go_to_their_subscription() -> None:
    """By form, channel and depth; definitions to those of the channel, once each."""
    feed = some_feed(0)
    event, instrument = (message for _, message in feed.messages)
    other = Feed(channel=2)
    other.list_event(2)
    best = BestPrices(9, NOW, 1, 1, 5, 40, 100, 60, 200)
    five, ten = (Levels(9, NOW, 1, 1, 5, depth, [(40, 100, 1)], []) for depth in (5, 10))
    definitions = encode_packet(
        Packet(SNAPSHOT, 1, EPOCH, 5, NOW, [Block(3, encode(one)) for one in (event, instrument)])
    )

    async with FeedPeer(feed) as peer, await peer.client() as client:

        def accept(line: FeedLine, asked: Subscribe) -> None:
            line.send(Subscribed(asked.request_id, 1, EPOCH, feed.next_number))
            line.send_packets(asked.form, definitions)

        peer.answers[Subscribe] = accept
        told: dict[str, list[FeedMarketData]] = {"best": [], "five": [], "ten": []}
        levels = SubscriptionForm.LEVELS
        await client.subscribe(1, form=SubscriptionForm.BEST_PRICES, on_message=told["best"].append)
        await client.subscribe(1, form=levels, depth=5, on_message=told["five"].append)
        last = await client.subscribe(1, form=levels, depth=10, on_message=told["ten"].append)
        with pytest.raises(ValueError, match="LEVELS come as messages"):
            await client.subscribe(1, form=levels, depth=5, on_packet=Numbers())
        peer.line.send(event, instrument, other.messages[0][1], best, five, ten)
        while ten not in told["ten"]:
            await asyncio.sleep(0)
        assert told["best"] == [event, instrument, best]
        assert told["five"][:2] == [event, instrument]
        assert told["five"][-1] == five
        assert told["ten"] == [event, instrument, ten]
        last.close()
        peer.line.send(ten, best)
        while told["best"][-2:] != [best, best]:
            await asyncio.sleep(0)
        assert told["ten"] == [event, instrument, ten]
