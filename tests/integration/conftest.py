"""What the integration tests share: how children find the packages, and a venue for bad input."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import exchange
from tests.integration.market import Market, make_market, make_venue
from tests.integration.peer import Peer
from tests.integration.replica import Replica


@pytest.fixture(scope="module", autouse=True)
def packages() -> Iterator[None]:
    """Children are started with -P: they find the packages where this process found them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(str(exchange.__file__)).parents[1]))
        yield


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Market]:
    """A venue for all tests of a module; it must stop cleanly, with a journal that replays."""
    with make_venue(tmp_path_factory.mktemp("bad") / "venue", orders_per_account_max=4) as venue:
        venue.start()
        market = Market(venue, make_market(venue, ["ada", "bob", "cyd"]))
        yield market
        market.close()
        venue.stop()
        replica = Replica(venue.folder)
        replica.catch_up()
        replica.engine.check()
        log = (venue.folder / "serve.log").read_text()
        assert "Traceback" not in log
        assert "level=error" not in log


@pytest.fixture
def market(shared: Market) -> Iterator[Market]:
    """The venue of the module with a firm for the test; it must go on as before afterwards."""
    shared.renew()
    yield shared
    shared.check()


@pytest.fixture
def peer(market: Market) -> Iterator[Peer]:
    """A connection that has been greeted."""
    with Peer(market.venue.address) as peer:
        peer.greet()
        yield peer


@pytest.fixture
def trader(market: Market, peer: Peer) -> Peer:
    """A session of the test's firm, logged on."""
    peer.log_on(market.firm.key, "trader")
    return peer
