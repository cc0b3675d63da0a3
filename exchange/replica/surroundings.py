"""What of the world a replica touches, its event loop apart. A simulator brings its own."""

from dataclasses import dataclass
from typing import Final

from exchange.clock import Clock
from exchange.logs import Log
from exchange.position import ConnectPosition
from journal import Storage
from journal.event_format import EVENT_SEGMENT_SIZE

__all__ = ["RESERVE_SEGMENTS", "Surroundings"]

RESERVE_SEGMENTS: Final = 4
"""Segments of commands/ for which a snapshot leaves room on the disk: one more than the venue needs
to take orders, so that a snapshot never is what makes it refuse them."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Clock, folders of the venue's data, and the way to the venue. Sizes in bytes."""

    clock: Clock
    commands: Storage
    events: Storage
    snapshots: Storage
    connect: ConnectPosition
    log: Log
    event_segment_size: int = EVENT_SEGMENT_SIZE
    reserve_size: int = RESERVE_SEGMENTS * 64 * 1024 * 1024
    """What a snapshot leaves free on the disk."""
