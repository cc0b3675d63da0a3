"""Settings of a venue that a tool starts: what differs from the file that `exchange init` writes.

Every such venue gets a multicast group and port of its own and any free port for its metrics, so
that it disturbs no other venue on the machine, and is not disturbed.
"""

import random
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from exchange.config import COMMANDS_PER_SECOND_MAX

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

GROUPS_END: Final = 256 - 64
"""Channels use the addresses after the first group; these stay in the same last byte."""


def own_settings() -> dict[str, Setting]:
    """A multicast group nobody is likely to have, a port nobody has now, any port for metrics."""
    # 239.255.0.0/16 is for use inside a site; the packets do not leave the machine anyhow.
    system = random.SystemRandom()
    group = f"239.255.{system.randrange(256)}.{system.randrange(1, GROUPS_END)}"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("", 0))
        port: int = free.getsockname()[1]
    return {
        "market_data.group": group,
        "market_data.port": port,
        "market_data.interface": INTERFACE,
        "metrics.port": 0,
    }


def change_settings(config: Path, settings: Mapping[str, Setting]) -> None:
    """Write values over those of keys `table.key` that the file has; comments stay."""
    content = config.read_text(encoding="utf-8")
    for name, value in settings.items():
        table, _, key = name.partition(".")
        shown = f'"{value}"' if isinstance(value, str) else str(value)
        pattern = rf"(^\[{table}\]\n(?:(?!\[).*\n)*?{key} = )(\"[^\"]*\"|\S+)"
        content, count = re.subn(pattern, rf"\g<1>{shown}", content, flags=re.MULTILINE)
        assert count == 1, f"`exchange init` writes {name} once, not {count} times"
    config.write_text(content, encoding="utf-8")
