"""Turns of the event loop, shared: thousands of sockets that are ready at once must not keep everybody else waiting.

trio runs all tasks that are ready before it looks for more, the reader of the slot among them only once. When clients
come back by the thousand, what they say is therefore heard in parts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import trio

TURN_SECONDS: Final = 0.001
"""Of one turn of the loop; whoever is ready later in it waits for another one."""

EACH_TURN: Final = 16
"""How many of those who wait go on in each turn, at most; fewer where they need longer than ``TURN_SECONDS``."""


class Turns(trio.abc.Instrument):
    """``is_late`` costs next to nothing; who finds it true calls ``wait``. ``clock``: monotonic seconds.

    Without ``run`` nobody is ever late.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._ends = float("inf")
        self._lot = trio.lowlevel.ParkingLot()
        self._late = trio.Event()

    def after_io_wait(self, timeout: float) -> None:
        """A turn begins (trio's instrument API)."""
        self._ends = self._clock() + TURN_SECONDS

    @property
    def is_late(self) -> bool:
        """Whether this turn has taken long enough, or others wait already."""
        return self._clock() > self._ends or bool(self._lot)

    async def wait(self) -> None:
        """Wait for a turn, in the order of coming."""
        self._late.set()
        await self._lot.park()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Let those who wait go on, a few in each turn, for ever. Cancelled, it lets all of them go on."""
        trio.lowlevel.add_instrument(self)
        try:
            task_status.started()
            while True:
                await self._late.wait()
                self._late = trio.Event()
                count = 1
                while self._lot:
                    began = self._clock()
                    await trio.lowlevel.checkpoint()
                    took = self._clock() - began
                    count = min(count + 1, EACH_TURN) if took < TURN_SECONDS else max(count // 2, 1)
                    self._lot.unpark(count=count)
        finally:
            self._ends = float("inf")
            self._lot.unpark_all()
            trio.lowlevel.remove_instrument(self)
