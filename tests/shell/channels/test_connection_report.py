"""When connections are reported, and what a database that fails does to it. What is written is tested on a real one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

import structlog.testing
import trio

from tests.support import run
from walstream.errors import DatabaseRefused, DatabaseUnreachable
from walstream.shell.channels.connection_report import FRESH_SECONDS, PAUSE_SECONDS, ConnectionFacts, ConnectionReport
from walstream.shell.database.postgres import PgConnection
from walstream.telemetry.log import CONNECTIONS_UNREPORTED

SECONDS = 15.0

T = TypeVar("T")


class Table:
    """Stands in for the statements."""

    def __init__(self) -> None:
        self.rows: dict[str, ConnectionFacts] = {}
        self.writes: list[tuple[float, int, int]] = []
        self.ended = 0

    def write(self, _: object, rows: Any, gone: Any) -> bool:
        self.writes.append((trio.current_time(), len(rows), len(gone)))
        self.rows |= rows
        for name in gone:
            del self.rows[name]
        return True

    def ours(self, _: object) -> set[str]:
        return set(self.rows)

    def sweep(self, _: object) -> tuple[int, ...]:
        return (0, 0)

    def goodbye(self, _: object) -> bool:
        self.ended += 1
        return True


class Scene:
    """A report over a table that is not there; also its database."""

    def __init__(self) -> None:
        self.table = Table()
        self.broken: Exception | None = None
        self.facts = ConnectionFacts("ada", 0.0)
        self.asked = 0
        self.report = ConnectionReport(self, "realtime", "node", SECONDS)
        self.report._statements = cast("Any", self.table)

    async def run(self, work: Callable[[PgConnection], T]) -> T:
        await trio.lowlevel.checkpoint()
        if self.broken is not None:
            raise self.broken
        return work(cast("PgConnection", None))

    def ask(self) -> ConnectionFacts:
        self.asked += 1
        return self.facts

    def open(self, name: str) -> None:
        self.report.opened(name, self.ask)


def reporting(scene: Callable[[Scene], Awaitable[None]]) -> Scene:
    """Run ``scene`` beside a report, with a clock that leaps; cancelled at the end, as a daemon that stops."""
    on = Scene()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(on.report.run)
            await scene(on)
            nursery.cancel_scope.cancel()

    run(main, autojump=True)
    return on


def test_who_comes_and_goes_within_a_second_is_not_written() -> None:
    async def scene(on: Scene) -> None:
        await trio.sleep(0.5)
        for number in range(100):
            on.open(f"short{number}")
            on.report.closed(f"short{number}")
        on.open("long")
        on.report.closed("unknown")
        await trio.sleep(PAUSE_SECONDS)
        assert [counts for _, *counts in on.table.writes] == [[1, 0]]
        on.report.closed("long")
        await trio.sleep(PAUSE_SECONDS)
        assert on.table.rows == {}
        await trio.sleep(PAUSE_SECONDS)
        assert not on.report._changed, "nobody is remembered"

    assert reporting(scene).table.ended == 1


def test_a_row_is_written_again_when_something_is_new_and_now_and_then() -> None:
    async def scene(on: Scene) -> None:
        on.open("a")
        await trio.sleep(SECONDS * 1.5)
        assert len(on.table.writes) == 1
        on.facts = on.facts._replace(quiet_seconds=20.0)
        await trio.sleep(SECONDS)
        assert len(on.table.writes) == 1, "the silence of a client goes on by itself"
        on.facts = on.facts._replace(topics=3)
        await trio.sleep(SECONDS)
        assert [counts for _, *counts in on.table.writes] == [[1, 0]] * 2
        assert on.table.rows["a"].topics == 3
        await trio.sleep(FRESH_SECONDS + SECONDS + 1)
        assert len(on.table.writes) == 3

    reporting(scene)


def test_while_the_database_is_away_only_those_who_are_there_are_kept() -> None:
    async def scene(on: Scene) -> None:
        on.open("before")
        await trio.sleep(PAUSE_SECONDS * 1.5)
        on.broken = DatabaseUnreachable("gone")
        on.report.closed("before")
        for number in range(1000):
            on.open(f"c{number}")
            if number:
                on.report.closed(f"c{number - 1}")
            await trio.sleep(1)
        on.table.rows.clear()
        on.broken = None
        await trio.sleep(12)
        assert list(on.table.rows) == ["c999"]
        on.broken = DatabaseRefused("no", reason="insufficient_privilege")
        await trio.sleep(100)

    with structlog.testing.capture_logs() as logs:
        reporting(scene)
    told = [(line["event"], line["code"]) for line in logs if line["log_level"] == "warning"]
    assert told == [(CONNECTIONS_UNREPORTED, "insufficient_privilege")] * 2, "writing and sweeping"


def test_a_table_that_lost_its_rows_is_filled_as_soon_as_it_answers() -> None:
    async def scene(on: Scene) -> None:
        on.open("a")
        await trio.sleep(PAUSE_SECONDS * 1.5)
        on.broken = DatabaseUnreachable("the server crashed")
        on.open("b")
        await trio.sleep(PAUSE_SECONDS)
        on.table.rows.clear()
        on.broken = None
        await trio.sleep(PAUSE_SECONDS * 2)
        assert set(on.table.rows) == {"a", "b"}

    reporting(scene)


def test_facts_are_asked_of_those_who_are_there_only() -> None:
    async def scene(on: Scene) -> None:
        on.open("a")
        await trio.sleep(PAUSE_SECONDS * 1.5)
        on.report.closed("a")
        asked = on.asked
        await trio.sleep(SECONDS * 3)
        assert on.asked == asked

    reporting(scene)
