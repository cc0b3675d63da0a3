"""What tests of lost connections share: an order, short pauses, states to wait for."""

import asyncio
from typing import Any, Final

from exchange.client import Backoff, Client, ClientState, StateChange, Ticket
from protocol.codes import Side
from protocol.order_entry import NewOrder, OrderAccepted
from tests.exchange.client.peer import Peer, silence

__all__ = ["BUY", "QUICK", "States", "send_unanswered"]

QUICK: Final = Backoff(initial_ms=1, maximum_ms=4, attempts_max=5)
BUY: Final[dict[str, Any]] = {
    "instrument_id": 3,
    "account_id": 2,
    "side": Side.BUY,
    "price": 5_000,
    "quantity": 100,
}


class States:
    """Records what `on_state` is told and lets a test wait for a state."""

    def __init__(self) -> None:
        self.changes: list[StateChange] = []
        self._waiters: list[tuple[ClientState, asyncio.Future[StateChange]]] = []

    def __call__(self, change: StateChange) -> None:
        self.changes.append(change)
        for state, waiter in self._waiters:
            if state is change.state and not waiter.done():
                waiter.set_result(change)

    async def next(self, state: ClientState) -> StateChange:
        waiter: asyncio.Future[StateChange] = asyncio.get_running_loop().create_future()
        self._waiters.append((state, waiter))
        return await waiter

    @property
    def seen(self) -> list[ClientState]:
        return [change.state for change in self.changes]


async def send_unanswered(peer: Peer, client: Client, count: int) -> list[Ticket[OrderAccepted]]:
    """Send orders that arrive at the peer and are not answered."""
    peer.answers[NewOrder] = silence
    tickets = [client.new_order(**BUY) for _ in range(count)]
    before = len(peer.commands)
    await peer.line.until(lambda: len(peer.commands) == before + count)
    return tickets
