"""Log-ons and requests that are refused: every row of the tables of spec/feed.md, and limits."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from exchange.feed import server as server_module
from exchange.feed import streams as streams_module
from exchange.feed.limits import EXCESS_MAX, PIECE_SIZE_MAX, READ_SIZE_MAX, UNREAD_SIZE_MAX
from protocol.codes import (
    DropCopyScope,
    RejectCode,
    RequestEndCode,
    Role,
    SubscriptionForm,
    SubscriptionStart,
    TerminateCode,
)
from protocol.feed import (
    REQUESTS_BURST,
    REQUESTS_PER_SECOND,
    SUBSCRIPTIONS_MAX,
    CandlesRequest,
    DropCopyRequest,
    FeedReject,
    FeedRequest,
    LogRequest,
    ReplayRequest,
    RequestEnd,
    Subscribe,
    Subscribed,
    Unsubscribe,
)
from protocol.framing import UNSEQUENCED, encode_frame
from protocol.session import Service
from protocol.transport import LogOnAccepted, LogOnRejected, LogOut, Terminate, VenueHeartbeat
from tests.exchange.feed.desk import ADMIN, Desk, Reader, subscribe
from tests.exchange.loops import on_both_loops, until

NUMBER, SNAPSHOT = SubscriptionStart.NUMBER, SubscriptionStart.SNAPSHOT
LEVELS, CANDLES, TRADES = (
    SubscriptionForm.LEVELS,
    SubscriptionForm.CANDLES,
    SubscriptionForm.TRADES,
)
NEXT = 7  # of channel 1, when the market is listed
SEQUENCE = 17  # of the feed then

# What is asked for, then code, field and limit of the refusal.
BAD: list[tuple[Any, RejectCode, int, int]] = [
    (subscribe(9, channel=0), RejectCode.UNKNOWN_CHANNEL, 2, 64),
    (subscribe(9, channel=65), RejectCode.UNKNOWN_CHANNEL, 2, 64),
    (subscribe(9, form=0), RejectCode.UNSUPPORTED_VALUE, 3, 0),
    (subscribe(9, form=7), RejectCode.UNSUPPORTED_VALUE, 3, 0),
    (subscribe(9, start=0), RejectCode.UNSUPPORTED_VALUE, 4, 0),
    (subscribe(9, start=4), RejectCode.UNSUPPORTED_VALUE, 4, 0),
    (
        subscribe(9, form=LEVELS, depth=1, start=NUMBER, from_number=1),
        RejectCode.UNSUPPORTED_VALUE,
        4,
        0,
    ),
    (subscribe(9, start=NUMBER), RejectCode.INVALID_VALUE, 5, 1),
    (subscribe(9, from_number=1), RejectCode.FIELD_NOT_ALLOWED, 5, 0),
    (subscribe(9, start=NUMBER, from_number=NEXT + 1), RejectCode.NUMBER_TOO_HIGH, 5, NEXT),
    (
        subscribe(9, channel=9, start=NUMBER, from_number=2),
        RejectCode.NUMBER_TOO_HIGH,
        5,
        1,
    ),
    (subscribe(9, instruments=[1, 5]), RejectCode.UNKNOWN_INSTRUMENT, 6, 5),
    (subscribe(9, channel=9, instruments=[1]), RejectCode.UNKNOWN_INSTRUMENT, 6, 1),
    (subscribe(9, events=[2, 3]), RejectCode.UNKNOWN_EVENT, 7, 3),
    (subscribe(9, form=LEVELS), RejectCode.INVALID_VALUE, 8, 50),
    (subscribe(9, form=LEVELS, depth=51), RejectCode.INVALID_VALUE, 8, 50),
    (subscribe(9, depth=1), RejectCode.FIELD_NOT_ALLOWED, 8, 0),
    (subscribe(9, form=CANDLES, interval_s=2), RejectCode.INVALID_VALUE, 9, 86_400),
    (subscribe(9, interval_s=1), RejectCode.FIELD_NOT_ALLOWED, 9, 0),
    (subscribe(9, form=TRADES, conflation_ms=1), RejectCode.FIELD_NOT_ALLOWED, 10, 0),
    (
        subscribe(9, form=LEVELS, depth=1, conflation_ms=60_001),
        RejectCode.INVALID_VALUE,
        10,
        60_000,
    ),
    (subscribe(9, when_slow=0), RejectCode.UNSUPPORTED_VALUE, 11, 0),
    (subscribe(9, when_slow=3), RejectCode.UNSUPPORTED_VALUE, 11, 0),
    (Unsubscribe(9), RejectCode.UNKNOWN_REQUEST, 1, 0),
    (ReplayRequest(9, 0, 1, 1), RejectCode.UNKNOWN_CHANNEL, 2, 64),
    (ReplayRequest(9, 1, 0, 1), RejectCode.INVALID_VALUE, 3, 1),
    (ReplayRequest(9, 1, NEXT, 1), RejectCode.NUMBER_TOO_HIGH, 3, NEXT),
    (ReplayRequest(9, 3, 1, 1), RejectCode.NUMBER_TOO_HIGH, 3, 1),
    (ReplayRequest(9, 1, 1, 0), RejectCode.INVALID_VALUE, 4, 100_000),
    (ReplayRequest(9, 1, 1, 100_001), RejectCode.INVALID_VALUE, 4, 100_000),
    (CandlesRequest(9, 77, 1, 0, 1), RejectCode.UNKNOWN_INSTRUMENT, 2, 0),
    (CandlesRequest(9, 1, 2, 0, 1), RejectCode.INVALID_VALUE, 3, 86_400),
    (CandlesRequest(9, 1, 1, 0, 0), RejectCode.INVALID_VALUE, 5, 1_000),
    (CandlesRequest(9, 1, 1, 0, 1_001), RejectCode.INVALID_VALUE, 5, 1_000),
    (DropCopyRequest(9, 0, [], 0, 0), RejectCode.UNSUPPORTED_VALUE, 2, 0),
    (DropCopyRequest(9, DropCopyScope.ALL, [], 0, 0), RejectCode.NOT_PERMITTED, 2, 0),
    (DropCopyRequest(9, DropCopyScope.ACCOUNTS, [], 0, 0), RejectCode.INVALID_VALUE, 3, 1),
    (
        DropCopyRequest(9, DropCopyScope.PARTICIPANT, [2], 0, 0),
        RejectCode.FIELD_NOT_ALLOWED,
        3,
        0,
    ),
    (DropCopyRequest(9, DropCopyScope.ACCOUNTS, [2, 3], 0, 0), RejectCode.UNKNOWN_ACCOUNT, 3, 3),
    (DropCopyRequest(9, DropCopyScope.ACCOUNTS, [77], 0, 0), RejectCode.UNKNOWN_ACCOUNT, 3, 77),
    (
        DropCopyRequest(9, DropCopyScope.PARTICIPANT, [], SEQUENCE + 2, 0),
        RejectCode.SEQUENCE_TOO_HIGH,
        4,
        SEQUENCE + 1,
    ),
    (
        DropCopyRequest(9, DropCopyScope.PARTICIPANT, [], 0, 1),
        RejectCode.FIELD_NOT_ALLOWED,
        5,
        0,
    ),
    (LogRequest(9, 1), RejectCode.NOT_PERMITTED, 0, 0),
]


@on_both_loops
async def test_refused_requests(tmp_path: Path) -> None:
    async with Desk(tmp_path) as desk:
        desk.list_market()
        await desk.settle()
        assert desk.truth.sequence == SEQUENCE
        for request, code, field, limit in BAD:
            reader = desk.connect(2)
            (refusal,) = reader.ask(request)
            assert isinstance(refusal, FeedReject), request
            said = (refusal.request_id, refusal.code, refusal.field, refusal.limit)
            assert said == (9, code, field, limit), (request, refusal.text)
            assert refusal.request_tag == type(request).__struct_config__.tag
            assert refusal.retry_after_ns == 0
            assert refusal.text
            assert not reader.connection.works
            reader.connection.abort()
        assert sum(desk.server.request_reject_counts.values()) == len(BAD)


OPEN: list[tuple[Any, Any, RejectCode, int, int]] = [
    (subscribe(1), subscribe(1, form=TRADES), RejectCode.DUPLICATE_REQUEST, 1, 0),
    (subscribe(1), subscribe(2, instruments=[1]), RejectCode.DUPLICATE_REQUEST, 3, 0),
    (
        subscribe(1, form=LEVELS, depth=1),
        subscribe(2, form=LEVELS, depth=1, events=[1]),
        RejectCode.DUPLICATE_REQUEST,
        3,
        0,
    ),
    (
        DropCopyRequest(1, DropCopyScope.PARTICIPANT, [], 0, 0),
        DropCopyRequest(2, DropCopyScope.PARTICIPANT, [], 0, 0),
        RejectCode.SUBSCRIPTION_LIMIT,
        0,
        1,
    ),
    (LogRequest(1, 1), LogRequest(2, 1), RejectCode.SUBSCRIPTION_LIMIT, 0, 1),
    (
        ReplayRequest(1, 1, 1, 9),
        ReplayRequest(2, 1, 1, 9),
        RejectCode.REQUEST_IN_PROGRESS,
        0,
        1,
    ),
    (
        CandlesRequest(1, 1, 1, 0, 1),
        CandlesRequest(2, 1, 1, 0, 1),
        RejectCode.REQUEST_IN_PROGRESS,
        0,
        1,
    ),
    (LogRequest(1, 1), LogRequest(2, 0), RejectCode.INVALID_VALUE, 2, 1),
    (LogRequest(1, 1), LogRequest(2, 99), RejectCode.SEQUENCE_TOO_HIGH, 2, 19),
]


@on_both_loops
async def test_what_is_open_already(tmp_path: Path) -> None:
    async with Desk(tmp_path) as desk:
        desk.list_market()
        desk.give(2, 2, Role.ADMIN)
        desk.write()
        await desk.settle()
        for first, second, code, field, limit in OPEN:
            reader = desk.connect(2)
            reader.send(first)
            refusal = next(one for one in reader.ask(second) if isinstance(one, FeedReject))
            assert (refusal.code, refusal.field, refusal.limit) == (code, field, limit), second
            assert len(reader.connection.works) == 1
            reader.connection.abort()


@on_both_loops
async def test_levels_of_another_depth_are_another_kind(tmp_path: Path) -> None:
    async with Desk(tmp_path) as desk:
        desk.list_market()
        await desk.settle()
        reader = desk.connect()
        for depth in range(1, SUBSCRIPTIONS_MAX + 1):
            assert isinstance(reader.ask(subscribe(depth, form=LEVELS, depth=depth))[0], Subscribed)
        answers = reader.ask(subscribe(99, form=LEVELS, depth=50))
        (refusal,) = [one for one in answers if isinstance(one, FeedReject)]
        assert (refusal.code, refusal.limit) == (RejectCode.SUBSCRIPTION_LIMIT, 16)


@on_both_loops
async def test_views_have_a_limit(tmp_path: Path) -> None:
    async with Desk(tmp_path) as desk:
        desk.list_market()
        await desk.settle()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(streams_module, "VIEWS_MAX", 3)
            patch.setattr(streams_module, "SHARE_VIEWS_MAX", 2)
            one, two = desk.connect(2), desk.connect(3)
            one.ask(subscribe(1, instruments=[1]))
            one.ask(subscribe(2, form=LEVELS, depth=1))
            (refusal,) = one.ask(subscribe(3, form=LEVELS, depth=2))
            assert isinstance(refusal, FeedReject)
            assert (refusal.code, refusal.limit) == (RejectCode.CAPACITY, 2), "of a participant"
            assert isinstance(two.ask(subscribe(1, instruments=[2]))[0], Subscribed)
            (refusal,) = two.ask(subscribe(2, form=LEVELS, depth=3))
            assert isinstance(refusal, FeedReject)
            assert (refusal.code, refusal.limit) == (RejectCode.CAPACITY, 3), "of the feed"
            assert isinstance(two.ask(subscribe(3, form=LEVELS, depth=1))[0], Subscribed)
            one.connection.abort()
            assert isinstance(two.ask(subscribe(4, form=LEVELS, depth=3))[0], Subscribed)
            assert isinstance(desk.connect(2).ask(subscribe(1))[0], Subscribed)


@on_both_loops
async def test_connections_of_a_participant_have_a_limit(tmp_path: Path) -> None:
    async with Desk(tmp_path) as desk:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(server_module, "SHARE_CONNECTIONS_MAX", 2)
            readers = [desk.connect(2) for _ in range(2)]
            answer = Reader(desk, 2).log_on()
            assert isinstance(answer, LogOnRejected)
            assert (answer.code, answer.limit) == (RejectCode.CONNECTION_LIMIT, 2)
            desk.connect(3)
            readers[0].connection.abort()
            desk.connect(2)


@on_both_loops
async def test_invalid_requests_take_tokens_and_few_are_read_in_a_turn(tmp_path: Path) -> None:
    async with Desk(tmp_path) as desk:
        reader = desk.connect()
        frame = encode_frame(UNSEQUENCED, 1, b"\x91\x7f")
        count = REQUESTS_BURST + EXCESS_MAX
        reader.transport.deliver(frame * (count + 500))
        refused = len(reader.all(FeedReject))
        assert 0 < refused <= READ_SIZE_MAX // len(frame) + 1
        await until(lambda: bool(reader.all(Terminate)))
        (terminate,) = reader.all(Terminate)
        assert terminate.code == TerminateCode.PROTOCOL_VIOLATION
        assert count <= len(reader.all(FeedReject)) <= count + READ_SIZE_MAX // len(frame) + 1


@on_both_loops
async def test_refusals_that_are_not_read_are_not_made(tmp_path: Path) -> None:
    async with Desk(tmp_path) as desk:
        reader = desk.connect()
        reader.transport.is_stalled = True
        reader.transport.kernel_size = 1_000
        reader.transport.deliver(encode_frame(UNSEQUENCED, 1, b"\x91\x7f") * 2_000)
        for _ in range(50):
            await asyncio.sleep(0)
        assert reader.connection.is_blocked
        assert reader.transport.unsent_size_max <= PIECE_SIZE_MAX


@on_both_loops
async def test_roles(tmp_path: Path) -> None:
    async with Desk(tmp_path) as desk:
        desk.list_market()
        desk.give(4, 2, Role.MARKET_DATA)
        desk.give(5, 2, Role.DROP_COPY)
        desk.give(6, 2, Role.TRADE)
        desk.write()
        await desk.settle()
        copy = DropCopyRequest(2, DropCopyScope.PARTICIPANT, [], 0, 0)
        asked: list[FeedRequest] = [subscribe(1), copy, LogRequest(3, 1)]
        for key, permitted in ((4, [1]), (5, [2]), (6, [1]), (ADMIN, [1, 2, 3])):
            reader = desk.connect(key)
            for request in asked:
                reader.send(request)
            refused = {one.request_id for one in reader.all(FeedReject)}
            assert sorted({1, 2, 3} - refused) == permitted
            codes = {one.code for one in reader.all(FeedReject)}
            assert codes <= {RejectCode.NOT_PERMITTED}


@on_both_loops
async def test_too_many_requests(tmp_path: Path) -> None:
    async with Desk(tmp_path) as desk:
        reader = desk.connect()
        for _ in range(REQUESTS_BURST):
            (refusal,) = reader.ask(Unsubscribe(1))
            assert isinstance(refusal, FeedReject)
            assert refusal.code == RejectCode.UNKNOWN_REQUEST
        while isinstance(refusal, FeedReject) and refusal.code == RejectCode.UNKNOWN_REQUEST:
            (refusal,) = reader.ask(Unsubscribe(1))  # some time has passed
        assert isinstance(refusal, FeedReject)
        assert (refusal.code, refusal.limit) == (RejectCode.THROTTLED, REQUESTS_PER_SECOND)
        assert 0 < refusal.retry_after_ns <= 20_000_000
        desk.feed._base_ns += refusal.retry_after_ns
        (refusal,) = reader.ask(Unsubscribe(1))
        assert isinstance(refusal, FeedReject)
        assert refusal.code == RejectCode.UNKNOWN_REQUEST


@on_both_loops
async def test_a_request_that_is_no_message(tmp_path: Path) -> None:
    async with Desk(tmp_path) as desk:
        reader = desk.connect()
        for payload, code in (
            (b"\x92\x28\x05", RejectCode.INVALID_MESSAGE),
            (b"\x92\x2f\x05", RejectCode.UNKNOWN_TAG),
        ):
            reader.transport.deliver(encode_frame(UNSEQUENCED, 1, payload))
            (refusal,) = reader.read()
            assert isinstance(refusal, FeedReject)
            assert (refusal.code, refusal.request_id) == (code, 5)


BAD_LOG_ONS: list[tuple[int, dict[str, Any], RejectCode, int]] = [
    (2, {"next_number": 1}, RejectCode.FIELD_NOT_ALLOWED, 6),
    (2, {"cancel_on_disconnect": 1}, RejectCode.FIELD_NOT_ALLOWED, 8),
    (2, {"cancel_grace_ms": 1}, RejectCode.FIELD_NOT_ALLOWED, 9),
    (2, {"keepalive_ms": 1}, RejectCode.KEEPALIVE_OUT_OF_RANGE, 7),
    (77, {}, RejectCode.UNKNOWN_KEY, 3),
    (2, {"signature": bytes(64)}, RejectCode.BAD_SIGNATURE, 11),
    (2, {"service": Service.ORDER_ENTRY}, RejectCode.BAD_SIGNATURE, 11),
    (4, {}, RejectCode.UNKNOWN_KEY, 3),
    (5, {}, RejectCode.NOT_PERMITTED, 3),
]


@on_both_loops
async def test_refused_log_ons(tmp_path: Path) -> None:
    async with Desk(tmp_path) as desk:
        desk.give(4, 2, 0)
        desk.give(5, 2, Role.CANCEL_ONLY)
        desk.write()
        await desk.settle()
        for key, fields, code, field in BAD_LOG_ONS:
            answer = Reader(desk, key).log_on(**fields)
            assert isinstance(answer, LogOnRejected), (key, fields)
            assert (answer.code, answer.field) == (code, field)
        await until(lambda: not desk.server.connections)


@on_both_loops
async def test_a_feed_that_has_not_caught_up_shuts_nobody_out(tmp_path: Path) -> None:
    """Its log may have been cut by a power loss: a key that it does not know may be a good one."""
    async with Desk(tmp_path) as desk:
        desk.give(5, 2, Role.CANCEL_ONLY)
        desk.write()
        await desk.settle()
        await desk.feed.stop()
        desk.close()
        await desk.venue.kill()
        await desk.open()
        for key in (5, 77):
            answer = Reader(desk, key).log_on()
            assert isinstance(answer, LogOnRejected)
            assert (answer.code, answer.field) == (RejectCode.BACK_PRESSURE, 3)
        await desk.venue.start()
        await until(lambda: desk.feed.source.is_connected)
        for _ in range(2):
            answer = Reader(desk, 77).log_on()
            assert isinstance(answer, LogOnRejected)
            assert answer.code == RejectCode.UNKNOWN_KEY
            if desk.venue.stream is not None:  # What it knew once it goes on knowing.
                await desk.venue.kill()
                desk.venue.stream = None
                await until(lambda: not desk.feed.source.is_connected)


@on_both_loops
async def test_an_accepted_log_on(tmp_path: Path) -> None:
    async with Desk(tmp_path) as desk:
        desk.list_market()
        await desk.settle()
        answer = Reader(desk, 2).log_on(keepalive_ms=700)
        market = desk.feed.streams.market
        assert answer == LogOnAccepted(market.sequence, market.time_ns, 0, 0, 1, 0, 0, 700, 0, 0, 0)


@on_both_loops
async def test_a_full_feed_drops_who_has_not_logged_on(tmp_path: Path) -> None:
    async with Desk(tmp_path, connections_max=2) as desk:
        entered, silent = desk.connect(), Reader(desk, 2)
        newcomer = desk.connect()
        assert [type(one) for one in silent.read()][-1] is LogOnRejected
        refused = Reader(desk, 2)
        answer = refused.read()[-1]
        assert isinstance(answer, LogOnRejected)
        assert (answer.code, answer.limit) == (RejectCode.CONNECTION_LIMIT, 2)
        for one in (entered, newcomer):
            assert one.connection.is_logged_on
        assert desk.server.evicted_count == 1


@on_both_loops
async def test_log_out_and_goodbye(tmp_path: Path) -> None:
    async with Desk(tmp_path) as desk:
        leaving, staying = desk.connect(), desk.connect()
        staying.ask(subscribe(1))
        leaving.send(LogOut())
        assert [one.code for one in leaving.all(Terminate)] == [TerminateCode.LOG_OUT]
        desk.server.say_goodbye()
        assert [one.code for one in staying.all(Terminate)] == [TerminateCode.SHUTDOWN]
        await desk.server.wait_empty(1.0)
        assert desk.feed.streams.channels[1].user_count == 0
        late = Reader(desk, 2)
        assert isinstance(late.read()[-1], LogOnRejected)


@on_both_loops
async def test_keepalive(tmp_path: Path) -> None:
    """The machine's deadlines are the connection's timer; a silent client is given up."""
    async with Desk(tmp_path) as desk:
        reader = desk.connect(keepalive_ms=100)
        desk.feed._base_ns += 100_000_000
        reader.connection._on_timer()
        assert reader.all(VenueHeartbeat)
        desk.feed._base_ns += 300_000_000
        reader.connection._on_timer()
        assert not reader.all(Terminate), "it is looked at once more"
        reader.connection._on_timer()
        assert [one.code for one in reader.all(Terminate)] == [TerminateCode.KEEPALIVE_LAPSED]


@on_both_loops
async def test_a_blocked_connection_reads_and_says_nothing(tmp_path: Path) -> None:
    async with Desk(tmp_path) as desk:
        desk.list_market()
        for _ in range(60):
            desk.trade(20)
        await desk.settle()
        reader = desk.connect(keepalive_ms=100)
        reader.transport.is_stalled = True
        reader.transport.kernel_size = 1_000
        reader.ask(subscribe(1, start=SNAPSHOT))
        await until(lambda: reader.connection.is_blocked)
        writes = reader.transport.write_count
        reader.send(Unsubscribe(1))
        desk.feed._base_ns += 1_000_000_000
        for _ in range(5):
            reader.connection._on_timer()
        assert reader.transport.write_count == writes
        reader.transport.is_stalled = False
        reader.read()
        await until(lambda: bool(reader.all(RequestEnd)))
        assert reader.all(RequestEnd) == [RequestEnd(1, RequestEndCode.UNSUBSCRIBED, 0)]


@on_both_loops
async def test_more_than_is_read_ahead(tmp_path: Path) -> None:
    async with Desk(tmp_path) as desk:
        desk.list_market()
        for _ in range(60):
            desk.trade(20)
        await desk.settle()
        reader = desk.connect()
        reader.transport.is_stalled = True
        reader.transport.kernel_size = 1_000
        reader.ask(subscribe(1, start=SNAPSHOT))
        await until(lambda: reader.connection.is_blocked)
        reader.connection.data_received(bytes(UNREAD_SIZE_MAX + 1))
        assert not reader.connection.works


@on_both_loops
async def test_a_damaged_log_ends_the_request_and_nothing_else(tmp_path: Path) -> None:
    async with Desk(tmp_path) as desk:
        desk.list_market()
        for _ in range(60):
            desk.trade(60)
        await desk.settle()
        desk.close()
        await desk.open()
        oldest = desk.venue.segments[0]
        oldest.write_bytes(oldest.read_bytes()[:-1000] + bytes(1000))
        reader = desk.connect()
        reader.ask(ReplayRequest(1, 1, 1, 100_000))
        await until(lambda: bool(reader.all(RequestEnd)))
        (end,) = reader.all(RequestEnd)
        assert (end.request_id, end.code) == (1, RequestEndCode.FAILED)
        assert isinstance(reader.ask(subscribe(1))[0], Subscribed)
        assert any("history_failed" in line for line in desk.lines)


def test_the_subscribe_of_the_tests_is_whole() -> None:
    assert subscribe(1).__struct_fields__ == Subscribe.__struct_fields__
