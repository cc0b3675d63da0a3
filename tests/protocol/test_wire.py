"""Messages by sender and kind: round trips, and errors that name code, tag and field."""

from typing import Any, Final, get_args

import msgspec
import pytest

from protocol.base import NUMBER_MAX
from protocol.codes import RejectCode
from protocol.errors import MessageError
from protocol.framing import HEADER_SIZE, SEQUENCED, SESSION, UNSEQUENCED, VENUE_FRAME_SIZE_MAX
from protocol.market_data import MarketDataMessage
from protocol.order_entry import NewOrder
from protocol.transport import ROWS_MAX, LogOn, StateBalances, StateOrders, StatePositions
from protocol.wire import (
    ClientMessage,
    ClientSessionMessage,
    Command,
    VenueMessage,
    VenueNotice,
    VenueReport,
    VenueSessionMessage,
    decode_client,
    decode_command,
    decode_market_data,
    decode_venue,
    encode,
    peek_tag,
    session_reject,
)

pack: Final = msgspec.msgpack.encode

SAMPLES: Final[dict[str, Any]] = {
    "name": "a.b",
    "venue": "V",
    "session": "mm1",
    "symbol": "S-1",
    "currency": "USD",
    "title": "t",
    "text": "t",
    "client": "c",
    "tick_table": [(0, 100)],
    "rows": [],
    **dict.fromkeys(("key", "public_key", "client_nonce", "nonce"), bytes(32)),
    "signature": bytes(64),
}


def sample(message: type[msgspec.Struct]) -> Any:
    return message(*(SAMPLES.get(name, 1) for name in message.__struct_fields__))


def tag_of(message: type[msgspec.Struct]) -> int:
    tag = message.__struct_config__.tag
    assert isinstance(tag, int)
    return tag


@pytest.mark.parametrize("message", get_args(Command), ids=lambda m: m.__name__)
def test_commands_come_back(message: type[msgspec.Struct]) -> None:
    payload = encode(sample(message))
    assert decode_command(payload) == decode_client(SEQUENCED, payload) == sample(message)
    assert peek_tag(payload) == tag_of(message)
    with pytest.raises(MessageError) as caught:
        decode_client(SESSION, payload)
    assert caught.value.code is RejectCode.UNKNOWN_TAG


@pytest.mark.parametrize("message", get_args(ClientSessionMessage), ids=lambda m: m.__name__)
def test_session_messages_of_a_client_come_back(message: type[msgspec.Struct]) -> None:
    payload = encode(sample(message))
    assert decode_client(SESSION, payload) == sample(message)
    with pytest.raises(MessageError) as caught:
        decode_command(payload)
    assert caught.value.code is RejectCode.UNKNOWN_TAG
    assert caught.value.text == f"{message.__name__} does not belong here"


@pytest.mark.parametrize("kind", [SESSION, SEQUENCED, UNSEQUENCED])
@pytest.mark.parametrize("message", get_args(VenueMessage), ids=lambda m: m.__name__)
def test_venue_messages_come_back_in_their_kind_only(
    message: type[msgspec.Struct], kind: int
) -> None:
    unions = {SESSION: VenueSessionMessage, SEQUENCED: VenueReport, UNSEQUENCED: VenueNotice}
    payload = encode(sample(message))
    if message in get_args(unions[kind]):
        assert decode_venue(kind, payload) == sample(message)
    else:
        with pytest.raises(MessageError) as caught:
            decode_venue(kind, payload)
        assert (caught.value.code, caught.value.field) == (RejectCode.UNKNOWN_TAG, 0)


def test_tags_are_unique_per_sender() -> None:
    for union in (ClientMessage, VenueMessage | MarketDataMessage):
        messages = get_args(union)
        assert len({tag_of(message) for message in messages}) == len(messages)


@pytest.mark.parametrize("message", get_args(MarketDataMessage), ids=lambda m: m.__name__)
def test_public_messages_come_back_and_travel_on_no_connection(
    message: type[msgspec.Struct],
) -> None:
    payload = encode(sample(message))
    assert decode_market_data(payload) == sample(message)
    newer = pack([*msgspec.msgpack.decode(payload), "newer", [1, None]])
    assert decode_market_data(newer) == sample(message)
    for decode in (decode_client, decode_venue):
        with pytest.raises(MessageError) as caught:
            decode(SEQUENCED, payload)
        assert caught.value.code is RejectCode.UNKNOWN_TAG
        assert caught.value.text == f"{message.__name__} does not belong here"


@pytest.mark.parametrize("tag", [0, 10, 85, 109, 119, 127, 999, 2**40, -1])
def test_an_unknown_public_tag_is_named(tag: int) -> None:
    with pytest.raises(MessageError) as caught:
        decode_market_data(pack([tag, 1, 2, 3, 4, 5, 6, 7]))
    assert caught.value.code is RejectCode.UNKNOWN_TAG


def test_the_longest_part_of_a_state_image_fits_a_frame() -> None:
    size = VENUE_FRAME_SIZE_MAX - HEADER_SIZE
    longest = (
        StateOrders(NUMBER_MAX, [(NUMBER_MAX,) * 10] * ROWS_MAX),
        StatePositions(NUMBER_MAX, [(NUMBER_MAX,) * 3] * ROWS_MAX),
        StateBalances(NUMBER_MAX, [(NUMBER_MAX,) * 3] * ROWS_MAX),
    )
    for part in longest:
        payload = encode(part)
        assert len(payload) <= size
        assert decode_venue(UNSEQUENCED, payload) == part
        part.rows.append(part.rows[0])  # type: ignore[arg-type]  # each list gets its own row
        with pytest.raises(MessageError, match="of length <= 256"):
            decode_venue(UNSEQUENCED, encode(part))


ORDER: Final = [10, 1, 2, 3, 1, 5_000, 100]
BAD_COMMANDS: Final[tuple[tuple[bytes, int, int, str], ...]] = (
    (pack([*ORDER[:5], 0.5, 100]), 10, 5, "NewOrder.price: Expected `int`, got `float`"),
    (pack([*ORDER[:6], -1]), 10, 6, "NewOrder.quantity: Expected `int` >= 0"),
    (pack([10, 2**62, *ORDER[2:]]), 10, 1, "NewOrder.client_order_id: Expected `int` <= 46116860"),
    (pack(ORDER[:4]), 10, 4, "NewOrder.side: Expected `array` of at least length 7, got 4"),
    (pack([10] + [1] * 20), 10, 19, "NewOrder: Expected `array` of at most length 18, got 20"),
    (pack([34, 1, "s", "t", 0, 1, [[0, -1]], 1]), 34, 6, "Instrument.tick_table: Expected `int`"),
    (pack([30, "a b"]), 30, 1, "Participant.name: Expected `str` matching regex"),
    (b"\x92\x1e\xa1\xff", 30, 0, "Participant: 'utf-8' codec can't decode byte 0xff"),
    (pack(ORDER) + b"\x00", 10, 0, "NewOrder: MessagePack data is malformed: trailing characters"),
    (pack(ORDER)[:-1], 10, 0, "NewOrder: Input data was truncated"),
    (b"\xc1", 0, 0, "tag 0: MessagePack data is malformed: invalid opcode"),
    (b"", 0, 0, "tag 0: Input data was truncated"),
    (pack([]), 0, 0, "tag 0: Expected `array` of at least length 1, got 0"),
    (pack({"tag": 10}), 0, 0, "tag 0: Expected `array`, got `object`"),
    (pack(["10"]), 0, 0, "tag 0: Expected `int`, got `str`"),
    (pack([10, None, *ORDER[2:]]), 10, 1, "NewOrder.client_order_id: Expected `int`"),
    (b"\x91" * 4_000, 0, 0, "tag 0: Expected `int`, got `array`"),
)


@pytest.mark.parametrize(("payload", "tag", "field", "text"), BAD_COMMANDS)
def test_an_invalid_command_is_named(payload: bytes, tag: int, field: int, text: str) -> None:
    with pytest.raises(MessageError) as caught:
        decode_command(payload)
    error = caught.value
    assert (error.code, error.tag, error.field) == (RejectCode.INVALID_MESSAGE, tag, field)
    assert error.text.startswith(text)
    assert len(error.text) <= 128
    reject = session_reject(17, error)
    assert (reject.number, reject.request_tag, reject.field) == (17, tag, field)
    assert decode_venue(UNSEQUENCED, encode(reject)) == reject


@pytest.mark.parametrize("tag", [0, 1, 13, 50, 127, 128, 255, 256, 65_535])
def test_an_unknown_tag_is_named(tag: int) -> None:
    with pytest.raises(MessageError) as caught:
        decode_command(pack([tag, 1]))
    assert (caught.value.code, caught.value.tag) == (RejectCode.UNKNOWN_TAG, tag)


@pytest.mark.parametrize("tag", [65_536, 2**63, -1, -200])
def test_a_tag_out_of_bounds_is_unknown_and_reported_as_0(tag: int) -> None:
    with pytest.raises(MessageError) as caught:
        decode_command(pack([tag, 1]))
    assert (caught.value.code, caught.value.tag) == (RejectCode.UNKNOWN_TAG, 0)


def test_nesting_in_skipped_elements_is_bounded() -> None:
    """The limit on recursion differs by Python version; the largest frame passes all of them."""
    payload = b"\x93\x43\x05" + b"\x91" * 65_000 + b"\x01"  # A heartbeat, an element too many.
    with pytest.raises(MessageError, match="VenueHeartbeat: nested too deep"):
        decode_venue(SESSION, payload)


def test_elements_of_a_newer_minor_are_skipped_from_the_venue_only() -> None:
    newer = pack([67, 5, "new"])
    assert encode(decode_venue(SESSION, newer)) == pack([67, 5])
    with pytest.raises(MessageError) as caught:
        decode_client(SESSION, pack([3, 5, "new"]))
    assert caught.value.field == 2


def test_peek_tag_reads_every_encoding_of_a_tag() -> None:
    widths = [
        (0xCC, 1),
        (0xCD, 2),
        (0xCE, 4),
        (0xCF, 8),
        (0xD0, 1),
        (0xD1, 2),
        (0xD2, 4),
        (0xD3, 8),
    ]
    for head in (b"\x91", b"\xdc\x00\x01", b"\xdd\x00\x00\x00\x01"):
        assert peek_tag(head + b"\x0a") == 10
        assert peek_tag(head) == 0
        for opcode, size in widths:
            assert peek_tag(head + bytes([opcode]) + (10).to_bytes(size, "big")) == 10
            assert peek_tag(head + bytes([opcode]) + (10).to_bytes(size, "big")[:-1]) == 0
    assert peek_tag(b"\x91\xd0\xff") == 0
    assert peek_tag(encode(sample(NewOrder))) == 10
    assert peek_tag(encode(sample(LogOn))) == 1
