"""The pages in protocol/spec and the code say the same, both ways.

Every comparison is a function from the pages' text to a list of differences, empty when page and
code agree. So the comparisons themselves are tried: on pages with one planted mistake each.
"""

import re
import struct
from collections.abc import Callable, Iterator
from enum import EnumType, IntEnum
from pathlib import Path
from types import ModuleType
from typing import Final, NamedTuple, TypeAlias, get_args

import msgspec
import pytest
from msgspec import inspect

import protocol
from exchange.config import ThrottleSettings
from exchange.core import limits as core_limits
from exchange.node import limits as node_limits
from protocol import (
    admin,
    base,
    codes,
    feed,
    framing,
    market_data,
    order_entry,
    packets,
    records,
    session,
    transport,
)
from protocol.states import TRANSITIONS, Service

SPEC: Final = Path(str(protocol.__file__)).parent / "spec"
MODULES: Final[dict[str, ModuleType]] = {
    "transport": transport,
    "order_entry": order_entry,
    "admin": admin,
    "records": records,
    "market_data": market_data,
    "feed": feed,
}
PAGES: Final = {name: (SPEC / f"{name}.md").read_text() for name in MODULES}
BORROWED: Final = {"market_data": ("transport", "admin"), "records": ("transport", "admin")}
"""Pages whose data types a page uses besides its own; by default those of transport."""

LIMITS: Final = (
    *(base, framing, session, transport, packets, market_data, feed),
    *(core_limits, node_limits),
)
"""Where the names in the tables of limits are looked up; all that have one must agree."""

CONSTANTS: Final = {
    ("transport", "Frame kinds"): (
        framing,
        ("SESSION", "SEQUENCED", "UNSEQUENCED", "PACKET", "LOG"),
    ),
    ("records", "Command kinds"): (records, ("FROM_CLIENT", "FROM_VENUE")),
    ("transport", "Frame flags"): (framing, ("REPLAYED", "LAST_PIECE")),
    ("records", "Event kinds"): (records, ("REPORT", "SESSION", "MARKET_DATA", "REFERENCE")),
    ("market_data", "Packet kinds"): (packets, ("DATA", "HEARTBEAT", "SNAPSHOT", "SELECTED")),
    ("market_data", "Block flags"): (packets, ("FIRST", "LAST")),
}
HEADS: Final = {
    ("transport", "Frame header"): framing.HEADER,
    ("records", "Command head"): records.COMMAND_HEAD,
    ("records", "Event head"): records.EVENT_HEAD,
    ("market_data", "Packet header"): packets.PACKET_HEADER,
    ("market_data", "Block head"): packets.BLOCK_HEAD,
    ("market_data", "Selected block head"): packets.SELECTED_BLOCK_HEAD,
}
STRUCT_LETTERS: Final = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q"}
VENUE_SENDS: Final = "venue"
LIVES: Final = {
    Service.ORDER_ENTRY: ("transport", "Life of a connection"),
    Service.FEED: ("feed", "Life of a feed connection"),
}
"""Where the states of each service are."""

Pages: TypeAlias = dict[str, str]
Row: TypeAlias = dict[str, str]


class Table(NamedTuple):
    """A table of a page: the nearest heading above it, the columns, the rows by column."""

    heading: str
    columns: tuple[str, ...]
    rows: list[Row]


def tables(text: str) -> Iterator[Table]:
    """All tables of a page, in order."""
    heading = ""
    lines: list[list[str]] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            lines.append([cell.strip() for cell in line.strip("|").split("|")])
            continue
        if lines:
            columns, rule, *rows = lines
            assert set("".join(rule)) <= set("-:"), f"{heading}: no rule below the columns"
            yield Table(heading, tuple(columns), [dict(zip(columns, r, strict=True)) for r in rows])
            lines = []
        if line.startswith("#"):
            heading = line.lstrip("# ")


def table(pages: Pages, page: str, heading: str) -> Table:
    found = [one for one in tables(pages[page]) if one.heading == heading]
    assert len(found) == 1, f"{page}.md has {len(found)} tables under {heading!r}"
    return found[0]


def number(text: str) -> int:
    """An integer as the pages write them: 4096, 10^9, 2^62 - 1."""
    found = re.fullmatch(r"(\d+)(?:\^(\d+))?(?: - (\d+))?", text)
    assert found, f"{text!r} is no number"
    power: int = int(found[1]) ** int(found[2] or 1)
    return power - int(found[3] or 0)


# -- Types


def number_text(value: int) -> str:
    bits = (value + 1).bit_length() - 1
    return f"2^{bits} - 1" if value + 1 == 2**bits and bits > 16 else str(value)


def describe_integer(kind: inspect.IntType) -> tuple[str, str]:
    assert kind.ge is not None, "every integer has bounds"
    assert kind.le is not None, "every integer has bounds"
    low = number_text(kind.ge) if kind.ge >= 0 else f"-({number_text(-kind.ge)})"
    return "integer", f"{low} to {number_text(kind.le)}"


def describe_text(kind: inspect.StrType) -> tuple[str, str]:
    if kind.pattern is None:
        return "string", f"{kind.min_length or 0} to {kind.max_length} characters"
    found = re.fullmatch(r"\^\[([^]]+)\](?:\+|\{(\d+),(\d+)\})\\Z", kind.pattern)
    assert found, f"{kind.pattern} is not one set of characters from end to end"
    low, high = found[2] or kind.min_length, found[3] or kind.max_length
    return "string", f"{low} to {high} of `{found[1]}`"


def integer_letter(kind: inspect.Type) -> str:
    """An integer as the rows of an array have it: its sign and how many bits it takes."""
    assert isinstance(kind, inspect.IntType), "rows are of integers"
    assert kind.le is not None, "every integer has bounds"
    return f"{'i' if kind.ge else 'u'}{kind.le.bit_length()}"


def describe(kind: inspect.Type) -> tuple[str, str]:
    """A field's type as the tables of data types have it: (MessagePack, bounds)."""
    match kind:
        case inspect.IntType():
            return describe_integer(kind)
        case inspect.StrType():
            return describe_text(kind)
        case inspect.BytesType():
            assert kind.min_length == kind.max_length, "byte fields have one length"
            return "binary", f"{kind.min_length} bytes"
        case inspect.ListType(item_type=inspect.TupleType(item_types=items)):
            letters = ", ".join(integer_letter(item) for item in items)
            return "array", f"{kind.min_length or 0} to {kind.max_length} of [{letters}]"
        case inspect.ListType(item_type=item):
            return "array", f"{kind.min_length or 0} to {kind.max_length} of {integer_letter(item)}"
        case inspect.RawType():
            return "array", "one message, tag first, byte for byte as it was made"
    raise AssertionError(f"the pages have no word for {kind}")


def types_of(pages: Pages, page: str) -> dict[str, tuple[str, str]]:
    """Types that a page may use: its own and those that it borrows."""
    return {
        row["type"]: (row["MessagePack"], row["bounds"])
        for name in dict.fromkeys((*BORROWED.get(page, ("transport",)), page))
        for one in tables(pages[name])
        if one.columns == ("type", "MessagePack", "bounds")
        for row in one.rows
    }


# -- Messages


def messages(page: str) -> dict[str, type[msgspec.Struct]]:
    """Heading of its table to message, for all messages that a module defines."""
    module = MODULES[page]
    found = [
        one
        for one in vars(module).values()
        if isinstance(one, type)
        and issubclass(one, msgspec.Struct)
        and one.__module__ == module.__name__
        and one.__struct_config__.tag is not None
    ]
    return {f"{one.__name__} (tag {one.__struct_config__.tag})": one for one in found}


def field_text(field: msgspec.structs.FieldInfo, letters: dict[tuple[str, str], str]) -> str:
    """The type column of a field."""
    letter = letters.get(describe(inspect.type_info(field.type)), "a type that the page lacks")
    if field.required:
        return letter
    default = '""' if field.default == "" else field.default
    return f"{letter} = {default}"


def differences_of_message(pages: Pages, page: str, heading: str) -> Iterator[str]:
    letters = {meaning: letter for letter, meaning in types_of(pages, page).items()}
    message = messages(page)[heading]
    expected = [
        (str(index), field.encode_name, field_text(field, letters))
        for index, field in enumerate(msgspec.structs.fields(message), 1)
    ]
    found = [
        (row["#"], row["name"], row["type"])
        for one in tables(pages[page])
        if one.heading == heading
        for row in one.rows
    ]
    for index in range(max(len(expected), len(found))):
        ours = expected[index] if index < len(expected) else None
        theirs = found[index] if index < len(found) else None
        if ours != theirs:
            yield f"{page}.md: {heading}: the page has {theirs}, the struct {ours}"


def differences_of_messages(pages: Pages) -> Iterator[str]:
    for page in MODULES:
        headings = re.findall(r"^### (\w+ \(tag .+\))$", pages[page], re.MULTILINE)
        yield from (
            f"{page}.md: {heading} is twice on the page"
            for heading in headings
            if headings.count(heading) > 1
        )
        expected = messages(page)
        yield from (f"protocol/{page}.py lacks {one}" for one in headings if one not in expected)
        for heading in expected:
            if heading in headings:
                yield from differences_of_message(pages, page, heading)
            else:
                yield f"{page}.md lacks {heading}"


def differences_of_tags(pages: Pages) -> Iterator[str]:
    """Every message's tag lies in one of its page's ranges, and ranges do not overlap."""
    owner: dict[int, tuple[str, str]] = {}
    for row in table(pages, "transport", "Tags").rows:
        first, last = map(int, row["tags"].split(" to "))
        for tag in range(first, last + 1):
            if tag in owner:
                yield f"transport.md: tag {tag} belongs to two pages"
            owner[tag] = (row["page"], row["sent by"].split(";")[0])
    if set(MODULES) != {page for page, _ in owner.values()}:
        yield "transport.md: the table of tags does not name every page"
    for page in MODULES:
        for heading, message in messages(page).items():
            own_tag = message.__struct_config__.tag
            assert isinstance(own_tag, int)
            owner_page, sender = owner.get(own_tag, ("nobody", ""))
            is_from_venue = issubclass(message, order_entry.Report)
            if owner_page != page or is_from_venue != (sender == VENUE_SENDS):
                yield f"transport.md: {heading} lies in the tags of {owner_page} ({sender})"


# -- Numbers with names


def enumerations() -> dict[str, list[tuple[int, str]]]:
    """Name of each enumeration of the code to its (value, name) pairs."""
    return {
        one.__name__: [(int(one[name]), name) for name in one.__members__]
        for one in vars(codes).values()
        if isinstance(one, EnumType) and one.__module__ == codes.__name__
    }


def differences_of_enumerations(pages: Pages) -> Iterator[str]:
    """Every enumeration is on exactly one page, with all members and no other."""
    found = [
        (page, one)
        for page in MODULES
        for one in tables(pages[page])
        if one.columns == ("value", "name", "meaning") and (page, one.heading) not in CONSTANTS
    ]
    headings = [one.heading for _, one in found]
    expected = enumerations()
    for name in dict.fromkeys([*expected, *headings]):
        if headings.count(name) != 1 or name not in expected:
            yield f"{name} is {headings.count(name)} times on the pages"
    for page, one in found:
        if one.heading in expected:
            rows = [(int(row["value"]), row["name"]) for row in one.rows]
            members = expected[one.heading]
            for pair in dict.fromkeys([*rows, *members]):
                if pair not in members or pair not in rows:
                    where = "the page" if pair in rows else "the code"
                    yield f"{page}.md: {one.heading}: only {where} has {pair}"
            if not all(row["meaning"] for row in one.rows):
                yield f"{page}.md: {one.heading}: a value without a meaning"


def differences_of_constants(pages: Pages) -> Iterator[str]:
    for (page, heading), (module, names) in CONSTANTS.items():
        found = [(row["name"], int(row["value"])) for row in table(pages, page, heading).rows]
        expected = [(name, getattr(module, name)) for name in names]
        if found != expected:
            yield f"{page}.md: {heading}: the page has {found}, the code {expected}"


def differences_of_limits(pages: Pages) -> Iterator[str]:
    for page in MODULES:
        for row in (
            row for one in tables(pages[page]) if one.heading == "Limits" for row in one.rows
        ):
            name = row["name"]
            values = {getattr(module, name) for module in LIMITS if hasattr(module, name)}
            if values != {number(row["value"])}:
                yield f"{page}.md: {name} is {row['value']} here, {values} in the code"
    genesis = table(pages, "records", "Genesis (tag 50)")
    ceilings = {
        row["name"]: number(row["notes"].split(";")[0].removeprefix("1 to "))
        for row in genesis.rows
        if row["name"].endswith("_max")
    }
    if ceilings != core_limits.GENESIS_CEILINGS:
        yield f"records.md: Genesis: ceilings {ceilings}, not {core_limits.GENESIS_CEILINGS}"


# -- Fixed layouts, states, checks


def differences_of_heads(pages: Pages) -> Iterator[str]:
    for (page, heading), layout in HEADS.items():
        rows = table(pages, page, heading).rows
        offset = 0
        for row in rows:
            size = struct.calcsize(STRUCT_LETTERS[row["type"]])
            if (int(row["offset"]), int(row["size"])) != (offset, size):
                yield f"{page}.md: {heading}: {row['name']} is at {offset} with {size} bytes"
            offset += size
        found = "<" + "".join(STRUCT_LETTERS[row["type"]] for row in rows)
        if found != layout.format:
            yield f"{page}.md: {heading}: the page has {found}, the code {layout.format}"
    names = [row["name"] for row in table(pages, "transport", "Frame header").rows]
    if names != ["length", *framing.Frame._fields[:-1]]:
        yield f"transport.md: Frame header: names {names}"
    rows = table(pages, "market_data", "Packet header").rows
    names = [row["name"] for row in rows]
    fields = [name for name in names if name not in ("magic", "version", "count")]
    if names[:2] != ["magic", "version"] or fields != [*packets.Packet._fields[:-1]]:
        yield f"market_data.md: Packet header: names {names}"
    magic = f"{packets.PACKET_MAGIC} ({packets.PACKET_MAGIC:#x})"
    if [row["meaning"] for row in rows[:2]] != [magic, str(packets.PACKET_VERSION)]:
        yield f"market_data.md: Packet header: {rows[0]['meaning']}, {rows[1]['meaning']}"


def differences_of_states(pages: Pages) -> Iterator[str]:
    for service, (page, heading) in LIVES.items():
        rows = {row["state"]: row for row in table(pages, page, heading).rows}
        for party, states in TRANSITIONS[service].items():
            for state, steps in states.items():
                listed = "; ".join(f"{step.value}: {after.value}" for step, after in steps.items())
                found = rows.get(state.value, {}).get(f"{party.value} may send")
                if found != (listed or "nothing"):
                    yield f"{page}.md: {state.value}: the {party.value} sends {found}, not {listed}"
            if rows.keys() != {state.value for state in states}:
                yield f"{page}.md: states {list(rows)}"


def differences_of_checks(pages: Pages) -> Iterator[str]:
    """Codes exist, field numbers are those of the message, rows are numbered."""
    for page in MODULES:
        for one in tables(pages[page]):
            if not one.heading.startswith("Checks of "):
                continue
            name = one.heading.removeprefix("Checks of ")
            message = getattr(MODULES[page], name, None) or getattr(transport, name, None)
            fields = () if message is None else message.__struct_fields__
            allowed = {f"`{field}` ({i})" for i, field in enumerate(fields, 1)}
            allowed |= {"message (0)", "the field"}
            first = int(one.rows[0]["#"])
            for index, row in enumerate(one.rows, first):
                if row["#"] != str(index):
                    yield f"{page}.md: {one.heading}: row {row['#']} should be {index}"
                if row["code"] not in codes.RejectCode.__members__:
                    yield f"{page}.md: {one.heading}: there is no code {row['code']}"
                if row["field"] not in allowed:
                    yield f"{page}.md: {one.heading}: {name} has no field {row['field']}"


def differences_of_buckets(pages: Pages) -> Iterator[str]:
    """What the page calls defaults are those of the configuration."""
    rows = table(pages, "transport", "Throttling and back-pressure").rows
    found = {
        f"{row['bucket']}_{what}": int(row[column])
        for row in rows
        for what, column in (("per_second", "tokens a second"), ("burst", "size"))
    }
    expected = msgspec.structs.asdict(ThrottleSettings())
    if found != expected:
        yield f"transport.md: Throttling: {found}, not {expected}"


def differences_of_market_data(pages: Pages) -> Iterator[str]:
    """The tables that say what each public message does, and when, speak of every one of them."""
    names = {message.__name__ for message in get_args(market_data.MarketDataMessage)}
    when = table(pages, "market_data", "Which messages when").rows
    told = set(
        re.findall(r"\b[A-Z][a-z]+(?:[A-Z][a-z]+)*\b", " ".join(r["messages"] for r in when))
    )
    if told != names:
        yield f"market_data.md: Which messages when: {sorted(told ^ names)} are only in one place"
    books = {row["message"] for row in table(pages, "market_data", "Books").rows}
    expected = {name for name in names if name.startswith("Order")} | {"all others"}
    if books != expected:
        yield f"market_data.md: Books: {sorted(books ^ expected)} are only in one place"


def differences_of_structure(pages: Pages) -> Iterator[str]:
    for page, text in pages.items():
        sections = re.findall(r"^## (.+)$", text, re.MULTILINE)
        if not re.match(r"# \w[\w ]+\n\n\w", text):
            yield f"{page}.md does not open with what it is"
        if sections[-2:] != ["Versions and unknown tags", "History"]:
            yield f"{page}.md ends with {sections[-2:]}"
    if {path.stem for path in SPEC.glob("*.md")} != set(pages):
        yield f"protocol/spec holds {sorted(path.name for path in SPEC.iterdir())}"


COMPARISONS: Final[tuple[Callable[[Pages], Iterator[str]], ...]] = (
    differences_of_messages,
    differences_of_tags,
    differences_of_enumerations,
    differences_of_constants,
    differences_of_limits,
    differences_of_heads,
    differences_of_states,
    differences_of_checks,
    differences_of_buckets,
    differences_of_market_data,
    differences_of_structure,
)


@pytest.mark.parametrize("comparison", COMPARISONS)
def test_pages_and_code_agree(comparison: Callable[[Pages], Iterator[str]]) -> None:
    found = list(comparison(PAGES))
    assert not found, "\n" + "\n".join(found)


PLANTED: Final = {
    "a type": ("order_entry", "| 5 | price | i62 | limit", "| 5 | price | u62 | limit"),
    "a name": ("order_entry", "| 8 | canceled_quantity |", "| 8 | closed_quantity |"),
    "an order": (
        "admin",
        "| 1 | account_id | u32 | |\n| 2 | transfer_id | u62 |",
        "| 1 | transfer_id | u62 | |\n| 2 | account_id | u32 |",
    ),
    "a field less": (
        "records",
        "| 7 | minor | u8 | the minor that holds on the connection |\n",
        "",
    ),
    "a field more": ("admin", "| 5 | id | u62 |", "| 5 | id | u62 | |\n| 6 | code | u62 |"),
    "a default": ("order_entry", "| 7 | order_type | u62 = 1 |", "| 7 | order_type | u62 = 0 |"),
    "no default": ("transport", "| 1 | last_number | u62 = 0 |", "| 1 | last_number | u62 |"),
    "a tag": ("order_entry", "### OrderFilled (tag 85)", "### OrderFilled (tag 86)"),
    "a message less": ("records", "### Continuation (tag 54)", "### Continuation"),
    "a message more": ("admin", "### Halt (tag 37)", "### Pause (tag 39)\n\n### Halt (tag 37)"),
    "bounds of a type": ("transport", "| u32 | integer | 0 to 2^32 - 1 |", "| u32 | integer | 0 |"),
    "characters": ("admin", "3 to 8 of `A-Z`", "3 to 8 of `a-z`"),
    "an enumeration's value": ("order_entry", "| 3 | IOC |", "| 5 | IOC |"),
    "a code less": ("transport", "| 52 | NO_CHANGE | everything is so already |\n", ""),
    "a meaning less": ("transport", "| everything is so already |", "| |"),
    "a kind": ("records", "| 2 | FROM_VENUE |", "| 3 | FROM_VENUE |"),
    "an offset": ("transport", "| 12 | 8 | u64 | send", "| 13 | 8 | u64 | send"),
    "a head's type": ("records", "| 6 | 2 | u16 | channel |", "| 6 | 2 | u32 | channel |"),
    "a head's name": ("transport", "| match_lag_ns |", "| lag_ns |"),
    "a limit": ("transport", "| KEEPALIVE_MS_MAX | 30000 |", "| KEEPALIVE_MS_MAX | 60000 |"),
    "a ceiling": ("records", "| 1 to 16000000; resting orders |", "| 1 to 1600000 |"),
    "a state": ("transport", "log-out: closing; ", "log-out: closed; "),
    "a check's field": ("order_entry", "| `side` (4) |", "| `side` (5) |"),
    "a check's code": ("order_entry", "| FILL_OR_KILL | `", "| FILL_AND_KILL | `"),
    "a check's number": ("admin", "| 4 | not 0 | INVALID", "| 5 | not 0 | INVALID"),
    "a range of tags": ("transport", "| 80 to 86 |", "| 80 to 84 |"),
    "a default of 1": ("admin", "| 5 | channel | u16 = 1 |", "| 5 | channel | u16 = 0 |"),
    "rows of a type": ("transport", "0 to 256 of [u62, u62, i62]", "0 to 256 of [u62, u62, u62]"),
    "a frame flag": ("transport", "| 1 | REPLAYED |", "| 2 | REPLAYED |"),
    "an event kind": ("records", "| 3 | MARKET_DATA |", "| 4 | MARKET_DATA |"),
    "a packet kind": ("market_data", "| 2 | HEARTBEAT |", "| 3 | HEARTBEAT |"),
    "a block flag": ("market_data", "| 2 | LAST |", "| 4 | LAST |"),
    "a packet's offset": ("market_data", "| 16 | 8 | u64 | number |", "| 24 | 8 | u64 | number |"),
    "a packet's type": ("market_data", "| 6 | 2 | u16 | count |", "| 6 | 2 | u8 | count |"),
    "a packet's name": ("market_data", "| send_time_ns |", "| time_ns |"),
    "a packet's magic": ("market_data", "16978 (0x4252)", "16979 (0x4253)"),
    "a block's type": ("market_data", "| 2 | 1 | u8 | flags |", "| 2 | 1 | u16 | flags |"),
    "a public field": ("market_data", "| 7 | leaves_quantity | u62 |", "| 7 | quantity | u62 |"),
    "a public type": (
        "market_data",
        "| 9 | tick_table | tick_table |",
        "| 9 | tick_table | text |",
    ),
    "a public tag": ("market_data", "### Trade (tag 118)", "### Trade (tag 119)"),
    "a packet's limit": ("market_data", "| PACKET_SIZE_MAX | 1400 |", "| PACKET_SIZE_MAX | 1500 |"),
    "a message never sent": (
        "market_data",
        "| OrderReduced |\n| a replace",
        "| Trade |\n| a replace",
    ),
    "no effect on a book": ("market_data", "| OrderDeleted | the order is gone |\n", ""),
    "a bucket": ("transport", "| `CancelOrder` | 100000 |", "| `CancelOrder` | 10000 |"),
    "a step of the client": ("transport", "state request: established; ", ""),
    "a selected block's type": (
        "market_data",
        "| 3 | 4 | u32 | offset |",
        "| 3 | 4 | u64 | offset |",
    ),
    "a snapshot's type": ("market_data", "0 to 40 of [u62, i62,", "0 to 40 of [u62, u62,"),
    "a snapshot's field": ("market_data", "| 6 | event_count | u32 |", "| 6 | events | u32 |"),
    "a number of ids": ("feed", "| ids | array | 0 to 256 of u32 |", "| ids | array | 0 to 256 |"),
    "a width in a row": ("feed", "0 to 64 of [u16, u62]", "0 to 64 of [u32, u62]"),
    "a request's field": ("feed", "| 11 | when_slow | u8 |", "| 11 | when_slow | u16 |"),
    "a nested message": ("feed", "| 6 | report | message |", "| 6 | report | ids |"),
    "a form": ("feed", "| 5 | STATISTICS | what was traded |", "| 6 | STATISTICS | what |"),
    "a step of the feed": ("feed", "packet: established; ", ""),
    "a request's check": ("feed", "| `depth` (8) | 50 |", "| `depth` (9) | 50 |"),
    "a log-on's check": ("feed", "| `next_number` (6) | 0 |", "| `next_number` (5) | 0 |"),
    "a limit of the feed": ("feed", "| SLOW_SIZE | 2^22 |", "| SLOW_SIZE | 2^20 |"),
    "a frame kind": ("transport", "| 5 | LOG |", "| 6 | LOG |"),
    "no history": ("market_data", "## History", "## Past"),
}
"""What is wrong to (page, text there, text instead)."""


@pytest.mark.parametrize("what", PLANTED)
def test_a_wrong_page_is_found(what: str) -> None:
    page, right, wrong = PLANTED[what]
    assert right in PAGES[page], f"the page does not have {right!r} any more"
    planted = {**PAGES, page: PAGES[page].replace(right, wrong, 1)}
    assert [one for comparison in COMPARISONS for one in comparison(planted)]


def test_a_wrong_struct_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Halt(base.Message, frozen=True, tag=37):
        instrument_id: base.U62

    Halt.__module__ = admin.__name__
    monkeypatch.setattr(admin, "Halt", Halt)
    [found] = differences_of_messages(PAGES)
    assert found == (
        "admin.md: Halt (tag 37): the page has ('1', 'instrument_id', 'u32'), "
        "the struct ('1', 'instrument_id', 'u62')"
    )


def test_a_new_code_must_be_on_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    class Phase(IntEnum):
        OPEN = 1
        HALTED = 2
        AUCTION = 3

    Phase.__module__ = codes.__name__
    monkeypatch.setattr(codes, "Phase", Phase)
    assert list(differences_of_enumerations(PAGES)) == [
        "admin.md: Phase: only the code has (3, 'AUCTION')"
    ]
