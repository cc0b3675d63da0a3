"""The process of a replica: signals, metrics, the two lines for whoever started it, exit codes."""

import asyncio
import gc
import os
import platform
import signal
from contextlib import closing, suppress
from typing import Final

import uvloop

from exchange.clock import SystemClock
from exchange.config import Config, ConfigError
from exchange.core.engine import BUILD
from exchange.logs import Log
from exchange.position import connect_position
from exchange.process import notify, say
from exchange.replica.failure import CONFIGURATION, STOPPED
from exchange.replica.limits import NICENESS, RESERVE_SEGMENTS
from exchange.replica.metrics import ReplicaMetrics, start_metrics
from exchange.replica.run import REFUSALS, end_of, run_replica
from exchange.replica.service import ReplicaService
from exchange.replica.surroundings import Surroundings
from journal import FolderStorage

__all__ = ["serve"]

COMMANDS_FOLDER: Final = "commands"
EVENTS_FOLDER: Final = "events"
SNAPSHOTS_FOLDER: Final = "snapshots"
POSITION_NAME: Final = "position"
"""Inside the data folder: what the venue writes, and what is ours."""


def serve(config: Config) -> int:
    """Run a replica until it is told to stop or fails; the exit code of the process."""
    log = Log()
    if not __debug__:
        log.error("refused", reason="assertions are off (python -O); the replica needs them")
        return CONFIGURATION
    # Where that is forbidden it works all the same.
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
    try:
        return uvloop.run(_serve(config, log))
    except REFUSALS as error:
        code, reason = end_of(error)
    log.error("stopped", code=code, reason=reason)
    return code


async def _serve(config: Config, log: Log) -> int:
    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[None] = loop.create_future()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _finish, stopped)
    stopped.add_done_callback(lambda _: notify("STOPPING=1"))
    service = ReplicaService(_surroundings(config, log), config.snapshots, loop)
    metrics = ReplicaMetrics(service, loop)
    try:
        await _listen(metrics, config)
    except ConfigError:
        service.close()
        raise
    with closing(metrics):
        await run_replica(service, lambda: _say_ready(service, metrics.address), stopped)
    say(f"exchange replica stopped sequence={service.replica.sequence}")
    return STOPPED


def _surroundings(config: Config, log: Log) -> Surroundings:
    """The real ones. Raises ConfigError, OSError."""
    data = config.venue.data
    if not data.is_dir():
        raise ConfigError(f"{data} is missing; `exchange init` makes a new venue")
    return Surroundings(
        clock=SystemClock(),
        commands=FolderStorage(data / COMMANDS_FOLDER, is_read_only=True),
        events=FolderStorage(data / EVENTS_FOLDER),
        snapshots=FolderStorage(data / SNAPSHOTS_FOLDER),
        connect=connect_position(data / POSITION_NAME),
        log=log,
        reserve_size=RESERVE_SEGMENTS * config.journal.segment_size,
    )


def _finish(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


async def _listen(metrics: ReplicaMetrics, config: Config) -> None:
    settings = config.snapshots
    host, port = settings.metrics_host, settings.metrics_port
    try:
        await start_metrics(metrics, host, port)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}") from None


def _say_ready(service: ReplicaService, metrics: tuple[str, int]) -> None:
    """One line on stdout, for people and for whoever started us."""
    # What start-up made stays: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    newest = service.snapshotter.newest
    snapshot = newest.head.sequence if newest is not None else 0
    say(
        f"exchange replica ready venue={service.replica.engine.venue} "
        f"metrics={metrics[0]}:{metrics[1]} sequence={service.replica.sequence} "
        f"snapshot={snapshot} build={BUILD} python={platform.python_version()}"
    )
    notify("READY=1")
