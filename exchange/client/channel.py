"""One channel of market data: its numbers, what came too early, and commands put together again.

Every message is numbered, so packets are compared by numbers and never by their order or line: what
is known is dropped, what comes early waits for what is missing. It waits until the hole is filled,
until too many packets wait, or until the oldest has waited long enough. A heartbeat is a packet
without messages, so it shows the loss of the packets before it in the same way.

What is then still missing is asked for again (`recovery`): the books are stale and packets wait,
until a replay has filled every hole, or a snapshot has taken their place; it is as of some number
from which messages wait or still come. An instrument in it may be as of a later number: messages
below that are told, and not applied. With nobody to ask the hole is a gap for good.

The messages of one command are applied together, when its last one has come: between two packets
a book is never in the middle of a command. What does not fit together is a gap with a reason, and
only a snapshot mends the books.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

from exchange.client.datagrams import Header, Messages, read_messages
from exchange.client.held import Held, HeldPackets
from exchange.client.limits import (
    COMMAND_MESSAGES_MAX,
    DATAGRAMS_MAX,
    HELD_NS,
    HELD_PACKETS_MAX,
    HELD_SIZE_MAX,
    JOIN_REPLAY_MAX,
    RECOVERY_MAX_NS,
    RECOVERY_WAIT_NS,
    REPLAY_MAX,
)
from exchange.client.market import ChannelMarket
from exchange.client.recovery import (
    Gap,
    Healing,
    Means,
    Recovering,
    Recovery,
    Replay,
    Snapshot,
)
from exchange.client.snapshots import ChannelSnapshot, SnapshotCollector
from protocol.books import InconsistentError
from protocol.market_data import MarketDataMessage
from protocol.packets import FIRST, HEARTBEAT_INTERVAL_NS, LAST, Packet

__all__ = ["Channel", "Told"]

_WHOLE: Final = FIRST | LAST
_NOT_COMING: Final = "messages did not come"
_REPLACED: Final = "messages did not come; a snapshot took their place"


class Told(NamedTuple):
    """Who is told of every message, applied or not, of every gap and every recovery."""

    message: Callable[[MarketDataMessage], None] | None
    gap: Callable[[Gap], None]
    recovered: Callable[[Recovery], None]


class Channel:
    """One channel in one epoch. Public attributes are for reading only."""

    __slots__ = (
        "_ahead",
        "_behind_ns",
        "_collector",
        "_epoch",
        "_head",
        "_held",
        "_is_cut",
        "_is_open",
        "_is_waiting",
        "_last_time_ns",
        "_loaded_number",
        "_market",
        "_means",
        "_pending",
        "_recovery",
        "_settled_number",
        "_told",
        "channel",
        "duplicate_count",
        "heard_ns",
        "is_heard",
        "message_count",
        "next_number",
        "unknown_count",
    )

    def __init__(self, channel: int, market: ChannelMarket, told: Told, means: Means) -> None:
        self.channel = channel
        self.next_number = 1
        """Number of the first message that has not been seen and is not given up."""
        self.heard_ns = 0
        """When the last packet came; only when `is_heard`."""
        self.is_heard = False
        """Whether any packet of this epoch came."""
        self.message_count = 0
        self.duplicate_count = 0
        """Packets of which every message was known."""
        self.unknown_count = 0
        """Messages that were skipped because their tag is not known here."""
        self._market = market
        self._told = told
        self._means = means
        self._collector = SnapshotCollector()
        self._held = HeldPackets()
        self.start(0)

    def start(self, epoch: int) -> None:
        """Forget everything: numbers begin at 1."""
        self.next_number = 1
        self.heard_ns = 0
        self.is_heard = False
        self._epoch = epoch
        self._held.clear()
        self._head = 1
        """The highest number that is known to come next, from what waits or waited."""
        self._pending: list[MarketDataMessage] = []
        self._is_open = False
        """Whether a command has begun and not ended."""
        self._is_cut = False
        """Whether the beginning of a command may have been lost."""
        self._behind_ns = 0
        self._last_time_ns = 0
        """Of the last command that was applied; 0: none since the last gap."""
        self._recovery: Recovering | None = None
        self._is_waiting = False
        """Whether the books were given up and wait for a snapshot: nothing is applied."""
        self._loaded_number = self._settled_number = 1
        """What is below the first is in the snapshot; what is from the second on is not."""
        self._ahead: dict[int, int] = {}
        """In between, by instrument: what is below the number is in the snapshot."""
        self._collector.clear()
        self._market.clear()

    @property
    def is_complete(self) -> bool:
        """Whether the channel was heard, all is known and nothing is waited for."""
        return (
            self._market.is_complete and self.is_heard and self._recovery is None and not self._held
        )

    @property
    def is_recovering(self) -> bool:
        """Whether the books are stale for now, and a replay or a snapshot is waited for."""
        return self._recovery is not None

    @property
    def last_time_ns(self) -> int:
        """When the last command that was applied was sequenced; 0: none since the last gap."""
        return self._last_time_ns

    @property
    def snapshot_error_count(self) -> int:
        """Messages of snapshots that made no sense."""
        return self._collector.error_count

    @property
    def deadline_ns(self) -> int:
        """When `tick` or `go_on` is due, 0 for never."""
        if self.has_work:
            return 1
        if self._recovery is not None:
            return min(self._recovery.heard_ns + RECOVERY_WAIT_NS, self._recovery.until_ns)
        return self._held.oldest_ns + HELD_NS if self._held else 0

    @property
    def has_work(self) -> bool:
        """Whether packets that waited follow now: `go_on` applies some of them."""
        held = self._held
        return bool(held) and held.first_number <= self.next_number and not self._is_waiting

    @property
    def wanted(self) -> Replay | Snapshot | None:
        """What should be asked for now. A request for less than that is of use, too."""
        recovery = self._recovery
        if recovery is None:
            if self._market.is_complete or not self._means.can_snapshot:
                return None
            return Snapshot(self.channel, self.next_number)
        if recovery.by_snapshot:
            return Snapshot(self.channel, self._needed_number)
        count = self._missing_count
        if not count:
            return None
        if self._lost_count > count:  # One request for all holes; what waits comes twice.
            count = self._head - self.next_number
        # The last message that we know comes again, if there is one: it must be the same.
        known = 1 if self._last_time_ns else 0
        return Replay(self.channel, self.next_number - known, min(count + known, REPLAY_MAX))

    def hear(self, now_ns: int) -> None:
        """A packet of this channel came, whatever is in it."""
        self.heard_ns = now_ns
        self.is_heard = True

    def wants(self, header: Header) -> bool:
        """Whether a packet can tell anything new."""
        if header.end > self.next_number or not header.message_count:
            return self._held.is_new(header.number, header.message_count)
        return False

    def pass_over(self, header: Header, time_ns: int) -> bool:
        """Drop a packet that is not wanted; `time_ns` is that of its last command.

        False: it is later than all that we know, under numbers that we know. Then the venue goes on
        from an older state, a journal that was set back perhaps, and `set_back` is called for.
        """
        if header.end > self.next_number or not header.message_count:
            return True  # It waits already.
        if time_ns > self._last_time_ns > 0:
            return False
        self.duplicate_count += 1
        return True

    def set_back(self, header: Header, time_ns: int, now_ns: int) -> None:
        """The venue gives numbers again: nothing is known, and we go on where it is."""
        self._start_over(header.number, header.end, "numbers were given before")
        self._last_time_ns = time_ns
        if self._is_waiting:
            self._settle(now_ns)

    def take(self, header: Header, content: Messages, data: bytes, now_ns: int) -> None:
        """Take a packet that is wanted; `data` is all of it."""
        number = header.number
        if number > self.next_number or (self._is_waiting and header.message_count):
            self._hold(Held(number, header.message_count, now_ns, data), now_ns)
        elif header.message_count:
            if self._is_other(number, content):
                self._start_over(number, number, "numbers were given before")
            if self._recovery is not None:
                self._recovery.count += min(header.end - self.next_number, self._missing_count)
                self._recovery.heard_ns = now_ns
            self._apply(number, content)
            if self._held:
                self._go_on()
            if self._is_waiting or self._recovery is not None:
                self._settle(now_ns)
        elif number < self.next_number:
            self._fall_back(number, now_ns)

    def take_snapshot(self, packet: Packet, source: int, now_ns: int) -> None:
        """Take a packet of a snapshot; sources have numbers of their own."""
        recovery = self._recovery
        if recovery is None and not (self._market.is_complete and self.is_heard):
            recovery = self._begin(now_ns, now_ns)
            recovery.by_snapshot = self._means.can_snapshot
        if recovery is None or not recovery.by_snapshot:
            return
        recovery.heard_ns = now_ns
        self._collector.add(packet, source)
        snapshot = self._collector.whole(self._needed_number, self._last_time_ns)
        if snapshot is not None:
            self._load(snapshot, now_ns)

    def skip(self, next_number: int, now_ns: int) -> None:
        """What is below a number will not come, and a snapshot comes in its place."""
        if next_number > self.next_number:
            self._head = max(self._head, next_number)
            if self._recovery is None:
                self._stop_waiting(now_ns)
            self.refuse_replay()

    def refuse_replay(self) -> None:
        """What is missing cannot be had again: a snapshot is wanted, if there are any."""
        if self._recovery is not None:
            self._recovery.is_refused = True
            self._decide(self._recovery)

    def go_on(self, now_ns: int) -> None:
        """Apply a bounded number of packets that waited and now follow."""
        if self.has_work:
            self._go_on()
            if self._is_waiting or self._recovery is not None:
                self._settle(now_ns)

    def tick(self, now_ns: int) -> None:
        """Do what is due: no longer wait for what is missing, or for who does not answer."""
        self.go_on(now_ns)
        while not self.has_work and (deadline_ns := self.deadline_ns) and now_ns >= deadline_ns:
            if self._recovery is None:
                self._stop_waiting(now_ns)
            elif self._means.can_snapshot and now_ns >= self._recovery.until_ns:
                self._disbelieve(self._recovery, now_ns)
            else:
                self._give_up()

    # Inside: messages.

    def _is_other(self, number: int, content: Messages) -> bool:
        """Whether the last message of a packet that is known already is not the one we know."""
        skip = self.next_number - number
        known = content.messages[skip - 1] if skip else None
        return known is not None and known.time_ns > self._last_time_ns > 0

    def _apply(self, number: int, content: Messages) -> None:
        """Take the messages of a packet that begins at `next_number` or before it."""
        flags, messages = content
        if skip := self.next_number - number:
            flags, messages = flags[skip:], messages[skip:]
        number, settled_number = self.next_number, self._settled_number
        handlers, tell = self._market.handlers, self._told.message
        self._behind_ns = 0
        self.message_count += len(messages)
        for flag, message in zip(flags, messages, strict=True):
            is_loaded = number < settled_number
            self.next_number = number = number + 1
            if flag & _WHOLE != _WHOLE or self._is_open or message is None or is_loaded:
                self._put_together(flag, message)
                continue
            self._is_cut = False
            try:
                handlers[type(message)](message)
            except InconsistentError as error:
                self._doubt(str(error))
            if tell is not None:
                tell(message)
        for message in reversed(messages):
            if message is not None:
                self._last_time_ns = message.time_ns
                break

    def _put_together(self, flag: int, message: MarketDataMessage | None) -> None:
        """Keep a message of a command until its last one; an unknown one only takes its place."""
        is_first = bool(flag & FIRST)
        if is_first == self._is_open and not self._is_cut:
            self._doubt("a command has no end" if is_first else "a command has no beginning")
            self._finish()
        self._is_open = self._is_open or is_first
        self._is_cut = self._is_cut and not is_first
        if message is None:
            self.unknown_count += 1
        else:
            self._pending.append(message)
        if flag & LAST:
            self._finish()
            self._is_open = self._is_cut = False
        elif len(self._pending) == COMMAND_MESSAGES_MAX:
            self._doubt(f"a command has more than {COMMAND_MESSAGES_MAX} messages")
            self._finish()

    def _finish(self) -> None:
        """Apply the messages that were kept, then tell them."""
        messages = self._pending[:]
        self._pending.clear()
        handlers = self._market.handlers
        for message in messages:
            if self.next_number <= self._settled_number and self._is_loaded(message):
                continue
            try:
                handlers[type(message)](message)
            except InconsistentError as error:
                self._doubt(str(error))
        if self._told.message is not None:
            for message in messages:
                self._told.message(message)

    def _is_loaded(self, message: MarketDataMessage) -> bool:
        """Whether the snapshot that was loaded knows a message of the command that ends here."""
        if self.next_number <= self._loaded_number:
            return True
        return self.next_number <= self._ahead.get(getattr(message, "instrument_id", 0), 0)

    # Inside: what waits, and what is missing.

    @property
    def _missing_count(self) -> int:
        """How many messages are missing before the first that waits."""
        end = self._held.first_number if self._held else self._head
        return max(0, end - self.next_number)

    @property
    def _lost_count(self) -> int:
        """How many are missing in all, as far as is known; at least those before the first."""
        span = self._head - self.next_number
        return max(self._missing_count, span - self._held.message_count)

    @property
    def _needed_number(self) -> int:
        """The lowest `next_number` of a snapshot that is of use."""
        return self.next_number + (self._missing_count > 0 and not self._is_waiting)

    def _hold(self, held: Held, now_ns: int) -> None:
        """Keep a packet until what is before it has come."""
        waiting = self._held
        waiting.add(held)
        self._head = max(self._head, held.number + held.message_count)
        recovery = self._recovery
        if recovery is None:
            if len(waiting) > HELD_PACKETS_MAX:
                self._stop_waiting(now_ns)
        elif waiting.size > HELD_SIZE_MAX:
            waiting.clear()
            self._decide(recovery)

    def _go_on(self) -> None:
        """Apply what waited and now follows, up to a bound: others have their turn."""
        held = self._held
        for _ in range(DATAGRAMS_MAX):
            if not self.has_work:
                return
            number, message_count, _, data = held.pop()
            if number + message_count > self.next_number:
                self._apply(number, read_messages(data, message_count))

    def _stop_waiting(self, now_ns: int) -> None:
        """What is missing does not come by itself."""
        if any(self._means) and self._market.is_complete:
            self._decide(self._begin(self._held.oldest_ns if self._held else now_ns, now_ns))
        else:
            self._give_up()

    def _begin(self, since_ns: int, now_ns: int) -> Recovering:
        """Begin to recover: the books are stale from here on."""
        self._recovery = Recovering(self.next_number, since_ns, now_ns)
        self._is_waiting = not self._market.is_complete
        self._market.suspend()
        return self._recovery

    def _decide(self, recovery: Recovering) -> None:
        """Choose between replay and snapshot."""
        can_replay, can_snapshot = self._means
        count_max = JOIN_REPLAY_MAX if self.next_number == 1 else REPLAY_MAX
        can_replay = can_replay and not recovery.is_refused and not self._is_waiting
        is_long = self._lost_count > count_max
        recovery.by_snapshot = can_snapshot and (is_long or not can_replay)
        if not can_replay and not can_snapshot:
            self._give_up()

    def _settle(self, now_ns: int) -> None:
        """After something was applied or given up: end the recovery, or go on with it."""
        recovery = self._recovery
        if recovery is None:
            recovery = self._begin(now_ns, now_ns)
        if self.has_work:
            return
        is_settled = self.next_number >= self._settled_number
        is_young = self._held and now_ns < self._held.oldest_ns + HELD_NS
        if self._is_waiting or (self._missing_count and not (is_settled and is_young)):
            self._decide(recovery)
        elif is_settled:
            self._end(recovery, now_ns)

    def _end(self, recovery: Recovering, now_ns: int) -> None:
        """Nothing is missing any more."""
        self._recovery = None
        self._ahead = {}
        self._collector.clear()
        self._market.resume()
        what = (recovery.from_number, recovery.count, recovery.how, now_ns - recovery.since_ns)
        self._told.recovered(Recovery(self._epoch, self.channel, *what))

    def _load(self, snapshot: ChannelSnapshot, now_ns: int) -> None:
        """Have the books from a snapshot, and go on behind it."""
        recovery, collector = self._recovery, self._collector
        assert recovery is not None, "a snapshot is taken in a recovery"
        collector.clear()
        try:
            self._market.load(snapshot)
        except InconsistentError:
            collector.error_count += 1
            self._market.lose()
            self._is_waiting = True
            return
        recovery.how, recovery.by_snapshot = Healing.SNAPSHOT, False
        self.hear(now_ns)
        self._is_waiting = False
        begin, units = snapshot.begin, snapshot.units
        self._loaded_number = next_number = begin.next_number
        self._ahead = {unit.state.instrument_id: unit.state.next_number for unit in units}
        self._settled_number = max([next_number, *self._ahead.values()])
        self._head = max(self._head, self._settled_number)
        held = self._held
        if self.next_number == 1:  # What was before we came is nobody's loss.
            recovery.count += next_number - 1
            self.next_number = next_number
        while self.next_number < next_number and not self._is_waiting:
            end = min(held.first_number, next_number) if held else next_number
            if end > self.next_number:
                self._replace(end, recovery)
            self._go_on()
        if self.next_number == next_number:
            self._is_open = self._is_cut = False
            self._last_time_ns = begin.time_ns
            self._go_on()
        self._settle(now_ns)

    def _replace(self, end: int, recovery: Recovering) -> None:
        """Go on at a number: what is missing below it is in the snapshot that was loaded."""
        number, count = self.next_number, end - self.next_number
        recovery.count += count
        self._is_open, self._is_cut = False, True
        self._finish()
        self.next_number = end
        self._told.gap(Gap(self._epoch, self.channel, number, count, _REPLACED))

    def _give_up(self) -> None:
        """Nobody helps: what is missing is a gap for good, and we go on behind it."""
        self._recovery = None
        self._is_waiting = False
        if count := self._missing_count:
            self._lose(self.next_number, count, _NOT_COMING)
            self._finish()
            self.next_number += count
        self._market.resume()
        self._go_on()

    def _disbelieve(self, recovery: Recovering, now_ns: int) -> None:
        """What was announced has not come for long, and others answer: forget what waits for it."""
        number = self.next_number
        self._start_over(number, number, "messages that were announced did not come")
        recovery.until_ns = now_ns + RECOVERY_MAX_NS
        self._is_waiting = True
        self._decide(recovery)

    def _fall_back(self, number: int, now_ns: int) -> None:
        """A heartbeat behind us may have been overtaken; one much later says that we are wrong."""
        if not self._behind_ns:
            self._behind_ns = now_ns
        elif now_ns - self._behind_ns > HEARTBEAT_INTERVAL_NS // 2:
            reason = f"the venue's next number is {number}, not {self.next_number}"
            self._start_over(number, number, reason)
            if self._is_waiting:
                self._settle(now_ns)

    def _start_over(self, first_number: int, next_number: int, reason: str) -> None:
        """The venue gives numbers again from one on: nothing is known, and we go on at another."""
        self._held.clear()
        self._lose(first_number, 0, reason)
        self._finish()
        self.next_number = self._head = next_number

    def _doubt(self, reason: str) -> None:
        """The message before `next_number` does not fit; nothing is known from here on."""
        self._lose(self.next_number - 1, 0, reason)

    def _lose(self, first_number: int, count: int, reason: str) -> None:
        """Give up the books. The next message may come from the middle of a command."""
        if self._means.can_snapshot and self._market.is_complete and not count:
            self._is_waiting = True
        self._market.lose()
        self._collector.clear()
        self._ahead = {}
        self._loaded_number = self._settled_number = 1
        self._behind_ns = 0
        self._last_time_ns = 0
        self._is_open = False
        self._is_cut = True
        self._told.gap(Gap(self._epoch, self.channel, first_number, count, reason))
