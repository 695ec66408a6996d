"""When the table of messages is looked after, and what a database that fails does to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import structlog.testing
import trio

from tests.support import run
from walstream.errors import DatabaseUnreachable
from walstream.shell.channels.message_upkeep import MessageUpkeep
from walstream.shell.database.postgres import Database
from walstream.telemetry.log import MESSAGES_UNKEPT


class Table:
    """Stands for the statements; ``left``: how many expired messages there are."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, str]] = []
        self.left = {True: 0, False: 0}
        self.failures = 0
        self.is_others = False

    async def run(self, work: Callable[[Any], Any]) -> Any:
        await trio.lowlevel.checkpoint()
        if self.failures:
            self.failures -= 1
            raise DatabaseUnreachable("away")
        return work(None)

    def maintain(self, connection: object, schema: str) -> tuple[int, int]:
        self.calls.append((trio.current_time(), f"maintain {schema}"))
        return 0, 0

    def delete_expired(self, connection: object, schema: str, limit: int, *, by_age: bool) -> int | None:
        self.calls.append((trio.current_time(), "age" if by_age else "expiry"))
        if self.is_others:
            return None
        count = min(limit, self.left[by_age])
        self.left[by_age] -= count
        return count


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Table:
    found = Table()
    monkeypatch.setattr("walstream.shell.channels.message_upkeep.message_rows.maintain", found.maintain)
    monkeypatch.setattr("walstream.shell.channels.message_upkeep.message_rows.delete_expired", found.delete_expired)
    return found


def running(table: Table, seconds: float) -> list[tuple[int, str]]:
    """What was done when, in whole seconds from the start."""

    async def main() -> list[tuple[int, str]]:
        started = trio.current_time()
        with trio.move_on_after(seconds):
            await MessageUpkeep(cast("Database", table), "realtime").run()
        return [(int(at - started), what) for at, what in table.calls]

    return run(main, autojump=True)


def test_it_begins_at_once_and_goes_on_by_the_minute_and_by_the_hour(table: Table) -> None:
    done = running(table, 3700)
    assert done[:3] == [(0, "maintain realtime"), (0, "age"), (0, "expiry")]
    assert [at for at, what in done if what == "maintain realtime"] == [0, 3600]
    assert [at for at, what in done if what == "expiry"] == list(range(0, 3700, 60))


def test_many_are_deleted_in_parts(table: Table) -> None:
    table.left = {True: 12_000, False: 5000}
    done = running(table, 10)
    assert [what for _, what in done] == ["maintain realtime", "age", "age", "age", "expiry", "expiry"]
    assert table.left == {True: 0, False: 0}


def test_while_another_node_does_it_nobody_waits(table: Table) -> None:
    table.is_others = True
    assert [what for _, what in running(table, 10)] == ["maintain realtime", "age", "expiry"]


def test_a_failure_is_told_and_tried_again(table: Table) -> None:
    table.failures = 1
    with structlog.testing.capture_logs() as logs:
        done = running(table, 40)
    assert [entry["event"] for entry in logs] == [MESSAGES_UNKEPT]
    assert done[0] == (30, "maintain realtime")
