"""Where a feed server's records come from: the event log of a venue beside it, as it grows.

The venue says over a local socket how far its log may be read. It may be away, and comes back: what
was read stays, and the feed goes on serving it. What cannot be is that another log comes back, or
one that has not what was read: then the process ends, and the next one begins anew.
"""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, Final, Protocol

from exchange.feed.surroundings import OtherFeed, Surroundings
from exchange.feed.tail import EventTail, OtherLogError, RecordSink
from exchange.position import PositionClient, PositionError
from journal import EventPosition, JournalError, Position
from journal.event_format import RecordHeader

__all__ = ["FeedFailure", "LocalSource", "RecordSink", "Source", "TailSource"]

ASSERTION: Final = 65
DAMAGED: Final = 66
STORAGE_FAILED: Final = 74
"""Exit codes, as those of the venue."""


class FeedFailure(Exception):
    """The feed cannot go on; the text is one line, the code that of the process.

    `is_other_log`: what was read before belongs to another log (the epoch changed, or the log has
    not what was read): a checkpoint must be removed before the process ends, so that the next
    start reads from the beginning. `__cause__` is the exception behind it, if there was one.
    """

    def __init__(self, exit_code: int, text: str, *, is_other_log: bool = False) -> None:
        super().__init__(text)
        self.exit_code = exit_code
        self.is_other_log = is_other_log


class Source(Protocol):
    """Records in order, up to where they may be read, and where they are found again.

    Made on the loop that it runs on.
    """

    ended: asyncio.Future[FeedFailure]
    """Done when the source has failed; the process ends then."""

    @property
    def epoch(self) -> int:
        """Of the market data; 0 until it is known. Never changes after."""

    @property
    def sequence(self) -> int:
        """The last one that was handed to the sink; at first the one before `from_sequence`."""

    @property
    def position(self) -> EventPosition:
        """Where the record that was handed on last ends: history is read up to here."""

    @property
    def segments(self) -> Sequence[int]:
        """First sequences of the segments up to `position`, in order."""

    @property
    def generation(self) -> int:
        """Grows when `segments` is no longer a continuation of what it was."""

    @property
    def is_connected(self) -> bool:
        """Whether the venue (or the feed upstream) is there."""

    @property
    def lag(self) -> int:
        """Commands that may be read and have not been handed on."""

    def start(self) -> None:
        """Begin. Records come from the loop, never from within this call."""

    async def opened(self) -> None:
        """Wait until the epoch is known and the log reaches `from_sequence` - 1, for ever if the
        venue stays away. Raises FeedFailure."""

    async def caught_up(self) -> None:
        """Wait until what is in the log now was handed on. Raises FeedFailure."""

    def close(self) -> None:
        """Stop; the sink is not called any more."""


class TailSource:
    """What both sources have in common: a tail, the tasks around it, and how it all ends."""

    def __init__(
        self,
        surroundings: Surroundings,
        sink: RecordSink,
        sequence: int,
        last_header: RecordHeader | None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[FeedFailure] = loop.create_future()
        self.tail = EventTail(surroundings, sink, sequence, last_header)
        self.log = surroundings.log
        self.is_closed = False
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def sequence(self) -> int:
        return self.tail.position.sequence

    @property
    def position(self) -> EventPosition:
        return self.tail.position

    @property
    def segments(self) -> Sequence[int]:
        return self.tail.segments

    @property
    def generation(self) -> int:
        return self.tail.generation

    @property
    def lag(self) -> int:
        return self.tail.until.sequence - self.tail.position.sequence

    async def caught_up(self) -> None:
        await self.unless_ended(self.tail.reach(self.tail.until.sequence))

    async def unless_ended(self, awaited: Coroutine[Any, Any, None]) -> None:
        """Wait for it, or raise the failure that comes before."""
        waiter = asyncio.ensure_future(awaited)
        try:
            await asyncio.wait((waiter, self.ended), return_when=asyncio.FIRST_COMPLETED)
            if self.ended.done():
                raise self.ended.result()
            await waiter
        finally:
            waiter.cancel()

    def begin(self, *jobs: Coroutine[Any, Any, None]) -> None:
        """Run these until the source is closed; the first that ends, ends it."""
        for job in jobs:
            task = asyncio.get_running_loop().create_task(job)
            task.add_done_callback(self._on_done)
            self._tasks.append(task)

    def fail(self, failure: FeedFailure) -> None:
        """Nothing more is handed on."""
        if not self.ended.done():
            self.log.error("source_failed", code=failure.exit_code, reason=str(failure))
            self.ended.set_result(failure)
        self.close()

    def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            for task in self._tasks:
                task.cancel()
            self.tail.close()

    def _on_done(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is None:
            return
        if isinstance(error, FeedFailure):
            failure = error
        elif isinstance(error, OtherLogError):
            failure = FeedFailure(DAMAGED, str(error), is_other_log=True)
        elif isinstance(error, PositionError):
            failure = FeedFailure(DAMAGED, str(error))
        elif isinstance(error, JournalError):
            failure = FeedFailure(error.exit_code, str(error))
        elif isinstance(error, OSError):
            failure = FeedFailure(STORAGE_FAILED, str(error))
        else:
            failure = FeedFailure(ASSERTION, f"{type(error).__name__}: {error}")
        if failure is not error:
            failure.__cause__ = error
        self.fail(failure)


class LocalSource(TailSource):
    """A `Source` over the event log and the position of a venue on this host.

    Records are handed on from the one that begins with `from_sequence` on; `last_header` is that of
    the last record with events below, None when there is none: the log must have it. With `epoch`
    (of a checkpoint) the source is open as soon as the log has what is below, although the venue
    may be away; with 0 it waits for the venue. An exception of the sink ends it, with exit code 65.
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
        assert not isinstance(surroundings.origin, OtherFeed), "the venue is on this host"
        self.epoch = epoch
        self._client = PositionClient(surroundings.origin, self.told, self.log)
        self._is_opened = asyncio.Event()
        if epoch:
            self._is_opened.set()

    @property
    def is_connected(self) -> bool:
        return self._client.is_connected

    def start(self) -> None:
        self.begin(self.tail.run(), self._client.run())

    async def opened(self) -> None:
        await self.unless_ended(self._wait_opened())

    def close(self) -> None:
        super().close()
        self._client.close()

    def told(self, position: Position, is_first: bool) -> None:
        """The venue says how far may be read; `is_first` on a new connection."""
        if self.ended.done():
            return
        if self.epoch not in (0, position.epoch):
            text = f"the venue's epoch is {position.epoch}, what was read has {self.epoch}"
            self.fail(FeedFailure(DAMAGED, text, is_other_log=True))
            return
        if position.sequence < self.tail.until.sequence:
            known = self.tail.until.sequence
            text = f"the venue's log ends at sequence {position.sequence}, {known} was known"
            self.fail(FeedFailure(DAMAGED, text, is_other_log=True))
            return
        self.epoch = position.epoch
        self._is_opened.set()
        if is_first:
            self.log.info("venue_connected", sequence=position.sequence, epoch=position.epoch)
            # It may have been started anew, and have mended its log, or have got an older one back.
            self.tail.look_again()
        self.tail.allow(
            EventPosition(position.sequence, position.events_segment, position.events_offset)
        )

    # Inside.

    async def _wait_opened(self) -> None:
        await self._is_opened.wait()
        await self.tail.reach(self.tail.position.sequence)
