"""`exchange bench --replica-cost`, small: a venue under load with and without a replica."""

from pathlib import Path

import pytest

from tools.bench_replica_cost import Kind, Shape, measure_kinds

pytestmark = pytest.mark.once


def test_with_and_without_snapshots(tmp_path: Path) -> None:
    kinds = (Kind("none", None), Kind("often", 2_000))
    rows = measure_kinds(Shape(tmp_path, kinds, (0,), 2, 16, 1, 8))
    for row in rows:
        assert row["orders_per_second"] > 0
        assert row["venue_cpu_us_per_order"] > 0
    none, often = rows
    assert (none["snapshots"], none["replica_cpu_us_per_order"]) == (0, 0)
    assert often["snapshots"] >= 1
    assert often["snapshot_ms"] > 0
    assert often["replica_cpu_us_per_order"] > 0
