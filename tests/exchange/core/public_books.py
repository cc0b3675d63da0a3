"""Books kept from the market data alone: no report is read, and the venue is not asked.

Stricter than a consumer, who must take what comes: it asserts that every message is possible.
Numbers have no gap, executed orders are the best of their side, no book is ever crossed. It sees
the messages of all channels in the order of the core.
"""

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field

from protocol.codes import Phase, Side
from protocol.market_data import (
    EventDefinition,
    InstrumentDefinition,
    InstrumentStatus,
    OrderAdded,
    OrderDeleted,
    OrderExecuted,
    OrderReduced,
    OrderReplaced,
    Trade,
)
from protocol.records import MARKET_DATA
from tests.model.state import EventOut

__all__ = ["PublicBooks", "Shown"]


@dataclass
class Shown:
    """A resting order as everybody sees it; `place` counts the arrivals at the end of a price."""

    order_id: int
    instrument_id: int
    side: int
    price: int
    quantity: int
    place: int

    def rank(self) -> tuple[int, int]:
        """The least is the first to trade of its side."""
        return (-self.price if self.side == Side.BUY else self.price, self.place)


@dataclass
class PublicBooks:
    """What the market data so far adds up to."""

    numbers: dict[int, int] = field(default_factory=dict)
    """By channel, the last number."""
    channels: dict[int, int] = field(default_factory=dict)
    """By event id."""
    instruments: dict[int, InstrumentDefinition] = field(default_factory=dict)
    phases: dict[int, int] = field(default_factory=dict)
    orders: dict[int, Shown] = field(default_factory=dict)
    place_count: int = 0
    trade_count: int = 0
    open_interests: dict[int, int] = field(default_factory=dict)
    """By instrument id, from its first trade on."""
    executed: OrderExecuted | None = None
    """Its trade is the next message."""
    executed_order: Shown | None = None

    def read_all(self, events: Iterable[EventOut]) -> None:
        """Take in the events of whole commands; private ones are not looked at."""
        for event in events:
            if event.kind == MARKET_DATA:
                self.read(event)
        assert self.executed is None, "an execution has its trade in the same command"

    def read(self, event: EventOut) -> None:
        """Take in one public event."""
        message = event.message
        assert (event.session, event.connection) == (0, 0), f"{event} is somebody's"
        assert event.number == self.numbers.get(event.channel, 0) + 1, f"{event}: a gap"
        self.numbers[event.channel] = event.number
        head = (getattr(message, "sequence", 0), getattr(message, "time_ns", 0))
        assert head == (event.sequence, event.time_ns), f"{event} is of another command"
        assert (self.executed is None) == (not isinstance(message, Trade)), f"{event}: a stray"
        match message:
            case EventDefinition():
                assert message.event_id == len(self.channels) + 1, f"{event}: ids are dense"
                assert message.channel == event.channel, f"{event} is in another channel"
                self.channels[message.event_id] = message.channel
                return
            case InstrumentDefinition():
                assert message.instrument_id == len(self.instruments) + 1, f"{event}: ids"
                assert self.channels[message.event_id] == event.channel, f"{event}: channel"
                assert message.phase == Phase.OPEN, f"{event}: a new instrument is open"
                self.instruments[message.instrument_id] = message
                self.phases[message.instrument_id] = message.phase
                return
        self._read_change(event)

    def _read_change(self, event: EventOut) -> None:
        message = event.message
        assert isinstance(
            message,
            InstrumentStatus
            | OrderAdded
            | OrderExecuted
            | OrderReduced
            | OrderDeleted
            | OrderReplaced
            | Trade,
        ), f"{event} is nothing public"
        definition = self.instruments[message.instrument_id]
        assert self.channels[definition.event_id] == event.channel, f"{event}: channel"
        match message:
            case InstrumentStatus():
                assert message.phase != self.phases[message.instrument_id], f"{event}: no change"
                self.phases[message.instrument_id] = message.phase
            case OrderAdded():
                self._add(message)
            case OrderExecuted():
                self._execute(message)
            case Trade():
                self._trade(message)
            case OrderDeleted():
                del self.orders[self._order(message).order_id]
            case OrderReduced():
                order = self._order(message)
                assert 0 < message.quantity < order.quantity, f"{event}: not smaller"
                order.quantity = message.quantity
            case OrderReplaced():
                self._replace(message)

    def _order(self, message: OrderExecuted | OrderDeleted | OrderReduced | OrderReplaced) -> Shown:
        order = self.orders[message.order_id]
        assert order.instrument_id == message.instrument_id, f"{message}: of another book"
        return order

    def _add(self, message: OrderAdded) -> None:
        assert message.order_id not in self.orders, f"{message}: it is there already"
        assert message.quantity > 0, f"{message}: nothing rests"
        self.place_count += 1
        self.orders[message.order_id] = Shown(
            message.order_id,
            message.instrument_id,
            message.side,
            message.price,
            message.quantity,
            self.place_count,
        )
        self._check_not_crossed(message.instrument_id)

    def _execute(self, message: OrderExecuted) -> None:
        order = self._order(message)
        assert order is self.side(order.instrument_id, order.side)[0], f"{message}: not the first"
        assert message.quantity > 0, f"{message}: nothing traded"
        assert message.leaves_quantity == order.quantity - message.quantity, f"{message}: leaves"
        assert message.trade_id == self.trade_count + 1, f"{message}: trade id"
        self.trade_count += 1
        self.executed, self.executed_order = message, order
        order.quantity = message.leaves_quantity
        if order.quantity == 0:
            del self.orders[order.order_id]

    def _trade(self, message: Trade) -> None:
        executed, order = self.executed, self.executed_order
        assert executed is not None, "checked before"
        assert order is not None, "set with the execution"
        before = self.open_interests.get(order.instrument_id, 0)
        assert message == Trade(
            executed.sequence,
            executed.time_ns,
            order.instrument_id,
            executed.trade_id,
            order.price,
            executed.quantity,
            3 - order.side,
            message.open_interest,
        ), f"{message} after {executed}"
        # Who they are is not public: each side opens, closes, or a part of both.
        change = message.open_interest - before
        assert -executed.quantity <= change <= executed.quantity, f"{message} after {before}"
        assert message.open_interest >= 0, f"{message}: nobody is long by less than nothing"
        self.open_interests[order.instrument_id] = message.open_interest
        self.executed = self.executed_order = None

    def _replace(self, message: OrderReplaced) -> None:
        order = self._order(message)
        is_change = message.price != order.price or message.quantity > order.quantity
        assert is_change, f"{message}: would keep its place"
        assert message.quantity > 0, f"{message}: nothing rests"
        self.place_count += 1
        order.price, order.quantity = message.price, message.quantity
        order.place = self.place_count
        self._check_not_crossed(order.instrument_id)

    def _check_not_crossed(self, instrument_id: int) -> None:
        buys, sells = self.side(instrument_id, Side.BUY), self.side(instrument_id, Side.SELL)
        if buys and sells:
            assert buys[0].price < sells[0].price, f"instrument {instrument_id} is crossed"

    def side(self, instrument_id: int, side: int) -> list[Shown]:
        """One side of a book, the first to trade first."""
        orders = [
            order
            for order in self.orders.values()
            if (order.instrument_id, order.side) == (instrument_id, side)
        ]
        return sorted(orders, key=Shown.rank)

    def digest(self) -> str:
        """The public digest, in hexadecimal."""
        words: list[int] = []
        for instrument_id in sorted(self.instruments):
            buys = self.side(instrument_id, Side.BUY)
            sells = self.side(instrument_id, Side.SELL)
            words += [instrument_id, self.phases[instrument_id], len(buys), len(sells)]
            for order in buys + sells:
                words += [order.order_id, order.price, order.quantity]
        image = struct.pack(f"<{len(words)}q", *words)
        return hashlib.blake2b(image, digest_size=32).hexdigest()
