"""Starts that cannot be: one clear line on stderr, a documented exit code, and nothing changed."""

import hashlib
import resource
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest

from exchange.config import CONFIG_NAME
from protocol.codes import RejectCode, Side
from protocol.order_entry import NewOrder, OrderAccepted
from protocol.transport import LogOnRejected
from tests.integration.market import CENT, CONTRACT, make_market, make_venue
from tests.integration.peer import WAIT_S, Peer
from tools.venue_process import EXCHANGE, VenueProcess

EX_CONFIGURATION: Final = 64
EX_JOURNAL_DAMAGED: Final = 66
EX_FOLDER_HELD: Final = 69

SEGMENT_HEADER_SIZE: Final = 512


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a venue that has traded a little and was stopped."""
    folder = tmp_path_factory.mktemp("pattern") / "venue"
    with make_venue(folder) as venue:
        venue.start()
        (firm,) = make_market(venue, ["ada"])
        with Peer(venue.address) as peer:
            peer.log_on(firm.key, "s")
            for client_order_id in range(1, 20):
                order = (client_order_id, 1, firm.account_id, Side.BUY, CENT, CONTRACT)
                assert isinstance(peer.request(NewOrder(*order)), OrderAccepted)
        venue.stop()
    return folder


@pytest.fixture
def folder(pattern: Path, tmp_path: Path) -> Path:
    """A copy of it for one test."""
    return shutil.copytree(pattern, tmp_path / "venue")


def fail_to_start(config: Path) -> tuple[int, str]:
    """Exit code and the one line of a venue that must not start."""
    command = [*EXCHANGE, "serve", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return done.returncode, line


def change_config(folder: Path, old: str, new: str) -> Path:
    """Replace a text that is in the configuration once."""
    config = folder / CONFIG_NAME
    content = config.read_text()
    assert content.count(old) == 1, f"{old} is not in the configuration once"
    config.write_text(content.replace(old, new))
    return config


def image(folder: Path) -> dict[str, str]:
    """Every file below a folder, by the hash of its content; the lock's file has none."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "lock"
    }


# Configuration.

BAD_CONFIGS: Final = {
    "misspelt": ("segment_size =", "segmnet_size =", ["did you mean segment_size"]),
    "misspelt-table": (
        "[order_entry]",
        "[order_enrty]",
        ["order_enrty", "did you mean order_entry"],
    ),
    "port": ("port = 0", "port = 70000", ["order_entry.port", "65535"]),
    "port-text": ("port = 0", 'port = "x"', ["order_entry.port"]),
    "not-toml": ("[venue]", "[venue", [CONFIG_NAME, "line 4"]),
    "name": ('name = "test"', 'name = "best"', ["venue.name", "best", "test"]),
    "data": ('data = "data"', 'data = "date"', ["date", "is missing"]),
    "limit": ("orders_max = 2000000", "orders_max = 2000001", ["orders_max", "2000000"]),
    "limit-missing": ("orders_max = 2000000", "", ["orders_max"]),
    "host": ('host = "127.0.0.1"', 'host = "no.such.host.invalid"', ["no.such.host.invalid"]),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_bad_configuration_is_named(folder: Path, name: str) -> None:
    old, new, words = BAD_CONFIGS[name]
    code, line = fail_to_start(change_config(folder, old, new))
    assert code == EX_CONFIGURATION
    for word in words:
        assert word in line


def test_missing_configuration(tmp_path: Path) -> None:
    for path in (tmp_path / "exchange.toml", tmp_path):
        code, line = fail_to_start(path)
        assert code == EX_CONFIGURATION
        assert "exchange.toml: No such file" in line


def test_port_in_use(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code, line = fail_to_start(change_config(folder, "port = 0", f"port = {port}"))
    assert code == EX_CONFIGURATION
    assert f"127.0.0.1:{port}" in line
    assert "in use" in line
    with VenueProcess(folder) as venue:  # And it can be started once the port is free.
        venue.start()
        venue.stop()


# Folder and journal.


def test_folder_that_another_process_holds(folder: Path) -> None:
    with VenueProcess(folder) as venue:
        venue.start()
        before = image(folder / "data")
        code, line = fail_to_start(folder / CONFIG_NAME)
        assert code == EX_FOLDER_HELD
        assert "another process" in line
        assert str(folder) in line
        assert image(folder / "data") == before
        with Peer(venue.address) as peer:
            peer.greet()
        venue.stop()


def test_folder_without_a_journal_is_not_a_new_venue(folder: Path) -> None:
    commands = folder / "data" / "commands"
    for path in commands.iterdir():
        path.unlink()
    code, line = fail_to_start(folder / CONFIG_NAME)
    assert code in (EX_CONFIGURATION, EX_JOURNAL_DAMAGED)
    assert "exchange init" in line
    assert image(folder / "data") == {}
    commands.joinpath("lock").unlink(missing_ok=True)
    commands.rmdir()
    assert fail_to_start(folder / CONFIG_NAME)[0] == EX_CONFIGURATION
    assert not commands.exists()


def segment(folder: Path) -> Path:
    """The journal's only segment."""
    (path,) = (folder / "data" / "commands").glob("*.segment")
    return path


def flip_a_bit(folder: Path) -> None:
    path = segment(folder)
    content = bytearray(path.read_bytes())
    content[SEGMENT_HEADER_SIZE + 700] ^= 1
    path.write_bytes(content)


def zero_a_record(folder: Path) -> None:
    path = segment(folder)
    content = path.read_bytes()
    size = SEGMENT_HEADER_SIZE
    path.write_bytes(content[: 4 * size] + bytes(size) + content[5 * size :])


def cut_off_the_end(folder: Path) -> None:
    path = segment(folder)
    path.write_bytes(path.read_bytes()[:-1])


def remove_the_manifest(folder: Path) -> None:
    (folder / "data" / "commands" / "manifest").unlink()


def lose_the_last_record(folder: Path) -> None:
    """As torn by a crash, but the venue was stopped cleanly."""
    path = segment(folder)
    content = path.read_bytes()
    end = len(content.rstrip(b"\0"))
    start = (end - 1) // SEGMENT_HEADER_SIZE * SEGMENT_HEADER_SIZE
    path.write_bytes(content[:start] + bytes(len(content) - start))


DAMAGES: Final[list[Callable[[Path], None]]] = [
    flip_a_bit,
    zero_a_record,
    cut_off_the_end,
    remove_the_manifest,
    lose_the_last_record,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_journal_is_refused_and_kept(folder: Path, damage: Callable[[Path], None]) -> None:
    damage(folder)
    before = image(folder / "data")
    code, line = fail_to_start(folder / CONFIG_NAME)
    assert code == EX_JOURNAL_DAMAGED
    assert "journal damaged" in line
    assert image(folder / "data") == before


def test_journal_of_another_venue(folder: Path, tmp_path: Path) -> None:
    with make_venue(tmp_path / "other") as other:
        (tmp_path / "other" / "data").rename(tmp_path / "other" / "own")
        shutil.copytree(folder / "data", tmp_path / "other" / "data")
        change_config(other.folder, 'name = "test"', 'name = "other"')
        code, line = fail_to_start(other.folder / CONFIG_NAME)
    assert code == EX_CONFIGURATION
    assert "other" in line
    assert "test" in line


def test_second_init_leaves_the_venue_alone(folder: Path) -> None:
    before = image(folder)
    command = [*EXCHANGE, "init", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.returncode == EX_CONFIGURATION
    (line,) = done.stderr.splitlines()
    assert "not an empty folder" in line
    assert image(folder) == before


# Descriptors.


@contextmanager
def descriptor_limit(count: int) -> Iterator[None]:
    """This process, and the children started meanwhile, may have so many open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("limit", [256, 4096])
def test_more_connections_than_the_venue_takes(folder: Path, limit: int) -> None:
    """Strangers take every connection there is, under a usual and a small limit of descriptors.
    The surplus is refused, who is on trades on, journal and all, and one that leaves makes room.
    """
    with VenueProcess(folder) as venue, descriptor_limit(4096), ExitStack() as stack:
        with descriptor_limit(limit):
            venue.start()
        operator = stack.enter_context(Peer(venue.address))
        for _ in range(1_100):
            stranger = stack.enter_context(Peer(venue.address))
            stranger.read()
            if not stranger.is_open or stranger.machine.ended is not None:
                break
        refusal = stranger.machine.ended
        assert isinstance(refusal, LogOnRejected)
        assert refusal.code == RejectCode.CONNECTION_LIMIT
        operator.greet()
        stack.close()
        venue.stop()
