"""What tests of market data begin with."""

import pytest

from tests.exchange.client.feed import Feed
from tests.exchange.client.listener import Listener


@pytest.fixture
def feed() -> Feed:
    """One event, two instruments and 40 commands."""
    feed = Feed(seed=5)
    feed.list_event(1)
    feed.list_instrument(1)
    feed.list_instrument(2)
    feed.random_commands(40)
    return feed


@pytest.fixture
def listener() -> Listener:
    return Listener()
