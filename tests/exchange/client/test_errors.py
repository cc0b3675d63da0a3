"""Texts for people: every code has a meaning, and what is unknown stays readable."""

import re

import pytest

import exchange.client
from exchange.client.errors import (
    _MEANINGS,
    ClientError,
    LogOnRejectedError,
    OrderRejectedError,
    TerminatedError,
)
from protocol.codes import RejectCode, TerminateCode
from protocol.order_entry import NewOrder, OrderRejected
from protocol.transport import LogOnRejected

ORDER = NewOrder(17, 1, 1, 1, 5_001, 100)


def rejected(code: int, field: int, limit: int) -> OrderRejectedError:
    return OrderRejectedError(ORDER, OrderRejected(1, 2, 17, 3, 4, 5, code, field, limit, 6), limit)


@pytest.mark.parametrize("code", RejectCode)
def test_every_code_has_a_meaning(code: RejectCode) -> None:
    assert code in _MEANINGS
    text = str(rejected(code, 5, 12_345))
    assert text.startswith(f"NewOrder 17 rejected: {code.name}: price 5001 ")
    assert ("12345" in text) == ("{limit}" in _MEANINGS[code])
    assert not re.search(r"[{}]", text)


def test_what_a_newer_venue_says_stays_readable() -> None:
    assert str(rejected(999, 99, -5)) == "NewOrder 17 rejected: code 999: limit -5"
    assert rejected(999, 99, -5).field_name == ""
    assert str(LogOnRejectedError(LogOnRejected(999, 0, 7, "news"))) == (
        "log-on rejected: code 999: limit 7 (news)"
    )
    assert str(TerminatedError(999, "", by_venue=True)) == (
        "the venue ended the connection: code 999"
    )


@pytest.mark.parametrize("code", TerminateCode)
def test_every_end_is_named(code: TerminateCode) -> None:
    assert code.name in str(TerminatedError(code, "", by_venue=True))


def test_exports_are_there_and_errors_have_one_base() -> None:
    for name in exchange.client.__all__:
        value = getattr(exchange.client, name)
        if name.endswith("Error"):
            assert issubclass(value, ClientError)
            assert value.__doc__
