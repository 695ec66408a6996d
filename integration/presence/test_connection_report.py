"""Connections in the database: a node's own rows through everything that happens to them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from integration.fixtures.postgres import TestDatabase
from integration.presence.conftest import NODE, until
from tests.support import run
from walstream.shell.channels.connection_report import (
    AGENT_LENGTH,
    BATCH_ROWS,
    USER_BYTES_MAX,
    ConnectionFacts,
    ConnectionReport,
)
from walstream.shell.database.postgres import Database

SINCE = 1_700_000_000.0


@pytest.fixture(autouse=True)
def quick_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that recurs does so soon."""
    for name in ("PAUSE_SECONDS", "SWEEP_SECONDS"):
        monkeypatch.setattr(f"walstream.shell.channels.connection_report.{name}", 0.02)


class Reported:
    """A report over a real table, and connections that are only facts."""

    def __init__(self, database: TestDatabase, node: str = NODE) -> None:
        self.database = database
        self.node = node
        self.statements = Database(database.dsn, "connections test")
        self.report = ConnectionReport(self.statements, "realtime", node, seconds=0.1)
        self.facts: dict[str, ConnectionFacts] = {}

    def open(self, name: str, user: str | None = "ada", **facts: Any) -> None:
        self.facts[name] = ConnectionFacts(user, SINCE, **facts)
        self.report.opened(name, lambda: self.facts[name])

    def change(self, name: str, **facts: Any) -> None:
        self.facts[name] = self.facts[name]._replace(**facts)

    def close(self, name: str) -> None:
        self.report.closed(name)
        del self.facts[name]

    @property
    def rows(self) -> list[tuple[Any, ...]]:
        """id, user, status and metadata of this node's rows."""
        return self.database.query(
            "select connection_id, user_id, status, metadata from realtime.connections where node_id = %s order by 1",
            (self.node,),
        )

    @property
    def statuses(self) -> dict[str, str]:
        """By id."""
        return {name: status for name, _, status, _ in self.rows}


def reporting(database: TestDatabase, scene: Callable[[Reported], Awaitable[None]]) -> Reported:
    """Run ``scene`` beside a report, which says goodbye at the end."""
    on = Reported(database)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(on.report.run)
            await scene(on)
            nursery.cancel_scope.cancel()
        await on.statements.aclose()

    run(main)
    return on


def test_a_connection_comes_changes_and_goes(prepared: TestDatabase) -> None:
    async def scene(on: Reported) -> None:
        on.open("conn-a", address="1.2.3.4:5", user_agent="browser", vsn="2.0.0", topics=1)
        on.open("conn-b", None)
        told = {"address": "1.2.3.4:5", "user_agent": "browser", "vsn": "2.0.0", "topics": 1, "lag_bytes": 0}
        await until(lambda: len(on.rows) == 2)
        assert on.rows[0] == ("conn-a", "ada", "connected", told)
        assert on.rows[1][:3] == ("conn-b", None, "connected")
        assert prepared.scalar("select extract(epoch from min(connected_at)) from realtime.connections") == SINCE
        on.change("conn-a", user_id="eve", topics=2, queued_bytes=7)
        await until(lambda: on.rows[0] == ("conn-a", "eve", "connected", {**told, "topics": 2, "lag_bytes": 7}))
        on.close("conn-b")
        await until(lambda: on.statuses == {"conn-a": "connected", "conn-b": "disconnected"})

    assert set(reporting(prepared, scene).statuses.values()) == {"disconnected"}


def test_it_is_told_when_anything_was_heard_of_it(prepared: TestDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = "select extract(epoch from now() - last_seen_at)::float8 from realtime.connections"

    async def scene(on: Reported) -> None:
        on.open("conn-a", quiet_seconds=100.0)
        await until(lambda: on.rows)
        assert 100 <= prepared.scalar(seen) < 160
        monkeypatch.setattr("walstream.shell.channels.connection_report.FRESH_SECONDS", 0.0)
        on.change("conn-a", quiet_seconds=1.0)
        await until(lambda: prepared.scalar(seen) < 90)

    reporting(prepared, scene)


def test_rows_of_an_earlier_boot_end_and_tampered_ones_are_mended(prepared: TestDatabase) -> None:
    prepared.execute("insert into realtime.connections (connection_id, node_id) values ('conn-old', %s)", (NODE,))

    async def scene(on: Reported) -> None:
        on.open("conn-a")
        await until(lambda: on.statuses == {"conn-a": "connected", "conn-old": "disconnected"})
        prepared.execute("select realtime.cleanup_stale_connections(0)")
        await until(lambda: on.statuses["conn-a"] == "connected")
        prepared.execute("truncate realtime.connections")
        await until(lambda: on.statuses == {"conn-a": "connected"})

    reporting(prepared, scene)


def test_a_server_that_crashed_is_told_again(fragile: TestDatabase) -> None:
    async def scene(on: Reported) -> None:
        on.open("conn-a")
        on.open("conn-b")
        await until(lambda: len(on.rows) == 2)
        fragile.close()
        fragile.cluster.kill()
        on.close("conn-b")
        on.open("conn-c")
        await until(lambda: on.report._attempts.has_failed)
        fragile.cluster.start()
        await until(lambda: on.statuses == {"conn-a": "connected", "conn-c": "connected"})

    reporting(fragile, scene)


def test_rows_of_dead_nodes_end_and_old_ones_go(prepared: TestDatabase) -> None:
    prepared.execute(
        "insert into realtime.nodes (node_id, last_seen_at) values"
        " ('alive', now() - interval '50 s'), ('dead', now() - interval '61 s');"
        "insert into realtime.connections (connection_id, node_id, status, last_seen_at) values"
        " ('a', 'alive', 'connected', now() - interval '1 h'), ('b', 'dead', 'connected', now()),"
        " ('c', 'unknown', 'connected', now()), ('d', null, 'connected', now() - interval '290 s'),"
        " ('e', null, 'connected', now() - interval '301 s'), ('f', '', 'connected', now() - interval '301 s'),"
        " ('g', 'dead', 'disconnected', now() - interval '23 h'),"
        " ('h', 'dead', 'disconnected', now() - interval '25 h')"
    )

    async def scene(_: Reported) -> None:
        await until(
            lambda: prepared.scalar("select count(*) from realtime.connections where status = 'connected'") == 2
        )
        await until(lambda: not prepared.query("select from realtime.connections where connection_id = 'h'"))
        found = "select connection_id from realtime.connections where status = {} order by 1"
        assert prepared.query(found.format("'connected'")) == [("a",), ("d",)]
        assert prepared.query(found.format("'disconnected'")) == [("b",), ("c",), ("e",), ("f",), ("g",)]

    reporting(prepared, scene)


def test_names_of_any_kind(prepared: TestDatabase) -> None:
    users = ["x'); drop table realtime.connections; --", "a\0b", "", "y" * (USER_BYTES_MAX + 1), "🙂 مرحبا", "%s"]

    async def scene(on: Reported) -> None:
        for number, user in enumerate(users):
            on.open(f"conn-{number}", user, user_agent='a\0"\\%s' + "z" * 9999)
        await until(lambda: len(on.rows) == len(users))
        assert [user for _, user, _, _ in on.rows] == [users[0], "ab", None, None, users[4], "%s"]
        assert all(len(meta["user_agent"]) == AGENT_LENGTH for *_, meta in on.rows)

    reporting(prepared, scene)


def test_many_at_once_are_few_statements(prepared: TestDatabase) -> None:
    async def scene(on: Reported) -> None:
        for number in range(BATCH_ROWS * 4):
            on.open(f"conn-{number}")
        await until(lambda: len(on.rows) == BATCH_ROWS * 4)
        assert prepared.scalar("select count(distinct last_seen_at) from realtime.connections") <= 5
        for number in range(BATCH_ROWS * 4):
            on.close(f"conn-{number}")
        await until(lambda: set(on.statuses.values()) == {"disconnected"})

    reporting(prepared, scene)
