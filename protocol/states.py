"""Who may send what, and when: every rule about the states of a connection, as data.

Both parties go through the same states. The sender looks a message up before it sends, the
receiver looks it up in the same table when it has read it, so the two cannot disagree. This module
does not know which side we are. Order entry and the feed differ only in what is said when the
log-on is done. Pages: spec/transport.md, spec/feed.md.
"""

from enum import Enum
from typing import Final, NamedTuple

from protocol.feed import FeedRequest, LogPiece, PacketPiece
from protocol.framing import LOG, PACKET, SEQUENCED, SESSION, UNSEQUENCED
from protocol.transport import (
    Heartbeat,
    Hello,
    LogOn,
    LogOnAccepted,
    LogOnRejected,
    LogOut,
    StateRequest,
    Terminate,
    VenueHeartbeat,
)
from protocol.wire import Command, FeedMessage, VenueNotice, VenueReport

__all__ = ["FORMS", "ROWS", "TRANSITIONS", "Form", "Party", "Service", "State", "Step"]


class Service(Enum):
    """What a connection is for."""

    ORDER_ENTRY = "order entry"
    FEED = "feed"


class Party(Enum):
    """Who is who on a connection; the feed is a venue to its clients."""

    CLIENT = "client"
    VENUE = "venue"


class State(Enum):
    """Where a connection stands; both parties go through the same states."""

    CONNECTED = "connected"
    GREETED = "greeted"
    AUTHENTICATING = "authenticating"
    ESTABLISHED = "established"
    CLOSING = "closing"
    CLOSED = "closed"


class Step(Enum):
    """What can happen on a connection: the messages, as far as the session layer tells them apart.

    A command is any numbered message of a client, a report any numbered one of the venue; a
    notice is the gateway's word about commands, or a part of a state image. A request is what a
    client asks the feed for; there a notice is any answer, a packet and a log piece what they say.
    """

    HELLO = "hello"
    LOG_ON = "log-on"
    LOG_ON_ACCEPTED = "log-on accepted"
    LOG_ON_REJECTED = "log-on rejected"
    HEARTBEAT = "heartbeat"
    STATE_REQUEST = "state request"
    COMMAND = "command"
    REPORT = "report"
    NOTICE = "notice"
    REQUEST = "request"
    PACKET = "packet"
    LOG_PIECE = "log piece"
    LOG_OUT = "log-out"
    TERMINATE = "terminate"


_Rows = dict[State, dict[Step, State]]


def _client_rows(*talk: Step) -> _Rows:
    """What a client may send; `talk` is what it says when the log-on is done."""
    return {
        State.CONNECTED: {Step.TERMINATE: State.CLOSED},
        State.GREETED: {Step.LOG_ON: State.AUTHENTICATING, Step.TERMINATE: State.CLOSED},
        State.AUTHENTICATING: {Step.TERMINATE: State.CLOSED},
        State.ESTABLISHED: {
            **dict.fromkeys((Step.HEARTBEAT, *talk), State.ESTABLISHED),
            Step.LOG_OUT: State.CLOSING,
            Step.TERMINATE: State.CLOSED,
        },
        State.CLOSING: {Step.TERMINATE: State.CLOSED},
        State.CLOSED: {},
    }


def _venue_rows(*talk: Step) -> _Rows:
    """What the venue, or the feed, may send; `talk` as above."""
    stream = (Step.HEARTBEAT, *talk)
    return {
        State.CONNECTED: {Step.HELLO: State.GREETED, Step.TERMINATE: State.CLOSED},
        State.GREETED: {Step.LOG_ON_REJECTED: State.CLOSED, Step.TERMINATE: State.CLOSED},
        State.AUTHENTICATING: {
            Step.LOG_ON_ACCEPTED: State.ESTABLISHED,
            Step.LOG_ON_REJECTED: State.CLOSED,
            Step.TERMINATE: State.CLOSED,
        },
        State.ESTABLISHED: dict.fromkeys(stream, State.ESTABLISHED)
        | {Step.TERMINATE: State.CLOSED},
        State.CLOSING: dict.fromkeys(stream, State.CLOSING) | {Step.TERMINATE: State.CLOSED},
        State.CLOSED: {},
    }


TRANSITIONS: Final[dict[Service, dict[Party, _Rows]]] = {
    Service.ORDER_ENTRY: {
        Party.CLIENT: _client_rows(Step.STATE_REQUEST, Step.COMMAND),
        Party.VENUE: _venue_rows(Step.REPORT, Step.NOTICE),
    },
    Service.FEED: {
        Party.CLIENT: _client_rows(Step.REQUEST),
        Party.VENUE: _venue_rows(Step.NOTICE, Step.PACKET, Step.LOG_PIECE),
    },
}
"""{service: {party: {state: {what it may send: next state}}}}. A log-out is the client's last word:
the venue finishes what is under way and answers with a `Terminate`."""


class Form(NamedTuple):
    """How a message class travels: its step and the kind of its frame."""

    step: Step
    kind: int


_CLIENT_FORMS: Final[dict[type, Form]] = {
    LogOn: Form(Step.LOG_ON, SESSION),
    LogOut: Form(Step.LOG_OUT, SESSION),
    Heartbeat: Form(Step.HEARTBEAT, SESSION),
    Terminate: Form(Step.TERMINATE, SESSION),
}
_VENUE_FORMS: Final[dict[type, Form]] = {
    Hello: Form(Step.HELLO, SESSION),
    LogOnAccepted: Form(Step.LOG_ON_ACCEPTED, SESSION),
    LogOnRejected: Form(Step.LOG_ON_REJECTED, SESSION),
    VenueHeartbeat: Form(Step.HEARTBEAT, SESSION),
    Terminate: Form(Step.TERMINATE, SESSION),
}

FORMS: Final[dict[Service, dict[Party, dict[type, Form]]]] = {
    Service.ORDER_ENTRY: {
        Party.CLIENT: {
            **_CLIENT_FORMS,
            StateRequest: Form(Step.STATE_REQUEST, SESSION),
            **dict.fromkeys(Command.__args__, Form(Step.COMMAND, SEQUENCED)),
        },
        Party.VENUE: {
            **_VENUE_FORMS,
            **dict.fromkeys(VenueNotice.__args__, Form(Step.NOTICE, UNSEQUENCED)),
            **dict.fromkeys(VenueReport.__args__, Form(Step.REPORT, SEQUENCED)),
        },
    },
    Service.FEED: {
        Party.CLIENT: {
            **_CLIENT_FORMS,
            **dict.fromkeys(FeedRequest.__args__, Form(Step.REQUEST, UNSEQUENCED)),
        },
        Party.VENUE: {
            **_VENUE_FORMS,
            **dict.fromkeys(FeedMessage.__args__, Form(Step.NOTICE, UNSEQUENCED)),
            PacketPiece: Form(Step.PACKET, PACKET),
            LogPiece: Form(Step.LOG_PIECE, LOG),
        },
    },
}

ROWS: Final[dict[Service, dict[Party, dict[State, dict[type, State]]]]] = {
    service: {
        party: {
            state: {
                message: row[form.step]
                for message, form in FORMS[service][party].items()
                if form.step in row
            }
            for state, row in table.items()
        }
        for party, table in tables.items()
    }
    for service, tables in TRANSITIONS.items()
}
"""TRANSITIONS by message class: one look-up per message."""
