"""A feed server over a venue's log, in one process: its own code, with sockets in memory.

`Desk` has the venue (a `Truth` whose records go into a real log), the feed that reads it, and
readers. A reader's transport takes what it is given until it is stalled; then it takes as much as
a kernel would, and the feed is told that it takes no more.
"""

import asyncio
import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from zlib import crc32

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Struct
from msgspec.structs import replace

from exchange.config import FeedConfig, FeedSettings, VenueSettings
from exchange.feed.connection import Connection
from exchange.feed.limits import CONNECTIONS_MAX
from exchange.feed.run import Feed
from exchange.feed.server import FeedServer
from exchange.feed.service import find_surroundings
from exchange.logs import Log
from journal.event_format import entries
from protocol.codes import Role, SubscriptionForm, SubscriptionStart, WhenSlow
from protocol.feed import FeedRequest, FeedState, PacketPiece, Subscribe
from protocol.records import (
    EVENT_HEAD,
    REPORT,
    AccountRecorded,
    KeyRecorded,
    ParticipantRecorded,
    SessionRecorded,
    VenueRecorded,
)
from protocol.session import Connection as Machine
from protocol.session import Message, Party, Service, State
from protocol.signing import log_on_bytes
from protocol.transport import Hello, LogOn, LogOnAccepted
from protocol.wire import encode
from tests.exchange.feed.truth import Truth
from tests.exchange.feed.venue_log import VenueLog
from tests.exchange.loops import until
from tests.journal.event_life import Batch

__all__ = ["ADMIN", "Desk", "MemoryTransport", "Reader", "private_key", "subscribe"]

ADMIN: Final = 1
SEGMENT_SIZE: Final = 64 * 1024
KERNEL_SIZE: Final = 64 * 1024
"""Bytes that a stalled peer's system takes before the transport has to keep them."""


def private_key(number: int) -> Ed25519PrivateKey:
    """The same key for the same number."""
    return Ed25519PrivateKey.from_private_bytes(number.to_bytes(32, "big"))


def public_key(number: int) -> bytes:
    return private_key(number).public_key().public_bytes_raw()


def subscribe(request_id: int, **fields: Any) -> Subscribe:
    """A subscription to all orders of channel 1, live, but for what is named."""
    values: dict[str, Any] = {
        "request_id": request_id,
        "channel": 1,
        "form": SubscriptionForm.ORDERS,
        "start": SubscriptionStart.LIVE,
        "from_number": 0,
        "instruments": [],
        "events": [],
        "depth": 0,
        "interval_s": 0,
        "conflation_ms": 0,
        "when_slow": WhenSlow.CONFLATE,
    }
    return Subscribe(**(values | fields))


class MemoryTransport(asyncio.Transport):
    """A socket in memory; see the module."""

    def __init__(self, loop: asyncio.AbstractEventLoop, protocol: Connection) -> None:
        super().__init__()
        self.is_stalled = False
        self.kernel_size = KERNEL_SIZE
        self.is_gone = False
        self.is_reading_paused = False
        self.unsent_size_max = 0
        self.write_count = 0
        self.on_write: Callable[[bytes], None] = lambda data: None
        self.taken = bytearray()  # by the peer's kernel
        self._unsent = bytearray()
        self._loop = loop
        self._protocol = protocol
        self._is_paused = False
        self._is_closing = False
        self._inbox: list[bytes] = []

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("10.0.0.1", 1) if name == "peername" else default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert high == 0, "the first byte that the kernel does not take pauses"

    def get_write_buffer_size(self) -> int:
        return len(self._unsent)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert isinstance(data, bytes), "a buffer that could still change"
        assert not self.is_gone, "written after the end"
        self.on_write(data)
        self.write_count += 1
        self._unsent += data
        self._drain()
        self.unsent_size_max = max(self.unsent_size_max, len(self._unsent))
        if self._unsent and not self._is_paused:
            self._is_paused = True
            self._protocol.pause_writing()

    def pause_reading(self) -> None:
        assert not self.is_reading_paused
        self.is_reading_paused = True

    def resume_reading(self) -> None:
        assert self.is_reading_paused
        self.is_reading_paused = False
        inbox, self._inbox = self._inbox, []
        for data in inbox:
            self.deliver(data)

    def is_closing(self) -> bool:
        return self._is_closing

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """The peer closes as soon as it has read that."""
        self.close()

    def close(self) -> None:
        self._is_closing = True
        self._drain()

    def abort(self) -> None:
        self._is_closing = True
        self._unsent.clear()
        self._lose()

    # The peer's side.

    def deliver(self, data: bytes) -> None:
        """Bytes from the peer, as far as the feed reads."""
        if self.is_reading_paused:
            self._inbox.append(data)
        elif not self._is_closing:
            self._protocol.data_received(data)

    def take(self) -> bytes:
        """What the peer reads now; a stalled one makes room in its kernel with that."""
        data = bytes(self.taken)
        self.taken.clear()
        self._drain()
        return data

    def _drain(self) -> None:
        room = self.kernel_size - len(self.taken) if self.is_stalled else len(self._unsent)
        self.taken += self._unsent[: max(room, 0)]
        del self._unsent[: max(room, 0)]
        if self._is_paused and not self._unsent:
            self._is_paused = False
            self._protocol.resume_writing()
        if self._is_closing and not self._unsent:
            self._lose()

    def _lose(self) -> None:
        if not self.is_gone:
            self.is_gone = True
            self._loop.call_soon(self._protocol.connection_lost, None)


class Reader:
    """A client of the feed: the session machine, and everything it was told, in order."""

    def __init__(self, desk: "Desk", key: int) -> None:
        self.desk = desk
        self.key = key
        self.connection = desk.server.accept()
        self.transport = MemoryTransport(desk.loop, self.connection)
        self.machine = Machine(Party.CLIENT, desk.feed.now_ns(), Service.FEED)
        self.told: list[Message] = []
        self.connection.connection_made(self.transport)

    def log_on(self, **fields: Any) -> Any:
        """Log on; the answer."""
        (hello,) = self.read()
        assert isinstance(hello, Hello)
        assert hello.epoch == self.desk.venue.epoch
        values: dict[str, Any] = {
            "major": 1,
            "minor": 0,
            "key": public_key(self.key),
            "session": "reader",
            "client_nonce": bytes(32),
            "next_number": 0,
            "keepalive_ms": 30_000,
            "cancel_on_disconnect": 0,
            "cancel_grace_ms": 0,
            "client": "test",
            "signature": bytes(64),
        }
        service = fields.pop("service", Service.FEED)
        log_on = LogOn(**(values | fields))
        signed = log_on_bytes(hello.venue, hello.nonce, log_on, service)
        if "signature" not in fields:
            log_on = replace(log_on, signature=private_key(self.key).sign(signed))
        self.send(log_on)
        answers = self.read()
        self.told.clear()
        if isinstance(answers[0], LogOnAccepted):
            assert isinstance(answers[1], FeedState)
            self.told.append(answers[1])
        return answers[0]

    def send(self, message: Message) -> None:
        """Hand a message to the feed."""
        self.machine.send(message, self.desk.feed.now_ns())
        self.transport.deliver(self.machine.data_to_send())

    def ask(self, request: FeedRequest) -> list[Message]:
        """Send a request; what was told at once."""
        self.read()
        count = len(self.told)
        self.send(request)
        self.read()
        return self.told[count:]

    def read(self) -> list[Message]:
        """What has come since the last time; all of it is in `told` too."""
        new: list[Message] = []
        data = self.transport.take()
        if self.machine.state is not State.CLOSED:
            self.machine.receive_data(data, self.desk.feed.now_ns())
            while (received := self.machine.next_event()) is not None:
                new.append(received.message)
        self.told += new
        return new

    def packets(self, form: int) -> list[bytes]:
        """Of all that was told, the packets of a form; 0: of replays."""
        self.read()
        pieces = (one for one in self.told if isinstance(one, PacketPiece))
        return [one.data for one in pieces if one.form == form]

    def all(self, kind: type) -> list[Any]:
        """Of all that was told, the messages of a class."""
        self.read()
        return [one for one in self.told if isinstance(one, kind)]


class Desk:
    """See the module. An asynchronous context manager."""

    def __init__(self, folder: Path, *, seed: int = 1, connections_max: int = CONNECTIONS_MAX):
        self.truth = Truth(seed)
        self.venue = VenueLog(folder, segment_size=SEGMENT_SIZE)
        self.lines: list[str] = []
        self.feed: Feed
        self.server: FeedServer
        self.loop = asyncio.get_running_loop()
        self.config = FeedConfig(
            VenueSettings("north", folder), feed=FeedSettings(port=0, metrics_port=0)
        )
        self._connections_max = connections_max
        self._numbers: dict[int, int] = {}

    async def __aenter__(self) -> Self:
        await self.venue.start()
        self._admit()
        await self.open()
        return self

    async def __aexit__(
        self,
        error_class: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
        if self.venue.stream is not None:
            await self.venue.kill()

    async def open(self) -> None:
        """Start a feed over the log."""
        log = Log(write=self.lines.append)
        surroundings = dataclasses.replace(
            find_surroundings(self.config, None, log), connections_max=self._connections_max
        )
        self.feed = Feed(surroundings, self.loop)
        await self.feed.start()
        await until(lambda: self.feed.source.sequence == self.truth.sequence)
        streams, fail = self.feed.streams, self.feed.fail
        self.server = FeedServer(streams, self.loop, surroundings, fail, self.feed.is_current)
        self.server.start()

    def close(self) -> None:
        """End the feed without a word."""
        for connection in list(self.server.connections):
            connection.abort()
        self.server.close()
        self.feed.close()

    # The venue.

    def _admit(self) -> None:
        """The operator with key 1; participants 2 and 3 with keys 2 and 3 and accounts 2 and 3."""
        head = self.truth.begin()
        self.truth.tell(VenueRecorded(*head, "north", self.venue.epoch, 3))
        self.truth.tell(ParticipantRecorded(*head, 1, "operator"))
        self.truth.tell(KeyRecorded(*head, 1, 1, public_key(1), Role.ADMIN))
        for number in (2, 3):
            self.truth.tell(ParticipantRecorded(*self.truth.begin(), number, f"p{number}"))
            self.give(number, number, Role.TRADE | Role.DROP_COPY)
            head = self.truth.begin()
            self.truth.tell(AccountRecorded(*head, number, number, "main", "USD"))
            self.truth.tell(SessionRecorded(*self.truth.begin(), number, number, "s"))
        self.write()

    def give(self, key: int, participant_id: int, roles: int) -> None:
        """A command that gives a key these roles."""
        head = self.truth.begin()
        self.truth.tell(KeyRecorded(*head, key, participant_id, public_key(key), roles))

    def report(self, session: int, message: Struct) -> int:
        """A report of the command that has begun; its number."""
        number = self._numbers[session] = self._numbers.get(session, 0) + 1
        payload = encode(message)
        truth = self.truth
        head = (REPORT, 0, 0, session, 1, number, truth.sequence, truth.time_ns)
        truth._events.append(EVENT_HEAD.pack(EVENT_HEAD.size + len(payload), *head) + payload)
        return number

    def list_market(self) -> None:
        """Two events of channel 1 with two instruments each, and one of channel 2."""
        for event_id, channel in ((1, 1), (2, 1), (3, 2)):
            self.truth.list_event(event_id, channel)
        for instrument_id, event_id in ((1, 1), (2, 1), (3, 2), (4, 2)):
            self.truth.list_instrument(instrument_id, event_id, 1)
        self.truth.list_instrument(5, 3, 2)
        self.write()

    def write(self) -> None:
        """The commands since the last time as one durable record."""
        record = self.truth.record()
        crc = 0
        for entry in entries(record.events):
            crc = crc32(entry.payload, crc)
        header = record.header
        self.venue.write(Batch(header.first_sequence, header.command_count, 3, record.events, crc))

    def trade(self, count: int = 1) -> None:
        """As many random commands, as one record."""
        for _ in range(count):
            self.truth.random_command()
        self.write()

    def trade_nothing(self, count: int) -> None:
        """As many commands without an event, as one record."""
        for _ in range(count):
            self.truth.begin()
        self.write()

    async def settle(self) -> None:
        """Wait until the feed has read everything and handed it out."""
        await until(lambda: self.feed.source.sequence == self.truth.sequence)
        self.feed.streams.flush()
        await asyncio.sleep(0)

    # Readers.

    def connect(self, key: int = 2, **fields: Any) -> Reader:
        """A reader that is logged on."""
        reader = Reader(self, key)
        answer = reader.log_on(**fields)
        assert isinstance(answer, LogOnAccepted), answer
        return reader
