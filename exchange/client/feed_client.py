"""An asyncio client of a venue's feed: market data over TCP, replays, candles, drop copies.

What was asked for lives over connections: when one is lost the client makes another and goes on
where it was, by the numbers of the messages, so that none is missing and none comes twice. All
requests may be made at any time; without a connection they wait for one.

    async with await connect_feed("127.0.0.1", 9002, key="reader.pem") as feed:
        async for message in await feed.subscribe(1):
            print(message)

Callbacks are synchronous. What they raise goes to the event loop's exception handler.
"""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from exchange.client.connector import Backoff, ClientState, Connector, Settings
from exchange.client.drop_copy import CopiedReport, DropCopy, DropCopyPosition, DropCopySinks
from exchange.client.errors import ClientError, ConnectError, NotConnectedError
from exchange.client.feed_calls import CandlesCall, ReplayCall, Turn
from exchange.client.feed_link import FeedLink
from exchange.client.feed_requests import FeedDesk, OnFeedState, OnState
from exchange.client.keys import load_key
from exchange.client.limits import CONNECT_WAIT_S
from exchange.client.link import LinkOwner
from exchange.client.subscription import FeedMarketData, Sinks, Subscription
from exchange.client.surroundings import SYSTEM, Surroundings
from exchange.clock import Clock
from protocol.codes import (
    CancelOnDisconnect,
    DropCopyScope,
    SubscriptionForm,
    SubscriptionStart,
    WhenSlow,
)
from protocol.feed import (
    REPLAY_COUNT_MAX,
    CandlesRequest,
    DropCopyMark,
    DropCopyRequest,
    FeedState,
    RequestEnd,
    Skipped,
    Subscribe,
    Subscribed,
)
from protocol.market_data import Candle
from protocol.packets import SNAPSHOT
from protocol.session import Service

__all__ = ["FeedClient", "connect_feed", "open_feed"]

_PATIENT: Final = Backoff(maximum_ms=1_000, attempts_max=1_000_000)
"""As long as somebody wants market data: a million attempts are eleven days."""

_KIND_OFFSET: Final = 3
"""Of the kind in a packet's header."""


async def connect_feed(
    host: str,
    port: int,
    *,
    key: Ed25519PrivateKey | Path | str | bytes,
    session: str = "feed",
    keepalive_ms: int = 1_000,
    on_state: OnState | None = None,
    on_feed_state: OnFeedState | None = None,
    reconnect: Backoff | None = _PATIENT,
    surroundings: Surroundings = SYSTEM,
) -> "FeedClient":
    """Connect, log on, and return a client that knows where the feed is.

    `key` is a private key, the path of a PEM file or PEM text; `session` names the connection in
    the feed's logs. `on_state` is called with every change of the connection, `on_feed_state` with
    what the feed says of itself. The first connection is tried once; `reconnect` is about later
    ones, None for never. `surroundings` is for simulators.

    Raises KeyFileError, ConnectError, LogOnRejectedError, ConnectionLostError, TerminatedError.
    """
    settings = _settings(host, port, key, session, keepalive_ms, reconnect)
    desk = FeedDesk(on_state, on_feed_state)
    connector = _connector(settings, desk, surroundings)
    await connector.open()
    client = FeedClient(connector, desk)
    try:
        async with asyncio.timeout(CONNECT_WAIT_S):
            await client.ready()
    except TimeoutError:
        await client.close()
        raise ConnectError(host, port, "it does not say where the feed is") from None
    except BaseException:
        await client.close()
        raise
    return client


def open_feed(
    host: str,
    port: int,
    *,
    key: Ed25519PrivateKey | Path | str | bytes,
    session: str = "feed",
    keepalive_ms: int = 1_000,
    on_state: OnState | None = None,
    on_feed_state: OnFeedState | None = None,
    reconnect: Backoff = _PATIENT,
    surroundings: Surroundings = SYSTEM,
) -> "FeedClient":
    """As `connect_feed`, but return at once and connect in the background, also the first time.

    Needs a running event loop. Raises KeyFileError.
    """
    settings = _settings(host, port, key, session, keepalive_ms, reconnect)
    desk = FeedDesk(on_state, on_feed_state)
    connector = _connector(settings, desk, surroundings)
    connector.open_later(reconnect)
    return FeedClient(connector, desk)


class FeedClient:
    """Made by `connect_feed` or `open_feed`; an asynchronous context manager.

    Whatever is asked raises NotConnectedError when the client is closed, FeedRejectError when the
    feed refuses it, RequestEndedError when the feed ends it early.
    """

    def __init__(self, connector: Connector, desk: FeedDesk) -> None:
        self._connector = connector
        self._desk = desk
        self._replays = Turn(desk)
        self._candles = Turn(desk)

    async def __aenter__(self) -> "FeedClient":
        return self

    async def __aexit__(
        self,
        error_class: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def standing(self) -> ClientState:
        """Where the connection stands."""
        return self._connector.state

    @property
    def is_connected(self) -> bool:
        """Whether what is asked now is sent at once."""
        return self._desk.is_ready

    @property
    def state(self) -> FeedState | None:
        """What the feed has said last of where it is; None before the first log-on."""
        return self._desk.state

    @property
    def venue(self) -> str:
        """Name of the venue, as the feed said at the greeting."""
        return self._connector.venue

    async def ready(self) -> FeedState:
        """Wait until the client is connected; where the feed is."""
        return await self._desk.ready()

    async def close(self) -> None:
        """Log out; everything that is open ends."""
        await self._connector.close()

    async def subscribe(
        self,
        channel: int,
        *,
        form: SubscriptionForm = SubscriptionForm.ORDERS,
        start: SubscriptionStart = SubscriptionStart.SNAPSHOT,
        from_number: int = 0,
        instruments: Sequence[int] = (),
        events: Sequence[int] = (),
        depth: int = 0,
        interval_s: int = 0,
        conflation_ms: int = 0,
        when_slow: WhenSlow = WhenSlow.CONFLATE,
        on_packet: Callable[[bytes], None] | None = None,
        on_message: Callable[[FeedMarketData], None] | None = None,
        on_notice: Callable[[Subscribed | Skipped | RequestEnd], None] | None = None,
        on_end: Callable[[ClientError | None], None] | None = None,
    ) -> Subscription:
        """Ask for market data of a channel, or of some instruments and events of it.

        The forms ORDERS and TRADES are streams of numbered messages, the others the newest states,
        each at most once in `conflation_ms`. `from_number` goes with the start NUMBER, `depth` with
        LEVELS, `interval_s` with CANDLES. `on_packet` gets a stream's packets as bytes; it is the
        fast way. `on_message` gets every message; without either, iterate over the subscription.
        `on_notice` is told when the feed accepts it, on each connection, and when it has skipped
        messages; `on_end` when nothing more comes, unless by `Subscription.close`.

        Returns when the feed has accepted it.
        """
        if on_packet is not None and form > SubscriptionForm.TRADES:
            raise ValueError(f"{form.name} come as messages, not in packets")
        subscribe = Subscribe(
            request_id=0,
            channel=channel,
            form=form,
            start=start,
            from_number=from_number,
            instruments=list(instruments),
            events=list(events),
            depth=depth,
            interval_s=interval_s,
            conflation_ms=conflation_ms,
            when_slow=when_slow,
        )
        sinks = Sinks(on_packet, on_message, on_notice, on_end)
        subscription = Subscription(self._desk, subscribe, sinks)
        await self._accepted(subscription)
        return subscription

    async def replay(
        self,
        channel: int,
        from_number: int,
        count: int,
        *,
        on_packet: Callable[[bytes], None] | None = None,
    ) -> list[bytes]:
        """Get messages of a channel again, in packets that begin with `from_number`.

        The last packet may go on behind the range. With `on_packet` each is given to it as it
        comes, and the list is empty. Replays of one client come one after another.

        Raises ReplayIncompleteError when the feed does not have all of it, EpochChangedError.
        """
        if from_number < 1 or count < 1:
            raise ValueError("numbers begin at 1, and a replay has at least one message")
        packets: list[bytes] = []
        end = from_number + count
        while from_number < end:
            numbers = range(from_number, min(end, from_number + REPLAY_COUNT_MAX))
            call = ReplayCall(self._desk, channel, numbers, on_packet or packets.append)
            await self._replays.run(call)
            from_number = call.next_number
        return packets

    async def snapshot(
        self, channel: int, *, on_packet: Callable[[bytes], None] | None = None
    ) -> list[bytes]:
        """Get one snapshot of a channel with all orders, in SNAPSHOT packets from begin to end.

        With `on_packet` each is given to it as it comes, and the list is empty. When a connection
        is lost meanwhile, another snapshot begins. The feed refuses it while a subscription to the
        channel's orders is open.
        """
        packets: list[bytes] = []
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def take(packet: bytes) -> None:
            if packet[_KIND_OFFSET] != SNAPSHOT or ended.done():
                return
            (on_packet or packets.append)(packet)
            if not subscription.snapshot_is_open:
                ended.set_result(None)

        def begin(_notice: Subscribed | Skipped | RequestEnd) -> None:
            packets.clear()

        def fail(reason: ClientError | None) -> None:
            if subscription.is_accepted and not ended.done():
                ended.set_exception(reason or NotConnectedError("the feed client was closed"))

        form, start = SubscriptionForm.ORDERS, SubscriptionStart.SNAPSHOT
        subscribe = Subscribe(0, channel, form, start, 0, [], [], 0, 0, 0, WhenSlow.CONFLATE)
        subscription = Subscription(self._desk, subscribe, Sinks(take, None, begin, fail))
        try:
            await self._accepted(subscription)
            await ended
        finally:
            ended.cancel()
            subscription.close()
        return packets

    async def candles(
        self, instrument_id: int, interval_s: int, *, from_time_ns: int = 0, count: int = 1_000
    ) -> list[Candle]:
        """Get candles of the past: the first `count` that end after a time, 0: that there are."""
        request = CandlesRequest(0, instrument_id, interval_s, from_time_ns, count)
        call = CandlesCall(self._desk, request)
        await self._candles.run(call)
        return call.candles

    async def drop_copy(
        self,
        *,
        scope: DropCopyScope = DropCopyScope.PARTICIPANT,
        accounts: Sequence[int] = (),
        position: DropCopyPosition | None = None,
        on_report: Callable[[CopiedReport], None] | None = None,
        on_mark: Callable[[DropCopyMark], None] | None = None,
    ) -> DropCopy:
        """Get a copy of all reports of a participant, of accounts, or (as the operator) of all.

        It begins at `position`, as `DropCopy.position` has said it before; None: with what is new,
        (1, 0): with the first of all. `on_report` gets every report; without it, iterate over the
        drop copy. `on_mark` is told up to where everything was handed over.

        Returns when the feed has accepted it.
        """
        begin = position or DropCopyPosition(0, 0)
        request = DropCopyRequest(0, scope, list(accounts), begin.sequence, begin.index)
        copy = DropCopy(self._desk, request, DropCopySinks(on_report, on_mark))
        await self._accepted(copy)
        return copy

    async def _accepted(self, request: Subscription | DropCopy) -> None:
        """Ask, and wait until the feed has accepted it."""
        self._desk.open(request)
        try:
            await request.accepted
        except asyncio.CancelledError:
            request.close()
            raise


def _settings(
    host: str,
    port: int,
    key: Ed25519PrivateKey | Path | str | bytes,
    session: str,
    keepalive_ms: int,
    reconnect: Backoff | None,
) -> Settings:
    return Settings(
        host=host,
        port=port,
        key=key if isinstance(key, Ed25519PrivateKey) else load_key(key),
        session=session,
        cancel_on_disconnect=CancelOnDisconnect.NEVER,
        cancel_grace_ms=0,
        keepalive_ms=keepalive_ms,
        client="brier-python",
        reconnect=reconnect,
        service=Service.FEED,
    )


def _connector(settings: Settings, desk: FeedDesk, surroundings: Surroundings) -> Connector:
    """Put together a connector whose connections the desk knows."""

    def make_link(owner: LinkOwner, clock: Clock, loop: asyncio.AbstractEventLoop) -> FeedLink:
        desk.link = FeedLink(owner, clock, loop)
        return desk.link

    return Connector(settings, desk, surroundings, make_link)
