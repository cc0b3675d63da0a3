"""Packets: how public messages travel, over UDP multicast and later over TCP with the same bytes.

A packet is a fixed 32-byte little-endian header and blocks, each with a message. Messages are
numbered per channel, not packets: the header has the number of the first one, the others follow.
So whoever has two copies of a stream, cut into packets at different places, compares numbers. This
module is pure and slow; the venue packs in compiled code, which is held against `encode_packet`.

Whatever arrives is judged here in full: a packet comes out whole or not at all. Only flags that
mean nothing yet are let through, and messages with a tag of a newer venue. Page:
spec/market_data.md.
"""

import struct
from typing import Final, NamedTuple

from protocol.base import NUMBER_MAX
from protocol.codes import RejectCode
from protocol.errors import MessageError, ProtocolError
from protocol.market_data import MarketDataMessage
from protocol.wire import decode_market_data

__all__ = [
    "BLOCK_HEAD",
    "CHANNELS_MAX",
    "DATA",
    "FIRST",
    "HEARTBEAT",
    "HEARTBEAT_INTERVAL_NS",
    "LAST",
    "PACKET_HEADER",
    "PACKET_MAGIC",
    "PACKET_SIZE_MAX",
    "PACKET_VERSION",
    "Block",
    "Packet",
    "PacketError",
    "decode_message",
    "decode_packet",
    "encode_packet",
]

PACKET_HEADER: Final = struct.Struct("<HBBHHQQQ")
"""magic, version, kind, channel, count, epoch, number, send time ns."""
BLOCK_HEAD: Final = struct.Struct("<HB")
"""length of the message in bytes, flags."""
assert PACKET_HEADER.size == 32, "the page and the compiled packer say 32"
assert BLOCK_HEAD.size == 3, "the page and the compiled packer say 3"

PACKET_MAGIC: Final = 0x4252
PACKET_VERSION: Final = 1
"""Of header and blocks; what is inside the messages follows the protocol's versions."""

PACKET_SIZE_MAX: Final = 1400
"""Bytes of a packet: with IP, UDP and a tunnel's headers it fits an Ethernet frame of 1500, so
that one lost fragment never costs more than its packet."""
CHANNELS_MAX: Final = 64
"""Channels are 1 to this: each costs a multicast group, and a network card filters about so many
before it takes all of them."""
HEARTBEAT_INTERVAL_NS: Final = 250_000_000
"""A channel in use says its next number when it has been silent for so long: this bounds the time
in which a consumer does not know that it lost the last packet."""

DATA: Final = 1
"""Packet kind: one or more messages."""
HEARTBEAT: Final = 2
"""Packet kind: no message; the number is that of the next one."""

FIRST: Final = 1
"""Block flag: the first message of its command on this channel."""
LAST: Final = 2
"""Block flag: the last one; the books are consistent after it."""


class PacketError(ProtocolError):
    """Bytes that are no packet, or a message in one that is not valid; says what is wrong."""


class Block(NamedTuple):
    """One message of a packet; `payload` is its bytes."""

    flags: int
    payload: bytes


class Packet(NamedTuple):
    """One packet. `number` is that of the first block, or of the next one when there is none."""

    kind: int
    channel: int
    epoch: int
    number: int
    send_time_ns: int
    blocks: list[Block]


def encode_packet(packet: Packet) -> bytes:
    """Return the bytes of a packet; the caller keeps to what `decode_packet` demands."""
    count = len(packet.blocks)
    fault = _fault(packet.kind, packet.channel, count, packet.epoch, packet.number)
    assert not fault, fault
    header = PACKET_HEADER.pack(
        PACKET_MAGIC,
        PACKET_VERSION,
        packet.kind,
        packet.channel,
        count,
        packet.epoch,
        packet.number,
        packet.send_time_ns,
    )
    parts = [header]
    for block in packet.blocks:
        assert block.payload, "a message is never empty"
        parts.append(BLOCK_HEAD.pack(len(block.payload), block.flags))
        parts.append(block.payload)
    data = b"".join(parts)
    assert len(data) <= PACKET_SIZE_MAX, f"{len(data)} bytes, at most {PACKET_SIZE_MAX}"
    return data


def decode_packet(data: bytes) -> Packet:
    """Take a datagram apart, without looking into the messages. Raises PacketError."""
    size = len(data)
    if not PACKET_HEADER.size <= size <= PACKET_SIZE_MAX:
        raise PacketError(f"{size} bytes, not in {PACKET_HEADER.size}..{PACKET_SIZE_MAX}")
    magic, version, kind, channel, count, epoch, number, send_time_ns = PACKET_HEADER.unpack_from(
        data
    )
    if magic != PACKET_MAGIC:
        raise PacketError(f"magic {magic:#06x}, not {PACKET_MAGIC:#06x}")
    if version != PACKET_VERSION:
        raise PacketError(f"version {version}, not {PACKET_VERSION}")
    if fault := _fault(kind, channel, count, epoch, number):
        raise PacketError(fault)
    return Packet(kind, channel, epoch, number, send_time_ns, _blocks(data, count))


def decode_message(payload: bytes) -> MarketDataMessage | None:
    """Decode a block's message; None: its tag is unknown, skip it. Raises PacketError."""
    try:
        return decode_market_data(payload)
    except MessageError as error:
        if error.code is RejectCode.UNKNOWN_TAG:
            return None
        raise PacketError(error.text) from None


def _fault(kind: int, channel: int, count: int, epoch: int, number: int) -> str:
    """Say what cannot be in a header, "" for nothing."""
    if not DATA <= kind <= HEARTBEAT:
        return f"kind {kind} is unknown"
    if not 1 <= channel <= CHANNELS_MAX:
        return f"channel {channel} is not in 1..{CHANNELS_MAX}"
    if (kind == DATA) != (count > 0):
        return f"{count} messages in a packet of kind {kind}"
    if epoch > NUMBER_MAX:
        return f"epoch {epoch} is above {NUMBER_MAX}"
    if not 1 <= number <= NUMBER_MAX - count:
        return f"number {number} with {count} messages is not in 1..{NUMBER_MAX}"
    return ""


def _blocks(data: bytes, count: int) -> list[Block]:
    """Cut the messages behind the header; they must end where the packet ends."""
    blocks = []
    start = PACKET_HEADER.size
    for index in range(count):
        if len(data) - start < BLOCK_HEAD.size:
            raise PacketError(f"cut short before message {index + 1} of {count}")
        length, flags = BLOCK_HEAD.unpack_from(data, start)
        start += BLOCK_HEAD.size
        if length == 0:
            raise PacketError(f"message {index + 1} of {count} is empty")
        if len(data) - start < length:
            raise PacketError(f"cut short in message {index + 1} of {count}")
        blocks.append(Block(flags, data[start : start + length]))
        start += length
    if start != len(data):
        raise PacketError(f"{len(data) - start} bytes behind the last message")
    return blocks
