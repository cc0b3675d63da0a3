"""`exchange bench --recovery`: how fast does a venue come back?

A venue works under the load of the standard benchmark with a replica beside it, and is killed. Then
it starts three times: from the newest snapshot, as it would be on the day; from the first record,
without any snapshot; and once more so, with its log of events gone, which it writes again. Each
start is timed from the exec to the ready line, and each is followed by SIGKILL. What a recovery
could reach at best is measured in the same run: a bare engine that replays the records, and a bare
BLAKE2b over the same bytes, both from memory.
"""

import argparse
import json
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from hashlib import blake2b
from pathlib import Path
from typing import Final, NamedTuple

from exchange.config import SnapshotSettings
from exchange.core.engine import Engine
from exchange.core.replay import replay_record
from journal import Record, read_only
from journal.record import HASH_SIZE
from tools.bench_load import Load, measure, medians
from tools.bench_servers import BenchVenue, bench_venue
from tools.errors import ToolError
from tools.host import disk_folder, machine
from tools.journal_folders import VenueFolders, commands_folder, open_journal
from tools.venue_process import ReplicaProcess

__all__ = ["EVERY_DEFAULT", "run_recovery"]

EVERY_DEFAULT: Final = SnapshotSettings().every_commands

NANOSECONDS: Final = 1_000_000_000
REFERENCE_COMMANDS_MAX: Final = 4_000_000
"""Commands of the bare replay, whose records are in memory at once: 300 MB."""

Row = dict[str, float]


class Shape(NamedTuple):
    """What is measured, and where."""

    folder: Path
    connections: int
    in_flight: int
    seconds: int
    seed: int
    every_commands: int
    """A snapshot after so many."""


class Started(NamedTuple):
    """One start."""

    ready_s: float
    recovery_s: float
    commands: int
    snapshot_sequence: int

    def row(self, name: str) -> Row:
        """Its figures."""
        return {
            f"{name}_ready_s": round(self.ready_s, 3),
            f"{name}_recovery_s": round(self.recovery_s, 3),
            f"{name}_commands": self.commands,
            f"{name}_commands_per_second": round(self.commands / self.recovery_s),
        }


def measure_once(shape: Shape) -> Row:
    """A venue of its own, from its first command to its last start. Raises ToolError."""
    settings = {"snapshots.every_commands": shape.every_commands}
    with ExitStack() as stack:
        bench = stack.enter_context(bench_venue(shape.folder, shape.connections, settings))
        replica = stack.enter_context(ReplicaProcess(bench.venue.folder))
        replica.start()
        with ExitStack() as connected:
            lines = bench.connect(connected, shape.connections, "recovery", shape.seed)
            load = Load(bench.venue.process_id, lines, shape.in_flight, shape.seconds)
            measured = measure(load)
            bench.venue.kill()
        replica.kill()
        folders = VenueFolders(commands_folder(bench.venue.folder))
        from_snapshot = start(bench)
        shutil.rmtree(folders.snapshots)
        from_first = start(bench)
        shutil.rmtree(folders.events)
        rebuilding = start(bench)
        if from_first.snapshot_sequence or rebuilding.snapshot_sequence:
            raise ToolError("a start without snapshots has used one")
        reference = measure_reference(bench.venue.folder)
    return {
        "orders_per_second": round(measured.orders / measured.seconds),
        **from_snapshot.row("snapshot"),
        "snapshot_sequence": from_snapshot.snapshot_sequence,
        **from_first.row("first"),
        **rebuilding.row("rebuilding"),
        **reference,
        "ratio_to_bare": round(
            from_first.commands / from_first.recovery_s / reference["bare_commands_per_second"], 3
        ),
    }


def start(bench: BenchVenue) -> Started:
    """Start the venue, and kill it when it is ready. Raises ToolError."""
    started_ns = time.perf_counter_ns()
    bench.venue.start()
    ready_ns = time.perf_counter_ns() - started_ns
    figures = read_gauges(bench.venue.metrics())
    bench.venue.kill()
    return Started(
        ready_ns / NANOSECONDS,
        figures["brier_recovery_seconds"],
        round(figures["brier_recovery_commands"]),
        round(figures["brier_recovery_snapshot_sequence"]),
    )


def read_gauges(text: str) -> dict[str, float]:
    """Values of all metrics without labels."""
    rows = (line.split() for line in text.splitlines() if line and line[0] not in "#{")
    return {name: float(value) for name, value in rows if "{" not in name}


def measure_reference(folder: Path) -> Row:
    """Bare replay and bare hash of the first records, which are in memory."""
    records: list[Record] = []
    commands = 0
    with open_journal(folder) as storage:
        for record in read_only(storage).records():
            records.append(record)
            commands += record.command_count
            if commands >= REFERENCE_COMMANDS_MAX:
                break
    engine = Engine()

    def replay() -> None:
        for record in records:
            replay_record(engine, record)

    def hash_all() -> None:
        for record in records:
            blake2b(record.payload, digest_size=HASH_SIZE).digest()

    replay_s, hash_s = _timed(replay), _timed(hash_all)
    return {
        "records": len(records),
        "commands_per_record": round(commands / len(records), 1),
        "bare_commands_per_second": round(commands / (replay_s + hash_s)),
        "bare_replay_per_second": round(commands / replay_s),
        "bare_hash_bytes_per_second": round(
            sum(record.payload.nbytes for record in records) / hash_s
        ),
    }


def _timed(action: Callable[[], None]) -> float:
    started_ns = time.perf_counter_ns()
    action()
    return (time.perf_counter_ns() - started_ns) / NANOSECONDS


def run_recovery(arguments: argparse.Namespace) -> int:
    """Measure and print."""
    shape = Shape(
        disk_folder(arguments.dir),
        arguments.connections,
        arguments.in_flight,
        arguments.seconds,
        arguments.seed,
        arguments.every_commands,
    )
    about = machine(shape.folder)
    rows: list[Row] = []
    for number in range(1, arguments.runs + 1):
        rows.append(measure_once(shape))
        if not arguments.json:
            print(f"run {number}:", flush=True)
            _print_row(rows[-1])
    figures = medians(rows)
    if arguments.json:
        names = ("connections", "in_flight", "seconds", "seed", "every_commands")
        options = {name: getattr(shape, name) for name in names}
        print(json.dumps(figures | {"runs": len(rows), "rows": rows} | options | about))
    else:
        print(f"medians over all runs ({len(rows)}):")
        _print_row(figures)
    return 0


def _print_row(row: Row) -> None:
    """A table of at most 80 columns."""
    shown = f"{row['snapshot_sequence']:,.0f}" if row["snapshot_sequence"] else "none yet"
    print(
        f"  {row['orders_per_second']:,.0f} orders/s, "
        f"{row['commands_per_record']:,.0f} commands a record; newest snapshot: {shown}\n"
        "  start                        commands  commands/s  recovery s  to ready s"
    )
    for name, text in (
        ("snapshot", "from the newest snapshot"),
        ("first", "from the first record"),
        ("rebuilding", "the same, events/ missing"),
    ):
        print(
            f"  {text:26} {row[f'{name}_commands']:10,.0f} "
            f"{row[f'{name}_commands_per_second']:11,.0f} {row[f'{name}_recovery_s']:11.2f} "
            f"{row[f'{name}_ready_s']:11.2f}"
        )
    print(
        f"  bare replay and hash from memory {row['bare_commands_per_second']:15,.0f} "
        f"(recovery: {row['ratio_to_bare']:.2f} of it)",
        flush=True,
    )
