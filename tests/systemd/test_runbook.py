"""The runbook has every exit code, alert and metric, names nothing else, and its words are true."""

import re
from typing import Final

from exchange.node.failure import Exit
from tests.source_tree import SOURCE
from tests.systemd.exposed import families, full_name, names_in, sample_names
from tests.systemd.test_alerts import ALERTS, rules

RUNBOOK: Final = (SOURCE / "systemd/RUNBOOK.md").read_text()


def rows(title: str) -> list[list[str]]:
    """Cells of the first table below a heading, without its head."""
    text = RUNBOOK.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_every_exit_code_has_a_line() -> None:
    assert [int(code) for code, *_ in rows("Exit codes")] == [code.value for code in Exit]
    assert all(means and do for _, means, do in rows("Exit codes"))


def test_every_alert_has_a_line() -> None:
    assert [name for name, *_ in rows("Alerts")] == list(rules())
    assert all(means and do for _, means, do in rows("Alerts"))


def test_alerts_ask_for_what_is_exposed() -> None:
    assert names_in(ALERTS.read_text()) - sample_names() == set()


def test_every_metric_is_documented_in_its_own_words() -> None:
    documented = {name.strip("`"): text for name, text in rows("Metrics")}
    exposed = {
        full_name(family): family.documentation
        for family in families()
        if family.name.startswith("brier_")
    }
    assert documented == exposed


def test_names_follow_the_conventions() -> None:
    for family in families():
        assert re.fullmatch(r"(brier|process)_[a-z_]+", family.name)
        assert family.documentation.endswith("."), family.name
        units = r"milli|micro|nano|_ns|_ms|_us|kilo|mega|_size|_count$"
        assert not re.search(units, family.name), f"{family.name}: base units"


def test_files_that_it_names_are_there() -> None:
    for name in re.findall(r"`([\w.-]+\.(?:service|yml|json|md))`", RUNBOOK):
        assert (SOURCE / "systemd" / name).is_file(), name
