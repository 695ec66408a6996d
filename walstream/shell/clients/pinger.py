"""One task that looks after all sockets: pings quiet ones, closes dead ones, ends goodbyes that nobody answers.

Closing codes and their reasons are in ``sockets``; what a handler does when its socket ends is its own business.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

import trio

from walstream.protocol.websocket import PING, frame
from walstream.shell.clients.sockets import NORMAL, REASON_IDLE, Socket
from walstream.shell.delivery.outbox import State

TICK_SECONDS: Final = 1.0
CLOSE_SECONDS: Final = 5.0
"""For a client to take what was queued before a close frame, and to answer it."""

SLICE: Final = 500
"""Sockets that are looked at before other tasks get a turn."""

_PING: Final = frame(b"", PING)


async def tend_all(sockets: Iterable[Socket], *, ping_seconds: float, idle_seconds: float) -> None:
    """Tend every socket once a tick, for ever. ``sockets`` is iterated anew each time."""
    while True:
        await trio.sleep(TICK_SECONDS)
        now = trio.current_time()
        for number, socket in enumerate(sockets, 1):
            tend(socket, now, ping_seconds=ping_seconds, idle_seconds=idle_seconds)
            if number % SLICE == 0:
                await trio.lowlevel.checkpoint()


def tend(socket: Socket, now: float, *, ping_seconds: float, idle_seconds: float) -> None:
    """Do what is due for one socket. Quiet is who sent no byte at all: an answered ping is a sign of life, too."""
    if socket.close_at < math.inf:
        if now - socket.close_at >= CLOSE_SECONDS:
            socket.abort()
        return
    if socket.outbox.state is State.DEAD:
        socket.abort()
        return
    quiet = now - socket.heard_at
    if quiet >= idle_seconds:
        socket.close(NORMAL, REASON_IDLE)
    elif quiet >= ping_seconds and now - socket.pinged_at >= ping_seconds:
        socket.pinged_at = now
        socket.outbox.push_urgent(_PING)
        socket.outbox.flush()
