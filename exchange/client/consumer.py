"""A consumer of market data over multicast: one socket for each channel, the books in `receiver`.

A venue at its peak sends more than Python can read in one turn of a loop, so the receive buffers
are as large as the kernel allows, and each turn reads a bounded number of datagrams. What is lost
all the same shows as a gap with its count, and as the kernel's own count of dropped datagrams.

    async with Consumer("239.255.66.1", 9100) as consumer:
        await consumer.wait_for(2)
        print(consumer.book("RAIN-YES").best_bid)

Callbacks are synchronous. What they raise goes to the event loop's exception handler.
"""

import asyncio
import socket
import struct
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address
from types import TracebackType
from typing import Final, TypeVar

from exchange.client.callbacks import call
from exchange.client.channel import Channel, Gap
from exchange.client.errors import NotConnectedError
from exchange.client.limits import DATAGRAMS_MAX, RECEIVE_BUFFER_SIZE
from exchange.client.receiver import MarketDataReceiver
from exchange.clock import SystemClock
from protocol.books import Book
from protocol.market_data import (
    EventDefinition,
    InstrumentDefinition,
    MarketDataMessage,
    Trade,
)
from protocol.packets import PACKET_SIZE_MAX

__all__ = ["Consumer", "group_of"]

T = TypeVar("T")

_NS_PER_S: Final = 1_000_000_000
_DATAGRAM_SIZE: Final = PACKET_SIZE_MAX + 1
"""Enough to see that a datagram is too long."""

# Linux, in asm-generic/socket.h and linux/in.h; Python's socket module does not name them.
_SO_RCVBUFFORCE: Final = 33
_SO_RXQ_OVFL: Final = 40
_IP_MULTICAST_ALL: Final = 49
_DROPS: Final = struct.Struct("=I")


def group_of(group: str, channel: int) -> str:
    """The group of a channel: that of channel 1 plus the channel's distance from it."""
    return str(IPv4Address(group) + (channel - 1))


class Consumer:
    """Market data of some channels of one venue; an asynchronous context manager.

    `group` and `port` are those of channel 1, as the venue says when it starts; `interface` is
    the address of the network interface on which to listen. `on_event` is called with every
    public message, after all of its command is in the books, `on_trade` with the trades among
    them, `on_gap` when a channel has lost its place, `on_epoch` when everything starts again.
    """

    def __init__(
        self,
        group: str,
        port: int,
        *,
        interface: str = "127.0.0.1",
        channels: Iterable[int] = (1,),
        on_event: Callable[[MarketDataMessage], None] | None = None,
        on_trade: Callable[[Trade], None] | None = None,
        on_gap: Callable[[Gap], None] | None = None,
        on_epoch: Callable[[int], None] | None = None,
    ) -> None:
        self._on_event = on_event
        self._on_trade = on_trade
        is_told = on_event is not None or on_trade is not None
        self.receiver = MarketDataReceiver(
            channels,
            on_message=self._tell if is_told else None,
            on_gap=None if on_gap is None else _guarded(on_gap),
            on_epoch=None if on_epoch is None else _guarded(on_epoch),
        )
        self._group = group
        self._port = port
        self._interface = interface
        self._clock = SystemClock()
        self._sockets: dict[int, socket.socket] = {}
        self._drop_counts: dict[int, int] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._waiters: list[tuple[Channel, int, asyncio.Future[None]]] = []
        self.receive_buffer_size = 0
        """Bytes that the kernel keeps for each channel, its own overhead included."""

    async def __aenter__(self) -> "Consumer":
        self.open()
        return self

    async def __aexit__(
        self,
        error_class: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def open(self) -> None:
        """Join the groups and begin to listen. Raises OSError; nothing is open then."""
        loop = asyncio.get_running_loop()
        assert not self._sockets, "the consumer is open"
        try:
            for channel in self.receiver.channels:
                group = group_of(self._group, channel)
                self._sockets[channel] = _listen(group, self._port, self._interface)
        except OSError:
            self.close()
            raise
        for channel, udp in self._sockets.items():
            self.receive_buffer_size = udp.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
            loop.add_reader(udp, self._read, channel, udp)

    def close(self) -> None:
        """Leave the groups. The books stay as they are; who waits gets NotConnectedError."""
        for udp in self._sockets.values():
            asyncio.get_running_loop().remove_reader(udp)
            udp.close()
        self._sockets.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiters, self._waiters = self._waiters, []
        for _, _, waiter in waiters:
            if not waiter.done():
                waiter.set_exception(NotConnectedError("the consumer was closed"))

    # What is known.

    @property
    def books(self) -> dict[int, Book]:
        """Every book by the number of its instrument, the stale ones too."""
        return self.receiver.market.books

    def book(self, symbol: str) -> Book:
        """The book of an instrument by its name. KeyError: no such instrument was listed."""
        return self.receiver.market.symbols[symbol]

    @property
    def instruments(self) -> dict[int, InstrumentDefinition]:
        """Every instrument that was listed, by its number."""
        return self.receiver.market.instruments

    @property
    def events(self) -> dict[int, EventDefinition]:
        """Every event that was listed, by its number."""
        return self.receiver.market.events

    @property
    def epoch(self) -> int:
        """The venue's epoch, 0 before its first packet."""
        return self.receiver.epoch

    @property
    def gaps(self) -> list[Gap]:
        """The first gaps, at most 1,000; `gap_count` counts on."""
        return self.receiver.gaps

    @property
    def gap_count(self) -> int:
        """How often a channel has lost its place."""
        return self.receiver.gap_count

    @property
    def is_complete(self) -> bool:
        """Whether every channel was heard, and nothing was missed or is waited for."""
        return self.receiver.is_complete

    def channel(self, channel: int) -> Channel:
        """The numbers and counts of one channel."""
        return self.receiver.channels[channel]

    @property
    def message_count(self) -> int:
        """Messages that were taken, over all channels and epochs."""
        return sum(channel.message_count for channel in self.receiver.channels.values())

    @property
    def packet_count(self) -> int:
        """Datagrams that were read, whatever was in them."""
        return self.receiver.packet_count

    @property
    def duplicate_count(self) -> int:
        """Packets of which every message was known."""
        return sum(channel.duplicate_count for channel in self.receiver.channels.values())

    @property
    def error_count(self) -> int:
        """Datagrams that were no packets; `receiver.last_error` says what the last one was."""
        return self.receiver.error_count

    @property
    def dropped_count(self) -> int:
        """Datagrams that the kernel dropped because this process was too slow, as last told."""
        return sum(self._drop_counts.values())

    def silent_ns(self, channel: int) -> int:
        """How long nothing was heard on a channel: far above 250 ms the venue or the way is down.

        Books are not stale then, only old. Before the first packet it is as long as can be.
        """
        return self._clock.monotonic_ns() - self.receiver.channels[channel].heard_ns

    def public_digest(self) -> str:
        """The digest of all books, equal to the venue's at the same numbers.

        Raises StaleBookError when the books are not complete.
        """
        return self.receiver.public_digest()

    async def wait_for(self, next_number: int, channel: int = 1) -> None:
        """Wait until a channel's next number is this one or a later one.

        Everything below it has been applied then, or is in a gap. NotConnectedError: closed.
        """
        target = self.receiver.channels[channel]
        if target.next_number >= next_number:
            return
        if not self._sockets:
            raise NotConnectedError("the consumer is not open")
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append((target, next_number, waiter))
        await waiter

    # Inside.

    def _read(self, channel: int, udp: socket.socket) -> None:
        """Read what the socket holds, up to a bound."""
        self._drain(channel, udp)
        self._after()

    def _drain(self, channel: int, udp: socket.socket) -> bool:
        """Read up to a bound; True: the socket is empty."""
        receive, now_ns = self.receiver.receive, self._clock.monotonic_ns()
        try:
            data, ancillary, _, _ = udp.recvmsg(_DATAGRAM_SIZE, socket.CMSG_SPACE(_DROPS.size))
            for level, kind, value in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, _SO_RXQ_OVFL):
                    self._drop_counts[channel] = _DROPS.unpack(value)[0]
            receive(channel, data, now_ns)
            for _ in range(DATAGRAMS_MAX - 1):
                receive(channel, udp.recv(_DATAGRAM_SIZE), now_ns)
        except BlockingIOError:
            return True
        except OSError as error:
            if udp.fileno() < 0:
                return True  # A callback has closed the consumer.
            # The interface went away, for example. It may come back; until then it is silent.
            context = {"message": f"channel {channel} cannot be read", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)
            return True
        return False

    def _tick(self) -> None:
        """Give up what is missing, but only when it does not wait in a socket."""
        self._timer = None
        sockets = list(self._sockets.items())
        emptied = [self._drain(channel, udp) for channel, udp in sockets]
        if all(emptied):
            self.receiver.tick(self._clock.monotonic_ns())
        self._after()

    def _after(self) -> None:
        """Wake who waits, and set the timer."""
        if self._waiters:
            waiting = []
            for channel, number, waiter in self._waiters:
                if channel.next_number < number:
                    waiting.append((channel, number, waiter))
                elif not waiter.done():
                    waiter.set_result(None)
            self._waiters = waiting
        due_ns = self.receiver.deadline_ns
        if due_ns and self._timer is None and self._sockets:
            wait_s = max(0, due_ns - self._clock.monotonic_ns()) / _NS_PER_S
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._tick)

    def _tell(self, message: MarketDataMessage) -> None:
        if self._on_event is not None:
            call(self._on_event, message)
        if self._on_trade is not None and isinstance(message, Trade):
            call(self._on_trade, message)


def _guarded(callback: Callable[[T], None]) -> Callable[[T], None]:
    return lambda argument: call(callback, argument)


def _listen(group: str, port: int, interface: str) -> socket.socket:
    """Open a socket that hears one group on one interface, shared with others on this host."""
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        udp.setblocking(False)
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            udp.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER_SIZE)
        except PermissionError:
            udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_SIZE)
        udp.setsockopt(socket.SOL_SOCKET, _SO_RXQ_OVFL, 1)
        # Linux gives a socket what any socket of the host has joined, unless it is told not to.
        udp.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_ALL, 0)
        udp.bind((group, port))
        membership = socket.inet_aton(group) + socket.inet_aton(interface)
        udp.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
    except BaseException:
        udp.close()
        raise
    return udp
