"""Bad input over a real socket: a named code or one clear line, and the venue goes on as before.

One venue serves all tests of this module. A session that takes no part holds an order all the time;
after each test it must be able to trade, and must not have received anything that it did not ask
for. In the end the venue stops cleanly and its journal is replayed.
"""

import time
from contextlib import ExitStack
from typing import Any, Final

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from exchange.client import load_key
from exchange.core.limits import SESSIONS_PER_PARTICIPANT_MAX
from protocol import wire
from protocol.admin import Deposit, Event, Halt, Instrument, Key, Participant
from protocol.codes import EventKind, OrderType, RejectCode, Side, TerminateCode, TimeInForce
from protocol.framing import (
    HEADER_SIZE,
    SEQUENCED,
    SESSION,
    encode_frame,
)
from protocol.order_entry import (
    CancelOrder,
    CancelRejected,
    NewOrder,
    OrderAccepted,
    OrderCanceled,
    OrderRejected,
    ReplaceOrder,
)
from protocol.transport import (
    Heartbeat,
    LogOn,
    LogOnRejected,
    NotApplied,
    SessionReject,
)
from tests.integration.market import CENT, CONTRACT, Market, admin, make_firm
from tests.integration.peer import Peer, make_log_on, sign

POOR_CASH: Final = 10 * CENT * CONTRACT
"""What ten contracts at a cent cost."""


# Log-on.

STRANGER: Final = Ed25519PrivateKey.generate()


def refusal(peer: Peer, log_on: LogOn) -> tuple[int, int, int]:
    """Code, field and limit of the refusal, after which the venue closes."""
    peer.send(log_on)
    (answer,) = peer.read_to_end()
    assert isinstance(answer, LogOnRejected)
    return answer.code, answer.field, answer.limit


BAD_LOG_ONS: Final[dict[str, tuple[dict[str, Any], RejectCode, int, int]]] = {
    "major": ({"major": 2}, RejectCode.VERSION, 1, 1),
    "empty-name": ({"session": ""}, RejectCode.BAD_SESSION_NAME, 4, 0),
    "long-name": ({"session": "x" * 17}, RejectCode.BAD_SESSION_NAME, 4, 0),
    "name-with-space": ({"session": "a b"}, RejectCode.BAD_SESSION_NAME, 4, 0),
    "name-with-newline": ({"session": "ab\n"}, RejectCode.BAD_SESSION_NAME, 4, 0),
    "name-not-text": ({"session": 5}, RejectCode.BAD_SESSION_NAME, 4, 0),
    "short-key": ({"key": b"k"}, RejectCode.INVALID_MESSAGE, 3, 0),
    "short-nonce": ({"client_nonce": b""}, RejectCode.INVALID_MESSAGE, 5, 0),
    "negative-number": ({"next_number": -1}, RejectCode.INVALID_MESSAGE, 6, 0),
    "number-ahead": ({"next_number": 2}, RejectCode.NUMBER_AHEAD, 6, 1),
    "keepalive-short": ({"keepalive_ms": 99}, RejectCode.KEEPALIVE_OUT_OF_RANGE, 7, 100),
    "keepalive-long": ({"keepalive_ms": 30_001}, RejectCode.KEEPALIVE_OUT_OF_RANGE, 7, 30_000),
    "mode": (
        {"cancel_on_disconnect": 4},
        *(RejectCode.CANCEL_ON_DISCONNECT_OUT_OF_RANGE, 8, 3),
    ),
    "grace": (
        {"cancel_grace_ms": 60_001},
        *(RejectCode.CANCEL_ON_DISCONNECT_OUT_OF_RANGE, 9, 60_000),
    ),
    "long-client": ({"client": "x" * 129}, RejectCode.INVALID_MESSAGE, 10, 0),
}


@pytest.mark.parametrize("name", BAD_LOG_ONS)
def test_log_on_out_of_bounds_is_refused(market: Market, peer: Peer, name: str) -> None:
    fields, *expected = BAD_LOG_ONS[name]
    key = market.firm.key
    log_on = make_log_on(key, "fresh")
    log_on = sign(key, peer.greet(), msgspec.structs.replace(log_on, **fields))
    assert refusal(peer, log_on) == tuple(expected)


def test_short_signature_is_refused(market: Market, peer: Peer) -> None:
    log_on = make_log_on(market.firm.key, "s", signature=b"")
    assert refusal(peer, log_on) == (RejectCode.INVALID_MESSAGE, 11, 0)


def test_signature_by_another_key_is_refused(market: Market, peer: Peer) -> None:
    log_on = sign(STRANGER, peer.greet(), make_log_on(market.firm.key, "s"))
    assert refusal(peer, log_on) == (RejectCode.BAD_SIGNATURE, 11, 0)


def test_recorded_log_on_is_refused(market: Market, peer: Peer) -> None:
    with Peer(market.venue.address) as first:
        log_on = sign(market.firm.key, first.greet(), make_log_on(market.firm.key, "s"))
    assert refusal(peer, log_on) == (RejectCode.BAD_SIGNATURE, 11, 0)


def test_signed_parameter_cannot_be_changed(market: Market, peer: Peer) -> None:
    log_on = sign(market.firm.key, peer.greet(), make_log_on(market.firm.key, "s"))
    changed = msgspec.structs.replace(log_on, cancel_grace_ms=1)
    assert refusal(peer, changed) == (RejectCode.BAD_SIGNATURE, 11, 0)


def test_unknown_key_is_refused(peer: Peer) -> None:
    log_on = sign(STRANGER, peer.greet(), make_log_on(STRANGER, "s"))
    assert refusal(peer, log_on) == (RejectCode.UNKNOWN_KEY, 3, 0)


def test_revoked_key_is_refused_and_its_session_may_do_nothing(market: Market, peer: Peer) -> None:
    firm = market.firm
    with Peer(market.venue.address) as revoked:
        revoked.log_on(firm.key, "s")
        public_key = firm.key.public_key().public_bytes_raw()
        admin(market.operator, Key(firm.participant_id, public_key, 0))
        answer = revoked.request(market.good_order())
        assert isinstance(answer, OrderRejected)
        assert answer.code == RejectCode.NOT_PERMITTED
    log_on = sign(firm.key, peer.greet(), make_log_on(firm.key, "s"))
    assert refusal(peer, log_on) == (RejectCode.UNKNOWN_KEY, 3, 0)


def test_more_sessions_than_a_participant_may_have(market: Market) -> None:
    key = market.firm.key
    for index in range(SESSIONS_PER_PARTICIPANT_MAX):
        with Peer(market.venue.address) as one:
            one.log_on(key, f"s{index}")
    expected = (RejectCode.SESSION_LIMIT, 4, SESSIONS_PER_PARTICIPANT_MAX)
    with Peer(market.venue.address) as peer:
        assert refusal(peer, sign(key, peer.greet(), make_log_on(key, "s"))) == expected


def test_second_log_on_ends_the_connection(market: Market, trader: Peer) -> None:
    log_on = sign(market.firm.key, trader.greet(), make_log_on(market.firm.key, "again"))
    trader.send_raw(wire.encode(log_on), SESSION)
    trader.read_to_end()
    assert trader.terminate.code == TerminateCode.PROTOCOL_VIOLATION


def test_two_log_ons_in_one_write_end_the_connection(market: Market, peer: Peer) -> None:
    log_on = sign(market.firm.key, peer.greet(), make_log_on(market.firm.key, "twice"))
    peer.put(log_on)
    peer.send_bytes(peer.machine.data_to_send() + encode_frame(SESSION, 1, wire.encode(log_on)))
    peer.read_to_end()
    assert peer.terminate.code == TerminateCode.PROTOCOL_VIOLATION


@pytest.mark.parametrize(
    "message", [NewOrder(1, 1, 1, Side.BUY, CENT, CONTRACT), Participant("eve"), Heartbeat()]
)
def test_nothing_goes_before_the_log_on(peer: Peer, message: Any) -> None:
    kind = SESSION if isinstance(message, Heartbeat) else SEQUENCED
    peer.send_raw(wire.encode(message), kind)
    peer.read_to_end()
    assert peer.terminate.code == TerminateCode.PROTOCOL_VIOLATION


def test_log_on_that_does_not_come_in_time(market: Market) -> None:
    """All at once, since each takes the venue's five seconds."""
    log_on = encode_frame(SESSION, 1, wire.encode(make_log_on(STRANGER, "s")))
    with ExitStack() as stack:
        peers = [stack.enter_context(Peer(market.venue.address)) for _ in range(4)]
        for part, peer in zip(
            [b"", log_on[:1], log_on[:HEADER_SIZE], log_on[:-1]], peers, strict=True
        ):
            peer.send_bytes(part)
        for peer in peers:
            peer.read_to_end()
            assert peer.terminate.code == TerminateCode.LOG_ON_TIMEOUT


def test_silent_client_is_given_up(market: Market, peer: Peer) -> None:
    peer.log_on(market.firm.key, "silent", keepalive_ms=100)
    peer.read_to_end()
    assert peer.terminate.code == TerminateCode.KEEPALIVE_LAPSED


# Orders.

BAD_ORDERS: Final[dict[str, tuple[dict[str, Any], RejectCode, int, int]]] = {
    "instrument-0": ({"instrument_id": 0}, RejectCode.UNKNOWN_INSTRUMENT, 2, 0),
    "instrument-99": ({"instrument_id": 99}, RejectCode.UNKNOWN_INSTRUMENT, 2, 0),
    "instrument-huge": ({"instrument_id": 2**62 - 1}, RejectCode.UNKNOWN_INSTRUMENT, 2, 0),
    "account-0": ({"account_id": 0}, RejectCode.UNKNOWN_ACCOUNT, 3, 0),
    "account-huge": ({"account_id": 2**62 - 1}, RejectCode.UNKNOWN_ACCOUNT, 3, 0),
    "account-foreign": ({"account_id": 2}, RejectCode.UNKNOWN_ACCOUNT, 3, 0),
    "side-0": ({"side": 0}, RejectCode.UNSUPPORTED_VALUE, 4, 0),
    "side-3": ({"side": 3}, RejectCode.UNSUPPORTED_VALUE, 4, 0),
    "price-off-tick": ({"price": 150}, RejectCode.PRICE_OFF_TICK, 5, CENT),
    "price-0": ({"price": 0}, RejectCode.PRICE_OUT_OF_RANGE, 5, 0),
    "price-negative": ({"price": -CENT}, RejectCode.PRICE_OUT_OF_RANGE, 5, 0),
    "price-cap": ({"price": 10_000}, RejectCode.PRICE_OUT_OF_RANGE, 5, 10_000),
    "price-huge": ({"price": 2**62 - 1}, RejectCode.PRICE_OUT_OF_RANGE, 5, 10_000),
    "price-least": ({"price": 1 - 2**62}, RejectCode.PRICE_OUT_OF_RANGE, 5, 0),
    "quantity-0": ({"quantity": 0}, RejectCode.QUANTITY_ZERO, 6, CONTRACT),
    "quantity-step": ({"quantity": 150}, RejectCode.QUANTITY_STEP, 6, CONTRACT),
    "quantity-large": ({"quantity": 10**11 + 100}, RejectCode.QUANTITY_TOO_LARGE, 6, 10**11),
    "quantity-huge": ({"quantity": 2**62 - 1}, RejectCode.QUANTITY_TOO_LARGE, 6, 10**11),
    "order-type": ({"order_type": 3}, RejectCode.UNSUPPORTED_VALUE, 7, 0),
    "time-in-force": ({"time_in_force": 5}, RejectCode.UNSUPPORTED_VALUE, 8, 0),
    "market-gtc": (
        {"order_type": OrderType.MARKET, "price": 0},
        *(RejectCode.TIME_IN_FORCE_NOT_ALLOWED, 8, 0),
    ),
    "market-price": (
        {"order_type": OrderType.MARKET, "time_in_force": TimeInForce.IOC},
        *(RejectCode.FIELD_NOT_ALLOWED, 5, 0),
    ),
    "gtc-expires": ({"expire_time_ns": 1}, RejectCode.FIELD_NOT_ALLOWED, 9, 0),
    "flags": ({"flags": 1}, RejectCode.UNSUPPORTED_VALUE, 11, 0),
    "display": ({"display_quantity": CONTRACT}, RejectCode.UNSUPPORTED_VALUE, 12, 0),
    "minimum": ({"minimum_quantity": CONTRACT}, RejectCode.UNSUPPORTED_VALUE, 13, 0),
    "stop": ({"stop_price": -1}, RejectCode.UNSUPPORTED_VALUE, 14, 0),
    "maximum-cost": ({"maximum_cost": 2**62 - 1}, RejectCode.UNSUPPORTED_VALUE, 15, 0),
    "valid-until": ({"valid_until_ns": 1}, RejectCode.UNSUPPORTED_VALUE, 16, 0),
    "group": ({"group": 1}, RejectCode.UNSUPPORTED_VALUE, 17, 0),
    "self-trade": ({"self_trade_mode": 1}, RejectCode.UNSUPPORTED_VALUE, 18, 0),
}


@pytest.mark.parametrize("name", BAD_ORDERS)
def test_bad_order_is_rejected_by_name(market: Market, trader: Peer, name: str) -> None:
    fields, *expected = BAD_ORDERS[name]
    answer = trader.request(market.good_order(**fields))
    assert isinstance(answer, OrderRejected)
    assert (answer.code, answer.field, answer.limit) == tuple(expected)
    assert (answer.client_order_id, answer.number) == (1, 1)
    market.check_session(trader)


def test_expire_time_that_has_passed_is_rejected(market: Market, trader: Peer) -> None:
    order = market.good_order(time_in_force=TimeInForce.GTD, expire_time_ns=1)
    answer = trader.request(order)
    assert (answer.code, answer.field) == (RejectCode.EXPIRE_TIME_PASSED, 9)
    assert answer.limit == answer.time_ns


def test_unaffordable_order_is_rejected(market: Market, peer: Peer) -> None:
    firm = make_firm(market.operator, "poor", cash=POOR_CASH)
    peer.log_on(firm.key, "s")
    order = NewOrder(1, 1, firm.account_id, Side.BUY, CENT, 11 * CONTRACT)
    answer = peer.request(order)
    found = (answer.code, answer.field, answer.limit)
    assert found == (RejectCode.INSUFFICIENT_COLLATERAL, 6, POOR_CASH)
    affordable = msgspec.structs.replace(order, client_order_id=2, quantity=10 * CONTRACT)
    assert isinstance(peer.request(affordable), OrderAccepted)


def test_order_beyond_the_account_limit_is_rejected(market: Market, trader: Peer) -> None:
    for client_order_id in range(1, 5):
        answer = trader.request(market.good_order(client_order_id))
        assert isinstance(answer, OrderAccepted)
    answer = trader.request(market.good_order(5))
    assert (answer.code, answer.field, answer.limit) == (RejectCode.OPEN_ORDER_LIMIT, 3, 4)
    for client_order_id in range(1, 5):
        assert isinstance(trader.request(CancelOrder(client_order_id)), OrderCanceled)


@pytest.mark.parametrize("repeated", [0, 1, 7])
def test_repeated_client_order_id_is_rejected(market: Market, trader: Peer, repeated: int) -> None:
    market.check_session(trader, 7)
    answer = trader.request(market.good_order(repeated))
    assert isinstance(answer, OrderRejected)
    assert (answer.code, answer.field) == (RejectCode.DUPLICATE_CLIENT_ORDER_ID, 1)
    assert answer.limit == 7


def test_orders_of_others_cannot_be_canceled_or_replaced(market: Market, trader: Peer) -> None:
    with Peer(market.venue.address) as other:
        other.log_on(market.other.key, "owner")
        order = market.good_order(account_id=market.other.account_id)
        order_id = other.request(order).order_id
        for message in (
            CancelOrder(1),
            CancelOrder(0, order_id),
            CancelOrder(0, 2**62 - 1),
            ReplaceOrder(1, 0, order_id, 3 * CENT, CONTRACT),
        ):
            answer = trader.request(message)
            assert isinstance(answer, CancelRejected)
            assert answer.code == RejectCode.UNKNOWN_ORDER
        assert isinstance(other.request(CancelOrder(1)), OrderCanceled)


def test_admin_commands_need_the_role(market: Market, trader: Peer) -> None:
    for message in (Participant("eve"), Deposit(1, 9, 10**9), Halt(1)):
        answer = trader.request(message)
        assert (answer.code, answer.field) == (RejectCode.NOT_PERMITTED, 0)
    market.check_session(trader)


def test_admin_sessions_do_not_trade(market: Market, peer: Peer) -> None:
    peer.log_on(load_key(market.venue.admin_key), "trading-admin")
    answer = peer.request(market.good_order())
    assert (answer.code, answer.field) == (RejectCode.NOT_PERMITTED, 0)


def test_bad_reference_data_is_rejected(market: Market, peer: Peer) -> None:
    peer.log_on(load_key(market.venue.admin_key), "bad-data")
    cases = [
        (Participant("ada"), RejectCode.DUPLICATE_NAME, 1),
        (Event("X", EventKind.LADDER, "", "USD"), RejectCode.UNSUPPORTED_VALUE, 2),
        (Instrument(99, "X", "", 0, 10_000, [(0, 1)], 1), RejectCode.UNKNOWN_EVENT, 1),
        (Deposit(1, 1, 1), RejectCode.DUPLICATE_TRANSFER_ID, 2),
        (Deposit(10**6, 1, 1), RejectCode.UNKNOWN_ACCOUNT, 1),
        (Deposit(1, 2, 2 * 10**18), RejectCode.CASH_LIMIT, 3),
    ]
    for message, *expected in cases:
        answer = peer.request(message)
        assert [answer.code, answer.field] == expected, message


# Frames and messages of a session that is logged on.


def test_repeated_frame_number_is_dropped(market: Market, trader: Peer) -> None:
    order = wire.encode(market.good_order(1))
    trader.send_raw(order)
    for number in (1, 1, 0):
        trader.send_raw(order, number=number)
    trader.send_raw(wire.encode(CancelOrder(1)), number=1)
    answer = trader.request(CancelOrder(1))
    assert isinstance(answer, OrderCanceled)
    assert sorted(trader.reports) == [1, 2]
    assert trader.notices == []


def test_skipped_frame_numbers_are_not_applied(market: Market, trader: Peer) -> None:
    trader.send_raw(wire.encode(market.good_order(1)), number=5)
    assert isinstance(trader.wait_for(5), OrderAccepted)
    assert trader.notices == [NotApplied(1, 4)]
    trader.send_raw(wire.encode(market.good_order(2)), number=3)  # Spent: a duplicate now.
    trader.machine.numbers_sent(6, time.time_ns())
    assert isinstance(trader.request(CancelOrder(1)), OrderCanceled)
    assert sorted(trader.reports) == [1, 2]


ORDER: Final[list[Any]] = [10, 1, 1, 1, 1, 100, 100]


def changed(index: int, value: Any) -> bytes:
    """An order with another value in one field."""
    return msgspec.msgpack.encode([*ORDER[:index], value, *ORDER[index + 1 :]])


BAD_MESSAGES: Final[dict[str, tuple[bytes, int, RejectCode, int]]] = {
    "empty": (b"", 0, RejectCode.INVALID_MESSAGE, 0),
    "not-msgpack": (b"\xc1", 0, RejectCode.INVALID_MESSAGE, 0),
    "zeros": (bytes(100), 0, RejectCode.INVALID_MESSAGE, 0),
    "map": (msgspec.msgpack.encode({1: 2}), 0, RejectCode.INVALID_MESSAGE, 0),
    "number": (b"\x0a", 0, RejectCode.INVALID_MESSAGE, 0),
    "empty-array": (b"\x90", 0, RejectCode.INVALID_MESSAGE, 0),
    "unknown-tag": (msgspec.msgpack.encode([99, 1, 2]), 99, RejectCode.UNKNOWN_TAG, 0),
    "log-on-numbered": (
        wire.encode(make_log_on(STRANGER, "s")),
        *(1, RejectCode.UNKNOWN_TAG, 0),
    ),
    "venue-command": (b"\x91\x37", 55, RejectCode.UNKNOWN_TAG, 0),
    "report": (msgspec.msgpack.encode([84, 1, 1, 1, 1, 1, 1]), 84, RejectCode.UNKNOWN_TAG, 0),
    "text-tag": (msgspec.msgpack.encode(["10", 1]), 0, RejectCode.INVALID_MESSAGE, 0),
    "text": (changed(6, "100"), 10, RejectCode.INVALID_MESSAGE, 6),
    "float": (changed(5, 100.0), 10, RejectCode.INVALID_MESSAGE, 5),
    "null": (changed(4, None), 10, RejectCode.INVALID_MESSAGE, 4),
    "bool": (changed(4, True), 10, RejectCode.INVALID_MESSAGE, 4),
    "array": (changed(1, [1]), 10, RejectCode.INVALID_MESSAGE, 1),
    "negative": (changed(6, -100), 10, RejectCode.INVALID_MESSAGE, 6),
    "too-large": (changed(6, 2**62), 10, RejectCode.INVALID_MESSAGE, 6),
    "too-small": (changed(5, -(2**62)), 10, RejectCode.INVALID_MESSAGE, 5),
    "too-short": (msgspec.msgpack.encode(ORDER[:-1]), 10, RejectCode.INVALID_MESSAGE, 6),
    "too-long": (msgspec.msgpack.encode(ORDER + [0] * 13), 10, RejectCode.INVALID_MESSAGE, 19),
    "trailing": (msgspec.msgpack.encode(ORDER) + b"\x00", 10, RejectCode.INVALID_MESSAGE, 0),
    "cut": (msgspec.msgpack.encode(ORDER)[:-1], 10, RejectCode.INVALID_MESSAGE, 0),
    "bad-name": (msgspec.msgpack.encode([30, "a b"]), 30, RejectCode.INVALID_MESSAGE, 1),
    "bad-utf-8": (b"\x92\x1e\xa2\xff\xfe", 30, RejectCode.INVALID_MESSAGE, 0),
    "deep": (b"\x91" * 4000, 0, RejectCode.INVALID_MESSAGE, 0),
}


@pytest.mark.parametrize("name", BAD_MESSAGES)
def test_bad_message_is_refused_and_the_session_goes_on(
    market: Market, trader: Peer, name: str
) -> None:
    payload, *expected = BAD_MESSAGES[name]
    number = trader.send_raw(payload)
    answer = trader.wait_for(number)
    assert isinstance(answer, SessionReject)
    assert [answer.request_tag, answer.code, answer.field] == expected
    assert answer.text
    market.check_session(trader)
    assert sorted(trader.reports) == [1, 2], "a refusal takes no report's number"
