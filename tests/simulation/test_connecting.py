"""How connections of the simulated network are asked for, accepted, refused and given up."""

import asyncio
import errno
import socket
from asyncio import sleep  # It is the world's time that passes.
from functools import partial

import pytest

from tests.simulation.peers import ADDRESS, Peer, forever, listening
from tests.simulation.world import Process, S, World

SEEDS = range(1, 9)


def run_for(world: World, seconds: float) -> None:
    world.run(world.now_ns + round(seconds * S))


def test_connections_are_refused_found_and_given_up() -> None:
    world = World(5)
    world.network.give_up_ns = 30 * S
    process = world.host("client").process("client")
    world.host("server")
    told: list[object] = []

    async def attempt(host: str, port: int) -> None:
        begin_ns = world.now_ns
        try:
            await process.loop.create_connection(Peer, host, port)
        except OSError as error:
            told.append((type(error).__name__, error.errno, (world.now_ns - begin_ns) // S))

    async def main() -> int:
        await attempt("server", 7000)
        await attempt("nowhere", 7000)
        world.network.cut("client", "server")
        await attempt("10.0.0.2", 7000)
        await attempt("127.0.0.1", 7000)
        return 0

    process.start(main())
    world.run(100 * S)
    assert told == [
        ("ConnectionRefusedError", errno.ECONNREFUSED, 0),
        ("gaierror", socket.EAI_NONAME, 0),
        ("TimeoutError", errno.ETIMEDOUT, 30),
        ("ConnectionRefusedError", errno.ECONNREFUSED, 0),
    ]
    world.close()


def test_a_connection_is_made_when_the_way_is_whole_again() -> None:
    world = World(5)
    process, _ = listening(world)
    client = world.host("client").process("client")
    peer = Peer()
    world.network.cut("server", "client")

    async def main() -> int:
        await client.loop.create_connection(lambda: peer, *ADDRESS)
        return await forever()

    client.start(main())
    run_for(world, 5)
    assert peer.told == []
    world.network.mend_all()
    run_for(world, 5)
    assert peer.told == ["made"]
    process.kill()
    run_for(world, 1)
    assert peer.told == ["made", "eof", "lost"]
    world.close()


@pytest.mark.parametrize("wait_s", [0.00005, 0.0003, 0.0006])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_connection_that_is_canceled_is_closed(seed: int, wait_s: float) -> None:
    world = World(seed)
    _, peers = listening(world)
    client = world.host("client").process("client")
    peer = Peer()
    made: list[asyncio.Transport] = []

    async def main() -> int:
        await sleep(1)
        try:
            async with asyncio.timeout(wait_s):
                made.append((await client.loop.create_connection(lambda: peer, *ADDRESS))[0])
        except TimeoutError:
            pass
        return await forever()

    client.start(main())
    world.run(5 * S)
    if made:
        assert [*peer.told, *peers[0].told] == ["made", "made"]
    else:
        assert peer.told in ([], ["made", "lost"])
        assert len(client.sockets) == 0
        assert all(one.told == ["made", "eof", "lost"] for one in peers)
    world.close()


def test_a_paused_listener_is_connected_by_its_system() -> None:
    world = World(6)
    process, peers = listening(world)
    client = world.host("client").process("client")
    peer = Peer()

    async def main() -> int:
        await client.loop.create_connection(lambda: peer, *ADDRESS)
        peer.transport.write(b"waits")
        return await forever()

    run_for(world, 1)
    process.pause()
    client.start(main())
    run_for(world, 1)
    assert (peer.told, peers) == (["made"], [])
    process.resume()
    run_for(world, 1)
    assert peers[0].data == b"waits"
    world.close()


def _same(peer: Peer) -> Peer:
    return peer


def _serve(process: Process, backlog: int = 100) -> "list[asyncio.AbstractServer]":
    servers: list[asyncio.AbstractServer] = []

    async def main() -> int:
        loop = process.loop
        servers.append(await loop.create_server(Peer, "0.0.0.0", 7000, backlog=backlog))
        return await forever()

    process.start(main())
    process.world.run(process.world.now_ns + S)
    return servers


def test_an_address_is_had_once_and_had_again_after_a_kill() -> None:
    world = World(6)
    host = world.host("server")
    process = host.process("first")
    [server] = _serve(process)
    assert server.is_serving()
    assert server.get_loop() is process.loop
    told: list[object] = []

    async def main() -> int:
        for address in (("", 7000), ("10.0.0.99", 7000)):
            try:
                await asyncio.get_running_loop().create_server(Peer, *address)
            except OSError as error:
                told.append(error.errno)
        chosen = await asyncio.get_running_loop().create_server(Peer, "127.0.0.1", 0)
        told.append(chosen.sockets[0].getsockname()[0])
        return 0

    second = host.process("second")
    second.start(main())
    run_for(world, 1)
    assert told == [errno.EADDRINUSE, errno.EADDRNOTAVAIL, "10.0.0.1"]
    process.kill()
    assert not server.is_serving()
    assert len(_serve(host.process("third"))) == 1
    world.close()


def test_a_server_that_closes_resets_what_it_has_not_accepted() -> None:
    world = World(6)
    process = world.host("server").process("server")
    [server] = _serve(process, backlog=1)
    clients = world.host("client").process("client")
    peers = [Peer() for _ in range(4)]

    async def connect(peer: Peer) -> None:
        await clients.loop.create_connection(lambda: peer, *ADDRESS)

    process.pause()
    for peer in peers:
        clients.spawn(connect(peer))
    clients.loop.set_exception_handler(lambda *_: None)
    run_for(world, 0.5)
    assert sum(peer.told == ["made"] for peer in peers) == 2, "the backlog is full"
    server.close()
    run_for(world, 0.5)
    assert sum(peer.told == ["made", "ConnectionResetError"] for peer in peers) == 2
    assert not process.sockets
    world.close()


def test_unix_sockets() -> None:
    world = World(7)
    host = world.host("one")
    server, client = host.process("server"), host.process("client")
    peers: list[Peer] = []
    told: list[object] = []

    def accept() -> Peer:
        peers.append(Peer(lambda peer, data: peer.transport.write(data)))
        return peers[-1]

    async def serve() -> int:
        await server.loop.create_unix_server(accept, "data/position")
        return await forever()

    async def main() -> int:
        for _ in range(3):
            peer = Peer()
            try:
                await client.loop.create_unix_connection(partial(_same, peer), "data/position")
            except OSError as error:
                told.append(error.errno)
            else:
                peer.transport.write(b"ping")
                await sleep(0.5)
                told.append(bytes(peer.data))
            await sleep(1)
        return 0

    client.start(main())
    run_for(world, 0.5)
    server.start(serve())
    run_for(world, 1.5)
    server.kill()
    run_for(world, 2)
    assert told == [errno.ENOENT, b"ping", errno.ECONNREFUSED]
    world.network.unlink_unix(host, "data/position")
    again = host.process("again")
    again.start(main())
    run_for(world, 5)
    assert told[3:] == [errno.ENOENT] * 3
    world.close()
