"""The generator against a venue that the test plays by hand, over a pair of sockets."""

import socket
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import packets, wire
from protocol.codes import RejectCode, TerminateCode
from protocol.framing import (
    CLIENT_FRAME_SIZE_MAX,
    SEQUENCED,
    SESSION,
    UNSEQUENCED,
    FrameReader,
    encode_frame,
)
from protocol.order_entry import CancelOrder, CancelRejected, OrderAccepted, OrderCanceled
from protocol.transport import SessionReject, Terminate, VenueHeartbeat
from tools.bench_script import ID_BASE, Script
from tools.errors import ToolError
from tools.generator import Generator, rounded_ns

MILLISECOND = 1_000_000
IN_FLIGHT = 4
COUNT = 6
"""Requests of the script: not a multiple of what is in flight, so that laps begin anywhere."""
FIRST_REPORT = 41


def make_script(count: int) -> Script:
    """Cancels, all of the same size."""
    frames, offsets, id_offsets = bytearray(), array("I", [0]), array("I")
    for index in range(count):
        frame = encode_frame(SEQUENCED, 0, wire.encode(CancelOrder(ID_BASE + index)))
        id_offsets.append(len(frames) + frame.index((ID_BASE + index).to_bytes(8, "big")))
        frames += frame
        offsets.append(len(frames))
    return Script(bytes(frames), offsets, id_offsets)


@dataclass
class Venue:
    """The other end of a generator's only connection."""

    generator: Generator
    ours: socket.socket
    theirs: socket.socket
    reader: FrameReader = field(default_factory=lambda: FrameReader(CLIENT_FRAME_SIZE_MAX))
    report_number: int = FIRST_REPORT

    def read(self) -> list[tuple[int, int]]:
        """Number and client order id of every request that has come."""
        found: list[tuple[int, int]] = []
        while True:
            try:
                self.reader.feed(self.ours.recv(65_536))
            except BlockingIOError:
                return found
            while (frame := self.reader.next_frame()) is not None:
                command = wire.decode_command(frame.payload)
                assert isinstance(command, CancelOrder)
                found.append((frame.number, command.client_order_id))

    def report(self, message: object) -> None:
        """Send a report, and let the generator take it in."""
        self.report_number += 1
        self.send(encode_frame(SEQUENCED, self.report_number, wire.encode(message)))

    def send(self, data: bytes) -> None:
        self.ours.sendall(data)
        self.generator.run(MILLISECOND)

    def accept(self, number: int) -> None:
        self.report(OrderAccepted(7_000 + number, 1, 2, 300, number, *(0,) * 10))


@contextmanager
def started(in_flight: int, count: int, *, is_echo: bool = False) -> Iterator[Venue]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    with ours, theirs:
        generator = Generator(in_flight, is_echo=is_echo)
        generator.add(theirs.fileno(), make_script(count), FIRST_REPORT)
        generator.is_sending = True
        generator.fill()
        yield Venue(generator, ours, theirs)


@pytest.fixture
def venue() -> Iterator[Venue]:
    with started(IN_FLIGHT, COUNT) as venue:
        yield venue


def test_requests_are_numbered_over_laps_and_ids_increase(venue: Venue) -> None:
    sent = venue.read()
    for number in range(1, 100):
        assert len(sent) == IN_FLIGHT + number - 1
        assert venue.generator.unanswered_count == IN_FLIGHT
        venue.accept(number)
        sent += venue.read()
    # Every request is a cancel here, so that all ids differ.
    assert sent == [(n, ID_BASE + n - 1) for n in range(1, IN_FLIGHT + 100)]
    assert venue.generator.answer_count == 99
    assert venue.generator.sequence == 7_099
    assert sum(count for _, count in venue.generator.latencies()) == 99


def test_every_kind_of_answer_counts_and_other_reports_do_not(venue: Venue) -> None:
    generator = venue.generator
    venue.accept(1)
    venue.report(CancelRejected(1, 2, 3, 4, 2, *(0,) * 6))
    venue.report(OrderCanceled(1, 2, 2**40, 2**33, 0, *(0,) * 5))  # Nobody asked.
    venue.report(OrderCanceled(1, 2, 2**40, 2**33, 3, *(0,) * 5))
    venue.send(encode_frame(SESSION, 45, wire.encode(VenueHeartbeat())))
    assert generator.answer_count == 3
    assert generator.tags() == {80: 1, 86: 1, 83: 2}
    generator.reset()
    assert (generator.answer_count, generator.tags(), generator.latencies()) == (0, {}, [])


def test_frames_may_come_in_pieces(venue: Venue) -> None:
    frames = b"".join(
        encode_frame(
            SEQUENCED, FIRST_REPORT + n, wire.encode(OrderAccepted(1, 2, 3, 4, n, *(0,) * 10))
        )
        for n in (1, 2)
    )
    for index in range(len(frames)):
        venue.send(frames[index : index + 1])
    assert venue.generator.answer_count == 2


def test_nothing_is_sent_after_the_end(venue: Venue) -> None:
    venue.generator.is_sending = False
    for number in range(1, IN_FLIGHT + 1):
        venue.accept(number)
    assert len(venue.read()) == IN_FLIGHT
    assert venue.generator.unanswered_count == 0


def test_a_socket_that_takes_no_more_is_waited_for() -> None:
    with started(4_096, 4_096) as venue:
        sent: list[tuple[int, int]] = []
        while len(sent) < 4_096:
            sent += venue.read()
            venue.generator.run(MILLISECOND)
        assert [number for number, _ in sent] == list(range(1, 4_097))
        venue.accept(1)
        assert venue.read() == [(4_097, ID_BASE + 4_096)]


def test_an_echo_answers_with_the_request() -> None:
    with started(IN_FLIGHT, COUNT, is_echo=True) as venue:
        for lap in range(20):
            venue.send(venue.ours.recv(65_536))
            assert venue.generator.answer_count == IN_FLIGHT * (lap + 1)


def refusal(text: str) -> bytes:
    return wire.encode(SessionReject(1, 10, RejectCode.THROTTLED, 0, 5, text))


@pytest.mark.parametrize(
    ("frame", "story"),
    [
        (
            encode_frame(SEQUENCED, 42, wire.encode(OrderAccepted(1, 2, 3, 4, 2, *(0,) * 10))),
            "connection 1: answer to request 2, 1 is due",
        ),
        (
            encode_frame(SEQUENCED, 43, wire.encode(OrderAccepted(1, 2, 3, 4, 1, *(0,) * 10))),
            "connection 1: report 43, 42 is due",
        ),
        (encode_frame(UNSEQUENCED, 42, refusal("too many")), "connection 1: SessionReject.*many"),
        (
            encode_frame(SESSION, 42, wire.encode(Terminate(TerminateCode.SHUTDOWN, "bye"))),
            "connection 1: Terminate.*bye",
        ),
        (encode_frame(SEQUENCED, 42, b""), "a frame of 24 bytes that is none"),
        (encode_frame(SEQUENCED, 42, b"\x92\xce\x01"), "a frame of 27 bytes that is none"),
        (bytes(24), "a frame of 0 bytes that is none"),
    ],
)
def test_what_should_not_come_ends_the_run(venue: Venue, frame: bytes, story: str) -> None:
    with pytest.raises(ToolError, match=story):
        venue.send(frame)


def test_a_closed_connection_ends_the_run(venue: Venue) -> None:
    venue.ours.close()
    with pytest.raises(ToolError, match=r"connection 1: (the venue closed it|Connection reset)"):
        venue.generator.run(MILLISECOND)


def test_market_data_is_counted_and_its_numbers_compared(venue: Venue) -> None:
    def packet(number: int, *, count: int, kind: int = packets.DATA, channel: int = 1) -> bytes:
        blocks = [packets.Block(0, b"\x91\x01")] * count
        return packets.encode_packet(packets.Packet(kind, channel, 5, number, 0, blocks))

    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind(("127.0.0.1", 0))
        venue.generator.listen(receiver.fileno())

        def send(*datagrams: bytes) -> tuple[int, int, int]:
            for datagram in datagrams:
                sender.sendto(datagram, receiver.getsockname())
            venue.generator.run(2 * MILLISECOND)
            generator = venue.generator
            return generator.packet_count, generator.message_count, generator.lost_count

        assert send(packet(100, count=3), packet(103, count=2)) == (2, 5, 0)
        assert send(packet(100, count=3)) == (3, 8, 0), "an old one is no loss"
        assert send(packet(107, count=1)) == (4, 9, 2)
        assert send(packet(7, count=1, channel=64)) == (5, 10, 2), "channels have their own numbers"
        assert send(packet(110, count=0, kind=packets.HEARTBEAT)) == (6, 10, 4)
        assert send(b"short", bytes(40)) == (6, 10, 4)
        assert send(*(packet(110 + n, count=1) for n in range(100))) == (106, 110, 4)


@given(st.integers(0, 2**40 - 1))
def test_the_histogram_rounds_up_by_less_than_half_a_percent(duration_ns: int) -> None:
    rounded = rounded_ns(duration_ns)
    assert duration_ns <= rounded <= duration_ns * 1.004
    assert rounded_ns(rounded) == rounded
    assert rounded_ns(rounded + 1) > rounded or rounded >= 2**40 - 1


def test_the_histogram_ends_somewhere() -> None:
    assert rounded_ns(2**50) == rounded_ns(2**40 - 1) == 2**40 - 1
