"""One phase of a benchmark: warm up, measure for a while, let everything be answered.

The work is the generator's; Python looks in between slices of a tenth of a second, for Ctrl-C and
for a server that has fallen silent.
"""

import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from statistics import median
from typing import Final, NamedTuple

from tools.bench_script import Script
from tools.errors import ToolError
from tools.generator import Generator
from tools.host import part_processors, processor_s
from tools.latencies import Latencies

__all__ = ["Line", "Load", "Measured", "measure", "medians"]

NANOSECONDS: Final = 1_000_000_000
SLICE_S: Final = 0.1
WARM_UP_S: Final = 0.5
"""Before anything counts: pages are touched, buffers have grown, books are filled."""
ANSWER_WAIT_S: Final = 10.0
"""A server that is silent for so long while requests are unanswered has failed."""
LAST_PACKETS_S: Final = 0.3
"""Longer than the interval of heartbeats: then the loss of the last packet is seen too."""


class Line(NamedTuple):
    """A connection that is logged on, the requests for it, and the number of its latest report."""

    socket: socket.socket
    script: Script
    report_number: int


class Load(NamedTuple):
    """What is offered, to whom."""

    process_id: int
    lines: list[Line]
    in_flight: int
    seconds: float
    is_echo: bool = False
    receivers: Sequence[socket.socket] = ()
    """Have joined the groups of the market data, one of each line."""
    rate: int = 0
    """Requests a second, of all connections together, whatever the answers do: an open loop. 0: a
    closed one."""
    has_own_processor: bool = True


class Measured(NamedTuple):
    """What came of it, between the warm-up and the end."""

    orders: int
    """Answered between warm-up and end."""
    due: int
    """Of an open loop: what fell due in that time; `latencies` and `trades` are of all of it. A
    closed loop has `latencies` alone, of what was answered in it."""
    seconds: float
    latencies: Latencies
    trades: Latencies
    """Of an open loop: from when an order was due until its first trade was read."""
    tags: dict[int, int]
    server_s: float
    generator_s: float
    """Processor time."""
    packets: int
    messages: int
    lost: int
    """Market data: packets of line A, messages in them, and messages that never came, on any line,
    to the very end."""
    first_sequence: int
    last_sequence: int
    """The venue's, of the first and the last report that counted."""


def medians(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of the figures of several runs."""
    return {name: median(row[name] for row in rows) for name in rows[0]}


def measure(load: Load) -> Measured:
    """Run a phase. Raises ToolError."""
    generator = Generator(load.in_flight, is_echo=load.is_echo)
    for line in load.lines:
        line.socket.setblocking(False)
        generator.add(line.socket.fileno(), line.script, line.report_number)
    for receiver in load.receivers:
        generator.listen(receiver.fileno())
    parted = part_processors(load.process_id) if load.has_own_processor else nullcontext()
    with parted:
        return _run(generator, load)


def _run(generator: Generator, load: Load) -> Measured:
    generator.is_sending = True
    if load.rate:
        generator.pace(NANOSECONDS // load.rate)
    else:
        generator.fill()
    _pass(generator, WARM_UP_S)
    generator.reset()
    first_sequence = generator.sequence
    server_s, generator_s = processor_s(load.process_id), time.process_time()
    started_ns = time.perf_counter_ns()
    _pass(generator, load.seconds)
    elapsed_ns = time.perf_counter_ns() - started_ns
    server_s = processor_s(load.process_id) - server_s
    generator_s = time.process_time() - generator_s
    measured = Measured(
        generator.answer_count,
        0,
        elapsed_ns / NANOSECONDS,
        _latencies(generator.latencies()),
        Latencies(),
        generator.tags(),
        server_s,
        generator_s,
        generator.packet_count,
        generator.message_count,
        0,
        first_sequence,
        generator.sequence,
    )
    _finish(generator)
    if load.receivers:
        generator.run(round(LAST_PACKETS_S * NANOSECONDS))
    if load.rate:
        # What was late at the end is late, however long it took.
        measured = measured._replace(
            due=generator.due_count,
            latencies=_latencies(generator.latencies()),
            trades=_latencies(generator.trade_latencies()),
        )
    return measured._replace(lost=generator.lost_count)


def _latencies(counted: list[tuple[int, int]]) -> Latencies:
    latencies = Latencies()
    for duration_ns, count in counted:
        latencies.add(duration_ns, count)
    return latencies


def _pass(generator: Generator, seconds: float) -> None:
    """Let time pass, as long as there are answers."""
    end_s = answered_s = time.perf_counter()
    end_s += seconds
    answered = generator.answer_count
    while (left_s := end_s - time.perf_counter()) > 0:
        generator.run(round(min(left_s, SLICE_S) * NANOSECONDS))
        if generator.answer_count > answered:
            answered, answered_s = generator.answer_count, time.perf_counter()
        elif time.perf_counter() - answered_s > ANSWER_WAIT_S:
            raise ToolError(f"no answer for {ANSWER_WAIT_S:.0f} s")


def _finish(generator: Generator) -> None:
    """Let nothing more fall due, send nothing more in a closed loop, and wait for every answer."""
    generator.end()
    unanswered = generator.unanswered_count
    answered_s = time.perf_counter()
    while unanswered:
        generator.run(NANOSECONDS // 1000)
        if generator.unanswered_count < unanswered:
            answered_s = time.perf_counter()
        elif time.perf_counter() - answered_s > ANSWER_WAIT_S:
            raise ToolError(f"{unanswered} requests have no answer")
        unanswered = generator.unanswered_count
