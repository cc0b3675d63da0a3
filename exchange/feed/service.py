"""The process of a feed server: signals, sockets, folders, and the lines on stdout.

Everything else of its life is in `exchange.feed.run`.
"""

import asyncio
import gc
import platform
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Final

import uvloop
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from exchange.clock import SystemClock
from exchange.config import ConfigError, FeedConfig
from exchange.feed.limits import BACKLOG, CONNECTIONS_MAX, DESCRIPTORS_RESERVED, REFUSALS_MAX
from exchange.feed.metrics import FeedMetrics, start_metrics
from exchange.feed.run import REFUSALS, Feed, Opened, end_of, run_feed
from exchange.feed.surroundings import OtherFeed, Surroundings
from exchange.logs import Log
from exchange.multicast import SNAPSHOT_GROUPS, open_lines
from exchange.position import ConnectPosition, connect_position
from exchange.process import notify, raise_open_files, say
from journal import FolderStorage

__all__ = ["find_surroundings", "serve"]

EVENTS_FOLDER: Final = "events"
POSITION_NAME: Final = "position"
FEED_FOLDER: Final = "feed"
"""Inside the data folder: what the venue writes, and what is ours."""

STOPPED: Final = 0
CONFIGURATION: Final = 64


def serve(config: FeedConfig, key: Ed25519PrivateKey | None = None) -> int:
    """Run a feed server until it is told to stop or fails; the exit code of the process. `key` is
    that for the feed upstream, if there is one."""
    log = Log()
    if not __debug__:
        log.error("refused", reason="assertions are off (python -O); the feed needs them")
        return CONFIGURATION
    try:
        return uvloop.run(_serve(config, key, log))
    except REFUSALS as error:
        code, reason = end_of(error)
    log.error("stopped", code=code, reason=reason)
    return code


async def _serve(config: FeedConfig, key: Ed25519PrivateKey | None, log: Log) -> int:
    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[None] = loop.create_future()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _finish, stopped)
    feed = Feed(find_surroundings(config, key, log), loop)
    if await run_feed(feed, _Sockets(config), stopped):
        market = feed.streams.market
        say(f"exchange feed stopped sequence={market.sequence} epoch={market.epoch}")
    return STOPPED


def _finish(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def find_surroundings(config: FeedConfig, key: Ed25519PrivateKey | None, log: Log) -> Surroundings:
    """Those of a real feed server, for the running loop. Raises ConfigError, OSError."""
    loop, data, upstream = asyncio.get_running_loop(), config.venue.data, config.feed.upstream
    if upstream is None and not data.is_dir():
        raise ConfigError(f"{data} is missing; `exchange init` makes a new venue")
    origin: ConnectPosition | OtherFeed = connect_position(data / POSITION_NAME)
    if upstream is not None:
        assert key is not None, "who follows has a key"
        origin = OtherFeed(upstream.host, upstream.port, key, FolderStorage(data))
    files = raise_open_files(CONNECTIONS_MAX + REFUSALS_MAX + DESCRIPTORS_RESERVED)
    connections_max = files - REFUSALS_MAX - DESCRIPTORS_RESERVED
    if connections_max < 1:
        raise ConfigError(f"{files} open files are too few; raise the limit (ulimit -n)")
    rate = config.feed.snapshot_rate
    open_senders = partial(open_lines, config.market_data, loop, first_group=SNAPSHOT_GROUPS)
    return Surroundings(
        clock=SystemClock(),
        log=log,
        origin=origin,
        events=FolderStorage(data / EVENTS_FOLDER, is_read_only=upstream is None),
        saved=FolderStorage(data / FEED_FOLDER),
        open_senders=open_senders if rate else dict,
        snapshot_rate=rate,
        connections_max=connections_max,
    )


class _Sockets:
    """The doors of a real feed server."""

    def __init__(self, config: FeedConfig) -> None:
        self._settings = config.feed
        self._stack = ExitStack()
        self._server: asyncio.Server | None = None

    async def open(self, opened: Opened) -> None:
        settings, doors = self._settings, self._stack
        metrics = FeedMetrics(*opened)
        with _listening(f"{settings.metrics_host}:{settings.metrics_port}"):
            await start_metrics(metrics, settings.metrics_host, settings.metrics_port)
            doors.callback(metrics.close)
        with _listening(f"{settings.host}:{settings.port}"):
            self._server = await asyncio.get_running_loop().create_server(
                opened.server.accept, settings.host, settings.port, backlog=BACKLOG
            )
            doors.callback(self._server.close)
        _say_ready(opened.feed, self._server, metrics.address)

    def shut(self) -> None:
        notify("STOPPING=1")
        if self._server is not None:
            self._server.close()

    def close(self) -> None:
        self._stack.close()


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
