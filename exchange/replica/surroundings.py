"""What of the world a replica touches, its event loop apart. A simulator brings its own."""

from dataclasses import dataclass

from exchange.clock import Clock
from exchange.logs import Log
from exchange.position import ConnectPosition
from journal import Storage
from journal.event_format import EVENT_SEGMENT_SIZE

__all__ = ["Surroundings"]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Clock, folders of the venue's data, and the way to the venue. Sizes in bytes."""

    clock: Clock
    commands: Storage
    events: Storage
    snapshots: Storage
    connect: ConnectPosition
    log: Log
    reserve_size: int
    """What a snapshot leaves free on the disk."""
    event_segment_size: int = EVENT_SEGMENT_SIZE
