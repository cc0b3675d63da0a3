"""Who may send what, and when: every rule about the states of a connection, as data.

Both parties go through the same states. The sender looks a message up before it sends, the
receiver looks it up in the same table when it has read it, so the two cannot disagree. This module
does not know which side we are. Page: spec/transport.md.
"""

from enum import Enum
from typing import Final, NamedTuple

from protocol.framing import SEQUENCED, SESSION, UNSEQUENCED
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
from protocol.wire import Command, VenueNotice, VenueReport

__all__ = ["FORMS", "ROWS", "TRANSITIONS", "Form", "Party", "State", "Step"]


class Party(Enum):
    """Who is who on a connection."""

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
    notice is the gateway's word about commands, or a part of a state image.
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
    LOG_OUT = "log-out"
    TERMINATE = "terminate"


_STREAM: Final = (Step.HEARTBEAT, Step.REPORT, Step.NOTICE)

TRANSITIONS: Final[dict[Party, dict[State, dict[Step, State]]]] = {
    Party.CLIENT: {
        State.CONNECTED: {Step.TERMINATE: State.CLOSED},
        State.GREETED: {Step.LOG_ON: State.AUTHENTICATING, Step.TERMINATE: State.CLOSED},
        State.AUTHENTICATING: {Step.TERMINATE: State.CLOSED},
        State.ESTABLISHED: {
            Step.HEARTBEAT: State.ESTABLISHED,
            Step.STATE_REQUEST: State.ESTABLISHED,
            Step.COMMAND: State.ESTABLISHED,
            Step.LOG_OUT: State.CLOSING,
            Step.TERMINATE: State.CLOSED,
        },
        State.CLOSING: {Step.TERMINATE: State.CLOSED},
        State.CLOSED: {},
    },
    Party.VENUE: {
        State.CONNECTED: {Step.HELLO: State.GREETED, Step.TERMINATE: State.CLOSED},
        State.GREETED: {Step.LOG_ON_REJECTED: State.CLOSED, Step.TERMINATE: State.CLOSED},
        State.AUTHENTICATING: {
            Step.LOG_ON_ACCEPTED: State.ESTABLISHED,
            Step.LOG_ON_REJECTED: State.CLOSED,
            Step.TERMINATE: State.CLOSED,
        },
        State.ESTABLISHED: dict.fromkeys(_STREAM, State.ESTABLISHED)
        | {Step.TERMINATE: State.CLOSED},
        State.CLOSING: dict.fromkeys(_STREAM, State.CLOSING) | {Step.TERMINATE: State.CLOSED},
        State.CLOSED: {},
    },
}
"""{party: {state: {what it may send: next state}}}. A log-out is the client's last word: the venue
finishes what is under way and answers with a `Terminate`."""


class Form(NamedTuple):
    """How a message class travels: its step and the kind of its frame."""

    step: Step
    kind: int


FORMS: Final[dict[Party, dict[type, Form]]] = {
    Party.CLIENT: {
        LogOn: Form(Step.LOG_ON, SESSION),
        LogOut: Form(Step.LOG_OUT, SESSION),
        Heartbeat: Form(Step.HEARTBEAT, SESSION),
        StateRequest: Form(Step.STATE_REQUEST, SESSION),
        Terminate: Form(Step.TERMINATE, SESSION),
        **dict.fromkeys(Command.__args__, Form(Step.COMMAND, SEQUENCED)),
    },
    Party.VENUE: {
        Hello: Form(Step.HELLO, SESSION),
        LogOnAccepted: Form(Step.LOG_ON_ACCEPTED, SESSION),
        LogOnRejected: Form(Step.LOG_ON_REJECTED, SESSION),
        VenueHeartbeat: Form(Step.HEARTBEAT, SESSION),
        Terminate: Form(Step.TERMINATE, SESSION),
        **dict.fromkeys(VenueNotice.__args__, Form(Step.NOTICE, UNSEQUENCED)),
        **dict.fromkeys(VenueReport.__args__, Form(Step.REPORT, SEQUENCED)),
    },
}

ROWS: Final[dict[Party, dict[State, dict[type, State]]]] = {
    party: {
        state: {
            message: row[form.step] for message, form in FORMS[party].items() if form.step in row
        }
        for state, row in table.items()
    }
    for party, table in TRANSITIONS.items()
}
"""TRANSITIONS by message class: one look-up per message."""
