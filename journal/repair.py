"""Makes a damaged journal one that a venue can start from, and keeps whatever it takes out.

What a repair does was found by `damage.diagnose`. Everything that will be cut or moved is first
copied to a folder of its own, durably and read back, with a page that says what is done. Then the
least term is written, so that it holds whatever comes; then the segments, the manifest, and last
those files that have seen more than is kept: as long as one of them is there no venue starts, so a
repair that was cut off anywhere is simply done again. FORMAT.md, section 13.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from typing import Final

from journal.archive import TERM_STEP, check_room
from journal.copies import (
    OperationRefused,
    Report,
    copy_durably,
    replace_durably,
    storage_errors,
)
from journal.damage import diagnose
from journal.findings import (
    COMMANDS,
    Cut,
    Diagnosis,
    Folders,
    MendedFile,
    SetAside,
    sealed_line,
)
from journal.manifest import (
    ARCHIVED_NAME,
    MANIFEST_NAME,
    TERM_NAME,
    decode_term,
    encode_archived,
    encode_manifest,
    encode_term,
    read_text,
)
from journal.segment import BLOCK_SIZE, hash_file, zeros
from journal.storage import Storage

PAGE_NAME: Final = "repair.txt"


def repair(
    folders: Folders,
    found: Diagnosis,
    aside: Storage,
    papers: Mapping[str, Iterable[bytes]],
    page: str,
    report: Report,
) -> None:
    """Do what `found` says. Nobody may have the folders open; `aside` is an empty folder.

    `papers` are further files for it, by name; `page` says what was found, to which what was done
    is added. Raises OperationRefused, JournalFailed; may be run again, with a new diagnosis and a
    new folder.
    """
    if found.obstacle:
        raise OperationRefused(found.obstacle)
    assert not found.is_whole, "there is something to repair"
    story = [page]
    with storage_errors("repair"):
        story.extend(_copy_all(folders, found, aside))
        for name, chunks in papers.items():
            replace_durably(aside, name, chunks)
        replace_durably(aside, PAGE_NAME, ["".join(story).encode(), b"state: begun\n"])
        report("everything that will be cut or moved is copied")
        for line in _change_all(folders, found):
            story.append(f"did: {line}\n")
            report(line)
        replace_durably(aside, PAGE_NAME, ["".join(story).encode(), b"state: done\n"])
    left = diagnose(folders)
    assert left.is_whole, f"the journal is whole after a repair: {left.findings}"


def begin_new_term(commands: Storage, found: Diagnosis) -> int:
    """Make the next start of a sound journal begin another term, and with it another epoch; which.

    For an older copy of a journal: what it lacks was given out before, and only a person knows.
    It is a multiple of a step that no repair reaches, and a higher one with every call. Raises
    JournalFailed.
    """
    assert found.is_sound, "whether durable records are lost is known otherwise"
    with storage_errors("begin a new term"):
        is_noted = TERM_NAME in commands.names()
        noted = decode_term(read_text(commands, TERM_NAME)) if is_noted else 0
        term = (max(found.head.term, noted) // TERM_STEP + 1) * TERM_STEP
        replace_durably(commands, TERM_NAME, [encode_term(term)])
    return term


def copies_size(folders: Folders, found: Diagnosis) -> int:
    """Bytes of everything that will be changed. Raises JournalFailed."""
    with storage_errors("read"):
        return sum(_wanted(folders, found).values())


def _wanted(folders: Folders, found: Diagnosis) -> dict[tuple[str, str], int]:
    """What is copied, by folder and name, and its bytes."""
    wanted: dict[tuple[str, str], int] = {}
    for action in (*found.segment_actions, *found.later_actions, *found.event_actions):
        wanted[action.folder, action.name] = _size_of(folders.of(action.folder), action.name)
    for name in (MANIFEST_NAME, ARCHIVED_NAME, TERM_NAME):
        if name in folders.commands.names():
            wanted[COMMANDS, name] = _size_of(folders.commands, name)
    return wanted


def _copy_all(folders: Folders, found: Diagnosis, aside: Storage) -> Iterator[str]:
    """Copy what will be changed; a line with the hash of each."""
    wanted = _wanted(folders, found)
    check_room(aside, sum(wanted.values()), "what will be cut or moved")
    cuts = [action.size for action in found.segment_actions if isinstance(action, Cut)]
    check_room(folders.commands, max(cuts, default=0), "what is kept")
    for folder, name in wanted:
        copy = f"{folder}-{name}"
        digest = copy_durably(folders.of(folder), name, aside, copy)
        yield f"copy: {copy} {digest.hex()}\n"


def _size_of(storage: Storage, name: str) -> int:
    with closing(storage.open(name)) as file:
        return file.size()


def _change_all(folders: Folders, found: Diagnosis) -> Iterator[str]:
    """Change what is to be changed, one durable step after another; a line for each."""
    commands = folders.commands
    if found.term:
        replace_durably(commands, TERM_NAME, [encode_term(found.term)])
        yield f"{COMMANDS}/{TERM_NAME}: the next start begins term {found.term}"
    for action in found.segment_actions:
        yield _act(folders, action)
    if found.is_manifest_new:
        count = _write_manifest(commands, found)
        yield f"{COMMANDS}/{MANIFEST_NAME}: made anew, it lists {count} segments"
    if found.is_archived_new:
        replace_durably(commands, ARCHIVED_NAME, [encode_archived(found.archived)])
        yield f"{COMMANDS}/{ARCHIVED_NAME}: made anew, segments 1 to {found.archived.segment}"
    for action in (*found.later_actions, *found.event_actions):
        yield _act(folders, action)


def _act(folders: Folders, action: Cut | SetAside) -> str:
    storage = folders.of(action.folder)
    place = f"{action.folder}/{action.name}"
    if isinstance(action, SetAside):
        storage.remove(action.name)
        storage.sync_folder()
        return f"{place}: taken out"
    with closing(storage.open(action.name)) as file:
        mended = MendedFile(file, action.kept_size, action.patches)
        replace_durably(storage, action.name, _content_of(mended, action))
    healed = f", {len(action.patches)} records healed" if action.patches else ""
    return f"{place}: kept up to offset {action.kept_size}{healed}"


def _content_of(file: MendedFile, cut: Cut) -> Iterator[bytes]:
    yield cut.header
    offset = len(cut.header)
    while offset < cut.kept_size:
        block = file.read(offset, min(BLOCK_SIZE, cut.kept_size - offset))
        assert block, "what is kept is there"
        yield block
        offset += len(block)
    yield from zeros(cut.size - offset)


def _write_manifest(commands: Storage, found: Diagnosis) -> int:
    """List all segments that stay but the last one; how many."""
    first = found.kept[0].segment.number
    lines = [line for line in found.lines if line.number < first]
    for kept in found.kept[:-1]:
        with closing(commands.open(kept.segment.name)) as file:
            lines.append(sealed_line(kept._replace(hash=hash_file(file))))
    replace_durably(commands, MANIFEST_NAME, [encode_manifest(lines)])
    return len(lines)
