"""The door of the feed: who is connected, who may come in, whose key is gone."""

import asyncio
from collections.abc import Callable
from typing import Final

from exchange.feed.connection import Connection
from exchange.feed.limits import (
    REFUSALS_MAX,
    SHARE_CONNECTIONS_MAX,
    STEPS_MAX,
    WATCH_S,
)
from exchange.feed.log_on import reject
from exchange.feed.streams import Streams
from exchange.feed.surroundings import Surroundings
from protocol.codes import RejectCode, TerminateCode
from protocol.feed import FeedReject, FeedState
from protocol.framing import CLIENT_FRAME_SIZE_MAX
from protocol.transport import Hello, LogOnRejected
from protocol.wire import MAJOR, MINOR

__all__ = ["FeedServer"]

NONCE_SIZE: Final = 32
STOPPING_TEXT: Final = "the feed is stopping"


class FeedServer:
    """See the module. All of it belongs to the loop's thread."""

    def __init__(
        self,
        streams: Streams,
        loop: asyncio.AbstractEventLoop,
        surroundings: Surroundings,
        fail: Callable[[BaseException], None],
        is_current: Callable[[], bool],
    ) -> None:
        """`fail` is called when something is wrong here that no client can cause; `is_current` says
        whether what was there at the start was read."""
        self.streams = streams
        self.now_ns = streams.now_ns
        self.loop = loop
        self.log = surroundings.log
        self.steps = asyncio.Semaphore(STEPS_MAX)
        self.fail = fail
        self.is_current = is_current
        self.connections: dict[Connection, None] = {}  # in the order in which they came
        self.log_on_count = 0
        self.log_on_reject_counts: dict[int, int] = {}  # by code
        self.request_reject_counts: dict[int, int] = {}  # by code
        self.evicted_count = 0  # dropped for a newcomer
        self.stalled_count = 0  # cut because they took nothing
        self.is_stopping = False
        self._connections_max = surroundings.connections_max
        self._random_bytes = surroundings.random_bytes
        self._silent: dict[Connection, None] = {}  # connections that have sent no log-on yet
        self._entered: dict[Connection, int] = {}  # that are logged on, with their participants
        self._shares: dict[int, int] = {}  # how many of them each participant has
        self._ended: dict[Connection, None] = {}  # whose sockets are not closed yet
        self._empty = asyncio.Event()
        self._key_sequence = streams.market.directory.key_sequence
        self._timer: asyncio.TimerHandle | None = None
        streams.on_channel = self._tell_state
        streams.on_flush = self._check_keys

    def start(self) -> None:
        """Begin to look after those that do not read."""
        self._timer = self.loop.call_later(WATCH_S, self._watch)

    # For connections.

    def accept(self) -> Connection:
        """The protocol object of a new socket."""
        return Connection(self)

    def hello(self, now_ns: int) -> Hello:
        """A greeting with a fresh nonce."""
        market = self.streams.market
        venue = market.directory.venue
        name = venue.venue if venue is not None else "unknown"
        nonce = self._random_bytes(NONCE_SIZE)
        return Hello(MAJOR, MINOR, name, nonce, now_ns, CLIENT_FRAME_SIZE_MAX, market.epoch)

    def feed_state(self) -> FeedState:
        """Where the feed is."""
        market = self.streams.market
        rows = [(channel, state.next_number) for channel, state in market.channels.items()]
        return FeedState(market.sequence, market.time_ns, market.epoch, sorted(rows))

    def admit(self, connection: Connection) -> LogOnRejected | None:
        """Count a connection in; the refusal when the feed takes no more.

        When it is full, the oldest connection that has not tried to log on gives its place. Those
        that have ended and wait for their clients to close do not count, but their sockets do.
        """
        has_words = len(self.connections) < self._connections_max + REFUSALS_MAX
        is_full = len(self.connections) - len(self._ended) >= self._connections_max
        self.connections[connection] = None
        if is_full and not self._silent:
            if has_words:
                return self._too_many(f"the feed has {self._connections_max} connections already")
            connection.abort()
            return None
        if is_full:
            self.evicted_count += 1
            text = "dropped for a newcomer: the feed is full, and this one had not logged on"
            next(iter(self._silent)).drop_for_newcomer(self._too_many(text))
        if not has_words and self._ended:
            next(iter(self._ended)).abort()
        if self.is_stopping:
            return reject(RejectCode.SHUTTING_DOWN, "", STOPPING_TEXT)
        self._silent[connection] = None
        return None

    def _too_many(self, text: str) -> LogOnRejected:
        return reject(RejectCode.CONNECTION_LIMIT, "", text, self._connections_max)

    def expect(self, connection: Connection) -> None:
        """The connection has sent its log-on."""
        self._silent.pop(connection, None)

    def check_share(self, participant_id: int) -> LogOnRejected | None:
        """The refusal when a participant has as many connections as it may."""
        if self._shares.get(participant_id, 0) < SHARE_CONNECTIONS_MAX:
            return None
        text = f"the participant has {SHARE_CONNECTIONS_MAX} connections already"
        return reject(RejectCode.CONNECTION_LIMIT, "", text, SHARE_CONNECTIONS_MAX)

    def enter(self, connection: Connection, participant_id: int) -> None:
        """The connection is logged on."""
        self._entered[connection] = participant_id
        self._shares[participant_id] = self._shares.get(participant_id, 0) + 1
        self.log_on_count += 1

    def note_refused_log_on(self, refusal: LogOnRejected, peer: str) -> None:
        """Count and log it."""
        code = RejectCode(refusal.code)
        self.log_on_reject_counts[code] = self.log_on_reject_counts.get(code, 0) + 1
        self.log.info("log_on_rejected", code=code.name, peer=peer)

    def note_refused_request(self, refusal: FeedReject) -> None:
        """Count it."""
        counts = self.request_reject_counts
        counts[refusal.code] = counts.get(refusal.code, 0) + 1

    def leave(self, connection: Connection) -> None:
        """The connection is over; its socket may last a little."""
        self._silent.pop(connection, None)
        self._ended[connection] = None
        participant_id = self._entered.pop(connection, 0)
        if participant_id:
            self._shares[participant_id] -= 1
            self.log.info("log_off", peer=connection.peer, reason=connection.reason)

    def forget(self, connection: Connection) -> None:
        """The socket is gone."""
        self.connections.pop(connection, None)
        self._ended.pop(connection, None)
        if not self.connections:
            self._empty.set()

    @property
    def entered_count(self) -> int:
        """Connections that are logged on."""
        return len(self._entered)

    @property
    def blocked_count(self) -> int:
        """Connections whose sockets take no more."""
        return sum(connection.is_blocked for connection in self._entered)

    @property
    def unsent_size(self) -> int:
        """Bytes that wait for sockets."""
        return sum(connection.unsent_size for connection in self._entered)

    # What happens.

    def _tell_state(self) -> None:
        """A channel has come into use."""
        for connection in tuple(self._entered):
            connection.tell_state()

    def _check_keys(self) -> None:
        """Cut those whose keys have lost a role."""
        key_sequence = self.streams.market.directory.key_sequence
        if key_sequence != self._key_sequence:
            self._key_sequence = key_sequence
            for connection in tuple(self._entered):
                connection.check_key()

    def _watch(self) -> None:
        self._timer = self.loop.call_later(WATCH_S, self._watch)
        now_ns = self.now_ns()
        for connection in tuple(self._entered):
            connection.watch(now_ns)

    # The end.

    def say_goodbye(self) -> None:
        """Tell every client that the feed stops, and close."""
        self.is_stopping = True
        for connection in list(self.connections):
            connection.end(TerminateCode.SHUTDOWN, STOPPING_TEXT)

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

    def close(self) -> None:
        """No timer fires any more."""
        if self._timer is not None:
            self._timer.cancel()
