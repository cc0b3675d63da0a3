"""Epochs, several channels, and any loss in any order."""

from hypothesis import given, settings
from hypothesis import strategies as st

from exchange.client.limits import EPOCH_RETURN_NS
from protocol.codes import Side
from protocol.market_data import Trade
from protocol.packets import decode_packet
from tests.exchange.client.feed import EPOCH, NOW, Feed, digest, heartbeat
from tests.exchange.client.listener import Listener, T

# Epochs and channels.


def test_a_new_epoch_starts_again(feed: Feed, listener: Listener) -> None:
    old_packets = feed.pack()
    listener.hear(*old_packets[:-1])
    held = listener.receiver.market.books[1]
    new = Feed(seed=6, epoch=EPOCH + 1)
    new.list_instrument(9)
    new.random_commands(10)
    packets = new.pack()
    listener.messages.clear()
    listener.hear(packets[0], old_packets[-1], *packets[1:], old_packets[0])
    listener.check(new)
    assert listener.epochs == [EPOCH, EPOCH + 1]
    assert listener.receiver.old_count == 2
    assert held.is_stale, "whoever still has the book of before sees that it is over"
    assert [*listener.receiver.market.books] == [9]
    assert [*listener.receiver.market.symbols] == ["I9"]
    assert listener.receiver.market.events == {}


def test_a_new_epoch_forgets_a_gap_and_what_waited(feed: Feed, listener: Listener) -> None:
    packets = feed.pack(cut=3)
    listener.hear(*packets[1:3])
    listener.wait()
    listener.hear(*packets[5:7])
    assert listener.receiver.deadline_ns
    new = Feed(seed=6, epoch=EPOCH + 1)
    new.list_instrument(9)
    new.random_commands(10)
    listener.hear(*new.pack())
    listener.wait()
    assert listener.is_complete()
    assert listener.receiver.public_digest() == digest(new.truths)
    assert [gap.epoch for gap in listener.gaps] == [EPOCH]


def test_a_new_epoch_in_the_middle_of_a_command(listener: Listener) -> None:
    feed = Feed()
    feed.list_instrument(1)
    feed.say(*[Trade(1, NOW, 1, number, 5_000, 100, 1, 100) for number in range(3)])
    listener.hear(*feed.pack(cut=1)[:-1])
    new = Feed(seed=6, epoch=EPOCH + 1)
    new.list_instrument(9)
    new.random_commands(60)  # Some with more than one message.
    listener.messages.clear()
    listener.hear(*new.pack())
    listener.check(new)


def test_two_venues_on_one_group_are_never_mixed(feed: Feed, listener: Listener) -> None:
    other = Feed(seed=6, epoch=EPOCH + 7)
    other.list_instrument(1)
    other.random_commands(40)
    for mine, theirs in zip(feed.pack(cut=2), other.pack(cut=2), strict=False):
        for packet in (mine, theirs):
            listener.hear(packet)
            truths = {EPOCH: feed, EPOCH + 7: other}[listener.receiver.epoch]
            if listener.is_complete() and listener.next_number in truths.digests:
                assert listener.receiver.public_digest() == truths.digests[listener.next_number]
        listener.wait(EPOCH_RETURN_NS // 3)
    assert len(listener.epochs) > 3
    assert listener.gaps, "it comes back to a stream whose beginning it has forgotten"


def test_channels_lose_their_place_one_by_one() -> None:
    listener = Listener(1, 5)
    feeds = {1: Feed(seed=1, channel=1), 5: Feed(seed=2, channel=5)}
    for channel, feed in feeds.items():
        feed.list_instrument(channel)
        feed.random_commands(20)
    listener.hear(*feeds[1].pack())
    assert not listener.is_complete(), "channel 5 was not heard"
    listener.hear(*feeds[5].pack(), channel=5)
    assert listener.is_complete()
    truths = feeds[1].truths | feeds[5].truths
    assert listener.receiver.public_digest() == digest(truths)
    listener.hear(heartbeat(1_000, channel=5), channel=5)
    listener.wait()
    assert [(gap.channel, gap.first_number) for gap in listener.gaps] == [(5, feeds[5].next_number)]
    books = listener.receiver.market.books
    assert (books[1].is_stale, books[5].is_stale) == (False, True)
    assert listener.receiver.channels[1].is_complete


def test_an_instrument_belongs_to_one_channel() -> None:
    listener = Listener(1, 2)
    feeds = [Feed(channel=1), Feed(channel=2)]
    for feed in feeds:
        feed.list_instrument(4)
        listener.hear(*feed.pack(), channel=feed.channel)
    assert [(gap.channel, gap.reason) for gap in listener.gaps] == [
        (2, "instrument 4 I4 was listed twice")
    ]
    assert not listener.receiver.market.books[4].is_stale


def test_packets_of_another_channel_are_dropped(feed: Feed, listener: Listener) -> None:
    other = Feed(seed=4, channel=2)
    other.list_instrument(1)
    [theirs] = other.pack()
    packets = feed.pack()
    for mine in packets:
        listener.hear(theirs, mine, heartbeat(999, channel=64))
    listener.check(feed)
    assert listener.receiver.foreign_count == 2 * len(packets)


# Any loss, any order.


@st.composite
def deliveries(draw: st.DrawFn) -> tuple[Feed, list[tuple[int, bytes]]]:
    """A feed and what arrives of it: packets with the steps of 1 ms at which they come."""
    feed = Feed(draw(st.integers(0, 10**6)))
    for instrument_id in range(1, draw(st.integers(1, 3)) + 1):
        feed.list_instrument(instrument_id)
    feed.random_commands(draw(st.integers(1, 60)))
    packets = feed.pack()
    is_lossy = draw(st.booleans())
    arrivals = []
    for step, packet in enumerate(packets):
        late = draw(st.lists(st.sampled_from((0, 0, 0, 0, 1, 2, 3, 30)), max_size=3))
        if not late and not is_lossy:
            late = [0]
        arrivals += [(step // 4 + delay, packet) for delay in late]
    arrivals.sort(key=lambda arrival: arrival[0])
    return feed, arrivals


@settings(max_examples=300, deadline=None)
@given(deliveries())
def test_a_complete_consumer_has_the_venues_books(
    delivery: tuple[Feed, list[tuple[int, bytes]]],
) -> None:
    feed, arrivals = delivery
    listener = Listener()
    receiver = listener.receiver

    def check() -> None:
        number = listener.next_number
        if receiver.is_complete and number in feed.digests:
            assert receiver.public_digest() == feed.digests[number]

    for step, packet in arrivals:
        while listener.now_ns < T + step * 1_000_000:
            listener.wait(1_000_000)
            check()
        listener.hear(packet)
        check()
    listener.hear(feed.heartbeat())
    listener.wait()
    assert listener.next_number == feed.next_number
    assert receiver.is_complete == (not listener.gaps)
    check()
    # What was never delivered, and only that or what came too late, is in the gaps.
    seen = dict.fromkeys(range(1, feed.next_number), 0)
    for packet in {packet for _, packet in arrivals}:
        first, count = decode_packet(packet).number, len(decode_packet(packet).blocks)
        seen |= dict.fromkeys(range(first, first + count), 1)
    missed = [
        number
        for gap in listener.gaps
        for number in range(gap.first_number, gap.first_number + gap.count)
    ]
    assert all(gap.count for gap in listener.gaps)
    assert {number for number, count in seen.items() if not count} <= {*missed}
    assert len(listener.messages) == feed.next_number - 1 - len(missed)
    for instrument_id, book in receiver.market.books.items():
        if not book.is_stale:
            truth = feed.truths[instrument_id]
            assert [tuple(order)[:1] + tuple(order)[2:] for order in book.orders(Side.BUY)] == (
                truth.side(1)
            )
