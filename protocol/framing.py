"""Frames: how a byte stream is cut into messages, before anything is decoded.

A frame is a fixed 24-byte little-endian header and one MessagePack message. The header holds what
is not deterministic (send time, match lag), so that the message bytes can be shared by everybody
who reads them. The length is 16 bits wide: hostile input is bounded by construction, and a header
is judged as soon as its 24 bytes are there. Page: spec/transport.md.

Numbers travel in the header: a numbered frame (`SEQUENCED`) carries its own, every other frame
the next one that its sender will use. Receivers ignore flags that they do not know.
"""

import struct
from typing import Final, NamedTuple

from protocol.base import NUMBER_MAX
from protocol.codes import TerminateCode
from protocol.errors import LocalProtocolError, RemoteProtocolError

__all__ = [
    "CLIENT_FRAME_SIZE_MAX",
    "HEADER",
    "HEADER_SIZE",
    "LAST_PIECE",
    "LOG",
    "PACKET",
    "REPLAYED",
    "SEQUENCED",
    "SESSION",
    "UNSEQUENCED",
    "VENUE_FRAME_SIZE_MAX",
    "Frame",
    "FrameReader",
    "encode_frame",
]

HEADER: Final = struct.Struct("<HBBQQI")
"""length (header included), kind, flags, number, send time ns, match lag ns."""

HEADER_SIZE: Final = HEADER.size
assert HEADER_SIZE == 24, "the page and the compiled scanner say 24"

CLIENT_FRAME_SIZE_MAX: Final = 4096
"""Client to venue, in bytes: the largest command needs a quarter of it, and a scan buffer of one
page per connection stays affordable with thousands of connections."""

VENUE_FRAME_SIZE_MAX: Final = 65_535
"""Venue to client, in bytes: what the 16-bit length can say."""

SESSION: Final = 1
"""Frame kind: the session layer's own message, not numbered."""
SEQUENCED: Final = 2
"""Frame kind: a command or a report, numbered."""
UNSEQUENCED: Final = 3
"""Frame kind: the gateway about commands and state; requests to the feed, and its answers."""
PACKET: Final = 4
"""Frame kind, feed: a whole packet; the number says which form of subscription it belongs to."""
LOG: Final = 5
"""Frame kind, feed: a piece of a record of the event log; the number is its first sequence."""

REPLAYED: Final = 1
"""Frame flag: a report from before the log-on, or a candle of the past, that was asked for."""
LAST_PIECE: Final = 2
"""Frame flag, kind LOG: the record ends with this piece."""


class Frame(NamedTuple):
    """One frame, header fields first; `payload` is the message's bytes."""

    kind: int
    flags: int
    number: int
    send_time_ns: int
    match_lag_ns: int
    payload: bytes


def encode_frame(
    kind: int,
    number: int,
    payload: bytes,
    send_time_ns: int = 0,
    match_lag_ns: int = 0,
    flags: int = 0,
) -> bytes:
    """Put the header before `payload`; the caller keeps to the frame limit of its direction."""
    length = HEADER_SIZE + len(payload)
    return HEADER.pack(length, kind, flags, number, send_time_ns, match_lag_ns) + payload


class FrameReader:
    """Cuts fed bytes into frames; `limit` is the largest frame in bytes that this end accepts, and
    `kind_max` the highest kind that its connection knows.

    A chunk is kept as it came and frames are sliced from it, so a chunk with thousands of frames
    is copied once. Only what is left of an incomplete frame (less than `limit` bytes) is copied
    again with the next chunk, so the buffer never exceeds one frame and one chunk.
    """

    __slots__ = ("_buffer", "_kind_max", "_limit", "_position")

    def __init__(self, limit: int, kind_max: int = UNSEQUENCED) -> None:
        assert HEADER_SIZE < limit <= VENUE_FRAME_SIZE_MAX, "a limit the length field can say"
        self._limit = limit
        self._kind_max = kind_max
        self._buffer = b""
        self._position = 0

    def feed(self, data: bytes) -> None:
        """Add bytes. Call only after `next_frame` has said None: unread frames do not pile up."""
        unread_size = len(self._buffer) - self._position
        if unread_size == 0:
            self._buffer = data
        elif unread_size < self._limit:
            self._buffer = self._buffer[self._position :] + data
        else:
            raise LocalProtocolError("read frames until None before feeding more")
        self._position = 0

    def next_frame(self) -> Frame | None:
        """Return the next frame, or None until it is whole.

        Raises RemoteProtocolError: FRAME_SIZE for a length out of bounds, MALFORMED for an unknown
        kind or a number out of bounds. It is raised again by every later call.
        """
        start = self._position
        available_size = len(self._buffer) - start
        if available_size < HEADER_SIZE:
            return None
        length, kind, flags, number, send_time_ns, match_lag_ns = HEADER.unpack_from(
            self._buffer, start
        )
        if not HEADER_SIZE <= length <= self._limit:
            raise RemoteProtocolError(
                TerminateCode.FRAME_SIZE,
                f"frame length {length} is not in {HEADER_SIZE}..{self._limit}",
            )
        if not SESSION <= kind <= self._kind_max:
            raise RemoteProtocolError(TerminateCode.MALFORMED, f"frame kind {kind} is unknown")
        if number > NUMBER_MAX:
            raise RemoteProtocolError(
                TerminateCode.MALFORMED, f"frame number {number} is above {NUMBER_MAX}"
            )
        if available_size < length:
            return None
        self._position = start + length
        payload = self._buffer[start + HEADER_SIZE : self._position]
        return Frame(kind, flags, number, send_time_ns, match_lag_ns, payload)

    def take_unread(self) -> bytes:
        """Hand over everything fed and not yet read; the reader is empty then."""
        unread = self._buffer[self._position :]
        self._buffer = b""
        self._position = 0
        return unread
