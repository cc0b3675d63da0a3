"""Where the time comes from: the core never asks, the node asks one `Clock`, a simulator brings its
own.
"""

import time
from typing import Protocol

__all__ = ["Clock", "SystemClock"]


class Clock(Protocol):
    """Two readings in nanoseconds: one for people and order, one for durations."""

    def time_ns(self) -> int:
        """Since the epoch, UTC. May step either way; whoever needs order takes max(clock, last)."""

    def monotonic_ns(self) -> int:
        """Since some moment; never goes back."""


class SystemClock:
    """The clock of the machine."""

    def time_ns(self) -> int:
        return time.time_ns()

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()
