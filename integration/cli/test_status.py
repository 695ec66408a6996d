"""status and stats: what is in the tables, and who answers on the listener."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from integration.cli.conftest import Walstream
from integration.fixtures.daemon import free_port, running_daemon
from integration.fixtures.postgres import TestDatabase
from walstream.config import Config
from walstream.shell.commands import daemon_health

ROWS = """
insert into realtime.channels (slug, name, type) values ('a', 'A', 'public'), ('b', 'B', 'private');
insert into realtime.channel_members (channel_id, user_id) select id, 'u1' from realtime.channels;
insert into realtime.messages (topic, event, payload, sender_id, sent_at) values
    ('a', 'x', '1', 'u1', now()), ('a', 'y', '2', 'u1', now() - interval '2 hours'),
    ('b', 'x', '3', 'u2', now() - interval '30 hours');
insert into realtime.presence (user_id, topic, status, node_id) values
    ('u1', 'a', 'online', 'n'), ('u1', 'b', 'away', 'n'), ('u2', 'a', 'away', 'n'), ('u2', 'b', 'offline', 'n'),
    ('u3', 'a', 'offline', 'n');
insert into realtime.subscriptions (table_name, events, filter) values
    ('public.a', '{INSERT}', null), ('public.b', '{INSERT,DELETE}', 'id > 1'), ('public.*', '{UPDATE}', null);
insert into realtime.connections (connection_id, user_id, status) values
    ('conn-1', 'u1', 'connected'), ('conn-2', 'u1', 'connected'), ('conn-3', 'u2', 'disconnected');
insert into realtime.nodes (node_id, last_seen_at) values ('n', now()), ('gone', now() - interval '1 hour');
"""


@contextmanager
def answering(status: int, body: bytes) -> Iterator[int]:
    """Somebody who listens and gives everybody the same answer; the port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            pass

    server = HTTPServer(("127.0.0.1", free_port()), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_everything_is_counted(walstream: Walstream, prepared: TestDatabase) -> None:
    prepared.execute(ROWS)
    blocks = walstream.json("stats")
    assert blocks == {
        "status": {"channels": 2, "messages_24h": 2, "online_users": 2, "table_subscriptions": 3},
        "subscriptions": {
            "total_subscriptions": 3, "unique_tables": 3, "insert_subs": 2, "update_subs": 1, "delete_subs": 1,
            "filtered_subs": 1,
        },
        "presence": {"online": 1, "away": 1, "offline": 1, "total_users": 3, "total_channels": 2},
        "broadcast": {
            "total_messages": 3, "messages_last_hour": 1, "messages_last_day": 2, "unique_event_types": 2,
            "unique_senders": 2,
        },
        "channels": {"total_channels": 2, "public": 1, "private": 1, "presence": 0, "members": 2},
        "connections": {"connected": 2, "users": 1, "nodes": 1},
    }  # fmt: skip
    status = walstream.json("status")
    assert {key: status[key] for key in blocks["status"]} == blocks["status"]
    assert status["nodes"] == ["n"]
    assert walstream.ok("stats", "csv").out.splitlines()[:2] == ["block,name,value", "status,channels,2"]
    assert "presence       online               1" in walstream.ok("stats").out.splitlines()


def test_status_without_slot_and_daemon(walstream: Walstream, prepared: TestDatabase) -> None:
    port = str(free_port())
    done = walstream.ok("status", "--json", "--listen", f"127.0.0.1:{port}")
    status = done.value
    assert (status["database"], status["schema_state"], status["slot_exists"]) == (prepared.name, "current", False)
    assert (status["daemon"], status["clients"], status["lag_bytes"]) == ("not running", None, None)
    assert "no daemon answers" in done.err


def test_status_shows_the_slot_and_its_lag(walstream: Walstream, prepared: TestDatabase) -> None:
    name = walstream.ok("slot", "create").out.strip()
    prepared.execute("create table public.noise (id integer)")
    status = walstream.json("status")
    assert (status["slot"], status["plugin"], status["slot_active"]) == (name, "wal2json", False)
    assert status["lag_bytes"] > 0
    assert status["retained_bytes"] >= status["lag_bytes"]
    assert status["wal_status"] == "reserved"


def test_status_shows_what_the_daemon_says(walstream: Walstream) -> None:
    health = {"status": "ready", "version": "9.9", "node": "n1", "clients": 7, "uptime": 1.5, "reasons": []}
    with answering(200, json.dumps(health).encode()) as port:
        done = walstream.ok("status", "--json", "--listen", f"0.0.0.0:{port}")
    status = done.value
    assert (status["daemon"], status["version"], status["node"], status["clients"]) == ("ready", "9.9", "n1", 7)
    assert done.err == ""


def test_a_running_daemon_holds_its_slot(prepared: TestDatabase, tmp_path: Path) -> None:
    with running_daemon(prepared.dsn, tmp_path) as daemon:
        walstream = Walstream(prepared.dsn, daemon.environ)
        status = walstream.json("status")
        assert (status["daemon"], status["slot_active"], status["slot"]) == ("ready", True, daemon.slot)
        refused = walstream("slot", "drop", daemon.slot)
        assert (refused.code, refused.out) == (1, "")
        assert "[database_refused: slot_active]" in refused.err
        findings = {finding["code"]: finding["severity"] for finding in walstream("doctor", "--json").value}
        assert (findings["slot"], findings["plugin"], findings["schema"]) == ("ok", "ok", "ok")
        assert daemon.stop() == 0
        walstream.ok("slot", "drop", daemon.slot)


METRICS = b"""# TYPE walstream_connections gauge
walstream_connections 3.0
walstream_joins_total{result="ok"} 2.0
walstream_joins_total{result="re } fused"} 1e2
walstream_nonsense many
"""


def test_top_shows_a_line_for_each_look(walstream: Walstream) -> None:
    with answering(200, METRICS) as port:
        assert daemon_health.fetch_metrics(Config(listen=f"127.0.0.1:{port}")) == {
            "walstream_connections": 3.0, "walstream_joins_total": 102.0
        }  # fmt: skip
        listen = ("--listen", f"127.0.0.1:{port}")
        lines = walstream.ok("top", "10ms", "--lines", "2", *listen).out.splitlines()
        assert [line.split()[1] for line in lines] == ["clients", "3", "3"]
        objects = walstream.ok("top", "10ms", "--lines", "2", "--json", *listen).out.splitlines()
        assert [json.loads(line)["clients"] for line in objects] == [3, 3]
    nobody = walstream("top", *listen)
    assert (nobody.code, "[daemon_unreachable]" in nobody.err) == (1, True)
    assert walstream("top", "0").code == 2


def test_who_is_no_daemon_of_ours_is_no_daemon() -> None:
    for status, body in ((200, b"<html>"), (200, b"[]"), (404, b'{"error": "x"}'), (200, b"\xff"), (500, b"")):
        with answering(status, body) as port:
            assert daemon_health.fetch(Config(listen=f"127.0.0.1:{port}")) is None


def test_status_tells_of_a_database_without_the_schema(database: TestDatabase) -> None:
    done = Walstream(database.dsn).ok("status", "--json")
    assert (done.value["schema_state"], done.value["channels"]) == ("absent", None)
    assert "walstream doctor" in done.err


def test_a_server_that_is_not_there_is_exit_code_5() -> None:
    walstream = Walstream(f"host=127.0.0.1 port={free_port()}")
    for command in (["status"], ["stats"], ["doctor"], ["subscribe", "a"], ["subscriptions"], ["slot", "list"]):
        done = walstream(*command)
        assert (done.code, done.out) == (5, "")
        assert done.err.startswith("error: ")
        assert "\nrepair: " in done.err
