"""The demo's consumer of market data: a process that hears the multicast and nothing else.

It keeps the books, and a few times a second writes what it sees to its stdout, one JSON line each;
the demo shows the newest (`ConsumerProcess.look`). When its stdin is closed it reads what is left,
writes a last line with the digest of its books, and ends. What it missed is in every line: a book
that is not known to be right has no prices.
"""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Final, NamedTuple, Self

import msgspec
import uvloop

from exchange.client import Book, Consumer
from protocol.market_data import Trade
from tools.errors import ToolError
from tools.venue_process import child_environment

__all__ = ["ConsumerProcess", "Look", "Seen", "see"]

LOOK_S: Final = 0.2
EMPTY_S: Final = 0.05
"""When nothing came for so long after the venue has ended, nothing is left. It is longer than a
consumer waits for a packet that others have overtaken."""
READ_SIZE: Final = 256 * 1024
END_WAIT_S: Final = 10.0


class Seen(NamedTuple):
    """An instrument: best prices and quantities, 0 for none; what was traded, None: nothing."""

    instrument_id: int
    is_stale: bool
    bid_price: int = 0
    bid_quantity: int = 0
    ask_price: int = 0
    ask_quantity: int = 0
    last_price: int | None = None
    volume: int = 0
    trade_count: int = 0


class Look(NamedTuple):
    """Everything at a moment; counts are since the start."""

    seen: tuple[Seen, ...] = ()
    messages: int = 0
    packets: int = 0
    gaps: int = 0
    dropped: int = 0
    """Packets that the kernel had no room for, as far as it has said so."""
    receive_buffer_size: int = 0
    time_s: float = 0.0
    """When, on the clock of `time.perf_counter`, which all processes share."""
    digest: str = ""
    """Of all books, in the last look; empty when one of them is stale."""


def see(book: Book, volume: int, trade_count: int) -> Seen:
    """What a book shows now, and what was traded since it is watched."""
    bid = ask = None
    if not book.is_stale:
        bid, ask = book.best_bid, book.best_ask
    return Seen(
        book.definition.instrument_id,
        book.is_stale,
        bid.price if bid else 0,
        bid.quantity if bid else 0,
        ask.price if ask else 0,
        ask.quantity if ask else 0,
        book.last_trade.price if book.last_trade else None,
        volume,
        trade_count,
    )


class Observer:
    """The consumer, and what was traded so far."""

    def __init__(self, group: str, port: int) -> None:
        # The demo runs no feed, so there is nobody to send snapshots: what is lost is lost.
        self.consumer = Consumer(group, port, snapshots=False, on_trade=self._on_trade)
        self._volumes: dict[int, int] = {}
        self._trade_counts: dict[int, int] = {}

    def _on_trade(self, trade: Trade) -> None:
        instrument_id = trade.instrument_id
        self._volumes[instrument_id] = self._volumes.get(instrument_id, 0) + trade.quantity
        self._trade_counts[instrument_id] = self._trade_counts.get(instrument_id, 0) + 1

    def look(self, *, is_last: bool = False) -> Look:
        """What is known now."""
        consumer = self.consumer
        return Look(
            tuple(
                see(book, self._volumes.get(number, 0), self._trade_counts.get(number, 0))
                for number, book in consumer.books.items()
            ),
            consumer.message_count,
            consumer.packet_count,
            consumer.gap_count,
            consumer.dropped_count,
            consumer.receive_buffer_size,
            time.perf_counter(),
            consumer.public_digest() if is_last and consumer.is_complete else "",
        )


async def observe(group: str, port: int) -> None:
    """Look until stdin is closed, then to the end of what has come."""
    observer = Observer(group, port)
    closed = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), closed.set)
    async with observer.consumer as consumer:
        _write(observer.look())
        while not closed.is_set():
            await asyncio.wait((asyncio.ensure_future(closed.wait()),), timeout=LOOK_S)
            _write(observer.look())
        count = -1
        while count < consumer.packet_count:
            count = consumer.packet_count
            await asyncio.sleep(EMPTY_S)
        _write(observer.look(is_last=True))


def _write(look: Look) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(look) + b"\n")
    sys.stdout.buffer.flush()


class ConsumerProcess:
    """The process, seen from the demo; a context manager that ends it."""

    def __init__(self, group: str, port: int) -> None:
        """Start it, and wait until it listens. Raises ToolError."""
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tools.demo_consumer", group, str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=child_environment(),
            process_group=0,
        )
        assert self._process.stdout is not None, "it is a pipe"
        self._output = self._process.stdout.fileno()
        self._unread = b""
        self._newest = Look()
        self._take(os.read(self._output, READ_SIZE))
        os.set_blocking(self._output, False)

    def look(self) -> Look:
        """The newest look that it has written."""
        while True:
            try:
                data = os.read(self._output, READ_SIZE)
            except BlockingIOError:
                return self._newest
            self._take(data)

    def finish(self) -> Look:
        """Let it read what is left, and end; its last look. Raises ToolError."""
        os.set_blocking(self._output, True)
        output, error = self._process.communicate(timeout=END_WAIT_S)
        if self._process.returncode:
            raise ToolError(f"the consumer failed: {_last_line(error)}")
        self._take(output)
        return self._newest

    def _take(self, data: bytes) -> None:
        if not data:
            _, error = self._process.communicate(timeout=END_WAIT_S)
            raise ToolError(f"the consumer failed: {_last_line(error)}")
        *lines, self._unread = (self._unread + data).split(b"\n")
        if lines:
            self._newest = msgspec.json.decode(lines[-1], type=Look)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()


def _last_line(error: bytes) -> str:
    lines = error.decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


def main(arguments: Sequence[str]) -> None:
    """GROUP PORT."""
    group, port = arguments
    uvloop.run(observe(group, int(port)))


if __name__ == "__main__":
    main(sys.argv[1:])
