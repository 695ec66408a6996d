"""Private rooms by policies, over the socket and over HTTP, with a real database behind."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import trio

from integration.fixtures.daemon import token
from integration.fixtures.node import Node
from integration.fixtures.postgres import TestDatabase
from integration.fixtures.ws import PhoenixClient, phoenix
from integration.rooms.conftest import Start, enter, heard, register, say, track

ADA, BOB, EVE = (token("authenticated", sub=name) for name in ("ada", "bob", "eve"))
READ, WRITE = ("broadcast", "presence"), ("broadcast", "presence", "persistence")


@pytest.fixture(scope="module")
def policies(shared: TestDatabase) -> Iterator[TestDatabase]:
    """Who may do what in which private topic, as rows of a table that policies read."""
    shared.execute(
        """
        create table public.grants (who text, topic text, verb text, extension text);
        grant select on public.grants to authenticated;
        create policy reads on realtime.messages for select to authenticated using (exists (
            select from public.grants g
             where g.who = (select current_setting('request.jwt.claims', true)::jsonb ->> 'sub')
               and g.topic = realtime.topic() and g.verb = 'read' and g.extension = messages.extension));
        create policy writes on realtime.messages for insert to authenticated with check (exists (
            select from public.grants g
             where g.who = (select current_setting('request.jwt.claims', true)::jsonb ->> 'sub')
               and g.topic = realtime.topic() and g.verb = 'write' and g.extension = messages.extension));
        """
    )
    yield shared
    shared.execute("drop policy reads on realtime.messages; drop policy writes on realtime.messages")


def allow(
    database: TestDatabase, who: str, topic: str, *, read: tuple[str, ...] = READ, write: tuple[str, ...] = WRITE
) -> None:
    for verb, extensions in (("read", read), ("write", write)):
        for extension in extensions:
            database.execute("insert into public.grants values (%s, %s, %s, %s)", (who, topic, verb, extension))


async def refusal(client: PhoenixClient, topic: str, **config: object) -> str:
    reply = await client.reply(await client.push(topic, "phx_join", {"config": {"private": True, **config}}))
    assert reply["status"] == "error", reply
    reason: str = reply["response"]["reason"]
    return reason


def post(node: Node, apikey: str, topic: str, query: str = "") -> tuple[int, object]:
    status, body = node.daemon.request(
        "POST", f"/api/broadcast/{topic}/events/say?private=true{query}", b'{"n":9}',
        {"authorization": f"Bearer {apikey}", "content-type": "application/json"},
    )  # fmt: skip
    return status, json.loads(body) if body else None


def test_policies_decide_who_hears_and_says_what(node: Node, policies: TestDatabase) -> None:
    topic = "realtime:den"
    allow(policies, "ada", "den")
    allow(policies, "bob", "den", read=("presence",), write=("presence",))

    async def main() -> None:
        url = node.daemon.websocket_url
        async with phoenix(url, apikey=ADA) as ada, phoenix(url, apikey=BOB, vsn="1.0.0") as bob:
            await enter(ada, topic, private=True, presence={"enabled": True})
            await enter(bob, topic, private=True, presence={"enabled": True})
            async with phoenix(url, apikey=EVE) as eve, phoenix(url, apikey=token()) as nobody:
                for stranger in (eve, nobody):
                    assert await refusal(stranger, topic) == (
                        "Unauthorized: You do not have permissions to read from this Channel topic: den"
                    )
                await enter(eve, topic, private=False)  # another room
            assert (await say(ada, topic, {"n": 1}))["status"] == "ok"
            assert (await say(bob, topic, {"n": 2}))["response"] == {"error": "unauthorized"}
            assert (await track(bob, topic, {"n": 3}))["status"] == "ok"
            await ada.next("presence_diff", topic=topic)
            await bob.next("presence_diff", topic=topic)
            assert [frame.event for frame in await bob.drain() if frame.event == "broadcast"] == []

    trio.run(main)


def test_requests_are_judged_by_the_right_to_send_alone(node: Node, policies: TestDatabase) -> None:
    topic = "realtime:mail"
    allow(policies, "ada", "mail", write=())
    allow(policies, "bob", "mail", read=(), write=("broadcast",))

    async def main() -> None:
        async with phoenix(node.daemon.websocket_url, apikey=ADA) as ada:
            await enter(ada, topic, private=True)
            ok = await trio.to_thread.run_sync(post, node, BOB, "mail")
            denied = await trio.to_thread.run_sync(post, node, ADA, "mail")
            unkept = await trio.to_thread.run_sync(post, node, BOB, "mail", "&persist=true")
            assert (ok, denied) == ((202, None), (403, {"message": "Unauthorized"}))
            assert unkept == denied
            assert (await heard(ada, topic))["payload"] == {"n": 9}
            messages: list[dict[str, object]] = [
                {"topic": name, "event": "say", "payload": {}, "private": True} for name in ("mail", "other")
            ]
            status, _ = await trio.to_thread.run_sync(
                node.daemon.request, "POST", "/api/broadcast", json.dumps({"messages": messages}).encode(),
                {"authorization": f"Bearer {BOB}"},
            )  # fmt: skip
            assert status == 202  # what may not be sent is passed over
            assert (await heard(ada, topic))["payload"] == {}

    trio.run(main)


def test_history_is_for_those_who_may_hear(node: Node, policies: TestDatabase) -> None:
    allow(policies, "ada", "log")
    allow(policies, "bob", "log", read=("presence",))

    async def main() -> None:
        url = node.daemon.websocket_url
        async with phoenix(url, apikey=ADA) as ada, phoenix(url, apikey=BOB) as bob, phoenix(url, apikey=ADA) as again:
            await enter(ada, "realtime:log", private=True)
            status, _ = await trio.to_thread.run_sync(post, node, ADA, "log", "&persist=true")
            assert status == 202
            await heard(ada, "realtime:log")
            replay = {"ack": True, "self": False, "replay": {"since": 0}}
            await enter(again, "realtime:log", private=True, broadcast=replay)
            assert (await heard(again, "realtime:log"))["meta"]["replayed"] is True
            await enter(bob, "realtime:log", private=True, broadcast=replay)
            assert [frame.event for frame in await bob.drain() if frame.event == "broadcast"] == []

    trio.run(main)
    found = {}
    for name, key in (("ada", ADA), ("bob", BOB), ("eve", EVE)):
        path = "/api/realtime/replay/log?private=true"
        found[name], _ = node.daemon.request("GET", path, None, {"authorization": f"Bearer {key}"})
    assert found == {"ada": 200, "bob": 403, "eve": 403}


def test_a_private_channel_is_for_its_members_and_for_those_whom_policies_let_in(
    node: Node, policies: TestDatabase
) -> None:
    topic = "realtime:team"
    allow(policies, "eve", "team", write=())
    register(node, "team", "private", "ada", "bob")

    async def main() -> None:
        url = node.daemon.websocket_url
        async with phoenix(url, apikey=ADA) as ada, phoenix(url, apikey=BOB) as bob, phoenix(url, apikey=EVE) as eve:
            for client in (ada, bob, eve):
                await enter(client, topic)
            assert (await say(ada, topic, {"n": 1}))["status"] == "ok"
            for client in (bob, eve):
                assert (await heard(client, topic))["payload"] == {"n": 1}
            assert (await say(eve, topic, {"n": 2}))["response"] == {"error": "unauthorized"}
            policies.execute("delete from realtime.channel_members where user_id = 'bob'")
            assert "no longer have permission" in (await bob.next("system", topic=topic)).payload["message"]
            await bob.next("phx_close", topic=topic)

    trio.run(main)


def test_a_new_token_and_a_changed_policy_are_judged_again(node: Node, policies: TestDatabase) -> None:
    allow(policies, "ada", "club")
    allow(policies, "bob", "club")

    async def main() -> None:
        url = node.daemon.websocket_url
        topic = "realtime:club"
        async with phoenix(url, apikey=ADA) as ada, phoenix(url, apikey=BOB) as bob:
            await enter(ada, topic, private=True)
            await enter(bob, topic, private=True)
            assert (await say(ada, topic, {"n": 1}))["status"] == "ok"
            policies.execute("delete from public.grants where who = 'ada' and verb = 'write'")
            fresh = token("authenticated", sub="ada", seconds=7200)
            await ada.push(topic, "access_token", {"access_token": fresh})
            assert (await say(ada, topic, {"n": 2}))["response"] == {"error": "unauthorized"}
            policies.execute("delete from public.grants where who = 'ada'")
            await bob.push(topic, "access_token", {"access_token": token("authenticated", sub="ada")})
            assert (await bob.next("system", topic=topic)).payload == {
                "extension": "system", "status": "error", "channel": "club",
                "message": "You no longer have permission to read from this Channel topic: club",
            }  # fmt: skip
            await bob.next("phx_close", topic=topic)
            policies.execute("create policy nobody on realtime.messages as restrictive for select using (false)")
            try:
                assert "permission" in (await ada.next("system", topic=topic, seconds=40)).payload["message"]
            finally:
                policies.execute("drop policy nobody on realtime.messages")

    trio.run(main)


def test_a_policy_that_fails_lets_nobody_in_and_is_logged(node: Node, policies: TestDatabase) -> None:
    policies.execute(
        "create policy broken on realtime.messages for all to anon using (topic::int > 0) with check (topic::int > 0)"
    )

    async def main() -> None:
        async with phoenix(node.daemon.websocket_url, apikey=token()) as client:
            assert (await refusal(client, "realtime:words")).startswith("Unauthorized: ")
            await enter(client, "realtime:7", private=True)

    try:
        trio.run(main)
        assert post(node, token(), "words")[0] == 422
    finally:
        policies.execute("drop policy broken on realtime.messages")
    failed = [line for line in node.daemon.log() if line.get("event") == "authorization.failed"]
    assert failed[0]["code"] == "RlsPolicyError"
    assert "invalid input syntax" in failed[0]["error"]


def test_only_private_channels_where_that_is_asked_for(start: Start, policies: TestDatabase) -> None:
    allow(policies, "ada", "vault")
    with start(policies, WALSTREAM_PRIVATE_ONLY="true", WALSTREAM_SLOT="private_only") as node:
        register(node, "open", "public")

        async def main() -> None:
            async with phoenix(node.daemon.websocket_url, apikey=ADA) as ada:
                for topic in ("realtime:lobby", "realtime:open"):
                    assert await refusal(ada, topic, private=False) == (
                        "PrivateOnly: This project only allows private channels"
                    )
                await enter(ada, "realtime:vault", private=True)

        trio.run(main)
        status, body = node.daemon.request(
            "POST", "/api/broadcast/lobby/events/say", b"{}", {"authorization": f"Bearer {ADA}"}
        )
        assert (status, json.loads(body)["error"]) == (403, "private_only")
        assert post(node, ADA, "vault") == (202, None)
    policies.execute("delete from realtime.channels where slug = 'open'")
