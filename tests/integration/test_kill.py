"""SIGKILL under load, again and again on one journal: nothing acknowledged is lost or done twice.

Four sessions keep orders in flight. When enough have been acknowledged the venue is killed in the
middle, and its journal is read from outside: every report that a client received must be there,
byte for byte. After the restart each session logs on with the report that it wants next, gets the
rest of its stream without a gap or a report twice, compares what the venue says it has with what
the journal has, sends the rest again under the same numbers, and some of it twice. In the end every
command that was ever sent is in the journal exactly once, and every report was received.

A consumer listens to the multicast all the time and must have the venue's books after each start.
Between the rounds the log of events is deleted, cut or spoiled, and must come back to the bytes
that the journal causes.

BRIER_KILL_ROUNDS is the number of rounds (50), BRIER_KILL_SEED repeats a failed run.
"""

import os
import random
import shutil
from pathlib import Path
from typing import Final

from protocol import wire
from protocol.codes import CancelOnDisconnect
from protocol.order_entry import NewOrder, ReplaceOrder
from tests.integration.market import make_market, make_venue
from tests.integration.onlooker import Onlooker
from tests.integration.replica import Replica
from tests.integration.traders import INSTRUMENT_COUNT, Trader, make_traders, trade
from tools.venue_process import VenueProcess

ROUNDS: Final = int(os.environ.get("BRIER_KILL_ROUNDS", "50"))
ACKNOWLEDGED_MIN: Final = 200
ACKNOWLEDGED_EXTRA: Final = 400
WORK_PER_COMMAND_MAX: Final = 4
"""Small, so that large orders need continuations, which a kill may separate from their cause."""
MODES: Final = [
    CancelOnDisconnect.NEVER,
    CancelOnDisconnect.NEVER,
    CancelOnDisconnect.ALWAYS,
    CancelOnDisconnect.NEVER,
]
"""The third session loses its orders in each round; the others keep theirs."""


def run_round(
    venue: VenueProcess,
    traders: list[Trader],
    replica: Replica,
    onlooker: Onlooker,
    rng: random.Random,
) -> int:
    """Start, trade, kill, compare; the number of acknowledged commands."""
    spoil_events(venue, rng)
    venue.start()
    if rng.random() < 0.1:  # Killed before anybody came: a start must survive a start.
        venue.kill()
        venue.start()
    check_public(venue, replica, onlooker)
    for trader in traders:
        trader.log_on(venue.address, replica)
    trade(traders, ACKNOWLEDGED_MIN + rng.randrange(ACKNOWLEDGED_EXTRA), onlooker.read)
    if rng.random() < 0.5:  # Half of the kills meet a venue that has just got a burst.
        for trader in traders:
            trader.fill_up()
    venue.kill()
    replica.catch_up()
    for trader in traders:
        trader.leave(replica)
    return sum(trader.acknowledged_count for trader in traders)


def spoil_events(venue: VenueProcess, rng: random.Random) -> None:
    """What may become of a log that is not synced, and of one that somebody tidied up."""
    folder = events_folder(venue)
    files = sorted(folder.glob("*.events"))
    fate = rng.randrange(5)
    if fate == 0:
        shutil.rmtree(folder)
    elif fate == 1:
        rng.choice(files).unlink()
    elif fate == 2:
        path = files[-1]
        os.truncate(path, rng.randrange(path.stat().st_size + 1))
    elif fate == 3:
        path = files[-1]
        content = bytearray(path.read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)


def check_public(venue: VenueProcess, replica: Replica, onlooker: Onlooker) -> None:
    """After a start, before anybody is connected: books and log of events follow from the journal.

    The venue says that it is ready when all that it did by itself is durable and has left.
    """
    replica.catch_up()
    onlooker.wait_for(dict(replica.engine.channels())[1])
    assert onlooker.receiver.is_complete
    assert onlooker.receiver.public_digest() == replica.engine.public_digest()
    files = {path.name: path.read_bytes() for path in events_folder(venue).glob("*.events")}
    assert files == replica.event_files.images(), "not what the journal causes"


def events_folder(venue: VenueProcess) -> Path:
    return venue.folder / "data" / "events"


def finish(
    venue: VenueProcess, traders: list[Trader], replica: Replica, onlooker: Onlooker
) -> dict[str, str]:
    """The last start: everything is sent that is not there yet, answered, and the venue stopped."""
    venue.start()
    for trader in traders:
        trader.log_on(venue.address, replica)
        assert trader.peer is not None
        trader.peer.flush()
    for trader in traders:
        while trader.unanswered:
            trader.read()
    stopped = venue.stop()
    replica.catch_up()
    for trader in traders:
        trader.leave(replica)
        assert trader.received == replica.reports[trader.session_id], "every report, once"
    onlooker.wait_for(dict(replica.engine.channels())[1])
    assert onlooker.receiver.is_complete
    assert onlooker.receiver.public_digest() == stopped["public_digest"]
    assert replica.engine.public_digest() == stopped["public_digest"]
    return stopped


def check_once(traders: list[Trader], replica: Replica) -> None:
    """Every command is in the journal once, and no client order id was taken twice."""
    for trader in traders:
        journaled = replica.commands[trader.session_id]
        assert list(journaled) == list(range(1, len(trader.sent) + 1)), "once each, in order"
        order_ids = [
            message.client_order_id
            for message in map(wire.decode_command, journaled.values())
            if isinstance(message, NewOrder | ReplaceOrder)
        ]
        assert order_ids == list(range(1, trader.last_order_id + 1))


def test_nothing_acknowledged_is_lost_or_done_twice(tmp_path: Path) -> None:
    seed = os.environ.get("BRIER_KILL_SEED") or str(random.randrange(10**9))
    print(f"BRIER_KILL_SEED={seed}")
    rng = random.Random(seed)
    with make_venue(tmp_path / "venue", work_per_command_max=WORK_PER_COMMAND_MAX) as venue:
        venue.start()
        onlooker = Onlooker(*venue.market_data)
        firms = make_market(venue, ["ada", "bob", "cyd", "dot"], INSTRUMENT_COUNT)
        traders = make_traders(firms, MODES, seed)
        venue.kill()
        replica = Replica(venue.folder)
        replica.catch_up()
        for index in range(ROUNDS):
            acknowledged_count = run_round(venue, traders, replica, onlooker, rng)
            assert acknowledged_count >= ACKNOWLEDGED_MIN, f"round {index} was idle"
            replica.engine.check()
        stopped = finish(venue, traders, replica, onlooker)
        onlooker.close()
    assert sum(trader.lost_count for trader in traders), "no kill met commands on their way in"
    assert sum(trader.unheard_count for trader in traders), "nor answers on their way out"
    assert sum(trader.resumed_count for trader in traders), "no log-on had anything to resume"
    segments = list(venue.folder.glob("data/commands/*.segment"))
    assert len(segments) > 1 or ROUNDS < 20, "no kill can have met the begin of a segment"
    check_once(traders, replica)
    again = Replica(venue.folder)
    again.catch_up()
    again.engine.check()
    digests = {engine.digest() for engine in (replica.engine, again.engine)}
    assert digests == {stopped["digest"]}
    assert replica.engine.book_digest() == stopped["book_digest"]
    assert int(stopped["sequence"]) == replica.engine.sequence
