"""`exchange watch`: the market in the terminal, as a consumer of market data sees it.

It listens on the lines, asks the feed for what they lose, keeps the books, and shows them with the
trades, how old everything is, and every gap and how it was healed. What it is not sure of it does
not show. With --json each second is one object on a line.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import sys
import time
from collections import Counter, deque
from types import TracebackType
from typing import Any, Final, Self, TextIO

import uvloop
from rich.console import Console

from exchange.client import Book, Consumer, Gap, Healing, Recovery, StaleBookError
from protocol.codes import Side
from protocol.market_data import InstrumentDefinition, Trade
from tools.demo_consumer import see
from tools.sources import Source, add_source_arguments, parse_seconds, read_source
from tools.terminal import Row
from tools.units import format_price
from tools.watch_view import Incident, Ladder, PlainView, Sight, TerminalView, Tick, View, Way

__all__ = ["add_commands"]

LOOK_S: Final = 0.25
JSON_LOOK_S: Final = 1.0
TRADES_MAX: Final = 100
"""Kept to be shown: more than any terminal has lines."""
INCIDENTS_MAX: Final = 100
DEPTH: Final = 20
"""Levels of a side that are looked at for one instrument."""
SILENT_NS: Final = 1_000_000_000
"""A line on which nothing came for so long, four heartbeats, is down."""
NS_PER_MS: Final = 1_000_000

EXAMPLES: Final = """\
examples:
  exchange watch --config venue/exchange.toml           everything, healed by the venue's feed
  exchange watch --config venue/exchange.toml RAIN-NYC  the levels of one instrument
  exchange watch --line 239.255.66.1:9100               one line, healed by its snapshots
  exchange watch --feed 10.0.0.5:9002 --key reader.pem  over TCP alone
"""


class Watcher:
    """A consumer, and what is worth showing of what it has told."""

    def __init__(self, source: Source, symbols: list[str]) -> None:
        self.source = source
        self.symbols = symbols
        self.trades: deque[Tick] = deque(maxlen=TRADES_MAX)
        self.incidents: deque[Incident] = deque(maxlen=INCIDENTS_MAX)
        self.consumer = self._consumer()
        self._epoch = 0
        self._volumes: Counter[int] = Counter()
        self._trade_counts: Counter[int] = Counter()
        self._started_s = self._looked_s = time.perf_counter()
        self._message_count = 0
        self._packet_counts: Counter[str] = Counter()

    def _consumer(self) -> Consumer:
        lines, feed = self.source.lines, self.source.feed
        told: dict[str, Any] = {
            "channels": self.source.channels,
            "on_trade": self._on_trade,
            "on_gap": self._on_gap,
            "on_recovered": self._on_recovered,
            "on_epoch": self._on_epoch,
        }
        if not lines:
            assert feed is not None, "a source has a line or a feed"
            return Consumer.over_tcp(feed, **told)
        line_a, line_b = lines[0], lines[1] if len(lines) > 1 else None
        group, port, interface = line_a.group, line_a.port, line_a.interface
        return Consumer(group, port, interface=interface, line_b=line_b, feed=feed, **told)

    # What the consumer tells.

    def _on_trade(self, trade: Trade) -> None:
        number = trade.instrument_id
        self._volumes[number] += trade.quantity
        self._trade_counts[number] += 1
        book = self.consumer.books.get(number)
        if book is None or (self.symbols and book.symbol not in self.symbols):
            return
        price = format_price(trade.price, price_digits(book.definition))
        is_buy = trade.aggressor_side == Side.BUY
        tick = Tick(trade.time_ns, book.symbol, is_buy, trade.quantity, price)
        self.trades.appendleft(tick)

    def _on_gap(self, gap: Gap) -> None:
        what = f"{gap.count:,} lost: {gap.reason}" if gap.count else gap.reason
        self._note(gap.channel, what, is_healed=False)

    def _on_recovered(self, recovery: Recovery) -> None:
        how = "replayed" if recovery.how is Healing.REPLAY else "by a snapshot"
        what = f"{recovery.count:,} {how} in {recovery.duration_ns / NS_PER_MS:,.0f} ms"
        self._note(recovery.channel, what, is_healed=True)

    def _on_epoch(self, epoch: int) -> None:
        self._volumes.clear()
        self._trade_counts.clear()
        if self._epoch:
            self._note(0, "the venue's numbers begin again", is_healed=True)
        self._epoch = epoch

    def _note(self, channel: int, what: str, *, is_healed: bool) -> None:
        """Add an incident; the channel is named when there are several."""
        text = f"channel {channel}: {what}" if channel and len(self.source.channels) > 1 else what
        self.incidents.appendleft(Incident(time.time_ns(), text, is_healed))

    # What is seen.

    def look(self) -> Sight:
        """Everything now; rates are those since the last look."""
        now_s, consumer = time.perf_counter(), self.consumer
        interval_s = max(now_s - self._looked_s, 1e-9)
        message_count = consumer.message_count
        rate = (message_count - self._message_count) / interval_s
        self._looked_s, self._message_count = now_s, message_count
        state, is_well = self._state()
        books = self._books()
        return Sight(
            time_ns=time.time_ns(),
            elapsed_s=now_s - self._started_s,
            state=state,
            is_well=is_well,
            ways=[self._way(name, interval_s) for name in consumer.lines],
            rows=[self._row(book) for book in books],
            ladder=_ladder(books[0]) if self.symbols and len(books) == 1 else None,
            trades=list(self.trades),
            incidents=list(self.incidents),
            messages=message_count,
            messages_per_second=rate,
            gaps=consumer.gap_count,
            recoveries=consumer.recovery_count,
        )

    def _state(self) -> tuple[str, bool]:
        """How it stands, in a few words, and whether that is well."""
        consumer = self.consumer
        channels = [consumer.channel(number) for number in self.source.channels]
        if not any(channel.is_heard for channel in channels):
            return "nothing heard yet", False
        missing = [symbol for symbol in self.symbols if symbol not in self._symbols()]
        if missing:
            return f"{missing[0]} is not listed", False
        recovering = [channel for channel in channels if channel.is_recovering]
        if recovering:
            return f"channel {recovering[0].channel} is recovering", False
        stale_count = sum(book.is_stale for book in consumer.books.values())
        if stale_count:
            return f"{stale_count} books are not known", False
        silent_s = max(consumer.silent_ns(number) for number in self.source.channels) // 10**9
        if silent_s * 10**9 >= SILENT_NS:
            return f"silent for {silent_s} s", False
        return "every book is known", True

    def _symbols(self) -> set[str]:
        return {book.symbol for book in self.consumer.books.values()}

    def _books(self) -> list[Book]:
        """In the order of their listing."""
        books = [self.consumer.books[number] for number in sorted(self.consumer.books)]
        return [book for book in books if not self.symbols or book.symbol in self.symbols]

    def _row(self, book: Book) -> Row:
        number = book.definition.instrument_id
        seen = see(book, self._volumes[number], self._trade_counts[number])
        return Row(book.symbol, book.definition.title, price_digits(book.definition), seen)

    def _way(self, name: str, interval_s: float) -> Way:
        consumer = self.consumer
        line = consumer.lines[name]
        count = line.packet_count - self._packet_counts[name]
        self._packet_counts[name] = line.packet_count
        lag = consumer.lag_of(name)
        rate = count / interval_s
        if name == "tcp":
            assert self.source.feed is not None, "it brings them"
            address = f"{self.source.feed.host}:{self.source.feed.port}"
            is_well = consumer.feed_is_connected
            status = "connected" if is_well else "no connection"
            return Way("feed", address, status, is_well, rate, lag, 0)
        where = self.source.lines["ab".index(name)]
        silent_ns = time.monotonic_ns() - max(line.heard_ns.values(), default=0)
        is_well = bool(line.packet_count) and silent_ns < SILENT_NS
        status = "up" if is_well else "silent" if line.packet_count else "not heard"
        address = f"{where.group}:{where.port}"
        return Way(f"line {name.upper()}", address, status, is_well, rate, lag, line.dropped_count)


def _ladder(book: Book) -> Ladder | None:
    try:
        return Ladder(price_digits(book.definition), book.bids(DEPTH), book.asks(DEPTH))
    except StaleBookError:
        return None


def price_digits(definition: InstrumentDefinition) -> int:
    """Digits after the point that show every valid price, at least 2."""
    return max(len(format_price(tick).partition(".")[2]) for _, tick in definition.tick_table)


def as_json(sight: Sight) -> str:
    """One object; prices and quantities in the venue's units, null for none and for not known."""
    ways = {
        way.name: {
            "address": way.address,
            "status": way.status,
            "packets_per_second": round(way.packets_per_second),
            "lag_p50_ns": way.lag.network_p50_ns if way.lag.sample_count else None,
            "lag_max_ns": way.lag.network_max_ns if way.lag.sample_count else None,
            "dropped": way.dropped_count,
        }
        for way in sight.ways
    }
    books = {
        row.symbol: {
            "is_known": not row.seen.is_stale,
            "bid_price": row.seen.bid_price if row.seen.bid_quantity else None,
            "bid_quantity": row.seen.bid_quantity or None,
            "ask_price": row.seen.ask_price if row.seen.ask_quantity else None,
            "ask_quantity": row.seen.ask_quantity or None,
            "last_price": row.seen.last_price,
            "volume": row.seen.volume,
            "trades": row.seen.trade_count,
        }
        for row in sight.rows
    }
    figures = {
        "time_ns": sight.time_ns,
        "state": sight.state,
        "is_well": sight.is_well,
        "messages": sight.messages,
        "messages_per_second": round(sight.messages_per_second),
        "gaps": sight.gaps,
        "recoveries": sight.recoveries,
        "ways": ways,
        "books": books,
    }
    return json.dumps(figures)


async def watch(watcher: Watcher, view: View, seconds: float | None, interval_s: float) -> None:
    """Look and show, until the time is over."""
    looks = itertools.count() if seconds is None else range(round(seconds / interval_s))
    async with watcher.consumer:
        with view:
            for _ in looks:
                view.show(watcher.look())
                await asyncio.sleep(interval_s)
            view.show(watcher.look())


class JsonView:
    """An object on a line for each look."""

    def __init__(self, output: TextIO) -> None:
        self._output = output

    def show(self, sight: Sight) -> None:
        """Print it."""
        print(as_json(sight), file=self._output, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Nothing to close."""


def run_watch(arguments: argparse.Namespace) -> int:
    """Watch until the time is over or Ctrl-C, and say in a line how it stands."""
    watcher = Watcher(read_source(arguments), arguments.symbols)
    console = Console()
    interval_s = LOOK_S
    view: View
    if arguments.json:
        view, interval_s = JsonView(sys.stdout), JSON_LOOK_S
    elif console.is_terminal:
        view = TerminalView(console)
    else:
        view = PlainView(sys.stdout)
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(watch(watcher, view, arguments.seconds, interval_s))
    if not arguments.json:
        consumer = watcher.consumer
        print(
            f"{consumer.message_count:,} messages, gaps {consumer.gap_count}, "
            f"healed {consumer.recovery_count}; {watcher.look().state}"
        )
    return 0


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Mount `watch`."""
    watching = commands.add_parser(
        "watch",
        help="the market in the terminal: books, trades, gaps, lag",
        description="Watch the market of a venue as a consumer of its market data sees it, until\n"
        "Ctrl-C. What the lines lose is healed by the feed, or by snapshots.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    watching.add_argument(
        "symbols", nargs="*", metavar="SYMBOL", help="only these; of a single one all levels"
    )
    add_source_arguments(watching)
    watching.add_argument(
        "--seconds", type=parse_seconds, metavar="N", help="end after so long; default: Ctrl-C"
    )
    watching.add_argument("--json", action="store_true", help="one JSON object on a line a second")
    watching.set_defaults(run=run_watch)
