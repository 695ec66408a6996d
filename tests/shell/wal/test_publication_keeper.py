"""When the publications are altered, and when they are let alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast
from unittest import mock

import trio
from trio.testing import wait_all_tasks_blocked

from tests.support import run
from walstream.capture.plan import Plan, subscription_row
from walstream.errors import DatabaseUnreachable
from walstream.history.plan_log import Anew
from walstream.shell.database import publications
from walstream.shell.database.postgres import Database
from walstream.shell.database.publications import Synced
from walstream.shell.wal.publication_keeper import LOOK_SECONDS, RETRY_SECONDS, PublicationKeeper


class Base:
    """Counts how often the publications are looked at."""

    def __init__(self) -> None:
        self.looks = 0
        self.failures = 0
        self.missing: tuple[tuple[str, str], ...] = ()
        self.executed: tuple[str, ...] = ()
        self.added: tuple[tuple[str, str], ...] = ()
        self.keeper = PublicationKeeper(cast(Database, self), "realtime")
        self.keeper.is_needed = True

    async def run(self, work: Callable[[Any], Synced]) -> Synced:
        await trio.lowlevel.checkpoint()
        if self.failures:
            self.failures -= 1
            raise DatabaseUnreachable("away")
        with (
            mock.patch.object(publications, "sync_publications", self._sync),
            mock.patch.object(publications, "anew", lambda _, tables: Anew(frozenset(tables), 900)),
        ):
            return work(None)

    def _sync(self, connection: object, schema: str) -> Synced:
        assert schema == "realtime"
        self.looks += 1
        return Synced(self.executed, self.missing, self.added)


def plan(*tables: str) -> Plan:
    return Plan([subscription_row(table, table, ["*"]) for table in tables], own_schema="realtime")


def scene(main: Callable[[Base], Any]) -> Base:
    async def whole() -> Base:
        base = Base()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(base.keeper.run)
            await main(base)
            nursery.cancel_scope.cancel()
        return base

    return run(whole, autojump=True)


def test_nothing_is_done_where_no_publication_is_read() -> None:
    async def main(base: Base) -> None:
        base.keeper.is_needed = False
        base.keeper.use(plan("public.t", "shop.*"))
        await base.keeper.settle(plan("public.t"), [1])
        await trio.sleep(1000)
        assert base.looks == 0

    scene(main)


def test_who_joins_waits_for_a_new_plan_and_for_no_known_one() -> None:
    async def main(base: Base) -> None:
        await base.keeper.settle(plan("public.t"), [1])
        await base.keeper.settle(plan("public.t"), [1])
        assert base.looks == 1
        await base.keeper.settle(plan("public.t", "public.u"), [1])
        assert base.looks == 2
        await base.keeper.settle(plan("public.t", "public.u"), [1, 2])
        assert base.looks == 3, "a table that was made anew"
        await base.keeper.settle(plan("public.t", "public.u"), [2, 1])
        assert base.looks == 3

    scene(main)


def test_what_was_refused_is_tried_again_by_the_next_join() -> None:
    async def main(base: Base) -> None:
        base.missing = (("alter publication", "permission denied"),)
        await base.keeper.settle(plan("public.t"), [1])
        await base.keeper.settle(plan("public.t"), [1])
        assert base.looks == 2
        base.missing = ()
        await base.keeper.settle(plan("public.t"), [1])
        await base.keeper.settle(plan("public.t"), [1])
        assert base.looks == 3

    scene(main)


def test_a_plan_is_followed_at_once_and_looked_after() -> None:
    async def main(base: Base) -> None:
        base.keeper.use(plan("public.t"))
        await wait_all_tasks_blocked()
        assert base.looks == 1
        await trio.sleep(LOOK_SECONDS * 3.5)
        assert base.looks == 4

    scene(main)


def test_tables_that_were_not_published_are_told_unless_a_new_slot_begins_anyway() -> None:
    async def main(base: Base) -> None:
        told: list[object] = []
        base.keeper.on_anew, base.keeper.on_made = told.append, told.append
        await base.keeper.settle(plan("public.t"), [1])
        assert told == []
        base.added = (("public", "t"),)
        await base.keeper.settle(plan("public.t"), [2])
        assert told == [Anew(frozenset(base.added), 900)]
        base.executed = ('create publication "walstream_all" with (publish = 1)',)
        await base.keeper.settle(plan("public.t"), [3])
        assert told[1:] == [("walstream_all",)]

    scene(main)


def test_a_database_that_is_away_is_asked_again() -> None:
    async def main(base: Base) -> None:
        base.failures = 3
        base.keeper.use(plan("public.t"))
        await trio.sleep(RETRY_SECONDS * 2.5)
        assert base.looks == 0
        await trio.sleep(RETRY_SECONDS)
        assert base.looks == 1

    scene(main)
