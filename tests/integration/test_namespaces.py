"""Market data between machines: network namespaces, a bridge for each line and one for TCP.

A venue with its feed server, a host that hears everything, and one whose network is in trouble. At
the end the books of both must be those of the venue.
"""

import asyncio
import re
import socket
import struct
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Final

import pytest

from exchange.client.consumer import Consumer
from exchange.client.healer import Feed
from exchange.client.lines import Line
from exchange.client.recovery import Healing, Recovery
from exchange.config import LineSettings
from exchange.multicast import MulticastSender
from protocol.codes import Side
from protocol.order_entry import CancelOrder, NewOrder, OrderAccepted
from tests.integration.hosts import Host, Network, make_hosts
from tests.integration.market import CENT, CONTRACT, Firm, make_market, make_venue
from tests.integration.peer import Peer
from tools.venue_process import FeedProcess, VenueProcess
from tools.venue_settings import change_settings

pytestmark = pytest.mark.once

NETWORKS: Final = ("line_a", "line_b", "tcp")
GROUPS: Final = ("239.255.66.1", "239.255.67.1")
PORT: Final = 9100
WAIT_S: Final = 30.0


def test_hosts_are_there_and_gone_again() -> None:
    with make_hosts(2, ("net",)) as ((one, other), (network,)):
        with one.run(socket.socket) as door, other.run(socket.socket) as caller:
            door.bind((network.address(1), 0))
            door.listen()
            caller.connect(door.getsockname())
        namespaces = [one.namespace, other.namespace, network.namespace]
        assert all(Path("/run/netns", name).exists() for name in namespaces)
    assert not any(Path("/run/netns", name).exists() for name in namespaces)


class Follower:
    """A consumer of both lines on a host, and what it told."""

    def __init__(self, host: Host, networks: list[Network], feed: Feed) -> None:
        self.host = host
        self.recoveries: list[Recovery] = []
        own = [network.address(host.number) for network in networks]
        self.consumer = host.run_async(self._open(own, feed))

    async def _open(self, own: list[str], feed: Feed) -> Consumer:
        consumer = Consumer(
            GROUPS[0],
            PORT,
            interface=own[0],
            line_b=Line(GROUPS[1], PORT, own[1]),
            feed=feed,
            on_recovered=self.recoveries.append,
        )
        consumer.open()
        return consumer

    def wait_for(self, next_number: int) -> None:
        """Everything below this number is in the books."""
        self.host.run_async(asyncio.wait_for(self.consumer.wait_for(next_number), WAIT_S))

    def digest(self) -> str:
        """Of its books."""

        async def ask() -> str:
            return self.consumer.public_digest()

        return self.host.run_async(ask())

    def packet_counts(self) -> dict[str, int]:
        """What came on each line, and over TCP."""
        return {name: state.packet_count for name, state in self.consumer.lines.items()}

    def close(self) -> None:
        self.host.run_async(self.consumer.__aexit__(None, None, None))


@dataclass
class World:
    """The venue's host, the two others, and who trades."""

    hosts: list[Host]
    networks: list[Network]
    venue: VenueProcess
    traders: list[tuple[Peer, Firm]]
    steady: Follower
    troubled: Follower
    chance: Random
    order_count: int = 0

    def trade(self, count: int) -> int:
        """Orders of both firms around a price, some canceled; the channel's next number then."""
        self.hosts[0].run(lambda: self._trade(count))
        return self.hosts[0].run(self._next_number)

    def _trade(self, count: int) -> None:
        for _ in range(count):
            self.order_count += 1
            (peer, firm), side = self.chance.choice(
                [(self.traders[0], Side.BUY), (self.traders[1], Side.SELL)]
            )
            price = self.chance.randint(45, 52) if side == Side.BUY else self.chance.randint(48, 55)
            quantity = self.chance.randint(1, 9) * CONTRACT
            number, account_id = self.order_count, firm.account_id
            order = NewOrder(number, 1, account_id, side, price * CENT, quantity)
            assert isinstance(peer.request(order), OrderAccepted)
            if self.chance.random() < 0.3:
                peer.request(CancelOrder(number))

    def _next_number(self) -> int:
        """Behind all messages of channel 1 that the venue has published, by its metrics."""
        url = f"http://{self.venue.ready['metrics']}/metrics"
        with urllib.request.urlopen(url, timeout=WAIT_S) as answer:
            text: str = answer.read().decode()
        counts = re.findall(r"^brier_market_data_messages_total\{.*\} (\S+)$", text, re.MULTILINE)
        return 1 + sum(int(float(count)) for count in counts)

    def finish(self) -> None:
        """Stop the venue; the books of both are its own."""
        for peer, _ in self.traders:
            peer.close()
        digest = self.venue.stop()["public_digest"]
        assert self.steady.digest() == digest
        assert self.troubled.digest() == digest
        log = (self.venue.folder / "serve.log").read_text()
        assert "Traceback" not in log


def own_settings(networks: list[Network]) -> dict[str, int | str]:
    """A venue on host 1: each line on its network, the feed server on the last one."""
    settings: dict[str, int | str] = {"feed.host": networks[2].address(1)}
    for index, table in enumerate(("market_data", "market_data.line_b")):
        settings[f"{table}.group"] = GROUPS[index]
        settings[f"{table}.port"] = PORT
        settings[f"{table}.interface"] = networks[index].address(1)
        settings[f"{table}.ttl"] = 1
    return settings


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Everything runs, both consumers have the market."""
    with ExitStack() as stack:
        hosts, networks = stack.enter_context(make_hosts(3, NETWORKS))
        home = hosts[0]
        venue = stack.enter_context(make_venue(tmp_path / "venue"))
        change_settings(venue.folder / "exchange.toml", own_settings(networks))
        home.run(venue.start)
        feed = stack.enter_context(FeedProcess(venue.folder))
        home.run(feed.start)
        firms = home.run(lambda: make_market(venue, ["ada", "bob"]))
        traders = []
        for firm in firms:
            peer = stack.enter_context(home.run(lambda: Peer(venue.address)))
            home.run(partial(peer.log_on, firm.key, "trader"))
            traders.append((peer, firm))
        followers = []
        for host in hosts[1:]:
            followers.append(Follower(host, networks, Feed(*feed.address, firms[0].key)))
            stack.callback(followers[-1].close)
        seed = 20_261_121
        print(f"seed {seed}")
        world = World(hosts, networks, venue, traders, followers[0], followers[1], Random(seed))
        next_number = world.trade(20)
        for follower in followers:
            follower.wait_for(next_number)
            follower.recoveries.clear()  # It came late.
        yield world


def test_a_host_that_loses_both_lines_heals_over_tcp(world: World) -> None:
    line_a, line_b, _ = world.networks
    for network in (line_a, line_b):
        network.cut(world.hosts[2])
    # What came before the cut has been read when this has come over TCP.
    world.troubled.wait_for(world.trade(1))
    before = world.troubled.packet_counts()
    next_number = world.trade(100)
    world.steady.wait_for(next_number)
    world.troubled.wait_for(next_number)
    after = world.troubled.packet_counts()
    assert (after["a"], after["b"]) == (before["a"], before["b"]), "nothing comes on a cut line"
    assert after["tcp"] > before["tcp"]
    for network in (line_a, line_b):
        network.mend(world.hosts[2])
    next_number = world.trade(20)
    for follower in (world.steady, world.troubled):
        follower.wait_for(next_number)
        assert follower.consumer.gap_count == 0
    assert {one.how for one in world.troubled.recoveries} <= {Healing.REPLAY}
    world.finish()


def test_a_host_on_a_slow_network_heals_what_its_switch_drops(world: World) -> None:
    for network in world.networks[:2]:  # Ten packets a second: the slowest venue has more.
        network.throttle(world.hosts[2], kbit_per_second=16, queue_size=3_000)
    next_number = world.trade(400)
    for follower in (world.steady, world.troubled):
        follower.wait_for(next_number)
    for network in world.networks[:2]:
        network.release(world.hosts[2])
    assert world.steady.recoveries == []
    assert world.troubled.recoveries, "packets were dropped on both lines"
    assert {one.how for one in world.troubled.recoveries} == {Healing.REPLAY}
    assert world.troubled.consumer.gap_count == 0
    world.finish()


def test_a_venue_that_loses_a_line_goes_on_over_the_other(world: World) -> None:
    line_a = world.networks[0]
    line_a.cut(world.hosts[0])
    followers = (world.steady, world.troubled)
    next_number = world.trade(100)
    for follower in followers:
        follower.wait_for(next_number)
    line_a.mend(world.hosts[0])
    next_number = world.trade(20)
    for follower in followers:
        follower.wait_for(next_number)
        assert follower.recoveries == [], "line B was enough"
        assert follower.consumer.gap_count == 0
    world.finish()


def listen(address: str) -> socket.socket:
    """A receiver of line A."""
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.bind((GROUPS[0], PORT))
    member = struct.pack("4s4s", socket.inet_aton(GROUPS[0]), socket.inet_aton(address))
    receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
    receiver.settimeout(WAIT_S)
    return receiver


def test_a_full_socket_takes_a_part_and_says_when_there_is_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("exchange.multicast.SEND_BUFFER_SIZE", 1)  # The kernel makes it its least.
    with make_hosts(2, ("net",)) as ((home, away), (network,)):
        receiver = away.run(lambda: listen(network.address(2)))
        network.delay(home, kbit_per_second=4_000)

        async def send() -> int:
            loop = asyncio.get_running_loop()
            line = LineSettings(GROUPS[0], PORT, network.address(1), 1)
            sender = MulticastSender(line, loop)
            packets = [(1, bytes([index]) * 1_400) for index in range(40)]
            writable = asyncio.Event()
            full_count = 0
            while packets:
                taken = sender.send(packets)
                del packets[:taken]
                if not taken:
                    full_count += 1
                    writable.clear()
                    sender.when_writable(writable.set)
                    await writable.wait()
            sender.close()
            return full_count

        with receiver:
            assert home.run_async(send()) > 1
            got = [receiver.recv(2_000) for _ in range(40)]
        assert got == [bytes([index]) * 1_400 for index in range(40)]
