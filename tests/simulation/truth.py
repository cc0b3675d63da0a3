"""What has happened, by the durable records alone: the measure of all that anybody is told.

An engine of its own applies each record in the moment in which the disk has it. What it says is
kept: reports, answers to log-ons, market data, commands. `Witness` compares with that every byte
that leaves a venue, before it leaves. Only a repair that loses durable records sets it back; what
had been said until then is kept as an era, since whoever has it cannot know.
"""

import struct
from collections import Counter
from typing import Any, Final, NamedTuple

from exchange.core.engine import Engine
from journal import JournalError, Storage, read_only
from protocol import wire
from protocol.codes import RejectCode, TerminateCode
from protocol.framing import HEADER, HEADER_SIZE, LOG, PACKET, SEQUENCED, SESSION
from protocol.packets import BLOCK_HEAD, DATA, HEARTBEAT, PACKET_HEADER
from protocol.records import COMMAND_HEAD, EVENT_HEAD, FROM_CLIENT, MARKET_DATA, REPORT
from protocol.records import SESSION as ANSWER
from protocol.transport import (
    LogOnAccepted,
    LogOnRejected,
    StateBalances,
    StateEnd,
    StateOrders,
    StatePositions,
    Terminate,
)
from protocol.wire import peek_tag
from tests.simulation.disks import DurableRecord, Violation

__all__ = ["Era", "Truth", "Witness", "check_folder"]

POSITION: Final = struct.Struct("<8s7Q")
LOG_ON_ACCEPTED: Final = LogOnAccepted.__struct_config__.tag
IMAGE_PARTS: Final = StateOrders | StatePositions | StateBalances | StateEnd


class Era(NamedTuple):
    """What was said from one loss of durable records to the next."""

    reports: dict[int, list[bytes]]
    market: dict[int, list[bytes]]


class _Taken(NamedTuple):
    """A log-on was accepted."""

    sequence: int
    session: int
    connection: int


class Truth:
    """See the module. Numbers count from 1: report n of a session is at index n - 1."""

    def __init__(self) -> None:
        self.eras: list[Era] = []
        """All of them, the present one last."""
        self.epochs: dict[int, Era] = {}
        """By the epoch of the market data."""
        self.lost: Counter[tuple[int, bytes]] = Counter()
        """How often a payload of a session was in records that are lost."""
        self.lost_numbers: set[tuple[int, int, bytes]] = set()
        """Session, number and payload of these."""
        self._begin()

    def _begin(self) -> None:
        self.engine = Engine()
        self.records: list[DurableRecord] = []
        self.command_count = 0
        self.reports: dict[int, list[bytes]] = {}
        self.answers: dict[tuple[int, int], bytes] = {}
        """To log-ons, by session and connection."""
        self.market: dict[int, list[bytes]] = {}
        """Messages by channel."""
        self.commands: dict[int, dict[int, bytes]] = {}
        """Payloads of clients by session and number."""
        self.applied: Counter[tuple[int, bytes]] = Counter()
        """How often a payload of a session is in the journal."""
        self.holders: dict[int, int] = {}
        """The connection that has each session, or had it last."""
        self.refusals: set[tuple[int, int]] = set()
        """Of log-ons by the engine: code and limit."""
        self.eras.append(Era(self.reports, self.market))

    def rewind(self, sequence: int) -> None:
        """A repair has lost every durable record behind this sequence."""
        records, commands = self.records, self.commands
        self._begin()
        for record in records:
            if record.last_sequence <= sequence:
                self.add(record)
        for session, numbers in commands.items():
            kept = self.commands.get(session, {})
            for number, content in numbers.items():
                if number not in kept:
                    self.lost[session, content] += 1
                    self.lost_numbers.add((session, number, content))

    def begin_epoch(self, epoch: int) -> None:
        """What is durable from now on is told in this epoch."""
        self.epochs[epoch] = self.eras[-1]

    @property
    def sequence(self) -> int:
        """The last durable one."""
        return self.engine.sequence

    def add(self, record: DurableRecord) -> None:
        """A record has become durable."""
        events, events_crc = self.engine.replay(
            record.first_sequence, record.command_count, record.payload
        )
        if events_crc != record.events_crc:
            raise Violation(f"events of the record from {record.first_sequence} differ")
        self.records.append(record)
        self.command_count += record.command_count
        taken = self._keep_events(events)
        self._keep_commands(record.first_sequence, record.payload, taken)

    def _keep_commands(self, sequence: int, payload: bytes, taken: list[_Taken]) -> None:
        """`taken`: who takes which session with these commands."""
        offset = 0
        while offset < len(payload):
            size, kind, _, _, session, connection, number, _, _ = COMMAND_HEAD.unpack_from(
                payload, offset
            )
            if kind == FROM_CLIENT:
                if self.holders.get(session) != connection:
                    raise Violation(
                        f"command {number} of session {session} is of connection "
                        f"{connection}, which does not have it any more"
                    )
                content = payload[offset + COMMAND_HEAD.size : offset + size]
                numbers = self.commands.setdefault(session, {})
                if number in numbers:
                    raise Violation(f"command {number} of session {session} is applied twice")
                numbers[number] = content
                self.applied[session, content] += 1
            while taken and taken[0].sequence <= sequence:
                self.holders[taken[0].session] = taken[0].connection
                del taken[0]
            sequence += 1
            offset += size

    def _keep_events(self, events: bytes) -> list[_Taken]:
        """Keep what is said; returns who takes which session."""
        taken = []
        offset = 0
        while offset < len(events):
            size, kind, _, channel, session, connection, number, sequence, _ = (
                EVENT_HEAD.unpack_from(events, offset)
            )
            payload = events[offset + EVENT_HEAD.size : offset + size]
            if kind == REPORT:
                stream = self.reports.setdefault(session, [])
            elif kind == MARKET_DATA:
                stream = self.market.setdefault(channel, [])
            else:
                stream = None
                if kind == ANSWER and peek_tag(payload) == LOG_ON_ACCEPTED:
                    self.answers[session, connection] = payload
                    taken.append(_Taken(sequence, session, connection))
                elif kind == ANSWER:
                    refusal: Any = wire.decode_venue(SESSION, payload)
                    self.refusals.add((refusal.code, refusal.limit))
            if stream is not None:
                if number != len(stream) + 1:
                    raise Violation(f"number {number} of a stream of {len(stream)}")
                stream.append(payload)
            offset += size
        return taken


def check_folder(storage: Storage, truth: Truth) -> Engine:
    """The journal, read from outside, has the durable records, these and no others; the engine
    that has applied them all from the first on has the state that it should."""
    engine = Engine()
    found = 0
    try:
        for record in read_only(storage).records():
            if found == len(truth.records):
                raise Violation(f"a record from {record.first_sequence} that was never durable")
            if record.head.hash != truth.records[found].hash:
                raise Violation(f"the record from {record.first_sequence} is another one")
            engine.replay(record.first_sequence, record.command_count, record.payload)
            found += 1
    except JournalError as error:
        raise Violation(f"the journal cannot be read: {error}") from error
    if found != len(truth.records):
        raise Violation(f"{len(truth.records)} records were durable, {found} are there")
    if engine.digest() != truth.engine.digest():
        raise Violation("a replay from the first record gives another state")
    engine.check()
    return engine


class Witness:
    """Sees everything that one process of the venue lets out; `on_write` and `on_send` are for
    that process."""

    def __init__(self, truth: Truth, watch: Any) -> None:
        self.report_count = 0
        self._truth = truth
        self._watch = watch
        self._sessions: dict[Any, int] = {}
        self._connections: dict[Any, int] = {}
        self._last_packets: list[bytes] = []

    # Streams.

    def on_write(self, transport: Any, data: bytes) -> None:
        """Bytes for a client, or for a reader of the position."""
        if data[:8] == b"BRIERPOS":
            self._see_position(data)
            return
        offset, size = 0, len(data)
        session = self._sessions.get(transport, 0)
        reports = self._truth.reports.get(session, ())
        while offset < size:
            length, kind, _, number, _, _ = HEADER.unpack_from(data, offset)
            if kind == SEQUENCED:
                self.report_count += 1
                if number > len(reports):
                    raise Violation(f"report {number} of session {session} is not durable")
                if data[offset + HEADER_SIZE : offset + length] != reports[number - 1]:
                    raise Violation(f"report {number} of session {session} is another one")
            else:
                self._see_other(transport, kind, data[offset + HEADER_SIZE : offset + length])
                session = self._sessions.get(transport, 0)
                reports = self._truth.reports.get(session, ())
                if session and number > len(reports) + 1:
                    raise Violation(f"number {number} of session {session} is not durable")
            offset += length

    def _see_other(self, transport: Any, kind: int, payload: bytes) -> None:
        message: Any = wire.decode_venue(kind, payload)
        if kind == SESSION and isinstance(message, LogOnAccepted):
            place = (message.session_id, message.connection)
            if self._truth.answers.get(place) != payload:
                raise Violation(f"the answer to log-on {place} is not durable")
            self._sessions[transport] = message.session_id
            self._connections[transport] = message.connection
        elif isinstance(message, Terminate) and message.code == TerminateCode.REPLACED:
            session, connection = self._sessions[transport], self._connections[transport]
            if (session, connection + 1) not in self._truth.answers:
                raise Violation(f"nobody has taken session {session} of connection {connection}")
        elif isinstance(message, LogOnRejected) and message.code == RejectCode.NUMBER_AHEAD:
            if (message.code, message.limit) not in self._truth.refusals:
                raise Violation(f"a log-on is refused, and that is not durable: {message}")
        elif isinstance(message, IMAGE_PARTS) and message.sequence > self._truth.sequence:
            raise Violation(f"a state image of sequence {message.sequence} is not durable")

    def _see_position(self, data: bytes) -> None:
        _, sequence, segment, offset, *_ = POSITION.unpack(data)
        watch = self._watch
        if sequence > watch.sequence or (segment, offset) > (watch.segment, watch.end):
            raise Violation(f"position {sequence}, {segment}:{offset} is not durable")

    # The feed.

    def on_feed_write(self, transport: Any, data: bytes) -> None:
        """Frames for a client of the feed: what is numbered in them is durable."""
        del transport
        offset, size = 0, len(data)
        while offset < size:
            length, kind, _, number, _, _ = HEADER.unpack_from(data, offset)
            if kind == PACKET:
                self._see_feed_packet(data, offset + HEADER_SIZE)
            elif kind == LOG and number > self._truth.sequence:
                raise Violation(f"the feed's record from {number} is not durable")
            offset += length

    def _see_feed_packet(self, data: bytes, offset: int) -> None:
        _, _, kind, channel, count, _, number, _ = PACKET_HEADER.unpack_from(data, offset)
        if kind == DATA and number + count - 1 > len(self._truth.market.get(channel, ())):
            raise Violation(f"the feed's message {number} of channel {channel} is not durable")

    # Packets.

    def on_send(self, sender: Any, packets: list[tuple[int, bytes]]) -> None:
        """Packets for a line; the other line gets the same ones."""
        del sender
        for _, data in packets:
            if data in self._last_packets:
                continue
            self._last_packets.append(data)
            self._see_packet(data)
        del self._last_packets[:-64]

    def _see_packet(self, data: bytes) -> None:
        _, _, kind, channel, count, _, number, _ = PACKET_HEADER.unpack_from(data)
        messages = self._truth.market.get(channel, ())
        if number + count - (kind == DATA) > len(messages) + (kind == HEARTBEAT):
            raise Violation(f"message {number} of channel {channel} is not durable")
        offset = PACKET_HEADER.size
        for index in range(number - 1, number - 1 + count):
            length = BLOCK_HEAD.unpack_from(data, offset)[0]
            offset += BLOCK_HEAD.size
            if data[offset : offset + length] != messages[index]:
                raise Violation(f"message {index + 1} of channel {channel} is another one")
            offset += length
