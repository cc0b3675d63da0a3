"""Requests that wait for their outcome.

A `Ticket` is what a request gives back at once; it can be awaited any number of times, or never,
and costs a future only when somebody waits. `Requests` finds the ticket that a report answers by
the number of the client's frame, which every answer carries.

When the connection ends, the outcome of every open request is unknown. The next log-on settles
it: a number above the venue's last journaled one never arrived. The outcome of one up to it is
among the reports from before the log-on, which the venue sends again; if it is not there when they
have all come, the gateway refused it. Nothing is ever sent again.
"""

import asyncio
from collections.abc import Generator
from time import perf_counter_ns
from typing import Any, Final, Generic, TypeVar

from exchange.client.errors import (
    AdminRejectedError,
    CancelRejectedError,
    ClientError,
    NotReceivedError,
    OrderRejectedError,
    OutcomeUnknownError,
    RequestRejectedError,
    SessionRejectError,
)
from protocol.admin import AdminRejected
from protocol.order_entry import CancelRejected, OrderRejected
from protocol.transport import NotApplied, SessionReject
from protocol.wire import Command, VenueReport

__all__ = ["Requests", "Ticket"]

T = TypeVar("T", bound=VenueReport)


class Ticket(Generic[T]):
    """A request that was sent: `await` it for the report that answers it.

    `number` is the frame's; `sent_ns` and `acknowledged_ns` (0 until then) are readings of
    `time.perf_counter_ns`.
    """

    __slots__ = (
        "_outcome",
        "_waiters",
        "acknowledged_ns",
        "command",
        "is_final",
        "number",
        "sent_ns",
    )

    def __init__(self, number: int, command: Command, sent_ns: int) -> None:
        self.number = number
        self.command = command
        self.sent_ns = sent_ns
        self.acknowledged_ns = 0
        self.is_final = False
        """Whether the outcome can still change (from unknown to known)."""
        self._outcome: T | ClientError | None = None
        self._waiters: list[asyncio.Future[None]] | None = None

    @property
    def client_order_id(self) -> int:
        """The client order id of the command, 0 when it has none."""
        client_order_id: int = getattr(self.command, "client_order_id", 0)
        return client_order_id

    @property
    def is_done(self) -> bool:
        """Whether there is an outcome, be it "unknown"."""
        return self._outcome is not None

    def result(self) -> T:
        """Return the report or raise the error; only when `is_done`."""
        assert self._outcome is not None, "the ticket has no outcome yet"
        if isinstance(self._outcome, ClientError):
            raise self._outcome
        return self._outcome

    def __await__(self) -> Generator[Any, None, T]:
        """Wait for the answer.

        Raises RequestRejectedError (its subclasses), OutcomeUnknownError or NotReceivedError.
        """
        if self._outcome is None:
            yield from self._settlement().__await__()
        return self.result()

    async def resolution(self) -> T:
        """Wait, over a lost connection too, until the outcome is as known as it will ever be.

        Raises as `await`, OutcomeUnknownError only when nothing more will be learned.
        """
        while not self.is_final:
            await self._settlement()
        return self.result()

    def _settlement(self) -> asyncio.Future[None]:
        """A future for the next change of the outcome."""
        future = asyncio.get_running_loop().create_future()
        if self._waiters is None:
            self._waiters = []
        self._waiters.append(future)
        return future

    def acknowledge(self, answer: T | ClientError) -> None:
        """The venue has answered (the client calls this)."""
        self.acknowledged_ns = perf_counter_ns()
        self.settle(answer)

    def settle(self, outcome: T | ClientError, is_final: bool = True) -> None:
        """Set the outcome (the client calls this) and wake whoever waits."""
        self._outcome = outcome
        self.is_final = is_final
        if self._waiters is not None:
            for future in self._waiters:
                if not future.done():
                    future.set_result(None)
            self._waiters = None


_REJECTIONS: Final[dict[type, type[RequestRejectedError]]] = {
    OrderRejected: OrderRejectedError,
    CancelRejected: CancelRejectedError,
    AdminRejected: AdminRejectedError,
}
"""Reports that refuse a request -> the error that they become."""

_LOST: Final = "its answer went down with an earlier connection"
_HOLE: Final = "its answer is among reports that were lost"


class Requests:
    """The open requests of a session, by frame number, in the order in which they were sent."""

    def __init__(self) -> None:
        self._open: dict[int, Ticket[Any]] = {}

    def __len__(self) -> int:
        return len(self._open)

    def add(self, ticket: Ticket[Any]) -> None:
        """Remember a request that was sent."""
        self._open[ticket.number] = ticket

    def reported(self, report: VenueReport) -> None:
        """Settle the request that a report answers; many answer none."""
        # Fills and expiries have no number, and 0 says that no request of ours asked for it.
        number = getattr(report, "number", 0)
        ticket = self._open.pop(number, None) if number else None
        if ticket is None:
            return
        if isinstance(report, OrderRejected | CancelRejected | AdminRejected):
            error = _REJECTIONS[type(report)]
            ticket.acknowledge(error(ticket.command, report, report.limit))
        else:
            ticket.acknowledge(report)

    def refused(self, reject: SessionReject) -> None:
        """Settle the request that the gateway refused."""
        ticket = self._open.pop(reject.number, None)
        if ticket is not None:
            ticket.acknowledge(SessionRejectError(ticket.command, reject))

    def not_applied(self, notice: NotApplied) -> None:
        """Settle the requests that the venue has never seen."""
        first, count = notice.from_number, notice.count
        for number in [number for number in self._open if first <= number < first + count]:
            self._not_received(number)

    def connection_ended(self, reason: ClientError) -> None:
        """The outcome of everything that is open is unknown until the next log-on."""
        for ticket in self._open.values():
            ticket.settle(OutcomeUnknownError(ticket, None, reason), is_final=False)

    def resumed(self, last_client_number: int) -> None:
        """A log-on says how far the venue has come with requests of earlier connections."""
        for number, ticket in list(self._open.items()):
            if number > last_client_number:
                self._not_received(number)
            else:
                ticket.settle(OutcomeUnknownError(ticket, True, _LOST), is_final=False)

    def caught_up(self, has_hole: bool) -> None:
        """Every report from before the log-on has come, unless the stream has a hole.

        All that the venue decides is reported, so a request without a report was refused by the
        gateway, and that answer is lost; after a hole nobody can tell.
        """
        for number in [number for number, ticket in self._open.items() if ticket.is_done]:
            if has_hole:
                ticket = self._open.pop(number)
                ticket.settle(OutcomeUnknownError(ticket, True, _HOLE))
            else:
                self._not_received(number)

    def abandon(self, reason: object) -> None:
        """There will be no other connection: what is open stays unknown."""
        for ticket in self._open.values():
            ticket.settle(OutcomeUnknownError(ticket, None, reason))
        self._open.clear()

    def _not_received(self, number: int) -> None:
        ticket = self._open.pop(number)
        ticket.settle(NotReceivedError(ticket))
