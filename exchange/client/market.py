"""What public messages say, kept: events, instruments and books, for all channels and by channel.

A channel's messages come in order. When some are missing, its books are stale but kept
(`suspend`), until all have come (`resume`) or a snapshot has taken their place (`load`). When they
are missing for good, or make no sense, the books are given up (`lose`): they and the orders in them
are not looked at again before a snapshot, while trades, phases and new instruments are still taken.
An instrument that is listed after a hole has a true book from its listing on.
"""

from collections.abc import Callable
from typing import Any, Final

from exchange.client.snapshots import ChannelSnapshot, Unit
from protocol.books import Book, InconsistentError, LastTrade
from protocol.market_data import (
    EventDefinition,
    InstrumentDefinition,
    InstrumentStatus,
    OrderAdded,
    OrderDeleted,
    OrderExecuted,
    OrderReduced,
    OrderReplaced,
    Trade,
)

__all__ = ["ChannelMarket", "Market"]


class Market:
    """Everything that is listed, over all channels."""

    def __init__(self) -> None:
        self.events: dict[int, EventDefinition] = {}
        self.instruments: dict[int, InstrumentDefinition] = {}
        self.books: dict[int, Book] = {}
        self.symbols: dict[str, Book] = {}

    def list(self, definition: InstrumentDefinition) -> Book:
        """Open the book of a new instrument. Raises InconsistentError."""
        instrument_id, symbol = definition.instrument_id, definition.symbol
        if instrument_id in self.books or symbol in self.symbols:
            raise InconsistentError(f"instrument {instrument_id} {symbol} was listed twice")
        book = Book(definition)
        self.instruments[instrument_id] = definition
        self.books[instrument_id] = self.symbols[symbol] = book
        return book

    def list_again(self, definition: InstrumentDefinition) -> Book:
        """Take what a snapshot says of a listed instrument; its book. Raises InconsistentError."""
        book = self.books[definition.instrument_id]
        if self.symbols.get(definition.symbol, book) is not book:
            raise InconsistentError(f"two instruments are called {definition.symbol}")
        del self.symbols[book.symbol]
        book.definition = self.instruments[definition.instrument_id] = definition
        self.symbols[definition.symbol] = book
        return book

    def clear(self) -> None:
        """A new epoch: nothing is listed. Books that somebody still holds are stale."""
        for book in self.books.values():
            book.lose()
        for table in (self.events, self.instruments, self.books, self.symbols):
            table.clear()


class ChannelMarket:
    """The part of a market that one channel tells."""

    def __init__(self, market: Market) -> None:
        self._market = market
        self._books: dict[int, Book] = {}
        """Books that are true, or were when messages began to be missing."""
        self._lost: dict[int, Book] = {}
        """Books that were given up."""
        self.is_complete = True
        """Whether none had to be given up since the last snapshot."""
        self._is_suspended = False
        self.handlers: Final[dict[type, Callable[[Any], None]]] = {
            EventDefinition: self._event,
            InstrumentDefinition: self._instrument,
            InstrumentStatus: self._status,
            OrderAdded: self._added,
            OrderExecuted: self._executed,
            OrderReduced: self._reduced,
            OrderDeleted: self._deleted,
            OrderReplaced: self._replaced,
            Trade: self._trade,
        }
        """By class: takes the next message. InconsistentError: nothing has changed then."""

    def suspend(self) -> None:
        """Messages are missing: until `resume` all books are stale, but they are kept."""
        self._is_suspended = True
        for book in (*self._books.values(), *self._lost.values()):
            book.suspend()

    def resume(self) -> None:
        """No message is missing any more."""
        self._is_suspended = False
        for book in self._books.values():
            book.resume()
        for book in self._lost.values():
            book.lose()

    def lose(self) -> None:
        """Messages were missed: give all books of now up."""
        self.is_complete = False
        for book in self._books.values():
            book.lose()
        self._lost.update(self._books)
        self._books.clear()

    def load(self, snapshot: ChannelSnapshot) -> None:
        """Have every book from a snapshot instead; they are not shown before `resume`.

        Raises InconsistentError: some are then from the snapshot, and the caller gives all up.
        """
        events = self._market.events
        for event in snapshot.events:
            events[event.event_id] = event
        loaded = dict(map(self._load, snapshot.units))
        if known := [number for number in (*self._books, *self._lost) if number not in loaded]:
            raise InconsistentError(f"instrument {known[0]} is not in the snapshot")
        self._lost.clear()
        self._books = loaded
        self.is_complete = True

    def _load(self, unit: Unit) -> tuple[int, Book]:
        """Have one book from a snapshot."""
        definition, state = unit.definition, unit.state
        instrument_id = definition.instrument_id
        if not (instrument_id in self._books or instrument_id in self._lost):
            self._books[instrument_id] = self._market.list(definition)
        book = self._market.list_again(definition)
        book.load(state.phase, *unit.rows())
        trade_id, price, quantity = state.last_trade_id, state.last_price, state.last_quantity
        open_interest = state.open_interest
        book.last_trade = LastTrade(trade_id, price, quantity, open_interest) if trade_id else None
        return instrument_id, book

    def clear(self) -> None:
        """A new epoch; the market as a whole is cleared by its owner."""
        self.is_complete = True
        self._is_suspended = False
        self._books.clear()
        self._lost.clear()

    # One handler for each message.

    def _event(self, event: EventDefinition) -> None:
        events = self._market.events
        if event.event_id in events:
            raise InconsistentError(f"event {event.event_id} {event.symbol} was listed twice")
        events[event.event_id] = event

    def _instrument(self, definition: InstrumentDefinition) -> None:
        book = self._books[definition.instrument_id] = self._market.list(definition)
        if self._is_suspended:
            book.suspend()

    def _status(self, status: InstrumentStatus) -> None:
        book = self._books.get(status.instrument_id) or self._missing(status.instrument_id)
        if book is not None:
            book.phase = status.phase

    def _added(self, added: OrderAdded) -> None:
        book = self._books.get(added.instrument_id)
        if book is not None:
            book.add(added.order_id, added.side, added.price, added.quantity)
        else:
            self._missing(added.instrument_id)

    def _executed(self, executed: OrderExecuted) -> None:
        book = self._books.get(executed.instrument_id)
        if book is not None:
            book.execute(executed.order_id, executed.quantity, executed.leaves_quantity)
        else:
            self._missing(executed.instrument_id)

    def _reduced(self, reduced: OrderReduced) -> None:
        book = self._books.get(reduced.instrument_id)
        if book is not None:
            book.reduce(reduced.order_id, reduced.quantity)
        else:
            self._missing(reduced.instrument_id)

    def _deleted(self, deleted: OrderDeleted) -> None:
        book = self._books.get(deleted.instrument_id)
        if book is not None:
            book.delete(deleted.order_id)
        else:
            self._missing(deleted.instrument_id)

    def _replaced(self, replaced: OrderReplaced) -> None:
        book = self._books.get(replaced.instrument_id)
        if book is not None:
            book.replace(replaced.order_id, replaced.price, replaced.quantity)
        else:
            self._missing(replaced.instrument_id)

    def _trade(self, trade: Trade) -> None:
        book = self._books.get(trade.instrument_id) or self._missing(trade.instrument_id)
        if book is not None:
            book.last_trade = trade

    def _missing(self, instrument_id: int) -> Book | None:
        """Return the stale book of an instrument, None when its listing was missed."""
        book = self._lost.get(instrument_id)
        if book is None and self.is_complete:
            raise InconsistentError(f"instrument {instrument_id} is not listed on this channel")
        return book
