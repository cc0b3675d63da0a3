"""What public messages say, kept: events, instruments and books, for all channels and by channel.

A channel's messages come in order and without a hole, or its `lose` is called. From then on the
books that it had are stale: they and the orders in them are never looked at again, while trades,
phases and new instruments are still taken. An instrument that is listed after a hole has a true
book from its listing on.
"""

from collections.abc import Callable
from typing import Any, Final

from protocol.books import Book, InconsistentError
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
        """Books that are true."""
        self._lost: dict[int, Book] = {}
        """Books that are stale."""
        self.is_complete = True
        """Whether nothing was missed; False for the rest of the epoch."""
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

    def lose(self) -> None:
        """Messages were missed: all books of now are stale."""
        self.is_complete = False
        for book in self._books.values():
            book.lose()
        self._lost.update(self._books)
        self._books.clear()

    def clear(self) -> None:
        """A new epoch; the market as a whole is cleared by its owner."""
        self.is_complete = True
        self._books.clear()
        self._lost.clear()

    # One handler for each message.

    def _event(self, event: EventDefinition) -> None:
        events = self._market.events
        if event.event_id in events:
            raise InconsistentError(f"event {event.event_id} {event.symbol} was listed twice")
        events[event.event_id] = event

    def _instrument(self, definition: InstrumentDefinition) -> None:
        self._books[definition.instrument_id] = self._market.list(definition)

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
