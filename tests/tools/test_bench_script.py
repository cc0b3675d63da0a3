"""The prepared requests: what is encoded is what was meant, and the offsets point at it."""

from itertools import pairwise

from protocol import wire
from protocol.framing import CLIENT_FRAME_SIZE_MAX, SEQUENCED, FrameReader
from protocol.order_entry import CancelOrder, NewOrder
from tools.bench_script import ID_BASE, SCRIPT_COUNT, Script, make_script

INSTRUMENT_COUNT = 100
ACCOUNT = 3


def requests(script: Script) -> list[NewOrder | CancelOrder]:
    reader = FrameReader(CLIENT_FRAME_SIZE_MAX)
    found = []
    for start, end in pairwise(script.offsets):
        reader.feed(script.frames[start:end])
        frame = reader.next_frame()
        assert frame is not None
        assert frame.kind == SEQUENCED
        command = wire.decode_command(frame.payload)
        assert isinstance(command, NewOrder | CancelOrder)
        found.append(command)
    assert not reader.take_unread()
    return found


def test_frames_and_offsets() -> None:
    script = make_script(ACCOUNT, INSTRUMENT_COUNT, seed=1)
    assert (script.offsets[0], script.offsets[-1]) == (0, len(script.frames))
    assert len(script.id_offsets) == SCRIPT_COUNT
    for offset, request in zip(script.id_offsets, requests(script), strict=True):
        assert int.from_bytes(script.frames[offset : offset + 8], "big") == request.client_order_id


def test_ids_increase_and_cancels_name_live_orders() -> None:
    highest, live = 0, set[int]()
    for request in requests(make_script(ACCOUNT, INSTRUMENT_COUNT, seed=1)):
        if isinstance(request, CancelOrder):
            live.remove(request.client_order_id)
            continue
        assert request.account_id == ACCOUNT
        assert max(highest, ID_BASE - 1) < request.client_order_id < ID_BASE + SCRIPT_COUNT
        highest = request.client_order_id
        live.add(highest)


def test_the_mix_and_its_mirror() -> None:
    found = requests(make_script(ACCOUNT, INSTRUMENT_COUNT, seed=2))
    half = SCRIPT_COUNT // 2
    cancels = sum(isinstance(request, CancelOrder) for request in found)
    assert 0.33 < cancels / SCRIPT_COUNT < 0.37
    assert {r.instrument_id for r in found if isinstance(r, NewOrder)} == set(range(1, 101))
    crossing = 0
    for one, other in zip(found[:half], found[half:], strict=True):
        assert one.client_order_id + half == other.client_order_id
        if isinstance(one, NewOrder):
            assert isinstance(other, NewOrder)
            assert (one.side, other.side) in ((1, 2), (2, 1))
            assert one.price + other.price == 10_000
            crossing += (one.price > 5_000) == (one.side == 1)
    assert 0.04 < crossing / half < 0.06


def test_a_seed_gives_the_same_script() -> None:
    assert make_script(1, 100, seed=7) == make_script(1, 100, seed=7)
    assert make_script(1, 100, seed=7) != make_script(1, 100, seed=8)
