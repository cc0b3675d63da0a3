"""`exchange replica` as a process: SIGKILL in the middle of a snapshot, of the venue, of both.

Four sessions trade. The replica makes snapshots as fast as it can, and is killed at any moment, and
when a file that is being written has just appeared. Whatever is in the folder with the name of a
snapshot must restore to the state that the journal gives up to there; the venue trades on; a
replica that is started again goes on from the newest one, and so does a venue.

BRIER_REPLICA_KILL_ROUNDS is the least number of rounds (3), BRIER_REPLICA_KILL_SEED repeats a
failed run.
"""

import itertools
import os
import random
import re
import urllib.request
from pathlib import Path
from typing import Final

import pytest

from exchange.core.engine import Engine
from exchange.core.replay import replay_record, restore_engine
from journal import FolderStorage, SnapshotDamaged, SnapshotFolder, SnapshotHead, read_only
from protocol.codes import CancelOnDisconnect
from tests.integration.market import make_market, make_venue
from tests.integration.replica import Replica
from tests.integration.traders import INSTRUMENT_COUNT, Trader, make_traders, trade
from tools.venue_process import ReplicaProcess, VenueProcess
from tools.venue_settings import change_settings

pytestmark = pytest.mark.once

ROUNDS: Final = int(os.environ.get("BRIER_REPLICA_KILL_ROUNDS", "3"))
COMMANDS: Final = 300
"""Between two snapshots."""
MODES: Final = [CancelOnDisconnect.NEVER] * 3 + [CancelOnDisconnect.ALWAYS]


class Scene:
    """A venue, its traders, its replica, and what the journal says."""

    def __init__(self, folder: Path, seed: str) -> None:
        self.random = random.Random(seed)
        self.venue = make_venue(folder, work_per_command_max=4)
        settings = {"snapshots.every_commands": COMMANDS}
        change_settings(folder / "exchange.toml", settings)
        self.replica = ReplicaProcess(folder)
        self.journal = Replica(folder)
        self.snapshots = folder / "data" / "snapshots"
        self.caught_count = 0  # kills in the middle of a file
        self.seed = seed
        self.traders: list[Trader] = []

    def begin(self) -> None:
        self.venue.start()
        firms = make_market(self.venue, ["a", "b", "c", "d"], INSTRUMENT_COUNT)
        self.venue.kill()
        self.journal.catch_up()
        self.traders = make_traders(firms, MODES, self.seed)
        self.venue.start()
        self.log_on()

    def log_on(self) -> None:
        for trader in self.traders:
            trader.log_on(self.venue.address, self.journal)

    def is_writing(self) -> bool:
        return any(name.endswith(".tmp") for name in os.listdir(self.snapshots))

    def trade_until_killed(self) -> None:
        """The replica dies in the middle of a file, or at some other moment."""
        is_at_a_file = self.random.random() < 0.8
        file_count = self.random.randrange(1, 3)
        moment = self.random.randrange(200)
        was_writing = False

        def kill_when_it_is_time() -> None:
            nonlocal moment, file_count, was_writing
            moment -= 1
            is_writing = self.is_writing()
            file_count -= is_writing and not was_writing
            was_writing = is_writing
            is_time = is_writing and file_count <= 0 if is_at_a_file else moment <= 0
            if is_time and self.replica.process is not None:
                self.replica.kill()

        for _ in range(20):
            if self.replica.process is None:
                break
            trade(self.traders, self.acknowledged_count + COMMANDS, kill_when_it_is_time)
        self.replica.kill()
        self.caught_count += self.is_writing()

    @property
    def acknowledged_count(self) -> int:
        return sum(trader.acknowledged_count for trader in self.traders)

    def kill_venue(self) -> None:
        self.venue.kill()
        self.journal.catch_up()
        for trader in self.traders:
            trader.leave(self.journal)

    def restart_venue(self) -> None:
        """It goes on from the newest snapshot, whose events must be there: nothing is lost by a
        kill, and a snapshot is made only when they are."""
        newest = self.check_snapshots()[:1]
        before = (self.venue.folder / "serve.log").stat().st_size
        self.venue.start()
        log = (self.venue.folder / "serve.log").read_text()[before:]
        (used,) = re.findall(r"event=recovered .*snapshot=(\d+) ", log)
        # A replica that runs meanwhile may have made another one.
        expected = newest[0].sequence if newest else 0
        assert int(used) == expected or self.replica.process is not None, log
        assert int(used) >= expected, log
        self.log_on()

    def check_snapshots(self) -> list[SnapshotHead]:
        """Each restores to what the journal gives; newest first."""
        folder = SnapshotFolder(FolderStorage(self.snapshots, is_read_only=True))
        heads = folder.heads()
        assert folder.bad == []
        engine = Engine()
        commands = FolderStorage(self.venue.folder / "data" / "commands", is_read_only=True)
        records = read_only(commands).records()
        for head in reversed(heads):
            while engine.sequence < head.sequence:
                replay_record(engine, next(records))
            try:
                image = folder.read(head)
            except SnapshotDamaged:
                # A replica that runs takes away what is older than its newest ones.
                assert self.replica.process is not None
                assert head.name not in os.listdir(self.snapshots)
                continue
            restored = restore_engine(head, image)
            assert restored.digest() == engine.digest(), f"snapshot {head.sequence}"
        return heads


def test_kills_leave_good_snapshots(tmp_path: Path) -> None:
    seed = os.environ.get("BRIER_REPLICA_KILL_SEED") or str(random.SystemRandom().randrange(2**32))
    print(f"BRIER_REPLICA_KILL_SEED={seed}")
    scene = Scene(tmp_path / "venue", seed)
    with scene.venue as venue, scene.replica as replica:
        scene.begin()
        for round_number in itertools.count(1):
            if round_number > ROUNDS and scene.caught_count and scene.check_snapshots():
                break
            assert round_number <= 10 * ROUNDS, "never in the middle of a file"
            heads = scene.check_snapshots()
            replica.start()
            assert int(replica.ready["snapshot"]) >= (heads[0].sequence if heads else 0)
            scene.trade_until_killed()
            if scene.random.random() < 0.5:
                scene.kill_venue()
                scene.restart_venue()
            print(
                f"round {round_number}: killed in the middle of a file {scene.caught_count} times"
            )
        finish(scene, venue, replica)
    assert "Traceback" not in replica.log_path.read_text()


def finish(scene: Scene, venue: VenueProcess, replica: ReplicaProcess) -> None:
    """Everything follows from the journal, and the replica has come to the same state."""
    replica.start()
    scene.kill_venue()
    scene.restart_venue()
    trade(scene.traders, scene.acknowledged_count + COMMANDS)
    for trader in scene.traders:
        while trader.unanswered:
            trader.read()
    stopped = venue.stop()
    assert int(replica.stop()["sequence"]) <= int(stopped["sequence"])
    scene.journal.catch_up()
    for trader in scene.traders:
        trader.leave(scene.journal)
    assert stopped["digest"] == scene.journal.engine.digest()
    log = replica.log_path.read_text()
    assert "event=snapshot_made" in log
    assert "level=error event=stopped" not in log


def test_it_says_what_it_does(tmp_path: Path) -> None:
    """The ready line, the metrics, a venue that is away, and a stop."""
    with make_venue(tmp_path / "venue") as venue, ReplicaProcess(venue.folder) as replica:
        venue.start()
        make_market(venue, ["a"])
        replica.start()
        assert replica.ready["venue"] == "test"
        text = scrape(replica)
        sequence = float(replica.ready["sequence"])
        assert f"\nbrier_replica_sequence {sequence}\n" in text
        assert "\nbrier_replica_source_connected 1.0\n" in text
        venue.stop()
        while "\nbrier_replica_source_connected 0.0\n" not in scrape(replica):
            pass
        venue.start()
        while "\nbrier_replica_source_connected 1.0\n" not in scrape(replica):
            pass
        with ReplicaProcess(venue.folder) as second:
            second.begin()
            assert second.process is not None
            assert second.process.wait() == 69
        said = replica.stop()
        assert int(said["sequence"]) > sequence, "the venue has started twice"
        venue.stop()


def scrape(replica: ReplicaProcess) -> str:
    with urllib.request.urlopen(f"http://{replica.ready['metrics']}/metrics") as answer:
        text: str = answer.read().decode()
    return text
