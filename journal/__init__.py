"""The write-ahead log of the venue: bytes to disk and back, in order. See FORMAT.md."""

from journal.errors import JournalDamaged, JournalError, JournalFailed, JournalHeld
from journal.log import Journal
from journal.prepare import run_in_thread, run_inline
from journal.reader import JournalReader, Summary, read_only, verify
from journal.record import BuiltRecord, Head, Record
from journal.storage import FolderStorage, Storage

__all__ = [
    "BuiltRecord",
    "FolderStorage",
    "Head",
    "Journal",
    "JournalDamaged",
    "JournalError",
    "JournalFailed",
    "JournalHeld",
    "JournalReader",
    "Record",
    "Storage",
    "Summary",
    "read_only",
    "run_in_thread",
    "run_inline",
    "verify",
]
