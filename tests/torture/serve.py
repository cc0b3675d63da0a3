"""`exchange serve` on a disk that fails, or killed, at every call that it makes to its files.

Expected: killed, it starts again with all that it acknowledged. On a failing call it ends by itself
with exit code 74, acknowledges nothing after it, and does not sync that file again; a call that was
only interrupted is made again, or is a failure like any other. What is not the journal (looking how
much room the disk has, taking away the socket of the position) may fail.
"""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.integration.replica import Replica
from tests.torture.script import Outcome, Pattern, drive, go_on, look
from tests.torture.strace import (
    CHANGING,
    SYNCS,
    Injection,
    Point,
    find_points,
    read_log,
    sample,
    trace_files,
    trace_injection,
)
from tools.venue_process import VenueProcess

__all__ = [
    "EINTR",
    "EIO",
    "ENOSPC",
    "EXIT_STORAGE_FAILED",
    "KILL",
    "faults_of",
    "find_serve_points",
    "run_serve",
]

EXIT_STORAGE_FAILED: Final = 74
EXIT_CONFIGURATION: Final = 64

KILL: Final = "signal=SIGKILL"
EIO: Final = "error=EIO"
ENOSPC: Final = "error=ENOSPC"
EINTR: Final = "error=EINTR"

FULL_DISK_CALLS: Final = ("pwrite64", "fdatasync", "mkdir")

OTHERWISE: Final = {
    # How much room there is, is looked at again later; only a start has to know.
    ("statfs", "data/commands"): {0, EXIT_STORAGE_FAILED},
    ("statfs", "data/events"): {0, EXIT_STORAGE_FAILED},
    # For the socket of the position: one that cannot be had is a matter of the configuration, one
    # that cannot be taken away at the end is not.
    ("openat", "data"): {EXIT_CONFIGURATION},
    ("unlink", "data/position"): {EXIT_CONFIGURATION, EXIT_STORAGE_FAILED},
}
"""Exit codes of what is not the journal."""


def find_serve_points(pattern: Pattern, folder: Path) -> list[Point]:
    """Every call that a run of the script makes to files of the venue's data."""
    venue = _copy(pattern, folder)
    venue.tracer = trace_files(folder / "strace.log")
    outcome = drive(venue, pattern)
    assert outcome.is_complete, "nothing was injected"
    assert outcome.exit_code == 0
    found = find_points(folder / "strace.log", venue.folder)
    go_on(venue, pattern, outcome.trader, look(venue, outcome))
    return [point for point in found if point.path.startswith("data")]


def faults_of(points: list[Point]) -> Iterator[Injection]:
    """Every fault at every point, but for most of the same kind."""
    for point in sample(points):
        yield Injection(point, EIO)
        if point.call in FULL_DISK_CALLS:
            yield Injection(point, ENOSPC)
        if point.call in CHANGING:
            yield Injection(point, KILL)
            if point.nth == 1:
                yield Injection(point, EIO, is_persistent=True)
                yield Injection(point, EINTR)


def run_serve(pattern: Pattern, folder: Path, injection: Injection) -> str:
    """One run; in a word how it ended."""
    venue = _copy(pattern, folder)
    log = folder / "strace.log"
    venue.tracer = trace_injection(log, venue.folder, injection)
    with venue:
        outcome = drive(venue, pattern)
        is_hit = _is_hit(log, injection, outcome)
        allowed = _allowed(injection) if is_hit else {0}
        assert outcome.exit_code in allowed, f"exit code {outcome.exit_code}, {allowed} allowed"
        replica = look(venue, outcome)
        if outcome.exit_code == EXIT_STORAGE_FAILED:
            _check_failed_sync(injection, outcome, replica)
        go_on(venue, pattern, outcome.trader, replica)
    return f"exit code {outcome.exit_code}" if is_hit else "not reached"


def _is_hit(log: Path, injection: Injection, outcome: Outcome) -> bool:
    """Whether the point was reached; no sync of that file may have followed a failure."""
    if injection.fault == KILL:
        return outcome.exit_code == -signal.SIGKILL
    calls = read_log(log)
    hits = [index for index, call in enumerate(calls) if call.is_injected]
    if hits and outcome.exit_code:
        again = [call for call in calls[hits[0] + 1 :] if call.name in SYNCS]
        assert not again, f"synced again after a failure: {again}"
    return bool(hits)


def _allowed(injection: Injection) -> set[int]:
    """Exit codes that are right."""
    if injection.fault == KILL:
        return {-signal.SIGKILL}
    failed = OTHERWISE.get(injection.point[:2], {EXIT_STORAGE_FAILED})
    return failed | {0} if injection.fault == EINTR else failed


def _check_failed_sync(injection: Injection, outcome: Outcome, replica: Replica) -> None:
    """Of the record whose sync failed nothing was told, though it was written and may be found."""
    if injection.point.call == "fdatasync" and injection.point.path.endswith(".segment"):
        trader = outcome.trader
        for number in trader.received:
            sequence = replica.sequences[trader.session_id, number]
            assert sequence < replica.last_record_sequence, "told before it was durable"


def _copy(pattern: Pattern, folder: Path) -> VenueProcess:
    shutil.copytree(pattern.folder, folder / "venue")
    return VenueProcess(folder / "venue")
