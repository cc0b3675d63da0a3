"""A consumer on real multicast with a scripted feed: what it asks for, and how it is healed."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

import pytest

from exchange.client import Consumer, Gap
from exchange.client import channel as channel_module
from exchange.client import consumer as consumer_module
from exchange.client import healer as healer_module
from exchange.client import receiver as receiver_module
from exchange.client import sockets as sockets_module
from exchange.client.connector import ClientState, StateChange
from exchange.client.errors import (
    EpochChangedError,
    FeedRejectError,
    NotConnectedError,
    ReplayIncompleteError,
    RequestEndedError,
)
from exchange.client.feed_client import open_feed
from exchange.client.healer import Feed as FeedAddress
from exchange.client.lines import Line
from exchange.client.recovery import Healing, Recovery
from exchange.client.sockets import snapshot_group_of
from protocol.codes import RejectCode, RequestEndCode, SubscriptionForm, SubscriptionStart
from protocol.feed import FeedReject, FeedState, ReplayRequest, Skipped, Subscribed
from tests.exchange.client.feed import EPOCH, NOW, Feed, digest, heartbeat
from tests.exchange.client.test_consumer import GROUP, Publisher, free_port, new_feed
from tests.exchange.loops import on_both_loops

GROUP_B: Final = "239.255.78.16"
WHERE: Final = FeedAddress("127.0.0.1", 1, b"")


class ScriptedSubscription:
    """A subscription that the test fills."""

    def __init__(self, asked: dict[str, Any]) -> None:
        self.asked = asked
        self.snapshot_is_open = asked["start"] is SubscriptionStart.SNAPSHOT
        self.is_closed = False
        self.is_open = True
        self.on_packet: Callable[[bytes], None] = asked["on_packet"]
        self.on_notice: Callable[[object], None] = asked["on_notice"]
        self.on_end: Callable[[Exception | None], None] = asked["on_end"]

    def close(self) -> None:
        self.is_closed = True


class ScriptedFeed:
    """In the place of a feed client: answers out of the feed of the tests."""

    def __init__(self, truth: Feed) -> None:
        self.truth = truth
        self.errors: list[Exception] = []
        """Raised by the next requests, in turn."""
        self.asked: list[tuple[str, int, int]] = []
        self.subscriptions: list[ScriptedSubscription] = []
        self.is_closed = False
        self.ends_at_once = False
        self.on_state: Callable[[StateChange], None] = lambda _: None
        self.on_feed_state: Callable[[FeedState], None] = lambda _: None
        self.state: FeedState | None = None
        self._number = 1

    def open(self, *_where: object, **options: Any) -> "ScriptedFeed":
        self.on_state, self.on_feed_state = options["on_state"], options["on_feed_state"]
        return self

    def connect(self, *, says_state: bool = False) -> None:
        self.on_state(StateChange(ClientState.READY, None, 0))
        if says_state:
            numbers = [(1, self.truth.next_number), (7, 9)]
            self.state = FeedState(1, 1, self.truth.epoch, numbers)
            self.on_feed_state(self.state)

    def lose(self) -> None:
        self.on_state(StateChange(ClientState.RECONNECTING, None, 1))

    async def close(self) -> None:
        self.is_closed = True

    async def replay(
        self, _channel: int, from_number: int, count: int, *, on_packet: Callable[[bytes], None]
    ) -> list[bytes]:
        await self._begin("replay", from_number, count)
        for packet in self.truth.pack(from_number, from_number + count):
            on_packet(packet)
        return []

    async def snapshot(self, _channel: int, *, on_packet: Callable[[bytes], None]) -> list[bytes]:
        await self._begin("snapshot", 0, 0)
        for packet in self.truth.snapshot(self._number):
            on_packet(packet)
        return []

    async def subscribe(self, channel: int, **asked: Any) -> ScriptedSubscription:
        await self._begin("subscribe", channel, asked["from_number"])
        subscription = ScriptedSubscription(asked)
        self.subscriptions.append(subscription)
        if self.ends_at_once:
            subscription.is_open = False
            subscription.on_end(RequestEndedError("it", RequestEndCode.FAILED))
            return subscription
        subscription.on_notice(
            Subscribed(1, channel, self.truth.epoch, asked["from_number"] or self.truth.next_number)
        )
        return subscription

    async def _begin(self, what: str, *numbers: int) -> None:
        self.asked.append((what, numbers[0], numbers[1]))
        await asyncio.sleep(0)
        if self.errors:
            raise self.errors.pop(0)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small buffers, as the kernel's memory for all sockets together is bounded; short pauses."""
    monkeypatch.setattr(sockets_module, "RECEIVE_BUFFER_SIZE", 1 << 20)
    monkeypatch.setattr(healer_module, "ASK_AGAIN_S", 0.001)
    monkeypatch.setattr(healer_module, "open_feed", open_feed)  # `scripted` sets it.


def scripted(truth: Feed) -> ScriptedFeed:
    """A feed that consumers of this test connect to, from now on."""
    feed = ScriptedFeed(truth)
    setattr(healer_module, "open_feed", feed.open)  # noqa: B010 - mypy sees no such attribute
    return feed


async def until(is_so: Callable[[], bool]) -> None:
    while not is_so():
        await asyncio.sleep(0)


def rejected(code: RejectCode) -> FeedRejectError:
    return FeedRejectError(ReplayRequest(1, 1, 1, 1), FeedReject(1, 42, code, 0, 0, 0, "no"))


def check(consumer: Consumer, truth: Feed) -> None:
    assert consumer.is_complete
    assert consumer.public_digest() == digest(truth.truths)


@on_both_loops
async def test_a_hole_is_filled_by_the_feed() -> None:
    truth = new_feed()
    feed = scripted(truth)
    packets = truth.pack(cut=10)
    recoveries: list[Recovery] = []
    with Publisher(free_port()) as publisher:
        options: dict[str, Any] = {"feed": WHERE, "on_recovered": recoveries.append}
        async with Consumer(GROUP, publisher.port, **options) as consumer:
            is_connected = [consumer.feed_is_connected]
            feed.connect()
            assert [*is_connected, consumer.feed_is_connected] == [False, True]
            publisher.send(*packets[:3], *packets[5:])
            await consumer.wait_for(truth.next_number)
            check(consumer, truth)
            assert feed.asked == [("replay", 30, 21)]
            assert [(one.from_number, one.count, one.how) for one in recoveries] == [
                (31, 20, Healing.REPLAY)
            ]
            assert (consumer.gap_count, consumer.recovery_count) == (0, 1)
            assert consumer.lines["tcp"].packet_count > 0
            assert consumer.lines["a"].packet_count == len(packets) - 2
    assert feed.is_closed


@on_both_loops
async def test_a_feed_that_is_behind_is_asked_again() -> None:
    truth = new_feed()
    feed = scripted(truth)
    feed.errors = [ReplayIncompleteError(35), rejected(RejectCode.NUMBER_TOO_HIGH)]
    packets = truth.pack(cut=10)
    with Publisher(free_port()) as publisher:
        async with Consumer(GROUP, publisher.port, feed=WHERE) as consumer:
            feed.connect()
            publisher.send(*packets[:3], *packets[5:])
            await consumer.wait_for(truth.next_number)
            check(consumer, truth)
            assert feed.asked == [("replay", 30, 21)] * 3
            assert consumer.gap_count == 0


@on_both_loops
async def test_what_is_refused_is_taken_from_a_snapshot() -> None:
    truth = new_feed()
    feed = scripted(truth)
    feed.errors = [RequestEndedError("the replay", RequestEndCode.FAILED)]
    packets = truth.pack(cut=10)
    gaps: list[Gap] = []
    with Publisher(free_port()) as publisher:
        async with Consumer(GROUP, publisher.port, feed=WHERE, on_gap=gaps.append) as consumer:
            feed.connect()
            publisher.send(*packets[:3], *packets[5:])
            await consumer.wait_for(truth.next_number)
            check(consumer, truth)
            assert feed.asked == [("replay", 30, 21), ("snapshot", 0, 0)]
            assert [(gap.first_number, gap.count) for gap in gaps] == [(31, 20)]
            assert isinstance(consumer.feed_error, RequestEndedError)


@on_both_loops
async def test_snapshots_that_are_too_old_are_asked_for_less_and_less_often() -> None:
    """A feed that is behind because it is busy would not catch up otherwise."""
    truth, old = new_feed(), new_feed(commands=20)
    feed = scripted(old)
    packets = truth.pack(cut=10)
    failures: list[int] = []

    def pause_s(count: int) -> float:
        failures.append(count)
        return 0.0

    assert healer_module._pause_s(0) < healer_module._pause_s(3) < healer_module._pause_s(49)
    assert healer_module._pause_s(49) == healer_module._pause_s(10_000)
    with Publisher(free_port()) as publisher, pytest.MonkeyPatch.context() as patch:
        async with Consumer(GROUP, publisher.port, feed=WHERE) as consumer:
            patch.setattr(healer_module, "_pause_s", pause_s)
            feed.connect()
            publisher.send(*packets[:10], *packets[12:])
            feed.errors = [RequestEndedError("the replay", RequestEndCode.FAILED)]
            await until(lambda: consumer.channel(1).is_recovering)
            await until(lambda: len(feed.asked) > 8)
            feed.truth = truth
            await consumer.wait_for(truth.next_number)
            check(consumer, truth)
            assert failures == [*range(1, len(failures) + 1)]
            assert len(failures) > 6


@on_both_loops
async def test_without_a_connection_the_cycle_is_heard_at_every_loss() -> None:
    """Also when the feed has sent us away for good."""
    truth = new_feed()
    feed = scripted(truth)
    port = free_port()
    group = snapshot_group_of(GROUP, 1)
    with Publisher(port) as publisher:
        async with Consumer(GROUP, port, feed=WHERE) as consumer:
            feed.on_state(StateChange(ClientState.CLOSED, NotConnectedError("key"), 0))
            for _ in range(2):
                number = truth.next_number
                truth.random_commands(30)
                publisher.send(*truth.pack(end=number), *truth.pack(first=number + 3))
                await until(lambda: consumer.channel(1).is_recovering)
                publisher.send(*truth.snapshot(first=number * 100), group=group)
                await until(lambda: consumer.is_complete)
                check(consumer, truth)
            assert feed.asked == []
            assert isinstance(consumer.feed_error, NotConnectedError)


@on_both_loops
async def test_the_feed_says_how_far_a_late_joiner_is_behind() -> None:
    """No line has to say anything for that."""
    truth = new_feed(commands=2_000)
    feed = scripted(truth)
    with Publisher(free_port()) as publisher:
        async with Consumer(GROUP, publisher.port, feed=WHERE) as consumer:
            feed.connect(says_state=True)
            await consumer.wait_for(truth.next_number)
            check(consumer, truth)
            assert feed.asked == [("snapshot", 0, 0)]
            assert (consumer.gap_count, consumer.message_count) == (0, 0)
            number = truth.next_number
            truth.random_commands(10)
            publisher.send(*truth.pack(first=number))
            await consumer.wait_for(truth.next_number)
            check(consumer, truth)


@on_both_loops
async def test_a_feed_that_is_at_another_epoch_than_the_lines() -> None:
    """It has not seen that the venue has begun anew: nothing of it is taken, at any time."""
    old, truth = new_feed(), Feed(seed=3, epoch=EPOCH + 1)
    truth.list_instrument(4)
    truth.random_commands(60)
    feed = scripted(old)
    packets = truth.pack(cut=10)
    with Publisher(free_port()) as publisher, pytest.MonkeyPatch.context() as patch:
        patch.setattr(receiver_module, "EPOCH_RETURN_NS", 0)
        async with Consumer(GROUP, publisher.port, feed=WHERE) as consumer:
            publisher.send(*packets[:3], *packets[5:])
            await until(lambda: consumer.channel(1).is_recovering)
            feed.connect(says_state=True)
            await until(lambda: isinstance(consumer.feed_error, EpochChangedError))
            assert consumer.epoch == truth.epoch
            assert feed.asked == []
            feed.truth = truth
            feed.connect(says_state=True)
            await consumer.wait_for(truth.next_number)
            check(consumer, truth)


@on_both_loops
async def test_what_one_line_loses_the_other_brings() -> None:
    truth = new_feed()
    packets = truth.pack(cut=5)
    port = free_port()
    with Publisher(port) as publisher:
        async with Consumer(GROUP, port, line_b=Line(GROUP_B, port)) as consumer:
            for index, packet in enumerate(packets):
                publisher.send(*([packet] if index % 3 else []))
                publisher.send(*([packet] if index % 3 != 1 else []), group=GROUP_B)
            await consumer.wait_for(truth.next_number)
            check(consumer, truth)
            await until(lambda: consumer.duplicate_count > 0)
            assert consumer.recovery_count == 0
            counts = [consumer.lines[name].packet_count for name in "ab"]
            assert [*consumer.lines] == ["a", "b"]
            assert 0 < min(counts) <= max(counts) < len(packets)


@on_both_loops
async def test_the_cycle_of_snapshots_is_heard_only_while_it_is_wanted() -> None:
    """On either line; and a feed that cannot be reached does not stand in the way."""
    truth = new_feed()
    feed = scripted(truth)
    packets = truth.pack(cut=10)
    port = free_port()
    options: dict[str, Any] = {"line_b": Line(GROUP_B, port), "feed": WHERE}
    with Publisher(port) as publisher:
        async with Consumer(GROUP, port, **options) as consumer:
            feed.connect()
            feed.errors = [NotConnectedError("lost")] * 100
            publisher.send(*packets[:3], *packets[5:])
            await until(lambda: consumer.channel(1).is_recovering)
            feed.lose()
            [reader, other] = consumer._readers
            assert 1 in reader._snapshot_sockets
            assert 1 in other._snapshot_sockets
            heard = [dict(consumer.lines[name].heard_ns) for name in "ab"]
            first, *others = truth.snapshot(cut=2)
            group_a, group_b = (snapshot_group_of(group, 1) for group in (GROUP, GROUP_B))
            publisher.send(first, *others[::2], group=group_b)
            publisher.send(*others[1::2], group=group_a)
            await until(lambda: consumer.is_complete)
            check(consumer, truth)
            await until(lambda: not reader._snapshot_sockets and not other._snapshot_sockets)
            assert consumer.gaps[0].reason.endswith("a snapshot took their place")
            assert heard == [consumer.lines[name].heard_ns for name in "ab"], "of messages only"


@on_both_loops
async def test_what_waited_is_applied_before_anybody_gives_up() -> None:
    """In turns, although the timer was set for much later."""
    truth = new_feed(commands=1_000)
    packets = truth.pack(cut=2)
    with Publisher(free_port()) as publisher, pytest.MonkeyPatch.context() as patch:
        patch.setattr(channel_module, "DATAGRAMS_MAX", 16)
        patch.setattr(channel_module, "RECOVERY_WAIT_NS", 10**15)
        async with Consumer(GROUP, publisher.port) as consumer:
            publisher.send(*packets[:3], *packets[4:])
            while consumer.packet_count < len(packets) - 1:
                await asyncio.sleep(0)
            assert consumer.channel(1).is_recovering
            publisher.send(packets[3])
            await consumer.wait_for(truth.next_number)
            check(consumer, truth)


@on_both_loops
async def test_silent_lines_are_replaced_by_the_feed() -> None:
    truth = new_feed()
    feed = scripted(truth)
    with pytest.MonkeyPatch.context() as patch, Publisher(free_port()) as publisher:
        patch.setattr(consumer_module, "SILENT_NS", 20_000_000)
        patch.setattr(consumer_module, "_LOOK_S", 0.005)
        async with Consumer(GROUP, publisher.port, feed=WHERE) as consumer:
            feed.connect()
            publisher.send(*truth.pack())
            await consumer.wait_for(truth.next_number)
            await until(lambda: bool(feed.subscriptions))
            [subscription] = feed.subscriptions
            number = truth.next_number
            assert subscription.asked["start"] is SubscriptionStart.NUMBER
            assert subscription.asked["from_number"] == number - 1, "the last one must be the same"
            truth.random_commands(10)
            for packet in truth.pack(first=number):
                subscription.on_packet(packet)
            subscription.on_packet(heartbeat(3))  # A feed that is behind says nothing new.
            await consumer.wait_for(truth.next_number)
            check(consumer, truth)
            publisher.send(truth.heartbeat())
            await until(lambda: subscription.is_closed)
            await until(lambda: len(feed.subscriptions) == 2)
            feed.subscriptions[1].on_end(RequestEndedError("it", RequestEndCode.FAILED))
            feed.ends_at_once = True
            await until(lambda: len(feed.subscriptions) == 3)
            feed.ends_at_once = False
            await until(lambda: len(feed.subscriptions) == 4)


@on_both_loops
async def test_a_venue_that_begins_anew_while_the_lines_are_dead() -> None:
    """Then nobody but the feed says what is true."""
    old, truth = new_feed(), Feed(seed=3, epoch=EPOCH + 1)
    truth.list_instrument(4)
    truth.random_commands(60)
    feed = scripted(truth)
    with pytest.MonkeyPatch.context() as patch, Publisher(free_port()) as publisher:
        async with Consumer(GROUP, publisher.port, feed=WHERE) as consumer:
            publisher.send(*old.pack())
            await consumer.wait_for(old.next_number)
            feed.connect(says_state=True)
            patch.setattr(consumer_module, "SILENT_NS", 0)
            consumer._look()
            await until(lambda: bool(feed.subscriptions))
            assert feed.subscriptions[0].asked["start"] is SubscriptionStart.SNAPSHOT
            for packet in truth.snapshot():
                feed.subscriptions[0].on_packet(packet)
            assert consumer.epoch == truth.epoch
            check(consumer, truth)


@on_both_loops
async def test_a_channel_that_is_not_in_use_is_not_silent() -> None:
    feed = scripted(Feed())
    with pytest.MonkeyPatch.context() as patch, Publisher(free_port()) as publisher:
        patch.setattr(consumer_module, "SILENT_NS", 0)
        patch.setattr(consumer_module, "_LOOK_S", 0.001)
        async with Consumer(GROUP, publisher.port, feed=WHERE) as consumer:
            feed.connect(says_state=True)
            for _ in range(20):
                consumer._after()
                await asyncio.sleep(0)
            assert feed.asked == []
            assert not consumer.is_complete


@on_both_loops
async def test_everything_over_tcp() -> None:
    truth = new_feed()
    feed = scripted(truth)
    async with Consumer.over_tcp(WHERE) as consumer:
        feed.connect(says_state=True)
        await until(lambda: bool(feed.subscriptions))
        [subscription] = feed.subscriptions
        assert subscription.asked["start"] is SubscriptionStart.SNAPSHOT
        assert "form" not in subscription.asked or (
            subscription.asked["form"] is SubscriptionForm.ORDERS
        )
        for packet in truth.snapshot():
            subscription.on_packet(packet)
        subscription.snapshot_is_open = False
        number = truth.next_number
        truth.random_commands(30)
        for packet in truth.pack(first=number, cut=4):
            subscription.on_packet(packet)
        await consumer.wait_for(truth.next_number)
        check(consumer, truth)
        # Too slow: some are skipped, and a snapshot follows. The numbers of its packets are known.
        number = truth.next_number
        truth.random_commands(30)
        subscription.on_notice(Skipped(1, 1, number, truth.next_number))
        assert not consumer.is_complete
        assert consumer.book("I1").is_stale
        for packet in truth.snapshot():
            subscription.on_packet(packet)
        await consumer.wait_for(truth.next_number)
        check(consumer, truth)
        assert [(gap.first_number, gap.count) for gap in consumer.gaps] == [
            (number, truth.next_number - number)
        ]
        # A new epoch, as the feed says when it is connected again.
        new = Feed(seed=3, epoch=EPOCH + 1)
        new.list_instrument(4)
        subscription.on_notice(Subscribed(1, 1, new.epoch, 1))
        for packet in new.snapshot():
            subscription.on_packet(packet)
        await until(lambda: consumer.is_complete)
        check(consumer, new)
        assert consumer.epoch == new.epoch
        assert [*consumer.lines] == ["tcp"]
        assert consumer.receive_buffer_size == 0
        assert feed.asked == [("subscribe", 1, 0)]


@on_both_loops
async def test_a_connection_over_which_the_venue_was_set_back() -> None:
    """What a subscription brings behind a lost connection begins with a message that we know; and
    a feed that is later than we are, and behind us, tells another story."""
    truth = new_feed()
    feed = scripted(truth)
    async with Consumer.over_tcp(WHERE) as consumer:
        feed.connect()
        await until(lambda: bool(feed.subscriptions))
        for packet in truth.snapshot():
            feed.subscriptions[0].on_packet(packet)
        feed.subscriptions[0].snapshot_is_open = False
        check(consumer, truth)
        number = truth.next_number
        feed.subscriptions[0].on_notice(Subscribed(1, 1, EPOCH, number))
        assert feed.subscriptions[0].is_closed
        await until(lambda: len(feed.subscriptions) == 2)
        assert feed.subscriptions[1].asked["start"] is SubscriptionStart.NUMBER
        assert feed.subscriptions[1].asked["from_number"] == number - 1
        feed.on_feed_state(FeedState(1, NOW, EPOCH, [(1, number - 5)]))
        check(consumer, truth)  # It is only behind.
        feed.on_feed_state(FeedState(1, NOW + 1, EPOCH, [(1, number - 5)]))
        assert consumer.book("I1").is_stale
        assert consumer.gaps[0].reason == "numbers were given before"


@on_both_loops
async def test_nonsense_over_tcp_begins_again_with_a_snapshot() -> None:
    truth = new_feed()
    feed = scripted(truth)
    async with Consumer.over_tcp(WHERE) as consumer:
        feed.connect()
        await until(lambda: bool(feed.subscriptions))
        for packet in truth.snapshot():
            feed.subscriptions[0].on_packet(packet)
        feed.subscriptions[0].snapshot_is_open = False
        check(consumer, truth)
        other = Feed(seed=99)
        other.list_instrument(2)
        other.random_commands(400)
        for packet in other.pack(first=truth.next_number):
            feed.subscriptions[0].on_packet(packet)
        assert consumer.book("I1").is_stale
        await until(lambda: len(feed.subscriptions) == 2)
        assert feed.subscriptions[0].is_closed
        assert feed.subscriptions[1].asked["start"] is SubscriptionStart.SNAPSHOT


@on_both_loops
async def test_a_consumer_that_is_closed_asks_nothing_more() -> None:
    truth = new_feed()
    feed = scripted(truth)
    packets = truth.pack(cut=10)
    tasks = asyncio.all_tasks()
    with Publisher(free_port()) as publisher, pytest.MonkeyPatch.context() as patch:
        patch.setattr(channel_module, "HELD_NS", 0)
        consumer = Consumer(GROUP, publisher.port, feed=WHERE)
        async with consumer:
            publisher.send(*packets[:3], *packets[5:])
            await until(lambda: consumer.channel(1).is_recovering)
        assert feed.is_closed
        assert asyncio.all_tasks() == tasks
        with pytest.raises(NotConnectedError):
            await consumer.wait_for(10**9)


@on_both_loops
async def test_the_lag_of_each_line() -> None:
    truth = new_feed()
    port = free_port()
    with Publisher(port) as publisher:
        async with Consumer(GROUP, port, line_b=Line(GROUP_B, port)) as consumer:
            assert consumer.lag.sample_count == 0
            publisher.send(*truth.pack())
            await consumer.wait_for(truth.next_number)
            publisher.send(*truth.pack(), group=GROUP_B)
            await until(lambda: consumer.lag_of("b").sample_count > 0)
            for name in ("a", "b"):
                lag = consumer.lag_of(name)
                assert lag.sample_count > 0
                assert 0 < lag.network_p50_ns <= lag.network_max_ns
            assert consumer.lag in (consumer.lag_of("a"), consumer.lag_of("b"))
