"""The command line: help, conversions, and every error one line with its documented exit code."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import exchange
from exchange import cli

EXCHANGE = [sys.executable, "-P", "-m", "exchange.cli"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(str(exchange.__file__)).parents[1])}


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    try:
        code = cli.main(list(map(str, arguments)))
    except SystemExit as stopped:
        code = int(str(stopped.code))
    output = capsys.readouterr()
    return code, output.out, output.err


def test_help_names_every_command_and_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    code, output, _ = run(capsys, "--help")
    assert code == 0
    listed = re.findall(r"^ {4}([a-z]+)", output, re.MULTILINE)
    assert listed == [
        *("init", "serve", "feed", "replica", "admin", "journal", "demo", "watch", "replay"),
        *("bench", "record", "dissector"),
    ]
    codes = re.findall(r"^ {2}(\d+) ", output, re.MULTILINE)
    assert codes == ["0", "1", "64", "65", "66", "69", "74", "130"]
    assert max(map(len, output.splitlines())) <= 100


@pytest.mark.parametrize(
    "command",
    [
        *("init", "serve", "feed", "replica", "admin", "journal", "journal dump", "demo", "watch"),
        *("replay lobster", "bench", "record", "dissector"),
    ],
)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, output, error = run(capsys, *command.split(), "--help")
    assert (code, error) == (0, "")
    assert output.startswith(f"usage: exchange {command}")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    code, output, _ = run(capsys, "--version")
    assert code == 0
    assert re.fullmatch(r"exchange \S.* build=(released|checked) python=3\.\d+\.\S+\n", output)


ADMIN = ["admin", "--connect", "127.0.0.1:1", "--key", "k.pem"]


@pytest.mark.parametrize(
    ("arguments", "story"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["init"], "the following arguments are required: DIR"),
        (["init", "v", "--port", "70000"], "'70000' is not a port"),
        (["init", "v", "--name", "no spaces"], "venue 'no spaces'"),
        (["serve"], "the following arguments are required: --config"),
        (["serve", "--config", "missing.toml"], "missing.toml: No such file or directory"),
        (["admin", "halt", "1"], "give --config FILE, or --connect HOST:PORT and --key FILE"),
        (["admin", "--connect", "here", "--key", "k.pem", "halt", "1"], "HOST:PORT expected"),
        (["admin", "--config", "missing.toml", "halt", "1"], "missing.toml: No such file"),
        ([*ADMIN, "halt", "zero"], "'zero' is not a whole number above zero"),
        ([*ADMIN, "deposit", "1", "1.0000001"], "1.0000001 has more than 6 digits"),
        ([*ADMIN, "deposit", "1", "ten"], "amount 'ten' is not a decimal number"),
        ([*ADMIN, "deposit", "1", "0"], "amount 0 is not above zero"),
        ([*ADMIN, "participant", "two words"], "Participant.name: "),
        ([*ADMIN, "key", "1", "abc", "trade"], "abc: neither a key file nor 64 hexadecimal"),
        ([*ADMIN, "key", "1", "0" * 64, "boss"], "unknown role 'boss'"),
        ([*ADMIN, "event", "X", "ladder", "T", "USD"], "invalid choice: 'ladder'"),
        ([*ADMIN, "event", "X", "binary", "T", "usd"], "Event.currency: "),
        ([*ADMIN, "instrument", "1", "X", "T", "--ticks", "0"], "steps are above zero"),
        ([*ADMIN, "halt", "1"], "cannot read key file k.pem"),
        (["journal", "verify", "missing"], "missing: no such folder"),
        (["demo", "--seconds", "soon"], "'soon' is not a number"),
        (["demo", "--seconds", "0"], "is not above 0"),
        (["replay", "lobster", "missing.csv"], "missing.csv: no such file"),
        (["replay", "lobster", "--limit", "0"], "'0' is not a whole number above zero"),
        (["bench", "--in-flight", "x"], "'x' is not a whole number from 1 to 4096"),
    ],
)
def test_bad_input_is_one_line_and_64(
    arguments: list[str],
    story: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code, output, error = run(capsys, *arguments)
    assert code == 64
    assert output == ""
    assert story in error
    assert error.startswith("exchange")
    assert error.count("\n") == 1


def test_configuration_with_a_misspelt_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "init", tmp_path / "v")[0] == 0
    file = tmp_path / "v" / "exchange.toml"
    file.write_text(file.read_text().replace("port =", "prot ="))
    code, _, error = run(capsys, "serve", "--config", file)
    assert code == 64
    assert error == f"exchange: {file}: unknown key order_entry.prot; did you mean port\n"


def test_a_folder_is_never_made_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "init", tmp_path / "v")[0] == 0
    before = sorted(tmp_path.rglob("*"))
    code, _, error = run(capsys, "init", tmp_path / "v")
    assert code == 64
    assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_nobody_listens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    run(capsys, "init", tmp_path / "v", "--port", str(port))
    code, _, error = run(capsys, "admin", "--config", tmp_path / "v", "halt", "1")
    assert code == 1
    assert error.startswith(f"exchange: cannot connect to 127.0.0.1 port {port}")
    assert error.count("\n") == 1


def test_keygen_never_overwrites(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "k.pem"
    code, output, _ = run(capsys, "admin", "keygen", file)
    assert code == 0
    assert re.fullmatch(r"[0-9a-f]{64}\n", output)
    before = file.read_bytes()
    assert run(capsys, "admin", "keygen", file)[0] == 64
    assert file.read_bytes() == before


@pytest.fixture(scope="module")
def venue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """A venue that runs; the options with which `admin` finds it."""
    folder = tmp_path_factory.mktemp("cli") / "venue"
    assert cli.main(["init", str(folder), "--port", "0", "--name", "cli"]) == 0
    with subprocess.Popen(
        [*EXCHANGE, "serve", "--config", str(folder)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"order_entry=(\S+)", process.stdout.readline())
            assert found
            yield ["--connect", found[1], "--key", str(folder / "keys" / "admin.pem")]
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=30) == 0
        finally:
            process.kill()


def test_admin_prints_ids_and_what_was_asked(
    venue: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def admin(*arguments: str | Path) -> str:
        code, output, error = run(capsys, "admin", *venue, *arguments)
        assert (code, error) == (0, "")
        return output

    key = tmp_path / "acme.pem"
    public_key = admin("keygen", key).strip()
    assert admin("participant", "acme") == "participant id=2 name=acme\n"
    assert admin("account", "2", "main", "USD") == (
        "account id=1 participant_id=2 name=main currency=USD\n"
    )
    assert admin("key", "2", key, "trade,cancel-only") == (
        f"key id=2 participant_id=2 public_key={public_key} roles=trade,cancel-only\n"
    )
    assert admin("event", "RAIN", "binary", "Rain?", "USD") == (
        "event id=1 symbol=RAIN kind=binary\n"
    )
    assert admin("instrument", "1", "RAIN", "Rain?", "--ticks", "0:0.001,0.1:0.01") == (
        "instrument id=1 event_id=1 symbol=RAIN floor=0.00 cap=1.00 ticks=0.00:0.001,0.10:0.01 "
        "quantity_step=1\n"
    )
    assert admin("deposit", "1", "25,000.50", "--transfer-id", "7") == (
        "deposit id=1 account_id=1 amount=25,000.50 transfer_id=7\n"
    )
    assert admin("halt", "1") == "halt id=1 instrument_id=1\n"
    assert json.loads(admin("--json", "resume", "1")) == {"command": "resume", "id": 1}
    assert json.loads(admin("halt", "1", "--json")) == {"command": "halt", "id": 1}


def test_what_the_venue_refuses_is_one_line_and_1(
    venue: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, output, error = run(capsys, "admin", *venue, "halt", "99")
    assert (code, output) == (1, "")
    assert error.startswith("exchange: Halt rejected: UNKNOWN_INSTRUMENT")
    assert error.count("\n") == 1
    run(capsys, "admin", "keygen", tmp_path / "stranger.pem")
    stranger = [*venue[:3], str(tmp_path / "stranger.pem")]
    code, output, error = run(capsys, "admin", *stranger, "halt", "1")
    assert (code, output) == (1, "")
    assert "UNKNOWN_KEY" in error
    assert error.count("\n") == 1


def test_output_that_nobody_reads_is_no_error(tmp_path: Path) -> None:
    assert cli.main(["init", str(tmp_path / "v")]) == 0
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*EXCHANGE, "journal", "dump", str(tmp_path / "v")],
        env=ENVIRONMENT,
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
        timeout=60,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")
