"""What the fixed history makes, as hashes: of a live run, of its replay, of restored snapshots.

The live run keeps a journal, an event log and four snapshots in memory. The journal is then read
back and replayed from its first record, and from each snapshot. Whatever way an engine has taken,
what it made of each part of the history must have the same hash. Run as a program, it prints all
values as the lines of `tests/vectors/determinism.json`.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final

from exchange.core.engine import RULES_VERSION, Batch, Engine
from exchange.core.replay import replay_record
from journal import (
    CommandsPosition,
    CommandsState,
    EventLog,
    Head,
    Journal,
    Record,
    read_only,
    run_inline,
)
from journal.memory import MemoryStorage
from journal.snapshot import SnapshotFolder
from tests.determinism.workload import play
from tests.journal.snapshot_life import make_head

__all__ = ["Run", "Trace", "replayed", "restored", "run", "values"]

SEGMENT_SIZE: Final = 1024 * 1024
"""The smallest: the history has several."""
EVENT_SEGMENT_SIZE: Final = 1024 * 1024
BEGINNING: Final = CommandsPosition(0, 0)

SNAPSHOT_BATCHES: Final = (300, 900, 1_500)
"""After how many batches a snapshot is made; another one is that of the end."""


class Trace:
    """Hash of all events since the last snapshot, and of the image, at each snapshot."""

    def __init__(self) -> None:
        self.parts: list[tuple[int, str, str]] = []
        self._hash = blake2b(digest_size=32)

    def add(self, events: bytes) -> None:
        self._hash.update(events)

    def end_part(self, engine: Engine) -> None:
        engine.check()
        self.parts.append((engine.sequence, self._hash.hexdigest(), engine.digest()))
        self._hash = blake2b(digest_size=32)


@dataclass
class Run:
    """What a live run leaves behind."""

    trace: Trace = field(default_factory=Trace)
    commands: MemoryStorage = field(default_factory=MemoryStorage)
    events: MemoryStorage = field(default_factory=MemoryStorage)
    snapshots: MemoryStorage = field(default_factory=MemoryStorage)
    end: CommandsPosition = BEGINNING


class _Keeper:
    """Journal, event log and snapshots of a live run, and what the head of a snapshot needs."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._folder = SnapshotFolder(run.snapshots)
        self._journal = Journal.open(run.commands, segment_size=SEGMENT_SIZE, prepare=run_inline)
        assert not list(self._journal.records())
        self._journal.start(1)
        self._event_log = EventLog.open(
            run.events, segment_size=EVENT_SEGMENT_SIZE, execute=run_inline
        )
        self._event_log.start(0)
        self._previous: Head | None = None
        self._record_offset = 0
        self._segment = 0
        self._record_count = 0  # of the segment, before the last one

    def add(self, batch: Batch) -> None:
        journal = self._journal
        self._previous = journal.head
        record = journal.build(batch.commands, batch.command_count, batch.events_crc, RULES_VERSION)
        journal.write(record)
        journal.sync()
        segment, end = journal.position
        is_first = segment != self._segment
        self._segment = segment
        self._record_count = 0 if is_first else self._record_count + 1
        self._record_offset = end - len(record.content)
        self._event_log.append(
            batch.first_sequence,
            batch.command_count,
            RULES_VERSION,
            batch.events,
            batch.events_crc,
        )

    def snapshot(self, engine: Engine) -> None:
        image = engine.image()
        previous = self._previous
        assert previous is not None, "there is a record"
        head = make_head(
            CommandsState(
                self._segment,
                self._record_offset,
                self._record_count,
                previous,
                self._journal.head,
            ),
            self._event_log.position,
            self._run.events,
            EVENT_SEGMENT_SIZE,
            image,
            engine.time_ns,
        )
        self._folder.write(head, image).publish()

    def close(self) -> None:
        self._run.end = self._journal.position
        self._event_log.stop()
        self._journal.stop()


def run() -> Run:
    """The live run."""
    made = Run()
    keeper = _Keeper(made)
    batch_count = 0
    points = list(SNAPSHOT_BATCHES)
    for engine, batches in play():
        for batch in batches:
            made.trace.add(batch.events)
            keeper.add(batch)
            batch_count += 1
        if points and batch_count >= points[0]:
            points.pop(0)
            made.trace.end_part(engine)
            keeper.snapshot(engine)
    assert not points, f"{batch_count} batches are too few"
    made.trace.end_part(engine)
    keeper.snapshot(engine)
    keeper.close()
    return made


def records(made: Run) -> Iterator[Record]:
    """Every record of the journal."""
    yield from read_only(made.commands).records()


def replayed(made: Run) -> Trace:
    """The whole journal, by another engine."""
    return _go_on(Engine(), records(made), made.trace.parts)


def restored(made: Run, index: int) -> Trace:
    """What follows the snapshot with this index, by an engine that is restored from it."""
    folder = SnapshotFolder(made.snapshots)
    head = folder.heads()[::-1][index]
    engine = Engine.restore(folder.read(head))
    rest = (record for record in records(made) if record.first_sequence > head.sequence)
    return _go_on(engine, rest, made.trace.parts[index + 1 :])


def _go_on(engine: Engine, rest: Iterable[Record], parts: list[tuple[int, str, str]]) -> Trace:
    trace = Trace()
    ends = [sequence for sequence, _, _ in parts]
    for record in rest:
        trace.add(replay_record(engine, record))
        if engine.sequence in ends:
            trace.end_part(engine)
    return trace


def values(made: Run) -> dict[str, Any]:
    """The golden values of a live run."""
    commands = blake2b(digest_size=32)
    for record in records(made):
        commands.update(record.payload)
    return {
        "rules_version": RULES_VERSION,
        "commands": commands.hexdigest(),
        "parts": [
            {"sequence": sequence, "events": events, "image": image}
            for sequence, events, image in made.trace.parts
        ],
        "files": {
            f"{folder}/{name}": blake2b(content, digest_size=32).hexdigest()
            for folder in ("commands", "events", "snapshots")
            for name, content in sorted(getattr(made, folder).images().items())
        },
    }


def main() -> None:
    made = run()
    for trace in (replayed(made), *(restored(made, index) for index in range(4))):
        count = len(trace.parts)
        assert trace.parts == made.trace.parts[len(made.trace.parts) - count :], "another history"
    print(json.dumps(values(made), indent=1))


if __name__ == "__main__":
    main()
