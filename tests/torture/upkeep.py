"""`exchange journal archive`, `restore` and `repair` on a disk that fails, or killed, at every call
that changes a file.

Expected: after whatever happened the journal is what it was, or what the tool makes of it; the tool
may be run again and then gets to the end, with the same result as if nothing had happened.
"""

import io
import json
import shutil
import signal
import subprocess
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from exchange import cli
from exchange.core.engine import Engine
from exchange.core.replay import replay_record
from journal import FolderStorage, read_only
from tests.integration.peer import WAIT_S
from tests.torture.beside import make_snapshots
from tests.torture.script import Pattern
from tests.torture.serve import EINTR, EIO, ENOSPC, KILL
from tests.torture.strace import (
    CHANGING,
    Injection,
    Point,
    find_points,
    read_log,
    sample,
    trace_files,
    trace_injection,
)
from tools.journal_tools import replay_journal
from tools.venue_process import EXCHANGE, child_environment

__all__ = ["TOOLS", "Kept", "find_tool_points", "make_kept", "run_tool", "tool_faults"]

KEPT_SEGMENTS: Final = 4
"""Of the seven: two are moved."""
DAMAGED_AT: Final = 0.5
"""Of the last segment's used bytes."""
FULL_DISK_CALLS: Final = ("pwrite64", "fdatasync", "openat")
INTERRUPTED_CALLS: Final = ("rename", "unlink")
NEW_SUFFIXES: Final = (".tmp", ".aside", "/archive", "repair-1")
"""Of what the tools make; everything else is only opened to be read."""

EXIT_DAMAGED: Final = 66
EXIT_STORAGE_FAILED: Final = 74

TOOLS: Final = ("archive", "restore", "repair")


@dataclass(frozen=True, slots=True)
class Kept:
    """Folders to begin with, each with a venue, and what the journal is worth."""

    folder: Path
    whole_digest: str
    repaired_digest: str

    def begin(self, tool: str, run: Path) -> None:
        shutil.copytree(self.folder / tool, run, dirs_exist_ok=True)


def make_kept(pattern: Pattern, folder: Path) -> Kept:
    """From a venue that was stopped: with snapshots; the same archived; the same damaged."""
    venue = folder / "archive" / "venue"
    shutil.copytree(pattern.folder, venue)
    make_snapshots(pattern, venue)
    whole_digest = digest(venue)
    assert whole_digest == replay_journal(venue).digest
    shutil.copytree(folder / "archive", folder / "restore")
    assert _call_here(arguments("archive", folder / "restore")).returncode == 0
    shutil.copytree(folder / "archive", folder / "repair")
    _damage(folder / "repair" / "venue")
    shutil.copytree(folder / "repair", folder / "repaired")
    assert _call_here(arguments("repair", folder / "repaired")).returncode == 0
    return Kept(folder, whole_digest, digest(folder / "repaired" / "venue"))


def _damage(venue: Path) -> None:
    """Flip a bit in the middle of the last segment, behind which there are good records."""
    commands = venue / "data" / "commands"
    last = sorted(commands.glob("*.segment"))[-1]
    content = bytearray(last.read_bytes())
    used = len(content.rstrip(b"\0"))
    content[int(used * DAMAGED_AT)] ^= 1
    last.write_bytes(content)


def digest(venue: Path) -> str:
    """Of the whole journal, replayed from its first record."""
    engine = Engine()
    commands = FolderStorage(venue / "data" / "commands", is_read_only=True)
    for record in read_only(commands).records():
        replay_record(engine, record)
    return engine.digest()


def arguments(tool: str, run: Path) -> list[str]:
    """Of the command line; for a repair they say what it would keep now."""
    venue, archive = str(run / "venue"), str(run / "archive")
    if tool == "archive":
        return ["archive", venue, "--to", archive, "--keep", str(KEPT_SEGMENTS)]
    if tool == "restore":
        return ["restore", archive, venue]
    found = diagnose(run)
    return ["repair", venue] + ([] if found is None else ["--keep-to", str(found["keep_to"])])


def diagnose(run: Path) -> dict[str, Any] | None:
    """What a repair says before it is told to; None: there is nothing to repair."""
    said = _call_here(["repair", str(run / "venue"), "--json"])
    assert said.returncode in (0, EXIT_DAMAGED), said.stdout + said.stderr
    found: dict[str, Any] = json.loads(said.stdout)
    return found if said.returncode else None


class Said(NamedTuple):
    """What a command has said, and its exit code."""

    returncode: int
    stdout: str
    stderr: str = ""


def _call_here(words: list[str]) -> Said:
    """The same command in this process, which is quicker; but `archive` lowers its priority."""
    if words[0] == "archive":
        done = _call(words)
        return Said(done.returncode, done.stdout, done.stderr)
    stdout, stderr = io.StringIO(), io.StringIO()
    with redirect_stdout(stdout), redirect_stderr(stderr):
        code = cli.main(["journal", *words])
    return Said(code, stdout.getvalue(), stderr.getvalue())


def _call(words: list[str], tracer: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*tracer, *EXCHANGE, "journal", *words],
        env=child_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_S,
    )


def find_tool_points(kept: Kept, tool: str, run: Path) -> list[Point]:
    """Every call that the tool makes to files of the venue and the archive, if all goes well."""
    kept.begin(tool, run)
    words = arguments(tool, run)
    done = _call(words, trace_files(run / "strace.log"))
    assert done.returncode == 0, done.stdout + done.stderr
    found = find_points(run / "strace.log", run)
    _check_end(kept, tool, run)
    return [point for point in found if point.call in CHANGING]


def tool_faults(points: list[Point]) -> list[Injection]:
    """Every fault at every point, but for most of the same kind."""
    chosen = []
    for point in sample(points):
        if point.call == "openat" and not point.path.endswith(NEW_SUFFIXES):
            continue
        chosen += [Injection(point, EIO), Injection(point, KILL)]
        if point.call in FULL_DISK_CALLS:
            chosen.append(Injection(point, ENOSPC))
        if point.nth == 1 and point.call in INTERRUPTED_CALLS:
            chosen.append(Injection(point, EINTR))
    return chosen


def run_tool(kept: Kept, tool: str, run: Path, injection: Injection) -> str:
    """One run; in a word how it ended."""
    kept.begin(tool, run)
    log = run / "strace.log"
    done = _call(arguments(tool, run), trace_injection(log, run, injection))
    code = done.returncode
    is_hit = any(call.is_injected for call in read_log(log)) or code == -signal.SIGKILL
    allowed = {0}
    if is_hit:
        allowed = {-signal.SIGKILL} if injection.fault == KILL else {EXIT_STORAGE_FAILED}
        allowed |= {0} if injection.fault == EINTR else set()
    assert code in allowed, f"exit code {code}, {allowed} allowed: {done.stdout}{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    if tool != "repair":
        assert replay_journal(run / "venue").digest == kept.whole_digest, "after the failure"
    again = _call_here(arguments(tool, run))
    assert again.returncode == 0, again.stdout + again.stderr
    _check_end(kept, tool, run)
    return f"exit code {code}" if is_hit else "not reached"


def _check_end(kept: Kept, tool: str, run: Path) -> None:
    """The tool has got to its end: the result is what it always is."""
    if tool == "archive":
        assert replay_journal(run / "venue").digest == kept.whole_digest, "archived"
        assert _call_here(arguments("restore", run)).returncode == 0
    if tool == "repair":
        assert diagnose(run) is None, "repaired"
        assert digest(run / "venue") == kept.repaired_digest
    else:
        assert digest(run / "venue") == kept.whole_digest, "the archive gives everything back"
