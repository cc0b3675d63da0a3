"""What a benchmark measures: a venue with its participants, and a bare echo server."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

import msgspec
import uvloop
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from exchange.client import public_key_bytes
from journal import read_only
from protocol import wire
from protocol.codes import CancelOnDisconnect, EventKind
from protocol.session import Connection, Party, State
from protocol.signing import log_on_bytes
from protocol.states import Service
from protocol.transport import Hello, LogOn
from tools.bench_load import Line
from tools.bench_script import make_script
from tools.errors import ToolError
from tools.journal_folders import open_journal
from tools.members import CURRENCY, Member, admit, connect_admin
from tools.venue_process import VenueProcess, child_environment, new_venue
from tools.venue_settings import INTERFACE, UNTHROTTLED

__all__ = ["BenchVenue", "Echo", "bench_venue", "echo_server", "log_on", "records_between"]

INSTRUMENT_COUNT: Final = 100
CASH: Final = 10**15
READ_SIZE: Final = 64 * 1024
KEEPALIVE_MS: Final = 30_000
RECEIVE_BUFFER_SIZE: Final = 8 * 1024 * 1024
"""Bytes asked for; the kernel gives at most net.core.rmem_max."""


@dataclass(frozen=True)
class BenchVenue:
    """A running venue, and who trades there."""

    venue: VenueProcess
    members: list[Member]

    def connect(self, stack: ExitStack, count: int, session: str, seed: int) -> list[Line]:
        """The first members log on; closed with the stack."""
        lines = []
        for index, member in enumerate(self.members[:count]):
            connected = stack.enter_context(socket.create_connection(self.venue.address))
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            machine = log_on(connected, member.key, session)
            assert not machine.take_unread(), "a new session has nothing to tell"
            script = make_script(member.account_ids[0], INSTRUMENT_COUNT, seed + index)
            lines.append(Line(connected, script, machine.last_received))
        return lines

    def receivers(self, stack: ExitStack) -> list[socket.socket]:
        """Sockets that have joined the group of channel 1 on each line, as every consumer does."""
        return [_receiver(stack, group, port) for group, port in self.venue.lines]


def _receiver(stack: ExitStack, group: str, port: int) -> socket.socket:
    receiver = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_SIZE)
    receiver.bind((group, port))
    joined = IPv4Address(group).packed + IPv4Address(INTERFACE).packed
    receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, joined)
    return receiver


@contextmanager
def bench_venue(
    parent: Path, member_count: int, settings: Mapping[str, int | str] | None = None
) -> Iterator[BenchVenue]:
    """A venue in a temporary folder in `parent`: instruments listed, participants admitted. It is
    for the caller to stop. `settings` are further changes to its configuration. Raises ToolError.
    """
    changes = {**UNTHROTTLED, **(settings or {})}
    with new_venue(None, "bench", parent=parent, settings=changes) as venue:
        venue.start()
        yield BenchVenue(venue, uvloop.run(_prepare(venue, member_count)))


async def _prepare(venue: VenueProcess, member_count: int) -> list[Member]:
    """A hundred binary instruments, and who trades them."""
    async with await connect_admin(venue) as admin:
        for number in range(1, INSTRUMENT_COUNT + 1):
            symbol = f"BENCH-{number}"
            event_id = await admin.event(symbol, EventKind.BINARY, symbol, CURRENCY)
            await admin.instrument(event_id, symbol, symbol, tick_table=((0, 100),))
        return [await admit(admin, f"bench-{i + 1}", 1, CASH) for i in range(member_count)]


def log_on(
    connected: socket.socket,
    key: Ed25519PrivateKey,
    session: str,
    service: Service = Service.ORDER_ENTRY,
) -> Connection:
    """Log on over a blocking socket; the machine, with the bytes behind the answer, if any, still
    in it. Raises ToolError."""
    machine = Connection(Party.CLIENT, time.time_ns(), service)
    while machine.state is not State.ESTABLISHED:
        data = connected.recv(READ_SIZE)
        if not data or machine.state is State.CLOSED:
            raise ToolError(f"the {service.value} did not let us log on: {machine.ended}")
        machine.receive_data(data, time.time_ns())
        received = machine.next_event()
        if received is not None and isinstance(received.message, Hello):
            machine.send(_sign(received.message, key, session, service), time.time_ns())
        connected.sendall(machine.data_to_send())
    return machine


def _sign(hello: Hello, key: Ed25519PrivateKey, session: str, service: Service) -> LogOn:
    unsigned = LogOn(
        major=wire.MAJOR,
        minor=wire.MINOR,
        key=public_key_bytes(key),
        session=session,
        client_nonce=os.urandom(32),
        next_number=0,
        keepalive_ms=KEEPALIVE_MS,
        cancel_on_disconnect=CancelOnDisconnect.NEVER,
        cancel_grace_ms=0,
        client="brier-bench",
        signature=bytes(64),
    )
    signature = key.sign(log_on_bytes(hello.venue, hello.nonce, unsigned, service))
    return msgspec.structs.replace(unsigned, signature=signature)


def records_between(folder: Path, first_sequence: int, last_sequence: int) -> int:
    """Records of a venue's journal that begin between two sequences: syncs, one for each."""
    with open_journal(folder) as storage:
        return sum(
            first_sequence <= record.first_sequence <= last_sequence
            for record in read_only(storage).records()
        )


@dataclass(frozen=True)
class Echo:
    """A running `tools.echo`."""

    process_id: int
    address: tuple[str, int]

    def connect(self, stack: ExitStack, count: int, seed: int) -> list[Line]:
        """Connections with the frames that a venue would get; closed with the stack."""
        lines = []
        for index in range(count):
            connected = stack.enter_context(socket.create_connection(self.address))
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            lines.append(Line(connected, make_script(1, INSTRUMENT_COUNT, seed + index), 0))
        return lines


@contextmanager
def echo_server() -> Iterator[Echo]:
    """Started as a child, and ended."""
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "tools.echo"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=child_environment(),
        process_group=0,
    ) as process:
        try:
            assert process.stdout is not None, "it is a pipe"
            host, _, port = process.stdout.readline().strip().rpartition(":")
            if not port:
                raise ToolError("the echo server did not start")
            yield Echo(process.pid, (host, int(port)))
        finally:
            process.kill()
