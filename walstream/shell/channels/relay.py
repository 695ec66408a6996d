"""What the WAL brings, told to nodes that do not read it: those that stand by for another one's slot.

They serve broadcast and presence like all others; messages and channels that SQL wrote reach them through this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from walstream.bus.items import ChannelsChanged, Deaf, StoredItem
from walstream.shell.channels.bus import Bus

TELL_SECONDS: Final = 5.0
"""Between two times that a node says that it does not read the WAL."""

BELIEVE_SECONDS: Final = 16.0
"""For how long others believe it."""

PAUSE_SECONDS: Final = 0.02
"""Messages are told together, at most so often."""

IDS_MAX: Final = 100
"""Messages of one item: what names more would not fit into a notification."""


class Relay:
    """Everything but ``run`` is synchronous and costs nothing while every node reads the WAL."""

    def __init__(self, bus: Bus, *, is_deaf: Callable[[], bool]) -> None:
        self._bus = bus
        self._is_deaf = is_deaf
        self._deaf_until = 0.0
        self._ids: list[str] = []
        self._channels = False
        self._something = trio.Event()

    def heard_deaf(self) -> None:
        """Another node does not read the WAL."""
        self._deaf_until = trio.current_time() + BELIEVE_SECONDS

    def message(self, id_: str) -> None:
        """The WAL has brought a stored message."""
        if trio.current_time() < self._deaf_until:
            self._ids.append(id_)
            self._something.set()

    def channels(self) -> None:
        """The WAL has brought changes of registered channels or members."""
        if trio.current_time() < self._deaf_until:
            self._channels = True
            self._something.set()

    async def run(self) -> None:
        """Tell, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell_deaf)
            while True:
                await self._something.wait()
                self._something = trio.Event()
                self._tell()
                await trio.sleep(PAUSE_SECONDS)

    def _tell(self) -> None:
        if self._channels:
            self._channels = False
            self._bus.publish(ChannelsChanged())
        ids, self._ids = self._ids, []
        for start in range(0, len(ids), IDS_MAX):
            self._bus.publish(StoredItem(tuple(ids[start : start + IDS_MAX])))

    async def _tell_deaf(self) -> None:
        while True:
            if self._is_deaf() and self._bus.peers:
                self._bus.publish(Deaf())
            await trio.sleep(TELL_SECONDS)
