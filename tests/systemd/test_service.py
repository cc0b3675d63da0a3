"""The unit files: systemd takes them, they are closed to what the services do not need, and what a
start does not mend is not started again.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from exchange.feed import limits as feed_limits
from exchange.node import limits as node_limits
from exchange.node.failure import Exit
from tests.source_tree import SOURCE


class Unit(NamedTuple):
    """A unit file, and what it has to fit."""

    name: str
    command: str
    package: str
    files: int
    drain_s: float
    mended: set[Exit]
    """Exit codes after which a start may help."""

    @property
    def path(self) -> Path:
        return SOURCE / "systemd" / self.name


NODE: Final = Unit(
    "exchange.service",
    "serve",
    "exchange/node",
    node_limits.CONNECTIONS_MAX + node_limits.REFUSALS_MAX + node_limits.DESCRIPTORS_RESERVED,
    node_limits.DRAIN_WAIT_S,
    {Exit.ASSERTION},
)
FEED: Final = Unit(
    "exchange-feed.service",
    "feed",
    "exchange/feed",
    feed_limits.CONNECTIONS_MAX + feed_limits.REFUSALS_MAX + feed_limits.DESCRIPTORS_RESERVED,
    feed_limits.DRAIN_WAIT_S,
    {Exit.ASSERTION, Exit.JOURNAL_DAMAGED, Exit.STORAGE_FAILED},
)
REPLICA: Final = Unit(
    "exchange-replica.service",
    "replica",
    "exchange/replica",
    64,  # No client connects: a file or two of the venue, a socket, scrapers, the loop's own.
    0,
    {Exit.ASSERTION, Exit.JOURNAL_DAMAGED, Exit.STORAGE_FAILED},
)
each_unit: Final = pytest.mark.parametrize(
    "unit", [NODE, FEED, REPLICA], ids=lambda unit: unit.name
)

PROGRAM: Final = "/opt/brier/bin/exchange"

EXPOSURE_MAX: Final = 15
"""Tenths of what `systemd-analyze security` counts: 1.2 as written, and room for another version
of it."""


def settings(unit: Unit) -> dict[str, list[str]]:
    """Values of each key, in order."""
    found: dict[str, list[str]] = {}
    for line in unit.path.read_text().splitlines():
        key, is_setting, value = line.partition("=")
        if is_setting and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def analyze(unit: Unit, tmp_path: Path, *command: str) -> "subprocess.CompletedProcess[str]":
    """Run systemd-analyze on the unit with a program that exists."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    copy = tmp_path / unit.name
    copy.write_text(unit.path.read_text().replace(PROGRAM, sys.executable))
    return subprocess.run(
        ["systemd-analyze", *command, str(copy)], capture_output=True, text=True, check=False
    )


@each_unit
def test_systemd_takes_it(unit: Unit, tmp_path: Path) -> None:
    done = analyze(unit, tmp_path, "verify")
    about_us = [line for line in done.stderr.splitlines() if unit.name in line]
    assert about_us == []
    assert done.returncode == 0, done.stderr


@each_unit
def test_it_is_closed(unit: Unit, tmp_path: Path) -> None:
    command = ("security", "--offline=true", f"--threshold={EXPOSURE_MAX}")
    done = analyze(unit, tmp_path, *command)
    assert done.returncode == 0, done.stdout + done.stderr


@each_unit
def test_it_runs_the_command(unit: Unit) -> None:
    (start,) = settings(unit)["ExecStart"]
    assert start.split()[:3] == [PROGRAM, unit.command, "--config"]
    (state,) = settings(unit)["StateDirectory"]
    assert start.split()[3].startswith(f"/var/lib/{state}/")


@each_unit
def test_what_a_start_does_not_mend_is_not_started_again(unit: Unit) -> None:
    (codes,) = settings(unit)["RestartPreventExitStatus"]
    prevented = {int(code) for code in codes.split()}
    assert prevented == {*Exit} - {Exit.STOPPED} - unit.mended
    assert settings(unit)["Restart"] == ["on-failure"]
    # An assertion that comes back, on a deadline for example, is not started for ever either.
    (burst,), (interval,) = (
        settings(unit)["StartLimitBurst"],
        settings(unit)["StartLimitIntervalSec"],
    )
    assert int(burst) * 60 <= int(interval), "far fewer starts than seconds"


@each_unit
def test_limits_are_those_of_the_service(unit: Unit) -> None:
    (files,) = settings(unit)["LimitNOFILE"]
    assert int(files) >= unit.files
    (seconds,) = settings(unit)["TimeoutStopSec"]
    assert int(seconds) > 2 * unit.drain_s


@each_unit
def test_the_watchdog_is_asked_for_only_when_the_service_pings(unit: Unit) -> None:
    sources = [path.read_text() for path in (SOURCE / unit.package).glob("*.py")]
    pings = any(re.search(r"WATCHDOG=1", source) for source in sources)
    assert ("WatchdogSec" in settings(unit)) is pings
