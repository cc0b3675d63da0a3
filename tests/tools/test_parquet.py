"""Parquet files of messages: columns, types, values, row groups; read back by pyarrow itself."""

from errno import ENOSPC
from pathlib import Path
from typing import Any

import pyarrow  # type: ignore[import-untyped]  # it comes without types
import pytest
from pyarrow import parquet

from protocol.base import NUMBER_MAX
from protocol.market_data import (
    EventDefinition,
    InstrumentDefinition,
    MarketDataMessage,
    OrderAdded,
    OrderDeleted,
    Trade,
)
from tests.tools.trade_tables import integers
from tools import parquet as tables
from tools.errors import UsageError
from tools.parquet import MessageTables, file_name, schema_of
from tools.recording import Place

NOW = 1_800_000_000_123_456_789
HEAD = ["epoch", "channel", "number", "send_time", "receive_time", "sequence", "time"]
TRADE = Trade(10, NOW, 3, 4, -500, 600, 1, 700)


def record(
    folder: Path, *messages: MarketDataMessage, place: Place | None = None
) -> dict[str, int]:
    made = MessageTables(folder)
    for number, message in enumerate(messages, 1):
        made.add(place or Place(5, 1, number, NOW + number, NOW + 2 * number), message)
    return made.close()


def rows(folder: Path, message: type[MarketDataMessage]) -> list[dict[str, Any]]:
    """The rows of a file."""
    found: list[dict[str, Any]] = integers(
        parquet.read_table(folder / file_name(message))
    ).to_pylist()
    return found


def test_every_class_has_a_file_with_exact_types(tmp_path: Path) -> None:
    counts = record(tmp_path, TRADE, TRADE)
    assert counts == {
        one.name: 2 if one.name == "trade.parquet" else 0 for one in tmp_path.iterdir()
    }
    assert sorted(counts) == [
        *("event_definition.parquet", "instrument_definition.parquet", "instrument_status.parquet"),
        *("order_added.parquet", "order_deleted.parquet", "order_executed.parquet"),
        *("order_reduced.parquet", "order_replaced.parquet", "trade.parquet"),
    ]
    schema = parquet.read_schema(tmp_path / "trade.parquet")
    others = ["instrument_id", "trade_id", "price", "quantity", "aggressor_side", "open_interest"]
    assert schema.names == HEAD + others
    assert schema == schema_of(Trade)
    time = pyarrow.timestamp("ns", tz="UTC")
    for field in schema:
        assert field.type == (time if field.name.endswith("time") else pyarrow.int64())
        assert field.nullable == (field.name in ("send_time", "receive_time"))


def test_the_types_of_definitions(tmp_path: Path) -> None:
    record(tmp_path)
    schema = parquet.read_schema(tmp_path / "event_definition.parquet")
    assert schema.names == [*HEAD, "event_id", "symbol", "kind", "title", "currency"]
    assert [schema.field(one).type for one in ("symbol", "title", "currency")] == (
        [pyarrow.string()] * 3
    )
    schema = parquet.read_schema(tmp_path / "instrument_definition.parquet")
    row = pyarrow.struct([("start_price", pyarrow.int64()), ("tick_size", pyarrow.int64())])
    assert schema.field("tick_table").type.value_type == row


def test_values_come_back(tmp_path: Path) -> None:
    event = EventDefinition(1, NOW, 2, "E", 1, "Will it rain? \u2602", "USD", 9)
    table = [(-100, 5), (0, 10)]
    instrument = InstrumentDefinition(2, NOW + 1, 3, 2, "I", "", -100, 100, table, 100, 1)
    record(tmp_path, event, instrument, TRADE)
    place = {"epoch": 5, "channel": 1, "number": 1}
    [found] = rows(tmp_path, EventDefinition)
    assert {name: found[name] for name in place} == place
    assert (found["symbol"], found["title"], found["currency"]) == ("E", event.title, "USD")
    [found] = rows(tmp_path, InstrumentDefinition)
    assert found["tick_table"] == [
        {"start_price": -100, "tick_size": 5},
        {"start_price": 0, "tick_size": 10},
    ]
    assert (found["title"], found["floor_price"], found["quantity_step"]) == ("", -100, 100)
    [found] = rows(tmp_path, Trade)
    assert (found["price"], found["quantity"], found["open_interest"]) == (-500, 600, 700)
    assert found["time"] == NOW
    assert (found["send_time"], found["receive_time"]) == (NOW + 3, NOW + 6)


def test_the_largest_numbers_and_unknown_times(tmp_path: Path) -> None:
    largest = OrderAdded(NUMBER_MAX, NOW, 1, NUMBER_MAX, 2, -NUMBER_MAX, NUMBER_MAX)
    record(tmp_path, largest, place=Place(NUMBER_MAX, 64, NUMBER_MAX, 0, 7))
    [found] = rows(tmp_path, OrderAdded)
    assert (found["sequence"], found["order_id"], found["price"]) == (
        NUMBER_MAX,
        NUMBER_MAX,
        -NUMBER_MAX,
    )
    assert (found["epoch"], found["number"], found["send_time"]) == (NUMBER_MAX, NUMBER_MAX, None)
    assert found["receive_time"] == 7


def test_row_groups_bound_what_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "ROW_GROUP_ROWS", 10)
    event = EventDefinition(1, NOW, 2, "E", 1, "t", "USD", 1)
    counts = record(tmp_path, *[TRADE] * 25, *[event] * 20)
    assert (counts["trade.parquet"], counts["event_definition.parquet"]) == (25, 20)
    for message, sizes in ((Trade, [10, 10, 5]), (EventDefinition, [10, 10])):
        file = parquet.ParquetFile(tmp_path / file_name(message))
        groups = range(file.num_row_groups)
        assert [file.metadata.row_group(one).num_rows for one in groups] == sizes
    assert [one["number"] for one in rows(tmp_path, Trade)] == list(range(1, 26))


def test_a_file_has_its_name_when_it_is_whole(tmp_path: Path) -> None:
    made = MessageTables(tmp_path)
    made.add(Place(5, 1, 1, 0, 0), TRADE)
    assert {one.suffix for one in tmp_path.iterdir()} == {".partial"}
    made.close()
    assert {one.suffix for one in tmp_path.iterdir()} == {".parquet"}
    with pytest.raises(UsageError, match=r"event_definition\.parquet is there already"):
        MessageTables(tmp_path)


def test_a_file_that_cannot_be_ended_does_not_keep_the_others_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = MessageTables(tmp_path)
    made.add(Place(5, 1, 1, 0, 0), TRADE)
    made.add(Place(5, 1, 2, 0, 0), OrderDeleted(2, 2, 1, 2))
    write = parquet.ParquetWriter.write_table

    def write_table(writer: Any, table: Any, **options: Any) -> None:
        if "order_id" in table.schema.names and "quantity" not in table.schema.names:
            raise OSError(ENOSPC, "No space left on device")
        write(writer, table, **options)

    monkeypatch.setattr(parquet.ParquetWriter, "write_table", write_table)
    with pytest.raises(OSError, match="No space left"):
        made.close()
    assert [one["number"] for one in rows(tmp_path, Trade)] == [1]
    partial = [one.name for one in tmp_path.iterdir() if one.suffix == ".partial"]
    assert partial == ["order_deleted.parquet.partial"]


def test_tables_that_are_discarded_leave_no_files(tmp_path: Path) -> None:
    MessageTables(tmp_path).discard()
    assert list(tmp_path.iterdir()) == []
