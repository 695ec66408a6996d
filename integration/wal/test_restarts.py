"""Daemons and servers that are stopped, killed and started again: nothing in the window is lost or comes twice."""

from __future__ import annotations

import pytest
import trio

from integration.fixtures.daemon import Daemon
from integration.fixtures.node import eventually
from integration.fixtures.postgres import TestDatabase, fresh_database
from integration.wal.conftest import Node, Start


def test_a_daemon_killed_between_commits_has_confirmed_nothing_of_the_window(node: Node) -> None:
    node.table("t")
    before = node.now

    async def main() -> None:
        async with node.client("t") as client:
            begun = trio.current_time()
            for number in range(20):
                node.database.execute("insert into t values (%s, %s)", (number, f"marker-{number}"))
            await client.changes(20)
            assert node.metric("walstream_delivery_seconds_count") == 20
            assert 0 < node.metric("walstream_delivery_seconds_sum") < 20 * (trio.current_time() - begun)
            await trio.sleep(2.5)  # some heartbeats, which may be confirmed, and status updates

    trio.run(main)
    assert node.confirmed <= before
    node.daemon.kill()
    assert node.kept("marker-") == 20


def test_a_daemon_killed_within_a_transaction_reads_it_again(node: Node) -> None:
    node.table("t")
    writer = node.database.connect(autocommit=False)
    writer.cursor().execute("insert into t select n, 'marker' from generate_series(1, 5000) n")
    node.daemon.kill()
    writer.cursor().execute("insert into t select n, 'marker' from generate_series(5001, 5100) n")
    writer.commit()
    writer.close()
    assert node.kept("marker") == 5100
    node.daemon.start()
    eventually(lambda: node.health()["reader"]["status"] == "streaming")

    async def main() -> None:
        async with node.client("t") as client:
            node.database.execute("insert into t values (0, 'after')")
            assert (await client.changes(1))[0]["record"] == {"id": 0, "v": "after"}

    trio.run(main)


def test_a_daemon_that_is_stopped_keeps_the_window_too(node: Node) -> None:
    node.table("t")
    for number in range(5):
        node.database.execute("insert into t values (%s, 'marker')", (number,))
    eventually(lambda: node.health()["reader"]["status"] == "streaming")
    assert node.daemon.stop() == 0
    assert node.kept("marker") == 5


@pytest.mark.parametrize("decoder", ["wal2json"])  # time does not depend on the plugin
def test_the_window_ends_by_time(start: Start, prepared: TestDatabase) -> None:
    with start(prepared, WALSTREAM_HISTORY_SECONDS="2s") as node:
        node.table("t")
        node.database.execute("insert into t values (1, 'marker')")
        after = node.now
        eventually(lambda: node.confirmed >= after)
        node.daemon.kill()
        assert node.kept("marker") == 0


def test_an_idle_database_lets_the_wal_of_others_go(node: Node) -> None:
    with fresh_database(node.database.cluster) as other:
        other.execute("create table busy as select repeat('x', 1000) from generate_series(1, 5000)")
        there = node.now
        eventually(lambda: node.confirmed >= there)


@pytest.mark.parametrize("how", ["fast", "immediate", "kill"])
def test_clients_outlive_a_restart_of_the_server(start: Start, fragile: TestDatabase, how: str) -> None:
    with start(fragile) as node:
        node.table("t")

        async def main() -> None:
            async with node.client("t") as client:
                for number in range(5):
                    fragile.execute("insert into t values (%s, 'before')", (number,))
                await client.changes(5)
                await trio.to_thread.run_sync(restart)
                fragile.execute("insert into t values (5, 'after')")
                change = (await client.changes(1, seconds=30))[0]
                assert change["record"] == {"id": 5, "v": "after"}
                fragile.execute("insert into t values (6, 'after')")
                assert (await client.changes(1))[0]["record"] == {"id": 6, "v": "after"}

        def restart() -> None:
            fragile.close()
            if how == "kill":
                fragile.cluster.kill()
            else:
                fragile.cluster.stop("fast" if how == "fast" else "immediate", timeout=20)
            if how == "fast":
                assert "database system is shut down" in fragile.cluster.log_tail(3), "it had to be killed"
            fragile.cluster.start()

        trio.run(main)
        node.daemon.wait_for("/ready")
        eventually(lambda: node.health()["status"] == "ready")


def test_a_server_that_is_away_at_the_start_is_waited_for(start: Start, fragile: TestDatabase) -> None:
    fragile.close()
    fragile.cluster.stop()
    with start(fragile, wait="/live") as node:
        status, _ = node.daemon.get("/ready")
        assert status == 503
        fragile.cluster.start()
        node.daemon.wait_for("/ready")


def test_a_second_daemon_on_the_slot_stands_by_and_takes_over(node: Node) -> None:
    node.table("t")
    second = Daemon(node.database.dsn, node.daemon.log_path.parent, {**node.daemon.environ, "WALSTREAM_LISTEN": ""})
    second.environ["WALSTREAM_LISTEN"] = f"127.0.0.1:{second.port}"
    try:
        second.start(wait="/live")
        standby = Node(node.database, second)
        eventually(lambda: standby.health()["reader"]["status"] == "standby")
        assert second.get("/ready")[0] == 503
        assert node.daemon.get("/ready")[0] == 200
        node.daemon.kill()
        second.wait_for("/ready")

        async def main() -> None:
            async with standby.client("t") as client:
                node.database.execute("insert into t values (1, 'x')")
                assert (await client.changes(1))[0]["record"]["id"] == 1

        trio.run(main)
    finally:
        if second.is_running:
            second.kill()


def test_a_slot_dropped_behind_our_back_is_made_again_and_clients_are_told(node: Node) -> None:
    node.table("t")

    async def main() -> None:
        async with node.client("t") as client:
            node.database.execute("insert into t values (1, 'x')")
            await client.changes(1)
            with trio.fail_after(20):
                while True:
                    node.database.execute(
                        "select pg_terminate_backend(active_pid, 5000) from pg_replication_slots"
                        " where slot_name = %s and active",
                        (node.daemon.slot,),
                    )
                    try:
                        node.database.execute("select pg_drop_replication_slot(%s)", (node.daemon.slot,))
                    except Exception:  # the daemon was quicker
                        continue
                    break
            await trio.to_thread.run_sync(lambda: eventually(lambda: streaming_again(node)))
            told = (await client.next("system")).payload
            assert (told["status"], told["event"], told["reason"]) == ("ok", "gap", "slot_lost")
            node.database.execute("insert into t values (2, 'y')")
            assert (await client.changes(1))[0]["record"]["id"] == 2

    trio.run(main)


def streaming_again(node: Node) -> bool:
    found = node.database.query("select active from pg_replication_slots where slot_name = %s", (node.daemon.slot,))
    return found == [(True,)] and node.health()["reader"]["status"] == "streaming"
