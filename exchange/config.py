"""The settings of a venue: one TOML file, read once at start; every mistake is one clear line.

Relative paths are relative to the file. Nothing here reaches the core: what it has to know is in
the journal's first record, which `exchange init` writes together with this file and which is
compared with it at every start.
"""

import difflib
import tomllib
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, TypeVar, get_args

import msgspec
from msgspec import Meta, Struct

__all__ = [
    "CHANNEL_GROUPS",
    "CONFIG_NAME",
    "GROUPS_MAX",
    "Config",
    "ConfigError",
    "FeedConfig",
    "FeedSettings",
    "JournalSettings",
    "Limits",
    "LineSettings",
    "MarketDataSettings",
    "MetricsSettings",
    "OrderEntrySettings",
    "SnapshotSettings",
    "ThrottleSettings",
    "UpstreamSettings",
    "VenueSettings",
    "load",
    "load_feed",
]

CONFIG_NAME: Final = "exchange.toml"

SEGMENT_SIZE_MIN: Final = 1024 * 1024
"""A segment holds several of the largest records (256 KiB)."""

SEGMENT_SIZE_MAX: Final = 1024 * 1024 * 1024
"""Preparing a larger one would outlast the wait for it."""

CHANNEL_GROUPS: Final = 64
"""Multicast groups of a line for packets: each channel has its own."""

GROUPS_MAX: Final = 2 * CHANNEL_GROUPS
"""All groups of a line, from the first one on: as many follow for the channels' snapshots."""

COMMANDS_PER_SECOND_MAX: Final = 1_000_000
"""As much as the venue takes from everybody together: as good as no bound."""

SNAPSHOT_RATE_MAX: Final = 1_000_000_000
"""Bytes a second: eight Gbit/s, more than anybody has for snapshots."""

SNAPSHOTS_KEPT_MIN: Final = 2
"""When the newest one is damaged, the one before it is there."""

SNAPSHOTS_KEPT_MAX: Final = 1_000
"""Each is as large as the venue's state, and a start looks at all of them."""

SNAPSHOT_INTERVAL_MAX_S: Final = 86_400
"""A day."""

Port = Annotated[int, Meta(ge=0, le=65_535)]
RealPort = Annotated[int, Meta(ge=1, le=65_535)]
Ttl = Annotated[int, Meta(ge=0, le=255)]
Rate = Annotated[int, Meta(ge=1, le=COMMANDS_PER_SECOND_MAX)]
SegmentSize = Annotated[int, Meta(ge=SEGMENT_SIZE_MIN, le=SEGMENT_SIZE_MAX, multiple_of=512)]
Count = Annotated[int, Meta(ge=1, le=2**32 - 1)]


_C = TypeVar("_C", bound=Struct)


class ConfigError(Exception):
    """The configuration cannot be used; the text is one line for a person."""

    exit_code: ClassVar[int] = 64


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """Base of the tables of the file."""


class VenueSettings(Settings, frozen=True, forbid_unknown_fields=True):
    """Who this is, and where its data is."""

    name: str
    data: Path


class OrderEntrySettings(Settings, frozen=True, forbid_unknown_fields=True):
    """Where clients connect."""

    host: str = "127.0.0.1"
    port: Port = 9001


class JournalSettings(Settings, frozen=True, forbid_unknown_fields=True):
    """The write-ahead log. `segment_size` in bytes is for segments that are begun from now on."""

    segment_size: SegmentSize = 64 * 1024 * 1024


def _address(name: str, value: str) -> IPv4Address:
    try:
        return IPv4Address(value)
    except ValueError:
        raise ValueError(f"{name} {value!r} is not an IPv4 address") from None


def _check_line(group: str, interface: str) -> None:
    """Raise ValueError unless packets can go there."""
    first = _address("group", group)
    if not first.is_multicast:
        raise ValueError(f"group {first} is not a multicast address")
    if not (first + GROUPS_MAX - 1).is_multicast:
        raise ValueError(f"group {first} is not followed by {GROUPS_MAX - 1} multicast ones")
    where = _address("interface", interface)
    if where.is_multicast or where.is_unspecified:
        raise ValueError(f"interface {where} is not the address of an interface")


class LineSettings(Settings, frozen=True, forbid_unknown_fields=True):
    """Where the packets of one line go: channel c to the address `group` + c - 1, its snapshots to
    `group` + 64 + c - 1, all out of `interface`."""

    group: str
    port: RealPort = 9100
    interface: str = "127.0.0.1"
    ttl: Ttl = 0

    def __post_init__(self) -> None:
        _check_line(self.group, self.interface)


class MarketDataSettings(Settings, frozen=True, forbid_unknown_fields=True):
    """Line A, and line B if there is one: the same packets once more, on another way."""

    group: str = "239.255.66.1"
    port: RealPort = 9100
    interface: str = "127.0.0.1"
    ttl: Ttl = 0
    line_b: LineSettings | None = None

    def __post_init__(self) -> None:
        _check_line(self.group, self.interface)
        other = self.line_b
        if other is None or other.port != self.port:
            return
        if abs(int(IPv4Address(self.group)) - int(IPv4Address(other.group))) < GROUPS_MAX:
            raise ValueError(
                f"line_b.group {other.group} is not {GROUPS_MAX} away from group {self.group}; "
                "another port would do as well"
            )

    @property
    def line_a(self) -> LineSettings:
        """Line A alone."""
        return LineSettings(self.group, self.port, self.interface, self.ttl)


class ThrottleSettings(Settings, frozen=True, forbid_unknown_fields=True):
    """What one session may send: commands a second, and how many at once after a silence."""

    orders_per_second: Rate = 50_000
    orders_burst: Rate = 10_000
    cancels_per_second: Rate = 100_000
    cancels_burst: Rate = 20_000
    other_per_second: Rate = 1_000
    other_burst: Rate = 1_000


class MetricsSettings(Settings, frozen=True, forbid_unknown_fields=True):
    """Where Prometheus scrapes."""

    host: str = "127.0.0.1"
    port: Port = 9101


class UpstreamSettings(Settings, frozen=True, forbid_unknown_fields=True):
    """The feed whose log this one copies; `key` is a file with a private key of role ADMIN."""

    host: str
    port: RealPort
    key: Path


class FeedSettings(Settings, frozen=True, forbid_unknown_fields=True):
    """The feed server: where clients and Prometheus connect, and how many bytes a second and line
    the cycle of snapshots may take, 0: there is none. With `upstream` it copies another feed's log
    in place of reading that of a venue on this machine."""

    host: str = "127.0.0.1"
    port: Port = 9002
    metrics_host: str = "127.0.0.1"
    metrics_port: Port = 9102
    snapshot_rate: Annotated[int, Meta(ge=0, le=SNAPSHOT_RATE_MAX)] = 4_000_000
    upstream: UpstreamSettings | None = None


class SnapshotSettings(Settings, frozen=True, forbid_unknown_fields=True):
    """The replica, which makes snapshots: how many are kept, and after how many commands, bytes of
    commands/, or seconds in which something new came, the next one is made; whichever is first.
    A start replays what came after the newest one: `every_commands` and `every_bytes` bound it."""

    keep: Annotated[int, Meta(ge=SNAPSHOTS_KEPT_MIN, le=SNAPSHOTS_KEPT_MAX)] = 2
    every_commands: Count = 2_000_000
    every_bytes: Annotated[int, Meta(ge=1)] = 128 * 1024 * 1024
    every_s: Annotated[int, Meta(ge=1, le=SNAPSHOT_INTERVAL_MAX_S)] = 300
    metrics_host: str = "127.0.0.1"
    metrics_port: Port = 9103


class Limits(Settings, frozen=True, forbid_unknown_fields=True):
    """The engine's limits, fixed for the life of the journal."""

    participants_max: Count
    accounts_max: Count
    keys_max: Count
    instruments_max: Count
    sessions_max: Count
    orders_max: Count
    positions_max: Count
    orders_per_account_max: Count
    levels_per_side_max: Count
    work_per_command_max: Count


class Config(Settings, frozen=True, forbid_unknown_fields=True):
    """Everything in the file. Paths are absolute after `load`."""

    venue: VenueSettings
    limits: Limits
    order_entry: OrderEntrySettings = OrderEntrySettings()
    journal: JournalSettings = JournalSettings()
    market_data: MarketDataSettings = MarketDataSettings()
    throttle: ThrottleSettings = ThrottleSettings()
    metrics: MetricsSettings = MetricsSettings()
    feed: FeedSettings = FeedSettings()
    snapshots: SnapshotSettings = SnapshotSettings()


class FeedConfig(Settings, frozen=True, forbid_unknown_fields=True):
    """The same file as a feed server reads it: where only a feed runs it has no limits."""

    venue: VenueSettings
    limits: Limits | None = None
    order_entry: OrderEntrySettings = OrderEntrySettings()
    journal: JournalSettings = JournalSettings()
    market_data: MarketDataSettings = MarketDataSettings()
    throttle: ThrottleSettings = ThrottleSettings()
    metrics: MetricsSettings = MetricsSettings()
    feed: FeedSettings = FeedSettings()
    snapshots: SnapshotSettings = SnapshotSettings()


def load(path: Path) -> Config:
    """The checked settings in the file, or in `exchange.toml` of the folder. Raises ConfigError."""
    return _load(path, Config)


def load_feed(path: Path) -> FeedConfig:
    """The settings for a feed server; otherwise as `load`."""
    return _load(path, FeedConfig)


def _load(path: Path, wanted: type[_C]) -> _C:
    file = (path / CONFIG_NAME if path.is_dir() else path).absolute()
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: {error}") from None
    _check_keys(file, content, wanted, "")

    def convert_path(kind: type, value: Any) -> Path:
        if kind is not Path or not isinstance(value, str) or not value:
            raise ValueError("Expected a path")
        return file.parent / value

    try:
        return msgspec.convert(content, wanted, dec_hook=convert_path)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$.")
        raise ConfigError(f"{file}: {where.rstrip('`') or 'top level'}: {what}") from None


def _check_keys(file: Path, table: dict[str, Any], struct: type[Struct], place: str) -> None:
    """Name a key that the table does not have, and the one that was probably meant."""
    fields = {field.name: field.type for field in msgspec.structs.fields(struct)}
    for key, value in table.items():
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}" if near else f"valid keys are {', '.join(fields)}"
            raise ConfigError(f"{file}: unknown key {place}{key}; {hint}")
        if isinstance(value, dict):
            for inner in (fields[key], *get_args(fields[key])):
                if isinstance(inner, type) and issubclass(inner, Struct):
                    _check_keys(file, value, inner, f"{place}{key}.")
