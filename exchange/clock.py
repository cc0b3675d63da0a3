"""Where the time comes from: the core never asks, the node asks one `Clock`, a simulator brings its
own.
"""

import time
from typing import Protocol

__all__ = ["Clock", "SteadyClock", "SystemClock"]


class Clock(Protocol):
    """Two readings in nanoseconds: one for people and order, one for durations."""

    def time_ns(self) -> int:
        """Since the epoch, UTC. May step either way; `SteadyClock` makes it go on."""

    def monotonic_ns(self) -> int:
        """Since some moment; never goes back."""


class SystemClock:
    """The clock of the machine."""

    def time_ns(self) -> int:
        return time.time_ns()

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()


class SteadyClock:
    """A clock that never goes back and never stands still, over one that may be set.

    When the clock below is set back, time goes on at the pace of its monotonic reading, so that
    deadlines still fire; when it is set forward, time follows. It begins at `start_ns` at least.
    """

    def __init__(self, clock: Clock, start_ns: int) -> None:
        self._clock = clock
        self._last_ns = start_ns
        self._last_monotonic_ns = clock.monotonic_ns()

    def time_ns(self) -> int:
        monotonic_ns = self._clock.monotonic_ns()
        gone_on_ns = self._last_ns + monotonic_ns - self._last_monotonic_ns
        self._last_ns = max(self._clock.time_ns(), gone_on_ns)
        self._last_monotonic_ns = monotonic_ns
        return self._last_ns

    def monotonic_ns(self) -> int:
        return self._clock.monotonic_ns()
