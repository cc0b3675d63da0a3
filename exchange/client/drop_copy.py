"""A drop copy: the execution reports of others' sessions, in the venue's order, read only.

Every report has a place: the sequence of its command, and its index among the reports of that
command. The feed can begin at any place back to the first, and says now and then up to which
sequence everything was sent. `DropCopy.position` is behind what was handed over; who stores it
with what he made of the reports goes on there, in this process or another, without a gap and
without a duplicate. It ends with an error when the feed, after a lost connection, is past the time
of what it has sent and no longer has it: the venue's journal was set back.
"""

import asyncio
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from exchange.client.arrivals import ArrivalQueue
from exchange.client.callbacks import call
from exchange.client.errors import (
    ClientError,
    EpochChangedError,
    JournalSetBackError,
    NotConnectedError,
    RequestEndedError,
)
from exchange.client.feed_link import FeedLink
from exchange.client.feed_requests import FeedDesk, OpenRequest, RequestAnswer
from protocol.codes import RejectCode, TerminateCode
from protocol.errors import MessageError, RemoteProtocolError
from protocol.feed import DropCopyMark, DropCopyReport, DropCopyRequest, RequestEnd
from protocol.wire import CopiedMessage, decode_copied

__all__ = ["CopiedReport", "DropCopy", "DropCopyPosition", "DropCopySinks"]


class DropCopyPosition(msgspec.Struct, frozen=True, order=True):
    """A place in a drop copy: everything before it is known. (1, 0) is the very beginning."""

    sequence: int
    index: int


class CopiedReport(msgspec.Struct, frozen=True):
    """A report and its place; `number` is the session's own, 0 for a record of who is who."""

    sequence: int
    index: int
    session_id: int
    number: int
    is_replayed: bool
    report: CopiedMessage


class DropCopySinks(NamedTuple):
    """Where reports and marks go; without `on_report` to the iterator."""

    on_report: Callable[[CopiedReport], None] | None = None
    on_mark: Callable[[DropCopyMark], None] | None = None


class DropCopy(OpenRequest):
    """One drop copy, made by `FeedClient.drop_copy`; an asynchronous iterator of CopiedReport."""

    def __init__(
        self,
        desk: FeedDesk,
        request: DropCopyRequest,
        sinks: DropCopySinks,
        *,
        epoch: int = 0,
    ) -> None:
        super().__init__("the drop copy")
        self.accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.mark: DropCopyMark | None = None
        """The last: everything up to its sequence has been handed over."""
        self.unknown_count = 0
        """Reports of a newer venue that were skipped because their tag is not known here."""
        self.reason: ClientError | None = None
        """Why it has ended, when the feed or the connection ended it."""
        self.is_open = True
        self._desk = desk
        self._request = request
        self._sinks = sinks
        self._epoch = epoch
        given = DropCopyPosition(request.from_sequence, request.from_index)
        self._received = self._handed = given
        self._known = (0, 0)
        """Sequence and time of the newest command that the feed is known to have had."""
        self._queue: ArrivalQueue[CopiedReport | DropCopyMark] | None = None
        if sinks.on_report is None:
            self._queue = ArrivalQueue(self._release)
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []

    @property
    def position(self) -> DropCopyPosition:
        """Behind the last report that was handed over, or the place at which it began."""
        return self._handed

    async def wait_for(self, sequence: int) -> None:
        """Wait until everything up to a sequence was handed over.

        Raises NotConnectedError, or why the drop copy has ended.
        """
        if self._handed.sequence > sequence:
            return
        self._check_open()
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append((sequence, waiter))
        await waiter

    def close(self) -> None:
        """End it: no callback is called any more, an iterator still gives what is queued."""
        if self.is_open:
            self._desk.close(self)
            self._end(None)

    def __aiter__(self) -> "DropCopy":
        return self

    async def __anext__(self) -> CopiedReport:
        if self._queue is None:
            raise RuntimeError("this drop copy has a callback")
        while True:
            item = await anext(self._queue)
            self._hand(item)
            if isinstance(item, CopiedReport):
                return item

    # Called by the desk.

    def message(self, link: FeedLink, epoch: int) -> DropCopyRequest | None:
        if self._epoch not in (0, epoch):
            self._desk.fail(self, EpochChangedError(epoch))
            return None
        self._epoch = epoch
        state, (sequence, time_ns) = self._desk.state, self._known
        assert state is not None, "nothing is asked before the feed has said where it is"
        if state.sequence < sequence and state.time_ns > time_ns:
            self._desk.fail(self, JournalSetBackError(f"sequence {sequence}"))
            return None
        return msgspec.structs.replace(
            self._request,
            request_id=self.request_id,
            from_sequence=self._received.sequence,
            from_index=self._received.index,
        )

    def take(self, answer: RequestAnswer) -> None:
        if isinstance(answer, DropCopyReport):
            self._take_report(answer)
        elif isinstance(answer, DropCopyMark):
            self._take_mark(answer)
        elif isinstance(answer, RequestEnd):
            self._desk.fail(self, RequestEndedError(self.name, answer.code))

    def finish(self, reason: ClientError | None) -> None:
        self.reason = reason
        self._end(reason)

    # Inside.

    def _take_report(self, copied: DropCopyReport) -> None:
        self._accept()
        try:
            report = decode_copied(bytes(copied.report))
        except MessageError as error:
            if error.code is not RejectCode.UNKNOWN_TAG:
                raise RemoteProtocolError(TerminateCode.MALFORMED, error.text) from None
            self.unknown_count += 1
            return
        place = DropCopyPosition(report.sequence, copied.index)
        if place < self._received:
            return
        self._received = DropCopyPosition(place.sequence, place.index + 1)
        self._known = (report.sequence, report.time_ns)
        is_replayed = bool(copied.is_replayed)
        ids = (report.sequence, copied.index, copied.session_id, copied.number)
        self._put(CopiedReport(*ids, is_replayed, report))

    def _take_mark(self, mark: DropCopyMark) -> None:
        behind = DropCopyPosition(mark.sequence + 1, 0)
        if not self.is_accepted and not self._handed.sequence:
            self._handed = behind  # What is new begins here.
        self._accept()
        self._received = max(self._received, behind)
        if mark.time_ns and mark.sequence > self._known[0]:
            self._known = (mark.sequence, mark.time_ns)
        self._put(mark)

    def _accept(self) -> None:
        self.is_accepted = True
        if not self.accepted.done():
            self.accepted.set_result(None)

    def _put(self, item: CopiedReport | DropCopyMark) -> None:
        if self._queue is not None:
            self._queue.put(item)
            if self._queue.is_full:
                self._desk.hold(self)
            return
        if isinstance(item, CopiedReport) and self._sinks.on_report is not None:
            call(self._sinks.on_report, item)
        self._hand(item)

    def _hand(self, item: CopiedReport | DropCopyMark) -> None:
        """Note that an item has been handed over."""
        if isinstance(item, CopiedReport):
            self._handed = DropCopyPosition(item.sequence, item.index + 1)
            return
        self.mark = item
        self._handed = max(self._handed, DropCopyPosition(item.sequence + 1, 0))
        if self._sinks.on_mark is not None:
            call(self._sinks.on_mark, item)
        waiting = []
        for sequence, waiter in self._waiters:
            if item.sequence < sequence:
                waiting.append((sequence, waiter))
            elif not waiter.done():
                waiter.set_result(None)
        self._waiters = waiting

    def _release(self) -> None:
        self.is_full = False
        self._desk.release()

    def _check_open(self) -> None:
        if not self.is_open:
            raise self.reason or NotConnectedError("the drop copy was closed")

    def _end(self, reason: ClientError | None) -> None:
        self.is_open = False
        error = reason or NotConnectedError("the drop copy was closed")
        waiters, self._waiters = self._waiters, []
        for waiter in (self.accepted, *(waiter for _, waiter in waiters)):
            if not waiter.done():
                waiter.set_exception(error)
        if self._queue is not None:
            if reason is not None:
                self._queue.put(reason)
            self._queue.end()
