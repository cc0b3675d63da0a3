"""Candles and statistics against sums over plain lists of trades, and their bounds, exactly."""

import random
from collections.abc import Callable
from typing import Final

import pytest

from exchange.feed.candles import (
    INTERVALS_NS,
    KEPT_COUNTS,
    ROW_WORDS,
    Bar,
    CandleStore,
    History,
    Row,
)
from protocol.base import NUMBER_MAX
from protocol.market_data import Trade

DAY_NS: Final = INTERVALS_NS[3]
START_NS: Final = 20_000 * DAY_NS
SECOND_NS: Final = 1_000_000_000


def trades_of(seed: int, count: int, pause: Callable[[random.Random], int]) -> list[Trade]:
    """Random trades of instrument 1, each its own command, a pause apart."""
    rng = random.Random(seed)
    found, time_ns = [], START_NS - 7 * SECOND_NS
    for number in range(1, count + 1):
        time_ns += pause(rng)
        price, quantity = rng.randrange(-50, 50) * 100, rng.randrange(1, 9) * 100
        interest = rng.randrange(1_000)
        found.append(Trade(number + 10, time_ns, 1, number, price, quantity, 1, interest))
    return found


def rows_of(trades: list[Trade], interval_ns: int) -> list[Row]:
    """Candles by the book: group by interval, then first, greatest, least, last, sums."""
    groups: dict[int, list[Trade]] = {}
    for trade in trades:
        groups.setdefault(trade.time_ns // interval_ns, []).append(trade)
    found: list[Row] = []
    for some in groups.values():
        prices = [trade.price for trade in some]
        last = some[-1]
        found.append(
            (
                *(prices[0], max(prices), min(prices), prices[-1]),
                *(sum(trade.quantity for trade in some), len(some), last.open_interest),
                *(last.sequence, last.time_ns),
            )
        )
    return found


PAUSES: dict[str, Callable[[random.Random], int]] = {
    "same second": lambda rng: rng.randrange(2) * 100_000_000,
    "seconds": lambda rng: rng.randrange(3 * SECOND_NS),
    "minutes": lambda rng: rng.choice((0, SECOND_NS, 40 * SECOND_NS, 200 * SECOND_NS)),
    "days": lambda rng: rng.choice((1, SECOND_NS, DAY_NS // 24, DAY_NS // 2, 3 * DAY_NS)),
    "on the border": lambda rng: rng.choice((SECOND_NS, 60 * SECOND_NS, 53 * SECOND_NS)),
}


@pytest.mark.parametrize("pause", PAUSES)
def test_candles_are_those_of_the_trades(pause: str) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}, {pause}")
    trades = trades_of(seed, 250, PAUSES[pause])
    store = CandleStore()
    for count, trade in enumerate(trades, 1):
        store.add(trade)
        if count % 9 and count != len(trades):
            continue
        history = store.histories[1]
        for index, interval_ns in enumerate(INTERVALS_NS):
            expected = rows_of(trades[:count], interval_ns)
            assert history.page(index, 0, 10**6) == expected
            assert history.newest(index) == expected[-1]
        assert store.row_count == sum(history.row_count(i) for i in range(4))
        assert history.whole().words() == whole_of(trades[:count])


def whole_of(trades: list[Trade]) -> tuple[int, ...]:
    [row] = rows_of(trades, 10**30)
    notional = sum(trade.price * trade.quantity for trade in trades)
    return (*row, trades[0].sequence, notional)


@pytest.mark.parametrize("index", range(4))
def test_pages_have_what_ends_after_a_time(index: int) -> None:
    trades = trades_of(3, 300, PAUSES["minutes"] if index < 2 else PAUSES["days"])
    history = one_history(trades)
    interval_ns = INTERVALS_NS[index]
    rows = rows_of(trades, interval_ns)
    starts = [row[-1] // interval_ns * interval_ns for row in rows]
    for from_ns in {start + by for start in starts[::7] for by in (-1, 0, 1, interval_ns)}:
        expected = [
            row for row, start in zip(rows, starts, strict=True) if start + interval_ns > from_ns
        ]
        assert history.page(index, from_ns, 10**6) == expected
        for count in (1, 2, 5):
            assert history.page(index, from_ns, count) == expected[:count]
    assert history.page(index, trades[-1].time_ns + 2 * interval_ns, 5) == []


def one_history(trades: list[Trade]) -> History:
    store = CandleStore()
    for trade in trades:
        store.add(trade)
    return store.histories[1]


@pytest.mark.parametrize("pause", ["seconds", "minutes", "days"])
def test_what_a_follower_is_told_brings_it_up_to_date(pause: str) -> None:
    """Whoever puts in what `after` gives, whenever it asks, has all candles, closed ones too."""
    seed = random.randrange(2**32)
    print(f"seed {seed}, {pause}")
    rng = random.Random(seed)
    trades = trades_of(seed, 200, PAUSES[pause])
    store = CandleStore()
    known: list[dict[int, Row]] = [{} for _ in INTERVALS_NS]
    told_closed: list[set[int]] = [set() for _ in INTERVALS_NS]
    cursor = 0
    for count, trade in enumerate(trades, 1):
        store.add(trade)
        if rng.randrange(4) and count != len(trades):
            continue
        for index, interval_ns in enumerate(INTERVALS_NS):
            found = store.histories[1].after(index, cursor, 1_000)
            newest = store.histories[1].newest(index)
            for row in found:
                known[index][row[-1] // interval_ns] = row
                if row[-1] // interval_ns < newest[-1] // interval_ns:
                    told_closed[index].add(row[-1] // interval_ns)
            expected = rows_of(trades[:count], interval_ns)
            assert list(known[index].values()) == expected
            assert told_closed[index] == {row[-1] // interval_ns for row in expected[:-1]}
            # Not more than is new, and one that may have been known as closed.
            new = [row for row in expected if row[-2] > cursor]
            assert len(new) <= len(found) <= len(new) + 1
            assert store.histories[1].after(index, cursor, 2) == found[-2:]
        cursor = trade.sequence
        assert store.histories[1].after(0, cursor, 1_000) == []


def test_an_instrument_keeps_so_many_of_each_length() -> None:
    count = 3 * KEPT_COUNTS[0]
    store = CandleStore()
    for number in range(count):
        store.add(a_trade(1, START_NS + number * SECOND_NS, number))
        history = store.histories[1]
        kept = history.row_count(0)
        assert min(number, KEPT_COUNTS[0]) <= kept <= KEPT_COUNTS[0] * 9 // 8
    assert store.row_count == sum(history.row_count(index) for index in range(4))
    assert history.page(0, 0, 1)[0][0] == count - kept - 1
    assert history.row_count(1) == (count - 1) // 60
    assert history.whole().trade_count == count


def a_trade(instrument_id: int, time_ns: int, price: int, quantity: int = 100) -> Trade:
    return Trade(1, time_ns, instrument_id, 1, price, quantity, 1, 0)


def test_all_together_have_a_bound_and_the_seconds_of_the_silent_go_first() -> None:
    store = CandleStore(rows_max=800)
    time_ns = START_NS
    for _ in range(30):  # a second with a trade every two minutes
        for instrument_id in range(1, 11):
            store.add(a_trade(instrument_id, time_ns, 100))
        time_ns += 120 * SECOND_NS
    # 29 seconds and 28 minutes of each, the last one of which is open.
    assert store.row_count == 10 * (29 + 28)
    for _ in range(300):
        store.add(a_trade(3, time_ns, 100))
        time_ns += SECOND_NS
        assert store.row_count <= 800
    counts = {
        key: [one.row_count(index) for index in range(4)] for key, one in store.histories.items()
    }
    assert list(counts) == [1, 2, 4, 5, 6, 7, 8, 9, 10, 3], "in order of their last trades"
    assert store.row_count == sum(sum(some) for some in counts.values())
    assert [seconds for seconds, *_ in counts.values()] == [0, 0, 0, 0, 29, 29, 29, 29, 29, 329]
    assert {minutes for _, minutes, *_ in counts.values()} == {28, 34}
    assert store.histories[1].whole().trade_count == 30


def test_minutes_go_when_no_seconds_are_left() -> None:
    store = CandleStore(rows_max=40)
    time_ns = START_NS
    for _ in range(60):
        for instrument_id in (1, 2):
            store.add(a_trade(instrument_id, time_ns, 100))
            assert store.row_count <= 40
        time_ns += 60 * SECOND_NS
    assert store.histories[1].newest(1)[4] == 100


def test_sums_stop_at_the_largest_number() -> None:
    bar = Bar(a_trade(1, START_NS, 2 * 10**9, NUMBER_MAX))
    for _ in range(3):
        bar.add(a_trade(1, START_NS, 2 * 10**9, NUMBER_MAX))
    assert bar.row()[4] == NUMBER_MAX
    assert len(bar.row()) == ROW_WORDS
