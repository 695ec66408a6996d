"""Starting, refusing to start, draining, dying, and a database that comes and goes."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest
import trio
import trio_websocket

from integration.daemon.conftest import Node, Start, bearer, verdict
from integration.fixtures.daemon import Daemon, free_port
from integration.fixtures.node import eventually
from integration.fixtures.postgres import TestDatabase, migrate
from integration.fixtures.ws import phoenix
from walstream.shell.clients.joins import DATABASE_AWAY

WISH = {"event": "*", "schema": "public", "table": "t"}
DRAIN_SECONDS = 2.0
UPGRADE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    "Sec-WebSocket-Version": "13",
}


# -- refusing to start


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"WALSTREAM_DATABASE_URL": ""}, "WALSTREAM_DATABASE_URL"),
        ({"WALSTREAM_LISTEN": "0.0.0.0:{port}", "WALSTREAM_JWT_SECRET": ""}, "there is no key to tell clients apart"),
        ({"WALSTREAM_JWKS": "/nowhere/keys.json"}, "jwks"),
        ({"WALSTREAM_JWKS": "http://127.0.0.1:1/keys"}, "jwks"),
        ({"WALSTREAM_JWKS": "http://[nonsense/keys"}, "jwks"),
        ({"WALSTREAM_LISTEN": "nonsense"}, "listen"),
        ({"WALSTREAM_LISTEN": "192.0.2.1:{port}"}, "listen"),
        ({"WALSTREAM_NONSENSE": "1"}, "WALSTREAM_NONSENSE"),
        ({"WALSTREAM_SLOT": "Not A Slot"}, "slot"),
    ],
)
def test_a_wrong_configuration_is_refused_in_words(environ: dict[str, str], words: str, tmp_path: Path) -> None:
    port = free_port()
    daemon = Daemon("host=/nowhere", tmp_path, {key: value.format(port=port) for key, value in environ.items()}, port)
    try:
        daemon.start(wait="")
        eventually(lambda: not daemon.is_running, seconds=15)
    finally:
        if daemon.is_running:
            daemon.kill()
    assert daemon.returncode == 2
    assert words in daemon.log_tail()
    assert "Traceback" not in daemon.log_tail()


def test_a_port_in_use_is_told(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        daemon = Daemon("host=/nowhere", tmp_path, {}, port)
        daemon.start(wait="")
        eventually(lambda: not daemon.is_running, seconds=15)
    assert daemon.returncode == 2
    assert str(port) in daemon.log_tail()
    assert "Traceback" not in daemon.log_tail()


# -- ending


def ends(daemon: Daemon, seconds: float) -> float:
    """Wait for its end; how long that took."""
    began = time.monotonic()
    eventually(lambda: not daemon.is_running, seconds=seconds)
    return time.monotonic() - began


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_sends_the_clients_away_and_ends_it(start: Start, prepared: TestDatabase, number: int) -> None:
    with start(prepared) as node:
        node.table("t")

        async def main() -> None:
            async with phoenix(node.daemon.websocket_url, apikey=bearer()) as client:
                await client.subscribe("realtime:t", WISH)
                os.kill(node.daemon.pid, number)
                frame = await client.next("system")
                assert frame.payload["message"] == "Server requested disconnect"
                with pytest.raises(trio_websocket.ConnectionClosed) as closed:
                    await client.connection.get_message()
                assert closed.value.reason is not None
                assert closed.value.reason.code == 1012

        trio.run(main)
        ends(node.daemon, DRAIN_SECONDS + 5)
        assert node.daemon.returncode == 0, node.daemon.log_tail()
        assert "Traceback" not in node.daemon.log_tail()


def deaf_client(node: Node) -> socket.socket:
    """A client that reads nothing and answers no goodbye."""
    connection = socket.create_connection(("127.0.0.1", node.daemon.port))
    lines = [
        f"GET /realtime/v1/websocket?apikey={bearer()}&vsn=2.0.0 HTTP/1.1", "Host: x", "Upgrade: websocket",
        "Connection: Upgrade", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", "Sec-WebSocket-Version: 13", "", "",
    ]  # fmt: skip
    connection.sendall("\r\n".join(lines).encode())
    eventually(lambda: node.health()["clients"] == 1)
    return connection


def test_a_deaf_client_does_not_hold_the_end_up(start: Start, prepared: TestDatabase) -> None:
    with start(prepared) as node, deaf_client(node):
        os.kill(node.daemon.pid, signal.SIGTERM)
        assert ends(node.daemon, 30) < DRAIN_SECONDS + 5
        assert node.daemon.returncode == 0


def test_a_load_balancer_sees_it_drain(start: Start, prepared: TestDatabase) -> None:
    with start(prepared, WALSTREAM_DRAIN_SECONDS="60s") as node, deaf_client(node) as client:
        os.kill(node.daemon.pid, signal.SIGTERM)
        body = json.loads(node.daemon.wait_for("/ready", 503))
        assert (body["status"], "draining" in body["reasons"]) == ("draining", True)
        assert node.daemon.get("/live")[0] == 200
        status, body = node.daemon.request(
            "GET", f"/realtime/v1/websocket?apikey={bearer()}&vsn=2.0.0", headers=UPGRADE
        )
        assert (status, json.loads(body)["error"]) == (503, "Server is shutting down")
        client.close()  # the last one is gone: the end
        assert ends(node.daemon, 30) < 10
        assert node.daemon.returncode == 0, node.daemon.log_tail()


def test_a_second_signal_ends_it_at_once(start: Start, prepared: TestDatabase) -> None:
    with start(prepared, WALSTREAM_DRAIN_SECONDS="60s") as node, deaf_client(node):
        os.kill(node.daemon.pid, signal.SIGTERM)
        node.daemon.wait_for("/ready", 503)
        assert node.daemon.is_running
        os.kill(node.daemon.pid, signal.SIGTERM)
        assert ends(node.daemon, 30) < 10


def test_a_slot_that_waits_for_a_long_transaction_does_not_hold_the_end_up(
    start: Start, prepared: TestDatabase
) -> None:
    """PostgreSQL makes a slot only when every transaction that is under way has ended, which may take hours."""
    long = prepared.connect(autocommit=False)
    try:
        with long.cursor() as cursor:
            cursor.execute("select txid_current()")
        with start(prepared, wait="/live") as node:
            eventually(lambda: prepared.scalar("select count(*) from pg_replication_slots where slot_name = %s",
                                               (node.daemon.slot,)))  # fmt: skip
            os.kill(node.daemon.pid, signal.SIGTERM)
            assert ends(node.daemon, 60) < 20
            assert node.daemon.returncode == 0, node.daemon.log_tail()
    finally:
        long.close()
    assert "Traceback" not in node.daemon.log_tail()


def test_nobody_is_subscribed_before_there_is_a_slot(start: Start, prepared: TestDatabase) -> None:
    """What is committed before the slot is made is in no slot."""
    long = prepared.connect(autocommit=False)
    try:
        with long.cursor() as cursor:
            cursor.execute("select txid_current()")
        with start(prepared, wait="/live") as node:
            node.table("t")

            async def main() -> None:
                async with phoenix(node.daemon.websocket_url, apikey=bearer()) as client:
                    status, _ = await verdict(client, "realtime:t", WISH)
                    assert status == "error"
                    prepared.execute("insert into t values (1, 'before')")
                    long.rollback()
                    frame = await client.next("system")
                    assert frame.payload["status"] == "ok"
                    prepared.execute("insert into t values (2, 'after')")
                    assert (await client.changes(1))[0]["record"]["id"] == 2

            trio.run(main)
    finally:
        long.close()


def test_killed_it_comes_back_on_its_slot(start: Start, prepared: TestDatabase) -> None:
    with start(prepared) as node:
        node.table("t")
        node.daemon.restart(hard=True)

        async def main() -> None:
            async with phoenix(node.daemon.websocket_url, apikey=bearer()) as client:
                await client.subscribe("realtime:t", WISH)
                prepared.execute("insert into t values (1, 'x')")
                assert (await client.changes(1))[0]["record"]["id"] == 1

        trio.run(main)


# -- a database that is not as it should be


def test_without_its_schema_it_says_what_to_do_and_recovers(start: Start, database: TestDatabase) -> None:
    with start(database, wait="/live") as node:
        eventually(lambda: "walstream init" in str(node.health()["reader"]) or "42P01" in str(node.health()))
        assert node.daemon.get("/ready")[0] == 503
        eventually(lambda: "walstream init" in node.daemon.log_tail(20_000))
        migrate(database.dsn)
        node.daemon.wait_for("/ready", seconds=45)


def test_without_its_database_it_takes_joins_and_serves_them_later(start: Start, fragile: TestDatabase) -> None:
    with start(fragile) as node:
        node.table("t")
        node.database.close()

        async def main() -> None:
            async with phoenix(node.daemon.websocket_url, apikey=bearer()) as client:
                await client.subscribe("realtime:before", WISH)
                fragile.cluster.stop()
                status, message = await verdict(client, "realtime:t", WISH)
                assert (status, message) == ("error", DATABASE_AWAY)
                await client.join("realtime:plain")
                assert node.daemon.get("/live")[0] == 200
                fragile.cluster.start()
                frame = await client.next("system", topic="realtime:t", seconds=30)
                assert frame.payload["status"] == "ok", frame.payload
                node.database.execute("insert into t values (1, 'x')")
                topics = {(await client.next("postgres_changes", seconds=30)).topic for _ in range(2)}
                assert topics == {"realtime:before", "realtime:t"}

        trio.run(main)


def test_a_second_daemon_on_the_slot_sends_its_clients_back(start: Start, prepared: TestDatabase) -> None:
    with start(prepared) as first:
        first.table("t")
        with start(prepared, wait="/live", WALSTREAM_SLOT=first.daemon.slot) as second:
            eventually(lambda: second.health()["reader"]["status"] == "standby")

            async def main() -> None:
                async with phoenix(second.daemon.websocket_url, apikey=bearer()) as client:
                    await client.join("realtime:plain")
                    ref = await client.push("realtime:t", "phx_join", {"config": {"postgres_changes": [WISH]}})
                    reply = await client.reply(ref)
                    assert reply["status"] == "error"
                    assert reply["response"]["reason"].startswith("RealtimeRestarting: ")
                    first.daemon.kill()
                    eventually(lambda: second.health()["reader"]["status"] == "streaming", seconds=10)
                    await client.subscribe("realtime:t", WISH)
                    prepared.execute("insert into t values (1, 'x')")
                    assert (await client.changes(1))[0]["record"]["id"] == 1

            trio.run(main)


def test_the_slot_of_another_database_is_left_alone(
    start: Start, prepared: TestDatabase, database: TestDatabase
) -> None:
    database.execute("select pg_create_logical_replication_slot('walstream_elsewhere', 'pgoutput')")
    with start(prepared, wait="/live", WALSTREAM_SLOT="walstream_elsewhere") as node:
        eventually(lambda: "belongs to the database" in str(node.health()["reader"]))
        assert node.daemon.is_running
    assert database.scalar("select count(*) from pg_replication_slots where slot_name = 'walstream_elsewhere'") == 1
