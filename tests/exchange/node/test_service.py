"""The process around the venue: how it says that it is ready, and each way in which it ends.

Real processes on the loopback. Defects are planted in the child before it starts.
"""

import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

import exchange
from exchange.client import load_key
from exchange.node.failure import Exit
from exchange.node.setup import initialise
from protocol.admin import AdminAccepted, Participant
from protocol.codes import RejectCode
from protocol.transport import SessionReject, Terminate
from tests.exchange.node.test_fuzz import Fuzzer
from tests.integration.peer import Peer

SERVE = """
import sys
from pathlib import Path
from exchange.config import load
from exchange.node import service
{planted}
sys.exit(service.serve(load(Path(sys.argv[1]))))
"""

POISON = """
from exchange.core.reference import Reference
admit = Reference._participant
def planted(self, message):
    assert message.name != "poison", "planted in the engine"
    return admit(self, message)
Reference._participant = planted
"""

BUG = """
from exchange.node.connection import Connection
def planted(self, frame):
    raise LookupError("planted in the node")
Connection._check_command = planted
"""

FAULT = """
import errno
from journal.faulty import Fault, FaultyStorage
folder = service.FolderStorage
service.FolderStorage = lambda path: FaultyStorage(folder(path), [Fault("sync", 300, errno.EIO)])
"""

THREAD = """
from exchange.node.commit import ThreadCommitter
service.AdaptiveCommitter = lambda journal, loop, clock: ThreadCommitter(journal, loop)
"""


class Child:
    """`exchange serve` on a folder, perhaps with something planted."""

    def __init__(self, folder: Path, planted: str = "", *options: str, **names: str) -> None:
        # Children find the packages where this process found them.
        packages = str(Path(str(exchange.__file__)).parents[1])
        self.process = subprocess.Popen(
            [sys.executable, *options, "-c", SERVE.format(planted=planted), str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": packages, **names},
        )

    def ready(self) -> dict[str, str]:
        """The fields of the ready line."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("exchange ready "), line
        return dict(word.split("=", 1) for word in line.split()[2:])

    def address(self) -> tuple[str, int]:
        host, _, port = self.ready()["order_entry"].rpartition(":")
        return host, int(port)

    def end(self) -> tuple[int, str, str]:
        """Wait for it: exit code, the rest of stdout, stderr."""
        output, errors = self.process.communicate(timeout=60)
        assert "Traceback" not in errors
        return self.process.returncode, output, errors

    def stop(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str, str]:
        self.process.send_signal(number)
        return self.end()


def last_log(errors: str) -> dict[str, str]:
    """The fields of the last line that it logged."""
    return dict(word.split("=", 1) for word in shlex.split(errors.splitlines()[-1]))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    initialise(tmp_path / "venue", name="north", port=0)
    return tmp_path / "venue"


@pytest.fixture
def children() -> Iterator[list[Child]]:
    """What is in it at the end is killed."""
    started: list[Child] = []
    yield started
    for child in started:
        child.process.kill()
        child.process.communicate()


def administrator(folder: Path, address: tuple[str, int]) -> Peer:
    peer = Peer(address)
    peer.log_on(load_key(folder / "keys" / "admin.pem"), "admin")
    return peer


@pytest.mark.parametrize("planted", ["", THREAD], ids=["adaptive", "thread"])
def test_a_venue_starts_takes_commands_stops_and_goes_on(
    folder: Path, children: list[Child], planted: str
) -> None:
    sequences = []
    for life in range(3):
        child = Child(folder, planted)
        children.append(child)
        ready = child.ready()
        assert list(ready) == [
            *("venue", "order_entry", "market_data", "market_data_b", "metrics", "epoch"),
            *("sequence", "build", "python"),
        ]
        assert ready["venue"] == "north"
        assert ready["market_data"] == "239.255.66.1:9100"
        assert ready["metrics"].startswith("127.0.0.1:")
        assert int(ready["epoch"]) % 2**20 == 0, "the first term's"
        sequences.append(int(ready["sequence"]))
        host, _, port = ready["order_entry"].rpartition(":")
        with administrator(folder, (host, int(port))) as peer:
            assert isinstance(peer.request(Participant(f"p{life}")), AdminAccepted)
            child.process.send_signal(signal.SIGTERM)
            assert isinstance(peer.receive(), Terminate)
        code, output, errors = child.end()
        assert code == Exit.STOPPED
        (line,) = output.splitlines()
        assert line.startswith(f"exchange stopped sequence={sequences[-1] + 2} digest=")
        words = [word.partition("=") for word in line.split()[3:]]
        assert [word[0] for word in words] == ["digest", "book_digest", "public_digest"]
        assert all(len(word[2]) == 64 for word in words)
        assert not (folder / "data" / "position").exists()
        assert "level=error" not in errors
    assert sequences == [2, 5, 8], "VenueStarted, log-on and command of each life before"


def test_systemd_is_told(folder: Path, children: list[Child], tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        address = str(tmp_path / "notify")
        channel.bind(address)
        channel.settimeout(30)
        child = Child(folder, NOTIFY_SOCKET=address)
        children.append(child)
        child.ready()
        assert channel.recv(100) == b"READY=1"
        assert child.stop(signal.SIGINT)[0] == Exit.STOPPED
        assert channel.recv(100) == b"STOPPING=1"


def test_without_assertions_it_does_not_start(folder: Path, children: list[Child]) -> None:
    child = Child(folder, "", "-O")
    children.append(child)
    code, output, errors = child.end()
    assert (code, output) == (Exit.CONFIGURATION, "")
    assert "assertions are off" in last_log(errors)["reason"]


def test_an_assertion_ends_the_process_and_bars_the_payload(
    folder: Path, children: list[Child]
) -> None:
    child = Child(folder, POISON)
    children.append(child)
    with administrator(folder, child.address()) as peer:
        assert isinstance(peer.request(Participant("good")), AdminAccepted)
        number = peer.send(Participant("poison"))
        assert peer.read_to_end() == [], "not a word about what was not durable"
    code, output, errors = child.end()
    assert (code, output) == (Exit.ASSERTION, "")
    reason = last_log(errors)["reason"]
    assert reason.startswith("AssertionError: planted in the engine; after sequence ")
    (file,) = (folder / "data" / "barred").glob("*.barred")
    assert reason.endswith(f"written aside in barred/{file.name}")
    # The same build again: the client that sends it once more does not bring the venue down.
    child = Child(folder, POISON)
    children.append(child)
    with administrator(folder, child.address()) as peer:
        assert peer.machine.next_number == number, "the journal ends before it"
        answer = peer.request(Participant("poison"))
        assert isinstance(answer, SessionReject)
        assert answer.code == RejectCode.PAYLOAD_BARRED
        assert isinstance(peer.request(Participant("fine")), AdminAccepted)
    assert child.stop()[0] == Exit.STOPPED
    # A better build, and the operator has removed the file.
    file.unlink()
    child = Child(folder)
    children.append(child)
    with administrator(folder, child.address()) as peer:
        assert isinstance(peer.request(Participant("poison")), AdminAccepted)
    assert child.stop()[0] == Exit.STOPPED


def test_a_defect_of_the_node_ends_the_process_too(folder: Path, children: list[Child]) -> None:
    child = Child(folder, BUG)
    children.append(child)
    with administrator(folder, child.address()) as peer:
        peer.send(Participant("any"))
        assert peer.read_to_end() == []
    code, _, errors = child.end()
    assert code == Exit.ASSERTION
    assert "LookupError('planted in the node')" in last_log(errors)["reason"]


def test_a_failed_sync_ends_the_process(folder: Path, children: list[Child]) -> None:
    child = Child(folder, FAULT)
    children.append(child)
    accepted = 0
    with administrator(folder, child.address()) as peer:
        while peer.is_open:
            peer.send(Participant(f"p{accepted}"))
            accepted += isinstance(peer.receive(), AdminAccepted)
    code, output, errors = child.end()
    assert (code, output) == (Exit.STORAGE_FAILED, "")
    assert last_log(errors)["reason"].endswith("Input/output error")
    child = Child(folder)
    children.append(child)
    with administrator(folder, child.address()) as peer:
        assert peer.machine.next_number > accepted, "what was acknowledged is there"
    assert child.stop()[0] == Exit.STOPPED


def test_thousands_of_bad_frames_through_a_socket(folder: Path, children: list[Child]) -> None:
    child = Child(folder)
    children.append(child)
    address = child.address()
    dice = Random(1)
    fuzzer = Fuzzer(dice)
    key = load_key(folder / "keys" / "admin.pem")
    frames = 0
    for connection in range(200):
        with Peer(address) as peer:
            if connection % 5:
                number = peer.log_on(key, f"s{connection % 60}").last_client_number + 1
            else:
                peer.greet()
                number = 1
            for _ in range(30):
                batch = [fuzzer.frame(number + i) for i in range(3)]
                number += len(batch)
                frames += len(batch)
                peer.send_bytes(b"".join(batch))
                if not peer.is_open:
                    break
            peer.socket.shutdown(socket.SHUT_WR)
            peer.read_to_end()  # The machine checks every frame that comes.
    assert frames > 3_000
    with administrator(folder, address) as peer:
        assert isinstance(peer.request(Participant("last")), AdminAccepted)
    code, _, errors = child.stop()
    assert code == Exit.STOPPED
    assert "level=error" not in errors
