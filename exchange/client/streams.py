"""Packets of a feed in order: each message once, over any number of connections.

A feed sends packets as the multicast has them, so the first one of a subscription that goes on, or
of a replay, may begin below the number that was asked for; it is cut here. TCP loses nothing, so a
hole in the numbers is a defect of the feed and ends the connection.
"""

from collections.abc import Callable
from typing import Final

from protocol.codes import TerminateCode
from protocol.errors import RemoteProtocolError
from protocol.market_data import SnapshotEnd
from protocol.packets import (
    DATA,
    HEARTBEAT,
    SELECTED,
    SNAPSHOT,
    Packet,
    PacketError,
    SelectedBlock,
    decode_packet,
    encode_packet,
)
from protocol.wire import peek_tag

__all__ = ["Stream"]

_SNAPSHOT_END_TAG: Final = SnapshotEnd.__struct_config__.tag


class Stream:
    """The packets of one subscription or replay; `give` gets them."""

    __slots__ = ("_is_selection", "give", "next_number", "snapshot_is_open")

    def __init__(
        self, give: Callable[[bytes], None], next_number: int = 0, *, is_selection: bool = False
    ) -> None:
        self.give = give
        self.next_number = next_number
        """Number of the first message that may still come; 0: not known yet."""
        self.snapshot_is_open = False
        """Whether a snapshot is awaited or has begun, and its end has not come."""
        self._is_selection = is_selection
        """Whether numbers are left out because their messages were not asked for."""

    def start(self, next_number: int, *, has_snapshot: bool) -> None:
        """Go on with this number, behind a snapshot if there is one."""
        self.next_number = next_number
        self.snapshot_is_open = has_snapshot

    def take(self, kind: int, number: int, count: int, packet: bytes) -> None:
        """Take a packet that is not simply the next one. Raises RemoteProtocolError."""
        if kind == SELECTED:
            self._take_selected(packet)
            return
        if kind == DATA:
            if number + count <= self.next_number:
                return
            if number < self.next_number:
                packet = _cut(packet, self.next_number)
            self._reach(number)
            self.next_number = number + count
        elif kind == HEARTBEAT:
            self._reach(number)
        elif kind == SNAPSHOT:
            if peek_tag(_decode(packet).blocks[-1].payload) == _SNAPSHOT_END_TAG:
                self.snapshot_is_open = False
        else:
            raise RemoteProtocolError(TerminateCode.MALFORMED, f"packet kind {kind} is unknown")
        self.give(packet)

    # Inside.

    def _take_selected(self, packet: bytes) -> None:
        blocks = _decode(packet).blocks
        last = blocks[-1]
        assert isinstance(last, SelectedBlock), "the blocks of a packet of this kind"
        if last.number < self.next_number:
            return
        packet = _cut(packet, self.next_number)
        self.next_number = last.number + 1
        self.give(packet)

    def _reach(self, number: int) -> None:
        """All messages below a number have been sent."""
        if number > self.next_number:
            if not self._is_selection:
                text = f"message {number} came instead of {self.next_number}"
                raise RemoteProtocolError(TerminateCode.PROTOCOL_VIOLATION, text)
            self.next_number = number


def _decode(packet: bytes) -> Packet:
    try:
        return decode_packet(packet)
    except PacketError as error:
        raise RemoteProtocolError(TerminateCode.MALFORMED, str(error)) from None


def _cut(packet: bytes, number: int) -> bytes:
    """Drop the messages below a number; at least one is left."""
    whole = _decode(packet)
    first = whole.blocks[0]
    if isinstance(first, SelectedBlock):
        if first.number >= number:
            return packet
        kept = [b for b in whole.blocks if isinstance(b, SelectedBlock) and b.number >= number]
        return encode_packet(whole._replace(blocks=kept))
    blocks = whole.blocks[number - whole.number :]
    return encode_packet(whole._replace(number=number, blocks=blocks))
