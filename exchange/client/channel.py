"""One channel of market data: its numbers, what came too early, and commands put together again.

Every message is numbered, so packets are compared by numbers and never by their order: what is
known is dropped, what comes early waits for what is missing. It waits until the hole is filled,
until too many packets wait, or until the oldest has waited long enough; then the hole is a gap and
the books of the channel are stale. A heartbeat is a packet without messages, so it shows the loss
of the packets before it in the same way.

The messages of one command are applied together, when its last one has come: between two packets
a book is never in the middle of a command. What does not fit together is a gap with a reason.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from exchange.client.datagrams import Header, Messages
from exchange.client.limits import COMMAND_MESSAGES_MAX, HELD_NS, HELD_PACKETS_MAX
from exchange.client.market import ChannelMarket
from protocol.books import InconsistentError
from protocol.market_data import MarketDataMessage
from protocol.packets import FIRST, HEARTBEAT_INTERVAL_NS, LAST

__all__ = ["Channel", "Gap", "Told"]

_WHOLE: Final = FIRST | LAST


@dataclass(frozen=True)
class Gap:
    """Where a channel lost its place: `count` messages from a number on did not come.

    With a count of 0 nothing was lost, but the messages make no sense; `reason` says how.
    """

    epoch: int
    channel: int
    first_number: int
    count: int
    reason: str


class Told(NamedTuple):
    """Who is told of every message, applied or not, and of every gap."""

    message: Callable[[MarketDataMessage], None] | None
    gap: Callable[[Gap], None]


class _Held(NamedTuple):
    """A packet that came too early; a heartbeat has no messages."""

    arrived_ns: int
    content: Messages


class Channel:
    """One channel in one epoch. Public attributes are for reading only."""

    __slots__ = (
        "_behind_ns",
        "_epoch",
        "_held",
        "_is_cut",
        "_is_open",
        "_last_time_ns",
        "_market",
        "_pending",
        "_told",
        "channel",
        "duplicate_count",
        "heard_ns",
        "is_heard",
        "message_count",
        "next_number",
        "unknown_count",
    )

    def __init__(self, channel: int, market: ChannelMarket, told: Told) -> None:
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
        self.start(0)

    def start(self, epoch: int) -> None:
        """Forget everything: numbers begin at 1."""
        self.next_number = 1
        self.heard_ns = 0
        self.is_heard = False
        self._epoch = epoch
        self._held: dict[int, _Held] = {}
        self._pending: list[MarketDataMessage] = []
        self._is_open = False
        """Whether a command has begun and not ended."""
        self._is_cut = False
        """Whether the beginning of a command may have been lost."""
        self._behind_ns = 0
        self._last_time_ns = 0
        """Of the last command that was applied; 0: none since the last gap."""
        self._market.clear()

    @property
    def is_complete(self) -> bool:
        """Whether the channel was heard, nothing was missed and nothing is waited for."""
        return self._market.is_complete and not self._held and self.is_heard

    @property
    def deadline_ns(self) -> int:
        """When `tick` is due, 0 for never."""
        if not self._held:
            return 0
        return min(held.arrived_ns for held in self._held.values()) + HELD_NS

    def hear(self, now_ns: int) -> None:
        """A packet of this channel came, whatever is in it."""
        self.heard_ns = now_ns
        self.is_heard = True

    def wants(self, header: Header) -> bool:
        """Whether a packet can tell anything new."""
        if header.end > self.next_number or not header.message_count:
            held = self._held.get(header.number)
            return held is None or len(held.content.messages) < header.message_count
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

    def set_back(self, header: Header) -> None:
        """The venue gives numbers again: nothing is known, and we go on where it is."""
        self._held.clear()
        self._lose(header.number, 0, "numbers were given before")
        self._finish()
        self.next_number = header.end

    def take(self, header: Header, content: Messages, now_ns: int) -> None:
        """Take a packet that is wanted."""
        number = header.number
        if number > self.next_number:
            held = self._held.get(number)
            self._held[number] = _Held(held.arrived_ns if held else now_ns, content)
            if len(self._held) > HELD_PACKETS_MAX:
                self._give_up()
            return
        if header.message_count:
            if self._is_other(number, content):
                self.set_back(header)
                self.next_number = number
            self._apply(number, content)
            if self._held:
                self._go_on()
        elif number < self.next_number:
            self._fall_back(number, now_ns)

    def tick(self, now_ns: int) -> None:
        """Give up what has been waited for long enough."""
        while (deadline_ns := self.deadline_ns) and now_ns >= deadline_ns:
            self._give_up()

    # Inside.

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
        number = self.next_number
        handlers, tell = self._market.handlers, self._told.message
        self._behind_ns = 0
        self.message_count += len(messages)
        for flag, message in zip(flags, messages, strict=True):
            self.next_number = number = number + 1
            if flag & _WHOLE != _WHOLE or self._is_open or message is None:
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
            try:
                handlers[type(message)](message)
            except InconsistentError as error:
                self._doubt(str(error))
        if self._told.message is not None:
            for message in messages:
                self._told.message(message)

    def _go_on(self) -> None:
        """Apply what waited and now follows."""
        held = self._held
        while held and (number := min(held)) <= self.next_number:
            content = held.pop(number).content
            if number + len(content.messages) > self.next_number:
                self._apply(number, content)

    def _give_up(self) -> None:
        """Call the hole before the first packet that waits a gap, and go on behind it."""
        number = min(self._held)
        self._lose(self.next_number, number - self.next_number, "messages did not come")
        self._finish()
        self.next_number = number
        self._go_on()

    def _fall_back(self, number: int, now_ns: int) -> None:
        """A heartbeat behind us may have been overtaken; one much later says that we are wrong."""
        if not self._behind_ns:
            self._behind_ns = now_ns
        elif now_ns - self._behind_ns > HEARTBEAT_INTERVAL_NS // 2:
            self._lose(number, 0, f"the venue's next number is {number}, not {self.next_number}")
            self._finish()
            self.next_number = number

    def _doubt(self, reason: str) -> None:
        """The message before `next_number` does not fit; nothing is known from here on."""
        self._lose(self.next_number - 1, 0, reason)

    def _lose(self, first_number: int, count: int, reason: str) -> None:
        """Give up the books. The next message may come from the middle of a command."""
        self._market.lose()
        self._behind_ns = 0
        self._last_time_ns = 0
        self._is_open = False
        self._is_cut = True
        self._told.gap(Gap(self._epoch, self.channel, first_number, count, reason))
