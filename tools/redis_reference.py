"""The reference line that others know: Redis with every write synced before it is answered.

The script `redis_reference.sh` starts a server, measures it with redis-benchmark, and ends it. It
lies in the folder BRIER_BENCH, and needs Debian's redis-server and redis-tools.
"""

import os
import socket
import subprocess
from pathlib import Path
from typing import Final, NamedTuple

from tools.errors import ToolError, UsageError

__all__ = ["Redis", "run_redis", "script_path"]

BENCH_DEFAULT: Final = "../shared/bench"
SCRIPT: Final = "redis_reference.sh"

COLUMN_COUNT: Final = 5


class Redis(NamedTuple):
    """One run."""

    requests_per_second: float
    p50_us: float
    p99_us: float


def script_path() -> Path:
    """The script. Raises UsageError when it is not there."""
    path = Path(os.environ.get("BRIER_BENCH", BENCH_DEFAULT)) / SCRIPT
    if not path.is_file():
        raise UsageError(f"{path}: no such file; set BRIER_BENCH to the folder that has it")
    return path


def run_redis(folder: Path, connections: int, in_flight: int, requests: int) -> Redis:
    """Measure Redis with its files in `folder`. Raises ToolError."""
    shape = (connections, in_flight, requests, _free_port())
    command = [str(script_path()), *map(str, shape)]
    environment = os.environ | {"REDIS_DIR": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    columns = done.stdout.strip().split(",")
    if done.returncode or len(columns) != COLUMN_COUNT:
        raise ToolError(f"{SCRIPT} failed: {' '.join((done.stderr or done.stdout).split())}")
    rate, p50_ms, p99_ms = map(float, columns[2:])
    return Redis(rate, p50_ms * 1000, p99_ms * 1000)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
