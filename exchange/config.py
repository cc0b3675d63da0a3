"""The settings of a venue: one TOML file, read once at start; every mistake is one clear line.

Relative paths are relative to the file. Nothing here reaches the core: what it has to know is in
the journal's first record, which `exchange init` writes together with this file and which is
compared with it at every start.
"""

import difflib
import tomllib
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
    "OrderEntrySettings",
    "VenueSettings",
    "load",
]

CONFIG_NAME: Final = "exchange.toml"

SEGMENT_SIZE_MIN: Final = 1024 * 1024
"""A segment holds several of the largest records (256 KiB)."""

SEGMENT_SIZE_MAX: Final = 1024 * 1024 * 1024
"""Preparing a larger one would outlast the wait for it."""

Port = Annotated[int, Meta(ge=0, le=65_535)]
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
