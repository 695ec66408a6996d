"""Databases that the daemon cannot or must not go on with: of another encoding, another cluster, with hostile names."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import trio

from integration.faults.proxy import Proxy
from integration.fixtures.daemon import running_daemon, token
from integration.fixtures.node import Node, eventually
from integration.fixtures.postgres import TestDatabase, fresh_cluster, fresh_database, migrate
from integration.fixtures.ws import phoenix
from walstream.shell.commands.private_cluster import Cluster
from walstream.shell.database.postgres import connect

WISH = {"event": "*", "schema": "public", "table": "t"}
HASTY = {"WALSTREAM_HEARTBEAT_SECONDS": "1s", "WALSTREAM_DRAIN_SECONDS": "1s"}


def test_a_database_of_another_encoding_is_refused_in_words_and_the_daemon_lives(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Scenario 23."""
    with fresh_database(cluster) as ground:
        ground.execute("create database latin template template0 encoding 'LATIN1' locale 'C'")
        latin = TestDatabase(cluster, "latin")
        try:
            migrate(latin.dsn)
            with running_daemon(latin.dsn, tmp_path, HASTY, wait="/live") as daemon:
                eventually(lambda: b"LATIN1" in daemon.get("/ready")[1])
                status, body = daemon.get("/ready")
                assert status == 503
                assert b"UTF8" in body
                assert daemon.is_running
        finally:
            latin.close()
            ground.execute("drop database latin with (force)")


@pytest.mark.parametrize("decoder", ["wal2json", "pgoutput"])
def test_names_and_messages_that_break_json_elsewhere_do_not_stop_the_stream(
    prepared: TestDatabase, tmp_path: Path, decoder: str
) -> None:
    """Scenarios 22 and 24: wal2json prints some of these unescaped under options that the daemon does not use."""
    with running_daemon(prepared.dsn, tmp_path, {**HASTY, "WALSTREAM_DECODER": decoder}) as daemon:
        node = Node(prepared, daemon)
        prepared.execute(
            'create schema "z q"; create sequence "z q"."Seq Q"; create type "z q"."Mo""od 2" as enum (\'o"k\');'
            'create table public.t (id bigint primary key default nextval(\'"z q"."Seq Q"\'), m "z q"."Mo""od 2"'
            ' default \'o"k\', "a ""b"", c" text default \'quote " and \\ and é\');'
            "grant select on public.t to anon"
        )
        node.capture("t")
        name = "é" * 31  # 62 bytes of the 63 that a name may have
        prepared.execute(f'create table public."{name}" (id bigint primary key); grant select on "{name}" to anon')
        prepared.execute("insert into realtime.subscriptions (table_name) values (%s)", (f"public.{name}",))

        async def main() -> None:
            async with phoenix(daemon.websocket_url, apikey=token("anon")) as client:
                await client.subscribe("realtime:t", WISH, {**WISH, "table": name})
                for prefix in ("walstream", "other"):
                    for transactional in ("true", "false"):
                        for content in ("\\x00610062", "\\xff28", "\\x7b22"):
                            prepared.execute(
                                f"select pg_logical_emit_message({transactional}, %s, %s::bytea)", (prefix, content)
                            )
                prepared.execute("insert into t default values")
                prepared.execute(f'insert into "{name}" values (7)')
                one, two = await client.changes(2)
                assert one["record"] == {"id": 1, "m": 'o"k', 'a "b", c': 'quote " and \\ and é'}
                assert (two["table"], two["record"]) == (name, {"id": 7})

        trio.run(main)
        node.assert_unharmed()


@pytest.mark.parametrize("replication", [False, True])
def test_a_machine_that_answers_nothing_is_given_up_within_a_minute(database: TestDatabase, replication: bool) -> None:
    """Scenario 9: by the kernel, whether something was sent or not."""
    with Proxy(database.cluster.socket_dir / ".s.PGSQL.5432") as proxy:
        dsn = f"host=127.0.0.1 port={proxy.port} user=postgres dbname={database.name}"
        opened = connect(dsn, application_name="test", replication=replication)
        with socket.socket(fileno=os.dup(opened.fileno())) as seen:
            assert seen.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000
            assert seen.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        opened.close()


def test_another_cluster_behind_the_same_address_is_told_to_everybody(tmp_path: Path) -> None:
    """Scenario 13: to who is connected, and to who comes back with a position of the old one."""
    with (
        fresh_cluster(tmp_path / "old") as old,
        fresh_cluster(tmp_path / "new") as new,
        Proxy(old.socket_dir / ".s.PGSQL.5432") as proxy,
    ):
        databases = [TestDatabase(cluster, "postgres") for cluster in (old, new)]
        for database in databases:
            migrate(database.dsn)
        where = f"host=127.0.0.1 port={proxy.port} user=postgres dbname=postgres"
        with running_daemon(where, tmp_path, HASTY) as daemon:
            nodes = [Node(database, daemon) for database in databases]
            for node in nodes:
                node.table("t")

            async def main() -> None:
                async with phoenix(daemon.websocket_url, apikey=token("anon")) as client:
                    await client.subscribe("realtime:t", WISH)
                    databases[0].execute("insert into t values (1, 'old')")
                    position = (await client.changes(1))[0]["position"]
                    proxy.target = new.socket_dir / ".s.PGSQL.5432"
                    await trio.to_thread.run_sync(proxy.reset)
                    told = await client.next("system", seconds=40)
                    assert (told.payload["event"], told.payload["reason"]) == ("gap", "other_cluster")
                    databases[1].execute("insert into t values (2, 'new')")
                    (change,) = await client.changes(1)
                    assert change["record"] == {"id": 2, "v": "new"}
                    async with phoenix(daemon.websocket_url, apikey=token("anon")) as another:
                        await another.subscribe("realtime:t", {**WISH, "since": position})
                        told = await another.next("system")
                        assert (told.payload["event"], told.payload["reason"]) == ("gap", "other_cluster")

            try:
                trio.run(main)
            finally:
                for database in databases:
                    database.close()
