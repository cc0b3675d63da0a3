"""Parts of a channel: the messages of some instruments or events, or those about trades only.

Which messages belong to a selection is asked of an index of what a turn of the loop brought, so
that many narrow selections cost little more than one. Every message of a command has its sequence,
and a command's messages stand together: that says where FIRST and LAST belong.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from protocol.market_data import (
    EventDefinition,
    InstrumentDefinition,
    InstrumentStatus,
    MarketDataMessage,
    Trade,
)
from protocol.packets import (
    FIRST,
    LAST,
    PACKET_HEADER,
    PACKET_SIZE_MAX,
    SELECTED,
    SELECTED_BLOCK_HEAD,
    Block,
    Packet,
    SelectedBlock,
    decode_message,
    decode_packet,
)

__all__ = ["Index", "Numbered", "Selection", "number_messages", "pack_selected"]

OFFSET_MAX: Final = 2**32 - 1
"""How far the numbers of one packet may lie apart."""

_OF_TRADES: Final = (EventDefinition, InstrumentDefinition, InstrumentStatus, Trade)


class Numbered(NamedTuple):
    """A message of a channel. `is_first` and `is_last`: of its command, on the whole channel."""

    number: int
    is_first: bool
    is_last: bool
    payload: bytes
    message: MarketDataMessage


def number_messages(packets: Iterable[bytes]) -> list[Numbered]:
    """The messages of DATA packets. Raises PacketError."""
    found = []
    for data in packets:
        packet = decode_packet(data)
        blocks: Sequence[Block | SelectedBlock] = packet.blocks
        for number, block in enumerate(blocks, start=packet.number):
            message = decode_message(block.payload)
            assert message is not None, "the venue has the messages of this build"
            is_first, is_last = bool(block.flags & FIRST), bool(block.flags & LAST)
            found.append(Numbered(number, is_first, is_last, block.payload, message))
    return found


class Index:
    """Messages of a channel by what they are about, in order."""

    def __init__(self, messages: Sequence[Numbered]) -> None:
        self.messages = messages
        self.of_events: dict[int, list[Numbered]] = {}  # their definitions, by event
        self.of_instruments: dict[int, list[Numbered]] = {}
        self.of_trades: list[Numbered] = []
        for one in messages:
            message = one.message
            if isinstance(message, EventDefinition):
                self.of_events.setdefault(message.event_id, []).append(one)
            else:
                self.of_instruments.setdefault(message.instrument_id, []).append(one)
            if isinstance(message, _OF_TRADES):
                self.of_trades.append(one)


class Selection:
    """Instruments and events by their ids; neither: all of the channel. `event_of` gives the event
    of an instrument, also of those that are listed later."""

    def __init__(
        self,
        instruments: Iterable[int],
        events: Iterable[int],
        event_of: Callable[[int], int],
        *,
        is_trades: bool,
    ) -> None:
        self.instruments = dict.fromkeys(sorted(instruments))
        self.events = dict.fromkeys(sorted(events))
        self.is_all = not self.instruments and not self.events
        self._event_of = event_of
        self._is_trades = is_trades
        # An instrument comes with the definition of its event.
        self._defined = self.events | dict.fromkeys(map(event_of, self.instruments))

    def has(self, instrument_id: int) -> bool:
        """Whether the instrument belongs to it."""
        if self.is_all or instrument_id in self.instruments:
            return True
        return bool(self.events) and self._event_of(instrument_id) in self.events

    def select(self, index: Index) -> Sequence[Numbered]:
        """Its messages, in order."""
        if self.is_all:
            return index.of_trades if self._is_trades else index.messages
        found = [one for event in self._defined for one in index.of_events.get(event, ())]
        for instrument, messages in self._members(index):
            del instrument
            found += messages
        found.sort()
        if self._is_trades:
            return [one for one in found if isinstance(one.message, _OF_TRADES)]
        return found

    def _members(self, index: Index) -> Iterable[tuple[int, list[Numbered]]]:
        of_instruments = index.of_instruments
        if not self.events and len(self.instruments) < len(of_instruments):
            return [(i, of_instruments[i]) for i in self.instruments if i in of_instruments]
        return [(i, messages) for i, messages in of_instruments.items() if self.has(i)]


def pack_selected(
    messages: Sequence[Numbered], channel: int, epoch: int, now_ns: int, continued: int = 0
) -> list[Packet]:
    """Packets of kind SELECTED with these messages, of whole commands; FIRST and LAST are as of
    them. `continued` is the sequence of a command whose first messages were packed before."""
    packets: list[Packet] = []
    blocks: list[SelectedBlock] = []
    size = 0
    before = continued
    for place, one in enumerate(messages):
        sequence = one.message.sequence
        is_last = place + 1 == len(messages) or messages[place + 1].message.sequence != sequence
        flags = (FIRST if sequence != before else 0) | (LAST if is_last else 0)
        before = sequence
        added = SELECTED_BLOCK_HEAD.size + len(one.payload)
        is_far = bool(blocks) and one.number - blocks[0].number > OFFSET_MAX
        if not blocks or size + added > PACKET_SIZE_MAX or is_far:
            blocks = []
            size = PACKET_HEADER.size
            packets.append(Packet(SELECTED, channel, epoch, one.number, now_ns, blocks))
        blocks.append(SelectedBlock(flags, one.payload, one.number))
        size += added
    return packets
