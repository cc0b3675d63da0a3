"""One connection to a feed. Packets are most of what comes: one loop cuts them out of what was read
and hands them over as bytes, a few steps of Python each. Every other frame goes through the
session machine, which also does the whole log-on.
"""

import asyncio
import struct
from typing import Final

from exchange.client.callbacks import complain
from exchange.client.link import Link, LinkOwner
from exchange.client.streams import Stream
from exchange.clock import Clock
from protocol.codes import TerminateCode
from protocol.errors import RemoteProtocolError
from protocol.framing import HEADER, HEADER_SIZE, PACKET, Frame
from protocol.packets import DATA, PACKET_HEADER
from protocol.session import Service, State

__all__ = ["FeedLink", "stream_key"]

_HEADS: Final = struct.Struct("<HBxQ12x3xBHH8xQ8x")
"""A frame's header and a packet's behind it: frame length, frame kind, form; packet kind, channel,
message count, number of the first message."""
assert _HEADS.size == HEADER.size + PACKET_HEADER.size, "the headers as the pages have them"

_CHANNEL_BITS: Final = 16
_NO_HEADER: Final = "a packet is shorter than its header"


def stream_key(form: int, channel: int) -> int:
    """What a packet says about where it belongs; form 0 is a replay."""
    return form << _CHANNEL_BITS | channel


class FeedLink(Link):
    """A link that knows `streams`: by `stream_key`, what packets are for. Others are dropped."""

    def __init__(self, owner: LinkOwner, clock: Clock, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(owner, clock, loop, Service.FEED)
        self.streams: dict[int, Stream] = {}
        self._unread = b""
        self._is_cutting = False
        """Whether the log-on is done, and the bytes are cut here."""

    def data_received(self, data: bytes) -> None:
        if not self._is_cutting or self._machine.state is State.CLOSED:
            super().data_received(data)
            return
        self._machine.numbers_received(self._machine.last_received, self._now_ns())
        self._unread += data
        self._read()

    # Inside.

    def _read(self) -> None:
        if not self._is_cutting:
            super()._read()
            if not self.is_established:
                return
            self._is_cutting = True
            self._unread = self._machine.take_unread()
        try:
            self._cut()
        except RemoteProtocolError as error:
            self._machine.terminate(error.code, error.text, self._now_ns())
        if self._machine.state is State.CLOSED:
            self._unread = b""
            self._flush()

    def _cut(self) -> None:
        """Deal with every whole frame, until reading is held."""
        data, start, end = self._unread, 0, len(self._unread)
        streams, unpack = self.streams, _HEADS.unpack_from
        try:
            while not self._is_held and end - start >= HEADER_SIZE:
                if end - start < _HEADS.size or data[start + 2] != PACKET:
                    stop = self._take_other(data, start, end)
                    if stop == start:
                        break
                    start = stop
                    continue
                length, _, form, kind, channel, count, number = unpack(data, start)
                stop = start + length
                if stop > end:
                    break
                if length < _HEADS.size:
                    raise RemoteProtocolError(TerminateCode.MALFORMED, _NO_HEADER)
                packet = data[start + HEADER_SIZE : stop]
                start = stop
                stream = streams.get(form << _CHANNEL_BITS | channel)
                if stream is None:
                    continue
                try:
                    if number == stream.next_number and kind == DATA:
                        stream.next_number = number + count
                        stream.last = packet
                        stream.give(packet)
                    else:
                        stream.take(kind, number, count, packet)
                except RemoteProtocolError:
                    raise
                except Exception as error:  # noqa: BLE001 - the user's code may raise anything
                    complain(stream.give, error)
        finally:
            self._unread = data[start:]

    def _take_other(self, data: bytes, start: int, end: int) -> int:
        """Take a frame that holds no packet; return where it ends, its start when it is cut."""
        length, kind, flags, number, send_time_ns, lag_ns = HEADER.unpack_from(data, start)
        if length < HEADER_SIZE:
            raise RemoteProtocolError(TerminateCode.FRAME_SIZE, f"frame length {length}")
        stop: int = start + length
        if stop > end:
            return start
        if kind == PACKET:
            raise RemoteProtocolError(TerminateCode.MALFORMED, _NO_HEADER)
        payload = data[start + HEADER_SIZE : stop]
        frame = Frame(kind, flags, number, send_time_ns, lag_ns, payload)
        received = self._machine.receive_frame(frame, self._now_ns())
        if received is not None:
            self._handle(received)
        return stop

    def _take_unread(self) -> bytes:
        return self._unread if self._is_cutting else super()._take_unread()
