"""Copies that count: written aside, synced, read back from the disk and compared, then named.

What the operator's tools move or cut is first copied so; whatever fails before leaves the original
untouched and at most a file that ends in `.tmp`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from hashlib import blake2b

from journal.errors import JournalDamaged, JournalError, JournalFailed
from journal.record import HASH_SIZE
from journal.segment import BLOCK_SIZE, hash_file, is_zero
from journal.storage import TEMPORARY_SUFFIX, File, Storage, write_durably

Report = Callable[[str], None]
"""Takes one line for the person who waits."""


class OperationRefused(JournalError):
    """What was asked for cannot be done with these folders; no file was changed."""

    exit_code = 64


@contextmanager
def storage_errors(action: str) -> Iterator[None]:
    """Turn an OSError of the body into JournalFailed."""
    try:
        yield
    except OSError as error:
        raise JournalFailed(action, error) from error


def replace_durably(storage: Storage, name: str, chunks: Iterable[bytes]) -> None:
    """`write_durably`, also where an earlier try has left its file. Raises OSError."""
    with suppress(FileNotFoundError):
        storage.remove(name + TEMPORARY_SUFFIX)
    write_durably(storage, name, chunks)


def copy_durably(
    source: Storage, name: str, target: Storage, target_name: str, expected: bytes | None = None
) -> bytes:
    """Copy a file to another folder; its hash. Raises JournalDamaged when that is not `expected`,
    JournalFailed when the copy reads back as something else, OSError."""
    aside = target_name + TEMPORARY_SUFFIX
    with suppress(FileNotFoundError):
        target.remove(aside)
    try:
        digest = _write_copy(source, name, target, aside)
        if expected is not None and digest != expected:
            raise JournalDamaged("hash of the sealed segment differs from the manifest", file=name)
        with closing(target.open(aside)) as copy:
            if hash_file(copy) != digest:
                raise JournalFailed(f"copy {name}", "the copy reads back as something else")
        target.rename(aside, target_name)
        target.sync_folder()
    except BaseException:
        with suppress(OSError):
            target.remove(aside)
        raise
    return digest


def _write_copy(source: Storage, name: str, target: Storage, aside: str) -> bytes:
    """Everything durable, and out of the cache; the hash of what was read."""
    digest = blake2b(digest_size=HASH_SIZE)
    with closing(source.open(name)) as original, closing(target.create(aside)) as copy:
        offset = 0
        while block := original.read(offset, BLOCK_SIZE):
            digest.update(block)
            copy.write(offset, block)
            # Small syncs, so that a venue's sync on the same disk never waits behind all of it.
            copy.sync_data()
            offset += len(block)
        copy.settle()
    return digest.digest()


def has_hash(storage: Storage, name: str, expected: bytes) -> bool:
    """Whether the file is there and is this one. Raises OSError."""
    try:
        file = storage.open(name)
    except FileNotFoundError:
        return False
    with closing(file):
        return hash_file(file) == expected


def is_zero_from(file: File, offset: int) -> bool:
    """Whether nothing was written behind an offset. Raises OSError."""
    while block := file.read(offset, BLOCK_SIZE):
        if not is_zero(block):
            return False
        offset += len(block)
    return True
