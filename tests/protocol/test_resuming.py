"""The session machine where a stream goes on: the first number of a connection, replays, images."""

from typing import Any, Final

import msgspec
import pytest

from protocol.base import NUMBER_MAX
from protocol.codes import RejectCode
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.framing import (
    CLIENT_FRAME_SIZE_MAX,
    REPLAYED,
    SEQUENCED,
    SESSION,
    UNSEQUENCED,
    Frame,
    FrameReader,
    encode_frame,
)
from protocol.session import Connection, Received, State
from protocol.transport import (
    ROWS_MAX,
    SessionReject,
    StateBalances,
    StateEnd,
    StateOrders,
    StatePositions,
    StateRequest,
    VenueHeartbeat,
)
from protocol.wire import encode
from tests.protocol.machines import LOG_ON, REPORT, START, accepted, deliver, pair_in

# Resuming.


def authenticating(wanted: int) -> tuple[Connection, Connection]:
    """A pair whose client has asked for the reports from `wanted` on."""
    client, venue = pair_in(State.GREETED)
    client.send(msgspec.structs.replace(LOG_ON, next_number=wanted), START)
    deliver(client, venue)
    return client, venue


@pytest.mark.parametrize(
    ("wanted", "first", "head"),
    [
        (0, 41, 41),  # None of the past.
        (41, 41, 41),  # Nothing was missed.
        (30, 30, 41),  # Everything that was missed.
        (1, 1, 41),
        (1, 1, 1),
        (30, 41, 41),  # Too old: what was missed is lost.
        (30, 35, 41),  # A part of it is.
        (NUMBER_MAX, NUMBER_MAX, NUMBER_MAX),
    ],
)
def test_the_header_says_which_report_comes_first(wanted: int, first: int, head: int) -> None:
    client, venue = authenticating(wanted)
    answer = accepted(next_number=head)
    assert venue.send(answer, START, next_number=first) == 0
    client.receive_data(venue.data_to_send(), START)
    received = client.next_event()
    assert received == Received(answer, Frame(SESSION, 0, first, START, 0, encode(answer)))
    assert client.last_received == first - 1
    assert venue.next_number == first
    assert venue.send(REPORT, START) == first
    assert deliver(venue, client) == [REPORT]
    assert client.last_received == first


@pytest.mark.parametrize(("wanted", "head"), [(0, 41), (30, 41), (41, 41), (1, 1)])
def test_without_a_number_the_stream_goes_on_at_the_head(wanted: int, head: int) -> None:
    client, venue = authenticating(wanted)
    venue.send(accepted(next_number=head), START)
    deliver(venue, client)
    assert venue.next_number == client.last_received + 1 == head


@pytest.mark.parametrize(
    ("wanted", "first", "head"),
    [
        (30, 29, 41),  # More than was wanted: the client would take it twice.
        (30, 1, 41),
        (30, 42, 41),  # A report that does not exist.
        (0, 40, 41),  # Nothing was wanted.
        (0, 42, 41),
        (42, 41, 41),  # Wanted ahead of the head: the log-on had to be refused.
        (42, 42, 41),
    ],
)
def test_a_first_number_out_of_range_is_nobodys(wanted: int, first: int, head: int) -> None:
    client, venue = authenticating(wanted)
    answer = accepted(next_number=head)
    with pytest.raises(LocalProtocolError):
        venue.send(answer, START, next_number=first)
    assert venue.state is State.AUTHENTICATING
    assert venue.data_to_send() == b""
    client.receive_data(encode_frame(SESSION, first, encode(answer)), START)
    with pytest.raises(RemoteProtocolError, match="PROTOCOL_VIOLATION"):
        client.next_event()
    assert client.state is State.CLOSED


def test_a_header_without_a_number_is_the_venues_defect() -> None:
    client, _ = authenticating(0)
    client.receive_data(encode_frame(SESSION, 0, encode(accepted(next_number=41))), START)
    with pytest.raises(RemoteProtocolError, match="PROTOCOL_VIOLATION"):
        client.next_event()


def test_only_a_log_on_starts_a_stream() -> None:
    _, venue = pair_in(State.ESTABLISHED)
    with pytest.raises(AssertionError, match="only a log-on"):
        venue.send(REPORT, START, next_number=5)


def test_a_replay_goes_over_into_the_live_stream() -> None:
    """The owner writes the replay itself; what goes out between says where it stands."""
    client, venue = authenticating(38)
    venue.send(accepted(next_number=41), START, next_number=38)
    deliver(venue, client)
    for number in (38, 39, 40):
        client.receive_data(
            encode_frame(SEQUENCED, number, encode(REPORT), START, 0, REPLAYED), START
        )
        received = client.next_event()
        assert received is not None
        assert (received.frame.number, received.frame.flags & REPLAYED) == (number, REPLAYED)
        venue.numbers_sent(number + 1, START)
        venue.send(VenueHeartbeat(0), START)
        client.receive_data(venue.data_to_send(), START)
        received = client.next_event()
        assert received is not None
        assert received.frame.number == number + 1
    assert venue.send(REPORT, START) == 41
    assert deliver(venue, client) == [REPORT]
    assert client.duplicate_count == 0


def test_a_replay_with_a_hole_is_the_venues_defect() -> None:
    client, venue = authenticating(38)
    venue.send(accepted(next_number=41), START, next_number=38)
    deliver(venue, client)
    client.receive_data(encode_frame(SEQUENCED, 39, encode(REPORT), flags=REPLAYED), START)
    with pytest.raises(RemoteProtocolError, match="report 39 came instead of 38"):
        client.next_event()


# The state image.


STATE: Final[tuple[Any, ...]] = (
    StateOrders(9, [(NUMBER_MAX,) * 10] * ROWS_MAX),
    StatePositions(9, [(NUMBER_MAX, NUMBER_MAX, -NUMBER_MAX)] * ROWS_MAX),
    StateBalances(9, [(NUMBER_MAX, -NUMBER_MAX, NUMBER_MAX)] * ROWS_MAX),
    StateEnd(9, START, 12, 3, 4, ROWS_MAX, ROWS_MAX, ROWS_MAX),
)


def test_a_state_image_takes_no_numbers() -> None:
    client, venue = pair_in(State.ESTABLISHED, next_number=11, last_client_number=3)
    assert client.send(StateRequest(), START) == 0
    assert deliver(client, venue) == [StateRequest()]
    assert venue.last_received == 3
    for part in STATE:
        assert venue.send(part, START) == 0
        assert deliver(venue, client) == [part]
        assert venue.send(REPORT, START) == client.last_received + 1  # Reports may come between.
        assert deliver(venue, client) == [REPORT]
    assert client.last_received == venue.next_number - 1 == 14


@pytest.mark.parametrize("part", STATE, ids=lambda part: type(part).__name__)
@pytest.mark.parametrize("state", State)
def test_a_state_image_is_for_who_is_logged_on(state: State, part: Any) -> None:
    client, venue = pair_in(state)
    if state in (State.ESTABLISHED, State.CLOSING):
        venue.send(part, START)
        assert deliver(venue, client) == [part]
        return
    with pytest.raises(LocalProtocolError, match=f"when {state.value}"):
        venue.send(part, START)
    client.receive_data(encode_frame(UNSEQUENCED, 1, encode(part)), START)
    if state is not State.CLOSED:
        with pytest.raises(RemoteProtocolError, match="PROTOCOL_VIOLATION"):
            client.next_event()
    assert client.next_event() is None


def test_a_state_request_goes_through_an_owners_scanner() -> None:
    client, venue = pair_in(State.ESTABLISHED)
    client.send(StateRequest(), START)
    scanner = FrameReader(CLIENT_FRAME_SIZE_MAX)
    scanner.feed(client.data_to_send())
    frame = scanner.next_frame()
    assert frame is not None
    assert venue.receive_frame(frame, START) == Received(StateRequest(), frame)


def test_a_refused_state_request_has_no_number() -> None:
    client, venue = pair_in(State.ESTABLISHED)
    refusal = SessionReject(0, 4, RejectCode.IMAGE_IN_PROGRESS, 0, 0, "one at a time")
    assert venue.send(refusal, START) == 0
    assert deliver(venue, client) == [refusal]
    assert client.state is State.ESTABLISHED
