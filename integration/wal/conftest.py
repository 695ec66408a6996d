"""A daemon over a database of the test's own, once for each decoder, and over a server that the test may break."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from integration.fixtures import node as base
from integration.fixtures.daemon import running_daemon, token
from integration.fixtures.node import eventually
from integration.fixtures.postgres import TestDatabase
from integration.fixtures.ws import PhoenixClient, phoenix
from walstream.lsn import Lsn

QUICK = {"WALSTREAM_HEARTBEAT_SECONDS": "1s", "WALSTREAM_DRAIN_SECONDS": "1s"}


class Node(base.Node):
    """A daemon whose slot is looked into."""

    def capture(self, name: str) -> None:
        """As an operator does it by SQL; returns when the daemon has published it, where that is needed."""
        super().capture(name)
        if self.daemon.environ["WALSTREAM_DECODER"] == "pgoutput":
            eventually(lambda: self.is_published(name))

    @asynccontextmanager
    async def client(self, *tables: str) -> AsyncIterator[PhoenixClient]:
        """A client that is told of all changes of ``tables``."""
        async with phoenix(self.daemon.websocket_url, apikey=token("anon")) as client:
            for table in tables:
                await client.subscribe(f"realtime:{table}", {"event": "*", "schema": "public", "table": table})
            yield client

    def is_published(self, name: str) -> bool:
        """Whether pgoutput would send its rows."""
        return bool(
            self.database.scalar(
                "select count(*) from pg_publication_tables where pubname like 'walstream%%' and tablename = %s",
                (name,),
            )
        )

    @property
    def confirmed(self) -> Lsn:
        """What the daemon's slot has confirmed."""
        return Lsn.parse(
            self.database.scalar(
                "select confirmed_flush_lsn::text from pg_replication_slots where slot_name = %s", (self.daemon.slot,)
            )
        )

    @property
    def now(self) -> Lsn:
        """Where the WAL ends."""
        return Lsn.parse(self.database.scalar("select pg_current_wal_insert_lsn()::text"))

    def kept(self, marker: str) -> int:
        """How many messages with ``marker`` the slot would send again. Nobody may stream from it."""
        eventually(lambda: not self.is_active)
        plugin = self.database.scalar(
            "select plugin from pg_replication_slots where slot_name = %s", (self.daemon.slot,)
        )
        options = [] if plugin == "wal2json" else ["proto_version", "1", "publication_names", "walstream_all"]
        rows = self.database.query(
            "select data from pg_logical_slot_peek_binary_changes(%s, null, null, variadic %s::text[])"
            if options
            else "select convert_to(data, 'utf8') from pg_logical_slot_peek_changes(%s, null, null"
            ", 'format-version', '2') where %s is not null",
            (self.daemon.slot, options),
        )
        return sum(marker.encode() in bytes(data) for (data,) in rows)

    @property
    def is_active(self) -> bool:
        """Whether somebody streams from the slot."""
        found = self.database.scalar(
            "select active from pg_replication_slots where slot_name = %s", (self.daemon.slot,)
        )
        return bool(found)


Start = Callable[..., AbstractContextManager[Node]]


@pytest.fixture(params=["wal2json", "pgoutput"])
def decoder(request: pytest.FixtureRequest) -> str:
    """The value of WALSTREAM_DECODER."""
    return str(request.param)


@pytest.fixture
def start(decoder: str, tmp_path: Path) -> Start:
    """Starts a node over a database, with further environment."""

    @contextmanager
    def starting(database: TestDatabase, *, wait: str = "/ready", **environ: str) -> Iterator[Node]:
        wanted = {**QUICK, "WALSTREAM_DECODER": decoder, **environ}
        with running_daemon(database.dsn, tmp_path, wanted, wait=wait) as daemon:
            yield Node(database, daemon)

    return starting


@pytest.fixture
def node(start: Start, prepared: TestDatabase) -> Iterator[Node]:
    """A node on the server that all tests share."""
    with start(prepared) as running:
        yield running
