"""State images: what a session's orders, positions and balances are as of one sequence number.

An image comes in parts, and reports of later commands may come between them; the last part says
how many rows there are and which report is the first that is not in the image. The venue makes
one image at a time and not more than one a second, so requests are gathered here: whoever asks
while an image is under way gets the next one, which is then one image for all of them. A request
outlives its connection: it is made again on the next one.
"""

import asyncio
from collections.abc import Callable
from typing import Final, NamedTuple

from exchange.client.errors import ClientError, StateUnavailableError
from exchange.client.limits import STATE_REQUESTS_MAX
from protocol.transport import (
    SessionReject,
    StateBalances,
    StateEnd,
    StateOrders,
    StatePositions,
    StateRequest,
)

__all__ = ["STATE_REQUEST_TAG", "Balance", "ImageDesk", "OpenOrder", "Position", "StateImage"]

STATE_REQUEST_TAG: Final = StateRequest.__struct_config__.tag
_NS_PER_S: Final = 1_000_000_000


class OpenOrder(NamedTuple):
    """A resting order of the session."""

    order_id: int
    client_order_id: int
    instrument_id: int
    account_id: int
    side: int
    price: int
    leaves_quantity: int
    cumulative_quantity: int
    time_in_force: int
    expire_time_ns: int


class Position(NamedTuple):
    """A position that is not 0; `position` is a signed quantity."""

    account_id: int
    instrument_id: int
    position: int


class Balance(NamedTuple):
    """Cash of an account and what its orders and positions require of it."""

    account_id: int
    cash: int
    requirement: int


class StateImage(NamedTuple):
    """A session and its participant as of `sequence`.

    A report whose `sequence` is not above it is in the image; they are those with a number below
    `next_number`. Orders are the session's, in order of entry; positions and balances are of all
    accounts of the participant.
    """

    sequence: int
    time_ns: int
    next_number: int
    last_client_number: int
    highest_client_order_id: int
    orders: list[OpenOrder]
    positions: list[Position]
    balances: list[Balance]


StatePart = StateOrders | StatePositions | StateBalances | StateEnd
OnImage = Callable[[StateImage | ClientError], None]


class ImageDesk:
    """The requests for images of one client; `ask` sends one, False when it cannot."""

    def __init__(self) -> None:
        self.ask: Callable[[], bool] = lambda: False
        """Set by the owner once there is a connection to ask on."""
        self._asked: list[OnImage] = []
        """Who gets the image that is under way."""
        self._waiting: list[OnImage] = []
        """Who gets the one after it."""
        self._request_count = 0
        self._timer: asyncio.TimerHandle | None = None
        self._start()

    @property
    def row_count(self) -> int:
        """Rows of the image that is under way."""
        return len(self._orders) + len(self._positions) + len(self._balances)

    def request(self, on_image: OnImage) -> None:
        """Have `on_image` called once with an image that is taken after this call, or an error."""
        self._waiting.append(on_image)
        self.go_on()

    def go_on(self) -> None:
        """Ask, when somebody waits and no image is under way; also after a log-on."""
        if self._waiting and not self._asked and self._timer is None and self.ask():
            self._asked, self._waiting = self._waiting, []
            self._request_count += 1
            self._start()

    def take(self, part: StatePart) -> None:
        """Take a part of an image; the last one ends it."""
        if not self._asked:
            return
        if isinstance(part, StateOrders):
            self._orders += [OpenOrder(*row) for row in part.rows]
        elif isinstance(part, StatePositions):
            self._positions += [Position(*row) for row in part.rows]
        elif isinstance(part, StateBalances):
            self._balances += [Balance(*row) for row in part.rows]
        self._sequences[part.sequence] = None
        if isinstance(part, StateEnd):
            self._finish(self._image(part))

    def refused(self, reject: SessionReject) -> None:
        """The venue refused the request: ask again when it says that this can help."""
        if reject.retry_after_ns and self._request_count < STATE_REQUESTS_MAX:
            self.disconnected()
            wait_s = reject.retry_after_ns / _NS_PER_S
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._again)
        else:
            self._finish(StateUnavailableError(reject.text, reject.code, reject.retry_after_ns))

    def disconnected(self) -> None:
        """The connection is gone: what was under way has to be asked for again."""
        self._waiting = self._asked + self._waiting
        self._asked = []
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def closed(self, reason: ClientError) -> None:
        """There will be no other connection."""
        self.disconnected()
        waiting, self._waiting = self._waiting, []
        for on_image in waiting:
            on_image(reason)

    # Inside.

    def _start(self) -> None:
        self._orders: list[OpenOrder] = []
        self._positions: list[Position] = []
        self._balances: list[Balance] = []
        self._sequences: dict[int, None] = {}

    def _again(self) -> None:
        self._timer = None
        self.go_on()

    def _image(self, end: StateEnd) -> StateImage | StateUnavailableError:
        """Put the parts together, if they are all there and of one moment."""
        counts = (len(self._orders), len(self._positions), len(self._balances))
        said = (end.order_count, end.position_count, end.balance_count)
        if counts != said or len(self._sequences) != 1:
            return StateUnavailableError(
                f"parts with {counts} rows of {len(self._sequences)} sequences came, not {said}"
            )
        return StateImage(
            end.sequence,
            end.time_ns,
            end.next_number,
            end.last_client_number,
            end.highest_client_order_id,
            self._orders,
            self._positions,
            self._balances,
        )

    def _finish(self, result: StateImage | ClientError) -> None:
        asked, self._asked = self._asked, []
        self._request_count = 0
        self._start()
        for on_image in asked:
            on_image(result)
        self.go_on()
