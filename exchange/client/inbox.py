"""Where everything that the venue says ends up: open requests, reports, the user's callbacks."""

import asyncio
from collections.abc import Callable
from typing import Final, TypeVar, cast

from exchange.client.connector import StateChange
from exchange.client.errors import ClientError, ReportsLostError
from exchange.client.limits import PENDING_MAX
from exchange.client.reports import ReportQueue
from exchange.client.tickets import Requests
from protocol.framing import SEQUENCED
from protocol.session import Received
from protocol.transport import LogOnAccepted, NotApplied, SessionReject, VenueHeartbeat
from protocol.wire import VenueReport

__all__ = ["Inbox", "OnReport", "OnState"]

T = TypeVar("T")
OnReport = Callable[[VenueReport], None]
OnState = Callable[[StateChange], None]

_ROOM_AGAIN: Final = PENDING_MAX // 2
"""Who waits for room because too many requests were open is woken when this many are."""


class Inbox:
    """The listener of a connector: tells users what came, and senders when there is room."""

    def __init__(self, on_report: OnReport | None, on_state: OnState | None) -> None:
        self.requests = Requests()
        self.reports: ReportQueue | None = None
        self.accepted: LogOnAccepted | None = None
        self.highest_client_order_id = 0
        self._on_report = on_report
        self._on_state = on_state
        self._room_waiters: list[asyncio.Future[None]] = []
        self._is_ended = False
        self._end: ClientError | None = None

    def open_reports(self, release: Callable[[], None]) -> ReportQueue:
        """Return the queue of reports; they are kept from the first call on."""
        if self.reports is None:
            self.reports = ReportQueue(release)
            if self._is_ended:
                self._end_reports()
        return self.reports

    async def wait_for_room(self) -> None:
        """Wait until something has changed about the room to send."""
        waiter = asyncio.get_running_loop().create_future()
        self._room_waiters.append(waiter)
        await waiter

    # Called by the connector.

    def established(self, accepted: LogOnAccepted, missed: ReportsLostError | None) -> None:
        self.accepted = accepted
        self.highest_client_order_id = max(
            self.highest_client_order_id, accepted.highest_client_order_id
        )
        if missed is not None and self.reports is not None:
            self.reports.put(missed)
        self.requests.resumed(accepted.last_client_number, has_hole=missed is not None)
        self.has_room()

    def received(self, received: Received) -> bool:
        is_ready = True
        message = received.message
        if received.frame.kind == SEQUENCED:
            is_ready = self._take_report(cast("VenueReport", message))
        elif isinstance(message, SessionReject):
            self.requests.refused(message)
        elif isinstance(message, NotApplied):
            self.requests.not_applied(message)
        elif isinstance(message, VenueHeartbeat):
            self.requests.caught_up()  # The venue beats only when it has nothing else to send.
        if self._room_waiters and len(self.requests) <= _ROOM_AGAIN:
            self.has_room()
        return is_ready

    def has_room(self) -> None:
        waiters, self._room_waiters = self._room_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def lost(self, reason: ClientError) -> None:
        self.requests.connection_ended(reason)
        self.has_room()

    def closed(self, reason: ClientError | None) -> None:
        self.requests.abandon(reason or "the client was closed")
        self.has_room()
        self._is_ended = True
        self._end = reason
        self._end_reports()

    def state_changed(self, change: StateChange) -> None:
        if self._on_state is not None:
            _call(self._on_state, change)

    # Inside.

    def _take_report(self, report: VenueReport) -> bool:
        """Give a report to everybody; False: its reader is too slow."""
        if self._on_report is not None:
            _call(self._on_report, report)
        self.requests.reported(report)
        return self.reports is None or self.reports.put(report)

    def _end_reports(self) -> None:
        if self.reports is not None:
            if self._end is not None:
                self.reports.put(self._end)
            self.reports.end()


def _call(callback: Callable[[T], None], argument: T) -> None:
    """Call the user's code; what it raises goes to the loop's handler and ends nothing here."""
    try:
        callback(argument)
    except Exception as error:  # noqa: BLE001 - the user's code may raise anything
        context = {"message": f"{callback!r} raised", "exception": error}
        asyncio.get_running_loop().call_exception_handler(context)
