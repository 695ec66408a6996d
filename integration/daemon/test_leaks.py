"""Nobody gets a change that row-level security hides, and everybody what it shows: 50 users, random policies."""

from __future__ import annotations

import contextlib
import json
import uuid
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from integration.daemon.conftest import Node, Start
from integration.daemon.leaks import Got, User, Workload, complaints
from integration.fixtures.daemon import token
from integration.fixtures.postgres import (
    TestDatabase,
    fresh_cluster,
    fresh_database,
    missing_standby,
    prepared_template,
)
from integration.fixtures.ws import PhoenixClient, phoenix
from walstream.shell.commands.private_cluster import Cluster

USERS = 50
STEPS = 200


def make_users() -> list[User]:
    named = [
        User("authenticated", uuid.uuid5(uuid.NAMESPACE_OID, str(number)), frozenset({number % 6, number % 4}))
        for number in range(USERS)
    ]
    # One person at two sockets, whose answers are shared; people without a name; and one who sees all.
    return [*named, named[0], User("anon", None), User("anon", None, frozenset({1})), User("service_role", None)]


class Watcher:
    """One user's socket, and all that it got."""

    def __init__(self, user: User) -> None:
        self.user = user
        self.got: list[Got] = []

    async def run(self, node: Node, workload: Workload, *, task_status: trio.TaskStatus[None]) -> None:
        bearer = token(self.user.role, **cast("dict[str, Any]", self.user.claims))
        async with phoenix(node.daemon.websocket_url, apikey=bearer) as client:
            tables = [*(table.name for table in workload.tables), "finis"]
            await client.subscribe("realtime:all", *[{"event": "*", "schema": "public", "table": t} for t in tables])
            task_status.started()
            await self._listen(client, workload)

    async def _listen(self, client: PhoenixClient, workload: Workload) -> None:
        while True:
            # What is committed now may be seen although nobody has said so yet.
            data = (await client.next("postgres_changes", seconds=60)).payload["data"]
            if data["table"] == "finis":
                return
            self.got.append(Got(data, workload.version + 1))


@pytest.mark.parametrize(("seed", "decoder"), [(1, "wal2json"), (2, "pgoutput")])
def test_each_user_gets_what_policies_show_and_nothing_else(
    start: Start, cluster: Cluster, template: str, decoder: str, seed: int
) -> None:
    users = make_users()
    workload = Workload(seed, users)
    watchers = [Watcher(user) for user in users]

    async def main(node: Node) -> None:
        async with trio.open_nursery() as nursery:
            for watcher in watchers:
                await nursery.start(watcher.run, node, workload)
            for _ in range(STEPS):
                await trio.to_thread.run_sync(partial(workload.step, node.database.execute))
            node.database.execute("insert into public.finis values (1)")

    with fresh_database(cluster, template) as database, start(database, WALSTREAM_DECODER=decoder) as node:
        workload.prepare(database.execute)
        for name in [*(table.name for table in workload.tables), "finis"]:
            node.capture(name)
        trio.run(main, node)
        node.assert_unharmed()
        doubts = node.health()["doubts"]
    wrong = [complaint for watcher in watchers for complaint in complaints(workload, watcher.user, watcher.got)]
    assert not wrong, "\n".join(wrong[:20])
    assert len(watchers[-1].got) == len(workload.events)
    seen = sum(len(watcher.got) for watcher in watchers[:-1])
    assert 0.02 < seen / len(workload.events) / (len(watchers) - 1) < 0.9, "the policies of this seed decide nothing"
    # Only where the WAL has no more than a deleted row's key is nobody sure.
    assert {(doubt["table"], doubt["reason"]) for doubt in doubts} <= {("public.guarded_1", "key_only_old_row")}, (
        json.dumps(doubts)
    )


HELD_UP = """
create table public.members (team int, uid text, primary key (team, uid));
create table public.asked (id int primary key, team int);
create table public.own (id int primary key, owner text);
alter table public.asked enable row level security;
alter table public.own enable row level security;
create policy team on public.asked for select using (
    exists (select from public.members m where m.team = asked.team and m.uid = current_setting('request.jwt.claim.sub'))
);
create policy own on public.own for select using (owner = current_setting('request.jwt.claim.sub', true));
grant select on public.members, public.asked, public.own to authenticated;
"""


def test_rows_are_judged_only_when_their_transaction_can_be_seen(start: Start, tmp_path: Path) -> None:
    """A synchronous standby that hangs: the WAL has the commit, and nobody sees it. Its membership is in it, too."""

    def write(database: TestDatabase, statement: str) -> None:
        with contextlib.closing(database.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(statement)

    async def main(node: Node) -> None:
        database = node.database
        bearer = token("authenticated", sub="ada")
        async with phoenix(node.daemon.websocket_url, apikey=bearer) as client, trio.open_nursery() as nursery:
            for table in ("asked", "own"):
                await client.subscribe(f"realtime:{table}", {"event": "*", "schema": "public", "table": table})
            hung = (
                "insert into asked values (1, 7); insert into members values (7, 'ada');"
                "insert into own values (1, 'ada')"
            )
            with missing_standby(database):
                nursery.start_soon(trio.to_thread.run_sync, write, database, hung)
                # What needs no asking is there at once, although nobody else can see the row yet.
                (own,) = await client.changes(1, topic="realtime:own")
                assert own["record"] == {"id": 1, "owner": "ada"}
                assert database.scalar("select count(*) from own") == 0
                assert not [frame for frame in await client.drain() if frame.topic == "realtime:asked"]
            (asked,) = await client.changes(1, topic="realtime:asked")
            assert asked["record"] == {"id": 1, "team": 7}

    with (
        fresh_cluster(tmp_path) as cluster,
        prepared_template(cluster) as template,
        fresh_database(cluster, template) as database,
        start(database) as node,
    ):
        database.execute(HELD_UP)
        for table in ("asked", "own"):
            node.capture(table)
        trio.run(main, node)
        node.assert_unharmed()
        assert node.health()["doubts"] == []
