"""Makes the connection of a client, logs on, and makes it again when it is lost.

After a loss the pauses between attempts grow and are spread at random, so that the clients of a
venue that restarts do not all come at once; attempts are bounded. There is no other attempt when
it would meet the same end: another client took the session, the protocol was broken, or the
log-on was refused for a lasting reason.

Every log-on after the first asks for the reports from the one behind the last that was received,
if the venue is still in the epoch that this number is of. In another one, numbers are given again
to other reports: the log-on asks for none, and all that came before is lost.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple, Protocol

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from exchange.client.errors import ClientError, ConnectError, ReportsLostError
from exchange.client.keys import public_key_bytes
from exchange.client.limits import CONNECT_WAIT_S
from exchange.client.link import Link, LinkOwner
from exchange.client.surroundings import Surroundings
from exchange.clock import Clock
from protocol.codes import CancelOnDisconnect
from protocol.session import Received, Service
from protocol.signing import log_on_bytes
from protocol.transport import Hello, LogOn, LogOnAccepted, StateRequest
from protocol.wire import MAJOR, MINOR

__all__ = ["Backoff", "ClientState", "Connector", "Listener", "Settings", "StateChange"]

_NONCE_SIZE: Final = 32
_MS_PER_S: Final = 1_000
_DOUBLINGS_MAX: Final = 32  # Keeps the exponent small; every sensible maximum is reached before.


LinkMaker = Callable[[LinkOwner, Clock, asyncio.AbstractEventLoop], Link]


class ClientState(Enum):
    """Where a client stands. Requests can be sent when it is READY."""

    CONNECTING = "connecting"
    READY = "ready"
    RECONNECTING = "reconnecting"
    CLOSED = "closed"


class StateChange(NamedTuple):
    """What `on_state` is told: the new state, why, and which attempt to reconnect comes next."""

    state: ClientState
    reason: ClientError | None
    attempt: int


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """Pauses before the attempts to reconnect: doubling from `initial_ms` up to `maximum_ms`."""

    initial_ms: int = 100
    maximum_ms: int = 10_000
    attempts_max: int = 30

    def pause_s(self, attempt: int, uniform: Callable[[float, float], float]) -> float:
        """Return the pause before an attempt (the first is 1): half of it is left to chance."""
        doublings = min(attempt - 1, _DOUBLINGS_MAX)
        pause_ms = min(self.initial_ms << doublings, self.maximum_ms)
        return pause_ms * uniform(0.5, 1.0) / _MS_PER_S


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where to connect and how to log on."""

    host: str
    port: int
    key: Ed25519PrivateKey
    session: str
    cancel_on_disconnect: CancelOnDisconnect
    cancel_grace_ms: int
    keepalive_ms: int
    client: str
    reconnect: Backoff | None
    service: Service = Service.ORDER_ENTRY


class Listener(Protocol):
    """The client, as its connector sees it."""

    def established(
        self, accepted: LogOnAccepted, first_number: int, missed: ReportsLostError | None
    ) -> None:
        """A log-on was accepted; reports go on with `first_number`, `missed` will not come."""

    def received(self, received: Received) -> bool:
        """A message of the established session. False: read no more until `release`."""

    def has_room(self) -> None:
        """Sending is possible again."""

    def lost(self, reason: ClientError) -> None:
        """The connection ended; another one is tried."""

    def closed(self, reason: ClientError | None) -> None:
        """There will be no other connection; `reason` is None when the user closed it."""

    def state_changed(self, change: StateChange) -> None:
        """Tell the user."""


class Connector:
    """Owns the connection of one client."""

    def __init__(
        self,
        settings: Settings,
        listener: Listener,
        surroundings: Surroundings,
        make_link: LinkMaker = Link,
    ) -> None:
        self.settings = settings
        self.state = ClientState.CONNECTING
        self.link: Link | None = None
        self.venue = ""
        self._listener = listener
        self._surroundings = surroundings
        self._make_link = make_link
        self._next_report = 0
        """The one that is wanted next, 0 before the first connection has ended."""
        self._epoch = 0
        """That `_next_report` is of."""
        self._is_closing = False
        self._unknown_count = 0
        self._log_on: asyncio.Future[None] | None = None
        self._gone: asyncio.Future[None] | None = None
        self._retries: asyncio.Task[None] | None = None

    @property
    def clock(self) -> Clock:
        """That of all that is sent."""
        return self._surroundings.clock

    @property
    def unknown_count(self) -> int:
        """Messages that were skipped because their tag is not known here."""
        return self._unknown_count + (self.link.unknown_count if self.link else 0)

    async def open(self) -> None:
        """Connect and log on, once."""
        try:
            await self._connect()
        except BaseException:
            self._change(ClientState.CLOSED, None)
            raise

    def open_later(self, backoff: Backoff) -> None:
        """Connect and log on in the background, as after a loss."""
        never = ConnectError(self.settings.host, self.settings.port, "not tried yet")
        self._retries = asyncio.get_running_loop().create_task(self._reconnect(backoff, never))

    async def close(self) -> None:
        """Log out and wait for the end; at once when there is no connection."""
        self._is_closing = True
        if self._retries is not None:
            self._retries.cancel()
            self._retries = None
            self._finish(None)
        elif self.link is not None:
            self._gone = asyncio.get_running_loop().create_future()
            self.link.log_out()
            await self._gone

    def release(self) -> None:
        """Go on reading after the listener was not ready for more."""
        if self.link is not None:
            self.link.release()

    def ask_for_state(self) -> bool:
        """Send a request for a state image; False: there is no established connection."""
        if self.link is None or not self.link.is_established:
            return False
        self.link.send(StateRequest())
        return True

    # Called by the link.

    def make_log_on(self, hello: Hello) -> LogOn:
        settings = self.settings
        self.venue = hello.venue
        log_on = LogOn(
            major=MAJOR,
            minor=MINOR,
            key=public_key_bytes(settings.key),
            session=settings.session,
            client_nonce=self._surroundings.random_bytes(_NONCE_SIZE),
            next_number=self._next_report if hello.epoch == self._epoch else 0,
            keepalive_ms=settings.keepalive_ms,
            cancel_on_disconnect=settings.cancel_on_disconnect,
            cancel_grace_ms=settings.cancel_grace_ms,
            client=settings.client,
            signature=b"",
        )
        to_sign = log_on_bytes(hello.venue, hello.nonce, log_on, settings.service)
        signature = settings.key.sign(to_sign)
        return msgspec.structs.replace(log_on, signature=signature)

    def established(self, accepted: LogOnAccepted) -> None:
        self._retries = None
        assert self.link is not None, "it is the link that calls"
        first_number = self.link.last_received + 1
        missed = self._missed(first_number, self.link.epoch)
        self._epoch = self.link.epoch
        self._listener.established(accepted, first_number, missed)
        self._change(ClientState.READY, missed)
        if self._log_on is not None and not self._log_on.done():
            self._log_on.set_result(None)

    def received(self, received: Received) -> bool:
        return self._listener.received(received)

    def has_room(self) -> None:
        self._listener.has_room()

    def ended(self, link: Link, reason: ClientError) -> None:
        if link is not self.link:
            return
        self._unknown_count += link.unknown_count
        self.link = None
        if self.state is not ClientState.READY:
            # The log-on has failed; whoever waits for it decides what comes next.
            if self._log_on is not None and not self._log_on.done():
                self._log_on.set_exception(reason)
            return
        if self.settings.service is Service.ORDER_ENTRY:
            self._next_report = link.last_received + 1
        if self._is_closing:
            self._finish(None)
        elif self.settings.reconnect is not None and reason.is_passing:
            self._change(ClientState.RECONNECTING, reason, 1)
            self._listener.lost(reason)
            self._retries = asyncio.get_running_loop().create_task(
                self._reconnect(self.settings.reconnect, reason)
            )
        else:
            self._finish(reason)
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(None)

    # Inside.

    def _missed(self, first_number: int, epoch: int) -> ReportsLostError | None:
        """What will not come when reports go on with `first_number` of this epoch."""
        wanted = self._next_report
        if wanted and epoch != self._epoch:
            # Nobody knows up to which number the two histories are one.
            return ReportsLostError(1, first_number - 1, is_other_epoch=True)
        if wanted and first_number > wanted:
            return ReportsLostError(wanted, first_number - wanted)
        return None

    async def _connect(self) -> None:
        """Make one connection and log on. Raises ClientError."""
        loop = asyncio.get_running_loop()
        settings = self.settings
        link = self._make_link(self, self.clock, loop)
        self._log_on = loop.create_future()
        self.link = link
        try:
            async with asyncio.timeout(CONNECT_WAIT_S):
                await loop.create_connection(lambda: link, settings.host, settings.port)
            await self._log_on
        except TimeoutError:
            self.link = None
            raise ConnectError(settings.host, settings.port, "no answer in time") from None
        except OSError as error:
            self.link = None
            reason = error.strerror or error
            raise ConnectError(settings.host, settings.port, reason) from error
        except asyncio.CancelledError:
            self.link = None
            link.abort()
            raise
        finally:
            self._log_on = None

    async def _reconnect(self, backoff: Backoff, reason: ClientError) -> None:
        """Try until it works, until trying makes no sense, or until the attempts are used up."""
        for attempt in range(1, backoff.attempts_max + 1):
            if attempt > 1:
                self._change(ClientState.RECONNECTING, reason, attempt)
            await asyncio.sleep(backoff.pause_s(attempt, self._surroundings.uniform))
            try:
                await self._connect()
            except ClientError as error:
                reason = error
                if not reason.is_passing:
                    break
            else:
                return
        self._retries = None
        self._finish(reason)

    def _finish(self, reason: ClientError | None) -> None:
        self._change(ClientState.CLOSED, reason)
        self._listener.closed(reason)

    def _change(self, state: ClientState, reason: ClientError | None, attempt: int = 0) -> None:
        self.state = state
        self._listener.state_changed(StateChange(state, reason, attempt))
