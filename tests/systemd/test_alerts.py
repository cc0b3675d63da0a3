"""Every alert fires on what it is for, and on nothing beside it: Prometheus' own rule tests."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from tests.source_tree import SOURCE

pytestmark = pytest.mark.once

ALERTS: Final = SOURCE / "systemd/alerts.yml"

VENUE: Final = "brier"
FEED: Final = "exchange-feed"
REPLICA: Final = "exchange-replica"
"""The jobs of prometheus.yml."""

HOUR_S: Final = 3_600
STEP_S: Final = 15
"""Between two samples of the series below, and between two evaluations."""


class Case(NamedTuple):
    """Samples by series in the notation of promtool, and whether the alert fires at the end."""

    alert: str
    series: dict[str, str]
    fires: bool
    seconds: int = 10 * 60
    job: str = VENUE


def buckets(name: str, *counts: tuple[str, int]) -> dict[str, str]:
    """A histogram that gains these cumulative counts at every step."""
    return {f'{name}_bucket{{le="{bound}"}}': f"0+{count}x400" for bound, count in counts}


def lines(name: str, values_a: str, values_b: str = "") -> dict[str, str]:
    """A counter of both lines; line B has the values of line A unless it has its own."""
    return {f'{name}{{line="a"}}': values_a, f'{name}{{line="b"}}': values_b or values_a}


FREE: Final = "brier_disk_free_bytes"
RESERVE: Final = {"brier_disk_reserve_bytes": "200x400"}
DROPPED: Final = "brier_market_data_dropped_packets_total"
ERRORS: Final = "brier_market_data_send_errors_total"
COMMIT: Final = "brier_commit_seconds"
LAG: Final = "brier_loop_lag_seconds"
FEED_LAG: Final = "brier_feed_loop_lag_seconds"
AGE: Final = "brier_replica_snapshot_age_seconds"
FAILURES: Final = "brier_replica_snapshot_failures_total"

CASES: Final = [
    Case("VenueDown", {"up": "1x4 0x400"}, True),
    Case("VenueDown", {"up": "1x400"}, False),
    Case("VenueDown", {"up": "1x38 0x1"}, False),
    Case("VenueRestarts", {"process_start_time_seconds": "1x10 2x10 3x400"}, True),
    Case("VenueRestarts", {"process_start_time_seconds": "1x10 2x400"}, False),
    Case("CommitHangs", {"brier_commit_age_seconds": "0x10 1.5x400"}, True),
    Case("CommitHangs", {"brier_commit_age_seconds": "0x39 0.9x400"}, False),
    Case("CommitSlow", buckets(COMMIT, ("0.0512", 98), ("0.1024", 100), ("+Inf", 100)), True),
    Case("CommitSlow", buckets(COMMIT, ("0.0256", 100), ("0.0512", 100), ("+Inf", 100)), False),
    Case("BackPressure", {"brier_back_pressure_total": "3x30 4x400"}, True),
    Case("BackPressure", {"brier_back_pressure_total": "3x400"}, False),
    Case("LoopLag", buckets(LAG, ("0.032", 98), ("0.064", 98), ("+Inf", 100)), True),
    Case("LoopLag", buckets(LAG, ("0.016", 99), ("0.032", 100), ("+Inf", 100)), False),
    Case("DiskLow", {"brier_disk_low": "0x10 1x400"}, True),
    Case("DiskLow", {"brier_disk_low": "0x400"}, False),
    # 8,000 bytes, 1 less at each step of 15 s: 960 less in four hours.
    Case("DiskFills", {FREE: "1000-1x400"} | RESERVE, True, HOUR_S),
    Case("DiskFills", {FREE: "8000-1x400"} | RESERVE, False, HOUR_S),
    Case(
        "EventLogBehind",
        {"brier_durable_sequence": "5+9x400", "brier_event_log_sequence": "5x400"},
        True,
    ),
    Case(
        "EventLogBehind",
        {"brier_durable_sequence": "5+9x400", "brier_event_log_sequence": "5+9x400"},
        False,
    ),
    Case("MarketDataLost", lines(DROPPED, "0x30 7x400") | lines(ERRORS, "0x400"), True),
    Case("MarketDataLost", lines(DROPPED, "0x400") | lines(ERRORS, "0x30 1x400"), True),
    Case(
        "MarketDataLost",
        lines(DROPPED, "0x30 1x400", "0x400") | lines(ERRORS, "0x400", "0x30 1x400"),
        True,
    ),
    Case("MarketDataLost", lines(DROPPED, "0x30 7x400", "0x400") | lines(ERRORS, "0x400"), False),
    Case("MarketDataLost", lines(DROPPED, "7x400") | lines(ERRORS, "1x400"), False),
    Case(
        "MarketDataLineLost",
        lines(DROPPED, "0x30 7x400", "0x400") | lines(ERRORS, "0x400"),
        True,
    ),
    Case(
        "MarketDataLineLost",
        lines(DROPPED, "0x400") | lines(ERRORS, "0x400", "0x30 1x400"),
        True,
    ),
    Case("MarketDataLineLost", lines(DROPPED, "7x400") | lines(ERRORS, "1x400"), False),
    Case("SlowConsumers", {"brier_slow_consumers_total": "0x30 1x400"}, True),
    Case("SlowConsumers", {"brier_slow_consumers_total": "1x400"}, False),
    Case("FeedDown", {"up": "1x4 0x400"}, True, job=FEED),
    Case("FeedDown", {"up": "1x38 0x1"}, False, job=FEED),
    Case("FeedDown", {"up": "0x400"}, False),
    Case("FeedRestarts", {"process_start_time_seconds": "1x10 2x10 3x400"}, True, job=FEED),
    Case("FeedRestarts", {"process_start_time_seconds": "1x10 2x400"}, False, job=FEED),
    Case("FeedAlone", {"brier_feed_source_connected": "1x10 0x400"}, True, job=FEED),
    Case("FeedAlone", {"brier_feed_source_connected": "1x38 0x1"}, False, job=FEED),
    Case("FeedBehind", {"brier_feed_lag_commands": "0x10 60000x400"}, True, job=FEED),
    Case("FeedBehind", {"brier_feed_lag_commands": "50000x400"}, False, job=FEED),
    Case("FeedLoopLag", buckets(FEED_LAG, ("0.256", 98), ("+Inf", 100)), True, job=FEED),
    Case(
        "FeedLoopLag",
        buckets(FEED_LAG, ("0.128", 99), ("0.256", 100), ("+Inf", 100)),
        False,
        job=FEED,
    ),
    Case("FeedTooSlow", {"brier_feed_too_slow_total": "0x30 1x400"}, True, job=FEED),
    Case("FeedTooSlow", {"brier_feed_stalled_total": "0x30 1x400"}, True, job=FEED),
    Case("FeedTooSlow", {"brier_feed_too_slow_total": "9x400"}, False, job=FEED),
    Case("SnapshotsLate", {"brier_feed_cycle_seconds": "4.9x10 5.1x400"}, True, job=FEED),
    Case("SnapshotsLate", {"brier_feed_cycle_seconds": "5x400"}, False, job=FEED),
    Case(
        "SnapshotsLost",
        {'brier_feed_snapshot_packets_lost_total{line="b"}': "0x30 1x400"},
        True,
        job=FEED,
    ),
    Case(
        "SnapshotsLost",
        {'brier_feed_snapshot_packets_lost_total{line="b"}': "1x400"},
        False,
        job=FEED,
    ),
    Case("ReplicaDown", {"up": "1x4 0x400"}, True, job=REPLICA),
    Case("ReplicaDown", {"up": "1x38 0x1"}, False, job=REPLICA),
    Case("ReplicaRestarts", {"process_start_time_seconds": "1x9 2x9 3x400"}, True, job=REPLICA),
    Case("ReplicaRestarts", {"process_start_time_seconds": "1x9 2x400"}, False, job=REPLICA),
    Case("ReplicaAlone", {"brier_replica_source_connected": "1x10 0x400"}, True, job=REPLICA),
    Case("ReplicaAlone", {"brier_replica_source_connected": "1x38 0x1"}, False, job=REPLICA),
    Case("ReplicaBehind", {"brier_replica_lag_commands": "0x10 2000000x400"}, True, job=REPLICA),
    Case("ReplicaBehind", {"brier_replica_lag_commands": "1000000x400"}, False, job=REPLICA),
    Case("ReplicaSnapshotOld", {AGE: "890+5x400"}, True, job=REPLICA),
    Case("ReplicaSnapshotOld", {AGE: "0x37 905x400"}, False, job=REPLICA),
    Case("ReplicaSnapshotFails", {FAILURES: "0x30 1x400"}, True, job=REPLICA),
    Case("ReplicaSnapshotFails", {FAILURES: "7x400"}, False, job=REPLICA),
    Case("ReplicaSnapshotBad", {"brier_replica_snapshots_bad": "0x30 1x400"}, True, job=REPLICA),
    Case("ReplicaSnapshotBad", {"brier_replica_snapshots_bad": "0x400"}, False, job=REPLICA),
]


def promtool(*arguments: str) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("prometheus is not installed")
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def rules() -> dict[str, dict[str, str]]:
    """Severity and summary of each alert."""
    content = ALERTS.read_text()
    names = re.findall(r"- alert: (\w+)", content)
    severities = re.findall(r"labels: \{severity: (\w+)\}", content)
    summaries = re.findall(r"annotations: \{summary: (.+)\}", content)
    return {
        name: {"severity": severity, "summary": summary}
        for name, severity, summary in zip(names, severities, summaries, strict=True)
    }


def labels_of(series: str, job: str) -> tuple[str, dict[str, str]]:
    """Name of a series, and its labels with those that a scrape gives it."""
    name, _, own = series.partition("{")
    pairs = re.findall(r'(\w+)="([^"]*)"', own)
    return name, {"job": job, "instance": "machine", **dict(pairs)}


def named(series: str, job: str) -> str:
    """The series as promtool reads it."""
    name, labels = labels_of(series, job)
    return f"{name}{{{','.join(f'{key}={json.dumps(value)}' for key, value in labels.items())}}}"


def rule_test(case: Case) -> dict[str, Any]:
    rule = rules()[case.alert]
    kept = {"job", "instance"} | ({"line"} if case.alert == "SnapshotsLost" else set())
    _, labels = labels_of(next(iter(case.series)), case.job)
    expected = {
        "exp_labels": {key: value for key, value in labels.items() if key in kept}
        | {"severity": rule["severity"]},
        "exp_annotations": {"summary": rule["summary"]},
    }
    return {
        "interval": f"{STEP_S}s",
        "input_series": [
            {"series": named(series, case.job), "values": values}
            for series, values in case.series.items()
        ],
        "alert_rule_test": [
            {
                "eval_time": f"{case.seconds}s",
                "alertname": case.alert,
                "exp_alerts": [expected] if case.fires else [],
            }
        ],
    }


def test_configuration_and_rules_are_valid() -> None:
    promtool("check", "config", str(SOURCE / "systemd/prometheus.yml"))
    promtool("check", "rules", str(ALERTS))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.alert}-{case.fires}")
def test_each_alert_fires_when_it_should(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "test.yml"
    content = {
        "rule_files": [str(ALERTS)],
        "evaluation_interval": f"{STEP_S}s",
        "tests": [rule_test(case)],
    }
    path.write_text(json.dumps(content))  # JSON is YAML.
    promtool("test", "rules", str(path))


def test_every_alert_is_tried_both_ways() -> None:
    assert {(case.alert, case.fires) for case in CASES} == {
        (name, fires) for name in rules() for fires in (True, False)
    }


def test_every_severity_is_known() -> None:
    assert {rule["severity"] for rule in rules().values()} == {"page", "ticket"}
