"""The compiled packer against the packets that `protocol` encodes, and its edges one by one."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.packer import Packer
from protocol.packets import (
    BLOCK_HEAD,
    CHANNELS_MAX,
    DATA,
    FIRST,
    HEARTBEAT,
    LAST,
    PACKET_HEADER,
    PACKET_SIZE_MAX,
    Block,
    Packet,
    decode_packet,
    encode_packet,
)
from protocol.records import EVENT_HEAD, MARKET_DATA, REPORT, SESSION

EPOCH = (1 << 60) + 7
SEND_NS = 1_900_000_000_000_000_000
MESSAGE_SIZE_MAX = PACKET_SIZE_MAX - PACKET_HEADER.size - BLOCK_HEAD.size


class Message(NamedTuple):
    """A public message as the engine gives it."""

    channel: int
    number: int
    sequence: int
    payload: bytes

    def entry(self) -> bytes:
        size = EVENT_HEAD.size + len(self.payload)
        return (
            EVENT_HEAD.pack(size, MARKET_DATA, 0, self.channel, 0, 0, self.number, self.sequence, 1)
            + self.payload
        )


def private(payload: bytes, kind: int = REPORT) -> bytes:
    size = EVENT_HEAD.size + len(payload)
    return EVENT_HEAD.pack(size, kind, 0, 0, 1, 1, 1, 1, 1) + payload


def plain_packets(messages: list[Message], send_ns: int = SEND_NS) -> dict[int, list[bytes]]:
    """What the page says, channel by channel, in the plainest way."""
    by_channel: dict[int, list[Message]] = defaultdict(list)
    for message in messages:
        by_channel[message.channel].append(message)
    found: dict[int, list[bytes]] = {}
    for channel, some in by_channel.items():
        packets: list[list[tuple[int, Block]]] = []
        room = 0
        for i, message in enumerate(some):
            is_first = i == 0 or some[i - 1].sequence != message.sequence
            is_last = i == len(some) - 1 or some[i + 1].sequence != message.sequence
            size = BLOCK_HEAD.size + len(message.payload)
            if size > room:
                packets.append([])
                room = PACKET_SIZE_MAX - PACKET_HEADER.size
            room -= size
            flags = FIRST * is_first | LAST * is_last
            packets[-1].append((message.number, Block(flags, message.payload)))
        found[channel] = [
            encode_packet(
                Packet(DATA, channel, EPOCH, part[0][0], send_ns, [block for _, block in part])
            )
            for part in packets
        ]
    return found


def grouped(packets: list[tuple[int, bytes]]) -> dict[int, list[bytes]]:
    found: dict[int, list[bytes]] = defaultdict(list)
    for channel, packet in packets:
        found[channel].append(packet)
    return dict(found)


SIZES = st.one_of(
    st.integers(1, 60),
    st.integers(600, 700),
    st.sampled_from([1, 2, 452, 680, 681, 682, MESSAGE_SIZE_MAX - 1, MESSAGE_SIZE_MAX]),
)
COMMANDS = st.lists(
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from([1, 2, 7, CHANNELS_MAX]), SIZES, st.integers(1, 255)),
            st.none(),
        ),
        max_size=12,
    ),
    max_size=25,
)


@settings(max_examples=300, deadline=None)
@given(batches=st.lists(COMMANDS, min_size=1, max_size=3), first=st.integers(1, 2**61))
def test_packets_are_those_of_the_page(
    batches: list[list[list[tuple[int, int, int] | None]]], first: int
) -> None:
    packer = Packer(EPOCH)
    numbers: dict[int, int] = defaultdict(lambda: first)
    sequence = 0
    counts = [0, 0, 0]
    for commands in batches:
        messages: list[Message] = []
        events = b""
        for command in commands:
            sequence += 1
            for event in command:
                if event is None:
                    events += private(b"x" * 31, SESSION if sequence % 2 else REPORT)
                    continue
                channel, size, byte = event
                message = Message(channel, numbers[channel], sequence, bytes([byte]) * size)
                numbers[channel] += 1
                messages.append(message)
                events += message.entry()
        packets = packer.pack(events, SEND_NS + sequence)
        assert grouped(packets) == plain_packets(messages, SEND_NS + sequence)
        counts[0] += len(packets)
        counts[1] += sum(len(packet) for _, packet in packets)
        counts[2] += len(messages)
    assert [packer.packet_count, packer.packet_size, packer.message_count] == counts
    for channel, number in numbers.items():
        assert packer.next_number(channel) == number


def flags_of(packets: list[tuple[int, bytes]]) -> list[list[int]]:
    return [[block.flags for block in decode_packet(packet).blocks] for _, packet in packets]


def pack(*messages: Message) -> list[tuple[int, bytes]]:
    return Packer(EPOCH).pack(b"".join(message.entry() for message in messages), SEND_NS)


@pytest.mark.parametrize("excess", [-1, 0, 1])
def test_a_packet_is_filled_to_its_last_byte(excess: int) -> None:
    half = (PACKET_SIZE_MAX - PACKET_HEADER.size) // 2 - BLOCK_HEAD.size
    assert 2 * (half + BLOCK_HEAD.size) + PACKET_HEADER.size == PACKET_SIZE_MAX
    packets = pack(Message(1, 1, 1, b"a" * half), Message(1, 2, 1, b"b" * (half + excess)))
    if excess > 0:
        assert [decode_packet(packet).number for _, packet in packets] == [1, 2]
        assert flags_of(packets) == [[FIRST], [LAST]]
    else:
        assert [len(packet) for _, packet in packets] == [PACKET_SIZE_MAX + excess]
        assert flags_of(packets) == [[FIRST, LAST]]


def test_a_message_of_the_largest_size_fills_a_packet_alone() -> None:
    largest = Message(3, 2, 2, b"m" * MESSAGE_SIZE_MAX)
    packets = pack(Message(3, 1, 1, b"x"), largest, Message(3, 3, 2, b"y"))
    assert [len(packet) for _, packet in packets] == [36, PACKET_SIZE_MAX, 36]
    assert flags_of(packets) == [[FIRST | LAST], [FIRST], [LAST]]
    with pytest.raises(AssertionError, match="1366 bytes fits no packet"):
        pack(Message(3, 1, 1, b"m" * (MESSAGE_SIZE_MAX + 1)))


def test_flags_count_per_channel() -> None:
    packets = pack(
        Message(1, 1, 5, b"a"),
        Message(2, 1, 5, b"b"),
        Message(1, 2, 5, b"c"),
        Message(2, 2, 6, b"d"),
        Message(1, 3, 7, b"e"),
    )
    assert [channel for channel, _ in packets] == [1, 2]
    assert flags_of(packets) == [[FIRST, LAST, FIRST | LAST], [FIRST | LAST, FIRST | LAST]]


def test_nothing_is_kept_from_one_batch_to_the_next_but_the_numbers() -> None:
    packer = Packer(EPOCH)
    events = Message(1, 1, 5, b"a").entry() + Message(1, 2, 5, b"b").entry()
    packets = packer.pack(events, SEND_NS)
    packer.expect(1, 1)
    assert packer.pack(events, SEND_NS) == packets


def test_no_market_data_is_no_packet() -> None:
    packer = Packer(EPOCH)
    assert packer.pack(b"", SEND_NS) == []
    assert packer.pack(private(b"report") + private(b"log-on", SESSION), SEND_NS) == []
    assert packer.next_number(1) == 0


def test_a_heartbeat_has_the_next_number() -> None:
    packer = Packer(EPOCH)
    packet = packer.heartbeat(64, 2**62 - 1, SEND_NS)
    assert packet == encode_packet(Packet(HEARTBEAT, 64, EPOCH, 2**62 - 1, SEND_NS, []))
    assert (packer.packet_count, packer.message_count) == (0, 0)


def test_a_hole_in_the_numbers_is_ours() -> None:
    packer = Packer(EPOCH)
    packer.expect(2, 10)
    assert packer.next_number(2) == 10
    with pytest.raises(AssertionError, match="channel 2: 11 instead of 10"):
        packer.pack(Message(2, 11, 1, b"x").entry(), SEND_NS)
    packer.pack(Message(2, 10, 1, b"x").entry() + Message(2, 11, 2, b"x").entry(), SEND_NS)
    with pytest.raises(AssertionError, match="channel 2: 11 instead of 12"):
        packer.pack(Message(2, 11, 3, b"x").entry(), SEND_NS)
    packer.pack(Message(1, 7, 3, b"x").entry(), SEND_NS)
    assert packer.next_number(1) == 8


@pytest.mark.parametrize(
    ("events", "text"),
    [
        (bytes(39), "events end inside a head"),
        (private(b""), "event of 40 bytes"),
        (private(b"abc")[:-1], "event of 43 bytes"),
        (Message(0, 1, 1, b"x").entry(), "channel 0"),
        (Message(65, 1, 1, b"x").entry(), "channel 65"),
    ],
    ids=["head", "empty", "cut", "channel 0", "channel 65"],
)
def test_what_the_engine_never_gives_is_an_assertion(events: bytes, text: str) -> None:
    with pytest.raises(AssertionError, match=text):
        Packer(EPOCH).pack(events, SEND_NS)


def test_a_channel_is_in_range() -> None:
    packer = Packer(EPOCH)
    for channel in (0, 65):
        with pytest.raises(AssertionError, match=f"channel {channel}"):
            packer.expect(channel, 1)
        with pytest.raises(AssertionError, match=f"channel {channel}"):
            packer.next_number(channel)


def golden_packets() -> list[dict[str, Any]]:
    """The venue's packets of tests/vectors that are a whole number of commands."""
    lines = (Path(__file__).parents[1] / "vectors" / "packets.jsonl").read_text().splitlines()
    vectors = [json.loads(line) for line in lines]
    whole = [one for one in vectors if "case" in one and is_whole(one["blocks"])]
    return [one for one in whole if one["kind"] in (DATA, HEARTBEAT)]


def is_whole(blocks: list[dict[str, Any]]) -> bool:
    """Whether commands begin at the first block, end at the last, and follow each other."""
    ends = [LAST] + [block["flags"] & LAST for block in blocks]
    begins = [block["flags"] & FIRST for block in blocks] + [FIRST]
    is_known = all(block["flags"] <= FIRST | LAST for block in blocks)
    return is_known and [end // LAST for end in ends] == [begin // FIRST for begin in begins]


@pytest.mark.parametrize("vector", golden_packets(), ids=lambda vector: str(vector["case"]))
def test_golden_packets(vector: dict[str, Any]) -> None:
    packer = Packer(vector["epoch"])
    expected = bytes.fromhex(vector["packet"])
    channel, number, send_ns = vector["channel"], vector["number"], vector["send_time_ns"]
    if vector["kind"] == HEARTBEAT:
        assert packer.heartbeat(channel, number, send_ns) == expected
        return
    events, sequence = b"", 1
    for i, block in enumerate(vector["blocks"]):
        sequence += block["flags"] & FIRST
        payload = bytes.fromhex(block["payload"])
        events += Message(channel, number + i, sequence, payload).entry()
    assert packer.pack(events, send_ns) == [(channel, expected)]


def test_there_are_golden_packets() -> None:
    assert len(golden_packets()) >= 8
