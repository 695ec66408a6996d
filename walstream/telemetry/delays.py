"""How late transactions reach sockets: from the commit, by the server's clock, to the end of the tick that sends it."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable
from typing import Final, NamedTuple

BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
"""Upper bounds of the buckets, in seconds."""

_MICROSECONDS: Final = 1_000_000


class Distribution(NamedTuple):
    """``counts``: of each bucket of ``BOUNDS``, and of what lies above. ``total``: the sum, in seconds."""

    counts: tuple[int, ...]
    total: float


class Delays:
    """A histogram that is filled tick by tick. ``clock``: seconds since the Unix epoch.

    Each transaction is a word here, and each tick one reading of the clock: a counter of a library takes as long as
    routing the change does.
    """

    __slots__ = ("_clock", "_counts", "_total", "_waiting")

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._counts = [0] * (len(BOUNDS) + 1)
        self._total = 0.0
        self._waiting: list[int] = []

    def routed(self, commit_at: int, *, told: bool) -> None:
        """A transaction has gone to outboxes, if ``told``. ``commit_at``: µs since the Unix epoch."""
        if told:
            self._waiting.append(commit_at)

    def sent(self) -> None:
        """The outboxes were flushed. What was committed in the future, for the server's clock is ahead, counts as 0."""
        if self._waiting:
            now = self._clock()
            for commit_at in self._waiting:
                delay = max(0.0, now - commit_at / _MICROSECONDS)
                self._counts[bisect_left(BOUNDS, delay)] += 1
                self._total += delay
            self._waiting = []

    def distribution(self) -> Distribution:
        """What was counted so far."""
        return Distribution(tuple(self._counts), self._total)
