"""The whole market as the event log tells it: books, trades, who is who.

Records are applied in order, each as a whole. A message of the market data is decoded once and goes
to the method for its class; private reports are stepped over by their heads. Nothing is made that
nobody may ask for: which instruments a record has changed is noted once per record, and messages
that follow from books and trades are made in `exchange.feed.derived` when somebody wants them.

The cursor of whoever follows changes is a sequence: `changes` says what has changed since.
"""

from collections.abc import Callable, Iterable
from struct import Struct
from typing import Any, Final

from msgspec.msgpack import Decoder

from exchange.feed.candles import CandleStore
from exchange.feed.directory import Directory
from journal import EventRecord
from journal.event_format import RecordHeader
from protocol.books import Book
from protocol.market_data import (
    EventDefinition,
    InstrumentDefinition,
    InstrumentStatus,
    MarketDataMessage,
    OrderAdded,
    OrderDeleted,
    OrderExecuted,
    OrderReduced,
    OrderReplaced,
    Trade,
)
from protocol.records import EVENT_HEAD, MARKET_DATA, REFERENCE

__all__ = ["Changes", "ChannelState", "EventState", "InstrumentState", "Market"]

_decode: Final = Decoder(MarketDataMessage).decode
_HEAD: Final = Struct("<IBxH8xQ8xQ")
"""Of an event: length, kind, channel, number, time; the other fields of EVENT_HEAD are not read."""
_HEAD_SIZE: Final = EVENT_HEAD.size
assert _HEAD.size == _HEAD_SIZE, "the same head"
_read_head: Final = _HEAD.unpack_from


class ChannelState:
    """One channel that is in use. `next_number` is that of the message that comes next."""

    __slots__ = ("channel", "events", "instruments", "listed_number", "next_number")

    def __init__(self, channel: int) -> None:
        self.channel = channel
        self.next_number = 1
        self.listed_number = 1
        """The number behind its last definition: the lists below are complete as of it."""
        self.events: dict[int, EventState] = {}
        self.instruments: dict[int, InstrumentState] = {}


class EventState:
    """One event of the market."""

    __slots__ = ("channel", "definition", "instruments", "payload")

    def __init__(self, channel: ChannelState, definition: EventDefinition, payload: bytes) -> None:
        self.channel = channel
        self.definition = definition
        self.payload = payload
        """The definition's bytes, as they were sent."""
        self.instruments: dict[int, InstrumentState] = {}


class InstrumentState:
    """One instrument. Its phase and its last trade are those of its book."""

    __slots__ = ("book", "channel", "definition", "event", "payload", "sequence")

    def __init__(self, event: EventState, definition: InstrumentDefinition, payload: bytes) -> None:
        self.channel = event.channel
        self.event = event
        self.definition = definition
        self.payload = payload
        """The definition's bytes, as they were sent."""
        self.book = Book(definition)
        self.sequence = definition.sequence
        """Last sequence of the last record that has changed it: book, phase or trades."""

    @property
    def open_interest(self) -> int:
        """Contracts that exist, in units of a quantity, as of the last trade."""
        trade = self.book.last_trade
        return trade.open_interest if trade is not None else 0


class Changes:
    """Instruments in order of their last change, so that a walk from the newest back to a cursor
    meets what has changed since, once."""

    __slots__ = ("_sequences",)

    def __init__(self) -> None:
        self._sequences: dict[int, int] = {}

    def note(self, instrument_ids: Iterable[int], sequence: int) -> None:
        """These have changed with this sequence."""
        sequences = self._sequences
        for instrument_id in instrument_ids:
            sequences.pop(instrument_id, None)
            sequences[instrument_id] = sequence

    def since(self, sequence: int) -> list[int]:
        """Ids of the instruments that have changed after a sequence, the latest first."""
        found = []
        for instrument_id, changed in reversed(self._sequences.items()):
            if changed <= sequence:
                break
            found.append(instrument_id)
        return found

    def of(self, instrument_id: int) -> int:
        """The sequence of an instrument's last change, 0 when there was none."""
        return self._sequences.get(instrument_id, 0)


class Market:
    """See the module. Everything is for reading, but for `apply`."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        """Of the channels' numbers, as the venue's packets have it."""
        self.sequence = 0
        """Of the last command whose events were applied."""
        self.last_header: RecordHeader | None = None
        """Of the last record that had events: says which history this is."""
        self.time_ns = 0
        """Of the last command that had an event."""
        self.channels: dict[int, ChannelState] = {}
        self.events: dict[int, EventState] = {}
        self.instruments: dict[int, InstrumentState] = {}
        self.directory = Directory()
        self.candles = CandleStore()
        self.book_changes = Changes()
        """Orders or phase of an instrument; a listing too."""
        self.phase_changes = Changes()
        """Phase of an instrument, listings apart."""
        self.trade_changes = Changes()
        """Trades of an instrument; a listing too."""
        self._books: dict[int, Book] = {}
        self._add_trade = self.candles.add
        self._touched: dict[int, None] = {}
        self._traded: dict[int, None] = {}
        self._phased: dict[int, None] = {}
        self._handlers: dict[type, Callable[[Any], None]] = {
            InstrumentStatus: self._status,
            OrderAdded: self._added,
            OrderExecuted: self._executed,
            OrderReduced: self._reduced,
            OrderDeleted: self._deleted,
            OrderReplaced: self._replaced,
            Trade: self._trade,
        }

    def apply(self, record: EventRecord) -> None:
        """Take the next record. Whatever this raises says that it is not the next one, or not what
        a venue writes; the market is of no use then."""
        header, events = record
        assert header.first_sequence == self.sequence + 1, (
            f"record {header.first_sequence} after {self.sequence}"
        )
        handlers, channels = self._handlers, self.channels
        offset, size = 0, len(events)
        time_ns = self.time_ns
        while offset < size:
            length, kind, channel, number, time_ns = _read_head(events, offset)
            end = offset + length
            if kind == MARKET_DATA:
                state = channels.get(channel) or self.begin_channel(channel)
                assert number == state.next_number, (
                    f"number {number} of channel {channel} instead of {state.next_number}"
                )
                state.next_number = number + 1
                payload = events[offset + _HEAD_SIZE : end]
                message = _decode(payload)
                handler = handlers.get(type(message))
                if handler is not None:
                    handler(message)
                else:
                    self._list(state, message, payload)
            elif kind == REFERENCE:
                self.directory.apply(number, events[offset + _HEAD_SIZE : end])
            offset = end
        self.sequence = header.last_sequence
        if size:
            self.last_header = header
        self.time_ns = time_ns
        if self._touched or self._traded:
            self._note()

    # Listing.

    def begin_channel(self, channel: int) -> ChannelState:
        """A channel comes into use. For `exchange.feed.checkpoint` too."""
        state = self.channels[channel] = ChannelState(channel)
        return state

    def _list(self, channel: ChannelState, message: MarketDataMessage, payload: bytes) -> None:
        """Take a definition, whose number has been counted."""
        if isinstance(message, EventDefinition):
            self.list_event(channel, message, payload)
        else:
            assert isinstance(message, InstrumentDefinition), "the other classes have a handler"
            self.list_instrument(channel, message, payload)
            self._touched[message.instrument_id] = self._traded[message.instrument_id] = None
        channel.listed_number = channel.next_number

    def list_event(
        self, channel: ChannelState, definition: EventDefinition, payload: bytes
    ) -> EventState:
        """Open an event. For `exchange.feed.checkpoint` too."""
        event_id = definition.event_id
        assert event_id not in self.events, f"event {event_id} was listed twice"
        event = self.events[event_id] = EventState(channel, definition, payload)
        channel.events[event_id] = event
        return event

    def list_instrument(
        self, channel: ChannelState, definition: InstrumentDefinition, payload: bytes
    ) -> InstrumentState:
        """Open the book of an instrument. For `exchange.feed.checkpoint` too."""
        instrument_id = definition.instrument_id
        assert instrument_id not in self.instruments, f"{instrument_id} was listed twice"
        event = channel.events[definition.event_id]
        instrument = InstrumentState(event, definition, payload)
        self.instruments[instrument_id] = instrument
        channel.instruments[instrument_id] = event.instruments[instrument_id] = instrument
        self._books[instrument_id] = instrument.book
        return instrument

    # One handler for each message about an instrument.

    def _status(self, status: InstrumentStatus) -> None:
        self._books[status.instrument_id].phase = status.phase
        self._touched[status.instrument_id] = self._phased[status.instrument_id] = None

    def _added(self, added: OrderAdded) -> None:
        instrument_id = added.instrument_id
        self._books[instrument_id].add(added.order_id, added.side, added.price, added.quantity)
        self._touched[instrument_id] = None

    def _executed(self, executed: OrderExecuted) -> None:
        instrument_id = executed.instrument_id
        book = self._books[instrument_id]
        book.execute(executed.order_id, executed.quantity, executed.leaves_quantity)
        self._touched[instrument_id] = None

    def _reduced(self, reduced: OrderReduced) -> None:
        self._books[reduced.instrument_id].reduce(reduced.order_id, reduced.quantity)
        self._touched[reduced.instrument_id] = None

    def _deleted(self, deleted: OrderDeleted) -> None:
        self._books[deleted.instrument_id].delete(deleted.order_id)
        self._touched[deleted.instrument_id] = None

    def _replaced(self, replaced: OrderReplaced) -> None:
        instrument_id = replaced.instrument_id
        self._books[instrument_id].replace(replaced.order_id, replaced.price, replaced.quantity)
        self._touched[instrument_id] = None

    def _trade(self, trade: Trade) -> None:
        instrument_id = trade.instrument_id
        self._books[instrument_id].last_trade = trade
        self._add_trade(trade)
        self._traded[instrument_id] = None

    def _note(self) -> None:
        """Note what the record has changed."""
        sequence = self.sequence
        for touched, changes in (
            (self._touched, self.book_changes),
            (self._phased, self.phase_changes),
            (self._traded, self.trade_changes),
        ):
            changes.note(touched, sequence)
            for instrument_id in touched:
                self.instruments[instrument_id].sequence = sequence
            touched.clear()
