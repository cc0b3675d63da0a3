"""The Wireshark dissector, made out of the pages in protocol/spec: `exchange dissector`.

The pages have everything that a dissector must know as tables: layouts of heads, messages with
their fields and types, enumerations, and in its notes which field has values of which enumeration.
Here they are read and written as tables of Lua, in front of the code in `dissector.lua`, which is
the same for every protocol of this kind. A test holds what tshark then decodes against what
`protocol` does with the same bytes.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import protocol

__all__ = ["add_commands", "make_dissector"]

SPEC: Final = Path(protocol.__file__).parent / "spec"
CODE: Final = Path(__file__).with_name("dissector.lua")
PORTS: Final = "9001-9002"
"""Of order entry and of the feed, as `exchange init` writes them."""

HEADS: Final = {
    "frame": ("transport", "Frame header"),
    "packet": ("market_data", "Packet header"),
    "block": ("market_data", "Block head"),
    "selected": ("market_data", "Selected block head"),
}
"""What Lua calls a fixed head, and where it is on the pages."""
HEAD_ENUMERATIONS: Final = {
    ("frame", "kind"): ("Frame kinds", False),
    ("frame", "flags"): ("Frame flags", True),
    ("packet", "kind"): ("Packet kinds", False),
    ("block", "flags"): ("Block flags", True),
    ("selected", "flags"): ("Block flags", True),
}
"""Fields of heads: the table of their values, and whether they are added up."""
RESERVED: Final = {"message", "tag", "channel_number", "packet", "frame", "log"}
"""Names that the code uses for what is around the fields of messages."""


class _Table(NamedTuple):
    page: str
    heading: str
    columns: tuple[str, ...]
    rows: list[dict[str, str]]


class _Field(NamedTuple):
    """A field of a message: `group` is how Lua shows it, `is_set` says of added values."""

    name: str
    group: str
    enumeration: str
    is_set: bool
    is_required: bool


def _tables(page: str) -> Iterator[_Table]:
    """Yield the tables of a page, with the nearest heading above each."""
    heading, lines = "", list[list[str]]()
    for line in [*(SPEC / f"{page}.md").read_text(encoding="utf-8").splitlines(), ""]:
        if line.startswith("|"):
            lines.append([cell.strip() for cell in line.strip("|").split("|")])
            continue
        if lines:
            columns, _, *rows = lines
            yield _Table(
                page, heading, tuple(columns), [dict(zip(columns, r, strict=True)) for r in rows]
            )
            lines = []
        if line.startswith("#"):
            heading = line.lstrip("# ")


def _camel(heading: str) -> str:
    """The name of a table of constants in Lua: `Frame kinds` is FrameKinds."""
    return "".join(word.capitalize() for word in heading.split()) if " " in heading else heading


def _group(kind: str, bounds: str) -> str:
    """How values of a data type are shown."""
    if kind == "array":
        if bounds.startswith("one message"):
            return "message"
        return "rows" if "of [" in bounds else "ids"
    if kind == "integer":
        return "int" if bounds.startswith("-") else "uint"
    return {"string": "text", "binary": "bytes"}[kind]


class _Pages:
    """Everything that the pages say, as far as a dissector needs it."""

    def __init__(self) -> None:
        names = sorted(path.stem for path in SPEC.glob("*.md"))
        self.tables = [table for name in names for table in _tables(name)]
        self.types = {
            row["type"]: _group(row["MessagePack"], row["bounds"])
            for table in self.tables
            if table.columns == ("type", "MessagePack", "bounds")
            for row in table.rows
        }
        self.enumerations = {
            _camel(table.heading): {int(row["value"]): row["name"] for row in table.rows}
            for table in self.tables
            if table.columns == ("value", "name", "meaning")
        }
        self.tags = {
            int(found[2]): (found[1], table)
            for table in self.tables
            if (found := re.fullmatch(r"(\w+) \(tag (\d+)\)", table.heading))
        }
        for page in names:
            text = (SPEC / f"{page}.md").read_text(encoding="utf-8")
            for name, tag in re.findall(r"^### (\w+) \(tag (\d+)\)$", text, re.MULTILINE):
                self.tags.setdefault(int(tag), (name, _Table(page, name, (), [])))

    def table(self, page: str, heading: str) -> _Table:
        """Return the one table of this heading. A page without it is a defect of the page."""
        found = [one for one in self.tables if (one.page, one.heading) == (page, heading)]
        assert len(found) == 1, f"{page}.md has {len(found)} tables {heading}"
        return found[0]

    def fields(self, tag: int) -> list[_Field]:
        """Return the fields of a message in order."""
        return [self._field(row) for row in self.tags[tag][1].rows]

    def _field(self, row: dict[str, str]) -> _Field:
        kind, _, default = row["type"].partition(" = ")
        words = re.findall(r"\b[A-Z]\w+", row["notes"])
        enumeration = next((word for word in words if word in self.enumerations), "")
        is_set = bool(re.search(rf"\b(sum|set) of {enumeration}\b", row["notes"]))
        return _Field(row["name"], self.types[kind], enumeration, is_set, not default)

    def groups(self) -> dict[str, str]:
        """Return for each name of a field how Wireshark holds it; one name has one way."""
        found: dict[str, str] = {}
        for tag in self.tags:
            for field in self.fields(tag):
                known = found.setdefault(field.name, field.group)
                if known != field.group:
                    assert {known, field.group} == {"int", "uint"}, f"{field.name}: two types"
                    found[field.name] = "int"
        assert not found.keys() & RESERVED, f"{found.keys() & RESERVED}: the code has them"
        return found


def _quoted(text: str) -> str:
    assert re.fullmatch(r"[\w.-]*", text), f"{text!r} needs no quoting in Lua"
    return f'"{text}"'


def _lua_messages(pages: _Pages) -> Iterator[str]:
    yield "local MESSAGES = {"
    for tag in sorted(pages.tags):
        name, fields = pages.tags[tag][0], pages.fields(tag)
        required_count = sum(field.is_required for field in fields)
        yield f"  [{tag}] = {{name = {_quoted(name)}, required = {required_count}, fields = {{"
        for field in fields:
            extra = f", enum = {_quoted(field.enumeration)}" if field.enumeration else ""
            extra += ", is_set = true" if field.is_set else ""
            yield f"    {{name = {_quoted(field.name)}, class = {_quoted(field.group)}{extra}}},"
        yield "  }},"
    yield "}"


def _lua_enumerations(pages: _Pages) -> Iterator[str]:
    yield "local ENUMERATIONS = {"
    for name, members in sorted(pages.enumerations.items()):
        listed = ", ".join(f"[{value}] = {_quoted(text)}" for value, text in members.items())
        yield f"  {name} = {{{listed}}},"
    yield "}"


def _lua_layouts(pages: _Pages) -> Iterator[str]:
    yield "local LAYOUTS = {"
    for head, (page, heading) in HEADS.items():
        yield f"  {head} = {{"
        for row in pages.table(page, heading).rows:
            name = row["name"]
            values, is_set = HEAD_ENUMERATIONS.get((head, name), ("", False))
            extra = f", enum = {_quoted(_camel(values))}" if values else ""
            extra += ", is_set = true" if is_set else ""
            place = f"offset = {row['offset']}, size = {row['size']}"
            yield f"    {{name = {_quoted(name)}, {place}{extra}}},"
        yield "  },"
    yield "}"


def _lua_constants(pages: _Pages) -> Iterator[str]:
    meanings = {
        row["name"]: row["meaning"] for row in pages.table("market_data", "Packet header").rows
    }
    frame_kinds = {name: value for value, name in pages.enumerations["FrameKinds"].items()}
    packet_kinds = {name: value for value, name in pages.enumerations["PacketKinds"].items()}
    hello = next(tag for tag, (name, _) in pages.tags.items() if name == "Hello")
    yield f"local PACKET_MAGIC = {meanings['magic'].split()[0]}"
    yield f"local PACKET_VERSION = {meanings['version']}"
    yield f"local PACKET_SELECTED = {packet_kinds['SELECTED']}"
    for name in ("SESSION", "PACKET", "LOG"):
        yield f"local FRAME_{name} = {frame_kinds[name]}"
    yield f"local HELLO_TAG = {hello}"
    yield f"local PORTS = {_quoted(PORTS)}"
    groups = ", ".join(
        f"{name} = {_quoted(group)}" for name, group in sorted(pages.groups().items())
    )
    yield f"local CLASSES = {{{groups}}}"


def make_dissector() -> str:
    """Return the text of the dissector, a file of Lua."""
    pages = _Pages()
    parts = (_lua_constants, _lua_layouts, _lua_enumerations, _lua_messages)
    tables = "\n".join(line for part in parts for line in part(pages))
    code = CODE.read_text(encoding="utf-8")
    assert code.count("--@TABLES@\n") == 1, "the code has one place for the tables"
    return code.replace("--@TABLES@\n", f"{tables}\n")


def run_dissector(arguments: argparse.Namespace) -> int:
    """Write the dissector to a file or to stdout."""
    text = make_dissector()
    if arguments.output is None:
        sys.stdout.write(text)
    else:
        arguments.output.write_text(text, encoding="utf-8")
        print(f"{arguments.output}: load it with wireshark -X lua_script:{arguments.output}")
    return 0


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `dissector` to the command line."""
    parser = commands.add_parser(
        "dissector",
        help="write a Wireshark dissector",
        description="Write a dissector in Lua for Wireshark and tshark, made from the pages of the "
        "protocol: frames of order entry and of the feed, and packets of the market data.",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: stdout")
    parser.set_defaults(run=run_dissector)
