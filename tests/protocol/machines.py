"""Session machines for tests: messages for every step, and pairs that have reached a state."""

from typing import Any, Final

import msgspec

from protocol.codes import RejectCode, TerminateCode
from protocol.feed import DropCopyMark, LogPiece, PacketPiece, Unsubscribe
from protocol.framing import CLIENT_FRAME_SIZE_MAX, UNSEQUENCED, FrameReader
from protocol.market_data import BestPrices
from protocol.order_entry import NewOrder, OrderExpired
from protocol.session import Connection, Party, Service, State
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
from protocol.wire import decode_client, decode_feed, decode_feed_request, decode_venue, encode

START: Final = 1_700_000_000_000_000_000
MS: Final = 1_000_000
HELLO: Final = Hello(1, 0, "VENUE", bytes(32), START, CLIENT_FRAME_SIZE_MAX, 7 << 20)
LOG_ON: Final = LogOn(1, 0, bytes(32), "mm1", bytes(32), 0, 1_000, 1, 500, "test", bytes(64))
ORDER: Final = NewOrder(1, 1, 1, 1, 5_000, 100)
REPORT: Final = OrderExpired(1, START, 1, 1, 100, 0, 1)
FEED_LOG_ON: Final = LogOn(1, 0, bytes(32), "ui", bytes(32), 0, 1_000, 0, 0, "test", bytes(64))
PRICES: Final = BestPrices(1, START, 1, 1, 9, 5_400, 100, 0, 0)

_ORDER_ENTRY: Final[dict[Party, dict[Step, Any]]] = {
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
_SHARED: Final = (
    *(Step.HELLO, Step.LOG_ON_REJECTED),
    *(Step.HEARTBEAT, Step.LOG_OUT, Step.TERMINATE),
)
MESSAGES: Final[dict[Service, dict[Party, dict[Step, Any]]]] = {
    Service.ORDER_ENTRY: _ORDER_ENTRY,
    Service.FEED: {
        Party.CLIENT: {
            **{step: one for step, one in _ORDER_ENTRY[Party.CLIENT].items() if step in _SHARED},
            Step.LOG_ON: FEED_LOG_ON,
            Step.REQUEST: Unsubscribe(7),
        },
        Party.VENUE: {
            **{step: one for step, one in _ORDER_ENTRY[Party.VENUE].items() if step in _SHARED},
            Step.LOG_ON_ACCEPTED: LogOnAccepted(9, START, 0, 0, 1, 0, 0, 1_000, 0, 0, 0),
            Step.NOTICE: DropCopyMark(7, 9, START),
            Step.PACKET: PacketPiece(1, b"packet"),
            Step.LOG_PIECE: LogPiece(9, False, b"record"),
        },
    },
}


def accepted(service: Service = Service.ORDER_ENTRY, **changes: int) -> LogOnAccepted:
    message: LogOnAccepted = MESSAGES[service][Party.VENUE][Step.LOG_ON_ACCEPTED]
    return msgspec.structs.replace(message, **changes)


def payload_of(message: Any) -> bytes:
    """What is behind the frame's header."""
    return message.data if isinstance(message, PacketPiece | LogPiece) else encode(message)


def deliver(sender: Connection, receiver: Connection, now_ns: int = START) -> list[Any]:
    """Move everything that is queued; return the messages that were read."""
    receiver.receive_data(sender.data_to_send(), now_ns)
    return [received.message for received in iter(receiver.next_event, None)]


def sent_by(machine: Connection) -> list[Any]:
    """Take and decode what a machine has queued."""
    reader = FrameReader(65_535)
    reader.feed(machine.data_to_send())
    is_client = machine.party is Party.CLIENT
    decode = decode_client if is_client else decode_venue
    of_feed: Any = decode_feed_request if is_client else decode_feed
    is_feed = machine.service is Service.FEED
    return [
        of_feed(frame.payload)
        if is_feed and frame.kind == UNSEQUENCED
        else decode(frame.kind, frame.payload)
        for frame in iter(reader.next_frame, None)
    ]


def pair_in(
    state: State, service: Service = Service.ORDER_ENTRY, **changes: int
) -> tuple[Connection, Connection]:
    """A client and a venue that have reached `state` together, nothing left to send."""
    client = Connection(Party.CLIENT, START, service)
    venue = Connection(Party.VENUE, START, service)
    steps: list[tuple[State, Connection, Any]] = [
        (State.GREETED, venue, HELLO),
        (State.AUTHENTICATING, client, MESSAGES[service][Party.CLIENT][Step.LOG_ON]),
        (State.ESTABLISHED, venue, accepted(service, **changes)),
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
