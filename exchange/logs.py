"""Log lines for people and machines: `key=value` on stderr, one line an event, only at the edge.

Nothing is logged per order, and nothing in the core. A value that is not plain is quoted, so a line
is always split by `shlex` and never forged by what a client sent.
"""

import string
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final

__all__ = ["VALUE_LENGTH_MAX", "Log", "format_line"]

VALUE_LENGTH_MAX: Final = 500
"""Characters of one value: a longer one is cut, so that a line stays a line."""

Value = str | int | bool | None
_PLAIN: Final = frozenset(string.ascii_letters + string.digits + "_.:/+-@,[]")


def format_line(time_ns: int, level: str, event: str, fields: dict[str, Value]) -> str:
    """`time=... level=... event=... key=value ...`, without the newline."""
    moment = datetime.fromtimestamp(time_ns / 1e9, UTC).isoformat(timespec="milliseconds")
    pairs: dict[str, Value] = {"time": moment, "level": level, "event": event, **fields}
    return " ".join(f"{key}={_quote(value)}" for key, value in pairs.items())


def _quote(value: Value) -> str:
    text = str(value)[:VALUE_LENGTH_MAX]
    if text and _PLAIN.issuperset(text):
        return text
    visible = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
    return '"' + visible.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _write_stderr(line: str) -> None:
    """Write a line, or lose it: on a full disk or a closed pipe the venue goes on without."""
    with suppress(OSError, ValueError):
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


class Log:
    """Writes lines. The time and the way out are injected."""

    def __init__(
        self,
        time_ns: Callable[[], int] = time.time_ns,
        write: Callable[[str], None] = _write_stderr,
    ) -> None:
        self._time_ns = time_ns
        self._write = write

    def info(self, event: str, **fields: Value) -> None:
        self._write(format_line(self._time_ns(), "info", event, fields))

    def error(self, event: str, **fields: Value) -> None:
        self._write(format_line(self._time_ns(), "error", event, fields))
