"""`exchange journal`: check a journal, show it, replay it, keep it small, repair it.

`verify` knows bytes, also those of the log of events beside the journal; `dump` and `events` know
messages; `digest` runs every command through the engine of this build and compares the events'
checksum of every record with what the venue wrote at the time. These only read, and want the venue
stopped. `snapshots`, `archive`, `restore` and `repair` are in modules of their own.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from exchange.core.engine import Engine
from exchange.core.replay import replay_record
from journal import EventReader, FolderStorage, JournalReader, check_events, read_only
from journal import verify as verify_journal
from journal.copies import storage_errors
from journal.findings import EVENTS
from journal.reader import survey
from tools.entries import Entry, command_entries, event_entries, format_entry, json_entry
from tools.errors import UsageError
from tools.journal_folders import VenueFolders, commands_folder, open_journal
from tools.journal_repair import run_repair
from tools.journal_snapshots import begin_replay, run_snapshots
from tools.journal_upkeep import run_archive, run_restore

__all__ = ["Replayed", "add_commands", "replay_journal"]


ARCHIVE: Final = (
    "move the sealed segments that no start needs to an archive, also of a running venue"
)
RESTORE: Final = "bring archived segments back, or make the journal anew from its archive"
NEW_TERM: Final = "of a sound journal that is an older copy: make the market data's epoch another"
REPAIR: Final = "say what is wrong with a journal and what is lost, and with --keep-to repair it"


@dataclass(frozen=True)
class Replayed:
    """The state at the end of a journal."""

    sequence: int
    record_count: int
    """Of the records that were replayed."""
    digest: str
    book_digest: str


def replay_journal(directory: Path) -> Replayed:
    """Run the journal through an engine, from its beginning or, where that was archived, from the
    oldest good snapshot. Raises JournalError, ReplayError.
    """
    with open_journal(directory) as storage:
        engine, reader = begin_replay(VenueFolders(commands_folder(directory)), storage)
        for record in reader.records():
            replay_record(engine, record)
        return Replayed(engine.sequence, reader.record_count, engine.digest(), engine.book_digest())


def run_verify(arguments: argparse.Namespace) -> int:
    """Check every byte and say what is there."""
    folder = commands_folder(arguments.directory).parent / EVENTS
    with open_journal(arguments.directory) as storage:
        summary = verify_journal(storage, is_partial=True)
        with storage_errors("read"):
            found = survey(storage)
        # What lies beside an archive is not of it.
        is_there = folder.is_dir() and not found.is_archive
        events = FolderStorage(folder, is_read_only=True) if is_there else None
        events_sequence = check_events(storage, events, is_partial=True) if events else 0
    pairs: dict[str, int | str | bool] = {
        "segments": summary.segment_count,
        "archived": 0 if found.is_archive else found.archived.segment,
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
        engine, reader = None, read_only(storage, is_partial=True)
        if arguments.events:
            folders = VenueFolders(commands_folder(arguments.directory))
            engine, reader = begin_replay(folders, storage)
        for entry in _entries(reader, engine, arguments.first, arguments.last):
            print(show(entry))
    return 0


def _entries(
    reader: JournalReader, engine: Engine | None, first: int, last: int | None
) -> Iterator[Entry]:
    """The wanted entries, each command followed by its events where there is an engine."""
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
    folder = commands_folder(arguments.directory).parent / EVENTS
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
    """Mount `journal` with its commands."""
    journal = commands.add_parser(
        "journal", help="check, show, archive or repair a journal", description=__doc__
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
    add("snapshots", run_snapshots, "list the snapshots, restore each, compare it with a replay")
    archive = add("archive", run_archive, ARCHIVE)
    archive.add_argument("--to", type=Path, required=True, metavar="ARCHIVE", help="a folder")
    archive.add_argument(
        "--keep", type=_count, default=0, metavar="N", help="segments to keep all the same"
    )
    _add_restore(actions)
    mend = add("repair", run_repair, REPAIR)
    how = mend.add_mutually_exclusive_group()
    how.add_argument(
        "--keep-to", type=int, default=None, metavar="SEQUENCE", help="do it; the number it said"
    )
    how.add_argument("--new-term", action="store_true", help=NEW_TERM)
    mend.add_argument(
        "--copies-to", type=Path, default=None, metavar="DIR", help="instead of data/repair-<n>"
    )


def _add_restore(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    restore = actions.add_parser("restore", help=RESTORE, description=RESTORE)
    restore.add_argument("archive", metavar="ARCHIVE", type=Path, help="folder of `archive`")
    restore.add_argument(
        "directory",
        metavar="DIR",
        type=Path,
        help="folder of a venue that is stopped, or a new one",
    )
    restore.set_defaults(run=run_restore)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a count")
    return int(text)
