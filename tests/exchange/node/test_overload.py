"""Overload: cancels are answered, memory is bounded, others are undisturbed, every refusal has its
code and its time. Virtual time: what is counted is answers and bytes."""

from random import Random
from typing import Any

import pytest

from exchange.node import sequencer as sequencer_module
from exchange.node.limits import (
    LINGER_S,
    PRESSURE_NS,
    PRESSURE_RETRY_NS,
    UNREAD_SIZE_MAX,
    WRITE_SIZE_HIGH,
    WRITE_SIZE_MAX,
    WRITE_WAIT_S,
)
from protocol import wire
from protocol.admin import Participant
from protocol.codes import RejectCode, TerminateCode
from protocol.framing import SEQUENCED, SESSION, encode_frame
from protocol.order_entry import (
    CancelOrder,
    CancelRejected,
    NewOrder,
    OrderAccepted,
    OrderCanceled,
    ReplaceOrder,
)
from protocol.transport import (
    Heartbeat,
    LogOnAccepted,
    LogOnRejected,
    LogOut,
    SessionReject,
    StateRequest,
    Terminate,
)
from tests.exchange.node.market import buy, is_gone, is_read, kinds, logged_on, make_world, sell
from tests.exchange.node.streams import check_numbers, take_frames
from tests.exchange.node.world import Peer, World

PRESSURE_S = PRESSURE_NS / 10**9
HEARTBEAT = encode_frame(SESSION, 0, wire.encode(Heartbeat()))


def send_all(peer: Peer, messages: list[Any]) -> None:
    """Deliver many at once."""
    first = peer.machine.next_number
    frames = [encode_frame(SEQUENCED, first + i, wire.encode(m)) for i, m in enumerate(messages)]
    peer.machine.next_number = first + len(messages)
    peer.transport.deliver(b"".join(frames))


def resting(quantity: int, number: int) -> NewOrder:
    """A bid that nobody meets."""
    return NewOrder(number, 1, 1, 1, 100, quantity)


def throttled(*budgets: tuple[int, int]) -> World:
    """An open market, whose sessions have these budgets from now on."""
    world = make_world()
    world.venue.order_entry.ingress.set_budgets(*budgets)
    return world


# Budgets.


@pytest.mark.parametrize("seed", range(3))
def test_a_connection_at_a_hundred_times_its_budget(seed: int) -> None:
    """A second of a connection that sends 100 times what it may, in thousand pieces: exactly its
    budget is taken, everything else is refused, and another trader's orders are all answered."""
    dice = Random(seed)
    world = throttled((100, 50), (200, 60), (10, 5))
    flood, other = logged_on(world), logged_on(world, 3)
    sent: dict[type, int] = {NewOrder: 0, CancelOrder: 0, Participant: 0}
    answers: list[Any] = []
    order_id = 0
    answered = 0
    for step in range(1_000):
        batch: list[Any] = []
        for _ in range(21):
            order_id += 1
            order: Any = NewOrder(order_id, 1, 1, 1, 100, 100)
            cancel, rare = CancelOrder(dice.randrange(1, order_id + 1)), Participant("acme")
            batch += [order] * (dice.random() < 0.5) + [cancel] * (dice.random() < 0.9)
            batch += [rare] * (dice.random() < 0.05)
        for message in batch:
            sent[type(message)] += 1
        send_all(flood, batch)
        if step % 20 == 0:
            answered += 1
            other.send(sell(answered))
        world.loop.sleep(0.001)
        answers += flood.read()
    found = {kind: kinds(answers).count(kind) for kind in set(kinds(answers))}
    assert len(answers) == sum(sent.values()), f"seed {seed}: every command is answered"
    # In a second the budget and the burst, but for what the last millisecond still gains.
    assert found[OrderAccepted] in (149, 150)
    assert found.get(OrderCanceled, 0) + found[CancelRejected] in (259, 260)
    refusals = [m for m in answers if isinstance(m, SessionReject)]
    assert {m.code for m in refusals} == {RejectCode.THROTTLED}
    assert all(0 < m.retry_after_ns <= 10**8 for m in refusals)
    by_tag = {tag: sum(m.request_tag == tag for m in refusals) for tag in (10, 11, 30)}
    assert by_tag[10] == sent[NewOrder] - found[OrderAccepted]
    assert by_tag[11] > 15_000
    assert len(other.read()) == answered == 50
    assert flood.transport.unsent_size_max < WRITE_SIZE_HIGH
    ingress = world.venue.order_entry.ingress
    assert sum(ingress.throttled_count(bucket) for bucket in range(3)) == len(refusals)


def test_cancels_have_their_own_budget() -> None:
    world = throttled((1, 10), (1, 10), (1, 1))
    peer = logged_on(world)
    send_all(peer, [resting(100, number) for number in range(1, 31)])
    send_all(peer, [CancelOrder(number) for number in range(1, 13)])
    world.loop.run()
    frames = take_frames(peer)
    check_numbers(frames, 1)
    messages = [wire.decode_venue(frame.kind, frame.payload) for frame in frames]
    assert kinds(messages).count(OrderAccepted) == 10
    assert kinds(messages).count(OrderCanceled) == 10
    assert kinds(messages).count(SessionReject) == 20 + 2
    world.loop.sleep(2)
    send_all(peer, [CancelOrder(11), CancelOrder(12), CancelOrder(13)])
    world.loop.run()
    frames = take_frames(peer)
    check_numbers(frames, 21)
    messages = [wire.decode_venue(frame.kind, frame.payload) for frame in frames]
    assert kinds(messages) == [SessionReject, CancelRejected, CancelRejected]


def test_refused_commands_are_not_in_the_journal_and_their_numbers_are_spent() -> None:
    world = throttled((1, 2), (1, 1), (1, 1))
    peer = logged_on(world)
    sequence = world.engine.sequence
    send_all(peer, [resting(100, number) for number in range(1, 6)])
    world.loop.run()
    assert world.engine.sequence == sequence + 2
    assert [m.number for m in peer.read()] == [3, 4, 5, 1, 2], "refusals wait for nothing"
    again = logged_on(world)
    assert again.accepted is not None
    assert again.accepted.last_client_number == 2


# Clients that do not read.


def test_four_connections_that_never_read_are_bounded_and_end_with_the_reason() -> None:
    world = make_world()
    deaf = [logged_on(world, 2, f"deaf-{i}") for i in range(4)]
    good = logged_on(world, 3)
    for peer in deaf:
        peer.transport.is_stalled = True
    asked = 0
    for step in range(400):
        for peer in deaf:
            if is_read(peer) and not peer.transport.is_closing():
                first = 1 + step * 100
                send_all(peer, [resting(100, n) for n in range(first, first + 100)])
        asked += 1
        good.send(sell(asked))
        world.loop.run()
        assert len(good.read()) >= 1, "the others are undisturbed"
    for peer in deaf:
        assert not is_read(peer)
        assert peer.transport.unsent_size_max < WRITE_SIZE_HIGH + 64 * 1024
        assert len(peer.connection._unread) <= UNREAD_SIZE_MAX
    world.loop.sleep(WRITE_WAIT_S)
    for peer in deaf:
        peer.transport.resume_peer()
        world.loop.run()
        last = take_frames(peer)[-1]
        message = wire.decode_venue(SESSION, last.payload)
        assert message == Terminate(
            TerminateCode.SLOW_CONSUMER, "the client does not read what it is sent"
        )
        assert is_gone(peer)
    assert world.venue.order_entry.slow_consumer_count == 4
    assert kinds(good.ask(sell(asked + 1))) == [OrderAccepted]


def test_fills_for_connections_that_never_read_are_bounded_too() -> None:
    world = make_world()
    deaf = [logged_on(world, 2, f"deaf-{i}") for i in range(4)]
    good = logged_on(world, 3)
    for peer in deaf:
        for first in range(1, 10_001, 1_000):
            send_all(peer, [buy(n) for n in range(first, first + 1_000)])
            world.loop.run()
            peer.read()
        peer.transport.is_stalled = True
    for number in range(1, 4_001):
        good.send(sell(number, 1_000))
        if number % 50 == 0:
            world.loop.run()
            good.read()
    assert world.engine.open_order_count == 0
    for peer in deaf:
        assert peer.transport.unsent_size_max <= WRITE_SIZE_MAX + 1024 * 1024
    world.loop.sleep(WRITE_WAIT_S + LINGER_S + 0.1)
    assert all(is_gone(peer) for peer in deaf)
    assert world.venue.order_entry.slow_consumer_count == 4


@pytest.mark.parametrize("kind", ["throttled", "invalid", "images", "mixed"])
def test_refusals_that_nobody_reads_stop_the_reading(kind: str) -> None:
    is_throttled = kind in ("throttled", "mixed")
    world = throttled((1, 1), (1, 1), (1, 1)) if is_throttled else make_world()
    peer = logged_on(world)
    peer.transport.is_stalled = True
    count = 40_000
    data: dict[str, list[bytes]] = {
        "throttled": [encode_frame(SEQUENCED, n, b"\x91\x0a") for n in range(1, count + 1)],
        "invalid": [encode_frame(SEQUENCED, n, b"\x91\x0a") for n in range(1, count + 1)],
        "images": [encode_frame(SESSION, 1, wire.encode(StateRequest()))] * count,
        "mixed": [
            encode_frame(SEQUENCED, n, b"") + (HEARTBEAT if n % 500 == 0 else b"")
            for n in range(1, count + 1)
        ],
    }
    peer.transport.deliver(b"".join(data[kind]))
    world.loop.run()
    assert not is_read(peer)
    assert peer.transport.unsent_size_max < WRITE_SIZE_HIGH + 2 * 64 * 1024
    answers = len(take_frames(peer))
    peer.transport.resume_peer()
    while True:
        world.loop.run()
        more = len(take_frames(peer))
        if not more:
            break
        answers += more
    assert is_read(peer)
    assert answers >= count, "every command is answered at last"


# A journal that is slow.


def stuck(world: World) -> None:
    """A commit is under way that does not end."""
    world.hold()
    starter = logged_on_now(world)
    starter.send(LogOut())
    world.loop.run()
    assert world.committer.is_busy


def logged_on_now(world: World) -> Peer:
    world.committer.is_held = False
    peer = logged_on(world, 2, "starter")
    world.committer.is_held = True
    return peer


def test_under_pressure_orders_are_refused_and_cancels_taken() -> None:
    world = make_world()
    peer = logged_on(world)
    send_all(peer, [resting(100, 1), resting(100, 2)])
    world.loop.run()
    peer.read()
    stuck(world)
    world.loop.sleep(PRESSURE_S - 0.001)
    peer.send(resting(100, 3))
    world.loop.run()
    assert peer.read() == [], "not yet: it waits for the commit like any other"
    world.loop.sleep(0.002)
    send_all(peer, [resting(100, 4), ReplaceOrder(5, 1, 0, 100, 200), CancelOrder(1)])
    world.loop.run()
    refusals = peer.read()
    assert [(m.number, m.request_tag, m.code, m.retry_after_ns) for m in refusals] == [
        (4, 10, RejectCode.BACK_PRESSURE, PRESSURE_RETRY_NS),
        (5, 12, RejectCode.BACK_PRESSURE, PRESSURE_RETRY_NS),
    ]
    assert world.venue.sequencer.pressure_count == 1
    assert world.venue.sequencer.unsynced_age_ns() > PRESSURE_NS
    world.finish()
    assert kinds(peer.read()) == [OrderAccepted, OrderCanceled]
    assert world.venue.sequencer.unsynced_age_ns() == 0
    world.committer.is_held = False
    assert kinds(peer.ask(resting(100, 6))) == [OrderAccepted], "it is over"


def test_quick_commits_are_no_pressure_however_many() -> None:
    world = make_world()
    peer = logged_on(world)
    world.hold()
    for number in range(1, 31):
        peer.send(resting(100, number))
        world.loop.run()
        world.loop.sleep(0.03)
        world.committer.sync()
        world.loop.run()
    world.finish()
    assert kinds(peer.read()) == [OrderAccepted] * 30
    assert world.venue.sequencer.pressure_count == 0


def test_those_who_wait_for_room_get_through_to_their_cancels() -> None:
    world = make_world()
    peers = [logged_on(world, 2, f"s{i}") for i in range(3)]
    for peer in peers:
        assert kinds(peer.ask(resting(100, 1))) == [OrderAccepted]
    stuck(world)
    filler = [resting(100, number) for number in range(2, 6_002)]
    send_all(peers[0], [*filler, CancelOrder(1)])
    send_all(peers[1], [resting(100, 2), CancelOrder(1)])
    world.loop.run()
    assert world.venue.sequencer.waiting_count == 2
    assert not is_read(peers[0])
    # The third one has only a cancel: it passes those who wait.
    peers[2].send(CancelOrder(1))
    world.loop.run()
    assert is_read(peers[2])
    assert world.venue.sequencer.waiting_count == 2
    world.loop.sleep(PRESSURE_S)
    assert world.venue.sequencer.waiting_count == 0, "looked at again when pressure begins"
    assert all(is_read(peer) for peer in peers)
    refused = [peer.read() for peer in peers]
    assert {m.code for messages in refused for m in messages} == {RejectCode.BACK_PRESSURE}
    assert [len(messages) > 0 for messages in refused] == [True, True, False]
    assert [m.number for m in refused[1]] == [2]
    world.finish()
    answers = [kinds(peer.read()) for peer in peers]
    assert [answer.count(OrderCanceled) for answer in answers] == [1, 1, 1]
    assert len(answers[0]) + len(refused[0]) == 6_001, "every command is answered once"
    assert world.venue.sequencer.waiting_count_max == 2


def test_a_batch_that_is_full_for_cancels_too_keeps_them_waiting() -> None:
    world = make_world()
    peer, other = logged_on(world), logged_on(world, 3)
    stuck(world)
    send_all(peer, [CancelOrder(number) for number in range(1, 8_001)])
    other.send(CancelOrder(1))
    world.loop.sleep(1)
    assert world.venue.sequencer.waiting_count == 2
    assert world.venue.sequencer.pressure_count == 1
    assert [peer.read(), other.read()] == [[], []], "neither taken nor refused"
    world.finish()
    assert kinds(peer.read()) == [CancelRejected] * 8_000
    assert kinds(other.read()) == [CancelRejected]


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_lost_or_done_twice_while_the_journal_limps(seed: int) -> None:
    dice = Random(seed)
    world = make_world()
    peers = [logged_on(world, 2 + i % 2, f"s{i}") for i in range(4)]
    sent, answers = [0] * 4, [0] * 4
    for peer in peers:
        peer.transport.takes_data = True
    world.hold()
    for _ in range(300):
        i = dice.randrange(4)
        count = dice.choice((1, 5, 900))
        first = sent[i] + 1
        account = 1 + i % 2
        messages: list[Any] = [
            NewOrder(first + j, 1, account, 1, 100, 100)
            if dice.random() < 0.7
            else CancelOrder(dice.randrange(1, first + j + 1))
            for j in range(count)
        ]
        send_all(peers[i], messages)
        sent[i] += count
        match dice.randrange(8):
            case 0:
                world.committer.sync()
            case 1:
                world.loop.sleep(0.2)
        world.loop.turn()
        for j, peer in enumerate(peers):
            answers[j] += len(peer.read())
    world.finish()
    for j, peer in enumerate(peers):
        answers[j] += len(peer.read())
    assert answers == sent, f"seed {seed}: one answer each"
    assert world.venue.sequencer.pressure_count > 3, f"seed {seed}"
    assert world.venue.sequencer.waiting_count_max > 1, f"seed {seed}"
    world.engine.check()


def test_a_log_on_is_refused_when_too_much_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequencer_module, "WAITERS_MAX", 20)
    world = make_world()
    stuck(world)
    told = 0
    for _ in range(100):
        forger = world.connect(2)
        forger.send_log_on(signature=bytes(64))
        world.loop.run()
        for answer in forger.read():
            assert isinstance(answer, LogOnRejected)
            assert answer.code == RejectCode.BACK_PRESSURE
            told += 1
        forger.transport.lose()
        world.loop.run()
    assert told > 70
    sequencer = world.venue.sequencer
    assert sequencer.waiting_count + len(sequencer._after) <= 20 + 2
    world.finish()
    world.committer.is_held = False
    assert isinstance(world.connect(2).log_on(), LogOnAccepted)


def test_a_waiting_client_that_goes_leaves_its_orders_behind() -> None:
    world = make_world()
    peer = logged_on(world, cancel_on_disconnect=0)
    stuck(world)
    send_all(peer, [resting(100, number) for number in range(1, 6_001)])
    world.loop.run()
    peer.transport.lose()
    world.loop.sleep(PRESSURE_S)
    world.finish()
    assert 3_000 < world.engine.open_order_count < 6_000
    assert not world.engine.session(2).is_connected
    assert world.venue.sequencer.waiting_count == 0


def test_a_venue_under_pressure_stops_in_good_order() -> None:
    world = make_world()
    peer = logged_on(world)
    stuck(world)
    send_all(peer, [resting(100, number) for number in range(1, 6_001)])
    world.loop.sleep(PRESSURE_S + 0.01)
    refused = peer.read()
    assert {m.code for m in refused} == {RejectCode.BACK_PRESSURE}
    world.venue.drain(lambda: None)
    world.finish()
    messages = peer.read()
    assert kinds(messages) == [OrderAccepted] * (6_000 - len(refused)) + [Terminate]
    assert messages[-1].code == TerminateCode.SHUTDOWN
    assert world.venue.close() is None


# The counters.


def test_what_is_counted_is_durable() -> None:
    world = make_world()
    maker, taker = logged_on(world), logged_on(world, 3)
    ingress, sequencer = world.venue.order_entry.ingress, world.venue.sequencer
    before = {tag: ingress.event_count(tag) for tag in range(128)}
    batches, commands = sequencer.batch_count, sequencer.command_count
    size = sequencer.journal_size
    world.hold()
    send_all(maker, [buy(1), buy(1), buy(2)])
    send_all(taker, [sell(1), CancelOrder(77), ReplaceOrder(2, 78, 0, 100, 100)])
    world.loop.run()
    assert {tag: ingress.event_count(tag) for tag in range(128)} == before, "not durable yet"
    assert (sequencer.batch_count, sequencer.open_order_count) == (batches, 0)
    world.finish()
    after = {tag: ingress.event_count(tag) - count for tag, count in before.items()}
    assert {tag: count for tag, count in after.items() if count} == {
        80: 3,
        81: 1,
        85: 2,
        86: 2,
        113: 2,
        114: 1,
        118: 1,
    }
    assert ingress.reject_count(81, RejectCode.DUPLICATE_CLIENT_ORDER_ID) == 1
    assert ingress.reject_count(86, RejectCode.UNKNOWN_ORDER) == 2
    assert sequencer.batch_count == batches + 1
    assert sequencer.command_count == commands + 6
    assert sequencer.open_order_count == 1
    assert sequencer.journal_size > size
    assert sum(sequencer.batch_commands.counts) == sequencer.batch_count
    assert sequencer.batch_commands.total == sequencer.command_count
    assert sum(sequencer.commit_ns.counts) == sequencer.batch_count
    admin = logged_on(world, 1, "admin")
    admin.send(Participant("trader-2"))
    world.finish()
    (rejected,) = admin.read()
    assert ingress.reject_count(101, rejected.code) == 1
    assert ingress.reject_count(80, 40) == ingress.reject_count(81, 10**6) == 0
    assert ingress.event_count(-1) == ingress.event_count(128) == 0
    assert ingress.refusal_count(-1) == ingress.refusal_count(256) == 0
    assert ingress.throttled_count(-1) == ingress.throttled_count(3) == 0
    assert world.venue.order_entry.attached_count == 3
    assert world.venue.order_entry.log_on_count == 4


def test_refused_log_ons_hold_nobody() -> None:
    """New sessions that are refused all want the same numbers: one after the other gets them."""
    world = make_world()
    trader = logged_on(world, 3, "b")
    world.hold()
    storm = [world.connect(2, f"n{index}") for index in range(40)]
    for peer in storm:
        peer.send_log_on(next_number=5)
    trader.send(sell(1))
    world.loop.run()
    assert world.venue.sequencer.waiting_count == 0
    world.committer.sync()
    world.loop.run()
    assert kinds(trader.read()) == [OrderAccepted]
    world.finish()
    assert [kinds(peer.read()) for peer in storm] == [[LogOnRejected]] * 40
    assert world.venue.sequencer.failure is None


def test_a_waiter_that_makes_another_one_wait_leaves_nobody_behind() -> None:
    """What is done for the first who waits may queue something itself; the batch is empty then."""
    world = make_world()
    first, second = logged_on(world, 2, "a"), logged_on(world, 3, "b")
    world.hold()
    sequencer = world.venue.sequencer
    world.loop.run()
    done = []

    def note() -> bool:
        done.append(1)
        return True

    def queue_another() -> bool:
        sequencer.attempt(note)
        return True

    first.send(buy(1))
    world.loop.run()
    turns = iter([False, True])
    sequencer.attempt(lambda: next(turns) and queue_another())
    second.send(sell(1))
    world.loop.run()
    assert sequencer.waiting_count == 2
    world.finish()
    assert (done, sequencer.waiting_count) == ([1], 0)
    assert kinds(second.read())[0] is OrderAccepted
