"""Clients of a feed over many of its lives: what they were given, and what they should have been.

The clients are those of `exchange.client`, in an event loop of their own thread, so that a test may
trade and kill meanwhile. Each of their streams is kept whole. What it should be follows from the
journal alone, which is replayed by an engine of its own.
"""

import asyncio
import threading
from collections.abc import Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from exchange.client import (
    Consumer,
    CopiedReport,
    DropCopy,
    DropCopyPosition,
    Feed,
    FeedClient,
    open_feed,
)
from exchange.core.engine import Engine
from journal import FolderStorage, read_only
from protocol import wire
from protocol.codes import DropCopyScope, SubscriptionForm, SubscriptionStart
from protocol.market_data import (
    Candle,
    EventDefinition,
    InstrumentDefinition,
    InstrumentStatus,
    MarketDataMessage,
    Trade,
)
from protocol.packets import DATA, SELECTED, Block, SelectedBlock, decode_packet
from protocol.records import EVENT_HEAD, MARKET_DATA, REFERENCE, REPORT
from tests.integration.peer import WAIT_S

__all__ = [
    "CHANNEL",
    "Copied",
    "Copy",
    "Public",
    "Readers",
    "bars",
    "caused",
    "selected",
    "trades_of",
]

_T = TypeVar("_T")

CHANNEL: Final = 1
BEGINNING: Final = DropCopyPosition(1, 0)


class Copied(NamedTuple):
    """A private event, as a drop copy has it."""

    sequence: int
    event_index: int
    session_id: int
    number: int
    payload: bytes


class Public(NamedTuple):
    """A message of the channel."""

    number: int
    payload: bytes


class Bar(NamedTuple):
    """What a candle says."""

    start_time_ns: int
    open_price: int
    high_price: int
    low_price: int
    close_price: int
    volume: int
    trade_count: int
    open_interest: int


class Copy:
    """What one drop copy was given, over all connections, clients and lives of the feed."""

    def __init__(self, key: Ed25519PrivateKey, scope: DropCopyScope, *accounts: int) -> None:
        self.key = key
        self.scope = scope
        self.accounts = accounts
        self.items: list[Copied] = []
        self.position = BEGINNING
        self.copy: DropCopy | None = None

    def take(self, copied: CopiedReport) -> None:
        ids = (copied.sequence, copied.index, copied.session_id)
        self.items.append(Copied(*ids, copied.number, wire.encode(copied.report)))

    async def open(self, client: FeedClient) -> None:
        """Begin behind what is there already."""
        self.copy = await client.drop_copy(
            scope=self.scope,
            accounts=self.accounts,
            position=self.position,
            on_report=self.take,
        )

    def close(self) -> None:
        assert self.copy is not None, "it was opened"
        self.position = self.copy.position
        self.copy.close()


class Readers:
    """All clients of a test. Every method waits, at most WAIT_S."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address
        self.streams: dict[str, list[Public]] = {}
        self.packets: list[bytes] = []
        """Of the whole channel, as they came."""
        self.consumers: dict[str, Consumer] = {}
        self.trades: dict[str, list[Trade]] = {}
        """What the consumers were told."""
        self.complaints: list[str] = []
        self.client_count = 0
        self.connection_count = 0
        """Of these clients: more than one each when they had to come back."""
        self._clients: list[FeedClient] = []
        self._copies: list[tuple[Copy, FeedClient]] = []
        self._arrived = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda _, context: self.complaints.append(str(context)))
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        async def bounded() -> _T:
            try:
                return await asyncio.wait_for(work, WAIT_S)
            except TimeoutError:
                standing = [(one.standing, one.state) for one in self._clients]
                raise AssertionError(f"it does not come to pass: {standing}") from None

        return asyncio.run_coroutine_threadsafe(bounded(), self._loop).result()

    async def _client(self, key: Ed25519PrivateKey) -> FeedClient:
        self.client_count += 1
        client = open_feed(*self.address, key=key, on_feed_state=self._count)
        self._clients.append(client)
        return client

    def _count(self, _: object) -> None:
        self.connection_count += 1

    def copy(self, copy: Copy) -> None:
        """Open a drop copy with a client of its own."""

        async def open_it() -> None:
            client = await self._client(copy.key)
            await copy.open(client)
            self._copies.append((copy, client))

        self._run(open_it())

    def move(self, copy: Copy) -> None:
        """Close a drop copy and its client, and go on with another client."""

        async def close_it() -> None:
            copy.close()
            [entry] = [one for one in self._copies if one[0] is copy]
            self._copies.remove(entry)
            self._clients.remove(entry[1])
            await entry[1].close()

        self._run(close_it())
        self.copy(copy)

    def keep_books(self, key: Ed25519PrivateKey, group: tuple[str, int]) -> None:
        """Two consumers: one of the multicast that has the feed for what it loses, one of TCP."""
        feed = Feed(*self.address, key)

        async def open_both() -> None:
            for name in ("lines", "tcp"):
                trades = self.trades[name] = []
                if name == "lines":
                    consumer = Consumer(*group, feed=feed, on_trade=trades.append)
                else:
                    consumer = Consumer.over_tcp(feed, on_trade=trades.append)
                consumer.open()
                self.consumers[name] = consumer

        self._run(open_both())

    def follow(self, key: Ed25519PrivateKey, instrument_id: int) -> None:
        """Subscribe from the first message on: to all, to trades, to all of one instrument."""

        async def subscribe() -> None:
            client = await self._client(key)
            for name, form, instruments in (
                ("all", SubscriptionForm.ORDERS, ()),
                ("trades", SubscriptionForm.TRADES, ()),
            ):
                await self._subscribe(client, name, form, instruments)
            other = await self._client(key)
            await self._subscribe(other, "one", SubscriptionForm.ORDERS, (instrument_id,))

        self._run(subscribe())

    async def _subscribe(
        self, client: FeedClient, name: str, form: SubscriptionForm, instruments: tuple[int, ...]
    ) -> None:
        stream = self.streams[name] = []

        def take(data: bytes) -> None:
            stream.extend(messages_in(data))
            if name == "all":
                self.packets.append(data)
                self._arrived.set()

        await client.subscribe(
            CHANNEL,
            form=form,
            start=SubscriptionStart.NUMBER,
            from_number=1,
            instruments=instruments,
            on_packet=take,
        )

    def replay(self, count: int) -> list[Public]:
        """The first messages of the channel, asked for now."""

        async def ask() -> list[bytes]:
            return await self._clients[0].replay(CHANNEL, 1, count)

        packets = self._run(ask())
        return [message for packet in packets for message in messages_in(packet)][:count]

    def candles(self, instrument_id: int, interval_s: int) -> list[Bar]:
        """All candles of an instrument."""

        async def ask() -> list[Candle]:
            return await self._clients[0].candles(instrument_id, interval_s)

        return [
            Bar(
                one.start_time_ns,
                *(one.open_price, one.high_price, one.low_price, one.close_price),
                *(one.volume, one.trade_count, one.open_interest),
            )
            for one in self._run(ask())
        ]

    def wait_for(self, sequence: int, next_number: int) -> None:
        """Wait until everybody has all that a sequence has brought."""

        async def wait() -> None:
            for copy, _ in self._copies:
                assert copy.copy is not None, "it was opened"
                await copy.copy.wait_for(sequence)
            while len(self.streams["all"]) < next_number - 1:
                self._arrived.clear()
                await self._arrived.wait()
            for consumer in self.consumers.values():
                await consumer.wait_for(next_number, CHANNEL)

        self._run(wait())

    def close(self) -> None:
        """All clients log out, and the loop ends."""

        async def close_all() -> None:
            for client in self._clients:
                await client.close()
            for consumer in self.consumers.values():
                await consumer.__aexit__(None, None, None)

        self._run(close_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(WAIT_S)
        self._loop.close()


def trades_of(public: list[Public]) -> list[Trade]:
    """All trades."""
    return [message for message in map(_decode, public) if isinstance(message, Trade)]


def bars(public: list[Public], instrument_id: int, interval_s: int) -> list[Bar]:
    """The candles of an instrument, from its trades."""
    found: dict[int, list[Trade]] = {}
    for message in trades_of(public):
        if message.instrument_id == instrument_id:
            length_ns = interval_s * 10**9
            found.setdefault(message.time_ns // length_ns * length_ns, []).append(message)
    return [
        Bar(
            start_ns,
            trades[0].price,
            max(trade.price for trade in trades),
            min(trade.price for trade in trades),
            trades[-1].price,
            sum(trade.quantity for trade in trades),
            len(trades),
            trades[-1].open_interest,
        )
        for start_ns, trades in found.items()
    ]


def messages_in(data: bytes) -> Iterator[Public]:
    """The messages of a packet, numbered."""
    packet = decode_packet(data)
    blocks: Sequence[Block | SelectedBlock] = packet.blocks
    if packet.kind in (DATA, SELECTED):
        for number, block in enumerate(blocks, packet.number):
            own_number = block.number if isinstance(block, SelectedBlock) else number
            yield Public(own_number, block.payload)


def caused(folder: Path) -> tuple[list[Copied], list[Public]]:
    """What a venue's journal causes: all private events, and all messages of the channel."""
    engine = Engine()
    private: list[Copied] = []
    public: list[Public] = []
    storage = FolderStorage(folder / "data" / "commands", is_read_only=True)
    for record in read_only(storage).records():
        events, _ = engine.replay(record.first_sequence, record.command_count, record.payload)
        offset = 0
        while offset < len(events):
            size, kind, _, channel, session, _, number, sequence, _ = EVENT_HEAD.unpack_from(
                events, offset
            )
            payload = events[offset + EVENT_HEAD.size : offset + size]
            offset += size
            if kind in (REPORT, REFERENCE):
                is_next = bool(private) and private[-1].sequence == sequence
                index = private[-1].event_index + 1 if is_next else 0
                own_number = 0 if kind == REFERENCE else number
                private.append(Copied(sequence, index, session, own_number, payload))
            elif kind == MARKET_DATA and channel == CHANNEL:
                public.append(Public(number, payload))
    return private, public


def selected(public: list[Public], instrument_id: int | None) -> list[Public]:
    """Of all messages those of one instrument, or those that are no order."""
    kept = []
    event_ids = {
        message.event_id
        for message in map(_decode, public)
        if isinstance(message, InstrumentDefinition) and message.instrument_id == instrument_id
    }
    for one in public:
        message = _decode(one)
        if instrument_id is None:
            kinds = (EventDefinition, InstrumentDefinition, InstrumentStatus, Trade)
            is_wanted = isinstance(message, kinds)
        elif isinstance(message, EventDefinition):
            is_wanted = message.event_id in event_ids
        else:
            is_wanted = message.instrument_id == instrument_id
        if is_wanted:
            kept.append(one)
    return kept


def _decode(one: Public) -> MarketDataMessage:
    return wire.decode_market_data(one.payload)
