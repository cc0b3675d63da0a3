"""One seed: a venue with everything around it, faults, and the checks of what became of it.

A venue, its feed and its replica run on one machine, traders on another, consumers on a third.
Faults come as the schedule says. When it is over, everything is put right; then every request must
find its outcome, every reader must come to the head, and everything that was ever told must be
what the journal says.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any, Final, NamedTuple

from exchange.client.healer import Feed as FeedAddress
from exchange.config import SnapshotSettings
from exchange.core.limits import GENESIS_DEFAULTS
from exchange.node.failure import Exit as Code
from journal.faulty import Fault
from tests.simulation.archiving import ArchiveProgram, check_journal, is_archived, put_back
from tests.simulation.calm import BATCH_COUNT_MIN, FAULTS_MIN, check_work, settle, watch_idle
from tests.simulation.disks import PLENTY, Disks, Violation
from tests.simulation.exits import is_other_expected, is_venue_expected
from tests.simulation.faults import COPY_KINDS, KINDS, READER_KINDS, REPLICA_KINDS, draw_schedule
from tests.simulation.hosts import (
    ConsumerProgram,
    FeedProgram,
    Pace,
    ReplicaProgram,
    Task,
    VenueProgram,
    VenueSettings,
    client_surroundings,
    found,
)
from tests.simulation.readers import Listener, Subscriber
from tests.simulation.repairing import Mending
from tests.simulation.resender import Resender
from tests.simulation.rot import Rot
from tests.simulation.takeovers import plan_takeovers
from tests.simulation.truth import Truth, Witness
from tests.simulation.units import Machine, Observer, Unit
from tests.simulation.workload import (
    ADMIN,
    Operator,
    Party,
    Trader,
    open_market,
    private_key,
    public_key,
)
from tests.simulation.world import MS, US, Exit, Process, S, Step, World

__all__ = ["Simulation", "Summary"]

BOUNDS: Final = GENESIS_DEFAULTS | {
    "participants_max": 100,
    "accounts_max": 100,
    "keys_max": 100,
    "instruments_max": 100,
    "sessions_max": 100,
    "orders_max": 10_000,
    "positions_max": 10_000,
    "orders_per_account_max": 1_000,
    "levels_per_side_max": 1_000,
    "work_per_command_max": 4,
}
"""Small, so that worlds are quickly made and continuations are many."""

SEGMENT_SIZES: Final = (24 * 1024, 32 * 1024, 48 * 1024, 128 * 1024)
"""Small, so that there are many; the smallest takes all that clients have open."""
LENGTH_NS: Final = 6 * S
"""How long there are faults."""
END_NS_MAX: Final = 3 * S
"""A venue whose storage has failed ends within this time."""
SNAPSHOTS_KEPT: Final = 2
RETRY_NS: Final = 200 * MS
OPEN_NS_MAX: Final = 60 * S
TRADING_NS_MAX: Final = 120 * S
CALM_NS_MAX: Final = 120 * S
"""Within this time after the last fault everything must be well again."""
COPY_CHANCE: Final = 0.3
"""That another machine has a feed that copies the venue's log."""
BURST_CHANCES: Final = (0.0, 0.1, 0.2)
"""That a trader, when it sends, sends a burst; it is slower then."""
PACE_S: Final = 0.022
"""Longest pause of a trader when it is alone: all together make some hundred batches."""
STEP_NS: Final = 50 * MS
DRIFT_PPM_MAX: Final = 300
"""Of the clock of the venue's machine, drawn with each boot."""


class Summary(NamedTuple):
    """What a seed has gone through."""

    seed: int
    batch_count: int
    command_count: int
    crash_count: int
    faults: Counter[str]
    report_count: int
    run_hash: str
    snapshot_count: int
    archived_count: int
    long_count: int
    repaired_count: int
    lost_count: int


class Simulation(Observer):
    """See the module. `run` raises Violation or WorldFailure."""

    def __init__(
        self, seed: int, on_step: Callable[[Step], None] | None = None, favored: str = ""
    ) -> None:
        """`favored` is a kind of fault that comes for sure, if it can."""
        self.seed = seed
        self.favored = favored
        self.world = World(seed, on_step=on_step)
        self.dice = self.world.dice("faults")
        self.drifts = self.world.dice("drifts")
        self.truth = Truth()
        self.disks = Disks(self.world.dice("disks"), self.truth.add)
        self.faults: Counter[str] = Counter()
        self.story: list[str] = []
        """When which faults came."""
        self.kind = ""
        """Of the fault that is made now."""
        self.is_calm = False
        self.is_closing = False
        self.crash_count = 0
        self.repaired_count = 0
        self.witnesses: list[Witness] = []
        self.pace = Pace()
        self.failed_at: int | None = None
        """The durable sequence when an operation on the journal failed."""
        self.paused: set[Process] = set()
        plan = self.world.dice("plan")
        self.settings = VenueSettings(
            bounds=BOUNDS,
            segment_size=plan.choice(SEGMENT_SIZES),
            event_segment_size=plan.choice((16 * 1024, 64 * 1024)),
        )
        self.has_readers = plan.random() < 0.7
        self.has_replica = plan.random() < 0.8
        self.trader_count = plan.randrange(2, 5)
        self.plan = plan
        self._draw_network(plan)
        self._make_machines()

    def _draw_network(self, plan: Random) -> None:
        """How good the network is, all the time: before the first ways are made."""
        network = self.world.network
        network.window_size = plan.choice((4 * 1024, 16 * 1024, 64 * 1024, 64 * 1024))
        network.split_chance = plan.choice((0.0, 0.1, 0.5))
        network.delay_ns = plan.choice((50 * US, 50 * US, MS, 10 * MS))
        network.spread_ns = plan.choice((50 * US, MS, 10 * MS))
        network.give_up_ns = plan.choice((5 * S, 60 * S))
        self.slowness = plan.choice((1, 1, 1, 50))
        """Of a process, drawn for each: how much longer its turns take."""

    # What there is.

    def _make_machines(self) -> None:
        world, settings = self.world, self.settings
        self.venue_machine = Machine(world, "venue", self.disks, self)
        self.client_machine = Machine(
            world, "clients", Disks(world.dice("-"), lambda _: None), self
        )
        self.reader_machine = Machine(
            world, "consumers", Disks(world.dice("-"), lambda _: None), self
        )
        self.program = VenueProgram(settings, self.pace)
        self.venue = self.venue_machine.add(self.program)
        self.feed: Unit | None = None
        self.replica: Unit | None = None
        if self.has_readers:
            self.feed = self.venue_machine.add(FeedProgram(settings))
        if self.has_replica:
            snapshots = SnapshotSettings(every_commands=self.plan.randrange(40, 250))
            self.replicating = ReplicaProgram(settings, snapshots)
            self.replica = self.venue_machine.add(self.replicating)
        burst_chance = self.plan.choice(BURST_CHANCES)
        pace_s = PACE_S * self.trader_count * (1 + 10 * burst_chance)
        self.rot = Rot(self.disks, self.truth, world.dice("rot"))
        self.archiving = ArchiveProgram()
        self.archiver = self.venue_machine.add(self.archiving)
        self.mending = Mending(self)
        self.parties: list[Party | Resender] = [
            Trader(self.truth, number, world.dice(f"trader {number}"), pace_s)
            for number in range(1, self.trader_count)
        ]
        for party in self.parties:
            if isinstance(party, Trader):
                party.burst_chance = burst_chance
        self.parties.append(Resender(self.truth, self.trader_count, world.dice("resender"), pace_s))
        self.parties.append(Operator(self.truth, world.dice("operator"), self.trader_count))
        self.clients = [
            self._add_party(f"client-{number}", party) for number, party in enumerate(self.parties)
        ]
        self.subscriber = Subscriber(self.truth, self._complain)
        self.listeners: dict[Unit, tuple[Listener, ConsumerProgram]] = {}
        self.reading: list[Unit] = []
        self.consuming: list[Unit] = []
        self.copy: Unit | None = None
        if self.has_readers:
            self._add_readers()

    @property
    def services(self) -> list[Unit]:
        """Those of the venue's machine that shall run all the time."""
        return [unit for unit in (self.venue, self.feed, self.replica) if unit is not None]

    @property
    def address(self) -> tuple[str, int]:
        return self.venue_machine.host.address, self.settings.port

    def _add_party(self, name: str, party: Party | Resender) -> Unit:
        def make(process: Process) -> Any:
            return party.run(self.address, client_surroundings(process))

        return self.client_machine.add(Task(name, make, self.program))

    def _add_readers(self) -> None:
        """A subscriber, and consumers: of the lines, and of a feed alone."""
        host, settings = self.venue_machine.host.address, self.settings

        def make(process: Process) -> Any:
            where = (host, settings.feed_port)
            return self.subscriber.run(where, client_surroundings(process))

        feed = FeedAddress(host, settings.feed_port, private_key(ADMIN))
        self.reading = [self.reader_machine.add(Task("subscriber", make, self.program))]
        self._add_consumer("of the lines", feed, over_tcp=False)
        if self.plan.random() < COPY_CHANCE:
            self.copy_disks = Disks(self.world.dice("copy"), lambda _: None)
            machine = Machine(self.world, "copy", self.copy_disks, self)
            self.copy = machine.add(FeedProgram(settings, ("venue", private_key(ADMIN))))
            where = FeedAddress(machine.host.address, settings.feed_port, private_key(ADMIN))
            self._add_consumer("of the copy", where, over_tcp=True)

    def _add_consumer(self, name: str, feed: FeedAddress, *, over_tcp: bool) -> None:
        listener = Listener(self.truth, self._complain)
        consumer = ConsumerProgram(
            name, self.settings, feed, over_tcp=over_tcp, options=listener.options
        )
        unit = self.reader_machine.add(consumer)
        self.listeners[unit] = (listener, consumer)
        self.consuming.append(unit)
        self.reading.append(unit)

    # One seed.

    def run(self) -> Summary:
        """All of it."""
        try:
            self._open()
            self._trade()
            self._calm_down()
            self._close()
            self.world.check()
        finally:
            self.world.close()
        check_work(self)
        return Summary(
            self.seed,
            len(self.truth.records),
            self.truth.command_count,
            self.crash_count,
            self.faults,
            sum(witness.report_count for witness in self.witnesses),
            self.world.run_hash,
            len(self.rot.compared),
            self.archiving.moved_count,
            self.disks.watch.long_count,
            self.repaired_count,
            self.mending.lost_count,
        )

    def _open(self) -> None:
        """A new venue with a market."""
        process = self.venue_machine.host.process("exchange")
        storage = self.disks.open(process, "commands")
        found(self.settings, public_key(ADMIN), storage, process)
        self.disks.ended(process)
        process.end(Exit(0))
        for unit in self.services:
            unit.start()
        is_open = []

        async def open_it(process: Process) -> int:
            around = client_surroundings(process)
            await open_market(self.address, around, self.trader_count)
            is_open.append(True)
            await process.loop.create_future()
            return 0

        admin = self.client_machine.add(Task("admin", open_it, self.program))
        admin.start()
        self.run_until(lambda: bool(is_open), OPEN_NS_MAX, "the market does not open")
        admin.stop()
        del self.client_machine.units["admin"]

    def _trade(self) -> None:
        world = self.world
        for unit in (*self.clients, *self.reading, *([self.copy] if self.copy else [])):
            unit.start()
        absent: set[str] = set()
        if not self.has_readers:
            absent |= READER_KINDS
        if self.copy is None:
            absent |= COPY_KINDS
        if not self.has_replica:
            absent |= REPLICA_KINDS
        begin_ns = world.now_ns
        end_ns = begin_ns + LENGTH_NS
        for planned in draw_schedule(self.dice, LENGTH_NS, frozenset(absent), self.favored):
            world.at(begin_ns + planned.at_ns, partial(self._inject, planned.kind, end_ns))
        self.mending.plan(begin_ns, LENGTH_NS)
        plan_takeovers(self, begin_ns, LENGTH_NS)

        def is_over() -> bool:
            is_much = len(self.truth.records) >= BATCH_COUNT_MIN
            if world.now_ns < end_ns or not is_much or self.mending.is_busy:
                return False
            if self.crash_count and self.faults.total() >= FAULTS_MIN:
                return True
            self._inject("kill", 0)  # What was prepared has met nothing.
            return False

        self.run_until(is_over, TRADING_NS_MAX, "there is hardly any trade")

    def _inject(self, kind: str, end_ns: int) -> None:
        """A fault of the schedule comes, or is tried again when there is nothing that it hits."""
        if self.is_calm:
            return
        self.kind = kind
        has_come = KINDS[kind](self)
        if has_come:
            self.note_fault(kind)
        elif has_come is None:
            self.world.note("fault", "prepared", kind)
        elif self.world.now_ns < end_ns:
            self.world.after(RETRY_NS, partial(self._inject, kind, end_ns))

    def note_fault(self, kind: str) -> None:
        """A fault has come."""
        self.faults[kind] += 1
        self.story.append(f"{self.world.now_ns / S:14.9f} {kind}")
        self.world.note("fault", "has come", kind)

    def _calm_down(self) -> None:
        """No more faults; everything must be well soon."""
        self.is_calm = True
        self.disks.watch.cuts.clear()
        self.disks.calm()
        self.calm_pace()
        self.calm_lines()
        self.world.network.mend_all()
        self.rot.put_right()
        self.paused.clear()
        for host in self.world.hosts.values():
            for process in host.processes:
                process.resume()
        for sender in self.world.network.multicast.senders:
            sender.fail(0)
            sender.drain()
        self.run_until(lambda: not self.mending.is_busy, CALM_NS_MAX, "the repair does not end")
        settle(self, CALM_NS_MAX)
        if self.replica is not None and not self.archiver.is_running:
            self.archiver.start()
            self.run_until(lambda: not self.archiver.is_running, CALM_NS_MAX, "it archives")
            if self.archiver.exits[-1] != Exit(0):
                raise Violation(f"archiving ends with {self.archiver.exits[-1]}")
        watch_idle(self)

    def _close(self) -> None:
        """Stop cleanly, and compare everything."""
        self.is_closing = True
        for unit in reversed(self.services):
            unit.stop()
        self.run_until(
            lambda: not any(unit.is_running for unit in self.services),
            CALM_NS_MAX,
            "the venue does not stop",
        )
        if self.venue.exits[-1] != Exit(0):
            raise Violation(f"a clean stop ended with {self.venue.exits[-1]}")
        check_journal(self.disks, self.truth)
        self.rot.check_snapshots()
        if self.feed is not None and not self.rot.has_files("feed"):
            raise Violation("the feed has saved nothing")
        for party in self.parties:
            party.check()

    def _check_disks(self) -> None:
        if self.rot.journal is None and not self.mending.is_damaged:
            check_journal(self.disks, self.truth)
        self.rot.check_snapshots()

    def run_until(
        self, is_done: Callable[[], bool], wait_ns: int, what: str | Callable[[], str]
    ) -> None:
        """Let time go on until then. Raises Violation when that takes too long."""
        world = self.world
        end_ns = world.now_ns + wait_ns
        while not is_done():
            world.run(world.now_ns + STEP_NS)
            if world.now_ns >= end_ns:
                raise Violation(f"no progress: {what if isinstance(what, str) else what()}")

    # What is told.

    def _complain(self, text: str) -> None:
        self.world.fail(text)

    def _guarded(self, check: Callable[..., None]) -> Callable[..., None]:
        """What a check raises must not be swallowed by the code that it looks at."""

        def checked(*arguments: Any) -> None:
            try:
                check(*arguments)
            except Exception as error:  # noqa: BLE001 - it is told
                self.world.fail(f"{error}", error)

        return checked

    def starting(self, unit: Unit, process: Process) -> None:
        slowness = self.dice.choice((1, self.slowness))
        process.turn_ns *= slowness
        process.turn_spread_ns *= slowness
        if unit in self.listeners:
            self.listeners[unit][0].begin()
        if unit is self.venue:
            witness = Witness(self.truth, self.disks.watch)
            self.witnesses.append(witness)
            process.on_write = self._guarded(witness.on_write)
            process.on_send = self._guarded(witness.on_send)
            self.failed_at = None
            self.disks.begin_venue()
        if unit is self.feed:
            witness = Witness(self.truth, self.disks.watch)
            process.on_write = self._guarded(witness.on_feed_write)

    def recovered(self, unit: Unit) -> None:
        if unit is not self.venue:
            return
        venue = self.program.venue
        assert venue is not None, "it has recovered"
        self.mending.started(venue.epoch)
        self.repaired_count += venue.journal.repaired is not None
        if self.rot.journal is not None:
            if not venue.replayed.snapshot_sequence:
                self._complain(f"the venue has started on a damaged journal: {self.rot.journal}")
            self.rot.put_right()  # What a snapshot stands for is not read again.
        if len(self.rot.compared) >= SNAPSHOTS_KEPT and not venue.replayed.snapshot_sequence:
            self._complain_of_long_start()
        engine, truth = venue.engine, self.truth
        if engine.sequence != truth.sequence:
            self._complain(f"sequence {engine.sequence} after recovery, durable {truth.sequence}")
        elif engine.digest() != truth.engine.digest():
            self._complain("another state after recovery")

    def _complain_of_long_start(self) -> None:
        """With two snapshots that nobody has spoiled, a start takes one of them."""
        is_spoiled = self.rot.journal_count or self.rot.spoiled_count
        if not is_spoiled:
            self._complain("the venue has read everything, though there are snapshots")

    def ended(self, unit: Unit, exit: Exit) -> None:
        if exit.signal:
            self.crash_count += unit is self.venue
        if exit.signal or unit in (self.archiver, self.mending.unit):
            return
        if unit is self.venue:
            self._judge_venue(exit)
        elif not is_other_expected(self, unit, exit):
            self._complain(f"{unit!r} ended with {exit}")

    def _judge_venue(self, exit: Exit) -> None:
        failed_at, self.failed_at = self.failed_at, None
        if failed_at is not None and self.truth.sequence > failed_at:
            self._complain("a record was made durable after the storage had failed")
        may_fail = failed_at is not None or self.disks.may_fail
        if not is_venue_expected(self, exit, may_fail):
            self._complain(f"the venue ended with {exit}")

    def gave_up(self, unit: Unit, exit: Exit) -> None:
        """A person looks at it, and starts it again."""
        if self.mending.gave_up(unit, exit) or unit is self.archiver:
            return
        if unit is self.venue:
            self.rot.put_right()
            if exit.code == Code.JOURNAL_DAMAGED and is_archived(self.disks.folder("commands")):
                self.make_room()
                put_back(self.disks)
        self.world.after(self.dice.randrange(1, S), lambda: self.start_again(unit))

    # For the faults.

    def start_again(self, unit: Unit | None = None) -> None:
        """An operator does, once it has ended."""
        unit = unit or self.venue
        if self.is_closing or (self.mending.is_working and unit in self.services):
            return
        if unit.is_running:
            self.world.after(RETRY_NS, lambda: self.start_again(unit))
        else:
            unit.start()

    def lose_power(self) -> bool:
        """The machine of the venue, if it is up."""
        machine = self.venue_machine
        if not machine.is_up:
            return False
        machine.power_loss(self.disks.lose_power)
        self._guarded(self._check_disks)()  # It may be the venue's own write that ends here.
        drift_ppm = self.drifts.randrange(-DRIFT_PPM_MAX, DRIFT_PPM_MAX + 1)
        self.world.after(self.dice.randrange(1, S), partial(machine.boot, drift_ppm))
        return True

    def lose_power_again(self) -> None:
        """Unless the faults are over."""
        if not self.is_calm:
            self.lose_power()

    def watched(self, fault: Fault, folder: str) -> Fault:
        """The fault of a folder of the venue, noted when it comes true."""
        kind = self.kind

        def then() -> None:
            # The event log may fail in the background, and is heard of with the next batch.
            if self.failed_at is None and folder == "commands":
                self.failed_at = self.truth.sequence
            self._expect_end(self.venue.process)
            self.note_fault(kind)
            self.world.note("disk", "failed", fault.kind)

        return replace(fault, then=then)

    def _expect_end(self, process: Process | None) -> None:
        """Its storage has failed: the process must end soon, whatever else it does."""

        def look() -> None:
            if process in self.paused:
                self.world.after(END_NS_MAX, look)
            elif process is not None and process.is_alive:
                self._complain("the venue goes on after its storage has failed")

        self.world.after(END_NS_MAX, look)

    def make_room(self) -> None:
        self.disks.fill(PLENTY)

    def calm_pace(self) -> None:
        """The disk is as quick as it was."""
        calm = Pace()
        self.pace.thread_chance = calm.thread_chance
        self.pace.write_ns_max, self.pace.sync_ns_max = calm.write_ns_max, calm.sync_ns_max

    def calm_lines(self) -> None:
        """The lines lose nothing."""
        for line in self.settings.lines:
            faults = self.world.network.multicast.faults(line, "consumers")
            faults.loss = faults.duplication = faults.reorder = 0.0
            faults.is_dead = False

    def rot_journal(self) -> bool:
        """The venue dies, and its journal is spoiled. Half of the times nothing else is left that
        could prove what the journal must have."""
        is_rotten = self.rot.journal is not None or self.mending.is_busy
        if is_rotten or not self.venue.is_running:
            return False
        if self.dice.random() < 0.5:
            self.venue.kill()
        else:
            self.lose_power()
            for name in ("events", "snapshots"):
                self.disks.wipe(name)
        self.rot.flip_in_journal()
        return True
