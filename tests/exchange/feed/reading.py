"""What readers of streams were told, and what they should have been."""

from typing import Any

from protocol.codes import (
    SubscriptionForm,
)
from protocol.market_data import (
    EventDefinition,
    InstrumentDefinition,
    InstrumentStatus,
    Trade,
)
from protocol.packets import (
    DATA,
    HEARTBEAT,
    SELECTED,
    SelectedBlock,
    decode_message,
    decode_packet,
)
from tests.exchange.feed.desk import Desk, Reader

__all__ = [
    "ORDERS",
    "TRADES",
    "Numbered",
    "expected",
    "has",
    "heartbeats",
    "is_idle",
    "is_whole",
    "messages",
    "said",
]

ORDERS, TRADES = SubscriptionForm.ORDERS, SubscriptionForm.TRADES
Numbered = list[tuple[int, Any]]


def messages(packets: list[bytes]) -> Numbered:
    """Numbers and messages of DATA and SELECTED packets, as they came."""
    found: Numbered = []
    for data in packets:
        packet = decode_packet(data)
        if packet.kind == DATA:
            for number, block in enumerate(packet.blocks, start=packet.number):
                found.append((number, decode_message(block.payload)))
        elif packet.kind == SELECTED:
            for block in packet.blocks:
                assert isinstance(block, SelectedBlock)
                found.append((block.number, decode_message(block.payload)))
    return found


def said(desk: Desk, channel: int = 1, from_number: int = 1) -> Numbered:
    """What the venue said on a channel."""
    return [
        (number, message)
        for of_channel, number, message in desk.truth.said
        if of_channel == channel and number >= from_number
    ]


def is_whole(reader: Reader, desk: Desk, form: int = ORDERS) -> bool:
    """Whether the reader has the channel's last message, or a heartbeat behind it."""
    packets = [decode_packet(data) for data in reader.packets(form)]
    ends = [p.number + (len(p.blocks) if p.kind == DATA else 0) for p in packets if p.kind < 3]
    return bool(ends) and ends[-1] == desk.feed.streams.next_number(1)


def expected(desk: Desk, instruments: list[int], events: list[int], form: int) -> Numbered:
    """The messages of a selection, by the plainest rule."""
    event_of = {1: 1, 2: 1, 3: 2, 4: 2}
    wanted = {one for one, event in event_of.items() if one in instruments or event in events}
    if not instruments and not events:
        wanted = set(event_of)
    defined = {event_of[one] for one in wanted} | set(events)
    kinds = (EventDefinition, InstrumentDefinition, InstrumentStatus, Trade)
    found: Numbered = []
    for number, message in said(desk):
        if isinstance(message, EventDefinition):
            is_in = message.event_id in defined
        else:
            is_in = message.instrument_id in wanted
        if is_in and (form == ORDERS or isinstance(message, kinds)):
            found.append((number, message))
    return found


def has(reader: Reader, form: int, number: int) -> bool:
    """Whether the last message that the reader was sent has this number."""
    return [one for one, _ in messages(reader.packets(form))][-1:] == [number]


def heartbeats(reader: Reader, form: int) -> list[int]:
    packets = map(decode_packet, reader.packets(form))
    return [packet.number for packet in packets if packet.kind == HEARTBEAT]


def is_idle(reader: Reader) -> bool:
    return not any(work.has_work for work in reader.connection.works.values())
