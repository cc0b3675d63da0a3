"""Tell systemd how the service is doing: one datagram, when it asked for one (sd_notify)."""

import os
import socket

__all__ = ["notify"]


def notify(state: str) -> None:
    """Send `state`, such as READY=1, to the socket that systemd names; nothing without one."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.sendto(state.encode(), address)
