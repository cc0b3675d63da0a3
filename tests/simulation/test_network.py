"""Connections of the simulated network: what TCP promises, and what it does not."""

import random
import socket

import pytest

from tests.simulation.peers import ADDRESS, Peer, forever, joined, listening
from tests.simulation.world import MS, S, World

SEEDS = range(1, 9)


def run_for(world: World, seconds: float) -> None:
    world.run(world.now_ns + round(seconds * S))


@pytest.mark.parametrize("seed", SEEDS)
def test_bytes_arrive_once_and_in_order_however_they_are_cut(seed: int) -> None:
    world = World(seed)
    world.network.split_chance = 0.5
    world.network.spike_chance = 0.1
    world.network.window_size = 3_000
    _, client, _, server = joined(world)
    dice = random.Random(seed)
    sent = bytearray()
    for _ in range(300):
        data = dice.randbytes(dice.choice((1, 10, 100, 5_000)))
        sent += data
        client.transport.write(data)
        server.transport.write(data)
        run_for(world, dice.choice((0, 0.0001, 0.01)))
    run_for(world, 60)
    assert server.data == sent
    assert client.data == sent
    assert server.chunk_count > 300
    assert client.told[0] == "made"
    world.close()


@pytest.mark.parametrize("seed", SEEDS)
def test_bytes_arrive_once_and_in_order_however_often_the_way_is_cut(seed: int) -> None:
    world = World(seed)
    world.network.spike_chance = 0.2
    _, client, _, server = joined(world)
    dice = random.Random(seed)
    sent = bytearray()
    for _ in range(200):
        data = dice.randbytes(dice.randrange(1, 20))
        sent += data
        client.transport.write(data)
        server.transport.write(data)
        if dice.random() < 0.3:
            ends = dice.choice((("client", "server"), ("server", "client")))
            dice.choice((world.network.cut, world.network.mend))(*ends)
        run_for(world, dice.choice((0, 0.0001, 0.001, 0.1)))
    world.network.mend_all()
    run_for(world, 10)
    assert server.data == sent
    assert client.data == sent
    world.close()


def test_a_way_has_its_delay_and_its_bandwidth() -> None:
    world = World(1)
    _, client, _, server = joined(world)
    way = world.network.way("client", "server")
    way.delay_ns, way.spread_ns, way.byte_ns = 10 * MS, 0, 1_000
    begin_ns = world.now_ns
    seen: list[int] = []
    server._on_data = lambda *_: seen.append(world.now_ns - begin_ns)
    client.transport.write(b"x" * 1_000)
    client.transport.write(b"x" * 9_000)
    run_for(world, 1)
    first_ns, *_, last_ns = seen
    assert 11 * MS <= first_ns < 11 * MS + 50_000
    assert 20 * MS <= last_ns < 20 * MS + 200_000
    client.data = b""
    begin_ns = world.now_ns
    server.transport.write(b"y")
    run_for(world, 0.002)
    assert client.data == b"y", "the way back is another"
    world.close()


def test_a_writer_is_paced_by_the_reader() -> None:
    world = World(2)
    world.network.window_size = 10_000
    _, client, _, server = joined(world)
    client.transport.set_write_buffer_limits(high=1_000, low=100)
    server.transport.pause_reading()
    assert not server.transport.is_reading()
    client.transport.write(b"a" * 11_000)
    assert client.transport.get_write_buffer_size() == 1_000
    assert client.told == ["made"]
    client.transport.write(b"b")
    assert client.told == ["made", "full"]
    run_for(world, 10)
    assert (client.told, server.data) == (["made", "full"], b"")
    server.transport.resume_reading()
    run_for(world, 1)
    assert client.told == ["made", "full", "room"]
    assert server.data == b"a" * 11_000 + b"b"
    client.transport.set_write_buffer_limits(high=0)
    server.transport.pause_reading()
    client.transport.write(b"c" * 10_001)
    assert client.told == ["made", "full", "room", "full"]
    world.close()


def test_a_writer_goes_on_at_the_low_mark() -> None:
    world = World(2)
    world.network.window_size = 1_000

    def pause(peer: Peer, data: bytes) -> None:
        peer.transport.pause_reading()

    _, client, _, server = joined(world, pause)
    client.transport.set_write_buffer_limits(high=5_000, low=2_000)
    client.transport.write(b"a" * 7_000)
    marks = []
    while len(server.data) < 7_000:
        run_for(world, 0.1)
        marks.append((client.transport.get_write_buffer_size(), client.told[-1]))
        server.transport.resume_reading()
    assert all((size <= 2_000) == (told == "room") for size, told in marks)
    assert len(marks) > 5
    world.close()


def test_more_than_one_read_takes() -> None:
    world = World(2)
    world.network.window_size = 2_000_000
    world.network.split_chance = 1.0
    _, client, _, server = joined(world)
    server.transport.pause_reading()
    sent = b"".join(b"%06d" % number for number in range(100_000))
    for begin in range(0, len(sent), 10_000):
        client.transport.write(sent[begin : begin + 10_000])
    run_for(world, 1)
    server.transport.resume_reading()
    run_for(world, 1)
    assert server.data == sent
    world.close()


def test_what_is_late_holds_up_what_comes_behind_it() -> None:
    world = World(2)
    _, client, _, server = joined(world)
    way = world.network.way("client", "server")
    way.delay_ns = 100 * MS
    client.transport.write(b"late")
    way.delay_ns = 0
    client.transport.write(b"next")
    run_for(world, 0.09)
    assert server.data == b""
    run_for(world, 0.02)
    assert server.data == b"latenext"
    world.close()


def test_a_send_buffer_may_be_made_small() -> None:
    world = World(2)
    _, client, _, server = joined(world)
    server.transport.pause_reading()
    client.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    client.transport.write(b"a" * 1_000)
    assert client.transport.get_write_buffer_size() == 1_000 - 512
    world.close()


def test_addresses() -> None:
    world = World(2)
    _, client, _, server = joined(world)
    assert client.transport.get_extra_info("peername") == ("10.0.0.1", 7000)
    assert server.transport.get_extra_info("sockname") == ("10.0.0.1", 7000)
    assert server.transport.get_extra_info("peername")[0] == "10.0.0.2"
    assert client.transport.get_extra_info("other", 5) == 5
    world.close()


def test_what_is_read_between_pauses() -> None:
    world = World(2)

    def pause(peer: Peer, data: bytes) -> None:
        peer.transport.pause_reading()

    _, client, _, server = joined(world, pause)
    world.network.split_chance = 0
    client.transport.write(b"1")
    run_for(world, 1)
    client.transport.write(b"2")
    client.transport.close()
    run_for(world, 1)
    assert (server.data, server.told) == (b"1", ["made"])
    server.transport.resume_reading()
    run_for(world, 1)
    assert (server.data, server.told) == (b"12", ["made"])
    server.transport.resume_reading()
    run_for(world, 1)
    assert server.told == ["made", "eof", "lost"]
    world.close()


def test_a_close_sends_what_waits_and_then_the_end() -> None:
    world = World(3)
    world.network.window_size = 1_000
    _, client, _, server = joined(world)
    client.transport.write(b"a" * 9_000)
    client.transport.close()
    assert client.transport.is_closing()
    assert client.told == ["made"]
    run_for(world, 1)
    assert server.data == b"a" * 9_000
    assert server.told == ["made", "eof", "lost"]
    assert client.told == ["made", "lost"]
    client.transport.write(b"for nobody")
    world.close()


def test_a_half_that_ends() -> None:
    world = World(3)
    _, client, _, server = joined(world)
    server.keeps_open = True
    client.transport.write(b"question")
    client.transport.write_eof()
    with pytest.raises(RuntimeError):
        client.transport.write(b"more")
    run_for(world, 1)
    assert (server.data, server.told) == (b"question", ["made", "eof"])
    server.transport.resume_reading()
    server.transport.write(b"answer")
    run_for(world, 1)
    assert (client.data, client.told) == (b"answer", ["made"])
    assert server.told == ["made", "eof"], "it is told once"
    server.transport.close()
    run_for(world, 1)
    assert client.told == ["made", "eof", "lost"]
    assert server.told == ["made", "eof", "lost"]
    world.close()


def test_an_abort_drops_what_waits() -> None:
    world = World(3)
    world.network.window_size = 1_000
    _, client, _, server = joined(world)
    client.transport.write(b"a" * 9_000)
    client.transport.abort()
    assert client.told == ["made"], "never from within the call"
    run_for(world, 1)
    assert server.data == b"a" * 1_000
    assert (client.told, server.told) == (["made", "lost"], ["made", "eof", "lost"])
    world.close()


def test_a_socket_that_is_closed_unread_resets() -> None:
    world = World(3)
    _, client, _, server = joined(world)
    server.transport.pause_reading()
    client.transport.write(b"never read")
    run_for(world, 1)
    server.transport.write(b"last words")
    server.transport.close()
    run_for(world, 1)
    assert client.data == b"last words", "what came before it can be read"
    assert client.told == ["made", "ConnectionResetError"]
    assert server.told == ["made", "lost"]
    world.close()


def test_data_for_a_socket_that_is_gone_is_answered_with_a_reset() -> None:
    world = World(3)
    _, client, _, server = joined(world)
    client.keeps_open = True
    server.transport.close()
    run_for(world, 1)
    assert client.told == ["made", "eof"]
    client.transport.write(b"hello?")
    run_for(world, 1)
    client.transport.write(b"hello?")
    run_for(world, 1)
    assert client.told == ["made", "eof", "ConnectionResetError"]
    world.close()


def test_a_reset_is_found_out_by_writing_while_nothing_is_read() -> None:
    world = World(3)
    client_process, client, server_process, _ = joined(world)
    client.transport.pause_reading()
    client.transport.write(b"x")
    server_process.pause()
    run_for(world, 1)
    server_process.kill()
    run_for(world, 1)
    assert client.told == ["made"]
    client.transport.write(b"y")
    run_for(world, 1)
    assert client.told == ["made", "ConnectionResetError"]
    assert not client_process.sockets
    world.close()


def test_a_kill_ends_connections() -> None:
    world = World(4)
    _, client, process, server = joined(world)
    server.transport.write(b"sent before")
    process.kill()
    run_for(world, 1)
    assert client.data == b"sent before", "the system has it"
    assert client.told == ["made", "eof", "lost"]
    assert server.told == ["made"], "nobody tells the dead"
    assert not process.sockets
    world.close()


def test_power_loss_is_half_open_until_the_host_is_back_and_asked() -> None:
    world = World(4)
    _, client, process, _ = joined(world)
    process.host.crash()
    run_for(world, 30)
    assert client.told == ["made"], "silence"
    process.host.boot()
    run_for(world, 30)
    assert client.told == ["made"], "it knows nothing of us"
    client.transport.write(b"are you there?")
    run_for(world, 1)
    assert client.told == ["made", "ConnectionResetError"]
    world.close()


@pytest.mark.parametrize("is_back", [True, False])
def test_what_is_sent_to_a_host_that_is_down(is_back: bool) -> None:
    world = World(4)
    world.network.give_up_ns = 20 * S
    _, client, process, _ = joined(world)
    process.host.crash()
    client.transport.write(b"are you there?")
    run_for(world, 10)
    assert client.told == ["made"]
    if is_back:
        process.host.boot()
        run_for(world, 4)
        assert client.told == ["made", "ConnectionResetError"]
    else:
        run_for(world, 11)
        assert client.told == ["made", "TimeoutError"]
    world.close()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_cut_holds_up_and_a_long_one_ends(seed: int) -> None:
    world = World(seed)
    world.network.give_up_ns = 30 * S
    _, client, _, server = joined(world)
    world.network.cut("client", "server")
    world.network.cut("server", "client")
    client.transport.write(b"ping")
    run_for(world, 20)
    assert server.data == b""
    world.network.mend_all()
    run_for(world, 4)
    assert server.data == b"ping"
    world.network.cut("client", "server")
    client.transport.write(b"pong")
    run_for(world, 31)
    assert client.told == ["made", "TimeoutError"]
    assert server.told == ["made"]
    world.network.mend_all()
    server.transport.write(b"still there?")
    run_for(world, 5)
    assert server.told == ["made", "ConnectionResetError"]
    world.close()


def test_time_begins_anew_with_each_cut() -> None:
    world = World(4)
    world.network.give_up_ns = 30 * S
    _, client, _, server = joined(world)
    for text in (b"one", b"two"):
        world.network.cut("client", "server")
        client.transport.write(text)
        run_for(world, 20)
        assert client.told == ["made"]
        world.network.mend("client", "server")
        run_for(world, 4)
    assert server.data == b"onetwo"
    world.close()


def test_after_a_cut_it_takes_a_while() -> None:
    waits = []
    for seed in range(20):
        world = World(seed)
        _, client, _, server = joined(world)
        world.network.cut("client", "server")
        client.transport.write(b"x")
        run_for(world, 5)
        world.network.mend("client", "server")
        begin_ns = world.now_ns
        while not server.data:
            run_for(world, 0.01)
        waits.append((world.now_ns - begin_ns) / S)
        world.close()
    assert min(waits) < 0.5
    assert 1 < max(waits) < 3.1


def test_what_a_machine_has_not_sent_is_lost_with_it() -> None:
    world = World(4)
    client_process, client, _, server = joined(world)
    client.transport.write(b"on its way")
    run_for(world, 0.01)
    world.network.cut("client", "server")
    client.transport.write(b"not sent")
    client_process.host.crash()
    world.network.mend_all()
    run_for(world, 10)
    assert server.data == b"on its way"
    assert server.told == ["made"]
    world.close()


def test_one_direction_may_be_cut() -> None:
    world = World(4)
    world.network.window_size = 1_000
    world.network.give_up_ns = 30 * S
    _, client, _, server = joined(world)
    world.network.cut("server", "client")
    client.transport.write(b"a" * 1_500)
    server.transport.write(b"lost")
    run_for(world, 10)
    assert server.data == b"a" * 1_000, "it gets through, but the answers do not"
    assert client.data == b""
    world.network.mend("server", "client")
    run_for(world, 10)
    assert (server.data, client.data) == (b"a" * 1_500, b"lost")
    world.network.cut("server", "client")
    client.transport.write(b"b")
    run_for(world, 31)
    assert client.told == ["made", "TimeoutError"], "nothing was acknowledged"
    assert server.told == ["made"]
    world.close()


@pytest.mark.parametrize("name", ["data_received", "eof_received", "connection_made"])
def test_a_protocol_that_fails_fails_the_world(name: str) -> None:
    world = World(7)

    class Bad(Peer):
        pass

    def fail(*_: object) -> None:
        raise LookupError("planned")

    setattr(Bad, name, fail)
    _, _ = listening(world)
    client = world.host("client").process("client")
    seen: list[dict[str, object]] = []

    async def main() -> int:
        client.loop.set_exception_handler(lambda _, context: seen.append(context))
        transport, _ = await client.loop.create_connection(Bad, *ADDRESS)
        transport.write(b"x")
        return await forever()

    client.start(main())
    run_for(world, 1)
    for one in list(world.host("server").processes):
        for stream in list(one.sockets):
            if hasattr(stream, "write"):
                stream.write(b"y")
                stream.write_eof()
    run_for(world, 1)
    assert len(seen) == 1
    assert isinstance(seen[0]["exception"], LookupError)
    world.close()


def test_what_leaves_is_told_before_it_leaves() -> None:
    world = World(8)
    _, client, process, server = joined(world)
    told: list[tuple[object, bytes]] = []
    process.on_write = lambda transport, data: told.append((transport, data))
    changing = bytearray(b"one")
    server.transport.write(changing)
    changing[:] = b"two"
    server.transport.write(memoryview(b"two"))
    assert told == [(server.transport, b"one"), (server.transport, b"two")]
    run_for(world, 1)
    assert client.data == b"onetwo"
    process.kill()
    server.transport.write(b"three")
    assert len(told) == 2, "a dead process sends nothing"
    world.close()
