"""Datagrams of two lines to messages, once and in order, against the truth of what was said."""

import random
from io import BytesIO
from typing import Final

import pytest

from protocol.market_data import MarketDataMessage, OrderDeleted
from protocol.packets import DATA, HEARTBEAT, SNAPSHOT, Block, Packet, encode_packet
from protocol.wire import encode
from tools import recording
from tools.pcap import Datagram, PcapWriter, read_pcap
from tools.recording import EPOCHS_MAX, Place, Recorder

EPOCH: Final = 3 << 20
Said = tuple[int, int, MarketDataMessage]
"""Channel, number, message."""


def message(number: int, channel: int = 1, later_ns: int = 0) -> MarketDataMessage:
    return OrderDeleted(number, number + 7 + later_ns, channel, number)


def packet(
    number: int, count: int = 1, *, channel: int = 1, epoch: int = EPOCH, later_ns: int = 0
) -> bytes:
    numbers = range(number, number + count)
    blocks = [Block(3, encode(message(one, channel, later_ns))) for one in numbers]
    return encode_packet(Packet(DATA, channel, epoch, number, 1_000 + number, blocks))


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

    def numbers(self, channel: int = 1, epoch: int = EPOCH) -> list[int]:
        places = (place for place, _ in self.told)
        return [one.number for one in places if (one.epoch, one.channel) == (epoch, channel)]

    @property
    def held_size(self) -> int:
        return self.recorder.held_size


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


def test_a_hole_is_counted_when_too_much_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Heard()
    heard.take(packet(1), packet(1, channel=2), packet(3, channel=2), packet(10, 2))
    waiting_size = heard.held_size
    monkeypatch.setattr(recording, "HELD_SIZE_MAX", waiting_size)
    heard.take(packet(12, 2))
    assert heard.held_size <= waiting_size
    assert heard.numbers() == [1, 10, 11], "the channel where most waits goes on"
    assert heard.numbers(channel=2) == [1]
    assert heard.recorder.counts.missing == 8
    heard.take(packet(4))
    assert heard.numbers() == [1, 10, 11, 12, 13]
    assert heard.recorder.counts.duplicates == 1
    assert heard.recorder.counts.set_backs == 0


def test_what_a_feed_brings_seconds_later_is_in_its_place() -> None:
    heard = Heard()
    numbers = [one for one in range(1, 15_001) if one != 20]
    heard.take(*map(packet, numbers[:12_000]))
    assert heard.numbers() == list(range(1, 20))
    heard.take(packet(20))
    assert len(heard.numbers()) < 100, "a long wait is worked off in slices"
    heard.take(*map(packet, numbers[12_000:]))
    assert heard.numbers() == list(range(1, 15_001))
    counts = heard.recorder.counts
    assert (counts.missing, counts.duplicates, heard.held_size) == (0, 0, 0)


def test_what_waits_at_the_end_is_taken() -> None:
    heard = Heard()
    heard.take(packet(1), packet(4), packet(9))
    heard.recorder.end()
    assert heard.numbers() == [1, 4, 9]
    assert heard.recorder.counts.missing == 6


def test_epochs_do_not_disturb_each_other() -> None:
    heard = Heard()
    for number in (1, 2, 4, 3, 5):
        heard.take(packet(number), packet(6 - number, epoch=EPOCH + 4))
    heard.recorder.end()
    assert heard.numbers(epoch=EPOCH) == [1, 2, 3, 4, 5]
    assert heard.numbers(epoch=EPOCH + 4) == [5]
    assert heard.recorder.counts.epochs == 2
    assert heard.recorder.counts.missing == 0
    assert heard.recorder.next_number(1) == 6


def test_the_epoch_that_was_silent_for_longest_is_over() -> None:
    heard = Heard()
    heard.take(packet(1), packet(1, epoch=EPOCH + 1), packet(3, epoch=EPOCH + 1), packet(2))
    others = range(2, EPOCHS_MAX)
    heard.take(packet(4), *(packet(7, epoch=EPOCH + one) for one in others))
    assert heard.numbers(epoch=EPOCH + 1) == [1]
    heard.take(packet(5), packet(7, epoch=EPOCH + EPOCHS_MAX))
    assert heard.numbers(epoch=EPOCH + 1) == [1, 3], "what waited is taken"
    heard.take(packet(3))
    assert heard.numbers(epoch=EPOCH) == [1, 2, 3, 4, 5]
    assert heard.recorder.counts.epochs == EPOCHS_MAX + 1
    assert heard.recorder.counts.missing == 1
    assert heard.held_size == 0


def test_what_a_venue_says_after_it_was_set_back_is_there_too() -> None:
    heard = Heard()
    old = [packet(one) for one in range(1, 11)]
    heard.take(*old, packet(12), packet(14, later_ns=100))
    heard.take(packet(6, later_ns=100), *old, packet(13), packet(11))
    new = [packet(one, later_ns=100) for one in range(6, 16)]
    heard.take(*new, *new)
    heard.recorder.end()
    assert heard.numbers() == [*range(1, 11), 12, *range(6, 16)]
    assert [one.time_ns - place.number for place, one in heard.told] == [7] * 11 + [107] * 10
    counts = heard.recorder.counts
    assert (counts.set_backs, counts.missing, counts.invalid) == (1, 1, 0)


def test_a_set_back_in_the_middle_of_a_packet_is_seen() -> None:
    heard = Heard()
    heard.take(packet(1, 6), packet(4, 8, later_ns=100))
    assert heard.numbers() == [*range(1, 7), *range(4, 12)]
    assert heard.recorder.counts.set_backs == 1


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
        "epochs": 1,
        "set_backs": 0,
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
