"""What the integration tests share: how children find the packages, and a venue for bad input."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import exchange
from tests.integration.market import Market, make_market, make_venue
from tests.integration.peer import Peer
from tests.integration.replica import Replica

# Children are started with -P: they find the packages where this process found them.
os.environ["PYTHONPATH"] = str(Path(str(exchange.__file__)).parents[1])


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Market]:
    """A venue for all tests of a module; it must stop cleanly, with a journal that replays."""
    with make_venue(tmp_path_factory.mktemp("bad") / "venue", orders_per_account_max=4) as venue:
        venue.start()
        market = Market(venue, make_market(venue, ["ada", "bob", "cyd"]))
        yield market
        market.watcher.close()
        venue.stop()
        replica = Replica(venue.folder)
        replica.catch_up()
        replica.engine.check()
        log = (venue.folder / "serve.log").read_text()
        assert "Traceback" not in log
        assert "level=error" not in log


@pytest.fixture
def market(shared: Market) -> Iterator[Market]:
    """The venue of the module, which must go on as before after the test."""
    yield shared
    shared.check()


@pytest.fixture
def peer(market: Market) -> Iterator[Peer]:
    """A connection that has been greeted."""
    with Peer(market.venue.address) as peer:
        peer.greet()
        yield peer


@pytest.fixture
def trader(market: Market, peer: Peer, request: pytest.FixtureRequest) -> Peer:
    """A session of the test's own, logged on."""
    market.session_count += 1
    peer.log_on(market.firm.key, f"t{market.session_count}")
    return peer
