"""Snapshots of a channel put together from whatever parts of them arrive, over several cycles.

A snapshot is a list of what was listed below some number of the channel, and for each instrument a
*unit*: its definition, state and orders as of a number of its own, which is not lower. Packets of
snapshots are numbered like all others, so the messages of a unit are joined by their numbers,
whatever came in between and however often. Units stand for themselves: the newest of an instrument
is kept, and a snapshot is whole when its beginning came, and a unit that is not older than it for
every instrument in it, from this cycle or a later one. Which instruments are in it is told by their
number and by the sequence of their listing: nothing that was listed once goes away.

Several sources, such as the multicast cycle and a subscription, number on their own.
"""

from typing import Final, NamedTuple

from exchange.client.limits import (
    BEGINS_MAX,
    SNAPSHOT_PACKETS_MAX,
    SNAPSHOT_SIZE_MAX,
    SNAPSHOT_SOURCES_MAX,
)
from protocol.books import InconsistentError, OrderRow
from protocol.codes import Side
from protocol.market_data import (
    EventDefinition,
    InstrumentDefinition,
    SnapshotBegin,
    SnapshotInstrument,
    SnapshotMessage,
    SnapshotOrders,
)
from protocol.packets import FIRST, LAST, Packet, PacketError, decode_snapshot_message

__all__ = ["ChannelSnapshot", "SnapshotCollector", "Unit"]

_IN_UNIT: Final = (111, 120, 121)
"""Tags of the messages of units; every other message stands alone, or is of a newer feed."""


class Unit(NamedTuple):
    """One instrument of a snapshot; its orders are not decoded yet."""

    definition: InstrumentDefinition
    state: SnapshotInstrument
    orders: list[bytes]
    size: int

    def rows(self) -> tuple[list[OrderRow], list[OrderRow]]:
        """The buys and the sells, best first and in priority. Raises InconsistentError."""
        state = self.state
        rows: dict[int, list[OrderRow]] = {Side.BUY: [], Side.SELL: []}
        for payload in self.orders:
            message = _decode(payload)
            if isinstance(message, SnapshotOrders) and message.side in rows:
                if message.instrument_id != state.instrument_id:
                    raise InconsistentError("orders of another instrument")
                rows[message.side] += message.rows
        buys, sells = rows[Side.BUY], rows[Side.SELL]
        if (len(buys), len(sells)) != (state.buy_count, state.sell_count):
            raise InconsistentError(f"{len(buys)} buys and {len(sells)} sells are not all")
        return buys, sells


class ChannelSnapshot(NamedTuple):
    """A channel as of `begin.next_number`, its instruments as of that or later."""

    begin: SnapshotBegin
    events: list[EventDefinition]
    units: list[Unit]


class _Piece:
    """Consecutive messages of a unit, from the number `start` up to before `end`."""

    __slots__ = ("end", "is_begun", "is_ended", "payloads", "start")

    def __init__(self, start: int, is_begun: bool) -> None:
        self.start = self.end = start
        self.is_begun = is_begun
        self.is_ended = False
        self.payloads: list[bytes] = []

    def add(self, payload: bytes) -> None:
        self.payloads.append(payload)
        self.end += 1

    def join(self, later: "_Piece") -> None:
        self.payloads += later.payloads
        self.end, self.is_ended = later.end, later.is_ended


class _Source:
    """What came from one source: numbers of packets, and pieces that wait for their neighbours."""

    def __init__(self) -> None:
        self.numbers: dict[int, None] = {}
        self.by_start: dict[int, _Piece] = {}
        self.by_end: dict[int, _Piece] = {}

    def is_new(self, number: int) -> bool:
        """Whether a packet is no duplicate."""
        if number in self.numbers:
            return False
        self.numbers[number] = None
        if len(self.numbers) > SNAPSHOT_PACKETS_MAX:
            del self.numbers[next(iter(self.numbers))]
        return True

    def join(self, piece: _Piece) -> _Piece | None:
        """Join a piece to its neighbours. Returns the unit when it is whole."""
        if not piece.is_begun and (earlier := self.by_end.get(piece.start)):
            self._remove(earlier)
            earlier.join(piece)
            piece = earlier
        if not piece.is_ended and (later := self.by_start.get(piece.end)) and not later.is_begun:
            self._remove(later)
            piece.join(later)
        if piece.is_begun and piece.is_ended:
            return piece
        self.by_start[piece.start] = piece
        if not piece.is_ended:
            self.by_end[piece.end] = piece
        return None

    def _remove(self, piece: _Piece) -> None:
        # Another one may have come to stand in its place, if numbers were forged.
        if self.by_start.get(piece.start) is piece:
            del self.by_start[piece.start]
        if self.by_end.get(piece.end) is piece:
            del self.by_end[piece.end]

    def drop(self, number: int) -> None:
        """Drop the pieces below a number, where a new cycle begins: nothing comes for them."""
        for piece in [piece for piece in self.by_start.values() if piece.start < number]:
            self._remove(piece)


class _Candidate:
    """A snapshot that has begun, and what of it is there."""

    def __init__(self, begin: SnapshotBegin) -> None:
        self.begin = begin
        self.events: dict[int, EventDefinition] = {}
        self.instruments: dict[int, None] = {}

    def add_event(self, event: EventDefinition) -> None:
        if event.sequence <= self.begin.sequence:
            self.events[event.event_id] = event

    def add_unit(self, unit: Unit) -> None:
        begin, (definition, state, *_) = self.begin, unit
        if state.next_number >= begin.next_number and definition.sequence <= begin.sequence:
            self.instruments[state.instrument_id] = None

    @property
    def is_whole(self) -> bool:
        counts = len(self.events), len(self.instruments)
        return counts == (self.begin.event_count, self.begin.instrument_count)


class SnapshotCollector:
    """The parts of one channel's snapshots."""

    def __init__(self) -> None:
        self.error_count = 0
        """Messages and units that made no sense."""
        self._sources: dict[int, _Source] = {}
        self._candidates: list[_Candidate] = []
        self._events: dict[int, EventDefinition] = {}
        self._units: dict[int, Unit] = {}
        self._size = 0
        """Bytes of pieces and units since the last time that pieces were dropped."""

    def clear(self) -> None:
        """Forget everything."""
        self._sources.clear()
        self._candidates.clear()
        self._events.clear()
        self._units.clear()
        self._size = 0

    def add(self, packet: Packet, source: int) -> None:
        """Take a SNAPSHOT packet of this channel and epoch."""
        stream = self._sources.get(source)
        if stream is None:
            if len(self._sources) == SNAPSHOT_SOURCES_MAX:
                del self._sources[next(iter(self._sources))]
            stream = self._sources[source] = _Source()
        if not stream.is_new(packet.number):
            return
        piece: _Piece | None = None
        number = packet.number - 1
        for block in packet.blocks:
            number, flags, payload = number + 1, block.flags, block.payload
            if _tag(payload) not in _IN_UNIT:
                self._take_alone(number, payload, stream)
                continue
            if piece is None or flags & FIRST:
                self._join(piece, stream)
                piece = _Piece(number, bool(flags & FIRST))
            piece.add(payload)
            self._size += len(payload)
            if flags & LAST:
                piece.is_ended = True
                self._join(piece, stream)
                piece = None
        self._join(piece, stream)
        if self._size > SNAPSHOT_SIZE_MAX:
            self.clear()

    def whole(self, next_number: int, time_ns: int) -> ChannelSnapshot | None:
        """The newest snapshot that is whole and not older than a number and a time, if any is."""
        for candidate in sorted(self._candidates, key=lambda c: -c.begin.next_number):
            begin = candidate.begin
            is_new = begin.next_number >= next_number and begin.time_ns >= time_ns
            if is_new and candidate.is_whole:
                units = [self._units[instrument_id] for instrument_id in candidate.instruments]
                return ChannelSnapshot(begin, [*candidate.events.values()], units)
        return None

    # Inside.

    def _take_alone(self, number: int, payload: bytes, stream: _Source) -> None:
        """Take a message that is no part of a unit."""
        try:
            message = decode_snapshot_message(payload)
        except PacketError:
            self.error_count += 1
            return
        if isinstance(message, SnapshotBegin):
            self._size = sum(unit.size for unit in self._units.values())
            stream.drop(number)
            if message.with_orders:
                self._begin(message)
        elif isinstance(message, EventDefinition):
            self._size += len(payload)
            self._events[message.event_id] = message
            for candidate in self._candidates:
                candidate.add_event(message)

    def _begin(self, begin: SnapshotBegin) -> None:
        if any(candidate.begin == begin for candidate in self._candidates):
            return
        candidate = _Candidate(begin)
        for event in self._events.values():
            candidate.add_event(event)
        for unit in self._units.values():
            candidate.add_unit(unit)
        self._candidates.append(candidate)
        if len(self._candidates) > BEGINS_MAX:
            self._candidates.remove(min(self._candidates, key=lambda c: c.begin.next_number))

    def _join(self, piece: _Piece | None, stream: _Source) -> None:
        """Join a piece to what is there; take its unit when that is whole."""
        whole = stream.join(piece) if piece is not None else None
        if whole is None:
            return
        unit = _unit(whole.payloads)
        if unit is None:
            self.error_count += 1
            return
        before = self._units.get(unit.state.instrument_id)
        if before is not None and before.state.next_number > unit.state.next_number:
            return
        self._units[unit.state.instrument_id] = unit
        for candidate in self._candidates:
            candidate.add_unit(unit)


def _unit(payloads: list[bytes]) -> Unit | None:
    """Make a unit of its messages; None: they are not one."""
    try:
        definition = _decode(payloads[0])
        state = _decode(payloads[1]) if len(payloads) > 1 else None
    except InconsistentError:
        return None
    if not isinstance(definition, InstrumentDefinition):
        return None
    if not isinstance(state, SnapshotInstrument):
        return None
    if state.instrument_id != definition.instrument_id:
        return None
    return Unit(definition, state, payloads[2:], sum(map(len, payloads)))


def _decode(payload: bytes) -> SnapshotMessage | None:
    try:
        return decode_snapshot_message(payload)
    except PacketError as error:
        raise InconsistentError(str(error)) from None


def _tag(payload: bytes) -> int:
    """The tag of a message, which is an array that begins with it; 0: it is none."""
    if len(payload) > 1 and payload[0] & 0xF0 == 0x90:
        return payload[1]
    return payload[3] if len(payload) > 3 and payload[0] == 0xDC else 0
