"""A reader of the position stream, in memory, with room for a number of messages."""

import asyncio
from typing import Any

from exchange.node.position import PositionReader
from journal import Position, decode_position
from journal.position import POSITION_SIZE

__all__ = ["Pipe", "positions"]


def positions(data: bytes) -> list[Position]:
    """All whole messages; there is nothing else."""
    assert len(data) % POSITION_SIZE == 0
    starts = range(0, len(data), POSITION_SIZE)
    return [decode_position(data[start : start + POSITION_SIZE]) for start in starts]


class Pipe(asyncio.Transport):
    """The transport of one reader; what it has taken is `taken`."""

    def __init__(self, reader: PositionReader, room: int = 2**62) -> None:
        super().__init__()
        self.room = room
        self.taken = b""
        self.is_aborted = False
        self._reader = reader
        self._waiting = b""
        reader.connection_made(self)

    @property
    def positions(self) -> list[Position]:
        """What has arrived."""
        return positions(self.taken)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert high == 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self._waiting, "written behind what waits"
        if self.room:
            self.room -= 1
            self.taken += data
        else:
            self._waiting = bytes(data)
            self._reader.pause_writing()

    def abort(self) -> None:
        self.is_aborted = True

    def make_room(self, room: int) -> None:
        """The reader has read."""
        assert self._waiting
        self.room = room - 1
        self.taken += self._waiting
        self._waiting = b""
        self._reader.resume_writing()
