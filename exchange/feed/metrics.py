"""What a feed server tells Prometheus: every metric, its meaning, and where its integer is kept.

Nothing is counted here, and nothing changes: the parts count as they go.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Metric, ProcessCollector

from exchange.feed.limits import RINGS_SIZE_MAX
from exchange.metrics import (
    NANOSECONDS_PER_SECOND,
    LoopLag,
    MetricsServer,
    counter,
    counters,
    gauge,
    gauges,
    info,
)
from protocol.codes import RejectCode, SubscriptionForm

if TYPE_CHECKING:
    from exchange.feed.cycle import Cycle
    from exchange.feed.run import Feed
    from exchange.feed.server import FeedServer

__all__ = ["FeedMetrics", "start_metrics"]


LOG_ON_CODES: Final = (
    RejectCode.BAD_SIGNATURE,
    RejectCode.UNKNOWN_KEY,
    RejectCode.NOT_PERMITTED,
    RejectCode.CONNECTION_LIMIT,
)
REQUEST_CODES: Final = (
    RejectCode.NOT_PERMITTED,
    RejectCode.THROTTLED,
    RejectCode.CAPACITY,
    RejectCode.NUMBER_TOO_HIGH,
    RejectCode.SEQUENCE_TOO_HIGH,
)


class FeedMetrics:
    """The endpoint of a running feed server, and the lag of its loop."""

    def __init__(self, feed: "Feed", server: "FeedServer", cycle: "Cycle | None") -> None:
        self.lag = LoopLag(server.loop, server.now_ns)
        self.server = MetricsServer(self.collect, self._log_error, server.loop, server.now_ns)
        self._feed = feed
        self._door = server
        self._cycle = cycle
        # A registry of its own: the library's default one belongs to everybody in the process.
        self._process = ProcessCollector(registry=CollectorRegistry())

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that it listens on."""
        return self.server.address

    def close(self) -> None:
        """Stop listening and cut every scraper."""
        self.lag.stop()
        self.server.close()

    def collect(self) -> Iterator[Metric]:
        """Every metric, those of loop, endpoint and process included."""
        yield from _source(self._feed)
        yield from _doors(self._door)
        yield from _streams(self._feed)
        yield from _history(self._feed)
        if self._cycle is not None:
            yield from _snapshots(self._cycle)
        yield self.lag.histogram.family(
            "brier_feed_loop_lag_seconds",
            "How late the event loop called back: what live data may wait for.",
            NANOSECONDS_PER_SECOND,
        )
        yield counter("brier_feed_scrapes_total", "Texts for scrapers.", self.server.text_count)
        yield from self._process.collect()

    def _log_error(self, what: str) -> None:
        self._feed.log.error("scrape_failed", what=what)


async def start_metrics(metrics: FeedMetrics, host: str, port: int) -> FeedMetrics:
    """Listen on a host and port, 0: any free one; count the lag. Raises OSError."""
    await metrics.server.listen(host, port)
    metrics.lag.start()
    return metrics


def _source(feed: "Feed") -> Iterator[Metric]:
    market, source, streams = feed.streams.market, feed.source, feed.streams
    venue = market.directory.venue
    labels = {"venue": venue.venue if venue is not None else "", "epoch": str(market.epoch)}
    yield info("brier_feed", "Which venue's log is served.", labels)
    yield gauge("brier_feed_sequence", "Number of the last command applied.", market.sequence)
    yield gauge(
        "brier_feed_source_connected",
        "1 while the venue, or the feed upstream, is there.",
        source.is_connected,
    )
    yield gauge(
        "brier_feed_lag_commands", "Commands that are in the log and not applied.", feed.lag
    )
    yield counter("brier_feed_records_total", "Records applied.", streams.record_count)
    yield counter("brier_feed_record_bytes_total", "Bytes of them.", streams.record_size)
    yield counter("brier_feed_packets_total", "Packets made of them.", streams.packet_count)
    yield counter(
        "brier_feed_flushes_total",
        "Turns of the loop in which they were handed out.",
        streams.flush_count,
    )
    yield counter("brier_feed_checkpoints_total", "Times the market was saved.", feed.saved_count)


def _doors(server: "FeedServer") -> Iterator[Metric]:
    yield gauge(
        "brier_feed_connections", "TCP connections, logged on or not.", len(server.connections)
    )
    yield gauge("brier_feed_sessions", "Connections that are logged on.", server.entered_count)
    yield gauge(
        "brier_feed_sessions_blocked",
        "Of these, those whose sockets take no more for now.",
        server.blocked_count,
    )
    yield gauge("brier_feed_unsent_bytes", "What waits for their sockets.", server.unsent_size)
    yield counter("brier_feed_log_ons_total", "Log-ons accepted.", server.log_on_count)
    yield counters(
        "brier_feed_log_on_rejects_total",
        "Log-ons refused, by code.",
        "code",
        _by_code(LOG_ON_CODES, server.log_on_reject_counts),
    )
    yield counters(
        "brier_feed_rejects_total",
        "Requests refused, by code.",
        "code",
        _by_code(REQUEST_CODES, server.request_reject_counts),
    )
    yield counter(
        "brier_feed_too_slow_total",
        "Subscriptions that were too slow, and got a snapshot or were ended.",
        server.streams.slow_count,
    )
    yield counter(
        "brier_feed_stalled_total",
        "Connections that were cut because they took nothing.",
        server.stalled_count,
    )


def _by_code(usual: Sequence[RejectCode], counts: Mapping[int, int]) -> dict[str, float]:
    """The usual ones are there from the start: `rate()` does not see what a counter begins with."""
    found = dict.fromkeys(usual, 0) | {RejectCode(code): n for code, n in counts.items()}
    return {code.name.lower(): count for code, count in found.items()}


def _streams(feed: "Feed") -> Iterator[Metric]:
    streams = feed.streams
    users = dict.fromkeys((form.name.lower() for form in SubscriptionForm), 0)
    for view in streams.channels.values():
        users["orders"] += view.user_count
    for key, selected in streams.selections.items():
        users[SubscriptionForm(key.form).name.lower()] += selected.user_count
    for states in streams.states.values():
        users[states.form.name.lower()] += states.user_count
    yield gauges("brier_feed_subscriptions", "Open subscriptions, by form.", "form", users)
    yield gauge(
        "brier_feed_views",
        "Different views that are followed, those of whole channels apart.",
        len(streams.selections) + len(streams.states),
    )
    yield gauge("brier_feed_drop_copies", "Open drop copies.", len(streams.copies))
    followers = streams.records.user_count if streams.records is not None else 0
    yield gauge("brier_feed_followers", "Feeds that copy the log from here.", followers)
    yield gauge("brier_feed_ring_bytes", "Memory of the rings of all views.", streams.budget.size)
    yield gauge("brier_feed_ring_limit_bytes", "What they may take.", RINGS_SIZE_MAX)
    yield counter("brier_feed_sent_pieces_total", "Pieces written live.", streams.sent.count)
    yield counter("brier_feed_sent_bytes_total", "Bytes of them.", streams.sent.size)


def _history(feed: "Feed") -> Iterator[Metric]:
    history = feed.history
    yield counter("brier_feed_history_reads_total", "Reads of old segments.", history.read_count)
    yield counter("brier_feed_history_bytes_total", "Bytes of them.", history.read_size)
    yield counter("brier_feed_history_hits_total", "Pages found in memory.", history.hit_count)
    yield gauge("brier_feed_history_cache_bytes", "Memory of these.", history.cached_size)


def _snapshots(cycle: "Cycle") -> Iterator[Metric]:
    yield counter("brier_feed_cycles_total", "Cycles of snapshots sent.", cycle.cycle_count)
    yield gauge(
        "brier_feed_cycle_seconds",
        "How long the last one took.",
        cycle.cycle_ns / NANOSECONDS_PER_SECOND,
    )
    lines = cycle.lines.items()
    yield counters(
        "brier_feed_snapshot_packets_total",
        "Packets of snapshots sent, by line.",
        "line",
        {name: line.packet_count for name, line in lines},
    )
    yield counters(
        "brier_feed_snapshot_packets_lost_total",
        "Packets of snapshots that a line did not take.",
        "line",
        {name: line.dropped_count + line.error_count for name, line in lines},
    )
