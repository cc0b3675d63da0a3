"""Hosts of a test: network namespaces of the kernel, wired to bridges as machines are to switches.

A host has one Ethernet interface for each network, named like it, with an address of its own. What
a host does runs in a thread that belongs to its namespace, and so do the sockets it makes and the
processes it starts. Everything is in the namespaces, so that nothing of the machine is touched, and
nothing is left when they are deleted.
"""

import asyncio
import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest

__all__ = ["Host", "Network", "make_hosts", "ns_command"]

T = TypeVar("T")

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET: Final = 0x4000_0000
"""Of setns(2); Python has it from 3.12 on."""

_NAMESPACES: Final = Path("/run/netns")
"""Where ip(8) keeps the namespaces that have a name."""


_LONG_QUEUE_SIZE: Final = 2**27
"""Bytes: more than a socket keeps."""


def ns_command(*words: str) -> None:
    """Run a command of iproute2; raises CalledProcessError with what it said."""
    subprocess.run(words, check=True, capture_output=True, text=True)


class Network:
    """A bridge in a namespace of its own, and the /24 network on it."""

    def __init__(self, namespace: str, name: str, number: int) -> None:
        self.namespace = namespace
        self.name = name
        self._number = number

    def address(self, host_number: int) -> str:
        """Of a host on this network."""
        return f"10.213.{self._number}.{host_number}"

    def port(self, host: "Host") -> str:
        """The bridge's end of the cable to a host."""
        return f"{self.name}{host.number}"

    def cut(self, host: "Host") -> None:
        """Pull the cable of a host: it sees no carrier, and nothing comes or goes."""
        ns_command("ip", "-n", self.namespace, "link", "set", "dev", self.port(host), "down")

    def mend(self, host: "Host") -> None:
        """Plug it in again."""
        ns_command("ip", "-n", self.namespace, "link", "set", "dev", self.port(host), "up")

    def throttle(self, host: "Host", *, kbit_per_second: int, queue_size: int) -> None:
        """From the bridge to a host: so much, a queue of so many bytes, and the rest is lost."""
        _bucket(self.namespace, self.port(host), kbit_per_second, queue_size)

    def delay(self, host: "Host", *, kbit_per_second: int) -> None:
        """From a host to the bridge: so much, and what is more waits in the host."""
        _bucket(host.namespace, self.name, kbit_per_second, _LONG_QUEUE_SIZE)

    def release(self, host: "Host") -> None:
        """End `throttle`."""
        ns_command("tc", "-n", self.namespace, "qdisc", "del", "dev", self.port(host), "root")


def _bucket(namespace: str, device: str, kbit_per_second: int, queue_size: int) -> None:
    """Let a device send no more than that."""
    rate = ("rate", f"{kbit_per_second}kbit", "burst", "3000", "limit", str(queue_size))
    command = ("tc", "-n", namespace, "qdisc", "replace", "dev", device, "root", "tbf")
    ns_command(*command, *rate)


class Host:
    """A namespace with a thread in it, and an event loop that another thread of it runs."""

    def __init__(self, namespace: str, number: int) -> None:
        self.namespace = namespace
        self.number = number
        self._threads = ThreadPoolExecutor(2, initializer=self._enter)
        self._loop: asyncio.AbstractEventLoop | None = None

    def _enter(self) -> None:
        descriptor = os.open(_NAMESPACES / self.namespace, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if _LIBC.setns(descriptor, _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        finally:
            os.close(descriptor)

    def run(self, work: Callable[[], T]) -> T:
        """Do something on this host."""
        return self._threads.submit(work).result()

    def run_async(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on this host's loop, which goes on afterwards."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._threads.submit(self._loop.run_forever)
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def close(self) -> None:
        """End its threads."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
        self._threads.shutdown()
        if self._loop is not None:
            self._loop.close()


@contextmanager
def make_hosts(
    host_count: int, network_names: tuple[str, ...]
) -> Iterator[tuple[list[Host], list[Network]]]:
    """Hosts 1, 2, ... each on every network. Skips the test where the system does not let us."""
    prefix = f"brier{os.getpid()}"
    hub = f"{prefix}hub"
    with ExitStack() as stack:
        _make_namespace(stack, hub, is_first=True)
        networks = []
        for index, name in enumerate(network_names):
            ns_command("ip", "-n", hub, "link", "add", f"br{name}", "type", "bridge")
            ns_command("ip", "-n", hub, "link", "set", "dev", f"br{name}", "up")
            networks.append(Network(hub, name, index + 1))
        hosts = []
        for number in range(1, host_count + 1):
            namespace = f"{prefix}h{number}"
            _make_namespace(stack, namespace)
            ns_command("ip", "-n", namespace, "link", "set", "lo", "up")
            host = Host(namespace, number)
            stack.callback(host.close)
            hosts.append(host)
            for network in networks:
                _wire(network, host)
        yield hosts, networks


def _make_namespace(stack: ExitStack, name: str, *, is_first: bool = False) -> None:
    if is_first and shutil.which("ip") is None:
        pytest.skip("netns: iproute2 is not installed")
    try:
        ns_command("ip", "netns", "add", name)
    except subprocess.CalledProcessError as error:
        if is_first:
            pytest.skip(f"netns: {error.stderr.strip()}")
        raise
    stack.callback(ns_command, "ip", "netns", "del", name)


def _wire(network: Network, host: Host) -> None:
    """A cable between the bridge and the host's interface."""
    hub, port, own = network.namespace, network.port(host), network.name
    pair = ("type", "veth", "peer", "name", own, "netns", host.namespace)
    ns_command("ip", "-n", hub, "link", "add", port, *pair)
    ns_command("ip", "-n", hub, "link", "set", "dev", port, "master", f"br{network.name}", "up")
    address = f"{network.address(host.number)}/24"
    ns_command("ip", "-n", host.namespace, "address", "add", address, "dev", own)
    ns_command("ip", "-n", host.namespace, "link", "set", "dev", own, "up")
