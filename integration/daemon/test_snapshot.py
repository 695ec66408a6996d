"""A snapshot and the stream after it, folded by primary key while others write, are the table: every time."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import psycopg2
import pytest
import trio

from integration.daemon.conftest import Node, Start
from integration.fixtures.daemon import token
from integration.fixtures.postgres import TestDatabase, fresh_database
from integration.fixtures.ws import PhoenixClient, phoenix
from walstream.shell.commands.private_cluster import Cluster

Row = dict[str, Any]

COLUMNS = "id bigint primary key, side text, owner text, n int, at timestamptz default now(), pad text"
SIDES, OWNERS = ("left", "right"), ("ada", "eve")
WRITERS = 3
ROUNDS = 6


# -- who writes


class Writers:
    """Connections that write without end; ``quiet`` lets them end their transactions and waits meanwhile."""

    def __init__(self, database: TestDatabase, table: str, seed: int) -> None:
        self._database = database
        self._table = table
        self._seed = seed
        self._is_over = False
        self._gates = [threading.Lock() for _ in range(WRITERS)]
        self._threads = [threading.Thread(target=self._write, args=(number,)) for number in range(WRITERS)]
        self.failure: BaseException | None = None
        self.transactions = 0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._is_over = True
            for thread in self._threads:
                thread.join()
        assert self.failure is None, self.failure

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for gate in self._gates:
                stack.enter_context(gate)
            yield

    def _write(self, number: int) -> None:
        dice = random.Random(self._seed * 10 + number)
        connection = self._database.connect(autocommit=False)
        try:
            while not self._is_over:
                with self._gates[number], connection.cursor() as cursor:
                    try:
                        for _ in range(dice.choice((1, 1, 2, 5))):
                            cursor.execute(*self._statement(dice))
                        time.sleep(dice.choice((0, 0, 0.002, 0.03)))
                        connection.commit() if dice.random() < 0.9 else connection.rollback()
                        self.transactions += 1
                    except psycopg2.errors.DeadlockDetected:
                        connection.rollback()
                time.sleep(0.001)
        except BaseException as error:
            self.failure = error
            raise
        finally:
            connection.close()

    def _statement(self, dice: random.Random) -> tuple[str, dict[str, object]]:
        some = f"(select id from {self._table} where id > 0 order by random() limit %(count)s)"
        insert = (
            f"insert into {self._table} (id, side, owner, n, pad) select nextval('numbers'),"
            " %(side)s, %(owner)s, %(n)s, repeat('x', %(size)s) from generate_series(1, %(count)s)"
        )
        statement = dice.choice(
            (
                insert,
                f"update {self._table} set n = n + 1 where id in {some}",
                f"update {self._table} set side = %(side)s, pad = repeat('y', %(size)s) where id in {some}",
                f"update {self._table} set owner = %(owner)s where id in {some}",
                f"delete from {self._table} where id in {some}",
            )
        )
        return statement, {
            "side": dice.choice(SIDES),
            "owner": dice.choice(OWNERS),
            "n": dice.randrange(1000),
            "size": dice.choice((0, 10, 500, 3000)),
            "count": dice.choice((1, 2, 8)),
        }


# -- who listens


class Viewpoint(NamedTuple):
    """What one client asks for, and which rows that means."""

    name: str
    token: str
    item: dict[str, object]
    sees: Callable[[Row], bool]
    is_feed: bool = False


def viewpoints(table: str, *, is_protected: bool) -> list[Viewpoint]:
    item = {"event": "*", "schema": "public", "table": table, "snapshot": True}
    left = {**item, "filter": "side=eq.left"}
    some = {**left, "select": ["id", "side", "owner", "n"]}
    service = token("service_role")
    found = [
        Viewpoint("everything", service, item, lambda row: True),
        Viewpoint("left", service, some, lambda row: row["side"] == "left"),
        Viewpoint("feed", service, {}, lambda row: True, is_feed=True),
    ]
    if is_protected:
        ada = token("authenticated", sub="ada")
        found.append(Viewpoint("ada", ada, item, lambda row: row["owner"] == "ada"))
        found.append(Viewpoint("ada's left", ada, left, lambda row: (row["owner"], row["side"]) == ("ada", "left")))
    return found


class Fold:
    """One client's pages and changes, folded by key; fails for what cannot follow from what it has."""

    def __init__(self, viewpoint: Viewpoint, table: str, rows_max: int) -> None:
        self.viewpoint = viewpoint
        self.topic = f"realtime:table:public.{table}" if viewpoint.is_feed else "realtime:s"
        self.rows: dict[int, Row] = {}
        self.pages = 0
        self.changes = 0
        self.resumed: dict[str, Any] = {}
        self._rows_max = rows_max

    async def join(self, client: PhoenixClient) -> None:
        if self.viewpoint.is_feed:
            ref = await client.push(self.topic, "phx_join", {"config": {}, "snapshot": True})
            assert (await client.reply(ref))["status"] == "ok"
        else:
            await client.join(self.topic, changes=[self.viewpoint.item])
        told = await client.next("system", topic=self.topic)
        assert told.payload["message"] == "Subscribed to PostgreSQL", told

    async def read(self, client: PhoenixClient, marker: int) -> None:
        """Until the row ``marker`` comes, in a page or as a change."""
        while not (self.resumed and marker in self.rows):
            frame = await client.next(topic=self.topic, seconds=30)
            if frame.event == "snapshot":
                self._page(frame.payload["data"])
            elif frame.event == "system":
                assert frame.payload["event"] == "resumed", frame.payload
                assert self.pages
                self.resumed = frame.payload
            else:
                assert self.resumed, f"a change before the snapshot's end: {frame}"
                self._change(frame.payload if self.viewpoint.is_feed else frame.payload["data"])

    def _page(self, page: dict[str, Any]) -> None:
        assert not self.resumed
        self.pages += 1
        assert page["page"] == self.pages
        assert page["count"] == len(page["rows"]) <= self._rows_max
        assert page["errors"] is None
        for row in page["rows"]:
            assert row["id"] not in self.rows, "a row twice"
            assert self.viewpoint.sees(row)
            assert list(row) == [column["name"] for column in page["columns"]]
            self.rows[row["id"]] = row
        assert page["total"] == len(self.rows)

    def _change(self, change: dict[str, Any]) -> None:
        self.changes += 1
        if self.viewpoint.is_feed:
            operation, new, old = change["operation"], change["new"], change["old"]
        else:
            operation, new, old = change["type"], change.get("record"), change.get("old_record")
        name = f"{self.viewpoint.name}: {operation} of {new or old} from {old}"
        if operation == "INSERT":
            assert new["id"] not in self.rows, f"twice: {name}"
        elif operation == "DELETE" or ("owner" in old and self.viewpoint.sees({**new, **old})):
            assert old["id"] in self.rows, f"nothing known before: {name}"
        if operation == "DELETE":
            del self.rows[old["id"]]
        else:
            self.rows[new["id"]] = {**self.rows.get(new["id"], {}), **new}

    def check(self, table: dict[int, Row], deleted: dict[int, Row]) -> None:
        """``table``: the rows that there are; ``deleted``: the others, as they were at last."""
        seen = {number: row for number, row in table.items() if self.viewpoint.sees(row)}
        columns = self.viewpoint.item.get("select")
        for number, row in seen.items():
            expected = {name: row[name] for name in columns} if isinstance(columns, list) else row
            assert self.rows.get(number) == expected, f"{self.viewpoint.name}: {number}"
        for number in self.rows.keys() - seen.keys():
            # Nobody is told that a row has left his filter, or his sight.
            assert not self.viewpoint.sees(table.get(number) or deleted[number]), f"{self.viewpoint.name}: {number}"


class Tap:
    """A client that was there before: what rows were like when they were deleted."""

    def __init__(self) -> None:
        self.deleted: dict[int, Row] = {}
        self.newest = 0

    async def read(self, client: PhoenixClient, marker: int) -> None:
        while self.newest != marker:
            (change,) = await client.changes(1, seconds=30)
            if change["type"] == "DELETE":
                self.deleted[change["old_record"]["id"]] = change["old_record"]
            elif change["type"] == "INSERT":
                self.newest = change["record"]["id"]


def rows_of(node: Node, table: str) -> dict[int, Row]:
    """The table in the forms of the wire."""
    with node.database.connect() as connection, connection.cursor() as cursor:
        cursor.execute("set timezone = 'UTC'")
        cursor.execute(f"select to_jsonb(t) from {table} t")
        return {row["id"]: row for (row,) in cursor.fetchall()}


async def fold_all(node: Node, table: str, dice: random.Random, rows_max: int, *, is_protected: bool) -> int:
    """Rounds of clients that come while others write. How many changes were folded."""
    writers = Writers(node.database, f"public.{table}", dice.randrange(1 << 30))
    tap, count = Tap(), 0
    async with phoenix(node.daemon.websocket_url, apikey=token("service_role")) as listening:
        await listening.subscribe("realtime:tap", {"event": "*", "schema": "public", "table": table})
        with writers.running():
            for number in range(1, ROUNDS + 1):
                folds = [Fold(each, table, rows_max) for each in viewpoints(table, is_protected=is_protected)]
                async with contextlib.AsyncExitStack() as stack:
                    url = node.daemon.websocket_url
                    clients = [
                        await stack.enter_async_context(phoenix(url, apikey=fold.viewpoint.token)) for fold in folds
                    ]
                    nursery = await stack.enter_async_context(trio.open_nursery())
                    for fold, client in zip(folds, clients, strict=True):
                        await fold.join(client)
                        nursery.start_soon(fold.read, client, -number)
                        await trio.sleep(dice.random() * 0.05)
                    nursery.start_soon(tap.read, listening, -number)
                    await trio.sleep(dice.choice((0, 0.2, 0.6)))
                    with writers.quiet():
                        node.database.execute(
                            f"insert into {table} (id, side, owner, n) values (%s, 'left', 'ada', 0)", (-number,)
                        )
                        with trio.fail_after(60):
                            while nursery.child_tasks:
                                await trio.sleep(0.01)
                        now = rows_of(node, table)
                        for fold in folds:
                            fold.check(now, tap.deleted)
                count += sum(fold.changes for fold in folds)
    assert writers.transactions > ROUNDS
    return count


@pytest.mark.parametrize("is_protected", [False, True], ids=["open", "protected"])
@pytest.mark.parametrize("plugin", ["wal2json", "pgoutput"])
def test_snapshot_and_stream_are_the_table(
    start: Start, cluster: Cluster, template: str, plugin: str, *, is_protected: bool
) -> None:
    seed = random.randrange(1 << 30)
    dice = random.Random(seed)
    rows_max = dice.choice((1, 3, 17, 100, 1000))
    with (
        fresh_database(cluster, template) as fresh,
        start(fresh, WALSTREAM_DECODER=plugin, WALSTREAM_SNAPSHOT_ROWS=str(rows_max)) as node,
    ):
        node.table("s", COLUMNS)
        fresh.execute(
            "alter table s replica identity full; create sequence numbers;"
            "insert into s (id, side, owner, n, pad) select nextval('numbers'), (array['left', 'right'])[1 + i % 2],"
            " (array['ada', 'eve'])[1 + i / 2 % 2], i, repeat('z', i) from generate_series(1, 200) i"
        )
        if is_protected:
            fresh.execute(
                "alter table s enable row level security;"
                "create policy own on s using (owner = current_setting('request.jwt.claim.sub', true))"
            )
        try:
            assert trio.run(lambda: fold_all(node, "s", dice, rows_max, is_protected=is_protected)) > 0
        except BaseException:
            print(f"seed {seed}, pages of {rows_max}")
            raise
        node.assert_unharmed()
