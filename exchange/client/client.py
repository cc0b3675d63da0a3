"""An asyncio client for order entry and administration.

Requests are synchronous and return a `Ticket` that can be awaited: encoding happens at the call,
and everything that one turn of the event loop sends leaves in one write. Execution reports come
in order through a callback or an iterator. A lost connection is made again with growing pauses;
no request is ever sent again by the client itself.

Units: price 1/10000 of the currency unit, quantity 1/100 contract, amount 1/1000000 of the
currency unit, time nanoseconds since the epoch, UTC.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from exchange.client.connector import Backoff, ClientState, Connector, Settings
from exchange.client.errors import ClientError, NotConnectedError, SendBufferFullError
from exchange.client.images import StateImage
from exchange.client.inbox import Inbox, OnLost, OnReport, OnState
from exchange.client.keys import load_key
from exchange.client.limits import PENDING_MAX
from exchange.client.surroundings import SYSTEM, Surroundings
from exchange.client.tickets import Ticket
from protocol.admin import (
    Account,
    AdminAccepted,
    Deposit,
    Event,
    Halt,
    Instrument,
    Key,
    Participant,
    Resume,
    TickRow,
    Withdraw,
)
from protocol.codes import CancelOnDisconnect, EventKind, OrderType, Role, Side, TimeInForce
from protocol.errors import LocalProtocolError
from protocol.order_entry import (
    CancelOrder,
    NewOrder,
    OrderAccepted,
    OrderCanceled,
    OrderReplaced,
    ReplaceOrder,
)
from protocol.transport import LogOnAccepted
from protocol.wire import Command, VenueReport

__all__ = ["Client", "connect"]

AdminCommand = Participant | Account | Key | Event | Instrument | Deposit | Withdraw | Halt | Resume

_BACKOFF: Final = Backoff()

_TICK_SIZE: Final = 100
"""Default tick of a new instrument: 1/100 of the currency unit."""


async def connect(
    host: str,
    port: int,
    *,
    key: Ed25519PrivateKey | Path | str | bytes,
    session: str,
    cancel_on_disconnect: CancelOnDisconnect = CancelOnDisconnect.NEVER,
    cancel_grace_ms: int = 0,
    keepalive_ms: int = 1_000,
    on_report: OnReport | None = None,
    on_state: OnState | None = None,
    on_lost: OnLost | None = None,
    reconnect: Backoff | None = _BACKOFF,
    client: str = "brier-python",
    surroundings: Surroundings = SYSTEM,
) -> "Client":
    """Connect, log on, and return a client that is ready.

    `key` is a private key, the path of a PEM file or PEM text. `on_report` is called with every
    execution report, in order; `on_state` with every change of the connection; `on_lost` in place
    of reports that the venue no longer has, see `Client.reports`. The first connection is tried
    once; `reconnect` is about later ones, None for never. `surroundings` is for simulators.

    Raises KeyFileError, ConnectError, LogOnRejectedError, ConnectionLostError, TerminatedError.
    """
    settings = Settings(
        host=host,
        port=port,
        key=key if isinstance(key, Ed25519PrivateKey) else load_key(key),
        session=session,
        cancel_on_disconnect=cancel_on_disconnect,
        cancel_grace_ms=cancel_grace_ms,
        keepalive_ms=keepalive_ms,
        client=client,
        reconnect=reconnect,
    )
    inbox = Inbox(on_report, on_state, on_lost)
    connector = Connector(settings, inbox, surroundings)
    inbox.images.ask = connector.ask_for_state
    await connector.open()
    return Client(connector, inbox)


class Client:
    """One session at a venue; made by `connect`, an asynchronous context manager (log-out)."""

    def __init__(self, connector: Connector, inbox: Inbox) -> None:
        self._connector = connector
        self._inbox = inbox
        self._requests = inbox.requests

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(
        self,
        error_class: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def standing(self) -> ClientState:
        """Requests can be sent when it is READY."""
        return self._connector.state

    @property
    def accepted(self) -> LogOnAccepted:
        """The venue's answer to the last log-on: session id, connection, sequence and so on."""
        accepted = self._inbox.accepted
        assert accepted is not None, "a client is made by an accepted log-on"
        return accepted

    @property
    def highest_client_order_id(self) -> int:
        """The highest that was used in the session; the client gives one more to the next order."""
        return self._inbox.highest_client_order_id

    @property
    def venue(self) -> str:
        """Name of the venue, as it said at the greeting."""
        return self._connector.venue

    @property
    def pending_count(self) -> int:
        """Requests without a final outcome."""
        return len(self._requests)

    @property
    def unknown_count(self) -> int:
        """Messages of a newer venue that were skipped because their tag is not known here."""
        return self._connector.unknown_count

    async def close(self) -> None:
        """Log out in good order; the venue gets a bounded time to answer."""
        await self._connector.close()

    # Orders. These send at once; they raise NotConnectedError or SendBufferFullError, and nothing
    # has been sent then.

    def new_order(
        self,
        *,
        instrument_id: int,
        account_id: int,
        side: Side,
        quantity: int,
        price: int = 0,
        order_type: OrderType = OrderType.LIMIT,
        time_in_force: TimeInForce = TimeInForce.GTC,
        expire_time_ns: int = 0,
        client_order_id: int | None = None,
    ) -> Ticket[OrderAccepted]:
        """Enter an order; a market order has no price. Client order ids must increase."""
        order = NewOrder(
            self._client_order_id(client_order_id),
            instrument_id,
            account_id,
            side,
            price,
            quantity,
            order_type,
            time_in_force,
            expire_time_ns,
            self._connector.clock.time_ns(),
        )
        return self._submit_order(order)

    def cancel(self, *, client_order_id: int = 0, order_id: int = 0) -> Ticket[OrderCanceled]:
        """Cancel an order by the client's id or by the venue's."""
        now_ns = self._connector.clock.time_ns()
        return self.submit(CancelOrder(client_order_id, order_id, now_ns))

    def replace(
        self,
        *,
        price: int,
        quantity: int,
        target_client_order_id: int = 0,
        order_id: int = 0,
        client_order_id: int | None = None,
    ) -> Ticket[OrderReplaced]:
        """Give an order a new price and total quantity (fills included) under a new client id.

        The order is named by its present client order id or by the venue's id.
        """
        new_id = self._client_order_id(client_order_id)
        now_ns = self._connector.clock.time_ns()
        return self._submit_order(
            ReplaceOrder(new_id, target_client_order_id, order_id, price, quantity, now_ns)
        )

    def submit(self, command: Command) -> Ticket[Any]:
        """Send any command as it is. ValueError: it is too long for a frame."""
        link = self._connector.link
        if link is None or not link.is_established:
            raise NotConnectedError(f"not sent: the client is {self.standing.value}")
        if link.is_full:
            raise SendBufferFullError("not sent: the send buffer is full")
        if len(self._requests) >= PENDING_MAX:
            raise SendBufferFullError(f"not sent: {PENDING_MAX} requests wait for their outcome")
        sent_ns = time.perf_counter_ns()
        try:
            number = link.send(command)
        except LocalProtocolError as error:
            raise ValueError(str(error)) from error
        ticket: Ticket[Any] = Ticket(number, command, sent_ns)
        self._requests.add(ticket)
        return ticket

    async def drain(self) -> None:
        """Wait until there is room to send. Raises NotConnectedError."""
        while True:
            link = self._connector.link
            if link is None or not link.is_established:
                raise NotConnectedError(f"the client is {self.standing.value}")
            if not link.is_full and len(self._requests) < PENDING_MAX:
                return
            await self._inbox.wait_for_room()

    def reports(self) -> AsyncIterator[VenueReport]:
        """Every execution report from the first call on, in order and once, for one reader.

        It goes on over lost connections and restarts of the venue, without a gap and without a
        duplicate. Only when the venue no longer has the next report, or is in another epoch, since
        its journal was repaired, ReportsLostError is raised, once and in its place, with the state
        image that the client has taken: iterate again, and the reports that follow are those that
        are not in the image.

        A reader that is too slow stops the reading from the socket. After the end of the client
        what is queued still comes; then its reason is raised, if it was not `close`.
        """
        return self._inbox.open_reports(self._connector.release)

    async def state(self) -> StateImage:
        """The session's orders, the participant's positions and balances as of one sequence.

        The image is taken after this call, and over a lost connection when there is the next
        one; the venue makes at most one a second. Reports whose `sequence` is above the image's
        are not in it. Raises NotConnectedError when the client is closed, StateUnavailableError.
        """
        if self.standing is ClientState.CLOSED:
            raise NotConnectedError("the client is closed")
        future: asyncio.Future[StateImage] = asyncio.get_running_loop().create_future()
        self._inbox.images.request(lambda result: _settle(future, result))
        return await future

    # Administration, for keys with the admin role: sends, waits, returns the id that was created
    # or touched. AdminRejectedError when refused.

    async def admin(self, command: AdminCommand) -> int:
        """Send any admin command."""
        await self.drain()
        accepted: AdminAccepted = await self.submit(command)
        return accepted.id

    async def participant(self, name: str) -> int:
        """Admit a firm."""
        return await self.admin(Participant(name))

    async def account(self, participant_id: int, name: str, currency: str) -> int:
        """Open an account of a participant in one currency."""
        return await self.admin(Account(participant_id, name, currency))

    async def key(self, participant_id: int, public_key: bytes, roles: Role) -> int:
        """Give a public key (32 bytes) roles; a known key gets new ones, `Role(0)` revokes it."""
        return await self.admin(Key(participant_id, public_key, roles))

    async def event(
        self, symbol: str, kind: EventKind, title: str, currency: str, channel: int = 1
    ) -> int:
        """List what is traded about; its market data goes out on a channel."""
        return await self.admin(Event(symbol, kind, title, currency, channel))

    async def instrument(
        self,
        event_id: int,
        symbol: str,
        title: str,
        *,
        floor_price: int = 0,
        cap_price: int = 10_000,
        tick_table: Sequence[TickRow] | None = None,
        quantity_step: int = 100,
    ) -> int:
        """List an instrument; without a tick table the tick is 1/100 of the currency unit."""
        rows = [(floor_price, _TICK_SIZE)] if tick_table is None else list(tick_table)
        return await self.admin(
            Instrument(event_id, symbol, title, floor_price, cap_price, rows, quantity_step)
        )

    async def deposit(self, account_id: int, transfer_id: int, amount: int) -> int:
        """Credit an account; `transfer_id` strictly increases per account."""
        return await self.admin(Deposit(account_id, transfer_id, amount))

    async def withdraw(self, account_id: int, transfer_id: int, amount: int) -> int:
        """Debit an account, up to what is available; `transfer_id` as for `deposit`."""
        return await self.admin(Withdraw(account_id, transfer_id, amount))

    async def halt(self, instrument_id: int) -> int:
        """Stop trading in an instrument; cancels still work."""
        return await self.admin(Halt(instrument_id))

    async def resume(self, instrument_id: int) -> int:
        """Open a halted instrument again."""
        return await self.admin(Resume(instrument_id))

    # Inside.

    def _client_order_id(self, given: int | None) -> int:
        return self._inbox.highest_client_order_id + 1 if given is None else given

    def _submit_order(self, command: NewOrder | ReplaceOrder) -> Ticket[Any]:
        """Send, and remember the id only when that has worked."""
        ticket = self.submit(command)
        inbox = self._inbox
        inbox.highest_client_order_id = max(inbox.highest_client_order_id, command.client_order_id)
        return ticket


def _settle(future: asyncio.Future[StateImage], result: StateImage | ClientError) -> None:
    """Give the result of a request to whoever waits for it, if somebody still does."""
    if future.done():
        return
    if isinstance(result, ClientError):
        future.set_exception(result)
    else:
        future.set_result(result)
