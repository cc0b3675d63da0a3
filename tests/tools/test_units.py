"""Decimals of people to the venue's integers and back: exact or refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.errors import UsageError
from tools.units import (
    format_amount,
    format_price,
    format_quantity,
    parse_amount,
    parse_price,
    parse_quantity,
)


@pytest.mark.parametrize(
    ("text", "price"),
    [
        ("0.55", 5_500),
        ("1", 10_000),
        ("0.0001", 1),
        ("-2.5", -25_000),
        ("0.550000", 5_500),
        ("1,000", 10_000_000),
    ],
)
def test_price(text: str, price: int) -> None:
    assert parse_price(text) == price


@pytest.mark.parametrize(
    ("text", "story"),
    [
        ("0.00001", "more than 4 digits"),
        ("", "not a decimal number"),
        ("1e3", "not a decimal number"),
        ("nan", "not a decimal number"),
        ("1.", "not a decimal number"),
        (".5", "not a decimal number"),
        ("٣", "not a decimal number"),
        ("1" * 19, "too large"),
    ],
)
def test_what_is_not_exactly_a_price_is_refused(text: str, story: str) -> None:
    with pytest.raises(UsageError, match=story):
        parse_price(text)


def test_amounts_and_quantities() -> None:
    assert parse_amount("25,000.505") == 25_000_505_000
    assert parse_quantity("1.5") == 150
    assert format_amount(25_000_505_000) == "25,000.505"
    assert format_amount(-1) == "-0.000001"
    assert format_quantity(150) == "1.50"
    assert format_quantity(700) == "7"
    assert format_price(5_500) == "0.55"
    assert format_price(5_500, 3) == "0.550"
    assert format_price(1) == "0.0001"


@given(st.integers(-(10**18), 10**18))
def test_what_is_shown_is_read_again(value: int) -> None:
    assert parse_amount(format_amount(value)) == value
    assert parse_price(format_price(value)) == value
    assert parse_quantity(format_quantity(value)) == value
