"""A venue's events for tests of the feed: random commands as records, and the truth kept plainly.

The truth is lists: of the messages with their numbers, of the resting orders in order of entry, of
the trades. Whatever the feed says must follow from them by a few obvious lines.
"""

import random
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Final

from msgspec import Struct

from journal import EventRecord
from journal.event_format import RecordHeader
from protocol.market_data import (
    EventDefinition,
    InstrumentDefinition,
    InstrumentStatus,
    MarketDataMessage,
    OrderAdded,
    OrderDeleted,
    OrderExecuted,
    OrderReduced,
    OrderReplaced,
    Trade,
)
from protocol.records import EVENT_HEAD, MARKET_DATA, REFERENCE, REPORT, ReferenceMessage
from protocol.wire import encode

__all__ = ["EPOCH", "START_NS", "Resting", "Truth"]

EPOCH: Final = 5 << 20
START_NS: Final = 1_699_999_999_000_000_000
SECOND_NS: Final = 1_000_000_000
RULES: Final = 3
OPEN: Final = 1
HALTED: Final = 2
BUY: Final = 1


@dataclass
class Resting:
    """An order that rests."""

    order_id: int
    instrument_id: int
    side: int
    price: int
    quantity: int


@dataclass
class Truth:
    """Everything that was said, and what it adds up to. `say` takes the messages of one command,
    `record` closes a batch."""

    seed: int = 0
    sequence: int = 0
    time_ns: int = START_NS
    numbers: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    """By channel, the last number; 0 for the records of who is who."""
    channels: dict[int, int] = field(default_factory=dict)
    """By instrument."""
    phases: dict[int, int] = field(default_factory=dict)
    orders: list[Resting] = field(default_factory=list)
    trades: list[Trade] = field(default_factory=list)
    said: list[tuple[int, int, MarketDataMessage]] = field(default_factory=list)
    """(channel, number, message), all of them."""
    _events: list[bytes] = field(default_factory=list)
    _first_sequence: int = 1
    _order_id: int = 0
    _interest: dict[int, int] = field(default_factory=lambda: defaultdict(int))

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)

    # Records.

    def begin(self, time_ns: int | None = None) -> tuple[int, int]:
        """The next command's sequence and time."""
        self.sequence += 1
        self.time_ns = max(self.time_ns, time_ns or 0)
        return self.sequence, self.time_ns

    def say(self, channel: int, *messages: MarketDataMessage) -> None:
        """Public messages of the command that has begun."""
        for message in messages:
            self.numbers[channel] += 1
            self.said.append((channel, self.numbers[channel], message))
            self._put(MARKET_DATA, channel, self.numbers[channel], message)

    def tell(self, message: ReferenceMessage) -> None:
        """A record of who is who, of the command that has begun."""
        self.numbers[0] += 1
        self._put(REFERENCE, 0, self.numbers[0], message)

    def report(self, payload: bytes) -> None:
        """A private report, of the command that has begun."""
        head = (REPORT, 0, 0, 1, 1, 1, self.sequence, self.time_ns)
        self._events.append(EVENT_HEAD.pack(EVENT_HEAD.size + len(payload), *head) + payload)

    def _put(self, kind: int, channel: int, number: int, message: Struct) -> None:
        payload = encode(message)
        head = (kind, 0, channel, 0, 0, number, self.sequence, self.time_ns)
        self._events.append(EVENT_HEAD.pack(EVENT_HEAD.size + len(payload), *head) + payload)

    def record(self) -> EventRecord:
        """The commands since the last record, as one; an empty command if there were none."""
        if self.sequence < self._first_sequence:
            self.begin()
        count = self.sequence - self._first_sequence + 1
        events = b"".join(self._events)
        header = RecordHeader(RULES, self._first_sequence, count, len(events), 0)
        self._first_sequence = self.sequence + 1
        self._events.clear()
        return EventRecord(header, events)

    # Commands.

    def list_event(self, event_id: int, channel: int) -> None:
        head = self.begin()
        name = f"E{event_id}"
        self.say(channel, EventDefinition(*head, event_id, name, 1, "an event", "USD", channel))

    def list_instrument(self, instrument_id: int, event_id: int, channel: int) -> None:
        head = self.begin()
        self.channels[instrument_id] = channel
        self.phases[instrument_id] = OPEN
        definition = InstrumentDefinition(
            *head,
            instrument_id,
            event_id,
            symbol=f"I{instrument_id}",
            title="an instrument",
            floor_price=-10_000,
            cap_price=10_000,
            tick_table=[(-10_000, 100)],
            quantity_step=100,
            phase=OPEN,
        )
        self.say(channel, definition)

    def random_command(self, pause_ns: int = SECOND_NS // 3) -> None:
        """What a random command on a random instrument leads to, a random pause later."""
        rng = self.rng
        self.begin(self.time_ns + rng.randrange(2 * pause_ns + 1))
        instrument_id = rng.choice(list(self.channels))
        orders = [one for one in self.orders if one.instrument_id == instrument_id]
        self.report(b"nobody looks at this")
        doing = rng.choice(["add"] * 5 + ["delete", "reduce", "replace", "trade", "trade"])
        if doing == "add" or not orders:
            self.add(instrument_id)
        elif doing == "trade":
            self.trade(instrument_id)
        elif rng.randrange(40) == 0:
            self.switch(instrument_id)
        else:
            self._change(doing, rng.choice(orders))

    def add(self, instrument_id: int) -> None:
        """An order rests; with the command that has begun."""
        rng = self.rng
        self._order_id += 1
        side = rng.choice((1, 2))
        price = rng.randrange(-9, 0) * 100 if side == BUY else rng.randrange(0, 9) * 100
        order = Resting(self._order_id, instrument_id, side, price, rng.randrange(1, 90) * 100)
        self.orders.append(order)
        what = (instrument_id, order.order_id, side, price, order.quantity)
        self.say(self.channels[instrument_id], OrderAdded(self.sequence, self.time_ns, *what))

    def trade(self, instrument_id: int) -> None:
        """Up to three of the best orders of a side trade; with the command that has begun."""
        side = self.rng.choice((1, 2))
        taken = self.side(instrument_id, side)[: self.rng.randrange(1, 4)]
        for order in taken:
            traded = self.rng.randrange(1, order.quantity // 100 + 1) * 100
            order.quantity -= traded
            self._interest[instrument_id] += self.rng.choice((-1, 0, 1)) * traded
            self._interest[instrument_id] = abs(self._interest[instrument_id])
            head, trade_id = (self.sequence, self.time_ns, instrument_id), len(self.trades) + 1
            executed = OrderExecuted(*head, order.order_id, trade_id, traded, order.quantity)
            what = (trade_id, order.price, traded, 3 - side, self._interest[instrument_id])
            self.trades.append(Trade(*head, *what))
            self.say(self.channels[instrument_id], executed, self.trades[-1])
        self.orders = [one for one in self.orders if one.quantity]

    def switch(self, instrument_id: int) -> None:
        """Halt or resume; with the command that has begun."""
        phase = HALTED if self.phases[instrument_id] == OPEN else OPEN
        self.phases[instrument_id] = phase
        status = InstrumentStatus(self.sequence, self.time_ns, instrument_id, phase)
        self.say(self.channels[instrument_id], status)

    def _change(self, doing: str, order: Resting) -> None:
        head = (self.sequence, self.time_ns, order.instrument_id, order.order_id)
        channel = self.channels[order.instrument_id]
        if doing == "reduce" and order.quantity > 100:
            order.quantity -= 100
            self.say(channel, OrderReduced(*head, order.quantity))
            return
        self.orders.remove(order)
        if doing != "replace":
            self.say(channel, OrderDeleted(*head))
            return
        order.quantity += 100
        self.orders.append(order)
        self.say(channel, OrderReplaced(*head, order.price, order.quantity))

    # What it adds up to.

    def side(self, instrument_id: int, side: int) -> list[Resting]:
        """The orders of a side, best price first and in priority."""
        sign = -1 if side == BUY else 1
        orders = [
            one for one in self.orders if (one.instrument_id, one.side) == (instrument_id, side)
        ]
        return sorted(orders, key=lambda one: sign * one.price)

    def levels(self, instrument_id: int, side: int, depth: int) -> list[tuple[int, int, int]]:
        """(price, quantity, orders) of the best prices of a side."""
        found: dict[int, list[int]] = {}
        for order in self.side(instrument_id, side):
            found.setdefault(order.price, []).append(order.quantity)
        return [(price, sum(some), len(some)) for price, some in found.items()][:depth]

    def books(
        self,
    ) -> dict[int, tuple[int, list[tuple[int, int, int]], list[tuple[int, int, int]]]]:
        """By instrument: phase, buys and sells as (order id, price, quantity)."""
        return {
            one: (
                phase,
                [(o.order_id, o.price, o.quantity) for o in self.side(one, 1)],
                [(o.order_id, o.price, o.quantity) for o in self.side(one, 2)],
            )
            for one, phase in self.phases.items()
        }
