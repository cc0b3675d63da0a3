"""The commit discipline: one record unsynced at most, durable before visible, the first failure
latches."""

import errno
import re
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from exchange.core.engine import Engine
from exchange.node.barred import payload_hash
from exchange.node.failure import Exit, Failure
from exchange.node.ingress import FULL
from exchange.node.limits import DEADLINE_SLEEP_MAX_S
from journal import JournalError, read_only
from journal.faulty import Fault, FaultyStorage, Kind
from journal.memory import MemoryStorage, PowerLoss
from protocol import wire
from protocol.codes import RejectCode
from protocol.framing import SEQUENCED, encode_frame
from protocol.order_entry import CancelOrder, NewOrder, OrderAccepted, OrderExpired
from protocol.records import COMMAND_HEAD, FROM_CLIENT, FROM_VENUE, Connect, Disconnect
from protocol.transport import LogOnAccepted, LogOnRejected
from tests.exchange.node.market import buy, kinds, logged_on, make_world
from tests.exchange.node.world import Peer, World


def flood(peer: Peer, first: int, count: int) -> None:
    """Deliver many orders at once."""
    frames = [encode_frame(SEQUENCED, n, wire.encode(buy(n))) for n in range(first, first + count)]
    peer.machine.next_number = first + count
    peer.transport.deliver(b"".join(frames))


def batch_of(world: World) -> int:
    return world.venue.sequencer.batch_count


# Batches.


def test_what_one_turn_brings_is_one_batch() -> None:
    world = make_world()
    first, second = logged_on(world), logged_on(world, 3)
    before = batch_of(world)
    for peer in (first, second, first):
        peer.send(buy(1))
    world.loop.run()
    assert batch_of(world) == before + 1
    assert len(first.read()) == 2
    assert len(second.read()) == 1


def test_nothing_leaves_before_its_record_is_synced() -> None:
    world = make_world()
    peer = logged_on(world)
    world.hold()
    peer.send(buy(1))
    world.loop.run()
    assert peer.read() == []
    world.committer.write()
    world.loop.run()
    assert peer.read() == [], "written is not durable"
    world.committer.sync()
    assert peer.read() == [], "the loop has not been told yet"
    world.loop.run()
    assert kinds(peer.read()) == [OrderAccepted]


def test_the_next_batch_grows_while_a_record_is_synced() -> None:
    world = make_world()
    peer = logged_on(world)
    before = batch_of(world)
    world.hold()
    peer.send(buy(1))
    world.loop.run()
    for number in (2, 3, 4):
        peer.send(buy(number))
        world.loop.run()
    assert world.engine.batch_count == 3, "applied, and neither built nor written"
    world.committer.sync()
    world.loop.run()
    assert [m.client_order_id for m in peer.read()] == [1]
    world.finish()
    assert [m.client_order_id for m in peer.read()] == [2, 3, 4]
    assert batch_of(world) == before + 2


def test_a_full_batch_makes_connections_wait_in_order() -> None:
    world = make_world()
    peers = [logged_on(world, 2, f"s{i}") for i in range(3)]
    world.hold()
    flood(peers[0], 1, 100)
    world.loop.run()
    flood(peers[1], 1, 6_000)
    peers[2].send(buy(1))
    peers[0].send(buy(101))
    assert not any(peer.transport.takes_data for peer in peers)
    world.loop.run()
    world.finish()
    assert [len(peer.read()) for peer in peers] == [101, 6_000, 1]
    assert all(peer.transport.takes_data for peer in peers)
    orders = _orders(world)
    a, b, c = (peer.connection.session for peer in peers)
    in_order = [(a, 1), (b, 1), (b, 4_000), (c, 1), (a, 101)]
    assert sorted(in_order, key=orders.index) == in_order, "they go on as they came"


def _orders(world: World) -> list[tuple[int, int]]:
    """(session, client order id) of every command in the journal that is an order, in order."""
    found = []
    for record in read_only(world.disk).records():
        payload, offset = bytes(record.payload), 0
        while offset < len(payload):
            head = COMMAND_HEAD.unpack_from(payload, offset)
            body = payload[offset + COMMAND_HEAD.size : offset + head[0]]
            offset += head[0]
            if head[1] == FROM_CLIENT:
                message = wire.decode_command(body)
                if isinstance(message, NewOrder):
                    found.append((head[4], message.client_order_id))
    return found


def test_log_ons_and_losses_wait_for_room_too() -> None:
    world = make_world()
    peer, leaver = logged_on(world), logged_on(world, 3)
    newcomer = world.connect(3, "new")
    world.hold()
    peer.send(buy(1))
    world.loop.run()
    flood(peer, 2, 8_000)
    newcomer.send_log_on()
    leaver.transport.lose()
    world.loop.run()
    assert world.engine.session_count == 3
    world.finish()
    assert world.engine.session_count == 4
    assert len(newcomer.read()) == 1
    assert not world.engine.session(3).is_connected
    assert len(peer.read()) == 8_001


def test_an_answer_that_reads_the_engine_waits_until_that_is_durable() -> None:
    world = make_world()
    peer = logged_on(world)
    stranger = world.connect(9)
    forger = world.connect(2)
    world.hold()
    peer.send(buy(1))
    stranger.send_log_on()
    forger.send_log_on(signature=bytes(64))
    world.loop.run()
    assert kinds(stranger.read()) == [LogOnRejected], "a key that never was is no secret"
    assert forger.read() == []
    world.finish()
    assert kinds(forger.read()) == [LogOnRejected]


# Deadlines.


def test_an_order_expires_when_nobody_sends_anything() -> None:
    world = make_world()
    peer = logged_on(world)
    expire_ns = world.clock.time_ns() + 5_000_000_000
    assert kinds(peer.ask(buy(1, time_in_force=2, expire_time_ns=expire_ns))) == [OrderAccepted]
    batches = batch_of(world)
    world.loop.sleep(4.9)
    assert peer.read() == []
    assert batch_of(world) == batches, "nothing is sequenced before a deadline is due"
    world.loop.sleep(0.2)
    (expired,) = peer.read()
    assert isinstance(expired, OrderExpired)
    assert expired.time_ns >= expire_ns


def test_the_earlier_of_two_deadlines_comes_first() -> None:
    world = make_world()
    peer = logged_on(world)
    now_ns = world.clock.time_ns()
    peer.ask(buy(1, time_in_force=2, expire_time_ns=now_ns + 50_000_000_000))
    peer.ask(buy(2, time_in_force=2, expire_time_ns=now_ns + 10_000_000_000))
    world.loop.sleep(11)
    assert [m.client_order_id for m in peer.read()] == [2]
    world.loop.sleep(40)
    assert [m.client_order_id for m in peer.read() if isinstance(m, OrderExpired)] == [1]


def test_a_clock_that_is_set_forward_is_noticed_within_a_minute() -> None:
    world = make_world()
    peer = logged_on(world)
    expire_ns = world.clock.time_ns() + 3_600_000_000_000
    peer.ask(buy(1, time_in_force=2, expire_time_ns=expire_ns))
    world.clock.offset_ns = 3_600_000_000_000
    world.loop.sleep(DEADLINE_SLEEP_MAX_S + 1)
    assert OrderExpired in kinds(peer.read())


def test_work_beyond_a_full_batch_goes_on_by_itself() -> None:
    world = make_world(limits={"work_per_command_max": 8})
    peer = logged_on(world, cancel_on_disconnect=1)
    flood(peer, 1, 20_000)
    world.finish()
    assert world.engine.open_order_count == 20_000
    peer.transport.lose()
    world.loop.sleep(1)
    assert world.engine.open_order_count == 0
    assert not world.engine.has_pending
    world.engine.check()


def test_deadlines_that_wait_for_room_wait_once() -> None:
    world = make_world()
    peer = logged_on(world)
    expire_ns = world.clock.time_ns() + 1_000_000_000
    peer.ask(buy(1, time_in_force=2, expire_time_ns=expire_ns))
    world.hold()
    peer.send(buy(2))
    world.loop.run()
    frames = [encode_frame(SEQUENCED, n, wire.encode(CancelOrder(n))) for n in range(3, 8_003)]
    peer.machine.next_number = 8_003
    peer.transport.deliver(b"".join(frames))
    world.loop.sleep(5)
    assert world.venue.sequencer.waiting_count == 2, "the connection and the deadline"
    world.finish()
    (expired,) = [m for m in peer.read() if isinstance(m, OrderExpired)]
    assert expired.client_order_id == 1


def test_an_order_that_outgrows_the_batch_is_finished_without_anybody_asking() -> None:
    world = make_world(limits={"work_per_command_max": 8})
    maker, taker = logged_on(world), logged_on(world, 3)
    flood(maker, 1, 20_000)
    world.finish()
    taker.ask(NewOrder(1, 1, 2, 2, 5000, 100 * 20_000))
    assert world.engine.open_order_count == 0
    assert batch_of(world) > 2
    world.engine.check()


def test_a_start_finishes_pending_work_first_and_restarts_graces() -> None:
    world = make_world(limits={"work_per_command_max": 8})
    peer = logged_on(world, cancel_on_disconnect=1, cancel_grace_ms=1_000)
    flood(peer, 1, 100)
    world.finish()
    world.hold()
    peer.transport.lose()
    world.loop.sleep(2)
    assert world.committer.is_busy
    # What was not synced is gone: the loss was never sequenced.
    world.disk.crash(Random(0), PowerLoss(kept=0, dropped=1, zeroed=0))
    world.boot()
    assert world.engine.open_order_count == 100
    world.loop.sleep(0.9)
    assert world.engine.open_order_count == 100
    world.loop.sleep(0.2)
    assert world.engine.open_order_count == 0
    again = logged_on(world)
    assert again.accepted is not None
    assert again.accepted.next_number == 201


def test_a_draining_venue_lets_no_deadline_in() -> None:
    world = make_world()
    peer = logged_on(world)
    expire_ns = world.clock.time_ns() + 1_000_000_000
    peer.ask(buy(1, time_in_force=2, expire_time_ns=expire_ns))
    sequence = world.engine.sequence
    world.venue.drain(lambda: None)
    world.loop.sleep(2)
    assert world.engine.sequence == sequence
    assert world.venue.close() is None
    world.boot()
    assert world.engine.open_order_count == 0, "it expires at the start"


# Failures.


def faulty(kind: Kind, at: int, error: int = errno.EIO) -> Callable[[Any], FaultyStorage]:
    return lambda disk: FaultyStorage(disk, [Fault(kind, at, error)])


@pytest.mark.parametrize("kind", ["write", "sync"])
def test_every_failed_operation_ends_the_venue_and_no_byte_leaves_after(kind: Kind) -> None:
    outcomes = [run_until_failure(kind, at) for at in range(1, 60)]
    assert "trading" in outcomes, "faults while trading were met"
    assert outcomes[-1] == "never", "the last fault comes after the last operation"


def run_until_failure(kind: Kind, at: int) -> str:
    """Trade on a disk that fails once; where the fault was met."""
    world = make_world()
    assert world.venue.close() is None
    storages: list[FaultyStorage] = []

    def wrap(disk: MemoryStorage) -> FaultyStorage:
        storages.append(FaultyStorage(disk, [Fault(kind, at, errno.EIO)]))
        return storages[-1]

    world = again(world, wrap)
    try:
        world.boot()
    except JournalError as error:
        return f"recovery {error.exit_code}"
    peers: list[Peer] = []
    acknowledged = 0
    while world.venue.sequencer.failure is None and len(peers) < 11:
        peer = world.connect(2, f"s{len(peers)}")
        peers.append(peer)
        peer.transport.on_write = lambda data: _assert_no_failure(world)
        peer.send_log_on()
        world.loop.run()
        if LogOnAccepted in kinds(peer.read()):
            acknowledged += OrderAccepted in kinds(peer.ask(buy(1)))
    is_stopping = world.venue.sequencer.failure is None  # The marker may fail, too.
    counts = dict(storages[-1].counts)
    failure = world.venue.close()
    healthy = Engine()
    for record in read_only(world.disk).records():
        healthy.replay(record.first_sequence, record.command_count, record.payload)
    assert healthy.open_order_count >= acknowledged, "nothing acknowledged is lost"
    if failure is None:
        return "never"
    assert failure.exit_code == Exit.STORAGE_FAILED
    is_left_alone = storages[-1].counts == counts
    assert is_stopping or is_left_alone, "nothing is tried again, and no marker is left"
    aside = (world.barred.names(), world.snapshots_disk.names())
    assert aside == ([], []), "and nothing of the engine's state is written"
    assert re.fullmatch(r"journal failed: .*: \[Errno 5\] Input/output error", failure.text)
    assert all(peer.transport.is_gone for peer in peers)
    assert world.venue.ended.result() == failure
    return "trading" if peers else "starting"


def again(world: World, wrap: Callable[[Any], FaultyStorage]) -> World:
    """The same disk behind another storage."""
    other = World(wrap=wrap)
    other.disk = world.disk
    other.loop.now_ns = world.loop.now_ns
    return other


def _assert_no_failure(world: World) -> None:
    assert world.venue.sequencer.failure is None, "a byte leaves after the failure"


def test_a_failing_sync_under_way_latches_when_the_loop_is_told() -> None:
    world = make_world()
    assert world.venue.close() is None
    world = again(world, faulty("sync", 8))
    world.boot()
    peer = logged_on(world)
    world.hold()
    while world.venue.sequencer.failure is None:
        peer.send(buy(peer.machine.next_number))
        world.finish()
    before = bytes(peer.transport.sent)
    assert world.venue.sequencer.submit(FROM_VENUE, 2, 1, 0, wire.encode(Disconnect(1))) == 0
    assert world.venue.sequencer.feed(2, 1, b"", 0) == (0, FULL)
    world.loop.sleep(60)
    assert bytes(peer.transport.sent) == before
    assert peer.transport.is_gone


def test_an_assertion_of_the_engine_is_written_aside_and_its_payload_barred() -> None:
    world = make_world()
    peer = logged_on(world)
    world.hold()
    peer.send(buy(1))
    peer.send(buy(2))
    # The planted defect of the node: a connection number that is not the session's next one.
    poison = wire.encode(Connect(2, "s", 0, 1_000, 0, 0, 0))
    assert world.venue.sequencer.submit(FROM_VENUE, 2, 77, 0, poison) == 0
    world.finish()
    failure = world.venue.sequencer.failure
    assert failure is not None
    assert failure.exit_code == Exit.ASSERTION
    assert "the envelope names another connection; after sequence" in failure.text
    assert peer.read() == [], "the batch was never released"
    assert peer.transport.is_gone
    (name,) = world.barred.names()
    assert name == f"{payload_hash(poison)}.barred"
    lines = world.barred.images()[name].decode().splitlines()
    assert lines[0].startswith("# AssertionError: the envelope names another connection")
    assert f"payload {poison.hex()}" in lines
    commands = next(line for line in lines if line.startswith("commands "))
    for payload in (wire.encode(buy(1)), wire.encode(buy(2)), poison):
        assert payload.hex() in commands
    assert world.venue.close() == failure
    world.boot()
    assert world.engine.open_order_count == 0, "the batch did not enter the journal"
    assert poison in world.venue.order_entry.barred


def test_an_assertion_of_the_journal_has_the_closed_batch_written_aside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The core has applied it and begun the next; it enters neither journal nor market."""
    world = make_world()
    peer = logged_on(world)

    def fail(*_: object) -> None:
        raise AssertionError("planted")

    monkeypatch.setattr(world.venue.journal, "build", fail)
    assert peer.ask(buy(1)) == []
    failure = world.venue.ended.result()
    assert failure.exit_code == Exit.ASSERTION
    (name,) = world.barred.names()
    assert name.startswith("no-payload-")
    text = world.barred.images()[name].decode()
    assert wire.encode(buy(1)).hex() in text.partition("\ncommands ")[2]
    assert world.venue.close() == failure
    world.boot()
    assert (world.engine.open_order_count, world.venue.order_entry.barred.payloads) == (0, {})


def test_an_assertion_on_the_hot_path_bars_the_frame_that_met_it() -> None:
    world = make_world()
    logged_on(world)
    frame = encode_frame(SEQUENCED, 1, wire.encode(buy(7)))
    # The planted defect: frames of a connection that is not attached.
    assert world.venue.sequencer.feed(2, 9, b"before" + frame, 6) == (6, FULL)
    assert world.venue.sequencer.failure is not None
    assert world.venue.sequencer.failure.exit_code == Exit.ASSERTION
    assert world.barred.names() == [f"{payload_hash(wire.encode(buy(7)))}.barred"]
    assert world.venue.close() is not None
    world.boot()
    (answer,) = logged_on(world).ask(buy(7))
    assert answer.code == RejectCode.PAYLOAD_BARRED


def test_a_disk_that_cannot_take_the_file_aside_changes_nothing_else() -> None:
    world = make_world()
    assert world.venue.close() is None
    world.barred = FaultyStorage(world.barred, [Fault("create", 1, errno.ENOSPC)])
    world.boot()
    assert world.venue.sequencer.feed(2, 9, b"", 0) == (0, FULL)
    failure = world.venue.sequencer.failure
    assert failure is not None
    assert failure.exit_code == Exit.ASSERTION
    assert "could not be written aside" in failure.text


def test_the_first_failure_is_the_one_that_counts() -> None:
    world = make_world()
    world.venue.sequencer.fail(Failure(74, "first"))
    world.venue.sequencer.fail(Failure(65, "second"))
    assert world.venue.sequencer.failure == Failure(74, "first")
    assert world.venue.ended.result() == Failure(74, "first")
