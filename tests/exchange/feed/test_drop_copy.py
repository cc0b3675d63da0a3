"""Drop copies: who gets what, in which order, and from any position on."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from exchange.feed.limits import PIECE_SIZE_MAX
from protocol.codes import DropCopyScope, RejectCode, Role
from protocol.feed import DropCopyMark, DropCopyReport, DropCopyRequest
from protocol.order_entry import OrderAccepted, OrderExpired, OrderRejected
from protocol.records import (
    AccountRecorded,
    KeyRecorded,
    ParticipantRecorded,
    SessionRecorded,
    VenueRecorded,
)
from protocol.wire import decode_copied
from tests.exchange.feed.desk import ADMIN, Desk, Reader
from tests.exchange.loops import on_both_loops, until

PARTICIPANT, ACCOUNTS, ALL = DropCopyScope
Position = tuple[int, int]


def request(scope: int = PARTICIPANT, sequence: int = 0, index: int = 0, **fields: Any) -> Any:
    return DropCopyRequest(4, scope, fields.get("accounts", []), sequence, index)


def expired(desk: Desk, account_id: int) -> OrderExpired:
    """A report of the command that has begun."""
    truth = desk.truth
    return OrderExpired(truth.sequence, truth.time_ns, 1, 1, 100, 0, account_id)


def rejected(desk: Desk, account_id: int) -> OrderRejected:
    truth = desk.truth
    return OrderRejected(
        truth.sequence, truth.time_ns, 7, 1, 0, 0, RejectCode.UNKNOWN_ACCOUNT, 0, 0, account_id
    )


def make_reports(desk: Desk, count: int) -> None:
    """Commands with reports to sessions 2 and 3, in records of three."""
    for number in range(count):
        desk.truth.begin()
        for session in desk.truth.rng.choice([(2,), (3,), (2, 3), (3, 2, 2), ()]):
            desk.report(session, expired(desk, session))
        if number % 3 == 2:
            desk.write()
    desk.write()


def positions(reader: Reader) -> list[Position]:
    reports = reader.all(DropCopyReport)
    return [(decode_copied(bytes(one.report)).sequence, one.index) for one in reports]


def marks(reader: Reader) -> list[int]:
    return [one.sequence for one in reader.all(DropCopyMark)]


@on_both_loops
async def test_what_is_new(tmp_path: Path) -> None:
    async with Desk(tmp_path) as desk:
        make_reports(desk, 5)
        await desk.settle()
        reader = desk.connect(2)
        sequence = desk.truth.sequence
        assert [type(one) for one in reader.ask(request())] == [DropCopyMark]
        assert marks(reader) == [sequence]
        desk.truth.begin()
        desk.report(3, expired(desk, 3))
        number = desk.report(2, expired(desk, 2))
        report = expired(desk, 2)
        desk.write()
        await desk.settle()
        (copy,) = reader.all(DropCopyReport)
        assert (copy.request_id, copy.session_id, copy.number, copy.index, copy.is_replayed) == (
            4,
            2,
            number,
            1,
            0,
        )
        assert decode_copied(bytes(copy.report)) == report


@on_both_loops
async def test_scopes(tmp_path: Path) -> None:
    async with Desk(tmp_path) as desk:
        desk.truth.begin()
        desk.report(2, rejected(desk, 3))  # it names the account of somebody else
        desk.truth.begin()
        desk.report(3, expired(desk, 3))
        desk.write()
        await desk.settle()
        readers = {}
        for name, key, asked in (
            ("two", 2, request(PARTICIPANT, 1)),
            ("three", 3, request(PARTICIPANT, 1)),
            ("account", 3, request(ACCOUNTS, 1, accounts=[3])),
            ("operator", ADMIN, request(ACCOUNTS, 1, accounts=[3])),
            ("all", ADMIN, request(ALL, 1)),
        ):
            readers[name] = desk.connect(key)
            readers[name].ask(asked)
        await until(lambda: all(len(marks(one)) == 2 for one in readers.values()))
        desk.truth.begin()
        desk.report(2, rejected(desk, 3))
        desk.report(3, expired(desk, 3))
        desk.write()
        await desk.settle()
        found = {
            name: [decode_copied(bytes(one.report)) for one in reader.all(DropCopyReport)]
            for name, reader in readers.items()
        }
        kinds = {name: [type(one) for one in reports] for name, reports in found.items()}
        records = [ParticipantRecorded, KeyRecorded, AccountRecorded, SessionRecorded]
        assert kinds["two"] == [*records, OrderRejected, OrderRejected]
        assert kinds["three"] == [*records, OrderExpired, OrderExpired]
        assert kinds["account"] == [AccountRecorded, OrderExpired, OrderExpired]
        assert kinds["operator"] == [
            AccountRecorded,
            *[OrderRejected, OrderExpired, OrderRejected, OrderExpired],
        ]
        assert kinds["all"][:3] == [VenueRecorded, ParticipantRecorded, KeyRecorded]
        assert len(kinds["all"]) == 3 + 2 * 4 + 4
        assert {getattr(one, "participant_id", 0) for one in found["two"][:4]} == {2}


@on_both_loops
async def test_from_every_position(tmp_path: Path) -> None:
    """Whoever goes on behind what it has, has everything once."""
    async with Desk(tmp_path) as desk:
        make_reports(desk, 40)
        await desk.settle()
        whole = desk.connect(2)
        whole.ask(request(PARTICIPANT, 1))
        await until(lambda: marks(whole) == [0, desk.truth.sequence])
        everything = positions(whole)
        assert everything == sorted(set(everything))
        for place, (sequence, index) in enumerate(everything):
            reader = desk.connect(2)
            reader.ask(request(PARTICIPANT, sequence, index + 1))
            await until(partial(is_idle, reader))
            assert positions(reader) == everything[place + 1 :]
            reader.connection.abort()


def is_idle(reader: Reader) -> bool:
    return not any(work.has_work for work in reader.connection.works.values())


@pytest.mark.parametrize("first", [1, 60, 0])
@on_both_loops
async def test_a_slow_reader_has_everything_once(tmp_path: Path, first: int) -> None:
    async with Desk(tmp_path) as desk:
        make_reports(desk, 100)
        await desk.settle()
        now = desk.truth.sequence
        reader, other = desk.connect(2), desk.connect(2)
        for one in (reader, other):
            one.ask(request(PARTICIPANT, first))
        reader.transport.is_stalled = True
        reader.transport.kernel_size = 3_000
        for _ in range(30):
            make_reports(desk, 20)
            await desk.settle()
            other.read()
        await until(lambda: reader.connection.is_blocked)  # The past is read on a thread.
        writes = reader.transport.write_count
        make_reports(desk, 20)
        await desk.settle()
        assert reader.transport.write_count == writes, "nothing is queued for it"
        await until(lambda: reader.read() == [] and is_idle(reader))
        await until(lambda: is_idle(other))
        assert positions(reader) == positions(other)
        assert reader.transport.unsent_size_max <= PIECE_SIZE_MAX
        assert len(set(positions(reader))) == len(positions(reader)) > 300
        replayed = {one.is_replayed for one in reader.all(DropCopyReport)}
        assert replayed == ({0, 1} if first else {0})
        if not first:
            assert positions(reader)[0][0] > now


@on_both_loops
async def test_marks_say_how_far_it_is_also_when_there_is_nothing(tmp_path: Path) -> None:
    async with Desk(tmp_path) as desk:
        reader = desk.connect(2)
        reader.ask(request())
        start = desk.truth.sequence
        (copy,) = desk.feed.streams.copies
        desk.trade_nothing(3)
        await desk.settle()
        assert marks(reader) == [start], "not sooner than every 250 ms"
        desk.feed._base_ns += 250_000_000
        copy.mark(desk.feed.now_ns())
        assert marks(reader) == [start, start + 3]
        desk.feed._base_ns += 250_000_000
        copy.mark(desk.feed.now_ns())
        assert marks(reader) == [start, start + 3], "only while the log grows"


@on_both_loops
async def test_a_report_of_an_order_is_byte_for_byte(tmp_path: Path) -> None:
    async with Desk(tmp_path) as desk:
        reader = desk.connect(2)
        reader.ask(request())
        head = desk.truth.begin()
        accepted = OrderAccepted(*head, *range(1, len(OrderAccepted.__struct_fields__) - 1))
        desk.report(2, accepted)
        desk.write()
        await desk.settle()
        (copy,) = reader.all(DropCopyReport)
        assert decode_copied(bytes(copy.report)) == accepted


@on_both_loops
async def test_a_role_that_is_gone(tmp_path: Path) -> None:
    async with Desk(tmp_path) as desk:
        reader = desk.connect(2)
        reader.ask(request())
        desk.give(2, 2, Role.TRADE)
        desk.write()
        desk.truth.begin()
        desk.report(2, expired(desk, 2))
        desk.write()
        await desk.settle()
        assert not desk.feed.streams.copies
