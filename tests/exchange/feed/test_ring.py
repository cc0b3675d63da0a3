"""Rings of views: what is kept, what leaves, and that cursors stay right."""

import random

import pytest

from exchange.feed.ring import COMPACT_COUNT, ENTRY_SIZE, Ring, RingBudget


def test_entries_are_found_by_the_numbers_that_they_cover() -> None:
    ring = Ring(RingBudget(), 10)
    assert (ring.find(10), ring.first_index, ring.next_index) == (0, 0, 0)
    ring.append(13, (b"abc",), 1)
    ring.append(14, (b"de", b"f"), 2)
    assert [ring.find(number) for number in (9, 10, 12, 13, 14)] == [None, 0, 0, 1, 2]
    entry = ring.entry(1)
    assert entry is not None
    assert (entry.number, entry.next_number, entry.pieces, entry.start, entry.time_ns) == (
        13,
        14,
        (b"de", b"f"),
        3,
        2,
    )
    assert (ring.next_number, ring.end, ring.size) == (14, 6, 6 + 2 * ENTRY_SIZE)


def test_what_is_not_in_the_view_moves_its_number_on_and_costs_nothing() -> None:
    ring = Ring(RingBudget(), 1)
    ring.append(5, (), 1)
    assert (ring.next_number, ring.next_index, ring.find(5), ring.find(4)) == (5, 0, 0, None)
    ring.append(6, (b"x",), 2)
    ring.append(9, (), 3)
    assert (ring.next_number, ring.next_index, ring.size) == (9, 1, 1 + ENTRY_SIZE)
    assert ring.find(8) == 0, "it is covered by the entry before"
    assert ring.find(9) == 1


def test_the_oldest_leave_a_full_ring_but_the_newest_stays() -> None:
    ring = Ring(RingBudget(), 1, size_max=3 * (ENTRY_SIZE + 10))
    for number in range(2, 7):
        ring.append(number, (b"0123456789",), number)
    assert (ring.first_index, ring.next_index) == (2, 5)
    assert ring.entry(1) is None
    assert ring.find(2) is None
    assert ring.find(3) == 2
    ring.append(7, (bytes(10_000),), 7)
    assert (ring.first_index, ring.next_index) == (5, 6)
    assert ring.end == 5 * 10 + 10_000


def test_the_largest_ring_gives_way_when_all_are_too_large() -> None:
    budget = RingBudget(size_max=4 * ENTRY_SIZE + 400)
    small, large = Ring(budget, 1), Ring(budget, 1)
    small.append(2, (bytes(100),), 1)
    for number in (2, 3, 4):
        large.append(number, (bytes(100),), 1)
    assert budget.size == 4 * ENTRY_SIZE + 400
    large.append(5, (bytes(100),), 1)
    assert (large.first_index, small.first_index) == (1, 0)
    assert (budget.size, budget.evicted_count) == (4 * ENTRY_SIZE + 400, 1)
    large.close()
    assert budget.size == small.size


@pytest.mark.parametrize("seed", range(3))
def test_random_rings_against_a_list(seed: int) -> None:
    rng = random.Random(seed)
    budget = RingBudget()
    ring = Ring(budget, 1, size_max=200 * ENTRY_SIZE)
    kept: list[tuple[int, int, bytes]] = []  # first and next number, content: all of them
    number = 1
    for turn in range(3 * COMPACT_COUNT):
        content = rng.randbytes(rng.randrange(1, 80))
        step = rng.randrange(1, 4)
        ring.append(number + step, (content,), turn)
        kept.append((number, number + step, content))
        number += step
        index = rng.randrange(len(kept))
        entry = ring.entry(index)
        if index < ring.first_index:
            assert entry is None
            assert ring.find(kept[index][0]) is None
        else:
            assert entry is not None
            assert (entry.number, entry.next_number, b"".join(entry.pieces)) == kept[index]
            assert ring.find(rng.randrange(*kept[index][:2])) == index
        assert ring.size == budget.size <= 200 * ENTRY_SIZE
        assert ring.size == sum(
            ENTRY_SIZE + len(content) for _, _, content in kept[ring.first_index :]
        )


def test_a_large_entry_drops_many_small_ones() -> None:
    budget = RingBudget(size_max=3_000 * (ENTRY_SIZE + 1))
    rings = [Ring(budget, 1) for _ in range(3)]
    for number in range(2, 1_002):
        for ring in rings:
            ring.append(number, (b"x",), 1)
    rings[0].append(1_002, (bytes(2_000 * ENTRY_SIZE),), 1)
    assert budget.size == sum(ring.size for ring in rings) <= 3_000 * (ENTRY_SIZE + 1)
