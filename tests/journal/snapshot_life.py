"""A venue's folders: commands, what they caused, and the head of a snapshot for every record."""

from __future__ import annotations

from contextlib import closing
from random import Random
from typing import NamedTuple
from zlib import crc32

from journal import (
    CommandsState,
    EventPosition,
    EventReader,
    Journal,
    Record,
    SnapshotHead,
    Storage,
    hash_image,
    read_only,
    run_inline,
)
from journal.event_format import segment_name
from journal.memory import MemoryStorage
from journal.record import START
from tests.journal import event_life
from tests.journal.event_life import Batch, images_of, make_batches

SEGMENT_SIZE = 4096  # Seven sectors for records.


class Venue(NamedTuple):
    """Folders of a venue that was not stopped, and everything that was written to them."""

    commands: dict[str, bytes]
    events: dict[str, bytes]
    batches: list[Batch]
    records: list[Record]
    heads: list[SnapshotHead]
    """Of a snapshot behind each record."""


def make_venue(count: int, seed: int = 1, term: int = 1) -> Venue:
    """A venue with `count` records, over several segments of both."""
    batches = make_batches(count, seed)
    storage = MemoryStorage()
    journal = Journal.open(storage, segment_size=SEGMENT_SIZE, prepare=run_inline)
    assert list(journal.records()) == []
    journal.start(term)
    dice = Random(seed)
    for batch in batches:
        append_batch(journal, batch, dice)
    journal.close()
    records = list(read_only(storage).records())
    events = images_of(batches)
    heads = make_heads(records, MemoryStorage(events))
    return Venue(storage.images(), events, batches, records, heads)


def append_batch(journal: Journal, batch: Batch, dice: Random) -> None:
    payload = dice.randbytes(dice.randrange(1, 1500))
    built = journal.build(payload, batch.command_count, batch.events_crc, batch.rules_version)
    assert built.first_sequence == batch.first_sequence
    journal.write(built)
    journal.sync()


def make_image(sequence: int) -> bytes:
    return Random(sequence).randbytes(300 + sequence)


def make_heads(records: list[Record], events: Storage) -> list[SnapshotHead]:
    """Heads of a snapshot behind each record of a journal from its first one on."""
    reader = EventReader(events)
    heads = []
    previous = START
    counts: dict[int, int] = {}
    for record in records:
        sequence = record.head.sequence
        count = counts.get(record.segment_number, 0)
        heads.append(
            make_head(
                CommandsState(record.segment_number, record.offset, count, previous, record.head),
                reader.end_of(sequence),
                events,
                event_life.SEGMENT_SIZE,
                make_image(sequence),
                time_ns=1_000_000 + sequence,
            )
        )
        previous = record.head
        counts[record.segment_number] = count + 1
    return heads


def make_head(
    at: CommandsState,
    place: EventPosition,
    events: Storage,
    segment_size: int,
    image: bytes,
    time_ns: int = 1,
) -> SnapshotHead:
    """The head of a snapshot with this image behind a record; `place` is the end of its events, in
    segments of this size."""
    with closing(events.open(segment_name(place.segment))) as file:
        events_crc = crc32(file.read(0, place.offset))
    return SnapshotHead(
        rules_version=at.head.rules_version,
        sequence=at.head.sequence,
        time_ns=time_ns,
        term=at.head.term,
        record_hash=at.head.hash,
        previous_sequence=at.previous.sequence,
        previous_term=at.previous.term,
        previous_hash=at.previous.hash,
        commands_segment=at.segment,
        record_offset=at.record_offset,
        record_count=at.record_count,
        events_segment=place.segment,
        events_offset=place.offset,
        events_segment_size=segment_size,
        events_crc=events_crc,
        image_size=len(image),
        image_hash=hash_image(image),
    )
