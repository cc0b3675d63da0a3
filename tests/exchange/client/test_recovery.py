"""A channel that has lost messages: what it asks for, what its books say meanwhile, how it ends."""

from typing import Final

import pytest

from exchange.client import channel as channel_module
from exchange.client.held import Held, HeldPackets
from exchange.client.limits import (
    HELD_NS,
    HELD_OVERHEAD_SIZE,
    HELD_PACKETS_MAX,
    RECOVERY_MAX_NS,
    RECOVERY_WAIT_NS,
)
from exchange.client.recovery import Healing, Means, Recovery, Replay, Snapshot
from protocol.codes import Phase
from protocol.market_data import (
    InstrumentStatus,
    OrderAdded,
    Trade,
)
from tests.exchange.client.feed import EPOCH, NOW, Feed, Resting, heartbeat
from tests.exchange.client.listener import (
    BOTH,
    NOT_COMING,
    REPLAY_ONLY,
    SNAPSHOT_ONLY,
    Listener,
    T,
    check_right,
    check_says_nothing,
    wanted,
    whole,
)
from tests.exchange.client.test_channel import in_an_hour_packet

SECOND: Final = 10**9

# Replay.


@pytest.mark.parametrize("means", [BOTH, REPLAY_ONLY])
def test_a_replay_heals_and_everything_is_told(feed: Feed, means: Means) -> None:
    listener = Listener(means=means)
    packets = feed.pack(cut=4)
    listener.hear(*packets[:5])  # Up to 20.
    before = listener.receiver.market.books[1].bids()
    listener.hear(*packets[6:8])
    listener.wait(HELD_NS - 1)
    assert wanted(listener) is None, "it may only be late"
    assert listener.receiver.market.books[1].bids() == before, "it is right as of number 20"
    listener.wait(1)
    assert wanted(listener) == Replay(1, 20, 5)
    check_says_nothing(listener)
    listener.hear(*packets[8:])
    assert wanted(listener) == Replay(1, 20, 5)
    check_says_nothing(listener)
    assert listener.messages == [message for _, message in feed.messages[:20]]
    listener.wait(1_000_000)
    listener.hear(*feed.pack(first=21, end=25, cut=3))
    check_right(listener, feed)
    assert listener.gaps == []
    assert listener.recoveries == [Recovery(EPOCH, 1, 21, 4, Healing.REPLAY, HELD_NS + 1_000_000)]
    listener.check(feed)


def test_a_replay_that_comes_in_parts_and_with_too_much(feed: Feed) -> None:
    listener = Listener(means=BOTH)
    listener.hear(*feed.pack(end=10, cut=3), feed.heartbeat())
    listener.wait()
    assert wanted(listener) == Replay(1, 9, feed.next_number - 9)
    listener.hear(*feed.pack(first=5, end=17, cut=6))
    assert wanted(listener) == Replay(1, 16, feed.next_number - 16)
    check_says_nothing(listener)
    listener.hear(*feed.pack(first=14, cut=9))
    check_right(listener, feed)
    assert [recovery.count for recovery in listener.recoveries] == [feed.next_number - 10]


def test_a_replay_that_overlaps_what_waits(feed: Feed) -> None:
    listener = Listener(means=BOTH)
    listener.hear(*feed.pack(end=10), *feed.pack(first=20, end=30, cut=5))
    listener.hear(*feed.pack(first=30, cut=9))
    listener.wait()
    listener.hear(*feed.pack(first=10, end=23, cut=13))
    check_right(listener, feed)


def test_holes_one_after_another_are_one_recovery(feed: Feed) -> None:
    listener = Listener(means=BOTH)
    packets = feed.pack(cut=2)
    listener.hear(*packets[:3], *packets[4:6], *packets[8:])
    listener.wait()
    assert wanted(listener) == Replay(1, 6, feed.next_number - 6), "all holes at once"
    listener.hear(packets[3])
    assert wanted(listener) == Replay(1, 12, 5), "the last one"
    check_says_nothing(listener)
    listener.hear(packets[6])
    assert wanted(listener) == Replay(1, 14, 3)
    listener.hear(packets[7])
    check_right(listener, feed)
    assert [(one.from_number, one.count) for one in listener.recoveries] == [(7, 6)]


def test_a_young_hole_behind_the_old_one_is_waited_for(feed: Feed) -> None:
    listener = Listener(means=BOTH)
    packets = feed.pack(cut=2)
    listener.hear(packets[0], packets[2])
    listener.wait()
    listener.hear(packets[4], packets[1])
    assert len(listener.recoveries) == 1
    assert wanted(listener) is None
    assert not listener.receiver.market.books[1].is_stale
    listener.hear(*packets[3:])
    check_right(listener, feed)
    assert len(listener.recoveries) == 1


def test_a_packet_too_many_ends_the_wait(feed: Feed) -> None:
    feed.random_commands(2 * HELD_PACKETS_MAX)
    listener = Listener(means=BOTH)
    packets = feed.pack(cut=1)
    listener.hear(*packets[:10], *packets[11 : 11 + HELD_PACKETS_MAX])
    assert wanted(listener) is None
    listener.hear(*packets[11 + HELD_PACKETS_MAX :])
    assert wanted(listener) == Replay(1, 10, 2)
    listener.hear(packets[10])
    check_right(listener, feed)


def test_a_replay_of_another_story_is_noticed(feed: Feed) -> None:
    """The journal was set back while we heard nothing, and has passed our number again. Of what is
    replayed the first message is one that we know, and it is not the same."""
    listener = Listener(means=BOTH)
    listener.hear(*feed.pack(end=30))
    other = Feed(seed=11)
    other.list_event(1)
    other.list_instrument(1)
    other.list_instrument(2)
    other.random_commands(60)
    listener.hear(other.heartbeat())
    listener.wait()
    asked = wanted(listener)
    assert isinstance(asked, Replay)
    assert asked.from_number == 29
    for packet in other.pack(asked.from_number, asked.from_number + asked.count):
        listener.hear(in_an_hour_packet(packet))
    assert listener.gaps[0].reason == "numbers were given before"
    check_says_nothing(listener)


def test_a_hole_in_a_command_is_healed_too() -> None:
    feed = Feed()
    feed.list_instrument(1)
    feed.say(*[Trade(1, NOW, 1, number, 5_000, 100, 1, 0) for number in range(5)])
    listener = Listener(means=BOTH)
    packets = feed.pack(cut=1)
    listener.hear(*packets[:3], *packets[4:])
    listener.wait()
    assert len(listener.messages) == 1
    listener.hear(packets[3])
    listener.check(feed)


# Bounds and ends.


def test_nobody_answers(feed: Feed) -> None:
    """Then it is a gap as it would have been at once, and trades are told again."""
    for means in (BOTH, REPLAY_ONLY, SNAPSHOT_ONLY):
        listener = Listener(means=means)
        packets = feed.pack(cut=4)
        listener.hear(*packets[:5], *packets[6:8], *packets[9:])
        listener.wait()
        assert listener.receiver.deadline_ns == T + HELD_NS + RECOVERY_WAIT_NS
        listener.wait(RECOVERY_WAIT_NS - 1)
        assert listener.gaps == []
        listener.wait(1)
        holes = [(gap.first_number, gap.count, gap.reason) for gap in listener.gaps]
        assert holes == [(21, 4, NOT_COMING), (33, 4, NOT_COMING)]
        check_says_nothing(listener)
        number = feed.next_number
        listener.hear(whole(Trade(1, NOW, 1, 5_000, 5_000, 100, 1, 0), number))
        listener.hear(whole(InstrumentStatus(1, NOW, 1, Phase.OPEN), number + 1))
        book = listener.receiver.market.books[1]
        assert book.last_trade is not None
        assert book.last_trade.trade_id == 5_000
        assert book.phase == Phase.OPEN
        can_snapshot = Snapshot(1, number + 2) if means.can_snapshot else None
        assert wanted(listener) == can_snapshot


def test_a_snapshot_that_comes_after_all(feed: Feed) -> None:
    """Given up, but the first sign of a snapshot begins a recovery: from then on packets wait."""
    listener = Listener(means=BOTH)
    listener.hear(*feed.pack(end=9), feed.heartbeat())
    listener.wait()
    listener.wait(RECOVERY_WAIT_NS)
    assert len(listener.gaps) == 1
    late = feed.snapshot(cut=1)
    number = feed.next_number
    feed.random_commands(10)
    listener.hear(*feed.pack(first=number))
    listener.hear_snapshot(*late)
    check_says_nothing(listener)
    number = feed.next_number
    feed.random_commands(10)
    snapshot = feed.snapshot(first=1_000)
    listener.hear(*feed.pack(first=number))
    listener.hear_snapshot(*snapshot)
    check_right(listener, feed)
    assert len(listener.gaps) == 1
    assert [recovery.how for recovery in listener.recoveries] == [Healing.SNAPSHOT]


@pytest.mark.parametrize("means", [BOTH, SNAPSHOT_ONLY])
def test_a_number_that_was_never_sent(feed: Feed, means: Means) -> None:
    """Forged, in a heartbeat or with a message: it cannot hold a channel up for ever, although the
    venue and its snapshots are heard all the time."""
    for forged in (heartbeat(2**60), whole(Trade(1, NOW, 1, 1, 5_000, 100, 1, 0), 2**60)):
        listener = Listener(means=means)
        number = feed.next_number
        listener.hear(*feed.pack(), forged)
        listener.wait()
        listener.receiver.channels[1].refuse_replay()
        for index in range(RECOVERY_MAX_NS // SECOND + 2):
            listener.wait(SECOND)
            feed.random_commands(2)
            listener.hear(*feed.pack(first=number))
            number = feed.next_number
            listener.hear_snapshot(*feed.snapshot(first=1_000 * (index + 1)))
        check_right(listener, feed)
        assert "messages that were announced did not come" in {gap.reason for gap in listener.gaps}


def test_a_replay_that_is_refused(feed: Feed) -> None:
    listener = Listener(means=BOTH)
    listener.receiver.channels[1].refuse_replay()
    listener.hear(*feed.pack(end=9), feed.heartbeat())
    listener.wait()
    assert isinstance(wanted(listener), Replay)
    listener.receiver.channels[1].refuse_replay()
    assert wanted(listener) == Snapshot(1, 10)
    only = Listener(means=REPLAY_ONLY)
    only.hear(*feed.pack(end=9), feed.heartbeat())
    only.wait()
    only.receiver.channels[1].refuse_replay()
    assert [gap.first_number for gap in only.gaps] == [9]
    assert wanted(only) is None


def test_the_feed_skips_messages(feed: Feed) -> None:
    """A slow subscriber is told so, and a snapshot follows at once."""
    listener = Listener(means=BOTH)
    listener.hear(*feed.pack())
    feed.random_commands(200)
    number = feed.next_number
    channel = listener.receiver.channels[1]
    channel.skip(5, listener.now_ns)
    assert listener.is_complete()
    channel.skip(number, listener.now_ns)
    check_says_nothing(listener)
    listener.hear_snapshot(*feed.snapshot())
    check_right(listener, feed)


def test_what_waits_is_bounded(feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropped, and what is replayed or taken from a snapshot then is more."""
    feed.random_commands(500)
    packets = feed.pack(cut=1)
    monkeypatch.setattr(channel_module, "HELD_SIZE_MAX", 20_000)
    for means in (BOTH, SNAPSHOT_ONLY):
        listener = Listener(means=means)
        listener.hear(*packets[:20], *packets[21:100])
        assert isinstance(wanted(listener), Replay) == means.can_replay
        sizes = []
        for packet in packets[100:]:
            listener.hear(packet)
            sizes.append(listener.receiver.channels[1]._held.size)
        assert max(sizes) <= 20_000 > max(sizes[-5:])
        check_says_nothing(listener)
        if means.can_replay:
            asked = wanted(listener)
            assert isinstance(asked, Replay)
            assert asked.from_number == 20
            assert asked.count > 300
            listener.hear(*feed.pack(first=20, end=20 + asked.count))
        else:
            listener.hear_snapshot(*feed.snapshot())
        check_right(listener, feed)


def test_what_waited_is_applied_in_turns(feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second of packets in one turn of a loop would cost others theirs; until all are
    applied nothing is said."""
    monkeypatch.setattr(channel_module, "DATAGRAMS_MAX", 10)
    snapshot, number = feed.snapshot(), feed.next_number
    feed.random_commands(100)
    packets = feed.pack(cut=1)
    for means in (BOTH, SNAPSHOT_ONLY):
        listener = Listener(means=means)
        listener.hear(*packets[:9], *packets[number - 1 :])
        listener.wait()
        receiver, now_ns = listener.receiver, listener.now_ns
        if means.can_replay:
            for packet in packets[9 : number - 1]:
                receiver.receive(1, packet, now_ns)
        else:
            for packet in snapshot:
                receiver.receive_snapshot(1, packet, now_ns)
        assert listener.next_number == number + 10
        turns = 0
        while receiver.deadline_ns == 1:
            check_says_nothing(listener)
            assert wanted(listener) is None
            receiver.go_on(now_ns)
            turns += 1
        assert turns == (feed.next_number - number + 9) // 10 - 1
        check_right(listener, feed)


def test_packets_that_wait() -> None:
    held = HeldPackets()
    assert not held
    for number, count in ((9, 2), (5, 0), (7, 1)):
        assert held.is_new(number, count)
        held.add(Held(number, count, number * 10, b"x" * count))
    assert not held.is_new(9, 2)
    assert held.is_new(9, 3)
    held.add(Held(9, 3, 500, b"xxx"))
    assert (len(held), held.first_number, held.oldest_ns) == (3, 5, 90)
    assert held.size == 3 * HELD_OVERHEAD_SIZE + 4
    assert [held.pop().number for _ in range(3)] == [5, 7, 9]
    assert held.size == 0
    held.add(Held(1, 1, 1, b"x"))
    held.clear()
    assert (len(held), held.size) == (0, 0)


def test_a_new_instrument_during_a_recovery_says_nothing_yet(feed: Feed) -> None:
    listener = Listener(means=BOTH)
    number = feed.next_number
    feed.random_commands(3)
    feed.list_instrument(7)
    feed.truths[7].orders.append(Resting(70_000, 1, 4_000, 300))
    feed.say(OrderAdded(1, NOW, 7, 70_000, 1, 4_000, 300))
    behind = feed.next_number
    feed.random_commands(3)
    listener.hear(*feed.pack(end=number), *feed.pack(first=behind + 1))
    listener.wait()
    listener.hear(*feed.pack(first=number, end=behind, cut=1))
    assert listener.receiver.market.books[7].is_stale
    listener.hear(*feed.pack(first=behind, end=behind + 1))
    check_right(listener, feed)
    assert not listener.receiver.market.books[7].is_stale
