"""Candles of all instruments, kept from trades: a second, a minute, an hour, a day.

A trade touches only the second that it is in. When a trade of a later second comes, the one before
is done: it is put away as a row of integers, and folded into the minute, the hour, the day and the
whole life of the instrument; a minute, an hour, a day that is over is put away too. What is asked
for is the longer bar with the open second folded in.

Rows lie in arrays of 64-bit words. Each instrument keeps a bounded number of each length, and all
together have one bound: when it is reached, those that have not traded for the longest time give up
their seconds, then their minutes, and so on. Times are those of the trades' commands, which never
decrease. An interval without a trade has no candle.
"""

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

from protocol.base import NUMBER_MAX
from protocol.market_data import CANDLE_INTERVALS_S, Trade

__all__ = ["ROWS_MAX", "ROW_WORDS", "Bar", "CandleStore", "History"]

NANOSECONDS_PER_SECOND: Final = 1_000_000_000
INTERVALS_NS: Final = tuple(one * NANOSECONDS_PER_SECOND for one in CANDLE_INTERVALS_S)
_SECOND_NS: Final = INTERVALS_NS[0]

KEPT_COUNTS: Final = (3_600, 10_080, 8_784, 3_660)
"""Rows of each length that an instrument keeps at least: an hour, a week, a year, ten years."""

ROWS_MAX: Final = 1_000_000
"""Rows of all instruments together: 72 MB."""

ROW_WORDS: Final = 9
"""open, high, low, close, volume, trade count, open interest, sequence, time of the last trade."""
_TIME_WORD: Final = 8

_SLACK: Final = 8
"""One part in so many is given up at once, so that giving up costs little for each row."""


class Bar:
    """The trades of one stretch of time. `sequence` and `time_ns` are those of the last command,
    `first_sequence` is that of the first. Volume and notional end at the largest number there is,
    notional at its negative too."""

    __slots__ = (
        "close_price",
        "first_sequence",
        "high_price",
        "low_price",
        "notional",
        "open_interest",
        "open_price",
        "sequence",
        "time_ns",
        "trade_count",
        "volume",
    )

    def __init__(self, trade: Trade) -> None:
        price = trade.price
        self.open_price = self.high_price = self.low_price = self.close_price = price
        self.volume = trade.quantity
        self.notional = price * trade.quantity
        self.trade_count = 1
        self.open_interest = trade.open_interest
        self.sequence = self.first_sequence = trade.sequence
        self.time_ns = trade.time_ns

    def add(self, trade: Trade) -> None:
        """Take the next trade."""
        price = trade.price
        if price > self.high_price:
            self.high_price = price
        elif price < self.low_price:
            self.low_price = price
        self.close_price = price
        self.volume += trade.quantity
        self.notional += price * trade.quantity
        self.trade_count += 1
        self.open_interest = trade.open_interest
        self.sequence = trade.sequence
        self.time_ns = trade.time_ns

    def fold(self, later: "Bar") -> None:
        """Take all trades of a bar that follows."""
        self.high_price = max(self.high_price, later.high_price)
        self.low_price = min(self.low_price, later.low_price)
        self.close_price = later.close_price
        self.volume += later.volume
        self.notional += later.notional
        self.trade_count += later.trade_count
        self.open_interest = later.open_interest
        self.sequence = later.sequence
        self.time_ns = later.time_ns

    def copy(self) -> "Bar":
        """The same once more."""
        return Bar.restore(self.words())

    def words(self) -> tuple[int, ...]:
        """All that is in it."""
        return (*self.row(), self.first_sequence, self.notional)

    @classmethod
    def restore(cls, words: Sequence[int]) -> "Bar":
        """From what `words` gave."""
        bar = cls.__new__(cls)
        bar.open_price, bar.high_price, bar.low_price, bar.close_price, *rest = words
        bar.volume, bar.trade_count, bar.open_interest, bar.sequence, bar.time_ns, *rest = rest
        bar.first_sequence, bar.notional = rest
        return bar

    def row(self) -> tuple[int, ...]:
        """What is kept of it when it is done."""
        return (
            self.open_price,
            self.high_price,
            self.low_price,
            self.close_price,
            min(self.volume, NUMBER_MAX),
            self.trade_count,
            self.open_interest,
            self.sequence,
            self.time_ns,
        )


Row = tuple[int, ...]
"""ROW_WORDS integers, see there."""


class History:
    """The trades of one instrument, from its first one on. Lengths are named by their index in
    CANDLE_INTERVALS_S."""

    __slots__ = ("life", "longer", "rows", "second", "second_end_ns")

    def __init__(self, second: Bar) -> None:
        self.rows = tuple(array("q") for _ in INTERVALS_NS)
        """Per length, what is done, oldest first."""
        self.longer: list[Bar | None] = [None] * len(INTERVALS_NS)
        """Per length above a second, what is open but for the open second; None: only that."""
        self.life: Bar | None = None
        """Everything but for the open second; None: only that."""
        self.begin(second)

    def begin(self, second: Bar) -> None:
        """Another second, after those before are folded."""
        self.second = second
        self.second_end_ns = second.time_ns - second.time_ns % _SECOND_NS + _SECOND_NS

    def roll(self, trade: Trade) -> int:
        """The open second is done, and this is the first trade of another one. Returns by how much
        the number of rows has changed."""
        second = self.second
        change = self._put_away(0, second)
        for index in range(1, len(INTERVALS_NS)):
            bar = self.longer[index]
            if bar is not None and _is_same(index, bar, second):
                bar.fold(second)
                continue
            if bar is not None:
                change += self._put_away(index, bar)
            self.longer[index] = second.copy()
        if self.life is None:
            self.life = second.copy()
        else:
            self.life.fold(second)
        self.begin(Bar(trade))
        return change

    def _put_away(self, index: int, bar: Bar) -> int:
        rows, count_max = self.rows[index], KEPT_COUNTS[index]
        rows.extend(bar.row())
        if len(rows) <= (count_max + count_max // _SLACK) * ROW_WORDS:
            return 1
        del rows[: count_max // _SLACK * ROW_WORDS]
        return 1 - count_max // _SLACK

    def forget(self, index: int) -> int:
        """Give up all rows of a length; returns how many there were."""
        count = self.row_count(index)
        del self.rows[index][:]
        return count

    # Reading.

    def row_count(self, index: int) -> int:
        """Rows that are kept of what is done."""
        return len(self.rows[index]) // ROW_WORDS

    def whole(self) -> Bar:
        """All trades since the listing."""
        return _together(self.life, self.second)

    def open_bars(self, index: int) -> list[Bar]:
        """What is not put away yet, oldest first: one, or two when the first is done."""
        bar = self.longer[index]
        if bar is None:
            return [self.second]
        if _is_same(index, bar, self.second):
            return [_together(bar, self.second)]
        return [bar, self.second]

    def newest(self, index: int) -> Row:
        """The last candle."""
        return self.open_bars(index)[-1].row()

    def after(self, index: int, sequence: int, count_max: int) -> list[Row]:
        """The candles that have changed since a sequence, or that a later one has closed since;
        oldest first, the newest `count_max` of them."""
        found: list[Row] = []
        is_new = False  # whether the oldest one that was found has begun since
        for bar in reversed(self.open_bars(index)):
            is_changed = bar.sequence > sequence
            if is_changed or is_new:
                found.append(bar.row())
            if not is_changed:
                return found[:count_max][::-1]
            is_new = bar.first_sequence > sequence
        for place in reversed(range(self.row_count(index))):
            if not is_new or len(found) >= count_max:
                break
            row = self._row(index, place)
            found.append(row)
            # When a row began is not kept; one more than needed does no harm.
            is_new = row[-2] > sequence
        return found[:count_max][::-1]

    def page(self, index: int, from_time_ns: int, count: int) -> list[Row]:
        """The candles that end after a time, oldest first, `count` of them at most."""
        # The first is that in which the time lies; its trades are at or after its start.
        start_ns = from_time_ns - from_time_ns % INTERVALS_NS[index]
        rows, row_count = self.rows[index], self.row_count(index)
        place = bisect_left(
            range(row_count), start_ns, key=lambda one: rows[one * ROW_WORDS + _TIME_WORD]
        )
        found = [self._row(index, one) for one in range(place, min(row_count, place + count))]
        found += [bar.row() for bar in self.open_bars(index) if bar.time_ns >= start_ns]
        return found[:count]

    def _row(self, index: int, place: int) -> Row:
        return tuple(self.rows[index][place * ROW_WORDS : (place + 1) * ROW_WORDS])


class CandleStore:
    """The histories of all instruments that have traded, and their common bound."""

    __slots__ = ("_rows_max", "histories", "row_count")

    def __init__(self, rows_max: int = ROWS_MAX) -> None:
        self.histories: dict[int, History] = {}
        """By instrument id, in order of the seconds in which they traded last."""
        self.row_count = 0
        self._rows_max = rows_max

    def add(self, trade: Trade) -> None:
        """Take a trade; those of an instrument come in order of time."""
        history = self.histories.get(trade.instrument_id)
        if history is not None and trade.time_ns < history.second_end_ns:
            history.second.add(trade)
        else:
            self._roll(trade, history)

    def _roll(self, trade: Trade, history: History | None) -> None:
        instrument_id = trade.instrument_id
        if history is None:
            self.histories[instrument_id] = History(Bar(trade))
            return
        del self.histories[instrument_id]
        self.histories[instrument_id] = history
        self.row_count += history.roll(trade)
        if self.row_count > self._rows_max:
            self._shrink()

    def _shrink(self) -> None:
        """Give up rows, and some more than need be, so that this is seldom."""
        wanted = self._rows_max - self._rows_max // _SLACK
        for index in range(len(INTERVALS_NS)):
            for history in self.histories.values():
                if self.row_count <= wanted:
                    return
                self.row_count -= history.forget(index)


def _is_same(index: int, bar: Bar, other: Bar) -> bool:
    """Whether two bars are of one interval."""
    return bar.time_ns // INTERVALS_NS[index] == other.time_ns // INTERVALS_NS[index]


def _together(bar: Bar | None, later: Bar) -> Bar:
    if bar is None:
        return later
    both = bar.copy()
    both.fold(later)
    return both
