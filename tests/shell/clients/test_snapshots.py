"""Snapshots: which rows come in pages, what is told at their end, and that nothing stays behind."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.shell.joins_support import Owner, Rig, World
from tests.support import run
from walstream.auth.tokens import Claims
from walstream.channel.effects import SUBSCRIBED
from walstream.errors import DatabaseUnreachable
from walstream.policy import Viewer
from walstream.shell.clients import snapshots as module
from walstream.shell.clients.snapshots import COMPLETE
from walstream.shell.database import table_snapshot
from walstream.shell.database.plan_source import LoadedPlan
from walstream.shell.database.table_snapshot import Facts, Moment

T = TypeVar("T")
ALL = b'{"event":"*","schema":"public","table":"things","snapshot":true}'


class Tables:
    """PostgreSQL's part: what is read, by whom, and a gate that reading waits at."""

    def __init__(self) -> None:
        self.rows: list[tuple[str | None, ...]] = [(str(n), "abc"[n % 3], "t") for n in range(7)]
        self.open = 0
        self.most = 0
        self.viewers: list[Viewer] = []
        self.gate = trio.Event()
        self.fails = False
        self.world: World | None = None

    def begin(self, connection: World, viewer: Viewer, tables: Sequence[tuple[str, str]], **_: Any) -> Moment:
        self.viewers.append(viewer)
        facts = {table: Facts(connection.tables[table], False, None, frozenset()) for table in tables}
        rights = connection.load_rights(connection, [viewer.role], tables)
        return Moment(LoadedPlan(connection.plan, connection.snapshot), rights, facts)

    def install(self, patch: pytest.MonkeyPatch) -> None:
        tables = self

        class Session:
            def __init__(self, open_connection: Callable[[], World]) -> None:
                self.world = open_connection()
                tables.open += 1
                tables.most = max(tables.most, tables.open)

            async def run(self, work: Callable[[Any], T]) -> T:
                await trio.lowlevel.checkpoint()
                answer = work(self.world)
                if tables.viewers:
                    await tables.gate.wait()
                if tables.fails:
                    raise DatabaseUnreachable("it has gone")
                return answer

            def give_up(self) -> None:
                tables.open -= 1

        class Reading:
            def __init__(self, connection: object, facts: Facts, columns: Sequence[tuple[str, int]]) -> None:
                places = [[column.name for column in facts.relation.columns].index(name) for name, _ in columns]
                self.rows = [tuple(row[place] for place in places) for row in tables.rows]

            def fetch(self, count: int) -> list[tuple[str | None, ...]]:
                found, self.rows = self.rows[:count], self.rows[count:]
                return found

            def close(self) -> None:
                pass

        patch.setattr(module, "_Session", Session)
        patch.setattr(module, "Reading", Reading)
        patch.setattr(module, "FETCH_FIRST", 3)
        patch.setattr(table_snapshot, "begin", self.begin)


def scene(main: Callable[[Rig, Tables], Awaitable[None]]) -> None:
    async def whole() -> None:
        tables, rig = Tables(), Rig()
        with pytest.MonkeyPatch.context() as patch, rig.world.instead_of_postgresql():
            tables.install(patch)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(rig.joins.run)
                nursery.start_soon(rig.fanout.run)
                await main(rig, tables)
                nursery.cancel_scope.cancel()
        assert tables.open == 0

    run(whole, autojump=True)


def shown(owner: Owner, serial: int) -> list[int]:
    return [row["n"] for _, payload in owner.pushed.get(serial, []) for row in payload["data"]["rows"]]


def test_rows_come_first_then_what_they_do_not_show() -> None:
    async def main(rig: Rig, tables: Tables) -> None:
        owner = Owner(rig)
        serial = rig.ask(owner, ALL)
        await wait_all_tasks_blocked()
        assert owner.accepted(serial).message == SUBSCRIBED
        commits = [await rig.commit_row(n=n) for n in (20, 21)]
        await wait_all_tasks_blocked()
        assert (owner.pushed, owner.frames, len(rig.snapshots)) == ({}, [], 1)
        tables.gate.set()
        await wait_all_tasks_blocked()
        events = [event for event, _ in owner.pushed[serial]]
        assert events == ["snapshot"] * 4, "pages of two rows"
        assert shown(owner, serial) == list(range(7))
        assert owner.pushed[serial][-1][1]["ids"] == list(owner.accepted(serial).ids)
        assert owner.told[serial] == [("ok", COMPLETE)]
        assert owner.details[serial][0]["event"] == "resumed"
        assert [frame.commit for frame in owner.frames] == commits
        await rig.commit_row(n=22)
        await wait_all_tasks_blocked()
        assert len(owner.frames) == 3
        assert len(rig.snapshots) == 0
        owner.leave(serial)
        assert rig.is_clean

    scene(main)


def test_filters_and_selections_are_those_of_changes() -> None:
    async def main(rig: Rig, tables: Tables) -> None:
        tables.gate.set()
        tables.rows.append(("7", None, None))
        owner = Owner(rig)
        item = ALL.replace(b"true}", b'true,"filter":"t=neq.b","select":["b"]}')
        rig.world.casts[25, "b"] = b'"b"'
        serial = rig.ask(owner, item, ALL)
        await wait_all_tasks_blocked()
        first, *_ = owner.pushed[serial]
        assert first[1]["data"]["rows"] == [{"n": 0, "b": True}, {"n": 2, "b": True}]
        assert shown(owner, serial) == [0, 2, 3, 5, 6, *range(8)], "NULL is not unlike b"
        ids = dict.fromkeys([payload["ids"][0] for _, payload in owner.pushed[serial]])
        assert tuple(ids) == owner.accepted(serial).ids
        owner.leave(serial)

    scene(main)


def test_who_leaves_is_read_for_no_more() -> None:
    async def main(rig: Rig, tables: Tables) -> None:
        owner = Owner(rig)
        serials = []
        for _ in range(3):
            serials.append(rig.ask(owner, ALL))
            await wait_all_tasks_blocked()
        assert (tables.open, len(tables.viewers), len(rig.snapshots)) == (1, 1, 3), "one at a time"
        owner.leave(serials[0])
        owner.leave(serials[2])
        await wait_all_tasks_blocked()
        assert (tables.open, len(tables.viewers), len(rig.snapshots)) == (1, 2, 1)
        tables.gate.set()
        await wait_all_tasks_blocked()
        assert list(owner.pushed) == [serials[1]]
        assert tables.most == 1
        owner.leave(serials[1])
        assert rig.is_clean

    scene(main)


@pytest.mark.parametrize("reason", ["snapshot_too_long", "snapshot_failed", "evicted", "slot_lost"])
def test_whatever_goes_wrong_is_a_gap_and_live(reason: str) -> None:
    async def main(rig: Rig, tables: Tables) -> None:
        owner = Owner(rig)
        serial = rig.ask(owner, ALL)
        await wait_all_tasks_blocked()
        await rig.commit_row(n=20)
        if reason == "snapshot_failed":
            tables.fails = True
        elif reason == "evicted":
            rig.ring.clear()
        elif reason == "slot_lost":
            rig.joins.gap(reason)
        if reason == "snapshot_too_long":
            await trio.sleep(61)
        else:
            tables.gate.set()
        await wait_all_tasks_blocked()
        expected = "snapshot_too_long" if reason == "evicted" else reason
        (told,) = owner.details[serial]
        assert (told["event"], told["reason"]) == ("gap", expected)
        assert owner.frames == []
        commit = await rig.commit_row(n=21)
        await wait_all_tasks_blocked()
        assert [frame.commit for frame in owner.frames] == [commit]
        owner.leave(serial)
        assert rig.is_clean

    scene(main)


def test_a_new_token_is_for_what_follows() -> None:
    async def main(rig: Rig, tables: Tables) -> None:
        owner = Owner(rig)
        serial = rig.ask(owner, ALL)
        await wait_all_tasks_blocked()
        rig.joins.refreshed(owner, serial, Claims("writer"))
        await wait_all_tasks_blocked()
        await rig.commit_row(n=20)
        tables.gate.set()
        await wait_all_tasks_blocked()
        assert [viewer.role for viewer in tables.viewers] == ["reader"]
        assert shown(owner, serial) == list(range(7))
        assert len(owner.frames) == 1
        assert list(rig.access.roles) == ["writer"]
        owner.leave(serial)
        assert rig.is_clean

    scene(main)


def test_a_role_that_may_not_gets_no_more_pages() -> None:
    async def main(rig: Rig, tables: Tables) -> None:
        rig.world.granted.discard(("writer", "public", "things"))
        owner = Owner(rig)
        serial = rig.ask(owner, ALL)
        await wait_all_tasks_blocked()
        rig.joins.refreshed(owner, serial, Claims("writer"))
        await wait_all_tasks_blocked()
        assert len(rig.snapshots) == tables.open == 0
        tables.gate.set()
        await rig.commit_row(n=20)
        await wait_all_tasks_blocked()
        assert (owner.pushed, owner.frames) == ({}, [])
        # A token that may brings the snapshot anew.
        rig.joins.refreshed(owner, serial, Claims("reader"))
        await wait_all_tasks_blocked()
        assert shown(owner, serial) == list(range(7))
        owner.leave(serial)
        assert rig.is_clean

    scene(main)


def test_who_asks_for_many_has_one_after_the_other() -> None:
    """The second place is not theirs, although they came first."""

    async def main(rig: Rig, tables: Tables) -> None:
        rig.snapshots._limits = rig.snapshots._limits._replace(at_once=2)
        rig.snapshots._turns = trio.Semaphore(2)
        greedy, other = Owner(rig), Owner(rig)
        many = [rig.ask(greedy, ALL, topic=f"t{number}") for number in range(3)]
        await wait_all_tasks_blocked()
        assert (rig.snapshots.running, len(rig.snapshots)) == (1, 3)
        serial = rig.ask(other, ALL)
        await wait_all_tasks_blocked()
        assert (rig.snapshots.running, len(rig.snapshots)) == (2, 4)
        greedy.leave(many[1])
        tables.gate.set()
        await wait_all_tasks_blocked()
        for owner, each in ((greedy, many[0]), (greedy, many[2]), (other, serial)):
            assert shown(owner, each) == list(range(7))
        assert (rig.snapshots.running, len(rig.snapshots), rig.snapshots._own_turns) == (0, 0, {})
        assert (rig.snapshots.rows_out, rig.snapshots.pages_out) == (21, 12)

    scene(main)
