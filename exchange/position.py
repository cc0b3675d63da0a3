"""Hears from a venue on this machine how far commands/ and events/ may be read.

The venue says it over a local socket, again after every batch; only what came last counts. A venue
that is away is waited for, and connected to again. How a connection is made is injected, so that a
simulator brings its own.
"""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Final, cast

from exchange.logs import Log
from journal import Position, decode_position
from journal.position import POSITION_SIZE

__all__ = ["ConnectPosition", "PositionClient", "PositionError", "Told", "connect_position"]

RECONNECT_PAUSE_MIN_S: Final = 0.02
RECONNECT_PAUSE_MAX_S: Final = 0.5
"""Pauses between attempts to connect: doubling from the first to the second."""

ConnectPosition = Callable[[Callable[[], asyncio.Protocol]], Awaitable[object]]
"""Connects what this makes to the venue's socket, as the loop's own methods do. Raises OSError."""

Told = Callable[[Position, bool], None]
"""Is given each position, and whether it is the first on a new connection."""


class PositionError(Exception):
    """What came from the socket is no position."""


class PositionClient:
    """See the module. Made on the loop; `run` is its one task.

    With an interval it takes what the venue has to say at most once in that time: the venue then
    does not spend a call of the system on every batch for a reader that is in no hurry.
    """

    def __init__(
        self, connect: ConnectPosition, told: Told, log: Log, *, interval_s: float = 0.0
    ) -> None:
        self._connect = connect
        self._told = told
        self._log = log
        self._interval_s = interval_s
        self._line: _Line | None = None

    @property
    def is_connected(self) -> bool:
        """Whether what the venue said last still counts."""
        return self._line is not None and self._line.is_fresh

    async def run(self) -> None:
        """Connect, and again when the connection is lost, for ever. Raises PositionError."""
        pause_s = RECONNECT_PAUSE_MIN_S
        reason = ""
        while True:
            line = _Line(self._told, self._interval_s)
            try:
                await self._connect(partial(_itself, line))
                self._line = line
                await line.lost
                text = "connection lost"
                if line.error is not None:
                    raise line.error
            except OSError as error:
                text = error.strerror or str(error)
            if line.is_told:
                pause_s, reason = RECONNECT_PAUSE_MIN_S, ""
            if text != reason:
                reason = text
                self._log.error("venue_away", reason=reason)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, RECONNECT_PAUSE_MAX_S)

    def close(self) -> None:
        """Cut the connection; `run` has been canceled or has ended."""
        if self._line is not None:
            self._line.abort()


class _Line(asyncio.Protocol):
    """One connection. Of what comes at once only the newest counts."""

    def __init__(self, told: Told, interval_s: float) -> None:
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.error: PositionError | None = None
        self.is_told = False
        self._told = told
        self._interval_s = interval_s
        self._rest = b""
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_fresh(self) -> bool:
        return self.is_told and not self.lost.done()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        end = len(data) - len(data) % POSITION_SIZE
        self._rest = data[end:]
        if not end or self.lost.done():
            return
        try:
            position = decode_position(data[end - POSITION_SIZE : end])
        except ValueError as error:
            self.error = PositionError(f"the venue's position: {error}")
            self.lost.set_result(None)
            self.abort()
            return
        is_first, self.is_told = not self.is_told, True
        if self._interval_s:
            self._pause()
        self._told(position, is_first)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self.lost.done():
            self.lost.set_result(None)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _pause(self) -> None:
        """Read nothing for a while; the venue keeps the newest for us."""
        assert self._transport is not None, "something came over it"
        self._transport.pause_reading()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._interval_s, self._transport.resume_reading)


def _itself(line: _Line) -> _Line:
    return line


def connect_position(path: Path) -> ConnectPosition:
    """Connections to the socket at a path of any length: its address has room for 107 bytes."""

    async def connect(make_line: Callable[[], asyncio.Protocol]) -> None:
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                # At once: a full backlog is an error, and is tried again like any other.
                bound.connect(f"/proc/self/fd/{folder}/{path.name}")
            finally:
                os.close(folder)
            await asyncio.get_running_loop().create_unix_connection(make_line, sock=bound)
        except BaseException:
            bound.close()
            raise

    return connect
