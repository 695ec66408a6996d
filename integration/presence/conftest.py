"""A database with walstream's schema as a daemon holds it, and rooms that follow what the mirror tells."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import trio

from integration.fixtures.postgres import TestDatabase
from walstream.channel.presence import PresenceRoom
from walstream.rooms import PresenceEntry, RoomKey
from walstream.shell.channels.presence_mirror import PresenceMirror
from walstream.shell.database.postgres import Database

NODE = "host:1/slot"


async def until(holds: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait for something to become true."""
    with trio.move_on_after(seconds):
        while not holds():
            await trio.sleep(0.02)
        return
    raise AssertionError(f"did not come true within {seconds} s")


class Mirrored:
    """A mirror, and one room that shows to its clients what comes from outside."""

    def __init__(self, database: TestDatabase, node: str = NODE, **options: Any) -> None:
        self.database = database
        self.node = node
        self.now = 0.0
        self.room = PresenceRoom()
        self.told: list[list[PresenceEntry]] = []
        self.statements = Database(database.dsn, "presence test")
        self.mirror = PresenceMirror(
            self.statements, "realtime", node, outside=self._outside, clock=lambda: self.now, **options
        )

    def _outside(self, entries: list[PresenceEntry]) -> None:
        self.told.append(entries)
        self.room.replace("sql", [entry for entry in entries if entry.room == RoomKey("lobby")])

    def track(self, entry: str, user: str = "", meta: bytes = b"{}", *, topic: str = "lobby", key: str = "k") -> None:
        self.mirror.changed(PresenceEntry(RoomKey(topic), entry, key, f"ref-{entry}", meta), user or None)

    def untrack(self, entry: str, topic: str = "lobby") -> None:
        self.mirror.changed(PresenceEntry(RoomKey(topic), entry, "k"), None)

    @property
    def rows(self) -> list[tuple[Any, ...]]:
        """user, topic, status and metadata of this node's rows."""
        return self.database.query(
            "select user_id, topic, status, metadata from realtime.presence where node_id = %s order by 1, 2",
            (self.node,),
        )

    @property
    def statuses(self) -> dict[str, str]:
        """By user, in one topic."""
        return {user: status for user, _, status, _ in self.rows}

    def diff(self) -> dict[str, Any]:
        """What clients are told now; {} where it is nothing."""
        diff = self.room.commit()
        value: dict[str, Any] = {} if diff is None else json.loads(diff)
        return {side: {key: under["metas"] for key, under in people.items()} for side, people in value.items()}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that recurs does so soon."""
    for name, seconds in {"PAUSE_SECONDS": 0.02, "CHECK_SECONDS": 0.1, "SWEEP_SECONDS": 0.1}.items():
        monkeypatch.setattr(f"walstream.shell.channels.presence_mirror.{name}", seconds)
    monkeypatch.setattr("walstream.shell.channels.attempts.DUTY", 0)
