"""A venue and a feed while dumpcap listens: tshark shows, field by field, what went over the wire.

The bytes are cut and decoded by `protocol` on one side and by the Wireshark dissector on the other.
Everything is in it: order entry, market data on both lines, snapshots, and a client of the feed
with subscriptions of every form, a replay, candles and a drop copy.
"""

import asyncio
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from exchange.client import DropCopyPosition, connect_feed, load_key
from exchange.config import load
from protocol.codes import DropCopyScope, Side, SubscriptionForm, SubscriptionStart
from protocol.feed import LogPiece, LogRequest
from protocol.market_data import BestPrices, Candle, Levels, SnapshotEnd, Statistics
from protocol.order_entry import CancelOrder, NewOrder, ReplaceOrder
from protocol.packets import HEARTBEAT, Packet, encode_packet
from protocol.session import Connection, Party, Service, State
from protocol.signing import log_on_bytes
from protocol.transport import Hello, LogOn, LogOnAccepted, StateEnd, StateRequest
from tests.integration.market import CENT, CONTRACT, Firm, make_market, make_venue
from tests.integration.peer import WAIT_S, Peer, make_log_on
from tests.tools.tshark import check_shown, need_tshark
from tools.venue_process import FeedProcess
from tools.venue_settings import change_settings

pytestmark = pytest.mark.once

CHANNEL: Final = 1
ORDERS: Final = 40
NUMBER, SNAPSHOT = SubscriptionStart.NUMBER, SubscriptionStart.SNAPSHOT
READ_SIZE: Final = 65_536
MARKS: Final = 300
EXPECTED: Final = {
    *("Hello", "LogOn", "LogOnAccepted", "LogOut", "Terminate", "StateRequest", "StateEnd"),
    *("NewOrder", "CancelOrder", "ReplaceOrder", "OrderAccepted", "OrderFilled", "OrderReplaced"),
    *("OrderCanceled", "CancelRejected", "Participant", "Key", "AdminAccepted"),
    *("EventDefinition", "InstrumentDefinition", "OrderAdded", "OrderExecuted", "Trade"),
    *("SnapshotBegin", "SnapshotInstrument", "SnapshotOrders", "SnapshotEnd"),
    *("BestPrices", "Levels", "Statistics", "Candle", "Subscribe", "Subscribed", "FeedState"),
    *("ReplayRequest", "CandlesRequest", "RequestEnd", "DropCopyRequest", "DropCopyReport"),
    *("DropCopyMark", "VenueRecorded", "AccountRecorded", "SessionRecorded", "LogRequest"),
}


@contextmanager
def captured(path: Path, ports: tuple[int, ...]) -> Iterator[None]:
    """Write what goes over the loopback to these ports into a file; skip where that is barred."""
    program = shutil.which("dumpcap")
    if program is None:
        pytest.skip("dumpcap: not installed")
    chosen = " or ".join(f"port {port}" for port in ports)
    command = [program, "-i", "lo", "-P", "-q", "-f", chosen, "-w", str(path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line.strip())
            if line.startswith("File:"):
                break
        else:
            pytest.skip(f"dumpcap: {' '.join(said)}")
        try:
            yield
            wait_for_mark(process, path, ports[-1])
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=WAIT_S)


def wait_for_mark(process: "subprocess.Popen[str]", path: Path, port: int) -> None:
    """Until what is sent now is in the file; dumpcap drops what it has not read when it ends."""
    mark = encode_packet(Packet(HEARTBEAT, 64, secrets.randbits(62), 1, 0, []))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(MARKS):
            sender.sendto(mark, ("127.0.0.1", port))
            with suppress(subprocess.TimeoutExpired):
                process.wait(WAIT_S / MARKS)
            if mark in path.read_bytes():
                return
    raise AssertionError("dumpcap writes nothing more")


def trade(address: tuple[str, int], firms: list[Firm]) -> None:
    """Orders of two firms that rest, trade, are replaced, canceled and refused."""
    buyer, seller = firms
    with Peer(address) as bids, Peer(address) as asks:
        bids.log_on(buyer.key, "bids")
        asks.log_on(seller.key, "asks")
        for index in range(1, ORDERS + 1):
            price = (40 + index % 7) * CENT
            bids.put(NewOrder(index, 1, buyer.account_id, Side.BUY, price, 3 * CONTRACT))
            asks.put(NewOrder(index, 1, seller.account_id, Side.SELL, price, CONTRACT))
        bids.put(ReplaceOrder(ORDERS + 1, ORDERS, 0, 41 * CENT, 2 * CONTRACT))
        bids.put(CancelOrder(ORDERS - 1))
        bids.put(CancelOrder(10**6))
        for peer in (bids, asks):
            peer.flush()
            peer.wait_for(ORDERS)
            peer.send(StateRequest())
            peer.read_until(StateEnd)


async def read_feed(address: tuple[str, int], key: Ed25519PrivateKey) -> None:
    """Everything that a client may ask for, until some of each has come."""
    async with await connect_feed(*address, key=key) as client:
        wanted: set[type] = {BestPrices, Levels, Statistics, Candle, SnapshotEnd}
        came = asyncio.Event()

        def take(message: object) -> None:
            wanted.discard(type(message))
            if not wanted:
                came.set()

        for form in SubscriptionForm:
            depth = 5 if form is SubscriptionForm.LEVELS else 0
            interval_s = 60 if form is SubscriptionForm.CANDLES else 0
            await client.subscribe(
                CHANNEL,
                form=form,
                start=NUMBER if form is SubscriptionForm.TRADES else SNAPSHOT,
                from_number=1 if form is SubscriptionForm.TRADES else 0,
                depth=depth,
                interval_s=interval_s,
                on_message=take,
            )
        state = await client.ready()
        [(_, next_number)] = state.channels
        assert await client.replay(CHANNEL, 1, next_number - 1)
        assert await client.candles(1, 60)
        copy = await client.drop_copy(
            scope=DropCopyScope.ALL,
            position=DropCopyPosition(1, 0),
            on_report=lambda copied: wanted.discard(type(copied.report)),
        )
        await copy.wait_for(state.sequence)
        await came.wait()


def read_log(address: tuple[str, int], key: Ed25519PrivateKey) -> None:
    """The first records of the event log, as another feed would ask for them."""
    machine = Connection(Party.CLIENT, time.time_ns(), Service.FEED)
    with socket.create_connection(address, WAIT_S) as connection:
        while machine.state is not State.CLOSED:
            machine.receive_data(connection.recv(READ_SIZE), time.time_ns())
            for received in iter(machine.next_event, None):
                if isinstance(received.message, Hello):
                    machine.send(feed_log_on(received.message, key), time.time_ns())
                elif isinstance(received.message, LogOnAccepted):
                    machine.send(LogRequest(1, 1), time.time_ns())
                elif isinstance(received.message, LogPiece):
                    return
            connection.sendall(machine.data_to_send())
    raise AssertionError(f"the feed has ended it: {machine.ended}")


def feed_log_on(hello: Hello, key: Ed25519PrivateKey) -> LogOn:
    log_on = make_log_on(key, "log")
    signed = log_on_bytes(hello.venue, hello.nonce, log_on, Service.FEED)
    return msgspec.structs.replace(log_on, signature=key.sign(signed))


def test_a_capture_shows_what_went_over_the_wire(tmp_path: Path) -> None:
    need_tshark()
    folder, path = tmp_path / "venue", tmp_path / "lo.pcap"
    with make_venue(folder) as venue, FeedProcess(folder) as feed:
        config = folder / "exchange.toml"
        change_settings(config, {"feed.port": 0, "feed.metrics_port": 0})
        venue.start()
        feed.start()
        key = load_key(venue.admin_key)
        ports = (venue.address[1], feed.address[1], load(config).market_data.port)
        with captured(path, ports):
            firms = make_market(venue, ["ada", "bob"])
            trade(venue.address, firms)
            asyncio.run(asyncio.wait_for(read_feed(feed.address, key), WAIT_S))
            read_log(feed.address, key)
        feed.stop()
        venue.stop()
    found = check_shown(path, tmp_path)
    shown = [pair for flow in found.values() for pair in flow]
    names = {value for name, value in shown if name == "message"}
    print(len(shown), "fields;", *sorted(names))
    assert names >= EXPECTED
    kinds = {value for name, value in shown if name == "packet.kind"}
    assert kinds == {"1", "2", "3", "4"}
    assert [value for name, value in shown if name == "log"]
