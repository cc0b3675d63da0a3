"""What goes wrong in a simulated world, and when: drawn from the seed.

Each seed turns a part of the kinds of faults on (a swarm: a mixture of everything all the time
would keep whole states from ever being reached) and spreads some of them over its time. A fault
that lasts ends by itself; what is left at the end of the schedule is put right by `calm`.
"""

import errno
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Final, NamedTuple

from journal.faulty import Fault, Kind
from tests.simulation.archiving import movable_count
from tests.simulation.disks import SECTOR_SIZE, WriteCut
from tests.simulation.stream import Stream
from tests.simulation.units import Unit
from tests.simulation.workload import Trader
from tests.simulation.world import MS, S

if TYPE_CHECKING:
    from tests.simulation.run import Simulation

__all__ = [
    "COPY_KINDS",
    "CRASHES",
    "KINDS",
    "READER_KINDS",
    "REPLICA_KINDS",
    "Planned",
    "draw_schedule",
]

CHANGES: Final[tuple[Kind, ...]] = ("write", "sync", "create", "rename", "remove", "sync_folder")
ERRORS: Final = (errno.EIO, errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS)
FAULTS_MIN: Final = 4
FAULTS_MAX: Final = 9
FOLDER_OPERATIONS: Final[tuple[tuple[str, Kind], ...]] = (
    *(("commands", "create"), ("commands", "rename"), ("commands", "sync_folder")),
    *(("events", "create"), ("events", "rename"), ("events", "sync"), ("events", "sync_folder")),
)
START_OPERATIONS: Final[tuple[tuple[Kind, int], ...]] = (
    *(("open", 3), ("read", 6), ("sync", 2), ("sync_folder", 2), ("create", 1), ("write", 1)),
)
"""What a start does with the journal, and how often at least."""
SNAPSHOT_OPERATIONS: Final = 10
LONG_SIZE: Final = 3 * SECTOR_SIZE
"""Of a record that can be torn in many ways."""
BURST_CHANCE: Final = 0.1  # of every trader, when such a record is wanted
OPERATIONS_MAX: Final = 24  # who is to die at one on its disks dies at one of the next so many


class Planned(NamedTuple):
    """A fault of the schedule."""

    at_ns: int
    kind: str


def draw_schedule(
    dice: Random, length_ns: int, absent: frozenset[str], favored: str
) -> list[Planned]:
    """When which faults come; at least one is a crash. `absent` are kinds that make no sense, of
    `favored` there are two."""
    kinds = [kind for kind in KINDS if kind not in absent]
    enabled = [kind for kind in kinds if dice.random() < 0.5] or kinds
    crashes = [kind for kind in CRASHES if kind in enabled] or [*CRASHES]
    count = dice.randrange(FAULTS_MIN, FAULTS_MAX)
    drawn = [dice.choice(crashes), *(dice.choice(enabled) for _ in range(count - 1))]
    if favored in kinds:
        drawn[1:3] = [favored, favored]
    return sorted(Planned(dice.randrange(length_ns), kind) for kind in drawn)


# Ends of processes and machines.


def kill(sim: "Simulation") -> bool:
    """SIGKILL of the venue at any time."""
    return _kill(sim.venue)


def _kill(unit: Unit) -> bool:
    is_running = unit.is_running
    unit.kill()
    return is_running


def lose_power(sim: "Simulation") -> bool:
    """Of the venue's machine, at any time."""
    return sim.lose_power()


def flicker(sim: "Simulation") -> bool:
    """The machine of the venue loses power, and once or twice more soon after it is back."""
    for _ in range(sim.dice.randrange(1, 3)):
        sim.world.after(sim.dice.randrange(S, 5 * S), sim.lose_power_again)
    return sim.lose_power()


def _end_at(
    sim: "Simulation",
    unit: Unit,
    folders: tuple[str, ...],
    end: Callable[[], object],
    operations_max: int = OPERATIONS_MAX,
) -> bool | None:
    """The process, or its machine, ends before or after one of its next operations on a folder."""
    dice = sim.dice
    folder = sim.disks.opened(unit.process, dice.choice(folders))
    if folder is None:
        return False
    process, kind = unit.process, sim.kind

    def then() -> None:
        if process is unit.process:
            sim.note_fault(kind)
            end()

    folder.add(
        Fault(
            "change",
            at=dice.randrange(1, operations_max),
            error=errno.EBADF,
            is_applied=dice.random() < 0.5,
            then=then,
        )
    )
    return None


def kill_at(sim: "Simulation") -> bool | None:
    """SIGKILL of the venue at an operation on its disks."""
    return _end_at(sim, sim.venue, ("commands", "commands", "events"), sim.venue.kill)


def lose_power_at(sim: "Simulation") -> bool | None:
    """Power loss of the venue's machine at an operation on its disks."""
    return _end_at(sim, sim.venue, ("commands", "commands", "events"), sim.lose_power)


def kill_in_write(sim: "Simulation") -> bool | None:
    """SIGKILL of the venue when some pages of a record are written."""
    return _cut_write(sim, sim.dice.randrange(3), is_part=True)


def lose_power_in_write(sim: "Simulation") -> bool | None:
    """Power loss some times, each time between the write of a record and its sync."""
    return _cut_write(sim, sim.dice.randrange(1, 7))


def _cut_write(
    sim: "Simulation", more_count: int, size_min: int = LONG_SIZE, *, is_part: bool = False
) -> bool | None:
    """Of the next record of that size; and then so many power losses more, most of them in
    the first record that comes: it is small, and follows whatever the start has repaired."""
    kind = sim.kind

    def end() -> None:
        sim.note_fault(kind)
        if more_count:
            sim.kind = kind
            _cut_write(sim, more_count - 1, sim.dice.choice((1, 1, 1, LONG_SIZE)))
        (sim.venue.kill if is_part else sim.lose_power)()

    for party in sim.parties:
        if isinstance(party, Trader):
            party.burst_chance = max(party.burst_chance, BURST_CHANCE)
    sim.disks.watch.cuts.append(WriteCut(end, size_min, is_part))
    return None


def kill_at_start(sim: "Simulation") -> bool | None:
    """SIGKILL of the venue, and once more while it starts."""
    return _die_at_start(sim, sim.venue.kill)


def lose_power_at_start(sim: "Simulation") -> bool | None:
    """SIGKILL of the venue, and power loss while it starts."""
    return _die_at_start(sim, sim.lose_power)


def _die_at_start(sim: "Simulation", end: Callable[[], object]) -> bool | None:
    kind = sim.kind

    def then() -> None:
        sim.note_fault(kind)
        end()

    at, is_applied = sim.dice.randrange(1, 40), sim.dice.random() < 0.5
    fault = Fault("change", at, errno.EBADF, is_applied=is_applied, then=then)
    folder = sim.dice.choice(("commands", "commands", "events"))
    sim.disks.at_open["exchange", folder] = [fault]
    return None if _kill(sim.venue) else False


def stop(sim: "Simulation") -> bool:
    """A clean stop, and a start soon after."""
    if not sim.venue.is_running:
        return False
    sim.venue.stop()
    sim.world.after(sim.dice.randrange(2 * S), sim.start_again)
    return True


def pause(sim: "Simulation") -> bool:
    """SIGSTOP of the venue, for a while."""
    return _pause(sim, sim.venue, 2 * S)


def _pause(sim: "Simulation", unit: Unit, ns_max: int) -> bool:
    process = unit.process
    if process is None:
        return False
    process.pause()
    sim.paused.add(process)

    def go_on() -> None:
        sim.paused.discard(process)
        process.resume()

    sim.world.after(sim.dice.randrange(ns_max), go_on)
    return True


# Disks.


def sync_error(sim: "Simulation") -> bool | None:
    """A sync of the journal fails."""
    return _journal_error(sim, "commands", "sync")


def write_error(sim: "Simulation") -> bool | None:
    """A write to the journal or the event log fails."""
    return _journal_error(sim, sim.dice.choice(("commands", "events")), "write")


def folder_error(sim: "Simulation") -> bool | None:
    """What comes with a new segment fails: a file made, renamed, removed, a folder synced."""
    name, kind = sim.dice.choice(FOLDER_OPERATIONS)
    return _journal_error(sim, name, kind)


def _journal_error(sim: "Simulation", name: str, kind: Kind) -> bool | None:
    """One of the next operations of the venue, and all after it or none."""
    dice = sim.dice
    folder = sim.disks.opened(sim.venue.process, name)
    if folder is None:
        return False
    fault = Fault(
        kind,
        at=dice.randrange(1, 4 if kind in ("sync", "write") else 2),
        error=dice.choice(ERRORS),
        is_persistent=dice.random() < 0.5,
        is_applied=dice.random() < 0.3,
    )
    folder.add(sim.watched(fault, name))
    return None


def start_error(sim: "Simulation") -> bool | None:
    """SIGKILL of the venue, and an operation fails while it starts."""
    dice = sim.dice
    kind, at_max = dice.choice(START_OPERATIONS)
    fault = Fault(kind, dice.randrange(1, at_max + 1), dice.choice(ERRORS))
    sim.disks.at_open["exchange", "commands"] = [sim.watched(fault, "commands")]
    return None if _kill(sim.venue) else False


def disk_full(sim: "Simulation") -> bool:
    """Little or nothing is left on the disk for a while."""
    dice = sim.dice
    reserve = 3 * sim.settings.segment_size
    sim.disks.fill(dice.choice((0, 10_000, dice.randrange(reserve), reserve)))
    sim.world.after(dice.randrange(3 * S), sim.make_room)
    return True


def slow_disk(sim: "Simulation") -> bool:
    """Writes and syncs take long for a while."""
    dice, pace = sim.dice, sim.pace
    pace.thread_chance = 1.0
    pace.write_ns_max = pace.sync_ns_max = dice.choice((20 * MS, 100 * MS, 600 * MS))
    sim.world.after(dice.randrange(S), sim.calm_pace)
    return True


# Rot: while the machine is down.


def rot_journal(sim: "Simulation") -> bool:
    """A bit of a durable record flips: the venue must not start before it is put right."""
    return sim.rot_journal()


def rot_events(sim: "Simulation") -> bool:
    """Part of the event log is lost or spoiled: it must come back."""
    return sim.rot.has_files("events", ".events") and sim.lose_power() and sim.rot.spoil_events()


def rot_checkpoint(sim: "Simulation") -> bool | None:
    """What the feed has saved is spoiled: it reads the log again."""
    feed = sim.feed
    if feed is None or not stop_feed(sim, is_long=True):
        return False

    def spoil() -> None:
        if feed.is_running:
            sim.world.after(50 * MS, spoil)
        elif sim.rot.spoil_checkpoint():
            sim.note_fault("rot_checkpoint")

    spoil()
    return None


def rot_snapshots(sim: "Simulation") -> bool:
    """A snapshot is spoiled: an older one is taken, or the journal from its first record."""
    has_files = sim.rot.has_files("snapshots", ".snapshot")
    return has_files and sim.lose_power() and sim.rot.spoil_snapshots()


# The network.


def partition(sim: "Simulation") -> bool:
    """Clients and the venue do not reach each other for a while, or one not the other."""
    return _cut(sim, "venue", "clients")


def _cut(sim: "Simulation", one: str, other: str) -> bool:
    network, dice = sim.world.network, sim.dice
    ways = dice.choice(([(one, other)], [(other, one)], [(one, other), (other, one)]))
    for way in ways:
        network.cut(*way)
    length_ns = dice.choice((50 * MS, 500 * MS, 4 * S))

    def mend() -> None:
        for way in ways:
            network.mend(*way)

    sim.world.after(dice.randrange(1, length_ns), mend)
    return True


def reset(sim: "Simulation") -> bool:
    """Connections of clients are reset by something on the way."""
    dice = sim.dice
    found = False
    for unit in sim.clients:
        sockets = [] if unit.process is None else [*unit.process.sockets]
        for socket in sockets:
            if isinstance(socket, Stream) and dice.random() < 0.6:
                found = True
                socket.receive_reset()
                socket.peer.receive_reset()
    return found


def slow_network(sim: "Simulation") -> bool:
    """Packets between clients and the venue take long now and then, or bandwidth is low."""
    network, dice = sim.world.network, sim.dice
    ways = [network.way("venue", "clients"), network.way("clients", "venue")]
    byte_ns = dice.choice((0, 0, 2_000))
    for way in ways:
        way.spike_chance, way.byte_ns = 0.2, byte_ns

    def mend() -> None:
        for way in ways:
            way.spike_chance, way.byte_ns = 0.0, 0

    sim.world.after(dice.randrange(2 * S), mend)
    return True


def bad_lines(sim: "Simulation") -> bool:
    """The lines of market data lose, double and mix up packets for a while, or die."""
    multicast, dice = sim.world.network.multicast, sim.dice
    has_come = False
    for line in sim.settings.lines:
        if dice.random() < 0.3:
            continue
        faults = multicast.faults(line, "consumers")
        faults.loss = dice.choice((0.0, 0.05, 0.3))
        faults.duplication = dice.choice((0.0, 0.1))
        faults.reorder = dice.choice((0.0, 0.2))
        faults.is_dead = dice.random() < 0.3
        has_come |= faults.is_dead or not faults.is_quiet
    sim.world.after(dice.randrange(4 * S), sim.calm_lines)
    return has_come


def full_line(sim: "Simulation") -> bool:
    """A line's socket takes no packets for a while, or the system refuses them."""
    senders, dice = [*sim.world.network.multicast.senders], sim.dice
    if not senders:
        return False
    sender = dice.choice(senders)
    if dice.random() < 0.5:
        sender.is_full = True
        sim.world.after(dice.randrange(2 * S), sender.drain)
    else:
        sender.fail(errno.ENETUNREACH)
        sim.world.after(dice.randrange(2 * S), lambda: sender.fail(0))
    return True


# Clients, clocks, and the processes beside the venue.


def kill_client(sim: "Simulation") -> bool:
    """SIGKILL of one client's process."""
    return _kill(sim.dice.choice(sim.clients))


def kill_consumer(sim: "Simulation") -> bool:
    """SIGKILL of a consumer; another one begins."""
    return _kill(sim.dice.choice(sim.consuming))


def lose_clients(sim: "Simulation") -> bool:
    """The machine of the clients loses power: the venue sees nothing but silence."""
    machine = sim.client_machine
    if not machine.is_up:
        return False
    machine.power_loss()
    sim.world.after(sim.dice.randrange(2 * S), machine.boot)
    return True


def set_clock(sim: "Simulation") -> bool:
    """Somebody sets the clock of the venue's machine, forward or back."""
    dice = sim.dice
    sim.venue_machine.host.clock.offset_ns += dice.choice((-1, 1)) * dice.randrange(5 * S)
    return True


def kill_feed(sim: "Simulation") -> bool | None:
    """SIGKILL of the feed at any time, or while it saves its checkpoint."""
    assert sim.feed is not None, "the schedule has no such fault then"
    if sim.dice.random() < 0.5:
        return _kill(sim.feed)
    has_come = _end_at(sim, sim.feed, ("feed",), sim.feed.kill, operations_max=8)
    if has_come is None:
        stop_feed(sim)
    return has_come


def stop_feed(sim: "Simulation", *, is_long: bool = False) -> bool:
    """A clean stop of the feed, and a start soon after."""
    feed = sim.feed
    assert feed is not None, "the schedule has no such fault then"
    if not feed.is_running:
        return False
    feed.stop()
    wait_ns = (S if is_long else 0) + sim.dice.randrange(2 * S)
    sim.world.after(wait_ns, lambda: sim.start_again(feed))
    return True


def pause_feed(sim: "Simulation") -> bool:
    assert sim.feed is not None, "the schedule has no such fault then"
    return _pause(sim, sim.feed, 3 * S)


def cut_feed(sim: "Simulation") -> bool:
    """Consumers and the feed do not reach each other for a while."""
    return _cut(sim, "venue", "consumers")


def feed_error(sim: "Simulation") -> bool | None:
    """An operation of the feed on its disks fails while it saves its checkpoint."""
    assert sim.feed is not None, "the schedule has no such fault then"
    has_come = _side_error(sim, sim.feed, "feed")
    if has_come is None:
        stop_feed(sim)
    return has_come


def _side_error(sim: "Simulation", unit: Unit, name: str) -> bool | None:
    dice = sim.dice
    folder = sim.disks.opened(unit.process, name)
    if folder is None:
        return False
    kind = dice.choice(CHANGES if name != "events" else ("sync", "sync_folder"))
    is_applied = dice.random() < 0.3
    kind_of_fault = sim.kind

    def then() -> None:
        sim.note_fault(kind_of_fault)
        # Whoever has the same file open is told of a failed sync, too.
        sim.disks.may_fail = True

    at = 1 if name == "feed" else dice.randrange(1, 4)
    fault = Fault(kind, at, dice.choice(ERRORS), is_applied=is_applied, then=then)
    folder.add(fault)
    return None


def kill_copy(sim: "Simulation") -> bool:
    """SIGKILL of the feed that copies, or power loss of its machine."""
    copy, dice = sim.copy, sim.dice
    assert copy is not None, "the schedule has no such fault then"
    if dice.random() < 0.5 or not copy.machine.is_up:
        return _kill(copy)
    copy.machine.power_loss(sim.copy_disks.lose_power)
    sim.world.after(dice.randrange(2 * S), copy.machine.boot)
    return True


def cut_copy(sim: "Simulation") -> bool:
    """The feed that copies does not reach the venue's for a while."""
    return _cut(sim, "venue", "copy")


def kill_replica(sim: "Simulation") -> bool | None:
    """SIGKILL of the replica, at any time or at an operation on its snapshots."""
    assert sim.replica is not None, "the schedule has no such fault then"
    if sim.dice.random() < 0.7:
        return _end_at(sim, sim.replica, ("snapshots",), sim.replica.kill, SNAPSHOT_OPERATIONS)
    return _kill(sim.replica)


def lose_power_in_snapshot(sim: "Simulation") -> bool | None:
    """Power loss at an operation of the replica on its snapshots."""
    assert sim.replica is not None, "the schedule has no such fault then"
    return _end_at(sim, sim.replica, ("snapshots",), sim.lose_power, SNAPSHOT_OPERATIONS)


def archive(sim: "Simulation") -> bool:
    """An operator archives what no start needs."""
    if sim.archiver.is_running or sim.mending.is_busy or not sim.venue_machine.is_up:
        return False
    sim.archiver.start()
    return True


def die_in_archive(sim: "Simulation") -> bool | None:
    """The same, and the process or its machine ends at one of its operations."""
    dice = sim.dice
    end = dice.choice((sim.archiver.kill, sim.lose_power))

    def then() -> None:
        sim.note_fault("die_in_archive")
        end()

    if not movable_count(sim.disks):
        return False
    folder, at_max = dice.choice((("commands", 4), ("archive", 8)))
    is_applied = dice.random() < 0.5
    at = dice.randrange(1, at_max)
    fault = Fault("change", at, errno.EBADF, is_applied=is_applied, then=then)
    sim.disks.at_open["archive", folder] = [fault]
    return None if archive(sim) else False


def pause_replica(sim: "Simulation") -> bool:
    assert sim.replica is not None, "the schedule has no such fault then"
    return _pause(sim, sim.replica, 3 * S)


def replica_error(sim: "Simulation") -> bool | None:
    """An operation of the replica on its snapshots fails, or its sync of the event log."""
    assert sim.replica is not None, "the schedule has no such fault then"
    return _side_error(sim, sim.replica, sim.dice.choice(("snapshots", "events")))


Function = Callable[["Simulation"], bool | None]
"""Returns whether the fault has come; None: it is under way, and tells by itself."""

CRASHES: Final[dict[str, Function]] = {
    function.__name__: function
    for function in (
        *(kill, lose_power, flicker, kill_at, lose_power_at, kill_in_write),
        *(lose_power_in_write, kill_at_start, lose_power_at_start),
    )
}
_OTHERS: Final[tuple[Function, ...]] = (
    *(stop, pause, sync_error, write_error, folder_error, start_error, disk_full, slow_disk),
    *(rot_journal, rot_events, rot_snapshots, rot_checkpoint),
    *(partition, reset, slow_network, bad_lines, full_line, kill_client, lose_clients, set_clock),
    *(kill_feed, stop_feed, pause_feed, cut_feed, feed_error, kill_consumer),
    *(kill_copy, cut_copy),
    *(kill_replica, lose_power_in_snapshot, pause_replica, replica_error, archive, die_in_archive),
)
KINDS: Final[dict[str, Function]] = CRASHES | {function.__name__: function for function in _OTHERS}
READER_KINDS: Final = frozenset(
    {
        *("kill_feed", "stop_feed", "pause_feed", "cut_feed", "feed_error"),
        *("kill_consumer", "bad_lines", "full_line", "rot_checkpoint"),
    }
)
COPY_KINDS: Final = frozenset({"kill_copy", "cut_copy"})
REPLICA_KINDS: Final = frozenset(
    {
        *("kill_replica", "lose_power_in_snapshot", "pause_replica", "replica_error"),
        *("rot_snapshots", "archive", "die_in_archive"),
    }
)
