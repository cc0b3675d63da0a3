"""The journal rots while nobody looks, the venue refuses to start, and an operator mends it.

What `exchange journal restore` and `repair` do, on the simulated disks, in a process that may die
at any operation and is run again then; before and after it what the RUNBOOK says. How much can be
kept is known here from the damage that was done: no less may be left. What is lost is in the list
that the repair has written, a copy of it is kept, the epoch is another one, and truth and watch go
back to what is left: from then on everything is compared with that.
"""

import errno
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Final, NamedTuple

from exchange.node.failure import Exit as Code
from journal import JournalError, SnapshotFolder
from journal.archive import restore_segments
from journal.copies import OperationRefused
from journal.damage import diagnose
from journal.faulty import Fault
from journal.findings import COMMANDS, EVENTS, SNAPSHOTS, Diagnosis, Folders
from journal.memory import MemoryStorage
from journal.repair import repair
from tests.simulation.archiving import NO_RESTART, is_archived, movable_count
from tests.simulation.disks import SECTOR_SIZE, DurableRecord
from tests.simulation.units import Unit
from tests.simulation.world import MS, Exit, Process, S
from tools.entries import command_entries, format_entry
from tools.journal_repair import LOST_NAME, lost_chunks
from tools.journal_snapshots import can_restore

if TYPE_CHECKING:
    from tests.simulation.run import Simulation

__all__ = ["REPAIRS", "Mending", "RepairProgram"]

BIT, LOSS, RESTORE, BOTH = "repair_bit", "repair_loss", "repair_restore", "repair_both"
REPAIRS: Final = (BIT, LOSS, LOSS, RESTORE, BOTH)
"""A bit flips that can be put back; durable records are lost; the archive has what is damaged; it
has what a start needs, and durable records behind that are lost."""
CHANCE: Final = 0.1
"""That a seed has one of these."""
DEATH_CHANCE: Final = 0.7
"""That the repair, or its machine, ends at one of its operations."""
RETRY_NS: Final = 100 * MS
TRIES_MAX: Final = 12
RECORDS_BEFORE: Final = 40
"""Durable records since everybody has logged on: what they stand on is not lost."""
LOST_SHARE_MAX: Final = 0.3
"""Of all durable records: enough is to be left for a seed."""

DONE, FAILED, REFUSED = 0, 1, 64
DEATHS: Final = (COMMANDS, COMMANDS, COMMANDS, EVENTS, SNAPSHOTS, "repair-1")
"""Folders at whose operations a repair dies."""
OPERATIONS_MAX: Final = 12


class RepairProgram:
    """An operator at the folders of a venue that is stopped: `restore` where there is an archive
    that may help, and `repair`."""

    def __init__(self) -> None:
        self.name = "repair"
        self.rules = NO_RESTART
        self.head_sequence = 0
        """Where the journal ends that the last run has left."""
        self.aside_count = 0
        """Folders of copies."""
        self.is_restored = False

    async def main(self, unit: Unit, process: Process) -> int:
        try:
            return self._mend(unit, process)
        except (JournalError, OSError) as error:
            process.world.note(repr(process), "failed", error)
            return FAILED

    def _mend(self, unit: Unit, process: Process) -> int:
        disk, note = unit.machine.disk, process.world.note
        opened = [disk.open(process, name) for name in (COMMANDS, EVENTS, SNAPSHOTS, "feed")]
        commands, events, snapshots, feed = opened
        for storage in (commands, snapshots, feed):
            storage.lock()
        folders = Folders(commands, events, snapshots)

        def say(line: str) -> None:
            note(repr(process), "says", line)

        found = diagnose(folders, can_restore)
        is_wanted = found.is_lossy or found.is_archived_new or found.obstacle
        archive = disk.open(process, "archive")
        if is_wanted and not self.is_restored and archive.names():
            try:
                restore_segments(archive, commands, say)
            except OperationRefused as error:
                say(f"{error}")
            self.is_restored = True
            found = diagnose(folders, can_restore)
        if found.is_whole:
            self.head_sequence = found.head.sequence
            return DONE
        if found.obstacle:
            say(f"no repair is possible: {found.obstacle}")
            return REFUSED
        self.aside_count += 1
        aside = disk.open(process, f"repair-{self.aside_count}")
        repair(folders, found, aside, {LOST_NAME: lost_chunks(folders, found)}, _page(found), say)
        self.head_sequence = found.head.sequence
        return DONE


def _segments(folder: MemoryStorage) -> list[str]:
    return [name for name in folder.names() if name.endswith(".segment")]


def _page(found: Diagnosis) -> str:
    return "".join(f"{place}: {text}\n" for place, text in found.findings)


class _Place(NamedTuple):
    """Where a segment is damaged."""

    segment: int
    offset: int


class Mending:
    """See the module. It draws when and what for itself, so that the schedule of a seed stays."""

    def __init__(self, sim: "Simulation") -> None:
        self.is_damaged = False
        """From the damage to the end of the repair."""
        self.is_working = False
        """Whether everything is stopped for the repair."""
        self.loss_count = 0
        self.lost_count = 0
        """Durable commands that are lost."""
        self.program = RepairProgram()
        self.unit = sim.venue_machine.add(self.program)
        self._sim = sim
        self._dice = sim.world.dice("repair")
        self.is_busy = False
        """From the damage until the venue has started."""
        self._record_floor = 0
        self._must_keep = 0
        self._before: dict[str, bytes] = {}
        self._try_count = 0
        self._epoch = 0
        self._new_epochs = 0  # repairs since the last start
        self._is_lossy = False
        self._copies_cleared = 0

    def plan(self, begin_ns: int, length_ns: int) -> None:
        """Draw whether and when."""
        dice, world = self._dice, self._sim.world
        is_wanted, kind = dice.random() < CHANCE, dice.choice(REPAIRS)
        if self._sim.favored in REPAIRS:
            is_wanted, kind = True, self._sim.favored
        at_ns = begin_ns + dice.randrange(length_ns // 4, length_ns)
        if is_wanted:
            world.at(at_ns, lambda: self._try(kind, begin_ns + length_ns))

    def _try(self, kind: str, end_ns: int) -> None:
        sim = self._sim
        if sim.is_calm:
            return
        is_late = sim.world.now_ns > end_ns - S
        is_possible = kind not in (RESTORE, BOTH) or self._has_archive()
        if self._can_begin() and (is_possible or is_late):
            self._begin(kind if is_possible else BIT)
        else:
            sim.world.after(RETRY_NS, lambda: self._try(kind, end_ns))

    def _archived(self) -> list[str]:
        """The segments that the archive has."""
        return _segments(self._sim.disks.folder("archive"))

    def _has_archive(self) -> bool:
        """Whether there is one; else it is begun, if it can be."""
        if self._archived():
            return True
        if movable_count(self._sim.disks):
            self._sim.archiver.start()
        return False

    def _can_begin(self) -> bool:
        sim = self._sim
        records = sim.truth.records
        if not self._record_floor and all(party.session_id for party in sim.parties):
            self._record_floor = len(records)
        return (
            bool(self._record_floor)
            and len(records) >= self._record_floor + RECORDS_BEFORE
            and sim.venue.is_ready
            and sim.rot.journal is None
            and not sim.archiver.is_running
        )

    # The damage.

    def _begin(self, kind: str) -> None:
        """The venue, or its machine, ends, and the disk rots before anybody starts again."""
        sim, dice = self._sim, self._dice
        if dice.random() < 0.5:
            sim.lose_power()
        else:
            for unit in (sim.venue, sim.replica):
                if unit is not None:
                    unit.kill()
        sim.archiver.stop()  # Its timer: a person is called before it comes again.
        sim.note_fault(kind)
        sim.rot.journal_count += 1
        self.is_busy = self.is_damaged = True
        self._try_count = 0
        self._must_keep = sim.truth.sequence
        if kind in (LOSS, BOTH):
            self._is_lossy = True
            self._lose(has_archive=kind == BOTH)
        else:
            (self._flip if kind == BIT else self._damage_archived)()
        self._before = sim.disks.folder(COMMANDS).images()

    def _flip(self) -> None:
        """A bit of a record behind which there are others, or of the head of a segment."""
        sim, dice = self._sim, self._dice
        records = [record for record in sim.truth.records[:-1] if self._name_of(record)]
        record = dice.choice(records)
        name = self._name_of(record)
        start, size = record.start, record.end - record.start
        if dice.random() < 0.3:
            start, size = 0, SECTOR_SIZE
        bit = 8 * start + dice.randrange(8 * size)
        sim.disks.folder(COMMANDS).flip(name, bit)
        self._tell(f"bit {bit} of {name}")
        self._keep_snapshots(_Place(record.segment, start))

    def _lose(self, *, has_archive: bool) -> None:
        """Something that cannot be put back, in one of the last records that are here."""
        sim, dice = self._sim, self._dice
        records = sim.truth.records
        first = max(self._record_floor, int(len(records) * (1 - LOST_SHARE_MAX)))
        while not self._name_of(records[first]):
            first += 1
        if has_archive:
            self._wipe(SNAPSHOTS)
            self._remove(first)
            return
        choices: list[Callable[[int], None]] = [
            self._flip_last,
            self._cut,
            self._scramble,
            self._remove,
        ]
        dice.choice(choices)(first)

    def _flip_last(self, first: int) -> None:
        """One bit of the last record: most of the times nothing proves what it was."""
        del first
        record = self._sim.truth.records[-1]
        start = record.start
        bit = 8 * start + self._dice.randrange(8 * (record.end - start))
        self._sim.disks.folder(COMMANDS).flip(self._name_of(record), bit)
        self._damaged(record, f"bit {bit} of the last record")

    def _cut(self, first: int) -> None:
        """A segment ends in the middle of a record."""
        record = self._dice.choice(self._sim.truth.records[first:])
        name, folder = self._name_of(record), self._sim.disks.folder(COMMANDS)
        offset = self._dice.randrange(record.start, record.end)
        folder.put(name, folder.images()[name][:offset])
        self._damaged(record, f"{name} ends at {offset}")

    def _scramble(self, first: int) -> None:
        """A record that is not the last one is something else."""
        record = self._dice.choice(self._sim.truth.records[first:-1])
        name, folder = self._name_of(record), self._sim.disks.folder(COMMANDS)
        content, start = bytearray(folder.images()[name]), record.start
        content[start : record.end] = self._dice.randbytes(record.end - start)
        folder.put(name, bytes(content))
        self._damaged(record, f"the record at {start} of {name}")

    def _remove(self, first: int) -> None:
        """A segment is gone, and a later one is there; the archive has not the one that is gone."""
        records = self._sim.truth.records
        folder = self._sim.disks.folder(COMMANDS)
        names = _segments(folder)
        begins = {
            record.segment: record
            for record, before in zip(records[first:], records[first - 1 :], strict=False)
            if record.segment != before.segment
            and record.segment < int(names[-1][:20])
            and self._name_of(record) not in ("", *self._archived())
        }
        if not begins:
            self._scramble(first)
            return
        record = self._dice.choice([*begins.values()])
        name = self._name_of(record)
        folder.remove(name)
        folder.sync_folder()
        self._damaged(record, f"{name} is gone", offset=SECTOR_SIZE)

    def _damaged(self, record: DurableRecord, what: str, offset: int | None = None) -> None:
        """This record, and what is behind it, may be lost."""
        self._must_keep = record.first_sequence - 1
        self._tell(what)
        start = offset if offset is not None else record.start
        self._keep_snapshots(_Place(record.segment, start))

    def _damage_archived(self) -> None:
        """What needs the archive: no snapshot is left, and of the segments that are here as well,
        since they were brought back, one is damaged or gone."""
        dice, commands = self._dice, self._sim.disks.folder(COMMANDS)
        self._wipe(SNAPSHOTS)
        self._wipe(EVENTS)
        names = [name for name in self._archived() if name in commands.names()]
        if names:
            name = dice.choice(names)
            content = commands.images()[name]
            if dice.random() < 0.3:
                commands.remove(name)
                commands.sync_folder()
            else:
                commands.put(name, content[: dice.randrange(len(content))])
            self._tell(f"{name}, which the archive has")
        if dice.random() < 0.5 or (not names and not is_archived(commands)):
            self._flip()

    def _keep_snapshots(self, place: _Place) -> None:
        """Those of before the damage: from others the venue would start as if nothing was wrong."""
        disks = self._sim.disks
        heads = SnapshotFolder(disks.folder(SNAPSHOTS)).heads()
        if any((head.commands_segment, head.record_offset) > place for head in heads):
            self._wipe(SNAPSHOTS)
            if self._dice.random() < 0.5:
                self._wipe(EVENTS)

    def _wipe(self, folder: str) -> None:
        self._sim.rot.spoiled_count += 1
        self._sim.disks.wipe(folder)

    def _name_of(self, record: DurableRecord) -> str:
        """Of its segment; "" when that is archived."""
        names = self._sim.disks.folder(COMMANDS).names()
        begin = f"{record.segment:020}-"
        found = [name for name in names if name.startswith(begin) and name.endswith(".segment")]
        return found[0] if found else ""

    def _tell(self, what: str) -> None:
        self._sim.story.append(f"{'':14} damaged: {what}")
        self._sim.world.note("rot", "damaged", what)

    # The repair.

    def gave_up(self, unit: Unit, exit: Exit) -> bool:
        """A unit waits for a person; whether it is seen to here."""
        sim = self._sim
        if unit is self.unit:
            self._end_of_run(exit)
            return True
        if unit is sim.copy and self._copies_cleared < self.loss_count:
            # It is sure that the log of the venue is the right one.
            self._copies_cleared = self.loss_count
            for folder in (EVENTS, "data", "feed"):
                sim.copy_disks.wipe(folder)
        if unit is not sim.venue or not self.is_damaged or exit.code != Code.JOURNAL_DAMAGED:
            return False
        self.is_working = True
        self.program.is_restored = False
        for service in sim.services:
            service.stop()
        self._go_on()
        return True

    def _go_on(self) -> None:
        """Begin, or run it again, once nothing else runs."""
        sim = self._sim
        if not self.is_working:
            return
        is_free = not any(unit.is_running for unit in (*sim.services, self.unit))
        if not is_free or not sim.venue_machine.is_up:
            sim.world.after(RETRY_NS, self._go_on)
            return
        self._try_count += 1
        if self._try_count > TRIES_MAX:
            sim.world.fail("the repair does not work")
            return
        sim.make_room()
        if not sim.is_calm and self._dice.random() < DEATH_CHANCE:
            self._draw_death(self._dice)
        self.unit.start()

    def _draw_death(self, dice: Random) -> None:
        sim = self._sim
        end = dice.choice((self.unit.kill, sim.lose_power))

        def then() -> None:
            sim.note_fault("die_in_repair")
            end()

        at, is_applied = dice.randrange(1, OPERATIONS_MAX), dice.random() < 0.5
        fault = Fault("change", at, errno.EBADF, is_applied=is_applied, then=then)
        sim.disks.at_open["repair", dice.choice(DEATHS)] = [fault]

    def _end_of_run(self, exit: Exit) -> None:
        sim = self._sim
        if exit.code == REFUSED:
            sim.world.fail("no repair is possible")
        elif exit.code != DONE:
            sim.world.after(self._dice.randrange(1, S), self._go_on)
        elif self.is_working:
            self._finish(self.program.head_sequence)

    def _finish(self, head_sequence: int) -> None:
        """The journal is whole: what became of it?"""
        sim, truth = self._sim, self._sim.truth
        if head_sequence < self._must_keep:
            sim.world.fail(f"kept to sequence {head_sequence}, could be to {self._must_keep}")
        lost = [record for record in truth.records if record.last_sequence > head_sequence]
        if lost:
            _check_lost(sim, lost, self._before, self.program.aside_count)
            self.loss_count += 1
            self.lost_count += sum(record.command_count for record in lost)
            truth.rewind(head_sequence)
            sim.disks.watch.rewind(truth.records[-1])
            self._leave_archive()
        self.is_damaged = self.is_working = False
        self._new_epochs += 1
        self.unit.stop()
        for service in sim.services:
            service.start()

    def _leave_archive(self) -> None:
        """Where the journal ends in a segment that was archived, another archive is begun."""
        sim = self._sim
        commands = sim.disks.folder(COMMANDS)
        if self._archived() and max(_segments(commands)) <= max(self._archived()):
            if is_archived(commands):
                sim.world.fail("segments that were archived are not here, and later ones are cut")
            sim.disks.wipe("archive")

    def started(self, epoch: int) -> None:
        """The venue has recovered, in this epoch."""
        sim, truth = self._sim, self._sim.truth
        if self.is_damaged:
            sim.world.fail("the venue has started on a journal that lacks records")
        is_lost = len(truth.eras) > 1 and truth.epochs.get(self._epoch) is not truth.eras[-1]
        may_change = bool(self._new_epochs) and self._is_lossy
        if is_lost and epoch in truth.epochs:
            sim.world.fail(f"durable records are lost, and the epoch is {epoch} again")
        if self._epoch and epoch != self._epoch and not (is_lost or may_change):
            sim.world.fail(f"the epoch is {epoch}, it was {self._epoch}, and nothing is lost")
        self._epoch, self._new_epochs, self.is_busy = epoch, 0, self.is_damaged
        truth.begin_epoch(epoch)


def _check_lost(
    sim: "Simulation", lost: list[DurableRecord], before: dict[str, bytes], aside_count: int
) -> None:
    """What is lost, and could be read, is listed, and nothing else is; the copies have it."""
    asides = [sim.disks.folder(f"repair-{number + 1}") for number in range(aside_count)]
    listed = {
        line
        for aside in asides
        for line in aside.images().get(LOST_NAME, b"").decode().splitlines()
        if line[:1].isdigit()
    }
    expected: set[str] = set()
    for record in lost:
        lines = {
            format_entry(one) for one in command_entries(record.first_sequence, record.payload)
        }
        expected |= lines
        name = next((name for name in before if name.startswith(f"{record.segment:020}-")), "")
        if not record.is_in(before.get(name, b"")):
            continue
        if not lines <= listed:
            sim.world.fail(f"the list of what is lost lacks the record of {record.first_sequence}")
        copies = [aside.images().get(f"{COMMANDS}-{name}", b"") for aside in asides]
        if not any(record.is_in(copy) for copy in copies):
            sim.world.fail(f"there is no copy of the record of {record.first_sequence}")
    strange = [line for line in listed - expected if int(line.split()[0]) <= sim.truth.sequence]
    if strange:
        sim.world.fail(f"listed as lost, and is not: {min(strange)}")
