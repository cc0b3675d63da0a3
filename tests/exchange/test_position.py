"""The client of a venue's position: only the newest counts, a venue that is away is waited for."""

import asyncio
from collections.abc import Callable
from typing import Final

import pytest

from exchange import position as position_module
from exchange.logs import Log
from exchange.position import PositionClient, PositionError
from journal import Position, encode_position
from tests.exchange.loops import on_both_loops, until

POSITIONS: Final = [Position(10 * n, 1, 512 * n, 1, 64 * n, 7, 1) for n in range(1, 7)]
STREAM: Final = b"".join(encode_position(one) for one in POSITIONS)


class Pipe(asyncio.Transport):
    """A transport that says what was done to it."""

    def __init__(self, line: asyncio.Protocol) -> None:
        super().__init__()
        self.line = line
        self.is_paused = False
        self.is_aborted = False
        line.connection_made(self)

    def pause_reading(self) -> None:
        assert not self.is_paused
        self.is_paused = True

    def resume_reading(self) -> None:
        assert self.is_paused
        self.is_paused = False

    def abort(self) -> None:
        self.lose()
        self.is_aborted = True

    def lose(self) -> None:
        asyncio.get_running_loop().call_soon(self.line.connection_lost, None)


class Told:
    """A client over pipes: `refusals` connections are refused before each one that works."""

    def __init__(self, interval_s: float = 0.0, refusals: int = 0) -> None:
        self.positions: list[tuple[Position, bool]] = []
        self.pipes: list[Pipe] = []
        self.lines: list[str] = []
        self.attempt_count = 0
        self._refusals = refusals
        log = Log(lambda: 0, self.lines.append)
        self.client = PositionClient(self._connect, self._take, log, interval_s=interval_s)

    async def _connect(self, make_line: Callable[[], asyncio.Protocol]) -> None:
        self.attempt_count += 1
        if self.attempt_count % (self._refusals + 1):
            raise ConnectionRefusedError(111, "Connection refused")
        self.pipes.append(Pipe(make_line()))

    def _take(self, position: Position, is_first: bool) -> None:
        self.positions.append((position, is_first))

    def begin(self) -> "asyncio.Task[None]":
        return asyncio.get_running_loop().create_task(self.client.run())

    async def connected(self, count: int = 1) -> Pipe:
        await until(lambda: len(self.pipes) >= count)
        return self.pipes[count - 1]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(position_module, "RECONNECT_PAUSE_MIN_S", 0.001)
    monkeypatch.setattr(position_module, "RECONNECT_PAUSE_MAX_S", 0.004)


@on_both_loops
async def test_positions_come_in_pieces_and_in_heaps() -> None:
    """Of what has come only the newest whole position counts."""
    for size in (1, 63, 65, 130, len(STREAM)):
        told = Told()
        task = told.begin()
        pipe = await told.connected()
        for offset in range(0, len(STREAM), size):
            pipe.line.data_received(STREAM[offset : offset + size])
        whole = [min(offset + size, len(STREAM)) // 64 for offset in range(0, len(STREAM), size)]
        expected = sorted({count for count in whole if count})
        assert told.positions == [(POSITIONS[n - 1], n == expected[0]) for n in expected]
        assert told.client.is_connected
        task.cancel()
        told.client.close()
        assert pipe.is_aborted


@on_both_loops
async def test_what_is_no_position_ends_it() -> None:
    told = Told()
    task = told.begin()
    pipe = await told.connected()
    pipe.line.data_received(b"X" * 64)
    pipe.line.data_received(STREAM)
    with pytest.raises(PositionError, match="not a position message"):
        await task
    assert pipe.is_aborted
    assert told.positions == []
    assert not told.client.is_connected


@on_both_loops
async def test_a_venue_that_is_away_is_waited_for() -> None:
    told = Told(refusals=5)
    task = told.begin()
    for count in (1, 2, 3):
        pipe = await told.connected(count)
        assert not told.client.is_connected, "nothing was said yet"
        pipe.line.data_received(STREAM[:64])
        await until(lambda: told.client.is_connected)
        assert told.positions == [(POSITIONS[0], True)] * count
        pipe.lose()
        await until(lambda: not told.client.is_connected)
    task.cancel()
    # Once for each way in which it is away, not once for each attempt.
    reasons = [line.split("reason=")[1] for line in told.lines]
    assert reasons[:4] == ['"Connection refused"', '"connection lost"'] * 2
    assert told.attempt_count >= 18


@on_both_loops
async def test_with_an_interval_it_reads_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[float, Callable[[], None]]] = []
    told = Told(interval_s=0.05)
    task = told.begin()
    pipe = await told.connected()
    loop = asyncio.get_running_loop()
    timer = loop.call_later(99, print)

    class Clocked:
        """The loop, with a timer that the test fires."""

        def call_later(self, delay_s: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
            calls.append((delay_s, callback))
            return timer

    monkeypatch.setattr(asyncio, "get_running_loop", Clocked)
    pipe.line.data_received(STREAM[:70])
    assert (told.positions, pipe.is_paused) == ([(POSITIONS[0], True)], True)
    [(delay_s, resume)] = calls
    assert delay_s == 0.05
    resume()
    pipe.line.data_received(STREAM[70:100])
    assert (len(told.positions), pipe.is_paused) == (1, False), "half a position is none"
    pipe.line.data_received(STREAM[100:])
    assert (told.positions[-1], pipe.is_paused) == ((POSITIONS[-1], False), True)
    monkeypatch.undo()
    pipe.line.connection_lost(None)
    assert timer.cancelled(), "what is closed is not read on"
    task.cancel()
