"""The checkpoint file: written aside, synced, renamed, so that there is a whole one or the one
before it; one process at a time.

It only saves time: whatever is wrong with it, the market is built from the log's beginning.
"""

import fcntl
import os
from pathlib import Path
from typing import Final

from exchange.config import ConfigError
from exchange.feed.checkpoint import CheckpointError, restore
from exchange.feed.market import Market
from exchange.logs import Log

__all__ = ["FolderHeldError", "SavedMarket"]

NAME: Final = "checkpoint"
ASIDE_NAME: Final = "checkpoint.new"


class FolderHeldError(ConfigError):
    """Another feed server has the folder."""

    exit_code = 69


class SavedMarket:
    """The folder of a feed server, which is made if it is missing. Raises FolderHeldError and
    OSError."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self._aside = folder / ASIDE_NAME
        folder.mkdir(mode=0o700, exist_ok=True)
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._folder)
            raise FolderHeldError(f"{folder} is held by another feed server") from None

    def load(self, log: Log) -> Market | None:
        """The market as it was saved; None when there is none, or none of this build."""
        try:
            return restore(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except CheckpointError as error:
            log.info("checkpoint_refused", reason=str(error))
            return None

    def write(self, content: bytes) -> None:
        """Replace what is saved; for any thread, one at a time. Raises OSError."""
        descriptor = os.open(
            self._aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600
        )
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        self._aside.replace(self._path)
        os.fsync(self._folder)

    def remove(self) -> None:
        """Forget what is saved: it belongs to another log."""
        self._path.unlink(missing_ok=True)
        os.fsync(self._folder)

    def close(self) -> None:
        """Let others have the folder."""
        os.close(self._folder)
