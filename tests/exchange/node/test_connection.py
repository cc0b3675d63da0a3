"""One connection of a venue in memory: log-on, take-over, refusals, keepalive, every way out."""

from typing import Any

import pytest

from exchange.node.limits import (
    COLD_FRAMES_PER_TURN_MAX,
    LINGER_S,
    UNREAD_SIZE_MAX,
    WRITE_SIZE_MAX,
    WRITE_WAIT_S,
)
from protocol import wire
from protocol.admin import AdminRejected, Participant
from protocol.codes import CancelReason, RejectCode, TerminateCode
from protocol.framing import HEADER, SEQUENCED, SESSION, UNSEQUENCED, encode_frame
from protocol.order_entry import (
    CancelOrder,
    CancelRejected,
    OrderAccepted,
    OrderFilled,
)
from protocol.transport import (
    Heartbeat,
    LogOnAccepted,
    LogOnRejected,
    LogOut,
    NotApplied,
    SessionReject,
    Terminate,
    VenueHeartbeat,
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
from tests.exchange.node.world import MemoryTransport, World

# Sessions.


def test_the_newcomer_wins_and_no_order_is_canceled() -> None:
    world = make_world()
    first = logged_on(world, cancel_on_disconnect=3)
    assert kinds(first.ask(buy(1))) == [OrderAccepted]
    second = logged_on(world, cancel_on_disconnect=3)
    assert second.accepted is not None
    assert second.accepted.connection == 2
    assert second.accepted.last_client_number == 1
    assert_ended(world, first, TerminateCode.REPLACED)
    world.loop.sleep(20)
    assert world.engine.open_order_count == 1
    assert world.engine.session(2).is_connected, "no disconnect was sequenced for the old one"


def test_frames_of_the_old_connection_are_dropped_from_the_take_over_on() -> None:
    world = make_world()
    world.hold()
    first = logged_on(world)
    second = world.connect(2)
    second.send_log_on()
    # The take-over is sequenced, not durable: what the old connection sends now is not taken.
    first.send(buy(1))
    world.finish()
    assert kinds(second.read()) == [LogOnAccepted]
    assert kinds(first.read()) == [Terminate]
    assert world.engine.open_order_count == 0
    assert world.engine.session(2).last_client_number == 0


def test_reports_before_a_take_over_still_reach_the_old_connection() -> None:
    world = make_world()
    world.hold()
    first = logged_on(world)
    first.send(buy(1))
    second = world.connect(2)
    second.send_log_on()
    world.finish()
    assert kinds(first.read()) == [OrderAccepted, Terminate]
    (answer,) = second.read()
    assert (answer.last_client_number, answer.next_number) == (1, 2)


def test_three_log_ons_of_one_session_in_one_batch() -> None:
    world = make_world()
    world.hold()
    peers = [world.connect(2) for _ in range(3)]
    for peer in peers:
        peer.send_log_on()
    world.finish()
    answers = [peer.read() for peer in peers]
    assert [kinds(answer) for answer in answers] == [
        [LogOnAccepted, Terminate],
        [LogOnAccepted, Terminate],
        [LogOnAccepted],
    ]
    assert [answer[0].connection for answer in answers] == [1, 2, 3]


def test_a_refusal_never_reaches_the_one_who_gets_the_numbers_next() -> None:
    world = make_world()
    world.hold()
    refused, good = world.connect(2), world.connect(2)
    refused.send_log_on(next_number=9)
    good.send_log_on()
    world.finish()
    assert kinds(refused.read()) == [LogOnRejected]
    assert kinds(good.read()) == [LogOnAccepted]


def test_nor_when_the_refused_one_is_gone_by_then() -> None:
    world = make_world()
    world.hold()
    refused, good = world.connect(2), world.connect(2)
    refused.send_log_on(next_number=9)
    refused.transport.lose()
    world.loop.turn()
    good.send_log_on()
    world.finish()
    assert kinds(good.read()) == [LogOnAccepted]


def test_a_client_that_leaves_before_its_log_on_is_durable_is_disconnected() -> None:
    world = make_world()
    world.hold()
    peer = world.connect(2)
    peer.send_log_on()
    peer.transport.lose()
    world.finish()
    assert world.engine.session_count == 2
    assert not world.engine.session(2).is_connected


def test_loss_cancels_after_the_grace_and_a_return_in_time_saves() -> None:
    world = make_world()
    options: Any = {"cancel_on_disconnect": 1, "cancel_grace_ms": 2_000}
    first = logged_on(world, **options)
    assert kinds(first.ask(buy(1))) == [OrderAccepted]
    first.transport.lose()
    world.loop.sleep(1.9)
    second = logged_on(world, **options)
    world.loop.sleep(5)
    assert world.engine.open_order_count == 1
    second.transport.lose()
    world.loop.sleep(1.99)
    assert world.engine.open_order_count == 1
    world.loop.sleep(0.02)
    assert world.engine.open_order_count == 0
    third = logged_on(world)
    assert third.accepted is not None
    assert third.accepted.next_number == 3, "accepted, canceled"


def test_a_log_out_is_answered_after_everything_before_it() -> None:
    world = make_world()
    peer = logged_on(world, cancel_on_disconnect=2)
    peer.send(buy(1))
    peer.send(LogOut())
    world.loop.run()
    messages = peer.read()
    assert kinds(messages) == [OrderAccepted, Terminate]
    assert messages[1].code == TerminateCode.LOG_OUT
    world.loop.sleep(0.01)
    assert world.engine.open_order_count == 0, "mode 2 cancels at log-out, without grace"
    assert not world.engine.session(2).is_connected


def test_a_restart_disconnects_everybody_and_the_session_goes_on() -> None:
    world = make_world()
    peer = logged_on(world)
    peer.ask(buy(1))
    world.venue.drain(lambda: None)
    world.loop.run()
    assert_ended(world, peer, TerminateCode.SHUTDOWN)
    assert world.venue.close() is None
    world.boot()
    assert not world.engine.session(2).is_connected
    again = logged_on(world)
    assert again.accepted is not None
    assert again.accepted.last_client_number == 1
    assert again.accepted.highest_client_order_id == 1
    (canceled,) = again.ask(CancelOrder(1))
    assert canceled.reason == CancelReason.REQUESTED


# Commands that are not hot.


def test_admin_commands_need_the_role() -> None:
    world = make_world()
    trader = logged_on(world)
    (answer,) = trader.ask(Participant("acme"))
    assert isinstance(answer, AdminRejected)
    assert answer.code == RejectCode.NOT_PERMITTED


def test_an_invalid_message_is_refused_by_field_and_the_session_goes_on() -> None:
    world = make_world()
    peer = logged_on(world)
    peer.machine.next_number = 3
    bad = wire.encode(buy(1)).replace(b"\xcd\x13\x88", b"\xa3abc")
    peer.transport.deliver(
        encode_frame(SEQUENCED, 1, bad) + encode_frame(SEQUENCED, 2, b"\x91\xcc\xfe")
    )
    world.loop.run()
    first, second = peer.read()
    assert isinstance(first, SessionReject)
    assert (first.number, first.request_tag) == (1, 10)
    assert (first.code, first.field) == (RejectCode.INVALID_MESSAGE, 5)
    assert "Expected `int`, got `str`" in first.text
    assert (second.number, second.code) == (2, RejectCode.UNKNOWN_TAG)
    assert kinds(peer.ask(buy(1))) == [OrderAccepted]
    assert world.engine.session(2).last_client_number == 3, "the numbers were consumed"


@pytest.mark.parametrize("tag", range(50, 56))
def test_the_sequencers_own_commands_cannot_be_sent(tag: int) -> None:
    world = make_world()
    peer = logged_on(world)
    peer.transport.deliver(encode_frame(SEQUENCED, 1, bytes([0x91, tag])))
    world.loop.run()
    (answer,) = peer.read()
    assert isinstance(answer, SessionReject)
    assert answer.code == RejectCode.UNKNOWN_TAG


def test_a_gap_is_answered_with_what_never_came() -> None:
    world = make_world()
    peer = logged_on(world)
    peer.machine.next_number = 5
    messages = peer.ask(buy(1))
    assert messages[0] == NotApplied(1, 4)
    assert kinds(messages) == [NotApplied, OrderAccepted]
    assert messages[1].number == 5


def test_a_barred_payload_is_refused_until_the_file_is_gone() -> None:
    world = make_world()
    payload = wire.encode(buy(1))
    name = world.venue.order_entry.barred.write_aside(payload, b"", ["a test"])
    restart(world)
    peer = logged_on(world)
    (answer,) = peer.ask(buy(1))
    assert isinstance(answer, SessionReject)
    assert (answer.number, answer.request_tag) == (1, 10)
    assert answer.code == RejectCode.PAYLOAD_BARRED
    assert kinds(peer.ask(buy(2))) == [OrderAccepted]
    world.barred.remove(name)
    restart(world)
    assert kinds(logged_on(world).ask(buy(3))) == [OrderAccepted]


def test_many_rare_frames_give_others_their_turn() -> None:
    world = make_world()
    flood, other = logged_on(world), logged_on(world, 3)
    count = 3 * COLD_FRAMES_PER_TURN_MAX
    frames = [encode_frame(SEQUENCED, n, b"\x91\xcc\xfe") for n in range(1, count + 1)]
    flood.transport.deliver(b"".join(frames))
    assert not is_read(flood)
    other.send(sell(1))
    world.loop.turn()
    assert kinds(other.read()) == [OrderAccepted]
    assert 0 < len(flood.read()) < count
    world.loop.run()
    assert is_read(flood)
    flood.machine.next_number = count + 1
    *rejects, accepted, filled = flood.ask(buy(1))
    assert (type(accepted), type(filled)) == (OrderAccepted, OrderFilled)
    assert [m.number for m in rejects] == list(range(2 * COLD_FRAMES_PER_TURN_MAX + 1, count + 1))


# Frames that cannot be.


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (HEADER.pack(23, SEQUENCED, 0, 1, 0, 0), TerminateCode.FRAME_SIZE),
        (HEADER.pack(4097, SEQUENCED, 0, 1, 0, 0), TerminateCode.FRAME_SIZE),
        (HEADER.pack(30, 0, 0, 1, 0, 0), TerminateCode.MALFORMED),
        (HEADER.pack(30, 4, 0, 1, 0, 0), TerminateCode.MALFORMED),
        (HEADER.pack(30, SEQUENCED, 0, 2**62, 0, 0), TerminateCode.MALFORMED),
        (encode_frame(UNSEQUENCED, 1, b"\x90"), TerminateCode.PROTOCOL_VIOLATION),
        (encode_frame(SESSION, 1, b"\xc1"), TerminateCode.MALFORMED),
        (b"GET / HTTP/1.1\r\nHost: venue\r\n\r\n", TerminateCode.FRAME_SIZE),
    ],
    ids=["short", "long", "kind 0", "kind 4", "number", "unsequenced", "garbage", "http"],
)
def test_a_broken_stream_ends_with_code_and_text(data: bytes, code: TerminateCode) -> None:
    world = make_world()
    before, peer = world.connect(2), logged_on(world)
    before.transport.deliver(data)
    peer.transport.deliver(encode_frame(SEQUENCED, 1, wire.encode(buy(1))) + data)
    world.loop.run()
    assert assert_ended(world, before, code).text
    assert assert_ended(world, peer, code).text
    assert world.engine.open_order_count == 1, "what came before is taken"
    assert not world.engine.session(2).is_connected


def test_a_terminate_of_the_client_ends_it_whatever_follows() -> None:
    world = make_world()
    peer = logged_on(world)
    goodbye = encode_frame(SESSION, 1, wire.encode(Terminate(TerminateCode.LOG_OUT, "")))
    peer.transport.deliver(goodbye + encode_frame(SEQUENCED, 3, wire.encode(buy(1))))
    world.loop.run()
    assert is_gone(peer)
    assert peer.read() == []
    assert world.engine.open_order_count == 0
    assert not world.engine.session(2).is_connected


def test_a_second_log_on_ends_the_connection() -> None:
    world = make_world()
    peer = logged_on(world)
    peer.transport.deliver(world.connect(2).encode_log_on())
    world.loop.run()
    assert_ended(world, peer, TerminateCode.PROTOCOL_VIOLATION)


# The clock.


def test_an_idle_venue_sends_heartbeats_and_hears_those_of_the_client() -> None:
    world = make_world()
    peer = logged_on(world, keepalive_ms=1_000)
    for _ in range(10):
        world.loop.sleep(1)
        peer.send(Heartbeat())
        world.loop.run()
        assert kinds(peer.read()) == [VenueHeartbeat]


def test_traffic_is_no_heartbeat_and_keeps_the_connection() -> None:
    world = make_world()
    peer = logged_on(world, keepalive_ms=1_000)
    for number in range(1, 20):
        world.loop.sleep(0.9)
        assert kinds(peer.ask(buy(number))) == [OrderAccepted]
    world.loop.sleep(1)
    assert peer.read() == [VenueHeartbeat(19)]


def test_a_silent_client_is_lost_after_three_intervals() -> None:
    world = make_world()
    peer = logged_on(world, keepalive_ms=100, cancel_on_disconnect=1)
    peer.ask(buy(1))
    world.loop.sleep(0.29)
    assert set(kinds(peer.read())) == {VenueHeartbeat}
    world.loop.sleep(0.05)
    assert_ended(world, peer, TerminateCode.KEEPALIVE_LAPSED)
    world.loop.sleep(0.01)
    assert world.engine.open_order_count == 0


def test_a_lapsed_client_that_does_not_close_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world()
    monkeypatch.setattr(MemoryTransport, "is_stubborn", True)
    peer = logged_on(world, keepalive_ms=100)
    world.loop.sleep(0.4)
    assert peer.read()[-1].code == TerminateCode.KEEPALIVE_LAPSED
    assert not is_gone(peer)
    world.loop.sleep(LINGER_S)
    assert is_gone(peer)


def test_a_venue_that_was_held_up_does_not_blame_its_clients() -> None:
    world = make_world()
    peer = logged_on(world, keepalive_ms=100)
    # The loop stands still for a second; the heartbeats are in the socket, not read yet.
    world.loop.now_ns += 1_000_000_000
    world.loop.call_later(0.001, peer.send, Heartbeat())
    world.loop.sleep(0.05)
    assert set(kinds(peer.read())) == {VenueHeartbeat}


def test_a_peer_that_the_venue_does_not_read_is_not_blamed() -> None:
    world = make_world()
    peer = logged_on(world, keepalive_ms=100)
    world.hold()
    peer.send(buy(1))
    world.loop.run()
    for number in range(2, 8_002):
        peer.send(CancelOrder(number))
    assert not is_read(peer), "the batch is full, for cancels too, and the disk does not answer"
    world.loop.sleep(5)
    world.finish()
    assert not is_gone(peer)
    assert kinds(peer.read()).count(CancelRejected) == 8_000


def test_a_step_of_the_wall_clock_ends_nobody() -> None:
    world = make_world()
    peer = logged_on(world, keepalive_ms=1_000)
    first = peer.ask(buy(1))[0]
    world.clock.offset_ns = 3_600_000_000_000
    later = peer.ask(buy(2))[0]
    world.clock.offset_ns = -3_600_000_000_000
    last = peer.ask(buy(3))[0]
    assert later.time_ns - first.time_ns == 3_600_000_000_000
    assert last.time_ns == later.time_ns, "sequenced time does not go back"
    world.loop.sleep(0.5)
    assert kinds(peer.read()) == []


# Peers that do not read, and bytes that pile up.


def test_a_client_that_does_not_read_is_not_read_and_then_cut() -> None:
    world = make_world()
    peer = logged_on(world)
    peer.transport.is_stalled = True
    payload = b"".join(encode_frame(SEQUENCED, n, wire.encode(buy(n))) for n in range(1, 10_001))
    peer.transport.deliver(payload)
    world.loop.run()
    assert not is_read(peer), "nothing more is read from it"
    assert peer.transport.unsent_size_max < 2 * WRITE_SIZE_MAX
    world.loop.sleep(WRITE_WAIT_S - 1)
    assert not is_gone(peer)
    world.loop.sleep(1.1 + LINGER_S)
    assert is_gone(peer)
    assert not world.engine.session(2).is_connected


def test_a_client_that_reads_again_in_time_is_kept() -> None:
    world = make_world()
    peer = logged_on(world)
    peer.transport.is_stalled = True
    count = 6_000
    payload = b"".join(encode_frame(SEQUENCED, n, wire.encode(buy(n))) for n in range(1, count + 1))
    peer.transport.deliver(payload)
    world.loop.run()
    messages = peer.read()
    peer.transport.resume_peer()
    while len(messages) < count:
        world.loop.run()
        more = peer.read()
        assert more, "it goes on"
        messages += more
    assert [m.number for m in messages] == list(range(1, count + 1))
    world.loop.sleep(WRITE_WAIT_S + 1)
    assert not peer.transport.is_gone


def test_fills_for_a_client_that_does_not_read_end_in_slow_consumer() -> None:
    world = make_world()
    maker, taker = logged_on(world), logged_on(world, 3)
    count = 40_000
    for peer, order in ((maker, buy), (taker, sell)):
        frames = (encode_frame(SEQUENCED, n, wire.encode(order(n))) for n in range(1, count + 1))
        peer.transport.deliver(b"".join(frames))
        world.loop.run()
        peer.read()
        maker.transport.is_stalled = True
    assert maker.transport.is_closing()
    assert maker.transport.unsent_size_max < 2 * WRITE_SIZE_MAX
    world.loop.sleep(LINGER_S + 0.1)
    assert maker.transport.is_gone


def test_a_transport_that_does_not_stop_reading_is_bounded() -> None:
    world = make_world()
    peer = logged_on(world)
    world.hold()
    peer.send(buy(1))
    world.loop.run()
    flood = [encode_frame(SEQUENCED, n, wire.encode(CancelOrder(n))) for n in range(2, 8_002)]
    peer.transport.deliver(b"".join(flood))
    assert not is_read(peer)
    for _ in range(UNREAD_SIZE_MAX // 100_000 + 2):
        if not peer.transport.is_gone:
            peer.connection.data_received(bytes(100_000))
    world.loop.run()
    assert is_gone(peer)
    assert peer.connection.reason == "PROTOCOL_VIOLATION"


# The end.


def test_the_log_says_who_came_and_why_they_went() -> None:
    world = make_world()
    world.lines.clear()
    logged_on(world)
    logged_on(world)
    world.loop.run()
    world.connect(9).log_on()
    peer = logged_on(world, 3)
    peer.transport.deliver(encode_frame(SESSION, 1, wire.encode(Terminate(60_000, "x"))))
    world.loop.run()
    assert [line.split("level=info ")[1] for line in world.lines] == [
        "event=log_on session=2 connection=1 peer=10.0.0.1:1",
        "event=log_on session=2 connection=2 peer=10.0.0.1:1",
        "event=log_off session=2 connection=1 reason=REPLACED",
        "event=log_on_rejected code=UNKNOWN_KEY peer=10.0.0.1:1",
        "event=log_on session=3 connection=1 peer=10.0.0.1:1",
        "event=log_off session=3 connection=1 reason=CLIENT_60000",
    ]


def test_a_stopping_venue_refuses_by_name_and_says_goodbye() -> None:
    world = make_world()
    world.hold()
    peer = logged_on(world)
    greeted = world.connect(3)
    peer.send(buy(1))
    told: list[bool] = []
    world.venue.drain(lambda: told.append(True))
    peer.send(buy(2))
    greeted.send_log_on()
    late = world.connect(3)
    world.loop.run()
    assert not told, "the order is not durable yet"
    world.finish()
    assert told == [True]
    messages = peer.read()
    assert kinds(messages) == [SessionReject, OrderAccepted, Terminate]
    assert (messages[0].number, messages[0].code) == (2, RejectCode.SHUTTING_DOWN)
    assert messages[2].code == TerminateCode.SHUTDOWN
    (refused,) = greeted.read()
    assert refused.code == RejectCode.SHUTTING_DOWN
    assert late.read()[1].code == RejectCode.SHUTTING_DOWN
    assert world.venue.close() is None
    assert "clean-stop" in world.disk.names()
    world.boot()
    assert world.engine.open_order_count == 1


def restart(world: World) -> None:
    assert world.venue.close() is None
    world.boot()
