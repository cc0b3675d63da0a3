"""Loss, reordering and duplication on both lines, in virtual time: books equal the venue's whenever
the consumer says that it knows them, and it knows them whenever the venue pauses."""

import random
from collections import Counter
from typing import Final

import pytest

from exchange.client.recovery import Healing, Means
from tests.exchange.client.network import MS, Line, Network, S, Scenario

SEED_COUNT: Final = 200


def scenario(seed: int) -> Scenario:
    rng = random.Random(seed)
    line_a, line_b = (
        Line(
            loss=rng.choice((0, 0.1, 0.3, 0.3, rng.random() * 0.3)),
            reorder=rng.random() * 0.3,
            duplication=rng.random() * 0.3,
            late_ns=rng.choice((MS, 3 * MS, 8 * MS)),
        )
        for _ in range(2)
    )
    kinds = (
        (Means(can_replay=True, can_snapshot=True), False),
        (Means(can_replay=True, can_snapshot=False), False),
        (Means(can_replay=False, can_snapshot=True), False),
        (Means(can_replay=False, can_snapshot=True), True),
    )
    means, is_cycled = kinds[seed % 4]
    lag_ns = rng.choice((MS, 10 * MS, 60 * MS))
    return Scenario(seed, line_a, line_b, means, is_cycled, seed % 3 == 0, lag_ns)


@pytest.mark.parametrize("first", range(0, SEED_COUNT, 10))
def test_books_equal_the_venues_at_every_quiescent_point(first: int) -> None:
    checked_count = 0
    healings: Counter[Healing] = Counter()
    for seed in range(first, first + 10):
        print(f"seed {seed}")
        network = Network(scenario(seed))
        is_cycled = network.scenario.is_cycled
        network.work(30)
        network.is_dead = False
        for _ in range(3):
            network.work(40)
            network.run(6 * S if is_cycled else S)
            network.check_known()
        network.is_dead = True
        for _ in range(10):
            network.work(10)
            network.run(S // 2)
        network.is_dead = False
        network.run(S)
        if is_cycled:  # The cycle comes over the same lines.
            network.run(5 * S)
        network.check_known()
        network.check_told()
        checked_count += network.checked_count
        healings.update(recovery.how for recovery in network.recoveries)
    print(checked_count, healings)
    assert checked_count > 500
    assert healings[Healing.REPLAY] > 5
    assert healings[Healing.SNAPSHOT] > 5
