"""The checkpoint file: written aside, synced, renamed, so that there is a whole one or the one
before it; one process at a time.

It only saves time: whatever is wrong with it, the market is built from the log's beginning.
"""

from contextlib import closing, suppress
from typing import Final

from exchange.feed.checkpoint import CheckpointError, restore
from exchange.feed.market import Market
from exchange.logs import Log
from journal import Storage
from journal.storage import TEMPORARY_SUFFIX, write_durably

__all__ = ["SavedMarket"]

NAME: Final = "checkpoint"


class SavedMarket:
    """The folder of a feed server. Raises JournalHeld when another process has it, and OSError."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        storage.lock()

    def load(self, log: Log) -> Market | None:
        """The market as it was saved; None when there is none, or none of this build."""
        try:
            with closing(self._storage.open(NAME)) as file:
                return restore(file.read(0, file.size()))
        except FileNotFoundError:
            return None
        except CheckpointError as error:
            log.info("checkpoint_refused", reason=str(error))
            return None

    def write(self, content: bytes) -> None:
        """Replace what is saved; for any thread, one at a time. Raises OSError."""
        with suppress(FileNotFoundError):
            self._storage.remove(NAME + TEMPORARY_SUFFIX)  # A process before us was killed.
        write_durably(self._storage, NAME, [content])

    def remove(self) -> None:
        """Forget what is saved: it belongs to another log."""
        with suppress(FileNotFoundError):
            self._storage.remove(NAME)
        self._storage.sync_folder()

    def close(self) -> None:
        """Let others have the folder."""
        self._storage.close()
