"""A daemon that lacks what it needs for a while: descriptors, connections, WAL senders, slots, its server's address."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg2
import psycopg2.extras
import trio

from integration.fixtures.daemon import Daemon, running_daemon, token
from integration.fixtures.node import Node, eventually
from integration.fixtures.postgres import TestDatabase, fresh_cluster, fresh_database, migrate
from integration.fixtures.ws import phoenix
from walstream.telemetry.log import LISTENER_OVERLOADED, READER_FAILED

TOPIC = "realtime:here"
ITEM = {"event": "*", "schema": "public", "table": "t"}


def says(daemon: Daemon, words: str) -> Callable[[], bool]:
    """Whether ``/ready`` has the words."""
    return lambda: words in daemon.get("/ready")[1].decode()


def failures(daemon: Daemon) -> list[tuple[str, str]]:
    """Code and reason of everything that kept the stream from running."""
    return [(line["code"], line["reason"]) for line in daemon.log() if line["event"] == READER_FAILED]


@contextlib.contextmanager
def occupied(dsn: str) -> Iterator[None]:
    """Every connection that the server has is taken."""
    taken = []
    try:
        with contextlib.suppress(psycopg2.OperationalError):
            while True:
                taken.append(psycopg2.connect(dsn))
        yield
    finally:
        for connection in taken:
            connection.close()


def test_connections_slots_and_wal_senders_of_the_server_run_out_and_come_back(tmp_path: Path) -> None:
    settings = {"max_connections": "30", "max_wal_senders": "1", "max_replication_slots": "1"}
    with fresh_cluster(tmp_path / "server", settings) as cluster, fresh_database(cluster) as database:
        migrate(database.dsn)
        database.execute("select pg_create_physical_replication_slot('other')")
        sender = psycopg2.connect(
            database.dsn, connection_factory=psycopg2.extras.PhysicalReplicationConnection, application_name="other"
        )
        with contextlib.ExitStack() as stack:
            with occupied(database.dsn):
                daemon = stack.enter_context(running_daemon(database.dsn, tmp_path, wait="/live"))
                eventually(says(daemon, "raise max_connections"))
            eventually(says(daemon, "raise max_replication_slots"))
            database.execute("select pg_drop_replication_slot('other')")
            eventually(says(daemon, "raise max_wal_senders"))
            sender.close()
            daemon.wait_for("/ready")
            assert failures(daemon) == [
                ("database_refused", "too_many_connections"),
                ("database_refused", "configuration_limit"),
                ("database_refused", "no_free_wal_sender"),
            ]


def test_who_is_there_stays_while_no_descriptor_is_left_for_others(prepared: TestDatabase, tmp_path: Path) -> None:
    with running_daemon(prepared.dsn, tmp_path) as daemon, contextlib.ExitStack() as crowd:
        node = Node(prepared, daemon)
        node.table("t")

        def overloaded() -> bool:
            return any(line["event"] == LISTENER_OVERLOADED for line in daemon.log())

        async def main() -> None:
            async with phoenix(daemon.websocket_url, apikey=token()) as client:
                await client.subscribe(TOPIC, ITEM)
                _, hard = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
                in_use = len(os.listdir(f"/proc/{daemon.pid}/fd"))
                resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (in_use + 4, hard))
                for _ in range(20):
                    crowd.enter_context(socket.create_connection(("127.0.0.1", daemon.port)))
                await trio.to_thread.run_sync(eventually, overloaded)
                prepared.execute("insert into t values (1)")
                assert (await client.changes(1))[0]["record"]["id"] == 1
                await client.heartbeat()
                crowd.close()
                async with phoenix(daemon.websocket_url, apikey=token()) as late:
                    await late.join(TOPIC)
                resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (hard, hard))

        trio.run(main)
        node.assert_unharmed()


def test_a_name_that_cannot_be_looked_up_for_a_while(prepared: TestDatabase, tmp_path: Path) -> None:
    """At the start, and when every connection ends at once; nothing is missed."""
    service = tmp_path / "service.conf"

    def lead(host: str) -> None:
        name = f"host={host}\nport={known['port']}\ndbname={known['dbname']}\nuser={known['user']}\n"
        service.with_suffix(".new").write_text(f"[here]\n{name}", encoding="utf-8")
        service.with_suffix(".new").replace(service)

    known = psycopg2.extensions.parse_dsn(prepared.dsn)
    lead("no..such")
    with running_daemon("service=here", tmp_path, {"PGSERVICEFILE": str(service)}, wait="/live") as daemon:
        eventually(says(daemon, "name service knows it"))
        lead(known["host"])
        daemon.wait_for("/ready")
        node = Node(prepared, daemon)
        node.table("t")

        async def main() -> None:
            async with phoenix(daemon.websocket_url, apikey=token()) as client:
                await client.subscribe(TOPIC, ITEM)
                lead("no..such")
                prepared.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity"
                    " where datname = current_database() and pid <> pg_backend_pid()"
                )
                await trio.to_thread.run_sync(eventually, says(daemon, "name service knows it"))
                prepared.execute("insert into t values (1)")
                lead(known["host"])
                assert (await client.changes(1, seconds=30))[0]["record"]["id"] == 1
                assert [frame for frame in await client.drain() if frame.event == "system"] == []

        trio.run(main)
        assert {code for code, _ in failures(daemon)} == {"database_unreachable"}
        node.assert_unharmed()
