"""Real sockets: groups, ports and lines of these tests' own, on the loopback."""

import asyncio
import socket
import struct
from collections.abc import Iterator

import pytest
import uvloop

from exchange.config import CHANNEL_GROUPS, ConfigError, LineSettings, MarketDataSettings
from exchange.multicast import SNAPSHOT_GROUPS, MulticastSender, open_lines

PORT = 29_417


def receiver(group: str, port: int) -> socket.socket:
    """Bound to the group's address, so that nothing of other groups arrives."""
    bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((group, port))
    member = struct.pack("4s4s", socket.inet_aton(group), socket.inet_aton("127.0.0.1"))
    bound.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
    bound.settimeout(30)
    return bound


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = uvloop.new_event_loop()
    yield loop
    loop.close()


def test_each_channel_has_its_group_and_other_venues_other_ports(
    loop: asyncio.AbstractEventLoop,
) -> None:
    first = MulticastSender(LineSettings("239.255.217.1", PORT), loop)
    second = MulticastSender(LineSettings("239.255.217.1", PORT + 1), loop)
    with (
        receiver("239.255.217.1", PORT) as one,
        receiver("239.255.217.64", PORT) as sixty_four,
        receiver("239.255.217.1", PORT + 1) as other,
    ):
        assert second.send([(1, b"other venue")]) == 1
        assert first.send([(64, b"channel 64"), (1, b"channel 1")]) == 2
        assert one.recv(100) == b"channel 1"
        assert sixty_four.recv(100) == b"channel 64"
        assert other.recv(100) == b"other venue"
        for nothing in (one, sixty_four, other):
            nothing.setblocking(False)
            with pytest.raises(BlockingIOError):
                nothing.recv(100)
    first.close()
    second.close()


def test_a_batch_arrives_in_order_whatever_its_length(loop: asyncio.AbstractEventLoop) -> None:
    sender = MulticastSender(LineSettings("239.255.217.1", PORT), loop)
    packets = [(1, number.to_bytes(2, "big") * (1 + number)) for number in range(150)]
    with receiver("239.255.217.1", PORT) as one:
        taken = 0
        while taken < len(packets):
            count = sender.send(packets[taken:])
            assert count > 0
            taken += count
        assert [one.recv(2_000) for _ in packets] == [data for _, data in packets]
    sender.close()


@pytest.mark.parametrize("channel", [0, 65, -1])
def test_a_channel_without_a_group_is_a_defect(
    loop: asyncio.AbstractEventLoop, channel: int
) -> None:
    sender = MulticastSender(LineSettings("239.255.217.1", PORT), loop)
    with pytest.raises(AssertionError, match=f"address {channel} of 64"):
        sender.send([(1, b"good"), (channel, b"bad")])
    sender.close()


def test_one_call_takes_sixty_four_at_most(loop: asyncio.AbstractEventLoop) -> None:
    sender = MulticastSender(LineSettings("239.255.217.1", PORT), loop)
    assert sender.send([(1, b"x")] * 65) == 64
    assert sender.send([]) == 0
    sender.close()


def test_lines_and_snapshots_have_groups_of_their_own(loop: asyncio.AbstractEventLoop) -> None:
    settings = MarketDataSettings(
        "239.255.217.1", PORT, line_b=LineSettings("239.255.218.1", PORT + 1)
    )
    packets = open_lines(settings, loop)
    snapshots = open_lines(settings, loop, first_group=SNAPSHOT_GROUPS)
    assert list(packets) == list(snapshots) == ["a", "b"]
    assert SNAPSHOT_GROUPS == CHANNEL_GROUPS
    with (
        receiver("239.255.217.2", PORT) as packets_a,
        receiver("239.255.218.2", PORT + 1) as packets_b,
        receiver("239.255.217.66", PORT) as snapshots_a,
        receiver("239.255.218.66", PORT + 1) as snapshots_b,
    ):
        for text, sender in (
            (b"packets a", packets["a"]),
            (b"packets b", packets["b"]),
            (b"snapshots a", snapshots["a"]),
            (b"snapshots b", snapshots["b"]),
        ):
            assert sender.send([(2, text)]) == 1
        assert packets_a.recv(100) == b"packets a"
        assert packets_b.recv(100) == b"packets b"
        assert snapshots_a.recv(100) == b"snapshots a"
        assert snapshots_b.recv(100) == b"snapshots b"
    for sender in (*packets.values(), *snapshots.values()):
        sender.close()


def test_without_line_b_there_is_one_sender(loop: asyncio.AbstractEventLoop) -> None:
    senders = open_lines(MarketDataSettings("239.255.217.1", PORT), loop)
    assert list(senders) == ["a"]
    senders["a"].close()


def test_a_packet_that_cannot_be_sent_is_an_error_once_it_is_first(
    loop: asyncio.AbstractEventLoop,
) -> None:
    sender = MulticastSender(LineSettings("239.255.217.1", PORT), loop)
    packets = [(1, b"good"), (1, bytes(70_000)), (1, b"more")]
    assert sender.send(packets) == 1
    with pytest.raises(OSError, match="Message too long"):
        sender.send(packets[1:])
    assert sender.send(packets[2:]) == 1
    sender.close()


def test_a_writable_socket_is_told_once(loop: asyncio.AbstractEventLoop) -> None:
    sender = MulticastSender(LineSettings("239.255.217.1", PORT), loop)
    calls: list[int] = []

    def note() -> None:
        calls.append(len(calls))
        if len(calls) < 3:
            sender.when_writable(note)
        else:
            loop.call_later(0.01, loop.stop)

    sender.when_writable(note)
    loop.run_forever()
    assert calls == [0, 1, 2]
    sender.close()


def test_an_address_of_another_machine_is_refused(loop: asyncio.AbstractEventLoop) -> None:
    elsewhere = LineSettings("239.255.217.1", PORT, "192.0.2.1")
    for settings, table in (
        (MarketDataSettings(interface="192.0.2.1"), "market_data"),
        (MarketDataSettings(line_b=elsewhere), "market_data.line_b"),
    ):
        with pytest.raises(ConfigError) as caught:
            open_lines(settings, loop)
        text = f"{table}.interface: 192.0.2.1 is not an address of this machine"
        assert str(caught.value) == text
