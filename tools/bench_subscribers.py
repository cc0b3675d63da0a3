"""A process with many plain subscribers of a feed server: they read, and do nothing with it.

    python -m tools.bench_subscribers HOST PORT KEY COUNT

Each has a connection of its own and wants every message of channel 1 from now on. The process says
`ready` when all are subscribed, reads until its stdin ends, and then says how many bytes the
slowest and the fastest of them got.
"""

import os
import resource
import select
import socket
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from exchange.client import load_key
from protocol.codes import SubscriptionForm, SubscriptionStart, WhenSlow
from protocol.feed import Subscribe, Subscribed
from protocol.session import Connection
from protocol.states import Service
from protocol.transport import Heartbeat
from tools.bench_servers import log_on
from tools.errors import ToolError

__all__ = ["main"]

READ_SIZE: Final = 256 * 1024
RECEIVE_BUFFER_SIZE: Final = 64 * 1024
"""Of the kernel, for each connection: a thousand of them fit into its memory for TCP."""
HEARTBEAT_S: Final = 10.0
"""A third of the keepalive that was agreed."""
DESCRIPTORS_RESERVED: Final = 64

SUBSCRIBE: Final = Subscribe(
    request_id=1,
    channel=1,
    form=SubscriptionForm.ORDERS,
    start=SubscriptionStart.LIVE,
    from_number=0,
    instruments=[],
    events=[],
    depth=0,
    interval_s=0,
    conflation_ms=0,
    when_slow=WhenSlow.CONFLATE,
)


class Subscriber:
    """One connection, subscribed."""

    def __init__(self, stack: ExitStack, address: tuple[str, int], key: Path) -> None:
        self.size = 0
        self.socket = stack.enter_context(socket.socket())
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_SIZE)
        self.socket.connect(address)
        self.machine = log_on(self.socket, load_key(key), "bench", Service.FEED)
        self.machine.send(SUBSCRIBE, time.time_ns())
        self.socket.sendall(self.machine.data_to_send())
        while not _is_subscribed(self.machine):
            data = self.socket.recv(READ_SIZE)
            if not data:
                raise ToolError(f"the feed server closed: {self.machine.ended}")
            self.machine.receive_data(data, time.time_ns())
        self.socket.setblocking(False)

    def beat(self) -> None:
        """Say that it is there. Its few bytes always fit."""
        self.machine.send(Heartbeat(), time.time_ns())
        self.socket.send(self.machine.data_to_send())


def _is_subscribed(machine: Connection) -> bool:
    while (received := machine.next_event()) is not None:
        if isinstance(getattr(received, "message", None), Subscribed):
            return True
    return False


def read(subscribers: list[Subscriber]) -> None:
    """Take what comes, until stdin ends."""
    by_descriptor = {one.socket.fileno(): one for one in subscribers}
    poll = select.epoll()
    poll.register(sys.stdin.fileno(), select.EPOLLIN | select.EPOLLHUP)
    for descriptor in by_descriptor:
        poll.register(descriptor, select.EPOLLIN)
    buffer = bytearray(READ_SIZE)
    beat_s = time.monotonic() + HEARTBEAT_S
    while True:
        for descriptor, _ in poll.poll(1.0):
            one = by_descriptor.get(descriptor)
            if one is None:
                if not os.read(descriptor, READ_SIZE):
                    return
                continue
            size = one.socket.recv_into(buffer)
            if not size:
                raise ToolError("the feed server closed a connection")
            one.size += size
        if time.monotonic() >= beat_s:
            beat_s += HEARTBEAT_S
            for one in subscribers:
                one.beat()


def main(host: str, port: str, key: str, count: str) -> None:
    """See the module."""
    wanted = int(count) + DESCRIPTORS_RESERVED
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
    with ExitStack() as stack:
        address = (host, int(port))
        subscribers = [Subscriber(stack, address, Path(key)) for _ in range(int(count))]
        print("ready", flush=True)
        read(subscribers)
        sizes = [one.size for one in subscribers] or [0]
        print(f"slowest={min(sizes)} fastest={max(sizes)}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
