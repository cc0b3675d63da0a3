"""How far commands/ and events/ may be read: the message of the node's local stream.

Readers never tail a file that is being written; they read up to the position that they were told
last. It is state, not history: only the newest message counts. FORMAT.md describes the bytes.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

MAGIC: Final = b"BRIERPOS"
POSITION_MESSAGE: Final = struct.Struct("<8s7Q")
POSITION_SIZE: Final = POSITION_MESSAGE.size
assert POSITION_SIZE == 64, "FORMAT.md says 64"


class Position(NamedTuple):
    """What is durable everywhere where it has to be, and in events/. Offsets in bytes.

    `commands_segment` is the number of the segment, `events_segment` the first sequence in the name
    of the file; the offsets are where the last record that may be read ends.
    """

    sequence: int
    commands_segment: int
    commands_offset: int
    events_segment: int
    events_offset: int
    epoch: int
    term: int


def encode_position(position: Position) -> bytes:
    """The message."""
    return POSITION_MESSAGE.pack(MAGIC, *position)


def decode_position(message: bytes) -> Position:
    """The position in a message. Raises ValueError."""
    if len(message) != POSITION_SIZE or not message.startswith(MAGIC):
        raise ValueError(f"not a position message: {message[:8]!r}, {len(message)} bytes")
    return Position(*POSITION_MESSAGE.unpack(message)[1:])
