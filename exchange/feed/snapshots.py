"""Snapshots: a channel's lists and books as packets, made while they are sent.

A snapshot is a `Plan`, from which packets are taken step by step: its beginning, the events, a unit
for each instrument, its end. A unit is made when its turn comes, so it may be newer than the
beginning, never older; a consumer skips what a unit has already. The blocks of a unit are kept
and used by every snapshot while the book is the same, or for a tenth of a second
when it is not; beginnings are shared as long, so that many who come at once cost one. Only packets
are made for each snapshot. Pages: protocol/spec/market_data.md, protocol/spec/feed.md.
"""

from collections.abc import Collection, Iterator
from typing import Final, NamedTuple

from msgspec import Struct

from exchange.feed.market import ChannelState, EventState, InstrumentState, Market
from protocol.books import OrderRow
from protocol.codes import Side
from protocol.market_data import (
    SNAPSHOT_ROWS_MAX,
    SnapshotBegin,
    SnapshotEnd,
    SnapshotInstrument,
    SnapshotOrders,
)
from protocol.packets import (
    BLOCK_HEAD,
    FIRST,
    LAST,
    PACKET_HEADER,
    PACKET_MAGIC,
    PACKET_SIZE_MAX,
    PACKET_VERSION,
    SNAPSHOT,
)
from protocol.wire import encode

__all__ = ["Plan", "Snapshots"]

SHARED_NS: Final = 100_000_000
"""For so long a unit is used although its book has changed, and a beginning although the channel
has gone on: the live part of whoever uses them then begins so much earlier."""

STEP_SIZE: Final = 16 * 1024
"""Bytes of packets after which a step ends: some 50 us, but for a large book that must be made."""

_WHOLE: Final = FIRST | LAST


class _Begin(NamedTuple):
    """As of when a snapshot begins."""

    channel: int
    made_ns: int
    sequence: int
    time_ns: int
    next_number: int


class _Unit(NamedTuple):
    """An instrument as of a sequence and a number of its channel; `orders` are blocks."""

    made_ns: int
    sequence: int
    next_number: int
    counts: tuple[int, int]
    """Buys and sells."""
    definition: bytes
    state: bytes
    orders: tuple[bytes, ...]

    def blocks(self, with_orders: bool) -> Iterator[bytes]:
        """The blocks of its messages; the first and the last one say so."""
        yield _block(self.definition, FIRST)
        if not with_orders or not self.orders:
            yield _block(self.state, LAST)
            return
        yield _block(self.state, 0)
        yield from self.orders


class _Selection(NamedTuple):
    """What a snapshot is of, in order of listing."""

    events: tuple[EventState, ...]
    instruments: tuple[InstrumentState, ...]


class Plan:
    """One snapshot. Behind it the channel's messages go on with `next_number`; `snapshot` is the
    number of its first message, `number` that of the next one."""

    __slots__ = (
        "_begin",
        "_blocks",
        "_now_ns",
        "_order_count",
        "_selection",
        "_snapshots",
        "_waiting",
        "_with_orders",
        "channel",
        "is_done",
        "next_number",
        "number",
        "snapshot",
    )

    def __init__(
        self,
        snapshots: "Snapshots",
        selection: _Selection,
        begin: _Begin,
        number: int,
        with_orders: bool,
    ) -> None:
        self.channel = begin.channel
        self.next_number = begin.next_number
        self.snapshot = self.number = number
        self.is_done = False
        self._snapshots = snapshots
        self._begin = begin
        self._with_orders = with_orders
        self._selection = selection
        self._now_ns = 0
        self._order_count = 0
        self._blocks = self._all_blocks()
        self._waiting: bytes | None = None

    def step(self, now_ns: int, size: int = STEP_SIZE) -> list[bytes]:
        """The next packets, of about that many bytes; fewer, or none, when it is done then."""
        self._now_ns = now_ns
        packets: list[bytes] = []
        while size > 0 and not self.is_done:
            packet = self._packet()
            packets.append(packet)
            size -= len(packet)
        return packets

    def _packet(self) -> bytes:
        """Fill a packet."""
        room = PACKET_SIZE_MAX - PACKET_HEADER.size
        parts = [b""]
        block = self._waiting or next(self._blocks, None)
        while block is not None and len(block) <= room:
            parts.append(block)
            room -= len(block)
            block = next(self._blocks, None)
        self._waiting = block
        self.is_done = block is None
        count = len(parts) - 1
        assert count, "no block is larger than a packet"
        parts[0] = PACKET_HEADER.pack(
            PACKET_MAGIC,
            PACKET_VERSION,
            SNAPSHOT,
            self.channel,
            count,
            self._snapshots.epoch,
            self.number,
            self._now_ns,
        )
        self.number += count
        return b"".join(parts)

    def _all_blocks(self) -> Iterator[bytes]:
        begin = self._begin
        head = (begin.sequence, begin.time_ns, self.snapshot, begin.next_number)
        events, instruments = self._selection
        counts = (len(events), len(instruments))
        yield _message(SnapshotBegin(*head, int(self._with_orders), *counts), _WHOLE)
        for event in events:
            yield _block(event.payload, _WHOLE)
        for instrument in instruments:
            unit = self._snapshots.unit(instrument, begin.next_number, self._now_ns)
            if self._with_orders:
                self._order_count += sum(unit.counts)
            yield from unit.blocks(self._with_orders)
        yield _message(SnapshotEnd(*head, self._order_count), _WHOLE)


class Snapshots:
    """Makes plans for the snapshots of one market, and the units that they share."""

    def __init__(self, market: Market) -> None:
        self.made_count = 0
        """Units that were made; those that were used again are not counted."""
        self._market = market
        self._begins: dict[int, _Begin] = {}
        self._units: dict[int, _Unit] = {}

    @property
    def epoch(self) -> int:
        """That of the market."""
        return self._market.epoch

    def plan(
        self,
        channel: int,
        number: int,
        now_ns: int,
        *,
        with_orders: bool = True,
        instruments: Collection[int] = (),
        events: Collection[int] = (),
    ) -> Plan:
        """A snapshot of a channel as of now or a little earlier; of some instruments and of all
        that belong to some events, or of everything when none is named. Its messages are numbered
        from `number` on. All times are of one clock, that of the packets."""
        state = self._market.channels.get(channel) or ChannelState(channel)
        begin = self._begins.get(channel)
        if (
            begin is None
            or begin.next_number < state.listed_number
            or now_ns - begin.made_ns > SHARED_NS
        ):
            market = self._market
            begin = _Begin(channel, now_ns, market.sequence, market.time_ns, state.next_number)
            self._begins[channel] = begin
        selection = _select(state, instruments, events)
        return Plan(self, selection, begin, number, with_orders)

    def unit(self, instrument: InstrumentState, least_number: int, now_ns: int) -> _Unit:
        """The unit of an instrument as of a number of its channel, or of a later one."""
        instrument_id = instrument.definition.instrument_id
        unit = self._units.get(instrument_id)
        if unit is not None:
            is_same = instrument.sequence <= unit.sequence
            is_young = now_ns - unit.made_ns <= SHARED_NS
            if unit.next_number >= least_number and (is_same or is_young):
                return unit
            if is_same:
                next_number = instrument.channel.next_number
                state = self._state(instrument, next_number, unit.counts)
                unit = unit._replace(made_ns=now_ns, next_number=next_number, state=state)
                self._units[instrument_id] = unit
                return unit
        unit = self._units[instrument_id] = self._make(instrument, now_ns)
        return unit

    def _make(self, instrument: InstrumentState, now_ns: int) -> _Unit:
        self.made_count += 1
        next_number = instrument.channel.next_number
        buys, sells = (instrument.book.rows(side) for side in Side)
        counts = (len(buys), len(sells))
        return _Unit(
            now_ns,
            self._market.sequence,
            next_number,
            counts,
            instrument.payload,
            self._state(instrument, next_number, counts),
            tuple(self._orders(instrument, buys, sells)),
        )

    def _state(
        self, instrument: InstrumentState, next_number: int, counts: tuple[int, int]
    ) -> bytes:
        """The message about everything but the orders themselves."""
        market, book = self._market, instrument.book
        trade, phase = book.last_trade, book.phase
        assert phase is not None, "the feed misses no message"
        message = SnapshotInstrument(
            market.sequence,
            market.time_ns,
            book.instrument_id,
            next_number,
            phase,
            *counts,
            last_trade_id=trade.trade_id if trade else 0,
            last_price=trade.price if trade else 0,
            last_quantity=trade.quantity if trade else 0,
            open_interest=instrument.open_interest,
        )
        return encode(message)

    def _orders(
        self, instrument: InstrumentState, buys: list[OrderRow], sells: list[OrderRow]
    ) -> Iterator[bytes]:
        """The blocks of all orders; the last one ends the unit."""
        market, size = self._market, SNAPSHOT_ROWS_MAX
        head = (market.sequence, market.time_ns, instrument.definition.instrument_id)
        left = len(buys) + len(sells)
        for side, rows in ((Side.BUY, buys), (Side.SELL, sells)):
            for start in range(0, len(rows), size):
                some = rows[start : start + size]
                left -= len(some)
                yield _message(SnapshotOrders(*head, side, some), 0 if left else LAST)


def _select(
    channel: ChannelState, instruments: Collection[int], events: Collection[int]
) -> _Selection:
    """What was named, and the events of these instruments."""
    if not instruments and not events:
        return _Selection(tuple(channel.events.values()), tuple(channel.instruments.values()))
    chosen = {
        one.definition.instrument_id: one
        for event_id in events
        if (event := channel.events.get(event_id)) is not None
        for one in event.instruments.values()
    }
    for instrument_id in instruments:
        if (instrument := channel.instruments.get(instrument_id)) is not None:
            chosen[instrument_id] = instrument
    event_ids = {one.definition.event_id for one in chosen.values()}
    event_ids.update(event_id for event_id in events if event_id in channel.events)
    return _Selection(
        tuple(channel.events[event_id] for event_id in sorted(event_ids)),
        tuple(chosen[instrument_id] for instrument_id in sorted(chosen)),
    )


def _block(payload: bytes, flags: int) -> bytes:
    return BLOCK_HEAD.pack(len(payload), flags) + payload


def _message(message: Struct, flags: int) -> bytes:
    return _block(encode(message), flags)
