"""Clients that come back with their position get exactly what they missed, or are told that something is missing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from integration.daemon.conftest import QUICK, Node, Start, bearer
from integration.fixtures.daemon import free_port, running_daemon, token
from integration.fixtures.node import eventually
from integration.fixtures.postgres import TestDatabase, fresh_database
from integration.fixtures.ws import PhoenixClient, phoenix
from walstream.shell.commands.private_cluster import Cluster

WIDE = {"event": "*", "schema": "public", "table": "t"}


@pytest.fixture(params=["wal2json", "pgoutput"])
def database(request: pytest.FixtureRequest, cluster: Cluster, template: str) -> Iterator[tuple[TestDatabase, str]]:
    with fresh_database(cluster, template) as fresh:
        yield fresh, str(request.param)


async def resume(client: PhoenixClient, since: str, topic: str = "realtime:r", **item: object) -> dict[str, Any]:
    """Join with a position; what the client is told."""
    await client.subscribe(topic, {**WIDE, "since": since, **item})
    frame = await client.next("system", topic=topic)
    assert frame.payload["status"] == "ok"
    payload: dict[str, Any] = frame.payload
    return payload


def ids(changes: list[dict[str, Any]]) -> list[int]:
    return [change["record"]["id"] for change in changes]


def insert(database: TestDatabase, *numbers: int) -> None:
    """One transaction."""
    values = ",".join(f"({number}, 'v')" for number in numbers)
    database.execute(f"insert into t values {values}")


def test_a_client_goes_on_where_it_was_across_kills_of_the_daemon(
    database: tuple[TestDatabase, str], tmp_path: Path
) -> None:
    fresh, decoder = database
    settings = {**QUICK, "WALSTREAM_DECODER": decoder}
    port = free_port()  # and with it a slot

    async def first(node: Node) -> str:
        async with phoenix(node.daemon.websocket_url, apikey=bearer()) as client:
            await client.subscribe("realtime:r", WIDE)
            insert(fresh, 1)
            insert(fresh, 2, 3, 4)
            changes = await client.changes(3)
            assert ids(changes) == [1, 2, 3]
            assert [change.get("last", False) for change in changes] == [True, False, False]
            position: str = changes[-1]["position"]  # in the middle of a transaction
            return position

    async def again(node: Node, since: str, *expected: int) -> str:
        async with phoenix(node.daemon.websocket_url, apikey=bearer()) as client:
            told = await resume(client, since)
            assert (told["event"], told["position"]) == ("resumed", since), told
            changes = await client.changes(len(expected))
            assert ids(changes) == list(expected)
            fresh.execute("insert into t select max(id) + 1, 'live' from t")
            (live,) = await client.changes(1)
            assert live["record"]["id"] == expected[-1] + 1
            position: str = live["position"]
            return position

    with contextlib.ExitStack() as stack:
        daemon = stack.enter_context(running_daemon(fresh.dsn, tmp_path, settings, port=port))
        node = Node(fresh, daemon)
        node.table("t")
        since = trio.run(first, node)
        daemon.kill()
    insert(fresh, 5)
    for missed in ((4, 5, 6), (8, 9), (11, 12)):
        with running_daemon(fresh.dsn, tmp_path, settings, port=port) as daemon:
            insert(fresh, missed[-1])  # read by the new daemon as it comes, or again from the slot
            since = trio.run(again, Node(fresh, daemon), since, *missed)
            insert(fresh, missed[-1] + 2)
            daemon.kill()


def test_rights_are_those_of_now(start: Start, cluster: Cluster, template: str) -> None:
    async def main(node: Node) -> None:
        async with phoenix(node.daemon.websocket_url, apikey=token("authenticated", sub="ada")) as client:
            await client.subscribe("realtime:r", WIDE)
            node.database.execute("insert into t values (1, 'ada')")
            (first,) = await client.changes(1)
        node.database.execute("insert into t values (2, 'eve'), (3, 'ada'), (4, 'eve')")
        node.database.execute("alter policy own on t using (v <> 'ada')")
        await trio.sleep(6)  # until a changed policy counts
        async with phoenix(node.daemon.websocket_url, apikey=token("authenticated", sub="ada")) as client:
            assert (await resume(client, first["position"]))["event"] == "resumed"
            changes = await client.changes(2)
            assert [change["record"]["id"] for change in changes] == [2, 4]
            assert changes[-1]["last"]

    with fresh_database(cluster, template) as fresh, start(fresh) as node:
        node.table("t")
        fresh.execute(
            "alter table t enable row level security;"
            "create policy own on t using (v = current_setting('request.jwt.claim.sub', true))"
        )
        trio.run(main, node)
        node.assert_unharmed()


def test_whatever_has_no_continuation_is_a_gap(start: Start, cluster: Cluster, template: str) -> None:
    async def main(node: Node) -> None:
        async with phoenix(node.daemon.websocket_url, apikey=bearer()) as client:
            await client.subscribe("realtime:first", WIDE)
            insert(node.database, 1)
            (one,) = await client.changes(1)
            cluster_name, xid, lsn, ordinal = one["position"].split(".")
            reasons = {
                f"00000000.{xid}.{lsn}.{ordinal}": "other_cluster",
                f"{cluster_name}.{xid}.{int(lsn, 16) + (1 << 40):x}.{ordinal}": "other_cluster",
                f"{cluster_name}.{int(xid, 16) + 1:x}.{lsn}.{ordinal}": "other_cluster",
                f"{cluster_name}.{xid}.10.0": "slot_lost",
            }
            for number, (since, reason) in enumerate(reasons.items()):
                told = await resume(client, since, f"realtime:gap{number}")
                assert (told["event"], told["reason"]) == ("gap", reason), since
                # Whoever comes back with what a gap names goes on from there.
                again = await resume(client, told["position"], f"realtime:again{number}")
                assert again["event"] == "resumed"
            node.database.execute("update realtime.subscriptions set events = '{INSERT,DELETE}'")
            insert(node.database, 2)
            await client.changes(1, topic="realtime:first")
            told = await resume(client, one["position"], "realtime:replanned")
            assert (told["event"], told["reason"]) == ("gap", "plan_changed")
            status = await client.join("realtime:odd", changes=[{**WIDE, "since": "nonsense"}])
            assert status is not None
            frame = await client.next("system", topic="realtime:odd")
            assert frame.payload["message"].startswith("Error parsing `since` params")

    with fresh_database(cluster, template) as fresh, start(fresh) as node:
        node.table("t")
        trio.run(main, node)
        node.assert_unharmed()


def test_a_filter_that_became_narrower_while_the_daemon_was_killed_loses_nothing_silently(
    cluster: Cluster, template: str, tmp_path: Path
) -> None:
    """The new process captures by the narrower filter even what was committed before it."""
    rows = 20_000  # so much that whoever comes back at once is there before the change of the plan is read again
    port = free_port()

    async def first(node: Node) -> str:
        async with phoenix(node.daemon.websocket_url, apikey=bearer()) as client:
            await client.subscribe("realtime:r", WIDE)
            insert(fresh, 1)
            (one,) = await client.changes(1)
            position: str = one["position"]
            return position

    async def again(node: Node, since: str) -> None:
        async with phoenix(node.daemon.websocket_url, apikey=bearer()) as client:
            told = await resume(client, since)
            while told["event"] != "gap":
                told = (await client.next("system", topic="realtime:r")).payload
            # Too old once all has been read: nothing of it was kept, and the window begins after it.
            assert told["reason"] in {"plan_changed", "too_old"}

    with fresh_database(cluster, template) as fresh:
        with running_daemon(fresh.dsn, tmp_path, QUICK, port=port) as daemon:
            node = Node(fresh, daemon)
            node.table("t")
            since = trio.run(first, node)
            daemon.kill()
        fresh.execute(f"insert into t select n, 'v' from generate_series(2, {rows}) n")
        fresh.execute(f"update realtime.subscriptions set filter = 'id > {rows}'")
        with running_daemon(fresh.dsn, tmp_path, QUICK, port=port, wait="/live") as daemon:
            trio.run(again, Node(fresh, daemon), since)


def test_a_slow_client_is_served_at_its_own_pace(start: Start, cluster: Cluster, template: str) -> None:
    """It gets far more than its outbox holds, and harms nobody who reads."""
    rows, size = 400, 20_000

    async def main(node: Node) -> None:
        url = node.daemon.websocket_url
        async with phoenix(url, apikey=bearer()) as slow, phoenix(url, apikey=bearer()) as quick:
            for client in (slow, quick):
                await client.subscribe("realtime:r", WIDE)
            for number in range(rows):
                node.database.execute(f"insert into t values ({number}, repeat('x', {size}))")
            assert ids(await quick.changes(rows)) == list(range(rows))
            eventually(lambda: any(line.get("event") == "client.behind" for line in node.daemon.log()))
            assert ids(await slow.changes(rows)) == list(range(rows))
            insert(node.database, rows)
            assert ids(await slow.changes(1)) == ids(await quick.changes(1)) == [rows]

    with (
        fresh_database(cluster, template) as fresh,
        start(fresh, WALSTREAM_OUTBOX_BYTES="1MiB", WALSTREAM_MAX_MESSAGE_BYTES="512KiB") as node,
    ):
        node.table("t")
        trio.run(main, node)
        node.assert_unharmed()


def test_who_never_reads_is_sent_away_once_it_has_fallen_off(start: Start, cluster: Cluster, template: str) -> None:
    """What it does not read is more than the history holds."""

    statement = "insert into t select n, repeat('x', 1000) from generate_series(%s, %s) n"

    async def main(node: Node) -> None:
        url = node.daemon.websocket_url
        async with phoenix(url, apikey=bearer()) as stuck, phoenix(url, apikey=bearer()) as quick:
            for client in (stuck, quick):
                await client.subscribe("realtime:r", WIDE)
            for first in range(0, 30_000, 200):
                node.database.execute(statement, (first, first + 199))
                assert ids(await quick.changes(200)) == list(range(first, first + 200))
            eventually(lambda: node.health()["clients"] == 1)
            assert any(line.get("event") == "socket.fell_behind" for line in node.daemon.log())

    with (
        fresh_database(cluster, template) as fresh,
        start(
            fresh,
            WALSTREAM_OUTBOX_BYTES="1MiB",
            WALSTREAM_MAX_MESSAGE_BYTES="512KiB",
            WALSTREAM_HISTORY_BYTES="4MiB",
        ) as node,
    ):
        node.table("t")
        trio.run(main, node)
        node.assert_unharmed()
