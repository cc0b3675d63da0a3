"""The world itself: its time, its clocks, and a run that is the same wherever it is run."""

import asyncio
import os
import subprocess
import sys
from asyncio import sleep  # It is the world's time that passes.
from functools import partial
from pathlib import Path
from random import Random

import pytest

from exchange.clock import Clock, SteadyClock
from tests.simulation.multicast import DatagramSocket
from tests.simulation.peers import ADDRESS, Peer, forever, listening
from tests.simulation.world import (
    MS,
    START_UTC_NS,
    STEPS_KEPT,
    Process,
    S,
    Step,
    World,
    WorldFailure,
)

GROUP = "239.1.1.1"


def busy_run(seed: int) -> World:
    """Some seconds with most of what there is: clients that come and go, cuts, kills, lines."""
    world = World(seed)
    world.network.spike_chance = 0.05
    faults: Random = world.dice("faults")
    server, _ = listening(world, lambda peer, data: peer.transport.write(data))
    sender = world.network.multicast.sender(server, "a", GROUP, 5000)
    hosts = [f"client{number}" for number in range(3)]
    for name in hosts:
        line = world.network.multicast.faults("a", name)
        line.loss, line.duplication, line.reorder = 0.1, 0.1, 0.1
        process = world.host(name).process("client")
        process.start(_client(world, process, world.dice(name)), on_exit=_note_exit)

    def send(number: int) -> None:
        if server.is_alive:
            sender.send([(1, b"%d" % number)])

    for number in range(400):
        world.at(number * 5 * MS, partial(send, number))
    for _ in range(20):
        name = faults.choice(hosts)
        begin_ns = faults.randrange(3 * S)
        world.at(begin_ns, partial(world.network.cut, "server", name))
        world.at(begin_ns + faults.randrange(S), partial(world.network.mend, "server", name))
    world.at(2 * S + faults.randrange(S), server.kill)
    world.run(5 * S)
    world.check()
    world.close()
    return world


def _note_exit(process: Process) -> None:
    process.world.note(repr(process), "exit", process.exit)


def _same(peer: Peer) -> Peer:
    return peer


async def _client(world: World, process: Process, dice: Random) -> int:
    udp = world.network.multicast.listen(process, GROUP, 5000)
    udp.when_readable(partial(_drain, udp))
    for _ in range(6):
        peer = Peer()
        try:
            async with asyncio.timeout(0.5):
                await process.loop.create_connection(partial(_same, peer), *ADDRESS)
        except (TimeoutError, OSError):
            continue
        for _ in range(dice.randrange(50)):
            peer.transport.write(dice.randbytes(dice.randrange(1, 200)))
            await sleep(dice.random() / 50)
        peer.transport.close()
        await asyncio.to_thread(len, peer.data)
    return dice.randrange(3)


def _drain(udp: DatagramSocket) -> None:
    while True:
        try:
            udp.receive_next()
        except BlockingIOError:
            return


def test_a_seed_is_a_run() -> None:
    steps: list[list[str]] = []
    hashes = []
    for seed in (1, 1, 2):
        world = busy_run(seed)
        steps.append([str(step) for step in world.steps])
        hashes.append((world.run_hash, world.handle_count))
    assert steps[0] == steps[1] != steps[2]
    assert hashes[0] == hashes[1] != hashes[2]
    assert hashes[0][1] > 1_000


@pytest.mark.parametrize("hash_seed", ["0", "1", "random"])
def test_a_seed_is_the_same_run_in_every_process(hash_seed: str) -> None:
    code = (
        "import gc, sys; gc.set_threshold(50)\n"  # Others have other garbage.
        "sys.path.append(sys.argv[1])\n"  # The last one: no source hides the installed packages.
        "from tests.simulation.test_world import busy_run\n"
        "busy_run(9); print(busy_run(3).run_hash)"
    )
    found = subprocess.run(
        [sys.executable, "-P", "-c", code, str(Path(__file__).parents[2])],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == busy_run(3).run_hash, "seed 3"


def test_the_hash_knows_times_data_and_steps() -> None:
    def run(data: bytes, wait_ns: int, note: str) -> str:
        world = World(1)
        process, peers = listening(world)
        client = world.host("client").process("client")

        async def main() -> int:
            await sleep(wait_ns / S)
            transport, _ = await client.loop.create_connection(Peer, *ADDRESS)
            transport.write(data)
            world.note("test", note)
            return await forever()

        client.start(main())
        world.run(S)
        assert peers[0].data == data
        assert process.is_alive
        world.close()
        return world.run_hash

    assert run(b"a", MS, "x") == run(b"a", MS, "x")
    others = {run(b"a", MS, "x"), run(b"b", MS, "x"), run(b"a", 2 * MS, "x")}
    assert len({*others, run(b"a", MS, "y")}) == 4


def test_dice_do_not_disturb_each_other() -> None:
    first, second = World(5), World(5)
    second.dice("other").random()
    second.random()
    assert first.dice("workload").random() == second.dice("workload").random()
    assert first.dice("workload").random() != first.dice("faults").random()
    assert World(6).dice("workload").random() != first.dice("workload").random()


def test_time_goes_on_to_where_it_is_told() -> None:
    world = World(1)
    seen: list[int] = []
    world.at(3 * S, lambda: seen.append(world.now_ns))
    world.after(5 * S, world.stop)
    world.run(2 * S)
    assert (world.now_ns, seen) == (2 * S, [])
    world.run(4 * S)
    assert (world.now_ns, seen) == (4 * S, [3 * S])
    world.run(10 * S)
    assert world.now_ns == 5 * S, "stopped"
    world.run(10 * S)
    assert world.now_ns == 10 * S
    with pytest.raises(AssertionError):
        world.at(S, world.stop)


def test_what_the_world_does_itself_may_fail() -> None:
    world = World(1)
    world.at(S, lambda: divmod(1, 0))
    with pytest.raises(ZeroDivisionError):
        world.run(2 * S)
    world.at(2 * S, lambda: world.fail("a check says no"))
    world.at(3 * S, lambda: world.note("never", "here"))
    with pytest.raises(WorldFailure, match="a check says no"):
        world.run(5 * S)
    assert world.now_ns == 2 * S
    with pytest.raises(WorldFailure, match="a check says no"):
        world.check()
    assert "failure a check says no" in str(world.steps[-1])


def test_clocks() -> None:
    world = World(1)
    host = world.host("one")
    clock: Clock = host.clock
    assert host.process("test").clock is clock
    world.run(S)
    assert (clock.time_ns(), clock.monotonic_ns()) == (START_UTC_NS + S, S)
    host.clock.offset_ns = -3 * S
    assert clock.time_ns() == START_UTC_NS - 2 * S
    steady = SteadyClock(clock, 0)
    before_ns = steady.time_ns()
    host.clock.offset_ns = -10 * S
    assert steady.time_ns() == before_ns
    host.crash()
    world.run(2 * S)
    host.boot(drift_ppm=100)
    assert (clock.monotonic_ns(), clock.time_ns()) == (0, START_UTC_NS - 8 * S)
    world.run(12 * S)
    assert clock.monotonic_ns() == 10 * S + MS
    assert host.clock.world_ns(10 * S + MS) == 12 * S
    assert world.host("two").clock.monotonic_ns() == 12 * S


def test_hosts() -> None:
    world = World(1)
    host = world.host("one")
    assert world.host("one") is host
    process = host.process("test")
    process.start(forever())
    assert [*host.processes] == [process]
    host.crash()
    assert not host.processes
    with pytest.raises(AssertionError):
        host.process("test")
    host.boot()
    with pytest.raises(AssertionError):
        host.boot()
    assert repr(host.process("again")) == "one/again"
    world.close()


def test_steps_are_kept_and_told() -> None:
    told: list[Step] = []
    world = World(1, on_step=told.append)
    for number in range(STEPS_KEPT + 10):
        world.note("test", "step", number)
    assert len(told) == STEPS_KEPT + 10
    assert [*world.steps] == told[10:]
    assert str(told[0]) == "   0.000000000 test                 step 0"
