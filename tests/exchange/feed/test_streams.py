"""Subscriptions to packets: every message once and in order, whoever reads how slowly."""

from functools import partial
from pathlib import Path

import pytest

from exchange.feed.limits import PAGE_SIZE_MAX
from protocol.codes import (
    RequestEndCode,
    Role,
    SubscriptionStart,
    TerminateCode,
)
from protocol.feed import (
    FeedState,
    ReplayRequest,
    RequestEnd,
    Subscribed,
    Unsubscribe,
)
from protocol.market_data import (
    SnapshotBegin,
    SnapshotEnd,
)
from protocol.packets import (
    FIRST,
    LAST,
    SELECTED,
    SNAPSHOT,
    decode_message,
    decode_packet,
    decode_snapshot_message,
)
from protocol.transport import Terminate
from tests.exchange.feed.desk import Desk, Reader, subscribe
from tests.exchange.feed.reading import (
    ORDERS,
    TRADES,
    expected,
    has,
    heartbeats,
    is_whole,
    messages,
    said,
)
from tests.exchange.loops import on_both_loops, until


@on_both_loops
async def test_live_subscribers_get_the_same_bytes(tmp_path: Path) -> None:
    async with Desk(tmp_path) as desk:
        desk.list_market()
        await desk.settle()
        readers = [desk.connect() for _ in range(3)]
        for reader in readers:
            (subscribed, *_) = reader.ask(subscribe(7))
            assert subscribed == Subscribed(7, 1, desk.venue.epoch, 7)
        written: list[list[bytes]] = [[], [], []]
        for reader, pieces in zip(readers, written, strict=True):
            reader.transport.on_write = pieces.append
        for _ in range(20):
            desk.trade(5)
            await desk.settle()
        assert messages(readers[0].packets(ORDERS)) == said(desk, 1, 7)
        for others in zip(*written, strict=True):
            assert all(other is others[0] for other in others), "shared, not copied"


@on_both_loops
async def test_a_turn_costs_one_write_a_subscriber(tmp_path: Path) -> None:
    async with Desk(tmp_path) as desk:
        desk.list_market()
        await desk.settle()
        reader = desk.connect()
        reader.ask(subscribe(1))
        count = reader.transport.write_count
        for _ in range(10):
            desk.trade(2)
        flushes = desk.feed.streams.flush_count
        await desk.settle()
        turns = desk.feed.streams.flush_count - flushes
        assert turns < 10, "records that are read together are handed out together"
        assert reader.transport.write_count - count <= turns


@pytest.mark.parametrize("from_number", [1, 2, 7, 100, 301])
@on_both_loops
async def test_from_any_number_back_to_the_first(tmp_path: Path, from_number: int) -> None:
    async with Desk(tmp_path) as desk:
        desk.list_market()
        while desk.truth.numbers[1] < 300:
            desk.trade(7)
        await desk.settle()
        reader = desk.connect()
        fields = {"start": SubscriptionStart.NUMBER, "from_number": from_number}
        assert Subscribed(1, 1, desk.venue.epoch, from_number) in reader.ask(subscribe(1, **fields))
        for _ in range(50):
            desk.trade(5)
            reader.read()
        await desk.settle()
        await until(lambda: is_whole(reader, desk))
        found = messages(reader.packets(ORDERS))
        assert [one for one in found if one[0] >= from_number] == said(desk, 1, from_number)
        assert [number for number, _ in found] == list(range(found[0][0], len(said(desk)) + 1))


@on_both_loops
async def test_a_feed_that_starts_anew_serves_what_was_before(tmp_path: Path) -> None:
    """The rings are empty then: all of it comes from the files."""
    async with Desk(tmp_path) as desk:
        desk.list_market()
        for _ in range(200):
            desk.trade(5)
        await desk.settle()
        desk.close()
        await desk.open()
        reader = desk.connect()
        reader.ask(subscribe(1, start=SubscriptionStart.NUMBER, from_number=1))
        desk.trade(3)
        await desk.settle()
        await until(lambda: is_whole(reader, desk))
        assert messages(reader.packets(ORDERS)) == said(desk)


@on_both_loops
async def test_a_snapshot_and_then_what_follows(tmp_path: Path) -> None:
    async with Desk(tmp_path) as desk:
        desk.list_market()
        for _ in range(40):
            desk.trade(5)
        await desk.settle()
        reader = desk.connect()
        (subscribed,) = reader.ask(subscribe(1, start=SubscriptionStart.SNAPSHOT))[:1]
        assert isinstance(subscribed, Subscribed)
        for _ in range(10):
            desk.trade(2)
        await desk.settle()
        await until(lambda: is_whole(reader, desk))
        packets = [decode_packet(data) for data in reader.packets(ORDERS)]
        kinds = [packet.kind for packet in packets]
        assert kinds == sorted(kinds, key=lambda kind: kind != SNAPSHOT), "first the snapshot"
        whole = [p for p in packets if p.kind == SNAPSHOT]
        told = [decode_snapshot_message(b.payload) for p in whole for b in p.blocks]
        begin, end = told[0], told[-1]
        assert isinstance(begin, SnapshotBegin)
        assert isinstance(end, SnapshotEnd)
        assert begin.with_orders == 1
        assert (begin.event_count, begin.instrument_count) == (2, 4)
        assert subscribed.next_number <= begin.next_number
        found = messages(reader.packets(ORDERS))
        assert [one for one in found if one[0] >= subscribed.next_number] == said(
            desk, 1, subscribed.next_number
        )


SELECTIONS: list[tuple[list[int], list[int], int]] = [
    ([1], [], ORDERS),
    ([1, 3], [], ORDERS),
    ([], [2], ORDERS),
    ([1], [2], ORDERS),
    ([], [], TRADES),
    ([2], [], TRADES),
    ([3], [1], TRADES),
]


@pytest.mark.parametrize("start", [SubscriptionStart.LIVE, SubscriptionStart.NUMBER])
@on_both_loops
async def test_selections(tmp_path: Path, start: SubscriptionStart) -> None:
    async with Desk(tmp_path, seed=5) as desk:
        desk.list_market()
        for _ in range(60):
            desk.trade(4)
        await desk.settle()
        live = desk.feed.streams.next_number(1)
        from_number = live // 3 if start == SubscriptionStart.NUMBER else 0
        first = from_number or live
        readers = [desk.connect() for _ in SELECTIONS]
        for reader, (instruments, events, form) in zip(readers, SELECTIONS, strict=True):
            what = {"instruments": instruments, "events": events, "form": form}
            reader.ask(subscribe(1, start=start, from_number=from_number, **what))
        for _ in range(60):
            desk.trade(4)
            await desk.settle()
        for reader, (instruments, events, form) in zip(readers, SELECTIONS, strict=True):
            last = expected(desk, instruments, events, form)[-1][0]
            await until(partial(has, reader, form, last))
            found = messages(reader.packets(form))
            wanted = expected(desk, instruments, events, form)
            assert found == [one for one in wanted if one[0] >= first]
            check_flags(reader.packets(form), first)


def check_flags(packets: list[bytes], first: int) -> None:
    """FIRST and LAST stand around the selected messages of each command."""
    blocks = [
        (block.flags, decode_message(block.payload))
        for packet in map(decode_packet, packets)
        if packet.kind == SELECTED
        for block in packet.blocks
    ]
    sequences = [message.sequence for _, message in blocks if message is not None]
    assert first
    for place, (flags, _) in enumerate(blocks):
        is_first = place == 0 or sequences[place - 1] != sequences[place]
        is_last = place + 1 == len(blocks) or sequences[place + 1] != sequences[place]
        if place:  # A stream may begin in the middle of a command.
            assert flags == is_first * FIRST | is_last * LAST


@on_both_loops
async def test_selections_of_the_past_from_every_number(tmp_path: Path) -> None:
    async with Desk(tmp_path, seed=3) as desk:
        desk.list_market()
        for _ in range(15):
            desk.trade(6)
        await desk.settle()
        desk.close()
        await desk.open()
        wanted = expected(desk, [1], [], ORDERS)
        for from_number in range(1, desk.truth.numbers[1] + 2):
            reader = desk.connect()
            fields = {"start": SubscriptionStart.NUMBER, "from_number": from_number}
            reader.ask(subscribe(1, instruments=[1], **fields))
            await until(partial(has_reached_the_head, reader))
            assert messages(reader.packets(ORDERS)) == [
                one for one in wanted if one[0] >= from_number
            ]
            assert heartbeats(reader, ORDERS) == [desk.truth.numbers[1] + 1]
            reader.connection.abort()


def has_reached_the_head(reader: Reader) -> bool:
    return bool(heartbeats(reader, ORDERS))


@on_both_loops
async def test_replays(tmp_path: Path) -> None:
    async with Desk(tmp_path) as desk:
        desk.list_market()
        for _ in range(60):
            desk.trade(100)
        await desk.settle()
        next_number = desk.feed.streams.next_number(1)
        reader = desk.connect()
        for number, count in ((1, 1), (1, 100_000), (500, 700), (next_number - 1, 5)):
            reader.told.clear()
            reader.ask(ReplayRequest(9, 1, number, count))
            await until(lambda: bool(reader.all(RequestEnd)))
            (end,) = reader.all(RequestEnd)
            found = messages(reader.packets(0))
            numbers = [one for one, _ in found]
            assert numbers == list(range(numbers[0], numbers[-1] + 1))
            assert numbers[0] <= number
            assert numbers[-1] >= min(number + count, next_number) - 1
            assert end == RequestEnd(9, RequestEndCode.DONE, numbers[-1] + 1)
            assert found == said(desk)[numbers[0] - 1 : numbers[-1]]
            assert sum(map(len, reader.packets(0))) <= PAGE_SIZE_MAX or count > 1


@on_both_loops
async def test_nothing_comes_after_the_end_of_a_request(tmp_path: Path) -> None:
    async with Desk(tmp_path) as desk:
        desk.list_market()
        await desk.settle()
        reader = desk.connect()
        reader.ask(subscribe(1, form=TRADES))
        assert len(desk.feed.streams.selections) == 1
        assert reader.ask(Unsubscribe(1)) == [RequestEnd(1, RequestEndCode.UNSUBSCRIBED, 0)]
        assert desk.feed.streams.selections == {}, "the view goes with its last user"
        count = reader.transport.write_count
        for _ in range(9):
            desk.trade(9)
        await desk.settle()
        assert reader.transport.write_count == count
        assert isinstance(reader.ask(subscribe(1))[0], Subscribed), "the id is free again"


@on_both_loops
async def test_all_are_told_of_a_new_channel(tmp_path: Path) -> None:
    async with Desk(tmp_path) as desk:
        reader = desk.connect()
        waiting = desk.connect()
        waiting.ask(subscribe(1, channel=2))
        desk.list_market()
        await desk.settle()
        state = reader.all(FeedState)[-1]
        assert state.channels == [(1, 7), (2, 3)]
        assert messages(waiting.packets(ORDERS)) == said(desk, 2)


@on_both_loops
async def test_heartbeats_say_how_far_a_stream_is(tmp_path: Path) -> None:
    async with Desk(tmp_path) as desk:
        desk.list_market()
        await desk.settle()
        reader = desk.connect()
        reader.ask(subscribe(1, instruments=[1]))
        assert heartbeats(reader, ORDERS) == [7], "at the head"
        view = next(iter(desk.feed.streams.selections.values()))
        streams = desk.feed.streams

        def beat(after_ns: int) -> None:
            desk.feed._base_ns += after_ns
            view.beat(desk.feed.now_ns(), 250_000_000, 1_000_000_000)

        beat(300_000_000)
        assert heartbeats(reader, ORDERS) == [7], "nothing has passed, and it is not a second yet"
        view.publish(9, (), streams.now_ns())
        beat(0)
        assert heartbeats(reader, ORDERS) == [7, 9], "messages outside the selection have passed"
        beat(999_000_000)
        beat(2_000_000)
        assert heartbeats(reader, ORDERS) == [7, 9, 9], "every second otherwise"


@on_both_loops
async def test_a_key_that_loses_a_role_is_cut(tmp_path: Path) -> None:
    async with Desk(tmp_path) as desk:
        desk.list_market()
        await desk.settle()
        kept, cut = desk.connect(3), desk.connect(2)
        for reader in (kept, cut):
            reader.ask(subscribe(1))
        desk.give(2, 2, Role.DROP_COPY)
        desk.give(3, 3, Role.TRADE | Role.DROP_COPY | Role.MARKET_DATA)
        desk.write()
        await desk.settle()
        (terminate,) = cut.all(Terminate)
        assert terminate.code == TerminateCode.NOT_PERMITTED
        assert not kept.all(Terminate)
