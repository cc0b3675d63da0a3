"""Garbage: the fast way to read packets against the slow one, and a consumer fed with it."""

import random
from collections.abc import Callable
from typing import Any, Final

from exchange.client.datagrams import read_header, read_messages
from exchange.client.limits import HELD_NS
from protocol.base import NUMBER_MAX
from protocol.market_data import Trade
from protocol.packets import (
    BLOCK_HEAD,
    DATA,
    HEARTBEAT,
    PACKET_HEADER,
    PACKET_MAGIC,
    Packet,
    PacketError,
    decode_message,
    decode_packet,
    encode_packet,
)
from protocol.wire import encode
from tests.exchange.client.feed import EPOCH, NOW, Feed, Truth, digest, heartbeat
from tests.exchange.client.listener import WHOLE, Listener

Mutation = Callable[[random.Random, bytes], bytes]


def flip_bits(rng: random.Random, data: bytes) -> bytes:
    mutated = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        mutated[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(mutated)


def flip_header(rng: random.Random, data: bytes) -> bytes:
    mutated = bytearray(data)
    mutated[rng.randrange(PACKET_HEADER.size)] = rng.randrange(256)
    return bytes(mutated)


def cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def extend(rng: random.Random, data: bytes) -> bytes:
    return data + rng.randbytes(rng.randrange(1, 1_500))


def splice(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + rng.randbytes(rng.randrange(1, 9)) + data[at + rng.randrange(9) :]


def noise(rng: random.Random, _data: bytes) -> bytes:
    header = PACKET_HEADER.pack(PACKET_MAGIC, 1, 1, 1, rng.randrange(5), EPOCH, 1, 0)
    return header[: rng.choice((0, 4, 32))] + rng.randbytes(rng.randrange(80))


MUTATIONS: Final[tuple[Mutation, ...]] = (flip_bits, flip_header, cut, extend, splice, noise)


def slow(data: bytes) -> Any:
    """What the protocol's own module makes of a packet, None for an error."""
    try:
        packet = decode_packet(data)
        messages = [decode_message(block.payload) for block in packet.blocks]
    except PacketError:
        return None
    if packet.kind not in (DATA, HEARTBEAT):
        return None  # Of the feed; not read here.
    header = (packet.channel, packet.epoch, packet.number, len(messages))
    return header, [block.flags for block in packet.blocks], messages


def fast(data: bytes) -> Any:
    """The same with what the consumer uses."""
    try:
        header = read_header(data)
        flags, messages = read_messages(data, header.message_count)
    except PacketError:
        return None
    assert header.end == header.number + header.message_count
    return header[:4], flags, messages


def garbage_feed() -> Feed:
    feed = Feed(seed=8)
    feed.list_event(1)
    feed.list_instrument(1)
    feed.list_instrument(2)
    feed.random_commands(120)
    return feed


def test_the_fast_way_and_the_slow_one_come_to_the_same_end() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    packets = [*garbage_feed().pack(), heartbeat(7)]
    valid_count = 0
    for packet in packets:
        assert fast(packet) == slow(packet) is not None
    trade = encode(Trade(1, NOW, 1, 1, 4_000, 1, 1, 100))
    for number, count, is_valid in (
        (NUMBER_MAX, 0, True),
        (NUMBER_MAX, 1, False),
        (NUMBER_MAX - 1, 1, True),
        (NUMBER_MAX - 1, 2, False),
        (0, 1, False),
    ):
        head = (PACKET_MAGIC, 1, DATA if count else HEARTBEAT, 1, count, EPOCH, number, NOW)
        data = PACKET_HEADER.pack(*head) + (BLOCK_HEAD.pack(len(trade), WHOLE) + trade) * count
        assert (fast(data) is not None) == (slow(data) is not None) == is_valid
    for _ in range(30_000):
        data = rng.choice(MUTATIONS)(rng, rng.choice(packets))
        expected = slow(data)
        valid_count += expected is not None
        assert fast(data) == expected, data.hex()
    assert 1_000 < valid_count < 20_000


def test_garbage_changes_nothing() -> None:
    """100,000 mutated packets between real ones. Those that are still valid packets are left out:
    over UDP no one can tell them from the venue's."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    feed = garbage_feed()
    packets = feed.pack()
    listener = Listener()
    garbage_count = 0
    for packet in packets:
        for _ in range(100_000 // len(packets) + 1):
            data = rng.choice(MUTATIONS)(rng, rng.choice(packets))
            if slow(data) is None:
                garbage_count += 1
                listener.hear(data)
        listener.hear(packet)
        assert listener.gaps == []
        if listener.next_number in feed.digests:
            assert listener.receiver.public_digest() == feed.digests[listener.next_number]
    listener.check(feed)
    receiver = listener.receiver
    assert garbage_count > 50_000
    # Garbage behind a header that announces what is known already is not even judged.
    other_count = receiver.foreign_count + receiver.channels[1].duplicate_count
    assert receiver.error_count + other_count == garbage_count
    assert receiver.packet_count == garbage_count + len(packets)
    assert receiver.last_error


def test_a_valid_packet_from_nowhere_never_goes_unnoticed() -> None:
    """Another epoch, a number far ahead, another channel: all is well, or it is marked."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    feed = garbage_feed()
    packets = feed.pack()
    marked_count = 0
    for _ in range(400):
        listener = Listener()
        at = rng.randrange(len(packets))
        for index, packet in enumerate(packets):
            if index == at:
                kind, _, _, number, _, blocks = decode_packet(rng.choice(packets))
                channel = rng.choice((1, 1, 1, 2))
                epoch = rng.choice((EPOCH, rng.randrange(2**62)))
                number = rng.choice((number, rng.randrange(2**20, 2**61)))
                if epoch == EPOCH and number >= 2**20:
                    kind, blocks = rng.choice(((kind, blocks), (HEARTBEAT, [])))
                stray = encode_packet(Packet(kind, channel, epoch, number, NOW, blocks))
                listener.hear(stray)
            listener.hear(packet)
            listener.wait(1_000_000)
        listener.wait(HELD_NS)
        receiver = listener.receiver
        is_right = receiver.epoch == EPOCH and receiver.is_complete
        marked_count += not is_right
        if is_right:
            assert receiver.public_digest() == digest(feed.truths)
        elif receiver.epoch == EPOCH:
            assert listener.gaps
            assert all(book.is_stale for book in receiver.market.books.values())
        else:
            assert receiver.old_count or at == 0
    assert 0 < marked_count < 400


def test_a_truth_is_not_what_it_tests() -> None:
    """The model sorts a list; a price, then the time of entry."""
    truth = Truth()
    assert truth.side(1) == []
    feed = Feed(seed=3)
    feed.list_instrument(1)
    feed.random_commands(200)
    buys = feed.truths[1].side(1)
    assert buys == sorted(buys, key=lambda row: -row[1])
