"""Says which build runs, and that it is the one that was meant: installed, whole, up to date.

`.ci/run` names the build in BRIER_BUILD. Without it (a developer's editable install, or modules
built in place) it is enough that everything comes from one place.
"""

import ast
import importlib.metadata
import os
import re
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

import exchange.core.hot
import exchange.datagrams
import exchange.node.ingress
import journal
import journal.chain
import journal.streams
import protocol.codec
import protocol.packer
import tools
import tools.drain
import tools.generator
from tests.source_tree import CYTHON_SUFFIXES, PACKAGES, SOURCE, files, without_text

INSTALLED = Path(sysconfig.get_path("platlib"))
EXPECTED = os.environ.get("BRIER_BUILD")
COMPILED = (
    exchange.core.hot,
    exchange.datagrams,
    exchange.node.ingress,
    protocol.packer,
    journal.chain,
    journal.streams,
    protocol.codec,
    tools.drain,
    tools.generator,
)
PROJECT = tomllib.loads((SOURCE / "pyproject.toml").read_text())
EXTENSIONS = PROJECT["tool"]["setuptools"]["ext-modules"]


def test_this_build_is_the_one_that_was_meant() -> None:
    expected = [EXPECTED] if EXPECTED else ["released", "checked"]
    assert exchange.core.hot.BUILD in expected


def test_everything_comes_from_one_place() -> None:
    home = INSTALLED if EXPECTED else Path(str(exchange.__file__)).parents[1]
    for module in (exchange, journal, protocol, tools, *COMPILED):
        assert Path(str(module.__file__)).is_relative_to(home), f"{module.__file__} hides {home}"


def test_compiled_modules_are_those_of_pyproject() -> None:
    assert sorted(module.__name__ for module in COMPILED) == sorted(e["name"] for e in EXTENSIONS)
    for module in COMPILED:
        assert str(module.__file__).endswith(".so")


def test_wheel_holds_the_packages_and_nothing_else() -> None:
    if not EXPECTED:
        return  # Only an installed wheel has a list of files that says something.
    listed = [str(path) for path in importlib.metadata.files("brier") or ()]
    names = {name.split("/")[0] for name in listed if not name.startswith("..")}
    assert {name for name in names if not name.endswith(".dist-info")} == set(PACKAGES)
    suffixes = (".py", ".pyi", ".pxd", ".h")
    for path in files(SOURCE, suffixes, PACKAGES):
        assert path.relative_to(SOURCE).as_posix() in listed
    for name in ("exchange/py.typed", "protocol/py.typed", "protocol/spec/order_entry.md"):
        assert name in listed
    assert not [name for name in listed if name.endswith((".pyx", ".pxi", ".c"))]


def used_by(path: Path) -> set[Path]:
    """Files of ours that a Cython file includes or cimports, and what those use in turn."""
    found: set[Path] = set()
    waiting = [path]
    while waiting:
        current = waiting.pop()
        content = current.read_text()
        names = re.findall(r"^include [\"'](.+)[\"']", content, re.MULTILINE)
        names += re.findall(r"^cdef extern from [\"']([\w/]+\.h)[\"']", content, re.MULTILINE)
        uses = [base / name for name in names for base in (current.parent, SOURCE)]
        for module in re.findall(
            r"^(?:from )?c?(?:import )?([\w.]+) cimport", without_text(content), re.M
        ):
            uses.append(SOURCE / (module.replace(".", "/") + ".pxd"))
        uses.append(current.with_suffix(".pxd"))
        for use in uses:
            if use.is_file() and use not in found and use != path:
                found.add(use)
                waiting.append(use)
    return found


@pytest.mark.parametrize("extension", EXTENSIONS, ids=lambda e: e["name"])
def test_a_change_rebuilds_what_uses_it(extension: dict[str, list[str]]) -> None:
    (source,) = extension["sources"]
    used = {path.relative_to(SOURCE).as_posix() for path in used_by(SOURCE / source)}
    assert used == set(extension["depends"])


def test_every_part_belongs_to_a_compiled_module() -> None:
    named = {name for e in EXTENSIONS for name in (*e["sources"], *e["depends"])}
    parts = files(SOURCE, CYTHON_SUFFIXES, PACKAGES)
    assert {path.relative_to(SOURCE).as_posix() for path in parts} <= named


def imported_roots(folders: tuple[str, ...]) -> set[str]:
    """First names of everything that the Python files of the folders import."""
    roots = set()
    for path in files(SOURCE, (".py",), folders):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                roots |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                roots.add(node.module.partition(".")[0])
    return roots


def test_dependencies_are_what_is_imported() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [*PROJECT["project"]["dependencies"], *extras["parquet"]]
    declared = {re.split(r"[><=]", one)[0] for one in wanted}
    assert imported_roots(PACKAGES) - sys.stdlib_module_names - {*PACKAGES} == declared
