"""Fixtures over a real PostgreSQL: one private server per run, one database per test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.fixtures.postgres import (
    TestDatabase,
    fresh_cluster,
    fresh_database,
    migrate,
    prepared_template,
    session_cluster,
)
from tests.support import clean_environment, load_hypothesis_profile
from walstream.shell.commands.private_cluster import Cluster

clean_environment()
load_hypothesis_profile()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A server with wal2json that all tests share; a test that stops or breaks it uses ``fresh_cluster``."""
    with session_cluster() as running:
        yield running


@pytest.fixture
def database(cluster: Cluster) -> Iterator[TestDatabase]:
    """An empty database of the test's own, dropped afterwards with its slots."""
    with fresh_database(cluster) as fresh:
        yield fresh


@pytest.fixture(scope="session")
def template(cluster: Cluster) -> Iterator[str]:
    """Name of a database with walstream's schema, made once by ``walstream init``."""
    with prepared_template(cluster) as name:
        yield name


@pytest.fixture
def prepared(cluster: Cluster, template: str) -> Iterator[TestDatabase]:
    """A database of the test's own with walstream's schema in it."""
    with fresh_database(cluster, template) as fresh:
        yield fresh


@pytest.fixture
def fragile(tmp_path: Path) -> Iterator[TestDatabase]:
    """A prepared database on a server that may be stopped and killed."""
    with fresh_cluster(tmp_path / "server") as own, fresh_database(own) as fresh:
        migrate(fresh.dsn)
        yield fresh


@pytest.fixture
def dsn(database: TestDatabase) -> str:
    """The DSN of ``database``, as superuser."""
    return database.dsn
