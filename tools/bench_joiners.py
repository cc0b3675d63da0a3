"""A process with some of the consumers of `exchange bench --joins`.

    python -m tools.bench_joiners

Its stdin has one JSON line with a `Task`, and it says `ready`. The next line is the moment, of the
monotonic clock in nanoseconds, from which the joins count. When every consumer has been right and
those that leave have left, it says `joined`; after one more line those that stayed read to the
end, and the last line of its stdout is a JSON list of `Joined`.

A consumer is right when all its books are known and it has everything that had been sent when it
joined; a socket beside it, which reads only the heads of packets, knows how much that is. Twice, or
three times if it stays, it notes its number and the digest of its books, for others to check.
"""

import asyncio
import contextlib
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
import uvloop

from exchange.client import Consumer, Feed, Line
from exchange.client.sockets import DATAGRAM_SIZE, listen
from protocol.packets import PACKET_HEADER

__all__ = ["Join", "Joined", "Mark", "Task"]

CHANNEL: Final = 1
STAY_S: Final = 2.0
"""How long those that leave are watched after they are right."""
LIMIT_S: Final = 30.0
"""Who is not right by then has failed."""
LOOK_S: Final = 0.001
"""How often it is looked whether a consumer is right: times are exact to about this."""
HEAD_READ_S: Final = 0.05
"""How often the socket that knows the head is emptied, so that it never overflows."""
NANOSECONDS: Final = 1_000_000_000


class Join(msgspec.Struct, frozen=True):
    """One consumer: when it joins, how, and whether it stays to the end."""

    at_ns: int
    is_tcp: bool
    stays: bool


class Task(msgspec.Struct, frozen=True):
    """What a process is to do. `lines` are groups and ports of channel 1."""

    lines: list[tuple[str, int]]
    interface: str
    feed: tuple[str, int]
    key: str
    joins: list[Join]


class Mark(msgspec.Struct, frozen=True):
    """The digest of a consumer's books when this was the number of its next message."""

    next_number: int
    digest: str


class Joined(msgspec.Struct):
    """What came of one consumer."""

    is_tcp: bool
    stays: bool
    right_ns: int
    """From `open` until it was right."""
    left_ns: int = 0
    """When it left, counted as `Join.at_ns`; 0 for those that stayed."""
    gap_count: int = 0
    recovery_count: int = 0
    marks: list[Mark] = []


class Head:
    """The number of the next message of line A, from the heads of packets alone."""

    def __init__(self, udp: socket.socket) -> None:
        self._udp = udp
        self._number = 0

    def read(self) -> int:
        """Everything that has been sent until now is below it; 0 before anything was."""
        with contextlib.suppress(BlockingIOError):
            while True:
                data = self._udp.recv(DATAGRAM_SIZE)
                _, _, _, _, count, _, number, _ = PACKET_HEADER.unpack_from(data)
                self._number = max(self._number, number + count)
        return self._number

    async def follow(self) -> None:
        """Keep the socket empty, for ever."""
        while True:
            self.read()
            await asyncio.sleep(HEAD_READ_S)


class Joiners:
    """The consumers of one process."""

    def __init__(self, task: Task, head: Head, start_ns: int) -> None:
        self._task = task
        self._head = head
        self._start_ns = start_ns
        self._ended = asyncio.Event()
        self._watched = len(task.joins)
        self.all_joined = asyncio.Event()
        """Every consumer was right, and has left or stays."""

    async def run(self, join: Join) -> Joined:
        """One consumer from before its birth until it leaves. Raises TimeoutError."""
        await asyncio.sleep(max(0, self._start_ns + join.at_ns - time.monotonic_ns()) / NANOSECONDS)
        consumer = self._consumer(join)
        number = self._head.read()
        began_ns = time.monotonic_ns()
        async with consumer:
            async with asyncio.timeout(LIMIT_S):
                await be_right(consumer, number)
            joined = Joined(join.is_tcp, join.stays, time.monotonic_ns() - began_ns)
            marks = [mark(consumer)]
            await asyncio.sleep(STAY_S)
            async with asyncio.timeout(LIMIT_S):
                await be_right(consumer, self._head.read())
            marks.append(mark(consumer))
            self._watched -= 1
            if not self._watched:
                self.all_joined.set()
            if join.stays:
                await self._ended.wait()
                async with asyncio.timeout(LIMIT_S):
                    await be_right(consumer, self._head.read())
                marks.append(mark(consumer))
            else:
                joined.left_ns = time.monotonic_ns() - self._start_ns
        joined.gap_count, joined.recovery_count = consumer.gap_count, consumer.recovery_count
        joined.marks = marks
        return joined

    def end(self) -> None:
        """Nothing more is sent: those that stayed read to the end."""
        self._ended.set()

    def _consumer(self, join: Join) -> Consumer:
        task = self._task
        feed = Feed(*task.feed, Path(task.key))
        if join.is_tcp:
            return Consumer.over_tcp(feed)
        (group, port), (group_b, port_b) = task.lines
        line_b = Line(group_b, port_b, task.interface)
        return Consumer(group, port, interface=task.interface, line_b=line_b, feed=feed)


async def be_right(consumer: Consumer, number: int) -> None:
    """Until everything below a number is there, and all books are known."""
    await consumer.wait_for(number, CHANNEL)
    while not consumer.is_complete:
        await asyncio.sleep(LOOK_S)


def mark(consumer: Consumer) -> Mark:
    """Where a consumer is, and what it believes."""
    return Mark(consumer.channel(CHANNEL).next_number, consumer.public_digest())


@contextlib.contextmanager
def open_head(task: Task) -> Iterator[Head]:
    """A socket of its own on line A."""
    group, port = task.lines[0]
    with listen(group, port, task.interface) as udp:
        yield Head(udp)


async def next_line() -> bytes:
    """Of stdin, while the loop goes on."""
    return await asyncio.to_thread(sys.stdin.buffer.readline)


async def main() -> None:
    """See the module."""
    task = msgspec.json.decode(await next_line(), type=Task)
    with open_head(task) as head:
        following = asyncio.create_task(head.follow())
        print("ready", flush=True)
        joiners = Joiners(task, head, int(await next_line()))
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(joiners.run(join)) for join in task.joins]
            await joiners.all_joined.wait()
            print("joined", flush=True)
            await next_line()
            joiners.end()
        following.cancel()
    print(msgspec.json.encode([one.result() for one in tasks]).decode(), flush=True)


if __name__ == "__main__":
    uvloop.run(main())
