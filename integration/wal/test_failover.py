"""A primary and a standby: after a promotion the stream goes on where a slot was kept, or clients are told of a gap."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import trio

from integration.faults.proxy import Proxy
from integration.fixtures.daemon import running_daemon, token
from integration.fixtures.node import Node, eventually
from integration.fixtures.postgres import TEST_SETTINGS, TestDatabase, fresh_cluster, migrate, newest_server
from integration.fixtures.ws import phoenix
from walstream.shell.commands.private_cluster import Cluster

HASTY = {"WALSTREAM_HEARTBEAT_SECONDS": "1s", "WALSTREAM_DRAIN_SECONDS": "1s", "WALSTREAM_DECODER": "pgoutput"}
WISH = {"event": "*", "schema": "public", "table": "t"}


class Servers(NamedTuple):
    """Two servers, and the address that leads to one of them."""

    primary: Cluster
    standby: Cluster
    proxy: Proxy

    @property
    def dsn(self) -> str:
        # A short patience of the server, so that the daemon confirms often.
        options = "options='-c wal_sender_timeout=3s'"
        return f"host=127.0.0.1 port={self.proxy.port} user=postgres dbname=postgres {options}"

    def promote(self) -> None:
        """The primary is gone for ever; the address leads to the standby, which is promoted."""
        self.primary.kill()
        self.proxy.target = self.standby.socket_dir / ".s.PGSQL.5432"
        self.proxy.reset()
        standby = TestDatabase(self.standby, "postgres")
        standby.execute("select pg_promote(true, 60)")
        standby.close()


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    """Asynchronous replication that copies slots, as PostgreSQL 17 has it (47.2.3 Logical Slot Synchronization)."""
    newest = newest_server()
    with contextlib.ExitStack() as stack:
        primary = stack.enter_context(fresh_cluster(tmp_path / "primary", binaries=newest))
        database = TestDatabase(primary, "postgres")
        database.execute("select pg_create_physical_replication_slot('standby', true)")
        database.close()
        standby = Cluster(
            tmp_path / "standby", newest, keep=False,
            settings={
                **TEST_SETTINGS, "primary_conninfo": primary.dsn(), "primary_slot_name": "standby",
                "hot_standby_feedback": "on", "sync_replication_slots": "on", "wal_receiver_status_interval": "1s",
            },
        )  # fmt: skip
        _copy(primary, standby)
        stack.enter_context(standby)
        proxy = stack.enter_context(Proxy(primary.socket_dir / ".s.PGSQL.5432"))
        yield Servers(primary, standby, proxy)


def _copy(primary: Cluster, standby: Cluster) -> None:
    """As pg_basebackup does it; the copy is one that follows."""
    directory = standby.data_dir
    subprocess.run(
        [str(primary.binaries.bin_dir / "pg_basebackup"), "-D", str(directory), "-d", primary.dsn(), "-c", "fast"],
        check=True,
    )
    (directory / "standby.signal").touch()
    if standby.account is not None:
        for path in (directory, *directory.rglob("*")):
            os.chown(path, standby.account.uid, standby.account.gid, follow_symlinks=False)


@contextlib.contextmanager
def _served(servers: Servers, directory: Path) -> Iterator[tuple[Node, TestDatabase]]:
    """A daemon over the primary with a table, whose slot the standby keeps; and the standby, as a database.

    A standby takes a slot only when what it needs is not older than what the standby itself still has: the window has
    to move on once.
    """
    database, standby = TestDatabase(servers.primary, "postgres"), TestDatabase(servers.standby, "postgres")
    migrate(database.dsn)
    try:
        with running_daemon(servers.dsn, directory, {**HASTY, "WALSTREAM_HISTORY_SECONDS": "1s"}) as daemon:
            node = Node(database, daemon)
            node.table("t")

            def is_kept() -> bool:
                database.execute("select pg_log_standby_snapshot()")  # as PostgreSQL does every 15 s
                return _is_kept(standby, daemon.slot)

            eventually(is_kept, seconds=60)
            del daemon.environ["WALSTREAM_HISTORY_SECONDS"]
            daemon.restart()
            yield node, standby
    finally:
        database.close()
        standby.close()


def _is_kept(standby: TestDatabase, slot: str) -> bool:
    return standby.query(
        "select synced and not temporary and invalidation_reason is null from pg_replication_slots"
        " where slot_name = %s", (slot,),
    ) == [(True,)]  # fmt: skip


def _has_replayed(servers: Servers, standby: TestDatabase) -> bool:
    primary = TestDatabase(servers.primary, "postgres")
    end = primary.scalar("select pg_current_wal_lsn()")
    primary.close()
    return bool(standby.scalar("select pg_last_wal_replay_lsn() >= %s", (end,)))


def test_a_promoted_standby_that_kept_the_slot_goes_on_without_a_gap(servers: Servers, tmp_path: Path) -> None:
    """Who is connected gets what comes next; who comes back is told that it resumed, and gets what it missed."""
    with _served(servers, tmp_path) as (node, standby):

        async def main() -> None:
            async with phoenix(node.daemon.websocket_url, apikey=token("anon")) as client:
                await client.subscribe("realtime:t", WISH)
                node.database.execute("insert into t values (1, 'old')")
                position = (await client.changes(1))[0]["position"]
                node.database.execute("insert into t values (2, 'old')")
                assert (await client.changes(1))[0]["record"]["id"] == 2
                await _wait(lambda: _has_replayed(servers, standby))
                await trio.to_thread.run_sync(servers.promote)
                standby.execute("insert into t values (3, 'new')")
                assert (await client.changes(1, seconds=30))[0]["record"] == {"id": 3, "v": "new"}
                assert [frame for frame in await client.drain() if frame.event == "system"] == []
                await _resumes(node, position, [2, 3])
                await trio.to_thread.run_sync(lambda: node.daemon.restart(hard=True))
            await _resumes(node, position, [2, 3])

        trio.run(main)
        assert any(line.get("event") == "cluster.promoted" for line in node.daemon.log())


def test_a_commit_that_the_standby_never_had_is_a_gap(servers: Servers, tmp_path: Path) -> None:
    """Replication that is not synchronous loses commits at a failover. Who got them is told that it diverged."""
    with _served(servers, tmp_path) as (node, standby):

        async def main() -> None:
            async with phoenix(node.daemon.websocket_url, apikey=token("anon")) as client:
                await client.subscribe("realtime:t", WISH)
                node.database.execute("insert into t values (1, 'old')")
                (kept,) = await client.changes(1)
                node.database.execute("insert into t values (2, 'old')")
                await client.changes(1)
                await _wait(lambda: _has_replayed(servers, standby))
                standby.close()
                servers.standby.stop("immediate")
                node.database.execute("insert into t values (3, 'lost')")
                (lost,) = await client.changes(1)
                servers.primary.kill()
                servers.standby.start()
                await trio.to_thread.run_sync(servers.promote)
                told = await client.next("system", seconds=40)
                assert (told.payload["event"], told.payload["reason"]) == ("gap", "other_cluster")
                standby.execute("insert into t values (4, 'new')")
                assert (await client.changes(1, seconds=30))[0]["record"]["id"] == 4
                assert await _gap(node, lost["position"]) == "other_cluster"
                assert await _gap(node, kept["position"]) == "too_old"
                await trio.to_thread.run_sync(lambda: node.daemon.restart(hard=True))
            assert await _gap(node, lost["position"]) == "other_cluster"
            await _resumes(node, kept["position"], [2, 4])

        trio.run(main)


async def _wait(holds: Callable[[], object]) -> None:
    await trio.to_thread.run_sync(lambda: eventually(holds, seconds=60))


async def _gap(node: Node, position: str) -> str:
    """The reason that somebody is told of who comes back with a position."""
    async with phoenix(node.daemon.websocket_url, apikey=token("anon")) as client:
        await client.subscribe("realtime:t", {**WISH, "since": position})
        told = (await client.next("system")).payload
        assert told["event"] == "gap"
        return str(told["reason"])


async def _resumes(node: Node, position: str, missed: list[int]) -> None:
    """Somebody comes back with a position of the old primary, and gets exactly these rows."""
    async with phoenix(node.daemon.websocket_url, apikey=token("anon")) as client:
        await client.subscribe("realtime:t", {**WISH, "since": position})
        told = await client.next("system")
        assert told.payload["event"] == "resumed", told.payload
        assert [change["record"]["id"] for change in await client.changes(len(missed))] == missed
        assert [frame for frame in await client.drain() if frame.event == "postgres_changes"] == []
