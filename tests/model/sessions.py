"""Sessions and deadlines: log-on, disconnect, cancel-on-disconnect, expiry.

A deadline is (deadline_ns, class, id): class 0 is a session's grace, class 1 an order's expire
time. They fire in that order, a bounded number of units per command.
"""

from protocol.codes import (
    CancelOnDisconnect,
    CancelReason,
    DisconnectReason,
    RejectCode,
    TimeInForce,
)
from protocol.order_entry import OrderExpired
from protocol.records import Connect, Disconnect
from protocol.transport import LogOnAccepted, LogOnRejected
from tests.model.market_data import publish_deleted
from tests.model.matching import cancel_report
from tests.model.reference import record_session
from tests.model.state import Reject, Request, Session, State

__all__ = [
    "advance_time",
    "connect",
    "continue_canceling",
    "disconnect",
    "next_deadline",
    "start_venue",
]

NANOSECONDS_PER_MILLISECOND = 1_000_000
SESSIONS_PER_PARTICIPANT_MAX = 64
SESSION_CLASS = 0
ORDER_CLASS = 1
REASON_BITS = {
    DisconnectReason.LOST: CancelOnDisconnect.ON_DISCONNECT,
    DisconnectReason.LOG_OUT: CancelOnDisconnect.ON_LOG_OUT,
}


def connect(state: State, message: Connect, session_id: int, connection: int) -> None:
    """Put a session on, new or known; the envelope names it and its new connection number."""
    reject = check_connect(state, message, session_id)
    if reject is not None:
        state.answer_log_on(
            session_id,
            connection,
            0,
            LogOnRejected(code=reject.code, field=reject.field, limit=reject.limit, text=""),
        )
        return
    key = state.keys[message.key_id]
    is_new = session_id not in state.sessions
    if is_new:
        state.sessions[session_id] = Session(session_id, key.participant_id, message.session)
    session = state.sessions[session_id]
    assert (session.participant_id, session.name) == (key.participant_id, message.session)
    assert connection == session.connection + 1, "connection numbers are consecutive"
    session.key_id = key.key_id
    session.roles = key.roles
    session.connection = connection
    session.is_connected = True
    session.cancel_on_disconnect = message.cancel_on_disconnect
    session.cancel_grace_ms = message.cancel_grace_ms
    session.deadline_ns = None
    state.answer_log_on(
        session_id,
        connection,
        session.next_number,
        LogOnAccepted(
            sequence=state.sequence,
            time_ns=state.time_ns,
            session_id=session_id,
            connection=connection,
            next_number=session.next_number,
            last_client_number=session.last_client_number,
            highest_client_order_id=session.highest_client_order_id,
            keepalive_ms=message.keepalive_ms,
            cancel_on_disconnect=message.cancel_on_disconnect,
            cancel_grace_ms=message.cancel_grace_ms,
            minor=message.minor,
        ),
    )
    if is_new:
        record_session(state, session)


def check_connect(state: State, message: Connect, session_id: int) -> Reject | None:
    """Roles, numbers, room; field indexes are those of the client's LogOn."""
    if state.keys[message.key_id].roles == 0:
        return Reject(RejectCode.UNKNOWN_KEY, 3, 0)
    session = state.sessions.get(session_id)
    next_number = 1 if session is None else session.next_number
    key = state.keys[message.key_id]
    if session is not None and session.key_id != key.key_id and session.roles & ~key.roles:
        return Reject(RejectCode.NOT_PERMITTED, 4, 0)
    if message.next_number > next_number:
        return Reject(RejectCode.NUMBER_AHEAD, 6, next_number)
    if session is None:
        assert session_id == len(state.sessions) + 1, "session ids are dense"
        others = [one for one in state.sessions.values() if is_of(one, key.participant_id)]
        if len(others) >= SESSIONS_PER_PARTICIPANT_MAX:
            return Reject(RejectCode.SESSION_LIMIT, 4, SESSIONS_PER_PARTICIPANT_MAX)
        if len(state.sessions) >= state.limits.sessions_max:
            return Reject(RejectCode.SESSION_LIMIT, 4, state.limits.sessions_max)
    return None


def is_of(session: Session, participant_id: int) -> bool:
    return session.participant_id == participant_id


def disconnect(state: State, message: Disconnect, session_id: int, connection: int) -> None:
    """End a connection; one that was taken over has no effect any more."""
    session = state.sessions[session_id]
    if not session.is_connected or session.connection != connection:
        return
    end_connection(state, session, DisconnectReason(message.reason))


def end_connection(state: State, session: Session, reason: DisconnectReason) -> None:
    """Start the grace after which the session's orders are canceled, if it asked for that."""
    session.is_connected = False
    if session.cancel_on_disconnect & REASON_BITS[reason]:
        grace_ns = session.cancel_grace_ms * NANOSECONDS_PER_MILLISECOND
        is_lost = reason == DisconnectReason.LOST
        session.deadline_ns = state.time_ns + (grace_ns if is_lost else 0)


def start_venue(state: State) -> None:
    """After recovery: every session is lost, and every pending grace starts anew."""
    for session in state.sessions.values():
        if session.deadline_ns is not None:
            grace_ns = session.cancel_grace_ms * NANOSECONDS_PER_MILLISECOND
            session.deadline_ns = state.time_ns + grace_ns
        if session.is_connected:
            end_connection(state, session, DisconnectReason.LOST)


def next_deadline(state: State) -> tuple[int, int, int] | None:
    """The deadline that fires first, or None."""
    deadlines = [
        (session.deadline_ns, SESSION_CLASS, session.session_id)
        for session in state.sessions.values()
        if session.deadline_ns is not None
    ]
    deadlines += [
        (order.expire_time_ns, ORDER_CLASS, order.order_id)
        for order in state.resting
        if order.time_in_force == TimeInForce.GTD
    ]
    return min(deadlines, default=None)


def advance_time(state: State) -> None:
    """Fire due deadlines, in order, as far as one command's work goes."""
    units = state.limits.work_per_command_max
    while units > 0 and state.canceling is None:
        deadline = next_deadline(state)
        if deadline is None or deadline[0] > state.time_ns:
            return
        units -= 1
        _, deadline_class, deadline_id = deadline
        if deadline_class == ORDER_CLASS:
            expire(state, deadline_id)
        else:
            state.sessions[deadline_id].deadline_ns = None
            state.canceling = deadline_id
            units = cancel_session(state, units)


def expire(state: State, order_id: int) -> None:
    """Take an order off the book at its expire time."""
    [order] = [order for order in state.resting if order.order_id == order_id]
    state.resting.remove(order)
    state.report(
        order.session_id,
        OrderExpired(
            sequence=state.sequence,
            time_ns=state.time_ns,
            client_order_id=order.client_order_id,
            order_id=order.order_id,
            canceled_quantity=order.leaves,
            cumulative_quantity=order.cumulative,
            account_id=order.account_id,
        ),
    )
    publish_deleted(state, order)


def continue_canceling(state: State) -> None:
    """Go on with the session whose deadline fired."""
    cancel_session(state, state.limits.work_per_command_max)


def cancel_session(state: State, units: int) -> int:
    """Cancel the session's orders by order id, one unit each; returns the units left."""
    session_id = state.canceling
    assert session_id is not None, "a session's deadline has fired"
    orders = sorted(
        (order for order in state.resting if order.session_id == session_id),
        key=lambda order: order.order_id,
    )
    for order in orders[:units]:
        state.resting.remove(order)
        cancel_report(state, order, Request(session_id, 0, 0, 0), CancelReason.DISCONNECT)
        publish_deleted(state, order)
    if len(orders) <= units:
        state.canceling = None
    return max(0, units - len(orders))
