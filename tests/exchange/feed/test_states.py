"""Subscriptions to states: the newest of each instrument, whoever reads how slowly."""

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import asdict

from exchange.feed.limits import PIECE_SIZE_MAX
from protocol.codes import SubscriptionForm, SubscriptionStart
from protocol.feed import CandlesRequest, RequestEnd, Skipped, Subscribed
from protocol.market_data import (
    BestPrices,
    Candle,
    EventDefinition,
    InstrumentDefinition,
    InstrumentStatus,
    Levels,
    SnapshotBegin,
    Statistics,
)
from protocol.packets import decode_packet, decode_snapshot_message
from tests.exchange.feed.desk import Desk, Reader, subscribe
from tests.exchange.loops import on_both_loops, until

FORMS: dict[SubscriptionForm, dict[str, int]] = {
    SubscriptionForm.LEVELS: {"depth": 3},
    SubscriptionForm.BEST_PRICES: {},
    SubscriptionForm.STATISTICS: {},
    SubscriptionForm.CANDLES: {"interval_s": 60},
}
KINDS = {
    SubscriptionForm.LEVELS: Levels,
    SubscriptionForm.BEST_PRICES: BestPrices,
    SubscriptionForm.STATISTICS: Statistics,
    SubscriptionForm.CANDLES: Candle,
}


def newest(reader: Reader, form: SubscriptionForm) -> dict[int, Any]:
    """The last state of each instrument that the reader was told."""
    return {one.instrument_id: one for one in reader.all(KINDS[form])}


def is_right(desk: Desk, reader: Reader, form: SubscriptionForm) -> bool:
    """Whether the reader has what the venue's lists add up to."""
    told = newest(reader, form)
    truth = desk.truth
    for one in (1, 2, 3, 4):
        bids, asks = ([list(row) for row in truth.levels(one, side, 3)] for side in (1, 2))
        trades = [trade for trade in truth.trades if trade.instrument_id == one]
        state: Any = told.get(one)
        if form is SubscriptionForm.LEVELS:
            said = ([list(row) for row in state.bids], [list(row) for row in state.asks])
            is_good = said == (bids, asks)
        elif form is SubscriptionForm.BEST_PRICES:
            best = [*(bids or [[0, 0]])[0][:2], *(asks or [[0, 0]])[0][:2]]
            is_good = list(asdict(state).values())[-4:] == best
        elif form is SubscriptionForm.STATISTICS:
            volume = sum(trade.quantity for trade in trades)
            is_good = (state.volume, state.trade_count) == (volume, len(trades))
        elif trades:
            start_ns = trades[-1].time_ns // 60_000_000_000 * 60_000_000_000
            of_minute = [trade for trade in trades if trade.time_ns >= start_ns]
            is_good = (state.start_time_ns, state.trade_count, state.close_price) == (
                start_ns,
                len(of_minute),
                trades[-1].price,
            )
        else:
            is_good = state is None
        if not is_good:
            return False
    return True


@pytest.mark.parametrize("start", [SubscriptionStart.LIVE, SubscriptionStart.SNAPSHOT])
@pytest.mark.parametrize("form", FORMS)
@on_both_loops
async def test_the_present_state_and_every_change(
    tmp_path: Path, form: SubscriptionForm, start: SubscriptionStart
) -> None:
    async with Desk(tmp_path, seed=2) as desk:
        desk.list_market()
        for _ in range(20):
            desk.trade(4)
        await desk.settle()
        reader = desk.connect()
        told = reader.ask(subscribe(1, form=form, start=start, **FORMS[form]))
        assert isinstance(told[0], Subscribed)
        await until(lambda: is_right(desk, reader, form) if newest(reader, form) else False)
        for _ in range(60):
            desk.trade(3)
            await desk.settle()
            assert is_right(desk, reader, form)
        packets = [decode_packet(data) for data in reader.packets(form)]
        snapshot = [decode_snapshot_message(b.payload) for p in packets for b in p.blocks]
        if start == SubscriptionStart.SNAPSHOT:
            assert isinstance(snapshot[0], SnapshotBegin)
            assert snapshot[0].with_orders == 0
            defined = [one for one in snapshot if isinstance(one, InstrumentDefinition)]
            assert [one.instrument_id for one in defined] == [1, 2, 3, 4]
        else:
            assert snapshot == []


@pytest.mark.parametrize("form", FORMS)
@on_both_loops
async def test_a_stalled_reader_skips_and_is_right_again(
    tmp_path: Path, form: SubscriptionForm
) -> None:
    async with Desk(tmp_path, seed=4) as desk:
        desk.list_market()
        await desk.settle()
        reader, other = desk.connect(), desk.connect()
        for one in (reader, other):
            one.ask(subscribe(1, form=form, start=SubscriptionStart.LIVE, **FORMS[form]))
        await until(lambda: desk_live(desk) == 2)
        reader.transport.is_stalled = True
        reader.transport.kernel_size = 1_000
        for _ in range(150):
            desk.trade(3)
            await desk.settle()
        assert reader.connection.is_blocked
        assert is_right(desk, other, form)
        states = len(other.all(KINDS[form]))
        writes = reader.transport.write_count
        desk.trade(9)
        await desk.settle()
        assert reader.transport.write_count == writes
        reader.transport.is_stalled = False
        await until(lambda: is_right(desk, reader, form) if newest(reader, form) else False)
        assert len(reader.all(KINDS[form])) < states
        assert not reader.all(Skipped)
        assert reader.transport.unsent_size_max <= PIECE_SIZE_MAX
        await until(lambda: desk_live(desk) == 2)


def desk_live(desk: Desk) -> int:
    return sum(view.live_count for view in desk.feed.streams.states.values())


@on_both_loops
async def test_what_is_listed_later_comes_with_its_definitions(tmp_path: Path) -> None:
    async with Desk(tmp_path) as desk:
        desk.list_market()
        await desk.settle()
        reader = desk.connect()
        fields = {"form": SubscriptionForm.BEST_PRICES, "events": [2]}
        reader.ask(subscribe(1, **fields, start=SubscriptionStart.SNAPSHOT))
        everything = desk.connect()
        everything.ask(subscribe(1, form=SubscriptionForm.BEST_PRICES))
        await until(lambda: desk_live(desk) == 2)
        desk.truth.list_event(4, 1)
        desk.truth.list_instrument(6, 4, 1)
        desk.truth.list_instrument(7, 2, 1)
        desk.write()
        desk.truth.list_instrument(8, 4, 1)
        desk.write()
        desk.truth.begin()
        desk.truth.switch(7)
        desk.write()
        await desk.settle()
        kinds = (EventDefinition, InstrumentDefinition, InstrumentStatus, BestPrices)
        everything.read()
        told = [one for one in everything.told if isinstance(one, kinds)]
        new = [one for one in told if getattr(one, "instrument_id", 6) > 4]
        said = [
            message
            for _, _, message in desk.truth.said
            if getattr(message, "instrument_id", 0) > 5 or getattr(message, "event_id", 0) == 4
        ]
        definitions = (EventDefinition, InstrumentDefinition)
        defined = [one for one in new if isinstance(one, definitions)]
        assert sorted(defined, key=lambda one: one.sequence) == [
            one for one in said if isinstance(one, definitions)
        ]
        assert isinstance(defined[0], EventDefinition)
        for place, one in enumerate(new):
            if isinstance(one, BestPrices):
                before = (o for o in new[:place] if isinstance(o, InstrumentDefinition))
                assert one.instrument_id in [o.instrument_id for o in before]
        (status,) = everything.all(InstrumentStatus)
        assert (status.instrument_id, status.phase) == (7, 2)
        assert [one.instrument_id for one in reader.all(InstrumentDefinition)] == [7]
        assert {one.instrument_id for one in reader.all(BestPrices)} == {3, 4, 7}


@on_both_loops
async def test_conflation(tmp_path: Path) -> None:
    async with Desk(tmp_path) as desk:
        desk.list_market()
        await desk.settle()
        reader = desk.connect()
        form = SubscriptionForm.LEVELS
        reader.ask(subscribe(1, form=form, depth=3, conflation_ms=60_000))
        await until(lambda: desk_live(desk) == 1)
        (view,) = desk.feed.streams.states.values()
        view._due_ns = desk.feed.now_ns() + 60_000_000_000
        count = len(reader.all(Levels))
        for _ in range(40):
            desk.trade(2)
            await desk.settle()
        assert len(reader.all(Levels)) == count
        desk.feed._base_ns += 60_000_000_000
        desk.feed.streams._on_states()
        assert is_right(desk, reader, form)
        assert len(reader.all(Levels)) <= count + 4


@on_both_loops
async def test_candles_of_the_past(tmp_path: Path) -> None:
    async with Desk(tmp_path) as desk:
        desk.list_market()
        for _ in range(200):
            desk.trade(3)
        await desk.settle()
        reader = desk.connect()
        reader.ask(CandlesRequest(5, 1, 60, 0, 1_000))
        await until(lambda: bool(reader.all(RequestEnd)))
        assert reader.all(RequestEnd) == [RequestEnd(5, 1, 0)]
        found = reader.all(Candle)
        trades = [trade for trade in desk.truth.trades if trade.instrument_id == 1]
        starts = sorted({trade.time_ns // 60_000_000_000 for trade in trades})
        assert [one.start_time_ns // 60_000_000_000 for one in found] == starts
        assert sum(one.volume for one in found) == sum(trade.quantity for trade in trades)


@on_both_loops
async def test_many_instruments_do_not_fill_the_socket(tmp_path: Path) -> None:
    """The first pass over all of them is made piece by piece as the reader takes them."""
    async with Desk(tmp_path) as desk:
        desk.truth.list_event(1, 1)
        for instrument_id in range(1, 1_201):
            desk.truth.list_instrument(instrument_id, 1, 1)
        desk.write()
        await desk.settle()
        reader = desk.connect()
        reader.transport.is_stalled = True
        reader.transport.kernel_size = 4_000
        reader.ask(
            subscribe(1, form=SubscriptionForm.LEVELS, depth=5, start=SubscriptionStart.SNAPSHOT)
        )
        await until(lambda: len(newest(reader, SubscriptionForm.LEVELS)) == 1_200)
        await until(lambda: desk_live(desk) == 1)
        assert reader.transport.unsent_size_max <= PIECE_SIZE_MAX
        assert len(reader.all(Levels)) == 1_200


@on_both_loops
async def test_a_phase_that_a_young_snapshot_does_not_have_yet(tmp_path: Path) -> None:
    """Snapshots share units for a moment; a halt within it is told behind them."""
    async with Desk(tmp_path) as desk:
        desk.list_market()
        await desk.settle()
        fields = {"form": SubscriptionForm.BEST_PRICES, "start": SubscriptionStart.SNAPSHOT}
        first = desk.connect()
        first.ask(subscribe(1, **fields))
        await until(lambda: desk_live(desk) == 1)
        desk.truth.begin()
        desk.truth.switch(1)
        desk.write()
        await desk.settle()
        second = desk.connect()
        second.ask(subscribe(1, **fields))
        await until(lambda: desk_live(desk) == 2)
        for reader in (first, second):
            assert [(one.instrument_id, one.phase) for one in reader.all(InstrumentStatus)] == [
                (1, 2)
            ]
