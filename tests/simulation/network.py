"""The network between the hosts of a world: ways with delays and cuts, listeners, connections.

A `Way` leads from one host to another, in one direction: it has a delay, may be slow, and may be
cut. What is sent over a cut way is lost; a connection sends it again when the way is whole, and
gives up after `give_up_ns`. Processes of one host talk over a way that is short and is never cut.

A connection is asked for with a SYN, tried again for as long; the listener's system answers it even
while its process is paused, and refuses it when nobody listens. Nobody answers for a host that is
down; when it is up again it answers what is for a connection of before with a reset.
"""

import asyncio
import errno
import socket
from collections.abc import Callable
from functools import partial
from heapq import heappush
from typing import TYPE_CHECKING, Any, Final

from tests.simulation.loop import Handle
from tests.simulation.multicast import Multicast
from tests.simulation.stream import BoundSocket, Stream, os_error

if TYPE_CHECKING:
    from tests.simulation.world import Host, Process, World

__all__ = ["Network", "Server", "Way"]

US: Final = 1_000
MS: Final = 1_000_000
S: Final = 1_000_000_000

FIRST_PORT: Final = 40_000
"""Of those that the system chooses."""

SYN_RETRY_NS: Final = S
"""The first pause before a SYN is sent again; each is twice the one before."""

ANY: Final = ("", "0.0.0.0", "127.0.0.1", "localhost")

ProtocolFactory = Callable[[], asyncio.BaseProtocol]


class Way:
    """From one host to another. Everything public may be changed at any time.

    A packet takes `delay_ns` and up to `spread_ns` more, with `spike_chance` up to `spike_ns` on
    top; `byte_ns` is what a byte takes of the bandwidth that all share.
    """

    __slots__ = (
        *("_free_ns", "_held", "_network", "byte_ns", "cut_ns", "delay_ns", "is_cut"),
        *("name", "spike_chance", "spike_ns", "spread_ns"),
    )

    def __init__(self, network: "Network", name: str) -> None:
        self.name = name
        self.delay_ns = network.delay_ns
        self.spread_ns = network.spread_ns
        self.spike_chance = network.spike_chance
        self.spike_ns = network.spike_ns
        self.byte_ns = network.byte_ns
        self.is_cut = False
        self.cut_ns = 0
        """When it was cut last."""
        self._free_ns = 0
        self._network = network
        self._held: dict[Stream, None] = {}

    def arrival_ns(self, size: int) -> int:
        """When a packet arrives that is sent now."""
        network = self._network
        random = network.random
        now_ns = network.world.now_ns
        if self.byte_ns:
            now_ns = self._free_ns = max(now_ns, self._free_ns) + size * self.byte_ns
        due_ns = now_ns + self.delay_ns + int(random() * self.spread_ns)
        if self.spike_chance and random() < self.spike_chance:
            due_ns += int(random() * self.spike_ns)
        return due_ns

    def cut(self) -> None:
        """Nothing gets through from now on."""
        if not self.is_cut:
            self.is_cut = True
            self.cut_ns = self._network.world.now_ns

    def mend(self) -> None:
        """What connections have kept is sent again, each at a time of its own: the pauses between
        attempts have grown with the time that it was cut."""
        if not self.is_cut:
            return
        self.is_cut = False
        network = self._network
        now_ns = network.world.now_ns
        pause_ns = min(now_ns - self.cut_ns, network.retry_ns_max)
        held, self._held = self._held, {}
        for stream in held:
            stream.go_on(now_ns + int(network.random() * pause_ns))

    def hold(self, stream: Stream) -> None:
        """A connection has something that does not get through."""
        if stream not in self._held:
            self._held[stream] = None
            network = self._network
            give_up_ns = network.world.now_ns + network.give_up_ns
            heappush(
                network.world.heap,
                (give_up_ns, network.random(), self._give_up, (stream, self.cut_ns)),
            )

    def _give_up(self, what: tuple[Stream, int]) -> None:
        """Time is over for a connection: the sender of the data that is not acknowledged ends."""
        stream, cut_ns = what
        if self.is_cut and self.cut_ns == cut_ns and stream in self._held:
            stream.time_out(os_error(TimeoutError, errno.ETIMEDOUT))


class Server(asyncio.AbstractServer):
    """What `create_server` gives: accepts until it is closed."""

    def __init__(
        self,
        process: "Process",
        factory: ProtocolFactory,
        address: Any,
        registry: "dict[Any, Server | None]",
        backlog: int,
    ) -> None:
        self.process = process
        self.address = address
        self.sockets: Any = (BoundSocket(address),)
        self._factory = factory
        self._registry = registry
        self._backlog = backlog
        self._waiting: dict[Stream, None] = {}
        self._is_open = True
        process.sockets[self] = None

    @property
    def has_room(self) -> bool:
        """Whether the system completes one more connection."""
        return len(self._waiting) <= self._backlog

    def complete(self, stream: Stream) -> None:
        """The system has made a connection; the process accepts it when it can."""
        self._waiting[stream] = None
        self.process.loop_facade.push(Handle(self._accept, (stream,)))

    def _accept(self, stream: Stream) -> None:
        if stream in self._waiting:
            del self._waiting[stream]
            stream.begin(self._factory())

    def close(self) -> None:
        """Listen no more; what was not accepted is reset. What was, goes on."""
        if self._is_open:
            self._is_open = False
            self.process.sockets.pop(self, None)
            if self._registry.get(self.address) is self:
                self._registry[self.address] = None
            waiting, self._waiting = self._waiting, {}
            for stream in waiting:
                stream.send_reset()
                stream.drop(is_silent=True)

    def drop(self, is_silent: bool) -> None:
        """The process is gone."""
        del is_silent  # Its connections know.
        self._waiting.clear()
        self.close()

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self.process.loop

    def is_serving(self) -> bool:
        return self._is_open

    async def start_serving(self) -> None:
        """It does from the beginning."""

    async def serve_forever(self) -> None:
        raise NotImplementedError("nothing in the product does")

    async def wait_closed(self) -> None:
        """As asyncio before 3.12: nothing to wait for."""


class Network:
    """See the module. The delays and sizes here are those of ways and connections made later."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.random = world.random
        self.multicast = Multicast(world)
        self.delay_ns = 50 * US
        self.spread_ns = 200 * US
        self.spike_chance = 0.0
        self.spike_ns = 50 * MS
        self.byte_ns = 0
        self.split_chance = 0.1
        """That a read gets only a part of what has come."""
        self.window_size = 64 * 1024
        """Bytes of a connection that are on their way or unread, per direction."""
        self.give_up_ns = 60 * S
        """How long a connection sends again what does not get through, and a SYN."""
        self.retry_ns_max = 3 * S
        """How late after a cut a connection goes on at most."""
        self._ways: dict[tuple[str, str], Way] = {}
        self._listeners: dict[Any, Server | None] = {}
        self._next_port = FIRST_PORT
        self._unanswered: dict[str, dict[Stream, None]] = {}

    # For who makes faults.

    def way(self, source: str, target: str) -> Way:
        """The one that leads from one host to another, by their names."""
        way = self._ways.get((source, target))
        if way is None:
            way = self._ways[source, target] = Way(self, f"{source} to {target}")
            if source == target:
                way.delay_ns, way.spread_ns, way.spike_chance, way.byte_ns = 5 * US, 30 * US, 0, 0
        return way

    def cut(self, source: str, target: str) -> None:
        """Nothing gets through from one host to another; the other direction is as it was."""
        assert source != target, "a host reaches itself"
        self.world.note(source, "cut", target)
        self.way(source, target).cut()

    def mend(self, source: str, target: str) -> None:
        """It gets through again."""
        self.world.note(source, "mend", target)
        self.way(source, target).mend()

    def mend_all(self) -> None:
        """No way is cut any more."""
        for way in self._ways.values():
            if way.is_cut:
                self.world.note("network", "mend", way.name)
                way.mend()

    def booted(self, host: "Host") -> None:
        """What was sent to connections of before, again and again, is answered now."""
        for stream in self._unanswered.pop(host.name, {}):
            self.world.after(int(self.random() * self.retry_ns_max), stream.resend)

    # For the loops.

    def listen(
        self, process: "Process", factory: ProtocolFactory, host: str, port: int, backlog: int
    ) -> Server:
        """Raises OSError."""
        if host not in (*ANY, process.host.address, process.host.name):
            raise os_error(OSError, errno.EADDRNOTAVAIL)
        if port == 0:
            self._next_port += 1
            port = self._next_port
        return self._listen(process, factory, (process.host.address, port), backlog)

    def listen_unix(
        self, process: "Process", factory: ProtocolFactory, path: str, backlog: int
    ) -> Server:
        """Raises OSError. A path that a process before has left is taken over."""
        return self._listen(process, factory, (process.host.name, path), backlog)

    def unlink_unix(self, host: "Host", path: str) -> None:
        """Remove the name of a socket."""
        self._listeners.pop((host.name, path), None)

    async def connect(
        self, process: "Process", factory: ProtocolFactory, host: str, port: int
    ) -> tuple[Stream, asyncio.BaseProtocol]:
        """Raises OSError."""
        target = self._find(process.host, host)
        self._next_port += 1
        local = (process.host.address, self._next_port)
        return await self._connect(process, factory, target, local, (target.address, port))

    async def connect_unix(
        self, process: "Process", factory: ProtocolFactory, path: str
    ) -> tuple[Stream, asyncio.BaseProtocol]:
        """Raises OSError."""
        host = process.host
        if (host.name, path) not in self._listeners:
            raise os_error(FileNotFoundError, errno.ENOENT)
        return await self._connect(process, factory, host, "", (host.name, path))

    def refuse(self, stream: Stream) -> None:
        """What a connection has sent came to a socket that is gone."""
        host = stream.peer.process.host
        if host.is_up:
            stream.peer.send_reset()
        else:
            unanswered = self._unanswered.setdefault(host.name, {})
            if stream not in unanswered:
                unanswered[stream] = None
                self.world.after(self.give_up_ns, partial(self._give_up, host.name, stream))

    # Inside.

    def _give_up(self, host: str, stream: Stream) -> None:
        if stream in self._unanswered.get(host, {}):
            del self._unanswered[host][stream]
            stream.receive_error(os_error(TimeoutError, errno.ETIMEDOUT))

    def _listen(
        self, process: "Process", factory: ProtocolFactory, address: Any, backlog: int
    ) -> Server:
        if self._listeners.get(address) is not None:
            raise os_error(OSError, errno.EADDRINUSE)
        server = Server(process, factory, address, self._listeners, backlog)
        self._listeners[address] = server
        return server

    def _find(self, own: "Host", name: str) -> "Host":
        if name in ANY:
            return own
        for host in self.world.hosts.values():
            if name in (host.name, host.address):
                return host
        raise socket.gaierror(socket.EAI_NONAME, f"{name}: no such host in this world")

    async def _connect(
        self,
        process: "Process",
        factory: ProtocolFactory,
        target: "Host",
        local: Any,
        remote: Any,
    ) -> tuple[Stream, asyncio.BaseProtocol]:
        loop = process.loop
        attempt = _Attempt(self, process, target, local, remote)
        attempt.send(None)
        try:
            stream = await attempt.answer
        except asyncio.CancelledError:
            attempt.drop()
            raise
        protocol = factory()
        made = loop.create_future()
        loop.call_soon(stream.begin, protocol)
        loop.call_soon(_set, made)
        try:
            await made
        except BaseException:
            stream.close()
            raise
        return stream, protocol


class _Attempt:
    """A connection that is asked for: a SYN and its answer."""

    def __init__(
        self, network: Network, process: "Process", target: "Host", local: Any, remote: Any
    ) -> None:
        self.answer: asyncio.Future[Stream] = process.loop.create_future()
        self._network = network
        self._process = process
        self._target = target
        self._local = local
        self._remote = remote
        self._way = network.way(process.host.name, target.name)
        self._back = network.way(target.name, process.host.name)
        self._pause_ns = SYN_RETRY_NS
        self._give_up_ns = network.world.now_ns + network.give_up_ns

    def drop(self) -> None:
        """Nobody waits any more; what was made at the same moment is closed."""
        answer = self.answer
        if not answer.cancelled() and answer.done() and answer.exception() is None:
            answer.result().close_socket()

    def send(self, _: object) -> None:
        """Send the SYN."""
        self._push(self._way.arrival_ns(0), self._arrive, None)

    def _push(self, due_ns: int, action: Callable[[Any], object], argument: object) -> None:
        heappush(self._network.world.heap, (due_ns, self._network.random(), action, argument))

    def _arrive(self, _: object) -> None:
        if self.answer.done() or not self._process.is_alive:
            return
        if self._way.is_cut or self._back.is_cut or not self._target.is_up:
            self._try_again()
            return
        server = self._network._listeners.get(self._remote)
        if server is None:
            refused = os_error(ConnectionRefusedError, errno.ECONNREFUSED)
            self._push(self._back.arrival_ns(0), self._tell, refused)
        elif server.has_room:
            self._join(server)
        else:
            self._try_again()

    def _try_again(self) -> None:
        now_ns = self._network.world.now_ns
        if now_ns + self._pause_ns > self._give_up_ns:
            self._push(self._give_up_ns, self._tell, os_error(TimeoutError, errno.ETIMEDOUT))
        else:
            self._push(now_ns + self._pause_ns, self.send, None)
            self._pause_ns *= 2

    def _join(self, server: Server) -> None:
        window_size = self._network.window_size
        ours = Stream(self._process, self._way, self._local, self._remote, window_size)
        theirs = Stream(server.process, self._back, self._remote, self._local, window_size)
        ours.peer, theirs.peer = theirs, ours
        server.complete(theirs)
        # What the other side sends may come before; it is read when the connection is known.
        self._push(self._back.arrival_ns(0), self._tell, ours)

    def _tell(self, answer: "Stream | OSError") -> None:
        if not self._process.is_alive:
            return
        handle = Handle(self._finish, (answer,))
        self._process.loop_facade.push(handle)

    def _finish(self, answer: "Stream | OSError") -> None:
        if isinstance(answer, OSError):
            if not self.answer.done():
                self.answer.set_exception(answer)
        elif self.answer.done():
            answer.close_socket()  # Nobody waits any more.
        else:
            self.answer.set_result(answer)


def _set(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
