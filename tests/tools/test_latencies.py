"""Percentiles by nearest rank, against a sorted list."""

from hypothesis import given
from hypothesis import strategies as st

from tools.latencies import Latencies


def test_nearest_rank() -> None:
    latencies = Latencies()
    for microseconds in range(1, 101):
        latencies.add(microseconds * 1_000)
    assert latencies.percentile_us(50) == 50
    assert latencies.percentile_us(99) == 99
    assert latencies.percentile_us(100) == 100
    assert Latencies().percentile_us(50) == 0


def test_groups_count_as_often_as_they_are() -> None:
    latencies = Latencies()
    latencies.add(1_000, 98)
    latencies.add(7_000, 2)
    assert (latencies.percentile_us(98), latencies.percentile_us(99)) == (1, 7)
    other = Latencies()
    other.merge(latencies)
    other.merge(latencies)
    assert other.count == 200


@given(st.lists(st.integers(0, 10**7), min_size=1), st.integers(1, 100))
def test_equals_a_sorted_list(durations: list[int], percent: int) -> None:
    latencies = Latencies()
    for duration_ns in durations:
        latencies.add(duration_ns)
    rank = -(-len(durations) * percent // 100)
    assert latencies.percentile_us(percent) == sorted(durations)[rank - 1] // 100 * 100 / 1000
