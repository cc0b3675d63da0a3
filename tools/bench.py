"""`exchange bench`: the standard benchmark. How many orders a second, and how fast is each?

Four connections keep 64 requests each unanswered; then one connection keeps one. 60 % are new
orders, 35 % cancels, 5 % cross, over 100 binary instruments. The venue is a child process with all
its checks, its journal on a disk, private reports and multicast. The generator is compiled
(`tools.generator`), so that it is not what is measured: the same frames against a bare echo server
show what it can do. Redis with synced writes, if wanted, shows what others do. Each run measures
all of them in turn, and the figures are medians over the runs. `--latency`, `--feed-cost`,
`--fan-out`, `--joins`, `--recovery` and `--replica-cost` measure something else
(`tools.bench_latency` and so on). See BENCHMARK.md.
"""

import argparse
import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, NamedTuple

from tools.bench_fanout import run_fan_out
from tools.bench_feed_cost import SUBSCRIBERS_DEFAULT, run_feed_cost
from tools.bench_joins import CONSUMERS_DEFAULT, run_joins
from tools.bench_latency import RATES_DEFAULT, run_latency
from tools.bench_load import Load, Measured, measure, medians
from tools.bench_recovery import EVERY_DEFAULT, run_recovery
from tools.bench_replica_cost import run_replica_cost
from tools.bench_script import SCRIPT_COUNT
from tools.bench_servers import bench_venue, echo_server, records_between
from tools.errors import ReplayDiffersError
from tools.host import disk_folder, machine
from tools.journal_tools import replay_journal
from tools.redis_reference import run_redis, script_path

__all__ = ["add_commands"]

CONNECTIONS_DEFAULT: Final = 4
IN_FLIGHT_DEFAULT: Final = 64
SECONDS_DEFAULT: Final = 4
RUNS_DEFAULT: Final = 3
SEED_DEFAULT: Final = 8

CONNECTIONS_MAX: Final = 256
SECONDS_MAX: Final = 600
RUNS_MAX: Final = 100
SEED_MAX: Final = 2**31
SUBSCRIBERS_MAX: Final = 4_000
CONSUMERS_MAX: Final = 1_000
EVERY_MAX: Final = 2**32 - 1
RATE_MAX: Final = 10_000_000
"""A request every 100 ns is more than the generator can send."""

SINGLE_SECONDS_MAX: Final = 2
"""One in flight and the echo server: thousands of samples are enough."""
SINGLE_SEED: Final = 1_000
"""Added to the seed: other requests than those of the connections before."""

REDIS_RATE: Final = 300_000
REDIS_SINGLE_RATE: Final = 5_000
"""Requests for each second of ours, so that both measure for about as long."""

ANSWER_NAMES: Final = {80: "accepted", 81: "rejected", 83: "canceled", 86: "cancel_rejected"}
"""By tag; a report of a fill (85) is no answer."""
FILL_TAG: Final = 85


class Shape(NamedTuple):
    """What a run measures, and where."""

    folder: Path
    connections: int
    in_flight: int
    seconds: int
    seed: int

    @property
    def single_seconds(self) -> int:
        """How long with one request in flight."""
        return min(self.seconds, SINGLE_SECONDS_MAX)

    def options(self) -> dict[str, int]:
        """What was asked for."""
        names = ("connections", "in_flight", "seconds", "seed")
        return {name: getattr(self, name) for name in names}


Row = dict[str, float]


def run_venue(shape: Shape, *, is_told: bool) -> tuple[Row, str]:
    """Measure a venue of its own; the figures and its build. Raises ToolError."""
    with ExitStack() as stack:
        bench = stack.enter_context(bench_venue(shape.folder, shape.connections))
        if is_told:
            print(bench.venue.greeting(), flush=True)
        receivers = bench.receivers(stack)
        process_id = bench.venue.process_id
        with ExitStack() as connected:
            lines = bench.connect(connected, shape.connections, "bench", shape.seed)
            load = Load(process_id, lines, shape.in_flight, shape.seconds, receivers=receivers)
            many = measure(load)
        with ExitStack() as connected:
            lines = bench.connect(connected, 1, "single", shape.seed + SINGLE_SEED)
            load = Load(process_id, lines, 1, shape.single_seconds, receivers=receivers)
            single = measure(load)
        stopped = bench.venue.stop()
        folder = bench.venue.folder
        if replay_journal(folder).digest != stopped["digest"]:
            raise ReplayDiffersError("the journal's replay gives another digest than the venue had")
        records = records_between(folder, many.first_sequence, many.last_sequence)
    row = {
        **throughput(many, "", "order"),
        **latencies(single, "single_"),
        "single_orders_per_second": round(single.orders / single.seconds),
        "venue_cpu_share": share(many.server_s, many),
        "venue_cpu_us_per_order": round(many.server_s / many.orders * 1e6, 3),
        "orders_per_record": round(many.orders / max(records, 1), 1),
        "fills_per_second": round(many.tags.get(FILL_TAG, 0) / many.seconds),
        **{name: many.tags.get(tag, 0) for tag, name in ANSWER_NAMES.items()},
        "market_data_packets_per_second": round(many.packets / many.seconds),
        "market_data_messages_per_second": round(many.messages / many.seconds),
        "market_data_lost": many.lost + single.lost,
    }
    return row, bench.venue.ready["build"]


def run_echo(shape: Shape) -> Row:
    """Measure the generator against a bare echo server. Raises ToolError."""
    seconds = shape.single_seconds
    with echo_server() as echo:
        with ExitStack() as connected:
            lines = echo.connect(connected, shape.connections, shape.seed)
            many = measure(Load(echo.process_id, lines, shape.in_flight, seconds, is_echo=True))
        with ExitStack() as connected:
            lines = echo.connect(connected, 1, shape.seed + SINGLE_SEED)
            single = measure(Load(echo.process_id, lines, 1, seconds, is_echo=True))
    return {**throughput(many, "echo_", "frame"), **latencies(single, "echo_single_")}


def run_redis_reference(shape: Shape) -> Row:
    """Measure Redis with as many connections and requests in flight. Raises ToolError."""
    requests = REDIS_RATE * shape.seconds
    many = run_redis(shape.folder, shape.connections, shape.in_flight, requests)
    single = run_redis(shape.folder, 1, 1, REDIS_SINGLE_RATE * shape.single_seconds)
    return {
        "redis_requests_per_second": round(many.requests_per_second),
        "redis_ack_p50_us": many.p50_us,
        "redis_ack_p99_us": many.p99_us,
        "redis_single_requests_per_second": round(single.requests_per_second),
        "redis_single_ack_p50_us": single.p50_us,
        "redis_single_ack_p99_us": single.p99_us,
    }


def throughput(measured: Measured, prefix: str, unit: str) -> Row:
    """Rate and latencies of a phase with many in flight, and what the generator used."""
    return {
        f"{prefix}{unit}s_per_second": round(measured.orders / measured.seconds),
        **latencies(measured, prefix),
        f"{prefix}generator_cpu_share": share(measured.generator_s, measured),
    }


def latencies(measured: Measured, prefix: str) -> Row:
    """Percentiles of a phase."""
    return {
        f"{prefix}ack_{name}_us": measured.latencies.percentile_us(percent)
        for name, percent in (("p50", 50), ("p99", 99), ("p999", 99.9))
    }


def share(used_s: float, measured: Measured) -> float:
    """Processor time of a phase, of one processor."""
    return round(used_s / measured.seconds, 3)


def run_bench(arguments: argparse.Namespace) -> int:
    """Measure and print."""
    shape = Shape(
        disk_folder(arguments.dir),
        arguments.connections,
        arguments.in_flight,
        arguments.seconds,
        arguments.seed,
    )
    if arguments.redis:
        script_path()
    about = machine(shape.folder)
    rows: list[Row] = []
    for number in range(1, arguments.runs + 1):
        row, build = run_venue(shape, is_told=not arguments.json)
        row |= run_echo(shape)
        if arguments.redis:
            row |= run_redis_reference(shape)
        rows.append(row)
        if not arguments.json:
            _print_run(number, row)
    figures: dict[str, Any] = {**medians(rows)}
    if arguments.redis:
        ratio = figures["orders_per_second"] / figures["redis_requests_per_second"]
        figures["ratio_to_redis"] = round(ratio, 3)
    figures |= {"build": build, **shape.options(), "runs": arguments.runs, **about}
    if arguments.json:
        print(json.dumps(figures | {"rows": rows}))
    else:
        _print_summary(figures)
    return 0


def _print_run(number: int, row: Row) -> None:
    redis = ""
    if "redis_requests_per_second" in row:
        redis = (
            f"   Redis {row['redis_requests_per_second']:,.0f}/s, "
            f"one in flight {row['redis_single_ack_p50_us']:,.0f} us"
        )
    print(
        f"run {number}: {row['orders_per_second']:,.0f} orders/s   "
        f"one in flight {row['single_ack_p50_us']:,.0f} us{redis}",
        flush=True,
    )


def _print_summary(figures: dict[str, Any]) -> None:
    """Medians, in lines of at most 80 columns."""
    print(
        f"\n{figures['connections']} connections with {figures['in_flight']} in flight each, "
        f"{figures['seconds']} s; medians over all runs ({figures['runs']}):\n"
        f"  {figures['orders_per_second']:,.0f} orders a second, "
        f"{figures['orders_per_record']:,.0f} to a journal record (one sync each)\n"
        f"  acknowledged in {_percentiles(figures, '')}\n"
        f"  market data {figures['market_data_messages_per_second']:,.0f} messages in "
        f"{figures['market_data_packets_per_second']:,.0f} packets a second, "
        f"{figures['market_data_lost']:,.0f} lost\n"
        f"  venue {figures['venue_cpu_us_per_order']:.2f} us an order, "
        f"{figures['venue_cpu_share']:.0%} of a processor; "
        f"generator {figures['generator_cpu_share']:.0%} of another\n"
        f"One connection, one in flight:\n"
        f"  acknowledged in {_percentiles(figures, 'single_')}\n"
        f"The same frames against a bare echo server:\n"
        f"  {figures['echo_frames_per_second']:,.0f} a second, "
        f"one in flight {figures['echo_single_ack_p50_us']:,.1f} us (p50); "
        f"generator {figures['echo_generator_cpu_share']:.0%}"
    )
    if "ratio_to_redis" in figures:
        print(
            f"Redis with every write synced:\n"
            f"  {figures['redis_requests_per_second']:,.0f} requests a second (the venue has "
            f"{figures['ratio_to_redis']:.2f} of it)\n"
            f"  p50 {figures['redis_ack_p50_us']:,.0f} us, "
            f"p99 {figures['redis_ack_p99_us']:,.0f} us, "
            f"one in flight {figures['redis_single_ack_p50_us']:,.0f} us (p50)"
        )
    where = f"{figures['file_system']} in {figures['folder']}, 16 KiB synced in"
    print(
        f"On {figures['processors']} x {figures['processor']}, Python {figures['python']}; "
        f"{figures['build']} build of {figures['commit']};\n"
        f"{where} {figures['sync_p50_us']:,.0f} us (p50)"
    )
    if not figures["is_durable"]:
        print("That is memory, not a disk: nothing here was durable.")


def _percentiles(figures: dict[str, Any], prefix: str) -> str:
    return ", ".join(
        f"{figures[f'{prefix}ack_{name}_us']:,.0f} us ({shown})"
        for name, shown in (("p50", "p50"), ("p99", "p99"), ("p999", "p99.9"))
    )


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Mount `bench`."""
    bench = commands.add_parser(
        "bench",
        help="the standard benchmark: orders a second and acknowledgement latency",
        description="Measure a venue of its own with a compiled generator: many requests in "
        "flight, then one; the same frames against a bare echo server; and Redis, if wanted.",
    )
    for name, maximum, default, text in (
        ("connections", CONNECTIONS_MAX, CONNECTIONS_DEFAULT, "connections of the first phase"),
        ("in-flight", SCRIPT_COUNT, IN_FLIGHT_DEFAULT, "unanswered requests of each of them"),
        ("seconds", SECONDS_MAX, SECONDS_DEFAULT, "length of the first phase"),
        ("runs", RUNS_MAX, RUNS_DEFAULT, "figures are medians over so many"),
        ("seed", SEED_MAX, SEED_DEFAULT, "of the requests"),
        ("consumers", CONSUMERS_MAX, CONSUMERS_DEFAULT, "of --joins, which join within --seconds"),
        ("every-commands", EVERY_MAX, EVERY_DEFAULT, "a snapshot of --recovery after so many"),
    ):
        bench.add_argument(
            f"--{name}",
            type=_between(maximum),
            default=default,
            metavar="N",
            help=f"{text}; default: {default}",
        )
    bench.add_argument(
        "--dir",
        type=Path,
        metavar="DIR",
        help="folder on the disk to use; default: a temporary one",
    )
    bench.add_argument(
        "--rates",
        type=_rates,
        default=RATES_DEFAULT,
        metavar="N,N,...",
        help="orders a second of --latency, one phase each; "
        f"default: {','.join(str(rate) for rate in RATES_DEFAULT)}",
    )
    bench.add_argument(
        "--subscribers",
        type=_counts,
        default=SUBSCRIBERS_DEFAULT,
        metavar="N,N,...",
        help="of the feed server of --feed-cost, in turn; "
        f"default: {','.join(str(count) for count in SUBSCRIBERS_DEFAULT)}",
    )
    _add_modes(bench)
    bench.add_argument("--redis", action="store_true", help="measure Redis in turn, as a reference")
    bench.add_argument("--json", action="store_true", help="one JSON object, nothing else")
    bench.set_defaults(run=run_bench)


def _add_modes(bench: argparse.ArgumentParser) -> None:
    """What may be measured in place of the standard benchmark."""
    modes = bench.add_mutually_exclusive_group()
    for name, run, text in (
        ("latency", run_latency, "an open loop, order sent to trade seen on the multicast"),
        ("feed-cost", run_feed_cost, "what the venue pays for subscribers of its feed server"),
        ("fan-out", run_fan_out, "one feed server with 1 to 1,000 subscribers, and a bare server"),
        ("joins", run_joins, "consumers join at random moments; how soon is each right?"),
        ("recovery", run_recovery, "kill a venue; how fast is it back, with and without snapshot?"),
        ("replica-cost", run_replica_cost, "what the venue pays for the replica and its snapshots"),
    ):
        modes.add_argument(
            f"--{name}", dest="run", action="store_const", const=run, help=f"instead: {text}"
        )


def _between(maximum: int) -> Callable[[str], int]:
    """A whole number from 1, for argparse."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not 1 <= int(text) <= maximum:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {maximum}")
        return int(text)

    return parse


def _rates(text: str) -> tuple[int, ...]:
    """Whole numbers with commas between, for argparse."""
    return tuple(_between(RATE_MAX)(part) for part in text.split(","))


def _counts(text: str) -> tuple[int, ...]:
    """The same from 0."""
    parts = text.split(",")
    return tuple(0 if part == "0" else _between(SUBSCRIBERS_MAX)(part) for part in parts)
