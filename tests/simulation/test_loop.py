"""The loop of a process: asyncio's promises on virtual time, and nothing that is swallowed."""

import asyncio
import signal
from asyncio import sleep  # It is the world's time that passes.
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest

from tests.simulation.loop import ProcessLoop
from tests.simulation.peers import forever, in_process
from tests.simulation.world import MS, Exit, Process, S, World, WorldFailure


def test_callbacks_run_in_the_order_of_the_calls() -> None:
    async def test(world: World, process: Process) -> None:
        seen: list[int] = []
        for number in range(50):
            process.loop.call_soon(seen.append, number)
        process.loop.call_soon(process.loop.call_soon, seen.append, 51)
        process.loop.call_soon_threadsafe(seen.append, 50)
        canceled = process.loop.call_soon(seen.append, -1)
        canceled.cancel()
        await sleep(1)
        assert canceled.cancelled()
        assert seen == [*range(52)]

    in_process(test)


def test_timers_run_when_they_are_due_and_equal_ones_in_order() -> None:
    async def test(world: World, process: Process) -> None:
        loop = process.loop
        seen: list[tuple[int, float]] = []

        def note(number: int) -> None:
            seen.append((number, loop.time()))

        begin = loop.time()
        loop.call_later(0.3, note, 3)
        for number in (0, 1, 2):
            loop.call_at(begin + 0.2, note, number)
        loop.call_later(-1, note, -1)
        loop.call_later(0.25, note, 9).cancel()
        await sleep(0.5)
        assert [number for number, _ in seen] == [-1, 0, 1, 2, 3]
        assert all(begin + 0.2 <= when < begin + 0.2002 for _, when in seen[1:4])
        assert 0.5 <= loop.time() - begin < 0.5002

    in_process(test)


@pytest.mark.parametrize("drift_ppm", [-200, 0, 300])
def test_a_timer_is_never_early_by_the_clock_of_its_host(drift_ppm: int) -> None:
    world = World(3)
    host = world.host("one")
    host.crash()
    world.run(7 * S + 1)
    host.boot(drift_ppm)
    process = host.process("test")
    process.wake_spread_ns = process.turn_spread_ns = 0
    checked: list[int] = []

    for wait_s in (0.001, 0.1, 1.0, 3.3333333, 100.0, 12345.678):
        before_ns = process.clock.monotonic_ns()
        process.loop.call_later(wait_s, lambda: checked.append(process.clock.monotonic_ns()))
        world.run(world.now_ns + 13_000 * S)
        assert wait_s * S <= checked[-1] - before_ns < wait_s * S + 10_000
    assert len(checked) == 6
    gone_ns = world.host("one").clock.monotonic_ns()
    assert gone_ns == (world.now_ns - 7 * S - 1) * (1_000_000 + drift_ppm) // 1_000_000


def test_canceled_timers_do_not_pile_up() -> None:
    async def test(world: World, process: Process) -> None:
        loop = process.loop_facade
        for _ in range(5_000):
            loop.call_later(1_000, print).cancel()
        assert len(loop._timers) < 600

    in_process(test)


def test_timeouts_groups_events_and_queues() -> None:
    async def test(world: World, process: Process) -> None:
        begin = process.loop.time()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2):
                await sleep(3)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 2)
        assert await asyncio.wait_for(sleep(1, "in time"), 2) == "in time"
        assert process.loop.time() - begin == pytest.approx(5, abs=0.01)

        results: list[int] = []
        queue: asyncio.Queue[int] = asyncio.Queue(maxsize=2)
        event = asyncio.Event()

        async def produce() -> None:
            await event.wait()
            for number in range(10):
                await queue.put(number)

        async def consume() -> None:
            for _ in range(10):
                results.append(await queue.get())

        async with asyncio.TaskGroup() as group:
            group.create_task(produce())
            group.create_task(consume())
            process.loop.call_later(1, event.set)
        assert results == [*range(10)]

        async def fail() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(sleep(1_000_000))
                group.create_task(_raise_in(1))

        with pytest.raises(ExceptionGroup):
            await fail()
        done, pending = await asyncio.wait([process.spawn(sleep(1))], timeout=2)
        assert (len(done), len(pending)) == (1, 0)
        async with asyncio.Lock(), asyncio.Semaphore(1):
            assert [*await asyncio.gather(sleep(1, 1), sleep(1, 2))] == [1, 2]
        assert await asyncio.shield(sleep(1, 3)) == 3

    in_process(test)


async def _raise_in(wait_s: float) -> None:
    await sleep(wait_s)
    raise LookupError("planned")


def test_threads_work_is_done_at_a_time_and_told_at_another() -> None:
    async def test(world: World, process: Process) -> None:
        done: list[list[int]] = []
        assert await asyncio.to_thread(sum, (1, 2)) == 3
        with pytest.raises(ZeroDivisionError):
            await process.loop.run_in_executor(None, divmod, 1, 0)
        told = 0
        for _ in range(200):
            done.append([])
            job = process.loop.run_in_executor(None, done[-1].append, 1)
            with suppress(TimeoutError):
                await asyncio.wait_for(job, 0.0005)
                told += 1
        await sleep(1)
        assert 0 < told < len([*filter(None, done)]) < 200, "some are canceled before, some between"

        with ThreadPoolExecutor(1) as one:  # It never starts a thread.
            order: list[int] = []
            for number in range(20):
                process.loop.run_in_executor(one, order.append, number)
            await sleep(1)
            assert order == [*range(20)], "one thread does its jobs in order"

    in_process(test)


def test_a_callback_that_fails_fails_the_world() -> None:
    async def test(world: World, process: Process) -> None:
        process.loop.call_soon(divmod, 1, 0)
        await sleep(1)

    with pytest.raises(WorldFailure, match=r"divmod.*ZeroDivisionError") as caught:
        in_process(test)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_task_whose_failure_nobody_sees_fails_the_world() -> None:
    async def held(world: World, process: Process) -> None:
        vars(process)["kept"] = process.spawn(_raise_in(1))
        await sleep(2)

    async def dropped(world: World, process: Process) -> None:
        process.spawn(_raise_in(1))
        await sleep(2)
        raise AssertionError("the world goes on")

    for test in (held, dropped):
        with pytest.raises(WorldFailure, match=r"never retrieved.*LookupError"):
            in_process(test)


def test_a_failure_that_is_seen_later_is_none() -> None:
    async def test(world: World, process: Process) -> None:
        task = process.spawn(_raise_in(1))
        await sleep(2)
        with pytest.raises(LookupError):
            await task

    in_process(test)


def test_a_main_coroutine_that_fails_fails_the_world() -> None:
    async def test(world: World, process: Process) -> None:
        raise LookupError("planned")

    with pytest.raises(WorldFailure, match=r"main coroutine.*LookupError"):
        in_process(test)


def test_a_process_may_handle_its_failures_itself() -> None:
    seen: list[dict[str, Any]] = []

    async def test(world: World, process: Process) -> None:
        process.loop.set_exception_handler(lambda _, context: seen.append(context))
        process.loop.call_soon(divmod, 1, 0)
        task = process.spawn(_raise_in(1))
        await sleep(2)
        assert task.done()

    in_process(test)
    assert [type(context["exception"]) for context in seen] == [ZeroDivisionError, LookupError]


def test_a_handler_that_fails_fails_the_world() -> None:
    async def test(world: World, process: Process) -> None:
        process.loop.set_exception_handler(lambda _, context: divmod(1, 0))
        process.loop.call_soon(int, "x")
        await sleep(1)

    with pytest.raises(WorldFailure, match="in the exception handler"):
        in_process(test)


def test_an_exit_cancels_the_rest_and_waits_for_it() -> None:
    world = World(1)
    process = world.host("one").process("test")
    told: list[object] = []

    async def tidy() -> None:
        try:
            await forever()
        finally:
            await sleep(1)
            told.append("tidied")

    async def main() -> int:
        process.spawn(tidy())
        await sleep(1)
        return 74

    process.start(main(), on_exit=lambda ended: told.append((ended.exit, world.now_ns // S)))
    world.run(10 * S)
    assert told == ["tidied", (Exit(74), 2)]
    assert not process.is_alive
    assert not world.host("one").processes
    world.close()


def _killed(
    world: World, wait_ns: int, kill: Callable[[Process], object]
) -> tuple[Process, list[object]]:
    """A process with much under way that is killed, and what happens in it."""
    process = world.host("one").process("test")
    told: list[object] = []

    async def wait() -> None:
        try:
            await forever()
        finally:
            told.append("finally")

    async def main() -> int:
        process.spawn(wait())
        await sleep(0)
        process.loop.call_later(3, told.append, "timer")
        process.loop.run_in_executor(None, told.append, "thread")
        for _ in range(100):
            process.loop.call_soon(told.append, "callback")
        kill(process)
        process.loop.call_soon(told.append, "after")
        return await forever()

    async def begin() -> int:
        await sleep(wait_ns / S)
        return await main()

    process.start(begin(), on_exit=lambda ended: told.append(ended.exit))
    return process, told


def test_a_kill_drops_everything() -> None:
    world = World(1)
    process, told = _killed(world, S, lambda process: process.kill())
    world.run(10 * S)
    assert told == [Exit(-1, 9)], "what a killed process does is no more"
    process.loop.call_soon(told.append, "late")
    process.kill()
    world.run(20 * S)
    assert told == [Exit(-1, 9)]
    world.close()
    assert told == [Exit(-1, 9), "finally"], "only when the world is over"


def test_a_kill_ends_the_turn() -> None:
    world = World(1)
    process = world.host("one").process("test")
    told: list[int] = []
    process.loop.call_soon(told.append, 1)
    process.loop.call_soon(process.kill)
    process.loop.call_soon(told.append, 2)
    world.run(S)
    assert told == [1]
    world.close()


def test_what_a_process_raises_after_its_end_is_nobodys() -> None:
    seen: list[object] = []

    def kill(process: Process) -> None:
        process.loop.set_exception_handler(lambda _, context: seen.append(context))
        process.kill()
        raise OSError("its disk is gone")

    world = World(1)
    _, told = _killed(world, S, kill)
    process = world.host("one").process("other")
    process.loop.call_soon(kill, process)
    world.run(10 * S)
    world.check()
    world.close()
    assert told == [Exit(-1, 9), "finally"]
    assert not seen


def test_a_kill_before_the_first_step() -> None:
    world = World(1)
    process = world.host("one").process("test")
    process.start(forever())
    process.spawn(forever())
    process.kill()
    world.run(S)
    world.close()


def test_a_failure_that_was_not_seen_is_reported_at_the_kill() -> None:
    world = World(1)
    process = world.host("one").process("test")
    task = process.spawn(_raise_in(1))
    world.run(2 * S)
    process.kill()
    with pytest.raises(WorldFailure, match="never retrieved"):
        world.run(3 * S)
    assert task.done()
    world.close()


def test_a_paused_process_does_nothing_and_then_everything() -> None:
    world = World(1)
    process = world.host("one").process("test")
    seen: list[tuple[int, int]] = []

    async def main() -> int:
        for number in range(4):
            await sleep(1)
            seen.append((number, world.now_ns // S))
        return 0

    process.start(main())
    callbacks: list[int] = []
    process.loop.call_later(2, callbacks.append, 1)
    world.at(1_500 * MS, process.pause)
    world.run(20 * S)
    assert (seen, callbacks) == ([(0, 1)], [])
    process.resume()
    world.run(40 * S)
    assert seen == [(0, 1), (1, 20), (2, 21), (3, 22)]
    assert process.exit == Exit(0)


def test_a_process_that_pauses_itself_goes_on_later() -> None:
    async def test(world: World, process: Process) -> None:
        world.after(5 * S, process.resume)
        process.pause()
        await sleep(0)
        assert world.now_ns >= 5 * S

    in_process(test)


def test_signals() -> None:
    world = World(1)
    host = world.host("one")
    polite, rude = host.process("polite"), host.process("rude")

    async def main() -> int:
        stopped = asyncio.Event()
        polite.loop.add_signal_handler(signal.SIGTERM, stopped.set)
        await stopped.wait()
        return 3

    polite.start(main())
    rude.start(forever())
    world.run(S)
    polite.signal(signal.SIGTERM)
    rude.signal(signal.SIGTERM)
    world.run(2 * S)
    assert (polite.exit, rude.exit) == (Exit(3), Exit(-1, signal.SIGTERM))
    polite.signal(signal.SIGTERM)  # It is nobody's any more.
    world.close()


def test_a_process_that_never_rests_does_not_stop_the_time() -> None:
    world = World(1)
    process = world.host("one").process("test")

    def again() -> None:
        process.loop.call_soon(again)

    process.loop.call_soon(again)
    world.run(10 * MS)
    assert 10 * MS // 22_000 <= world.handle_count <= 10 * MS // 2_000
    world.close()


def test_the_seed_chooses_between_processes() -> None:
    def order(seed: int) -> str:
        world = World(seed)
        seen: list[str] = []
        for name in "abcdef":
            process = world.host(name).process(name)
            process.loop.call_later(1, seen.append, name)
        world.run(2 * S)
        return "".join(seen)

    orders = {order(seed) for seed in range(40)}
    assert len(orders) > 20
    assert order(5) == order(5)


def test_coroutines_that_wait_when_they_are_closed_end_with_the_world() -> None:
    world = World(1)
    process = world.host("one").process("test")

    async def stubborn() -> None:
        while True:
            try:
                await sleep(1)
            finally:
                await sleep(1)  # Closing it does not end it at once.

    process.spawn(stubborn())
    world.run(S)
    world.close()
    assert not process.loop_facade.tasks


@pytest.mark.parametrize("name", ["is_running", "is_closed"])
def test_a_loop_says_whether_it_runs(name: str) -> None:
    process = World(1).host("one").process("test")
    before = getattr(process.loop, name)()
    process.kill()
    assert getattr(process.loop, name)() is not before
    assert isinstance(process.loop_facade, ProcessLoop)
