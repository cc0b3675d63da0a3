"""Now and then somebody else logs on with the key and the session of a trader, who loses it so.

The newcomer sends nothing, and goes. The one that was there is told, and comes back. What of it was
under way must not be sequenced any more: see `truth.py`. The disk is slow meanwhile, so that there
is some time between the log-on and its record.
"""

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Final

from exchange.client import ClientError, connect
from tests.simulation.hosts import Task, client_surroundings
from tests.simulation.workload import Trader, private_key
from tests.simulation.world import MS, Process

if TYPE_CHECKING:
    from tests.simulation.run import Simulation

__all__ = ["TAKEOVER", "plan_takeovers"]

TAKEOVER: Final = "takeover"
CHANCE: Final = 0.1
"""That a seed has some."""
COUNT_MAX: Final = 16
STAY_NS_MAX: Final = 100 * MS
SLOW_NS: Final = 60 * MS
"""A write, and a sync, at most."""
NS_PER_S: Final = 1_000_000_000


def plan_takeovers(sim: "Simulation", begin_ns: int, length_ns: int) -> None:
    """Draw whether and when; the schedule of the seed stays as it is."""
    dice = sim.world.dice(TAKEOVER)
    if dice.random() >= CHANCE and sim.favored != TAKEOVER:
        return
    traders = [party for party in sim.parties if isinstance(party, Trader)]
    for number in range(dice.randrange(1, COUNT_MAX)):
        at_ns = begin_ns + dice.randrange(length_ns)
        trader, stay_s = dice.choice(traders), dice.randrange(STAY_NS_MAX) / NS_PER_S
        sim.world.at(at_ns, partial(_take, sim, number, trader, stay_s))


def _take(sim: "Simulation", number: int, trader: Trader, stay_s: float) -> None:
    if sim.is_calm or not sim.client_machine.is_up:
        return

    async def stay(process: Process) -> int:
        around = client_surroundings(process)
        key, session = private_key(trader.key), trader.session
        try:
            await connect(*sim.address, key=key, session=session, surroundings=around)
        except ClientError:
            return 0
        sim.note_fault(TAKEOVER)
        await asyncio.sleep(stay_s)
        return 0

    pace = sim.pace
    pace.thread_chance, pace.write_ns_max, pace.sync_ns_max = 1.0, SLOW_NS, SLOW_NS
    sim.world.after(3 * SLOW_NS, sim.calm_pace)
    unit = sim.client_machine.add(Task(f"newcomer-{number}", stay, sim.program))
    unit.start()
    unit.is_enabled = False  # It comes once.
