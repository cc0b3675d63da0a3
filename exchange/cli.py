"""The command `exchange`: what an operator, a developer and a newcomer type.

This module is the composition root: it owns `init` and `serve`, mounts the commands of `tools`, and
turns every error into one line on stderr and a documented exit code. Exceptions that know their
exit code have `exit_code`; the others that can be expected are listed in `_exit_code`.
"""

import argparse
import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Final, NoReturn

from exchange import config
from exchange.client import ClientError, KeyFileError, load_key
from exchange.core.engine import BUILD
from exchange.feed.service import serve as serve_feed
from exchange.node.service import serve
from exchange.node.setup import initialise
from exchange.replica.process import serve as serve_replica
from tools import admin, bench, demo, dissector, journal_tools, record, replay, watch

__all__ = ["EXIT_CODES", "main"]

PORT_MAX: Final = 65_535

EX_FAILED: Final = 1
EX_CONFIGURATION: Final = 64
EX_ASSERTION: Final = 65
EX_INTERRUPTED: Final = 130

EXIT_CODES: Final = """\
exit codes:
  0    done, or stopped in good order
  1    refused by the venue, not connected, or a tool failed otherwise
  64   configuration or command line cannot be used
  65   an assertion failed: a defect of this build
  66   the journal is damaged; no file was changed
  69   the folder is held by another process
  74   storage failed: a read, write or sync
  130  interrupted by Ctrl-C
"""

EXAMPLES: Final = """\
examples:
  exchange demo                               watch a market trade, right now
  exchange init venue                         configuration, keys and folders
  exchange serve --config venue/exchange.toml run the venue
  exchange feed --config venue/exchange.toml  serve its market data over TCP
  exchange replica --config venue/exchange.toml
                                              make snapshots beside it: quick starts
  exchange admin --config venue/exchange.toml participant acme
  exchange journal verify venue               check every byte of the journal
"""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, with the exit code of this command."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(EX_CONFIGURATION)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parsed = _build_parser().parse_args(arguments)
    try:
        code: int = parsed.run(parsed)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return EX_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone, as `head` does. Nothing more can be written there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        failure = _exit_code(error)
        if failure is None:
            raise
        story = " ".join(_describe(error).split())
        print(f"exchange: {story}", file=sys.stderr)
        return failure
    return code


def _exit_code(error: Exception) -> int | None:
    """The documented code; None for what nobody expected, which keeps its traceback."""
    code = getattr(error, "exit_code", None)
    if isinstance(code, int):
        return code
    if isinstance(error, AssertionError):
        return EX_ASSERTION
    if isinstance(error, FileNotFoundError | PermissionError | NotADirectoryError | KeyFileError):
        return EX_CONFIGURATION
    if isinstance(error, ClientError | OSError):
        return EX_FAILED
    return None


def _describe(error: Exception) -> str:
    if isinstance(error, AssertionError):
        return f"assertion failed: {error}"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__


def run_init(arguments: argparse.Namespace) -> int:
    """Make the folder of a new venue."""
    made = initialise(arguments.directory, name=arguments.name, port=arguments.port)
    print(f"venue {arguments.name} made; admin key {made.admin_key}")
    print(f"run it: exchange serve --config {made.config}")
    return 0


def run_serve(arguments: argparse.Namespace) -> int:
    """Run the venue until SIGTERM."""
    return serve(config.load(arguments.config))


def run_feed(arguments: argparse.Namespace) -> int:
    """Run the feed server until SIGTERM."""
    settings = config.load_feed(arguments.config)
    upstream = settings.feed.upstream
    return serve_feed(settings, load_key(upstream.key) if upstream is not None else None)


def run_replica(arguments: argparse.Namespace) -> int:
    """Run the replica until SIGTERM."""
    return serve_replica(config.load(arguments.config))


def _version() -> str:
    try:
        version = metadata.version("brier")
    except metadata.PackageNotFoundError:
        version = "(source tree)"
    return f"exchange {version} build={BUILD} python={sys.version.split()[0]}"


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > PORT_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, 0 to {PORT_MAX}")
    return int(text)


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="exchange",
        description="Brier, an exchange for event contracts: run a venue, administer it,\n"
        "check its journal, watch it trade.",
        epilog=f"{EXAMPLES}\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)

    init = commands.add_parser(
        "init",
        help="make a new venue: configuration, keys and folders",
        description="Make the folder of a new venue: configuration, admin key, empty journal.",
    )
    init.add_argument("directory", metavar="DIR", type=Path, help="missing or empty")
    init.add_argument("--name", default="brier", help="name of the venue; default: brier")
    init.add_argument(
        "--port", type=_port, default=9001, help="order entry; 0: any free one; default: 9001"
    )
    init.set_defaults(run=run_init)

    run = commands.add_parser(
        "serve",
        help="run a venue",
        description="Run a venue: recover from its journal, then take orders until SIGTERM. Prints "
        "one line when it is ready.",
    )
    run.add_argument("--config", required=True, type=Path, metavar="FILE", help="exchange.toml")
    run.set_defaults(run=run_serve)

    feed = commands.add_parser(
        "feed",
        help="serve the market data of a venue over TCP",
        description="Run a feed server: read the event log of the venue beside it, or of another "
        "feed, and serve subscriptions, snapshots, replays and drop copies until SIGTERM. Prints "
        "one line when it is ready.",
    )
    feed.add_argument("--config", required=True, type=Path, metavar="FILE", help="exchange.toml")
    feed.set_defaults(run=run_feed)

    replica = commands.add_parser(
        "replica",
        help="make snapshots of a venue, for quick starts",
        description="Run a replica: replay the journal of the venue beside it as it grows, compare "
        "every record, and make snapshots until SIGTERM. Prints one line when it has caught up.",
    )
    replica.add_argument("--config", required=True, type=Path, metavar="FILE", help="exchange.toml")
    replica.set_defaults(run=run_replica)

    for tool in (admin, journal_tools, demo, watch, replay, bench, record, dissector):
        tool.add_commands(commands)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
