"""`exchange journal`: check a journal, show it, replay it. Reads only; a running venue holds it.

`verify` knows bytes, also those of the log of events beside the journal; `dump` and `events` know
messages; `digest` runs every command through the engine of this build and compares the events'
checksum of every record with what the venue wrote at the time.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from exchange.core.engine import RULES_VERSION, Engine
from journal import EventReader, FolderStorage, JournalReader, Record, check_events, read_only
from journal import verify as verify_journal
from journal.manifest import MANIFEST_NAME
from journal.segment import SEGMENT_SUFFIX
from tools.entries import Entry, command_entries, event_entries, format_entry, json_entry
from tools.errors import ReplayDiffersError, UsageError

__all__ = ["Replayed", "add_commands", "commands_folder", "replay_journal"]

COMMANDS_NAME: Final = "commands"
EVENTS_NAME: Final = "events"
DATA_NAME: Final = "data"


@dataclass(frozen=True)
class Replayed:
    """The state at the end of a journal."""

    sequence: int
    record_count: int
    digest: str
    book_digest: str


def commands_folder(directory: Path) -> Path:
    """The folder with the segments: `directory` itself or below it. Raises UsageError."""
    for path in (directory, directory / COMMANDS_NAME, directory / DATA_NAME / COMMANDS_NAME):
        if (path / MANIFEST_NAME).is_file() or any(path.glob(f"*{SEGMENT_SUFFIX}")):
            return path
    if not directory.exists():
        raise UsageError(f"{directory}: no such folder")
    raise UsageError(f"{directory}: no journal here (a folder of `exchange init` has one)")


@contextmanager
def open_journal(directory: Path) -> Iterator[FolderStorage]:
    """The journal's folder, locked against a venue that would write to it."""
    path = commands_folder(directory)
    try:
        with closing(FolderStorage(path, is_read_only=True)) as storage:
            storage.lock()
            yield storage
    except PermissionError as error:
        raise UsageError(f"{path}: {error.strerror}") from None


def replay_record(engine: Engine, record: Record) -> bytes:
    """Apply a record and return its events. Raises ReplayDiffersError."""
    first, last = record.first_sequence, record.first_sequence + record.command_count - 1
    where = f"record with sequences {first} to {last}"
    if record.rules_version != RULES_VERSION:
        raise ReplayDiffersError(
            f"{where}: written under rules version {record.rules_version}, "
            f"this build has {RULES_VERSION}"
        )
    try:
        events, crc = engine.replay(first, record.command_count, record.payload)
    except AssertionError as error:
        raise ReplayDiffersError(
            f"{where}: assertion at sequence {engine.sequence + 1}: {error}"
        ) from error
    if crc != record.events_crc:
        raise ReplayDiffersError(
            f"{where}: events have checksum {crc:08x}, the journal says {record.events_crc:08x}"
        )
    return events


def replay_journal(directory: Path) -> Replayed:
    """Run the whole journal through a fresh engine. Raises JournalError, ReplayDiffersError."""
    with open_journal(directory) as storage:
        engine = Engine()
        reader = read_only(storage)
        for record in reader.records():
            replay_record(engine, record)
        return Replayed(engine.sequence, reader.record_count, engine.digest(), engine.book_digest())


def run_verify(arguments: argparse.Namespace) -> int:
    """Check every byte and say what is there."""
    folder = commands_folder(arguments.directory).parent / EVENTS_NAME
    with open_journal(arguments.directory) as storage:
        summary = verify_journal(storage)
        is_there = folder.is_dir()
        events = FolderStorage(folder, is_read_only=True) if is_there else None
        events_sequence = check_events(storage, events) if events else 0
    pairs: dict[str, int | str | bool] = {
        "segments": summary.segment_count,
        "sealed": summary.sealed_count,
        "records": summary.record_count,
        "commands": summary.command_count,
        "first_sequence": summary.first_sequence,
        "last_sequence": summary.last_sequence,
        "record_bytes": summary.record_bytes,
        "head_hash": summary.head_hash.hex(),
        "clean_stop": summary.has_marker,
        "end": summary.end,
        "events_to": events_sequence,
    }
    _print_pairs("journal valid", pairs, is_json=arguments.json)
    return 0


def run_digest(arguments: argparse.Namespace) -> int:
    """Replay and print the digests."""
    replayed = replay_journal(arguments.directory)
    pairs: dict[str, int | str | bool] = {
        "sequence": replayed.sequence,
        "records": replayed.record_count,
        "digest": replayed.digest,
        "book_digest": replayed.book_digest,
    }
    _print_pairs("journal replayed", pairs, is_json=arguments.json)
    return 0


def run_dump(arguments: argparse.Namespace) -> int:
    """Print one line for each command, and for each event if wanted."""
    show = json_entry if arguments.json else format_entry
    with open_journal(arguments.directory) as storage:
        reader = read_only(storage)
        for entry in _entries(reader, arguments.first, arguments.last, arguments.events):
            print(show(entry))
    return 0


def _entries(
    reader: JournalReader, first: int, last: int | None, has_events: bool
) -> Iterator[Entry]:
    """The wanted entries, each command followed by its events."""
    engine = Engine() if has_events else None
    for record in reader.records():
        if last is not None and record.first_sequence > last:
            return
        events = replay_record(engine, record) if engine else b""
        if record.first_sequence + record.command_count <= first:
            continue
        by_sequence: dict[int, list[Entry]] = {}
        for event in event_entries(events):
            by_sequence.setdefault(event.sequence, []).append(event)
        for command in command_entries(record.first_sequence, record.payload):
            if command.sequence < first or (last is not None and command.sequence > last):
                continue
            yield command
            yield from by_sequence.get(command.sequence, ())


def run_events(arguments: argparse.Namespace) -> int:
    """Print one line for each event of the log, or of one of its streams."""
    show = json_entry if arguments.json else format_entry
    folder = commands_folder(arguments.directory).parent / EVENTS_NAME
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; the venue makes it when it starts")
    with open_journal(arguments.directory):
        reader = EventReader(FolderStorage(folder, is_read_only=True))
        for events in _chosen_events(reader, arguments):
            for entry in event_entries(events):
                print(show(entry))
    return 0


def _chosen_events(reader: EventReader, arguments: argparse.Namespace) -> Iterator[bytes]:
    """Runs of events: of a session or channel from a number on, or all from a sequence on."""
    if arguments.session is not None:
        for entry in reader.session(arguments.session, arguments.first):
            yield entry.encode()
    elif arguments.channel is not None:
        for entry in reader.channel(arguments.channel, arguments.first):
            yield entry.encode()
    else:
        for record in reader.records(arguments.first):
            yield record.events


def _print_pairs(title: str, pairs: dict[str, int | str | bool], *, is_json: bool) -> None:
    if is_json:
        print(json.dumps(pairs))
        return
    print(title)
    for key, value in pairs.items():
        shown = ("yes" if value else "no") if isinstance(value, bool) else value
        print(f"  {key.replace('_', ' '):15} {shown}")


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Mount `journal` with its four commands."""
    journal = commands.add_parser(
        "journal", help="check, show or replay a journal", description=__doc__
    )
    actions = journal.add_subparsers(metavar="ACTION", required=True)

    def add(
        name: str, run: Callable[[argparse.Namespace], int], text: str
    ) -> argparse.ArgumentParser:
        parser = actions.add_parser(name, help=text, description=text)
        parser.add_argument(
            "directory", metavar="DIR", type=Path, help="folder of `exchange init`, or its data"
        )
        parser.add_argument("--json", action="store_true", help="JSON instead of text")
        parser.set_defaults(run=run)
        return parser

    add("verify", run_verify, "check every record, the chain and the end of a journal")
    add("digest", run_digest, "replay a journal and print the digests of the final state")
    dump = add("dump", run_dump, "print one line for each command, and each event with --events")
    events = add("events", run_events, "print one line for each event of the log beside a journal")
    stream = events.add_mutually_exclusive_group()
    stream.add_argument("--session", type=int, metavar="ID", help="only the reports of a session")
    stream.add_argument(
        "--channel", type=int, metavar="N", help="only the market data of a channel"
    )
    events.add_argument(
        "--from",
        dest="first",
        type=int,
        default=1,
        metavar="NUMBER",
        help="from this sequence on; with --session or --channel from this number of it",
    )
    dump.add_argument("--events", action="store_true", help="replay, and show events too")
    dump.add_argument("--from", dest="first", type=int, default=1, metavar="SEQUENCE")
    dump.add_argument("--to", dest="last", type=int, default=None, metavar="SEQUENCE")
