"""Where packets go in tests: in memory, with a buffer that can be full and a network that fails."""

import errno
from collections.abc import Callable
from typing import NamedTuple

from protocol.packets import Packet, decode_packet

__all__ = ["Sent", "Wire"]


class Sent(NamedTuple):
    """One packet, and when it left."""

    time_ns: int
    channel: int
    data: bytes

    @property
    def packet(self) -> Packet:
        return decode_packet(self.data)


class Wire:
    """A sender that keeps what it is given. `room` is how many packets it still takes."""

    def __init__(self, now_ns: Callable[[], int]) -> None:
        self.sent: list[Sent] = []
        self.room = 2**62
        self.error = 0  # errno of every send, while not 0
        self.is_closed = False
        self.on_send: Callable[[bytes], None] = lambda packet: None
        self._now_ns = now_ns
        self._action: Callable[[], None] | None = None

    def send(self, packets: list[tuple[int, bytes]]) -> int:
        assert not self.is_closed
        assert packets, "nothing is not sent"
        if self.error:
            raise OSError(self.error, errno.errorcode[self.error])
        taken = packets[: self.room]
        self.room -= len(taken)
        for channel, packet in taken:
            self.on_send(packet)
            self.sent.append(Sent(self._now_ns(), channel, packet))
        return len(taken)

    def when_writable(self, action: Callable[[], None]) -> None:
        assert self._action is None, "asked for twice"
        self._action = action

    def drain(self, room: int) -> None:
        """There is room for so many packets, and the socket says so."""
        self.room = room
        action, self._action = self._action, None
        assert action is not None, "nobody waits"
        action()

    def close(self) -> None:
        self.is_closed = True

    def packets(self) -> list[Packet]:
        """What was sent since the last call."""
        found = [sent.packet for sent in self.sent]
        self.sent.clear()
        return found
