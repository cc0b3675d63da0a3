"""Statistics of an instrument, made from its history of trades when somebody asks.

Everything follows from the bars that `exchange.feed.candles` keeps anyway: that of the instrument's
whole life, and that of the day of its last trade. Page: protocol/spec/market_data.md.
"""

from typing import Final

from exchange.feed.candles import History
from exchange.feed.market import InstrumentState
from protocol.base import NUMBER_MAX
from protocol.market_data import CANDLE_INTERVALS_S, Statistics

__all__ = ["statistics_of"]

_DAY: Final = CANDLE_INTERVALS_S.index(86_400)


def statistics_of(
    instrument: InstrumentState, next_number: int, history: History | None
) -> Statistics:
    """Everything since the listing, and on the day of the last trade; zeros before the first."""
    definition, last_trade = instrument.definition, instrument.book.last_trade
    place = (instrument.channel.channel, definition.instrument_id, next_number)
    if history is None or last_trade is None:
        since_ns = definition.time_ns
        return Statistics(definition.sequence, definition.time_ns, *place, since_ns, *(0,) * 13)
    whole, day = history.whole(), history.open_bars(_DAY)[-1]
    return Statistics(
        whole.sequence,
        whole.time_ns,
        *place,
        since_time_ns=definition.time_ns,
        open_price=whole.open_price,
        high_price=whole.high_price,
        low_price=whole.low_price,
        last_price=whole.close_price,
        last_quantity=last_trade.quantity,
        volume=min(whole.volume, NUMBER_MAX),
        trade_count=whole.trade_count,
        open_interest=whole.open_interest,
        notional=max(-NUMBER_MAX, min(whole.notional, NUMBER_MAX)),
        day_open_price=day.open_price,
        day_high_price=day.high_price,
        day_low_price=day.low_price,
        day_volume=min(day.volume, NUMBER_MAX),
    )
