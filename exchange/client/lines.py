"""One multicast line: a socket for each channel, and one for its snapshots while they are wanted.

A venue at its peak sends more than Python can read in one turn of a loop, so the receive buffers
are as large as the kernel allows, and each turn reads a bounded number of datagrams. What is lost
all the same shows as a hole in the numbers, and as the kernel's own count of dropped datagrams.
"""

import asyncio
import struct
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from statistics import median_low
from typing import Final, NamedTuple

from exchange.client.limits import DATAGRAMS_MAX, LAG_SAMPLES_MAX, LAG_WINDOW_NS
from exchange.client.receiver import MarketDataReceiver
from exchange.client.sockets import GroupSocket, group_of, snapshot_group_of
from exchange.client.surroundings import Surroundings
from exchange.clock import Clock
from protocol.packets import PACKET_HEADER

__all__ = ["Lag", "Line", "LineReader", "LineState"]

Take = Callable[[int, bytes, int], None]

_SEND_TIME: Final = struct.Struct("<24xQ")
"""Where the header of a packet has it."""


@dataclass(frozen=True)
class Line:
    """Where a line is heard: its group is that of channel 1, `interface` an address of ours."""

    group: str
    port: int
    interface: str = "127.0.0.1"


class Lag(NamedTuple):
    """How old what arrives is, over the last second; all 0 when nothing came.

    The first pair is from the packets' send time until they were read here, by the clocks of both
    machines; the other from the time at which commands were sequenced until the packets were sent,
    of packets that were the first to bring them.
    """

    network_p50_ns: int = 0
    network_max_ns: int = 0
    venue_p50_ns: int = 0
    venue_max_ns: int = 0
    sample_count: int = 0


class LineState:
    """What is known of one way on which packets come. For reading only."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.packet_count = 0
        """Datagrams or packets that were read, whatever was in them."""
        self.heard_ns: dict[int, int] = {}
        """By channel, when something came last; its snapshots do not count."""
        self.drop_counts: dict[int, int] = {}
        """By channel, datagrams that the kernel dropped because we were too slow, as last told."""
        self._samples: deque[tuple[int, int, int | None]] = deque(maxlen=LAG_SAMPLES_MAX)

    @property
    def dropped_count(self) -> int:
        """Datagrams that the kernel dropped because this process was too slow, as last told."""
        return sum(self.drop_counts.values())

    def sample(self, data: bytes, time_ns: int, clock: Clock) -> None:
        """Note how old a packet is; `time_ns` is that of its last command, 0: it was not new."""
        if len(data) < PACKET_HEADER.size:
            return
        [send_time_ns] = _SEND_TIME.unpack_from(data)
        if send_time_ns:
            network_ns = clock.time_ns() - send_time_ns
            venue_ns = send_time_ns - time_ns if time_ns else None
            self._samples.append((clock.monotonic_ns(), network_ns, venue_ns))

    def lag(self, now_ns: int) -> Lag:
        """That of the last second."""
        samples = [one for one in self._samples if now_ns - one[0] <= LAG_WINDOW_NS]
        if not samples:
            return Lag()
        networks = [network_ns for _, network_ns, _ in samples]
        venues = [venue_ns for _, _, venue_ns in samples if venue_ns is not None] or [0]
        pairs = (median_low(networks), max(networks), median_low(venues), max(venues))
        return Lag(*pairs, len(samples))


class LineReader:
    """Reads one line into a receiver; `after` is called when something was read."""

    def __init__(
        self,
        state: LineState,
        line: Line,
        receiver: MarketDataReceiver,
        surroundings: Surroundings,
        after: Callable[[], None],
    ) -> None:
        self.state = state
        self.receive_buffer_size = 0
        """Bytes that the kernel keeps for each channel, its own overhead included."""
        self._line = line
        self._receiver = receiver
        self._clock = surroundings.clock
        self._hear = surroundings.hear
        self._after = after
        self._sockets: dict[int, GroupSocket] = {}
        self._snapshot_sockets: dict[int, GroupSocket] = {}

    def open(self, channels: Iterable[int]) -> None:
        """Join the groups of channels and begin to read. Raises OSError; `close` is called then."""
        group, port, interface = self._line.group, self._line.port, self._line.interface
        for channel in channels:
            self._sockets[channel] = self._hear(group_of(group, channel), port, interface)
        for channel, udp in self._sockets.items():
            self.receive_buffer_size = udp.buffer_size
            udp.when_readable(partial(self._read, channel, udp, self._receiver.receive))

    def hear_snapshots(self, channel: int, is_wanted: bool) -> None:
        """Join or leave the group of a channel's snapshots. A failure is told to the loop."""
        if is_wanted == (channel in self._snapshot_sockets):
            return
        if not is_wanted:
            self._snapshot_sockets.pop(channel).close()
            return
        group = snapshot_group_of(self._line.group, channel)
        try:
            udp = self._hear(group, self._line.port, self._line.interface)
        except OSError as error:
            _complain(f"snapshots of channel {channel} cannot be heard", error)
            return
        self._snapshot_sockets[channel] = udp
        udp.when_readable(partial(self._read, channel, udp, self._receiver.receive_snapshot))

    def close(self) -> None:
        """Leave all groups."""
        for udp in (*self._sockets.values(), *self._snapshot_sockets.values()):
            udp.close()
        self._sockets.clear()
        self._snapshot_sockets.clear()

    def drain(self) -> bool:
        """Read what waits on every channel, up to a bound; True: nothing waits any more."""
        receive = self._receiver.receive
        sockets = [*self._sockets.items()]
        emptied = [self._drain(channel, udp, receive) for channel, udp in sockets]
        return all(emptied)

    def _read(self, channel: int, udp: GroupSocket, take: Take) -> None:
        self._drain(channel, udp, take)
        self._after()

    def _drain(self, channel: int, udp: GroupSocket, take: Take) -> bool:
        """Read up to a bound; True: the socket is empty."""
        state, now_ns = self.state, self._clock.monotonic_ns()
        try:
            data, drop_count = udp.receive()
            if self._sockets.get(channel) is udp:
                state.heard_ns[channel] = now_ns
                if drop_count >= 0:
                    state.drop_counts[channel] = drop_count
            state.packet_count += 1
            target = self._receiver.channels[channel]
            before = target.next_number
            take(channel, data, now_ns)
            is_new = target.next_number > before
            state.sample(data, target.last_time_ns if is_new else 0, self._clock)
            for _ in range(DATAGRAMS_MAX - 1):
                data = udp.receive_next()
                state.packet_count += 1
                take(channel, data, now_ns)
        except BlockingIOError:
            return True
        except OSError as error:
            # When a callback has closed the consumer, nothing is wrong. Else the interface went
            # away, for example; it may come back, and until then it is silent.
            if udp.is_open:
                _complain(f"channel {channel} of line {state.name} cannot be read", error)
            return True
        return False


def _complain(message: str, error: OSError) -> None:
    context = {"message": message, "exception": error}
    asyncio.get_running_loop().call_exception_handler(context)
