"""Recorded trades read by pyarrow: times as integers, and candles in a few lines of its own."""

from typing import Any, Final

import pyarrow  # type: ignore[import-untyped]  # it comes without types
from pyarrow import compute

from protocol.market_data import Candle

__all__ = ["candle_row", "candle_rows", "integers"]

SECOND_NS: Final = 1_000_000_000


def integers(table: Any) -> Any:
    """A table with its times as integers, which no class of Python's could hold exactly."""
    columns = [
        column.cast(pyarrow.int64()) if pyarrow.types.is_timestamp(column.type) else column
        for column in table.columns
    ]
    return pyarrow.table(columns, table.schema.names)


def candle_rows(trades: Any, interval_s: int) -> list[dict[str, int]]:
    """The candles of a table of one instrument's trades, with times as integers."""
    start = compute.multiply(compute.divide(trades["time"], interval_s * SECOND_NS), interval_s)
    grouped = trades.append_column("start", start).group_by("start", use_threads=False)
    rows: list[dict[str, int]] = grouped.aggregate(
        [
            *(("price", how) for how in ("first", "max", "min", "last")),
            *(("quantity", "sum"), ("quantity", "count"), ("open_interest", "last")),
        ]
    ).to_pylist()
    return rows


def candle_row(candle: Candle) -> dict[str, int]:
    """A candle of the feed's under the same names."""
    return {
        "start": candle.start_time_ns // SECOND_NS,
        "price_first": candle.open_price,
        "price_max": candle.high_price,
        "price_min": candle.low_price,
        "price_last": candle.close_price,
        "quantity_sum": candle.volume,
        "quantity_count": candle.trade_count,
        "open_interest_last": candle.open_interest,
    }
