"""Unmodified official clients in rooms: all libraries and both protocol versions at once on one topic."""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.clients.official import EVERY, SUPABASE, Line, OfficialClient, official_client
from integration.fixtures.daemon import Daemon, running_daemon, token
from integration.fixtures.node import Node, eventually
from integration.fixtures.postgres import TestDatabase, fresh_database
from walstream.shell.commands.private_cluster import Cluster

_rooms = (f"hall-{number}" for number in itertools.count(1))
GREETINGS: dict[str, object] = {"type": "broadcast", "event": "greet"}
PRESENCE: dict[str, object] = {"type": "presence"}
BINARY = ("supabase-js", "supabase-js-node20", "realtime-js")
"""Libraries that speak vsn 2 with binary frames by themselves."""


@pytest.fixture(scope="module")
def database(cluster: Cluster, template: str) -> Iterator[TestDatabase]:
    with fresh_database(cluster, template) as made:
        yield made


@pytest.fixture(scope="module")
def daemon(database: TestDatabase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with running_daemon(database.dsn, tmp_path_factory.mktemp("daemon")) as running:
        yield running
        assert running.is_running, running.log_tail()
        assert not [line for line in running.log() if line.get("event") == "handler.failed"]


@pytest.fixture(scope="module")
def clients(daemon: Daemon) -> Iterator[dict[str, OfficialClient]]:
    """One connection of every official client."""
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(official_client(name, daemon.url, token("anon"))) for name in EVERY}


def presence_key(name: str) -> dict[str, object]:
    return {"presence": {"key": name, "enabled": True}}


def test_every_client_hears_every_other_and_nobody_itself(clients: dict[str, OfficialClient]) -> None:
    room = next(_rooms)
    for client in clients.values():
        client.join(room, GREETINGS)
    for name, client in clients.items():
        payload = {"from": name, "text": "grüße 👋", "n": 1.5, "list": [1, None, {"a": []}]}
        client.do("send", room, event="greet", payload=payload)
        assert client.expect("sent", room)["outcome"] == "ok"
        for other_name, other in clients.items():
            if other_name != name:
                message = other.expect("broadcast", room)["message"]
                assert (message["event"], message["payload"]) == ("greet", payload)
    for client in clients.values():
        with pytest.raises(AssertionError):
            client.expect("broadcast", room, seconds=0.05)


@pytest.mark.parametrize("name", SUPABASE)
def test_a_client_hears_itself_if_it_wants_to_and_is_told_that_it_was_sent(
    clients: dict[str, OfficialClient], name: str
) -> None:
    room, client = next(_rooms), clients[name]
    client.join(room, GREETINGS, config={"broadcast": {"self": True, "ack": True}})
    client.do("send", room, event="greet", payload={"n": 1})
    assert client.expect("sent", room)["outcome"] == "ok"
    assert client.expect("broadcast", room)["message"]["payload"] == {"n": 1}


def test_bytes_reach_those_who_can_hear_them(clients: dict[str, OfficialClient]) -> None:
    room = next(_rooms)
    for client in clients.values():
        client.join(room, GREETINGS)
    clients["supabase-js"].do("send", room, event="greet", bytes=[0, 255, 7])
    clients["supabase-js"].do("send", room, event="greet", payload={"then": "text"})
    for name, client in clients.items():
        if name in BINARY and name != "supabase-js":
            message = client.expect("broadcast", room)["message"]
            assert (message["event"], message["payload"]) == ("greet", {"bytes": [0, 255, 7]})
        if name != "supabase-js":
            assert client.expect("broadcast", room)["message"]["payload"] == {"then": "text"}


def test_public_and_private_rooms_of_one_name_are_two(daemon: Daemon) -> None:
    room = next(_rooms)
    with (
        official_client("supabase-js", daemon.url, token("service_role")) as inside,
        official_client("supabase-js", daemon.url, token("service_role")) as other,
        official_client("supabase-js", daemon.url, token("anon")) as outside,
    ):
        for client in (inside, other):
            client.join(room, GREETINGS, config={"private": True, "broadcast": {"ack": True}})
        outside.join(room, GREETINGS, config={"broadcast": {"ack": True}})
        outside.do("send", room, event="greet", payload={"from": "outside"})
        assert outside.expect("sent", room)["outcome"] == "ok"
        inside.do("send", room, event="greet", payload={"from": "inside"})
        assert other.expect("broadcast", room)["message"]["payload"] == {"from": "inside"}
        with pytest.raises(AssertionError):
            outside.expect("broadcast", room, seconds=0.05)


def test_a_client_has_a_message_kept_in_a_private_room(daemon: Daemon) -> None:
    room = next(_rooms)
    config = {"private": True, "broadcast": {"ack": True, "self": True}}
    with official_client("supabase-js", daemon.url, token("service_role")) as client:
        client.join(room, GREETINGS, config=config)
        client.do("send", room, event="greet", payload={"n": 1}, persist={"ttl": 600})
        client.do("send", room, event="greet", payload={"n": 2})
        live = [client.expect("broadcast", room)["message"] for _ in range(2)]
        assert {message["payload"]["n"]: "meta" in message for message in live} == {1: True, 2: False}
    replay = {"since": 0, "limit": 5}
    with official_client("realtime-js", daemon.url, token("service_role")) as again:
        again.join(room, GREETINGS, config={"private": True, "broadcast": {"replay": replay}})
        assert again.expect("broadcast", room)["message"]["payload"] == {"n": 1}


@pytest.mark.parametrize("name", SUPABASE)
def test_nobody_joins_a_private_room_without_permission(clients: dict[str, OfficialClient], name: str) -> None:
    room = next(_rooms)
    clients[name].do("join", room, bind=[GREETINGS], config={"private": True})
    line = clients[name].expect("status", room, status="CHANNEL_ERROR")
    assert f"You do not have permissions to read from this Channel topic: {room}" in str(line["error"])
    clients[name].do("leave", room)  # or it tries for ever


def people(line: Line) -> set[str]:
    return set(line["state"])


def sees(client: OfficialClient, room: str, everybody: set[str]) -> None:
    """Read on until the client's own state has exactly these keys."""
    seen: set[str] | None = None
    while seen != everybody:
        seen = people(client.expect("presence", room))


def test_every_client_sees_every_other_come_and_go(clients: dict[str, OfficialClient]) -> None:
    room = next(_rooms)
    for name, client in clients.items():
        client.join(room, PRESENCE, config=presence_key(name))
    for name, client in clients.items():
        client.do("track", room, payload={"name": name, "n": 1})
        assert client.expect("tracked", room)["outcome"] == "ok"
    for client in clients.values():
        sees(client, room, set(EVERY))
    clients["python"].do("untrack", room)
    for client in clients.values():
        assert client.expect("leave", room)["key"] == "python"
        sees(client, room, set(EVERY) - {"python"})
    clients["phoenix"].do("leave", room)
    for name in SUPABASE:
        assert clients[name].expect("leave", room)["key"] == "phoenix"


def test_who_comes_late_sees_who_is_there(clients: dict[str, OfficialClient]) -> None:
    room = next(_rooms)
    first, second = clients["supabase-js"], clients["supabase-js-vsn1"]
    first.join(room, PRESENCE, config=presence_key("first"))
    first.do("track", room, payload={"mood": "🙂"})
    first.expect("tracked", room)
    second.join(room, PRESENCE, config=presence_key("second"))
    while not (line := second.expect("presence", room))["state"]:
        pass
    [meta] = line["state"]["first"]
    assert meta["mood"] == "🙂"
    assert meta["presence_ref"]


def test_sockets_of_one_person_are_one_key(daemon: Daemon, clients: dict[str, OfficialClient]) -> None:
    room, watcher = next(_rooms), clients["realtime-js"]
    watcher.join(room, PRESENCE, config=presence_key("watcher"))
    with official_client("supabase-js", daemon.url, token("anon")) as phone:
        with official_client("python", daemon.url, token("anon")) as laptop:
            for number, client in enumerate((phone, laptop)):
                client.join(room, PRESENCE, config=presence_key("ada"))
                client.do("track", room, payload={"device": number})
                client.expect("tracked", room)
            while len((line := watcher.expect("presence", room))["state"].get("ada", ())) != 2:
                pass
            assert {meta["device"] for meta in line["state"]["ada"]} == {0, 1}
        while len((line := watcher.expect("presence", room))["state"].get("ada", ())) != 1:
            pass
        assert line["state"]["ada"][0]["device"] == 0
    sees(watcher, room, set())


def test_messages_go_by_http_where_the_client_does_so(clients: dict[str, OfficialClient]) -> None:
    room = next(_rooms)
    for client in clients.values():
        client.join(room, GREETINGS)
    clients["supabase-js"].do("post", room, event="greet", payload={"by": "http"})
    assert clients["supabase-js"].expect("posted", room)["outcome"] == {"success": True}
    for client in clients.values():
        message = client.expect("broadcast", room)["message"]
        assert (message["event"], message["payload"]) == ("greet", {"by": "http"})


# -- registered channels


def register(database: TestDatabase, slug: str, type_: str = "public", *members: str) -> None:
    database.execute("insert into realtime.channels (slug, name, type) values (%s, %s, %s)", (slug, slug, type_))
    for member in members:
        database.execute(
            "insert into realtime.channel_members (channel_id, user_id)"
            " select c.id, %s from realtime.channels c where c.slug = %s",
            (member, slug),
        )


def known(database: TestDatabase, daemon: Daemon) -> None:
    """Wait until the daemon knows all channels: it reads them from the WAL."""
    eventually(Node(database, daemon).knows_channels)


def test_messages_of_a_registered_channel_are_stored_and_replayed(database: TestDatabase, daemon: Daemon) -> None:
    room = next(_rooms)
    register(database, room, "private", "ada")
    known(database, daemon)
    config = {"private": True, "broadcast": {"ack": True, "self": True}}
    member = token("authenticated", sub="ada")
    with official_client("supabase-js", daemon.url, member) as ada:
        ada.join(room, GREETINGS, config=config)
        for number in range(3):
            ada.do("send", room, event="greet", payload={"n": number})
            assert ada.expect("sent", room)["outcome"] == "ok"
        live = [ada.expect("broadcast", room)["message"] for _ in range(3)]
    rows = database.query(
        "select id::text, payload::text, sender_id, seq from realtime.messages where topic = %s order by seq", (room,)
    )
    assert [message["meta"]["id"] for message in live] == [row[0] for row in rows]
    assert [json.loads(row[1]) for row in rows] == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert {row[2] for row in rows} == {"ada"}
    since = int((time.time() - 3600) * 1000)
    with official_client("supabase-js", daemon.url, member) as again:
        again.join(room, GREETINGS, config={"private": True, "broadcast": {"replay": {"since": since, "limit": 2}}})
        replayed = [again.expect("broadcast", room)["message"] for _ in range(2)]
        assert [message["payload"] for message in replayed] == [{"n": 1}, {"n": 2}]
        assert all(message["meta"]["replayed"] for message in replayed)
    with official_client("supabase-js", daemon.url, token("authenticated", sub="eve")) as eve:
        eve.do("join", room, bind=[GREETINGS], config={"private": True})
        eve.expect("status", room, status="CHANNEL_ERROR")


def test_sql_sends_to_rooms(database: TestDatabase, clients: dict[str, OfficialClient], daemon: Daemon) -> None:
    room = next(_rooms)
    for client in clients.values():
        client.join(room, GREETINGS)
    database.execute("select realtime.send('{\"n\": 1}'::jsonb, 'greet', %s, false)", (room,))
    for client in clients.values():
        message = client.expect("broadcast", room)["message"]
        assert (message["event"], message["payload"]["n"]) == ("greet", 1)
        assert message["payload"]["id"] == message["meta"]["id"]


def test_leaving_a_private_channel_ends_its_sockets(database: TestDatabase, daemon: Daemon) -> None:
    room = next(_rooms)
    register(database, room, "private", "ada")
    known(database, daemon)
    with official_client("supabase-js", daemon.url, token("authenticated", sub="ada")) as ada:
        ada.join(room, GREETINGS, config={"private": True})
        database.execute("delete from realtime.channel_members where user_id = 'ada'")
        assert ada.expect("status", room, status="CLOSED")


def test_a_presence_channel_tracks_by_itself(
    database: TestDatabase, daemon: Daemon, clients: dict[str, OfficialClient]
) -> None:
    room = next(_rooms)
    register(database, room, "presence")
    known(database, daemon)
    watcher = clients["supabase-js"]
    watcher.join(room, PRESENCE, config=presence_key("watcher"))
    with official_client("python", daemon.url, token("authenticated", sub="ada")) as ada:
        ada.join(room, GREETINGS)
        sees(watcher, room, {"watcher", "ada"})
    sees(watcher, room, {"watcher"})


def test_daemons_on_one_database_are_one_room(cluster: Cluster, template: str, tmp_path: Path) -> None:
    room = next(_rooms)
    with contextlib.ExitStack() as stack:
        database = stack.enter_context(fresh_database(cluster, template))
        environ = {"WALSTREAM_HEARTBEAT_SECONDS": "1s"}
        here = stack.enter_context(running_daemon(database.dsn, tmp_path, environ))
        there = stack.enter_context(running_daemon(database.dsn, tmp_path, environ))
        one = stack.enter_context(official_client("supabase-js", here.url, token("anon")))
        two = stack.enter_context(official_client("python", there.url, token("anon")))
        for name, client in (("one", one), ("two", two)):
            client.join(room, GREETINGS, PRESENCE, config=presence_key(name))
            client.do("track", room, payload={"name": name})
        for client in (one, two):
            sees(client, room, {"one", "two"})
        one.do("send", room, event="greet", payload={"n": 1})
        assert two.expect("broadcast", room)["message"]["payload"] == {"n": 1}
        two.do("send", room, event="greet", payload={"n": "x" * 20_000})
        assert one.expect("broadcast", room)["message"]["payload"] == {"n": "x" * 20_000}
