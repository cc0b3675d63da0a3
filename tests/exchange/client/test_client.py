"""The client against a venue's side of the session machine, over loopback sockets."""

import asyncio
import contextlib
import tempfile
from pathlib import Path
from typing import Any, Final

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from exchange.client import (
    AdminRejectedError,
    CancelRejectedError,
    Client,
    ClientState,
    ConnectError,
    LogOnRejectedError,
    NotConnectedError,
    NotReceivedError,
    OrderRejectedError,
    SendBufferFullError,
    SessionRejectError,
    StateChange,
    Ticket,
    connect,
    public_key_bytes,
    write_key,
)
from exchange.client import client as client_module
from exchange.client.limits import REPORTS_MAX
from protocol.admin import (
    Account,
    AdminRejected,
    Deposit,
    Event,
    Halt,
    Instrument,
    Key,
    Participant,
    Resume,
    Withdraw,
)
from protocol.codes import (
    CancelOnDisconnect,
    EventKind,
    OrderType,
    RejectCode,
    Role,
    Side,
    TerminateCode,
    TimeInForce,
)
from protocol.order_entry import (
    CancelOrder,
    CancelRejected,
    NewOrder,
    OrderAccepted,
    OrderCanceled,
    OrderExpired,
    OrderFilled,
    OrderRejected,
    OrderReplaced,
    ReplaceOrder,
)
from protocol.transport import LogOnRejected, NotApplied, SessionReject, Terminate
from protocol.wire import VenueReport
from tests.exchange.client.peer import KEY, NOW, Peer, accept_order, silence
from tests.exchange.loops import on_both_loops

BUY: Final[dict[str, Any]] = {
    "instrument_id": 3,
    "account_id": 2,
    "side": Side.BUY,
    "price": 5_000,
    "quantity": 100,
}


def fill(number: int) -> OrderFilled:
    return OrderFilled(1, NOW, number, 1_000 + number, 1, 3, 2, 1, 5_000, 100, 0, 100, 1, 0)


# Log-on and the end.


@on_both_loops
async def test_a_log_on_says_what_was_asked_for() -> None:
    async with Peer() as peer:
        peer.highest_client_order_id = 40
        options = {"cancel_on_disconnect": CancelOnDisconnect.ALWAYS, "cancel_grace_ms": 250}
        client = await peer.client(session="mm7", keepalive_ms=400, client="quoter", **options)
        assert client.venue == "VENUE"
        assert (client.accepted.session_id, client.accepted.connection) == (7, 1)
        assert client.highest_client_order_id == 40
        [log_on] = peer.log_ons
        assert (log_on.major, log_on.minor) == (1, 0)
        assert log_on.key == public_key_bytes(KEY)
        assert (log_on.session, log_on.client, log_on.keepalive_ms) == ("mm7", "quoter", 400)
        assert (log_on.cancel_on_disconnect, log_on.cancel_grace_ms) == (3, 250)
        assert log_on.next_number == 0
        await client.close()
        assert client.standing is ClientState.CLOSED
        await peer.line.lost
        assert peer.ended == [Terminate(TerminateCode.LOG_OUT, "")]
        await client.close()  # Again: nothing happens.


@on_both_loops
async def test_a_key_can_be_a_file_or_its_text() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mm1.pem"
        write_key(path, KEY)
        async with Peer() as peer:
            for key in (path, str(path), path.read_bytes()):
                async with await peer.client(key=key) as client:
                    assert client.standing is ClientState.READY


@on_both_loops
async def test_nobody_listens() -> None:
    async with Peer() as peer:
        port = peer.port
        peer.stop()
        expected = f"cannot connect to 127.0.0.1 port {port}: Connect"
        with pytest.raises(ConnectError, match=expected):
            await connect("127.0.0.1", port, key=KEY, session="mm1")


@on_both_loops
async def test_a_rejected_log_on_names_code_and_field() -> None:
    async with Peer() as peer:
        with pytest.raises(LogOnRejectedError) as caught:
            await peer.client(key=Ed25519PrivateKey.generate())
        assert caught.value.code == RejectCode.UNKNOWN_KEY
        assert caught.value.field_name == "key"
        assert str(caught.value) == (
            "log-on rejected: UNKNOWN_KEY: key the key has no rights at this venue"
        )
        peer.rejected = LogOnRejected(RejectCode.SESSION_LIMIT, 4, 256, "try later")
        with pytest.raises(LogOnRejectedError) as caught:
            await peer.client()
        assert caught.value.limit == 256
        assert str(caught.value).endswith("the venue has its 256 sessions (try later)")


@on_both_loops
async def test_a_canceled_connect_leaves_nothing_behind() -> None:
    async with Peer() as peer:
        task = asyncio.create_task(peer.client())
        while not peer.lines:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await peer.line.lost


# Requests.


@on_both_loops
async def test_an_order_is_accepted() -> None:
    async with Peer() as peer, await peer.client() as client:
        ticket = client.new_order(**BUY)
        assert not ticket.is_done
        assert client.pending_count == 1
        report = await ticket
        assert isinstance(report, OrderAccepted)
        assert (report.client_order_id, report.order_id, report.number) == (1, 1_001, 1)
        assert await ticket is report is ticket.result()
        assert 0 < ticket.sent_ns <= ticket.acknowledged_ns
        assert client.pending_count == 0
        [order] = peer.commands
        assert isinstance(order, NewOrder)
        assert order.client_time_ns > 0
        assert order == NewOrder(1, 3, 2, 1, 5_000, 100, client_time_ns=order.client_time_ns)


@on_both_loops
async def test_every_field_of_an_order_arrives() -> None:
    async with Peer() as peer, await peer.client() as client:
        await client.new_order(
            instrument_id=1,
            account_id=2,
            side=Side.SELL,
            quantity=300,
            price=7,
            order_type=OrderType.MARKET,
            time_in_force=TimeInForce.GTD,
            expire_time_ns=NOW,
            client_order_id=9,
        )
        [order] = peer.commands
        assert isinstance(order, NewOrder)
        time_ns = order.client_time_ns
        assert order == NewOrder(9, 1, 2, 2, 7, 300, 2, 2, NOW, time_ns)


@on_both_loops
async def test_client_order_ids_increase() -> None:
    async with Peer() as peer, await peer.client() as client:
        tickets: list[Ticket[Any]] = [
            client.new_order(**BUY),
            client.new_order(**BUY, client_order_id=10),
            client.new_order(**BUY),
            client.replace(target_client_order_id=10, price=1, quantity=1),
            client.new_order(**BUY, client_order_id=5),  # The venue's to refuse.
            client.new_order(**BUY),
        ]
        assert [ticket.client_order_id for ticket in tickets] == [1, 10, 11, 12, 5, 13]
        assert [ticket.number for ticket in tickets] == [1, 2, 3, 4, 5, 6]
        await asyncio.gather(*tickets)
        assert client.highest_client_order_id == 13


@on_both_loops
async def test_cancel_and_replace() -> None:
    async with Peer() as peer, await peer.client() as client:
        replaced = await client.replace(order_id=1_001, price=4_900, quantity=200)
        assert isinstance(replaced, OrderReplaced)
        assert (replaced.client_order_id, replaced.price, replaced.quantity) == (1, 4_900, 200)
        canceled = await client.cancel(client_order_id=1)
        assert isinstance(canceled, OrderCanceled)
        await client.cancel(order_id=1_001)
        replace, first, second = peer.commands
        assert isinstance(replace, ReplaceOrder)
        assert (replace.target_client_order_id, replace.order_id) == (0, 1_001)
        assert isinstance(first, CancelOrder)
        assert isinstance(second, CancelOrder)
        assert (first.client_order_id, first.order_id) == (1, 0)
        assert (second.client_order_id, second.order_id) == (0, 1_001)


@on_both_loops
async def test_rejected_requests_say_why() -> None:
    async with Peer() as peer, await peer.client() as client:
        off_tick = RejectCode.PRICE_OFF_TICK
        peer.answers[NewOrder] = lambda order, number: [
            OrderRejected(1, NOW, order.client_order_id, number, NOW, 0, off_tick, 5, 100, 1)
        ]
        ticket = client.new_order(**BUY)
        for _ in range(2):
            with pytest.raises(OrderRejectedError) as order_error:
                await ticket
        error = order_error.value
        assert (error.code, error.field, error.field_name, error.limit) == (
            off_tick,
            5,
            "price",
            100,
        )
        assert str(error) == (
            "NewOrder 1 rejected: PRICE_OFF_TICK: price 5000 is not on a tick; "
            "the tick size there is 100"
        )
        unknown = RejectCode.UNKNOWN_ORDER
        peer.answers[CancelOrder] = lambda cancel, number: [
            CancelRejected(1, NOW, cancel.client_order_id, 0, number, NOW, 0, 11, unknown, 1, 0, 0)
        ]
        with pytest.raises(CancelRejectedError) as cancel_error:
            await client.cancel(client_order_id=77)
        assert str(cancel_error.value) == (
            "CancelOrder 77 rejected: UNKNOWN_ORDER: client_order_id 77 "
            "names no open order of this session"
        )
        peer.answers[ReplaceOrder] = lambda replace, number: [
            CancelRejected(1, NOW, replace.client_order_id, 0, number, NOW, 0, 12, 52, 0, 0, 1)
        ]
        with pytest.raises(CancelRejectedError, match="NO_CHANGE: would change nothing"):
            await client.replace(order_id=1, price=1, quantity=1)


@on_both_loops
async def test_what_the_gateway_says_settles_requests_too() -> None:
    async with Peer() as peer, await peer.client() as client:
        code = RejectCode.INVALID_MESSAGE
        peer.answers[NewOrder] = lambda order, number: [
            SessionReject(number, 10, code, 6, 5_000, "NewOrder.quantity: Expected `int` >= 0")
        ]
        with pytest.raises(SessionRejectError) as caught:
            await client.new_order(**BUY)
        assert (caught.value.code, caught.value.field_name) == (code, "quantity")
        assert caught.value.retry_after_ns == 5_000
        assert str(caught.value).endswith("(NewOrder.quantity: Expected `int` >= 0)")
        peer.answers[NewOrder] = silence
        tickets = [client.new_order(**BUY) for _ in range(6)]
        await peer.line.until(lambda: len(peer.commands) == 7)
        peer.line.send(NotApplied(3, 2), SessionReject(7, 10, code, 0, 0, ""))
        with pytest.raises(SessionRejectError):
            await tickets[5]
        assert [ticket.is_done for ticket in tickets] == [False, True, True, False, False, True]
        peer.line.send(NotApplied(1, 2**61))
        for ticket in tickets[:5]:
            with pytest.raises(NotReceivedError, match="safe to send again"):
                await ticket


@on_both_loops
async def test_what_cannot_be_encoded_is_not_sent() -> None:
    async with Peer() as peer, await peer.client() as client:
        with pytest.raises(OverflowError):
            client.new_order(**BUY | {"quantity": 2**70})
        with pytest.raises(ValueError, match="Event takes 5013 bytes, at most 4072 are allowed"):
            await client.event("E", EventKind.BINARY, "x" * 5_000, "USD")
        assert client.pending_count == 0
        ticket = client.new_order(**BUY)
        assert (ticket.number, ticket.client_order_id) == (1, 1)
        await ticket


@on_both_loops
async def test_admin_commands_return_ids() -> None:
    async with Peer() as peer, await peer.client() as client:
        public_key = bytes(32)
        ids = [
            await client.participant("mm1"),
            await client.account(2, "main", "USD"),
            await client.key(2, public_key, Role.TRADE | Role.CANCEL_ONLY),
            await client.event("RAIN", EventKind.BINARY, "Will it rain?", "USD"),
            await client.instrument(1, "RAIN-YES", "Rain"),
            await client.instrument(
                1, "TEMP", "t", floor_price=-50, cap_price=50, tick_table=[(-50, 1), (0, 5)]
            ),
            await client.deposit(1, 5, 10**9),
            await client.withdraw(1, 6, 10**8),
            await client.halt(1),
            await client.resume(1),
            await client.admin(Participant("mm2")),
        ]
        assert ids == list(range(71, 82))
        assert peer.commands == [
            Participant("mm1"),
            Account(2, "main", "USD"),
            Key(2, public_key, 3),
            Event("RAIN", 1, "Will it rain?", "USD"),
            Instrument(1, "RAIN-YES", "Rain", 0, 10_000, [(0, 100)], 100),
            Instrument(1, "TEMP", "t", -50, 50, [(-50, 1), (0, 5)], 100),
            Deposit(1, 5, 10**9),
            Withdraw(1, 6, 10**8),
            Halt(1),
            Resume(1),
            Participant("mm2"),
        ]


@on_both_loops
async def test_a_rejected_admin_command_says_why() -> None:
    async with Peer() as peer, await peer.client() as client:
        peer.answers[Participant] = lambda _, number: [
            AdminRejected(1, NOW, number, 30, RejectCode.DUPLICATE_NAME, 1, 4)
        ]
        with pytest.raises(AdminRejectedError) as caught:
            await client.participant("mm1")
        assert caught.value.limit == 4
        assert str(caught.value) == (
            "Participant rejected: DUPLICATE_NAME: name mm1 is taken, by id 4"
        )


@on_both_loops
async def test_what_one_turn_sends_leaves_together() -> None:
    async with Peer() as peer, await peer.client() as client:
        read_count = peer.line.read_count
        await asyncio.gather(*[client.new_order(**BUY) for _ in range(100)])
        assert len(peer.commands) == 100
        assert peer.line.read_count == read_count + 1


# Reports.


@on_both_loops
async def test_reports_come_in_order_to_callback_and_iterator() -> None:
    called: list[VenueReport] = []
    async with Peer() as peer, await peer.client(on_report=called.append) as client:
        peer.answers[NewOrder] = lambda order, number: [
            *accept_order(order, number),
            fill(number),
            OrderExpired(1, NOW, number, 1_000 + number, 0, 100, 1),
        ]
        await client.new_order(**BUY)
        reports = client.reports()  # From here on.
        for _ in range(3):
            await client.new_order(**BUY)
        await client.close()
        read = [report async for report in reports]
        assert called[3:] == read
        assert [type(report) for report in read[:3]] == [OrderAccepted, OrderFilled, OrderExpired]
        assert [report.client_order_id for report in called if isinstance(report, OrderFilled)] == [
            *range(1, 5)
        ]
        assert [report async for report in client.reports()] == []


@on_both_loops
async def test_a_callback_sees_a_report_before_the_ticket_does() -> None:
    async with Peer() as peer:
        seen: list[bool] = []
        tickets: list[Ticket[OrderAccepted]] = []
        client = await peer.client(on_report=lambda _: seen.append(tickets[0].is_done))
        tickets.append(client.new_order(**BUY))
        await tickets[0]
        assert seen == [False]
        await client.close()


@on_both_loops
async def test_a_callback_that_raises_ends_nothing() -> None:
    complaints: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()

    def broken(_report: VenueReport) -> None:
        raise KeyError("of the user")

    async with Peer() as peer, await peer.client(on_report=broken) as client:
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        await client.new_order(**BUY)
        await client.new_order(**BUY)
        assert [str(context["exception"]) for context in complaints] == ["'of the user'"] * 2


@on_both_loops
async def test_a_slow_reader_stops_the_reading() -> None:
    count = 60_000
    async with Peer() as peer, await peer.client() as client:
        reports = client.reports()
        peer.line.send(*[fill(number) for number in range(1, count + 1)])
        assert peer.line.is_full
        queue: Any = reports
        while len(queue) < REPORTS_MAX:
            await asyncio.sleep(0)
        ticket = client.new_order(**BUY)
        await peer.line.until(lambda: len(peer.commands) == 1)
        for _ in range(100):  # Turns in which the client could read more, if it did.
            await asyncio.sleep(0)
        assert len(queue) == REPORTS_MAX
        assert peer.line.is_full
        assert not ticket.is_done
        for number in range(1, count + 1):
            assert len(queue) <= REPORTS_MAX
            report = await anext(reports)
            assert isinstance(report, OrderFilled)
            assert report.client_order_id == number
        await ticket


@on_both_loops
async def test_reports_have_one_reader() -> None:
    async with Peer() as peer, await peer.client() as client:
        waiting = asyncio.ensure_future(anext(client.reports()))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="one reader"):
            await anext(client.reports())
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting
        peer.line.send(fill(1))
        assert await anext(client.reports()) == fill(1)


# Bounds of sending.


@on_both_loops
async def test_a_full_send_buffer_refuses_and_drains() -> None:
    event = Event("E", EventKind.BINARY, "\N{GRINNING FACE}" * 128, "USD")
    async with Peer() as peer, await peer.client() as client:
        peer.answers[Event] = silence
        peer.line.pause_reading()
        error: Exception | None = None
        while error is None:
            try:
                client.submit(event)
            except SendBufferFullError as full:
                error = full
            if client.pending_count % 100 == 0:
                await asyncio.sleep(0)
        assert str(error) == "not sent: the send buffer is full"
        count = client.pending_count
        drained = asyncio.ensure_future(client.drain())
        await asyncio.sleep(0)
        assert not drained.done()
        peer.line.resume_reading()
        await drained
        client.submit(event)
        await peer.line.until(lambda: len(peer.commands) == count + 1)


@on_both_loops
async def test_requests_without_an_outcome_are_bounded() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client_module, "PENDING_MAX", 3)
        async with Peer() as peer, await peer.client() as client:
            peer.answers[NewOrder] = silence
            tickets = [client.new_order(**BUY) for _ in range(3)]
            with pytest.raises(SendBufferFullError, match="3 requests wait for their outcome"):
                client.new_order(**BUY)
            drained = asyncio.ensure_future(client.drain())
            await peer.line.until(lambda: len(peer.commands) == 3)
            assert not drained.done()
            order = peer.commands[0]
            assert isinstance(order, NewOrder)
            peer.line.send(*accept_order(order, 1))
            await drained
            await tickets[0]
            assert client.pending_count == 2


@on_both_loops
async def test_after_the_end_nothing_is_sent() -> None:
    changes: list[StateChange] = []
    async with Peer() as peer:
        client: Client = await peer.client(on_state=changes.append)
        await client.close()
        with pytest.raises(NotConnectedError, match="not sent: the client is closed"):
            client.new_order(**BUY)
        with pytest.raises(NotConnectedError):
            await client.drain()
        with pytest.raises(NotConnectedError):
            await client.participant("x")
        assert [change.state for change in changes] == [ClientState.READY, ClientState.CLOSED]
        assert peer.commands == []
