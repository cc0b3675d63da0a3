"""`exchange journal` on a journal with known commands and times: golden lines, digests, damage."""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from exchange import cli
from exchange.core.engine import RULES_VERSION, Batch, Engine
from exchange.core.limits import GENESIS_DEFAULTS
from journal import EventLog, FolderStorage, Journal, run_inline
from protocol import wire
from protocol.admin import Account, Deposit, Event, Instrument, Key, Participant
from protocol.base import Message
from protocol.codes import EventKind, Role, Side, TimeInForce
from protocol.order_entry import CancelOrder, NewOrder, ReplaceOrder
from protocol.records import FROM_CLIENT, FROM_VENUE, Connect, Disconnect, Genesis, VenueStarted

GOLDEN = Path(__file__).with_name("dump.txt")

START_NS = 1_790_000_000_000_000_000
ADMIN_KEY = bytes(range(32))
TRADER_KEY = bytes(range(32, 64))

GENESIS = Genesis("golden", ADMIN_KEY, RULES_VERSION, **GENESIS_DEFAULTS, epoch=1 << 20)
COMMANDS: list[tuple[int, int, int, Message]] = [
    (FROM_VENUE, 0, 0, GENESIS),
    (FROM_VENUE, 0, 0, VenueStarted()),
    (FROM_VENUE, 1, 0, Connect(1, "admin", 0, 1_000, 0, 0, 0)),
    (FROM_CLIENT, 1, 1, Participant("acme")),
    (FROM_CLIENT, 1, 2, Account(2, "main", "USD")),
    (FROM_CLIENT, 1, 3, Key(2, TRADER_KEY, Role.TRADE | Role.CANCEL_ONLY)),
    (FROM_CLIENT, 1, 4, Event("RAIN", EventKind.BINARY, "Rain tomorrow?", "USD")),
    (
        FROM_CLIENT,
        1,
        5,
        Instrument(1, "RAIN", "Rain", 0, 10_000, [(0, 10), (1_000, 100), (9_000, 10)], 100),
    ),
    (FROM_CLIENT, 1, 6, Deposit(1, 1, 1_000_500_000)),
    (FROM_VENUE, 2, 0, Connect(2, "floor", 0, 1_000, 3, 500, 0)),
    (FROM_CLIENT, 2, 1, NewOrder(1, 1, 1, Side.SELL, 5_500, 1_000)),
    (
        FROM_CLIENT,
        2,
        2,
        NewOrder(2, 1, 1, Side.BUY, 5_600, 400, time_in_force=TimeInForce.IOC, client_time_ns=9),
    ),
    (FROM_CLIENT, 2, 3, ReplaceOrder(3, 1, 0, 5_500, 900)),
    (FROM_CLIENT, 2, 4, CancelOrder(77)),
    (FROM_VENUE, 2, 0, Disconnect(1)),
]
"""Kind, session, client number, message. Two records: the first ends after the deposit."""
FIRST_RECORD_COUNT = 9


def batches(engine: Engine) -> Iterator[Batch]:
    for step, (kind, session, number, message) in enumerate(COMMANDS, start=1):
        now_ns = START_NS + step
        connection = 1 if session else 0
        payload = wire.encode(message)
        assert engine.submit(kind, session, connection, number, now_ns, now_ns, payload) == step
        if step in (FIRST_RECORD_COUNT, len(COMMANDS)):
            yield engine.take_batch()


def write_journal(folder: Path, lie: int = 0) -> Engine:
    """The journal in `folder`/commands; `lie` changes the events' checksum of the last record."""
    folder.mkdir(exist_ok=True)
    engine = Engine()
    journal = Journal.open(
        FolderStorage(folder / "commands"), segment_size=1024 * 1024, prepare=run_inline
    )
    with closing(journal):
        assert not list(journal.records())
        journal.start(1)
        for batch in batches(engine):
            crc = batch.events_crc ^ (lie if batch.first_sequence > 1 else 0)
            journal.write(journal.build(batch.commands, batch.command_count, crc, RULES_VERSION))
            journal.sync()
        journal.stop()
    return engine


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = cli.main(["journal", *map(str, arguments)])
    output = capsys.readouterr()
    return code, output.out, output.err


def test_dump(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_journal(tmp_path)
    golden = GOLDEN.read_text()
    assert run(capsys, "dump", tmp_path, "--events") == (0, golden, "")
    commands = "".join(line for line in golden.splitlines(True) if not line.startswith(" "))
    assert run(capsys, "dump", tmp_path / "commands") == (0, commands, "")


def test_dump_of_a_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_journal(tmp_path)
    golden = GOLDEN.read_text().splitlines(True)
    wanted = [line for line in golden if line.split()[0] in ("9", "10", "11")]
    found = run(capsys, "dump", tmp_path, "--events", "--from", "9", "--to", "11")
    assert found == (0, "".join(wanted), "")


def test_dump_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_journal(tmp_path)
    _, output, _ = run(capsys, "dump", tmp_path, "--json", "--events", "--from", "6", "--to", "6")
    command, event, record = map(json.loads, output.splitlines())
    assert command == {
        "sequence": 6,
        "time_ns": START_NS + 6,
        "origin": "client",
        "session": 1,
        "connection": 1,
        "number": 3,
        "gateway_time_ns": START_NS + 6,
        "channel": 0,
        "message": "Key",
        "fields": {"participant_id": 2, "public_key": TRADER_KEY.hex(), "roles": 3},
    }
    assert (event["origin"], event["message"]) == ("report", "AdminAccepted")
    assert event["fields"]["id"] == 2
    assert record == {
        "sequence": 6,
        "time_ns": START_NS + 6,
        "origin": "reference",
        "session": 0,
        "connection": 0,
        "number": 7,
        "gateway_time_ns": 0,
        "channel": 0,
        "message": "KeyRecorded",
        "fields": {
            "sequence": 6,
            "time_ns": START_NS + 6,
            "key_id": 2,
            "participant_id": 2,
            "public_key": TRADER_KEY.hex(),
            "roles": 3,
        },
    }


def test_digest_is_that_of_the_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = write_journal(tmp_path)
    code, output, _ = run(capsys, "digest", tmp_path, "--json")
    assert (code, json.loads(output)) == (
        0,
        {
            "sequence": len(COMMANDS),
            "records": 2,
            "digest": engine.digest(),
            "book_digest": engine.book_digest(),
        },
    )


def test_another_checksum_of_events_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_journal(tmp_path, lie=1)
    assert run(capsys, "verify", tmp_path)[0] == 0, "the bytes are as they were written"
    code, output, error = run(capsys, "digest", tmp_path)
    assert (code, output) == (65, "")
    assert error.startswith("exchange: replay differs: record of sequence 10: events ")


def test_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_journal(tmp_path)
    code, output, _ = run(capsys, "verify", tmp_path, "--json")
    summary = json.loads(output)
    assert code == 0
    assert (summary["records"], summary["commands"], summary["last_sequence"]) == (2, 15, 15)
    assert (summary["clean_stop"], summary["end"]) == (True, "clean")


def write_events(folder: Path) -> list[str]:
    """The log beside the journal; the names of its files."""
    storage = FolderStorage(folder / "events")
    log = EventLog.open(storage, execute=run_inline)
    log.start(0)
    for batch in batches(Engine()):
        crc = batch.events_crc
        log.append(batch.first_sequence, batch.command_count, RULES_VERSION, batch.events, crc)
    log.stop()
    return storage.names()


def test_events_of_all_of_a_session_and_of_a_channel(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_journal(tmp_path)
    assert run(capsys, "events", tmp_path)[0] == 64
    write_events(tmp_path)
    golden = [line for line in GOLDEN.read_text().splitlines() if line.startswith("    ")]
    code, output, _ = run(capsys, "events", tmp_path)
    assert (code, output.splitlines()) == (0, golden)
    _, output, _ = run(capsys, "events", tmp_path, "--session", "2", "--from", "3")
    reports = [line for line in golden if "session 2/1 #" in line and "LogOn" not in line]
    assert output.splitlines() == reports[2:]
    _, output, _ = run(capsys, "events", tmp_path, "--channel", "1", "--json")
    assert [json.loads(line)["number"] for line in output.splitlines()] == list(
        range(1, 1 + sum("channel 1 #" in line for line in golden))
    )
    _, output, _ = run(capsys, "events", tmp_path, "--from", "10")
    assert output.splitlines() == [line for line in golden if int(line.split()[0]) >= 10]


def test_verify_compares_the_events_with_the_journal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_journal(tmp_path)
    assert json.loads(run(capsys, "verify", tmp_path, "--json")[1])["events_to"] == 0
    [name] = write_events(tmp_path)
    assert json.loads(run(capsys, "verify", tmp_path, "--json")[1])["events_to"] == 15
    path = tmp_path / "events" / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert json.loads(run(capsys, "verify", tmp_path, "--json")[1])["events_to"] == 9


def test_damage_is_66(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_journal(tmp_path)
    [segment] = (tmp_path / "commands").glob("*.segment")
    content = bytearray(segment.read_bytes())
    content[700] ^= 1
    segment.write_bytes(content)
    for action in ("verify", "dump", "digest"):
        code, _, error = run(capsys, action, tmp_path)
        assert code == 66
        assert error.startswith("exchange: journal damaged: ")
        assert error.count("\n") == 1
    assert segment.read_bytes() == bytes(content)


def test_a_journal_in_use_is_69(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_journal(tmp_path)
    with closing(FolderStorage(tmp_path / "commands")) as storage:
        storage.lock()
        code, _, error = run(capsys, "verify", tmp_path)
    assert code == 69
    assert "another process has" in error


def test_no_journal_is_64(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "verify", tmp_path) == (
        64,
        "",
        f"exchange: {tmp_path}: no journal here; `exchange init` makes a new one, and "
        "`exchange journal restore` one of an archive\n",
    )
    missing = tmp_path / "missing"
    assert run(capsys, "digest", missing)[0] == 64
