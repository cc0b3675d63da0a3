"""Everything: `python -m tests.torture [--seed N] [--first N] [WORD...]`.

Words choose runs whose titles have one of them, `--first` takes so many of what is left. About an
hour and a half for all; the order is by chance, so that a part of it says something too. Prints how
each run ended, a traceback where it ended wrong, and at last how many of each kind ended how; the
exit code is 1 if one was wrong.
"""

import argparse
import random
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tests.torture import full_disk
from tests.torture.beside import FEED_INJECTIONS, REPLICA_INJECTIONS, run_feed, run_replica
from tests.torture.script import make_pattern
from tests.torture.serve import faults_of, find_serve_points, run_serve
from tests.torture.strace import Injection
from tests.torture.upkeep import TOOLS, find_tool_points, make_kept, run_tool, tool_faults


class Case(NamedTuple):
    """A run that is to be made, in a folder of its own."""

    program: str
    injection: Injection
    run: Callable[[Path, Injection], str]

    @property
    def title(self) -> str:
        return f"{self.program}: {self.injection}"


def find_cases(folder: Path) -> Iterator[Case]:
    """All of them. What is in the folder afterwards is needed by the runs."""
    pattern = make_pattern(folder / "pattern")
    full = make_pattern(folder / "full", fills_events=True)
    for injection in faults_of(find_serve_points(pattern, folder / "serve")):
        yield Case("serve", injection, partial(run_serve, pattern))
    points = find_serve_points(full, folder / "serve-full")
    points = [point for point in points if point.path.startswith("data/events")]
    for injection in faults_of(points):
        yield Case("serve, events full", injection, partial(run_serve, full))
    for injection in REPLICA_INJECTIONS:
        yield Case("replica", injection, partial(run_replica, pattern))
    for injection in FEED_INJECTIONS:
        yield Case("feed", injection, partial(run_feed, pattern))
    kept = make_kept(full, folder / "kept")
    for tool in TOOLS:
        for injection in tool_faults(find_tool_points(kept, tool, folder / tool)):
            yield Case(tool, injection, partial(run_tool, kept, tool))


def run_case(case: Case, folder: Path) -> str:
    """How it ended; "WRONG" after the traceback of what was wrong."""
    folder.mkdir()
    try:
        return case.run(folder, case.injection)
    except Exception:  # noqa: BLE001 - whatever is wrong, the next run goes on
        traceback.print_exc()
        return "WRONG"
    finally:
        shutil.rmtree(folder)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture")
    parser.add_argument("--seed", type=int, default=random.randrange(10**9))
    parser.add_argument("--first", type=int, default=None)
    parser.add_argument("words", nargs="*")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    ends: Counter[tuple[str, str, str, str]] = Counter()
    with tempfile.TemporaryDirectory(prefix="torture-") as name:
        if not options.words:
            (Path(name) / "tmpfs").mkdir()
            done = full_disk.enter(Path(name) / "tmpfs")
            print(done.stdout, done.stderr, sep="", flush=True)
            ends["tmpfs", "", "", "WRONG" if done.returncode else "as expected"] += 1
        cases = [
            case
            for case in find_cases(Path(name))
            if not options.words or any(word in case.title for word in options.words)
        ]
        random.Random(options.seed).shuffle(cases)
        print(f"{len(cases)} runs", flush=True)
        for index, case in enumerate(cases[: options.first]):
            end = run_case(case, Path(name) / str(index))
            print(f"{case.title}: {end}", flush=True)
            ends[case.program, case.injection.point.call, case.injection.fault, end] += 1
    for row, count in sorted(ends.items()):
        print(f"{count:6} {row[0]:20} {row[1]:10} {row[2]:16} {row[3]}")
    wrong_count = sum(count for row, count in ends.items() if row[3] == "WRONG")
    print(f"{sum(ends.values())} runs, {wrong_count} wrong")
    return 1 if wrong_count else 0


if __name__ == "__main__":
    sys.exit(main())
