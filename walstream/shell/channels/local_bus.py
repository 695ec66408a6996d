"""A bus between nodes of one process, for tests and for a daemon that has no others."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

import msgspec
import trio

from walstream.bus.items import Hello, Item
from walstream.shell.channels.bus import BusListener

CHANNEL: Final = "local:bus"


class LocalHub:
    """What the buses of one process share: those that run hear each other."""

    def __init__(self) -> None:
        self._running: dict[str, LocalBus] = {}

    def notify(self, channel: str, payload: str) -> None:
        """Deliver one pair of ``LocalBus.notifications``, as a commit would."""
        if channel == CHANNEL:
            node, item = msgspec.json.decode(payload, type=tuple[str, Item])
            self.deliver(node, item)

    def deliver(self, sender: str, item: Item) -> None:
        """Put an item before everybody else who runs."""
        for node, bus in self._running.items():
            if node != sender:
                bus.receive(sender, item)

    def others(self, node: str) -> frozenset[str]:
        """Who runs beside ``node``."""
        return frozenset(self._running) - {node}

    def enter(self, bus: LocalBus) -> None:
        """``bus`` runs from now on; everybody finds everybody."""
        for other in self._running.values():
            other.receive(bus.node, Hello())
            bus.receive(other.node, Hello())
        self._running[bus.node] = bus

    def leave(self, bus: LocalBus) -> None:
        """``bus`` runs no more."""
        del self._running[bus.node]
        for other in self._running.values():
            other.receive(bus.node, None)


class LocalBus:
    """The ``Bus`` of one node on a hub. Nothing is lost on it, and items are told from ``run`` alone."""

    def __init__(self, hub: LocalHub, node: str) -> None:
        self.node = node
        self._hub = hub
        self._listener: BusListener | None = None
        self._inbox: deque[tuple[str, Item | None]] = deque()  # None: the node has left
        self._filled = trio.Event()

    @property
    def peers(self) -> frozenset[str]:
        """Who else runs."""
        return self._hub.others(self.node)

    def listen(self, listener: BusListener) -> None:
        """Tell ``listener`` what comes; to be called once, before ``run``."""
        self._listener = listener

    def publish(self, item: Item) -> None:
        """Hand an item over to everybody else who runs now."""
        self._hub.deliver(self.node, item)

    def notifications(self, items: Sequence[Item]) -> list[tuple[str, str]]:
        """Pairs for ``LocalHub.notify``; [] while alone."""
        if not self.peers:
            return []
        return [(CHANNEL, msgspec.json.encode((self.node, item)).decode()) for item in items]

    def receive(self, node: str, item: Item | None) -> None:
        """Queue what another node says; None where it leaves."""
        self._inbox.append((node, item))
        self._filled.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Carry until cancelled; others are told at once that this node has left."""
        listener = self._listener
        assert listener is not None, "listen() comes first"
        self._hub.enter(self)
        try:
            task_status.started()
            listener.gap()
            while True:
                while self._inbox:
                    node, item = self._inbox.popleft()
                    if item is None:
                        listener.peer_lost(node)
                    else:
                        listener.item(node, item)
                await self._filled.wait()
                self._filled = trio.Event()
        finally:
            self._hub.leave(self)
