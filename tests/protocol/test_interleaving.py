"""The session machine against chance: both ends back to back in any order, and hostile bytes."""

import random
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.codes import TerminateCode
from protocol.errors import RemoteProtocolError
from protocol.framing import (
    CLIENT_FRAME_SIZE_MAX,
    HEADER_SIZE,
    SEQUENCED,
    VENUE_FRAME_SIZE_MAX,
    encode_frame,
)
from protocol.session import Connection, Party, State
from protocol.states import FORMS, ROWS, TRANSITIONS, Service
from protocol.transport import LogOut, SessionReject, StatePositions, StateRequest, Terminate
from tests.protocol.machines import MESSAGES, MS, ORDER, REPORT, START, pair_in, payload_of

# Both ends, in any order of events.

ACTIONS: Final = st.one_of(
    st.tuples(
        st.sampled_from(["order", "report", "log out", "tick", "notice", "state"]), st.just(0)
    ),
    st.tuples(st.sampled_from(["to client", "to venue"]), st.integers(1, 500)),
    st.tuples(st.just("pass"), st.integers(1, 900)),
)


class Wires:
    """Two machines and the bytes between them, driven by hand."""

    def __init__(self) -> None:
        self.client, self.venue = pair_in(State.ESTABLISHED)
        self.now_ns = START
        self.pipes = {self.client: b"", self.venue: b""}
        self.sent: dict[Connection, list[int]] = {self.client: [], self.venue: []}
        self.read: dict[Connection, list[int]] = {self.client: [], self.venue: []}

    def send(self, sender: Connection, message: Any) -> None:
        if type(message) in ROWS[Service.ORDER_ENTRY][sender.party][sender.state] and (
            number := sender.send(message, self.now_ns)
        ):
            self.sent[sender].append(number)

    def carry(self, receiver: Connection, size: int) -> None:
        sender = self.venue if receiver is self.client else self.client
        self.pipes[receiver] += sender.data_to_send()
        data, self.pipes[receiver] = self.pipes[receiver][:size], self.pipes[receiver][size:]
        receiver.receive_data(data, self.now_ns)
        for received in iter(receiver.next_event, None):
            if received.frame.kind == SEQUENCED:
                self.read[receiver].append(received.frame.number)

    def act(self, action: str, amount: int) -> None:
        if action == "order":
            self.send(self.client, ORDER)
        elif action == "report":
            self.send(self.venue, REPORT)
        elif action == "notice":
            self.send(self.venue, SessionReject(1, 10, 20, 0, 0, ""))
            self.send(self.venue, StatePositions(1, [(1, 1, -100)]))
        elif action == "state":
            self.send(self.client, StateRequest())
        elif action == "log out":
            self.send(self.client, LogOut())
        elif action == "to client":
            self.carry(self.client, amount)
        elif action == "to venue":
            self.carry(self.venue, amount)
        elif action == "pass":
            self.now_ns += amount * MS
        else:
            self.client.tick(self.now_ns)
            self.venue.tick(self.now_ns)


@settings(max_examples=300, deadline=None)
@given(st.lists(ACTIONS, max_size=80))
def test_any_interleaving_of_honest_parties_is_free_of_errors(
    actions: list[tuple[str, int]],
) -> None:
    wires = Wires()
    client, venue = wires.client, wires.venue
    for action, amount in actions:
        wires.act(action, amount)
        for reader, writer in ((client, venue), (venue, client)):
            read = wires.read[reader]
            assert read == wires.sent[writer][: len(read)], "in order, nothing twice or left out"
    if venue.state is State.CLOSING:
        venue.terminate(TerminateCode.LOG_OUT, "", wires.now_ns)
    lapsed = State.CLOSED in (client.state, venue.state) and TerminateCode.KEEPALIVE_LAPSED in (
        ended.code for ended in (client.ended, venue.ended) if isinstance(ended, Terminate)
    )
    for receiver in (venue, client):
        wires.carry(receiver, 10**6)
    if not lapsed:
        assert wires.read[client] == wires.sent[venue]
        assert wires.read[venue] == wires.sent[client]


# Hostile bytes.

SEED: Final = 7_101
FRAME_COUNT: Final = 50_000


def mutated(payload: bytes, chance: random.Random) -> bytes:
    """One message, damaged in one of several ways, or not at all."""
    way = chance.randrange(6)
    at = chance.randrange(len(payload))
    if way == 0:
        return payload
    if way == 1:
        return payload[:at]
    if way == 2:
        return payload[:at] + chance.randbytes(1) + payload[at + 1 :]
    if way == 3:
        return payload + chance.randbytes(chance.randrange(1, 9))
    if way == 4:
        return b"\x91" * chance.randrange(1, 3_000)
    return chance.randbytes(chance.randrange(40))


def hostile_frame(machine: Connection, chance: random.Random) -> bytes:
    """What a hostile peer may send: mostly near to what is allowed, so that it gets far."""
    sender = Party.VENUE if machine.party is Party.CLIENT else Party.CLIENT
    service = machine.service
    messages = MESSAGES[service][sender]
    allowed = [messages[step] for step in TRANSITIONS[service][sender][machine.state]]
    everything = [*messages.values()]
    message = chance.choice(allowed if allowed and chance.random() < 0.9 else everything)
    kind = FORMS[service][sender][type(message)].kind
    if chance.random() < 0.05:
        kind = chance.randrange(7)
    number = machine.last_received + 1 + chance.choice([0, 0, 0, 0, 0, 0, -1, 1, 2**61])
    frame = encode_frame(kind, max(0, number), mutated(payload_of(message), chance))
    if chance.random() < 0.02:
        at = chance.randrange(HEADER_SIZE)
        frame = frame[:at] + chance.randbytes(1) + frame[at + 1 :]
    return frame


def check_unread(machine: Connection) -> None:
    """What waits for the rest of its frame is less than the largest frame."""
    unread = machine.take_unread()
    is_client = machine.party is Party.CLIENT
    assert len(unread) < (VENUE_FRAME_SIZE_MAX if is_client else CLIENT_FRAME_SIZE_MAX)
    machine.receive_data(unread, START)


@pytest.mark.parametrize("service", Service)
@pytest.mark.parametrize("party", Party)
def test_hostile_frames_end_in_a_message_a_reject_or_a_named_error(
    service: Service, party: Party
) -> None:
    print(f"seed {SEED}")
    chance = random.Random(SEED)
    counts = dict.fromkeys(["message", "answer", "nothing", "error", *State], 0)
    machine = Connection(party, START, service)
    for _ in range(FRAME_COUNT):
        if machine.state is State.CLOSED:
            state = chance.choice([*State][:-1])
            machine = pair_in(state, service)[0 if party is Party.CLIENT else 1]
        counts[machine.state] += 1
        machine.receive_data(hostile_frame(machine, chance), START)
        try:
            received = machine.next_event()
        except RemoteProtocolError:
            counts["error"] += 1
            assert machine.ended_by is party
        else:
            answer = machine.data_to_send()
            counts["message" if received else "answer" if answer else "nothing"] += 1
            if received is None:
                check_unread(machine)
    del counts[State.CLOSED]
    if party is Party.CLIENT:
        assert counts.pop("answer") == 0, "a client answers no frame by itself"
    rarest = 1_000 if service is Service.FEED else 200  # Without numbers, no frame is a duplicate.
    assert min(counts.values()) > FRAME_COUNT // rarest, counts
