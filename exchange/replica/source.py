"""Where a replica's records come from: the journal of the venue beside it, as it grows.

Records are read as far as the venue has said that they are durable, never beyond. The venue may be
away, and comes back: its journal must then have what was read, at the same place.
"""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from exchange.logs import Log
from exchange.position import ConnectPosition, PositionClient
from exchange.replica.failure import DAMAGED, ReplicaFailure
from exchange.replica.limits import POSITION_INTERVAL_S
from journal import (
    CommandsFollower,
    CommandsPosition,
    CommandsState,
    Position,
    Record,
    SnapshotHead,
    Storage,
)

__all__ = ["CommandSource", "LocalSource"]


class CommandSource(Protocol):
    """Durable records in order, each once. Made on the loop that it runs on."""

    @property
    def until(self) -> Position | None:
        """What may be read, as it was said last; None: nothing was said yet."""

    @property
    def at(self) -> CommandsState:
        """The record that was handed out last."""

    @property
    def is_connected(self) -> bool:
        """Whether the venue is there."""

    @property
    def start_count(self) -> int:
        """How often the venue was met: it may have started in between."""

    async def run(self) -> None:
        """Stay connected, for ever. Raises PositionError."""

    async def wait(self) -> None:
        """Wait until something was said since the last reading."""

    def read(self, size_max: int) -> Sequence[Record]:
        """The next records, some `size_max` bytes of them; none when there are none yet. Raises
        ReplicaFailure, JournalError, OSError."""

    def close(self) -> None:
        """Let go of everything; `run` has been canceled or has ended."""


class LocalSource:
    """A `CommandSource` over commands/ of a venue on this host, behind a snapshot or from the first
    record on. Raises JournalDamaged when the journal has not what the snapshot says, OSError."""

    def __init__(
        self, commands: Storage, connect: ConnectPosition, log: Log, start: SnapshotHead | None
    ) -> None:
        self.until: Position | None = None
        self.start_count = 0
        self._follower = CommandsFollower(commands, start)
        self._client = PositionClient(connect, self._told, log, interval_s=POSITION_INTERVAL_S)
        self._log = log
        self._news = asyncio.Event()
        self._failure: ReplicaFailure | None = None

    @property
    def at(self) -> CommandsState:
        return self._follower.state

    @property
    def is_connected(self) -> bool:
        return self._client.is_connected

    async def run(self) -> None:
        await self._client.run()

    async def wait(self) -> None:
        await self._news.wait()

    def read(self, size_max: int) -> Sequence[Record]:
        self._news.clear()
        if self._failure is not None:
            raise self._failure
        until = self.until
        if until is None:
            return ()
        at = CommandsPosition(until.commands_segment, until.commands_offset)
        return self._follower.read(at, size_max)

    def close(self) -> None:
        self._client.close()
        self._follower.close()

    def _told(self, position: Position, is_first: bool) -> None:
        """The venue says how far may be read; `is_first` on a new connection."""
        known = self.until
        if known is not None and position.sequence < known.sequence:
            text = f"the journal ends at sequence {position.sequence}, {known.sequence} was known"
            self._failure = ReplicaFailure(DAMAGED, text)
            self._news.set()
            return
        if is_first:
            self._log.info("venue_connected", sequence=position.sequence, epoch=position.epoch)
            # It may have been started anew, with other files.
            self._follower.look_again()
            self.start_count += 1
        self.until = position
        self._news.set()
