"""The engine against the model on random histories: same commands, events, books, balances.

Every seed is one history. After every few steps the batch is closed on both sides and compared
byte for byte; on the way the engine is replaced by one restored from its image, and at the end
its commands are replayed into others, cut anywhere. BRIER_SEEDS="first:last" runs other seeds.
"""

import os
from collections import Counter
from random import Random
from typing import Final
from zlib import crc32

import pytest
from msgspec.msgpack import encode

from exchange.core.engine import Engine
from protocol import market_data
from protocol.codes import RejectCode
from protocol.records import COMMAND_HEAD, FROM_VENUE, Connect, VenueStarted
from tests.exchange.core.public_books import PublicBooks
from tests.exchange.core.side_by_side import (
    Difference,
    Pair,
    commands_of,
    compare_rows,
    events_of,
    is_failing,
    require,
    shrink,
)
from tests.exchange.core.strategies import PROFILES, START_NS, Generator, Step, describe, genesis
from tests.model.checks import public_digest
from tests.model.model import Command, Model
from tests.model.state import EventOut

SEEDS: Final = os.environ.get("BRIER_SEEDS", "0:400")
STEP_COUNT: Final = 150
EVERY_CASE_SEEDS: Final = 400
"""So many seeds reach every reject; a shorter run does not claim that it does."""

ADMIN_TAGS: Final = range(30, 39)
R: Final = RejectCode

EXPECTED_CASES: Final = {
    ("LogOnRejected", 0): {
        (R.UNKNOWN_KEY, 3),
        (R.NOT_PERMITTED, 4),
        (R.SESSION_LIMIT, 4),
        (R.NUMBER_AHEAD, 6),
    },
    ("OrderRejected", 0): {
        (R.NOT_PERMITTED, 0), (R.DUPLICATE_CLIENT_ORDER_ID, 1), (R.UNKNOWN_INSTRUMENT, 2),
        (R.UNKNOWN_ACCOUNT, 3), (R.CURRENCY_MISMATCH, 3), (R.UNSUPPORTED_VALUE, 4),
        (R.UNSUPPORTED_VALUE, 7), (R.UNSUPPORTED_VALUE, 8),
        *((R.UNSUPPORTED_VALUE, field) for field in range(11, 19)),
        (R.TIME_IN_FORCE_NOT_ALLOWED, 8), (R.EXPIRE_TIME_PASSED, 9), (R.FIELD_NOT_ALLOWED, 9),
        (R.QUANTITY_ZERO, 6), (R.QUANTITY_TOO_LARGE, 6), (R.QUANTITY_STEP, 6),
        (R.FIELD_NOT_ALLOWED, 5), (R.PRICE_OUT_OF_RANGE, 5), (R.PRICE_OFF_TICK, 5),
        (R.INSTRUMENT_HALTED, 2), (R.CAPACITY, 0), (R.OPEN_ORDER_LIMIT, 3),
        (R.POSITION_LIMIT, 6), (R.PRICE_LEVEL_LIMIT, 5), (R.FILL_OR_KILL, 6),
        (R.NO_LIQUIDITY, 6), (R.INSUFFICIENT_COLLATERAL, 6),
    },
    ("CancelRejected", 11): {
        (R.NOT_PERMITTED, 0), (R.FIELD_NOT_ALLOWED, 2), (R.INVALID_VALUE, 1),
        (R.UNKNOWN_ORDER, 1), (R.UNKNOWN_ORDER, 2),
    },
    ("CancelRejected", 12): {
        (R.NOT_PERMITTED, 0), (R.DUPLICATE_CLIENT_ORDER_ID, 1), (R.FIELD_NOT_ALLOWED, 3),
        (R.INVALID_VALUE, 2), (R.UNKNOWN_ORDER, 2), (R.UNKNOWN_ORDER, 3), (R.QUANTITY_ZERO, 5),
        (R.QUANTITY_TOO_LARGE, 5), (R.QUANTITY_STEP, 5), (R.PRICE_OUT_OF_RANGE, 4),
        (R.PRICE_OFF_TICK, 4), (R.INSTRUMENT_HALTED, 0), (R.QUANTITY_NOT_ABOVE_FILLED, 5),
        (R.NO_CHANGE, 0), (R.POSITION_LIMIT, 5), (R.PRICE_LEVEL_LIMIT, 4),
        (R.INSUFFICIENT_COLLATERAL, 5),
    },
    ("AdminRejected", 30): {(R.DUPLICATE_NAME, 1), (R.CAPACITY, 0)},
    ("AdminRejected", 31): {(R.UNKNOWN_PARTICIPANT, 1), (R.DUPLICATE_NAME, 2), (R.CAPACITY, 3),
                            (R.CAPACITY, 0)},
    ("AdminRejected", 32): {(R.UNKNOWN_PARTICIPANT, 1), (R.INVALID_VALUE, 3),
                            (R.DUPLICATE_NAME, 2), (R.CAPACITY, 0)},
    ("AdminRejected", 33): {(R.DUPLICATE_NAME, 1), (R.UNSUPPORTED_VALUE, 2), (R.CAPACITY, 4),
                            (R.INVALID_VALUE, 5), (R.CAPACITY, 0)},
    ("AdminRejected", 34): {(R.UNKNOWN_EVENT, 1), (R.DUPLICATE_NAME, 2), (R.INVALID_VALUE, 1),
                            (R.INVALID_VALUE, 4), (R.INVALID_VALUE, 5), (R.INVALID_VALUE, 6),
                            (R.INVALID_VALUE, 7)},
    ("AdminRejected", 35): {(R.UNKNOWN_ACCOUNT, 1), (R.DUPLICATE_TRANSFER_ID, 2),
                            (R.CASH_LIMIT, 3)},
    ("AdminRejected", 36): {(R.UNKNOWN_ACCOUNT, 1), (R.DUPLICATE_TRANSFER_ID, 2),
                            (R.INVALID_VALUE, 3), (R.INSUFFICIENT_COLLATERAL, 3)},
    ("AdminRejected", 37): {(R.UNKNOWN_INSTRUMENT, 1), (R.NO_CHANGE, 0)},
    ("AdminRejected", 38): {(R.UNKNOWN_INSTRUMENT, 1), (R.NO_CHANGE, 0)},
}  # fmt: skip
"""(report, request tag) to every (code, field) that the core can answer with. Instruments cannot
be full: there is room for as many events, and each has one."""

EXPECTED_REPORTS: Final = {
    "AdminAccepted", "LogOnAccepted", "OrderAccepted", "OrderCanceled", "OrderExpired",
    "OrderFilled", "OrderReplaced",
    "EventDefinition", "InstrumentDefinition", "InstrumentStatus", "OrderAdded", "OrderExecuted",
    "OrderReduced", "OrderDeleted", "public OrderReplaced", "Trade",
}  # fmt: skip


def case_of(event: EventOut) -> tuple[str, int, int, int]:
    """Report, request tag, code and field; zeros where the report has none."""
    message = event.message
    is_public_replace = isinstance(message, market_data.OrderReplaced)
    return (
        ("public " if is_public_replace else "") + type(message).__name__,
        getattr(message, "request_tag", 0),
        getattr(message, "code", 0),
        getattr(message, "field", 0),
    )


def first_and_last_seed() -> tuple[int, int]:
    """The range of seeds to run, the last one excluded."""
    first, _, last = SEEDS.partition(":")
    return int(first), int(last)


def generator_of(seed: int) -> Generator:
    """The generator of a seed; neighboring seeds make histories of different kinds."""
    return Generator(Random(seed), sorted(PROFILES)[seed % len(PROFILES)])


def play(seed: int, steps: list[Step], cases: Counter[tuple[str, int, int, int]]) -> Pair:
    """Play the history of a seed, noting its steps and what came out."""
    generator = generator_of(seed)
    random = Random(~seed)
    pair = Pair()
    steps += generator.first()
    for step in steps:
        pair.apply(step)
    while len(steps) < STEP_COUNT:
        steps.append(generator.next(pair.model.state))
        cases.update(case_of(event) for event in pair.apply(steps[-1]))
        if random.random() < 0.5:
            pair.compare()
            if random.random() < 0.03:
                pair.restart()
    pair.compare()
    return pair


def replay(pair: Pair, random: Random) -> None:
    """Replay a history's commands in other records, restoring an image here and there."""
    entries = [
        command.encode() for batch in pair.batches for command in commands_of(batch.commands)
    ]
    engine = Engine()
    events = b""
    done = 0
    while done < len(entries):
        count = random.randint(1, len(entries) - done)
        chunk = b"".join(entries[done : done + count])
        chunk_events, events_crc = engine.replay(done + 1, count, chunk)
        require(crc32(b"".join(event_payloads(chunk_events))) == events_crc, "replay: CRC")
        events += chunk_events
        done += count
        image = engine.image()
        engine = Engine.restore(image)
        require(engine.image() == image, "restoring changes the image")
    require(events == b"".join(batch.events for batch in pair.batches), "replay: events")
    require(engine.digest() == pair.engine.digest(), "replay: digest")
    engine.check()


def watch(pair: Pair) -> None:
    """Books kept from the market data alone are the engine's, order by order, at every command."""
    engine, books = Engine(), PublicBooks()
    number = 0
    for batch in pair.batches:
        for command in commands_of(batch.commands):
            number += 1
            events, _ = engine.replay(number, 1, command.encode())
            books.read_all(events_of(events))
            require(books.digest() == engine.public_digest(), f"public books at {number}")
    channels = [(channel, last + 1) for channel, last in sorted(books.numbers.items())]
    require(channels == engine.channels(), "other channels")


def explain(seed: int, steps: list[Step], error: Difference) -> str:
    """What a person needs to find the difference."""
    shown = shrink(steps) if is_failing(steps) else steps
    lines = [f"{number:4} {describe(step)}" for number, step in enumerate(shown)]
    again = Pair()
    try:
        for step in shown:
            again.apply(step)
            again.compare()
    except Difference as shrunk:
        error = shrunk
    return "\n".join([f"seed {seed}", *lines, str(error)])


def test_random_histories() -> None:
    first, last = first_and_last_seed()
    cases: Counter[tuple[str, int, int, int]] = Counter()
    for seed in range(first, last):
        steps: list[Step] = []
        try:
            pair = play(seed, steps, cases)
            replay(pair, Random(seed))
        except Difference as error:
            pytest.fail(explain(seed, steps, error))
    if last - first >= EVERY_CASE_SEEDS:
        missing = missing_cases(cases)
        assert not missing, f"no history made {missing}"


@pytest.mark.parametrize("seed", range(120))
def test_market_data_alone_tells_the_books(seed: int) -> None:
    watch(play(seed, [], Counter()))


def first_difference() -> tuple[int, list[Step], Difference]:
    """The first of the seeds that fails."""
    for seed in range(20):
        steps: list[Step] = []
        try:
            play(seed, steps, Counter())
        except Difference as error:
            return seed, steps, error
    raise AssertionError("no seed makes a difference")


def test_a_planted_difference_is_found_and_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong limit in the model, as good as one in the engine, ends in a short history."""
    monkeypatch.setattr("tests.model.orders.ORDER_CASH_MAX", 10**15 // 2)
    seed, steps, error = first_difference()
    explained = explain(seed, steps, error).splitlines()
    assert explained[0] == f"seed {seed}"
    assert explained.index("commands") < 20, "the history is shrunk to the set-up and one order"
    assert explained[-2] == "  events of the engine"
    assert f"code={R.QUANTITY_TOO_LARGE}," in explained[-3], "the model refuses the order"


def missing_cases(cases: Counter[tuple[str, int, int, int]]) -> list[str]:
    """Answers that the core can give and none of the histories did."""
    expected = {
        (report, tag, int(code), field)
        for (report, tag), rejects in EXPECTED_CASES.items()
        for code, field in rejects
    }
    expected |= {("AdminRejected", tag, int(R.NOT_PERMITTED), 0) for tag in ADMIN_TAGS}
    seen = set(cases)
    names = {report for report, *_ in seen}
    unexpected = {case for case in seen if case[2]} - expected
    assert not unexpected, f"answers that the contract does not know: {sorted(unexpected)}"
    return [
        f"{report} {tag} {R(code).name} {field}"
        for report, tag, code, field in sorted(expected - seen)
    ] + sorted(EXPECTED_REPORTS - names)


@pytest.mark.parametrize("seed", range(40))
def test_recovery(seed: int) -> None:
    """Both start again from a cut journal, left-over work first, then VenueStarted."""
    pair = play(seed, [], Counter())
    commands = [command for batch in pair.batches for command in commands_of(batch.commands)]
    random = Random(seed)
    leftovers = [number for number, command in enumerate(commands) if is_continuation(command)]
    cut = random.choice(leftovers) if leftovers else random.randint(60, len(commands))
    engine, model = Engine(), Model()
    for number, command in enumerate(commands[:cut], 1):
        model.apply(command)
        engine.replay(number, 1, command.encode())
    assert engine.has_pending == model.has_pending == bool(leftovers)
    compare_rows(engine, model.state)
    require(engine.public_digest() == public_digest(model.state), "another public digest")
    again = Pair(engine, model)
    generator = generator_of(seed)
    generator.clock_ns = model.time_ns + random.choice((0, 1_000_000, 10**10))
    again.apply(Command(FROM_VENUE, 0, 0, 0, 0, generator.clock_ns, encode(VenueStarted())))
    again.compare()
    for _ in range(30):
        again.apply(generator.next(model.state))
        again.compare()


def is_continuation(command: Command) -> bool:
    return command.payload == bytes([0x91, 54])


def test_full_batches() -> None:
    """A full batch refuses the next command without a trace; taken, it goes on."""
    pair = Pair()
    random = Random(1)
    on = Connect(1, "ops", 0, 1000, 0, 0, 0)
    pair.apply(Command(FROM_VENUE, 0, 0, 0, 0, START_NS, encode(genesis(random, "rich"))))
    commands = events = b""
    full_count = 0
    for connection in range(1, 12_001):
        command = Command(FROM_VENUE, 1, connection, 0, 0, START_NS, encode(on))
        pair.sequencer.submit(command)
        if not pair.engine.submit(*command):
            full_count += 1
            batch = pair.engine.take_batch()
            assert len(batch.commands) <= 256 * 1024 - 512
            assert crc32(b"".join(event_payloads(batch.events))) == batch.events_crc
            commands += batch.commands
            events += batch.events
            assert pair.engine.submit(*command) == connection + 1
    batch = pair.engine.take_batch()
    expected = pair.sequencer.take_batch()
    assert full_count >= 2
    assert commands + batch.commands == expected.commands
    assert events + batch.events == expected.events
    assert batch.first_sequence + batch.command_count == pair.engine.sequence + 1


def event_payloads(events: bytes) -> list[bytes]:
    """Payloads of event entries, whose heads are as long as those of commands."""
    payloads = []
    while events:
        length = int.from_bytes(events[:4], "little")
        payloads.append(events[COMMAND_HEAD.size : length])
        events = events[length:]
    return payloads
