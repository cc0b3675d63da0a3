"""The requests of the standard benchmark, encoded before the run.

A script is a block of SCRIPT_COUNT requests in a fixed mix: 60 % new orders around the middle of a
book, 35 % cancels of own orders, 5 % orders that cross. It is sent again and again; only frame
numbers and client order ids differ each time, and these are written into the block as it is sent
(`tools.generator`), at the offsets that the script gives. The second half of a block is the mirror
image of the first, buys for sells, so that neither side of a book grows.
"""

from array import array
from collections.abc import Iterator
from random import Random
from typing import Final, NamedTuple

import msgspec

from protocol import wire
from protocol.codes import Side
from protocol.framing import HEADER_SIZE, SEQUENCED, encode_frame
from protocol.order_entry import CancelOrder, NewOrder

__all__ = ["ID_BASE", "SCRIPT_COUNT", "Script", "make_script"]

SCRIPT_COUNT: Final = 4_096
"""At least as many as a connection may have in flight: what is unsent is not written over."""

NEW_SHARE: Final = 0.60
CANCEL_SHARE: Final = 0.35

MIDDLE: Final = 5_000
TICK: Final = 100
DEPTH: Final = 10
"""Ticks from the middle in which new orders rest."""

CANCEL_DEPTH_MIN: Final = 4
"""Cancels name orders that are not the next to be filled, so that few of them come too late."""

CONTRACT: Final = 100
CONTRACTS_MAX: Final = 10
CROSSING_CONTRACTS: Final = 33
"""Six resting orders on average: five are left for each that crosses, so books keep their size."""

ID_BASE: Final = 1 << 48
"""Client order ids from here take nine bytes each, whatever they are: a byte 0xcf and 64 bits,
big-endian. Those of the n-th sending of a block, counted from 0, are SCRIPT_COUNT * n higher."""

Request = NewOrder | CancelOrder


class Script(NamedTuple):
    """Encoded requests. Offsets are 32-bit, into `frames`: where each frame begins, the end of the
    last one included, and where the eight bytes of the client order id are in each."""

    frames: bytes
    offsets: "array[int]"
    id_offsets: "array[int]"


def make_script(account_id: int, instrument_count: int, seed: int) -> Script:
    """The requests of one session."""
    half = list(_mix(account_id, instrument_count, Random(seed)))
    requests = half + [_mirror(request) for request in half]
    frames = bytearray()
    offsets, id_offsets = array("I", [0]), array("I")
    for request in requests:
        payload = wire.encode(request)
        id_bytes = request.client_order_id.to_bytes(8, "big")
        assert payload.count(id_bytes) == 1, "the id is found by its bytes"
        id_offsets.append(len(frames) + HEADER_SIZE + payload.index(id_bytes))
        frames += encode_frame(SEQUENCED, 0, payload)
        offsets.append(len(frames))
    return Script(bytes(frames), offsets, id_offsets)


def _mix(account_id: int, instrument_count: int, source: Random) -> Iterator[Request]:
    """Half of a block; the instruments take turns, so that all get the same."""
    own: list[int] = []
    new_turn = crossing_turn = source.randrange(instrument_count)
    for index in range(SCRIPT_COUNT // 2):
        client_order_id = ID_BASE + index
        kind = source.random()
        if kind < CANCEL_SHARE and own:
            yield CancelOrder(own.pop(source.randrange(len(own))))
            continue
        side = source.choice((Side.BUY, Side.SELL))
        away = -TICK if side is Side.BUY else TICK
        if kind < CANCEL_SHARE + NEW_SHARE:
            new_turn = (new_turn + 1) % instrument_count
            depth = source.randint(1, DEPTH)
            price = MIDDLE + away * depth
            quantity = source.randint(1, CONTRACTS_MAX) * CONTRACT
            if depth >= CANCEL_DEPTH_MIN:
                own.append(client_order_id)
            yield NewOrder(client_order_id, new_turn + 1, account_id, side, price, quantity)
        else:
            crossing_turn = (crossing_turn + 1) % instrument_count
            price = MIDDLE - away * DEPTH
            quantity = CROSSING_CONTRACTS * CONTRACT
            yield NewOrder(client_order_id, crossing_turn + 1, account_id, side, price, quantity)


def _mirror(request: Request) -> Request:
    """The same on the other side of the book, with ids that follow."""
    client_order_id = request.client_order_id + SCRIPT_COUNT // 2
    if isinstance(request, CancelOrder):
        return CancelOrder(client_order_id)
    return msgspec.structs.replace(
        request,
        client_order_id=client_order_id,
        side=Side.SELL if request.side == Side.BUY else Side.BUY,
        price=2 * MIDDLE - request.price,
    )
