"""What the demo lists: a dozen questions of several kinds and one scalar, our own definitions.

The shape is that of real listings of event contracts: most prices step by a cent, likely and
unlikely outcomes by a tenth of one, some probabilities are near certain and some remote.
"""

from dataclasses import dataclass
from typing import Final

from protocol.codes import EventKind
from tools.units import format_price

__all__ = ["LISTING", "Listed", "price_digits", "valid_prices"]

TickTable = tuple[tuple[int, int], ...]

CENTS: Final[TickTable] = ((0, 100),)
TAPERED: Final[TickTable] = ((0, 10), (1_000, 100), (9_000, 10))
"""Tenths of a cent below ten cents and above ninety."""
HALF_CENTS: Final[TickTable] = ((0, 50),)
DIMES: Final[TickTable] = ((0, 1_000),)

BINARY_CAP: Final = 10_000


@dataclass(frozen=True)
class Listed:
    """An event with its one instrument; prices in 1/10000 of the currency unit."""

    symbol: str
    title: str
    fair_price: int
    """Where trading begins."""
    tick_table: TickTable = CENTS
    kind: EventKind = EventKind.BINARY
    cap_price: int = BINARY_CAP


LISTING: Final = (
    Listed("RAIN-OSLO-SAT", "Rain in Oslo on Saturday", 6_200),
    Listed("HEAT-ROME-40C", "Rome reaches 40 degrees this month", 1_400),
    Listed("STORM-CAT5", "A category 5 storm this season", 740, TAPERED),
    Listed("RATE-CUT-SEP", "The central bank cuts in September", 5_450, HALF_CENTS),
    Listed("RATE-HIKE-SEP", "The central bank raises in September", 320, TAPERED),
    Listed("CPI-ABOVE-3", "Inflation above 3 percent in August", 3_700),
    Listed("JOBS-UP-200K", "More than 200,000 new jobs in August", 4_450, HALF_CENTS),
    Listed("TURNOUT-60", "Turnout above 60 percent", 8_150),
    Listed("COALITION-3", "Three or more parties in government", 9_350, TAPERED),
    Listed("FINAL-PENALTY", "The cup final is decided on penalties", 2_250),
    Listed("SPRINT-RECORD", "A new 100 m world record this year", 480, TAPERED),
    Listed("MOON-2030", "People on the Moon before 2030", 2_900),
    Listed(
        "SNOW-DENVER",
        "Snow in Denver this season, in inches (a dollar each, at most 100)",
        558_000,
        DIMES,
        EventKind.SCALAR,
        1_000_000,
    ),
)


def price_digits(listed: Listed) -> int:
    """Digits after the point that show every valid price, at least 2."""
    return max(len(format_price(tick).partition(".")[2]) for _, tick in listed.tick_table)


def valid_prices(listed: Listed) -> list[int]:
    """Every price that an order may have, ascending; the floor is 0."""
    starts = [start for start, _ in listed.tick_table]
    prices: list[int] = []
    for (start, tick), end in zip(listed.tick_table, [*starts[1:], listed.cap_price], strict=True):
        prices += range(start, end, tick)
    return prices[1:]
