"""The configuration file: defaults, paths, and one clear line for every mistake."""

from pathlib import Path

import pytest

from exchange.config import (
    CHANNEL_GROUPS,
    CONFIG_NAME,
    GROUPS_MAX,
    Config,
    ConfigError,
    FeedSettings,
    Limits,
    LineSettings,
    MarketDataSettings,
    MetricsSettings,
    SnapshotSettings,
    ThrottleSettings,
    UpstreamSettings,
    load,
    load_feed,
)
from exchange.core.limits import GENESIS_CEILINGS
from exchange.node.setup import initialise
from protocol.packets import CHANNELS_MAX

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


def test_a_file_from_before_market_data_has_the_defaults(tmp_path: Path) -> None:
    config = load(write(tmp_path, VENUE + LIMITS))
    assert config.market_data == MarketDataSettings("239.255.66.1", 9100, "127.0.0.1", 0)
    assert config.throttle == ThrottleSettings(50_000, 10_000, 100_000, 20_000, 1_000, 1_000)
    assert config.metrics == MetricsSettings("127.0.0.1", 9101)


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
        (
            "port = 1\n",
            "unknown key port; valid keys are venue, limits, order_entry, journal, market_data, "
            "throttle, metrics, feed, snapshots",
        ),
        ("[market_data]\ngrp = 1\n", "unknown key market_data.grp; did you mean group"),
        ("[market_data.line_c]\n", "unknown key market_data.line_c; did you mean line_b"),
        ("[market_data.line_b]\ntll = 1\n", "unknown key market_data.line_b.tll; did you mean ttl"),
        (
            "[throttle]\norder_burst = 1\n",
            "unknown key throttle.order_burst; did you mean orders_burst",
        ),
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
        ("[market_data]\nport = 0\n", "market_data.port: Expected `int` >= 1"),
        ("[market_data]\nport = 65536\n", "market_data.port: Expected `int` <= 65535"),
        ("[market_data]\nttl = 256\n", "market_data.ttl: Expected `int` <= 255"),
        ("[market_data]\nttl = -1\n", "market_data.ttl: Expected `int` >= 0"),
        (
            '[market_data]\ngroup = "10.1.2.3"\n',
            "market_data: group 10.1.2.3 is not a multicast address",
        ),
        (
            '[market_data]\ngroup = "ff02::1"\n',
            "market_data: group 'ff02::1' is not an IPv4 address",
        ),
        (
            '[market_data]\ngroup = "239.255.255.129"\n',
            "market_data: group 239.255.255.129 is not followed by 127 multicast ones",
        ),
        (
            '[market_data]\ninterface = "eth0"\n',
            "market_data: interface 'eth0' is not an IPv4 address",
        ),
        (
            '[market_data]\ninterface = "0.0.0.0"\n',
            "market_data: interface 0.0.0.0 is not the address of an interface",
        ),
        (
            "[market_data.line_b]\nport = 9100\n",
            "market_data.line_b: Object missing required field `group`",
        ),
        (
            '[market_data.line_b]\ngroup = "10.1.2.3"\n',
            "market_data.line_b: group 10.1.2.3 is not a multicast address",
        ),
        (
            '[market_data.line_b]\ngroup = "239.255.66.128"\n',
            "market_data: line_b.group 239.255.66.128 is not 128 away from group 239.255.66.1; "
            "another port would do as well",
        ),
        (
            '[market_data.line_b]\ngroup = "239.255.65.130"\n',
            "market_data: line_b.group 239.255.65.130 is not 128 away from group 239.255.66.1; "
            "another port would do as well",
        ),
        ("[throttle]\norders_burst = 0\n", "throttle.orders_burst: Expected `int` >= 1"),
        ("[metrics]\nport = 65536\n", "metrics.port: Expected `int` <= 65535"),
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


def test_the_last_group_is_the_last_multicast_address(tmp_path: Path) -> None:
    content = VENUE + '[market_data]\ngroup = "239.255.255.128"\n' + LIMITS
    assert load(write(tmp_path, content)).market_data.group == "239.255.255.128"
    assert CHANNEL_GROUPS == CHANNELS_MAX
    assert GROUPS_MAX == 2 * CHANNELS_MAX


@pytest.mark.parametrize(
    ("group", "port"),
    [("239.255.66.129", 9100), ("239.255.65.129", 9100), ("239.255.66.1", 9101)],
)
def test_line_b_is_apart_from_line_a(tmp_path: Path, group: str, port: int) -> None:
    content = VENUE + f'[market_data.line_b]\ngroup = "{group}"\nport = {port}\n' + LIMITS
    found = load(write(tmp_path, content)).market_data
    assert found.line_b == LineSettings(group, port, "127.0.0.1", 0)
    assert found.line_a == LineSettings("239.255.66.1", 9100, "127.0.0.1", 0)


def test_the_limits_are_those_of_genesis() -> None:
    assert list(Limits.__struct_fields__) == list(GENESIS_CEILINGS)


def test_what_init_writes_is_read(tmp_path: Path) -> None:
    made = initialise(tmp_path / "venue", name="north", port=0, limits={"orders_max": 7})
    config: Config = load(made.config)
    assert config.venue.name == "north"
    assert config.order_entry.port == 0
    assert config.limits.orders_max == 7
    assert config.limits.accounts_max == 100_000
    assert config.market_data == MarketDataSettings(line_b=LineSettings("239.255.67.1"))
    assert config.throttle == ThrottleSettings()
    assert config.metrics == MetricsSettings(port=0), "as order entry: any free port"


def test_init_writes_one_line_if_asked(tmp_path: Path) -> None:
    market_data = MarketDataSettings("239.255.70.1")
    made = initialise(tmp_path / "venue", name="north", market_data=market_data)
    assert load(made.config).market_data == market_data
    assert "line_b" not in made.config.read_text()


def test_init_writes_every_setting_on_a_line_with_its_table(tmp_path: Path) -> None:
    line_b = LineSettings("239.255.71.1", 9201, "10.0.1.1", 7)
    market_data = MarketDataSettings("239.255.70.1", 9200, "10.0.0.1", 8, line_b)
    made = initialise(tmp_path / "venue", name="north", port=7, market_data=market_data)
    config = load(made.config)
    assert (config.market_data, config.metrics) == (market_data, MetricsSettings())
    written = made.config.read_text()
    for table, settings in (
        ("market_data", config.market_data.line_a),
        ("market_data.line_b", line_b),
        ("throttle", config.throttle),
        ("metrics", config.metrics),
        ("snapshots", config.snapshots),
    ):
        rows = written.split(f"\n[{table}]")[1].split("\n\n")[0].splitlines()[1:]
        keys = [row.partition(" = ")[0] for row in rows]
        assert keys == list(settings.__struct_fields__)


def test_a_feed_reads_the_file_of_its_venue(tmp_path: Path) -> None:
    made = initialise(tmp_path / "venue", name="north")
    feed = load_feed(made.config)
    assert feed.feed == load(made.config).feed == FeedSettings()
    assert feed.venue.data == tmp_path / "venue" / "data"
    assert feed.market_data == load(made.config).market_data
    free = load_feed(initialise(tmp_path / "free", name="north", port=0).config)
    assert (free.feed.port, free.feed.metrics_port) == (0, 0)


def test_a_feed_of_its_own_needs_no_limits(tmp_path: Path) -> None:
    upstream = '[feed.upstream]\nhost = "north"\nport = 9002\nkey = "keys/feed.pem"\n'
    file = write(tmp_path, VENUE + "[feed]\nport = 7\nsnapshot_rate = 0\n" + upstream)
    feed = load_feed(file)
    assert feed.limits is None
    assert feed.feed.upstream == UpstreamSettings("north", 9002, tmp_path / "keys" / "feed.pem")
    with pytest.raises(ConfigError, match="limits"):
        load(file)
    for wrong, reason in (
        ("[feed]\nsnapshot_rate = -1\n", "feed.snapshot_rate"),
        ('[feed.upstream]\nhost = "north"\nport = 0\nkey = "k"\n', "feed.upstream.port"),
        ('[feed.upstream]\nhost = "north"\nport = 1\n', "key"),
        ('[feed.upstream]\nhots = "north"\n', "did you mean host"),
    ):
        with pytest.raises(ConfigError, match=reason):
            load_feed(write(tmp_path, VENUE + wrong))


def test_a_new_venue_has_the_cadence_of_snapshots_in_its_file(tmp_path: Path) -> None:
    made = load(initialise(tmp_path / "venue", name="north").config)
    assert made.snapshots == SnapshotSettings()
    free = load(initialise(tmp_path / "free", name="north", port=0).config)
    assert free.snapshots == SnapshotSettings(metrics_port=0)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("keep = 1", "snapshots.keep: Expected `int` >= 2"),
        ("keep = 1001", "snapshots.keep: Expected `int` <= 1000"),
        ("every_commands = 0", "snapshots.every_commands: Expected `int` >= 1"),
        ("every_bytes = 0", "snapshots.every_bytes: Expected `int` >= 1"),
        ("every_s = 0", "snapshots.every_s: Expected `int` >= 1"),
        ("every_s = 86401", "snapshots.every_s: Expected `int` <= 86400"),
        ("every = 5", "unknown key snapshots.every; did you mean every_s"),
    ],
)
def test_a_cadence_that_cannot_be_is_named(tmp_path: Path, line: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        load_feed(write(tmp_path, VENUE + f"[snapshots]\n{line}\n"))
