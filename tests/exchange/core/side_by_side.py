"""Engine and model side by side: the same steps into both, everything that comes out compared.

`Pair` applies steps and raises `Difference`, an assertion with both sides' events in readable
form. `shrink` takes steps out of a failing history as long as it fails in the same way.
"""

from collections.abc import Callable, Iterable, Iterator
from struct import Struct, pack
from typing import Final

from msgspec import Raw
from msgspec.msgpack import Decoder, decode

from exchange.core.engine import Batch, Engine
from protocol import admin, market_data, order_entry, records, transport
from protocol.order_entry import Report
from protocol.records import COMMAND_HEAD, EVENT_HEAD, MARKET_DATA
from tests.exchange.core.strategies import Step, describe
from tests.model import model
from tests.model.checks import book_digest, check_invariants, public_digest
from tests.model.collateral import available
from tests.model.model import Command, Model, Sequencer
from tests.model.state import EventOut, Order, State

__all__ = [
    "Difference",
    "Pair",
    "commands_of",
    "compare_rows",
    "describe_commands",
    "describe_events",
    "events_of",
    "is_failing",
    "require",
    "shrink",
]

TRIALS_MAX: Final = 600
"""Histories that `shrink` tries at most."""

REPORTS: Final = {
    struct.__struct_config__.tag: struct
    for module in (admin, market_data, order_entry, records, transport)
    for struct in vars(module).values()
    if isinstance(struct, type) and issubclass(struct, Report) and struct is not Report
}


class Difference(AssertionError):
    """Engine and model disagree, or a rule that both must keep is broken."""


def entries(buffer: bytes, head: Struct) -> Iterator[tuple[tuple[int, ...], bytes]]:
    """Head fields and payload of each entry."""
    offset = 0
    while offset < len(buffer):
        fields = head.unpack_from(buffer, offset)
        yield fields, buffer[offset + head.size : offset + fields[0]]
        offset += fields[0]


def commands_of(buffer: bytes) -> list[Command]:
    """Command entries as the model takes them."""
    return [
        Command(kind, session, connection, number, gateway_time_ns, time_ns, payload)
        for (
            _,
            kind,
            _,
            _,
            session,
            connection,
            number,
            gateway_time_ns,
            time_ns,
        ), payload in entries(buffer, COMMAND_HEAD)
    ]


def describe_commands(buffer: bytes) -> str:
    """One line per command entry."""
    return "\n".join(f"    {describe(command)}" for command in commands_of(buffer))


def events_of(buffer: bytes) -> list[EventOut]:
    """Event entries with their messages decoded."""
    events = []
    for (_, kind, flags, channel, *rest), payload in entries(buffer, EVENT_HEAD):
        assert flags == 0, "nothing uses them yet"
        assert (1 <= channel <= 64) == (kind == MARKET_DATA), "public events have a channel"
        [tag, *_] = decode(payload, type=list[Raw])
        message = Decoder(REPORTS[decode(tag)]).decode(payload)
        session, connection, number, sequence, time_ns = rest
        events.append(
            EventOut(kind, session, connection, number, sequence, time_ns, message, channel)
        )
    return events


def describe_events(buffer: bytes) -> str:
    """One line per event entry."""
    return "\n".join(f"    {event}" for event in events_of(buffer))


class Pair:
    """An engine and a model with the same history."""

    def __init__(self, engine: Engine | None = None, replayed: Model | None = None) -> None:
        self.engine = Engine() if engine is None else engine
        self.sequencer = Sequencer(replayed)
        self.batches: list[Batch] = []

    @property
    def model(self) -> Model:
        """The model."""
        return self.sequencer.model

    def apply(self, step: Step) -> list[EventOut]:
        """Apply a step to the model and then to the engine; returns the model's events."""
        if isinstance(step, int):
            events = self.sequencer.advance(step)
        else:
            events = self.sequencer.submit(step)
        try:
            check_invariants(self.model.state)
            if isinstance(step, int):
                done = self.engine.advance(step)
            else:
                done = self.engine.submit(*step) > 0
        except AssertionError as error:
            raise Difference(f"assertion: {error}") from error
        require(done, "the engine's batch is full")
        return events

    def compare(self) -> None:
        """Close the batch on both sides; bytes, books and balances must be the same."""
        expected = self.sequencer.take_batch()
        if expected.command_count:
            require(self.engine.batch_count > 0, "the engine has made no command")
            actual = self.engine.take_batch()
            self.batches.append(actual)
            compare_batches(expected, actual)
        require(self.engine.sequence == self.model.sequence, "another number of commands")
        require(self.engine.time_ns == self.model.time_ns, "another time")
        deadline_ns = self.model.next_deadline_ns or 0
        require(self.engine.next_deadline_ns == deadline_ns, "another next deadline")
        state = self.model.state
        require(self.engine.book_digest() == book_digest(state), "another book digest")
        require(self.engine.public_digest() == public_digest(state), "another public digest")
        channels = [(one, count + 1) for one, count in sorted(state.public_counts.items())]
        require(self.engine.channels() == channels, "other channels or numbers")
        require(self.engine.open_order_count == len(state.resting), "another number of orders")
        for account_id in state.accounts:
            expected_available = available(state, account_id)
            require(
                self.engine.available(account_id) == expected_available,
                f"account {account_id} has {expected_available} available in the model, "
                f"{self.engine.available(account_id)} in the engine",
            )

        compare_rows(self.engine, state)

    def restart(self) -> None:
        """Go on with an engine restored from the image of the old one."""
        image = self.engine.image()
        self.engine = Engine.restore(image)
        require(self.engine.image() == image, "restoring changes the image")


def require(condition: bool, text: str) -> None:
    """Raise `Difference` unless the condition holds."""
    if not condition:
        raise Difference(text)


def compare_rows(engine: Engine, state: State) -> None:
    """Raise `Difference` unless the rows of a state image are those of the model."""
    for session_id in state.sessions:
        orders = [
            (
                order.order_id,
                order.client_order_id,
                order.instrument_id,
                order.account_id,
                order.side,
                order.price or 0,
                order.leaves,
                order.cumulative,
                order.time_in_force,
                order.expire_time_ns,
            )
            for order in sorted(open_orders_of(state, session_id), key=lambda one: one.order_id)
        ]
        require(
            engine.session_orders(session_id) == words_of(orders),
            f"other orders of session {session_id}",
        )
    for participant_id in state.participants:
        accounts = [one for one in state.accounts.values() if one.participant_id == participant_id]
        positions = [
            (account_id, instrument_id, quantity)
            for (account_id, instrument_id), quantity in sorted(state.positions.items())
            if quantity and state.accounts[account_id] in accounts
        ]
        balances = [
            (one.account_id, one.cash, one.cash - available(state, one.account_id))
            for one in accounts
        ]
        require(
            engine.participant_positions(participant_id) == words_of(positions),
            f"other positions of participant {participant_id}",
        )
        require(
            engine.participant_balances(participant_id) == words_of(balances),
            f"other balances of participant {participant_id}",
        )


def open_orders_of(state: State, session_id: int) -> list[Order]:
    """Resting orders of a session, and the one that is still to be matched."""
    orders = [order for order in state.resting if order.session_id == session_id]
    if state.incoming is not None and state.incoming[0].session_id == session_id:
        orders.append(state.incoming[0])
    return orders


def words_of(rows: Iterable[tuple[int, ...]]) -> bytes:
    """Rows as little-endian signed 64-bit words."""
    words = [word for row in rows for word in row]
    return pack(f"<{len(words)}q", *words)


def compare_batches(expected: model.Batch, actual: Batch) -> None:
    """Raise `Difference` with both sides unless the batches are the same, byte for byte."""
    if expected.commands != actual.commands:
        raise Difference(
            f"commands\n  model\n{describe_commands(expected.commands)}"
            f"\n  engine\n{describe_commands(actual.commands)}"
        )
    if expected.events != actual.events:
        raise Difference(
            f"commands\n{describe_commands(expected.commands)}"
            f"\n  events of the model\n{describe_events(expected.events)}"
            f"\n  events of the engine\n{describe_events(actual.events)}"
        )
    require(tuple(expected) == tuple(actual), "another first sequence, count or CRC")


def is_failing(steps: list[Step]) -> bool:
    """Whether the steps, as far as the model takes them, make a difference."""
    pair = Pair()
    try:
        for step in steps:
            pair.apply(step)
            pair.compare()
    except Difference:
        return True
    except (AssertionError, KeyError):
        return False  # A step makes no sense to the model any more.
    return False


def shrink(steps: list[Step], fails: Callable[[list[Step]], bool] = is_failing) -> list[Step]:
    """Fewer steps that still fail: runs of them are taken out, long runs first."""
    trial_count = 0
    length = len(steps) // 2
    while length >= 1:
        start = 0
        while start < len(steps) and trial_count < TRIALS_MAX:
            fewer = steps[:start] + steps[start + length :]
            trial_count += 1
            if fails(fewer):
                steps = fewer
            else:
                start += length
        length //= 2
    return steps
