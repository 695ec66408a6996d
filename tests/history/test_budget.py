"""The WAL budget: its states, when it is an alarm, and how long it lasts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walstream.history.budget import ALARM_PART, RATE_SECONDS_MIN, Budget, Gauge

MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("wal_status", "retained", "safe", "keep", "own", "expected"),
    [
        ("reserved", 10, 90, 100, 0, Budget("ok", 100, 10, 90)),
        ("extended", 30, 70, 100, 0, Budget("extended", 100, 30, 70)),
        ("reserved", 40, 60, 100, 0, Budget("ok", 100, 40, 60, None, is_alarming=True)),
        ("unreserved", 10, -5, 100, 0, Budget("unreserved", 100, 10, 0, None, is_alarming=True)),
        ("lost", None, None, 100, 0, Budget("lost", None, None, 0, None, is_alarming=True)),
        ("reserved", 39, None, -1, 100, Budget("ok", 100, 39, 61)),
        ("extended", 101, None, -1, 100, Budget("extended", 100, 101, 0, None, is_alarming=True)),
        ("reserved", 101, None, -1, 100, Budget("extended", 100, 101, 0, None, is_alarming=True)),
        ("reserved", 10**12, None, -1, 0, Budget("ok", None, 10**12)),
        (None, None, None, 100, 0, Budget("ok", None, None)),
    ],
)
def test_states(
    wal_status: str | None, retained: int | None, safe: int | None, keep: int, own: int, expected: Budget
) -> None:
    assert Gauge(own).measure(0.0, wal_status, retained, safe, keep) == expected


@given(st.integers(1, 2**45), st.integers(0, 2**45))
def test_the_alarm_comes_before_half_is_used(limit: int, used: int) -> None:
    budget = Gauge().measure(0.0, "reserved", used, max(0, limit - used), limit)
    if used * 2 >= limit:
        assert budget.is_alarming
    if used < limit * ALARM_PART:
        assert not budget.is_alarming


def test_what_is_left_lasts_by_the_rate_of_the_last_minute() -> None:
    gauge = Gauge()
    seconds = []
    for second in range(0, 100, 2):
        used = min(second, 50)
        seconds.append(gauge.measure(float(second), "reserved", used * MIB, (1000 - used) * MIB, 1000 * MIB))
    assert seconds[1].left_seconds is None, "too short to tell"
    assert seconds[10].left_seconds == pytest.approx(980, rel=0.01)
    first = gauge.measure(200.0, "reserved", 50 * MIB, 950 * MIB, 1000 * MIB)
    assert first.left_seconds is None, "nothing has been added for a minute"


def test_a_slot_that_moves_on_has_no_end_in_sight() -> None:
    gauge = Gauge()
    gauge.measure(0.0, "reserved", 100, 900, 1000)
    assert gauge.measure(RATE_SECONDS_MIN, "reserved", 50, 950, 1000).left_seconds is None


def test_it_says_what_people_want_to_know() -> None:
    text = str(Budget("extended", 10 * MIB, 5 * MIB, 5 * MIB, 61.4, is_alarming=True))
    assert text == "extended: 5.0 MB of 10.0 MB kept back, 5.0 MB left, for about 61 s at the present rate"
