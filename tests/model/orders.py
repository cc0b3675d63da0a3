"""New, cancel and replace: the checks in their order, then the effect.

Each list of checks returns the first failing one as a `Reject`; the functions are split where
the text of the rules changes its subject, never reordered.
"""

from collections.abc import Sequence
from dataclasses import replace

from protocol.codes import CancelReason, OrderType, RejectCode, Role, Side, TimeInForce
from protocol.order_entry import (
    CancelOrder,
    CancelRejected,
    NewOrder,
    OrderAccepted,
    OrderRejected,
    OrderReplaced,
    ReplaceOrder,
)
from tests.model.collateral import (
    available,
    available_with,
    open_orders,
    open_quantity,
    row_with,
)
from tests.model.market_data import publish_deleted, publish_reduced, publish_replaced
from tests.model.matching import (
    cancel_report,
    counterparties,
    dry_run,
    levels,
    match,
    own_side,
    rest,
)
from tests.model.state import (
    ORDER_CASH_MAX,
    POSITION_CASH_MAX,
    Instrument,
    Order,
    Reject,
    Request,
    State,
)

__all__ = ["cancel_order", "new_order", "replace_order"]

FIRST_UNSUPPORTED_FIELD = 11
"""NewOrder.flags; it and all fields after it must be zero."""


# -- New order


def new_order(state: State, message: NewOrder, request: Request) -> None:
    """Accept and match the order, or refuse it."""
    session = state.sessions[request.session_id]
    reject = check_session(state, message.client_order_id, request)
    if reject is None:
        session.highest_client_order_id = message.client_order_id
        reject = (
            check_reference(state, message, request)
            or check_values(message)
            or check_times(state, message)
            or check_size_and_price(state, message)
        )
    if reject is None:
        order = order_of(state, message, request)
        reject = check_limits(state, order) or check_execution(state, message, order)
    if reject is not None:
        state.report(
            request.session_id,
            OrderRejected(
                sequence=state.sequence,
                time_ns=state.time_ns,
                client_order_id=message.client_order_id,
                number=request.number,
                gateway_time_ns=request.gateway_time_ns,
                client_time_ns=request.client_time_ns,
                code=reject.code,
                field=reject.field,
                limit=reject.limit,
                account_id=message.account_id,
            ),
        )
        return
    state.order_count += 1
    if order.time_in_force in (TimeInForce.GTC, TimeInForce.GTD):
        state.positions.setdefault((order.account_id, order.instrument_id), 0)
    state.report(
        request.session_id,
        OrderAccepted(
            sequence=state.sequence,
            time_ns=state.time_ns,
            client_order_id=order.client_order_id,
            order_id=order.order_id,
            number=request.number,
            gateway_time_ns=request.gateway_time_ns,
            client_time_ns=request.client_time_ns,
            instrument_id=order.instrument_id,
            account_id=order.account_id,
            side=order.side,
            price=message.price,
            quantity=order.quantity,
            order_type=message.order_type,
            time_in_force=order.time_in_force,
            expire_time_ns=order.expire_time_ns,
        ),
    )
    match(state, order, request)


def order_of(state: State, message: NewOrder, request: Request) -> Order:
    """The order that the message asks for, under the next order id."""
    return Order(
        order_id=state.order_count + 1,
        session_id=request.session_id,
        client_order_id=message.client_order_id,
        instrument_id=message.instrument_id,
        account_id=message.account_id,
        side=message.side,
        price=None if message.order_type == OrderType.MARKET else message.price,
        quantity=message.quantity,
        time_in_force=message.time_in_force,
        expire_time_ns=message.expire_time_ns,
    )


def check_session(state: State, client_order_id: int, request: Request) -> Reject | None:
    """Role and client order id; an id that passes is used up, whatever follows."""
    session = state.sessions[request.session_id]
    if not session.roles & Role.TRADE:
        return Reject(RejectCode.NOT_PERMITTED, 0, 0)
    if client_order_id <= session.highest_client_order_id:
        return Reject(RejectCode.DUPLICATE_CLIENT_ORDER_ID, 1, session.highest_client_order_id)
    return None


def check_reference(state: State, message: NewOrder, request: Request) -> Reject | None:
    """Instrument, account, and whether they belong together."""
    if message.instrument_id not in state.instruments:
        return Reject(RejectCode.UNKNOWN_INSTRUMENT, 2, 0)
    account = state.accounts.get(message.account_id)
    if (
        account is None
        or account.participant_id != state.sessions[request.session_id].participant_id
    ):
        return Reject(RejectCode.UNKNOWN_ACCOUNT, 3, 0)
    if account.currency != state.instruments[message.instrument_id].currency:
        return Reject(RejectCode.CURRENCY_MISMATCH, 3, 0)
    return None


def check_values(message: NewOrder) -> Reject | None:
    """Enumerations, and the fields of features that are not open yet."""
    if message.side not in list(Side):
        return Reject(RejectCode.UNSUPPORTED_VALUE, 4, 0)
    if message.order_type not in list(OrderType):
        return Reject(RejectCode.UNSUPPORTED_VALUE, 7, 0)
    if message.time_in_force not in list(TimeInForce):
        return Reject(RejectCode.UNSUPPORTED_VALUE, 8, 0)
    unsupported: Sequence[int] = (
        message.flags,
        message.display_quantity,
        message.minimum_quantity,
        message.stop_price,
        message.maximum_cost,
        message.valid_until_ns,
        message.group,
        message.self_trade_mode,
    )
    for field, value in enumerate(unsupported, start=FIRST_UNSUPPORTED_FIELD):
        if value != 0:
            return Reject(RejectCode.UNSUPPORTED_VALUE, field, 0)
    return None


def check_times(state: State, message: NewOrder) -> Reject | None:
    """Time in force and expire time."""
    may_rest = message.time_in_force in (TimeInForce.GTC, TimeInForce.GTD)
    if message.order_type == OrderType.MARKET and may_rest:
        return Reject(RejectCode.TIME_IN_FORCE_NOT_ALLOWED, 8, 0)
    if message.time_in_force == TimeInForce.GTD:
        if message.expire_time_ns <= state.time_ns:
            return Reject(RejectCode.EXPIRE_TIME_PASSED, 9, state.time_ns)
    elif message.expire_time_ns != 0:
        return Reject(RejectCode.FIELD_NOT_ALLOWED, 9, 0)
    return None


def check_size_and_price(state: State, message: NewOrder) -> Reject | None:
    """Quantity, price, phase."""
    instrument = state.instruments[message.instrument_id]
    reject = check_quantity(instrument, message.quantity, field=6)
    if reject is not None:
        return reject
    if message.order_type == OrderType.LIMIT:
        reject = check_price(instrument, message.price, field=5)
    elif message.price != 0:
        reject = Reject(RejectCode.FIELD_NOT_ALLOWED, 5, 0)
    if reject is not None:
        return reject
    if instrument.is_halted:
        return Reject(RejectCode.INSTRUMENT_HALTED, 2, 0)
    return None


def check_quantity(instrument: Instrument, quantity: int, field: int) -> Reject | None:
    """A positive multiple of the step whose payout stays within an order's cash."""
    maximum = ORDER_CASH_MAX // instrument.payout
    if quantity == 0:
        return Reject(RejectCode.QUANTITY_ZERO, field, instrument.quantity_step)
    if quantity > maximum:
        return Reject(RejectCode.QUANTITY_TOO_LARGE, field, maximum)
    if quantity % instrument.quantity_step != 0:
        return Reject(RejectCode.QUANTITY_STEP, field, instrument.quantity_step)
    return None


def check_price(instrument: Instrument, price: int, field: int) -> Reject | None:
    """Between floor and cap, both excluded, and on a tick of its row of the tick table."""
    if price <= instrument.floor_price:
        return Reject(RejectCode.PRICE_OUT_OF_RANGE, field, instrument.floor_price)
    if price >= instrument.cap_price:
        return Reject(RejectCode.PRICE_OUT_OF_RANGE, field, instrument.cap_price)
    start, tick_size = [tick_row for tick_row in instrument.tick_table if tick_row[0] <= price][-1]
    if (price - start) % tick_size != 0:
        return Reject(RejectCode.PRICE_OFF_TICK, field, tick_size)
    return None


def check_limits(state: State, order: Order) -> Reject | None:
    """Capacity of the venue, the account's open orders and position, the book's levels."""
    limits = state.limits
    of_account = [resting for resting in state.resting if resting.account_id == order.account_id]
    if order.may_rest and len(state.resting) >= limits.orders_max:
        return Reject(RejectCode.CAPACITY, 0, limits.orders_max)
    if order.may_rest and len(of_account) >= limits.orders_per_account_max:
        return Reject(RejectCode.OPEN_ORDER_LIMIT, 3, limits.orders_per_account_max)
    is_new_row = (order.account_id, order.instrument_id) not in state.positions
    if is_new_row and len(state.positions) >= limits.positions_max:
        return Reject(RejectCode.CAPACITY, 0, limits.positions_max)
    reject = check_position(
        state,
        order,
        open_after=order.quantity + open_quantity(state, order.account_id, order.instrument_id),
        field=6,
    )
    if reject is not None:
        return reject
    if order.may_rest:
        prices = levels(state, order.instrument_id, order.side)
        return check_level(state, order.price, prices, field=5)
    return None


def check_position(state: State, order: Order, open_after: int, field: int) -> Reject | None:
    """Position and open orders, as if all of them added up, times the payout."""
    position = state.positions.get((order.account_id, order.instrument_id), 0)
    payout = state.instruments[order.instrument_id].payout
    if (abs(position) + open_after) * payout > POSITION_CASH_MAX:
        return Reject(RejectCode.POSITION_LIMIT, field, POSITION_CASH_MAX // payout)
    return None


def check_level(
    state: State, price: int | None, prices: set[int | None], field: int
) -> Reject | None:
    """Whether the side of the book has room for an order at the price."""
    level_limit = state.limits.levels_per_side_max
    if price not in prices and len(prices) >= level_limit:
        return Reject(RejectCode.PRICE_LEVEL_LIMIT, field, level_limit)
    return None


def check_execution(state: State, message: NewOrder, order: Order) -> Reject | None:
    """What the order would do at once, and whether its account can carry the outcome."""
    filled, cost = dry_run(state, order)
    if order.time_in_force == TimeInForce.FOK and filled < order.quantity:
        return Reject(RejectCode.FILL_OR_KILL, 6, filled)
    if message.order_type == OrderType.MARKET and filled == 0:
        return Reject(RejectCode.NO_LIQUIDITY, 6, 0)
    cash = state.accounts[order.account_id].cash
    orders = open_orders(state, order.account_id, order.instrument_id)
    account_row = row_with(state, order.account_id, order.instrument_id, orders)
    if order.may_rest:
        account_row = row_with(state, order.account_id, order.instrument_id, [*orders, order])
    elif order.is_buy:
        cash -= cost
        account_row = account_row._replace(position=account_row.position + filled)
    else:
        cash += cost
        account_row = account_row._replace(position=account_row.position - filled)
    if available_with(state, order.account_id, order.instrument_id, cash, account_row) < 0:
        return Reject(RejectCode.INSUFFICIENT_COLLATERAL, 6, available(state, order.account_id))
    return None


# -- Cancel order


def cancel_order(state: State, message: CancelOrder, request: Request) -> None:
    """Take an order of the session, or of its participant, off the book, or refuse."""
    found = find_to_cancel(state, message, request)
    if isinstance(found, Reject):
        reject_cancel(state, message, request, found)
        return
    state.resting.remove(found)
    cancel_report(state, found, request, CancelReason.REQUESTED)
    if found.session_id != request.session_id:
        owner = Request(found.session_id, 0, 0, 0)
        cancel_report(state, found, owner, CancelReason.REQUESTED)
    publish_deleted(state, found)


def find_to_cancel(state: State, message: CancelOrder, request: Request) -> Order | Reject:
    """The resting order that the request names."""
    session = state.sessions[request.session_id]
    if not session.roles & (Role.TRADE | Role.CANCEL_ONLY):
        return Reject(RejectCode.NOT_PERMITTED, 0, 0)
    if message.client_order_id != 0 and message.order_id != 0:
        return Reject(RejectCode.FIELD_NOT_ALLOWED, 2, 0)
    if message.client_order_id == 0 and message.order_id == 0:
        return Reject(RejectCode.INVALID_VALUE, 1, 0)
    for order in state.resting:
        if message.client_order_id != 0:
            if (order.session_id, order.client_order_id) == (
                request.session_id,
                message.client_order_id,
            ):
                return order
        elif order.order_id == message.order_id:
            owner = state.sessions[order.session_id]
            if owner.participant_id == session.participant_id:
                return order
    return Reject(RejectCode.UNKNOWN_ORDER, 1 if message.client_order_id != 0 else 2, 0)


def reject_cancel(
    state: State, message: CancelOrder | ReplaceOrder, request: Request, reject: Reject
) -> None:
    """Refuse a cancel or a replace."""
    request_tag = message.__struct_config__.tag
    assert isinstance(request_tag, int), "messages have integer tags"
    state.report(
        request.session_id,
        CancelRejected(
            sequence=state.sequence,
            time_ns=state.time_ns,
            client_order_id=message.client_order_id,
            order_id=message.order_id,
            number=request.number,
            gateway_time_ns=request.gateway_time_ns,
            client_time_ns=request.client_time_ns,
            request_tag=request_tag,
            code=reject.code,
            field=reject.field,
            limit=reject.limit,
            account_id=reject.account_id,
        ),
    )


# -- Replace order


def replace_order(state: State, message: ReplaceOrder, request: Request) -> None:
    """Give a resting order a new price and total quantity, or refuse."""
    found = check_replace(state, message, request)
    if isinstance(found, Reject):
        reject_cancel(state, message, request, found)
        return
    state.resting.remove(found)
    order = changed_order(found, message)
    state.report(
        request.session_id,
        OrderReplaced(
            sequence=state.sequence,
            time_ns=state.time_ns,
            client_order_id=order.client_order_id,
            order_id=order.order_id,
            number=request.number,
            gateway_time_ns=request.gateway_time_ns,
            client_time_ns=request.client_time_ns,
            target_client_order_id=found.client_order_id,
            price=message.price,
            quantity=order.quantity,
            leaves_quantity=order.leaves,
            priority_kept=int(keeps_priority(found, message)),
            account_id=order.account_id,
        ),
    )
    if keeps_priority(found, message):
        state.resting.append(order)
        publish_reduced(state, order)
    elif counterparties(state, order):
        publish_deleted(state, order)
        match(state, order, request)
    else:
        rest(state, order)
        publish_replaced(state, order)


def keeps_priority(order: Order, message: ReplaceOrder) -> bool:
    """Only an order that gets smaller at its price stays where it is in the queue."""
    return message.price == order.price and message.quantity < order.quantity


def changed_order(order: Order, message: ReplaceOrder) -> Order:
    """The order as the request wants it; order id, session, account, fills, expire time stay."""
    return replace(
        order,
        client_order_id=message.client_order_id,
        price=message.price,
        quantity=message.quantity,
    )


def check_replace(state: State, message: ReplaceOrder, request: Request) -> Order | Reject:
    """All checks in their order; the order that is to change when none of them fails."""
    reject = check_session(state, message.client_order_id, request)
    if reject is not None:
        return reject
    state.sessions[request.session_id].highest_client_order_id = message.client_order_id
    found = find_to_replace(state, message, request)
    if isinstance(found, Reject):
        return found
    reject = check_replacement(state, message, found)
    if reject is None and not keeps_priority(found, message):
        reject = check_replacement_risk(state, message, found)
    return found if reject is None else reject._replace(account_id=found.account_id)


def find_to_replace(state: State, message: ReplaceOrder, request: Request) -> Order | Reject:
    """The session's resting order that the request names."""
    if message.target_client_order_id != 0 and message.order_id != 0:
        return Reject(RejectCode.FIELD_NOT_ALLOWED, 3, 0)
    if message.target_client_order_id == 0 and message.order_id == 0:
        return Reject(RejectCode.INVALID_VALUE, 2, 0)
    for order in state.resting:
        if order.session_id == request.session_id:
            if message.target_client_order_id == order.client_order_id:
                return order
            if message.order_id == order.order_id:
                return order
    return Reject(RejectCode.UNKNOWN_ORDER, 2 if message.target_client_order_id != 0 else 3, 0)


def check_replacement(state: State, message: ReplaceOrder, order: Order) -> Reject | None:
    """The new quantity and price by themselves, the phase, and whether anything changes."""
    instrument = state.instruments[order.instrument_id]
    reject = check_quantity(instrument, message.quantity, field=5) or check_price(
        instrument, message.price, field=4
    )
    if reject is not None:
        return reject
    if instrument.is_halted:
        return Reject(RejectCode.INSTRUMENT_HALTED, 0, 0)
    if message.quantity <= order.cumulative:
        return Reject(RejectCode.QUANTITY_NOT_ABOVE_FILLED, 5, order.cumulative)
    if (message.price, message.quantity) == (order.price, order.quantity):
        return Reject(RejectCode.NO_CHANGE, 0, 0)
    return None


def check_replacement_risk(state: State, message: ReplaceOrder, order: Order) -> Reject | None:
    """Position, level and collateral as if the old order were gone and the new one open."""
    changed = changed_order(order, message)
    others = [
        other
        for other in open_orders(state, order.account_id, order.instrument_id)
        if other.order_id != order.order_id
    ]
    open_after = sum(other.leaves for other in others) + changed.leaves
    reject = check_position(state, order, open_after, field=5)
    if reject is not None:
        return reject
    prices = {
        other.price
        for other in own_side(state, order.instrument_id, order.side)
        if other.order_id != order.order_id
    }
    reject = check_level(state, message.price, prices, field=4)
    if reject is not None:
        return reject
    cash = state.accounts[order.account_id].cash
    account_row = row_with(state, order.account_id, order.instrument_id, [*others, changed])
    if available_with(state, order.account_id, order.instrument_id, cash, account_row) < 0:
        return Reject(RejectCode.INSUFFICIENT_COLLATERAL, 5, available(state, order.account_id))
    return None
