"""What a measurement says about where it ran."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tools import host
from tools.errors import ToolError, UsageError
from tools.redis_reference import Redis, run_redis, script_path


def test_file_systems_are_named() -> None:
    assert host.file_system(Path("/proc/self")) == "proc"
    assert re.fullmatch(r"[a-z0-9.]+", host.file_system(Path("/")))


def test_temporary_files_are_on_a_disk(tmp_path: Path) -> None:
    assert host.file_system(host.disk_folder(None)) not in host.MEMORY_FILE_SYSTEMS
    assert host.disk_folder(tmp_path) == tmp_path
    with pytest.raises(UsageError, match="no such folder"):
        host.disk_folder(tmp_path / "missing")


def test_the_machine_is_described(tmp_path: Path) -> None:
    found = host.machine(tmp_path)
    assert found["processors"] == len(os.sched_getaffinity(0))
    assert found["folder"] == str(tmp_path)
    assert found["sync_p50_us"] > 0
    assert list(tmp_path.iterdir()) == []


def test_the_commit_is_that_of_the_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "HERE", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    assert host.commit() == "unknown", "there is no repository"
    git = ["git", "-C", str(tmp_path), "-c", "user.name=me", "-c", "user.email=me@example.org"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *arguments], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    assert host.commit() == head.stdout[: host.COMMIT_DIGITS]
    (tmp_path / "new.py").touch()
    assert host.commit() == head.stdout[: host.COMMIT_DIGITS] + "-dirty"
    monkeypatch.setenv("PATH", "")
    assert host.commit() == "unknown", "there is no git"


def test_processors_are_parted_and_given_back() -> None:
    before = os.sched_getaffinity(0)
    with subprocess.Popen(["sleep", "60"]) as other:
        with host.part_processors(other.pid):
            ours, theirs = os.sched_getaffinity(0), os.sched_getaffinity(other.pid)
            if len(before) > 1:
                assert len(ours) == 1
                assert ours | theirs == before
                assert not ours & theirs
        assert os.sched_getaffinity(0) == before
        host.place(other.pid, sorted(before))
        with host.set_apart(other.pid):
            ours, theirs = os.sched_getaffinity(0), os.sched_getaffinity(other.pid)
            if len(before) > 1:
                assert theirs == {max(before)}
                assert ours == before - theirs
        assert os.sched_getaffinity(0) == before
        assert host.processor_s(other.pid) >= 0
        other.kill()


def write_script(folder: Path, content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "redis_reference.sh"
    path.write_text(f"#!/bin/sh\n{content}\n")
    path.chmod(0o755)
    monkeypatch.setenv("BRIER_BENCH", str(folder))


def test_the_row_of_redis_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_script(tmp_path, 'echo "$1,$2,$3.5,0.815,1.111"; test "$REDIS_DIR" = /data', monkeypatch)
    assert run_redis(Path("/data"), 4, 64, 400_000) == Redis(400_000.5, 815.0, 1111.0)


def test_a_failing_redis_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_script(tmp_path, "echo redis-server: not found >&2; exit 127", monkeypatch)
    with pytest.raises(ToolError, match=r"^redis_reference.sh failed: redis-server: not found$"):
        run_redis(tmp_path, 1, 1, 1)
    monkeypatch.setenv("BRIER_BENCH", str(tmp_path / "missing"))
    with pytest.raises(UsageError, match="set BRIER_BENCH"):
        script_path()
