"""Holds the import rule and the purity of `protocol` and `exchange.core`, cimports included.

Python is read by its syntax tree, Cython line by line with comments and strings blanked out. A
violation is printed as file:line: reason. The checks are tried on a tree with planted violations.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

from tests.source_tree import (
    CYTHON_SUFFIXES,
    PACKAGES,
    SOURCE,
    files,
    logical_lines,
    module_of,
    without_text,
)

SUPPORT = (
    *("exchange.clock", "exchange.config", "exchange.logs", "exchange.metrics"),
    *("exchange.datagrams", "exchange.multicast", "exchange.process"),
)

MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "protocol": (),
    "journal": (),
    "exchange": (),
    **dict.fromkeys(SUPPORT, ()),
    "exchange.multicast": ("exchange.config", "exchange.datagrams"),
    "exchange.position": ("exchange.logs", "journal"),
    "exchange.core": ("protocol",),
    "exchange.client": ("protocol", *SUPPORT),
    "exchange.node": ("exchange.core", "journal", "protocol", *SUPPORT),
    "exchange.feed": ("exchange.position", "journal", "protocol", *SUPPORT),
    "exchange.replica": ("exchange.core", "exchange.position", "journal", "protocol", *SUPPORT),
    "exchange.gateway": ("exchange.client", "protocol", *SUPPORT),
    "exchange.clearing": ("journal", "protocol", *SUPPORT),
    "tools": ("exchange.client", "exchange.core", "journal", "protocol", *SUPPORT),
    # The composition root; everything but `python -m exchange` stays away from it.
    "exchange.cli": ("exchange", "journal", "protocol", "tools"),
    "exchange.__main__": ("exchange.cli",),
}
"""Owner (a package or module, the longest prefix decides) to what it may import besides itself."""

WHOLE_PREFIX = {("exchange.cli", "exchange")}
"""Pairs where the permission covers everything below the name, not only that owner."""

PURE = ("exchange.core", "protocol")

PURE_MAY_IMPORT = (
    *("__future__", "bisect", "collections", "dataclasses", "enum", "functools", "hashlib"),
    *("itertools", "msgspec", "operator", "re", "struct", "types", "typing", "zlib"),
    # Cython's declarations of C: memory and integers, nothing that reads the world.
    *("cpython.buffer", "cpython.bytes", "cpython.mem", "cpython.ref", "cpython.unicode"),
    *("cython", "libc.limits", "libc.stdint", "libc.stdlib", "libc.string"),
)
"""What is not ours and pure code may import. Anything else needs a place here, and a reason."""

PURE_HEADERS = ("<endian.h>",)
"""Headers of C that pure code may use: byte order."""

IMPURE_NAMES = {
    **dict.fromkeys(("float", "complex", "double"), "floats are not exact"),
    **dict.fromkeys(("hash", "id"), "differs from process to process"),
    **dict.fromkeys(("open", "input", "print", "breakpoint"), "does I/O"),
    **dict.fromkeys(("eval", "exec", "compile", "__import__", "import_module"), "hides code"),
    **dict.fromkeys(("rand", "srand", "random"), "random"),
    **dict.fromkeys(("getenv", "system"), "reads the environment"),
    **dict.fromkeys(("set", "frozenset"), "its order is not defined; use a dict or a tuple"),
}

DYNAMIC_IMPORTS = ("__import__", "import_module")

MESSAGE_MODULES = (
    "protocol.admin",
    "protocol.codec",
    "protocol.order_entry",
    "protocol.records",
    "protocol.transport",
)

CODEC_FACING = {
    "engine.py": "the facade: takes payloads, gives records",
    "hot.pxd": "declares the entry for decoded commands",
    "hot.pyx": "cimports the codec for the parts below",
    "market_data.pxi": "encodes market data",
    "orders.pxi": "applies NewOrder, CancelOrder and ReplaceOrder",
    "reference.py": "applies rare messages",
    "reports.pxi": "encodes reports",
    "ring.pxi": "dispatches by tag",
}
"""The files of exchange.core that know messages; the others know integers."""

Import: TypeAlias = tuple[int, str]
Finding: TypeAlias = tuple[int, str]


def python_imports(tree: ast.Module, module: str, is_package: bool) -> Iterator[Import]:
    """Line and dotted target of every import; `from a import b` counts as a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                kept = len(parts) - node.level + is_package
                base = ".".join([*parts[:kept], *filter(None, [node.module])])
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


def cython_imports(content: str) -> Iterator[Import]:
    """Line and target of every import and cimport of a Cython file."""
    for number, line in logical_lines(without_text(content)):
        found = re.match(r"\s*from\s+([\w.]+)\s+c?import\s+(.+)", line)
        if found:
            for name in re.split(r"[\s,()]+", re.sub(r"\bas\s+\w+", "", found[2])):
                if name:
                    yield number, f"{found[1]}.{name}"
        found = re.match(r"\s*c?import\s+(.+)", line)
        if found:
            for name in found[1].split(","):
                yield number, name.split()[0]


def cython_files_named(content: str) -> Iterator[tuple[int, str, str]]:
    """Line, statement ("include" or "extern") and file name that a Cython file names."""
    lines = content.splitlines()
    for number, line in enumerate(without_text(content).splitlines(), 1):
        found = re.match(r"\s*(?:cdef\s+)?(include|extern)\s", line)
        if found:
            name = re.search(r"[\"'](.+?)[\"']", lines[number - 1])
            yield number, found[1], name[1] if name else "*"


def owner_of(target: str) -> str | None:
    """The longest declared prefix of a dotted name; None where it is not ours or not declared."""
    parts = target.split(".")
    for length in range(len(parts), 0, -1):
        prefix = ".".join(parts[:length])
        if prefix in MAY_IMPORT:
            return prefix
    return None


def import_violation(owner: str, target: str) -> str | None:
    """Why `owner` may not import `target`, if so."""
    other = owner_of(target)
    if other is None or other == owner or other in MAY_IMPORT[owner]:
        return None
    for prefix in MAY_IMPORT[owner]:
        if (owner, prefix) in WHOLE_PREFIX and target.startswith(prefix + "."):
            return None
    return f"{owner} may not import {other}"


def purity_violation(target: str) -> str | None:
    """Why pure code may not import `target`, if so. What is ours is the import rule's matter."""
    if f"{target}.".startswith(tuple(f"{name}." for name in (*PACKAGES, *PURE_MAY_IMPORT))):
        return None
    return f"pure code may not import {target}"


def message_violation(root: Path, path: Path, target: str) -> str | None:
    """Why a file of the core that knows only integers may not import `target`, if so."""
    if path.parent != root / "exchange" / "core" or path.name in CODEC_FACING:
        return None
    if target.startswith(MESSAGE_MODULES):
        return f"{path.name} knows integers, not messages: {target}"
    return None


def is_impure_use(node: ast.Name) -> bool:
    """A field may be called `id`; what counts is that the name is read."""
    return node.id in IMPURE_NAMES and isinstance(node.ctx, ast.Load)


def python_findings(tree: ast.Module, is_pure: bool) -> Iterator[Finding]:
    """What a Python file may not contain, imports apart."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in DYNAMIC_IMPORTS:
            yield node.lineno, f"{node.id} hides what is imported"
        elif isinstance(node, ast.Attribute) and node.attr in DYNAMIC_IMPORTS:
            yield node.lineno, f"{node.attr} hides what is imported"
        if not is_pure:
            continue
        if isinstance(node, ast.Name) and is_impure_use(node):
            yield node.lineno, f"{node.id}: {IMPURE_NAMES[node.id]}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, float | complex):
            yield node.lineno, f"{node.value}: floats are not exact"
        elif isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Div):
            yield node.lineno, "/ gives a float; // names its rounding"
        elif isinstance(node, ast.Set | ast.SetComp):
            yield node.lineno, "set: its order is not defined; use a dict or a tuple"
        elif isinstance(node, ast.AsyncFunctionDef | ast.Await):
            yield node.lineno, "pure code does not wait"


def cython_findings(content: str) -> Iterator[Finding]:
    """What a pure Cython file may not contain, imports apart."""
    code = without_text(content)
    for number, line in enumerate(code.splitlines(), 1):
        for found in re.finditer(r"(?<![\w.])([A-Za-z_]+)\b(?!\s*=[^=])", line):
            name = found[1]
            if name in ("float", "double") or (
                name in IMPURE_NAMES and line[found.end() :].lstrip().startswith("(")
            ):
                yield number, f"{name}: {IMPURE_NAMES[name]}"
        # A lone slash between parentheses' commas marks positional-only arguments.
        for _ in re.finditer(r"(?<!/)/(?!/)(?!\s*[,)])", line):
            yield number, "/ gives a float; // names its rounding"
        if re.search(r"(?<![\w.])\d+\.\d|\d[eE]-?\d+(?![\w])", re.sub(r"0[xX]\w+", "", line)):
            yield number, "floats are not exact"
        if re.search(r"\basync\b|\bawait\b|\bprange\b", line):
            yield number, "pure code does not wait and has one thread"
    for found in re.finditer(r"\{([^{}:]+)\}", code):
        if found[1].strip():
            yield (
                code.count("\n", 0, found.start()) + 1,
                "set: its order is not defined; use a dict or a tuple",
            )


def declared_names(root: Path) -> frozenset[str]:
    """Names that the codec declares: a file that knows no message uses none of them."""
    path = root / "protocol" / "codec.pxd"
    if not path.exists():
        return frozenset()
    code = without_text(path.read_text())
    names = re.findall(r"^cdef (?:struct|union) (\w+)", code, re.MULTILINE)
    names += re.findall(r"^\s+([A-Z][A-Z_]+)\s*=", code, re.MULTILINE)
    return frozenset(names)


def check_python(root: Path, path: Path, owner: str) -> Iterator[Finding]:
    tree = ast.parse(path.read_text(), str(path))
    is_pure = owner in PURE
    module = module_of(root, path)
    for number, target in python_imports(tree, module, path.name == "__init__.py"):
        yield from ((number, reason) for reason in import_reasons(root, path, owner, target))
    yield from python_findings(tree, is_pure)


def check_cython(root: Path, path: Path, owner: str) -> Iterator[Finding]:
    content = path.read_text()
    for number, target in cython_imports(content):
        yield from ((number, reason) for reason in import_reasons(root, path, owner, target))
    for number, statement, name in cython_files_named(content):
        other = next((p for p in (path.parent / name, root / name) if p.is_file()), None)
        if name in PURE_HEADERS or (owner not in PURE and name.startswith("<")):
            continue
        if other is None:
            yield number, f"{statement} of {name}, which is not a file of ours"
        else:
            reason = import_violation(owner, module_of(root, other.resolve()))
            if reason:
                yield number, reason
    if owner in PURE:
        yield from cython_findings(content)
    if owner == "exchange.core" and path.name not in CODEC_FACING:
        declared = declared_names(root)
        for number, line in enumerate(without_text(content).splitlines(), 1):
            for word in re.findall(r"\w+", line):
                if word in declared:
                    yield number, f"{path.name} knows integers, not messages: {word}"


def import_reasons(root: Path, path: Path, owner: str, target: str) -> Iterator[str]:
    """Every reason against one import."""
    reasons = [import_violation(owner, target), message_violation(root, path, target)]
    if owner in PURE:
        reasons.append(purity_violation(target))
    yield from filter(None, reasons)


def violations(root: Path) -> list[str]:
    """All violations of a tree as file:line: reason, in the order of files and lines."""
    root = root.resolve()
    found = []
    for path in files(root, (".py", *CYTHON_SUFFIXES), PACKAGES):
        name = path.relative_to(root).as_posix()
        owner = owner_of(module_of(root, path))
        if owner is None or (owner == "exchange" and name != "exchange/__init__.py"):
            found.append(f"{name}:1: no row of the import rule covers this module")
            continue
        check = check_python if path.suffix == ".py" else check_cython
        found += [f"{name}:{line}: {reason}" for line, reason in sorted(check(root, path, owner))]
    return found


def test_the_tree_follows_the_rule() -> None:
    assert files(SOURCE, (".pyx",), PACKAGES), f"no compiled module below {SOURCE}: wrong tree"
    found = violations(SOURCE)
    assert not found, "\n" + "\n".join(found)


def test_codec_facing_files_exist() -> None:
    missing = [name for name in CODEC_FACING if not (SOURCE / "exchange/core" / name).is_file()]
    assert not missing, f"stale in CODEC_FACING: {missing}"


PLANTED = {
    "journal/log.py": "import os\nfrom protocol import base\n",
    "protocol/codec.pxd": "cdef struct NewOrder:\n    int price\ncdef enum:\n    NEW_ORDER = 10\n",
    "protocol/checked.h": "",
    "protocol/codec.pyx": (
        '"""float / time: text and comments do not count"""\n'
        "from libc.time cimport time  # import os\n"
        "from journal.log import (\n    Journal)\n"
        'cdef extern from "sys/socket.h":\n    pass\n'
        "cdef double x = 1 / y\n"
        "def f(self, a, /, b): return a // b\n"
    ),
    "exchange/clock.py": "import time\nimport exchange.logs\n",
    "exchange/logs.py": "from exchange.core import engine\n",
    "exchange/other.py": "",
    "exchange/core/engine.py": "from protocol import order_entry\nfrom . import book\n",
    "exchange/core/book.py": (
        "import time\nfrom exchange.node import sequencer\nx = 0.5 / 2\n"
        "y = [hash(z) for z in {1, 2}]\nfrom protocol.order_entry import NewOrder\n"
        "from protocol.base import NUMBER_MAX\nfrom .. import clock\n"
    ),
    "exchange/core/tables.pxi": (
        "cdef int f(NewOrder* m):\n    return NEW_ORDER\n"
        "z = {1: 2}\nfor i in {1, 2}: pass\nw = set(q)\nfloor = hash_of(3) + self.id(2)\n"
        'include "../node/part.pxi"\ninclude "gone.pxi"\n'
    ),
    "exchange/core/hot.pyx": (
        "from protocol.codec cimport NewOrder\n"
        'cdef extern from "protocol/checked.h":\n    pass\n'
        "cimport exchange.node.ingress, libc.math\nx = 1.5\n"
    ),
    "exchange/node/part.pxi": "",
    "exchange/node/ingress.pyx": (
        "from exchange.core.hot cimport Hot\nfrom libc.time cimport time\ncimport exchange.client\n"
    ),
    "exchange/gateway/fix.py": "from exchange import client, core\n",
    "exchange/cli.py": "from exchange.node import service\nfrom tools import demo\n",
    "exchange/node/service.py": "import importlib\nimportlib.import_module(name)\n",
    "tools/demo.py": "from exchange import cli\nfrom exchange.node import service\n",
}

PLANTED_FINDINGS = """\
exchange/clock.py:2: exchange.clock may not import exchange.logs
exchange/core/book.py:1: pure code may not import time
exchange/core/book.py:2: exchange.core may not import exchange.node
exchange/core/book.py:3: / gives a float; // names its rounding
exchange/core/book.py:3: 0.5: floats are not exact
exchange/core/book.py:4: hash: differs from process to process
exchange/core/book.py:4: set: its order is not defined; use a dict or a tuple
exchange/core/book.py:5: book.py knows integers, not messages: protocol.order_entry.NewOrder
exchange/core/book.py:7: exchange.core may not import exchange.clock
exchange/core/hot.pyx:4: exchange.core may not import exchange.node
exchange/core/hot.pyx:4: pure code may not import libc.math
exchange/core/hot.pyx:5: floats are not exact
exchange/core/tables.pxi:1: tables.pxi knows integers, not messages: NewOrder
exchange/core/tables.pxi:2: tables.pxi knows integers, not messages: NEW_ORDER
exchange/core/tables.pxi:4: set: its order is not defined; use a dict or a tuple
exchange/core/tables.pxi:5: set: its order is not defined; use a dict or a tuple
exchange/core/tables.pxi:7: exchange.core may not import exchange.node
exchange/core/tables.pxi:8: include of gone.pxi, which is not a file of ours
exchange/gateway/fix.py:1: exchange.gateway may not import exchange.core
exchange/logs.py:1: exchange.logs may not import exchange.core
exchange/node/ingress.pyx:3: exchange.node may not import exchange.client
exchange/node/service.py:2: import_module hides what is imported
exchange/other.py:1: no row of the import rule covers this module
journal/log.py:2: journal may not import protocol
protocol/codec.pyx:2: pure code may not import libc.time.time
protocol/codec.pyx:3: protocol may not import journal
protocol/codec.pyx:5: extern of sys/socket.h, which is not a file of ours
protocol/codec.pyx:7: / gives a float; // names its rounding
protocol/codec.pyx:7: double: floats are not exact
tools/demo.py:1: tools may not import exchange.cli
tools/demo.py:2: tools may not import exchange.node
"""


def test_planted_violations_are_found(tmp_path: Path) -> None:
    for name, content in PLANTED.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert "".join(f"{line}\n" for line in violations(tmp_path)) == PLANTED_FINDINGS
