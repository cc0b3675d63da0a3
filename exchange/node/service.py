"""Start, recover, be ready, drain, stop.

Starting after a crash and starting after a clean stop are the same code: read the whole journal,
apply every record and compare the checksum of its events, then sequence that the venue has started,
commit, and only then listen. Everything that touches the world is in `Surroundings`.
"""

import asyncio
import gc
import platform
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import uvloop

from exchange.clock import Clock, SteadyClock, SystemClock
from exchange.config import Config, ConfigError, Limits
from exchange.core.engine import BUILD, RULES_VERSION, Engine
from exchange.logs import Log
from exchange.node.barred import BarredDamaged, BarredPayloads
from exchange.node.commit import AdaptiveCommitter, Committer
from exchange.node.failure import Exit, Failure
from exchange.node.ingress import Ingress
from exchange.node.limits import (
    CLOCK_BEHIND_MAX_NS,
    CONNECTIONS_MAX,
    DESCRIPTORS_RESERVED,
    DISK_CHECK_S,
    DISK_RESERVE_SEGMENTS,
    DRAIN_WAIT_S,
    REFUSALS_MAX,
)
from exchange.node.notify import notify
from exchange.node.order_entry import OrderEntry
from exchange.node.sequencer import Parts
from exchange.node.setup import BARRED_FOLDER, COMMANDS_FOLDER
from journal import FolderStorage, Journal, JournalError, Record, Storage, run_in_thread
from journal.prepare import Execute
from protocol import wire
from protocol.records import COMMAND_HEAD, FROM_VENUE, Genesis, VenueStarted

__all__ = ["ServiceError", "Surroundings", "Venue", "recover", "serve"]

NANOSECONDS_PER_MILLISECOND: Final = 1_000_000

BACKLOG: Final = 256
"""Connections that the kernel keeps until the loop accepts them."""


class ServiceError(Exception):
    """The venue cannot start or go on; the text is one line, the code that of the process."""

    def __init__(self, exit_code: int, text: str) -> None:
        super().__init__(text)
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a venue touches of the world. A simulator brings its own."""

    clock: Clock
    commands: Storage
    barred: Storage
    log: Log
    make_committer: Callable[[Journal], Committer]
    prepare: Execute = run_in_thread
    segment_size: int = 64 * 1024 * 1024
    connections_max: int = CONNECTIONS_MAX


class Recovered(msgspec.Struct, frozen=True):
    """An engine that has applied a whole journal, and the journal, which can be started."""

    engine: Engine
    journal: Journal
    genesis: Genesis


def recover(surroundings: Surroundings) -> Recovered:
    """Read the journal and apply it. Raises JournalError, ServiceError; then nothing is held."""
    journal = Journal.open(
        surroundings.commands,
        segment_size=surroundings.segment_size,
        prepare=surroundings.prepare,
    )
    start_ns = surroundings.clock.monotonic_ns()
    record_count = 0
    try:
        engine = Engine()
        genesis: Genesis | None = None
        for record in journal.records():
            if genesis is None:
                genesis = _read_genesis(record)
            _replay(engine, record)
            record_count += 1
        if genesis is None:
            text = "the journal has no record; `exchange init` makes a new venue"
            raise ServiceError(Exit.CONFIGURATION, text)
        _check_clock(surroundings.clock, engine)
    except BaseException:
        journal.close()
        raise
    taken_ms = (surroundings.clock.monotonic_ns() - start_ns) // NANOSECONDS_PER_MILLISECOND
    surroundings.log.info(
        "recovered", sequence=engine.sequence, records=record_count, duration_ms=taken_ms
    )
    return Recovered(engine, journal, genesis)


def _replay(engine: Engine, record: Record) -> None:
    place = f"record of sequence {record.first_sequence}"
    if record.rules_version != RULES_VERSION:
        text = f"{place} has rules {record.rules_version}, this build replays {RULES_VERSION}"
        raise ServiceError(Exit.CONFIGURATION, text)
    try:
        _, events_crc = engine.replay(record.first_sequence, record.command_count, record.payload)
    except Exception as error:
        raise ServiceError(
            Exit.ASSERTION, f"replay failed: {place}, command {engine.sequence}: {error}"
        ) from error
    if events_crc != record.events_crc:
        text = f"replay differs: {place}: events {events_crc:08x}, were {record.events_crc:08x}"
        raise ServiceError(Exit.ASSERTION, text)


def _check_clock(clock: Clock, engine: Engine) -> None:
    behind_ns = engine.time_ns - clock.time_ns()
    if behind_ns > CLOCK_BEHIND_MAX_NS:
        text = f"the machine's clock is {behind_ns // 10**9} s behind the journal; set it right"
        raise ServiceError(Exit.CONFIGURATION, text)


def _read_genesis(record: Record) -> Genesis:
    try:
        return msgspec.msgpack.decode(_first_payload(record), type=Genesis)
    except msgspec.DecodeError:
        text = "the journal does not begin with Genesis"
        raise ServiceError(Exit.JOURNAL_DAMAGED, text) from None


def _first_payload(record: Record) -> memoryview:
    length: int = COMMAND_HEAD.unpack_from(record.payload)[0]
    return record.payload[COMMAND_HEAD.size : length]


class Venue:
    """A running venue: everything but the process around it. Made and used on the loop's thread."""

    def __init__(
        self,
        surroundings: Surroundings,
        recovered: Recovered,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.engine = recovered.engine
        self.journal = recovered.journal
        self.log = surroundings.log
        # The term changes when another node takes over; a restart keeps it.
        self.journal.start(self.journal.head.term)
        if self.journal.repaired:
            self.log.info("journal_repaired", what=self.journal.repaired)
        parts = Parts(
            engine=self.engine,
            ingress=Ingress(self.engine.hot),
            journal=self.journal,
            committer=surroundings.make_committer(self.journal),
            barred=BarredPayloads(surroundings.barred),
            clock=SteadyClock(surroundings.clock, self.engine.time_ns),
            loop=loop,
        )
        self._commands = surroundings.commands
        self._disk_reserve = DISK_RESERVE_SEGMENTS * surroundings.segment_size
        self._disk_timer: asyncio.TimerHandle | None = None
        self._ingress = parts.ingress
        self._loop = loop
        self.order_entry = OrderEntry(parts, self.log, surroundings.connections_max)
        self.sequencer = self.order_entry.sequencer

    @property
    def ended(self) -> asyncio.Future[Failure]:
        """Done when the venue has failed; its process ends then."""
        return self.order_entry.ended

    def start(self, done: Callable[[], None]) -> None:
        """Sequence the start and what fell due meanwhile; calls back when that is durable."""
        started = wire.encode(VenueStarted())
        self.sequencer.attempt(lambda: bool(self.sequencer.submit(FROM_VENUE, 0, 0, 0, started)))
        self.sequencer.attempt(self.sequencer.advance)
        self.sequencer.after_all(done)
        self._watch_disk()

    def _watch_disk(self) -> None:
        """Refuse new orders while the disk is nearly full, so that cancels still have room."""
        self._disk_timer = self._loop.call_later(DISK_CHECK_S, self._watch_disk)
        free_size = self._commands.free_size()
        is_low = free_size < self._disk_reserve
        if is_low is not self._ingress.is_disk_low:
            self._ingress.is_disk_low = is_low
            self.log.error("disk_low" if is_low else "disk_enough", free_bytes=free_size)

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
        self.sequencer.close()
        if self.sequencer.failure is None:
            try:
                self.journal.stop()
            except JournalError as error:
                self.sequencer.fail(Failure(error.exit_code, str(error)))
        else:
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
    recovered = recover(surroundings)
    try:
        _compare(config, recovered.genesis)
        venue = Venue(surroundings, recovered, asyncio.get_running_loop())
    except BarredDamaged as error:
        recovered.journal.close()
        raise ServiceError(Exit.JOURNAL_DAMAGED, str(error)) from None
    except BaseException:
        recovered.journal.close()
        raise
    failure = await _run(venue, config)
    if failure is None:
        engine = venue.sequencer.engine
        assert engine.sequence == venue.sequencer.durable_sequence, "a drained venue is durable"
        digests = f"digest={engine.digest()} book_digest={engine.book_digest()}"
        _say(f"exchange stopped sequence={engine.sequence} {digests}")
        return Exit.STOPPED
    log.error("stopped", code=int(failure.exit_code), reason=failure.text)
    return int(failure.exit_code)


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
    settings = config.order_entry
    if not venue.ended.done():
        try:
            server = await loop.create_server(
                venue.order_entry.accept, settings.host, settings.port, backlog=BACKLOG
            )
        except OSError as error:
            venue.close()
            text = f"cannot listen on {settings.host}:{settings.port}: {error.strerror}"
            raise ServiceError(Exit.CONFIGURATION, text) from None
        _say_ready(venue, server)
        await _first_of(stopped, venue.ended)
        notify("STOPPING=1")
        server.close()
    if not venue.ended.done():
        drained = asyncio.Event()
        venue.drain(drained.set)
        await _first_of(drained, venue.ended)
        await venue.order_entry.wait_empty(DRAIN_WAIT_S)
        settled = asyncio.Event()
        venue.settle(settled.set)
        await _first_of(settled, venue.ended)
    return venue.close()


async def _first_of(event: asyncio.Event, ended: asyncio.Future[Failure]) -> None:
    """Wait for the event, or for the failure of the venue."""
    waiter = asyncio.ensure_future(event.wait())
    await asyncio.wait((waiter, ended), return_when=asyncio.FIRST_COMPLETED)
    waiter.cancel()


def _say_ready(venue: Venue, server: asyncio.Server) -> None:
    """One line on stdout, for people and for whoever started us."""
    # What start-up made stays: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    host, port = server.sockets[0].getsockname()[:2]
    _say(
        f"exchange ready venue={venue.engine.venue} order_entry={host}:{port} "
        f"sequence={venue.sequencer.durable_sequence} build={BUILD} "
        f"python={platform.python_version()}"
    )
    notify("READY=1")


def _say(line: str) -> None:
    """What whoever started us reads, if anybody still does."""
    with suppress(OSError):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


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
        barred=FolderStorage(data / BARRED_FOLDER),
        log=log,
        make_committer=lambda journal: AdaptiveCommitter(journal, loop, clock),
        segment_size=config.journal.segment_size,
        connections_max=_find_connections_max(log),
    )


def _find_connections_max(log: Log) -> int:
    """As many connections as the system lets this process have, at most CONNECTIONS_MAX."""
    reserved = DESCRIPTORS_RESERVED + REFUSALS_MAX
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS_MAX + reserved
    if soft < wanted and soft != resource.RLIM_INFINITY:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft >= wanted or soft == resource.RLIM_INFINITY:
        return CONNECTIONS_MAX
    found = soft - reserved
    if found < 1:
        raise ConfigError(f"{soft} open files are too few; raise the limit (ulimit -n)")
    log.info("few_open_files", open_files=soft, connections_max=found)
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
