"""Market data out: the packets of durable batches to the multicast groups, and heartbeats between.

Nothing here can harm the venue. The socket never blocks: when its buffer is full, packets wait in a
bounded queue until it is writable; beyond the bound, and at any other error of the network, they
are lost, counted and now and then logged. Consumers see by the numbers what they lack.

After a start the market data of the last records is sent again, paced; what comes meanwhile waits
behind it in the same queue.
"""

import asyncio
import errno
import socket
from collections import deque
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address
from typing import Final, Protocol

from exchange.config import ConfigError, MarketDataSettings
from exchange.logs import Log
from exchange.node.limits import COMPLAINT_NS, PACE_PACKETS, PACE_S, PUBLISH_QUEUE_MAX
from protocol.packer import Packer
from protocol.packets import CHANNELS_MAX, HEARTBEAT_INTERVAL_NS

__all__ = ["DatagramSender", "MulticastSender", "Publisher"]

NANOSECONDS_PER_MILLISECOND: Final = 1_000_000

SEND_BUFFER_SIZE: Final = 4 * 1024 * 1024
"""What is asked of the kernel: the packets of the largest batch. It gives what it allows."""


class DatagramSender(Protocol):
    """Where packets go. A simulator brings its own."""

    def send(self, channel: int, packet: bytes) -> bool:
        """Hand over one packet; False when there is no room now. Raises OSError."""

    def when_writable(self, action: Callable[[], None]) -> None:
        """Call back once, when there is room again."""

    def close(self) -> None:
        """Let go; no callback comes any more."""


class MulticastSender:
    """One UDP socket for all groups. Raises ConfigError if the settings do not fit the machine."""

    def __init__(self, settings: MarketDataSettings, loop: asyncio.AbstractEventLoop) -> None:
        group = IPv4Address(settings.group)
        self._addresses = [(str(group + i), settings.port) for i in range(CHANNELS_MAX)]
        self._loop = loop
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        try:
            # Bound to the interface's address: another machine's is found out here.
            self._socket.bind((settings.interface, 0))
            interface = socket.inet_aton(settings.interface)
            self._set(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, interface)
            self._set(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, settings.ttl)
            # Consumers on this machine get a copy.
            self._set(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
            self._set(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_SIZE)
        except OSError as error:
            self._socket.close()
            if error.errno == errno.EADDRNOTAVAIL:
                text = f"{settings.interface} is not an address of this machine"
            else:
                text = f"{settings.interface}: {error.strerror}"
            raise ConfigError(f"market_data.interface: {text}") from None

    def _set(self, level: int, option: int, value: int | bytes) -> None:
        self._socket.setsockopt(level, option, value)

    def send(self, channel: int, packet: bytes) -> bool:
        try:
            self._socket.sendto(packet, self._addresses[channel - 1])
        except BlockingIOError:
            return False
        return True

    def when_writable(self, action: Callable[[], None]) -> None:
        def call_once() -> None:
            self._loop.remove_writer(self._socket)
            action()

        self._loop.add_writer(self._socket, call_once)

    def close(self) -> None:
        self._loop.remove_writer(self._socket)
        self._socket.close()


class Publisher:
    """See the module. All methods belong to the loop thread.

    Counters are plain integers: packets with messages that the kernel took (those that were sent
    again apart), heartbeats, the bytes of all of them; packets lost because the queue was full, and
    packets lost to an error.
    """

    def __init__(
        self,
        sender: DatagramSender,
        epoch: int,
        now_ns: Callable[[], int],
        loop: asyncio.AbstractEventLoop,
        log: Log,
    ) -> None:
        """`now_ns` stamps the packets and must not go back."""
        self.epoch = epoch
        self.packet_count = 0
        self.packet_size = 0
        self.heartbeat_count = 0
        self.republished_count = 0
        self.dropped_count = 0
        self.error_count = 0
        self._sender = sender
        self._now_ns = now_ns
        self._loop = loop
        self._log = log
        self._packer = Packer(epoch)
        self._queue: deque[tuple[int, bytes]] = deque()
        self._old_count = 0  # packets at the head of the queue that are sent again
        self._is_held = True  # nothing leaves before what is sent again
        self._sent_ns: dict[int, int] = {}  # channels in use: when they last had a packet
        self._heartbeat: asyncio.TimerHandle | None = None
        self._pace: asyncio.TimerHandle | None = None
        self._complained_ns = -COMPLAINT_NS

    @property
    def queued_count(self) -> int:
        """Packets that wait."""
        return len(self._queue)

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
        for channel, packet in self._packer.pack(events, now_ns):
            self._sent_ns[channel] = now_ns
            self._offer(channel, packet)
        self._arm()

    def republish(self, events: bytes, done: Callable[[], None]) -> None:
        """Send older market data again, then what waits, and go on; calls back after that."""
        assert self._is_held, "once, at the start"
        packets = Packer(self.epoch).pack(events, self._now_ns())
        self._old_count = len(packets)
        self._queue.extendleft(reversed(packets))
        self._send_paced(done)

    def close(self) -> None:
        """Send what the network takes at once, and no more; what still waits then is lost."""
        for timer in (self._heartbeat, self._pace):
            if timer is not None:
                timer.cancel()
        while self._queue and self._send_first():
            pass
        self._queue.clear()
        self._sender.close()

    # Packets.

    def _offer(self, channel: int, packet: bytes) -> None:
        """Send a packet, or have it wait, or lose it."""
        if not self._queue and not self._is_held:
            if not self._send(channel, packet):
                self._queue.append((channel, packet))
                self._sender.when_writable(self._drain)
        elif len(self._queue) < PUBLISH_QUEUE_MAX or self._is_held:
            # What falls due over a stop waits here at the start: no more than all open orders.
            self._queue.append((channel, packet))
        else:
            self.dropped_count += 1
            self._complain(f"{PUBLISH_QUEUE_MAX} packets wait already")

    def _send(self, channel: int, packet: bytes) -> bool:
        """Hand a packet to the network, or lose it there; False when there is no room now."""
        try:
            if not self._sender.send(channel, packet):
                return False
        except OSError as error:
            self.error_count += 1
            self._complain(error.strerror or str(error))
        else:
            self.packet_size += len(packet)
            if self._old_count:
                self.republished_count += 1
            else:
                self.packet_count += 1
        return True

    def _send_first(self) -> bool:
        """Send the packet that waits longest; False when there is no room now."""
        if not self._send(*self._queue[0]):
            return False
        self._queue.popleft()
        self._old_count = max(self._old_count - 1, 0)
        return True

    def _drain(self) -> None:
        while self._queue:
            if not self._send_first():
                self._sender.when_writable(self._drain)
                return

    def _send_paced(self, done: Callable[[], None]) -> None:
        """A few packets now, the others later; calls back when none waits any more."""
        for _ in range(PACE_PACKETS):
            if not self._queue or not self._send_first():
                break
        if self._queue:
            self._pace = self._loop.call_later(PACE_S, self._send_paced, done)
            return
        self._pace = None
        self._is_held = False
        done()

    def _complain(self, reason: str) -> None:
        """Log that packets are lost, not more often than that helps."""
        now_ns = self._now_ns()
        if now_ns - self._complained_ns < COMPLAINT_NS:
            return
        self._complained_ns = now_ns
        self._log.error(
            "packets_lost", dropped=self.dropped_count, errors=self.error_count, reason=reason
        )

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
                self._beat(channel, now_ns)
        self._arm()

    def _beat(self, channel: int, now_ns: int) -> None:
        """Say the next number of a channel, unless packets before it still wait."""
        if self._queue or self._is_held:
            return
        packet = self._packer.heartbeat(channel, self._packer.next_number(channel), now_ns)
        try:
            if not self._sender.send(channel, packet):
                return  # It is not missed: the next one says the same.
        except OSError as error:
            self.error_count += 1
            self._complain(error.strerror or str(error))
            return
        self.heartbeat_count += 1
        self.packet_size += len(packet)
