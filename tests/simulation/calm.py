"""When the faults are over: who has not come to the head, and what else must happen by itself."""

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from protocol.order_entry import OrderAccepted, OrderFilled
from protocol.wire import peek_tag
from tests.simulation.disks import Disks, Violation
from tests.simulation.hosts import Task, client_surroundings
from tests.simulation.units import Machine
from tests.simulation.workload import Trader
from tests.simulation.world import Process, S

if TYPE_CHECKING:
    from tests.simulation.run import Simulation

__all__ = ["BATCH_COUNT_MIN", "FAULTS_MIN", "check_work", "settle", "watch_idle"]

BATCH_COUNT_MIN: Final = 300
FAULTS_MIN: Final = 3
ACCEPTED_MIN: Final = 30
FILLED_MIN: Final = 20
TOLD_MIN: Final = 50
"""Messages that each reader was told."""

BATCH_MAX: Final = 250
"""Commands of a batch, at most: what all clients together have open."""
GHOST_CHANCE: Final = 0.25
GHOST_NS_MAX: Final = 30 * S
"""Many keepalives."""
JOIN_NS_MAX: Final = 60 * S


def find_behind(sim: "Simulation") -> str:
    """Who has not come to the head, "" when everybody has."""
    venue = sim.program.venue
    if not sim.venue.is_ready or venue is None:
        return "the venue does not run"
    deadline_ns = venue.engine.next_deadline_ns
    if 0 < deadline_ns < sim.venue_machine.host.clock.time_ns() - S:
        return "a deadline is overdue"
    for party in sim.parties:
        if behind := party.is_behind():
            return behind
    if sim.reading:
        if behind := sim.subscriber.is_behind():
            return behind
        for listener, program in sim.listeners.values():
            if behind := listener.is_behind(program.consumer):
                return f"{program.name}: {behind}"
    if sim.replica is not None:
        service = sim.replicating.service
        if service is None or service.replica.sequence != sim.truth.sequence:
            return "the replica is behind"
        if service.replica.engine.digest() != sim.truth.engine.digest():
            raise Violation("the replica has another state")
    return ""


def _lacks_snapshot(sim: "Simulation") -> bool:
    """Whether the replica has none that is new enough."""
    if sim.replica is None:
        return False
    service = sim.replicating.service
    newest = service.snapshotter.newest if service is not None else None
    last = newest.head.sequence if newest is not None else 0
    return sim.truth.sequence - last > sim.replicating.snapshots.every_commands + BATCH_MAX


def settle(sim: "Simulation", wait_ns: int) -> None:
    """Trade until there is a new snapshot: one that a fault has spoiled is tried again when the
    next one is due. Then nobody begins anything, and everybody comes to the head."""
    sim.run_until(lambda: not _lacks_snapshot(sim), wait_ns, "the replica makes no snapshots")
    for party in sim.parties:
        party.is_over = True
    sim.run_until(
        lambda: all(party.is_done for party in sim.parties), wait_ns, "requests have no outcome"
    )
    sim.run_until(lambda: _is_settled(sim), wait_ns, lambda: find_behind(sim))


def _is_settled(sim: "Simulation") -> bool:
    """Whether everybody has come to the head. Once the replica has said that events/ lacks what it
    must have, the operator restarts the venue, which makes it whole: so says the RUNBOOK."""
    if sim.replica is not None and sim.replicating.is_missing_events:
        sim.replicating.is_missing_events = False
        sim.venue.stop()
        sim.start_again()
    return not find_behind(sim)


def check_work(sim: "Simulation") -> None:
    """A seed in which hardly anything has happened has shown nothing."""
    assert len(sim.truth.records) >= BATCH_COUNT_MIN, "hardly anything happened"
    assert sim.crash_count >= 1, "no crash"
    assert sim.faults.total() >= FAULTS_MIN, "hardly a fault"
    tags: Counter[Any] = Counter(
        peek_tag(payload) for one in sim.truth.reports.values() for payload in one
    )
    accepted, filled = (
        tags[OrderAccepted.__struct_config__.tag],
        tags[OrderFilled.__struct_config__.tag],
    )
    assert accepted >= ACCEPTED_MIN, f"{accepted} orders were accepted"
    assert filled >= FILLED_MIN, f"{filled} fills"
    if sim.reading:
        told = [sim.subscriber.report_count, sum(sim.subscriber.next_numbers.values())]
        # A consumer may have come behind everything, by a snapshot, and be told nothing more.
        assert min(told) >= TOLD_MIN, f"readers were told {told} messages"


def watch_idle(sim: "Simulation") -> None:
    """Nobody sends anything, and what is due happens."""
    _await_deadline(sim)
    _haunt(sim)


def _await_deadline(sim: "Simulation") -> None:
    """What is due next, an order's end say, happens though nobody sends anything."""
    venue = sim.program.venue
    assert venue is not None, "everybody has come to the head"
    engine = venue.engine
    first_ns = engine.next_deadline_ns
    sim.run_until(
        lambda: not 0 < engine.next_deadline_ns <= first_ns, JOIN_NS_MAX, "a deadline is overdue"
    )


def _haunt(sim: "Simulation") -> None:
    """A client whose machine is gone without a word: the venue notices, and ends the session."""
    if sim.plan.random() > GHOST_CHANCE:
        return
    ghost = Trader(sim.truth, 1, sim.world.dice("ghost"), 1.0, "ghost")
    machine = Machine(sim.world, "ghost", Disks(sim.world.dice("-"), lambda _: None))

    def make(process: Process) -> Any:
        return ghost.run(sim.address, client_surroundings(process))

    ghost.is_over = True
    machine.add(Task("ghost", make, sim.program)).start()
    sim.run_until(lambda: ghost.session_id > 0, JOIN_NS_MAX, "nobody gets in")
    machine.power_loss()
    session = ghost.session_id
    sim.run_until(
        lambda: not sim.truth.engine.session(session).is_connected,
        GHOST_NS_MAX,
        "a client that is gone counts as connected",
    )
