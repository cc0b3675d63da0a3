"""Token buckets: their arithmetic against a simple model, and the refusals of the compiled path."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exchange.node.ingress import COLD, DRAINED, FULL, REFUSAL_TEXTS, REFUSED, Ingress
from exchange.node.limits import PRESSURE_RETRY_NS
from protocol import wire
from protocol.admin import Event, Participant
from protocol.codes import RejectCode
from protocol.framing import SEQUENCED, UNSEQUENCED, FrameReader, encode_frame
from protocol.order_entry import CancelOrder, NewOrder, ReplaceOrder
from protocol.records import COMMAND_HEAD
from protocol.transport import SessionReject
from tests.exchange.node.market import open_market
from tests.exchange.node.world import World

NOW_NS = 1_900_000_000_000_000_000
SECOND_NS = 10**9
NOT_MEASURED = 65_535


class Gate:
    """An ingress of its own to a market; sessions 2 and 3 are attached."""

    def __init__(self, *budgets: tuple[int, int]) -> None:
        world = World()
        world.boot()
        open_market(world)
        for key in (2, 3):
            world.connect(key).log_on()
        self.engine = world.engine
        self.ingress = Ingress(self.engine.hot)
        if budgets:
            self.ingress.set_budgets(*budgets)
        for session in (2, 3):
            self.ingress.attach(session, 1, 0)

    def feed(self, data: bytes, now_ns: int = NOW_NS, session: int = 2) -> int:
        """Feed all of it, as Python does; the status at the end."""
        offset, status = self.ingress.feed(session, 1, data, 0, now_ns)
        assert (offset == len(data)) is (status == DRAINED)
        return status

    def refusals(self) -> list[SessionReject]:
        reader = FrameReader(65_535)
        reader.feed(self.ingress.take_refusals(7, 99))
        found = []
        while (frame := reader.next_frame()) is not None:
            assert frame[:5] == (UNSEQUENCED, 0, 7, 99, 0)
            message = wire.decode_venue(UNSEQUENCED, frame.payload)
            assert isinstance(message, SessionReject)
            assert wire.encode(message) == frame.payload, "as msgspec writes it"
            found.append(message)
        return found

    def budgets(self) -> list[int]:
        """Of the commands in the open batch, which is closed."""
        if not self.engine.batch_count:
            return []
        commands, offset, found = self.engine.take_batch().commands, 0, []
        while offset < len(commands):
            head = COMMAND_HEAD.unpack_from(commands, offset)
            found.append(head[3])
            offset += head[0]
        return found


def order(number: int, **fields: Any) -> bytes:
    message = NewOrder(number, 1, 1, 1, 5_000, 100, **fields)
    return encode_frame(SEQUENCED, number, wire.encode(message))


def cancel(number: int) -> bytes:
    return encode_frame(SEQUENCED, number, wire.encode(CancelOrder(number)))


class Bucket:
    """A bucket with exact fractions: full at first, one token a command."""

    def __init__(self, per_second: int, burst: int) -> None:
        self._rate = Fraction(per_second, SECOND_NS)
        self._burst = burst
        self._tokens = Fraction(burst)
        self._time_ns = 0

    def take(self, now_ns: int) -> tuple[bool, int]:
        """Whether there was a token; how many whole ones are left, or how long to wait for one."""
        if now_ns > self._time_ns:
            gained = (now_ns - self._time_ns) * self._rate
            self._tokens = min(Fraction(self._burst), self._tokens + gained)
            self._time_ns = now_ns
        if self._tokens >= 1:
            self._tokens -= 1
            return True, int(self._tokens)
        return False, -int(-(1 - self._tokens) / self._rate // 1)


SHARED = Gate()
PARAMETERS = st.one_of(st.integers(1, 20), st.integers(1, 10**6), st.just(10**6))


@settings(max_examples=150, deadline=None)
@given(
    per_second=PARAMETERS,
    burst=PARAMETERS,
    steps=st.lists(
        st.one_of(
            st.integers(-5, 5),
            st.integers(0, 10**9),
            st.integers(0, 10**13),
            st.sampled_from(["wait", "almost"]),
        ),
        max_size=60,
    ),
)
def test_a_bucket_is_exact(per_second: int, burst: int, steps: list[Any]) -> None:
    ingress = Ingress(SHARED.engine.hot)
    ingress.set_budgets((per_second, burst), (1, 1), (1, 1))
    ingress.attach(2, 1, 0)
    model = Bucket(per_second, burst)
    now_ns, wait_ns = NOW_NS, 0
    for number, step in enumerate(steps, 1):
        if isinstance(step, str):
            now_ns += max(0, wait_ns - (step == "almost"))
        else:
            now_ns += step
        is_taken, rest = model.take(now_ns)
        frame = order(number)
        assert ingress.feed(2, 1, frame, 0, now_ns) == (len(frame), DRAINED)
        refusals = ingress.take_refusals(1, 0)
        if is_taken:
            assert not refusals
            batch = SHARED.engine.take_batch()
            assert COMMAND_HEAD.unpack_from(batch.commands)[3] == min(rest, 65_534)
            wait_ns = 0
        else:
            message = wire.decode_venue(UNSEQUENCED, refusals[24:])
            assert isinstance(message, SessionReject)
            assert message.retry_after_ns == rest
            wait_ns = rest


def test_what_is_told_about_trying_again_is_exact() -> None:
    gate = Gate((3, 2), (1, 1), (1, 1))
    assert gate.feed(order(1) + order(2) + order(3)) == DRAINED
    (refusal,) = gate.refusals()
    assert refusal == SessionReject(
        3,
        10,
        RejectCode.THROTTLED,
        0,
        333_333_334,
        "more new orders and replaces than a session may send",
    )
    assert gate.budgets() == [1, 0]
    gate.feed(order(4), NOW_NS + 333_333_333)
    assert [one.retry_after_ns for one in gate.refusals()] == [1]
    gate.feed(order(5), NOW_NS + 333_333_334)
    assert gate.refusals() == []
    assert gate.ingress.last_number(2) == 5, "refused ones have spent their number too"
    assert gate.budgets() == [0]


def test_three_buckets_for_three_kinds_of_commands() -> None:
    gate = Gate((1, 2), (1, 3), (1, 1))
    replace = wire.encode(ReplaceOrder(9, 1, 0, 5_000, 100))
    assert gate.feed(order(1)) == DRAINED
    assert gate.feed(encode_frame(SEQUENCED, 2, replace)) == DRAINED
    gate.feed(encode_frame(SEQUENCED, 3, replace) + cancel(4) + cancel(5) + cancel(6) + cancel(7))
    found = gate.refusals()
    assert [(one.number, one.request_tag, one.text) for one in found] == [
        (3, 12, REFUSAL_TEXTS[0]),
        (7, 11, REFUSAL_TEXTS[1]),
    ]
    assert gate.budgets() == [1, 0, 2, 1, 0]
    participant = wire.encode(Participant("acme"))
    assert gate.feed(encode_frame(SEQUENCED, 8, participant)) == COLD
    assert gate.feed(encode_frame(SEQUENCED, 8, participant)) == COLD, "it has cost nothing yet"
    gate.ingress.take(2, 8)
    assert gate.feed(encode_frame(SEQUENCED, 9, participant)) == DRAINED
    assert [(one.number, one.request_tag) for one in gate.refusals()] == [(9, 30)]
    counts = [gate.ingress.throttled_count(bucket) for bucket in range(4)]
    assert counts == [1, 1, 1, 0]
    assert gate.ingress.refusal_count(RejectCode.THROTTLED) == 3


def test_an_invalid_order_costs_a_token_of_the_others() -> None:
    gate = Gate((1, 1), (1, 1), (1, 1))
    bad = wire.encode(NewOrder(1, 1, 1, 1, 5_000, 100)) + b"\x00"
    assert gate.feed(encode_frame(SEQUENCED, 1, bad)) == COLD
    gate.ingress.take(2, 1)
    assert gate.feed(encode_frame(SEQUENCED, 2, bad) + order(3)) == DRAINED
    assert [(one.number, one.request_tag) for one in gate.refusals()] == [(2, 10)]


def test_buckets_are_the_sessions_and_survive_its_connections() -> None:
    gate = Gate((1, 1), (1, 1), (1, 1))
    assert gate.feed(order(1) + order(2)) == DRAINED
    assert len(gate.refusals()) == 1
    gate.ingress.detach(2, 1)
    gate.ingress.attach(2, 1, 2)
    gate.feed(order(3))
    assert len(gate.refusals()) == 1, "a new connection is no new bucket"
    gate.feed(order(1), session=3)
    assert gate.refusals() == [], "the other session has its own"


@pytest.mark.parametrize("make", [order, cancel])
def test_a_command_that_meets_a_full_batch_costs_nothing(make: Callable[[int], bytes]) -> None:
    count = 8_000
    gate = Gate((1, count), (1, count), (1, 1))
    data = b"".join(make(number) for number in range(1, count + 2))
    offset, status = gate.ingress.feed(2, 1, data, 0, NOW_NS)
    assert status == FULL
    taken = 0
    while status == FULL:
        assert gate.ingress.feed(2, 1, data, offset, NOW_NS) == (offset, FULL)
        taken += len(gate.budgets())
        offset, status = gate.ingress.feed(2, 1, data, offset, NOW_NS)
    assert status == DRAINED
    taken += len(gate.budgets())
    assert (taken, len(gate.refusals())) == (count, 1)


def test_unmeasured_and_generous_budgets_in_the_envelope() -> None:
    gate = Gate()
    gate.feed(order(1) + cancel(2))
    assert gate.budgets() == [NOT_MEASURED, NOT_MEASURED]
    gate.ingress.set_budgets((1, 10**6), (1, 65_536), (1, 1))
    gate.feed(order(3) + cancel(4) + cancel(5) + cancel(6))
    assert gate.budgets() == [65_534, 65_534, 65_534, 65_533]


@pytest.mark.parametrize("pair", [(0, 1), (1, 0), (10**6 + 1, 1), (1, 10**6 + 1), (-1, 1)])
def test_a_budget_that_would_not_fit_is_our_own_error(pair: tuple[int, int]) -> None:
    with pytest.raises(AssertionError, match="are no budget"):
        Gate((1, 1), pair, (1, 1))


# Refusals.


def test_refusals_stop_when_their_buffer_is_full_and_go_on() -> None:
    gate = Gate((1, 1), (1, 1), (1, 1))
    count = 3_000
    data = b"".join(order(number) for number in range(1, count + 2))
    offset, status, found = 0, REFUSED, []
    while status == REFUSED:
        offset, status = gate.ingress.feed(2, 1, data, offset, NOW_NS)
        assert gate.ingress.refusals_size <= 65_536
        found += gate.refusals()
        assert gate.ingress.refusals_size == 0
    assert (offset, status) == (len(data), DRAINED)
    assert [one.number for one in found] == list(range(2, count + 2))


def test_the_refusals_of_one_connection_do_not_go_to_another() -> None:
    gate = Gate((1, 1), (1, 1), (1, 1))
    gate.feed(order(1) + order(2))
    with pytest.raises(AssertionError, match="refusals of another feed"):
        gate.feed(order(1), session=3)


def test_orders_are_refused_under_pressure_and_cancels_are_not() -> None:
    gate = Gate()
    gate.ingress.is_pressed = True
    assert gate.feed(order(1) + cancel(2) + order(3)) == DRAINED
    found = gate.refusals()
    assert [one.number for one in found] == [1, 3]
    assert {(one.code, one.retry_after_ns, one.text) for one in found} == {
        (RejectCode.BACK_PRESSURE, PRESSURE_RETRY_NS, "the journal is slow; cancels are taken")
    }
    assert gate.engine.batch_count == 1
    assert gate.ingress.refusal_count(RejectCode.BACK_PRESSURE) == 2
    assert gate.ingress.throttled_count(0) == 0


def test_only_cancels_pass_those_who_wait() -> None:
    gate = Gate()
    gate.ingress.is_held = True
    data = cancel(1) + order(2)
    assert gate.ingress.feed(2, 1, data, 0, NOW_NS) == (len(cancel(1)), FULL)
    participant = encode_frame(SEQUENCED, 1, wire.encode(Participant("acme")))
    assert gate.ingress.feed(3, 1, participant, 0, NOW_NS) == (0, FULL)
    assert gate.engine.batch_count == 1


def test_the_last_quarter_of_a_batch_is_for_cancels() -> None:
    gate = Gate()
    orders = b"".join(order(number) for number in range(1, 8_001))
    offset, status = gate.ingress.feed(2, 1, orders, 0, NOW_NS)
    assert status == FULL
    quarter = 256 * 1024 // 4
    assert quarter <= 256 * 1024 - gate.engine.batch_size < quarter + 1_024
    cold = encode_frame(SEQUENCED, 1, wire.encode(Event("E", 1, 128 * "t", "USD")))
    assert gate.ingress.feed(3, 1, cold, 0, NOW_NS) == (0, FULL)
    cancels = b"".join(cancel(number) for number in range(1, 8_001))
    offset, status = gate.ingress.feed(3, 1, cancels, 0, NOW_NS)
    assert status == FULL
    assert offset > 1_000 * len(cancel(1))
    assert 256 * 1024 - gate.engine.batch_size < 1_024


@settings(max_examples=500, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=40),
        st.tuples(
            st.sampled_from([b"\x90", b"\x91", b"\x9f", b"\xdc\x00\x01", b"\xdd\x00\x00\x00\x01"]),
            st.one_of(
                st.integers(-(2**63), 2**64 - 1).map(wire.encode),
                st.binary(max_size=9).map(lambda tail: b"\xcc" + tail),
                st.sampled_from(range(0xCC, 0xD4)).flatmap(
                    lambda head: st.binary(max_size=9).map(lambda tail: bytes([head]) + tail)
                ),
            ),
        ).map(b"".join),
    )
)
def test_the_tag_in_a_refusal_is_the_one_that_python_reads(payload: bytes) -> None:
    ingress = Ingress(SHARED.engine.hot)
    ingress.set_budgets((1, 1), (1, 1), (1, 1))
    ingress.attach(2, 1, 0)
    # The bucket of the others is emptied with something that is no command.
    assert ingress.feed(2, 1, encode_frame(SEQUENCED, 1, b""), 0, NOW_NS) == (0, COLD)
    ingress.take(2, 1)
    frame = encode_frame(SEQUENCED, 2, payload)
    assert ingress.feed(2, 1, frame, 0, NOW_NS) == (len(frame), DRAINED)
    message = wire.decode_venue(UNSEQUENCED, ingress.take_refusals(1, 0)[24:])
    assert isinstance(message, SessionReject)
    assert message.request_tag == wire.peek_tag(payload)
