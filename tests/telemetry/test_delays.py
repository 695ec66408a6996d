"""Delays of transactions, as a library's histogram would have counted them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.exposition import generate_latest

from walstream.telemetry.delays import BOUNDS, Delays
from walstream.telemetry.metrics import Metrics

NAME = "walstream_delivery_seconds"
NOW = 1_800_000_000
MICROSECONDS = 1_000_000


def lines(page: bytes) -> list[str]:
    return [line for line in page.decode().splitlines() if line.startswith(NAME) and "_created" not in line]


@given(st.lists(st.lists(st.integers(-5_000_000, 100_000_000), max_size=20), max_size=5))
def test_the_page_is_what_a_histogram_of_the_library_says(ticks: list[list[int]]) -> None:
    registry = CollectorRegistry()
    reference = Histogram(NAME, "", buckets=BOUNDS, registry=registry)
    delays, metrics = Delays(lambda: NOW), Metrics()
    metrics.watch_delays(delays.distribution)
    for tick in ticks:
        for ago in tick:
            commit_at = NOW * MICROSECONDS - ago
            delays.routed(commit_at, told=True)
            reference.observe(max(0.0, NOW - commit_at / MICROSECONDS))
        delays.sent()
    assert sorted(lines(metrics.page()[0])) == sorted(lines(generate_latest(registry)))


def test_what_nobody_was_told_or_was_not_sent_is_not_counted() -> None:
    now = 3.0
    delays = Delays(lambda: now)
    delays.routed(0, told=False)
    delays.routed(0, told=True)
    assert sum(delays.distribution().counts) == 0
    delays.sent()
    now = 9.0
    delays.sent()
    assert (sum(delays.distribution().counts), delays.distribution().total) == (1, 3.0)
