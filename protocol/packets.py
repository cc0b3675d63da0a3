"""Packets: how public messages travel, over UDP multicast and over TCP with the same bytes.

A packet is a fixed 32-byte little-endian header and blocks, each with a message. Messages are
numbered per channel, not packets: the header has the number of the first one, the others follow;
in a packet of selected messages each block says how far it is from the header's. So whoever has
two copies of a stream, cut into packets at different places, compares numbers. This module is pure
and slow; the venue packs in compiled code, which is held against `encode_packet`.

Whatever arrives is judged here in full: a packet comes out whole or not at all. Only flags that
mean nothing yet are let through, and messages with a tag of a newer venue. Page:
spec/market_data.md.
"""

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple, TypeVar

from protocol.base import CHANNELS_MAX, NUMBER_MAX
from protocol.codes import RejectCode
from protocol.errors import MessageError, ProtocolError
from protocol.market_data import MarketDataMessage, SnapshotMessage
from protocol.wire import decode_market_data, decode_snapshot

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
    "SELECTED",
    "SELECTED_BLOCK_HEAD",
    "SNAPSHOT",
    "SNAPSHOT_GROUP_OFFSET",
    "SNAPSHOT_INTERVAL_NS",
    "Block",
    "Packet",
    "PacketError",
    "SelectedBlock",
    "decode_message",
    "decode_packet",
    "decode_snapshot_message",
    "encode_packet",
]

_M = TypeVar("_M")

PACKET_HEADER: Final = struct.Struct("<HBBHHQQQ")
"""magic, version, kind, channel, count, epoch, number, send time ns."""
BLOCK_HEAD: Final = struct.Struct("<HB")
"""length of the message in bytes, flags."""
SELECTED_BLOCK_HEAD: Final = struct.Struct("<HBI")
"""The same, and the message's number less that of the header."""
assert PACKET_HEADER.size == 32, "the page and the compiled packer say 32"
assert BLOCK_HEAD.size == 3, "the page and the compiled packer say 3"
assert SELECTED_BLOCK_HEAD.size == 7, "the page says 7"

PACKET_MAGIC: Final = 0x4252
PACKET_VERSION: Final = 1
"""Of header and blocks; what is inside the messages follows the protocol's versions."""

PACKET_SIZE_MAX: Final = 1400
"""Bytes of a packet: with IP, UDP and a tunnel's headers it fits an Ethernet frame of 1500, so
that one lost fragment never costs more than its packet."""
SNAPSHOT_GROUP_OFFSET: Final = CHANNELS_MAX
"""The snapshots of a channel go to the multicast group so many above that of its messages."""
SNAPSHOT_INTERVAL_NS: Final = 5_000_000_000
"""Every instrument is in the cycle of snapshots at least so often, if the rate allows it."""
HEARTBEAT_INTERVAL_NS: Final = 250_000_000
"""A channel in use says its next number when it has been silent for so long: this bounds the time
in which a consumer does not know that it lost the last packet."""

DATA: Final = 1
"""Packet kind: one or more messages."""
HEARTBEAT: Final = 2
"""Packet kind: no message; the number is that of the next one."""
SNAPSHOT: Final = 3
"""Packet kind: messages of a snapshot, with numbers of their own."""
SELECTED: Final = 4
"""Packet kind, TCP only: some messages of a channel, each with its number there."""

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


class SelectedBlock(NamedTuple):
    """One message of a SELECTED packet, and its number in the channel."""

    flags: int
    payload: bytes
    number: int


class Packet(NamedTuple):
    """One packet. `number` is that of the first block, or of the next one when there is none; of a
    SELECTED packet what the offsets count from."""

    kind: int
    channel: int
    epoch: int
    number: int
    send_time_ns: int
    blocks: Sequence[Block | SelectedBlock]


def encode_packet(packet: Packet) -> bytes:
    """Return the bytes of a packet; the caller keeps to what `decode_packet` demands."""
    count = len(packet.blocks)
    numbers = [block.number for block in packet.blocks if isinstance(block, SelectedBlock)]
    fault = _fault(packet.kind, packet.channel, count, packet.epoch, packet.number)
    fault = fault or _selection_fault(packet.number, numbers)
    assert not fault, fault
    assert len(numbers) == (count if packet.kind == SELECTED else 0), "blocks of the packet's kind"
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
        if isinstance(block, SelectedBlock):
            offset = block.number - packet.number
            parts.append(SELECTED_BLOCK_HEAD.pack(len(block.payload), block.flags, offset))
        else:
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
    if kind == SELECTED:
        selected = _selected_blocks(data, count, number)
        return Packet(kind, channel, epoch, number, send_time_ns, selected)
    return Packet(kind, channel, epoch, number, send_time_ns, _blocks(data, count))


def decode_message(payload: bytes) -> MarketDataMessage | None:
    """Decode the message of a DATA or SELECTED packet's block; None: its tag is unknown, skip it.

    Raises PacketError.
    """
    return _known(payload, decode_market_data)


def decode_snapshot_message(payload: bytes) -> SnapshotMessage | None:
    """Decode the message of a SNAPSHOT packet's block; as `decode_message` otherwise."""
    return _known(payload, decode_snapshot)


def _known(payload: bytes, decode: Callable[[bytes], _M]) -> _M | None:
    """Decode a message, None when its tag is unknown."""
    try:
        return decode(payload)
    except MessageError as error:
        if error.code is RejectCode.UNKNOWN_TAG:
            return None
        raise PacketError(error.text) from None


def _fault(kind: int, channel: int, count: int, epoch: int, number: int) -> str:
    """Say what cannot be in a header, "" for nothing."""
    if not DATA <= kind <= SELECTED:
        return f"kind {kind} is unknown"
    if not 1 <= channel <= CHANNELS_MAX:
        return f"channel {channel} is not in 1..{CHANNELS_MAX}"
    if (kind == HEARTBEAT) == (count > 0):
        return f"{count} messages in a packet of kind {kind}"
    if epoch > NUMBER_MAX:
        return f"epoch {epoch} is above {NUMBER_MAX}"
    if not 1 <= number <= NUMBER_MAX - count:
        return f"number {number} with {count} messages is not in 1..{NUMBER_MAX}"
    return ""


def _selection_fault(first: int, numbers: list[int]) -> str:
    """Say what cannot be in the numbers of selected messages, "" for nothing."""
    before = first - 1
    for number in numbers:
        if not before < number < NUMBER_MAX:
            return f"number {number} of a selected message is not in {before + 1}..{NUMBER_MAX - 1}"
        before = number
    return ""


def _selected_blocks(data: bytes, count: int, first: int) -> list[SelectedBlock]:
    """Cut the messages of a SELECTED packet; their numbers ascend."""
    cut = _cut(data, count, SELECTED_BLOCK_HEAD)
    blocks = [SelectedBlock(head[0], payload, first + head[1]) for head, payload in cut]
    if fault := _selection_fault(first, [block.number for block in blocks]):
        raise PacketError(fault)
    return blocks


def _blocks(data: bytes, count: int) -> list[Block]:
    """Cut the messages of any other packet."""
    return [Block(head[0], payload) for head, payload in _cut(data, count, BLOCK_HEAD)]


def _cut(data: bytes, count: int, layout: struct.Struct) -> Iterator[tuple[tuple[int, ...], bytes]]:
    """Cut what is behind the header into the heads' fields after the length, and the messages.

    They must end where the packet ends.
    """
    start = PACKET_HEADER.size
    for index in range(count):
        if len(data) - start < layout.size:
            raise PacketError(f"cut short before message {index + 1} of {count}")
        length, *head = layout.unpack_from(data, start)
        start += layout.size
        if length == 0:
            raise PacketError(f"message {index + 1} of {count} is empty")
        if len(data) - start < length:
            raise PacketError(f"cut short in message {index + 1} of {count}")
        yield tuple(head), data[start : start + length]
        start += length
    if start != len(data):
        raise PacketError(f"{len(data) - start} bytes behind the last message")
