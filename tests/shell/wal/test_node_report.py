"""What a node reports of itself: when, what, and what a database that fails does to it."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, Self, cast

import pytest
import structlog.testing
import trio
from hypothesis import given
from hypothesis import strategies as st
from psycopg2 import sql

from tests.shell.database_support import FakeConnection, FakeDatabase, T
from tests.support import run
from walstream.capture import Plan, subscription_row
from walstream.capture.tally import Tally
from walstream.errors import DatabaseRefused, DatabaseUnreachable
from walstream.model import Catalog, Column, Relation
from walstream.shell.database.counts import NODE_SECONDS
from walstream.shell.database.postgres import PgConnection
from walstream.shell.health import Health
from walstream.shell.wal.node_report import GOODBYE_SECONDS, PATIENCE_SECONDS, NodeReport, iso
from walstream.telemetry.log import NODE_UNREPORTED

SECONDS = 10.0
USERS = Relation("public", "users", (Column("id", 23, "int4"),), ("id",))


class Written(NamedTuple):
    """A statement, and what was handed over with it."""

    statement: sql.Composed
    values: Mapping[str, Any]


class Connection:
    """Remembers statements; its own cursor."""

    def __init__(self) -> None:
        self.written: list[Written] = []

    def as_connection(self) -> PgConnection:
        return cast("PgConnection", self)

    def cursor(self) -> Self:
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def execute(self, statement: sql.Composed, values: Mapping[str, Any]) -> None:
        self.written.append(Written(statement, values))


class SlowDatabase(FakeDatabase):
    """Answers after ``delay`` seconds."""

    def __init__(self) -> None:
        self.delay = 0.0
        self.log = Connection()
        super().__init__(cast("FakeConnection", self.log))

    async def run(self, work: Callable[[PgConnection], T]) -> T:
        await trio.sleep(self.delay)
        return await super().run(work)


class Scene:
    """A report over a database that is not there."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self.database = SlowDatabase()
        self.health = Health(version="1.2", node="host:1/slot", clock=lambda: 0.0)
        self.health.clients = lambda: 7
        self.plan = Plan([subscription_row("a", "public.users", ["*"])], own_schema="realtime")
        self.tally = Tally()
        self.report = NodeReport(
            self.database,
            self.health,
            lambda: (self.plan, self.tally),
            schema="live",
            slot="slot",
            address="127.0.0.1:1",
            seconds=seconds,
        )

    @property
    def statements(self) -> list[str]:
        """What was done: report or goodbye."""
        return ["report" if "status" in written.values else "goodbye" for written in self.database.log.written]

    @property
    def values(self) -> Mapping[str, Any]:
        """What the newest statement says."""
        return self.database.log.written[-1].values


def reporting(scene: Callable[[Scene], Awaitable[None]], made: Scene | None = None) -> Scene:
    """Run ``scene`` beside a report, with a clock that leaps; cancelled at the end, as a daemon that stops."""
    on = made or Scene()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(on.report.run)
            await scene(on)
            nursery.cancel_scope.cancel()

    run(main, autojump=True)
    return on


def capture(on: Scene, count: int, at: int) -> None:
    admission = on.plan.admission(USERS, Catalog(), {})
    assert admission is not None
    on.tally.touch(admission)
    admission.pending += count
    on.tally.commit(at)


def test_it_reports_at_once_then_at_every_interval_and_says_goodbye() -> None:
    async def scene(on: Scene) -> None:
        await trio.sleep(0.001)
        assert on.statements == ["report"]
        await trio.sleep(SECONDS * 2)
        assert on.statements == ["report"] * 3

    assert reporting(scene).statements == ["report"] * 3 + ["goodbye"]


def test_a_long_interval_does_not_make_the_node_look_gone() -> None:
    async def scene(on: Scene) -> None:
        await trio.sleep(NODE_SECONDS)

    assert reporting(scene, Scene(seconds=3600)).statements.count("report") >= 3


def test_a_report_has_the_nodes_facts_and_the_rows_numbers() -> None:
    async def scene(on: Scene) -> None:
        await trio.sleep(0.001)
        told = on.values
        assert (told["node_id"], told["slot"], told["address"]) == ("host:1/slot", "slot", "127.0.0.1:1")
        assert (told["version"], told["clients"]) == ("1.2", 7)
        status = json.loads(told["status"])
        assert status["subscriptions"] == {"a": {"events": 0}}
        assert status["health"]["status"] == "starting"
        capture(on, 3, 1_000_000)
        await trio.sleep(SECONDS)
        status = json.loads(on.values["status"])
        assert status["subscriptions"] == {"a": {"events": 3, "last_event_at": "1970-01-01T00:00:01.000000Z"}}
        assert sql.Identifier("live", "nodes") in on.database.log.written[0].statement.seq

    reporting(scene)


def test_errors_of_a_row_are_told_as_long_as_they_last() -> None:
    on = Scene()
    on.plan = Plan([subscription_row("a", "users", ["*"]), subscription_row("b", "a.b", ["?"])], own_schema="realtime")
    told = cast("dict[str, dict[str, Any]]", on.report.status()["subscriptions"])
    assert "without its schema" in told["a"]["error"]
    assert "not an event" in told["b"]["error"]
    on.plan = Plan([subscription_row("a", "public.users", ["*"])], own_schema="realtime")
    assert on.report.status()["subscriptions"] == {"a": {"events": 0}}


def test_a_database_that_is_away_is_asked_again_and_not_complained_of() -> None:
    on = Scene()
    on.database.failures.extend([DatabaseUnreachable("gone")] * 3)

    async def scene(on: Scene) -> None:
        await trio.sleep(SECONDS * 2.5)
        assert on.statements == []
        await trio.sleep(SECONDS)
        assert on.statements == ["report"]

    with structlog.testing.capture_logs() as logs:
        reporting(scene, on)
    assert logs == []


def test_a_refusal_is_told_once_until_it_is_another_or_mended() -> None:
    on = Scene()
    denied, absent = DatabaseRefused("no", reason="insufficient_privilege"), DatabaseRefused("no", reason="undefined")
    on.database.failures.extend([denied, denied, absent, absent])

    async def scene(on: Scene) -> None:
        await trio.sleep(SECONDS * 4.5)
        on.database.failures.append(absent)
        await trio.sleep(SECONDS)

    with structlog.testing.capture_logs() as logs:
        reporting(scene, on)
    assert [line["code"] for line in logs if line["event"] == NODE_UNREPORTED] == [
        "insufficient_privilege", "undefined", "undefined",
    ]  # fmt: skip


def test_a_database_that_does_not_answer_is_given_up() -> None:
    on = Scene()
    on.database.delay = 1000

    async def scene(on: Scene) -> None:
        await trio.sleep(PATIENCE_SECONDS + 1)
        on.database.delay = 0
        await trio.sleep(SECONDS)
        assert on.statements == ["report"]

    reporting(scene, on)


def test_a_goodbye_does_not_wait_for_long_and_is_not_said_by_who_has_no_row() -> None:
    took: list[float] = []

    async def main(delay: float, *failures: Exception) -> Scene:
        on = Scene()
        on.database.failures.extend(failures)
        started = 0.0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(on.report.run)
            await trio.sleep(1)
            on.database.delay = delay
            started = trio.current_time()
            nursery.cancel_scope.cancel()
        took.append(trio.current_time() - started)
        return on

    assert run(main, 1000, autojump=True).statements == ["report"]
    assert took.pop() == pytest.approx(GOODBYE_SECONDS)
    assert run(main, 1000, DatabaseUnreachable("gone"), autojump=True).statements == []
    assert took.pop() == 0
    assert run(main, 0, autojump=True).statements == ["report", "goodbye"]


def test_a_report_under_way_is_waited_for() -> None:
    """Else it might be written after the goodbye."""
    on = Scene()
    on.database.delay = GOODBYE_SECONDS / 2

    async def scene(on: Scene) -> None:
        await trio.sleep(0.001)
        assert on.statements == []

    assert reporting(scene, on).statements == ["report", "goodbye"]


def test_a_goodbye_that_fails_is_no_failure() -> None:
    async def scene(on: Scene) -> None:
        await trio.sleep(1)
        on.database.failures.append(DatabaseUnreachable("gone"))

    reporting(scene)


def test_a_bug_is_not_survived() -> None:
    on = Scene()
    on.database.failures.append(ZeroDivisionError())

    async def scene(_: Scene) -> None:
        await trio.sleep_forever()

    with pytest.raises(ExceptionGroup) as caught:
        reporting(scene, on)
    assert caught.group_contains(ZeroDivisionError)


@given(st.lists(st.integers(0, 253_402_300_799_999_999), min_size=1))
def test_times_sort_as_text(times: list[int]) -> None:
    assert [iso(time) for time in sorted(times)] == sorted(iso(time) for time in times)
