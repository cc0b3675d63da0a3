"""A channel that is healed by snapshots, whole ones and parts of several, sound and unsound."""

import random
from itertools import chain

import msgspec
import pytest

from exchange.client.limits import (
    HELD_NS,
    JOIN_REPLAY_MAX,
    REPLAY_MAX,
)
from exchange.client.recovery import Gap, Healing, Means, Recovery, Replay, Snapshot
from protocol.market_data import (
    OrderDeleted,
    SnapshotOrders,
    Trade,
)
from protocol.packets import Block, PacketError, decode_packet, decode_snapshot_message
from protocol.wire import encode
from tests.exchange.client.feed import EPOCH, NOW, Feed, heartbeat
from tests.exchange.client.listener import (
    BOTH,
    REPLACED,
    REPLAY_ONLY,
    SNAPSHOT_ONLY,
    Listener,
    check_right,
    check_says_nothing,
    wanted,
)
from tests.exchange.client.test_channel import in_an_hour_packet
from tests.exchange.client.test_datagrams import MUTATIONS

# Snapshots.


@pytest.mark.parametrize("cut", [1, 3, 100])
def test_a_snapshot_takes_the_place_of_what_is_missing(feed: Feed, cut: int) -> None:
    listener = Listener(means=SNAPSHOT_ONLY)
    packets = feed.pack(cut=4)
    listener.hear(*packets[:5], *packets[6:])
    book = listener.receiver.market.books[1]
    listener.wait()
    assert wanted(listener) == Snapshot(1, 22)
    check_says_nothing(listener)
    snapshot = feed.snapshot(cut=cut)
    for packet in snapshot:
        check_says_nothing(listener)
        listener.hear_snapshot(packet)
        if listener.is_complete():
            break
    check_right(listener, feed)
    assert listener.receiver.market.books[1] is book, "whoever has a book goes on with it"
    assert listener.gaps == [Gap(EPOCH, 1, 21, 4, REPLACED)]
    assert listener.recoveries == [Recovery(EPOCH, 1, 21, 4, Healing.SNAPSHOT, HELD_NS)]
    told = [message for number, (_, message) in enumerate(feed.messages, 1)]
    assert listener.messages == told[:20] + told[24:], "what has come is told"
    number = feed.next_number
    feed.random_commands(10)
    listener.hear(*feed.pack(first=number))
    check_right(listener, feed)


def test_what_waits_goes_on_behind_the_snapshot(feed: Feed) -> None:
    """The snapshot is as of a number in the middle of what waits."""
    listener = Listener(means=SNAPSHOT_ONLY)
    listener.hear(*feed.pack(end=9))
    feed.random_commands(5)
    lost_end = feed.next_number
    feed.list_event(2)
    feed.random_commands(3)
    snapshot = feed.snapshot()
    feed.random_commands(20)
    listener.hear(*feed.pack(first=lost_end, cut=4))
    listener.wait()
    listener.hear_snapshot(*snapshot)
    check_right(listener, feed)
    assert [(gap.first_number, gap.count) for gap in listener.gaps] == [(9, lost_end - 9)]


def test_a_hole_behind_the_snapshot_is_still_missing(feed: Feed) -> None:
    listener = Listener(means=BOTH)
    listener.hear(*feed.pack(end=9))
    snapshot, number = feed.snapshot(), feed.next_number
    feed.random_commands(20)
    listener.hear(*feed.pack(first=number + 5))
    listener.wait()
    listener.receiver.channels[1].refuse_replay()
    listener.hear_snapshot(*snapshot)
    assert listener.next_number == number
    check_says_nothing(listener)
    assert wanted(listener) == Snapshot(1, number + 1)
    listener.hear(*feed.pack(first=number, end=number + 5))
    check_right(listener, feed)
    assert [recovery.how for recovery in listener.recoveries] == [Healing.SNAPSHOT]


def test_an_instrument_that_is_later_than_the_beginning(feed: Feed) -> None:
    """Its messages below its own number are told and not applied; until then nothing is said."""
    listener = Listener(means=SNAPSHOT_ONLY)
    listener.hear(*feed.pack(end=9))
    begin, number = feed.begin(), feed.next_number
    units = [feed.unit(1)]
    feed.random_commands(20)
    units.append(feed.unit(2))
    end = feed.next_number
    blocks = [begin, *feed.events(), *units[0], *units[1]]
    listener.hear(heartbeat(number))
    listener.wait()
    listener.hear_snapshot(*feed.snapshot_packets(blocks))
    assert listener.next_number == number
    packets = feed.pack(first=number, end=end, cut=1)
    listener.hear(packets[2], packets[0])
    check_says_nothing(listener)
    assert wanted(listener) == Snapshot(1, number + 2), "nobody else tells it that it is old"
    for packet in packets[1:]:
        check_says_nothing(listener)
        listener.hear(packet)
    check_right(listener, feed)
    told = [message for _, message in feed.messages]
    assert listener.messages == told[:8] + told[number - 1 :]
    feed.random_commands(20)
    listener.hear(*feed.pack(first=end))
    check_right(listener, feed)


def test_units_of_several_cycles_are_put_together(feed: Feed) -> None:
    """Of each cycle another part is lost; the beginning is that of the first."""
    listener = Listener(means=SNAPSHOT_ONLY)
    listener.hear(*feed.pack(end=9))
    number = feed.next_number
    listener.hear(heartbeat(number))
    listener.wait()
    listener.hear_snapshot(*feed.snapshot_packets([feed.begin(), *feed.events(), *feed.unit(1)]))
    feed.random_commands(15)
    feed.list_instrument(3)
    feed.random_commands(15)
    units = [*feed.unit(1)[:-1], *feed.unit(2), *feed.unit(3)]
    listener.hear_snapshot(*feed.snapshot_packets(units, first=1_000, cut=1))
    assert listener.next_number == number
    listener.hear(*feed.pack(first=number))
    check_right(listener, feed)
    assert len(listener.gaps) == 1


def test_a_unit_that_is_older_than_the_beginning_is_not_taken(feed: Feed) -> None:
    listener = Listener(means=SNAPSHOT_ONLY)
    listener.hear(*feed.pack(end=9))
    old = feed.unit(2)
    feed.random_commands(20)
    listener.hear(feed.heartbeat())
    listener.wait()
    blocks = [*old, feed.begin(), *feed.events(), *feed.unit(1)]
    listener.hear_snapshot(*feed.snapshot_packets(blocks))
    check_says_nothing(listener)
    listener.hear_snapshot(*feed.snapshot_packets(old, first=900))
    check_says_nothing(listener)
    listener.hear_snapshot(*feed.snapshot_packets(feed.unit(2), first=1_000))
    check_right(listener, feed)


def test_what_was_listed_later_does_not_stand_for_what_was_listed_before(feed: Feed) -> None:
    """As many instruments and events as the beginning says, but not those."""
    for part in ("instrument", "event"):
        listener = Listener(means=SNAPSHOT_ONLY)
        number = feed.next_number
        begin, events = feed.begin(), feed.events()
        units = {instrument_id: feed.unit(instrument_id) for instrument_id in feed.truths}
        feed.list_event(feed.next_number)
        feed.list_instrument(feed.next_number)
        later = feed.unit(next(reversed(feed.truths)))
        if part == "instrument":
            missing = units.pop(2)
            blocks = [begin, *events, *later, *chain(*units.values())]
        else:
            missing = [events.pop()]
            blocks = [begin, *events, feed.events()[-1], *chain(*units.values())]
        listener.hear_snapshot(*feed.snapshot_packets(blocks))
        assert listener.next_number == 1
        check_says_nothing(listener)
        listener.hear_snapshot(*feed.snapshot_packets(missing, first=1_000))
        assert listener.next_number == number
        listener.hear(*feed.pack(first=number))
        check_right(listener, feed)


def test_a_snapshot_from_before_the_hole_is_of_no_use(feed: Feed) -> None:
    listener = Listener(means=SNAPSHOT_ONLY)
    listener.hear(*feed.pack())
    old, number = feed.snapshot(), feed.next_number
    feed.random_commands(20)
    listener.hear(*feed.pack(first=number + 3))
    listener.wait()
    listener.hear_snapshot(*old)
    check_says_nothing(listener)
    assert wanted(listener) == Snapshot(1, number + 1)
    listener.hear_snapshot(*feed.snapshot(first=500))
    check_right(listener, feed)


def test_parts_of_two_units_are_not_joined(feed: Feed) -> None:
    """The end of one and the beginning of the next are lost, in every place."""
    listener = Listener(means=SNAPSHOT_ONLY)
    listener.hear(*feed.pack(end=9), feed.heartbeat())
    listener.wait()
    blocks = [feed.begin(), *feed.events(), *feed.unit(1), *feed.unit(2)]
    begin = 1
    for lost in range(1, len(blocks)):
        packets = feed.snapshot_packets(blocks, begin, cut=1)
        del packets[lost : lost + 2]
        one = Listener(means=SNAPSHOT_ONLY)
        one.hear(*feed.pack(end=9), feed.heartbeat())
        one.wait()
        one.hear_snapshot(*packets)
        check_says_nothing(one)


def test_packets_of_a_snapshot_in_any_order_twice_and_from_two_sources(feed: Feed) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(50):
        listener = Listener(means=SNAPSHOT_ONLY)
        listener.hear(*feed.pack(end=9), feed.heartbeat())
        listener.wait()
        begin, *others = feed.snapshot(cut=1)
        packets = [(rng.random(), packet) for packet in [*others, *others]]
        listener.hear_snapshot(begin)
        for _, packet in sorted(packets):
            listener.hear_snapshot(packet)
            listener.hear_snapshot(rng.choice(others), source=1)
        check_right(listener, feed)


def test_who_knows_nothing_takes_the_first_snapshot(feed: Feed) -> None:
    """Over TCP: no packet has come before."""
    for means in (SNAPSHOT_ONLY, BOTH):
        listener = Listener(means=means)
        listener.hear_snapshot(*feed.snapshot())
        check_right(listener, feed)
        assert listener.gaps == []
        assert listener.messages == []
        recovery = Recovery(EPOCH, 1, 1, feed.next_number - 1, Healing.SNAPSHOT, 0)
        assert listener.recoveries == [recovery]
        number = feed.next_number
        feed.random_commands(20)
        listener.hear(*feed.pack(first=number))
        check_right(listener, feed)


def test_a_channel_in_which_nothing_was_said(feed: Feed) -> None:
    listener = Listener(means=BOTH)
    empty = Feed()
    listener.hear_snapshot(*empty.snapshot())
    check_right(listener, empty)


@pytest.mark.parametrize(
    ("means", "count", "expected"),
    [
        (BOTH, JOIN_REPLAY_MAX, Replay(1, 1, JOIN_REPLAY_MAX)),
        (BOTH, JOIN_REPLAY_MAX + 1, Snapshot(1, 2)),
        (REPLAY_ONLY, REPLAY_MAX + 5, Replay(1, 1, REPLAY_MAX)),
        (SNAPSHOT_ONLY, 1, Snapshot(1, 2)),
    ],
)
def test_who_comes_late(means: Means, count: int, expected: Replay | Snapshot) -> None:
    listener = Listener(means=means)
    listener.hear(heartbeat(count + 1))
    listener.wait()
    assert wanted(listener) == expected


def test_more_than_can_be_replayed_is_left_to_a_snapshot(feed: Feed) -> None:
    for count, is_long in ((REPLAY_MAX, False), (REPLAY_MAX + 1, True)):
        listener = Listener(means=BOTH)
        listener.hear(*feed.pack(), heartbeat(feed.next_number + count))
        listener.wait()
        assert isinstance(wanted(listener), Snapshot) == is_long


def test_what_is_not_wanted_is_dropped(feed: Feed) -> None:
    listener = Listener(means=BOTH)
    listener.hear(*feed.pack())
    feed.random_commands(5)
    listener.hear_snapshot(*feed.snapshot())
    assert listener.next_number == feed.next_number - 5
    assert listener.recoveries == []
    nobody = Listener()
    nobody.hear_snapshot(*feed.snapshot())
    assert nobody.next_number == 1


# Nonsense.


def test_after_nonsense_a_snapshot_mends_the_books(feed: Feed) -> None:
    listener = Listener(means=BOTH)
    listener.hear(*feed.pack())
    number = feed.next_number
    nonsense = OrderDeleted(1, NOW, 1, 999_999)
    feed.say(nonsense)
    feed.random_commands(20)
    listener.hear(*feed.pack(first=number, cut=1))
    assert [(gap.first_number, gap.count) for gap in listener.gaps] == [(number, 0)]
    assert wanted(listener) == Snapshot(1, number + 1)
    check_says_nothing(listener)
    listener.hear_snapshot(*feed.snapshot())
    check_right(listener, feed)
    assert len(listener.gaps) == 1
    assert listener.messages == [message for _, message in feed.messages], "all are told"


def test_nonsense_in_a_replay_is_left_to_a_snapshot(feed: Feed) -> None:
    listener = Listener(means=BOTH)
    listener.hear(*feed.pack())
    number = feed.next_number
    feed.say(OrderDeleted(1, NOW, 1, 999_999))
    feed.random_commands(20)
    listener.hear(*feed.pack(first=number + 1))
    listener.wait()
    assert wanted(listener) == Replay(1, number - 1, 2)
    listener.hear(*feed.pack(first=number, end=number + 1))
    assert isinstance(wanted(listener), Snapshot)
    check_says_nothing(listener)
    listener.hear_snapshot(*feed.snapshot())
    check_right(listener, feed)


def test_a_venue_that_was_set_back(feed: Feed) -> None:
    """A snapshot of what was before is not taken, whatever its number."""
    listener = Listener(means=SNAPSHOT_ONLY)
    listener.hear(*feed.pack())
    old = feed.snapshot()
    [packet] = feed.pack(first=10, end=11)
    listener.hear(in_an_hour_packet(packet))
    assert listener.gaps[0].reason == "numbers were given before"
    check_says_nothing(listener)
    assert wanted(listener) == Snapshot(1, 11)
    listener.hear_snapshot(*old)
    check_says_nothing(listener)
    assert listener.next_number == 11


def test_a_snapshot_that_makes_no_sense_is_dropped(feed: Feed) -> None:
    """Wrong counts, another instrument's orders, prices out of order: the next one is taken."""
    good = feed.unit(1)
    other = feed.unit(2)
    orders = decode_snapshot_message(good[2].payload)
    assert isinstance(orders, SnapshotOrders)
    mixed = msgspec.structs.replace(orders, rows=orders.rows[::-1])
    assert mixed.rows[0][1] != mixed.rows[-1][1]
    wrong = Block(0, encode(mixed))
    for part in (good[:-1], [*good[:2], *other[2:]], [*good[:2], wrong, *good[3:]]):
        unit = [block._replace(flags=0) for block in part]
        unit[0] = unit[0]._replace(flags=1)
        unit[-1] = unit[-1]._replace(flags=2)
        listener = Listener(means=SNAPSHOT_ONLY)
        listener.hear(*feed.pack(end=9), feed.heartbeat())
        listener.wait()
        blocks = [feed.begin(), *feed.events(), *unit, *feed.unit(2)]
        listener.hear_snapshot(*feed.snapshot_packets(blocks))
        check_says_nothing(listener)
        assert listener.receiver.channels[1].snapshot_error_count == 1
        listener.hear_snapshot(*feed.snapshot(first=1_000))
        check_right(listener, feed)


def test_forged_pieces_in_the_same_place(feed: Feed) -> None:
    """Packets of other sizes under the same numbers: nothing raises, the next cycles are read."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    blocks = [*feed.unit(1), *feed.unit(2)]
    for _ in range(200):
        listener = Listener(means=SNAPSHOT_ONLY)
        listener.hear(*feed.pack(end=9), feed.heartbeat())
        listener.wait()
        for _ in range(30):
            start, number = rng.randrange(len(blocks)), rng.randrange(1, 20)
            [packet] = feed.snapshot_packets(blocks[start : start + rng.randrange(1, 6)], number, 9)
            listener.hear_snapshot(packet)
        listener.hear_snapshot(*feed.snapshot(first=1_000))
        if not listener.is_complete():  # One that made no sense was whole first.
            listener.hear_snapshot(*feed.snapshot(first=2_000))
        check_right(listener, feed)


def test_a_snapshot_in_the_middle_of_a_command_is_noticed() -> None:
    """It cannot be; if it were, the first message behind it would not begin a command."""
    feed = Feed()
    feed.list_instrument(1)
    listener = Listener(means=SNAPSHOT_ONLY)
    listener.hear(*feed.pack())
    snapshot = feed.snapshot_packets([feed.begin(number=4), *feed.unit(1)])
    feed.say(*[Trade(1, NOW, 1, number, 5_000, 100, 1, 0) for number in range(4)])
    listener.hear(heartbeat(4))
    listener.wait()
    unit = feed.snapshot_packets(feed.unit(1), first=50)
    listener.hear_snapshot(*snapshot, *unit)
    assert listener.next_number == 4
    listener.hear(*feed.pack(first=4))
    assert listener.gaps[-1].reason == "a command has no beginning"
    check_says_nothing(listener)


def test_garbage_among_snapshots_changes_nothing(feed: Feed) -> None:
    """What is no packet is dropped; what still is one may be anything, and never raises."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    garbage_count = 0
    for _ in range(100):
        listener, fuzzed = Listener(means=SNAPSHOT_ONLY), Listener(means=SNAPSHOT_ONLY)
        packets = feed.snapshot(cut=4)
        for one in (listener, fuzzed):
            one.hear(*feed.pack(end=9), feed.heartbeat())
            one.wait()
        for packet in packets:
            for _ in range(10):
                data = rng.choice(MUTATIONS)(rng, rng.choice(packets))
                fuzzed.hear_snapshot(data)
                try:
                    decode_packet(data)
                except PacketError:
                    garbage_count += 1
                    listener.hear_snapshot(data)
            listener.hear_snapshot(packet)
        check_right(listener, feed)
        assert listener.receiver.error_count <= garbage_count
    assert garbage_count > 2_000


def test_snapshots_of_another_epoch_or_channel_are_dropped(feed: Feed) -> None:
    listener = Listener(means=SNAPSHOT_ONLY)
    listener.hear(*feed.pack(end=9), feed.heartbeat())
    listener.wait()
    other = Feed(seed=9, epoch=EPOCH + 1)
    other.list_instrument(1)
    listener.hear_snapshot(*other.snapshot())
    assert listener.receiver.epoch == EPOCH
    assert listener.receiver.old_count == len(other.snapshot())
    foreign = Feed(seed=9, channel=2)
    foreign.list_instrument(1)
    listener.hear_snapshot(*foreign.snapshot())
    assert listener.receiver.foreign_count == len(foreign.snapshot())
    check_says_nothing(listener)
    listener.hear_snapshot(*feed.pack(), b"")
    assert listener.receiver.error_count == len(feed.pack()) + 1
    listener.hear(*feed.snapshot()[:1])
    assert "kind 3" in listener.receiver.last_error
    listener.hear(*other.pack())
    assert listener.receiver.epoch == EPOCH + 1
    assert wanted(listener) is None
