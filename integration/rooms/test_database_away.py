"""The database stops under traffic: what lives in rooms goes on, and of what was to be stored nothing is promised."""

from __future__ import annotations

import json
from typing import Any

import trio

from integration.fixtures.daemon import token
from integration.fixtures.node import eventually
from integration.fixtures.postgres import TestDatabase
from integration.fixtures.ws import phoenix
from integration.rooms.conftest import Start, enter, heard, register, say, track

AWAY_SECONDS = 8.0
OPEN, STORED = "realtime:open", "realtime:kept"


def test_rooms_go_on_and_the_history_has_all_that_was_promised(fragile: TestDatabase, start: Start) -> None:
    acked: list[int] = []
    refused: list[str] = []

    async def main() -> None:
        async with (
            phoenix(running.daemon.websocket_url, apikey=token()) as one,
            phoenix(running.daemon.websocket_url, apikey=token()) as two,
            phoenix(running.daemon.websocket_url, apikey=token()) as writer,
        ):
            for client in (one, two):
                await enter(client, OPEN, presence={"key": "", "enabled": True})
            await enter(writer, STORED)
            done = trio.Event()

            async def keep_writing() -> None:
                number = 0
                while not done.is_set():
                    number += 1
                    answer: dict[str, Any] = await say(writer, STORED, {"n": number})
                    if answer["status"] == "ok":
                        acked.append(number)
                    else:
                        refused.append(answer["response"]["error"])
                    await trio.sleep(0.01)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(keep_writing)
                await trio.sleep(0.5)
                await trio.to_thread.run_sync(fragile.cluster.stop, "immediate")
                began = trio.current_time()
                number = 0
                while trio.current_time() < began + AWAY_SECONDS:
                    number += 1
                    assert (await say(one, OPEN, {"n": number}))["status"] == "ok"
                    assert (await heard(two, OPEN, seconds=2))["payload"] == {"n": number}
                    assert (await track(one, OPEN, {"n": number}))["status"] == "ok"
                    diff = (await two.next("presence_diff", seconds=2)).payload
                    assert [each["metas"][0]["n"] for each in diff["joins"].values()] == [number]
                async with phoenix(running.daemon.websocket_url, apikey=token()) as late:
                    await enter(late, OPEN)  # somebody who comes meanwhile is let in
                    await say(one, OPEN, {"late": True})
                    assert (await heard(late, OPEN))["payload"] == {"late": True}
                await trio.to_thread.run_sync(fragile.cluster.start)
                before = len(acked)
                with trio.fail_after(30):
                    while len(acked) < before + 20:
                        await trio.sleep(0.05)
                done.set()

    with start(fragile) as running:
        register(running, "kept")
        trio.run(main)
        eventually(lambda: running.health()["reader"]["status"] == "streaming")
    fragile.close()  # its connection has not survived
    stored = [
        json.loads(row[0])["n"]
        for row in fragile.query("select payload::text from realtime.messages where topic = 'kept' order by seq")
    ]
    assert set(acked) <= set(stored)
    assert len(stored) == len(set(stored))
    assert refused
    assert set(refused) <= {"unable_to_connect_to_project"}
