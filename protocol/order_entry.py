"""Order entry: what a trading session sends and the execution reports it receives.

Every field is an integer, so that the compiled codec (`protocol.codec`) reads and writes these
messages without Python objects; the structs here are the definition that it is tested against.
Page: spec/order_entry.md.
"""

from msgspec import Struct

from protocol.base import I62, U62, Message

__all__ = [
    "CancelOrder",
    "CancelRejected",
    "NewOrder",
    "OrderAccepted",
    "OrderCanceled",
    "OrderExpired",
    "OrderFilled",
    "OrderRejected",
    "OrderReplaced",
    "ReplaceOrder",
    "Report",
]


class NewOrder(Message, frozen=True, tag=10):
    """Enter an order. Fields after `expire_time_ns` must be 0 until their features land."""

    client_order_id: U62
    instrument_id: U62
    account_id: U62
    side: U62
    price: I62
    quantity: U62
    order_type: U62 = 1
    time_in_force: U62 = 1
    expire_time_ns: U62 = 0
    client_time_ns: U62 = 0
    flags: U62 = 0
    display_quantity: U62 = 0
    minimum_quantity: U62 = 0
    stop_price: I62 = 0
    maximum_cost: U62 = 0
    valid_until_ns: U62 = 0
    group: U62 = 0
    self_trade_mode: U62 = 0


class CancelOrder(Message, frozen=True, tag=11):
    """Cancel by the client's order id, or by the venue's when that one is 0."""

    client_order_id: U62
    order_id: U62 = 0
    client_time_ns: U62 = 0


class ReplaceOrder(Message, frozen=True, tag=12):
    """Give a resting order a new price and total quantity (fills included), and a new client id."""

    client_order_id: U62
    target_client_order_id: U62
    order_id: U62
    price: I62
    quantity: U62
    client_time_ns: U62 = 0


class Report(Struct, array_like=True, frozen=True, gc=False):
    """Base of what the venue sends: extra trailing elements of a newer minor are skipped."""


class OrderAccepted(Report, frozen=True, tag=80):
    """The order is in the matcher; fills and cancellation, if any, follow."""

    sequence: U62
    time_ns: U62
    client_order_id: U62
    order_id: U62
    number: U62
    gateway_time_ns: U62
    client_time_ns: U62
    instrument_id: U62
    account_id: U62
    side: U62
    price: I62
    quantity: U62
    order_type: U62
    time_in_force: U62
    expire_time_ns: U62


class OrderRejected(Report, frozen=True, tag=81):
    """The order was refused and had no effect; `field` and `limit` say where and what.

    `account_id` is the one that the order named, whether or not there is such an account.
    """

    sequence: U62
    time_ns: U62
    client_order_id: U62
    number: U62
    gateway_time_ns: U62
    client_time_ns: U62
    code: U62
    field: U62
    limit: I62
    account_id: U62


class OrderReplaced(Report, frozen=True, tag=82):
    """The order has a new price, quantity and client order id; its order id stays."""

    sequence: U62
    time_ns: U62
    client_order_id: U62
    order_id: U62
    number: U62
    gateway_time_ns: U62
    client_time_ns: U62
    target_client_order_id: U62
    price: I62
    quantity: U62
    leaves_quantity: U62
    priority_kept: U62
    account_id: U62


class OrderCanceled(Report, frozen=True, tag=83):
    """What was left of the order is gone. `number` is 0 when no request of this session asked."""

    sequence: U62
    time_ns: U62
    client_order_id: U62
    order_id: U62
    number: U62
    gateway_time_ns: U62
    client_time_ns: U62
    canceled_quantity: U62
    cumulative_quantity: U62
    reason: U62
    account_id: U62


class OrderExpired(Report, frozen=True, tag=84):
    """The order reached its expire time."""

    sequence: U62
    time_ns: U62
    client_order_id: U62
    order_id: U62
    canceled_quantity: U62
    cumulative_quantity: U62
    account_id: U62


class OrderFilled(Report, frozen=True, tag=85):
    """One side of a trade."""

    sequence: U62
    time_ns: U62
    client_order_id: U62
    order_id: U62
    trade_id: U62
    instrument_id: U62
    account_id: U62
    side: U62
    price: I62
    quantity: U62
    leaves_quantity: U62
    cumulative_quantity: U62
    liquidity: U62
    fee: I62


class CancelRejected(Report, frozen=True, tag=86):
    """A cancel or replace was refused; an order it named stays as it was.

    `account_id` is that of the order, 0 when the request named none that its sender may know of.
    """

    sequence: U62
    time_ns: U62
    client_order_id: U62
    order_id: U62
    number: U62
    gateway_time_ns: U62
    client_time_ns: U62
    request_tag: U62
    code: U62
    field: U62
    limit: I62
    account_id: U62
