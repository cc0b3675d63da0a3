"""What a view has sent lately: immutable pieces of frames, for those that are behind its head.

An entry is what one turn of the loop added, and begins and ends between two commands; its pieces
are written one at a time. Entries are counted from the first that the ring ever had, so a cursor
stays right when old ones leave. All rings together have one budget: when it is used up, the largest
gives way.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Final, NamedTuple

from exchange.feed.limits import RING_SIZE_MAX, RINGS_SIZE_MAX

__all__ = ["Entry", "Ring", "RingBudget"]

COMPACT_COUNT: Final = 1_024
"""Entries that have left before the list is made shorter: what that costs is then shared."""

ENTRY_SIZE: Final = 400
"""Bytes that an entry with one piece takes beside the piece's content; rings count them too."""


class Entry(NamedTuple):
    """Everything of the view from `number` up to `next_number`. `start` is how many bytes the view
    had before it, `time_ns` when it came."""

    number: int
    next_number: int
    pieces: Sequence[bytes]
    start: int
    size: int
    time_ns: int


class RingBudget:
    """Counts the bytes of all rings."""

    def __init__(self, size_max: int = RINGS_SIZE_MAX) -> None:
        self.size = 0
        self.evicted_count = 0  # entries that left because all rings together were too large
        self._size_max = size_max
        self._rings: dict[Ring, None] = {}

    def enter(self, ring: "Ring") -> None:
        """A ring begins."""
        self._rings[ring] = None

    def leave(self, ring: "Ring") -> None:
        """A ring ends."""
        del self._rings[ring]
        self.size -= ring.size

    def take(self, size: int) -> None:
        """A ring has grown."""
        self.size += size
        while self.size > self._size_max:
            max(self._rings, key=lambda ring: ring.size).drop_oldest()
            self.evicted_count += 1

    def give(self, size: int) -> None:
        """A ring has become smaller."""
        self.size -= size


class Ring:
    """See the module. `next_number` is the number of the next message, `end` how many bytes the
    view had so far, `size` what the ring takes."""

    def __init__(self, budget: RingBudget, next_number: int, size_max: int = RING_SIZE_MAX) -> None:
        self.next_number = next_number
        self.end = 0
        self.size = 0
        self._budget = budget
        self._size_max = size_max
        self._entries: list[Entry] = []
        self._left = 0  # entries at the head of the list that have left
        self._first_index = 0  # of the first entry of the list
        budget.enter(self)

    @property
    def first_index(self) -> int:
        """Index of the oldest entry that is still there."""
        return self._first_index + self._left

    @property
    def next_index(self) -> int:
        """Index of the entry that comes next."""
        return self._first_index + len(self._entries)

    def append(self, next_number: int, pieces: Sequence[bytes], time_ns: int) -> None:
        """Add what brings the view up to `next_number`."""
        size = sum(map(len, pieces))
        if size:
            entry = Entry(self.next_number, next_number, pieces, self.end, size, time_ns)
            self._entries.append(entry)
            self.end += size
            self.size += size + ENTRY_SIZE
            self._budget.take(size + ENTRY_SIZE)
            while self.size > self._size_max and self.first_index < self.next_index - 1:
                self.drop_oldest()
        elif self.first_index < self.next_index:
            # Nothing of the channel's messages is in the view: the entry before covers them.
            self._entries[-1] = self._entries[-1]._replace(next_number=next_number)
        self.next_number = next_number

    def entry(self, index: int) -> Entry | None:
        """The entry with this index, None when it has left."""
        place = index - self._first_index
        assert place < len(self._entries), f"entry {index} is not there yet"
        return self._entries[place] if place >= self._left else None

    def find(self, number: int) -> int | None:
        """Index of the entry that has this number, `next_index` when it comes next; None when it
        is older than the ring."""
        if number == self.next_number:
            return self.next_index
        place = bisect_right(self._entries, number, lo=self._left, key=lambda one: one.number) - 1
        return self._first_index + place if place >= self._left else None

    def close(self) -> None:
        """The view ends."""
        self._budget.leave(self)

    def drop_oldest(self) -> None:
        """Let the oldest entry go."""
        entry = self._entries[self._left]
        # Its pieces are let go at once, the list is made shorter now and then.
        self._entries[self._left] = entry._replace(pieces=())
        self._left += 1
        self.size -= entry.size + ENTRY_SIZE
        self._budget.give(entry.size + ENTRY_SIZE)
        if self._left >= COMPACT_COUNT:
            del self._entries[: self._left]
            self._first_index += self._left
            self._left = 0
