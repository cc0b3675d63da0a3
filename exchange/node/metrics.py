"""What a venue tells Prometheus: every metric, its meaning, and where its plain integer is kept.

Nothing is counted here. The parts of the venue count as they go; this module reads them when it is
asked, all in one turn of the loop, and gives each a name, a help text and labels. What depends on
commands counts durable ones only: a scrape shows nothing that a crash could take back. The only
exception is `brier_applied_sequence`, a bare number, which is there to be compared.

A label has a fixed set of values, and the usual ones are there from the start: a counter that
appears with its first event hides that event from `rate()`.
"""

import platform
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Final

import msgspec
from prometheus_client import CollectorRegistry, Metric, ProcessCollector
from prometheus_client.metrics_core import CounterMetricFamily

from exchange.core.engine import BUILD, RULES_VERSION
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
from exchange.node.limits import RINGS_SIZE_MAX
from protocol import admin, market_data, order_entry
from protocol.codes import RejectCode

if TYPE_CHECKING:
    from exchange.node.venue import Venue

__all__ = ["VenueMetrics", "start_metrics"]


def _label(name: str) -> str:
    """`OrderAccepted` as the value of a label: order_accepted."""
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).removeprefix("_")


def _tags(*messages: type[msgspec.Struct]) -> dict[str, int]:
    """Messages by label, with their tags."""
    return {_label(one.__name__): int(one.__struct_config__.tag or 0) for one in messages}


_REJECTS: Final = _tags(order_entry.OrderRejected, order_entry.CancelRejected, admin.AdminRejected)
_REPORTS: Final = (
    _tags(
        order_entry.OrderAccepted,
        order_entry.OrderReplaced,
        order_entry.OrderCanceled,
        order_entry.OrderExpired,
        order_entry.OrderFilled,
        admin.AdminAccepted,
    )
    | _REJECTS
)
_MARKET_DATA: Final = _tags(
    market_data.EventDefinition,
    market_data.InstrumentDefinition,
    market_data.InstrumentStatus,
    market_data.OrderAdded,
    market_data.OrderExecuted,
    market_data.OrderReduced,
    market_data.OrderDeleted,
    market_data.OrderReplaced,
    market_data.Trade,
)
_CODES: Final = {code.name.lower(): int(code) for code in RejectCode}
# Where a code belongs: it is there from the start, any other one once it has been counted.
_LOG_ON_CODES: Final = {
    label: code
    for label, code in _CODES.items()
    if code < RejectCode.UNKNOWN_TAG
    or code in (RejectCode.PAYLOAD_BARRED, RejectCode.SHUTTING_DOWN, RejectCode.BACK_PRESSURE)
}
_GATEWAY_CODES: Final = {
    label: code
    for label, code in _CODES.items()
    if code >= RejectCode.SHUTTING_DOWN
    or code in (RejectCode.UNKNOWN_TAG, RejectCode.INVALID_MESSAGE, RejectCode.PAYLOAD_BARRED)
}
_BUCKETS: Final = {"orders": 0, "cancels": 1, "others": 2}


def _by_label(labels: Mapping[str, int], count: Callable[[int], int]) -> dict[str, float]:
    return {label: count(number) for label, number in labels.items()}


def _by_code(usual: Mapping[str, int], count: Callable[[int], int]) -> dict[str, float]:
    counts = _by_label(_CODES, count)
    return {label: value for label, value in counts.items() if value or label in usual}


def _collect(venue: "Venue") -> Iterator[Metric]:
    """Every metric of the venue but those of its process. Changes nothing."""
    yield from _identity(venue)
    yield from _sequencing(venue)
    yield from _market(venue)
    yield from _sessions(venue)
    yield from _gateway(venue)
    yield from _publishing(venue)
    yield from _storage(venue)
    yield from _recovery(venue)


@cache
def _version() -> str:
    """Of the installed distribution; read once, since that goes to the disk."""
    try:
        return metadata.version("brier")
    except metadata.PackageNotFoundError:
        return "source"


def _identity(venue: "Venue") -> Iterator[Metric]:
    build = {
        "version": _version(),
        "build": BUILD,
        "rules_version": str(RULES_VERSION),
        "python": platform.python_version(),
    }
    yield info("brier_build", "Which program this is.", build)
    venue_labels = {"venue": venue.engine.venue, "epoch": str(venue.epoch)}
    yield info("brier_venue", "Which venue this is.", venue_labels)


def _sequencing(venue: "Venue") -> Iterator[Metric]:
    sequencer = venue.sequencer
    yield gauge(
        "brier_applied_sequence",
        "Number of the last command that was applied, durable or not.",
        venue.engine.sequence,
    )
    yield gauge(
        "brier_durable_sequence",
        "Number of the last command that is on disk.",
        sequencer.durable_sequence,
    )
    yield sequencer.batch_commands.family(
        "brier_batch_commands", "Commands of a batch: what shared one sync."
    )
    yield sequencer.commit_ns.family(
        "brier_commit_seconds",
        "Time to build, write and sync a record, with the way to the writer and back.",
        NANOSECONDS_PER_SECOND,
    )
    yield gauge(
        "brier_commit_age_seconds",
        "How long the commit under way has taken, 0 when there is none.",
        sequencer.unsynced_age_ns() / NANOSECONDS_PER_SECOND,
    )
    yield counter(
        "brier_journal_written_bytes_total",
        "Bytes of records that were synced.",
        sequencer.journal_size,
    )
    yield gauge(
        "brier_room_queue_entries",
        "Whoever waits because the open batch is full: connections, mostly.",
        sequencer.waiting_count,
    )


def _market(venue: "Venue") -> Iterator[Metric]:
    ingress = venue.order_entry.ingress
    yield counters(
        "brier_reports_total",
        "Reports to participants, by message.",
        "report",
        _by_label(_REPORTS, ingress.event_count),
    )
    yield counters(
        "brier_rejects_total",
        "Commands that the market refused, by code: each is a report too.",
        "code",
        _by_label(
            _CODES, lambda code: sum(ingress.reject_count(t, code) for t in _REJECTS.values())
        ),
    )
    yield counter(
        "brier_trades_total", "Matches of two orders.", ingress.event_count(_MARKET_DATA["trade"])
    )
    yield gauge(
        "brier_open_orders", "Resting orders of all books.", venue.sequencer.open_order_count
    )
    yield counters(
        "brier_market_data_messages_total",
        "Public messages, by message.",
        "message",
        _by_label(_MARKET_DATA, ingress.event_count),
    )


def _sessions(venue: "Venue") -> Iterator[Metric]:
    entry, ingress = venue.order_entry, venue.order_entry.ingress
    yield gauge(
        "brier_connections",
        "TCP connections to order entry, logged on or not.",
        len(entry.connections),
    )
    yield gauge(
        "brier_sessions_connected",
        "Sessions that are logged on.",
        entry.attached_count,
    )
    yield counter("brier_log_ons_total", "Log-ons that were accepted.", entry.log_on_count)
    yield counters(
        "brier_log_on_rejects_total",
        "Log-ons that were refused, by code.",
        "code",
        _by_code(_LOG_ON_CODES, lambda code: entry.log_on_reject_counts.get(code, 0)),
    )
    yield counter(
        "brier_replays_total",
        "Log-ons that asked for reports sent before, and got them.",
        entry.replay_count,
    )
    yield counter(
        "brier_replayed_reports_total",
        "Reports that were sent again to a session that resumed.",
        entry.replayed_count,
    )
    yield counter("brier_state_images_total", "State images that were sent.", entry.image_count)
    yield gauge("brier_rings", "Sessions with reports kept for resuming.", ingress.rings.count)
    yield gauge("brier_ring_bytes", "Memory of the rings of all sessions.", ingress.rings.size)
    yield gauge(
        "brier_ring_limit_bytes", "What the rings of all sessions may take.", RINGS_SIZE_MAX
    )
    yield counter(
        "brier_ring_evicted_reports_total",
        "Reports that fell out of a full ring and cannot be resumed from.",
        ingress.rings.evicted_count,
    )


def _gateway(venue: "Venue") -> Iterator[Metric]:
    entry, ingress = venue.order_entry, venue.order_entry.ingress
    yield counter(
        "brier_frames_received_total",
        "Frames with orders, cancels and replaces, repeated ones included.",
        ingress.frame_count,
    )
    yield counter(
        "brier_frames_repeated_total",
        "Frames of those that were dropped, because their number had been seen.",
        ingress.duplicate_count,
    )
    yield counter(
        "brier_frames_sent_total", "Frames with events of durable commands.", ingress.released_count
    )
    yield counter("brier_sent_bytes_total", "Bytes of those frames.", ingress.released_size)
    yield counters(
        "brier_refusals_total",
        "Commands that the gateway refused before the market saw them, by code.",
        "code",
        _by_code(_GATEWAY_CODES, ingress.refusal_count),
    )
    yield counters(
        "brier_throttled_total",
        "Commands refused because the session's budget was used up, by budget.",
        "budget",
        _by_label(_BUCKETS, ingress.throttled_count),
    )
    yield counter(
        "brier_back_pressure_total",
        "Times that a commit took so long that new orders were refused.",
        venue.sequencer.pressure_count,
    )
    yield counter(
        "brier_slow_consumers_total",
        "Connections ended because the client did not read.",
        entry.slow_consumer_count,
    )
    yield counter(
        "brier_evicted_connections_total",
        "Connections without a log-on that gave way to a newcomer.",
        entry.evicted_count,
    )


def _publishing(venue: "Venue") -> Iterator[Metric]:
    lines = venue.publisher.lines
    packets = CounterMetricFamily(
        "brier_market_data_packets_total",
        "Packets given to the system, by kind and line: live, heartbeat, or sent again after a "
        "start.",
        labels=["kind", "line"],
    )
    for name, line in lines.items():
        packets.add_metric(["data", name], line.packet_count)
        packets.add_metric(["heartbeat", name], line.heartbeat_count)
        packets.add_metric(["republished", name], line.republished_count)
    yield packets
    yield counters(
        "brier_market_data_bytes_total",
        "Bytes of those packets, by line.",
        "line",
        {name: line.packet_size for name, line in lines.items()},
    )
    yield counters(
        "brier_market_data_sends_total",
        "Calls of the system for those packets, several in each under load, by line.",
        "line",
        {name: line.send_count for name, line in lines.items()},
    )
    yield gauges(
        "brier_market_data_queue_packets",
        "Packets that wait because the line's socket takes no more.",
        "line",
        {name: line.queued_count for name, line in lines.items()},
    )
    yield counters(
        "brier_market_data_dropped_packets_total",
        "Packets that the line's full queue could not take: consumers of this line have a gap.",
        "line",
        {name: line.dropped_count for name, line in lines.items()},
    )
    yield counters(
        "brier_market_data_send_errors_total",
        "Packets that the system refused to send, for want of a route for example, by line.",
        "line",
        {name: line.error_count for name, line in lines.items()},
    )


def _storage(venue: "Venue") -> Iterator[Metric]:
    position = venue.event_log.position
    yield gauge(
        "brier_event_log_sequence",
        "Number of the last command whose events are in the event log.",
        position.sequence,
    )
    yield gauge(
        "brier_event_log_segment_bytes",
        "Bytes in the event log's open segment.",
        position.offset,
    )
    yield gauge(
        "brier_position_readers",
        "Processes that follow how far they may read.",
        venue.positions.reader_count,
    )
    yield counter(
        "brier_position_readers_refused_total",
        "Processes that were refused because too many follow already.",
        venue.positions.refused_count,
    )
    yield gauge("brier_disk_free_bytes", "Free space of the journal's disk.", venue.disk_free_size)
    yield gauge(
        "brier_disk_reserve_bytes",
        "Free space below which new orders are refused.",
        venue.disk_reserve_size,
    )
    yield gauge(
        "brier_disk_low",
        "1 while new orders are refused because the disk is nearly full.",
        venue.order_entry.ingress.is_disk_low,
    )


def _recovery(venue: "Venue") -> Iterator[Metric]:
    """How this start has gone."""
    replayed = venue.replayed
    yield gauge(
        "brier_recovery_seconds",
        "How long this start has read the journal.",
        replayed.duration_ns / NANOSECONDS_PER_SECOND,
    )
    yield gauge("brier_recovery_commands", "Commands that it has replayed.", replayed.command_count)
    yield gauge(
        "brier_recovery_snapshot_sequence",
        "Last command in the snapshot that it began with, 0: it began with the first command.",
        replayed.snapshot_sequence,
    )


class VenueMetrics:
    """The endpoint of a running venue, and the lag of its loop. Belongs to the loop's thread."""

    def __init__(self, venue: "Venue") -> None:
        loop, steady_ns = venue.order_entry.loop, venue.order_entry.steady_ns
        self.lag = LoopLag(loop, steady_ns)
        self.server = MetricsServer(self.collect, self._log_error, loop, steady_ns)
        self._venue = venue
        # A registry of its own: the library's default one belongs to everybody in the process.
        self._process = ProcessCollector(registry=CollectorRegistry())
        _version()

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
        yield from _collect(self._venue)
        yield self.lag.histogram.family(
            "brier_loop_lag_seconds",
            "How late the event loop called back: what a frame may wait for before it is read.",
            NANOSECONDS_PER_SECOND,
        )
        yield counter("brier_scrapes_total", "Texts made for scrapers.", self.server.text_count)
        yield from self._process.collect()

    def _log_error(self, what: str) -> None:
        self._venue.log.error("scrape_failed", what=what)


async def start_metrics(venue: "Venue", host: str, port: int) -> VenueMetrics:
    """Listen on a host and port, 0: any free one; count the lag. Raises OSError."""
    metrics = VenueMetrics(venue)
    await metrics.server.listen(host, port)
    metrics.lag.start()
    return metrics
