"""How a record becomes durable: on the loop thread, or on a worker thread. See COMMIT.md.

A sync on the loop thread saves the hop to a worker and back; a worker keeps the loop alive while a
slow disk or a new segment takes its time, and lets the next batch form meanwhile. At most one
record is handed in at a time; the sequencer sees to that.
"""

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Final, Protocol

from exchange.clock import Clock
from journal import BuiltRecord, Journal

__all__ = ["AdaptiveCommitter", "Committer", "Done", "InlineCommitter", "ThreadCommitter"]

Done = Callable[[BaseException | None], None]
"""Called on the loop thread when a record that was not done at once is durable, or failed."""

INLINE_COMMIT_NS_MAX: Final = 1_000_000
"""A loop that stands still for longer is felt by its clients: COMMIT.md has the figures."""

SMOOTHING: Final = 8
"""One commit counts an eighth of what is expected of the next: a single hiccup changes nothing."""


class Committer(Protocol):
    """Makes one record at a time durable."""

    def commit(self, record: BuiltRecord, done: Done) -> bool:
        """Write and sync. True: it is durable now. False: `done` is called later.

        Raises what the journal raises when it happens before it returns.
        """

    def close(self) -> None:
        """Stop; nothing is under way."""


class InlineCommitter:
    """Commits before it returns."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def commit(self, record: BuiltRecord, done: Done) -> bool:
        del done  # Nothing is left to be told later.
        self._journal.write(record)
        self._journal.sync()
        return True

    def close(self) -> None:
        """Nothing to stop."""


class ThreadCommitter:
    """Commits on one worker thread, which tells the loop when it is done."""

    def __init__(self, journal: Journal, loop: asyncio.AbstractEventLoop) -> None:
        self._journal = journal
        self._loop = loop
        self._jobs: SimpleQueue[tuple[BuiltRecord, Done] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="commit", daemon=True)
        self._thread.start()

    def commit(self, record: BuiltRecord, done: Done) -> bool:
        self._jobs.put((record, done))
        return False

    def close(self) -> None:
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            record, done = job
            error: BaseException | None = None
            try:
                self._journal.write(record)
                self._journal.sync()
            except BaseException as caught:  # noqa: BLE001 - whatever it is, the loop must know
                error = caught
            self._loop.call_soon_threadsafe(done, error)


class AdaptiveCommitter:
    """Inline while the disk is quick, on the worker thread when it is not or a segment is full."""

    def __init__(self, journal: Journal, loop: asyncio.AbstractEventLoop, clock: Clock) -> None:
        self._journal = journal
        self._clock = clock
        self._inline = InlineCommitter(journal)
        self._thread = ThreadCommitter(journal, loop)
        self._expected_ns = 0  # how long a commit takes

    def commit(self, record: BuiltRecord, done: Done) -> bool:
        start_ns = self._clock.monotonic_ns()
        if self._is_quick(record):
            self._inline.commit(record, done)
            self._note(start_ns)
            return True

        def note_and_tell(error: BaseException | None) -> None:
            self._note(start_ns)
            done(error)

        return self._thread.commit(record, note_and_tell)

    def close(self) -> None:
        self._thread.close()

    def _is_quick(self, record: BuiltRecord) -> bool:
        return self._expected_ns <= INLINE_COMMIT_NS_MAX and self._journal.fits(record)

    def _note(self, start_ns: int) -> None:
        taken_ns = self._clock.monotonic_ns() - start_ns
        self._expected_ns += (taken_ns - self._expected_ns) // SMOOTHING
