"""Nobody gets a change that row-level security hides, and everybody what it shows: 50 users, random policies."""

from __future__ import annotations

import json
import uuid
from functools import partial
from typing import Any, cast

import pytest
import trio

from integration.daemon.conftest import Node, Start
from integration.daemon.leaks import Got, User, Workload, complaints
from integration.fixtures.daemon import token
from integration.fixtures.postgres import fresh_database
from integration.fixtures.ws import PhoenixClient, phoenix
from walstream.shell.commands.private_cluster import Cluster

USERS = 50
STEPS = 300


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


@pytest.mark.parametrize("decoder", ["wal2json", "pgoutput"])
@pytest.mark.parametrize("seed", [1, 2])
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
