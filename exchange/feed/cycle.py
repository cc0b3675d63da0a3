"""The cycle of snapshots over multicast: every channel in turn, again and again, at a bounded rate.

A tick sends what the time since the last one allows. The pace is such that a cycle takes CYCLE_NS,
or as long as the rate demands, and packets are spread evenly over it; when the rate cannot hold
what consumers are promised, SNAPSHOT_INTERVAL_NS, the log says which rate could. What a line does
not take is lost on that line and counted: the next cycle brings it again, and no line waits for
another.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

from exchange.feed.market import Market
from exchange.feed.snapshots import Plan, Snapshots
from exchange.logs import Log
from exchange.multicast import DatagramSender
from protocol.packets import SNAPSHOT_INTERVAL_NS

__all__ = ["Cycle", "CycleLine"]

NANOSECONDS_PER_SECOND: Final = 1_000_000_000

CYCLE_NS: Final = 400_000_000
"""A cycle of what is small: who needs two of them, because it came in the middle of one, is right
within a second."""

TICK_S: Final = 0.01
"""Between two bursts of packets: they are then small beside what a receiver buffers."""

BURST_NS: Final = 50_000_000
"""When the process was held up, what it missed beyond this is not made up for."""

_HASTE: Final = 4
"""The pace is one part in so many above what is needed: a market may grow meanwhile."""

COMPLAINT_NS: Final = 60 * NANOSECONDS_PER_SECOND
"""How often the log says that the rate is too low, or that a line takes nothing."""


class CycleLine:
    """One line and its counters: packets that were taken, their bytes, packets that were lost."""

    __slots__ = ("dropped_count", "error_count", "packet_count", "packet_size", "sender")

    def __init__(self, sender: DatagramSender) -> None:
        self.sender = sender
        self.packet_count = 0
        self.packet_size = 0
        self.dropped_count = 0
        self.error_count = 0

    def send(self, packets: list[tuple[int, bytes]]) -> str:
        """Hand over packets, or lose them; "" or what the network said."""
        # A sender takes a part at a time; only when it takes none, there is no room.
        while packets:
            try:
                taken = self.sender.send(packets)
            except OSError as error:
                self.error_count += len(packets)
                return error.strerror or str(error)
            if not taken:
                break
            self.packet_count += taken
            self.packet_size += sum(len(packet) for _, packet in packets[:taken])
            packets = packets[taken:]
        self.dropped_count += len(packets)
        return ""


class Cycle:
    """See the module. All methods belong to the loop thread. `cycle_count` cycles are done, the
    last one took `cycle_ns`."""

    def __init__(
        self,
        market: Market,
        snapshots: Snapshots,
        senders: Mapping[str, DatagramSender],
        rate: int,
        now_ns: Callable[[], int],
    ) -> None:
        """`senders` are those of the lines by name, `rate` is in bytes a second and line; `now_ns`
        stamps the packets and must not go back."""
        assert rate > 0, f"rate {rate}"
        self.lines = {name: CycleLine(sender) for name, sender in senders.items()}
        self.cycle_count = 0
        self.cycle_ns = 0
        self._market = market
        self._snapshots = snapshots
        self._rate = rate
        self._now_ns = now_ns
        self._numbers: dict[int, int] = {}
        """By channel, that of the next message: at first the clock's microseconds, which are above
        all that a feed before this one can have given."""
        self._waiting: list[int] = []  # channels that this cycle has not reached
        self._plan: Plan | None = None
        self._size = 0  # bytes of this cycle so far
        self._pace = rate
        self._credit = 0  # bytes that may be sent now, times NANOSECONDS_PER_SECOND
        self._ticked_ns = now_ns()
        self._began_ns = self._ticked_ns - CYCLE_NS  # the first one is due
        self._complained_ns = -COMPLAINT_NS
        self._timer: asyncio.TimerHandle | None = None

    def start(self, loop: asyncio.AbstractEventLoop, log: Log) -> None:
        """Go on until `close`."""
        problem = self.tick()
        if problem and self._ticked_ns - self._complained_ns >= COMPLAINT_NS:
            self._complained_ns = self._ticked_ns
            log.error("snapshots_fail", reason=problem)
        self._timer = loop.call_later(TICK_S, self.start, loop, log)

    def close(self) -> None:
        """Send no more."""
        if self._timer is not None:
            self._timer.cancel()
        for line in self.lines.values():
            line.sender.close()

    def tick(self) -> str:
        """Send what is due; returns "", or what the operator ought to know."""
        now_ns = self._now_ns()
        elapsed_ns = min(now_ns - self._ticked_ns, BURST_NS)
        self._ticked_ns = now_ns
        self._credit = min(self._credit, 0) + elapsed_ns * self._pace
        problem = ""
        while self._credit > 0:
            if self._plan is None and not self._waiting:
                problem = self._end(now_ns) or problem
                if not self._begin(now_ns):
                    break
            problem = self._go_on(now_ns) or problem
        return problem

    def _begin(self, now_ns: int) -> bool:
        """Begin a cycle; False when none is due, or nothing is listed."""
        if now_ns - self._began_ns < CYCLE_NS:
            return False
        self._began_ns = now_ns
        self._waiting = sorted(self._market.channels, reverse=True)
        return bool(self._waiting)

    def _end(self, now_ns: int) -> str:
        """A cycle is done, if there was one: set the pace of the next; "" if it was in time."""
        if not self._size:
            return ""
        size, self._size = self._size, 0
        self.cycle_count += 1
        self.cycle_ns = now_ns - self._began_ns
        wanted = size * NANOSECONDS_PER_SECOND // CYCLE_NS
        self._pace = min(self._rate, wanted + wanted // _HASTE + 1)
        if self.cycle_ns <= SNAPSHOT_INTERVAL_NS:
            return ""
        rate = size * NANOSECONDS_PER_SECOND // SNAPSHOT_INTERVAL_NS
        return (
            f"all books took {self.cycle_ns // 1_000_000} ms, {SNAPSHOT_INTERVAL_NS // 1_000_000} "
            f"are promised: snapshot_rate is {self._rate}, {rate + rate // _HASTE} would do"
        )

    def _go_on(self, now_ns: int) -> str:
        """Send a little of the snapshot that is open, or of the next one; "" or what failed."""
        plan = self._plan
        if plan is None:
            channel = self._waiting.pop()
            number = self._numbers.get(channel) or now_ns // 1_000
            plan = self._plan = self._snapshots.plan(channel, number, now_ns)
        packets = plan.step(now_ns, self._credit // NANOSECONDS_PER_SECOND + 1)
        size = sum(map(len, packets))
        self._size += size
        self._credit -= size * NANOSECONDS_PER_SECOND
        if plan.is_done:
            self._numbers[plan.channel] = plan.number
            self._plan = None
        addressed = [(plan.channel, packet) for packet in packets]
        problems = [(name, line.send(addressed)) for name, line in self.lines.items()]
        return "; ".join(f"line {name}: {problem}" for name, problem in problems if problem)
