"""Public market data: what everybody may see of events, instruments, books and trades.

No message names a participant, account or session. All but the two definitions hold integers only
and are written by the compiled codec, like reports; the core numbers them per channel. Packets, in
which they travel, are in `protocol.packets`. Page: spec/market_data.md.
"""

from protocol.admin import Currency, TickTable
from protocol.base import I62, U16, U62, Name, Text
from protocol.order_entry import Report

__all__ = [
    "EventDefinition",
    "InstrumentDefinition",
    "InstrumentStatus",
    "MarketDataMessage",
    "OrderAdded",
    "OrderDeleted",
    "OrderExecuted",
    "OrderReduced",
    "OrderReplaced",
    "Trade",
]


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
    """Two orders traded. Every trade has one; the resting orders' shares are `OrderExecuted`."""

    sequence: U62
    time_ns: U62
    instrument_id: U62
    trade_id: U62
    price: I62
    quantity: U62
    aggressor_side: U62


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
