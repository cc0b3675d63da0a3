"""Log-on: who gets in, and what everybody else is told."""

from typing import Any

import pytest

from exchange.node.limits import LINGER_S, REFUSALS_MAX
from protocol import wire
from protocol.admin import AdminAccepted, Key
from protocol.codes import RejectCode, TerminateCode
from protocol.framing import SEQUENCED, SESSION, UNSEQUENCED, encode_frame
from protocol.order_entry import (
    OrderAccepted,
    OrderFilled,
)
from protocol.transport import (
    Heartbeat,
    Hello,
    LogOnAccepted,
    LogOnRejected,
    Terminate,
)
from tests.exchange.node.market import (
    assert_ended,
    buy,
    is_gone,
    is_read,
    kinds,
    logged_on,
    make_world,
    sell,
)
from tests.exchange.node.world import ADMIN, EPOCH, MemoryTransport, private_key, public_key


def test_the_first_frame_is_a_greeting_with_a_fresh_nonce() -> None:
    world = make_world()
    hellos = [world.connect(2).read()[0] for _ in range(10)]
    assert all(isinstance(hello, Hello) and hello.venue == "venue" for hello in hellos)
    assert len({hello.nonce for hello in hellos}) == 10
    assert {hello.epoch for hello in hellos} == {EPOCH}, "the first term's"


def test_a_log_on_makes_a_session_and_orders_trade() -> None:
    world = make_world()
    buyer, seller = logged_on(world), logged_on(world, 3)
    assert buyer.accepted is not None
    assert (buyer.accepted.session_id, buyer.accepted.connection) == (2, 1)
    assert kinds(buyer.ask(buy(1))) == [OrderAccepted]
    assert kinds(seller.ask(sell(1))) == [OrderAccepted, OrderFilled]
    assert kinds(buyer.read()) == [OrderFilled]
    world.engine.check()


@pytest.mark.parametrize(
    ("key", "fields", "code", "field"),
    [
        (9, {}, RejectCode.UNKNOWN_KEY, 3),
        (2, {"signature": bytes(64)}, RejectCode.BAD_SIGNATURE, 11),
        (2, {"major": 2}, RejectCode.VERSION, 1),
        (2, {"keepalive_ms": 99}, RejectCode.KEEPALIVE_OUT_OF_RANGE, 7),
        (2, {"keepalive_ms": 30_001}, RejectCode.KEEPALIVE_OUT_OF_RANGE, 7),
        (2, {"cancel_on_disconnect": 4}, RejectCode.CANCEL_ON_DISCONNECT_OUT_OF_RANGE, 8),
        (2, {"cancel_grace_ms": 60_001}, RejectCode.CANCEL_ON_DISCONNECT_OUT_OF_RANGE, 9),
        (2, {"session": "a b"}, RejectCode.BAD_SESSION_NAME, 4),
        (2, {"session": ""}, RejectCode.BAD_SESSION_NAME, 4),
        (2, {"session": "x" * 17}, RejectCode.BAD_SESSION_NAME, 4),
        (2, {"next_number": 2}, RejectCode.NUMBER_AHEAD, 6),
        (2, {"client_nonce": bytes(31)}, RejectCode.INVALID_MESSAGE, 5),
    ],
)
def test_a_log_on_that_cannot_be_is_refused_by_field(
    key: int, fields: dict[str, Any], code: RejectCode, field: int
) -> None:
    world = make_world()
    peer = world.connect(key)
    answer = peer.log_on(**fields)
    assert isinstance(answer, LogOnRejected), answer
    assert (answer.code, answer.field) == (code, field)
    world.loop.run()
    assert peer.transport.is_gone
    assert world.engine.session_count == 1, "no session was made"
    assert isinstance(world.connect(2).log_on(), LogOnAccepted), "the numbers are free again"


def test_a_signature_over_other_fields_is_refused() -> None:
    world = make_world()
    peer = world.connect(2)
    signature = private_key(2).sign(b"something else")
    answer = peer.log_on(signature=signature)
    assert (answer.code, answer.field) == (RejectCode.BAD_SIGNATURE, 11)


def test_a_recorded_log_on_is_worthless_on_the_next_connection() -> None:
    world = make_world()
    recorded = world.connect(2).encode_log_on()
    other = world.connect(2)
    other.read()
    other.transport.deliver(recorded)
    world.loop.run()
    answer = wire.decode_venue(SESSION, bytes(other.transport.sent)[24:])
    assert isinstance(answer, LogOnRejected)
    assert answer.code == RejectCode.BAD_SIGNATURE


def test_a_revoked_key_is_unknown() -> None:
    world = make_world()
    admin = logged_on(world, ADMIN, "admin")
    assert kinds(admin.ask(Key(2, public_key(2), 0))) == [AdminAccepted]
    answer = world.connect(2).log_on()
    assert (answer.code, answer.field) == (RejectCode.UNKNOWN_KEY, 3)


def test_the_session_limit_is_said_by_the_engine() -> None:
    world = make_world(limits={"sessions_max": 2})
    logged_on(world)
    answer = world.connect(2, "another").log_on()
    assert (answer.code, answer.field, answer.limit) == (RejectCode.SESSION_LIMIT, 4, 2)


def test_one_connection_too_many_is_told_so() -> None:
    world = make_world(connections_max=2)
    peers = [logged_on(world, 2, f"s{i}") for i in range(2)]
    late = world.connect(2)
    hello, answer = late.read()
    assert isinstance(hello, Hello)
    assert (answer.code, answer.limit) == (RejectCode.CONNECTION_LIMIT, 2)
    world.loop.run()
    assert late.transport.is_gone
    peers[0].transport.lose()
    world.loop.run()
    assert kinds(world.connect(2).read()) == [Hello]


def test_more_refusals_than_can_be_told_are_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world(connections_max=1)
    logged_on(world)
    monkeypatch.setattr(MemoryTransport, "is_stubborn", True)
    told = [world.connect(2) for _ in range(REFUSALS_MAX)]
    assert all(kinds(peer.read()) == [Hello, LogOnRejected] for peer in told)
    silent = world.connect(2)
    assert silent.read() == []
    world.loop.run()
    assert is_gone(silent)
    assert not is_gone(told[0]), "it has a moment to read"
    world.loop.sleep(LINGER_S)
    assert all(is_gone(peer) for peer in told)
    assert len(world.venue.order_entry.connections) == 1


def test_a_newcomer_gets_the_place_of_the_oldest_that_does_not_log_on() -> None:
    world = make_world(connections_max=3)
    idle = [world.connect(2), world.connect(2)]
    trader = logged_on(world)
    newcomer = world.connect(3)
    assert kinds(newcomer.read()) == [Hello]
    hello, answer = idle[0].read()
    assert isinstance(hello, Hello)
    assert (answer.code, answer.limit) == (RejectCode.CONNECTION_LIMIT, 3)
    assert (
        answer.text == "dropped for a newcomer: the venue is full, and this one had not logged on"
    )
    world.loop.run()
    assert is_gone(idle[0])
    assert kinds(idle[1].read()) == [Hello], "the next one to go"
    assert kinds(trader.ask(buy(1))) == [OrderAccepted]
    assert world.venue.order_entry.evicted_count == 1
    assert world.venue.order_entry.log_on_reject_counts == {RejectCode.CONNECTION_LIMIT: 1}


@pytest.mark.parametrize("end", ["late", "garbage", "terminate"])
def test_what_has_ended_and_waits_to_be_closed_gives_no_second_answer(
    monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """A full house of connections that have ended, whose clients do not close."""
    world = make_world(connections_max=4)
    monkeypatch.setattr(MemoryTransport, "is_stubborn", True)
    peers = [world.connect(2) for _ in range(4)]
    for peer in peers:
        if end == "garbage":
            peer.transport.deliver(b"\xff" * 24)
        elif end == "terminate":
            peer.send(Terminate(TerminateCode.LOG_OUT, ""))
    world.loop.sleep(5.1 if end == "late" else 0)
    for _ in range(3 * REFUSALS_MAX):
        newcomer = world.connect(3)
        assert isinstance(newcomer.log_on(), LogOnAccepted)
        newcomer.transport.abort()
        world.loop.run()
        assert len(world.venue.order_entry.connections) <= 4 + REFUSALS_MAX
    assert world.venue.order_entry.evicted_count == 0


def test_a_log_on_under_way_keeps_its_place() -> None:
    world = make_world(connections_max=2)
    world.hold()
    first, second = world.connect(2), world.connect(3)
    first.send_log_on()
    newcomer = world.connect(2)
    assert kinds(second.read()) == [Hello, LogOnRejected], "the younger one was silent"
    world.finish()
    assert kinds(first.read()) == [LogOnAccepted]
    assert kinds(newcomer.read()) == [Hello]


def test_sockets_that_never_log_on_are_bounded_and_keep_nobody_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = make_world(connections_max=16)
    trader = logged_on(world)
    monkeypatch.setattr(MemoryTransport, "is_stubborn", True)
    for _ in range(500):
        world.connect(2)
        world.loop.run()
        assert len(world.venue.order_entry.connections) <= 16 + REFUSALS_MAX + 1
    assert kinds(trader.ask(buy(1))) == [OrderAccepted]
    newcomer = world.connect(3)
    assert isinstance(newcomer.log_on(), LogOnAccepted)
    assert world.venue.order_entry.evicted_count >= 485


def test_what_comes_after_the_last_word_is_read_and_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = make_world()
    monkeypatch.setattr(MemoryTransport, "is_stubborn", True)
    old = logged_on(world)
    logged_on(world)
    (last,) = old.read()
    assert last.code == TerminateCode.REPLACED
    for _ in range(10):
        old.transport.deliver(bytes(100_000))
    assert is_read(old), "unread bytes would turn the close into a reset"
    world.loop.sleep(LINGER_S)
    assert is_gone(old)
    assert world.venue.sequencer.failure is None


def test_what_follows_a_refused_log_on_is_read_and_dropped_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = make_world()
    monkeypatch.setattr(MemoryTransport, "is_stubborn", True)
    world.hold()
    peer = world.connect(2)
    peer.send_log_on(next_number=9)
    world.finish()
    assert kinds(peer.read()) == [LogOnRejected]
    peer.transport.deliver(bytes(100_000))
    assert is_read(peer)


def test_a_client_that_does_not_log_on_is_cut() -> None:
    world = make_world()
    peer = world.connect(2)
    world.loop.sleep(4.9)
    assert kinds(peer.read()) == [Hello]
    world.loop.sleep(0.2)
    assert_ended(world, peer, TerminateCode.LOG_ON_TIMEOUT)


@pytest.mark.parametrize("is_whole", [True, False], ids=["whole", "begun"])
@pytest.mark.parametrize("is_later", [True, False], ids=["later", "at once"])
def test_a_frame_before_the_log_on_is_answered_is_a_violation(
    is_whole: bool, is_later: bool
) -> None:
    world = make_world()
    world.hold()
    peer = world.connect(2)
    frame = encode_frame(SEQUENCED, 1, wire.encode(buy(1)))
    pieces = [peer.encode_log_on(), frame if is_whole else frame[:30]]
    for piece in pieces if is_later else [b"".join(pieces)]:
        peer.transport.deliver(piece)
        world.loop.run()
    world.finish()
    assert_ended(world, peer, TerminateCode.PROTOCOL_VIOLATION)
    world.finish()
    assert not world.engine.session(2).is_connected
    assert world.engine.session(2).last_client_number == 0
    assert isinstance(logged_on(world).accepted, LogOnAccepted)


def test_a_client_may_take_its_log_on_back() -> None:
    world = make_world()
    world.hold()
    peer = world.connect(2)
    goodbye = encode_frame(SESSION, 1, wire.encode(Terminate(TerminateCode.LOG_OUT, "")))
    peer.transport.deliver(peer.encode_log_on() + goodbye)
    world.finish()
    assert is_gone(peer)
    assert not world.engine.session(2).is_connected


@pytest.mark.parametrize(
    "frame",
    [
        encode_frame(SEQUENCED, 1, wire.encode(buy(1))),
        encode_frame(SESSION, 1, wire.encode(Heartbeat())),
        encode_frame(UNSEQUENCED, 1, b"\x90"),
    ],
    ids=["order", "heartbeat", "unsequenced"],
)
def test_anything_before_the_log_on_ends_the_connection(frame: bytes) -> None:
    world = make_world()
    peer = world.connect(2)
    peer.transport.deliver(frame)
    world.loop.run()
    assert_ended(world, peer, TerminateCode.PROTOCOL_VIOLATION)
