"""Rooms over two daemons that share nothing but the database: what a client of each sees of the other."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from integration.bus.conftest import Start
from integration.fixtures.daemon import token
from integration.fixtures.node import Node, eventually
from integration.fixtures.postgres import TestDatabase
from integration.fixtures.ws import PhoenixClient, phoenix

TOPIC = "realtime:hall"
CONFIG = {"presence": {"enabled": True, "key": ""}}


async def send(client: PhoenixClient, n: object, size: int = 0) -> None:
    payload = {"type": "broadcast", "event": "e", "payload": {"n": n, "text": "x" * size}}
    await client.push(TOPIC, "broadcast", payload, join_ref="1")


async def heard(client: PhoenixClient) -> Any:
    return (await client.next("broadcast", topic=TOPIC, seconds=20)).payload["payload"]["n"]


async def track(client: PhoenixClient, name: str) -> None:
    payload = {"type": "presence", "event": "track", "payload": {"name": name}}
    await client.push(TOPIC, "presence", payload, join_ref="1")


async def told(client: PhoenixClient, side: str, name: str, seconds: float = 40) -> None:
    """Wait for a diff that says that ``name`` came or went."""
    with trio.fail_after(seconds):
        while True:
            diff = (await client.next("presence_diff", topic=TOPIC, seconds=seconds)).payload
            if any(meta.get("name") == name for entry in diff[side].values() for meta in entry["metas"]):
                return


async def meet(one: PhoenixClient, two: PhoenixClient) -> None:
    """Until each hears the other: the daemons have found each other."""
    for speaker, listener in ((one, two), (two, one)):
        while True:
            await send(speaker, "hello")
            with trio.move_on_after(0.5):
                assert await heard(listener) == "hello"
                break
    await trio.sleep(0)
    for client in (one, two):
        await client.drain()


def scene(first: Node, second: Node, test: Callable[[PhoenixClient, PhoenixClient], Awaitable[None]]) -> None:
    async def main() -> None:
        async with (
            phoenix(first.daemon.websocket_url, apikey=token()) as one,
            phoenix(second.daemon.websocket_url, apikey=token()) as two,
        ):
            for client in (one, two):
                await client.join(TOPIC, config=CONFIG)
            await meet(one, two)
            await test(one, two)

    trio.run(main)


def connections(node: Node, like: str) -> list[int]:
    return [
        pid
        for (pid,) in node.database.query(
            "select pid from pg_stat_activity where datname = current_database() and application_name like %s", (like,)
        )
    ]


@pytest.mark.parametrize("environ", [{}, {"WALSTREAM_JWT_SECRET": "", "WALSTREAM_API_KEYS": "key=anon"}])
def test_broadcasts_cross_in_order_whatever_their_size(
    prepared: TestDatabase, start: Start, environ: dict[str, str]
) -> None:
    """With a secret, and without one."""

    async def test(one: PhoenixClient, two: PhoenixClient) -> None:
        for n in range(100):
            await send(one, n, 400_000 if n % 40 == 20 else n * 50)
        assert [await heard(two) for _ in range(100)] == list(range(100))

    key = environ and "key"

    async def main() -> None:
        with start(prepared, **environ) as first, start(prepared, WALSTREAM_SLOT="second", **environ) as second:
            async with (
                phoenix(first.daemon.websocket_url, apikey=key or token()) as one,
                phoenix(second.daemon.websocket_url, apikey=key or token()) as two,
            ):
                for client in (one, two):
                    await client.join(TOPIC)
                await meet(one, two)
                await test(one, two)

    trio.run(main)


def test_presences_are_of_both_and_outlive_a_broken_connection(prepared: TestDatabase, start: Start) -> None:
    with start(prepared) as first, start(prepared, WALSTREAM_SLOT="second") as second:

        async def test(one: PhoenixClient, two: PhoenixClient) -> None:
            await track(one, "ada")
            await told(two, "joins", "ada")
            for pid in connections(first, "walstream (bus%"):
                prepared.execute("select pg_terminate_backend(%s)", (pid,))
            await track(two, "bob")
            await told(one, "joins", "bob")
            async with phoenix(second.daemon.websocket_url, apikey=token()) as late:
                await late.join(TOPIC, config=CONFIG)
                state = (await late.next("presence_state", topic=TOPIC)).payload
                assert sorted(meta["name"] for entry in state.values() for meta in entry["metas"]) == ["ada", "bob"]
            frames = [*await one.drain(), *await two.drain()]
            left = [frame.payload["leaves"] for frame in frames if frame.event == "presence_diff"]
            assert not any(left)

        scene(first, second, test)


def test_who_was_on_a_daemon_that_stops_has_left_at_once(prepared: TestDatabase, start: Start) -> None:
    with start(prepared) as first, start(prepared, WALSTREAM_SLOT="second") as second:

        async def test(one: PhoenixClient, two: PhoenixClient) -> None:
            await track(two, "bob")
            await told(one, "joins", "bob")
            await trio.to_thread.run_sync(second.daemon.stop)
            await told(one, "leaves", "bob", seconds=10)

        scene(first, second, test)


def test_stored_messages_come_once_and_in_order_whoever_writes_them(prepared: TestDatabase, start: Start) -> None:
    """They come by NOTIFY and by the WAL, to each daemon."""
    prepared.execute(
        "insert into realtime.channels (slug, name, type, persist) values ('hall', 'Hall', 'public', true)"
    )
    with start(prepared) as first, start(prepared, WALSTREAM_SLOT="second") as second:
        for node in (first, second):
            eventually(node.knows_channels)

        async def test(one: PhoenixClient, two: PhoenixClient) -> None:
            for n in range(150):
                await send(one if n % 2 else two, n, 8000 if n % 50 == 7 else 10)
            environ = {**os.environ, "WALSTREAM_DATABASE_URL": prepared.dsn}
            for n in range(3):
                command = [sys.executable, "-m", "walstream", "broadcast", "hall", "e", json.dumps({"n": f"cli {n}"})]
                await trio.run_process(command, env=environ, capture_stdout=True)
            prepared.execute("select realtime.send('{\"n\": \"sql\"}', 'e', 'hall', false)")
            for client, other in ((one, 0), (two, 1)):
                seen: list[Any] = []
                while "sql" not in seen:
                    seen.append(await heard(client))
                await trio.sleep(0.5)
                seen += [frame.payload["payload"]["n"] for frame in await client.drain() if frame.event == "broadcast"]
                assert sorted(map(str, seen)) == sorted(
                    map(str, [*range(other, 150, 2), "cli 0", "cli 1", "cli 2", "sql"])
                )
                assert [n for n in seen if isinstance(n, int)] == list(range(other, 150, 2))

        scene(first, second, test)
