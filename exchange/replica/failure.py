"""How the replica ends: the exit codes are those of the venue."""

from typing import Final

__all__ = ["ASSERTION", "CONFIGURATION", "DAMAGED", "STOPPED", "STORAGE_FAILED", "ReplicaFailure"]

STOPPED: Final = 0
CONFIGURATION: Final = 64
ASSERTION: Final = 65
DAMAGED: Final = 66
STORAGE_FAILED: Final = 74
"""Those of failures of the journal come with them."""


class ReplicaFailure(Exception):
    """The replica cannot go on; the text is one line, the code that of the process."""

    def __init__(self, exit_code: int, text: str) -> None:
        super().__init__(text)
        self.exit_code = exit_code
