"""Datagrams to a capture file and to tables: once each, in order, whatever the lines did to them.

The capture has everything as it came. The tables have every message of a channel once, in order of
its number: what comes early waits for what is missing, up to a bound, and then the hole is counted
and left. Each epoch has channels of its own, as two venues may be on one group. A venue that goes
on from an older state gives numbers again: that is told by the times, and such numbers stand in the
tables twice, first those of the history that was given up. Nothing here looks at a clock, so that a
capture that is converted later gives the tables that a recording would have given. Snapshots, which
only repeat, are in the capture alone.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Final, NamedTuple

from exchange.client.held import Held, HeldPackets
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

HELD_SIZE_MAX: Final = 64 * 1024 * 1024
"""Bytes of packets that wait for missing ones, of all channels: over ten seconds of a venue at its
peak, so that a feed that was started again can bring what the lines have lost."""

GO_ON_MAX: Final = 8
"""Packets that waited and are taken with each one that comes: after a long wait the sockets are
read meanwhile, and what waits still becomes less."""

EPOCHS_MAX: Final = 16
"""Epochs at once. When there is one more, that which was silent for longest is over."""


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
    first that did; `duplicates` are packets; `unknown` are messages of a newer venue, `invalid`
    datagrams that are none of a venue or are damaged. More than one of `epochs` are several venues,
    or one that has begun anew; `set_backs` are channels that have given numbers again."""

    datagrams: int = 0
    messages: int = 0
    missing: int = 0
    duplicates: int = 0
    snapshots: int = 0
    unknown: int = 0
    invalid: int = 0
    epochs: int = 0
    set_backs: int = 0

    def as_dict(self) -> dict[str, int]:
        """By name."""
        return asdict(self)


class _Channel:
    """One channel in one epoch: gives the payloads of its packets once and in order."""

    def __init__(self, counts: Counts, tell: Callable[[Place, bytes], None]) -> None:
        self.next_number = 0
        self._counts = counts
        self._tell = tell
        self._held = HeldPackets()
        self._last = b""
        """The last message that was taken."""
        self._begin_ns = 0
        """What is earlier belongs to a history that was given up; 0: there was none."""

    @property
    def held_size(self) -> int:
        """Bytes of what waits."""
        return self._held.size

    def take(self, packet: Packet, datagram: Datagram) -> None:
        number, count = packet.number, len(packet.blocks)
        if self._begin_ns and 0 < _time_ns(packet.blocks[-1].payload) < self._begin_ns:
            self._counts.duplicates += 1
            return
        if not self.next_number:
            self.next_number = number
        elif number < self.next_number and self._is_other(packet):
            self._set_back(packet)
        if number <= self.next_number:
            self._apply(packet, datagram.time_ns)
        elif self._held.is_new(number, count):
            self._held.add(Held(number, count, datagram.time_ns, datagram.payload))
        else:
            self._counts.duplicates += 1
        for _ in range(GO_ON_MAX):
            if not self._held or self._held.first_number > self.next_number:
                break
            self._apply_held()

    def relieve(self) -> None:
        """Take the first packet that waits. The hole before it, if there is one, stays."""
        number = self._held.first_number
        if number > self.next_number:
            self._counts.missing += number - self.next_number
            self.next_number = number
        self._apply_held()

    def end(self) -> None:
        """Nothing more comes: take what waits."""
        while self._held:
            self.relieve()

    def _apply_held(self) -> None:
        held = self._held.pop()
        self._apply(decode_packet(held.data), held.arrived_ns)

    def _apply(self, packet: Packet, receive_time_ns: int) -> None:
        """Take a packet that begins with the wanted number or before it."""
        new = packet.blocks[self.next_number - packet.number :]
        if not new:
            self._counts.duplicates += 1
            return
        self._last = new[-1].payload
        for block in new:
            times = (packet.send_time_ns, receive_time_ns)
            place = Place(packet.epoch, packet.channel, self.next_number, *times)
            self.next_number += 1
            self._counts.messages += 1
            self._tell(place, block.payload)

    def _is_other(self, packet: Packet) -> bool:
        """Whether a packet with known numbers is later than what we know under them."""
        known = packet.blocks[: self.next_number - packet.number][-1].payload
        return known != self._last and _time_ns(known) > _time_ns(self._last) > 0

    def _set_back(self, packet: Packet) -> None:
        """The venue gives numbers again: end what was, and go on where it is."""
        time_ns = _time_ns(packet.blocks[0].payload)
        waiting, self._held = self._held, HeldPackets()
        later = []
        while waiting:
            held = waiting.pop()
            if _time_ns(decode_packet(held.data).blocks[0].payload) < time_ns:
                self._held.add(held)
            else:
                later.append(held)
        self.end()
        for held in later:
            self._held.add(held)
        self._counts.set_backs += 1
        self._begin_ns = time_ns
        self.next_number = packet.number


def _time_ns(payload: bytes) -> int:
    """When the venue took the command of a message; 0: it cannot be read."""
    try:
        message = decode_message(payload)
    except PacketError:
        return 0
    return 0 if message is None else message.time_ns


class Recorder:
    """Takes datagrams of venues, of any line, as they came. `on_message` is for the tables; what it
    raises comes out of `take` and `end`."""

    def __init__(
        self,
        pcap: PcapWriter | None,
        on_message: Callable[[Place, MarketDataMessage], None] | None,
    ) -> None:
        self.counts = Counts()
        self._pcap = pcap
        self._on_message = on_message
        self._epochs: dict[int, dict[int, _Channel]] = {}
        """Channels by epoch and number; the epoch that was heard last stands last."""
        self._epoch = -1
        """The epoch that was heard last."""
        self.held_size = 0
        """Bytes of packets that wait. For reading only, like `counts`."""

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
        elif packet.kind == DATA:
            if packet.epoch != self._epoch:
                self._turn_to(packet.epoch)
            self._take(self._channel(packet.channel), packet, datagram)

    def end(self) -> None:
        """Nothing more comes: take what waits for something that is missing."""
        for channels in self._epochs.values():
            for channel in channels.values():
                channel.end()

    def next_number(self, channel: int) -> int:
        """The number behind everything of a channel that was taken, in the epoch that was heard
        last; 0: nothing was."""
        channels = self._epochs.get(self._epoch, {})
        return channels[channel].next_number if channel in channels else 0

    def _take(self, channel: _Channel, packet: Packet, datagram: Datagram) -> None:
        """Take a packet; when too much waits then, no longer wait where it is most."""
        before = channel.held_size
        channel.take(packet, datagram)
        self.held_size += channel.held_size - before
        while self.held_size > HELD_SIZE_MAX:
            every = (one for channels in self._epochs.values() for one in channels.values())
            largest = max(every, key=lambda one: one.held_size)
            before = largest.held_size
            largest.relieve()
            self.held_size += largest.held_size - before

    def _turn_to(self, epoch: int) -> None:
        """Another history of numbers than that of the last packet."""
        self._epoch = epoch
        channels = self._epochs.pop(epoch, None)
        if channels is None:
            self.counts.epochs += 1
            channels = {}
        self._epochs[epoch] = channels
        if len(self._epochs) > EPOCHS_MAX:
            for channel in self._epochs.pop(next(iter(self._epochs))).values():
                self.held_size -= channel.held_size
                channel.end()

    def _channel(self, number: int) -> _Channel:
        channels = self._epochs[self._epoch]
        channel = channels.get(number)
        if channel is None:
            channel = channels[number] = _Channel(self.counts, self._tell)
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
