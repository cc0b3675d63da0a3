"""The session machine: the table, the log-on, numbers, the cut, keepalive and the end."""

import itertools
from typing import Any, Final, get_args

import msgspec
import pytest

from protocol.codes import RejectCode, TerminateCode
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.feed import FeedRequest, LogPiece, PacketPiece
from protocol.framing import (
    CLIENT_FRAME_SIZE_MAX,
    LOG,
    PACKET,
    SEQUENCED,
    SESSION,
    UNSEQUENCED,
    Frame,
    FrameReader,
    encode_frame,
)
from protocol.order_entry import CancelOrder
from protocol.session import (
    KEEPALIVE_MS_MAX,
    KEEPALIVE_MS_MIN,
    LOG_ON_TIMEOUT_NS,
    Party,
    Received,
    Service,
    State,
)
from protocol.states import FORMS, ROWS, TRANSITIONS, Step
from protocol.transport import (
    Heartbeat,
    LogOn,
    LogOut,
    NotApplied,
    SessionReject,
    StateRequest,
    Terminate,
    VenueHeartbeat,
)
from protocol.wire import (
    ClientMessage,
    ClientSessionMessage,
    FeedMessage,
    VenueMessage,
    VenueSessionMessage,
    encode,
)
from tests.protocol.machines import (
    HELLO,
    LOG_ON,
    MESSAGES,
    MS,
    ORDER,
    REPORT,
    START,
    accepted,
    deliver,
    pair_in,
    payload_of,
    sent_by,
)

# The table.


COMBINATIONS: Final = tuple(itertools.product(Service, Party, State, Step))


@pytest.mark.parametrize("service", Service)
def test_the_table_is_complete_and_leads_somewhere(service: Service) -> None:
    transitions, all_forms = TRANSITIONS[service], FORMS[service]
    for party in Party:
        assert list(transitions[party]) == list(State)
        forms = {form.step for form in all_forms[party].values()}
        assert forms == set(MESSAGES[service][party]), "every step is tried"
        for state, row in transitions[party].items():
            assert set(row) <= forms, f"{party} {state}: a step without a message"
            assert (Step.TERMINATE in row) == (state is not State.CLOSED)
            assert ROWS[service][party][state].keys() == {
                message for message, form in all_forms[party].items() if form.step in row
            }


def test_every_message_has_a_form() -> None:
    shared = {*get_args(ClientSessionMessage)} - {StateRequest}
    pieces = {PacketPiece, LogPiece}
    assert {
        (Service.ORDER_ENTRY, Party.CLIENT): {*get_args(ClientMessage)},
        (Service.ORDER_ENTRY, Party.VENUE): {*get_args(VenueMessage)},
        (Service.FEED, Party.CLIENT): shared | {*get_args(FeedRequest)},
        (Service.FEED, Party.VENUE): {*get_args(VenueSessionMessage | FeedMessage)} | pieces,
    } == {(service, party): set(FORMS[service][party]) for service in Service for party in Party}
    steps = {step for tables in MESSAGES.values() for party in Party for step in tables[party]}
    assert steps == set(Step)


@pytest.mark.parametrize(("service", "party", "state", "step"), COMBINATIONS)
def test_every_step_is_allowed_or_a_named_error(
    service: Service, party: Party, state: State, step: Step
) -> None:
    client, venue = pair_in(state, service)
    sender, receiver = (client, venue) if party is Party.CLIENT else (venue, client)
    message = MESSAGES[service][party].get(step)
    if message is None:  # The other party's: we cannot send it, and no frame of ours can hold it.
        for tables in MESSAGES.values():
            if other := tables[receiver.party].get(step) or tables[party].get(step):
                with pytest.raises(LocalProtocolError, match="cannot send"):
                    sender.send(other, START)
        return
    target = TRANSITIONS[service][party][state].get(step)
    if target is None:
        with pytest.raises(LocalProtocolError, match=f"when {state.value}"):
            sender.send(message, START)
        assert sender.data_to_send() == b""
    else:
        sender.send(message, START)
        assert sender.state is target
    kind = FORMS[service][party][type(message)].kind
    number = {PACKET: 1, LOG: 9}.get(kind, receiver.last_received + 1)
    receiver.receive_data(encode_frame(kind, number, payload_of(message)), START)
    if target is not None:
        received = receiver.next_event()
        assert received is not None
        assert received.message == message
        assert receiver.state is target
    elif state is State.CLOSED:
        assert receiver.next_event() is None
    else:
        with pytest.raises(RemoteProtocolError) as caught:
            receiver.next_event()
        assert caught.value.code is TerminateCode.PROTOCOL_VIOLATION
        assert state.value in caught.value.text
        assert receiver.state is State.CLOSED
        assert sent_by(receiver) == [Terminate(caught.value.code, caught.value.text)]


# Log-on.


def test_a_log_on_starts_both_directions_where_the_venue_says() -> None:
    client, venue = pair_in(State.ESTABLISHED, next_number=41, last_client_number=7)
    assert (client.next_number, client.last_received) == (8, 40)
    assert (venue.next_number, venue.last_received) == (41, 7)
    assert client.keepalive_ms == venue.keepalive_ms == 1_000
    assert client.hello == venue.hello == HELLO
    assert client.send(ORDER, START) == 8
    assert deliver(client, venue) == [ORDER]
    assert venue.send(REPORT, START) == 41
    assert deliver(venue, client) == [REPORT]


def test_frames_that_are_not_numbered_carry_the_next_number() -> None:
    client, venue = pair_in(State.ESTABLISHED, next_number=41, last_client_number=7)
    client.send(Heartbeat(40), START)
    venue.receive_data(client.data_to_send(), START)
    received = venue.next_event()
    assert received == Received(
        Heartbeat(40), Frame(SESSION, 0, 8, START, 0, encode(Heartbeat(40)))
    )


REFUSED: Final = (
    ({"major": 2}, RejectCode.VERSION, "major", 1),
    ({"keepalive_ms": 99}, RejectCode.KEEPALIVE_OUT_OF_RANGE, "keepalive_ms", KEEPALIVE_MS_MIN),
    ({"keepalive_ms": 30_001}, RejectCode.KEEPALIVE_OUT_OF_RANGE, "keepalive_ms", KEEPALIVE_MS_MAX),
    (
        {"cancel_on_disconnect": 4},
        RejectCode.CANCEL_ON_DISCONNECT_OUT_OF_RANGE,
        "cancel_on_disconnect",
        3,
    ),
    (
        {"cancel_grace_ms": 60_001},
        RejectCode.CANCEL_ON_DISCONNECT_OUT_OF_RANGE,
        "cancel_grace_ms",
        60_000,
    ),
    ({"session": "a b"}, RejectCode.BAD_SESSION_NAME, "session", 0),
    ({"session": ""}, RejectCode.BAD_SESSION_NAME, "session", 0),
    ({"signature": b"short"}, RejectCode.INVALID_MESSAGE, "signature", 0),
    ({"key": bytes(33)}, RejectCode.INVALID_MESSAGE, "key", 0),
)


@pytest.mark.parametrize(("changes", "code", "field", "limit"), REFUSED)
def test_a_log_on_that_cannot_be_is_refused(
    changes: dict[str, Any], code: RejectCode, field: str, limit: int
) -> None:
    client, venue = pair_in(State.GREETED)
    client.send(msgspec.structs.replace(LOG_ON, **changes), START)
    assert deliver(client, venue) == []
    assert venue.state is State.CLOSED
    [rejected] = deliver(venue, client)
    assert (rejected.code, rejected.limit) == (code, limit)
    assert rejected.field == 1 + LogOn.__struct_fields__.index(field)
    assert rejected.text.startswith((f"{field}: ", f"LogOn.{field}: "))
    assert client.state is State.CLOSED
    assert client.ended == venue.ended == rejected
    assert client.ended_by is venue.ended_by is Party.VENUE


@pytest.mark.parametrize("changes", [{"keepalive_ms": 0}, {"next_number": 0}])
def test_an_acceptance_out_of_range_is_nobodys(changes: dict[str, int]) -> None:
    client, venue = pair_in(State.AUTHENTICATING)
    with pytest.raises(LocalProtocolError):
        venue.send(accepted(Service.ORDER_ENTRY, **changes), START)
    assert venue.state is State.AUTHENTICATING
    answer = accepted(Service.ORDER_ENTRY, **changes)
    client.receive_data(encode_frame(SESSION, 1, encode(answer)), START)
    with pytest.raises(RemoteProtocolError):
        client.next_event()


# Numbers.


def test_a_duplicate_command_is_dropped() -> None:
    client, venue = pair_in(State.ESTABLISHED, last_client_number=5)
    for number in (0, 1, 5):
        venue.receive_data(encode_frame(SEQUENCED, number, encode(ORDER)), START)
        assert venue.next_event() is None
    assert venue.duplicate_count == 3
    assert venue.data_to_send() == b""
    client.send(ORDER, START)
    assert deliver(client, venue) == [ORDER]


def test_a_gap_in_commands_is_told_and_the_command_processed() -> None:
    _, venue = pair_in(State.ESTABLISHED, last_client_number=5)
    venue.receive_data(encode_frame(SEQUENCED, 9, encode(ORDER)), START)
    received = venue.next_event()
    assert received is not None
    assert received.message == ORDER
    assert received.frame.number == 9
    assert sent_by(venue) == [NotApplied(6, 3)]
    assert venue.last_received == 9


def test_a_gap_in_reports_is_the_venues_defect() -> None:
    client, _ = pair_in(State.ESTABLISHED, next_number=5)
    client.receive_data(encode_frame(SEQUENCED, 4, encode(REPORT)), START)
    assert client.next_event() is None
    assert client.duplicate_count == 1
    client.receive_data(encode_frame(SEQUENCED, 6, encode(REPORT)), START)
    with pytest.raises(RemoteProtocolError, match="report 6 came instead of 5"):
        client.next_event()
    assert [type(message) for message in sent_by(client)] == [Terminate]


def test_an_invalid_command_is_refused_and_takes_its_number() -> None:
    _, venue = pair_in(State.ESTABLISHED)
    bad = msgspec.msgpack.encode([10, 1, 1, 1, 1, "price", 100])
    venue.receive_data(
        encode_frame(SEQUENCED, 1, bad) + encode_frame(SEQUENCED, 2, encode(ORDER)), START
    )
    received = venue.next_event()
    assert received is not None
    assert received.message == ORDER
    [reject] = sent_by(venue)
    assert isinstance(reject, SessionReject)
    assert (reject.number, reject.request_tag, reject.field) == (1, 10, 5)
    assert reject.code == RejectCode.INVALID_MESSAGE
    assert reject.retry_after_ns == 0


def test_an_unknown_tag_from_the_venue_is_skipped_and_counted() -> None:
    client, venue = pair_in(State.ESTABLISHED)
    news = msgspec.msgpack.encode([999, "news"])
    for number, kind in ((1, SESSION), (1, SEQUENCED), (2, UNSEQUENCED)):
        client.receive_data(encode_frame(kind, number, news), START)
        assert client.next_event() is None
    assert client.unknown_count == 3
    assert client.last_received == 1
    venue.numbers_sent(2, START)
    venue.send(REPORT, START)
    assert deliver(venue, client) == [REPORT]


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (SESSION, b"\x92\x43\xa0"),
        (SEQUENCED, b"\x91\x50"),
        (UNSEQUENCED, b""),
        (SEQUENCED, b"\xc1"),
    ],
)
def test_an_invalid_message_from_the_venue_ends_the_connection(kind: int, payload: bytes) -> None:
    client, _ = pair_in(State.ESTABLISHED)
    client.receive_data(encode_frame(kind, 1, payload), START)
    with pytest.raises(RemoteProtocolError) as caught:
        client.next_event()
    assert caught.value.code is TerminateCode.MALFORMED


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x91\x63", b"\x92\x03\xa0"])
def test_an_invalid_session_message_of_a_client_ends_the_connection(payload: bytes) -> None:
    _, venue = pair_in(State.ESTABLISHED)
    venue.receive_data(encode_frame(SESSION, 1, payload), START)
    with pytest.raises(RemoteProtocolError) as caught:
        venue.next_event()
    assert caught.value.code is TerminateCode.MALFORMED
    [terminate] = sent_by(venue)
    assert terminate == Terminate(TerminateCode.MALFORMED, caught.value.text)


def test_a_client_sends_no_unsequenced_frames() -> None:
    _, venue = pair_in(State.ESTABLISHED)
    venue.receive_data(encode_frame(UNSEQUENCED, 1, encode(ORDER)), START)
    with pytest.raises(RemoteProtocolError, match="PROTOCOL_VIOLATION: an unsequenced frame"):
        venue.next_event()


# The cut: an owner that scans and numbers by itself.


def test_an_owner_takes_the_rest_and_gives_session_frames_back() -> None:
    client, venue = pair_in(State.AUTHENTICATING)
    venue.send(accepted(next_number=11, last_client_number=3), START)
    deliver(venue, client)
    for _ in range(3):
        client.send(ORDER, START)
    client.send(Heartbeat(10), START)
    data = client.data_to_send()
    venue.receive_data(data[:50], START)
    assert venue.take_unread() == data[:50]
    scanner = FrameReader(CLIENT_FRAME_SIZE_MAX)
    scanner.feed(data)
    *orders, beat = iter(scanner.next_frame, None)
    assert [frame.number for frame in orders] == [4, 5, 6]
    venue.numbers_received(6, START + MS)
    assert venue.receive_frame(beat, START + 2 * MS) == Received(Heartbeat(10), beat)
    venue.numbers_sent(14, START + 3 * MS)
    venue.tick(START + 1_003 * MS)
    assert sent_by(venue) == [VenueHeartbeat(6)]
    venue.receive_frame(Frame(SESSION, 0, 7, 0, 0, encode(LogOut())), START + 1_004 * MS)
    assert venue.state is State.CLOSING
    assert venue.send(REPORT, START + 1_005 * MS) == 14


def test_an_owner_cannot_go_back() -> None:
    _, venue = pair_in(State.ESTABLISHED, next_number=11, last_client_number=3)
    with pytest.raises(LocalProtocolError, match="number 2 is below 3"):
        venue.numbers_received(2, START)
    with pytest.raises(LocalProtocolError, match="number 10 is below 11"):
        venue.numbers_sent(10, START)


def test_a_bad_frame_of_the_owners_scanner_ends_the_connection() -> None:
    _, venue = pair_in(State.ESTABLISHED)
    with pytest.raises(RemoteProtocolError):
        venue.receive_frame(Frame(UNSEQUENCED, 0, 1, 0, 0, b""), START)
    assert venue.state is State.CLOSED
    assert venue.receive_frame(Frame(SESSION, 0, 1, 0, 0, encode(LogOut())), START) is None


# The clock.


@pytest.mark.parametrize("party", Party)
@pytest.mark.parametrize("state", [State.CONNECTED, State.GREETED, State.AUTHENTICATING])
def test_a_late_log_on_ends_the_connection(party: Party, state: State) -> None:
    client, venue = pair_in(state)
    machine = client if party is Party.CLIENT else venue
    if party is Party.VENUE and state is State.AUTHENTICATING:
        assert machine.deadline_ns() == 0  # It is the venue that is awaited.
        return
    assert machine.deadline_ns() == START + LOG_ON_TIMEOUT_NS
    machine.tick(START + LOG_ON_TIMEOUT_NS - 1)
    assert machine.data_to_send() == b""
    machine.tick(START + LOG_ON_TIMEOUT_NS)
    assert machine.state is State.CLOSED
    [terminate] = sent_by(machine)
    assert terminate.code == TerminateCode.LOG_ON_TIMEOUT
    assert terminate.text == "no log-on within 5000 ms"
    assert machine.deadline_ns() == 0


@pytest.mark.parametrize("party", Party)
def test_an_idle_party_beats_once_per_interval(party: Party) -> None:
    client, venue = pair_in(State.ESTABLISHED, next_number=5, last_client_number=3)
    idle, peer = (client, venue) if party is Party.CLIENT else (venue, client)
    for turn in range(1, 5):
        now_ns = START + turn * 1_000 * MS
        assert idle.deadline_ns() == now_ns
        idle.tick(now_ns - 1)
        assert idle.data_to_send() == b""
        idle.tick(now_ns)
        beat: Any = Heartbeat(4) if party is Party.CLIENT else VenueHeartbeat(3)
        assert deliver(idle, peer, now_ns) == [beat]
        peer.send(Heartbeat(4) if peer is client else VenueHeartbeat(3), now_ns)
        deliver(peer, idle, now_ns)
    assert idle.state is State.ESTABLISHED


@pytest.mark.parametrize("party", Party)
def test_what_is_sent_puts_the_heartbeat_off(party: Party) -> None:
    client, venue = pair_in(State.ESTABLISHED)
    machine = client if party is Party.CLIENT else venue
    machine.send(ORDER if party is Party.CLIENT else REPORT, START + 400 * MS)
    assert machine.deadline_ns() == START + 1_400 * MS
    machine.numbers_sent(machine.next_number, START + 500 * MS)
    assert machine.deadline_ns() == START + 1_500 * MS


@pytest.mark.parametrize("party", Party)
def test_three_silent_intervals_end_the_connection(party: Party) -> None:
    client, venue = pair_in(State.ESTABLISHED)
    machine = client if party is Party.CLIENT else venue
    machine.receive_data(b"\x01", START + 500 * MS)  # Any byte is a sign of life.
    assert machine.next_event() is None
    for turn in range(1, 4):
        machine.tick(START + turn * 1_000 * MS)
    machine.data_to_send()
    machine.tick(START + 3_500 * MS - 1)
    assert machine.ended is None
    machine.tick(START + 3_500 * MS)
    assert machine.state is State.CLOSED
    [terminate] = sent_by(machine)
    assert terminate.code == TerminateCode.KEEPALIVE_LAPSED
    assert terminate.text.endswith("for 3000 ms")
    assert machine.ended_by is machine.party


def test_numbers_told_late_count_from_when_they_were_heard() -> None:
    _, venue = pair_in(State.ESTABLISHED)
    venue.tick(START + 2_900 * MS)
    venue.numbers_received(7, START + 2_500 * MS)
    venue.tick(START + 5_499 * MS)
    assert venue.ended is None
    venue.tick(START + 5_500 * MS)
    assert venue.state is State.CLOSED


def test_a_clock_that_goes_back_is_not_believed() -> None:
    client, _ = pair_in(State.ESTABLISHED)
    client.send(ORDER, START + 10)
    client.send(ORDER, START + 5)
    reader = FrameReader(CLIENT_FRAME_SIZE_MAX)
    reader.feed(client.data_to_send())
    assert [frame.send_time_ns - START for frame in iter(reader.next_frame, None)] == [10, 10]


# The end.


def test_a_log_out_waits_for_what_is_under_way() -> None:
    client, venue = pair_in(State.CLOSING)
    venue.send(REPORT, START)
    venue.tick(START + 1_000 * MS)
    assert deliver(venue, client, START + 1_000 * MS) == [REPORT, VenueHeartbeat(0)]
    venue.tick(START + 60_000 * MS)  # Of the client nothing more is expected.
    assert venue.state is State.CLOSING
    client.tick(START + 2_000 * MS)
    assert client.data_to_send() == b""
    venue.terminate(TerminateCode.LOG_OUT, "", START + 60_000 * MS)
    deliver(venue, client, START + 3_000 * MS)
    assert client.state is State.CLOSED
    assert client.ended == Terminate(TerminateCode.LOG_OUT, "")
    assert client.ended_by is Party.VENUE


def test_after_the_end_nothing_is_read_sent_or_due() -> None:
    client, venue = pair_in(State.ESTABLISHED)
    venue.terminate(TerminateCode.REPLACED, "x" * 200, START)
    venue.terminate(TerminateCode.SHUTDOWN, "again", START)
    [terminate] = deliver(venue, client)
    assert terminate == Terminate(TerminateCode.REPLACED, "x" * 125 + "...")
    late = encode_frame(SESSION, 1, b"junk")
    other, _ = pair_in(State.ESTABLISHED)
    other.receive_data(encode_frame(SESSION, 1, encode(terminate)) + late, START)
    assert other.next_event() is not None
    for machine in (client, venue, other):
        if machine is not other:
            machine.receive_data(late, START)
        assert machine.next_event() is None
        machine.tick(START + 10**12)
        assert machine.data_to_send() == b""
        assert machine.deadline_ns() == 0
        assert machine.take_unread() == b""


def test_a_lost_connection_leaves_nothing_to_send() -> None:
    client, _ = pair_in(State.ESTABLISHED)
    client.send(ORDER, START)
    assert client.queued_size == 24 + len(encode(ORDER))
    client.connection_lost()
    assert client.state is State.CLOSED
    assert client.ended is None
    assert client.data_to_send() == b""
    assert client.queued_size == 0


def test_a_message_that_fits_no_frame_changes_nothing() -> None:
    client, _ = pair_in(State.ESTABLISHED)
    with pytest.raises(LocalProtocolError, match="LogOut takes 5005 bytes, at most 4072"):
        client.send(LogOut("x" * 5_000), START)
    with pytest.raises(OverflowError):
        client.send(CancelOrder(2**70), START)
    assert client.state is State.ESTABLISHED
    assert client.next_number == 1
    assert client.data_to_send() == b""
