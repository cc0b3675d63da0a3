"""Start, recover, be ready, drain, stop.

Starting after a crash and starting after a clean stop are the same code: read the whole journal,
apply every record, compare the checksum of its events and write into the event log what is not in
it, then sequence that the venue has started, commit, send the last market data once more, and only
then listen. What a durable batch caused leaves in one order: reports to their sessions, packets,
the event log, the position. Everything that touches the world is in `Surroundings`.
"""

import asyncio
import gc
import platform
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import uvloop

from exchange.clock import SteadyClock, SystemClock
from exchange.config import Config, ConfigError, Limits
from exchange.core.engine import BUILD, RULES_VERSION, Batch
from exchange.logs import Log
from exchange.multicast import open_lines
from exchange.node.barred import BarredDamaged, BarredPayloads
from exchange.node.commit import AdaptiveCommitter
from exchange.node.failure import Exit, Failure, ServiceError
from exchange.node.limits import (
    CONNECTIONS_MAX,
    DESCRIPTORS_RESERVED,
    DISK_CHECK_S,
    DISK_RESERVE_SEGMENTS,
    DRAIN_WAIT_S,
    REFUSALS_MAX,
)
from exchange.node.metrics import start_metrics
from exchange.node.order_entry import OrderEntry
from exchange.node.position import PositionStream, bind_position
from exchange.node.publisher import Publisher
from exchange.node.recovery import Recovered, Surroundings, recover
from exchange.node.sequencer import Parts
from exchange.node.setup import BARRED_FOLDER, COMMANDS_FOLDER, EVENTS_FOLDER, POSITION_NAME
from exchange.process import notify, raise_open_files, say
from journal import FolderStorage, JournalError, Position
from protocol import wire
from protocol.base import NUMBER_MAX
from protocol.records import FROM_VENUE, Genesis, VenueStarted

__all__ = ["Venue", "serve"]

BACKLOG: Final = 256
"""Connections that the kernel keeps until the loop accepts them."""


class Venue:
    """A running venue: everything but the process around it. Made and used on the loop's thread.

    Also the sequencer's outlet behind that of order entry.
    """

    def __init__(
        self,
        surroundings: Surroundings,
        recovered: Recovered,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.engine = recovered.engine
        self.journal = recovered.journal
        self.event_log = recovered.event_log
        self.log = surroundings.log
        # The term changes when another node takes over; a restart keeps it.
        term = self.journal.head.term
        self.epoch = (recovered.genesis.epoch + term - 1) & NUMBER_MAX
        self.disk_free_size = -1  # not looked at yet
        self.disk_reserve_size = DISK_RESERVE_SEGMENTS * surroundings.segment_size
        self.journal.start(term)
        if self.journal.repaired:
            self.log.info("journal_repaired", what=self.journal.repaired)
        parts = Parts(
            engine=self.engine,
            ingress=recovered.ingress,
            journal=self.journal,
            committer=surroundings.make_committer(self.journal),
            barred=BarredPayloads(surroundings.barred),
            clock=SteadyClock(surroundings.clock, self.engine.time_ns),
            loop=loop,
        )
        self._commands = surroundings.commands
        self._events = surroundings.events
        self._disk_timer: asyncio.TimerHandle | None = None
        self._ingress = parts.ingress
        self._last_events = recovered.last_events
        self._loop = loop
        self.order_entry = OrderEntry(parts, self.log, surroundings.connections_max)
        self.sequencer = self.order_entry.sequencer
        self.sequencer.outlets.append(self)
        self.publisher = Publisher(
            surroundings.senders, self.epoch, self.order_entry.steady_ns, loop, self.log
        )
        self.publisher.begin(self.engine.channels())
        self.positions = PositionStream(self._position(), self.log)

    @property
    def ended(self) -> asyncio.Future[Failure]:
        """Done when the venue has failed; its process ends then."""
        return self.order_entry.ended

    def start(self, done: Callable[[], None]) -> None:
        """Sequence the start and what fell due meanwhile, and when that is durable send the last
        market data again; calls back after that."""

        def republish() -> None:
            events, self._last_events = self._last_events, b""
            self.publisher.republish(events, done)

        started = wire.encode(VenueStarted())
        self.sequencer.attempt(lambda: bool(self.sequencer.submit(FROM_VENUE, 0, 0, 0, started)))
        self.sequencer.attempt(self.sequencer.advance)
        self.sequencer.after_all(republish)
        self._watch_disk()

    def release(self, batch: Batch, closed_ns: int) -> None:
        """For the sequencer: everything that leaves after the reports of a durable batch."""
        del closed_ns  # Packets say when they were sent.
        self.publisher.publish(batch.events)
        self.event_log.append(
            batch.first_sequence,
            batch.command_count,
            RULES_VERSION,
            batch.events,
            batch.events_crc,
        )
        self.positions.tell(self._position())

    def fail(self, failure: Failure) -> None:
        """For the sequencer: no more batches come, and the process ends."""

    def _position(self) -> Position:
        """What is durable and in the event log."""
        commands, events = self.journal.position, self.event_log.position
        return Position(
            events.sequence,
            commands.segment,
            commands.offset,
            events.segment,
            events.offset,
            self.epoch,
            self.journal.head.term,
        )

    def _watch_disk(self) -> None:
        """Refuse new orders while the disk is nearly full, so that cancels still have room."""
        self._disk_timer = self._loop.call_later(DISK_CHECK_S, self._watch_disk)
        self.disk_free_size = min(self._commands.free_size(), self._events.free_size())
        is_low = self.disk_free_size < self.disk_reserve_size
        if is_low is not self._ingress.is_disk_low:
            self._ingress.is_disk_low = is_low
            self.log.error("disk_low" if is_low else "disk_enough", free_bytes=self.disk_free_size)

    def drain(self, done: Callable[[], None]) -> None:
        """Take no more, finish what was taken, tell the clients; calls back when they are told."""

        def say_goodbye() -> None:
            self.order_entry.say_goodbye()
            done()

        self.sequencer.drain(say_goodbye)

    def settle(self, done: Callable[[], None]) -> None:
        """Calls back when what came while the venue drained, a log-out say, is durable too."""
        self.sequencer.after_all(done)

    def close(self) -> Failure | None:
        """End it: cleanly, with the journal's marker, unless it has failed; then say how."""
        if self._disk_timer is not None:
            self._disk_timer.cancel()
        self.publisher.close()
        self.positions.close()
        self.sequencer.close()
        if self.sequencer.failure is None:
            try:
                self.event_log.stop()
                self.journal.stop()
            except JournalError as error:
                self.sequencer.fail(Failure(error.exit_code, str(error)))
        if self.sequencer.failure is not None:
            self.event_log.close()
            self.journal.close()
        return self.sequencer.failure


def serve(config: Config) -> int:
    """Run a venue until it is told to stop or fails; returns the exit code of the process."""
    log = Log()
    if not __debug__:
        log.error("refused", reason="assertions are off (python -O); the venue needs them")
        return Exit.CONFIGURATION
    try:
        return uvloop.run(_serve(config, log))
    except (ConfigError, JournalError, ServiceError) as error:
        code, reason = int(error.exit_code), str(error)
    except AssertionError as error:
        code, reason = Exit.ASSERTION, f"assertion failed: {error}"
    except OSError as error:
        code, reason = Exit.STORAGE_FAILED, str(error)
    log.error("stopped", code=int(code), reason=reason)
    return code


async def _serve(config: Config, log: Log) -> int:
    surroundings = _surroundings(config, log)
    try:
        venue = _make_venue(surroundings, config)
    except BaseException:
        for sender in surroundings.senders.values():
            sender.close()
        raise
    failure = await _run(venue, config)
    if failure is None:
        engine = venue.sequencer.engine
        assert engine.sequence == venue.sequencer.durable_sequence, "a drained venue is durable"
        say(
            f"exchange stopped sequence={engine.sequence} digest={engine.digest()} "
            f"book_digest={engine.book_digest()} public_digest={engine.public_digest()}"
        )
        return Exit.STOPPED
    log.error("stopped", code=int(failure.exit_code), reason=failure.text)
    return int(failure.exit_code)


def _make_venue(surroundings: Surroundings, config: Config) -> Venue:
    recovered = recover(surroundings)
    try:
        _compare(config, recovered.genesis)
        return Venue(surroundings, recovered, asyncio.get_running_loop())
    except BarredDamaged as error:
        recovered.close()
        raise ServiceError(Exit.JOURNAL_DAMAGED, str(error)) from None
    except BaseException:
        recovered.close()
        raise


async def _run(venue: Venue, config: Config) -> Failure | None:
    """Start, listen, wait for a signal or a failure, stop."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    loop.set_exception_handler(lambda _, context: _on_exception(venue, context))
    started = asyncio.Event()
    venue.start(started.set)
    await _first_of(started, venue.ended)
    with ExitStack() as doors:
        if not venue.ended.done():
            try:
                server = await _open_doors(venue, config, doors)
            except ServiceError:
                venue.close()
                raise
            await _first_of(stopped, venue.ended)
            notify("STOPPING=1")
            server.close()
        if not venue.ended.done():
            await _drain(venue)
    return venue.close()


async def _drain(venue: Venue) -> None:
    """Finish what was taken, and see the clients off."""
    drained = asyncio.Event()
    venue.drain(drained.set)
    await _first_of(drained, venue.ended)
    await venue.order_entry.wait_empty(DRAIN_WAIT_S)
    settled = asyncio.Event()
    venue.settle(settled.set)
    await _first_of(settled, venue.ended)


async def _open_doors(venue: Venue, config: Config, doors: ExitStack) -> asyncio.Server:
    """Listen for readers of the position, scrapes, and clients, and say that the venue is ready.

    Returns the server for clients. Raises ServiceError.
    """
    loop = asyncio.get_running_loop()
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
        server = await loop.create_server(
            venue.order_entry.accept, entry.host, entry.port, backlog=BACKLOG
        )
        doors.callback(server.close)
    _say_ready(venue, config, server, metrics.address)
    return server


@contextmanager
def _listening(where: str) -> Iterator[None]:
    """Turn the OSError of an address that cannot be had into the line that says so."""
    try:
        yield
    except OSError as error:
        text = f"cannot listen on {where}: {error.strerror}"
        raise ServiceError(Exit.CONFIGURATION, text) from None


async def _first_of(event: asyncio.Event, ended: asyncio.Future[Failure]) -> None:
    """Wait for the event, or for the failure of the venue."""
    waiter = asyncio.ensure_future(event.wait())
    await asyncio.wait((waiter, ended), return_when=asyncio.FIRST_COMPLETED)
    waiter.cancel()


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


def _on_exception(venue: Venue, context: dict[str, object]) -> None:
    """What nobody caught: the world's errors are logged, ours end the process."""
    error = context.get("exception")
    if isinstance(error, OSError):
        venue.log.error("os_error", what=str(error), where=str(context.get("message")))
        return
    venue.sequencer.fail(Failure(Exit.ASSERTION, f"{context.get('message')}: {error!r}"))


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
        barred=FolderStorage(data / BARRED_FOLDER),
        log=log,
        make_committer=lambda journal: AdaptiveCommitter(journal, loop, clock),
        senders=open_lines(config.market_data, loop),
        throttle=config.throttle,
        segment_size=config.journal.segment_size,
        connections_max=_find_connections_max(log),
    )


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


def _compare(config: Config, genesis: Genesis) -> None:
    """The configuration says what the journal says. Raises ConfigError."""
    if config.venue.name != genesis.venue:
        raise ConfigError(
            f"venue.name is {config.venue.name!r}, the journal is that of {genesis.venue!r}"
        )
    for name in Limits.__struct_fields__:
        wanted, fixed = getattr(config.limits, name), getattr(genesis, name)
        if wanted != fixed:
            raise ConfigError(f"limits.{name} is {wanted}, the journal has fixed {fixed}")
