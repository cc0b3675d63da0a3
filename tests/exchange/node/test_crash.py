"""Power loss at random moments, two hundred times: what a client was told is there, once, and a
client that resumes has all of it.

Clients trade on a venue in memory whose disk forgets what was not synced; between the crashes
somebody takes snapshots, of any record. Whatever reached a client
must be in the recovered journal, byte for byte, under the same session and number; two recoveries
and a plain replay must agree on the whole state.
"""

from collections import Counter
from random import Random

import pytest

from exchange.core.engine import Engine
from journal import read_only
from protocol import wire
from protocol.framing import SEQUENCED
from protocol.order_entry import OrderAccepted
from protocol.records import EVENT_HEAD, REPORT
from tests.exchange.node.market import open_market
from tests.exchange.node.snapshots import take_snapshot
from tests.exchange.node.traders import Trader
from tests.exchange.node.world import World

RUNS = 20
CRASHES_PER_RUN = 10
TRADERS = 3
STEPS = 40


class Recorded:
    """What a recovered journal says: every report by session and number."""

    def __init__(self, world: World) -> None:
        self.engine = Engine()
        self.reports: dict[tuple[int, int], bytes] = {}
        self.accepted: Counter[tuple[int, int]] = Counter()
        for record in read_only(world.disk).records():
            events, events_crc = self.engine.replay(
                record.first_sequence, record.command_count, record.payload
            )
            assert events_crc == record.events_crc
            self._keep(events)

    def _keep(self, events: bytes) -> None:
        offset = 0
        while offset < len(events):
            length, kind, _, _, session, _, number, _, _ = EVENT_HEAD.unpack_from(events, offset)
            payload = events[offset + EVENT_HEAD.size : offset + length]
            offset += length
            if kind == REPORT:
                assert (session, number) not in self.reports
                self.reports[session, number] = payload
                message = wire.decode_venue(SEQUENCED, payload)
                if isinstance(message, OrderAccepted):
                    self.accepted[session, message.client_order_id] += 1


@pytest.mark.parametrize("seed", range(RUNS))
def test_what_was_acknowledged_survives_every_crash_once(seed: int) -> None:
    dice = Random(seed)
    world = World()
    world.boot()
    open_market(world, TRADERS)
    traders = [Trader(world, 2 + i, dice) for i in range(TRADERS)]
    for _ in range(CRASHES_PER_RUN):
        _live(world, traders, dice)
        for trader in traders:
            trader.forget_connection()
        world.crash(dice)
        recorded = Recorded(world)
        _check(traders, recorded)
        world.boot()
        assert world.engine.sequence > recorded.engine.sequence
        assert world.venue.close() is None
        again = Recorded(world)
        assert again.engine.digest() == world.engine.digest()
        # The next starts may use it, unless the log of events loses what it needs.
        take_snapshot(world, dice.randrange(1, world.engine.sequence + 1))
        world.boot()
        assert Recorded(world).engine.digest() == world.engine.digest()
        world.engine.check()
    lines = [line for line in world.lines if "event=recovered" in line]
    uses = sum("snapshot=0 " not in line for line in lines)
    assert uses > CRASHES_PER_RUN // 2, f"seed {seed}: snapshots were used in {uses} starts"
    recorded = Recorded(world)
    for trader in traders:
        trader.catch_up()
        of_session = [number for session, number in recorded.reports if session == trader.session]
        assert sorted(trader.reports) == sorted(of_session), f"seed {seed}: none is missing"
    _check(traders, recorded)
    assert sum(len(trader.reports) for trader in traders) > 100, f"seed {seed}: nothing happened"


def _live(world: World, traders: list[Trader], dice: Random) -> None:
    """Some turns of trading, with writes and syncs at moments of their own; ends anywhere."""
    world.hold()
    for _ in range(dice.randrange(STEPS)):
        dice.choice(traders).act()
        match dice.randrange(6):
            case 0:
                world.loop.sleep(dice.random() * 0.1)
            case 1:
                world.committer.write()
            case 2 | 3:
                world.committer.sync()
        world.loop.turn()
    if dice.random() < 0.5:
        world.committer.write()  # A torn record, perhaps.


def _check(traders: list[Trader], recorded: Recorded) -> None:
    for trader in traders:
        for number, payload in trader.reports.items():
            assert recorded.reports.get((trader.session, number)) == payload
    assert set(recorded.accepted.values()) <= {1}, "no order is there twice"
