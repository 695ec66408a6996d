"""Token buckets, by example and by property."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from walstream.channel.rate import Bucket, Buckets

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


def test_what_has_happened_already_is_spent_even_if_it_was_not_there() -> None:
    bucket = Bucket(1, 10, 0.0)
    assert bucket.spend(10, 0.0)
    assert not bucket.spend(5, 1.0)
    assert bucket.left == 0
    assert bucket.wait(1.0) == 1.0
    assert bucket.spend(1, 2.0)


def test_every_key_has_a_bucket_of_its_own() -> None:
    buckets = Buckets(1, 1)
    assert [buckets.take(key, 0.0) for key in "aabb"] == [True, False, True, False]


def test_of_too_many_keys_the_one_seen_longest_ago_is_forgotten() -> None:
    buckets = Buckets(1, 1, keys_max=2)
    assert [buckets.take(key, 0.0) for key in "abac"] == [True, True, False, True]
    assert len(buckets) == 2
    assert [buckets.take(key, 0.0) for key in "ab"] == [False, True]


def test_without_a_rate_nobody_is_remembered() -> None:
    buckets = Buckets(0, 0)
    assert all(buckets.take(str(number), 0.0) for number in range(100))
    assert len(buckets) == 0
