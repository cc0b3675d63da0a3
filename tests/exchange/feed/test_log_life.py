"""Random lives of a log and all who read it: the venue writes, is killed, comes back with its log
torn, cut into other segments, without indexes or written anew, while readers of the past come and
go, and a feed downstream copies everything. Everybody has what the venue has written, at the end
and in between."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from random import Random
from typing import Any

import pytest

from exchange import position as position_module
from exchange.feed import follower as follower_module
from exchange.feed import history as history_module
from exchange.feed import tail as tail_module
from exchange.feed.follower import FollowerSource
from exchange.feed.history import History
from exchange.feed.source import LocalSource
from journal import EventRecord, PrivateEvent
from tests.exchange.feed.test_follower import KEY, files
from tests.exchange.feed.test_history import packets_of, private_of
from tests.exchange.feed.upstream_peer import UpstreamPeer, content_of
from tests.exchange.feed.venue_log import EPOCH, VenueLog, copy_surroundings
from tests.exchange.loops import on_both_loops
from tests.journal.event_life import Batch, images_of, make_batches

BATCH_COUNT = 240
SEEDS = range(5)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_module, "ATTEMPT_PAUSE_S", 0.001)
    monkeypatch.setattr(history_module, "ATTEMPTS_MAX", 10**6)
    monkeypatch.setattr(history_module, "BLOCK_SIZE", 700)
    monkeypatch.setattr(history_module, "SCAN_SIZE", 500)
    monkeypatch.setattr(history_module, "CACHE_SIZE_MAX", 20_000)
    monkeypatch.setattr(history_module, "SCANS_MAX", 3)
    monkeypatch.setattr(history_module, "LAST_NUMBERS_MAX", 8)
    monkeypatch.setattr(position_module, "RECONNECT_PAUSE_MIN_S", 0.001)
    monkeypatch.setattr(position_module, "RECONNECT_PAUSE_MAX_S", 0.002)
    monkeypatch.setattr(tail_module, "BLOCK_SIZE", 1_500)
    monkeypatch.setattr(tail_module, "TROUBLE_PAUSE_S", 0.001)
    monkeypatch.setattr(tail_module, "TROUBLE_MAX", 10**6)
    monkeypatch.setattr(follower_module, "RECONNECT_PAUSE_MIN_S", 0.001)
    monkeypatch.setattr(follower_module, "RECONNECT_PAUSE_MAX_S", 0.002)


class Life:
    """A venue, a source, a history, and a feed downstream that gets what the source gets."""

    def __init__(self, folder: Path, dice: Random) -> None:
        self.dice = dice
        self.venue = VenueLog(folder / "venue", segment_size=dice.randrange(900, 5_000))
        self.venue.folder.mkdir(parents=True)
        self.batches = make_batches(BATCH_COUNT, seed=dice.randrange(10**6), events_max=9)
        self.records: list[EventRecord] = []
        self.copied: list[EventRecord] = []
        surroundings = self.venue.surroundings()
        self.source = LocalSource(surroundings, self.take, epoch=EPOCH)
        self.history = History(self.source, surroundings)
        self.peer = UpstreamPeer(KEY, EPOCH)
        self.askers: list[asyncio.Task[None]] = []

    def take(self, record: EventRecord) -> None:
        self.records.append(record)
        self.peer.write(self.batches[len(self.records) - 1])

    async def start(self, folder: Path) -> FollowerSource:
        await self.venue.start()
        await self.peer.start()
        self.source.start()
        surroundings = copy_surroundings(folder / "copy", self.peer.port, KEY, self.venue.log)
        follower = FollowerSource(surroundings, self.copied.append)
        follower.start()
        return follower

    async def restart(self) -> None:
        """Kill the venue, do something to its log, start it."""
        dice, venue = self.dice, self.venue
        await venue.kill()
        for path in venue.events.iterdir():
            if path.suffix == ".index" and not dice.randrange(3):
                path.unlink()
        if venue.segments and not dice.randrange(2):
            with venue.segments[-1].open("ab") as file:
                file.write(dice.randbytes(dice.randrange(1, 400)))
        if not dice.randrange(3):
            venue.segment_size = dice.randrange(900, 5_000)
        if not dice.randrange(4):
            for path in venue.events.iterdir():
                path.unlink()
        await venue.start()

    def ask(self) -> None:
        """Somebody wants the past, all of it or a part."""
        size_max = self.dice.choice((1, 500, 3_000, 10**9))
        sequence = self.dice.randrange(1, self.source.sequence + 2)
        jobs: tuple[Callable[[], Coroutine[Any, Any, None]], ...] = (
            lambda: self.read_packets(1, size_max),
            lambda: self.read_packets(2, size_max),
            lambda: self.read_private(sequence, size_max),
            lambda: self.read_log(sequence, size_max),
        )
        task = asyncio.ensure_future(self.dice.choice(jobs)())
        self.askers.append(task)
        if not self.dice.randrange(6):
            asyncio.get_running_loop().call_later(self.dice.random() / 50, task.cancel)

    async def read_packets(self, channel: int, size_max: int) -> None:
        before = packets_of(self.known(), channel)
        found: list[bytes] = []
        number = 1
        while (page := await self.history.packets(channel, number, size_max=size_max)).packets:
            found += page.packets
            number = page.next_number
        assert found[: len(before)] == before
        assert found == packets_of(self.batches, channel)[: len(found)]

    async def read_private(self, sequence: int, size_max: int) -> None:
        before = [event for event in private_of(self.known()) if event.sequence >= sequence]
        found: list[PrivateEvent] = []
        at = sequence, 0
        while True:
            page = await self.history.private(*at, size_max=size_max)
            found += page.events
            if (page.next_sequence, page.next_index) == at:
                break
            at = page.next_sequence, page.next_index
        assert found[: len(before)] == before
        whole = [event for event in private_of(self.batches) if event.sequence >= sequence]
        assert found == whole[: len(found)]

    async def read_log(self, sequence: int, size_max: int) -> None:
        whole = [content_of(b) for b in self.batches if b.last_sequence >= sequence]
        before = sum(batch.last_sequence >= sequence for batch in self.known())
        found: list[bytes] = []
        while (page := await self.history.log(sequence, size_max=size_max)).records:
            found += [record.content for record in page.records]
            sequence = page.next_sequence
        assert before <= len(found)
        assert found == whole[: len(found)]

    def known(self) -> list[Batch]:
        return self.batches[: len(self.records)]


@pytest.mark.parametrize("seed", SEEDS)
@on_both_loops
async def test_random_life(tmp_path: Path, seed: int) -> None:
    print(f"seed {seed}")
    dice = Random(seed)
    life = Life(tmp_path, dice)
    follower = await life.start(tmp_path)
    written = 0
    while written < BATCH_COUNT:
        count = dice.randrange(1, 30)
        life.venue.write_all(life.batches[written : written + count])
        written = min(written + count, BATCH_COUNT)
        for _ in range(dice.randrange(40)):
            await asyncio.sleep(0)
        for _ in range(dice.randrange(4)):
            life.ask()
        if not dice.randrange(4):
            await life.restart()
        if not dice.randrange(5):
            await life.peer.stop()
            life.peer.cuts = iter([dice.randrange(3_000) for _ in range(3)])
            await life.peer.start()
    last = life.batches[-1].last_sequence
    await life.source.unless_ended(life.source.tail.reach(last))
    await follower.unless_ended(follower.tail.reach(last))
    for task in life.askers:
        await asyncio.wait((task,))
        if not task.cancelled():
            task.result()
    for records in (life.records, life.copied):
        found = [(record.header.first_sequence, record.events) for record in records]
        assert found == [(batch.first_sequence, batch.events) for batch in life.batches]
    assert life.history.cached_size <= history_module.CACHE_SIZE_MAX
    life.history.close()
    life.source.close()
    follower.close()
    await asyncio.to_thread(follower._thread.shutdown)
    assert files(tmp_path / "copy") == images_of(life.batches, 16 * 1024 * 1024)
    await life.peer.stop()
    await life.venue.kill()
