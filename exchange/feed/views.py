"""Streams of shared immutable bytes, and who is at their head.

A view is what all that ask for the same get: the packets of a channel, the selected messages of
one, the records of the log. A turn of the loop adds an entry, whose pieces are written at once to
every subscriber at the head, with no work of its own for any. A subscriber whose socket takes no
more leaves the head and is a cursor: a place in the ring, or a number from which the history is
read. So a view has no queue for anybody, and nobody waits for anybody.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from exchange.feed.history import History
from exchange.feed.limits import LOOK_SIZE_MAX, PAGE_SIZE_MAX
from exchange.feed.pieces import Sent, join, log_frames, packet_frame
from exchange.feed.ring import Ring, RingBudget
from exchange.feed.selection import Index, Numbered, Selection, number_messages, pack_selected
from protocol.framing import HEADER_SIZE
from protocol.packets import HEARTBEAT, PACKET_HEADER, Packet, encode_packet

__all__ = [
    "ChannelReader",
    "Cursor",
    "LogReader",
    "LogView",
    "Page",
    "Place",
    "Reader",
    "SelectionReader",
    "Write",
    "number_of",
]

Write = Callable[[bytes], None]


class Page(NamedTuple):
    """Frames of the past, in pieces, and the number behind them; there may be none."""

    pieces: Sequence[bytes]
    next_number: int


class Reader(Protocol):
    """Where a view's past is found, and how it says how far it is."""

    async def read(self, number: int, until: int) -> Page:
        """What comes from a number on, all of it below `until`. Raises HistoryError."""

    def heartbeat(self, next_number: int, now_ns: int) -> bytes:
        """The frame that says that everything below a number was sent; empty: there is none."""

    def number_at(self, piece: bytes) -> int:
        """The number that a piece begins with, 0 when it may begin inside of one."""


class Place(NamedTuple):
    """A piece of an entry of the ring, both by their index."""

    entry: int
    piece: int


class Cursor(Protocol):
    """A subscriber that may be at the head of a view."""

    write: Write


class LogView:
    """See the module. `ring` says where the head is; `sent` counts what goes to the head."""

    def __init__(
        self, reader: Reader, budget: RingBudget, sent: Sent, next_number: int, now_ns: int
    ) -> None:
        self.reader = reader
        self.ring = Ring(budget, next_number)
        self.user_count = 0  # subscriptions, at the head or not
        self._sent = sent
        self._live: dict[Cursor, None] = {}
        self._writes: tuple[Write, ...] | None = ()
        self._sending: Place | None = None
        self._said_ns = now_ns
        self._said_number = next_number

    @property
    def live_count(self) -> int:
        """Subscribers at the head."""
        return len(self._live)

    @property
    def head(self) -> Place:
        """Behind everything that was written to those at the head."""
        return self._sending or Place(self.ring.next_index, 0)

    def join(self, cursor: Cursor, now_ns: int) -> None:
        """The subscriber has everything, and gets what comes as it comes."""
        self._live[cursor] = None
        self._writes = None
        said = self.reader.heartbeat(self.ring.next_number, now_ns)
        if said:
            cursor.write(said)

    def leave(self, cursor: Cursor) -> None:
        """The subscriber is not at the head any more, or never was."""
        if self._live.pop(cursor, self) is None:
            self._writes = None

    def publish(self, next_number: int, pieces: Sequence[bytes], now_ns: int) -> None:
        """Add what brings the view up to `next_number`, and write it to those at the head."""
        self.ring.append(next_number, pieces, now_ns)
        index = self.ring.next_index - 1
        for place, piece in enumerate(pieces, start=1):
            # Who cannot take more leaves from within the write, and goes on from here.
            is_last = place == len(pieces)
            self._sending = Place(index + 1, 0) if is_last else Place(index, place)
            self._send(piece)
        self._sending = None
        if pieces:
            self._said_ns = now_ns
            self._said_number = next_number

    def beat(self, now_ns: int, progress_ns: int, idle_ns: int) -> None:
        """Tell those at the head how far the view is, when it has sent nothing for `idle_ns`, or
        for `progress_ns` in which its channel has gone on."""
        silent_ns = now_ns - self._said_ns
        next_number = self.ring.next_number
        has_moved = next_number != self._said_number
        if silent_ns < progress_ns or (silent_ns < idle_ns and not has_moved):
            return
        self._said_ns = now_ns
        self._said_number = next_number
        said = self.reader.heartbeat(next_number, now_ns)
        if said:
            self._send(said)

    def close(self) -> None:
        """Nobody needs it any more."""
        assert not self._live, "nobody is at the head"
        self.ring.close()

    def _send(self, piece: bytes) -> None:
        writes = self._writes
        if writes is None:
            writes = self._writes = tuple(cursor.write for cursor in self._live)
        for write in writes:
            write(piece)
        self._sent.count += len(writes)
        self._sent.size += len(writes) * len(piece)


class ChannelReader:
    """All packets of a channel, for subscriptions of one form."""

    def __init__(self, history: History, channel: int, epoch: int, form: int) -> None:
        self.channel = channel
        self.epoch = epoch
        self.form = form
        self._history = history

    async def read(self, number: int, until: int) -> Page:
        found = await self._history.packets(self.channel, number, size_max=PAGE_SIZE_MAX)
        kept = [packet for packet in found.packets if number_of(packet) < until]
        left = found.packets[len(kept) :]
        frames = [packet_frame(packet, self.form, 0) for packet in kept]
        return Page(join(frames), number_of(left[0]) if left else found.next_number)

    def heartbeat(self, next_number: int, now_ns: int) -> bytes:
        packet = Packet(HEARTBEAT, self.channel, self.epoch, next_number, now_ns, [])
        return packet_frame(encode_packet(packet), self.form, now_ns)

    def number_at(self, piece: bytes) -> int:
        return number_of(piece, HEADER_SIZE)


class SelectionReader:
    """Selected messages of a channel."""

    def __init__(
        self, history: History, channel: int, epoch: int, form: int, selection: Selection
    ) -> None:
        self.selection = selection
        self._history = history
        self._whole = ChannelReader(history, channel, epoch, form)

    async def read(self, number: int, until: int) -> Page:
        """Whole commands, since a command's last message of a selection is known at its end."""
        messages: list[Numbered] = []
        next_number = number
        while next_number < until and not (messages and messages[-1].is_last):
            found = await self._history.packets(
                self._whole.channel, next_number, size_max=LOOK_SIZE_MAX
            )
            new = number_messages(found.packets)
            messages += [one for one in new if next_number <= one.number < until]
            if found.next_number == next_number:
                break
            next_number = min(found.next_number, until)
        if not messages:
            return Page((), next_number)
        continued = 0 if messages[0].is_first else messages[0].message.sequence
        return Page(self.pieces(Index(messages), 0, continued), next_number)

    def pieces(self, index: Index, now_ns: int, continued: int = 0) -> list[bytes]:
        """What the selection has of some messages, which are whole commands but for the first."""
        whole = self._whole
        chosen = self.selection.select(index)
        packets = pack_selected(chosen, whole.channel, whole.epoch, now_ns, continued)
        return join(packet_frame(encode_packet(one), whole.form, now_ns) for one in packets)

    def heartbeat(self, next_number: int, now_ns: int) -> bytes:
        return self._whole.heartbeat(next_number, now_ns)

    def number_at(self, piece: bytes) -> int:
        return number_of(piece, HEADER_SIZE)


class LogReader:
    """Records of the log, whose numbers are the sequences of their commands."""

    def __init__(self, history: History) -> None:
        self._history = history

    async def read(self, number: int, until: int) -> Page:
        found = await self._history.log(number, size_max=PAGE_SIZE_MAX)
        kept = [one for one in found.records if one.first_sequence < until]
        frames = (frame for one in kept for frame in log_frames(*one, 0))
        return Page(join(frames), min(found.next_sequence, until))

    def heartbeat(self, next_number: int, now_ns: int) -> bytes:
        del next_number, now_ns  # A follower's keepalive is that of the session.
        return b""

    def number_at(self, piece: bytes) -> int:
        del piece  # A record may have many.
        return 0


def number_of(content: bytes, offset: int = 0) -> int:
    """The number in the header of a packet that begins at an offset."""
    return int(PACKET_HEADER.unpack_from(content, offset)[6])
