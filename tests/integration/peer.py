"""The other end of a venue's socket: blocking, under full control, and it keeps what it received.

A `Peer` is one connection around the session machine of `protocol.session`, which checks every
frame of the venue, its number included. What the machine would not send goes out by `send_raw`.
"""

import secrets
import socket
import time
from collections import deque
from collections.abc import Iterator
from typing import Any, Final, Self

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol import wire
from protocol.framing import SEQUENCED, SESSION, encode_frame
from protocol.session import Connection, Party
from protocol.signing import log_on_bytes
from protocol.transport import Hello, LogOn, LogOnAccepted, Terminate, VenueHeartbeat

__all__ = ["KEEPALIVE_MS", "WAIT_S", "Peer", "make_log_on", "sign"]

KEEPALIVE_MS: Final = 30_000
"""So long that no test has to send heartbeats."""

WAIT_S: Final = 30.0
"""A venue that says nothing for so long hangs; no test passes by waiting."""

READ_SIZE: Final = 256 * 1024


def make_log_on(key: Ed25519PrivateKey, session: str, **fields: Any) -> LogOn:
    """A log-on that is not signed yet; `fields` replace what an ordinary client would say."""
    public_key = key.public_key().public_bytes_raw()
    ordinary = LogOn(
        major=wire.MAJOR,
        minor=wire.MINOR,
        key=public_key,
        session=session,
        client_nonce=secrets.token_bytes(32),
        next_number=0,
        keepalive_ms=KEEPALIVE_MS,
        cancel_on_disconnect=0,
        cancel_grace_ms=0,
        client="tests",
        signature=bytes(64),
    )
    return msgspec.structs.replace(ordinary, **fields)


def sign(key: Ed25519PrivateKey, hello: Hello, log_on: LogOn) -> LogOn:
    """The log-on with the signature that this greeting asks for."""
    signature = key.sign(log_on_bytes(hello.venue, hello.nonce, log_on))
    return msgspec.structs.replace(log_on, signature=signature)


class Peer:
    """One connection. `reports` is {number: payload} of every report that was received."""

    def __init__(self, address: tuple[str, int], receive_buffer_size: int = 0) -> None:
        self.socket = socket.socket()
        if receive_buffer_size:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_size)
        self.socket.settimeout(WAIT_S)
        self.socket.connect(address)
        self.machine = Connection(Party.CLIENT, time.time_ns())
        self.accepted_bytes = b""
        self.first_number = 0  # of the first report of this connection, as the log-on's answer says
        self.reports: dict[int, bytes] = {}
        self.notices: list[Any] = []
        self.is_open = True
        self._inbox: deque[Any] = deque()

    # Out.

    def send(self, message: Any) -> int:
        """Send a message; its number."""
        number = self.put(message)
        self.flush()
        return number

    def put(self, message: Any) -> int:
        """Queue a message for the next `flush`; its number."""
        return self.machine.send(message, time.time_ns())

    def flush(self) -> None:
        """Send what is queued; a connection that the venue has closed swallows it."""
        self.send_bytes(self.machine.data_to_send())

    def send_bytes(self, data: bytes) -> None:
        """Send any bytes at all; a connection that the venue has closed swallows them."""
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            self.is_open = False

    def send_raw(self, payload: bytes, kind: int = SEQUENCED, number: int | None = None) -> int:
        """Send a payload in a frame of its own; without a number, under the next one."""
        used = self.machine.next_number if number is None else number
        if kind == SEQUENCED and number is None:
            self.machine.numbers_sent(used + 1, time.time_ns())
        self.send_bytes(encode_frame(kind, used, payload, time.time_ns()))
        return used

    # In.

    def read(self) -> list[Any]:
        """The messages of one read from the socket, which blocks; at the end `is_open` is False."""
        try:
            data = self.socket.recv(READ_SIZE)
        except ConnectionResetError:
            data = b""
        if not data:
            self.is_open = False
            return []
        self.machine.receive_data(data, time.time_ns())
        return list(self._messages())

    def _messages(self) -> Iterator[Any]:
        while (received := self.machine.next_event()) is not None:
            message, frame = received
            if frame.kind == SEQUENCED:
                assert frame.number not in self.reports, f"report {frame.number} came twice"
                self.reports[frame.number] = frame.payload
            elif isinstance(message, LogOnAccepted):
                self.accepted_bytes = frame.payload
                self.first_number = frame.number
            elif frame.kind != SESSION:
                self.notices.append(message)
            yield message

    def receive(self) -> Any:
        """The next message; None when the venue has closed."""
        while not self._inbox and self.is_open:
            self._inbox.extend(self.read())
        return self._inbox.popleft() if self._inbox else None

    def read_until(self, *kinds: type) -> Any:
        """The next message of one of these classes; what comes before it is passed over."""
        while (message := self.receive()) is not None:
            if isinstance(message, kinds):
                return message
        raise AssertionError(f"the venue closed; wanted {kinds}, last {self.machine.ended}")

    def read_to_end(self) -> list[Any]:
        """Everything until the venue closes, heartbeats left out."""
        messages = []
        while (message := self.receive()) is not None:
            if not isinstance(message, VenueHeartbeat):
                messages.append(message)
        return messages

    @property
    def terminate(self) -> Terminate:
        """The venue's last word."""
        assert isinstance(self.machine.ended, Terminate), f"ended by {self.machine.ended}"
        assert self.machine.ended_by is Party.VENUE
        return self.machine.ended

    # Both.

    def greet(self) -> Hello:
        """Read the greeting."""
        hello: Hello = self.machine.hello or self.read_until(Hello)
        return hello

    def log_on(self, key: Ed25519PrivateKey, session: str, **fields: Any) -> LogOnAccepted:
        """Log on; the session must be accepted."""
        self.send(sign(key, self.greet(), make_log_on(key, session, **fields)))
        accepted: LogOnAccepted = self.read_until(LogOnAccepted)
        return accepted

    def request(self, message: Any) -> Any:
        """Send a command and wait for the report or notice that answers it."""
        return self.wait_for(self.send(message))

    def wait_for(self, number: int) -> Any:
        """The report or notice that answers this number; others before it are passed over."""
        while (message := self.receive()) is not None:
            if getattr(message, "number", 0) == number:
                return message
        raise AssertionError(f"closed before number {number}: {self.machine.ended}")

    def close(self) -> None:
        """Close the socket, as a process that ends does."""
        self.is_open = False
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
