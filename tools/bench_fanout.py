"""`exchange bench --fan-out`: one feed server, 1 to 1,000 subscribers to every message.

The log of a venue grows record by record (`tools.fanout_log`), a feed server reads it, and compiled
readers (`tools.drain`) take what it sends. Records come at a fixed pace: how long is a message
under way, from when the server packs it until a subscriber reads it? Then many come at once: how
many messages a second are delivered? A bare uvloop server sends the same bytes to as many in the
same run. What a subscriber costs is seen when a thousand stop reading; and whether one that does
harms the others, when a hundred are timed beside it.

The server has a processor of its own; player and readers share the others.
"""

import argparse
import gc
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

from exchange.process import raise_open_files
from protocol.codes import SubscriptionForm
from protocol.framing import PACKET, encode_frame
from protocol.packer import Packer
from protocol.packets import PACKET_HEADER
from tools.bench_load import medians
from tools.bench_subscribers import RECEIVE_BUFFER_SIZE, Subscriber
from tools.drain import Drain
from tools.errors import ToolError
from tools.fanout_log import LogPlayer, Record, make_records
from tools.fanout_reference import LENGTH
from tools.host import disk_folder, machine, part_processors, processor_s
from tools.latencies import Latencies
from tools.venue_process import FeedProcess, child_environment, new_venue

__all__ = ["run_fan_out"]

COUNTS: Final = (1, 10, 100, 1_000)
STALLED_COUNT: Final = 100
"""Subscribers of which one stalls."""
MEMORY_COUNT: Final = 1_000
"""Subscribers that all stall."""

COMMANDS: Final = 20
"""Orders and cancels of a record."""
PACE_NS: Final = 25_000_000
"""Longer than it takes to write to a thousand sockets, or turns would wait for each other."""
PACED_COUNT: Final = 160
WARM_COUNT: Final = 20
"""Records of the paced phase, and those before it that do not count."""
BURST_COUNT: Final = 2_500
"""Records that come at once: 2 MB of packets, less than what counts as too slow."""

SLICE_NS: Final = 50_000_000
WAIT_S: Final = 60.0
"""Whoever delivers nothing new for so long has failed."""
QUIET_S: Final = 0.3
"""Longer than any message is under way when nothing more comes."""
NANOSECONDS: Final = 1_000_000_000

Row = dict[str, float]


class Plan(NamedTuple):
    """The records of a run, and what each is worth."""

    records: list[Record]
    pieces: list[bytes]
    messages: list[int]
    before: int
    """Records that come before anything is measured."""


class Sides(NamedTuple):
    """One who sends: how it is told to, and its process."""

    process_id: int
    pace: Callable[[int, int], None]
    burst: Callable[[int, int], None]


def make_plan(folder: Path, seed: int) -> Plan:
    """Everything that is sent in a run, prepared."""
    phases = len(COUNTS) + 2
    count = phases * (WARM_COUNT + PACED_COUNT + BURST_COUNT) + 2 * BURST_COUNT
    records, before = make_records(folder, count, COMMANDS, seed)
    packer = Packer(1)
    pieces, messages = [], []
    for record in records:
        packets = [packet for _, packet in packer.pack(record.events, 0)]
        frames = [encode_frame(PACKET, SubscriptionForm.ORDERS, packet) for packet in packets]
        pieces.append(b"".join(frames))
        messages.append(sum(PACKET_HEADER.unpack_from(packet)[4] for packet in packets))
    return Plan(records, pieces, messages, before)


class Offer:
    """Hands out the records of a plan, phase by phase; all sides send the same ones."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._place = plan.before

    def take(self, count: int) -> tuple[int, int]:
        """Where the next records begin, and how many messages they have."""
        first, self._place = self._place, self._place + count
        assert self._place <= len(self.plan.records), "as many as were made"
        return first, sum(self.plan.messages[first : self._place])


def measure_side(side: Sides, drain: Drain, phases: "Phases") -> Row:
    """A paced phase and a burst."""
    _send(drain, phases.warm.messages, lambda: side.pace(phases.warm.first, WARM_COUNT))
    drain.reset()
    used_s = processor_s(side.process_id)
    _send(drain, phases.paced.messages, lambda: side.pace(phases.paced.first, PACED_COUNT))
    used_s = processor_s(side.process_id) - used_s
    latencies = Latencies()
    for duration_ns, count in drain.latencies():
        latencies.add(duration_ns, count)
    delivered = drain.message_count
    drain.reset()
    _send(drain, phases.burst.messages, lambda: side.burst(phases.burst.first, BURST_COUNT))
    seconds = (drain.last_ns - drain.first_ns) / NANOSECONDS
    return {
        "p50_us": latencies.percentile_us(50),
        "p99_us": latencies.percentile_us(99),
        "cpu_ns_per_delivery": round(used_s / delivered * NANOSECONDS, 1),
        "messages_per_second": round(drain.message_count / seconds),
        "bytes_per_second": round(drain.size / seconds),
    }


class Phase(NamedTuple):
    """Records from `first` on, and their messages."""

    first: int
    messages: int


class Phases(NamedTuple):
    """What both sides send."""

    warm: Phase
    paced: Phase
    burst: Phase


def next_phases(offer: Offer) -> Phases:
    """Those that have not been sent yet."""
    counts = (WARM_COUNT, PACED_COUNT, BURST_COUNT)
    return Phases(*(Phase(*offer.take(count)) for count in counts))


def _send(drain: Drain, messages: int, send: Callable[[], None]) -> None:
    """Have it sent while it is read, until every reader has all of it. Raises ToolError."""
    wanted = drain.least_messages() + messages
    sender = threading.Thread(target=send)
    sender.start()
    _read_until(drain, wanted)
    sender.join()


def _read_until(drain: Drain, wanted: int) -> None:
    """Read until every reader has so many messages. Raises ToolError."""
    seen, seen_s = drain.message_count, time.monotonic()
    while drain.least_messages() < wanted:
        drain.run(SLICE_NS)
        if drain.closed_count:
            raise ToolError(f"{drain.closed_count} subscribers were cut off")
        if drain.message_count != seen:
            seen, seen_s = drain.message_count, time.monotonic()
        elif time.monotonic() - seen_s > WAIT_S:
            raise ToolError(f"no message for {WAIT_S:.0f} s, {wanted} wanted")


def _drain_of(sockets: list[socket.socket]) -> Drain:
    drain = Drain(time.time_ns() - time.monotonic_ns())
    for one in sockets:
        one.setblocking(False)
        drain.add(one.fileno())
    return drain


# The feed server.


class FeedBench:
    """A feed server over a log that is played."""

    def __init__(self, feed: FeedProcess, player: LogPlayer, offer: Offer, key: Path) -> None:
        self.feed = feed
        self._key = key
        self.offer = offer
        records = offer.plan.records
        self.side = Sides(
            feed.process_id,
            lambda first, count: player.play(records[first : first + count], PACE_NS),
            lambda first, count: player.write(*records[first : first + count]),
        )

    def subscribe(self, stack: ExitStack, count: int) -> list[socket.socket]:
        """So many subscribers to channel 1, from now on."""
        subscribers = [Subscriber(stack, self.feed.address, self._key) for _ in range(count)]
        return [one.socket for one in subscribers]

    def metric(self, name: str) -> float:
        """A figure of the server's metrics that has no label."""
        found = re.search(rf"^{name} (\S+)$", self.feed.metrics(), re.MULTILINE)
        if found is None:
            raise ToolError(f"the feed server has no metric {name}")
        return float(found[1])

    def memory(self) -> int:
        """Bytes of memory that the process has to itself or shares."""
        status = Path(f"/proc/{self.feed.process_id}/status").read_text()
        found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
        assert found is not None, "every process has it"
        return int(found[1]) * 1024

    def wait_handed_out(self, sequence: int) -> None:
        """Until the server has applied a command, and done what follows. Raises ToolError."""
        end_s = time.monotonic() + WAIT_S
        while self.metric("brier_feed_sequence") < sequence:
            if time.monotonic() > end_s:
                raise ToolError(f"the feed server did not reach sequence {sequence}")
        time.sleep(QUIET_S)


@contextmanager
def feed_bench(parent: Path, seed: int) -> Iterator[FeedBench]:
    """A feed server, on a processor of its own. Raises ToolError."""
    with new_venue(None, "fanout", parent=parent) as venue:
        plan = make_plan(venue.folder, seed)
        with LogPlayer(venue.folder / "data") as player, FeedProcess(venue.folder) as feed:
            player.write(*plan.records[: plan.before])
            feed.start()
            with part_processors(feed.process_id):
                yield FeedBench(feed, player, Offer(plan), venue.admin_key)
            feed.stop()


def measure_memory(bench: FeedBench) -> Row:
    """What a thousand subscribers cost that read nothing while 2 MB come for each."""
    with ExitStack() as stack:
        # What the server keeps of a burst for everybody is there before it is looked at.
        first, messages = bench.offer.take(BURST_COUNT)
        drain = _drain_of(bench.subscribe(stack, 1))
        _send(drain, messages, lambda: bench.side.burst(first, BURST_COUNT))
        before = bench.memory()
        sockets = bench.subscribe(stack, MEMORY_COUNT)
        time.sleep(QUIET_S)
        idle = bench.memory()
        first, messages = bench.offer.take(BURST_COUNT)
        base = drain.least_messages() + messages
        sender = threading.Thread(target=bench.side.burst, args=(first, BURST_COUNT))
        sender.start()
        _read_until(drain, base)  # one goes on reading
        sender.join()
        bench.wait_handed_out(bench.offer.plan.records[first + BURST_COUNT].first_sequence - 1)
        stalled = bench.memory()
        unsent = bench.metric("brier_feed_unsent_bytes")
        ring = sum(map(len, bench.offer.plan.pieces[first : first + BURST_COUNT]))
        others = _drain_of(sockets)
        _read_until(others, messages)
    return {
        "subscribers": MEMORY_COUNT,
        "idle_bytes_per_subscriber": round((idle - before) / MEMORY_COUNT),
        "stalled_bytes_per_subscriber": round((stalled - before - ring) / MEMORY_COUNT),
        "unsent_bytes_per_subscriber": round(unsent / MEMORY_COUNT),
        "burst_bytes": ring,
    }


def measure_stalled(bench: FeedBench) -> Row:
    """Latencies of a hundred when all read, and when one more does not."""
    row: Row = {}
    for name, stalled_count in (("all_read", 0), ("one_stalled", 1)):
        with ExitStack() as stack:
            bench.subscribe(stack, stalled_count)
            drain = _drain_of(bench.subscribe(stack, STALLED_COUNT))
            measured = measure_side(bench.side, drain, next_phases(bench.offer))
        row |= {f"{name}_{key}": value for key, value in measured.items()}
    return row


# The reference.


@contextmanager
def reference(folder: Path, plan: Plan) -> Iterator[tuple[tuple[str, int], Sides]]:
    """A bare uvloop server that has the same pieces. Raises ToolError."""
    file = folder / "pieces"
    file.write_bytes(b"".join(LENGTH.pack(len(piece)) + piece for piece in plan.pieces))
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "tools.fanout_reference", str(file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=child_environment(),
        process_group=0,
    ) as process:
        try:
            assert process.stdin is not None, "it is a pipe"
            assert process.stdout is not None, "it is a pipe"
            host, _, port = process.stdout.readline().strip().rpartition(":")
            if not port:
                raise ToolError("the reference server did not start")
            said, told = process.stdin, process.stdout
            side = Sides(
                process.pid,
                lambda first, count: _tell(said, told, f"pace {PACE_NS} {first} {count}"),
                lambda first, count: _tell(said, told, f"burst {first} {count}"),
            )
            with part_processors(process.pid):
                yield (host, int(port)), side
        finally:
            process.kill()


def _tell(said: IO[str], told: IO[str], line: str) -> None:
    """Give an order, and wait until it is done."""
    said.write(line + "\n")
    said.flush()
    told.readline()


def connect(stack: ExitStack, address: tuple[str, int], count: int) -> list[socket.socket]:
    """Plain connections, with the same buffers as those of the feed's subscribers."""
    sockets = []
    for _ in range(count):
        one = stack.enter_context(socket.socket())
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_SIZE)
        one.connect(address)
        sockets.append(one)
    time.sleep(QUIET_S)  # they are accepted
    return sockets


# A run.


def measure_run(parent: Path, seed: int) -> dict[str, Any]:
    """Everything once. Raises ToolError."""
    rows = []
    with feed_bench(parent, seed) as bench:
        memory = measure_memory(bench)
        for count in COUNTS:
            phases = next_phases(bench.offer)
            with ExitStack() as stack:
                drain = _drain_of(bench.subscribe(stack, count))
                row = _named("feed", measure_side(bench.side, drain, phases))
            with ExitStack() as stack:
                folder = bench.feed.folder
                address, side = stack.enter_context(reference(folder, bench.offer.plan))
                drain = _drain_of(connect(stack, address, count))
                row |= _named("bare", measure_side(side, drain, phases))
            rows.append(row | {"subscribers": count})
        stalled = measure_stalled(bench)
        gc.collect()
    return {"fan_out": rows, "memory": memory, "stalled": stalled}


def _named(side: str, row: Row) -> Row:
    return {f"{side}_{name}": value for name, value in row.items()}


def run_fan_out(arguments: argparse.Namespace) -> int:
    """Measure and print."""
    folder = disk_folder(arguments.dir)
    raise_open_files(2 * max(COUNTS))
    about = machine(folder)
    runs = []
    for number in range(1, arguments.runs + 1):
        runs.append(measure_run(folder, arguments.seed + number))
        if not arguments.json:
            print(f"run {number}:", flush=True)
            _print(runs[-1])
    figures = {
        "fan_out": [medians([run["fan_out"][i] for run in runs]) for i in range(len(COUNTS))],
        "memory": medians([run["memory"] for run in runs]),
        "stalled": medians([run["stalled"] for run in runs]),
    }
    if arguments.json:
        options = {"seed": arguments.seed, "runs": len(runs), "all": runs}
        print(json.dumps(figures | options | about))
    else:
        print(f"medians over all runs ({len(runs)}):")
        _print(figures)
    return 0


def _print(figures: dict[str, Any]) -> None:
    """Tables of at most 80 columns."""
    print("                 publish to receive, us        delivered, million messages/s")
    print("  subscribers    feed p50/p99    bare p50/p99     feed     bare    ratio")
    for row in figures["fan_out"]:
        feed = f"{row['feed_p50_us']:,.0f}/{row['feed_p99_us']:,.0f}"
        bare = f"{row['bare_p50_us']:,.0f}/{row['bare_p99_us']:,.0f}"
        rate, other = row["feed_messages_per_second"] / 1e6, row["bare_messages_per_second"] / 1e6
        print(
            f"{row['subscribers']:13,.0f} {feed:>15} {bare:>15} {rate:8.2f} {other:8.2f} "
            f"{rate / other:8.2f}",
            flush=True,
        )
    memory, stalled = figures["memory"], figures["stalled"]
    print(
        f"  memory of each of {memory['subscribers']:,.0f} subscribers: "
        f"{memory['idle_bytes_per_subscriber'] / 1024:.1f} KiB idle, "
        f"{memory['stalled_bytes_per_subscriber'] / 1024:.1f} KiB\n"
        f"  when it reads nothing and {memory['burst_bytes'] / 2**20:.1f} MiB come, "
        f"{memory['unsent_bytes_per_subscriber'] / 1024:.1f} KiB of it unsent\n"
        f"  {STALLED_COUNT} subscribers, p50/p99: {stalled['all_read_p50_us']:,.0f}/"
        f"{stalled['all_read_p99_us']:,.0f} us; beside one that is stalled "
        f"{stalled['one_stalled_p50_us']:,.0f}/{stalled['one_stalled_p99_us']:,.0f} us",
        flush=True,
    )
