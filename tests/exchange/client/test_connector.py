"""Lost connections: what is told, what is tried again, and what requests come to."""

import asyncio
from typing import Final

import pytest

from exchange.client import (
    Backoff,
    ClientState,
    ConnectError,
    ConnectionLostError,
    LogOnRejectedError,
    NotConnectedError,
    NotReceivedError,
    OutcomeUnknownError,
    TerminatedError,
)
from protocol.codes import RejectCode, TerminateCode
from protocol.framing import SEQUENCED, SESSION, UNSEQUENCED, encode_frame
from protocol.order_entry import NewOrder, OrderExpired
from protocol.transport import LogOnRejected, Terminate
from protocol.wire import encode
from tests.exchange.client.peer import NOW, Peer, accept_order
from tests.exchange.client.trading import BUY, QUICK, States, send_unanswered
from tests.exchange.loops import on_both_loops

REPORT: Final = OrderExpired(1, NOW, 1, 1_001, 100, 0, 1)


@on_both_loops
async def test_without_reconnect_the_end_is_final() -> None:
    states = States()
    async with Peer() as peer:
        client = await peer.client(on_state=states)
        reports = client.reports()
        [ticket] = await send_unanswered(peer, client, 1)
        peer.line.send(REPORT)
        peer.line.terminate(TerminateCode.SHUTDOWN, "for the night")
        with pytest.raises(OutcomeUnknownError) as unknown:
            await ticket
        assert unknown.value.was_received is None
        assert unknown.value.ticket is ticket
        assert str(unknown.value) == (
            "outcome of NewOrder 1 unknown, it may or may not have arrived: "
            "the venue ended the connection: SHUTDOWN: for the night"
        )
        with pytest.raises(OutcomeUnknownError):
            await ticket.resolution()
        assert ticket.acknowledged_ns == 0
        assert states.seen == [ClientState.READY, ClientState.CLOSED]
        reason = states.changes[-1].reason
        assert isinstance(reason, TerminatedError)
        assert (reason.code, reason.text, reason.by_venue) == (108, "for the night", True)
        assert await anext(reports) == REPORT
        with pytest.raises(TerminatedError):
            await anext(reports)
        with pytest.raises(StopAsyncIteration):
            await anext(reports)
        with pytest.raises(NotConnectedError):
            client.new_order(**BUY)
        await client.close()


@on_both_loops
async def test_a_lost_connection_is_made_again_and_nothing_is_sent_again() -> None:
    states = States()
    async with Peer() as peer:
        client = await peer.client(on_state=states, reconnect=QUICK)
        received = await send_unanswered(peer, client, 2)
        # One is decided, and told on the next connection; the gateway has refused the other.
        first = peer.commands[0]
        assert isinstance(first, NewOrder)
        peer.report(*accept_order(first, 1))
        peer.journaled = False  # What comes now is lost with the venue's process.
        lost = await send_unanswered(peer, client, 2)
        ready = asyncio.ensure_future(states.next(ClientState.READY))
        peer.line.close()
        for ticket in received + lost:
            with pytest.raises(OutcomeUnknownError) as unknown:
                await ticket
            assert unknown.value.was_received is None
        assert client.standing is ClientState.RECONNECTING
        with pytest.raises(NotConnectedError, match="the client is reconnecting"):
            client.new_order(**BUY)
        await ready
        for ticket in lost + received[1:]:
            with pytest.raises(NotReceivedError, match="safe to send again"):
                await ticket.resolution()
        assert (await received[0].resolution()).client_order_id == 1
        assert len(peer.commands) == 4
        peer.journaled = True
        peer.answers[NewOrder] = accept_order
        again = client.new_order(**BUY)
        assert (again.number, again.client_order_id) == (3, 5)
        await again
        assert client.pending_count == 0
        reason = states.changes[1].reason
        assert states.seen == [ClientState.READY, ClientState.RECONNECTING, ClientState.READY]
        assert isinstance(reason, ConnectionLostError)
        assert str(reason) == "connection lost: closed without a word"
        assert [log_on.next_number for log_on in peer.log_ons] == [0, 1]
        await client.close()


@on_both_loops
async def test_attempts_are_bounded() -> None:
    states = States()
    async with Peer() as peer:
        client = await peer.client(on_state=states, reconnect=QUICK)
        closed = asyncio.ensure_future(states.next(ClientState.CLOSED))
        peer.stop()
        peer.line.close()
        change = await closed
        assert isinstance(change.reason, ConnectError)
        assert [change.attempt for change in states.changes] == [0, 1, 2, 3, 4, 5, 0]
        with pytest.raises(NotConnectedError, match="the client is closed"):
            client.new_order(**BUY)


@on_both_loops
async def test_close_ends_the_attempts() -> None:
    states = States()
    async with Peer() as peer:
        slow = Backoff(initial_ms=3_600_000, maximum_ms=3_600_000)
        client = await peer.client(on_state=states, reconnect=slow)
        [ticket] = await send_unanswered(peer, client, 1)
        again = asyncio.ensure_future(states.next(ClientState.RECONNECTING))
        peer.line.close()
        await again
        await client.close()
        assert states.seen[-1] is ClientState.CLOSED
        with pytest.raises(OutcomeUnknownError, match="the client was closed"):
            await ticket.resolution()


@on_both_loops
async def test_some_ends_are_lasting() -> None:
    for code in (
        TerminateCode.REPLACED,
        TerminateCode.MALFORMED,
        TerminateCode.FRAME_SIZE,
        TerminateCode.PROTOCOL_VIOLATION,
        TerminateCode.LOG_OUT,
    ):
        states = States()
        async with Peer() as peer:
            await peer.client(on_state=states, reconnect=QUICK)
            closed = asyncio.ensure_future(states.next(ClientState.CLOSED))
            peer.line.terminate(code)
            assert isinstance((await closed).reason, TerminatedError)
            assert states.seen == [ClientState.READY, ClientState.CLOSED]
            assert len(peer.lines) == 1


@on_both_loops
async def test_a_log_on_that_is_refused_for_good_ends_the_attempts() -> None:
    states = States()
    endless = Backoff(initial_ms=1, maximum_ms=1, attempts_max=10**9)
    async with Peer() as peer:
        await peer.client(on_state=states, reconnect=endless)
        peer.rejected = LogOnRejected(RejectCode.SHUTTING_DOWN, 0, 0, "")
        again = asyncio.ensure_future(states.next(ClientState.RECONNECTING))
        closed = asyncio.ensure_future(states.next(ClientState.CLOSED))
        peer.line.terminate(TerminateCode.SHUTDOWN)
        await again
        while len(peer.lines) < 3:  # SHUTTING_DOWN is tried again.
            await asyncio.sleep(0)
        peer.rejected = LogOnRejected(RejectCode.UNKNOWN_KEY, 3, 0, "")
        change = await closed
        assert isinstance(change.reason, LogOnRejectedError)
        assert change.reason.code == RejectCode.UNKNOWN_KEY


# What a venue may do wrong.


@on_both_loops
async def test_the_venue_closes_in_the_middle_of_a_frame() -> None:
    states = States()
    async with Peer() as peer:
        await peer.client(on_state=states)
        closed = asyncio.ensure_future(states.next(ClientState.CLOSED))
        peer.line.send_raw(encode_frame(SEQUENCED, 1, encode(REPORT))[:-1])
        peer.line.close()
        change = await closed
        assert str(change.reason) == (
            "connection lost: the venue closed it in the middle of a frame"
        )


@on_both_loops
async def test_the_venue_closes_before_the_log_on() -> None:
    async with Peer() as peer:
        connecting = asyncio.ensure_future(peer.client())
        while not peer.lines:
            await asyncio.sleep(0)
        peer.line.abort()
        with pytest.raises(ConnectionLostError):
            await connecting


@on_both_loops
async def test_an_unknown_message_is_skipped() -> None:
    async with Peer() as peer, await peer.client() as client:
        news = b"\x92\xcd\x03\xe7\xa4news"
        for kind in (SESSION, UNSEQUENCED, SEQUENCED):
            peer.line.send_raw(encode_frame(kind, 1, news))
        peer.line.machine.numbers_sent(2, NOW)
        await client.new_order(**BUY)
        assert client.unknown_count == 3


@on_both_loops
async def test_a_venue_that_breaks_the_protocol_is_told_and_left() -> None:
    rejected = encode_frame(SESSION, 1, encode(LogOnRejected(1, 0, 0, "")))
    for data, code in (
        (b"\xff" * 24, TerminateCode.MALFORMED),
        (bytes(24), TerminateCode.FRAME_SIZE),
        (encode_frame(SEQUENCED, 1, b"\xc1"), TerminateCode.MALFORMED),
        (encode_frame(SEQUENCED, 2, encode(REPORT)), TerminateCode.PROTOCOL_VIOLATION),
        (rejected, TerminateCode.PROTOCOL_VIOLATION),
    ):
        states = States()
        async with Peer() as peer:
            client = await peer.client(on_state=states, reconnect=QUICK)
            [ticket] = await send_unanswered(peer, client, 1)
            peer.line.send_raw(data)
            with pytest.raises(OutcomeUnknownError):
                await ticket
            reason = states.changes[-1].reason
            assert isinstance(reason, TerminatedError)
            assert (reason.code, reason.by_venue) == (code, False)
            await peer.line.lost
            assert peer.ended == [Terminate(code, reason.text)]


@on_both_loops
async def test_a_connection_can_be_lost_more_than_once() -> None:
    states = States()
    async with Peer() as peer:
        client = await peer.client(on_state=states, reconnect=QUICK)
        for connection in range(2, 5):
            ready = asyncio.ensure_future(states.next(ClientState.READY))
            peer.line.close()
            await ready
            assert client.accepted.connection == connection
            await client.new_order(**BUY)
        await client.close()
        await peer.line.lost
        assert peer.ended == [None, None, None, Terminate(TerminateCode.LOG_OUT, "")]
        assert [change.attempt for change in states.changes] == [0, 1, 0, 1, 0, 1, 0, 0]
