"""Start, follow, make snapshots, stop.

A start takes the newest snapshot and reads what the journal has behind it, or all of it. Then the
replica follows the venue, at a low priority and a tenth of a second behind, and makes a snapshot
whenever one is due. A snapshot that leads to other events than the venue's is passed over as the
venue's own start does it: for an older one, else all records. Whatever ends it, the venue goes on.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final

from exchange.config import SnapshotSettings
from exchange.core.replay import ReplayError, is_way_out
from exchange.replica.limits import PROGRESS_S, SLICE_SIZE
from exchange.replica.replica import Replica
from exchange.replica.snapshotter import Snapshotter
from exchange.replica.source import CommandSource, LocalSource
from exchange.replica.surroundings import Surroundings
from journal import JournalDamaged

__all__ = ["ReplicaService"]

NANOSECONDS_PER_SECOND: Final = 1_000_000_000


class ReplicaService:
    """A replica beside its venue: everything but the process around it. Made on the loop."""

    def __init__(
        self,
        surroundings: Surroundings,
        settings: SnapshotSettings,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """Hold the folder of snapshots and take the newest. Raises JournalError, OSError."""
        self.caught_up: asyncio.Future[None] = loop.create_future()
        """Done when everything was applied that the venue said first."""
        self.clock = surroundings.clock
        self.log = surroundings.log
        self._surroundings = surroundings
        self._loop = loop
        self._step: asyncio.Future[Any] | None = None
        self._progress_ns = 0
        surroundings.snapshots.lock()
        try:
            self.snapshotter = Snapshotter(surroundings, settings)
            self._begin()
        except BaseException:
            surroundings.snapshots.close()
            raise

    def _begin(self) -> None:
        around = self._surroundings
        found = self.snapshotter.restore_newest()
        head, engine = found if found is not None else (None, None)
        self.replica = Replica(around.event_segment_size, head, engine)
        self.snapshotter.begin(self.replica, head)
        self.source: CommandSource = LocalSource(around.commands, around.connect, self.log, head)
        self._start_count = 0
        self.log.info("replica_started", sequence=self.replica.sequence)

    @property
    def lag(self) -> int:
        """Commands that are durable and not applied, as far as the venue has said."""
        until = self.source.until
        return max(0, until.sequence - self.replica.sequence) if until is not None else 0

    async def run(self) -> None:
        """Follow the venue for ever. Raises ReplicaFailure, ReplayError, JournalError,
        PositionError, AssertionError, OSError."""
        before: ReplayError | None = None
        while True:
            try:
                await self._run()
            except ReplayError as error:
                if not is_way_out(error, before):
                    raise
                if not self.snapshotter.pass_over_begun(str(error)):
                    raise
                before = error
            except JournalDamaged:
                if before is None or self.replica.sequence:
                    raise
                # The first records are not here, as they are archived.
                raise before from None
            self.source.close()
            self._begin()

    async def _run(self) -> None:
        """With the snapshot that was begun with."""
        jobs = [self._loop.create_task(job) for job in (self.source.run(), self._follow())]
        try:
            await asyncio.wait(jobs, return_when=asyncio.FIRST_COMPLETED)
            for job in jobs:
                if job.done():
                    job.result()
        finally:
            for job in jobs:
                job.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)

    async def stop(self) -> None:
        """Wait for the step of a snapshot that may be under way; `run` has been canceled or has
        ended. `close` follows."""
        if self._step is not None:
            await asyncio.gather(self._step, return_exceptions=True)

    def close(self) -> None:
        """Let go of everything, once."""
        self.source.close()
        self._surroundings.snapshots.close()

    # Inside.

    async def _follow(self) -> None:
        while True:
            records = self.source.read(SLICE_SIZE)
            for record in records:
                self.replica.apply(record)
            until = self.source.until
            if until is not None and until.sequence == self.replica.sequence:
                self.replica.compare(until)
                if not self.caught_up.done():
                    self.caught_up.set_result(None)
            due_in_ns = self._due_in_ns()
            if due_in_ns == 0:
                self._note_starts()
                await self.snapshotter.make(self.replica, self.source.at, self._execute)
            elif records:
                self._say_progress()
                await asyncio.sleep(0)
            else:
                await self._wait(due_in_ns)

    def _due_in_ns(self) -> int | None:
        """How long until a snapshot is due; None: never, or not before there is news."""
        until = self.source.until
        # A record may be durable just before its events are written, and the venue says so.
        if until is None or until.sequence < self.replica.sequence:
            return None
        return self.snapshotter.due_in_ns(self.replica)

    def _note_starts(self) -> None:
        if self._start_count != self.source.start_count:
            self._start_count = self.source.start_count
            self.snapshotter.look_again()

    async def _wait(self, due_in_ns: int | None) -> None:
        """Wait for news, at most until a snapshot is due."""
        timeout_s = due_in_ns / NANOSECONDS_PER_SECOND if due_in_ns is not None else None
        try:
            async with asyncio.timeout(timeout_s):
                await self.source.wait()
        except TimeoutError:
            return

    async def _execute(self, step: Callable[[], Any]) -> Any:
        """Run a step of a snapshot on a thread; one that was begun is waited for by `stop`."""
        self._step = self._loop.run_in_executor(None, step)
        return await asyncio.shield(self._step)

    def _say_progress(self) -> None:
        """Now and then, while it is far behind for the first time."""
        now_ns = self.clock.monotonic_ns()
        if self.caught_up.done() or now_ns < self._progress_ns:
            return
        self._progress_ns = now_ns + int(PROGRESS_S * NANOSECONDS_PER_SECOND)
        self.log.info("catching_up", sequence=self.replica.sequence, behind=self.lag)
