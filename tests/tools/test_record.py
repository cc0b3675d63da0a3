"""`exchange record` as a person runs it: from two lines, from a feed, from a capture; and what it
refuses."""

import argparse
import asyncio
import errno
import json
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pyarrow import compute, parquet  # type: ignore[import-untyped]  # it comes without types

import exchange
from exchange import cli
from exchange.client import Feed, connect_feed
from exchange.client.sockets import group_of, snapshot_group_of
from journal import EventReader, FolderStorage
from journal.event_format import entries
from protocol.market_data import Candle, MarketDataMessage, OrderDeleted
from protocol.packets import DATA, SNAPSHOT, Block, Packet, decode_message, encode_packet
from protocol.records import MARKET_DATA
from protocol.wire import encode
from tests.tools.trade_tables import candle_row, candle_rows, integers
from tools import record
from tools.errors import ToolError
from tools.parquet import MESSAGES, file_name
from tools.pcap import Datagram, PcapWriter, read_pcap
from tools.record import Taking, outputs, support
from tools.recording import Recorder
from tools.venue_process import FeedProcess, VenueProcess
from tools.venue_settings import INTERFACE, own_settings

EXCHANGE = [sys.executable, "-P", "-m", "exchange.cli"]
MANY_CHANNELS = [word for one in range(20, 0, -1) for word in ("--channel", str(one))]
"""More than one connection to a feed may subscribe to; the one that is in use is the last."""
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(str(exchange.__file__)).parents[1])}


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*EXCHANGE, "record", *map(str, arguments)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@contextmanager
def recording(*arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """A recording that has begun to listen."""
    with subprocess.Popen(
        [*EXCHANGE, "record", *map(str, arguments)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "recording\n"
            yield process
        finally:
            process.kill()


def stop(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> dict[str, int]:
    process.send_signal(number)
    output, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (0, "")
    found: dict[str, int] = json.loads(output.splitlines()[-1])
    return found


def data_packet(number: int, count: int, channel: int = 1, kind: int = DATA) -> bytes:
    blocks = [
        Block(3, encode(OrderDeleted(one, one + 5, channel, one)))
        for one in range(number, number + count)
    ]
    return encode_packet(Packet(kind, channel, 9, number, 1_000 + number, blocks))


def row_counts(folder: Path) -> dict[str, int]:
    return {
        file_name(message): parquet.read_metadata(folder / file_name(message)).num_rows
        for message in MESSAGES
    }


def numbers(folder: Path, message: type[MarketDataMessage]) -> list[tuple[int, int]]:
    table = parquet.read_table(folder / file_name(message), columns=["channel", "number"])
    return [(row["channel"], row["number"]) for row in table.to_pylist()]


def send(payloads: list[tuple[str, bytes]], port: int) -> None:
    """Send each to its multicast group."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        interface = socket.inet_aton(INTERFACE)
        udp.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, interface)
        udp.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 0)
        for group, payload in payloads:
            udp.sendto(payload, (group, port))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_two_lines(tmp_path: Path, number: int) -> None:
    settings = own_settings()
    port = int(settings["market_data.port"])
    groups = [str(settings[f"market_data.{line}group"]) for line in ("", "line_b.")]
    arguments = [word for group in groups for word in ("--line", f"{group}:{port}")]
    files: list[str | Path] = [
        "--pcap",
        tmp_path / "a.pcap",
        "--parquet",
        tmp_path / "tables",
        "--json",
    ]
    channels = ["--channel", "1", "--channel", "3", "--snapshots"]
    with recording(*arguments, *files, *channels) as process:
        sent: list[tuple[str, bytes]] = []
        for line, group in enumerate(groups):
            for first in range(1, 400, 4):
                if first == 1 or first % 3 != line:
                    sent.append((group_of(group, 1), data_packet(first, 4)))
            sent.append((group_of(group, 3), data_packet(1, 7, channel=3)))
            sent.append((snapshot_group_of(group, 3), data_packet(70, 1, 3, SNAPSHOT)))
        send(sent, port)
        found = stop(process, number)
    assert found["messages"] == 407
    assert (found["missing"], found["invalid"], found["dropped"]) == (0, 0, 0)
    assert (found["snapshots"], found["datagrams"]) == (2, len(sent))
    counts = row_counts(tmp_path / "tables")
    assert counts == {**dict.fromkeys(counts, 0), "order_deleted.parquet": 407}
    assert sorted(numbers(tmp_path / "tables", OrderDeleted)) == [
        *((1, one) for one in range(1, 401)),
        *((3, one) for one in range(1, 8)),
    ]
    check_capture(tmp_path, sent, port)


def check_capture(folder: Path, sent: list[tuple[str, bytes]], port: int) -> None:
    """The capture has what was sent; converted, it gives what was recorded."""
    with (folder / "a.pcap").open("rb") as file:
        captured = list(read_pcap(file, "a.pcap"))
    expected = Counter(((group, port), payload) for group, payload in sent)
    assert Counter((one.destination, one.payload) for one in captured) == expected
    assert all(one.source[0] == INTERFACE for one in captured)
    assert run("--convert", folder / "a.pcap", "--parquet", folder / "again").returncode == 0
    for message in MESSAGES:
        tables = [
            parquet.read_table(folder / one / file_name(message)) for one in ("tables", "again")
        ]
        assert tables[0].equals(tables[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a venue with a history."""
    made = tmp_path_factory.mktemp("record") / "venue"
    done = subprocess.run(
        [*EXCHANGE, "demo", "--seconds", "1", "--dir", str(made)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return made


@pytest.fixture(scope="module")
def feed(folder: Path) -> Iterator[FeedProcess]:
    """The feed of that venue."""
    with VenueProcess(folder) as venue, FeedProcess(folder) as process:
        venue.start()
        process.start()
        yield process
        process.stop()
        venue.stop()


def said(folder: Path) -> list[tuple[int, int, MarketDataMessage]]:
    """(channel, number, message) of everything public that is in the event log."""
    reader = EventReader(FolderStorage(folder / "data" / "events"))
    found = []
    for batch in reader.records():
        for entry in entries(batch.events):
            if entry.kind == MARKET_DATA:
                message = decode_message(entry.payload)
                assert message is not None
                found.append((entry.channel, entry.number, message))
    return found


def test_a_feed_from_the_start_until_now(folder: Path, feed: FeedProcess, tmp_path: Path) -> None:
    expected = said(folder)
    host, port = feed.address
    source = ["--feed", f"{host}:{port}", "--key", str(folder / "keys" / "admin.pem")]
    files: list[str | Path] = ["--pcap", tmp_path / "a.pcap", "--parquet", tmp_path / "tables"]
    done = run(*source, "--from-start", "--until-now", *files, "--json")
    assert done.returncode == 0, done.stderr
    bars = asyncio.run(candles(feed.address, folder / "keys" / "admin.pem"))
    live = ["--parquet", str(tmp_path / "live"), "--seconds", "0.2"]
    assert run(*source, *live).returncode == 0
    both = ["--config", str(folder / "exchange.toml"), "--parquet", str(tmp_path / "both")]
    with recording(*both, *MANY_CHANNELS, "--json") as process:
        assert stop(process)["invalid"] == 0
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["messages"], found["missing"], found["dropped"]) == (len(expected), 0, 0)
    trades = integers(parquet.read_table(tmp_path / "tables" / "trade.parquet"))
    for instrument_id, some in bars.items():
        mine = trades.filter(compute.equal(trades["instrument_id"], instrument_id))
        assert [candle_row(one) for one in some] == candle_rows(mine, interval_s=1)
    assert sum(one.trade_count for some in bars.values() for one in some) == trades.num_rows > 0
    counts = Counter(file_name(type(message)) for _, _, message in expected)
    names = [file_name(message) for message in MESSAGES]
    assert row_counts(tmp_path / "tables") == {name: counts[name] for name in names}
    for message in MESSAGES:
        places = [(c, n) for c, n, one in expected if type(one) is message]
        assert sorted(numbers(tmp_path / "tables", message)) == sorted(places)
    with (tmp_path / "a.pcap").open("rb") as file:
        captured = list(read_pcap(file, "a.pcap"))
    assert {one.source for one in captured} == {(host, port)}
    assert {one.destination[0] for one in captured} <= {group_of("239.255.66.1", 1)}
    assert sum(row_counts(tmp_path / "live").values()) == 0, "nothing has happened since"


async def candles(address: tuple[str, int], key: Path) -> dict[int, list[Candle]]:
    """The candles of a second that the feed has of each instrument of the demo."""
    async with await connect_feed(*address, key=key) as feed:
        return {one: await feed.candles(one, 1) for one in range(1, 14)}


def test_a_feed_that_refuses_leaves_the_lines_alone(feed: FeedProcess, tmp_path: Path) -> None:
    settings = own_settings()
    group, port = str(settings["market_data.group"]), int(settings["market_data.port"])
    key = tmp_path / "other.pem"
    assert cli.main(["admin", "keygen", str(key)]) == 0
    source = ["--feed", ":".join(map(str, feed.address)), "--key", str(key)]
    alone = run(*source, "--parquet", tmp_path / "alone")
    assert alone.returncode == 1
    assert "UNKNOWN_KEY" in alone.stderr
    assert list((tmp_path / "alone").iterdir()) == []
    line = ["--line", f"{group}:{port}", "--parquet", str(tmp_path / "both")]
    with recording(*source, *line, "--json") as process:
        assert process.stderr is not None
        said = process.stderr.readline()
        assert said.startswith("exchange: without the feed: ")
        assert "UNKNOWN_KEY" in said
        send([(group_of(group, 1), data_packet(1, 7))], port)
        assert stop(process)["messages"] == 7
    assert row_counts(tmp_path / "both")["order_deleted.parquet"] == 7


def test_more_channels_than_a_connection_may_subscribe_to(
    folder: Path, feed: FeedProcess, tmp_path: Path
) -> None:
    key = str(folder / "keys" / "admin.pem")
    source = ["--feed", ":".join(map(str, feed.address)), "--key", key, *MANY_CHANNELS]
    files = ["--parquet", str(tmp_path / "tables"), "--json"]
    done = run(*source, "--from-start", "--until-now", *files)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout.splitlines()[-1])["messages"] == len(said(folder))


def test_a_feed_that_has_failed_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asyncio.run(ask_again(monkeypatch))
    lines = capsys.readouterr().err.splitlines()
    stories = [one.removeprefix("exchange: without the feed: ") for one in lines]
    assert stories == ["no rights", "no subscription", "no rights"]


async def ask_again(monkeypatch: pytest.MonkeyPatch) -> None:
    stories = ["no rights", "no rights", "no subscription", "no rights"]
    ended = asyncio.get_running_loop().create_future()
    begun: list[tuple[int, int]] = []

    class Part:
        def __init__(self, _taking: Taking, *others: object) -> None:
            self.on_failure = others[-1]
            assert callable(self.on_failure)
            begun.append((0, 0))
            if stories:
                self.on_failure(ToolError(stories.pop(0)))
            else:
                ended.set_result(None)

        def begin(self, channel: int, from_number: int) -> None:
            begun.append((channel, from_number))

        async def close(self) -> None:
            begun.append((-1, -1))

    monkeypatch.setattr(record, "FeedPart", Part)
    monkeypatch.setattr(record, "SUPPORT_PAUSE_S", 0)
    taking = Taking(Recorder(None, None))
    helper = asyncio.ensure_future(support(taking, Feed("127.0.0.1", 1, b""), [3, 7]))
    await ended
    helper.cancel()
    await asyncio.gather(helper, return_exceptions=True)
    assert begun == [(0, 0), (3, 0), (7, 0), (-1, -1)] * 5


def record_and_raise(arguments: argparse.Namespace, error: BaseException) -> None:
    with outputs(arguments) as recorder:
        for number in (1, 5):  # What waits for 4 is written, too.
            recorder.take(Datagram(1, ("10.0.0.1", 1), ("10.0.0.2", 2), data_packet(number, 3)))
        raise error


@pytest.mark.parametrize(
    "error", [RuntimeError("a defect"), KeyboardInterrupt(), OSError("a line")]
)
def test_whatever_ends_a_recording_its_tables_can_be_read(
    error: BaseException, tmp_path: Path
) -> None:
    arguments = argparse.Namespace(pcap=tmp_path / "a.pcap", parquet=tmp_path / "tables")
    with pytest.raises(type(error)):
        record_and_raise(arguments, error)
    assert row_counts(tmp_path / "tables")["order_deleted.parquet"] == 6
    with (tmp_path / "a.pcap").open("rb") as file:
        assert len(list(read_pcap(file, "a.pcap"))) == 2


def test_what_cannot_be_written_at_the_end_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = own_settings()
    group, port = str(settings["market_data.group"]), int(settings["market_data.port"])
    wait = Taking.wait

    async def wait_and_send(self: Taking, seconds: float | None) -> None:
        await wait(self, seconds)
        send([(group_of(group, 1), data_packet(1, 3))], port)  # It waits in the kernel.

    def take(_recorder: Recorder, _datagram: Datagram) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Taking, "wait", wait_and_send)
    monkeypatch.setattr(Recorder, "take", take)
    arguments = ["--line", f"{group}:{port}", "--parquet", str(tmp_path / "t"), "--seconds", "0.01"]
    assert cli.main(["record", *arguments]) == 1
    assert capsys.readouterr().err == "exchange: No space left on device\n"


def test_what_stands_before_the_damage_of_a_capture_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (tmp_path / "a.pcap").open("wb") as file:
        writer = PcapWriter(file)
        writer.write(Datagram(1, ("10.0.0.1", 1), ("10.0.0.2", 2), data_packet(1, 3)))
        file.write(b"\xff" * 16)
    arguments = ["--convert", str(tmp_path / "a.pcap"), "--parquet", str(tmp_path / "t")]
    assert cli.main(["record", *arguments]) == 1
    assert "a packet of 4294967295 bytes" in capsys.readouterr().err
    assert row_counts(tmp_path / "t")["order_deleted.parquet"] == 3


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ([], "nothing to record to: give --pcap FILE or --parquet DIR"),
        (["--pcap", "x"], "say where market data comes from"),
        (["--convert", "x", "--pcap", "y"], "--convert reads a capture and goes with --parquet"),
        (
            ["--convert", "x", "--parquet", "y", "--line", "239.1.1.1:9"],
            "--convert reads a capture",
        ),
        (["--pcap", "x", "--line", "239.1.1.1:9", "--until-now"], "go with a feed alone"),
        (["--pcap", "x", "--feed", "127.0.0.1:9"], "--feed needs --key"),
        (["--pcap", "x", "--seconds", "0"], "'0' is not a time in seconds"),
        (["--convert", "missing", "--parquet", "y"], "No such file or directory"),
    ],
)
def test_what_does_not_go_together(
    options: list[str],
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code = cli.main(["record", *options])
    except SystemExit as stopped:
        code = int(str(stopped.code))
    assert code == 64
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1


def test_a_file_that_is_no_capture_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_bytes(b"x" * 100)
    arguments = ["--convert", str(tmp_path / "a.txt"), "--parquet", str(tmp_path / "t")]
    assert cli.main(["record", *arguments]) == 1
    assert "a.txt: this is no capture (pcap, not pcapng)" in capsys.readouterr().err


def test_no_file_is_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.pcap").write_bytes(b"precious")
    arguments = ["--line", "239.1.1.1:9", "--pcap", str(tmp_path / "a.pcap")]
    assert cli.main(["record", *arguments]) == 1
    assert "a.pcap: File exists" in capsys.readouterr().err
    assert (tmp_path / "a.pcap").read_bytes() == b"precious"


def test_without_pyarrow_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "tools.parquet", raising=False)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert cli.main(["record", "--convert", "x", "--parquet", str(tmp_path)]) == 64
    assert "--parquet needs pyarrow: pip install 'brier[parquet]'" in capsys.readouterr().err
