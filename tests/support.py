"""What tests everywhere share: running async code, and the environment that every run starts from.

No fixtures live here (see the conftest files) and no test.
"""

from __future__ import annotations

import contextlib
import gc
import os
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import hypothesis
import trio
import trio.testing

T = TypeVar("T")


def run(async_fn: Callable[..., Awaitable[T]], *args: object, autojump: bool = False) -> T:
    """``trio.run``, without a clock to wait for where ``autojump``: time leaps whenever every task waits."""
    clock = trio.testing.MockClock(autojump_threshold=0) if autojump else None
    return trio.run(async_fn, *args, clock=clock)


@contextlib.contextmanager
def freed_at_once(*kinds: type) -> Iterator[None]:
    """Fails if anything of these kinds that was made within the context is still there at its end, if only as a cycle.

    The collector looks rarely at what has lived for long: cycles that connections leave behind are as good as a leak.
    """
    gc.collect()
    before = {id(each) for each in gc.get_objects() if isinstance(each, kinds)}
    gc.disable()
    try:
        yield
        left = [type(each).__name__ for each in gc.get_objects() if isinstance(each, kinds) and id(each) not in before]
        assert not left
    finally:
        gc.enable()


class Peak:
    """What was in memory at once, in bytes: objects made within ``watched`` alone."""

    size = 0


@contextlib.contextmanager
def watched() -> Iterator[Peak]:
    """Sees what is allocated within the context, at its end."""
    peak = Peak()
    tracemalloc.start()
    try:
        yield peak
        peak.size = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def clean_environment() -> None:
    """Forget what configures walstream and libpq, so that a developer's shell cannot change a result."""
    for name in list(os.environ):
        if name.startswith(("WALSTREAM_", "PG")) or name == "DATABASE_URL":
            del os.environ[name]
    os.environ["NO_COLOR"] = "1"


def load_hypothesis_profile() -> None:
    """``dev`` looks for new examples at each run, ``ci`` repeats itself; neither judges by the clock."""
    hypothesis.settings.register_profile("dev", deadline=None)
    hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
    hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))
