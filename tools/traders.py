"""The participants of the demo: market makers that quote both sides, takers that trade with them.

Each has one session. A participant keeps up to `window` requests unanswered and sends the next as
answers come in, all of one turn of the event loop together. Strategies are deliberately simple: a
fair value wanders, makers quote around it, takers hit what is there.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Final, Protocol

from exchange.client import Client, ClientError, ClientState, StateChange
from protocol.codes import OrderType, Side, TimeInForce
from protocol.order_entry import (
    CancelRejected,
    NewOrder,
    OrderAccepted,
    OrderExpired,
    OrderFilled,
    OrderRejected,
    OrderReplaced,
    ReplaceOrder,
)
from protocol.wire import VenueReport
from tools.latencies import Latencies
from tools.listing import Listed, valid_prices

__all__ = ["Maker", "Market", "Session", "Taker"]

CONTRACT: Final = 100
"""A quantity counts 1/100 contract."""

EDGE: Final = 8
"""The fair value keeps this many ticks from both ends of the prices."""

Order = NewOrder | ReplaceOrder


@dataclass(slots=True)
class Market:
    """An instrument as the participants see it; `fair` is an index into `prices`."""

    instrument_id: int
    listed: Listed
    prices: list[int]
    fair: float
    drift: float = 0.0

    @classmethod
    def of(cls, instrument_id: int, listed: Listed) -> "Market":
        """An instrument at the start of trading."""
        prices = valid_prices(listed)
        fair = min(range(len(prices)), key=lambda i: abs(prices[i] - listed.fair_price))
        return cls(instrument_id, listed, prices, float(fair))

    def wander(self, source: random.Random) -> None:
        """Move the fair value a little; news pushes it now and then."""
        self.drift = self.drift * 0.95 + source.gauss(0.0, 0.02)
        top = len(self.prices) - 1 - EDGE
        self.fair = min(max(self.fair + self.drift + source.gauss(0.0, 0.12), EDGE), top)

    def price(self, index: float) -> int:
        """The valid price nearest to an index."""
        return self.prices[min(max(round(index), 0), len(self.prices) - 1)]


class Strategy(Protocol):
    """What a participant does with its session."""

    @property
    def open_count(self) -> int:
        """Orders that will expire by themselves."""

    def next_order(self) -> Order | None:
        """The next request to send, None when nothing is to be done now."""

    def on_report(self, report: VenueReport) -> None:
        """A report of the session."""


class Session:
    """Keeps a session busy: requests of a strategy, up to `window` of them unanswered."""

    def __init__(
        self, strategy: Strategy, window: int, tell: Callable[[VenueReport], None]
    ) -> None:
        self.latencies = Latencies()
        self.counts: Counter[str] = Counter()
        self._strategy = strategy
        self._window = window
        self._tell = tell
        self._client: Client | None = None
        self._sent_ns: dict[int, int] = {}
        self._is_due = False
        self._idle = asyncio.Event()
        self.failure: ClientError | None = None
        """Why the session cannot send any more."""

    def start(self, client: Client) -> None:
        """Begin to trade."""
        self._client = client
        self._pump()

    def stop(self) -> None:
        """Send nothing more."""
        self._client = None

    async def settled(self) -> None:
        """After `stop`: returns when everything is answered and what expires has expired."""
        if not self._is_idle:
            await self._idle.wait()

    @property
    def _is_idle(self) -> bool:
        return not self._sent_ns and not self._strategy.open_count

    def on_state(self, change: StateChange) -> None:
        """Give up when the connection has."""
        if change.state is ClientState.CLOSED and change.reason is not None:
            self.failure = change.reason
            self.stop()
            self._idle.set()

    def on_report(self, report: VenueReport) -> None:
        """Count it if it is an answer, pass it on, and send what there is room for."""
        sent_ns = self._sent_ns.pop(answered_number(report), None)
        if sent_ns is not None:
            self.latencies.add(perf_counter_ns() - sent_ns)
            self.counts[type(report).__name__] += 1
        self._strategy.on_report(report)
        self._tell(report)
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._is_due = False
        client = self._client
        if client is None:
            if self._is_idle:
                self._idle.set()
            return
        while len(self._sent_ns) < self._window:
            order = self._strategy.next_order()
            if order is None:
                return
            try:
                ticket = client.submit(order)
            except ClientError as error:
                self.failure = error
                self.stop()
                return
            self._sent_ns[ticket.number] = perf_counter_ns()


def answered_number(report: VenueReport) -> int:
    """Number of the request that a report answers, 0 when it answers none."""
    if isinstance(report, OrderFilled | OrderExpired):
        return 0
    return report.number


@dataclass(slots=True)
class Slot:
    """One quote of a maker: a place in a book where it wants to have an order."""

    market: Market
    side: Side
    distance: float
    """From the fair value, in ticks."""
    client_order_id: int = 0
    """Of the order that rests here; 0: none."""
    price: int = 0
    cumulative: int = 0
    is_pending: bool = False
    """Whether a request about it is unanswered."""


class Maker:
    """Quotes both sides of every instrument on two levels, and follows the fair value."""

    LEVELS: Final = (1.2, 3.0)
    NOISE: Final = 0.8
    """Ticks: makers do not agree on the value."""
    SKEW_CONTRACTS: Final = 400
    """A position of so many contracts moves the quotes by a tick, towards getting rid of it."""

    def __init__(self, account_id: int, markets: list[Market], seed: int) -> None:
        self._account_id = account_id
        self._source = random.Random(seed)
        self._slots = [
            Slot(market, side, distance)
            for market in markets
            for distance in self.LEVELS
            for side in (Side.BUY, Side.SELL)
        ]
        self._source.shuffle(self._slots)
        self._turn = 0
        self._client_order_id = 0
        self._by_order: dict[int, Slot] = {}
        self._positions: dict[int, int] = {market.instrument_id: 0 for market in markets}
        self.open_count = 0
        """Orders that will expire: none, quotes stay until they are canceled."""

    def next_order(self) -> Order | None:
        """A new or better quote for the next place that needs one."""
        for _ in range(len(self._slots)):
            slot = self._slots[self._turn]
            self._turn = (self._turn + 1) % len(self._slots)
            if not slot.is_pending:
                price = self._wanted_price(slot)
                if price != slot.price or not slot.client_order_id:
                    return self._quote(slot, price)
        return None

    def _wanted_price(self, slot: Slot) -> int:
        market = slot.market
        skew = self._positions[market.instrument_id] / (self.SKEW_CONTRACTS * CONTRACT)
        middle = market.fair - skew + self._source.gauss(0.0, self.NOISE)
        away = -slot.distance if slot.side is Side.BUY else slot.distance
        return market.price(middle + away)

    def _quote(self, slot: Slot, price: int) -> Order:
        self._client_order_id += 1
        quantity = self._source.randrange(5, 60) * CONTRACT
        slot.price, slot.is_pending = price, True
        self._by_order[self._client_order_id] = slot
        if slot.client_order_id:
            return ReplaceOrder(
                self._client_order_id,
                slot.client_order_id,
                0,
                price,
                slot.cumulative + quantity,
            )
        return NewOrder(
            self._client_order_id,
            slot.market.instrument_id,
            self._account_id,
            slot.side,
            price,
            quantity,
        )

    def on_report(self, report: VenueReport) -> None:
        """Keep the slots as the venue has them."""
        if isinstance(report, OrderFilled):
            self._filled(report)
        elif isinstance(report, OrderAccepted):
            slot = self._by_order[report.client_order_id]
            slot.client_order_id, slot.is_pending = report.client_order_id, False
        elif isinstance(report, OrderReplaced):
            self._by_order.pop(report.target_client_order_id, None)
            slot = self._by_order[report.client_order_id]
            slot.client_order_id, slot.is_pending = report.client_order_id, False
        elif isinstance(report, OrderRejected | CancelRejected):
            # An order that was to be replaced is gone (a fill said so) or is as it was.
            self._by_order.pop(report.client_order_id).is_pending = False

    def _filled(self, report: OrderFilled) -> None:
        signed = report.quantity if report.side == Side.BUY else -report.quantity
        self._positions[report.instrument_id] += signed
        slot = self._by_order[report.client_order_id]
        slot.cumulative = report.cumulative_quantity
        if not report.leaves_quantity:
            slot.client_order_id, slot.cumulative = 0, 0
            del self._by_order[report.client_order_id]


class Taker:
    """Trades with what is there: immediate orders, fill-or-kill, market; some wait a moment."""

    REACH: Final = 3.0
    """Ticks beyond the fair value that it pays."""
    REST_NS: Final = 500_000_000
    """Until an order that waits for a better price expires."""

    def __init__(self, account_id: int, markets: list[Market], seed: int) -> None:
        self._account_id = account_id
        self._markets = markets
        self._source = random.Random(seed)
        self._client_order_id = 0
        self._waiting: set[int] = set()
        self._positions: dict[int, int] = {market.instrument_id: 0 for market in markets}

    @property
    def open_count(self) -> int:
        """Orders that wait and will expire."""
        return len(self._waiting)

    def next_order(self) -> Order | None:
        """A trade in any instrument, against the position more often than not."""
        source = self._source
        market = source.choice(self._markets)
        position = self._positions[market.instrument_id]
        is_buy = source.random() < (0.5 if not position else 0.4 if position > 0 else 0.6)
        self._client_order_id += 1
        kind = source.random()
        order_type, time_in_force, expire_time_ns = OrderType.LIMIT, TimeInForce.IOC, 0
        reach = self.REACH if is_buy else -self.REACH
        price = market.price(market.fair + reach)
        if kind < 0.05:
            order_type, price = OrderType.MARKET, 0
        elif kind < 0.10:
            time_in_force = TimeInForce.FOK
        elif kind < 0.12:
            time_in_force = TimeInForce.GTD
            expire_time_ns = time.time_ns() + self.REST_NS
            price = market.price(market.fair - 2 * reach)
        return NewOrder(
            self._client_order_id,
            market.instrument_id,
            self._account_id,
            Side.BUY if is_buy else Side.SELL,
            price,
            source.randrange(1, 40) * CONTRACT,
            order_type,
            time_in_force,
            expire_time_ns,
        )

    def on_report(self, report: VenueReport) -> None:
        """Keep the position, and which orders wait."""
        if isinstance(report, OrderFilled):
            signed = report.quantity if report.side == Side.BUY else -report.quantity
            self._positions[report.instrument_id] += signed
            if not report.leaves_quantity:
                self._waiting.discard(report.client_order_id)
        elif isinstance(report, OrderAccepted):
            if report.time_in_force == TimeInForce.GTD:
                self._waiting.add(report.client_order_id)
        elif isinstance(report, OrderExpired):
            self._waiting.discard(report.client_order_id)
