"""`exchange feed` as a process, from outside: how it starts and ends, and what it does with bad
company. What it serves is compared in `test_feed_kill`.
"""

import asyncio
import random
import shutil
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import replace

from exchange.client import connect_feed, load_key
from protocol.codes import TerminateCode
from protocol.feed import Unsubscribe
from protocol.framing import HEADER, UNSEQUENCED, encode_frame
from protocol.packets import decode_packet
from protocol.session import Connection, Message, Party, Service
from protocol.signing import log_on_bytes
from protocol.transport import Hello, LogOnAccepted, Terminate
from tests.integration.market import make_market, make_venue
from tests.integration.peer import WAIT_S, make_log_on
from tools.venue_process import EXCHANGE, FeedProcess, VenueProcess, child_environment
from tools.venue_settings import change_settings

READ_SIZE: Final = 64 * 1024


@pytest.fixture
def venue(tmp_path: Path) -> Iterator[VenueProcess]:
    """A venue that runs, with a market."""
    with make_venue(tmp_path / "venue") as venue:
        venue.start()
        make_market(venue, ["ada"])
        yield venue


@pytest.fixture
def feed(venue: VenueProcess) -> Iterator[FeedProcess]:
    """Its feed server."""
    with FeedProcess(venue.folder) as feed:
        feed.start()
        yield feed


def run(folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run a feed server that does not get far."""
    return subprocess.run(
        [*EXCHANGE, "feed", "--config", str(folder / "exchange.toml")],
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_S,
        env=child_environment(),
    )


class Guest:
    """A connection to the feed server under full control."""

    def __init__(self, feed: FeedProcess, receive_buffer_size: int = 0) -> None:
        self.socket = socket.socket()
        if receive_buffer_size:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_size)
        self.socket.settimeout(WAIT_S)
        self.socket.connect(feed.address)
        self.machine = Connection(Party.CLIENT, 0, Service.FEED)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.socket.close()

    def read(self) -> list[object]:
        """Messages of one read; empty at the end."""
        try:
            data = self.socket.recv(READ_SIZE)
        except ConnectionResetError:
            data = b""
        messages: list[object] = []
        self.machine.receive_data(data, 0)
        while (received := self.machine.next_event()) is not None:
            messages.append(received.message)
        return messages

    def log_on(self, key: Ed25519PrivateKey) -> object:
        """The answer."""
        (hello,) = self.read()
        assert isinstance(hello, Hello)
        log_on = make_log_on(key, "guest")
        signed = log_on_bytes(hello.venue, hello.nonce, log_on, Service.FEED)
        return self.answer_to(replace(log_on, signature=key.sign(signed)))

    def answer_to(self, message: Message) -> object:
        """What comes first when this was sent."""
        self.machine.send(message, 0)
        self.socket.sendall(self.machine.data_to_send())
        return self.read()[0]


def test_it_starts_serves_and_stops(feed: FeedProcess, venue: VenueProcess) -> None:
    assert feed.ready["venue"] == "test"
    assert feed.ready["epoch"].isdecimal()

    async def replay() -> list[bytes]:
        async with await connect_feed(*feed.address, key=venue.admin_key) as client:
            assert client.state is not None
            return await client.replay(1, 1, dict(client.state.channels)[1] - 1)

    packets = [decode_packet(data) for data in asyncio.run(replay())]
    assert [packet.number for packet in packets] == [1, 2], "an event, and an instrument"
    with Guest(feed) as guest:
        guest.log_on(load_key(venue.admin_key))
        stopped = feed.stop()
        while not isinstance(told := guest.read()[-1], Terminate):
            pass
        assert told.code == TerminateCode.SHUTDOWN
    assert (stopped["epoch"], stopped["sequence"]) == (feed.ready["epoch"], feed.ready["sequence"])
    assert (venue.folder / "data" / "feed" / "checkpoint").exists()


def test_the_second_start_reads_only_what_is_new(feed: FeedProcess, venue: VenueProcess) -> None:
    stopped = feed.stop()
    feed.start()
    assert int(feed.ready["sequence"]) >= int(stopped["sequence"])
    with urllib.request.urlopen(f"http://{feed.ready['metrics']}/metrics") as answer:
        text = answer.read().decode()
    (line,) = (one for one in text.splitlines() if one.startswith("brier_feed_records_total "))
    assert float(line.split()[1]) == 0


def test_it_serves_while_the_venue_is_away_but_does_not_start_blind(
    feed: FeedProcess, venue: VenueProcess
) -> None:
    venue.stop()
    with Guest(feed) as guest:
        assert isinstance(guest.log_on(load_key(venue.admin_key)), LogOnAccepted)
    feed.stop()
    feed.start()  # from the checkpoint
    feed.stop()
    shutil.rmtree(venue.folder / "data" / "feed")
    with subprocess.Popen(
        [*EXCHANGE, "feed", "--config", str(venue.folder / "exchange.toml")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=child_environment(),
    ) as process:
        assert process.stderr is not None
        assert "venue_away" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=WAIT_S)
    assert (process.returncode, output) == (0, ""), "it never said that it was ready"


def test_what_stops_a_start(feed: FeedProcess, venue: VenueProcess, tmp_path: Path) -> None:
    folder = venue.folder
    second = run(folder)
    assert second.returncode == 69
    assert "another process has" in second.stderr
    feed.stop()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        change_settings(folder / "exchange.toml", {"feed.port": taken.getsockname()[1]})
        busy = run(folder)
    assert busy.returncode == 64
    assert "cannot listen on 127.0.0.1:" in busy.stderr
    (tmp_path / "exchange.toml").write_text('[venue]\nname = "test"\ndata = "nowhere"\n')
    missing = run(tmp_path)
    assert missing.returncode == 64
    assert "is missing" in missing.stderr
    (tmp_path / "exchange.toml").write_text('[venue]\nname = "test"\ndata = "d"\n[feet]\n')
    misspelt = run(tmp_path)
    assert misspelt.returncode == 64
    assert "did you mean feed" in misspelt.stderr
    for one in (second, busy, missing, misspelt):
        assert "Traceback" not in one.stderr


def test_a_log_that_is_another_one(feed: FeedProcess, venue: VenueProcess) -> None:
    """The checkpoint goes, so that the next start reads from the beginning."""
    feed.stop()
    venue.stop()
    folder = venue.folder
    checkpoint = folder / "data" / "feed" / "checkpoint"
    kept = checkpoint.read_bytes()
    other = folder.parent / "other"
    with make_venue(other) as another:
        another.start()
        with FeedProcess(other) as its_feed:
            its_feed.start()
            its_feed.stop()
            (other / "data" / "feed" / "checkpoint").write_bytes(kept)
            failed = run(other)
            assert failed.returncode == 66
            assert not (other / "data" / "feed" / "checkpoint").exists()
            its_feed.start()
            its_feed.stop()


@pytest.mark.parametrize("seed", range(4))
def test_bytes_that_are_no_feed_protocol(feed: FeedProcess, venue: VenueProcess, seed: int) -> None:
    dice = random.Random(seed)
    key = load_key(venue.admin_key)
    with Guest(feed) as witness:
        witness.log_on(key)
        for _ in range(12):
            with Guest(feed) as guest:
                disturb(guest, key, dice)
        assert witness.answer_to(Unsubscribe(1)) is not None, "others go on"
    assert "Traceback" not in (feed.folder / "feed.log").read_text()
    feed.stop()


def disturb(guest: Guest, key: Ed25519PrivateKey, dice: random.Random) -> None:
    """Send something that is no request, until the feed has closed."""
    if dice.random() < 0.7:
        guest.log_on(key)
    payload = dice.randbytes(dice.randrange(1, 60))
    kind = dice.choice([UNSEQUENCED, UNSEQUENCED, 0, 1, 2, 4, 5, 255])
    sent = encode_frame(kind, 1, payload) if dice.random() < 0.7 else payload
    if dice.random() < 0.3:
        sent = HEADER.pack(dice.randrange(65_536), kind, 0, 1, 0, 0) + payload
    guest.socket.sendall(sent)
    guest.socket.shutdown(socket.SHUT_WR)
    while guest.read():
        pass
