"""Lost connections: what is told, what is tried again, and what requests come to."""

import asyncio
from typing import Any, Final

import pytest

from exchange.client import (
    Backoff,
    Client,
    ClientState,
    ConnectError,
    ConnectionLostError,
    LogOnRejectedError,
    NotConnectedError,
    NotReceivedError,
    OutcomeUnknownError,
    ReportsLostError,
    StateChange,
    TerminatedError,
    Ticket,
)
from protocol.codes import RejectCode, Side, TerminateCode
from protocol.framing import SEQUENCED, SESSION, UNSEQUENCED, encode_frame
from protocol.order_entry import NewOrder, OrderAccepted, OrderExpired
from protocol.transport import LogOnRejected, Terminate, VenueHeartbeat
from protocol.wire import encode
from tests.exchange.client.loops import on_both_loops
from tests.exchange.client.peer import NOW, Peer, accept_order, silence

QUICK: Final = Backoff(initial_ms=1, maximum_ms=4, attempts_max=5)
BUY: Final[dict[str, Any]] = {
    "instrument_id": 3,
    "account_id": 2,
    "side": Side.BUY,
    "price": 5_000,
    "quantity": 100,
}
REPORT: Final = OrderExpired(1, NOW, 1, 1_001, 100, 0)


class States:
    """Records what `on_state` is told and lets a test wait for a state."""

    def __init__(self) -> None:
        self.changes: list[StateChange] = []
        self._waiters: list[tuple[ClientState, asyncio.Future[StateChange]]] = []

    def __call__(self, change: StateChange) -> None:
        self.changes.append(change)
        for state, waiter in self._waiters:
            if state is change.state and not waiter.done():
                waiter.set_result(change)

    async def next(self, state: ClientState) -> StateChange:
        waiter: asyncio.Future[StateChange] = asyncio.get_running_loop().create_future()
        self._waiters.append((state, waiter))
        return await waiter

    @property
    def seen(self) -> list[ClientState]:
        return [change.state for change in self.changes]


async def send_unanswered(peer: Peer, client: Client, count: int) -> list[Ticket[OrderAccepted]]:
    """Send orders that arrive at the peer and are not answered."""
    peer.answers[NewOrder] = silence
    tickets = [client.new_order(**BUY) for _ in range(count)]
    before = len(peer.commands)
    await peer.line.until(lambda: len(peer.commands) == before + count)
    return tickets


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
        peer.journaled = False  # What comes now is lost with the venue's process.
        lost = await send_unanswered(peer, client, 2)
        ready = asyncio.ensure_future(states.next(ClientState.READY))
        peer.line.close()
        for ticket in received + lost:
            with pytest.raises(OutcomeUnknownError) as unknown:
                await ticket
            assert unknown.value.was_received is None
        assert client.state is ClientState.RECONNECTING
        with pytest.raises(NotConnectedError, match="the client is reconnecting"):
            client.new_order(**BUY)
        await ready
        for ticket in lost:
            with pytest.raises(NotReceivedError):
                await ticket.resolution()
        for ticket in received:
            assert not ticket.is_final
            with pytest.raises(OutcomeUnknownError, match="the venue has received it") as unknown:
                ticket.result()
            assert unknown.value.was_received
        assert len(peer.commands) == 4
        peer.journaled = True
        peer.answers[NewOrder] = accept_order
        again = client.new_order(**BUY)
        assert (again.number, again.client_order_id) == (3, 5)
        await again
        # The venue's heartbeat says that the stream holds no answer: the gateway had refused them.
        peer.line.send(VenueHeartbeat(3))
        for ticket in received:
            with pytest.raises(OutcomeUnknownError):
                await ticket.resolution()
        assert client.pending_count == 0
        reason = states.changes[1].reason
        assert states.seen == [ClientState.READY, ClientState.RECONNECTING, ClientState.READY]
        assert isinstance(reason, ConnectionLostError)
        assert str(reason) == "connection lost: closed without a word"
        assert [log_on.next_number for log_on in peer.log_ons] == [0, 1]
        await client.close()


@on_both_loops
async def test_a_resumed_stream_settles_what_was_unknown() -> None:
    states = States()
    async with Peer() as peer:
        client = await peer.client(on_state=states, reconnect=QUICK)
        reports = client.reports()
        [ticket] = await send_unanswered(peer, client, 1)
        order = peer.commands[0]
        assert isinstance(order, NewOrder)
        ready = asyncio.ensure_future(states.next(ClientState.READY))
        peer.line.close()
        resolution = asyncio.ensure_future(ticket.resolution())
        await ready
        assert not resolution.done()
        peer.line.send(*accept_order(order, ticket.number))
        report = await resolution
        assert await ticket is report is await anext(reports)
        await client.close()


@on_both_loops
async def test_missed_reports_are_told_once() -> None:
    states = States()
    async with Peer() as peer:
        client = await peer.client(on_state=states, reconnect=QUICK)
        reports = client.reports()
        peer.line.send(REPORT, REPORT)
        for _ in range(2):
            await anext(reports)
        [ticket] = await send_unanswered(peer, client, 1)
        ready = asyncio.ensure_future(states.next(ClientState.READY))
        peer.next_number = 8
        peer.line.close()
        change = await ready
        assert isinstance(change.reason, ReportsLostError)
        assert (change.reason.first_number, change.reason.count) == (3, 5)
        with pytest.raises(OutcomeUnknownError) as unknown:
            await ticket.resolution()  # It was in a report that will not come.
        assert unknown.value.was_received
        with pytest.raises(ReportsLostError, match="5 execution reports from number 3 on"):
            await anext(reports)
        peer.line.send(REPORT)
        assert await anext(reports) == REPORT
        assert [log_on.next_number for log_on in peer.log_ons] == [0, 3]
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
