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
from protocol.market_data import Trade
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
    venue.report(CancelRejected(1, 2, 3, 4, 2, *(0,) * 7))
    venue.report(OrderCanceled(1, 2, 2**40, 2**33, 0, *(0,) * 6))  # Nobody asked.
    venue.report(OrderCanceled(1, 2, 2**40, 2**33, 3, *(0,) * 6))
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


@dataclass
class MarketData:
    """A line of market data that the generator listens to."""

    sender: socket.socket
    address: tuple[str, int]

    def send(self, *datagrams: bytes) -> None:
        for datagram in datagrams:
            self.sender.sendto(datagram, self.address)

    def send_messages(self, number: int, *messages: object) -> None:
        blocks = [packets.Block(0, wire.encode(message)) for message in messages]
        self.send(packets.encode_packet(packets.Packet(packets.DATA, 1, 5, number, 0, blocks)))


@contextmanager
def line_of(generator: Generator) -> Iterator[MarketData]:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind(("127.0.0.1", 0))
        generator.listen(receiver.fileno())
        yield MarketData(sender, receiver.getsockname())


def test_market_data_is_counted_and_its_numbers_compared(venue: Venue) -> None:
    def packet(number: int, *, count: int, kind: int = packets.DATA, channel: int = 1) -> bytes:
        blocks = [packets.Block(0, b"\x91\x01")] * count
        return packets.encode_packet(packets.Packet(kind, channel, 5, number, 0, blocks))

    with line_of(venue.generator) as line:

        def send(*datagrams: bytes) -> tuple[int, int, int]:
            line.send(*datagrams)
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


def test_a_second_line_is_compared_and_not_counted_again(venue: Venue) -> None:
    generator = venue.generator
    with line_of(generator) as line_a, line_of(generator) as line_b:
        for number in (1, 2, 3):
            line_a.send_messages(number, trade(number))
            if number != 2:
                line_b.send_messages(number, trade(number))
        generator.run(2 * MILLISECOND)
        found = generator.packet_count, generator.message_count, generator.lost_count
        assert found == (3, 3, 1)
        with pytest.raises(AssertionError, match="more than 2 lines"):
            generator.listen(0)


# An open loop.


def trade(sequence: int) -> Trade:
    return Trade(sequence, 1, 1, 1, 50, 100, 1, 100)


@contextmanager
def paced(interval_ns: int, in_flight: int = IN_FLIGHT, count: int = 64) -> Iterator[Venue]:
    """An open loop with one connection, which has not sent anything yet."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    with ours, theirs:
        generator = Generator(in_flight)
        generator.add(theirs.fileno(), make_script(count), FIRST_REPORT)
        generator.is_sending = True
        generator.reset()
        generator.pace(interval_ns)
        yield Venue(generator, ours, theirs)


def run_until(venue: Venue, due_count: int) -> None:
    """Let so many requests fall due, however busy the machine is, and no more."""
    while venue.generator.due_count < due_count:
        venue.generator.run(MILLISECOND // 10)
    venue.generator.end()


def test_requests_fall_due_whatever_the_answers_do() -> None:
    with paced(MILLISECOND // 10, in_flight=4_096, count=4_096) as venue:
        run_until(venue, 20)
        venue.generator.run(MILLISECOND)
        assert venue.generator.answer_count == 0
        sent = venue.read()
        count = venue.generator.due_count
        assert count >= 20
        assert sent == [(n, ID_BASE + n - 1) for n in range(1, count + 1)]
        assert venue.generator.unanswered_count == count
        venue.generator.run(MILLISECOND)
        assert venue.read() == [], "nothing falls due after the end"


def test_what_cannot_be_sent_yet_is_late_not_forgotten() -> None:
    interval_ns = 2 * MILLISECOND
    with paced(interval_ns) as venue:
        generator = venue.generator
        run_until(venue, 3 * IN_FLIGHT)
        count = generator.due_count
        assert generator.unanswered_count == count
        for number in range(1, count + 1):
            assert len(venue.read()) == (
                IN_FLIGHT if number == 1 else number <= count - IN_FLIGHT + 1
            )
            venue.accept(number)
        late_ns = [duration_ns for duration_ns, _ in generator.latencies()]
        # The last of the first ones was due many intervals before the end.
        assert max(late_ns) >= (count - 1) * interval_ns
        assert generator.answer_count == generator.due_count == count
        assert generator.unanswered_count == 0


def test_what_was_due_before_a_reset_is_answered_and_not_counted() -> None:
    with paced(MILLISECOND, in_flight=64) as venue:
        generator = venue.generator
        while generator.due_count < 3:
            generator.run(MILLISECOND // 10)
        before = len(venue.read())
        generator.reset()
        while generator.due_count < 3:
            generator.run(MILLISECOND // 10)
        generator.end()
        generator.run(MILLISECOND)
        count = before + len(venue.read())
        for number in range(1, count + 1):
            venue.accept(number)
        # One that fell due before the reset may have been sent behind it.
        assert count - before - 1 <= generator.due_count <= count - before
        assert generator.answer_count == generator.due_count
        assert sum(counted for _, counted in generator.latencies()) == generator.due_count


def test_connections_take_turns() -> None:
    with paced(MILLISECOND // 10, in_flight=4_096, count=4_096) as venue:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        with ours, theirs:
            venue.generator.add(theirs.fileno(), make_script(4_096), FIRST_REPORT)
            other = Venue(venue.generator, ours, theirs)
            run_until(venue, 20)
            venue.generator.run(MILLISECOND)
            first, second = venue.read(), other.read()
            assert abs(len(first) - len(second)) <= 1
            assert len(first) + len(second) == venue.generator.due_count


def test_a_trade_is_timed_from_when_its_order_was_due() -> None:
    with paced(MILLISECOND, in_flight=64) as venue, line_of(venue.generator) as line:
        generator = venue.generator
        run_until(venue, 4)
        generator.run(MILLISECOND)
        # The report before the trade, the trade before the report, and an order without a trade.
        venue.accept(1)
        line.send_messages(1, trade(7_001), trade(7_001), trade(6_999))
        generator.run(MILLISECOND)
        assert len(generator.trade_latencies()) == 1
        line.send_messages(4, trade(7_002))
        generator.run(MILLISECOND)
        venue.accept(2)
        venue.accept(3)
        ((first_ns, one), *rest) = generator.trade_latencies()
        assert one + sum(count for _, count in rest) == 2
        assert first_ns >= 3 * MILLISECOND, "the first was due three intervals before the fourth"
        # The same packet on another line, or again, is no other trade.
        line.send_messages(4, trade(7_002))
        generator.run(MILLISECOND)
        assert sum(count for _, count in generator.trade_latencies()) == 2
        generator.reset()
        line.send_messages(5, trade(7_003))
        generator.run(MILLISECOND)
        assert generator.trade_latencies() == [], "due before the reset"


def test_a_packet_that_is_none_has_no_trades() -> None:
    with paced(MILLISECOND, in_flight=64) as venue, line_of(venue.generator) as line:
        run_until(venue, 1)
        venue.generator.run(MILLISECOND)
        venue.accept(1)
        whole = packets.encode_packet(
            packets.Packet(packets.DATA, 1, 5, 1, 0, [packets.Block(0, wire.encode(trade(7_001)))])
        )
        line.send(whole[:-1], whole[:33], whole[:32] + bytes(3), whole[:32] + b"\xff\xff\x00")
        venue.generator.run(MILLISECOND)
        assert venue.generator.trade_latencies() == []
        line.send(whole)
        venue.generator.run(MILLISECOND)
        assert len(venue.generator.trade_latencies()) == 1


@given(st.integers(0, 2**40 - 1))
def test_the_histogram_rounds_up_by_less_than_half_a_percent(duration_ns: int) -> None:
    rounded = rounded_ns(duration_ns)
    assert duration_ns <= rounded <= duration_ns * 1.004
    assert rounded_ns(rounded) == rounded
    assert rounded_ns(rounded + 1) > rounded or rounded >= 2**40 - 1


def test_the_histogram_ends_somewhere() -> None:
    assert rounded_ns(2**50) == rounded_ns(2**40 - 1) == 2**40 - 1
