"""How the process ends: the exit codes, and the failure that decided."""

from enum import IntEnum
from typing import NamedTuple

__all__ = ["Exit", "Failure", "ServiceError"]


class Exit(IntEnum):
    """Exit codes of `exchange serve`; the runbook has a page for each."""

    STOPPED = 0
    CONFIGURATION = 64
    ASSERTION = 65
    JOURNAL_DAMAGED = 66
    FOLDER_HELD = 69
    STORAGE_FAILED = 74


class Failure(NamedTuple):
    """The first thing that went wrong; from then on nothing is acknowledged."""

    exit_code: int
    text: str


class ServiceError(Exception):
    """The venue cannot start or go on; the text is one line, the code that of the process."""

    def __init__(self, exit_code: int, text: str) -> None:
        super().__init__(text)
        self.exit_code = exit_code
