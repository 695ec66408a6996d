"""Keeping a step running: how long it pauses, and which errors it survives."""

from __future__ import annotations

import itertools

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tests.support import run
from walstream.errors import DatabaseUnreachable, DecodeError, NotFound, WalstreamError
from walstream.shell.supervise import (
    DELAY_SECONDS_MAX,
    FIRST_DELAY_SECONDS,
    PERMANENT_DELAY_SECONDS,
    STABLE_SECONDS,
    keep_running,
    next_delay,
)


@given(st.floats(0, 1000), st.floats(0, 1, exclude_max=True))
def test_a_delay_is_bounded_and_never_nothing(previous: float, spread: float) -> None:
    delay = next_delay(previous, spread=spread)
    assert FIRST_DELAY_SECONDS / 2 <= delay <= DELAY_SECONDS_MAX  # a spread next to 1 rounds to it


def test_delays_double_up_to_the_bound() -> None:
    delays, delay = [], 0.0
    for _ in range(10):
        delay = next_delay(delay, spread=0.0)
        delays.append(delay)
    assert delays[:4] == [0.1, 0.2, 0.4, 0.8]
    assert delays[-1] == DELAY_SECONDS_MAX


def failing_with(*errors: Exception, seconds: float = 0.0, until: float = 120.0) -> list[tuple[str, float, float]]:
    """What ``failed`` was told, with the time: a step that ends with each of ``errors`` after ``seconds``."""
    told: list[tuple[str, float, float]] = []
    waiting = list(errors)

    async def step() -> None:
        await trio.sleep(seconds)
        if not waiting:
            await trio.sleep_forever()
        raise waiting.pop(0)

    def failed(error: WalstreamError, pause: float) -> None:
        told.append((error.message, pause, trio.current_time()))

    async def main() -> None:
        with trio.move_on_after(until):
            await keep_running(step, failed=failed)

    run(main, autojump=True)
    return told


def test_each_failure_is_told_with_the_pause_that_follows() -> None:
    told = failing_with(*(DatabaseUnreachable(str(number)) for number in range(4)))
    assert [text for text, _, _ in told] == ["0", "1", "2", "3"]
    for (_, pause, at), (_, _, next_at) in itertools.pairwise(told):
        assert next_at - at == pytest.approx(pause, abs=0.01)


def test_a_step_that_was_stable_starts_over_with_the_first_delay() -> None:
    told = failing_with(*(DatabaseUnreachable("x") for _ in range(6)), seconds=STABLE_SECONDS + 1)
    assert all(pause <= FIRST_DELAY_SECONDS for _, pause, _ in told)


def test_an_error_that_somebody_has_to_repair_waits_longer() -> None:
    assert [pause for _, pause, _ in failing_with(NotFound("x"))] == [PERMANENT_DELAY_SECONDS]


def test_any_error_of_our_tree_is_survived() -> None:
    told = failing_with(DecodeError("x"))
    assert [text for text, _, _ in told] == ["x"]


def test_a_bug_flies() -> None:
    with pytest.raises(ZeroDivisionError):
        failing_with(ZeroDivisionError())


def test_a_step_that_ends_is_begun_again_and_can_be_cancelled() -> None:
    calls = 0

    async def step() -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            scope.cancel()

    scope = trio.CancelScope()

    async def main() -> None:
        with scope:
            await keep_running(step, failed=lambda _error, _pause: None)

    run(main)
    assert calls == 5
