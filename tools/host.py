"""What a measurement ran on: processors, the disk, the commit. And a processor for each side."""

import ctypes
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any, Final
from urllib.parse import unquote, urlparse

import msgspec

from tools.errors import UsageError

__all__ = [
    "commit",
    "disk_folder",
    "file_system",
    "machine",
    "part_processors",
    "place",
    "processor_s",
    "set_apart",
    "sync_p50_us",
]

MEMORY_FILE_SYSTEMS: Final = ("tmpfs", "ramfs", "devtmpfs")
"""A sync there costs nothing and keeps nothing."""

SYNC_SIZE: Final = 16 * 1024
"""About a record of the standard benchmark."""
SYNC_COUNT: Final = 200

COMMIT_DIGITS: Final = 12

_LIBC: Final = ctypes.CDLL(None)

HERE: Final = Path(__file__).resolve().parents[1]
"""Where the packages are: a checkout, or where they were installed."""
PACKAGES: Final = ("exchange", "journal", "protocol", "tools")


def file_system(folder: Path) -> str:
    """Type of the file system that a folder is on, such as ext4."""
    path = folder.resolve()
    found, kind = Path("/"), "unknown"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        point = Path(fields[4].encode().decode("unicode_escape"))
        if path.is_relative_to(point) and len(point.parts) >= len(found.parts):
            found, kind = point, fields[fields.index("-") + 1]
    return kind


def disk_folder(wanted: Path | None) -> Path:
    """Where temporary files are on a disk, not in memory. Raises UsageError."""
    if wanted is not None:
        if not wanted.is_dir():
            raise UsageError(f"{wanted}: no such folder")
        return wanted
    for folder in (Path(tempfile.gettempdir()), Path("/var/tmp"), Path.cwd()):
        is_usable = folder.is_dir() and os.access(folder, os.W_OK)
        if is_usable and file_system(folder) not in MEMORY_FILE_SYSTEMS:
            return folder
    raise UsageError("no folder for temporary files is on a disk; name one with --dir")


def sync_p50_us(folder: Path) -> float:
    """How long a write of 16 KiB into space that is there takes until it is synced."""
    content = bytes(range(256)) * (SYNC_SIZE // 256)
    durations_ns = []
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(content * SYNC_COUNT)
        file.flush()
        os.fsync(file.fileno())
        for index in range(SYNC_COUNT):
            start_ns = time.perf_counter_ns()
            os.pwrite(file.fileno(), content, index * SYNC_SIZE)
            os.fdatasync(file.fileno())
            durations_ns.append(time.perf_counter_ns() - start_ns)
    return round(median(durations_ns) / 1000, 1)


def machine(folder: Path) -> dict[str, Any]:
    """What the figures depend on."""
    kind = file_system(folder)
    return {
        "commit": commit(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor_name(),
        "processors": len(os.sched_getaffinity(0)),
        "folder": str(folder),
        "file_system": kind,
        "is_durable": kind not in MEMORY_FILE_SYSTEMS,
        "sync_p50_us": sync_p50_us(folder),
    }


def _processor_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.machine()


def commit() -> str:
    """The commit of the sources that run, or that they were installed from; "unknown" when git
    does not say. Ends in -dirty when files differ from it."""
    folder = HERE if (HERE / "pyproject.toml").is_file() else _installed_from()
    if folder is None:
        return "unknown"
    head = _git(folder, "rev-parse", f"--short={COMMIT_DIGITS}", "HEAD")
    changes = _git(folder, "status", "--porcelain")
    if head is None or changes is None:
        return "unknown"
    return head if not changes and _is_same(folder) else f"{head}-dirty"


def _installed_from() -> Path | None:
    """The folder that pip wrote down when it installed this package from one."""
    try:
        written = metadata.distribution("brier").read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return None
    url = urlparse(msgspec.json.decode(written or "{}", type=dict[str, Any]).get("url", ""))
    return Path(unquote(url.path)) if url.scheme == "file" else None


def _is_same(folder: Path) -> bool:
    """Whether the Python files that run are those of the folder."""
    paths = [path.relative_to(HERE) for name in PACKAGES for path in (HERE / name).rglob("*.py")]
    return all(
        (folder / path).is_file() and (folder / path).read_bytes() == (HERE / path).read_bytes()
        for path in paths
    )


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints; None when it cannot say, or is not there."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return None
    return None if done.returncode else done.stdout.strip()


def processor_s(process_id: int) -> float:
    """Processor time that a process has used, all threads, user and system."""
    clock = ctypes.c_int()
    if error := _LIBC.clock_getcpuclockid(process_id, ctypes.byref(clock)):
        raise OSError(error, os.strerror(error))
    return time.clock_gettime(clock.value)


def place(process_id: int, processors: list[int]) -> None:
    """Keep all threads of a process on these processors."""
    for thread in Path(f"/proc/{process_id}/task").iterdir():
        os.sched_setaffinity(int(thread.name), processors)


@contextmanager
def part_processors(process_id: int) -> Iterator[None]:
    """For a while this process has a processor of its own and the other one all others.

    A kernel that sees two processes wake each other likes to put both on one processor, where
    neither can work while the other does; real clients are not on the venue's processor.
    """
    with _parted(process_id, slice(1, None), slice(1)):
        yield


@contextmanager
def set_apart(process_id: int) -> Iterator[None]:
    """For a while the other process has the last processor of its own; this one, and what it
    starts, all others."""
    with _parted(process_id, slice(-1, None), slice(-1)):
        yield


@contextmanager
def _parted(process_id: int, theirs: slice, ours: slice) -> Iterator[None]:
    """Which processors each has for a while; all are ours again at the end. One alone is shared."""
    processors = sorted(os.sched_getaffinity(0))
    if len(processors) == 1:
        yield
        return
    place(process_id, processors[theirs])
    os.sched_setaffinity(0, processors[ours])
    try:
        yield
    finally:
        os.sched_setaffinity(0, processors)
