"""The tools as a person runs them: a venue as a child process, TCP, a journal on disk."""

import json
import os
import re
import selectors
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import exchange
from tests.source_tree import SOURCE

EXCHANGE = [sys.executable, "-P", "-m", "exchange.cli"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(str(exchange.__file__)).parents[1])}

DATA = Path(os.environ.get("BRIER_DATA") or SOURCE / "../shared/data")
MESSAGES = DATA / "aapl-lobster" / "message_50.csv"

ENOUGH_SIZE = 4 * 1024 * 1024
"""Bytes for the consumer to receive into that outlast a pause of a second. The kernel's own limit
may be lower (net.core.rmem_max); then the demo may have gaps, and has to say so."""

LIMIT = 3_000
"""Messages of the sample that are enough to see every kind of command and execution."""


def run(
    *arguments: str | Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*EXCHANGE, *map(str, arguments)],
        env={**ENVIRONMENT, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@contextmanager
def started(*arguments: str, temporary: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A tool whose venue runs, with its temporary files in a folder; the venue's process id."""
    with subprocess.Popen(
        [*EXCHANGE, *arguments],
        env=ENVIRONMENT | {"TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"process (\d+)\)", process.stdout.readline())
            assert found
            assert process.stdout.readline().startswith("Its metrics are on http://127.0.0.1:")
            yield process, int(found[1])
        finally:
            process.kill()


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
    assert found["books_match"] is (found["gaps"] == 0)
    if found["receive_buffer_size"] >= ENOUGH_SIZE:
        assert (found["gaps"], found["market_data_dropped"]) == (0, 0)
    assert found["market_data_messages"] > found["trades"]
    assert run("journal", "verify", tmp_path / "demo").returncode == 0


def test_demo_without_a_terminal_prints_lines_and_a_summary() -> None:
    done = run("demo", "--seconds", "2.5")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert " orders  " in done.stdout
    assert "equal; started again, it has the same books, positions and cash" in done.stdout
    assert re.search(r"gaps (0; its books are the venue's|\d+: it missed messages)", done.stdout)
    assert max(map(len, done.stdout.splitlines())) <= 110


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_demo_ends_quietly_and_leaves_nothing(
    number: signal.Signals, tmp_path: Path
) -> None:
    with started("demo", "--seconds", "600", temporary=tmp_path) as (demo, _):
        assert demo.stdout is not None
        assert " orders  " in demo.stdout.readline(), "it trades"
        demo.send_signal(number)
        _, error = demo.communicate(timeout=60)
        assert (demo.returncode, error) == (130, "")
    assert list(tmp_path.iterdir()) == []


def test_a_venue_ends_with_the_tool_that_started_it(tmp_path: Path) -> None:
    with started("demo", "--seconds", "600", temporary=tmp_path) as (demo, venue_id):
        watch = os.pidfd_open(venue_id)
        demo.kill()
        with selectors.DefaultSelector() as selector:
            selector.register(watch, selectors.EVENT_READ)
            assert selector.select(timeout=60), "the venue still runs"
        os.close(watch)


@pytest.mark.parametrize("tool", [("demo",), ("bench", "--in-flight", "1")])
def test_a_venue_that_dies_is_one_line(tool: tuple[str, ...], tmp_path: Path) -> None:
    with started(*tool, "--seconds", "600", temporary=tmp_path) as (process, venue_id):
        if tool == ("demo",):
            assert process.stdout is not None
            assert " orders  " in process.stdout.readline(), "it trades"
        os.kill(venue_id, signal.SIGKILL)
        _, error = process.communicate(timeout=60)
        assert process.returncode == 1
        assert error.startswith("exchange: ")
        assert error.count("\n") == 1


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


@pytest.mark.once
def test_bench() -> None:
    shape = ("--seconds", "1", "--runs", "1", "--connections", "2", "--in-flight", "16")
    found = figures("bench", *shape, "--seed", "5")
    for key, kind in {
        "orders_per_second": float,
        "ack_p50_us": float,
        "ack_p99_us": float,
        "ack_p999_us": float,
        "single_ack_p50_us": float,
        "commit": str,
        "build": str,
        "echo_frames_per_second": float,
    }.items():
        assert isinstance(found[key], int | kind), key
    assert 0 < found["ack_p50_us"] <= found["ack_p99_us"] <= found["ack_p999_us"]
    assert (found["connections"], found["in_flight"], found["seed"]) == (2, 16, 5)
    answered = sum(found[name] for name in ("accepted", "canceled", "cancel_rejected", "rejected"))
    assert answered > 0
    assert found["rejected"] == 0, "the mix asks for nothing that is refused"
    assert found["canceled"] > found["cancel_rejected"]
    assert found["market_data_messages_per_second"] > 0
    assert found["market_data_lost"] == 0
    assert found["is_durable"] is True
    assert found["rows"] == [{name: found[name] for name in found["rows"][0]}]


@pytest.mark.once
def test_bench_latency() -> None:
    shape = ("--seconds", "1", "--runs", "1", "--connections", "2", "--rates", "2000")
    found = figures("bench", "--latency", *shape)
    assert [row["rate"] for row in found["rates"]] == [2000]
    for row in found["rates"]:
        assert row["due"] >= row["answered_in_time"] > 0
        assert row["due"] > 2_000 * 0.9
        assert row["traded_orders"] > 0
        assert 0 < row["ack_p50_us"] <= row["ack_p99_us"] <= row["ack_p999_us"]
        assert 0 < row["trade_p50_us"] <= row["trade_p99_us"] <= row["trade_p999_us"]
        assert 0 < row["echo_p50_us"] <= row["echo_p99_us"]
        assert row["market_data_lost"] == 0


@pytest.mark.once
def test_bench_feed_cost() -> None:
    shape = ("--seconds", "1", "--runs", "1", "--connections", "2", "--subscribers", "3")
    found = figures("bench", "--feed-cost", *shape)
    assert [row["subscribers"] for row in found["subscribers"]] == [-1, 3]
    for row in found["subscribers"]:
        assert row["orders_per_second"] > 0
        assert row["venue_cpu_us_per_order"] > 0
        assert 0 < row["sends_per_packet"] <= 2
        assert row["packets_per_order"] > 0
        assert (row["feed_cpu_share"] > 0) is (row["subscribers"] >= 0)


@pytest.mark.once
def test_bench_recovery() -> None:
    shape = ("--seconds", "1", "--runs", "1", "--connections", "2", "--every-commands", "5000")
    found = figures("bench", "--recovery", *shape)
    for name in ("snapshot", "first", "rebuilding"):
        assert 0 < found[f"{name}_recovery_s"] < found[f"{name}_ready_s"]
        assert found[f"{name}_commands_per_second"] > 0
    assert 0 < found["snapshot_commands"] < found["first_commands"]
    # Each start is a command, the killed ones too.
    assert found["snapshot_sequence"] + found["snapshot_commands"] + 1 == found["first_commands"]
    assert found["rebuilding_commands"] == found["first_commands"] + 1
    assert found["bare_commands_per_second"] > 0
    assert found["every_commands"] == 5_000


def test_bench_needs_the_script_for_redis(tmp_path: Path) -> None:
    done = run("bench", "--redis", environment={"BRIER_BENCH": str(tmp_path)})
    assert done.returncode == 64
    assert "set BRIER_BENCH" in done.stderr
    assert done.stdout == ""
