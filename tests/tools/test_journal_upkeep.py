"""`exchange journal snapshots`, `archive`, `restore`, `repair`: what they say and what they do."""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from exchange import cli
from exchange.feed.service import FEED_FOLDER
from journal import FolderStorage, Journal, run_inline
from journal.manifest import ARCHIVED_NAME, MANIFEST_NAME, TERM_NAME, decode_term
from tests.tools.venue_folder import SEGMENT_SIZE, VenueFolder
from tools.journal_folders import hold

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `exchange journal`: exit code, output, errors."""
    # The test keeps its priority, and the disks of tests may be small.
    monkeypatch.setattr(os, "setpriority", lambda *_: None)

    def command(*arguments: str | Path | int) -> tuple[int, str, str]:
        code = cli.main(["journal", *map(str, arguments)])
        output = capsys.readouterr()
        return code, output.out, output.err

    return command


@pytest.fixture
def venue(tmp_path: Path) -> VenueFolder:
    return VenueFolder(tmp_path / "venue")


def contents(folder: Path) -> dict[Path, bytes]:
    """All files but the locks."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {path: path.read_bytes() for path in paths}


def digest(run: Run, folder: Path) -> dict[str, object]:
    code, output, error = run("digest", folder, "--json")
    assert code == 0, error
    found: dict[str, object] = json.loads(output)
    del found["records"]
    return found


# Snapshots.


def test_snapshots_are_restored_and_compared(run: Run, venue: VenueFolder) -> None:
    code, output, error = run("snapshots", venue.folder)
    assert (code, error) == (0, "")
    lines = output.splitlines()
    assert [line.split()[1] for line in lines] == ["60", "45"]
    assert all(line.endswith("  good  replay: the same") for line in lines)
    _, output, _ = run("snapshots", venue.folder, "--json")
    first = json.loads(output)[0]
    assert (first["digest"], first["good"]) == (venue.digests[60], True)


def test_snapshots_beside_a_running_venue(run: Run, venue: VenueFolder) -> None:
    with closing(FolderStorage(venue.commands)) as storage:
        storage.lock()
        code, output, _ = run("snapshots", venue.folder)
    assert code == 0
    assert output.count("  good  replay: not compared, the venue has the journal\n") == 2


def test_bad_snapshots(run: Run, venue: VenueFolder) -> None:
    newest, older = sorted(venue.snapshots.glob("*.snapshot"), reverse=True)
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    older.write_bytes(older.read_bytes()[:-1])
    code, output, _ = run("snapshots", venue.folder)
    assert code == 66
    lines = output.splitlines()
    assert "image is not the one that was written" in lines[0]
    assert lines[1].startswith(f"{older.name}: cannot be used: ")
    assert lines[2].startswith("a start passes over what is bad")
    _, output, _ = run("snapshots", venue.folder, "--json")
    assert [one["good"] for one in json.loads(output)] == [False, False]


def test_a_snapshot_of_another_state(run: Run, venue: VenueFolder, tmp_path: Path) -> None:
    shutil.rmtree(venue.events)
    code, output, _ = run("snapshots", venue.folder)
    assert code == 66
    assert output.count("events/ do not reach it  replay: the same") == 2
    shutil.rmtree(venue.snapshots)
    code, _, error = run("snapshots", venue.folder)
    assert (code, "`exchange replica` makes snapshots" in error) == (64, True)


def test_events_that_a_start_reads_behind_a_good_index(
    run: Run, venue: VenueFolder, tmp_path: Path
) -> None:
    segments = sorted(venue.events.glob("*.events"))
    assert len(segments) > 2
    content = bytearray(segments[0].read_bytes())
    content[-1] ^= 1
    segments[0].write_bytes(content)
    code, output, _ = run("snapshots", venue.folder)
    assert code == 66
    assert output.count("events/ before it: journal damaged: ") == 2
    _, output, _ = run("archive", venue.folder, "--to", tmp_path / "archive")
    assert "nothing moved: there are 0 of the 2 good snapshots" in output


# Archive and restore.


def test_archive_and_restore_give_the_same_digest(
    run: Run, venue: VenueFolder, tmp_path: Path
) -> None:
    archive, before = tmp_path / "archive", digest(run, venue.folder)
    names = [path.name for path in venue.segments]
    content = {path.name: path.read_bytes() for path in venue.commands.iterdir()}
    code, output, error = run("archive", venue.folder, "--to", archive)
    assert (code, error) == (0, "")
    moved = [path.name for path in sorted(archive.glob("*.segment"))]
    assert moved == names[: len(moved)]
    assert len(moved) >= 2
    assert output.splitlines()[:2] == ["snapshot 60: good", "snapshot 45: good"]
    assert output.endswith(f"{len(moved)} segments moved to {archive}\n")
    assert digest(run, venue.folder) == before
    assert run("snapshots", venue.folder)[0] == 0
    assert run("archive", venue.folder, "--to", archive)[1].endswith(
        "need every segment that is here\n"
    )
    code, output, _ = run("restore", archive, venue.folder)
    assert code == 0
    assert output.endswith(
        f"the journal is sound to sequence {venue.engine.sequence}; start the venue\n"
    )
    assert {path.name: path.read_bytes() for path in venue.commands.iterdir()} == content
    shutil.rmtree(venue.snapshots)
    assert digest(run, venue.folder) == before


def test_what_was_archived_can_be_read(run: Run, venue: VenueFolder, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    whole = run("dump", venue.folder)[1].splitlines()
    run("archive", venue.folder, "--to", archive)
    found = json.loads(run("verify", venue.folder, "--json")[1])
    kept = json.loads(run("verify", archive, "--json")[1])
    assert found["archived"] == kept["segments"] == kept["sealed"]
    assert found["first_sequence"] == kept["last_sequence"] + 1
    assert (found["last_sequence"], found["events_to"]) == (venue.engine.sequence,) * 2
    lines = run("dump", archive)[1].splitlines()
    assert lines + run("dump", venue.folder)[1].splitlines() == whole
    assert digest(run, archive)["digest"] == venue.digests[kept["last_sequence"]]
    code, output, _ = run("dump", venue.folder, "--events")
    assert code == 0
    assert output.startswith("46 "), "behind the oldest snapshot"


def test_what_is_kept_all_the_same(run: Run, venue: VenueFolder, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    assert run("archive", venue.folder, "--to", archive, "--keep", 1)[0] == 0
    first = len(list(archive.glob("*.segment")))
    assert run("archive", venue.folder, "--to", archive)[0] == 0
    assert len(list(archive.glob("*.segment"))) == first + 1


def test_an_archiving_wants_two_good_snapshots(
    run: Run, venue: VenueFolder, tmp_path: Path
) -> None:
    archive = tmp_path / "archive"
    newest = max(venue.snapshots.glob("*.snapshot"))
    newest.write_bytes(newest.read_bytes()[:-1])
    code, output, _ = run("archive", venue.folder, "--to", archive)
    assert code == 0
    assert output.splitlines()[-1] == (
        "nothing moved: there are 1 of the 2 good snapshots that an archiving needs; see "
        "`exchange journal snapshots`"
    )
    assert run("verify", venue.folder)[0] == 0


def test_an_archiving_beside_a_venue_and_beside_another_tool(
    run: Run, venue: VenueFolder, tmp_path: Path
) -> None:
    archive = tmp_path / "archive"
    with hold(venue.commands):
        assert run("archive", venue.folder, "--to", archive)[0] == 69
        assert run("repair", venue.folder)[0] == 69
    with closing(FolderStorage(venue.commands)) as storage:
        storage.lock()
        code, _, error = run("restore", archive, venue.folder)
        assert code == 64, "there is no archive yet"
        assert run("archive", venue.folder, "--to", archive)[0] == 0
        code, _, error = run("restore", archive, venue.folder)
    assert code == 69
    assert error.endswith("open; stop it first: systemctl stop exchange\n")


def test_folders_that_cannot_be_meant(run: Run, venue: VenueFolder, tmp_path: Path) -> None:
    (venue.folder / "exchange.toml").touch()
    own = (venue.commands, venue.data, venue.folder, tmp_path, venue.folder / "archive")
    for target in own:
        code, _, error = run("archive", venue.folder, "--to", target)
        assert (code, "are to be apart" in error) == (64, True), target
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").touch()
    code, _, error = run("archive", venue.folder, "--to", other)
    assert (code, "file: the folder has other files" in error) == (64, True)
    assert [path.name for path in other.iterdir()] == ["file"]
    code, _, error = run("archive", venue.folder, "--to", tmp_path / "no" / "archive")
    assert (code, "is the archive's disk mounted?" in error) == (64, True)
    archive = tmp_path / "archive"
    run("archive", venue.folder, "--to", archive)
    code, _, error = run("restore", archive, venue.events)
    assert (code, "not the folder of a venue, and not empty" in error) == (64, True)
    code, _, error = run("restore", venue.snapshots, venue.folder)
    assert (code, "this is no archive" in error) == (64, True)
    code, _, error = run("repair", archive)
    assert (code, "this is an archive" in error) == (64, True)
    code, _, error = run("restore", archive, archive)
    assert (code, "the same folder" in error) == (64, True)
    code, _, error = run("restore", venue.commands, archive)
    assert (code, "this is no archive" in error) == (64, True)
    code, _, error = run("restore", archive, shutil.copytree(archive, tmp_path / "copy"))
    assert (code, "this is an archive" in error) == (64, True)
    assert not (archive / "lock").exists()
    code, _, error = run("restore", venue.events, tmp_path / "new")
    assert (code, (tmp_path / "new").exists()) == (64, False)


def test_a_disaster(run: Run, venue: VenueFolder, tmp_path: Path) -> None:
    archive, found = tmp_path / "archive", tmp_path / "found"
    run("archive", venue.folder, "--to", archive)
    last = json.loads(run("verify", archive, "--json")[1])["last_sequence"]
    code, output, _ = run("restore", archive, found)
    assert code == 0
    lines = output.splitlines()
    assert f"the journal ends where the archive does, at sequence {last}: " in lines[-3]
    assert lines[-2] == "the next start begins term 1024, so that clients and consumers notice"
    assert digest(run, found)["digest"] == venue.digests[last]
    # Events that survived prove that more was lost: they are named, and set aside by a repair.
    shutil.copytree(venue.events, found / "data" / "events")
    code, output, _ = run("repair", found)
    assert code == 66
    assert f"then: exchange journal repair {found} --keep-to {last}" in output


def test_root_does_not_work_in_the_folder_of_another(
    run: Run, venue: VenueFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid():
        pytest.skip("root: only root can give a folder away")
    os.chown(venue.commands, 65_534, 65_534)
    monkeypatch.setattr("sys.argv", ["exchange", "journal", "repair", "venue"])
    for arguments in (("repair",), ("archive", "--to", venue.folder / "archive")):
        code, _, error = run(arguments[0], venue.folder, *arguments[1:])
        assert code == 64
        assert "runuser -u nobody -- exchange journal repair venue" in error
    assert not (venue.folder / "archive").exists()


# Repair.


def test_a_sound_journal(run: Run, venue: VenueFolder) -> None:
    before = contents(venue.data)
    expected = f"the journal is sound to sequence {venue.engine.sequence}: nothing to repair\n"
    assert run("repair", venue.folder) == (0, expected, "")
    assert run("repair", venue.folder, "--keep-to", 3)[0] == 0
    assert contents(venue.data) == before


def test_a_repair_says_what_it_would_do_and_does_it(run: Run, venue: VenueFolder) -> None:
    number = len(venue.segments) - 1
    path = venue.spoil(number, 600)
    first = int(path.name[21:41])
    original = {path.name: path.read_bytes() for path in venue.commands.iterdir()}
    assert run("verify", venue.folder)[0] == 66
    code, output, _ = run("repair", venue.folder)
    assert code == 66
    last = venue.engine.sequence
    for line in (
        f"  commands/{path.name} at offset 512, after sequence {first - 1}: "
        "payload checksum differs",
        f"can be kept: sequences 1 to {first - 1}",
        f"lost: sequences {first} to {last}, {last - first + 1} commands that were durable; "
        "clients have answers to them",
        f"  seen to {last} by commands/clean-stop",
        "  of sessions 2",
        "  commands/term: the next start begins term 2",
        f"  commands/{venue.segments[-1].name}: is taken out",
        f"  commands/{path.name}: keeps what it has up to offset 512",
        "nothing was changed",
        f"then: exchange journal repair {venue.folder} --keep-to {first - 1}",
    ):
        assert line in output.splitlines(), line
    assert {path.name: path.read_bytes() for path in venue.commands.iterdir()} == original
    code, _, error = run("repair", venue.folder, "--keep-to", first)
    assert (code, "look again without --keep-to" in error) == (64, True)
    assert not (venue.data / "repair-1").exists()

    code, output, _ = run("repair", venue.folder, "--keep-to", first - 1)
    assert code == 0
    assert output.endswith("next: start the venue\n")
    assert digest(run, venue.folder)["digest"] == venue.digests[first - 1]
    aside = venue.data / "repair-1"
    for name in (path.name, "clean-stop", MANIFEST_NAME):
        assert (aside / f"commands-{name}").read_bytes() == original[name]
    lost = (aside / "lost.txt").read_text().splitlines()
    assert sum("NewOrder" in line for line in lost) == last - first + 1 - 3
    assert sum("OrderAccepted" in line for line in lost) == last - first + 1
    page = (aside / "repair.txt").read_text().splitlines()
    assert page[-1] == "state: done"
    assert f"can be kept: sequences 1 to {first - 1}" in page
    assert (venue.commands / TERM_NAME).read_text().splitlines()[1] == "term 2"
    assert run("repair", venue.folder)[0] == 0


def test_copies_on_another_disk(
    run: Run, venue: VenueFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = venue.spoil(len(venue.segments) - 1, 600)
    keep_to = int(path.name[21:41]) - 1
    monkeypatch.setattr(FolderStorage, "free_size", lambda storage: 1000)
    code, _, error = run("repair", venue.folder, "--keep-to", keep_to)
    assert (code, "name a folder on another disk: --copies-to DIR" in error) == (74, True)
    assert not (venue.data / "repair-1").exists()
    monkeypatch.undo()
    monkeypatch.setattr(os, "setpriority", lambda *_: None)
    code, _, error = run("repair", venue.folder, "--keep-to", keep_to, "--copies-to", tmp_path)
    assert (code, "not empty" in error) == (64, True)
    other = tmp_path / "copies"
    assert run("repair", venue.folder, "--keep-to", keep_to, "--copies-to", other)[0] == 0
    assert (other / "repair.txt").read_text().endswith("state: done\n")
    assert not (venue.data / "repair-1").exists()


def test_repair_as_json(run: Run, venue: VenueFolder) -> None:
    path = venue.spoil(len(venue.segments) - 1, 600)
    code, output, _ = run("repair", venue.folder, "--json")
    found = json.loads(output)
    assert code == 66
    assert found["keep_to"] == int(path.name[21:41]) - 1
    assert (found["sound"], found["lossy"], found["sessions"]) == (False, True, [2])
    assert found["findings"][0]["text"] == "payload checksum differs"
    assert json.loads(run("repair", VenueFolder(venue.folder / "b").folder, "--json")[1])["sound"]


def test_damage_that_only_the_history_has(run: Run, venue: VenueFolder) -> None:
    venue.spoil(1, 600)
    code, output, _ = run("repair", venue.folder)
    assert code == 0
    assert "payload checksum differs; the snapshot of sequence 60 is behind it" in output
    shutil.rmtree(venue.snapshots)
    code, output, _ = run("repair", venue.folder)
    assert code == 66
    assert "no repair is possible: not a single record can be kept\n" in output
    assert f"next: exchange journal restore ARCHIVE {venue.folder}" in output
    code, _, error = run("repair", venue.folder, "--keep-to", 0)
    assert (code, "no repair is possible" in error) == (64, True)


def test_restore_replaces_a_damaged_segment(run: Run, venue: VenueFolder, tmp_path: Path) -> None:
    archive, before = tmp_path / "archive", digest(run, venue.folder)
    run("archive", venue.folder, "--to", archive)
    run("restore", archive, venue.folder)
    path = venue.spoil(2, 900)
    shutil.rmtree(venue.snapshots)
    assert run("digest", venue.folder)[0] == 66
    code, output, _ = run("restore", archive, venue.folder)
    assert code == 0
    assert "segment 2: it was damaged, and is kept as replaced-" in output
    assert path.exists()
    assert digest(run, venue.folder) == before


def test_a_running_replica_stops_a_repair(run: Run, venue: VenueFolder) -> None:
    with closing(FolderStorage(venue.snapshots)) as storage:
        storage.lock()
        code, _, error = run("repair", venue.folder)
    assert code == 69
    assert error.endswith("stop it first: systemctl stop exchange-replica\n")


def test_an_archived_journal_without_snapshots(
    run: Run, venue: VenueFolder, tmp_path: Path
) -> None:
    archive = tmp_path / "archive"
    run("archive", venue.folder, "--to", archive)
    shutil.rmtree(venue.snapshots)
    code, output, _ = run("repair", venue.folder)
    assert code == 66
    assert f"next: exchange journal restore ARCHIVE {venue.folder}" in output
    assert run("digest", venue.folder)[0] == 66
    assert run("restore", archive, venue.folder)[0] == 0
    assert not (venue.commands / ARCHIVED_NAME).exists()
    assert run("repair", venue.folder)[0] == 0


@pytest.mark.parametrize("behind", [1, 2])
def test_a_segment_that_nobody_has_behind_what_is_archived(
    run: Run, venue: VenueFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behind: int
) -> None:
    """The operator's way, at every step as it is said: restore, which is cut off and run again,
    then repair, then the start."""
    archive = tmp_path / "archive"
    run("archive", venue.folder, "--to", archive)
    shutil.rmtree(venue.snapshots)
    count, gone = len(list(archive.glob("*.segment"))), venue.segments[behind - 1]
    number, keep_to = int(gone.name[:20]), int(gone.name[21:41]) - 1
    assert number == count + behind < int(venue.segments[-1].name[:20])
    gone.unlink()
    code, output, _ = run("repair", venue.folder)
    assert code == 66
    for line in (
        f"  commands/: segment {number} is missing, and later ones are here",
        f"no repair is possible: segments 1 to {count} are archived, and it needs them",
        f"next: exchange journal restore ARCHIVE {venue.folder}, or a copy of commands/",
    ):
        assert line in output.splitlines(), line

    for failing in ("rename", "remove"):
        with monkeypatch.context() as patch:
            _fail_at(patch, failing, "00000000000000000001-" if failing == "rename" else "archived")
            assert run("restore", archive, venue.folder)[0] == 74
        assert (venue.commands / ARCHIVED_NAME).exists()
    assert int(venue.segments[0].name[:20]) == 1, "all are back, and the file is still there"
    code, output, _ = run("restore", archive, venue.folder)
    assert code == 66
    assert output.splitlines()[0] == f"segment {number}: it is neither here nor in this archive"
    assert output.splitlines()[-1] == (
        f"it is damaged: next, exchange journal repair {venue.folder}"
    )
    assert not (venue.commands / ARCHIVED_NAME).exists()
    code, _, error = run("restore", archive, venue.folder)
    assert (code, f"segments {number} are neither here nor" in error) == (64, True)

    code, output, _ = run("repair", venue.folder)
    assert code == 66
    lines = output.splitlines()
    assert f"can be kept: sequences 1 to {keep_to}" in lines
    assert lines[-1] == f"then: exchange journal repair {venue.folder} --keep-to {keep_to}"
    assert run("repair", venue.folder, "--keep-to", keep_to)[0] == 0
    lost = (venue.data / "repair-1" / "lost.txt").read_text()
    assert f"\n{venue.engine.sequence} " in lost
    assert digest(run, venue.folder)["sequence"] == keep_to
    with closing(FolderStorage(venue.commands)) as storage:
        journal = Journal.open(storage, segment_size=SEGMENT_SIZE, prepare=run_inline)
        with closing(journal):
            assert [*journal.records()][-1].head.sequence == keep_to
            assert journal.minimum_term == 2


def _fail_at(patch: pytest.MonkeyPatch, operation: str, begin: str) -> None:
    """Let an operation of the disk fail at files whose names begin so."""
    original = getattr(FolderStorage, operation)

    def failing(storage: FolderStorage, name: str, *others: str) -> None:
        if name.startswith(begin):
            raise OSError(5, "Input/output error")
        original(storage, name, *others)

    patch.setattr(FolderStorage, operation, failing)


def test_a_running_feed_stops_a_repair(run: Run, venue: VenueFolder) -> None:
    with closing(FolderStorage(venue.data / FEED_FOLDER)) as storage:
        storage.lock()
        code, _, error = run("repair", venue.folder)
    assert code == 69
    assert error.endswith("stop it first: systemctl stop exchange-feed\n")
    assert run("repair", venue.folder)[0] == 0


def test_events_that_verify_refuses_are_taken_out(run: Run, venue: VenueFolder) -> None:
    path = sorted(venue.events.glob("*.events"))[0]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    last = venue.engine.sequence
    assert run("verify", venue.folder)[0] == 66
    code, output, _ = run("repair", venue.folder)
    assert code == 66
    for line in (
        "a venue starts from it, but:",
        f"  events/{path.name}: is not what its index says; once both are taken out, a start makes "
        "them anew",
        f"can be kept: sequences 1 to {last}",
        "lost: nothing",
        f"  events/{path.name}: is taken out",
        f"then: exchange journal repair {venue.folder} --keep-to {last}",
    ):
        assert line in output.splitlines()
    assert path.read_bytes() == content
    assert run("repair", venue.folder, "--json")[1].startswith('{"sound": false')
    code, output, _ = run("repair", venue.folder, "--keep-to", last)
    assert (code, output.splitlines()[-1]) == (0, "next: start the venue")
    copy = venue.data / "repair-1" / f"events-{path.name}"
    assert (path.exists(), copy.read_bytes()) == (False, bytes(content))
    assert run("repair", venue.folder)[0] == 0


def test_a_new_term_for_an_older_copy(run: Run, venue: VenueFolder) -> None:
    for term in (1024, 2048):
        code, output, _ = run("repair", venue.folder, "--new-term")
        assert (code, f"the next start begins term {term}, " in output) == (0, True)
        assert decode_term((venue.commands / TERM_NAME).read_bytes()) == term
    assert run("verify", venue.folder)[0] == 0
    venue.spoil(len(venue.segments) - 1, 600)
    before = contents(venue.data)
    code, _, error = run("repair", venue.folder, "--new-term")
    assert (code, "it is damaged: first exchange journal repair" in error) == (64, True)
    assert contents(venue.data) == before


def test_root_does_not_make_the_folders_of_another(
    run: Run, venue: VenueFolder, tmp_path: Path
) -> None:
    if os.geteuid():
        pytest.skip("root: only root can give a folder away")
    archive, found = tmp_path / "archive", tmp_path / "found"
    run("archive", venue.folder, "--to", archive)
    found.mkdir()
    os.chown(found, 65_534, 65_534)
    for folder in (found, found / "data", found / "data" / "commands"):
        code, _, error = run("restore", archive, folder)
        assert (code, "runuser -u nobody -- " in error) == (64, True)
        assert not list(found.iterdir())
