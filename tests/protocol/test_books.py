"""One book: levels, priority, what cannot be, and the digest, with exact values."""

import hashlib
import struct
from collections.abc import Callable

import pytest

from protocol.books import (
    Book,
    InconsistentError,
    Level,
    OrderRow,
    QueuePosition,
    RestingOrder,
    StaleBookError,
    public_digest,
)
from protocol.codes import Phase, Side
from protocol.market_data import InstrumentDefinition


def new_book(instrument_id: int = 7) -> Book:
    name = f"I{instrument_id}"
    return Book(
        InstrumentDefinition(1, 1, instrument_id, 3, name, "t", 0, 10_000, [(0, 100)], 100, 1)
    )


@pytest.fixture
def book() -> Book:
    """Buys 5000: 11 (300), 12 (200); 4900: 13 (100). Sells 5100: 21 (400); 5200: 22 (500)."""
    book = new_book()
    book.add(13, 1, 4_900, 100)
    book.add(11, 1, 5_000, 300)
    book.add(22, 2, 5_200, 500)
    book.add(12, 1, 5_000, 200)
    book.add(21, 2, 5_100, 400)
    return book


def ids(book: Book, side: Side) -> list[int]:
    return [order.order_id for order in book.orders(side)]


def test_an_empty_book() -> None:
    book = new_book()
    assert (book.symbol, book.instrument_id, book.phase) == ("I7", 7, Phase.OPEN)
    assert book.best_bid is None
    assert book.best_ask is None
    assert book.bids() == book.asks() == []
    assert book.orders(Side.BUY) == []
    assert book.order(1) is None
    assert book.order_count == 0
    assert not book.is_stale


def test_levels_are_sums_and_come_best_first(book: Book) -> None:
    assert book.best_bid == Level(5_000, 500, 2)
    assert book.best_ask == Level(5_100, 400, 1)
    assert book.bids() == [Level(5_000, 500, 2), Level(4_900, 100, 1)]
    assert book.asks() == [Level(5_100, 400, 1), Level(5_200, 500, 1)]
    assert book.bids(1) == [Level(5_000, 500, 2)]
    assert book.asks(5) == book.asks()
    assert book.order(12) == RestingOrder(12, 1, 5_000, 200)
    assert book.order_count == 5


def test_negative_prices_have_their_place() -> None:
    book = new_book()
    for order_id, price in enumerate((-300, 0, -100), 1):
        book.add(order_id, 1, price, 100)
    assert [level.price for level in book.bids()] == [0, -100, -300]


def test_an_execution_takes_from_the_order_and_the_level(book: Book) -> None:
    book.execute(11, 100, 200)
    assert book.best_bid == Level(5_000, 400, 2)
    assert ids(book, Side.BUY) == [11, 12, 13]
    book.execute(11, 200, 0)
    assert book.best_bid == Level(5_000, 200, 1)
    book.execute(12, 200, 0)
    assert book.best_bid == Level(4_900, 100, 1)
    book.execute(13, 100, 0)
    assert book.best_bid is None


def test_a_smaller_order_keeps_its_place_and_a_replaced_one_does_not(book: Book) -> None:
    book.reduce(11, 100)
    assert ids(book, Side.BUY) == [11, 12, 13]
    assert book.best_bid == Level(5_000, 300, 2)
    book.replace(11, 5_000, 900)
    assert ids(book, Side.BUY) == [12, 11, 13]
    assert book.best_bid == Level(5_000, 1_100, 2)
    book.replace(12, 4_900, 100)
    assert ids(book, Side.BUY) == [11, 13, 12]
    assert book.bids() == [Level(5_000, 900, 1), Level(4_900, 200, 2)]
    book.replace(21, 5_300, 1)
    assert ids(book, Side.SELL) == [22, 21]


def test_a_deleted_order_is_gone_with_its_level(book: Book) -> None:
    book.delete(21)
    assert book.asks() == [Level(5_200, 500, 1)]
    book.delete(22)
    assert book.best_ask is None
    assert book.order(22) is None
    assert book.order_count == 3


def test_what_cannot_be_is_refused_and_changes_nothing(book: Book) -> None:
    before = public_digest([book])
    changes: list[tuple[Callable[[], None], str]] = [
        (lambda: book.add(11, 1, 5_000, 100), "order 11 was added twice"),
        (lambda: book.add(30, 3, 5_000, 100), "order 30 has side 3 and quantity 100"),
        (lambda: book.add(30, 1, 5_000, 0), "order 30 has side 1 and quantity 0"),
        (lambda: book.execute(99, 1, 0), "order 99 is not in the book of I7"),
        (lambda: book.execute(11, 400, 0), "order 11 had 300, traded 400, leaves 0"),
        (lambda: book.execute(11, 100, 100), "order 11 had 300, traded 100, leaves 100"),
        (lambda: book.execute(11, 0, 300), "order 11 had 300, traded 0, leaves 300"),
        (lambda: book.reduce(11, 300), "order 11 was reduced from 300 to 300"),
        (lambda: book.reduce(11, 0), "order 11 was reduced from 300 to 0"),
        (lambda: book.reduce(99, 1), "order 99 is not in the book of I7"),
        (lambda: book.delete(99), "order 99 is not in the book of I7"),
        (lambda: book.replace(99, 1, 1), "order 99 is not in the book of I7"),
        (lambda: book.replace(11, 1, 0), "order 11 was replaced by quantity 0"),
    ]
    for change, reason in changes:
        with pytest.raises(InconsistentError, match=reason):
            change()
    assert public_digest([book]) == before


def test_a_stale_book_has_no_numbers(book: Book) -> None:
    book.lose()
    assert book.is_stale
    assert book.phase is None
    looks: list[Callable[[], object]] = [
        lambda: book.best_bid,
        lambda: book.best_ask,
        book.bids,
        book.asks,
        lambda: book.orders(Side.BUY),
        lambda: book.order(11),
        lambda: book.order_count,
        lambda: public_digest([book]),
    ]
    for look in looks:
        with pytest.raises(StaleBookError, match="the book of I7 is stale: messages were missed"):
            look()


def test_the_digest_takes_these_words(book: Book) -> None:
    book.phase = Phase.HALTED
    book.replace(11, 5_000, 301)
    words = [3, 1, 0, 0, 7, 2, 3, 2]
    words += [12, 5_000, 200, 11, 5_000, 301, 13, 4_900, 100]
    words += [21, 5_100, 400, 22, 5_200, 500]
    expected = hashlib.blake2b(struct.pack("<23q", *words), digest_size=32).hexdigest()
    assert public_digest([book, new_book(3)]) == expected
    assert public_digest([]) == hashlib.blake2b(b"", digest_size=32).hexdigest()


def test_the_place_in_the_queue(book: Book) -> None:
    """Orders 11 (300) and 12 (200) rest at 5000, in this order."""
    assert book.queue_position(11) == QueuePosition(0, 0)
    assert book.queue_position(12) == QueuePosition(1, 300)
    assert book.queue_position(13) == QueuePosition(0, 0), "other prices do not count"
    assert book.queue_position(99) is None
    book.add(14, 1, 5_000, 700)
    book.execute(11, 100, 200)
    assert book.queue_position(14) == QueuePosition(2, 400)
    book.reduce(12, 50)
    assert book.queue_position(14) == QueuePosition(2, 250)
    book.replace(11, 5_000, 900)
    assert book.queue_position(14) == QueuePosition(1, 50)
    assert book.queue_position(11) == QueuePosition(2, 750)


def test_a_suspended_book_says_nothing_and_goes_on(book: Book) -> None:
    book.suspend()
    assert (book.is_stale, book.phase) == (True, None)
    looks: list[Callable[[], object]] = [
        lambda: book.best_bid,
        lambda: book.best_ask,
        book.bids,
        book.asks,
        lambda: book.orders(Side.BUY),
        lambda: book.rows(Side.BUY),
        lambda: book.order(11),
        lambda: book.queue_position(11),
        lambda: book.order_count,
    ]
    for look in looks:
        with pytest.raises(StaleBookError):
            look()
    book.add(14, 1, 5_000, 700)
    book.delete(11)
    book.phase = Phase.HALTED
    assert book.phase != Phase.HALTED
    book.resume()
    assert book.phase == Phase.HALTED
    assert book.best_bid == Level(5_000, 900, 2)


def test_a_snapshot_is_shown_when_the_book_is_resumed(book: Book) -> None:
    buys: list[OrderRow] = [(31, 4_500, 10), (30, 4_500, 20), (32, 4_400, 5)]
    sells: list[OrderRow] = [(41, 4_600, 1), (40, 4_700, 2)]
    book.lose()
    book.load(Phase.HALTED, buys, sells)
    assert (book.is_stale, book.phase) == (True, None)
    book.resume()
    assert book.phase == Phase.HALTED
    assert book.rows(Side.BUY) == buys
    assert book.rows(Side.SELL) == sells
    assert book.bids() == [Level(4_500, 30, 2), Level(4_400, 5, 1)]
    assert book.asks() == [Level(4_600, 1, 1), Level(4_700, 2, 1)]
    assert book.queue_position(30) == QueuePosition(1, 10)
    book.add(50, 1, 4_450, 3)
    book.delete(31)
    assert ids(book, Side.BUY) == [30, 50, 32]


def test_a_snapshot_that_cannot_be_changes_nothing(book: Book) -> None:
    before = book.rows(Side.BUY)
    for buys, sells in (
        ([(1, 4_400, 1), (2, 4_500, 1)], []),
        ([], [(1, 4_500, 1), (2, 4_400, 1)]),
        ([(1, 4_400, 1), (1, 4_300, 1)], []),
        ([(1, 4_400, 1)], [(1, 4_500, 1)]),
        ([(1, 4_400, 0)], []),
    ):
        with pytest.raises(InconsistentError):
            book.load(Phase.OPEN, buys, sells)
        assert book.rows(Side.BUY) == before
        assert not book.is_stale
