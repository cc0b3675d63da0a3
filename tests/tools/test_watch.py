"""What `exchange watch` shows: it fits the terminal, and what is not known is not shown."""

import argparse
import dataclasses
import io
import json
import sys
from pathlib import Path

import pytest
from rich.console import Console

from exchange import cli
from exchange.client import Feed, Gap, Healing, Lag, Level, Line, Recovery
from protocol.codes import Phase, Side
from protocol.market_data import InstrumentDefinition, Trade
from tools.demo_consumer import Seen
from tools.errors import UsageError
from tools.listing import LISTING, price_digits
from tools.sources import Source, add_source_arguments, read_source
from tools.terminal import Row
from tools.watch import Watcher, as_json
from tools.watch_view import Incident, Ladder, PlainView, Sight, TerminalView, Tick, Way

NOW = 1_795_000_000_123_456_789
CLOCK = "11:06:40"
LINES = (Line("239.255.250.250", 65_535), Line("239.255.251.250", 65_535))
TICK = InstrumentDefinition(3, 1, 1, 1, "RAIN", "Rain", 0, 10_000, [(0, 10)], 100, Phase.OPEN)


def sight(*, is_stale: bool = False, ladder: Ladder | None = None) -> Sight:
    """As large as numbers get."""
    seen = Seen(1, is_stale, 4_800, 123_400, 5_200, 99_900, 5_000, 9_876_543_200, 2_345_678)
    if is_stale:
        seen = Seen(1, is_stale, last_price=5_000)
    rows = [Row(one.symbol, one.title, price_digits(one), seen) for one in LISTING]
    lag = Lag(1_234_567, 98_765_432, 1, 1, 100)
    ways = [
        Way("line A", "239.255.250.250:65535", "up", True, 123_456.7, lag, 0),
        Way("line B", "239.255.251.250:65535", "not heard", False, 0.0, Lag(), 0),
        Way("feed", "127.0.0.1:65535", "no connection", False, 0.0, Lag(), 0),
    ]
    trades = [Tick(NOW, one.symbol, True, 123_400, "0.875") for one in LISTING] * 4
    incidents = [
        Incident(NOW, "1,234,567 replayed in 1,234 ms", is_healed=True),
        Incident(NOW, "34 lost: messages did not come", is_healed=False),
    ] * 20
    return Sight(
        time_ns=NOW,
        elapsed_s=3_599.0,
        state="every book is known",
        is_well=not is_stale,
        ways=ways,
        rows=rows if ladder is None else rows[:1],
        ladder=ladder,
        trades=trades,
        incidents=incidents,
        messages=456_789_012,
        messages_per_second=234_567.8,
        gaps=3,
        recoveries=1_234,
    )


def shown(width: int, height: int, one: Sight) -> list[str]:
    """The lines of the terminal."""
    output = io.StringIO()
    console = Console(
        file=output, width=width, height=height, force_terminal=True, color_system=None
    )
    console.print(TerminalView(console).render(one))
    return output.getvalue().rstrip("\n").split("\n")


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (200, 60)])
def test_everything_fits_the_terminal(width: int, height: int) -> None:
    lines = shown(width, height, sight())
    assert len(lines) == height, "all of it is used, and nothing is wrapped"
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for figure in (
        *("every book is known  234,568 messages/s  456,789,012 so far", f"{CLOCK} UTC"),
        *("239.255.250.250:65535  up", " 123,457 packets/s  lag 1.23..98.8 ms"),
        *("not heard", "no connection", "Gaps 3, healed 1234"),
        *(f"{CLOCK} buy   1234 0.875  RAIN-OSLO-SAT", f"{CLOCK} 1,234,567 replayed in 1,234 ms"),
    ):
        assert figure in text
    assert all(listed.symbol in text for listed in LISTING)
    assert ("…" in text) is (width >= 120), "only titles are cut"


def test_a_small_terminal_has_the_busy_ones() -> None:
    one = sight()
    rows = [
        dataclasses.replace(row, seen=row.seen._replace(trade_count=index))
        for index, row in enumerate(one.rows)
    ]
    lines = shown(80, 20, dataclasses.replace(one, rows=rows))
    assert len(lines) == 20
    first = [line.split(" ")[0] for line in lines]
    expected = [listed.symbol for listed in LISTING[-8:]]
    assert first[6:14] == expected
    assert "5 more, with fewer trades" in "\n".join(lines)


def test_the_levels_of_one_instrument() -> None:
    bids = [Level(4_800, 1_000, 2), Level(4_700, 2_000, 1)]
    ladder = Ladder(2, bids, [Level(5_200, 500, 1)])
    lines = shown(80, 24, sight(ladder=ladder))
    assert len(lines) == 24
    assert lines[9].split() == ["████████", "10", "0.48", "0.52", "5", "████"]
    assert lines[10].split() == ["█" * 16, "20", "0.47"]


def test_a_book_that_is_not_known_has_no_prices() -> None:
    lines = shown(80, 24, sight(is_stale=True))
    row = next(line for line in lines if line.startswith("RAIN-OSLO-SAT"))
    assert row.split()[1:6] == ["?", "?", "?", "?", "0.50"]


def test_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with PlainView(sys.stdout) as view:
        view.show(sight())
        view.show(sight())
    assert capsys.readouterr().out == (
        "3599.0 s  every book is known  456,789,012 messages  234,568/s  gaps 3, healed 1234  "
        "line A up; line B not heard; feed no connection\n"
    )


def test_json_has_the_venues_units() -> None:
    figures = json.loads(as_json(sight()))
    assert figures["books"]["MOON-2030"] == {
        "is_known": True,
        "bid_price": 4_800,
        "bid_quantity": 123_400,
        "ask_price": 5_200,
        "ask_quantity": 99_900,
        "last_price": 5_000,
        "volume": 9_876_543_200,
        "trades": 2_345_678,
    }
    assert figures["ways"]["line A"]["lag_p50_ns"] == 1_234_567
    assert figures["ways"]["line B"]["lag_p50_ns"] is None
    assert (figures["gaps"], figures["recoveries"], figures["is_well"]) == (3, 1_234, True)
    stale = json.loads(as_json(sight(is_stale=True)))["books"]["MOON-2030"]
    assert (stale["is_known"], stale["bid_price"], stale["ask_quantity"]) == (False, None, None)


def test_what_the_consumer_tells_is_noted() -> None:
    watcher = Watcher(Source((1,), LINES, None), [])
    assert watcher.look().state == "nothing heard yet"
    watcher.consumer.receiver.market.list(TICK)
    watcher._on_trade(Trade(5, NOW, 1, 1, 123, 400, Side.SELL, 7))
    watcher._on_gap(Gap(9, 1, 5, 1_234, "messages did not come"))
    watcher._on_gap(Gap(9, 1, 5, 0, "order 7 is not there"))
    watcher._on_recovered(Recovery(9, 1, 5, 34, Healing.REPLAY, 12_400_000))
    watcher._on_recovered(Recovery(9, 1, 1, 5_000, Healing.SNAPSHOT, 1_500_000_000))
    watcher._on_epoch(9)
    watcher._on_epoch(10)
    one = watcher.look()
    assert one.trades == [Tick(NOW, "RAIN", False, 400, "0.0123")]
    assert [incident.text for incident in reversed(one.incidents)] == [
        "1,234 lost: messages did not come",
        "order 7 is not there",
        "34 replayed in 12 ms",
        "5,000 by a snapshot in 1,500 ms",
        "the venue's numbers begin again",
    ]
    assert [way.name for way in one.ways] == ["line A", "line B"]
    assert [way.status for way in one.ways] == ["not heard", "not heard"]
    assert one.rows[0].price_digits == 3
    several = Watcher(Source((1, 2), LINES, None), ["SNOW"])
    several._on_gap(Gap(9, 2, 5, 0, "order 7 is not there"))
    assert several.look().incidents[0].text == "channel 2: order 7 is not there"


# Where market data comes from.


def source(*arguments: str) -> Source:
    parser = argparse.ArgumentParser()
    add_source_arguments(parser)
    return read_source(parser.parse_args(arguments))


def test_sources() -> None:
    line_a, line_b = ("--line", "239.1.2.3:9100"), ("--line", "239.1.3.3:9100:10.0.0.7")
    feed = ("--feed", "[::1]:9002", "--key", "reader.pem")
    lines = (Line("239.1.2.3", 9100, "127.0.0.1"), Line("239.1.3.3", 9100, "10.0.0.7"))
    over = Feed("::1", 9002, Path("reader.pem"))
    assert source(*line_a, *line_b) == Source((1,), lines, None)
    assert source(*line_a, *feed, "--channel", "2", "--channel", "64") == Source(
        (2, 64), lines[:1], over
    )
    assert source(*feed) == source(*line_a, *feed, "--tcp") == Source((1,), (), over)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "say where"),
        (("--feed", "host:1"), "--key"),
        (("--line", "239.1.2.3:1", "--tcp"), "needs a feed"),
        (("--line", "239.1.2.3:1") * 3, "at most 2"),
        (("--config", "x.toml", "--line", "239.1.2.3:1"), "leave"),
    ],
)
def test_sources_that_cannot_be(arguments: tuple[str, ...], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        source(*arguments)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--line", "10.0.0.1:9100"),
        ("--line", "239.1.2.3"),
        ("--line", "239.1.2.3:9100:eth0"),
        ("--feed", "host"),
        ("--feed", "host:0"),
        ("--feed", "host:65536"),
        ("--channel", "0"),
        ("--channel", "65"),
        ("--seconds", "0"),
        ("--seconds", "soon"),
    ],
)
def test_options_that_cannot_be(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["watch", option, value])
    assert stopped.value.code == 64
    assert repr(value)[1:-1] in capsys.readouterr().err


def test_a_configuration_names_lines_and_feed(tmp_path: Path) -> None:
    assert cli.main(["init", str(tmp_path / "venue")]) == 0
    config = tmp_path / "venue" / "exchange.toml"
    lines = (Line("239.255.66.1", 9100), Line("239.255.67.1", 9100))
    key = tmp_path / "venue" / "keys" / "admin.pem"
    feed = Feed("127.0.0.1", 9002, key)
    assert source("--config", str(config)) == Source((1,), lines, feed)
    assert source("--config", str(config.parent), "--tcp").lines == ()
    other = Feed("127.0.0.1", 9002, Path("reader.pem"))
    assert source("--config", str(config), "--key", "reader.pem").feed == other
    key.unlink()
    assert source("--config", str(config)) == Source((1,), lines, None)
