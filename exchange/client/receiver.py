"""Market data from packets, without I/O and without a clock: bytes and times go in; books, told
messages, gaps, a deadline and what should be asked for come out.

It makes no difference which line or connection a packet comes from: numbers tell what is new.

An epoch is the life of a venue's numbers. With a new one everything starts again; packets of the
one before are dropped for a while, as they may only have been delayed. What is not a packet, or
not of the channel that it came on, is counted and dropped.
"""

from collections.abc import Callable, Iterable
from typing import Final

from exchange.client.channel import Channel, Told
from exchange.client.datagrams import read_header, read_last_time, read_messages
from exchange.client.limits import EPOCH_RETURN_NS, GAPS_MAX
from exchange.client.market import ChannelMarket, Market
from exchange.client.recovery import NO_MEANS, Gap, Means, Recovery, Replay, Snapshot
from protocol.books import StaleBookError, public_digest
from protocol.market_data import MarketDataMessage
from protocol.packets import CHANNELS_MAX, SNAPSHOT, PacketError, decode_packet

__all__ = ["NO_EPOCH", "MarketDataReceiver"]

NO_EPOCH: Final = 0
"""Before the first packet. Should a venue draw this one, then nothing has to be forgotten."""


class MarketDataReceiver:
    """The books of some channels. Times are of a clock that never goes back.

    `means` says what can be asked for when messages are missing; with none a hole is a gap.
    """

    def __init__(
        self,
        channels: Iterable[int],
        *,
        means: Means = NO_MEANS,
        on_message: Callable[[MarketDataMessage], None] | None = None,
        on_gap: Callable[[Gap], None] | None = None,
        on_recovered: Callable[[Recovery], None] | None = None,
        on_epoch: Callable[[int], None] | None = None,
    ) -> None:
        self.market = Market()
        told = Told(on_message, self._gap, self._recovered)
        self.channels = {
            channel: Channel(channel, ChannelMarket(self.market), told, means)
            for channel in dict.fromkeys(channels)
        }
        assert self.channels, "a receiver without a channel hears nothing"
        assert all(1 <= channel <= CHANNELS_MAX for channel in self.channels)
        self.epoch = NO_EPOCH
        """Of the last packet that was taken."""
        self.gaps: list[Gap] = []
        """The first GAPS_MAX gaps, over all epochs."""
        self.gap_count = 0
        self.recovery_count = 0
        """How often a channel has found its place again."""
        self.packet_count = 0
        """Datagrams, whatever was in them."""
        self.error_count = 0
        """Datagrams that were no valid packets."""
        self.last_error = ""
        self.foreign_count = 0
        """Packets that came on another channel than their own."""
        self.old_count = 0
        """Packets of the epoch before."""
        self._old_epoch = NO_EPOCH
        self._old_until_ns = 0
        self._on_gap = on_gap
        self._on_recovered = on_recovered
        self._on_epoch = on_epoch

    @property
    def is_complete(self) -> bool:
        """Whether every channel was heard and all is known: books are true, nothing is awaited."""
        return all(channel.is_complete for channel in self.channels.values())

    @property
    def deadline_ns(self) -> int:
        """When `tick` or `go_on` is due, 0 for never."""
        deadlines = [channel.deadline_ns for channel in self.channels.values()]
        return min(filter(None, deadlines), default=0)

    @property
    def wanted(self) -> list[Replay | Snapshot]:
        """What should be asked for now, at most one thing for each channel."""
        return [wanted for c in self.channels.values() if (wanted := c.wanted) is not None]

    def receive(self, channel: int, data: bytes, now_ns: int) -> None:
        """Take a packet of a line of a channel, or of a replay. Never raises for what is in it."""
        self.packet_count += 1
        target = self.channels[channel]
        try:
            header = read_header(data)
            if header.channel != channel:
                self.foreign_count += 1
                return
            if header.epoch == self.epoch and not target.wants(header):
                target.hear(now_ns)
                time_ns = read_last_time(data, header.message_count)
                if not target.pass_over(header, time_ns):
                    read_messages(data, header.message_count)  # Only if it is a whole packet.
                    target.set_back(header, time_ns, now_ns)
                return
            content = read_messages(data, header.message_count)
        except PacketError as error:
            self.error_count += 1
            self.last_error = str(error)
            return
        if header.epoch != self.epoch and not self._start(header.epoch, now_ns):
            return
        target.hear(now_ns)
        target.take(header, content, data, now_ns)

    def receive_snapshot(self, channel: int, data: bytes, now_ns: int, source: int = 0) -> None:
        """Take a packet of a channel's snapshots; it is dropped when nothing is missing.

        `source` tells streams with numbers of their own apart: 0 is the multicast cycle. A snapshot
        never begins another epoch than that of the messages.
        """
        self.packet_count += 1
        try:
            packet = decode_packet(data)
            if packet.kind != SNAPSHOT:
                raise PacketError(f"a packet of kind {packet.kind} among snapshots")
        except PacketError as error:
            self.error_count += 1
            self.last_error = str(error)
            return
        if packet.channel != channel:
            self.foreign_count += 1
        elif packet.epoch == self.epoch or (
            self.epoch == NO_EPOCH and self._start(packet.epoch, now_ns)
        ):
            self.channels[channel].take_snapshot(packet, source, now_ns)
        else:
            self.old_count += 1

    def begin(self, epoch: int, now_ns: int) -> None:
        """Begin an epoch that somebody has told us, unless it is the present one."""
        if epoch != self.epoch:
            self._start(epoch, now_ns)

    def go_on(self, now_ns: int) -> None:
        """Apply some of what waited and now follows; when more is left, `deadline_ns` is 1."""
        for channel in self.channels.values():
            channel.go_on(now_ns)

    def tick(self, now_ns: int) -> None:
        """Do what is due when nothing comes, see `deadline_ns`."""
        for channel in self.channels.values():
            channel.tick(now_ns)

    def public_digest(self) -> str:
        """The digest of all books; equal to the venue's when both stand at the same numbers.

        Raises StaleBookError while messages are missing, and before anything was heard.
        """
        if not self.is_complete:
            raise StaleBookError("the books are not complete: messages were missed, or not heard")
        return public_digest(self.market.books.values())

    # Inside.

    def _start(self, epoch: int, now_ns: int) -> bool:
        """Start again with a new epoch. False: it is the one before."""
        if epoch == self._old_epoch and now_ns < self._old_until_ns:
            self.old_count += 1
            return False
        self._old_epoch, self.epoch = self.epoch, epoch
        self._old_until_ns = now_ns + EPOCH_RETURN_NS
        self.market.clear()
        for channel in self.channels.values():
            channel.start(epoch)
        if self._on_epoch is not None:
            self._on_epoch(epoch)
        return True

    def _gap(self, gap: Gap) -> None:
        self.gap_count += 1
        if len(self.gaps) < GAPS_MAX:
            self.gaps.append(gap)
        if self._on_gap is not None:
            self._on_gap(gap)

    def _recovered(self, recovery: Recovery) -> None:
        self.recovery_count += 1
        if self._on_recovered is not None:
            self._on_recovered(recovery)
