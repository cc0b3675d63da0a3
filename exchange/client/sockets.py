"""Sockets that hear one multicast group, and what the kernel says about them."""

import socket
import struct
from ipaddress import IPv4Address
from typing import Final

from exchange.client.limits import RECEIVE_BUFFER_SIZE
from protocol.packets import PACKET_SIZE_MAX, SNAPSHOT_GROUP_OFFSET

__all__ = ["DATAGRAM_SIZE", "group_of", "listen", "receive", "snapshot_group_of"]

DATAGRAM_SIZE: Final = PACKET_SIZE_MAX + 1
"""Enough to see that a datagram is too long."""

# Linux, in asm-generic/socket.h and linux/in.h; Python's socket module does not name them.
_SO_RCVBUFFORCE: Final = 33
_SO_RXQ_OVFL: Final = 40
_IP_MULTICAST_ALL: Final = 49
_DROPS: Final = struct.Struct("=I")


def group_of(group: str, channel: int) -> str:
    """The group of a channel: that of channel 1 plus the channel's distance from it."""
    return str(IPv4Address(group) + (channel - 1))


def snapshot_group_of(group: str, channel: int) -> str:
    """The group of a channel's snapshots; `group` is that of the messages of channel 1."""
    return group_of(group, channel + SNAPSHOT_GROUP_OFFSET)


def receive(udp: socket.socket) -> tuple[bytes, int]:
    """A datagram, and how many the kernel has dropped so far; -1: none since the last that said so.

    Raises OSError, BlockingIOError when there is none.
    """
    data, ancillary, _, _ = udp.recvmsg(DATAGRAM_SIZE, socket.CMSG_SPACE(_DROPS.size))
    for level, kind, value in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, _SO_RXQ_OVFL):
            return data, int(_DROPS.unpack(value)[0])
    return data, -1


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
