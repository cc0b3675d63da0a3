"""Public messages to Parquet: one file for each class of message, exact types, bounded memory.

The columns follow from the fields: integers are int64 (all are below 2^62 in magnitude), times are
timestamps in nanoseconds, texts are strings. In front stands where the message was: epoch, channel,
number, and when its packet was sent and received. Integers wait in one array for each class, row
by row, until a row group is full. A file gets its name when it is whole; until then it has
`.partial` behind it.
"""

from array import array
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pyarrow  # type: ignore[import-untyped]  # it comes without types
from msgspec.structs import astuple
from pyarrow import compute, parquet

from protocol.market_data import MarketDataMessage
from tools.errors import UsageError
from tools.recording import Place

__all__ = ["ROW_GROUP_ROWS", "MessageTables", "file_name", "schema_of"]

ROW_GROUP_ROWS: Final = 65_536
"""Rows of a row group: what waits is then some 10 MB for each class of message, and a reader that
wants a column finds it in large pieces."""

PARTIAL: Final = ".partial"
MESSAGES: Final[tuple[type[MarketDataMessage], ...]] = MarketDataMessage.__args__

_INTEGER: Final = pyarrow.int64()
_TIME: Final = pyarrow.timestamp("ns", tz="UTC")
_OTHERS: Final = {
    "symbol": pyarrow.string(),
    "title": pyarrow.string(),
    "currency": pyarrow.string(),
    "tick_table": pyarrow.list_(
        pyarrow.struct([("start_price", _INTEGER), ("tick_size", _INTEGER)])
    ),
}
"""Columns that are no integers."""


_UNKNOWN: Final = ("send_time_ns", "receive_time_ns")
"""Columns that are null where nobody knows."""


def file_name(message: type[MarketDataMessage]) -> str:
    """`order_added.parquet` for OrderAdded."""
    name = "".join(f"_{one.lower()}" if one.isupper() else one for one in message.__name__)
    return f"{name.lstrip('_')}.parquet"


def schema_of(message: type[MarketDataMessage]) -> Any:
    """The columns of a class of message; a time's name loses its unit, which the type says."""
    return pyarrow.schema([_field(name) for name in _columns(message)])


def _columns(message: type[MarketDataMessage]) -> list[str]:
    """An event says its channel once more; that is left out."""
    others = [name for name in message.__struct_fields__ if name not in Place._fields]
    return [*Place._fields, *others]


def _field(name: str) -> Any:
    if name.endswith("time_ns"):
        return pyarrow.field(name.removesuffix("_ns"), _TIME, nullable=name in _UNKNOWN)
    return pyarrow.field(name, _OTHERS.get(name, _INTEGER), nullable=False)


class _Table:
    """The file of one class of message."""

    def __init__(self, folder: Path, message: type[MarketDataMessage]) -> None:
        self.row_count = 0
        self._path = folder / file_name(message)
        if self._path.exists():
            raise UsageError(f"{self._path} is there already")
        self._partial = self._path.with_name(self._path.name + PARTIAL)
        self._schema = schema_of(message)
        self._writer = parquet.ParquetWriter(self._partial, self._schema, compression="zstd")
        self._columns = _columns(message)
        fields = (*Place._fields, *message.__struct_fields__)
        self._integers = [fields.index(one) for one in self._columns if one not in _OTHERS]
        self._has_others = len(self._integers) < len(fields)
        self._others: dict[str, list[object]] = {one: [] for one in self._columns if one in _OTHERS}
        self._words = array("q")
        self._waiting_count = 0

    def add(self, place: Place, message: MarketDataMessage) -> None:
        row = (*place, *astuple(message))
        if self._has_others:
            self._words.extend([row[index] for index in self._integers])
            for name, values in self._others.items():
                values.append(getattr(message, name))
        else:
            self._words.extend(row)
        self._waiting_count += 1
        if self._waiting_count == ROW_GROUP_ROWS:
            self._flush()

    def close(self) -> None:
        """Write the rest, and give the file its name."""
        if self._waiting_count:
            self._flush()
        self._writer.close()
        self._partial.rename(self._path)

    def discard(self) -> None:
        """Leave no file."""
        self._writer.close()
        self._partial.unlink()

    def _flush(self) -> None:
        """Write what waits as a row group."""
        width = len(self._integers)
        words = iter(self._words[index::width] for index in range(width))
        columns = []
        for name, field in zip(self._columns, self._schema, strict=True):
            if name in self._others:
                columns.append(pyarrow.array(self._others[name], field.type))
                self._others[name].clear()
                continue
            buffers = [None, pyarrow.py_buffer(next(words))]
            column = pyarrow.Array.from_buffers(field.type, self._waiting_count, buffers)
            if name in _UNKNOWN:
                is_known = compute.not_equal(column.cast(_INTEGER), 0)
                column = compute.if_else(is_known, column, None)
            columns.append(column)
        group = pyarrow.Table.from_arrays(columns, schema=self._schema)
        self._writer.write_table(group, row_group_size=self._waiting_count)
        self.row_count += self._waiting_count
        self._waiting_count = 0
        self._words = array("q")


class MessageTables:
    """The files of all classes of message in a folder, which is made."""

    def __init__(self, folder: Path) -> None:
        """Raises UsageError when one of the files is there already."""
        folder.mkdir(parents=True, exist_ok=True)
        self._tables = {message: _Table(folder, message) for message in MESSAGES}

    def add(self, place: Place, message: MarketDataMessage) -> None:
        """Append a message. Raises OSError."""
        self._tables[type(message)].add(place, message)

    def close(self) -> dict[str, int]:
        """End all files; their names and numbers of rows. One that cannot be ended does not keep
        the others from it. Raises OSError."""
        with ExitStack() as stack:
            for table in self._tables.values():
                stack.callback(table.close)
        return {file_name(message): table.row_count for message, table in self._tables.items()}

    def discard(self) -> None:
        """Leave no files: there is nothing in them."""
        for table in self._tables.values():
            table.discard()
