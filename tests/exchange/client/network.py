"""A venue, its feed, two lossy lines and a consumer, in virtual time: the real engine, packer,
market and snapshots; what lies between them is a heap of things to do at a time.

At every moment at which the consumer says that it knows the books of a channel, they are compared
with the venue's at the same number.
"""

import heapq
import random
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from exchange.client.receiver import MarketDataReceiver
from exchange.client.recovery import Gap, Healing, Means, Recovery, Replay, Snapshot
from exchange.core.engine import Batch
from exchange.core.limits import GENESIS_DEFAULTS
from exchange.feed.market import Market
from exchange.feed.snapshots import Plan, Snapshots
from journal import EventRecord
from journal.event_format import RecordHeader
from protocol import admin, order_entry
from protocol.books import public_digest
from protocol.codes import EventKind, Side
from protocol.market_data import MarketDataMessage
from protocol.packer import Packer
from protocol.packets import (
    DATA,
    HEARTBEAT_INTERVAL_NS,
    SNAPSHOT,
    Block,
    Packet,
    decode_message,
    decode_packet,
    encode_packet,
)
from tests.exchange.core.venue import Venue

__all__ = ["CHANNELS", "MS", "Line", "Network", "S", "Scenario"]

MS: Final = 1_000_000
S: Final = 1_000 * MS
CHANNELS: Final = (1, 2)
EPOCH: Final = 1 << 20
ROUND_TRIP_NS: Final = 1 * MS
ASK_AGAIN_NS: Final = 20 * MS
CYCLE_PAUSE_NS: Final = 100 * MS


@dataclass(frozen=True)
class Line:
    """How a line treats packets; shares are of 1."""

    loss: float = 0.0
    reorder: float = 0.0
    """Share of packets that are late by up to `late_ns`."""
    duplication: float = 0.0
    late_ns: int = 3 * MS
    way_ns: int = 100_000


@dataclass(frozen=True)
class Scenario:
    """One run; `is_cycled`: snapshots come over the lines, else from a feed connection."""

    seed: int
    line_a: Line
    line_b: Line
    means: Means
    is_cycled: bool = False
    joins_late: bool = False
    """Whether nothing is heard at first."""
    feed_lag_ns: int = 2 * MS
    """How far the feed is behind the lines."""


def cut(
    rng: random.Random, channel: int, number: int, blocks: list[Block], kind: int = DATA
) -> list[bytes]:
    """Packets of consecutive messages, as many in each as chance will have it."""
    packets = []
    while blocks:
        count = rng.randrange(1, 6)
        head, blocks = blocks[:count], blocks[count:]
        packets.append(encode_packet(Packet(kind, channel, EPOCH, number, S, head)))
        number += len(head)
    return packets


class Exchange:
    """The engine with its packets, and everything that was ever true."""

    def __init__(self, rng: random.Random) -> None:
        self.venue = Venue(**GENESIS_DEFAULTS).with_market(cash=10**14)
        self.truth = Market(EPOCH)
        self.packer = Packer(EPOCH)
        self.blocks: dict[int, list[Block]] = {channel: [] for channel in CHANNELS}
        """By channel, everything that was sent; that at n - 1 has the number n."""
        self.ends: dict[tuple[int, int], int] = {(channel, 1): 0 for channel in CHANNELS}
        """Channels with their numbers behind each batch, and how many instruments they had."""
        self._digests: dict[int, list[tuple[int, str]]] = {}
        """By instrument: a number of its channel, and its book as of it."""
        self.rng = rng
        self._ids: list[tuple[int, int]] = []
        """Client order ids and their sessions."""
        self._event_count = 1
        self._instrument_count = 1

    def begin(self) -> tuple[EventRecord, ...]:
        """List what there is at first."""
        self.venue.send(1, admin.Event("SNOW", EventKind.BINARY, "Snow?", "USD", 2))
        self._event_count = 2
        self._list_instrument(2)
        self._list_instrument(1)
        batches = [*self.venue.batches, self.venue.engine.take_batch()]
        return tuple(map(self._record, batches))

    def work(self, count: int) -> EventRecord:
        """Some commands in one batch."""
        for _ in range(count):
            self._command()
        return self._record(self.venue.engine.take_batch())

    def publish(self, record: EventRecord, now_ns: int) -> list[tuple[int, bytes]]:
        """The packets of a batch; from here on it is true."""
        packets = self.packer.pack(record.events, now_ns)
        for channel, packet in packets:
            for block in decode_packet(packet).blocks:
                self.blocks[channel].append(Block(block.flags, block.payload))
        sequence = self.truth.sequence
        self.truth.apply(record)
        for instrument_id in self.truth.book_changes.since(sequence):
            state = self.truth.instruments[instrument_id]
            digests = self._digests.setdefault(instrument_id, [])
            digests.append((state.channel.next_number, public_digest([state.book])))
        for channel, one in self.truth.channels.items():
            self.ends[channel, one.next_number] = len(one.instruments)
        return packets

    def digest(self, instrument_id: int, number: int) -> str:
        """That of one book as of a number of its channel."""
        digests = self._digests[instrument_id]
        return digests[bisect_right(digests, number, key=lambda row: row[0]) - 1][1]

    def packets(self, channel: int, from_number: int, count: int) -> list[bytes]:
        """A range, cut in another way than it was sent."""
        return cut(self.rng, channel, from_number, self.blocks[channel][from_number - 1 :][:count])

    def messages(self, channel: int) -> list[MarketDataMessage]:
        """All of a channel."""
        found = [decode_message(block.payload) for block in self.blocks[channel]]
        return [message for message in found if message is not None]

    def channel_of(self, event_id: int) -> int:
        return self.truth.events[event_id].channel.channel

    def next_number(self, channel: int) -> int:
        """Of the message that the venue sends next."""
        return len(self.blocks[channel]) + 1

    # Inside.

    def _record(self, batch: Batch) -> EventRecord:
        sizes = (batch.command_count, len(batch.events), batch.events_crc)
        return EventRecord(RecordHeader(3, batch.first_sequence, *sizes), batch.events)

    def _list_instrument(self, event_id: int) -> None:
        self._instrument_count += 1
        name = f"I{self._instrument_count}"
        self.venue.send(1, admin.Instrument(event_id, name, "?", 0, 10_000, [(0, 100)], 100))

    def _command(self) -> None:
        rng, venue = self.rng, self.venue
        instrument_id = rng.randrange(1, self._instrument_count + 1)
        kind = rng.random()
        if kind < 0.01:
            self._event_count += 1
            name = f"E{self._event_count}"
            channel = rng.choice(CHANNELS)
            venue.send(1, admin.Event(name, EventKind.BINARY, "?", "USD", channel))
        elif kind < 0.02:
            self._list_instrument(rng.randrange(1, self._event_count + 1))
        elif kind < 0.06:
            venue.send(1, rng.choice((admin.Halt, admin.Resume, admin.Resume))(instrument_id))
        elif kind < 0.4 and self._ids:
            client_order_id, session = rng.choice(self._ids[-80:])
            venue.send(session, order_entry.CancelOrder(client_order_id))
        else:
            index = rng.randrange(2)
            self._ids.append((len(self._ids) + 1, index + 2))
            what = (instrument_id, index + 1, rng.choice([*Side]), rng.randrange(45, 56) * 100)
            order = order_entry.NewOrder(len(self._ids), *what, rng.randrange(1, 6) * 100)
            venue.send(index + 2, order)


class Network:
    """Everything between the venue and one consumer. Times are of one clock."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.rng = random.Random(scenario.seed)
        self.now_ns = S
        self.exchange = Exchange(self.rng)
        self.feed = Market(EPOCH)
        self.snapshots = Snapshots(self.feed)
        self.is_dead = scenario.joins_late
        """Whether both lines lose everything."""
        self.told: list[MarketDataMessage] = []
        self.gaps: list[Gap] = []
        self.recoveries: list[Recovery] = []
        self.checked_count = 0
        self._checked: dict[int, tuple[int, int]] = {}
        self.receiver = MarketDataReceiver(
            CHANNELS,
            means=scenario.means,
            on_message=self.told.append,
            on_gap=self.gaps.append,
            on_recovered=self._recovered,
        )
        self._todo: list[tuple[int, int, Callable[[], None]]] = []
        self._order = 0
        self._asking: dict[int, None] = {}
        """Channels for which a request is under way."""
        self._sent_ns = dict.fromkeys(CHANNELS, 0)
        self._source = 0
        self._cycle_channel = CHANNELS[0]
        self._cycle_plan: Plan | None = None
        for record in self.exchange.begin():
            self._send(record)
        self._beat()
        if scenario.is_cycled:
            self._cycle()

    # What a test does.

    def run(self, duration_ns: int) -> None:
        """Let time go on."""
        end_ns = self.now_ns + duration_ns
        while self._todo and self._todo[0][0] <= end_ns:
            self.now_ns, _, action = heapq.heappop(self._todo)
            action()
            self._look()
        self.now_ns = end_ns

    def work(self, batch_count: int) -> None:
        """Batches of commands, at once or up to a tenth of a second apart."""
        for _ in range(batch_count):
            self._send(self.exchange.work(self.rng.choice((1, 1, 2, 5, 20))))
            self.run(self.rng.choice((0, 0, 100_000, MS, MS, 4 * MS, 10 * MS, 100 * MS)))

    def check_known(self) -> None:
        """The consumer is where the venue is, and has its books."""
        exchange, receiver = self.exchange, self.receiver
        for channel in CHANNELS:
            assert receiver.channels[channel].next_number == exchange.next_number(channel)
        assert receiver.is_complete
        assert receiver.public_digest() == exchange.venue.engine.public_digest()
        assert receiver.market.books.keys() == exchange.truth.instruments.keys()
        assert receiver.market.events.keys() == exchange.truth.events.keys()
        for instrument_id, book in receiver.market.books.items():
            truth = exchange.truth.instruments[instrument_id]
            assert book.definition == truth.definition
            last, known = truth.book.last_trade, book.last_trade
            assert (last and (last.trade_id, last.price, last.quantity, last.open_interest)) == (
                known and (known.trade_id, known.price, known.quantity, known.open_interest)
            )

    def check_told(self) -> None:
        """Every message was told once and in order, but for those that are in gaps, and for those
        before the snapshot with which a channel has begun."""
        assert all(gap.count for gap in self.gaps), "what was heard made sense"
        for channel in CHANNELS:
            missed: dict[int, None] = {}
            for one in self.gaps:
                if one.channel == channel:
                    missed |= dict.fromkeys(range(one.first_number, one.first_number + one.count))
            joins = [
                one.how for one in self.recoveries if (one.channel, one.from_number) == (channel, 1)
            ]
            listed = self.exchange.truth.channels[channel]
            told = [
                message
                for message in self.told
                if getattr(message, "channel", channel) == channel
                and (
                    getattr(message, "instrument_id", 0) in listed.instruments
                    or getattr(message, "event_id", 0) in listed.events
                )
            ]
            messages = self.exchange.messages(channel)
            before = len(messages) - len(missed) - len(told)
            assert before == 0 or Healing.SNAPSHOT in joins
            assert told == [
                message
                for number, message in enumerate(messages, 1)
                if number > before and number not in missed
            ]

    # Inside.

    def _after(self, wait_ns: int, action: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._todo, (self.now_ns + wait_ns, self._order, action))

    def _send(self, record: EventRecord) -> None:
        """The venue publishes a batch; a little later the feed has read it."""
        for channel, packet in self.exchange.publish(record, self.now_ns):
            self._to_lines(channel, packet, self._hear)
        self._after(self.scenario.feed_lag_ns, lambda: self.feed.apply(record))

    def _to_lines(self, channel: int, packet: bytes, hear: Callable[[int, bytes], None]) -> None:
        self._sent_ns[channel] = self.now_ns
        for line in (self.scenario.line_a, self.scenario.line_b):
            copies = 1 + (self.rng.random() < line.duplication)
            for _ in range(copies):
                if self.is_dead or self.rng.random() < line.loss:
                    continue
                way_ns = line.way_ns
                if self.rng.random() < line.reorder:
                    way_ns += self.rng.randrange(line.late_ns)
                self._after(way_ns, lambda: hear(channel, packet))

    def _hear(self, channel: int, packet: bytes) -> None:
        self.receiver.receive(channel, packet, self.now_ns)

    def _beat(self) -> None:
        """The venue's heartbeats."""
        for channel in CHANNELS:
            if self.now_ns - self._sent_ns[channel] >= HEARTBEAT_INTERVAL_NS:
                number = self.exchange.next_number(channel)
                packet = self.exchange.packer.heartbeat(channel, number, self.now_ns)
                self._to_lines(channel, packet, self._hear)
        self._after(HEARTBEAT_INTERVAL_NS // 10, self._beat)

    def _cycle(self) -> None:
        """The feed sends snapshots of all channels over the lines."""
        channel = self._cycle_channel
        plan = self._cycle_plan
        if plan is None or plan.is_done:
            number = plan.number if plan is not None else 1
            self._cycle_channel = channel = CHANNELS[CHANNELS.index(channel) - 1]
            plan = self._cycle_plan = self.snapshots.plan(channel, number, self.now_ns)
        for packet in self._cut(plan.step(self.now_ns, 1)):
            self._offer(channel, packet)
        self._after(CYCLE_PAUSE_NS if plan.is_done else 2 * MS, self._cycle)

    def _cut(self, packets: list[bytes]) -> list[bytes]:
        """Cut packets of snapshots into smaller ones."""
        found = []
        for packet in packets:
            _, channel, _, number, _, blocks = decode_packet(packet)
            plain = [Block(block.flags, block.payload) for block in blocks]
            found += cut(self.rng, channel, number, plain, SNAPSHOT)
        return found

    def _offer(self, channel: int, packet: bytes) -> None:
        """A consumer hears the group of snapshots only while it wants to."""
        sent_ns = self._sent_ns[channel]
        self._to_lines(channel, packet, self._hear_snapshot)
        self._sent_ns[channel] = sent_ns

    def _hear_snapshot(self, channel: int, packet: bytes) -> None:
        if any(wanted.channel == channel for wanted in self.receiver.wanted):
            self.receiver.receive_snapshot(channel, packet, self.now_ns)

    def _look(self) -> None:
        """Do what the consumer does after something came, and check what it says."""
        receiver = self.receiver
        while receiver.deadline_ns == 1:
            receiver.go_on(self.now_ns)
        if (due_ns := receiver.deadline_ns) and self.now_ns >= due_ns:
            receiver.tick(self.now_ns)
        elif due_ns:
            self._after(due_ns - self.now_ns, lambda: None)
        for wanted in receiver.wanted:
            if wanted.channel not in self._asking and not (
                self.scenario.is_cycled and not isinstance(wanted, Replay)
            ):
                self._asking[wanted.channel] = None
                self._after(ROUND_TRIP_NS, partial(self._answer, wanted))
        self._check()

    def _check(self) -> None:
        """No book says what it should not say."""
        receiver, exchange = self.receiver, self.exchange
        for channel, state in receiver.channels.items():
            assert state.wanted is not None or not state.is_recovering, "it asks for nothing"
            number = state.next_number
            count = exchange.ends.get((channel, number))
            if count is None or (channel, number) == self._checked.get(channel):
                continue  # In the middle of a batch, or not a change.
            known = [
                book
                for book in receiver.market.books.values()
                if not book.is_stale and exchange.channel_of(book.definition.event_id) == channel
            ]
            for book in known:
                assert not state.is_recovering, "it is not known to be right"
                truth = exchange.digest(book.instrument_id, number)
                assert public_digest([book]) == truth, (channel, number)
            assert len(known) == count or not state.is_complete
            self.checked_count += state.is_complete
            self._checked[channel] = (channel, number)

    def _recovered(self, recovery: Recovery) -> None:
        self.recoveries.append(recovery)
        due_ns = self.receiver.channels[recovery.channel].deadline_ns
        assert due_ns == 0 or due_ns > self.now_ns, "nothing is missing any more"

    def _answer(self, wanted: Replay | Snapshot) -> None:
        """The feed answers, as far as it is."""
        channel = wanted.channel
        state = self.feed.channels.get(channel)
        if isinstance(wanted, Replay):
            if state is not None and wanted.from_number + wanted.count <= state.next_number:
                packets = self.exchange.packets(channel, wanted.from_number, wanted.count)
                for packet in packets:
                    self.receiver.receive(channel, packet, self.now_ns)
        else:
            self._source += 1
            plan = self.snapshots.plan(channel, self.now_ns // 1_000, self.now_ns)
            while not plan.is_done:
                for packet in self._cut(plan.step(self.now_ns)):
                    self.receiver.receive_snapshot(channel, packet, self.now_ns, self._source)
        self._after(ASK_AGAIN_NS, lambda: self._asking.pop(channel))
