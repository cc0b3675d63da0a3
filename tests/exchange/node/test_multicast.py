"""Market data and positions of real venues: processes, sockets, groups and ports of these tests."""

import os
import signal
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from exchange.config import LineSettings, MarketDataSettings
from exchange.node.failure import Exit
from exchange.node.setup import initialise
from journal import Position, decode_position
from journal.position import POSITION_SIZE
from protocol.admin import AdminAccepted, Event, Instrument
from protocol.market_data import EventDefinition, InstrumentDefinition
from protocol.packets import DATA, Packet, decode_message, decode_packet
from tests.exchange.node.test_service import Child, administrator

GROUP = "239.255.218.1"
PORT = 29_431
RAIN = Event("RAIN", 1, "Rain?", "USD")
RAIN_YES = Instrument(1, "RAIN-YES", "Rain", 0, 10_000, [(0, 100)], 100)
SUN = Event("SUN", 1, "Sun?", "USD", 64)


class Receiver:
    """A socket that is bound to a group's address, and a member of it on the loopback."""

    def __init__(self, stack: ExitStack, group: str, port: int) -> None:
        self.socket = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind((group, port))
        member = struct.pack("4s4s", socket.inet_aton(group), socket.inet_aton("127.0.0.1"))
        self.socket.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
        self.socket.settimeout(30)

    def next(self) -> Packet:
        """The next packet, whatever it is."""
        return decode_packet(self.socket.recv(65_536))

    def next_data(self) -> tuple[Packet, list[Any]]:
        """The next packet with messages, and the messages."""
        while (packet := self.next()).kind != DATA:
            pass
        return packet, [decode_message(block.payload) for block in packet.blocks]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """What is entered is left at the end."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def children() -> Iterator[list[Child]]:
    """What is in it at the end is killed."""
    started: list[Child] = []
    yield started
    for child in started:
        child.process.kill()
        child.process.communicate()


def make_venue(folder: Path, port: int, **fields: Any) -> Path:
    settings = MarketDataSettings(GROUP, port, **fields)
    initialise(folder, name="north", port=0, market_data=settings)
    return folder


def address(ready: dict[str, str], name: str = "order_entry") -> tuple[str, int]:
    host, _, port = ready[name].rpartition(":")
    return host, int(port)


def test_two_venues_at_once_each_on_its_port(
    tmp_path: Path, stack: ExitStack, children: list[Child]
) -> None:
    receivers = [Receiver(stack, GROUP, PORT), Receiver(stack, GROUP, PORT + 1)]
    folders = [make_venue(tmp_path / f"v{i}", PORT + i) for i in range(2)]
    children += [Child(folder) for folder in folders]
    readies = [child.ready() for child in children]
    for i, ready in enumerate(readies):
        assert ready["market_data"] == f"{GROUP}:{PORT + i}"
        with administrator(folders[i], address(ready)) as peer:
            for command in (RAIN, RAIN_YES)[: 1 + i]:
                assert isinstance(peer.request(command), AdminAccepted)
    for i, receiver in enumerate(receivers):
        packet, messages = receiver.next_data()
        assert (packet.channel, packet.number) == (1, 1)
        assert packet.epoch == int(readies[i]["epoch"])
        assert isinstance(messages[0], EventDefinition)
        # Then a heartbeat, or what the other venue does not have.
        following = receiver.next()
        assert (following.number, following.epoch) == (2, packet.epoch)
    assert readies[0]["epoch"] != readies[1]["epoch"]
    for child in children:
        code, _, errors = child.stop()
        assert code == Exit.STOPPED
        assert "level=error" not in errors


def test_a_killed_venue_says_its_last_again_under_the_same_epoch(
    tmp_path: Path, stack: ExitStack, children: list[Child]
) -> None:
    receiver = Receiver(stack, GROUP, PORT + 2)
    last = Receiver(stack, "239.255.218.64", PORT + 2)
    folder = make_venue(tmp_path / "venue", PORT + 2)
    children.append(Child(folder))
    with administrator(folder, children[0].address()) as peer:
        for command in (RAIN, RAIN_YES, SUN):
            assert isinstance(peer.request(command), AdminAccepted)
    before = [receiver.next_data(), receiver.next_data()]
    assert [type(messages[0]) for _, messages in before] == [EventDefinition, InstrumentDefinition]
    packet, (sun,) = last.next_data()
    assert (packet.channel, packet.number, sun.symbol) == (64, 1, "SUN")
    children[0].process.kill()
    children[0].end()
    children.append(Child(folder))
    ready = children[1].ready()
    assert int(ready["epoch"]) == packet.epoch
    again, messages = receiver.next_data()
    assert again.number == 1
    assert messages == [messages[0] for _, messages in before]
    assert again.epoch == packet.epoch
    beat = receiver.next()
    assert (beat.kind != DATA, beat.number) == (True, 3)
    assert last.next_data()[1] == [sun]
    assert children[1].stop()[0] == Exit.STOPPED


def test_both_lines_carry_the_same_packets(
    tmp_path: Path, stack: ExitStack, children: list[Child]
) -> None:
    line_b = LineSettings("239.255.219.1", PORT + 5)
    receivers = [
        Receiver(stack, GROUP, PORT + 4),
        Receiver(stack, line_b.group, line_b.port),
    ]
    folder = make_venue(tmp_path / "venue", PORT + 4, line_b=line_b)
    children.append(Child(folder))
    ready = children[0].ready()
    assert ready["market_data"] == f"{GROUP}:{PORT + 4}"
    assert ready["market_data_b"] == f"239.255.219.1:{PORT + 5}"
    with administrator(folder, address(ready)) as peer:
        for command in (RAIN, RAIN_YES):
            assert isinstance(peer.request(command), AdminAccepted)
    assert children[0].stop()[0] == Exit.STOPPED
    sent: list[list[bytes]] = []
    for receiver in receivers:
        receiver.socket.setblocking(False)
        sent.append([])
        with suppress(BlockingIOError):
            while True:
                sent[-1].append(receiver.socket.recv(65_536))
    assert sent[0] == sent[1]
    assert [decode_packet(data).number for data in sent[0] if decode_packet(data).kind == DATA] == [
        1,
        2,
    ]


class PositionSocket:
    """A reader of the position stream."""

    def __init__(self, stack: ExitStack, path: Path) -> None:
        self.socket = stack.enter_context(socket.socket(socket.AF_UNIX))
        self.socket.settimeout(30)
        folder = os.open(path.parent, os.O_RDONLY)
        self.socket.connect(f"/proc/self/fd/{folder}/{path.name}")
        os.close(folder)

    def next(self) -> Position:
        data = self.socket.recv(POSITION_SIZE, socket.MSG_WAITALL)
        return decode_position(data)


def test_positions_are_told_and_lead_to_what_is_there(
    tmp_path: Path, stack: ExitStack, children: list[Child]
) -> None:
    folder = make_venue(tmp_path / "venue", PORT + 3)
    data = folder / "data"
    children.append(Child(folder))
    ready = children[0].ready()
    reader = PositionSocket(stack, data / "position")
    first = reader.next()
    assert (first.sequence, first.epoch, first.term) == (2, int(ready["epoch"]), 1)
    with administrator(folder, address(ready)) as peer:
        assert isinstance(peer.request(RAIN), AdminAccepted)
        while (position := reader.next()).sequence < 4:
            pass
        assert position.sequence == 4
        segment = next((data / "commands").glob(f"{position.commands_segment:020}-*.segment"))
        content = segment.read_bytes()
        assert first.commands_offset < position.commands_offset < len(content)
        assert not any(content[position.commands_offset :]), (
            "the record that was told is the last one"
        )
        log = data / "events" / f"{position.events_segment:020}.events"
        assert position.events_offset > first.events_offset
        assert log.stat().st_size == position.events_offset
    assert children[0].stop()[0] == Exit.STOPPED
    while reader.socket.recv(65_536):
        pass


def test_a_configuration_without_the_new_tables_works(
    tmp_path: Path, children: list[Child]
) -> None:
    folder = make_venue(tmp_path / "venue", PORT)
    config = folder / "exchange.toml"
    text = config.read_text()
    start, end = text.index("[market_data]"), text.index("# The engine's limits")
    config.write_text(text[:start] + "[metrics]\nport = 0\n\n" + text[end:])
    children.append(Child(folder))
    ready = children[0].ready()
    assert ready["market_data"] == "239.255.66.1:9100"
    assert "market_data_b" not in ready, "it has no line B"
    code, _, errors = children[0].stop(signal.SIGINT)
    assert code == Exit.STOPPED
    assert "level=error" not in errors
