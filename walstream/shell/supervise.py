"""Keeping a step running: back off with jitter after a failure, report changes of state once; a clock that nobody sets.

What a step does, and which of its errors no waiting can mend, is its own business.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from walstream.errors import EnvironmentFailure, Invariant, WalstreamError

FIRST_DELAY_SECONDS = 0.1
DELAY_SECONDS_MAX = 10.0
PERMANENT_DELAY_SECONDS = 30.0
"""Between tries of a step whose error somebody has to repair: it heals by itself once that is done."""

STABLE_SECONDS = 10.0
"""A step that ran this long before it failed starts over with the first delay."""


_BOOT_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def boot_clock() -> float:
    """Seconds that go on while the machine sleeps, where the system has such a clock, and never jump."""
    return time.clock_gettime(_BOOT_CLOCK)


def next_delay(previous: float, *, spread: float) -> float:
    """The pause after a failure: doubled up to the bound, ``spread`` in [0, 1) of it taken away at random."""
    grown = min(DELAY_SECONDS_MAX, max(FIRST_DELAY_SECONDS, previous * 2))
    return grown * (1.0 - spread / 2)


async def keep_running(
    step: Callable[[], Awaitable[None]],
    *,
    failed: Callable[[WalstreamError, float], None],
) -> None:
    """Run ``step`` for ever. ``failed`` gets each error and the seconds until the next try.

    Errors of our tree are survived, but for Invariant: that and anything else is a bug and flies. Cancelling it
    cancels the step.
    """
    delay = 0.0
    while True:
        started = trio.current_time()
        try:
            await step()
        except Invariant:
            raise
        except WalstreamError as error:
            if trio.current_time() - started > STABLE_SECONDS:
                delay = 0.0
            delay = next_delay(delay, spread=random.random())  # noqa: S311 - jitter, no secret
            pause = delay if not isinstance(error, EnvironmentFailure) or error.retry else PERMANENT_DELAY_SECONDS
            failed(error, pause)
            await trio.sleep(pause)
        else:
            delay = 0.0
            await trio.lowlevel.checkpoint()
