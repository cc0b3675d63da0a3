"""Who reads a simulated venue: subscribers and drop copies of the feed, consumers of the lines.

What comes is compared with the truth as it comes: it is durable, it is what the journal says, and
of a numbered stream nothing is missing and nothing comes twice. With another epoch, and only then,
everything begins anew.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final

from exchange.client import (
    ClientError,
    CopiedReport,
    DropCopyPosition,
    FeedClient,
    open_feed,
)
from exchange.client.surroundings import Surroundings
from protocol import wire
from protocol.codes import DropCopyScope, SubscriptionStart
from protocol.feed import RequestEnd, Skipped, Subscribed
from protocol.framing import SEQUENCED
from protocol.packets import BLOCK_HEAD, DATA, PACKET_HEADER
from tests.simulation.truth import Era, Truth
from tests.simulation.workload import ADMIN, private_key

__all__ = ["CHANNELS", "Listener", "Subscriber"]

CHANNELS: Final = (1, 2)
RETRY_S: Final = 0.1

Complain = Callable[[str], object]


class Subscriber:
    """A client of the feed: every message of every channel, and every report of every session."""

    def __init__(self, truth: Truth, complain: Complain) -> None:
        self.next_numbers = dict.fromkeys(CHANNELS, 1)
        self.copied: dict[int, int] = {}
        """The last report by session."""
        self.report_count = 0
        self._epoch = 0
        self._truth = truth
        self._complain = complain
        self._copying: asyncio.Task[None] | None = None

    async def run(self, address: tuple[str, int], surroundings: Surroundings) -> int:
        """The main coroutine of a process; it never ends by itself."""
        client = open_feed(
            *address, key=private_key(ADMIN), session="reader", surroundings=surroundings
        )
        for channel in CHANNELS:
            await self._subscribe(client, channel)
        await self._ask_for_copy(client)
        await asyncio.get_running_loop().create_future()
        return 0

    async def _ask_for_copy(self, client: FeedClient) -> None:
        era = self._era
        self.copied = {}
        await client.drop_copy(
            scope=DropCopyScope.ALL,
            position=DropCopyPosition(1, 0),
            on_report=lambda copied: self._copy(era, copied),
        )

    @property
    def _era(self) -> Era:
        return self._truth.epochs[self._epoch]

    async def _subscribe(self, client: FeedClient, channel: int) -> None:
        await client.subscribe(
            channel,
            start=SubscriptionStart.NUMBER,
            from_number=1,
            on_packet=self._take,
            on_notice=lambda notice: self._note(client, channel, notice),
            on_end=self._end,
        )

    def _note(
        self, client: FeedClient, channel: int, notice: Subscribed | Skipped | RequestEnd
    ) -> None:
        if isinstance(notice, Skipped):
            self._complain("a subscriber that keeps up was told to skip messages")
        elif isinstance(notice, Subscribed) and notice.epoch != self._epoch:
            if notice.epoch not in self._truth.epochs:
                self._complain(f"a subscription is in epoch {notice.epoch}, which never was")
                return
            is_first, self._epoch = not self._epoch, notice.epoch
            self.next_numbers = dict.fromkeys(CHANNELS, 1)
            if not is_first:
                # The drop copy has ended, since its places mean nothing any more.
                self._copying = asyncio.get_running_loop().create_task(self._ask_for_copy(client))

    def _end(self, reason: ClientError | None) -> None:
        self._complain(f"a subscription has ended: {reason}")

    def _take(self, packet: bytes) -> None:
        _, _, kind, channel, count, _, number, _ = PACKET_HEADER.unpack_from(packet)
        if kind != DATA:
            return
        if number != self.next_numbers[channel]:
            self._complain(f"message {number} came for {self.next_numbers[channel]}")
            return
        messages = self._era.market.get(channel, [])
        offset = PACKET_HEADER.size
        for index in range(number - 1, number - 1 + count):
            length = BLOCK_HEAD.unpack_from(packet, offset)[0]
            offset += BLOCK_HEAD.size
            if index >= len(messages) or packet[offset : offset + length] != messages[index]:
                self._complain(f"the feed's message {index + 1} of channel {channel} is another")
                return
            offset += length
        self.next_numbers[channel] = number + count

    def _copy(self, era: Era, copied: CopiedReport) -> None:
        self.report_count += 1
        session, number = copied.session_id, copied.number
        if not number:
            return  # Who is who.
        if number != self.copied.get(session, 0) + 1:
            self._complain(f"the drop copy has report {number} of session {session} out of turn")
            return
        reports = era.reports.get(session, [])
        is_there = number <= len(reports)
        if not is_there or wire.decode_venue(SEQUENCED, reports[number - 1]) != copied.report:
            self._complain(f"the drop copy's report {number} of session {session} is another")
            return
        self.copied[session] = number

    def is_behind(self) -> str:
        """What it has not got yet, "" when it has everything."""
        if not self._epoch or self._era is not self._truth.eras[-1]:
            return "subscriber: it is in another epoch"
        for channel in CHANNELS:
            count = len(self._truth.market.get(channel, []))
            if self.next_numbers[channel] != count + 1:
                return f"subscriber: {self.next_numbers[channel]} of {count} in channel {channel}"
        for session, reports in self._truth.reports.items():
            if self.copied.get(session, 0) != len(reports):
                return f"drop copy: {self.copied.get(session, 0)} of {len(reports)} of {session}"
        return ""


class Listener:
    """A consumer of the lines, and what it told its user."""

    def __init__(self, truth: Truth, complain: Complain) -> None:
        self.options: dict[str, Any] = {
            "channels": CHANNELS,
            "on_event": self._take,
            "on_epoch": self._begin_epoch,
            "on_gap": lambda gap: self._lost.add(gap.channel),
            "on_recovered": lambda recovery: self._recovered(recovery.channel),
        }
        self._truth = truth
        self._complain = complain
        self._era: Era | None = None
        self._places: dict[int, int] = dict.fromkeys(CHANNELS, 0)
        self._lost: set[int] = set(CHANNELS)
        """Channels of which some are missing, as it was told, until it is told that they are
        known again."""
        self._passed: dict[int, int] = dict.fromkeys(CHANNELS, 0)
        """Messages that may have been left out until then."""
        self._decoded: dict[int, list[Any]] = {channel: [] for channel in CHANNELS}

    def begin(self) -> None:
        """Another process listens; it begins anywhere."""
        self._places = dict.fromkeys(CHANNELS, 0)
        self._passed = dict.fromkeys(CHANNELS, 0)
        self._lost = set(CHANNELS)

    def _recovered(self, channel: int) -> None:
        market = self._era.market if self._era is not None else {}
        self._passed[channel] = len(market.get(channel, []))
        self._lost.discard(channel)

    def _begin_epoch(self, epoch: int) -> None:
        era = self._truth.epochs.get(epoch)
        if era is None:
            self._complain(f"a consumer is in epoch {epoch}, which never was")
        elif era is not self._era:
            self._era = era
            self._decoded = {channel: [] for channel in CHANNELS}
        self.begin()

    def _take(self, message: Any) -> None:
        """Messages of a channel come in order; those that a snapshot stands for are left out."""
        market = self._era.market if self._era is not None else {}
        for channel in CHANNELS:
            payloads, decoded = market.get(channel, []), self._decoded[channel]
            place = self._places[channel]
            while place < len(payloads):
                if place == len(decoded):
                    decoded.append(wire.decode_market_data(payloads[place]))
                if decoded[place] == message:
                    self._places[channel] = place + 1
                    return
                if place >= self._passed[channel] and channel not in self._lost:
                    break
                place += 1
        self._complain(f"a consumer was told of what is not there, or not in order: {message}")

    def is_behind(self, consumer: Any) -> str:
        """Why its books are not those of the venue, "" when they are."""
        if consumer is None:
            return "consumer: it does not run"
        if not consumer.is_complete:
            return "consumer: books are stale"
        if consumer.public_digest() != self._truth.engine.public_digest():
            return "consumer: its books are others"
        for channel, messages in self._truth.market.items():
            told = max(self._places[channel], self._passed[channel])
            if told < len(messages):
                return f"consumer: its user was told {told} of {len(messages)} in {channel}"
        return ""
