"""What happens to a venue on a bad day: clocks that are set, disks that fill, ends that overlap."""

import errno
import sys
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

import pytest

from exchange.core.engine import RULES_VERSION
from exchange.core.replay import ReplayError
from exchange.logs import Log
from exchange.node import sequencer as sequencer_module
from exchange.node.failure import Exit, ServiceError
from exchange.node.limits import CLOCK_BEHIND_MAX_NS
from journal import run_inline
from journal.faulty import Fault, FaultyStorage
from journal.memory import MemoryStorage
from journal.prepare import Join
from protocol.codes import RejectCode
from protocol.order_entry import CancelOrder, NewOrder, OrderAccepted, OrderCanceled, ReplaceOrder
from protocol.transport import LogOut, SessionReject
from tests.exchange.node.market import buy, kinds, logged_on, make_world, open_market
from tests.exchange.node.world import World

HOUR_NS = 3_600 * 10**9
SECOND_NS = 10**9


@pytest.mark.parametrize("ending", ["lost", "log-out"])
def test_cancel_on_disconnect_fires_after_the_clock_was_set_back(ending: str) -> None:
    world = make_world()
    peer = logged_on(world, cancel_on_disconnect=3, cancel_grace_ms=1_000)
    world.clock.offset_ns = HOUR_NS
    peer.ask(buy(1))
    world.clock.offset_ns = 0
    if ending == "lost":
        peer.transport.lose()
    else:
        peer.send(LogOut())
    world.loop.sleep(0.9 if ending == "lost" else 0)
    assert world.engine.open_order_count == (1 if ending == "lost" else 0)
    world.loop.sleep(0.2)
    assert world.engine.open_order_count == 0


def test_a_clock_far_behind_the_journal_is_refused_at_start() -> None:
    world = make_world()
    logged_on(world).ask(buy(1))
    world.venue.close()
    world.loop.now_ns -= CLOCK_BEHIND_MAX_NS + SECOND_NS
    with pytest.raises(ServiceError, match="clock is 60 s behind the journal") as caught:
        world.boot()
    assert caught.value.exit_code == Exit.CONFIGURATION
    world.loop.now_ns += 2 * SECOND_NS
    world.boot()


def test_records_of_other_rules_are_refused_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world()
    world.venue.close()
    monkeypatch.setattr(sequencer_module, "RULES_VERSION", 7)
    world.boot()
    world.venue.close()
    with pytest.raises(
        ReplayError, match=f"has rules 7, this build replays {RULES_VERSION}"
    ) as caught:
        world.boot()
    assert caught.value.exit_code == Exit.CONFIGURATION


def test_a_disk_that_is_nearly_full_takes_cancels_only() -> None:
    world = make_world()
    peer = logged_on(world)
    assert kinds(peer.ask(buy(1))) == [OrderAccepted]
    world.disk.free_bytes = 0
    world.loop.sleep(1.1)
    refusals: list[Any] = peer.ask(buy(2)) + peer.ask(ReplaceOrder(3, 1, 0, 4_900, 100))
    assert kinds(refusals) == [SessionReject, SessionReject]
    assert {refusal.code for refusal in refusals} == {RejectCode.DISK_LOW}
    assert {refusal.retry_after_ns for refusal in refusals} == {SECOND_NS}
    assert kinds(peer.ask(CancelOrder(1))) == [OrderCanceled]
    world.disk.free_bytes = 2**40
    world.loop.sleep(1.1)
    assert kinds(peer.ask(buy(4))) == [OrderAccepted]


def test_work_left_over_by_a_crash_goes_before_the_start_and_no_deadline_does() -> None:
    world = make_world(limits={"work_per_command_max": 1})
    maker, taker = logged_on(world), logged_on(world, key=3, session="taker")
    victim = logged_on(world, session="victim", cancel_on_disconnect=1, cancel_grace_ms=1_000)
    victim.ask(NewOrder(1, 1, 1, 1, 100, 100))
    count = 20_000  # Two fills each: more events than two batches hold.
    for client_order_id in range(1, count + 1):
        maker.send(NewOrder(client_order_id, 1, 1, 1, 5_000, 100))
        if client_order_id % 500 == 0:
            world.finish()
            maker.read()
    victim.transport.lose()
    world.finish()
    world.hold()
    taker.send(NewOrder(1, 1, 2, 2, 5_000, 100 * count))
    world.loop.run()
    world.committer.sync()
    assert world.engine.has_pending, "the sweep fits one batch"
    world.crash(Random(1))
    world.loop.now_ns += 10 * SECOND_NS
    world.boot()
    world.finish()
    assert world.engine.open_order_count == 1, "the grace starts anew with the venue"
    world.loop.sleep(1.1)
    assert world.engine.open_order_count == 0


def test_a_log_out_while_the_venue_stops_is_durable_before_it_ends() -> None:
    world = make_world()
    peer = logged_on(world)
    world.hold()
    peer.send(buy(1))
    world.loop.run()
    world.venue.drain(lambda: None)
    peer.send(LogOut())
    world.loop.run()
    settled: list[int] = []
    world.committer.sync()
    world.venue.settle(lambda: settled.append(world.venue.sequencer.durable_sequence))
    assert settled == []
    world.finish()
    assert settled == [world.engine.sequence]
    assert world.venue.close() is None


class BrokenPipe:
    def write(self, text: str) -> None:
        raise BrokenPipeError(text)

    def flush(self) -> None:
        raise AssertionError("flushed what was not written")


def test_a_log_line_that_cannot_be_written_is_lost_quietly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stderr", BrokenPipe())
    Log().info("anything")


@pytest.mark.parametrize("folder", ["commands", "events"])
def test_work_in_the_background_that_has_failed_ends_an_idle_venue(folder: str) -> None:
    """Nobody sends anything that would meet it: the next segment is missing, or an index."""
    storages: dict[str, FaultyStorage] = {}
    jobs: list[Callable[[], None]] = []

    def wrap(name: str, disk: MemoryStorage) -> FaultyStorage:
        storages[name] = FaultyStorage(disk)
        return storages[name]

    def put_off(job: Callable[[], None]) -> Join:
        jobs.append(job)
        return lambda: True

    world = World(wrap=partial(wrap, "commands"), wrap_events=partial(wrap, "events"))
    world.event_segment_size = 256
    world.prepare = put_off
    world.boot()
    open_market(world)
    assert len(jobs) == 2, "the next segment of commands/, and an index of events/"
    storages[folder].add(Fault("create", 1, errno.ENOSPC, is_persistent=True))
    for job in jobs:
        job()
    world.loop.sleep(0.5)
    assert not world.venue.ended.done()
    world.loop.sleep(0.6)
    failure = world.venue.ended.result()
    assert failure.exit_code == Exit.STORAGE_FAILED
    assert "No space left on device" in failure.text
    assert world.venue.close() == failure
    world.prepare = run_inline
    world.boot()
    assert OrderAccepted in kinds(logged_on(world).ask(buy(1)))
