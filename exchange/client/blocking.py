"""Market data without asyncio, for scripts and notebooks: the same clients on a loop of their own.

The loop runs in a thread of its own, so it works beside a loop that is running, as in a notebook,
and books stay current while the script does something else. What comes is handed over through a
bounded queue. Books belong to the loop's thread: `book` gives a picture of one, `read` runs any
function there.

    with BlockingConsumer("239.255.66.1", 9100) as market:
        for event in market.events():
            print(event, market.book("RAIN-NYC").best_bid)
"""

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, NamedTuple, Self, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from exchange.client.consumer import Consumer
from exchange.client.drop_copy import CopiedReport, DropCopyPosition
from exchange.client.errors import ClientError, EventsLostError, NotConnectedError
from exchange.client.feed_client import FeedClient, connect_feed
from exchange.client.limits import CLOSE_WAIT_S, EVENTS_MAX
from exchange.client.subscription import FeedMarketData
from protocol.books import Book, LastTrade, Level
from protocol.codes import DropCopyScope, SubscriptionForm, SubscriptionStart
from protocol.feed import FeedState
from protocol.market_data import Candle, MarketDataMessage, Trade

__all__ = ["BlockingConsumer", "BlockingDropCopy", "BlockingFeed", "BookPicture"]

T = TypeVar("T")


class LoopThread:
    """An event loop that runs in a thread, until `stop`."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._lock = threading.Lock()
        self._is_stopped = False
        """Nothing is given to the loop any more; what was given before ends with it."""
        # A script that ends without closing is not to hang.
        self._thread = threading.Thread(target=self._run, name="brier-client", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T], timeout_s: float | None = None) -> T:
        """Run a coroutine there and wait for its result.

        Raises what it raises, TimeoutError when it has been canceled for taking too long,
        NotConnectedError when the loop has ended or ends meanwhile.
        """
        if threading.current_thread() is self._thread:
            work.close()
            raise RuntimeError("what runs in the client's thread would wait for itself")
        with self._lock:
            if self._is_stopped:
                work.close()
                raise NotConnectedError("it is closed")
            future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result(timeout_s)
        except BaseException as error:
            future.cancel()
            if isinstance(error, CancelledError) and self._is_stopped:
                raise NotConnectedError("it was closed meanwhile") from None
            raise

    def call(self, function: Callable[[], T]) -> T:
        """Call a function there and wait for its result."""

        async def work() -> T:
            return function()

        return self.run(work())

    def stop(self) -> None:
        """End the loop and its thread; nothing happens when they have ended."""
        with self._lock:
            if not self._is_stopped:
                self._is_stopped = True
                self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(CLOSE_WAIT_S)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            with self._lock:
                self._is_stopped = True
            self.loop.run_until_complete(self._cancel_rest())
            self.loop.close()

    async def _cancel_rest(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class HandOver(Generic[T]):
    """A bounded queue from the loop's thread to another one. An error is raised in its place."""

    def __init__(self, size: int) -> None:
        self._items: deque[T | ClientError] = deque()
        self._size = size
        self._changed = threading.Condition()
        self._is_ended = False
        self._resume: Callable[[], None] | None = None

    @property
    def is_full(self) -> bool:
        return len(self._items) >= self._size

    def put(self, item: T | ClientError) -> None:
        with self._changed:
            self._items.append(item)
            self._changed.notify()

    def lose(self) -> None:
        """Say, behind what is queued, that one more event was left out."""
        with self._changed:
            last = self._items[-1] if self._items else None
            if isinstance(last, EventsLostError):
                self._items[-1] = EventsLostError(last.count + 1)
            else:
                self._items.append(EventsLostError(1))
            self._changed.notify()

    def end(self) -> None:
        with self._changed:
            self._is_ended = True
            self._resume = None
            self._changed.notify_all()

    def when_room(self, resume: Callable[[], None]) -> None:
        """Call this once when no more than half of the queue is left, in whatever thread."""
        with self._changed:
            self._resume = resume
            self._resume_if_room()

    def take(self, timeout_s: float | None) -> T:
        """Wait for the next item. Raises an error in its place; StopIteration: no more, or late."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._is_ended, timeout_s)
            if not self._items:
                raise StopIteration
            item = self._items.popleft()
            self._resume_if_room()
        if isinstance(item, ClientError):
            raise item
        return item

    def _resume_if_room(self) -> None:
        resume = self._resume
        if resume is not None and len(self._items) <= self._size // 2:
            self._resume = None
            resume()


class BlockingIterator(Generic[T]):
    """What comes, one after another; it ends when it is closed, or nothing came for too long."""

    def __init__(
        self, hand_over: HandOver[T], close: Callable[[], None], timeout_s: float | None
    ) -> None:
        self._hand_over = hand_over
        self._close = close
        self._timeout_s = timeout_s

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        return self._hand_over.take(self._timeout_s)

    def close(self) -> None:
        """Ask for no more; what is queued still comes."""
        self._close()


class BookPicture(NamedTuple):
    """A book at a moment. When it is stale nothing is shown that may be wrong."""

    symbol: str
    phase: int | None
    is_stale: bool
    bids: list[Level]
    asks: list[Level]
    last_trade: Trade | LastTrade | None

    @property
    def best_bid(self) -> Level | None:
        return self.bids[0] if self.bids else None

    @property
    def best_ask(self) -> Level | None:
        return self.asks[0] if self.asks else None


class BlockingConsumer:
    """A `Consumer`, with the same arguments but callbacks; a context manager."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._thread = LoopThread()
        self._events: HandOver[MarketDataMessage] = HandOver(EVENTS_MAX)
        self._has_reader = False
        try:
            self._consumer = Consumer(*arguments, **options, on_event=self._take)
            self._thread.run(self._consumer.__aenter__())
        except BaseException:
            self._thread.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_class: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening; iterators end behind what is queued."""
        with contextlib.suppress(NotConnectedError):
            self._thread.run(self._consumer.__aexit__(None, None, None))
        self._thread.stop()
        self._events.end()

    def events(self, timeout_s: float | None = None) -> Iterator[MarketDataMessage]:
        """Every public message from the first call on; it ends when none came for `timeout_s`.

        When the script is so slow that messages had to be left out, EventsLostError is raised once
        in their place: iterate again and go on behind them. The books have all of them.
        """
        self._has_reader = True
        return BlockingIterator(self._events, self.close, timeout_s)

    def book(self, symbol: str, depth: int = 10) -> BookPicture:
        """The best levels of an instrument as they are now. KeyError: none has this name."""
        return self.read(lambda consumer: _picture(consumer.book(symbol), depth))

    def read(self, function: Callable[[Consumer], T]) -> T:
        """Call a function with the consumer, in its thread, and return what it returns.

        It uses the consumer that it is given: methods of this class would wait for themselves
        there, and raise RuntimeError.
        """
        return self._thread.call(lambda: function(self._consumer))

    def wait_for(self, next_number: int, channel: int = 1, timeout_s: float | None = None) -> None:
        """Wait until everything below a number has been applied. Raises TimeoutError."""
        self._thread.run(self._consumer.wait_for(next_number, channel), timeout_s)

    def _take(self, message: MarketDataMessage) -> None:
        if not self._has_reader:
            return
        if self._events.is_full:
            self._events.lose()
        else:
            self._events.put(message)


class BlockingDropCopy(BlockingIterator[CopiedReport]):
    """Reports of a drop copy; `position` is behind the last that the iteration has given."""

    def __init__(
        self,
        hand_over: HandOver[CopiedReport],
        close: Callable[[], None],
        timeout_s: float | None,
        position: DropCopyPosition,
    ) -> None:
        super().__init__(hand_over, close, timeout_s)
        self.position = position

    def __next__(self) -> CopiedReport:
        report = super().__next__()
        self.position = DropCopyPosition(report.sequence, report.index + 1)
        return report


class BlockingFeed:
    """A `FeedClient` that is connected; a context manager. Its methods wait for the answer."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        key: Ed25519PrivateKey | Path | str | bytes,
        session: str = "feed",
    ) -> None:
        self._thread = LoopThread()
        self._pumps: set[asyncio.Task[None]] = set()
        try:
            self._feed: FeedClient = self._thread.run(
                connect_feed(host, port, key=key, session=session)
            )
        except BaseException:
            self._thread.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_class: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Log out; iterators end behind what is queued."""
        with contextlib.suppress(NotConnectedError):
            self._thread.run(self._feed.close())
        self._thread.stop()

    @property
    def state(self) -> FeedState | None:
        """What the feed has said last of where it is."""
        return self._feed.state

    def subscribe(
        self,
        channel: int,
        *,
        form: SubscriptionForm = SubscriptionForm.ORDERS,
        start: SubscriptionStart = SubscriptionStart.SNAPSHOT,
        timeout_s: float | None = None,
        **options: Any,
    ) -> BlockingIterator[FeedMarketData]:
        """As `FeedClient.subscribe`, without callbacks: iterate over the messages.

        The iteration ends when nothing came for `timeout_s`. A script that is slow holds up
        nobody: the socket is not read meanwhile.
        """
        subscription = self._thread.run(
            self._feed.subscribe(channel, form=form, start=start, **options)
        )
        hand_over: HandOver[FeedMarketData] = HandOver(EVENTS_MAX)
        self._pump(subscription, hand_over)
        return BlockingIterator(hand_over, self._closer(subscription.close), timeout_s)

    def drop_copy(
        self,
        *,
        scope: DropCopyScope = DropCopyScope.PARTICIPANT,
        accounts: Sequence[int] = (),
        position: DropCopyPosition | None = None,
        timeout_s: float | None = None,
    ) -> BlockingDropCopy:
        """As `FeedClient.drop_copy`: iterate over the reports."""
        copy = self._thread.run(
            self._feed.drop_copy(scope=scope, accounts=accounts, position=position)
        )
        begin = copy.position
        hand_over: HandOver[CopiedReport] = HandOver(EVENTS_MAX)
        self._pump(copy, hand_over)
        return BlockingDropCopy(hand_over, self._closer(copy.close), timeout_s, begin)

    def replay(self, channel: int, from_number: int, count: int) -> list[bytes]:
        """As `FeedClient.replay`."""
        return self._thread.run(self._feed.replay(channel, from_number, count))

    def candles(
        self, instrument_id: int, interval_s: int, *, from_time_ns: int = 0, count: int = 1_000
    ) -> list[Candle]:
        """As `FeedClient.candles`."""
        work = self._feed.candles(instrument_id, interval_s, from_time_ns=from_time_ns, count=count)
        return self._thread.run(work)

    def _pump(self, source: AsyncIterator[T], into: HandOver[T]) -> None:
        def start() -> None:
            task = asyncio.get_running_loop().create_task(_pump(source, into))
            self._pumps.add(task)
            task.add_done_callback(self._pumps.discard)

        self._thread.call(start)

    def _closer(self, close: Callable[[], None]) -> Callable[[], None]:
        def call() -> None:
            with contextlib.suppress(NotConnectedError):
                self._thread.call(close)

        return call


async def _pump(source: AsyncIterator[T], into: HandOver[T]) -> None:
    """Hand over what comes, and take no more while nobody takes it on the other side."""
    loop = asyncio.get_running_loop()
    room = asyncio.Event()

    def make_room() -> None:
        loop.call_soon_threadsafe(room.set)

    try:
        async for item in source:
            into.put(item)
            if into.is_full:
                room.clear()
                into.when_room(make_room)
                await room.wait()
    except ClientError as error:
        into.put(error)
    finally:
        into.end()


def _picture(book: Book, depth: int) -> BookPicture:
    is_stale = book.is_stale
    return BookPicture(
        book.symbol,
        book.phase,
        is_stale,
        [] if is_stale else book.bids(depth),
        [] if is_stale else book.asks(depth),
        book.last_trade,
    )
