"""SIGSTOP: a process that stands still, as under a debugger, a hypervisor or a memory shortage, and
then goes on where it was. Nobody may lose anything by it, and nobody may take its place.
"""

import select
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from exchange.core.replay import restore_engine
from journal import FolderStorage, SnapshotFolder, read_only
from protocol import wire
from protocol.codes import CancelOnDisconnect, Side
from protocol.framing import SEQUENCED
from protocol.order_entry import CancelOrder, NewOrder, OrderAccepted, OrderCanceled
from protocol.transport import Heartbeat
from tests.integration.market import CENT, CONTRACT, make_market, make_venue
from tests.integration.onlooker import Onlooker
from tests.integration.peer import WAIT_S, Peer
from tests.integration.replica import Replica
from tests.integration.traders import INSTRUMENT_COUNT, Trader, make_traders, trade
from tools.venue_process import (
    EXCHANGE,
    ReplicaProcess,
    ServiceProcess,
    VenueProcess,
    child_environment,
)
from tools.venue_settings import change_settings

pytestmark = pytest.mark.once

EX_FOLDER_HELD: Final = 69
SEED: Final = "stopped"
SILENCE_S: Final = 0.2
"""A venue that stands still says nothing for so long."""
KEEPALIVE_MS: Final = 100
HEARTBEATS: Final = 10
"""As many as are sent to a venue that stands still: three times what it gives a silent client."""


@contextmanager
def stopped(service: ServiceProcess) -> Iterator[None]:
    """The process stands still."""
    assert service.process is not None, "started"
    service.process.send_signal(signal.SIGSTOP)
    state = Path(f"/proc/{service.process_id}/stat")
    while state.read_text().rpartition(")")[2].split()[0] != "T":
        pass
    yield
    service.process.send_signal(signal.SIGCONT)


@pytest.fixture
def venue(tmp_path: Path) -> Iterator[VenueProcess]:
    with make_venue(tmp_path / "venue", work_per_command_max=4) as made:
        change_settings(made.folder / "exchange.toml", {"snapshots.every_commands": 100})
        made.start()
        yield made


def begin(venue: VenueProcess) -> list[Trader]:
    """Four sessions with orders in flight."""
    firms = make_market(venue, ["ada", "bob", "cyd", "dot"], INSTRUMENT_COUNT)
    traders = make_traders(firms, [CancelOnDisconnect.ALWAYS] * len(firms), SEED)
    replica = Replica(venue.folder)
    for trader in traders:
        trader.log_on(venue.address, replica)
    trade(traders, 400)
    return traders


def finish(venue: VenueProcess, traders: list[Trader]) -> Replica:
    """Everything was answered and is in the journal once."""
    trade(traders, sum(trader.acknowledged_count for trader in traders) + 400)
    for trader in traders:
        while trader.unanswered:
            trader.read()
    result = venue.stop()
    replica = Replica(venue.folder)
    replica.catch_up()
    replica.engine.check()
    for trader in traders:
        trader.leave(replica)
        assert trader.received == replica.reports[trader.session_id]
        numbers = list(replica.commands[trader.session_id])
        assert numbers == list(range(1, len(trader.sent) + 1))
        connections = [c for s, c in replica.log_ons if s == trader.session_id]
        assert connections == [1], "nobody was cut"
    assert result["digest"] == replica.engine.digest()
    return replica


def test_stopped_venue_goes_on_and_nobody_takes_its_place(venue: VenueProcess) -> None:
    onlooker = Onlooker(*venue.market_data)
    traders = begin(venue)
    with stopped(venue):
        for trader in traders:
            assert trader.peer is not None
            while select.select([trader.peer.socket], [], [], SILENCE_S)[0]:
                trader.read()
        command = [*EXCHANGE, "serve", "--config", str(venue.folder / "exchange.toml")]
        environment = child_environment()
        second = subprocess.run(
            command, env=environment, capture_output=True, check=False, timeout=WAIT_S
        )
        assert second.returncode == EX_FOLDER_HELD
    replica = finish(venue, traders)
    onlooker.wait_for(dict(replica.engine.channels())[1])
    assert onlooker.receiver.is_complete
    assert onlooker.receiver.public_digest() == replica.engine.public_digest()
    onlooker.close()


def test_stopped_venue_does_not_blame_its_clients(venue: VenueProcess) -> None:
    """They said that they are there; only nobody heard it."""
    (firm,) = make_market(venue, ["ada"])
    with Peer(venue.address) as peer:
        mode = CancelOnDisconnect.ALWAYS
        peer.log_on(firm.key, "s", keepalive_ms=KEEPALIVE_MS, cancel_on_disconnect=mode)
        order = NewOrder(1, 1, firm.account_id, Side.BUY, 10 * CENT, CONTRACT)
        assert isinstance(peer.request(order), OrderAccepted)
        with stopped(venue):
            for _ in range(HEARTBEATS):
                select.select([], [], [], KEEPALIVE_MS / 1_000)
                peer.send(Heartbeat(peer.machine.last_received))
        assert isinstance(peer.request(CancelOrder(1)), OrderCanceled), "it rests as before"


def test_stopped_replica_goes_on(venue: VenueProcess) -> None:
    with ReplicaProcess(venue.folder) as snapshotter:
        snapshotter.start()
        traders = begin(venue)
        with stopped(snapshotter):
            trade(traders, sum(trader.acknowledged_count for trader in traders) + 2_000)
        last = traders[0].received[len(traders[0].received)]
        report: Any = wire.decode_venue(SEQUENCED, last)
        wanted = report.sequence
        data = venue.folder / "data"
        folder = SnapshotFolder(FolderStorage(data / "snapshots", is_read_only=True))
        give_up = time.monotonic() + WAIT_S
        while not (heads := folder.heads()) or heads[0].sequence < wanted:
            assert time.monotonic() < give_up, "it does not go on"
            trade(traders, sum(trader.acknowledged_count for trader in traders) + 50)
        replica = finish(venue, traders)
        snapshotter.stop()
        head = folder.heads()[0]
        engine = restore_engine(head, folder.read(head))
        commands = FolderStorage(data / "commands", is_read_only=True)
        for record in read_only(commands, start=head).records():
            engine.replay(record.first_sequence, record.command_count, record.payload)
        assert engine.digest() == replica.engine.digest()
