"""The event log of a venue and its position socket, as `exchange serve` has them, without the rest.

A test writes batches, kills the venue and starts it again; what feeds read is the real thing.
"""

import asyncio
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from exchange.clock import Clock, SystemClock
from exchange.feed.surroundings import OtherFeed, Surroundings
from exchange.logs import Log
from exchange.node.position import PositionStream, bind_position
from exchange.position import connect_position
from journal import EventLog, FolderStorage, Position, run_inline
from journal.memory import MemoryStorage
from tests.exchange.feed.door import Door
from tests.journal.event_life import Batch

__all__ = ["EPOCH", "SEGMENT_SIZE", "VenueLog", "copy_surroundings"]

EPOCH = 7 << 20
SEGMENT_SIZE = 2048


class VenueLog:
    """`lines` is what is logged, also by the feed."""

    def __init__(self, folder: Path, *, segment_size: int = SEGMENT_SIZE) -> None:
        self.folder = folder
        self.events = folder / "events"
        self.path = folder / "position"
        self.segment_size = segment_size
        self.epoch = EPOCH
        self.batches: list[Batch] = []
        self.lines: list[str] = []
        self.log = Log(lambda: 0, self.lines.append)
        self.stream: PositionStream | None = None
        self._door: Door | None = None
        self._event_log: EventLog | None = None

    def surroundings(self, clock: Clock | None = None) -> Surroundings:
        """Those of a feed beside the venue."""
        return Surroundings(
            clock=clock or SystemClock(),
            log=self.log,
            origin=connect_position(self.path),
            events=FolderStorage(self.events, is_read_only=True),
            saved=MemoryStorage(),
        )

    async def start(self) -> None:
        """Start as a venue does: check everything that is there, mend it, listen."""
        storage = FolderStorage(self.events)
        event_log = EventLog.open(storage, segment_size=self.segment_size, execute=run_inline)
        for batch in self.batches:
            event_log.check(*batch)
        event_log.start(self.batches[-1].last_sequence if self.batches else 0)
        self._event_log = event_log
        self.stream = PositionStream(self.position, self.log)
        self._door = Door(bind_position(self.path), self.stream.accept)

    @property
    def position(self) -> Position:
        assert self._event_log is not None
        at = self._event_log.position
        return Position(at.sequence, 1, 512, at.segment, at.offset, self.epoch, 1)

    def write(self, batch: Batch) -> None:
        """One durable batch."""
        self.append(batch)
        self.tell()

    def append(self, batch: Batch) -> None:
        """A batch that nobody is told of yet."""
        assert self._event_log is not None
        self.batches.append(batch)
        self._event_log.append(*batch)

    def tell(self) -> None:
        assert self.stream is not None
        self.stream.tell(self.position)

    def write_all(self, batches: list[Batch]) -> None:
        for batch in batches:
            self.write(batch)

    async def kill(self) -> None:
        """SIGKILL, as far as others see it."""
        assert self.stream is not None
        assert self._door is not None
        assert self._event_log is not None
        await self._door.close()
        self.stream.close()
        while self.stream.reader_count:
            await asyncio.sleep(0)
        self._event_log.close()
        self._event_log = self._door = None

    @property
    def segments(self) -> list[Path]:
        return sorted(self.events.glob("*.events"))


def copy_surroundings(folder: Path, port: int, key: Ed25519PrivateKey, log: Log) -> Surroundings:
    """Those of a feed that copies the log of another one into a folder."""
    data = FolderStorage(folder)
    return Surroundings(
        clock=SystemClock(),
        log=log,
        origin=OtherFeed("127.0.0.1", port, key, data),
        events=FolderStorage(folder / "events"),
        saved=MemoryStorage(),
    )
