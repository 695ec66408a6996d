"""The official Python client, driven by JSON lines: commands on stdin, what the client tells on stdout.

Usage: python driver.py python URL KEY. The counterpart of driver.mjs; started by ``official.py``.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from realtime import AsyncRealtimeChannel, AsyncRealtimeClient


def tell(kind: str, channel: str | None, **fields: object) -> None:
    """Print one line for the test."""
    print(json.dumps({"kind": kind, "channel": channel, **fields}, default=str), flush=True)


class Driver:
    """Runs commands on one client."""

    def __init__(self, client: AsyncRealtimeClient) -> None:
        self.client = client
        self.channels: dict[str, AsyncRealtimeChannel] = {}

    async def join(self, command: dict[str, Any]) -> None:
        """Bind and subscribe."""
        name = command["channel"]
        options: Any = {
            "config": {
                "broadcast": {"ack": False, "self": False},
                "presence": {"key": "", "enabled": False},
                "private": False,
                **(command.get("config") or {}),
            }
        }
        channel = self.client.channel(name, options)
        self.channels[name] = channel
        for item in command["bind"]:
            self._bind(channel, name, item)

        def status(state: Any, error: Exception | None) -> None:
            tell("status", name, status=getattr(state, "value", state), error=str(error) if error else None)

        await channel.subscribe(status)

    def _bind(self, channel: AsyncRealtimeChannel, name: str, item: dict[str, Any]) -> None:
        if item["type"] == "presence":
            channel.on_presence_sync(lambda: tell("presence", name, state=channel.presence_state()))
            channel.on_presence_join(lambda key, *_: tell("join", name, key=key))
            channel.on_presence_leave(lambda key, *_: tell("leave", name, key=key))
        elif item["type"] == "broadcast":
            channel.on_broadcast(item["event"], lambda message: tell("broadcast", name, message=message))
        elif item["type"] == "system":
            channel.on_system(lambda message: tell("system", name, message=dict(message)))
        else:
            wanted = item["filter"]
            channel.on_postgres_changes(
                wanted["event"],
                lambda change: tell("change", name, tag=item.get("tag"), change=change),
                table=wanted.get("table", "*"),
                schema=wanted.get("schema", "public"),
                filter=wanted.get("filter"),
            )

    async def send(self, command: dict[str, Any]) -> None:
        """Broadcast."""
        await self.channels[command["channel"]].send_broadcast(command["event"], command["payload"])
        tell("sent", command["channel"], outcome="ok")

    async def track(self, command: dict[str, Any]) -> None:
        """Enter presence."""
        await self.channels[command["channel"]].track(command["payload"])
        tell("tracked", command["channel"], outcome="ok")

    async def untrack(self, command: dict[str, Any]) -> None:
        """Leave presence."""
        await self.channels[command["channel"]].untrack()
        tell("untracked", command["channel"], outcome="ok")

    async def auth(self, command: dict[str, Any]) -> None:
        """Go by another token."""
        await self.client.set_auth(command["token"])
        tell("authorized", None)

    async def leave(self, command: dict[str, Any]) -> None:
        """Leave the channel."""
        await self.client.remove_channel(self.channels[command["channel"]])
        tell("left", command["channel"], outcome="ok")


async def main() -> None:
    """Connect, then run commands until stdin ends."""
    url, key = sys.argv[2:4]
    client = AsyncRealtimeClient(f"{url}/realtime/v1", key)
    await client.connect()
    driver = Driver(client)
    tell("ready", None, library="python")
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        command = json.loads(line)
        await getattr(driver, command["do"])(command)
    await client.close()


if __name__ == "__main__":
    asyncio.run(main())
