"""`exchange journal repair`: says what is wrong with a journal and what is lost, and, when it is
told to, makes it one that a venue can start from.

What can be kept and what is done for it is decided in `journal.damage` and `journal.repair`; here
is what an operator reads, and the list of what is lost, which goes beside the copies.
"""

import argparse
import json
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Final

import msgspec

from journal import EventReader, EventRecord, FolderStorage, JournalDamaged, JournalFailed
from journal.archive import check_room
from journal.copies import storage_errors
from journal.damage import diagnose, read_remnants
from journal.findings import Cut, Diagnosis, Folders, SetAside
from journal.repair import PAGE_NAME, begin_new_term, copies_size, repair
from journal.storage import Storage
from protocol.records import COMMAND_HEAD, EVENT_HEAD
from tools.entries import command_entries, event_entries, format_entry
from tools.errors import NoRoomError, UsageError
from tools.journal_folders import (
    VenueFolders,
    commands_folder,
    folder_errors,
    hold,
    lock_stopped,
    open_folders,
    refuse_root,
)
from tools.journal_snapshots import can_restore, moment

__all__ = ["LOST_NAME", "lost_chunks", "run_repair"]

LOST_NAME: Final = "lost.txt"
CHUNK_SIZE: Final = 256 * 1024
"""Bytes of the list of what is lost that are written at once."""
PLACES_MAX: Final = 8
"""Findings and proofs of one kind that are shown; a folder may have thousands of segments."""
SESSIONS_MAX: Final = 20
LINE_SIZE: Final = 200
"""Bytes of a line of that list, about."""
LINES_BETWEEN_WORDS: Final = 500_000
"""About 20 seconds."""


@dataclass
class Lost:
    """What can still be read of the commands that cannot be kept."""

    command_count: int = 0
    event_count: int = 0
    sessions: set[int] = field(default_factory=set)
    first_ns: int = 0
    last_ns: int = 0
    defect: str = ""
    """Where reading had to stop."""

    def add(self, session: int, time_ns: int) -> None:
        if session:
            self.sessions.add(session)
        self.first_ns = min(self.first_ns or time_ns, time_ns)
        self.last_ns = max(self.last_ns, time_ns)

    @property
    def list_size(self) -> int:
        """About how many bytes the list of it has."""
        return (self.command_count + self.event_count) * LINE_SIZE


def run_repair(arguments: argparse.Namespace) -> int:
    """Say what is wrong; repair it, when the number is given that was said."""
    folders = VenueFolders(commands_folder(arguments.directory))
    refuse_root(folders.commands)
    with folder_errors(), ExitStack() as held:
        commands = held.enter_context(closing(FolderStorage(folders.commands)))
        held.enter_context(hold(folders.commands))
        lock_stopped(commands, "exchange")
        for path, service in (
            (folders.snapshots, "exchange-replica"),
            (folders.feed, "exchange-feed"),
        ):
            if path.is_dir():
                lock_stopped(held.enter_context(closing(FolderStorage(path))), service)
        opened = open_folders(folders, commands)
        found = diagnose(opened, can_restore)
        if arguments.new_term:
            return _begin_new_term(commands, found, arguments)
        if found.is_whole:
            return _say_sound(found, arguments)
        lost = _count_lost(opened, found)
        if arguments.keep_to is None:
            return _say_damaged(found, lost, arguments)
        if found.obstacle:
            raise UsageError(f"no repair is possible: {found.obstacle}")
        if arguments.keep_to != found.head.sequence:
            raise UsageError(
                f"--keep-to {arguments.keep_to}: what can be kept ends with sequence "
                f"{found.head.sequence}; look again without --keep-to"
            )
        aside = _find_room(folders, opened, found, lost, arguments.copies_to)
        page = "\n".join([_now(), *_story(found, lost), ""])
        print(f"copies go to {aside}")
        papers = {LOST_NAME: lost_chunks(opened, found)}
        repair(opened, found, FolderStorage(aside), papers, page, _say)
    _say_repaired(found, aside)
    return 0


def _begin_new_term(commands: Storage, found: Diagnosis, arguments: argparse.Namespace) -> int:
    """What an older copy of a journal needs. Raises UsageError for a damaged one."""
    if not found.is_sound:
        where = arguments.directory
        raise UsageError(f"it is damaged: first exchange journal repair {where}, then this again")
    term = begin_new_term(commands, found)
    print(f"the journal ends with sequence {found.head.sequence}: what came after it is lost")
    print(f"the next start begins term {term}, so that clients and consumers notice")
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
    if found.is_lossy or found.is_archived_new:
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
    if found.findings:
        yield "damaged:"
        yield from _shortened([f"  {place}: {text}" for place, text in found.findings])
    if found.notes:
        yield "also:" if found.findings else "a venue starts from it, but:"
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
        yield f"  from {moment(lost.first_ns)} to {moment(lost.last_ns)}"
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
    after = [_planned(action) for action in (*found.later_actions, *found.event_actions)]
    yield from chain(before, texts, after)


def _planned(action: Cut | SetAside) -> str:
    place = f"{action.folder}/{action.name}"
    if isinstance(action, Cut):
        return f"{place}: keeps what it has up to offset {action.kept_size}"
    return f"{place}: is taken out"


def _count_lost(folders: Folders, found: Diagnosis) -> Lost:
    """How much can be read of what is lost, by the heads of its entries alone."""
    lost = Lost()
    with storage_errors("read"):
        for remnant in read_remnants(folders.commands, found):
            for session, time_ns in _heads(COMMAND_HEAD, remnant.payload):
                lost.command_count += 1
                lost.add(session, time_ns)
    try:
        for record in _lost_events(folders, found):
            for session, time_ns in _heads(EVENT_HEAD, record.events):
                lost.event_count += 1
                lost.add(session, time_ns)
    except JournalDamaged as error:
        lost.defect = str(error)
    return lost


def _heads(head: struct.Struct, entries: bytes) -> Iterator[tuple[int, int]]:
    """Session and time of each entry; both kinds have them at the same places."""
    offset = 0
    while len(entries) - offset >= head.size:
        size, _, _, _, session, _, _, _, time_ns = head.unpack_from(entries, offset)
        yield session, time_ns
        offset += max(size, head.size)


def _lost_events(folders: Folders, found: Diagnosis) -> Iterator[EventRecord]:
    """Records of events/ behind what is kept. Raises JournalDamaged where one cannot be read."""
    if folders.events is not None:
        reader = EventReader(folders.events)
        with storage_errors("read"):
            for record in reader.records(found.head.sequence + 1):
                if record.header.first_sequence > found.head.sequence:
                    yield record


def _lost_lines(folders: Folders, found: Diagnosis) -> Iterator[str]:
    """Everything that can be read of what is lost, a line each."""
    yield "Commands behind the damage. They were durable; they cannot be replayed."
    with storage_errors("read"):
        for remnant in read_remnants(folders.commands, found):
            try:
                yield from map(
                    format_entry, command_entries(remnant.first_sequence, remnant.payload)
                )
            except (msgspec.DecodeError, ValueError, struct.error) as error:
                yield f"{remnant.first_sequence} cannot be read: {error}"
    yield "Events of lost commands: reports that clients have, market data that consumers have."
    try:
        for record in _lost_events(folders, found):
            yield from map(format_entry, event_entries(record.events))
    except (JournalDamaged, msgspec.DecodeError, ValueError, struct.error) as error:
        yield f"reading stopped: {error}"


def lost_chunks(folders: Folders, found: Diagnosis) -> Iterator[bytes]:
    """The list of what is lost, as the content of a file; says from time to time that it goes
    on."""
    content = bytearray()
    for count, line in enumerate(_lost_lines(folders, found), start=1):
        if count % LINES_BETWEEN_WORDS == 0:
            _say(f"{LOST_NAME}: {count} lines")
        content += line.encode() + b"\n"
        if len(content) >= CHUNK_SIZE:
            yield bytes(content)
            content.clear()
    yield bytes(content)


def _find_room(
    folders: VenueFolders, opened: Folders, found: Diagnosis, lost: Lost, wanted: Path | None
) -> Path:
    """The folder for the copies, not made yet. Raises UsageError, JournalFailed when its disk has
    no room for them."""
    data = folders.commands.parent
    number = 1
    while (data / f"repair-{number}").exists():
        number += 1
    aside = wanted or data / f"repair-{number}"
    if aside.exists() and any(aside.iterdir()):
        raise UsageError(f"{aside}: not empty; the copies want a folder of their own")
    if not aside.parent.is_dir():
        raise UsageError(f"{aside.parent}: no such folder")
    needed = copies_size(opened, found) + lost.list_size
    try:
        check_room(FolderStorage(aside.parent, is_read_only=True), needed, "what will be cut")
    except JournalFailed as error:
        text = f"{error}; name a folder on another disk: --copies-to DIR"
        raise NoRoomError(text) from None
    return aside


def _shortened(lines: list[str]) -> Iterator[str]:
    yield from lines[:PLACES_MAX]
    if len(lines) > PLACES_MAX:
        yield f"  and {len(lines) - PLACES_MAX} more (--json has them all)"


def _now() -> str:
    return f"exchange journal repair, {moment(time.time_ns())}"


def _as_json(found: Diagnosis, lost: Lost) -> dict[str, object]:
    return {
        "sound": found.is_whole,
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
