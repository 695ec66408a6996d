"""The seam between rooms and whatever carries items between nodes.

``local_bus`` joins nodes of one process, ``notify_bus`` nodes of one database; tests/contracts holds both to the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import trio

from walstream.bus.items import Item


class BusListener(Protocol):
    """Who is told what came. Every method is synchronous and none raises."""

    def item(self, node: str, item: Item) -> None:
        """An item of another node: each at most once, those of one node in the order of their publishing.

        Hello means that the node was not known before; Bye is told by ``peer_lost``.
        """
        ...

    def gap(self) -> None:
        """Items of any other node may be missing before what comes next. Told whenever the bus begins to hear, too."""
        ...

    def peer_lost(self, node: str) -> None:
        """A node said goodbye, or was silent for longer than the node timeout."""
        ...


class Bus(Protocol):
    """Carries items to all other nodes. Everything but ``run`` is synchronous and none of it raises.

    ``node``: this node's id for others, another one at every start of the process.
    """

    node: str

    @property
    def peers(self) -> frozenset[str]:
        """Nodes that have been heard within the node timeout. Broadcasts of a node that is alone go nowhere."""
        ...

    def listen(self, listener: BusListener) -> None:
        """Tell ``listener`` what comes; to be called once, before ``run``."""
        ...

    def publish(self, item: Item) -> None:
        """Hand an item over. It arrives at most once, and not at all while there is no way: ``gap`` tells then."""
        ...

    def notifications(self, items: Sequence[Item]) -> list[tuple[str, str]]:
        """The same as (channel, payload) pairs for NOTIFY inside a transaction of the caller's own; [] while alone.

        They count as published where the transaction commits. Items of more than about 1.7 MB are left out.
        """
        ...

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Carry until cancelled; says goodbye then, within a second."""
        ...
