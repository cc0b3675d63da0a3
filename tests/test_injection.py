"""What reaches for the world by itself: time, chance, threads, sockets, files, signals.

A simulator runs everything else unchanged. So each file that does is named here with what it uses
and why it may; a file that stops doing so must leave the table.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.source_tree import SOURCE, files

WORLD = (
    *("concurrent", "fcntl", "multiprocessing", "os", "queue", "random", "secrets", "select"),
    *("selectors", "signal", "socket", "subprocess", "tempfile", "threading", "time", "uuid"),
    "uvloop",
)
"""Modules of others."""

REAL = (
    *("FolderStorage", "MulticastSender", "SystemClock", "connect_position", "notify"),
    *("open_lines", "raise_open_files", "run_in_thread", "say"),
)
"""What of ours stands for the world where nothing else was given."""

FILES = ("iterdir", "open()", "read_bytes", "read_text", "unlink", "write_bytes", "write_text")
"""Called files here: what a path does to them, and `open` of the language."""

NEW_VENUE = "makes a venue's folder, before there is a venue"
PROCESS = "the process around the program; a simulator has its own"
DEFAULTS = "the surroundings of a real process"
OPTIONS = "constants for what a simulated socket does not have, or ignores"

ADAPTERS = {
    "exchange/cli.py": ("os", PROCESS),
    "exchange/client/blocking.py": ("concurrent threading", "the asyncio client in a thread"),
    "exchange/client/client.py": ("time", "how long a request took, for show"),
    "exchange/client/keys.py": ("files os", "key files, read before anything begins"),
    "exchange/client/link.py": ("socket", OPTIONS),
    "exchange/client/sockets.py": ("socket", "real multicast"),
    "exchange/client/surroundings.py": ("SystemClock os random", DEFAULTS),
    "exchange/client/tickets.py": ("time", "how long a request took, for show"),
    "exchange/clock.py": ("time", "the clock"),
    "exchange/config.py": ("files", "the settings, read before anything begins"),
    "exchange/feed/connection.py": ("socket", OPTIONS),
    "exchange/feed/service.py": (
        "FolderStorage SystemClock connect_position notify open_lines raise_open_files say signal "
        "uvloop",
        PROCESS,
    ),
    "exchange/feed/surroundings.py": ("concurrent os run_in_thread", DEFAULTS),
    "exchange/feed/upstream.py": ("socket", OPTIONS),
    "exchange/logs.py": ("time", "a default"),
    "exchange/multicast.py": ("socket", "real multicast"),
    "exchange/node/commit.py": ("queue threading", "the worker thread of commits"),
    "exchange/node/position.py": ("files os socket", "binds the socket's path; options"),
    "exchange/node/recovery.py": ("run_in_thread secrets", DEFAULTS),
    "exchange/node/service.py": (
        "FolderStorage SystemClock files notify open_lines raise_open_files say signal uvloop",
        PROCESS,
    ),
    "exchange/node/setup.py": ("FolderStorage SystemClock files os secrets", NEW_VENUE),
    "exchange/position.py": ("os socket", "connects to the socket's path"),
    "exchange/process.py": ("os socket", PROCESS),
    "exchange/replica/process.py": (
        "FolderStorage SystemClock connect_position notify os say signal uvloop",
        PROCESS,
    ),
    "journal/__init__.py": ("FolderStorage run_in_thread", "gives them out"),
    "journal/events.py": ("run_in_thread threading", "a default; a lock"),
    "journal/faulty.py": ("os random", "texts of errors; dice are passed in"),
    "journal/log.py": ("run_in_thread", "a default"),
    "journal/memory.py": ("random", "dice are passed in"),
    "journal/prepare.py": ("os threading", "the worker thread"),
    "journal/storage.py": ("fcntl os", "real folders"),
}


def world_of(content: str) -> Iterator[str]:
    """What a file uses of the world, by the names that it imports."""
    for node in ast.walk(ast.parse(content)):
        if isinstance(node, ast.Import):
            names = [alias.name.partition(".")[0] for alias in node.names]
            yield from (name for name in names if name in WORLD)
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").partition(".")[0]
            if module in WORLD:
                yield module
            yield from (alias.name for alias in node.names if alias.name in REAL)
        elif isinstance(node, ast.Attribute | ast.Name):
            name = node.attr if isinstance(node, ast.Attribute) else node.id + "()"
            yield from ("files" for call in FILES if name == call)


def adapters(root: Path) -> dict[str, str]:
    """The files that use something of it, and what, in the order of the alphabet."""
    found = {}
    for path in files(root, (".py",), ("exchange", "journal", "protocol")):
        used = sorted(set(world_of(path.read_text(encoding="utf-8"))))
        if used:
            found[path.relative_to(root).as_posix()] = " ".join(used)
    return found


def test_only_adapters_touch_the_world() -> None:
    assert adapters(SOURCE) == {name: used for name, (used, _) in ADAPTERS.items()}


def test_every_way_to_it_is_found() -> None:
    content = (
        "import time, json\nfrom os import urandom\nfrom concurrent.futures import Executor\n"
        "from exchange.clock import Clock, SystemClock as Real\nimport os.path\n"
        "Path(name).read_text()\nopen(name)\n"
    )
    expected = ["time", "os", "concurrent", "SystemClock", "os", "files", "files"]
    assert sorted(world_of(content)) == sorted(expected)
