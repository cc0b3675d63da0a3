"""Streams that resume: no report is lost or repeated, whatever happened to the connection before.

The truth is the journal: a fresh engine replays it, and says which report has which bytes.
"""

from random import Random
from typing import Any

import pytest

from exchange.node import outbound
from exchange.node.limits import (
    LINGER_S,
    REPLAY_CHUNK_SIZE,
    RING_SIZE_MAX,
    WRITE_SIZE_HIGH,
    WRITE_WAIT_S,
)
from protocol import wire
from protocol.codes import RejectCode, TerminateCode
from protocol.framing import REPLAYED, SEQUENCED, SESSION, UNSEQUENCED, Frame, encode_frame
from protocol.order_entry import CancelOrder, NewOrder, OrderAccepted, OrderFilled
from protocol.transport import (
    LogOnAccepted,
    LogOnRejected,
    LogOut,
    NotApplied,
    Terminate,
    VenueHeartbeat,
)
from tests.exchange.node.market import buy, is_gone, kinds, logged_on, make_world, sell
from tests.exchange.node.streams import check_numbers, journal_reports, take_frames
from tests.exchange.node.world import Peer, World

SESSION_ID = 2
"""Of the first trader: the administrator has 1."""


def make_history(world: World, count: int) -> Peer:
    """The first trader places orders, the second takes every other one."""
    maker, taker = logged_on(world), logged_on(world, 3)
    for number in range(1, count + 1):
        maker.ask(buy(number))
        if number % 2:
            taker.ask(sell(number))
    maker.read()
    taker.transport.lose()
    world.loop.run()
    return maker


def resume(world: World, number: int) -> Peer:
    """The first trader logs on again and wants this report next; nothing is read yet."""
    peer = world.connect(2)
    peer.send_log_on(next_number=number)
    world.finish()
    return peer


def split(frames: list[Frame]) -> tuple[Frame, LogOnAccepted, list[Frame]]:
    """The frame of the log-on's answer, the answer, and the frames after it."""
    answer = wire.decode_venue(SESSION, frames[0].payload)
    assert isinstance(answer, LogOnAccepted)
    return frames[0], answer, frames[1:]


def flood(peer: Peer, first: int, count: int) -> None:
    messages = (wire.encode(buy(number)) for number in range(first, first + count))
    frames = (encode_frame(SEQUENCED, first + i, m) for i, m in enumerate(messages))
    peer.machine.next_number = first + count
    peer.transport.deliver(b"".join(frames))


# From where.


@pytest.mark.parametrize("is_restarted", [False, True], ids=["", "restarted"])
def test_a_stream_resumes_from_every_number_of_its_history(is_restarted: bool) -> None:
    world = make_world()
    make_history(world, 24)
    if is_restarted:
        world.crash(Random(1))
        world.boot()
    reports = journal_reports(world, SESSION_ID)
    head = len(reports) + 1
    assert head == 37, "24 accepted, 12 filled"
    for wanted in range(1, head + 1):
        peer = resume(world, wanted)
        frames = take_frames(peer)
        first, answer, replayed = split(frames)
        assert (first.number, answer.next_number) == (wanted, head)
        assert [frame.number for frame in replayed] == list(range(wanted, head))
        for frame in replayed:
            assert (frame.kind, frame.flags, frame.match_lag_ns) == (SEQUENCED, REPLAYED, 0)
            assert frame.payload == reports[frame.number], "the same bytes"
        assert check_numbers(frames, wanted) == head
    assert world.venue.order_entry.replay_count == head - 1
    assert world.venue.order_entry.replayed_count == sum(range(1, head))


def test_after_the_replay_the_stream_is_live() -> None:
    world = make_world()
    make_history(world, 10)
    peer = resume(world, 3)
    assert kinds(peer.read())[0] is LogOnAccepted
    peer.machine.next_number = 11
    peer.send(buy(11))
    world.loop.run()
    (frame,) = take_frames(peer)
    assert (frame.kind, frame.flags, frame.number) == (SEQUENCED, 0, 16)


def test_zero_means_none_of_the_past() -> None:
    world = make_world()
    make_history(world, 10)
    first, answer, rest = split(take_frames(resume(world, 0)))
    assert first.number == answer.next_number == 16
    assert rest == []
    assert world.venue.order_entry.replay_count == 0


def test_a_number_that_does_not_exist_is_refused() -> None:
    world = make_world()
    make_history(world, 10)
    peer = resume(world, 17)
    (refused,) = peer.read()
    assert isinstance(refused, LogOnRejected)
    assert (refused.code, refused.field, refused.limit) == (RejectCode.NUMBER_AHEAD, 6, 16)
    assert split(take_frames(resume(world, 16)))[0].number == 16


@pytest.mark.parametrize("is_restarted", [False, True], ids=["", "restarted"])
def test_a_number_too_old_is_told_and_the_oldest_is_not(is_restarted: bool) -> None:
    world = make_world()
    maker = logged_on(world)
    count = 25_000
    for first in range(1, count, 1_000):
        flood(maker, first, 1_000)
        world.loop.run()
        maker.read()
    if is_restarted:
        world.crash(Random(1))
        world.boot()
    reports = journal_reports(world, SESSION_ID)
    assert len(reports) == count
    rings = world.venue.order_entry.ingress.rings
    oldest = rings.first_number(SESSION_ID)
    kept_size = sum(2 + len(reports[number]) for number in range(oldest, count + 1))
    one_more = 2 + len(reports[oldest - 1])
    assert kept_size <= RING_SIZE_MAX < kept_size + one_more, "as many as fit"
    assert rings.evicted_count == oldest - 1
    first_frame, answer, rest = split(take_frames(resume(world, oldest - 1)))
    assert first_frame.number == answer.next_number == count + 1
    assert rest == []
    first_frame, answer, rest = split(take_frames(resume(world, oldest)))
    assert (first_frame.number, answer.next_number) == (oldest, count + 1)
    assert {frame.number: frame.payload for frame in rest} == {
        number: reports[number] for number in range(oldest, count + 1)
    }


# During live traffic.


@pytest.mark.parametrize("seed", range(6))
def test_reports_that_come_during_a_replay_follow_it_without_a_hole(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dice = Random(seed)
    monkeypatch.setattr(outbound, "REPLAY_CHUNK_SIZE", dice.choice((1, 150, 700)))
    world = make_world()
    make_history(world, 40)
    taker = logged_on(world, 3, "taker")
    world.hold()
    peer = world.connect(2)
    wanted = dice.randrange(1, 60)
    peer.send_log_on(next_number=wanted)
    frames: list[Frame] = []
    sold = 0
    while not frames or dice.random() < 0.97:
        sold += 1
        taker.send(sell(sold))
        match dice.randrange(4):
            case 0:
                world.loop.turn()
            case 1:
                world.committer.sync()
            case 2:
                peer.transport.is_stalled = not peer.transport.is_stalled
        world.loop.turn()
        frames += take_frames(peer)
    peer.transport.resume_peer()
    world.finish()
    frames += take_frames(peer)
    reports = journal_reports(world, SESSION_ID)
    first, answer, rest = split(frames)
    assert first.number == wanted, f"seed {seed}"
    assert check_numbers(frames, wanted) == len(reports) + 1, f"seed {seed}: all, in order"
    for frame in rest:
        assert frame.payload == reports[frame.number], f"seed {seed}"
        assert frame.flags == (REPLAYED if frame.number < answer.next_number else 0)


def test_reports_of_the_batch_with_the_log_on_come_once() -> None:
    world = make_world()
    make_history(world, 10)
    taker = logged_on(world, 3, "taker")
    world.hold()
    peer = world.connect(2)
    peer.send_log_on(next_number=12)
    taker.send(sell(1, 200))
    world.finish()
    assert world.venue.sequencer.batch_count
    frames = take_frames(peer)
    first, answer, rest = split(frames)
    assert (first.number, answer.next_number) == (12, 16)
    assert [(f.number, f.flags) for f in rest] == [
        (12, 1),
        (13, 1),
        (14, 1),
        (15, 1),
        (16, 0),
        (17, 0),
    ]


# Sockets that are slow.


def long_history(world: World, count: int) -> dict[int, bytes]:
    maker = logged_on(world)
    for first in range(1, count, 1_000):
        flood(maker, first, 1_000)
        world.loop.run()
        maker.read()
    return journal_reports(world, SESSION_ID)


def test_a_replay_goes_as_fast_as_the_socket_takes_it() -> None:
    world = make_world()
    reports = long_history(world, 15_000)
    peer = world.connect(2)
    peer.transport.is_stalled = True
    peer.send_log_on(next_number=1)
    world.finish()
    frames = take_frames(peer)
    seen_sizes = []
    while len(frames) <= len(reports):
        before = len(frames)
        world.loop.run()
        seen_sizes.append(peer.transport.get_write_buffer_size())
        frames += take_frames(peer)
        assert len(frames) > before, "it goes on"
    assert check_numbers(frames, 1) == 15_001
    assert all(frame.payload == reports[frame.number] for frame in frames[1:])
    assert max(seen_sizes) <= WRITE_SIZE_HIGH + REPLAY_CHUNK_SIZE
    assert len(seen_sizes) > 2, "not all at once"
    assert not is_gone(peer)


def test_a_replay_that_nobody_reads_ends_in_time() -> None:
    world = make_world()
    long_history(world, 10_000)
    peer = world.connect(2)
    peer.transport.is_stalled = True
    peer.send_log_on(next_number=1)
    world.finish()
    assert peer.transport.unsent_size_max <= WRITE_SIZE_HIGH + REPLAY_CHUNK_SIZE
    world.loop.sleep(WRITE_WAIT_S + LINGER_S + 0.1)
    assert is_gone(peer)
    assert world.venue.order_entry.slow_consumer_count == 1


def test_a_replay_that_is_overtaken_ends_with_the_reason() -> None:
    world = make_world()
    long_history(world, 20_000)
    taker = logged_on(world, 3, "taker")
    peer = world.connect(2)
    peer.transport.is_stalled = True
    peer.send_log_on(next_number=1)
    world.finish()
    # The ring turns over while the client does not read.
    for number in range(1, 20_001):
        taker.send(sell(number))
        if number % 1_000 == 0:
            world.loop.run()
            taker.read()
    assert world.venue.order_entry.ingress.rings.first_number(SESSION_ID) > 10_000
    peer.transport.resume_peer()
    world.loop.run()
    frames = take_frames(peer)
    last = wire.decode_venue(SESSION, frames[-1].payload)
    assert isinstance(last, Terminate)
    assert last.code == TerminateCode.SLOW_CONSUMER
    assert last.text == "the client reads its replay more slowly than reports come"
    check_numbers(frames, 1)
    assert is_gone(peer)


def test_a_log_out_during_a_replay_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbound, "REPLAY_CHUNK_SIZE", 300)
    world = make_world()
    make_history(world, 60)
    peer = world.connect(2)
    peer.send_log_on(next_number=1)
    while len(peer.transport.sent) < 600:
        world.loop.turn()
    peer.transport.deliver(encode_frame(SESSION, 61, wire.encode(LogOut())))
    assert len(peer.transport.sent) < 3_000, "the replay is under way"
    world.finish()
    frames = take_frames(peer)
    assert check_numbers(frames, 1) == 91
    last = wire.decode_venue(SESSION, frames[-1].payload)
    assert isinstance(last, Terminate)
    assert last.code == TerminateCode.LOG_OUT
    assert is_gone(peer)


def test_heartbeats_and_notices_during_a_replay_name_the_next_number() -> None:
    world = make_world()
    long_history(world, 10_000)
    peer = world.connect(2)
    peer.transport.is_stalled = True
    peer.send_log_on(next_number=1, keepalive_ms=100)
    world.finish()
    world.loop.sleep(0.15)
    peer.transport.deliver(encode_frame(SEQUENCED, 10_005, wire.encode(CancelOrder(1))))
    frames: list[Frame] = []
    for _ in range(20):
        world.loop.run()
        frames += take_frames(peer)
    check_numbers(frames, 1)
    found = {type(wire.decode_venue(frame.kind, frame.payload)) for frame in frames}
    assert {VenueHeartbeat, NotApplied} <= found
    assert {frame.kind for frame in frames} == {SESSION, SEQUENCED, UNSEQUENCED}


# Take-over.


def test_the_newest_log_on_resumes_what_a_half_open_connection_never_read() -> None:
    world = make_world()
    first = logged_on(world)
    second_trader = logged_on(world, 3)
    assert kinds(first.ask(buy(1))) == [OrderAccepted]
    # The client's machine has lost power: nothing says so to the venue.
    first.transport.is_stalled = True
    for number in range(2, 12):
        first.send(buy(number))
    second_trader.send(sell(1, 500))
    world.loop.run()
    lost = bytes(first.transport.sent)
    assert lost, "on its way to nobody"
    second = resume(world, 2)
    messages = second.read()
    assert kinds(messages) == [LogOnAccepted] + [OrderAccepted] * 10 + [OrderFilled] * 5
    reports = journal_reports(world, SESSION_ID)
    assert [wire.encode(m) for m in messages[1:]] == [reports[n] for n in range(2, 17)]
    # What the dead one had sent and still arrives has no effect.
    first.send(CancelOrder(11))
    world.loop.run()
    assert len(journal_reports(world, SESSION_ID)) == 16
    assert first.connection.reason == "REPLACED"
    second.machine.next_number = 12
    assert kinds(second.ask(CancelOrder(11))) == [type(second_reply(world))]


def second_reply(world: World) -> Any:
    """The latest report of the session, from the journal."""
    reports = journal_reports(world, SESSION_ID)
    return wire.decode_venue(SEQUENCED, reports[max(reports)])


def test_a_resumed_client_that_repeats_and_skips_numbers_loses_nothing() -> None:
    world = make_world()
    make_history(world, 6)
    peer = resume(world, 1)
    answer = peer.read()[0]
    assert answer.last_client_number == 6
    for number in (5, 6, 6, 7, 7, 10):
        order = NewOrder(100 + number, 1, 1, 1, 5000, 100)
        peer.transport.deliver(encode_frame(SEQUENCED, number, wire.encode(order)))
    world.loop.run()
    missing, seventh, tenth = peer.read()
    assert (seventh.number, seventh.client_order_id) == (7, 107)
    assert missing == NotApplied(8, 2)
    assert (tenth.number, tenth.client_order_id) == (10, 110)


def test_a_replaced_connection_stops_replaying() -> None:
    world = make_world()
    reports = long_history(world, 10_000)
    first = world.connect(2)
    first.transport.is_stalled = True
    first.send_log_on(next_number=1)
    world.finish()
    second = resume(world, 9_000)
    frames = take_frames(second)
    assert check_numbers(frames, 9_000) == len(reports) + 1
    first.transport.resume_peer()
    world.loop.run()
    left = take_frames(first)
    last = wire.decode_venue(SESSION, left[-1].payload)
    assert isinstance(last, Terminate)
    assert last.code == TerminateCode.REPLACED
    assert check_numbers(left, 1) < 9_000, "the rest is the second one's"


def test_three_log_ons_in_one_batch_resume_each_for_itself() -> None:
    world = make_world()
    make_history(world, 10)
    world.hold()
    peers = [world.connect(2) for _ in range(3)]
    for peer, wanted in zip(peers, (2, 5, 9), strict=True):
        peer.send_log_on(next_number=wanted)
    world.finish()
    streams = [take_frames(peer) for peer in peers]
    assert [check_numbers(stream, stream[0].number) for stream in streams] == [16] * 3
    assert [stream[0].number for stream in streams] == [2, 5, 9]
    ends = [type(wire.decode_venue(stream[-1].kind, stream[-1].payload)) for stream in streams]
    assert ends == [Terminate, Terminate, OrderAccepted]
