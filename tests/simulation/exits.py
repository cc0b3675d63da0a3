"""With which exit codes the processes of a venue's machine may end, and when."""

from typing import TYPE_CHECKING

from exchange.node.failure import Exit as Code
from tests.simulation.archiving import is_archived
from tests.simulation.units import Unit
from tests.simulation.world import Exit

if TYPE_CHECKING:
    from tests.simulation.run import Simulation

__all__ = ["is_other_expected", "is_venue_expected"]


def is_other_expected(sim: "Simulation", unit: Unit, exit: Exit) -> bool:
    """Of the feed, or the replica; what clients and consumers end with, they say themselves."""
    if unit.machine is not sim.venue_machine and unit is not sim.copy:
        return True
    return {
        int(Code.STOPPED): not unit.is_enabled,
        int(Code.STORAGE_FAILED): sim.disks.may_fail,
        int(Code.JOURNAL_DAMAGED): sim.rot.journal_count > 0 or sim.faults["rot_events"] > 0,
    }.get(exit.code, False)


def is_venue_expected(sim: "Simulation", exit: Exit, may_fail: bool) -> bool:
    """`may_fail`: whether an operation on its disks was made to fail."""
    is_damaged = sim.rot.journal is not None or sim.mending.is_damaged
    return {
        int(Code.STOPPED): not sim.venue.is_enabled,
        int(Code.STORAGE_FAILED): may_fail,
        int(Code.JOURNAL_DAMAGED): is_damaged or _lacks_segments(sim),
    }.get(exit.code, False)


def _lacks_segments(sim: "Simulation") -> bool:
    """Whether segments are archived, and snapshots or events were spoiled, so that a start may need
    them."""
    is_spoiled = sim.faults["rot_events"] or sim.faults["rot_snapshots"] or sim.rot.journal_count
    return bool(is_spoiled) and is_archived(sim.disks.folder("commands"))
