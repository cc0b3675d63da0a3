"""What the journal raises: one line for a person, and the code with which the process should end.

Users of the journal make none of these happen by a wrong call; wrong calls are assertions.
"""

from __future__ import annotations

from typing import ClassVar


class JournalError(Exception):
    """Base of the errors below; never raised itself."""

    exit_code: ClassVar[int]


class JournalDamaged(JournalError):
    """The files are not what the journal wrote: refused, no file changed. A person must decide."""

    exit_code = 66

    def __init__(
        self, defect: str, *, file: str = "", offset: int | None = None, sequence: int | None = None
    ) -> None:
        """`file` is its name, `offset` bytes into it, `sequence` the last good command before."""
        place = file or "journal"
        if offset is not None:
            place += f" at offset {offset}"
        if sequence is not None:
            place += f", after sequence {sequence}"
        super().__init__(f"journal damaged: {place}: {defect}")
        self.defect = defect
        self.file = file
        self.offset = offset
        self.sequence = sequence


class SnapshotDamaged(JournalError):
    """A snapshot is not what was written, or cannot be read: an older one may be good."""

    exit_code = 66

    def __init__(self, defect: str, *, file: str = "") -> None:
        super().__init__(f"snapshot damaged: {file}: {defect}" if file else f"snapshot: {defect}")
        self.defect = defect
        self.file = file


class JournalFailed(JournalError):
    """The disk failed a read, write, sync or rename. Nothing may be acknowledged any more."""

    exit_code = 74

    def __init__(self, action: str, reason: object) -> None:
        super().__init__(f"journal failed: {action}: {reason}")
        self.action = action


class JournalHeld(JournalError):
    """Another process holds the lock of the folder."""

    exit_code = 69

    def __init__(self, folder: str) -> None:
        super().__init__(f"journal held: another process has {folder} open")
