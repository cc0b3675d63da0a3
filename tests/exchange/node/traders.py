"""A client that trades at random, for the tests that look at a venue over a long time.

It resumes its stream with every log-on, so it must get every report, once.
"""

from random import Random
from typing import Any

from protocol.framing import SEQUENCED, FrameReader
from protocol.order_entry import CancelOrder, NewOrder, ReplaceOrder
from protocol.session import State
from protocol.transport import LogOnAccepted, StateRequest
from tests.exchange.node.world import Peer, World


class Trader:
    """Trades at random over crashes and keeps every report it ever got, as bytes: all of them, from
    number 1 on."""

    def __init__(self, world: World, key: int, dice: Random) -> None:
        self.reports: dict[int, bytes] = {}
        self.session = 0
        self.highest_sent = 0
        self._world = world
        self._key = key
        self._dice = dice
        self._order_id = 0
        self._peer: Peer | None = None

    def act(self) -> None:
        if self._peer is None or self._peer.transport.is_gone:
            self._connect()
        elif self._dice.random() < 0.02:
            self._peer.transport.lose()
        else:
            self._listen(self._peer)
            if self._peer.machine.state is State.ESTABLISHED:
                if self._dice.random() < 0.1:
                    self._peer.send(StateRequest())
                for _ in range(self._dice.randrange(6)):
                    self.highest_sent = self._peer.send(self._command())

    def forget_connection(self) -> None:
        """The venue has crashed; what had arrived by then is kept."""
        if self._peer is not None:
            self._listen(self._peer)
        self._peer = None

    def _connect(self) -> None:
        self._peer = self._world.connect(self._key, "s")
        mode = self._dice.randrange(4)
        self._peer.send_log_on(
            next_number=len(self.reports) + 1,
            cancel_on_disconnect=mode,
            cancel_grace_ms=50,
        )

    def catch_up(self) -> None:
        """Log on anew, and get all that there is by now."""
        self._connect()
        self._world.finish()
        assert self._peer is not None
        self._listen(self._peer)

    def _listen(self, peer: Peer) -> None:
        """Keep the numbered frames as they came, then let the machine check them."""
        reader = FrameReader(65_535)
        reader.feed(bytes(peer.transport.sent))
        while (frame := reader.next_frame()) is not None:
            if frame.kind == SEQUENCED:
                assert frame.number == len(self.reports) + 1, "every number comes, and comes once"
                self.reports[frame.number] = frame.payload
        for message in peer.read():
            if isinstance(message, LogOnAccepted):
                self.session = message.session_id
                # What was sent and is not in the journal is lost, and may be sent anew.
                assert message.last_client_number <= self.highest_sent
                self._order_id = max(self._order_id, message.highest_client_order_id)

    def _command(self) -> Any:
        self._order_id += 1
        dice, order_id = self._dice, self._order_id
        kind = dice.randrange(10)
        price = 100 * dice.randrange(40, 60)
        quantity = 100 * dice.randrange(1, 5)
        if kind == 0:
            return CancelOrder(dice.randrange(1, order_id + 1))
        if kind == 1:
            return ReplaceOrder(order_id, dice.randrange(1, order_id + 1), 0, price, quantity)
        side, account = dice.randrange(1, 3), self._key - 1
        return NewOrder(
            order_id, 1, account, side, price, quantity, 1, dice.choice((1, 1, 1, 3, 4))
        )
