"""The dashboard: every query asks for what is exposed, and a person can read every panel.

That the queries return data is shown with a real Prometheus, in `tests/integration`.
"""

import json
from collections import Counter
from typing import Any, Final

from tests.source_tree import SOURCE
from tests.systemd.exposed import names_in, sample_names

DASHBOARD: Final = json.loads((SOURCE / "systemd/dashboard.json").read_text())

PANELS: Final[list[dict[str, Any]]] = [
    panel for panel in DASHBOARD["panels"] if panel["type"] != "row"
]

COLUMNS: Final = 24


def queries() -> list[str]:
    return [target["expr"] for panel in PANELS for target in panel["targets"]]


def test_every_query_asks_for_what_is_exposed() -> None:
    asked = {name for query in queries() for name in names_in(query)}
    assert asked - sample_names() == set()


def test_what_the_issue_lists_is_shown() -> None:
    asked = {name for query in queries() for name in names_in(query)}
    listed = {
        *("brier_reports_total", "brier_rejects_total", "brier_refusals_total"),
        *("brier_trades_total", "brier_applied_sequence", "brier_durable_sequence"),
        *("brier_batch_commands_bucket", "brier_commit_seconds_bucket", "brier_sessions_connected"),
        *("brier_room_queue_entries", "brier_market_data_queue_packets"),
        *("brier_loop_lag_seconds_bucket", "brier_market_data_packets_total"),
        *("brier_market_data_dropped_packets_total", "brier_ring_bytes"),
        *("brier_event_log_sequence", "brier_disk_free_bytes"),
    }
    assert listed - asked == set()


def test_every_panel_can_be_read() -> None:
    for panel in PANELS:
        assert panel["title"]
        assert panel["description"].endswith((".", "?")), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        legends = [target["legendFormat"] for target in panel["targets"]]
        assert len(set(legends)) == len(legends), f"{panel['title']}: two lines with one name"
        assert len({target["refId"] for target in panel["targets"]}) == len(legends)
    assert max(Counter(panel["title"] for panel in PANELS).values()) == 1


def test_panels_fill_the_grid_without_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    bottom = max(y for _, y in taken) + 1
    assert taken == {(x, y) for x in range(COLUMNS) for y in range(bottom)}
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
