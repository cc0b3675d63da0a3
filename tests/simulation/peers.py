"""Small processes for the tests of the simulator itself."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final, cast

from tests.simulation.world import Process, S, World

__all__ = ["ADDRESS", "Peer", "forever", "in_process", "joined", "listening"]

ADDRESS: Final = ("server", 7000)


class Peer(asyncio.Protocol):
    """Keeps what it is told; `on_data` may answer."""

    transport: asyncio.Transport

    def __init__(self, on_data: "Callable[[Peer, bytes], object] | None" = None) -> None:
        self.told: list[Any] = []
        self.data = b""
        self.chunk_count = 0
        self.keeps_open = False
        self._on_data = on_data

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.told.append("made")

    def data_received(self, data: bytes) -> None:
        self.data += data
        self.chunk_count += 1
        if self._on_data is not None:
            self._on_data(self, data)

    def eof_received(self) -> bool:
        self.told.append("eof")
        return self.keeps_open

    def connection_lost(self, exc: Exception | None) -> None:
        self.told.append(type(exc).__name__ if exc is not None else "lost")

    def pause_writing(self) -> None:
        self.told.append("full")

    def resume_writing(self) -> None:
        self.told.append("room")


async def forever() -> int:
    """The main coroutine of a process that does not end by itself."""
    await asyncio.get_running_loop().create_future()
    return 0


def in_process(
    test: Callable[[World, Process], Coroutine[Any, Any, None]], seed: int = 1, seconds: int = 1000
) -> World:
    """Run a coroutine in a process of a new world to its end; the world is closed after it."""
    world = World(seed)
    process = world.host("one").process("test")
    ends: list[int] = []

    async def main() -> int:
        await test(world, process)
        ends.append(1)
        return 0

    process.start(main(), on_exit=lambda _: world.stop())
    try:
        world.run(seconds * S)
        world.check()
    finally:
        world.close()
    assert ends, "the coroutine does not end"
    return world


def listening(
    world: World, on_data: Callable[[Peer, bytes], object] | None = None
) -> tuple[Process, list[Peer]]:
    """A process that listens at ADDRESS, and the peers that it has accepted."""
    process = world.host("server").process("server")
    peers: list[Peer] = []

    def accept() -> Peer:
        peers.append(Peer(on_data))
        return peers[-1]

    async def main() -> int:
        await process.loop.create_server(accept, *ADDRESS)
        return await forever()

    process.start(main())
    return process, peers


def joined(
    world: World, on_data: Callable[[Peer, bytes], object] | None = None
) -> tuple[Process, Peer, Process, Peer]:
    """A client's process and its peer, a server's process and its peer, connected."""
    server, peers = listening(world, on_data)
    client = world.host("client").process("client")
    peer = Peer()

    async def main() -> int:
        await client.loop.create_connection(lambda: peer, *ADDRESS)
        return await forever()

    world.run(world.now_ns + S)
    client.start(main())
    world.run(world.now_ns + S)
    return client, peer, server, peers[0]
