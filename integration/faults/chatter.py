"""Everything beside row changes: guests who come, talk and go, and broadcasts from SQL and over HTTP.

Nobody judges what they hear: broadcasts and presence are told to who is there. They are load for a daemon that has to
stay as small as it was.
"""

from __future__ import annotations

import contextlib
import json
import random

import psycopg2
import trio
import trio_websocket

from integration.fixtures.beside import Beside
from integration.fixtures.daemon import Daemon, token
from integration.fixtures.postgres import TestDatabase
from integration.fixtures.ws import PhoenixClient, phoenix

TOPICS = tuple(f"realtime:room-{number}" for number in range(5))
GUESTS = 8
_ENDS = (OSError, AssertionError, trio_websocket.HandshakeError, trio_websocket.ConnectionClosed, trio.TooSlowError)
"""What a guest meets whose daemon or database has just gone: frames that do not come are assertions of the client."""


class Chatter(Beside):
    """Used as a context manager. ``url``: of the WebSocket, maybe through a proxy."""

    def __init__(self, daemon: Daemon, database: TestDatabase, url: str, seed: int) -> None:
        super().__init__(self._talk, self._announce)
        self._daemon = daemon
        self._database = database
        self._url = url
        self._rng = random.Random(seed)
        self._token = token("anon", seconds=86_400)  # one, as an application has: requests of each key are counted

    def _talk(self) -> None:
        trio.run(self._main)

    async def _main(self) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(GUESTS):
                nursery.start_soon(self._come_and_go)
            while not self.over.is_set():
                await trio.sleep(0.2)
            nursery.cancel_scope.cancel()

    async def _come_and_go(self) -> None:
        while True:
            try:
                async with phoenix(self._url, apikey=self._token) as client:
                    with trio.move_on_after(self._rng.uniform(2, 20)):
                        await self._visit(client)
            except* _ENDS:
                pass
            await trio.sleep(self._rng.uniform(0.1, 1.0))

    async def _visit(self, client: PhoenixClient) -> None:
        for topic in self._rng.sample(TOPICS, 2):
            await client.join(topic, config={"presence": {"key": "", "enabled": True}, "broadcast": {"self": True}})
        await client.push(topic, "presence", {"type": "presence", "event": "track", "payload": {"mood": "busy"}})
        while True:
            words = {"type": "broadcast", "event": "word", "payload": {"text": "x" * self._rng.randrange(2000)}}
            await client.push(self._rng.choice(TOPICS), "broadcast", words)
            await client.drain()
            await trio.sleep(self._rng.uniform(0.01, 0.2))

    def _announce(self) -> None:
        """Broadcasts from SQL and over HTTP; few, for the newest ones are remembered, and that is no leak."""
        connection = None
        while not self.over.wait(self._rng.uniform(1.0, 3.0)):
            topic = self._rng.choice(TOPICS).removeprefix("realtime:")
            message = {"topic": topic, "event": "news", "payload": {"n": self._rng.randrange(1000)}, "private": False}
            with contextlib.suppress(OSError):
                self._daemon.request(
                    "POST", "/api/broadcast", json.dumps({"messages": [message]}).encode(),
                    {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"},
                )  # fmt: skip
            try:
                if connection is None:
                    connection = self._database.connect()
                with connection.cursor() as cursor:
                    cursor.execute("select realtime.send('{\"n\": 1}', 'news', %s, false)", (topic,))
            except psycopg2.Error:
                connection = None
        if connection is not None:
            connection.close()
