"""Requests to a feed that have an end: a replay, and candles of the past."""

import asyncio
from collections.abc import Callable
from typing import Final

import msgspec

from exchange.client.errors import (
    ClientError,
    EpochChangedError,
    NotConnectedError,
    ReplayIncompleteError,
    RequestEndedError,
)
from exchange.client.feed_link import FeedLink, stream_key
from exchange.client.feed_requests import (
    Drain,
    FeedDesk,
    OpenRequest,
    RequestAnswer,
    StateMessage,
)
from exchange.client.streams import Stream
from protocol.codes import RequestEndCode
from protocol.feed import CandlesRequest, ReplayRequest, RequestEnd
from protocol.market_data import Candle

__all__ = ["CandlesCall", "ReplayCall", "Turn"]

_REPLAY_FORM: Final = 0
"""In the head of a packet that answers a replay."""


class ReplayCall(OpenRequest):
    """One replay: `give` gets packets with the messages of these numbers; `done` is its end."""

    def __init__(
        self, desk: FeedDesk, channel: int, numbers: range, give: Callable[[bytes], None]
    ) -> None:
        super().__init__(f"the replay of channel {channel}")
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._desk = desk
        self._key = stream_key(_REPLAY_FORM, channel)
        self._channel = channel
        self._numbers = numbers
        self._stream = Stream(give, numbers.start)
        self._link: FeedLink | None = None
        self._epoch = 0

    @property
    def next_number(self) -> int:
        """Number of the first message that has not come; it may be above those asked for."""
        return self._stream.next_number

    def message(self, link: FeedLink, epoch: int) -> ReplayRequest | None:
        if self._epoch not in (0, epoch):
            self._desk.fail(self, EpochChangedError(epoch))
            return None
        start = self._stream.next_number
        if start >= self._numbers.stop:
            self._desk.fail(self, None)
            return None
        self._epoch = epoch
        self._link = link
        self.is_accepted = start > self._numbers.start
        link.streams[self._key] = self._stream
        return ReplayRequest(self.request_id, self._channel, start, self._numbers.stop - start)

    def take(self, answer: RequestAnswer) -> None:
        if isinstance(answer, RequestEnd):
            is_done = answer.code == RequestEndCode.DONE
            self._desk.fail(self, None if is_done else RequestEndedError(self.name, answer.code))

    def finish(self, reason: ClientError | None) -> None:
        if self._link is not None:
            self._link.streams.pop(self._key, None)
        next_number = self._stream.next_number
        if reason is None and next_number < self._numbers.stop:
            reason = ReplayIncompleteError(next_number)
        _settle(self.done, reason)


class CandlesCall(OpenRequest):
    """One request for candles of the past; `candles` is whole when `done` is."""

    def __init__(self, desk: FeedDesk, request: CandlesRequest) -> None:
        super().__init__("the request for candles")
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.candles: list[Candle] = []
        self._desk = desk
        self._request = request
        self._is_done = False
        self.states = self

    def message(self, link: FeedLink, epoch: int) -> CandlesRequest:
        self.candles.clear()
        return msgspec.structs.replace(self._request, request_id=self.request_id)

    def take(self, answer: RequestAnswer) -> None:
        if isinstance(answer, RequestEnd):
            self._is_done = answer.code == RequestEndCode.DONE
            ended = None if self._is_done else RequestEndedError(self.name, answer.code)
            self._desk.fail(self, ended)

    def take_definitions(self, key: int, packet: bytes) -> None:
        """None comes in front of candles of the past."""

    def take_state(self, message: StateMessage, *, is_replayed: bool) -> None:
        if is_replayed and isinstance(message, Candle):
            self.candles.append(message)

    def finish(self, reason: ClientError | None) -> None:
        if reason is None and not self._is_done:
            reason = NotConnectedError("the feed client was closed")
        _settle(self.done, reason)


class Turn:
    """Requests of a kind of which only one may be open: they wait for each other."""

    def __init__(self, desk: FeedDesk) -> None:
        self._desk = desk
        self._lock = asyncio.Lock()
        self._drain: Drain | None = None

    async def run(self, call: ReplayCall | CandlesCall) -> None:
        """Ask, and wait for the end. Raises ClientError."""
        async with self._lock:
            if self._drain is not None:
                await asyncio.wait((self._drain.done,))
            self._desk.open(call)
            try:
                await call.done
            except asyncio.CancelledError:
                self._drain = self._desk.close(call)
                call.finish(None)
                raise


def _settle(done: asyncio.Future[None], reason: ClientError | None) -> None:
    """Give the end to whoever waits for it, if somebody still does."""
    if done.done():
        return
    if reason is None:
        done.set_result(None)
    else:
        done.set_exception(reason)
