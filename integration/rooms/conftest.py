"""Daemons with rooms, and members of them who see every frame."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from integration.fixtures.daemon import running_daemon
from integration.fixtures.node import Node, eventually
from integration.fixtures.postgres import TestDatabase, fresh_database
from integration.fixtures.ws import PhoenixClient
from walstream.shell.commands.private_cluster import Cluster

QUICK = {
    "WALSTREAM_HEARTBEAT_SECONDS": "1s", "WALSTREAM_DRAIN_SECONDS": "2s", "WALSTREAM_MAX_MESSAGES_PER_SECOND": "0",
    "WALSTREAM_MAX_PRESENCE_CALLS": "0",
}  # fmt: skip

Start = Callable[..., AbstractContextManager[Node]]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Starts a node over a database, with further environment."""

    @contextmanager
    def starting(database: TestDatabase, *, wait: str = "/ready", **environ: str) -> Iterator[Node]:
        directory: Path = tmp_path_factory.mktemp("node")
        with running_daemon(database.dsn, directory, {**QUICK, **environ}, wait=wait) as daemon:
            yield Node(database, daemon)

    return starting


@pytest.fixture(scope="module")
def shared(cluster: Cluster, template: str) -> Iterator[TestDatabase]:
    """A database for all tests of a module."""
    with fresh_database(cluster, template) as database:
        yield database


@pytest.fixture(scope="module")
def node(start: Start, shared: TestDatabase) -> Iterator[Node]:
    """One daemon for all tests of a module, which has to survive them all."""
    with start(shared) as running:
        yield running
        running.assert_unharmed()


def register(
    node: Node, slug: str, type_: str = "public", *members: str, metadata: object = None, persist: bool = True
) -> str:
    """A registered channel with its members, once the daemon knows it; its id."""
    database = node.database
    id_: str = database.scalar(
        "insert into realtime.channels (slug, name, type, metadata, persist) values (%s, %s, %s, %s, %s)"
        " returning id::text",
        (slug, slug, type_, json.dumps(metadata or {}), persist),
    )
    for member in members:
        user, _, role = member.partition(":")
        database.execute(
            "insert into realtime.channel_members (channel_id, user_id, role) values (%s, %s, %s)",
            (id_, user, role or "member"),
        )
    eventually(node.knows_channels)
    return id_


ACKED = {"ack": True, "self": False}


async def enter(client: PhoenixClient, topic: str, *, broadcast: object = None, **config: Any) -> dict[str, Any]:
    """Join a room, with answers to broadcasts unless ``broadcast`` says else."""
    return await client.join(topic, config={"broadcast": ACKED if broadcast is None else broadcast, **config})


async def say(client: PhoenixClient, topic: str, payload: object, event: str = "say") -> dict[str, Any]:
    """Broadcast; the answer."""
    message = {"type": "broadcast", "event": event, "payload": payload}
    return await client.reply(await client.push(topic, "broadcast", message))


async def track(client: PhoenixClient, topic: str, meta: object) -> dict[str, Any]:
    """Enter presence; the answer."""
    return await client.reply(
        await client.push(topic, "presence", {"type": "presence", "event": "track", "payload": meta})
    )


async def heard(client: PhoenixClient, topic: str, *, seconds: float = 15.0) -> dict[str, Any]:
    """The payload of the next broadcast: event, payload, and meta if there is any."""
    payload: dict[str, Any] = (await client.next("broadcast", topic=topic, seconds=seconds)).payload
    return payload
