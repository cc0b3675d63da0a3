"""Datagrams to a capture file and to tables: once each, in order, whatever the lines did to them.

The capture has everything as it came. The tables have every message of a channel once, in order of
its number: what comes early waits for what is missing, up to a bound, and then the hole is counted
and left. Nothing here looks at a clock, so that a capture that is converted later gives the tables
that a recording would have given. Snapshots, which only repeat, are in the capture alone.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Final, NamedTuple

from protocol.market_data import MarketDataMessage
from protocol.packets import (
    DATA,
    SNAPSHOT,
    Packet,
    PacketError,
    decode_message,
    decode_packet,
)
from tools.pcap import Datagram, PcapWriter

__all__ = ["Counts", "Place", "Recorder"]

HELD_PACKETS_MAX: Final = 256
"""Packets of a channel that wait for a missing one: as much as one line may be behind the other."""

PAST_EPOCHS_MAX: Final = 16
"""Epochs that are remembered as over, so that late packets do not bring them back."""


class Place(NamedTuple):
    """Where a message was. Times are since 1970, 0 when nobody knows."""

    epoch: int
    channel: int
    number: int
    send_time_ns: int
    receive_time_ns: int


@dataclass
class Counts:
    """What was seen. Messages are counted once; `missing` are numbers that never came behind the
    first that did; `unknown` are messages of a newer venue, `invalid` datagrams that are none of a
    venue or are damaged."""

    datagrams: int = 0
    messages: int = 0
    missing: int = 0
    duplicates: int = 0
    snapshots: int = 0
    unknown: int = 0
    invalid: int = 0

    def as_dict(self) -> dict[str, int]:
        """By name."""
        return asdict(self)


class _Held(NamedTuple):
    """A packet that came too early, or just in time."""

    packet: Packet
    receive_time_ns: int


class _Channel:
    """One channel in one epoch: gives the payloads of its packets once and in order."""

    def __init__(self, counts: Counts, tell: Callable[[Place, bytes], None]) -> None:
        self.next_number = 0
        self._counts = counts
        self._tell = tell
        self._held: dict[int, _Held] = {}

    def take(self, packet: Packet, receive_time_ns: int) -> None:
        number = packet.number
        if not self.next_number:
            self.next_number = number
        held = self._held.get(number)
        if held is not None and len(held.packet.blocks) >= len(packet.blocks):
            self._counts.duplicates += 1
            return
        self._held[number] = _Held(packet, receive_time_ns)
        if number > self.next_number and len(self._held) > HELD_PACKETS_MAX:
            self._give_up()
        self._go_on()

    def end(self) -> None:
        """Nothing more comes: take what waits."""
        while self._held:
            self._give_up()
            self._go_on()

    def _give_up(self) -> None:
        """The hole before what waits stays."""
        number = min(self._held)
        self._counts.missing += number - self.next_number
        self.next_number = number

    def _go_on(self) -> None:
        """Take what is wanted now."""
        while self._held and (number := min(self._held)) <= self.next_number:
            packet, receive_time_ns = self._held.pop(number)
            skip = self.next_number - number
            self._counts.duplicates += skip >= len(packet.blocks)
            for block in packet.blocks[skip:]:
                times = (packet.send_time_ns, receive_time_ns)
                place = Place(packet.epoch, packet.channel, self.next_number, *times)
                self.next_number += 1
                self._counts.messages += 1
                self._tell(place, block.payload)


class Recorder:
    """Takes datagrams of one venue, of any line, as they came. `on_message` is for the tables;
    what it raises comes out of `take` and `end`."""

    def __init__(
        self,
        pcap: PcapWriter | None,
        on_message: Callable[[Place, MarketDataMessage], None] | None,
    ) -> None:
        self.counts = Counts()
        self._pcap = pcap
        self._on_message = on_message
        self._epoch = -1
        self._past_epochs: dict[int, None] = {}
        self._channels: dict[int, _Channel] = {}

    def take(self, datagram: Datagram) -> None:
        """Take what was received. Raises OSError."""
        self.counts.datagrams += 1
        if self._pcap is not None:
            self._pcap.write(datagram)
        try:
            packet = decode_packet(datagram.payload)
        except PacketError:
            self.counts.invalid += 1
            return
        if packet.kind == SNAPSHOT:
            self.counts.snapshots += 1
        elif packet.kind == DATA and packet.epoch not in self._past_epochs:
            if packet.epoch != self._epoch:
                self._begin(packet.epoch)
            self._channel(packet.channel).take(packet, datagram.time_ns)

    def end(self) -> None:
        """Nothing more comes: take what waits for something that is missing."""
        for channel in self._channels.values():
            channel.end()

    def next_number(self, channel: int) -> int:
        """The number behind everything of a channel that was taken; 0: nothing was."""
        return self._channels[channel].next_number if channel in self._channels else 0

    def _begin(self, epoch: int) -> None:
        """Another history of numbers."""
        self.end()
        self._channels.clear()
        self._past_epochs[self._epoch] = None
        if len(self._past_epochs) > PAST_EPOCHS_MAX:
            del self._past_epochs[next(iter(self._past_epochs))]
        self._epoch = epoch

    def _channel(self, number: int) -> _Channel:
        channel = self._channels.get(number)
        if channel is None:
            channel = self._channels[number] = _Channel(self.counts, self._tell)
        return channel

    def _tell(self, place: Place, payload: bytes) -> None:
        if self._on_message is None:
            return
        try:
            message = decode_message(payload)
        except PacketError:
            self.counts.invalid += 1
            return
        if message is None:
            self.counts.unknown += 1
        else:
            self._on_message(place, message)
