"""Packets of a channel that came before one that is missing: bytes by the number of their first
message, the lowest of which is always at hand.

They are kept as they came: that is a fifth of what their messages take as objects, and a channel
that waits for a replay or a snapshot keeps many.
"""

from heapq import heappop, heappush
from typing import NamedTuple

from exchange.client.limits import HELD_OVERHEAD_SIZE

__all__ = ["Held", "HeldPackets"]


class Held(NamedTuple):
    """A packet that waits; a heartbeat has no messages."""

    number: int
    message_count: int
    arrived_ns: int
    data: bytes


class HeldPackets:
    """The packets that wait, at most one for each number."""

    __slots__ = ("_numbers", "_packets", "message_count", "size")

    def __init__(self) -> None:
        self._numbers: list[int] = []
        """A heap."""
        self._packets: dict[int, Held] = {}
        """In order of arrival."""
        self.size = 0
        """Bytes that they take."""
        self.message_count = 0
        """Messages in them; those that are in two count twice."""

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def first_number(self) -> int:
        """The lowest number of a packet. There is one."""
        return self._numbers[0]

    @property
    def oldest_ns(self) -> int:
        """When the packet that waits longest came. There is one."""
        return next(iter(self._packets.values())).arrived_ns

    def is_new(self, number: int, message_count: int) -> bool:
        """Whether a packet has more messages than what waits under its number."""
        held = self._packets.get(number)
        return held is None or held.message_count < message_count

    def add(self, held: Held) -> None:
        """Keep a packet. One of the same number is replaced and its wait goes on."""
        number = held.number
        before = self._packets.get(number)
        if before is None:
            heappush(self._numbers, number)
            self.size += HELD_OVERHEAD_SIZE
        else:
            held = held._replace(arrived_ns=before.arrived_ns)
            self.size -= len(before.data)
            self.message_count -= before.message_count
        self._packets[number] = held
        self.size += len(held.data)
        self.message_count += held.message_count

    def pop(self) -> Held:
        """Take the packet with the lowest number out. There is one."""
        held = self._packets.pop(heappop(self._numbers))
        self.size -= len(held.data) + HELD_OVERHEAD_SIZE
        self.message_count -= held.message_count
        return held

    def clear(self) -> None:
        """Drop all."""
        self._numbers.clear()
        self._packets.clear()
        self.size = self.message_count = 0
