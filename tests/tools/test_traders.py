"""The participants of the demo: what makers send, and that their quotes stay what they think."""

import random

from protocol.codes import RejectCode, Side, TimeInForce
from protocol.order_entry import (
    CancelRejected,
    NewOrder,
    OrderAccepted,
    OrderExpired,
    OrderFilled,
    OrderReplaced,
    ReplaceOrder,
)
from tools.listing import LISTING, price_digits, valid_prices
from tools.traders import Maker, Market, Taker

SLOT_COUNT = 4


def accept(maker: Maker | Taker, order: NewOrder, order_id: int = 1) -> None:
    maker.on_report(
        OrderAccepted(
            1,
            0,
            order.client_order_id,
            order_id,
            1,
            0,
            0,
            order.instrument_id,
            order.account_id,
            order.side,
            order.price,
            order.quantity,
            order.order_type,
            order.time_in_force,
            order.expire_time_ns,
        )
    )


def fill(maker: Maker, client_order_id: int, side: int, quantity: int, leaves: int) -> None:
    maker.on_report(
        OrderFilled(
            1, 0, client_order_id, 1, 1, 1, 1, side, 5_000, quantity, leaves, quantity, 1, 0
        )
    )


def test_listing() -> None:
    assert len(LISTING) == 13
    assert len({listed.symbol for listed in LISTING}) == 13
    for listed in LISTING:
        prices = valid_prices(listed)
        assert prices == sorted(set(prices))
        assert 0 < prices[0] < listed.fair_price < prices[-1] < listed.cap_price
        assert len(listed.symbol) <= 14, "fits 80 columns"
    tapered = next(listed for listed in LISTING if len(listed.tick_table) == 3)
    assert valid_prices(tapered)[98:102] == [990, 1_000, 1_100, 1_200]
    assert price_digits(tapered) == 3


def test_fair_values_stay_inside() -> None:
    source = random.Random(1)
    for listed in LISTING:
        market = Market.of(1, listed)
        for _ in range(20_000):
            market.wander(source)
            assert 0 < market.fair < len(market.prices) - 1


def test_a_maker_quotes_every_place_once_until_it_is_answered() -> None:
    maker = Maker(7, [Market.of(1, LISTING[0])], seed=1)
    quotes = [maker.next_order() for _ in range(SLOT_COUNT)]
    assert maker.next_order() is None
    sides = []
    for quote in quotes:
        assert isinstance(quote, NewOrder)
        assert quote.time_in_force == TimeInForce.GTC
        assert quote.quantity % 100 == 0
        sides.append(quote.side)
    assert sorted(sides) == [Side.BUY, Side.BUY, Side.SELL, Side.SELL]


def test_a_fill_while_a_replace_is_on_its_way() -> None:
    maker = Maker(7, [Market.of(1, LISTING[0])], seed=1)
    quotes = [maker.next_order() for _ in range(SLOT_COUNT)]
    for quote in quotes:
        assert isinstance(quote, NewOrder)
        accept(maker, quote)
    replace = maker.next_order()
    assert isinstance(replace, ReplaceOrder)
    target = next(
        quote
        for quote in quotes
        if isinstance(quote, NewOrder) and quote.client_order_id == replace.target_client_order_id
    )
    fill(maker, target.client_order_id, target.side, target.quantity, 0)
    maker.on_report(
        CancelRejected(
            *(2, 0, replace.client_order_id, 0, 2, 0, 0),
            *(12, RejectCode.UNKNOWN_ORDER, 2, 0, 0),
        )
    )
    again = [maker.next_order() for _ in range(SLOT_COUNT)]
    new = [order for order in again if isinstance(order, NewOrder)]
    assert [order.side for order in new] == [target.side], "the place that is empty, no other"


def test_a_replace_keeps_what_is_filled_in_the_total() -> None:
    replaces = []
    for filled_quantity in (0, 100):
        maker = Maker(7, [Market.of(1, LISTING[0])], seed=3)
        quotes = [maker.next_order() for _ in range(SLOT_COUNT)]
        for quote in quotes:
            assert isinstance(quote, NewOrder)
            accept(maker, quote)
            if filled_quantity:
                leaves = quote.quantity - filled_quantity
                fill(maker, quote.client_order_id, quote.side, filled_quantity, leaves)
        replaces.append(maker.next_order())
    without, with_fill = replaces
    assert isinstance(without, ReplaceOrder)
    assert isinstance(with_fill, ReplaceOrder)
    assert with_fill.quantity == without.quantity + 100
    maker.on_report(
        OrderReplaced(
            *(2, 0, with_fill.client_order_id, 1, 2, 0, 0),
            *(with_fill.target_client_order_id, with_fill.price, with_fill.quantity, 500, 0, 1),
        )
    )
    fill(maker, with_fill.client_order_id, Side.BUY, 100, 400)


def test_a_taker_waits_for_what_expires() -> None:
    taker = Taker(8, [Market.of(1, LISTING[0])], seed=1)
    kinds = set()
    for _ in range(500):
        order = taker.next_order()
        assert isinstance(order, NewOrder)
        kinds.add((order.order_type, order.time_in_force))
        if order.time_in_force == TimeInForce.GTD:
            accept(taker, order)
            assert taker.open_count == 1
            taker.on_report(OrderExpired(2, 0, order.client_order_id, 1, order.quantity, 0, 1))
            assert taker.open_count == 0
    assert kinds == {(1, 3), (1, 4), (1, 2), (2, 3)}
