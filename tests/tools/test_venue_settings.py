"""Settings of the tools' venues, in the file that `exchange init` writes."""

from ipaddress import IPv4Address
from pathlib import Path

import pytest

from exchange import config
from exchange.config import COMMANDS_PER_SECOND_MAX, GROUPS_MAX
from exchange.node.setup import initialise
from tools.venue_settings import UNTHROTTLED, change_settings, own_settings


def test_settings_are_changed_and_comments_stay(tmp_path: Path) -> None:
    file = initialise(tmp_path / "venue", name="venue", port=0).config
    before = file.read_text()
    change_settings(file, {**own_settings(), **UNTHROTTLED, "market_data.port": 12_345})
    found = config.load(file)
    assert found.market_data.port == 12_345
    assert found.market_data.group.startswith("239.255.")
    assert found.market_data.line_b is not None
    assert found.market_data.line_b.group.startswith("239.255.")
    assert found.market_data.line_b.port != config.MarketDataSettings().port
    assert found.metrics.port == 0
    rates = found.throttle.orders_per_second, found.throttle.cancels_burst
    assert rates == (COMMANDS_PER_SECOND_MAX, COMMANDS_PER_SECOND_MAX)
    changed = [
        (one, other)
        for one, other in zip(before.splitlines(), file.read_text().splitlines(), strict=True)
        if one != other
    ]
    assert all(one.partition("#")[2] == other.partition("#")[2] for one, other in changed)
    assert {other.split(" = ")[0] for _, other in changed} <= {
        name.rpartition(".")[2] for name in (*own_settings(), *UNTHROTTLED)
    }


def test_every_venue_has_groups_and_a_port_of_its_own() -> None:
    found = [own_settings() for _ in range(20)]
    assert len({(one["market_data.group"], one["market_data.port"]) for one in found}) == 20
    for one in found:
        first, other = (
            IPv4Address(str(one[f"market_data.{key}"])) for key in ("group", "line_b.group")
        )
        assert int(other) - int(first) >= GROUPS_MAX
        for group in (first, other):
            last = group + GROUPS_MAX - 1
            assert last.is_multicast
            assert str(last).rpartition(".")[0] == str(group).rpartition(".")[0]
            assert str(last).startswith("239.255.")


def test_a_key_that_is_not_there_is_a_defect(tmp_path: Path) -> None:
    file = initialise(tmp_path / "venue", name="venue", port=0).config
    with pytest.raises(AssertionError, match=r"metrics.color once, not 0 times"):
        change_settings(file, {"metrics.color": 1})
