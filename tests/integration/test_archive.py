"""Archive, restore and repair beside and after a real venue, as an operator types them.

Four sessions trade, a replica makes snapshots, and `exchange journal archive` runs beside them and
is killed in the middle. The venue goes on and starts again from what is left; everything that was
ever acknowledged is in the journal once the archive is restored. Then the journal is damaged beyond
healing, repaired as it says itself, and the venue starts in a new term and trades.

BRIER_ARCHIVE_SEED repeats a failed run.
"""

import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from journal import FolderStorage, SnapshotFolder, verify
from journal.snapshot import KEPT_MIN
from protocol.codes import CancelOnDisconnect
from tests.integration.market import make_market, make_venue
from tests.integration.peer import Peer
from tests.integration.replica import Replica
from tests.integration.traders import INSTRUMENT_COUNT, Trader, make_traders, trade
from tools.venue_process import EXCHANGE, ReplicaProcess, child_environment
from tools.venue_settings import change_settings

pytestmark = pytest.mark.once

COMMANDS: Final = 2_000
"""Between two looks, and between two snapshots."""
NEVER: Final = CancelOnDisconnect.NEVER
ARCHIVABLE_WAIT_S: Final = 120.0
"""Only a failing test waits so long."""


class Scene:
    """A venue, those who trade there, and its operator."""

    def __init__(self, folder: Path, archive: Path, seed: str) -> None:
        self.random = random.Random(seed)
        self.folder, self.archive = folder, archive
        self.venue = make_venue(folder)
        change_settings(folder / "exchange.toml", {"snapshots.every_commands": COMMANDS})
        self.replica = ReplicaProcess(folder)
        self.journal = Replica(folder)
        self.traders: list[Trader] = []
        self.seed = seed

    @property
    def segments(self) -> list[Path]:
        return sorted((self.folder / "data" / "commands").glob("*.segment"))

    @property
    def acknowledged_count(self) -> int:
        return sum(trader.acknowledged_count for trader in self.traders)

    def begin(self, sealed_count: int) -> None:
        """Trade until so many segments of 1 MiB are full."""
        self.venue.start()
        firms = make_market(self.venue, ["a", "b", "c", "d"], INSTRUMENT_COUNT)
        self.venue.kill()
        self.journal.catch_up()
        self.traders = make_traders(firms, [NEVER] * 4, self.seed)
        self.venue.start()
        self.replica.start()
        for trader in self.traders:
            trader.log_on(self.venue.address, self.journal)
        while len(self.segments) <= sealed_count:
            self.trade()

    def trade(self) -> None:
        trade(self.traders, self.acknowledged_count + COMMANDS)

    def trade_until_archivable(self, count: int) -> None:
        """Until no start from a kept snapshot needs so many segments: the replica is nobody's
        first concern, and comes behind in its own time."""
        folder = SnapshotFolder(FolderStorage(self.folder / "data/snapshots", is_read_only=True))
        give_up = time.monotonic() + ARCHIVABLE_WAIT_S
        while len(heads := folder.heads()) < KEPT_MIN or heads[-1].commands_segment <= count:
            assert time.monotonic() < give_up, "it makes no snapshots"
            self.trade()

    def finish_trading(self) -> None:
        for trader in self.traders:
            while trader.unanswered:
                trader.read()

    def type(self, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
        """`exchange journal` with these arguments."""
        return subprocess.run(
            self.command(*arguments),
            capture_output=True,
            text=True,
            check=False,
            env=child_environment(),
        )

    def command(self, *arguments: str | Path) -> list[str]:
        return [*EXCHANGE, "journal", *map(str, arguments)]

    def archive_and_kill(self) -> None:
        """An archiving that dies once it has begun to write."""
        process = subprocess.Popen(
            self.command("archive", self.folder, "--to", self.archive),
            stdout=subprocess.DEVNULL,
            env=child_environment(),
        )
        wanted = self.random.randrange(1, 12)
        seen: set[str] = set()
        while process.poll() is None and len(seen) < wanted:
            if self.archive.is_dir():
                seen.update(os.listdir(self.archive))
        process.kill()
        process.wait()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    seed = os.environ.get("BRIER_ARCHIVE_SEED") or str(random.SystemRandom().randrange(2**32))
    print(f"BRIER_ARCHIVE_SEED={seed}")
    made = Scene(tmp_path / "venue", tmp_path / "archive", seed)
    try:
        with made.venue, made.replica:
            yield made
    finally:
        for trader in made.traders:
            if trader.peer is not None:
                trader.peer.close()


def test_archive_beside_a_venue_and_everything_comes_back(scene: Scene) -> None:
    scene.begin(3)
    for _ in range(3):
        scene.archive_and_kill()
        scene.trade()
    scene.trade_until_archivable(2)
    done = scene.type("archive", scene.folder, "--to", scene.archive)
    assert done.returncode == 0, done.stderr
    assert len(list(scene.archive.glob("*.segment"))) >= 2
    assert verify(FolderStorage(scene.archive, is_read_only=True)).end == "clean"
    assert scene.type("repair", scene.folder).returncode == 69
    scene.finish_trading()
    stopped = scene.venue.stop()
    scene.replica.stop()
    # It starts without what was archived, and an operator finds the same state in what is left.
    assert f"digest          {stopped['digest']}\n" in scene.type("digest", scene.folder).stdout
    scene.venue.start()
    assert scene.venue.ready["sequence"] == str(int(stopped["sequence"]) + 1)
    again = scene.venue.stop()
    restored = scene.type("restore", scene.archive, scene.folder)
    assert restored.returncode == 0, restored.stderr
    shutil.rmtree(scene.folder / "data" / "snapshots")
    found = scene.type("digest", scene.folder).stdout
    assert f"digest          {again['digest']}\n" in found
    # Every acknowledged command and every report, from the first record on.
    scene.journal.catch_up()
    for trader in scene.traders:
        trader.leave(scene.journal)
    assert scene.journal.engine.digest() == again["digest"]


def test_a_repaired_venue_goes_on_in_a_new_term(scene: Scene) -> None:
    scene.begin(1)
    scene.finish_trading()
    epoch = int(scene.venue.ready["epoch"])
    stopped = scene.venue.stop()
    scene.replica.stop()
    last = scene.segments[-1]
    content = bytearray(last.read_bytes())
    content[700:740] = bytes(40)
    last.write_bytes(content)
    first = int(last.name[21:41])
    with pytest.raises(Exception, match="journal damaged"):
        scene.venue.start()
    told = scene.type("repair", scene.folder)
    assert told.returncode == 66
    command = told.stdout.splitlines()[-1].removeprefix("then: exchange journal ").split()
    assert command == ["repair", str(scene.folder), "--keep-to", str(first - 1)]
    assert f"lost: sequences {first} to {stopped['sequence']}, " in told.stdout
    done = scene.type(*command)
    assert done.returncode == 0, done.stderr
    scene.venue.start()
    assert int(scene.venue.ready["epoch"]) == epoch + 1
    with Peer(scene.venue.address) as client:
        assert client.greet().epoch == epoch + 1
    assert int(scene.venue.ready["sequence"]) == first
    aside = scene.folder / "data" / "repair-1"
    assert (aside / f"commands-{last.name}").read_bytes() == bytes(content)
    assert "NewOrder" in (aside / "lost.txt").read_text()
    assert scene.venue.stop()["sequence"] == str(first)
    assert scene.type("repair", scene.folder).returncode == 0
