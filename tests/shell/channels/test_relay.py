"""What the WAL brings reaches nodes that do not read it, and costs nothing while there are none."""

from __future__ import annotations

import trio
import trio.testing

from tests.support import run
from walstream.bus.items import ChannelsChanged, Deaf, Item, StoredItem
from walstream.shell.channels.local_bus import LocalBus, LocalHub
from walstream.shell.channels.relay import BELIEVE_SECONDS, IDS_MAX, Relay


class Node:
    def __init__(self, hub: LocalHub, name: str, *, deaf: bool) -> None:
        self.bus = LocalBus(hub, name)
        self.relay = Relay(self.bus, is_deaf=lambda: deaf)
        self.items: list[Item] = []
        self.bus.listen(self)

    def item(self, node: str, item: Item) -> None:
        if isinstance(item, Deaf):
            self.relay.heard_deaf()
        self.items.append(item)

    def gap(self) -> None:
        pass

    def peer_lost(self, node: str) -> None:
        pass


def both(*, deaf: bool) -> tuple[list[Item], list[Item]]:
    """What a reading node heard, and what it told a second one that ``deaf`` is about."""

    async def main() -> tuple[list[Item], list[Item]]:
        hub = LocalHub()
        reading, other = Node(hub, "a", deaf=False), Node(hub, "b", deaf=deaf)
        async with trio.open_nursery() as nursery:
            for node in (reading, other):
                await nursery.start(node.bus.run)
            for node in (reading, other):
                nursery.start_soon(node.relay.run)
            await trio.sleep(1)
            other.items.clear()
            for number in range(IDS_MAX + 1):
                reading.relay.message(str(number))
            reading.relay.channels()
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
        return reading.items, other.items

    return run(main, autojump=True)


def test_a_deaf_node_is_told() -> None:
    heard, told = both(deaf=True)
    assert Deaf() in heard
    ids = tuple(str(number) for number in range(IDS_MAX + 1))
    assert told == [ChannelsChanged(), StoredItem(ids[:IDS_MAX]), StoredItem(ids[IDS_MAX:])]


def test_who_reads_the_wal_is_told_nothing() -> None:
    heard, told = both(deaf=False)
    assert Deaf() not in heard
    assert told == []


def test_a_node_is_believed_for_a_while() -> None:
    async def main() -> None:
        hub = LocalHub()
        reading, other = Node(hub, "a", deaf=False), Node(hub, "b", deaf=False)
        async with trio.open_nursery() as nursery:
            for node in (reading, other):
                await nursery.start(node.bus.run)
            nursery.start_soon(reading.relay.run)
            reading.relay.heard_deaf()
            await trio.sleep(BELIEVE_SECONDS)
            other.items.clear()
            reading.relay.message("x")
            await trio.sleep(1)
            assert other.items == []
            nursery.cancel_scope.cancel()

    run(main, autojump=True)
