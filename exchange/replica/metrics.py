"""What a replica tells Prometheus: every metric, its meaning, and where its integer is kept.

Nothing is counted here, and nothing changes: the parts count as they go.
"""

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Metric, ProcessCollector

from exchange.metrics import NANOSECONDS_PER_SECOND, MetricsServer, counter, gauge, info

if TYPE_CHECKING:
    from exchange.replica.service import ReplicaService
    from exchange.replica.snapshotter import Snapshotter

__all__ = ["ReplicaMetrics", "start_metrics"]


class ReplicaMetrics:
    """The endpoint of a running replica."""

    def __init__(self, service: "ReplicaService", loop: asyncio.AbstractEventLoop) -> None:
        self._service = service
        clock = service.clock
        self.server = MetricsServer(self.collect, self._log_error, loop, clock.monotonic_ns)
        # A registry of its own: the library's default one belongs to everybody in the process.
        self._process = ProcessCollector(registry=CollectorRegistry())

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that it listens on."""
        return self.server.address

    def close(self) -> None:
        """Stop listening and cut every scraper."""
        self.server.close()

    def collect(self) -> Iterator[Metric]:
        """Every metric, those of the process included."""
        yield from _replay(self._service)
        yield from _snapshots(self._service)
        yield from _attempts(self._service.snapshotter)
        yield from self._process.collect()

    def _log_error(self, what: str) -> None:
        self._service.log.error("scrape_failed", what=what)


async def start_metrics(metrics: ReplicaMetrics, host: str, port: int) -> None:
    """Listen on a host and port, 0: any free one. Raises OSError."""
    await metrics.server.listen(host, port)


def _replay(service: "ReplicaService") -> Iterator[Metric]:
    replica = service.replica
    labels = {"venue": replica.engine.venue}
    yield info("brier_replica", "Which venue's journal is replayed.", labels)
    yield gauge("brier_replica_sequence", "Number of the last command replayed.", replica.sequence)
    yield gauge(
        "brier_replica_source_connected",
        "1 while the venue says how far its journal may be read.",
        service.source.is_connected,
    )
    yield gauge(
        "brier_replica_lag_commands", "Commands that are durable and not replayed.", service.lag
    )
    yield counter(
        "brier_replica_records_total",
        "Records replayed, each with the events that the venue had.",
        replica.record_count,
    )
    yield counter("brier_replica_record_bytes_total", "Bytes of them.", replica.record_size)


def _snapshots(service: "ReplicaService") -> Iterator[Metric]:
    """State of the folder, and what a start of the venue would replay."""
    replica, snapshotter = service.replica, service.snapshotter
    newest = snapshotter.newest
    head = newest.head if newest is not None else None
    yield gauge("brier_replica_snapshots", "Snapshots that are kept.", snapshotter.kept_count)
    yield gauge(
        "brier_replica_snapshots_bad",
        "Files in their folder that no start can use.",
        snapshotter.bad_count,
    )
    yield gauge(
        "brier_replica_snapshot_sequence",
        "Number of the last command in the newest snapshot, 0 when there is none.",
        head.sequence if head is not None else 0,
    )
    yield gauge(
        "brier_replica_snapshot_bytes",
        "Bytes of the newest snapshot's image.",
        head.image_size if head is not None else 0,
    )
    yield gauge(
        "brier_replica_snapshot_behind_commands",
        "Commands replayed that are not in the newest snapshot.",
        replica.sequence - (head.sequence if head is not None else 0),
    )
    behind_ns = snapshotter.waiting_ns(replica)
    yield gauge(
        "brier_replica_snapshot_age_seconds",
        "Time since the newest snapshot, or the start; 0 while there is nothing new.",
        behind_ns / NANOSECONDS_PER_SECOND,
    )


def _attempts(snapshotter: "Snapshotter") -> Iterator[Metric]:
    newest = snapshotter.newest
    yield counter("brier_replica_snapshots_made_total", "Snapshots made.", snapshotter.made_count)
    yield counter(
        "brier_replica_snapshot_failures_total",
        "Snapshots that could not be written, or that events/ did not reach.",
        snapshotter.failure_count,
    )
    yield gauge(
        "brier_replica_snapshot_seconds",
        "How long the last snapshot took; nothing is replayed meanwhile.",
        newest.total_ns / NANOSECONDS_PER_SECOND if newest is not None else 0,
    )
