"""`exchange replay`: real order flow through TCP into a venue of its own.

The commands come from `tools.lobster`, in the order of the file, on one session, up to IN_FLIGHT of
them unanswered. Nothing that is sent depends on an answer. At the end the venue is stopped, its
journal is replayed into a fresh engine, and the digests are compared.
"""

import argparse
import json
import os
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final

import uvloop

from exchange.client import Client, RequestRejectedError, Ticket, connect
from protocol.codes import EventKind, Liquidity
from protocol.order_entry import OrderFilled
from protocol.wire import VenueReport
from tools.errors import ReplayDiffersError, UsageError
from tools.journal_tools import replay_journal
from tools.latencies import Latencies
from tools.lobster import Mapper, Message, parse
from tools.members import CURRENCY, Member, admit, connect_admin
from tools.venue_process import VenueProcess, new_venue
from tools.venue_settings import UNTHROTTLED

__all__ = ["add_commands", "default_file"]

IN_FLIGHT: Final = 256
"""Unanswered commands: enough to fill the venue's batches, few enough for honest latencies."""

CAP_PRICE: Final = 10_000_000
"""1,000 dollars: the contract pays the price of the share, up to this."""
TICK: Final = 100
CASH: Final = 10**17
"""Of each account: a hundred thousand million dollars. The seller of a scalar contract holds what
it would lose at the cap, so real order flow needs more cash than at NASDAQ."""

SAMPLE: Final = Path("aapl-lobster") / "message_50.csv"
DATA_DEFAULT: Final = "../shared/data"


def default_file() -> Path:
    """The sample below BRIER_DATA."""
    return Path(os.environ.get("BRIER_DATA", DATA_DEFAULT)) / SAMPLE


@dataclass
class Trades:
    """Which orders met, as the reports of the session tell it."""

    resting: dict[int, int] = field(default_factory=dict)
    """Trade id to the client order id of the order that was resting."""
    filled: dict[int, list[int]] = field(default_factory=dict)
    """Client order id of the incoming order to those of the orders that it met."""

    def on_report(self, report: VenueReport) -> None:
        """The resting order's fill comes first, then the incoming one's with the same trade id."""
        if not isinstance(report, OrderFilled):
            return
        if report.liquidity == Liquidity.ADDED:
            self.resting[report.trade_id] = report.client_order_id
        else:
            met = self.resting.pop(report.trade_id)
            self.filled.setdefault(report.client_order_id, []).append(met)


async def send_all(
    client: Client, mapper: Mapper, messages: Iterable[Message]
) -> list[Ticket[VenueReport]]:
    """Send everything in order and wait for every answer; the tickets in order."""
    tickets: list[Ticket[VenueReport]] = []
    for message in messages:
        command = mapper.command(message)
        if command is None:
            continue
        if client.pending_count >= IN_FLIGHT:
            # Answers come in order, so half of the window is free after this one.
            await _answer(tickets[-IN_FLIGHT // 2])
        tickets.append(client.submit(command))
    for ticket in tickets[-IN_FLIGHT:]:
        await _answer(ticket)
    return tickets


async def _answer(ticket: Ticket[VenueReport]) -> bool:
    """Wait for the answer; False when it is a reject. Other errors are errors."""
    try:
        await ticket
    except RequestRejectedError:
        return False
    return True


def count_executions(mapper: Mapper, trades: Trades) -> Counter[str]:
    """How the executions of the file came out here."""
    counts: Counter[str] = Counter()
    for client_order_id, wanted in mapper.executed.items():
        met = trades.filled.get(client_order_id, [])
        if any(mapper.file_orders[one] == wanted for one in met):
            counts["same_order"] += 1
        else:
            counts["other_order" if met else "no_order"] += 1
    counts["crossing"] = len(trades.filled.keys() - mapper.executed.keys())
    return counts


async def list_share(venue: VenueProcess) -> tuple[int, Member]:
    """The scalar contract on the share, and who trades it; the instrument's id, the member."""
    async with await connect_admin(venue) as admin:
        member = await admit(admin, "trader", 2, CASH)
        event = await admin.event("AAPL", EventKind.SCALAR, "Price of the share", CURRENCY)
        instrument_id = await admin.instrument(
            event,
            "AAPL",
            "Price of the share, in dollars",
            floor_price=0,
            cap_price=CAP_PRICE,
            tick_table=((0, TICK),),
            quantity_step=100,
        )
    return instrument_id, member


async def replay_file(venue: VenueProcess, file: Path, limit: int | None) -> dict[str, Any]:
    """Send the file and return the figures, the digests not yet among them."""
    instrument_id, member = await list_share(venue)
    buyer, seller = member.account_ids
    mapper, trades = Mapper(instrument_id, buyer, seller), Trades()
    host, port = venue.address
    with file.open(encoding="ascii", errors="replace") as lines:
        async with await connect(
            host,
            port,
            key=member.key,
            session="lobster",
            on_report=trades.on_report,
            reconnect=None,
        ) as client:
            started = time.perf_counter()
            messages = parse(islice(lines, limit), str(file))
            tickets = await send_all(client, mapper, messages)
            elapsed = time.perf_counter() - started
    latencies = Latencies()
    rejected = 0
    for ticket in tickets:
        latencies.add(ticket.acknowledged_ns - ticket.sent_ns)
        rejected += not await _answer(ticket)
    executions = count_executions(mapper, trades)
    return {
        "messages": mapper.counts["messages"],
        "sent": len(tickets),
        "acknowledged": sum(ticket.is_done for ticket in tickets),
        "rejected": rejected,
        "executions_same_order": executions["same_order"],
        "executions_other_order": executions["other_order"],
        "executions_no_order": executions["no_order"],
        "crossing_orders": executions["crossing"],
        "hidden": mapper.counts["hidden_execution"],
        "halts": mapper.counts["halt"],
        "unknown": mapper.counts["unknown"],
        "unknown_executions": mapper.counts["unknown_execution"],
        "seconds": round(elapsed, 3),
        "orders_per_second": round(len(tickets) / elapsed) if tickets else 0,
        "ack_p50_us": latencies.percentile_us(50),
        "ack_p99_us": latencies.percentile_us(99),
    }


def run_lobster(arguments: argparse.Namespace) -> int:
    """Replay the file and print the figures."""
    file: Path = arguments.file or default_file()
    if not file.is_file():
        raise UsageError(f"{file}: no such file; give one, or set BRIER_DATA to the data's folder")
    # One session sends what came from all participants of NASDAQ.
    with new_venue(arguments.dir, "replay", settings=UNTHROTTLED) as venue:
        venue.start()
        figures = uvloop.run(replay_file(venue, file, arguments.limit))
        stopped = venue.stop()
        replayed = replay_journal(venue.folder)
    figures["book_digest"] = stopped["book_digest"]
    figures["digest_before"] = stopped["digest"]
    figures["digest_after"] = replayed.digest
    if not arguments.json:
        _print_summary(file, figures)
    else:
        print(json.dumps(figures))
    if (replayed.digest, replayed.book_digest) != (stopped["digest"], stopped["book_digest"]):
        raise ReplayDiffersError("the journal's replay gives another digest than the venue had")
    return 0


def _print_summary(file: Path, figures: dict[str, Any]) -> None:
    executed = sum(figures[f"executions_{what}"] for what in ("same_order", "other_order"))
    executed += figures["executions_no_order"]
    print(f"{file.name}: {figures['messages']:,} messages")
    print(
        f"  not sent        {figures['hidden']:,} hidden executions, {figures['halts']:,} halts, "
        f"{figures['unknown']:,} about orders from before the file"
    )
    print(
        f"  sent            {figures['sent']:,}, acknowledged {figures['acknowledged']:,} "
        f"(of these {figures['rejected']:,} rejected), {figures['orders_per_second']:,} per second"
    )
    print(
        f"  acknowledgement p50 {figures['ack_p50_us']:,.0f} us, "
        f"p99 {figures['ack_p99_us']:,.0f} us, up to {IN_FLIGHT} in flight"
    )
    print(
        f"  executions      {figures['executions_same_order']:,} of {executed:,} on the very order "
        f"that NASDAQ executed, {figures['executions_other_order']:,} on another, "
        f"{figures['executions_no_order']:,} on none"
    )
    print(f"  book digest     {figures['book_digest']}")
    is_equal = figures["digest_before"] == figures["digest_after"]
    print(f"  journal         its replay gives {'the same' if is_equal else 'ANOTHER'} digest")


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Mount `replay` with its sources."""
    replay = commands.add_parser(
        "replay",
        help="send real order flow through a venue of its own",
        description="Send recorded order flow through TCP into a venue of its own.",
    )
    sources = replay.add_subparsers(metavar="SOURCE", required=True)
    lobster = sources.add_parser(
        "lobster",
        help="NASDAQ messages as LOBSTER publishes them",
        description="Replay a LOBSTER message file: the share becomes a scalar contract from 0 to "
        "1,000 dollars.",
    )
    lobster.add_argument(
        "file",
        metavar="FILE",
        type=Path,
        nargs="?",
        help=f"message file; default: {SAMPLE} in the folder BRIER_DATA ({DATA_DEFAULT})",
    )
    lobster.add_argument("--limit", type=_count, metavar="N", help="only the first N messages")
    lobster.add_argument("--dir", type=Path, metavar="DIR", help="folder of the venue; is kept")
    lobster.add_argument("--json", action="store_true", help="one JSON object as the last line")
    lobster.set_defaults(run=run_lobster)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above zero")
    return int(text)
