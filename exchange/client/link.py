"""One connection of a client: the session machine on an asyncio transport.

All rules are in `protocol.session`; here are the transport, the timer and the clock. What is sent
within one turn of the event loop leaves in one write. Reading can be held (the reader of reports
is too slow) and sending can be full (the transport holds too much); both are bounded.
"""

import asyncio
import socket
from typing import Final, Protocol, cast

from exchange.client.errors import (
    ClientError,
    ConnectionLostError,
    LogOnRejectedError,
    TerminatedError,
)
from exchange.client.limits import (
    CLOSE_WAIT_S,
    FLUSH_SIZE,
    SECOND_LOOK_S,
    TIMER_LATE_NS,
    WRITE_SIZE_HIGH,
)
from exchange.clock import Clock
from protocol.errors import RemoteProtocolError
from protocol.session import Connection, Message, Party, Received, Service, State
from protocol.transport import Hello, LogOn, LogOnAccepted, LogOnRejected, LogOut

__all__ = ["Link", "LinkOwner"]

_NS_PER_S: Final = 1_000_000_000


class LinkOwner(Protocol):
    """What a link asks of, and tells, the client that it belongs to."""

    def make_log_on(self, hello: Hello) -> LogOn:
        """Answer the greeting."""

    def established(self, accepted: LogOnAccepted) -> None:
        """The session is on."""

    def received(self, received: Received) -> bool:
        """A message of the established session. False: read no more until `release`."""

    def has_room(self) -> None:
        """Sending is possible again."""

    def ended(self, link: "Link", reason: ClientError) -> None:
        """The connection is gone; the last call."""


class Link(asyncio.Protocol):
    """One connection, from the TCP handshake to its end."""

    def __init__(
        self,
        owner: LinkOwner,
        clock: Clock,
        loop: asyncio.AbstractEventLoop,
        service: Service = Service.ORDER_ENTRY,
    ) -> None:
        self._owner = owner
        self._clock = clock
        self._loop = loop
        # UTC when the connection was made, then monotonic: a step of the wall clock ends nothing.
        self._offset_ns = clock.time_ns() - clock.monotonic_ns()
        self._machine = Connection(Party.CLIENT, self._now_ns(), service)
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due_ns = 0
        self._flush_is_due = False
        self._is_held = False
        self.is_full = False
        """Whether the transport holds too much: send nothing then."""

    # Called by the client.

    @property
    def is_established(self) -> bool:
        """Whether commands can be sent."""
        return self._machine.state is State.ESTABLISHED

    @property
    def last_received(self) -> int:
        """Number of the last report that was read."""
        return self._machine.last_received

    @property
    def epoch(self) -> int:
        """Of the venue's numbers, as it said in its greeting; only after that."""
        assert self._machine.hello is not None, "the venue has not greeted yet"
        return self._machine.hello.epoch

    @property
    def unknown_count(self) -> int:
        """Messages that were skipped because their tag is not known here."""
        return self._machine.unknown_count

    def send(self, message: Message) -> int:
        """Send a message with this turn of the loop; return its number (0 when it has none)."""
        machine = self._machine
        number = machine.send(message, self._now_ns())
        if machine.queued_size >= FLUSH_SIZE:
            self._flush()
        elif not self._flush_is_due:
            self._flush_is_due = True
            self._loop.call_soon(self._flush)
        return number

    def hold(self) -> None:
        """Stop reading; what has been read already waits, at most one chunk."""
        transport = self._transport
        if transport is not None and not self._is_held and not transport.is_closing():
            self._is_held = True
            transport.pause_reading()

    def release(self) -> None:
        """Go on reading after a hold, first what was read before it."""
        if self._is_held:
            self._loop.call_soon(self._go_on)

    def log_out(self) -> None:
        """End the session in good order: the venue answers, then the connection ends."""
        if self.is_established:
            self.send(LogOut())
            self._loop.call_later(CLOSE_WAIT_S, self.abort)
        else:
            self.abort()

    def abort(self) -> None:
        """Drop the connection now."""
        # uvloop closes a transport whose connecting was canceled without telling anybody.
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
        if self._timer is not None:
            self._timer.cancel()

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=WRITE_SIZE_HIGH)
        tcp = transport.get_extra_info("socket")
        if tcp is not None:
            tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._set_timer()

    def data_received(self, data: bytes) -> None:
        self._machine.receive_data(data, self._now_ns())
        self._read()

    def pause_writing(self) -> None:
        self.is_full = True

    def resume_writing(self) -> None:
        self.is_full = False
        self._owner.has_room()

    def connection_lost(self, exc: Exception | None) -> None:
        # What came before the end counts, held or not: at most one read of the loop.
        self._transport = None
        self._is_held = False
        self._read()
        if self._timer is not None:
            self._timer.cancel()
        reason = self._reason(exc)
        self._machine.connection_lost()
        self._owner.ended(self, reason)

    # Inside.

    def _now_ns(self) -> int:
        return self._offset_ns + self._clock.monotonic_ns()

    def _go_on(self) -> None:
        if self._transport is None or not self._is_held:
            return
        self._is_held = False
        self._read()
        if not self._is_held and not self._transport.is_closing():
            self._transport.resume_reading()

    def _read(self) -> None:
        """Handle what has been read, until nothing is left or reading is held."""
        try:
            while not self._is_held and (received := self._machine.next_event()) is not None:
                self._handle(received)
        except RemoteProtocolError:
            pass  # The machine is CLOSED and says why in its last frame.
        if self._machine.state is State.CLOSED:
            self._flush()

    def _handle(self, received: Received) -> None:
        message = received.message
        if isinstance(message, Hello):
            self.send(self._owner.make_log_on(message))
        elif isinstance(message, LogOnAccepted):
            self._owner.established(message)
            self._set_timer()
        elif not self._owner.received(received):
            self.hold()

    def _flush(self) -> None:
        """Write what is queued; after the last frame close, but do not wait for ever."""
        self._flush_is_due = False
        transport, data = self._transport, self._machine.data_to_send()
        if transport is None or transport.is_closing():
            return
        if data:
            transport.write(data)
        if self._machine.state is State.CLOSED:
            transport.close()
            self._loop.call_later(CLOSE_WAIT_S, self.abort)

    def _set_timer(self) -> None:
        """Call the machine when it wants to be called."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._due_ns = self._machine.deadline_ns()
        if self._due_ns:
            wait_s = max(0, self._due_ns - self._now_ns()) / _NS_PER_S
            self._timer = self._loop.call_later(wait_s, self._tick)

    def _tick(self) -> None:
        now_ns = self._now_ns()
        if now_ns - self._due_ns > TIMER_LATE_NS:
            # The loop was busy with something else. What the venue has sent meanwhile waits in the
            # socket, and is read before the venue is judged.
            self._due_ns = now_ns + round(SECOND_LOOK_S * _NS_PER_S)
            self._timer = self._loop.call_later(SECOND_LOOK_S, self._tick)
            return
        if self._is_held:
            # Nobody listens on this side, so the venue's silence means nothing.
            self._machine.numbers_received(self._machine.last_received, now_ns)
        self._machine.tick(now_ns)
        self._flush()
        self._set_timer()

    def _reason(self, exc: Exception | None) -> ClientError:
        """Say why the connection ended: the last word of either side, or what TCP knows."""
        ended = self._machine.ended
        if isinstance(ended, LogOnRejected):
            return LogOnRejectedError(ended)
        if ended is not None:
            return TerminatedError(ended.code, ended.text, self._machine.ended_by is Party.VENUE)
        if exc is not None:
            return ConnectionLostError(exc)
        if self._take_unread():
            return ConnectionLostError("the venue closed it in the middle of a frame")
        return ConnectionLostError("closed without a word")

    def _take_unread(self) -> bytes:
        """What has been received and not read: part of a frame, when nothing is held."""
        return self._machine.take_unread()
