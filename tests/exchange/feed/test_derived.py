"""Prices, levels, statistics and candles as messages, against the plain truth; and when they are
made anew."""

import random

import pytest
from msgspec.structs import replace

from exchange.feed.derived import Derived
from exchange.feed.market import Market
from protocol.codes import SubscriptionForm
from protocol.market_data import (
    BestPrices,
    Candle,
    DerivedMessage,
    Levels,
    OrderAdded,
    OrderDeleted,
    Statistics,
    Trade,
)
from protocol.wire import decode_feed
from tests.exchange.feed.truth import EPOCH, START_NS, Truth

DAY_NS = 86_400_000_000_000


def decode(payload: bytes) -> DerivedMessage:
    message = decode_feed(payload)
    assert isinstance(message, BestPrices | Levels | Statistics | Candle)
    return message


def a_market(truth: Truth) -> Market:
    """Two channels, three instruments."""
    truth.list_event(1, 1)
    truth.list_event(2, 4)
    for instrument_id, event_id, channel in ((1, 1, 1), (2, 1, 1), (3, 2, 4)):
        truth.list_instrument(instrument_id, event_id, channel)
    market = Market(EPOCH)
    market.apply(truth.record())
    return market


def test_prices_and_levels_are_those_of_the_orders() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    truth = Truth(seed)
    market = a_market(truth)
    derived = Derived(market)
    for _ in range(120):
        for _ in range(truth.rng.randrange(4)):
            truth.random_command()
        market.apply(truth.record())
        if truth.rng.randrange(3) == 0:
            continue
        for instrument_id, channel in truth.channels.items():
            sides = [truth.levels(instrument_id, side, 50) for side in (1, 2)]
            bid, ask = [side[0][:2] if side else (0, 0) for side in sides]
            best = decode(derived.best_prices(instrument_id).payload)
            assert isinstance(best, BestPrices)
            assert (best.bid_price, best.bid_quantity) == bid
            assert (best.ask_price, best.ask_quantity) == ask
            assert (best.channel, best.instrument_id) == (channel, instrument_id)
            for depth in (1, 3, 50):
                levels = decode(derived.levels(instrument_id, depth).payload)
                assert isinstance(levels, Levels)
                assert levels.depth == depth
                assert [levels.bids, levels.asks] == [side[:depth] for side in sides]
            assert best.sequence <= market.sequence
            assert best.next_number <= market.channels[channel].next_number


def test_the_bytes_of_best_prices() -> None:
    truth = Truth()
    market = a_market(truth)
    head = truth.begin(START_NS + 5)
    truth.say(4, OrderAdded(*head, 3, 9, 2, 700, 200), OrderAdded(*head, 3, 10, 2, 700, 100))
    market.apply(truth.record())
    message = BestPrices(6, START_NS + 5, 4, 3, 5, 0, 0, 700, 300)
    assert decode(Derived(market).best_prices(3).payload) == message


def test_a_message_is_made_when_its_content_is_another() -> None:
    truth = Truth()
    market = a_market(truth)
    derived = Derived(market)
    head = truth.begin()
    truth.say(1, OrderAdded(*head, 1, 1, 1, 500, 100))
    market.apply(truth.record())
    best, top, two = derived.best_prices(1), derived.levels(1, 1), derived.levels(1, 2)
    assert (best.sequence, top.sequence, two.sequence) == (6, 6, 6)
    head = truth.begin()
    truth.say(1, OrderAdded(*head, 1, 2, 1, 400, 100))
    market.apply(truth.record())
    assert derived.best_prices(1) is best
    assert derived.levels(1, 1) is top
    assert derived.levels(1, 2).sequence == 7
    head = truth.begin()
    truth.say(1, OrderAdded(*head, 1, 3, 1, 500, 100))
    market.apply(truth.record())
    assert derived.best_prices(1).sequence == 8
    assert derived.levels(1, 1).sequence == 8
    assert derived.best_prices(1) is derived.best_prices(1)


def test_a_content_that_comes_back_is_new_to_who_saw_the_other() -> None:
    truth = Truth()
    market = a_market(truth)
    derived = Derived(market)
    payloads: list[DerivedMessage] = []
    cursor = 0
    for order_id in (1, 0, 2, 0):
        head = truth.begin()
        order = OrderAdded(*head, 1, order_id, 1, 500, 100)
        truth.say(1, order if order_id else OrderDeleted(*head, 1, 1 if len(payloads) < 2 else 2))
        market.apply(truth.record())
        made = derived.best_prices(1)
        assert made.sequence > cursor
        cursor = market.sequence
        payloads.append(decode(made.payload))
    quantities = [one.bid_quantity for one in payloads if isinstance(one, BestPrices)]
    assert quantities == [100, 0, 100, 0]


def test_statistics_before_and_after_trades() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    truth = Truth(seed)
    market = a_market(truth)
    derived = Derived(market)
    first = decode(derived.statistics(3).payload)
    assert first == Statistics(5, START_NS, 4, 3, 3, START_NS, *(0,) * 13)
    before = derived.statistics(2)
    for _ in range(100):
        truth.random_command(pause_ns=DAY_NS // 15)
        market.apply(truth.record())
        for instrument_id in truth.channels:
            trades = [one for one in truth.trades if one.instrument_id == instrument_id]
            if trades:
                found = decode(derived.statistics(instrument_id).payload)
                check_statistics(found, trades, START_NS)
    trade(truth, truth.time_ns, 500)
    market.apply(truth.record())
    assert derived.statistics(2).sequence > before.sequence
    assert derived.statistics(2) is derived.statistics(2)


def check_statistics(found: DerivedMessage, trades: list[Trade], listed_ns: int) -> None:
    assert isinstance(found, Statistics)
    last = trades[-1]
    day = [one for one in trades if one.time_ns // DAY_NS == last.time_ns // DAY_NS]
    prices, day_prices = [one.price for one in trades], [one.price for one in day]
    assert (found.sequence, found.time_ns) == (last.sequence, last.time_ns)
    assert found.since_time_ns == listed_ns
    assert (found.open_price, found.last_price) == (prices[0], prices[-1])
    assert (found.high_price, found.low_price) == (max(prices), min(prices))
    assert (found.last_quantity, found.open_interest) == (last.quantity, last.open_interest)
    assert (found.volume, found.trade_count) == (sum(one.quantity for one in trades), len(trades))
    assert found.notional == sum(one.price * one.quantity for one in trades)
    assert found.day_open_price == day_prices[0]
    assert (found.day_high_price, found.day_low_price) == (max(day_prices), min(day_prices))
    assert found.day_volume == sum(one.quantity for one in day)


def trade(truth: Truth, time_ns: int, price: int) -> None:
    """A trade of 100 at a price, alone in its record."""
    head = truth.begin(time_ns)
    truth.trades.append(Trade(*head, 2, len(truth.trades) + 1, price, 100, 1, 700))
    truth.say(1, truth.trades[-1])


def test_candles_as_messages() -> None:
    truth = Truth()
    market = a_market(truth)
    derived = Derived(market)
    start_ns = START_NS + 1_000_000_000 - START_NS % 60_000_000_000 + 60_000_000_000
    minute_ns = start_ns - start_ns % 60_000_000_000
    assert derived.candle(2, 60) is None
    assert derived.candles(2, 60, 0, 10) == derived.candles_after(2, 60, 0) == []
    for seconds, price in ((1, 500), (2, 900), (70, 300)):
        trade(truth, minute_ns + seconds * 1_000_000_000, price)
        market.apply(truth.record())
    first = Candle(
        *(7, minute_ns + 2_000_000_000, 1, 2, 7, 60, minute_ns),
        *(500, 900, 500, 900, 200, 2, 700),
        is_closed=1,
    )
    second = Candle(
        *(8, minute_ns + 70_000_000_000, 1, 2, 7, 60, minute_ns + 60_000_000_000),
        *(300, 300, 300, 300, 100, 1, 700),
        is_closed=0,
    )
    assert [decode(one) for one in derived.candles(2, 60, 0, 10)] == [first, second]
    assert [decode(one) for one in derived.candles(2, 60, 0, 1)] == [first]
    assert [decode(one) for one in derived.candles(2, 60, minute_ns + 60_000_000_000, 9)] == [
        second
    ]
    assert [decode(one) for one in derived.candles(2, 60, minute_ns + 1, 9)] == [first, second]
    assert [decode(one) for one in derived.candles_after(2, 60, 7)] == [first, second]
    assert derived.candles_after(2, 60, 8) == []
    made = derived.candle(2, 60)
    assert made is not None
    assert decode(made.payload) == second
    assert derived.candle(2, 60) is made
    # Another instrument's command moves the venue's time on: the candle is closed.
    truth.begin(minute_ns + 120_000_000_000)
    truth.switch(3)
    market.apply(truth.record())
    [_, last] = derived.candles(2, 60, minute_ns + 1, 9)
    assert decode(last) == replace(second, is_closed=1)
    made = derived.candle(2, 60)
    assert made is not None
    assert decode(made.payload) == replace(second, is_closed=1)


def test_what_nobody_wants_is_forgotten() -> None:
    truth = Truth()
    derived = Derived(a_market(truth))
    best, top, two = derived.best_prices(1), derived.levels(1, 1), derived.levels(1, 2)
    derived.forget(SubscriptionForm.LEVELS, 1)
    derived.forget(SubscriptionForm.LEVELS, 3)
    assert derived.levels(1, 1) is not top
    assert derived.levels(1, 2) is two
    assert derived.best_prices(1) is best


@pytest.mark.parametrize("depth", [0, 51])
def test_a_depth_is_in_range(depth: int) -> None:
    truth = Truth()
    with pytest.raises(AssertionError, match=f"{depth} levels"):
        Derived(a_market(truth)).levels(1, depth)
