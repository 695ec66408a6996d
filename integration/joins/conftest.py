"""The newest and the oldest server of this machine, each with databases of one test's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from psycopg2.extensions import connection as PgConnection  # noqa: N812 - a class under its role's name

from integration.fixtures.postgres import TestDatabase, fresh_cluster, fresh_database
from walstream.shell.commands.private_cluster import Cluster
from walstream.shell.commands.server_binaries import Binaries, find_binaries
from walstream.shell.database.postgres import connect


def _versions() -> list[Binaries]:
    """One server of each major version: the catalogs differ between them."""
    return list({binaries.version[0]: binaries for binaries in reversed(find_binaries())}.values())


@pytest.fixture(scope="session", params=_versions(), ids=lambda binaries: str(binaries.version[0]))
def versioned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A server of each version."""
    directory: Path = tmp_path_factory.mktemp("versioned")
    with fresh_cluster(directory, binaries=request.param) as cluster:
        yield cluster


@pytest.fixture
def any_database(versioned: Cluster) -> Iterator[TestDatabase]:
    """A database on a server of each version."""
    with fresh_database(versioned) as fresh:
        yield fresh


@pytest.fixture
def facts(any_database: TestDatabase) -> Iterator[PgConnection]:
    """A connection as the daemon has it: autocommit, nothing on the search path."""
    connection = connect(any_database.dsn, application_name="facts", search_path="")
    yield connection
    connection.close()
