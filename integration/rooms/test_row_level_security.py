"""The policies that are shipped as samples, and the ones that users of other servers bring along."""

from __future__ import annotations

import json

import psycopg2
import pytest
import trio

from integration.fixtures.daemon import token
from integration.fixtures.postgres import TestDatabase
from integration.fixtures.ws import phoenix
from integration.rooms.conftest import Start, enter, heard, register, say
from walstream.shell.commands.migrate import schema_dir

ADA, BOB = "11111111-1111-1111-1111-111111111111", "22222222-2222-2222-2222-222222222222"

GIVEN = """
ALTER TABLE realtime.channels ENABLE ROW LEVEL SECURITY;
GRANT SELECT ON realtime.channels, realtime.channel_members TO authenticated;
CREATE POLICY "Users can view channels they are members of" ON realtime.channels
  FOR SELECT USING (id IN (SELECT channel_id FROM realtime.channel_members WHERE user_id = auth.uid()::text));
"""


def as_person(database: TestDatabase, sub: str, statement: str) -> list[tuple[object, ...]]:
    """What somebody's own SQL answers, by way of a server that sets role and claims."""
    connection = database.connect()
    connection.autocommit = False
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute("set local role authenticated")
            claims = json.dumps({"sub": sub, "role": "authenticated"})
            cursor.execute("select set_config('request.jwt.claims', %s, true)", (claims,))
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


@pytest.fixture
def sampled(prepared: TestDatabase) -> TestDatabase:
    prepared.execute((schema_dir() / "samples" / "row-level-security.sql").read_text(encoding="utf-8"))
    return prepared


def test_samples_show_everybody_what_is_theirs(sampled: TestDatabase, start: Start) -> None:
    with start(sampled) as node:
        register(node, "open", "public")
        register(node, "team", "private", ADA)
        sampled.execute(
            "update realtime.channels set metadata = '{\"max_members\": 2}' where slug = 'team';"
            f"insert into realtime.channel_members (channel_id, user_id, muted)"
            f" select id, '{BOB}', true from realtime.channels where slug = 'team'"
        )
        slugs = "select slug from realtime.channels order by slug"
        assert as_person(sampled, ADA, slugs) == [("open",), ("team",)]
        assert as_person(sampled, "eve", slugs) == [("open",)]
        assert as_person(sampled, ADA, "select user_id from realtime.channel_members") == [(ADA,)]
        with pytest.raises(psycopg2.errors.CheckViolation):  # the bound is still seen by its trigger
            sampled.execute(
                "insert into realtime.channel_members (channel_id, user_id)"
                " select id, 'carl' from realtime.channels where slug = 'team'"
            )

        async def main() -> None:
            url = node.daemon.websocket_url
            ada, eve = (token("authenticated", sub=name) for name in (ADA, "eve"))
            async with phoenix(url, apikey=ada) as one, phoenix(url, apikey=eve) as other:
                await enter(one, "realtime:team", private=True)
                assert (await say(one, "realtime:team", {"n": 1}))["status"] == "ok"
                send = "select realtime.send('{\"n\": 2}'::jsonb, 'greet', 'team', true)"
                await trio.to_thread.run_sync(as_person, sampled, ADA, send)
                assert (await heard(one, "realtime:team"))["payload"]["n"] == 2
                for topic, may in (
                    ("realtime:team", False),
                    (f"realtime:user:{ADA}", False),
                    ("realtime:user:eve", True),
                ):
                    reply = await other.reply(await other.push(topic, "phx_join", {"config": {"private": True}}))
                    assert (reply["status"] == "ok") == may, topic
                acked = {"type": "broadcast", "event": "e", "payload": {}}
                await enter(other, "realtime:user:eve", private=True)
                answer = await other.reply(await other.push("realtime:user:eve", "broadcast", acked))
                assert answer["status"] == "ok"

        trio.run(main)
        before = sampled.scalar("select count(*) from realtime.messages")
        for who in (BOB, "eve"):  # muted, and no member: a warning, and no message
            as_person(sampled, who, "select realtime.send('{}'::jsonb, 'e', 'team', true)")
        assert sampled.scalar("select count(*) from realtime.messages") == before
        assert as_person(sampled, ADA, "select count(*) > 0 from realtime.messages") == [(True,)]
        assert as_person(sampled, "eve", "select count(*) from realtime.messages") == [(0,)]
        node.assert_unharmed()


def test_a_policy_of_another_server_works_with_a_cast(prepared: TestDatabase, start: Start) -> None:
    prepared.execute(GIVEN)
    with start(prepared) as node:
        register(node, "open", "public")
        register(node, "team", "private", ADA)
        slugs = "select slug from realtime.channels"
        assert as_person(prepared, ADA, slugs) == [("team",)]
        assert as_person(prepared, BOB, slugs) == []

        async def main() -> None:
            async with phoenix(node.daemon.websocket_url, apikey=token("authenticated", sub=ADA)) as ada:
                await enter(ada, "realtime:team", private=True)
                await enter(ada, "realtime:open")

        trio.run(main)
