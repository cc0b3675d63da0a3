"""What is open on a connection and sends packets or records: subscriptions, and replays.

A subscription begins with a snapshot, with a number of the past, or at the head of its view, and
makes its way to the head: through its snapshot, the history, the ring. It never waits there for
anybody: whoever falls too far behind the head goes on with a new snapshot, or is cut.
"""

from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

from exchange.feed.snapshot_sender import SnapshotSender
from exchange.feed.views import LogView, Place, Reader
from protocol.codes import RequestEndCode, TerminateCode, WhenSlow
from protocol.feed import SLOW_NS, SLOW_SIZE, Skipped, Subscribe

if TYPE_CHECKING:
    from exchange.feed.connection import Connection

__all__ = ["LogSubscription", "MarketSubscription", "Replay", "Work"]

TOO_SLOW_TEXT: Final = "the client reads more slowly than market data comes"
OVERTAKEN_TEXT: Final = "the log goes on faster than the client reads"


class Work(Protocol):
    """Something open on a connection that writes to it. Its methods belong to the loop's thread."""

    request_id: int

    @property
    def has_work(self) -> bool:
        """Whether there is more to write as soon as the socket takes it."""

    def block(self) -> None:
        """The socket takes no more."""

    def resume(self) -> None:
        """The socket takes more."""

    async def step(self) -> int:
        """Write a piece, or come nearer to one; bytes that were written. Raises HistoryError."""

    def watch(self, now_ns: int) -> None:
        """Called now and then while the socket takes no more."""

    def close(self) -> None:
        """It is over; nothing is written any more."""


class LogSubscription:
    """A cursor in a view, from a number on. A `Work`."""

    def __init__(self, connection: "Connection", request_id: int, view: LogView) -> None:
        self.request_id = request_id
        self.view = view
        self.write = connection.writer
        self.is_live = False
        self.number = 0
        """The first one that was not sent, unless the subscription is live."""
        self._connection = connection
        self._place: Place | None = None  # in the ring, where `number` is found
        self._pieces: deque[bytes] = deque()  # of a page of the history
        self._is_closed = False
        view.user_count += 1

    def begin_at(self, number: int) -> None:
        """Begin with this number."""
        self.number = number
        self._settle()

    @property
    def has_work(self) -> bool:
        return not self.is_live and not self._is_closed

    def block(self) -> None:
        if self.is_live:
            self.is_live = False
            self._place = self.view.head
            self.number = self._number_at(self._place)
            self.view.leave(self)

    def resume(self) -> None:
        self._settle()

    async def step(self) -> int:
        size = 0
        if self._pieces:
            piece = self._pieces.popleft()
            size = len(piece)
            self.write(piece)
        elif self._place is None:
            await self._read()
        else:
            size = self._send_entry(self._place)
        self._settle()
        return size

    def watch(self, now_ns: int) -> None:
        """A log is never too far behind: who copies it needs all of it."""

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self.is_live = False
            self._pieces.clear()
            self.view.leave(self)
            self._connection.streams.release(self.view)

    # Inside.

    def _settle(self) -> None:
        """Join the head when everything before it is written."""
        if self.is_live or self._is_closed or self._pieces or self._connection.is_blocked:
            return
        ring, place = self.view.ring, self._place
        # What has come since may be nothing for this view: then only the head's number is another.
        is_behind = self.number != ring.next_number
        if not is_behind or (place is not None and place.entry == ring.next_index):
            self.is_live = True
            self.view.join(self, self._connection.streams.now_ns())

    async def _read(self) -> None:
        """Find the number in the ring, or a piece that brings it nearer to what the ring has."""
        ring = self.view.ring
        index = ring.find(self.number)
        until = ring.next_number
        if index is not None:
            entry = ring.entry(index)
            assert entry is not None, "it was found"
            if entry.number == self.number:
                self._place = Place(index, 0)
                return
            until = entry.next_number
        page = await self.view.reader.read(self.number, until)
        if self._is_closed:
            return
        assert page.next_number > self.number, f"the history ends at {self.number}"
        self.number = page.next_number
        self._pieces.extend(page.pieces)

    def _send_entry(self, place: Place) -> int:
        ring = self.view.ring
        entry = ring.entry(place.entry) if place.entry < ring.next_index else None
        if entry is None:
            # It has left the ring; `number` says where the history goes on.
            self._place = None
            if not self.number:
                self._connection.end(TerminateCode.SLOW_CONSUMER, OVERTAKEN_TEXT)
            return 0
        if place.piece + 1 == len(entry.pieces):
            self._place = Place(place.entry + 1, 0)
        else:
            self._place = Place(place.entry, place.piece + 1)
        self.number = self._number_at(self._place)
        piece = entry.pieces[place.piece]
        self.write(piece)
        return len(piece)

    def _number_at(self, place: Place) -> int:
        ring = self.view.ring
        if place.entry == ring.next_index:
            return ring.next_number
        entry = ring.entry(place.entry)
        assert entry is not None, "a place behind one that is there"
        if place.piece == 0:
            return entry.number
        return self.view.reader.number_at(entry.pieces[place.piece])


class MarketSubscription(LogSubscription):
    """A subscription to packets, which may begin with a snapshot and may be too slow.

    It is *due* at the head once it has been there, or has come from its snapshot to where the head
    was when that was done; from then on it is too slow when it is too far behind.
    """

    def __init__(self, connection: "Connection", request: Subscribe, view: LogView) -> None:
        super().__init__(connection, request.request_id, view)
        self.request = request
        self._snapshot: SnapshotSender | None = None
        self._is_due = False
        self._due_number = 0  # where it will be, after a snapshot

    def begin_with(self, snapshot: SnapshotSender) -> None:
        """Begin with a snapshot, when it is its turn."""
        self._snapshot = snapshot
        self._place = None
        self._pieces.clear()
        self.number = snapshot.number
        self._is_due = False
        self._due_number = 0

    @property
    def has_work(self) -> bool:
        if self._snapshot is not None:
            return self._snapshot.is_ready
        return super().has_work

    def block(self) -> None:
        self._is_due = self._is_due or self.is_live
        super().block()

    def resume(self) -> None:
        if self._is_too_slow(self._connection.streams.now_ns()):
            self._skip()
        else:
            self._settle()

    async def step(self) -> int:
        if self._snapshot is not None and not self._pieces:
            self._pieces.extend(self._snapshot.step())
            if self._snapshot.is_done:
                self._snapshot = None
                self._due_number = self.view.ring.next_number
            return 0
        size = await super().step()
        self._is_due = self._is_due or 0 < self._due_number <= self.number
        if self._is_too_slow(self._connection.streams.now_ns()):
            self._skip()
        return size

    def watch(self, now_ns: int) -> None:
        if self.request.when_slow == WhenSlow.DISCONNECT and self._is_too_slow(now_ns):
            self._skip()

    def close(self) -> None:
        if self._snapshot is not None:
            self._snapshot.close()
            self._snapshot = None
        super().close()

    # Inside.

    def _settle(self) -> None:
        if self._snapshot is None:
            super()._settle()

    def _is_too_slow(self, now_ns: int) -> bool:
        if not self._is_due or self.is_live or self._is_closed:
            return False
        ring, place = self.view.ring, self._place
        index = place.entry if place is not None else ring.find(self.number)
        if index == ring.next_index:
            return False
        entry = ring.entry(index) if index is not None else None
        if entry is None:
            return True  # It has left the ring already.
        return ring.end - entry.start > SLOW_SIZE or now_ns - entry.time_ns > SLOW_NS

    def _skip(self) -> None:
        """Go on with a new snapshot, or end."""
        connection, request = self._connection, self.request
        connection.streams.slow_count += 1
        if request.when_slow == WhenSlow.DISCONNECT:
            connection.finish(self, RequestEndCode.TOO_SLOW)
            connection.end(TerminateCode.SLOW_CONSUMER, TOO_SLOW_TEXT)
            return
        snapshot = SnapshotSender(connection, request)
        # A snapshot may begin a little in the past: what was sent since comes once more then.
        number = min(self.number, snapshot.number)
        connection.send(Skipped(request.request_id, request.channel, number, snapshot.number))
        self.begin_with(snapshot)


class Replay:
    """Packets of the past, up to a number. A `Work`."""

    def __init__(
        self, connection: "Connection", request_id: int, reader: Reader, number: int, until: int
    ) -> None:
        self.request_id = request_id
        self._connection = connection
        self._reader = reader
        self._number = number
        self._until = until
        self._pieces: deque[bytes] = deque()
        self._is_closed = False

    @property
    def has_work(self) -> bool:
        return not self._is_closed

    def block(self) -> None:
        """It goes on when it is stepped again."""

    def resume(self) -> None:
        """It is stepped again."""

    async def step(self) -> int:
        if self._pieces:
            piece = self._pieces.popleft()
            self._connection.write(piece)
            return len(piece)
        if self._number < self._until:
            page = await self._reader.read(self._number, self._until)
            assert page.next_number > self._number, f"the history ends at {self._number}"
            self._number = page.next_number
            self._pieces.extend(page.pieces)
        elif not self._is_closed:
            self._connection.finish(self, RequestEndCode.DONE, self._number)
        return 0

    def watch(self, now_ns: int) -> None:
        """Nobody waits for it."""

    def close(self) -> None:
        self._is_closed = True
        self._pieces.clear()
