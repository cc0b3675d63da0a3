"""One connection to the feed upstream: log on, ask for its log, put the pieces together.

The rules of the connection are in `protocol.session`; here are the transport, the timer and the
clock. What the copy does with a record is its owner's matter; while the owner has no room, nothing
more is read from the socket.
"""

import asyncio
import socket
from typing import Any, Final, Protocol

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from exchange.feed.surroundings import Surroundings
from journal.event_format import BODY_SIZE_MAX, RECORD_HEADER_SIZE
from protocol.errors import RemoteProtocolError
from protocol.feed import FeedReject, FeedState, LogPiece, LogRequest, RequestEnd
from protocol.session import Connection, Message, Party, Service, State
from protocol.signing import log_on_bytes
from protocol.transport import Hello, LogOn, LogOnAccepted, LogOnRejected
from protocol.wire import MAJOR, MINOR

__all__ = ["Upstream", "UpstreamOwner"]

SESSION: Final = "log-copy"
KEEPALIVE_MS: Final = 1_000
REQUEST_ID: Final = 1
NONCE_SIZE: Final = 32
RECORD_SIZE_MAX: Final = RECORD_HEADER_SIZE + BODY_SIZE_MAX

CLOSE_WAIT_S: Final = 1.0
"""How long the last frame may take to leave."""

SECOND_LOOK_S: Final = 0.01
LATE_NS: Final = 100_000_000
"""A timer that is so late says that this process was held up: what the peer has sent meanwhile is
read before the peer is judged."""

_NS_PER_S: Final = 1_000_000_000


class UpstreamOwner(Protocol):
    """What a connection tells the copy that it belongs to."""

    def upstream_opened(self, state: FeedState) -> int:
        """Where the feed upstream is; the sequence to ask its log from, 0 for not at all."""

    def upstream_moved(self, state: FeedState) -> None:
        """Where it is now."""

    def record_received(self, sequence: int, content: bytes) -> str:
        """A record that begins with this sequence; what is wrong with it, or nothing."""


class Upstream(asyncio.Protocol):
    """See the module. `lost` says why the connection has ended."""

    def __init__(
        self, owner: UpstreamOwner, key: Ed25519PrivateKey, surroundings: Surroundings
    ) -> None:
        loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[str] = loop.create_future()
        self.is_open = False  # its log was asked for
        self._owner = owner
        self._key = key
        self._loop = loop
        self._clock = surroundings.clock
        self._random_bytes = surroundings.random_bytes
        # UTC now, then monotonic: a step of the wall clock ends nothing.
        self._offset_ns = self._clock.time_ns() - self._clock.monotonic_ns()
        self._machine = Connection(Party.CLIENT, self._now_ns(), Service.FEED)
        self._transport: Any = None
        self._timer: asyncio.TimerHandle | None = None
        self._due_ns = 0
        self._pieces: list[bytes] = []
        self._pieces_size = 0
        self._is_held = False
        self._reason = ""

    def hold(self) -> None:
        """Read nothing more until `release`."""
        if self._transport is not None and not self._is_held and not self._transport.is_closing():
            self._is_held = True
            self._transport.pause_reading()

    def release(self) -> None:
        """Go on reading."""
        if self._is_held and not self._transport.is_closing():
            self._is_held = False
            self._transport.resume_reading()

    def abort(self) -> None:
        """Drop the connection now."""
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.abort()

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        tcp = transport.get_extra_info("socket")
        if tcp is not None:
            tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._set_timer()

    def data_received(self, data: bytes) -> None:
        self._machine.receive_data(data, self._now_ns())
        try:
            while (received := self._machine.next_event()) is not None:
                self._handle(received.message)
        except RemoteProtocolError as error:
            self._end(error.text)
        if self._machine.state is State.CLOSED:
            ended = self._machine.ended
            self._end(ended.text if ended is not None else "closed")
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._machine.connection_lost()
        if not self.lost.done():
            self.lost.set_result(self._reason or (str(exc) if exc else "connection lost"))

    # Inside.

    def _now_ns(self) -> int:
        return self._offset_ns + self._clock.monotonic_ns()

    def _handle(self, message: Message) -> None:
        if isinstance(message, LogPiece):
            self._take(message)
        elif isinstance(message, Hello):
            self._machine.send(self._make_log_on(message), self._now_ns())
        elif isinstance(message, LogOnAccepted):
            self._set_timer()
        elif isinstance(message, FeedState):
            self._take_state(message)
        elif isinstance(message, FeedReject):
            self._end(f"the log was refused: {message.text}")
        elif isinstance(message, RequestEnd):
            self._end(f"the log ended with code {message.code}")
        elif isinstance(message, LogOnRejected):
            self._end(f"the log-on was refused: {message.text}")

    def _make_log_on(self, hello: Hello) -> LogOn:
        log_on = LogOn(
            major=MAJOR,
            minor=MINOR,
            key=self._key.public_key().public_bytes_raw(),
            session=SESSION,
            client_nonce=self._random_bytes(NONCE_SIZE),
            next_number=0,
            keepalive_ms=KEEPALIVE_MS,
            cancel_on_disconnect=0,
            cancel_grace_ms=0,
            client="exchange feed",
            signature=b"",
        )
        content = log_on_bytes(hello.venue, hello.nonce, log_on, Service.FEED)
        return msgspec.structs.replace(log_on, signature=self._key.sign(content))

    def _take_state(self, state: FeedState) -> None:
        if self.is_open:
            self._owner.upstream_moved(state)
            return
        sequence = self._owner.upstream_opened(state)
        if sequence:
            self.is_open = True
            self._machine.send(LogRequest(REQUEST_ID, sequence), self._now_ns())
        else:
            self._end("its log ends before ours")

    def _take(self, piece: LogPiece) -> None:
        if self._reason:
            return  # What follows a record that is wrong is of no use.
        self._pieces.append(piece.data)
        self._pieces_size += len(piece.data)
        if self._pieces_size > RECORD_SIZE_MAX:
            self._end(f"a record has more than {RECORD_SIZE_MAX} bytes")
        elif piece.is_last:
            content = b"".join(self._pieces)
            self._pieces, self._pieces_size = [], 0
            fault = self._owner.record_received(piece.sequence, content)
            if fault:
                self._end(fault)

    def _end(self, reason: str) -> None:
        """This connection is of no use any more."""
        if not self._reason and self._transport is not None:
            self._reason = reason
            # What is queued, a last word perhaps, leaves before, if the peer takes it.
            self._flush()
            self._transport.close()
            self._loop.call_later(CLOSE_WAIT_S, self.abort)

    def _flush(self) -> None:
        data = self._machine.data_to_send()
        if data and not self._transport.is_closing():
            self._transport.write(data)

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._due_ns = self._machine.deadline_ns()
        if self._due_ns:
            wait_s = max(0, self._due_ns - self._now_ns()) / _NS_PER_S
            self._timer = self._loop.call_later(wait_s, self._tick)

    def _tick(self) -> None:
        now_ns = self._now_ns()
        if now_ns - self._due_ns > LATE_NS:
            self._due_ns = now_ns + LATE_NS
            self._timer = self._loop.call_later(SECOND_LOOK_S, self._tick)
            return
        if self._is_held:
            # Nobody listens on this side, so the silence of the other means nothing.
            self._machine.numbers_received(self._machine.last_received, now_ns)
        self._machine.tick(now_ns)
        if self._machine.state is State.CLOSED:
            self._end("nothing heard")
            return
        self._flush()
        self._set_timer()
