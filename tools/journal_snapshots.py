"""`exchange journal snapshots`, and where a replay of a journal begins.

A journal whose first segments were archived is replayed from its oldest good snapshot. Listing and
restoring work beside a running venue; a replay wants it stopped.
"""

import argparse
import json
import os
from collections import deque
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Final

from exchange.core.engine import Engine
from exchange.core.replay import ReplayError, RestoreError, replay_record, restore_engine
from journal import (
    EventPosition,
    EventReader,
    FolderStorage,
    JournalDamaged,
    JournalError,
    JournalHeld,
    JournalReader,
    SnapshotDamaged,
    SnapshotFolder,
    SnapshotHead,
    events_reach,
    read_only,
)
from journal.copies import storage_errors
from journal.manifest import ARCHIVED_NAME
from journal.reader import survey
from journal.record import HASH_SIZE, HEADER_SIZE, RecordError, read_header
from journal.segment import SEGMENT_SUFFIX, parse_name
from journal.storage import Storage
from tools.errors import UsageError
from tools.journal_folders import VenueFolders, commands_folder, open_journal

__all__ = ["NICENESS", "begin_replay", "can_restore", "check_snapshot", "moment", "run_snapshots"]

NICENESS: Final = 10
"""Beside a venue: restoring a snapshot takes a processor for a moment."""
NOT_COMPARED: Final = "not compared, the venue has the journal"
NANOSECONDS: Final = 10**9
EVENTS_READ_SIZE: Final = 64 * 1024 * 1024
"""Bytes of events/ before a snapshot that are read: more than a start reads."""


@dataclass
class Checked:
    """A snapshot, and what is wrong with it; nothing when it is good."""

    head: SnapshotHead
    defect: str
    engine: Engine | None
    replay: str = ""
    """What a replay of the journal says."""


def check_snapshot(folders: VenueFolders, snapshots: SnapshotFolder, head: SnapshotHead) -> Checked:
    """Read it, restore it, and see whether journal and events go on from it."""
    try:
        engine = restore_engine(head, snapshots.read(head))
    except (SnapshotDamaged, RestoreError) as error:
        return Checked(head, str(error), None)
    events = FolderStorage(folders.events, is_read_only=True)
    if not folders.events.is_dir() or not events_reach(events, head):
        return Checked(head, "events/ do not reach it", engine)
    defect = _find_events_defect(events, head)
    if defect:
        return Checked(head, defect, engine)
    commands = FolderStorage(folders.commands, is_read_only=True)
    with storage_errors("read"):
        defect = _find_record_defect(commands, head)
    return Checked(head, defect, engine)


def _find_events_defect(events: Storage, head: SnapshotHead) -> str:
    """Why the last events before a snapshot cannot be read, which a start does for the sessions'
    reports; nothing if they can."""
    reader = EventReader(
        events, EventPosition(head.sequence, head.events_segment, head.events_offset)
    )
    try:
        with storage_errors("read"):
            firsts = reader.segments()
            count = -(-EVENTS_READ_SIZE // head.events_segment_size) + 1
            deque(reader.records(firsts[-count:][0]), maxlen=0)
    except JournalDamaged as error:
        return f"events/ before it: {error}"
    return ""


def _find_record_defect(commands: Storage, head: SnapshotHead) -> str:
    """Why a start could not go on from a snapshot in this journal; nothing if it could."""
    names = {
        parse_name(name)[0]: name for name in commands.names() if name.endswith(SEGMENT_SUFFIX)
    }
    name = names.get(head.commands_segment)
    if name is None:
        return f"segment {head.commands_segment} of the journal, where it ends, is not here"
    with closing(commands.open(name)) as file:
        content = file.read(head.record_offset, HEADER_SIZE)
        try:
            size = read_header(content).record_size
        except RecordError:
            return "its record is not in the journal"
        record = file.read(head.record_offset, size)
    if blake2b(record, digest_size=HASH_SIZE).digest() != head.record_hash:
        return "its record is not in the journal"
    return ""


def can_restore(head: SnapshotHead, image: bytes) -> bool:
    """Whether this build makes an engine of an image."""
    try:
        restore_engine(head, image)
    except RestoreError:
        return False
    return True


def run_snapshots(arguments: argparse.Namespace) -> int:
    """List the snapshots, restore each, and compare it with a replay."""
    folders = VenueFolders(commands_folder(arguments.directory))
    if not folders.snapshots.is_dir():
        raise UsageError(f"{folders.snapshots}: no such folder; `exchange replica` makes snapshots")
    os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
    snapshots = SnapshotFolder(FolderStorage(folders.snapshots, is_read_only=True))
    with storage_errors("read"):
        heads = snapshots.heads()
    checked = [check_snapshot(folders, snapshots, head) for head in heads]
    _compare_with_replay(folders, checked)
    is_good = not snapshots.bad and not any(one.defect for one in checked)
    if arguments.json:
        bad = [{"file": name, "good": False, "defect": why} for name, why in snapshots.bad]
        print(json.dumps([*map(_as_json, checked), *bad]))
    else:
        _print_snapshots(checked, snapshots.bad)
    return 0 if is_good else SnapshotDamaged.exit_code


def _print_snapshots(checked: list[Checked], bad: list[tuple[str, str]]) -> None:
    for one in checked:
        print(_as_text(one))
    for name, why in bad:
        print(f"{name}: cannot be used: {why}")
    if not checked:
        print("no snapshot that can be used; `exchange replica` makes them")
    if bad or any(one.defect for one in checked):
        print("a start passes over what is bad; the replica removes it when it has newer ones")


def _compare_with_replay(folders: VenueFolders, checked: list[Checked]) -> None:
    """Replay the journal, or what is left of it behind the oldest good snapshot."""
    try:
        with open_journal(folders.commands) as storage:
            _replay(storage, checked)
    except JournalHeld:
        for one in checked:
            one.replay = NOT_COMPARED


def _replay(commands: Storage, checked: list[Checked]) -> None:
    by_sequence = {one.head.sequence: one for one in checked}
    good = [one for one in checked if not one.defect]
    try:
        engine, reader = _begin(commands, good[-1] if good else None)
        if engine.sequence in by_sequence:
            by_sequence[engine.sequence].replay = "begins with it, what is before is archived"
        for record in reader.records():
            replay_record(engine, record)
            one = by_sequence.get(engine.sequence)
            if one is None:
                continue
            is_same = bytes.fromhex(engine.digest()) == one.head.image_hash
            one.replay = "the same" if is_same else "another state"
            if not is_same:
                one.defect = one.defect or "a replay has another state"
    except (JournalError, ReplayError) as error:
        for one in checked:
            one.replay = one.replay or f"stopped before it: {error}"


def begin_replay(folders: VenueFolders, commands: Storage) -> tuple[Engine, JournalReader]:
    """An engine, and the records that follow: all of them, or, where segments were archived, those
    behind the oldest good snapshot. Raises JournalDamaged when there is none."""
    oldest = None
    if folders.snapshots.is_dir():
        snapshots = SnapshotFolder(FolderStorage(folders.snapshots, is_read_only=True))
        with storage_errors("read"):
            is_archived = ARCHIVED_NAME in commands.names()
            heads = snapshots.heads() if is_archived else []
        every = (check_snapshot(folders, snapshots, head) for head in reversed(heads))
        oldest = next((one for one in every if not one.defect), None)
    return _begin(commands, oldest)


def _begin(commands: Storage, oldest: Checked | None) -> tuple[Engine, JournalReader]:
    with storage_errors("read"):
        folder = survey(commands)
    if not folder.archived.segment or folder.is_archive:
        return Engine(), read_only(commands)
    if oldest is None:
        raise JournalDamaged(
            f"segments 1 to {folder.archived.segment} are archived and no snapshot is good: "
            "`exchange journal restore` brings them back",
            file=ARCHIVED_NAME,
        )
    assert oldest.engine is not None, "a good one was restored"
    return oldest.engine, read_only(commands, start=oldest.head)


def moment(time_ns: int) -> str:
    """In UTC, to the second."""
    return f"{datetime.fromtimestamp(time_ns // NANOSECONDS, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _as_text(one: Checked) -> str:
    head = one.head
    return (
        f"sequence {head.sequence}  {moment(head.time_ns)}  {head.image_size} bytes  "
        f"segment {head.commands_segment}  {one.defect or 'good'}  replay: {one.replay}"
    )


def _as_json(one: Checked) -> dict[str, int | str | bool]:
    head = one.head
    return {
        "sequence": head.sequence,
        "time_ns": head.time_ns,
        "rules_version": head.rules_version,
        "term": head.term,
        "image_size": head.image_size,
        "digest": head.image_hash.hex(),
        "commands_segment": head.commands_segment,
        "good": not one.defect,
        "defect": one.defect,
        "replay": one.replay,
    }
