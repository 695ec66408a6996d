"""Rooms of two nodes on one bus, and clients of theirs, without sockets and without a database."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, cast

import trio
import trio.testing

from tests.shell.channels_support import FakePolicies, FakeRows
from tests.shell.database_support import FakeDatabase
from tests.shell.fanout_support import Wire, outbox
from walstream.auth.tokens import Claims
from walstream.channel.effects import JoinRequest
from walstream.channel.join import parse_join
from walstream.channel.pushes import BroadcastPush, Push
from walstream.channel.topic import parse_topic
from walstream.protocol.phoenix import VSN_1, VSN_2, ClientMessage, codec
from walstream.protocol.websocket import frame
from walstream.rooms import PresenceEntry
from walstream.shell.channels.directory import Directory
from walstream.shell.channels.local_bus import LocalBus, LocalHub
from walstream.shell.channels.message_store import MessageStore
from walstream.shell.channels.moderation import Moderation
from walstream.shell.channels.relay import Relay
from walstream.shell.channels.rooms import Rooms
from walstream.shell.database.channel_rows import Rows
from walstream.shell.database.postgres import Database

MAX_BYTES = 1000
ASKED = ClientMessage("realtime:hall", "broadcast", ref="9")


class Silent:
    def changed(self, entry: PresenceEntry, user_id: str | None) -> None:
        pass

    def touched(self, entry: str) -> None:
        pass


class Client:
    """A connection as far as rooms know one."""

    def __init__(self, node: Node, name: str, user: str = "", role: str = "anon", vsn: str = VSN_2) -> None:
        self.node = node
        self.id = name
        self.vsn = vsn
        self.headers = "{}"
        self.claims = Claims(role, user)
        self.wire = Wire()
        self.outbox = outbox(self.wire)
        self.answers: list[tuple[str, Any]] = []
        self.refused: list[str] = []
        self.endings: list[str] = []
        self.topics: dict[int, str] = {}
        self.serial = 0

    def answer(self, asked: ClientMessage, status: str, response: bytes = b"{}") -> None:
        self.answers.append((status, json.loads(response)))

    def push(self, serial: int, event: str, payload: bytes) -> None:
        self.outbox.push(frame(codec(self.vsn).encode_push(self.topics[serial], event, payload)))

    def end(self, serial: int, name: str, text: str) -> None:
        self.endings.append(name)
        self.leave(serial)

    def join(self, topic: str = "realtime:hall", *, enters: bool = True, **config: Any) -> int:
        """Ask, and enter once admitted."""
        self.serial += 1
        name = parse_topic(topic)
        assert name is not None
        config.setdefault("broadcast", {})
        read = parse_join(name, json.dumps({"config": config}).encode())
        request = JoinRequest(self.serial, name, "1", "1", self.claims, read)
        serial = self.serial
        self.topics[serial] = topic
        enter: Callable[[], None] = lambda: self.node.rooms.enter(self, serial)  # noqa: E731 - typed
        self.node.rooms.ask(self, request, enter if enters else lambda: None, self.refused.append)
        return serial

    def leave(self, serial: int) -> None:
        self.node.rooms.leave(self, serial)

    def do(self, push: Push, serial: int = 1, asked: ClientMessage | None = ASKED) -> None:
        self.node.rooms.pushed(self, serial, push, asked)

    def say(self, text: object, serial: int = 1, **more: Any) -> None:
        self.do(BroadcastPush("say", json.dumps(text).encode(), **more), serial)

    def heard(self) -> list[Any]:
        """Events and payloads so far."""
        self.outbox.flush()
        found = []
        for data in self.wire.frames():
            value = json.loads(data)
            event, payload = (value["event"], value["payload"]) if self.vsn == VSN_1 else value[3:]
            found.append(payload["payload"] if event == "broadcast" else (event, payload))
        self.wire.data = b""
        return found


class Node:
    def __init__(self, hub: LocalHub, name: str, rows: FakeRows, policies: FakePolicies | None = None) -> None:
        self.bus = LocalBus(hub, name)
        self.database = FakeDatabase()
        database = cast("Database", self.database)
        self.directory = Directory(cast("Rows", rows), policies)
        self.store = MessageStore(database, database, "realtime", self.bus)
        self.rooms = Rooms(
            bus=self.bus,
            directory=self.directory,
            store=self.store,
            moderation=Moderation(database, "realtime", self.store),
            mirror=Silent(),
            relay=Relay(self.bus, is_deaf=lambda: False),
            max_message_bytes=MAX_BYTES,
        )

    def is_empty(self) -> bool:
        """Whether nothing is kept of anybody."""
        rooms = self.rooms
        kept = (rooms.audiences._rooms, rooms._guests, rooms._seams, rooms.presences._rooms)
        return not any(kept) and not self.directory._topics


class World(NamedTuple):
    here: Node
    there: Node
    rows: FakeRows


@asynccontextmanager
async def world(
    *channels: dict[str, Any], members: tuple[dict[str, Any], ...] = (), policies: FakePolicies | None = None
) -> AsyncIterator[World]:
    rows = FakeRows(channels, members)
    hub = LocalHub()
    nodes = [Node(hub, name, rows, policies) for name in ("here", "there")]
    async with trio.open_nursery() as nursery:
        for node in nodes:
            nursery.start_soon(node.directory.run)
            await nursery.start(node.bus.run)
            nursery.start_soon(node.rooms.run)
        await trio.sleep(1)
        here, there = nodes
        yield World(here, there, rows)
        nursery.cancel_scope.cancel()
