"""What snapshots cost, whom they are for, what they show, and how they end when they cannot go on."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
import trio

from integration.daemon.conftest import Node, Start, bearer, verdict
from integration.decoder.samples import SAMPLES, SCHEMA
from integration.fixtures.daemon import token
from integration.fixtures.node import eventually
from integration.fixtures.postgres import fresh_database
from integration.fixtures.ws import PhoenixClient, phoenix
from walstream.shell.commands.private_cluster import Cluster

WIDE = {"event": "*", "schema": "public", "table": "t", "snapshot": True}
SESSIONS = "select count(*) from pg_stat_activity where application_name = 'walstream (snapshots)'"
SMALL = {"WALSTREAM_OUTBOX_BYTES": "1MiB", "WALSTREAM_MAX_MESSAGE_BYTES": "512KiB"}


async def pages(client: PhoenixClient, topic: str = "realtime:s") -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """All pages, and the ``system`` frame that ends them."""
    found = []
    while True:
        frame = await client.next(topic=topic, seconds=30)
        if frame.event == "snapshot":
            found.append(frame.payload["data"])
        elif frame.event == "system" and "event" in frame.payload:
            return found, frame.payload
        else:
            assert frame.event in ("system", "phx_reply"), frame


async def snapshot(
    client: PhoenixClient, topic: str = "realtime:s", **item: object
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    await client.subscribe(topic, {**WIDE, **item})
    return await pages(client, topic)


def fill(node: Node, head: str = "''") -> None:
    """More than sockets and outboxes hold; and the stream has it behind it."""
    node.database.execute(f"insert into t select n, {head} || repeat('x', 1000) from generate_series(1, 30000) n")
    eventually(lambda: node.metric("walstream_changes_in_total") >= 30_000)


def rows(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for page in found for row in page["rows"]]


def test_pages_tell_how_far_they_are(start: Start, cluster: Cluster, template: str) -> None:
    async def main(node: Node) -> None:
        async with phoenix(node.daemon.websocket_url, apikey=bearer()) as client:
            await client.subscribe("realtime:s", WIDE)
            first = await client.next("snapshot")
            assert first.payload["data"].pop("rows") == [{"id": n, "v": f"v{n}"} for n in range(1, 5)]
            (given,) = (await client.join("realtime:other", changes=[WIDE]))["postgres_changes"]
            assert first.payload == {
                "ids": [given["id"]],
                "data": {
                    "schema": "public", "table": "t", "errors": None,
                    "columns": [{"name": "id", "type": "int8"}, {"name": "v", "type": "text"}],
                    "page": 1, "count": 4, "total": 4, "estimate": 9, "last": False,
                },
            }  # fmt: skip
            rest, end = await pages(client)
            assert [(page["page"], page["count"], page["total"], page["last"]) for page in rest] == [
                (2, 4, 8, False),
                (3, 1, 9, True),
            ]
            assert (end["event"], end["status"]) == ("resumed", "ok")
            node.database.execute("insert into t values (10, 'new')")
            (change,) = await client.changes(1, topic="realtime:s")
            assert change["record"]["id"] == 10
        # Who got nothing but pages may come back with the position after them.
        async with phoenix(node.daemon.websocket_url, apikey=bearer()) as client:
            found, again = await snapshot(client, since=end["position"])
            assert (found, again["event"]) == ([], "resumed"), "rows are read only where changes are missing"
            (change,) = await client.changes(1)
            assert change["record"]["id"] == 10
        async with phoenix(node.daemon.websocket_url, apikey=bearer()) as client:
            found, again = await snapshot(client, since="00000000.1.1.0")
            assert (len(rows(found)), again["event"]) == (10, "resumed")
            assert {page["estimate"] for page in found} == {9}
        # Who does not see all rows is not told how many there are.
        node.database.execute("alter table t enable row level security; create policy few on t using (id < 3)")
        async with phoenix(node.daemon.websocket_url, apikey=bearer()) as client:
            found, _ = await snapshot(client)
            assert [(page["count"], page["estimate"]) for page in found] == [(2, None)]

    with fresh_database(cluster, template) as fresh, start(fresh, WALSTREAM_SNAPSHOT_ROWS="4") as node:
        node.table("t")
        fresh.execute("insert into t select n, 'v' || n from generate_series(1, 9) n")
        fresh.execute("analyze t")
        eventually(lambda: node.metric("walstream_changes_in_total") == 9)
        trio.run(main, node)
        node.assert_unharmed()


@pytest.mark.parametrize("plugin", ["wal2json", "pgoutput"])
def test_rows_are_what_changes_show(start: Start, cluster: Cluster, template: str, plugin: str) -> None:
    """Every type's JSON, byte by byte; generated columns; columns and rows that the plan keeps back."""
    columns = [f"c{at}" for at in range(len(SAMPLES))]

    async def texts(client: PhoenixClient, event: str, count: int) -> list[Any]:
        found: list[Any] = []
        while len(found) < count:
            frame = json.loads(str(await client.connection.get_message()), parse_int=str, parse_float=str)
            if frame[3] == event:
                data = frame[4]["data"]
                found += data["rows"] if event == "snapshot" else [data["record"]]
        return found

    async def main(node: Node) -> None:
        async with phoenix(node.daemon.websocket_url, apikey=token("service_role")) as client:
            await client.subscribe("realtime:live", {"event": "*", "schema": "public", "table": "values"})
            count = max(len(sample.values) for sample in SAMPLES)
            for number in range(count):
                values = [sample.values[number % len(sample.values)] for sample in SAMPLES]
                node.database.execute(
                    f"insert into values (id, hidden, {', '.join(columns)}) values (%s, 'x', {{}})".format(
                        ", ".join(value.replace("%", "%%") for value in values)
                    ),
                    (number,),
                )
            node.database.execute("insert into values (id, hidden) values (-1, 'kept back')")
            live = await texts(client, "postgres_changes", count)
            await client.join("realtime:s", changes=[{**WIDE, "table": "values"}])
            shown = await texts(client, "snapshot", count)
            assert {row["id"]: row for row in shown} == {row["id"]: row for row in live}
            assert all("hidden" not in row for row in shown)
            assert all(("twice" in row) == (plugin == "wal2json") for row in shown)

    with fresh_database(cluster, template) as fresh, start(fresh, WALSTREAM_DECODER=plugin) as node:
        fresh.execute(SCHEMA)
        declared = ", ".join(f"{name} {sample.declaration}" for name, sample in zip(columns, SAMPLES, strict=True))
        fresh.execute("set search_path = public")
        node.table(
            "values",
            f"id int primary key, hidden text, twice int generated always as (id * 2) stored, {declared}",
            captured=False,
        )
        fresh.execute(
            "insert into realtime.subscriptions (table_name, filter, columns) values ('public.values', 'id >= 0', %s)",
            (["id", "twice", *columns],),
        )
        trio.run(main, node)
        node.assert_unharmed()


def test_every_kind_of_table(start: Start, cluster: Cluster, template: str) -> None:
    async def main(node: Node) -> None:
        url = node.daemon.websocket_url
        async with phoenix(url, apikey=bearer()) as client:
            for table in ("keyless", "divided", "parent", "empty"):
                found, end = await snapshot(client, f"realtime:{table}", table=table)
                assert end["event"] == "resumed"
                assert [page["last"] for page in found] == [True]
                expected = [] if table == "empty" else [1, 2]
                assert [row["id"] for row in rows(found)] == expected, table
            await client.join("realtime:two", changes=[{**WIDE, "table": "keyless"}, {**WIDE, "filter": "id=gt.1"}])
            found, end = await pages(client, "realtime:two")
            assert [(page["table"], [row["id"] for row in page["rows"]]) for page in found] == [
                ("keyless", [1, 2]),
                ("t", [2]),
            ]
            for item in ({"table": "*"}, {"schema": "*", "table": "t"}):
                status, message = await verdict(client, "realtime:wild", {**WIDE, **item})
                assert (status, message.split(".")[0]) == (
                    "error", "A snapshot is not supported for wildcard subscriptions"
                )  # fmt: skip
        node.database.execute("grant select (id) on part to authenticated")
        async with phoenix(url, apikey=token("authenticated", sub="ada")) as client:
            found, end = await snapshot(client, table="part")
            assert (rows(found), end["event"]) == ([{"id": 1}], "resumed")

    with fresh_database(cluster, template) as fresh, start(fresh) as node:
        node.table("t")
        node.table("keyless", "id int, v text")
        node.table("empty")
        node.table("parent")
        node.table("divided", "id int primary key) partition by range (id")
        fresh.execute(
            "create table part (id int primary key, secret text); insert into part values (1, 'x');"
            "create table child () inherits (parent); insert into child values (3, 'c');"
            "create table d1 partition of divided for values from (0) to (2);"
            "create table d2 partition of divided for values from (2) to (9);"
        )
        node.capture("part")
        for table in ("t", "keyless", "parent"):
            fresh.execute(f"insert into {table} values (1, 'a'), (2, 'b')")
        fresh.execute("insert into divided values (1), (2)")
        trio.run(main, node)
        node.assert_unharmed()


def test_who_does_not_read_in_time_is_told_and_live(start: Start, cluster: Cluster, template: str) -> None:
    async def main(node: Node) -> None:
        async with phoenix(node.daemon.websocket_url, apikey=bearer()) as client:
            await client.join("realtime:s", changes=[WIDE])
            eventually(lambda: any(line.get("event") == "snapshot.broken" for line in node.daemon.log()))
            assert node.database.scalar(SESSIONS) == 0
            found, end = await pages(client)
            assert 0 < len(rows(found)) < 30_000
            assert not found[-1]["last"]
            assert (end["event"], end["reason"], end["status"]) == ("gap", "snapshot_too_long", "ok")
            node.database.execute("insert into t values (-1, 'live')")
            (change,) = await client.changes(1)
            assert change["record"]["id"] == -1

    with (
        fresh_database(cluster, template) as fresh,
        start(fresh, WALSTREAM_SNAPSHOT_SECONDS="1s", **SMALL) as node,
    ):
        node.table("t")
        fill(node)
        trio.run(main, node)
        node.assert_unharmed()


def test_changes_that_leave_the_window_meanwhile_are_a_gap(start: Start, cluster: Cluster, template: str) -> None:
    async def main(node: Node) -> None:
        async with phoenix(node.daemon.websocket_url, apikey=bearer()) as client:
            await client.join("realtime:s", changes=[WIDE])
            await client.next("snapshot")
            for number in range(40):
                node.database.execute("insert into t values (%s, repeat('y', 10000))", (-2 - number,))
            eventually(lambda: node.metric("walstream_changes_in_total") >= 40)
            found, end = await pages(client)
            assert found[-1]["last"]
            assert (end["event"], end["reason"]) == ("gap", "snapshot_too_long")
            node.database.execute("insert into t values (-1, 'live')")
            (change,) = await client.changes(1)
            assert change["record"]["id"] == -1

    with (
        fresh_database(cluster, template) as fresh,
        start(fresh, WALSTREAM_HISTORY_BYTES="100KiB", **SMALL) as node,
    ):
        node.table("t")
        fill(node)
        trio.run(main, node)
        node.assert_unharmed()


def test_what_postgresql_refuses_is_told(start: Start, cluster: Cluster, template: str) -> None:
    async def main(node: Node) -> None:
        async with phoenix(node.daemon.websocket_url, apikey=token("authenticated", sub="ada")) as client:
            found, end = await snapshot(client)
            assert (found, end["event"], end["reason"]) == ([], "gap", "snapshot_failed")
            assert end["message"].endswith(": division by zero")

    with fresh_database(cluster, template) as fresh, start(fresh) as node:
        node.table("t")
        fresh.execute(
            "insert into t values (0, 'x');"
            "alter table t enable row level security; create policy odd on t using (1 / id > 0)"
        )
        trio.run(main, node)
        node.assert_unharmed()


def test_a_lost_server_is_a_gap(start: Start, cluster: Cluster, template: str) -> None:
    async def main(node: Node) -> None:
        async with phoenix(node.daemon.websocket_url, apikey=bearer()) as client:
            await client.join("realtime:s", changes=[WIDE])
            await client.next("snapshot")
            node.database.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where application_name = %s",
                ("walstream (snapshots)",),
            )
            _, end = await pages(client)
            assert (end["event"], end["reason"]) == ("gap", "snapshot_failed")

    with fresh_database(cluster, template) as fresh, start(fresh, **SMALL) as node:
        node.table("t")
        fill(node)
        trio.run(main, node)
        node.assert_unharmed()


def test_there_are_never_too_many_and_none_for_who_has_left(start: Start, cluster: Cluster, template: str) -> None:
    async def main(node: Node) -> None:
        url = node.daemon.websocket_url
        async with phoenix(url, apikey=bearer()) as gone, phoenix(url, apikey=bearer()) as client:
            for number in range(3):
                await gone.join(f"realtime:s{number}", changes=[WIDE])
            eventually(lambda: node.metric("walstream_snapshots_waiting") == 2)
            assert (node.database.scalar(SESSIONS), node.metric("walstream_snapshots")) == (1, 1), "one for each client"
            async with phoenix(url, apikey=bearer()) as another:
                await another.join("realtime:s", changes=[WIDE])
                eventually(lambda: node.database.scalar(SESSIONS) == 2)
                await client.join("realtime:small", changes=[{**WIDE, "filter": "id=eq.7"}])
                eventually(lambda: node.metric("walstream_snapshots_waiting") == 3)
                assert node.database.scalar(SESSIONS) == 2, "and no more than that for all"
            found, end = await pages(client, "realtime:small")
            assert ([row["id"] for row in rows(found)], end["event"]) == ([7], "resumed")

        eventually(lambda: node.database.scalar(SESSIONS) == 0)

    async def leave_all(node: Node) -> None:
        async with phoenix(node.daemon.websocket_url, apikey=bearer()) as gone:
            await gone.join("realtime:s", changes=[WIDE])
            eventually(lambda: node.database.scalar(SESSIONS) == 1)
        eventually(lambda: node.database.scalar(SESSIONS) == 0, seconds=5)

    with (
        fresh_database(cluster, template) as fresh,
        start(fresh, WALSTREAM_MAX_SNAPSHOTS="2", WALSTREAM_SNAPSHOT_SECONDS="2s", **SMALL) as node,
    ):
        node.table("t")
        fill(node)
        trio.run(leave_all, node)
        trio.run(main, node)
        node.assert_unharmed()


def test_a_new_token_is_for_what_follows_the_pages(start: Start, cluster: Cluster, template: str) -> None:
    """Old claims for the rows, new ones for the changes, of the same role or of another."""

    async def main(node: Node) -> None:
        numbers = itertools.count(100_001)
        for role in ("authenticated", "service_role"):
            async with phoenix(node.daemon.websocket_url, apikey=token("authenticated", sub="ada")) as client:
                await client.join("realtime:s", changes=[WIDE])
                first = await client.next("snapshot")
                new = token(role, sub="eve")
                await client.push("realtime:s", "access_token", {"access_token": new}, join_ref="1")
                await trio.sleep(1)  # until a new role is judged
                late = next(numbers), next(numbers)
                node.database.execute(f"insert into t values ({late[0]}, 'eve'), ({late[1]}, 'ada')")
                found, end = await pages(client)
                owners = {row["v"][:3] for row in [*first.payload["data"]["rows"], *rows(found)]}
                assert (owners, end["event"]) == ({"ada"}, "resumed")
                expected = [late[0]] if role == "authenticated" else list(late)
                changes = await client.changes(len(expected))
                assert [change["record"]["id"] for change in changes] == expected

    with fresh_database(cluster, template) as fresh, start(fresh, **SMALL) as node:
        node.table("t")
        fill(node, "(array['ada', 'eve'])[1 + n % 2]")
        fresh.execute(
            "alter table t enable row level security;"
            "create policy own on t using (starts_with(v, current_setting('request.jwt.claim.sub', true)))"
        )
        trio.run(main, node)
        node.assert_unharmed()
