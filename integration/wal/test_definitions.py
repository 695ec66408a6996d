"""Tables that change, go and come while their rows stream, and plans that change with them."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from integration.fixtures.daemon import token
from integration.fixtures.node import eventually
from integration.fixtures.ws import PhoenixClient, phoenix
from integration.wal.conftest import Node


def records(changes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [change["record"] for change in changes]


def test_altering_a_table_changes_what_the_next_row_holds(node: Node) -> None:
    node.table("t")

    async def main() -> None:
        async with node.client("t") as client:
            for statement in (
                "insert into t values (1, 'a')",
                "alter table t add column n int default 7",
                "insert into t values (2, 'b')",
                "alter table t rename column v to w",
                "insert into t values (3, 'c')",
                "alter table t alter column n type text",
                "insert into t values (4, 'd', 'eight')",
                "alter table t drop column w",
                "insert into t values (5, 'nine')",
            ):
                node.database.execute(statement)
            changes = await client.changes(5)
            assert records(changes) == [
                {"id": 1, "v": "a"},
                {"id": 2, "v": "b", "n": 7},
                {"id": 3, "w": "c", "n": 7},
                {"id": 4, "w": "d", "n": "eight"},
                {"id": 5, "n": "nine"},
            ]
            assert [column["name"] for column in changes[2]["columns"]] == ["id", "w", "n"]

    trio.run(main)


def test_rows_and_definitions_may_change_in_one_transaction(node: Node) -> None:
    node.table("t")

    async def main() -> None:
        async with node.client("t") as client:
            node.database.execute(
                "insert into t values (1, 'a'); alter table t add column n int;"
                " insert into t values (2, 'b', 2); alter table t drop column v; insert into t values (3, 3)"
            )
            assert records(await client.changes(3)) == [
                {"id": 1, "v": "a"},
                {"id": 2, "v": "b", "n": 2},
                {"id": 3, "n": 3},
            ]

    trio.run(main)


def test_a_renamed_table_is_another_table(node: Node) -> None:
    node.table("t")
    node.table("witness")

    async def main() -> None:
        async with node.client("t", "witness") as client:
            for number, statement in enumerate(("select 1", "alter table t rename to u", "alter table u rename to t")):
                node.database.execute(statement)
                name = "u" if number == 1 else "t"
                node.database.execute(f"insert into {name} values (%s, %s)", (number, name))
                node.database.execute("insert into witness values (%s, '')", (number,))
            changes = await client.changes(5)
            assert [(change["table"], change["record"]["id"]) for change in changes] == [
                ("t", 0), ("witness", 0), ("witness", 1), ("t", 2), ("witness", 2),
            ]  # fmt: skip

    trio.run(main)


def test_a_dropped_table_takes_nobody_along(node: Node) -> None:
    node.table("t")
    node.table("witness")

    async def main() -> None:
        async with node.client("t", "witness") as client:
            node.database.execute("insert into t values (1, 'last words')")
            node.database.execute("insert into t values (2, 'gone with it'); drop table t")
            node.database.execute("insert into witness values (1, '')")
            changes = await client.changes(2)
            assert records(changes)[0] == {"id": 1, "v": "last words"}
            # A row of a table that its own transaction dropped may come or not; everybody else's does.
            if changes[1]["table"] == "t":
                changes[1:] = await client.changes(1)
            assert changes[1]["table"] == "witness"

    trio.run(main)


def test_a_table_that_comes_back_is_captured_again(node: Node) -> None:
    node.table("t")

    async def main() -> None:
        async with node.client("t") as client:
            node.database.execute("insert into t values (1, 'old')")
            await client.changes(1)
            node.database.execute("drop table t")
            node.table("t", "name text primary key", captured=False)
            # What makes the daemon look again, as an operator would after a restored table.
            node.database.execute("update realtime.subscriptions set updated_at = now()")

            async def is_back() -> bool:
                node.database.execute("insert into t values (gen_random_uuid()::text)")
                with trio.move_on_after(0.5):
                    frame = await client.next("postgres_changes")
                    return list(frame.payload["data"]["record"]) == ["name"]
                return False

            with trio.fail_after(20):
                while not await is_back():
                    pass

    trio.run(main)


def test_a_table_that_was_made_anew_is_a_gap_for_its_clients_where_rows_may_be_lost(node: Node) -> None:
    """Until it is published again, which takes seconds, pgoutput leaves its rows out; wal2json knows it by its name."""
    node.table("t")
    node.table("witness")
    is_published_anew = node.daemon.environ["WALSTREAM_DECODER"] == "pgoutput"

    def make_anew() -> None:
        node.database.execute("drop table t")
        node.database.execute(
            "create table t (id bigint primary key, v text); grant select on t to anon; insert into t values (2, 'new')"
        )
        if is_published_anew:
            eventually(lambda: node.is_published("t"))

    async def told(client: PhoenixClient) -> list[object]:
        """Rows and reasons of gaps until the witness's row."""
        found: list[object] = []
        while True:
            frame = await client.next()
            if frame.event == "system" and frame.payload.get("event") == "gap":
                found.append(frame.payload["reason"])
            elif frame.event == "postgres_changes":
                if frame.payload["data"]["table"] == "witness":
                    return found
                found.append(frame.payload["data"]["record"]["id"])

    async def main() -> None:
        async with node.client("t", "witness") as client, node.client("witness") as other:
            node.database.execute("insert into t values (1, 'old')")
            (first,) = await client.changes(1)
            await trio.to_thread.run_sync(make_anew)
            node.database.execute("insert into t values (3, 'newer')")
            node.database.execute("insert into witness values (1, '')")
            assert await told(client) == (["plan_changed", 3] if is_published_anew else [2, 3])
            assert await told(other) == []
            item = {"event": "*", "schema": "public", "table": "t", "since": first["position"]}
            await other.subscribe("realtime:back", item)
            back = (await other.next("system", topic="realtime:back")).payload
            assert (back["event"], back.get("reason")) == (
                ("gap", "plan_changed") if is_published_anew else ("resumed", None)
            )

    trio.run(main)


def test_a_table_that_was_made_anew_while_the_daemon_was_down_is_a_gap_where_rows_are_lost(node: Node) -> None:
    node.table("t")

    async def first() -> str:
        async with node.client("t") as client:
            node.database.execute("insert into t values (1, 'old')")
            return str((await client.changes(1))[0]["position"])

    async def again(since: str) -> tuple[object, object]:
        async with node.client() as client:
            await client.subscribe("realtime:t", {"event": "*", "schema": "public", "table": "t", "since": since})
            node.database.execute("insert into t values (3, 'newer')")
            told = (await client.next("system")).payload
            if told["event"] == "resumed" and node.daemon.environ["WALSTREAM_DECODER"] == "pgoutput":
                told = (await client.next("system")).payload  # it was there before the stream had got so far
            return told["event"], told.get("reason")

    position = trio.run(first)
    node.daemon.kill()
    node.database.execute("drop table t")
    node.database.execute(
        "create table t (id bigint primary key, v text); grant select on t to anon; insert into t values (2, 'new')"
    )
    node.daemon.start()
    is_lost = node.daemon.environ["WALSTREAM_DECODER"] == "pgoutput"
    assert trio.run(again, position) == (("gap", "plan_changed") if is_lost else ("resumed", None))


@pytest.mark.parametrize("decoder", ["pgoutput"])  # which also publishes what is captured anew
def test_a_table_of_subscriptions_that_is_made_anew_is_loaded_again(node: Node) -> None:
    """As after a restored schema. The WAL does not tell that the old rows have gone."""
    node.table("t")
    node.table("u", captured=False)
    node.table("witness")

    def exchange() -> None:
        node.database.execute(
            "create table realtime.spare (like realtime.subscriptions including all);"
            "drop table realtime.subscriptions cascade"
        )
        eventually(lambda: "is not there" in str(node.health()["reasons"]))
        node.database.execute(
            "alter table realtime.spare rename to subscriptions;"
            "insert into realtime.subscriptions (table_name) values ('public.u'), ('public.witness')"
        )
        eventually(lambda: has_said(node, "plan.reloaded"))

    async def main() -> None:
        async with node.client("t", "witness") as client:
            await trio.to_thread.run_sync(exchange)
            assert (await client.next("system")).payload["reason"] == "plan_changed"
            node.database.execute("insert into t values (1, 'not captured any more')")
            node.database.execute("insert into witness values (1, '')")
            assert [change["table"] for change in await client.changes(1)] == ["witness"]
        async with node.client("u") as client:
            node.database.execute("insert into u values (1, 'captured now')")
            assert [change["table"] for change in await client.changes(1)] == ["u"]
        assert node.health()["status"] == "ready"

    trio.run(main)


def has_said(node: Node, event: str) -> bool:
    return any(line.get("event") == event for line in node.daemon.log())


def test_the_plan_may_be_edited_by_sql(node: Node) -> None:
    node.table("t", captured=False)
    node.table("witness")

    def edit(statement: str) -> None:
        node.database.execute(statement + " where table_name = 'public.t'")

    async def main() -> None:
        async with phoenix(node.daemon.websocket_url, apikey=token("anon")) as client:
            await client.subscribe("realtime:all", {"event": "*", "schema": "public", "table": "*"})

            async def seen_until_witness() -> list[int]:
                node.database.execute("insert into witness values ((select count(*) from witness), '')")
                changes = await client.changes(1)
                while changes[-1]["table"] != "witness":
                    changes += await client.changes(1)
                return [change["record"]["id"] for change in changes[:-1]]

            node.database.execute("insert into t values (1, 'not yet')")
            assert await seen_until_witness() == []
            node.capture("t")
            node.database.execute("insert into t values (2, 'captured')")
            assert await seen_until_witness() == [2]
            edit("update realtime.subscriptions set filter = $f$v = 'wanted'$f$")
            node.database.execute("insert into t values (3, 'unwanted'), (4, 'wanted')")
            assert await seen_until_witness() == [4]
            edit("delete from realtime.subscriptions")
            node.database.execute("insert into t values (5, 'wanted')")
            assert await seen_until_witness() == []

    trio.run(main)


@pytest.mark.parametrize(
    "row",
    [
        {"table_name": "public.t", "filter": "this is no filter"},
        {"table_name": "no such table", "filter": None},
        {"table_name": "public.t", "filter": "nosuchcolumn = 1"},
    ],
)
def test_a_faulty_row_in_the_plan_stops_nothing(node: Node, row: dict[str, Any]) -> None:
    node.table("t", captured=False)
    node.table("witness")

    async def main() -> None:
        async with node.client("witness") as client:
            node.database.execute(
                "insert into realtime.subscriptions (table_name, filter) values (%(table_name)s, %(filter)s)", row
            )
            node.database.execute("insert into t values (1, 'x')")
            node.database.execute("insert into witness values (1, '')")
            assert (await client.changes(1))[0]["table"] == "witness"
        eventually(lambda: node.health()["reader"]["status"] == "streaming")

    trio.run(main)
