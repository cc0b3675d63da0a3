"""Latencies, counted exactly in tenths of a microsecond, and percentiles by nearest rank.

A counter of distinct values instead of a list: its size follows how much the values differ, not how
many there are, and a whole group of orders with the same latency is one addition.
"""

from collections import Counter
from typing import Final

__all__ = ["Latencies"]

RESOLUTION_NS: Final = 100


class Latencies:
    """Durations in nanoseconds in, percentiles in microseconds out."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def add(self, duration_ns: int, count: int = 1) -> None:
        """Count a duration `count` times; rounded down to the resolution."""
        self._counts[duration_ns // RESOLUTION_NS] += count

    def merge(self, other: "Latencies") -> None:
        """Count everything that `other` has counted."""
        self._counts.update(other._counts)

    @property
    def count(self) -> int:
        """How many durations were counted."""
        return self._counts.total()

    def percentile_us(self, percent: float) -> float:
        """The smallest duration that at least `percent` of all do not exceed; 0.0 if none."""
        rank = -(-self.count * percent // 100)
        seen = 0
        for value in sorted(self._counts):
            seen += self._counts[value]
            if seen >= rank:
                return value * RESOLUTION_NS / 1000
        return 0.0
