"""From records to views: what a turn of the loop has brought is packed once and goes to everybody.

Records wait for the end of the turn, several under load; `flush` makes of all of them one entry for
each view, so that a subscriber costs one write a turn however many records there were, and applies
them to the market. Nothing runs in between, and whoever begins something is served after a flush:
a market that was read and a view that is followed always stand at the same number.
"""

import asyncio
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from exchange.feed.derived import Derived
from exchange.feed.drop_copy import DropCopy, Recent
from exchange.feed.history import History
from exchange.feed.limits import BEAT_NS, PLANS_MAX, SHARE_VIEWS_MAX, VIEWS_MAX
from exchange.feed.market import Market
from exchange.feed.pieces import Sent, join, log_frames, packet_frame
from exchange.feed.ring import RingBudget
from exchange.feed.selection import Index, Selection, number_messages
from exchange.feed.snapshots import Plan, Snapshots
from exchange.feed.states import StateView
from exchange.feed.views import ChannelReader, LogReader, LogView, SelectionReader
from journal import EventRecord, private_events
from protocol.codes import SubscriptionForm, TerminateCode
from protocol.feed import DropCopyRequest, Subscribe
from protocol.packer import Packer
from protocol.packets import HEARTBEAT_INTERVAL_NS

if TYPE_CHECKING:
    from exchange.feed.connection import Connection

__all__ = ["Streams"]

BEAT_CHECK_S: Final = 0.05
"""How often it is looked whether a view or a drop copy has to say how far it is."""

MICROSECOND_NS: Final = 1_000

FLUSH_SIZE: Final = 128 * 1024
"""Bytes of records after which it is not waited for the end of the turn: a few ms of work."""


STALLED_TEXT: Final = "the client does not read its snapshot, and others wait for theirs"


class Key(NamedTuple):
    """What makes two subscriptions the same view."""

    channel: int
    form: int
    instruments: tuple[int, ...]
    events: tuple[int, ...]
    depth: int
    interval_s: int
    conflation_ms: int


class Streams:
    """See the module. All of it belongs to the loop's thread."""

    def __init__(
        self,
        market: Market,
        history: History,
        now_ns: Callable[[], int],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """`now_ns` stamps frames and must not go back."""
        self.market = market
        self.history = history
        self.now_ns = now_ns
        self.derived = Derived(market)
        self.snapshots = Snapshots(market)
        self.budget = RingBudget()
        self.slow_count = 0  # subscriptions that were too slow
        self.record_count = 0
        self.record_size = 0
        self.packet_count = 0
        self.flush_count = 0
        self.sent = Sent()
        self.on_flush: Callable[[], None] = lambda: None
        """Called when everything of a turn was handed out."""
        self.on_channel: Callable[[], None] = lambda: None
        """Called when a channel has come into use."""
        self.channels: dict[int, LogView] = {}
        self.selections: dict[Key, LogView] = {}
        self.states: dict[Key, StateView] = {}
        self.records: LogView | None = None
        self.copies: dict[DropCopy, None] = {}
        self._makers: dict[LogView | StateView, int] = {}  # for which participants they were made
        self._plans: dict[Connection, None] = {}  # that are sent a snapshot
        self._loop = loop
        self._packer = Packer(market.epoch)
        self._records: list[EventRecord] = []  # that wait for the end of the turn
        self._waiting_size = 0
        self._recent: Recent | None = None
        self._flush_handle: asyncio.Handle | None = None
        self._states_timer: asyncio.TimerHandle | None = None
        self._beat_timer: asyncio.TimerHandle | None = None
        for channel, state in market.channels.items():
            self._packer.expect(channel, state.next_number)
            self._open_channel(channel)

    def start(self) -> None:
        """Begin to say how far views are."""
        self._beat_timer = self._loop.call_later(BEAT_CHECK_S, self._beat)

    def close(self) -> None:
        """No timer fires any more."""
        for timer in (self._beat_timer, self._states_timer, self._flush_handle):
            if timer is not None:
                timer.cancel()

    # Records in.

    def take(self, record: EventRecord) -> None:
        """Take the next record; what it brings goes out at the end of the turn, or with `flush`."""
        self._records.append(record)
        self._waiting_size += record.size
        if self._waiting_size >= FLUSH_SIZE:
            self.flush()
        elif self._flush_handle is None:
            self._flush_handle = self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Give everybody what came since the last time.

        Packets of whole channels and the log itself are known without the market, and go first.
        """
        if self._flush_handle is not None:
            self._flush_handle.cancel()
            self._flush_handle = None
        if not self._records:
            return
        records, self._records = self._records, []
        self._waiting_size = 0
        self.flush_count += 1
        self.record_count += len(records)
        self.record_size += sum(record.size for record in records)
        now_ns = self.now_ns()
        packets = self._pack(records, now_ns)
        is_new = self._publish(packets, now_ns)
        if self.records is not None:
            self._publish_records(self.records, records, now_ns)
        for record in records:
            self.market.apply(record)
        for channel, of_channel in packets.items():
            self._publish_selections(channel, of_channel, now_ns)
        if self._recent is not None:
            self._publish_private(self._recent, records)
        self._publish_states()
        if is_new:
            self.on_channel()
        self.on_flush()

    def _pack(self, records: list[EventRecord], now_ns: int) -> dict[int, list[bytes]]:
        """Their packets, by channel."""
        packets: dict[int, list[bytes]] = {}
        for record in records:
            for channel, packet in self._packer.pack(record.events, now_ns):
                packets.setdefault(channel, []).append(packet)
                self.packet_count += 1
        return packets

    def _publish(self, packets: dict[int, list[bytes]], now_ns: int) -> bool:
        """Send the packets of whole channels; returns whether one has come into use."""
        is_new = False
        for channel, of_channel in packets.items():
            if channel not in self.channels:
                self._open_channel(channel)
            is_new |= channel not in self.market.channels
            frames = (
                packet_frame(packet, SubscriptionForm.ORDERS, now_ns) for packet in of_channel
            )
            next_number = self._packer.next_number(channel)
            self.channels[channel].publish(next_number, join(frames), now_ns)
        return is_new

    def _publish_selections(self, channel: int, packets: list[bytes], now_ns: int) -> None:
        selections = [view for key, view in self.selections.items() if key.channel == channel]
        if not selections:
            return
        index = Index(number_messages(packets))
        for view in selections:
            assert isinstance(view.reader, SelectionReader), "it is a selection"
            pieces = view.reader.pieces(index, now_ns)
            view.publish(self.next_number(channel), pieces, now_ns)

    def _publish_records(self, view: LogView, records: list[EventRecord], now_ns: int) -> None:
        contents = [(record.header.first_sequence, record.content) for record in records]
        frames = (frame for one in contents for frame in log_frames(*one, now_ns))
        view.publish(records[-1].header.last_sequence + 1, join(frames), now_ns)

    def _publish_private(self, recent: Recent, records: list[EventRecord]) -> None:
        events = [event for record in records for event in private_events(record.events)]
        recent.add(events, self.market.sequence)
        for copy in tuple(self.copies):
            copy.advance()

    def _publish_states(self) -> None:
        """Send the states that are due, and come back for the others."""
        now_ns = self.now_ns()
        due_ns = []
        for view in tuple(self.states.values()):
            view.publish(now_ns)
            due_ns.append(view.due_in_ns(now_ns))
        waits_ns = [one for one in due_ns if one]
        if waits_ns and self._states_timer is None:
            self._states_timer = self._loop.call_later(min(waits_ns) / 1e9, self._on_states)

    def _on_states(self) -> None:
        self._states_timer = None
        self._publish_states()

    def _beat(self) -> None:
        self._beat_timer = self._loop.call_later(BEAT_CHECK_S, self._beat)
        self.flush()
        now_ns = self.now_ns()
        for view in self.streams():
            view.beat(now_ns, HEARTBEAT_INTERVAL_NS, BEAT_NS)
        for copy in tuple(self.copies):
            copy.mark(now_ns)

    # Views.

    def streams(self) -> Iterator[LogView]:
        """All views of packets and records."""
        yield from tuple(self.channels.values())
        yield from tuple(self.selections.values())
        if self.records is not None:
            yield self.records

    def next_number(self, channel: int) -> int:
        """The number of a channel's next message."""
        state = self.market.channels.get(channel)
        return state.next_number if state is not None else 1

    def plan(self, request: Subscribe) -> Plan:
        """A snapshot of what is subscribed to."""
        self.flush()
        now_ns = self.now_ns()
        return self.snapshots.plan(
            request.channel,
            now_ns // MICROSECOND_NS,
            now_ns,
            with_orders=request.form == SubscriptionForm.ORDERS,
            instruments=request.instruments,
            events=request.events,
        )

    @property
    def has_room_for_plan(self) -> bool:
        """Whether another snapshot may be made now."""
        return len(self._plans) < PLANS_MAX or self._find_stalled() is not None

    def open_plan(self, connection: "Connection", request: Subscribe) -> Plan | None:
        """A snapshot that is sent on a connection, its only one; None: there are too many. If need
        be it takes the place of one whose client does not read."""
        if len(self._plans) >= PLANS_MAX:
            stalled = self._find_stalled()
            if stalled is None:
                return None
            stalled.end(TerminateCode.SLOW_CONSUMER, STALLED_TEXT)
        self._plans[connection] = None
        return self.plan(request)

    def close_plan(self, connection: "Connection") -> None:
        """It is sent, or given up."""
        del self._plans[connection]

    def _find_stalled(self) -> "Connection | None":
        now_ns = self.now_ns()
        return next((one for one in self._plans if one.is_stalled(now_ns)), None)

    def log_view(self, request: Subscribe, participant_id: int) -> LogView:
        """The view of a subscription to packets, which a participant asks for."""
        key = _key(request)
        if key is None:
            if request.channel not in self.channels:
                self._open_channel(request.channel)
            return self.channels[request.channel]
        view = self.selections.get(key)
        if view is None:
            form = SubscriptionForm(request.form)
            selection = Selection(
                request.instruments,
                request.events,
                self._event_of,
                is_trades=form is SubscriptionForm.TRADES,
            )
            reader = SelectionReader(
                self.history, request.channel, self.market.epoch, form, selection
            )
            view = self.selections[key] = LogView(
                reader,
                self.budget,
                self.sent,
                self.next_number(request.channel),
                self.now_ns(),
            )
            self._makers[view] = participant_id
        return view

    def release(self, view: LogView) -> None:
        """One user less."""
        view.user_count -= 1
        if view.user_count:
            return
        if view is self.records:
            self.records = None
            view.close()
        for key, other in self.selections.items():
            if other is view:
                del self.selections[key], self._makers[view]
                view.close()
                break

    def record_view(self) -> LogView:
        """The view of the log itself."""
        if self.records is None:
            next_sequence = self.market.sequence + 1
            reader = LogReader(self.history)
            self.records = LogView(reader, self.budget, self.sent, next_sequence, self.now_ns())
        return self.records

    def state_view(self, request: Subscribe, participant_id: int) -> StateView:
        """The view of a subscription to states, which a participant asks for."""
        key = _key(request)
        assert key is not None, "states are always selected"
        view = self.states.get(key)
        if view is None:
            view = self.states[key] = StateView(
                self.market, self.derived, self.sent, request, self.now_ns()
            )
            self._makers[view] = participant_id
        return view

    def release_states(self, view: StateView) -> None:
        """One user less."""
        view.user_count -= 1
        if view.user_count:
            return
        del self._makers[view]
        self.states = {key: one for key, one in self.states.items() if one is not view}
        kind = (view.form, view.parameter)
        if all((one.form, one.parameter) != kind for one in self.states.values()):
            self.derived.forget(*kind)

    def missing_view(self, request: Subscribe, participant_id: int) -> int:
        """The limit of views that a participant meets, when the one that this needs is not there
        and cannot be; else 0."""
        key = _key(request)
        if key is None or key in self.selections or key in self.states:
            return 0
        if len(self._makers) >= VIEWS_MAX:
            return VIEWS_MAX
        share = sum(one == participant_id for one in self._makers.values())
        return SHARE_VIEWS_MAX if share >= SHARE_VIEWS_MAX else 0

    def replay_reader(self, channel: int) -> ChannelReader:
        """Reads packets of the past for replays."""
        return ChannelReader(self.history, channel, self.market.epoch, 0)

    def open_copy(self, connection: "Connection", request: DropCopyRequest) -> DropCopy:
        """A drop copy."""
        if self._recent is None:
            self._recent = Recent(self.market.directory, self.market.sequence + 1)
        copy = DropCopy(connection, request, self._recent, self.history)
        self.copies[copy] = None
        return copy

    def release_copy(self, copy: DropCopy) -> None:
        """It is over."""
        self.copies.pop(copy, None)
        if not self.copies:
            self._recent = None

    # Inside.

    def _open_channel(self, channel: int) -> None:
        """Make the view of a channel."""
        next_number = self.next_number(channel)
        reader = ChannelReader(self.history, channel, self.market.epoch, SubscriptionForm.ORDERS)
        self.channels[channel] = LogView(reader, self.budget, self.sent, next_number, self.now_ns())

    def _event_of(self, instrument_id: int) -> int:
        return self.market.instruments[instrument_id].definition.event_id


def _key(request: Subscribe) -> Key | None:
    """What makes two subscriptions the same view; None: that of the whole channel."""
    instruments, events = tuple(sorted(request.instruments)), tuple(sorted(request.events))
    if request.form == SubscriptionForm.ORDERS and not instruments and not events:
        return None
    return Key(
        request.channel,
        request.form,
        instruments,
        events,
        request.depth,
        request.interval_s,
        request.conflation_ms,
    )
