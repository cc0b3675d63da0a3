"""Snapshots taken apart again: what is in them, of when it is, and what is shared.

A reader of the page puts books together from the packets and the messages behind them; they must be
those of the truth, whatever happened while the snapshot was sent.
"""

import random
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from exchange.feed.market import Market
from exchange.feed.snapshots import SHARED_NS, Plan, Snapshots
from protocol.books import Book
from protocol.codes import Side
from protocol.market_data import (
    EventDefinition,
    InstrumentDefinition,
    InstrumentStatus,
    MarketDataMessage,
    OrderAdded,
    OrderDeleted,
    OrderExecuted,
    OrderReduced,
    OrderReplaced,
    SnapshotBegin,
    SnapshotEnd,
    SnapshotInstrument,
    SnapshotMessage,
    SnapshotOrders,
    Trade,
)
from protocol.packets import (
    FIRST,
    LAST,
    PACKET_SIZE_MAX,
    SNAPSHOT,
    Packet,
    decode_packet,
    decode_snapshot_message,
)
from protocol.wire import encode
from tests.exchange.feed.truth import EPOCH, Truth

NOW: Final = 1_800_000_000_000_000_000
WHOLE: Final = FIRST | LAST


@dataclass
class Unit:
    """An instrument's part of a snapshot."""

    definition: InstrumentDefinition
    state: SnapshotInstrument
    orders: list[SnapshotOrders]

    def rows(self, side: int) -> list[tuple[int, int, int]]:
        return [row for one in self.orders if one.side == side for row in one.rows]


@dataclass
class Reading:
    """A whole snapshot, read by the page and checked on the way."""

    begin: SnapshotBegin
    end: SnapshotEnd
    events: list[EventDefinition] = field(default_factory=list)
    units: dict[int, Unit] = field(default_factory=dict)
    packets: list[Packet] = field(default_factory=list)


def read(packets: list[bytes], number: int = 1, channel: int = 1) -> Reading:
    """Put a snapshot together; its numbers begin at `number`."""
    units: list[list[SnapshotMessage]] = []
    decoded = [decode_packet(packet) for packet in packets]
    for packet, data in zip(decoded, packets, strict=True):
        assert len(data) <= PACKET_SIZE_MAX
        assert (packet.kind, packet.channel, packet.epoch) == (SNAPSHOT, channel, EPOCH)
        assert packet.number == number
        number += len(packet.blocks)
        for block in packet.blocks:
            message = decode_snapshot_message(block.payload)
            assert message is not None
            if block.flags & FIRST:
                units.append([])
            units[-1].append(message)
            assert bool(block.flags & LAST) == is_last(units[-1])
    [[begin], *middle, [end]] = units
    assert isinstance(begin, SnapshotBegin)
    assert isinstance(end, SnapshotEnd)
    found = Reading(begin, end, packets=decoded)
    for first, *others in middle:
        if isinstance(first, EventDefinition):
            assert not others
            assert not found.units, "events come before instruments"
            found.events.append(first)
            continue
        state, *orders = others
        assert isinstance(first, InstrumentDefinition)
        assert isinstance(state, SnapshotInstrument)
        rows = [one for one in orders if isinstance(one, SnapshotOrders)]
        assert len(rows) == len(orders)
        found.units[first.instrument_id] = Unit(first, state, rows)
    check(found)
    return found


def is_last(unit: list[SnapshotMessage]) -> bool:
    """Whether a unit is whole; its own counts say so."""
    if not isinstance(unit[0], InstrumentDefinition):
        return True
    if len(unit) == 1:
        return False
    state = unit[1]
    assert isinstance(state, SnapshotInstrument)
    wanted = state.buy_count + state.sell_count
    return not wanted or wanted == sum(
        len(one.rows) for one in unit[2:] if isinstance(one, SnapshotOrders)
    )


def check(found: Reading) -> None:
    """What a snapshot says of itself."""
    begin, end = found.begin, found.end
    assert (end.snapshot, end.next_number) == (begin.snapshot, begin.next_number)
    assert begin.snapshot == found.packets[0].number
    assert begin.event_count == len(found.events)
    assert begin.instrument_count == len(found.units)
    assert end.order_count == sum(len(u.rows(1)) + len(u.rows(2)) for u in found.units.values())
    for instrument_id, unit in found.units.items():
        state = unit.state
        assert state.instrument_id == instrument_id
        assert state.next_number >= begin.next_number
        assert state.sequence >= begin.sequence >= unit.definition.sequence
        sides = [one.side for one in unit.orders]
        assert sides == sorted(sides), "buys come first"
        if begin.with_orders:
            assert (state.buy_count, state.sell_count) == (len(unit.rows(1)), len(unit.rows(2)))


def take(plan: Plan, now_ns: int = NOW, size: int = 10**9) -> list[bytes]:
    packets: list[bytes] = []
    while not plan.is_done:
        packets += plan.step(now_ns, size)
    assert plan.step(now_ns) == []
    return packets


def a_market(truth: Truth) -> Market:
    """Channel 1 with two events and four instruments, channel 2 with one of each."""
    truth.list_event(1, 1)
    truth.list_event(2, 1)
    truth.list_event(3, 2)
    for instrument_id, event_id in ((1, 1), (2, 1), (3, 2), (4, 2)):
        truth.list_instrument(instrument_id, event_id, 1)
    truth.list_instrument(5, 3, 2)
    market = Market(EPOCH)
    market.apply(truth.record())
    return market


def go_on(truth: Truth, market: Market, count: int) -> None:
    """Some commands, one record."""
    for _ in range(count):
        truth.random_command()
    market.apply(truth.record())


def books_of(found: Reading) -> dict[int, Book]:
    books = {}
    for instrument_id, unit in found.units.items():
        book = books[instrument_id] = Book(unit.definition)
        book.load(unit.state.phase, unit.rows(1), unit.rows(2))
        book.resume()
    return books


def contents(books: dict[int, Book]) -> dict[int, object]:
    return {
        one: (book.phase, *([(o[0], o[2], o[3]) for o in book.orders(side)] for side in Side))
        for one, book in books.items()
    }


def apply(books: dict[int, Book], message: MarketDataMessage) -> None:
    """The page's table of what messages do."""
    match message:
        case EventDefinition():
            pass
        case InstrumentDefinition():
            books[message.instrument_id] = Book(message)
        case InstrumentStatus():
            books[message.instrument_id].phase = message.phase
        case OrderAdded():
            what = (message.order_id, message.side, message.price, message.quantity)
            books[message.instrument_id].add(*what)
        case OrderExecuted():
            what3 = (message.order_id, message.quantity, message.leaves_quantity)
            books[message.instrument_id].execute(*what3)
        case OrderReduced():
            books[message.instrument_id].reduce(message.order_id, message.quantity)
        case OrderDeleted():
            books[message.instrument_id].delete(message.order_id)
        case OrderReplaced():
            what3 = (message.order_id, message.price, message.quantity)
            books[message.instrument_id].replace(*what3)


def test_a_quiet_snapshot_is_the_market() -> None:
    truth = Truth(5)
    market = a_market(truth)
    go_on(truth, market, 300)
    plan = Snapshots(market).plan(1, 77, NOW)
    found = read(take(plan), number=77)
    assert contents(books_of(found)) == {one: truth.books()[one] for one in (1, 2, 3, 4)}
    assert found.begin == SnapshotBegin(
        truth.sequence, market.time_ns, 77, truth.numbers[1] + 1, 1, 2, 4
    )
    assert (plan.snapshot, plan.next_number) == (77, truth.numbers[1] + 1)
    assert plan.number == 77 + sum(len(packet.blocks) for packet in found.packets)
    assert {packet.send_time_ns for packet in found.packets} == {NOW}
    definitions = [m for c, _, m in truth.said if c == 1 and isinstance(m, EventDefinition)]
    assert found.events == definitions
    for instrument_id, unit in found.units.items():
        last = [one for one in truth.trades if one.instrument_id == instrument_id][-1]
        assert (unit.state.last_trade_id, unit.state.last_price) == (last.trade_id, last.price)
        assert unit.state.last_quantity == last.quantity
        assert unit.state.open_interest == last.open_interest
        assert [encode(unit.definition)] == [
            encode(m)
            for _, _, m in truth.said
            if isinstance(m, InstrumentDefinition) and m.instrument_id == instrument_id
        ]


def test_snapshot_and_the_messages_behind_it_are_the_market() -> None:
    """Also when the market goes on, and lists more, while the snapshot is sent."""
    for _ in range(30):
        seed = random.randrange(2**32)
        print(f"seed {seed}")
        truth = Truth(seed)
        rng = truth.rng
        market = a_market(truth)
        snapshots = Snapshots(market)
        now_ns, readings = NOW, []
        for round_index in range(4):
            go_on(truth, market, rng.randrange(60))
            plan = snapshots.plan(1, 1, now_ns)
            assert plan.next_number <= market.channels[1].next_number
            packets: list[bytes] = []
            while not plan.is_done:
                packets += plan.step(now_ns, rng.choice((1, 3_000)))
                go_on(truth, market, rng.randrange(8))
                now_ns += rng.choice((0, SHARED_NS // 3, 2 * SHARED_NS))
                if rng.randrange(20) == 0:
                    truth.list_event(10 * round_index + len(packets) + 100, 1)
            if rng.randrange(3) == 0:
                truth.list_instrument(round_index + 6, 2, 1)
            go_on(truth, market, 3)
            readings.append(read(packets))
        go_on(truth, market, 20)
        for found in readings:
            assert contents(catch_up(found, truth)) == {
                one: book for one, book in truth.books().items() if truth.channels[one] == 1
            }


def catch_up(found: Reading, truth: Truth) -> dict[int, Book]:
    """The books of a snapshot with everything behind it, as the page says."""
    books = books_of(found)
    listed = [m for c, n, m in truth.said if c == 1 and n < found.begin.next_number]
    assert found.events == [m for m in listed if isinstance(m, EventDefinition)]
    assert list(found.units) == [
        m.instrument_id for m in listed if isinstance(m, InstrumentDefinition)
    ]
    for channel, number, message in truth.said:
        if channel != 1 or number < found.begin.next_number:
            continue
        unit = found.units.get(getattr(message, "instrument_id", 0))
        if unit is None or number >= unit.state.next_number:
            apply(books, message)
    return books


def test_without_orders() -> None:
    truth = Truth(6)
    market = a_market(truth)
    go_on(truth, market, 100)
    found = read_states(take(Snapshots(market).plan(1, 1, NOW, with_orders=False)))
    assert [(len(u.rows(1)), len(u.rows(2))) for u in found.units.values()] == [(0, 0)] * 4
    for instrument_id, unit in found.units.items():
        phase, buys, sells = truth.books()[instrument_id]
        assert unit.state.phase == phase
        assert (unit.state.buy_count, unit.state.sell_count) == (len(buys), len(sells))
    assert found.begin.with_orders == 0
    assert found.end.order_count == 0


def read_states(packets: list[bytes]) -> Reading:
    """A snapshot without orders, whose counts say what is not there."""
    messages = [
        (block.flags, decode_snapshot_message(block.payload))
        for packet in packets
        for block in decode_packet(packet).blocks
    ]
    begin, end = messages[0][1], messages[-1][1]
    assert isinstance(begin, SnapshotBegin)
    assert isinstance(end, SnapshotEnd)
    found = Reading(begin, end)
    for (flags, one), (next_flags, following) in pairwise(messages):
        if isinstance(one, InstrumentDefinition):
            assert isinstance(following, SnapshotInstrument)
            assert (flags, next_flags) == (FIRST, LAST)
            found.units[one.instrument_id] = Unit(one, following, [])
    assert len(messages) == 2 + begin.event_count + 2 * begin.instrument_count
    return found


def test_selections() -> None:
    truth = Truth(7)
    market = a_market(truth)
    go_on(truth, market, 100)
    snapshots = Snapshots(market)
    truth.list_event(4, 1)
    market.apply(truth.record())

    def chosen(
        instruments: tuple[int, ...], events: tuple[int, ...]
    ) -> tuple[list[int], list[int]]:
        plan = snapshots.plan(1, 1, NOW, instruments=instruments, events=events)
        found = read(take(plan))
        return [one.event_id for one in found.events], list(found.units)

    assert chosen((), ()) == ([1, 2, 4], [1, 2, 3, 4])
    assert chosen((3,), ()) == ([2], [3])
    assert chosen((4, 3, 1), ()) == ([1, 2], [1, 3, 4])
    assert chosen((), (1,)) == ([1], [1, 2])
    assert chosen((4,), (1, 4)) == ([1, 2, 4], [1, 2, 4])
    assert chosen((5, 99), (3,)) == ([], [])


def test_a_channel_that_is_not_in_use_is_empty() -> None:
    market = a_market(Truth())
    plan = Snapshots(market).plan(9, 1, NOW)
    found = read(take(plan), channel=9)
    assert (found.begin.next_number, found.begin.event_count, found.units) == (1, 0, {})
    assert len(found.packets) == 1


def test_units_and_beginnings_are_shared() -> None:
    truth = Truth(8)
    market = a_market(truth)
    go_on(truth, market, 60)
    snapshots = Snapshots(market)
    first = read(take(snapshots.plan(1, 1, NOW)))
    assert snapshots.made_count == 4
    go_on(truth, market, 60)
    now_ns = NOW + SHARED_NS
    young = read(take(snapshots.plan(1, 1, now_ns), now_ns))
    assert young.units == first.units
    assert young.begin.next_number == first.begin.next_number
    assert snapshots.made_count == 4, "a beginning of a moment ago, and its units"
    now_ns += 1
    later = read(take(snapshots.plan(1, 1, now_ns), now_ns))
    assert later.begin.next_number == market.channels[1].next_number
    assert contents(books_of(later)) == {one: truth.books()[one] for one in (1, 2, 3, 4)}
    assert snapshots.made_count == 8
    now_ns += 10 * SHARED_NS
    assert read(take(snapshots.plan(1, 1, now_ns), now_ns)).units == later.units
    assert snapshots.made_count == 8, "nothing has changed"


def test_only_what_has_changed_is_made_anew() -> None:
    truth = Truth(9)
    market = a_market(truth)
    go_on(truth, market, 60)
    snapshots = Snapshots(market)
    first = read(take(snapshots.plan(1, 1, NOW)))
    truth.begin()
    truth.add(3)
    market.apply(truth.record())
    now_ns = NOW + 2 * SHARED_NS
    found = read(take(snapshots.plan(1, 1, now_ns), now_ns))
    assert snapshots.made_count == 5
    for instrument_id, unit in found.units.items():
        was = first.units[instrument_id]
        assert (unit.orders == was.orders) == (instrument_id != 3)
        assert unit.state.next_number == was.state.next_number + 1
        assert unit.state.sequence == was.state.sequence + 1


def test_a_listing_ends_a_shared_beginning() -> None:
    truth = Truth(10)
    market = a_market(truth)
    snapshots = Snapshots(market)
    assert len(read(take(snapshots.plan(1, 1, NOW))).units) == 4
    truth.list_instrument(6, 1, 1)
    market.apply(truth.record())
    assert len(read(take(snapshots.plan(1, 1, NOW))).units) == 5


def test_packets_are_full() -> None:
    truth = Truth(11)
    market = a_market(truth)
    for order_id in range(1, 400):
        head = truth.begin()
        truth.say(1, OrderAdded(*head, 2, order_id, 1 + order_id % 2, order_id * 100, 10**9))
    market.apply(truth.record())
    packets = take(Snapshots(market).plan(1, 2**60, NOW))
    found = read(packets, number=2**60)
    assert len(found.units[2].rows(1)) == 199
    assert [len(one.rows) for one in found.units[2].orders] == [40] * 4 + [39] + [40] * 5
    for packet, following in zip(packets, found.packets[1:], strict=False):
        first = following.blocks[0].payload
        assert len(packet) + 3 + len(first) > PACKET_SIZE_MAX, "the next one fits no more"


def test_forty_of_the_longest_rows_fit_a_packet() -> None:
    truth = Truth()
    market = a_market(truth)
    head = truth.begin()
    for index in range(40):
        truth.say(1, OrderAdded(*head, 1, 2**62 - 1 - index, 1, -(2**61) - index, 2**62 - 1))
    market.apply(truth.record())
    market.sequence = market.time_ns = 2**62 - 1
    found = read(take(Snapshots(market).plan(1, 1, NOW)))
    [orders] = found.units[1].orders
    assert len(orders.rows) == 40


def test_steps_are_small() -> None:
    truth = Truth(12)
    market = a_market(truth)
    for order_id in range(1, 6_000):
        head = truth.begin()
        truth.say(1, OrderAdded(*head, 2, order_id, 1, order_id * 100, 100))
    market.apply(truth.record())
    plan = Snapshots(market).plan(1, 1, NOW)
    sizes = []
    packets: list[bytes] = []
    while not plan.is_done:
        step = plan.step(NOW)
        sizes.append(sum(map(len, step)))
        packets += step
    assert all(16 * 1024 <= size < 16 * 1024 + PACKET_SIZE_MAX for size in sizes[:-1])
    assert len(sizes) > 2
    assert len(read(packets).units[2].rows(1)) == 5_999


def test_trades_alone_change_the_unit() -> None:
    truth = Truth()
    market = a_market(truth)
    snapshots = Snapshots(market)
    assert read(take(snapshots.plan(1, 1, NOW))).units[2].state.open_interest == 0
    head = truth.begin()
    truth.say(1, Trade(*head, 2, 1, 500, 100, 1, 700))
    market.apply(truth.record())
    now_ns = NOW + 2 * SHARED_NS
    state = read(take(snapshots.plan(1, 1, now_ns), now_ns)).units[2].state
    assert (state.open_interest, state.last_price, state.last_trade_id) == (700, 500, 1)
