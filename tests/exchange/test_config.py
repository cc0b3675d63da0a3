"""The configuration file: defaults, paths, and one clear line for every mistake."""

from pathlib import Path

import pytest

from exchange.config import CONFIG_NAME, Config, ConfigError, Limits, load
from exchange.core.limits import GENESIS_CEILINGS
from exchange.node.setup import initialise

LIMITS = "[limits]\n" + "\n".join(f"{name} = 1" for name in Limits.__struct_fields__)
VENUE = '[venue]\nname = "north"\ndata = "data"\n'


def write(folder: Path, content: str) -> Path:
    file = folder / CONFIG_NAME
    file.write_text(content)
    return file


def refusal(folder: Path, content: str) -> str:
    """What is said about the file, without its path."""
    file = write(folder, content)
    with pytest.raises(ConfigError) as caught:
        load(file)
    text = str(caught.value)
    assert text.startswith(f"{file}: ")
    assert "\n" not in text
    assert caught.value.exit_code == 64
    return text.removeprefix(f"{file}: ")


def test_defaults_and_paths_relative_to_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, VENUE + LIMITS)
    config = load(file)
    assert config.venue.name == "north"
    assert config.venue.data == tmp_path / "data"
    assert (config.order_entry.host, config.order_entry.port) == ("127.0.0.1", 9001)
    assert config.journal.segment_size == 64 * 1024 * 1024
    assert load(tmp_path) == config, "the folder names its file"


def test_an_absolute_path_stays(tmp_path: Path) -> None:
    content = '[venue]\nname = "north"\ndata = "/var/lib/brier"\n' + LIMITS
    assert load(write(tmp_path, content)).venue.data == Path("/var/lib/brier")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("[order_entry]\nprot = 1\n", "unknown key order_entry.prot; did you mean port"),
        ("[jornal]\n", "unknown key jornal; did you mean journal"),
        ("[limits]\norder_max = 1\n", "unknown key limits.order_max; did you mean orders_max"),
        ("[journal]\nx = 1\n", "unknown key journal.x; valid keys are segment_size"),
        ("port = 1\n", "unknown key port; valid keys are venue, limits, order_entry, journal"),
    ],
)
def test_a_misspelt_key_is_named_with_the_nearest_one(
    tmp_path: Path, content: str, text: str
) -> None:
    assert refusal(tmp_path, content) == text


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("[order_entry]\nport = 65536\n", "order_entry.port: Expected `int` <= 65535"),
        ('[order_entry]\nport = "1"\n', "order_entry.port: Expected `int`, got `str`"),
        ("[journal]\nsegment_size = 1000\n", "journal.segment_size: Expected `int` >= 1048576"),
        ("", "top level: Object missing required field `venue`"),
        ('[venue]\nname = "n"\n', "venue: Object missing required field `data`"),
        ('[venue]\nname = "n"\ndata = ""\n', "venue.data: Expected a path"),
    ],
)
def test_a_bad_value_is_named_with_its_place(tmp_path: Path, content: str, text: str) -> None:
    complete = content if content.startswith("[venue]") or not content else VENUE + content
    if content:
        complete += LIMITS
    assert refusal(tmp_path, complete) == text


def test_not_toml_not_text_not_there(tmp_path: Path) -> None:
    assert "line 1" in refusal(tmp_path, "[venue\n")
    (tmp_path / CONFIG_NAME).write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="utf-8"):
        load(tmp_path / CONFIG_NAME)
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "other.toml")


def test_the_limits_are_those_of_genesis() -> None:
    assert list(Limits.__struct_fields__) == list(GENESIS_CEILINGS)


def test_what_init_writes_is_read(tmp_path: Path) -> None:
    made = initialise(tmp_path / "venue", name="north", port=0, limits={"orders_max": 7})
    config: Config = load(made.config)
    assert config.venue.name == "north"
    assert config.order_entry.port == 0
    assert config.limits.orders_max == 7
    assert config.limits.accounts_max == 100_000
