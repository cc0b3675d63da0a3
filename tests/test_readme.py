"""Holds the README: its venue can be made, its example trades there, what it names exists."""

import ast
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import exchange
from exchange import cli
from tests.source_tree import PACKAGES, SOURCE, files
from tools.venue_settings import change_settings, own_settings

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
def serving(command: list[str], folder: Path) -> Iterator[None]:
    """The venue from its ready line to its clean stop."""
    with subprocess.Popen(
        command, cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    ) as venue:
        try:
            assert venue.stdout is not None
            assert venue.stdout.readline().startswith("exchange ready ")
            yield
            venue.terminate()
            assert venue.wait(timeout=60) == 0
        finally:
            venue.kill()


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


def example(title: str) -> str:
    """The Python example of a section."""
    return section(title).split("```python\n")[1].split("```")[0]


def test_venue_and_examples_work_as_written(tmp_path: Path) -> None:
    port = free_port()
    init, serve, *admin = [shlex.split(line) for line in indented_lines(section("Run a venue"))]
    assert init[1] == "init"
    assert serve[1:3] == ["serve", "--config"]
    run([*EXCHANGE, *init[1:], "--port", str(port)], tmp_path)
    maker = example("Connect as a market maker")
    assert "9001" in maker, "the port of `exchange init`"
    consumer = example("Keep the books as a market-data consumer")
    config = tmp_path / serve[3]
    settings = own_settings()
    for was, name in (("239.255.66.1", "market_data.group"), ("9100", "market_data.port")):
        assert was in consumer, "the group and port of `exchange init`"
        assert was in config.read_text()
        consumer = consumer.replace(was, str(settings[name]))
    change_settings(config, settings)
    with (
        subprocess.Popen(
            [sys.executable, "-P", "-c", consumer],
            cwd=tmp_path,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            text=True,
        ) as watching,
        serving([*EXCHANGE, *serve[1:]], tmp_path),
    ):
        wait_for_member(str(settings["market_data.group"]), watching)
        for command in admin:
            run([*EXCHANGE, *command[1:]], tmp_path)
        script = maker.replace("9001", str(port))
        assert run([sys.executable, "-P", "-c", script], tmp_path) == "quoting: orders 1 and 2\n"
        seen, _ = watching.communicate(timeout=60)
    best_bid = "Level(price=4900, quantity=1000, order_count=1)"
    assert seen == f"best bid {best_bid} best ask None\n"
    run([*EXCHANGE, "journal", "verify", "venue"], tmp_path)


def test_commands_that_documents_name_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--help"])
    assert stopped.value.code == 0
    listed = re.findall(r"^ {4}([a-z]+) ", capsys.readouterr().out, re.MULTILINE)
    assert {"init", "serve", "admin", "journal", "demo", "replay", "bench"} <= set(listed)
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
