"""The event loop of one simulated process: asyncio's tasks and futures on the world's time.

A loop does nothing by itself. The world calls `turn` when something of the process is due; a turn
runs what was ready when it began, in the order in which it became ready, as asyncio does, and takes
a little virtual time, so that a process that never rests does not stop the world's time. Between
processes the seed decides: how long after an event a turn begins, and how long it takes, is drawn.

Callbacks run without their `contextvars` context, which nothing in the product uses.
"""

import asyncio
from asyncio.events import _set_running_loop
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Any, Final, cast
from weakref import ref

if TYPE_CHECKING:
    from tests.simulation.world import Process

__all__ = ["Handle", "ProcessLoop", "Timer"]

Context = dict[str, Any]
ExceptionHandler = Callable[[asyncio.AbstractEventLoop, Context], object]

NEVER_NS: Final = 1 << 62
NS_PER_S: Final = 1_000_000_000

MASK: Final = (1 << 61) - 1
FACTOR: Final = 1_000_003

COMPACT_COUNT_MIN: Final = 256
"""Timers that are canceled stay in the heap until they are due, or are so many and the most."""


class Handle:
    """A callback that is ready, or will be; `cancel` takes it back."""

    __slots__ = ("arguments", "callback", "is_canceled")

    def __init__(self, callback: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        self.callback = callback
        self.arguments = arguments
        self.is_canceled = False

    def cancel(self) -> None:
        self.is_canceled = True

    def cancelled(self) -> bool:
        return self.is_canceled


class Timer(Handle):
    """A callback with a time, in seconds of the loop."""

    __slots__ = ("_loop", "_when")

    def __init__(
        self,
        callback: Callable[..., object],
        arguments: tuple[Any, ...],
        loop: "ProcessLoop",
        when: float,
    ) -> None:
        self.callback = callback
        self.arguments = arguments
        self.is_canceled = False
        self._loop = loop
        self._when = when

    def when(self) -> float:
        return self._when

    def cancel(self) -> None:
        if not self.is_canceled:
            self.is_canceled = True
            self._loop.canceled_count += 1


class ProcessLoop:
    """The part of an event loop that asyncio and the product use.

    `process.loop` has it under asyncio's type. What opens sockets goes to the world's network;
    what a thread would do is done on the loop a drawn time later.
    """

    def __init__(self, process: "Process") -> None:
        self.process = process
        self.handle_count = 0
        self.turns_hash = 0
        """Of the times of all turns."""
        self.data_crc = 0
        """Of everything that was read."""
        self.canceled_count = 0
        """Timers that are canceled and still in the heap."""
        self._world = process.world
        self._network = process.world.network
        self._clock = process.clock
        self._random = process.world.random
        self._heap = process.world.heap
        self._ready: deque[Handle] = deque()
        self._timers: list[tuple[int, int, Timer]] = []
        self._timer_order = 0
        self._turn_ns = NEVER_NS  # of the turn that is due because something is ready,
        self._timer_ns = NEVER_NS  # and of that for timers
        self._is_awake = False  # a turn runs, or will because something is ready
        self._is_held = False  # the process is paused, or is no more
        self._free_ns = 0  # until when the last turn takes
        self._handler: ExceptionHandler | None = None
        self._signals: dict[int, Handle] = {}
        self._executors: dict[object, int] = {}  # when the last job of each begins
        self._turn_action = self.turn
        self.tasks: dict[asyncio.Task[Any], None] = {}
        """Those that are not done, in the order of their beginning."""

    # The world's side.

    def turn(self, due_ns: int) -> None:
        """Run what is ready now, timers that are due included; what it adds is for the next one."""
        if due_ns == self._turn_ns:
            self._turn_ns = NEVER_NS
        elif due_ns == self._timer_ns:
            self._timer_ns = NEVER_NS
        else:
            return  # Another turn was due before.
        if self._is_held:
            return
        ready, timers = self._ready, self._timers
        now_ns = self._world.now_ns
        while timers and timers[0][0] <= now_ns:
            timer = heappop(timers)[2]
            if timer.is_canceled:
                self.canceled_count -= 1
            else:
                ready.append(timer)
        if count := len(ready):
            self._is_awake = True
            self.turns_hash = (self.turns_hash * FACTOR + now_ns + count) & MASK
            if not self._run(count):
                return
            process = self.process
            self._free_ns = now_ns + process.turn_ns + int(self._random() * process.turn_spread_ns)
        if ready:
            self._turn_ns = free_ns = self._free_ns
            heappush(self._heap, (free_ns, self._random(), self._turn_action, free_ns))
            return
        self._is_awake = False
        if timers and timers[0][0] < self._timer_ns:
            self._sleep()

    def _run(self, count: int) -> bool:
        """Run the oldest ones that are ready; False: the process goes no further."""
        popleft = self._ready.popleft
        self.handle_count += count
        _set_running_loop(cast("asyncio.AbstractEventLoop", self))
        try:
            for _ in range(count):
                handle = popleft()
                if not handle.is_canceled:
                    try:
                        handle.callback(*handle.arguments)
                    except (SystemExit, KeyboardInterrupt):
                        raise
                    except BaseException as error:  # noqa: BLE001 - as asyncio does
                        self._complain(handle, error)
        finally:
            # A traceback keeps this frame: with the handle in it, it would keep the failed task.
            del handle
            _set_running_loop(None)
        return not self._is_held

    def push(self, handle: Handle) -> None:
        """Something of the system, a socket say, makes a callback of the process ready."""
        self._ready.append(handle)
        if not self._is_awake:
            self._wake()

    def hold(self) -> None:
        """No turn begins until `go_on`."""
        self._is_held = True

    def go_on(self) -> None:
        """What became ready meanwhile, or is overdue, runs soon."""
        self._is_held = False
        self._wake()

    def drop(self) -> None:
        """The process is no more: nothing of it runs again, whatever comes. The tasks stay as they
        are: their `finally` would do what the process can no longer do."""
        self._is_held = True
        for handle in self._ready:
            handle.is_canceled = True
        self._timers.clear()

    def _wake(self) -> None:
        """A turn is due soon after the event that asks for it."""
        self._is_awake = True
        if self._is_held:
            return
        process = self.process
        at_ns = max(self._free_ns, self._world.now_ns)
        at_ns += 1 + int(self._random() * process.wake_spread_ns)
        if at_ns < self._turn_ns:
            self._turn_ns = at_ns
            heappush(self._heap, (at_ns, self._random(), self._turn_action, at_ns))

    def _sleep(self) -> None:
        """There is a turn with the next timer, or before."""
        timers = self._timers
        while timers and timers[0][2].is_canceled:
            heappop(timers)
            self.canceled_count -= 1
        if timers and timers[0][0] < self._timer_ns:
            at_ns = max(timers[0][0], self._free_ns)
            at_ns += int(self._random() * self.process.wake_spread_ns)
            self._timer_ns = at_ns
            heappush(self._heap, (at_ns, self._random(), self._turn_action, at_ns))

    def _complain(self, handle: Handle, error: BaseException) -> None:
        self.call_exception_handler(
            {"message": f"Exception in callback {handle.callback!r}", "exception": error}
        )

    # Callbacks.

    def call_soon(
        self, callback: Callable[..., object], *arguments: Any, context: object = None
    ) -> Handle:
        handle = Handle(callback, arguments)
        self._ready.append(handle)
        if not self._is_awake:
            self._wake()
        return handle

    call_soon_threadsafe = call_soon

    def call_later(
        self, delay: float, callback: Callable[..., object], *arguments: Any, context: object = None
    ) -> Timer:
        # One more, so that a float that was rounded down does not make it come too early.
        local_ns = self._clock.monotonic_ns() + 1
        if delay > 0:
            local_ns += int(delay * NS_PER_S)
        return self._at(local_ns, callback, arguments)

    def call_at(
        self, when: float, callback: Callable[..., object], *arguments: Any, context: object = None
    ) -> Timer:
        return self._at(int(when * NS_PER_S) + 1, callback, arguments)

    def _at(self, local_ns: int, callback: Callable[..., object], arguments: Any) -> Timer:
        timers = self._timers
        if self.canceled_count > COMPACT_COUNT_MIN and 2 * self.canceled_count > len(timers):
            timers[:] = [one for one in timers if not one[2].is_canceled]
            heapify(timers)
            self.canceled_count = 0
        timer = Timer(callback, arguments, self, local_ns / NS_PER_S)
        self._timer_order += 1
        due_ns = self._clock.world_ns(local_ns)
        heappush(timers, (due_ns, self._timer_order, timer))
        if due_ns < self._timer_ns and not self._is_awake:
            self._sleep()
        return timer

    def time(self) -> float:
        return self._clock.monotonic_ns() / NS_PER_S

    # Tasks, futures, threads.

    def create_future(self) -> "asyncio.Future[Any]":
        return asyncio.Future(loop=cast("asyncio.AbstractEventLoop", self))

    def create_task(
        self, coro: Coroutine[Any, Any, Any] | Generator[Any, None, Any], **options: Any
    ) -> "asyncio.Task[Any]":
        task: asyncio.Task[Any] = asyncio.Task(
            cast("Coroutine[Any, Any, Any]", coro),
            loop=cast("asyncio.AbstractEventLoop", self),
            name=options.get("name") or "",  # Else asyncio counts over all worlds.
        )
        self.tasks[task] = None
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: "asyncio.Task[Any]") -> None:
        del self.tasks[task]
        if not task.cancelled() and is_unseen(task):
            self.process.failed.append(ref(task))

    def run_in_executor(
        self, executor: object, func: Callable[..., Any], *arguments: Any
    ) -> "asyncio.Future[Any]":
        """Done at a drawn time, told at another one: what is canceled between has been done. An
        executor that is given is one thread, which does its jobs in order."""
        future = self.create_future()
        start_ns = self._clock.monotonic_ns() + self._thread_ns()
        if executor is not None:
            start_ns = max(start_ns, self._executors.get(executor, 0) + 1)
            self._executors[executor] = start_ns
        self._at(start_ns, self._execute, (future, partial(func, *arguments)))
        return future

    def _thread_ns(self) -> int:
        return 1 + int(self._random() * self.process.executor_ns)

    def _execute(self, future: "asyncio.Future[Any]", job: Callable[[], Any]) -> None:
        if future.cancelled():
            return
        try:
            result, error = job(), None
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as caught:  # noqa: BLE001 - whoever waits gets it
            result, error = None, caught
        told_ns = self._clock.monotonic_ns() + self._thread_ns()
        self._at(told_ns, _tell, (future, result, error))

    # Sockets.

    async def create_server(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        host: str | None = None,
        port: int = 0,
        *,
        backlog: int = 100,
    ) -> Any:
        return self._network.listen(self.process, protocol_factory, host or "", port, backlog)

    async def create_unix_server(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        path: object = None,
        *,
        backlog: int = 100,
    ) -> Any:
        return self._network.listen_unix(self.process, protocol_factory, str(path), backlog)

    async def create_connection(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        host: str,
        port: int,
    ) -> Any:
        return await self._network.connect(self.process, protocol_factory, host, port)

    async def create_unix_connection(
        self, protocol_factory: Callable[[], asyncio.BaseProtocol], path: object = None
    ) -> Any:
        return await self._network.connect_unix(self.process, protocol_factory, str(path))

    # Signals, errors, the rest.

    def add_signal_handler(self, sig: int, callback: Callable[..., object], *args: Any) -> None:
        self._signals[sig] = Handle(callback, args)

    def signal(self, number: int) -> bool:
        """Call the handler of a signal; False: it has none."""
        handle = self._signals.get(number)
        if handle is not None:
            self.call_soon(handle.callback, *handle.arguments)
        return handle is not None

    def set_exception_handler(self, handler: ExceptionHandler | None) -> None:
        self._handler = handler

    def default_exception_handler(self, context: Context) -> None:
        self.process.fail(str(context.get("message")), context.get("exception"))

    def call_exception_handler(self, context: Context) -> None:
        """The process's own handler, or the world fails."""
        if not self.process.is_alive:
            return
        if self._handler is None:
            self.default_exception_handler(context)
            return
        try:
            self._handler(cast("asyncio.AbstractEventLoop", self), context)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001 - nothing is swallowed
            self.process.fail("Exception in the exception handler", error)

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return self.process.is_alive

    def is_closed(self) -> bool:
        return not self.process.is_alive


def is_unseen(task: "asyncio.Task[Any]") -> bool:
    """Whether the task has failed and nobody has looked."""
    return bool(getattr(task, "_log_traceback", False))


def _tell(future: "asyncio.Future[Any]", result: object, error: BaseException | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
