"""Messages that follow from books and trades, made when somebody asks and kept until they change.

What was made last is kept until nobody wants its kind any more. It is looked at again only when the
instrument has changed since, and made again only when its content has: so who subscribes to best
prices hears nothing of a change deep in the book. Page: protocol/spec/market_data.md.
"""

from typing import Final

from exchange.feed.candles import INTERVALS_NS, Row
from exchange.feed.market import InstrumentState, Market
from exchange.feed.statistics import statistics_of
from protocol.codes import SubscriptionForm
from protocol.market_data import CANDLE_INTERVALS_S, DEPTH_MAX, BestPrices, Candle, LevelRow, Levels
from protocol.wire import encode

__all__ = ["CANDLES_AFTER_MAX", "Derived", "Made"]

CANDLES_AFTER_MAX: Final = 1_000
"""Candles that one subscriber is told of one instrument at once; older ones are asked for."""

_Content = tuple[list[LevelRow], list[LevelRow]]
_NOTHING: Final = (0, 0)


class Made:
    """A message that was made. Who has seen everything up to a sequence below `sequence` has not
    seen it."""

    __slots__ = ("checked_sequence", "content", "payload", "sequence")

    def __init__(self, sequence: int, content: object, payload: bytes) -> None:
        self.sequence = self.checked_sequence = sequence
        self.content = content
        self.payload = payload


class Derived:
    """See the module. Whatever is asked for must be listed."""

    def __init__(self, market: Market) -> None:
        self._market = market
        self._made: dict[tuple[int, int], dict[int, Made]] = {}
        """By form and depth or interval, then by instrument."""

    def forget(self, form: SubscriptionForm, parameter: int) -> None:
        """Nobody wants this form with this depth or interval any more."""
        self._made.pop((form, parameter), None)

    def best_prices(self, instrument_id: int) -> Made:
        """The `BestPrices` of now."""
        instrument = self._market.instruments[instrument_id]
        kept = self._kept(SubscriptionForm.BEST_PRICES)
        made = kept.get(instrument_id)
        if made is None or made.checked_sequence < self._market.book_changes.of(instrument_id):
            bid, ask = instrument.book.best_bid, instrument.book.best_ask
            content = ((bid or _NOTHING)[:2], (ask or _NOTHING)[:2])
            if made is None or made.content != content:
                message = BestPrices(*self._head(instrument), *content[0], *content[1])
                made = kept[instrument_id] = self._make(content, encode(message))
            made.checked_sequence = self._market.sequence
        return made

    def levels(self, instrument_id: int, depth: int) -> Made:
        """The `Levels` of now, `depth` of each side at most."""
        assert 1 <= depth <= DEPTH_MAX, f"{depth} levels"
        instrument = self._market.instruments[instrument_id]
        kept = self._kept(SubscriptionForm.LEVELS, depth)
        made = kept.get(instrument_id)
        if made is None or made.checked_sequence < self._market.book_changes.of(instrument_id):
            book = instrument.book
            content: _Content = (list(book.bids(depth)), list(book.asks(depth)))
            if made is None or made.content != content:
                message = Levels(*self._head(instrument), depth, *content)
                made = kept[instrument_id] = self._make(content, encode(message))
            made.checked_sequence = self._market.sequence
        return made

    def statistics(self, instrument_id: int) -> Made:
        """The `Statistics` of now."""
        instrument = self._market.instruments[instrument_id]
        kept = self._kept(SubscriptionForm.STATISTICS)
        made = kept.get(instrument_id)
        if made is None or made.checked_sequence < self._market.trade_changes.of(instrument_id):
            channel = instrument.channel
            history = self._market.candles.histories.get(instrument_id)
            message = statistics_of(instrument, channel.next_number, history)
            made = kept[instrument_id] = self._make(None, encode(message))
        return made

    def candle(self, instrument_id: int, interval_s: int) -> Made | None:
        """The last `Candle`; None before the first trade."""
        history = self._market.candles.histories.get(instrument_id)
        if history is None:
            return None
        instrument = self._market.instruments[instrument_id]
        kept = self._kept(SubscriptionForm.CANDLES, interval_s)
        made = kept.get(instrument_id)
        row = history.newest(CANDLE_INTERVALS_S.index(interval_s))
        is_closed = self._is_closed(interval_s, row, row)  # Time alone can close it.
        changed = self._market.trade_changes.of(instrument_id)
        if made is None or made.checked_sequence < changed or made.content != is_closed:
            payload = self._candle(instrument, interval_s, row, row)
            made = kept[instrument_id] = self._make(is_closed, payload)
        return made

    def candles_after(self, instrument_id: int, interval_s: int, sequence: int) -> list[bytes]:
        """Every `Candle` that has changed since a sequence, or that a later one has closed since;
        oldest first, the newest CANDLES_AFTER_MAX of them."""
        history = self._market.candles.histories.get(instrument_id)
        if history is None:
            return []
        index = CANDLE_INTERVALS_S.index(interval_s)
        rows = history.after(index, sequence, CANDLES_AFTER_MAX)
        instrument = self._market.instruments[instrument_id]
        newest = history.newest(index)
        return [self._candle(instrument, interval_s, row, newest) for row in rows]

    def candles(
        self, instrument_id: int, interval_s: int, from_time_ns: int, count: int
    ) -> list[bytes]:
        """The answer to a CandlesRequest: those that end after a time, oldest first."""
        history = self._market.candles.histories.get(instrument_id)
        if history is None:
            return []
        index = CANDLE_INTERVALS_S.index(interval_s)
        instrument = self._market.instruments[instrument_id]
        newest = history.newest(index)
        return [
            self._candle(instrument, interval_s, row, newest)
            for row in history.page(index, from_time_ns, count)
        ]

    # Inside.

    def _head(self, instrument: InstrumentState) -> tuple[int, int, int, int, int]:
        """The fields that every message begins with, as of now."""
        market, channel = self._market, instrument.channel
        instrument_id = instrument.definition.instrument_id
        return (
            market.sequence,
            market.time_ns,
            channel.channel,
            instrument_id,
            channel.next_number,
        )

    def _kept(self, form: SubscriptionForm, parameter: int = 0) -> dict[int, Made]:
        return self._made.setdefault((form, parameter), {})

    def _make(self, content: object, payload: bytes) -> Made:
        return Made(self._market.sequence, content, payload)

    def _candle(self, instrument: InstrumentState, interval_s: int, row: Row, newest: Row) -> bytes:
        """A row as a message; `newest` is the instrument's last one."""
        interval_ns = INTERVALS_NS[CANDLE_INTERVALS_S.index(interval_s)]
        *prices, volume, trade_count, open_interest, sequence, time_ns = row
        open_price, high_price, low_price, close_price = prices
        start_time_ns = time_ns - time_ns % interval_ns
        message = Candle(
            sequence,
            time_ns,
            instrument.channel.channel,
            instrument.definition.instrument_id,
            instrument.channel.next_number,
            interval_s,
            start_time_ns,
            open_price,
            high_price,
            low_price,
            close_price,
            volume,
            trade_count,
            open_interest,
            is_closed=int(self._is_closed(interval_s, row, newest)),
        )
        return encode(message)

    def _is_closed(self, interval_s: int, row: Row, newest: Row) -> bool:
        """Whether no trade can be added: there is a later one, or time is past the end."""
        interval_ns = INTERVALS_NS[CANDLE_INTERVALS_S.index(interval_s)]
        time_ns = row[-1]
        return (
            max(self._market.time_ns, newest[-1]) >= time_ns - time_ns % interval_ns + interval_ns
        )
