"""SIGKILL under load, again and again on one journal: nothing acknowledged is lost or done twice.

Eight sessions keep orders in flight. When enough have been acknowledged the venue is killed in the
middle, and its journal is read from outside: every report that a client received must be there,
byte for byte. After the restart each session logs on with the report that it wants next, gets the
rest of its stream without a gap or a report twice, compares what the venue says it has with what
the journal has, sends the rest again under the same numbers, and some of it twice. In the end every
command that was ever sent is in the journal exactly once, and every report was received.

A consumer listens to the multicast all the time and must have the venue's books after each start.
A replica makes snapshots all the time, and is killed now and then too. Between the rounds the log
of events and the newest snapshot are deleted, cut or spoiled: events must come back to the bytes
that the journal causes, and a start must replay no more than what follows the newest snapshot that
can be used. How long the starts took is printed.

BRIER_KILL_ROUNDS is the number of rounds (20), BRIER_KILL_SEED repeats a failed run.
"""

import os
import random
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from exchange.core.replay import replay_record, restore_engine
from journal import FolderStorage, SnapshotDamaged, SnapshotFolder, events_reach, read_only
from protocol import wire
from protocol.codes import CancelOnDisconnect
from protocol.order_entry import NewOrder, ReplaceOrder
from tests.integration.market import make_market, make_venue
from tests.integration.onlooker import Onlooker
from tests.integration.replica import Replica
from tests.integration.traders import INSTRUMENT_COUNT, Trader, make_traders, trade
from tools.venue_process import ReplicaProcess, VenueProcess
from tools.venue_settings import change_settings

pytestmark = pytest.mark.once

ROUNDS: Final = int(os.environ.get("BRIER_KILL_ROUNDS", "20"))
ACKNOWLEDGED_MIN: Final = 200
ACKNOWLEDGED_EXTRA: Final = 400
WORK_PER_COMMAND_MAX: Final = 4
"""Small, so that large orders need continuations, which a kill may separate from their cause."""
NAMES: Final = ["ada", "bob", "cyd", "dot", "eve", "fay", "gus", "hal"]
MODES: Final = [CancelOnDisconnect.NEVER, CancelOnDisconnect.NEVER, CancelOnDisconnect.ALWAYS]
"""Every third session loses its orders in each round; the others keep theirs."""
SNAPSHOT_COMMANDS: Final = 100
"""Between two snapshots: there are several in each round."""

_RECOVERED: Final = re.compile(
    r"event=recovered sequence=(\d+) snapshot=(\d+) commands=(\d+) duration_ms=(\d+)"
)


class Starts:
    """Starts the venue, and knows what each start had to go by. Times in seconds."""

    def __init__(self, venue: VenueProcess, replica: Replica) -> None:
        self._venue = venue
        self._replica = replica
        self.times_s: list[float] = []
        self.command_counts: list[int] = []
        self.snapshot_count = 0  # starts that went on from a snapshot

    def start(self) -> None:
        """Start; it must have replayed what follows the newest snapshot that can be used."""
        self._replica.catch_up()
        end = self._replica.engine.sequence
        newest = newest_usable(self._venue)
        log = self._venue.log_path
        log_size = log.stat().st_size
        start_ns = time.monotonic_ns()
        self._venue.start()
        self.times_s.append((time.monotonic_ns() - start_ns) / 10**9)
        with log.open() as lines:
            lines.seek(log_size)
            found = _RECOVERED.search(lines.read())
        assert found is not None, "a start says what it has done"
        sequence, snapshot, command_count, _ = map(int, found.groups())
        assert sequence == end
        # The replica may have made another one meanwhile.
        assert snapshot >= newest, f"{newest} could be used, {snapshot} was"
        assert command_count == end - snapshot
        self.command_counts.append(command_count)
        self.snapshot_count += bool(snapshot)

    def report(self) -> str:
        """One line about all starts."""
        times = sorted(self.times_s)
        return (
            f"{len(times)} starts, {self.snapshot_count} from a snapshot, "
            f"{times[len(times) // 2]:.2f} s median, {times[-1]:.2f} s at most; "
            f"{max(self.command_counts)} commands replayed at most"
        )


def newest_usable(venue: VenueProcess) -> int:
    """Sequence of the newest snapshot that is whole and that events/ reach, 0: there is none."""
    data = venue.folder / "data"
    folder = SnapshotFolder(FolderStorage(data / "snapshots", is_read_only=True))
    events = FolderStorage(data / "events", is_read_only=True)
    for head in folder.heads():
        with suppress(SnapshotDamaged):
            folder.read(head)
            if events_reach(events, head):
                return head.sequence
    return 0


@dataclass(frozen=True, slots=True)
class Scene:
    """All who take part. `snapshotter` is the process, `replica` the reader that compares."""

    venue: VenueProcess
    snapshotter: ReplicaProcess
    traders: list[Trader]
    replica: Replica
    onlooker: Onlooker
    starts: Starts
    random: random.Random


def run_round(scene: Scene) -> int:
    """Start, trade, kill, compare; the number of acknowledged commands."""
    venue, traders, replica, rng = scene.venue, scene.traders, scene.replica, scene.random
    spoil(rng, sorted(events_folder(venue).glob("*.events")))
    if scene.snapshotter.process is None:
        spoil(rng, sorted((venue.folder / "data" / "snapshots").glob("*.snapshot")))
        scene.snapshotter.begin()
    scene.starts.start()
    if rng.random() < 0.1:  # Killed before anybody came: a start must survive a start.
        venue.kill()
        scene.starts.start()
    check_public(venue, replica, scene.onlooker)
    for trader in traders:
        trader.log_on(venue.address, replica)
    goal = ACKNOWLEDGED_MIN + rng.randrange(ACKNOWLEDGED_EXTRA)
    if rng.random() < 0.3:
        trade(traders, rng.randrange(goal), scene.onlooker.read)
        assert scene.snapshotter.process is not None
        assert scene.snapshotter.process.poll() is None, scene.snapshotter.log_path.read_text()
        scene.snapshotter.kill()
    trade(traders, goal, scene.onlooker.read)
    if rng.random() < 0.5:  # Half of the kills meet a venue that has just got a burst.
        for trader in traders:
            trader.fill_up()
    venue.kill()
    replica.catch_up()
    for trader in traders:
        trader.leave(replica)
    return sum(trader.acknowledged_count for trader in traders)


def spoil(rng: random.Random, files: list[Path]) -> None:
    """What may become of files that are not synced, and of a folder that somebody tidied up."""
    fate = rng.randrange(6)
    if not files:
        return
    if fate == 0:
        for path in files:
            path.unlink()
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
    check_events(venue, replica, suffix=".events")  # The index of a full one may still be made.


def check_events(venue: VenueProcess, replica: Replica, suffix: str = "") -> None:
    """The log of events has the bytes that the journal causes."""
    files = {path.name: path.read_bytes() for path in events_folder(venue).glob(f"*{suffix}")}
    images = replica.event_files.images()
    expected = {name: content for name, content in images.items() if name.endswith(suffix)}
    assert files == expected, "not what the journal causes"


def events_folder(venue: VenueProcess) -> Path:
    return venue.folder / "data" / "events"


def finish(scene: Scene) -> dict[str, str]:
    """The last start: everything is sent that is not there yet, the replica makes a snapshot, and
    the venue is stopped when all is answered."""
    venue, traders, replica, onlooker = scene.venue, scene.traders, scene.replica, scene.onlooker
    if scene.snapshotter.process is None:
        scene.snapshotter.begin()
    scene.starts.start()
    for trader in traders:
        trader.log_on(venue.address, replica)
        assert trader.peer is not None
        trader.peer.flush()
    begin = int(venue.ready["sequence"])
    while newest_usable(venue) <= begin:
        count = sum(trader.acknowledged_count for trader in traders)
        trade(traders, count + SNAPSHOT_COMMANDS, onlooker.read)
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
    check_events(venue, replica)
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


def check_snapshots(venue: VenueProcess, digest: str) -> int:
    """Each snapshot that is left leads to the same end; how many these are."""
    data = venue.folder / "data"
    folder = SnapshotFolder(FolderStorage(data / "snapshots", is_read_only=True))
    heads = folder.heads()
    for head in heads:
        engine = restore_engine(head, folder.read(head))
        commands = FolderStorage(data / "commands", is_read_only=True)
        for record in read_only(commands, start=head).records():
            replay_record(engine, record)
        assert engine.digest() == digest
    return len(heads)


def test_nothing_acknowledged_is_lost_or_done_twice(tmp_path: Path) -> None:
    seed = os.environ.get("BRIER_KILL_SEED") or str(random.randrange(10**9))
    print(f"BRIER_KILL_SEED={seed}")
    venue = make_venue(tmp_path / "venue", work_per_command_max=WORK_PER_COMMAND_MAX)
    change_settings(venue.folder / "exchange.toml", {"snapshots.every_commands": SNAPSHOT_COMMANDS})
    with venue, ReplicaProcess(venue.folder) as snapshotter:
        venue.start()
        onlooker = Onlooker(*venue.market_data)
        firms = make_market(venue, NAMES, INSTRUMENT_COUNT)
        modes = [MODES[index % len(MODES)] for index in range(len(firms))]
        traders = make_traders(firms, modes, seed)
        snapshotter.start()
        venue.kill()
        replica = Replica(venue.folder)
        starts = Starts(venue, replica)
        rng = random.Random(seed)
        scene = Scene(venue, snapshotter, traders, replica, onlooker, starts, rng)
        for index in range(ROUNDS):
            acknowledged_count = run_round(scene)
            assert acknowledged_count >= ACKNOWLEDGED_MIN, f"round {index} was idle"
            replica.engine.check()
        stopped = finish(scene)
        onlooker.close()
        assert int(snapshotter.stop()["sequence"]) <= int(stopped["sequence"])
    print(starts.report())
    assert starts.snapshot_count or ROUNDS < 10, "snapshots were of no use"
    assert sum(trader.lost_count for trader in traders), "no kill met commands on their way in"
    assert sum(trader.unheard_count for trader in traders), "nor answers on their way out"
    assert sum(trader.resumed_count for trader in traders), "no log-on had anything to resume"
    segments = list(venue.folder.glob("data/commands/*.segment"))
    assert len(segments) > 1 or ROUNDS < 20, "no kill can have met the begin of a segment"
    check_once(traders, replica)
    assert check_snapshots(venue, stopped["digest"])
    again = Replica(venue.folder)
    again.catch_up()
    again.engine.check()
    digests = {engine.digest() for engine in (replica.engine, again.engine)}
    assert digests == {stopped["digest"]}
    assert replica.engine.book_digest() == stopped["book_digest"]
    assert int(stopped["sequence"]) == replica.engine.sequence
