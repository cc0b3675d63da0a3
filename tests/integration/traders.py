"""Sessions that keep orders in flight, and remember what they sent and received."""

import random
import selectors
import time
from collections.abc import Callable
from typing import Any, Final

from protocol import wire
from protocol.codes import CancelOnDisconnect, OrderType, Side, TimeInForce
from protocol.framing import SEQUENCED, encode_frame
from protocol.order_entry import CancelOrder, NewOrder, ReplaceOrder
from protocol.session import State
from tests.integration.market import CENT, CONTRACT, Firm
from tests.integration.peer import WAIT_S, Peer
from tests.integration.replica import Replica

__all__ = ["INSTRUMENT_COUNT", "Trader", "make_traders", "trade"]

IN_FLIGHT: Final = 64
INSTRUMENT_COUNT: Final = 3
HOUR_NS: Final = 3_600_000_000_000
SENT_TWICE_MAX: Final = 8
ACKNOWLEDGED_MAX: Final = 20_000
"""More than any test asks for at a time."""


class Trader:
    """One session over all rounds: what it sent (number n at index n - 1) and what it received."""

    def __init__(self, firm: Firm, mode: CancelOnDisconnect, seed: str) -> None:
        self.random = random.Random(seed)
        self.firm = firm
        self.mode = mode
        self.session_id = 0
        self.sent: list[Any] = []
        self.last_order_id = 0
        self.compared_count = 0  # commands in the journal that were compared with `sent`
        self.unanswered: set[int] = set()
        self.acknowledged_count = 0  # in this round
        self.lost_count = 0  # commands that a kill kept out of the journal
        self.unheard_count = 0  # commands that it left in the journal without an answer
        self.received: dict[int, bytes] = {}  # reports by number, over all connections
        self.resumed_count = 0  # reports that a connection before had not delivered
        self.peer: Peer | None = None

    def log_on(self, address: tuple[str, int], replica: Replica) -> None:
        """Log on with the next report wanted, check the answer against the journal, and send again
        what is not in it."""
        peer = self.peer = Peer(address)
        wanted = len(self.received) + 1
        accepted = peer.log_on(
            self.firm.key, "desk", cancel_on_disconnect=self.mode, next_number=wanted
        )
        assert peer.first_number == wanted, "the stream goes on where it was cut"
        self.resumed_count += accepted.next_number - wanted
        self.session_id = accepted.session_id
        journaled = replica.commands.get(self.session_id, {})
        last = accepted.last_client_number
        assert last == max(journaled, default=0), "last_client_number is not that of the journal"
        assert accepted.highest_client_order_id <= self.last_order_id
        repeated_from = max(last - self.random.randrange(SENT_TWICE_MAX), 0)
        for number, message in enumerate(self.sent[repeated_from:last], repeated_from + 1):
            peer.send_bytes(encode_frame(SEQUENCED, number, wire.encode(message)))
        self.unanswered.clear()
        for number, message in enumerate(self.sent[last:], last + 1):
            assert peer.put(message) == number
            self.unanswered.add(number)
        self.acknowledged_count = 0

    def fill_up(self) -> None:
        """Send until so many are in flight, unless the venue has said its last word."""
        assert self.peer is not None
        is_closed = self.peer.machine.state is not State.ESTABLISHED
        while len(self.unanswered) < IN_FLIGHT and not is_closed:
            self.put(self._next_message())
        self.peer.flush()

    def put(self, message: Any) -> int:
        """Queue one more command for the next flush; its number."""
        assert self.peer is not None
        self.sent.append(message)
        number = self.peer.put(message)
        assert number == len(self.sent), "the session numbers as we do"
        self.unanswered.add(number)
        return number

    def read(self) -> None:
        """One read from the socket."""
        assert self.peer is not None
        messages = self.peer.read()
        self._keep_reports()
        for message in messages:
            number = getattr(message, "number", 0)
            if number in self.unanswered:
                self.unanswered.remove(number)
                self.acknowledged_count += 1

    def _keep_reports(self) -> None:
        """Every report follows the one before, over all connections."""
        assert self.peer is not None
        for number in range(len(self.received) + 1, self.peer.machine.last_received + 1):
            self.received[number] = self.peer.reports[number]

    def leave(self, replica: Replica) -> None:
        """Read what had left the venue; all of it must follow from the journal."""
        assert self.peer is not None
        while self.peer.is_open:
            self.read()
        self.peer.close()
        assert not self.peer.notices, f"the gateway refused: {self.peer.notices[0]}"
        connection = max(c for s, c in replica.log_ons if s == self.session_id)
        assert self.peer.accepted_bytes == replica.log_ons[self.session_id, connection]
        expected = replica.reports.get(self.session_id, {})
        for number, payload in self.peer.reports.items():
            assert expected.get(number) == payload, f"report {number} is not the journal's"
        journaled = replica.commands.get(self.session_id, {})
        for number in range(self.compared_count + 1, len(journaled) + 1):
            sent = wire.encode(self.sent[number - 1])
            assert journaled.get(number) == sent, f"command {number} is not what was sent"
        self.compared_count = len(journaled)
        self.lost_count += len(self.sent) - len(journaled)
        self.unheard_count += len(self.unanswered) - (len(self.sent) - len(journaled))

    def _next_message(self) -> Any:
        draw = self.random.random()
        if draw < 0.1:
            return CancelOrder(self._recent_order_id())
        target = self._recent_order_id()
        self.last_order_id += 1
        price = self.random.randrange(45, 56) * CENT
        quantity = self.random.randrange(1, 6) * CONTRACT
        if draw < 0.2:
            return ReplaceOrder(self.last_order_id, target, 0, price, quantity)
        order: dict[str, Any] = {"price": price, "quantity": quantity}
        if draw < 0.25:
            order |= {"time_in_force": TimeInForce.IOC, "quantity": 40 * CONTRACT}
        elif draw < 0.3:
            order |= {"time_in_force": TimeInForce.FOK}
        elif draw < 0.33:
            order |= {"order_type": OrderType.MARKET, "price": 0, "time_in_force": TimeInForce.IOC}
        elif draw < 0.37:
            expire_time_ns = time.time_ns() + HOUR_NS
            order |= {"time_in_force": TimeInForce.GTD, "expire_time_ns": expire_time_ns}
        elif draw < 0.4:
            order |= {"quantity": 0}
        return NewOrder(
            self.last_order_id,
            self.random.randint(1, INSTRUMENT_COUNT),
            self.firm.account_id,
            self.random.choice((Side.BUY, Side.SELL)),
            **order,
        )

    def _recent_order_id(self) -> int:
        return self.random.randint(max(self.last_order_id - 100, 1), self.last_order_id + 1)


def make_traders(firms: list[Firm], modes: list[CancelOnDisconnect], seed: str) -> list[Trader]:
    """One for each firm."""
    pairs = zip(firms, modes, strict=True)
    return [Trader(firm, mode, f"{seed}/{firm.participant_id}") for firm, mode in pairs]


def trade(
    traders: list[Trader],
    acknowledged_goal: int | None = None,
    meanwhile: Callable[[], None] = lambda: None,
) -> None:
    """Keep orders in flight until so many have been acknowledged, with more under way then, or
    until the venue has closed every connection, which it must do soon."""
    bound = sum(trader.acknowledged_count for trader in traders) + ACKNOWLEDGED_MAX
    peers = {trader.peer: trader for trader in traders if trader.peer is not None}
    with selectors.DefaultSelector() as selector:
        for peer, trader in peers.items():
            selector.register(peer.socket, selectors.EVENT_READ, trader)
            trader.fill_up()
        while selector.get_map():
            acknowledged_count = sum(trader.acknowledged_count for trader in traders)
            if acknowledged_goal is not None and acknowledged_count >= acknowledged_goal:
                return
            assert acknowledged_count < bound, "the venue goes on and on"
            ready = selector.select(WAIT_S)
            meanwhile()
            assert ready, "the venue does not answer any more"
            for key, _ in ready:
                key.data.read()
                key.data.fill_up()
                if not key.data.peer.is_open:
                    selector.unregister(key.fileobj)
    assert acknowledged_goal is None, "the venue closed before that"
