"""What the command line does, as clients of a running daemon see it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import trio

from integration.cli.conftest import InProcess
from integration.fixtures.daemon import running_daemon, token
from integration.fixtures.postgres import TestDatabase
from integration.fixtures.ws import PhoenixClient, phoenix


async def quiet(client: PhoenixClient) -> list[str]:
    """Events that have come and nobody has asked for, without the answers to us."""
    return [frame.event for frame in await client.drain() if frame.event != "phx_reply"]


async def presences(client: PhoenixClient, topic: str, key: str) -> dict[str, Any]:
    """The joins or leaves of the first diff that names a person."""
    while True:
        diff = (await client.next("presence_diff", topic=topic)).payload
        if key in diff["joins"] or key in diff["leaves"]:
            return {kind: diff[kind][key]["metas"][0] for kind in ("joins", "leaves") if key in diff[kind]}


@pytest.mark.parametrize("vsn", ["1.0.0", "2.0.0"])
def test_clients_see_what_the_command_line_does(
    run: InProcess, prepared: TestDatabase, tmp_path: Path, vsn: str
) -> None:
    run.ok("channel", "create", "general")
    run.ok("channel", "create", "closed", "private")
    run.ok("channel", "join", "closed", "u1")
    run.ok("broadcast", "general", "before", "0")

    def command(*arguments: str) -> str:
        return run.ok(*arguments).out.strip()

    async def scenario(url: str) -> None:
        async with phoenix(url, apikey=token("authenticated", sub="u1"), vsn=vsn) as client:
            await client.join("realtime:general", config={"presence": {"key": "", "enabled": True}})
            await client.next("presence_state", topic="realtime:general")
            await client.join("realtime:closed", config={"private": True})

            sent = command("broadcast", "general", "user.joined", '{"n": 1.10}', "u9")
            frame = await client.next("broadcast", topic="realtime:general")
            assert (frame.payload["event"], frame.payload["payload"], frame.payload["meta"]["id"]) == (
                "user.joined", {"n": 1.1}, sent
            )  # fmt: skip
            secret = command("broadcast", "closed", "secret", '"x"')
            assert (await client.next("broadcast", topic="realtime:closed")).payload["meta"]["id"] == secret
            command("message", "hide", secret)
            taken = (await client.next("broadcast", topic="realtime:closed")).payload
            assert (taken["event"], taken["payload"]["id"]) == ("message.hidden", secret)

            command("presence", "track", "bot", "general", "online", '{"level": 5}')
            joined = await presences(client, "realtime:general", "bot")
            assert (joined["joins"]["level"], "leaves" in joined) == (5, False)
            command("presence", "track", "bot", "general", "away", '{"level": 6}')
            changed = await presences(client, "realtime:general", "bot")
            assert (changed["joins"]["level"], changed["leaves"]["level"]) == (6, 5)
            command("presence", "offline", "bot", "general")
            assert set(await presences(client, "realtime:general", "bot")) == {"leaves"}

            assert await quiet(client) == []
            command("channel", "leave", "closed", "u1")
            await client.next("phx_close", topic="realtime:closed")
            command("channel", "delete", "general", "true")
            await client.next("phx_close", topic="realtime:general")

            deadline = time.monotonic() + 10
            while command("connections", "--count") != "1":
                assert time.monotonic() < deadline
                await trio.sleep(0.1)
            (row,) = run.json("connections", "--wide")
            assert (row["user_id"], row["status"], row["connection_id"][:5]) == ("u1", "connected", "conn-")
            assert run.json("connections", "--live", "--count") == {"count": 1}

    with running_daemon(prepared.dsn, tmp_path) as daemon:
        run.environ |= daemon.environ
        trio.run(scenario, daemon.websocket_url)
