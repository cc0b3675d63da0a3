"""An hour of NASDAQ's AAPL through the engine, by the file's clock, recorded to Parquet.

The packets go into a capture, `exchange record` makes the Parquet files of it. What pyarrow reads
there must be what the engine said, and the candles and statistics of the feed must be those that a
few lines of pyarrow compute from the file of trades.
"""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow  # type: ignore[import-untyped]  # it comes without types
import pytest
from pyarrow import compute, parquet

from exchange import cli
from exchange.core.limits import GENESIS_DEFAULTS
from exchange.feed.derived import Derived
from exchange.feed.market import Market
from journal import EventRecord
from journal.event_format import RecordHeader
from protocol import admin
from protocol.books import public_digest
from protocol.codes import EventKind, Role
from protocol.market_data import (
    CANDLE_INTERVALS_S,
    Candle,
    InstrumentDefinition,
    MarketDataMessage,
    Statistics,
    Trade,
)
from protocol.packer import Packer
from protocol.wire import decode_feed
from tests.exchange.core.venue import Venue, decode_events
from tests.source_tree import SOURCE
from tests.tools.trade_tables import candle_row, candle_rows, integers
from tools.lobster import Mapper, parse_line
from tools.parquet import MESSAGES, file_name
from tools.pcap import Datagram, PcapWriter

DATA = Path(os.environ.get("BRIER_DATA") or SOURCE / "../shared/data") / "aapl-lobster"
HOUR = DATA / "message_50.csv"

pytestmark = pytest.mark.skipif(not HOUR.is_file(), reason="data: aapl-lobster is not there")

SECOND_NS: Final = 1_000_000_000
DAY_NS: Final = 20_000 * 86_400 * SECOND_NS
"""A midnight; the file counts seconds since that of its day."""
EPOCH: Final = 9 << 20
CASH: Final = 10**17
BATCH: Final = 50
"""Commands of a batch: the hour has some two thousand batches."""
"""Seconds of the day in the file: half past nine to half past ten."""


@dataclass
class Hour:
    """What the engine said of the hour, and where it was recorded to."""

    folder: Path
    messages: list[MarketDataMessage]
    market: Market
    digest: str

    def table(self, message: type[MarketDataMessage]) -> Any:
        return parquet.read_table(self.folder / file_name(message))


@pytest.fixture(scope="module")
def hour(tmp_path_factory: pytest.TempPathFactory) -> Hour:
    """The hour, played and recorded once."""
    folder = tmp_path_factory.mktemp("hour")
    venue, market, packer = open_venue(), Market(EPOCH), Packer(EPOCH)
    mapper = Mapper(1, buyer_account_id=1, seller_account_id=2)
    messages: list[MarketDataMessage] = []
    with (folder / "hour.pcap").open("wb") as file, HOUR.open(encoding="ascii") as lines:
        pcap = PcapWriter(file)

        def release() -> None:
            batch = venue.engine.take_batch()
            header = RecordHeader(3, batch.first_sequence, batch.command_count, 0, 0)
            market.apply(EventRecord(header, batch.events))
            messages.extend(one for session, one in decode_events(batch.events) if is_public(one))
            for _, packet in packer.pack(batch.events, venue.now_ns):
                place = (venue.now_ns + 7, ("127.0.0.1", 1), ("239.255.66.1", 9_100), packet)
                pcap.write(Datagram(*place))

        release()
        for line in lines:
            command = mapper.command(parse_line(line))
            venue.now_ns = max(venue.now_ns, DAY_NS + nanoseconds(line.partition(",")[0]))
            if command is not None:
                assert venue.send(2, command)
            if venue.engine.batch_count >= BATCH:
                release()
        release()
    arguments = ["record", "--convert", str(folder / "hour.pcap"), "--parquet", str(folder)]
    assert cli.main(arguments) == 0
    return Hour(folder, messages, market, venue.engine.public_digest())


def is_public(message: object) -> bool:
    return isinstance(message, MESSAGES)


def nanoseconds(seconds: str) -> int:
    whole, _, fraction = seconds.partition(".")
    return int(whole) * SECOND_NS + int(fraction.ljust(9, "0")[:9])  # Some have more digits.


def open_venue() -> Venue:
    """One instrument and the two accounts that trade."""
    venue = Venue(**GENESIS_DEFAULTS)
    venue.send(1, admin.Participant("trader"))
    venue.send(1, admin.Key(2, b"t" * 32, Role.TRADE))
    for account_id, name in enumerate(("buyer", "seller"), 1):
        venue.send(1, admin.Account(2, name, "USD"))
        venue.send(1, admin.Deposit(account_id, 1, CASH))
    venue.connect(2, "trader", session=2)
    venue.send(1, admin.Event("AAPL", EventKind.SCALAR, "Price of the share", "USD"))
    venue.send(1, admin.Instrument(1, "AAPL", "Price", 0, 10_000_000, [(0, 100)], 100))
    return venue


def test_every_message_is_there_with_its_type_and_value(hour: Hour) -> None:
    counts = Counter(type(message) for message in hour.messages)
    assert sum(counts.values()) > 90_000
    rows: dict[int, tuple[type[MarketDataMessage], dict[str, Any]]] = {}
    for message in MESSAGES:
        table = hour.table(message)
        assert table.num_rows == counts[message], message
        for field in table.schema:
            expected = pyarrow.timestamp("ns", tz="UTC") if "time" in field.name else None
            assert field.type in ([expected] if expected else [pyarrow.int64(), *OTHERS])
        for row in integers(table).to_pylist():
            rows[row["number"]] = (message, row)
    assert sorted(rows) == list(range(1, len(hour.messages) + 1))
    for number, said in enumerate(hour.messages, 1):
        kind, row = rows[number]
        assert kind is type(said)
        assert row["time"] == said.time_ns
        assert row["receive_time"] == row["send_time"] + 7
        if "tick_table" not in row:
            values = {name: getattr(said, name) for name in row if hasattr(said, name)}
            assert values == {name: row[name] for name in values}


OTHERS = (
    pyarrow.string(),
    pyarrow.list_(
        pyarrow.struct([("start_price", pyarrow.int64()), ("tick_size", pyarrow.int64())])
    ),
)


def test_the_market_is_that_of_the_engine(hour: Hour) -> None:
    assert public_digest(one.book for one in hour.market.instruments.values()) == hour.digest


@pytest.mark.parametrize("interval_s", CANDLE_INTERVALS_S)
def test_candles_are_those_of_the_file(hour: Hour, interval_s: int) -> None:
    expected = candle_rows(integers(hour.table(Trade)), interval_s)
    found = []
    for payload in Derived(hour.market).candles(1, interval_s, 0, 10_000):
        candle = decode_feed(payload)
        assert isinstance(candle, Candle)
        assert candle.interval_s == interval_s
        found.append(candle)
    last_ns = hour.market.time_ns
    assert [candle_row(one) for one in found] == expected
    assert [one.is_closed for one in found] == [
        one.start_time_ns + interval_s * SECOND_NS <= last_ns for one in found
    ]
    assert len(found) == {1: len(expected), 60: 60, 3_600: 2, 86_400: 1}[interval_s]


def test_statistics_are_those_of_the_file(hour: Hour) -> None:
    trades = integers(hour.table(Trade))
    prices, quantities = trades["price"], trades["quantity"]
    found = decode_feed(Derived(hour.market).statistics(1).payload)
    assert isinstance(found, Statistics)
    assert (found.open_price, found.last_price) == (prices[0].as_py(), prices[-1].as_py())
    assert (found.high_price, found.low_price) == (
        compute.max(prices).as_py(),
        compute.min(prices).as_py(),
    )
    assert found.volume == found.day_volume == compute.sum(quantities).as_py()
    assert found.trade_count == trades.num_rows
    assert found.notional == compute.sum(compute.multiply(prices, quantities)).as_py()
    assert found.open_interest == trades["open_interest"][-1].as_py()
    assert found.last_quantity == quantities[-1].as_py()
    listed = integers(hour.table(InstrumentDefinition))
    assert found.since_time_ns == listed["time"][0].as_py()
    assert (found.day_open_price, found.day_high_price) == (found.open_price, found.high_price)
