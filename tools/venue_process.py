"""A venue of its own for a demo, a replay or a measurement: `exchange init`, `exchange serve`; its
feed server, `exchange feed`; its replica, `exchange replica`.

The child is the real thing, started the way an operator starts it, on a port that the system
chooses and with multicast groups of its own. What it says on its two lines (`exchange ready ...`
and `exchange stopped ...`) is read as key=value pairs. The child gets a process group of its own,
so that Ctrl-C reaches only the tool, which then ends it; SIGTERM counts as Ctrl-C. If the tool
itself is killed, the kernel stops the child.
"""

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, ClassVar, Final, Self

from tools.errors import ToolError, VenueFailedError
from tools.venue_settings import change_settings, own_settings

__all__ = [
    "EXCHANGE",
    "FeedProcess",
    "ReplicaProcess",
    "VenueProcess",
    "child_environment",
    "new_venue",
    "parse_line",
]

EXCHANGE: Final = (sys.executable, "-P", "-m", "exchange.cli")
"""The command; -P keeps the current folder from shadowing the installed packages."""

_ENVIRONMENT_PATH: Final = str(Path(__file__).absolute().parents[1])
"""Where this package was found: the child runs the same one, installed or not."""

PR_SET_PDEATHSIG: Final = 1
"""Of prctl(2): the signal that the kernel sends to this process when its parent has died."""
_LIBC: Final = ctypes.CDLL(None)

STOP_WAIT_S: Final = 30.0
"""A clean stop drains clients and writes a marker; one that hangs longer is a defect."""

METRICS_WAIT_S: Final = 10.0
"""A service answers between two turns of its loop; one that is silent for longer hangs."""

STORY_LINES_MAX: Final = 5
"""Lines of a child's stderr that are worth repeating when it failed."""


@contextmanager
def new_venue(
    directory: Path | None,
    name: str,
    *,
    parent: Path | None = None,
    settings: Mapping[str, int | str] | None = None,
) -> Iterator["VenueProcess"]:
    """A venue made by `exchange init`, not started yet: in `directory`, which is kept, or in a
    temporary folder (in `parent`, if given), which is not. `settings` are changes to its
    configuration. What still runs at the end is killed. Raises ToolError.
    """
    # An event loop handles SIGINT between its callbacks, by canceling its main task.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    with tempfile.TemporaryDirectory(prefix=f"exchange-{name}-", dir=parent) as temporary:
        folder = directory or Path(temporary) / name
        command = [*EXCHANGE, "init", str(folder), "--name", name, "--port", "0"]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=child_environment()
        )
        if done.returncode:
            story = _story(done.stderr).removeprefix("exchange: ")
            raise VenueFailedError(story, done.returncode)
        change_settings(folder / "exchange.toml", {**own_settings(), **(settings or {})})
        with VenueProcess(folder) as venue:
            yield venue


def parse_line(line: str, expected: str) -> dict[str, str]:
    """The pairs of a line `exchange <expected> key=value ...`, empty when it is not that line."""
    words, start = line.split(), ["exchange", *expected.split()]
    if words[: len(start)] != start:
        return {}
    return dict(word.split("=", 1) for word in words[len(start) :] if "=" in word)


@dataclass
class ServiceProcess:
    """A service of a venue's folder as a child. As a context manager it kills what still runs at
    the end."""

    folder: Path
    process: subprocess.Popen[str] | None = None
    ready: dict[str, str] = field(default_factory=dict)
    stopped: dict[str, str] = field(default_factory=dict)
    tracer: Sequence[str] = ()
    """Stands before the command: a program that runs it and looks on."""

    command: ClassVar[str]
    prefix: ClassVar[str]
    """What its lines begin with, before `ready` and `stopped`."""
    name: ClassVar[str]

    def start(self) -> None:
        """Start it and wait for its ready line. Raises ToolError with what it said instead."""
        self.begin()
        self.wait_ready()

    def begin(self) -> None:
        """Start it; one that waits for another may be ready much later."""
        assert self.process is None, "one child at a time"
        with self.log_path.open("a") as log:
            self.process = self._spawn(log)

    def wait_ready(self) -> None:
        """Wait for its ready line. Raises ToolError with what it said instead."""
        assert self.process is not None, "begun"
        assert self.process.stdout is not None, "it is a pipe"
        line = self.process.stdout.readline()
        self.ready = parse_line(line, f"{self.prefix}ready")
        if not self.ready:
            code = self.process.wait() if not line else 0
            self.kill()
            story = _story(self.log_path.read_text())
            raise VenueFailedError(f"the {self.name} did not start: {story}", code or 1)

    def _spawn(self, log: IO[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self.tracer, *EXCHANGE, self.command, "--config", str(self.folder / "exchange.toml")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            process_group=0,
            env=child_environment(),
            preexec_fn=_end_with_parent,  # noqa: PLW1509 - the tool has one thread when it forks
        )

    @property
    def log_path(self) -> Path:
        """What it writes to stderr."""
        return self.folder / f"{self.command}.log"

    @property
    def process_id(self) -> int:
        """Of the running child."""
        assert self.process is not None, "started"
        return self.process.pid

    def metrics(self) -> str:
        """The text of its metrics. Raises OSError."""
        url = f"http://{self.ready['metrics']}/metrics"
        with urllib.request.urlopen(url, timeout=METRICS_WAIT_S) as answer:
            text: str = answer.read().decode()
        return text

    def stop(self) -> dict[str, str]:
        """SIGTERM; the pairs of its last line. Raises ToolError when it did not end well."""
        assert self.process is not None, "started"
        process, self.process = self.process, None
        process.terminate()
        try:
            output, _ = process.communicate(timeout=STOP_WAIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise ToolError(f"the {self.name} did not stop within {STOP_WAIT_S:.0f} s") from None
        lines = output.splitlines()
        self.stopped = parse_line(lines[-1], f"{self.prefix}stopped") if lines else {}
        if process.returncode or not self.stopped:
            story = _story(self.log_path.read_text())
            text = f"the {self.name} ended with exit code {process.returncode}: {story}"
            raise VenueFailedError(text, process.returncode or 1)
        return self.stopped

    def kill(self) -> None:
        """SIGKILL, if it runs."""
        if self.process is not None:
            process, self.process = self.process, None
            process.kill()
            process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()


class VenueProcess(ServiceProcess):
    """`exchange serve`."""

    command = "serve"
    prefix = ""
    name = "venue"

    @property
    def admin_key(self) -> Path:
        """The private key that `exchange init` made."""
        return self.folder / "keys" / "admin.pem"

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of order entry."""
        return _address(self.ready["order_entry"])

    @property
    def market_data(self) -> tuple[str, int]:
        """Multicast group of channel 1, and port."""
        return _address(self.ready["market_data"])

    @property
    def lines(self) -> list[tuple[str, int]]:
        """The same for line A, and line B if there is one."""
        keys = ("market_data", "market_data_b")
        return [_address(self.ready[key]) for key in keys if key in self.ready]

    def greeting(self) -> str:
        """Two lines for the person who started the tool."""
        address, build = self.ready["order_entry"], self.ready["build"]
        return (
            f"A venue listens on {address} ({build} build, process {self.process_id}).\n"
            f"Its metrics are on http://{self.ready['metrics']}/metrics."
        )


class FeedProcess(ServiceProcess):
    """`exchange feed`, beside the venue of the folder."""

    command = "feed"
    prefix = "feed "
    name = "feed server"

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of subscribers."""
        return _address(self.ready["feed"])


class ReplicaProcess(ServiceProcess):
    """`exchange replica`, beside the venue of the folder."""

    command = "replica"
    prefix = "replica "
    name = "replica"


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def _end_with_parent() -> None:
    """In the child: be told to stop when the parent dies, however it dies."""
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def child_environment() -> dict[str, str]:
    """For a child of ours: it imports the same packages."""
    return {**os.environ, "PYTHONPATH": _ENVIRONMENT_PATH}


def _story(text: str) -> str:
    """The last lines that a child wrote, as one line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "; ".join(lines[-STORY_LINES_MAX:]) or "it said nothing"
