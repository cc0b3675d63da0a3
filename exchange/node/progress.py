"""How far a recovery is: a line a second, for whoever waits for the venue.

Nobody knows where the journal ends before it has been read; the names of its files say what it
reaches at least, and that is what the recovery is compared with.
"""

import re
from collections.abc import Callable
from typing import Final

from exchange.clock import Clock
from exchange.logs import Log
from journal import Storage

__all__ = ["Progress"]

INTERVAL_NS: Final = 1_000_000_000
NANOSECONDS_PER_SECOND: Final = 1_000_000_000
_FIRST_SEQUENCE: Final = re.compile(r"([0-9]{20})\.(?:segment|events)", re.ASCII)
"""At the end of the name of a segment of commands/ or events/."""


class Progress:
    """Tells the log, and `status` (one line, as systemd shows it), at most once a second."""

    def __init__(self, clock: Clock, log: Log, status: Callable[[str], None]) -> None:
        self._clock = clock
        self._log = log
        self._status = status
        self._target = 0
        self._told_ns = 0
        self._told_sequence = 0

    def begin(self, sequence: int, storages: tuple[Storage, ...]) -> None:
        """The replay begins behind this sequence. Raises OSError."""
        found = [_FIRST_SEQUENCE.search(name) for one in storages for name in one.names()]
        self._target = max((int(match[1]) - 1 for match in found if match), default=0)
        self._told_ns = self._clock.monotonic_ns()
        self._told_sequence = sequence

    def note(self, sequence: int) -> None:
        """All up to this sequence has been applied."""
        now_ns = self._clock.monotonic_ns()
        taken_ns = now_ns - self._told_ns
        if taken_ns < INTERVAL_NS:
            return
        rate = (sequence - self._told_sequence) * NANOSECONDS_PER_SECOND // taken_ns
        target = max(sequence, self._target)
        left_s = -(-(target - sequence) // rate) if rate else -1
        self._told_ns, self._told_sequence = now_ns, sequence
        self._log.info(
            "recovering",
            sequence=sequence,
            of_at_least=target,
            commands_per_second=rate,
            seconds_left=left_s,
        )
        self._status(
            f"STATUS=recovering: sequence {sequence} of {target} or more, {rate} commands/s, "
            f"{left_s} s left"
        )
