"""Session machines for tests: messages for every step, and pairs that have reached a state."""

from typing import Any, Final

import msgspec

from protocol.codes import RejectCode, TerminateCode
from protocol.framing import CLIENT_FRAME_SIZE_MAX, FrameReader
from protocol.order_entry import NewOrder, OrderExpired
from protocol.session import Connection, Party, State
from protocol.states import Step
from protocol.transport import (
    Heartbeat,
    Hello,
    LogOn,
    LogOnAccepted,
    LogOnRejected,
    LogOut,
    NotApplied,
    StateRequest,
    Terminate,
    VenueHeartbeat,
)
from protocol.wire import decode_client, decode_venue

START: Final = 1_700_000_000_000_000_000
MS: Final = 1_000_000
HELLO: Final = Hello(1, 0, "VENUE", bytes(32), START, CLIENT_FRAME_SIZE_MAX)
LOG_ON: Final = LogOn(1, 0, bytes(32), "mm1", bytes(32), 0, 1_000, 1, 500, "test", bytes(64))
ORDER: Final = NewOrder(1, 1, 1, 1, 5_000, 100)
REPORT: Final = OrderExpired(1, START, 1, 1, 100, 0)

MESSAGES: Final[dict[Party, dict[Step, Any]]] = {
    Party.CLIENT: {
        Step.LOG_ON: LOG_ON,
        Step.HEARTBEAT: Heartbeat(0),
        Step.STATE_REQUEST: StateRequest(),
        Step.COMMAND: ORDER,
        Step.LOG_OUT: LogOut(),
        Step.TERMINATE: Terminate(TerminateCode.SHUTDOWN, ""),
    },
    Party.VENUE: {
        Step.HELLO: HELLO,
        Step.LOG_ON_ACCEPTED: LogOnAccepted(1, START, 1, 1, 1, 0, 0, 1_000, 1, 500, 0),
        Step.LOG_ON_REJECTED: LogOnRejected(RejectCode.UNKNOWN_KEY, 3, 0, ""),
        Step.HEARTBEAT: VenueHeartbeat(0),
        Step.REPORT: REPORT,
        Step.NOTICE: NotApplied(1, 1),
        Step.TERMINATE: Terminate(TerminateCode.SHUTDOWN, ""),
    },
}


def accepted(**changes: int) -> LogOnAccepted:
    message: LogOnAccepted = MESSAGES[Party.VENUE][Step.LOG_ON_ACCEPTED]
    return msgspec.structs.replace(message, **changes)


def deliver(sender: Connection, receiver: Connection, now_ns: int = START) -> list[Any]:
    """Move everything that is queued; return the messages that were read."""
    receiver.receive_data(sender.data_to_send(), now_ns)
    return [received.message for received in iter(receiver.next_event, None)]


def sent_by(machine: Connection) -> list[Any]:
    """Take and decode what a machine has queued."""
    reader = FrameReader(65_535)
    reader.feed(machine.data_to_send())
    decode = decode_client if machine.party is Party.CLIENT else decode_venue
    return [decode(frame.kind, frame.payload) for frame in iter(reader.next_frame, None)]


def pair_in(state: State, **changes: int) -> tuple[Connection, Connection]:
    """A client and a venue that have reached `state` together, nothing left to send."""
    client, venue = Connection(Party.CLIENT, START), Connection(Party.VENUE, START)
    steps: list[tuple[State, Connection, Any]] = [
        (State.GREETED, venue, HELLO),
        (State.AUTHENTICATING, client, LOG_ON),
        (State.ESTABLISHED, venue, accepted(**changes)),
        (State.CLOSING, client, LogOut()),
        (State.CLOSED, venue, Terminate(TerminateCode.LOG_OUT, "")),
    ]
    for reached, sender, message in steps:
        if client.state is state:
            break
        sender.send(message, START)
        assert deliver(sender, client if sender is venue else venue) == [message]
        assert client.state is venue.state is reached
    assert client.state is state
    return client, venue
