"""Multicast lines: datagrams from one sender to whoever has joined a group.

Each line has faults of its own for each host that hears it: loss, duplication, delay and reordering
are drawn for each packet there, as they happen behind the last switch. A receiver that does not
read has a buffer that overflows, and is told how much it has lost, as Linux tells.
"""

import errno
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappush
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Final
from zlib import crc32

from tests.simulation.loop import Handle

if TYPE_CHECKING:
    from tests.simulation.network import Way
    from tests.simulation.world import Process, World

__all__ = ["DatagramSocket", "LineFaults", "LineSender", "Multicast"]

RECEIVE_BUFFER_SIZE: Final = 1024 * 1024
"""Bytes that wait in a socket at most."""


@dataclass
class LineFaults:
    """What happens to the packets of a line on their way to a host. Chances are per packet."""

    loss: float = 0.0
    duplication: float = 0.0
    reorder: float = 0.0
    """That a packet comes up to `late_ns` later, behind others."""
    late_ns: int = 20_000_000
    is_dead: bool = False
    """Everything is lost."""

    @property
    def is_quiet(self) -> bool:
        return not (self.loss or self.duplication or self.reorder)


class Multicast:
    """Who has joined what."""

    def __init__(self, world: "World") -> None:
        self.senders: dict[LineSender, None] = {}
        """Those that are open."""
        self._world = world
        self._groups: dict[tuple[int, int], dict[DatagramSocket, None]] = {}
        self._faults: dict[tuple[str, str], LineFaults] = {}

    def sender(
        self, process: "Process", line: str, group: str, port: int, first_group: int = 0
    ) -> "LineSender":
        """A sender (exchange.multicast.DatagramSender) for a line; its name is that of its faults.
        Channel c has the group that is c - 1 behind `group` + `first_group`."""
        return LineSender(self, process, line, int(IPv4Address(group)) + first_group - 1, port)

    def listen(self, process: "Process", group: str, port: int) -> "DatagramSocket":
        """A socket that hears a group."""
        key = (int(IPv4Address(group)), port)
        return DatagramSocket(process, self._groups.setdefault(key, {}))

    def faults(self, line: str, host: str) -> LineFaults:
        """Those of a line for a host that hears it; they may be changed at any time."""
        found = self._faults.get((line, host))
        if found is None:
            found = self._faults[line, host] = LineFaults()
        return found

    def members(self, group: int, port: int) -> "dict[DatagramSocket, None]":
        """Who hears a group, in the order of joining."""
        return self._groups.get((group, port), {})


class LineSender:
    """Where a line's packets go. `is_full` makes it take nothing until `drain`; with `error` every
    send fails."""

    def __init__(
        self, multicast: Multicast, process: "Process", line: str, base: int, port: int
    ) -> None:
        self.process = process
        self.line = line
        self.is_full = False
        self.error: OSError | None = None
        self.packet_count = 0
        self._multicast = multicast
        self._world = process.world
        self._base = base
        self._port = port
        self._is_open = True
        self._on_writable: Callable[[], None] | None = None
        self._ways: dict[DatagramSocket, _Path] = {}
        process.sockets[self] = None
        multicast.senders[self] = None

    def send(self, packets: list[tuple[int, bytes]]) -> int:
        if not self.process.is_alive:
            return len(packets)
        assert self._is_open, "sent after the end"
        if self.error is not None:
            raise self.error
        if self.is_full:
            return 0
        if self.process.on_send is not None:
            self.process.on_send(self, packets)
        self.packet_count += len(packets)
        heard: dict[DatagramSocket, list[bytes]] = {}
        for channel, data in packets:
            for one in self._multicast.members(self._base + channel, self._port):
                if one in heard:
                    heard[one].append(data)
                else:
                    heard[one] = [data]
        for one, found in heard.items():
            self._carry(one, found)
        return len(packets)

    def when_writable(self, action: Callable[[], None]) -> None:
        self._on_writable = action
        if not self.is_full:
            self.process.loop_facade.push(Handle(self._tell_writable, ()))

    def drain(self) -> None:
        """There is room again."""
        self.is_full = False
        if self._on_writable is not None:
            self.process.loop_facade.push(Handle(self._tell_writable, ()))

    def fail(self, number: int) -> None:
        """Every send fails from now on with that error number; 0: it works again."""
        self.error = OSError(number, os.strerror(number)) if number else None

    def close(self) -> None:
        self._is_open = False
        self._on_writable = None
        self.process.sockets.pop(self, None)
        self._multicast.senders.pop(self, None)

    def drop(self, is_silent: bool) -> None:
        """The process is gone."""
        del is_silent
        self.close()

    def _tell_writable(self) -> None:
        action, self._on_writable = self._on_writable, None
        if action is not None:
            action()

    def _carry(self, receiver: "DatagramSocket", packets: list[bytes]) -> None:
        path = self._ways.get(receiver)
        if path is None:
            source, target = self.process.host.name, receiver.process.host.name
            way = self._world.network.way(source, target)
            path = _Path(way, self._multicast.faults(self.line, target), receiver)
            self._ways[receiver] = path
        faults = path.faults
        if path.way.is_cut or faults.is_dead:
            return
        random = self._world.random
        if not faults.is_quiet:
            packets = path.spoil(packets, self._world)
        if packets:
            due_ns = path.way.arrival_ns(sum(map(len, packets)))
            if due_ns <= path.arrival_ns:
                due_ns = path.arrival_ns + 1
            path.arrival_ns = due_ns
            heappush(self._world.heap, (due_ns, random(), receiver.arrive, packets))


class _Path:
    """From a sender to a receiver."""

    __slots__ = ("arrival_ns", "faults", "receiver", "way")

    def __init__(self, way: "Way", faults: LineFaults, receiver: "DatagramSocket") -> None:
        self.way = way
        self.faults = faults
        self.receiver = receiver
        self.arrival_ns = 0

    def spoil(self, packets: list[bytes], world: "World") -> list[bytes]:
        """What comes in order; what comes late is on its way already."""
        faults, random = self.faults, world.random
        found = []
        for data in packets:
            if random() < faults.loss:
                continue
            copies = 2 if random() < faults.duplication else 1
            for _ in range(copies):
                if random() < faults.reorder:
                    due_ns = self.way.arrival_ns(len(data)) + int(random() * faults.late_ns)
                    heappush(world.heap, (due_ns, random(), self.receiver.arrive, [data]))
                else:
                    found.append(data)
        return found


class DatagramSocket:
    """A socket that hears one group: an `exchange.client.sockets.GroupSocket`."""

    buffer_size = RECEIVE_BUFFER_SIZE

    def __init__(self, process: "Process", members: "dict[DatagramSocket, None]") -> None:
        self.process = process
        self.is_open = True
        self.dropped_count = 0
        """Datagrams for which there was no room."""
        self._members = members
        self._queue: deque[bytes] = deque()
        self._size = 0
        self._action: Callable[[], object] | None = None
        self._is_due = False
        self._handle = Handle(self._tell, ())
        members[self] = None
        process.sockets[self] = None

    def receive(self) -> tuple[bytes, int]:
        """Raises OSError, BlockingIOError when nothing waits."""
        return self.receive_next(), self.dropped_count or -1

    def receive_next(self) -> bytes:
        """Raises as `receive`."""
        if not self._queue:
            if self.is_open:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        data = self._queue.popleft()
        self._size -= len(data)
        loop = self.process.loop_facade
        loop.data_crc = crc32(data, loop.data_crc)
        return data

    def when_readable(self, action: Callable[[], object]) -> None:
        self._action = action
        self._push()

    def close(self) -> None:
        self.is_open = False
        self._queue.clear()
        self._action = None
        self._members.pop(self, None)
        self.process.sockets.pop(self, None)

    def drop(self, is_silent: bool) -> None:
        """The process is gone."""
        del is_silent
        self.close()

    def arrive(self, packets: list[bytes]) -> None:
        """For the sender."""
        if not self.is_open:
            return
        for data in packets:
            if self._size + len(data) > RECEIVE_BUFFER_SIZE:
                self.dropped_count += 1
            else:
                self._queue.append(data)
                self._size += len(data)
        self._push()

    def _push(self) -> None:
        if self._queue and self._action is not None and not self._is_due:
            self._is_due = True
            self.process.loop_facade.push(self._handle)

    def _tell(self) -> None:
        self._is_due = False
        if self._action is not None and self._queue:
            try:
                self._action()
            finally:
                self._push()
