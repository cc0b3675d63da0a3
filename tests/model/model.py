"""The executable specification: one sequenced command in, its events out; and the sequencer.

The rules of the core as a slow, simple model: everything is computed from scratch with `sorted`,
`sum` and `min` over plain dicts and lists; no cache, no index, no running total. The compiled
engine must agree with it event for event, byte for byte.

`Model.apply` asserts what the sequencer owes it. `Sequencer` keeps the order: due deadlines
first, then the command, and what a command leaves over directly after it.
"""

import zlib
from typing import Final, NamedTuple

from msgspec import Struct
from msgspec.msgpack import Decoder, encode

from protocol.order_entry import CancelOrder, NewOrder, ReplaceOrder
from protocol.records import (
    COMMAND_HEAD,
    FROM_CLIENT,
    FROM_VENUE,
    Connect,
    Continuation,
    Disconnect,
    Genesis,
    TimeAdvance,
    VenueStarted,
)
from tests.model.admin import AdminMessage, administer
from tests.model.matching import match
from tests.model.orders import cancel_order, new_order, replace_order
from tests.model.reference import record_venue
from tests.model.sessions import (
    advance_time,
    connect,
    continue_canceling,
    disconnect,
    next_deadline,
    start_venue,
)
from tests.model.state import EventOut, Key, Participant, Request, State

__all__ = ["Batch", "Command", "Model", "Sequencer", "decode"]

NO_THROTTLE: Final = 65535

ClientMessage = NewOrder | CancelOrder | ReplaceOrder | AdminMessage
VenueMessage = Genesis | Connect | Disconnect | TimeAdvance | Continuation | VenueStarted

decode: Final = Decoder(ClientMessage | VenueMessage).decode
"""Payload to message; the payload may be shorter than the message, defaults fill it up."""


class Command(NamedTuple):
    """One sequenced command: envelope and payload as it came."""

    kind: int
    session: int
    connection: int
    number: int
    gateway_time_ns: int
    time_ns: int
    payload: bytes

    def encode(self) -> bytes:
        """The command entry: head and payload."""
        length = COMMAND_HEAD.size + len(self.payload)
        head = COMMAND_HEAD.pack(
            length,
            self.kind,
            0,
            NO_THROTTLE,
            self.session,
            self.connection,
            self.number,
            self.gateway_time_ns,
            self.time_ns,
        )
        return head + self.payload


class Model:
    """The venue. `state` exists from Genesis on."""

    def __init__(self) -> None:
        self._state: State | None = None

    @property
    def state(self) -> State:
        """All that the venue knows."""
        assert self._state is not None, "Genesis comes first"
        return self._state

    @property
    def sequence(self) -> int:
        """Number of the last applied command, 0 before Genesis."""
        return 0 if self._state is None else self._state.sequence

    @property
    def time_ns(self) -> int:
        """Time of the last applied command, 0 before Genesis."""
        return 0 if self._state is None else self._state.time_ns

    @property
    def has_pending(self) -> bool:
        """Whether the next command must be a Continuation."""
        return self._state is not None and (
            self._state.incoming is not None or self._state.canceling is not None
        )

    @property
    def next_deadline_ns(self) -> int | None:
        """When the next deadline is due, None for never."""
        deadline = None if self._state is None else next_deadline(self._state)
        return None if deadline is None else deadline[0]

    def is_deadline_due(self, time_ns: int) -> bool:
        """Whether a TimeAdvance must come before a command of this time."""
        return self.next_deadline_ns is not None and self.next_deadline_ns <= time_ns

    def apply(self, command: Command) -> list[EventOut]:
        """Apply the next command and return its events."""
        message = decode(command.payload)
        if self._state is None:
            assert isinstance(message, Genesis), "Genesis comes first"
            self._state = begin(message)
        state = self._state
        self._check_order(command, message)
        state.sequence += 1
        state.time_ns = command.time_ns
        state.outbox = []
        if command.kind == FROM_CLIENT:
            apply_client(state, command, message)
        else:
            apply_venue(state, command, message)
        return state.outbox

    def _check_order(self, command: Command, message: Struct) -> None:
        assert command.time_ns >= self.time_ns, "time never decreases"
        assert isinstance(message, Continuation) == self.has_pending, "left-over work comes first"
        if isinstance(message, TimeAdvance):
            assert self.is_deadline_due(command.time_ns), "a TimeAdvance has work to do"
        elif not isinstance(message, Continuation | VenueStarted):
            assert not self.is_deadline_due(command.time_ns), "due deadlines come first"


def begin(message: Genesis) -> State:
    """The state after Genesis: the venue is participant 1 and has key 1."""
    state = State(limits=message)
    state.participants[1] = Participant(1, message.venue)
    state.keys[1] = Key(1, 1, message.admin_key, roles=16)
    return state


def apply_client(state: State, command: Command, message: Struct) -> None:
    """Apply a numbered frame of a session."""
    state.sessions[command.session].last_client_number = command.number
    request = Request(
        command.session,
        command.number,
        command.gateway_time_ns,
        getattr(message, "client_time_ns", 0),
    )
    match message:
        case NewOrder():
            new_order(state, message, request)
        case CancelOrder():
            cancel_order(state, message, request)
        case ReplaceOrder():
            replace_order(state, message, request)
        case _:
            assert isinstance(message, AdminMessage), "a client sends nothing else"
            administer(state, message, request)


def apply_venue(state: State, command: Command, message: Struct) -> None:
    """Apply a command that the sequencer made."""
    match message:
        case Genesis():
            assert state.sequence == 1, "Genesis comes once"
            record_venue(state)
        case Connect():
            connect(state, message, command.session, command.connection)
        case Disconnect():
            disconnect(state, message, command.session, command.connection)
        case TimeAdvance():
            advance_time(state)
        case Continuation():
            continue_work(state)
        case _:
            assert isinstance(message, VenueStarted), "the sequencer makes nothing else"
            start_venue(state)


def continue_work(state: State) -> None:
    """Go on with what the command before left over."""
    if state.incoming is not None:
        match_order, request = state.incoming
        match(state, match_order, request)
    else:
        continue_canceling(state)


class Batch(NamedTuple):
    """Command and event entries since the last batch; the CRC is over the event payloads."""

    first_sequence: int
    command_count: int
    commands: bytes
    events: bytes
    events_crc: int


class Sequencer:
    """Orders commands: due deadlines, then the command, each directly followed by what it left.

    A model may come from a replay that ended before the continuation of its last command.
    """

    def __init__(self, model: Model | None = None) -> None:
        self.model = Model() if model is None else model
        self._commands: list[Command] = []
        self._events: list[list[EventOut]] = []

    def submit(self, envelope: Command) -> list[EventOut]:
        """Sequence a command (its `time_ns` is the clock) and return all events that it led to."""
        first = len(self._events)
        time_ns = max(envelope.time_ns, self.model.time_ns)
        self._finish_pending(time_ns)
        if not isinstance(decode(envelope.payload), VenueStarted):
            self.advance(time_ns)
        self._apply(envelope._replace(time_ns=time_ns))
        self._finish_pending(time_ns)
        return [event for events in self._events[first:] for event in events]

    def advance(self, now_ns: int) -> list[EventOut]:
        """Sequence due deadlines as of now."""
        first = len(self._events)
        time_ns = max(now_ns, self.model.time_ns)
        self._finish_pending(time_ns)
        while self.model.is_deadline_due(time_ns):
            self._apply(from_venue(TimeAdvance(), time_ns))
            self._finish_pending(time_ns)
        return [event for events in self._events[first:] for event in events]

    def take_batch(self) -> Batch:
        """The entries of everything sequenced since the last call."""
        commands, events = self._commands, [event for group in self._events for event in group]
        self._commands, self._events = [], []
        payloads = b"".join(encode(event.message) for event in events)
        return Batch(
            self.model.sequence - len(commands) + 1,
            len(commands),
            b"".join(command.encode() for command in commands),
            b"".join(event.encode() for event in events),
            zlib.crc32(payloads),
        )

    def _finish_pending(self, time_ns: int) -> None:
        while self.model.has_pending:
            self._apply(from_venue(Continuation(), time_ns))

    def _apply(self, command: Command) -> None:
        self._events.append(self.model.apply(command))
        self._commands.append(command)


def from_venue(message: Struct, time_ns: int) -> Command:
    """A command of the sequencer's own."""
    return Command(FROM_VENUE, 0, 0, 0, 0, time_ns, encode(message))
