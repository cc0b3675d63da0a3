"""A replica beside a `World`: the real service on a real loop, over disks in memory, and a venue
that says how far it is when a test tells it to."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Final

from exchange.config import SnapshotSettings
from exchange.core.engine import Engine
from exchange.core.replay import replay_record, restore_engine
from exchange.logs import Log
from exchange.replica.service import ReplicaService
from exchange.replica.surroundings import Surroundings
from journal import Position, SnapshotFolder, SnapshotHead, Storage, encode_position, read_only
from tests.exchange.loops import PATIENCE_S, until
from tests.exchange.node.market import open_market
from tests.exchange.node.traders import Trader
from tests.exchange.node.world import World

__all__ = [
    "Desk",
    "ManualClock",
    "check_snapshots",
    "make_snapshot_settings",
    "replay_to",
    "trading_world",
]

EVENT_SEGMENT_SIZE: Final = 16 * 1024
"""Small, so that a test's log has several segments."""

NEVER: Final = 10**9


class ManualClock:
    """Stands still until a test sets it."""

    def __init__(self) -> None:
        self.now_ns = 1_800_000_000_000_000_000

    def time_ns(self) -> int:
        return self.now_ns

    def monotonic_ns(self) -> int:
        return self.now_ns


class Line(asyncio.Transport):
    """The venue's end of a connection of the replica."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.is_gone = False
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()
        protocol.connection_made(self)

    def say(self, position: Position) -> None:
        if not self.is_gone:
            self._protocol.data_received(encode_position(position))

    def abort(self) -> None:
        if not self.is_gone:
            self.is_gone = True
            self._loop.call_soon(self._protocol.connection_lost, None)

    def pause_reading(self) -> None:
        """What is said comes all the same: a test says it when it is to come."""

    def resume_reading(self) -> None:
        """See above."""


class TradingWorld(World):
    """A venue with an open market and two traders who act at random."""

    def __init__(self, seed: int) -> None:
        super().__init__(limits={"work_per_command_max": 4})
        self.event_segment_size = EVENT_SEGMENT_SIZE
        self.dice = Random(seed)
        self.boot()
        open_market(self)
        self.traders = [Trader(self, 2, self.dice), Trader(self, 3, self.dice)]

    def trade(self, turns: int = 20) -> int:
        """Let them act for some turns; the venue's sequence after that."""
        for _ in range(turns):
            for trader in self.traders:
                trader.act()
                self.loop.run()  # A connection that is lost is lost for the venue too.
            self.loop.sleep(self.dice.choice((0.0, 0.001, 0.03)))
        self.finish()
        return self.engine.sequence

    @property
    def position(self) -> Position:
        """What the venue says now."""
        return self.venue._position()


def trading_world(seed: int, turns: int = 20) -> TradingWorld:
    """A world in which something has happened."""
    world = TradingWorld(seed)
    world.trade(turns)
    return world


def make_snapshot_settings(
    every_commands: int = NEVER, every_bytes: int = NEVER, every_s: int = 86_400, keep: int = 2
) -> SnapshotSettings:
    """Only what is named makes a snapshot due."""
    return SnapshotSettings(keep, every_commands, every_bytes, every_s)


class Desk:
    """The replica and its line to the venue. `snapshots` is its folder, else the world's."""

    def __init__(
        self,
        world: TradingWorld,
        settings: SnapshotSettings,
        *,
        snapshots: Storage | None = None,
        clock: ManualClock | None = None,
    ) -> None:
        self.world = world
        self.clock = clock or ManualClock()
        self.lines: list[str] = []
        self.connections: list[Line] = []
        self.is_venue_up = True
        surroundings = Surroundings(
            clock=self.clock,
            commands=world.disk.attach(is_read_only=True),
            events=world.events_disk.attach(),
            snapshots=snapshots if snapshots is not None else world.snapshots_disk.attach(),
            connect=self._connect,
            log=Log(lambda: 0, self.lines.append),
            event_segment_size=world.event_segment_size,
            reserve_size=0,
        )
        loop = asyncio.get_running_loop()
        self.service = ReplicaService(surroundings, settings, loop)
        self.running = loop.create_task(self.service.run())

    async def _connect(self, make_protocol: Callable[[], asyncio.Protocol]) -> None:
        if not self.is_venue_up:
            raise ConnectionRefusedError(111, "Connection refused")
        line = Line(make_protocol())
        self.connections.append(line)
        line.say(self.world.position)

    @property
    def engine(self) -> Engine:
        return self.service.replica.engine

    @property
    def made_count(self) -> int:
        return self.service.snapshotter.made_count

    @property
    def failure_count(self) -> int:
        return self.service.snapshotter.failure_count

    async def connected(self, count: int = 1) -> None:
        """Wait until it has connected so often."""
        await until(lambda: len(self.connections) >= count)

    def say(self, position: Position | None = None) -> None:
        """The venue says how far it is, or this."""
        self.connections[-1].say(position or self.world.position)

    async def follow(self) -> None:
        """Say how far the venue is, and wait for the replica to be there and at rest."""
        await self.connected()
        self.say()
        sequence = self.world.position.sequence
        await until(lambda: self.running.done() or self.engine.sequence == sequence)
        if self.running.done():
            self.running.result()
        assert self.engine.digest() == self.world.engine.digest()

    async def attempt(self) -> None:
        """Say how far the venue is, and wait until there was an attempt at a snapshot of that."""
        await self.connected()
        self.say()
        sequence = self.world.position.sequence
        await until(lambda: self.running.done() or self.service.snapshotter._sequence == sequence)
        if self.running.done():
            self.running.result()

    async def failed(self) -> BaseException:
        """What ended it."""
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.wait((self.running,))
        error = self.running.exception()
        assert error is not None
        return error

    async def close(self) -> None:
        self.running.cancel()
        await asyncio.wait((self.running,))
        await self.service.stop()
        self.service.close()

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        world: TradingWorld,
        settings: SnapshotSettings,
        *,
        snapshots: Storage | None = None,
        clock: ManualClock | None = None,
    ) -> "AsyncIterator[Desk]":
        desk = cls(world, settings, snapshots=snapshots, clock=clock)
        try:
            yield desk
        finally:
            await desk.close()


def replay_to(world: World, sequence: int) -> Engine:
    """An engine that has applied the records up to this one from the first."""
    engine = Engine()
    for record in itertools.takewhile(
        lambda record: record.first_sequence <= sequence, read_only(world.disk).records()
    ):
        replay_record(engine, record)
    return engine


def check_snapshots(world: World, storage: Storage) -> list[SnapshotHead]:
    """All snapshots of a folder, newest first: each must restore to what the journal says."""
    folder = SnapshotFolder(storage)
    heads = folder.heads()
    assert folder.bad == []
    for head in heads:
        engine = restore_engine(head, folder.read(head))
        assert engine.digest() == replay_to(world, head.sequence).digest()
    return heads
