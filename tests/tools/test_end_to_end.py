"""The tools as a person runs them: a venue as a child process, TCP, a journal on disk."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import exchange
from tests.source_tree import SOURCE

EXCHANGE = [sys.executable, "-P", "-m", "exchange.cli"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(str(exchange.__file__)).parents[1])}

DATA = Path(os.environ.get("BRIER_DATA") or SOURCE / "../shared/data")
MESSAGES = DATA / "aapl-lobster" / "message_50.csv"

LIMIT = 3_000
"""Messages of the sample that are enough to see every kind of command and execution."""


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*EXCHANGE, *map(str, arguments)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def figures(*arguments: str | Path) -> dict[str, Any]:
    """The last line of a command with --json."""
    done = run(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_demo(tmp_path: Path) -> None:
    found = figures("demo", "--seconds", "2", "--dir", tmp_path / "demo")
    assert found["digest_before"] == found["digest_after"]
    assert found["book_digest_restarted"] == found["book_digest"]
    assert found["instruments_traded"] == found["instruments"] == 13
    assert found["trades"] > 0
    assert found["accepted"] + found["replaced"] + found["rejected"] == found["orders"]
    assert found["recovered_commands"] > found["orders"] > 0
    assert 0 < found["ack_p50_us"] <= found["ack_p99_us"]
    assert found["orders_per_second"] > 0
    assert run("journal", "verify", tmp_path / "demo").returncode == 0


def test_demo_without_a_terminal_prints_lines_and_a_summary() -> None:
    done = run("demo", "--seconds", "2.5")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert " orders  " in done.stdout
    assert "equal; started again, it has the same books, positions and cash" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 110


def test_interrupted_demo_ends_quietly() -> None:
    with subprocess.Popen(
        [*EXCHANGE, "demo", "--seconds", "600"],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as demo:
        assert demo.stdout is not None
        assert demo.stdout.readline().startswith("A venue listens on ")
        assert " orders  " in demo.stdout.readline(), "it trades"
        demo.send_signal(signal.SIGINT)
        _, error = demo.communicate(timeout=60)
        assert (demo.returncode, error) == (130, "")


@pytest.mark.skipif(not MESSAGES.is_file(), reason="data: message_50.csv is not there")
def test_replay_is_the_same_twice() -> None:
    first, second = (
        figures("replay", "lobster", MESSAGES, "--limit", str(LIMIT)) for _ in range(2)
    )
    assert first["digest_before"] == first["digest_after"]
    assert second["digest_before"] == second["digest_after"]
    assert first["messages"] == LIMIT
    assert first["sent"] == first["acknowledged"] == LIMIT - first["hidden"] - first["unknown"]
    counted = (
        "messages sent acknowledged rejected executions_same_order executions_other_order "
        "executions_no_order crossing_orders hidden halts unknown unknown_executions book_digest"
    )
    for name in counted.split():
        assert first[name] == second[name], name
    assert (first["executions_same_order"], first["executions_other_order"]) == (236, 5)


def test_replay_of_hand_made_lines(tmp_path: Path) -> None:
    file = tmp_path / "hand.csv"
    file.write_text(
        "1.0,1,900,100,5853300,1\n"
        "1.1,1,901,50,5853300,1\n"
        "1.2,2,900,20,5853300,1\n"
        "1.3,4,900,30,5853300,1\n"
        "1.4,4,901,10,5853300,1\n"  # Not the first in line: 900 is filled.
        "1.5,5,0,10,5853300,1\n"
        "1.6,3,900,50,5853300,1\n"
        "1.7,3,901,40,5853300,1\n"
        "1.8,3,777,40,5853300,1\n"
    )
    found = figures("replay", "lobster", file)
    expected = {
        "messages": 9,
        "sent": 7,
        "acknowledged": 7,
        "rejected": 0,
        "executions_same_order": 1,
        "executions_other_order": 1,
        "executions_no_order": 0,
        "hidden": 1,
        "unknown": 1,
    }
    assert {name: found[name] for name in expected} == expected
    assert found["digest_before"] == found["digest_after"]


def test_load() -> None:
    found = figures("load", "--seconds", "1", "--connections", "2", "--in-flight", "16")
    assert found["digests_equal"] is True
    assert sum(found["answers"].values()) == found["orders"] > 0
    assert found["answers"]["OrderRejected"] == 0
    assert found["answers"]["OrderCanceled"] > 0
    assert 0 < found["ack_p50_us"] <= found["ack_p99_us"] <= found["ack_p999_us"]
