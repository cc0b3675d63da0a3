"""Real NASDAQ order flow through the engine; a consumer's best prices against NASDAQ's, row by row.

The book begins with the levels of the first order-book row, one order each, and the messages after
it are played as `tools.lobster` maps them. An order that the file never entered is taken from the
order of its level. What the consumer sees comes from packets alone. REPLAY.md explains the rows
that differ.
"""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from exchange.client.receiver import MarketDataReceiver
from exchange.core.limits import GENESIS_DEFAULTS
from protocol import admin
from protocol.books import Level
from protocol.codes import EventKind, Role
from protocol.packer import Packer
from tests.exchange.core.venue import Venue
from tests.source_tree import SOURCE
from tools.lobster import QUANTITY_PER_SHARE, Kind, Mapper, Message, parse_line

DATA = Path(os.environ.get("BRIER_DATA") or SOURCE / "../shared/data") / "aapl-lobster"
MESSAGES, BOOK = DATA / "message_10_first999.csv", DATA / "orderbook_10_first999.csv"
ALL_MESSAGES = DATA / "message_50.csv"

pytestmark = pytest.mark.skipif(
    not (MESSAGES.is_file() and BOOK.is_file() and ALL_MESSAGES.is_file()),
    reason="data: aapl-lobster is not there",
)

LEVEL_COUNT = 10
CAP_PRICE = 10_000_000
CASH = 10**17
EPOCH = 1 << 20
NOW_NS = 1
"""Nothing here depends on the time."""


class Best(NamedTuple):
    """Best prices and how many shares are there."""

    ask: tuple[int, int]
    bid: tuple[int, int]


class Unseen(NamedTuple):
    """A buy order that NASDAQ had and the file of ten levels never entered."""

    order: int
    size: int
    price: int
    line: int
    """Where the file of fifty levels enters it."""
    last_row: int
    """The next message of the file of ten levels executes it."""


UNSEEN = (
    Unseen(13419503, 50, 5_854_000, 163, 447),
    Unseen(3790155, 20, 5_853_800, 165, 448),
    Unseen(4725582, 2, 5_853_800, 167, 449),
    Unseen(12695153, 5, 5_853_600, 169, 487),
)


class Exchange:
    """An engine with one instrument and two accounts, and a consumer that hears packets."""

    def __init__(self) -> None:
        self.venue = Venue(**GENESIS_DEFAULTS)
        self.receiver = MarketDataReceiver((1,))
        self.packer = Packer(EPOCH)
        venue = self.venue
        venue.send(1, admin.Participant("trader"))
        venue.send(1, admin.Key(2, b"t" * 32, Role.TRADE))
        for account_id, name in enumerate(("buyer", "seller"), 1):
            venue.send(1, admin.Account(2, name, "USD"))
            venue.send(1, admin.Deposit(account_id, 1, CASH))
        venue.connect(2, "trader", session=2)
        venue.send(1, admin.Event("AAPL", EventKind.SCALAR, "Price of the share", "USD"))
        venue.send(1, admin.Instrument(1, "AAPL", "Price", 0, CAP_PRICE, [(0, 100)], 100))
        self.mapper = Mapper(1, buyer_account_id=1, seller_account_id=2)

    def play(self, message: Message) -> None:
        command = self.mapper.command(message)
        if command is not None:
            assert self.venue.send(2, command)

    def best(self) -> Best:
        """What the consumer knows after everything so far."""
        if self.venue.engine.batch_count:
            events = self.venue.engine.take_batch().events
            for channel, packet in self.packer.pack(events, NOW_NS):
                self.receiver.receive(channel, packet, NOW_NS)
        assert self.receiver.is_complete
        book = self.receiver.market.books[1]
        return Best(shares(book.best_ask), shares(book.best_bid))


def shares(level: Level | None) -> tuple[int, int]:
    assert level is not None, "neither side is ever empty here"
    assert level.quantity % QUANTITY_PER_SHARE == 0
    return level.price, level.quantity // QUANTITY_PER_SHARE


def read_rows() -> list[list[int]]:
    """Ask price, ask size, bid price, bid size, level by level."""
    return [list(map(int, line.split(","))) for line in BOOK.read_text().splitlines()]


def seed(row: list[int]) -> Iterator[Message]:
    """An order for each level of a row; its id is the price, below zero."""
    for index in range(LEVEL_COUNT):
        ask_price, ask_size, bid_price, bid_size = row[4 * index : 4 * index + 4]
        yield Message(Kind.NEW, -ask_price, ask_size, ask_price, is_buy=False)
        yield Message(Kind.NEW, -bid_price, bid_size, bid_price, is_buy=True)


class Levels:
    """Takes what the file never entered from the orders of the first row."""

    def __init__(self, row: list[int]) -> None:
        self.left = {message.order: message.size for message in seed(row)}
        self.entered: set[int] = set()
        self.counts: Counter[str] = Counter()

    def place(self, message: Message) -> Message:
        """The same message, about the order of its level if need be."""
        if message.kind is Kind.NEW:
            self.entered.add(message.order)
        if message.kind not in (Kind.PARTIAL_CANCEL, Kind.DELETE, Kind.EXECUTION):
            return message
        if message.order in self.entered:
            return message
        left = self.left.get(-message.price, 0)
        if not left:
            self.counts["no level"] += 1
            return message
        assert message.size <= left, "a level holds what its orders held"
        self.counts["from a level"] += 1
        self.left[-message.price] -= message.size
        kind = message.kind
        if kind is Kind.DELETE and message.size < left:
            kind = Kind.PARTIAL_CANCEL  # There are others in the order of the level.
        return message._replace(kind=kind, order=-message.price)


def play(unseen: tuple[Unseen, ...]) -> tuple[list[Best], Exchange, Levels]:
    """What the consumer sees after each message, the first included; `unseen` are entered when
    the file of fifty levels does so."""
    rows = read_rows()
    exchange, levels = Exchange(), Levels(rows[0])
    for message in seed(rows[0]):
        exchange.play(message)
    all_lines = ALL_MESSAGES.read_text().splitlines()
    waiting = [all_lines[one.line - 1] for one in unseen]
    found = [exchange.best()]  # The first row is the book after the first message.
    for line in MESSAGES.read_text().splitlines()[1:]:
        while waiting and seconds(waiting[0]) <= seconds(line):
            exchange.play(levels.place(parse_line(waiting.pop(0))))
        exchange.play(levels.place(parse_line(line)))
        found.append(exchange.best())
    return found, exchange, levels


def seconds(line: str) -> float:
    return float(line.split(",", maxsplit=1)[0])


def wanted() -> list[Best]:
    return [Best((row[0], row[1]), (row[2], row[3])) for row in read_rows()]


def test_best_prices_are_those_of_nasdaq_where_the_file_tells_all() -> None:
    found, exchange, levels = play(())
    expected = wanted()
    differ = [
        row for row, (one, other) in enumerate(zip(found, expected, strict=True), 1) if one != other
    ]
    assert differ == [*range(441, 472), *range(475, 488)]
    assert (len(found), len(found) - len(differ)) == (999, 955)
    for row in differ:
        one, other = found[row - 1], expected[row - 1]
        assert one.ask == other.ask
        there = [order for order in UNSEEN if row <= order.last_row]
        price = max(order.price for order in there)
        assert other.bid == (price, sum(order.size for order in there if order.price == price))
        assert one.bid[0] < price
    assert levels.counts["no level"] == len(UNSEEN), "each is executed once, and found nowhere"
    assert exchange.mapper.counts["unknown"] == len(UNSEEN)
    assert exchange.receiver.public_digest() == exchange.venue.engine.public_digest()


def test_with_the_four_orders_that_the_file_leaves_out_every_row_is_equal() -> None:
    for order in UNSEEN:
        line = ALL_MESSAGES.read_text().splitlines()[order.line - 1]
        entered = Message(Kind.NEW, order.order, order.size, order.price, is_buy=True)
        assert parse_line(line) == entered
    found, exchange, levels = play(UNSEEN)
    assert found == wanted()
    assert levels.counts["no level"] == exchange.mapper.counts["unknown"] == 0
    assert exchange.receiver.public_digest() == exchange.venue.engine.public_digest()


def test_the_four_orders_lie_below_the_tenth_level_when_they_are_entered() -> None:
    """So they touch no level of the file, and it does not tell of them."""
    rows = read_rows()
    lines = MESSAGES.read_text().splitlines()
    entered = ALL_MESSAGES.read_text().splitlines()[UNSEEN[0].line - 1]
    last = max(i for i, line in enumerate(lines) if seconds(line) <= seconds(entered))
    tenth = rows[last][4 * (LEVEL_COUNT - 1) + 2]
    assert all(order.price < tenth for order in UNSEEN)
