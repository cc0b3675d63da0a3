"""The market as the participants' reports tell it: price levels, last trades, volume.

A stand-in for market data until there is a feed: every report of every participant of the demo
goes through one `Tape`. Orders are known by the venue's order id, which is unique over sessions.
The reports of different sessions arrive in any order, so a level can be wrong for a moment.
"""

from dataclasses import dataclass, field
from typing import Final

from protocol.codes import Liquidity, Side, TimeInForce
from protocol.order_entry import (
    OrderAccepted,
    OrderCanceled,
    OrderExpired,
    OrderFilled,
    OrderReplaced,
)
from protocol.wire import VenueReport

__all__ = ["Book", "Tape"]

_RESTING: Final = (TimeInForce.GTC, TimeInForce.GTD)


@dataclass(slots=True)
class Book:
    """One instrument: price to quantity on both sides, and what was traded."""

    bids: dict[int, int] = field(default_factory=dict)
    asks: dict[int, int] = field(default_factory=dict)
    last_price: int = 0
    trade_count: int = 0
    volume: int = 0

    def best_bid(self) -> tuple[int, int]:
        """Price and quantity, zeros when nobody buys."""
        price = max(self.bids, default=0)
        return price, self.bids.get(price, 0)

    def best_ask(self) -> tuple[int, int]:
        """Price and quantity, zeros when nobody sells."""
        price = min(self.asks, default=0)
        return price, self.asks.get(price, 0)


@dataclass(slots=True)
class OpenOrder:
    """An order that rests, or is about to."""

    levels: dict[int, int]
    price: int
    leaves: int


class Tape:
    """Takes reports, keeps `books` by instrument id (from 1)."""

    def __init__(self, instrument_count: int) -> None:
        self.books = [Book() for _ in range(instrument_count + 1)]
        self.sequence = 0
        """The highest sequence that any report named."""
        self.trade_count = 0
        self._orders: dict[int, OpenOrder] = {}

    def on_report(self, report: VenueReport) -> None:
        """Take in one report of any session."""
        self.sequence = max(self.sequence, report.sequence)
        if isinstance(report, OrderFilled):
            self._filled(report)
        elif isinstance(report, OrderReplaced):
            order = self._orders.get(report.order_id)
            if order is not None:
                _move(order, report.price, report.leaves_quantity)
        elif isinstance(report, OrderAccepted):
            if report.time_in_force in _RESTING:
                self._accepted(report)
        elif isinstance(report, OrderCanceled | OrderExpired):
            order = self._orders.pop(report.order_id, None)
            if order is not None:
                _move(order, order.price, 0)

    def _accepted(self, report: OrderAccepted) -> None:
        book = self.books[report.instrument_id]
        levels = book.bids if report.side == Side.BUY else book.asks
        order = OpenOrder(levels, report.price, 0)
        self._orders[report.order_id] = order
        _move(order, report.price, report.quantity)

    def _filled(self, report: OrderFilled) -> None:
        if report.liquidity == Liquidity.REMOVED:
            book = self.books[report.instrument_id]
            book.last_price = report.price
            book.trade_count += 1
            book.volume += report.quantity
            self.trade_count += 1
        order = self._orders.get(report.order_id)
        if order is not None:
            _move(order, order.price, report.leaves_quantity)
            if not report.leaves_quantity:
                del self._orders[report.order_id]


def _move(order: OpenOrder, price: int, leaves: int) -> None:
    """Take an order off its level and put what is left of it on one."""
    levels = order.levels
    remaining = levels.get(order.price, 0) - order.leaves
    if remaining > 0:
        levels[order.price] = remaining
    else:
        levels.pop(order.price, None)
    if leaves:
        levels[price] = levels.get(price, 0) + leaves
    order.price, order.leaves = price, leaves
