"""Start, catch up, be ready, stop.

A start takes the saved market and reads what the log has after it, or all of it. Nobody is let in
before everything that was in the log is applied. While the server runs it saves the market now and
then, and once more when it stops; a kill costs time at the next start, nothing else.
"""

import asyncio
import gc
import platform
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import uvloop
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from exchange.clock import SystemClock
from exchange.config import ConfigError, FeedConfig
from exchange.feed.checkpoint import save
from exchange.feed.cycle import Cycle
from exchange.feed.follower import FollowerSource
from exchange.feed.history import History
from exchange.feed.limits import (
    BACKLOG,
    CHECKPOINT_NS,
    CHECKPOINT_SIZE,
    CONNECTIONS_MAX,
    DESCRIPTORS_RESERVED,
    DRAIN_WAIT_S,
    REFUSALS_MAX,
)
from exchange.feed.market import Market
from exchange.feed.metrics import FeedMetrics, start_metrics
from exchange.feed.saved import SavedMarket
from exchange.feed.server import FeedServer
from exchange.feed.source import FeedFailure, LocalSource, Source
from exchange.feed.streams import Streams
from exchange.logs import Log
from exchange.multicast import SNAPSHOT_GROUPS, open_lines
from exchange.process import notify, raise_open_files, say
from journal import EventRecord

__all__ = ["Feed", "serve"]

EVENTS_FOLDER: Final = "events"
POSITION_NAME: Final = "position"
FEED_FOLDER: Final = "feed"
"""Inside the data folder: what the venue writes, and what is ours."""

STOPPED: Final = 0
CONFIGURATION: Final = 64
ASSERTION: Final = 65
STORAGE_FAILED: Final = 74
"""Exit codes; those of damaged logs come with their failures."""


class Feed:
    """A feed server without the process around it: the log in, the market, its streams.

    `streams` is there once the epoch is known. Belongs to the loop's thread.
    """

    def __init__(
        self,
        config: FeedConfig,
        key: Ed25519PrivateKey | None,
        log: Log,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """`key` is that for the feed upstream, if there is one. Raises ConfigError, OSError."""
        data = config.venue.data
        if config.feed.upstream is None and not data.is_dir():
            raise ConfigError(f"{data} is missing; `exchange init` makes a new venue")
        data.mkdir(mode=0o700, exist_ok=True)
        self.log = log
        self.config = config
        self.ended: asyncio.Future[BaseException] = loop.create_future()
        """Done when something is wrong here that nobody outside can cause: the process ends."""
        self.saved_count = 0
        self.saved = SavedMarket(data / FEED_FOLDER)
        self._loop = loop
        self._clock = SystemClock()
        self._base_ns = self._clock.time_ns() - self._clock.monotonic_ns()
        self._market = self.saved.load(log)
        self._saving: asyncio.Future[None] | None = None
        self._saved_size = 0  # bytes of records when the market was saved last,
        self._saved_ns = self.now_ns()  # and when that was
        self.source = self._open_source(data, key)
        events = data / EVENTS_FOLDER
        self.history = History(self.source, events)
        self.streams: Streams

    def now_ns(self) -> int:
        """Time for frames and keepalives: UTC at the start, and never back from there."""
        return self._base_ns + self._clock.monotonic_ns()

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

    def _open_source(self, data: Path, key: Ed25519PrivateKey | None) -> Source:
        market = self._market
        sequence = market.sequence + 1 if market is not None else 1
        epoch = market.epoch if market is not None else 0
        last_header = market.last_header if market is not None else None
        upstream = self.config.feed.upstream
        if upstream is None:
            return LocalSource(
                data / EVENTS_FOLDER,
                data / POSITION_NAME,
                self.take,
                self.log,
                from_sequence=sequence,
                last_header=last_header,
                epoch=epoch,
            )
        assert key is not None, "who follows has a key"
        return FollowerSource(
            data,
            upstream.host,
            upstream.port,
            key,
            self.take,
            self.log,
            from_sequence=sequence,
            last_header=last_header,
            epoch=epoch,
        )


def serve(config: FeedConfig, key: Ed25519PrivateKey | None = None) -> int:
    """Run a feed server until it is told to stop or fails; the exit code of the process."""
    log = Log()
    if not __debug__:
        log.error("refused", reason="assertions are off (python -O); the feed needs them")
        return CONFIGURATION
    try:
        return uvloop.run(_serve(config, key, log))
    except (ConfigError, FeedFailure) as error:
        code, reason = int(error.exit_code), str(error)
    except AssertionError as error:
        code, reason = ASSERTION, f"assertion failed: {error}"
    except OSError as error:
        code, reason = STORAGE_FAILED, str(error)
    log.error("stopped", code=code, reason=reason)
    return code


async def _serve(config: FeedConfig, key: Ed25519PrivateKey | None, log: Log) -> int:
    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[None] = loop.create_future()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _finish, stopped)
    feed = Feed(config, key, log, loop)
    # From the first record on: what fails in a callback must not be served.
    loop.set_exception_handler(lambda _, context: _on_exception(feed, context))
    try:
        if not await _start(feed, stopped):
            return STOPPED
        await _run(feed, stopped)
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
    market = feed.streams.market
    say(f"exchange feed stopped sequence={market.sequence} epoch={market.epoch}")
    return STOPPED


def _finish(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


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


async def _run(feed: Feed, stopped: "asyncio.Future[None]") -> None:
    """Listen, wait for a signal or a failure, see the clients off. Raises what has failed."""
    loop = asyncio.get_running_loop()
    files = raise_open_files(CONNECTIONS_MAX + REFUSALS_MAX + DESCRIPTORS_RESERVED)
    connections_max = files - REFUSALS_MAX - DESCRIPTORS_RESERVED
    if connections_max < 1:
        raise ConfigError(f"{files} open files are too few; raise the limit (ulimit -n)")
    server = FeedServer(feed.streams, loop, feed.log, feed.fail, connections_max)
    with ExitStack() as doors:
        door = await _open_doors(feed, server, doors)
        waited = (stopped, feed.ended, feed.source.ended)
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        notify("STOPPING=1")
        door.close()
        server.say_goodbye()
        await server.wait_empty(DRAIN_WAIT_S)
    if feed.ended.done():
        raise feed.ended.result()
    if feed.source.ended.done():
        raise feed.source.ended.result()


async def _open_doors(feed: Feed, server: FeedServer, doors: ExitStack) -> asyncio.Server:
    """Send snapshots, listen for scrapes and clients, and say that the feed is ready."""
    loop, settings = server.loop, feed.config.feed
    server.start()
    doors.callback(server.close)
    cycle = _start_cycle(feed, loop)
    if cycle is not None:
        doors.callback(cycle.close)
    with _listening(f"{settings.metrics_host}:{settings.metrics_port}"):
        metrics = await start_metrics(
            FeedMetrics(feed, server, cycle), settings.metrics_host, settings.metrics_port
        )
        doors.callback(metrics.close)
    with _listening(f"{settings.host}:{settings.port}"):
        door = await loop.create_server(
            server.accept, settings.host, settings.port, backlog=BACKLOG
        )
        doors.callback(door.close)
    _say_ready(feed, door, metrics.address)
    return door


def _start_cycle(feed: Feed, loop: asyncio.AbstractEventLoop) -> Cycle | None:
    rate = feed.config.feed.snapshot_rate
    if not rate:
        return None
    senders = open_lines(feed.config.market_data, loop, first_group=SNAPSHOT_GROUPS)
    streams = feed.streams
    cycle = Cycle(streams.market, streams.snapshots, senders, rate, feed.now_ns)
    cycle.start(loop, feed.log)
    return cycle


@contextmanager
def _listening(where: str) -> Iterator[None]:
    """Turn the OSError of an address that cannot be had into the line that says so."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"cannot listen on {where}: {error.strerror}") from None


def _say_ready(feed: Feed, door: asyncio.Server, metrics: tuple[str, int]) -> None:
    """One line on stdout, for people and for whoever started us."""
    # What start-up made stays: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    market = feed.streams.market
    venue = market.directory.venue
    host, port = door.sockets[0].getsockname()[:2]
    say(
        f"exchange feed ready venue={venue.venue if venue is not None else 'unknown'} "
        f"feed={host}:{port} metrics={metrics[0]}:{metrics[1]} epoch={market.epoch} "
        f"sequence={market.sequence} python={platform.python_version()}"
    )
    notify("READY=1")


def _on_exception(feed: Feed, context: dict[str, object]) -> None:
    """What nobody caught: the world's errors are logged, ours end the process."""
    error = context.get("exception")
    if isinstance(error, OSError):
        feed.log.error("os_error", what=str(error), where=str(context.get("message")))
        return
    feed.fail(AssertionError(f"{context.get('message')}: {error!r}"))
