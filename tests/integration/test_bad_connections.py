"""Connections that misbehave: frames that cannot be, peers that leave, keep silent or do not read.

One venue serves all tests, as in `test_bad_input`.
"""

import os
import socket
import struct
import time
from typing import Final

import pytest
from msgspec.structs import replace

from protocol import wire
from protocol.codes import CancelOnDisconnect, Side, TerminateCode, TimeInForce
from protocol.framing import (
    CLIENT_FRAME_SIZE_MAX,
    HEADER,
    HEADER_SIZE,
    SEQUENCED,
    SESSION,
    UNSEQUENCED,
    encode_frame,
)
from protocol.order_entry import CancelOrder, OrderAccepted, OrderCanceled
from protocol.transport import NotApplied, Terminate
from tests.integration.market import CENT, CONTRACT, Market, depth, memory_size
from tests.integration.peer import WAIT_S, Peer
from tools.venue_process import VenueProcess

MEBIBYTE: Final = 1024 * 1024


def frame(length: int, kind: int, number: int = 1) -> bytes:
    """A header and as many zeros as it says, or a few."""
    return HEADER.pack(length, kind, 0, number, 0, 0) + bytes(min(max(length - HEADER_SIZE, 0), 64))


BAD_FRAMES: Final = {
    "length-0": (frame(0, SEQUENCED), TerminateCode.FRAME_SIZE),
    "length-23": (frame(23, SEQUENCED), TerminateCode.FRAME_SIZE),
    "length-4097": (frame(CLIENT_FRAME_SIZE_MAX + 1, SEQUENCED), TerminateCode.FRAME_SIZE),
    "length-65535": (frame(65_535, SESSION), TerminateCode.FRAME_SIZE),
    "kind-0": (frame(40, 0), TerminateCode.MALFORMED),
    "kind-4": (frame(40, 4), TerminateCode.MALFORMED),
    "kind-255": (frame(40, 255), TerminateCode.MALFORMED),
    "number": (frame(40, SEQUENCED, 2**62), TerminateCode.MALFORMED),
    "unsequenced": (
        encode_frame(UNSEQUENCED, 1, wire.encode(NotApplied(1, 1))),
        TerminateCode.PROTOCOL_VIOLATION,
    ),
    "session-garbage": (encode_frame(SESSION, 1, b"\xc1"), TerminateCode.MALFORMED),
    "session-unknown": (encode_frame(SESSION, 1, b"\x91\x63"), TerminateCode.MALFORMED),
    "session-command": (
        encode_frame(SESSION, 1, wire.encode(CancelOrder(1))),
        TerminateCode.MALFORMED,
    ),
    "http": (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", TerminateCode.FRAME_SIZE),
    "tls": (
        bytes.fromhex("1603010200010001fc0303") + b"\xaa" * 500,
        TerminateCode.MALFORMED,
    ),
    "ssh": (b"SSH-2.0-OpenSSH_9.6\r\n" + bytes(16), TerminateCode.FRAME_SIZE),
    "zeros": (bytes(1000), TerminateCode.FRAME_SIZE),
    "ones": (b"\xff" * 1000, TerminateCode.FRAME_SIZE),
}


@pytest.mark.parametrize("is_logged_on", [False, True], ids=["greeted", "logged-on"])
@pytest.mark.parametrize("name", BAD_FRAMES)
def test_bad_frame_ends_the_connection_with_a_reason(
    market: Market, peer: Peer, name: str, is_logged_on: bool
) -> None:
    data, code = BAD_FRAMES[name]
    if is_logged_on:
        peer.log_on(market.firm.key, f"bad-{name}"[:16])
    peer.send_bytes(data)
    (last,) = peer.read_to_end()
    assert isinstance(last, Terminate)
    assert last.code == code
    assert last.text


def test_commands_before_a_bad_frame_are_taken_and_none_behind_it(
    market: Market, peer: Peer
) -> None:
    session_id = peer.log_on(market.firm.key, "before-bad").session_id
    order, cancel = wire.encode(market.good_order()), wire.encode(CancelOrder(1))
    peer.send_bytes(
        encode_frame(SEQUENCED, 1, order) + frame(0, 2) + encode_frame(SEQUENCED, 2, cancel)
    )
    peer.read_to_end()
    assert peer.terminate.code == TerminateCode.FRAME_SIZE
    with Peer(market.venue.address) as again:
        accepted = again.log_on(market.firm.key, "before-bad")
        assert (accepted.session_id, accepted.last_client_number) == (session_id, 1)
        assert isinstance(again.request(CancelOrder(1)), OrderCanceled)


@pytest.mark.parametrize("size", [1, HEADER_SIZE - 1, HEADER_SIZE, HEADER_SIZE + 5])
def test_frame_cut_in_the_middle_leaves_no_trace(market: Market, peer: Peer, size: int) -> None:
    name = f"cut-{size}"
    peer.log_on(market.firm.key, name)
    peer.send_bytes(encode_frame(SEQUENCED, 1, wire.encode(market.good_order()))[:size])
    peer.socket.shutdown(socket.SHUT_WR)
    peer.read_to_end()
    assert peer.reports == {}
    with Peer(market.venue.address) as again:
        accepted = again.log_on(market.firm.key, name)
        assert (accepted.last_client_number, accepted.highest_client_order_id) == (0, 0)
        market.check_session(again)


def test_frames_may_come_byte_by_byte(market: Market, trader: Peer) -> None:
    trader.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    number = trader.put(market.good_order())
    for byte in trader.machine.data_to_send():
        trader.send_bytes(bytes([byte]))
    assert isinstance(trader.wait_for(number), OrderAccepted)
    assert isinstance(trader.request(CancelOrder(1)), OrderCanceled)


# Connections.


def descriptor_count(venue: VenueProcess) -> int:
    """Open files and sockets of the venue."""
    return len(os.listdir(f"/proc/{venue.process_id}/fd"))


def wait_for_descriptors(market: Market, count: int) -> None:
    """Until the venue has let go of all but so many; round trips keep it turning."""
    give_up = time.monotonic() + WAIT_S
    while descriptor_count(market.venue) > count:
        market.check()
        assert time.monotonic() < give_up, "sockets stay open"


def test_connections_that_come_and_go_leave_nothing(market: Market) -> None:
    market.check()
    count, size = descriptor_count(market.venue), memory_size(market.venue)
    reset = struct.pack("ii", 1, 0)
    for index in range(200):
        with socket.create_connection(market.venue.address, timeout=WAIT_S) as client:
            if index % 4 == 1:
                client.sendall(b"half a frame")
            elif index % 4 == 2:
                client.recv(4096)
            elif index % 4 == 3:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
    wait_for_descriptors(market, count)
    assert memory_size(market.venue) - size < 8 * MEBIBYTE


def test_half_open_peer_is_closed(market: Market) -> None:
    for name in ("", "half-open"):
        with Peer(market.venue.address) as peer:
            if name:
                peer.log_on(market.firm.key, name)
            else:
                peer.greet()
            peer.socket.shutdown(socket.SHUT_WR)
            assert peer.read_to_end() == []


def test_connection_reset_under_load_disconnects_the_session(market: Market) -> None:
    with Peer(market.venue.address) as observer:
        observer.log_on(market.other.key, "sees-reset")
        reset = struct.pack("ii", 1, 0)
        with Peer(market.venue.address) as peer:
            mode = CancelOnDisconnect.ON_DISCONNECT
            peer.log_on(market.firm.key, "reset", cancel_on_disconnect=mode)
            assert isinstance(peer.request(market.good_order()), OrderAccepted)
            for client_order_id in range(2, 500):
                peer.put(market.good_order(client_order_id))
            peer.flush()
            peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        give_up = time.monotonic() + WAIT_S
        order_id, account_id = 1, market.other.account_id
        while depth(observer, account_id, order_id, Side.SELL, 2 * CENT):
            order_id += 1
            assert time.monotonic() < give_up, "its orders stay"


def test_client_that_never_reads_is_not_read_either(market: Market) -> None:
    """Reports that nobody takes fill the venue's buffer; then it takes no more commands."""
    with Peer(market.venue.address, receive_buffer_size=4096) as peer:
        peer.log_on(market.firm.key, "never-reads")
        market.check()
        size = memory_size(market.venue)
        frames = b"".join(
            encode_frame(SEQUENCED, number, wire.encode(CancelOrder(1)))
            for number in range(1, 400_001)
        )
        peer.socket.setblocking(False)
        sent_size, idle_count = 0, 0
        while idle_count < 20:
            try:
                sent_size += peer.socket.send(frames[sent_size : sent_size + MEBIBYTE])
                idle_count = 0
            except BlockingIOError:
                idle_count += 1
                market.check()
            assert sent_size < len(frames), "the venue reads without end"
        assert memory_size(market.venue) - size < 8 * MEBIBYTE


def test_client_that_does_not_read_its_fills_is_disconnected(market: Market) -> None:
    """It asks for nothing, others trade with its order; when too much waits for it, it goes."""
    with Peer(market.venue.address, receive_buffer_size=4096) as slow:
        mode = CancelOnDisconnect.ON_DISCONNECT
        slow.log_on(market.firm.key, "slow", cancel_on_disconnect=mode)
        order = market.good_order(side=Side.SELL, price=90 * CENT, quantity=10**6 * CONTRACT)
        assert isinstance(slow.request(order), OrderAccepted)
        market.check()
        size = memory_size(market.venue)
        with Peer(market.venue.address) as other:
            other.log_on(market.other.key, "buyer")
            order = market.good_order(
                account_id=market.other.account_id,
                price=90 * CENT,
                time_in_force=TimeInForce.IOC,
            )
            is_canceled = False
            for index in range(200):
                for client_order_id in range(1000 * index + 1, 1000 * index + 1001):
                    number = other.put(replace(order, client_order_id=client_order_id))
                other.flush()
                other.wait_for(number)
                is_canceled = isinstance(other.receive(), OrderCanceled)
                if is_canceled:
                    break
            assert is_canceled, "200,000 fills wait for a client that does not read"
        assert memory_size(market.venue) - size < 16 * MEBIBYTE
        slow.read_to_end()
        assert slow.terminate.code == TerminateCode.SLOW_CONSUMER
