"""Every metric that a venue, a feed and a replica expose, for the tests of the pages and files that
name them."""

import asyncio
import re
import tempfile
from functools import cache
from pathlib import Path

from prometheus_client import Metric

from exchange.feed.cycle import Cycle
from exchange.feed.metrics import FeedMetrics
from exchange.node.metrics import VenueMetrics
from exchange.replica.metrics import ReplicaMetrics
from tests.exchange.feed.desk import Desk
from tests.exchange.node.wires import Wire
from tests.exchange.node.world import World
from tests.exchange.replica.desk import Desk as ReplicaDesk
from tests.exchange.replica.desk import make_snapshot_settings, trading_world

__all__ = ["families", "full_name", "names_in", "sample_names"]


@cache
def families() -> tuple[Metric, ...]:
    """What a venue says that has just started, and then what others say of their own."""
    world = World()
    venue = tuple(VenueMetrics(world.boot()).collect())
    others = (*asyncio.run(_feed()), *asyncio.run(_replica()))
    return venue + tuple(one for one in others if one.name.startswith("brier_"))


async def _feed() -> list[Metric]:
    with tempfile.TemporaryDirectory() as folder:
        async with Desk(Path(folder)) as desk:
            streams = desk.feed.streams
            now_ns = desk.feed.now_ns
            wires = {"a": Wire(now_ns)}
            cycle = Cycle(streams.market, streams.snapshots, wires, 1_000_000, now_ns)
            return list(FeedMetrics(desk.feed, desk.server, cycle).collect())


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


async def _replica() -> list[Metric]:
    async with ReplicaDesk.open(trading_world(1, turns=1), make_snapshot_settings()) as desk:
        return list(ReplicaMetrics(desk.service, asyncio.get_running_loop()).collect())
