"""Brier's processes on simulated machines: they trade, die, come back, and agree."""

import asyncio
from signal import SIGTERM
from typing import Any, Final

import pytest

from exchange.client.client import Client, connect
from exchange.client.connector import Backoff, ClientState
from exchange.client.errors import ClientError
from exchange.client.healer import Feed as FeedAddress
from exchange.config import SnapshotSettings
from journal import EventReader
from protocol.codes import EventKind, Role, Side
from tests.exchange.node.world import private_key, public_key
from tests.simulation.hosts import (
    ConsumerProgram,
    FeedProgram,
    MemoryDisk,
    ReplicaProgram,
    VenueProgram,
    VenueSettings,
    client_surroundings,
    found,
)
from tests.simulation.units import Machine, Unit, rules_of
from tests.simulation.world import MS, Exit, Process, S, World

ADMIN: Final = 1
RECONNECT: Final = Backoff(initial_ms=50, maximum_ms=500, attempts_max=1_000)


class Market:
    """A venue, its feed and its replica on one machine, and clients on another."""

    def __init__(self, seed: int) -> None:
        self.world = World(seed)
        self.disk = MemoryDisk()
        self.machine = Machine(self.world, "venue", self.disk)
        self.settings = VenueSettings()
        self.desk = self.world.host("desk")
        process = self.machine.host.process("init")
        found(self.settings, public_key(ADMIN), self.disk.open(process, "commands"), process)
        self.disk.ended(process)
        process.kill()
        self.program = VenueProgram(self.settings)
        self.unit = self.machine.add(self.program)
        self.traders: dict[int, Client] = {}
        self.reports: dict[int, list[Any]] = {}

    @property
    def address(self) -> tuple[str, int]:
        return self.machine.host.address, self.settings.port

    def run(self, seconds: float) -> None:
        self.world.run(self.world.now_ns + int(seconds * S))

    def until_ready(self, unit: Unit) -> None:
        for _ in range(1_000):
            if unit.is_ready:
                return
            self.run(0.01)
        raise AssertionError(f"{unit} is not ready")

    def ask(self, main: Any) -> None:
        """Run a client's coroutine to its end."""
        process = self.desk.process("asker")
        process.start(main(process))
        for _ in range(1_000):
            if not process.is_alive:
                assert process.exit is not None
                assert process.exit.code == 0
                return
            self.run(0.01)
        raise AssertionError("no answer in ten seconds")

    def open(self) -> None:
        """Start the venue, list an instrument, admit two traders."""
        self.unit.start()
        self.until_ready(self.unit)
        self.ask(self._list)

    async def _list(self, process: Process) -> int:
        async with await connect(
            *self.address,
            key=private_key(ADMIN),
            session="ops",
            surroundings=client_surroundings(process),
        ) as client:
            for number in (2, 3):
                participant = await client.participant(f"p{number}")
                account = await client.account(participant, "main", "USD")
                roles = Role.TRADE | Role.DROP_COPY
                await client.key(participant, public_key(number), roles)
                await client.deposit(account, 1, 10**12)
            event = await client.event("RAIN", EventKind.BINARY, "Rain?", "USD")
            await client.instrument(event, "RAIN-YES", "Rain")
        return 0

    def fail_power(self) -> None:
        """The venue's machine is without power for half a second."""
        dice = self.world.dice("power")
        self.machine.power_loss(lambda: self.disk.power_loss(dice))
        self.run(0.5)
        self.machine.boot()

    def trade(self, number: int) -> Process:
        """A trader that quotes for ever, over every loss of its connection."""
        process = self.desk.process(f"trader-{number}")
        process.start(self._trade(process, number))
        return process

    async def _trade(self, process: Process, number: int) -> int:
        reports = self.reports.setdefault(number, [])
        client = await connect(
            *self.address,
            key=private_key(number),
            session="s",
            on_report=reports.append,
            reconnect=RECONNECT,
            surroundings=client_surroundings(process),
        )
        self.traders[number] = client
        dice = process.world.dice(f"trader-{number}")
        while client.standing is not ClientState.CLOSED:
            try:
                await client.new_order(
                    instrument_id=1,
                    account_id=number - 1,
                    side=dice.choice((Side.BUY, Side.SELL)),
                    quantity=100 * dice.randrange(1, 4),
                    price=100 * dice.randrange(45, 56),
                )
            except ClientError:
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.01 + dice.random() * 0.02)
        return 1


def test_rules_are_those_of_the_unit_files() -> None:
    rules = rules_of("exchange.service")
    assert rules.prevented == {64, 66, 69, 74}
    assert (rules.pause_ns, rules.interval_ns, rules.burst) == (S, 600 * S, 3)
    for name in ("exchange-feed.service", "exchange-replica.service"):
        assert rules_of(name).prevented == {64, 69}


@pytest.mark.parametrize("seed", range(2))
def test_two_clients_trade_over_kills_and_power_losses(seed: int) -> None:
    market = Market(seed)
    market.open()
    market.trade(2)
    market.trade(3)
    market.run(2)
    for fault in ("kill", "power", "kill"):
        if fault == "kill":
            market.unit.kill()
            market.run(0.5)
            assert not market.unit.is_running
        else:
            market.fail_power()
        before = {number: len(reports) for number, reports in market.reports.items()}
        market.run(5)
        assert market.unit.is_ready
        for number, reports in market.reports.items():
            assert len(reports) > before[number] + 40
    market.unit.stop()
    market.run(5)
    assert market.unit.exits[-1].code == 0
    market.world.check()
    market.world.close()


@pytest.mark.parametrize("seed", range(2))
def test_a_feed_and_consumers_follow_over_kills_and_power_losses(seed: int) -> None:
    market = Market(seed)
    market.open()
    feed = market.machine.add(FeedProgram(market.settings))
    feed.start()
    market.until_ready(feed)
    where = FeedAddress(market.machine.host.address, market.settings.feed_port, private_key(2))
    home = Machine(market.world, "home", MemoryDisk())
    healed = ConsumerProgram("healed", market.settings, where)
    cycled = ConsumerProgram("cycled", market.settings, None)
    direct = ConsumerProgram("direct", market.settings, where, over_tcp=True)
    programs = (healed, cycled, direct)
    for program in programs:
        home.add(program).start()
    for line in market.settings.lines:
        faults = market.world.network.multicast.faults(line, "home")
        faults.loss, faults.duplication, faults.reorder = 0.05, 0.05, 0.05
    traders = [market.trade(2), market.trade(3)]
    market.run(2)
    for fault in ("kill venue", "kill feed", "power", "kill consumer"):
        if fault == "kill venue":
            market.unit.kill()
        elif fault == "kill feed":
            feed.kill()
        elif fault == "kill consumer":
            home.units["healed"].kill()
        else:
            market.fail_power()
        market.run(5)
    for trader in traders:
        trader.kill()
    market.run(5)
    assert market.unit.is_ready
    assert feed.is_ready
    assert market.program.venue is not None
    digest = market.program.venue.engine.public_digest()
    for program in programs:
        assert program.consumer is not None
        assert program.consumer.is_complete, program.name
        assert program.consumer.public_digest() == digest, program.name
    feed.stop()
    market.unit.stop()
    market.run(5)
    assert feed.exits[-1].code == 0
    market.world.check()
    market.world.close()


@pytest.mark.parametrize("seed", range(2))
def test_a_replica_makes_snapshots_that_starts_use(seed: int) -> None:
    market = Market(seed)
    market.open()
    often = SnapshotSettings(every_commands=300, every_s=1)
    program = ReplicaProgram(market.settings, often)
    replica = market.machine.add(program)
    replica.start()
    market.until_ready(replica)
    traders = [market.trade(2), market.trade(3)]
    market.run(2)
    for fault in ("kill venue", "kill replica", "power", "kill venue"):
        if fault == "kill venue":
            market.unit.kill()
        elif fault == "kill replica":
            replica.kill()
        else:
            market.fail_power()
        market.run(4)
        assert market.program.venue is not None
        assert market.program.venue.replayed.snapshot_sequence > 0
    for trader in traders:
        trader.kill()
    market.run(3)
    assert program.service is not None
    venue = market.program.venue
    assert venue is not None
    assert program.service.replica.engine.digest() == venue.engine.digest()
    replica.stop()
    market.run(2)
    assert replica.exits[-1].code == 0
    market.world.check()
    market.world.close()


class Failing:
    """A program that ends with one exit code after another."""

    def __init__(self, codes: list[int]) -> None:
        self.name = "failing"
        self.rules = rules_of("exchange.service")
        self.codes = codes

    async def main(self, unit: Unit, process: Process) -> int:
        unit.say_ready()
        process.loop.add_signal_handler(SIGTERM, lambda: None)
        await asyncio.sleep(0.1)
        return self.codes.pop(0)


@pytest.mark.parametrize("code", [0, 64, 66, 69, 74])
def test_what_a_start_does_not_mend_waits_for_a_person(code: int) -> None:
    world = World(code)
    unit = Machine(world, "host", MemoryDisk()).add(Failing([code, code]))
    unit.start()
    world.run(60 * S)
    assert (unit.start_count, unit.is_given_up, unit.is_running) == (1, True, False)
    unit.start()
    world.run(120 * S)
    assert unit.exits == [Exit(code), Exit(code)]


def test_three_starts_in_ten_minutes_and_no_more() -> None:
    world = World(1)
    unit = Machine(world, "host", MemoryDisk()).add(Failing([65] * 9))
    unit.start()
    world.run(10 * S)
    assert (unit.start_count, unit.is_given_up) == (3, True)
    times_ns = [step.now_ns for step in world.steps if step.what == "start"]
    ends_ns = [step.now_ns for step in world.steps if step.what == "end"]
    for ended_ns, started_ns in zip(ends_ns, times_ns[1:], strict=False):
        assert S <= started_ns - ended_ns < S + MS
    world.run(5_000 * S)
    assert unit.start_count == 3
    unit.start()
    world.run(world.now_ns + 10 * S)
    assert unit.start_count == 6


def test_a_kill_is_followed_by_a_start_a_stop_is_not() -> None:
    world = World(2)
    unit = Machine(world, "host", MemoryDisk()).add(Failing([0] * 9))
    unit.start()
    world.run(world.now_ns + 10 * MS)
    unit.kill()
    world.run(world.now_ns + S + 50 * MS)
    assert (unit.exits, unit.is_ready) == ([Exit(-1, 9)], True)
    unit.stop()
    world.run(world.now_ns + 60 * S)
    assert (unit.exits[1:], unit.start_count, unit.is_given_up) == ([Exit(0)], 2, False)


def test_a_machine_starts_what_was_not_stopped() -> None:
    world = World(3)
    machine = Machine(world, "host", MemoryDisk())
    unit = machine.add(Failing([0] * 9))
    unit.start()
    world.run(10 * MS)
    machine.power_loss()
    world.run(10 * S)
    assert (unit.exits, unit.is_running) == ([Exit(-1, 9)], False)
    machine.boot()
    world.run(world.now_ns + 2 * S)
    assert unit.start_count == 2
    unit.stop()
    world.run(world.now_ns + S)
    machine.power_loss()
    machine.boot()
    world.run(world.now_ns + 60 * S)
    assert unit.start_count == 2


def test_a_feed_on_another_machine_copies_the_log() -> None:
    market = Market(1)
    market.open()
    near = market.machine.add(FeedProgram(market.settings))
    near.start()
    disk = MemoryDisk()
    far = Machine(market.world, "far", disk)
    program = FeedProgram(market.settings, ("venue", private_key(ADMIN)))
    copy = far.add(program)
    copy.start()
    market.until_ready(copy)
    where = FeedAddress(far.host.address, market.settings.feed_port, private_key(2))
    reader = ConsumerProgram("reader", market.settings, where, over_tcp=True)
    Machine(market.world, "home", MemoryDisk()).add(reader).start()
    traders = [market.trade(2), market.trade(3)]
    market.run(1)
    for fault in (market.fail_power, near.kill, copy.kill, market.unit.kill):
        fault()
        market.run(3)
    dice = market.world.dice("far")
    far.power_loss(lambda: disk.power_loss(dice))
    far.boot()
    for trader in traders:
        trader.kill()
    market.run(15)
    venue, consumer = market.program.venue, reader.consumer
    assert venue is not None
    assert consumer is not None
    assert copy.is_ready
    assert consumer.public_digest() == venue.engine.public_digest()
    theirs, ours = (
        list(EventReader(one.folder("events")).records(1)) for one in (market.disk, disk)
    )
    assert ours == theirs
    market.world.check()
    market.world.close()
