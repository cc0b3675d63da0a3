"""Market data from datagrams, without I/O and without a clock: bytes and times go in; books, told
messages, gaps and a deadline come out.

An epoch is the life of a venue's numbers. With a new one everything starts again; packets of the
one before are dropped for a while, as they may only have been delayed. What is not a packet, or
not of the channel that it came on, is counted and dropped.
"""

from collections.abc import Callable, Iterable
from typing import Final

from exchange.client.channel import Channel, Gap, Told
from exchange.client.datagrams import read_header, read_last_time, read_messages
from exchange.client.limits import EPOCH_RETURN_NS, GAPS_MAX
from exchange.client.market import ChannelMarket, Market
from protocol.books import StaleBookError, public_digest
from protocol.market_data import MarketDataMessage
from protocol.packets import CHANNELS_MAX, PacketError

__all__ = ["MarketDataReceiver"]

NO_EPOCH: Final = 0
"""Before the first packet. Should a venue draw this one, then nothing has to be forgotten."""


class MarketDataReceiver:
    """The books of some channels. Times are of a clock that never goes back."""

    def __init__(
        self,
        channels: Iterable[int],
        *,
        on_message: Callable[[MarketDataMessage], None] | None = None,
        on_gap: Callable[[Gap], None] | None = None,
        on_epoch: Callable[[int], None] | None = None,
    ) -> None:
        self.market = Market()
        told = Told(on_message, self._gap)
        self.channels = {
            channel: Channel(channel, ChannelMarket(self.market), told)
            for channel in dict.fromkeys(channels)
        }
        assert self.channels, "a receiver without a channel hears nothing"
        assert all(1 <= channel <= CHANNELS_MAX for channel in self.channels)
        self.epoch = NO_EPOCH
        """Of the last packet that was taken."""
        self.gaps: list[Gap] = []
        """The first GAPS_MAX gaps, over all epochs."""
        self.gap_count = 0
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
        self._on_epoch = on_epoch

    @property
    def is_complete(self) -> bool:
        """Whether every channel was heard and none has missed or awaits anything."""
        return all(channel.is_complete for channel in self.channels.values())

    @property
    def deadline_ns(self) -> int:
        """When `tick` is due, 0 for never."""
        deadlines = [channel.deadline_ns for channel in self.channels.values()]
        return min(filter(None, deadlines), default=0)

    def receive(self, channel: int, data: bytes, now_ns: int) -> None:
        """Take a datagram that came on the group of a channel. Never raises for what is in it."""
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
                    target.set_back(header)
                return
            content = read_messages(data, header.message_count)
        except PacketError as error:
            self.error_count += 1
            self.last_error = str(error)
            return
        if header.epoch != self.epoch and not self._start(header.epoch, now_ns):
            return
        target.hear(now_ns)
        target.take(header, content, now_ns)

    def tick(self, now_ns: int) -> None:
        """Give up what has been waited for long enough."""
        for channel in self.channels.values():
            channel.tick(now_ns)

    def public_digest(self) -> str:
        """The digest of all books; equal to the venue's when both stand at the same numbers.

        Raises StaleBookError after a gap, and before anything was heard.
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
