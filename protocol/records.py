"""What is inside a journal record and an event buffer: envelopes and the sequencer's commands.

A record's payload is a run of command entries, an event buffer a run of event entries; both have
a fixed 40-byte little-endian head, so that the compiled ring and any other language walk them
without decoding the messages inside. The venue's private records of who is who are here too: they
are in no stream of a client. Page: spec/records.md.
"""

import struct
from typing import Annotated, Final

from msgspec import Meta

from protocol.admin import Currency, PublicKey
from protocol.base import U8, U32, U62, Message, Name
from protocol.order_entry import Report
from protocol.transport import SessionName

__all__ = [
    "COMMAND_HEAD",
    "EVENT_HEAD",
    "FROM_CLIENT",
    "FROM_VENUE",
    "MARKET_DATA",
    "REFERENCE",
    "REPORT",
    "SESSION",
    "AccountRecorded",
    "Connect",
    "Continuation",
    "Disconnect",
    "Genesis",
    "KeyRecorded",
    "ParticipantRecorded",
    "ReferenceMessage",
    "SessionRecorded",
    "TimeAdvance",
    "VenueRecorded",
    "VenueStarted",
]

COMMAND_HEAD: Final = struct.Struct("<IBBHIIQQQ")
"""length (head included), kind, reserved, throttle budget, session, connection, client number,
gateway time ns, sequenced time ns."""

EVENT_HEAD: Final = struct.Struct("<IBBHIIQQQ")
"""length (head included), kind, flags, channel, session, connection, number, command sequence,
sequenced time ns."""

FROM_CLIENT: Final = 1
"""Command kind: a numbered frame of a session, payload as it came."""
FROM_VENUE: Final = 2
"""Command kind: made by the sequencer."""

REPORT: Final = 1
"""Event kind: on the session's private stream, numbered."""
SESSION: Final = 2
"""Event kind: answer to a log-on; not numbered, its number is the next one of the stream."""
MARKET_DATA: Final = 3
"""Event kind: public, numbered in its channel; session and connection are 0."""
REFERENCE: Final = 4
"""Event kind: who is who, private, numbered in the venue's one stream of them; channel, session
and connection are 0."""


class Genesis(Message, frozen=True, tag=50):
    """Sequence 1 of every journal: identity, first admin key, engine limits, rules version."""

    venue: Name
    admin_key: PublicKey
    rules_version: U32
    participants_max: U32
    accounts_max: U32
    keys_max: U32
    instruments_max: U32
    sessions_max: U32
    orders_max: U32
    positions_max: U32
    orders_per_account_max: U32
    levels_per_side_max: U32
    work_per_command_max: U32
    epoch: U62


class Connect(Message, frozen=True, tag=51):
    """A verified log-on. The envelope names session and connection number."""

    key_id: U32
    session: SessionName
    next_number: U62
    keepalive_ms: U32
    cancel_on_disconnect: U8
    cancel_grace_ms: U32
    minor: U8


class Disconnect(Message, frozen=True, tag=52):
    """A connection ended (the envelope says which); the grace of its session starts."""

    reason: Annotated[int, Meta(ge=1, le=255)]


class TimeAdvance(Message, frozen=True, tag=53):
    """Fire due deadlines, at most `work_per_command_max` of them."""


class Continuation(Message, frozen=True, tag=54):
    """Go on with the work that the command before left over."""


class VenueStarted(Message, frozen=True, tag=55):
    """The venue recovered: every session is disconnected and its grace starts anew."""


class VenueRecorded(Report, frozen=True, tag=102):
    """The venue began: its name, the first epoch of its market data, its rules."""

    sequence: U62
    time_ns: U62
    venue: Name
    epoch: U62
    rules_version: U32


class ParticipantRecorded(Report, frozen=True, tag=103):
    """A participant was admitted."""

    sequence: U62
    time_ns: U62
    participant_id: U32
    name: Name


class AccountRecorded(Report, frozen=True, tag=104):
    """An account was opened."""

    sequence: U62
    time_ns: U62
    account_id: U32
    participant_id: U32
    name: Name
    currency: Currency


class KeyRecorded(Report, frozen=True, tag=105):
    """A key was given these roles, for the first time or anew; 0: it was revoked."""

    sequence: U62
    time_ns: U62
    key_id: U32
    participant_id: U32
    public_key: PublicKey
    roles: U32


class SessionRecorded(Report, frozen=True, tag=106):
    """A session was made, by its first log-on."""

    sequence: U62
    time_ns: U62
    session_id: U32
    participant_id: U32
    name: SessionName


ReferenceMessage = (
    VenueRecorded | ParticipantRecorded | AccountRecorded | KeyRecorded | SessionRecorded
)
