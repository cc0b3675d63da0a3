"""`exchange load`: the first figure. How many orders a second does a venue acknowledge, how fast?

Closed loop: each connection keeps a fixed number of requests unanswered and sends one for each
answer. The generator must not be what is measured: its requests are encoded before the run
(`tools.load_script`), it cuts the answers by their headers only, and it runs in a process of its
own beside the venue, with nothing but an epoll loop. Answers come in order, so the latency of each
request is known without decoding; one answer of each read is decoded all the same and its number
compared. See BENCHMARK.md for figures, and for what a closed loop cannot say.
"""

import argparse
import json
import os
import select
import socket
import time
from collections import Counter, deque
from pathlib import Path
from typing import Any, Final

import msgspec
import uvloop
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from exchange.client import public_key_bytes
from protocol import wire
from protocol.codes import CancelOnDisconnect, EventKind
from protocol.framing import HEADER_SIZE, SEQUENCED, VENUE_FRAME_SIZE_MAX
from protocol.order_entry import CancelRejected, OrderAccepted, OrderCanceled, OrderRejected
from protocol.session import Connection, Party, State
from protocol.signing import log_on_bytes
from protocol.transport import Hello, LogOn
from tools.errors import ToolError
from tools.journal_tools import replay_journal
from tools.latencies import Latencies
from tools.load_script import Script
from tools.members import CURRENCY, Member, admit, connect_admin
from tools.venue_process import VenueProcess, new_venue

__all__ = ["add_commands"]

INSTRUMENT_COUNT: Final = 100
CASH: Final = 10**15
READ_SIZE: Final = 256 * 1024
KEEPALIVE_MS: Final = 30_000
SEED: Final = 8
ANSWER_WAIT_S: Final = 10.0
"""A venue that is silent for so long while requests are unanswered has failed."""

CONNECTIONS_MAX: Final = 256
IN_FLIGHT_MAX: Final = 4_096
SECONDS_MAX: Final = 600

ANSWERS: Final = (OrderAccepted, OrderRejected, OrderCanceled, CancelRejected)

# The first byte of an answer's payload is its array head, which tells the four apart from each
# other and from fills. (An immediate order would be answered and canceled; there is none here.)
_FIRST_BYTES: Final = {
    wire.encode(kind(*(0 for _ in kind.__struct_fields__)))[0]: kind.__name__ for kind in ANSWERS
}
assert len(_FIRST_BYTES) == len(ANSWERS)


class LoadConnection:
    """One session: a socket that is logged on, its script, and what was answered."""

    def __init__(self, address: tuple[str, int], key: Ed25519PrivateKey, script: Script) -> None:
        self.socket = socket.create_connection(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.latencies = Latencies()
        self.counts: Counter[int] = Counter()
        self.answered = 0
        self.sent = 0
        self._script = script
        self._unread = log_on(self.socket, key)
        self._groups: deque[list[int]] = deque()

    def send(self, count: int) -> None:
        """Send the next `count` requests."""
        while count:
            frames = self._script.take(count)
            taken = self._script.count(frames)
            self._groups.append([taken, time.perf_counter_ns()])
            self.socket.sendall(frames)
            self.sent += taken
            count -= taken

    def read(self) -> int:
        """Read once; how many requests were answered. Raises ToolError."""
        data = self.socket.recv(READ_SIZE)
        if not data:
            raise ToolError("the venue closed a connection")
        now_ns = time.perf_counter_ns()
        if self._unread:
            data = self._unread + data
        counts: Counter[int] = Counter()
        offset = checked = 0
        end = len(data) - HEADER_SIZE
        while offset < end:
            size = data[offset] | data[offset + 1] << 8
            if offset + size > len(data):
                break
            first_byte = data[offset + HEADER_SIZE]
            counts[first_byte] += 1
            if not checked and first_byte in _FIRST_BYTES:
                checked = 1
                self._check(data[offset + HEADER_SIZE : offset + size])
            offset += size
        self._unread = data[offset:]
        self.counts.update(counts)
        answered = sum(counts[first_byte] for first_byte in _FIRST_BYTES)
        self._settle(answered, now_ns)
        return answered

    def _check(self, payload: bytes) -> None:
        """The first answer of a read is the one to the oldest unanswered request."""
        report = wire.decode_venue(SEQUENCED, payload)
        number = getattr(report, "number", 0)
        if number != self.answered + 1:
            raise ToolError(f"answer to request {number}, {self.answered + 1} was expected")

    def _settle(self, answered: int, now_ns: int) -> None:
        self.answered += answered
        while answered:
            group = self._groups[0]
            count = min(answered, group[0])
            self.latencies.add(now_ns - group[1], count)
            answered -= count
            group[0] -= count
            if not group[0]:
                self._groups.popleft()

    def count(self, kind: str) -> int:
        """Answers of a kind."""
        return sum(self.counts[byte] for byte, name in _FIRST_BYTES.items() if name == kind)


def log_on(tcp: socket.socket, key: Ed25519PrivateKey) -> bytes:
    """Log on over a blocking socket; returns what came after the answer. Raises ToolError."""
    machine = Connection(Party.CLIENT, time.time_ns())
    while machine.state is not State.ESTABLISHED:
        data = tcp.recv(READ_SIZE)
        if not data or machine.state is State.CLOSED:
            raise ToolError(f"the venue did not let us log on: {machine.ended}")
        machine.receive_data(data, time.time_ns())
        received = machine.next_event()
        if received is not None and isinstance(received.message, Hello):
            machine.send(_sign(received.message, key), time.time_ns())
        tcp.sendall(machine.data_to_send())
    return machine.take_unread()


def _sign(hello: Hello, key: Ed25519PrivateKey) -> LogOn:
    unsigned = LogOn(
        major=wire.MAJOR,
        minor=wire.MINOR,
        key=public_key_bytes(key),
        session="load",
        client_nonce=os.urandom(32),
        next_number=1,
        keepalive_ms=KEEPALIVE_MS,
        cancel_on_disconnect=CancelOnDisconnect.NEVER,
        cancel_grace_ms=0,
        client="brier-load",
        signature=bytes(64),
    )
    signature = key.sign(log_on_bytes(hello.venue, hello.nonce, unsigned))
    return msgspec.structs.replace(unsigned, signature=signature)


async def list_instruments(venue: VenueProcess, member_count: int) -> list[Member]:
    """A hundred binary instruments, and who trades them."""
    async with await connect_admin(venue) as admin:
        for number in range(1, INSTRUMENT_COUNT + 1):
            symbol = f"LOAD-{number}"
            event_id = await admin.event(symbol, EventKind.BINARY, symbol, CURRENCY)
            await admin.instrument(event_id, symbol, symbol, tick_table=((0, 100),))
        return [await admit(admin, f"load-{i + 1}", 1, CASH) for i in range(member_count)]


def drive(connections: list[LoadConnection], in_flight: int, seconds: float) -> float:
    """Keep every connection busy, then let it be answered; the seconds to the last answer."""
    poll = select.epoll()
    by_descriptor = {one.socket.fileno(): one for one in connections}
    for descriptor in by_descriptor:
        poll.register(descriptor, select.EPOLLIN)
    started = time.perf_counter()
    end = started + seconds
    for connection in connections:
        connection.send(in_flight)
    while any(one.answered < one.sent for one in connections):
        ready = poll.poll(ANSWER_WAIT_S)
        if not ready:
            raise ToolError(f"no answer for {ANSWER_WAIT_S:.0f} s")
        is_over = time.perf_counter() >= end
        for descriptor, _ in ready:
            connection = by_descriptor[descriptor]
            answered = connection.read()
            if answered and not is_over:
                connection.send(answered)
    poll.close()
    return time.perf_counter() - started


def processor_s(process_id: int) -> float:
    """Processor time that a process has used, all threads, user and system."""
    fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def part_processors(venue: VenueProcess) -> None:
    """Give the generator a processor of its own and the venue all others, if there are others.

    A kernel that sees two processes wake each other likes to put both on one processor, where
    neither can work while the other does; real clients are not on the venue's processor.
    """
    processors = sorted(os.sched_getaffinity(0))
    if len(processors) > 1:
        os.sched_setaffinity(0, processors[:1])
        for thread in Path(f"/proc/{venue.process_id}/task").iterdir():
            os.sched_setaffinity(int(thread.name), processors[1:])


def measure(venue: VenueProcess, arguments: argparse.Namespace) -> dict[str, Any]:
    """Prepare, run, and return the figures."""
    part_processors(venue)
    members = uvloop.run(list_instruments(venue, arguments.connections))
    connections = [
        LoadConnection(
            venue.address,
            member.key,
            Script(member.account_ids[0], INSTRUMENT_COUNT, SEED + index),
        )
        for index, member in enumerate(members)
    ]
    used_s, own_s = processor_s(venue.process_id), time.process_time()
    try:
        elapsed = drive(connections, arguments.in_flight, arguments.seconds)
    except ConnectionError:
        raise ToolError("the venue closed a connection") from None
    used_s, own_s = processor_s(venue.process_id) - used_s, time.process_time() - own_s
    latencies = Latencies()
    for connection in connections:
        latencies.merge(connection.latencies)
        connection.socket.close()
    orders = sum(connection.answered for connection in connections)
    answers = {
        kind.__name__: sum(connection.count(kind.__name__) for connection in connections)
        for kind in ANSWERS
    }
    return {
        "connections": arguments.connections,
        "in_flight": arguments.in_flight,
        "seconds": round(elapsed, 3),
        "orders": orders,
        "orders_per_second": round(orders / elapsed),
        "ack_p50_us": latencies.percentile_us(50),
        "ack_p99_us": latencies.percentile_us(99),
        "ack_p999_us": latencies.percentile_us(99.9),
        "venue_cpu_us_per_order": round(used_s / orders * 1e6, 3),
        "venue_cpu_share": round(used_s / elapsed, 3),
        "generator_cpu_share": round(own_s / elapsed, 3),
        "build": venue.ready["build"],
        "answers": answers,
    }


def run_load(arguments: argparse.Namespace) -> int:
    """Measure and print."""
    with new_venue(arguments.dir, "load") as venue:
        venue.start()
        print(venue.greeting(), flush=True)
        figures = measure(venue, arguments)
        stopped = venue.stop()
        replayed = replay_journal(venue.folder)
    figures["orders_per_record"] = round(figures["orders"] / replayed.record_count, 1)
    figures["digests_equal"] = replayed.digest == stopped["digest"]
    if arguments.json:
        print(json.dumps(figures))
    else:
        _print_summary(figures)
    return 0


def _print_summary(figures: dict[str, Any]) -> None:
    print(
        f"{figures['orders']:,} orders in {figures['seconds']:.1f} s over "
        f"{figures['connections']} connections with {figures['in_flight']} in flight each"
    )
    for kind, count in figures["answers"].items():
        print(f"  {kind:15} {count:,}")
    print(
        f"{figures['orders_per_second']:,} orders a second, {figures['orders_per_record']} to a "
        f"journal record (one sync each)"
    )
    print(
        f"acknowledgement p50 {figures['ack_p50_us']:,.1f} us, "
        f"p99 {figures['ack_p99_us']:,.1f} us, p99.9 {figures['ack_p999_us']:,.1f} us"
    )
    print(
        f"processor: venue {figures['venue_cpu_us_per_order']:.2f} us an order "
        f"({figures['venue_cpu_share']:.0%}), generator {figures['generator_cpu_share']:.0%}; "
        f"{figures['build']} build"
    )


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Mount `load`."""
    load = commands.add_parser(
        "load",
        help="measure orders per second and acknowledgement latency of a venue of its own",
        description="Start a venue, keep its connections busy with a mix of new orders, cancels "
        "and crossing orders, and print throughput and latency.",
    )
    load.add_argument("--connections", type=_between(CONNECTIONS_MAX), default=4, metavar="N")
    load.add_argument("--in-flight", type=_between(IN_FLIGHT_MAX), default=64, metavar="N")
    load.add_argument("--seconds", type=_between(SECONDS_MAX), default=10, metavar="N")
    load.add_argument("--dir", type=Path, metavar="DIR", help="folder of the venue; is kept")
    load.add_argument("--json", action="store_true", help="one JSON object as the last line")
    load.set_defaults(run=run_load)


def _between(maximum: int) -> Any:
    """A whole number from 1, for argparse."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not 1 <= int(text) <= maximum:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {maximum}")
        return int(text)

    return parse


assert READ_SIZE > VENUE_FRAME_SIZE_MAX
