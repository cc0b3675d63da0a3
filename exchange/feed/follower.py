"""A feed server's log on another host: a copy of that of a feed upstream, byte for byte.

Records come over TCP, are checked, and are written as a venue writes them, on a thread; the tail of
the copy then hands them on as it does beside a venue. After a loss it goes on with the last record
with events that it has: that must be the same upstream, or the logs are not one. The copy may be
cut off anywhere; what is missing comes again. How much waits to be written is bounded: while
the disk is behind, nothing is read from the connection.
"""

import asyncio
from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial
from typing import Final, NamedTuple, TypeVar

from exchange.feed.source import DAMAGED, FeedFailure, RecordSink, TailSource
from exchange.feed.surroundings import OtherFeed, Surroundings
from exchange.feed.upstream import Upstream
from journal import (
    EventLog,
    EventReader,
    EventRecord,
    JournalDamaged,
    Storage,
    split_records,
)
from journal.event_format import RecordHeader
from journal.storage import TEMPORARY_SUFFIX, write_durably
from protocol.feed import FeedState

__all__ = ["FollowerSource"]

EVENTS_FOLDER: Final = "events"
EPOCH_NAME: Final = "epoch"
COMMANDS_FOLDER: Final = "commands"
"""That of a venue: its event log is not for us to write."""

CONNECT_WAIT_S: Final = 5.0
RECONNECT_PAUSE_MIN_S: Final = 0.05
RECONNECT_PAUSE_MAX_S: Final = 2.0
"""Pauses between attempts to connect: doubling from the first to the second."""

QUEUE_SIZE_MAX: Final = 8 * 1024 * 1024
"""Bytes of records that wait to be written; what one read of the socket brings may come on top."""

CONFIGURATION: Final = 64

_Result = TypeVar("_Result")


class _Copy(NamedTuple):
    """What a start finds: the log, open for writing, its epoch (0: none), and the header of its
    last record with events (None: there is none)."""

    event_log: EventLog
    epoch: int
    last_header: RecordHeader | None


class FollowerSource(TailSource):
    """A `Source` that asks another feed for its log and keeps a copy; the epoch is kept beside it.

    `from_sequence`, `last_header` and `epoch` are of a checkpoint, as those of `LocalSource`.
    Reconnects for ever, and goes on by sequence. With a copy that reaches `from_sequence` - 1 the
    source is open without the feed upstream.
    """

    def __init__(
        self,
        surroundings: Surroundings,
        sink: RecordSink,
        *,
        from_sequence: int = 1,
        last_header: RecordHeader | None = None,
        epoch: int = 0,
    ) -> None:
        super().__init__(surroundings, sink, from_sequence - 1, last_header)
        assert isinstance(surroundings.origin, OtherFeed), "there is a feed upstream"
        self.epoch = epoch
        self._surroundings = surroundings
        self._origin = surroundings.origin
        self._thread = surroundings.make_threads(1, "feed-copy")
        self._event_log: EventLog | None = None
        self._upstream: Upstream | None = None
        self._upstream_sequence = 0  # the last that the feed upstream is known to have
        self._sequence = 0  # of the last record that has come
        self._last_header: RecordHeader | None = None  # of the last one with events
        self._compared_sequence = 0  # up to here what is upstream is ours, on this connection
        self._queue: list[EventRecord] = []
        self._queue_size = 0
        self._has_news = asyncio.Event()
        self._is_opened = asyncio.Event()
        self._is_epoch_kept = False
        self._is_tailing = False

    @property
    def is_connected(self) -> bool:
        upstream = self._upstream
        return upstream is not None and upstream.is_open and not upstream.lost.done()

    @property
    def lag(self) -> int:
        known = max(self._upstream_sequence, self._sequence, self.tail.until.sequence)
        return known - self.tail.position.sequence

    def start(self) -> None:
        self.begin(self._follow())

    async def opened(self) -> None:
        await self.unless_ended(self._wait_opened())

    async def caught_up(self) -> None:
        sequence = max(self.tail.until.sequence, self._upstream_sequence)
        await self.unless_ended(self.tail.reach(sequence))

    def close(self) -> None:
        if self.is_closed:
            return
        super().close()
        if self._upstream is not None:
            self._upstream.abort()
        # Behind what is being written.
        self._thread.submit(self._let_go)
        self._thread.shutdown(wait=False)

    # Called by the connection.

    def upstream_opened(self, state: FeedState) -> int:
        """See UpstreamOwner; another epoch ends the source."""
        if self.epoch not in (0, state.epoch):
            text = f"the epoch upstream is {state.epoch}, that of the copy is {self.epoch}"
            self._fail_as_other(text)
            return 0
        self._upstream_sequence = state.sequence
        if state.sequence < self._sequence:
            return 0
        self.epoch = state.epoch
        self._is_opened.set()
        last = self._last_header
        self._compared_sequence = last.first_sequence - 1 if last is not None else 0
        self.log.info("upstream_connected", sequence=state.sequence, epoch=state.epoch)
        return self._compared_sequence + 1

    def upstream_moved(self, state: FeedState) -> None:
        """See UpstreamOwner."""
        self._upstream_sequence = state.sequence

    def record_received(self, sequence: int, content: bytes) -> str:
        """See UpstreamOwner; another record than the one that is here ends the source."""
        try:
            records, taken = split_records(content)
        except JournalDamaged as error:
            return f"the record of sequence {sequence}: {error.defect}"
        if len(records) != 1 or taken != len(content):
            return f"the record of sequence {sequence} is not whole"
        header = records[0].header
        if self._compared_sequence < self._sequence:
            if not self._is_ours(header):
                self._fail_as_other(f"the record of sequence {header.first_sequence} differs")
            self._compared_sequence = header.last_sequence
            return ""
        if header.first_sequence != self._sequence + 1:
            return f"a record of sequence {header.first_sequence} follows {self._sequence}"
        self._sequence = self._compared_sequence = header.last_sequence
        if header.size:
            self._last_header = header
        self._queue.append(records[0])
        self._queue_size += len(content)
        self._has_news.set()
        if self._queue_size >= QUEUE_SIZE_MAX and self._upstream is not None:
            self._upstream.hold()
        return ""

    # Inside.

    def _is_ours(self, header: RecordHeader) -> bool:
        """Whether a record from upstream is in the copy: behind the last one with events are only
        some without."""
        last = self._last_header
        if last is not None and self._compared_sequence < last.first_sequence:
            return header == last
        follows = header.first_sequence == self._compared_sequence + 1
        return follows and not header.size and header.last_sequence <= self._sequence

    async def _wait_opened(self) -> None:
        await self._is_opened.wait()
        await self.tail.reach(self.tail.position.sequence)

    async def _follow(self) -> None:
        """Open the copy, then write what comes and stay connected."""
        copy = await self._in_thread(partial(_open_copy, self._surroundings, self._origin.data))
        if copy.epoch and self.epoch not in (0, copy.epoch):
            text = f"the epoch of the copy is {copy.epoch}, what was read has {self.epoch}"
            raise FeedFailure(DAMAGED, text, is_other_log=True)
        self._event_log = copy.event_log
        self._last_header = copy.last_header
        self._sequence = copy.event_log.position.sequence
        self.epoch = copy.epoch or self.epoch
        if copy.epoch:
            self._is_epoch_kept = True
            self._is_opened.set()
        self._allow()
        self.begin(self._write(), self._stay_connected())

    async def _write(self) -> None:
        """Write what has come, all at once, for ever. Raises JournalFailed."""
        log, folder = self._event_log, self._origin.data
        assert log is not None, "the copy is open"
        while True:
            await self._has_news.wait()
            self._has_news.clear()
            if not self._is_epoch_kept:
                # Before the first record, so that a copy with records has one.
                await self._in_thread(partial(_write_epoch, folder, self.epoch))
                self._is_epoch_kept = True
            records, self._queue, self._queue_size = self._queue, [], 0
            await self._in_thread(partial(_append, log, records))
            self._allow()
            if self._upstream is not None:
                self._upstream.release()

    def _allow(self) -> None:
        """The tail may read what is written; it begins when the log is where it shall begin."""
        assert self._event_log is not None, "the copy is open"
        position = self._event_log.position
        if position.sequence < self.tail.until.sequence:
            return
        self.tail.allow(position)
        if not self._is_tailing:
            self._is_tailing = True
            self.begin(self.tail.run())

    async def _stay_connected(self) -> None:
        """Connect, and again when the connection is lost, for ever."""
        pause_s = RECONNECT_PAUSE_MIN_S
        said = ""
        while True:
            upstream = self._upstream = Upstream(self, self._origin.key, self._surroundings)
            try:
                await self._connect(upstream)
                reason = await upstream.lost
            except OSError as error:
                reason = error.strerror or str(error) or "no answer in time"
            finally:
                # uvloop closes a transport whose connecting was canceled without telling anybody.
                upstream.abort()
            if upstream.is_open:
                pause_s, said = RECONNECT_PAUSE_MIN_S, ""
            if reason != said:
                said = reason
                self.log.error("upstream_away", reason=reason)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, RECONNECT_PAUSE_MAX_S)

    async def _connect(self, upstream: Upstream) -> None:
        """Raises OSError, TimeoutError among them."""
        async with asyncio.timeout(CONNECT_WAIT_S):
            loop = asyncio.get_running_loop()
            host, port = self._origin.host, self._origin.port
            await loop.create_connection(lambda: upstream, host, port)

    def _fail_as_other(self, text: str) -> None:
        """The log upstream is not the one that is copied here; a person has to decide."""
        text += f": remove {EVENTS_FOLDER}/ and {EPOCH_NAME} in the data folder to copy it anew"
        self.fail(FeedFailure(DAMAGED, text, is_other_log=True))

    def _let_go(self) -> None:
        if self._event_log is not None:
            self._event_log.close()
        self._origin.data.close()

    async def _in_thread(self, job: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, job)


def _open_copy(surroundings: Surroundings, folder: Storage) -> _Copy:
    """Take the folder, and mend the copy that is in it. Raises FeedFailure, JournalError."""
    folder.lock()
    with suppress(FileNotFoundError):
        folder.remove(EPOCH_NAME + TEMPORARY_SUFFIX)
    if COMMANDS_FOLDER in folder.names():
        text = "this is the data of a venue; a copy of another log needs a folder of its own"
        raise FeedFailure(CONFIGURATION, text)
    storage = surroundings.events
    event_log = EventLog.open(storage, execute=surroundings.execute)
    event_log.resume()
    position = event_log.position
    epoch = _read_epoch(folder, position.sequence)
    return _Copy(event_log, epoch, _last_header(EventReader(storage, position), position.sequence))


def _last_header(reader: EventReader, sequence: int) -> RecordHeader | None:
    """Header of the last record with events up to the end at this sequence."""
    span, found = 1, None
    while found is None and span < 2 * sequence:
        # Few in a row have none, so it is looked for from near the end, then from further away.
        for header, events in reader.records(max(sequence - span, 1)):
            found = header if events else found
        span *= 2
    return found


def _read_epoch(folder: Storage, sequence: int) -> int:
    """The epoch of the copy; 0 when nothing was ever copied."""
    try:
        with closing(folder.open(EPOCH_NAME)) as file:
            text = file.read(0, file.size())
    except FileNotFoundError:
        text = b""
    if text.endswith(b"\n") and text[:-1].isdigit():
        return int(text)
    if text or sequence:
        raise FeedFailure(DAMAGED, f"{EPOCH_NAME} does not say the epoch of the log beside it")
    return 0


def _write_epoch(folder: Storage, epoch: int) -> None:
    write_durably(folder, EPOCH_NAME, [b"%d\n" % epoch])


def _append(event_log: EventLog, records: list[EventRecord]) -> None:
    """Write records to the copy. Raises JournalFailed."""
    for header, events in records:
        event_log.append(
            header.first_sequence,
            header.command_count,
            header.rules_version,
            events,
            header.events_crc,
        )
