"""Log lines: one line an event, split by any shell, and not forged by what a client sent."""

import shlex

from hypothesis import given
from hypothesis import strategies as st

from exchange.logs import VALUE_LENGTH_MAX, Log, format_line

TIME_NS = 1_800_000_000_123_456_789


def test_a_line_is_exact() -> None:
    line = format_line(TIME_NS, "info", "log_on", {"session": 7, "peer": "10.0.0.1:80", "ok": True})
    assert line == (
        "time=2027-01-15T08:00:00.123+00:00 level=info event=log_on session=7 "
        "peer=10.0.0.1:80 ok=True"
    )


@given(st.text(max_size=600))
def test_any_value_is_one_word_of_one_printable_line(text: str) -> None:
    line = format_line(TIME_NS, "info", "x", {"text": text, "last": 1})
    assert line.isprintable()
    words = shlex.split(line)
    assert len(words) == 5
    assert words[3].startswith("text=")
    assert len(words[3]) <= len("text=") + 10 * VALUE_LENGTH_MAX
    if text.isprintable() and len(text) <= VALUE_LENGTH_MAX:
        assert words[3] == f"text={text}"


def test_the_log_writes_lines() -> None:
    lines: list[str] = []
    log = Log(lambda: TIME_NS, lines.append)
    log.info("a", x="two words")
    log.error("b", reason=None)
    assert lines[0].endswith('level=info event=a x="two words"')
    assert lines[1].endswith("level=error event=b reason=None")
