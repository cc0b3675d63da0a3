"""The source: every record once and in order, whatever becomes of venue, log and disk."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from exchange import position as position_module
from exchange.clock import SystemClock
from exchange.feed import tail as tail_module
from exchange.feed.source import FeedFailure, LocalSource
from journal import EventPosition, EventRecord, JournalDamaged
from journal.storage import FolderFile
from tests.exchange.feed.venue_log import EPOCH, VenueLog
from tests.exchange.loops import PATIENCE_S, on_both_loops, until
from tests.journal.event_life import (
    Batch,
    last_header_of,
    make_batches,
    other_history,
    with_events,
)

BATCHES = make_batches(120, seed=21)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail_module, "TROUBLE_PAUSE_S", 0.001)
    monkeypatch.setattr(position_module, "RECONNECT_PAUSE_MIN_S", 0.001)
    monkeypatch.setattr(position_module, "RECONNECT_PAUSE_MAX_S", 0.004)


class Reader:
    """A source and what it has handed on; `read` was read by another life, as a checkpoint says."""

    def __init__(self, venue: VenueLog, read: Sequence[Batch] = (), epoch: int = 0) -> None:
        self.records: list[EventRecord] = []
        self.source = LocalSource(
            venue.surroundings(),
            self.records.append,
            from_sequence=read[-1].last_sequence + 1 if read else 1,
            last_header=last_header_of(read),
            epoch=epoch,
        )

    async def wait_for(self, sequence: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            await self.source.unless_ended(self.source.tail.reach(sequence))

    async def failure(self) -> FeedFailure:
        async with asyncio.timeout(PATIENCE_S):
            return await self.source.ended

    def check(self, batches: list[Batch]) -> None:
        found = [(r.header.first_sequence, r.events) for r in self.records]
        assert found == [(batch.first_sequence, batch.events) for batch in batches]


@asynccontextmanager
async def reading(
    venue: VenueLog, read: Sequence[Batch] = (), epoch: int = 0
) -> AsyncIterator[Reader]:
    reader = Reader(venue, read, epoch)
    reader.source.start()
    try:
        yield reader
    finally:
        reader.source.close()


@on_both_loops
async def test_records_come_in_order_while_the_log_grows(tmp_path: Path) -> None:
    venue = VenueLog(tmp_path)
    await venue.start()
    venue.write_all(BATCHES[:40])
    async with reading(venue) as reader:
        assert reader.records == []
        await reader.source.opened()
        assert (reader.source.epoch, reader.source.is_connected) == (EPOCH, True)
        await reader.source.caught_up()
        reader.check(BATCHES[:40])
        for batch in BATCHES[40:]:
            venue.write(batch)
            await reader.wait_for(batch.last_sequence)
            at = venue.position
            position = EventPosition(at.sequence, at.events_segment, at.events_offset)
            assert (reader.source.position, reader.source.lag) == (position, 0)
        reader.check(BATCHES)
        assert reader.source.segments == [int(path.stem) for path in venue.segments]
        assert len(reader.source.segments) > 5
    await venue.kill()


@on_both_loops
async def test_what_the_venue_has_not_told_of_is_not_read(tmp_path: Path) -> None:
    venue = VenueLog(tmp_path)
    await venue.start()
    async with reading(venue) as reader:
        await reader.source.opened()
        for place in range(0, len(BATCHES), 6):
            venue.write(BATCHES[place])
            venue.tell()
            at = venue.position
            for batch in BATCHES[place + 1 : place + 6]:
                venue.append(batch)
            await reader.wait_for(BATCHES[place].last_sequence)
            for _ in range(9):
                await asyncio.sleep(0)
            reader.check(BATCHES[: place + 1])
            assert reader.source.position.offset == at.events_offset
    await venue.kill()


@on_both_loops
@pytest.mark.parametrize("block_size", [40, 333, 5_000])
@pytest.mark.parametrize("is_cached", [True, False])
async def test_blocks_of_every_size_from_memory_and_from_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_size: int, is_cached: bool
) -> None:
    monkeypatch.setattr(tail_module, "BLOCK_SIZE", block_size)
    if not is_cached:
        monkeypatch.setattr(FolderFile, "read_cached", lambda self, offset, buffer: 0)
    venue = VenueLog(tmp_path)
    await venue.start()
    venue.write_all(BATCHES)
    async with reading(venue) as reader:
        await reader.source.opened()
        await reader.source.caught_up()
        reader.check(BATCHES)
    await venue.kill()


@on_both_loops
@pytest.mark.parametrize("count", [1, 7, 12, 50, 119, 120])
async def test_source_goes_on_from_a_sequence_while_the_venue_is_away(
    tmp_path: Path, count: int
) -> None:
    venue = VenueLog(tmp_path)
    await venue.start()
    venue.write_all(BATCHES[:count])
    at = venue.position
    await venue.kill()
    async with reading(venue, BATCHES[:count], EPOCH) as reader:
        await reader.source.opened()
        assert (reader.source.is_connected, reader.source.sequence) == (False, at.sequence)
        position = EventPosition(at.sequence, at.events_segment, at.events_offset)
        assert reader.source.position == position
        await reader.source.caught_up()
        await until(lambda: any("venue_away" in line for line in venue.lines))
        await venue.start()
        venue.write_all(BATCHES[count:])
        await reader.wait_for(BATCHES[-1].last_sequence)
        reader.check(BATCHES[count:])
        assert len([line for line in venue.lines if "venue_away" in line]) == 1, "said once"
    await venue.kill()


@on_both_loops
async def test_source_waits_for_a_venue_that_was_never_there(tmp_path: Path) -> None:
    venue = VenueLog(tmp_path / "later")
    async with reading(venue) as reader:
        opened = asyncio.ensure_future(reader.source.opened())
        await until(lambda: any("venue_away" in line for line in venue.lines))
        assert (opened.done(), reader.source.epoch) == (False, 0)
        venue.folder.mkdir()
        await venue.start()
        await opened
        venue.write_all(BATCHES[:9])
        await reader.wait_for(BATCHES[8].last_sequence)
        reader.check(BATCHES[:9])
    await venue.kill()


@on_both_loops
@pytest.mark.parametrize("rest", [b"BREV", bytes(300), b""])
async def test_venue_that_is_killed_and_mends_its_log(tmp_path: Path, rest: bytes) -> None:
    """What a crash leaves behind the last record makes the venue put another file in its place."""
    venue = VenueLog(tmp_path)
    await venue.start()
    async with reading(venue) as reader:
        for part in range(0, 120, 20):
            venue.write_all(BATCHES[part : part + 20])
            if part % 40:
                await reader.wait_for(BATCHES[part + 19].last_sequence)
            await venue.kill()
            await until(lambda: not reader.source.is_connected)
            last = venue.segments[-1]
            inode = last.stat().st_ino
            with last.open("ab") as file:
                file.write(rest)
            await venue.start()
            assert (last.stat().st_ino != inode) == bool(rest)
        await reader.wait_for(BATCHES[-1].last_sequence)
        reader.check(BATCHES)
    await venue.kill()


@on_both_loops
async def test_log_that_is_written_again_whole_in_other_segments(tmp_path: Path) -> None:
    venue = VenueLog(tmp_path)
    await venue.start()
    venue.write_all(BATCHES[:60])
    async with reading(venue) as reader:
        await reader.wait_for(BATCHES[59].last_sequence)
        generation, before = reader.source.generation, list(reader.source.segments)
        await venue.kill()
        venue.segment_size = 900
        await venue.start()
        venue.write_all(BATCHES[60:])
        await reader.wait_for(BATCHES[-1].last_sequence)
        reader.check(BATCHES)
        assert reader.source.generation > generation
        assert reader.source.segments != before
        assert reader.source.segments == [int(path.stem) for path in venue.segments]
    await venue.kill()


@on_both_loops
async def test_another_epoch_is_another_log(tmp_path: Path) -> None:
    venue = VenueLog(tmp_path)
    await venue.start()
    venue.write_all(BATCHES[:10])
    async with reading(venue) as reader:
        await reader.wait_for(BATCHES[9].last_sequence)
        await venue.kill()
        venue.epoch += 1
        await venue.start()
        failure = await reader.failure()
        assert (failure.exit_code, failure.is_other_log) == (66, True)
        assert str(failure) == f"the venue's epoch is {EPOCH + 1}, what was read has {EPOCH}"
    async with reading(venue, BATCHES[:10], EPOCH) as reader:
        assert (await reader.failure()).is_other_log, "a checkpoint counts as read"
    await venue.kill()


@on_both_loops
async def test_log_that_ends_before_what_was_read_is_another_log(tmp_path: Path) -> None:
    venue = VenueLog(tmp_path)
    await venue.start()
    venue.write_all(BATCHES[:10])
    async with reading(venue, BATCHES[:11], EPOCH) as reader:
        with pytest.raises(FeedFailure, match="the venue's log ends at sequence"):
            await reader.source.opened()
        failure = await reader.failure()
        assert (failure.exit_code, failure.is_other_log) == (66, True)
    await venue.kill()


def test_what_was_read_ends_with_a_record_without_events() -> None:
    """Such a one is the same in many logs; the tests of other logs count on it."""
    assert [bool(batch.events) for batch in BATCHES[8:13]] == [True, False, True, False, True]


READ = BATCHES[:12]
SPANNING = BATCHES[11]._replace(command_count=BATCHES[11].command_count + 1)
OTHERS = {
    "fork before": other_history(BATCHES, 5),
    "fork in the last one with events": other_history(BATCHES, 10),
    "events where none were": [
        *BATCHES[:11],
        with_events(BATCHES[11], BATCHES[0].events),
        *BATCHES[12:],
    ],
    "no events where some were": [*BATCHES[:10], with_events(BATCHES[10], b""), *BATCHES[11:]],
    "no record ends there": [
        *BATCHES[:11],
        SPANNING,
        BATCHES[12]._replace(first_sequence=SPANNING.last_sequence + 1),
    ],
}


@on_both_loops
@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("is_away", [True, False])
async def test_checkpoint_of_another_log_is_not_joined_to_this_one(
    tmp_path: Path, name: str, is_away: bool
) -> None:
    venue = VenueLog(tmp_path)
    await venue.start()
    venue.write_all(OTHERS[name])
    if is_away:
        await venue.kill()
    async with reading(venue, READ, EPOCH) as reader:
        failure = await reader.failure()
        assert (failure.exit_code, failure.is_other_log) == (66, True)
        assert reader.records == []
    if not is_away:
        await venue.kill()


@on_both_loops
async def test_log_that_has_not_yet_what_was_read_is_waited_for_a_while(tmp_path: Path) -> None:
    venue = VenueLog(tmp_path)
    await venue.start()
    venue.write_all(READ[:8])
    await venue.kill()
    async with reading(venue, READ, EPOCH) as reader:
        failure = await reader.failure()
        assert (failure.exit_code, failure.is_other_log) == (66, True)
        assert "no record of events/ ends at sequence" in str(failure)
    async with reading(venue, READ, EPOCH) as reader:
        await until(lambda: len([x for x in venue.lines if "event_log_trouble" in x]) == 2)
        # The venue makes its log whole before it says anything.
        venue.batches = list(READ)
        await venue.start()
        venue.write_all(BATCHES[12:])
        await reader.wait_for(BATCHES[-1].last_sequence)
        reader.check(BATCHES[12:])
    await venue.kill()


async def put_back(venue: VenueLog, batches: list[Batch]) -> None:
    """The venue gets another log and starts with it."""
    await venue.kill()
    for path in venue.events.iterdir():
        path.unlink()
    venue.batches = list(batches)
    await venue.start()


@on_both_loops
@pytest.mark.parametrize("name", OTHERS)
async def test_venue_that_was_set_back_and_is_past_what_was_read(tmp_path: Path, name: str) -> None:
    venue = VenueLog(tmp_path)
    await venue.start()
    venue.write_all(READ)
    async with reading(venue) as reader:
        await reader.wait_for(READ[-1].last_sequence)
        await put_back(venue, OTHERS[name])
        failure = await reader.failure()
        assert (failure.exit_code, failure.is_other_log) == (66, True)
        reader.check(READ)
    await venue.kill()


@on_both_loops
async def test_what_was_not_handed_on_yet_is_read_again_when_the_log_may_be_another(
    tmp_path: Path,
) -> None:
    venue = VenueLog(tmp_path)
    await venue.start()
    venue.write_all(READ)
    others = other_history(BATCHES, 12)
    async with reading(venue) as reader:
        await reader.wait_for(READ[-1].last_sequence)
        tail = reader.source.tail
        plain, may_go_on, counts = tail._read, asyncio.Event(), []

        async def late() -> list[EventRecord]:
            records = await plain()
            counts.append(len(records))
            await may_go_on.wait()
            return records

        tail._read = late  # type: ignore[method-assign] # a read that takes its time
        venue.write(BATCHES[12])
        await until(lambda: counts == [1])
        await put_back(venue, others)
        await until(lambda: tail.until.sequence == others[-1].last_sequence)
        may_go_on.set()
        await reader.wait_for(others[-1].last_sequence)
        reader.check(others)
    await venue.kill()


@on_both_loops
async def test_record_that_is_not_what_was_written(tmp_path: Path) -> None:
    venue = VenueLog(tmp_path)
    await venue.start()
    venue.write_all(BATCHES)
    content = bytearray(venue.segments[2].read_bytes())
    content[-1] ^= 1
    venue.segments[2].write_bytes(content)
    async with reading(venue) as reader:
        failure = await reader.failure()
        assert (failure.exit_code, failure.is_other_log) == (66, False)
        assert venue.segments[2].name in str(failure)
        assert "not the record that was written" in str(failure)
        last = int(venue.segments[3].stem) - 1
        reader.check([batch for batch in BATCHES if batch.last_sequence < last])
        assert len([line for line in venue.lines if "event_log_trouble" in line]) == 1
    await venue.kill()


@on_both_loops
@pytest.mark.parametrize("place", [0, 1, 4])
async def test_segment_that_is_missing_for_good_and_for_a_while(
    tmp_path: Path, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    venue = VenueLog(tmp_path)
    await venue.start()
    venue.write_all(BATCHES)
    path = venue.segments[place]
    aside = path.rename(tmp_path / "aside")
    async with reading(venue) as reader:
        failure = await reader.failure()
        assert failure.exit_code in (66, 74)  # Its header is wanted, or it.
        reader.check(BATCHES[: len(reader.records)])
    monkeypatch.setattr(tail_module, "TROUBLE_MAX", 10**6)
    async with reading(venue) as reader:
        await until(lambda: len([x for x in venue.lines if "event_log_trouble" in x]) == 2)
        aside.rename(path)
        await reader.wait_for(BATCHES[-1].last_sequence)
        reader.check(BATCHES)
    await venue.kill()


@on_both_loops
async def test_position_behind_the_file_is_damage(tmp_path: Path) -> None:
    venue = VenueLog(tmp_path)
    await venue.start()
    venue.write_all(BATCHES[:10])
    os.truncate(venue.segments[-1], venue.segments[-1].stat().st_size - 1)
    async with reading(venue) as reader:
        assert "ends before what was written" in str(await reader.failure())
        reader.check(BATCHES[:9])
    await venue.kill()


@on_both_loops
async def test_disk_that_does_not_answer_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    venue = VenueLog(tmp_path)
    await venue.start()
    venue.write_all(BATCHES)
    may_go_on = threading.Event()
    plain = FolderFile.read

    def slow(self: FolderFile, offset: int, size: int) -> bytes:
        assert threading.current_thread() is not threading.main_thread(), "not on the loop"
        may_go_on.wait(PATIENCE_S)
        return plain(self, offset, size)

    monkeypatch.setattr(FolderFile, "read_cached", lambda self, offset, buffer: 0)
    monkeypatch.setattr(FolderFile, "read", slow)
    async with reading(venue) as reader:
        await reader.source.unless_ended(reader.source._wait_opened())
        for _ in range(200):
            await asyncio.sleep(0)
        assert (reader.records, reader.source.lag) == ([], BATCHES[-1].last_sequence)
        may_go_on.set()
        await reader.wait_for(BATCHES[-1].last_sequence)
        reader.check(BATCHES)
    await venue.kill()


@on_both_loops
async def test_disk_that_fails_ends_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: FolderFile, offset: int, buffer: memoryview) -> int:
        raise OSError(5, "Input/output error")

    venue = VenueLog(tmp_path)
    await venue.start()
    venue.write_all(BATCHES[:5])
    monkeypatch.setattr(FolderFile, "read_cached", fail)
    async with reading(venue) as reader:
        failure = await reader.failure()
        assert (failure.exit_code, str(failure)) == (74, "[Errno 5] Input/output error")
    await venue.kill()


@on_both_loops
async def test_loop_gets_its_turn_between_records(tmp_path: Path) -> None:
    venue = VenueLog(tmp_path)
    await venue.start()
    venue.write_all(BATCHES)
    now_ns = 0
    turns: list[int] = []
    seen: list[int] = []

    class Steps(SystemClock):
        def monotonic_ns(self) -> int:
            return now_ns

    def take(record: EventRecord) -> None:
        nonlocal now_ns
        now_ns += tail_module.SLICE_NS // 2  # two records are a slice
        seen.append(record.header.first_sequence)

    source = LocalSource(venue.surroundings(Steps()), take)
    source.start()
    await source.opened()
    async with asyncio.timeout(PATIENCE_S):
        while len(seen) < len(BATCHES):
            turns.append(len(seen))
            await asyncio.sleep(0)
    assert max(b - a for a, b in pairwise(turns)) <= 2
    source.close()
    await venue.kill()


@pytest.mark.parametrize(
    ("failure_class", "exit_code"), [(AssertionError, 65), (JournalDamaged, 66), (OSError, 74)]
)
@on_both_loops
async def test_sink_that_fails_ends_the_source(
    tmp_path: Path, failure_class: type[Exception], exit_code: int
) -> None:
    venue = VenueLog(tmp_path)
    await venue.start()
    venue.write_all(BATCHES[:5])

    calls: list[int] = []

    def refuse(record: EventRecord) -> None:
        calls.append(record.header.first_sequence)
        raise failure_class(f"number of {record.header.first_sequence}")

    source = LocalSource(venue.surroundings(), refuse)
    source.start()
    async with asyncio.timeout(PATIENCE_S):
        failure = await source.ended
    assert str(failure).endswith("number of 1")
    assert failure.exit_code == exit_code
    assert isinstance(failure.__cause__, failure_class)
    assert calls == [1], "a record is handed on once"
    await venue.kill()


@on_both_loops
async def test_what_is_no_position_ends_it(tmp_path: Path) -> None:
    venue = VenueLog(tmp_path)
    await venue.start()
    async with reading(venue) as reader:
        await reader.source.opened()
        assert venue.stream is not None
        venue.stream.message = b"X" * 64
        for connected in list(venue.stream._readers):
            connected.tell()
        failure = await reader.failure()
    assert "the venue's position: not a position message" in str(failure)
    assert (failure.exit_code, failure.is_other_log) == (66, False)
    await venue.kill()


@on_both_loops
async def test_path_longer_than_the_address_of_a_socket(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    venue = VenueLog(folder)
    await venue.start()
    venue.write_all(BATCHES[:3])
    async with reading(venue) as reader:
        await reader.wait_for(BATCHES[2].last_sequence)
        reader.check(BATCHES[:3])
    await venue.kill()
