"""Presences of several nodes on one bus: what rooms are told, how often, and that all nodes end up with the same."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from tests.support import run
from walstream.bus.items import AskState, Hello, Item, PresenceItem, StateItem
from walstream.rooms import PresenceEntry, RoomKey
from walstream.shell.channels import presences as module
from walstream.shell.channels.local_bus import LocalBus, LocalHub
from walstream.shell.channels.presences import SECONDS_PER_MEMBER, SQL_NODE, Presences

ROOM = RoomKey("hall")
OTHER = RoomKey("yard", private=True)


def entry(name: str, meta: object = "there", *, room: RoomKey = ROOM, ref: str = "") -> PresenceEntry:
    """A presence whose key is its name; ``meta`` None for its end."""
    text = None if meta is None else json.dumps({"is": meta}).encode()
    return PresenceEntry(room, name, name, ref or f"{name}-{meta}", text)


class NoMirror:
    def __init__(self) -> None:
        self.seen: list[tuple[PresenceEntry, str | None]] = []
        self.touches: list[str] = []

    def changed(self, entry: PresenceEntry, user_id: str | None) -> None:
        self.seen.append((entry, user_id))

    def touched(self, entry: str) -> None:
        self.touches.append(entry)


class Node:
    """One node's presences; a listener that hands items on as the rooms do."""

    def __init__(self, hub: LocalHub, name: str, size: int = 1) -> None:
        self.bus = LocalBus(hub, name)
        self.told: list[tuple[RoomKey, Any]] = []
        self.items: list[Item] = []
        self.mirror = NoMirror()
        self.size = size
        self.presences = Presences(self.bus, self.mirror, tell=self.tell, size=lambda room: self.size)
        self.bus.listen(self)

    def tell(self, room: RoomKey, diff: bytes) -> None:
        self.told.append((room, json.loads(diff)))

    def item(self, node: str, item: Item) -> None:
        self.items.append(item)
        if isinstance(item, PresenceItem):
            self.presences.heard(node, item.entries)
        elif isinstance(item, StateItem):
            self.presences.heard_state(node, item)
        elif isinstance(item, AskState):
            self.presences.tell_state()
        elif isinstance(item, Hello):
            self.presences.ask()

    def gap(self) -> None:
        self.presences.ask()

    def peer_lost(self, node: str) -> None:
        self.presences.lost(node)

    def keys(self, room: RoomKey = ROOM) -> set[str]:
        return set(json.loads(self.presences.state(room)))

    def commit(self, now: float = 0.0) -> float | None:
        return self.presences.commit(now)


@asynccontextmanager
async def nodes(*names: str) -> AsyncIterator[list[Node]]:
    hub = LocalHub()
    made = [Node(hub, name) for name in names]
    async with trio.open_nursery() as nursery:
        for node in made:
            await nursery.start(node.bus.run)
        await settle(*made)
        yield made
        nursery.cancel_scope.cancel()


async def settle(*some: Node, now: float = 100.0) -> None:
    """Let everybody hear everything, and tell it."""
    for step in range(4):
        for node in some:
            node.commit(now + 10 * step)
        await trio.testing.wait_all_tasks_blocked()


def alone() -> Node:
    return Node(LocalHub(), "a")


def test_a_room_is_told_what_changed_once_per_tick() -> None:
    node = alone()
    node.presences.changed(entry("ada"), "user-1")
    node.presences.changed(entry("bob"), None)
    node.presences.changed(entry("eve", room=OTHER), None)
    assert node.told == []
    assert node.commit() is None
    [(first, diff), (second, _)] = node.told
    assert (first, second) == (ROOM, OTHER)
    assert (set(diff["joins"]), diff["leaves"]) == ({"ada", "bob"}, {})
    assert node.commit() is None
    assert len(node.told) == 2
    assert node.mirror.seen[0] == (entry("ada"), "user-1")
    assert len(node.presences) == 3


def test_a_room_of_many_is_told_less_often() -> None:
    node = alone()
    node.size = 10_000
    node.presences.changed(entry("ada"), None)
    assert node.commit(5.0) is None
    node.presences.changed(entry("bob"), None)
    due = node.commit(5.01) or 0.0
    assert due == pytest.approx(5.0 + 10_000 * SECONDS_PER_MEMBER)
    assert node.keys() == {"ada"}  # what a joiner is given fits what it is told next
    assert node.commit(due) is None
    assert [set(diff["joins"]) for _, diff in node.told] == [{"ada"}, {"bob"}]


def test_nobody_is_told_of_an_empty_room_and_nothing_of_it_stays() -> None:
    node = alone()
    node.size = 0
    node.presences.changed(entry("ada"), None)
    node.commit()
    node.presences.changed(entry("ada", None), None)
    node.commit()
    assert node.told == []
    assert node.presences.state(ROOM) == b"{}"
    assert len(node.presences) == 0
    node.presences.changed(entry("ada", None), None)  # a leave of what nobody knows
    assert node.commit() is None


def test_what_a_node_tracks_is_seen_on_all() -> None:
    async def main() -> None:
        async with nodes("a", "b") as (a, b):
            a.presences.changed(entry("ada"), None)
            b.presences.changed(entry("bob"), None)
            await settle(a, b, now=1000)
            assert a.keys() == b.keys() == {"ada", "bob"}
            a.presences.changed(entry("ada", "away"), None)
            await settle(a, b, now=2000)
            [*_, (_, diff)] = b.told
            assert diff["joins"]["ada"]["metas"][0]["is"] == "away"
            assert diff["leaves"]["ada"]["metas"][0]["is"] == "there"

    run(main)


def test_who_comes_late_is_told_everything_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART_ENTRIES", 3)

    async def main() -> None:
        hub = LocalHub()
        a, b = Node(hub, "a"), Node(hub, "b")
        names = {f"p{number}" for number in range(10)}
        async with trio.open_nursery() as nursery:
            await nursery.start(a.bus.run)
            for name in names:
                a.presences.changed(entry(name), None)
            await settle(a)
            await nursery.start(b.bus.run)
            await settle(a, b, now=1000)
            assert b.keys() == names
            assert len([item for item in b.items if isinstance(item, StateItem)]) == 4
            nursery.cancel_scope.cancel()

    run(main)


def test_a_node_that_is_lost_takes_its_presences_along() -> None:
    async def main() -> None:
        async with nodes("a", "b") as (a, b):
            a.presences.changed(entry("ada"), None)
            b.presences.changed(entry("bob"), None)
            await settle(a, b, now=1000)
            b.presences.lost("a")
            b.commit(2000)
            assert b.keys() == {"bob"}
            assert set(b.told[-1][1]["leaves"]) == {"ada"}

    run(main)


def test_a_whole_state_replaces_what_was_known() -> None:
    node = alone()
    node.presences.heard("b", [entry("ada"), entry("bob"), entry("eve", room=OTHER)])
    node.presences.heard_state("b", StateItem(1, 0, False, (entry("bob"),)))
    node.presences.heard_state("b", StateItem(1, 1, True, (entry("cat"),)))
    node.commit()
    assert node.keys() == {"bob", "cat"}
    assert node.keys(OTHER) == set()


@pytest.mark.parametrize(
    "parts", [[(1, 1, True)], [(1, 0, False), (1, 2, True)], [(1, 0, False), (2, 1, True)], [(1, 0, False)]]
)
def test_a_state_with_holes_means_nothing(parts: list[tuple[int, int, bool]]) -> None:
    node = alone()
    node.presences.heard("b", [entry("ada")])
    for series, part, last in parts:
        node.presences.heard_state("b", StateItem(series, part, last, (entry("bob"),)))
    node.commit()
    assert node.keys() == {"ada"}


def test_state_is_asked_for_and_told_no_more_often_than_once_a_second() -> None:
    async def main() -> None:
        async with nodes("a", "b") as (a, b):
            a.items.clear()
            for _ in range(5):
                b.presences.ask()
                b.presences.tell_state()
                b.commit(5000.0)
            due = b.commit(5000.5)
            await trio.testing.wait_all_tasks_blocked()
            assert [type(item) for item in a.items] == [StateItem, AskState]
            assert due == 5001.0

    run(main)


def test_what_sql_tracks_is_a_node_of_its_own() -> None:
    node = alone()
    node.presences.changed(entry("ada"), None)
    node.presences.outside([entry("sql-1")])
    node.commit()
    assert node.keys() == {"ada", "sql-1"}
    node.presences.outside([])
    node.commit(10)
    assert node.keys() == {"ada"}
    node.presences.lost(SQL_NODE)
    assert node.commit(20) is None
