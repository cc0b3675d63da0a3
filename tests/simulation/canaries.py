"""Planted bugs: each must be found by the simulator within some seeds.

The product does not hold them. A canary replaces a function of the product while a simulation runs;
`planted` puts everything back. A checker that compares nothing lets a canary live, and the test of
the canaries fails.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import exchange.node.recovery
import journal.events
import journal.log
import journal.prepare
import journal.reader
from exchange.core.engine import RULES_VERSION, Batch, Engine
from exchange.node.connection import Connection
from exchange.node.order_entry import OrderEntry
from exchange.node.sequencer import Sequencer
from exchange.node.venue import Venue
from journal import (
    BuiltRecord,
    EventLog,
    Journal,
    JournalDamaged,
    JournalError,
    Position,
    Storage,
    read_only,
)
from journal.memory import AttachedStorage
from journal.record import Head
from journal.tail import Tail
from protocol.records import COMMAND_HEAD, FROM_CLIENT
from tests.simulation import canaries_around as around
from tests.simulation.disks import WatchedFile

__all__ = ["CANARIES", "Patches", "planted"]

Bug = Callable[["Patches"], None]


class Patches:
    """Attributes that are replaced, and what they were."""

    def __init__(self) -> None:
        self._before: list[tuple[Any, str, Any]] = []

    def set(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        """Replace an attribute by what `make` makes of it."""
        before = getattr(owner, name)
        self._before.append((owner, name, before))
        setattr(owner, name, make(before))

    def undo(self) -> None:
        for owner, name, before in reversed(self._before):
            setattr(owner, name, before)


@contextmanager
def planted(name: str) -> Iterator[None]:
    """The bug of that name is in the product."""
    patches = Patches()
    try:
        CANARIES[name](patches)
        yield
    finally:
        patches.undo()


# The journal.


def _count_as_synced(journal: Any) -> None:
    """What `Journal.sync` does behind its sync."""
    writer = journal._writer
    journal._head, journal._position = writer.unsynced, writer.position
    writer.unsynced = None


def release_before_sync(patches: Patches) -> None:
    """A record counts as durable when it is written; it is synced before the next one."""

    def make_write(write: Any) -> Any:
        def late(journal: Any, batch: BuiltRecord) -> None:
            journal._writer.file.sync_data()
            write(journal, batch)

        return late

    patches.set(Journal, "sync", lambda _: _count_as_synced)
    patches.set(Journal, "write", make_write)


def ignored_failed_sync(patches: Patches) -> None:
    """A sync that fails is taken for one that has worked."""

    def sync(journal: Any) -> None:
        with suppress(OSError):
            journal._writer.file.sync_data()
        _count_as_synced(journal)

    patches.set(Journal, "sync", lambda _: sync)


def repeated_sync(patches: Patches) -> None:
    """A sync that has failed is tried again."""

    def sync(journal: Any) -> None:
        try:
            journal._writer.file.sync_data()
        except OSError:
            journal._writer.file.sync_data()
        _count_as_synced(journal)

    patches.set(Journal, "sync", lambda _: sync)


class _NoFolderSync:
    """A storage that does not sync its folder."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def sync_folder(self) -> None:
        """Left out."""


def skipped_directory_sync(patches: Patches) -> None:
    """A segment is begun without syncing the folder that has its name."""

    def make(begin: Any) -> Any:
        def begin_without(journal: Any, batch: BuiltRecord) -> None:
            storage = journal._storage
            journal._storage = _NoFolderSync(storage)
            try:
                begin(journal, batch)
            finally:
                journal._storage = storage

        return begin_without

    patches.set(Journal, "_begin_segment", make)


def unsynced_manifest(patches: Patches) -> None:
    """Small files get their name before their content is synced."""

    def write_carelessly(storage: Storage, name: str, chunks: Any) -> None:
        file = storage.create(name + ".tmp")
        offset = 0
        for chunk in chunks:
            file.write(offset, chunk)
            offset += len(chunk)
        storage.rename(name + ".tmp", name)
        storage.sync_folder()

    for module in (journal.log, journal.prepare):
        patches.set(module, "write_durably", lambda _: write_carelessly)


def dropped_last_record(patches: Patches) -> None:
    """A start takes the last record for a torn one, and cuts it."""

    def make(open_journal: Any) -> Any:
        def cut_and_open(storage: Storage, **options: Any) -> Journal:
            with suppress(JournalError):
                last = [*read_only(storage).records()][-1:]
                for record in last:
                    names = [name for name in storage.names() if name.endswith(".segment")]
                    name = names[record.segment_number - 1]
                    if record.first_sequence > 1:
                        file = storage.open(name, is_writable=True)
                        file.write(record.offset, bytes(record.size))
                        file.sync_data()
            opened: Journal = open_journal(storage, **options)
            return opened

        return staticmethod(cut_and_open)

    patches.set(Journal, "open", make)


def reused_sequence_number(patches: Patches) -> None:
    """Now and then a record begins with the last sequence of the one before."""

    def make(build: Any) -> Any:
        def build_again(previous: Head, *rest: Any) -> BuiltRecord:
            if previous.sequence % 50:
                built: BuiltRecord = build(previous, *rest)
                return built
            wrong: BuiltRecord = build(previous._replace(sequence=previous.sequence - 1), *rest)
            head = wrong.head._replace(sequence=wrong.head.sequence + 1)
            return wrong._replace(previous=previous, head=head)

        return build_again

    patches.set(journal.log, "build_record", make)


def torn_rule_too_lax(patches: Patches) -> None:
    """Whatever is wrong behind a valid record is cut off as torn."""

    def make(judge: Any) -> Any:
        def lax(file: Any, segment: Any, offset: int, head: Head, defect: Any) -> Tail:
            size = len(bytes(file.read(offset, segment.size - offset)).rstrip(b"\0"))
            return Tail(offset, -(-size // 512) * 512, "torn, says the canary")

        return lax

    patches.set(journal.reader, "judge_tail", make)


def torn_rule_too_strict(patches: Patches) -> None:
    """A record that was torn before anybody knew of it counts as damage."""

    def make(judge: Any) -> Any:
        def strict(file: Any, segment: Any, offset: int, head: Head, defect: Any) -> Tail:
            tail: Tail = judge(file, segment, offset, head, defect)
            if tail.torn_size:
                raise JournalDamaged("torn, says the canary", file=segment.name, offset=offset)
            return tail

        return strict

    patches.set(journal.reader, "judge_tail", make)


def torn_end_stays(patches: Patches) -> None:
    """What was torn is not zeroed before records are written over it."""
    patches.set(Journal, "_cut_torn_tail", lambda _: lambda journal: None)


def torn_end_unsynced(patches: Patches) -> None:
    """What was torn is zeroed, and the zeroes are not synced."""

    def make(cut: Any) -> Any:
        def cut_carelessly(journal: Any) -> None:
            storage = journal._storage
            journal._storage = _NoFileSync(storage)
            try:
                cut(journal)
            finally:
                journal._storage = storage

        return cut_carelessly

    patches.set(Journal, "_cut_torn_tail", make)


class _NoFileSync:
    """A storage that does not sync the files that were there."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def open(self, name: str, *, is_writable: bool = False) -> Any:
        file: Any = self._storage.open(name, is_writable=is_writable)
        file.sync_data = lambda: None
        return file


def kept_marker(patches: Patches) -> None:
    """The marker of a clean stop stays when the journal is started."""

    def make(remove: Any) -> Any:
        def remove_others(storage: Any, name: str) -> None:
            if name != "clean-stop":
                remove(storage, name)

        return remove_others

    patches.set(AttachedStorage, "remove", make)


def start_without_sync(patches: Patches) -> None:
    """What an earlier process has left in the cache is trusted as it is read."""
    patches.set(WatchedFile, "settle", lambda _: lambda file: None)


# The venue.


def double_replay(patches: Patches) -> None:
    """A start does the last command of a client once more."""
    last: list[tuple[Any, ...]] = []

    def make_replay(replay: Any) -> Any:
        def replay_and_note(engine: Any, record: Any) -> bytes:
            offset, payload = 0, record.payload
            while offset < len(payload):
                head = COMMAND_HEAD.unpack_from(payload, offset)
                if head[1] == FROM_CLIENT:
                    content = bytes(payload[offset + COMMAND_HEAD.size : offset + head[0]])
                    last[:] = [(FROM_CLIENT, head[4], head[5], head[6], content)]
                offset += head[0]
            events: bytes = replay(engine, record)
            return events

        return replay_and_note

    def make_start(start: Any) -> Any:
        def start_again(venue: Any, done: Any) -> None:
            for command in last:
                venue.sequencer.submit(*command)
            start(venue, done)

        return start_again

    patches.set(exchange.node.recovery, "replay_record", make_replay)
    patches.set(Venue, "start", make_start)


def _at_close_of_batch(patches: Patches, action: Callable[[Any, Batch], None]) -> None:
    """Do something with each batch when it is closed, before it is written."""
    venues: dict[int, Any] = {}

    def make_init(init: Any) -> Any:
        def with_memory(venue: Any, *arguments: Any) -> None:
            init(venue, *arguments)
            venues.clear()
            venues[id(venue.engine)] = venue

        return with_memory

    def make_take(take: Any) -> Any:
        def take_and_act(engine: Any) -> Batch:
            batch: Batch = take(engine)
            if id(engine) in venues:
                action(venues[id(engine)], batch)
            return batch

        return take_and_act

    patches.set(Venue, "__init__", make_init)
    patches.set(Engine, "take_batch", make_take)


def packets_before_sync(patches: Patches) -> None:
    """Market data leaves when a batch is closed."""
    _at_close_of_batch(patches, lambda venue, batch: venue.publisher.publish(batch.events))


def events_before_sync(patches: Patches) -> None:
    """The event log gets a batch when it is closed."""

    def append(venue: Any, batch: Batch) -> None:
        first_sequence, count, _, events, events_crc = batch
        venue.event_log.append(first_sequence, count, RULES_VERSION, events, events_crc)

    def make_append(append_once: Any) -> Any:
        def append_new(log: Any, first_sequence: int, *rest: Any) -> None:
            if first_sequence > log.position.sequence:
                append_once(log, first_sequence, *rest)

        return append_new

    patches.set(EventLog, "append", make_append)
    _at_close_of_batch(patches, append)


def resume_skips_a_report(patches: Patches) -> None:
    """A log-on that wants its stream from a number gets it from the next."""

    def make(find: Any) -> Any:
        def find_late(entry: Any, session: int, wanted: int, head: int) -> int:
            start: int = find(entry, session, wanted, head)
            return start + 1 if start < head else start

        return find_late

    patches.set(OrderEntry, "find_start", make)


def position_too_far(patches: Patches) -> None:
    """Readers are told of what is applied, not of what is durable."""

    def make(position: Any) -> Any:
        def too_far(venue: Any) -> Position:
            found: Position = position(venue)
            return found._replace(sequence=venue.engine.sequence)

        return too_far

    patches.set(Venue, "_position", make)


def event_log_forgets(patches: Patches) -> None:
    """Now and then the events of a batch are not written, and the log goes on behind them."""

    def make(append: Any) -> Any:
        def append_most(log: Any, first_sequence: int, *rest: Any) -> None:
            file = log._file
            if first_sequence % 40 or file is None:
                append(log, first_sequence, *rest)
                return
            log._file = _NoWrite(file)
            append(log, first_sequence, *rest)
            if isinstance(log._file, _NoWrite):
                log._file = file

        return append_most

    patches.set(EventLog, "append", make)


class _NoWrite:
    """A file that forgets what is written."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, offset: int, content: bytes) -> None:
        """Left out."""


def deadlines_pass(patches: Patches) -> None:
    """No timer is set for deadlines: nothing expires, no grace ends."""
    patches.set(Sequencer, "_arm", lambda _: lambda sequencer: None)


def silent_clients_stay(patches: Patches) -> None:
    """Nobody looks whether a client has been silent for too long."""
    patches.set(Connection, "_arm", lambda _: lambda connection: None)


def aside_without_sync(patches: Patches) -> None:
    """What a start mends in the event log gets its name before it is synced."""

    def make(finish: Any) -> Any:
        def finish_carelessly(segment: Any) -> None:
            if segment._aside is not None:
                segment._aside.sync = lambda: None
            finish(segment)

        return finish_carelessly

    patches.set(journal.events._CheckedSegment, "finish", make)


CANARIES: Final[dict[str, Bug]] = {
    bug.__name__: bug
    for bug in (
        *(release_before_sync, ignored_failed_sync, repeated_sync, skipped_directory_sync),
        *(
            dropped_last_record,
            reused_sequence_number,
            double_replay,
            around.snapshot_one_record_late,
        ),
        *(torn_rule_too_strict, torn_end_stays, torn_end_unsynced),
        *(torn_rule_too_lax, unsynced_manifest, kept_marker, start_without_sync),
        *(packets_before_sync, events_before_sync, position_too_far, resume_skips_a_report),
        *(
            event_log_forgets,
            around.client_sends_again,
            around.client_ignores_the_epoch,
            around.feed_skips_a_record,
            around.consumer_forgets,
        ),
        *(deadlines_pass, silent_clients_stay, aside_without_sync, around.mixed_up_answers),
        *(around.no_snapshots, around.no_second_snapshot, around.no_archive),
        *(around.repair_in_the_same_term, around.repair_cuts_a_record_more),
        *(around.old_connection_goes_on, around.told_a_batch_early, around.consumer_is_silent),
    )
}
