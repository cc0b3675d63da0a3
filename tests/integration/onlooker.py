"""A consumer of a venue's multicast that is read by the test: books from packets, nothing else."""

import select
import socket
import time
from typing import Final

from exchange.client.receiver import MarketDataReceiver
from exchange.client.sockets import group_of
from tests.integration.peer import WAIT_S

__all__ = ["Onlooker"]

CHANNEL: Final = 1
RECEIVE_BUFFER_SIZE: Final = 4 * 1024 * 1024
DATAGRAM_SIZE: Final = 2048


class Onlooker:
    """Joined once, over all lives of a venue."""

    def __init__(self, group: str, port: int) -> None:
        self.receiver = MarketDataReceiver([CHANNEL])
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_SIZE)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        address = group_of(group, CHANNEL)
        self.socket.bind((address, port))
        membership = socket.inet_aton(address) + socket.inet_aton("127.0.0.1")
        self.socket.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        self.socket.setblocking(False)

    @property
    def next_number(self) -> int:
        """Of the first message that has not come."""
        return self.receiver.channels[CHANNEL].next_number

    def read(self) -> None:
        """Take what has arrived."""
        while True:
            try:
                data = self.socket.recv(DATAGRAM_SIZE)
            except BlockingIOError:
                return
            self.receiver.receive(CHANNEL, data, time.monotonic_ns())

    def wait_for(self, next_number: int) -> None:
        """Read until everything below this number has come."""
        while self.next_number < next_number:
            assert not self.receiver.gaps, self.receiver.gaps
            ready, _, _ = select.select([self.socket], [], [], WAIT_S)
            assert ready, f"silence; {next_number} is wanted, {self.next_number} comes next"
            self.read()

    def close(self) -> None:
        self.socket.close()
