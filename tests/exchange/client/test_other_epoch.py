"""A venue whose journal was repaired greets with another epoch: the client never goes on in the new
history as if it were the old one, whatever numbers that has, and tells its user."""

import asyncio
from typing import Any, Final

import pytest

from exchange.client import (
    Client,
    ClientState,
    OutcomeUnknownError,
    ReportsLostError,
    StateImage,
)
from protocol.codes import RejectCode
from protocol.order_entry import OrderExpired
from protocol.transport import (
    LogOnRejected,
    SessionReject,
    StateBalances,
    StateEnd,
    StateOrders,
    StatePositions,
)
from protocol.wire import VenueReport
from tests.exchange.client.peer import NOW, Peer
from tests.exchange.client.trading import QUICK, States, send_unanswered
from tests.exchange.loops import on_both_loops, until

STATE_TAG: Final = 4
ORDER_ROW: Final = (1_001, 1, 3, 2, 1, 5_000, 100, 0, 1, 0)


def expired(number: int, history: int = 1) -> OrderExpired:
    """A report that says which one it is, and of which history."""
    return OrderExpired(number, NOW + history, number, 1_000 + number, 100, 0, 1)


def image_of(next_number: int) -> list[Any]:
    """The parts of an image with the reports below a number."""
    orders = StateOrders(90, [ORDER_ROW])
    return [
        orders,
        StatePositions(90, [(2, 3, -400)]),
        StateBalances(90, [(2, 10**9, 250)]),
        StateEnd(90, NOW, next_number, 5, 9, 1, 1, 1),
    ]


class Told:
    """What the user of one client was told, by callbacks."""

    def __init__(self) -> None:
        self.states = States()
        self.items: list[VenueReport | ReportsLostError] = []

    async def client(self, peer: Peer) -> Client:
        hooks = {"on_report": self.items.append, "on_lost": self.items.append}
        return await peer.client(on_state=self.states, reconnect=QUICK, **hooks)

    @property
    def losses(self) -> list[tuple[int, int, int, bool]]:
        """Of each loss: first number, count, next number of its image (0: none), other epoch."""
        return [
            (item.first_number, item.count, _next_number(item.image), item.is_other_epoch)
            for item in self.items
            if isinstance(item, ReportsLostError)
        ]


def _next_number(image: StateImage | None) -> int:
    return 0 if image is None else image.next_number


async def come_back(peer: Peer, told: Told) -> Any:
    """Lose the connection and wait until the client is ready again; why it says so."""
    ready = asyncio.ensure_future(told.states.next(ClientState.READY))
    peer.line.close()
    return (await ready).reason


async def hear(told: Told, count: int) -> None:
    """Wait until the user was told so much."""
    await until(lambda: len(told.items) >= count)


async def begin(peer: Peer, told: Told, count: int) -> Client:
    """A client with reports of the first history."""
    client = await told.client(peer)
    peer.line.send(*[expired(number) for number in range(1, count + 1)])
    await hear(told, count)
    return client


def repair(peer: Peer, kept: int, count: int) -> None:
    """Some reports are kept, and so many of another history come behind them."""
    peer.epoch += 1
    new = [expired(number, 2) for number in range(kept + 1, kept + count + 1)]
    peer.history = [*peer.history[:kept], *new]


@on_both_loops
@pytest.mark.parametrize(
    ("kept", "count", "ring_start"),
    [
        pytest.param(2, 5, 1, id="the wanted number is another report"),
        pytest.param(2, 2, 1, id="the wanted number is the head"),
        pytest.param(2, 0, 1, id="the wanted number is ahead"),
        pytest.param(0, 0, 1, id="nothing is left"),
        pytest.param(2, 9, 8, id="the wanted number is too old"),
        pytest.param(4, 0, 1, id="nothing was lost"),
    ],
)
async def test_the_user_is_told_whatever_the_numbers_are(
    kept: int, count: int, ring_start: int
) -> None:
    told = Told()
    async with Peer() as peer:
        client = await begin(peer, told, 4)
        repair(peer, kept, count)
        peer.ring_start = ring_start
        head = kept + count + 1
        # One report is in the image, the next one comes before its end and is not.
        after = [expired(head, 2), expired(head + 1, 2)]
        peer.state_parts = lambda: [*after, *image_of(head + 1)]
        reason = await come_back(peer, told)
        assert isinstance(reason, ReportsLostError)
        assert (reason.first_number, reason.count, reason.image) == (1, head - 1, None)
        assert reason.is_other_epoch
        assert "the venue is in another epoch" in str(reason)
        await hear(told, 6)
        assert told.losses == [(1, head, head + 1, True)]
        assert told.items[:4] == [expired(number) for number in range(1, 5)]
        assert told.items[5:] == [expired(head + 1, 2)]
        assert [log_on.next_number for log_on in peer.log_ons] == [0, 0]
        # From here on it is one epoch, and the stream goes on.
        assert await come_back(peer, told) is None
        assert peer.log_ons[-1].next_number == head + 2
        peer.line.send(expired(head + 2, 2))
        await hear(told, 7)
        assert told.items[6:] == [expired(head + 2, 2)]
        await client.close()


@on_both_loops
async def test_the_epoch_is_kept_only_when_the_log_on_was_accepted() -> None:
    told = Told()
    async with Peer() as peer:
        client = await begin(peer, told, 2)
        repair(peer, 1, 4)
        peer.state_parts = lambda: image_of(6)
        peer.rejected = LogOnRejected(RejectCode.BACK_PRESSURE, 0, 0, "")
        ready = asyncio.ensure_future(told.states.next(ClientState.READY))
        peer.line.close()
        await until(lambda: len(peer.log_ons) >= 2)
        peer.rejected = None
        await ready
        await hear(told, 3)
        assert told.losses == [(1, 5, 6, True)]
        assert {log_on.next_number for log_on in peer.log_ons} == {0}
        await client.close()


@on_both_loops
async def test_open_requests_stay_unknown() -> None:
    told = Told()
    async with Peer() as peer:
        client = await begin(peer, told, 2)
        [ticket] = await send_unanswered(peer, client, 1)
        repair(peer, 1, 4)
        await come_back(peer, told)
        with pytest.raises(OutcomeUnknownError, match="among reports that were lost"):
            await ticket.resolution()
        assert client.pending_count == 0
        await client.close()


@on_both_loops
async def test_reports_that_wait_for_an_image_do_not_outlive_their_epoch() -> None:
    """The first image never comes, and what waits for it is of the history that is lost."""
    told = Told()
    async with Peer() as peer:
        client = await begin(peer, told, 2)
        peer.report(expired(3))
        peer.ring_start = 4
        assert not (await come_back(peer, told)).is_other_epoch
        peer.line.send(*[expired(number) for number in range(4, 9)])
        repair(peer, 3, 1)
        await come_back(peer, told)
        assert len(told.items) == 2, "reports wait for the image"
        # The connection is lost once more, and this time only reports of this epoch.
        peer.report(expired(5, 2))
        peer.ring_start = 6
        peer.state_parts = lambda: image_of(6)
        await come_back(peer, told)
        peer.line.send(expired(6, 2))
        await hear(told, 4)
        assert told.losses == [(1, 5, 6, True)]
        assert told.items[3:] == [expired(6, 2)]
        assert peer.log_ons[-1].next_number == 5
        await client.close()


@on_both_loops
async def test_it_is_told_once_when_no_report_is_left() -> None:
    told = Told()
    async with Peer() as peer:
        client = await begin(peer, told, 2)
        repair(peer, 0, 0)
        peer.state_parts = lambda: [*image_of(1), expired(1, 2)]
        await come_back(peer, told)
        await hear(told, 4)
        assert told.losses == [(1, 0, 1, True)]
        assert told.items[3:] == [expired(1, 2)]
        await client.close()


@on_both_loops
async def test_it_is_told_without_an_image_all_the_same() -> None:
    told = Told()
    async with Peer() as peer:
        client = await begin(peer, told, 2)
        reports = client.reports()
        repair(peer, 0, 0)
        refusal = SessionReject(0, STATE_TAG, RejectCode.UNKNOWN_TAG, 0, 0, "no such thing")
        peer.state_parts = lambda: [expired(1, 2), refusal]
        await come_back(peer, told)
        with pytest.raises(ReportsLostError, match="0 execution reports from number 1") as lost:
            await anext(reports)
        assert lost.value.is_other_epoch
        assert await anext(reports) == expired(1, 2)
        assert told.losses == [(1, 0, 0, True)]
        await client.close()


@on_both_loops
async def test_a_client_without_reports_has_lost_what_it_knew_of_the_state() -> None:
    told = Told()
    async with Peer() as peer:
        peer.report(expired(1), expired(2))
        client = await told.client(peer)
        repair(peer, 1, 1)
        peer.state_parts = lambda: image_of(3)
        await come_back(peer, told)
        await hear(told, 1)
        assert told.losses == [(1, 2, 3, True)]
        await client.close()
