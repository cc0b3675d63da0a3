"""Holds the house rules that a machine can check: sizes, words, paths, and documents that are true.

A finding is printed as file:line: reason. Exceptions are listed below by file and rule with their
reason, and one that is no longer needed fails too.
"""

import ast
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.source_tree import (
    CYTHON_SUFFIXES,
    PACKAGES,
    SOURCE,
    files,
    logical_lines,
    top_level,
    without_text,
)

pytestmark = pytest.mark.once

COLUMNS_MAX = 100
FUNCTION_LINES_MAX = 60
CYTHON_FUNCTION_LINES_MAX = 75
"""C variables are declared on lines of their own, which says nothing about what a function does."""
MODULE_LINES_MAX = 600
FILE_SIZE_MAX = 256 * 1024
"""Bytes. Data that is larger is made by the tests or found through BRIER_DATA."""

TOP_LEVEL = (
    *(".ci", ".gitignore", "LICENSE", "README.md"),
    *("exchange", "journal", "protocol", "pyproject.toml", "systemd", "tests", "tools"),
)
TOP_LEVEL_LOCAL = (".git", ".venv", "build", "dist")
"""Made by git, by a developer or by a build; .gitignore keeps them out."""

CODE_SUFFIXES = (".py", ".pyi", *CYTHON_SUFFIXES, ".h")
TEXT_SUFFIXES = (*CODE_SUFFIXES, ".lua", ".md", ".toml", ".txt", ".yml", ".json", ".service", "")

BANNED = {
    r"\b(TODO|FIXME|XXX|HACK)\b": "unfinished work is finished or is an issue",
    r"\b[Cc]ancelled\b(?!\()|\b[Cc]ancelling\b": "US spelling: canceled, canceling",
    r"\b[Kk]ill switch\b": "say what it does: cancels everything of a participant and blocks it",
    r"\b([Mm]aster|[Ss]lave)\b": "primary, standby",
    r"\b([Ww]hite|[Bb]lack)list": "allowed, refused",
    r"(?<![\w.$}])/(home|root|work|Users|tmp)/": "no path of a machine: use tmp_path or BRIER_DATA",
}

SLEEP = r"\b(?:time|asyncio)\.sleep\((?!0\))"
REAL_SLEEP = r"\btime\.sleep\("


class Finding(NamedTuple):
    file: str
    line: int
    rule: str
    reason: str


EXCEPTIONS: dict[tuple[str, str], str] = {
    ("tests/test_tidy.py", "words"): "the list of banned words itself",
    ("tests/integration/hosts.py", "words"): "ip(8) wants its word for a port of a bridge",
}
"""(file, rule) to the reason why the rule does not hold there."""


def text_files(root: Path) -> list[Path]:
    below = files(root, TEXT_SUFFIXES, (".ci", *PACKAGES, "systemd", "tests"))
    return [root / "README.md", root / "pyproject.toml", *below]


def check_columns(path: Path, content: str) -> Iterator[tuple[int, str]]:
    if path.suffix in (".md", ".txt", ".json"):
        return  # Tables, links and data are as long as they are.
    for number, line in enumerate(content.splitlines(), 1):
        if len(line) > COLUMNS_MAX:
            yield number, f"{len(line)} columns, at most {COLUMNS_MAX}"


def check_words(_path: Path, content: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(content.splitlines(), 1):
        for pattern, reason in BANNED.items():
            found = re.search(pattern, line)
            if found:
                yield number, f"{found[0]!r}: {reason}"


def check_size(path: Path, content: str) -> Iterator[tuple[int, str]]:
    line_count = content.count("\n")
    if path.suffix in CODE_SUFFIXES and line_count > MODULE_LINES_MAX:
        yield 1, f"{line_count} lines, at most {MODULE_LINES_MAX}: a module has one subject"


def check_functions(path: Path, content: str) -> Iterator[tuple[int, str]]:
    if path.suffix == ".py":
        for node in ast.walk(ast.parse(content)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                count = (node.end_lineno or 0) - node.lineno + 1
                if count > FUNCTION_LINES_MAX:
                    yield node.lineno, f"{node.name}: {count} lines, at most {FUNCTION_LINES_MAX}"
    elif path.suffix in CYTHON_SUFFIXES:
        for number, name, count in cython_functions(content):
            if count > CYTHON_FUNCTION_LINES_MAX:
                yield number, f"{name}: {count} lines, at most {CYTHON_FUNCTION_LINES_MAX}"


def cython_functions(content: str) -> Iterator[tuple[int, str, int]]:
    """Line, name and number of lines of each function: it ends where the indentation does."""
    code = without_text(content)
    lines = code.splitlines()
    for number, line in logical_lines(code):
        found = re.match(r"(\s*)(?:def|cdef|cpdef)\s[^=]*?(\w+)\s*\(.*:\s*$", line)
        if not found:
            continue
        indent = len(found[1])
        last = number
        is_body = False
        for later in range(number, len(lines) + 1):
            text = lines[later - 1]
            is_deeper = len(text) - len(text.lstrip()) > indent
            if is_body and text.strip() and not is_deeper:
                break
            is_body = is_body or text.rstrip().endswith(":")
            last = later if text.strip() else last
        yield number, found[2], last - number + 1


def check_opening(path: Path, content: str) -> Iterator[tuple[int, str]]:
    if path.suffix == ".py":
        is_opened = ast.get_docstring(ast.parse(content)) is not None
    elif path.suffix in CODE_SUFFIXES:
        without_directives = re.sub(r"\A(?:# (?:cython|distutils):.*\n)+", "", content)
        is_opened = without_directives.lstrip().startswith(('"""', "#", "/*", "//"))
        is_opened = is_opened and not without_directives.startswith(("#ifndef", "#include"))
    else:
        return
    if not is_opened:
        yield 1, "a module opens with the paragraph that says its strategy"


def check_silenced(_path: Path, content: str) -> Iterator[tuple[int, str]]:
    pattern = r"#\s*(?:noqa|type:\s*ignore)(?::\s*[A-Z0-9, ]+|\[[\w, -]+\])?(.*)"
    for number, line in enumerate(content.splitlines(), 1):
        found = re.search(pattern, line)
        if found and not found[1].strip():
            yield number, "a silenced check gives its reason on the line"


def check_sleeps(path: Path, content: str) -> Iterator[tuple[int, str]]:
    parts = path.relative_to(SOURCE).parts
    if "tests" in parts and path.suffix == ".py":
        # Processes of the simulator sleep in virtual time.
        pattern = REAL_SLEEP if "simulation" in parts else SLEEP
        for number, line in enumerate(without_text(content).splitlines(), 1):
            if re.search(pattern, line):
                yield number, "tests do not sleep: wait for the thing itself"


RULES: dict[str, Callable[[Path, str], Iterator[tuple[int, str]]]] = {
    "columns": check_columns,
    "functions": check_functions,
    "opening": check_opening,
    "silenced": check_silenced,
    "size": check_size,
    "sleeps": check_sleeps,
    "words": check_words,
}


def findings(root: Path) -> list[Finding]:
    found = []
    for path in text_files(root):
        content = path.read_text(encoding="utf-8")
        name = path.relative_to(root).as_posix()
        for rule, check in RULES.items():
            found += [Finding(name, line, rule, reason) for line, reason in check(path, content)]
    return found


def test_house_rules() -> None:
    found = findings(SOURCE)
    unexpected = [
        f"{one.file}:{one.line}: {one.rule}: {one.reason}"
        for one in found
        if (one.file, one.rule) not in EXCEPTIONS
    ]
    assert not unexpected, "\n" + "\n".join(unexpected)
    stale = set(EXCEPTIONS) - {(one.file, one.rule) for one in found}
    assert not stale, f"exceptions that nothing needs any more: {sorted(stale)}"


BAD_PYTHON = "import os\n\n\ndef f() -> None:\n" + "    os.sync()\n" * 60
BAD_CYTHON = (
    "cdef int f(int a,\n           int b) except -1:\n" + "    a += 1\n" * 74 + "\n\nX = 1\n"
)


@pytest.mark.parametrize(
    ("check", "name", "content", "expected"),
    [
        (check_columns, "a.py", "x" * 100 + "\n" + "x" * 101, [2]),
        (check_words, "a.py", "# TO" + "DO\nx = '/ho" + "me/me'\n# is cancel" + "led\n", [1, 2, 3]),
        (check_words, "a.py", "task.cancelled() or asyncio.CancelledError\n", []),
        (check_size, "a.pyx", "#\n" * 601, [1]),
        (check_functions, "a.py", BAD_PYTHON, [4]),
        (check_functions, "a.py", BAD_PYTHON.replace("60", "59")[:-14], []),
        (check_functions, "a.pyx", BAD_CYTHON, [1]),
        (check_functions, "a.pyx", BAD_CYTHON.replace("    a += 1\n", "", 1), []),
        (check_opening, "a.py", "import os\n", [1]),
        (check_opening, "a.pxi", "# Strategy.\n", []),
        (check_opening, "a.pyx", "# cython: language_level=3\nimport os\n", [1]),
        (check_opening, "a.h", "#ifndef A\n", [1]),
        (check_silenced, "a.py", "x = 1  # noqa" + ": E501\n", [1]),
        (check_silenced, "a.py", "x = 1  # noqa" + ": E501 (a URL cannot be split)\n", []),
    ],
)
def test_each_rule_finds_what_it_is_for(
    check: Callable[[Path, str], Iterator[tuple[int, str]]],
    name: str,
    content: str,
    expected: list[int],
) -> None:
    assert [line for line, _ in check(Path(name), content)] == expected


def test_sleeps_are_found() -> None:
    path = SOURCE / "tests" / "a.py"
    content = "asyncio.sleep(0)\ntime.sleep(1)\nworld.sleep(2)\n"
    assert [line for line, _ in check_sleeps(path, content)] == [2]
    content = "await asyncio.sleep(1)\ntime.sleep(1)\n"
    assert [line for line, _ in check_sleeps(path, content)] == [1, 2]
    path = SOURCE / "tests" / "simulation" / "a.py"
    assert [line for line, _ in check_sleeps(path, content)] == [2]


def test_top_level() -> None:
    names = [name for name in top_level(SOURCE) if name not in TOP_LEVEL_LOCAL]
    assert names == sorted(TOP_LEVEL)


def test_no_large_files() -> None:
    folders = (".ci", *PACKAGES, "systemd", "tests")
    suffixes = {path.suffix for folder in folders for path in (SOURCE / folder).rglob("*.*")}
    paths = files(SOURCE, tuple(suffixes | {""}), folders)
    large = [str(path) for path in paths if path.stat().st_size > FILE_SIZE_MAX]
    assert not large


def documents() -> list[Path]:
    return [SOURCE / "README.md", *files(SOURCE, (".md",), (*PACKAGES, "systemd", "tests"))]


def test_files_that_documents_name_exist() -> None:
    """Names in backticks or links that look like files: from the root or beside the page."""
    missing = []
    for page in documents():
        names = re.findall(r"[`(]([\w./-]+\.(?:md|py|pyx|pxi|pxd|h))[`)]", page.read_text())
        for name in names:
            if not any((base / name).is_file() for base in (SOURCE, page.parent)):
                missing.append(f"{page.relative_to(SOURCE)}: {name}")
    assert not missing, "\n" + "\n".join(missing)


def test_changelog_begins_with_the_policy_and_has_this_version() -> None:
    version = tomllib.loads((SOURCE / "pyproject.toml").read_text())["project"]["version"]
    headings = re.findall(
        r"^## (.+)$", (SOURCE / "exchange/CHANGELOG.md").read_text(), re.MULTILINE
    )
    assert headings[0] == "Compatibility"
    assert headings[1].split()[0] == version
