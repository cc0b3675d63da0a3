"""A copy of a log: the same bytes, every record once and in order, wherever the connection, the
process or the disk breaks off; and another log is told from the same one."""

import asyncio
import errno
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from random import Random

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from exchange.feed import follower as follower_module
from exchange.feed import tail as tail_module
from exchange.feed.follower import FollowerSource
from exchange.feed.history import History
from exchange.feed.source import FeedFailure
from exchange.logs import Log
from journal import EventLog, EventRecord
from journal.storage import FolderFile
from protocol.codes import RejectCode
from tests.exchange.feed.upstream_peer import UpstreamPeer, content_of
from tests.exchange.feed.venue_log import copy_surroundings
from tests.exchange.loops import PATIENCE_S, on_both_loops, until
from tests.journal.event_life import (
    Batch,
    images_of,
    last_header_of,
    make_batches,
    other_history,
    with_events,
)

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
EPOCH = 5 << 20
SEGMENT_SIZE = 2_048
BATCHES = make_batches(120, seed=44)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short segments, and no pauses."""
    monkeypatch.setattr(EventLog, "open", partial(EventLog.open, segment_size=SEGMENT_SIZE))
    monkeypatch.setattr(follower_module, "RECONNECT_PAUSE_MIN_S", 0.001)
    monkeypatch.setattr(follower_module, "RECONNECT_PAUSE_MAX_S", 0.002)
    monkeypatch.setattr(tail_module, "TROUBLE_PAUSE_S", 0.001)


class Copy:
    """A follower and what it has handed on; `read` was read by another life of it."""

    def __init__(self, folder: Path, port: int, read: Sequence[Batch] = (), epoch: int = 0) -> None:
        self.folder = folder
        self.records: list[EventRecord] = []
        self.lines: list[str] = []
        self.source = FollowerSource(
            copy_surroundings(folder, port, KEY, Log(lambda: 0, self.lines.append)),
            self.records.append,
            from_sequence=read[-1].last_sequence + 1 if read else 1,
            last_header=last_header_of(read),
            epoch=epoch,
        )

    async def wait_for(self, batch: Batch) -> None:
        await self.source.unless_ended(self.source.tail.reach(batch.last_sequence))

    async def failure(self) -> FeedFailure:
        async with asyncio.timeout(PATIENCE_S):
            return await self.source.ended

    def check(self, batches: list[Batch]) -> None:
        found = [(r.header.first_sequence, r.events) for r in self.records]
        assert found == [(batch.first_sequence, batch.events) for batch in batches]

    def count_lines(self, event: str) -> int:
        return sum(f"event={event} " in line for line in self.lines)

    async def close(self) -> None:
        """Close, and wait until the files are closed too."""
        self.source.close()
        await asyncio.to_thread(self.source._thread.shutdown)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "events").iterdir())}


@asynccontextmanager
async def copying(
    peer: UpstreamPeer, folder: Path, read: Sequence[Batch] = ()
) -> AsyncIterator[Copy]:
    copy = Copy(folder, peer.port, read)
    copy.source.start()
    try:
        yield copy
    finally:
        await copy.close()


@asynccontextmanager
async def upstream(batches: list[Batch]) -> AsyncIterator[UpstreamPeer]:
    peer = UpstreamPeer(KEY, EPOCH)
    peer.batches += batches
    await peer.start()
    try:
        yield peer
    finally:
        await peer.stop()


@pytest.mark.parametrize("piece_size", [50, 10**6])
@on_both_loops
async def test_copy_has_the_same_bytes(tmp_path: Path, piece_size: int) -> None:
    async with upstream(BATCHES[:60]) as peer:
        peer.piece_size = piece_size
        async with copying(peer, tmp_path / "copy") as copy:
            await copy.source.opened()
            assert copy.source.epoch == EPOCH
            await copy.source.caught_up()
            copy.check(BATCHES[:60])
            assert copy.source.is_connected
            for batch in BATCHES[60:]:
                peer.write(batch)
            await copy.wait_for(BATCHES[-1])
            copy.check(BATCHES)
            assert copy.source.lag == 0
            assert peer.requests == [1]
        assert files(tmp_path / "copy") == images_of(BATCHES, SEGMENT_SIZE)
        assert (tmp_path / "copy" / "epoch").read_text() == f"{EPOCH}\n"


@on_both_loops
async def test_upstream_cut_at_every_byte(tmp_path: Path) -> None:
    batches = BATCHES[:8]
    async with upstream(batches) as peer:
        peer.piece_size = 64
        async with copying(peer, tmp_path / "whole") as copy:
            await copy.wait_for(batches[-1])
        size = peer.sent_size
        assert size > 1_000
        for start in (1, 2):
            # Cut ever later, so that each connection gets a little further than the one before.
            peer.cuts = iter(range(start, size, 2))
            async with copying(peer, tmp_path / f"copy{start}") as copy:
                await copy.wait_for(batches[-1])
                copy.check(batches)
            assert files(copy.folder) == images_of(batches, SEGMENT_SIZE)
        known = {1, *(batch.first_sequence for batch in batches if batch.events)}
        assert set(peer.requests) <= known


@on_both_loops
async def test_copy_that_is_closed_and_torn_at_random(tmp_path: Path) -> None:
    for seed in range(6):
        print(f"seed {seed}")
        dice = Random(seed)
        folder = tmp_path / str(seed)
        handed_on: list[EventRecord] = []
        async with upstream(BATCHES[:20]) as peer:
            peer.piece_size = dice.choice((33, 400, 10**6))
            while len(handed_on) < len(BATCHES):
                read = BATCHES[: len(handed_on)]
                peer.cuts = iter([dice.randrange(2_000) for _ in range(dice.randrange(3))])
                async with copying(peer, folder, read) as copy:
                    for batch in BATCHES[len(peer.batches) :][: dice.randrange(40)]:
                        peer.write(batch)
                    await copy.wait_for(peer.batches[dice.randrange(len(peer.batches))])
                handed_on += copy.records
                last = max((folder / "events").glob("*.events"))
                content = last.read_bytes()
                # Of another size than before: a full segment was synced, and is trusted by it.
                cut = dice.choice((*range(9), *range(10, 300)))
                last.write_bytes(content[: max(len(content) - cut, 0)] + dice.randbytes(9))
            async with copying(peer, folder, read) as copy:
                await copy.wait_for(BATCHES[-1])
        found = [record.header.first_sequence for record in handed_on]
        assert found == [batch.first_sequence for batch in BATCHES]
        assert files(folder) == images_of(BATCHES, SEGMENT_SIZE)


async def close_while_it_connects(copy: Copy, turn_count: int) -> None:
    """After so many turns of the loop."""
    copy.source.start()
    await until(lambda: copy.source._upstream is not None)
    for _ in range(turn_count):
        await asyncio.sleep(0)
    await copy.close()


@on_both_loops
async def test_copy_that_is_closed_while_it_connects(tmp_path: Path) -> None:
    """However far that is, nothing of the connection is called any more."""
    async with upstream(BATCHES[:2]) as peer:
        for index in range(60):
            copy = Copy(tmp_path / str(index), peer.port)
            await close_while_it_connects(copy, index % 12)
            assert copy.source._upstream is not None
            timer = copy.source._upstream._timer
            assert timer is None or timer.cancelled()


@on_both_loops
async def test_copy_serves_without_the_feed_upstream(tmp_path: Path) -> None:
    async with upstream(BATCHES[:50]) as peer:
        async with copying(peer, tmp_path) as copy:
            await copy.wait_for(BATCHES[49])
        port = peer.port
    async with asyncio.timeout(PATIENCE_S):
        copy = Copy(tmp_path, port)
        copy.source.start()
        await copy.source.opened()
        await copy.source.caught_up()
        copy.check(BATCHES[:50])
        await until(lambda: copy.count_lines("upstream_away") == 1)
        assert (copy.source.is_connected, copy.source.epoch) == (False, EPOCH)
        history = History(copy.source, copy.source._surroundings)
        page = await history.log(1, size_max=10**9)
        assert page.records[0].content == content_of(BATCHES[0])
        peer = UpstreamPeer(KEY, EPOCH)
        peer.port = port
        peer.batches += BATCHES
        await peer.start()
        await copy.wait_for(BATCHES[-1])
        copy.check(BATCHES)
        assert copy.count_lines("upstream_away") == 1, "said once"
        page = await history.log(BATCHES[-1].first_sequence, size_max=1)
        assert page.records[0].content == content_of(BATCHES[-1])
        history.close()
        await copy.close()
        await peer.stop()


@on_both_loops
async def test_checkpoint_ahead_of_the_copy_waits_for_it(tmp_path: Path) -> None:
    async with upstream(BATCHES[:30]) as peer:
        copy = Copy(tmp_path / "copy", peer.port, BATCHES[:40], EPOCH)
        copy.source.start()
        opened = asyncio.ensure_future(copy.source.opened())
        await until(lambda: copy.source._sequence == BATCHES[29].last_sequence)
        assert not opened.done()
        for batch in BATCHES[30:]:
            peer.write(batch)
        await opened
        await copy.wait_for(BATCHES[-1])
        copy.check(BATCHES[40:])
        await copy.close()
    assert files(tmp_path / "copy") == images_of(BATCHES, SEGMENT_SIZE)


@on_both_loops
async def test_record_that_arrives_damaged_is_asked_for_again(tmp_path: Path) -> None:
    dice = Random(5)
    damages: Iterator[Callable[[bytes], bytes]] = iter(
        [
            lambda content: content[:-1],
            lambda content: content + b"x",
            lambda content: content[:-1] + bytes([content[-1] ^ 1]),
            lambda content: content[:9] + bytes([content[9] ^ 1]) + content[10:],
            lambda content: content_of(BATCHES[70]),
            lambda content: content + content_of(BATCHES[21]),
            lambda content: dice.randbytes(99),
        ]
    )

    sent_count = 0

    def spoil(batch: Batch, content: bytes) -> bytes:
        nonlocal sent_count
        if batch is BATCHES[19]:
            sent_count += 1
            # Also the record that is asked for again and compared with the one that is here.
            return content[:-1] if sent_count == 3 else content
        change = next(damages, None) if batch is BATCHES[20] and sent_count != 3 else None
        return content if change is None else change(content)

    async with upstream(BATCHES) as peer:
        peer.spoil = spoil
        async with copying(peer, tmp_path) as copy:
            await copy.wait_for(BATCHES[-1])
            copy.check(BATCHES)
        assert peer.connection_count == 9
        assert peer.requests == [1] + [BATCHES[19].first_sequence] * 8
    assert files(tmp_path) == images_of(BATCHES, SEGMENT_SIZE)


@on_both_loops
async def test_another_log_upstream_ends_the_source(tmp_path: Path) -> None:
    async with upstream(BATCHES[:20]) as peer, copying(peer, tmp_path) as copy:
        await copy.wait_for(BATCHES[19])
    async with upstream(BATCHES) as peer:
        peer.epoch += 1
        async with copying(peer, tmp_path) as copy:
            failure = await copy.failure()
            assert (failure.exit_code, failure.is_other_log) == (66, True)
            assert f"the epoch upstream is {EPOCH + 1}, that of the copy is {EPOCH}" in str(failure)
    others = make_batches(120, seed=45)
    at = next(n for n in range(120) if others[n].last_sequence >= BATCHES[19].last_sequence)
    async with upstream(others[: at + 1]) as peer, copying(peer, tmp_path) as copy:
        failure = await copy.failure()
        assert (failure.exit_code, failure.is_other_log) == (66, True)
        assert "the record of sequence " in str(failure)
        assert "differs" in str(failure)
        assert "remove events/ and epoch" in str(failure)
    async with upstream(BATCHES) as peer:
        copy = Copy(tmp_path, peer.port, BATCHES[:2], EPOCH + 9)
        copy.source.start()
        assert (await copy.failure()).is_other_log, "the checkpoint is of another log"
        await copy.close()


@on_both_loops
@pytest.mark.parametrize("fork", [10, 22])
async def test_upstream_that_was_set_back_and_is_past_the_copy(tmp_path: Path, fork: int) -> None:
    read = BATCHES[:25]
    assert [bool(batch.events) for batch in read[22:]] == [True, False, False]
    async with upstream(read) as peer, copying(peer, tmp_path) as copy:
        await copy.wait_for(read[-1])
    async with upstream(other_history(BATCHES, fork)) as peer, copying(peer, tmp_path) as copy:
        failure = await copy.failure()
        assert (failure.exit_code, failure.is_other_log) == (66, True)
        assert f"the record of sequence {BATCHES[22].first_sequence} differs" in str(failure)
        assert "remove events/ and epoch" in str(failure)
    assert files(tmp_path) == images_of(read, SEGMENT_SIZE)
    events = with_events(BATCHES[24], BATCHES[0].events)
    for other in ([*BATCHES[:24], events], [*BATCHES[:24], *BATCHES[30:]]):
        async with upstream(other) as peer, copying(peer, tmp_path) as copy:
            failure = await copy.failure()
            assert failure.is_other_log
            assert "differs" in str(failure)


@on_both_loops
async def test_checkpoint_of_another_log_is_not_joined_to_the_copy(tmp_path: Path) -> None:
    async with upstream(BATCHES[:50]) as peer:
        async with copying(peer, tmp_path) as copy:
            await copy.wait_for(BATCHES[49])
        async with copying(peer, tmp_path, other_history(BATCHES, 10)[:25]) as copy:
            failure = await copy.failure()
            assert (failure.exit_code, failure.is_other_log) == (66, True)
            assert "it is another log" in str(failure)
            assert copy.records == []
        async with copying(peer, tmp_path, BATCHES[:25]) as copy:
            await copy.wait_for(BATCHES[49])
            copy.check(BATCHES[25:50])


@on_both_loops
async def test_upstream_that_is_behind_is_waited_for(tmp_path: Path) -> None:
    async with upstream(BATCHES[:20]) as peer, copying(peer, tmp_path) as copy:
        await copy.wait_for(BATCHES[19])
    async with upstream(BATCHES[:5]) as peer, copying(peer, tmp_path) as copy:
        await copy.source.opened()
        await copy.source.caught_up()
        await until(lambda: peer.connection_count >= 3)
        assert copy.count_lines("upstream_away") == 1
        assert 'reason="its log ends before ours"' in copy.lines[-1]
        for batch in BATCHES[5:]:
            peer.write(batch)
        await copy.wait_for(BATCHES[-1])
        copy.check(BATCHES)


@on_both_loops
async def test_refused_log_on_is_tried_again_and_said_once(tmp_path: Path) -> None:
    async with upstream(BATCHES[:20]) as peer:
        peer.rejection = RejectCode.NOT_PERMITTED
        async with copying(peer, tmp_path) as copy:
            await until(lambda: peer.connection_count >= 3)
            assert copy.count_lines("upstream_away") == 1
            assert "the log-on was refused: not today" in copy.lines[0]
            peer.rejection = None
            await copy.wait_for(BATCHES[19])
            copy.check(BATCHES[:20])


@on_both_loops
async def test_disk_that_is_slow_bounds_what_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go_on = threading.Event()
    plain = FolderFile.write

    def slow(self: FolderFile, offset: int, content: bytes) -> None:
        may_go_on.wait(PATIENCE_S)
        plain(self, offset, content)

    monkeypatch.setattr(FolderFile, "write", slow)
    monkeypatch.setattr(EventLog, "open", partial(EventLog.open, segment_size=10**6))
    monkeypatch.setattr(follower_module, "QUEUE_SIZE_MAX", 10_000)
    batches = make_batches(3_000, seed=3, events_max=60)
    total = sum(len(content_of(batch)) for batch in batches)
    async with upstream(batches) as peer, copying(peer, tmp_path) as copy:
        await until(lambda: copy.source._upstream is not None and copy.source._upstream._is_held)
        for _ in range(300):
            await asyncio.sleep(0)
        # What waits, what is being written, and one read of the socket on top of each.
        assert copy.source._queue_size <= 10_000 + 300_000 < total // 4
        may_go_on.set()
        await copy.wait_for(batches[-1])
        copy.check(batches)
    assert files(tmp_path) == images_of(batches, 10**6)


@on_both_loops
async def test_disk_that_is_full_ends_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = FolderFile.write
    room = 3_000

    def write(self: FolderFile, offset: int, content: bytes) -> None:
        nonlocal room
        room -= len(content)
        if room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(self, offset, content)

    async with upstream(BATCHES) as peer:
        with monkeypatch.context() as full:
            full.setattr(FolderFile, "write", write)
            async with copying(peer, tmp_path) as copy:
                failure = await copy.failure()
                assert (failure.exit_code, failure.is_other_log) == (74, False)
                assert "No space left on device" in str(failure)
        copy.check(BATCHES[: len(copy.records)])
        async with copying(peer, tmp_path) as copy:
            await copy.wait_for(BATCHES[-1])
    assert files(tmp_path) == images_of(BATCHES, SEGMENT_SIZE)


@on_both_loops
async def test_folder_that_is_not_for_this_copy(tmp_path: Path) -> None:
    async with upstream(BATCHES[:3]) as peer:
        async with copying(peer, tmp_path / "copy") as copy:
            await copy.wait_for(BATCHES[2])
            async with copying(peer, tmp_path / "copy") as other:
                assert (await other.failure()).exit_code == 69
        (tmp_path / "copy" / "epoch").write_text("soon\n")
        async with copying(peer, tmp_path / "copy") as copy:
            failure = await copy.failure()
            assert (failure.exit_code, failure.is_other_log) == (66, False)
            assert "does not say the epoch" in str(failure)
        (tmp_path / "venue" / "commands").mkdir(parents=True)
        async with copying(peer, tmp_path / "venue") as copy:
            failure = await copy.failure()
            assert failure.exit_code == 64
            assert "is the data of a venue" in str(failure)
