"""The whole market as bytes, so that a start reads only what came after them.

A header with a checksum, then one MessagePack body: definitions and records of who is who as they
were sent, orders and candles as runs of 64-bit words. It belongs to the build that wrote it:
whatever is not exactly that is refused, and the market is then built from the log's beginning.
"""

import sys
from array import array
from collections.abc import Iterable
from hashlib import blake2b
from itertools import chain
from struct import Struct as Layout
from typing import Final

from msgspec import DecodeError, Raw, Struct, ValidationError
from msgspec.msgpack import Decoder

from exchange.feed.candles import ROW_WORDS, Bar, CandleStore, History
from exchange.feed.market import ChannelState, InstrumentState, Market
from journal.event_format import RecordHeader
from protocol.base import NUMBER_MAX
from protocol.books import LastTrade, OrderRow
from protocol.codes import Side
from protocol.market_data import EventDefinition, InstrumentDefinition
from protocol.records import ReferenceMessage
from protocol.wire import encode

__all__ = ["CheckpointError", "restore", "save"]

MAGIC: Final = b"BRIERMKT"
VERSION: Final = 2
"""Changes with any byte that `save` writes, and with any class that it writes."""

_DIGEST_SIZE: Final = 32
_HEADER: Final = Layout(f"<8sII{_DIGEST_SIZE}s")
"""magic, version, 0, BLAKE2b of the body."""
assert sys.byteorder == "little", "runs of words are written as they lie in memory"


class CheckpointError(Exception):
    """Bytes that are no checkpoint of this build; says why."""


class _Instrument(Struct, array_like=True):
    definition: Raw
    sequence: int
    phase: int
    last_trade: LastTrade | None
    buys: bytes
    sells: bytes


class _Channel(Struct, array_like=True):
    channel: int
    next_number: int
    listed_number: int
    events: list[Raw]
    instruments: list[_Instrument]


class _History(Struct, array_like=True):
    instrument_id: int
    second: list[int]
    longer: list[list[int] | None]
    life: list[int] | None
    rows: list[bytes]


class _Body(Struct, array_like=True):
    epoch: int
    sequence: int
    last_header: RecordHeader | None
    time_ns: int
    reference_number: int
    references: list[ReferenceMessage]
    channels: list[_Channel]
    histories: list[_History]


_decode_body: Final = Decoder(_Body).decode
_decode_event: Final = Decoder(EventDefinition).decode
_decode_instrument: Final = Decoder(InstrumentDefinition).decode


def save(market: Market) -> bytes:
    """Everything that `restore` needs."""
    body = encode(
        _Body(
            market.epoch,
            market.sequence,
            market.last_header,
            market.time_ns,
            market.directory.next_number,
            list(market.directory.messages()),
            [_channel(one) for one in market.channels.values()],
            [_history(*item) for item in market.candles.histories.items()],
        )
    )
    return _HEADER.pack(MAGIC, VERSION, 0, _digest(body)) + body


def restore(data: bytes) -> Market:
    """The market as it was saved. Raises CheckpointError."""
    if len(data) < _HEADER.size:
        raise CheckpointError(f"{len(data)} bytes are no checkpoint")
    magic, version, _, digest = _HEADER.unpack_from(data)
    content = memoryview(data)[_HEADER.size :]
    if (magic, version) != (MAGIC, VERSION):
        raise CheckpointError(f"version {version} with magic {magic!r} is not of this build")
    if _digest(content) != digest:
        raise CheckpointError("the checksum does not fit")
    try:
        body = _decode_body(content)
    except (DecodeError, ValidationError) as error:
        raise CheckpointError(f"not what this build writes: {error}") from None
    market = Market(body.epoch)
    market.sequence, market.last_header = body.sequence, body.last_header
    market.time_ns = body.time_ns
    for reference in body.references:
        market.directory.take(reference)
    market.directory.next_number = body.reference_number
    for channel in body.channels:
        _restore_channel(market, channel)
    by_change = sorted(market.instruments.items(), key=lambda item: item[1].sequence)
    for instrument_id, instrument in by_change:
        market.book_changes.note((instrument_id,), instrument.sequence)
        market.trade_changes.note((instrument_id,), instrument.sequence)
    for saved in body.histories:
        _restore_history(market.candles, saved)
    return market


def _digest(body: bytes | memoryview) -> bytes:
    return blake2b(body, digest_size=_DIGEST_SIZE).digest()


def _channel(channel: ChannelState) -> _Channel:
    return _Channel(
        channel.channel,
        channel.next_number,
        channel.listed_number,
        [Raw(event.payload) for event in channel.events.values()],
        [_instrument(one) for one in channel.instruments.values()],
    )


def _instrument(instrument: InstrumentState) -> _Instrument:
    book = instrument.book
    trade, phase = book.last_trade, book.phase
    assert phase is not None, "the feed misses no message"
    last_trade = None
    if trade is not None:
        last_trade = LastTrade(trade.trade_id, trade.price, trade.quantity, trade.open_interest)
    sides = [array("q", chain.from_iterable(book.rows(side))) for side in Side]
    return _Instrument(
        Raw(instrument.payload),
        instrument.sequence,
        phase,
        last_trade,
        *(side.tobytes() for side in sides),
    )


def _restore_channel(market: Market, saved: _Channel) -> None:
    channel = market.begin_channel(saved.channel)
    channel.next_number, channel.listed_number = saved.next_number, saved.listed_number
    for event in saved.events:
        market.list_event(channel, _decode_event(event), bytes(event))
    for one in saved.instruments:
        definition = _decode_instrument(one.definition)
        instrument = market.list_instrument(channel, definition, bytes(one.definition))
        instrument.sequence = one.sequence
        instrument.book.last_trade = one.last_trade
        instrument.book.load(one.phase, _orders(one.buys), _orders(one.sells))
        instrument.book.resume()


def _orders(content: bytes) -> Iterable[OrderRow]:
    words = array("q")
    words.frombytes(content)
    return zip(words[::3], words[1::3], words[2::3], strict=True)


def _history(instrument_id: int, history: History) -> _History:
    return _History(
        instrument_id,
        _words(history.second),
        [None if bar is None else _words(bar) for bar in history.longer],
        None if history.life is None else _words(history.life),
        [rows.tobytes() for rows in history.rows],
    )


def _words(bar: Bar) -> list[int]:
    """What is above the largest number is shown as that, and so it may be saved as that."""
    return [max(-NUMBER_MAX, min(word, NUMBER_MAX)) for word in bar.words()]


def _restore_history(store: CandleStore, saved: _History) -> None:
    history = History(Bar.restore(saved.second))
    history.longer = [None if words is None else Bar.restore(words) for words in saved.longer]
    history.life = None if saved.life is None else Bar.restore(saved.life)
    for rows, content in zip(history.rows, saved.rows, strict=True):
        rows.frombytes(content)
        store.row_count += len(rows) // ROW_WORDS
    store.histories[saved.instrument_id] = history
