"""Messages to bytes and back, by sender and frame kind; the decoders are built once.

The frame kind decides which messages may be inside, so a log-on in a numbered frame is an unknown
tag there and nobody has to look twice. What msgspec says about bad input becomes a `MessageError`
with the code, the tag and the index of the field, which is what a reject carries.
"""

import re
from typing import Final

import msgspec
from msgspec.msgpack import Decoder

from protocol.admin import (
    Account,
    AdminAccepted,
    AdminRejected,
    Deposit,
    Event,
    Halt,
    Instrument,
    Key,
    Participant,
    Resume,
    Withdraw,
)
from protocol.base import U62
from protocol.codes import RejectCode
from protocol.errors import MessageError
from protocol.feed import FeedAnswer, FeedReject, FeedRequest
from protocol.framing import SEQUENCED, SESSION, UNSEQUENCED
from protocol.market_data import (
    DerivedMessage,
    EventDefinition,
    InstrumentDefinition,
    InstrumentStatus,
    MarketDataMessage,
    SnapshotMessage,
)
from protocol.order_entry import (
    CancelOrder,
    CancelRejected,
    NewOrder,
    OrderAccepted,
    OrderCanceled,
    OrderExpired,
    OrderFilled,
    OrderRejected,
    OrderReplaced,
    ReplaceOrder,
)
from protocol.records import ReferenceMessage
from protocol.transport import (
    Heartbeat,
    Hello,
    LogOn,
    LogOnAccepted,
    LogOnRejected,
    LogOut,
    NotApplied,
    SessionReject,
    StateBalances,
    StateEnd,
    StateOrders,
    StatePositions,
    StateRequest,
    Terminate,
    VenueHeartbeat,
)

__all__ = [
    "MAJOR",
    "MINOR",
    "ClientMessage",
    "ClientSessionMessage",
    "Command",
    "CopiedMessage",
    "FeedMessage",
    "VenueMessage",
    "VenueNotice",
    "VenueReport",
    "VenueSessionMessage",
    "decode_client",
    "decode_command",
    "decode_copied",
    "decode_feed",
    "decode_feed_request",
    "decode_market_data",
    "decode_snapshot",
    "decode_venue",
    "encode",
    "feed_reject",
    "peek_tag",
    "session_reject",
]

MAJOR: Final = 1
"""Version of the protocol: both sides must have the same major; a minor only appends fields."""
MINOR: Final = 0

Command = (
    NewOrder
    | CancelOrder
    | ReplaceOrder
    | Participant
    | Account
    | Key
    | Event
    | Instrument
    | Deposit
    | Withdraw
    | Halt
    | Resume
)
ClientSessionMessage = LogOn | LogOut | Heartbeat | StateRequest | Terminate
ClientMessage = Command | ClientSessionMessage
VenueReport = (
    OrderAccepted
    | OrderRejected
    | OrderReplaced
    | OrderCanceled
    | OrderExpired
    | OrderFilled
    | CancelRejected
    | AdminAccepted
    | AdminRejected
)
VenueSessionMessage = Hello | LogOnAccepted | LogOnRejected | VenueHeartbeat | Terminate
VenueNotice = NotApplied | SessionReject | StateOrders | StatePositions | StateBalances | StateEnd
VenueMessage = VenueReport | VenueSessionMessage | VenueNotice
FeedMessage = (
    FeedAnswer | DerivedMessage | EventDefinition | InstrumentDefinition | InstrumentStatus
)
CopiedMessage = VenueReport | ReferenceMessage

encode: Final = msgspec.msgpack.Encoder().encode
"""Message to bytes; the caller's messages are taken as valid."""

_COMMAND: Final[Decoder[Command]] = Decoder(Command)
_CLIENT_SESSION: Final[Decoder[ClientSessionMessage]] = Decoder(ClientSessionMessage)
_VENUE_REPORT: Final[Decoder[VenueReport]] = Decoder(VenueReport)
_VENUE_SESSION: Final[Decoder[VenueSessionMessage]] = Decoder(VenueSessionMessage)
_VENUE_NOTICE: Final[Decoder[VenueNotice]] = Decoder(VenueNotice)
_MARKET_DATA: Final[Decoder[MarketDataMessage]] = Decoder(MarketDataMessage)
_SNAPSHOT: Final[Decoder[SnapshotMessage]] = Decoder(SnapshotMessage)
_FEED_REQUEST: Final[Decoder[FeedRequest]] = Decoder(FeedRequest)
_FEED: Final[Decoder[FeedMessage]] = Decoder(FeedMessage)
_COPIED: Final[Decoder[CopiedMessage]] = Decoder(CopiedMessage)


class _RequestHead(msgspec.Struct, array_like=True, gc=False):
    """What every request to the feed begins with."""

    tag: U62
    request_id: U62


_REQUEST_HEAD: Final[Decoder[_RequestHead]] = Decoder(_RequestHead)

_BAD_INPUT: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes: its own errors, for a text that is not UTF-8 the codec's, and for
arrays nested too deep (in elements that it would skip) the interpreter's."""

_ARRAY_HEAD_SIZES: Final = dict.fromkeys(range(0x91, 0xA0), 1) | {0xDC: 3, 0xDD: 5}
"""MessagePack: first byte of an array that is not empty -> bytes before its first element."""
_INTEGER_SIZES: Final = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
"""MessagePack: first byte of an integer -> bytes that follow; unsigned ones, then signed ones."""
_SIGNED_FIRST: Final = 0xD0
_FIXINT_MAX: Final = 0x7F
_TAG_MAX: Final = 2**16 - 1

_CLASSES: Final[dict[int, type[msgspec.Struct]]] = {
    message.__struct_config__.tag: message
    for union in (
        *(ClientMessage, VenueMessage, FeedRequest, FeedMessage),
        *(MarketDataMessage, SnapshotMessage, ReferenceMessage),
    )
    for message in union.__args__
}
_FIELD: Final = re.compile(r"at `\$\[(\d+)\]")
_TOO_SHORT: Final = re.compile(r"at least length \d+, got (\d+)$")
_TOO_LONG: Final = re.compile(r"at most length (\d+), got \d+$")


def decode_command(payload: bytes) -> Command:
    """Decode what is inside a client's numbered frame. Raises MessageError."""
    try:
        return _COMMAND.decode(payload)
    except _BAD_INPUT as error:
        raise _message_error(payload, error) from None


def decode_client(kind: int, payload: bytes) -> ClientMessage:
    """Decode what is inside a client's frame of this kind. Raises MessageError."""
    if kind == SEQUENCED:
        return decode_command(payload)
    assert kind == SESSION, "a client sends no other kind; the session layer refuses it"
    try:
        return _CLIENT_SESSION.decode(payload)
    except _BAD_INPUT as error:
        raise _message_error(payload, error) from None


def decode_venue(kind: int, payload: bytes) -> VenueMessage:
    """Decode what is inside a venue's frame of this kind. Raises MessageError."""
    try:
        if kind == SEQUENCED:
            return _VENUE_REPORT.decode(payload)
        if kind == SESSION:
            return _VENUE_SESSION.decode(payload)
        assert kind == UNSEQUENCED, "the frame reader lets no other kind through"
        return _VENUE_NOTICE.decode(payload)
    except _BAD_INPUT as error:
        raise _message_error(payload, error) from None


def decode_market_data(payload: bytes) -> MarketDataMessage:
    """Decode a public message, as it is in a packet's block. Raises MessageError."""
    try:
        return _MARKET_DATA.decode(payload)
    except _BAD_INPUT as error:
        raise _message_error(payload, error) from None


def decode_snapshot(payload: bytes) -> SnapshotMessage:
    """Decode a message of a snapshot, as it is in a packet's block. Raises MessageError."""
    try:
        return _SNAPSHOT.decode(payload)
    except _BAD_INPUT as error:
        raise _message_error(payload, error) from None


def decode_feed_request(payload: bytes) -> FeedRequest:
    """Decode what is inside a frame of kind UNSEQUENCED to the feed. Raises MessageError."""
    try:
        return _FEED_REQUEST.decode(payload)
    except _BAD_INPUT as error:
        raise _message_error(payload, error) from None


def decode_feed(payload: bytes) -> FeedMessage:
    """Decode what is inside a frame of kind UNSEQUENCED from the feed. Raises MessageError."""
    try:
        return _FEED.decode(payload)
    except _BAD_INPUT as error:
        raise _message_error(payload, error) from None


def decode_copied(payload: bytes) -> CopiedMessage:
    """Decode the report inside a `DropCopyReport`. Raises MessageError."""
    try:
        return _COPIED.decode(payload)
    except _BAD_INPUT as error:
        raise _message_error(payload, error) from None


def feed_reject(payload: bytes, error: MessageError) -> FeedReject:
    """Return the feed's answer to an invalid request; its id is 0 when it cannot be read."""
    try:
        request_id = _REQUEST_HEAD.decode(payload).request_id
    except _BAD_INPUT:
        request_id = 0
    return FeedReject(request_id, error.tag, error.code, error.field, 0, 0, error.text)


def session_reject(number: int, error: MessageError) -> SessionReject:
    """Return the venue's answer to the invalid command in the frame `number`."""
    return SessionReject(number, error.tag, error.code, error.field, 0, error.text)


def peek_tag(payload: bytes) -> int:
    """Return the tag of a message without decoding it, 0 when it has none below 2^16."""
    start = _ARRAY_HEAD_SIZES.get(payload[0], 0) if payload else 0
    if not 0 < start < len(payload):
        return 0
    opcode = payload[start]
    if opcode <= _FIXINT_MAX:
        return opcode
    size = _INTEGER_SIZES.get(opcode, 0)
    value = payload[start + 1 : start + 1 + size]
    if len(value) < size:
        return 0
    tag = int.from_bytes(value, "big", signed=opcode >= _SIGNED_FIRST)
    return tag if 0 <= tag <= _TAG_MAX else 0


def _message_error(payload: bytes, error: Exception) -> MessageError:
    """Translate what the decoder said into code, tag, field and text."""
    tag = peek_tag(payload)
    message = _CLASSES.get(tag)
    name = message.__name__ if message else f"tag {tag}"
    reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
    if reason.startswith("Invalid value") and reason.endswith("at `$[0]`"):
        text = f"{name} does not belong here" if message else f"{name} is unknown"
        return MessageError(RejectCode.UNKNOWN_TAG, tag, 0, text)
    field = _field_index(reason)
    if message and 0 < field <= len(message.__struct_fields__):
        name = f"{name}.{message.__struct_fields__[field - 1]}"
    return MessageError(RejectCode.INVALID_MESSAGE, tag, field, f"{name}: {reason}")


def _field_index(reason: str) -> int:
    """Read the index of the faulty field from msgspec's text; 0 when it names none."""
    if match := _FIELD.search(reason):
        return int(match[1])
    if match := _TOO_SHORT.search(reason):
        return int(match[1])  # The tag counts: this is the first field that is missing.
    if match := _TOO_LONG.search(reason):
        return int(match[1]) + 1  # The tag does not count here: the first field too many.
    return 0
