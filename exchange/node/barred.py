"""What is written aside when the core fails on a command, so that the same bytes fail it only once.

A file in the folder `barred/` has the BLAKE2b-256 of the payload as its name, and holds the
payload, the open batch's commands and what happened, as text for people. While it is there, the
gateway refuses that payload; an operator removes it once a build is installed that can take it.
Nothing of the core's state is written: it is no longer known to be right.
"""

from contextlib import closing
from hashlib import blake2b
from typing import Final

from exchange.node.limits import BARRED_MAX
from journal.storage import TEMPORARY_SUFFIX, Storage, write_durably

__all__ = ["BarredDamaged", "BarredPayloads", "payload_hash"]

SUFFIX: Final = ".barred"
CULPRIT_UNKNOWN: Final = "no-payload"
"""Stands for the hash when the core failed by itself, on a deadline or a continuation."""

FILE_SIZE_MAX: Final = 1024 * 1024
"""A batch in hexadecimal and some lines of text are smaller."""


class BarredDamaged(Exception):
    """A file in the folder is not what was written; a person must look. The text is one line."""


def payload_hash(payload: bytes) -> str:
    """BLAKE2b-256 in hexadecimal, as `b2sum -l 256` prints it."""
    return blake2b(payload, digest_size=32).hexdigest()


class BarredPayloads:
    """The payloads that are refused, as found in the folder at start."""

    def __init__(self, storage: Storage) -> None:
        """Read the folder. Raises BarredDamaged, OSError."""
        self._storage = storage
        self.payloads: dict[str, bytes] = {}
        names = [name for name in storage.names() if name.endswith(SUFFIX)]
        if len(names) > BARRED_MAX:
            raise BarredDamaged(f"more than {BARRED_MAX} barred payloads; look at them first")
        for name in names:
            digest = name.removesuffix(SUFFIX)
            if not digest.startswith(CULPRIT_UNKNOWN):
                self.payloads[digest] = self._read_payload(name, digest)

    def _read_payload(self, name: str, digest: str) -> bytes:
        with closing(self._storage.open(name)) as file:
            lines = file.read(0, FILE_SIZE_MAX).decode("ascii", "replace").splitlines()
        for line in lines:
            key, _, value = line.partition(" ")
            if key == "payload":
                try:
                    payload = bytes.fromhex(value)
                except ValueError:
                    break
                if payload_hash(payload) == digest:
                    return payload
        raise BarredDamaged(f"barred/{name} does not hold the payload that it is named after")

    def __contains__(self, payload: bytes) -> bool:
        return bool(self.payloads) and payload_hash(payload) in self.payloads

    def write_aside(self, payload: bytes | None, commands: bytes, story: list[str]) -> str:
        """Write the file, durably; returns its name. `story` are lines of text. Raises OSError."""
        digest = f"{CULPRIT_UNKNOWN}-{payload_hash(commands)}"
        if payload is not None:
            digest = payload_hash(payload)
        lines = [f"# {_visible(line)}" for line in story]
        if payload is not None:
            lines.append(f"payload {payload.hex()}")
        lines.append(f"commands {commands.hex()}")
        name = digest + SUFFIX
        if name + TEMPORARY_SUFFIX in self._storage.names():
            self._storage.remove(name + TEMPORARY_SUFFIX)
        write_durably(self._storage, name, [("\n".join(lines) + "\n").encode("ascii")])
        return name


def _visible(line: str) -> str:
    return line.encode("unicode_escape").decode("ascii")
