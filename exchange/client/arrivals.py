"""What has arrived, in order for one reader, bounded.

When the reader is too slow the queue holds the connection: nothing more is read from the socket
until half of the queue is consumed, TCP passes the pressure on, and a venue that cannot send for
too long ends the connection. Nothing is dropped on this side.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from exchange.client.errors import ClientError
from exchange.client.limits import REPORTS_MAX, REPORTS_RESUME

__all__ = ["ArrivalQueue"]

T = TypeVar("T")


class ArrivalQueue(Generic[T]):
    """An asynchronous iterator; `release` is called when reading may go on.

    An error in the queue is raised once, in its place; iterating again goes on behind it.
    """

    def __init__(self, release: Callable[[], None]) -> None:
        self._items: deque[T | ClientError] = deque()
        self._release = release
        self.is_full = False
        self._is_ended = False
        self._waiter: asyncio.Future[None] | None = None

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T | ClientError) -> None:
        """Append an item, or an error in its place; hold the connection when `is_full` then."""
        self._items.append(item)
        self._wake()
        self.is_full = len(self._items) >= REPORTS_MAX

    def end(self) -> None:
        """After what is queued the iteration ends."""
        self._is_ended = True
        self._wake()

    def __aiter__(self) -> "ArrivalQueue[T]":
        return self

    async def __anext__(self) -> T:
        if self._waiter is not None:
            raise RuntimeError("what arrives has one reader, and it is waiting")
        while not self._items:
            if self._is_ended:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        item = self._items.popleft()
        if self.is_full and len(self._items) <= REPORTS_RESUME:
            self.is_full = False
            self._release()
        if isinstance(item, ClientError):
            raise item
        return item

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
