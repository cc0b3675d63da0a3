"""Market data out: the packets of durable batches to every line, and heartbeats between.

The packets are made once; each line (`exchange.node.line`) sends them, and what is wrong with one
is nothing to the other. After a start the market data of the last records is sent again, paced.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from exchange.logs import Log
from exchange.multicast import DatagramSender
from exchange.node.limits import PACE_S
from exchange.node.line import Line
from protocol.packer import Packer
from protocol.packets import HEARTBEAT_INTERVAL_NS

__all__ = ["Publisher"]

NANOSECONDS_PER_MILLISECOND: Final = 1_000_000


class Publisher:
    """See the module. All methods belong to the loop thread."""

    def __init__(
        self,
        senders: Mapping[str, DatagramSender],
        epoch: int,
        now_ns: Callable[[], int],
        loop: asyncio.AbstractEventLoop,
        log: Log,
    ) -> None:
        """`senders` are those of the lines by name; `now_ns` stamps the packets and must not go
        back."""
        self.epoch = epoch
        self.lines = {name: Line(name, sender, now_ns, log) for name, sender in senders.items()}
        self._now_ns = now_ns
        self._loop = loop
        self._packer = Packer(epoch)
        self._sent_ns: dict[int, int] = {}  # channels in use: when they last had a packet
        self._heartbeat: asyncio.TimerHandle | None = None
        self._pace: asyncio.TimerHandle | None = None

    def begin(self, channels: Iterable[tuple[int, int]]) -> None:
        """Know the channels in use and their next numbers, before anything is published."""
        now_ns = self._now_ns()
        for channel, next_number in channels:
            self._packer.expect(channel, next_number)
            self._sent_ns[channel] = now_ns
        self._arm()

    def publish(self, events: bytes) -> None:
        """Send the market data of a durable batch."""
        now_ns = self._now_ns()
        packets = self._packer.pack(events, now_ns)
        for line in self.lines.values():
            line.offer(packets)
        for channel, _ in packets:
            self._sent_ns[channel] = now_ns
        self._arm()

    def republish(self, events: bytes, done: Callable[[], None]) -> None:
        """Send older market data again, then what waits, and go on; calls back after that."""
        packets = Packer(self.epoch).pack(events, self._now_ns())
        for line in self.lines.values():
            line.put_before(packets)
        self._send_paced(done)

    def close(self) -> None:
        """Send what the network takes at once, and no more; what still waits then is lost."""
        for timer in (self._heartbeat, self._pace):
            if timer is not None:
                timer.cancel()
        for line in self.lines.values():
            line.close()

    def _send_paced(self, done: Callable[[], None]) -> None:
        """A few packets of each line now, the others later; calls back when one line is through,
        and the others go on by themselves."""
        lines = self.lines.values()
        are_through = [line.send_paced() for line in lines]
        if not any(are_through):
            self._pace = self._loop.call_later(PACE_S, self._send_paced, done)
            return
        self._pace = None
        for line in lines:
            line.go_on()
        done()

    # Heartbeats.

    def _arm(self) -> None:
        """Set the timer to the first channel that will have been silent for long enough."""
        if self._heartbeat is not None or not self._sent_ns:
            return
        silent_ns = self._now_ns() - min(self._sent_ns.values())
        # Whole milliseconds, rounded up: an event loop may cut off the rest and fire too early.
        delay_ms = -(-(HEARTBEAT_INTERVAL_NS - silent_ns) // NANOSECONDS_PER_MILLISECOND)
        self._heartbeat = self._loop.call_later(max(delay_ms, 0) / 1_000, self._on_heartbeat)

    def _on_heartbeat(self) -> None:
        self._heartbeat = None
        now_ns = self._now_ns()
        for channel, sent_ns in self._sent_ns.items():
            if now_ns - sent_ns >= HEARTBEAT_INTERVAL_NS:
                self._sent_ns[channel] = now_ns
                packet = self._packer.heartbeat(channel, self._packer.next_number(channel), now_ns)
                for line in self.lines.values():
                    line.beat(channel, packet)
        self._arm()
