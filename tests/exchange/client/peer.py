"""A venue for client tests: one session on the venue's side of the session machine, on loopback.

It keeps what a venue keeps over connections (numbers, highest ids, reports) and answers commands by
a table that tests change. It has no matching: an order is accepted, a cancel cancels.
"""

import asyncio
import os
import socket
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, cast

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from exchange.client import Client, connect
from protocol.admin import AdminAccepted
from protocol.codes import RejectCode, TerminateCode
from protocol.errors import RemoteProtocolError
from protocol.framing import CLIENT_FRAME_SIZE_MAX, REPLAYED, SEQUENCED, Frame, encode_frame
from protocol.order_entry import (
    CancelOrder,
    NewOrder,
    OrderAccepted,
    OrderCanceled,
    OrderReplaced,
    ReplaceOrder,
)
from protocol.session import Connection, Party, State
from protocol.signing import log_on_bytes
from protocol.transport import Hello, LogOn, LogOnAccepted, LogOnRejected, LogOut, StateRequest
from protocol.wire import Command, encode

NOW: Final = 1_700_000_000_000_000_000
KEY: Final = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
Answer = Callable[[Any, int], list[Any]]


def accept_order(order: NewOrder, number: int) -> list[Any]:
    times = (number, NOW, order.client_time_ns)
    what = (order.instrument_id, order.account_id, order.side, order.price, order.quantity)
    how = (order.order_type, order.time_in_force, order.expire_time_ns)
    order_id = 1_000 + order.client_order_id
    return [OrderAccepted(number, NOW, order.client_order_id, order_id, *times, *what, *how)]


def cancel_order(cancel: CancelOrder, number: int) -> list[Any]:
    ids = (cancel.client_order_id, cancel.order_id)
    return [OrderCanceled(number, NOW, *ids, number, NOW, cancel.client_time_ns, 100, 0, 1, 1)]


def replace_order(replace: ReplaceOrder, number: int) -> list[Any]:
    ids = (replace.client_order_id, replace.order_id, number, NOW, replace.client_time_ns)
    target = replace.target_client_order_id
    return [
        OrderReplaced(
            *(number, NOW, *ids, target),
            *(replace.price, replace.quantity, replace.quantity, 0, 1),
        )
    ]


def accept_admin(command: Any, number: int) -> list[Any]:
    return [AdminAccepted(number, NOW, number, command.__struct_config__.tag, 70 + number)]


def silence(_command: Any, _number: int) -> list[Any]:
    return []


class Peer:
    """The venue: `async with Peer() as peer`, then `await peer.client()`."""

    def __init__(self) -> None:
        self.answers: dict[type, Answer] = {
            NewOrder: accept_order,
            CancelOrder: cancel_order,
            ReplaceOrder: replace_order,
        }
        self.commands: list[Command] = []
        """Everything that was received and numbered, over all connections."""
        self.journaled = True
        """Whether commands that arrive count as journaled."""
        self.epoch = 7 << 20
        """Of the numbers, as the greeting says it."""
        self.log_ons: list[LogOn] = []
        self.last_journaled = 0
        self.highest_client_order_id = 0
        self.rejected: LogOnRejected | None = None
        self.history: list[Any] = []
        """Every report: the one with number n is at n - 1."""
        self.ring_start = 1
        """Number of the oldest report that can be sent again."""
        self.replay_cut: int | None = None
        """Bytes of the next replay after which the connection is closed, None: not at all."""
        self.holds_replay = False
        """Whether the next replay stops after its first report, until `finish_replay`."""
        self.state_parts: Callable[[], list[Any]] | None = None
        """What a request for the state is answered with; None: nothing."""
        self.state_request_count = 0
        self.lines: list[Line] = []
        self.ended: list[Any] = []
        """How each connection ended on this side: the last message, or None."""
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> "Peer":
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Line(self), "127.0.0.1", 0)
        return self

    async def __aexit__(
        self,
        error_class: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        for line in self.lines:
            line.abort()

    @property
    def port(self) -> int:
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    @property
    def next_number(self) -> int:
        """Number of the next report."""
        return len(self.history) + 1

    def report(self, *reports: Any) -> None:
        """Decide something while nobody may be connected: it is only sent again."""
        self.history += reports

    @property
    def line(self) -> "Line":
        """The last connection."""
        return self.lines[-1]

    def stop(self) -> None:
        """Accept no more connections."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def client(self, **options: Any) -> Client:
        """Connect with the right key; no reconnect unless asked for."""
        defaults: dict[str, Any] = {"key": KEY, "session": "mm1", "reconnect": None}
        return await connect("127.0.0.1", self.port, **(defaults | options))


class Line(asyncio.Protocol):
    """One connection of the peer."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.machine = Connection(Party.VENUE, NOW)
        self.is_full = False
        self.read_count = 0
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._changes: list[asyncio.Future[None]] = []
        self._rest = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        # Small, so that a client that does not read is felt soon.
        tcp = transport.get_extra_info("socket")
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
        self.peer.lines.append(self)
        nonce = os.urandom(32)
        self.send(Hello(1, 0, "VENUE", nonce, NOW, CLIENT_FRAME_SIZE_MAX, self.peer.epoch))

    def data_received(self, data: bytes) -> None:
        self.read_count += 1
        self.machine.receive_data(data, NOW)
        try:
            for received in iter(self.machine.next_event, None):
                self._handle(received.message, received.frame)
        except RemoteProtocolError:
            pass
        self.flush()
        self._changed()

    def pause_writing(self) -> None:
        self.is_full = True
        self._changed()

    def resume_writing(self) -> None:
        self.is_full = False
        self._changed()

    def connection_lost(self, exc: Exception | None) -> None:
        self.peer.ended.append(self.machine.ended)
        self._transport = None
        self._changed()
        if not self.lost.done():
            self.lost.set_result(None)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something that happened here has made `condition` true."""
        while not condition():
            change = asyncio.get_running_loop().create_future()
            self._changes.append(change)
            await change

    def send(self, *messages: Any) -> None:
        for message in messages:
            number = self.machine.send(message, NOW)
            if number:
                self.peer.history.append(message)
        self.flush()

    def send_raw(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)

    def finish_replay(self) -> None:
        """Send the reports that were held back."""
        self.send_raw(self._rest)

    def terminate(self, code: TerminateCode, text: str = "") -> None:
        self.machine.terminate(code, text, NOW)
        self.flush()

    def flush(self) -> None:
        data = self.machine.data_to_send()
        if self._transport is not None:
            if data:
                self._transport.write(data)
            if self.machine.state is State.CLOSED:
                self._transport.close()

    def close(self) -> None:
        """Close without a word, after what was written."""
        assert self._transport is not None
        self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def pause_reading(self) -> None:
        assert self._transport is not None
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        assert self._transport is not None
        self._transport.resume_reading()

    def _changed(self) -> None:
        changes, self._changes = self._changes, []
        for change in changes:
            if not change.done():
                change.set_result(None)

    def _handle(self, message: Any, frame: Frame) -> None:
        if isinstance(message, LogOn):
            self.peer.log_ons.append(message)
            self._answer(message)
        elif isinstance(message, StateRequest):
            self.peer.state_request_count += 1
            if self.peer.state_parts is not None:
                self.send(*self.peer.state_parts())
        elif isinstance(message, LogOut):
            self.terminate(TerminateCode.LOG_OUT)
        elif frame.kind == SEQUENCED:
            self._command(message, frame.number)

    def _command(self, command: Command, number: int) -> None:
        peer = self.peer
        peer.commands.append(command)
        if peer.journaled:
            peer.last_journaled = number
        self.send(*peer.answers.get(type(command), accept_admin)(command, number))

    def _answer(self, log_on: LogOn) -> None:
        """Accept or refuse a log-on, then send again what it wants."""
        peer = self.peer
        answer, wanted = self._log_on(log_on), log_on.next_number
        if isinstance(answer, LogOnRejected):
            self.send(answer)
            return
        first = wanted if wanted >= peer.ring_start else peer.next_number
        self.machine.send(answer, NOW, next_number=first)
        self.flush()
        frames = [
            encode_frame(SEQUENCED, number, encode(peer.history[number - 1]), NOW, 0, REPLAYED)
            for number in range(first, peer.next_number)
        ]
        self.machine.numbers_sent(peer.next_number, NOW)
        if peer.holds_replay:
            peer.holds_replay = False
            self._rest, frames = b"".join(frames[1:]), frames[:1]
        cut, peer.replay_cut = peer.replay_cut, None
        self.send_raw(b"".join(frames)[:cut])
        if cut is not None:
            self.close()

    def _log_on(self, log_on: LogOn) -> LogOnAccepted | LogOnRejected:
        peer, hello = self.peer, self.machine.hello
        assert hello is not None
        if peer.rejected is not None:
            return peer.rejected
        try:
            Ed25519PublicKey.from_public_bytes(log_on.key).verify(
                log_on.signature, log_on_bytes(hello.venue, hello.nonce, log_on)
            )
        except InvalidSignature:
            return LogOnRejected(RejectCode.BAD_SIGNATURE, 11, 0, "")
        if log_on.key != KEY.public_key().public_bytes_raw():
            return LogOnRejected(RejectCode.UNKNOWN_KEY, 3, 0, "")
        return LogOnAccepted(
            sequence=1,
            time_ns=NOW,
            session_id=7,
            connection=len(peer.lines),
            next_number=peer.next_number,
            last_client_number=peer.last_journaled,
            highest_client_order_id=peer.highest_client_order_id,
            keepalive_ms=log_on.keepalive_ms,
            cancel_on_disconnect=log_on.cancel_on_disconnect,
            cancel_grace_ms=log_on.cancel_grace_ms,
            minor=0,
        )
