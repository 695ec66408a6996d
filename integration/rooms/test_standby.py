"""A daemon that stands by for another one's slot serves rooms, and knows what the other one reads in the WAL."""

from __future__ import annotations

import trio

from integration.fixtures.daemon import token
from integration.fixtures.node import Node, eventually
from integration.fixtures.postgres import TestDatabase
from integration.fixtures.ws import PhoenixClient, phoenix
from integration.rooms.conftest import Start, enter, heard, say

SLOT = {"WALSTREAM_SLOT": "shared_slot"}


async def _until_heard(node: Node, client: PhoenixClient, topic: str) -> None:
    """SQL sends until it arrives; how soon a standby is known to be one is no matter here."""
    with trio.fail_after(20):
        number = 0
        while True:
            number += 1
            node.database.execute(
                "select realtime.send(jsonb_build_object('sql', %s), 'say', %s, false)",
                (number, topic.removeprefix("realtime:")),
            )
            with trio.move_on_after(0.5):
                while "sql" not in (await heard(client, topic))["payload"]:
                    pass
                return


def test_rooms_reach_over_to_who_stands_by(shared: TestDatabase, start: Start) -> None:
    topic = "realtime:hall"

    async def main() -> None:
        async with (
            phoenix(first.daemon.websocket_url, apikey=token()) as one,
            phoenix(second.daemon.websocket_url, apikey=token()) as two,
        ):
            await enter(one, topic)
            await enter(two, topic)
            await _until_heard(first, two, topic)
            with trio.fail_after(20):
                while True:
                    await say(one, topic, {"n": 1})
                    with trio.move_on_after(0.5):
                        while (await heard(two, topic))["payload"] != {"n": 1}:
                            pass
                        break
            await two.drain()
            first.daemon.kill()
            await trio.to_thread.run_sync(
                lambda: eventually(lambda: second.health()["reader"]["status"] == "streaming", seconds=90)
            )
            await _until_heard(second, two, topic)

    with start(shared, **SLOT) as first, start(shared, wait="/live", **SLOT) as second:
        eventually(lambda: second.health()["reader"]["status"] == "standby")
        trio.run(main)
