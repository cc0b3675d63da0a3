"""A feed upstream that gives its log, and nothing else, as badly as it is told to."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from typing import cast

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from journal.event_format import encode_record_header
from protocol.codes import RejectCode, TerminateCode
from protocol.feed import FeedState, LogPiece, LogRequest
from protocol.session import Connection, Message, Party, Service, State
from protocol.signing import log_on_bytes
from protocol.transport import Hello, LogOn, LogOnAccepted, LogOnRejected
from tests.exchange.feed.door import Door
from tests.journal.event_life import Batch

__all__ = ["VENUE", "UpstreamPeer", "content_of"]

VENUE = "peer"
NOW_NS = 1


def content_of(batch: Batch) -> bytes:
    """The record of a batch as events/ has it."""
    return encode_record_header(batch.header) + batch.events


class UpstreamPeer:
    """`cuts` says for each connection after how many bytes it is cut, from the log-on on; behind
    them none is cut. `requests` are the sequences that were asked for."""

    def __init__(self, key: Ed25519PrivateKey, epoch: int) -> None:
        self.key = key.public_key()
        self.epoch = epoch
        self.batches: list[Batch] = []
        self.piece_size = 1_000
        self.cuts: Iterator[int] = iter(())
        self.requests: list[int] = []
        self.connection_count = 0
        self.sent_size = 0
        self.rejection: RejectCode | None = None
        self.spoil: Callable[[Batch, bytes], bytes] = lambda batch, content: content
        self.port = 0
        self._door: Door | None = None
        self._peers: set[_Peer] = set()

    @property
    def sequence(self) -> int:
        return self.batches[-1].last_sequence if self.batches else 0

    async def start(self) -> None:
        bound = socket.create_server(("127.0.0.1", self.port))
        self.port = bound.getsockname()[1]
        self._door = Door(bound, lambda: _Peer(self))

    def write(self, batch: Batch) -> None:
        self.batches.append(batch)
        for peer in [*self._peers]:
            peer.send_log()

    async def stop(self) -> None:
        assert self._door is not None
        await self._door.close()
        for peer in [*self._peers]:
            peer.transport.abort()
        while self._peers:
            await asyncio.sleep(0)

    def add(self, peer: "_Peer") -> None:
        self.connection_count += 1
        self._peers.add(peer)

    def forget(self, peer: "_Peer") -> None:
        self._peers.discard(peer)


class _Peer(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, owner: UpstreamPeer) -> None:
        self._owner = owner
        self._machine = Connection(Party.VENUE, NOW_NS, Service.FEED)
        self._room = next(owner.cuts, 2**62)
        self._next_sequence = 0  # of the record that goes next; 0: none was asked for

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._owner.add(self)
        self._send(Hello(1, 0, VENUE, bytes(32), NOW_NS, 4096, self._owner.epoch))

    def data_received(self, data: bytes) -> None:
        self._machine.receive_data(data, NOW_NS)
        while (received := self._machine.next_event()) is not None:
            self._handle(received.message)
        if self._machine.state is State.CLOSED:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._owner.forget(self)

    def _handle(self, message: Message) -> None:
        if isinstance(message, LogOn):
            assert self._machine.hello is not None
            content = log_on_bytes(VENUE, bytes(32), message, Service.FEED)
            self._owner.key.verify(message.signature, content)
            if self._owner.rejection is not None:
                self._send(LogOnRejected(self._owner.rejection, 0, 0, "not today"))
                return
            self._send(LogOnAccepted(0, 0, 0, 0, 1, 0, 0, message.keepalive_ms, 0, 0, 0))
            self._send(FeedState(self._owner.sequence, 0, self._owner.epoch, []))
        elif isinstance(message, LogRequest):
            self._owner.requests.append(message.from_sequence)
            self._next_sequence = message.from_sequence
            self.send_log()

    def send_log(self) -> None:
        for batch in self._owner.batches:
            if self._next_sequence and batch.last_sequence >= self._next_sequence:
                self._send_record(batch)
                self._next_sequence = batch.last_sequence + 1

    def _send_record(self, batch: Batch) -> None:
        content = self._owner.spoil(batch, content_of(batch))
        size = self._owner.piece_size
        for offset in range(0, len(content), size):
            is_last = offset + size >= len(content)
            self._send(LogPiece(batch.first_sequence, is_last, content[offset : offset + size]))

    def _send(self, message: Message) -> None:
        if self._machine.state is State.CLOSED or self.transport.is_closing():
            return
        self._machine.send(message, NOW_NS)
        data = self._machine.data_to_send()[: self._room]
        self._room -= len(data)
        self._owner.sent_size += len(data)
        self.transport.write(data)
        if not self._room:
            self._machine.terminate(TerminateCode.SHUTDOWN, "cut", NOW_NS)
            self.transport.close()
