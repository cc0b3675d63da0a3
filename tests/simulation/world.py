"""A world on one seed: virtual time, hosts with clocks of their own, processes, and a network.

Nothing happens but what the heap of events says, in the order of virtual time, and everything that
chance decides comes from the seed: a seed is a run, the same on every machine with the same version
of Python (asyncio itself differs between versions). Nothing reads the real time, and no order
depends on an object's address or on a string's hash.

    world = World(7)
    host = world.host("venue")
    process = host.process("exchange")
    process.start(main())               # a coroutine; its result is the exit code
    world.at(2 * S, process.kill)
    world.run(10 * S)                   # raises WorldFailure if a process has failed
    world.close()

What the world is asked for is in `Host` and `Process`; the network is `world.network`.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from heapq import heappop, heappush
from random import Random
from typing import Any, Final, NamedTuple, cast
from weakref import ref
from zlib import crc32

from tests.simulation.loop import FACTOR, MASK, ProcessLoop, is_unseen
from tests.simulation.network import Network

__all__ = ["MS", "US", "Exit", "Host", "HostClock", "Process", "S", "Step", "World", "WorldFailure"]

US: Final = 1_000
MS: Final = 1_000_000
S: Final = 1_000_000_000
START_UTC_NS: Final = 1_800_000_000 * S
"""What the clocks say at the beginning."""

STEPS_KEPT: Final = 400
"""The last steps of a run, printed when it fails."""

PPM: Final = 1_000_000

Event = tuple[int, float, Callable[[Any], object], Any]


class WorldFailure(Exception):
    """A process has failed in a way that it does not handle, or a check of the world has."""


class Step(NamedTuple):
    """Something that happened."""

    now_ns: int
    who: str
    what: str
    detail: object

    def __str__(self) -> str:
        return f"{self.now_ns / S:14.9f} {self.who:<20} {self.what} {self.detail}"


class Exit(NamedTuple):
    """How a process has ended: with a code, or (code -1) by a signal, 9 when it was killed."""

    code: int
    signal: int = 0


class World:
    """See the module."""

    def __init__(self, seed: int, *, on_step: Callable[[Step], None] | None = None) -> None:
        """`on_step` gets every step; without it the last ones are kept all the same."""
        self.seed = seed
        self.now_ns = 0
        """Virtual time since the beginning; what a process knows of it is its host's clock."""
        self.random = Random(seed).random
        """For the world itself; who builds on it takes `dice`."""
        self.heap: list[Event] = []
        self.steps: deque[Step] = deque(maxlen=STEPS_KEPT)
        self.failures: list[WorldFailure] = []
        self.network = Network(self)
        self.hosts: dict[str, Host] = {}
        self._on_step = on_step
        self._until_ns = 0
        self._hash = seed & MASK
        self._processes: list[Process] = []

    # For who builds on it.

    def dice(self, purpose: str) -> Random:
        """A generator of its own for a purpose, so that one more throw of one does not change all
        others."""
        return Random(f"{self.seed}/{purpose}")

    def host(self, name: str) -> "Host":
        """The host of that name; a new one is up."""
        host = self.hosts.get(name)
        if host is None:
            host = self.hosts[name] = Host(self, name, len(self.hosts) + 1)
        return host

    def at(self, due_ns: int, action: Callable[[], object]) -> None:
        """Call an action at a time, outside of any process."""
        assert due_ns >= self.now_ns, "the past is over"
        heappush(self.heap, (due_ns, self.random(), _call, action))

    def after(self, delay_ns: int, action: Callable[[], object]) -> None:
        """Call an action after a time, outside of any process."""
        self.at(self.now_ns + delay_ns, action)

    def run(self, until_ns: int) -> None:
        """Let time go on until then, or until `stop`. Raises WorldFailure: the first one."""
        heap = self.heap
        self._until_ns = until_ns
        while heap and heap[0][0] <= self._until_ns:
            self.now_ns, _, action, argument = heappop(heap)
            action(argument)
        if self._until_ns == until_ns:
            self.now_ns = max(self.now_ns, until_ns)
        if self.failures:
            raise self.failures[0]

    def stop(self) -> None:
        """End `run` with the event that calls this."""
        self._until_ns = -1

    def fail(self, text: str, error: BaseException | None = None) -> None:
        """Something is wrong: the run ends with this event."""
        failure = WorldFailure(text)
        failure.__cause__ = error
        self.failures.append(failure)
        self.note("world", "failure", text)
        self.stop()

    def check(self) -> None:
        """Tasks that have failed unseen are failures. Raises WorldFailure."""
        for process in self._processes:
            process.check()
        if self.failures:
            raise self.failures[0]

    def close(self) -> None:
        """Let go of everything. The tasks that are left end here, when nothing listens any more."""
        for process in self._processes:
            process.vanish()
        for process in self._processes:
            process.bury()
        self.heap.clear()

    # What happened.

    def note(self, who: str, what: str, detail: object = "") -> None:
        """A step of the run: a fault, a start. The run's hash has it; of `detail` only a text,
        since what else there is may show an address of memory."""
        step = Step(self.now_ns, who, what, detail)
        self.steps.append(step)
        text = f"{who} {what} {detail if isinstance(detail, str) else ''}"
        self._hash = (self._hash * FACTOR + self.now_ns + crc32(text.encode())) & MASK
        if self._on_step is not None:
            self._on_step(step)

    @property
    def run_hash(self) -> str:
        """Of everything so far: when turns were, what was read in them, what was noted."""
        number = self._hash
        for process in self._processes:
            loop = process.loop_facade
            number = (number * FACTOR + loop.turns_hash + loop.data_crc) & MASK
        return f"{number:016x}"

    @property
    def handle_count(self) -> int:
        """Callbacks that were run in all processes."""
        return sum(process.loop_facade.handle_count for process in self._processes)

    def add(self, process: "Process") -> None:
        """For Host."""
        self._processes.append(process)


class HostClock:
    """The clock of a host: an `exchange.clock.Clock` that is off, drifts, and may be set.

    The drift changes with a boot at most, so that a timer's time in the world is known.
    """

    def __init__(self, world: World) -> None:
        self.offset_ns = 0
        """How far UTC is off; may be changed at any time, which is a step."""
        self.drift_ppm = 0
        self._world = world
        self._boot_ns = 0

    def time_ns(self) -> int:
        return START_UTC_NS + self.offset_ns + self._boot_ns + self.monotonic_ns()

    def monotonic_ns(self) -> int:
        """Since the host was booted."""
        gone_ns = self._world.now_ns - self._boot_ns
        return gone_ns + gone_ns * self.drift_ppm // PPM if self.drift_ppm else gone_ns

    def world_ns(self, local_ns: int) -> int:
        """When the monotonic reading will be that, in the world's time."""
        if self.drift_ppm:
            local_ns = -(-local_ns * PPM // (PPM + self.drift_ppm))
        return self._boot_ns + local_ns

    def boot(self, drift_ppm: int) -> None:
        """The monotonic reading begins anew."""
        self._boot_ns = self._world.now_ns
        self.drift_ppm = drift_ppm


class Host:
    """A machine. Its disks are not here: they outlive everything."""

    def __init__(self, world: World, name: str, number: int) -> None:
        self.world = world
        self.name = name
        self.address = f"10.0.{number >> 8}.{number & 255}"
        self.clock = HostClock(world)
        self.is_up = True
        self.processes: dict[Process, None] = {}
        """Those that are alive."""

    def process(self, name: str) -> "Process":
        """A new process; one that has ended is never used again."""
        assert self.is_up, "the host is down"
        process = Process(self, name)
        self.processes[process] = None
        self.world.add(process)
        return process

    def crash(self) -> None:
        """Power loss: everything that runs is gone, and nobody on the network is told."""
        self.world.note(self.name, "power loss")
        self.is_up = False
        for process in list(self.processes):
            process.end(Exit(-1, 9), is_silent=True)

    def boot(self, drift_ppm: int = 0) -> None:
        """The machine is back: its monotonic clock begins anew, and it answers what is for
        connections that it does not know with a reset."""
        assert not self.is_up, "it is up"
        self.world.note(self.name, "boot")
        self.is_up = True
        self.clock.boot(drift_ppm)
        self.world.network.booted(self)


class Process:
    """A process: its loop, its sockets, its end.

    `on_write(transport, data)` and `on_send(sender, packets)` are told what leaves it, before it
    does. `turn_ns` and `turn_spread_ns` are what a turn of its loop takes, `wake_spread_ns` how
    long it sleeps on at most after an event, `executor_ns` what a thread's job waits and takes at
    most, each: change them for a slow machine.
    """

    def __init__(self, host: Host, name: str) -> None:
        self.host = host
        self.name = name
        self.world = host.world
        self.clock = host.clock
        self.is_alive = True
        self.exit: Exit | None = None
        self.turn_ns = 2 * US
        self.turn_spread_ns = 20 * US
        self.wake_spread_ns = 20 * US
        self.executor_ns = MS
        self.on_write: Callable[[Any, bytes], object] | None = None
        self.on_send: Callable[[Any, list[tuple[int, bytes]]], object] | None = None
        self.failed: list[ref[asyncio.Task[Any]]] = []
        """Tasks that have ended with an exception that nobody had seen then. When nobody can see it
        any more, asyncio complains."""
        self.sockets: dict[Any, None] = {}
        """What the system closes when the process ends: connections, listeners, datagrams."""
        self.loop_facade = ProcessLoop(self)
        self.loop = cast("asyncio.AbstractEventLoop", self.loop_facade)
        self.on_end: Callable[[Process], object] | None = None
        """Called at its end, before anything of it could go on: its files are closed."""
        self._on_exit: Callable[[Process], object] | None = None
        self._main_coroutine: Coroutine[Any, Any, int] | None = None

    def __repr__(self) -> str:
        return f"{self.host.name}/{self.name}"

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """Run a coroutine in the process, beside others."""
        return self.loop.create_task(coroutine)

    def start(
        self,
        main: Coroutine[Any, Any, int],
        on_exit: "Callable[[Process], object] | None" = None,
    ) -> "asyncio.Task[Any]":
        """Run the process's main coroutine: when it returns, what else runs is canceled and
        waited for, and the process exits with the code. What it raises is a failure of the world.

        `on_exit` is called once, outside of the process, however it ends; `exit` says how.
        """
        self._on_exit = on_exit
        self._main_coroutine = main
        self.world.note(repr(self), "start")
        return self.spawn(self._main(main))

    async def _main(self, main: Coroutine[Any, Any, int]) -> None:
        own = asyncio.current_task()
        try:
            code = await main
            others = [task for task in self.loop_facade.tasks if task is not own]
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            for task in others:
                if not task.cancelled() and (error := task.exception()) is not None:
                    self.loop.call_exception_handler(
                        {"message": "unhandled exception at the end", "exception": error}
                    )
        except BaseException as error:  # noqa: BLE001 - nothing is swallowed
            self.fail("the main coroutine has failed", error)
            return
        if self.is_alive:
            self.end(Exit(code))

    def kill(self) -> None:
        """SIGKILL: nothing of it runs any more; the system closes its sockets, so that its peers
        see an end or a reset."""
        if self.is_alive:
            self.end(Exit(-1, 9))

    def signal(self, number: int) -> None:
        """Send a signal to a handler (`loop.add_signal_handler`); without one the process dies."""
        if self.is_alive and not self.loop_facade.signal(number):
            self.end(Exit(-1, number))

    def pause(self) -> None:
        """SIGSTOP: the system goes on receiving for it, and it does nothing."""
        self.world.note(repr(self), "pause")
        self.loop_facade.hold()

    def resume(self) -> None:
        """SIGCONT."""
        if self.is_alive:
            self.world.note(repr(self), "resume")
            self.loop_facade.go_on()

    def end(self, exit: Exit, *, is_silent: bool = False) -> None:
        """The process is gone; `is_silent`: its machine too, so that its peers are not told."""
        assert self.is_alive, "a process ends once"
        self.world.note(repr(self), "end", exit)
        self.check()
        self.exit = exit
        self.vanish()
        del self.host.processes[self]
        for one in list(self.sockets):
            one.drop(is_silent)
        if self.on_end is not None:
            self.on_end(self)
        if self._on_exit is not None:
            self.world.after(0, self._tell_exit)

    def fail(self, text: str, error: BaseException | None = None) -> None:
        """Something in the process is wrong and nobody handles it. After its end nothing is."""
        if self.is_alive:
            self.world.fail(f"{self!r}: {text}: {error!r}", error)

    def check(self) -> None:
        """Tasks that have failed unseen are reported as asyncio does it."""
        failed, self.failed = self.failed, []
        for one in failed:
            task = one()
            if task is not None and is_unseen(task):
                error = task.exception()
                message = "Task exception was never retrieved"
                context = {"message": message, "exception": error, "task": task}
                self.loop.call_exception_handler(context)

    def vanish(self) -> None:
        """Nothing of it runs any more."""
        self.is_alive = False
        self.loop_facade.drop()

    def bury(self) -> None:
        """End the coroutines that were left. What they still do, nobody sees."""
        tasks = [*self.loop_facade.tasks]
        self.loop_facade.tasks.clear()
        for task in tasks:
            setattr(task, "_log_destroy_pending", False)  # noqa: B010 - it is asyncio's
            _end(cast("Coroutine[Any, Any, Any]", task.get_coro()))
        if self._main_coroutine is not None:
            _end(self._main_coroutine)  # It may not have begun.

    def _tell_exit(self) -> None:
        assert self._on_exit is not None
        self._on_exit(self)


CLOSES_MAX: Final = 16
"""Times that a coroutine may go on waiting when it is closed."""


def _end(coroutine: Coroutine[Any, Any, Any]) -> None:
    for _ in range(CLOSES_MAX):
        try:
            coroutine.close()
        except BaseException:  # noqa: BLE001 - its process is no more
            continue
        return


def _call(action: Callable[[], object]) -> None:
    action()
