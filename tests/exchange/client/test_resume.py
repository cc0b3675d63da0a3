"""Streams that go on: reports once each over lost connections, tickets settled, state images."""

import asyncio
import random
from collections.abc import Sequence
from typing import Any, Final

import pytest

from exchange.client import (
    Backoff,
    Balance,
    Client,
    ClientError,
    ClientState,
    LogOnRejectedError,
    NotConnectedError,
    NotReceivedError,
    OpenOrder,
    OrderRejectedError,
    OutcomeUnknownError,
    Position,
    ReportsLostError,
    SessionRejectError,
    StateChange,
    StateImage,
    StateUnavailableError,
    Ticket,
)
from exchange.client import inbox as inbox_module
from exchange.client.images import ImageDesk
from protocol.codes import RejectCode, TerminateCode
from protocol.framing import SEQUENCED, UNSEQUENCED, encode_frame
from protocol.order_entry import NewOrder, OrderAccepted, OrderExpired, OrderRejected
from protocol.transport import (
    LogOnRejected,
    NotApplied,
    SessionReject,
    StateBalances,
    StateEnd,
    StateOrders,
    StatePositions,
)
from protocol.wire import VenueReport, encode
from tests.exchange.client.peer import NOW, Peer, accept_order, silence
from tests.exchange.client.trading import BUY, QUICK, States, send_unanswered
from tests.exchange.loops import on_both_loops

AT_ONCE: Final = Backoff(initial_ms=0, maximum_ms=0, attempts_max=5)
STATE_TAG: Final = 4

ORDER_ROW: Final = (1_001, 1, 3, 2, 1, 5_000, 100, 0, 1, 0)
POSITION_ROW: Final = (2, 3, -400)
BALANCE_ROW: Final = (2, 10**9, 250)


def expired(number: int) -> OrderExpired:
    """A report that says which one it is."""
    return OrderExpired(number, NOW, number, 1_000 + number, 100, 0, 1)


def rejected(order: NewOrder, number: int) -> list[Any]:
    return [OrderRejected(1, NOW, order.client_order_id, number, NOW, 0, 41, 6, 100, 1)]


def state_parts(sequence: int, next_number: int, orders: int = 1) -> list[Any]:
    """An image as of a sequence, with the reports below a number."""
    parts = [StateOrders(sequence, [ORDER_ROW]) for _ in range(orders)]
    end = StateEnd(sequence, NOW, next_number, 5, 9, orders, 1, 1)
    rows = StatePositions(sequence, [POSITION_ROW]), StateBalances(sequence, [BALANCE_ROW])
    return [*parts, *rows, end]


async def reconnect(client: Client, peer: Peer, states: States) -> StateChange:
    """Lose the connection and wait until the client is ready again."""
    ready = asyncio.ensure_future(states.next(ClientState.READY))
    peer.line.close()
    return await ready


async def take(reports: Any, count: int) -> list[VenueReport]:
    return [await anext(reports) for _ in range(count)]


# Reports over lost connections.


@on_both_loops
async def test_a_stream_cut_anywhere_comes_once_and_in_order() -> None:
    """The connection is lost after every possible number of bytes of a replay, then goes on."""
    called: list[VenueReport] = []
    async with Peer() as peer:
        client = await peer.client(on_report=called.append, reconnect=AT_ONCE)
        reports = client.reports()
        frame_size = len(encode_frame(SEQUENCED, 1, encode(expired(200))))
        for cut in range(2 * frame_size + 1):
            before = len(peer.history)
            peer.report(*[expired(200 + before + i) for i in range(3)])
            peer.replay_cut = cut
            peer.line.close()
            # The cut ends that connection; the next one sends the rest and stays.
            assert await take(reports, 3) == peer.history[before:]
        wanted = [log_on.next_number for log_on in peer.log_ons]
        assert called == peer.history
        assert wanted == sorted(wanted)
        assert len(peer.lines) == 1 + 2 * (2 * frame_size + 1)
        assert client.pending_count == 0
        await client.close()


@on_both_loops
async def test_replays_that_are_cut_again_and_again() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    called: list[VenueReport] = []
    async with Peer() as peer:
        client = await peer.client(on_report=called.append, reconnect=AT_ONCE)
        reports = client.reports()
        for _ in range(60):
            count = rng.randrange(8)
            before = len(peer.history)
            peer.report(*[expired(before + i) for i in range(count)])
            line_count = len(peer.lines)
            peer.replay_cut = rng.randrange(400)
            peer.line.close()
            while len(peer.lines) < line_count + 2 or client.standing is not ClientState.READY:
                await asyncio.sleep(0)
            # Live ones follow the replay without a seam.
            peer.line.send(expired(before + count))
            assert await take(reports, count + 1) == peer.history[before:]
        assert called == peer.history
        await client.close()


@on_both_loops
async def test_a_replay_and_live_reports_are_one_stream() -> None:
    states = States()
    async with Peer() as peer:
        client = await peer.client(on_state=states, reconnect=QUICK)
        reports = client.reports()
        peer.line.send(expired(1))
        await take(reports, 1)
        peer.report(expired(2), expired(3))
        change = await reconnect(client, peer, states)
        assert change.reason is None
        peer.line.send(expired(4))
        assert await take(reports, 3) == [expired(2), expired(3), expired(4)]
        assert [log_on.next_number for log_on in peer.log_ons] == [0, 2]
        await client.close()


# Tickets in every state at the cut.


async def order_in_every_state(peer: Peer, client: Client) -> list[Ticket[OrderAccepted]]:
    """Six orders: answered; accepted and rejected in the replay; refused by the gateway, its word
    lost; arrived and lost with the venue; never arrived."""
    answered = client.new_order(**BUY)
    await answered
    accepted, refused, unheard = await send_unanswered(peer, client, 3)
    orders = [command for command in peer.commands if isinstance(command, NewOrder)]
    peer.report(*accept_order(orders[1], 2), expired(9), *rejected(orders[2], 3))
    peer.journaled = False
    [lost] = await send_unanswered(peer, client, 1)
    peer.line.pause_reading()
    return [answered, accepted, refused, unheard, lost, client.new_order(**BUY)]


@on_both_loops
async def test_tickets_in_every_state_are_settled() -> None:
    states = States()
    called: list[VenueReport] = []
    async with Peer() as peer:
        client = await peer.client(on_state=states, on_report=called.append, reconnect=QUICK)
        tickets = await order_in_every_state(peer, client)
        answered, accepted, refused, *without = tickets
        ready = asyncio.ensure_future(states.next(ClientState.READY))
        peer.line.abort()
        for ticket in tickets[1:]:
            with pytest.raises(OutcomeUnknownError):
                await ticket
        await ready
        assert (await answered.resolution()).client_order_id == 1
        assert (await accepted.resolution()).client_order_id == 2
        assert await accepted is called[1]
        with pytest.raises(OrderRejectedError, match="QUANTITY_ZERO"):
            await refused.resolution()
        for ticket in without:
            with pytest.raises(NotReceivedError):
                await ticket.resolution()
            assert ticket.acknowledged_ns == 0
        assert client.pending_count == 0
        assert len(peer.commands) == 5, "nothing is sent again"
        assert client.highest_client_order_id == 6
        await client.close()


@on_both_loops
async def test_what_the_gateway_may_have_refused_waits_for_the_whole_replay() -> None:
    """Between the log-on and the end of the replay an answer may still come."""
    states = States()
    async with Peer() as peer:
        client = await peer.client(on_state=states, reconnect=QUICK)
        refused, accepted = await send_unanswered(peer, client, 2)
        order = peer.commands[1]
        assert isinstance(order, NewOrder)
        peer.report(expired(9), *accept_order(order, 2))
        line_count = len(peer.lines)
        peer.replay_cut = len(encode_frame(SEQUENCED, 1, encode(expired(9))))
        peer.line.close()
        settled = asyncio.ensure_future(accepted.resolution())
        while len(peer.lines) < line_count + 1 or client.standing is not ClientState.READY:
            await asyncio.sleep(0)
        with pytest.raises(OutcomeUnknownError, match="the venue has received it") as unknown:
            refused.result()
        assert unknown.value.was_received
        assert not refused.is_final
        assert (await settled).client_order_id == 2  # On the connection after that one.
        with pytest.raises(NotReceivedError):
            await refused.resolution()
        await client.close()


@on_both_loops
async def test_new_requests_during_a_replay_wait_for_their_own_answers() -> None:
    states = States()
    async with Peer() as peer:
        client = await peer.client(on_state=states, reconnect=QUICK)
        [refused] = await send_unanswered(peer, client, 1)
        peer.report(expired(1), expired(2))
        peer.holds_replay = True
        await reconnect(client, peer, states)
        [new] = await send_unanswered(peer, client, 1)
        assert not refused.is_final
        peer.line.finish_replay()
        with pytest.raises(NotReceivedError):
            await refused.resolution()
        assert not new.is_done
        order = peer.commands[1]
        assert isinstance(order, NewOrder)
        peer.line.send(*accept_order(order, 2))
        assert (await new).client_order_id == 2
        await client.close()


@on_both_loops
async def test_a_gap_that_the_venue_names_settles_tickets_of_this_connection() -> None:
    async with Peer() as peer, await peer.client() as client:
        first, second = await send_unanswered(peer, client, 2)
        throttled = RejectCode.THROTTLED
        peer.line.send(NotApplied(1, 1), SessionReject(2, 10, throttled, 0, 7_000, "50000/s"))
        with pytest.raises(NotReceivedError):
            await first
        with pytest.raises(SessionRejectError, match="THROTTLED: the session sends") as caught:
            await second
        assert caught.value.retry_after_ns == 7_000


# Reports that the venue no longer has.


@on_both_loops
async def test_lost_reports_are_told_with_the_state_in_their_place() -> None:
    states = States()
    losses: list[ReportsLostError] = []
    called: list[VenueReport] = []
    async with Peer() as peer:
        callbacks = {"on_lost": losses.append, "on_report": called.append}
        client = await peer.client(on_state=states, reconnect=QUICK, **callbacks)
        reports = client.reports()
        peer.line.send(expired(1), expired(2))
        await take(reports, 2)
        [ticket] = await send_unanswered(peer, client, 1)
        peer.report(*[expired(number) for number in range(3, 8)])
        peer.ring_start = 4
        # Three reports are in the image, two come between its parts and are not.
        parts = state_parts(77, 11, 2)
        late = [expired(number) for number in range(8, 13)]
        peer.state_parts = lambda: [*late[:3], *parts[:1], late[3], *parts[1:4], late[4], parts[4]]
        change = await reconnect(client, peer, states)
        assert isinstance(change.reason, ReportsLostError)
        assert (change.reason.first_number, change.reason.count) == (3, 5)
        assert change.reason.image is None
        with pytest.raises(OutcomeUnknownError, match="among reports that were lost") as unknown:
            await ticket.resolution()
        assert unknown.value.was_received
        with pytest.raises(ReportsLostError, match="8 execution reports from number 3") as lost:
            await anext(reports)
        image = StateImage(
            sequence=77,
            time_ns=NOW,
            next_number=11,
            last_client_number=5,
            highest_client_order_id=9,
            orders=[OpenOrder(*ORDER_ROW), OpenOrder(*ORDER_ROW)],
            positions=[Position(*POSITION_ROW)],
            balances=[Balance(*BALANCE_ROW)],
        )
        assert lost.value.image == image
        assert [loss.image for loss in losses] == [image]
        peer.line.send(expired(13))
        assert await take(reports, 3) == [expired(11), expired(12), expired(13)]
        assert called == [expired(number) for number in (1, 2, 11, 12, 13)]
        assert [log_on.next_number for log_on in peer.log_ons] == [0, 3]
        assert peer.state_request_count == 1
        await client.close()


@on_both_loops
async def test_tickets_are_settled_while_reports_wait_for_the_image() -> None:
    states = States()
    called: list[VenueReport] = []
    async with Peer() as peer:
        client = await peer.client(on_state=states, on_report=called.append, reconnect=QUICK)
        reports = client.reports()
        peer.report(expired(1))
        peer.ring_start = 2
        await reconnect(client, peer, states)
        await client.new_order(**BUY)
        assert called == [], "the report waits for the image"
        parts = state_parts(9, 2)
        peer.line.send(*parts)
        with pytest.raises(ReportsLostError):
            await anext(reports)
        assert isinstance(await anext(reports), OrderAccepted)
        await client.close()


@on_both_loops
async def test_a_state_model_is_the_same_with_and_without_the_loss() -> None:
    """Whoever applies image and reports as they come has what whoever saw every report has."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(20):
        states = States()
        async with Peer() as peer:
            client = await peer.client(on_state=states, reconnect=AT_ONCE)
            reports = client.reports()
            total = rng.randrange(10, 30)
            lost_to = rng.randrange(1, total - 5)
            taken = rng.randrange(lost_to, total)
            peer.report(*[expired(number) for number in range(1, lost_to + 1)])
            peer.ring_start = lost_to + 1

            def answer(lost_to: int = lost_to, taken: int = taken, total: int = total) -> list[Any]:
                live = [expired(number) for number in range(lost_to + 1, total + 1)]
                before, after = live[: taken - lost_to], live[taken - lost_to :]
                parts = state_parts(taken, taken + 1, 3)
                where = sorted(rng.choices(range(len(parts)), k=len(after)))
                mixed = [*before]
                for place, part in enumerate(parts):
                    mixed += [report for report, at in zip(after, where, strict=True) if at < place]
                    after = [r for r, at in zip(after, where, strict=True) if at >= place]
                    where = [at for at in where if at >= place]
                    mixed.append(part)
                return [*mixed, *after]

            peer.state_parts = answer
            await reconnect(client, peer, states)
            with pytest.raises(ReportsLostError) as lost:
                await anext(reports)
            assert lost.value.image is not None
            # The model: the set of orders that have expired, the image stands for 1 to `taken`.
            seen = [*range(1, lost.value.image.sequence + 1)]
            while seen[-1] < total:
                report = await anext(reports)
                assert isinstance(report, OrderExpired)
                seen.append(report.sequence)
            assert seen == [*range(1, total + 1)]
            await client.close()


@on_both_loops
async def test_an_image_is_asked_for_again_after_a_second_loss() -> None:
    states = States()
    async with Peer() as peer:
        client = await peer.client(on_state=states, reconnect=QUICK)
        reports = client.reports()
        for total in (3, 6):  # The first image never comes; more is lost before the second.
            peer.report(*[expired(number) for number in range(total - 2, total + 1)])
            peer.ring_start = total + 1
            if total == 6:
                peer.state_parts = lambda: state_parts(50, 7)
            await reconnect(client, peer, states)
            await peer.line.until(lambda: peer.state_request_count == len(peer.log_ons) - 1)
        with pytest.raises(ReportsLostError, match="6 execution reports from number 1"):
            await anext(reports)
        peer.line.send(expired(7))
        assert await take(reports, 1) == [expired(7)]
        await client.close()


@on_both_loops
async def test_a_loss_without_an_image_is_told_all_the_same() -> None:
    for refusal in (
        [SessionReject(0, STATE_TAG, RejectCode.UNKNOWN_TAG, 0, 0, "no such thing")],
        [*state_parts(5, 3)[:2], state_parts(6, 3)[2], state_parts(5, 3)[3]],  # Of two moments.
        [*state_parts(5, 3)[1:]],  # An order is missing.
    ):
        states = States()
        losses: list[ReportsLostError] = []
        async with Peer() as peer:
            client = await peer.client(on_state=states, on_lost=losses.append, reconnect=QUICK)
            reports = client.reports()
            peer.report(expired(1), expired(2))
            peer.ring_start = 3
            answer = [expired(3), *refusal]
            peer.state_parts = answer.copy
            await reconnect(client, peer, states)
            with pytest.raises(ReportsLostError, match="2 execution reports from number 1") as lost:
                await anext(reports)
            assert lost.value.image is None
            assert losses == [lost.value]
            assert await take(reports, 1) == [expired(3)]
            await client.close()


@on_both_loops
async def test_the_end_lets_go_of_reports_that_wait() -> None:
    states = States()
    async with Peer() as peer:
        client = await peer.client(on_state=states, reconnect=QUICK)
        reports = client.reports()
        peer.report(expired(1))
        peer.ring_start = 2
        await reconnect(client, peer, states)
        peer.line.send(expired(2))
        peer.line.terminate(TerminateCode.REPLACED)
        with pytest.raises(ReportsLostError):
            await anext(reports)
        assert await take(reports, 1) == [expired(2)]


@on_both_loops
async def test_reports_that_wait_are_bounded() -> None:
    states = States()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inbox_module, "REPORTS_HELD_MAX", 4)
        async with Peer() as peer:
            client = await peer.client(on_state=states, reconnect=QUICK)
            reports = client.reports()
            peer.report(expired(1))
            peer.ring_start = 2
            await reconnect(client, peer, states)
            peer.line.send(*[expired(number) for number in range(2, 8)])
            with pytest.raises(ReportsLostError) as lost:
                await anext(reports)
            assert lost.value.image is None
            assert await take(reports, 6) == [expired(number) for number in range(2, 8)]
            peer.line.send(*state_parts(9, 8))  # Too late; nobody waits for it.
            peer.line.send(expired(8))
            assert await take(reports, 1) == [expired(8)]
            await client.close()


@on_both_loops
async def test_a_number_that_the_venue_never_gave_ends_the_client() -> None:
    """The journal of the venue is not the one that the client knows."""
    states = States()
    async with Peer() as peer:
        client = await peer.client(on_state=states, reconnect=QUICK)
        peer.line.send(expired(1), expired(2))
        reports = client.reports()
        await take(reports, 2)
        closed = asyncio.ensure_future(states.next(ClientState.CLOSED))
        peer.rejected = LogOnRejected(RejectCode.NUMBER_AHEAD, 6, 1, "")
        peer.line.close()
        change = await closed
        assert isinstance(change.reason, LogOnRejectedError)
        assert "next_number is ahead of the venue, whose next number is 1" in str(change.reason)


# The state when it is asked for.


@on_both_loops
async def test_the_state_can_be_asked_for() -> None:
    async with Peer() as peer, await peer.client() as client:
        peer.state_parts = lambda: state_parts(12, 1)
        image = await client.state()
        assert image.orders == [OpenOrder(*ORDER_ROW)]
        assert image.orders[0].client_order_id == 1
        assert image.positions == [Position(account_id=2, instrument_id=3, position=-400)]
        assert image.balances == [Balance(account_id=2, cash=10**9, requirement=250)]
        assert (image.sequence, image.next_number) == (12, 1)
        assert (image.last_client_number, image.highest_client_order_id) == (5, 9)
        peer.state_parts = lambda: [StateEnd(13, NOW, 1, 0, 0, 0, 0, 0)]
        assert await client.state() == StateImage(13, NOW, 1, 0, 0, [], [], [])


@on_both_loops
async def test_who_asks_meanwhile_gets_the_next_image() -> None:
    async with Peer() as peer, await peer.client() as client:
        first = asyncio.ensure_future(client.state())
        await peer.line.until(lambda: peer.state_request_count == 1)
        second, third = (asyncio.ensure_future(client.state()) for _ in range(2))
        canceled = asyncio.ensure_future(client.state())
        await asyncio.sleep(0)
        canceled.cancel()
        peer.state_parts = lambda: state_parts(2, 1)
        peer.line.send(*state_parts(1, 1))
        assert (await first).sequence == 1
        assert (await second).sequence == 2
        assert await second is await third
        assert peer.state_request_count == 2


@on_both_loops
async def test_a_refused_request_is_made_again_when_that_can_help() -> None:
    async with Peer() as peer, await peer.client() as client:
        answers: list[Sequence[Any]] = [
            [SessionReject(0, STATE_TAG, RejectCode.THROTTLED, 0, 1_000, "one a second")],
            [SessionReject(0, STATE_TAG, RejectCode.IMAGE_IN_PROGRESS, 0, 1_000, "")],
            state_parts(3, 1),
        ]
        peer.state_parts = lambda: list(answers.pop(0))
        assert (await client.state()).sequence == 3
        peer.state_parts = lambda: [
            SessionReject(0, STATE_TAG, RejectCode.THROTTLED, 0, 1_000, "one a second")
        ]
        with pytest.raises(StateUnavailableError, match="THROTTLED: one a second") as caught:
            await client.state()
        assert (caught.value.code, caught.value.retry_after_ns) == (RejectCode.THROTTLED, 1_000)
        assert peer.state_request_count == 13


@on_both_loops
async def test_a_request_for_the_state_outlives_its_connection() -> None:
    states = States()
    async with Peer() as peer:
        client = await peer.client(on_state=states, reconnect=QUICK)
        asked = asyncio.ensure_future(client.state())
        await peer.line.until(lambda: peer.state_request_count == 1)
        peer.line.send(*state_parts(1, 1)[:2])  # Half an image, which is forgotten.
        peer.state_parts = lambda: state_parts(2, 1)
        again = asyncio.ensure_future(states.next(ClientState.RECONNECTING))
        peer.line.close()
        await again
        offline = asyncio.ensure_future(client.state())
        assert (await asked).sequence == 2
        assert (await offline).sequence == 2
        peer.state_parts = None
        abandoned = asyncio.ensure_future(client.state())
        await peer.line.until(lambda: peer.state_request_count == 3)
        await client.close()
        for refused in (abandoned, client.state()):
            with pytest.raises(NotConnectedError, match="the client is closed"):
                await refused


@on_both_loops
async def test_an_image_that_nobody_asked_for_is_dropped() -> None:
    async with Peer() as peer, await peer.client() as client:
        peer.line.send(*state_parts(1, 1))
        refusal = SessionReject(0, STATE_TAG, RejectCode.THROTTLED, 0, 1, "")
        peer.line.send_raw(encode_frame(UNSEQUENCED, 1, encode(refusal)))
        peer.answers[NewOrder] = accept_order
        await client.new_order(**BUY)
        peer.answers[NewOrder] = silence
        peer.state_parts = lambda: state_parts(2, 2)
        assert (await client.state()).sequence == 2


def test_parts_that_nobody_asked_for_take_no_memory() -> None:
    desk = ImageDesk()
    for part in state_parts(1, 1)[:3]:
        desk.take(part)
    assert desk.row_count == 0
    desk.ask = lambda: True
    results: list[StateImage | ClientError] = []
    desk.request(results.append)
    for part in state_parts(1, 1)[:3]:
        desk.take(part)
    assert desk.row_count == 3
    desk.take(state_parts(1, 1)[3])
    assert desk.row_count == 0
    assert len(results) == 1
