"""Token buckets at a given time: how often something may happen, and how long it has to wait otherwise.

What is counted, and what becomes of the excess, is decided in ``session`` and by the shell's gate.
"""

from __future__ import annotations

import math
from typing import Final

KEYS_MAX: Final = 10_000
"""Keys that ``Buckets`` remembers."""


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

    @property
    def burst(self) -> float:
        """How many may be taken at once from a full one."""
        return self._burst

    @property
    def left(self) -> int:
        """How many may be taken at once, at the time of the last call."""
        return max(0, math.floor(self._level))

    def take(self, now: float, *, patience: float = 0.0) -> float | None:
        """Take one. The seconds to wait until it is there, or None, with nothing taken, if beyond ``patience``."""
        if not self._rate:
            return 0.0
        self._fill(now)
        wait = max(0.0, (1.0 - self._level) / self._rate)
        if wait > patience:
            return None
        self._level -= 1.0
        return wait

    def spend(self, count: int, now: float) -> bool:
        """Take ``count``, which have happened already, and say whether as many were there. All are gone otherwise."""
        if not self._rate:
            return True
        self._fill(now)
        enough = count <= self._level
        self._level = max(0.0, self._level - count)
        return enough

    def wait(self, now: float) -> float:
        """The seconds until one may be taken."""
        if not self._rate:
            return 0.0
        self._fill(now)
        return max(0.0, (1.0 - self._level) / self._rate)

    def _fill(self, now: float) -> None:
        passed = max(0.0, now - self._filled_at)
        self._filled_at = now
        self._level = min(self._burst, self._level + passed * self._rate)


class Buckets:
    """A bucket for each key, such as a client's address; a rate of 0 bounds nothing and remembers nobody.

    Of more than ``keys_max`` keys the one that was seen least recently is forgotten, and begins anew.
    """

    def __init__(self, rate: float, burst: float, *, keys_max: int = KEYS_MAX) -> None:
        self.rate = rate
        self._burst = burst
        self._keys_max = keys_max
        self._buckets: dict[str, Bucket] = {}  # the least recently used one first

    def __len__(self) -> int:
        return len(self._buckets)

    def of(self, key: str, now: float) -> Bucket | None:
        """The bucket of a key; None where nothing is bounded."""
        if not self.rate:
            return None
        bucket = self._buckets.pop(key, None)
        if bucket is None:
            bucket = Bucket(self.rate, self._burst, now)
            if len(self._buckets) >= self._keys_max:
                del self._buckets[next(iter(self._buckets))]
        self._buckets[key] = bucket
        return bucket

    def take(self, key: str, now: float) -> bool:
        """Take one for a key, if it is there."""
        bucket = self.of(key, now)
        return bucket is None or bucket.take(now) is not None
