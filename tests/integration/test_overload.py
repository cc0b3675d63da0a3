"""A venue with small budgets, a client at far more than a hundred times its own, and four that send
and never read: every command is answered, cancels get through, others notice nothing.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any, Final

import pytest

from protocol.codes import RejectCode
from protocol.order_entry import CancelOrder, OrderAccepted, OrderCanceled
from protocol.transport import SessionReject
from tests.integration.market import Market, make_market, make_venue, memory_size
from tests.integration.peer import Peer
from tools.venue_settings import change_settings

ORDERS_BURST: Final = 100
ORDERS_PER_SECOND: Final = 100
CANCELS_BURST: Final = 200
FLOOD_COUNT: Final = 20_000
CHUNK: Final = 200
MEBIBYTE: Final = 1024 * 1024


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Market]:
    """A venue whose sessions may send little; it must stop cleanly."""
    with make_venue(tmp_path_factory.mktemp("overload") / "venue") as venue:
        budgets = {
            "throttle.orders_per_second": ORDERS_PER_SECOND,
            "throttle.orders_burst": ORDERS_BURST,
            "throttle.cancels_per_second": CANCELS_BURST,
            "throttle.cancels_burst": CANCELS_BURST,
        }
        change_settings(venue.folder / "exchange.toml", budgets)
        venue.start()
        market = Market(venue, make_market(venue, ["ada", "bob", "cyd"]))
        yield market
        market.close()
        venue.stop()
        assert "level=error" not in (venue.folder / "serve.log").read_text()


def flood(peer: Peer, market: Market) -> list[Any]:
    """Answers to many orders, with a cancel of an accepted one behind each chunk of them."""
    answers: list[Any] = []
    cancelable: list[int] = []
    client_order_id = 0
    while client_order_id < FLOOD_COUNT:
        for _ in range(CHUNK):
            client_order_id += 1
            peer.put(market.good_order(client_order_id))
        count = CHUNK
        if cancelable:
            peer.put(CancelOrder(cancelable.pop()))
            count += 1
        peer.flush()
        for _ in range(count):
            answers.append(peer.receive())
            if isinstance(answers[-1], OrderAccepted):
                cancelable.append(answers[-1].client_order_id)
    return answers


def test_client_at_many_times_its_budget(market: Market, trader: Peer) -> None:
    answers = flood(trader, market)
    counts = Counter(type(answer) for answer in answers)
    assert sorted(answer.number for answer in answers) == list(range(1, len(answers) + 1))
    refusals = [answer for answer in answers if isinstance(answer, SessionReject)]
    assert {answer.code for answer in refusals} == {RejectCode.THROTTLED}
    per_token_ns = 10**9 // ORDERS_PER_SECOND
    assert all(0 < answer.retry_after_ns <= per_token_ns for answer in refusals)
    assert all(answer.text for answer in refusals)
    assert counts.keys() == {OrderAccepted, OrderCanceled, SessionReject}
    assert counts[OrderAccepted] >= ORDERS_BURST
    assert counts[OrderCanceled] == len(answers) - FLOOD_COUNT, "every cancel gets through"
    assert counts[SessionReject] == FLOOD_COUNT - counts[OrderAccepted]
    assert trader.is_open, "to be refused is no reason to be cut off"


def test_clients_that_never_read(market: Market) -> None:
    """What waits for them is bounded, whatever they send; a client in good order trades on."""
    with ExitStack() as stack:
        before = memory_size(market.venue)
        for index in range(4):
            peer = stack.enter_context(Peer(market.venue.address, receive_buffer_size=4096))
            peer.log_on(market.firm.key, f"deaf-{index}")
            for client_order_id in range(1, FLOOD_COUNT + 1):
                peer.put(market.good_order(client_order_id))
            send_what_goes(peer)
            market.check()
        assert memory_size(market.venue) - before < 24 * MEBIBYTE


def send_what_goes(peer: Peer) -> None:
    """Send until the socket takes no more for a moment: the venue has stopped reading."""
    data = memoryview(peer.machine.data_to_send())
    peer.socket.settimeout(0.2)
    with suppress(TimeoutError):
        while data:
            data = data[peer.socket.send(data) :]
