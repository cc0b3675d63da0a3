"""The most that one command can cause, and that a batch always has room for it.

`has_room` counts on a number of events per unit of work and per command, and on the size of each.
Here are the commands that cause the most, at the highest ceiling of work that a venue may have,
and the longest form of every message.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Final, get_args

import msgspec
import pytest

from exchange.core import limits
from protocol import admin, base, market_data, order_entry, records
from protocol.base import NUMBER_MAX
from protocol.codes import CancelOnDisconnect, DisconnectReason, OrderType, Side
from protocol.codes import TimeInForce as Tif
from protocol.market_data import EventDefinition, InstrumentDefinition
from protocol.order_entry import NewOrder, ReplaceOrder, Report
from protocol.records import EVENT_HEAD, Disconnect
from tests.exchange.core.venue import Venue

WORK: Final[int] = limits.WORK_PER_COMMAND_MAX
EVENTS_MAX: Final = limits.EVENTS_PER_WORK * WORK + limits.EVENTS_PER_COMMAND
SECOND_NS: Final = 10**9
DEFINITIONS: Final = (EventDefinition, InstrumentDefinition)


def reports() -> Iterator[type[Report]]:
    """Every message of numbers that the core emits, but for answers to log-ons."""
    for module in (admin, order_entry):
        for struct in vars(module).values():
            is_report = isinstance(struct, type) and issubclass(struct, Report)
            if is_report and struct is not Report:
                yield struct
    yield from (one for one in get_args(market_data.MarketDataMessage) if one not in DEFINITIONS)


@pytest.mark.parametrize("struct", tuple(reports()), ids=lambda struct: str(struct.__name__))
@pytest.mark.parametrize("value", [NUMBER_MAX, -NUMBER_MAX])
def test_no_report_is_longer_than_its_limit(struct: type[Report], value: int) -> None:
    report = struct(*[value] * len(struct.__struct_fields__))
    assert len(msgspec.msgpack.encode(report)) <= limits.REPORT_SIZE_MAX


def longest(struct: type[msgspec.Struct]) -> msgspec.Struct:
    """The longest valid message of a type, from the types of its fields."""
    values: list[object] = []
    for field in msgspec.structs.fields(struct):
        metas = [one for one in getattr(field.type, "__metadata__", ()) if one.max_length]
        if field.name == "tick_table":
            values.append([(-NUMBER_MAX, NUMBER_MAX)] * metas[0].max_length)
        elif field.name == "currency":
            values.append("A" * 8)
        elif field.type == base.U32:
            values.append(2**32 - 1)
        elif field.name == "public_key":
            values.append(b"k" * metas[0].max_length)
        elif metas:
            # A character takes up to four bytes in a text; a name has one-byte characters.
            character = "A" if metas[0].pattern else "\N{GRINNING FACE}"
            values.append(character * metas[0].max_length)
        else:
            values.append(1 if field.name == "channel" else NUMBER_MAX)
    return struct(*values)


@pytest.mark.parametrize("struct", DEFINITIONS)
def test_no_definition_is_longer_than_its_limit(struct: type[msgspec.Struct]) -> None:
    encoded = msgspec.msgpack.encode(longest(struct))
    assert msgspec.msgpack.decode(encoded, type=struct) == longest(struct)
    assert 512 < len(encoded) <= limits.DEFINITION_SIZE_MAX


@pytest.mark.parametrize("struct", get_args(records.ReferenceMessage))
def test_no_record_of_who_is_who_is_longer_than_a_report(struct: type[msgspec.Struct]) -> None:
    encoded = msgspec.msgpack.encode(longest(struct))
    assert msgspec.msgpack.decode(encoded, type=struct) == longest(struct)
    assert 40 < len(encoded) <= limits.REPORT_SIZE_MAX


def count_per_command(venue: Venue) -> list[int]:
    """Events of each command of the open batch that has any; closes the batch."""
    events = venue.engine.take_batch().events
    counts: Counter[int] = Counter()
    sizes: Counter[int] = Counter()
    offset = 0
    while offset < len(events):
        length, *_, sequence, _ = EVENT_HEAD.unpack_from(events, offset)
        counts[sequence] += 1
        sizes[sequence] += length
        offset += length
    venue.engine.check()
    assert max(counts.values()) <= EVENTS_MAX
    assert max(sizes.values()) <= limits.COMMAND_EVENTS_SIZE_MAX
    return list(counts.values())


def sellers(count: int, **bounds: int) -> Venue:
    """A venue in which `count` sells rest, and nothing else has happened in the batch."""
    venue = Venue(work_per_command_max=WORK, **bounds).with_market(cash=10**15)
    for client_order_id in range(1, count + 1):
        while not venue.send(2, NewOrder(client_order_id, 1, 1, Side.SELL, 5_000, 100)):
            venue.engine.take_batch()
    venue.engine.take_batch()
    return venue


def test_the_most_events_of_an_order() -> None:
    venue = sellers(WORK)
    venue.send(3, NewOrder(1, 1, 2, Side.BUY, 5_000, 100 * WORK + 100))
    assert count_per_command(venue) == [4 * WORK + 2], "accepted, fills, added"


def test_the_most_events_of_an_order_that_may_not_rest() -> None:
    venue = sellers(WORK)
    order = NewOrder(1, 1, 2, Side.BUY, 0, 100 * WORK + 100, OrderType.MARKET, Tif.IOC)
    venue.send(3, order)
    assert count_per_command(venue) == [4 * WORK + 2], "accepted, fills, canceled"


def test_the_most_events_of_a_replace() -> None:
    venue = sellers(WORK)
    venue.send(3, NewOrder(1, 1, 2, Side.BUY, 4_000, 100))
    venue.engine.take_batch()
    venue.send(3, ReplaceOrder(2, 1, 0, 5_000, 100 * WORK + 100))
    assert count_per_command(venue) == [4 * WORK + 3], "replaced, deleted, fills, added"


def test_the_most_events_of_a_continuation() -> None:
    venue = sellers(2 * WORK + 1)
    venue.send(3, NewOrder(1, 1, 2, Side.BUY, 5_000, 200 * WORK + 200))
    assert count_per_command(venue) == [4 * WORK + 1, 4 * WORK, 4 + 1]


def test_the_most_events_of_time_that_passes() -> None:
    venue = Venue(work_per_command_max=WORK).with_market(cash=10**15)
    expire_ns = venue.now_ns + SECOND_NS
    for number in range(1, 2 * WORK + 2):
        order = NewOrder(number, 1, 1, Side.SELL, 5_000, 100, OrderType.LIMIT, Tif.GTD, expire_ns)
        while not venue.send(2, order):
            venue.engine.take_batch()
    venue.engine.take_batch()
    assert venue.engine.advance(expire_ns)
    assert count_per_command(venue) == [2 * WORK, 2 * WORK, 2]


def test_the_most_events_of_a_lost_session() -> None:
    venue = Venue(work_per_command_max=WORK).with_market(cash=10**15)
    venue.connect(2, "s", session=2, connection=2, mode=CancelOnDisconnect.ALWAYS)
    for number in range(1, 2 * WORK + 1):
        while not venue.send(2, NewOrder(number, 1, 1, Side.SELL, 5_000, 100)):
            venue.engine.take_batch()
    venue.venue_command(Disconnect(DisconnectReason.LOG_OUT), session=2, connection=2)
    venue.engine.take_batch()
    assert venue.engine.advance(venue.now_ns)
    # The firing is one unit of the first command.
    assert count_per_command(venue) == [2 * (WORK - 1), 2 * WORK, 2]


def test_the_most_events_of_a_listing() -> None:
    venue = Venue().with_market()
    venue.send(1, admin.Event("A" * 32, 5, "\N{GRINNING FACE}" * 128, "ABCDEFGH"))
    table = [(-(10**9) + row, 10**8) for row in range(8)]
    instrument = admin.Instrument(
        2, "B" * 32, "\N{GRINNING FACE}" * 128, -(10**9), -1, table, 10**6
    )
    venue.send(1, instrument)
    assert count_per_command(venue) == [2, 2]


def test_the_most_events_of_what_is_administered() -> None:
    """Genesis comes when no work is allowed yet, and has as many as any command of its kind."""
    venue = Venue()
    venue.send(1, admin.Participant("alice"))
    assert count_per_command(venue) == [3, 2, 2], "records; log-on, record; report, record"


def test_the_bounds_hold_together() -> None:
    """What the most takes, each event in its longest form, is what `has_room` asks for."""
    entry = limits.ENTRY_HEAD_SIZE + limits.REPORT_SIZE_MAX
    definition = limits.ENTRY_HEAD_SIZE + limits.DEFINITION_SIZE_MAX
    assert (4 * WORK + 3) * entry + definition <= limits.COMMAND_EVENTS_SIZE_MAX
    assert limits.COMMAND_EVENTS_SIZE_MAX <= limits.EVENTS_SIZE_MAX // 2
    assert len(get_args(market_data.MarketDataMessage)) == 9, "a new message is counted here"
    assert len(get_args(records.ReferenceMessage)) == 5, "likewise"


def test_a_batch_is_refused_just_before_a_command_might_not_fit() -> None:
    venue = sellers(3 * WORK)
    # Three sweeps take half of the events' room, then single orders come near its end.
    for sweep_id in (1, 2, 3):
        assert venue.send(3, NewOrder(sweep_id, 1, 2, Side.BUY, 5_000, 100 * WORK))
    next_id = 3 * WORK + 1
    while venue.send(2, NewOrder(next_id, 1, 1, Side.SELL, 5_000, 100)):
        next_id += 1
    batch = venue.engine.take_batch()
    assert len(batch.commands) + 4_096 < limits.COMMANDS_SIZE_MAX, "it is full of events"
    room = limits.EVENTS_SIZE_MAX - len(batch.events)
    one_order = 2 * (limits.ENTRY_HEAD_SIZE + limits.REPORT_SIZE_MAX)
    assert limits.COMMAND_EVENTS_SIZE_MAX - one_order < room < limits.COMMAND_EVENTS_SIZE_MAX
    venue.engine.check()
