"""The process of a venue: signals, sockets, folders, and the lines on stdout.

Everything else of its life is in `exchange.node.run`.
"""

import asyncio
import gc
import platform
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec
import uvloop

from exchange.clock import SystemClock
from exchange.config import Config, ConfigError
from exchange.core.engine import BUILD
from exchange.logs import Log
from exchange.multicast import open_lines
from exchange.node.commit import AdaptiveCommitter
from exchange.node.failure import Exit, ServiceError
from exchange.node.limits import CONNECTIONS_MAX, DESCRIPTORS_RESERVED, REFUSALS_MAX
from exchange.node.metrics import start_metrics
from exchange.node.position import bind_position
from exchange.node.recovery import Surroundings
from exchange.node.run import REFUSALS, Expected, failure_of, make_venue, run_venue
from exchange.node.setup import (
    BARRED_FOLDER,
    COMMANDS_FOLDER,
    EVENTS_FOLDER,
    POSITION_NAME,
    SNAPSHOTS_FOLDER,
)
from exchange.node.venue import Venue
from exchange.process import notify, raise_open_files, say
from journal import FolderStorage

__all__ = ["serve"]

BACKLOG: Final = 256
"""Connections that the kernel keeps until the loop accepts them."""


def serve(config: Config) -> int:
    """Run a venue until it is told to stop or fails; returns the exit code of the process."""
    log = Log()
    if not __debug__:
        log.error("refused", reason="assertions are off (python -O); the venue needs them")
        return Exit.CONFIGURATION
    try:
        return uvloop.run(_serve(config, log))
    except REFUSALS as error:
        failure = failure_of(error)
    log.error("stopped", code=failure.exit_code, reason=failure.text)
    return failure.exit_code


async def _serve(config: Config, log: Log) -> int:
    loop = asyncio.get_running_loop()
    surroundings = _surroundings(config, log)
    expected = Expected(config.venue.name, msgspec.structs.asdict(config.limits))
    try:
        venue = make_venue(surroundings, expected, loop)
    except BaseException:
        for sender in surroundings.senders.values():
            sender.close()
        raise
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    failure = await run_venue(venue, _Sockets(config), stopped)
    if failure is None:
        engine = venue.sequencer.engine
        assert engine.sequence == venue.sequencer.durable_sequence, "a drained venue is durable"
        say(
            f"exchange stopped sequence={engine.sequence} digest={engine.digest()} "
            f"book_digest={engine.book_digest()} public_digest={engine.public_digest()}"
        )
        return Exit.STOPPED
    log.error("stopped", code=failure.exit_code, reason=failure.text)
    return failure.exit_code


class _Sockets:
    """The doors of a real venue."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._stack = ExitStack()
        self._server: asyncio.Server | None = None

    async def open(self, venue: Venue) -> None:
        loop = asyncio.get_running_loop()
        config, doors = self._config, self._stack
        path = config.venue.data / POSITION_NAME
        with _listening(str(path)):
            bound = bind_position(path)
            doors.callback(path.unlink, missing_ok=True)
            positions = await loop.create_unix_server(venue.positions.accept, sock=bound)
            doors.callback(positions.close)
        where = config.metrics
        with _listening(f"{where.host}:{where.port}"):
            metrics = await start_metrics(venue, where.host, where.port)
            doors.callback(metrics.close)
        entry = config.order_entry
        with _listening(f"{entry.host}:{entry.port}"):
            self._server = await loop.create_server(
                venue.order_entry.accept, entry.host, entry.port, backlog=BACKLOG
            )
            doors.callback(self._server.close)
        _say_ready(venue, config, self._server, metrics.address)

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
        text = f"cannot listen on {where}: {error.strerror}"
        raise ServiceError(Exit.CONFIGURATION, text) from None


def _say_ready(
    venue: Venue, config: Config, server: asyncio.Server, metrics: tuple[str, int]
) -> None:
    """One line on stdout, for people and for whoever started us."""
    # What start-up made stays: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    host, port = server.sockets[0].getsockname()[:2]
    line_b = config.market_data.line_b
    shown_b = f"market_data_b={line_b.group}:{line_b.port} " if line_b is not None else ""
    say(
        f"exchange ready venue={venue.engine.venue} order_entry={host}:{port} "
        f"market_data={config.market_data.group}:{config.market_data.port} {shown_b}"
        f"metrics={metrics[0]}:{metrics[1]} epoch={venue.epoch} "
        f"sequence={venue.sequencer.durable_sequence} build={BUILD} "
        f"python={platform.python_version()}"
    )
    notify("READY=1")


def _surroundings(config: Config, log: Log) -> Surroundings:
    data: Path = config.venue.data
    if not (data / COMMANDS_FOLDER).is_dir():
        raise ConfigError(f"{data / COMMANDS_FOLDER} is missing; `exchange init` makes a new venue")
    clock = SystemClock()
    loop = asyncio.get_running_loop()
    return Surroundings(
        clock=clock,
        commands=FolderStorage(data / COMMANDS_FOLDER),
        events=FolderStorage(data / EVENTS_FOLDER),
        snapshots=FolderStorage(data / SNAPSHOTS_FOLDER),
        barred=FolderStorage(data / BARRED_FOLDER),
        log=log,
        make_committer=lambda journal: AdaptiveCommitter(journal, loop, clock),
        senders=open_lines(config.market_data, loop),
        throttle=config.throttle,
        status=_tell_status,
        segment_size=config.journal.segment_size,
        connections_max=_find_connections_max(log),
    )


def _tell_status(line: str) -> None:
    """Tell systemd, if it listens: a recovery does not fail for want of it."""
    with suppress(OSError):
        notify(line)


def _find_connections_max(log: Log) -> int:
    """As many connections as the system lets this process have, at most CONNECTIONS_MAX."""
    reserved = DESCRIPTORS_RESERVED + REFUSALS_MAX
    open_files = raise_open_files(CONNECTIONS_MAX + reserved)
    found = open_files - reserved
    if found < 1:
        raise ConfigError(f"{open_files} open files are too few; raise the limit (ulimit -n)")
    if found < CONNECTIONS_MAX:
        log.info("few_open_files", open_files=open_files, connections_max=found)
    return found
