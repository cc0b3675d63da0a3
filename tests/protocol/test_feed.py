"""The feed's connection: its log-on, requests and refusals, packets, the log, and every split."""

from typing import Any, Final, get_args

import msgspec
import pytest

from protocol.base import NUMBER_MAX
from protocol.codes import RejectCode, TerminateCode
from protocol.errors import LocalProtocolError, MessageError, RemoteProtocolError
from protocol.feed import (
    CandlesRequest,
    DropCopyMark,
    DropCopyReport,
    DropCopyRequest,
    FeedReject,
    FeedRequest,
    FeedState,
    LogPiece,
    LogRequest,
    PacketPiece,
    ReplayRequest,
    RequestEnd,
    Skipped,
    Subscribe,
    Subscribed,
    Unsubscribe,
)
from protocol.framing import (
    CLIENT_FRAME_SIZE_MAX,
    HEADER_SIZE,
    LAST_PIECE,
    LOG,
    PACKET,
    REPLAYED,
    SEQUENCED,
    UNSEQUENCED,
    VENUE_FRAME_SIZE_MAX,
    Frame,
    encode_frame,
)
from protocol.market_data import (
    BestPrices,
    Candle,
    InstrumentStatus,
    Levels,
    Statistics,
)
from protocol.order_entry import NewOrder, OrderExpired
from protocol.records import SessionRecorded
from protocol.session import Connection, Party, Service, State
from protocol.transport import (
    Heartbeat,
    LogOn,
    LogOut,
    StateRequest,
    Terminate,
    VenueHeartbeat,
)
from protocol.wire import (
    FeedMessage,
    decode_copied,
    decode_feed,
    decode_feed_request,
    encode,
)
from tests.protocol.machines import (
    FEED_LOG_ON,
    MS,
    ORDER,
    PRICES,
    REPORT,
    START,
    deliver,
    pair_in,
    sent_by,
)

pack: Final = msgspec.msgpack.encode
PIECE_SIZE_MAX: Final = VENUE_FRAME_SIZE_MAX - HEADER_SIZE

REQUESTS: Final[tuple[Any, ...]] = (
    Subscribe(1, 7, 1, 3, 0, [1, 2], [3], 0, 0, 0, 1),
    Unsubscribe(1),
    ReplayRequest(2, 7, 40, 100_000),
    CandlesRequest(3, 5, 60, START, 1_000),
    DropCopyRequest(4, 2, [8, 9], 41, 3),
    LogRequest(5, 1),
)
RAW: Final = msgspec.Raw(encode(OrderExpired(9, START, 1, 1, 100, 0, 8)))
ANSWERS: Final[tuple[Any, ...]] = (
    FeedState(9, START, 5 << 20, [(1, 41), (64, 2)]),
    Subscribed(1, 7, 5 << 20, 41),
    RequestEnd(2, 1, 141),
    FeedReject(1, 40, 91, 5, 41, 0, "no such number"),
    Skipped(1, 7, 41, 99),
    DropCopyReport(4, 3, 17, 0, 1, RAW),
    DropCopyMark(4, 9, START),
    PRICES,
    Levels(9, START, 7, 5, 41, 10, [(5_400, 100, 1)], []),
    Statistics(9, START, 7, 5, 41, START, 1, 4, -1, 2, 9, 300, 2, 500, 10**12, 3, 4, 1, 200),
    Candle(9, START, 7, 5, 41, 60, START, 1, 4, 1, 2, 300, 2, 500, 0),
    InstrumentStatus(9, START, 5, 2),
)


def established(**changes: int) -> tuple[Connection, Connection]:
    return pair_in(State.ESTABLISHED, Service.FEED, **changes)


# Messages.


@pytest.mark.parametrize("message", REQUESTS, ids=lambda message: type(message).__name__)
def test_a_request_comes_to_the_feed(message: Any) -> None:
    client, feed = established()
    assert client.send(message, START) == 0
    assert deliver(client, feed) == [message]
    assert decode_feed_request(encode(message)) == message


@pytest.mark.parametrize("message", ANSWERS, ids=lambda message: type(message).__name__)
def test_an_answer_comes_to_the_client(message: Any) -> None:
    client, feed = established()
    assert feed.send(message, START) == 0
    assert deliver(feed, client) == [message]
    assert decode_feed(pack([*msgspec.msgpack.decode(encode(message)), "new", [0]])) == message


def test_every_request_and_answer_is_tried() -> None:
    definitions = {"EventDefinition", "InstrumentDefinition"}  # In the vectors.
    assert {type(one) for one in REQUESTS} == set(get_args(FeedRequest))
    names = {type(one).__name__ for one in ANSWERS}
    assert names | definitions == {one.__name__ for one in get_args(FeedMessage)}


def test_the_longest_messages_fit_their_frames() -> None:
    """Filters with the longest ids, levels with the longest numbers."""
    client, feed = established()
    ids = [2**32 - 1] * 256
    longest = Subscribe(NUMBER_MAX, 64, 6, 3, NUMBER_MAX, ids, ids, 50, 86_400, 60_000, 2)
    client.send(longest, START)
    assert client.queued_size == 2_623
    assert deliver(client, feed) == [longest]
    rows = [(NUMBER_MAX, NUMBER_MAX, NUMBER_MAX)] * 50
    levels = Levels(NUMBER_MAX, NUMBER_MAX, 64, NUMBER_MAX, NUMBER_MAX, 50, rows, rows)
    feed.send(levels, START)
    assert deliver(feed, client) == [levels]


REPORTS: Final = (
    OrderExpired(9, START, 1, 1, 100, 0, 8),
    SessionRecorded(9, START, 3, 2, "mm1"),
)


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: type(report).__name__)
def test_a_report_is_carried_byte_for_byte(report: Any) -> None:
    """Also in an encoding that nobody here would write, and with fields of a newer minor."""
    values = msgspec.msgpack.decode(encode(report))
    newer = pack([*values, "new"])
    wide = b"\xdc" + len(values).to_bytes(2, "big") + encode(report)[1:]
    for payload in (encode(report), newer, wide):
        data = encode(DropCopyReport(4, 3, 17, 0, 1, msgspec.Raw(payload)))
        assert data.endswith(payload)
        copy = decode_feed(data)
        assert isinstance(copy, DropCopyReport)
        assert bytes(copy.report) == payload
        assert decode_copied(bytes(copy.report)) == report


@pytest.mark.parametrize("payload", [b"", b"\xc1", pack([84]), pack([10, 1]), b"\x91" * 3_000])
def test_what_is_no_report_is_a_message_error(payload: bytes) -> None:
    with pytest.raises(MessageError):
        decode_copied(payload)


# Log-on.


def test_a_feed_log_on_starts_no_stream() -> None:
    client, feed = established()
    assert (client.next_number, client.last_received) == (1, 0)
    assert (feed.next_number, feed.last_received) == (1, 0)
    assert client.keepalive_ms == feed.keepalive_ms == 1_000


@pytest.mark.parametrize(
    ("field", "number"), [("next_number", 6), ("cancel_on_disconnect", 8), ("cancel_grace_ms", 9)]
)
def test_a_feed_log_on_asks_for_nothing_of_a_session(field: str, number: int) -> None:
    client, feed = pair_in(State.GREETED, Service.FEED)
    client.send(msgspec.structs.replace(FEED_LOG_ON, **{field: 1}), START)
    assert deliver(client, feed) == []
    [rejected] = deliver(feed, client)
    assert (rejected.code, rejected.field) == (RejectCode.FIELD_NOT_ALLOWED, number)
    assert feed.state is client.state is State.CLOSED


def test_the_checks_of_every_log_on_come_first() -> None:
    client, feed = pair_in(State.GREETED, Service.FEED)
    client.send(msgspec.structs.replace(FEED_LOG_ON, next_number=1, keepalive_ms=9), START)
    deliver(client, feed)
    [rejected] = deliver(feed, client)
    assert rejected.code == RejectCode.KEEPALIVE_OUT_OF_RANGE


def test_order_entry_is_not_spoken_on_a_feed() -> None:
    for message in (ORDER, StateRequest()):
        client, _ = established()
        with pytest.raises(LocalProtocolError, match="the client cannot send"):
            client.send(message, START)
    _, feed = established()
    with pytest.raises(LocalProtocolError, match="the venue cannot send OrderExpired"):
        feed.send(REPORT, START)


# Frames of the wrong kind.


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (SEQUENCED, "a numbered frame from the client when established"),
        (PACKET, "a packet from the client when established"),
        (LOG, "a log piece from the client when established"),
    ],
)
def test_kinds_that_a_client_does_not_send(kind: int, text: str) -> None:
    _, feed = established()
    feed.receive_data(encode_frame(kind, 1, encode(Unsubscribe(1))), START)
    with pytest.raises(RemoteProtocolError) as caught:
        feed.next_event()
    assert (caught.value.code, caught.value.text) == (TerminateCode.PROTOCOL_VIOLATION, text)


def test_a_feed_sends_no_numbered_frames() -> None:
    client, _ = established()
    client.receive_data(encode_frame(SEQUENCED, 1, encode(REPORT)), START)
    with pytest.raises(RemoteProtocolError, match="a numbered frame from the venue"):
        client.next_event()


@pytest.mark.parametrize("kind", [PACKET, LOG])
@pytest.mark.parametrize("party", Party)
def test_order_entry_does_not_know_the_feeds_kinds(party: Party, kind: int) -> None:
    client, venue = pair_in(State.ESTABLISHED)
    receiver = client if party is Party.VENUE else venue
    receiver.receive_data(encode_frame(kind, 1, b"piece"), START)
    with pytest.raises(RemoteProtocolError) as caught:
        receiver.next_event()
    assert caught.value.code is TerminateCode.MALFORMED


@pytest.mark.parametrize("state", [State.GREETED, State.AUTHENTICATING])
@pytest.mark.parametrize("payload", [encode(Unsubscribe(1)), pack([41, "x"]), pack([99])])
def test_a_request_before_the_log_on_is_a_violation_or_malformed(
    state: State, payload: bytes
) -> None:
    _, feed = pair_in(state, Service.FEED)
    feed.receive_data(encode_frame(UNSEQUENCED, 1, payload), START)
    with pytest.raises(RemoteProtocolError) as caught:
        feed.next_event()
    is_valid = payload == encode(Unsubscribe(1))
    expected = TerminateCode.PROTOCOL_VIOLATION if is_valid else TerminateCode.MALFORMED
    assert caught.value.code is expected


@pytest.mark.parametrize("message", [LogOn, Heartbeat, LogOut, NewOrder, BestPrices])
def test_other_messages_are_unknown_in_a_request(message: type[msgspec.Struct]) -> None:
    tag = message.__struct_config__.tag
    with pytest.raises(MessageError) as caught:
        decode_feed_request(pack([tag, 1]))
    assert (caught.value.code, caught.value.tag) == (RejectCode.UNKNOWN_TAG, tag)


# Refused requests.

SUBSCRIBE: Final = [40, 1, 7, 1, 3, 0, [], [], 0, 0, 0, 1]
BAD_REQUESTS: Final = (
    (pack([46, 77]), 77, 46, 0, RejectCode.UNKNOWN_TAG, "tag 46 is unknown"),
    (pack([46]), 0, 46, 0, RejectCode.UNKNOWN_TAG, "tag 46 is unknown"),
    (pack([10, 5, 1]), 5, 10, 0, RejectCode.UNKNOWN_TAG, "NewOrder does not belong here"),
    (pack(SUBSCRIBE[:-1]), 1, 40, 11, RejectCode.INVALID_MESSAGE, "Subscribe.when_slow: "),
    (pack([*SUBSCRIBE, 1]), 1, 40, 12, RejectCode.INVALID_MESSAGE, "Subscribe: "),
    (
        pack([*SUBSCRIBE[:6], [2**32], *SUBSCRIBE[7:]]),
        *(1, 40, 6, RejectCode.INVALID_MESSAGE, "Subscribe.instruments: "),
    ),
    (
        pack([*SUBSCRIBE[:6], [1] * 257, *SUBSCRIBE[7:]]),
        *(1, 40, 6, RejectCode.INVALID_MESSAGE, "Subscribe.instruments: "),
    ),
    (pack([41, -1]), 0, 41, 1, RejectCode.INVALID_MESSAGE, "Unsubscribe.request_id: "),
    (pack([41, 2**62]), 0, 41, 1, RejectCode.INVALID_MESSAGE, "Unsubscribe.request_id: "),
    (pack([42, 9, 1, 1, 2**32]), 9, 42, 4, RejectCode.INVALID_MESSAGE, "ReplayRequest.count: "),
    (pack([45, 3, 1]) + b"\x00", 0, 45, 0, RejectCode.INVALID_MESSAGE, "LogRequest: "),
    (b"", 0, 0, 0, RejectCode.INVALID_MESSAGE, "tag 0: "),
    (b"\xc1", 0, 0, 0, RejectCode.INVALID_MESSAGE, "tag 0: "),
    (b"\x92\x29" + b"\x91" * 3_000, 0, 41, 1, RejectCode.INVALID_MESSAGE, "Unsubscribe.request"),
)


@pytest.mark.parametrize(("payload", "request_id", "tag", "field", "code", "text"), BAD_REQUESTS)
def test_an_invalid_request_is_refused_and_the_rest_goes_on(
    payload: bytes, request_id: int, tag: int, field: int, code: RejectCode, text: str
) -> None:
    client, feed = established()
    good = encode_frame(UNSEQUENCED, 1, encode(Unsubscribe(6)))
    feed.receive_data(encode_frame(UNSEQUENCED, 1, payload) + good, START)
    received = feed.next_event()
    assert received is not None
    assert received.message == Unsubscribe(6)
    [reject] = deliver(feed, client)
    assert isinstance(reject, FeedReject)
    assert (reject.request_id, reject.request_tag, reject.field) == (request_id, tag, field)
    assert (reject.code, reject.limit, reject.retry_after_ns) == (code, 0, 0)
    assert reject.text.startswith(text)
    assert feed.state is State.ESTABLISHED


def test_an_invalid_answer_ends_the_connection_and_an_unknown_one_does_not() -> None:
    client, _ = established()
    client.receive_data(encode_frame(UNSEQUENCED, 1, pack([89, "news"])), START)
    assert client.next_event() is None
    assert client.unknown_count == 1
    client.receive_data(encode_frame(UNSEQUENCED, 1, pack([88, "x"])), START)
    with pytest.raises(RemoteProtocolError) as caught:
        client.next_event()
    assert caught.value.code is TerminateCode.MALFORMED


# Packets and the log.


def test_a_packet_says_its_form_in_the_number() -> None:
    client, feed = established()
    feed.send(PacketPiece(4, b"packet"), START)
    frame = feed.data_to_send()
    assert frame == bytes.fromhex(
        "1e00 04 00 0400000000000000" + START.to_bytes(8, "little").hex() + "00000000"
    ) + (b"packet")
    client.receive_data(frame, START)
    received = client.next_event()
    assert received is not None
    assert received.message == PacketPiece(4, b"packet")
    assert received.frame == Frame(PACKET, 0, 4, START, 0, b"packet")


def test_a_record_comes_in_pieces() -> None:
    client, feed = established()
    record = bytes(range(256)) * 600
    data = []
    for start in range(0, len(record), PIECE_SIZE_MAX):
        part = record[start : start + PIECE_SIZE_MAX]
        flags = LAST_PIECE if start + PIECE_SIZE_MAX >= len(record) else 0
        client.receive_data(encode_frame(LOG, 41, part, START, flags=flags), START)
        for received in iter(client.next_event, None):
            assert isinstance(received.message, LogPiece)
            data.append(received.message)
    assert b"".join(piece.data for piece in data) == record
    assert [(piece.sequence, piece.is_last) for piece in data] == [
        (41, False),
        (41, False),
        (41, True),
    ]
    for piece in data:
        feed.send(piece, START)
        flags = LAST_PIECE if piece.is_last else 0
        assert feed.data_to_send() == encode_frame(LOG, 41, piece.data, START, flags=flags)


def test_a_piece_that_fits_no_frame_is_not_sent() -> None:
    _, feed = established()
    feed.send(LogPiece(1, True, bytes(PIECE_SIZE_MAX)), START)
    with pytest.raises(LocalProtocolError, match="LogPiece takes 65512 bytes, at most 65511"):
        feed.send(LogPiece(1, True, bytes(PIECE_SIZE_MAX + 1)), START)


def test_flags_of_a_newer_version_are_ignored() -> None:
    client, _ = established()
    client.receive_data(encode_frame(LOG, 9, b"record", flags=255), START)
    client.receive_data(encode_frame(PACKET, 0, b"packet", flags=255 - LAST_PIECE), START)
    found = [received.message for received in iter(client.next_event, None)]
    assert found == [LogPiece(9, True, b"record"), PacketPiece(0, b"packet")]


def test_a_feed_that_writes_frames_itself_owes_no_heartbeat() -> None:
    """The feed's server sends shared bytes and tells the machine when."""
    _, feed = established()
    feed.numbers_sent(1, START + 900 * MS)
    feed.tick(START + 1_000 * MS)
    assert feed.data_to_send() == b""
    feed.tick(START + 1_900 * MS)
    assert sent_by(feed) == [VenueHeartbeat(0)]


def test_a_client_that_cuts_packets_itself_gives_the_rest_back() -> None:
    client, feed = established()
    feed.send(PacketPiece(1, b"one"), START)
    feed.send(PRICES, START)
    data = feed.data_to_send()
    client.receive_data(data, START)
    assert client.take_unread() == data
    frame = Frame(UNSEQUENCED, 0, 1, START, 0, encode(PRICES))
    received = client.receive_frame(frame, START + MS)
    assert received is not None
    assert received.message == PRICES
    client.numbers_received(0, START + 2_900 * MS)
    client.tick(START + 5_000 * MS)
    assert client.state is State.ESTABLISHED, "what it has cut is a sign of life"


def conversation() -> tuple[bytes, list[Any]]:
    """Everything that a feed sends, and what it is."""
    messages = [
        *ANSWERS,
        VenueHeartbeat(0),
        PacketPiece(1, b"\x52\x42" * 300),
        LogPiece(9, False, b"rec"),
        LogPiece(9, True, b"ord"),
        PacketPiece(0, b""),
        Terminate(TerminateCode.NOT_PERMITTED, "the key was revoked"),
    ]
    _, feed = established()
    for message in messages:
        feed.send(message, START)
    return feed.data_to_send(), messages


def test_every_split_gives_the_same_messages() -> None:
    data, messages = conversation()
    for cut in range(len(data) + 1):
        client, _ = established()
        found = []
        for chunk in (data[:cut], data[cut:]):
            client.receive_data(chunk, START)
            found += [received.message for received in iter(client.next_event, None)]
        assert found == messages, f"cut at {cut}"
        assert client.state is State.CLOSED


def test_every_split_of_the_requests_gives_the_same_requests() -> None:
    stream, _ = established()
    for message in REQUESTS:
        stream.send(message, START)
    data = stream.data_to_send()
    for cut in range(len(data) + 1):
        _, feed = established()
        found = []
        for chunk in (data[:cut], data[cut:]):
            feed.receive_data(chunk, START)
            found += [received.message for received in iter(feed.next_event, None)]
        assert found == [*REQUESTS], f"cut at {cut}"


def test_the_largest_frames_are_bounded_by_their_direction() -> None:
    _, feed = established()
    feed.receive_data(encode_frame(UNSEQUENCED, 1, bytes(CLIENT_FRAME_SIZE_MAX)), START)
    with pytest.raises(RemoteProtocolError) as caught:
        feed.next_event()
    assert caught.value.code is TerminateCode.FRAME_SIZE
    client, _ = established()
    largest = bytes(VENUE_FRAME_SIZE_MAX - HEADER_SIZE)
    client.receive_data(encode_frame(PACKET, 1, largest), START)
    received = client.next_event()
    assert received is not None
    assert received.message == PacketPiece(1, largest)


def test_a_candle_that_was_asked_for_is_told_by_its_flag() -> None:
    """Only the feed's server sets it, in frames that it writes itself."""
    client, _ = established()
    candle = ANSWERS[-2]
    client.receive_data(encode_frame(UNSEQUENCED, 1, encode(candle), flags=REPLAYED), START)
    received = client.next_event()
    assert received is not None
    assert (received.message, received.frame.flags) == (candle, REPLAYED)


def test_a_log_out_is_answered_with_the_end() -> None:
    client, feed = established()
    client.send(LogOut(), START)
    assert deliver(client, feed) == [LogOut()]
    feed.send(PacketPiece(1, b"under way"), START)
    feed.terminate(TerminateCode.LOG_OUT, "", START)
    assert deliver(feed, client) == [
        PacketPiece(1, b"under way"),
        Terminate(TerminateCode.LOG_OUT, ""),
    ]
