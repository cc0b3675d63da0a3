"""The order-entry server: who is connected, and to whom the events of a durable batch go.

A connection is found by (session, connection number). It gets its place there when its log-on is
sequenced, and loses it when it is closed; events for nobody are dropped here, their session finds
them missing by their numbers.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final

from exchange.clock import Clock
from exchange.core.engine import Batch, Engine
from exchange.logs import Log
from exchange.node import log_on as log_ons
from exchange.node.barred import BarredPayloads
from exchange.node.connection import Connection
from exchange.node.failure import Failure
from exchange.node.ingress import Ingress
from exchange.node.limits import (
    IMAGE_INTERVAL_NS,
    REFUSALS_MAX,
)
from exchange.node.log_on import Place
from exchange.node.sequencer import Parts, Sequencer
from protocol.codes import RejectCode, TerminateCode
from protocol.framing import CLIENT_FRAME_SIZE_MAX
from protocol.transport import Hello, LogOnRejected
from protocol.wire import MAJOR, MINOR

__all__ = ["OrderEntry"]

NONCE_SIZE: Final = 32


class OrderEntry:
    """See the module. Also the sequencer's outlet."""

    def __init__(
        self,
        parts: Parts,
        log: Log,
        connections_max: int,
        random_bytes: Callable[[int], bytes],
        epoch: int,
    ) -> None:
        """`random_bytes` gives as many as asked for, for nonces: nobody can guess them. `epoch` is
        that of the market data."""
        self.log = log
        self.loop: asyncio.AbstractEventLoop = parts.loop
        self.engine: Engine = parts.engine
        self.ingress: Ingress = parts.ingress
        self.barred: BarredPayloads = parts.barred
        self.sequencer = Sequencer(parts, self)
        self.connections: dict[Connection, None] = {}  # in the order in which they came
        self.log_on_count = 0
        self.log_on_reject_counts: dict[int, int] = {}  # by code
        self.evicted_count = 0  # dropped for a newcomer
        self.slow_consumer_count = 0
        self.replay_count = 0
        self.replayed_count = 0  # reports
        self.image_count = 0
        self.images_size = 0  # of those that were taken and are not out yet
        self.ended: asyncio.Future[Failure] = parts.loop.create_future()
        self._connections_max = connections_max
        self._random_bytes = random_bytes
        self._epoch = epoch
        self._clock: Clock = parts.clock
        self._steady_base_ns = parts.clock.time_ns() - parts.clock.monotonic_ns()
        self._places: dict[Place, Connection] = {}
        self._silent: dict[Connection, None] = {}  # connections that have sent no log-on yet
        self._ended: dict[Connection, None] = {}  # whose sockets are not closed yet,
        self._lingering: dict[Connection, None] = {}  # and of these those that were not cut
        self._image_times: dict[int, int] = {}  # when the latest was asked for, by session
        self._empty: asyncio.Event = asyncio.Event()
        for payload in parts.barred.payloads.values():
            parts.ingress.bar(payload)

    def steady_ns(self) -> int:
        """Time for frame headers and keepalives: UTC at the start, and never back from there."""
        return self._steady_base_ns + self._clock.monotonic_ns()

    # For connections.

    def accept(self) -> Connection:
        """The protocol object of a new socket; what a server, or a simulator, calls."""
        return Connection(self)

    def hello(self, now_ns: int) -> Hello:
        """A greeting with a fresh nonce."""
        nonce = self._random_bytes(NONCE_SIZE)
        venue = self.engine.venue
        return Hello(MAJOR, MINOR, venue, nonce, now_ns, CLIENT_FRAME_SIZE_MAX, self._epoch)

    def admit(self, connection: Connection) -> LogOnRejected | None:
        """Count a connection in; the refusal when the venue takes no more.

        When it is full, the oldest connection that has not tried to log on gives its place. Those
        that have ended and wait for their clients to close do not count, but their sockets do.
        """
        has_words = len(self.connections) < self._connections_max + REFUSALS_MAX
        is_full = len(self.connections) - len(self._ended) >= self._connections_max
        self.connections[connection] = None
        if is_full and not self._silent:
            if has_words:
                text = f"the venue has {self._connections_max} connections already"
                return self._too_many(text)
            connection.abort()
            return None
        if is_full:
            self._evict(next(iter(self._silent)))
        if not has_words and self._lingering:
            self._cut(next(iter(self._lingering)))
        if self.sequencer.is_draining:
            return log_ons.reject(RejectCode.SHUTTING_DOWN, "", "the venue is stopping")
        self._silent[connection] = None
        return None

    def _evict(self, connection: Connection) -> None:
        self.evicted_count += 1
        text = "dropped for a newcomer: the venue is full, and this one had not logged on"
        connection.drop(self._too_many(text))

    def _cut(self, connection: Connection) -> None:
        """An ended connection waits for its client no longer: the socket is needed."""
        del self._lingering[connection]
        connection.abort()

    def _too_many(self, text: str) -> LogOnRejected:
        return log_ons.reject(RejectCode.CONNECTION_LIMIT, "", text, self._connections_max)

    @property
    def attached_count(self) -> int:
        """Sessions that are logged on."""
        return sum(connection.is_attached for connection in self.connections)

    def expect(self, connection: Connection) -> None:
        """The connection has sent its log-on."""
        self._silent.pop(connection, None)

    def note_refused_log_on(self, refusal: LogOnRejected, peer: str) -> None:
        """Count and log it."""
        code = RejectCode(refusal.code)
        self.log_on_reject_counts[code] = self.log_on_reject_counts.get(code, 0) + 1
        self.log.info("log_on_rejected", code=code.name, peer=peer)

    def find_start(self, session: int, wanted: int, head: int) -> int:
        """Number of the first report that a log-on gets, which wants `wanted` (0: whatever comes)
        of a stream that stands at `head`."""
        oldest = self.ingress.rings.first_number(session)
        return wanted if 0 < oldest <= wanted < head else head

    def image_wait_ns(self, session: int) -> int:
        """How long until the session may ask for its state image, 0: now."""
        last_ns = self._image_times.get(session)
        return 0 if last_ns is None else max(last_ns + IMAGE_INTERVAL_NS - self.steady_ns(), 0)

    def note_image(self, session: int) -> None:
        """The session's image is being taken."""
        self._image_times[session] = self.steady_ns()
        self.image_count += 1

    def is_taken(self, place: Place) -> bool:
        """Whether an answer that is not durable yet is under way to this place."""
        return place in self._places

    def enter(self, connection: Connection, place: Place) -> bool:
        """The log-on is sequenced: events for this place go to the connection from now on.

        Returns whether the engine took it; then the session's connection before gives way, and is
        told once that is durable.
        """
        self._places[place] = connection
        if place.session > self.engine.session_count:
            return False
        state = self.engine.session(place.session)
        if state.connection != place.connection or not state.is_connected:
            return False
        previous = self._places.get(Place(place.session, place.connection - 1))
        if previous is not None:
            previous.give_way()
            text = f"connection {place.connection} has the session now"
            self.sequencer.after_durable(lambda: previous.end(TerminateCode.REPLACED, text))
        return True

    def leave(self, connection: Connection) -> None:
        """The connection takes no more events.

        Its place is kept until all events for it are out: numbers that the engine refused are
        given again, and the next who gets them must not get the refusal.
        """
        self._silent.pop(connection, None)
        self._ended[connection] = self._lingering[connection] = None
        place = Place(connection.session, connection.connection)
        if self._places.get(place) is connection:
            self.sequencer.after_durable(partial(self._vacate, place, connection))
        if connection.was_logged_on:
            self.log.info(
                "log_off",
                session=place.session,
                connection=place.connection,
                reason=connection.reason,
            )

    def _vacate(self, place: Place, connection: Connection) -> None:
        if self._places.get(place) is connection:
            del self._places[place]

    def forget(self, connection: Connection) -> None:
        """The socket is gone."""
        self.connections.pop(connection, None)
        self._silent.pop(connection, None)
        self._ended.pop(connection, None)
        self._lingering.pop(connection, None)
        if not self.connections:
            self._empty.set()

    # For the sequencer.

    def release(self, batch: Batch, closed_ns: int) -> None:
        """Send the events of a durable batch to whom they concern."""
        if not batch.events:
            return
        places = self._places
        for session, number, next_number, frames in self.ingress.release(
            batch.events, self.steady_ns(), closed_ns
        ):
            connection = places.get(Place(session, number))
            if connection is not None:
                connection.deliver(frames, next_number)

    def fail(self, failure: Failure) -> None:
        """Cut every connection; nothing of what waits in their buffers matters any more."""
        for connection in list(self.connections):
            connection.abort()
        if not self.ended.done():
            self.ended.set_result(failure)

    # The end.

    def say_goodbye(self) -> None:
        """Tell every client that the venue stops, and close."""
        for connection in list(self.connections):
            connection.end(TerminateCode.SHUTDOWN, "the venue is stopping")

    async def wait_empty(self, seconds: float) -> None:
        """Wait until every socket is gone; cut those that are left after so many seconds."""
        self._empty.clear()
        if not self.connections:
            return
        try:
            async with asyncio.timeout(seconds):
                await self._empty.wait()
        except TimeoutError:
            for connection in list(self.connections):
                connection.abort()
