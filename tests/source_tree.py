"""The source tree as the tests about the sources see it: where it is, its files, Cython as text.

Tests run where the sources do not shadow the installed packages, so the tree is found through
BRIER_SOURCE; without it, it is the checkout that these tests lie in.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(os.environ.get("BRIER_SOURCE") or Path(__file__).parents[1]).resolve()

PACKAGES = ("exchange", "journal", "protocol", "tools")

CYTHON_SUFFIXES = (".pyx", ".pxd", ".pxi")

# Made by builds, tests and checkers; .gitignore names the same.
_IGNORED = re.compile(r"__pycache__|.*\.egg-info|.*\.so|.*\.c|\..*_cache|\.hypothesis")

_TEXT_OR_COMMENT = re.compile(
    r'(?P<long>"""|\'\'\')(?:\\.|.)*?(?P=long)'
    r'|"(?:\\.|[^"\\\n])*"'
    r"|'(?:\\.|[^'\\\n])*'"
    r"|\#[^\n]*",
    re.DOTALL,
)


def files(root: Path, suffixes: tuple[str, ...], folders: tuple[str, ...]) -> list[Path]:
    """All files below `root`'s `folders` with one of the suffixes, sorted; built ones left out."""
    found = []
    for folder in folders:
        for path in sorted((root / folder).rglob("*")):
            parts = path.relative_to(root).parts
            is_ignored = any(map(_IGNORED.fullmatch, parts))
            if path.suffix in suffixes and path.is_file() and not is_ignored:
                found.append(path)
    return found


def top_level(root: Path) -> list[str]:
    """Names at the top of the tree, sorted; what builds and tests leave there is left out."""
    names = (path.name for path in root.iterdir())
    return sorted(name for name in names if not _IGNORED.fullmatch(name))


def module_of(root: Path, path: Path) -> str:
    """Dotted name of a source file; an included or declaring Cython file belongs to its folder."""
    parts = list(path.relative_to(root).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def without_text(content: str) -> str:
    """Blank out comments and the insides of string literals; positions and lines stay."""

    def blank(match: re.Match[str]) -> str:
        found = match[0]
        if found.startswith("#"):
            return " " * len(found)
        quote = 3 if match["long"] else 1
        inside = re.sub(r"[^\n]", " ", found[quote:-quote])
        return found[:quote] + inside + found[-quote:]

    return _TEXT_OR_COMMENT.sub(blank, content)


def logical_lines(code: str) -> Iterator[tuple[int, str]]:
    """Line number and text of each statement: lines inside brackets are joined to their first."""
    depth = 0
    start = 0
    parts: list[str] = []
    for number, line in enumerate(code.splitlines(), 1):
        if not parts:
            start = number
        parts.append(line)
        depth += sum(map(line.count, "([{")) - sum(map(line.count, ")]}"))
        if depth <= 0 and not line.endswith("\\"):
            yield start, " ".join(part.rstrip("\\") for part in parts)
            parts = []
            depth = 0
    if parts:
        yield start, " ".join(parts)
