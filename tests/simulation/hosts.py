"""The programs of Brier as processes of a simulated machine: the product's own code from its first
line to its exit code, with clocks, disks, sockets and threads of the world.

What is here does what `exchange serve`, `exchange feed` and `exchange replica` do around that code,
and no more. A worker thread is a job that the process's loop does at a drawn time.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from functools import partial
from random import Random
from signal import SIGTERM
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from exchange.client.consumer import Consumer
from exchange.client.healer import Feed as FeedAddress
from exchange.client.lines import Line
from exchange.client.sockets import GroupSocket
from exchange.client.surroundings import Surroundings as ClientSurroundings
from exchange.config import SnapshotSettings, ThrottleSettings
from exchange.core.engine import RULES_VERSION
from exchange.core.limits import GENESIS_DEFAULTS
from exchange.feed.run import REFUSALS as FEED_REFUSALS
from exchange.feed.run import Feed, Opened, end_of, run_feed
from exchange.feed.surroundings import OtherFeed
from exchange.feed.surroundings import Surroundings as FeedSurroundings
from exchange.logs import Log
from exchange.multicast import SNAPSHOT_GROUPS, DatagramSender
from exchange.node.commit import Done
from exchange.node.recovery import Surroundings as VenueSurroundings
from exchange.node.run import REFUSALS, Expected, failure_of, make_venue, run_venue
from exchange.node.setup import write_genesis
from exchange.node.venue import Venue
from exchange.position import ConnectPosition
from exchange.replica.limits import RESERVE_SEGMENTS
from exchange.replica.run import REFUSALS as REPLICA_REFUSALS
from exchange.replica.run import end_of as replica_end_of
from exchange.replica.run import run_replica
from exchange.replica.service import ReplicaService
from exchange.replica.surroundings import Surroundings as ReplicaSurroundings
from journal import BuiltRecord, Journal, Storage
from journal.memory import AttachedStorage, MemoryStorage
from journal.prepare import Join
from protocol.records import Genesis
from tests.simulation.units import Program, Unit, log_of, rules_of
from tests.simulation.world import MS, Process

__all__ = [
    "ConsumerProgram",
    "FeedProgram",
    "MemoryDisk",
    "Pace",
    "Task",
    "VenueProgram",
    "VenueSettings",
    "client_surroundings",
    "found",
]

NS_PER_S: Final = 1_000_000_000
POSITION: Final = "position"
START_S: Final = 0.2
"""How long an interpreter takes at most until it comes to our code."""

SEGMENT_SIZE: Final = 1024 * 1024
EPOCH: Final = 7 << 20


class MemoryDisk:
    """The folders of a machine, each by itself."""

    def __init__(self) -> None:
        self.folders: dict[str, MemoryStorage] = {}
        self._attached: dict[Process, list[AttachedStorage]] = {}

    def folder(self, name: str) -> MemoryStorage:
        """The folder of that name; an empty one when there is none."""
        return self.folders.setdefault(name, MemoryStorage())

    def open(self, process: Process, folder: str, *, is_read_only: bool = False) -> Storage:
        storage = self.folder(folder).attach(is_read_only=is_read_only)
        self._attached.setdefault(process, []).append(storage)
        return storage

    def ended(self, process: Process) -> None:
        for storage in self._attached.pop(process, []):
            storage.detach()

    def power_loss(self, dice: Random) -> None:
        """Every folder forgets what was not synced."""
        for name in sorted(self.folders):
            self.folders[name].crash(dice)
        self._attached.clear()


@dataclass
class Pace:
    """How quick a venue's disk and threads are; may be changed at any time."""

    thread_chance: float = 0.2
    """That a record is written by the worker thread and not on the loop."""
    write_ns_max: int = MS
    sync_ns_max: int = 3 * MS
    prepare_ns_max: int = 50 * MS


@dataclass(frozen=True)
class VenueSettings:
    """What is in the venue's file, as far as it matters here; all processes of it have the same.

    `lines` are the multicast lines by name: the group of channel 1, and the port.
    """

    name: str = "venue"
    bounds: Mapping[str, int] = field(default_factory=lambda: dict(GENESIS_DEFAULTS))
    port: int = 9001
    feed_port: int = 9002
    lines: Mapping[str, tuple[str, int]] = field(
        default_factory=lambda: {"a": ("239.255.66.1", 9100), "b": ("239.255.67.1", 9100)}
    )
    segment_size: int = SEGMENT_SIZE
    event_segment_size: int = SEGMENT_SIZE
    throttle: ThrottleSettings | None = None
    connections_max: int = 64
    snapshot_rate: int = 4_000_000


def found(settings: VenueSettings, admin_key: bytes, commands: Storage, process: Process) -> None:
    """What `exchange init` does: the first record of a journal."""
    genesis = Genesis(settings.name, admin_key, RULES_VERSION, **settings.bounds, epoch=EPOCH)
    write_genesis(commands, genesis, process.clock, segment_size=settings.segment_size)


# Venues.


class VenueProgram:
    """`exchange serve`. `venue` is the one that runs, from the end of its recovery on."""

    def __init__(self, settings: VenueSettings, pace: Pace | None = None) -> None:
        self.name = "exchange"
        self.rules = rules_of("exchange.service")
        self.settings = settings
        self.pace = pace or Pace()
        self.venue: Venue | None = None

    async def main(self, unit: Unit, process: Process) -> int:
        self.venue = None
        await asyncio.sleep(process.world.random() * START_S)
        settings, loop, log = self.settings, process.loop, log_of(process)
        surroundings = self._surroundings(unit, process)
        expected = Expected(settings.name, settings.bounds)
        try:
            venue = self.venue = make_venue(surroundings, expected, loop)
            unit.machine.observer.recovered(unit)
            stopped = asyncio.Event()
            loop.add_signal_handler(SIGTERM, stopped.set)
            failure = await run_venue(venue, _VenueDoors(unit, process, settings), stopped)
        except REFUSALS as error:
            failure = failure_of(error)
        if failure is None:
            engine = venue.engine
            assert engine.sequence == venue.sequencer.durable_sequence, "a drained venue is durable"
            return 0
        log.error("stopped", code=failure.exit_code, reason=failure.text)
        return failure.exit_code

    def _surroundings(self, unit: Unit, process: Process) -> VenueSurroundings:
        disk, settings = unit.machine.disk, self.settings
        threads = Threads(process)
        dice = _dice(process)
        return VenueSurroundings(
            clock=process.clock,
            commands=disk.open(process, "commands"),
            events=disk.open(process, "events"),
            snapshots=disk.open(process, "snapshots"),
            barred=disk.open(process, "barred"),
            log=log_of(process),
            make_committer=lambda journal: Committer(journal, threads, self.pace),
            senders=_senders(settings, process, 0),
            throttle=settings.throttle,
            prepare=lambda job: threads.begin(job, self.pace.prepare_ns_max),
            random_bytes=dice.randbytes,
            segment_size=settings.segment_size,
            event_segment_size=settings.event_segment_size,
            connections_max=settings.connections_max,
        )


class _VenueDoors:
    """Without scrapes."""

    def __init__(self, unit: Unit, process: Process, settings: VenueSettings) -> None:
        self._unit = unit
        self._process = process
        self._settings = settings
        self._servers: list[asyncio.AbstractServer] = []

    async def open(self, venue: Venue) -> None:
        process = self._process
        loop, host = process.loop, process.host.address
        self._servers = [
            await loop.create_unix_server(venue.positions.accept, POSITION),
            await loop.create_server(venue.order_entry.accept, host, self._settings.port),
        ]
        self._unit.say_ready()

    def shut(self) -> None:
        if self._servers:
            self._servers[1].close()

    def close(self) -> None:
        for server in self._servers:
            server.close()
        if self._servers:
            self._process.world.network.unlink_unix(self._process.host, POSITION)


class Committer:
    """As `AdaptiveCommitter`: on the loop, or as the worker thread does it."""

    def __init__(self, journal: Journal, threads: "Threads", pace: Pace) -> None:
        self._journal = journal
        self._threads = threads
        self._pace = pace
        self._job: tuple[BuiltRecord, Done] | None = None
        self._is_written = False

    def commit(self, record: BuiltRecord, done: Done) -> bool:
        assert self._job is None, "one record at a time"
        threads = self._threads
        if self._journal.fits(record) and threads.random() >= self._pace.thread_chance:
            self._journal.write(record)
            self._journal.sync()
            return True
        self._job, self._is_written = (record, done), False
        threads.call(self._write, self._pace.write_ns_max)
        return False

    def close(self) -> None:
        """Wait for the worker."""
        if self._job is not None and not self._is_written:
            self._write()
        if self._job is not None:
            self._sync()

    def _write(self) -> None:
        if self._job is None or self._is_written:
            return  # It was waited for.
        self._is_written = True
        try:
            self._journal.write(self._job[0])
        except Exception as error:  # noqa: BLE001 - as the worker thread does
            self._finish(error)
        else:
            self._threads.call(self._sync, self._pace.sync_ns_max)

    def _sync(self) -> None:
        if self._job is None:
            return
        try:
            self._journal.sync()
        except Exception as error:  # noqa: BLE001 - as the worker thread does
            self._finish(error)
        else:
            self._finish(None)

    def _finish(self, error: Exception | None) -> None:
        assert self._job is not None, "there is something to tell"
        done = self._job[1]
        self._job = None
        self._threads.tell(done, error)


class Threads(Executor):
    """What a process does beside its loop: each job whole, at a drawn time."""

    def __init__(self, process: Process) -> None:
        self.random = process.world.random
        self._loop = process.loop

    def call(self, job: Callable[[], object], wait_ns_max: int) -> None:
        """Do it within that time."""
        self._loop.call_later(self.random() * wait_ns_max / NS_PER_S, job)

    def tell(self, callback: Callable[..., object], *arguments: object) -> None:
        """As `call_soon_threadsafe`."""
        self._loop.call_soon(callback, *arguments)

    def begin(self, job: Callable[[], None], wait_ns_max: int) -> Join:
        """An `Execute` of the journal: who waits for it has it done now."""
        is_done = False

        def work() -> None:
            nonlocal is_done
            if not is_done:
                is_done = True
                job()

        def join() -> bool:
            work()
            return True

        self.call(work, wait_ns_max)
        return join

    def submit(self, job: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        """Nobody of ours looks at what it gives."""
        assert not named, "not needed"
        self._loop.run_in_executor(None, job, *arguments)
        return Future()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """They end with the process."""


# Feeds.


class FeedProgram:
    """`exchange feed`. `opened` is what runs, from when it lets clients in. With `upstream`, the
    name of another machine and a key, it copies the log of the feed there."""

    def __init__(
        self, settings: VenueSettings, upstream: tuple[str, Ed25519PrivateKey] | None = None
    ) -> None:
        self.name = "feed"
        self.rules = rules_of("exchange-feed.service")
        self.settings = settings
        self.upstream = upstream
        self.feed: Feed | None = None
        self.opened: Opened | None = None

    async def main(self, unit: Unit, process: Process) -> int:
        self.feed = self.opened = None
        await asyncio.sleep(process.world.random() * START_S)
        loop, log = process.loop, log_of(process)
        stopped: asyncio.Future[None] = loop.create_future()
        loop.add_signal_handler(SIGTERM, _finish, stopped)
        try:
            feed = self.feed = Feed(self._surroundings(unit, process), loop)
            await run_feed(feed, _FeedDoors(self, unit, process), stopped)
        except FEED_REFUSALS as error:
            code, reason = end_of(error)
            log.error("stopped", code=code, reason=reason)
            return code
        return 0

    def _surroundings(self, unit: Unit, process: Process) -> FeedSurroundings:
        disk, settings, threads = unit.machine.disk, self.settings, Threads(process)
        origin: ConnectPosition | OtherFeed = _position_of(process)
        if self.upstream is not None:
            where, key = self.upstream
            data = disk.open(process, "data")
            origin = OtherFeed(process.world.host(where).address, settings.feed_port, key, data)
        has_cycle = settings.snapshot_rate and self.upstream is None
        return FeedSurroundings(
            clock=process.clock,
            log=log_of(process),
            origin=origin,
            events=disk.open(process, "events", is_read_only=self.upstream is None),
            saved=disk.open(process, "feed"),
            open_senders=lambda: _senders(settings, process, SNAPSHOT_GROUPS) if has_cycle else {},
            snapshot_rate=settings.snapshot_rate,
            make_threads=lambda count, name: threads,
            execute=lambda job: threads.begin(job, 50 * MS),
            random_bytes=_dice(process).randbytes,
            connections_max=settings.connections_max,
        )


class _FeedDoors:
    """Without scrapes."""

    def __init__(self, program: FeedProgram, unit: Unit, process: Process) -> None:
        self._program = program
        self._unit = unit
        self._process = process
        self._server: asyncio.AbstractServer | None = None

    async def open(self, opened: Opened) -> None:
        host, port = self._process.host.address, self._program.settings.feed_port
        self._server = await self._process.loop.create_server(opened.server.accept, host, port)
        self._program.opened = opened
        self._unit.say_ready()

    def shut(self) -> None:
        self.close()

    def close(self) -> None:
        if self._server is not None:
            self._server.close()


# Replicas.


class ReplicaProgram:
    """`exchange replica`. `service` is what runs."""

    def __init__(self, settings: VenueSettings, snapshots: SnapshotSettings) -> None:
        self.name = "replica"
        self.rules = rules_of("exchange-replica.service")
        self.settings = settings
        self.snapshots = snapshots
        self.service: ReplicaService | None = None
        self.is_missing_events = False
        """It has said that events/ lacks what it must have."""

    async def main(self, unit: Unit, process: Process) -> int:
        self.service = None
        await asyncio.sleep(process.world.random() * START_S)
        loop, log = process.loop, log_of(process)
        stopped: asyncio.Future[None] = loop.create_future()
        loop.add_signal_handler(SIGTERM, _finish, stopped)
        try:
            service = self.service = ReplicaService(
                self._surroundings(unit, process), self.snapshots, loop
            )
            await run_replica(service, unit.say_ready, stopped)
        except REPLICA_REFUSALS as error:
            code, reason = replica_end_of(error)
            log.error("stopped", code=code, reason=reason)
            return code
        return 0

    def _surroundings(self, unit: Unit, process: Process) -> ReplicaSurroundings:
        disk, settings = unit.machine.disk, self.settings
        return ReplicaSurroundings(
            clock=process.clock,
            commands=disk.open(process, "commands", is_read_only=True),
            events=disk.open(process, "events"),
            snapshots=disk.open(process, "snapshots"),
            connect=_position_of(process),
            log=Log(process.clock.time_ns, partial(self._hear, process)),
            event_segment_size=settings.event_segment_size,
            reserve_size=RESERVE_SEGMENTS * settings.segment_size,
        )

    def _hear(self, process: Process, line: str) -> None:
        process.world.note(repr(process), "log", line)
        self.is_missing_events |= "events/ has not" in line


# Clients.


def client_surroundings(process: Process) -> ClientSurroundings:
    """What a client in this process is given."""
    multicast, dice = process.world.network.multicast, _dice(process)

    def hear(group: str, port: int, interface: str) -> GroupSocket:
        del interface  # A host has one.
        return multicast.listen(process, group, port)

    return ClientSurroundings(process.clock, dice.randbytes, dice.uniform, hear)


class Task:
    """A program of a person's, by the rules of one of ours: `make` makes its coroutine."""

    def __init__(
        self, name: str, make: Callable[[Process], Coroutine[Any, Any, int]], program: Program
    ) -> None:
        self.name = name
        self.rules = program.rules
        self._make = make

    def main(self, unit: Unit, process: Process) -> Coroutine[Any, Any, int]:
        del unit
        return self._make(process)


class ConsumerProgram:
    """A process with a `Consumer` of channels of a venue: over both lines, healed by the feed on
    another machine; `over_tcp`: over the feed alone. `options` are those of `Consumer`."""

    def __init__(
        self,
        name: str,
        settings: VenueSettings,
        feed: FeedAddress | None,
        *,
        over_tcp: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.rules = rules_of("exchange-feed.service")
        self.settings = settings
        self.consumer: Consumer | None = None
        self._feed = feed
        self._over_tcp = over_tcp
        self._options = options or {}

    async def main(self, unit: Unit, process: Process) -> int:
        stopped: asyncio.Future[None] = process.loop.create_future()
        process.loop.add_signal_handler(SIGTERM, _finish, stopped)
        options = {**self._options, "surroundings": client_surroundings(process)}
        if self._over_tcp:
            assert self._feed is not None, "there is nothing else"
            consumer = Consumer.over_tcp(self._feed, **options)
        else:
            [(group, port), *others] = self.settings.lines.values()
            line_b = Line(*others[0]) if others else None
            consumer = Consumer(group, port, line_b=line_b, feed=self._feed, **options)
        self.consumer = consumer
        async with consumer:
            unit.say_ready()
            await stopped
        return 0


# Inside.


def _senders(
    settings: VenueSettings, process: Process, first_group: int
) -> dict[str, DatagramSender]:
    multicast = process.world.network.multicast
    return {
        name: multicast.sender(process, name, group, port, first_group)
        for name, (group, port) in settings.lines.items()
    }


def _position_of(process: Process) -> ConnectPosition:
    """To the venue on the same machine."""
    return lambda make: process.loop.create_unix_connection(make, POSITION)


def _dice(process: Process) -> Random:
    """Of nonces and pauses, of this life of a process."""
    world = process.world
    return world.dice(f"surroundings of {process!r} from {world.now_ns}")


def _finish(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
