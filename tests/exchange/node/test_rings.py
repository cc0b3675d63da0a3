"""Rings of released reports: what they keep, what falls out, and the frames that come out again."""

from collections import deque
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exchange.core.engine import Engine
from exchange.node.ingress import Rings
from exchange.node.limits import RING_SIZE_MAX, RING_SIZE_MIN, RINGS_SIZE_MAX
from protocol.framing import HEADER_SIZE, REPLAYED, SEQUENCED, encode_frame
from protocol.records import EVENT_HEAD, MARKET_DATA, REFERENCE, REPORT
from protocol.records import SESSION as SESSION_EVENT
from tests.exchange.node.world import World

ENGINE = Engine()
"""Without Genesis: no session is promised any room."""

ENTRY_LENGTH_SIZE = 2
ALL = 2**31


def event(kind: int, session: int, number: int, payload: bytes) -> bytes:
    size = EVENT_HEAD.size + len(payload)
    return EVENT_HEAD.pack(size, kind, 0, 0, session, 1, number, 9, 10) + payload


def report(session: int, number: int, payload: bytes) -> bytes:
    return event(REPORT, session, number, payload)


def frames(first: int, head: int, payloads: list[bytes]) -> bytes:
    return b"".join(
        encode_frame(SEQUENCED, number, payload, 77, 0, REPLAYED if number < head else 0)
        for number, payload in enumerate(payloads, first)
    )


class Model:
    """A ring as it is meant: a queue of payloads and the greatest buffer that it may have."""

    def __init__(self, size_max: int) -> None:
        self.kept: deque[tuple[int, bytes]] = deque()
        self.next_number = 0
        self.evicted_count = 0
        self._size_max = size_max

    @property
    def first_number(self) -> int:
        return self.kept[0][0] if self.kept else self.next_number

    def keep(self, number: int, payload: bytes) -> None:
        self.kept.append((number, payload))
        self.next_number = number + 1
        while sum(ENTRY_LENGTH_SIZE + len(one) for _, one in self.kept) > self._size_max:
            self.kept.popleft()
            self.evicted_count += 1

    def chunk(self, number: int, head: int, size_max: int) -> tuple[bytes, int] | None:
        if number < self.first_number:
            return None
        taken: list[bytes] = []
        size = 0
        for one, payload in self.kept:
            size += HEADER_SIZE + len(payload) if one >= number else 0
            if taken and size > size_max:
                break
            if one >= number:
                taken.append(payload)
        return frames(number, head, taken), number + len(taken)


@settings(max_examples=150, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from([12, 13, 14]))
def test_a_ring_is_a_queue_with_a_bound(dice: Random, power: int) -> None:
    size_max = 1 << power
    rings = Rings(ENGINE.hot, ring_size_max=size_max)
    models = {session: Model(size_max) for session in (1, 2, 200)}
    starts = {session: dice.randrange(1, 2**40) for session in models}
    longest = dice.choice((3, 90, 600, size_max - 2, size_max - 1))
    for _ in range(dice.randrange(1, 200)):
        session = dice.choice(list(models))
        model = models[session]
        number = model.next_number or starts[session]
        payload = dice.randbytes(dice.randrange(1, longest + 1))
        rings.remember(report(session, number, payload))
        model.keep(number, payload)
        if dice.random() < 0.5:
            number = dice.randrange(model.first_number - 2, model.next_number + 1)
            head, chunk = dice.randrange(number - 5, number + 50), dice.randrange(5_000)
            expected = model.chunk(number, head, chunk)
            if number >= 0:
                assert rings.replay(session, number, max(head, 0), 77, chunk) == expected
    for session, model in models.items():
        assert rings.first_number(session) == model.first_number
        assert rings.next_number(session) == model.next_number
    assert rings.evicted_count == sum(model.evicted_count for model in models.values())
    assert rings.size <= size_max * len(models)


def test_a_replay_in_chunks_is_the_replay_at_once() -> None:
    rings = Rings(ENGINE.hot)
    payloads = [bytes([i % 250]) * (1 + i * 7 % 400) for i in range(5_000)]
    rings.remember(b"".join(report(3, 11 + i, one) for i, one in enumerate(payloads)))
    whole = frames(11, 3_000, payloads)
    assert rings.replay(3, 11, 3_000, 77, ALL) == (whole, 5_011)
    for size_max in (1, 1_000, 70_000):
        number, pieces = 11, []
        while number < 5_011:
            found = rings.replay(3, number, 3_000, 77, size_max)
            assert found is not None
            piece, number = found
            assert piece
            pieces.append(piece)
        assert b"".join(pieces) == whole
        assert rings.replay(3, 5_011, 3_000, 77, size_max) == (b"", 5_011)


def test_two_replays_of_one_ring_do_not_disturb_each_other() -> None:
    rings = Rings(ENGINE.hot)
    payloads = [bytes([i]) * 20 for i in range(100)]
    rings.remember(b"".join(report(1, 1 + i, one) for i, one in enumerate(payloads)))
    places = [1, 50]
    for turn in range(40):
        which = turn % 2
        found = rings.replay(1, places[which], 101, 77, 50)
        assert found == (
            frames(places[which], 101, [payloads[places[which] - 1]]),
            places[which] + 1,
        )
        places[which] += 1
    # A cursor before a place that is asked for anew does not hide what lies before it.
    assert rings.replay(1, 2, 101, 77, 1) == (frames(2, 101, [payloads[1]]), 3)


def test_only_reports_are_kept() -> None:
    rings = Rings(ENGINE.hot)
    rings.remember(
        event(SESSION_EVENT, 4, 1, b"accepted")
        + report(4, 1, b"one")
        + event(MARKET_DATA, 0, 1, b"public")
        + event(REFERENCE, 0, 1, b"who is who")
        + report(4, 2, b"two")
    )
    assert rings.replay(4, 1, 9, 77, ALL) == (frames(1, 9, [b"one", b"two"]), 3)
    assert (rings.count, rings.first_number(0), rings.first_number(10**6)) == (1, 0, 0)


def test_a_hole_in_a_stream_is_our_own_error() -> None:
    rings = Rings(ENGINE.hot)
    rings.remember(report(4, 7, b"x"))
    for number in (7, 9, 1):
        with pytest.raises(AssertionError, match=f"report {number} came instead of 8"):
            rings.remember(report(4, number, b"x"))
    with pytest.raises(AssertionError, match="has no report 9 yet"):
        rings.replay(4, 9, 9, 77, ALL)
    with pytest.raises(AssertionError, match="session 70 has no report 1 yet"):
        rings.replay(70, 1, 1, 77, ALL)


@pytest.mark.parametrize("size", [0, 39, 41])
def test_events_that_cannot_be_are_assertions(size: int) -> None:
    whole = report(1, 1, b"xx")
    bad = whole[:size] if size else report(1, 1, b"")
    with pytest.raises(AssertionError):
        Rings(ENGINE.hot).remember(bad)


# Memory.


def fill(rings: Rings, session: int, size: int) -> None:
    """Reports of 1,022 bytes, so that four fill the smallest ring exactly."""
    first = rings.next_number(session) or 1
    for number in range(first, first + size // 1_024):
        rings.remember(report(session, number, bytes(1_022)))


def test_a_ring_doubles_as_it_must() -> None:
    rings = Rings(ENGINE.hot)
    sizes = []
    for _ in range(1_100):
        fill(rings, 1, 1_024)
        sizes.append(rings.size)
    doublings = [RING_SIZE_MIN << i for i in range(9)]
    assert sorted(set(sizes)) == doublings
    assert doublings[-1] == RING_SIZE_MAX
    assert [sizes.count(size) for size in doublings[:3]] == [4, 4, 8], "only when it is full"
    assert rings.evicted_count == 1_100 - 1_024
    assert rings.first_number(1) == 77


def test_all_rings_together_have_a_bound() -> None:
    rings = Rings(ENGINE.hot, rings_size_max=64 * 1024)
    fill(rings, 1, 48 * 1024)
    assert rings.size == 64 * 1024, "the first one takes it all"
    fill(rings, 2, 48 * 1024)
    assert rings.size == 68 * 1024, "a first ring is always granted, and no more"
    assert rings.next_number(2) - rings.first_number(2) == 4
    assert rings.next_number(1) - rings.first_number(1) == 48
    assert (rings.count, rings.evicted_count) == (2, 44)


def test_every_session_that_the_venue_may_have_keeps_its_first_ring() -> None:
    world = World(limits={"sessions_max": 10})
    world.boot()
    bound = 64 * 1024
    rings = Rings(world.engine.hot, rings_size_max=bound)
    fill(rings, 1, 48 * 1024)
    assert rings.size == 16 * 1024, "32 KiB and nine first ones would be more than the bound"
    for session in range(2, 11):
        fill(rings, session, 48 * 1024)
        assert rings.size <= bound
    assert rings.count == 10
    assert rings.size == bound, "what was promised is used at last"
    assert all(rings.next_number(n) - rings.first_number(n) >= 4 for n in range(1, 11))


def test_the_bound_holds_with_the_most_sessions_that_a_venue_can_have() -> None:
    world = World(limits={"sessions_max": 100_000})
    world.boot()
    rings = Rings(world.engine.hot)
    for session in range(1, 41):
        fill(rings, session, RING_SIZE_MAX)
    assert rings.size + RING_SIZE_MIN * (100_000 - rings.count) <= RINGS_SIZE_MAX


def test_a_report_larger_than_its_ring_empties_it() -> None:
    rings = Rings(ENGINE.hot, ring_size_max=RING_SIZE_MIN)
    rings.remember(report(1, 1, b"a") + report(1, 2, bytes(RING_SIZE_MIN)))
    assert (rings.first_number(1), rings.next_number(1), rings.evicted_count) == (3, 3, 2)
    assert rings.replay(1, 2, 9, 77, ALL) is None
    assert rings.replay(1, 3, 9, 77, ALL) == (b"", 3)
    rings.remember(report(1, 3, b"b"))
    assert rings.replay(1, 3, 9, 77, ALL) == (frames(3, 9, [b"b"]), 4)
