"""Daemons over databases of one module, and what its tests say to them byte by byte."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from integration.fixtures import node as base
from integration.fixtures.daemon import running_daemon, token
from integration.fixtures.postgres import TestDatabase, fresh_database
from integration.fixtures.ws import PhoenixClient
from walstream.shell.commands.private_cluster import Cluster

QUICK = {"WALSTREAM_HEARTBEAT_SECONDS": "1s", "WALSTREAM_DRAIN_SECONDS": "2s"}


class Node(base.Node):
    """A daemon that is spoken to byte by byte."""

    @contextmanager
    def raw(self) -> Iterator[socket.socket]:
        """A bare connection to the daemon."""
        with socket.create_connection(("127.0.0.1", self.daemon.port), timeout=20) as connection:
            yield connection


async def verdict(client: PhoenixClient, topic: str, item: Mapping[str, object], **options: Any) -> tuple[str, str]:
    """Join with one item: status and text of the ``system`` frame that follows the reply."""
    await client.join(topic, changes=[item], **options)
    payload = (await client.next("system", topic=topic)).payload
    assert payload["extension"] == "postgres_changes"
    return payload["status"], payload["message"]


Start = Callable[..., AbstractContextManager[Node]]


@contextmanager
def _node(database: TestDatabase, directory: Path, environ: Mapping[str, str], wait: str) -> Iterator[Node]:
    with running_daemon(database.dsn, directory, {**QUICK, **environ}, wait=wait) as daemon:
        yield Node(database, daemon)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Starts a node over a database, with further environment."""

    def starting(database: TestDatabase, *, wait: str = "/ready", **environ: str) -> AbstractContextManager[Node]:
        return _node(database, tmp_path_factory.mktemp("node"), environ, wait)

    return starting


@pytest.fixture(scope="module")
def shared_database(cluster: Cluster, template: str) -> Iterator[TestDatabase]:
    """A database for all tests of a module."""
    with fresh_database(cluster, template) as database:
        yield database


@pytest.fixture(scope="module")
def node(start: Start, shared_database: TestDatabase) -> Iterator[Node]:
    """One daemon for all tests of a module, which has to survive them all."""
    with start(shared_database) as running:
        yield running
        running.assert_unharmed()


@pytest.fixture(params=["wal2json", "pgoutput"], scope="module")
def decoder(request: pytest.FixtureRequest) -> str:
    """The value of WALSTREAM_DECODER."""
    return str(request.param)


@pytest.fixture(scope="module")
def decoding(start: Start, cluster: Cluster, template: str, decoder: str) -> Iterator[Node]:
    """As ``node``, once for each decoder."""
    with fresh_database(cluster, template) as database, start(database, WALSTREAM_DECODER=decoder) as running:
        yield running
        assert running.daemon.is_running, running.daemon.log_tail()


def bearer(role: str = "anon") -> str:
    """A token with which everybody gets in."""
    return token(role)


@contextlib.contextmanager
def role(node: Node, name: str, options: str = "") -> Iterator[str]:
    """A role of the server for one test."""
    node.database.execute(f"create role {name} {options}; grant {name} to current_user")
    try:
        yield name
    finally:
        node.database.execute(f"drop owned by {name}; drop role {name}")
