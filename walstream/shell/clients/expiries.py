"""Deadlines by the wall clock for very many owners, watched by one task: tokens that expire, joins that wait.

What is due then is the owner's business.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable
from typing import Final, Protocol

import trio

LOOK_SECONDS: Final = 30.0
"""The wall clock may be set while the task sleeps by the other one: it looks again after this time."""

SLICE: Final = 100
"""Owners whose turn comes before other tasks get one: anonymous clients share a token, and with it its last second."""

STALE_MIN: Final = 1000
"""Entries without an owner that are not worth a clean-up."""


class Ticked(Protocol):
    """Who has a deadline. Hashed by identity."""

    def tick(self, now: float) -> None:
        """The deadline has passed; set the next one, if any. Must not raise."""
        ...


class _Entry:
    __slots__ = ("deadline", "owner")

    def __init__(self, deadline: float, owner: Ticked) -> None:
        self.deadline = deadline
        self.owner: Ticked | None = owner

    def __lt__(self, other: _Entry) -> bool:
        return self.deadline < other.deadline


class Expiries:
    """At most one deadline per owner. ``clock``: seconds since the epoch, as tokens tell time."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._entries: dict[Ticked, _Entry] = {}
        self._heap: list[_Entry] = []
        self._changed = trio.Event()
        self._next = math.inf  # what ``run`` sleeps for

    def __len__(self) -> int:
        return len(self._entries)

    def watch(self, owner: Ticked, deadline: float | None) -> None:
        """Set the owner's deadline in place of any other; None: it has none."""
        old = self._entries.pop(owner, None)
        if old is not None:
            old.owner = None
        if deadline is not None:
            entry = self._entries[owner] = _Entry(deadline, owner)
            heapq.heappush(self._heap, entry)
            if deadline < self._next:
                self._changed.set()
        if len(self._heap) > 2 * len(self._entries) + STALE_MIN:
            self._heap = list(self._entries.values())
            heapq.heapify(self._heap)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Tick everybody whose deadline has passed, for ever. Cancelling it lets deadlines pass unnoticed."""
        task_status.started()
        while True:
            await trio.lowlevel.checkpoint()
            if self._tick_some():
                continue
            self._changed = trio.Event()
            self._next = self._heap[0].deadline if self._heap else math.inf
            with trio.move_on_after(max(0.0, min(self._next - self._clock(), LOOK_SECONDS))):
                await self._changed.wait()
            self._next = math.inf

    def _tick_some(self) -> bool:
        """Returns whether there may be more to do."""
        now = self._clock()
        for _ in range(SLICE):
            while self._heap and self._heap[0].owner is None:
                heapq.heappop(self._heap)
            if not self._heap or self._heap[0].deadline > now:
                return False
            owner = heapq.heappop(self._heap).owner
            if owner is not None:
                del self._entries[owner]
                owner.tick(now)
        return True
