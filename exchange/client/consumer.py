"""A consumer of market data: it listens on one or two multicast lines, heals what they lose, and
keeps the books, which are in `receiver`.

Both lines carry the same packets; whichever brings a message first counts. What both have lost is
asked of a feed over TCP (`Feed`), as a replay or a snapshot; without a feed the cycle of snapshots
on the lines is heard until every book is known again. Until then books raise StaleBookError. When
the lines say nothing at all, messages come from the feed.

    async with Consumer("239.255.66.1", 9100, line_b=Line("239.255.67.1", 9100)) as consumer:
        await consumer.wait_for(2)
        print(consumer.book("RAIN-YES").best_bid)

Callbacks are synchronous. What they raise goes to the event loop's exception handler.
"""

import asyncio
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Final, TypeVar

from exchange.client.callbacks import call
from exchange.client.channel import Channel
from exchange.client.errors import ClientError, NotConnectedError
from exchange.client.healer import Feed, Healer
from exchange.client.limits import SILENT_NS
from exchange.client.lines import Lag, Line, LineReader, LineState
from exchange.client.receiver import MarketDataReceiver
from exchange.client.recovery import Gap, Means, Recovery, Snapshot
from exchange.client.surroundings import SYSTEM, Surroundings
from protocol.books import Book
from protocol.market_data import (
    EventDefinition,
    InstrumentDefinition,
    MarketDataMessage,
    Trade,
)

__all__ = ["Consumer"]

T = TypeVar("T")

_NS_PER_S: Final = 1_000_000_000
_LOOK_S: Final = SILENT_NS / _NS_PER_S / 4
"""How often silence is looked for."""


class Consumer:
    """Market data of some channels of one venue; an asynchronous context manager.

    `group` and `port` are those of line A and channel 1, as the venue says when it starts;
    `interface` is the address of the network interface on which to listen. `line_b` is the second
    line, `feed` is where to ask for what both have lost. Without `snapshots` the cycle on the lines
    is not used. `over_tcp` makes a consumer without lines.

    `on_event` is called with every public message, after all of its command is in the books,
    `on_trade` with the trades among them, `on_gap` when messages are lost for good or make no
    sense, `on_recovered` when books are known again, `on_epoch` when everything starts again.
    `surroundings` is for simulators.
    """

    def __init__(
        self,
        group: str | None,
        port: int,
        *,
        interface: str = "127.0.0.1",
        line_b: Line | None = None,
        feed: Feed | None = None,
        snapshots: bool = True,
        channels: Iterable[int] = (1,),
        on_event: Callable[[MarketDataMessage], None] | None = None,
        on_trade: Callable[[Trade], None] | None = None,
        on_gap: Callable[[Gap], None] | None = None,
        on_recovered: Callable[[Recovery], None] | None = None,
        on_epoch: Callable[[int], None] | None = None,
        surroundings: Surroundings = SYSTEM,
    ) -> None:
        lines = {"a": None if group is None else Line(group, port, interface), "b": line_b}
        self._on_event = on_event
        self._on_trade = on_trade
        is_told = on_event is not None or on_trade is not None
        self._has_cycle = snapshots and group is not None
        self.receiver = MarketDataReceiver(
            channels,
            means=Means(feed is not None, feed is not None or self._has_cycle),
            on_message=self._tell if is_told else None,
            on_gap=None if on_gap is None else _guarded(on_gap),
            on_recovered=None if on_recovered is None else _guarded(on_recovered),
            on_epoch=None if on_epoch is None else _guarded(on_epoch),
        )
        self._clock = surroundings.clock
        self.lines: dict[str, LineState] = {}
        """What came on each line, "a" and "b", and from the feed, "tcp"."""
        self._readers: list[LineReader] = []
        for name, line in lines.items():
            if line is not None:
                state = self.lines[name] = LineState(name)
                reader = LineReader(state, line, self.receiver, surroundings, self._after)
                self._readers.append(reader)
        self._healer: Healer | None = None
        if feed is not None:
            is_only = group is None
            self._healer = Healer(feed, self.receiver, surroundings, self._after, is_only=is_only)
            self.lines["tcp"] = self._healer.state
        assert self.lines, "a consumer has a line or a feed"
        self._is_open = False
        self._timer: asyncio.TimerHandle | None = None
        self._due_ns = 0
        """What the timer waits for."""
        self._look_timer: asyncio.TimerHandle | None = None
        self._closing: asyncio.Task[None] | None = None
        self._waiters: list[tuple[Channel, int, asyncio.Future[None]]] = []

    @classmethod
    def over_tcp(
        cls,
        feed: Feed,
        *,
        channels: Iterable[int] = (1,),
        on_event: Callable[[MarketDataMessage], None] | None = None,
        on_trade: Callable[[Trade], None] | None = None,
        on_gap: Callable[[Gap], None] | None = None,
        on_recovered: Callable[[Recovery], None] | None = None,
        on_epoch: Callable[[int], None] | None = None,
        surroundings: Surroundings = SYSTEM,
    ) -> "Consumer":
        """A consumer that has everything from a feed: a snapshot, then the messages."""
        return cls(
            None,
            0,
            feed=feed,
            channels=channels,
            on_event=on_event,
            on_trade=on_trade,
            on_gap=on_gap,
            on_recovered=on_recovered,
            on_epoch=on_epoch,
            surroundings=surroundings,
        )

    async def __aenter__(self) -> "Consumer":
        self.open()
        return self

    async def __aexit__(
        self,
        error_class: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
        if self._closing is not None:
            await self._closing

    def open(self) -> None:
        """Join the groups and begin to listen, and to connect to the feed, which may be down.

        Raises OSError or KeyFileError; nothing is open then. A consumer is opened once.
        """
        assert not self._is_open, "the consumer is open"
        assert self._closing is None, "a consumer is opened once"
        self._is_open = True
        try:
            for reader in self._readers:
                reader.open(self.receiver.channels)
            if self._healer is not None:
                self._healer.open()
        except (OSError, ClientError):
            self.close()
            raise
        now_ns = self._clock.monotonic_ns()
        for reader in self._readers:
            reader.state.heard_ns = dict.fromkeys(self.receiver.channels, now_ns)
        self._look()

    def close(self) -> None:
        """Leave the groups, and the feed. The books stay as they are; who waits is told."""
        self._is_open = False
        for reader in self._readers:
            reader.close()
        for timer in (self._timer, self._look_timer):
            if timer is not None:
                timer.cancel()
        self._timer = self._look_timer = None
        if self._healer is not None and self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._healer.close())
        waiters, self._waiters = self._waiters, []
        for _, _, waiter in waiters:
            if not waiter.done():
                waiter.set_exception(NotConnectedError("the consumer was closed"))

    # What is known.

    @property
    def books(self) -> dict[int, Book]:
        """Every book by the number of its instrument, the stale ones too."""
        return self.receiver.market.books

    def book(self, symbol: str) -> Book:
        """The book of an instrument by its name. KeyError: no such instrument was listed."""
        return self.receiver.market.symbols[symbol]

    @property
    def instruments(self) -> dict[int, InstrumentDefinition]:
        """Every instrument that was listed, by its number."""
        return self.receiver.market.instruments

    @property
    def events(self) -> dict[int, EventDefinition]:
        """Every event that was listed, by its number."""
        return self.receiver.market.events

    @property
    def epoch(self) -> int:
        """The venue's epoch, 0 before its first packet."""
        return self.receiver.epoch

    @property
    def gaps(self) -> list[Gap]:
        """The first gaps, at most 1,000; `gap_count` counts on."""
        return self.receiver.gaps

    @property
    def gap_count(self) -> int:
        """How often messages were lost for good, or made no sense."""
        return self.receiver.gap_count

    @property
    def recovery_count(self) -> int:
        """How often a channel has found its place again."""
        return self.receiver.recovery_count

    @property
    def is_complete(self) -> bool:
        """Whether every channel was heard, and all books are known now."""
        return self.receiver.is_complete

    @property
    def lag(self) -> Lag:
        """How old what came in the last second was, on the line that is the faster one."""
        now_ns = self._clock.monotonic_ns()
        lags = [lag for state in self.lines.values() if (lag := state.lag(now_ns)).sample_count]
        return min(lags, key=lambda lag: lag.network_p50_ns, default=Lag())

    def lag_of(self, line: str) -> Lag:
        """The same of one line, see `lines`."""
        return self.lines[line].lag(self._clock.monotonic_ns())

    @property
    def feed_error(self) -> ClientError | None:
        """Why the feed could not be had or has refused something last; None: never."""
        return None if self._healer is None else self._healer.error

    @property
    def feed_is_connected(self) -> bool:
        """Whether the feed can be asked now."""
        return self._healer is not None and self._healer.is_connected

    def channel(self, channel: int) -> Channel:
        """The numbers and counts of one channel."""
        return self.receiver.channels[channel]

    @property
    def message_count(self) -> int:
        """Messages that were taken, over all channels and epochs."""
        return sum(channel.message_count for channel in self.receiver.channels.values())

    @property
    def packet_count(self) -> int:
        """Datagrams that were read, whatever was in them."""
        return self.receiver.packet_count

    @property
    def duplicate_count(self) -> int:
        """Packets of which every message was known."""
        return sum(channel.duplicate_count for channel in self.receiver.channels.values())

    @property
    def error_count(self) -> int:
        """Datagrams that were no packets; `receiver.last_error` says what the last one was."""
        return self.receiver.error_count

    @property
    def dropped_count(self) -> int:
        """Datagrams that the kernel dropped because this process was too slow, as last told."""
        return sum(state.dropped_count for state in self.lines.values())

    @property
    def receive_buffer_size(self) -> int:
        """Bytes that the kernel keeps for each channel and line, its own overhead included."""
        return max((reader.receive_buffer_size for reader in self._readers), default=0)

    def silent_ns(self, channel: int) -> int:
        """How long nothing was heard on a channel: far above 250 ms the venue or the way is down.

        Books are not stale then, only old. Before the first packet it is as long as can be.
        """
        return self._clock.monotonic_ns() - self.receiver.channels[channel].heard_ns

    def public_digest(self) -> str:
        """The digest of all books, equal to the venue's at the same numbers.

        Raises StaleBookError when the books are not complete.
        """
        return self.receiver.public_digest()

    async def wait_for(self, next_number: int, channel: int = 1) -> None:
        """Wait until a channel's next number is this one or a later one.

        Everything below it has been applied then, or is in a gap. NotConnectedError: closed.
        """
        target = self.receiver.channels[channel]
        if target.next_number >= next_number:
            return
        if not self._is_open:
            raise NotConnectedError("the consumer is not open")
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append((target, next_number, waiter))
        await waiter

    # Inside.

    def _tick(self) -> None:
        """Apply what waited; give up what is missing, but only when no socket holds it."""
        self._timer = None
        self.receiver.go_on(self._clock.monotonic_ns())
        emptied = [reader.drain() for reader in self._readers]
        if all(emptied):
            self.receiver.tick(self._clock.monotonic_ns())
        self._after()

    def _look(self) -> None:
        """Look for silence, now and then."""
        if self._healer is not None:
            self._look_timer = asyncio.get_running_loop().call_later(_LOOK_S, self._look)
            self._after()

    def _silent(self) -> list[int]:
        """Channels that were heard of, and of which no line has said anything for long."""
        since_ns = self._clock.monotonic_ns() - SILENT_NS
        return [
            channel
            for channel, target in self.receiver.channels.items()
            if target.is_heard
            and all(reader.state.heard_ns[channel] < since_ns for reader in self._readers)
        ]

    def _after(self) -> None:
        """After something came: wake who waits, ask for what is missing, set the timer."""
        if not self._is_open:
            return
        if self._waiters:
            waiting = []
            for channel, number, waiter in self._waiters:
                if channel.next_number < number:
                    waiting.append((channel, number, waiter))
                elif not waiter.done():
                    waiter.set_result(None)
            self._waiters = waiting
        if self._healer is not None:
            self._healer.look(self._silent() if self._readers else ())
        if self._has_cycle:
            for number, target in self.receiver.channels.items():
                is_wanted = isinstance(target.wanted, Snapshot)
                for reader in self._readers:
                    reader.hear_snapshots(number, is_wanted)
        due_ns = self.receiver.deadline_ns
        if due_ns and (self._timer is None or due_ns < self._due_ns):
            if self._timer is not None:
                self._timer.cancel()
            self._due_ns = due_ns
            wait_s = max(0, due_ns - self._clock.monotonic_ns()) / _NS_PER_S
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._tick)

    def _tell(self, message: MarketDataMessage) -> None:
        if self._on_event is not None:
            call(self._on_event, message)
        if self._on_trade is not None and isinstance(message, Trade):
            call(self._on_trade, message)


def _guarded(callback: Callable[[T], None]) -> Callable[[T], None]:
    return lambda argument: call(callback, argument)
