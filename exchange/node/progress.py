"""How far a recovery is: a line a second, for whoever waits for the venue.

A snapshot is restored in one step: a line says so before it is read, and how large it is. Nobody
knows where the journal ends before it has been read; the names of its files say what it reaches at
least, and that is what the recovery is compared with.
"""

import re
from collections.abc import Callable
from typing import Final

from exchange.clock import Clock
from exchange.logs import Log
from journal import SnapshotHead, Storage

__all__ = ["Progress"]

INTERVAL_NS: Final = 1_000_000_000
CLOCK_EVERY: Final = 256
"""Commands between two looks at the clock, milliseconds; a record may have one of them."""
NANOSECONDS_PER_SECOND: Final = 1_000_000_000
BYTES_PER_MEGABYTE: Final = 1_000_000
_FIRST_SEQUENCE: Final = re.compile(r"([0-9]{20})\.(?:segment|events)", re.ASCII)
"""At the end of the name of a segment of commands/ or events/."""


class Progress:
    """Tells the log, and `status` (one line, as systemd shows it): of each snapshot that is tried,
    and then at most once a second."""

    def __init__(self, clock: Clock, log: Log, status: Callable[[str], None]) -> None:
        self._clock = clock
        self._log = log
        self._status = status
        self._target = 0
        self._told_ns = 0
        self._told_sequence = 0
        self._next_sequence = 0  # at which the clock is looked at

    def restore(self, head: SnapshotHead) -> None:
        """This snapshot is read and restored next."""
        self._log.info("restoring", file=head.name, bytes=head.image_size)
        megabytes = -(-head.image_size // BYTES_PER_MEGABYTE)
        self._status(f"STATUS=restoring: snapshot {head.name}, {megabytes} MB")

    def begin(self, sequence: int, storages: tuple[Storage, ...]) -> None:
        """The replay begins behind this sequence. Raises OSError."""
        found = [_FIRST_SEQUENCE.search(name) for one in storages for name in one.names()]
        self._target = max((int(match[1]) - 1 for match in found if match), default=0)
        self._told_ns = self._clock.monotonic_ns()
        self._told_sequence = self._next_sequence = sequence

    def note(self, sequence: int) -> None:
        """All up to this sequence has been applied."""
        if sequence < self._next_sequence:
            return
        self._next_sequence = sequence + CLOCK_EVERY
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
