"""Puts back a single bit of a record that has flipped, where the chain proves what the record was.

Every record but the very last one has its hash somewhere else: in the record behind it, in the next
segment, in the clean-stop marker or in a snapshot. A checksum says which bit it must have been, and
the hash says whether that is so; nothing is guessed. FORMAT.md, section 13.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import Final
from zlib import crc32

from journal.record import (
    HASH_SIZE,
    HEADER_SIZE,
    Buffer,
    Head,
    Header,
    RecordError,
    read_chained_header,
)

FindHash = Callable[[int, int], bytes | None]
"""The hash that a record must have which ends at this sequence and has this size; None: unknown."""

_ALL_BITS: Final = 0xFFFFFFFF
_CRC_OF_BYTE: Final = tuple(crc32(bytes([value]), _ALL_BITS) ^ _ALL_BITS for value in range(256))
"""What a byte adds to a CRC32 that was 0 before, without the inversions at both ends."""
_BYTE_OF_TOP: Final = {crc >> 24: value for value, crc in enumerate(_CRC_OF_BYTE)}
assert len(_BYTE_OF_TOP) == 256, "the top byte says which byte it was"
_BIT_OF_CRC: Final = {_CRC_OF_BYTE[1 << bit]: bit for bit in range(8)}


def heal_record(
    content: bytes, previous: Head, is_first_of_segment: bool, find_hash: FindHash
) -> bytes | None:
    """The record that `content` begins with, as it was written; None when that cannot be proven.

    `content` reaches to the end of the segment or of the largest record; `previous` is the chain
    before it.
    """
    for healed, header in _headers(content, previous, is_first_of_segment):
        record = bytearray(healed[: header.record_size])
        end = HEADER_SIZE + header.payload_size
        record[end:] = b"\xff" * (len(record) - end)
        payload = memoryview(record)[HEADER_SIZE:end]
        if crc32(payload) != header.payload_crc:
            place = find_flipped_bit(payload, header.payload_crc)
            if place is None:
                continue
            payload[place // 8] ^= 1 << place % 8
        payload.release()
        expected = find_hash(previous.sequence + header.command_count, len(record))
        if expected == blake2b(record, digest_size=HASH_SIZE).digest():
            return bytes(record)
    return None


def _headers(
    content: bytes, previous: Head, is_first_of_segment: bool
) -> Iterator[tuple[bytes, Header]]:
    """The content with a good and chained header: as it is, or with one bit of it changed."""
    try:
        yield content, read_chained_header(content, previous, is_first_of_segment)
    except RecordError:
        for place in range(min(HEADER_SIZE, len(content)) * 8):
            changed = bytearray(content)
            changed[place // 8] ^= 1 << place % 8
            try:
                header = read_chained_header(changed, previous, is_first_of_segment)
            except RecordError:
                continue
            yield bytes(changed), header


def find_flipped_bit(content: Buffer, expected_crc: int) -> int | None:
    """Which bit, counted from the beginning and from the lowest one of a byte, makes the CRC32
    another one; None when it is not one bit. Takes a moment: one step a byte."""
    # What the flip has added to the checksum, taken back byte by byte from the end.
    difference = crc32(content) ^ expected_crc
    for offset in range(len(content) - 1, -1, -1):
        bit = _BIT_OF_CRC.get(difference)
        if bit is not None:
            return 8 * offset + bit
        value = _BYTE_OF_TOP[difference >> 24]
        difference = (difference ^ _CRC_OF_BYTE[value]) << 8 & _ALL_BITS | value
    return None
