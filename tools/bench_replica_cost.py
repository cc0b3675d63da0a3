"""`exchange bench --replica-cost`: what a venue pays for the replica that makes its snapshots.

A venue works under the load of the standard benchmark without a replica, and with one beside it
that makes no snapshots, makes them as the configuration of a new venue says, or a hundred times as
often. The venue does not know them: it tells a reader its position now and then, and shares the
machine's disk. So it should use the same processor time an order. The same again at a steady rate,
where the replica has time for its work even if it shares a processor with the generator.

The venue has a processor of its own; replica and generator share the others.
"""

import argparse
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from exchange.config import SnapshotSettings
from tools.bench_load import Load, measure, medians
from tools.bench_script import SCRIPT_COUNT
from tools.bench_servers import BenchVenue, bench_venue
from tools.errors import ToolError
from tools.host import disk_folder, machine, processor_s, set_apart
from tools.venue_process import ReplicaProcess
from tools.venue_settings import change_settings

__all__ = ["run_replica_cost"]

STEADY_RATE: Final = 50_000
"""Orders a second, of all connections together."""

DEFAULTS: Final = SnapshotSettings()
NEVER: Final = 2**32 - 1

Row = dict[str, float]


class Kind(NamedTuple):
    """A replica, or none; it makes a snapshot after so many commands."""

    name: str
    every_commands: int | None


KINDS: Final = (
    Kind("none", None),
    Kind("no snapshots", NEVER),
    Kind("as configured", DEFAULTS.every_commands),
    Kind("100 times as often", DEFAULTS.every_commands // 100),
)


class Shape(NamedTuple):
    """What is measured, and where."""

    folder: Path
    kinds: tuple[Kind, ...]
    rates: tuple[int, ...]
    connections: int
    in_flight: int
    seconds: int
    seed: int


def measure_kinds(shape: Shape) -> list[Row]:
    """Every kind at both loads in turn, on one venue whose books stay. Raises ToolError."""
    rows: list[Row] = []
    with ExitStack() as stack:
        bench = stack.enter_context(bench_venue(shape.folder, shape.connections))
        stack.enter_context(set_apart(bench.venue.process_id))
        for rate in shape.rates:
            for kind in shape.kinds:
                with replayed(bench, kind) as replica:
                    rows.append(measure_one(shape, bench, replica, rate, len(rows)))
        bench.venue.stop()
    return rows


@contextmanager
def replayed(bench: BenchVenue, kind: Kind) -> Iterator[ReplicaProcess | None]:
    """A replica of this kind, which has caught up."""
    if kind.every_commands is None:
        yield None
        return
    # Only commands make a snapshot due: the other two ways depend on the length of the run.
    settings = {"every_commands": kind.every_commands, "every_bytes": 2**62, "every_s": 86_400}
    change_settings(
        bench.venue.folder / "exchange.toml",
        {f"snapshots.{name}": value for name, value in settings.items()},
    )
    with ReplicaProcess(bench.venue.folder) as replica:
        replica.start()
        yield replica
        replica.stop()


def measure_one(
    shape: Shape, bench: BenchVenue, replica: ReplicaProcess | None, rate: int, index: int
) -> Row:
    """The venue under the load; `index` counts the measurements on it."""
    with ExitStack() as connected:
        seed = shape.seed + 1_000 * index
        lines = bench.connect(connected, shape.connections, f"cost-{index}", seed)
        replica_s = processor_s(replica.process_id) if replica else 0.0
        before = read_snapshots(replica)
        measured = measure(
            Load(
                bench.venue.process_id,
                lines,
                SCRIPT_COUNT if rate else shape.in_flight,
                shape.seconds,
                rate=rate,
                has_own_processor=False,
            )
        )
        if not measured.orders:
            raise ToolError("nothing was answered in time: the machine is too busy")
        after = read_snapshots(replica)
        replica_s = processor_s(replica.process_id) - replica_s if replica else 0.0
    return {
        "orders_per_second": round(measured.orders / measured.seconds),
        "venue_cpu_us_per_order": round(measured.server_s / measured.orders * 1e6, 3),
        "replica_cpu_us_per_order": round(replica_s / measured.orders * 1e6, 3),
        "snapshots": after.made - before.made,
        "snapshot_ms": round(after.last_s * 1e3, 1),
        "lag_commands": after.lag,
    }


class Snapshots(NamedTuple):
    """What a replica says of itself."""

    made: float
    last_s: float
    lag: float


def read_snapshots(replica: ReplicaProcess | None) -> Snapshots:
    """From its metrics."""
    if replica is None:
        return Snapshots(0, 0, 0)
    lines = replica.metrics().splitlines()
    values = dict(line.rpartition(" ")[::2] for line in lines if line.startswith("brier_"))
    names = ("snapshots_made_total", "snapshot_seconds", "lag_commands")
    return Snapshots(*(float(values[f"brier_replica_{name}"]) for name in names))


def run_replica_cost(arguments: argparse.Namespace) -> int:
    """Measure and print."""
    folder = disk_folder(arguments.dir)
    options = {
        name: getattr(arguments, name) for name in ("connections", "in_flight", "seconds", "seed")
    }
    shape = Shape(folder, KINDS, (0, STEADY_RATE), **options)
    about = machine(folder)
    runs = []
    for number in range(1, arguments.runs + 1):
        runs.append(measure_kinds(shape))
        if not arguments.json:
            print(f"run {number}:", flush=True)
            _print_rows(runs[-1])
    rows = [medians([run[i] for run in runs]) for i in range(len(shape.rates) * len(KINDS))]
    if arguments.json:
        names = [kind.name for kind in KINDS]
        found = {"kinds": names, "rows": rows, "runs": len(runs), "all": runs}
        print(json.dumps(found | options | about))
    else:
        print(f"medians over all runs ({len(runs)}):")
        _print_rows(rows)
    return 0


def _print_rows(rows: list[Row]) -> None:
    """Two tables of at most 80 columns."""
    for index, row in enumerate(rows):
        if index % len(KINDS) == 0:
            load = f"{STEADY_RATE:,} orders/s" if index else "closed loop"
            print(f"  {load:18} orders/s  venue us  change  replica us  made    ms      lag")
        base = rows[index - index % len(KINDS)]["venue_cpu_us_per_order"]
        change = row["venue_cpu_us_per_order"] / base - 1
        print(
            f"  {KINDS[index % len(KINDS)].name:18} {row['orders_per_second']:8,.0f} "
            f"{row['venue_cpu_us_per_order']:9,.3f} {change:+7.1%} "
            f"{row['replica_cpu_us_per_order']:11,.3f} {row['snapshots']:5,.0f} "
            f"{row['snapshot_ms']:5,.0f} {row['lag_commands']:8,.0f}",
            flush=True,
        )
