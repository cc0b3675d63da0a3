"""What a feed client has asked for and is not done, over any number of connections.

Requests to a feed change nothing there, so what is open is asked again on the next connection, from
where it stopped. Each kind of request knows what that means for itself; the desk sends them, and
gives every answer to the request that it names.
"""

import asyncio
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final, Protocol

from exchange.client.callbacks import call
from exchange.client.connector import StateChange
from exchange.client.errors import (
    ClientError,
    FeedRejectError,
    NotConnectedError,
    ReportsLostError,
)
from exchange.client.feed_link import FeedLink
from exchange.client.limits import BEHIND_WAIT_S, REFUSALS_MAX
from exchange.client.streams import Stream
from protocol.codes import RejectCode
from protocol.feed import (
    DropCopyMark,
    DropCopyReport,
    FeedReject,
    FeedRequest,
    FeedState,
    RequestEnd,
    Skipped,
    Subscribed,
    Unsubscribe,
)
from protocol.framing import REPLAYED
from protocol.market_data import (
    BestPrices,
    Candle,
    EventDefinition,
    InstrumentDefinition,
    InstrumentStatus,
    Levels,
    Statistics,
)
from protocol.session import Received
from protocol.transport import LogOnAccepted

__all__ = [
    "Drain",
    "FeedDesk",
    "OnFeedState",
    "OnState",
    "OpenRequest",
    "RequestAnswer",
    "StateMessage",
]

OnState = Callable[[StateChange], None]
OnFeedState = Callable[[FeedState], None]
RequestAnswer = Subscribed | Skipped | RequestEnd | DropCopyReport | DropCopyMark
StateMessage = (
    BestPrices
    | Levels
    | Statistics
    | Candle
    | EventDefinition
    | InstrumentDefinition
    | InstrumentStatus
)
"""What a frame with market data holds that is no packet."""

_NS_PER_S: Final = 1_000_000_000

_BEHIND: Final = (
    *(RejectCode.NUMBER_TOO_HIGH, RejectCode.SEQUENCE_TOO_HIGH),
    *(RejectCode.UNKNOWN_INSTRUMENT, RejectCode.UNKNOWN_EVENT, RejectCode.UNKNOWN_ACCOUNT),
)
"""The feed is not where we are: it was started again, and reads on. What it knew is there for ever,
so it will know it again."""


class StateTaker(Protocol):
    """Who wants market data that does not say which request it answers, and knows its own."""

    def take_definitions(self, key: int, packet: bytes) -> None:
        """Take a packet that comes in front of states."""

    def take_state(self, message: StateMessage, *, is_replayed: bool) -> None:
        """Take a state, or what was listed or has changed its phase."""


class OpenRequest(ABC):
    """One request; it is open until it has ended, whatever becomes of connections."""

    def __init__(self, name: str) -> None:
        self.name = name
        """What errors call it."""
        self.request_id = 0
        """Given by the desk."""
        self.is_accepted = False
        """Whether the feed has answered once with what was asked for."""
        self.is_full = False
        """Whether its reader is behind, and nothing more is to be read from the socket."""
        self.refusal_count = 0
        self.asked: FeedRequest | None = None
        """What was sent last."""
        self.states: StateTaker | None = None

    @abstractmethod
    def message(self, link: FeedLink, epoch: int) -> FeedRequest | None:
        """What to ask on this connection; None: nothing any more, and `finish` was called."""

    @abstractmethod
    def take(self, answer: RequestAnswer) -> None:
        """Take an answer."""

    @abstractmethod
    def finish(self, reason: ClientError | None) -> None:
        """The end, called once; `reason` is None when the user wanted it."""


class Drain(OpenRequest):
    """What is left of a request that the user has closed: its end, and nothing before it."""

    def __init__(self, desk: "FeedDesk", request_id: int, link: FeedLink) -> None:
        super().__init__("a closed request")
        self.request_id = request_id
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._desk = desk
        self._link = link

    def message(self, link: FeedLink, epoch: int) -> FeedRequest | None:
        if link is self._link:
            return Unsubscribe(self.request_id)
        self._desk.fail(self, None)
        return None

    def take(self, answer: RequestAnswer) -> None:
        if isinstance(answer, RequestEnd):
            self._desk.fail(self, None)

    def finish(self, reason: ClientError | None) -> None:
        self.done.set_result(None)


class FeedDesk:
    """The listener of a feed client's connector: sends what is open, and gives answers to it."""

    def __init__(self, on_state: OnState | None, on_feed_state: OnFeedState | None) -> None:
        self.link: FeedLink | None = None
        """The connection that is made or used now."""
        self.state: FeedState | None = None
        """The newest; None before the first log-on."""
        self.requests: dict[int, OpenRequest] = {}
        self._on_state = on_state
        self._on_feed_state = on_feed_state
        self._is_ready = False
        """Whether the feed has said on this connection where it is."""
        self._last_id = 0
        self._waiters: list[asyncio.Future[FeedState]] = []
        self._is_closed = False
        self._end: ClientError | None = None

    @property
    def is_ready(self) -> bool:
        """Whether requests are sent at once."""
        return self._is_ready

    def open(self, request: OpenRequest) -> None:
        """Send a request now or as soon as there is a connection. Raises NotConnectedError."""
        self._check()
        self._last_id += 1
        request.request_id = self._last_id
        self.requests[request.request_id] = request
        if self._is_ready:
            self._send(request)

    def close(self, request: OpenRequest) -> "Drain | None":
        """Forget a request that the user no longer wants; nothing is given to it any more.

        Returns what waits until the feed has ended it too, None when the feed knows nothing of it.
        """
        if self.requests.pop(request.request_id, None) is None:
            return None
        if request.is_full:
            self.release()
        if not self._is_ready or self.link is None or request.asked is None:
            return None
        drain = Drain(self, request.request_id, self.link)
        self.requests[request.request_id] = drain
        self._send(drain)
        return drain

    def fail(self, request: OpenRequest, reason: ClientError | None) -> None:
        """End a request that the feed has ended."""
        if self.requests.pop(request.request_id, None) is not None:
            if request.is_full:
                self.release()
            request.finish(reason)

    def hold(self, request: OpenRequest) -> None:
        """Read no more until the reader of a request has caught up."""
        request.is_full = True
        if self.link is not None:
            self.link.hold()

    def release(self) -> None:
        """Go on reading when no reader is behind."""
        if self.link is not None and not any(one.is_full for one in self.requests.values()):
            self.link.release()

    def listen_for_definitions(self, key: int) -> None:
        """Let packets with this key go to every request that knows them as its own."""
        assert self.link is not None, "the feed has just answered"
        give = functools.partial(self._take_definitions, key)
        self.link.streams.setdefault(key, Stream(give, is_selection=True))

    async def ready(self) -> FeedState:
        """Wait for the state that the feed says first on a connection."""
        self._check()
        if self._is_ready and self.state is not None:
            return self.state
        waiter: asyncio.Future[FeedState] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        return await waiter

    # Called by the connector.

    def established(
        self, accepted: LogOnAccepted, first_number: int, missed: ReportsLostError | None
    ) -> None:
        """Nothing is asked before the feed has said in which epoch it is."""

    def received(self, received: Received) -> bool:
        message = received.message
        if isinstance(message, RequestAnswer):
            request = self.requests.get(message.request_id)
            if request is not None:
                request.take(message)
        elif isinstance(message, StateMessage):
            is_replayed = bool(received.frame.flags & REPLAYED)
            for taker in self._state_takers():
                taker.take_state(message, is_replayed=is_replayed)
        elif isinstance(message, FeedState):
            self._take_feed_state(message)
        elif isinstance(message, FeedReject):
            self._take_reject(message)
        return True

    def has_room(self) -> None:
        """Requests are few and small: nobody waits for room."""

    def lost(self, reason: ClientError) -> None:
        self._is_ready = False

    def closed(self, reason: ClientError | None) -> None:
        self._is_ready = False
        self._is_closed = True
        self._end = reason
        requests, self.requests = self.requests, {}
        for request in requests.values():
            request.finish(reason)
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(reason or NotConnectedError("the feed client was closed"))

    def state_changed(self, change: StateChange) -> None:
        if self._on_state is not None:
            call(self._on_state, change)

    # Inside.

    def _check(self) -> None:
        if self._is_closed:
            why = f": {self._end}" if self._end is not None else ""
            raise NotConnectedError(f"the feed client is closed{why}")

    def _take_definitions(self, key: int, packet: bytes) -> None:
        for taker in self._state_takers():
            taker.take_definitions(key, packet)

    def _state_takers(self) -> list[StateTaker]:
        return [one.states for one in self.requests.values() if one.states is not None]

    def _take_feed_state(self, state: FeedState) -> None:
        self.state = state
        if not self._is_ready:
            self._is_ready = True
            for request in list(self.requests.values()):
                self._send(request)
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(state)
        if self._on_feed_state is not None:
            call(self._on_feed_state, state)

    def _take_reject(self, reject: FeedReject) -> None:
        """Ask again later when that can help, otherwise the request has failed."""
        request = self.requests.get(reject.request_id)
        if request is None or request.asked is None:
            return  # It answers an Unsubscribe, or was closed meanwhile.
        request.refusal_count += 1
        wait_s = reject.retry_after_ns / _NS_PER_S
        if request.is_accepted and reject.code in _BEHIND:
            wait_s = max(wait_s, BEHIND_WAIT_S)
        elif request.refusal_count > REFUSALS_MAX:
            wait_s = 0
        if not wait_s:
            self.fail(request, FeedRejectError(request.asked, reject))
            return
        asyncio.get_running_loop().call_later(wait_s, self._send_again, self.link, request)

    def _send_again(self, link: FeedLink | None, request: OpenRequest) -> None:
        if link is self.link and self._is_ready:
            self._send(request)

    def _send(self, request: OpenRequest) -> None:
        if self.requests.get(request.request_id) is not request:
            return  # It was closed meanwhile, perhaps by the end of another.
        assert self.link is not None, "a feed that has said its state is connected"
        assert self.state is not None
        message = request.message(self.link, self.state.epoch)
        if message is None or not self.link.is_established:
            return
        request.asked = message
        self.link.send(message)
