"""The life of a feed server: catch up, open the doors, stop. A simulator runs the same code.

A start takes the saved market and reads what the log has after it, or all of it. Nobody is let in
before everything that was in the log is applied. While the server runs it saves the market now and
then, and once more when it stops; a kill costs time at the next start, nothing else.
"""

import asyncio
from contextlib import closing
from typing import Final, NamedTuple, Protocol

from exchange.config import ConfigError
from exchange.feed.checkpoint import save
from exchange.feed.cycle import Cycle
from exchange.feed.follower import FollowerSource
from exchange.feed.history import History
from exchange.feed.limits import CHECKPOINT_NS, CHECKPOINT_SIZE, DRAIN_WAIT_S
from exchange.feed.market import Market
from exchange.feed.saved import SavedMarket
from exchange.feed.server import FeedServer
from exchange.feed.source import (
    ASSERTION,
    STORAGE_FAILED,
    FeedFailure,
    LocalSource,
    Source,
)
from exchange.feed.streams import Streams
from exchange.feed.surroundings import OtherFeed, Surroundings
from journal import EventRecord, JournalError

__all__ = ["REFUSALS", "Doors", "Feed", "Opened", "end_of", "run_feed"]

REFUSALS: Final = (ConfigError, FeedFailure, JournalError, AssertionError, OSError)
"""What `Feed` and `run_feed` raise."""


def end_of(error: BaseException) -> tuple[int, str]:
    """How the process ends after one of those: its exit code, and why."""
    if isinstance(error, (ConfigError, FeedFailure, JournalError)):
        return int(error.exit_code), str(error)
    if isinstance(error, OSError):
        return STORAGE_FAILED, str(error)
    return ASSERTION, f"assertion failed: {error}"


class Feed:
    """A feed server without the process around it: the log in, the market, its streams.

    `streams` is there once the epoch is known. Belongs to the loop's thread.
    """

    def __init__(self, surroundings: Surroundings, loop: asyncio.AbstractEventLoop) -> None:
        """Raises JournalHeld, OSError."""
        self.surroundings = surroundings
        self.log = surroundings.log
        self.ended: asyncio.Future[BaseException] = loop.create_future()
        """Done when something is wrong here that nobody outside can cause: the process ends."""
        self.saved_count = 0
        self.saved = SavedMarket(surroundings.saved)
        self._loop = loop
        self._clock = surroundings.clock
        self._base_ns = self._clock.time_ns() - self._clock.monotonic_ns()
        self._market = self.saved.load(self.log)
        self._saving: asyncio.Future[None] | None = None
        self._was_current = False
        self._saved_size = 0  # bytes of records when the market was saved last,
        self._saved_ns = self.now_ns()  # and when that was
        self.source = self._make_source()
        self.history = History(self.source, surroundings)
        self.streams: Streams

    def now_ns(self) -> int:
        """Time for frames and keepalives: UTC at the start, and never back from there."""
        return self._base_ns + self._clock.monotonic_ns()

    def is_current(self) -> bool:
        """Whether it has read, at one time since its start, all that its origin had. Before that it
        may know less than it did: the log is not synced, and may have been cut by a power loss."""
        self._was_current = self._was_current or (self.source.is_connected and self.lag == 0)
        return self._was_current

    @property
    def lag(self) -> int:
        """Commands that may be read and are not applied."""
        return self.source.lag + self.source.sequence - self.streams.market.sequence

    async def start(self) -> None:
        """Apply everything that is in the log. Raises FeedFailure."""
        self.source.start()
        await self.source.opened()
        if self._market is None:
            self._market = Market(self.source.epoch)
        self._begin(self._market)
        await self.source.caught_up()
        self.is_current()

    def take(self, record: EventRecord) -> None:
        """The next record of the log."""
        if self._market is None:
            self._market = Market(self.source.epoch)
        self._begin(self._market)
        self.streams.take(record)
        is_much = self.streams.record_size - self._saved_size >= CHECKPOINT_SIZE
        if is_much and self.now_ns() - self._saved_ns >= CHECKPOINT_NS:
            self.save()

    def save(self) -> None:
        """Save the market, unless that is under way."""
        if self._saving is None:
            self._saved_size = self.streams.record_size
            self._saved_ns = self.now_ns()
            content = save(self.streams.market)
            self._saving = self._loop.run_in_executor(None, self.saved.write, content)
            self._saving.add_done_callback(self._on_saved)

    def fail(self, error: BaseException) -> None:
        """End it: nothing of what it has may be saved or served any more."""
        if not self.ended.done():
            is_known = isinstance(error, AssertionError | OSError)
            known = error if is_known else AssertionError(f"{type(error).__name__}: {error}")
            self.ended.set_result(known)

    async def stop(self) -> None:
        """Save the market; nothing more is applied. `close` follows."""
        self.source.close()
        if self._saving is not None:
            await asyncio.wait((self._saving,))
        self.save()
        assert self._saving is not None, "nothing else was under way"
        await asyncio.wait((self._saving,))

    def close(self) -> None:
        """Let go of everything, once."""
        self.source.close()
        self.history.close()
        if hasattr(self, "streams"):
            self.streams.close()
        self.saved.close()

    def _begin(self, market: Market) -> None:
        if not hasattr(self, "streams"):
            self.streams = Streams(market, self.history, self.now_ns, self._loop)
            self.streams.start()

    def _on_saved(self, saving: "asyncio.Future[None]") -> None:
        self._saving = None
        error = saving.exception()
        if error is None:
            self.saved_count += 1
        else:
            # The next start reads more of the log; that is all.
            self.log.error("checkpoint_failed", reason=str(error))

    def _make_source(self) -> Source:
        market = self._market
        is_copy = isinstance(self.surroundings.origin, OtherFeed)
        make = FollowerSource if is_copy else LocalSource
        return make(
            self.surroundings,
            self.take,
            from_sequence=market.sequence + 1 if market is not None else 1,
            last_header=market.last_header if market is not None else None,
            epoch=market.epoch if market is not None else 0,
        )


class Opened(NamedTuple):
    """A feed server that has caught up, for whoever lets clients in and looks at its figures."""

    feed: Feed
    server: FeedServer
    cycle: Cycle | None


class Doors(Protocol):
    """Where a feed server listens: for scrapes, and for clients."""

    async def open(self, opened: Opened) -> None:
        """Let them in, and say that the feed is ready. Raises ConfigError."""

    def shut(self) -> None:
        """The feed stops: no new clients."""

    def close(self) -> None:
        """Let go of everything, opened or not."""


async def run_feed(feed: Feed, doors: Doors, stopped: "asyncio.Future[None]") -> bool:
    """Catch up, open, wait until it is to stop or has failed, stop; False: it was told to stop
    before it was open. Raises one of REFUSALS. Nothing is held after it."""
    loop = asyncio.get_running_loop()
    # From the first record on: what fails in a callback must not be served.
    loop.set_exception_handler(lambda _, context: _on_exception(feed, context))
    try:
        if not await _start(feed, stopped):
            return False
        await _serve(feed, doors, stopped)
        await feed.stop()
    except AssertionError:
        feed.saved.remove()  # The market may be what does not fit: the next start makes it anew.
        raise
    except FeedFailure as failure:
        if failure.is_other_log or failure.exit_code == ASSERTION:
            feed.saved.remove()
        raise
    finally:
        feed.close()
    return True


async def _start(feed: Feed, stopped: "asyncio.Future[None]") -> bool:
    """Catch up with the log; False when told to stop before. Raises what has failed."""
    starting = asyncio.ensure_future(feed.start())
    waited = (starting, stopped, feed.ended)
    await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
    if feed.ended.done():
        starting.cancel()
        raise feed.ended.result()
    if starting.done():
        starting.result()
        # The last records may still wait for the end of the turn.
        feed.streams.flush()
        assert feed.lag == feed.source.lag, "what was handed on is applied"
        return True
    starting.cancel()
    return False


async def _serve(feed: Feed, doors: Doors, stopped: "asyncio.Future[None]") -> None:
    """Open, wait for a stop or a failure, see the clients off. Raises what has failed."""
    loop = asyncio.get_running_loop()
    server = FeedServer(feed.streams, loop, feed.surroundings, feed.fail, feed.is_current)
    cycle = _make_cycle(feed)
    with closing(doors):
        server.start()
        if cycle is not None:
            cycle.start(loop, feed.log)
        try:
            await doors.open(Opened(feed, server, cycle))
            waited = (stopped, feed.ended, feed.source.ended)
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            doors.shut()
            server.say_goodbye()
            await server.wait_empty(DRAIN_WAIT_S)
        finally:
            server.close()
            if cycle is not None:
                cycle.close()
    if feed.ended.done():
        raise feed.ended.result()
    if feed.source.ended.done():
        raise feed.source.ended.result()


def _make_cycle(feed: Feed) -> Cycle | None:
    senders = feed.surroundings.open_senders()
    if not senders:
        return None
    streams, rate = feed.streams, feed.surroundings.snapshot_rate
    return Cycle(streams.market, streams.snapshots, senders, rate, feed.now_ns)


def _on_exception(feed: Feed, context: dict[str, object]) -> None:
    """What nobody caught: the world's errors are logged, ours end the process."""
    error = context.get("exception")
    if isinstance(error, OSError):
        feed.log.error("os_error", what=str(error), where=str(context.get("message")))
        return
    feed.fail(AssertionError(f"{context.get('message')}: {error!r}"))
