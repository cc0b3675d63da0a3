"""Snapshots: an image of the engine as of one sequence, and where the journal goes on behind it.

The image is opaque: bytes with a hash. The head in front of it says which record of commands/ it
includes, and how far events/ were by then, so that a start reads both from there on. A snapshot is
written aside, read back, and gets its name only when its maker says so. FORMAT.md, section 10.

A failing disk is no failure of the journal: reading says that the snapshot cannot be used, and the
methods that write raise OSError as it comes. Nothing is latched, nothing tried again here.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Collection, Iterator
from contextlib import closing, suppress
from hashlib import blake2b
from typing import Final, NamedTuple
from zlib import crc32

from journal.errors import SnapshotDamaged
from journal.event_format import SEGMENT_HEADER_SIZE
from journal.record import HASH_SIZE, SECTOR_SIZE, Head
from journal.segment import BLOCK_SIZE
from journal.storage import TEMPORARY_SUFFIX, File, Storage

MAGIC: Final = b"BRIERSNP"
FORMAT_VERSION: Final = 1
SNAPSHOT_SUFFIX: Final = ".snapshot"
KEPT_MIN: Final = 2
"""Snapshots that are always kept: when the newest one turns out to be bad, there is another."""
IMAGE_SIZE_MAX: Final = 16 * 1024 * 1024 * 1024
"""Bytes of an image; bounds what a reader believes and holds in memory."""

HEADER_FIELDS: Final = (
    ("magic", "8s"),
    ("format_version", "I"),
    ("rules_version", "I"),
    ("sequence", "Q"),
    ("time_ns", "Q"),
    ("term", "Q"),
    ("record_hash", "32s"),
    ("previous_sequence", "Q"),
    ("previous_term", "Q"),
    ("previous_hash", "32s"),
    ("commands_segment", "Q"),
    ("record_offset", "Q"),
    ("record_count", "Q"),
    ("events_segment", "Q"),
    ("events_offset", "Q"),
    ("events_segment_size", "Q"),
    ("events_crc", "I"),
    ("image_size", "Q"),
    ("image_hash", "32s"),
    ("header_crc", "I"),
)
_HEADER: Final = struct.Struct("<" + "".join(code for _, code in HEADER_FIELDS))
_BODY: Final = struct.Struct("<" + "".join(code for _, code in HEADER_FIELDS[:-1]))
_CRC: Final = struct.Struct("<I")
SNAPSHOT_HEADER_SIZE: Final = _HEADER.size
assert SNAPSHOT_HEADER_SIZE == 216, "FORMAT.md says 216"

_NAME: Final = re.compile(r"([0-9]{20})\.snapshot", re.ASCII)


class SnapshotHead(NamedTuple):
    """What stands before the image. Sizes and offsets in bytes, times in nanoseconds."""

    rules_version: int
    """Of the engine that made the image."""
    sequence: int
    """The last command that the image includes; the last one of its record."""
    time_ns: int
    """Sequenced time of that command."""
    term: int
    """Of the record that ends at `sequence`."""
    record_hash: bytes
    """Hash of that record."""
    previous_sequence: int
    previous_term: int
    previous_hash: bytes
    """Head of the journal before that record."""
    commands_segment: int
    """Number of the segment that has the record."""
    record_offset: int
    """Where the record begins in its segment."""
    record_count: int
    """Records of that segment before it."""
    events_segment: int
    """First sequence in the name of the segment of events/ that has the record's events."""
    events_offset: int
    """Where they end there."""
    events_segment_size: int
    events_crc: int
    """CRC32 of that segment from its beginning to `events_offset`."""
    image_size: int
    image_hash: bytes

    @property
    def name(self) -> str:
        """Of the file."""
        return f"{self.sequence:020}{SNAPSHOT_SUFFIX}"

    @property
    def head(self) -> Head:
        """Head of the journal after the record."""
        return Head(self.sequence, self.record_hash, self.term, self.rules_version)

    @property
    def previous(self) -> Head:
        """Head of the journal before the record. Its rules are those of the record, as inside a
        segment; before the first record of a segment nobody asks."""
        return Head(
            self.previous_sequence, self.previous_hash, self.previous_term, self.rules_version
        )


def hash_image(image: bytes) -> bytes:
    """What stands in the header: BLAKE2b-256."""
    return blake2b(image, digest_size=HASH_SIZE).digest()


def encode_snapshot_head(head: SnapshotHead) -> bytes:
    """The header."""
    assert _is_possible(head), f"no head of a snapshot: {head}"
    body = _BODY.pack(MAGIC, FORMAT_VERSION, *head)
    return body + _CRC.pack(crc32(body))


def decode_snapshot_head(content: bytes) -> SnapshotHead:
    """The head in a header. Raises SnapshotDamaged."""
    if len(content) != SNAPSHOT_HEADER_SIZE:
        raise SnapshotDamaged(f"header of {len(content)} bytes")
    magic, version, *fields, header_crc = _HEADER.unpack(content)
    if magic != MAGIC or crc32(content[: _BODY.size]) != header_crc:
        raise SnapshotDamaged("header is damaged")
    if version != FORMAT_VERSION:
        raise SnapshotDamaged(f"unknown format version {version}")
    head = SnapshotHead(*fields)
    if not _is_possible(head):
        raise SnapshotDamaged("header field out of bounds")
    return head


def _is_possible(head: SnapshotHead) -> bool:
    return (
        head.previous_sequence < head.sequence
        and head.previous_term <= head.term
        and head.commands_segment >= 1
        and head.record_offset >= SECTOR_SIZE
        and head.record_offset % SECTOR_SIZE == 0
        and (head.record_count == 0) == (head.record_offset == SECTOR_SIZE)
        and 1 <= head.events_segment <= head.sequence
        and head.events_offset > SEGMENT_HEADER_SIZE
        and 1 <= head.image_size <= IMAGE_SIZE_MAX
    )


class Written:
    """A snapshot that lies aside, durable and proven to be readable; it counts for nothing yet."""

    def __init__(self, storage: Storage, head: SnapshotHead, image: bytes) -> None:
        self.head = head
        self.image = image  # as it was read back
        self._storage = storage

    def publish(self) -> None:
        """Give it its name, durably. Raises OSError."""
        self._storage.rename(self.head.name + TEMPORARY_SUFFIX, self.head.name)
        self._storage.sync_folder()

    def discard(self) -> None:
        """Remove it. Raises OSError."""
        self._storage.remove(self.head.name + TEMPORARY_SUFFIX)


class SnapshotFolder:
    """The snapshots of one venue. One process writes; any may read."""

    def __init__(self, storage: Storage) -> None:
        self.bad: list[tuple[str, str]] = []
        """Names and defects of the files that the last `heads` could not use."""
        self._storage = storage

    def heads(self) -> list[SnapshotHead]:
        """Those whose name, header and size are right, newest first; the others are in `bad`.

        The images were not read. Raises OSError when the folder cannot be listed.
        """
        heads = []
        self.bad = []
        for name in self._names():
            try:
                heads.append(self._read_head(name))
            except FileNotFoundError:
                continue  # Removed meanwhile by the process that writes.
            except (SnapshotDamaged, OSError) as error:
                self.bad.append((name, _defect(error)))
        return heads

    def read(self, head: SnapshotHead) -> bytes:
        """The image, proven by its hash. Raises SnapshotDamaged."""
        try:
            with closing(self._storage.open(head.name)) as file:
                return _read_image(file, head)
        except OSError as error:
            raise SnapshotDamaged(str(error), file=head.name) from error

    def write(self, head: SnapshotHead, image: bytes) -> Written:
        """Write it aside, make it durable, read it back. Raises OSError, and SnapshotDamaged when
        the disk gives back something else; then nothing is left, as far as that goes."""
        assert len(image) == head.image_size, "the head is that of the image"
        aside = head.name + TEMPORARY_SUFFIX
        with suppress(FileNotFoundError):
            self._storage.remove(aside)
        try:
            with closing(self._storage.create(aside)) as file:
                offset = 0
                for block in _blocks(head, image):
                    file.write(offset, block)
                    # Small syncs, so that a record's sync never waits behind a whole image.
                    file.sync_data()
                    offset += len(block)
                file.settle()
            with closing(self._storage.open(aside)) as file:
                return Written(self._storage, head, _read_image(file, head))
        except BaseException:
            with suppress(OSError):
                self._storage.remove(aside)
            raise

    def prune(self, keep: int, unusable: Collection[str] = ()) -> list[str]:
        """Remove what is older than the newest `keep`, of which none has a name in `unusable`; the
        names. Raises OSError."""
        assert keep >= KEPT_MIN, f"{keep} snapshots are too few"
        kept = [head.name for head in self.heads() if head.name not in unusable][:keep]
        old = [name for name in self._names() if len(kept) == keep and name < kept[-1]]
        for name in old:
            self._storage.remove(name)
        if old:
            self._storage.sync_folder()
        return old

    def remove_leftovers(self) -> None:
        """Remove what was being written when its maker ended. Raises OSError."""
        for name in self._storage.names():
            if name.endswith(SNAPSHOT_SUFFIX + TEMPORARY_SUFFIX):
                self._storage.remove(name)

    def _names(self) -> list[str]:
        """Names of snapshots, newest first."""
        return sorted(filter(_NAME.fullmatch, self._storage.names()), reverse=True)

    def _read_head(self, name: str) -> SnapshotHead:
        with closing(self._storage.open(name)) as file:
            head = decode_snapshot_head(file.read(0, SNAPSHOT_HEADER_SIZE))
            size = file.size()
        if head.name != name:
            raise SnapshotDamaged(f"header belongs to {head.name}")
        if size != SNAPSHOT_HEADER_SIZE + head.image_size:
            raise SnapshotDamaged(f"{size} bytes, the header says an image of {head.image_size}")
        return head


def _blocks(head: SnapshotHead, image: bytes) -> Iterator[bytes]:
    yield encode_snapshot_head(head)
    for start in range(0, len(image), BLOCK_SIZE):
        yield image[start : start + BLOCK_SIZE]


def _read_image(file: File, head: SnapshotHead) -> bytes:
    """Raises SnapshotDamaged, OSError."""
    if file.read(0, SNAPSHOT_HEADER_SIZE) != encode_snapshot_head(head):
        raise SnapshotDamaged("header is another one", file=head.name)
    image = file.read(SNAPSHOT_HEADER_SIZE, head.image_size)
    is_whole = file.size() == SNAPSHOT_HEADER_SIZE + head.image_size
    if not is_whole or hash_image(image) != head.image_hash:
        raise SnapshotDamaged("image is not the one that was written", file=head.name)
    return image


def _defect(error: SnapshotDamaged | OSError) -> str:
    return error.defect if isinstance(error, SnapshotDamaged) else str(error)
