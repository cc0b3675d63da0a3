"""The write-ahead log of the venue: bytes to disk and back, in order. See FORMAT.md."""

from journal.errors import (
    JournalDamaged,
    JournalError,
    JournalFailed,
    JournalHeld,
    SnapshotDamaged,
)
from journal.event_format import Entry
from journal.event_proof import events_reach
from journal.event_reader import (
    EventReader,
    EventRecord,
    PrivateEvent,
    check_events,
    private_events,
    split_records,
)
from journal.events import EventLog, EventPosition
from journal.follow import CommandsFollower, CommandsState
from journal.log import CommandsPosition, Journal
from journal.position import Position, decode_position, encode_position
from journal.prepare import run_in_thread, run_inline
from journal.reader import JournalReader, Summary, read_only, verify
from journal.record import BuiltRecord, Head, Record
from journal.snapshot import SnapshotFolder, SnapshotHead, Written, hash_image
from journal.storage import FolderStorage, Storage

__all__ = [
    "BuiltRecord",
    "CommandsFollower",
    "CommandsPosition",
    "CommandsState",
    "Entry",
    "EventLog",
    "EventPosition",
    "EventReader",
    "EventRecord",
    "FolderStorage",
    "Head",
    "Journal",
    "JournalDamaged",
    "JournalError",
    "JournalFailed",
    "JournalHeld",
    "JournalReader",
    "Position",
    "PrivateEvent",
    "Record",
    "SnapshotDamaged",
    "SnapshotFolder",
    "SnapshotHead",
    "Storage",
    "Summary",
    "Written",
    "check_events",
    "decode_position",
    "encode_position",
    "events_reach",
    "hash_image",
    "private_events",
    "read_only",
    "run_in_thread",
    "run_inline",
    "split_records",
    "verify",
]
