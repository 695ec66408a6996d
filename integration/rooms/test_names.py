"""Names that break what is careless: they are rooms like all others, and nobody's SQL."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest
import trio

from integration.fixtures.daemon import token
from integration.fixtures.node import Node
from integration.fixtures.ws import phoenix
from integration.rooms.conftest import enter, heard, register, say, track

NAMES = [
    "it's",
    'say "hi"',
    "a.b.c",
    "'; drop table realtime.messages; --",
    "$$ || pg_sleep(9) || $$",
    "%s %(x)s {}",
    "back\\slash",
    "né\u0301e 👩‍👩‍👧 room",
    "\u202eright to left \u05d0\u05d1",
    "a:b:table:public.todos",
    "../../etc/passwd",
    "x" * (255 - len("realtime:")),
    "\x01\x7f\t",
]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_a_name_is_a_name(node: Node, name: str) -> None:
    topic = f"realtime:{name}"
    channel = register(node, name)

    async def main() -> None:
        url = node.daemon.websocket_url
        async with (
            phoenix(url, apikey=token("authenticated", sub=name)) as one,
            phoenix(url, apikey=token(), vsn="1.0.0") as two,
        ):
            await enter(one, topic, presence={"key": name, "enabled": True})
            await enter(two, topic)
            assert (await say(one, topic, {name: name}, event=name))["status"] == "ok"
            message = await heard(two, topic)
            assert (message["event"], message["payload"]) == (name, {name: name})
            assert (await track(one, topic, {name: name}))["status"] == "ok"
            diff = (await two.next("presence_diff", topic=topic)).payload
            assert diff["joins"][name]["metas"][0][name] == name
            body = json.dumps({"n": name}).encode()
            status, _ = node.daemon.request(
                "POST", f"/api/broadcast/{quote(name, safe='')}/events/{quote(name, safe='')}", body,
                {"authorization": f"Bearer {token()}", "content-type": "application/json"},
            )  # fmt: skip
            assert status == 202
            assert (await heard(two, topic))["payload"] == {"n": name}

    trio.run(main)
    rows = node.database.query(
        "select event, payload::text, sender_id from realtime.messages where channel_id = %s order by seq", (channel,)
    )
    assert [(row[0], json.loads(row[1])) for row in rows] == [(name, {name: name}), (name, {"n": name})]
    assert rows[0][2] == name
    headers = {"authorization": f"Bearer {token('service_role')}"}
    status, page = node.daemon.request("GET", f"/api/realtime/replay/{quote(name, safe='')}", headers=headers)
    assert status == 200
    assert len(json.loads(page)["messages"]) == 2
