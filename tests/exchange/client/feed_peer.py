"""A feed for client tests: the venue's side of the session machine on loopback, over one channel
whose messages a `Feed` makes up.

It answers as the page says and in the most awkward way that is allowed: its packets begin where it
likes, and it may close a connection after any byte.
"""

import asyncio
import os
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, cast

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from exchange.client import Backoff, FeedClient, connect_feed
from protocol.codes import RejectCode, RequestEndCode, SubscriptionForm, SubscriptionStart
from protocol.errors import RemoteProtocolError
from protocol.feed import (
    CandlesRequest,
    DropCopyMark,
    DropCopyReport,
    DropCopyRequest,
    FeedReject,
    FeedState,
    PacketPiece,
    ReplayRequest,
    RequestEnd,
    Subscribe,
    Subscribed,
    Unsubscribe,
)
from protocol.framing import CLIENT_FRAME_SIZE_MAX, REPLAYED, UNSEQUENCED, encode_frame
from protocol.market_data import SnapshotBegin, SnapshotEnd
from protocol.order_entry import OrderExpired
from protocol.packets import (
    FIRST,
    LAST,
    SELECTED,
    SNAPSHOT,
    Block,
    Packet,
    SelectedBlock,
    encode_packet,
)
from protocol.session import Connection, Party, Service, State
from protocol.signing import log_on_bytes
from protocol.transport import Hello, LogOn, LogOnAccepted, LogOnRejected, LogOut, Terminate
from protocol.wire import encode
from tests.exchange.client.feed import EPOCH, NOW, Feed, heartbeat

import msgspec  # isort: skip

__all__ = ["AT_ONCE", "KEY", "Answer", "FeedLine", "FeedPeer", "copied", "snapshot_packets"]

KEY: Final = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
AT_ONCE: Final = Backoff(initial_ms=0, maximum_ms=0, attempts_max=1_000)
PER_PACKET: Final = 4
"""Messages of a packet: it begins with a number that leaves 1."""


def copied(sequence: int, index: int) -> DropCopyReport:
    """A report at a position."""
    report = OrderExpired(sequence, NOW, sequence, 1_000 + index, 100, 0, 1)
    return DropCopyReport(0, 7, sequence, index, 1, msgspec.Raw(encode(report)))


def snapshot_packets(next_number: int) -> list[bytes]:
    """The shortest snapshot: of an empty channel, in two packets."""
    begin = SnapshotBegin(1, NOW, 5, next_number, 1, 0, 0)
    end = SnapshotEnd(1, NOW, 5, next_number, 0)
    return [
        encode_packet(
            Packet(SNAPSHOT, 1, EPOCH, 5 + index, NOW, [Block(FIRST | LAST, encode(message))])
        )
        for index, message in enumerate((begin, end))
    ]


class FeedPeer:
    """The feed: `async with FeedPeer(feed) as peer`, then `await peer.client()`."""

    def __init__(self, feed: Feed, port: int = 0) -> None:
        self.feed = feed
        self.epoch = EPOCH
        self.time_ns = NOW
        """Of the last command that it has read."""
        self.copies: list[DropCopyReport] = []
        """What drop copies carry, in order of position."""
        self.answers: dict[type, Answer] = {
            Subscribe: FeedLine.subscribe,
            ReplayRequest: FeedLine.replay,
            DropCopyRequest: FeedLine.drop_copy,
            Unsubscribe: FeedLine.unsubscribe,
        }
        self.requests: list[Any] = []
        """Over all connections."""
        self.rejected: LogOnRejected | None = None
        self.says_state = True
        self.cuts: list[int] = []
        """After how many bytes behind the log-on the next connections are closed."""
        self.lines: list[FeedLine] = []
        self.ended: list[Any] = []
        """The last message of each connection that has ended."""
        self._port = port
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> "FeedPeer":
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: FeedLine(self), "127.0.0.1", self._port)
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

    def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    @property
    def line(self) -> "FeedLine":
        return self.lines[-1]

    @property
    def sequence(self) -> int:
        """The highest of any report."""
        return max((msgspec.msgpack.decode(copy.report)[1] for copy in self.copies), default=10)

    def asked(self, kind: type) -> list[Any]:
        return [request for request in self.requests if isinstance(request, kind)]

    async def client(self, **options: Any) -> FeedClient:
        """Connect with the right key; reconnect at once."""
        defaults: dict[str, Any] = {"key": KEY, "reconnect": AT_ONCE}
        return await connect_feed("127.0.0.1", self.port, **(defaults | options))


class FeedLine(asyncio.Protocol):
    """One connection of the peer."""

    def __init__(self, peer: FeedPeer) -> None:
        self.peer = peer
        self.machine = Connection(Party.VENUE, NOW, Service.FEED)
        self._transport: asyncio.Transport | None = None
        self._left: int | None = None
        """Bytes that may still be sent before the connection is closed; None: no bound."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.peer.lines.append(self)
        nonce = os.urandom(32)
        self.send(Hello(1, 0, "VENUE", nonce, NOW, CLIENT_FRAME_SIZE_MAX, self.peer.epoch))

    def data_received(self, data: bytes) -> None:
        self.machine.receive_data(data, NOW)
        try:
            for received in iter(self.machine.next_event, None):
                self._handle(received.message)
        except RemoteProtocolError:
            self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self.peer.ended.append(self.machine.ended)
        self._transport = None

    def send(self, *messages: Any) -> None:
        if self.machine.state is State.CLOSED:
            return
        for message in messages:
            self.machine.send(message, NOW)
        self._flush()

    def send_packets(self, form: int, *packets: bytes) -> None:
        self.send(*(PacketPiece(form, packet) for packet in packets))

    def send_raw(self, data: bytes) -> None:
        """Write, or as much as the connection is to live for."""
        if self._transport is None or self._transport.is_closing():
            return
        if self._left is not None:
            data, self._left = data[: self._left], self._left - len(data)
        self._transport.write(data)
        if self._left is not None and self._left <= 0:
            self._transport.close()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # Answers, as the page has them.

    def subscribe(self, asked: Subscribe) -> None:
        feed = self.peer.feed
        next_number = feed.next_number
        if asked.start == SubscriptionStart.NUMBER:
            if asked.from_number > next_number:
                self.refuse(asked, RejectCode.NUMBER_TOO_HIGH, 5, next_number)
                return
            next_number = asked.from_number
        self.send(Subscribed(asked.request_id, asked.channel, self.peer.epoch, next_number))
        if asked.start == SubscriptionStart.SNAPSHOT:
            self.send_packets(asked.form, *snapshot_packets(next_number))
        is_selection = asked.form == SubscriptionForm.TRADES or bool(asked.instruments)
        self.send_packets(asked.form, *self.packets(next_number, is_selection=is_selection))
        self.send_packets(asked.form, heartbeat(feed.next_number, epoch=self.peer.epoch))

    def packets(self, number: int, *, is_selection: bool = False) -> list[bytes]:
        """All from a number on, in packets that begin below it."""
        feed = self.peer.feed
        begin = (number - 1) // PER_PACKET * PER_PACKET + 1
        packets = []
        for first in range(begin, feed.next_number, PER_PACKET):
            some = list(enumerate(feed.messages[first - 1 : first - 1 + PER_PACKET], first))
            if is_selection:
                # Every third message is not asked for.
                blocks = [
                    SelectedBlock(flags, encode(message), n)
                    for n, (flags, message) in some
                    if n % 3
                ]
                packet = Packet(SELECTED, 1, self.peer.epoch, first, NOW, blocks)
            else:
                plain = [Block(flags, encode(message)) for _, (flags, message) in some]
                packet = Packet(1, 1, self.peer.epoch, first, NOW, plain)
            packets.append(encode_packet(packet))
        return packets

    def replay(self, asked: ReplayRequest) -> None:
        feed = self.peer.feed
        if asked.from_number >= feed.next_number:
            self.refuse(asked, RejectCode.NUMBER_TOO_HIGH, 3, feed.next_number)
            return
        end = min(feed.next_number, asked.from_number + asked.count)
        last = (end - 2) // PER_PACKET + 1  # Packets up to the one with the last message.
        first = (asked.from_number - 1) // PER_PACKET
        packets = self.packets(1)[first:last]
        self.send_packets(0, *packets)
        behind = min(feed.next_number, last * PER_PACKET + 1)
        self.send(RequestEnd(asked.request_id, RequestEndCode.DONE, behind))

    def drop_copy(self, asked: DropCopyRequest) -> None:
        begin = (asked.from_sequence, asked.from_index) if asked.from_sequence else (1 << 61, 0)
        sequence = asked.from_sequence - 1 if asked.from_sequence else self.peer.sequence
        self.send(DropCopyMark(asked.request_id, sequence, NOW))
        for copy in self.peer.copies:
            if (msgspec.msgpack.decode(copy.report)[1], copy.index) >= begin:
                self.send(msgspec.structs.replace(copy, request_id=asked.request_id))
        self.send(DropCopyMark(asked.request_id, self.peer.sequence, NOW))

    def candles(self, asked: CandlesRequest, *candles: Any) -> None:
        frames = [encode_frame(UNSEQUENCED, 1, encode(one), NOW, 0, REPLAYED) for one in candles]
        self.send_raw(b"".join(frames))
        self.send(RequestEnd(asked.request_id, RequestEndCode.DONE, 0))

    def unsubscribe(self, asked: Unsubscribe) -> None:
        self.send(RequestEnd(asked.request_id, RequestEndCode.UNSUBSCRIBED, 0))

    def refuse(
        self, asked: Any, code: int, field: int = 0, limit: int = 0, retry_after_ns: int = 0
    ) -> None:
        tag = asked.__struct_config__.tag
        self.send(FeedReject(asked.request_id, tag, code, field, limit, retry_after_ns, "text"))

    # Inside.

    def _flush(self) -> None:
        self.send_raw(self.machine.data_to_send())
        if self.machine.state is State.CLOSED:
            self.close()

    def _handle(self, message: Any) -> None:
        if isinstance(message, LogOn):
            self._answer(message)
        elif isinstance(message, LogOut):
            self.send(Terminate(100, ""))
        elif type(message) in self.peer.answers:
            self.peer.requests.append(message)
            self.peer.answers[type(message)](self, message)

    def _answer(self, log_on: LogOn) -> None:
        assert self.machine.hello is not None
        if self.peer.rejected is not None:
            self.send(self.peer.rejected)
            return
        key = Ed25519PublicKey.from_public_bytes(log_on.key)
        hello = self.machine.hello
        try:
            to_sign = log_on_bytes(hello.venue, hello.nonce, log_on, Service.FEED)
            key.verify(log_on.signature, to_sign)
        except InvalidSignature:
            self.send(LogOnRejected(RejectCode.BAD_SIGNATURE, 11, 0, ""))
            return
        self.send(LogOnAccepted(10, NOW, 0, 0, 1, 0, 0, log_on.keepalive_ms, 0, 0, 0))
        if self.peer.says_state:
            where = [(1, self.peer.feed.next_number)]
            self.send(FeedState(10, self.peer.time_ns, self.peer.epoch, where))
        self._left = self.peer.cuts.pop(0) if self.peer.cuts else None


Answer = Callable[[FeedLine, Any], None]
