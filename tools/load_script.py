"""Requests that are encoded before the run: sending them costs the generator a slice of bytes.

A script is a block of BLOCK_COUNT requests in the mix of `bench/gen_workload.py`: 60 % new orders
around the middle of a book, 35 % cancels of own orders, 5 % orders that cross. It is sent again and
again; only frame numbers and client order ids must differ each time. All of them are changed by
one addition: the block is read as one little-endian integer, and a constant with a one at the right
byte of each field, times the number of the repetition, is added. Every second repetition uses the
mirror image, buys for sells, so that neither side of a book grows.
"""

from bisect import bisect_right
from collections.abc import Iterator
from random import Random
from typing import Final

from protocol import wire
from protocol.codes import Side
from protocol.framing import HEADER_SIZE, SEQUENCED, encode_frame
from protocol.order_entry import CancelOrder, NewOrder

__all__ = ["BLOCK_COUNT", "REPETITIONS_MAX", "Script"]

BLOCK_COUNT: Final = 2_048
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
"""Client order ids from here take nine bytes each, whatever they are."""
ID_STEP: Final = 1 << 16
"""From one repetition to the next. The digit of 2^16 is a byte of its own, and so is that of 2^24:
an addition there carries into no neighbor."""
REPETITIONS_MAX: Final = 1 << 16

_NUMBER_OFFSET: Final = 4
"""Of the frame number in the frame, 8 bytes little-endian."""
_DIGIT_16: Final = 5
_DIGIT_24: Final = 4
"""Of the digits in a client order id, 8 bytes big-endian."""

assert BLOCK_COUNT <= ID_STEP


class Script:
    """The endless requests of one session."""

    def __init__(self, account_id: int, instrument_count: int, seed: int) -> None:
        messages = list(_mix(account_id, instrument_count, Random(seed)))
        self._blocks = (_Block(messages), _Block([_mirror(message) for message in messages]))
        self._repetition = 0
        self._index = 0
        self._content = self._blocks[0].content(0)

    def take(self, count: int) -> bytes:
        """The frames of the next `count` requests, fewer at the end of a block."""
        if self._index == BLOCK_COUNT:
            self._repetition += 1
            assert self._repetition < REPETITIONS_MAX, "hundreds of millions of requests"
            self._index = 0
            self._content = self._block.content(self._repetition)
        offsets = self._block.offsets
        first, self._index = self._index, min(self._index + count, BLOCK_COUNT)
        return self._content[offsets[first] : offsets[self._index]]

    def count(self, frames: bytes) -> int:
        """How many requests the frames are that `take` has just given."""
        offsets = self._block.offsets
        start = offsets[self._index] - len(frames)
        return self._index - (bisect_right(offsets, start) - 1)

    @property
    def _block(self) -> "_Block":
        return self._blocks[self._repetition % 2]


class _Block:
    """Encoded messages, and what to add to make them those of a repetition."""

    def __init__(self, messages: list[NewOrder | CancelOrder]) -> None:
        self.offsets = [0]
        content = bytearray()
        numbers, digits_16, digits_24 = [], [], []
        for index, message in enumerate(messages):
            payload = wire.encode(message)
            frame = encode_frame(SEQUENCED, index + 1, payload)
            id_bytes = message.client_order_id.to_bytes(8, "big")
            assert payload.count(id_bytes) == 1, "the id is found by its bytes"
            id_offset = len(content) + HEADER_SIZE + payload.index(id_bytes)
            numbers.append(len(content) + _NUMBER_OFFSET)
            digits_16.append(id_offset + _DIGIT_16)
            digits_24.append(id_offset + _DIGIT_24)
            content += frame
            self.offsets.append(len(content))
        self._size = len(content)
        self._content = int.from_bytes(content, "little")
        self._numbers = _ones(numbers, self._size)
        self._digits_16 = _ones(digits_16, self._size)
        self._digits_24 = _ones(digits_24, self._size)

    def content(self, repetition: int) -> bytes:
        """The frames as they are sent the `repetition`-th time, counted from 0."""
        high, low = divmod(repetition, 256)
        changed = (
            self._content
            + self._numbers * (repetition * BLOCK_COUNT)
            + self._digits_16 * low
            + self._digits_24 * high
        )
        return changed.to_bytes(self._size, "little")


def _ones(offsets: list[int], size: int) -> int:
    """An integer of `size` bytes with a one in the byte at each offset."""
    content = bytearray(size)
    for offset in offsets:
        content[offset] = 1
    return int.from_bytes(content, "little")


def _mix(
    account_id: int, instrument_count: int, source: Random
) -> Iterator[NewOrder | CancelOrder]:
    """The requests of one block; the instruments take turns, so that all get the same."""
    own: list[int] = []
    new_turn = crossing_turn = source.randrange(instrument_count)
    for index in range(BLOCK_COUNT):
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


def _mirror(message: NewOrder | CancelOrder) -> NewOrder | CancelOrder:
    """The same on the other side of the book."""
    if isinstance(message, CancelOrder):
        return message
    return NewOrder(
        message.client_order_id,
        message.instrument_id,
        message.account_id,
        Side.SELL if message.side == Side.BUY else Side.BUY,
        2 * MIDDLE - message.price,
        message.quantity,
    )
