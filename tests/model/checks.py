"""What must hold after every command, and the digests of the books that the engine also makes."""

import hashlib
import struct

from protocol.codes import Phase, Side
from tests.model.collateral import available
from tests.model.matching import own_side
from tests.model.state import State

__all__ = ["book_digest", "check_invariants", "public_digest"]

POSITIONS_WORD = -1
CASH_WORD = -2


def check_invariants(state: State) -> None:
    """Cash and positions sum to zero, nobody is overdrawn, no book is crossed."""
    for currency, outside in state.outside.items():
        cash = sum(
            account.cash for account in state.accounts.values() if account.currency == currency
        )
        assert cash + outside == 0, f"ledger of {currency} is out of balance: {cash} {outside}"
    for instrument_id in state.instruments:
        total = sum(
            position
            for (_, instrument), position in state.positions.items()
            if instrument == instrument_id
        )
        assert total == 0, f"positions of instrument {instrument_id} sum to {total}"
        buys = own_side(state, instrument_id, Side.BUY)
        sells = own_side(state, instrument_id, Side.SELL)
        if buys and sells and state.incoming is None:
            best_bid, best_ask = buys[0].price, sells[0].price
            assert best_bid is not None, "only limit orders rest"
            assert best_ask is not None, "only limit orders rest"
            assert best_bid < best_ask, f"book of instrument {instrument_id} is crossed"
    for account_id in state.accounts:
        free = available(state, account_id)
        assert free >= 0, f"account {account_id} has {free} available"
    assert all(order.leaves > 0 for order in state.resting), "a resting order has something left"


def book_digest(state: State) -> str:
    """BLAKE2b-256 (hex) over books, positions and cash as little-endian signed 64-bit words."""
    words: list[int] = []
    for instrument_id in sorted(state.instruments):
        buys = own_side(state, instrument_id, Side.BUY)
        sells = own_side(state, instrument_id, Side.SELL)
        words += [instrument_id, len(buys), len(sells)]
        for order in buys + sells:
            assert order.price is not None, "only limit orders rest"
            words += [order.price, order.account_id, order.leaves]
    words.append(POSITIONS_WORD)
    for (account_id, instrument_id), position in sorted(state.positions.items()):
        if position != 0:
            words += [account_id, instrument_id, position]
    words.append(CASH_WORD)
    for account_id, account in sorted(state.accounts.items()):
        words += [account_id, account.cash]
    return digest_of(words)


def public_digest(state: State) -> str:
    """BLAKE2b-256 (hex) over phases and books, order by order, as the market data tells them."""
    words: list[int] = []
    for instrument_id in sorted(state.instruments):
        buys = own_side(state, instrument_id, Side.BUY)
        sells = own_side(state, instrument_id, Side.SELL)
        phase = Phase.HALTED if state.instruments[instrument_id].is_halted else Phase.OPEN
        words += [instrument_id, phase, len(buys), len(sells)]
        for order in buys + sells:
            assert order.price is not None, "only limit orders rest"
            words += [order.order_id, order.price, order.leaves]
    return digest_of(words)


def digest_of(words: list[int]) -> str:
    image = struct.pack(f"<{len(words)}q", *words)
    return hashlib.blake2b(image, digest_size=32).hexdigest()
