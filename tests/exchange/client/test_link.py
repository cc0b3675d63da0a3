"""One connection of a client on a clock and a loop that are driven by hand."""

import asyncio
from collections.abc import Callable
from typing import Any, Final, cast

import pytest

from exchange.client.errors import ClientError, ConnectionLostError, TerminatedError
from exchange.client.limits import CLOSE_WAIT_S, FLUSH_SIZE, SECOND_LOOK_S
from exchange.client.link import Link
from protocol.codes import TerminateCode
from protocol.framing import VENUE_FRAME_SIZE_MAX, FrameReader
from protocol.order_entry import NewOrder
from protocol.session import Connection, Party, Received
from protocol.transport import (
    Heartbeat,
    Hello,
    LogOn,
    LogOnAccepted,
    LogOut,
    Terminate,
    VenueHeartbeat,
)
from protocol.wire import decode_client, encode

UTC: Final = 1_700_000_000_000_000_000
SECOND: Final = 1_000_000_000
ORDER: Final = NewOrder(1, 1, 1, 1, 5_000, 100)


class Timer:
    """A pending call; also the handle that cancels it."""

    def __init__(self, due_ns: int, call: Callable[[], None]) -> None:
        self.due_ns = due_ns
        self.call = call
        self.is_canceled = False

    def cancel(self) -> None:
        self.is_canceled = True


class HandLoop:
    """Clock and loop: nothing happens but by `turn` and `pass_time`."""

    def __init__(self) -> None:
        self.now_ns = 77 * SECOND
        self._soon: list[Callable[[], None]] = []
        self._timers: list[Timer] = []

    def time_ns(self) -> int:
        return UTC + self.now_ns

    def monotonic_ns(self) -> int:
        return self.now_ns

    def call_soon(self, call: Callable[[], None]) -> None:
        self._soon.append(call)

    def call_later(self, wait_s: float, call: Callable[[], None]) -> Timer:
        timer = Timer(self.now_ns + round(wait_s * SECOND), call)
        self._timers.append(timer)
        return timer

    def turn(self) -> None:
        calls, self._soon = self._soon, []
        for call in calls:
            call()

    def pass_time(self, duration_ns: int) -> None:
        """Run what falls due within the duration, in order, each at its time."""
        end_ns = self.now_ns + duration_ns
        while True:
            self._timers = [timer for timer in self._timers if not timer.is_canceled]
            due = min(self._timers, key=lambda timer: timer.due_ns, default=None)
            if due is None or due.due_ns > end_ns:
                break
            self._timers.remove(due)
            self.now_ns = max(self.now_ns, due.due_ns)
            due.call()
            self.turn()
        self.now_ns = end_ns


class HandTransport:
    """Records writes and what is done to the connection."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.calls: list[str] = []

    def get_extra_info(self, _name: str) -> None:
        return None

    def set_write_buffer_limits(self, high: int) -> None:
        self.calls.append(f"limit {high}")

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def is_closing(self) -> bool:
        return "close" in self.calls or "abort" in self.calls

    def close(self) -> None:
        self.calls.append("close")

    def abort(self) -> None:
        self.calls.append("abort")

    def pause_reading(self) -> None:
        self.calls.append("pause")

    def resume_reading(self) -> None:
        self.calls.append("resume")


class Bench:
    """A link as its client sees it, with the venue's machine on the other side."""

    def __init__(self) -> None:
        self.loop = HandLoop()
        self.transport = HandTransport()
        self.link = Link(self, self.loop, cast("asyncio.AbstractEventLoop", self.loop))
        self.venue = Connection(Party.VENUE, UTC)
        self.reader = FrameReader(VENUE_FRAME_SIZE_MAX)
        self.messages: list[Any] = []
        self.reasons: list[ClientError] = []
        self.is_ready = True
        self.rooms = 0

    # The owner of the link.

    def make_log_on(self, _hello: Hello) -> LogOn:
        return LogOn(1, 0, bytes(32), "mm1", bytes(32), 0, 1_000, 0, 0, "", bytes(64))

    def established(self, _accepted: LogOnAccepted) -> None:
        self.messages.append("established")

    def received(self, received: Received) -> bool:
        self.messages.append(received.message)
        return self.is_ready

    def has_room(self) -> None:
        self.rooms += 1

    def ended(self, _link: Link, reason: ClientError) -> None:
        self.reasons.append(reason)

    # The test.

    def sent(self) -> list[Any]:
        """Take what the link has written, as messages."""
        self.reader.feed(b"".join(self.transport.writes))
        self.transport.writes.clear()
        return [
            decode_client(frame.kind, frame.payload) for frame in iter(self.reader.next_frame, None)
        ]

    def say(self, *messages: Any) -> None:
        """Let the venue send, in one chunk."""
        for message in messages:
            self.venue.send(message, self.loop.time_ns())
        self.link.data_received(self.venue.data_to_send())

    def log_on(self) -> None:
        self.link.connection_made(cast("asyncio.Transport", self.transport))
        self.say(Hello(1, 0, "V", bytes(32), UTC, 4_096, 5))
        self.loop.turn()
        data = self.transport.writes[0]
        self.venue.receive_data(data, UTC)
        assert isinstance(self.sent()[0], LogOn)
        assert self.venue.next_event() is not None
        self.say(LogOnAccepted(1, UTC, 1, 1, 1, 0, 0, 1_000, 0, 0, 0))
        assert self.link.is_established


def test_an_idle_link_beats() -> None:
    bench = Bench()
    bench.log_on()
    for _ in range(5):
        bench.loop.pass_time(SECOND - 1)
        assert bench.sent() == []
        bench.loop.pass_time(1)
        assert bench.sent() == [Heartbeat(0)]
        bench.say(VenueHeartbeat(0))


def test_a_silent_venue_is_left_after_three_intervals() -> None:
    bench = Bench()
    bench.log_on()
    bench.loop.pass_time(3 * SECOND - 1)
    assert bench.sent() == [Heartbeat(0), Heartbeat(0)]
    bench.loop.pass_time(1)
    text = "nothing heard from the venue for 3000 ms"
    assert bench.sent() == [Terminate(TerminateCode.KEEPALIVE_LAPSED, text)]
    assert bench.transport.calls[-1] == "close"
    bench.link.connection_lost(None)
    [reason] = bench.reasons
    assert isinstance(reason, TerminatedError)
    assert not reason.by_venue
    assert reason.is_passing


@pytest.mark.parametrize("has_spoken", [True, False])
def test_a_busy_loop_reads_before_it_judges(has_spoken: bool) -> None:
    bench = Bench()
    bench.log_on()
    bench.loop.now_ns += 60 * SECOND  # Something else has kept the loop busy for a minute.
    bench.loop.pass_time(0)
    assert bench.sent() == []
    if has_spoken:
        bench.say(VenueHeartbeat(0))
    bench.loop.pass_time(round(SECOND_LOOK_S * SECOND))
    [message] = bench.sent()
    assert isinstance(message, Heartbeat if has_spoken else Terminate)


def test_a_venue_that_says_nothing_is_left() -> None:
    bench = Bench()
    bench.link.connection_made(cast("asyncio.Transport", bench.transport))
    bench.loop.pass_time(5 * SECOND)
    [terminate] = bench.sent()
    assert terminate.code == TerminateCode.LOG_ON_TIMEOUT
    assert bench.transport.calls[-1] == "close"


def test_a_transport_that_does_not_close_is_aborted() -> None:
    bench = Bench()
    bench.log_on()
    bench.say(Terminate(TerminateCode.SHUTDOWN, ""))
    assert bench.transport.calls[-1] == "close"
    bench.loop.pass_time(round(CLOSE_WAIT_S * SECOND))
    assert bench.transport.calls[-1] == "abort"


def test_a_log_out_waits_for_the_answer_and_not_for_ever() -> None:
    for is_answered in (True, False):
        bench = Bench()
        bench.log_on()
        bench.link.log_out()
        bench.loop.turn()
        assert bench.sent() == [LogOut()]
        if is_answered:
            bench.venue.receive_data(b"", bench.loop.time_ns())
            bench.link.data_received(terminate_frame())
            assert bench.transport.calls[-1] == "close"
        else:
            bench.loop.pass_time(round(CLOSE_WAIT_S * SECOND))
            assert bench.transport.calls[-1] == "abort"


def terminate_frame() -> bytes:
    venue = Connection(Party.VENUE, UTC)
    venue.terminate(TerminateCode.LOG_OUT, "", UTC)
    return venue.data_to_send()


def test_one_turn_is_one_write_and_a_long_one_is_cut() -> None:
    bench = Bench()
    bench.log_on()
    for _ in range(100):
        bench.link.send(ORDER)
    assert bench.transport.writes == []
    bench.loop.turn()
    assert len(bench.transport.writes) == 1
    assert len(bench.sent()) == 100
    frame_size = 24 + len(encode(ORDER))
    for _ in range(FLUSH_SIZE // frame_size):
        bench.link.send(ORDER)
    assert bench.transport.writes == []
    bench.link.send(ORDER)
    assert len(bench.transport.writes) == 1
    assert FLUSH_SIZE <= len(bench.transport.writes[0]) < FLUSH_SIZE + frame_size


def test_a_held_link_reads_no_more_and_takes_silence_for_nothing() -> None:
    bench = Bench()
    bench.log_on()
    bench.is_ready = False
    bench.say(VenueHeartbeat(1), VenueHeartbeat(2), VenueHeartbeat(3))
    assert bench.messages[1:] == [VenueHeartbeat(1)]
    assert bench.transport.calls[-1] == "pause"
    bench.loop.pass_time(10 * SECOND)
    assert bench.sent() == [Heartbeat(0)] * 10
    assert bench.link.is_established
    bench.link.release()
    bench.loop.turn()
    assert bench.messages[1:] == [VenueHeartbeat(1), VenueHeartbeat(2)]
    assert bench.transport.calls[-1] == "pause"
    bench.is_ready = True
    bench.link.release()
    bench.link.release()
    bench.loop.turn()
    assert bench.messages[1:] == [VenueHeartbeat(1), VenueHeartbeat(2), VenueHeartbeat(3)]
    assert bench.transport.calls[-1] == "resume"


def test_what_was_read_before_the_end_counts_although_held() -> None:
    bench = Bench()
    bench.log_on()
    bench.is_ready = False
    bench.say(VenueHeartbeat(1), VenueHeartbeat(2), Terminate(TerminateCode.REPLACED, ""))
    assert bench.messages[1:] == [VenueHeartbeat(1)]
    bench.link.connection_lost(OSError("reset"))
    assert bench.messages[1:3] == [VenueHeartbeat(1), VenueHeartbeat(2)]
    [reason] = bench.reasons
    assert isinstance(reason, TerminatedError)
    assert reason.code == TerminateCode.REPLACED


def test_the_transports_reason_is_told() -> None:
    bench = Bench()
    bench.log_on()
    bench.link.connection_lost(OSError("reset by peer"))
    [reason] = bench.reasons
    assert isinstance(reason, ConnectionLostError)
    assert str(reason) == "connection lost: reset by peer"
    bench.loop.pass_time(60 * SECOND)
    assert bench.sent() == []


def test_a_full_transport_is_told() -> None:
    bench = Bench()
    bench.log_on()
    assert bench.transport.calls[0] == "limit 262144"
    bench.link.pause_writing()
    assert bench.link.is_full
    bench.link.resume_writing()
    assert bench.rooms == 1
    assert [bench.link.is_full] == [False]
