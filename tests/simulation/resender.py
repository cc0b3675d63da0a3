"""A client of another make: it keeps what it sent, and sends it again under the same numbers.

The venue must do each number once, however often it comes. This one uses the session machine of
`protocol` on a bare connection. After each log-on it sends everything again that the venue does not
have, and once more some of what it has.
"""

import asyncio
from functools import partial
from random import Random
from typing import Any, Final

from msgspec.structs import replace

from exchange.client.surroundings import Surroundings
from protocol import wire
from protocol.codes import RejectCode, Side
from protocol.errors import RemoteProtocolError
from protocol.framing import SEQUENCED, encode_frame
from protocol.order_entry import CancelOrder, NewOrder
from protocol.session import Connection, Party, Received, State
from protocol.signing import log_on_bytes
from protocol.transport import Hello, LogOn, LogOnAccepted, LogOnRejected, SessionReject
from tests.simulation.disks import Violation
from tests.simulation.truth import Truth
from tests.simulation.workload import INSTRUMENT_COUNT, private_key, public_key

__all__ = ["Resender"]

OPEN_MAX: Final = 12
REPEATED_MAX: Final = 4
KEEPALIVE_MS: Final = 2_000
PAUSE_S: Final = 0.1
NONCE_SIZE: Final = 32


class Resender:
    """One session, over all processes. Number n of what was sent is at index n - 1."""

    def __init__(self, truth: Truth, number: int, dice: Random, pace_s: float) -> None:
        self.session_id = 0
        self.sent: list[NewOrder | CancelOrder] = []
        self.report_count = 0
        self.epoch: int | None = None
        """That these are of."""
        self.unanswered: set[int] = set()
        self.is_over = False
        self._truth = truth
        self._account = number
        self._key = number + 1
        self._dice = dice
        self._pace_s = pace_s
        self._order_id = 0
        self._line: _Line | None = None

    async def run(self, address: tuple[str, int], around: Surroundings) -> int:
        """The main coroutine of a process; it never ends by itself."""
        loop = asyncio.get_running_loop()
        while True:
            self._line = None
            try:
                _, line = await loop.create_connection(partial(_Line, self, around), *address)
            except OSError:
                await asyncio.sleep(PAUSE_S)
                continue
            self._line = line
            while not line.is_gone:
                await asyncio.sleep(self._dice.random() * self._pace_s)
                line.tick()
                if line.is_established and not self.is_over:
                    self._act(line)
            await asyncio.sleep(self._dice.random() * PAUSE_S)

    def log_on(self, hello: Hello, around: Surroundings) -> LogOn:
        """The answer to a greeting: go on with the report behind the last one, of this epoch."""
        is_known = self.epoch in (None, hello.epoch)
        log_on = LogOn(
            major=wire.MAJOR,
            minor=wire.MINOR,
            key=public_key(self._key),
            session="stubborn",
            client_nonce=around.random_bytes(NONCE_SIZE),
            next_number=self.report_count + 1 if is_known else 0,
            keepalive_ms=KEEPALIVE_MS,
            cancel_on_disconnect=0,
            cancel_grace_ms=0,
            client="resender",
            signature=bytes(64),
        )
        signed = log_on_bytes(hello.venue, hello.nonce, log_on)
        return replace(log_on, signature=private_key(self._key).sign(signed))

    def established(self, line: "_Line", accepted: LogOnAccepted) -> None:
        """Send again what the venue has not, and some of what it has."""
        if self.epoch not in (None, line.epoch) and len(self._truth.epochs) == 1:
            raise Violation(f"the epoch is {line.epoch}, it was {self.epoch}, and nothing was lost")
        if self.epoch != line.epoch:
            self.epoch, self.report_count = line.epoch, line.last_received
        self.session_id = accepted.session_id
        last = accepted.last_client_number
        if last > len(self.sent):
            raise Violation(f"the venue knows number {last} of {len(self.sent)}")
        first = max(last - self._dice.randrange(REPEATED_MAX), 0)
        for number, message in enumerate(self.sent[first:last], first + 1):
            line.write(encode_frame(SEQUENCED, number, wire.encode(message)))
        self.unanswered.clear()
        for message in self.sent[last:]:
            self.unanswered.add(line.send(message))

    def received(self, received: Received) -> None:
        """A message of the established session."""
        message: Any = received.message
        if received.frame.kind == SEQUENCED:
            if received.frame.number != self.report_count + 1:
                raise Violation(f"report {received.frame.number} after {self.report_count}")
            self.report_count += 1
            self.unanswered.discard(getattr(message, "number", 0))
        elif isinstance(message, SessionReject):
            self.unanswered.discard(message.number)

    def refused(self, message: LogOnRejected) -> None:
        """Whoever looks at the epoch never asks for a report that is gone."""
        if message.code == RejectCode.NUMBER_AHEAD:
            raise Violation(f"report {self.report_count} is gone, in the epoch {self.epoch}")

    def _act(self, line: "_Line") -> None:
        dice = self._dice
        for _ in range(dice.randrange(1, 4)):
            if len(self.unanswered) >= OPEN_MAX:
                return
            message = self._next_message()
            self.sent.append(message)
            number = line.send(message)
            if number != len(self.sent):
                # A number that was refused before was not sent again: nobody was to know.
                raise Violation(f"number {number} is given to message {len(self.sent)}")
            self.unanswered.add(number)

    def _next_message(self) -> NewOrder | CancelOrder:
        dice = self._dice
        if self._order_id and dice.random() < 0.2:
            return CancelOrder(max(self._order_id - dice.randrange(8), 1))
        self._order_id += 1
        return NewOrder(
            self._order_id,
            dice.randrange(1, INSTRUMENT_COUNT + 1),
            self._account,
            dice.choice((Side.BUY, Side.SELL)),
            100 * dice.randrange(40, 60),
            100 * dice.randrange(1, 6),
        )

    # At the end.

    @property
    def is_done(self) -> bool:
        return not self.unanswered

    def is_behind(self) -> str:
        """What it has not been told yet, "" when it has everything."""
        if self._line is None or not self._line.is_established:
            return "resender: not logged on"
        count = len(self._truth.reports.get(self.session_id, []))
        return "" if self.report_count == count else f"resender: {self.report_count} of {count}"

    def check(self) -> None:
        """Every number was done once at most, with what was sent under it."""
        for number, payload in self._truth.commands.get(self.session_id, {}).items():
            if number > len(self.sent) or payload != wire.encode(self.sent[number - 1]):
                raise Violation(f"resender: command {number} is not what was sent")


class _Line(asyncio.Protocol):
    """One connection."""

    def __init__(self, owner: Resender, around: Surroundings) -> None:
        self.is_gone = False
        self._owner = owner
        self._around = around
        self._now_ns = around.clock.monotonic_ns
        self._machine = Connection(Party.CLIENT, self._now_ns())
        self._transport: Any = None

    @property
    def is_established(self) -> bool:
        return self._machine.state is State.ESTABLISHED

    @property
    def epoch(self) -> int:
        """As the venue said in its greeting."""
        assert self._machine.hello is not None
        return self._machine.hello.epoch

    @property
    def last_received(self) -> int:
        """Number of the last report; after the log-on, the one before the first that comes."""
        return self._machine.last_received

    def send(self, message: Any) -> int:
        """Send it now; its number."""
        number = self._machine.send(message, self._now_ns())
        self.write(self._machine.data_to_send())
        return number

    def write(self, data: bytes) -> None:
        if data and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def tick(self) -> None:
        """Send heartbeats, and see whether the venue is silent for too long."""
        if self._machine.state is not State.CLOSED:
            self._machine.tick(self._now_ns())
            self.write(self._machine.data_to_send())
        if self._machine.state is State.CLOSED and self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        machine, owner = self._machine, self._owner
        machine.receive_data(data, self._now_ns())
        while machine.state is not State.CLOSED:
            try:
                received = machine.next_event()
            except RemoteProtocolError as error:
                raise Violation(f"resender: the venue breaks the protocol: {error}") from error
            if received is None:
                break
            if isinstance(received.message, Hello):
                self.send(owner.log_on(received.message, self._around))
            elif isinstance(received.message, LogOnAccepted):
                owner.established(self, received.message)
            elif isinstance(received.message, LogOnRejected):
                owner.refused(received.message)
            else:
                owner.received(received)
        self.tick()

    def connection_lost(self, error: Exception | None) -> None:
        del error
        self.is_gone = True
        self._machine.connection_lost()
