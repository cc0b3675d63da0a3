"""Datagrams of two lines to messages, once and in order, against the truth of what was said."""

import random
from io import BytesIO
from typing import Final

from protocol.market_data import MarketDataMessage, OrderDeleted
from protocol.packets import DATA, HEARTBEAT, SNAPSHOT, Block, Packet, encode_packet
from protocol.wire import encode
from tools.pcap import Datagram, PcapWriter, read_pcap
from tools.recording import HELD_PACKETS_MAX, PAST_EPOCHS_MAX, Place, Recorder

EPOCH: Final = 3 << 20
Said = tuple[int, int, MarketDataMessage]
"""Channel, number, message."""


def message(number: int, channel: int = 1) -> MarketDataMessage:
    return OrderDeleted(number, number + 7, channel, number)


def packet(
    number: int, count: int = 1, *, channel: int = 1, epoch: int = EPOCH, kind: int = DATA
) -> bytes:
    blocks = [Block(3, encode(message(one, channel))) for one in range(number, number + count)]
    return encode_packet(Packet(kind, channel, epoch, number, 1_000 + number, blocks))


class Heard:
    """A recorder, and what it gives to the tables."""

    def __init__(self, pcap: PcapWriter | None = None) -> None:
        self.told: list[tuple[Place, MarketDataMessage]] = []
        self.recorder = Recorder(pcap, lambda place, one: self.told.append((place, one)))
        self.time_ns = 0

    def take(self, *payloads: bytes) -> None:
        for payload in payloads:
            self.time_ns += 1
            self.recorder.take(Datagram(self.time_ns, ("a", 1), ("b", 2), payload))

    def numbers(self, channel: int = 1) -> list[int]:
        return [place.number for place, _ in self.told if place.channel == channel]


def test_lines_that_lose_and_shuffle_give_everything_once_and_in_order() -> None:
    for _ in range(20):
        seed = random.randrange(2**32)
        print(f"seed {seed}")
        rng = random.Random(seed)
        sent: list[tuple[float, bytes]] = []
        numbers = {1: 1, 2: 1}
        for turn in range(300):
            channel, count = rng.randrange(1, 3), rng.randrange(1, 9)
            payload = packet(numbers[channel], count, channel=channel)
            numbers[channel] += count
            lines = rng.choice(["ab", "a", "b", "ab"])
            sent += [(turn + rng.random() * 20, payload) for _ in lines]
        # A first packet in its place: what comes before the first that is heard is not waited for.
        sent += [(-1, packet(1)), (-1, packet(1, channel=2))]
        heard = Heard()
        heard.take(*(payload for _, payload in sorted(sent)))
        heard.recorder.end()
        for channel, next_number in numbers.items():
            assert heard.numbers(channel) == list(range(1, next_number))
            assert heard.recorder.next_number(channel) == next_number
        for place, one in heard.told:
            assert one == message(place.number, place.channel)
        counts = heard.recorder.counts
        assert (counts.missing, counts.invalid, counts.datagrams) == (0, 0, len(sent))
        assert counts.messages == sum(numbers.values()) - 2


def test_where_a_message_was() -> None:
    heard = Heard()
    heard.take(packet(5, 2), packet(9), packet(7, 2))
    assert [place for place, _ in heard.told] == [
        Place(EPOCH, 1, 5, 1_005, 1),
        Place(EPOCH, 1, 6, 1_005, 1),
        Place(EPOCH, 1, 7, 1_007, 3),
        Place(EPOCH, 1, 8, 1_007, 3),
        Place(EPOCH, 1, 9, 1_009, 2),
    ]


def test_packets_that_are_cut_elsewhere_are_put_together() -> None:
    heard = Heard()
    heard.take(packet(1, 4), packet(1, 2), packet(3, 5), packet(2, 3), packet(8, 1), packet(8, 3))
    assert heard.numbers() == list(range(1, 11))
    assert heard.recorder.counts.duplicates == 2


def test_a_longer_packet_takes_the_place_of_one_that_waits() -> None:
    heard = Heard()
    heard.take(packet(1), packet(5, 1), packet(5, 4), packet(5, 2), packet(2, 3))
    assert heard.numbers() == list(range(1, 9))
    assert heard.recorder.counts.duplicates == 1


def test_a_hole_is_counted_when_too_much_waits() -> None:
    heard = Heard()
    heard.take(packet(1), packet(10, 2))
    heard.take(*(packet(10 + 2 * one, 2) for one in range(1, HELD_PACKETS_MAX)))
    assert heard.numbers() == [1]
    heard.take(packet(10 + 2 * HELD_PACKETS_MAX))
    assert heard.numbers() == [1, *range(10, 11 + 2 * HELD_PACKETS_MAX)]
    assert heard.recorder.counts.missing == 8
    heard.take(packet(4))
    assert heard.recorder.counts.duplicates == 1


def test_what_waits_at_the_end_is_taken() -> None:
    heard = Heard()
    heard.take(packet(1), packet(4), packet(9))
    heard.recorder.end()
    assert heard.numbers() == [1, 4, 9]
    assert heard.recorder.counts.missing == 6


def test_another_epoch_begins_anew_and_the_last_one_does_not_come_back() -> None:
    heard = Heard()
    heard.take(
        packet(7), packet(9), packet(1, epoch=EPOCH + 1), packet(8), packet(2, epoch=EPOCH + 1)
    )
    assert [(place.epoch - EPOCH, place.number) for place, _ in heard.told] == [
        *((0, 7), (0, 9)),
        *((1, 1), (1, 2)),
    ]
    for epoch in range(2, 2 * PAST_EPOCHS_MAX):
        heard.take(packet(1, epoch=EPOCH + epoch), packet(2, epoch=EPOCH + epoch - 1))
    assert heard.told[-1][0].epoch == EPOCH + 2 * PAST_EPOCHS_MAX - 1
    assert len(heard.told) == 4 + 2 * PAST_EPOCHS_MAX - 2


def test_what_is_no_message_is_counted() -> None:
    heard = Heard()
    bad = encode_packet(
        Packet(DATA, 1, EPOCH, 1, 1, [Block(3, b"\x91\x6e"), Block(3, b"\x91\x7f")])
    )
    blocks = [Block(3, encode(message(1)))]
    snapshot = encode_packet(Packet(SNAPSHOT, 1, EPOCH, 1, 1, blocks))
    heartbeat = encode_packet(Packet(HEARTBEAT, 1, EPOCH, 1, 1, []))
    heard.take(b"", b"no packet", bad, snapshot, heartbeat, packet(3))
    assert heard.numbers() == [3]
    assert heard.recorder.counts.as_dict() == {
        "datagrams": 6,
        "messages": 3,
        "missing": 0,
        "duplicates": 0,
        "snapshots": 1,
        "unknown": 1,
        "invalid": 3,
    }


def test_the_capture_has_everything_as_it_came() -> None:
    file = BytesIO()
    heard = Heard(PcapWriter(file))
    payloads = [packet(1), b"no packet", packet(1), packet(3)]
    heard.recorder.take(Datagram(5, ("192.0.2.1", 1), ("239.255.66.1", 2), b"x"))
    for number, payload in enumerate(payloads):
        heard.recorder.take(Datagram(number, ("192.0.2.1", 1), ("239.255.66.1", 2), payload))
    file.seek(0)
    again = Heard()
    for datagram in read_pcap(file, "a.pcap"):
        again.recorder.take(datagram)
    assert again.told == heard.told
    assert again.recorder.counts == heard.recorder.counts


def test_without_tables_the_messages_are_counted_all_the_same() -> None:
    recorder = Recorder(None, None)
    for number in (1, 2, 2, 5):
        recorder.take(Datagram(1, ("a", 1), ("b", 2), packet(number)))
    recorder.end()
    assert (recorder.counts.messages, recorder.counts.missing) == (3, 2)
    assert recorder.next_number(1) == 6
    assert recorder.next_number(2) == 0
