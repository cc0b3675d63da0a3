"""Multicast lines of the simulated network."""

import errno

import pytest

from tests.simulation.multicast import (
    RECEIVE_BUFFER_SIZE,
    DatagramSocket,
    LineSender,
)
from tests.simulation.world import MS, Process, S, World

GROUP = "239.1.1.1"
PORT = 5000


class Listener:
    """Hears one group; `at_once_max` datagrams are read in a callback."""

    def __init__(self, process: Process, group: str, at_once_max: int = 1000) -> None:
        self.process = process
        self.socket: DatagramSocket = process.world.network.multicast.listen(process, group, PORT)
        self.heard: list[bytes] = []
        self.call_count = 0
        self._at_once_max = at_once_max
        self.socket.when_readable(self._read)

    def _read(self) -> None:
        self.call_count += 1
        for _ in range(self._at_once_max):
            try:
                self.heard.append(self.socket.receive_next())
            except BlockingIOError:
                return


def line(seed: int = 1) -> tuple[World, LineSender, Process]:
    """A world, the sender of line a, and a process that may listen."""
    world = World(seed)
    venue = world.host("venue").process("venue")
    sender = world.network.multicast.sender(venue, "a", GROUP, PORT)
    return world, sender, world.host("trader").process("consumer")


def packets(count: int, channel: int = 1) -> list[tuple[int, bytes]]:
    return [(channel, b"%d" % number) for number in range(count)]


def test_each_channel_has_its_group() -> None:
    world, sender, process = line()
    one, two = Listener(process, "239.1.1.1"), Listener(process, "239.1.1.2")
    again = Listener(world.host("other").process("consumer"), "239.1.1.2")
    assert sender.send([(1, b"a"), (2, b"b"), (3, b"c"), (1, b"d")]) == 4
    world.run(S)
    snapshots = world.network.multicast.sender(sender.process, "a", GROUP, PORT, first_group=1)
    snapshots.send([(1, b"e")])
    world.run(2 * S)
    assert (one.heard, two.heard, again.heard) == ([b"a", b"d"], [b"b", b"e"], [b"b", b"e"])
    assert sender.packet_count == 4
    other_port = world.network.multicast.sender(sender.process, "a", GROUP, PORT + 1)
    other_port.send([(1, b"f")])
    world.run(3 * S)
    assert one.heard == [b"a", b"d"]
    world.close()


def test_what_is_not_spoiled_comes_in_order() -> None:
    world, sender, process = line()
    listener = Listener(process, GROUP, at_once_max=3)
    for number in range(300):
        sender.send([(1, b"%d" % number)])
        world.run(world.now_ns + number % 7 * 10_000)
    world.run(S)
    assert listener.heard == [b"%d" % number for number in range(300)]
    assert listener.call_count > 100, "called again while something waits"
    world.close()


@pytest.mark.parametrize("seed", range(3))
def test_each_fault_of_a_line_at_a_host(seed: int) -> None:
    world, sender, process = line(seed)
    listener = Listener(process, GROUP)
    faults = world.network.multicast.faults("a", "trader")
    sent = [data for _, data in packets(1000)]

    def hear() -> list[bytes]:
        listener.heard.clear()
        for number in range(1000):
            sender.send([(1, b"%d" % number)])
            world.run(world.now_ns + MS)
        world.run(world.now_ns + S)
        return listener.heard

    faults.loss = 0.1
    lost = hear()
    assert 800 < len(lost) < 970
    assert lost == [data for data in sent if data in lost]
    faults.loss, faults.duplication = 0, 0.1
    doubled = hear()
    assert 1030 < len(doubled) < 1200
    assert [*dict.fromkeys(doubled)] == sent
    faults.duplication, faults.reorder = 0, 0.1
    mixed = hear()
    assert mixed != sent
    assert sorted(mixed, key=int) == sent
    faults.reorder, faults.is_dead = 0, True
    assert hear() == []
    faults.is_dead = False
    world.network.cut("trader", "venue")
    assert hear() == sent, "the other direction"
    world.network.cut("venue", "trader")
    assert hear() == []
    world.close()


def test_faults_are_of_one_line_and_one_host() -> None:
    world, sender, process = line()
    other = Listener(world.host("other").process("consumer"), GROUP)
    listener = Listener(process, GROUP)
    line_b = world.network.multicast.sender(sender.process, "b", GROUP, PORT)
    world.network.multicast.faults("a", "trader").is_dead = True
    sender.send([(1, b"a")])
    world.run(S)
    line_b.send([(1, b"b")])
    world.run(2 * S)
    assert (listener.heard, other.heard) == ([b"b"], [b"a", b"b"])
    world.close()


def test_a_receiver_that_does_not_read_loses_and_is_told() -> None:
    world, sender, process = line()
    listener = Listener(process, GROUP)
    process.pause()
    room = RECEIVE_BUFFER_SIZE // 1000
    sender.send([(1, b"x" * 1000)] * (room + 5))
    world.run(S)
    process.resume()
    world.run(2 * S)
    assert len(listener.heard) == room
    assert listener.socket.dropped_count == 5
    late = world.network.multicast.listen(process, GROUP, PORT)
    sender.send([(1, b"next")])
    world.run(3 * S)
    assert late.receive() == (b"next", -1)
    late.dropped_count = 7
    sender.send([(1, b"last")])
    world.run(4 * S)
    assert late.receive() == (b"last", 7)
    with pytest.raises(BlockingIOError):
        late.receive()
    assert late.buffer_size == RECEIVE_BUFFER_SIZE
    world.close()


def test_a_socket_that_is_closed_hears_nothing() -> None:
    world, sender, process = line()
    listener = Listener(process, GROUP)
    sender.send(packets(1))
    listener.socket.close()
    assert not listener.socket.is_open
    world.run(S)
    assert listener.heard == []
    with pytest.raises(OSError, match="descriptor") as caught:
        listener.socket.receive()
    assert caught.value.errno == errno.EBADF
    late = Listener(process, GROUP)
    sender.send(packets(1))
    world.run(2 * S)
    assert late.heard == [b"0"], "a new socket has its own place"
    process.kill()
    sender.send(packets(1))
    world.run(3 * S)
    assert late.heard == [b"0"]
    world.close()


def test_a_sender_that_is_full_or_fails() -> None:
    world, sender, process = line()
    listener = Listener(process, GROUP)
    told: list[str] = []
    sender.is_full = True
    assert sender.send(packets(2)) == 0
    sender.when_writable(lambda: told.append("room"))
    world.run(S)
    assert told == []
    sender.drain()
    world.run(2 * S)
    assert told == ["room"]
    sender.when_writable(lambda: told.append("still"))
    world.run(3 * S)
    assert told == ["room", "still"]
    sender.fail(errno.ENETUNREACH)
    with pytest.raises(OSError, match="unreachable"):
        sender.send(packets(2))
    sender.fail(0)
    assert sender.send(packets(2)) == 2
    world.run(4 * S)
    assert listener.heard == [b"0", b"1"]
    world.close()


def test_what_leaves_is_told_before_it_leaves() -> None:
    world, sender, process = line()
    listener = Listener(process, GROUP)
    told: list[object] = []
    sender.process.on_send = lambda one, what: told.append((one, what))
    sender.send(packets(1))
    assert told == [(sender, [(1, b"0")])]
    sender.process.kill()
    assert sender.send(packets(1)) == 1, "nothing of a dead process arrives or fails"
    world.run(S)
    assert (len(told), listener.heard) == (1, [b"0"])
    world.close()


def test_no_callback_comes_after_a_sender_is_closed() -> None:
    world, sender, _ = line()
    told: list[str] = []
    sender.is_full = True
    sender.when_writable(lambda: told.append("room"))
    sender.drain()
    assert [*world.network.multicast.senders] == [sender]
    sender.close()
    world.run(S)
    assert told == []
    assert not world.network.multicast.senders
    with pytest.raises(AssertionError):
        sender.send(packets(1))
    world.close()
