"""What a running daemon reports of itself, and what the commands make of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from integration.cli.conftest import Walstream
from integration.fixtures.daemon import Daemon, running_daemon, token
from integration.fixtures.postgres import TestDatabase, fresh_cluster, fresh_database, migrate
from integration.fixtures.ws import phoenix

QUICK = {"WALSTREAM_HEARTBEAT_SECONDS": "0.2s", "WALSTREAM_DRAIN_SECONDS": "1s"}
NODES = "select node_id, address, version, pid, slot, clients, status, last_seen_at from realtime.nodes"


def eventually(check: Callable[[], Any], *, seconds: float = 20.0) -> Any:
    """What ``check`` returns once that is true."""
    deadline = time.monotonic() + seconds
    while not (value := check()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)
    return value


@pytest.fixture
def daemon(prepared: TestDatabase, tmp_path: Path) -> Iterator[Daemon]:
    """A daemon over ``prepared``, with a table that its clients may read."""
    prepared.execute(
        "create table public.users (id integer primary key, age integer); grant select on public.users to anon"
    )
    with running_daemon(prepared.dsn, tmp_path, QUICK) as running:
        yield running


def reported(database: TestDatabase, row_id: str) -> dict[str, Any]:
    """What the nodes say of one subscription."""
    found = database.query("select status -> 'subscriptions' -> %s from realtime.nodes", (row_id,))
    return next((about for (about,) in found if about), {})


def test_a_subscriptions_health_is_that_of_the_stream(daemon: Daemon, prepared: TestDatabase) -> None:
    walstream = Walstream(prepared.dsn, daemon.environ)
    row_id = walstream.ok("subscribe", "public.users", "insert,update", "age > 1").out.strip()
    [listed] = walstream.json("subscriptions")
    assert (listed["health"], listed["problem"], listed["last_event_at"]) == ("ok", "", None)
    prepared.execute("insert into public.users values (1, 1)")
    at = prepared.scalar("insert into public.users select n, 7 from generate_series(2, 11) n returning now()")
    eventually(lambda: reported(prepared, row_id).get("events"))
    assert reported(prepared, row_id)["events"] == 10, "the filter lets the others through"
    [listed] = walstream.json("subscriptions")
    assert listed["health"] == "ok"
    assert isinstance(listed["lag_bytes"], int)
    (last,) = prepared.query(
        "select %s::timestamptz - %s between interval '0' and interval '10 s'", (listed["last_event_at"], at)
    )
    assert last == (True,)


def test_a_filter_that_an_alter_table_broke_is_an_error_for_operator_and_client(
    daemon: Daemon, prepared: TestDatabase
) -> None:
    walstream = Walstream(prepared.dsn, daemon.environ)
    row_id = walstream.ok("subscribe", "public.users").out.strip()
    filtered = {"event": "*", "schema": "public", "table": "users", "filter": "age=gt.1"}

    async def main() -> str:
        async with phoenix(daemon.websocket_url, apikey=token("anon")) as client:
            await client.subscribe("realtime:t", filtered)
            prepared.execute("insert into public.users values (1, 7)")
            assert len(await client.changes(1)) == 1
            prepared.execute("alter table public.users drop column age; insert into public.users values (2)")
            frame = await client.next("system", seconds=20)
            assert frame.payload["status"] == "error"
            return str(frame.payload["message"])

    assert "invalid column for filter age" in trio.run(main)
    assert [line["channels"] for line in daemon.log() if line["event"] == "filter.unfit"] == [1]
    assert "error" not in reported(prepared, row_id), "the subscription itself has no filter"
    prepared.execute("update realtime.subscriptions set filter = 'age > 1'")
    prepared.execute("insert into public.users values (3)")
    told = eventually(lambda: reported(prepared, row_id).get("error"))
    assert told.startswith("the filter does not fit public.users")
    done = walstream("subscriptions", "--check")
    assert done.code == 1
    [listed] = walstream.json("subscriptions")
    assert (listed["health"], listed["problem"]) == ("error", told)
    prepared.execute("update realtime.subscriptions set filter = null")
    prepared.execute("insert into public.users values (4)")
    eventually(lambda: "error" not in reported(prepared, row_id))
    assert walstream.json("subscriptions", "--check")[0]["health"] == "ok"


def test_a_node_is_there_while_it_runs(daemon: Daemon, prepared: TestDatabase) -> None:
    walstream = Walstream(prepared.dsn, daemon.environ)
    eventually(lambda: (walstream.json("status")["daemon"], prepared.query(NODES)))
    ((node_id, address, version, pid, slot, clients, _, seen),) = prepared.query(NODES)
    status = walstream.json("status")
    assert (node_id, version, slot) == (status["node"], status["version"], status["slot"])
    assert (address, pid, clients) == (daemon.environ["WALSTREAM_LISTEN"], daemon.pid, 0)
    assert status["nodes"] == [node_id]
    assert walstream.json("stats")["connections"]["nodes"] == 1
    eventually(lambda: prepared.query("select 1 from realtime.nodes where last_seen_at > %s", (seen,)))
    eventually(lambda: prepared.scalar("select status -> 'health' ->> 'status' from realtime.nodes") == "ready")
    prepared.execute(
        "insert into realtime.nodes (node_id, last_seen_at)"
        " values ('long gone', now() - interval '3 days'), ('another', now() - interval '3 hours')"
    )
    eventually(lambda: prepared.scalar("select count(*) from realtime.nodes") == 2)

    daemon.kill()
    assert prepared.query("select pid from realtime.nodes where node_id = %s", (node_id,)) == [(pid,)]
    daemon.start()
    eventually(
        lambda: prepared.query("select pid from realtime.nodes where node_id = %s", (node_id,)) == [(daemon.pid,)]
    )
    assert daemon.stop() == 0
    assert prepared.query("select node_id from realtime.nodes") == [("another",)]
    assert walstream.json("stats")["connections"]["nodes"] == 0
    assert walstream.json("status")["nodes"] == []


def test_a_table_that_is_locked_stops_nothing(daemon: Daemon, prepared: TestDatabase) -> None:
    eventually(lambda: prepared.query(NODES))
    walstream = Walstream(prepared.dsn, daemon.environ)
    walstream.ok("subscribe", "public.users")
    locking = prepared.connect(autocommit=False)
    try:
        with locking.cursor() as cursor:
            cursor.execute("lock table realtime.nodes in access exclusive mode")

        async def main() -> None:
            for number in range(5):
                async with phoenix(daemon.websocket_url, apikey=token("anon")) as client:
                    await client.subscribe("realtime:t", {"event": "*", "schema": "public", "table": "users"})
                    prepared.execute("insert into public.users values (%s)", (number,))
                    assert len(await client.changes(1)) == 1

        trio.run(main)
        assert daemon.get("/ready")[0] == 200
    finally:
        locking.close()
    before = prepared.scalar("select now()")
    eventually(lambda: prepared.query("select 1 from realtime.nodes where last_seen_at > %s", (before,)))


def test_after_a_crash_of_the_server_the_row_is_written_again(tmp_path: Path) -> None:
    with fresh_cluster(tmp_path / "server") as cluster, fresh_database(cluster) as database:
        migrate(database.dsn)
        with running_daemon(database.dsn, tmp_path, QUICK) as daemon:
            eventually(lambda: database.query(NODES))
            database.close()
            cluster.stop("immediate")
            cluster.start()
            eventually(lambda: database.query(NODES))
            assert database.query("select pid from realtime.nodes") == [(daemon.pid,)]
            assert daemon.is_running
            database.close()
            cluster.stop("immediate")
            assert daemon.stop() == 0, "there is nobody to say goodbye to"
