"""Rows of the WAL as messages and as changes of the directory, without a server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest
import trio
import trio.testing

from tests.shell.channels_support import STARTED, FakeRows, change, channel, snapshot, transaction
from tests.shell.database_support import FakeDatabase
from tests.support import run
from walstream.errors import DatabaseUnreachable
from walstream.model import Change, Operation
from walstream.rooms import Broadcast, RoomKey
from walstream.shell.channels import wal_feed
from walstream.shell.channels.bus import Bus
from walstream.shell.channels.directory import Directory
from walstream.shell.channels.local_bus import LocalBus, LocalHub
from walstream.shell.channels.message_store import MessageStore
from walstream.shell.channels.wal_feed import WalFeed
from walstream.shell.database.channel_rows import Rows
from walstream.shell.database.postgres import Database


class ListSpill:
    """Outside memory, as far as anybody can tell."""

    made = 0

    def __init__(self) -> None:
        ListSpill.made += 1
        self._changes: list[Change] = []

    def append(self, change: Change) -> None:
        self._changes.append(change)

    def changes(self) -> Sequence[Change]:
        return self._changes


class Parts:
    """A feed with its directory and store; ``heard``: what it delivered."""

    def __init__(self) -> None:
        database = cast("Database", FakeDatabase())
        bus: Bus = LocalBus(LocalHub(), "n")
        self.directory = Directory(cast("Rows", FakeRows()))
        self.store = MessageStore(database, database, "realtime", bus)
        self.feed = WalFeed(self.directory, self.store, ListSpill)
        self.heard: list[Broadcast] = []
        self.commits: list[int] = []
        self.feed.on_message = lambda broadcast, _: self.heard.append(broadcast)
        self.feed.on_commit = lambda committed: self.commits.append(committed.xid)
        self.feed.opened(snapshot(100), STARTED, missed=False)

    def commit(self, xid: int, *rows: Change) -> None:
        self.feed.begin()
        control = [row for row in rows if not self.feed.row(row, 100)]
        self.feed.committed(transaction(xid, *control))

    @property
    def events(self) -> list[str]:
        return [broadcast.event for broadcast in self.heard]


@pytest.fixture
def parts() -> Parts:
    ListSpill.made = 0
    return Parts()


def message(event: str = "e", number: int = 0, **more: Any) -> Change:
    values = {
        "id": f"00000000-0000-4000-8000-{number:012x}", "seq": number, "topic": "room", "channel_id": None,
        "extension": "broadcast", "event": event, "payload": {"n": 1}, "binary_payload": None, "private": False,
        "sent_at": "2026-01-01T00:00:00+00:00", "hidden": False, "expires_at": None, **more,
    }  # fmt: skip
    return change("messages", {name: value for name, value in values.items() if value is not ...})


def test_a_row_is_a_message(parts: Parts) -> None:
    parts.commit(200, message("a", 1, private=True))
    parts.commit(201, message("b", 2, payload=None, binary_payload="00ff"))
    first, second = parts.heard
    assert first == Broadcast(
        room=RoomKey("room", private=True), event="a", payload=b'{"n":1}', id="00000000-0000-4000-8000-000000000001",
        seq=1, sent_at="2026-01-01T00:00:00+00:00",
    )  # fmt: skip
    assert (second.binary, second.payload) == (True, b"\0\xff")


@pytest.mark.parametrize(
    "more",
    [
        {"hidden": True},
        {"expires_at": "2020-01-01T00:00:00+00:00"},
        {"extension": "presence"},
        {"event": None},
        {"event": ...},
        {"topic": ...},
    ],
)
def test_what_is_not_to_be_shown_is_not_delivered(parts: Parts, more: dict[str, Any]) -> None:
    parts.commit(200, message(number=1, **more))
    assert parts.heard == []


def test_expiry_in_the_future_or_never_is_delivered(parts: Parts) -> None:
    parts.commit(200, message("a", 1, expires_at="2999-01-01T00:00:00+00:00"), message("b", 2, expires_at="infinity"))
    assert parts.events == ["a", "b"]


def test_only_inserts_are_messages(parts: Parts) -> None:
    row = message().new
    assert row is not None
    updated = message()
    updated.operation = Operation.UPDATE
    parts.commit(200, updated, change("messages", truncate=True))
    assert parts.heard == []


def test_what_the_first_snapshot_sees_is_history_whatever_later_streams_see(parts: Parts) -> None:
    parts.commit(99, message("old", 1))
    parts.feed.opened(snapshot(300), STARTED, missed=False)
    parts.commit(200, message("new", 2))
    assert parts.events == ["new"]


def test_a_transaction_that_is_cut_off_leaves_nothing(parts: Parts) -> None:
    parts.feed.begin()
    parts.feed.row(message("cut off", 1), 100)
    parts.commit(200, message("whole", 2))
    parts.feed.begin()
    parts.feed.row(message("cut off", 3), 100)
    parts.feed.opened(snapshot(300), STARTED, missed=False)
    parts.feed.committed(transaction(201))
    assert parts.events == ["whole"]


def test_what_was_delivered_by_another_way_is_not_delivered_again(parts: Parts) -> None:
    parts.store.delivered("00000000-0000-4000-8000-000000000001")
    parts.commit(200, message("a", 1), message("b", 2))
    parts.commit(201, message("b", 2))
    assert parts.events == ["b"]


def test_a_message_that_waits_for_its_commit_is_not_delivered_by_the_wal() -> None:
    async def main() -> None:
        parts = Parts()
        outcomes: list[Broadcast | str] = []
        sent = Broadcast(room=RoomKey("room"), event="e", payload=b"{}", whole=b"x")
        parts.store.append(sent, outcomes.append, channel_id=None, sender=None)
        (id_,) = parts.store._under_way
        parts.commit(200, message("e", 7, id=id_))
        assert parts.heard == []
        assert outcomes == []
        parts.store._fail(parts.store._under_way[id_], "unable_to_connect_to_project")
        (outcome,) = outcomes  # the answer never came, but the WAL has told that it is stored
        assert isinstance(outcome, Broadcast)
        assert (outcome.id, outcome.seq, outcome.whole) == (id_, 7, b"")
        parts.commit(200, message("e", 7, id=id_))
        assert parts.heard == []
        assert len(outcomes) == 1

    run(main)


def test_changes_of_channels_reach_the_directory_and_others_are_told() -> None:
    async def main() -> None:
        parts = Parts()
        told: list[int] = []
        parts.feed.on_channels_changed = lambda: told.append(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(parts.directory.run)
            await trio.testing.wait_all_tasks_blocked()
            parts.commit(50, change("channels", channel("old")))
            assert parts.directory.find("old") is None
            parts.commit(200, change("channels", channel("new")))
            assert parts.directory.find("new") is not None
            assert told == [1]
            nursery.cancel_scope.cancel()

    run(main)


def test_a_large_transaction_goes_outside_memory_and_what_follows_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wal_feed, "SPILL_BYTES", 100_000)
    ListSpill.made = 0

    async def main() -> None:
        parts = Parts()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(parts.feed.run)
            parts.commit(200, *[message(str(n), n) for n in range(1, 1701)])
            for n in range(1701, 2501):
                parts.commit(n, message(str(n), n))
            assert parts.heard == []
            assert parts.commits == []  # what it brought is not delivered yet
            assert len(parts.feed._tail.memory) < 600
            await trio.testing.wait_all_tasks_blocked()
            parts.commit(3000, message("2501", 2501))
            assert parts.commits == [3000]
            nursery.cancel_scope.cancel()
        assert parts.events == [str(n) for n in range(1, 2502)]
        assert ListSpill.made > 2

    run(main)


def test_what_was_stored_while_no_slot_was_there_is_looked_up() -> None:
    async def main() -> None:
        parts = Parts()
        failures = [DatabaseUnreachable("away")]

        async def since(micros: int, limit: int) -> list[tuple[int, Broadcast]]:
            await trio.lowlevel.checkpoint()
            if failures:
                raise failures.pop()
            room = RoomKey("room")
            return [
                (99, Broadcast(room=room, event="before", id="1")),
                (200, Broadcast(room=room, event="known", id="2")),
                (201, Broadcast(room=room, event="missed", id="3")),
                (300, Broadcast(room=room, event="in the new slot's WAL", id="4")),
            ]

        parts.store.since = since  # type: ignore[method-assign]  # a stand-in
        parts.store.delivered("2")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(parts.feed.run)
            parts.feed.opened(snapshot(300), STARTED, missed=True)
            await trio.sleep(2)
            nursery.cancel_scope.cancel()
        assert parts.events == ["missed"]

    run(main, autojump=True)


def test_two_losses_shortly_after_each_other_are_looked_up_as_one() -> None:
    async def main() -> None:
        parts = Parts()
        asked: list[int] = []

        async def since(micros: int, limit: int) -> list[tuple[int, Broadcast]]:
            asked.append(micros)
            if len(asked) == 1:
                parts.commit(350)
                parts.feed.opened(snapshot(400), STARTED, missed=True)
                raise DatabaseUnreachable("away")
            await trio.lowlevel.checkpoint()
            return [(320, Broadcast(room=RoomKey("room"), event="between", id="1"))]

        parts.store.since = since  # type: ignore[method-assign]  # a stand-in
        async with trio.open_nursery() as nursery:
            nursery.start_soon(parts.feed.run)
            parts.feed.opened(snapshot(300), STARTED, missed=True)
            await trio.sleep(2)
            nursery.cancel_scope.cancel()
        assert asked[1] == min(asked)
        assert parts.events == ["between"]

    run(main, autojump=True)


def test_a_node_that_takes_a_slot_over_lets_old_commits_be(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = Parts()
    feed = WalFeed(parts.directory, parts.store, ListSpill)
    heard: list[str] = []
    feed.on_message = lambda broadcast, _: heard.append(broadcast.event)
    monkeypatch.setattr("walstream.shell.channels.wal_feed.time.time_ns", lambda: 1_000_000 * 1_000_000_000)
    feed.live_from(snapshot(100))
    feed.opened(snapshot(500), STARTED, missed=False)
    for xid, seconds, event in (
        (99, 999_999, "history"),
        (200, 999_900, "old"),
        (201, 999_950, "young"),
        (600, 999_000, "new"),  # a server's clock may differ: what is committed from now on is never late
    ):
        feed.begin()
        feed.row(message(event, xid), 100)
        committed = transaction(xid)
        committed.commit_at = seconds * 1_000_000
        feed.committed(committed)
    assert heard == ["young", "new"]
