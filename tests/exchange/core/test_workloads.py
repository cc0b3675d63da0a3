"""The engine on generated workloads whose outcome is known: every fill, exactly and in order.

The generator of the workloads lies beside the data folder and follows a book of its own; its
totals and the hash over all fills must come out of the engine's reports.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Final

import pytest
from msgspec import Struct
from msgspec.msgpack import encode

from exchange.core.engine import Engine
from protocol import admin
from protocol.codes import EventKind, Liquidity, Role, Side
from protocol.order_entry import CancelOrder, NewOrder, OrderFilled, OrderRejected
from protocol.records import FROM_CLIENT, FROM_VENUE, Connect, Genesis
from tests.exchange.core.onlooker import Onlooker
from tests.exchange.core.side_by_side import events_of

ROOT: Final = Path(__file__).parents[3]
DATA: Final = Path(os.environ.get("BRIER_DATA") or ROOT / "../shared/data")
GENERATOR: Final = DATA / "../bench/gen_workload.py"
CASH: Final = 10**17
TRADER: Final = 2
"""The session that enters all orders; account 1 buys, account 2 sells."""
LIMITS: Final = Genesis(
    venue="brier",
    admin_key=bytes(32),
    rules_version=3,
    participants_max=2,
    accounts_max=2,
    keys_max=2,
    instruments_max=1,
    sessions_max=2,
    orders_max=100_000,
    positions_max=2,
    orders_per_account_max=100_000,
    levels_per_side_max=10_000,
    work_per_command_max=100,
    epoch=1 << 20,
)


@dataclass
class Run:
    """The engine, and what an onlooker sees of it; counts of the trades it reports."""

    tick_size: int
    engine: Engine = field(default_factory=Engine)
    onlooker: Onlooker = field(default_factory=lambda: Onlooker({1: 0}))
    numbers: dict[int, int] = field(default_factory=dict)
    trade_count: int = 0
    volume: int = 0
    fills: list[bytes] = field(default_factory=list)
    last_added: OrderFilled | None = None

    def venue(self, session: int, message: Struct) -> None:
        connection = 1 if session else 0
        self.submit(FROM_VENUE, session, connection, 0, encode(message))

    def client(self, session: int, message: Struct) -> None:
        self.numbers[session] = self.numbers.get(session, 0) + 1
        self.submit(FROM_CLIENT, session, 1, self.numbers[session], encode(message))

    def submit(self, kind: int, session: int, connection: int, number: int, payload: bytes) -> None:
        while not self.engine.submit(kind, session, connection, number, 0, 0, payload):
            self.read()

    def read(self) -> None:
        """Take the batch and read its reports."""
        for event in events_of(self.engine.take_batch().events):
            assert not isinstance(event.message, OrderRejected), event
            self.onlooker.read(event.session, event.message)
            if isinstance(event.message, OrderFilled):
                self.count(event.message)

    def count(self, fill: OrderFilled) -> None:
        """Client order ids are the generator's ids: incoming, resting, price, quantity."""
        if fill.liquidity == Liquidity.ADDED:
            self.last_added = fill
            return
        added = self.last_added
        assert added is not None
        assert (added.trade_id, added.price, added.quantity) == (
            fill.trade_id,
            fill.price,
            fill.quantity,
        )
        self.trade_count += 1
        self.volume += fill.quantity
        ids = (fill.client_order_id, added.client_order_id)
        self.fills.append(b"%d,%d,%d,%d;" % (*ids, fill.price // self.tick_size, fill.quantity))


def generate(folder: Path, options: list[str]) -> tuple[list[str], dict[str, int | str]]:
    """Lines of a workload and what must come out."""
    path = folder / "workload.txt"
    command = [sys.executable, str(GENERATOR), *options, str(path)]
    subprocess.run(command, check=True, capture_output=True)
    return path.read_text().splitlines(), json.loads(Path(f"{path}.expect.json").read_text())


def set_up(run: Run) -> None:
    """One binary instrument, and one session that trades for two accounts."""
    run.venue(0, LIMITS)
    run.venue(1, Connect(1, "ops", 0, 1000, 0, 0, 0))
    for message in (
        admin.Participant("trader"),
        admin.Account(2, "buys", "USD"),
        admin.Account(2, "sells", "USD"),
        admin.Key(2, b"\x02" * 32, Role.TRADE),
        admin.Event("RAIN", EventKind.BINARY, "Rain?", "USD"),
        admin.Instrument(1, "RAIN", "Rain?", 0, 10_000, [(0, run.tick_size)], 1),
        admin.Deposit(1, 1, CASH),
        admin.Deposit(2, 1, CASH),
    ):
        run.client(1, message)
    run.venue(TRADER, Connect(2, "all", 0, 1000, 0, 0, 0))


def message_of(line: str, tick_size: int) -> NewOrder | CancelOrder:
    """A line of the workload as a message."""
    kind, number, *rest = line.split()
    if kind == "C":
        return CancelOrder(int(number))
    side = Side.BUY if rest[0] == "B" else Side.SELL
    return NewOrder(int(number), 1, side, side, int(rest[1]) * tick_size, int(rest[2]))


@pytest.mark.parametrize(
    "options",
    [
        ["20000"],
        ["20000", "--seed", "7", "--ticks", "9999"],
        ["20000", "--ticks", "9999", "--depth", "2000", "--warm", "8000"],
        ["20000", "--seed", "3", "--warm", "2000", "--target-live", "2000"],
        ["20000", "--seed", "5", "--depth", "1", "--p-new", "0.45", "--p-cancel", "0.3"],
    ],
    ids=" ".join,
)
def test_workload(options: list[str], tmp_path: Path) -> None:
    if not GENERATOR.is_file():
        pytest.skip("data: BRIER_DATA names no folder that has bench/gen_workload.py beside it")
    lines, expected = generate(tmp_path, options)
    run = Run(tick_size=1 if expected["ticks"] == 9999 else 100)
    set_up(run)
    for line in lines:
        run.client(TRADER, message_of(line, run.tick_size))
    run.read()
    run.engine.check()
    orders = run.onlooker.book(1)
    buys = [order.price // run.tick_size for order in orders if order.side == Side.BUY]
    sells = [order.price // run.tick_size for order in orders if order.side == Side.SELL]
    assert {
        "trades": run.trade_count,
        "volume": run.volume,
        "resting_orders": len(orders),
        "resting_qty": sum(order.leaves for order in orders),
        "best_bid": buys[0],
        "best_ask": sells[0],
        "fills_sha256": sha256(b"".join(run.fills)).hexdigest(),
    } == {
        name: expected[name]
        for name in (
            *("trades", "volume", "resting_orders", "resting_qty"),
            *("best_bid", "best_ask", "fills_sha256"),
        )
    }
    assert run.engine.open_order_count == len(orders)
