"""The background work of the journal: preallocating the next segment, sealing the last one.

One job at a time, begun at start and after each roll-over, finished before the next roll-over.
Where it runs is injected: `run_in_thread` in a venue, `run_inline` in a simulator. A job touches
only files that the appending side does not: the prepared file, the manifest, and segments that take
no records any more.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from typing import Final

from journal.errors import JournalFailed
from journal.manifest import MANIFEST_NAME, Sealed, encode_manifest
from journal.reader import OpenSegment
from journal.segment import hash_file, prepared_name, zeros
from journal.storage import Storage, write_durably

WORKER_NICENESS: Final = 10
"""A tenth of the loop's share where both want the processor; less, and a worker that holds the
interpreter could be kept from giving it back."""

PREPARE_WAIT_MAX_S: Final = 60.0  # A disk that needs longer for one segment is broken.

Join = Callable[[], bool]
"""Waits for a job, bounded; says whether it has ended."""
Execute = Callable[[Callable[[], None]], Join]
"""Runs a job, now or elsewhere."""


def run_in_thread(job: Callable[[], None]) -> Join:
    """Run the job in a thread of its own, which gets the processor when the loop leaves it."""

    def work() -> None:
        # On Linux that of the thread alone. Else the scheduler gives it slices of milliseconds.
        # Where that is forbidden, by a filter of system calls say, the work is done all the same.
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), WORKER_NICENESS)
        job()

    thread = threading.Thread(target=work, name="journal-worker", daemon=True)
    thread.start()

    def join() -> bool:
        thread.join(PREPARE_WAIT_MAX_S)
        return not thread.is_alive()

    return join


def run_inline(job: Callable[[], None]) -> Join:
    """Run the job before returning."""
    job()
    return lambda: True


class Latch:
    """Holds the first failure and raises it for ever after. Shared by all threads of a journal."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failure: JournalFailed | None = None

    def check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def fail(self, action: str, reason: object) -> JournalFailed:
        """Latch this failure, unless there is an earlier one; the one that holds is returned."""
        with self._lock:
            if self._failure is None:
                self._failure = JournalFailed(action, reason)
            return self._failure

    @contextmanager
    def guard(self, action: str) -> Iterator[None]:
        """Turn an OSError of the body into the latched failure."""
        self.check()
        try:
            yield
        except OSError as error:
            raise self.fail(action, error) from error


class Preparer:
    """Owns the manifest and the prepared segment of one journal."""

    def __init__(
        self,
        storage: Storage,
        latch: Latch,
        sealed: Sequence[Sealed],
        segment_size: int,
        execute: Execute,
    ) -> None:
        self._storage = storage
        self._latch = latch
        self._sealed = list(sealed)
        self._segment_size = segment_size
        self._execute = execute
        self._join: Join | None = None
        self._ready = ""  # name of the prepared segment

    @property
    def segment_size(self) -> int:
        return self._segment_size

    def begin(self, number: int, full: Sequence[OpenSegment]) -> None:
        """Begin a job: prepare segment `number`, seal the segments `full`."""
        assert self._join is None, "one job at a time"
        self._join = self._execute(lambda: self._work(number, full))

    def take(self) -> str:
        """The name of the prepared segment; waits for the job. Raises JournalFailed."""
        self.wait()
        name, self._ready = self._ready, ""
        assert name, "a job prepares one segment, which is taken once"
        return name

    def wait(self) -> None:
        """Wait for the job, at most PREPARE_WAIT_MAX_S. Raises JournalFailed."""
        if self._join is not None:
            join, self._join = self._join, None
            if not join():
                raise self._latch.fail("prepare the next segment", "not done in time")
        self._latch.check()

    def _work(self, number: int, full: Sequence[OpenSegment]) -> None:
        try:
            name = prepared_name(number)
            self._preallocate(name)
            for segment in full:
                self._seal(segment)
            self._ready = name
        except Exception as error:  # noqa: BLE001 - on a thread nobody else would hear of it
            self._latch.fail(f"prepare segment {number}", error)

    def _preallocate(self, name: str) -> None:
        with closing(self._storage.create(name)) as file:
            offset = 0
            for block in zeros(self._segment_size):
                file.write(offset, block)
                # Small syncs, so that a record's sync never waits behind the whole segment.
                file.sync_data()
                offset += len(block)
            file.sync()

    def _seal(self, full: OpenSegment) -> None:
        segment = full.segment
        assert segment.number == len(self._sealed) + 1, "segments are sealed in order"
        with closing(self._storage.open(segment.name)) as file:
            digest = hash_file(file)
        entry = Sealed(
            segment.number,
            segment.first_sequence,
            full.last_sequence,
            full.record_count,
            segment.size,
            digest,
        )
        self._sealed.append(entry)
        write_durably(self._storage, MANIFEST_NAME, [encode_manifest(self._sealed)])
