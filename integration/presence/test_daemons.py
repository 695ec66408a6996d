"""Presence of daemons as their clients and tables have it: two of them, killed ones, and a database that crashes."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import trio

from integration.fixtures.daemon import Daemon, running_daemon, token
from integration.fixtures.node import eventually
from integration.fixtures.postgres import TestDatabase
from integration.fixtures.ws import PhoenixClient, phoenix

TOPIC = "realtime:lobby"
QUICK = {"WALSTREAM_HEARTBEAT_SECONDS": "1s"}
NODE_SECONDS = 60.0
"""Generous: a node that says nothing is gone after a quarter of that."""


async def enter(client: PhoenixClient, user: str) -> None:
    """Join the room and be present."""
    await client.join(TOPIC, config={"presence": {"key": user, "enabled": True}})
    told = {"type": "presence", "event": "track", "payload": {"name": user}}
    reply = await client.reply(await client.push(TOPIC, "presence", told))
    assert reply["status"] == "ok"


async def told(client: PhoenixClient, side: str, user: str, *, seconds: float = 15.0) -> list[dict[str, Any]]:
    """The metas with which ``user`` joins or leaves next."""
    while True:
        payload = (await client.next("presence_diff", topic=TOPIC, seconds=seconds)).payload
        if user in payload[side]:
            metas: list[dict[str, Any]] = payload[side][user]["metas"]
            return metas


def client_of(daemon: Daemon, user: str) -> AbstractAsyncContextManager[PhoenixClient]:
    """A client with a token of its own."""
    return phoenix(daemon.websocket_url, apikey=token("anon", sub=user))


def people(database: TestDatabase) -> dict[str, str]:
    """By user: the status in the room's rows."""
    return dict(database.query("select user_id, status from realtime.presence where topic = 'lobby'"))


def connections(database: TestDatabase) -> dict[str, list[str]]:
    """Ids of connections of somebody, by status."""
    found: dict[str, list[str]] = {}
    for status, name in database.query("select status, connection_id from realtime.connections where user_id <> ''"):
        found.setdefault(status, []).append(name)
    return found


def test_a_killed_daemons_people_leave_and_its_successor_puts_the_tables_right(
    prepared: TestDatabase, tmp_path: Path
) -> None:
    with (
        running_daemon(prepared.dsn, tmp_path, QUICK) as near,
        running_daemon(prepared.dsn, tmp_path, QUICK) as far,
    ):

        async def main() -> None:
            async with client_of(near, "ada") as ada:
                await enter(ada, "ada")
                async with client_of(far, "bob") as bob:
                    await enter(bob, "bob")
                    assert [meta["name"] for meta in await told(ada, "joins", "bob")] == ["bob"]
                    state = (await bob.next("presence_state", topic=TOPIC)).payload
                    if "ada" not in state:
                        await told(bob, "joins", "ada")
                    await trio.to_thread.run_sync(eventually, lambda: len(people(prepared)) == 2)
                    far.kill()
                    await told(ada, "leaves", "bob", seconds=NODE_SECONDS)
            await trio.to_thread.run_sync(eventually, lambda: people(prepared)["ada"] == "offline")

        trio.run(main)
        assert any(line["event"] == "peer.lost" for line in near.log())
        assert people(prepared)["bob"] == "online", "nobody has looked yet"
        far.start()
        eventually(lambda: people(prepared) == {"ada": "offline", "bob": "offline"})
        eventually(lambda: list(connections(prepared)) == ["disconnected"])
        assert len(connections(prepared)["disconnected"]) == 2


def test_a_connection_has_one_name_in_table_and_log(prepared: TestDatabase, tmp_path: Path) -> None:
    with running_daemon(prepared.dsn, tmp_path, QUICK) as daemon:

        async def main() -> str:
            async with client_of(daemon, "ada") as ada:
                await enter(ada, "ada")
                await trio.to_thread.run_sync(eventually, lambda: connections(prepared))
            ((name,),) = connections(prepared).values()
            return name

        name = trio.run(main)
        assert name.startswith("conn-")
        eventually(lambda: connections(prepared) == {"disconnected": [name]})
        assert [line["session_id"] for line in daemon.log() if line["event"] == "socket.closed"] == [name]


def test_presence_goes_on_while_the_database_is_down_and_is_there_again_afterwards(
    fragile: TestDatabase, tmp_path: Path
) -> None:
    with running_daemon(fragile.dsn, tmp_path, QUICK) as daemon:

        async def main() -> None:
            async with client_of(daemon, "ada") as ada, client_of(daemon, "bob") as bob:
                await enter(ada, "ada")
                await enter(bob, "bob")
                await trio.to_thread.run_sync(eventually, lambda: people(fragile) == {"ada": "online", "bob": "online"})
                fragile.close()
                fragile.cluster.kill()
                await ada.reply(await ada.push(TOPIC, "presence", {"type": "presence", "event": "untrack"}))
                await told(bob, "leaves", "ada")
                changed = {"type": "presence", "event": "track", "payload": {"name": "bob", "status": "away"}}
                await bob.reply(await bob.push(TOPIC, "presence", changed))
                while (await told(ada, "joins", "bob"))[0].get("status") != "away":
                    pass
                fragile.cluster.start()
                await trio.to_thread.run_sync(eventually, lambda: people(fragile) == {"bob": "away"})
                await trio.to_thread.run_sync(eventually, lambda: len(connections(fragile).get("connected", [])) == 2)

        trio.run(main)
