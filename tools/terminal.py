"""What a person sees of the demo while it runs: a table in a terminal, plain lines elsewhere.

Both take a `Picture` a few times a second. The table fits 80 columns and 24 lines; a wider terminal
also gets the titles.
"""

from dataclasses import dataclass
from types import TracebackType
from typing import Final, Protocol, Self, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tools.demo_consumer import Seen
from tools.units import format_price, format_quantity

__all__ = ["LiveView", "MarketTable", "Picture", "PlainView", "Row", "View"]

TITLE_WIDTH_MIN: Final = 118
"""Columns from which the titles fit beside the figures."""

BAR_WIDTH: Final = 18

PLAIN_INTERVAL_S: Final = 2.0

NONE: Final = "-"
UNKNOWN: Final = "?"
"""In a book whose messages were missed: nothing is shown that may be wrong."""


@dataclass(frozen=True)
class Row:
    """An instrument, and what the consumer sees of it."""

    symbol: str
    title: str
    price_digits: int
    seen: Seen


@dataclass(frozen=True)
class Picture:
    """The market at a moment; rates and percentiles are those of the last interval."""

    elapsed_s: float
    seconds: float
    orders: int
    orders_per_second: float
    ack_p50_us: float
    ack_p99_us: float
    trades: int
    sequence: int
    messages: int
    messages_per_second: float
    gaps: int
    """Of the market data: what the consumer took, and how often it missed something."""
    rows: list[Row]


class View(Protocol):
    """Somewhere to show pictures; a context manager."""

    def show(self, picture: Picture) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


class PlainView:
    """A line every two seconds, for logs and pipes."""

    def __init__(self, output: TextIO) -> None:
        self._output = output
        self._next_s = PLAIN_INTERVAL_S

    def show(self, picture: Picture) -> None:
        """Print a line if one is due."""
        if picture.elapsed_s < self._next_s:
            return
        self._next_s += PLAIN_INTERVAL_S
        print(
            f"{picture.elapsed_s:5.1f} s  {picture.orders:>9,} orders  "
            f"{picture.orders_per_second:>7,.0f}/s  "
            f"p50 {picture.ack_p50_us:,.0f} us p99 {picture.ack_p99_us:,.0f} us  "
            f"{picture.trades:,} trades  "
            f"market data {picture.messages_per_second:,.0f}/s, gaps {picture.gaps}",
            file=self._output,
            flush=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Nothing to close."""


class MarketTable:
    """Instruments with their best prices; remembers where each price was before."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}
        self._arrows: dict[str, Text] = {}

    def render(self, rows: list[Row], width: int) -> Table:
        """A table for a terminal with so many columns."""
        table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold", expand=False)
        has_titles = width >= TITLE_WIDTH_MIN
        table.add_column("Instrument", no_wrap=True, style="cyan")
        if has_titles:
            table.add_column("Question", no_wrap=True, max_width=38, overflow="ellipsis")
        for heading, columns in (
            ("Bid qty", 7),
            ("Bid", 8),
            ("Ask", 8),
            ("Ask qty", 7),
            ("Last", 8),
            ("Volume", 10),
            ("Trades", 10),
        ):
            table.add_column(heading, justify="right", no_wrap=True, width=columns)
        for row in rows:
            titles = [row.title] if has_titles else []
            seen = row.seen
            table.add_row(
                row.symbol,
                *titles,
                _quantity(seen, seen.bid_quantity),
                Text(_price(row, seen.bid_price), style="green"),
                Text(_price(row, seen.ask_price), style="red"),
                _quantity(seen, seen.ask_quantity),
                self._last_price(row),
                f"{seen.volume // 100:,}",
                f"{seen.trade_count:,}",
            )
        return table

    def _last_price(self, row: Row) -> Text:
        """The price with an arrow for its last move."""
        price = row.seen.last_price
        if price is None:
            return Text(f"{NONE}  ")
        before = self._last.get(row.symbol, price)
        if price != before or row.symbol not in self._arrows:
            up, down = ("▲", "green"), ("▼", "red")
            mark, style = up if price > before else down
            if price == before:
                mark, style = " ", ""
            self._arrows[row.symbol] = Text(mark, style=style)
        self._last[row.symbol] = price
        return Text.assemble(format_price(price, row.price_digits), " ", self._arrows[row.symbol])


class LiveView:
    """The table, drawn in place."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False)
        self._table = MarketTable()

    def show(self, picture: Picture) -> None:
        """Draw it."""
        self._live.update(self._render(picture), refresh=True)

    def _render(self, picture: Picture) -> Group:
        table = self._table.render(picture.rows, self._console.width)
        return Group(self._headline(picture), Text(), table, Text(), *_footer(picture))

    def _headline(self, picture: Picture) -> Text:
        filled = round(BAR_WIDTH * min(picture.elapsed_s / picture.seconds, 1.0))
        return Text.assemble(
            ("Brier", "bold"),
            "  an exchange for event contracts, live  ",
            ("━" * filled, "green"),
            ("━" * (BAR_WIDTH - filled), "bright_black"),
            f" {picture.elapsed_s:.0f} of {picture.seconds:.0f} s",
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.stop()


def _footer(picture: Picture) -> list[Text]:
    dim, bold = "bright_black", "bold"
    rate = f"{picture.orders_per_second:>9,.0f}"
    p50, p99 = f"{picture.ack_p50_us / 1000:.2f}", f"{picture.ack_p99_us / 1000:.2f}"
    message_rate = f"{picture.messages_per_second:>9,.0f}"
    gaps = (f"{picture.gaps} gaps", "bold red" if picture.gaps else "green")
    return [
        Text.assemble(
            *(("orders ", dim), (rate, bold), f" a second  {picture.orders:>11,} so far   "),
            *(("journal at ", dim), f"{picture.sequence:,}"),
        ),
        Text.assemble(
            *(("trades ", dim), f"{picture.trades:>9,}           "),
            *(("durable in  ", dim), "p50 ", (p50, bold), " ms  p99 ", (p99, bold), " ms"),
        ),
        Text.assemble(
            *(("market ", dim), (message_rate, bold), " a second  "),
            *(f"{picture.messages:>11,} so far   ", ("multicast, ", dim), gaps),
        ),
    ]


def _price(row: Row, price: int) -> str:
    if row.seen.is_stale:
        return UNKNOWN
    return format_price(price, row.price_digits) if price else NONE


def _quantity(seen: Seen, quantity: int) -> str:
    if seen.is_stale:
        return UNKNOWN
    return format_quantity(quantity) if quantity else NONE
