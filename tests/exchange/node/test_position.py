"""The position stream: the newest for everybody, nothing for who does not read, sixteen at most."""

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop

from exchange.logs import Log
from exchange.node.limits import POSITION_READERS_MAX
from exchange.node.position import PositionStream, bind_position
from journal import Position, decode_position, encode_position
from tests.exchange.node.pipes import Pipe, positions


def position(sequence: int) -> Position:
    return Position(sequence, 2, 512 * sequence, 1, 100 * sequence, 1 << 40, 3)


def test_the_message_is_64_bytes_little_endian() -> None:
    message = encode_position(Position(1, 2, 3, 4, 5, 6, 7 << 32))
    assert message == b"BRIERPOS" + b"".join(
        number.to_bytes(8, "little") for number in (1, 2, 3, 4, 5, 6, 7 << 32)
    )
    assert decode_position(message) == Position(1, 2, 3, 4, 5, 6, 7 << 32)
    for bad in (message[:-1], message + b"x", b"X" + message[1:]):
        with pytest.raises(ValueError, match="not a position message"):
            decode_position(bad)


class Desk:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.stream = PositionStream(position(1), Log(lambda: 0, self.lines.append))

    def connect(self, room: int = 2**62) -> Pipe:
        return Pipe(self.stream.accept(), room)


def test_a_reader_gets_the_position_at_once_and_after_every_batch() -> None:
    desk = Desk()
    first = desk.connect()
    assert first.positions == [position(1)]
    desk.stream.tell(position(2))
    second = desk.connect()
    desk.stream.tell(position(5))
    assert first.positions == [position(n) for n in (1, 2, 5)]
    assert second.positions == [position(n) for n in (2, 5)]
    assert desk.stream.reader_count == 2


def test_who_does_not_read_gets_the_newest_only() -> None:
    desk = Desk()
    slow, quick = desk.connect(room=3), desk.connect()
    for sequence in range(2, 1001):
        desk.stream.tell(position(sequence))
    assert slow.positions == [position(n) for n in (1, 2, 3)]
    slow.make_room(2)
    assert slow.positions == [position(n) for n in (1, 2, 3, 4, 1000)]
    desk.stream.tell(position(1001))
    desk.stream.tell(position(1002))
    slow.make_room(9)
    assert slow.positions[5:] == [position(1001), position(1002)]
    assert quick.positions == [position(n) for n in range(1, 1003)]


def test_no_news_is_no_message() -> None:
    desk = Desk()
    slow = desk.connect(room=1)
    desk.stream.tell(position(2))
    slow.make_room(9)
    assert slow.positions == [position(1), position(2)]


def test_the_seventeenth_reader_is_refused_with_a_reason() -> None:
    desk = Desk()
    readers = [desk.stream.accept() for _ in range(POSITION_READERS_MAX)]
    pipes = [Pipe(reader) for reader in readers]
    refused = desk.connect()
    assert (refused.is_aborted, refused.taken) == (True, b"")
    assert desk.stream.refused_count == 1
    (line,) = desk.lines
    assert 'event=position_reader_refused reason="16 readers are connected"' in line
    desk.stream.tell(position(2))
    assert refused.taken == b""
    assert all(pipe.positions == [position(1), position(2)] for pipe in pipes)
    readers[3].connection_lost(None)
    assert desk.stream.reader_count == 15
    assert positions(desk.connect().taken) == [position(2)]
    assert desk.stream.reader_count == 16
    desk.stream.close()
    assert [pipe.is_aborted for pipe in pipes].count(True) == 15


# Real sockets.


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest) -> Iterator[asyncio.AbstractEventLoop]:
    loop = request.param()
    yield loop
    loop.close()


def test_a_real_reader_that_does_not_read_misses_most(
    loop: asyncio.AbstractEventLoop, tmp_path: Path
) -> None:
    # Longer than the address of a socket may be, and something is in the way.
    path = tmp_path / ("long" * 30) / "position"
    path.parent.mkdir()
    bind_position(path).close()
    assert path.is_socket()
    news = 5_000

    async def scenario() -> list[Position]:
        desk = Desk()
        server = await loop.create_unix_server(desk.stream.accept, sock=bind_position(path))
        with socket.socket(socket.AF_UNIX) as reader:
            reader.setblocking(False)
            link = tmp_path / "p"
            link.symlink_to(path)
            await loop.sock_connect(reader, str(link))
            while not desk.stream.reader_count:
                await asyncio.sleep(0)
            for sequence in range(2, news + 1):
                desk.stream.tell(position(sequence))
                await asyncio.sleep(0)
            data = b""
            async with asyncio.timeout(30):
                while positions(data)[-1:] != [position(news)]:
                    data += await loop.sock_recv(reader, 65_536)
        server.close()
        desk.stream.close()
        await asyncio.sleep(0)
        return positions(data)

    taken = loop.run_until_complete(scenario())
    sequences = [one.sequence for one in taken]
    assert sequences == sorted(set(sequences))
    assert len(sequences) < 20, "the kernel keeps a handful, the venue none"
