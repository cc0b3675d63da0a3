"""A bare uvloop server that sends the same pieces to everybody: the reference of a fan-out.

    python -m tools.fanout_reference FILE

FILE has pieces of frames, each behind its length. The server says its address, takes connections
and obeys lines on stdin: `pace INTERVAL_NS FIRST COUNT` writes as many pieces to all connections,
one each interval, `burst FIRST COUNT` as many of them each turn of the loop as a feed server would
write at once. It reads no log, packs nothing, knows nobody and bounds nothing; it only writes the
time into the frames, so that theirs can be compared. It ends with its stdin.
"""

import asyncio
import struct
import sys
import time
from pathlib import Path
from typing import Final, cast

import uvloop

from protocol.framing import HEADER
from tools.errors import ToolError

__all__ = ["LENGTH", "main"]

LENGTH: Final = struct.Struct("<I")
"""Before each piece in the file."""
SEND_TIME: Final = struct.Struct("<Q")
SEND_TIME_OFFSET: Final = 12
"""In the header of a frame."""
BACKLOG: Final = 1_024
BURST_SIZE: Final = 32 * 1024
"""What a feed server writes at once when much has come, PIECE_SIZE_MAX of its limits."""


class Subscriber(asyncio.Protocol):
    """One connection."""

    def __init__(self, server: "Server") -> None:
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Write to it from now on."""
        self._server.transports.append(cast("asyncio.Transport", transport))


class Server:
    """Everybody, and what they get."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.transports: list[asyncio.Transport] = []
        self._pieces = pieces

    def send(self, first: int, end: int) -> None:
        """Write pieces to all, as one, with the time of now."""
        piece = bytearray().join(self._pieces[first:end])
        now_ns = time.time_ns()
        start = 0
        while start < len(piece):
            SEND_TIME.pack_into(piece, start + SEND_TIME_OFFSET, now_ns)
            start += HEADER.unpack_from(piece, start)[0]
        content = bytes(piece)
        for transport in self.transports:
            transport.write(content)

    async def pace(self, interval_ns: int, first: int, count: int) -> None:
        """One piece each interval."""
        due_ns = time.monotonic_ns()
        for place in range(first, first + count):
            await asyncio.sleep(max(due_ns - time.monotonic_ns(), 0) / 1e9)
            self.send(place, place + 1)
            due_ns += interval_ns

    async def burst(self, first: int, count: int) -> None:
        """As many pieces each turn as BURST_SIZE holds."""
        end = first + count
        while first < end:
            size, place = len(self._pieces[first]), first + 1
            while place < end and size + len(self._pieces[place]) <= BURST_SIZE:
                size += len(self._pieces[place])
                place += 1
            self.send(first, place)
            first = place
            await asyncio.sleep(0)


def read_pieces(content: bytes) -> list[bytes]:
    """The pieces in the file."""
    pieces, start = [], 0
    while start < len(content):
        (length,) = LENGTH.unpack_from(content, start)
        start += LENGTH.size
        pieces.append(content[start : start + length])
        start += length
    return pieces


async def serve(pieces: list[bytes]) -> None:
    """Listen on a free port and obey, until stdin ends."""
    loop = asyncio.get_running_loop()
    server = Server(pieces)
    door = await loop.create_server(lambda: Subscriber(server), "127.0.0.1", 0, backlog=BACKLOG)
    host, port = door.sockets[0].getsockname()
    print(f"{host}:{port}", flush=True)
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        what, *numbers = line.split()
        values = [int(number) for number in numbers]
        if what == b"pace":
            await server.pace(*values)
        elif what == b"burst":
            await server.burst(*values)
        else:
            raise ToolError(f"unknown command {what!r}")
        print("done", flush=True)
    door.close()


def main(path: str) -> None:
    """See the module."""
    uvloop.run(serve(read_pieces(Path(path).read_bytes())))


if __name__ == "__main__":
    main(sys.argv[1])
