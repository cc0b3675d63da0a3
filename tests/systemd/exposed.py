"""Every metric that a venue exposes, for the tests of the pages and files that name them."""

import re
from functools import cache

from prometheus_client import Metric

from exchange.node.metrics import VenueMetrics
from tests.exchange.node.world import World

__all__ = ["families", "full_name", "names_in", "sample_names"]


@cache
def families() -> tuple[Metric, ...]:
    """What a venue says that has just started."""
    world = World()
    return tuple(VenueMetrics(world.boot()).collect())


def full_name(family: Metric) -> str:
    """As people write it: with the suffix of its only sample, if it has only one."""
    suffixes = {"counter": "_total", "info": "_info"}
    return family.name + suffixes.get(family.type, "")


def sample_names() -> set[str]:
    """Names that a query can ask for."""
    names = {sample.name for family in families() for sample in family.samples}
    return {name for name in names if not name.endswith("_created")}


def names_in(query: str) -> set[str]:
    """Names of ours in a query."""
    return set(re.findall(r"\b(?:brier|process)_\w+", query))
