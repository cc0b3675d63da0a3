"""What a client is given in place of the machine's clock, chance and sockets is what it uses."""

from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from exchange.client import ClientState, Consumer
from exchange.client.sockets import GroupSocket
from exchange.client.surroundings import SYSTEM
from protocol.order_entry import CancelOrder, NewOrder, ReplaceOrder
from tests.exchange.client.peer import Peer
from tests.exchange.client.trading import BUY, QUICK, States
from tests.exchange.loops import on_both_loops


@dataclass
class OddClock:
    """A clock that nobody else has."""

    now_ns: int = 4_000_000_007
    readings: list[int] = field(default_factory=list)

    def time_ns(self) -> int:
        self.now_ns += 1
        self.readings.append(self.now_ns)
        return self.now_ns

    def monotonic_ns(self) -> int:
        return SYSTEM.clock.monotonic_ns()


@on_both_loops
async def test_clock_nonces_and_pauses_are_those_that_were_given() -> None:
    clock, ranges = OddClock(), []

    def uniform(low: float, high: float) -> float:
        ranges.append((low, high))
        return 0.0

    surroundings = replace(
        SYSTEM, clock=clock, random_bytes=lambda size: bytes([7]) * size, uniform=uniform
    )
    states = States()
    async with Peer() as peer:
        options: dict[str, Any] = {
            "reconnect": QUICK,
            "on_state": states,
            "surroundings": surroundings,
        }
        client = await peer.client(**options)
        assert peer.log_ons[0].client_nonce == bytes([7]) * 32
        await client.new_order(**BUY)
        await client.cancel(client_order_id=1)
        await client.replace(price=1, quantity=100, target_client_order_id=1)
        kinds = (NewOrder, CancelOrder, ReplaceOrder)
        sent = [one.client_time_ns for one in peer.commands if isinstance(one, kinds)]
        assert len(sent) == 3
        assert set(sent) <= set(clock.readings)
        ready = states.next(ClientState.READY)
        peer.line.abort()
        await ready
        assert ranges == [(0.5, 1.0)]
        await client.close()


@on_both_loops
async def test_a_consumer_hears_through_what_it_was_given() -> None:
    asked: list[tuple[str, int, str]] = []

    def hear(group: str, port: int, interface: str) -> GroupSocket:
        asked.append((group, port, interface))
        raise OSError("no such interface")

    options: dict[str, Any] = {"channels": [3], "surroundings": replace(SYSTEM, hear=hear)}
    consumer = Consumer("239.255.66.1", 9_100, interface="10.1.2.3", **options)
    with pytest.raises(OSError, match="no such interface"):
        consumer.open()
    assert asked == [("239.255.66.3", 9_100, "10.1.2.3")]
