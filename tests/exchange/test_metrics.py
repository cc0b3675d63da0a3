"""Histograms, loop lag, and the endpoint: exact figures, hostile scrapers, bounds."""

import asyncio
import random
from collections.abc import Callable, Iterable
from typing import Any, cast

import pytest
from prometheus_client import Metric
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families

from exchange import metrics
from exchange.metrics import (
    CONNECTIONS_MAX,
    LAG_INTERVAL_S,
    NANOSECONDS_PER_SECOND,
    REQUEST_SIZE_MAX,
    SCRAPE_WAIT_S,
    TEXT_INTERVAL_NS,
    Histogram,
    LoopLag,
    MetricsServer,
)
from tests.exchange.loops import on_both_loops
from tests.exchange.node.world import START_NS, StepClock, StepLoop

REQUEST = b"GET /metrics HTTP/1.1\r\nHost: venue\r\nAccept: */*\r\n\r\n"

SECOND = NANOSECONDS_PER_SECOND


class Socket(asyncio.Transport):
    """A transport in memory. A peer that is stalled takes nothing."""

    def __init__(self, loop: StepLoop, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.sent = b""
        self.is_stalled = False
        self.lost_count = 0
        self.takes_data = True
        self._is_closing = False
        self._loop = loop
        self._protocol = protocol
        protocol.connection_made(self)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self._is_closing, "written after the end"
        self.sent += bytes(data)

    def pause_reading(self) -> None:
        self.takes_data = False

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        self._is_closing = True
        if not self.is_stalled:
            self._lose()

    def abort(self) -> None:
        self._is_closing = True
        self._lose()

    def _lose(self) -> None:
        if not self.lost_count:
            self.lost_count = 1
            self._loop.call_soon(self._protocol.connection_lost, None)


class Endpoint:
    """A server on virtual time, with one figure: how often it was read."""

    def __init__(self) -> None:
        self.loop = StepLoop(START_NS)
        self.lines: list[str] = []
        self.read_count = 0
        self.error: Exception | None = None
        self.on_read: Callable[[], None] | None = None
        clock = StepClock(self.loop)
        loop = cast("asyncio.AbstractEventLoop", self.loop)
        self.server = MetricsServer(self._collect, self.lines.append, loop, clock.monotonic_ns)
        self._clients: list[tuple[Socket, asyncio.Protocol]] = []

    def _collect(self) -> Iterable[Metric]:
        self.read_count += 1
        yield GaugeMetricFamily("brier_reads", "Texts.", value=self.read_count)
        if self.error is not None:
            raise self.error
        if self.on_read is not None:
            self.on_read()
        yield CounterMetricFamily("brier_things_total", "Things.", value=2**53)

    def connect(self, data: bytes = b"") -> Socket:
        protocol = metrics._Scrape(self.server)
        socket = Socket(self.loop, protocol)
        self._clients.append((socket, protocol))
        if data:
            self.send(socket, data)
        return socket

    def send(self, socket: Socket, data: bytes) -> None:
        (protocol,) = [one for other, one in self._clients if other is socket]
        protocol.data_received(data)


@pytest.fixture
def endpoint() -> Endpoint:
    return Endpoint()


def split(answer: bytes) -> tuple[str, dict[str, str], str]:
    """Status, headers and text of an answer."""
    head, _, text = answer.decode().partition("\r\n\r\n")
    first, *lines = head.split("\r\n")
    version, _, status = first.partition(" ")
    assert version == "HTTP/1.1"
    return status, dict(line.split(": ", 1) for line in lines), text


def samples(text: str) -> dict[str, float]:
    """Every sample that has no label, by name."""
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.labels
    }


# Histograms.


def test_a_value_on_a_bound_is_below_it() -> None:
    histogram = Histogram((10, 20, 40))
    for value in (0, 10, 11, 20, 39, 40, 41, 1_000):
        histogram.add(value)
    assert histogram.counts == [2, 2, 2, 2]
    assert histogram.total == 1_161


def test_a_family_is_cumulative_and_in_base_units() -> None:
    histogram = Histogram((50_000, 100_000))
    for value in (50_000, 60_000, 70_000, 100_001):
        histogram.add(value)
    family = histogram.family("brier_commit_seconds", "Commits.", SECOND)
    found = {(one.name, one.labels.get("le")): one.value for one in family.samples}
    assert found == {
        ("brier_commit_seconds_bucket", "5e-05"): 1,
        ("brier_commit_seconds_bucket", "0.0001"): 3,
        ("brier_commit_seconds_bucket", "+Inf"): 4,
        ("brier_commit_seconds_count", None): 4,
        ("brier_commit_seconds_sum", None): 280_001 / SECOND,
    }


@pytest.mark.parametrize("bounds", [(), (1, 1), (2, 1)])
def test_bounds_go_up(bounds: tuple[int, ...]) -> None:
    with pytest.raises(AssertionError):
        Histogram(bounds)


# Lag.


def test_lag_is_what_the_loop_was_late() -> None:
    loop = StepLoop(START_NS)
    clock = StepClock(loop)
    lag = LoopLag(cast("asyncio.AbstractEventLoop", loop), clock.monotonic_ns)
    lag.start()
    loop.sleep(10 * LAG_INTERVAL_S)
    assert lag.histogram.counts[0] == 10
    assert lag.histogram.total == 0

    def stall() -> None:
        loop.now_ns += 3_000_000 + round(LAG_INTERVAL_S * SECOND)

    loop.call_later(0, stall)
    loop.sleep(2 * LAG_INTERVAL_S)
    assert lag.histogram.total == 3_000_000, "late by what it stood still beyond the interval"
    assert lag.histogram.counts[3] == 1, "between 2 and 4 ms"
    lag.stop()
    counts = list(lag.histogram.counts)
    loop.sleep(1)
    assert lag.histogram.counts == counts


# The endpoint on virtual time.


def test_an_answer_has_every_family_whole(endpoint: Endpoint) -> None:
    socket = endpoint.connect(REQUEST)
    endpoint.loop.sleep(0)
    status, headers, text = split(socket.sent)
    assert status == "200 OK"
    assert headers == {
        "Content-Type": "text/plain; version=0.0.4; charset=utf-8",
        "Content-Length": str(len(text)),
        "Connection": "close",
    }
    assert samples(text) == {"brier_reads": 1, "brier_things_total": 2**53}
    assert "# HELP brier_reads Texts.\n# TYPE brier_reads gauge\n" in text
    assert socket.lost_count == 1
    assert endpoint.server.connection_count == 0


def test_a_request_may_come_byte_by_byte(endpoint: Endpoint) -> None:
    socket = endpoint.connect()
    for index in range(len(REQUEST)):
        assert not socket.sent
        endpoint.send(socket, REQUEST[index : index + 1])
    endpoint.loop.sleep(0)
    assert split(socket.sent)[0] == "200 OK"


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"GET /metrics?x=1 HTTP/1.0", "200 OK"),
        (b"GET / HTTP/1.1", "404 Not Found"),
        (b"GET /metricsx HTTP/1.1", "404 Not Found"),
        (b"POST /metrics HTTP/1.1", "405 Method Not Allowed"),
        (b"get /metrics HTTP/1.1", "405 Method Not Allowed"),
        (b"GET  /metrics HTTP/1.1", "400 Bad Request"),
        (b"GET /metrics HTTP/2", "400 Bad Request"),
        (b"GET /metrics", "400 Bad Request"),
        (b"", "400 Bad Request"),
        (bytes(range(128, 256)), "400 Bad Request"),
        (b"\r\n\r\n" * 1_000, "400 Bad Request"),
    ],
)
def test_each_request_has_its_status(endpoint: Endpoint, line: bytes, status: str) -> None:
    socket = endpoint.connect(line + b"\r\nHost: venue\r\n\r\n")
    endpoint.loop.sleep(0)
    assert split(socket.sent)[0] == status
    assert socket.lost_count == 1
    assert endpoint.read_count == (status == "200 OK")


@pytest.mark.parametrize("piece_size", [1, 1_000, REQUEST_SIZE_MAX + 1, 256 * 1024])
def test_a_request_without_end_is_refused(endpoint: Endpoint, piece_size: int) -> None:
    socket = endpoint.connect()
    size = 0
    while not socket.is_closing():
        endpoint.send(socket, b"x" * piece_size)
        size += piece_size
    assert split(socket.sent)[0] == "431 Request Header Fields Too Large"
    assert size <= REQUEST_SIZE_MAX + piece_size
    assert not socket.takes_data


def test_a_long_head_is_refused_though_it_ends(endpoint: Endpoint) -> None:
    socket = endpoint.connect(
        b"GET /metrics HTTP/1.1\r\nX: " + b"x" * REQUEST_SIZE_MAX + b"\r\n\r\n"
    )
    assert split(socket.sent)[0] == "431 Request Header Fields Too Large"


def test_garbage_changes_nothing(endpoint: Endpoint) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    for _ in range(200):
        data = rng.randbytes(rng.randrange(1, 2_000))
        socket = endpoint.connect(data)
        if rng.random() < 0.5:
            endpoint.send(socket, b"\r\n\r\n" + data)
        endpoint.loop.run()
        assert endpoint.server.connection_count <= CONNECTIONS_MAX
    socket = endpoint.connect(REQUEST)
    endpoint.loop.sleep(0)
    assert split(socket.sent)[0] == "200 OK"
    assert endpoint.lines == []


def test_figures_are_read_after_the_request(endpoint: Endpoint) -> None:
    """Requests of one moment share a text; one that comes while it is made waits for the next."""
    late: list[Socket] = []
    endpoint.on_read = lambda: late.append(endpoint.connect(REQUEST))
    first, second = endpoint.connect(REQUEST), endpoint.connect(REQUEST)
    endpoint.loop.sleep(0)
    assert samples(split(first.sent)[2])["brier_reads"] == 1
    assert split(first.sent) == split(second.sent)
    endpoint.on_read = None
    endpoint.loop.sleep(TEXT_INTERVAL_NS / SECOND)
    assert samples(split(late[0].sent)[2])["brier_reads"] == 2
    assert endpoint.server.text_count == 2


def test_texts_a_second_are_bounded(endpoint: Endpoint) -> None:
    answered = 0
    for _ in range(1_000):
        socket = endpoint.connect(REQUEST)
        endpoint.loop.sleep(0.001)
        answered += bool(socket.sent)
    endpoint.loop.sleep(1)
    assert endpoint.server.text_count <= 1 + SECOND // TEXT_INTERVAL_NS
    assert answered >= 1


def test_silent_scrapers_make_room_for_a_newcomer(endpoint: Endpoint) -> None:
    silent = [endpoint.connect(b"GET") for _ in range(CONNECTIONS_MAX)]
    scraper = endpoint.connect(REQUEST)
    endpoint.loop.sleep(0)
    assert split(scraper.sent)[0] == "200 OK"
    assert [socket.lost_count for socket in silent] == [1] + [0] * (CONNECTIONS_MAX - 1)


def test_a_silent_scraper_is_cut(endpoint: Endpoint) -> None:
    socket = endpoint.connect()
    endpoint.loop.sleep(SCRAPE_WAIT_S - 0.001)
    assert socket.lost_count == 0
    endpoint.loop.sleep(0.001)
    assert socket.lost_count == 1
    assert endpoint.server.connection_count == 0


def test_a_scraper_that_does_not_read_is_cut(endpoint: Endpoint) -> None:
    socket = endpoint.connect()
    socket.is_stalled = True
    endpoint.send(socket, REQUEST)
    endpoint.loop.sleep(SCRAPE_WAIT_S - 0.001)
    assert socket.lost_count == 0
    endpoint.send(socket, REQUEST)  # It is not heard any more.
    endpoint.loop.sleep(0.001)
    assert socket.lost_count == 1
    assert endpoint.server.text_count == 1


def test_a_scraper_that_has_gone_is_forgotten(endpoint: Endpoint) -> None:
    socket = endpoint.connect(REQUEST)
    socket.abort()
    endpoint.loop.run()
    assert endpoint.server.connection_count == 0
    assert not endpoint.server._waiting
    endpoint.loop.sleep(1)
    assert not socket.sent


def test_a_figure_that_cannot_be_read_is_told(endpoint: Endpoint) -> None:
    endpoint.error = AttributeError("no such figure")
    socket = endpoint.connect(REQUEST)
    endpoint.loop.sleep(0)
    assert split(socket.sent)[0] == "500 Internal Server Error"
    assert endpoint.lines == ["AttributeError: no such figure"]
    endpoint.error = None
    socket = endpoint.connect(REQUEST)
    endpoint.loop.sleep(1)
    assert split(socket.sent)[0] == "200 OK"


def test_a_figure_that_has_no_text_is_told(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        endpoint, "_collect", lambda: [GaugeMetricFamily("x", "x", value=cast("Any", "y"))]
    )
    endpoint.server._collect = endpoint._collect
    socket = endpoint.connect(REQUEST)
    endpoint.loop.sleep(0)
    assert split(socket.sent)[0] == "500 Internal Server Error"
    assert len(endpoint.lines) == 1


def test_close_cuts_everybody(endpoint: Endpoint) -> None:
    sockets = [endpoint.connect(), endpoint.connect(REQUEST)]
    endpoint.server.close()
    endpoint.loop.sleep(SCRAPE_WAIT_S)
    assert all(socket.lost_count == 1 and not socket.sent for socket in sockets)
    assert endpoint.server.connection_count == 0


# The endpoint on a real loop.


async def serve_one(collect: Callable[[], Iterable[Metric]]) -> MetricsServer:
    loop = asyncio.get_running_loop()
    server = MetricsServer(collect, pytest.fail, loop, lambda: round(loop.time() * SECOND))
    await server.listen("127.0.0.1", 0)
    return server


@on_both_loops
async def test_many_scrapers_at_a_time_over_sockets() -> None:
    family = GaugeMetricFamily("brier_long", "Long.", labels=["n"])
    for number in range(5_000):
        family.add_metric([str(number)], number)
    server = await serve_one(lambda: [family])

    async def scrape(request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(*server.address)
        try:
            writer.write(request)
            return await reader.read()
        finally:
            writer.close()

    answers = await asyncio.gather(*(scrape(REQUEST) for _ in range(CONNECTIONS_MAX)))
    for answer in answers:
        status, headers, text = split(answer)
        assert status == "200 OK"
        assert int(headers["Content-Length"]) == len(text)
        (found,) = text_string_to_metric_families(text)
        assert [sample.value for sample in found.samples] == list(range(5_000))
    assert split(await scrape(b"\x16\x03\x01\r\n\r\n"))[0] == "400 Bad Request"
    address = server.address
    server.close()
    with pytest.raises(OSError):  # noqa: PT011 - refused, in the words of either loop
        await asyncio.open_connection(*address)


@on_both_loops
async def test_a_port_that_is_taken_is_an_error() -> None:
    server = await serve_one(list)
    other = MetricsServer(list, pytest.fail, asyncio.get_running_loop(), lambda: 0)
    with pytest.raises(OSError, match="address already in use"):
        await other.listen(*server.address)
    server.close()
