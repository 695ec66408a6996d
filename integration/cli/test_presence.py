"""presence and connections: who is where, by the best of what is known of him."""

from __future__ import annotations

import uuid

from integration.cli.conftest import InProcess
from integration.fixtures.daemon import free_port
from integration.fixtures.postgres import TestDatabase

GET = ["user_id", "channel", "status", "metadata", "last_seen_at", "seconds_since_seen"]
ONLINE = ["user_id", "channel", "status", "metadata", "last_seen_at", "seconds_ago"]


def test_track_is_an_upsert_that_daemons_hear_of(run: InProcess, prepared: TestDatabase) -> None:
    run.ok("channel", "create", "lobby", "presence")
    listener = prepared.connect()
    with listener.cursor() as cursor:
        cursor.execute('listen "realtime:presence"')
        first = run.ok("presence", "track", "u1", "lobby", "online", '{"level": 5, "x": {"y": 1}}').out.strip()
        assert str(uuid.UUID(first)) == first
        assert run.ok("presence", "track", "u1", "lobby", "away").out.strip() == first
        cursor.execute("select 1")
    told = [notice.payload for notice in listener.notifies]
    listener.close()
    assert told == [f"INSERT {first}", f"UPDATE {first}"]
    state = "select status, metadata from realtime.presence"
    assert prepared.query(state) == [("away", {"level": 5, "x": {"y": 1}})]
    run.ok("presence", "track", "u1", "lobby", "online", '{"score": 1}', "--merge")
    assert prepared.query(state) == [("online", {"level": 5, "x": {"y": 1}, "score": 1})]
    run.ok("presence", "track", "u1", "lobby", "online", '{"score": 2}')
    assert prepared.query(state) == [("online", {"score": 2})]
    assert run.json("presence", "track", "u1", "lobby")["metadata"] == {"score": 2}


def test_what_cannot_be_tracked(run: InProcess) -> None:
    run.ok("channel", "create", "lobby")
    assert run("presence", "track", "u1", "nowhere").code == 3
    assert run("presence", "track", "u1", "lobby", "busy").code == 2
    assert run("presence", "track", "", "lobby").code == 2
    assert run("presence", "track", "u1", "lobby", "online", "[1]").code == 2
    assert run("presence", "track", "u1", "lobby", "online", '{"a": "\\u0000"}').code == 2


def test_get_is_the_best_of_all_and_then_each_channel(run: InProcess, prepared: TestDatabase) -> None:
    run.ok("channel", "create", "general")
    run.ok("channel", "create", "lobby")
    prepared.execute(
        "insert into realtime.presence (user_id, topic, status, node_id, metadata, last_seen_at) values"
        " ('u1', 'general', 'away', '', '{\"n\": 1.50}', now() - interval '305 s'),"
        " ('u1', 'lobby', 'offline', 'n1', '{}', now() - interval '5 s'),"
        " ('u1', 'lobby', 'online', 'n2', '{\"device\": \"mobile\"}', now() - interval '9 s'),"
        " ('u2', 'general', 'offline', '', '{}', now())"
    )
    rows = run.json("presence", "get", "u1")
    assert list(rows[0]) == GET
    assert [(row["channel"], row["status"]) for row in rows] == [
        (None, "online"), ("general", "away"), ("lobby", "online")
    ]  # fmt: skip
    assert [row["seconds_since_seen"] // 3 for row in rows] == [3, 101, 3]
    one = run.ok("presence", "get", "u1", "lobby", "json").value
    assert [(row["status"], row["metadata"]) for row in one] == [("online", {"device": "mobile"})]
    assert '{"n":1.50}' in run.ok("presence", "get", "u1", "general").out.replace(" ", "")
    run.ok("presence", "track", "u1", "", "online", '{"mood": "fine"}')
    assert run.json("presence", "get", "u1")[0]["metadata"] == {"mood": "fine"}
    for words in (("u3",), ("u3", "general"), ("u1", "nowhere")):
        assert run("presence", "get", *words).code == 3


def test_online_counts_people_and_lists_places(run: InProcess, prepared: TestDatabase) -> None:
    run.ok("channel", "create", "general")
    prepared.execute(
        "insert into realtime.presence (user_id, topic, status, node_id, last_seen_at) values"
        " ('u1', 'general', 'online', '', now() - interval '3 s'), ('u1', 'general', 'away', 'n1', now()),"
        " ('u2', 'general', 'away', 'n1', now() - interval '2 s'), ('u3', 'general', 'offline', 'n1', now()),"
        " ('u1', null, 'online', '', now() - interval '1 s'), ('u4', 'open room', 'online', 'n1', now())"
    )
    rows = run.json("presence", "online", "general")
    assert list(rows[0]) == ONLINE
    assert [(row["user_id"], row["status"]) for row in rows] == [("u2", "away"), ("u1", "online")]
    everywhere = run.json("presence", "online")
    assert [(row["user_id"], row["channel"]) for row in everywhere] == [
        ("u4", "open room"), ("u1", None), ("u2", "general"), ("u1", "general")
    ]  # fmt: skip
    assert run.ok("presence", "online", "json").value == everywhere
    assert run.ok("presence", "online", "general", "json").value == rows
    assert (run.ok("presence", "count", "general").out, run.ok("presence", "count").out) == ("2\n", "3\n")
    assert run.json("presence", "count") == {"count": 3}
    assert run.ok("presence", "count", "open room").out == "1\n"
    for command in ("online", "count"):
        assert run("presence", command, "nowhere").code == 3
    assert run.ok("presence", "stats").out.split() == [
        "online", "away", "offline", "total_users", "total_channels", "2", "1", "1", "4", "2"
    ]  # fmt: skip
    assert run.json("presence", "stats") == {
        "online": 2, "away": 1, "offline": 1, "total_users": 4, "total_channels": 2
    }  # fmt: skip


def test_offline_says_what_it_did(run: InProcess, prepared: TestDatabase) -> None:
    run.ok("channel", "create", "a")
    run.ok("channel", "create", "b")
    for place in ("a", "b", ""):
        run.ok("presence", "track", "u1", place)
    assert run.ok("presence", "offline", "u1", "a").out == "1\n"
    assert run("presence", "offline", "u1", "a").code == 3
    assert run.ok("presence", "offline", "u1").out == "2\n"
    assert run("presence", "offline", "u1").code == 3
    assert run("presence", "offline", "u2").code == 3
    prepared.execute("insert into realtime.presence (user_id, topic, node_id) values ('u1', 'a', 'n1')")
    held = run("presence", "offline", "u1")
    assert (held.code, held.out, "u1 still has sockets at n1" in held.err) == (1, "", True)


def test_cleanup_counts_rows_that_were_stale(run: InProcess, prepared: TestDatabase) -> None:
    prepared.execute(
        "insert into realtime.presence (user_id, last_seen_at)"
        " select 'u' || s, now() - s * interval '1 s' from unnest(array[1, 299, 301, 599, 601]) s"
    )
    assert run.ok("presence", "cleanup", "600").out == "1\n"
    assert run.ok("presence", "cleanup").out == "2\n"
    assert run.json("presence", "cleanup") == {"stale_presence": 0}
    for seconds in ("x", "-1", "1.5", "300); drop table realtime.presence; --"):
        assert run("presence", "cleanup", "--", seconds).code == 2


def test_connections_are_those_that_are_open(run: InProcess, prepared: TestDatabase) -> None:
    assert run.ok("connections").out.split() == [
        "user_id", "connection_id", "status", "connected_at", "seconds_since_seen"
    ]  # fmt: skip
    prepared.execute(
        "insert into realtime.connections"
        " (connection_id, user_id, status, connected_at, last_seen_at, node_id, metadata) values"
        " ('conn-a', 'u1', 'connected', now() - interval '9 s', now() - interval '7 s', 'n1', '{\"topics\": 2}'),"
        " ('conn-b', null, 'connected', now(), now(), 'n2', '{}'),"
        " ('conn-c', 'u2', 'disconnected', now(), now(), 'n1', '{}')"
    )
    rows = run.json("connections")
    assert [(row["connection_id"], row["user_id"], row["seconds_since_seen"] // 7) for row in rows] == [
        ("conn-b", None, 0), ("conn-a", "u1", 1)
    ]  # fmt: skip
    assert len(run.ok("connections").out.splitlines()) == 3
    assert (run.ok("connections", "--count").out, run.json("connections", "--count")) == ("2\n", {"count": 2})
    wide = run.json("connections", "--wide")[1]
    assert (wide["node"], wide["topics"], wide["address"]) == ("n1", 2, None)
    nobody = run("connections", "--live", "--listen", f"127.0.0.1:{free_port()}")
    assert (nobody.code, "[daemon_unreachable]" in nobody.err) == (1, True)
