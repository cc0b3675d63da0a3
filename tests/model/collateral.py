"""Money: what an account must hold, what it has available, and the double-entry postings.

With payout V, signed position x, B the cost of all open buys and S of all open sells, a row
(account, instrument) requires max(B, S - x*V). Prices count from the instrument's floor.
"""

from typing import NamedTuple

from tests.model.state import Instrument, Order, State

__all__ = [
    "Row",
    "available",
    "available_with",
    "deposit",
    "open_orders",
    "open_quantity",
    "order_cost",
    "pay",
    "requirement",
    "row",
    "row_with",
    "withdraw",
]


class Row(NamedTuple):
    """An account in an instrument: signed position x, cost of open buys B, of open sells S."""

    position: int
    buy_cost: int
    sell_cost: int


def order_cost(order: Order, instrument: Instrument) -> int:
    """The worst that the open part of a limit order can cost its account."""
    assert order.price is not None, "a market order is never open"
    if order.is_buy:
        return (order.price - instrument.floor_price) * order.leaves
    return (instrument.cap_price - order.price) * order.leaves


def open_orders(state: State, account_id: int, instrument_id: int) -> list[Order]:
    """Resting orders, and the incoming one if it may come to rest."""
    orders = list(state.resting)
    if state.incoming is not None and state.incoming[0].may_rest:
        orders.append(state.incoming[0])
    return [
        order
        for order in orders
        if (order.account_id, order.instrument_id) == (account_id, instrument_id)
    ]


def open_quantity(state: State, account_id: int, instrument_id: int) -> int:
    """Open buys and sells together, in quantity units."""
    return sum(order.leaves for order in open_orders(state, account_id, instrument_id))


def row(state: State, account_id: int, instrument_id: int) -> Row:
    """The row as it is; an unknown row is all zeros."""
    orders = open_orders(state, account_id, instrument_id)
    return row_with(state, account_id, instrument_id, orders)


def row_with(state: State, account_id: int, instrument_id: int, orders: list[Order]) -> Row:
    """The row as it would be with these open orders."""
    instrument = state.instruments[instrument_id]
    return Row(
        position=state.positions.get((account_id, instrument_id), 0),
        buy_cost=sum(order_cost(order, instrument) for order in orders if order.is_buy),
        sell_cost=sum(order_cost(order, instrument) for order in orders if not order.is_buy),
    )


def requirement(account_row: Row, payout: int) -> int:
    """What the account must hold for one row, in money units."""
    return max(account_row.buy_cost, account_row.sell_cost - account_row.position * payout)


def available(state: State, account_id: int) -> int:
    """Cash minus the requirements of all rows of the account."""
    cash = state.accounts[account_id].cash
    return cash - sum(
        requirement(row(state, account, instrument_id), state.instruments[instrument_id].payout)
        for account, instrument_id in state.positions
        if account == account_id
    )


def available_with(
    state: State, account_id: int, instrument_id: int, cash: int, account_row: Row
) -> int:
    """What would be available with this cash and this row in the instrument, others as they are."""
    payout = state.instruments[instrument_id].payout
    others = sum(
        requirement(row(state, account, other), state.instruments[other].payout)
        for account, other in state.positions
        if account == account_id and other != instrument_id
    )
    return cash - requirement(account_row, payout) - others


def pay(state: State, payer_id: int, payee_id: int, amount: int) -> None:
    """Post cash from one account to another."""
    assert amount > 0, "a posting moves a positive amount"
    payer, payee = state.accounts[payer_id], state.accounts[payee_id]
    assert payer.currency == payee.currency, "a posting stays inside its currency"
    payer.cash -= amount
    payee.cash += amount


def deposit(state: State, account_id: int, amount: int) -> None:
    """Post cash from outside to an account."""
    account = state.accounts[account_id]
    state.outside[account.currency] -= amount
    account.cash += amount


def withdraw(state: State, account_id: int, amount: int) -> None:
    """Post cash from an account to outside."""
    deposit(state, account_id, -amount)
