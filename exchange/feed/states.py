"""Subscriptions to states: best prices, levels, statistics, candles. Only the newest counts.

A view makes the states that have changed since it sent last, after a turn of the loop or in its
interval, and writes them to all its subscribers. The cursor of one whose socket takes no more is
the sequence up to which it has everything: when it takes more it is told what has changed since,
each once, as it is then. So nobody has a queue, and whoever reads slowly skips.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from exchange.feed.derived import Derived
from exchange.feed.limits import PAGE_SIZE_MAX, PASS_INSTRUMENTS_MAX
from exchange.feed.market import Changes, InstrumentState, Market
from exchange.feed.pieces import Sent, join, message_frame
from exchange.feed.selection import Selection
from exchange.feed.snapshot_sender import SnapshotSender
from exchange.feed.views import Write
from protocol.codes import SubscriptionForm
from protocol.feed import Subscribe
from protocol.market_data import InstrumentStatus
from protocol.wire import encode

if TYPE_CHECKING:
    from exchange.feed.connection import Connection

__all__ = ["StateSubscription", "StateView"]


class Seen(NamedTuple):
    """Sequences up to which somebody has every state (-1: none), definition and change of phase."""

    states: int
    listings: int
    phases: int


class StateView:
    """See the module. `sequence` is that up to which everything was sent to its subscribers."""

    def __init__(
        self, market: Market, derived: Derived, sent: Sent, request: Subscribe, now_ns: int
    ) -> None:
        self.channel = request.channel
        self.form = SubscriptionForm(request.form)
        self.selection = Selection(
            request.instruments,
            request.events,
            lambda one: market.instruments[one].definition.event_id,
            is_trades=False,
        )
        self.conflation_ns = request.conflation_ms * 1_000_000
        self.sequence = market.sequence
        self.user_count = 0
        self.changes = _changes(market, self.form)
        self._market = market
        self._derived = derived
        self.parameter = request.depth or request.interval_s
        self._sent = sent
        self._due_ns = now_ns
        self._listed: list[int] = []
        self._live: dict[StateSubscription, None] = {}

    @property
    def live_count(self) -> int:
        """Subscribers that have everything."""
        return len(self._live)

    def join(self, subscription: "StateSubscription") -> None:
        """It has everything up to `sequence`, perhaps more, and gets what comes."""
        self._live[subscription] = None

    def leave(self, subscription: "StateSubscription") -> None:
        """It takes no more."""
        self._live.pop(subscription, None)

    def publish(self, now_ns: int) -> None:
        """Send what has changed, unless that was less than the interval ago."""
        if now_ns < self._due_ns or self._market.sequence == self.sequence:
            return
        base = self.sequence
        if self._live:
            changed = reversed(self.changed(base))
            for piece in join(self.frames(changed, Seen(base, base, base), now_ns)):
                # Who cannot take more leaves from within the write, and goes on from `sequence`.
                live = tuple(self._live)
                for subscription in live:
                    subscription.write(piece)
                self._sent.count += len(live)
                self._sent.size += len(live) * len(piece)
        self.sequence = self._market.sequence
        self._due_ns = now_ns + self.conflation_ns

    def due_in_ns(self, now_ns: int) -> int:
        """How long until something has to be sent, 0: nothing has."""
        return 0 if self._market.sequence == self.sequence else max(self._due_ns - now_ns, 1)

    def changed(self, base: int) -> list[int]:
        """Instruments whose states or phases have changed since a sequence, the latest first."""
        found = dict.fromkeys(self.changes.since(base))
        found.update(dict.fromkeys(self._market.phase_changes.since(base)))
        return list(found)

    def listed(self) -> list[int]:
        """All instruments of the channel in order of their listing; it grows while it is read."""
        channel = self._market.channels.get(self.channel)
        if channel is not None and len(self._listed) < len(channel.instruments):
            self._listed.extend(islice(channel.instruments, len(self._listed), None))
        return self._listed

    def frames(self, instruments: Iterable[int], seen: Seen, now_ns: int) -> Iterator[bytes]:
        """What is new about these for somebody who has seen so much."""
        for instrument_id in instruments:
            instrument = self._market.instruments[instrument_id]
            if instrument.channel.channel == self.channel and self.selection.has(instrument_id):
                states = self._states(instrument_id, seen.states)
                for payload in (*self._told(instrument, seen), *states):
                    yield message_frame(payload, now_ns)

    def _told(self, instrument: InstrumentState, seen: Seen) -> Iterator[bytes]:
        """The definition and the phase, if they are new."""
        definition = instrument.definition
        instrument_id = definition.instrument_id
        if definition.sequence > seen.listings:
            if next(iter(instrument.event.instruments)) == instrument_id:
                yield instrument.event.payload
            yield instrument.payload
        if self._market.phase_changes.of(instrument_id) > seen.phases:
            market, phase = self._market, instrument.book.phase
            assert phase is not None, "the feed misses no message"
            yield encode(InstrumentStatus(market.sequence, market.time_ns, instrument_id, phase))

    def _states(self, instrument_id: int, base: int) -> Iterable[bytes]:
        """The states that somebody who has everything up to `base` does not have."""
        derived = self._derived
        if self.form is SubscriptionForm.CANDLES and base >= 0:
            return derived.candles_after(instrument_id, self.parameter, base)
        if self.form is SubscriptionForm.CANDLES:
            made = derived.candle(instrument_id, self.parameter)
        elif self.form is SubscriptionForm.LEVELS:
            made = derived.levels(instrument_id, self.parameter)
        elif self.form is SubscriptionForm.BEST_PRICES:
            made = derived.best_prices(instrument_id)
        else:
            made = derived.statistics(instrument_id)
        return (made.payload,) if made is not None and made.sequence > base else ()


def _changes(market: Market, form: SubscriptionForm) -> Changes:
    is_book = form in (SubscriptionForm.LEVELS, SubscriptionForm.BEST_PRICES)
    return market.book_changes if is_book else market.trade_changes


class StateSubscription:
    """A cursor of a view. A `Work`.

    To catch up it goes through the instruments that have changed, or, when they are many, through
    all; while it does, more may change, so it begins again until it has come to the end without.
    """

    def __init__(
        self,
        connection: "Connection",
        request: Subscribe,
        view: StateView,
        snapshot: SnapshotSender | None,
    ) -> None:
        self.request_id = request.request_id
        self.request = request
        self.view = view
        self.write: Write = connection.writer
        self.is_live = False
        self._connection = connection
        self._snapshot = snapshot
        # Units of a snapshot may be a little old: phases are told again.
        self._seen = Seen(-1, connection.streams.market.sequence, 0)
        self._target = -1  # up to where everything is sent when the pass under way is done
        self._pass: Iterator[bytes] | None = None
        self._pieces: deque[bytes] = deque()
        self._is_closed = False
        view.user_count += 1

    @property
    def has_work(self) -> bool:
        if self._snapshot is not None:
            return self._snapshot.is_ready
        return not self.is_live and not self._is_closed

    def block(self) -> None:
        if self.is_live:
            self.is_live = False
            self._seen = Seen(*(self.view.sequence,) * 3)
            self.view.leave(self)

    def resume(self) -> None:
        """It is stepped again."""

    async def step(self) -> int:
        streams = self._connection.streams
        streams.flush()
        if self._pieces:
            piece = self._pieces.popleft()
            self.write(piece)
            return len(piece)
        if self._snapshot is not None:
            self._pieces.extend(self._snapshot.step())
            if self._snapshot.is_done:
                self._snapshot = None
        elif self._seen.states == streams.market.sequence:
            self.is_live = True
            self.view.join(self)
        else:
            self._step_pass(streams.market.sequence, streams.now_ns())
        return 0

    def watch(self, now_ns: int) -> None:
        """States are never too far behind: they skip."""

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._pieces.clear()
            self._pass = None
            if self._snapshot is not None:
                self._snapshot.close()
                self._snapshot = None
            self.view.leave(self)
            self._connection.streams.release_states(self.view)

    def _step_pass(self, sequence: int, now_ns: int) -> None:
        """Prepare some of what has changed."""
        if self._pass is None:
            self._target = sequence
            self._pass = self._begin_pass(now_ns)
        frames: list[bytes] = []
        size = 0
        for frame in islice(self._pass, PASS_INSTRUMENTS_MAX):
            frames.append(frame)
            size += len(frame)
            if size >= PAGE_SIZE_MAX:
                break
        if not frames:
            self._pass = None
            self._seen = Seen(*(self._target,) * 3)
        self._pieces.extend(join(filter(None, frames)))

    def _begin_pass(self, now_ns: int) -> Iterator[bytes]:
        """The frames, with an empty one now and then so that a step ends where there are few."""
        view, seen = self.view, self._seen
        changed = view.changed(seen.states) if seen.states >= 0 else None
        if changed is not None and len(changed) <= PASS_INSTRUMENTS_MAX:
            yield from view.frames(reversed(changed), seen, now_ns)
            return
        for instrument_id in view.listed():
            yield b""
            yield from view.frames((instrument_id,), seen, now_ns)
