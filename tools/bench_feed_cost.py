"""`exchange bench --feed-cost`: what a venue pays for the subscribers of its feed server.

A venue works under the load of the standard benchmark, without a feed server, and with one beside
it that has 0, 1 or 1,000 subscribers to every message. The venue does not know them, it writes its
event log and tells one process its position. So it should use the same processor time an order, and
as many calls of the system a packet. What the feed server can deliver does not matter here.

The venue has a processor of its own; feed server, subscribers and generator share the others.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from exchange.client import write_key
from tools.bench_load import Load, measure, medians
from tools.bench_servers import BenchVenue, bench_venue
from tools.errors import ToolError
from tools.host import disk_folder, machine, processor_s, set_apart
from tools.venue_process import FeedProcess, child_environment

__all__ = ["SUBSCRIBERS_DEFAULT", "run_feed_cost"]

NO_FEED: Final = -1
SUBSCRIBERS_DEFAULT: Final = (0, 1, 1_000)

NICE: Final = 10
"""Of feed server and subscribers: the generator comes first on the processor that they share."""

Row = dict[str, float]


class Shape(NamedTuple):
    """What is measured, and where."""

    folder: Path
    subscribers: tuple[int, ...]
    connections: int
    in_flight: int
    seconds: int
    seed: int


class Sent(NamedTuple):
    """What a venue has sent to its lines: packets with messages, and calls of the system."""

    packets: float
    calls: float


def measure_counts(shape: Shape) -> list[Row]:
    """Every number of subscribers in turn, on one venue whose books stay. Raises ToolError."""
    rows = []
    with ExitStack() as stack:
        bench = stack.enter_context(bench_venue(shape.folder, shape.connections))
        key = bench.venue.folder / "keys" / "subscriber.pem"
        write_key(key, bench.members[0].key)
        stack.enter_context(set_apart(bench.venue.process_id))
        for index, count in enumerate(shape.subscribers):
            with served(bench, key, count) as feed:
                rows.append(measure_one(shape, bench, feed, index) | {"subscribers": count})
        bench.venue.stop()
    return rows


@contextmanager
def served(bench: BenchVenue, key: Path, count: int) -> Iterator[FeedProcess | None]:
    """A feed server with so many subscribers; none with NO_FEED."""
    if count == NO_FEED:
        yield None
        return
    with FeedProcess(bench.venue.folder) as feed:
        feed.start()
        os.setpriority(os.PRIO_PROCESS, feed.process_id, NICE)
        host, port = feed.address
        command = [sys.executable, "-P", "-m", "tools.bench_subscribers"]
        with subprocess.Popen(
            [*command, host, str(port), str(key), str(count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=child_environment(),
            process_group=0,
        ) as subscribers:
            try:
                os.setpriority(os.PRIO_PROCESS, subscribers.pid, NICE)
                assert subscribers.stdout is not None, "it is a pipe"
                if subscribers.stdout.readline() != "ready\n":
                    raise ToolError(f"{count} subscribers did not get in")
                yield feed
                found, _ = subscribers.communicate("")
                if subscribers.returncode or (count and found.startswith("slowest=0 ")):
                    raise ToolError(f"subscribers got nothing, or lost their feed server: {found}")
            finally:
                subscribers.kill()
        feed.stop()


def measure_one(shape: Shape, bench: BenchVenue, feed: FeedProcess | None, index: int) -> Row:
    """The venue under the same load as always."""
    with ExitStack() as connected:
        seed = shape.seed + 1_000 * index
        lines = bench.connect(connected, shape.connections, f"cost-{index}", seed)
        before, started_s = read_sent(bench), time.perf_counter()
        feed_s = processor_s(feed.process_id) if feed else 0.0
        measured = measure(
            Load(
                bench.venue.process_id,
                lines,
                shape.in_flight,
                shape.seconds,
                has_own_processor=False,
            )
        )
        after = read_sent(bench)
        feed_s = processor_s(feed.process_id) - feed_s if feed else 0.0
        elapsed_s = time.perf_counter() - started_s
    packets = after.packets - before.packets
    return {
        "orders_per_second": round(measured.orders / measured.seconds),
        "venue_cpu_us_per_order": round(measured.server_s / measured.orders * 1e6, 3),
        "sends_per_packet": round((after.calls - before.calls) / packets, 4),
        "packets_per_order": round(packets / measured.orders, 3),
        "feed_cpu_share": round(feed_s / elapsed_s, 3),
    }


def read_sent(bench: BenchVenue) -> Sent:
    """What the venue's metrics say."""
    text = bench.venue.metrics()

    def total(name: str, label: str = "") -> float:
        rows = (line.rpartition(" ") for line in text.splitlines() if line.startswith(f"{name}{{"))
        return sum(float(value) for key, _, value in rows if label in key)

    return Sent(
        total("brier_market_data_packets_total", 'kind="data"'),
        total("brier_market_data_sends_total"),
    )


def run_feed_cost(arguments: argparse.Namespace) -> int:
    """Measure and print."""
    folder = disk_folder(arguments.dir)
    shape = Shape(
        folder,
        (NO_FEED, *arguments.subscribers),
        arguments.connections,
        arguments.in_flight,
        arguments.seconds,
        arguments.seed,
    )
    about = machine(folder)
    runs = []
    for number in range(1, arguments.runs + 1):
        runs.append(measure_counts(shape))
        if not arguments.json:
            print(f"run {number}:", flush=True)
            _print_rows(runs[-1])
    rows = [medians([run[i] for run in runs]) for i in range(len(shape.subscribers))]
    if arguments.json:
        names = ("connections", "in_flight", "seconds", "seed")
        options = {name: getattr(shape, name) for name in names}
        print(json.dumps({"subscribers": rows, "runs": len(runs), "all": runs} | options | about))
    else:
        print(f"medians over all runs ({len(runs)}):")
        _print_rows(rows)
    return 0


def _print_rows(rows: list[Row]) -> None:
    """A table of at most 80 columns."""
    print("  subscribers  orders/s  us an order  sends a packet  packets an order  feed")
    for row in rows:
        count = row["subscribers"]
        shown = "no feed" if count == NO_FEED else f"{count:,.0f}"
        print(
            f"{shown:>13} {row['orders_per_second']:9,.0f} {row['venue_cpu_us_per_order']:12,.3f} "
            f"{row['sends_per_packet']:15,.4f} {row['packets_per_order']:17,.3f} "
            f"{row['feed_cpu_share']:5.0%}",
            flush=True,
        )
