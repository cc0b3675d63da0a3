"""Where everything that the venue says ends up: open requests, reports, the user's callbacks.

Reports go to the user in order, each once, over any number of connections. When the venue cannot
go on where the client was, the client takes a state image. Until it has come, reports wait here;
then the user gets the image in place of everything up to it, and after it the reports that are
not in it. Tickets are settled as their answers come, also while reports wait.
"""

import asyncio
from collections.abc import Callable
from typing import Final, cast

from exchange.client.arrivals import ArrivalQueue
from exchange.client.callbacks import call
from exchange.client.connector import StateChange
from exchange.client.errors import ClientError, NotConnectedError, ReportsLostError
from exchange.client.images import STATE_REQUEST_TAG, ImageDesk, StateImage
from exchange.client.limits import PENDING_MAX, REPORTS_HELD_MAX
from exchange.client.tickets import Requests
from protocol.framing import SEQUENCED
from protocol.session import Received
from protocol.transport import (
    LogOnAccepted,
    NotApplied,
    SessionReject,
    StateBalances,
    StateEnd,
    StateOrders,
    StatePositions,
)
from protocol.wire import VenueReport

__all__ = ["Inbox", "OnLost", "OnReport", "OnState"]

OnReport = Callable[[VenueReport], None]
OnState = Callable[[StateChange], None]
OnLost = Callable[[ReportsLostError], None]

_ROOM_AGAIN: Final = PENDING_MAX // 2
"""Who waits for room because too many requests were open is woken when this many are."""


class Inbox:
    """The listener of a connector: tells users what came, and senders when there is room."""

    def __init__(
        self, on_report: OnReport | None, on_state: OnState | None, on_lost: OnLost | None
    ) -> None:
        self.requests = Requests()
        self.images = ImageDesk()
        self.reports: ArrivalQueue[VenueReport] | None = None
        self.accepted: LogOnAccepted | None = None
        self.highest_client_order_id = 0
        self._on_report = on_report
        self._on_state = on_state
        self._on_lost = on_lost
        self._room_waiters: list[asyncio.Future[None]] = []
        self._replay_end = 0
        """Number of the last report from before the log-on."""
        self._held: list[tuple[int, VenueReport | ReportsLostError]] | None = None
        """What waits for an image, by number: the loss it is for, then reports."""
        self._is_ended = False
        self._end: ClientError | None = None

    def open_reports(self, release: Callable[[], None]) -> ArrivalQueue[VenueReport]:
        """Return the queue of reports; they are kept from the first call on."""
        if self.reports is None:
            self.reports = ArrivalQueue(release)
            if self._is_ended:
                self._end_reports()
        return self.reports

    async def wait_for_room(self) -> None:
        """Wait until something has changed about the room to send."""
        waiter = asyncio.get_running_loop().create_future()
        self._room_waiters.append(waiter)
        await waiter

    # Called by the connector.

    def established(
        self, accepted: LogOnAccepted, first_number: int, missed: ReportsLostError | None
    ) -> None:
        self.accepted = accepted
        self.highest_client_order_id = max(
            self.highest_client_order_id, accepted.highest_client_order_id
        )
        self.requests.resumed(accepted.last_client_number)
        self._replay_end = accepted.next_number - 1
        if first_number > self._replay_end:
            self.requests.caught_up(has_hole=missed is not None)
        if missed is not None:
            self._miss(missed)
        self.images.go_on()
        self.has_room()

    def received(self, received: Received) -> bool:
        message = received.message
        if received.frame.kind == SEQUENCED:
            self._take_report(cast("VenueReport", message), received.frame.number)
        elif isinstance(message, SessionReject):
            if message.request_tag == STATE_REQUEST_TAG and not message.number:
                self.images.refused(message)
            else:
                self.requests.refused(message)
        elif isinstance(message, NotApplied):
            self.requests.not_applied(message)
        elif isinstance(message, StateOrders | StatePositions | StateBalances | StateEnd):
            self.images.take(message)
        if self._room_waiters and len(self.requests) <= _ROOM_AGAIN:
            self.has_room()
        return self.reports is None or not self.reports.is_full

    def has_room(self) -> None:
        waiters, self._room_waiters = self._room_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def lost(self, reason: ClientError) -> None:
        self.requests.connection_ended(reason)
        self.images.disconnected()
        self.has_room()

    def closed(self, reason: ClientError | None) -> None:
        self.requests.abandon(reason or "the client was closed")
        self.images.closed(NotConnectedError("the client is closed"))
        self.has_room()
        self._is_ended = True
        self._end = reason
        self._end_reports()

    def state_changed(self, change: StateChange) -> None:
        if self._on_state is not None:
            call(self._on_state, change)

    # Inside.

    def _miss(self, missed: ReportsLostError) -> None:
        """Reports were lost: what comes now waits for an image."""
        if self._held is None:
            self._held = []
            self.images.request(self._take_image)
        if missed.is_other_epoch:
            # What waits is of the epoch before, and its numbers say nothing in this one.
            self._held.clear()
        self._held.append((missed.first_number, missed))

    def _take_report(self, report: VenueReport, number: int) -> None:
        """Give a report to the user and settle what it answers."""
        if self._held is not None:
            self._held.append((number, report))
        else:
            self._give(report)
        self.requests.reported(report)
        if number == self._replay_end:
            self.requests.caught_up(has_hole=False)
        if self._held is not None and len(self._held) > REPORTS_HELD_MAX:
            self._go_on(None)

    def _give(self, item: VenueReport | ReportsLostError) -> None:
        """Give a report to the user, or say in its place that some were lost."""
        if isinstance(item, ReportsLostError):
            if self._on_lost is not None:
                call(self._on_lost, item)
        elif self._on_report is not None:
            call(self._on_report, item)
        if self.reports is not None:
            self.reports.put(item)

    def _take_image(self, result: StateImage | ClientError) -> None:
        """The image for the reports that were lost is here, or will not come."""
        self._go_on(result if isinstance(result, StateImage) else None)

    def _go_on(self, image: StateImage | None) -> None:
        """Give the image in place of all that is in it, then what has waited and is not."""
        held, self._held = self._held, None
        if held is None:
            return
        if image is not None:
            missed, next_number = held[0][1], image.next_number
            assert isinstance(missed, ReportsLostError), "a loss is what the rest waits for"
            first_number, is_other = missed.first_number, missed.is_other_epoch
            count = next_number - first_number
            self._give(ReportsLostError(first_number, count, image, is_other_epoch=is_other))
            held = [(number, item) for number, item in held[1:] if number >= next_number]
        for _, item in held:
            self._give(item)

    def _end_reports(self) -> None:
        if self.reports is not None:
            if self._end is not None:
                self.reports.put(self._end)
            self.reports.end()
