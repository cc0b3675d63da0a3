"""The blocking clients: against a scripted feed and multicast that another thread serves."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from exchange.client import (
    BlockingConsumer,
    BlockingFeed,
    ConnectError,
    DropCopyPosition,
    EventsLostError,
    FeedRejectError,
    NotConnectedError,
)
from exchange.client import blocking as blocking_module
from exchange.client.blocking import HandOver, LoopThread
from protocol.codes import RejectCode, SubscriptionStart
from protocol.feed import CandlesRequest, ReplayRequest
from tests.exchange.client.feed import EPOCH, Feed, digest
from tests.exchange.client.feed_peer import KEY, FeedPeer, copied
from tests.exchange.client.feed_sinks import candle, numbers_of, some_feed
from tests.exchange.client.test_consumer import GROUP, Publisher, free_port, new_feed

NUMBER = SubscriptionStart.NUMBER


@contextmanager
def served(feed: Feed) -> Iterator[tuple[FeedPeer, LoopThread]]:
    """A scripted feed, and the thread that it is in."""
    thread = LoopThread()
    peer = FeedPeer(feed)
    thread.run(peer.__aenter__())
    try:
        yield peer, thread
    finally:
        thread.run(peer.__aexit__(None, None, None))
        thread.stop()


@contextmanager
def connected(peer: FeedPeer) -> Iterator[BlockingFeed]:
    with BlockingFeed("127.0.0.1", peer.port, key=KEY) as feed:
        yield feed


def test_messages_one_after_another() -> None:
    feed = some_feed(400)
    expected = [message for _, message in feed.messages]
    with served(feed) as (peer, _), connected(peer) as client:
        assert client.state is not None
        assert client.state.epoch == EPOCH
        messages = client.subscribe(1, start=NUMBER, from_number=1)
        assert [next(messages) for _ in expected] == expected
        messages.close()
        assert list(messages) == []
        quiet = client.subscribe(1, start=NUMBER, from_number=feed.next_number, timeout_s=0.01)
        assert list(quiet) == [], "the iteration ends when nothing comes"


def test_a_slow_script_holds_up_the_feed_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(blocking_module, "EVENTS_MAX", 8)
    feed = some_feed(400)
    expected = [message for _, message in feed.messages]
    with served(feed) as (peer, _), connected(peer) as client:
        messages = client.subscribe(1, start=NUMBER, from_number=1)
        assert numbers_of(client.replay(1, 1, 4)) == [1, 2, 3, 4], "the loop is not held up"
        most = 0
        for message in expected:
            assert next(messages) == message
            most = max(most, len(messages._hand_over._items))
        assert most <= 8


def test_calls_wait_for_their_answer() -> None:
    with served(some_feed()) as (peer, _), connected(peer) as client:
        past = [candle(60), candle(120)]
        peer.answers[CandlesRequest] = lambda line, asked: line.candles(asked, *past)
        assert client.candles(1, 60) == past
        peer.answers[ReplayRequest] = lambda line, asked: line.refuse(asked, RejectCode.CAPACITY)
        with pytest.raises(FeedRejectError, match="CAPACITY"):
            client.replay(1, 1, 1)
    for call in (lambda: client.replay(1, 1, 1), lambda: client.subscribe(1)):
        with pytest.raises(NotConnectedError):
            call()
    client.close()


def test_a_drop_copy_knows_what_the_script_has_taken() -> None:
    with served(some_feed()) as (peer, _), connected(peer) as client:
        peer.copies = [copied(sequence, 0) for sequence in range(5, 15)]
        reports = client.drop_copy(position=DropCopyPosition(1, 0))
        assert reports.position == DropCopyPosition(1, 0)
        assert [next(reports).sequence for _ in range(4)] == [5, 6, 7, 8]
        assert reports.position == DropCopyPosition(8, 1), "and not what waits for it"
        reports.close()
        again = client.drop_copy(position=reports.position)
        assert [next(again).sequence for _ in range(6)] == [9, 10, 11, 12, 13, 14]


def test_nobody_listens() -> None:
    with served(some_feed()) as (peer, _):
        port = peer.port
    with pytest.raises(ConnectError):
        BlockingFeed("127.0.0.1", port, key=KEY)
    assert not [one for one in threading.enumerate() if one.name == "brier-client"]


def test_works_beside_a_running_loop() -> None:
    """As in a notebook, whose cells run inside a loop."""

    async def cell() -> None:
        feed = some_feed()
        with served(feed) as (peer, _), connected(peer) as client:
            assert len(numbers_of(client.replay(1, 1, 4))) == 4

    asyncio.run(cell())


def test_a_hand_over_is_bounded_and_goes_on() -> None:
    hand_over: HandOver[int] = HandOver(4)
    told: list[str] = []
    for number in range(4):
        hand_over.put(number)
    assert hand_over.is_full
    hand_over.when_room(lambda: told.append("room"))
    assert [hand_over.take(None), told] == [0, []]
    assert [hand_over.take(None), told] == [1, ["room"]]
    hand_over.when_room(lambda: told.append("at once"))
    assert told.pop() == "at once", "there is room already"
    hand_over.put(4)
    hand_over.put(EventsLostError(3))
    hand_over.when_room(lambda: told.append("never"))  # Four are left, and then it ends.
    hand_over.end()
    assert [hand_over.take(None) for _ in range(3)] == [2, 3, 4]
    with pytest.raises(EventsLostError, match="3 events"):
        hand_over.take(None)
    with pytest.raises(StopIteration):
        hand_over.take(None)
    assert told == ["room"]


def test_what_was_left_out_is_told_in_its_place() -> None:
    hand_over: HandOver[int] = HandOver(2)
    for number in (1, 2):
        hand_over.put(number)
    hand_over.lose()
    assert hand_over.take(None) == 1
    assert hand_over.is_full, "one waits, and what was left out"
    hand_over.lose()
    assert hand_over.take(None) == 2
    hand_over.put(5)
    hand_over.lose()
    with pytest.raises(EventsLostError, match=r"^2 events"):
        hand_over.take(None)
    assert hand_over.take(None) == 5
    with pytest.raises(EventsLostError, match=r"^1 events"):
        hand_over.take(None)


def test_nobody_waits_for_a_loop_that_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks in the last moment, and whoever has asked before, is told."""
    thread = LoopThread()
    begun, refused = threading.Event(), threading.Event()
    told: list[str] = []

    async def wait() -> None:
        begun.set()
        await asyncio.Event().wait()

    def call(ended: threading.Event) -> None:
        with pytest.raises(NotConnectedError) as error:
            thread.run(wait())
        told.append(str(error.value))
        ended.set()

    close = thread.loop.close

    def close_late() -> None:
        threading.Thread(target=call, args=(refused,), daemon=True).start()
        refused.wait(5.0)
        close()

    monkeypatch.setattr(thread.loop, "close", close_late)
    waiter = threading.Thread(target=call, args=(threading.Event(),), daemon=True)
    waiter.start()
    begun.wait()
    thread.stop()
    waiter.join(5.0)
    assert sorted(told) == ["it is closed", "it was closed meanwhile"]
    thread.stop()


@contextmanager
def listening(publisher: Publisher) -> Iterator[BlockingConsumer]:
    with BlockingConsumer(GROUP, publisher.port, snapshots=False) as market:
        yield market


def test_books_and_events_of_multicast() -> None:
    feed = new_feed()
    with Publisher(free_port()) as publisher, listening(publisher) as market:
        events = market.events(timeout_s=10.0)
        publisher.send(*feed.pack())
        market.wait_for(feed.next_number, timeout_s=10.0)
        expected = [message for _, message in feed.messages]
        assert [next(events) for _ in expected] == expected
        book = market.book("I1", depth=3)
        bids, asks = market.read(lambda one: (one.book("I1").bids(3), one.book("I1").asks(3)))
        assert (book.symbol, book.is_stale, book.bids, book.asks) == ("I1", False, bids, asks)
        assert book.best_bid == bids[0]
        assert book.best_ask == (asks[0] if asks else None)
        assert market.read(lambda one: one.public_digest()) == digest(feed.truths)
        with pytest.raises(KeyError):
            market.book("I2")
        with pytest.raises(TimeoutError):
            market.wait_for(feed.next_number + 1, timeout_s=0.01)
        assert list(market.events(timeout_s=0.01)) == []
    assert list(events) == [], "closed"
    with pytest.raises(NotConnectedError):
        market.book("I1")


def test_a_function_that_would_wait_for_itself_is_refused() -> None:
    with Publisher(free_port()) as publisher, listening(publisher) as market:
        for call in (lambda _: market.book("I1"), lambda _: market.close()):
            with pytest.raises(RuntimeError, match="would wait for itself"):
                market.read(call)
        assert market.read(lambda _: "done") == "done", "nothing is held up"


def test_events_of_what_is_closed() -> None:
    with Publisher(free_port()) as publisher, listening(publisher) as market:
        pass
    assert list(market.events(timeout_s=5.0)) == []
    ended = market.events()
    assert list(ended) == [], "without a wait"


def test_a_book_that_is_not_known_shows_nothing() -> None:
    feed = new_feed()
    packets = feed.pack(cut=10)
    with Publisher(free_port()) as publisher, listening(publisher) as market:
        publisher.send(*packets[:3], *packets[4:])
        market.wait_for(feed.next_number, timeout_s=10.0)
        book = market.book("I1")
        assert (book.is_stale, book.bids, book.asks, book.best_bid) == (True, [], [], None)


def test_a_slow_script_is_told_what_it_has_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocking_module, "EVENTS_MAX", 10)
    feed = new_feed()
    expected = [message for _, message in feed.messages]
    count = len(expected)
    with Publisher(free_port()) as publisher, listening(publisher) as market:
        events = market.events(timeout_s=10.0)
        publisher.send(*feed.pack())
        market.wait_for(feed.next_number, timeout_s=10.0)
        assert [next(events) for _ in range(10)] == expected[:10]
        assert market.read(lambda one: one.is_complete), "the books have all"
        with pytest.raises(EventsLostError) as lost:
            next(events)
        assert lost.value.count == count - 10, "said at once, not with the next message"
        feed.random_commands(1)
        publisher.send(*feed.pack(count + 1))
        assert next(events) == feed.messages[count][1]
