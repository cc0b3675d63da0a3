"""A listening socket that can be closed while somebody is just coming in: asyncio's own server
would leave a transport behind."""

import asyncio
import socket
from collections.abc import Callable

__all__ = ["Door"]


class Door:
    """Gives everybody who connects a protocol; `bound` is a socket with an address."""

    def __init__(self, bound: socket.socket, accept: Callable[[], asyncio.BaseProtocol]) -> None:
        self._loop = asyncio.get_running_loop()
        self._accept = accept
        self._bound = bound
        self._coming: set[asyncio.Task[object]] = set()
        bound.setblocking(False)
        bound.listen()
        self._loop.add_reader(bound, self._take)

    async def close(self) -> None:
        """Let nobody in any more; who was coming is in."""
        self._loop.remove_reader(self._bound)
        self._bound.close()
        while self._coming:
            await asyncio.wait(self._coming)

    def _take(self) -> None:
        try:
            connected, _ = self._bound.accept()
        except BlockingIOError:
            return
        connected.setblocking(False)
        if connected.family == socket.AF_INET:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task: asyncio.Task[object] = self._loop.create_task(
            self._loop.connect_accepted_socket(self._accept, connected)
        )
        self._coming.add(task)
        task.add_done_callback(self._coming.discard)
