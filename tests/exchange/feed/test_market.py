"""The market against a venue whose truth is kept as lists, and against the engine's own digest."""

import random
from collections.abc import Iterable

import pytest

from exchange.core.engine import Engine
from exchange.feed.market import Changes, Market
from journal import EventRecord
from journal.event_format import RecordHeader
from protocol.books import InconsistentError, public_digest
from protocol.codes import Side
from protocol.market_data import OrderDeleted
from protocol.records import (
    AccountRecorded,
    KeyRecorded,
    ParticipantRecorded,
    SessionRecorded,
    VenueRecorded,
)
from tests.exchange.core.side_by_side import Pair
from tests.exchange.core.strategies import Generator
from tests.exchange.feed.truth import EPOCH, Truth

Books = dict[int, tuple[int, list[tuple[int, int, int]], list[tuple[int, int, int]]]]


def books_of(market: Market) -> Books:
    """As `Truth.books` gives them."""
    found: Books = {}
    for instrument_id, instrument in market.instruments.items():
        book = instrument.book
        assert book.phase is not None
        sides = [[(o.order_id, o.price, o.quantity) for o in book.orders(side)] for side in Side]
        found[instrument_id] = (book.phase, sides[0], sides[1])
    return found


def a_venue(seed: int = 1) -> Truth:
    """Two channels, three events, five instruments."""
    truth = Truth(seed)
    for event_id, channel in ((1, 1), (2, 7), (3, 7)):
        truth.list_event(event_id, channel)
    for instrument_id, event_id, channel in ((1, 1, 1), (2, 1, 1), (3, 2, 7), (4, 3, 7), (5, 3, 7)):
        truth.list_instrument(instrument_id, event_id, channel)
    return truth


def test_books_follow_the_events() -> None:
    truth = a_venue()
    market = Market(EPOCH)
    for _ in range(150):
        for _ in range(truth.rng.randrange(8)):
            truth.random_command()
        market.apply(truth.record())
        assert books_of(market) == truth.books()
    assert (market.sequence, market.time_ns, market.epoch) == (
        truth.sequence,
        truth.said[-1][2].time_ns,
        EPOCH,
    )
    assert {c: one.next_number - 1 for c, one in market.channels.items()} == {
        1: truth.numbers[1],
        7: truth.numbers[7],
    }
    assert list(market.channels[7].events) == [2, 3]
    assert list(market.channels[7].instruments) == [3, 4, 5]
    assert list(market.events[3].instruments) == [4, 5]
    for instrument_id, instrument in market.instruments.items():
        last = [one for one in truth.trades if one.instrument_id == instrument_id][-1]
        assert instrument.book.last_trade == last
        assert instrument.open_interest == last.open_interest
        assert instrument.channel.channel == truth.channels[instrument_id]


def test_the_last_definition_of_a_channel_is_known_by_its_number() -> None:
    truth = a_venue()
    market = Market(EPOCH)
    market.apply(truth.record())
    assert market.channels[1].listed_number == market.channels[1].next_number == 4
    for _ in range(50):
        truth.random_command()
    market.apply(truth.record())
    assert market.channels[1].listed_number == 4 < market.channels[1].next_number
    truth.list_instrument(6, 1, 1)
    market.apply(truth.record())
    assert market.channels[1].listed_number == market.channels[1].next_number


@pytest.mark.parametrize("profile", ["trading", "rich", "sessions", "admin"])
def test_the_engine_agrees(profile: str) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}, profile {profile}")
    pair, market = Pair(), Market(EPOCH)
    generator = Generator(random.Random(seed), profile)
    steps = generator.first()
    for count in range(400):
        for step in steps:
            pair.apply(step)
            pair.compare()
        steps = [generator.next(pair.model.state)]
        market_reads(market, pair)
        if count % 40 == 0:
            compare(market, pair.engine)
    compare(market, pair.engine)


def market_reads(market: Market, pair: Pair) -> None:
    """Have the market apply what the engine's batches have caused."""
    for batch in pair.batches:
        header = RecordHeader(
            3, batch.first_sequence, batch.command_count, len(batch.events), batch.events_crc
        )
        market.apply(EventRecord(header, batch.events))
    pair.batches.clear()


def compare(market: Market, engine: Engine) -> None:
    """Everything that the engine says of itself."""
    assert market.sequence == engine.sequence
    books = (one.book for one in market.instruments.values())
    assert public_digest(books) == engine.public_digest()
    assert [(c, one.next_number) for c, one in sorted(market.channels.items())] == engine.channels()
    directory = market.directory
    for public_key, key in directory.keys.items():
        state = engine.key(public_key)
        assert state is not None
        assert (key.key_id, key.participant_id, key.roles) == tuple(state)
    for session_id, session in directory.sessions.items():
        assert engine.session_id(session.participant_id, session.name) == session_id
        assert directory.participant_of_session(session_id) == session.participant_id
    assert len(directory.sessions) == engine.session_count
    assert directory.venue is not None
    assert (directory.venue.venue, directory.venue.epoch) == (engine.venue, engine.epoch)


def test_what_is_not_next_is_refused() -> None:
    truth = a_venue()
    record = truth.record()
    market = Market(EPOCH)
    market.apply(record)
    with pytest.raises(AssertionError, match="record 1 after 8"):
        market.apply(record)
    truth.record()
    with pytest.raises(AssertionError, match="record 10 after 8"):
        market.apply(truth.record())


def test_a_hole_in_the_numbers_is_refused() -> None:
    truth, market = a_venue(), Market(EPOCH)
    market.apply(truth.record())
    truth.begin()
    truth.numbers[7] += 1
    truth.switch(3)
    with pytest.raises(AssertionError, match="number 7 of channel 7 instead of 6"):
        market.apply(truth.record())


def test_a_message_that_cannot_be_is_refused() -> None:
    truth, market = a_venue(), Market(EPOCH)
    market.apply(truth.record())
    head = truth.begin()
    truth.say(1, OrderDeleted(*head, 1, 99))
    with pytest.raises(InconsistentError, match="order 99 is not in the book of I1"):
        market.apply(truth.record())


def test_changes_since_a_sequence() -> None:
    truth, market = a_venue(), Market(EPOCH)
    cursors = [0]
    said = 0
    seen: list[tuple[int, str, int]] = []  # (sequence of the record, kind, instrument)
    for _ in range(60):
        for _ in range(truth.rng.randrange(3)):
            truth.random_command()
        record = truth.record()
        market.apply(record)
        for _, _, message in truth.said[said:]:
            kind = type(message).__name__
            instrument_id = getattr(message, "instrument_id", 0)
            seen.append((record.header.last_sequence, kind, instrument_id))
        said = len(truth.said)
        cursors.append(market.sequence)
    for cursor in cursors:
        for changes, kinds, others in (
            (market.book_changes, (), ("Trade", "EventDefinition")),
            (market.trade_changes, ("Trade", "InstrumentDefinition"), ()),
            (market.phase_changes, ("InstrumentStatus",), ()),
        ):
            wanted = {
                one
                for sequence, kind, one in seen
                if sequence > cursor and (kind in kinds if kinds else kind not in others)
            }
            found = changes.since(cursor)
            assert set(found) == wanted
            assert len(found) == len(wanted)
            order = [changes.of(one) for one in found]
            assert order == sorted(order, reverse=True)


def test_a_listing_is_a_change() -> None:
    truth, market = a_venue(), Market(EPOCH)
    market.apply(truth.record())
    truth.list_instrument(6, 1, 1)
    market.apply(truth.record())
    assert market.book_changes.since(8) == market.trade_changes.since(8) == [6]
    assert market.book_changes.since(0) == market.trade_changes.since(0) == [6, 5, 4, 3, 2, 1]
    assert market.phase_changes.since(0) == []
    assert market.instruments[6].sequence == 9


def test_changes_are_walked_from_the_newest() -> None:
    changes = Changes()
    changes.note([1, 2, 3], 5)
    changes.note([1], 7)
    assert changes.since(7) == []
    assert changes.since(6) == [1]
    assert changes.since(4) == [1, 3, 2]
    assert [changes.of(one) for one in (1, 2, 9)] == [7, 5, 0]


def test_who_is_who() -> None:
    truth, market = Truth(), Market(EPOCH)
    directory = market.directory
    head = truth.begin()
    tell(
        truth,
        [
            VenueRecorded(*head, "test", EPOCH, 3),
            ParticipantRecorded(*head, 1, "test"),
            KeyRecorded(*head, 1, 1, b"a" * 32, 16),
        ],
    )
    market.apply(truth.record())
    assert directory.venue == VenueRecorded(*head, "test", EPOCH, 3)
    assert directory.key_sequence == 1
    head = truth.begin()
    tell(
        truth,
        [
            ParticipantRecorded(*head, 2, "alice"),
            AccountRecorded(*head, 1, 2, "main", "USD"),
            SessionRecorded(*head, 4, 2, "s"),
        ],
    )
    market.apply(truth.record())
    assert directory.key_sequence == 1
    assert directory.participants[2].name == "alice"
    assert directory.participant_of_account(1) == directory.participant_of_session(4) == 2
    assert directory.participant_of_account(2) == directory.participant_of_session(1) == 0
    head = truth.begin()
    tell(truth, [KeyRecorded(*head, 1, 1, b"a" * 32, 0)])
    market.apply(truth.record())
    assert (directory.key_sequence, directory.keys[b"a" * 32].roles) == (3, 0)
    truth.begin()
    truth.numbers[0] += 1
    tell(truth, [ParticipantRecorded(*head, 3, "bob")])
    with pytest.raises(AssertionError, match="record 9 instead of 8"):
        market.apply(truth.record())


def tell(
    truth: Truth,
    messages: Iterable[
        VenueRecorded | ParticipantRecorded | AccountRecorded | KeyRecorded | SessionRecorded
    ],
) -> None:
    for message in messages:
        truth.tell(message)
