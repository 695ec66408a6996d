"""Between replay and live nothing is missing and nothing comes twice, while a writer never stops."""

from __future__ import annotations

import itertools
import threading
import time

import pytest
import trio

from integration.fixtures.daemon import token
from integration.fixtures.node import Node
from integration.fixtures.ws import PhoenixClient, phoenix
from integration.rooms.conftest import enter, heard, register, say

JOINS = 12


def _insert(node: Node, slug: str, stop: threading.Event) -> None:
    """Write through SQL as fast as one session can."""
    connection = node.database.connect()
    number = 0
    with connection.cursor() as cursor:
        while not stop.is_set():
            number += 1
            cursor.execute("select realtime.send(jsonb_build_object('n', %s), 'say', %s)", (number, slug))
    connection.close()


async def _broadcast(node: Node, slug: str, stop: threading.Event) -> None:
    """Write as a client."""
    async with phoenix(node.daemon.websocket_url, apikey=token("service_role")) as client:
        topic = f"realtime:{slug}"
        await enter(client, topic, private=True)
        number = 0
        while not stop.is_set():
            number += 1
            assert (await say(client, topic, {"n": number}))["status"] == "ok"


async def _seam(node: Node, topic: str) -> None:
    """Join with a replay, and read on until well behind the seam."""
    async with phoenix(node.daemon.websocket_url, apikey=token("authenticated", sub="ada")) as client:
        replay = {"since": int((time.time() - 60) * 1000), "limit": 25}
        await enter(client, topic, broadcast={"replay": replay}, private=True)
        numbers: list[int] = []
        ids: list[str] = []
        replayed = 0
        while len(numbers) < replayed + 40:
            message = await heard(client, topic)
            numbers.append(message["payload"]["n"])
            ids.append(message["meta"]["id"])
            replayed += message["meta"].get("replayed", False)
        assert replayed
        steps = [(before, after) for before, after in itertools.pairwise(numbers) if after != before + 1]
        assert not steps, (numbers[0], replayed, numbers[-1])
        assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("writer", ["sql", "client"])
def test_a_replay_goes_over_into_what_is_live(node: Node, writer: str) -> None:
    slug = f"seam-{writer}"
    register(node, slug, "private", "ada")
    stop = threading.Event()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            try:
                if writer == "sql":
                    nursery.start_soon(trio.to_thread.run_sync, _insert, node, slug, stop)
                else:
                    nursery.start_soon(_broadcast, node, slug, stop)
                await trio.sleep(0.3)  # so that there is something to replay
                for _ in range(JOINS):
                    await _seam(node, f"realtime:{slug}")
            finally:
                stop.set()

    trio.run(main)


async def _last(client: PhoenixClient, topic: str) -> list[int]:
    return [frame.payload["payload"]["n"] for frame in await client.drain() if frame.event == "broadcast"]


def test_replay_begins_where_it_is_asked_to_and_is_bounded(node: Node) -> None:
    register(node, "bounded", "public")

    async def main() -> None:
        topic = "realtime:bounded"
        async with phoenix(node.daemon.websocket_url, apikey=token()) as writer:
            await enter(writer, topic)
            for number in range(30):
                await say(writer, topic, {"n": number})
            rows = node.database.query(
                "select (extract(epoch from sent_at) * 1000)::bigint from realtime.messages"
                " where topic = 'bounded' order by seq"
            )
            for since, limit, expected in (
                (0, 1000, list(range(5, 30))),
                (0, 3, [27, 28, 29]),
                (rows[-1][0] + 60_000, 10, []),
            ):
                async with phoenix(node.daemon.websocket_url, apikey=token(), vsn="1.0.0") as reader:
                    await enter(reader, topic, broadcast={"replay": {"since": since, "limit": limit}})
                    assert await _last(reader, topic) == expected

    trio.run(main)
