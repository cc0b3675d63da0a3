"""`exchange demo`: a market to watch, and the proof that nothing of it is lost.

A venue of its own, started as a child process; makers and takers, each with a session over TCP; a
consumer in a process of its own that knows only what the venue multicasts, and feeds the live view.
At the end the venue is stopped, its journal is replayed into a fresh engine, and it is started once
more: the digests must agree, and the consumer's books must be the venue's.
"""

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

import uvloop
from rich.console import Console

from exchange.client import Client, connect
from protocol.codes import Liquidity
from protocol.order_entry import OrderFilled
from protocol.wire import VenueReport
from tools.demo_consumer import ConsumerProcess, Look, Seen
from tools.errors import ReplayDiffersError, ToolError
from tools.journal_tools import Replayed, replay_journal
from tools.latencies import Latencies
from tools.listing import LISTING, price_digits
from tools.members import CURRENCY, Member, admit, connect_admin
from tools.terminal import LiveView, Picture, PlainView, Row, View
from tools.traders import Maker, Market, Session, Taker
from tools.venue_process import VenueProcess, new_venue

__all__ = ["add_commands"]

SECONDS_DEFAULT: Final = 20
SECONDS_MAX: Final = 3_600

MAKER_COUNT: Final = 4
TAKER_COUNT: Final = 4
MAKER_WINDOW: Final = 12
TAKER_WINDOW: Final = 4
"""Unanswered requests of a session: more would only wait longer, the clients are the limit here."""

CASH: Final = 10**15
"""Of each account: a thousand million dollars."""

SETTLE_WAIT_S: Final = 15.0
"""For the last answers and expiries; they take less than a second."""
WANDER_S: Final = 0.02
HEARTBEAT_WAIT_S: Final = 0.6
"""After the last order: more than the interval of heartbeats, so that the consumer has heard one,
and with it whether it missed the last packet."""
PICTURE_S: Final = 0.25
SEED: Final = 20_260

RECEIVE_BUFFER_SIZE: Final = 8 * 1024 * 1024
"""Bytes that the consumer asks the kernel for."""


@dataclass
class Trader:
    """A participant's session, and whom it belongs to."""

    member: Member
    session: Session


class Floor:
    """Everybody who trades, and the picture of it all."""

    def __init__(self, seconds: float, consumer: ConsumerProcess) -> None:
        self.seconds = seconds
        self.consumer = consumer
        self.markets: list[Market] = []
        self.trade_counts: Counter[int] = Counter()
        """By instrument, as the reports of the incoming orders tell it."""
        self.sequence = 0
        """The highest that any report named."""
        self.traders: list[Trader] = []
        self.latencies = Latencies()
        self.elapsed_s = 0.0
        self._started_s = 0.0
        self._drawn_s = 0.0
        self._drawn_orders = 0
        self._drawn_look = consumer.look()
        self._message_rate = 0.0
        self._random = Random(SEED)

    async def prepare(self, admin: Client) -> None:
        """List the instruments and admit the participants."""
        for listed in LISTING:
            event_id = await admin.event(listed.symbol, listed.kind, listed.title, CURRENCY)
            instrument_id = await admin.instrument(
                event_id,
                listed.symbol,
                listed.title,
                floor_price=0,
                cap_price=listed.cap_price,
                tick_table=listed.tick_table,
                quantity_step=100,
            )
            self.markets.append(Market.of(instrument_id, listed))
        for index in range(MAKER_COUNT + TAKER_COUNT):
            is_maker = index < MAKER_COUNT
            name = f"maker-{index + 1}" if is_maker else f"taker-{index - MAKER_COUNT + 1}"
            member = await admit(admin, name, 1, CASH)
            kind, window = (Maker, MAKER_WINDOW) if is_maker else (Taker, TAKER_WINDOW)
            strategy = kind(member.account_ids[0], self.markets, SEED + index)
            self.traders.append(Trader(member, Session(strategy, window, self.on_report)))

    def on_report(self, report: VenueReport) -> None:
        """Take in one report of any session."""
        self.sequence = max(self.sequence, report.sequence)
        if isinstance(report, OrderFilled) and report.liquidity == Liquidity.REMOVED:
            self.trade_counts[report.instrument_id] += 1

    async def trade(self, venue: VenueProcess, view: View) -> None:
        """Connect everybody, trade for the given time, and let every request be answered."""
        host, port = venue.address
        async with AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(
                    await connect(
                        host,
                        port,
                        key=trader.member.key,
                        session="floor",
                        on_report=trader.session.on_report,
                        on_state=trader.session.on_state,
                        reconnect=None,
                    )
                )
                for trader in self.traders
            ]
            self._started_s = self._drawn_s = time.perf_counter()
            for trader, client in zip(self.traders, clients, strict=True):
                trader.session.start(client)
            try:
                await self._run(view)
            finally:
                for trader in self.traders:
                    trader.session.stop()
            self.elapsed_s = time.perf_counter() - self._started_s
            view.show(self.picture())
            await self._settle()
            await asyncio.sleep(HEARTBEAT_WAIT_S)

    async def _run(self, view: View) -> None:
        while (now_s := time.perf_counter()) - self._started_s < self.seconds:
            self._check()
            for market in self.markets:
                market.wander(self._random)
            if now_s - self._drawn_s >= PICTURE_S:
                view.show(self.picture())
            await asyncio.sleep(WANDER_S)

    async def _settle(self) -> None:
        try:
            async with asyncio.timeout(SETTLE_WAIT_S):
                for trader in self.traders:
                    await trader.session.settled()
        except TimeoutError:
            raise ToolError(f"requests are unanswered after {SETTLE_WAIT_S:.0f} s") from None
        self._check()

    def _check(self) -> None:
        """Raise what has ended a session."""
        for trader in self.traders:
            if trader.session.failure is not None:
                raise trader.session.failure

    @property
    def orders(self) -> int:
        """Requests that were answered, new orders and replaces, rejected ones included."""
        return sum(trader.session.counts.total() for trader in self.traders)

    def picture(self) -> Picture:
        """The market now, with the rates since the last picture."""
        now_s = time.perf_counter()
        recent = Latencies()
        for trader in self.traders:
            recent.merge(trader.session.latencies)
            trader.session.latencies = Latencies()
        self.latencies.merge(recent)
        orders, look = self.orders, self._look()
        interval_s = max(now_s - self._drawn_s, 1e-9)
        picture = Picture(
            elapsed_s=now_s - self._started_s,
            seconds=self.seconds,
            orders=orders,
            orders_per_second=(orders - self._drawn_orders) / interval_s,
            ack_p50_us=recent.percentile_us(50),
            ack_p99_us=recent.percentile_us(99),
            trades=self.trade_counts.total(),
            sequence=self.sequence,
            messages=look.messages,
            messages_per_second=self._message_rate,
            gaps=look.gaps,
            rows=self._rows(look),
        )
        self._drawn_s, self._drawn_orders = now_s, orders
        return picture

    def _look(self) -> Look:
        """What the consumer saw last; its rate is that between its last two looks."""
        before, look = self._drawn_look, self.consumer.look()
        if look.time_s > before.time_s:
            self._message_rate = (look.messages - before.messages) / (look.time_s - before.time_s)
            self._drawn_look = look
        return look

    def _rows(self, look: Look) -> list[Row]:
        """What the consumer sees, in the order of the listing."""
        seen = {one.instrument_id: one for one in look.seen}
        return [
            Row(
                market.listed.symbol,
                market.listed.title,
                price_digits(market.listed),
                seen.get(market.instrument_id) or Seen(market.instrument_id, is_stale=True),
            )
            for market in self.markets
        ]

    def figures(self) -> dict[str, Any]:
        """What the run came to."""
        counts: Counter[str] = Counter()
        for trader in self.traders:
            counts.update(trader.session.counts)
        return {
            "orders": self.orders,
            "accepted": counts["OrderAccepted"],
            "replaced": counts["OrderReplaced"],
            "rejected": counts["OrderRejected"] + counts["CancelRejected"],
            "trades": self.trade_counts.total(),
            "instruments": len(self.markets),
            "instruments_traded": len(self.trade_counts),
            "seconds": round(self.elapsed_s, 3),
            "orders_per_second": round(self.orders / self.elapsed_s),
            "ack_p50_us": self.latencies.percentile_us(50),
            "ack_p99_us": self.latencies.percentile_us(99),
        }


async def run_market(
    venue: VenueProcess, consumer: ConsumerProcess, seconds: float, view: View
) -> dict[str, Any]:
    """Prepare, trade, and return the figures."""
    floor = Floor(seconds, consumer)
    async with await connect_admin(venue) as admin:
        await floor.prepare(admin)
    with view:
        await floor.trade(venue, view)
    return floor.figures()


def recover(venue: VenueProcess) -> dict[str, Any]:
    """Stop the venue, replay its journal, start it again; the digests of each. Raises ToolError."""
    stopped = venue.stop()
    replayed = replay_journal(venue.folder)
    venue.start()
    again = venue.stop()
    replayed_again = replay_journal(venue.folder)
    figures = {
        "digest_before": stopped["digest"],
        "digest_after": replayed.digest,
        "recovered_commands": replayed.sequence,
        "journal_records": replayed.record_count,
        "book_digest": replayed.book_digest,
        "book_digest_restarted": again["book_digest"],
        "public_digest": stopped["public_digest"],
    }
    _compare(stopped, replayed)
    _compare(again, replayed_again)
    if again["book_digest"] != stopped["book_digest"]:
        raise ReplayDiffersError("after the restart books, positions and cash are not as before")
    if again["public_digest"] != stopped["public_digest"]:
        raise ReplayDiffersError("after the restart the public books are not as before")
    return figures


def compare_books(look: Look, public_digest: str) -> dict[str, Any]:
    """The consumer's last look, and whether its books are the venue's."""
    return {
        "books_match": look.digest == public_digest,
        "gaps": look.gaps,
        "market_data_messages": look.messages,
        "market_data_packets": look.packets,
        "market_data_dropped": look.dropped,
        "receive_buffer_size": look.receive_buffer_size,
    }


def _compare(stopped: dict[str, str], replayed: Replayed) -> None:
    said = (int(stopped["sequence"]), stopped["digest"], stopped["book_digest"])
    found = (replayed.sequence, replayed.digest, replayed.book_digest)
    if said != found:
        raise ReplayDiffersError(
            f"the venue stopped at sequence {said[0]} with digest {said[1]}, "
            f"the replay of its journal gives {found[0]} and {found[1]}"
        )


def run_demo(arguments: argparse.Namespace) -> int:
    """Run it all and print what came of it."""
    console = Console()
    is_live = console.is_terminal and not arguments.json
    # What reads the JSON is not to find anything else.
    output = sys.stderr if arguments.json else sys.stdout
    view: View = LiveView(console) if is_live else PlainView(output)
    with new_venue(arguments.dir, "demo") as venue:
        venue.start()
        if not arguments.json:
            print(venue.greeting(), flush=True)
        with ConsumerProcess(*venue.market_data) as consumer:
            figures = uvloop.run(run_market(venue, consumer, arguments.seconds, view))
            figures |= recover(venue)
            figures |= compare_books(consumer.finish(), figures["public_digest"])
    if arguments.json:
        print(json.dumps(figures))
    else:
        _print_summary(figures, arguments.dir)
    if not figures["books_match"] and not figures["gaps"]:
        raise ReplayDiffersError("the consumer missed nothing, and has other books than the venue")
    if figures["instruments_traded"] < figures["instruments"]:
        raise ToolError("not every instrument has traded; give it more --seconds")
    return 0


def _print_summary(figures: dict[str, Any], directory: Path | None) -> None:
    """Lines of at most 80 columns."""
    p50, p99 = figures["ack_p50_us"] / 1000, figures["ack_p99_us"] / 1000
    print(
        f"\n{figures['orders']:,} orders in {figures['seconds']:.1f} s, "
        f"{figures['orders_per_second']:,} a second\n"
        f"  {figures['accepted']:,} accepted, {figures['replaced']:,} replaced, "
        f"{figures['rejected']:,} rejected\n"
        f"  {figures['trades']:,} trades, in {figures['instruments_traded']} of "
        f"{figures['instruments']} instruments\n"
        f"  durable and acknowledged in {p50:.2f} ms (p50), {p99:.2f} ms (p99)\n"
        f"Stopped, and recovered {figures['recovered_commands']:,} commands in "
        f"{figures['journal_records']:,} records from the journal\n"
        f"  digest before {figures['digest_before']}\n"
        f"  digest after  {figures['digest_after']}\n"
        "  equal; started again, it has the same books, positions and cash"
    )
    _print_market_data(figures)
    if directory is not None:
        print(f"Kept in {directory}; look with: exchange journal dump {directory}")


def _print_market_data(figures: dict[str, Any]) -> None:
    """What the consumer says; and if it missed something, what helps."""
    print(
        f"A consumer of the multicast took {figures['market_data_messages']:,} messages in "
        f"{figures['market_data_packets']:,} packets"
    )
    if figures["books_match"]:
        print(f"  gaps {figures['gaps']}; its books are the venue's, order by order")
        return
    print(
        f"  gaps {figures['gaps']}: it missed messages, and shows no book that may be wrong\n"
        f"  the kernel gave it {figures['receive_buffer_size']:,} bytes to receive into and "
        f"dropped {figures['market_data_dropped']:,} packets\n"
        f"  allow more: sysctl -w net.core.rmem_max={RECEIVE_BUFFER_SIZE}"
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 < seconds <= SECONDS_MAX:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most {SECONDS_MAX}")
    return seconds


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Mount `demo`."""
    demo = commands.add_parser(
        "demo",
        help="watch a market trade: a venue with makers and takers, for some seconds",
        description="Start a venue in a temporary folder, let makers and takers trade over TCP, "
        "show the market, then recover everything from the journal and compare.",
    )
    demo.add_argument(
        "--seconds",
        type=_seconds,
        default=SECONDS_DEFAULT,
        metavar="N",
        help=f"how long they trade; default: {SECONDS_DEFAULT}",
    )
    demo.add_argument("--dir", type=Path, metavar="DIR", help="folder of the venue; is kept")
    demo.add_argument("--json", action="store_true", help="only one JSON object on stdout")
    demo.set_defaults(run=run_demo)
