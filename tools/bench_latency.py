"""`exchange bench --latency`: orders come at a rate; how long until the trade is on the multicast?

An open loop: requests of the standard mix fall due at fixed moments, whatever the venue does, and
every time counts from when its request was due. So a venue that stalls cannot hide it: what waits
behind the stall is late too, and what is not answered when the time is over is waited for. Measured
are the acknowledgement of each request and, for orders that trade at once, the moment when a
consumer has read the first packet with a trade of theirs. The same schedule against a bare echo
server shows the share of TCP, the loop and the generator.
"""

import argparse
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, NamedTuple

from tools.bench_load import Load, Measured, measure
from tools.bench_script import SCRIPT_COUNT
from tools.bench_servers import bench_venue, echo_server
from tools.host import disk_folder, machine
from tools.latencies import Latencies

__all__ = ["RATES_DEFAULT", "run_latency"]

RATES_DEFAULT: Final = (1_000, 10_000, 50_000)

SEED_STEP: Final = 1_000
"""Between the seeds of two rates: each has requests of its own."""

Row = dict[str, float]


class Shape(NamedTuple):
    """What is measured, and where."""

    folder: Path
    rates: tuple[int, ...]
    connections: int
    seconds: int
    seed: int


class Phase(NamedTuple):
    """What came of one rate, at the venue and at the echo server."""

    venue: Measured
    echo: Measured


def measure_rates(shape: Shape, *, is_told: bool) -> tuple[list[Phase], str]:
    """All rates against one venue, whose books stay, each with the echo server after it; and the
    venue's build. Raises ToolError."""
    phases = []
    with ExitStack() as stack:
        bench = stack.enter_context(bench_venue(shape.folder, shape.connections))
        echo = stack.enter_context(echo_server())
        if is_told:
            print(bench.venue.greeting(), flush=True)
        receivers = bench.receivers(stack)
        for index, rate in enumerate(shape.rates):
            seed = shape.seed + SEED_STEP * index
            with ExitStack() as connected:
                lines = bench.connect(connected, shape.connections, f"rate-{rate}", seed)
                at_venue = measure(
                    Load(
                        bench.venue.process_id,
                        lines,
                        SCRIPT_COUNT,
                        shape.seconds,
                        receivers=receivers,
                        rate=rate,
                    )
                )
            with ExitStack() as connected:
                lines = echo.connect(connected, shape.connections, seed)
                at_echo = measure(
                    Load(
                        echo.process_id, lines, SCRIPT_COUNT, shape.seconds, is_echo=True, rate=rate
                    )
                )
            phases.append(Phase(at_venue, at_echo))
        bench.venue.stop()
    return phases, bench.venue.ready["build"]


def figures_of(rate: int, phases: list[Phase]) -> Row:
    """One rate over all runs: percentiles of everything that was counted."""
    acknowledged, traded, echoed = Latencies(), Latencies(), Latencies()
    for venue, echo in phases:
        acknowledged.merge(venue.latencies)
        traded.merge(venue.trades)
        echoed.merge(echo.latencies)
    seconds = sum(venue.seconds for venue, _ in phases)
    row: Row = {
        "rate": rate,
        "due": sum(venue.due for venue, _ in phases),
        "answered_in_time": sum(venue.orders for venue, _ in phases),
        "traded_orders": traded.count,
    }
    for name, latencies in (("ack", acknowledged), ("trade", traded), ("echo", echoed)):
        for shown, percent in (("p50", 50), ("p99", 99), ("p999", 99.9)):
            row[f"{name}_{shown}_us"] = latencies.percentile_us(percent)
    row["venue_cpu_share"] = round(sum(venue.server_s for venue, _ in phases) / seconds, 3)
    row["market_data_lost"] = sum(venue.lost for venue, _ in phases)
    return row


def run_latency(arguments: argparse.Namespace) -> int:
    """Measure and print."""
    shape = Shape(
        disk_folder(arguments.dir),
        arguments.rates,
        arguments.connections,
        arguments.seconds,
        arguments.seed,
    )
    about = machine(shape.folder)
    runs: list[list[Phase]] = []
    for number in range(1, arguments.runs + 1):
        phases, build = measure_rates(shape, is_told=not arguments.json)
        runs.append(phases)
        if not arguments.json:
            print(f"run {number}:", flush=True)
            _print_rows([figures_of(r, [p]) for r, p in zip(shape.rates, phases, strict=True)])
    rows = [figures_of(rate, [run[i] for run in runs]) for i, rate in enumerate(shape.rates)]
    if arguments.json:
        options = {"connections": shape.connections, "seconds": shape.seconds, "seed": shape.seed}
        figures: dict[str, Any] = {"rates": rows, "runs": len(runs), "build": build}
        print(json.dumps(figures | options | about))
    else:
        print(f"all runs ({len(runs)}), {about['processors']} x {about['processor']}:")
        _print_rows(rows)
    return 0


def _print_rows(rows: list[Row]) -> None:
    """A table of at most 80 columns; times in microseconds."""
    print("   rate      due  in time ack p50     p99   trade     p99   p99.9   echo    p99")
    for row in rows:
        print(
            f"{row['rate']:7,} {row['due']:8,} {row['answered_in_time']:8,} "
            f"{row['ack_p50_us']:7,.0f} {row['ack_p99_us']:7,.0f} {row['trade_p50_us']:7,.0f} "
            f"{row['trade_p99_us']:7,.0f} {row['trade_p999_us']:7,.0f} {row['echo_p50_us']:6,.0f} "
            f"{row['echo_p99_us']:6,.0f}",
            flush=True,
        )
