"""Drop copies over lost connections and over processes: every report once, at its position."""

import asyncio
import random

import msgspec
import pytest

from exchange.client import (
    CopiedReport,
    DropCopyPosition,
    EpochChangedError,
    FeedRejectError,
    NotConnectedError,
    RequestEndedError,
)
from exchange.client import arrivals as arrivals_module
from protocol.codes import DropCopyScope, RejectCode, RequestEndCode
from protocol.feed import DropCopyMark, DropCopyReport, DropCopyRequest, RequestEnd
from protocol.order_entry import OrderExpired
from protocol.records import AccountRecorded
from protocol.wire import encode
from tests.exchange.client.feed import EPOCH, NOW, Feed
from tests.exchange.client.feed_peer import FeedLine, FeedPeer, copied
from tests.exchange.loops import on_both_loops

BEGINNING = DropCopyPosition(1, 0)
PLACES = [(sequence, index) for sequence in range(5, 25) for index in range(sequence % 4)]
"""Commands with no to three reports."""


def peer_with_copies() -> FeedPeer:
    peer = FeedPeer(Feed())
    peer.copies = [copied(*place) for place in PLACES]
    return peer


def places(reports: list[CopiedReport]) -> list[tuple[int, int]]:
    return [(report.sequence, report.index) for report in reports]


@on_both_loops
async def test_every_report_once_wherever_connections_end() -> None:
    for seed in range(12):
        rng = random.Random(seed)
        async with peer_with_copies() as peer:
            peer.cuts = [rng.randrange(0, 400) for _ in range(30)]
            async with await peer.client() as client:
                told: list[CopiedReport] = []
                copy = await client.drop_copy(position=BEGINNING, on_report=told.append)
                await copy.wait_for(peer.sequence)
                assert places(told) == PLACES, f"seed {seed}"
                assert copy.position == DropCopyPosition(peer.sequence + 1, 0)
                assert len(peer.asked(DropCopyRequest)) > 3


@on_both_loops
async def test_the_stored_position_goes_on_in_another_client() -> None:
    """Whatever a reader has handled, the next one gets the rest and nothing else."""
    async with peer_with_copies() as peer:
        for count in range(len(PLACES) + 1):
            async with await peer.client() as client:
                copy = await client.drop_copy(position=BEGINNING)
                first = [await anext(copy) for _ in range(count)]
                position = copy.position
            async with await peer.client() as client:
                copy = await client.drop_copy(position=position)
                rest = [await anext(copy) for _ in PLACES[count:]]
            assert places(first + rest) == PLACES
            assert all(isinstance(report.report, OrderExpired) for report in rest)


@on_both_loops
async def test_only_what_is_new_begins_where_the_feed_says() -> None:
    async with peer_with_copies() as peer, await peer.client() as client:
        copy = await client.drop_copy(scope=DropCopyScope.ACCOUNTS, accounts=[3, 4])
        last = peer.sequence
        assert copy.position == DropCopyPosition(last + 1, 0), "also before anything has come"
        asked = peer.asked(DropCopyRequest)
        assert [(one.scope, one.accounts) for one in asked] == [(DropCopyScope.ACCOUNTS, [3, 4])]
        assert [(one.from_sequence, one.from_index) for one in asked] == [(0, 0)]
        peer.line.close()
        peer.copies.append(copied(last + 3, 0))
        assert places([await anext(copy)]) == [(last + 3, 0)]
        assert copy.position == DropCopyPosition(last + 3, 1)
        again = peer.asked(DropCopyRequest)[-1]
        assert (again.from_sequence, again.from_index) == (last + 1, 0)


@on_both_loops
async def test_reports_and_records_come_as_messages() -> None:
    record = AccountRecorded(9, NOW, 3, 2, "main", "USD")
    async with peer_with_copies() as peer, await peer.client() as client:
        peer.copies = [
            DropCopyReport(0, 0, 0, 1, 0, msgspec.Raw(encode(record))),
            DropCopyReport(0, 7, 41, 2, 1, msgspec.Raw(encode([9_999, 9, NOW]))),
            copied(12, 0),
        ]
        marks: list[DropCopyMark] = []
        told: list[CopiedReport] = []
        copy = await client.drop_copy(
            position=BEGINNING, on_report=told.append, on_mark=marks.append
        )
        await copy.wait_for(12)
        assert told[0] == CopiedReport(9, 1, 0, 0, False, record)
        assert (told[1].sequence, told[1].index, told[1].is_replayed) == (12, 0, True)
        assert copy.unknown_count == 1, "a report of a newer venue"
        assert [mark.sequence for mark in marks] == [0, 12]
        assert copy.mark == marks[-1]


@on_both_loops
async def test_a_slow_reader_holds_the_socket() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrivals_module, "REPORTS_MAX", 4)
        patch.setattr(arrivals_module, "REPORTS_RESUME", 2)
        async with peer_with_copies() as peer, await peer.client() as client:
            copy = await client.drop_copy(position=BEGINNING)
            for _ in range(50):
                await asyncio.sleep(0)
            assert copy.is_full
            assert copy.position == BEGINNING
            assert places([await anext(copy) for _ in PLACES]) == PLACES


@on_both_loops
async def test_how_a_drop_copy_ends() -> None:
    async with peer_with_copies() as peer, await peer.client() as client:

        def refuse(line: FeedLine, asked: DropCopyRequest) -> None:
            line.refuse(asked, RejectCode.UNKNOWN_ACCOUNT, 3, 9)

        peer.answers[DropCopyRequest] = refuse
        with pytest.raises(FeedRejectError, match="UNKNOWN_ACCOUNT: accounts"):
            await client.drop_copy(scope=DropCopyScope.ACCOUNTS, accounts=[9])
        peer.answers[DropCopyRequest] = FeedLine.drop_copy
        copy = await client.drop_copy()
        waiting = asyncio.ensure_future(copy.wait_for(10**6))
        await asyncio.sleep(0)
        peer.line.send(RequestEnd(copy.request_id, RequestEndCode.NOT_PERMITTED, 0))
        with pytest.raises(RequestEndedError, match="the drop copy: NOT_PERMITTED"):
            await anext(copy)
        with pytest.raises(RequestEndedError):
            await waiting
        closed = await client.drop_copy(on_report=print)
        closed.close()
        with pytest.raises(NotConnectedError):
            await closed.wait_for(10**6)
        with pytest.raises(RuntimeError, match="callback"):
            await anext(closed)


@on_both_loops
async def test_a_position_means_nothing_in_another_epoch() -> None:
    async with peer_with_copies() as peer, await peer.client() as client:
        copy = await client.drop_copy(position=BEGINNING)
        peer.epoch = EPOCH + 5
        peer.line.close()
        with pytest.raises(EpochChangedError, match=f"in epoch {EPOCH + 5}"):
            [report async for report in copy]
        assert client.is_connected
