"""The session layer's own messages: greeting, log-on, heartbeats, refusals, the end.

Not numbered and not journaled as they stand; a log-on becomes the sequenced `Connect` of
`protocol.records`. Page: spec/transport.md.
"""

from typing import Annotated

from msgspec import Meta

from protocol.base import U8, U16, U32, U62, Message, Name, Text
from protocol.order_entry import Report

__all__ = [
    "Heartbeat",
    "Hello",
    "LogOn",
    "LogOnAccepted",
    "LogOnRejected",
    "LogOut",
    "Nonce",
    "NotApplied",
    "SessionName",
    "SessionReject",
    "Signature",
    "Terminate",
    "VenueHeartbeat",
]

Nonce = Annotated[bytes, Meta(min_length=32, max_length=32)]
Signature = Annotated[bytes, Meta(min_length=64, max_length=64)]
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


class Hello(Report, frozen=True, tag=64):
    """First frame on every connection: who this is, and the nonce to sign."""

    major: U8
    minor: U8
    venue: Name
    nonce: Nonce
    time_ns: U62
    frame_size_max: U16


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
