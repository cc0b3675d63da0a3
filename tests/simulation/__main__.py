"""python -m tests.simulation --seeds 1-500 --jobs 2: run seeds, and say what they went through.

A seed that fails prints what was wrong, its last steps, and the command that repeats it exactly.
"""

import argparse
import gc
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Final, NamedTuple

from tests.simulation.run import Simulation, Summary
from tests.simulation.world import Step

STEPS_SHOWN: Final = 60
CHUNK_SIZE: Final = 10
"""Seeds that a process of the pool is given at a time."""


class Failed(NamedTuple):
    """A seed that has found something."""

    seed: int
    text: str


def run_seed(seed: int, *, is_traced: bool = False, favored: str = "") -> Summary | Failed:
    """One seed; every step is printed when it is traced. `favored` as for `Simulation`."""
    simulation = Simulation(seed, print_step if is_traced else None, favored)
    try:
        return simulation.run()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what the seed has found
        lines = [f"seed {seed}: {error}", *traceback.format_exception(error)]
        lines += [
            "faults:",
            *simulation.story,
            "last steps:",
            *map(str, [*simulation.world.steps][-STEPS_SHOWN:]),
        ]
        lines += [f"again: python -m tests.simulation --seeds {seed}-{seed} --trace"]
        return Failed(seed, "\n".join(line.rstrip() for line in lines))
    finally:
        del simulation
        gc.collect()


def print_step(step: Step) -> None:
    print(step)


def run_chunk(seeds: Sequence[int]) -> list[Summary | Failed]:
    """Some seeds, in one process."""
    # What is there stays; a seed is collected when it is over.
    gc.freeze()
    gc.disable()
    return [run_seed(seed) for seed in seeds]


def run_all(seeds: Sequence[int], job_count: int) -> Iterator[Summary | Failed]:
    """All seeds, in order."""
    chunks = [seeds[at : at + CHUNK_SIZE] for at in range(0, len(seeds), CHUNK_SIZE)]
    if job_count == 1:
        for chunk in chunks:
            yield from run_chunk(chunk)
        return
    with ProcessPoolExecutor(job_count) as pool:
        for results in pool.map(run_chunk, chunks):
            yield from results


def parse_seeds(text: str) -> range:
    """A-B, both included, or one."""
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 1 when a seed has failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=parse_seeds, default=range(1, 101), metavar="A-B")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--trace", action="store_true", help="print every step")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at a failure")
    options = parser.parse_args(arguments)
    start_s = time.monotonic()
    results = run_all(options.seeds, options.jobs)
    if options.trace:
        results = map(partial(run_seed, is_traced=True), options.seeds)
    passed: list[Summary] = []
    failed: list[Failed] = []
    for result in results:
        if isinstance(result, Summary):
            passed.append(result)
            continue
        failed.append(result)
        print(result.text, flush=True)
        if not options.keep_going:
            break
    say_summary(passed, failed, time.monotonic() - start_s)
    return 1 if failed else 0


def say_summary(passed: Sequence[Summary], failed: Sequence[Failed], seconds: float) -> None:
    """Figures of all seeds together."""
    faults: Counter[str] = Counter()
    for summary in passed:
        faults.update(summary.faults)
    print(
        f"{len(passed)} seeds passed, {len(failed)} failed, {seconds:.0f} s; "
        f"{sum(one.command_count for one in passed)} commands in "
        f"{sum(one.batch_count for one in passed)} batches, "
        f"{sum(one.long_count for one in passed)} of several sectors, "
        f"{sum(one.report_count for one in passed)} reports, "
        f"{sum(one.crash_count for one in passed)} crashes of the venue, "
        f"{sum(one.repaired_count for one in passed)} torn ends repaired, "
        f"{sum(one.snapshot_count for one in passed)} snapshots compared, "
        f"{sum(one.archived_count for one in passed)} segments archived, "
        f"{sum(one.lost_count for one in passed)} durable commands lost"
    )
    print("faults:", ", ".join(f"{kind} {count}" for kind, count in sorted(faults.items())))
    if failed:
        print("failed:", *(one.seed for one in failed))


if __name__ == "__main__":
    sys.exit(main())
