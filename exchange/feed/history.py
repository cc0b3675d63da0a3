"""What is no longer in memory: packets, private events and records, from the files of the log.

The log is cut into blocks of whole records at fixed places of its segments, so that all askers read
the same blocks. What a block holds is kept in one cache of immutable bytes, packed into packets or
as records; who asks for a block that somebody else is waiting for waits with him. Where something
is, is looked up in the index of its segment; a segment that has none yet is walked as far as it
goes. Files are read on threads (aiofiles); on the loop a block takes about a ms.
"""

import asyncio
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import closing
from typing import Any, Final, NamedTuple, TypeVar

from aiofiles.os import wrap

from exchange.feed.source import Source
from exchange.feed.surroundings import Surroundings
from journal import (
    EventPosition,
    EventRecord,
    JournalDamaged,
    PrivateEvent,
    Storage,
    private_events,
    split_records,
)
from journal.event_format import MARKET_DATA, index_name, segment_name
from journal.event_index import POINT_SPACING, Index, decode_index
from journal.streams import SegmentScanner
from protocol.packer import Packer
from protocol.packets import PACKET_HEADER

__all__ = ["History", "HistoryError", "LogPage", "LogRecord", "PacketPage", "PrivatePage"]

BLOCK_SIZE: Final = 128 * 1024
"""Bytes of a segment in which the records of a block begin: checking and packing them takes about
a ms. The last record of a block may be larger."""

CACHE_SIZE_MAX: Final = 64 * 1024 * 1024
"""Bytes of blocks and indexes that are kept for whoever asks next."""

READS_MAX: Final = 4
"""Reads at a time, each on a thread of its own; others wait."""

SCAN_SIZE: Final = 256 * 1024
"""Bytes of a segment that are walked at once: less than a tenth of a ms."""

SCANS_MAX: Final = 8
"""Segments without an index whose places are kept: the open one, and those that wait for theirs."""

LAST_NUMBERS_MAX: Final = 65_536
"""Last numbers of channels in full segments that are remembered, some MB."""

ATTEMPTS_MAX: Final = 20
ATTEMPT_PAUSE_S: Final = 0.1
"""How often, and after which pause, an answer is tried when the files are not what they must be: a
venue that starts puts a file in the place of another within a few syncs."""

RECORD_OBJECTS_SIZE: Final = 350
PACKET_OBJECTS_SIZE: Final = 90
"""Bytes that the objects around the content of a record and of a packet take."""

_NUMBER: Final = 6
"""Place of the first message's number in the header of a packet."""

_Value = TypeVar("_Value")
_Key = tuple[str | int, ...]


class HistoryError(Exception):
    """The files do not have what the log must have, or the disk failed; one line for a person."""


class PacketPage(NamedTuple):
    """DATA packets of a channel in order, as the multicast had them (send_time_ns 0: they are
    shared, and sent at any time); the first may begin below the number that was asked for.

    `next_number` is the one behind the last; no packets: the log has nothing from there on.
    """

    packets: tuple[bytes, ...]
    next_number: int


class PrivatePage(NamedTuple):
    """All private events (kinds 1 and 4) from where was asked up to where the next page begins:
    (next_sequence, next_index). Unchanged: the log has nothing from there on."""

    events: tuple[PrivateEvent, ...]
    next_sequence: int
    next_index: int


class LogRecord(NamedTuple):
    """A record of events/ as it is in the file: header of 32 bytes and events."""

    first_sequence: int
    content: bytes


class LogPage(NamedTuple):
    """Records in order from the one that has the sequence; none: the log has nothing from there."""

    records: tuple[LogRecord, ...]
    next_sequence: int


class _Packed(NamedTuple):
    """Packets of one channel in a block: their first numbers, and the one behind the last."""

    firsts: tuple[int, ...]
    packets: tuple[bytes, ...]
    next_number: int


class _Block(NamedTuple):
    """Where the records of a block are in their segment."""

    segment: int
    begin: int
    end: int


class History:
    """See the module. It reads what `source` reads; up to `source.position`.

    All methods return at least one item if there is any, else as many as `size_max` bytes hold.
    They raise HistoryError. Counters are plain integers, for whoever collects metrics.
    """

    def __init__(self, source: Source, surroundings: Surroundings) -> None:
        self.read_count = 0
        self.read_size = 0
        self.hit_count = 0
        self.cached_size = 0
        self._source = source
        self._storage = surroundings.events
        self._threads = surroundings.make_threads(READS_MAX, "feed-history")
        self._turns = asyncio.Semaphore(READS_MAX)
        self._cache: OrderedDict[_Key, tuple[Any, int]] = OrderedDict()
        self._loading: dict[_Key, asyncio.Task[Any]] = {}
        self._scans: OrderedDict[int, _Scan] = OrderedDict()
        self._last_numbers: OrderedDict[tuple[int, int], int] = OrderedDict()
        self._generation = source.generation

    async def packets(self, channel: int, from_number: int, *, size_max: int) -> PacketPage:
        """Packets of a channel from the one that has this number on."""
        return await self._attempt(lambda: self._packets(channel, from_number, size_max))

    async def private(
        self, from_sequence: int, from_index: int = 0, *, size_max: int
    ) -> PrivatePage:
        """Private events from this one of this command on; `from_sequence` is at least 1."""
        return await self._attempt(lambda: self._private(from_sequence, from_index, size_max))

    async def log(self, from_sequence: int, *, size_max: int) -> LogPage:
        """Records from the one that has this sequence on; `from_sequence` is at least 1."""
        return await self._attempt(lambda: self._log(from_sequence, size_max))

    def close(self) -> None:
        """Let go of files and threads; whoever still waits is canceled."""
        for task in self._loading.values():
            task.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _attempt(self, ask: Callable[[], Awaitable[_Value]]) -> _Value:
        """Ask until it is answered, for a while. Raises HistoryError."""
        attempt = 1
        while True:
            if self._generation != self._source.generation:
                self._forget()
            try:
                return await ask()
            except (JournalDamaged, OSError) as error:
                self._forget_places()
                if attempt == ATTEMPTS_MAX:
                    raise HistoryError(str(error)) from error
            await asyncio.sleep(ATTEMPT_PAUSE_S)
            attempt += 1

    def _forget(self) -> None:
        """The segments are others than before. What is being loaded has a key that counts on."""
        self._generation = self._source.generation
        self._cache.clear()
        self.cached_size = 0
        self._forget_places()

    def _forget_places(self) -> None:
        """Where things are has to be read again; what a block held was checked."""
        for key in [key for key in self._cache if key[0] == "index"]:
            self.cached_size -= self._cache.pop(key)[1]
        self._scans.clear()
        self._last_numbers.clear()

    # What is asked for.

    async def _packets(self, channel: int, number: int, size_max: int) -> PacketPage:
        segment = await self._segment_of(channel, number)
        if not segment:
            return PacketPage((), number)
        places = await self._places(segment)
        offset = places.find(MARKET_DATA, channel, number)
        found = None
        while offset:
            packed = await self._packed(await self._block(segment, offset))
            found = packed.get(channel)
            if found is not None and found.next_number > number:
                break
            offset = places.next_row((offset // BLOCK_SIZE + 1) * BLOCK_SIZE)
        if not offset or found is None:
            text = f"number {number} of channel {channel} is not where the index says"
            raise JournalDamaged(text, file=segment_name(segment))
        place = max(bisect_right(found.firsts, number) - 1, 0)
        if found.firsts[place] > number:
            text = f"number {number} of channel {channel} is missing"
            raise JournalDamaged(text, file=segment_name(segment))
        end, size = place + 1, len(found.packets[place])
        while end < len(found.packets) and size + len(found.packets[end]) <= size_max:
            size += len(found.packets[end])
            end += 1
        is_all = end == len(found.packets)
        next_number = found.next_number if is_all else found.firsts[end]
        return PacketPage(found.packets[place:end], next_number)

    async def _private(self, sequence: int, index: int, size_max: int) -> PrivatePage:
        events: list[PrivateEvent] = []
        size = 0
        for record in await self._records_from(sequence):
            for event in private_events(record.events):
                if (event.sequence, event.event_index) < (sequence, index):
                    continue
                size += len(event.payload)
                if events and size > size_max:
                    return PrivatePage(tuple(events), event.sequence, event.event_index)
                events.append(event)
            sequence, index = record.header.last_sequence + 1, 0
        return PrivatePage(tuple(events), sequence, index)

    async def _log(self, sequence: int, size_max: int) -> LogPage:
        records: list[LogRecord] = []
        size = 0
        for record in await self._records_from(sequence):
            size += record.size
            if records and size > size_max:
                break
            records.append(LogRecord(record.header.first_sequence, record.content))
            sequence = record.header.last_sequence + 1
        return LogPage(tuple(records), sequence)

    async def _records_from(self, sequence: int) -> tuple[EventRecord, ...]:
        """The records of a block from the one that has the sequence on; none: it is not there."""
        assert sequence >= 1, "sequences begin with 1"
        if sequence > self._source.sequence:
            return ()
        segments = self._source.segments
        place = bisect_right(segments, sequence) - 1
        if place < 0:
            raise JournalDamaged(f"events/ has no segment with sequence {sequence}")
        segment = segments[place]
        offset = (await self._places(segment)).find_sequence(sequence)
        if not offset:
            raise JournalDamaged(f"no record of sequence {sequence}", file=segment_name(segment))
        records = await self._records(await self._block(segment, offset))
        first = bisect_right(records, sequence, key=lambda record: record.header.first_sequence)
        return records[max(first - 1, 0) :]

    # Where it is.

    async def _segment_of(self, channel: int, number: int) -> int:
        """The segment that has a number of a channel; 0: none has it yet."""
        segments = self._source.segments
        low, high = 0, len(segments)
        while low < high:
            middle = (low + high) // 2
            if await self._last_number(segments, middle, channel) < number:
                low = middle + 1
            else:
                high = middle
        return segments[low] if low < len(segments) else 0

    async def _last_number(self, segments: Sequence[int], place: int, channel: int) -> int:
        """The last number of a channel in a segment or before it; 0: it has none there."""
        number = 0
        silent: list[int] = []  # full segments that do not know
        while place >= 0 and not number:
            segment = segments[place]
            is_full = segment != self._source.position.segment
            known = self._last_numbers.get((segment, channel))
            if known is not None:
                number = known
                break
            number = (await self._places(segment)).last_number(MARKET_DATA, channel)
            if is_full:
                silent.append(segment)
            place -= 1
        for segment in silent:
            self._last_numbers[segment, channel] = number
        while len(self._last_numbers) > LAST_NUMBERS_MAX:
            self._last_numbers.popitem(last=False)
        return number

    async def _places(self, segment: int) -> Index | SegmentScanner:
        """Of the records in a segment, up to the source's position. Raises JournalDamaged when it
        does not end where the next one begins, as when a venue has cut its log anew."""
        position = self._source.position
        if segment == position.segment:
            return await self._scan(segment, position)
        segments = self._source.segments
        following = bisect_right(segments, segment)
        if following == len(segments):
            raise JournalDamaged("the segments are others than before", file=segment_name(segment))
        last_sequence = segments[following] - 1
        if segment not in self._scans:
            key = ("index", self._generation, segment)
            index: Index | None = await self._share(key, lambda: self._load_index(segment))
            if index is not None:
                _check_end(segment, index, last_sequence)
                return index
        return await self._scan(segment, EventPosition(last_sequence, segment, 0))

    async def _load_index(self, segment: int) -> tuple[Index | None, int]:
        index, size = await self._in_thread(_read_index, index_name(segment))
        return index, size

    async def _scan(self, segment: int, end: EventPosition) -> SegmentScanner:
        """Walk a segment without an index up to `end`; offset 0: that of the file."""
        scan = self._scans.get(segment)
        if scan is None:
            scan = self._scans[segment] = _Scan()
            while len(self._scans) > SCANS_MAX:
                self._scans.popitem(last=False)
        self._scans.move_to_end(segment)
        if end.offset:
            scan.limit = end.offset
        elif not scan.is_full:
            scan.limit = await self._in_thread(_read_size, segment_name(segment))
            scan.is_full = True
        while scan.scanner.size < scan.limit:
            await self._share(
                ("scan", self._generation, segment), lambda: self._feed(segment, scan)
            )
        if not scan.scanner.is_whole:
            raise JournalDamaged("it ends inside a record", file=segment_name(segment))
        # A segment that was just begun has no record yet.
        if scan.is_full or (scan.limit == end.offset and scan.scanner.row_count):
            _check_end(segment, scan.scanner, end.sequence)
        return scan.scanner

    async def _feed(self, segment: int, scan: "_Scan") -> tuple[None, int]:
        scanner = scan.scanner
        try:
            while scanner.size < scan.limit:
                size = min(scan.limit - scanner.size, SCAN_SIZE)
                content = await self._read(segment, scanner.size, size)
                try:
                    scanner.feed(content)
                except ValueError as error:
                    raise JournalDamaged(str(error), file=segment_name(segment)) from None
        except BaseException:
            if self._scans.get(segment) is scan:
                del self._scans[segment]  # The next one begins anew.
            raise
        return None, 0

    # What is there.

    async def _block(self, segment: int, offset: int) -> _Block:
        """The block that has the record at an offset."""
        places = await self._places(segment)
        begin = offset // BLOCK_SIZE * BLOCK_SIZE
        end = places.next_row(begin + BLOCK_SIZE) or places.size
        return _Block(segment, places.next_row(begin), end)

    async def _records(self, block: _Block) -> tuple[EventRecord, ...]:
        key = ("records", self._generation, *block)
        records: tuple[EventRecord, ...] = await self._share(key, lambda: self._load(block))
        return records

    async def _packed(self, block: _Block) -> dict[int, _Packed]:
        key = ("packets", self._generation, *block)
        packed: dict[int, _Packed] = await self._share(key, lambda: self._pack(block))
        return packed

    async def _load(self, block: _Block) -> tuple[tuple[EventRecord, ...], int]:
        """The records of a block, and the bytes that they take."""
        size = block.end - block.begin
        records, taken = split_records(await self._read(block.segment, block.begin, size))
        if taken != size:
            name = segment_name(block.segment)
            raise JournalDamaged("it ends inside a record", file=name, offset=block.begin + taken)
        return tuple(records), size + RECORD_OBJECTS_SIZE * len(records)

    async def _pack(self, block: _Block) -> tuple[dict[int, _Packed], int]:
        """The packets of a block by channel, and the bytes that they take."""
        records, _ = await self._load(block)
        packer = Packer(self._source.epoch)
        packets: dict[int, list[bytes]] = {}
        size = 0
        for record in records:
            for channel, packet in packer.pack(record.events, 0):
                packets.setdefault(channel, []).append(packet)
                size += len(packet) + PACKET_OBJECTS_SIZE
        packed = {
            channel: _Packed(
                tuple(PACKET_HEADER.unpack_from(packet)[_NUMBER] for packet in found),
                tuple(found),
                packer.next_number(channel),
            )
            for channel, found in packets.items()
        }
        return packed, size

    # Reading and keeping.

    async def _share(
        self, key: _Key, load: Callable[[], Coroutine[Any, Any, tuple[Any, int]]]
    ) -> Any:
        """What is kept under the key, or will be by who asked first: the value that `load` gives,
        with its size. None is not kept."""
        kept = self._cache.get(key)
        if kept is not None:
            self._cache.move_to_end(key)
            self.hit_count += 1
            return kept[0]
        task = self._loading.get(key)
        # One that is done, and not yet taken out, would be waited for without a turn of the loop.
        if task is None or task.done():
            task = asyncio.get_running_loop().create_task(self._load_and_keep(key, load))
            self._loading[key] = task
            task.add_done_callback(lambda done: self._on_loaded(key, done))
        # Others may wait for it too, so it goes on when who asked first is canceled.
        return await asyncio.shield(task)

    async def _load_and_keep(
        self, key: _Key, load: Callable[[], Coroutine[Any, Any, tuple[Any, int]]]
    ) -> Any:
        value, size = await load()
        if value is not None and key[1] == self._generation and size <= CACHE_SIZE_MAX:
            self._cache[key] = value, size
            self.cached_size += size
            while self.cached_size > CACHE_SIZE_MAX:
                _, (_, gone) = self._cache.popitem(last=False)
                self.cached_size -= gone
        return value

    def _on_loaded(self, key: _Key, task: asyncio.Task[Any]) -> None:
        if self._loading.get(key) is task:
            del self._loading[key]
        if not task.cancelled():
            task.exception()  # Looked at, also when nobody waits any more.

    async def _read(self, segment: int, offset: int, size: int) -> bytes:
        """Bytes of a segment. Raises JournalDamaged when it has fewer."""
        name = segment_name(segment)
        content = await self._in_thread(_read_part, name, offset, size)
        self.read_count += 1
        self.read_size += len(content)
        if len(content) != size:
            raise JournalDamaged("it ends before what was written", file=name, offset=offset)
        return content

    async def _in_thread(self, read: Callable[..., Awaitable[_Value]], *args: Any) -> _Value:
        async with self._turns:
            return await read(self._storage, *args, executor=self._threads)


def _check_end(segment: int, places: Index | SegmentScanner, sequence: int) -> None:
    if places.last_sequence != sequence:
        text = f"it ends at sequence {places.last_sequence}, not at {sequence}"
        raise JournalDamaged(text, file=segment_name(segment))


class _Scan:
    """A segment without an index: its places so far, and how far it goes."""

    def __init__(self) -> None:
        self.scanner = SegmentScanner(POINT_SPACING)
        self.limit = 0
        self.is_full = False


@wrap
def _read_part(storage: Storage, name: str, offset: int, size: int) -> bytes:
    with closing(storage.open(name)) as file:
        return file.read(offset, size)


@wrap
def _read_size(storage: Storage, name: str) -> int:
    with closing(storage.open(name)) as file:
        return file.size()


@wrap
def _read_index(storage: Storage, name: str) -> tuple[Index | None, int]:
    """The index and its size; None when there is none."""
    try:
        file = storage.open(name)
    except FileNotFoundError:
        return None, 0
    with closing(file):
        content = file.read(0, file.size())
    return decode_index(content), len(content)
