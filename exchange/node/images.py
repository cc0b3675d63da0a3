"""State images: what a session has, as of one command, for a client that cannot replay it all.

Taken at a batch boundary as packed words, which costs a copy and no object per row, and made into
messages piece by piece as the socket takes them. An image must not leave before the boundary that
it was taken at is durable; whoever takes it sees to that.
"""

import struct
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from exchange.core.engine import Engine
from protocol.transport import ROWS_MAX, StateBalances, StateEnd, StateOrders, StatePositions

__all__ = ["Image", "StateMessage", "take_image"]

StateMessage = StateOrders | StatePositions | StateBalances | StateEnd

ORDER_ROW: Final = struct.Struct("<10q")
POSITION_ROW: Final = struct.Struct("<3q")
BALANCE_ROW: Final = struct.Struct("<3q")


class Image(NamedTuple):
    """One state image; the rows are packed, in the order of the messages' fields."""

    end: StateEnd
    orders: bytes
    positions: bytes
    balances: bytes

    @property
    def size(self) -> int:
        """Bytes of memory that it takes, nearly."""
        return len(self.orders) + len(self.positions) + len(self.balances)

    def messages(self) -> Iterator[StateMessage]:
        """What to send, in order; the last one is the end."""
        sequence = self.end.sequence
        for rows in _rows(ORDER_ROW, self.orders):
            yield StateOrders(sequence, rows)
        for rows in _rows(POSITION_ROW, self.positions):
            yield StatePositions(sequence, rows)
        for rows in _rows(BALANCE_ROW, self.balances):
            yield StateBalances(sequence, rows)
        yield self.end


def take_image(engine: Engine, session_id: int) -> Image:
    """The image of a session as of the engine's last command; no batch may be open."""
    assert engine.batch_count == 0, "an image is of a batch boundary"
    session = engine.session(session_id)
    orders = engine.session_orders(session_id)
    positions = engine.participant_positions(session.participant_id)
    balances = engine.participant_balances(session.participant_id)
    end = StateEnd(
        sequence=engine.sequence,
        time_ns=engine.time_ns,
        next_number=session.next_number,
        last_client_number=session.last_client_number,
        highest_client_order_id=session.highest_client_order_id,
        order_count=len(orders) // ORDER_ROW.size,
        position_count=len(positions) // POSITION_ROW.size,
        balance_count=len(balances) // BALANCE_ROW.size,
    )
    return Image(end, orders, positions, balances)


def _rows(row: struct.Struct, packed: bytes) -> Iterator[list[Any]]:
    """Rows as tuples, as many at a time as one message may have."""
    step = ROWS_MAX * row.size
    for start in range(0, len(packed), step):
        yield list(row.iter_unpack(packed[start : start + step]))
