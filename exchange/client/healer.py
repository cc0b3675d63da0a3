"""What a consumer asks of a feed: replays and snapshots of channels that have lost messages, and
the messages themselves while its lines are silent, or when it has none.

Each channel has at most one request under way, in a task that lives as long as something is
wanted. While there is no connection no replay is hoped for, so that the snapshots of the lines are
heard instead.
"""

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from exchange.client.connector import ClientState, StateChange
from exchange.client.datagrams import Header
from exchange.client.errors import (
    ClientError,
    EpochChangedError,
    FeedRejectError,
    ReplayIncompleteError,
)
from exchange.client.feed_client import FeedClient, open_feed
from exchange.client.limits import ASK_AGAIN_S, FAILURES_MAX, REPLAY_TRIES_MAX
from exchange.client.lines import LineState
from exchange.client.receiver import NO_EPOCH, MarketDataReceiver
from exchange.client.recovery import Replay, Snapshot
from exchange.client.subscription import Subscription
from exchange.client.surroundings import Surroundings
from protocol.codes import RejectCode, SubscriptionStart
from protocol.feed import FeedState, RequestEnd, Skipped, Subscribed
from protocol.packets import HEARTBEAT, SNAPSHOT, Packet, encode_packet

__all__ = ["Feed", "Healer"]

_KIND_OFFSET: Final = 3
_EPOCH: Final = slice(8, 16)
_NUMBER: Final = slice(16, 24)
"""Where a packet's header has its kind, its epoch and its number."""


@dataclass(frozen=True)
class Feed:
    """Where a feed is, and the key with which to log on: a private key, its PEM text or file."""

    host: str
    port: int
    key: Ed25519PrivateKey | Path | str | bytes = field(repr=False)
    session: str = "consumer"


class Healer:
    """Asks a feed on behalf of a receiver; `after` is called when something came.

    `is_only`: there are no lines, every channel is subscribed to at all times.
    """

    def __init__(
        self,
        feed: Feed,
        receiver: MarketDataReceiver,
        surroundings: Surroundings,
        after: Callable[[], None],
        *,
        is_only: bool,
    ) -> None:
        self.state = LineState("tcp")
        self.error: ClientError | None = None
        """Why the feed refused something last."""
        self._settings = feed
        self._receiver = receiver
        self._surroundings = surroundings
        self._clock = surroundings.clock
        self._after = after
        self._is_only = is_only
        self._feed: FeedClient | None = None
        self._connected = asyncio.Event()
        self._is_ended = False
        """Whether the feed has sent us away for good."""
        self._silent: Collection[int] = ()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._subscriptions: dict[int, Subscription] = {}
        self._is_told = False
        """Whether `after` will be called in this turn of the loop."""
        self._source = 0
        """Of the last snapshot; that of the lines is 0."""

    def open(self) -> None:
        """Begin to connect. Raises KeyFileError."""
        where = self._settings
        self._feed = open_feed(
            where.host,
            where.port,
            key=where.key,
            session=where.session,
            on_state=self._on_state,
            on_feed_state=self._on_feed_state,
            surroundings=self._surroundings,
        )

    async def close(self) -> None:
        """Ask nothing more, and log out."""
        tasks = [*self._tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        feed, self._feed = self._feed, None
        if feed is not None:
            await feed.close()

    @property
    def is_connected(self) -> bool:
        """Whether the feed can be asked now."""
        return self._connected.is_set()

    def look(self, silent: Collection[int]) -> None:
        """Ask for what is wanted now; `silent` are channels of which the lines say nothing."""
        self._silent = silent
        if not self.is_connected and not self._is_only:
            for target in self._receiver.channels.values():
                if isinstance(target.wanted, Replay):
                    target.refuse_replay()
        if self._feed is None or self._is_ended:
            return
        for channel in self._receiver.channels:
            if channel not in self._tasks and self._needs(channel):
                work = self._work(channel, self._feed)
                self._tasks[channel] = asyncio.get_running_loop().create_task(work)

    # Inside: asking.

    def _lives_here(self, channel: int) -> bool:
        """Whether the messages of a channel should come over this connection."""
        return self._is_only or channel in self._silent

    def _needs(self, channel: int) -> bool:
        """Whether there is something to ask for, or to end."""
        wanted = self._receiver.channels[channel].wanted
        subscription = self._subscriptions.get(channel)
        if subscription is None:
            return wanted is not None or self._lives_here(channel)
        if isinstance(wanted, Snapshot):
            return not subscription.snapshot_is_open
        return isinstance(wanted, Replay) or not self._lives_here(channel)

    async def _work(self, channel: int, feed: FeedClient) -> None:
        """Ask for one thing after another, as long as there is something to ask for."""
        failures, target = 0, self._receiver.channels[channel]
        try:
            while self._needs(channel) and not self._is_ended:
                await self._connected.wait()
                failures += 1
                try:
                    await self._ask(channel, feed)
                    if not isinstance(target.wanted, Snapshot):
                        failures = 0  # Else the snapshot was too old: the feed is behind.
                except ClientError as error:
                    self.error = error
                    if failures >= REPLAY_TRIES_MAX or not _is_behind(error):
                        target.refuse_replay()
                if self._needs(channel):
                    await asyncio.sleep(_pause_s(failures))
        finally:
            del self._tasks[channel]

    async def _ask(self, channel: int, feed: FeedClient) -> None:
        """Ask for what is wanted now, and wait for it; a subscription is only begun or ended."""
        if feed.state is not None and self._is_strange(channel, feed.state.epoch):
            raise EpochChangedError(feed.state.epoch)
        wanted = self._receiver.channels[channel].wanted
        subscription = self._subscriptions.get(channel)
        is_whole = subscription is not None or not self._lives_here(channel)
        if isinstance(wanted, Replay) and is_whole:
            take = self._taker(channel)
            await feed.replay(channel, wanted.from_number, wanted.count, on_packet=take)
            return
        if subscription is not None:
            del self._subscriptions[channel]
            subscription.close()
        if self._lives_here(channel):
            await self._subscribe(channel, feed, isinstance(wanted, Snapshot))
        elif isinstance(wanted, Snapshot):
            await feed.snapshot(channel, on_packet=self._taker(channel))

    async def _subscribe(self, channel: int, feed: FeedClient, by_snapshot: bool) -> None:
        target = self._receiver.channels[channel]
        is_new = feed.state is not None and feed.state.epoch != self._receiver.epoch
        by_snapshot = by_snapshot or is_new or not target.is_heard
        start = SubscriptionStart.SNAPSHOT if by_snapshot else SubscriptionStart.NUMBER
        source = self._next_source()

        def notice(said: Subscribed | Skipped | RequestEnd) -> None:
            nonlocal source
            source = self._next_source()
            now_ns = self._clock.monotonic_ns()
            if isinstance(said, Subscribed):
                self._check_resumed(channel, said)
                if self._lives_here(channel):
                    self._receiver.begin(said.epoch, now_ns)
            elif isinstance(said, Skipped):
                target.skip(said.next_number, now_ns)

        def end(reason: ClientError | None) -> None:
            self.error = reason or self.error
            self._subscriptions.pop(channel, None)
            self._after()

        subscription = await feed.subscribe(
            channel,
            start=start,
            from_number=0 if by_snapshot else max(1, target.next_number - 1),
            on_packet=lambda packet: self._take(channel, packet, source),
            on_notice=notice,
            on_end=end,
        )
        if subscription.is_open:
            self._subscriptions[channel] = subscription

    def _check_resumed(self, channel: int, said: Subscribed) -> None:
        """End a subscription that has gone on over a lost connection: ours begins with the last
        message that we know, which must be the same."""
        subscription = self._subscriptions.get(channel)
        if (
            subscription is not None
            and not subscription.snapshot_is_open
            and said.epoch == self._receiver.epoch
        ):
            del self._subscriptions[channel]
            subscription.close()

    # Inside: taking.

    def _is_strange(self, channel: int, epoch: int) -> bool:
        """Whether the feed is at another epoch than the lines, which say what is true."""
        if self._lives_here(channel):
            return False
        return self._receiver.epoch not in (NO_EPOCH, epoch)

    def _next_source(self) -> int:
        self._source += 1
        return self._source

    def _taker(self, channel: int) -> Callable[[bytes], None]:
        source = self._next_source()
        return lambda packet: self._take(channel, packet, source)

    def _take(self, channel: int, packet: bytes, source: int) -> None:
        """Take a packet. A heartbeat tells only what was sent: the feed may be behind the lines."""
        if self._is_strange(channel, int.from_bytes(packet[_EPOCH], "little")):
            return
        receiver, now_ns = self._receiver, self._clock.monotonic_ns()
        target = receiver.channels[channel]
        before = target.next_number
        self.state.packet_count += 1
        self.state.heard_ns[channel] = now_ns
        if packet[_KIND_OFFSET] == SNAPSHOT:
            receiver.receive_snapshot(channel, packet, now_ns, source)
        elif (
            packet[_KIND_OFFSET] != HEARTBEAT or int.from_bytes(packet[_NUMBER], "little") >= before
        ):
            receiver.receive(channel, packet, now_ns)
        if not self._is_told:  # The first one of this turn.
            self._is_told = True
            is_new = target.next_number > before
            self.state.sample(packet, target.last_time_ns if is_new else 0, self._clock)
            asyncio.get_running_loop().call_soon(self._tell)

    def _tell(self) -> None:
        self._is_told = False
        self._after()

    def _on_state(self, change: StateChange) -> None:
        if change.state is ClientState.READY:
            self._connected.set()
            return
        self._connected.clear()
        self.error = change.reason or self.error
        self._is_ended = change.state is ClientState.CLOSED
        self._after()

    def _on_feed_state(self, state: FeedState) -> None:
        """Learn how far the channels are, before any line says so.

        A feed that is behind us and later than us tells another story than the one that we know.
        """
        receiver, now_ns = self._receiver, self._clock.monotonic_ns()
        if receiver.epoch not in (NO_EPOCH, state.epoch):
            return
        for channel, next_number in state.channels:
            target = receiver.channels.get(channel)
            if target is None:
                continue
            if next_number < target.next_number and state.time_ns > target.last_time_ns > 0:
                header = Header(channel, state.epoch, next_number, 0, next_number)
                target.set_back(header, state.time_ns, now_ns)
            elif next_number > target.next_number and not self._is_only:
                packet = Packet(HEARTBEAT, channel, state.epoch, next_number, 0, [])
                receiver.receive(channel, encode_packet(packet), now_ns)
        self._after()


def _pause_s(failures: int) -> float:
    """How long to wait after so many failures in a row."""
    return ASK_AGAIN_S * min(failures + 1, FAILURES_MAX)


def _is_behind(error: ClientError) -> bool:
    """Whether the feed has not read yet what it was asked for."""
    if isinstance(error, FeedRejectError):
        return error.code == RejectCode.NUMBER_TOO_HIGH
    return isinstance(error, ReplayIncompleteError | EpochChangedError)
