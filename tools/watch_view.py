"""What a person sees of `exchange watch`: the whole terminal, or a plain line now and then.

Both take a `Sight` a few times a second. From top to bottom: the ways on which packets come, the
instruments or the levels of one, then trades beside what was lost and healed. It fits 80 columns
and 24 lines, and shows more of everything when there is more room.
"""

import time
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Protocol, Self, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from exchange.client import Lag, Level
from tools.terminal import MarketTable, Row
from tools.units import format_price, format_quantity

__all__ = ["Incident", "Ladder", "PlainView", "Sight", "TerminalView", "Tick", "View", "Way"]

BAR_WIDTH: Final = 16
LOG_LINES_MIN: Final = 4
"""Of trades and incidents, their heading included."""
TRADES_WIDTH: Final = 41
DIM: Final = "bright_black"
PLAIN_INTERVAL_S: Final = 2.0
NS_PER_MS: Final = 1_000_000
NS_PER_S: Final = 1_000_000_000


@dataclass(frozen=True)
class Way:
    """A line or the feed: how it is, and what it brings."""

    name: str
    address: str
    status: str
    is_well: bool
    packets_per_second: float
    lag: Lag
    dropped_count: int


@dataclass(frozen=True)
class Tick:
    """A trade."""

    time_ns: int
    symbol: str
    is_buy: bool
    """Whether the incoming order bought."""
    quantity: int
    price: str


@dataclass(frozen=True)
class Incident:
    """Something that was lost, healed, or began anew."""

    time_ns: int
    text: str
    is_healed: bool


@dataclass(frozen=True)
class Ladder:
    """The levels of one instrument, best first."""

    price_digits: int
    bids: list[Level]
    asks: list[Level]


@dataclass(frozen=True)
class Sight:
    """Everything at a moment; trades and incidents are the newest, newest first."""

    time_ns: int
    elapsed_s: float
    state: str
    is_well: bool
    ways: list[Way]
    rows: list[Row]
    ladder: Ladder | None
    trades: list[Tick]
    incidents: list[Incident]
    messages: int
    messages_per_second: float
    gaps: int
    recoveries: int


class View(Protocol):
    """Somewhere to show it; a context manager."""

    def show(self, sight: Sight) -> None: ...

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
        self._next_s = 0.0

    def show(self, sight: Sight) -> None:
        """Print a line if one is due."""
        if sight.elapsed_s < self._next_s:
            return
        self._next_s = sight.elapsed_s + PLAIN_INTERVAL_S
        ways = "; ".join(f"{way.name} {way.status}" for way in sight.ways)
        print(
            f"{sight.elapsed_s:5.1f} s  {sight.state}  {sight.messages:,} messages  "
            f"{sight.messages_per_second:,.0f}/s  gaps {sight.gaps}, healed {sight.recoveries}  "
            f"{ways}",
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


class TerminalView:
    """The whole terminal, drawn in place; what was there before comes back at the end."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, screen=True)
        self._table = MarketTable()

    def show(self, sight: Sight) -> None:
        """Draw it."""
        self._live.update(self.render(sight), refresh=True)

    def render(self, sight: Sight) -> Group:
        """All that fits the terminal as it is now."""
        width, height = self._console.size
        top = [_headline(sight, width), *_ways(sight), Text()]
        room = height - len(top) - 1
        wanted = len(sight.rows) + 1
        if sight.ladder is not None:
            wanted += 2 + max(len(sight.ladder.bids), len(sight.ladder.asks))
        log_lines = max(LOG_LINES_MIN, room - wanted)
        market = self._market(sight, width, room - log_lines)
        return Group(*top, *market, Text(), _log(sight, width, log_lines))

    def _market(self, sight: Sight, width: int, room: int) -> list[Table | Text]:
        """The instruments, or one of them with its levels, in so many lines."""
        if sight.ladder is not None:
            return [self._table.render(sight.rows, width), Text(), _ladder(sight.ladder, room - 4)]
        rows, left = sight.rows, len(sight.rows) + 1 - room
        if left <= 0:
            return [self._table.render(rows, width)]
        busy = sorted(rows, key=lambda row: -row.seen.trade_count)[: room - 2]
        rows = [row for row in rows if row in busy]
        more = f"{len(sight.rows) - len(rows)} more, with fewer trades"
        return [self._table.render(rows, width), Text(more, style=DIM)]

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


def _headline(sight: Sight, width: int) -> Text:
    state = (sight.state, "bold green" if sight.is_well else "bold yellow")
    line = Text.assemble(
        *(("Brier", "bold"), "  ", state, "  "),
        *(f"{sight.messages_per_second:,.0f}", (" messages/s  ", DIM)),
        *(f"{sight.messages:,}", (" so far", DIM)),
    )
    clock = time.strftime("%H:%M:%S UTC", time.gmtime(sight.time_ns // NS_PER_S))
    line.append(" " * max(1, width - line.cell_len - len(clock)))
    return line.append(clock, style=DIM)


def _ways(sight: Sight) -> list[Text]:
    """A line for each."""
    addresses = max(len(way.address) for way in sight.ways)
    statuses = max(len(way.status) for way in sight.ways)
    return [
        Text.assemble(
            (f"{way.name:<7}", "bold"),
            (f"{way.address:<{addresses}}  ", DIM),
            (f"{way.status:<{statuses}}", "green" if way.is_well else "yellow"),
            *(f"{way.packets_per_second:>8,.0f}", (" packets/s  ", DIM)),
            *_lag(way.lag),
            (f"  {way.dropped_count:,} dropped", "red") if way.dropped_count else "",
            overflow="ellipsis",
            no_wrap=True,
        )
        for way in sight.ways
    ]


def _lag(lag: Lag) -> list[str | tuple[str, str]]:
    """Median and maximum of the last second."""
    if not lag.sample_count:
        return []
    p50, most = lag.network_p50_ns / NS_PER_MS, lag.network_max_ns / NS_PER_MS
    return [("lag ", DIM), f"{p50:.2f}", ("..", DIM), f"{most:.1f}", (" ms", DIM)]


def _ladder(ladder: Ladder, room: int) -> Table:
    """Bids and asks beside each other, with bars for their quantities."""
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold", expand=False)
    for heading, columns in (
        ("", BAR_WIDTH),
        ("Bid qty", 9),
        ("Bid", 8),
        ("Ask", 8),
        ("Ask qty", 9),
    ):
        table.add_column(heading, justify="right", no_wrap=True, width=columns)
    table.add_column("", justify="left", no_wrap=True, width=BAR_WIDTH)
    levels = [*ladder.bids, *ladder.asks]
    most = max((level.quantity for level in levels), default=1)
    for index in range(min(room, max(len(ladder.bids), len(ladder.asks)))):
        bid = _side(ladder, ladder.bids, index, most)
        ask = _side(ladder, ladder.asks, index, most)
        table.add_row(
            *(Text(bid[0], style="green"), bid[1], Text(bid[2], style="green")),
            *(Text(ask[2], style="red"), ask[1], Text(ask[0], style="red")),
        )
    return table


def _side(ladder: Ladder, levels: list[Level], index: int, most: int) -> tuple[str, str, str]:
    """Bar, quantity and price of a level, empty when there is none."""
    if index >= len(levels):
        return "", "", ""
    level = levels[index]
    bar = "█" * max(1, BAR_WIDTH * level.quantity // most)
    price = format_price(level.price, ladder.price_digits)
    return bar, format_quantity(level.quantity), price


def _log(sight: Sight, width: int, lines: int) -> Table:
    """Trades beside gaps and recoveries, newest first."""
    table = Table(box=None, padding=0, header_style="bold", expand=False)
    table.add_column("Trades", no_wrap=True, width=TRADES_WIDTH, overflow="ellipsis")
    lost = f"Gaps {sight.gaps}, healed {sight.recoveries}"
    table.add_column(lost, no_wrap=True, width=width - TRADES_WIDTH, overflow="ellipsis")
    for index in range(lines - 1):
        trade = _trade(sight.trades[index]) if index < len(sight.trades) else Text()
        incident = Text()
        if index < len(sight.incidents):
            found = sight.incidents[index]
            style = "" if found.is_healed else "bold red"
            incident = Text.assemble((f"{_clock(found.time_ns)} ", DIM), (found.text, style))
        table.add_row(trade, incident)
    return table


def _trade(tick: Tick) -> Text:
    side, style = ("buy ", "green") if tick.is_buy else ("sell", "red")
    return Text.assemble(
        *((f"{_clock(tick.time_ns)} ", DIM), (side, style)),
        f" {format_quantity(tick.quantity):>5} {tick.price:<7}",
        (tick.symbol, "cyan"),
    )


def _clock(time_ns: int) -> str:
    return time.strftime("%H:%M:%S", time.gmtime(time_ns // NS_PER_S))
