"""The feed client: replays, snapshots, candles, and how it connects, is refused and ends."""

import asyncio
import random
from typing import Any, Final

import pytest

from exchange.client import (
    ClientState,
    ConnectError,
    FeedMarketData,
    FeedRejectError,
    LogOnRejectedError,
    NotConnectedError,
    ReplayIncompleteError,
    RequestEndedError,
    StateChange,
    TerminatedError,
    open_feed,
)
from exchange.client import feed_client as feed_client_module
from protocol.codes import (
    RejectCode,
    RequestEndCode,
    SubscriptionForm,
    SubscriptionStart,
)
from protocol.feed import (
    CandlesRequest,
    ReplayRequest,
    RequestEnd,
    Subscribe,
    Subscribed,
    Unsubscribe,
)
from protocol.framing import HEADER_SIZE, PACKET, REPLAYED, UNSEQUENCED, encode_frame
from protocol.transport import LogOnRejected
from protocol.wire import encode
from tests.exchange.client.feed import EPOCH, NOW, Feed, heartbeat
from tests.exchange.client.feed_peer import KEY, FeedLine, FeedPeer, snapshot_packets
from tests.exchange.client.feed_sinks import Numbers, candle, numbers_of, some_feed
from tests.exchange.loops import on_both_loops

NUMBER: Final = SubscriptionStart.NUMBER
LIVE: Final = SubscriptionStart.LIVE
TRADES: Final = SubscriptionForm.TRADES
ORDERS: Final = SubscriptionForm.ORDERS


# Replays, snapshots, candles.


@on_both_loops
async def test_a_replay_goes_on_over_lost_connections() -> None:
    feed = some_feed()
    for seed in range(8):
        rng = random.Random(seed)
        async with FeedPeer(feed) as peer:
            peer.cuts = [rng.randrange(0, 700) for _ in range(20)]
            async with await peer.client() as client:
                numbers = numbers_of(await client.replay(1, 3, 38))
            assert numbers[:38] == list(range(3, 41)), f"seed {seed}"
            assert numbers == list(range(3, 3 + len(numbers)))
            assert len(numbers) < 38 + 4


@on_both_loops
async def test_long_replays_are_cut_and_wait_for_each_other() -> None:
    feed = some_feed()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feed_client_module, "REPLAY_COUNT_MAX", 10)
        async with FeedPeer(feed) as peer, await peer.client() as client:
            sink = Numbers()
            empty, packets = await asyncio.gather(
                client.replay(1, 1, 33, on_packet=sink), client.replay(1, 2, 3)
            )
            assert empty == []
            assert sink.numbers == list(range(1, len(sink.numbers) + 1))
            assert 33 <= len(sink.numbers) < 33 + 4
            assert numbers_of(packets)[:3] == [2, 3, 4]
            asked = [(one.from_number, one.count) for one in peer.asked(ReplayRequest)]
            assert sorted(asked) == [(1, 10), (2, 3), (13, 10), (25, 9)]


@on_both_loops
async def test_a_replay_that_the_feed_does_not_have_is_an_error() -> None:
    feed = some_feed()
    next_number = feed.next_number
    async with FeedPeer(feed) as peer, await peer.client() as client:
        with pytest.raises(FeedRejectError) as refused:
            await client.replay(1, next_number, 1)
        error = refused.value
        assert (error.code, error.field, error.field_name) == (91, 3, "from_number")
        assert error.limit == next_number
        assert str(error) == (
            f"ReplayRequest rejected: NUMBER_TOO_HIGH: from_number {next_number} is above "
            f"{next_number}, the next number that the feed has (text)"
        )
        with pytest.raises(ReplayIncompleteError) as short:
            await client.replay(1, next_number - 1, 5)
        assert short.value.next_number == next_number
        for channel, number, count in ((1, 0, 1), (1, 1, 0)):
            with pytest.raises(ValueError, match="begin at 1"):
                await client.replay(channel, number, count)


@on_both_loops
async def test_a_canceled_replay_does_not_disturb_the_next() -> None:
    feed = some_feed()
    async with FeedPeer(feed) as peer, await peer.client() as client:
        lines: list[FeedLine] = []

        def half(line: FeedLine, asked: ReplayRequest) -> None:
            peer.answers[ReplayRequest] = FeedLine.replay
            line.send_packets(0, *line.packets(29)[:1])
            lines.append(line)

        def rest(line: FeedLine, asked: Unsubscribe) -> None:
            line.send_packets(0, *line.packets(33)[:2])
            line.unsubscribe(asked)

        peer.answers[ReplayRequest] = half
        peer.answers[Unsubscribe] = rest
        first = asyncio.ensure_future(client.replay(1, 29, 12))
        while not lines:
            await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert numbers_of(await client.replay(1, 2, 5))[:5] == list(range(2, 7))
        assert client.is_connected


@on_both_loops
async def test_throttled_requests_are_sent_again() -> None:
    feed = some_feed()
    async with FeedPeer(feed) as peer, await peer.client() as client:

        def throttled(line: FeedLine, asked: ReplayRequest) -> None:
            peer.answers[ReplayRequest] = FeedLine.replay
            line.refuse(asked, RejectCode.THROTTLED, 0, 50, retry_after_ns=1_000)

        peer.answers[ReplayRequest] = throttled
        assert numbers_of(await client.replay(1, 1, 4)) == [1, 2, 3, 4]
        assert len(peer.asked(ReplayRequest)) == 2


@on_both_loops
async def test_a_snapshot_is_whole() -> None:
    feed = some_feed()
    async with FeedPeer(feed) as peer:

        def half(line: FeedLine, asked: Subscribe) -> None:
            peer.answers[Subscribe] = FeedLine.subscribe
            line.send(Subscribed(asked.request_id, 1, EPOCH, feed.next_number))
            line.send_packets(1, snapshot_packets(feed.next_number)[0])
            line.close()

        peer.answers[Subscribe] = half
        async with await peer.client() as client:
            assert await client.snapshot(1) == snapshot_packets(feed.next_number)
            told: list[bytes] = []
            assert await client.snapshot(1, on_packet=told.append) == []
            assert told == snapshot_packets(feed.next_number)
            await client.replay(1, 1, 1)  # Behind what was asked before.
            assert len(peer.asked(Unsubscribe)) == 2


@on_both_loops
async def test_a_snapshot_that_is_refused_or_lost_is_an_error() -> None:
    feed = some_feed()
    async with FeedPeer(feed) as peer, await peer.client() as client:

        def refuse(line: FeedLine, asked: Subscribe) -> None:
            line.refuse(asked, RejectCode.DUPLICATE_REQUEST, 3)

        peer.answers[Subscribe] = refuse
        with pytest.raises(FeedRejectError, match="DUPLICATE_REQUEST"):
            await client.snapshot(1)

        def fail(line: FeedLine, asked: Subscribe) -> None:
            line.send(Subscribed(asked.request_id, 1, EPOCH, feed.next_number))
            line.send(RequestEnd(asked.request_id, RequestEndCode.FAILED, 0))

        peer.answers[Subscribe] = fail
        with pytest.raises(RequestEndedError, match="FAILED"):
            await client.snapshot(1)


@on_both_loops
async def test_candles_are_asked_for_again_over_a_lost_connection() -> None:
    async with FeedPeer(some_feed()) as peer, await peer.client() as client:
        past = [candle(60), candle(120)]

        def half(line: FeedLine, asked: CandlesRequest) -> None:
            peer.answers[CandlesRequest] = lambda line, asked: line.candles(asked, *past)
            frame = encode_frame(UNSEQUENCED, 1, encode(past[0]), NOW, 0, REPLAYED)
            line.send_raw(frame)
            line.close()

        peer.answers[CandlesRequest] = half
        assert await client.candles(1, 60) == past


@on_both_loops
async def test_candles_of_the_past_and_live_ones_do_not_mix() -> None:
    feed = some_feed()
    async with FeedPeer(feed) as peer, await peer.client() as client:
        past, live = [candle(60), candle(120)], candle(180)

        def answer(line: FeedLine, asked: CandlesRequest) -> None:
            line.send(live)
            line.candles(asked, *past)

        def accept(line: FeedLine, asked: Subscribe) -> None:
            line.send(Subscribed(asked.request_id, 1, EPOCH, feed.next_number))

        peer.answers[CandlesRequest] = answer
        peer.answers[Subscribe] = accept
        told: list[FeedMarketData] = []
        form = SubscriptionForm.CANDLES
        await client.subscribe(1, form=form, interval_s=60, on_message=told.append)
        await client.subscribe(1, form=form, interval_s=1, on_message=told.append)
        assert await client.candles(1, 60, from_time_ns=60 * 10**9, count=2) == past
        assert told == [live]
        asked = peer.asked(CandlesRequest)[0]
        assert (asked.instrument_id, asked.interval_s) == (1, 60)
        assert (asked.from_time_ns, asked.count) == (60 * 10**9, 2)


# The connection.


@on_both_loops
async def test_what_is_asked_without_a_connection_waits_for_one() -> None:
    feed = some_feed()
    async with FeedPeer(feed) as gone:
        port = gone.port
    peer = FeedPeer(feed, port)
    changes: list[StateChange] = []
    client = open_feed("127.0.0.1", port, key=KEY, on_state=changes.append)
    sink = Numbers()
    reached = asyncio.ensure_future(sink.reach(feed.next_number))
    asking = asyncio.ensure_future(client.subscribe(1, start=NUMBER, from_number=1, on_packet=sink))
    while not changes:
        await asyncio.sleep(0)
    assert changes[0].state is ClientState.RECONNECTING
    assert isinstance(changes[0].reason, ConnectError)
    async with peer, client:
        await asking
        await reached
        assert client.state is not None
        assert (await client.ready()).epoch == EPOCH
        assert client.venue == "VENUE"
        assert sink.numbers == list(range(1, feed.next_number))
    assert client.standing is ClientState.CLOSED


@on_both_loops
async def test_a_client_that_is_closed_ends_everything() -> None:
    feed = some_feed()
    async with FeedPeer(feed) as peer:
        client = await peer.client()
        peer.answers[ReplayRequest] = lambda line, asked: None
        ends: list[Any] = []
        subscription = await client.subscribe(1, on_message=print, on_end=ends.append, start=LIVE)
        iterated = asyncio.ensure_future(anext(await client.subscribe(1, form=TRADES, start=LIVE)))
        replaying = asyncio.ensure_future(client.replay(1, 1, 1))
        while not peer.asked(ReplayRequest):
            await asyncio.sleep(0)
        await client.close()
        assert ends == [None]
        assert not subscription.is_open
        with pytest.raises(ReplayIncompleteError):
            await replaying
        with pytest.raises(StopAsyncIteration):
            await iterated
        for asking in (client.subscribe(1), client.replay(1, 1, 1), client.ready()):
            with pytest.raises(NotConnectedError, match="closed"):
                await asking


@on_both_loops
async def test_a_feed_that_does_not_say_where_it_is() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feed_client_module, "CONNECT_WAIT_S", 0.05)
        async with FeedPeer(some_feed()) as peer:
            peer.says_state = False
            with pytest.raises(ConnectError, match="where the feed is"):
                await peer.client()


@on_both_loops
async def test_refusals_say_what_and_why() -> None:
    feed = some_feed()
    async with FeedPeer(feed) as peer:
        peer.rejected = LogOnRejected(RejectCode.UNKNOWN_KEY, 3, 0, "")
        with pytest.raises(LogOnRejectedError, match="UNKNOWN_KEY"):
            await peer.client()
        peer.rejected = None
        async with await peer.client() as client:
            peer.answers[Subscribe] = lambda line, asked: line.refuse(
                asked, RejectCode.UNKNOWN_INSTRUMENT, 6, 77
            )
            with pytest.raises(FeedRejectError) as refused:
                await client.subscribe(1, instruments=[77])
            assert (refused.value.code, refused.value.field_name) == (30, "instruments")
            peer.answers[Subscribe] = FeedLine.subscribe
            subscription = await client.subscribe(1, form=TRADES)
            peer.line.send(RequestEnd(subscription.request_id, RequestEndCode.FAILED, 0))
            with pytest.raises(RequestEndedError, match="FAILED"):
                async for _ in subscription:
                    pass


@on_both_loops
async def test_bytes_that_are_no_packets_end_the_client() -> None:
    feed = some_feed()
    packet = Feed().pack() or [heartbeat(1)]
    bad = {
        "short": encode_frame(PACKET, 1, b"x" * 31, NOW),
        "kind": encode_frame(PACKET, 1, packet[0][:3] + b"\x09" + packet[0][4:], NOW),
        "frame": b"\x05\x00" + bytes(HEADER_SIZE),
        "frame kind": encode_frame(2, 1, b"\x90", NOW),
        "message": encode_frame(UNSEQUENCED, 1, encode(["no", "message"]), NOW),
    }
    for name, data in bad.items():
        async with FeedPeer(feed) as peer, await peer.client() as client:
            sink = Numbers()
            ends: list[Any] = []
            reached = asyncio.ensure_future(sink.reach(feed.next_number))
            await client.subscribe(1, start=LIVE, on_packet=sink, on_end=ends.append)
            await reached
            following = encode_frame(PACKET, 1, heartbeat(feed.next_number), NOW)
            peer.line.send_raw(data + following)
            while not ends:
                await asyncio.sleep(0)
            assert isinstance(ends[0], TerminatedError), name
            assert not ends[0].by_venue, name
