"""Drop copies: what the sessions of a participant, some accounts or everybody are told, in order.

A drop copy is a position in the log. What is new is sorted by participant once for all of them and
kept for a moment; whoever is further behind, or asks for the past, reads the history from its
position, and nobody has a queue. Positions count every private event of a command, also those that
a scope leaves out.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from msgspec import Raw

from exchange.feed.directory import Directory
from exchange.feed.history import History
from exchange.feed.limits import LOOK_SIZE_MAX, PAGE_SIZE_MAX, RECENT_SIZE_MAX
from exchange.feed.pieces import join, message_frame
from journal import PrivateEvent
from protocol.codes import DropCopyScope, Role
from protocol.feed import (
    DROP_COPY_MARK_INTERVAL_NS,
    DropCopyMark,
    DropCopyReport,
    DropCopyRequest,
)
from protocol.records import REFERENCE
from protocol.wire import decode_copied, encode

if TYPE_CHECKING:
    from exchange.feed.connection import Connection

__all__ = ["DropCopy", "Recent", "Scope"]

EVENT_SIZE: Final = 300
"""Bytes that a private event takes beside its payload."""


class Batch(NamedTuple):
    """The private events of the commands `first_sequence` to `last_sequence`."""

    first_sequence: int
    last_sequence: int
    events: Sequence[PrivateEvent]
    of_participants: dict[int, list[PrivateEvent]]
    size: int


class Recent:
    """The private events of the last turns of the loop, RECENT_SIZE_MAX bytes of them."""

    def __init__(self, directory: Directory, next_sequence: int) -> None:
        self.next_sequence = next_sequence
        self._directory = directory
        self._batches: deque[Batch] = deque()
        self._size = 0

    @property
    def first_sequence(self) -> int:
        """The first command whose events are there, or will be."""
        return self._batches[0].first_sequence if self._batches else self.next_sequence

    def add(self, events: Sequence[PrivateEvent], last_sequence: int) -> None:
        """Everything of the commands up to this one."""
        of_participants: dict[int, list[PrivateEvent]] = {}
        for event in events:
            owner = owner_of(event, self._directory)
            of_participants.setdefault(owner, []).append(event)
        size = EVENT_SIZE + sum(EVENT_SIZE + len(event.payload) for event in events)
        batch = Batch(self.next_sequence, last_sequence, events, of_participants, size)
        self._batches.append(batch)
        self._size += size
        self.next_sequence = last_sequence + 1
        while self._size > RECENT_SIZE_MAX and len(self._batches) > 1:
            self._size -= self._batches.popleft().size

    def since(self, sequence: int) -> Iterator[Batch]:
        """What has this sequence or a later one, in order; it is not older than what is there."""
        return (batch for batch in tuple(self._batches) if batch.last_sequence >= sequence)


def owner_of(event: PrivateEvent, directory: Directory) -> int:
    """Id of the participant that an event concerns, 0: of none alone."""
    if event.kind == REFERENCE:
        return int(getattr(decode_copied(event.payload), "participant_id", 0))
    return directory.participant_of_session(event.session)


class Scope:
    """Which private events a drop copy has."""

    def __init__(self, request: DropCopyRequest, participant_id: int, roles: int) -> None:
        self._scope = request.scope
        self._accounts = dict.fromkeys(request.accounts)
        self._participant_id = participant_id
        self._is_operator = bool(roles & Role.ADMIN)

    def candidates(self, batch: Batch) -> Iterable[PrivateEvent]:
        """Those of a batch that it may have."""
        if self._scope == DropCopyScope.ALL or self._is_operator:
            return batch.events
        return batch.of_participants.get(self._participant_id, ())

    def has(self, event: PrivateEvent, directory: Directory) -> bool:
        """Whether it has this one."""
        if self._scope == DropCopyScope.ALL:
            return True
        if event.sequence == 1:
            # What came with the venue is the operator's: its time seeds the engine's tables.
            return False
        is_own = owner_of(event, directory) == self._participant_id
        if self._scope == DropCopyScope.PARTICIPANT:
            return is_own
        # A refused order may name an account of somebody else: that is nobody's business there.
        account_id = getattr(decode_copied(event.payload), "account_id", 0)
        return account_id in self._accounts and (is_own or self._is_operator)


class DropCopy:
    """A cursor: (sequence, index) of the next private event that it looks at. A `Work`."""

    def __init__(
        self,
        connection: "Connection",
        request: DropCopyRequest,
        recent: Recent,
        history: History,
    ) -> None:
        assert connection.key is not None, "it is logged on"
        self.request_id = request.request_id
        self._connection = connection
        self._recent = recent
        self._history = history
        self._directory = connection.streams.market.directory
        self._scope = Scope(request, connection.key.participant_id, connection.key.roles)
        self._new_sequence = recent.next_sequence  # from here on nothing is replayed
        self._sequence = request.from_sequence or recent.next_sequence
        self._index = request.from_index
        self._pieces: deque[bytes] = deque()
        self._is_told = not request.from_sequence  # that the past is over
        self._marked_sequence = 0
        self._marked_ns = 0
        self._is_closed = False
        self._mark(self._sequence - 1, connection.streams.now_ns())

    @property
    def has_work(self) -> bool:
        return not self._is_closed and (
            bool(self._pieces) or self._sequence < self._recent.next_sequence
        )

    def block(self) -> None:
        """It goes on from its position."""

    def resume(self) -> None:
        """It is stepped again."""

    def advance(self) -> None:
        """Send what is new, as far as the socket takes it; for `Streams`, after each turn."""
        is_free = not self._pieces and not self._connection.is_blocked
        if is_free and self.has_work and self._sequence >= self._recent.first_sequence:
            self._send_recent()

    async def step(self) -> int:
        if self._pieces:
            piece = self._pieces.popleft()
            self._connection.write(piece)
            return len(piece)
        if self._sequence >= self._recent.first_sequence:
            return self._send_recent()
        page = await self._history.private(self._sequence, self._index, size_max=LOOK_SIZE_MAX)
        # The page may reach further than the market did: whose a session is must be known.
        self._connection.streams.flush()
        end = (page.next_sequence, page.next_index)
        assert end > (self._sequence, self._index), f"the history ends at {self._sequence}"
        kept = (event for event in page.events if self._scope.has(event, self._directory))
        self._pieces.extend(join(map(self._frame, kept)))
        self._sequence, self._index = end
        return 0

    def watch(self, now_ns: int) -> None:
        """It is never too far behind: who copies needs all of it."""

    def close(self) -> None:
        self._is_closed = True
        self._pieces.clear()
        self._connection.streams.release_copy(self)

    def mark(self, now_ns: int) -> None:
        """Say how far everything was sent, if that has moved and it is time."""
        is_due = now_ns - self._marked_ns >= DROP_COPY_MARK_INTERVAL_NS or not self._is_told
        is_free = not self._connection.is_blocked and not self.has_work
        if is_due and is_free and self._sequence > self._marked_sequence + 1:
            self._is_told = True
            self._mark(self._sequence - 1, now_ns)

    # Inside.

    def _send_recent(self) -> int:
        connection, frames = self._connection, []
        size = unsent_size = 0
        for batch in self._recent.since(self._sequence):
            for event in self._scope.candidates(batch):
                if (event.sequence, event.event_index) < (self._sequence, self._index):
                    continue
                if self._scope.has(event, self._directory):
                    frames.append(self._frame(event))
                    unsent_size += len(frames[-1])
                if unsent_size >= PAGE_SIZE_MAX:
                    self._sequence, self._index = event.sequence, event.event_index + 1
                    size += self._write(frames)
                    unsent_size = 0
                    if connection.is_blocked:
                        return size
            self._sequence, self._index = batch.last_sequence + 1, 0
        size += self._write(frames)
        self.mark(connection.streams.now_ns())
        return size

    def _write(self, frames: list[bytes]) -> int:
        content = b"".join(frames)
        frames.clear()
        if content:
            self._connection.write(content)
        return len(content)

    def _frame(self, event: PrivateEvent) -> bytes:
        report = DropCopyReport(
            request_id=self.request_id,
            session_id=event.session,
            number=0 if event.kind == REFERENCE else event.number,
            index=event.event_index,
            is_replayed=int(event.sequence < self._new_sequence),
            report=Raw(event.payload),
        )
        return message_frame(encode(report), self._connection.streams.now_ns())

    def _mark(self, sequence: int, now_ns: int) -> None:
        market = self._connection.streams.market
        time_ns = market.time_ns if sequence == market.sequence else 0
        self._marked_sequence = sequence
        self._marked_ns = now_ns
        self._connection.send(DropCopyMark(self.request_id, sequence, time_ns))
