"""What `exchange bench --fan-out` measures with: readers that count, a log that is played, and the
bare server's pieces.
"""

import random
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from exchange.node.setup import initialise
from journal import EventReader, FolderStorage, decode_position
from journal.position import POSITION_SIZE
from protocol.framing import LOG, PACKET, SESSION, UNSEQUENCED, encode_frame
from protocol.packer import Packer
from protocol.packets import DATA, HEARTBEAT, SNAPSHOT, Block, Packet, encode_packet
from tools.drain import Drain, rounded_ns
from tools.fanout_log import LogPlayer, make_records
from tools.fanout_reference import LENGTH, read_pieces

MICROSECOND: Final = 1_000
MILLISECOND: Final = 1_000_000
WAIT_S: Final = 30.0
"""Only a failing test waits so long."""


def packet(kind: int, count: int) -> bytes:
    blocks = [Block(0, bytes(index + 1)) for index in range(count)]
    return encode_packet(Packet(kind, 1, 7, 1, 0, blocks))


def make_frames(dice: random.Random, sent_ns: int) -> tuple[bytes, int, int]:
    """Frames of all kinds, and the messages and frames that count among them."""
    content, messages, frames = b"", 0, 0
    for _ in range(200):
        kind = dice.choice([PACKET, PACKET, PACKET, SESSION, UNSEQUENCED, LOG])
        if kind != PACKET:
            content += encode_frame(kind, 1, dice.randbytes(dice.randrange(60)), sent_ns)
            continue
        what = dice.choice([DATA, DATA, SNAPSHOT, HEARTBEAT])
        count = 0 if what == HEARTBEAT else dice.randrange(1, 20)
        content += encode_frame(PACKET, 1, packet(what, count), sent_ns)
        if what == DATA:
            messages += count
            frames += 1
    return content, messages, frames


def run_until(drain: Drain, is_so: Callable[[], bool]) -> None:
    """What is there has only to be read; on a busy machine a short run may read nothing."""
    give_up = time.monotonic() + WAIT_S
    while not is_so():
        drain.run(MILLISECOND)
        assert time.monotonic() < give_up, "it does not come to pass"


@pytest.mark.parametrize("seed", range(5))
def test_frames_are_counted_wherever_they_are_cut(seed: int) -> None:
    dice = random.Random(seed)
    drain = Drain(0)
    wanted = []
    pairs = [socket.socketpair() for _ in range(3)]
    under_way_ns = 5 * MILLISECOND
    for ours, theirs in pairs:
        theirs.setblocking(False)
        drain.add(theirs.fileno())
        sent_ns = time.monotonic_ns() - under_way_ns
        content, messages, frames = make_frames(dice, sent_ns)
        wanted.append((messages, frames, len(content)))
        while content:
            size = dice.randrange(1, 200)
            ours.sendall(content[:size])
            content = content[size:]
            drain.run(MICROSECOND)
    run_until(drain, lambda: drain.size == sum(size for _, _, size in wanted))
    found = (drain.message_count, drain.frame_count, drain.size)
    assert found == tuple(map(sum, zip(*wanted, strict=True)))
    assert drain.least_messages() == min(messages for messages, _, _ in wanted)
    latencies = drain.latencies()
    assert sum(count for _, count in latencies) == drain.frame_count
    assert latencies[0][0] >= rounded_ns(under_way_ns)
    assert 0 < drain.first_ns <= drain.last_ns <= time.monotonic_ns()
    pairs[0][0].close()
    run_until(drain, lambda: drain.closed_count == 1)
    drain.reset()
    assert (drain.message_count, drain.size, drain.latencies()) == (0, 0, [])
    for ours, theirs in pairs:
        ours.close()
        theirs.close()


def test_the_played_log_is_that_of_a_venue(tmp_path: Path) -> None:
    made = initialise(tmp_path / "venue", name="north", port=0)
    folder = made.config.parent
    records, before = make_records(folder, 40, 20, seed=1)
    assert len(records) == before + 40
    packer = Packer(1)
    packets = [one for record in records for one in packer.pack(record.events, 0)]
    assert {channel for channel, _ in packets} == {1}
    with LogPlayer(folder / "data") as player, socket.socket(socket.AF_UNIX) as reader:
        player.write(*records[:before])
        reader.connect(str(folder / "data" / "position"))
        first = decode_position(reader.recv(POSITION_SIZE))
        assert first.sequence == records[before].first_sequence - 1
        player.play(records[before:], 1)
        said = b""
        while len(said) < 40 * POSITION_SIZE:
            said += reader.recv(40 * POSITION_SIZE)
        last = decode_position(said[-POSITION_SIZE:])
        assert last.sequence == records[-1].first_sequence + 19
    found = EventReader(FolderStorage(folder / "data" / "events", is_read_only=True)).records()
    assert [record.events for record in found] == [record.events for record in records]


def test_pieces_come_back_out_of_their_file() -> None:
    pieces = [b"a", b"bc" * 1_000, b""]
    content = b"".join(LENGTH.pack(len(piece)) + piece for piece in pieces)
    assert read_pieces(content) == pieces
