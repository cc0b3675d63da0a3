"""Clean, torn or damaged: the one rule that decides about what follows the last valid record.

FORMAT.md, section 7. Reads, decides, changes nothing.
"""

from __future__ import annotations

from typing import NamedTuple

from journal.errors import JournalDamaged
from journal.record import (
    RECORD_SIZE_MAX,
    SECTOR_SIZE,
    Defect,
    Head,
    RecordError,
    read_chained_header,
    read_header,
)
from journal.segment import BLOCK_SIZE, Segment, is_zero
from journal.storage import File


class Tail(NamedTuple):
    """The end of a segment: clean when `torn_size` is 0."""

    offset: int  # P
    torn_size: int  # bytes from P to the end of the last non-zero sector
    reason: str


def judge_tail(
    file: File, segment: Segment, offset: int, head: Head, defect: Defect | None
) -> Tail:
    """What follows `offset`, the end of the last valid record of `segment`.

    `head` is the chain there, `defect` why no valid record is there (None: end of the segment).
    Raises JournalDamaged when the end is neither clean nor torn.
    """
    if defect is None:
        return Tail(offset, 0, "")
    window = memoryview(file.read(offset, min(RECORD_SIZE_MAX, segment.size - offset)))
    used = [
        start
        for start in range(0, len(window), SECTOR_SIZE)
        if not is_zero(window[start : start + SECTOR_SIZE])
    ]
    stray = _first_used_block(file, segment, offset + len(window))
    if not used and stray is None:
        return Tail(offset, 0, "")

    def damaged(why: str, at: int = offset) -> JournalDamaged:
        return JournalDamaged(why, file=segment.name, offset=at, sequence=head.sequence)

    if not used or used[0] > 0:
        if stray is not None:
            raise damaged("bytes far behind the end of the last record", stray)
        for start in used:
            if _starts_record(window, start):
                raise damaged("a record behind a gap", offset + start)
        return Tail(offset, used[-1] + SECTOR_SIZE, "first sector never written")
    try:
        header = read_chained_header(window, head, offset == SECTOR_SIZE)
    except RecordError as bad:
        raise damaged(bad.defect.value) from None
    has_gap = any(start not in used for start in range(0, header.record_size, SECTOR_SIZE))
    if not has_gap or stray is not None or used[-1] >= header.record_size:
        raise damaged(defect.value)
    return Tail(offset, used[-1] + SECTOR_SIZE, "sectors never written")


def _first_used_block(file: File, segment: Segment, offset: int) -> int | None:
    """Offset of the first block from `offset` on that is not all zero."""
    while offset < segment.size:
        block = file.read(offset, min(BLOCK_SIZE, segment.size - offset))
        assert block, "the file has the size that its header says"
        if not is_zero(block):
            return offset
        offset += len(block)
    return None


def _starts_record(window: memoryview, start: int) -> bool:
    try:
        read_header(window, start)
    except RecordError:
        return False
    return True
