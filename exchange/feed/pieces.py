"""Frames of packets, messages and records, in pieces: what is written to a socket at once."""

from collections.abc import Iterable, Iterator
from typing import Final

from exchange.feed.limits import PIECE_SIZE_MAX
from protocol.framing import HEADER_SIZE, LAST_PIECE, LOG, PACKET, UNSEQUENCED, encode_frame

__all__ = ["Sent", "join", "log_frames", "message_frame", "packet_frame"]

FRAME_NUMBER: Final = 1
"""On a feed no message is numbered, so that frames can be shared: all have the first number."""

_LOG_PAYLOAD_SIZE_MAX: Final = PIECE_SIZE_MAX - HEADER_SIZE


class Sent:
    """Counts pieces that were written as they came, and their bytes, once for each subscriber."""

    def __init__(self) -> None:
        self.count = 0
        self.size = 0


def packet_frame(packet: bytes, form: int, send_time_ns: int) -> bytes:
    """A packet in its frame; `form` is the subscription's, 0 in a replay."""
    return encode_frame(PACKET, form, packet, send_time_ns)


def message_frame(payload: bytes, send_time_ns: int, flags: int = 0) -> bytes:
    """A message in its frame."""
    return encode_frame(UNSEQUENCED, FRAME_NUMBER, payload, send_time_ns, flags=flags)


def log_frames(first_sequence: int, content: bytes, send_time_ns: int) -> Iterator[bytes]:
    """A record of events/ in as many frames as it needs."""
    for start in range(0, len(content), _LOG_PAYLOAD_SIZE_MAX):
        part = content[start : start + _LOG_PAYLOAD_SIZE_MAX]
        flags = LAST_PIECE if start + len(part) == len(content) else 0
        yield encode_frame(LOG, first_sequence, part, send_time_ns, flags=flags)


def join(frames: Iterable[bytes]) -> list[bytes]:
    """Frames one behind the other in pieces of at most PIECE_SIZE_MAX bytes."""
    pieces: list[bytes] = []
    parts: list[bytes] = []
    size = 0
    for frame in frames:
        if size + len(frame) > PIECE_SIZE_MAX:
            pieces.append(b"".join(parts))
            parts.clear()
            size = 0
        parts.append(frame)
        size += len(frame)
    if parts:
        pieces.append(b"".join(parts))
    return pieces
