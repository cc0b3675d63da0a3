"""One way to apply a record of the journal, and one to restore a snapshot of the engine: for the
venue that starts, the replicas and the tools.

A record says under which rules it was written and what CRC-32 its events had; whoever applies it
compares both. What differs is never skipped: the remedy is a build that replays the record.
"""

from hashlib import blake2b
from typing import Final, Protocol

from exchange.core import engine as core
from exchange.core.engine import Engine

__all__ = [
    "EXIT_DIFFERENT",
    "EXIT_NO_GENESIS",
    "EXIT_OTHER_RULES",
    "RecordToReplay",
    "ReplayError",
    "RestoreError",
    "SnapshotToRestore",
    "is_way_out",
    "replay_record",
    "restore_engine",
]

EXIT_OTHER_RULES: Final = 64
"""Exit code of a process whose build has other rules than the record."""
EXIT_DIFFERENT: Final = 65
"""Exit code of a process whose engine failed on the record, or made other events of it."""

EXIT_NO_GENESIS: Final = 66
"""Exit code of a process whose journal does not begin as every journal does."""


class RecordToReplay(Protocol):
    """What is needed of a record; `journal.Record` has it."""

    @property
    def first_sequence(self) -> int: ...

    @property
    def command_count(self) -> int: ...

    @property
    def rules_version(self) -> int: ...

    @property
    def events_crc(self) -> int: ...

    @property
    def payload(self) -> memoryview: ...


class SnapshotToRestore(Protocol):
    """What is needed of the head of a snapshot; `journal.SnapshotHead` has it."""

    @property
    def rules_version(self) -> int: ...

    @property
    def sequence(self) -> int: ...

    @property
    def time_ns(self) -> int: ...

    @property
    def image_hash(self) -> bytes: ...


class ReplayError(Exception):
    """A record cannot be replayed; the text is one line, the code that of the process."""

    def __init__(self, exit_code: int, text: str, first_sequence: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code
        self.first_sequence = first_sequence  # of the record


class RestoreError(Exception):
    """A snapshot cannot be restored; the text is one line."""


def replay_record(engine: Engine, record: RecordToReplay) -> bytes:
    """Apply the record that continues the engine's state; its events. Raises ReplayError: then the
    state is lost, unless the record has other rules."""
    first_sequence = record.first_sequence
    if record.rules_version != core.RULES_VERSION:  # Before anything in it is read.
        text = f"has rules {record.rules_version}, this build replays {core.RULES_VERSION}"
        raise ReplayError(EXIT_OTHER_RULES, f"{_place(record)} {text}", first_sequence)
    if engine.sequence == 0 and not engine.is_genesis(record.payload):
        text = "the journal does not begin with Genesis"
        raise ReplayError(EXIT_NO_GENESIS, text, first_sequence)
    try:
        events, events_crc = engine.replay(first_sequence, record.command_count, record.payload)
    except Exception as error:
        text = f"replay failed: {_place(record)}, command {engine.sequence}: {error}"
        raise ReplayError(EXIT_DIFFERENT, text, first_sequence) from error
    if events_crc != record.events_crc:
        text = f"events {events_crc:08x}, were {record.events_crc:08x}"
        raise ReplayError(
            EXIT_DIFFERENT, f"replay differs: {_place(record)}: {text}", first_sequence
        )
    return events


def _place(record: RecordToReplay) -> str:
    return f"record of sequence {record.first_sequence}"


def is_way_out(error: ReplayError, before: ReplayError | None) -> bool:
    """Whether another snapshot may lead past a record that could not be replayed; `before` is what
    the last one has led to. Two proven states that fail on one record are right, and so is it."""
    is_same = before is not None and before.first_sequence == error.first_sequence
    return error.exit_code == EXIT_DIFFERENT and not is_same


def restore_engine(head: SnapshotToRestore, image: bytes) -> Engine:
    """The engine of a snapshot, proven to have its sequence and the same image again. Raises
    RestoreError."""
    if head.rules_version != core.RULES_VERSION:
        text = f"it was made under rules {head.rules_version}, this build has {core.RULES_VERSION}"
        raise RestoreError(text)
    try:
        engine = Engine.restore(image)
    except (ValueError, AssertionError) as error:
        raise RestoreError(f"its image is none: {error}") from error
    if (engine.sequence, engine.time_ns) != (head.sequence, head.time_ns):
        raise RestoreError(f"its image is of sequence {engine.sequence}, time {engine.time_ns}")
    # Every byte of the engine's own image is compared with this one; it is not made for that.
    image_hash = blake2b(image, digest_size=len(head.image_hash)).digest()
    if image_hash != head.image_hash or not engine.has_image(image):
        raise RestoreError("its image restores to another one")
    return engine
