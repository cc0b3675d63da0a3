"""The same commands make the same bytes: live, replayed, restored, in any process and build.

The golden values are those of every build and version of Python that these tests run on. The
model, which shares no code with the engine, has to agree on every event.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Final

import pytest

from exchange.core.engine import RULES_VERSION, Engine
from exchange.core.replay import replay_record, restore_engine
from exchange.replica.replica import Replica
from exchange.replica.snapshotter import head_of
from journal import CommandsFollower, SnapshotFolder
from journal.snapshot import encode_snapshot_head
from tests.determinism.fixed import (
    EVENT_SEGMENT_SIZE,
    Run,
    records,
    replayed,
    restored,
    run,
    values,
)
from tests.exchange.core.side_by_side import commands_of, events_of
from tests.model.model import Model, decode

ROOT: Final = Path(__file__).parents[2]
GOLDEN: Final[dict[str, Any]] = json.loads((ROOT / "tests/vectors/determinism.json").read_text())

PROGRAM: Final = """
import sys
sys.path.append(sys.argv[1])
from tests.determinism.fixed import main
main()
"""


@pytest.fixture(scope="module")
def made() -> Run:
    return run()


def test_live_run_makes_the_golden_bytes(made: Run) -> None:
    found = values(made)
    assert found["commands"] == GOLDEN["commands"], "another history: its maker has changed"
    assert GOLDEN["rules_version"] == RULES_VERSION, "other rules have other values"
    assert found == GOLDEN


def test_replay_from_the_first_record_makes_the_same(made: Run) -> None:
    assert replayed(made).parts == made.trace.parts


@pytest.mark.parametrize("index", [0, 1, 2, 3])
def test_replay_from_a_snapshot_makes_the_same(made: Run, index: int) -> None:
    assert restored(made, index).parts == made.trace.parts[index + 1 :]


@pytest.mark.parametrize("index", [None, 0, 1])
def test_replica_makes_the_same_snapshots(made: Run, index: int | None) -> None:
    """From the first record, and when it goes on from a snapshot."""
    folder = SnapshotFolder(made.snapshots)
    heads = folder.heads()[::-1]
    head = None if index is None else heads[index]
    engine = None if head is None else restore_engine(head, folder.read(head))
    replica = Replica(EVENT_SEGMENT_SIZE, head, engine)
    follower = CommandsFollower(made.commands, head)
    names = []
    while records_read := follower.read(made.end, 1):
        for record in records_read:
            replica.apply(record)
        if replica.sequence in {one.sequence for one in heads}:
            image = replica.engine.image()
            found = head_of(replica, follower.state, image)
            names.append(found.name)
            content = encode_snapshot_head(found) + image
            assert content == made.snapshots.images()[found.name]
    assert names == [one.name for one in heads[0 if index is None else index + 1 :]]


ENVIRONMENTS: Final[tuple[dict[str, str], ...]] = (
    {"PYTHONHASHSEED": "0"},
    {"PYTHONHASHSEED": "1", "TZ": "Asia/Kathmandu", "LC_ALL": "C"},
    {"PYTHONHASHSEED": "random", "TZ": "America/St_Johns", "LC_ALL": "tr_TR.UTF-8"},
)


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=["0", "1", "random"])
def test_every_process_makes_the_same(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM, str(ROOT)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == GOLDEN


def test_model_makes_the_same_events(made: Run) -> None:
    engine, model = Engine(), Model()
    for record in records(made):
        events = [event for c in commands_of(bytes(record.payload)) for event in model.apply(c)]
        assert b"".join(event.encode() for event in events) == replay_record(engine, record)


def test_history_is_rich(made: Run) -> None:
    """What does not happen in it proves nothing."""
    engine = Engine()
    events: Counter[str] = Counter()
    rejects = set()
    commands: Counter[str] = Counter()
    for record in records(made):
        for event in events_of(replay_record(engine, record)):
            name = type(event.message).__name__
            events[name] += 1
            rejects.add((name, getattr(event.message, "code", 0)))
        for command in commands_of(bytes(record.payload)):
            commands[type(decode(command.payload)).__name__] += 1
    assert set(commands) >= COMMANDS
    assert set(events) >= EVENTS
    assert min(commands["Continuation"], commands["TimeAdvance"], commands["VenueStarted"]) >= 5
    assert min(events["OrderFilled"], events["OrderExpired"], events["OrderReplaced"]) >= 500
    assert len(rejects) - len(events) >= 30


COMMANDS: Final = {
    *("Genesis", "Connect", "Disconnect", "TimeAdvance", "Continuation", "VenueStarted"),
    *("NewOrder", "CancelOrder", "ReplaceOrder", "Participant", "Account", "Key", "Event"),
    *("Instrument", "Deposit", "Withdraw", "Halt", "Resume"),
}
"""All that there are."""

EVENTS: Final = {
    *("LogOnAccepted", "LogOnRejected", "AdminAccepted", "AdminRejected", "OrderAccepted"),
    *("OrderRejected", "OrderReplaced", "OrderCanceled", "OrderExpired", "OrderFilled"),
    *("CancelRejected", "EventDefinition", "InstrumentDefinition", "InstrumentStatus"),
    *("OrderAdded", "OrderExecuted", "OrderReduced", "OrderDeleted", "Trade"),
    *("VenueRecorded", "ParticipantRecorded", "AccountRecorded", "KeyRecorded"),
    *("SessionRecorded",),
}
"""All that the core emits."""
