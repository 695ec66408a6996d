"""Daemons for the tests of what goes by NOTIFY."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from integration.fixtures.daemon import running_daemon
from integration.fixtures.node import Node
from integration.fixtures.postgres import TestDatabase

Start = Callable[..., AbstractContextManager[Node]]


@pytest.fixture
def start(tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Starts a node over a database, with further environment."""

    @contextmanager
    def starting(database: TestDatabase, **environ: str) -> Iterator[Node]:
        settings = {"WALSTREAM_HEARTBEAT_SECONDS": "1s", "WALSTREAM_DRAIN_SECONDS": "2s", **environ}
        with running_daemon(database.dsn, tmp_path_factory.mktemp("node"), settings, wait="/ready") as daemon:
            yield Node(database, daemon)

    return starting
