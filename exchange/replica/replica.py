"""An engine of its own that applies the venue's records, and what a snapshot has to know of them.

Pure: records in, state out. Of events/ it keeps what the venue's log must look like after each
record: the segment, where it ends, and the checksum of its bytes up to there. That log is a
function of the records, so nothing of it is read, and a snapshot proves the bytes that are there.
"""

from typing import NamedTuple
from zlib import crc32

from exchange.core.engine import Engine
from exchange.core.replay import replay_record
from exchange.replica.failure import ASSERTION, DAMAGED, ReplicaFailure
from journal import Position, Record, SnapshotHead
from journal.event_format import (
    RECORD_HEADER_SIZE,
    SEGMENT_HEADER_SIZE,
    RecordHeader,
    encode_record_header,
    encode_segment_header,
    has_room,
)
from protocol.base import NUMBER_MAX

__all__ = ["EventTrail", "Replica"]


class EventTrail(NamedTuple):
    """Where events/ ends: first sequence in the name of the segment, bytes, and their CRC-32."""

    segment_size: int
    segment: int = 0
    offset: int = 0
    crc: int = 0

    def after(self, header: RecordHeader, events: bytes) -> "EventTrail":
        """The same when this record has been appended."""
        segment_size, segment, offset, crc = self
        if not segment or not has_room(offset, len(events), segment_size):
            segment, offset = header.first_sequence, SEGMENT_HEADER_SIZE
            crc = crc32(encode_segment_header(segment, segment_size))
        crc = crc32(events, crc32(encode_record_header(header), crc))
        return EventTrail(segment_size, segment, offset + RECORD_HEADER_SIZE + len(events), crc)


class Replica:
    """See the module. Goes on from a snapshot, or begins before the first record."""

    def __init__(
        self,
        event_segment_size: int,
        head: SnapshotHead | None = None,
        engine: Engine | None = None,
    ) -> None:
        """`engine` is that of the snapshot with this head; the log's segments have
        `event_segment_size` bytes."""
        self.engine = engine if engine is not None else Engine()
        self.trail = EventTrail(event_segment_size)
        if head is not None:
            self.trail = EventTrail(
                head.events_segment_size, head.events_segment, head.events_offset, head.events_crc
            )
        self.record_count = 0
        self.record_size = 0

    @property
    def sequence(self) -> int:
        """Of the last command applied."""
        return self.engine.sequence

    def apply(self, record: Record) -> None:
        """The next record. Raises ReplayError: then the state is lost."""
        events = replay_record(self.engine, record)
        header = RecordHeader(
            record.rules_version,
            record.first_sequence,
            record.command_count,
            len(events),
            record.events_crc,
        )
        self.trail = self.trail.after(header, events)
        self.record_count += 1
        self.record_size += record.size

    def compare(self, position: Position) -> None:
        """Compare with what the venue said when it was at this sequence. Raises ReplicaFailure."""
        assert position.sequence == self.sequence, "as of the same command"
        first_epoch = (position.epoch - position.term + 1) & NUMBER_MAX
        if first_epoch != self.engine.epoch:
            text = f"epoch {position.epoch} in term {position.term} is that of another venue"
            raise ReplicaFailure(DAMAGED, text)
        said = (position.events_segment, position.events_offset)
        found = (self.trail.segment, self.trail.offset)
        if said != found:
            text = f"events/ ends at {said} at sequence {position.sequence}, replayed at {found}"
            raise ReplicaFailure(ASSERTION, text)
