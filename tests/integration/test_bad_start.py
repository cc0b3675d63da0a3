"""Starts that cannot be: one clear line on stderr, a documented exit code, and nothing changed."""

import hashlib
import resource
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest
from msgspec.structs import replace

from exchange.client import load_key
from exchange.config import CONFIG_NAME
from exchange.core.limits import SESSIONS_PER_PARTICIPANT_MAX
from exchange.node.limits import CONNECTIONS_MAX
from protocol.codes import RejectCode, Side
from protocol.order_entry import CancelOrder, NewOrder, OrderAccepted, OrderCanceled
from protocol.transport import Hello, LogOnAccepted, LogOnRejected
from tests.integration.market import CENT, CONTRACT, make_firm, make_market, make_venue
from tests.integration.peer import WAIT_S, Peer, make_log_on, sign
from tools.errors import VenueFailedError
from tools.venue_process import EXCHANGE, VenueProcess

EX_CONFIGURATION: Final = 64
EX_JOURNAL_DAMAGED: Final = 66
EX_FOLDER_HELD: Final = 69

SEGMENT_HEADER_SIZE: Final = 512

FIRMS: Final = 15
SESSIONS: Final = SESSIONS_PER_PARTICIPANT_MAX
"""Of each firm; the connections that are left are those of strangers."""


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
    """Exit code and the one line about it of a venue that must not start."""
    command = [*EXCHANGE, "serve", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.stdout == ""
    (line,) = [line for line in done.stderr.splitlines() if "level=info" not in line]
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

ORDER_ENTRY_HOST: Final = '[order_entry]\nhost = "127.0.0.1"'
ORDER_ENTRY_PORT: Final = "nothing here is encrypted.\nport = 0"
METRICS_PORT: Final = "scrapes here; nothing is encrypted.\nport = 0"
"""Texts that are in the configuration once."""

BAD_CONFIGS: Final = {
    "misspelt": ("segment_size =", "segmnet_size =", ["did you mean segment_size"]),
    "misspelt-table": (
        "[order_entry]",
        "[order_enrty]",
        ["order_enrty", "did you mean order_entry"],
    ),
    "port": (ORDER_ENTRY_PORT, "\nport = 70000", ["order_entry.port", "65535"]),
    "port-text": (ORDER_ENTRY_PORT, '\nport = "x"', ["order_entry.port"]),
    "metrics-port": (METRICS_PORT, "\nport = -1", ["metrics.port", "0"]),
    "group": (
        '[market_data]\ngroup = "239.',
        '[market_data]\ngroup = "10.',
        ["market_data", "not a multicast address"],
    ),
    "group-b": (
        '[market_data.line_b]\ngroup = "239.',
        '[market_data.line_b]\ngroup = "10.',
        ["market_data.line_b", "not a multicast address"],
    ),
    "interface": (
        'interface = "127.0.0.1"     #',
        'interface = "192.0.2.7" #',
        ["market_data.interface", "192.0.2.7 is not an address of this machine"],
    ),
    "interface-b": (
        'interface = "127.0.0.1"\n',
        'interface = "192.0.2.7"\n',
        ["market_data.line_b.interface", "192.0.2.7 is not an address of this machine"],
    ),
    "throttle": ("orders_burst = ", "orders_burst = 0#", ["throttle.orders_burst"]),
    "not-toml": ("[venue]", "[venue", [CONFIG_NAME, "line 4"]),
    "name": ('name = "test"', 'name = "best"', ["venue.name", "best", "test"]),
    "data": ('data = "data"', 'data = "date"', ["date", "is missing"]),
    "limit": ("orders_max = 2000000", "orders_max = 2000001", ["orders_max", "2000000"]),
    "limit-missing": ("orders_max = 2000000", "", ["orders_max"]),
    "host": (
        ORDER_ENTRY_HOST,
        '[order_entry]\nhost = "no.such.host.invalid"',
        ["no.such.host.invalid"],
    ),
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


@pytest.mark.parametrize("place", [ORDER_ENTRY_PORT, METRICS_PORT], ids=["order-entry", "metrics"])
def test_port_in_use(folder: Path, place: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        config = change_config(folder, place, place.replace("port = 0", f"port = {port}"))
        code, line = fail_to_start(config)
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
    before = image(folder / "data")
    assert all(name.startswith("events/") for name in before)
    code, line = fail_to_start(folder / CONFIG_NAME)
    assert code in (EX_CONFIGURATION, EX_JOURNAL_DAMAGED)
    assert "exchange init" in line
    assert image(folder / "data") == before
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


def limit_descriptors(monkeypatch: pytest.MonkeyPatch, count: int, kind: str = "") -> None:
    """Venues started from now on may have so many open files; with -S they may ask for more."""
    shell = ("sh", "-c", f'ulimit {kind} -n {count} && exec "$0" "$@"')
    monkeypatch.setattr("tools.venue_process.EXCHANGE", (*shell, *EXCHANGE))


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """For this process, which is all the clients at once."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_surplus_connections_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, many_descriptors: None
) -> None:
    """The oldest that has not logged on gives its place. Also where the system would first give
    fewer than the venue wants; it asks for more."""
    limit_descriptors(monkeypatch, 256, "-S")
    with VenueProcess(folder) as venue, ExitStack() as stack:
        venue.start()
        # Only so many strangers that the last one is there long before the first one must log on.
        strangers_count = CONNECTIONS_MAX - log_on_many(venue, stack)
        strangers = [stack.enter_context(Peer(venue.address)) for _ in range(strangers_count)]
        for stranger in strangers:
            assert isinstance(stranger.receive(), Hello)
            assert stranger.machine.ended is None
        newcomer = stack.enter_context(Peer(venue.address))
        assert isinstance(newcomer.receive(), Hello)
        strangers[0].read_to_end()
        refusal = strangers[0].machine.ended
        assert isinstance(refusal, LogOnRejected)
        assert (refusal.code, refusal.limit) == (RejectCode.CONNECTION_LIMIT, CONNECTIONS_MAX)
        stack.close()
        give_up = time.monotonic() + WAIT_S
        while not is_welcome(venue):
            assert time.monotonic() < give_up, "those who left still count"
        venue.stop()


def log_on_many(venue: VenueProcess, stack: ExitStack) -> int:
    """Sessions of several firms, as many as each may have; how many that are."""
    with Peer(venue.address) as operator:
        operator.log_on(load_key(venue.admin_key), "setup")
        firms = [make_firm(operator, f"firm-{index}") for index in range(FIRMS)]
    for firm in firms:
        peers = [stack.enter_context(Peer(venue.address)) for _ in range(SESSIONS)]
        for index, peer in enumerate(peers):
            log_on = make_log_on(firm.key, f"s{index}")
            peer.send(sign(firm.key, peer.greet(), log_on))
        for peer in peers:
            peer.read_until(LogOnAccepted)
    return FIRMS * SESSIONS


def is_welcome(venue: VenueProcess) -> bool:
    """Whether the venue has room for one more connection."""
    with Peer(venue.address) as peer:
        return isinstance(peer.receive(), Hello) and peer.machine.ended is None


def test_strangers_cannot_take_the_descriptors_that_the_journal_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, many_descriptors: None
) -> None:
    limit_descriptors(monkeypatch, 200)
    with make_venue(tmp_path / "venue") as venue, ExitStack() as stack:
        venue.start()
        (firm,) = make_market(venue, ["ada"])
        peer = stack.enter_context(Peer(venue.address))
        peer.log_on(firm.key, "s")
        for _ in range(400):
            stack.enter_context(Peer(venue.address))
        order = NewOrder(0, 1, firm.account_id, Side.BUY, CENT, CONTRACT)
        segments = venue.folder / "data" / "commands"
        for index in range(1, 2000):
            answer = peer.request(replace(order, client_order_id=index))
            assert isinstance(answer, OrderAccepted)
            assert isinstance(peer.request(CancelOrder(index)), OrderCanceled)
            if len(list(segments.glob("*.segment"))) > 1:
                break
        assert index > 500, "the strangers were there first"
        assert len(list(segments.glob("*.segment"))) > 1
        stack.close()
        venue.stop()


def test_too_few_descriptors(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit_descriptors(monkeypatch, 30)
    with VenueProcess(folder) as venue:
        with pytest.raises(VenueFailedError, match="30 open files are too few") as caught:
            venue.start()
        assert caught.value.exit_code == EX_CONFIGURATION
