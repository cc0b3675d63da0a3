"""The settings of a venue: one TOML file, read once at start; every mistake is one clear line.

Relative paths are relative to the file. Nothing here reaches the core: what it has to know is in
the journal's first record, which `exchange init` writes together with this file and which is
compared with it at every start.
"""

import difflib
import tomllib
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final

import msgspec
from msgspec import Meta, Struct

__all__ = [
    "CONFIG_NAME",
    "Config",
    "ConfigError",
    "JournalSettings",
    "Limits",
    "MarketDataSettings",
    "MetricsSettings",
    "OrderEntrySettings",
    "ThrottleSettings",
    "VenueSettings",
    "load",
]

CONFIG_NAME: Final = "exchange.toml"

SEGMENT_SIZE_MIN: Final = 1024 * 1024
"""A segment holds several of the largest records (256 KiB)."""

SEGMENT_SIZE_MAX: Final = 1024 * 1024 * 1024
"""Preparing a larger one would outlast the wait for it."""

GROUPS_MAX: Final = 64
"""Multicast groups from the first one on: each channel has its own."""

COMMANDS_PER_SECOND_MAX: Final = 1_000_000
"""As much as the venue takes from everybody together: as good as no bound."""

Port = Annotated[int, Meta(ge=0, le=65_535)]
RealPort = Annotated[int, Meta(ge=1, le=65_535)]
Ttl = Annotated[int, Meta(ge=0, le=255)]
Rate = Annotated[int, Meta(ge=1, le=COMMANDS_PER_SECOND_MAX)]
SegmentSize = Annotated[int, Meta(ge=SEGMENT_SIZE_MIN, le=SEGMENT_SIZE_MAX, multiple_of=512)]
Count = Annotated[int, Meta(ge=1, le=2**32 - 1)]


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


class MarketDataSettings(Settings, frozen=True, forbid_unknown_fields=True):
    """Where packets go: channel c to the address `group` + c - 1, out of `interface`."""

    group: str = "239.255.66.1"
    port: RealPort = 9100
    interface: str = "127.0.0.1"
    ttl: Ttl = 0

    def __post_init__(self) -> None:
        group = _address("group", self.group)
        if not group.is_multicast:
            raise ValueError(f"group {group} is not a multicast address")
        if not (group + GROUPS_MAX - 1).is_multicast:
            raise ValueError(f"group {group} is not followed by {GROUPS_MAX - 1} multicast ones")
        interface = _address("interface", self.interface)
        if interface.is_multicast or interface.is_unspecified:
            raise ValueError(f"interface {interface} is not the address of an interface")


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


def load(path: Path) -> Config:
    """The checked settings in the file, or in `exchange.toml` of the folder. Raises ConfigError."""
    file = (path / CONFIG_NAME if path.is_dir() else path).absolute()
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: {error}") from None
    _check_keys(file, content, Config, "")

    def convert_path(wanted: type, value: Any) -> Path:
        if wanted is not Path or not isinstance(value, str) or not value:
            raise ValueError("Expected a path")
        return file.parent / value

    try:
        return msgspec.convert(content, Config, dec_hook=convert_path)
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
        inner = fields[key]
        if isinstance(inner, type) and issubclass(inner, Struct) and isinstance(value, dict):
            _check_keys(file, value, inner, f"{place}{key}.")
