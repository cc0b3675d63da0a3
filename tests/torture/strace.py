"""strace as a bad disk: what a process asks of its files, and one of these calls made to go wrong.

A call point is a kind of system call on one file, and the how-many-th of its thread it is. The
list of points comes from a run in which nothing is injected. The tracer is a process beside the
traced one, which stays the child that was started; both hold its stdout, so that at the end of that
the log is whole.
"""

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

__all__ = [
    "CALLS",
    "Call",
    "Injection",
    "Point",
    "find_points",
    "is_available",
    "read_log",
    "sample",
    "trace_files",
    "trace_injection",
]

CHANGING: Final = (
    *("pwrite64", "fdatasync", "fsync", "rename", "unlink", "openat", "mkdir", "ftruncate"),
    *("fallocate", "link", "write"),
)
"""What changes a disk or makes it durable."""
READING: Final = ("pread64", "preadv2", "getdents64", "flock", "statfs", "fadvise64", "read")
CALLS: Final = (*CHANGING, *READING)

SYNCS: Final = ("fdatasync", "fsync")


class Point(NamedTuple):
    """One call: its kind, the file, relative to the folder that is watched, and which one. No file:
    whichever it is."""

    call: str
    path: str
    nth: int


class Injection(NamedTuple):
    """What goes wrong: `fault` as strace names it, from that point on for ever or once."""

    point: Point
    fault: str
    is_persistent: bool = False

    def __str__(self) -> str:
        call, path, nth = self.point
        return f"{call} {path or '-'} {nth}{'+' if self.is_persistent else ''} {self.fault}"


class Call(NamedTuple):
    """A line of the log."""

    thread: int
    name: str
    arguments: str
    is_injected: bool


_LINE: Final = re.compile(r"^(\d+) +(\w+)\((.*?)(?:\) += (.*)| <unfinished \.\.\.>)$")
_RESUMED: Final = re.compile(r"^(\d+) +<\.\.\. (\w+) resumed>.*?\) += (.*)$")
_PATH: Final = re.compile(r"[<\"](/[^>\"]*)[>\"]")


def is_available() -> bool:
    """Whether there is an strace that may trace."""
    if shutil.which("strace") is None:
        return False
    command = ["strace", "-qq", "-e", "trace=none", "true"]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def trace_files(log: Path) -> list[str]:
    """The words before a command that is only watched."""
    return _strace(log, CALLS)


def trace_injection(log: Path, folder: Path, injection: Injection) -> list[str]:
    """The words before a command to which this happens."""
    call, path, nth = injection.point
    when = f"{nth}+" if injection.is_persistent else str(nth)
    inject = f"inject={call}:{injection.fault}:when={when}"
    only = ["-P", str(folder / path)] if path else []
    # Of a failed call on a file, all its later syncs are looked for.
    return [*_strace(log, {call, *SYNCS}), *only, "-e", inject]


def _strace(log: Path, calls: Iterable[str]) -> list[str]:
    trace = f"trace={','.join(sorted(calls))}"
    return ["strace", "-D", "-f", "-y", "-q", "-s", "0", "-o", str(log), "-e", trace]


def read_log(log: Path) -> list[Call]:
    """The calls in the order in which they began."""
    calls: list[Call] = []
    begun: dict[int, int] = {}
    for line in log.read_text(errors="replace").splitlines():
        if found := _LINE.match(line):
            thread, name, arguments, result = found.groups()
            begun[int(thread)] = len(calls)
            calls.append(_call(int(thread), name, arguments, result or ""))
        elif found := _RESUMED.match(line):
            index = begun[int(found[1])]
            old = calls[index]
            calls[index] = _call(old.thread, old.name, old.arguments, found[3])
    return calls


def _call(thread: int, name: str, arguments: str, result: str) -> Call:
    return Call(thread, name, arguments, "INJECTED" in result)


def sample(points: list[Point]) -> list[Point]:
    """Of each kind of call on each file the first, the third and the last."""
    last: dict[tuple[str, str], int] = {}
    for call, path, nth in points:
        last[call, path] = max(nth, last.get((call, path), 0))
    return [point for point in points if point.nth in (1, 3, last[point.call, point.path])]


def find_points(log: Path, folder: Path) -> list[Point]:
    """Every call point of a run on files of the folder, in order of appearance."""
    counts: Counter[tuple[int, str, str]] = Counter()
    points: dict[Point, None] = {}
    prefix = f"{folder}/"
    for call in read_log(log):
        paths = [path for path in _PATH.findall(call.arguments) if path.startswith(prefix)]
        if paths:  # Of two, the old name is enough.
            name = paths[0].removeprefix(prefix)
            counts[call.thread, call.name, name] += 1
            points[Point(call.name, name, counts[call.thread, call.name, name])] = None
    return list(points)
