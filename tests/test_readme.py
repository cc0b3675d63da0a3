"""Holds the README: its venue can be made, its examples work there, what it names exists."""

import ast
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import exchange
from exchange import cli
from tests.source_tree import PACKAGES, SOURCE, files
from tools.venue_settings import change_settings, own_settings

pytestmark = pytest.mark.once

EXCHANGE = [sys.executable, "-P", "-m", "exchange.cli"]

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(str(exchange.__file__)).parents[1])}
"""A child finds the packages where this process found them, installed or not."""

README = (SOURCE / "README.md").read_text()

Block = list[str]


def section(title: str) -> str:
    """Text below a heading of the README."""
    return README.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def indented_lines(text: str) -> Block:
    """Lines of the indented code blocks."""
    return [line.strip() for line in text.splitlines() if line.startswith("    ")]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


@contextmanager
def running(command: list[str], ready: str, folder: Path) -> Iterator[None]:
    """A service from its ready line to its clean stop."""
    with subprocess.Popen(
        [*EXCHANGE, *command[1:]], cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    ) as service:
        try:
            assert service.stdout is not None
            assert service.stdout.readline().startswith(ready)
            yield
            service.terminate()
            assert service.wait(timeout=60) == 0
        finally:
            service.kill()


def test_two_commands_do_everything() -> None:
    commands = indented_lines(section("Run it"))
    assert [command.rpartition("&& ")[2] for command in commands] == [
        ".venv/bin/exchange demo",
        ".venv/bin/pytest",
    ]


def wait_for_member(group: str, process: subprocess.Popen[str]) -> None:
    """Return when somebody on this machine has joined a multicast group."""
    shown = bytes(reversed(socket.inet_aton(group))).hex().upper()
    while shown not in Path("/proc/net/igmp").read_text():
        assert process.poll() is None, "the consumer has ended"
        os.sched_yield()


def examples(title: str) -> list[str]:
    """The Python examples of a section."""
    return [block.split("```")[0] for block in section(title).split("```python\n")[1:]]


def own_addresses(folder: Path) -> dict[str, str]:
    """Give the venue ports and groups of its own; what the README says to what they are now."""
    settings = own_settings() | {"feed.port": free_port(), "feed.metrics_port": 0}
    config = folder / "venue" / "exchange.toml"
    written = config.read_text()
    changed = {
        "239.255.66.1": "market_data.group",
        "239.255.67.1": "market_data.line_b.group",
        "9100": "market_data.port",
        "9002": "feed.port",
    }
    assert all(was in written for was in changed), "as `exchange init` writes it"
    change_settings(config, settings)
    return {was: str(settings[name]) for was, name in changed.items()}


def lines_of(script: str, count: int, folder: Path) -> list[str]:
    """The first lines that an example without an end prints."""
    with subprocess.Popen(
        [sys.executable, "-u", "-P", "-c", script],
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        patience = threading.Timer(60, process.kill)
        patience.start()
        lines = [process.stdout.readline() for _ in range(count)]
        patience.cancel()
        process.kill()
    return lines


def check_readers(folder: Path, changes: dict[str, str]) -> None:
    """The examples that read over TCP say what the market maker has done."""
    _, blocking = examples("Keep the books as a market-data consumer")
    [drop_copy] = examples("Copy the execution reports")
    for was, now in changes.items():
        blocking, drop_copy = blocking.replace(was, now), drop_copy.replace(was, now)
    *messages, candles = run([sys.executable, "-P", "-c", blocking], folder).splitlines()
    assert messages[-1].startswith("Levels(")
    assert messages[-1].endswith("bids=[(4900, 1000, 1)], asks=[])")
    assert candles == "[]", "nothing was traded"
    copied = [line.split()[1] for line in lines_of(drop_copy, 9, folder)]
    assert copied == [
        *("ParticipantRecorded", "AccountRecorded", "KeyRecorded", "KeyRecorded"),
        *("SessionRecorded", "OrderAccepted", "OrderAccepted", "OrderReplaced", "OrderCanceled"),
    ]


def test_venue_and_examples_work_as_written(tmp_path: Path) -> None:
    port = free_port()
    commands = [shlex.split(line) for line in indented_lines(section("Run a venue"))]
    init, serve, feed, replica, *admin, watch = commands
    assert [command[1] for command in (init, serve, feed, replica, watch)] == [
        *("init", "serve", "feed", "replica", "watch")
    ]
    run([*EXCHANGE, *init[1:], "--port", str(port)], tmp_path)
    [maker] = examples("Connect as a market maker")
    assert "9001" in maker, "the port of `exchange init`"
    changes = own_addresses(tmp_path)
    consumer, _ = examples("Keep the books as a market-data consumer")
    for was, now in changes.items():
        assert was in consumer
        consumer = consumer.replace(was, now)
    with (
        running(serve, "exchange ready ", tmp_path),
        running(feed, "exchange feed ready ", tmp_path),
        running(replica, "exchange replica ready ", tmp_path),
    ):
        for command in admin:
            run([*EXCHANGE, *command[1:]], tmp_path)
        with subprocess.Popen(
            [sys.executable, "-P", "-c", consumer],
            cwd=tmp_path,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            text=True,
        ) as watching:
            wait_for_member(changes["239.255.67.1"], watching)
            script = maker.replace("9001", str(port))
            said = run([sys.executable, "-P", "-c", script], tmp_path)
            assert said == "quoting: orders 1 and 2\n"
            seen, _ = watching.communicate(timeout=60)
        best_bid = "Level(price=4900, quantity=1000, order_count=1)"
        assert seen == f"best bid {best_bid} best ask None\n"
        check_readers(tmp_path, changes)
        shown = run([*EXCHANGE, *watch[1:], "--seconds", "1", "--json"], tmp_path)
        book = json.loads(shown.splitlines()[-1])["books"]["RAIN-NYC"]
        assert (book["is_known"], book["bid_price"], book["ask_price"]) == (True, 4900, None)
    run([*EXCHANGE, "journal", "verify", "venue"], tmp_path)


def test_commands_that_documents_name_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--help"])
    assert stopped.value.code == 0
    listed = re.findall(r"^ {4}([a-z]+) ", capsys.readouterr().out, re.MULTILINE)
    assert {"init", "serve", "feed", "admin", "journal", "demo", "watch", "bench"} <= set(listed)
    for page in (SOURCE / "README.md", *files(SOURCE, (".md",), (*PACKAGES, "tests"))):
        for name in re.findall(r"(?:`|^ {4})exchange ([a-z]+)", page.read_text(), re.MULTILINE):
            assert name in listed, f"{page.name}: exchange {name}"


def documented_exit_codes(text: str, pattern: str) -> list[int]:
    return [int(code) for code in re.findall(pattern, text, re.MULTILINE)]


def test_exit_codes_of_page_help_and_code_agree() -> None:
    helped = documented_exit_codes(cli.EXIT_CODES, r"^ +(\d+) ")
    page = (SOURCE / "exchange/ARCHITECTURE.md").read_text().split("## Exit codes")[1]
    assert documented_exit_codes(page, r"^\| (\d+) \|") == helped
    used = {0}
    for path in files(SOURCE, (".py",), PACKAGES):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Assign | ast.AnnAssign):
                continue
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            is_code = any(name == "exit_code" or name.startswith("EX_") for name in names)
            value = node.value.value if isinstance(node.value, ast.Constant) else None
            if is_code and isinstance(value, int):
                used.add(value)
    assert sorted(used) == sorted(helped)
