"""What the demo shows: it fits the terminal, and what is not known is not shown."""

import dataclasses
import io
import re
import sys

import pytest
from rich.console import Console

from tools.demo_consumer import Seen
from tools.listing import LISTING, price_digits
from tools.terminal import LiveView, Picture, PlainView, Row


def picture(*, is_stale: bool = False, gaps: int = 0) -> Picture:
    """As large as numbers get in an hour."""
    seen = Seen(1, is_stale, 4_800, 123_400, 5_200, 99_900, 5_000, 9_876_543_200, 2_345_678)
    if is_stale:
        seen = Seen(1, is_stale, last_price=5_000)
    return Picture(
        elapsed_s=3_599.0,
        seconds=3_600.0,
        orders=234_567_890,
        orders_per_second=123_456.7,
        ack_p50_us=1_234.5,
        ack_p99_us=12_345.6,
        trades=12_345_678,
        sequence=345_678_901,
        messages=456_789_012,
        messages_per_second=234_567.8,
        gaps=gaps,
        rows=[Row(one.symbol, one.title, price_digits(one), seen) for one in LISTING],
    )


def shown(width: int, height: int, one: Picture) -> list[str]:
    """Lines of the picture that the live view draws last."""
    output = io.StringIO()
    console = Console(
        file=output, width=width, height=height, force_terminal=True, color_system=None
    )
    with LiveView(console) as view:
        view.show(one)
    text = re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", output.getvalue()).replace("\r", "")
    return text[text.rindex("Brier") :].rstrip("\n").split("\n")


@pytest.mark.parametrize(("width", "height"), [(80, 24), (130, 40)])
def test_everything_fits_the_terminal(width: int, height: int) -> None:
    lines = shown(width, height, picture())
    assert len(lines) == len(LISTING) + 7 < height, "nothing is wrapped"
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for listed in LISTING:
        assert listed.symbol in text
        assert (listed.title[:30] in text) is (width == 130)
    for figure in ("123,457", "234,567,890", "12.35 ms", "12,345,678", "345,678,901", "0 gaps"):
        assert figure in text
    assert ("…" in text) is (width == 130), "only titles are cut"


def test_a_stale_book_has_no_prices() -> None:
    text = "\n".join(shown(80, 24, picture(is_stale=True, gaps=2)))
    assert "2 gaps" in text
    assert text.count("?") >= 4 * len(LISTING)
    assert "0.48" not in text


def test_plain_lines_come_every_two_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    with PlainView(sys.stdout) as view:
        for elapsed_s in (0.5, 1.9, 2.0, 2.1, 4.1):
            view.show(dataclasses.replace(picture(gaps=3), elapsed_s=elapsed_s))
    lines = capsys.readouterr().out.splitlines()
    assert [line[:7] for line in lines] == ["  2.0 s", "  4.1 s"]
    assert all("gaps 3" in line and len(line) <= 130 for line in lines)
