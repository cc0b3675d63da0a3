"""Where a tool gets market data: the lines and the feed of a configuration, or as the user says."""

import argparse
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address
from pathlib import Path
from typing import Final

from exchange import config
from exchange.client import Feed, Line
from protocol.packets import CHANNELS_MAX
from tools.admin import ADMIN_KEY
from tools.errors import UsageError

__all__ = [
    "Source",
    "add_source_arguments",
    "parse_address",
    "parse_channel",
    "parse_line",
    "parse_seconds",
    "read_source",
]

INTERFACE: Final = "127.0.0.1"
LINES_MAX: Final = 2
PORT_MAX: Final = 65_535


@dataclass(frozen=True)
class Source:
    """The ways on which packets come: one or two lines, a feed, or both."""

    channels: tuple[int, ...]
    lines: tuple[Line, ...]
    feed: Feed | None


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that `read_source` reads."""
    where = parser.add_argument_group("from where")
    where.add_argument("--config", type=Path, metavar="FILE", help="lines and feed of a venue")
    where.add_argument(
        "--line",
        type=parse_line,
        action="append",
        metavar="GROUP:PORT[:INTERFACE]",
        help="a multicast line: group of channel 1, port, address of the interface; once or twice",
    )
    where.add_argument(
        "--feed",
        type=parse_address,
        metavar="HOST:PORT",
        help="a feed server: for what the lines lose, or alone",
    )
    where.add_argument("--key", type=Path, metavar="FILE", help="private key for the feed")
    where.add_argument("--tcp", action="store_true", help="of a venue only the feed, no lines")
    where.add_argument(
        "--channel",
        type=parse_channel,
        action="append",
        metavar="N",
        help="may be given several times; default: 1",
    )


def read_source(arguments: argparse.Namespace) -> Source:
    """What the options name. Raises UsageError, ConfigError."""
    lines: tuple[Line, ...] = tuple(arguments.line or ())
    feed = None
    if arguments.config is not None:
        if lines or arguments.feed is not None:
            raise UsageError("--config names lines and feed; leave --line and --feed out")
        lines, feed = _configured(arguments.config, arguments.key)
    elif arguments.feed is not None:
        if arguments.key is None:
            raise UsageError("--feed needs --key FILE, a private key that the venue knows")
        host, port = arguments.feed
        feed = Feed(host, port, arguments.key)
    if len(lines) > LINES_MAX:
        raise UsageError(f"at most {LINES_MAX} lines")
    if arguments.tcp:
        if feed is None:
            raise UsageError("--tcp needs a feed and a key for it")
        lines = ()
    if not lines and feed is None:
        raise UsageError("say where market data comes from: --config, --line or --feed")
    return Source(tuple(arguments.channel or (1,)), lines, feed)


def _configured(path: Path, key: Path | None) -> tuple[tuple[Line, ...], Feed | None]:
    """Lines and feed of a venue; no feed when there is no key for it."""
    settings = config.load_feed(path)
    market_data, feed = settings.market_data, settings.feed
    lines = [
        Line(line.group, line.port, line.interface)
        for line in (market_data.line_a, market_data.line_b)
        if line is not None
    ]
    own_key = (path if path.is_dir() else path.parent) / ADMIN_KEY
    if key is None and own_key.exists():
        key = own_key
    if key is None or not feed.port:
        return tuple(lines), None
    return tuple(lines), Feed(feed.host, feed.port, key)


def parse_line(text: str) -> Line:
    """`GROUP:PORT` or `GROUP:PORT:INTERFACE`, for argparse."""
    group, _, rest = text.partition(":")
    port, _, interface = rest.partition(":")
    try:
        is_group = IPv4Address(group).is_multicast
        IPv4Address(interface or INTERFACE)
    except AddressValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None
    if not is_group or not _is_port(port):
        raise argparse.ArgumentTypeError(f"{text!r} is not GROUP:PORT with a multicast group")
    return Line(group, int(port), interface or INTERFACE)


def parse_address(text: str) -> tuple[str, int]:
    """`HOST:PORT`, for argparse."""
    host, _, port = text.rpartition(":")
    if not host or not _is_port(port):
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


def parse_channel(text: str) -> int:
    """The number of a channel, for argparse."""
    if not text.isdecimal() or not 1 <= int(text) <= CHANNELS_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is not a channel, 1 to {CHANNELS_MAX}")
    return int(text)


def parse_seconds(text: str) -> float:
    """A time above 0, for argparse."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time in seconds")
    return seconds


def _is_port(text: str) -> bool:
    return text.isdecimal() and 0 < int(text) <= PORT_MAX
