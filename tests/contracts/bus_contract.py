"""What every bus keeps, as tests to inherit; what is a bus's own is tested where it is.

A subclass opens nodes of one world. Waits end by events, never by a guess.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import trio

from walstream.bus.items import AskState, BroadcastItem, ChannelsChanged, Hello, Item
from walstream.rooms import Broadcast, RoomKey
from walstream.shell.channels.bus import Bus

PATIENCE_SECONDS = 20


def said(text: str | int, size: int = 0) -> BroadcastItem:
    """A broadcast that can be told from others."""
    return BroadcastItem(Broadcast(room=RoomKey("r"), event=str(text), payload=b"x" * size))


class Ear:
    """A listener that remembers: (node, item), (node, None) for a lost one, ("", None) for a gap."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Item | None]] = []
        self._news = trio.Event()

    def item(self, node: str, item: Item) -> None:
        self._add(node, item)

    def gap(self) -> None:
        self._add("", None)

    def peer_lost(self, node: str) -> None:
        self._add(node, None)

    def _add(self, node: str, item: Item | None) -> None:
        self.events.append((node, item))
        self._news.set()

    @property
    def gaps(self) -> int:
        return self.events.count(("", None))

    def heard(self, node: str) -> list[str]:
        """The names of the broadcasts of a node, in order."""
        return [
            item.broadcast.event for sender, item in self.events if sender == node and isinstance(item, BroadcastItem)
        ]

    async def until(self, holds: Callable[[], object]) -> None:
        with trio.fail_after(PATIENCE_SECONDS):
            while not holds():
                self._news = trio.Event()
                await self._news.wait()


class Running:
    """One node: its bus runs until ``stop``."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.ear = Ear()
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        bus.listen(self.ear)

    @property
    def node(self) -> str:
        return self.bus.node

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with self._scope:
            await self.bus.run(task_status=task_status)
        self._ended.set()

    async def stop(self) -> None:
        self._scope.cancel()
        await self._ended.wait()

    def begun(self) -> bool:
        return self.ear.gaps > 0

    async def meets(self, *others: Running) -> None:
        await self.ear.until(lambda: {other.node for other in others} <= self.bus.peers)


@asynccontextmanager
async def running(*buses: Bus) -> AsyncIterator[list[Running]]:
    """Nodes that have found each other."""
    nodes = [Running(bus) for bus in buses]
    async with trio.open_nursery() as nursery:
        for node in nodes:
            await nursery.start(node.run)
        for node in nodes:
            await node.ear.until(node.begun)
            await node.meets(*(other for other in nodes if other is not node))
        yield nodes
        nursery.cancel_scope.cancel()


def _has_heard(node: Running, sender: Running, wanted: list[str]) -> bool:
    return node.ear.heard(sender.node) == wanted


class BusContract(ABC):
    """Inherit, and open buses of one world by ``make``."""

    @abstractmethod
    def make(self, name: str) -> Bus: ...

    @abstractmethod
    def commit(self, pairs: list[tuple[str, str]]) -> None:
        """What a transaction that carries the pairs does."""

    def test_items_arrive_in_the_order_of_their_publishing_at_every_other_node_and_not_at_home(self) -> None:
        async def main() -> None:
            async with running(self.make("a"), self.make("b"), self.make("c")) as (a, b, c):
                for number in range(500):
                    a.bus.publish(said(number))
                    b.bus.publish(said(number))
                    if number % 50 == 0:
                        await trio.lowlevel.checkpoint()
                wanted = [str(number) for number in range(500)]
                for node, sender in ((b, a), (c, a), (a, b), (c, b)):
                    await node.ear.until(partial(_has_heard, node, sender, wanted))
                assert a.ear.heard(a.node) == []
                assert [node.ear.gaps for node in (a, b, c)] == [1, 1, 1]

        trio.run(main)

    def test_every_kind_of_item_and_size_arrives(self) -> None:
        async def main() -> None:
            async with running(self.make("a"), self.make("b")) as (a, b):
                sent: list[Item] = [
                    said("s"),
                    AskState(),
                    said("m", 7000),
                    said("l", 1_000_000),
                    ChannelsChanged(),
                    said("e"),
                ]
                for item in sent:
                    a.bus.publish(item)
                await b.ear.until(lambda: b.ear.heard(a.node)[-1:] == ["e"])
                assert [item for node, item in b.ear.events if node == a.node and item != Hello()] == sent

        trio.run(main)

    def test_a_node_is_told_of_once_and_of_its_end(self) -> None:
        async def main() -> None:
            async with running(self.make("a"), self.make("b")) as (a, b):
                assert b.ear.events.count((a.node, Hello())) == 1
                assert b.ear.events[0] == ("", None)
                a.bus.publish(said("last"))
                await a.stop()
                await b.ear.until(lambda: (a.node, None) in b.ear.events)
                assert b.ear.events[-2:] == [(a.node, said("last")), (a.node, None)]
                assert b.bus.peers == frozenset()

        trio.run(main)

    def test_a_node_alone_has_nobody_to_tell(self) -> None:
        async def main() -> None:
            async with running(self.make("a")) as (a,):
                a.bus.publish(said("nobody"))
                assert a.bus.notifications([said("nobody")]) == []
                async with running(self.make("b")) as (b,):
                    await a.meets(b)
                    a.bus.publish(said("b"))
                    await b.ear.until(lambda: b.ear.heard(a.node) == ["b"])

        trio.run(main)

    def test_a_transaction_carries_items_along(self) -> None:
        async def main() -> None:
            async with running(self.make("a"), self.make("b")) as (a, b):
                pairs = a.bus.notifications([said("1"), said("2", 5500), said("3", 200_000), said("4")])
                assert pairs
                a.bus.publish(said("before"))
                await b.ear.until(lambda: b.ear.heard(a.node) == ["before"])
                self.commit(pairs)
                await b.ear.until(lambda: b.ear.heard(a.node) == ["before", "1", "2", "3", "4"])
                assert b.ear.gaps == 1

        trio.run(main)

    def test_what_cannot_be_sent_harms_nobody(self) -> None:
        async def main() -> None:
            async with running(self.make("a"), self.make("b")) as (a, b):
                a.bus.publish(said("\ud800"))
                a.bus.publish(said("after"))
                await b.ear.until(lambda: b.ear.heard(a.node)[-1:] == ["after"])

        trio.run(main)
