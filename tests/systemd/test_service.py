"""The unit file: systemd takes it, it is closed to what the venue does not need, and what a start
does not mend is not started again.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from exchange.node.failure import Exit
from exchange.node.limits import CONNECTIONS_MAX, DESCRIPTORS_RESERVED, DRAIN_WAIT_S, REFUSALS_MAX
from tests.source_tree import SOURCE

UNIT: Final = SOURCE / "systemd/exchange.service"

PROGRAM: Final = "/opt/brier/bin/exchange"

EXPOSURE_MAX: Final = 15
"""Tenths of what `systemd-analyze security` counts: 1.2 as written, and room for another version
of it."""


def settings() -> dict[str, list[str]]:
    """Values of each key, in order."""
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text().splitlines():
        key, is_setting, value = line.partition("=")
        if is_setting and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def analyze(tmp_path: Path, *command: str) -> "subprocess.CompletedProcess[str]":
    """Run systemd-analyze on the unit with a program that exists."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    unit = tmp_path / "exchange.service"
    unit.write_text(UNIT.read_text().replace(PROGRAM, sys.executable))
    return subprocess.run(
        ["systemd-analyze", *command, str(unit)], capture_output=True, text=True, check=False
    )


def test_systemd_takes_it(tmp_path: Path) -> None:
    done = analyze(tmp_path, "verify")
    about_us = [line for line in done.stderr.splitlines() if "exchange.service" in line]
    assert about_us == []
    assert done.returncode == 0, done.stderr


def test_it_is_closed(tmp_path: Path) -> None:
    command = ("security", "--offline=true", f"--threshold={EXPOSURE_MAX}")
    done = analyze(tmp_path, *command)
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_runs_the_command() -> None:
    (start,) = settings()["ExecStart"]
    assert start.split()[:3] == [PROGRAM, "serve", "--config"]
    (state,) = settings()["StateDirectory"]
    assert start.split()[3].startswith(f"/var/lib/{state}/")


def test_what_a_start_does_not_mend_is_not_started_again() -> None:
    (codes,) = settings()["RestartPreventExitStatus"]
    prevented = {int(code) for code in codes.split()}
    assert prevented == {*Exit} - {Exit.STOPPED, Exit.ASSERTION}
    assert settings()["Restart"] == ["on-failure"]
    # An assertion that comes back, on a deadline for example, is not started for ever either.
    (burst,), (interval,) = settings()["StartLimitBurst"], settings()["StartLimitIntervalSec"]
    assert int(burst) * 60 <= int(interval), "far fewer starts than seconds"


def test_limits_are_those_of_the_node() -> None:
    (files,) = settings()["LimitNOFILE"]
    assert int(files) >= CONNECTIONS_MAX + REFUSALS_MAX + DESCRIPTORS_RESERVED
    (seconds,) = settings()["TimeoutStopSec"]
    assert int(seconds) > 2 * DRAIN_WAIT_S


def test_the_watchdog_is_asked_for_only_when_the_node_pings() -> None:
    sources = [path.read_text() for path in (SOURCE / "exchange/node").glob("*.py")]
    pings = any(re.search(r"WATCHDOG=1", source) for source in sources)
    assert ("WatchdogSec" in settings()) is pings
