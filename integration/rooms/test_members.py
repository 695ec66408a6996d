"""Registered channels over the socket: types, members, roles, what is stored, and what direct listeners get."""

from __future__ import annotations

import json
import select
import time
from collections.abc import Iterator

import psycopg2.extensions
import pytest
import trio

from integration.fixtures.daemon import token
from integration.fixtures.node import Node, eventually
from integration.fixtures.ws import PhoenixClient, phoenix
from integration.rooms.conftest import enter, heard, register, say, track

ADA, BOB, EVE = (token("authenticated", sub=name) for name in ("ada", "bob", "eve"))


def connected(node: Node, apikey: str, vsn: str = "2.0.0") -> object:
    return phoenix(node.daemon.websocket_url, apikey=apikey, vsn=vsn)


async def refusal(client: PhoenixClient, topic: str, **config: object) -> str:
    reply = await client.reply(await client.push(topic, "phx_join", {"config": config}))
    assert reply["status"] == "error", reply
    reason: str = reply["response"]["reason"]
    return reason


async def closed(client: PhoenixClient, topic: str) -> str:
    """The text with which a channel ended."""
    text: str = (await client.next("system", topic=topic)).payload["message"]
    await client.next("phx_close", topic=topic)
    return text


def test_private_means_members_only_whatever_the_join_says(node: Node) -> None:
    register(node, "team", "private", "ada", "bob")
    topic = "realtime:team"

    async def main() -> None:
        url = node.daemon.websocket_url
        async with phoenix(url, apikey=ADA) as ada, phoenix(url, apikey=BOB, vsn="1.0.0") as bob:
            await enter(ada, topic)  # says public, and gets the private room all the same
            await enter(bob, topic, private=True)
            assert (await say(ada, topic, {"n": 1}))["status"] == "ok"
            assert (await heard(bob, topic))["payload"] == {"n": 1}
            async with phoenix(url, apikey=EVE) as eve, phoenix(url, apikey=token()) as nobody:
                for outsider in (eve, nobody):
                    for private in (True, False):
                        assert (await refusal(outsider, topic, private=private)).startswith("Unauthorized: ")
            async with phoenix(url, apikey=token("service_role")) as service:
                await enter(service, topic)
                assert (await say(service, topic, {"n": 2}))["status"] == "ok"
            assert (await heard(bob, topic))["payload"] == {"n": 2}

    trio.run(main)


def test_who_is_no_member_any_more_is_sent_away(node: Node) -> None:
    id_ = register(node, "club", "private", "ada", "bob")
    topic = "realtime:club"

    async def main() -> None:
        url = node.daemon.websocket_url
        async with phoenix(url, apikey=ADA) as ada, phoenix(url, apikey=BOB) as bob:
            for client in (ada, bob):
                await enter(client, topic)
            node.database.execute("delete from realtime.channel_members where user_id = 'bob'")
            assert "permission" in await closed(bob, topic)
            assert (await refusal(bob, topic)).startswith("Unauthorized: ")
            await say(ada, topic, {"n": 1})
            assert not [frame for frame in await bob.drain() if frame.event == "broadcast"]
            node.database.execute("delete from realtime.channels where id = %s", (id_,))
            assert "deleted" in await closed(ada, topic)

    trio.run(main)


def test_the_muted_hear_and_are_not_heard(node: Node) -> None:
    register(node, "hall", "public", "bob")
    topic = "realtime:hall"

    async def main() -> None:
        url = node.daemon.websocket_url
        async with phoenix(url, apikey=ADA) as ada, phoenix(url, apikey=BOB) as bob:
            for client in (ada, bob):
                await enter(client, topic)
            assert (await say(bob, topic, {"n": 0}))["status"] == "ok"
            node.database.execute("update realtime.channel_members set muted = true where user_id = 'bob'")
            with trio.fail_after(10):
                while (answer := await say(bob, topic, {"n": 1}))["status"] == "ok":
                    await trio.sleep(0.02)
            assert answer["response"] == {"error": "unauthorized"}
            await say(ada, topic, {"n": 2})
            assert (await heard(bob, topic))["payload"] == {"n": 2}

    trio.run(main)


def test_messages_are_held_to_the_channels_schema_and_size(node: Node) -> None:
    schema = {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}}
    register(node, "strict", metadata={"schemas": {"say": schema}})
    topic = "realtime:strict"

    async def main() -> None:
        async with phoenix(node.daemon.websocket_url, apikey=ADA) as ada:
            await enter(ada, topic)
            assert (await say(ada, topic, {"n": 1}))["status"] == "ok"
            answer = await say(ada, topic, {"n": "one"})
            assert answer["response"]["error"] == "payload_invalid"
            assert "n" in answer["response"]["reason"]
            assert (await say(ada, topic, {"n": "one"}, event="other"))["status"] == "ok"
            answer = await say(ada, topic, {"n": 1, "text": "x" * (1 << 20)})
            assert answer["response"] == {"error": "payload_size_exceeded"}

    trio.run(main)


def test_a_stored_message_is_answered_with_its_id(node: Node) -> None:
    register(node, "kept")
    register(node, "passing", persist=False)

    async def main() -> None:
        url = node.daemon.websocket_url
        async with phoenix(url, apikey=ADA) as ada, phoenix(url, apikey=token(), vsn="1.0.0") as other:
            for client in (ada, other):
                await enter(client, "realtime:kept")
                await enter(client, "realtime:passing")
            answer = await say(ada, "realtime:kept", {"n": 1})
            message = await heard(other, "realtime:kept")
            [row] = node.database.query(
                "select id::text, seq, sender_id, payload from realtime.messages where topic = 'kept'"
            )
            assert (message["meta"]["id"], message["meta"]["seq"]) == row[:2]
            assert answer["response"] == {"id": row[0]}
            assert row[2:] == ("ada", {"n": 1})
            assert (await say(ada, "realtime:passing", {"n": 1}))["response"] == {}
            assert "meta" not in await heard(other, "realtime:passing")

    trio.run(main)
    assert node.database.scalar("select count(*) from realtime.messages where topic = 'passing'") == 0


def test_a_presence_channel_knows_who_is_there(node: Node) -> None:
    register(node, "desk", "presence")
    topic = "realtime:desk"

    async def main() -> None:
        url = node.daemon.websocket_url
        async with phoenix(url, apikey=ADA) as ada:
            await enter(ada, topic)
            assert (await ada.next("presence_state", topic=topic)).payload == {}
            diff = (await ada.next("presence_diff", topic=topic)).payload
            assert list(diff["joins"]) == ["ada"]
            async with phoenix(url, apikey=BOB, vsn="1.0.0") as bob:
                await enter(bob, topic)
                assert list((await bob.next("presence_state", topic=topic)).payload) == ["ada"]
                assert list((await ada.next("presence_diff", topic=topic)).payload["joins"]) == ["bob"]
                await track(bob, topic, {"status": "away"})
                diff = (await ada.next("presence_diff", topic=topic)).payload
                assert (list(diff["joins"]), list(diff["leaves"])) == (["bob"], ["bob"])
                eventually(
                    lambda: (
                        node.database.query(
                            "select user_id, status from realtime.presence where topic = 'desk' order by user_id"
                        )
                        == [("ada", "online"), ("bob", "away")]
                    )
                )
            assert list((await ada.next("presence_diff", topic=topic)).payload["leaves"]) == ["bob"]

    trio.run(main)


def test_what_sql_tracks_is_seen(node: Node) -> None:
    topic = "realtime:lobby"

    async def main() -> None:
        async with phoenix(node.daemon.websocket_url, apikey=ADA) as ada:
            await enter(ada, topic, presence={"key": "ada", "enabled": True})
            node.database.execute("insert into realtime.presence (user_id, topic) values ('robot', 'lobby')")
            assert list((await ada.next("presence_diff", topic=topic)).payload["joins"]) == ["robot"]
            node.database.execute("update realtime.presence set status = 'offline' where user_id = 'robot'")
            assert list((await ada.next("presence_diff", topic=topic)).payload["leaves"]) == ["robot"]

    trio.run(main)


@pytest.fixture
def listener(node: Node) -> Iterator[psycopg2.extensions.connection]:
    connection = node.database.connect()
    yield connection
    connection.close()


def test_direct_listeners_get_the_ids_of_messages(node: Node, listener: psycopg2.extensions.connection) -> None:
    id_ = register(node, "wire")
    with listener.cursor() as cursor:
        cursor.execute(f'listen "realtime:channel:{id_}"')

    async def main() -> None:
        async with phoenix(node.daemon.websocket_url, apikey=ADA) as ada:
            await enter(ada, "realtime:wire")
            for number in range(3):
                await say(ada, "realtime:wire", {"n": number})

    trio.run(main)
    got: list[str] = []
    deadline = time.monotonic() + 10
    while len(got) < 3 and time.monotonic() < deadline:
        select.select([listener], [], [], 1)
        listener.poll()
        got += [note.payload for note in listener.notifies]
        listener.notifies.clear()
    rows = node.database.query("select id::text from realtime.messages where topic = 'wire' order by seq")
    assert got == [row[0] for row in rows]


def test_connections_are_in_their_table(node: Node) -> None:
    async def main() -> None:
        async with phoenix(node.daemon.websocket_url, apikey=ADA) as ada:
            await enter(ada, "realtime:anywhere")
            with trio.fail_after(20):
                while not (rows := await trio.to_thread.run_sync(_connected, node)):
                    await trio.sleep(0.1)
            assert rows[0][0].startswith("conn-")

    trio.run(main)
    eventually(lambda: not _connected(node))


def _connected(node: Node) -> list[tuple[str]]:
    return node.database.query(
        "select connection_id from realtime.connections where status = 'connected' and user_id = 'ada'"
    )


def test_http_and_socket_are_one_room(node: Node) -> None:
    register(node, "office", "private", "ada")

    def post(key: str, payload: object, topic: str = "office") -> int:
        body = json.dumps({"messages": [{"topic": topic, "event": "say", "payload": payload, "private": True}]})
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        return node.daemon.request("POST", "/realtime/v1/api/broadcast", body.encode(), headers)[0]

    async def main() -> None:
        async with phoenix(node.daemon.websocket_url, apikey=ADA) as ada:
            await enter(ada, "realtime:office")
            assert await trio.to_thread.run_sync(post, EVE, {"n": 0}) == 202  # and dropped
            assert await trio.to_thread.run_sync(post, ADA, {"n": 1}) == 202
            assert (await heard(ada, "realtime:office"))["payload"] == {"n": 1}
            assert await trio.to_thread.run_sync(post, "nonsense", {"n": 0}) == 401

    trio.run(main)
    assert node.database.query("select payload from realtime.messages where topic = 'office'") == [({"n": 1},)]


async def moderate(client: PhoenixClient, topic: str, action: str, **params: object) -> dict[str, object]:
    reply = await client.reply(await client.push(topic, "moderation", {"action": action, **params}))
    response: dict[str, object] = reply["response"]
    assert (reply["status"] == "error") == ("error" in response)
    return response


def test_moderators_moderate_and_admins_do_all(node: Node) -> None:
    register(node, "forum", "public", "ada:admin", "bob:moderator", "eve")
    topic = "realtime:forum"

    async def main() -> None:
        url = node.daemon.websocket_url
        async with phoenix(url, apikey=ADA) as ada, phoenix(url, apikey=BOB) as bob, phoenix(url, apikey=EVE) as eve:
            for client in (ada, bob, eve):
                await enter(client, topic)
            ids = [(await say(eve, topic, {"n": number}))["response"]["id"] for number in range(3)]
            assert (await moderate(eve, topic, "delete_message", id=ids[0]))["error"] == "unauthorized"
            assert (await moderate(bob, topic, "dance"))["error"] == "invalid"
            await moderate(bob, topic, "delete_message", id=ids[0])
            await moderate(bob, topic, "hide_message", id=ids[1])
            told = [frame.payload for frame in await eve.drain() if frame.event == "broadcast"]
            assert [message["event"] for message in told] == ["message.deleted", "message.hidden"]
            assert [message["payload"]["id"] for message in told] == ids[:2]
            async with phoenix(url, apikey=token()) as late:
                await enter(late, topic, broadcast={"replay": {"since": 0}})
                assert [frame.payload["meta"]["id"] for frame in await late.drain() if frame.event == "broadcast"] == [
                    ids[2]
                ]
            await moderate(bob, topic, "mute", user="eve")
            with trio.fail_after(10):
                while (await say(eve, topic, {"n": 4}))["status"] == "ok":
                    await trio.sleep(0.02)
            assert (await moderate(bob, topic, "set_role", user="eve", role="admin"))["error"] == "unauthorized"
            await moderate(ada, topic, "set_role", user="eve", role="moderator")
            await moderate(ada, topic, "delete_channel")
            for client in (ada, bob, eve):
                assert "deleted" in await closed(client, topic)

    trio.run(main)
