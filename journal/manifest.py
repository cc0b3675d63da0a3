"""The small text files: the manifest of sealed segments, the clean-stop marker, what was archived,
and the least term.

FORMAT.md, sections 4, 5 and 11. A file is read by parsing it and writing what was parsed again: the
bytes must be the same, so no second spelling of anything is accepted.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import Final, NamedTuple
from zlib import crc32

from journal.errors import JournalDamaged
from journal.record import HASH_SIZE, NO_HASH
from journal.storage import Storage

MANIFEST_NAME: Final = "manifest"
MARKER_NAME: Final = "clean-stop"
ARCHIVED_NAME: Final = "archived"
TERM_NAME: Final = "term"
TEXT_SIZE_MAX: Final = 64 * 1024 * 1024  # Some 300,000 segments; bounds what a start reads.


class Sealed(NamedTuple):
    """A line of the manifest."""

    number: int
    first_sequence: int
    last_sequence: int
    record_count: int
    size: int
    hash: bytes


class Marker(NamedTuple):
    """Head of the journal at a clean stop."""

    sequence: int
    hash: bytes


class Archived(NamedTuple):
    """The last segment that may be missing, with those before it, and the head at its end."""

    segment: int
    sequence: int
    hash: bytes


NOTHING_ARCHIVED: Final = Archived(0, 0, NO_HASH)


def encode_manifest(entries: Sequence[Sealed]) -> bytes:
    lines = ["brier manifest 1"]
    lines.extend(" ".join([*map(str, entry[:-1]), entry.hash.hex()]) for entry in entries)
    return _with_crc(lines)


def decode_manifest(content: bytes) -> list[Sealed]:
    """Raises JournalDamaged."""
    try:
        entries = [_decode_line(line) for line in content.decode("ascii").splitlines()[1:-1]]
    except (ValueError, TypeError):
        raise JournalDamaged("manifest is damaged", file=MANIFEST_NAME) from None
    if encode_manifest(entries) != content:
        raise JournalDamaged("manifest is damaged", file=MANIFEST_NAME)
    if [entry.number for entry in entries] != list(range(1, len(entries) + 1)):
        raise JournalDamaged("manifest does not list segments in order", file=MANIFEST_NAME)
    return entries


def encode_marker(marker: Marker) -> bytes:
    return _with_crc(
        ["brier clean-stop 1", f"sequence {marker.sequence}", f"hash {marker.hash.hex()}"]
    )


def decode_marker(content: bytes) -> Marker:
    """Raises JournalDamaged."""
    try:
        _, sequence, digest, _ = content.decode("ascii").splitlines()
        marker = Marker(int(sequence.split()[1]), _decode_hash(digest.split()[1]))
    except (ValueError, IndexError):
        raise JournalDamaged("clean-stop marker is damaged", file=MARKER_NAME) from None
    if encode_marker(marker) != content:
        raise JournalDamaged("clean-stop marker is damaged", file=MARKER_NAME)
    return marker


def encode_archived(archived: Archived) -> bytes:
    return _with_crc(
        [
            "brier archived 1",
            f"segment {archived.segment}",
            f"sequence {archived.sequence}",
            f"hash {archived.hash.hex()}",
        ]
    )


def decode_archived(content: bytes) -> Archived:
    """Raises JournalDamaged."""
    try:
        _, segment, sequence, digest, _ = content.decode("ascii").splitlines()
        archived = Archived(
            int(segment.split()[1]), int(sequence.split()[1]), _decode_hash(digest.split()[1])
        )
    except (ValueError, IndexError):
        raise JournalDamaged("file is damaged", file=ARCHIVED_NAME) from None
    if encode_archived(archived) != content:
        raise JournalDamaged("file is damaged", file=ARCHIVED_NAME)
    return archived


def encode_term(term: int) -> bytes:
    return _with_crc(["brier term 1", f"term {term}"])


def decode_term(content: bytes) -> int:
    """Raises JournalDamaged."""
    try:
        _, line, _ = content.decode("ascii").splitlines()
        term = int(line.split()[1])
    except (ValueError, IndexError):
        raise JournalDamaged("file is damaged", file=TERM_NAME) from None
    if encode_term(term) != content:
        raise JournalDamaged("file is damaged", file=TERM_NAME)
    return term


def read_text(storage: Storage, name: str) -> bytes:
    """All of a small file. Raises JournalDamaged when it is not small."""
    with closing(storage.open(name)) as file:
        size = file.size()
        if size > TEXT_SIZE_MAX:
            raise JournalDamaged(f"file of {size} bytes is too large", file=name)
        return file.read(0, size)


def _with_crc(lines: list[str]) -> bytes:
    body = "".join(line + "\n" for line in lines).encode("ascii")
    return body + f"crc32 {crc32(body):08x}\n".encode("ascii")


def _decode_line(line: str) -> Sealed:
    number, first, last, count, size, digest = line.split(" ")
    return Sealed(int(number), int(first), int(last), int(count), int(size), _decode_hash(digest))


def _decode_hash(text: str) -> bytes:
    digest = bytes.fromhex(text)
    if len(digest) != HASH_SIZE:
        raise ValueError("not a hash")
    return digest
