"""Readers that are slow, stalled or far behind: nobody waits for them, and they are told."""

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from exchange.feed import streams as streams_module
from exchange.feed.limits import PIECE_SIZE_MAX
from protocol.codes import (
    RequestEndCode,
    SubscriptionStart,
    TerminateCode,
    WhenSlow,
)
from protocol.feed import (
    SLOW_NS,
    RequestEnd,
    Skipped,
    Unsubscribe,
)
from protocol.market_data import (
    SnapshotBegin,
)
from protocol.packets import (
    SNAPSHOT,
    decode_packet,
    decode_snapshot_message,
)
from protocol.transport import Terminate
from tests.exchange.feed.desk import KERNEL_SIZE, Desk, Reader, subscribe
from tests.exchange.feed.reading import (
    ORDERS,
    TRADES,
    expected,
    heartbeats,
    is_idle,
    is_whole,
    messages,
    said,
)
from tests.exchange.loops import on_both_loops, until


@on_both_loops
async def test_a_stalled_subscriber_costs_a_piece_and_misses_nothing(tmp_path: Path) -> None:
    async with Desk(tmp_path) as desk:
        desk.list_market()
        await desk.settle()
        stalled, other = desk.connect(), desk.connect()
        for reader in (stalled, other):
            reader.ask(subscribe(1))
        stalled.transport.is_stalled = True
        while desk.feed.streams.channels[1].ring.end < 4 * KERNEL_SIZE:
            desk.trade(100)
            await desk.settle()
            other.read()
        assert stalled.connection.is_blocked
        assert stalled.transport.unsent_size_max <= PIECE_SIZE_MAX
        assert messages(other.packets(ORDERS)) == said(desk, 1, 7), "nobody waits for it"
        writes = stalled.transport.write_count
        desk.trade(100)
        await desk.settle()
        assert stalled.transport.write_count == writes, "nothing is queued for it"
        await until(lambda: is_whole(stalled, desk))
        assert messages(stalled.packets(ORDERS)) == said(desk, 1, 7)
        assert stalled.transport.unsent_size_max <= PIECE_SIZE_MAX
        assert not stalled.all(Skipped)
        stalled.transport.is_stalled = False
        desk.trade(1)
        await desk.settle()
        assert messages(stalled.packets(ORDERS)) == said(desk, 1, 7), "it is live again"


async def make_slow(desk: Desk, reader: Reader, missed: int = 30) -> int:
    """Stall a live reader until its kernel is full, then let what it misses grow old; the first
    number that it was not sent."""
    reader.transport.is_stalled = True
    reader.transport.kernel_size = 2_000
    while not reader.connection.is_blocked:
        desk.trade(20)
        await desk.settle()
    (work,) = reader.connection.works.values()
    number = work.number  # type: ignore[attr-defined]  # it is a MarketSubscription
    if missed:
        desk.trade(missed)
    await desk.settle()
    desk.feed._base_ns += SLOW_NS + 1
    assert isinstance(number, int)
    return number


@on_both_loops
async def test_a_selection_that_nothing_came_for_is_not_slow(tmp_path: Path) -> None:
    async with Desk(tmp_path) as desk:
        desk.list_market()
        await desk.settle()
        reader = desk.connect()
        reader.ask(subscribe(1, instruments=[1]))
        await make_slow(desk, reader, 0)
        desk.truth.add(2)
        desk.write()
        await desk.settle()
        reads = desk.feed.history.read_count + desk.feed.history.hit_count
        reader.transport.is_stalled = False
        reader.read()
        (work,) = reader.connection.works.values()
        assert not work.has_work, "it is live at once"
        assert desk.feed.history.read_count + desk.feed.history.hit_count == reads
        assert not reader.all(Skipped)


@pytest.mark.parametrize("form", [ORDERS, TRADES])
@on_both_loops
async def test_one_that_is_too_slow_gets_a_snapshot(tmp_path: Path, form: int) -> None:
    async with Desk(tmp_path) as desk:
        desk.list_market()
        await desk.settle()
        reader = desk.connect()
        reader.ask(subscribe(1, form=form))
        number = await make_slow(desk, reader)
        reader.transport.is_stalled = False
        await until(lambda: bool(reader.all(Skipped)) and bool(heartbeats(reader, form)[1:]))
        (skipped,) = reader.all(Skipped)
        assert (skipped.from_number, skipped.next_number) == (
            number,
            desk.feed.streams.next_number(1),
        )
        desk.trade(5)
        await desk.settle()
        packets = [decode_packet(data) for data in reader.packets(form)]
        snapshot = [packet for packet in packets if packet.kind == SNAPSHOT]
        begin = decode_snapshot_message(snapshot[0].blocks[0].payload)
        assert isinstance(begin, SnapshotBegin)
        assert begin.with_orders == (form == ORDERS)
        numbers = [one for one, _ in messages(reader.packets(form))]
        wanted = expected(desk, [], [], form)
        left_out = range(skipped.from_number, skipped.next_number)
        assert numbers == [one for one, _ in wanted if one >= 7 and one not in left_out]
        assert desk.feed.streams.slow_count == 1


@on_both_loops
async def test_one_that_is_too_slow_is_cut_if_it_wants_to_be(tmp_path: Path) -> None:
    async with Desk(tmp_path) as desk:
        desk.list_market()
        await desk.settle()
        reader = desk.connect()
        reader.ask(subscribe(1, when_slow=WhenSlow.DISCONNECT))
        await make_slow(desk, reader)
        reader.connection.watch(desk.feed.now_ns())
        reader.transport.is_stalled = False
        reader.read()
        assert reader.all(RequestEnd) == [RequestEnd(1, RequestEndCode.TOO_SLOW, 0)]
        (terminate,) = reader.all(Terminate)
        assert terminate.code == TerminateCode.SLOW_CONSUMER
        await until(lambda: not desk.server.connections)


@on_both_loops
async def test_one_that_takes_nothing_is_cut(tmp_path: Path) -> None:
    async with Desk(tmp_path) as desk:
        desk.list_market()
        await desk.settle()
        reader = desk.connect()
        reader.ask(subscribe(1))
        await make_slow(desk, reader)
        for _ in range(2):
            reader.connection.watch(desk.feed.now_ns())
            desk.feed._base_ns += 10_000_000_000
        reader.connection.watch(desk.feed.now_ns())
        assert reader.transport.is_gone
        assert desk.server.stalled_count == 1


@on_both_loops
async def test_catching_up_is_not_being_slow(tmp_path: Path) -> None:
    async with Desk(tmp_path) as desk:
        desk.list_market()
        for _ in range(60):
            desk.trade(100)
        await desk.settle()
        reader = desk.connect()
        reader.transport.is_stalled = True
        reader.ask(subscribe(1, start=SubscriptionStart.NUMBER, from_number=1))
        await until(lambda: reader.connection.is_blocked)
        desk.feed._base_ns += SLOW_NS + 1
        await until(lambda: is_whole(reader, desk))
        assert messages(reader.packets(ORDERS)) == said(desk)
        assert not reader.all(Skipped)
        assert reader.transport.unsent_size_max <= PIECE_SIZE_MAX


@on_both_loops
async def test_what_has_left_the_ring_comes_from_the_log(tmp_path: Path) -> None:
    async with Desk(tmp_path) as desk:
        desk.list_market()
        await desk.settle()
        reader = desk.connect()
        reader.transport.is_stalled = True
        reader.ask(subscribe(1, start=SubscriptionStart.NUMBER, from_number=1))
        for _ in range(60):
            desk.trade(100)
            await desk.settle()
        ring = desk.feed.streams.channels[1].ring
        while ring.first_index < ring.next_index - 2:
            ring.drop_oldest()
        (work,) = reader.connection.works.values()
        work._is_due = False  # type: ignore[attr-defined]  # as if it had never been at the head
        await until(lambda: is_whole(reader, desk))
        assert messages(reader.packets(ORDERS)) == said(desk)


@on_both_loops
async def test_one_that_never_comes_to_the_head_is_told_so(tmp_path: Path) -> None:
    """It began with a snapshot, and reads more slowly than the market goes on."""
    async with Desk(tmp_path) as desk:
        desk.list_market()
        for _ in range(20):
            desk.trade(5)
        await desk.settle()
        reader = desk.connect()
        reader.transport.is_stalled = True
        reader.transport.kernel_size = 600
        reader.ask(subscribe(1, start=SubscriptionStart.SNAPSHOT))
        for _ in range(400):
            if reader.all(Skipped):
                break
            desk.trade(30)
            await desk.settle()
            desk.feed._base_ns += SLOW_NS // 5
        (skipped, *_) = reader.all(Skipped)
        assert skipped.from_number < skipped.next_number
        view = desk.feed.streams.channels[1]
        assert view.live_count == 0


@on_both_loops
async def test_snapshots_under_way_have_a_limit(tmp_path: Path) -> None:
    """One that is not read gives its place to others; one that is being read does not."""
    async with Desk(tmp_path) as desk:
        desk.list_market()
        for instrument_id in (1, 2, 3, 4) * 10:
            desk.truth.begin()
            for _ in range(100):
                desk.truth.add(instrument_id)
            desk.write()
        await desk.settle()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(streams_module, "PLANS_MAX", 1)
            first, second = desk.connect(), desk.connect()
            first.transport.is_stalled = True
            first.transport.kernel_size = 500
            for reader in (first, second):
                reader.ask(subscribe(1, start=SubscriptionStart.SNAPSHOT))
            await until(lambda: first.connection.is_blocked)
            for _ in range(20):
                await asyncio.sleep(0)
            assert not any(decode_packet(one).kind == SNAPSHOT for one in second.packets(ORDERS))
            desk.feed._base_ns += 1_000_000_001
            desk.server._watch()
            await until(lambda: is_whole(second, desk))
            assert not first.connection.works, "cut, since it read nothing"


@on_both_loops
async def test_other_connections_get_the_loop_while_one_searches_the_past(tmp_path: Path) -> None:
    """A narrow selection from the first number on writes nothing, and must not hold the loop."""
    async with Desk(tmp_path) as desk:
        desk.list_market()
        for _ in range(150):
            desk.truth.begin()
            for _ in range(40):
                desk.truth.add(2)
            desk.write()
        await desk.settle()
        for _ in range(2):
            reader = desk.connect()
            reader.ask(subscribe(1, instruments=[4], start=SubscriptionStart.NUMBER, from_number=3))
            await until(partial(is_idle, reader))  # the blocks are in memory then
        pages = 0
        read = desk.feed.history.packets

        async def counted(*arguments: Any, **names: Any) -> Any:
            nonlocal pages
            pages += 1
            return await read(*arguments, **names)

        desk.feed.history.packets = counted  # type: ignore[method-assign]  # it is counted
        reader.ask(Unsubscribe(1))
        reader.ask(subscribe(1, instruments=[3], start=SubscriptionStart.NUMBER, from_number=3))
        while not is_idle(reader):
            before = pages
            await asyncio.sleep(0)
            assert pages - before <= 3
        assert pages > 10
