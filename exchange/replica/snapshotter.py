"""When a snapshot is made, and how: every step proves the one before it.

The image is written aside and read back; what was read back is restored, and the engine made of it
must have the same image; the events up to there are made durable and compared with what the replay
gave. Only then the snapshot gets its name, older ones go, and the replica goes on with the restored
engine, so that the checksum of every later record proves the snapshot again. A disk that fails here
does no harm: the next one is tried when it is due.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from exchange.config import SnapshotSettings
from exchange.core.engine import RULES_VERSION, Engine
from exchange.core.replay import RestoreError, restore_engine
from exchange.replica.limits import EVENTS_LOOKS_MAX, EVENTS_PAUSE_S, PAUSE_FACTOR
from exchange.replica.replica import Replica
from exchange.replica.surroundings import Surroundings
from journal import (
    CommandsState,
    JournalError,
    SnapshotDamaged,
    SnapshotFolder,
    SnapshotHead,
    Storage,
    Written,
    events_reach,
    hash_image,
)
from journal.event_format import segment_name

__all__ = ["Execute", "Made", "Snapshotter"]

NANOSECONDS_PER_SECOND: Final = 1_000_000_000

Execute = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Runs a step of a snapshot where it may wait for the disk."""


class NotMadeError(Exception):
    """A snapshot cannot be made now; says why."""


@dataclass(frozen=True, slots=True)
class Made:
    """The newest snapshot, and how long it took; 0 where another process made it."""

    head: SnapshotHead
    total_ns: int = 0


class Snapshotter:
    """Counts since the last attempt, and makes one when it is due. Belongs to the loop's thread;
    only steps handed to `Execute` run elsewhere, one at a time."""

    def __init__(self, surroundings: Surroundings, settings: SnapshotSettings) -> None:
        self.newest: Made | None = None
        self.made_count = 0
        self.failure_count = 0
        self.kept_count = 0
        self.bad_count = 0
        """Files in the folder that no start can use: damaged, or of another build."""
        self._folder = SnapshotFolder(surroundings.snapshots)
        self._surroundings = surroundings
        self._settings = settings
        self._clock = surroundings.clock
        self._log = surroundings.log
        self._unusable: set[str] = set()  # names of those that do not restore, or lead elsewhere
        self._proven_segment = 1  # of events/: those before it need not be looked at again
        # As of the last attempt, or of the start.
        self._sequence = 0
        self._record_size = 0
        self._ended_ns = self._clock.monotonic_ns()
        self._pause_end_ns = self._ended_ns
        self._made_ns = self._ended_ns

    def restore_newest(self) -> tuple[SnapshotHead, Engine] | None:
        """The newest snapshot that this build can use, None when there is none. Raises OSError."""
        for head in self._folder.heads():
            if head.name in self._unusable:
                continue
            try:
                if head.events_segment_size != self._surroundings.event_segment_size:
                    raise RestoreError("its events/ have segments of another size")
                return head, restore_engine(head, self._folder.read(head))
            except (SnapshotDamaged, RestoreError) as error:
                self._pass_over(head, str(error))
        return None

    def pass_over_begun(self, reason: str) -> bool:
        """Never again take the snapshot that was begun with, as it has led to this; False when it
        is not known to be to blame: there was none, or one was made and proven since."""
        if self.newest is None or self.made_count:
            return False
        self._pass_over(self.newest.head, reason)
        return True

    def _pass_over(self, head: SnapshotHead, reason: str) -> None:
        self._unusable.add(head.name)
        self._log.error("snapshot_passed_over", file=head.name, reason=reason)

    def begin(self, replica: Replica, head: SnapshotHead | None) -> None:
        """Count from here: the replica goes on from this snapshot. Raises OSError."""
        self._folder.remove_leftovers()
        self._look()
        self.newest = Made(head) if head is not None else None
        self._sequence, self._record_size = replica.sequence, replica.record_size

    def look_again(self) -> None:
        """The venue has started anew, and may have written events/ anew."""
        self._proven_segment = 1

    def due_in_ns(self, replica: Replica) -> int | None:
        """How long until the next one is due, 0: now; None: never, as there is nothing new."""
        commands = replica.sequence - self._sequence
        if not commands:
            return None
        settings, now_ns = self._settings, self._clock.monotonic_ns()
        is_much = commands >= settings.every_commands
        is_large = replica.record_size - self._record_size >= settings.every_bytes
        due_ns = self._pause_end_ns
        if not (is_much or is_large):
            due_ns = max(due_ns, self._ended_ns + settings.every_s * NANOSECONDS_PER_SECOND)
        return max(0, due_ns - now_ns)

    def waiting_ns(self, replica: Replica) -> int:
        """For how long there has been no snapshot since the newest, or the start; 0: nothing has
        come since."""
        newest = self.newest.head.sequence if self.newest is not None else 0
        return self._clock.monotonic_ns() - self._made_ns if replica.sequence > newest else 0

    async def make(self, replica: Replica, at: CommandsState, execute: Execute) -> None:
        """Make a snapshot of this state; nothing is applied meanwhile. AssertionError when the
        image does not restore to the same state."""
        start_ns = self._clock.monotonic_ns()
        try:
            head = await self._write_and_prove(replica, at, execute)
        except (NotMadeError, JournalError, OSError) as error:
            self.failure_count += 1
            self._log.error("snapshot_failed", sequence=replica.sequence, reason=str(error))
        else:
            self.made_count += 1
            self._unusable.discard(head.name)
            total_ns = self._clock.monotonic_ns() - start_ns
            self.newest = Made(head, total_ns)
            self._made_ns = self._clock.monotonic_ns()
            self._log.info(
                "snapshot_made",
                sequence=head.sequence,
                bytes=head.image_size,
                duration_ms=total_ns // 1_000_000,
            )
            await self._prune(execute)
        self._sequence, self._record_size = replica.sequence, replica.record_size
        self._ended_ns = self._clock.monotonic_ns()
        self._pause_end_ns = self._ended_ns + PAUSE_FACTOR * (self._ended_ns - start_ns)

    async def _write_and_prove(
        self, replica: Replica, at: CommandsState, execute: Execute
    ) -> SnapshotHead:
        """Raises NotMadeError, JournalError, OSError; then nothing is left, if possible."""
        image = replica.engine.image()
        self._check_room(len(image))
        head = head_of(replica, at, image)
        written: Written = await execute(partial(self._folder.write, head, image))
        del image  # What was read back counts from here.
        try:
            await self._wait_for_events(head, execute)
            engine: Engine = await execute(partial(restore_engine, head, written.image))
            await execute(written.publish)
        except RestoreError as error:
            raise AssertionError(f"the snapshot of sequence {head.sequence}: {error}") from error
        except (NotMadeError, JournalError, OSError):
            with suppress(OSError):
                await execute(written.discard)
            raise
        replica.engine = engine
        return head

    def _check_room(self, size: int) -> None:
        """The disk is the venue's. Raises NotMadeError, OSError."""
        free_size = self._surroundings.snapshots.free_size()
        if free_size < size + self._surroundings.reserve_size:
            raise NotMadeError(f"{free_size} bytes are free, {size} are to be written")

    async def _wait_for_events(self, head: SnapshotHead, execute: Execute) -> None:
        """Have events/ reach the snapshot, durably. Raises NotMadeError, JournalError,
        OSError."""
        await execute(lambda: sync_events(self._surroundings.events, head.events_segment))
        look = partial(events_reach, self._surroundings.events, head, since=self._proven_segment)
        for _ in range(EVENTS_LOOKS_MAX):
            if await execute(look):
                self._proven_segment = head.events_segment
                return
            await asyncio.sleep(EVENTS_PAUSE_S)
        raise NotMadeError("events/ has not what the journal caused")

    async def _prune(self, execute: Execute) -> None:
        try:
            await execute(partial(self._folder.prune, self._settings.keep, self._unusable))
            await execute(self._look)
        except OSError as error:
            self._log.error("snapshots_not_removed", reason=str(error))

    def _look(self) -> None:
        names = {head.name for head in self._folder.heads()}
        self._unusable &= names
        self.kept_count = len(names - self._unusable)
        self.bad_count = len(self._folder.bad) + len(self._unusable)


def head_of(replica: Replica, at: CommandsState, image: bytes) -> SnapshotHead:
    """The head of a snapshot with this image; `at` is where the last record applied is."""
    engine, trail = replica.engine, replica.trail
    assert at.head.sequence == engine.sequence, "everything that was read is applied"
    return SnapshotHead(
        rules_version=RULES_VERSION,
        sequence=engine.sequence,
        time_ns=engine.time_ns,
        term=at.head.term,
        record_hash=at.head.hash,
        previous_sequence=at.previous.sequence,
        previous_term=at.previous.term,
        previous_hash=at.previous.hash,
        commands_segment=at.segment,
        record_offset=at.record_offset,
        record_count=at.record_count,
        events_segment=trail.segment,
        events_offset=trail.offset,
        events_segment_size=trail.segment_size,
        events_crc=trail.crc,
        image_size=len(image),
        image_hash=hash_image(image),
    )


def sync_events(events: Storage, segment: int) -> None:
    """Make durable what the venue has written to this segment of events/: it syncs full ones only,
    and a snapshot counts only when events/ reaches it after a loss of power too. Raises OSError.

    What is read next is what the disk has: after a sync that failed, whoever met it, the system may
    hold pages that never got there and call them clean, and a later sync then succeeds.
    """
    with closing(events.open(segment_name(segment))) as file:
        file.settle()
    events.sync_folder()
