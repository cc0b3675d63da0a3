"""Machines, and what systemd does on them: programs that are started, ended, and started again.

The rules are read from the unit files that operators install, so the simulator restarts what they
restart, waits as they wait, and gives up where they give up.
"""

from collections.abc import Callable, Coroutine
from configparser import ConfigParser
from functools import cache
from signal import SIGTERM
from typing import Any, Final, NamedTuple, Protocol

from exchange.logs import Log
from journal import Storage
from tests.simulation.world import Exit, Host, Process, World
from tests.source_tree import SOURCE

__all__ = ["Disk", "Machine", "Observer", "Program", "Rules", "Unit", "log_of", "rules_of"]

NS_PER_S: Final = 1_000_000_000
BOOT_NS: Final = 2 * NS_PER_S
"""How long a machine takes at most until it starts its programs."""

CLEAN_SIGNALS: Final = (1, 2, 13, 15)
"""systemd.service(5): HUP, INT, PIPE and TERM are clean ends; only other ones are failures."""


class Rules(NamedTuple):
    """When a program that has ended is started again."""

    prevented: frozenset[int]
    """Exit codes after which it is not."""
    pause_ns: int
    interval_ns: int
    burst: int
    """So many starts in an interval; after that it waits for a person."""

    def is_failure(self, exit: Exit) -> bool:
        """Restart=on-failure."""
        if exit.signal:
            return exit.signal not in CLEAN_SIGNALS
        return exit.code != 0 and exit.code not in self.prevented


@cache
def rules_of(name: str) -> Rules:
    """Those of a unit file, exchange.service say."""
    parser = ConfigParser(strict=False, interpolation=None)
    parser.read_string((SOURCE / "systemd" / name).read_text())
    unit, service = parser["Unit"], parser["Service"]
    assert service["Restart"] == "on-failure", "no other way is simulated"
    return Rules(
        frozenset(map(int, service["RestartPreventExitStatus"].split())),
        int(service["RestartSec"]) * NS_PER_S,
        int(unit["StartLimitIntervalSec"]) * NS_PER_S,
        int(unit["StartLimitBurst"]),
    )


class Disk(Protocol):
    """The disk of a machine; it outlives everything on it."""

    def open(self, process: Process, folder: str, *, is_read_only: bool = False) -> Storage:
        """A folder as this process has it."""

    def ended(self, process: Process) -> None:
        """The process is no more: its files are closed, its locks free."""


class Program(Protocol):
    """What a unit runs."""

    name: str
    rules: Rules

    def main(self, unit: "Unit", process: Process) -> Coroutine[Any, Any, int]:
        """The process from its beginning; the result is its exit code."""


class Observer:
    """Is told what happens to units; a checker overrides what it wants to know."""

    def starting(self, unit: "Unit", process: Process) -> None:
        """A process was made, and nothing of it has run."""

    def recovered(self, unit: "Unit") -> None:
        """It knows what was there before it; nobody has heard of it."""

    def ready(self, unit: "Unit") -> None:
        """It lets clients in now."""

    def ended(self, unit: "Unit", exit: Exit) -> None:
        """It has ended, however."""

    def gave_up(self, unit: "Unit", exit: Exit) -> None:
        """It will not be started again before a person does."""


class Machine:
    """A host with a disk, and its units in the order in which they start with it."""

    def __init__(
        self, world: World, name: str, disk: Disk, observer: Observer | None = None
    ) -> None:
        self.world = world
        self.host: Host = world.host(name)
        self.disk = disk
        self.observer = observer or Observer()
        self.units: dict[str, Unit] = {}

    def add(self, program: Program) -> "Unit":
        """A unit that runs the program once it is started."""
        assert program.name not in self.units, "names are given once"
        unit = self.units[program.name] = Unit(self, program)
        return unit

    @property
    def is_up(self) -> bool:
        return self.host.is_up

    def power_loss(self, lose: Callable[[], object] = lambda: None) -> None:
        """Everything that runs is gone; `lose` is what becomes of the disk."""
        self.host.crash()
        for unit in self.units.values():
            unit.lost()
        lose()

    def boot(self, drift_ppm: int = 0) -> None:
        """The machine is back, and starts every unit that was not stopped, soon."""
        self.host.boot(drift_ppm)
        for unit in self.units.values():
            unit.booted()


class Unit:
    """A program on a machine, and its process, if there is one."""

    def __init__(self, machine: Machine, program: Program) -> None:
        self.machine = machine
        self.program = program
        self.process: Process | None = None
        self.is_ready = False
        self.is_enabled = False
        """Whether it shall run: from `start` to `stop`."""
        self.is_given_up = False
        """Whether it waits for a person."""
        self.start_count = 0
        self.exits: list[Exit] = []
        self._starts: list[int] = []  # when it was started, as far as the limit counts
        self._plan = 0  # counts what was planned; an older plan is void

    def __repr__(self) -> str:
        return f"{self.machine.host.name}/{self.program.name}"

    @property
    def is_running(self) -> bool:
        return self.process is not None

    # What a person does.

    def start(self) -> None:
        """systemctl reset-failed, and start: at once, if the machine is up."""
        self.is_enabled = True
        self.is_given_up = False
        self._starts.clear()
        if self.process is None and self.machine.is_up:
            self._start()

    def stop(self) -> None:
        """systemctl stop: SIGTERM; it is not started again."""
        self.is_enabled = False
        self._plan += 1
        if self.process is not None:
            self.process.signal(SIGTERM)

    def kill(self) -> None:
        """SIGKILL from anywhere; systemd starts it again."""
        if self.process is not None:
            self.process.kill()

    # What the program says.

    def say_ready(self) -> None:
        """READY=1."""
        self.is_ready = True
        self.machine.world.note(repr(self), "ready")
        self.machine.observer.ready(self)

    # What the machine does.

    def lost(self) -> None:
        """The machine has lost its power."""
        self._plan += 1
        process, self.process = self.process, None
        self.is_ready = False
        if process is not None:
            exit = Exit(-1, 9)
            self.exits.append(exit)
            self.machine.observer.ended(self, exit)

    def booted(self) -> None:
        """The machine is back; what it counted is forgotten."""
        self.is_given_up = False
        self._starts.clear()
        if self.is_enabled:
            delay_ns = int(self.machine.world.random() * BOOT_NS)
            self._start_after(delay_ns)

    # Inside.

    def _start_after(self, delay_ns: int) -> None:
        self._plan += 1
        plan = self._plan
        world = self.machine.world
        world.after(delay_ns, lambda: self._start() if plan == self._plan else None)

    def _start(self) -> None:
        assert self.process is None, "one process a unit"
        machine, world = self.machine, self.machine.world
        self._plan += 1
        self.start_count += 1
        self._starts.append(world.now_ns)
        process = self.process = machine.host.process(self.program.name)
        process.on_end = machine.disk.ended
        machine.observer.starting(self, process)
        process.start(self.program.main(self, process), self._on_exit)

    def _on_exit(self, process: Process) -> None:
        if process is not self.process:
            return  # It went with its machine.
        assert process.exit is not None, "it has ended"
        exit, rules = process.exit, self.program.rules
        self.process = None
        self.is_ready = False
        self.exits.append(exit)
        machine = self.machine
        machine.observer.ended(self, exit)
        if not self.is_enabled:
            return
        since_ns = machine.world.now_ns + rules.pause_ns - rules.interval_ns
        self._starts = [start_ns for start_ns in self._starts if start_ns > since_ns]
        if rules.is_failure(exit) and len(self._starts) < rules.burst:
            self._start_after(rules.pause_ns)
            return
        self.is_given_up = True
        machine.world.note(repr(self), "given up", exit)
        machine.observer.gave_up(self, exit)


def log_of(process: Process) -> Log:
    """Its log; each line is a step of the world."""
    world, name = process.world, repr(process)
    return Log(process.clock.time_ns, lambda line: world.note(name, "log", line))
