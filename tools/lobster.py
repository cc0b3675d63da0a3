"""NASDAQ messages, as LOBSTER publishes them, to commands of the venue. Pure.

Everything is decided from the file alone, never from what the venue answered, so the same file
gives the same commands whatever the timing. Buy orders belong to one account and sell orders to
another, the immediate orders that stand for executions included: a trade is then always between the
two, and no order can meet one of its own account, even where a resting order that was filled at
NASDAQ by interest that the file does not show crosses a later one here.

One share is one contract, prices are as in the file (1/10000 dollar), and the file's order ids are
mapped to the client order ids 1, 2, 3, ... of one session. A partial cancel is a replace whose
quantity is the order's new total, what the file has executed of it included. See REPLAY.md.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

from protocol.codes import Side, TimeInForce
from protocol.order_entry import CancelOrder, NewOrder, ReplaceOrder
from tools.errors import UsageError

__all__ = ["Kind", "Mapper", "Message", "OrderCommand", "parse", "parse_line"]

OrderCommand = NewOrder | CancelOrder | ReplaceOrder

QUANTITY_PER_SHARE: Final = 100
"""A quantity counts 1/100 contract; a share is a contract."""

COLUMN_COUNT: Final = 6


class Kind(IntEnum):
    """Column 2 of the file."""

    NEW = 1
    PARTIAL_CANCEL = 2
    DELETE = 3
    EXECUTION = 4
    HIDDEN_EXECUTION = 5
    HALT = 7


class Message(NamedTuple):
    """A line of the file; its time is not used, the replay goes as fast as it can."""

    kind: Kind
    order: int
    size: int
    price: int
    is_buy: bool


@dataclass(slots=True)
class FileOrder:
    """An order as the file has it. Quantities in the venue's unit."""

    client_order_id: int
    is_buy: bool
    price: int
    total: int
    leaves: int


def parse_line(line: str) -> Message:
    """The message in a line `time,type,order id,size,price,direction`. Raises ValueError."""
    columns = line.split(",")
    if len(columns) != COLUMN_COUNT:
        raise ValueError(f"{len(columns)} columns instead of {COLUMN_COUNT}")
    kind, order, size, price, direction = map(int, columns[1:])
    if kind != Kind.HALT and (size <= 0 or direction not in (1, -1)):
        raise ValueError("size is above 0 and direction is 1 or -1")
    return Message(Kind(kind), order, size, price, direction == 1)


def parse(lines: Iterable[str], name: str) -> Iterator[Message]:
    """All messages of the file `name`. Raises UsageError with the number of a bad line."""
    for number, line in enumerate(lines, start=1):
        try:
            yield parse_line(line)
        except ValueError as error:
            raise UsageError(f"{name}: line {number}: {error}") from None


class Mapper:
    """Gives the command for each message, in order, and remembers what it stands for."""

    def __init__(self, instrument_id: int, buyer_account_id: int, seller_account_id: int) -> None:
        self.counts: Counter[str] = Counter()
        """Messages by kind, and of these the ones about unknown orders as `unknown`."""
        self.file_orders: dict[int, int] = {}
        """Client order id of a resting order, earlier ones included, to the file's order id."""
        self.executed: dict[int, int] = {}
        """Client order id of an immediate order to the file's id of the order that it is after."""
        self._instrument_id = instrument_id
        self._account_ids = {True: buyer_account_id, False: seller_account_id}
        self._orders: dict[int, FileOrder] = {}
        self._client_order_id = 0

    def command(self, message: Message) -> OrderCommand | None:
        """The command to send; None when there is nothing to send."""
        self.counts["messages"] += 1
        self.counts[message.kind.name.lower()] += 1
        if message.kind in (Kind.HIDDEN_EXECUTION, Kind.HALT):
            return None
        if message.kind is Kind.NEW:
            return self._enter(message)
        order = self._orders.get(message.order)
        if order is None:
            self.counts["unknown"] += 1
            self.counts[f"unknown_{message.kind.name.lower()}"] += 1
            return None
        if message.kind is Kind.EXECUTION:
            return self._execute(message, order)
        if message.kind is Kind.PARTIAL_CANCEL:
            return self._reduce(message, order)
        del self._orders[message.order]
        return CancelOrder(order.client_order_id)

    def _enter(self, message: Message) -> NewOrder:
        quantity = message.size * QUANTITY_PER_SHARE
        client_order_id = self._next_client_order_id()
        self.file_orders[client_order_id] = message.order
        self._orders[message.order] = FileOrder(
            client_order_id, message.is_buy, message.price, quantity, quantity
        )
        return self._new_order(
            client_order_id, message.is_buy, message.price, quantity, TimeInForce.GTC
        )

    def _reduce(self, message: Message, order: FileOrder) -> ReplaceOrder:
        taken_off = message.size * QUANTITY_PER_SHARE
        order.total -= taken_off
        order.leaves -= taken_off
        target, order.client_order_id = order.client_order_id, self._next_client_order_id()
        self.file_orders[order.client_order_id] = message.order
        return ReplaceOrder(order.client_order_id, target, 0, order.price, order.total)

    def _execute(self, message: Message, order: FileOrder) -> NewOrder:
        quantity = message.size * QUANTITY_PER_SHARE
        order.leaves -= quantity
        if order.leaves <= 0:
            del self._orders[message.order]
        client_order_id = self._next_client_order_id()
        self.executed[client_order_id] = message.order
        return self._new_order(
            client_order_id, not order.is_buy, message.price, quantity, TimeInForce.IOC
        )

    def _new_order(
        self,
        client_order_id: int,
        is_buy: bool,
        price: int,
        quantity: int,
        time_in_force: TimeInForce,
    ) -> NewOrder:
        return NewOrder(
            client_order_id,
            self._instrument_id,
            self._account_ids[is_buy],
            Side.BUY if is_buy else Side.SELL,
            price,
            quantity,
            time_in_force=time_in_force,
        )

    def _next_client_order_id(self) -> int:
        self._client_order_id += 1
        return self._client_order_id
