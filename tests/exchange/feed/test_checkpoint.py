"""A market that was saved and restored is the same, goes on the same, and is refused when it is
not whole."""

import random

import pytest

from exchange.feed import checkpoint
from exchange.feed.checkpoint import CheckpointError, restore, save
from exchange.feed.derived import Derived
from exchange.feed.market import Market
from protocol.base import NUMBER_MAX
from protocol.books import public_digest
from protocol.codes import Side
from protocol.market_data import CANDLE_INTERVALS_S, Trade
from protocol.records import (
    AccountRecorded,
    KeyRecorded,
    ParticipantRecorded,
    SessionRecorded,
    VenueRecorded,
)
from tests.exchange.feed.truth import EPOCH, Truth


def a_market(truth: Truth, command_count: int) -> Market:
    """Two channels, three instruments, a few who are who; a history."""
    market = Market(EPOCH)
    head = truth.begin()
    truth.tell(VenueRecorded(*head, "test", EPOCH, 3))
    truth.tell(ParticipantRecorded(*head, 1, "test"))
    truth.tell(KeyRecorded(*head, 1, 1, b"k" * 32, 16))
    truth.tell(AccountRecorded(*head, 1, 1, "main", "USD"))
    truth.tell(SessionRecorded(*head, 1, 1, "s"))
    truth.list_event(1, 1)
    truth.list_event(2, 9)
    for instrument_id, event_id, channel in ((1, 1, 1), (2, 2, 9), (3, 2, 9)):
        truth.list_instrument(instrument_id, event_id, channel)
    go_on(truth, [market], command_count)
    return market


def go_on(truth: Truth, markets: list[Market], command_count: int) -> None:
    """Random commands, several to a record."""
    for _ in range(command_count // 10):
        for _ in range(10):
            truth.random_command(pause_ns=20_000_000_000)
        record = truth.record()
        for market in markets:
            market.apply(record)


def says(market: Market) -> list[object]:
    """What a market tells, but for the numbers that a message was made at."""
    derived = Derived(market)
    found: list[object] = [
        market.sequence,
        market.last_header,
        market.time_ns,
        market.epoch,
        public_digest(one.book for one in market.instruments.values()),
        [(c, one.next_number, one.listed_number) for c, one in market.channels.items()],
        [(one, event.payload, list(event.instruments)) for one, event in market.events.items()],
        list(market.directory.messages()),
        market.directory.next_number,
        market.directory.key_sequence,
        market.candles.row_count,
        list(market.candles.histories),
        sorted(market.book_changes.since(market.sequence - 5)),
    ]
    for instrument_id, instrument in market.instruments.items():
        found += [instrument.payload, instrument.sequence, instrument.open_interest]
        found += [derived.statistics(instrument_id).payload]
        found += [derived.candles(instrument_id, one, 0, 10**6) for one in CANDLE_INTERVALS_S]
        found += [derived.levels(instrument_id, 50).payload]
    return found


def test_a_restored_market_is_the_same_and_goes_on_the_same() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    truth = Truth(seed)
    market = a_market(truth, 600)
    market.apply(truth.record())
    data = save(market)
    again = restore(data)
    assert save(again) == data
    assert says(again) == says(market)
    assert again.last_header is not None
    assert again.last_header.last_sequence == again.sequence - 1, "the last record has no event"
    for _ in range(5):
        go_on(truth, [market, again], 50)
        assert says(again) == says(market)
    assert save(again) == save(market)
    assert {one: one_book(again, one) for one in truth.books()} == truth.books()


def one_book(market: Market, instrument_id: int) -> object:
    book = market.instruments[instrument_id].book
    return (book.phase, *([(o[0], o[2], o[3]) for o in book.orders(side)] for side in Side))


def test_an_empty_market() -> None:
    again = restore(save(Market(EPOCH)))
    assert says(again) == says(Market(EPOCH))


def test_nothing_is_new_to_a_cursor_of_before() -> None:
    truth = Truth(4)
    again = restore(save(a_market(truth, 100)))
    assert again.book_changes.since(again.sequence) == []
    assert again.trade_changes.since(again.sequence) == []
    truth.begin()
    truth.switch(2)
    again.apply(truth.record())
    assert again.book_changes.since(again.sequence - 1) == [2]


def test_sums_above_the_largest_number_are_saved_as_that() -> None:
    truth = Truth(4)
    market = a_market(truth, 0)
    for trade_id in range(1, 5):
        head = truth.begin()
        truth.say(1, Trade(*head, 1, trade_id, 2 * 10**9, NUMBER_MAX, 1, 0))
    market.apply(truth.record())
    again = restore(save(market))
    assert Derived(again).statistics(1).payload == Derived(market).statistics(1).payload


def test_what_is_not_whole_is_refused() -> None:
    data = save(a_market(Truth(2), 50))
    rng = random.Random(1)
    for place in (*range(8), *range(16, 60), *rng.sample(range(60, len(data)), 100), len(data) - 1):
        bad = bytearray(data)
        bad[place] ^= 1 << rng.randrange(8)
        with pytest.raises(CheckpointError):
            restore(bytes(bad))
    for size in (0, 1, 47, 48, 49, len(data) - 1):
        with pytest.raises(CheckpointError):
            restore(data[:size])
    with pytest.raises(CheckpointError, match="the checksum does not fit"):
        restore(data + b"\0")


def test_another_build_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = save(a_market(Truth(2), 50))
    monkeypatch.setattr(checkpoint, "VERSION", 3)
    with pytest.raises(CheckpointError, match="version 2 with magic b'BRIERMKT'"):
        restore(data)


def test_a_body_of_another_shape_is_refused() -> None:
    body = b"\x91\x01"
    header = checkpoint._HEADER.pack(
        checkpoint.MAGIC, checkpoint.VERSION, 0, checkpoint._digest(body)
    )
    with pytest.raises(CheckpointError, match="not what this build writes"):
        restore(header + body)
