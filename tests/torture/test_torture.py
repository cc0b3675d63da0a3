"""Some of what `python -m tests.torture` does: one of each kind of call that matters most, and a
disk that is full."""

from pathlib import Path
from typing import Final

import pytest

from tests.torture import full_disk, strace
from tests.torture.script import Pattern, make_pattern
from tests.torture.serve import EINTR, EIO, ENOSPC, KILL, run_serve
from tests.torture.strace import Injection, Point

pytestmark = pytest.mark.once

COMMANDS: Final = "data/commands/"
FIRST_SEGMENT: Final = COMMANDS + f"{1:020}-{1:020}.segment"
NEXT_SEGMENT: Final = COMMANDS + f"{2:020}.prepared"
AFTER_NEXT: Final = COMMANDS + f"{3:020}.prepared"
EVENTS: Final = f"data/events/{1:020}.events"
INDEX: Final = f"data/events/{1:020}.index.tmp"

INJECTIONS: Final = {
    "record-not-synced": Injection(Point("fdatasync", FIRST_SEGMENT, 5), EIO),
    "record-not-written": Injection(Point("pwrite64", FIRST_SEGMENT, 6), ENOSPC, True),
    "write-interrupted": Injection(Point("pwrite64", FIRST_SEGMENT, 4), EINTR),
    "killed-before-new-segment": Injection(Point("rename", NEXT_SEGMENT, 1), KILL),
    "killed-in-background": Injection(Point("fsync", AFTER_NEXT, 1), KILL),
    "segment-not-sealed": Injection(Point("rename", COMMANDS + "manifest.tmp", 1), EIO),
    "event-not-written": Injection(Point("pwrite64", EVENTS, 7), ENOSPC),
    "marker-not-synced": Injection(Point("fsync", COMMANDS + "clean-stop.tmp", 1), EIO),
}


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> Pattern:
    if not strace.is_available():
        pytest.skip("strace: it is missing, or may not trace")
    return make_pattern(tmp_path_factory.mktemp("pattern") / "venue")


def reach(pattern: Pattern, folder: Path, injection: Injection) -> None:
    """Run it. Each thread counts its own calls: where records were shared out between loop and
    worker, an earlier one is tried."""
    point = injection.point
    for nth in range(point.nth, 0, -1):
        run = folder / str(nth)
        run.mkdir()
        earlier = injection._replace(point=point._replace(nth=nth))
        if run_serve(pattern, run, earlier) != "not reached":
            return
    raise AssertionError(f"never reached: {injection}")


@pytest.mark.parametrize("name", INJECTIONS)
def test_failing_call_ends_as_the_policy_says(pattern: Pattern, tmp_path: Path, name: str) -> None:
    reach(pattern, tmp_path, INJECTIONS[name])


def test_killed_while_the_events_are_sealed(tmp_path: Path) -> None:
    if not strace.is_available():
        pytest.skip("strace: it is missing, or may not trace")
    pattern = make_pattern(tmp_path / "pattern", fills_events=True)
    reach(pattern, tmp_path, Injection(Point("rename", INDEX, 1), KILL))


def test_full_disk(tmp_path: Path) -> None:
    if not full_disk.is_available():
        pytest.skip("tmpfs: no namespace for it")
    done = full_disk.enter(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == [f"{title}: ok" for title in full_disk.SCENARIOS]
