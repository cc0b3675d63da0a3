"""The model alone: exact events worked out by hand, its bytes, and what it asserts.

The scenarios say what a trader sees; here are all fields of every report, the numbers of the
streams, and the order of commands that the model insists on.
"""

from hashlib import blake2b
from struct import pack
from zlib import crc32

import pytest
from msgspec import Struct
from msgspec.msgpack import encode

from protocol import admin, market_data
from protocol.codes import RejectCode
from protocol.order_entry import (
    CancelOrder,
    CancelRejected,
    NewOrder,
    OrderAccepted,
    OrderCanceled,
    OrderExpired,
    OrderFilled,
    OrderRejected,
    OrderReplaced,
    ReplaceOrder,
)
from protocol.records import (
    COMMAND_HEAD,
    EVENT_HEAD,
    REPORT,
    SESSION,
    AccountRecorded,
    Connect,
    Continuation,
    Disconnect,
    Genesis,
    KeyRecorded,
    ParticipantRecorded,
    SessionRecorded,
    TimeAdvance,
    VenueRecorded,
    VenueStarted,
)
from protocol.transport import LogOnAccepted, LogOnRejected
from tests.model.checks import book_digest, check_invariants, public_digest
from tests.model.collateral import available
from tests.model.model import Command, Model, Sequencer
from tests.model.state import EventOut

CLIENT = 1
VENUE = 2
TIME = 1000
"""Time of set-up and of most commands, in nanoseconds."""
LIMITS = Genesis(
    "brier", b"k" * 32, 3, 9, 9, 9, 9, 9, 9, 9, 9, 9, work_per_command_max=2, epoch=1 << 20
)
ALICE = 2
BOB = 3


def venue(sequencer: Sequencer, message: Struct, time_ns: int = TIME) -> list[EventOut]:
    """A command of the sequencer's own that names no session."""
    return sequencer.submit(Command(VENUE, 0, 0, 0, 0, time_ns, encode(message)))


def connect(
    sequencer: Sequencer, session: int, connection: int, message: Connect
) -> list[EventOut]:
    return sequencer.submit(Command(VENUE, session, connection, 0, 0, TIME, encode(message)))


def client(
    sequencer: Sequencer, session: int, number: int, message: Struct, time_ns: int = TIME
) -> list[EventOut]:
    """A client's frame on its first connection; it came in five nanoseconds before."""
    payload = encode(message)
    return sequencer.submit(Command(CLIENT, session, 1, number, time_ns - 5, time_ns, payload))


def market() -> Sequencer:
    """One binary instrument; alice (session 2) and bob (session 3) with 10.00 each.

    Made by 14 commands.
    """
    sequencer = Sequencer()
    venue(sequencer, LIMITS)
    connect(sequencer, 1, 1, Connect(1, "ops", 0, 0, 0, 0, 0))
    messages: list[Struct] = [
        admin.Event("RAIN", 1, "Rain?", "USD"),
        admin.Instrument(1, "RAIN", "Rain?", 0, 10_000, [(0, 100)], 100),
    ]
    for participant_id, name in ((2, "alice"), (3, "bob")):
        messages += [
            admin.Participant(name),
            admin.Account(participant_id, "main", "USD"),
            admin.Key(participant_id, bytes([participant_id]) * 32, 1),
            admin.Deposit(participant_id - 1, 1, 10_000_000),
        ]
    for number, message in enumerate(messages, 1):
        event, *_ = client(sequencer, 1, number, message)
        assert isinstance(event.message, admin.AdminAccepted)
    connect(sequencer, ALICE, 1, Connect(2, "A", 1, 1000, 3, 1, 0))
    connect(sequencer, BOB, 1, Connect(3, "B", 1, 1000, 0, 0, 0))
    sequencer.take_batch()
    return sequencer


def messages(events: list[EventOut]) -> list[Struct]:
    """What sessions get."""
    return [event.message for event in events if event.kind in (REPORT, SESSION)]


def public(number: int, sequence: int, time_ns: int, message: Struct) -> EventOut:
    """An event of channel 1."""
    return EventOut(3, 0, 0, number, sequence, time_ns, message, 1)


def recorded(number: int, sequence: int, message: Struct) -> EventOut:
    """A record of who is who."""
    return EventOut(4, 0, 0, number, sequence, TIME, message)


def test_log_on() -> None:
    sequencer = Sequencer()
    assert venue(sequencer, LIMITS) == [
        recorded(1, 1, VenueRecorded(1, TIME, "brier", 1 << 20, 3)),
        recorded(2, 1, ParticipantRecorded(1, TIME, 1, "brier")),
        recorded(3, 1, KeyRecorded(1, TIME, 1, 1, b"k" * 32, 16)),
    ]
    on = Connect(1, "ops", 1, 30_000, 2, 500, 1)
    accepted = LogOnAccepted(2, TIME, 1, 1, 1, 0, 0, 30_000, 2, 500, 1)
    assert connect(sequencer, 1, 1, on) == [
        EventOut(2, 1, 1, 1, 2, TIME, accepted),
        recorded(4, 2, SessionRecorded(2, TIME, 1, 1, "ops")),
    ]
    client(sequencer, 1, 7, admin.Participant("alice"))
    again = LogOnAccepted(4, TIME, 1, 2, 2, 7, 0, 30_000, 2, 500, 1)
    assert connect(sequencer, 1, 2, on) == [EventOut(2, 1, 2, 2, 4, TIME, again)]
    ahead = LogOnRejected(RejectCode.NUMBER_AHEAD, 6, 2, "")
    too_far = Connect(1, "ops", 3, 30_000, 2, 500, 1)
    assert connect(sequencer, 1, 3, too_far) == [EventOut(2, 1, 3, 0, 5, TIME, ahead)]
    unheard = Connect(1, "new", 2, 30_000, 2, 500, 1)
    unknown = LogOnRejected(RejectCode.NUMBER_AHEAD, 6, 1, "")
    assert connect(sequencer, 2, 1, unheard) == [EventOut(2, 2, 1, 0, 6, TIME, unknown)]


def test_log_on_with_a_revoked_key() -> None:
    sequencer = market()
    client(sequencer, 1, 11, admin.Key(2, b"\x02" * 32, 0))
    [event] = connect(sequencer, ALICE, 2, Connect(2, "A", 0, 0, 0, 0, 0))
    rejected = LogOnRejected(RejectCode.UNKNOWN_KEY, 3, 0, "")
    assert event == EventOut(2, ALICE, 2, 0, 16, TIME, rejected)
    [event] = client(sequencer, ALICE, 1, NewOrder(1, 1, 1, 1, 100, 100))
    assert event.message == OrderRejected(17, TIME, 1, 1, TIME - 5, 0, 22, 0, 0, 1)


def test_who_is_who() -> None:
    """Behind its report, what was admitted, opened and permitted; nothing when it was refused."""
    sequencer = Sequencer()
    venue(sequencer, LIMITS)
    connect(sequencer, 1, 1, Connect(1, "ops", 0, 0, 0, 0, 0))
    key = bytes(range(32))
    steps: list[tuple[Struct, Struct | None]] = [
        (admin.Participant("alice"), ParticipantRecorded(3, TIME, 2, "alice")),
        (admin.Participant("alice"), None),
        (admin.Account(2, "main", "USD"), AccountRecorded(5, TIME, 1, 2, "main", "USD")),
        (admin.Key(2, key, 9), KeyRecorded(6, TIME, 2, 2, key, 9)),
        (admin.Key(2, key, 1), KeyRecorded(7, TIME, 2, 2, key, 1)),
        (admin.Key(1, key, 1), None),
        (admin.Key(2, key, 0), KeyRecorded(9, TIME, 2, 2, key, 0)),
        (admin.Deposit(1, 1, 5), None),
        (admin.Event("RAIN", 1, "Rain?", "USD"), None),
    ]
    count = 4
    for number, (message, expected) in enumerate(steps, 1):
        answer, *others = client(sequencer, 1, number, message)
        assert (answer.kind, answer.number) == (REPORT, number)
        count += expected is not None
        records = [recorded(count, answer.sequence, expected)] if expected is not None else []
        assert [event for event in others if event.kind == 4] == records
    [refused] = connect(sequencer, 2, 1, Connect(2, "A", 0, 0, 0, 0, 0))
    assert isinstance(refused.message, LogOnRejected), "a session that is not made is not told"


def test_an_order_that_rests_and_one_that_trades() -> None:
    sequencer = market()
    sell = NewOrder(5, 1, 1, 2, 6000, 300, client_time_ns=77)
    accepted = OrderAccepted(15, TIME, 5, 1, 1, TIME - 5, 77, 1, 1, 2, 6000, 300, 1, 1, 0)
    assert client(sequencer, ALICE, 1, sell) == [
        EventOut(1, 2, 1, 1, 15, TIME, accepted),
        public(3, 15, TIME, market_data.OrderAdded(15, TIME, 1, 1, 2, 6000, 300)),
    ]
    assert available(sequencer.model.state, 1) == 10_000_000 - 4000 * 300
    buy = NewOrder(9, 1, 2, 1, 6100, 500, 1, 2, 5000)
    time_ns = 2000
    assert client(sequencer, BOB, 4, buy, time_ns) == [
        EventOut(1, 3, 1, 1, 16, time_ns, OrderAccepted(
            16, time_ns, 9, 2, 4, time_ns - 5, 0, 1, 2, 1, 6100, 500, 1, 2, 5000)),
        EventOut(1, 2, 1, 2, 16, time_ns, OrderFilled(
            16, time_ns, 5, 1, 1, 1, 1, 2, 6000, 300, 0, 300, 1, 0)),
        EventOut(1, 3, 1, 2, 16, time_ns, OrderFilled(
            16, time_ns, 9, 2, 1, 1, 2, 1, 6000, 300, 200, 300, 2, 0)),
        public(4, 16, time_ns, market_data.OrderExecuted(16, time_ns, 1, 1, 1, 300, 0)),
        public(5, 16, time_ns, market_data.Trade(16, time_ns, 1, 1, 6000, 300, 1, 300)),
        public(6, 16, time_ns, market_data.OrderAdded(16, time_ns, 1, 2, 1, 6100, 200)),
    ]  # fmt: skip
    state = sequencer.model.state
    assert [account.cash for account in state.accounts.values()] == [11_800_000, 8_200_000]
    assert state.positions == {(1, 1): -300, (2, 1): 300}
    assert available(state, 1) == 11_800_000 - 300 * 10_000
    assert available(state, 2) == 8_200_000 - 200 * 6100
    assert sequencer.advance(5000) == [
        EventOut(1, 3, 1, 3, 17, 5000, OrderExpired(17, 5000, 9, 2, 200, 300, 2)),
        public(7, 17, 5000, market_data.OrderDeleted(17, 5000, 1, 2)),
    ]
    check_invariants(state)


def test_continuation_and_remainder() -> None:
    sequencer = market()
    for number in (1, 2, 3):
        client(sequencer, ALICE, number, NewOrder(number, 1, 1, 2, 5000, 100))
    events = client(sequencer, BOB, 8, NewOrder(1, 1, 2, 1, 0, 400, 2, 3, 0, 66))
    assert [type(message) for message in messages(events)] == [
        OrderAccepted, *[OrderFilled] * 6, OrderCanceled]  # fmt: skip
    assert [event.sequence for event in events] == [18] * 9 + [19] * 5
    assert [type(event.message) for event in events[9:]] == [
        OrderFilled, OrderFilled, market_data.OrderExecuted, market_data.Trade, OrderCanceled,
    ]  # fmt: skip
    assert messages(events)[6:] == [
        OrderFilled(19, TIME, 1, 4, 3, 1, 2, 1, 5000, 100, 100, 300, 2, 0),
        OrderCanceled(19, TIME, 1, 4, 8, TIME - 5, 66, 100, 300, 2, 2),
    ]


def test_replace_and_cancel() -> None:
    sequencer = market()
    client(sequencer, ALICE, 1, NewOrder(1, 1, 1, 1, 5000, 300))
    assert messages(client(sequencer, ALICE, 2, ReplaceOrder(2, 1, 0, 5000, 200, 88))) == [
        OrderReplaced(16, TIME, 2, 1, 2, TIME - 5, 88, 1, 5000, 200, 200, 1, 1)
    ]
    assert messages(client(sequencer, ALICE, 3, ReplaceOrder(4, 0, 1, 5100, 200))) == [
        OrderReplaced(17, TIME, 4, 1, 3, TIME - 5, 0, 2, 5100, 200, 200, 0, 1)
    ]
    # The order is named once it is found; whose another participant's is, is not told.
    assert messages(client(sequencer, ALICE, 31, ReplaceOrder(41, 0, 1, 5100, 200))) == [
        CancelRejected(18, TIME, 41, 1, 31, TIME - 5, 0, 12, 52, 0, 0, 1)
    ]
    assert messages(client(sequencer, BOB, 1, ReplaceOrder(1, 0, 1, 5100, 300))) == [
        CancelRejected(19, TIME, 1, 1, 1, TIME - 5, 0, 12, 50, 3, 0, 0)
    ]
    assert messages(client(sequencer, BOB, 2, CancelOrder(0, 1))) == [
        CancelRejected(20, TIME, 0, 1, 2, TIME - 5, 0, 11, 50, 2, 0, 0)
    ]
    assert messages(client(sequencer, ALICE, 4, CancelOrder(4, 0, 99))) == [
        OrderCanceled(21, TIME, 4, 1, 4, TIME - 5, 99, 200, 0, 1, 1)
    ]


def test_cancel_from_another_session() -> None:
    sequencer = market()
    connect(sequencer, 4, 1, Connect(2, "A2", 0, 0, 0, 0, 0))
    client(sequencer, ALICE, 1, NewOrder(7, 1, 1, 1, 5000, 300))
    assert client(sequencer, 4, 3, CancelOrder(0, 1, 99)) == [
        EventOut(
            1, 4, 1, 1, 17, TIME, OrderCanceled(17, TIME, 7, 1, 3, TIME - 5, 99, 300, 0, 1, 1)
        ),
        EventOut(1, 2, 1, 2, 17, TIME, OrderCanceled(17, TIME, 7, 1, 0, 0, 0, 300, 0, 1, 1)),
        public(4, 17, TIME, market_data.OrderDeleted(17, TIME, 1, 1)),
    ]


def test_cancel_on_disconnect_after_the_grace() -> None:
    sequencer = market()
    for number in (1, 2, 3):
        client(sequencer, ALICE, number, NewOrder(number, 1, 1, 1, 1000 * number, 100))
    lost = Command(VENUE, ALICE, 1, 0, 0, TIME, encode(Disconnect(1)))
    assert sequencer.submit(lost) == []
    due_ns = TIME + 1_000_000
    assert sequencer.model.next_deadline_ns == due_ns
    assert sequencer.advance(due_ns - 1) == []
    events = sequencer.advance(due_ns)
    assert [event.sequence for event in events] == [19, 19, 20, 20, 20, 20]
    assert messages(events) == [
        OrderCanceled(19, due_ns, 1, 1, 0, 0, 0, 100, 0, 3, 1),
        OrderCanceled(20, due_ns, 2, 2, 0, 0, 0, 100, 0, 3, 1),
        OrderCanceled(20, due_ns, 3, 3, 0, 0, 0, 100, 0, 3, 1),
    ]
    assert not sequencer.model.has_pending, "units ran out exactly with the last order"


def test_bytes_of_a_batch() -> None:
    sequencer = Sequencer()
    venue(sequencer, LIMITS)
    payload = encode(Connect(1, "ops", 0, 1000, 0, 0, 0))
    sequencer.take_batch()
    connect(sequencer, 1, 1, Connect(1, "ops", 0, 1000, 0, 0, 0))
    batch = sequencer.take_batch()
    assert (batch.first_sequence, batch.command_count) == (2, 1)
    head = COMMAND_HEAD.pack(40 + len(payload), 2, 0, 65535, 1, 1, 0, 0, TIME)
    assert batch.commands == head + payload
    answer = bytes.fromhex("9c 41 02 cd03e8 01 01 01 00 00 cd03e8 00 00 00")
    record = bytes.fromhex("96 6a 02 cd03e8 01 01 a36f7073")
    assert batch.events == (
        EVENT_HEAD.pack(40 + len(answer), 2, 0, 0, 1, 1, 1, 2, TIME)
        + answer
        + EVENT_HEAD.pack(40 + len(record), 4, 0, 0, 0, 0, 4, 2, TIME)
        + record
    )
    assert batch.events_crc == crc32(answer + record)
    assert batch.commands[:8].hex() == "360000000200ffff"
    assert batch.events[:8].hex() == "3900000002000000"


def test_book_digest() -> None:
    sequencer = market()
    client(sequencer, ALICE, 1, NewOrder(1, 1, 1, 1, 4000, 100))
    client(sequencer, ALICE, 2, NewOrder(2, 1, 1, 1, 4100, 200))
    client(sequencer, BOB, 1, NewOrder(1, 1, 2, 2, 4100, 500))
    words = (
        *(1, 1, 1),
        *(4000, 1, 100),
        *(4100, 2, 300),
        -1,
        *(1, 1, 200, 2, 1, -200),
        -2,
        *(1, 9_180_000, 2, 10_820_000),
    )
    expected = blake2b(pack(f"<{len(words)}q", *words), digest_size=32).hexdigest()
    assert book_digest(sequencer.model.state) == expected


def test_public_digest() -> None:
    sequencer = market()
    client(sequencer, ALICE, 1, NewOrder(1, 1, 1, 1, 4000, 100))
    client(sequencer, ALICE, 2, NewOrder(2, 1, 1, 1, 4100, 200))
    client(sequencer, BOB, 1, NewOrder(1, 1, 2, 2, 4100, 500))
    client(sequencer, 1, 11, admin.Halt(1))
    words = (1, 2, 1, 1, 1, 4000, 100, 3, 4100, 300)
    expected = blake2b(pack(f"<{len(words)}q", *words), digest_size=32).hexdigest()
    assert public_digest(sequencer.model.state) == expected


def test_market_data_of_listings_and_halts() -> None:
    sequencer = market()
    assert client(sequencer, 1, 11, admin.Event("SNOW", 5, "Snow?", "EUR", 64)) == [
        EventOut(1, 1, 1, 11, 15, TIME, admin.AdminAccepted(15, TIME, 11, 33, 2)),
        EventOut(3, 0, 0, 1, 15, TIME, market_data.EventDefinition(
            15, TIME, 2, "SNOW", 5, "Snow?", "EUR", 64), 64),
    ]  # fmt: skip
    snow = admin.Instrument(2, "SNOW-CM", "Depth", -10, 40, [(-10, 5), (0, 1)], 7)
    assert client(sequencer, 1, 12, snow)[1:] == [
        EventOut(3, 0, 0, 2, 16, TIME, market_data.InstrumentDefinition(
            16, TIME, 2, 2, "SNOW-CM", "Depth", -10, 40, [(-10, 5), (0, 1)], 7, 1), 64),
    ]  # fmt: skip
    assert client(sequencer, 1, 13, admin.Halt(1))[1:] == [
        public(3, 17, TIME, market_data.InstrumentStatus(17, TIME, 1, 2))
    ]
    assert client(sequencer, 1, 14, admin.Resume(1))[1:] == [
        public(4, 18, TIME, market_data.InstrumentStatus(18, TIME, 1, 1))
    ]
    [refused] = messages(client(sequencer, 1, 15, admin.Event("HAIL", 1, "?", "USD", 65)))
    assert refused == admin.AdminRejected(19, TIME, 15, 33, RejectCode.INVALID_VALUE, 5, 64)


def test_market_data_of_replaces() -> None:
    sequencer = market()
    client(sequencer, ALICE, 1, NewOrder(1, 1, 1, 1, 5000, 300))
    client(sequencer, BOB, 1, NewOrder(1, 1, 2, 2, 6000, 100))
    assert client(sequencer, ALICE, 2, ReplaceOrder(2, 1, 0, 5000, 200))[1:] == [
        public(5, 17, TIME, market_data.OrderReduced(17, TIME, 1, 1, 200))
    ]
    assert client(sequencer, ALICE, 3, ReplaceOrder(3, 2, 0, 5000, 400))[1:] == [
        public(6, 18, TIME, market_data.OrderReplaced(18, TIME, 1, 1, 5000, 400))
    ]
    events = client(sequencer, ALICE, 4, ReplaceOrder(4, 3, 0, 6000, 300))
    replaced, deleted, resting, incoming, *rest = events
    assert isinstance(replaced.message, OrderReplaced)
    assert deleted == public(7, 19, TIME, market_data.OrderDeleted(19, TIME, 1, 1))
    assert isinstance(resting.message, OrderFilled)
    assert isinstance(incoming.message, OrderFilled)
    assert rest == [
        public(8, 19, TIME, market_data.OrderExecuted(19, TIME, 1, 2, 1, 100, 0)),
        public(9, 19, TIME, market_data.Trade(19, TIME, 1, 1, 6000, 100, 1, 100)),
        public(10, 19, TIME, market_data.OrderAdded(19, TIME, 1, 1, 1, 6000, 200)),
    ]


def refuse(model: Model, message: Struct, time_ns: int, reason: str) -> None:
    with pytest.raises(AssertionError, match=reason):
        model.apply(Command(VENUE, 0, 0, 0, 0, time_ns, encode(message)))


def test_what_the_sequencer_owes_the_model() -> None:
    refuse(Model(), TimeAdvance(), 0, "Genesis comes first")
    sequencer = market()
    model = sequencer.model
    refuse(model, VenueStarted(), TIME - 1, "time never decreases")
    refuse(model, Continuation(), TIME, "left-over work comes first")
    refuse(model, TimeAdvance(), TIME, "a TimeAdvance has work to do")
    refuse(model, LIMITS, TIME, "Genesis comes once")


def test_left_over_work_and_deadlines_come_first() -> None:
    sequencer = market()
    model = sequencer.model
    for number in (1, 2, 3):
        client(sequencer, ALICE, number, NewOrder(number, 1, 1, 2, 5000, 100))
    client(sequencer, ALICE, 4, NewOrder(4, 1, 1, 2, 6000, 100, 1, 2, 3000))
    buy = encode(NewOrder(1, 1, 2, 1, 5000, 300))
    model.apply(Command(CLIENT, BOB, 1, 1, TIME, TIME, buy))
    assert model.has_pending
    refuse(model, VenueStarted(), TIME, "left-over work comes first")
    again = Sequencer(model)
    assert [event.sequence for event in venue(again, VenueStarted(), 4000)] == [20] * 4
    refuse(model, Disconnect(1), 4000, "due deadlines come first")
    assert messages(again.advance(4000))[0] == OrderExpired(22, 4000, 4, 4, 100, 0, 1)
