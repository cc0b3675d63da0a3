"""Datagrams to messages, fast: a consumer spends half of its time here.

`protocol.packets` judges every byte and builds an object for each block. Here a packet as it
should be is taken apart in one pass, and everything else is handed over to be judged there, so
that both always come to the same end; a test compares them over mutated packets.
"""

from typing import Final, NamedTuple

import msgspec
from msgspec.msgpack import Decoder

from protocol.base import NUMBER_MAX
from protocol.market_data import MarketDataMessage
from protocol.packets import (
    CHANNELS_MAX,
    DATA,
    HEARTBEAT,
    PACKET_HEADER,
    PACKET_MAGIC,
    PACKET_SIZE_MAX,
    PACKET_VERSION,
    PacketError,
    decode_message,
    decode_packet,
)

__all__ = ["Header", "Messages", "read_header", "read_last_time", "read_messages"]

_decode: Final = Decoder(MarketDataMessage).decode
_HEADER_SIZE: Final = PACKET_HEADER.size
_BAD_INPUT: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, IndexError)
"""What the one pass raises for bytes that are not as they should be."""


class Header(NamedTuple):
    """What a packet says of itself; `end` is the number behind its last message."""

    channel: int
    epoch: int
    number: int
    message_count: int
    end: int


class Messages(NamedTuple):
    """The messages of a packet, each with its flags; None: of a newer venue, to be skipped."""

    flags: list[int]
    messages: list[MarketDataMessage | None]


def read_header(data: bytes) -> Header:
    """Read what decides whether a packet is wanted; its blocks are not looked at yet.

    Raises PacketError.
    """
    if not _HEADER_SIZE <= len(data) <= PACKET_SIZE_MAX:
        return _judge(data)
    magic, version, kind, channel, count, epoch, number, _ = PACKET_HEADER.unpack_from(data)
    if (
        magic == PACKET_MAGIC
        and version == PACKET_VERSION
        and kind == (DATA if count else HEARTBEAT)
        and 1 <= channel <= CHANNELS_MAX
        and epoch <= NUMBER_MAX
        and 1 <= number <= NUMBER_MAX - count
    ):
        return Header(channel, epoch, number, count, number + count)
    return _judge(data)


def read_messages(data: bytes, count: int) -> Messages:
    """Decode the messages of a packet whose header was read. Raises PacketError."""
    flags: list[int] = []
    messages: list[MarketDataMessage | None] = []
    start = _HEADER_SIZE
    try:
        for _ in range(count):
            end = start + 3 + data[start] + (data[start + 1] << 8)
            flags.append(data[start + 2])
            messages.append(_decode(data[start + 3 : end]))
            start = end
    except _BAD_INPUT:
        start = 0
    if start == len(data):
        return Messages(flags, messages)
    blocks = decode_packet(data).blocks
    return Messages(
        [block.flags for block in blocks], [decode_message(block.payload) for block in blocks]
    )


def read_last_time(data: bytes, count: int) -> int:
    """The time of the last message of a packet, which is not judged as a whole; 0: none."""
    start = _HEADER_SIZE
    try:
        for _ in range(count - 1):
            start += 3 + data[start] + (data[start + 1] << 8)
        return _decode(data[start + 3 :]).time_ns if count else 0
    except _BAD_INPUT:
        return 0


def _judge(data: bytes) -> Header:
    """Have a packet refused by the module that knows why."""
    packet = decode_packet(data)
    raise PacketError(f"a packet of kind {packet.kind} that is not read here")
