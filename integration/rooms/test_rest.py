"""REST against a daemon: what is sent reaches sockets, what is stored can be read back, and nobody gets more."""

from __future__ import annotations

import json
from typing import Any

import trio

from integration.fixtures.daemon import token
from integration.fixtures.node import Node
from integration.fixtures.ws import phoenix
from integration.rooms.conftest import enter, heard, register

ADA, EVE, SERVICE = token("authenticated", sub="ada"), token("authenticated", sub="eve"), token("service_role")


def post(node: Node, path: str, body: object, key: str = ADA, kind: str = "application/json") -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"authorization": f"Bearer {key}", "content-type": kind}
    status, answer = node.daemon.request("POST", path, data, headers)
    return status, json.loads(answer) if answer else None


def replay(node: Node, path: str, key: str = ADA) -> tuple[int, Any]:
    status, answer = node.daemon.request("GET", f"/api/realtime/replay/{path}", headers={"apikey": key})
    return status, json.loads(answer)


def test_a_batch_reaches_members_of_all_rooms_and_passes_over_what_may_not_be_sent(node: Node) -> None:
    register(node, "rest-team", "private", "ada")
    batch = {
        "messages": [
            {"topic": "rest-open", "event": "one", "payload": {"n": 1}},
            {"topic": "rest-team", "event": "two", "payload": {"n": 2}, "private": True},
            {"id": "m-3", "topic": "rest-open", "event": "three", "payload": {"n": 3}},
        ]
    }

    async def main() -> None:
        async with phoenix(node.daemon.websocket_url, apikey=ADA) as ada:
            await enter(ada, "realtime:rest-open")
            await enter(ada, "realtime:rest-team", private=True)
            assert post(node, "/realtime/v1/api/broadcast", batch, EVE) == (202, None)
            assert [(await heard(ada, "realtime:rest-open"))["event"] for _ in range(2)] == ["one", "three"]
            assert post(node, "/api/broadcast", batch) == (202, None)
            first, third = [await heard(ada, "realtime:rest-open") for _ in range(2)]
            assert first == {"type": "broadcast", "event": "one", "payload": {"n": 1}}
            assert third["meta"] == {"id": "m-3"}
            only = await heard(ada, "realtime:rest-team")
            assert (only["payload"], only["meta"]["seq"] > 0) == ({"n": 2}, True)

    trio.run(main)


def test_one_message_with_any_names_as_json_or_bytes(node: Node) -> None:
    topic = 'a/b "c" é 🎈'
    path = "/api/broadcast/a%2Fb%20%22c%22%20%C3%A9%20%F0%9F%8E%88/events/ev%20bin%2Fx"

    async def main() -> None:
        async with phoenix(node.daemon.websocket_url, apikey=ADA) as ada:
            await enter(ada, f"realtime:{topic}")
            assert post(node, path, [1, 2]) == (202, None)
            assert await heard(ada, f"realtime:{topic}") == {
                "type": "broadcast", "event": "ev bin/x", "payload": {"_json": [1, 2]},
            }  # fmt: skip
            assert post(node, path, b"\0\xff", kind="application/octet-stream")[0] == 202
            assert post(node, path, b"<a/>", kind="text/xml")[0] == 415
            assert post(node, path + "/more", {})[0] == 404
            assert post(node, path + "?private=true", {}) == (403, {"message": "Unauthorized"})
            assert post(node, path, {}, "nonsense") == (401, {"message": "Unauthorized"})
            assert post(node, path, {"x": "y" * (1 << 20)})[0] == 422

    trio.run(main)


def test_what_is_stored_can_be_read_back_page_by_page_by_those_who_may(node: Node) -> None:
    channel_id = register(node, "rest-log", "private", "ada")
    for n in range(7):
        assert post(node, "/api/broadcast/rest-log/events/e", {"n": n}) == (202, None)
    status, first = replay(node, "rest-log?since=0&limit=4")
    assert (status, [found["payload"]["n"] for found in first["messages"]]) == (200, [0, 1, 2, 3])
    assert {found["sender_id"] for found in first["messages"]} == {"ada"}
    status, rest = replay(node, f"{channel_id}?since={first['next']}")
    assert (status, [found["payload"]["n"] for found in rest["messages"]], rest["next"]) == (200, [4, 5, 6], None)
    for key, expected in ((EVE, 403), ("nonsense", 401), (SERVICE, 200)):
        assert replay(node, "rest-log", key)[0] == expected
    assert replay(node, "rest-log?since=yesterday")[0] == 400
    assert replay(node, "rest-nothing")[0] == 404
    assert post(node, "/api/broadcast/rest-log/events/e", {}, EVE)[0] == 403


def test_what_the_service_stores_where_no_channel_is_expires(node: Node) -> None:
    path = "/api/broadcast/rest-brief/events/e?private=true&persist%5Bttl%5D=3600"
    assert post(node, path, {"n": 1}, SERVICE) == (202, None)
    assert post(node, "/api/broadcast/rest-brief/events/e?private=true&persist[ttl]=x", {}, SERVICE)[0] == 422
    rows = node.database.query(
        "select private, round(extract(epoch from expires_at - sent_at))::int from realtime.messages"
        " where topic = 'rest-brief'"
    )
    assert rows == [(True, 3600)]


def test_a_message_that_does_not_fit_the_channels_schema_is_refused_with_the_reason(node: Node) -> None:
    register(node, "rest-form", metadata={"schemas": {"e": {"type": "object", "required": ["n"]}}})
    status, answer = post(node, "/api/broadcast/rest-form/events/e", {"m": 1})
    assert (status, answer["error"]) == (422, "payload_invalid")
    assert "'n' is a required property" in answer["message"]
    assert post(node, "/api/broadcast/rest-form/events/e", {"n": 1}) == (202, None)


def test_a_batch_to_a_stored_room_keeps_its_order_and_shares_commits(node: Node) -> None:
    register(node, "rest-many")
    messages = [{"topic": "rest-many", "event": str(n), "payload": {}} for n in range(1000)]
    assert post(node, "/api/broadcast", {"messages": messages}) == (202, None)
    rows = node.database.query(
        "select event, sent_at from realtime.messages where topic = 'rest-many' order by sent_at, seq"
    )
    assert [event for event, _ in rows] == [str(n) for n in range(1000)]
    assert len({sent_at for _, sent_at in rows}) < 20
