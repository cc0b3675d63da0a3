"""The book of one instrument, kept from public messages, and the digest over many.

A level is found by its price, and by the id of any order in it. The orders of a level are a dict
of quantities in order of entry, which is their priority: whoever loses it is taken out and put in
again. No order is an object, which keeps the garbage collector out of large books. The live prices
of a side are a sorted list with the best at its end, so that reading the best costs nothing and a
change near it moves little.

A message that cannot be true of the book raises `InconsistentError`; then the whole channel has
lost its place. A book that is stale has no numbers at all: every look at them raises
`StaleBookError`. Whoever keeps the book may go on changing it meanwhile: it is stale while messages
are missing (`suspend`), known again when they have come (`resume`) or when a snapshot has taken
their place (`load`). Prices are in 1/10000 of the currency unit, quantities in 1/100 contract.
Page: spec/market_data.md.
"""

import hashlib
import struct
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from protocol.codes import Side
from protocol.errors import ClientError
from protocol.market_data import InstrumentDefinition, Trade

__all__ = [
    "Book",
    "InconsistentError",
    "LastTrade",
    "Level",
    "OrderRow",
    "QueuePosition",
    "RestingOrder",
    "StaleBookError",
    "public_digest",
]

OrderRow = tuple[int, int, int]
"""An order in a snapshot: order_id, price, quantity."""

_DIGEST_SIZE: Final = 32


class StaleBookError(ClientError):
    """Messages of market data were missed: nothing can be said of this book, or of any."""


class InconsistentError(Exception):
    """A message that does not fit what the messages before it have said."""


class Level(NamedTuple):
    """One price of one side: all that rests there, and in how many orders."""

    price: int
    quantity: int
    order_count: int


class RestingOrder(NamedTuple):
    """One order of a book; `quantity` is what is left of it."""

    order_id: int
    side: int
    price: int
    quantity: int


class QueuePosition(NamedTuple):
    """What trades before an order at its own price."""

    orders_ahead: int
    quantity_ahead: int


class LastTrade(NamedTuple):
    """What a snapshot says of the last trade, named as in `Trade`."""

    trade_id: int
    price: int
    quantity: int
    open_interest: int


class _Level:
    """A price of a side and the quantities of its orders by id, first in priority first."""

    __slots__ = ("key", "orders", "quantity", "side")

    def __init__(self, side: "_Side", key: int) -> None:
        self.side = side
        self.key = key
        self.quantity = 0
        self.orders: dict[int, int] = {}


class _Side:
    """The levels of a side. A key is the price times `sign`: the greater, the better."""

    __slots__ = ("keys", "levels", "side", "sign")

    def __init__(self, side: Side) -> None:
        self.side = side
        self.sign = 1 if side is Side.BUY else -1
        self.levels: dict[int, _Level] = {}
        self.keys: list[int] = []

    def enter(self, order_id: int, price: int, quantity: int) -> _Level:
        """Put an order behind all others of its price."""
        key = price * self.sign
        level = self.levels.get(key)
        if level is None:
            level = self.levels[key] = _Level(self, key)
            insort(self.keys, key)
        level.quantity += quantity
        level.orders[order_id] = quantity
        return level

    def fill(self, rows: Iterable[OrderRow], orders: dict[int, _Level]) -> None:
        """Enter the orders of a snapshot into an empty side: best price first, in priority."""
        level: _Level | None = None
        for order_id, price, quantity in rows:
            key = price * self.sign
            if level is None or key < level.key:
                level = self.levels[key] = _Level(self, key)
                self.keys.append(key)
            elif key > level.key:
                raise InconsistentError(f"order {order_id} is not behind a better price")
            if order_id in orders or not quantity:
                raise InconsistentError(f"order {order_id} is there twice, or with quantity 0")
            level.quantity += quantity
            level.orders[order_id] = quantity
            orders[order_id] = level
        self.keys.reverse()

    def leave(self, order_id: int, level: _Level) -> None:
        """Take an order out, with what is left of it."""
        level.quantity -= level.orders.pop(order_id)
        if not level.orders:
            keys = self.keys
            del self.levels[level.key]
            del keys[bisect_left(keys, level.key)]

    def best(self) -> Level | None:
        return self.public(self.levels[self.keys[-1]]) if self.keys else None

    def public(self, level: _Level) -> Level:
        return Level(level.key * self.sign, level.quantity, len(level.orders))

    def top(self, depth: int) -> list[Level]:
        keys = reversed(self.keys[-depth:] if depth else self.keys)
        return [self.public(self.levels[key]) for key in keys]

    def rows(self) -> list[OrderRow]:
        return [
            (order_id, key * self.sign, quantity)
            for key in reversed(self.keys)
            for order_id, quantity in self.levels[key].orders.items()
        ]

    def orders(self) -> Iterator[RestingOrder]:
        for key in reversed(self.keys):
            for order_id, quantity in self.levels[key].orders.items():
                yield RestingOrder(order_id, self.side, key * self.sign, quantity)


class Book:
    """All resting orders of one instrument. Who keeps it changes it; users read.

    Everything that counts orders raises StaleBookError while `is_stale`.
    """

    __slots__ = (
        "_buys",
        "_is_suspended",
        "_orders",
        "_phase",
        "_sells",
        "_sides",
        "definition",
        "is_stale",
        "last_trade",
    )

    def __init__(self, definition: InstrumentDefinition) -> None:
        self.definition = definition
        self.is_stale = False
        """Whether messages are missing, so that nothing can be said of the orders."""
        self.last_trade: Trade | LastTrade | None = None
        """The last one that was seen; trades are told of a stale book too."""
        self._phase: int | None = definition.phase
        self._is_suspended = False
        """Whether what is kept is only out of date."""
        self._clear()

    # Reading.

    @property
    def instrument_id(self) -> int:
        """The venue's number of the instrument."""
        return self.definition.instrument_id

    @property
    def symbol(self) -> str:
        """The name of the instrument."""
        return self.definition.symbol

    @property
    def phase(self) -> int | None:
        """As `protocol.codes.Phase`; None: a change may have been missed."""
        return None if self._is_suspended else self._phase

    @phase.setter
    def phase(self, phase: int) -> None:
        self._phase = phase

    @property
    def best_bid(self) -> Level | None:
        """The highest buy level, None when there is none."""
        self._known()
        return self._buys.best()

    @property
    def best_ask(self) -> Level | None:
        """The lowest sell level, None when there is none."""
        self._known()
        return self._sells.best()

    def bids(self, depth: int = 0) -> list[Level]:
        """Buy levels, best first; `depth` at most, 0 for all."""
        self._known()
        return self._buys.top(depth)

    def asks(self, depth: int = 0) -> list[Level]:
        """Sell levels, best first; `depth` at most, 0 for all."""
        self._known()
        return self._sells.top(depth)

    def orders(self, side: Side) -> list[RestingOrder]:
        """The orders of a side, best price first and in priority."""
        self._known()
        return list(self._sides[side].orders())

    def rows(self, side: Side) -> list[OrderRow]:
        """The same as plain tuples of order_id, price and quantity, as snapshots have them."""
        self._known()
        return self._sides[side].rows()

    def order(self, order_id: int) -> RestingOrder | None:
        """One order by the venue's id, None when it does not rest here."""
        level = self._known().get(order_id)
        if level is None:
            return None
        side = level.side
        return RestingOrder(order_id, side.side, level.key * side.sign, level.orders[order_id])

    def queue_position(self, order_id: int) -> QueuePosition | None:
        """What stands before an order at its price, None when it does not rest here.

        It takes as long as there are orders ahead.
        """
        level = self._known().get(order_id)
        if level is None:
            return None
        orders_ahead = quantity_ahead = 0
        for other_id, quantity in level.orders.items():
            if other_id == order_id:
                break
            orders_ahead += 1
            quantity_ahead += quantity
        return QueuePosition(orders_ahead, quantity_ahead)

    @property
    def order_count(self) -> int:
        """How many orders rest on both sides."""
        return len(self._known())

    # Changing: one method for each message. The quantities are those of the message.

    def add(self, order_id: int, side: int, price: int, quantity: int) -> None:
        """An order rests."""
        orders = self._orders
        if order_id in orders:
            raise InconsistentError(f"order {order_id} was added twice")
        entered = self._sides.get(side)
        if entered is None or not quantity:
            raise InconsistentError(f"order {order_id} has side {side} and quantity {quantity}")
        orders[order_id] = entered.enter(order_id, price, quantity)

    def execute(self, order_id: int, quantity: int, leaves_quantity: int) -> None:
        """A trade took `quantity` from an order; with nothing left it is gone."""
        level = self._find(order_id)
        had = level.orders[order_id]
        if had - quantity != leaves_quantity or not quantity:
            raise InconsistentError(
                f"order {order_id} had {had}, traded {quantity}, leaves {leaves_quantity}"
            )
        if leaves_quantity:
            level.orders[order_id] = leaves_quantity
            level.quantity -= quantity
        else:
            self._remove(order_id, level)

    def reduce(self, order_id: int, quantity: int) -> None:
        """An order is smaller now and keeps its place."""
        level = self._find(order_id)
        had = level.orders[order_id]
        if not 0 < quantity < had:
            raise InconsistentError(f"order {order_id} was reduced from {had} to {quantity}")
        level.quantity -= had - quantity
        level.orders[order_id] = quantity

    def delete(self, order_id: int) -> None:
        """An order is gone."""
        self._remove(order_id, self._find(order_id))

    def replace(self, order_id: int, price: int, quantity: int) -> None:
        """An order has a new price or quantity, behind all others of its price."""
        level = self._find(order_id)
        if not quantity:
            raise InconsistentError(f"order {order_id} was replaced by quantity 0")
        side = level.side
        side.leave(order_id, level)
        self._orders[order_id] = side.enter(order_id, price, quantity)

    # Knowing: what was missed, and how it was made good.

    def suspend(self) -> None:
        """Messages are missing: say nothing, and keep everything for when they have come."""
        self.is_stale = self._is_suspended = True

    def resume(self) -> None:
        """Nothing is missing any more, or a snapshot was loaded."""
        self.is_stale = self._is_suspended = False

    def lose(self) -> None:
        """Messages were missed: forget all orders and the phase. Only a snapshot mends it."""
        self.is_stale = True
        self._is_suspended = False
        self._phase = None
        self._clear()

    def load(self, phase: int, buys: Iterable[OrderRow], sells: Iterable[OrderRow]) -> None:
        """Take phase and orders from a snapshot; they are not shown before `resume`.

        Raises InconsistentError; nothing has changed then.
        """
        orders: dict[int, _Level] = {}
        sides = _Side(Side.BUY), _Side(Side.SELL)
        sides[0].fill(buys, orders)
        sides[1].fill(sells, orders)
        self.suspend()
        self._phase = phase
        self._enter(orders, *sides)

    # Inside.

    def _clear(self) -> None:
        self._enter({}, _Side(Side.BUY), _Side(Side.SELL))

    def _enter(self, orders: dict[int, _Level], buys: _Side, sells: _Side) -> None:
        self._orders = orders
        """Where each order is."""
        self._buys = buys
        self._sells = sells
        self._sides: dict[int, _Side] = {Side.BUY: buys, Side.SELL: sells}

    def _known(self) -> dict[int, _Level]:
        if self.is_stale:
            raise StaleBookError(f"the book of {self.symbol} is stale: messages were missed")
        return self._orders

    def _find(self, order_id: int) -> _Level:
        level = self._orders.get(order_id)
        if level is None:
            raise InconsistentError(f"order {order_id} is not in the book of {self.symbol}")
        return level

    def _remove(self, order_id: int, level: _Level) -> None:
        del self._orders[order_id]
        level.side.leave(order_id, level)


def public_digest(books: Iterable[Book]) -> str:
    """BLAKE2b-256 over books, in hex: the words that the venue's own digest of its books takes.

    Per instrument in order of id: id, phase, number of buys, of sells; then each buy and each
    sell, best price first and in priority: order id, price, quantity. Signed 64-bit,
    little-endian. Raises StaleBookError.
    """
    digest = hashlib.blake2b(digest_size=_DIGEST_SIZE)
    for book in sorted(books, key=lambda book: book.instrument_id):
        buys, sells = book.orders(Side.BUY), book.orders(Side.SELL)
        if book.phase is None:
            raise StaleBookError(f"the phase of {book.symbol} is not known")
        words = [book.instrument_id, book.phase, len(buys), len(sells)]
        for order in (*buys, *sells):
            words += (order.order_id, order.price, order.quantity)
        digest.update(struct.pack(f"<{len(words)}q", *words))
    return digest.hexdigest()
