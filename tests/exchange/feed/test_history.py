"""History: the same packets, private events and records as the log itself gives, from everywhere,
read once for everybody, in bounded memory, and with patience for a log that is being mended."""

import asyncio
import gc
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any, cast
from zlib import crc32

import pytest

from exchange import position as position_module
from exchange.feed import history as history_module
from exchange.feed import tail as tail_module
from exchange.feed.history import History, HistoryError
from exchange.feed.source import LocalSource, Source
from journal import EventPosition, FolderStorage, PrivateEvent, private_events
from journal.event_format import ENTRY_HEAD
from journal.storage import FolderFile
from protocol.packer import Packer
from protocol.packets import decode_packet
from tests.exchange.feed.venue_log import EPOCH, VenueLog
from tests.exchange.loops import on_both_loops, until
from tests.journal.event_life import Batch, make_batches, run

RARE = 5
"""A channel that is used by the first and the last batch only."""
LIMITS = (1, 300, 2_000, 10**9)


def rare_batch(first_sequence: int, first_number: int, count: int) -> Batch:
    events = b"".join(
        ENTRY_HEAD.pack(50, 3, 0, RARE, 0, 0, number, first_sequence, 7) + b"%010d" % number
        for number in range(first_number, first_number + count)
    )
    payloads = b"".join(b"%010d" % number for number in range(first_number, first_number + count))
    return Batch(first_sequence, 1, 2, events, crc32(payloads))


def with_rare_channel(batches: list[Batch]) -> list[Batch]:
    """One batch more at the beginning and one at the end; sequences move on by one."""
    moved = []
    for batch in batches:
        events = bytearray()
        offset = 0
        while offset < len(batch.events):
            length, *head = ENTRY_HEAD.unpack_from(batch.events, offset)
            head[6] += 1  # its sequence
            events += ENTRY_HEAD.pack(length, *head)
            events += batch.events[offset + ENTRY_HEAD.size : offset + length]
            offset += length
        moved.append(batch._replace(first_sequence=batch.first_sequence + 1, events=bytes(events)))
    end = rare_batch(moved[-1].last_sequence + 1, 101, 50)
    return [rare_batch(1, 1, 100), *moved, end]


BATCHES = with_rare_channel(make_batches(300, seed=33))


def packets_of(batches: list[Batch], channel: int) -> list[bytes]:
    """As the multicast had them."""
    packer = Packer(EPOCH)
    packed = [packet for batch in batches for packet in packer.pack(batch.events, 0)]
    return [packet for number, packet in packed if number == channel]


def private_of(batches: list[Batch]) -> list[PrivateEvent]:
    return [event for batch in batches for event in private_events(batch.events)]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks in a segment, and no pauses."""
    monkeypatch.setattr(history_module, "BLOCK_SIZE", 500)
    monkeypatch.setattr(history_module, "SCAN_SIZE", 300)
    monkeypatch.setattr(history_module, "ATTEMPT_PAUSE_S", 0.001)
    monkeypatch.setattr(tail_module, "TROUBLE_PAUSE_S", 0.001)
    monkeypatch.setattr(position_module, "RECONNECT_PAUSE_MIN_S", 0.001)


class Desk:
    """A venue, a source and a history."""

    def __init__(self, folder: Path) -> None:
        self.venue = VenueLog(folder)
        surroundings = self.venue.surroundings()
        self.source = LocalSource(surroundings, lambda record: None)
        self.history = History(self.source, surroundings)

    async def write(self, batches: list[Batch]) -> None:
        self.venue.write_all(batches)
        await self.source.unless_ended(self.source.tail.reach(batches[-1].last_sequence))

    async def packets(self, channel: int, number: int, size_max: int) -> list[bytes]:
        """All pages from there on."""
        found: list[bytes] = []
        while True:
            page = await self.history.packets(channel, number, size_max=size_max)
            if not page.packets:
                assert page.next_number == number
                return found
            sizes = [len(packet) for packet in page.packets]
            assert len(sizes) == 1 or sum(sizes) <= size_max
            numbers = [decode_packet(packet).number for packet in page.packets]
            assert numbers[0] <= number < page.next_number
            if found:
                assert numbers[0] == number, "a page begins where the one before ended"
            found += page.packets
            number = page.next_number

    async def private(self, sequence: int, index: int, size_max: int) -> list[PrivateEvent]:
        found: list[PrivateEvent] = []
        while True:
            page = await self.history.private(sequence, index, size_max=size_max)
            found += page.events
            size = sum(len(event.payload) for event in page.events)
            assert len(page.events) <= 1 or size <= size_max
            if (page.next_sequence, page.next_index) == (sequence, index):
                return found
            assert (page.next_sequence, page.next_index) > (sequence, index)
            sequence, index = page.next_sequence, page.next_index

    async def log(self, sequence: int, size_max: int) -> list[tuple[int, bytes]]:
        found: list[tuple[int, bytes]] = []
        while True:
            page = await self.history.log(sequence, size_max=size_max)
            if not page.records:
                assert page.next_sequence == sequence
                return found
            size = sum(len(record.content) for record in page.records)
            assert len(page.records) == 1 or size <= size_max
            found += page.records
            sequence = page.next_sequence


@asynccontextmanager
async def at_work(folder: Path, batches: list[Batch]) -> AsyncIterator[Desk]:
    desk = Desk(folder)
    await desk.venue.start()
    desk.source.start()
    await desk.source.opened()
    if batches:
        await desk.write(batches)
    try:
        yield desk
    finally:
        desk.history.close()
        desk.source.close()
        await desk.venue.kill()


def drop_indexes(desk: Desk) -> None:
    for path in desk.venue.events.glob("*.index"):
        path.unlink()


@pytest.mark.parametrize("is_indexed", [True, False])
@on_both_loops
async def test_packets_from_every_number(tmp_path: Path, is_indexed: bool) -> None:
    async with at_work(tmp_path, BATCHES) as desk:
        assert len(desk.source.segments) > 10
        if not is_indexed:
            drop_indexes(desk)
        for channel in (1, 2, RARE):
            expected = packets_of(BATCHES, channel)
            firsts = [decode_packet(packet).number for packet in expected]
            last = decode_packet(expected[-1])
            end = last.number + len(last.blocks)
            for number in [*range(1, end, 37), end - 1]:
                begin = max(place for place, first in enumerate(firsts) if first <= number)
                assert await desk.packets(channel, number, 10**9) == expected[begin:]
            for size_max in LIMITS:
                assert await desk.packets(channel, 1, size_max) == expected
            for number in (end, end + 1, end + 10**6):
                page = await desk.history.packets(channel, number, size_max=1)
                assert page == ((), number)
        assert await desk.packets(9, 1, 100) == [], "a channel that nobody has used"


@pytest.mark.parametrize("is_indexed", [True, False])
@on_both_loops
async def test_private_events_from_every_place(tmp_path: Path, is_indexed: bool) -> None:
    async with at_work(tmp_path, BATCHES) as desk:
        if not is_indexed:
            drop_indexes(desk)
        expected = private_of(BATCHES)
        assert len({event.kind for event in expected}) == 2
        for size_max in LIMITS:
            assert await desk.private(1, 0, size_max) == expected
        for place in range(0, len(expected), 41):
            sequence, index = expected[place].sequence, expected[place].event_index
            assert await desk.private(sequence, index, 200) == expected[place:]
            assert await desk.private(sequence, index + 1, 200) == expected[place + 1 :]
        end = BATCHES[-1].last_sequence + 1
        assert await desk.history.private(end, 0, size_max=1) == ((), end, 0)


@pytest.mark.parametrize("is_indexed", [True, False])
@on_both_loops
async def test_log_from_every_sequence(tmp_path: Path, is_indexed: bool) -> None:
    async with at_work(tmp_path, BATCHES) as desk:
        if not is_indexed:
            drop_indexes(desk)
        whole = b"".join(path.read_bytes()[64:] for path in desk.venue.segments)
        for size_max in LIMITS:
            found = await desk.log(1, size_max)
            assert b"".join(content for _, content in found) == whole
        for sequence in range(1, BATCHES[-1].last_sequence + 2, 41):
            wanted = [batch for batch in BATCHES if batch.last_sequence >= sequence]
            found = await desk.log(sequence, 700)
            assert [first for first, _ in found] == [batch.first_sequence for batch in wanted]
            assert [content[32:] for _, content in found] == [batch.events for batch in wanted]


@on_both_loops
async def test_history_ends_where_the_source_is_and_goes_on_with_it(tmp_path: Path) -> None:
    async with at_work(tmp_path, []) as desk:
        assert await desk.packets(1, 1, 100) == []
        assert await desk.private(1, 0, 100) == []
        assert await desk.log(1, 100) == []
        for count in range(3, 60, 3):
            await desk.write(BATCHES[count - 3 : count])
            assert await desk.packets(1, 1, 900) == packets_of(BATCHES[:count], 1)
            assert await desk.private(1, 0, 900) == private_of(BATCHES[:count])
            assert [first for first, _ in await desk.log(1, 900)] == [
                batch.first_sequence for batch in BATCHES[:count]
            ]


@on_both_loops
async def test_record_larger_than_blocks_and_segments(tmp_path: Path) -> None:
    batches = make_batches(40, seed=5, events_max=60)
    assert sum(len(batch.events) > 2_048 for batch in batches) > 5
    async with at_work(tmp_path, batches) as desk:
        for channel in (1, 2):
            assert await desk.packets(channel, 1, 5_000) == packets_of(batches, channel)
        assert await desk.private(1, 0, 100) == private_of(batches)
        assert len(await desk.log(1, 1)) == 40


@on_both_loops
async def test_many_who_ask_at_once_cost_one_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    plain = FolderFile.read

    def count(self: FolderFile, offset: int, size: int) -> bytes:
        assert threading.current_thread() is not threading.main_thread(), "not on the loop"
        reads.append(offset)
        return plain(self, offset, size)

    async with at_work(tmp_path, BATCHES) as desk:
        monkeypatch.setattr(FolderFile, "read", count)
        one = await desk.packets(1, 1, 500)
        alone = len(reads)
        desk.history._forget()
        reads.clear()
        all_of_them = await asyncio.gather(*(desk.packets(1, 1, 500) for _ in range(50)))
        assert all(found == one for found in all_of_them)
        assert len(reads) == alone
        again = await asyncio.gather(*(desk.packets(1, 1, 500) for _ in range(50)))
        assert all(found == one for found in again)
        assert len(reads) == alone, "it is kept"
        assert desk.history.hit_count > 50 * len(one) // 2
        same = await desk.history.packets(1, 1, size_max=10**9)
        other = await desk.history.packets(1, 1, size_max=10**9)
        assert all(a is b for a, b in zip(same.packets, other.packets, strict=True))


@on_both_loops
async def test_cache_is_bounded_and_what_it_lost_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_module, "CACHE_SIZE_MAX", 6_000)
    monkeypatch.setattr(history_module, "SCANS_MAX", 2)
    monkeypatch.setattr(history_module, "LAST_NUMBERS_MAX", 5)
    dice = Random(8)
    async with at_work(tmp_path, BATCHES) as desk:
        expected = packets_of(BATCHES, 1)
        drop_indexes(desk)
        for _ in range(60):
            place = dice.randrange(len(expected))
            number = decode_packet(expected[place]).number
            page = await desk.history.packets(1, number, size_max=1)
            assert page.packets == (expected[place],)
            sizes = [size for _, size in desk.history._cache.values()]
            assert desk.history.cached_size == sum(sizes) <= 6_000
            assert len(desk.history._scans) <= 2
            assert len(desk.history._last_numbers) <= 5
        assert not desk.history._loading


class Still:
    """A source that stands where the test says."""

    epoch = EPOCH
    generation = 0

    def __init__(self, position: EventPosition) -> None:
        self.position = position
        self.segments = [1]

    @property
    def sequence(self) -> int:
        return self.position.sequence


@on_both_loops
async def test_walk_that_is_just_done_is_not_waited_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log has gone on meanwhile, and the task that walked it has not been taken out yet."""
    log = run(FolderStorage(tmp_path / "events"), [], segment_size=10**6)
    positions = []
    for batch in BATCHES[:40]:
        log.append(*batch)
        positions.append(log.position)
    source = Still(positions[20])
    history = History(cast("Source", source), VenueLog(tmp_path).surroundings())
    gate = asyncio.get_running_loop().create_future()
    share_count = 0
    plain_feed, plain_share = History._feed, History._share

    async def feed(self: History, *args: Any) -> Any:
        result = await plain_feed(self, *args)
        if not gate.done():
            source.position = positions[30]
            gate.set_result(None)  # Who waits for it comes before those who wait for this task.
        return result

    async def share(self: History, *args: Any) -> Any:
        nonlocal share_count
        share_count += 1
        assert share_count < 1_000, "it turns without an end"
        return await plain_share(self, *args)

    async def ask(sequence: int, gate: "asyncio.Future[None] | None") -> int:
        if gate is not None:
            await gate
        page = await history.log(sequence, size_max=1)
        return page.records[0].first_sequence

    monkeypatch.setattr(History, "_feed", feed)
    monkeypatch.setattr(History, "_share", share)
    first, second = BATCHES[3].first_sequence, BATCHES[30].first_sequence
    answers = await asyncio.gather(ask(first, None), ask(second, gate))
    assert [*answers] == [first, second]
    history.close()
    log.close()


@on_both_loops
async def test_who_asked_first_and_goes_takes_nobody_with_him(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go_on = threading.Event()
    plain = FolderFile.read

    def slow(self: FolderFile, offset: int, size: int) -> bytes:
        may_go_on.wait(20)
        return plain(self, offset, size)

    async with at_work(tmp_path, BATCHES) as desk:
        monkeypatch.setattr(FolderFile, "read", slow)
        askers = [asyncio.ensure_future(desk.packets(1, 1, 10**9)) for _ in range(9)]
        await until(lambda: bool(desk.history._loading))
        for asker in askers[:8]:
            asker.cancel()
        may_go_on.set()
        assert await askers[8] == packets_of(BATCHES, 1)
        await asyncio.gather(*askers, return_exceptions=True)
        # When all have gone, what was asked for comes and hurts nobody.
        may_go_on.clear()
        desk.history._forget()
        drop_indexes(desk)
        for path in desk.venue.segments[:3]:
            path.write_bytes(b"")
        asker = asyncio.ensure_future(desk.packets(1, 1, 10**9))
        await until(lambda: bool(desk.history._loading))
        asker.cancel()
        may_go_on.set()
        await until(lambda: not desk.history._loading)
    gc.collect()


@pytest.mark.parametrize("defect", ["short", "payload", "header", "empty", "missing"])
@on_both_loops
async def test_damage_is_told_and_may_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, defect: str
) -> None:
    async with at_work(tmp_path, BATCHES) as desk:
        drop_indexes(desk)
        path = desk.venue.segments[3]
        good = path.read_bytes()
        bad = {
            "short": good[:-1],
            "payload": good[:-1] + bytes([good[-1] ^ 1]),
            "header": good[:64] + bytes([good[64] ^ 1]) + good[65:],
            "empty": b"",
        }
        if defect == "missing":
            path.unlink()
        else:
            path.write_bytes(bad[defect])
        sequence = int(path.stem)
        for asked in (desk.packets(1, 1, 10**9), desk.private(1, 0, 10**9), desk.log(1, 10**9)):
            with pytest.raises(HistoryError, match=rf"{sequence}\.events"):
                await asked
        monkeypatch.setattr(history_module, "ATTEMPTS_MAX", 10**6)
        patient = asyncio.ensure_future(desk.log(sequence, 10**9))
        for _ in range(50):
            await asyncio.sleep(0)
        assert not patient.done()
        path.write_bytes(good)
        assert (await patient)[0][0] == sequence
        assert await desk.packets(1, 1, 10**9) == packets_of(BATCHES, 1)
        assert await desk.private(1, 0, 10**9) == private_of(BATCHES)


@on_both_loops
async def test_venue_that_writes_its_log_in_other_segments(tmp_path: Path) -> None:
    async with at_work(tmp_path, BATCHES[:200]) as desk:
        expected = packets_of(BATCHES[:200], 1)
        assert await desk.packets(1, 1, 900) == expected
        await desk.venue.kill()
        desk.venue.segment_size = 1_000
        await desk.venue.start()
        asked = [asyncio.ensure_future(desk.packets(1, 1, 900)) for _ in range(3)]
        generation = desk.source.generation
        await until(lambda: desk.source.generation > generation)
        for found in asked:
            assert (await found)[: len(expected)] == expected
        await desk.write(BATCHES[200:])
        assert await desk.packets(1, 1, 900) == packets_of(BATCHES, 1)
        assert len(await desk.log(1, 900)) == len(BATCHES)
