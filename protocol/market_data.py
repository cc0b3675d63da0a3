"""Public market data: what everybody may see of events, instruments, books and trades.

No message names a participant, account or session. What happens (`MarketDataMessage`) is made and
numbered per channel by the core; all but the two definitions hold integers only and are written by
the compiled codec, like reports. What there is now (`SnapshotMessage`, `DerivedMessage`) is made by
the feed out of them. Packets, in which they travel, are in `protocol.packets`. Page:
spec/market_data.md.
"""

from typing import Annotated, Final

from msgspec import Meta

from protocol.admin import Currency, TickTable
from protocol.base import I62, U8, U16, U32, U62, Name, Text
from protocol.order_entry import Report

__all__ = [
    "CANDLE_INTERVALS_S",
    "DEPTH_MAX",
    "SNAPSHOT_ROWS_MAX",
    "BestPrices",
    "Candle",
    "DerivedMessage",
    "EventDefinition",
    "InstrumentDefinition",
    "InstrumentStatus",
    "LevelRow",
    "Levels",
    "MarketDataMessage",
    "OrderAdded",
    "OrderDeleted",
    "OrderExecuted",
    "OrderReduced",
    "OrderReplaced",
    "SnapshotBegin",
    "SnapshotEnd",
    "SnapshotInstrument",
    "SnapshotMessage",
    "SnapshotOrders",
    "SnapshotRow",
    "Statistics",
    "Trade",
]

SNAPSHOT_ROWS_MAX: Final = 40
"""Orders of one `SnapshotOrders`: with the longest numbers it fits a packet."""
DEPTH_MAX: Final = 50
"""Levels of a side in `Levels`: more than a screen shows; who wants all subscribes to orders."""
CANDLE_INTERVALS_S: Final = (1, 60, 3_600, 86_400)
"""Lengths of candles, in seconds; each begins at a multiple of its length since 1970."""

SnapshotRow = tuple[U62, I62, U62]
"""order_id, price, open quantity."""
LevelRow = tuple[I62, U62, U62]
"""price, quantity, order_count."""
_LevelRows = Annotated[list[LevelRow], Meta(max_length=DEPTH_MAX)]


class EventDefinition(Report, frozen=True, tag=110):
    """An event was listed; its instruments follow on the same channel."""

    sequence: U62
    time_ns: U62
    event_id: U62
    symbol: Name
    kind: U62
    title: Text
    currency: Currency
    channel: U16


class InstrumentDefinition(Report, frozen=True, tag=111):
    """An instrument was listed; its book is empty."""

    sequence: U62
    time_ns: U62
    instrument_id: U62
    event_id: U62
    symbol: Name
    title: Text
    floor_price: I62
    cap_price: I62
    tick_table: TickTable
    quantity_step: U62
    phase: U62


class InstrumentStatus(Report, frozen=True, tag=112):
    """The phase of an instrument changed; its orders stay."""

    sequence: U62
    time_ns: U62
    instrument_id: U62
    phase: U62


class OrderAdded(Report, frozen=True, tag=113):
    """An order rests, behind all others of its price."""

    sequence: U62
    time_ns: U62
    instrument_id: U62
    order_id: U62
    side: U62
    price: I62
    quantity: U62


class OrderExecuted(Report, frozen=True, tag=114):
    """A trade took `quantity` from a resting order; `leaves_quantity` stays, 0: it is gone."""

    sequence: U62
    time_ns: U62
    instrument_id: U62
    order_id: U62
    trade_id: U62
    quantity: U62
    leaves_quantity: U62


class OrderReduced(Report, frozen=True, tag=115):
    """A resting order was made smaller, to `quantity`; it keeps its place."""

    sequence: U62
    time_ns: U62
    instrument_id: U62
    order_id: U62
    quantity: U62


class OrderDeleted(Report, frozen=True, tag=116):
    """A resting order is gone without a trade."""

    sequence: U62
    time_ns: U62
    instrument_id: U62
    order_id: U62


class OrderReplaced(Report, frozen=True, tag=117):
    """A resting order has a new price or a greater quantity, behind all others of its price."""

    sequence: U62
    time_ns: U62
    instrument_id: U62
    order_id: U62
    price: I62
    quantity: U62


class Trade(Report, frozen=True, tag=118):
    """Two orders traded. Every trade has one; the resting orders' shares are `OrderExecuted`.

    `open_interest` is what all long positions in the instrument add up to after it.
    """

    sequence: U62
    time_ns: U62
    instrument_id: U62
    trade_id: U62
    price: I62
    quantity: U62
    aggressor_side: U62
    open_interest: U62


MarketDataMessage = (
    EventDefinition
    | InstrumentDefinition
    | InstrumentStatus
    | OrderAdded
    | OrderExecuted
    | OrderReduced
    | OrderDeleted
    | OrderReplaced
    | Trade
)


class SnapshotBegin(Report, frozen=True, tag=119):
    """A snapshot of a channel begins: all that was listed below `next_number` is in it."""

    sequence: U62
    time_ns: U62
    snapshot: U62
    next_number: U62
    with_orders: U8
    event_count: U32
    instrument_count: U32


class SnapshotInstrument(Report, frozen=True, tag=120):
    """An instrument as it is before the message `next_number` of its channel."""

    sequence: U62
    time_ns: U62
    instrument_id: U62
    next_number: U62
    phase: U62
    buy_count: U62
    sell_count: U62
    last_trade_id: U62
    last_price: I62
    last_quantity: U62
    open_interest: U62


class SnapshotOrders(Report, frozen=True, tag=121):
    """Some of an instrument's resting orders of one side, in priority."""

    sequence: U62
    time_ns: U62
    instrument_id: U62
    side: U62
    rows: Annotated[list[SnapshotRow], Meta(max_length=SNAPSHOT_ROWS_MAX)]


class SnapshotEnd(Report, frozen=True, tag=122):
    """The snapshot that began as `snapshot` is whole."""

    sequence: U62
    time_ns: U62
    snapshot: U62
    next_number: U62
    order_count: U62


class BestPrices(Report, frozen=True, tag=123):
    """The best level of each side; quantity 0: the side is empty, and the price is 0."""

    sequence: U62
    time_ns: U62
    channel: U16
    instrument_id: U62
    next_number: U62
    bid_price: I62
    bid_quantity: U62
    ask_price: I62
    ask_quantity: U62


class Levels(Report, frozen=True, tag=124):
    """The best levels of each side, at most `depth`, best first."""

    sequence: U62
    time_ns: U62
    channel: U16
    instrument_id: U62
    next_number: U62
    depth: U8
    bids: _LevelRows
    asks: _LevelRows


class Statistics(Report, frozen=True, tag=125):
    """What was traded in an instrument, since its listing and on the UTC day of `time_ns`."""

    sequence: U62
    time_ns: U62
    channel: U16
    instrument_id: U62
    next_number: U62
    since_time_ns: U62
    open_price: I62
    high_price: I62
    low_price: I62
    last_price: I62
    last_quantity: U62
    volume: U62
    trade_count: U62
    open_interest: U62
    notional: I62
    day_open_price: I62
    day_high_price: I62
    day_low_price: I62
    day_volume: U62


class Candle(Report, frozen=True, tag=126):
    """The trades of an instrument in one interval of time."""

    sequence: U62
    time_ns: U62
    channel: U16
    instrument_id: U62
    next_number: U62
    interval_s: U32
    start_time_ns: U62
    open_price: I62
    high_price: I62
    low_price: I62
    close_price: I62
    volume: U62
    trade_count: U62
    open_interest: U62
    is_closed: U8


SnapshotMessage = (
    SnapshotBegin
    | EventDefinition
    | InstrumentDefinition
    | SnapshotInstrument
    | SnapshotOrders
    | SnapshotEnd
)
DerivedMessage = BestPrices | Levels | Statistics | Candle
