"""One end of a simulated connection: the transport of a process, and the socket below it.

What is written goes into the socket while there is room (`_window` bytes that the other process has
not read), and waits in the transport's buffer beyond it. The socket outlives what the process does:
what it has taken arrives, in order and once, unless the network is cut; then it is kept and sent
again. An end (FIN) comes behind the data; a reset comes where data is for a socket that is gone,
where a socket is closed that has unread data, and not at all over a way that is cut.
"""

import asyncio
import errno
import os
from collections import deque
from heapq import heappush
from socket import SO_SNDBUF, SOL_SOCKET
from typing import TYPE_CHECKING, Any, Final
from zlib import crc32

from tests.simulation.loop import Handle

if TYPE_CHECKING:
    from tests.simulation.network import Way
    from tests.simulation.world import Process

__all__ = ["BoundSocket", "Stream", "os_error"]

READ_SIZE_MAX: Final = 256 * 1024
"""Bytes that a loop reads at once."""

WRITE_SIZE_HIGH: Final = 64 * 1024
"""asyncio's own high-water mark."""

SEND_BUFFER_SIZE_MIN: Final = 512
"""What the system keeps of a socket whose owner wants the least; it counts its own overhead."""


END: Final = b""
"""What is sent behind the last byte; data is never empty."""

Ending = OSError | bytes
"""What comes behind what was received: END, or the error that a read gives."""


def os_error(kind: type[OSError], number: int) -> OSError:
    """An error as the system gives it."""
    return kind(number, os.strerror(number))


class BoundSocket:
    """What a transport or a server tells about its socket."""

    def __init__(self, address: Any, stream: "Stream | None" = None) -> None:
        self._address = address
        self._stream = stream

    def getsockname(self) -> Any:
        return self._address

    def setsockopt(self, level: int, option: int, value: int) -> None:
        """Only the size of the send buffer means something here."""
        if self._stream is not None:
            self._stream.set_option(level, option, value)


class Stream(asyncio.Transport):
    """See the module. The other end is `peer`, and `way` leads there."""

    __slots__ = (
        *("_ack_is_due", "_arrival_ns", "_arrive_action", "_buffer", "_buffer_size"),
        *("_flight_size", "_high"),
        *("_inbox", "_is_closing", "_is_eof", "_is_fin_sent", "_is_lost", "_is_paused"),
        *("_is_read_due", "_is_reading", "_low", "_network", "_protocol", "_random"),
        *("_read_handle", "_sent", "_stalled_count", "_unacknowledged_size", "_window"),
        *("_world", "_write_handle"),
        *("end", "is_open", "local", "loop", "peer", "process", "remote", "way"),
    )

    def __init__(
        self, process: "Process", way: "Way", local: Any, remote: Any, window_size: int
    ) -> None:
        super().__init__()
        self.process = process
        self.loop = process.loop_facade
        self.way = way
        self.local = local
        self.remote = remote
        self.is_open = True
        """Whether the socket is there."""
        self.end: Ending | None = None
        """What comes behind what has been received."""
        self.peer = self  # until they are joined
        self._world = process.world
        self._network = process.world.network
        self._random = process.world.random
        self._protocol: Any = None
        # The socket.
        self._inbox: deque[bytes] = deque()
        self._sent: deque[bytes] = deque()  # and not received: on its way, or stalled
        self._stalled_count = 0  # of those, lost and to be sent again
        self._arrival_ns = 0
        self._flight_size = 0
        self._unacknowledged_size = 0
        self._window = window_size
        self._is_fin_sent = False
        self._arrive_action = self._arrive
        self._ack_is_due = False
        # The transport.
        self._buffer: deque[bytes] = deque()
        self._buffer_size = 0
        self._high = WRITE_SIZE_HIGH
        self._low = WRITE_SIZE_HIGH // 4
        self._is_paused = False
        self._is_reading = False
        self._is_read_due = False
        self._is_closing = False
        self._is_eof = False
        self._is_lost = False
        self._read_handle = Handle(self._read, ())
        self._write_handle = Handle(self._write_on, ())
        process.sockets[self] = None

    def __repr__(self) -> str:
        return f"<{self.process!r} {self.local} to {self.remote}>"

    def begin(self, protocol: Any) -> None:
        """The connection is the protocol's: it is told, and then reads."""
        if not self._is_closing:
            self._protocol = protocol
            protocol.connection_made(self)
            self.loop.call_soon(self.resume_reading)

    # What protocols ask.

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "peername":
            return self.remote
        if name == "sockname":
            return self.local
        return BoundSocket(self.local, self) if name == "socket" else default

    def set_option(self, level: int, option: int, value: int) -> None:
        """For BoundSocket."""
        if (level, option) == (SOL_SOCKET, SO_SNDBUF):
            self._window = max(2 * value, SEND_BUFFER_SIZE_MIN)

    def is_closing(self) -> bool:
        return self._is_closing

    def is_reading(self) -> bool:
        return self._is_reading

    def pause_reading(self) -> None:
        self._is_reading = False

    def resume_reading(self) -> None:
        if self._is_closing or self._is_reading:
            return
        self._is_reading = True
        if self._inbox or self.end is not None:
            self._ask_to_read()

    def get_write_buffer_size(self) -> int:
        return self._buffer_size

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if high is None:
            high = WRITE_SIZE_HIGH if low is None else 4 * low
        self._high = high
        self._low = high // 4 if low is None else low
        self._pause_if_full()

    def can_write_eof(self) -> bool:
        return True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if type(data) is not bytes:
            data = bytes(data)  # It may change before it is sent.
        if self._is_eof:
            raise RuntimeError("Cannot call write() after write_eof()")
        if self._is_lost or not data or not self.process.is_alive:
            return
        if self.process.on_write is not None:
            self.process.on_write(self, data)
        if isinstance(self.end, OSError):
            self._be_lost(self.end)
            return
        if not self._buffer:
            room = self._window - self._flight_size
            if len(data) <= room:
                self._transmit(data)
                return
            if room > 0:
                self._transmit(data[:room])
                data = data[room:]
        self._buffer.append(data)
        self._buffer_size += len(data)
        self._pause_if_full()

    def write_eof(self) -> None:
        if not self._is_eof and not self._is_closing:
            self._is_eof = True
            if not self._buffer:
                self._send_end()

    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            self._is_reading = False
            if not self._buffer:
                self._lose(None)

    def abort(self) -> None:
        self._be_lost(None)

    # In the process: reading and writing on.

    def _ask_to_read(self) -> None:
        if not self._is_read_due:
            self._is_read_due = True
            self.loop.push(self._read_handle)

    def _read(self) -> None:
        self._is_read_due = False
        if not self._is_reading:
            return
        inbox = self._inbox
        if not inbox:
            if self.end == END:
                self._read_end()
            elif isinstance(self.end, OSError):
                self._be_lost(self.end)
            return
        data = inbox.popleft()
        if inbox:
            data = self._join(data)
        network = self._network
        if network.split_chance and len(data) > 1 and self._random() < network.split_chance:
            size = 1 + int(self._random() * (len(data) - 1))
            inbox.appendleft(data[size:])
            data = data[:size]
        self._acknowledge(len(data))
        if inbox or self.end is not None:
            self._is_read_due = True
            self.loop.push(self._read_handle)
        self.loop.data_crc = crc32(data, self.loop.data_crc)
        try:
            self._protocol.data_received(data)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001 - as asyncio does
            self._fail("data_received", error)

    def _join(self, data: bytes) -> bytes:
        parts, size, inbox = [data], len(data), self._inbox
        while inbox and size + len(inbox[0]) <= READ_SIZE_MAX:
            parts.append(inbox.popleft())
            size += len(parts[-1])
        return b"".join(parts)

    def _read_end(self) -> None:
        self._is_reading = False
        self.end = None  # It is told once.
        try:
            keeps_open = self._protocol.eof_received()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001 - as asyncio does
            self._fail("eof_received", error)
            return
        if not keeps_open:
            self.close()

    def _write_on(self) -> None:
        """There is room again, or the connection is no more."""
        self._ack_is_due = False
        if self._is_lost:
            return
        if isinstance(self.end, OSError):
            self._be_lost(self.end)
            return
        buffer = self._buffer
        while buffer and (room := self._window - self._flight_size) > 0:
            data = buffer.popleft()
            if len(data) > room:
                buffer.appendleft(data[room:])
                data = data[:room]
            self._buffer_size -= len(data)
            self._transmit(data)
        if self._is_paused and self._buffer_size <= self._low:
            self._is_paused = False
            self._tell("resume_writing")
        if not buffer:
            if self._is_closing:
                self._lose(None)
            elif self._is_eof:
                self._send_end()

    def _pause_if_full(self) -> None:
        if self._buffer_size > self._high and not self._is_paused:
            self._is_paused = True
            self._tell("pause_writing")

    def _tell(self, name: str) -> None:
        try:
            getattr(self._protocol, name)()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001 - as asyncio does
            self._report(name, error)

    def _fail(self, name: str, error: BaseException) -> None:
        self._report(name, error)
        self._be_lost(error)

    def _report(self, name: str, error: BaseException) -> None:
        context = {"message": f"protocol.{name}() failed", "exception": error, "transport": self}
        self.loop.call_exception_handler(context)

    def _be_lost(self, error: BaseException | None) -> None:
        """End it now, with what waits in the buffer."""
        self._is_closing = True
        self._is_reading = False
        self._buffer.clear()
        self._buffer_size = 0
        self._lose(error)

    def _lose(self, error: BaseException | None) -> None:
        if not self._is_lost:
            self._is_lost = True
            self.loop.call_soon(self._end, error)

    def _end(self, error: BaseException | None) -> None:
        try:
            if self._protocol is not None:
                self._protocol.connection_lost(error)
        finally:
            self.close_socket()

    # The socket: what the system does.

    def close_socket(self) -> None:
        """Unread data is a reset for the peer, else it sees an end behind what was sent."""
        if not self.is_open:
            return
        self.is_open = False
        self.process.sockets.pop(self, None)
        if isinstance(self.end, OSError):
            return
        if self._inbox:
            self._drop_stalled()
            self.send_reset()
        else:
            self._send_end()

    def drop(self, is_silent: bool) -> None:
        """The process is gone; `is_silent`: so is its machine, and only what is on its way still
        arrives."""
        self._is_lost = True
        if is_silent:
            self.is_open = False
            self.process.sockets.pop(self, None)
            self._drop_stalled()
        else:
            self.close_socket()

    def _drop_stalled(self) -> None:
        for _ in range(min(self._stalled_count, len(self._sent))):
            self._sent.pop()
        self._stalled_count = 0

    def send_reset(self) -> None:
        """Tell the peer that this end is gone, if the network lets it through."""
        way = self.way
        if not way.is_cut:
            due_ns = max(way.arrival_ns(0), self._arrival_ns + 1)
            heappush(self._world.heap, (due_ns, self._random(), self.peer.receive_reset, None))

    def receive_reset(self, _: object = None) -> None:
        """The other end is gone."""
        self.receive_error(os_error(ConnectionResetError, errno.ECONNRESET))

    def receive_error(self, error: OSError) -> None:
        """The connection is no more. What was received before can still be read, unless a write
        finds out first."""
        if not self.is_open or isinstance(self.end, OSError):
            return
        self._world.note(repr(self.process), "reset", error)
        self.end = error
        self._sent.clear()
        if self._buffer and not self._ack_is_due:
            self._ack_is_due = True
            self.loop.push(self._write_handle)
        if self._is_reading:
            self._ask_to_read()

    def _send_end(self) -> None:
        if not self._is_fin_sent:
            self._is_fin_sent = True
            self._transmit(END)

    def _transmit(self, item: bytes) -> None:
        """Send, behind what was sent before: an arrival is that of the oldest that has not."""
        self._flight_size += len(item)
        self._sent.append(item)
        if self.way.is_cut:
            self._stall()
            return
        due_ns = self.way.arrival_ns(len(item))
        if due_ns <= self._arrival_ns:
            due_ns = self._arrival_ns + 1
        self._arrival_ns = due_ns
        heappush(self._world.heap, (due_ns, self._random(), self._arrive_action, None))

    def _arrive(self, _: object) -> None:
        """At the other end, unless the way was cut meanwhile."""
        if self.way.is_cut:
            self._stall()
            return
        if not self._sent:
            return  # A reset has taken it.
        peer = self.peer
        if not peer.is_open:
            self._sent.clear()
            self._network.refuse(self)
            return
        item = self._sent.popleft()
        if item:
            peer._inbox.append(item)
        elif peer.end is None:
            peer.end = END
        if peer._is_reading and not peer._is_read_due:
            peer._is_read_due = True
            peer.loop.push(peer._read_handle)

    def _stall(self) -> None:
        self._stalled_count += 1
        self.way.hold(self)

    def resend(self) -> None:
        """Ask again for what a host that is back knows nothing of."""
        if self.is_open and not isinstance(self.end, OSError):
            self._network.refuse(self)

    def time_out(self, error: OSError) -> None:
        """Nothing got through for too long: whichever end waits for an answer gives up."""
        if self._stalled_count:
            self.receive_error(error)
        if self._unacknowledged_size:
            self.peer.receive_error(error)

    def go_on(self, due_ns: int) -> None:
        """The way is whole again: what was lost on it arrives from then on."""
        count, self._stalled_count = self._stalled_count, 0
        self._arrival_ns = max(self._arrival_ns, due_ns)
        for _ in range(count):
            self._arrival_ns += 1
            heappush(
                self._world.heap, (self._arrival_ns, self._random(), self._arrive_action, None)
            )
        size, self._unacknowledged_size = self._unacknowledged_size, 0
        if size:
            self._acknowledge(size)

    def _acknowledge(self, size: int) -> None:
        """The peer may send as much more."""
        way, sender = self.way, self.peer
        if way.is_cut:
            self._unacknowledged_size += size
            way.hold(self)
            return
        sender._flight_size -= size
        if sender._buffer and sender.is_open and not sender._ack_is_due:
            sender._ack_is_due = True
            due_ns = way.arrival_ns(0)
            event = (due_ns, self._random(), sender.loop.push, sender._write_handle)
            heappush(self._world.heap, event)
