"""`exchange journal repair`: says what is wrong with a journal and what is lost, and, when it is
told to, makes it one that a venue can start from.

What can be kept and what is done for it is decided in `journal.damage` and `journal.repair`; here
is what an operator reads, and the list of what is lost, which goes beside the copies.
"""

import argparse
import json
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Final

import msgspec

from journal import EventReader, FolderStorage, JournalDamaged
from journal.copies import storage_errors
from journal.damage import diagnose, read_remnants
from journal.findings import Cut, Diagnosis, SetAside
from journal.repair import PAGE_NAME, repair
from journal.storage import Storage
from tools.entries import Entry, command_entries, event_entries, format_entry
from tools.errors import UsageError
from tools.journal_folders import (
    VenueFolders,
    commands_folder,
    hold,
    lock_stopped,
    open_folders,
    refuse_root,
)
from tools.journal_snapshots import can_restore

__all__ = ["run_repair"]

LOST_NAME: Final = "lost.txt"
CHUNK_SIZE: Final = 256 * 1024
"""Bytes of the list of what is lost that are written at once."""
PLACES_MAX: Final = 8
"""Findings and proofs of one kind that are shown; a folder may have thousands of segments."""
SESSIONS_MAX: Final = 20
NANOSECONDS: Final = 10**9


@dataclass
class Lost:
    """What can still be read of the commands that cannot be kept."""

    command_count: int = 0
    event_count: int = 0
    sessions: Counter[int] = field(default_factory=Counter)
    """Commands and reports of each that can be read."""
    first_ns: int = 0
    last_ns: int = 0
    defect: str = ""
    """Where reading had to stop."""

    def add(self, entry: Entry) -> None:
        if entry.session:
            self.sessions[entry.session] += 1
        self.first_ns = min(self.first_ns or entry.time_ns, entry.time_ns)
        self.last_ns = max(self.last_ns, entry.time_ns)


def run_repair(arguments: argparse.Namespace) -> int:
    """Say what is wrong; repair it, when the number is given that was said."""
    folders = VenueFolders(commands_folder(arguments.directory))
    refuse_root(folders.commands)
    with ExitStack() as held:
        commands = held.enter_context(closing(FolderStorage(folders.commands)))
        held.enter_context(hold(folders.commands))
        lock_stopped(commands, "exchange")
        if folders.snapshots.is_dir():
            snapshots = held.enter_context(closing(FolderStorage(folders.snapshots)))
            lock_stopped(snapshots, "exchange-replica")
        opened = open_folders(folders, commands)
        found = diagnose(opened, can_restore)
        if found.is_sound:
            return _say_sound(found, arguments)
        lost = Lost()
        for _ in _lost_lines(commands, folders, found, lost):
            pass
        if arguments.keep_to is None:
            return _say_damaged(found, lost, arguments)
        if found.obstacle:
            raise UsageError(f"no repair is possible: {found.obstacle}")
        if arguments.keep_to != found.head.sequence:
            raise UsageError(
                f"--keep-to {arguments.keep_to}: what can be kept ends with sequence "
                f"{found.head.sequence}; look again without --keep-to"
            )
        aside = _new_folder(folders.commands.parent)
        page = "\n".join([_now(), *_story(found, lost), ""])
        print(f"copies go to {aside}")
        papers = {LOST_NAME: _chunks(_lost_lines(commands, folders, found, Lost()))}
        repair(opened, found, FolderStorage(aside), papers, page, _say)
    _say_repaired(found, aside)
    return 0


def _say_sound(found: Diagnosis, arguments: argparse.Namespace) -> int:
    if arguments.json:
        print(json.dumps(_as_json(found, Lost())))
    else:
        print(f"the journal is sound to sequence {found.head.sequence}: nothing to repair")
        for note in found.notes:
            print(f"  {note.place}: {note.text}")
    return 0


def _say_damaged(found: Diagnosis, lost: Lost, arguments: argparse.Namespace) -> int:
    """What was found, what would be done, and the command for it."""
    if arguments.json:
        print(json.dumps(_as_json(found, lost)))
        return JournalDamaged.exit_code
    for line in _story(found, lost):
        print(line)
    print("nothing was changed")
    where = arguments.directory
    if found.obstacle:
        print(f"no repair is possible: {found.obstacle}")
        print(f"next: exchange journal restore ARCHIVE {where}, or a copy of commands/")
        return JournalDamaged.exit_code
    if found.is_lossy:
        print("first: a copy of commands/ that is whole loses less, and so does an archive:")
        print(f"  exchange journal restore ARCHIVE {where} (replaces damaged segments that it has)")
    print(f"then: exchange journal repair {where} --keep-to {found.head.sequence}")
    return JournalDamaged.exit_code


def _say_repaired(found: Diagnosis, aside: Path) -> None:
    print(f"repaired: the journal ends with sequence {found.head.sequence}")
    if found.is_lossy:
        print(f"lost: see {aside / LOST_NAME}; tell the participants")
    if found.term:
        print(f"the next start begins term {found.term}: consumers and feeds begin anew")
    print(f"everything that was cut or moved is in {aside}, and what was done in {PAGE_NAME}")
    print("next: start the venue")


def _story(found: Diagnosis, lost: Lost) -> Iterator[str]:
    """What is wrong, what is kept, what is lost, what is done: lines for people."""
    yield "damaged:"
    yield from _shortened([f"  {place}: {text}" for place, text in found.findings])
    if found.notes:
        yield "also:"
        yield from _shortened([f"  {place}: {text}" for place, text in found.notes])
    first = found.archived.sequence + 1
    yield f"can be kept: sequences {first} to {found.head.sequence}"
    yield from _lost_story(found, lost)
    yield "a repair does, after copying it all:"
    yield from _shortened([f"  {line}" for line in _plan(found)])


def _lost_story(found: Diagnosis, lost: Lost) -> Iterator[str]:
    head = found.head.sequence
    if not found.is_lossy:
        yield "lost: nothing"
        return
    if not found.proofs:
        yield f"lost: perhaps commands behind {head}; nothing says that there were any"
        return
    count = found.lost_to - head
    yield (
        f"lost: sequences {head + 1} to {found.lost_to}, {count} commands that were durable; "
        "clients have answers to them"
    )
    proofs = sorted(found.proofs, key=lambda proof: -proof.sequence)
    yield from _shortened([f"  seen to {sequence} by {place}" for place, sequence in proofs])
    yield f"  readable: {lost.command_count} of these commands, {lost.event_count} events"
    if lost.last_ns:
        yield f"  from {_moment(lost.first_ns)} to {_moment(lost.last_ns)}"
    if lost.sessions:
        shown = ", ".join(map(str, sorted(lost.sessions)[:SESSIONS_MAX]))
        more = len(lost.sessions) - SESSIONS_MAX
        yield f"  of sessions {shown}" + (f" and {more} more" if more > 0 else "")
    if lost.defect:
        yield f"  reading events/ stopped: {lost.defect}"


def _plan(found: Diagnosis) -> Iterator[str]:
    """What a repair changes, in order."""
    if found.term:
        yield f"commands/term: the next start begins term {found.term}"
    texts = []
    if found.is_manifest_new:
        texts.append("commands/manifest: is made anew")
    if found.is_archived_new:
        texts.append(f"commands/archived: says that 1 to {found.archived.segment} are archived")
    before = [_planned(action) for action in found.segment_actions]
    after = [_planned(action) for action in found.later_actions]
    yield from chain(before, texts, after)


def _planned(action: Cut | SetAside) -> str:
    place = f"{action.folder}/{action.name}"
    if isinstance(action, Cut):
        return f"{place}: keeps what it has up to offset {action.kept_size}"
    return f"{place}: is taken out"


def _lost_lines(
    commands: Storage, folders: VenueFolders, found: Diagnosis, lost: Lost
) -> Iterator[str]:
    """Everything that can be read of what is lost, a line each; `lost` is filled on the way."""
    yield "Commands behind the damage. They were durable; they cannot be replayed."
    with storage_errors("read"):
        for remnant in read_remnants(commands, found):
            try:
                for entry in command_entries(remnant.first_sequence, remnant.payload):
                    lost.command_count += 1
                    lost.add(entry)
                    yield format_entry(entry)
            except (msgspec.DecodeError, ValueError, struct.error) as error:
                yield f"{remnant.first_sequence} cannot be read: {error}"
    yield "Events of lost commands: reports that clients have, market data that consumers have."
    if not folders.events.is_dir():
        return
    reader = EventReader(FolderStorage(folders.events, is_read_only=True))
    try:
        with storage_errors("read"):
            for record in reader.records(found.head.sequence + 1):
                for entry in event_entries(record.events):
                    if entry.sequence > found.head.sequence:
                        lost.event_count += 1
                        lost.add(entry)
                        yield format_entry(entry)
    except (JournalDamaged, msgspec.DecodeError, ValueError, struct.error) as error:
        lost.defect = str(error)
        yield f"reading stopped: {error}"


def _chunks(lines: Iterator[str]) -> Iterator[bytes]:
    """The lines as the content of a file."""
    content = bytearray()
    for line in lines:
        content += line.encode() + b"\n"
        if len(content) >= CHUNK_SIZE:
            yield bytes(content)
            content.clear()
    yield bytes(content)


def _new_folder(data: Path) -> Path:
    number = 1
    while (path := data / f"repair-{number}").exists():
        number += 1
    return path


def _shortened(lines: list[str]) -> Iterator[str]:
    yield from lines[:PLACES_MAX]
    if len(lines) > PLACES_MAX:
        yield f"  and {len(lines) - PLACES_MAX} more (--json has them all)"


def _moment(time_ns: int) -> str:
    return f"{datetime.fromtimestamp(time_ns // NANOSECONDS, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _now() -> str:
    return f"exchange journal repair, {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"


def _as_json(found: Diagnosis, lost: Lost) -> dict[str, object]:
    return {
        "sound": found.is_sound,
        "findings": [finding._asdict() for finding in found.findings],
        "notes": [note._asdict() for note in found.notes],
        "keep_to": found.head.sequence,
        "lossy": found.is_lossy,
        "lost_to": found.lost_to,
        "proofs": [proof._asdict() for proof in found.proofs],
        "readable_commands": lost.command_count,
        "readable_events": lost.event_count,
        "sessions": sorted(lost.sessions),
        "plan": list(_plan(found)),
        "term": found.term,
        "obstacle": found.obstacle,
    }


def _say(line: str) -> None:
    print(line, flush=True)
