"""One line of market data: packets are sent at once, or wait, or are lost and counted.

Nothing here can harm the venue, or another line. When the socket's buffer is full, packets wait in
a bounded queue until it is writable; beyond the bound, and at any other error of the network, they
are lost, counted and now and then logged. Consumers see by the numbers what they lack.

What is sent again after a start comes first, at the publisher's pace, and what comes meanwhile
waits behind it in the same queue. A line that takes too little of it is not waited for.
"""

from collections import deque
from collections.abc import Callable
from itertools import islice

from exchange.logs import Log
from exchange.multicast import DatagramSender
from exchange.node.limits import (
    COMPLAINT_NS,
    DRAIN_PACKETS,
    PACE_PACKETS,
    PACE_STALLS_MAX,
    PUBLISH_QUEUE_MAX,
    SEND_ERRORS_MAX,
)

__all__ = ["Line", "Packets"]

Packets = list[tuple[int, bytes]]
"""Packets with their channels, in order."""


class Line:
    """See the module. All methods belong to the loop thread.

    Counters are plain integers: packets with messages that the kernel took (those that were sent
    again apart), heartbeats, the bytes of all of them; calls of the sender; packets lost because
    the queue was full, and packets lost to an error.
    """

    def __init__(
        self, name: str, sender: DatagramSender, now_ns: Callable[[], int], log: Log
    ) -> None:
        self.packet_count = 0
        self.packet_size = 0
        self.heartbeat_count = 0
        self.republished_count = 0
        self.send_count = 0
        self.dropped_count = 0
        self.error_count = 0
        self._name = name
        self._sender = sender
        self._now_ns = now_ns
        self._log = log
        self._queue: deque[tuple[int, bytes]] = deque()
        self._old_count = 0  # packets at the head of the queue that are sent again
        self._is_held = True  # nothing leaves before what is sent again
        self._stall_count = 0  # turns in which not all was taken that the pace allows
        self._complained_ns = -COMPLAINT_NS

    @property
    def queued_count(self) -> int:
        """Packets that wait."""
        return len(self._queue)

    def offer(self, packets: Packets) -> None:
        """Send packets, or have them wait, or lose them."""
        if self._queue or self._is_held:
            self._keep(packets)
            return
        dealt_count = self._send(packets)
        if dealt_count < len(packets):
            self._keep(packets[dealt_count:])
            self._sender.when_writable(self._drain)

    def beat(self, channel: int, packet: bytes) -> None:
        """Send a heartbeat, unless packets before it still wait."""
        if self._queue or self._is_held:
            return
        self.send_count += 1
        try:
            if not self._sender.send([(channel, packet)]):
                return  # It is not missed: the next one says the same.
        except OSError as error:
            self._lose(error, 1)
            return
        self.heartbeat_count += 1
        self.packet_size += len(packet)

    def put_before(self, packets: Packets) -> None:
        """These go out again before everything else, by `send_paced`."""
        assert self._is_held, "once, at the start"
        self._old_count = len(packets)
        self._queue.extendleft(reversed(packets))

    def send_paced(self) -> bool:
        """Send a few of the packets that wait; True when the venue need not wait for the rest."""
        assert self._is_held, "until it goes on"
        wanted_count = min(PACE_PACKETS, len(self._queue))
        self._stall_count += self._send_first(wanted_count) < wanted_count
        return not self._queue or self._stall_count >= PACE_STALLS_MAX

    def go_on(self) -> None:
        """Send by itself from now on, first what still waits."""
        self._is_held = False
        if self._queue:
            self._sender.when_writable(self._drain)

    def close(self) -> None:
        """Send what the network takes at once, and no more; what still waits then is lost."""
        while self._queue and self._send_first(DRAIN_PACKETS):
            pass
        self._queue.clear()
        self._sender.close()

    def _keep(self, packets: Packets) -> None:
        """Have packets wait, as many as may."""
        # What falls due over a stop waits here at the start: no more than all open orders.
        room = len(packets) if self._is_held else PUBLISH_QUEUE_MAX - len(self._queue)
        self._queue.extend(islice(packets, max(room, 0)))
        if room < len(packets):
            self.dropped_count += len(packets) - max(room, 0)
            self._complain(f"{PUBLISH_QUEUE_MAX} packets wait already")

    def _send(self, packets: Packets) -> int:
        """Hand packets to the network, or lose them there; how many until there was no room."""
        dealt_count = error_count = 0
        while dealt_count < len(packets):
            rest = packets[dealt_count : dealt_count + DRAIN_PACKETS]
            self.send_count += 1
            try:
                taken_count = self._sender.send(rest)
            except OSError as error:
                error_count += 1
                is_broken = error_count == SEND_ERRORS_MAX
                lost_count = len(packets) - dealt_count if is_broken else 1
                self._lose(error, lost_count)
                self._old_count = max(self._old_count - lost_count, 0)
                dealt_count += lost_count
                continue
            if taken_count == 0:
                break
            error_count = 0
            old_count = min(taken_count, self._old_count)
            self._old_count -= old_count
            self.republished_count += old_count
            self.packet_count += taken_count - old_count
            self.packet_size += sum(len(packet) for _, packet in islice(rest, taken_count))
            dealt_count += taken_count
        return dealt_count

    def _send_first(self, count: int) -> int:
        """Send the packets that wait longest, at most `count`; how many wait no more."""
        dealt_count = self._send(list(islice(self._queue, count)))
        for _ in range(dealt_count):
            self._queue.popleft()
        return dealt_count

    def _drain(self) -> None:
        while self._queue:
            if self._send_first(DRAIN_PACKETS) == 0:
                self._sender.when_writable(self._drain)
                return

    def _lose(self, error: OSError, count: int) -> None:
        self.error_count += count
        self._complain(error.strerror or str(error))

    def _complain(self, reason: str) -> None:
        """Log that packets are lost, not more often than that helps."""
        now_ns = self._now_ns()
        if now_ns - self._complained_ns < COMPLAINT_NS:
            return
        self._complained_ns = now_ns
        self._log.error(
            "packets_lost",
            line=self._name,
            dropped=self.dropped_count,
            errors=self.error_count,
            reason=reason,
        )
