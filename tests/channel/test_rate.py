"""Token buckets, by example and by property."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from walstream.channel.rate import Bucket

TIMES = st.lists(st.floats(0, 100), min_size=1, max_size=200)


def test_a_burst_and_then_the_rate() -> None:
    bucket = Bucket(2, 3, 0.0)
    assert [bucket.take(0.0) for _ in range(4)] == [0.0, 0.0, 0.0, None]
    assert bucket.take(0.5) == 0.0
    assert bucket.take(0.5) is None


def test_patience_reserves_a_turn() -> None:
    bucket = Bucket(2, 1, 0.0)
    assert [bucket.take(0.0, patience=1.0) for _ in range(4)] == [0.0, 0.5, 1.0, None]
    assert bucket.take(0.5, patience=1.0) == 1.0


def test_no_rate_bounds_nothing() -> None:
    bucket = Bucket(0, 0, 0.0)
    assert all(bucket.take(0.0) == 0.0 for _ in range(1000))


@given(TIMES, st.integers(1, 20), st.integers(1, 20))
def test_never_more_than_burst_and_rate_allow_even_if_the_clock_is_set_back(
    times: list[float], rate: int, burst: int
) -> None:
    bucket = Bucket(rate, burst, 0.0)
    taken = sum(bucket.take(time) is not None for time in times)
    forward = sum(max(0.0, later - earlier) for earlier, later in zip([0.0, *times], times, strict=False))
    assert taken <= burst + forward * rate + 1e-6


@given(TIMES, st.integers(1, 20), st.floats(0, 10))
def test_turns_come_in_order_and_within_patience(times: list[float], rate: int, patience: float) -> None:
    bucket = Bucket(rate, 1, 0.0)
    turns = []
    for time in sorted(times):
        wait = bucket.take(time, patience=patience)
        if wait is not None:
            assert 0 <= wait <= patience
            turns.append(time + wait)
    assert all(later - earlier > 1 / rate - 1e-6 for earlier, later in pairwise(turns))


def test_a_clock_that_is_set_back_costs_nothing() -> None:
    bucket = Bucket(1, 2, 100.0)
    assert [bucket.take(100.0), bucket.take(0.0), bucket.take(0.5)] == [0.0, 0.0, None]
