"""The book: who trades with an incoming order, at what price, and what happens to the rest.

Price first, then time of resting; every trade at the resting order's price.
"""

from protocol.codes import CancelReason, Liquidity
from protocol.order_entry import OrderCanceled, OrderFilled
from tests.model.collateral import pay
from tests.model.market_data import publish_added, publish_trade
from tests.model.state import Order, Request, State

__all__ = [
    "cancel_report",
    "counterparties",
    "dry_run",
    "levels",
    "match",
    "own_side",
    "queue",
    "rest",
]


def queue(orders: list[Order]) -> list[Order]:
    """Orders of one side, the one that trades first first."""

    def rank(order: Order) -> tuple[int, int]:
        assert order.price is not None, "only limit orders rest"
        return (-order.price if order.is_buy else order.price, order.priority)

    return sorted(orders, key=rank)


def own_side(state: State, instrument_id: int, side: int) -> list[Order]:
    """One side of an instrument's book in priority order."""
    return queue(
        [
            order
            for order in state.resting
            if (order.instrument_id, order.side) == (instrument_id, side)
        ]
    )


def levels(state: State, instrument_id: int, side: int) -> set[int | None]:
    """Prices at which orders rest."""
    return {order.price for order in own_side(state, instrument_id, side)}


def is_acceptable(order: Order, resting: Order) -> bool:
    """Whether the incoming order may trade at the resting order's price."""
    if order.price is None:
        return True
    assert resting.price is not None, "only limit orders rest"
    return resting.price <= order.price if order.is_buy else resting.price >= order.price


def counterparties(state: State, order: Order) -> list[Order]:
    """Resting orders that the incoming order may trade with, in the order in which it does."""
    opposite_side = 3 - order.side
    return [
        resting
        for resting in own_side(state, order.instrument_id, opposite_side)
        if is_acceptable(order, resting)
    ]


def dry_run(state: State, order: Order) -> tuple[int, int]:
    """Quantity that would fill now, and its cost counted from the floor."""
    floor_price = state.instruments[order.instrument_id].floor_price
    filled = cost = 0
    for resting in counterparties(state, order):
        assert resting.price is not None, "only limit orders rest"
        quantity = min(order.leaves - filled, resting.leaves)
        filled += quantity
        cost += (resting.price - floor_price) * quantity
    return filled, cost


def match(state: State, order: Order, request: Request) -> None:
    """Trade until the order is done, nobody is left, or the command has done its share of work."""
    fill_count = 0
    state.incoming = (order, request)
    while order.leaves > 0 and counterparties(state, order):
        if fill_count == state.limits.work_per_command_max:
            return
        trade(state, counterparties(state, order)[0], order)
        fill_count += 1
    state.incoming = None
    if order.leaves > 0:
        settle_rest(state, order, request)


def settle_rest(state: State, order: Order, request: Request) -> None:
    """What could not trade rests and is shown to everybody, or is canceled."""
    if order.may_rest:
        rest(state, order)
        publish_added(state, order)
    else:
        cancel_report(state, order, request, CancelReason.IMMEDIATE_REMAINDER)


def rest(state: State, order: Order) -> None:
    """Put the order behind all others of its price."""
    state.resting_count += 1
    order.priority = state.resting_count
    state.resting.append(order)


def trade(state: State, resting: Order, order: Order) -> None:
    """One match: positions and cash move, each side gets its report, the resting order's first.

    Then everybody sees what is left of the resting order, and the trade.
    """
    assert resting.price is not None, "only limit orders rest"
    quantity = min(order.leaves, resting.leaves)
    resting.cumulative += quantity
    order.cumulative += quantity
    if resting.leaves == 0:
        state.resting.remove(resting)
    buyer, seller = (order, resting) if order.is_buy else (resting, order)
    state.positions.setdefault((order.account_id, order.instrument_id), 0)
    state.positions[buyer.account_id, order.instrument_id] += quantity
    state.positions[seller.account_id, order.instrument_id] -= quantity
    floor_price = state.instruments[order.instrument_id].floor_price
    pay(state, buyer.account_id, seller.account_id, (resting.price - floor_price) * quantity)
    state.trade_count += 1
    fill_report(state, resting, resting.price, quantity, Liquidity.ADDED)
    fill_report(state, order, resting.price, quantity, Liquidity.REMOVED)
    publish_trade(state, resting, quantity, aggressor_side=order.side)


def fill_report(
    state: State, order: Order, price: int, quantity: int, liquidity: Liquidity
) -> None:
    """Tell an order's session about its side of the trade."""
    state.report(
        order.session_id,
        OrderFilled(
            sequence=state.sequence,
            time_ns=state.time_ns,
            client_order_id=order.client_order_id,
            order_id=order.order_id,
            trade_id=state.trade_count,
            instrument_id=order.instrument_id,
            account_id=order.account_id,
            side=order.side,
            price=price,
            quantity=quantity,
            leaves_quantity=order.leaves,
            cumulative_quantity=order.cumulative,
            liquidity=liquidity,
            fee=0,
        ),
    )


def cancel_report(state: State, order: Order, request: Request, reason: CancelReason) -> None:
    """Tell the request's session that what was left of the order is gone."""
    state.report(
        request.session_id,
        OrderCanceled(
            sequence=state.sequence,
            time_ns=state.time_ns,
            client_order_id=order.client_order_id,
            order_id=order.order_id,
            number=request.number,
            gateway_time_ns=request.gateway_time_ns,
            client_time_ns=request.client_time_ns,
            canceled_quantity=order.leaves,
            cumulative_quantity=order.cumulative,
            reason=reason,
            account_id=order.account_id,
        ),
    )
