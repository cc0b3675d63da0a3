"""One way to apply a record, one to restore a snapshot: what they accept, and what they say."""

from dataclasses import dataclass, replace
from hashlib import blake2b
from types import SimpleNamespace
from typing import Any

import pytest

from exchange.core.engine import RULES_VERSION, Engine
from exchange.core.replay import (
    EXIT_DIFFERENT,
    EXIT_NO_GENESIS,
    EXIT_OTHER_RULES,
    ReplayError,
    RestoreError,
    replay_record,
    restore_engine,
)
from exchange.node.failure import Exit
from protocol.order_entry import NewOrder
from tests.exchange.core.venue import Venue


@dataclass(frozen=True)
class Recorded:
    """A batch as a record has it."""

    first_sequence: int
    command_count: int
    rules_version: int
    events_crc: int
    payload: memoryview


def recorded(batch: Any) -> Recorded:
    return Recorded(
        batch.first_sequence,
        batch.command_count,
        RULES_VERSION,
        batch.events_crc,
        memoryview(batch.commands),
    )


def taken() -> tuple[Venue, list[Recorded]]:
    """A venue with a market, and its records."""
    venue = Venue().with_market()
    venue.send(2, NewOrder(1, 1, 1, 1, 5_000, 100))
    venue.take()
    return venue, [recorded(batch) for batch in venue.batches]


def head(engine: Engine, **fields: Any) -> Any:
    image_hash = blake2b(engine.image(), digest_size=32).digest()
    said = {
        "rules_version": RULES_VERSION,
        "sequence": engine.sequence,
        "time_ns": engine.time_ns,
        "image_hash": image_hash,
    }
    return SimpleNamespace(**(said | fields))


def test_the_codes_are_those_of_the_process() -> None:
    codes = (EXIT_OTHER_RULES, EXIT_DIFFERENT, EXIT_NO_GENESIS)
    assert codes == (Exit.CONFIGURATION, Exit.ASSERTION, Exit.JOURNAL_DAMAGED)


def test_a_replay_gives_events_and_state_again() -> None:
    venue, records = taken()
    engine = Engine()
    events = [replay_record(engine, record) for record in records]
    assert events == [batch.events for batch in venue.batches]
    assert engine.digest() == venue.engine.digest()


@pytest.mark.parametrize(
    ("fields", "code", "text"),
    [
        ({"rules_version": 9}, 64, "record of sequence 1 has rules 9, this build replays 3"),
        ({"events_crc": 5}, 65, "replay differs: record of sequence 1: events "),
        ({"command_count": 99}, 65, "replay failed: record of sequence 1, command "),
        ({"first_sequence": 2}, 65, "replay failed: record of sequence 2, command 0: records are"),
        ({"payload": memoryview(b"")}, 66, "the journal does not begin with Genesis"),
        ({"payload": memoryview(bytes(200))}, 66, "the journal does not begin with Genesis"),
    ],
)
def test_what_does_not_fit_is_said(fields: dict[str, Any], code: int, text: str) -> None:
    _, (first, *_) = taken()
    with pytest.raises(ReplayError) as caught:
        replay_record(Engine(), replace(first, **fields))
    assert caught.value.exit_code == code
    assert str(caught.value).startswith(text)


def test_an_image_is_restored_to_the_same() -> None:
    venue, _ = taken()
    engine = restore_engine(head(venue.engine), venue.engine.image())
    assert engine.digest() == venue.engine.digest()


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"rules_version": 9}, "it was made under rules 9, this build has 3"),
        ({"sequence": 4}, "its image is of sequence "),
        ({"time_ns": 4}, "its image is of sequence "),
        ({"image_hash": bytes(32)}, "its image restores to another one"),
    ],
)
def test_an_image_under_another_head_is_refused(fields: dict[str, Any], text: str) -> None:
    venue, _ = taken()
    with pytest.raises(RestoreError) as caught:
        restore_engine(head(venue.engine, **fields), venue.engine.image())
    assert str(caught.value).startswith(text)


def test_every_cut_of_an_image_is_refused() -> None:
    venue, _ = taken()
    image = venue.engine.image()
    for size in range(0, len(image), 7):
        with pytest.raises(RestoreError):
            restore_engine(head(venue.engine), image[:size])
