"""What a process needs to be seen by Prometheus: integer histograms, loop lag, and the endpoint.

Whoever works counts in plain integers; the text is made when somebody scrapes. The endpoint lives
on the event loop, and makes the text in slices, one family at a time, with a turn of the loop
between them. The library's own server has a thread for every connection, without any bound, and
takes the interpreter's lock when the loop has let it go for a write or sync: with batches of 0.1 ms
and ten scrapes a second the slowest turn in a thousand took 1.8 ms, with this one 0.24 ms (medians
of four runs on a shared machine; 0.32 ms without any scrape).

Everything about the port is bounded: connections, bytes and time of a request, texts a second;
scrapes that come while a text is made share the next. It speaks as much HTTP as Prometheus needs,
one request a connection, and closes on all else.
"""

import asyncio
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, cast

from prometheus_client import Metric, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.registry import Collector

__all__ = [
    "BATCH_COMMANDS_BOUNDS",
    "COMMIT_NS_BOUNDS",
    "LAG_NS_BOUNDS",
    "NANOSECONDS_PER_SECOND",
    "Histogram",
    "LoopLag",
    "MetricsServer",
    "counter",
    "counters",
    "gauge",
    "gauges",
    "info",
]

NANOSECONDS_PER_SECOND: Final = 1_000_000_000

COMMIT_NS_BOUNDS: Final = tuple(50_000 << power for power in range(15))
"""50 us, about the quickest sync there is, to 0.8 s, when operators are long awake."""

LAG_NS_BOUNDS: Final = tuple(500_000 << power for power in range(13))
"""0.5 ms, half of the tick of uvloop's timers, to 2 s, when sessions begin to lapse."""

BATCH_COMMANDS_BOUNDS: Final = tuple(1 << power for power in range(14))
"""1 to 8,192 commands: a record of 256 KiB has no room for more."""

LAG_INTERVAL_S: Final = 0.05
"""How often the loop's lateness is taken: it meets every stall that is longer."""

CONNECTIONS_MAX: Final = 8
"""Scrapers at a time; a newcomer pushes out the oldest, so that nobody can hold the port shut."""

BACKLOG: Final = 64
"""Connections that the kernel keeps until the loop accepts them: a burst must not delay others."""

REQUEST_SIZE_MAX: Final = 8 * 1024
"""Bytes of a request with its headers; that of Prometheus has about 300."""

SCRAPE_WAIT_S: Final = 5.0
"""From connecting until everything is sent: half of what Prometheus itself waits."""

TEXT_INTERVAL_NS: Final = 100_000_000
"""Least time between the starts of two texts, about a millisecond of the loop each."""

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


def gauge(name: str, text: str, value: float) -> Metric:
    """One number that goes up and down."""
    return GaugeMetricFamily(name, text, value=value)


def gauges(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    """The same for each value of a label."""
    family = GaugeMetricFamily(name, text, labels=[label])
    for value, number in values.items():
        family.add_metric([value], number)
    return family


def counter(name: str, text: str, value: float) -> Metric:
    """One number that only grows."""
    return CounterMetricFamily(name, text, value=value)


def counters(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    """The same for each value of a label."""
    family = CounterMetricFamily(name, text, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family


def info(name: str, text: str, labels: Mapping[str, str]) -> Metric:
    """Words about the process."""
    return InfoMetricFamily(name, text, value=dict(labels))


class Histogram:
    """Counts integers in buckets, for one thread. `bounds` are upper bounds, included."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[int]) -> None:
        assert bounds, "a histogram has a bound"
        assert list(bounds) == sorted(set(bounds)), "bounds go up"
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)  # the last one: above every bound
        self.total = 0  # of the values

    def add(self, value: int) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def family(self, name: str, text: str, scale: int = 1) -> HistogramMetricFamily:
        """As Prometheus wants it: cumulative, and in units of `scale` values."""
        buckets: list[tuple[str, float]] = []
        count = 0
        for bound, counted in zip(self.bounds, self.counts, strict=False):
            count += counted
            buckets.append((repr(bound / scale), count))
        buckets.append(("+Inf", count + self.counts[-1]))
        return HistogramMetricFamily(name, text, buckets=buckets, sum_value=self.total / scale)


class LoopLag:
    """How late the loop calls back, in nanoseconds: what a frame waits for before it is read."""

    def __init__(self, loop: asyncio.AbstractEventLoop, monotonic_ns: Callable[[], int]) -> None:
        self.histogram = Histogram(LAG_NS_BOUNDS)
        self._loop = loop
        self._monotonic_ns = monotonic_ns
        self._due_ns = 0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Set the timer; it sets itself again."""
        self._due_ns = self._monotonic_ns() + int(LAG_INTERVAL_S * NANOSECONDS_PER_SECOND)
        self._timer = self._loop.call_later(LAG_INTERVAL_S, self._on_timer)

    def stop(self) -> None:
        """No more; what was counted stays."""
        if self._timer is not None:
            self._timer.cancel()

    def _on_timer(self) -> None:
        self.histogram.add(max(0, self._monotonic_ns() - self._due_ns))
        self.start()


class MetricsServer:
    """The endpoint: `GET /metrics` over HTTP. All of it belongs to the loop's thread.

    `collect` is called for every text and must not change anything. When it raises, the scraper
    gets status 500 and `on_error` one line: a figure that cannot be read does not stop a market.
    """

    def __init__(
        self,
        collect: Callable[[], Iterable[Metric]],
        on_error: Callable[[str], None],
        loop: asyncio.AbstractEventLoop,
        monotonic_ns: Callable[[], int],
    ) -> None:
        self.loop = loop
        self.text_count = 0  # that were made
        self._collect = collect
        self._on_error = on_error
        self._monotonic_ns = monotonic_ns
        self._server: asyncio.Server | None = None
        self._scrapes: deque[_Scrape] = deque()
        self._waiting: list[_Scrape] = []
        self._timer: asyncio.Handle | None = None
        self._next_ns = 0  # when the next text may be begun

    async def listen(self, host: str, port: int) -> None:
        """Listen on a host and port, 0: any free one. Raises OSError."""
        self._server = await self.loop.create_server(
            lambda: _Scrape(self), host, port, backlog=BACKLOG
        )

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that it listens on."""
        assert self._server is not None, "it listens"
        host, port = self._server.sockets[0].getsockname()[:2]
        return host, port

    @property
    def connection_count(self) -> int:
        """Scrapers that are connected."""
        return len(self._scrapes)

    def close(self) -> None:
        """Stop listening and cut every scraper."""
        if self._server is not None:
            self._server.close()
        if self._timer is not None:
            self._timer.cancel()
        for scrape in list(self._scrapes):
            scrape.abort()

    # For scrapes.

    def admit(self, scrape: "_Scrape") -> None:
        """Count one in; the oldest gives way when there are too many."""
        if len(self._scrapes) >= CONNECTIONS_MAX:
            self._scrapes.popleft().abort()
        self._scrapes.append(scrape)

    def forget(self, scrape: "_Scrape") -> None:
        """The socket is gone."""
        if scrape in self._scrapes:
            self._scrapes.remove(scrape)
        if scrape in self._waiting:
            self._waiting.remove(scrape)

    def ask(self, scrape: "_Scrape") -> None:
        """Answer the scrape with a text whose figures are read after this."""
        self._waiting.append(scrape)
        if self._timer is None:
            self._schedule()

    # Texts.

    def _schedule(self) -> None:
        delay_ns = max(0, self._next_ns - self._monotonic_ns())
        self._timer = self.loop.call_later(delay_ns / NANOSECONDS_PER_SECOND, self._begin)

    def _begin(self) -> None:
        """Read every figure at once; the text of them is made slice by slice."""
        self._next_ns = self._monotonic_ns() + TEXT_INTERVAL_NS
        scrapes, self._waiting = self._waiting, []
        try:
            families = deque(self._collect())
        except Exception as error:  # noqa: BLE001 - see the class
            self._fail(scrapes, error)
            return
        self._go_on(scrapes, families, [])

    def _go_on(
        self, scrapes: "list[_Scrape]", families: deque[Metric], slices: list[bytes]
    ) -> None:
        if families:
            try:
                slices.append(generate_latest(cast("Collector", _One(families.popleft()))))
            except Exception as error:  # noqa: BLE001 - see the class
                self._fail(scrapes, error)
                return
            self._timer = self.loop.call_soon(self._go_on, scrapes, families, slices)
            return
        self.text_count += 1
        self._answer(scrapes, "200 OK", b"".join(slices))

    def _fail(self, scrapes: "list[_Scrape]", error: Exception) -> None:
        self._on_error(f"{type(error).__name__}: {error}")
        self._answer(scrapes, "500 Internal Server Error", b"the figures cannot be read\n")

    def _answer(self, scrapes: "list[_Scrape]", status: str, text: bytes) -> None:
        for scrape in scrapes:
            scrape.answer(status, text)
        self._timer = None
        if self._waiting:
            self._schedule()


class _One:
    """A registry of one family."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterable[Metric]:
        return (self._family,)


class _Scrape(asyncio.Protocol):
    """One connection of a scraper: one request, one answer."""

    def __init__(self, server: MetricsServer) -> None:
        self._server = server
        self._request = b""
        self._is_read = False
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._timer = self._server.loop.call_later(SCRAPE_WAIT_S, self.abort)
        self._server.admit(self)

    def data_received(self, data: bytes) -> None:
        if self._is_read or self._transport is None:
            return
        self._request += data
        head, end, _ = self._request.partition(b"\r\n\r\n")
        if not end and len(self._request) <= REQUEST_SIZE_MAX:
            return
        self._is_read = True
        self._request = b""
        self._transport.pause_reading()
        if len(head) > REQUEST_SIZE_MAX:
            self.answer("431 Request Header Fields Too Large", b"")
            return
        refusal = _check_request(head.split(b"\r\n", 1)[0])
        if refusal:
            self.answer(refusal, b"")
        else:
            self._server.ask(self)

    def eof_received(self) -> bool:
        """A peer that has nothing more to say may still wait for its answer."""
        return self._is_read

    def connection_lost(self, error: Exception | None) -> None:
        del error  # A scraper may go as it likes.
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
        self._server.forget(self)

    def answer(self, status: str, text: bytes) -> None:
        """Send the answer and close."""
        if self._transport is None or self._transport.is_closing():
            return
        head = (
            f"HTTP/1.1 {status}\r\nContent-Type: {CONTENT_TYPE}\r\n"
            f"Content-Length: {len(text)}\r\nConnection: close\r\n\r\n"
        )
        self._transport.write(head.encode() + text)
        self._transport.close()

    def abort(self) -> None:
        """Cut the connection; unsent bytes are lost."""
        if self._transport is not None:
            self._transport.abort()


def _check_request(line: bytes) -> str:
    """The status that refuses a request, empty when it is one for the metrics."""
    words = line.split(b" ")
    if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
        return "400 Bad Request"
    if words[0] != b"GET":
        return "405 Method Not Allowed"
    if words[1].partition(b"?")[0] != b"/metrics":
        return "404 Not Found"
    return ""
