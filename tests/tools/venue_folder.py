"""The data folder of a venue, written without one: a small market, small segments, snapshots."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from exchange.core.engine import RULES_VERSION, Engine
from journal import (
    BuiltRecord,
    CommandsState,
    EventLog,
    FolderStorage,
    Journal,
    SnapshotFolder,
    run_inline,
)
from protocol import wire
from protocol.codes import Side
from protocol.order_entry import NewOrder
from protocol.records import FROM_CLIENT
from tests.journal.snapshot_life import make_head
from tests.tools.test_journal_tools import COMMANDS, START_NS

SEGMENT_SIZE = 3072
EVENTS_SEGMENT_SIZE = 4096
BATCH_SIZE = 3
ORDER_COUNT = 61
SNAPSHOTS_AT = (45, 60)
"""The first batch that ends at or behind these sequences has a snapshot."""


class VenueFolder:
    """`folder`/data with commands/, events/ and snapshots/ of a venue that was stopped."""

    def __init__(self, folder: Path, snapshots_at: tuple[int, ...] = SNAPSHOTS_AT) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.commands, self.events = self.data / "commands", self.data / "events"
        self.snapshots = self.data / "snapshots"
        self.engine = Engine()
        self.digests: dict[int, str] = {}
        self.due = [*snapshots_at]
        self.data.mkdir(parents=True)
        self._write()

    @property
    def segments(self) -> list[Path]:
        return sorted(self.commands.glob("*.segment"))

    def spoil(self, segment: int, offset: int) -> Path:
        """Damage the segment of this number beyond healing."""
        path = next(path for path in self.segments if int(path.name[:20]) == segment)
        content = bytearray(path.read_bytes())
        content[offset : offset + 8] = b"\x55" * 8
        path.write_bytes(content)
        return path

    def _write(self) -> None:
        journal = Journal.open(
            FolderStorage(self.commands), segment_size=SEGMENT_SIZE, prepare=run_inline
        )
        with closing(journal):
            assert not list(journal.records())
            journal.start(1)
            log = EventLog.open(
                FolderStorage(self.events), segment_size=EVENTS_SEGMENT_SIZE, execute=run_inline
            )
            log.start(0)
            for step, (kind, session, number, message) in enumerate(self._script(), start=1):
                now_ns, payload = START_NS + step, wire.encode(message)
                connection = 1 if session else 0
                self.engine.submit(kind, session, connection, number, now_ns, now_ns, payload)
                if step % BATCH_SIZE == 0:
                    self._append(journal, log)
            log.stop()
            journal.stop()

    def _script(self) -> list[tuple[int, int, int, object]]:
        orders = [
            (FROM_CLIENT, 2, 5 + step, NewOrder(100 + step, 1, 1, Side.SELL, 5_600, 100))
            for step in range(ORDER_COUNT)
        ]
        return [*COMMANDS[:-1], *orders]

    def _append(self, journal: Journal, log: EventLog) -> None:
        batch = self.engine.take_batch()
        built = journal.build(batch.commands, batch.command_count, batch.events_crc, RULES_VERSION)
        journal.write(built)
        journal.sync()
        log.append(
            batch.first_sequence,
            batch.command_count,
            RULES_VERSION,
            batch.events,
            batch.events_crc,
        )
        self.digests[self.engine.sequence] = self.engine.digest()
        if self.due and self.engine.sequence >= self.due[0]:
            del self.due[0]
            self._take_snapshot(journal, log, built)

    def _take_snapshot(self, journal: Journal, log: EventLog, built: BuiltRecord) -> None:
        segment, end = journal.position
        offset = end - len(built.content)
        segment_path = next(path for path in self.segments if int(path.name[:20]) == segment)
        count = segment_path.read_bytes()[:offset].count(b"BRIERREC")
        image = self.engine.image()
        head = make_head(
            CommandsState(segment, offset, count, built.previous, built.head),
            log.position,
            FolderStorage(self.events, is_read_only=True),
            EVENTS_SEGMENT_SIZE,
            image,
            self.engine.time_ns,
        )
        SnapshotFolder(FolderStorage(self.snapshots)).write(head, image).publish()
