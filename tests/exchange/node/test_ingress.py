"""The compiled ingress: which bytes become commands, which are left to Python, which frames go out.

Compared with the frame reader of `protocol` and with frames that `protocol` encodes.
"""

import struct
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exchange.core.engine import Batch
from exchange.node.ingress import BAD_HEADER, COLD, DRAINED, FULL, GAP, Ingress
from protocol import wire
from protocol.admin import Participant
from protocol.errors import RemoteProtocolError
from protocol.framing import (
    CLIENT_FRAME_SIZE_MAX,
    HEADER,
    SEQUENCED,
    SESSION,
    UNSEQUENCED,
    FrameReader,
    encode_frame,
)
from protocol.order_entry import CancelOrder, NewOrder, OrderAccepted, OrderRejected
from protocol.records import COMMAND_HEAD, EVENT_HEAD, MARKET_DATA, REFERENCE, REPORT
from protocol.records import SESSION as SESSION_EVENT
from protocol.transport import Heartbeat
from tests.exchange.node.market import open_market
from tests.exchange.node.world import World

NOW_NS = 1_900_000_000_000_000_000


def order(number: int, **fields: Any) -> bytes:
    message = NewOrder(number, 1, 1, 1, 5000, 100, **fields)
    return encode_frame(SEQUENCED, number, wire.encode(message))


class Gate:
    """A market whose sessions are connected, and an ingress of its own to it."""

    def __init__(self) -> None:
        world = World()
        world.boot()
        open_market(world)
        accepted = world.connect(2).log_on()
        self.engine = world.engine
        self.session = accepted.session_id
        self.ingress = Ingress(self.engine.hot)
        self.ingress.attach(self.session, 1, 0)

    def feed(self, data: bytes, offset: int = 0) -> tuple[int, int]:
        return self.ingress.feed(self.session, 1, data, offset, NOW_NS)

    def batch(self) -> Batch:
        return self.engine.take_batch()


def commands_of(batch: Batch) -> list[tuple[int, bytes]]:
    """(client number, payload) of each command."""
    found = []
    offset = 0
    while offset < len(batch.commands):
        head = COMMAND_HEAD.unpack_from(batch.commands, offset)
        found.append((head[6], batch.commands[offset + COMMAND_HEAD.size : offset + head[0]]))
        offset += head[0]
    return found


def test_hot_orders_are_sequenced_with_their_bytes() -> None:
    gate = Gate()
    frames = [order(1), order(2), order(3)]
    data = b"".join(frames)
    assert gate.feed(data) == (len(data), DRAINED)
    batch = gate.batch()
    assert batch.command_count == 3
    assert commands_of(batch) == [(i + 1, frame[24:]) for i, frame in enumerate(frames)]
    assert gate.ingress.last_number(gate.session) == 3
    assert (gate.ingress.frame_count, gate.ingress.hot_count) == (3, 3)
    head = COMMAND_HEAD.unpack_from(batch.commands)
    assert head[1] == 1, "from a client"
    assert head[4:6] == (gate.session, 1)
    assert head[7:9] == (NOW_NS, NOW_NS)


def test_every_split_gives_the_same_commands() -> None:
    gate = Gate()
    data = order(1) + order(2)
    expected = [(1, order(1)[24:]), (2, order(2)[24:])]
    for split in range(len(data) + 1):
        gate.ingress.attach(gate.session, 1, 0)
        offset, status = gate.feed(data[:split])
        assert status == DRAINED
        assert offset == (
            0 if split < len(order(1)) else len(order(1)) if split < len(data) else split
        )
        offset, status = gate.feed(data, offset)
        assert (offset, status) == (len(data), DRAINED)
        assert commands_of(gate.batch()) == expected


def test_a_known_number_is_dropped_and_counted() -> None:
    gate = Gate()
    data = order(1) + order(1) + encode_frame(SEQUENCED, 0, b"") + order(2)
    assert gate.feed(data) == (len(data), DRAINED)
    assert gate.batch().command_count == 2
    assert gate.ingress.duplicate_count == 2


def test_a_gap_is_told_once_and_then_passed() -> None:
    gate = Gate()
    data = order(4) + order(5)
    assert gate.feed(data) == (0, GAP)
    assert (gate.ingress.gap_from, gate.ingress.gap_count) == (1, 3)
    assert gate.feed(data) == (len(data), DRAINED)
    assert [number for number, _ in commands_of(gate.batch())] == [4, 5]


@pytest.mark.parametrize(
    "frame",
    [
        encode_frame(SESSION, 1, wire.encode(Heartbeat())),
        encode_frame(UNSEQUENCED, 1, b"x"),
        encode_frame(SEQUENCED, 1, wire.encode(Participant("acme"))),
        encode_frame(SEQUENCED, 1, b""),
        encode_frame(SEQUENCED, 1, b"\x91\x0a"),
        encode_frame(SEQUENCED, 1, b"\xc1" * 100),
        encode_frame(SEQUENCED, 1, wire.encode(CancelOrder(1)) + b"\x00"),
    ],
    ids=["session", "unsequenced", "admin", "empty", "short order", "garbage", "trailing"],
)
def test_what_is_not_hot_is_left_to_python(frame: bytes) -> None:
    gate = Gate()
    assert gate.feed(frame + order(2)) == (0, COLD)
    assert gate.engine.batch_count == 0
    if HEADER.unpack_from(frame)[1] == SEQUENCED:
        gate.ingress.take(gate.session, 1)
    assert gate.ingress.frame_count == 0


def test_a_frame_that_python_took_is_not_taken_twice() -> None:
    gate = Gate()
    frame = encode_frame(SEQUENCED, 1, wire.encode(Participant("acme")))
    assert gate.feed(frame) == (0, COLD)
    gate.ingress.take(gate.session, 1)
    data = frame + order(2)
    assert gate.feed(data) == (len(data), DRAINED)
    with pytest.raises(AssertionError, match="number 2 after 2"):
        gate.ingress.take(gate.session, 2)


@settings(max_examples=300, deadline=None)
@given(
    length=st.one_of(st.integers(0, 65_535), st.sampled_from([23, 24, 25, 4096, 4097])),
    kind=st.integers(0, 5),
    number=st.one_of(
        st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 2, 2**62 - 1, 2**62, 2**63])
    ),
)
def test_headers_are_refused_as_the_frame_reader_refuses_them(
    length: int, kind: int, number: int
) -> None:
    data = HEADER.pack(length, kind, 0, number, 0, 0) + bytes(8)
    reader = FrameReader(CLIENT_FRAME_SIZE_MAX)
    reader.feed(data)
    try:
        reader.next_frame()
        is_bad = False
    except RemoteProtocolError:
        is_bad = True
    _, status = SHARED.feed(data)
    assert (status == BAD_HEADER) is is_bad
    SHARED.ingress.attach(SHARED.session, 1, 0)


SHARED = Gate()


def test_a_full_batch_takes_nothing_and_loses_nothing() -> None:
    gate = Gate()
    data = b"".join(order(number) for number in range(1, 8_001))
    offset, status = gate.feed(data)
    taken = []
    while status == FULL:
        assert gate.feed(data, offset) == (offset, FULL), "full until the batch is taken"
        taken += commands_of(gate.batch())
        offset, status = gate.feed(data, offset)
    assert (offset, status) == (len(data), DRAINED)
    taken += commands_of(gate.batch())
    assert [number for number, _ in taken] == list(range(1, 8_001))


def test_barred_payloads_go_to_python_and_others_do_not() -> None:
    gate = Gate()
    payloads = [order(number)[24:] for number in range(1, 1_001)]
    gate.ingress.bar(payloads[500])
    data = b"".join(order(number) for number in range(1, 1_001))
    offset, cold = 0, []
    while offset < len(data):
        offset, status = gate.feed(data, offset)
        if status == COLD:
            length, _, _, number, _, _ = HEADER.unpack_from(data, offset)
            cold.append(number)
            gate.ingress.take(gate.session, number)
            offset += length
    assert 501 in cold
    assert len(cold) < 20, "the filter lets nearly everything pass"


def test_a_closed_ingress_leaves_every_command_to_python() -> None:
    gate = Gate()
    gate.ingress.is_closed = True
    assert gate.feed(order(1)) == (0, COLD)
    assert gate.engine.batch_count == 0


def test_only_the_attached_connection_is_fed() -> None:
    gate = Gate()
    with pytest.raises(AssertionError, match="not attached"):
        gate.ingress.feed(gate.session, 2, order(1), 0, NOW_NS)
    gate.ingress.detach(gate.session, 2)
    assert gate.ingress.is_attached(gate.session, 1)
    gate.ingress.detach(gate.session, 1)
    assert not gate.ingress.is_attached(gate.session, 1)
    with pytest.raises(AssertionError, match="not attached"):
        gate.feed(order(1))
    assert not gate.ingress.is_attached(10**6, 1)
    with pytest.raises(AssertionError, match="above every limit"):
        gate.ingress.attach(2**31, 1, 0)


def event(
    kind: int, session: int, connection: int, number: int, time_ns: int, payload: bytes
) -> bytes:
    head = EVENT_HEAD.pack(
        EVENT_HEAD.size + len(payload), kind, 0, 0, session, connection, number, 9, time_ns
    )
    return head + payload


def test_released_frames_are_exact() -> None:
    ingress = Gate().ingress
    events = (
        event(SESSION_EVENT, 7, 2, 5, 1_000, b"accepted")
        + event(REPORT, 7, 2, 5, 1_000, b"one")
        + event(REFERENCE, 0, 0, 4, 1_000, b"who is who")
        + event(REPORT, 9, 1, 1, 2_000, b"other")
        + event(MARKET_DATA, 0, 0, 8, 2_000, b"public")
        + event(REPORT, 7, 2, 6, 3_000, b"two")
    )
    assert ingress.release(events, 77, 2_500) == [
        (
            7,
            2,
            7,
            encode_frame(SESSION, 5, b"accepted", 77, 1_500)
            + encode_frame(SEQUENCED, 5, b"one", 77, 1_500)
            # Done before it was sequenced: a clock that was set back. The lag is 0, not huge.
            + encode_frame(SEQUENCED, 6, b"two", 77, 0),
        ),
        (9, 1, 2, encode_frame(SEQUENCED, 1, b"other", 77, 500)),
    ]
    assert ingress.released_count == 4


def test_the_match_lag_saturates() -> None:
    ingress = Gate().ingress
    ((_, _, _, frames),) = ingress.release(event(REPORT, 1, 1, 1, 0, b"x"), 0, 2**40)
    assert HEADER.unpack_from(frames)[5] == 2**32 - 1


def test_a_take_over_inside_a_batch_makes_groups_in_order() -> None:
    ingress = Gate().ingress
    events = (
        event(REPORT, 3, 1, 1, 0, b"a")
        + event(SESSION_EVENT, 3, 2, 2, 0, b"accepted")
        + event(REPORT, 3, 2, 2, 0, b"b")
        + event(REPORT, 3, 1, 3, 0, b"c")
    )
    groups = ingress.release(events, 0, 0)
    assert [(session, connection, following) for session, connection, following, _ in groups] == [
        (3, 1, 2),
        (3, 2, 3),
        (3, 1, 4),
    ]
    assert groups[1][3] == encode_frame(SESSION, 2, b"accepted") + encode_frame(SEQUENCED, 2, b"b")


@settings(max_examples=200, deadline=None)
@given(st.randoms(use_true_random=False))
def test_any_release_is_what_python_would_frame(random: Random) -> None:
    events = b""
    expected: dict[tuple[int, int], bytes] = {}
    numbers: dict[int, int] = {}
    for _ in range(random.randrange(60)):
        session, connection = random.randrange(1, 150), random.randrange(1, 3)
        payload = random.randbytes(random.randrange(1, 200))
        number = numbers[session] = numbers.get(session, 0) + 1
        events += event(REPORT, session, connection, number, 10, payload)
        key = (session, connection)
        frame = encode_frame(SEQUENCED, number, payload, 5, 90)
        expected[key] = expected.get(key, b"") + frame
    found: dict[tuple[int, int], bytes] = {}
    ingress = Ingress(SHARED.engine.hot)
    for session, connection, following, frames in ingress.release(events, 5, 100):
        found[session, connection] = found.get((session, connection), b"") + frames
        last = 0
        for frame_number in _numbers(frames):
            assert frame_number > last, "in order"
            last = frame_number
        assert following == last + 1
    assert found == expected


def _numbers(frames: bytes) -> list[int]:
    reader = FrameReader(65_535)
    reader.feed(frames)
    numbers = []
    while (frame := reader.next_frame()) is not None:
        numbers.append(frame.number)
    return numbers


@pytest.mark.parametrize(
    "events",
    [
        event(REPORT, 1, 1, 1, 0, b"x")[:39],
        event(REPORT, 1, 1, 1, 0, b"x")[:-1],
        event(REPORT, 1, 1, 1, 0, b""),
        event(REPORT, 1, 1, 1, 0, bytes(65_512)),
        event(REPORT, 2**31, 1, 1, 0, b"x"),
        struct.pack("<I", 2**32 - 1) + bytes(100),
    ],
)
def test_events_that_cannot_be_are_assertions(events: bytes) -> None:
    with pytest.raises(AssertionError):
        Gate().ingress.release(events, 0, 0)


def test_reports_of_the_engine_arrive_as_they_are() -> None:
    gate = Gate()
    gate.feed(order(1) + order(2, flags=1))
    batch = gate.batch()
    ((session, connection, following, frames),) = gate.ingress.release(batch.events, 1, NOW_NS + 5)
    assert (session, connection, following) == (gate.session, 1, 3)
    reader = FrameReader(65_535)
    reader.feed(frames)
    first, second = reader.next_frame(), reader.next_frame()
    assert first is not None
    assert second is not None
    assert isinstance(wire.decode_venue(SEQUENCED, first.payload), OrderAccepted)
    assert isinstance(wire.decode_venue(SEQUENCED, second.payload), OrderRejected)
    assert (first.match_lag_ns, second.match_lag_ns) == (5, 5)
