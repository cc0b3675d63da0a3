"""Packets: golden bytes, every field wrong, every cut, mutations, and messages of a newer venue."""

import random
import struct
from typing import Any, Final, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.base import NUMBER_MAX
from protocol.market_data import (
    EventDefinition,
    InstrumentDefinition,
    InstrumentStatus,
    MarketDataMessage,
    OrderAdded,
    OrderDeleted,
    OrderExecuted,
    OrderReduced,
    OrderReplaced,
    SnapshotBegin,
    SnapshotEnd,
    SnapshotInstrument,
    SnapshotMessage,
    SnapshotOrders,
    Trade,
)
from protocol.packets import (
    BLOCK_HEAD,
    CHANNELS_MAX,
    DATA,
    FIRST,
    HEARTBEAT,
    LAST,
    PACKET_HEADER,
    PACKET_SIZE_MAX,
    SELECTED,
    SELECTED_BLOCK_HEAD,
    SNAPSHOT,
    Block,
    Packet,
    PacketError,
    SelectedBlock,
    decode_message,
    decode_packet,
    decode_snapshot_message,
    encode_packet,
)
from protocol.wire import encode

SEED: Final = 31_118
MUTATION_COUNT: Final = 20_000

MESSAGES: Final[tuple[Any, ...]] = (
    EventDefinition(1, 2, 3, "RAIN", 1, "Rain: café", "USD", 7),
    InstrumentDefinition(2, 2, 3, 3, "RAIN.YES", "It rains", 0, 10_000, [(0, 100)], 100, 1),
    InstrumentStatus(3, 4, 3, 2),
    OrderAdded(4, 5, 3, 88, 1, -5_500, 1_000),
    OrderExecuted(5, 6, 3, 88, 501, 250, 750),
    OrderReduced(6, 7, 3, 88, 650),
    OrderDeleted(7, 8, 3, 88),
    OrderReplaced(8, 9, 3, 88, 5_400, 900),
    Trade(9, 10, 3, 501, 5_500, 250, 2, 3_000),
)
OF_SNAPSHOT: Final[tuple[Any, ...]] = (
    SnapshotBegin(9, 10, 700, 45, 1, 1, 1),
    MESSAGES[0],
    MESSAGES[1],
    SnapshotInstrument(9, 10, 3, 45, 1, 2, 0, 501, 5_500, 250, 1_250),
    SnapshotOrders(9, 10, 3, 1, [(88, 5_500, 650), (89, -5_400, 1)]),
    SnapshotEnd(9, 10, 700, 45, 2),
)
EPOCH: Final = 5 << 20
PACKET: Final = Packet(
    DATA,
    7,
    EPOCH,
    41,
    1_735_689_600_000_000_000,
    [
        Block(FIRST, encode(MESSAGES[4])),
        Block(LAST, encode(MESSAGES[8])),
        Block(FIRST | LAST, encode(MESSAGES[6])),
    ],
)
SNAPSHOT_PACKET: Final = PACKET._replace(
    kind=SNAPSHOT, number=700, blocks=[Block(FIRST | LAST, encode(one)) for one in OF_SNAPSHOT]
)
SELECTED_PACKET: Final = PACKET._replace(
    kind=SELECTED,
    blocks=[
        SelectedBlock(FIRST, encode(MESSAGES[4]), 41),
        SelectedBlock(LAST, encode(MESSAGES[8]), 42),
        SelectedBlock(FIRST | LAST, encode(MESSAGES[8]), 41 + 2**32 - 1),
    ],
)
BEAT: Final = Packet(HEARTBEAT, 7, EPOCH, 44, 1_735_689_600_000_000_000, [])

GOLDEN: Final = (
    (
        Packet(DATA, 0x07, 0x1122334455667788, 0x0102, 0xA1B2C3D4E5F60718, [Block(3, b"\x91\x74")]),
        "5242 01 01 0700 0100 8877665544332211 0201000000000000 1807f6e5d4c3b2a1 0200 03 9174",
    ),
    (
        Packet(HEARTBEAT, 64, 0, 1, 0, []),
        "5242 01 02 4000 0000 0000000000000000 0100000000000000 0000000000000000",
    ),
    (
        Packet(SNAPSHOT, 1, 0, 7, 0, [Block(3, b"\x91\x77"), Block(3, b"\x91\x7a")]),
        "5242 01 03 0100 0200 0000000000000000 0700000000000000 0000000000000000"
        " 0200 03 9177 0200 03 917a",
    ),
    (
        Packet(SELECTED, 1, 0, 7, 0, [SelectedBlock(1, b"\x91\x76", 8)]),
        "5242 01 04 0100 0100 0000000000000000 0700000000000000 0000000000000000"
        " 0200 01 01000000 9176",
    ),
)


@pytest.mark.parametrize(("packet", "text"), GOLDEN)
def test_golden_packets(packet: Packet, text: str) -> None:
    assert encode_packet(packet) == bytes.fromhex(text)
    assert decode_packet(bytes.fromhex(text)) == packet


def test_a_packet_comes_back_with_its_messages() -> None:
    packet = decode_packet(encode_packet(PACKET))
    assert packet == PACKET
    assert [decode_message(block.payload) for block in packet.blocks] == [
        MESSAGES[4],
        MESSAGES[8],
        MESSAGES[6],
    ]
    assert decode_packet(encode_packet(BEAT)) == BEAT


def test_a_snapshot_comes_back_with_its_messages() -> None:
    packet = decode_packet(encode_packet(SNAPSHOT_PACKET))
    assert packet == SNAPSHOT_PACKET
    assert [decode_snapshot_message(one.payload) for one in packet.blocks] == [*OF_SNAPSHOT]


def test_selected_messages_come_back_with_their_numbers() -> None:
    packet = decode_packet(encode_packet(SELECTED_PACKET))
    assert packet == SELECTED_PACKET
    assert all(isinstance(one, SelectedBlock) for one in packet.blocks)


def raw(
    blocks: bytes = b"\x02\x00\x03\x91\x74", size: int = PACKET_HEADER.size, **changes: int
) -> bytes:
    """A packet with one message and header fields as they are given."""
    header = {
        "magic": 0x4252,
        "version": 1,
        "kind": DATA,
        "channel": 1,
        "count": 1,
        "epoch": 0,
        "number": 1,
        "time": 0,
    }
    return PACKET_HEADER.pack(*(header | changes).values())[:size] + blocks


def test_the_raw_packet_is_one() -> None:
    """Or what follows proves nothing."""
    assert decode_packet(raw()) == Packet(DATA, 1, 0, 1, 0, [Block(3, b"\x91\x74")])


WRONG: Final = (
    (b"", "0 bytes, not in 32..1400"),
    (raw(b"", size=31), "31 bytes, not in 32..1400"),
    (raw(bytes(1_369)), "1401 bytes, not in 32..1400"),
    (raw(magic=0), "magic 0x0000, not 0x4252"),
    (raw(magic=0x5242), "magic 0x5242, not 0x4252"),
    (raw(version=0), "version 0, not 1"),
    (raw(version=2), "version 2, not 1"),
    (raw(kind=0), "kind 0 is unknown"),
    (raw(kind=5), "kind 5 is unknown"),
    (raw(kind=255), "kind 255 is unknown"),
    (raw(channel=0), "channel 0 is not in 1..64"),
    (raw(channel=65), "channel 65 is not in 1..64"),
    (raw(channel=65_535), "channel 65535 is not in 1..64"),
    (raw(count=0), "0 messages in a packet of kind 1"),
    (raw(b"", count=0), "0 messages in a packet of kind 1"),
    (raw(kind=HEARTBEAT), "1 messages in a packet of kind 2"),
    (raw(kind=HEARTBEAT, count=0), "5 bytes behind the last message"),
    (raw(count=2), "cut short before message 2 of 2"),
    (raw(count=65_535), "cut short before message 2 of 65535"),
    (raw(epoch=2**62), f"epoch {2**62} is above {NUMBER_MAX}"),
    (raw(epoch=2**64 - 1), f"epoch {2**64 - 1} is above {NUMBER_MAX}"),
    (raw(number=0), f"number 0 with 1 messages is not in 1..{NUMBER_MAX}"),
    (raw(number=NUMBER_MAX), f"number {NUMBER_MAX} with 1 messages is not in 1..{NUMBER_MAX}"),
    (raw(number=2**64 - 1), f"number {2**64 - 1} with 1 messages is not in 1..{NUMBER_MAX}"),
    (
        raw(b"", kind=HEARTBEAT, count=0, number=2**62),
        f"number {2**62} with 0 messages is not in 1..{NUMBER_MAX}",
    ),
    (raw(b"\x00\x00\x03"), "message 1 of 1 is empty"),
    (raw(b"\x01"), "cut short before message 1 of 1"),
    (raw(b"\x03\x00\x03\x91\x74"), "cut short in message 1 of 1"),
    (raw(b"\xff\xff\x03\x91\x74"), "cut short in message 1 of 1"),
    (raw(b"\x01\x00\x03\x91\x74"), "1 bytes behind the last message"),
    (raw(b"", kind=SNAPSHOT, count=0), "0 messages in a packet of kind 3"),
    (raw(b"", kind=SELECTED, count=0), "0 messages in a packet of kind 4"),
    (raw(kind=SELECTED), "cut short before message 1 of 1"),
    (raw(b"\x00\x00\x03\x00\x00\x00\x00", kind=SELECTED), "message 1 of 1 is empty"),
    (raw(b"\x03\x00\x03\x00\x00\x00\x00\x91\x74", kind=SELECTED), "cut short in message 1 of 1"),
    (
        raw(b"\x01\x00\x03\x00\x00\x00\x00\x91\x74", kind=SELECTED),
        "1 bytes behind the last message",
    ),
    (
        raw(b"\x01\x00\x03\x09\x00\x00\x00\x91" * 2, kind=SELECTED, count=2),
        f"number 10 of a selected message is not in 11..{NUMBER_MAX - 1}",
    ),
    (
        raw(b"\x01\x00\x03\x01\x00\x00\x00\x91", kind=SELECTED, number=NUMBER_MAX - 1),
        f"number {NUMBER_MAX} of a selected message is not in {NUMBER_MAX - 1}..{NUMBER_MAX - 1}",
    ),
)


@pytest.mark.parametrize(("data", "text"), WRONG, ids=[text for _, text in WRONG])
def test_what_is_wrong_is_named(data: bytes, text: str) -> None:
    with pytest.raises(PacketError) as caught:
        decode_packet(data)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    "data",
    [
        raw(channel=CHANNELS_MAX),
        raw(epoch=NUMBER_MAX),
        raw(number=NUMBER_MAX - 1),
        raw(b"", kind=HEARTBEAT, count=0, number=NUMBER_MAX),
        raw(time=2**64 - 1),
        raw(b"\x02\x00\xff\x91\x74"),  # Flags that mean nothing yet.
        raw(b"\x55\x05\x03" + bytes(1_365)),
        raw(b"\x51\x05\x03\xff\xff\xff\xff" + bytes(1_361), kind=SELECTED),
        raw(b"\x01\x00\x03\x00\x00\x00\x00\x91", kind=SELECTED, number=NUMBER_MAX - 1),
        raw(kind=SNAPSHOT, number=NUMBER_MAX - 1),
    ],
)
def test_the_bounds_are_allowed(data: bytes) -> None:
    packet = decode_packet(data)
    assert encode_packet(packet) == data


@pytest.mark.parametrize("packet", [PACKET, BEAT, SNAPSHOT_PACKET, SELECTED_PACKET])
def test_cut_anywhere_it_is_no_packet(packet: Packet) -> None:
    data = encode_packet(packet)
    for size in range(len(data)):
        with pytest.raises(PacketError):
            decode_packet(data[:size])
    for extra in (b"\x00", b"\x01\x00\x00\x90", b"\x01\x00\x00\xff\xff\xff\xff\x90", data):
        with pytest.raises(PacketError):
            decode_packet(data + extra)


@pytest.mark.parametrize(
    "packet",
    [
        PACKET._replace(kind=5),
        PACKET._replace(kind=SELECTED),
        SELECTED_PACKET._replace(kind=DATA),
        SELECTED_PACKET._replace(number=42),
        SELECTED_PACKET._replace(blocks=SELECTED_PACKET.blocks[::-1]),
        SELECTED_PACKET._replace(blocks=[SELECTED_PACKET.blocks[0]] * 2),
        SNAPSHOT_PACKET._replace(blocks=[]),
        PACKET._replace(kind=HEARTBEAT),
        PACKET._replace(blocks=[]),
        PACKET._replace(channel=0),
        PACKET._replace(channel=65),
        PACKET._replace(epoch=2**62),
        PACKET._replace(number=0),
        PACKET._replace(number=NUMBER_MAX),
        PACKET._replace(blocks=[Block(3, b"")]),
        PACKET._replace(blocks=[Block(3, bytes(1_366))]),
        BEAT._replace(number=0),
    ],
)
def test_what_is_no_packet_is_not_written(packet: Packet) -> None:
    with pytest.raises(AssertionError):
        encode_packet(packet)


# Chance.


def mutated(data: bytes, chance: random.Random) -> bytes:
    """A packet with one to three things done to its bytes."""
    for _ in range(chance.randrange(1, 4)):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(10):
            case 0:
                data = data[:at]
            case 1:
                data = data[:at] + chance.randbytes(chance.randrange(1, 9)) + data[at:]
            case 2:
                data = data[:at] + data[at + chance.randrange(1, 9) :]
            case 3:
                data = data[:at] + data
            case 4:
                word = struct.pack("<H", chance.choice((0, 1, 2, 255, 65_535)))
                data = data[:at] + word + data[at + 2 :]
            case _:
                data = data[:at] + chance.randbytes(1) + data[at + 1 :]
    return data


def test_mutations_give_a_packet_or_a_packet_error() -> None:
    """Nothing else is raised, neither for the packet nor for the messages in it, and what is taken
    is taken whole: encoded again it gives the same bytes."""
    print(f"seed {SEED}")
    chance = random.Random(SEED)
    counts = dict.fromkeys(("packet", "error", "message", "unknown", "bad message"), 0)
    texts = set()
    for _ in range(MUTATION_COUNT):
        blocks = [
            Block(chance.randrange(4), encode(chance.choice(MESSAGES)))
            for _ in range(chance.randrange(1, 6))
        ]
        number = chance.randrange(1, 2**62 - 9)
        kind = chance.choice((DATA, DATA, DATA, SNAPSHOT, SELECTED))
        packet = PACKET._replace(kind=kind, number=number, blocks=blocks)
        if kind == SELECTED:
            selected = [SelectedBlock(*one, number + i) for i, one in enumerate(blocks)]
            packet = packet._replace(blocks=selected)
        data = mutated(encode_packet(packet if chance.random() < 0.9 else BEAT), chance)
        try:
            found = decode_packet(data)
        except PacketError as error:
            texts.add(str(error))
            counts["error"] += 1
            continue
        counts["packet"] += 1
        assert encode_packet(found) == data
        for block in found.blocks:
            try:
                message = decode_message(block.payload)
            except PacketError as error:
                texts.add(str(error))
                counts["bad message"] += 1
            else:
                counts["message" if message is not None else "unknown"] += 1
    print(counts)
    assert not [text for text in texts if "\n" in text or len(text) > 128]
    assert min(counts.values()) > MUTATION_COUNT // 200, counts


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, NUMBER_MAX - 2**32),
    st.dictionaries(
        st.integers(0, 2**32 - 1),
        st.tuples(st.integers(0, 255), st.binary(min_size=1, max_size=30)),
        min_size=1,
        max_size=30,
    ),
)
def test_every_selection_comes_back(number: int, chosen: dict[int, tuple[int, bytes]]) -> None:
    blocks = [SelectedBlock(*chosen[offset], number + offset) for offset in sorted(chosen)]
    packet = Packet(SELECTED, 1, EPOCH, number, 0, blocks)
    data = encode_packet(packet)
    assert decode_packet(data) == packet
    sizes = sum(SELECTED_BLOCK_HEAD.size + len(one.payload) for one in blocks)
    assert len(data) == PACKET_HEADER.size + sizes


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from((DATA, SNAPSHOT)),
    st.integers(1, CHANNELS_MAX),
    st.integers(0, NUMBER_MAX),
    st.integers(1, NUMBER_MAX - 40),
    st.integers(0, 2**64 - 1),
    st.lists(st.tuples(st.integers(0, 255), st.binary(min_size=1, max_size=30)), max_size=40),
)
def test_every_packet_comes_back(
    kind: int, channel: int, epoch: int, number: int, time_ns: int, blocks: list[tuple[int, bytes]]
) -> None:
    kind = kind if blocks else HEARTBEAT
    packet = Packet(kind, channel, epoch, number, time_ns, [Block(*block) for block in blocks])
    data = encode_packet(packet)
    assert decode_packet(data) == packet
    sizes = sum(BLOCK_HEAD.size + len(payload) for _, payload in blocks)
    assert len(data) == PACKET_HEADER.size + sizes


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_noise_is_a_packet_error(data: bytes) -> None:
    for noise in (data, raw()[:4] + data, raw() + data if data else b""):
        with pytest.raises(PacketError):
            decode_packet(noise)


# Messages.


def test_every_public_message_is_tried() -> None:
    assert {type(message) for message in MESSAGES} == set(get_args(MarketDataMessage))


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_fields_of_a_newer_minor_are_skipped(message: Any) -> None:
    payload = encode(message)
    assert decode_message(payload) == message
    values = msgspec.msgpack.decode(payload)
    for extra in ([1], ["new"], [None, 0.5, b"x"], [[1, [2]], {"a": 1}], [0] * 20):
        newer = msgspec.msgpack.encode([*values, *extra])
        assert decode_message(newer) == message


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_field_that_is_missing_or_wrong_is_named(message: Any) -> None:
    name = type(message).__name__
    values = msgspec.msgpack.decode(encode(message))
    fields = type(message).__struct_fields__
    for index in range(1, len(values)):
        cut = msgspec.msgpack.encode(values[:index])
        with pytest.raises(PacketError, match=rf"^{name}\.{fields[index - 1]}: "):
            decode_message(cut)
        wrong = msgspec.msgpack.encode([*values[:index], None, *values[index + 1 :]])
        with pytest.raises(PacketError, match=rf"^{name}\.{fields[index - 1]}: "):
            decode_message(wrong)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_cut_anywhere_is_an_error(message: Any) -> None:
    payload = encode(message)
    for size in range(len(payload)):
        with pytest.raises(PacketError):
            decode_message(payload[:size])
    with pytest.raises(PacketError, match="trailing"):
        decode_message(payload + b"\x00")


@pytest.mark.parametrize("tag", [*range(110), *range(119, 128), 300, 70_000, 2**63, -1])
def test_an_unknown_tag_is_skipped_with_all_that_follows(tag: int) -> None:
    for fields in ([], [1, 2, 3, 4], ["new", None, [0.5]]):
        assert decode_message(msgspec.msgpack.encode([tag, *fields])) is None


@pytest.mark.parametrize("payload", [b"", b"\x90", b"\xc0", b"\x01", b"\xc1", b"\x91\xa1\x74"])
def test_what_has_no_tag_is_an_error(payload: bytes) -> None:
    with pytest.raises(PacketError):
        decode_message(payload)


def test_every_message_of_a_snapshot_is_tried() -> None:
    assert {type(message) for message in OF_SNAPSHOT} == set(get_args(SnapshotMessage))


@pytest.mark.parametrize("message", OF_SNAPSHOT, ids=lambda message: type(message).__name__)
def test_a_message_of_a_snapshot_is_read_whole_or_not(message: Any) -> None:
    payload = encode(message)
    values = msgspec.msgpack.decode(payload)
    assert decode_snapshot_message(msgspec.msgpack.encode([*values, "new", [1]])) == message
    for size in range(len(payload)):
        with pytest.raises(PacketError):
            decode_snapshot_message(payload[:size])
    for index in range(1, len(values)):
        wrong = msgspec.msgpack.encode([*values[:index], None, *values[index + 1 :]])
        field = type(message).__struct_fields__[index - 1]
        with pytest.raises(PacketError, match=rf"^{type(message).__name__}\.{field}: "):
            decode_snapshot_message(wrong)


def test_the_two_kinds_do_not_mix() -> None:
    """What is only in snapshots is unknown among the channel's messages, and the other way."""
    for message in OF_SNAPSHOT:
        known = decode_message(encode(message))
        assert (known is None) == (type(message) not in get_args(MarketDataMessage))
    for message in MESSAGES:
        known_there = decode_snapshot_message(encode(message))
        assert (known_there is None) == (type(message) not in get_args(SnapshotMessage))


def test_the_longest_orders_of_a_snapshot_fit_a_packet() -> None:
    row = (NUMBER_MAX, -NUMBER_MAX, NUMBER_MAX)
    longest = SnapshotOrders(NUMBER_MAX, NUMBER_MAX, NUMBER_MAX, NUMBER_MAX, [row] * 40)
    payload = encode(longest)
    assert len(payload) == 1_161
    packet = SNAPSHOT_PACKET._replace(blocks=[Block(FIRST | LAST, payload)])
    assert decode_packet(encode_packet(packet)) == packet
    with pytest.raises(PacketError, match=r"SnapshotOrders.rows: Expected `array` of length <= 40"):
        decode_snapshot_message(encode(SnapshotOrders(1, 1, 1, 1, [row] * 41)))


def test_the_longest_message_fits_a_packet() -> None:
    """A title may take four bytes a character."""
    longest = InstrumentDefinition(
        *(NUMBER_MAX, NUMBER_MAX, NUMBER_MAX, NUMBER_MAX, "S" * 32, "\U0001f3db" * 128),
        *(NUMBER_MAX, NUMBER_MAX, [(NUMBER_MAX, NUMBER_MAX)] * 8, NUMBER_MAX, NUMBER_MAX),
    )
    payload = encode(longest)
    assert len(payload) == 776
    data = encode_packet(PACKET._replace(blocks=[Block(FIRST | LAST, payload)]))
    assert len(data) <= PACKET_SIZE_MAX
    assert decode_message(decode_packet(data).blocks[0].payload) == longest
