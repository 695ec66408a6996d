"""A table of subscriptions that is another one is loaded again; one that is not there is said to be missing, once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast
from unittest import mock

import trio
from structlog.testing import capture_logs

from tests.support import run
from walstream.errors import DatabaseUnreachable
from walstream.shell.database import plan_source
from walstream.shell.database.postgres import Database
from walstream.shell.health import Health
from walstream.shell.wal.plan_watch import LOOK_SECONDS, PlanWatch
from walstream.telemetry.log import PLAN_LOST, PLAN_RELOADED


class Base:
    """A database, and who captures by the plan."""

    def __init__(self) -> None:
        self.oid = self.plan_oid = 7
        self.is_away = False
        self.reloads = 0
        self.health = Health(version="1", node="n")
        self.watch = PlanWatch(cast(Database, self), self, self.health, "realtime")

    async def run(self, work: Callable[[Any], int]) -> int:
        await trio.lowlevel.checkpoint()
        if self.is_away:
            raise DatabaseUnreachable("away")
        with mock.patch.object(plan_source, "table_oid", return_value=self.oid):
            return work(None)

    async def reload(self) -> None:
        await trio.lowlevel.checkpoint()
        self.reloads += 1
        self.plan_oid = self.oid


def looks(*happenings: Callable[[Base], object]) -> tuple[Base, list[str]]:
    """One look after each. Returns the log's events, too."""
    base = Base()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(base.watch.run)
            await trio.sleep(LOOK_SECONDS / 2)
            for happen in happenings:
                happen(base)
                await trio.sleep(LOOK_SECONDS)
            nursery.cancel_scope.cancel()

    with capture_logs() as logs:
        run(main, autojump=True)
    return base, [line["event"] for line in logs if str(line["event"]).startswith("plan.")]


def nothing(_: Base) -> None:
    pass


def drop(base: Base) -> None:
    base.oid = 0


def make(base: Base) -> None:
    base.oid = 8


def test_the_same_table_is_left_alone() -> None:
    base, events = looks(nothing, nothing)
    assert (base.reloads, events, base.health.plan_reason) == (0, [], "")


def test_another_table_is_loaded_once() -> None:
    base, events = looks(make, nothing)
    assert (base.reloads, events) == (1, [PLAN_RELOADED])


def test_one_that_is_missing_is_told_until_it_is_there_again() -> None:
    base, events = looks(drop, nothing)
    assert (base.reloads, events) == (0, [PLAN_LOST])
    assert "realtime.subscriptions is not there" in base.health.plan_reason
    assert any(base.health.plan_reason in reason for reason in cast(list[str], base.health.ready()[1]["reasons"]))
    base, events = looks(drop, make)
    assert (base.reloads, events, base.health.plan_reason) == (1, [PLAN_LOST, PLAN_RELOADED], "")


def test_a_database_that_is_away_and_a_stream_that_has_not_begun_say_nothing() -> None:
    base, events = looks(
        lambda base: setattr(base, "is_away", True), make, lambda base: setattr(base, "is_away", False)
    )
    assert (base.reloads, events) == (1, [PLAN_RELOADED])
    base, events = looks(lambda base: setattr(base, "plan_oid", 0), make)
    assert (base.reloads, events) == (0, [])
