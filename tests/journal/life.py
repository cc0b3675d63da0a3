"""What the tests of the journal do with one: start it, append, read it back, see it refused."""

from __future__ import annotations

from random import Random

import pytest

from journal import (
    BuiltRecord,
    Journal,
    JournalDamaged,
    Record,
    Storage,
    run_inline,
)
from journal.memory import MemoryStorage

SEGMENT_SIZE = 4096  # Seven sectors for records.
FIRST = "00000000000000000001-00000000000000000001.segment"


def start(storage: Storage, term: int = 1, segment_size: int = SEGMENT_SIZE) -> Journal:
    """A journal that was read to its end and takes records."""
    journal = Journal.open(storage, segment_size=segment_size, prepare=run_inline)
    for _ in journal.records():
        pass
    journal.start(term)
    return journal


def append(journal: Journal, payload: bytes, command_count: int = 1, rules: int = 1) -> BuiltRecord:
    batch = journal.build(payload, command_count, events_crc=len(payload), rules_version=rules)
    append_built(journal, batch)
    return batch


def append_two(journal: Journal, batch: BuiltRecord) -> None:
    append_built(journal, batch)
    journal.build(b"a second one", 1, 0, 1)


def append_built(journal: Journal, batch: BuiltRecord) -> None:
    journal.write(batch)
    journal.sync()


def read(storage: Storage, floor_sequence: int = 0) -> list[Record]:
    journal = Journal.open(storage, floor_sequence=floor_sequence, prepare=run_inline)
    try:
        return list(journal.records())
    finally:
        journal.close()


def refuse(storage: MemoryStorage, floor_sequence: int = 0) -> JournalDamaged:
    """The refusal to read this folder; checks that no file changed and that the lock is free."""
    before = storage.images()
    with pytest.raises(JournalDamaged) as caught:
        read(storage, floor_sequence)
    assert storage.images() == before
    storage.lock()
    storage.close()
    return caught.value


def noise(size: int) -> bytes:
    return Random(size).randbytes(size)


def stopped() -> MemoryStorage:
    storage = MemoryStorage()
    journal = start(storage)
    for size in (100, 700, 900, 1300, 50):
        append(journal, noise(size), 2)
    journal.stop()
    return storage
