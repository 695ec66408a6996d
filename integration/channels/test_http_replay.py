"""Stored messages over HTTP, from a real table: pages, times in every form, and who may read."""

from __future__ import annotations

import base64
from typing import Any

import trio

from integration.channels.rooms_rig import Rig, message, register, running
from integration.fixtures.daemon import SECRET, token
from integration.fixtures.postgres import TestDatabase
from tests.shell.http_support import Answer, ask
from walstream.auth.tokens import Verifier
from walstream.rooms import Broadcast, RoomKey
from walstream.shell.clients.http_replay import routes

REPLAY = "/api/realtime/replay/"
KEPT = 1_000_000  # hours: the messages of these tests are old


async def get(rig: Rig, target: str, sub: str = "ann", role: str = "authenticated", **headers: str) -> Answer:
    given = headers or {"authorization": f"Bearer {token(role, sub=sub)}"}
    return await ask(routes(rig.directory, rig.store, Verifier(SECRET)), "GET", REPLAY + target, headers=given)


def events(answer: Answer) -> list[str]:
    assert answer.status == 200, answer
    return [found["event"] for found in answer.json["messages"]]


def fill(database: TestDatabase, topic: str, count: int = 10) -> None:
    database.execute(
        "insert into realtime.messages (topic, event, payload, sender_id, sent_at)"
        " select %s, n::text, jsonb_build_object('n', n), 'bob',"
        " '2026-01-01 00:00:00Z'::timestamptz + n * interval '1 s' from generate_series(0, %s) n",
        (topic, count - 1),
    )


def test_pages_of_a_public_channel(prepared: TestDatabase) -> None:
    register(prepared, retention_hours=KEPT)
    fill(prepared, "general")
    rig = Rig(prepared)

    async def main() -> None:
        async with running(rig, stream=False):
            first = await get(rig, "general?since=1767225602000&limit=3")
            assert events(first) == ["2", "3", "4"]
            shown: dict[str, Any] = first.json["messages"][0]
            assert {name: shown[name] for name in shown if name not in ("id", "seq")} == {
                "event": "2", "event_type": "2", "payload": {"n": 2}, "sender_id": "bob",
                "sent_at": "2026-01-01T00:00:02+00:00",
            }  # fmt: skip
            second = await get(rig, f"general?since={first.json['next']}&limit=5")
            assert events(second) == ["5", "6", "7", "8", "9"]
            assert second.json["next"] is None
            assert events(await get(rig, f"general?since={second.json['last']}")) == []
            await rig.append(message("new"), channel_id=None)
            assert events(await get(rig, f"general?since={second.json['last']}")) == ["new"]
            for since in ("1767225607", "1767225606.5", "2026-01-01T00:00:07Z", "2026-01-01T02:00:07%2B02:00",
                          "2026-01-01T02:00:07+02:00", "2026-01-01T00:00:07"):  # fmt: skip
                assert events(await get(rig, f"general?since={since}"))[0] == "7"
            assert len(events(await get(rig, "general"))) == 11
            for name in ("realtime%3Ageneral", str(prepared.scalar("select id::text from realtime.channels")).upper()):
                assert len(events(await get(rig, name))) == 11

    trio.run(main)


def test_only_members_read_a_private_channel(prepared: TestDatabase) -> None:
    channel_id = register(prepared, "team/a ü", "private", retention_hours=KEPT)
    prepared.execute("insert into realtime.channel_members (channel_id, user_id) values (%s, 'ann')", (channel_id,))
    fill(prepared, "team/a ü", 1)
    rig = Rig(prepared)

    async def main() -> None:
        async with running(rig, stream=False):
            name = "team%2Fa%20%C3%BC"
            assert events(await get(rig, name)) == ["0"]
            assert events(await get(rig, "team/a%20%C3%BC")) == ["0"]
            assert events(await get(rig, name, role="service_role")) == ["0"]
            assert events(await get(rig, channel_id, role="service_role")) == ["0"]
            refused = await get(rig, name, sub="eve")
            assert (refused.status, refused.json["error"]) == (403, "forbidden")
            assert "repair" in refused.json
            assert (await get(rig, channel_id, sub="eve")).status == 403
            assert not rig.directory._topics

    trio.run(main)


def test_a_topic_without_a_channel_has_a_history_if_something_was_stored(prepared: TestDatabase) -> None:
    prepared.execute("select realtime.send('{}', 'open', 'lobby', false)")
    prepared.execute("select realtime.send('{}', 'closed', 'lobby', true)")
    prepared.execute("select realtime.send_binary('\\x00ff', 'bytes', 'bin', false)")
    rig = Rig(prepared)

    async def main() -> None:
        async with running(rig, stream=False):
            assert events(await get(rig, "lobby")) == ["open"]
            assert (await get(rig, "lobby?private=true")).status == 403
            assert events(await get(rig, "lobby?private=true", role="service_role")) == ["closed"]
            (binary,) = (await get(rig, "bin")).json["messages"]
            assert (binary["payload"], base64.b64decode(binary["binary_payload"])) == (None, b"\0\xff")
            missing = await get(rig, "nowhere")
            assert (missing.status, missing.json["error"]) == (404, "not_found")

    trio.run(main)


def test_what_is_wrong_with_a_request_is_told_with_its_repair(prepared: TestDatabase) -> None:
    rig = Rig(prepared)

    async def main() -> None:
        async with running(rig, stream=False):
            for query, code in (
                ("since=soon", "invalid_since"), ("since=%F0%9F%98%80", "invalid_since"), ("since=-1", "invalid_since"),
                ("limit=0", "invalid_limit"), ("limit=1001", "invalid_limit"), ("limit=x", "invalid_limit"),
                ("limit=", "invalid_limit"),
            ):  # fmt: skip
                answer = await get(rig, f"general?{query}")
                assert (answer.status, answer.json["error"]) == (400, code), query
                assert answer.json["repair"]
            for headers in ({"apikey": "x"}, {"x-nothing": ""}):
                answer = await get(rig, "general", **headers)
                assert (answer.status, answer.json["error"]) == (401, "unauthorized")
            assert (await get(rig, "")).status == 404
            assert (await get(rig, "%FF")).status == 404
            assert (await get(rig, "a'; drop table x; --%00")).status == 404

    trio.run(main)


def test_a_database_that_is_away_is_told(fragile: TestDatabase) -> None:
    register(fragile)
    rig = Rig(fragile)

    async def main() -> None:
        async with running(rig, stream=False):
            fragile.close()
            fragile.cluster.stop()
            for name in ("general", "secret?private=true"):
                answer = await get(rig, name)
                assert (answer.status, answer.json["error"]) == (503, "database_unreachable")

    trio.run(main)


def test_a_request_that_goes_away_leaves_no_seat(prepared: TestDatabase) -> None:
    register(prepared)
    rig = Rig(prepared)

    async def main() -> None:
        async with running(rig, stream=False):
            with trio.move_on_after(0):
                await get(rig, "general")
            await trio.sleep(0.2)
            assert not rig.directory._topics
            stored = await rig.append(message(room=RoomKey("x")), channel_id=None)
            assert isinstance(stored, Broadcast)

    trio.run(main)
