"""Some seeds of the simulator: nothing is violated, and a seed is the same run in every process.

BRIER_SIMULATION_SEEDS is how many (12); `python -m tests.simulation` runs any number.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.simulation.__main__ import Failed, parse_seeds, run_seed

ROOT: Final = str(Path(__file__).parents[2])
SEED_COUNT: Final = int(os.environ.get("BRIER_SIMULATION_SEEDS", "12"))
SCRIPT: Final = """
import sys
sys.path.append(sys.argv[1])  # The last one: no source hides the installed packages.
from tests.simulation.run import Simulation
print(*(Simulation(seed).run().run_hash for seed in range(3, 6)))
"""


@pytest.mark.parametrize("seed", range(1, SEED_COUNT + 1))
def test_nothing_is_violated(seed: int) -> None:
    result = run_seed(seed)
    assert not isinstance(result, Failed), result.text


def test_a_seed_is_the_same_run_whatever_the_hash_seed() -> None:
    found = set()
    for hash_seed in ("0", "1", "random"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-P", "-c", SCRIPT, ROOT],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        found.add(done.stdout)
    assert len(found) == 1, found


def test_seeds_are_a_range_or_one() -> None:
    assert parse_seeds("3-5") == range(3, 6)
    assert parse_seeds("7") == range(7, 8)
