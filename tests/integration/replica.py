"""The journal of a venue, read from outside and applied to an engine of its own.

What the tests compare with what clients saw: which frames of which session are durable, and which
bytes the venue had to answer. Reading changes no file, and goes on where the last reading ended.
"""

from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from exchange.core.engine import Engine
from journal import EventLog, FolderStorage, read_only, run_inline
from journal.memory import MemoryStorage
from protocol import records
from protocol.records import COMMAND_HEAD, EVENT_HEAD, FROM_CLIENT, REPORT, SESSION

__all__ = ["Replica", "VenueCommand"]

_decode_venue_command = msgspec.msgpack.Decoder(
    records.Genesis
    | records.Connect
    | records.Disconnect
    | records.TimeAdvance
    | records.Continuation
    | records.VenueStarted
).decode


class VenueCommand(NamedTuple):
    """A command of the sequencer."""

    sequence: int
    time_ns: int
    session: int
    message: Any


class Replica:
    """`commands` and `reports` are {session: {number: payload}}, `log_ons` is
    {(session, connection): payload} of the answers, `sequences` is {(session, number): sequence} of
    the reports; `event_files` is what events/ of the venue has to be."""

    def __init__(self, folder: Path) -> None:
        self.engine = Engine()
        self.commands: dict[int, dict[int, bytes]] = {}
        self.reports: dict[int, dict[int, bytes]] = {}
        self.sequences: dict[tuple[int, int], int] = {}
        self.log_ons: dict[tuple[int, int], bytes] = {}
        self.venue_commands: list[VenueCommand] = []
        self.last_record_sequence = 0  # first sequence of the last record
        self.event_files = MemoryStorage()
        self.event_log = EventLog.open(self.event_files, execute=run_inline)
        self.event_log.start(0)
        self._commands_folder = folder / "data" / "commands"
        self._head = b""

    def catch_up(self) -> None:
        """Read the journal from its first record and apply what is new."""
        reader = read_only(FolderStorage(self._commands_folder, is_read_only=True))
        for record in reader.records():
            if record.first_sequence > self.engine.sequence:
                self._apply(record.first_sequence, record.command_count, record.payload, record)
                self._head = record.head.hash
            elif record.head.sequence == self.engine.sequence:
                assert record.head.hash == self._head, "a record that was read has changed"
        assert reader.head.sequence == self.engine.sequence, "records that were read are gone"

    def _apply(self, first_sequence: int, count: int, payload: memoryview, record: Any) -> None:
        sequence, offset = first_sequence, 0
        while offset < len(payload):
            head = COMMAND_HEAD.unpack_from(payload, offset)
            size, kind, _, _, session, _, number, _, time_ns = head
            content = bytes(payload[offset + COMMAND_HEAD.size : offset + size])
            if kind == FROM_CLIENT:
                numbers = self.commands.setdefault(session, {})
                assert number not in numbers, f"session {session}: {number} is there twice"
                numbers[number] = content
            else:
                message = _decode_venue_command(content)
                self.venue_commands.append(VenueCommand(sequence, time_ns, session, message))
            sequence += 1
            offset += size
        events, events_crc = self.engine.replay(first_sequence, count, payload)
        assert events_crc == record.events_crc, f"events of the record at {first_sequence} differ"
        self.event_log.append(first_sequence, count, record.rules_version, events, events_crc)
        self.last_record_sequence = first_sequence
        self._collect(events)

    def _collect(self, events: bytes) -> None:
        offset = 0
        while offset < len(events):
            size, kind, _, _, session, connection, number, sequence, _ = EVENT_HEAD.unpack_from(
                events, offset
            )
            content = events[offset + EVENT_HEAD.size : offset + size]
            if kind == REPORT:
                numbers = self.reports.setdefault(session, {})
                assert number == len(numbers) + 1, f"session {session}: report {number} out of turn"
                numbers[number] = content
                self.sequences[session, number] = sequence
            elif kind == SESSION:
                self.log_ons[session, connection] = content
            offset += size
