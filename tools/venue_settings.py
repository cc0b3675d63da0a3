"""Settings of a venue that a tool starts: what differs from the file that `exchange init` writes.

Every such venue gets multicast groups and a port of its own for both lines and any free port for
its metrics, so that it disturbs no other venue on the machine, and is not disturbed.
"""

import random
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from exchange.config import COMMANDS_PER_SECOND_MAX, GROUPS_MAX

__all__ = ["INTERFACE", "UNTHROTTLED", "change_settings", "own_settings"]

Setting = int | str

INTERFACE: Final = "127.0.0.1"
"""Market data stays on this machine."""

UNTHROTTLED: Final[Mapping[str, Setting]] = {
    f"throttle.{kind}_{what}": COMMANDS_PER_SECOND_MAX
    for kind in ("orders", "cancels")
    for what in ("per_second", "burst")
}
"""The throttle works, with budgets above what is offered."""

GROUPS_END: Final = 256 - GROUPS_MAX
"""A line uses the addresses after its first group; these stay in the same last byte."""


def own_settings() -> dict[str, Setting]:
    """Multicast groups nobody is likely to have, a port nobody has now, any port for metrics."""
    # 239.255.0.0/16 is for use inside a site; the packets do not leave the machine anyhow.
    system = random.SystemRandom()
    third, last = 2 * system.randrange(128), system.randrange(1, GROUPS_END)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("", 0))
        port: int = free.getsockname()[1]
    return {
        "market_data.group": f"239.255.{third}.{last}",
        "market_data.port": port,
        "market_data.interface": INTERFACE,
        "market_data.line_b.group": f"239.255.{third + 1}.{last}",
        "market_data.line_b.port": port,
        "market_data.line_b.interface": INTERFACE,
        "metrics.port": 0,
    }


def change_settings(config: Path, settings: Mapping[str, Setting]) -> None:
    """Write values over those of keys `table.key` that the file has; comments stay."""
    content = config.read_text(encoding="utf-8")
    for name, value in settings.items():
        table, _, key = name.rpartition(".")
        shown = f'"{value}"' if isinstance(value, str) else str(value)
        pattern = rf"(^\[{re.escape(table)}\]\n(?:(?!\[).*\n)*?{key} = )(\"[^\"]*\"|\S+)"
        content, count = re.subn(pattern, rf"\g<1>{shown}", content, flags=re.MULTILINE)
        assert count == 1, f"`exchange init` writes {name} once, not {count} times"
    config.write_text(content, encoding="utf-8")
