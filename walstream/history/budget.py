"""How much WAL a slot may keep back, how much of that is left, and for how long it will last.

The server's answers come in as numbers, and so does the time; who asks is the shell's ``slot_watch``.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Literal

import msgspec

BudgetState = Literal["ok", "extended", "unreserved", "lost"]

ALARM_PART: Final = 0.4
"""Part of the budget whose use is an alarm: before half of it is gone."""

RATE_SECONDS: Final = 60.0
RATE_SECONDS_MIN: Final = 4.0
"""What the rate is measured over: a slot's start moves in steps, so a shorter time says nothing."""


class Budget(msgspec.Struct, frozen=True):
    """``limit_bytes``: what the slot may keep back, None if unknown; ``used_bytes`` of that it does.

    ``state``: PostgreSQL's ``wal_status``, and ``extended`` as well beyond a limit of our own, which the server does
    not know. ``left_bytes``: what may still be written before the slot is lost, or has more than our own limit.
    ``left_seconds``: how long that lasts at the rate of the last minute; None while no more is kept back than before.
    """

    state: BudgetState
    limit_bytes: int | None = None
    used_bytes: int | None = None
    left_bytes: int | None = None
    left_seconds: float | None = None
    is_alarming: bool = False

    def __str__(self) -> str:
        """For people, as a reason."""
        parts = [f"{self.state}: {_size(self.used_bytes)} of {_size(self.limit_bytes)} kept back"]
        if self.left_bytes is not None:
            parts.append(f"{_size(self.left_bytes)} left")
        if self.left_seconds is not None:
            parts.append(f"for about {self.left_seconds:.0f} s at the present rate")
        return ", ".join(parts)


class Gauge:
    """Measures one slot's budget from look to look. ``own_bytes``: the limit where the server has none; 0 for none."""

    def __init__(self, own_bytes: int = 0) -> None:
        self.own_bytes = own_bytes
        self._samples: deque[tuple[float, int]] = deque()

    @property
    def has_rate(self) -> bool:
        """Whether the newest measurement could tell for how long."""
        return bool(self._samples) and self._samples[-1][0] - self._samples[0][0] >= RATE_SECONDS_MIN

    def measure(
        self, now: float, wal_status: str | None, retained: int | None, safe: int | None, keep_bytes: int
    ) -> Budget:
        """The budget as of ``now``, in monotonic seconds.

        ``retained``: WAL kept back. ``safe``: ``safe_wal_size``, None where the server has no limit. ``keep_bytes``:
        ``max_slot_wal_keep_size``, negative for no limit.
        """
        growth = self._growth(now, retained)
        if wal_status == "lost":
            return Budget("lost", None, None, 0, None, is_alarming=True)
        limit = keep_bytes if keep_bytes >= 0 else self.own_bytes
        if retained is None or (keep_bytes < 0 and not limit):
            return Budget(_state(wal_status), None, retained)
        left = max(0, safe if safe is not None else limit - retained)
        state = _state(wal_status)
        if keep_bytes < 0 and retained > limit:
            state = "extended"
        return Budget(
            state,
            limit,
            retained,
            left,
            left / growth if growth > 0 else None,
            is_alarming=state == "unreserved" or retained >= limit * ALARM_PART,
        )

    def _growth(self, now: float, retained: int | None) -> float:
        """Bytes by which more is kept back each second; 0 if unknown."""
        samples = self._samples
        if retained is None:
            samples.clear()
            return 0.0
        samples.append((now, retained))
        while now - samples[0][0] > RATE_SECONDS:
            samples.popleft()
        since, before = samples[0]
        return (retained - before) / (now - since) if self.has_rate else 0.0


def _state(wal_status: str | None) -> BudgetState:
    return "extended" if wal_status == "extended" else "unreserved" if wal_status == "unreserved" else "ok"


def _size(count: int | None) -> str:
    return "an unknown amount" if count is None else f"{count / (1024 * 1024):.1f} MB"
