"""A daemon for the client tests, one for each decoder, over a database with the schema and a demo table."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from integration.fixtures.daemon import Daemon, running_daemon
from integration.fixtures.postgres import TestDatabase, fresh_database
from walstream.shell.commands.private_cluster import Cluster

_numbers = itertools.count(1)


class Served:
    """A daemon and the database that it serves."""

    def __init__(self, database: TestDatabase, daemon: Daemon) -> None:
        self.database = database
        self.daemon = daemon

    def table(self, columns: str, *, identity: str = "default") -> str:
        """A new table that the daemon captures and that everyone may read; its name."""
        name = f"t{next(_numbers)}"
        self.database.execute(
            f"create table public.{name} ({columns});"
            f"alter table public.{name} replica identity {identity};"
            f"grant select on public.{name} to anon, authenticated, service_role;"
        )
        self.database.execute(
            "insert into realtime.subscriptions (table_name, events) values (%s, '{INSERT,UPDATE,DELETE}')",
            (f"public.{name}",),
        )
        return name


@pytest.fixture(scope="module", params=["wal2json", "pgoutput"])
def served(
    request: pytest.FixtureRequest, cluster: Cluster, template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """One daemon for a module's tests, each with tables and channels of its own."""
    with fresh_database(cluster, template) as database:
        environ = {"WALSTREAM_DECODER": str(request.param)}
        with running_daemon(database.dsn, tmp_path_factory.mktemp("daemon"), environ) as daemon:
            yield Served(database, daemon)
