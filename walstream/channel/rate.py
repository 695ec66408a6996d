"""Token buckets at a given time: how often something may happen, and how long it has to wait otherwise.

What is counted, and what becomes of the excess, is decided in ``session``.
"""

from __future__ import annotations


class Bucket:
    """``burst`` at once, then ``rate`` a second; a rate of 0 bounds nothing.

    Times are seconds of any clock; one that is set back earns nothing and costs nothing.
    """

    __slots__ = ("_burst", "_filled_at", "_level", "_rate")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._level = burst
        self._filled_at = now

    def take(self, now: float, *, patience: float = 0.0) -> float | None:
        """Take one. The seconds to wait until it is there, or None, with nothing taken, if beyond ``patience``."""
        if not self._rate:
            return 0.0
        passed = max(0.0, now - self._filled_at)
        self._filled_at = now
        self._level = min(self._burst, self._level + passed * self._rate)
        wait = max(0.0, (1.0 - self._level) / self._rate)
        if wait > patience:
            return None
        self._level -= 1.0
        return wait
