"""SIGHUP: the configuration is read again, and nobody loses a connection."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from integration.daemon.conftest import Node, Start, bearer
from integration.fixtures.daemon import SECRET, token
from integration.fixtures.node import eventually
from integration.fixtures.postgres import TestDatabase
from integration.fixtures.ws import phoenix

OTHER = "another-secret-for-tests-that-is-at-least-32-bytes"


class Reloadable:
    """A daemon and its configuration file."""

    def __init__(self, node: Node, path: Path) -> None:
        self.node = node
        self.path = path

    def reload(self, **values: object) -> str:
        """Write the file and tell the daemon; the event by which it says what it has made of that."""
        write(self.path, values)
        before = self.said()
        os.kill(self.node.daemon.pid, signal.SIGHUP)
        eventually(lambda: len(self.said()) > len(before))
        return self.said()[-1]

    def said(self) -> list[str]:
        events = [str(line.get("event")) for line in self.node.daemon.log()]
        return [event for event in events if event in ("config.reloaded", "config.refused")]

    def status(self, apikey: str) -> int:
        """Of a request that needs a token and nothing else."""
        headers = {"authorization": f"Bearer {apikey}"}
        found, _ = self.node.daemon.request("POST", "/api/broadcast/hall/events/e", b"{}", headers)
        return found


def write(path: Path, values: dict[str, object]) -> None:
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()), encoding="utf-8")


@pytest.fixture
def daemon(start: Start, prepared: TestDatabase, tmp_path: Path) -> Iterator[Reloadable]:
    path = tmp_path / "walstream.toml"
    write(path, {"jwt_secret": SECRET})
    with start(prepared, WALSTREAM_CONFIG=str(path), WALSTREAM_JWT_SECRET="") as node:
        del node.daemon.environ["WALSTREAM_JWT_SECRET"]
        node.daemon.restart()
        yield Reloadable(node, path)


def test_a_reload_changes_keys_and_limits_and_loses_nobody(daemon: Reloadable) -> None:
    node = daemon.node
    node.table("t")

    async def main() -> None:
        async with phoenix(node.daemon.websocket_url, apikey=bearer()) as client:
            await client.subscribe("realtime:t", {"event": "*", "schema": "public", "table": "t"})
            told = await trio.to_thread.run_sync(
                lambda: daemon.reload(jwt_secret=OTHER, api_keys="opaque=anon", log_level="debug", max_connections=1)
            )
            assert told == "config.reloaded"
            assert daemon.status(token(secret=OTHER)) == 202
            assert daemon.status("opaque") == 202
            assert daemon.status(bearer()) == 401
            node.database.execute("insert into t values (1, 'x')")
            assert (await client.changes(1))[0]["record"]["id"] == 1
            await client.join("realtime:seen at the new level")
            status, body = await trio.to_thread.run_sync(refused_upgrade)
            assert (status, json.loads(body)["code"]) == (429, "node_connections")

    def refused_upgrade() -> tuple[int, bytes]:
        headers = {
            "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        }  # fmt: skip
        return node.daemon.request("GET", "/realtime/v1/websocket?apikey=opaque&vsn=2.0.0", headers=headers)

    trio.run(main)
    assert any(line.get("level") == "debug" for line in node.daemon.log())
    assert OTHER not in node.daemon.log_path.read_text()
    assert node.daemon.is_running


def test_what_needs_a_restart_is_named(daemon: Reloadable) -> None:
    assert daemon.reload(jwt_secret=SECRET, slot="another", history_seconds=5) == "config.reloaded"
    line = next(line for line in daemon.node.daemon.log() if line.get("event") == "config.unreloadable")
    assert line["keys"] == ["history_seconds"], "the environment's slot wins over the file's"
    assert line["error"] == "needs a restart: history_seconds"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"jwt_secret": OTHER, "no_such_key": 1}, "no_such_key"),
        ({"jwt_secret": OTHER, "allowed_origins": "nonsense"}, "allowed_origins"),
        ({"jwt_secret": OTHER, "idle_seconds": "soon"}, "idle_seconds"),
    ],
)
def test_what_is_wrong_keeps_the_old_and_says_why(daemon: Reloadable, values: dict[str, object], words: str) -> None:
    assert daemon.reload(**values) == "config.refused"
    line = next(line for line in daemon.node.daemon.log() if line.get("event") == "config.refused")
    assert words in line["error"]
    assert (daemon.status(bearer()), daemon.status(token(secret=OTHER))) == (202, 401)
    assert daemon.reload(jwt_secret=OTHER) == "config.reloaded"
    assert (daemon.status(bearer()), daemon.status(token(secret=OTHER))) == (401, 202)


def test_what_could_not_be_read_may_be_let_go_by_a_reload(daemon: Reloadable) -> None:
    node = daemon.node
    node.table("t")
    node.database.execute(
        "create type failing;"
        "create function failing_in(cstring) returns failing language internal immutable strict as 'int4in';"
        "create function failing_out(failing) returns cstring language internal immutable strict as 'shell_out';"
        "create type failing (input = failing_in, output = failing_out, internallength = 4, passedbyvalue);"
    )
    node.table("bad", "id bigint primary key, f failing")

    async def main() -> None:
        async with phoenix(node.daemon.websocket_url, apikey=bearer()) as client:
            await client.subscribe("realtime:t", {"event": "*", "schema": "public", "table": "t"})
            node.database.execute("insert into bad values (1, '1')")
            node.database.execute("insert into t values (1, 'x')")
            await trio.to_thread.run_sync(lambda: eventually(lambda: node.health()["reader"]["status"] == "poisoned"))
            await trio.to_thread.run_sync(lambda: daemon.reload(jwt_secret=SECRET, poison="skip"))
            assert (await client.next("system", seconds=40)).payload["reason"] == "poison_skipped"
            assert (await client.changes(1, seconds=40))[0]["record"]["id"] == 1

    trio.run(main)
