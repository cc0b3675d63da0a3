"""Records of commands/ with events, made up by seed, and what the log of them must be."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import NamedTuple
from zlib import crc32

from journal import EventLog, Storage, run_inline
from journal.event_format import ENTRY_HEAD, RecordHeader, entries
from journal.memory import MemoryStorage

SEGMENT_SIZE = 1024


class Batch(NamedTuple):
    """A record of commands/, as the log of events is told of it."""

    first_sequence: int
    command_count: int
    rules_version: int
    events: bytes
    events_crc: int

    @property
    def last_sequence(self) -> int:
        return self.first_sequence + self.command_count - 1

    @property
    def header(self) -> RecordHeader:
        """That of its record in the log of events."""
        first_sequence, command_count, rules_version, events, events_crc = self
        return RecordHeader(rules_version, first_sequence, command_count, len(events), events_crc)


def make_batches(
    count: int, seed: int = 1, events_max: int = 5, session_count: int = 3
) -> list[Batch]:
    """Batches in order, from sequence 1; some have no event; channels 1 and 2."""
    dice = Random(seed)
    numbers: dict[tuple[int, int], int] = {}
    batches = []
    sequence = 1
    for _ in range(count):
        events = b"".join(
            _event(dice, numbers, sequence, session_count)
            for _ in range(dice.randrange(events_max + 1))
        )
        command_count = dice.randrange(1, 4)
        events_crc = crc32(b"".join(entry.payload for entry in entries(events)))
        batches.append(Batch(sequence, command_count, 2, events, events_crc))
        sequence += command_count
    return batches


def _event(
    dice: Random, numbers: dict[tuple[int, int], int], sequence: int, session_count: int
) -> bytes:
    payload = dice.randbytes(dice.randrange(1, 60))
    kind = dice.choice((1, 2, 3, 3))
    stream = dice.randrange(1, 3 if kind == 3 else session_count + 1)
    if kind == 2 and len(payload) % 2:
        kind, stream = 4, 0
    number = numbers.get((kind, stream), 0) + 1
    if kind != 2:
        numbers[kind, stream] = number
    channel, session = (stream, 0) if kind == 3 else (0, stream)
    length = ENTRY_HEAD.size + len(payload)
    head = ENTRY_HEAD.pack(length, kind, 0, channel, session, 1, number, sequence, 7)
    return head + payload


def with_events(batch: Batch, events: bytes) -> Batch:
    """The same commands of another history."""
    events_crc = crc32(b"".join(entry.payload for entry in entries(events)))
    return batch._replace(events=events, events_crc=events_crc)


def other_history(batches: Sequence[Batch], fork: int) -> list[Batch]:
    """The same up to `fork`; from there on other payloads, everything else as it was."""
    others = []
    for batch in batches[fork:]:
        events = [
            entry._replace(payload=entry.payload[::-1] + b"!") for entry in entries(batch.events)
        ]
        others.append(with_events(batch, b"".join(entry.encode() for entry in events)))
    return [*batches[:fork], *others]


def last_header_of(batches: Sequence[Batch]) -> RecordHeader | None:
    """Header of the last record with events."""
    return next((batch.header for batch in reversed(batches) if batch.events), None)


def run(
    storage: Storage,
    checked: list[Batch],
    appended: list[Batch] | None = None,
    segment_size: int = SEGMENT_SIZE,
) -> EventLog:
    """One life: check these records, start, append the others; not closed."""
    log = EventLog.open(storage, segment_size=segment_size, execute=run_inline)
    for batch in checked:
        log.check(*batch)
    log.start(checked[-1].last_sequence if checked else 0)
    for batch in appended or []:
        log.append(*batch)
    return log


def images_of(batches: list[Batch], segment_size: int = SEGMENT_SIZE) -> dict[str, bytes]:
    """The files of a log that took these records live."""
    storage = MemoryStorage()
    run(storage, [], batches, segment_size).stop()
    return storage.images()
