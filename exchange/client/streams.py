"""Packets of a feed in order: each message once, over any number of connections.

A feed sends packets as the multicast has them, so the first one of a subscription that goes on, or
of a replay, may begin below the number that was asked for; it is cut here. TCP loses nothing, so a
hole in the numbers is a defect of the feed and ends the connection.

Numbers alone do not say that another connection goes on with the same messages: a venue whose
journal was set back gives them again. So a stream is asked for again from the last message that
came, which must be the same then.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

from exchange.client.limits import OVERLAP_MAX
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
    decode_message,
    decode_packet,
    encode_packet,
)
from protocol.wire import peek_tag

__all__ = ["Known", "Stream"]

_SNAPSHOT_END_TAG: Final = SnapshotEnd.__struct_config__.tag


class Known(NamedTuple):
    """A message that came, with its number."""

    number: int
    payload: bytes

    def is_gone(self, next_number: int, time_ns: int) -> bool:
        """Whether a venue whose channel was at a number at a time has proved not to have it.

        It can only be known of messages that can be read here.
        """
        try:
            message = decode_message(self.payload)
        except PacketError:
            return False
        return message is not None and next_number <= self.number and time_ns > message.time_ns


class Stream:
    """The packets of one subscription or replay; `give` gets them."""

    __slots__ = (
        "_is_selection",
        "_on_other",
        "_wanted",
        "give",
        "last",
        "next_number",
        "snapshot_is_open",
    )

    def __init__(
        self,
        give: Callable[[bytes], None],
        next_number: int = 0,
        *,
        is_selection: bool = False,
        on_other: Callable[[int], None] | None = None,
    ) -> None:
        self.give = give
        self.last = b""
        """The last packet with numbered messages; empty: none came since `start`."""
        self.next_number = next_number
        """Number of the first message that may still come; 0: not known yet."""
        self.snapshot_is_open = False
        """Whether a snapshot is awaited or has begun, and its end has not come."""
        self._is_selection = is_selection
        """Whether numbers are left out because their messages were not asked for."""
        self._on_other = on_other
        self._wanted: Known | None = None
        """The message that must come again before anything else."""

    def start(self, next_number: int, *, has_snapshot: bool) -> None:
        """Go on with this number, behind a snapshot if there is one."""
        self.next_number = next_number
        self.snapshot_is_open = has_snapshot
        self.last = b""
        self._wanted = None

    def known(self) -> Known | None:
        """The last message that came."""
        try:
            packet = decode_packet(self.last)
        except PacketError:
            return None  # None came, or what nobody can read.
        last = packet.blocks[-1]
        if isinstance(last, SelectedBlock):
            return Known(last.number, last.payload)
        return Known(packet.number + len(packet.blocks) - 1, last.payload)

    def go_on(self) -> int:
        """Go on over another connection; the number from which to ask for it.

        That is the number of the last message that came, which is only compared, unless it was so
        long ago that this would be a burden. When another message has its number, `on_other` is
        called with that number.
        """
        known = self.known()
        is_near = known is not None and self.next_number - known.number <= OVERLAP_MAX
        self._wanted = known if is_near else None
        return self.next_number if self._wanted is None else self._wanted.number

    def take(self, kind: int, number: int, count: int, packet: bytes) -> None:
        """Take a packet that is not simply the next one. Raises RemoteProtocolError."""
        if self._wanted is not None and not self._is_same(self._wanted, kind, number, packet):
            return
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
            self.last = packet
        elif kind == HEARTBEAT:
            if number < self.next_number:
                return  # The feed is not yet where it was.
            self._reach(number)
        elif kind == SNAPSHOT:
            if peek_tag(_decode(packet).blocks[-1].payload) == _SNAPSHOT_END_TAG:
                self.snapshot_is_open = False
        else:
            raise RemoteProtocolError(TerminateCode.MALFORMED, f"packet kind {kind} is unknown")
        self.give(packet)

    # Inside.

    def _is_same(self, wanted: Known, kind: int, number: int, packet: bytes) -> bool:
        """Compare what comes again; False, and told, when it is not what came before."""
        if kind == HEARTBEAT:
            found = None
            if number <= wanted.number:
                return True
        else:
            numbered = _numbered(_decode(packet))
            if max(numbered) < wanted.number:
                return True
            found = numbered.get(wanted.number)
        self._wanted = None
        if found == wanted.payload:
            return True
        if self._on_other is not None:
            self._on_other(wanted.number)
        return False

    def _take_selected(self, packet: bytes) -> None:
        blocks = _decode(packet).blocks
        last = blocks[-1]
        assert isinstance(last, SelectedBlock), "the blocks of a packet of this kind"
        if last.number < self.next_number:
            return
        packet = _cut(packet, self.next_number)
        self.next_number = last.number + 1
        self.last = packet
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


def _numbered(packet: Packet) -> dict[int, bytes]:
    """The messages of a packet, by their numbers."""
    return {
        block.number if isinstance(block, SelectedBlock) else number: block.payload
        for number, block in enumerate(packet.blocks, packet.number)
    }


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
