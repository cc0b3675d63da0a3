"""The local stream that tells readers of commands/ and events/ how far they may read.

A Unix socket in the data folder. Whoever connects gets the position at once and a new one after
every batch, each one message of fixed size. It is state, not history: a reader that has not taken
what it was sent gets nothing more until it has, and then only the newest.
"""

import asyncio
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from exchange.logs import Log
from exchange.node.limits import POSITION_READERS_MAX
from journal import Position, encode_position

__all__ = ["PositionReader", "PositionStream", "bind_position"]

SEND_BUFFER_SIZE: Final = 1
"""The kernel makes the least of it that it knows: a handful of messages."""


def bind_position(path: Path) -> socket.socket:
    """A socket bound to the path, in place of one that a process before has left. Raises OSError.

    Bound by the folder's descriptor, because the address of a socket has 107 bytes and the path of
    a folder may have more.
    """
    with suppress(FileNotFoundError):
        path.unlink()
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        bound.bind(f"/proc/self/fd/{folder}/{path.name}")
    except OSError:
        bound.close()
        raise
    finally:
        os.close(folder)
    return bound


class PositionStream:
    """Knows the newest position and who reads it."""

    def __init__(self, position: Position, log: Log) -> None:
        self.message = encode_position(position)
        self.refused_count = 0
        self._log = log
        self._readers: dict[PositionReader, None] = {}

    @property
    def reader_count(self) -> int:
        """Readers that are connected."""
        return len(self._readers)

    def accept(self) -> "PositionReader":
        """The protocol object of a new socket."""
        return PositionReader(self)

    def tell(self, position: Position) -> None:
        """Tell all readers; what the position says is durable and written."""
        self.message = encode_position(position)
        for reader in self._readers:
            reader.tell()

    def admit(self, reader: "PositionReader") -> bool:
        """Count a reader in, unless there are too many."""
        if len(self._readers) >= POSITION_READERS_MAX:
            self.refused_count += 1
            self._log.error(
                "position_reader_refused", reason=f"{POSITION_READERS_MAX} readers are connected"
            )
            return False
        self._readers[reader] = None
        return True

    def forget(self, reader: "PositionReader") -> None:
        """The reader is gone."""
        self._readers.pop(reader, None)

    def close(self) -> None:
        """Cut all readers."""
        for reader in self._readers:
            reader.transport.abort()


class PositionReader(asyncio.Protocol):
    """One reader. What it sends is read and forgotten."""

    transport: asyncio.Transport

    def __init__(self, stream: PositionStream) -> None:
        self._stream = stream
        self._is_behind = False  # it has not taken what it was sent
        self._sent = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        if not self._stream.admit(self):
            transport.abort()
            return
        bound = transport.get_extra_info("socket")
        if bound is not None:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_SIZE)
        transport.set_write_buffer_limits(high=0)
        self.tell()

    def tell(self) -> None:
        """Send the newest position, unless it is known or something else is still under way."""
        message = self._stream.message
        if not self._is_behind and message is not self._sent:
            self._sent = message
            self.transport.write(message)

    def pause_writing(self) -> None:
        self._is_behind = True

    def resume_writing(self) -> None:
        self._is_behind = False
        self.tell()

    def connection_lost(self, error: Exception | None) -> None:
        self._stream.forget(self)
