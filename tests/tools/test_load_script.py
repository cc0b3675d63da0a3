"""The prepared requests: every frame of every repetition decodes to what was meant."""

from protocol import wire
from protocol.framing import CLIENT_FRAME_SIZE_MAX, SEQUENCED, FrameReader
from protocol.order_entry import CancelOrder, NewOrder
from tools.load_script import BLOCK_COUNT, ID_BASE, ID_STEP, Script

INSTRUMENT_COUNT = 100
ACCOUNT = 3


def read(frames: bytes) -> list[tuple[int, NewOrder | CancelOrder]]:
    reader = FrameReader(CLIENT_FRAME_SIZE_MAX)
    reader.feed(frames)
    found = []
    while (frame := reader.next_frame()) is not None:
        assert frame.kind == SEQUENCED
        command = wire.decode_command(frame.payload)
        assert isinstance(command, NewOrder | CancelOrder)
        found.append((frame.number, command))
    assert not reader.take_unread()
    return found


def test_frames_are_numbered_and_ids_increase_over_repetitions() -> None:
    script = Script(ACCOUNT, INSTRUMENT_COUNT, seed=1)
    number = 0
    highest = 0
    live: set[int] = set()
    for repetition in range(300):  # Past 256, where the second digit of the ids begins to count.
        live.clear()
        taken = 0
        while taken < BLOCK_COUNT:
            frames = script.take(700)
            count = script.count(frames)
            taken += count
            if repetition % 100 and repetition not in (255, 256, 257):
                number += count
                continue
            found = read(frames)
            assert len(found) == count
            for at, command in found:
                number += 1
                assert at == number
                if isinstance(command, CancelOrder):
                    live.remove(command.client_order_id)
                    continue
                assert command.client_order_id > highest
                base = ID_BASE + repetition * ID_STEP
                assert base <= command.client_order_id < base + BLOCK_COUNT
                assert command.account_id == ACCOUNT
                highest = command.client_order_id
                live.add(highest)
    assert number == 300 * BLOCK_COUNT


def test_the_mix_and_its_mirror() -> None:
    script = Script(ACCOUNT, INSTRUMENT_COUNT, seed=2)
    blocks = []
    for _ in range(2):
        frames = script.take(BLOCK_COUNT)
        assert script.count(frames) == BLOCK_COUNT
        blocks.append([command for _, command in read(frames)])
    first, second = blocks
    cancels = sum(isinstance(command, CancelOrder) for command in first)
    assert 0.30 < cancels / BLOCK_COUNT < 0.40
    crossing = 0
    for one, other in zip(first, second, strict=True):
        if isinstance(one, NewOrder):
            assert isinstance(other, NewOrder)
            assert (one.side, other.side) in ((1, 2), (2, 1))
            assert one.price + other.price == 10_000
            crossing += (one.price > 5_000) == (one.side == 1)
    assert 0.03 < crossing / BLOCK_COUNT < 0.07
