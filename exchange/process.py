"""What a service needs of the system around it: systemd's socket, stdout, open files."""

import os
import resource
import socket
import sys
from contextlib import suppress

__all__ = ["notify", "raise_open_files", "say"]


def notify(state: str) -> None:
    """Send `state`, such as READY=1, to the socket that systemd names; nothing without one."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.sendto(state.encode(), address)


def say(line: str) -> None:
    """Write a line for whoever started us, if anybody still reads it."""
    with suppress(OSError):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def raise_open_files(wanted: int) -> int:
    """Have the system let this process open `wanted` files, or as many as it may; returns how many
    it may then, at most `wanted`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft
