"""What a client asks the feed for and what the feed answers: subscriptions, replays, drop copies.

The market data itself travels in packets (`protocol.packets`), which a frame of kind PACKET holds
whole, and in the derived messages of `protocol.market_data`. A request is named by a number of the
client's choice, and so is all that answers it. Page: spec/feed.md.
"""

from typing import Annotated, Final, NamedTuple

from msgspec import Meta, Raw

from protocol.base import CHANNELS_MAX, U8, U16, U32, U62, Message, Text
from protocol.order_entry import Report

__all__ = [
    "CANDLES_COUNT_MAX",
    "CONFLATION_MS_MAX",
    "DROP_COPY_MARK_INTERVAL_NS",
    "FILTER_IDS_MAX",
    "REPLAY_COUNT_MAX",
    "REQUESTS_BURST",
    "REQUESTS_PER_SECOND",
    "SLOW_NS",
    "SLOW_SIZE",
    "STALLED_NS",
    "SUBSCRIPTIONS_MAX",
    "CandlesRequest",
    "ChannelRow",
    "DropCopyMark",
    "DropCopyReport",
    "DropCopyRequest",
    "FeedAnswer",
    "FeedReject",
    "FeedRequest",
    "FeedState",
    "LogPiece",
    "LogRequest",
    "PacketPiece",
    "ReplayRequest",
    "RequestEnd",
    "Skipped",
    "Subscribe",
    "Subscribed",
    "Unsubscribe",
]

FILTER_IDS_MAX: Final = 256
"""Instruments, events or accounts that a request names: with the longest ids it fits a frame."""
CONFLATION_MS_MAX: Final = 60_000
"""Between two states of an instrument; who wants them less often asks for a candle."""
SUBSCRIPTIONS_MAX: Final = 16
"""Open subscriptions of a connection: each costs the feed a cursor."""
REPLAY_COUNT_MAX: Final = 100_000
"""Messages of one replay; beyond it a snapshot is shorter."""
CANDLES_COUNT_MAX: Final = 1_000
"""Candles of one request: some 100 KB."""
REQUESTS_PER_SECOND: Final = 50
REQUESTS_BURST: Final = 50
"""Requests of a connection: what sixteen subscriptions and a recovery need, many times over."""
SLOW_SIZE: Final = 4 * 2**20
"""Bytes that a live subscription may be behind."""
SLOW_NS: Final = 10_000_000_000
"""And how old what it gets next may be."""
STALLED_NS: Final = 30_000_000_000
"""A client that takes not one byte for so long is gone, whatever it has asked for."""
DROP_COPY_MARK_INTERVAL_NS: Final = 250_000_000
"""At most so long after a command a drop copy says that all up to it was sent."""

_Ids = Annotated[list[U32], Meta(max_length=FILTER_IDS_MAX)]
ChannelRow = tuple[U16, U62]
"""channel, its next number."""


class Subscribe(Message, frozen=True, tag=40):
    """Ask for market data of a channel: all of it, or of these instruments and events."""

    request_id: U62
    channel: U16
    form: U8
    start: U8
    from_number: U62
    instruments: _Ids
    events: _Ids
    depth: U8
    interval_s: U32
    conflation_ms: U32
    when_slow: U8


class Unsubscribe(Message, frozen=True, tag=41):
    """End what was asked for with this id."""

    request_id: U62


class ReplayRequest(Message, frozen=True, tag=42):
    """Ask for messages of a channel again."""

    request_id: U62
    channel: U16
    from_number: U62
    count: U32


class CandlesRequest(Message, frozen=True, tag=43):
    """Ask for candles of the past."""

    request_id: U62
    instrument_id: U62
    interval_s: U32
    from_time_ns: U62
    count: U32


class DropCopyRequest(Message, frozen=True, tag=44):
    """Ask for the reports of others' sessions; `from_sequence` 0: only what is new."""

    request_id: U62
    scope: U8
    accounts: _Ids
    from_sequence: U62
    from_index: U32


class LogRequest(Message, frozen=True, tag=45):
    """Ask for the event log from the record that holds this sequence on."""

    request_id: U62
    from_sequence: U62


class FeedState(Report, frozen=True, tag=75):
    """Where the feed is: behind `LogOnAccepted`, and when a channel comes into use."""

    sequence: U62
    time_ns: U62
    epoch: U62
    channels: Annotated[list[ChannelRow], Meta(max_length=CHANNELS_MAX)]


class Subscribed(Report, frozen=True, tag=76):
    """The subscription is open; messages below `next_number` are not sent."""

    request_id: U62
    channel: U16
    epoch: U62
    next_number: U62


class RequestEnd(Report, frozen=True, tag=77):
    """Nothing more comes for this request."""

    request_id: U62
    code: U16
    next_number: U62


class FeedReject(Report, frozen=True, tag=78):
    """The request was refused; what else is open stays open."""

    request_id: U62
    request_tag: U16
    code: U16
    field: U16
    limit: U62
    retry_after_ns: U62
    text: Text


class Skipped(Report, frozen=True, tag=79):
    """The client was too slow: the messages from `from_number` to before `next_number` are not
    sent, a snapshot comes in their place."""

    request_id: U62
    channel: U16
    from_number: U62
    next_number: U62


class DropCopyReport(Report, frozen=True, tag=87):
    """A report of a session, or a record of who is who, byte for byte as it was made."""

    request_id: U62
    session_id: U62
    number: U62
    index: U32
    is_replayed: U8
    report: Raw


class DropCopyMark(Report, frozen=True, tag=88):
    """All reports of the scope up to and with this command were sent."""

    request_id: U62
    sequence: U62
    time_ns: U62


class PacketPiece(NamedTuple):
    """What a frame of kind PACKET holds: a whole packet. `form` is the header's number: the
    SubscriptionForm of the subscription that it belongs to, 0 for a replay."""

    form: int
    data: bytes


class LogPiece(NamedTuple):
    """What a frame of kind LOG holds: a part of the record that begins with `sequence`."""

    sequence: int
    is_last: bool
    data: bytes


FeedRequest = (
    Subscribe | Unsubscribe | ReplayRequest | CandlesRequest | DropCopyRequest | LogRequest
)
FeedAnswer = (
    FeedState | Subscribed | RequestEnd | FeedReject | Skipped | DropCopyReport | DropCopyMark
)
