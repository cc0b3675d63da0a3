"""One channel: order, loss, duplicates, commands, nonsense; never silently wrong."""

import msgspec
import pytest

from exchange.client import channel as channel_module
from exchange.client.limits import GAPS_MAX, HELD_NS, HELD_PACKETS_MAX
from exchange.client.recovery import Gap
from protocol.books import Level, StaleBookError
from protocol.codes import Phase
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
from protocol.packets import (
    DATA,
    FIRST,
    HEARTBEAT_INTERVAL_NS,
    LAST,
    Block,
    Packet,
    SelectedBlock,
    decode_message,
    decode_packet,
    encode_packet,
)
from protocol.wire import encode
from tests.exchange.client.feed import EPOCH, NOW, Feed, digest, heartbeat
from tests.exchange.client.listener import NOT_COMING, WHOLE, Listener, T, whole

# In order.


def test_nothing_was_heard_yet(listener: Listener) -> None:
    assert not listener.is_complete()
    assert listener.receiver.epoch == 0
    assert listener.receiver.deadline_ns == 0
    with pytest.raises(StaleBookError):
        listener.receiver.public_digest()


@pytest.mark.parametrize("cut", [0, 1, 2, 7, 100])
def test_packets_in_order_however_they_are_cut(feed: Feed, listener: Listener, cut: int) -> None:
    for packet in feed.pack(cut=cut):
        listener.hear(packet)
        assert listener.receiver.deadline_ns == 0
        if listener.next_number in feed.digests:
            assert listener.receiver.public_digest() == feed.digests[listener.next_number]
    listener.check(feed)
    assert listener.epochs == [EPOCH]
    channel = listener.receiver.channels[1]
    assert channel.message_count == len(feed.messages)
    assert (channel.duplicate_count, channel.unknown_count) == (0, 0)


def test_what_is_listed(listener: Listener) -> None:
    event = EventDefinition(1, NOW, 1, "RAIN", 1, "Rain?", "USD", 1)
    yes = InstrumentDefinition(2, NOW, 8, 1, "RAIN-YES", "Yes", 0, 10_000, [(0, 100)], 100, 1)
    trade = Trade(4, NOW, 8, 1, 5_000, 100, 2, 100)
    listener.hear(whole(event, 1), whole(yes, 2))
    listener.hear(whole(InstrumentStatus(3, NOW, 8, Phase.HALTED), 3), whole(trade, 4))
    market = listener.receiver.market
    assert market.events == {1: event}
    assert market.instruments == {8: yes}
    book = market.symbols["RAIN-YES"]
    assert market.books == {8: book}
    assert (book.definition, book.phase, book.last_trade) == (yes, Phase.HALTED, trade)
    assert listener.messages[-1] == trade


def test_between_packets_no_book_is_in_the_middle_of_a_command(listener: Listener) -> None:
    """A trade through two orders and the rest of the incoming one, each in its own packet."""
    feed = Feed()
    feed.list_instrument(1)
    for order_id, price in ((1, 5_000), (2, 5_100)):
        feed.say(OrderAdded(1, NOW, 1, order_id, 2, price, 100))
    listener.hear(*feed.pack(cut=1))
    book = listener.receiver.market.books[1]
    before = [Level(5_000, 100, 1), Level(5_100, 100, 1)]
    feed.say(
        OrderExecuted(1, NOW, 1, 1, 1, 100, 0),
        Trade(1, NOW, 1, 1, 5_000, 100, 1, 100),
        OrderExecuted(1, NOW, 1, 2, 2, 100, 0),
        Trade(1, NOW, 1, 2, 5_100, 100, 1, 100),
        OrderAdded(1, NOW, 1, 3, 1, 5_100, 50),
    )
    told = len(listener.messages)
    *parts, last = feed.pack(first=4, cut=1)
    for part in parts:
        listener.hear(part)
        assert book.asks() == before
        assert book.bids() == []
        assert len(listener.messages) == told
    listener.hear(last)
    assert book.asks() == []
    assert book.bids() == [Level(5_100, 50, 1)]
    assert listener.messages == [message for _, message in feed.messages]
    assert listener.is_complete()


def test_a_message_of_a_newer_venue_is_skipped(feed: Feed, listener: Listener) -> None:
    news = b"\x92\x7f\xa4news"  # Tag 127.
    listener.hear(*feed.pack())
    number = feed.next_number
    for flags in (WHOLE, FIRST, 0, LAST):
        listener.hear(encode_packet(Packet(DATA, 1, EPOCH, number, NOW, [Block(flags, news)])))
        number += 1
    longer = encode(OrderAdded(1, NOW, 1, 99_999, 1, 4_000, 100))
    longer = bytes([longer[0] + 1]) + longer[1:] + b"\x01"  # One more field.
    listener.hear(encode_packet(Packet(DATA, 1, EPOCH, number, NOW, [Block(WHOLE, longer)])))
    assert listener.is_complete()
    assert listener.receiver.channels[1].unknown_count == 4
    order = listener.receiver.market.books[1].order(99_999)
    assert order is not None
    assert order.quantity == 100


# Early, late, twice.


def test_duplicates_are_dropped(feed: Feed, listener: Listener) -> None:
    packets = feed.pack()
    for index, packet in enumerate(packets):
        listener.hear(packet, packet, packets[index // 2])
    listener.check(feed)
    assert listener.receiver.channels[1].duplicate_count == 2 * len(packets)


def test_two_lines_that_cut_differently_are_one_stream(listener: Listener) -> None:
    """Each line alone loses packets; together nothing is missing."""
    feed = Feed(seed=9)
    feed.list_instrument(1)
    feed.random_commands(300)
    first, second = feed.pack(cut=3), feed.pack(cut=5)
    for number in range(1, feed.next_number):
        for line, size in ((first, 3), (second, 5)):
            index, place = divmod(number - 1, size)
            is_lost = (number // 40) % 2 == (line is first) and 5 < number % 40 < 30
            if place == 0 and not is_lost:
                listener.hear(line[index])
    listener.hear(feed.heartbeat())
    listener.check(feed)


def test_a_republished_tail_is_dropped(feed: Feed, listener: Listener) -> None:
    """After a restart the venue sends its last records again, cut anew, before what is new."""
    listener.hear(*feed.pack(cut=10))
    again = feed.pack(first=20, cut=7)
    feed.random_commands(10)
    listener.hear(*again, *feed.pack(first=feed.next_number - 25, cut=9))
    listener.check(feed)


def test_a_republished_tail_heals_what_was_cut_off(feed: Feed, listener: Listener) -> None:
    """The venue dies before the last packets leave; they come after its restart."""
    listener.hear(*feed.pack(end=30, cut=10))
    listener.wait(10 * HEARTBEAT_INTERVAL_NS)
    listener.hear(*feed.pack(first=10, cut=7))
    listener.check(feed)


def test_packets_out_of_order_within_the_window(feed: Feed, listener: Listener) -> None:
    packets = feed.pack(cut=1)[: HELD_PACKETS_MAX + 1]
    feed.messages = feed.messages[: len(packets)]
    first, *others = packets
    for packet in reversed(others):
        listener.hear(packet)
        assert listener.receiver.deadline_ns == T + HELD_NS
    assert not listener.is_complete()
    listener.wait(HELD_NS - 1)
    assert listener.next_number == 1
    listener.hear(first)
    assert listener.receiver.deadline_ns == 0
    assert listener.is_complete()
    assert listener.next_number == len(packets) + 1
    assert listener.receiver.public_digest() == feed.digests[len(packets) + 1]


def test_a_longer_packet_does_not_begin_the_wait_again(feed: Feed, listener: Listener) -> None:
    listener.hear(*feed.pack(end=9, cut=2))
    listener.hear(heartbeat(13))
    listener.wait(HELD_NS - 1)
    listener.hear(*feed.pack(first=13, cut=2)[:1], *feed.pack(first=13, cut=5)[:1])
    assert listener.receiver.deadline_ns == T + HELD_NS
    listener.hear(*feed.pack(first=9, end=13))
    assert listener.is_complete()
    assert listener.next_number == 18


# Lost.


def test_one_lost_packet_is_a_gap_after_the_wait(feed: Feed, listener: Listener) -> None:
    packets = feed.pack(cut=4)
    lost = packets.pop(3)  # Messages 13 to 16.
    listener.hear(*packets[:5])
    listener.wait(HELD_NS - 1)
    assert listener.gaps == []
    listener.wait(1)
    listener.hear(*packets[5:], lost)  # It comes too late.
    listener.check_stale(feed, (13, 4, NOT_COMING))
    assert listener.gaps[0] == Gap(EPOCH, 1, 13, 4, NOT_COMING)
    told = [message for _, message in feed.messages[:12] + feed.messages[16:]]
    assert listener.messages == told, "what is heard is told, gap or not"


def test_a_packet_too_many_ends_the_wait(feed: Feed, listener: Listener) -> None:
    packets = feed.pack(cut=1)
    feed.random_commands(HELD_PACKETS_MAX)
    packets = feed.pack(cut=1)
    del packets[10]
    listener.hear(*packets[: 10 + HELD_PACKETS_MAX])
    assert listener.gaps == []
    listener.hear(*packets[10 + HELD_PACKETS_MAX :])
    listener.check_stale(feed, (11, 1, NOT_COMING))


def test_the_same_packet_again_does_not_fill_the_window(feed: Feed, listener: Listener) -> None:
    first, second, third, *others = feed.pack(cut=4)
    listener.hear(first)
    for _ in range(2 * HELD_PACKETS_MAX):
        listener.hear(third)
    assert listener.gaps == []
    listener.hear(second, *others)
    listener.check(feed)


def test_several_holes_are_several_gaps(feed: Feed, listener: Listener) -> None:
    packets = feed.pack(cut=4)
    listener.hear(packets[0], packets[2], packets[3], packets[6])
    listener.wait()
    assert [(gap.first_number, gap.count) for gap in listener.gaps] == [(5, 4), (17, 8)]
    assert listener.next_number == 29
    assert listener.receiver.deadline_ns == 0


def test_who_comes_late_has_a_gap_from_the_beginning(feed: Feed, listener: Listener) -> None:
    packets = feed.pack(cut=5)
    listener.hear(*packets[4:])
    listener.wait()
    listener.check_stale(feed, (1, 20, NOT_COMING))
    assert listener.receiver.market.books == {}, "the listings were missed"


def test_a_heartbeat_shows_that_the_last_packet_was_lost(feed: Feed, listener: Listener) -> None:
    *packets, last = feed.pack(cut=5)
    listener.hear(*packets)
    assert listener.is_complete(), "nobody can know yet"
    listener.hear(feed.heartbeat(), feed.heartbeat())
    assert not listener.is_complete()
    assert listener.receiver.deadline_ns == T + HELD_NS
    listener.wait()
    first = 5 * len(packets) + 1
    listener.check_stale(feed, (first, feed.next_number - first, NOT_COMING))
    listener.hear(last)
    assert listener.receiver.channels[1].duplicate_count == 1


def test_numbers_that_were_given_before_are_a_gap(feed: Feed, listener: Listener) -> None:
    """The journal was set back: other commands, later ones, under numbers that are known."""
    listener.hear(*feed.pack())
    listener.check(feed)
    again = Feed(seed=7)
    again.list_event(1)
    again.list_instrument(1)
    again.random_commands(3)
    later = [in_an_hour_packet(packet) for packet in again.pack(cut=1)]
    assert again.next_number < feed.next_number
    listener.hear(later[0][:-1])
    listener.check(feed)
    listener.hear(later[0])
    assert [(gap.first_number, gap.reason) for gap in listener.gaps] == [
        (1, "numbers were given before")
    ]
    assert all(book.is_stale for book in listener.receiver.market.books.values())
    assert listener.next_number == 2
    listener.hear(*later[1:])
    assert listener.next_number == again.next_number, "it goes on where the venue is"
    assert not listener.is_complete()


def test_numbers_that_were_given_before_are_a_gap_in_part_of_a_packet_too(
    feed: Feed, listener: Listener
) -> None:
    """The packet begins with known numbers and ends with new ones: what is known is compared."""
    listener.hear(*feed.pack())
    listener.check(feed)
    last = feed.next_number - 1
    again = [encode_packet(decode_packet(p)) for p in feed.pack(first=last, cut=1)]
    blocks = [in_an_hour(block) for block in decode_packet(again[0]).blocks] * 2
    listener.hear(encode_packet(Packet(DATA, 1, EPOCH, last, NOW, blocks)))
    assert listener.gaps[0].first_number == last
    assert listener.gaps[0].reason == "numbers were given before"
    assert not listener.is_complete()
    assert listener.next_number == last + 2


def in_an_hour_packet(data: bytes) -> bytes:
    packet = decode_packet(data)
    blocks = [in_an_hour(block) for block in packet.blocks]
    return encode_packet(packet._replace(blocks=blocks))


def in_an_hour(block: Block | SelectedBlock) -> Block:
    message = decode_message(block.payload)
    assert message is not None
    moved = msgspec.structs.replace(message, time_ns=message.time_ns + 3_600 * 10**9)
    return Block(block.flags, encode(moved))


def test_a_heartbeat_may_overtake_the_last_packet(feed: Feed, listener: Listener) -> None:
    *packets, last = feed.pack(cut=5)
    listener.hear(*packets, feed.heartbeat(), last)
    listener.check(feed)
    listener.wait()
    listener.hear(heartbeat(3), heartbeat(3))  # Old ones, held up somewhere.
    listener.check(feed)


def test_a_heartbeat_before_the_first_message(listener: Listener) -> None:
    listener.hear(heartbeat(1))
    assert listener.is_complete()
    assert listener.receiver.public_digest() == digest({})


def test_a_venue_that_is_behind_its_consumer(feed: Feed, listener: Listener) -> None:
    """Its journal was cut: the numbers that it will give are known here, and mean other things."""
    listener.hear(*feed.pack())
    listener.hear(heartbeat(9))
    listener.wait(HEARTBEAT_INTERVAL_NS)
    listener.hear(heartbeat(9))
    reason = f"the venue's next number is 9, not {feed.next_number}"
    assert listener.gaps == [Gap(EPOCH, 1, 9, 0, reason)]
    assert listener.next_number == 9
    assert not listener.is_complete()


def test_after_a_gap_trades_phases_and_new_instruments_are_told(
    feed: Feed, listener: Listener
) -> None:
    listener.hear(*feed.pack(end=20, cut=1))
    feed.random_commands(5)
    lost_from = feed.next_number - 1
    listener.hear(*feed.pack(first=lost_from, cut=1))
    listener.wait()
    assert len(listener.gaps) == 1
    assert listener.receiver.market.books[1].phase is None, "a halt may have been missed"
    trade = Trade(1, NOW, 1, 4_000, 5_000, 100, 2, 100)
    feed.say(trade)
    feed.say(InstrumentStatus(1, NOW, 1, Phase.HALTED))
    feed.say(InstrumentStatus(1, NOW, 55, Phase.OPEN))  # Its listing was missed.
    feed.say(OrderDeleted(1, NOW, 1, 123_456), Trade(1, NOW, 55, 4_001, 5_000, 100, 2, 100))
    feed.list_instrument(60)
    feed.say(OrderAdded(1, NOW, 60, 70_000, 1, 4_000, 300))
    listener.hear(*feed.pack(first=lost_from + 1))
    assert len(listener.gaps) == 1
    old = listener.receiver.market.books[1]
    assert (old.phase, old.last_trade, old.is_stale) == (Phase.HALTED, trade, True)
    new = listener.receiver.market.books[60]
    assert new.best_bid == Level(4_000, 300, 1), "all of its life was seen"
    assert not listener.is_complete()
    listener.hear(heartbeat(feed.next_number + 1))
    listener.wait()
    assert new.is_stale


def test_a_gap_in_the_middle_of_a_command(listener: Listener) -> None:
    feed = Feed()
    feed.list_instrument(1)
    feed.say(OrderAdded(1, NOW, 1, 1, 2, 5_000, 100), OrderAdded(1, NOW, 1, 2, 2, 5_000, 100))
    trades = [Trade(1, NOW, 1, number, 5_000, 100, 1, 100) for number in range(5)]
    feed.say(*trades)
    feed.list_instrument(2)
    packets = feed.pack(cut=1)
    listener.hear(*packets[:5])  # Two of five trades wait for the end of their command.
    assert len(listener.messages) == 3
    listener.hear(*packets[6:])
    listener.wait()
    assert [(gap.first_number, gap.count) for gap in listener.gaps] == [(6, 1)]
    assert [message for message in listener.messages if isinstance(message, Trade)] == [
        *trades[:2],
        *trades[3:],
    ]
    assert listener.receiver.market.books[1].is_stale
    assert not listener.receiver.market.books[2].is_stale


def test_gaps_are_bounded_and_counted(listener: Listener) -> None:
    status = InstrumentStatus(1, NOW, 1, 1)
    for number in range(2, 2 * GAPS_MAX + 20, 2):
        listener.hear(whole(status, number))
        listener.wait()
    assert listener.receiver.gap_count == len(listener.gaps) == GAPS_MAX + 9
    assert listener.receiver.gaps == listener.gaps[:GAPS_MAX]


# Nonsense.


def test_messages_that_do_not_fit_are_gaps_with_a_reason() -> None:
    table = [(0, 100)]
    listed = InstrumentDefinition(1, NOW, 1, 1, "I9", "t", 0, 10_000, table, 100, 1)
    named = InstrumentDefinition(1, NOW, 9, 1, "I1", "t", 0, 10_000, table, 100, 1)
    for message, reason in (
        (EventDefinition(1, NOW, 1, "E", 1, "t", "USD", 1), "event 1 E was listed twice"),
        (listed, "instrument 1 I9 was listed twice"),
        (named, "instrument 9 I1 was listed twice"),
        (OrderAdded(1, NOW, 1, 1, 1, 4_000, 1), "order 1 was added twice"),
        (OrderExecuted(1, NOW, 1, 1, 1, 101, 0), "order 1 had 100, traded 101, leaves 0"),
        (OrderReduced(1, NOW, 1, 2, 1), "order 2 is not in the book of I1"),
        (OrderDeleted(1, NOW, 1, 2), "order 2 is not in the book of I1"),
        (OrderReplaced(1, NOW, 1, 2, 1, 1), "order 2 is not in the book of I1"),
        (OrderAdded(1, NOW, 2, 5, 1, 1, 1), "instrument 2 is not listed on this channel"),
        (OrderExecuted(1, NOW, 2, 1, 1, 1, 1), "instrument 2 is not listed on this channel"),
        (OrderReduced(1, NOW, 2, 1, 1), "instrument 2 is not listed on this channel"),
        (OrderDeleted(1, NOW, 2, 1), "instrument 2 is not listed on this channel"),
        (OrderReplaced(1, NOW, 2, 1, 1, 1), "instrument 2 is not listed on this channel"),
        (InstrumentStatus(1, NOW, 2, 1), "instrument 2 is not listed on this channel"),
        (Trade(1, NOW, 2, 1, 1, 1, 1, 100), "instrument 2 is not listed on this channel"),
    ):
        for is_alone in (True, False):
            listener = Listener()
            feed = Feed()
            feed.list_event(1)
            feed.list_instrument(1)
            feed.say(OrderAdded(1, NOW, 1, 1, 1, 4_000, 100))
            trade = Trade(1, NOW, 1, 1, 4_000, 1, 1, 100)
            feed.say(*([message] if is_alone else [trade, message]))
            feed.say(trade)
            listener.hear(*feed.pack(cut=3))
            listener.check_stale(feed, (4 if is_alone else 5, 0, reason))
            assert listener.messages == [message for _, message in feed.messages]


def test_commands_that_do_not_begin_or_end_are_gaps() -> None:
    trade = Trade(1, NOW, 1, 1, 4_000, 1, 1, 100)
    for flags, number, reason in (
        ([WHOLE, 0], 3, "a command has no beginning"),
        ([WHOLE, LAST], 3, "a command has no beginning"),
        ([FIRST, WHOLE], 3, "a command has no end"),
        ([FIRST, 0, FIRST, LAST], 4, "a command has no end"),
    ):
        listener = Listener()
        feed = Feed()
        feed.list_instrument(1)
        feed.messages += [(flag, trade) for flag in flags]
        feed.messages += [(FIRST, trade), (LAST, trade)]
        listener.hear(*feed.pack())
        listener.check_stale(feed, (number, 0, reason))
        assert len(listener.messages) == len(feed.messages)


def test_after_a_gap_commands_are_whole_again(feed: Feed, listener: Listener) -> None:
    """What may be the middle of a command is let through once, up to the end of that command."""
    trade = Trade(1, NOW, 1, 1, 4_000, 1, 1, 100)
    listener.hear(*feed.pack())
    lost = feed.next_number
    feed.messages += [(flags, trade) for flags in (FIRST, 0, LAST, WHOLE, FIRST, LAST)]
    listener.hear(*feed.pack(first=lost + 1))
    listener.wait()
    assert [(gap.first_number, gap.count) for gap in listener.gaps] == [(lost, 1)]
    for cut_short in ([LAST], [0, LAST]):
        feed.messages += [(flags, trade) for flags in cut_short]
        listener.hear(*feed.pack(first=feed.next_number - len(cut_short)))
        assert listener.gaps[-1].reason == "a command has no beginning"
    assert len(listener.gaps) == 3


def test_a_command_without_end_is_bounded(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_module, "COMMAND_MESSAGES_MAX", 10)
    feed = Feed()
    feed.list_instrument(1)
    trade = Trade(1, NOW, 1, 1, 4_000, 1, 1, 100)
    feed.messages += [(FIRST, trade), *[(0, trade)] * 30, (LAST, trade), (WHOLE, trade)]
    listener.hear(*feed.pack())
    assert listener.gaps[0] == Gap(EPOCH, 1, 11, 0, "a command has more than 10 messages")
    assert len(listener.messages) == len(feed.messages)
    assert not listener.is_complete()
