"""State images: the engine's state at their sequence, and never ahead of what is durable."""

from random import Random
from typing import Any

import pytest

from exchange.core.engine import Engine
from exchange.node import connection as connection_module
from exchange.node.images import Image, take_image
from exchange.node.limits import IMAGE_INTERVAL_NS
from journal import read_only
from protocol import wire
from protocol.codes import RejectCode, TerminateCode
from protocol.framing import SEQUENCED, SESSION, UNSEQUENCED, Frame, encode_frame
from protocol.order_entry import CancelOrder, OrderAccepted
from protocol.records import COMMAND_HEAD
from protocol.transport import (
    LogOnAccepted,
    LogOut,
    SessionReject,
    StateBalances,
    StateEnd,
    StateOrders,
    StatePositions,
    StateRequest,
    Terminate,
)
from tests.exchange.node.market import buy, is_gone, kinds, logged_on, make_world, sell
from tests.exchange.node.streams import check_numbers, journal_reports, take_frames
from tests.exchange.node.traders import Trader
from tests.exchange.node.world import Peer, World

PARTS = (StateOrders, StatePositions, StateBalances, StateEnd)


def ask(world: World, peer: Peer) -> None:
    peer.send(StateRequest())
    world.finish()


def parts_of(messages: list[Any]) -> list[Any]:
    return [message for message in messages if isinstance(message, PARTS)]


def engine_at(world: World, sequence: int) -> Engine:
    """A fresh engine that has applied the journal up to this command."""
    engine = Engine()
    for record in read_only(world.disk).records():
        payload, offset, count = bytes(record.payload), 0, 0
        while offset < len(payload) and record.first_sequence + count <= sequence:
            offset += COMMAND_HEAD.unpack_from(payload, offset)[0]
            count += 1
        if count:
            engine.replay(record.first_sequence, count, payload[:offset])
    assert engine.sequence == sequence
    return engine


def check_image(world: World, session: int, parts: list[Any]) -> StateEnd:
    """The parts are those of the image that an engine gives at their sequence."""
    assert isinstance(parts[-1], StateEnd)
    expected = take_image(engine_at(world, parts[-1].sequence), session)
    assert parts == list(expected.messages())
    return parts[-1]


def test_the_image_of_a_session() -> None:
    world = make_world()
    maker, taker = logged_on(world), logged_on(world, 3)
    for number in (1, 2, 3):
        maker.ask(buy(number))
    taker.ask(sell(1, 150 * 2))
    maker.ask(CancelOrder(3))
    maker.read()
    maker.ask(buy(7, time_in_force=2, expire_time_ns=2 * 10**18))
    ask(world, maker)
    sequence = world.engine.sequence
    orders, positions, balances, end = maker.read()
    assert orders == StateOrders(sequence, [(5, 7, 1, 1, 1, 5000, 100, 0, 2, 2 * 10**18)])
    assert positions == StatePositions(sequence, [(1, 1, 300)])
    assert balances == StateBalances(sequence, [(1, 10**12 - 150 * 10**4, 50 * 10**4)])
    assert end == StateEnd(sequence, world.engine.time_ns, 9, 5, 7, 1, 1, 1)
    check_image(world, 2, [orders, positions, balances, end])


def test_an_empty_image_is_an_end_and_balances() -> None:
    world = make_world()
    peer = logged_on(world)
    ask(world, peer)
    balances, end = peer.read()
    assert balances == StateBalances(end.sequence, [(1, 10**12, 0)])
    assert (end.order_count, end.position_count) == (0, 0)
    assert (end.next_number, end.last_client_number, end.balance_count) == (1, 0, 1)


def test_an_image_says_nothing_that_is_not_durable() -> None:
    world = make_world()
    peer = logged_on(world)
    peer.ask(buy(1))
    world.hold()
    peer.send(buy(2))
    peer.send(StateRequest())
    world.loop.run()
    assert peer.read() == []
    world.committer.write()
    world.loop.run()
    assert peer.read() == []
    world.committer.sync()
    world.loop.run()
    messages = peer.read()
    assert kinds(messages) == [OrderAccepted, StateOrders, StateBalances, StateEnd]
    assert check_image(world, 2, messages[1:]).next_number == 3


def test_an_image_is_of_the_batch_boundary_and_not_of_the_middle() -> None:
    world = make_world()
    peer, other = logged_on(world), logged_on(world, 2, "other")
    world.hold()
    peer.send(buy(1))
    world.loop.run()
    # A batch is open while another one is synced: the image is of the end of the open one.
    peer.send(buy(2))
    world.loop.run()
    peer.send(StateRequest())
    other.send(buy(1))
    world.loop.run()
    world.committer.sync()
    world.loop.run()
    assert kinds(peer.read()) == [OrderAccepted]
    peer.send(buy(3))
    world.loop.run()
    world.committer.sync()
    world.loop.run()
    messages = peer.read()
    assert kinds(messages) == [OrderAccepted, StateOrders, StateBalances, StateEnd]
    end = check_image(world, 2, messages[1:])
    assert (end.order_count, end.next_number) == (2, 3)
    assert world.engine.batch_count or world.committer.is_busy, "the third order is not in it"


def test_one_image_at_a_time() -> None:
    world = make_world()
    peer = logged_on(world)
    world.hold()
    peer.send(buy(1))
    peer.send(StateRequest())
    peer.send(StateRequest())
    world.loop.run()
    (refused,) = peer.read()
    assert refused == SessionReject(
        0, 4, RejectCode.IMAGE_IN_PROGRESS, 0, IMAGE_INTERVAL_NS, "one state image at a time"
    )
    world.finish()
    assert kinds(peer.read()) == [OrderAccepted, StateOrders, StateBalances, StateEnd]
    assert world.venue.order_entry.image_count == 1
    assert world.venue.order_entry.ingress.refusal_count(RejectCode.IMAGE_IN_PROGRESS) == 1


def test_one_image_a_second_for_a_session_whatever_its_connection() -> None:
    world = make_world()
    peer, other = logged_on(world), logged_on(world, 2, "other")
    ask(world, peer)
    assert kinds(peer.read()) == [StateBalances, StateEnd]
    world.loop.sleep(0.75)
    peer = logged_on(world)
    ask(world, peer)
    (refused,) = peer.read()
    assert (refused.number, refused.request_tag) == (0, 4)
    assert (refused.code, refused.retry_after_ns) == (RejectCode.THROTTLED, 250_000_000)
    ask(world, other)
    assert kinds(other.read()) == [StateBalances, StateEnd], "another session"
    world.loop.now_ns += 249_999_999
    ask(world, peer)
    (refused,) = peer.read()
    assert refused.retry_after_ns == 1
    world.loop.now_ns += 1
    ask(world, peer)
    assert kinds(peer.read()) == [StateBalances, StateEnd]


def many_orders(world: World, count: int) -> Peer:
    peer = logged_on(world)
    for first in range(1, count, 1_000):
        frames = [
            encode_frame(SEQUENCED, n, wire.encode(buy(n))) for n in range(first, first + 1_000)
        ]
        peer.machine.next_number = first + 1_000
        peer.transport.deliver(b"".join(frames))
        world.finish()
        peer.read()
    return peer


def test_a_long_image_goes_as_fast_as_the_socket_takes_it() -> None:
    world = make_world()
    peer, taker = many_orders(world, 30_000), logged_on(world, 3)
    peer.transport.is_stalled = True
    ask(world, peer)
    entry = world.venue.order_entry
    assert entry.images_size > 30_000 * 80, "the rest of it waits, packed"
    assert peer.transport.unsent_size_max < 400_000
    frames: list[Frame] = []
    sold = 0
    while entry.images_size:
        sold += 1
        taker.send(sell(sold))
        world.finish()
        frames += take_frames(peer)
    peer.transport.resume_peer()
    world.finish()
    frames += take_frames(peer)
    assert check_numbers(frames, 30_001) == 30_001 + sold, "reports come in between"
    messages = [wire.decode_venue(frame.kind, frame.payload) for frame in frames]
    parts = parts_of(messages)
    end = check_image(world, 2, parts)
    assert end.order_count == 30_000
    assert len(parts) == 118 + 1 + 1, "256 rows at a time"
    assert kinds(messages) != kinds(parts), "reports are among the parts"
    assert end.next_number == 30_001, "none of these reports is in the image"


def test_images_wait_for_their_sockets_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world()
    peer, other = many_orders(world, 30_000), logged_on(world, 2, "other")
    monkeypatch.setattr(connection_module, "IMAGES_SIZE_MAX", 500_000)
    peer.transport.is_stalled = True
    ask(world, peer)
    ask(world, other)
    (refused,) = other.read()
    assert (refused.code, refused.retry_after_ns) == (RejectCode.THROTTLED, IMAGE_INTERVAL_NS)
    peer.transport.lose()
    world.finish()
    assert world.venue.order_entry.images_size == 0
    world.loop.sleep(1)
    other.read()
    ask(world, other)
    assert kinds(other.read()) == [StateBalances, StateEnd]


def test_images_that_are_asked_for_at_once_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a commit is under way none is being sent, but all that are taken take memory."""
    world = make_world()
    peers = [logged_on(world, 2, f"s{index}") for index in range(8)]
    for peer in peers:
        for number in range(1, 101):
            peer.send(buy(number))
    world.finish()
    monkeypatch.setattr(connection_module, "IMAGES_SIZE_MAX", 8_000)
    world.hold()
    peers[0].send(buy(1_000))
    world.loop.run()
    for peer in peers:
        peer.read()
        peer.send(StateRequest())
    world.loop.run()
    assert 8_000 <= world.venue.order_entry.images_size <= 8_000 + 8_200, "one on top"
    world.finish()
    refused = [m for peer in peers for m in peer.read() if isinstance(m, SessionReject)]
    assert {m.code for m in refused} == {RejectCode.THROTTLED}
    assert len(refused) >= 5
    assert world.venue.order_entry.images_size == 0


@pytest.mark.parametrize("is_durable", [False, True], ids=["asked", "under way"])
@pytest.mark.parametrize("how", ["lost", "replaced", "log-out", "stopped"])
def test_an_image_ends_with_its_connection(how: str, is_durable: bool) -> None:
    world = make_world()
    peer = many_orders(world, 30_000)
    peer.transport.is_stalled = True
    if not is_durable:
        world.hold()
        peer.send(buy(40_000))
    ask_now = encode_frame(SESSION, 30_001, wire.encode(StateRequest()))
    peer.transport.deliver(ask_now)
    world.loop.run()
    match how:
        case "lost":
            peer.transport.lose()
        case "replaced":
            world.connect(2).send_log_on()
        case "log-out":
            peer.transport.deliver(encode_frame(SESSION, 30_001, wire.encode(LogOut())))
        case "stopped":
            world.venue.drain(lambda: None)
    world.finish()
    peer.transport.resume_peer()
    world.finish()
    assert is_gone(peer)
    assert world.venue.order_entry.images_size == 0
    assert world.venue.sequencer.failure is None
    frames = take_frames(peer)
    messages = [wire.decode_venue(frame.kind, frame.payload) for frame in frames]
    assert StateEnd not in kinds(messages)
    assert how == "lost" or isinstance(messages[-1], Terminate)
    assert how != "log-out" or messages[-1] == Terminate(TerminateCode.LOG_OUT, "")


def test_an_image_asked_for_during_a_replay_follows_it() -> None:
    world = make_world()
    many_orders(world, 10_000)
    taker = logged_on(world, 3)
    peer = world.connect(2)
    peer.transport.is_stalled = True
    peer.send_log_on(next_number=1)
    world.finish()
    peer.transport.deliver(encode_frame(SESSION, 10_001, wire.encode(StateRequest())))
    taker.ask(sell(1))
    frames: list[Frame] = []
    for _ in range(100):
        world.finish()
        frames += take_frames(peer)
    check_numbers(frames, 1)
    messages = [wire.decode_venue(frame.kind, frame.payload) for frame in frames]
    assert isinstance(messages[0], LogOnAccepted)
    first = next(i for i, message in enumerate(messages) if isinstance(message, StateOrders))
    assert sum(frame.kind == SEQUENCED for frame in frames[:first]) == 10_001
    assert check_image(world, 2, messages[first:]).next_number == 10_002


@pytest.mark.parametrize("seed", range(6))
def test_images_under_random_interleaving(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traders trade, records are written and synced at random; every image is that of its sequence
    and of a durable one, and takes nothing from the stream and adds nothing to it."""
    dice = Random(seed)
    world = make_world()
    trader = Trader(world, 3, dice)
    peer = logged_on(world)
    world.hold()
    frames: list[Frame] = []
    deliver_image = Image.messages
    sent: list[int] = []

    def messages(image: Image) -> Any:
        assert image.end.sequence <= world.venue.sequencer.durable_sequence, f"seed {seed}"
        sent.append(image.end.sequence)
        return deliver_image(image)

    monkeypatch.setattr(Image, "messages", messages)
    for number in range(1, 601):
        trader.act()
        match dice.randrange(8):
            case 0:
                peer.send(StateRequest())
            case 1 | 2:
                peer.send(buy(number))
            case 3:
                peer.send(CancelOrder(dice.randrange(1, number + 1)))
            case 4:
                world.committer.write()
            case 5 | 6:
                world.committer.sync()
            case 7:
                world.loop.sleep(0.4)
        world.loop.turn()
        frames += take_frames(peer)
    world.finish()
    monkeypatch.undo()
    frames += take_frames(peer)
    reports = journal_reports(world, peer.connection.session)
    assert check_numbers(frames, 1) == len(reports) + 1, f"seed {seed}"
    parts: list[Any] = []
    image_count = 0
    next_number = 1
    for frame in frames:
        next_number = frame.number + (frame.kind == SEQUENCED)
        message = wire.decode_venue(frame.kind, frame.payload)
        if frame.kind == UNSEQUENCED and isinstance(message, PARTS):
            parts.append(message)
        if isinstance(message, StateEnd):
            check_image(world, peer.connection.session, parts)
            assert message.next_number <= next_number, "after its reports"
            assert message.sequence in sent
            parts = []
            image_count += 1
    assert parts == []
    assert image_count > 8, f"seed {seed}: hardly any image was taken"
