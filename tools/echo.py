"""A bare uvloop server that sends back what it reads: the reference line of `exchange bench`.

It shows what the event loop and TCP alone allow with the same frames, and so what the generator is
able to offer. `python -m tools.echo` prints its address and runs until its stdin is closed, which
happens at the latest when the process that started it has ended.
"""

import asyncio
import sys
from typing import cast

import uvloop

__all__: list[str] = []


class Echo(asyncio.Protocol):
    """One connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep where to write."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Send it back."""
        self._transport.write(data)


async def serve() -> None:
    """Listen on a free port until stdin is closed."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Echo, "127.0.0.1", 0)
    closed = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), closed.set)
    host, port = server.sockets[0].getsockname()
    print(f"{host}:{port}", flush=True)
    await closed.wait()
    server.close()


if __name__ == "__main__":
    uvloop.run(serve())
