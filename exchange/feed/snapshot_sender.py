"""The snapshot that a subscription begins with, as it goes out on a connection.

Snapshots of a connection come one after the other, and all connections together have so many under
way: each holds what it is made of. So one is made when its turn comes. What is promised before is
the number behind it, which it can only reach or pass.
"""

from typing import TYPE_CHECKING

from exchange.feed.limits import PAGE_SIZE_MAX
from exchange.feed.pieces import join, packet_frame
from exchange.feed.snapshots import Plan
from protocol.feed import Subscribe

if TYPE_CHECKING:
    from exchange.feed.connection import Connection

__all__ = ["SnapshotSender"]


class SnapshotSender:
    """See the module. What follows the snapshot begins with `number`."""

    def __init__(self, connection: "Connection", request: Subscribe) -> None:
        self.number = connection.streams.plan(request).next_number
        self.is_done = False
        self._connection = connection
        self._request = request
        self._plan: Plan | None = None
        connection.snapshots[self] = None

    @property
    def is_ready(self) -> bool:
        """Whether it is its turn."""
        if next(iter(self._connection.snapshots)) is not self:
            return False
        return self._plan is not None or self._connection.streams.has_room_for_plan

    def step(self) -> list[bytes]:
        """The next pieces; none when it is done, or must wait after all."""
        streams = self._connection.streams
        if self._plan is None:
            self._plan = streams.open_plan(self._connection, self._request)
            if self._plan is None:
                return []
            assert self._plan.next_number >= self.number, "beginnings only move on"
        now_ns = streams.now_ns()
        packets = self._plan.step(now_ns, PAGE_SIZE_MAX)
        if self._plan.is_done:
            self.close()
        return join(packet_frame(packet, self._request.form, now_ns) for packet in packets)

    def close(self) -> None:
        """It is over, or given up."""
        self.is_done = True
        if self._plan is not None:
            self._plan = None
            self._connection.streams.close_plan(self._connection)
        self._connection.snapshots.pop(self, None)
