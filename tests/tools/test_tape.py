"""The market as reports tell it: levels, trades and volume after each of them."""

from protocol.codes import Liquidity, Side, TimeInForce
from protocol.order_entry import (
    OrderAccepted,
    OrderCanceled,
    OrderExpired,
    OrderFilled,
    OrderReplaced,
)
from tools.tape import Tape

BUY, SELL = Side.BUY, Side.SELL
GTC, IOC = TimeInForce.GTC, TimeInForce.IOC


def accepted(
    sequence: int, order_id: int, side: Side, price: int, quantity: int, tif: TimeInForce = GTC
) -> OrderAccepted:
    return OrderAccepted(sequence, 0, 1, order_id, 1, 0, 0, 1, 1, side, price, quantity, 1, tif, 0)


def filled(
    sequence: int, order_id: int, side: Side, price: int, quantity: int, leaves: int
) -> OrderFilled:
    """The resting order's fill when it is a sell, the incoming one's when it is a buy."""
    liquidity = Liquidity.ADDED if side is SELL else Liquidity.REMOVED
    return OrderFilled(
        sequence, 0, 1, order_id, 1, 1, 1, side, price, quantity, leaves, 0, liquidity, 0
    )


def test_levels_trades_and_volume() -> None:
    tape = Tape(1)
    book = tape.books[1]
    assert (book.best_bid(), book.best_ask()) == ((0, 0), (0, 0))

    tape.on_report(accepted(1, 1, SELL, 5_600, 1_000))
    tape.on_report(accepted(2, 2, SELL, 5_600, 500))
    tape.on_report(accepted(3, 3, SELL, 5_500, 300))
    tape.on_report(accepted(4, 4, BUY, 5_400, 200))
    assert (book.best_bid(), book.best_ask()) == ((5_400, 200), (5_500, 300))
    assert book.asks == {5_500: 300, 5_600: 1_500}

    tape.on_report(accepted(5, 5, BUY, 5_600, 700, IOC))
    tape.on_report(filled(5, 3, SELL, 5_500, 300, 0))
    tape.on_report(filled(5, 5, BUY, 5_500, 300, 400))
    tape.on_report(filled(5, 1, SELL, 5_600, 400, 600))
    tape.on_report(filled(5, 5, BUY, 5_600, 400, 0))
    assert book.asks == {5_600: 1_100}
    assert book.bids == {5_400: 200}
    assert (book.last_price, book.trade_count, book.volume) == (5_600, 2, 700)

    tape.on_report(OrderReplaced(6, 0, 2, 1, 1, 0, 0, 1, 5_700, 900, 500, 0))
    assert book.asks == {5_600: 500, 5_700: 500}
    tape.on_report(OrderCanceled(7, 0, 1, 2, 1, 0, 0, 500, 0, 1))
    tape.on_report(OrderExpired(8, 0, 1, 4, 200, 0))
    assert (book.bids, book.asks) == ({}, {5_700: 500})
    assert (tape.sequence, tape.trade_count) == (8, 2)


def test_reports_of_orders_that_are_gone_change_nothing() -> None:
    tape = Tape(1)
    tape.on_report(OrderCanceled(1, 0, 1, 9, 1, 0, 0, 500, 0, 2))
    tape.on_report(OrderReplaced(2, 0, 2, 9, 1, 0, 0, 1, 5_700, 900, 500, 0))
    assert (tape.books[1].bids, tape.books[1].asks) == ({}, {})
