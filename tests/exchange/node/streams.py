"""What a session's stream must be, frame by frame: for the tests of resuming."""

from exchange.core.engine import Engine
from journal import read_only
from protocol.framing import SEQUENCED, Frame, FrameReader
from protocol.records import EVENT_HEAD, REPORT
from tests.exchange.node.world import Peer, World


def take_frames(peer: Peer) -> list[Frame]:
    """The frames that have come since, as they are; the peer's machine does not see them."""
    reader = FrameReader(65_535)
    reader.feed(bytes(peer.transport.sent))
    peer.transport.sent.clear()
    if peer.transport.is_stalled:
        peer.transport._drain()
    frames = []
    while (frame := reader.next_frame()) is not None:
        frames.append(frame)
    assert not reader.take_unread(), "frames are written whole"
    return frames


def check_numbers(frames: list[Frame], first: int) -> int:
    """Reports have every number from the first on, and all other frames name the next one; returns
    that of the report after them."""
    number = first
    for frame in frames:
        assert frame.number == number, f"{frame} came instead of {number}"
        number += frame.kind == SEQUENCED
    return number


def journal_reports(world: World, session: int) -> dict[int, bytes]:
    """Payloads of all durable reports of a session by number: what a fresh engine makes of the
    journal."""
    found = {}
    engine = Engine()
    for record in read_only(world.disk).records():
        events, _ = engine.replay(record.first_sequence, record.command_count, record.payload)
        offset = 0
        while offset < len(events):
            length, kind, _, _, owner, _, number, _, _ = EVENT_HEAD.unpack_from(events, offset)
            if kind == REPORT and owner == session:
                found[number] = events[offset + EVENT_HEAD.size : offset + length]
            offset += length
    return found
