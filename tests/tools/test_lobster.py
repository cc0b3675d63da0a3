"""The mapping of LOBSTER's messages to commands, on lines written by hand."""

import pytest

from protocol.order_entry import CancelOrder, NewOrder, ReplaceOrder
from tools.errors import UsageError
from tools.lobster import Kind, Mapper, Message, OrderCommand, parse, parse_line

BUY, SELL = 1, 2
GTC, IOC = 1, 3
INSTRUMENT, BUYER, SELLER = 7, 11, 12


def commands(*lines: str) -> tuple[Mapper, list[OrderCommand | None]]:
    mapper = Mapper(INSTRUMENT, BUYER, SELLER)
    return mapper, [mapper.command(message) for message in parse(lines, "hand")]


def test_a_line() -> None:
    line = "34200.025551909,1,16120456,18,5859100,-1"
    assert parse_line(line) == Message(Kind.NEW, 16120456, 18, 5_859_100, False)


def test_new_orders_belong_to_the_account_of_their_side() -> None:
    _, sent = commands("1.0,1,900,18,5853300,1", "1.1,1,901,5,5859100,-1")
    assert sent == [
        NewOrder(1, INSTRUMENT, BUYER, BUY, 5_853_300, 1_800, time_in_force=GTC),
        NewOrder(2, INSTRUMENT, SELLER, SELL, 5_859_100, 500, time_in_force=GTC),
    ]


def test_a_partial_cancel_is_a_replace_to_the_new_total() -> None:
    _, sent = commands(
        "1.0,1,900,100,5853300,1",
        "1.1,4,900,30,5853300,1",
        "1.2,2,900,20,5853300,1",
        "1.3,2,900,10,5853300,1",
        "1.4,3,900,40,5853300,1",
    )
    # The execution takes the client order id 2. It counts in the total of what follows.
    assert sent[2:] == [
        ReplaceOrder(3, 1, 0, 5_853_300, 8_000),
        ReplaceOrder(4, 3, 0, 5_853_300, 7_000),
        CancelOrder(4),
    ]


def test_an_execution_is_an_immediate_order_of_the_other_side_and_account() -> None:
    mapper, sent = commands("1.0,1,900,100,5853300,1", "1.1,4,900,30,5853300,1")
    assert sent[1] == NewOrder(2, INSTRUMENT, SELLER, SELL, 5_853_300, 3_000, time_in_force=IOC)
    assert mapper.executed == {2: 900}
    assert mapper.file_orders == {1: 900}


def test_an_order_is_forgotten_when_the_file_has_executed_it() -> None:
    mapper, sent = commands(
        "1.0,1,900,100,5853300,1",
        "1.1,4,900,60,5853300,1",
        "1.2,4,900,40,5853300,1",
        "1.3,3,900,40,5853300,1",
    )
    assert sent[3] is None
    assert mapper.counts["unknown"] == 1


def test_what_is_not_sent_is_counted() -> None:
    mapper, sent = commands(
        "1.0,5,0,100,5853300,1",
        "1.1,7,0,0,-1,-1",
        "1.2,2,1,5,5853300,1",
        "1.3,3,1,5,5853300,1",
        "1.4,4,1,5,5853300,1",
    )
    assert sent == [None] * 5
    assert mapper.counts == {
        "messages": 5,
        "hidden_execution": 1,
        "halt": 1,
        "partial_cancel": 1,
        "delete": 1,
        "execution": 1,
        "unknown": 3,
        "unknown_partial_cancel": 1,
        "unknown_delete": 1,
        "unknown_execution": 1,
    }


@pytest.mark.parametrize(
    ("line", "story"),
    [
        ("1.0,1,900,100,5853300", "line 2: 5 columns instead of 6"),
        ("1.0,9,900,100,5853300,1", "line 2: 9 is not a valid Kind"),
        ("1.0,1,900,x,5853300,1", "line 2: invalid literal"),
        ("1.0,1,900,0,5853300,1", "line 2: size is above 0"),
        ("1.0,1,900,100,5853300,0", "line 2: size is above 0 and direction"),
    ],
)
def test_a_bad_line_is_named(line: str, story: str) -> None:
    with pytest.raises(UsageError, match=story):
        list(parse(["1.0,1,900,100,5853300,1", line], "hand"))
