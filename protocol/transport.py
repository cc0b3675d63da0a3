"""The session layer's own messages: greeting, log-on, heartbeats, refusals, the end.

Not numbered and not journaled as they stand; a log-on becomes the sequenced `Connect` of
`protocol.records`. Page: spec/transport.md.
"""

from typing import Annotated, Final

from msgspec import Meta

from protocol.base import I62, U8, U16, U32, U62, Message, Name, Text
from protocol.order_entry import Report

__all__ = [
    "ROWS_MAX",
    "BalanceRow",
    "Heartbeat",
    "Hello",
    "LogOn",
    "LogOnAccepted",
    "LogOnRejected",
    "LogOut",
    "Nonce",
    "NotApplied",
    "OrderRow",
    "PositionRow",
    "SessionName",
    "SessionReject",
    "Signature",
    "StateBalances",
    "StateEnd",
    "StateOrders",
    "StatePositions",
    "StateRequest",
    "Terminate",
    "VenueHeartbeat",
]

Nonce = Annotated[bytes, Meta(min_length=32, max_length=32)]
Signature = Annotated[bytes, Meta(min_length=64, max_length=64)]
ROWS_MAX: Final = 256
"""Rows of one message of a state image: with the longest numbers it still fits a frame."""
SessionName = Annotated[str, Meta(min_length=1, max_length=16, pattern=r"^[A-Za-z0-9._:-]+\Z")]


class LogOn(Message, frozen=True, tag=1):
    """Prove a key and ask for a session; `signature` covers every other field and the nonce."""

    major: U8
    minor: U8
    key: Annotated[bytes, Meta(min_length=32, max_length=32)]
    session: SessionName
    client_nonce: Nonce
    next_number: U62
    keepalive_ms: U32
    cancel_on_disconnect: U8
    cancel_grace_ms: U32
    client: Text
    signature: Signature


class LogOut(Message, frozen=True, tag=2):
    """End the connection in good order."""

    text: Text = ""


class Heartbeat(Message, frozen=True, tag=3):
    """Sent by a client that has been idle; `last_number` is the highest number it has received."""

    last_number: U62 = 0


class StateRequest(Message, frozen=True, tag=4):
    """Ask for the state image: the session's orders, the participant's positions and balances."""


class Hello(Report, frozen=True, tag=64):
    """First frame on every connection: who this is, the nonce to sign, and the epoch.

    Numbers of a session are those of one epoch; it is that of the market data.
    """

    major: U8
    minor: U8
    venue: Name
    nonce: Nonce
    time_ns: U62
    frame_size_max: U16
    epoch: U62


class LogOnAccepted(Report, frozen=True, tag=65):
    """The session is on, and durably so.

    `next_number` numbers the next sequenced frame from the venue; `last_client_number` is the
    last frame of the client that is in the journal; `highest_client_order_id` likewise.
    """

    sequence: U62
    time_ns: U62
    session_id: U62
    connection: U62
    next_number: U62
    last_client_number: U62
    highest_client_order_id: U62
    keepalive_ms: U62
    cancel_on_disconnect: U62
    cancel_grace_ms: U62
    minor: U62


class LogOnRejected(Report, frozen=True, tag=66):
    """Log-on refused; the venue closes the connection."""

    code: U16
    field: U16
    limit: U62
    text: Text


class VenueHeartbeat(Report, frozen=True, tag=67):
    """Sent by the venue when idle; `last_client_number` is the highest number it has seen."""

    last_client_number: U62 = 0


class Terminate(Report, frozen=True, tag=68):
    """Last frame before the connection is closed, by either side."""

    code: U16
    text: Text


class NotApplied(Report, frozen=True, tag=69):
    """Numbers that the venue never received: `from_number` and how many."""

    from_number: U62
    count: U62


class SessionReject(Report, frozen=True, tag=70):
    """Refused before sequencing: consumes the client's number, is not journaled.

    `retry_after_ns` is 0 when trying again cannot help.
    """

    number: U62
    request_tag: U16
    code: U16
    field: U16
    retry_after_ns: U62
    text: Text


OrderRow = tuple[U62, U62, U62, U62, U62, I62, U62, U62, U62, U62]
"""order_id, client_order_id, instrument_id, account_id, side, price, leaves_quantity,
cumulative_quantity, time_in_force, expire_time_ns."""
PositionRow = tuple[U62, U62, I62]
"""account_id, instrument_id, position (signed quantity)."""
BalanceRow = tuple[U62, I62, U62]
"""account_id, cash, requirement."""

_ROWS = Meta(max_length=ROWS_MAX)


class StateOrders(Report, frozen=True, tag=71):
    """Part of a state image: resting orders of the session, in order of entry."""

    sequence: U62
    rows: Annotated[list[OrderRow], _ROWS]


class StatePositions(Report, frozen=True, tag=72):
    """Part of a state image: positions that are not 0, of all accounts of the participant."""

    sequence: U62
    rows: Annotated[list[PositionRow], _ROWS]


class StateBalances(Report, frozen=True, tag=73):
    """Part of a state image: all accounts of the participant."""

    sequence: U62
    rows: Annotated[list[BalanceRow], _ROWS]


class StateEnd(Report, frozen=True, tag=74):
    """The image is whole: how many rows, and as of which command and which report.

    Reports below `next_number` are in the image, those from it on are not.
    """

    sequence: U62
    time_ns: U62
    next_number: U62
    last_client_number: U62
    highest_client_order_id: U62
    order_count: U62
    position_count: U62
    balance_count: U62
