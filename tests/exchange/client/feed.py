"""A venue's public side for tests: random market data, cut into packets, and what it must lead to.

The truth is kept as simply as can be: a list of orders for each instrument, in order of entry.
"""

import hashlib
import random
import struct
from dataclasses import dataclass, field
from typing import Any, Final

from protocol.market_data import (
    EventDefinition,
    InstrumentDefinition,
    InstrumentStatus,
    MarketDataMessage,
    OrderAdded,
    OrderDeleted,
    OrderExecuted,
    OrderReduced,
    OrderReplaced,
    SnapshotBegin,
    SnapshotEnd,
    SnapshotInstrument,
    SnapshotOrders,
    Trade,
)
from protocol.packets import (
    DATA,
    FIRST,
    HEARTBEAT,
    LAST,
    PACKET_SIZE_MAX,
    SNAPSHOT,
    Block,
    Packet,
    encode_packet,
)
from protocol.wire import encode

__all__ = ["EPOCH", "NOW", "Feed", "Truth", "digest", "heartbeat"]

EPOCH: Final = 77 << 20
NOW: Final = 1_700_000_000_000_000_000
OPEN: Final = 1
HALTED: Final = 2
BUY: Final = 1
WHOLE: Final = FIRST | LAST
_HEADER_SIZE: Final = 32
_BLOCK_HEAD_SIZE: Final = 3


@dataclass
class Resting:
    """An order of the truth."""

    order_id: int
    side: int
    price: int
    quantity: int


@dataclass
class Truth:
    """One instrument: its phase and its orders in order of entry."""

    phase: int = OPEN
    orders: list[Resting] = field(default_factory=list)

    def side(self, side: int) -> list[tuple[int, int, int]]:
        """Order id, price and quantity, best price first and in priority."""
        sign = -1 if side == BUY else 1
        orders = sorted(
            (order for order in self.orders if order.side == side),
            key=lambda order: sign * order.price,
        )
        return [(order.order_id, order.price, order.quantity) for order in orders]


def digest(truths: dict[int, Truth]) -> str:
    """The digest as the page of records describes it."""
    words = []
    for instrument_id, truth in sorted(truths.items()):
        buys, sells = truth.side(1), truth.side(2)
        words += [instrument_id, truth.phase, len(buys), len(sells)]
        for order in buys + sells:
            words += order
    data = struct.pack(f"<{len(words)}q", *words)
    return hashlib.blake2b(data, digest_size=32).hexdigest()


def heartbeat(number: int, channel: int = 1, epoch: int = EPOCH) -> bytes:
    return encode_packet(Packet(HEARTBEAT, channel, epoch, number, NOW, []))


class Feed:
    """One channel. `messages[n - 1]` is the message with number n, with its flags."""

    def __init__(self, seed: int = 0, channel: int = 1, epoch: int = EPOCH) -> None:
        self.channel = channel
        self.epoch = epoch
        self.messages: list[tuple[int, MarketDataMessage]] = []
        self.truths: dict[int, Truth] = {}
        self.digests = {1: digest({})}
        """Next number to the digest of the books there, for every number between commands."""
        self._rng = random.Random(seed)
        self._order_id = 1_000 * channel
        self._trade_id = 0

    @property
    def next_number(self) -> int:
        return len(self.messages) + 1

    def say(self, *messages: MarketDataMessage) -> None:
        """The public messages of one command."""
        for index, message in enumerate(messages, 1):
            flags = FIRST * (index == 1) | LAST * (index == len(messages))
            self.messages.append((flags, message))
        self.digests[self.next_number] = digest(self.truths)

    def list_event(self, event_id: int) -> None:
        name = f"E{event_id}"
        head = (self.next_number, NOW, event_id)
        self.say(EventDefinition(*head, name, 1, "text", "USD", self.channel))

    def list_instrument(self, instrument_id: int) -> None:
        self.truths[instrument_id] = Truth()
        head = (self.next_number, NOW, instrument_id)
        name, table = f"I{instrument_id}", [(0, 100)]
        self.say(InstrumentDefinition(*head, 1, name, "text", 0, 10_000, table, 100, 1))

    def random_commands(self, count: int) -> None:
        """Say what random commands on the instruments of now lead to."""
        doings = [self._add] * 6 + [self._delete, self._reduce, self._replace, self._trade] * 2
        for _ in range(count):
            instrument_id = self._rng.choice(list(self.truths))
            self._rng.choice([*doings, self._halt])(instrument_id, self.truths[instrument_id])

    def pack(self, first: int = 1, end: int = 0, cut: int = 0) -> list[bytes]:
        """Packets with the messages from one number up to another (0: all), at most `cut` each;
        0 leaves it to chance."""
        packets = []
        end = end or self.next_number
        while first < end:
            limit = cut or self._rng.randrange(1, 12)
            blocks: list[Block] = []
            size = _HEADER_SIZE
            for flags, message in self.messages[first - 1 : min(end - 1, first - 1 + limit)]:
                block = Block(flags, encode(message))
                size += _BLOCK_HEAD_SIZE + len(block.payload)
                if size > PACKET_SIZE_MAX:
                    break
                blocks.append(block)
            packets.append(
                encode_packet(Packet(DATA, self.channel, self.epoch, first, NOW, blocks))
            )
            first += len(blocks)
        return packets

    # Snapshots: blocks, and packets of them with numbers of their own.

    def begin(self, *, number: int = 0, with_orders: int = 1) -> Block:
        """The beginning of a snapshot as of a number, 0: as of now."""
        number = number or self.next_number
        listed = [message for _, message in self.messages[: number - 1]]
        counts = [
            sum(isinstance(message, kind) for message in listed)
            for kind in (EventDefinition, InstrumentDefinition)
        ]
        message = SnapshotBegin(number - 1, NOW, 1, number, with_orders, *counts)
        return Block(WHOLE, encode(message))

    def events(self) -> list[Block]:
        """Every event."""
        return [
            Block(WHOLE, encode(message))
            for _, message in self.messages
            if isinstance(message, EventDefinition)
        ]

    def unit(self, instrument_id: int) -> list[Block]:
        """An instrument as of now."""
        [definition] = [
            message
            for _, message in self.messages
            if isinstance(message, InstrumentDefinition) and message.instrument_id == instrument_id
        ]
        truth, number = self.truths[instrument_id], self.next_number
        buys, sells = truth.side(1), truth.side(2)
        counts = (len(buys), len(sells))
        head = (number - 1, NOW, instrument_id)
        what = (truth.phase, *counts, 0, 0, 0, 0)
        messages: list[Any] = [definition, SnapshotInstrument(*head, number, *what)]
        for side, rows in ((1, buys), (2, sells)):
            for start in range(0, len(rows), 5):
                messages.append(SnapshotOrders(*head, side, rows[start : start + 5]))
        return [
            Block(FIRST * (index == 1) | LAST * (index == len(messages)), encode(message))
            for index, message in enumerate(messages, 1)
        ]

    def end(self) -> Block:
        number = self.next_number
        return Block(WHOLE, encode(SnapshotEnd(number - 1, NOW, 1, number, 0)))

    def snapshot(self, first: int = 1, cut: int = 3) -> list[bytes]:
        """All of it as of now."""
        units = [block for instrument_id in self.truths for block in self.unit(instrument_id)]
        blocks = [self.begin(), *self.events(), *units, self.end()]
        return self.snapshot_packets(blocks, first, cut)

    def snapshot_packets(self, blocks: list[Block], first: int = 1, cut: int = 3) -> list[bytes]:
        """Packets with so many blocks each."""
        return [
            encode_packet(
                Packet(
                    SNAPSHOT,
                    self.channel,
                    self.epoch,
                    first + start,
                    NOW,
                    blocks[start : start + cut],
                )
            )
            for start in range(0, len(blocks), cut)
        ]

    def heartbeat(self) -> bytes:
        return heartbeat(self.next_number, self.channel, self.epoch)

    # What commands do. A command that finds nothing to do adds an order.

    def _add(self, instrument_id: int, truth: Truth) -> None:
        rng = self._rng
        self._order_id += 1
        side = rng.choice((1, 2))
        price = rng.randrange(4_000, 5_000, 100) + (side - 1) * 1_000
        order = Resting(self._order_id, side, price, rng.randrange(1, 9) * 100)
        truth.orders.append(order)
        what = (order.order_id, side, price, order.quantity)
        self.say(OrderAdded(1, NOW, instrument_id, *what))

    def _delete(self, instrument_id: int, truth: Truth) -> None:
        if not truth.orders:
            return self._add(instrument_id, truth)
        order = truth.orders.pop(self._rng.randrange(len(truth.orders)))
        return self.say(OrderDeleted(1, NOW, instrument_id, order.order_id))

    def _reduce(self, instrument_id: int, truth: Truth) -> None:
        large = [order for order in truth.orders if order.quantity > 100]
        if not large:
            return self._add(instrument_id, truth)
        order = self._rng.choice(large)
        order.quantity -= 100
        return self.say(OrderReduced(1, NOW, instrument_id, order.order_id, order.quantity))

    def _replace(self, instrument_id: int, truth: Truth) -> None:
        if not truth.orders:
            return self._add(instrument_id, truth)
        order = truth.orders.pop(self._rng.randrange(len(truth.orders)))
        order.price += self._rng.choice((-100, 0, 100))
        order.quantity += 100
        truth.orders.append(order)
        what = (order.order_id, order.price, order.quantity)
        return self.say(OrderReplaced(1, NOW, instrument_id, *what))

    def _trade(self, instrument_id: int, truth: Truth) -> None:
        """An incoming order takes up to three resting ones, whole but for the last."""
        side = self._rng.choice((1, 2))
        taken = truth.side(side)[: self._rng.randrange(1, 4)]
        if not taken:
            return self._add(instrument_id, truth)
        messages: list[MarketDataMessage] = []
        for order_id, price, quantity in taken:
            [order] = [order for order in truth.orders if order.order_id == order_id]
            self._trade_id += 1
            leaves = 100 if order_id == taken[-1][0] and quantity > 100 else 0
            order.quantity = leaves
            ids = (instrument_id, order_id, self._trade_id)
            messages.append(OrderExecuted(1, NOW, *ids, quantity - leaves, leaves))
            what = (price, quantity - leaves, 3 - side)
            messages.append(Trade(1, NOW, instrument_id, self._trade_id, *what, 100))
        truth.orders = [order for order in truth.orders if order.quantity]
        return self.say(*messages)

    def _halt(self, instrument_id: int, truth: Truth) -> None:
        truth.phase = HALTED if truth.phase == OPEN else OPEN
        self.say(InstrumentStatus(1, NOW, instrument_id, truth.phase))
