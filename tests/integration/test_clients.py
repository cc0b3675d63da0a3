"""The clients of this project against a venue that is killed under them: every report once, every
request with an outcome, books that are the venue's, without a word from the user.
"""

import asyncio
import random
from collections import Counter
from pathlib import Path
from typing import Any, Final

import pytest

from exchange.client import (
    Backoff,
    Client,
    ClientError,
    ClientState,
    Consumer,
    NotConnectedError,
    NotReceivedError,
    SendBufferFullError,
    StateChange,
    Ticket,
    connect,
)
from protocol.codes import Side
from protocol.order_entry import OrderAccepted, OrderCanceled, OrderFilled
from tests.integration.market import CENT, CONTRACT, Firm, make_market, make_venue, take_port
from tests.integration.peer import WAIT_S
from tests.integration.replica import Replica
from tools.venue_process import VenueProcess
from tools.venue_settings import change_settings

ROUNDS: Final = 6
ANSWERS_PER_ROUND: Final = 150
IN_FLIGHT: Final = 32
RECONNECT: Final = Backoff(initial_ms=10, maximum_ms=50, attempts_max=1_000)


class Maker:
    """A client that trades and keeps what it is told; its books of its own come from that alone."""

    def __init__(self, firm: Firm, seed: int) -> None:
        self.firm = firm
        self.random = random.Random(seed)
        self.reports: list[Any] = []
        self.lost: list[Any] = []
        self.tickets: list[Ticket[Any]] = []
        self.ready = asyncio.Event()
        self.client: Client

    async def connect(self, address: tuple[str, int]) -> None:
        self.client = await connect(
            *address,
            key=self.firm.key,
            session="maker",
            on_report=self.reports.append,
            on_state=self._state_changed,
            on_lost=self.lost.append,
            reconnect=RECONNECT,
        )
        self.ready.set()

    def _state_changed(self, change: StateChange) -> None:
        if change.state is ClientState.READY:
            self.ready.set()
        else:
            self.ready.clear()

    async def trade(self, count: int) -> None:
        """Keep requests in flight until so many more have an outcome."""
        for _ in range(count):
            while self.client.pending_count < IN_FLIGHT and self.ready.is_set():
                try:
                    self._request()
                except (NotConnectedError, SendBufferFullError):
                    break
            if self.tickets:
                await asyncio.wait({asyncio.ensure_future(outcome(self.tickets[-1]))})

    def _request(self) -> None:
        price = self.random.randrange(45, 56) * CENT
        side = self.random.choice((Side.BUY, Side.SELL))
        quantity = self.random.randrange(1, 5) * CONTRACT
        account_id = self.firm.account_id
        if self.tickets and self.random.random() < 0.3:
            old = self.random.choice(self.tickets).client_order_id
            self.client.cancel(client_order_id=old)
            return
        self.tickets.append(
            self.client.new_order(
                instrument_id=1, account_id=account_id, side=side, price=price, quantity=quantity
            )
        )

    def open_orders(self) -> dict[int, int]:
        """Order id to what is open of it, from the reports alone."""
        leaves: dict[int, int] = {}
        for report in self.reports:
            if isinstance(report, OrderAccepted):
                assert report.order_id not in leaves
                leaves[report.order_id] = report.quantity
            elif isinstance(report, OrderFilled):
                assert leaves[report.order_id] == report.leaves_quantity + report.quantity
                leaves[report.order_id] = report.leaves_quantity
            elif isinstance(report, OrderCanceled):
                assert leaves.pop(report.order_id) == report.canceled_quantity
        return {order_id: quantity for order_id, quantity in leaves.items() if quantity}


async def outcome(ticket: Ticket[Any]) -> str:
    """What became of a request."""
    try:
        await ticket
    except ClientError as error:
        return type(error).__name__
    return "accepted"


async def check(maker: Maker) -> Counter[str]:
    """Streams, tickets and the state image agree; the outcomes of the orders."""
    outcomes = Counter([await outcome(ticket) for ticket in maker.tickets])
    image = await maker.client.state()
    assert not maker.lost
    assert len(maker.reports) == image.next_number - 1, "every report, once"
    accepted = {r.client_order_id for r in maker.reports if isinstance(r, OrderAccepted)}
    for ticket in maker.tickets:
        was_received = await outcome(ticket) != NotReceivedError.__name__
        assert (ticket.client_order_id in accepted) is was_received
    assert {order.order_id: order.leaves_quantity for order in image.orders} == maker.open_orders()
    return outcomes


async def trade_and_kill(venue: VenueProcess, firms: list[Firm], seed: int) -> Counter[str]:
    dice = random.Random(seed)
    makers = [Maker(firm, seed + index) for index, firm in enumerate(firms)]
    for maker in makers:
        await maker.connect(venue.address)
    for _ in range(ROUNDS):
        trading = [asyncio.ensure_future(m.trade(ANSWERS_PER_ROUND)) for m in makers]
        async with asyncio.timeout(WAIT_S):
            await asyncio.wait(trading, return_when=asyncio.FIRST_COMPLETED)
        if dice.random() < 0.7:
            await asyncio.to_thread(venue.kill)
            await asyncio.to_thread(venue.start)
        async with asyncio.timeout(WAIT_S):
            await asyncio.gather(*trading, *(maker.ready.wait() for maker in makers))
    outcomes: Counter[str] = Counter()
    for maker in makers:
        async with asyncio.timeout(WAIT_S):
            outcomes += await check(maker)
            await maker.client.close()
    return outcomes


@pytest.mark.asyncio
async def test_clients_and_consumer_over_kills(tmp_path: Path) -> None:
    seed = random.randrange(10**9)
    print(f"seed {seed}")
    with make_venue(tmp_path / "venue") as venue:
        # The clients come back to where they were.
        change_settings(venue.folder / "exchange.toml", {"order_entry.port": take_port()})
        await asyncio.to_thread(venue.start)
        async with Consumer(*venue.market_data) as consumer:
            firms = await asyncio.to_thread(make_market, venue, ["ada", "bob"])
            outcomes = await trade_and_kill(venue, firms, seed)
            stopped = await asyncio.to_thread(venue.stop)
            assert outcomes["accepted"] > ANSWERS_PER_ROUND
            replica = Replica(venue.folder)
            replica.catch_up()
            async with asyncio.timeout(WAIT_S):
                await consumer.wait_for(dict(replica.engine.channels())[1])
            if consumer.gap_count == 0:  # A small receive buffer may drop some.
                assert consumer.public_digest() == stopped["public_digest"]
            assert not consumer.dropped_count or consumer.gap_count
