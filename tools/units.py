"""Human numbers to the venue's integers and back, exactly.

People write decimals of the currency unit and of the contract; the venue counts 1/10000 (price),
1/100 (quantity) and 1/1000000 (amount). A number that is not a whole count is refused, never
rounded.
"""

import re
from typing import Final

from tools.errors import UsageError

__all__ = [
    "AMOUNT_DIGITS",
    "PRICE_DIGITS",
    "QUANTITY_DIGITS",
    "format_amount",
    "format_price",
    "format_quantity",
    "parse_amount",
    "parse_price",
    "parse_quantity",
]

PRICE_DIGITS: Final = 4
QUANTITY_DIGITS: Final = 2
AMOUNT_DIGITS: Final = 6
"""Decimal digits of each unit: 10^-digits of a currency unit or contract is 1."""

_NUMBER: Final = re.compile(r"(-?)(\d[\d,_]*)(?:\.(\d+))?", re.ASCII)
_DIGITS_MAX: Final = 18
"""Whole digits: more is beyond every limit of the venue, and a mistake."""


def parse_price(text: str) -> int:
    """`"0.55"` is 5500. Raises UsageError."""
    return _parse(text, PRICE_DIGITS, "price")


def parse_quantity(text: str) -> int:
    """`"1.5"` contracts are 150. Raises UsageError."""
    return _parse(text, QUANTITY_DIGITS, "quantity")


def parse_amount(text: str) -> int:
    """`"1,000.5"` is 1000500000. Raises UsageError."""
    return _parse(text, AMOUNT_DIGITS, "amount")


def format_price(price: int, digits_min: int = 2) -> str:
    """Decimals of the currency unit; as few digits as are exact, but at least `digits_min`."""
    return _format(price, PRICE_DIGITS, digits_min=digits_min)


def format_quantity(quantity: int) -> str:
    """Contracts; whole ones without a point."""
    return _format(quantity, QUANTITY_DIGITS).removesuffix(".00")


def format_amount(amount: int) -> str:
    """Decimals of the currency unit with thousands separators."""
    return _format(amount, AMOUNT_DIGITS, separator=",")


def _parse(text: str, digits: int, what: str) -> int:
    found = _NUMBER.fullmatch(text.strip())
    if not found:
        raise UsageError(f"{what} {text!r} is not a decimal number such as 12.5")
    sign, whole, fraction = found[1], re.sub("[,_]", "", found[2]), found[3] or ""
    if len(whole) > _DIGITS_MAX:
        raise UsageError(f"{what} {text} is too large")
    if len(fraction.rstrip("0")) > digits:
        raise UsageError(f"{what} {text} has more than {digits} digits after the point")
    value = int(whole + fraction.rstrip("0").ljust(digits, "0"))
    return -value if sign else value


def _format(value: int, digits: int, separator: str = "", digits_min: int = 2) -> str:
    whole, fraction = divmod(abs(value), 10**digits)
    shown = f"{fraction:0{digits}d}".rstrip("0").ljust(digits_min, "0")
    return f"{'-' if value < 0 else ''}{whole:{separator}d}.{shown}"
