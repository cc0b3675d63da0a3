"""A subscription to market data over TCP, over any number of connections.

What arrives goes to a callback: packets as bytes, or decoded messages; without one to a bounded
queue, from which `async for` takes messages. While the queue is full nothing is read from the
socket. Messages that a channel numbers come once each and none is left out; when the feed has to
skip some because we are too slow, it says so, and a snapshot comes in their place. When the venue's
journal was set back while there was no connection, the subscription ends with an error.
"""

import asyncio
from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec

from exchange.client.arrivals import ArrivalQueue
from exchange.client.callbacks import call
from exchange.client.errors import (
    ClientError,
    JournalSetBackError,
    NotConnectedError,
    RequestEndedError,
)
from exchange.client.feed_link import FeedLink, stream_key
from exchange.client.feed_requests import FeedDesk, OpenRequest, RequestAnswer, StateMessage
from exchange.client.streams import Known, Stream
from protocol.codes import SubscriptionForm, SubscriptionStart, TerminateCode
from protocol.errors import RemoteProtocolError
from protocol.feed import RequestEnd, Skipped, Subscribe, Subscribed
from protocol.market_data import (
    BestPrices,
    Candle,
    EventDefinition,
    InstrumentDefinition,
    InstrumentStatus,
    Levels,
    MarketDataMessage,
    SnapshotMessage,
    Statistics,
)
from protocol.packets import (
    SNAPSHOT,
    PacketError,
    decode_message,
    decode_packet,
    decode_snapshot_message,
)

__all__ = ["FeedMarketData", "Sinks", "Subscription"]

FeedMarketData = MarketDataMessage | SnapshotMessage | StateMessage
"""Every message that a subscription of some form may bring."""

_FORMS: Final[dict[type, SubscriptionForm]] = {
    Levels: SubscriptionForm.LEVELS,
    BestPrices: SubscriptionForm.BEST_PRICES,
    Statistics: SubscriptionForm.STATISTICS,
    Candle: SubscriptionForm.CANDLES,
}


class Sinks(NamedTuple):
    """Where things go: packets or messages, what the feed says about the subscription, the end."""

    on_packet: Callable[[bytes], None] | None = None
    on_message: Callable[[FeedMarketData], None] | None = None
    on_notice: Callable[[Subscribed | Skipped | RequestEnd], None] | None = None
    on_end: Callable[[ClientError | None], None] | None = None


class Subscription(OpenRequest):
    """One subscription, made by `FeedClient.subscribe`; an asynchronous iterator of messages."""

    def __init__(self, desk: FeedDesk, subscribe: Subscribe, sinks: Sinks) -> None:
        super().__init__(f"the subscription to channel {subscribe.channel}")
        self.subscribe = subscribe
        """What was asked for at first."""
        self.subscribed: Subscribed | None = None
        """The feed's last answer; None before the first."""
        self.skipped_count = 0
        """How often the feed had to leave messages out because we were too slow."""
        self.reason: ClientError | None = None
        """Why it has ended, when the feed or the connection ended it."""
        self.is_open = True
        self.accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._desk = desk
        self._sinks = sinks
        self._queue: ArrivalQueue[FeedMarketData] | None = None
        if sinks.on_packet is None and sinks.on_message is None:
            self._queue = ArrivalQueue(self._release)
        self._has_states = subscribe.form > SubscriptionForm.TRADES
        self.states = self if self._has_states else None
        self._key = stream_key(subscribe.form, subscribe.channel)
        is_part = bool(subscribe.instruments or subscribe.events)
        self._stream = Stream(
            sinks.on_packet or self._decode,
            is_selection=is_part or subscribe.form != SubscriptionForm.ORDERS,
            on_other=self._end_set_back,
        )
        self._events: set[int] = set()
        self._instruments: set[int] = set()
        """What has been listed, of a subscription to states."""
        self._link: FeedLink | None = None
        self._goes_on = False
        """Whether what was asked last goes on where the connection before has ended."""

    @property
    def channel(self) -> int:
        return self.subscribe.channel

    @property
    def next_number(self) -> int:
        """Number of the channel's first message that may still come; 0: none is known yet."""
        return self._stream.next_number

    @property
    def snapshot_is_open(self) -> bool:
        """Whether a snapshot is under way."""
        return self._stream.snapshot_is_open

    def close(self) -> None:
        """End it: no callback is called any more, an iterator still gives what is queued.

        Nothing happens when it has ended.
        """
        if self.is_open:
            self._desk.close(self)
            self._stop()
            if self._queue is not None:
                self._queue.end()
            if not self.accepted.done():
                self.accepted.set_exception(NotConnectedError(f"{self.name} was closed"))

    def __aiter__(self) -> "Subscription":
        return self

    async def __anext__(self) -> FeedMarketData:
        if self._queue is None:
            raise RuntimeError("this subscription has a callback")
        return await anext(self._queue)

    # Called by the desk.

    def message(self, link: FeedLink, epoch: int) -> Subscribe | None:
        self._link = link
        asked = self._resumed(epoch)
        known = self._stream.known() if self._goes_on else None
        if known is not None and self._is_gone(known):
            self._desk.fail(self, self._set_back(known.number))
            return None
        return msgspec.structs.replace(asked, request_id=self.request_id)

    def take(self, answer: RequestAnswer) -> None:
        if isinstance(answer, Subscribed):
            answer = self._begin(answer)
        elif isinstance(answer, Skipped):
            self.skipped_count += 1
            self._stream.start(answer.next_number, has_snapshot=True)
        elif isinstance(answer, RequestEnd):
            self._notice(answer)
            self._desk.fail(self, RequestEndedError(self.name, answer.code))
            return
        else:
            return
        self._notice(answer)

    def take_definitions(self, key: int, packet: bytes) -> None:
        if key == self._key:
            self._decode(packet)

    def take_state(self, message: StateMessage, *, is_replayed: bool) -> None:
        if self.is_accepted and not is_replayed and self._is_wanted(message):
            self._give(message)

    def finish(self, reason: ClientError | None) -> None:
        self._stop()
        self.reason = reason
        if not self.accepted.done():
            self.accepted.set_exception(reason or NotConnectedError("the feed client was closed"))
        if self._queue is not None:
            if reason is not None:
                self._queue.put(reason)
            self._queue.end()
        if self._sinks.on_end is not None:
            call(self._sinks.on_end, reason)

    # Inside.

    def _resumed(self, epoch: int) -> Subscribe:
        """What to ask for now, so that messages go on where they stopped."""
        asked, said = self.subscribe, self.subscribed
        self._goes_on = False
        if said is None or self._has_states:
            return asked
        if said.epoch != epoch:
            # Numbers begin again.
            is_from_number = asked.start == SubscriptionStart.NUMBER
            return msgspec.structs.replace(asked, from_number=1) if is_from_number else asked
        if self.snapshot_is_open:
            start, number = SubscriptionStart.SNAPSHOT, 0
        else:
            start, number = SubscriptionStart.NUMBER, self._stream.go_on()
            self._goes_on = True
        return msgspec.structs.replace(asked, start=start, from_number=number)

    def _is_gone(self, known: Known) -> bool:
        """Whether the feed is past the time of a message that came, and does not have it."""
        state = self._desk.state
        assert state is not None, "nothing is asked before the feed has said where it is"
        return known.is_gone(dict(state.channels).get(self.channel, 1), state.time_ns)

    def _begin(self, subscribed: Subscribed) -> Subscribed:
        """The feed has accepted it, for this connection; what that means for the user."""
        assert isinstance(self.asked, Subscribe), "it answers what was asked"
        if self._goes_on:
            subscribed = msgspec.structs.replace(subscribed, next_number=self.next_number)
        self.subscribed = subscribed
        self.is_accepted = True
        if self._has_states:
            self._desk.listen_for_definitions(self._key)
        elif self._link is not None:
            if not self._goes_on:
                has_snapshot = self.asked.start == SubscriptionStart.SNAPSHOT
                self._stream.start(subscribed.next_number, has_snapshot=has_snapshot)
            self._link.streams[self._key] = self._stream
        if not self.accepted.done():
            self.accepted.set_result(None)
        return subscribed

    def _end_set_back(self, number: int) -> None:
        """Another message has the number of one that came: end it, here and at the feed."""
        self._desk.close(self)
        self.finish(self._set_back(number))

    def _set_back(self, number: int) -> JournalSetBackError:
        return JournalSetBackError(f"message {number} of channel {self.channel}")

    def _stop(self) -> None:
        """Let nothing more through."""
        self.is_open = False
        if self._link is not None and self._link.streams.get(self._key) is self._stream:
            del self._link.streams[self._key]

    def _release(self) -> None:
        self.is_full = False
        self._desk.release()

    def _decode(self, packet: bytes) -> None:
        try:
            kind, *_, blocks = decode_packet(packet)
            decode = decode_snapshot_message if kind == SNAPSHOT else decode_message
            messages = [decode(block.payload) for block in blocks]
        except PacketError as error:
            raise RemoteProtocolError(TerminateCode.MALFORMED, str(error)) from None
        for message in messages:
            if message is not None:
                if self._has_states:
                    self._learn(message)
                self._give(message)

    def _give(self, message: FeedMarketData) -> None:
        if self._sinks.on_message is not None:
            call(self._sinks.on_message, message)
        elif self._queue is not None and self.is_open:
            self._queue.put(message)
            if self._queue.is_full:
                self._desk.hold(self)

    def _notice(self, notice: Subscribed | Skipped | RequestEnd) -> None:
        if self._sinks.on_notice is not None:
            call(self._sinks.on_notice, notice)

    def _learn(self, message: FeedMarketData) -> None:
        """Note what is listed: later changes of it do not say their channel."""
        if isinstance(message, EventDefinition):
            self._events.add(message.event_id)
        elif isinstance(message, InstrumentDefinition):
            self._instruments.add(message.instrument_id)

    def _is_wanted(self, message: StateMessage) -> bool:
        """Whether a message belongs to this subscription, and is new if it lists something."""
        asked = self.subscribe
        if isinstance(message, EventDefinition):
            is_new = message.event_id not in self._events and message.channel == asked.channel
            if is_new:
                self._learn(message)
            return is_new
        if isinstance(message, InstrumentDefinition):
            is_new = message.instrument_id not in self._instruments
            is_new = is_new and message.event_id in self._events
            if is_new:
                self._learn(message)
            return is_new
        if isinstance(message, InstrumentStatus):
            return message.instrument_id in self._instruments
        if (message.channel, _FORMS[type(message)]) != (asked.channel, asked.form):
            return False
        if isinstance(message, Levels):
            return message.depth == asked.depth
        return not isinstance(message, Candle) or message.interval_s == asked.interval_s
