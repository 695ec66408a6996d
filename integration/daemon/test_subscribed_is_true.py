"""Who was told that it is subscribed gets every row that is committed from then on, once."""

from __future__ import annotations

import threading
import time

import psycopg2
import pytest
import trio

from integration.daemon.conftest import Node, bearer
from integration.fixtures.ws import PhoenixClient, phoenix

ROUNDS = 30
JOINS = 100


def test_a_table_subscribed_by_sql_may_be_joined_at_once(decoding: Node) -> None:
    """The row of the plan and the join race through two ways: WAL, and the database itself."""

    async def main() -> None:
        async with phoenix(decoding.daemon.websocket_url, apikey=bearer()) as client:
            for number in range(ROUNDS):
                name = f"round_{number}"
                decoding.table(name)
                await client.subscribe(f"realtime:{name}", {"event": "*", "schema": "public", "table": name})
                decoding.database.execute(f"insert into {name} values (%s, 'first')", (number,))
                (change,) = await client.changes(1, topic=f"realtime:{name}")
                assert change["record"] == {"id": number, "v": "first"}

    trio.run(main)


def test_a_table_made_anew_may_be_joined_at_once(decoding: Node) -> None:
    async def main() -> None:
        async with phoenix(decoding.daemon.websocket_url, apikey=bearer()) as client:
            decoding.table("anew")
            for number in range(5):
                topic = f"realtime:anew{number}"
                await client.subscribe(topic, {"event": "*", "schema": "public", "table": "anew"})
                decoding.database.execute("insert into anew values (%s, 'x')", (number,))
                (change,) = await client.changes(1, topic=topic)
                assert change["record"]["id"] == number
                decoding.database.execute("drop table anew")
                decoding.table("anew", captured=False)

    trio.run(main)


def test_a_wildcard_means_tables_that_come_later(decoding: Node) -> None:
    """With pgoutput a new table is published within seconds; wal2json needs no time."""
    decoding.database.execute("create schema shop; grant usage on schema shop to anon")
    decoding.database.execute("insert into realtime.subscriptions (table_name) values ('shop.*')")
    decoding.database.execute("create table shop.early (id bigint primary key); grant select on shop.early to anon")

    async def main() -> None:
        async with phoenix(decoding.daemon.websocket_url, apikey=bearer()) as client:
            await client.subscribe("realtime:shop", {"event": "*", "schema": "shop"})
            decoding.database.execute("insert into shop.early values (1)")
            assert (await client.changes(1))[0]["table"] == "early"
            decoding.database.execute(
                "create table shop.late (id bigint primary key); grant select on shop.late to anon;"
                "create table shop.closed (id bigint primary key)"
            )
            seen: dict[str, object] = {}
            with trio.fail_after(20):
                while seen.get("table") != "late":
                    decoding.database.execute("insert into shop.late select coalesce(max(id), 0) + 1 from shop.late")
                    decoding.database.execute("insert into shop.closed select count(*) from shop.closed")
                    with trio.move_on_after(0.3):
                        (seen,) = await client.changes(1)
            decoding.database.execute("insert into shop.closed values (-1)")
            decoding.database.execute("insert into shop.early values (2)")
            tables = set()
            with trio.fail_after(10):
                while "early" not in tables:
                    tables.add((await client.changes(1))[0]["table"])
            assert "closed" not in tables

    trio.run(main)


class Writer(threading.Thread):
    """Commits numbered rows without a pause. ``committed``: the newest number whose commit has returned."""

    def __init__(self, node: Node, table: str) -> None:
        super().__init__()
        self.connection = node.database.connect()
        self.statement = f"insert into {table} values (%s, 'x')"
        self.committed = 0
        self.is_wanted = True
        self.error: psycopg2.Error | None = None

    def run(self) -> None:
        with self.connection.cursor() as cursor:
            while self.is_wanted:
                try:
                    cursor.execute(self.statement, (self.committed + 1,))
                except psycopg2.Error as error:
                    self.error = error
                    return
                self.committed += 1
                time.sleep(0.0005)

    def end(self) -> int:
        """The number of rows."""
        self.is_wanted = False
        self.join()
        self.connection.close()
        assert self.error is None, self.error
        return self.committed


@pytest.mark.timeout(120)
def test_joins_that_race_with_commits_miss_nothing_and_repeat_nothing(decoding: Node) -> None:
    decoding.table("busy")
    wish = {"event": "*", "schema": "public", "table": "busy"}
    writer = Writer(decoding, "busy")
    writer.start()

    async def main() -> None:
        async with phoenix(decoding.daemon.websocket_url, apikey=bearer()) as witness, trio.open_nursery() as nursery:
            await witness.subscribe("realtime:witness", wish)
            limit = trio.CapacityLimiter(8)
            for number in range(JOINS):
                nursery.start_soon(one, number, limit)

    async def one(number: int, limit: trio.CapacityLimiter) -> None:
        async with limit, phoenix(decoding.daemon.websocket_url, apikey=bearer()) as client:
            topic = f"realtime:{number}"
            await client.subscribe(topic, wish)
            first_wanted = writer.committed + 2  # the next may be on its way already: it is not counted on
            await follow(client, topic, first_wanted)

    async def follow(client: PhoenixClient, topic: str, first_wanted: int) -> None:
        ids: list[int] = []
        with trio.fail_after(20):
            while not ids or ids[-1] < first_wanted + 30:
                frame = await client.next("postgres_changes", topic=topic)
                ids.append(frame.payload["data"]["record"]["id"])
        assert ids[0] <= first_wanted, f"{first_wanted} to {ids[0] - 1} were lost"
        assert ids == list(range(ids[0], ids[0] + len(ids)))

    try:
        trio.run(main)
    finally:
        count = writer.end()
    assert count > JOINS
