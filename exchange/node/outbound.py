"""What leaves on one connection: live reports, what the machine says, a replay, a state image.

Live reports are written as their batch becomes durable. A replay comes from the session's ring
instead, piece by piece as the socket takes it, and live reports meanwhile come from there too, so
that the numbers have no hole; when it has caught up the stream is live. A state image follows in
the same way. One piece is written per turn of the loop, none while the socket takes no more.
"""

import asyncio
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from exchange.node.images import Image, StateMessage
from exchange.node.limits import (
    IMAGE_MESSAGES_PER_TURN,
    REPLAY_CHUNK_SIZE,
    WRITE_SIZE_MAX,
    WRITE_WAIT_S,
)
from protocol.session import Connection as Machine
from protocol.session import State

if TYPE_CHECKING:
    from exchange.node.order_entry import OrderEntry

__all__ = ["Outbound"]

NOT_READ_TEXT: Final = "the client does not read what it is sent"
OVERTAKEN_TEXT: Final = "the client reads its replay more slowly than reports come"


class Outbound:
    """See the module. `be_too_slow` ends the connection and gets the reason."""

    def __init__(
        self, server: "OrderEntry", machine: Machine, be_too_slow: Callable[[str], None]
    ) -> None:
        self.transport: asyncio.Transport | None = None
        self.is_blocked = False  # the socket takes no more
        self.is_replaying = False
        self._server = server
        self._machine = machine
        self._be_too_slow = be_too_slow
        self._session = 0
        self._head = 0  # the first report that the log-on did not ask for
        self._live: list[Callable[[], None]] = []
        self._image: Iterator[StateMessage] | None = None
        self._image_size = 0
        self._is_pumping = False
        self._write_timer: asyncio.TimerHandle | None = None

    # Live.

    def deliver(self, frames: bytes, next_number: int) -> None:
        """Send the reports of a durable batch; `next_number` is that of the frame after them."""
        machine = self._machine
        if self.is_replaying or next_number <= machine.next_number:
            return  # They come, or came, from the ring.
        transport = self.transport
        if not frames or transport is None or machine.state is State.CLOSED:
            return
        if transport.get_write_buffer_size() > WRITE_SIZE_MAX:
            self._be_too_slow(NOT_READ_TEXT)
            return
        transport.write(frames)
        machine.numbers_sent(next_number, self._server.steady_ns())

    def write(self, frames: bytes) -> None:
        """Send frames that are not numbered."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(frames)

    def flush(self) -> None:
        """Send what the machine has to say."""
        data = self._machine.data_to_send()
        if data:
            self.write(data)

    # Later.

    def replay(self, session: int, head: int) -> None:
        """Send what the ring has from the machine's next number on; `head` as the log-on told."""
        self._session = session
        self._head = head
        self.is_replaying = True
        self._server.replay_count += 1
        self._pump()

    def when_live(self, action: Callable[[], None]) -> None:
        """Call back when no replay is under way."""
        if self.is_replaying:
            self._live.append(action)
        else:
            action()

    @property
    def has_image(self) -> bool:
        """Whether a state image is being sent."""
        return self._image is not None

    def send_image(self, image: Image) -> None:
        """Send a state image, which is counted already; there is none under way."""
        assert self._image is None, "one image at a time"
        self._image = image.messages()
        self._image_size = image.size
        self._schedule()

    def drop_image(self) -> None:
        """Forget the image that is being sent, or is done."""
        self._server.images_size -= self._image_size
        self._image = None
        self._image_size = 0

    def _schedule(self) -> None:
        if not self._is_pumping and not self.is_blocked:
            self._is_pumping = True
            self._server.loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Write the next piece, and come again while there is more."""
        self._is_pumping = False
        transport = self.transport
        if self.is_blocked or transport is None or transport.is_closing():
            return
        if self._machine.state is State.CLOSED:
            return
        if self.is_replaying:
            self._send_reports(transport)
        elif self._image is not None:
            self._send_rows(self._image)
        if self.is_replaying or self._image is not None:
            self._schedule()

    def _send_reports(self, transport: asyncio.Transport) -> None:
        rings, number = self._server.ingress.rings, self._machine.next_number
        now_ns = self._server.steady_ns()
        found = rings.replay(self._session, number, self._head, now_ns, REPLAY_CHUNK_SIZE)
        if found is None:
            self._be_too_slow(OVERTAKEN_TEXT)
            return
        frames, next_number = found
        if frames:
            transport.write(frames)
            self._machine.numbers_sent(next_number, now_ns)
            self._server.replayed_count += next_number - number
        if next_number == rings.next_number(self._session):
            self.is_replaying = False
            for action in self._live:
                action()
            self._live.clear()

    def _send_rows(self, messages: Iterator[StateMessage]) -> None:
        for _ in range(IMAGE_MESSAGES_PER_TURN):
            message = next(messages, None)
            if message is None:
                self.drop_image()
                break
            self._machine.send(message, self._server.steady_ns())
        self.flush()

    # The socket.

    def block(self) -> None:
        """The socket takes no more; it has so long to take some."""
        self.is_blocked = True
        self._write_timer = self._server.loop.call_later(
            WRITE_WAIT_S, self._be_too_slow, NOT_READ_TEXT
        )

    def unblock(self) -> None:
        """The socket takes more."""
        self.is_blocked = False
        if self._write_timer is not None:
            self._write_timer.cancel()
        if self.is_replaying or self._image is not None:
            self._schedule()

    def lose(self) -> None:
        """The socket is gone."""
        self.transport = None
        self.drop_image()
        if self._write_timer is not None:
            self._write_timer.cancel()
