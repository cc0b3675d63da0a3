"""Sockets that hear one multicast group, and what the kernel says about them."""

import asyncio
import socket
import struct
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Final, Protocol

from exchange.client.limits import RECEIVE_BUFFER_SIZE
from protocol.packets import PACKET_SIZE_MAX, SNAPSHOT_GROUP_OFFSET

__all__ = ["DATAGRAM_SIZE", "GroupSocket", "group_of", "hear", "listen", "snapshot_group_of"]

DATAGRAM_SIZE: Final = PACKET_SIZE_MAX + 1
"""Enough to see that a datagram is too long."""

# Linux, in asm-generic/socket.h and linux/in.h; Python's socket module does not name them.
_SO_RCVBUFFORCE: Final = 33
_SO_RXQ_OVFL: Final = 40
_IP_MULTICAST_ALL: Final = 49
_DROPS: Final = struct.Struct("=I")


class GroupSocket(Protocol):
    """Hears one multicast group. A simulator brings its own."""

    buffer_size: int
    """Bytes that are kept until they are read, what they cost the kernel included."""

    @property
    def is_open(self) -> bool:
        """Whether it was not closed."""

    def receive(self) -> tuple[bytes, int]:
        """A datagram, and how many were dropped so far; -1: none since the last that said so.

        Raises OSError, BlockingIOError when there is none.
        """

    def receive_next(self) -> bytes:
        """A datagram. Raises as `receive`."""

    def when_readable(self, action: Callable[[], None]) -> None:
        """Call back on the running loop, until `close`, whenever there is a datagram."""

    def close(self) -> None:
        """Leave the group, on the loop that calls back; no callback comes any more."""


def group_of(group: str, channel: int) -> str:
    """The group of a channel: that of channel 1 plus the channel's distance from it."""
    return str(IPv4Address(group) + (channel - 1))


def snapshot_group_of(group: str, channel: int) -> str:
    """The group of a channel's snapshots; `group` is that of the messages of channel 1."""
    return group_of(group, channel + SNAPSHOT_GROUP_OFFSET)


def listen(group: str, port: int, interface: str) -> socket.socket:
    """Open a socket that hears one group on one interface, shared with others on this host.

    Raises OSError.
    """
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


def hear(group: str, port: int, interface: str) -> GroupSocket:
    """As `listen`, for the running loop."""
    return _Socket(listen(group, port, interface))


class _Socket:
    """A `GroupSocket` of the kernel."""

    def __init__(self, udp: socket.socket) -> None:
        self.buffer_size = udp.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        self._socket = udp

    @property
    def is_open(self) -> bool:
        return self._socket.fileno() >= 0

    def receive(self) -> tuple[bytes, int]:
        data, ancillary, _, _ = self._socket.recvmsg(DATAGRAM_SIZE, socket.CMSG_SPACE(_DROPS.size))
        for level, kind, value in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, _SO_RXQ_OVFL):
                return data, int(_DROPS.unpack(value)[0])
        return data, -1

    def receive_next(self) -> bytes:
        return self._socket.recv(DATAGRAM_SIZE)

    def when_readable(self, action: Callable[[], None]) -> None:
        asyncio.get_running_loop().add_reader(self._socket, action)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
