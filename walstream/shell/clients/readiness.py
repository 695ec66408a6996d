"""Readiness: which sockets have something to read, told to few of them in each turn of the event loop.

trio runs all tasks that are ready before it looks for more, the reader of the slot among them only once. When clients
come back by the thousand, they are therefore woken in parts: whoever is not woken yet has cost nothing so far.
"""

from __future__ import annotations

import contextlib
import select
import socket
import sys
import time
from collections.abc import Callable
from typing import Final

import trio

TURN_SECONDS: Final = 0.001
"""Of one turn of the loop: after a longer one fewer are woken, after a shorter one more."""

EACH_TURN: Final = 16
"""How many are woken in each turn, at most."""


class Readiness(trio.abc.Instrument):
    """``wait_readable`` and ``notify_closing`` as trio's own, with a bound on how many go on at once.

    An epoll of our own, which trio's watches as one more descriptor (epoll(7) allows for that); it hands out those
    that are ready in the order in which they became so. Without ``run``, and on systems without epoll, trio's own
    functions do it. ``clock``: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._waiting: dict[int, trio.lowlevel.Task] = {}
        self._epoll: select.epoll | None = None
        self._began = 0.0
        self._took = (0.0, 0.0)  # the newest turns: who is woken in one acts in the next

    def after_io_wait(self, timeout: float) -> None:
        """A turn begins (trio's instrument API)."""
        self._began = self._clock()

    def before_io_wait(self, timeout: float) -> None:
        """A turn has ended (trio's instrument API)."""
        self._took = self._took[1], self._clock() - self._began

    async def wait_readable(self, sock: socket.socket) -> None:
        """Wait until there is something to read, and for a turn. Raises as ``trio.lowlevel.wait_readable`` does."""
        if self._epoll is None:
            await trio.lowlevel.wait_readable(sock)
            return
        descriptor = sock.fileno()
        if descriptor in self._waiting:
            raise trio.BusyResourceError("another task waits for this socket")
        self._arm(self._epoll, descriptor)
        self._waiting[descriptor] = trio.lowlevel.current_task()

        def abort(_: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
            del self._waiting[descriptor]
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
        if sock.fileno() == -1:
            raise trio.ClosedResourceError("another task closed this socket")

    def notify_closing(self, sock: socket.socket) -> None:
        """The socket is about to be closed: who waits for it gets trio.ClosedResourceError."""
        trio.lowlevel.notify_closing(sock)
        self._wake(sock.fileno())

    def _wake(self, descriptor: int) -> None:
        task = self._waiting.pop(descriptor, None)
        if task is not None:  # else it was cancelled meanwhile
            trio.lowlevel.reschedule(task)

    @staticmethod
    def _arm(epoll: select.epoll, descriptor: int) -> None:
        events = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLONESHOT
        try:
            epoll.modify(descriptor, events)
        except FileNotFoundError:  # the first time; what is closed leaves by itself
            epoll.register(descriptor, events)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Wake who can read, for ever. Cancelled, it wakes all who wait: they find out by themselves."""
        if sys.platform != "linux":
            task_status.started()
            await trio.sleep_forever()
        with contextlib.closing(select.epoll()) as self._epoll:
            trio.lowlevel.add_instrument(self)
            try:
                task_status.started()
                count = 1
                while True:
                    await trio.lowlevel.wait_readable(self._epoll.fileno())
                    count = min(count + 1, EACH_TURN) if max(self._took) < TURN_SECONDS else max(count // 2, 1)
                    for descriptor, _ in self._epoll.poll(0, count):
                        self._wake(descriptor)
            finally:
                trio.lowlevel.notify_closing(self._epoll.fileno())
                self._epoll = None
                for descriptor in list(self._waiting):
                    self._wake(descriptor)
