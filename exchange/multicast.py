"""Packets out: one UDP socket for the multicast groups of one line.

A line is one way to the consumers; line B carries the packets of line A once more, so that whoever
listens to both misses only what both have lost. Each line has a socket of its own, so that what one
network does to it, a full buffer or an error, is nothing to the other. The socket never blocks.
"""

import asyncio
import errno
import socket
import struct
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Final, Protocol

from exchange.config import CHANNEL_GROUPS, ConfigError, LineSettings, MarketDataSettings
from exchange.datagrams import send_datagrams

__all__ = ["SNAPSHOT_GROUPS", "DatagramSender", "MulticastSender", "open_lines"]

SNAPSHOT_GROUPS: Final = CHANNEL_GROUPS
"""Where the groups of snapshots begin, counted from the line's first group."""

SEND_BUFFER_SIZE: Final = 4 * 1024 * 1024
"""What is asked of the kernel: the packets of the largest batch. It gives what it allows."""


class DatagramSender(Protocol):
    """Where the packets of a line go. A simulator brings its own."""

    def send(self, packets: list[tuple[int, bytes]]) -> int:
        """Hand over packets, pairs (channel, bytes), in order; returns how many were taken, 0 when
        there is no room now. Fewer than all: ask again for the others. Raises OSError when the
        first one cannot be sent."""

    def when_writable(self, action: Callable[[], None]) -> None:
        """Call back once, when there is room again."""

    def close(self) -> None:
        """Let go; no callback comes any more."""


class MulticastSender:
    """The socket of one line. Channel c has the group `first_group` + c - 1 of the line, counted
    from 0. Raises ConfigError, which names `table`, if the settings do not fit the machine."""

    def __init__(
        self,
        line: LineSettings,
        loop: asyncio.AbstractEventLoop,
        *,
        first_group: int = 0,
        table: str = "market_data",
    ) -> None:
        first = IPv4Address(line.group) + first_group
        self._addresses = b"".join(
            _sockaddr(first + index, line.port) for index in range(CHANNEL_GROUPS)
        )
        self._loop = loop
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        try:
            # Bound to the interface's address: another machine's is found out here.
            self._socket.bind((line.interface, 0))
            interface = socket.inet_aton(line.interface)
            self._set(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, interface)
            self._set(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, line.ttl)
            # Consumers on this machine get a copy.
            self._set(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
            self._set(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_SIZE)
        except OSError as error:
            self._socket.close()
            if error.errno == errno.EADDRNOTAVAIL:
                text = f"{line.interface} is not an address of this machine"
            else:
                text = f"{line.interface}: {error.strerror}"
            raise ConfigError(f"{table}.interface: {text}") from None

    def _set(self, level: int, option: int, value: int | bytes) -> None:
        self._socket.setsockopt(level, option, value)

    def send(self, packets: list[tuple[int, bytes]]) -> int:
        return send_datagrams(self._socket.fileno(), self._addresses, packets)

    def when_writable(self, action: Callable[[], None]) -> None:
        def call_once() -> None:
            self._loop.remove_writer(self._socket)
            action()

        self._loop.add_writer(self._socket, call_once)

    def close(self) -> None:
        self._loop.remove_writer(self._socket)
        self._socket.close()


def _sockaddr(address: IPv4Address, port: int) -> bytes:
    """The structure of the system: family, port and address, padded to 16 bytes."""
    return struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", port, address.packed)


def open_lines(
    settings: MarketDataSettings, loop: asyncio.AbstractEventLoop, *, first_group: int = 0
) -> dict[str, MulticastSender]:
    """A sender for each line that the settings have, by its name; those of the channels' packets,
    or with SNAPSHOT_GROUPS as `first_group` those of their snapshots. Raises ConfigError."""
    senders = {"a": MulticastSender(settings.line_a, loop, first_group=first_group)}
    if settings.line_b is not None:
        try:
            senders["b"] = MulticastSender(
                settings.line_b, loop, first_group=first_group, table="market_data.line_b"
            )
        except ConfigError:
            senders["a"].close()
            raise
    return senders
