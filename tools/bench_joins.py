"""`exchange bench --joins`: consumers join at random moments under load. How soon is each right?

A venue has a history of hundreds of thousands of messages, and orders come at a fixed rate. Half of
the consumers join the two multicast lines, with a feed server to ask; the others have everything
from the feed server. They are Python, in a few processes, so that they do not wait for each other
(`tools.bench_joiners`). Most leave when they have been right for two seconds, every tenth stays.

What each believed when it was right, when it left and at the end must be what the venue's event log
gives at the same number, or the measurement fails. Nothing is kept on a processor of its own.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import IO, Any, Final, NamedTuple

import msgspec

from exchange.client import write_key
from exchange.client.receiver import MarketDataReceiver
from exchange.client.sockets import listen
from journal import EventReader, FolderStorage
from protocol.packer import Packer
from protocol.packets import PACKET_HEADER, decode_packet, encode_packet
from tools.bench_joiners import CHANNEL, STAY_S, Join, Joined, Task
from tools.bench_load import WARM_UP_S, Load, Measured, measure, medians
from tools.bench_script import SCRIPT_COUNT
from tools.bench_servers import BenchVenue, bench_venue
from tools.errors import ToolError
from tools.host import disk_folder, machine, processor_s
from tools.latencies import Latencies
from tools.venue_process import FeedProcess, child_environment
from tools.venue_settings import INTERFACE

__all__ = ["CONSUMERS_DEFAULT", "run_joins"]

CONSUMERS_DEFAULT: Final = 100
STAY_EACH: Final = 10
"""Of so many of a kind one stays."""
PROCESS_COUNT: Final = 4

RATE: Final = 5_000
"""Orders a second while consumers join."""
HISTORY_IN_FLIGHT: Final = 64
HISTORY_S: Final = 0.5
"""Before that, and a warm-up as long, orders come as fast as the venue can: books and history."""
SPARE_S: Final = 0.5
"""The load goes on for so long after the last consumer should have left."""
SEED_STEP: Final = 1_000
"""Between the seeds of the two."""
EPOCH: Final = 1
"""Of our own packets, for nobody else."""
NANOSECONDS: Final = 1_000_000_000

Row = dict[str, float]


class Shape(NamedTuple):
    """What is measured, and where."""

    folder: Path
    consumers: int
    connections: int
    seconds: int
    seed: int


class Run(NamedTuple):
    """What came of all consumers, and of the load."""

    joined: list[Joined]
    figures: Row


@dataclass(frozen=True)
class Group:
    """A process with consumers."""

    process: subprocess.Popen[str]
    said: IO[str]
    told: IO[str]

    def say(self, line: str) -> None:
        """Write it a line."""
        self.said.write(line + "\n")
        self.said.flush()

    def hear(self, expected: str = "") -> str:
        """Its next line. Raises ToolError when it is another one, or none."""
        line = self.told.readline().rstrip("\n")
        if not line or not line.startswith(expected):
            raise ToolError("consumers failed: not all were right in time, or not to the end")
        return line


def make_joins(shape: Shape) -> list[Join]:
    """As many of each kind, at random moments, in the order of their moments."""
    dice = Random(shape.seed)
    moments = sorted(dice.randrange(shape.seconds * NANOSECONDS) for _ in range(shape.consumers))
    kinds = [index % 2 == 1 for index in range(shape.consumers)]
    dice.shuffle(kinds)
    joins = []
    for index, (at_ns, is_tcp) in enumerate(zip(moments, kinds, strict=True)):
        before = sum(kind is is_tcp for kind in kinds[:index])
        joins.append(Join(at_ns, is_tcp, before % STAY_EACH == 0))
    return joins


@contextmanager
def groups_of(bench: BenchVenue, feed: FeedProcess, joins: list[Join]) -> Iterator[list[Group]]:
    """Processes that are ready to join; those that join one after the other are in different ones.
    Raises ToolError."""
    key = bench.venue.folder / "keys" / "consumer.pem"
    write_key(key, bench.members[0].key)
    command = [sys.executable, "-P", "-m", "tools.bench_joiners"]
    with ExitStack() as stack:
        groups = []
        for index in range(min(PROCESS_COUNT, len(joins))):
            process = stack.enter_context(
                subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env=child_environment(),
                    process_group=0,
                )
            )
            stack.callback(process.kill)
            assert process.stdin is not None, "it is a pipe"
            assert process.stdout is not None, "it is a pipe"
            groups.append(Group(process, process.stdin, process.stdout))
            part = joins[index::PROCESS_COUNT]
            task = Task(bench.venue.lines, INTERFACE, feed.address, str(key), part)
            groups[-1].say(msgspec.json.encode(task).decode())
        for group in groups:
            group.hear("ready")
        yield groups


def measure_joins(shape: Shape) -> Run:
    """Everything once. Raises ToolError."""
    with ExitStack() as stack:
        bench = stack.enter_context(bench_venue(shape.folder, shape.connections))
        make_history(shape, bench)
        feed = stack.enter_context(FeedProcess(bench.venue.folder))
        feed.start()
        groups = stack.enter_context(groups_of(bench, feed, make_joins(shape)))
        processes = [feed.process_id, *(group.process.pid for group in groups)]
        figures: Row = {"load_average_before": round(os.getloadavg()[0], 2)}
        used_s = [processor_s(one) for one in processes]
        measured = offer(shape, bench, groups)
        used_s = [processor_s(one) - old for one, old in zip(processes, used_s, strict=True)]
        for group in groups:
            group.hear("joined")
        public_digest = bench.venue.stop()["public_digest"]
        for group in groups:
            group.say("end")
        lines = [group.hear("[") for group in groups]
        feed.stop()
        joined = [one for line in lines for one in msgspec.json.decode(line, type=list[Joined])]
        figures |= check(joined, public_digest, bench.venue.folder)
    seconds = measured.seconds
    figures |= {
        "orders_per_second": round(measured.orders / seconds),
        "messages_per_second": round(measured.messages / seconds),
        "packets_per_second": round(measured.packets / seconds),
        "venue_cpu_share": round(measured.server_s / seconds, 3),
        "feed_cpu_share": round(used_s[0] / seconds, 3),
        "consumers_cpu_share": round(sum(used_s[1:]) / seconds, 3),
    }
    return Run(joined, figures)


def make_history(shape: Shape, bench: BenchVenue) -> None:
    """So that nobody can have everything again from the first message. Raises ToolError."""
    with ExitStack() as connected:
        lines = bench.connect(connected, shape.connections, "history", shape.seed)
        process_id = bench.venue.process_id
        measure(Load(process_id, lines, HISTORY_IN_FLIGHT, HISTORY_S, has_own_processor=False))


def offer(shape: Shape, bench: BenchVenue, groups: list[Group]) -> Measured:
    """Orders from before the first join until the last that leaves has left. Raises ToolError."""
    with ExitStack() as connected:
        seed = shape.seed + SEED_STEP
        lines = bench.connect(connected, shape.connections, "load", seed)
        load = Load(
            bench.venue.process_id,
            lines,
            SCRIPT_COUNT,
            shape.seconds + STAY_S + SPARE_S,
            receivers=[
                connected.enter_context(listen(group, port, INTERFACE))
                for group, port in bench.venue.lines
            ],
            rate=RATE,
            has_own_processor=False,
        )
        start_ns = time.monotonic_ns() + round(WARM_UP_S * NANOSECONDS)
        for group in groups:
            group.say(str(start_ns))
        return measure(load)


def check(joined: list[Joined], public_digest: str, folder: Path) -> Row:
    """Compare what consumers believed with the venue's event log. Raises ToolError."""
    marks = [mark for one in joined for mark in one.marks]
    digests = digests_at(folder / "data" / "events", {mark.next_number for mark in marks})
    wrong = sum(digests.get(mark.next_number) != mark.digest for mark in marks)
    last = [one.marks[-1] for one in joined if one.stays]
    wrong += sum(mark.digest != public_digest for mark in last)
    if wrong:
        raise ToolError(f"{wrong} of {len(marks) + len(last)} digests of books are not the venue's")
    return {
        "digests_compared": len(marks) + len(last),
        "history_messages": min(mark.next_number for mark in marks) - 1,
        "gaps": sum(one.gap_count for one in joined),
        "recoveries_after": sum(one.recovery_count - 1 for one in joined),
    }


def digests_at(folder: Path, numbers: set[int]) -> dict[int, str]:
    """The digest of the books that an event log gives, at each of these numbers of a channel."""
    receiver, packer = MarketDataReceiver([CHANNEL]), Packer(EPOCH)
    wanted, digests = sorted(numbers, reverse=True), {}
    for record in EventReader(FolderStorage(folder, is_read_only=True)).records():
        for channel, packet in packer.pack(record.events, 0):
            assert channel == CHANNEL, "every event of the benchmark is on one channel"
            rest = packet
            while rest and wanted and wanted[-1] <= end_of(rest):
                front, rest = split(rest, wanted[-1])
                receiver.receive(channel, front, 0)
                digests[wanted.pop()] = receiver.public_digest()
            if rest:
                receiver.receive(channel, rest, 0)
    return digests


def end_of(packet: bytes) -> int:
    """The number after the last message of a packet."""
    _, _, _, _, count, _, number, _ = PACKET_HEADER.unpack_from(packet)
    return int(number + count)


def split(packet: bytes, number: int) -> tuple[bytes, bytes]:
    """A packet in two: what is below a number, and what is not; empty when nothing is left."""
    whole = decode_packet(packet)
    count = number - whole.number
    assert count > 0, "the packet before this one ended below the number"
    if count == len(whole.blocks):
        return packet, b""
    front = whole._replace(blocks=whole.blocks[:count])
    return encode_packet(front), encode_packet(
        whole._replace(number=number, blocks=whole.blocks[count:])
    )


def kind_row(name: str, joined: list[Joined]) -> Row:
    """How soon consumers of one kind, or all, were right."""
    durations = Latencies()
    for one in joined:
        durations.add(one.right_ns)
    row: Row = {f"{name}_consumers": len(joined)}
    for shown, percent in (("p50", 50), ("p90", 90), ("max", 100)):
        row[f"{name}_{shown}_ms"] = durations.percentile_us(percent) / 1_000
    row[f"{name}_within_1_s"] = sum(one.right_ns <= NANOSECONDS for one in joined)
    return row


def figures_of(joined: list[Joined]) -> Row:
    """Both kinds."""
    return kind_row("lines", [one for one in joined if not one.is_tcp]) | kind_row(
        "tcp", [one for one in joined if one.is_tcp]
    )


def run_joins(arguments: argparse.Namespace) -> int:
    """Measure and print."""
    folder = disk_folder(arguments.dir)
    about = machine(folder)
    runs = []
    for number in range(arguments.runs):
        seed = arguments.seed + number
        shape = Shape(folder, arguments.consumers, arguments.connections, arguments.seconds, seed)
        runs.append(measure_joins(shape))
        if not arguments.json:
            print(f"run {number + 1}:", flush=True)
            _print(figures_of(runs[-1].joined) | runs[-1].figures)
    figures: dict[str, Any] = figures_of([one for run in runs for one in run.joined])
    figures |= medians([run.figures for run in runs])
    if arguments.json:
        options = {
            "consumers": arguments.consumers,
            "connections": arguments.connections,
            "seconds": arguments.seconds,
            "seed": arguments.seed,
            "rate": RATE,
            "runs": len(runs),
        }
        rows = [figures_of(run.joined) | run.figures for run in runs]
        print(json.dumps(figures | {"rows": rows} | options | about))
    else:
        print(f"all runs ({len(runs)}), {about['processors']} x {about['processor']}:")
        _print(figures)
    return 0


def _print(figures: Row) -> None:
    """Lines of at most 80 columns."""
    print("                       consumers  right after ms: p50    p90     max   within 1 s")
    for name, shown in (("lines", "two lines and feed"), ("tcp", "feed alone")):
        print(
            f"  {shown:<20} {figures[f'{name}_consumers']:9,.0f} "
            f"{figures[f'{name}_p50_ms']:19,.0f} {figures[f'{name}_p90_ms']:6,.0f} "
            f"{figures[f'{name}_max_ms']:7,.0f} {figures[f'{name}_within_1_s']:12,.0f}"
        )
    print(
        f"  {figures['orders_per_second']:,.0f} orders, {figures['messages_per_second']:,.0f} "
        f"messages, {figures['packets_per_second']:,.0f} packets a second; behind "
        f"{figures['history_messages']:,.0f} messages\n"
        f"  processors: venue {figures['venue_cpu_share']:.0%}, feed server "
        f"{figures['feed_cpu_share']:.0%}, consumers {figures['consumers_cpu_share']:.0%}; "
        f"load before {figures['load_average_before']:.1f}\n"
        f"  {figures['digests_compared']:,.0f} digests of books are the venue's; told of "
        f"{figures['gaps']:,.0f} gaps; recovered later: {figures['recoveries_after']:,.0f} times",
        flush=True,
    )
