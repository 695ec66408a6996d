"""A laboratory on the server that all tests share, for faults of the daemon and of the network."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from integration.faults.lab import Lab, Plan, laboratory
from walstream.shell.commands.private_cluster import Cluster

Open = Callable[..., AbstractContextManager[Lab]]


@pytest.fixture
def shared(cluster: Cluster, tmp_path: Path) -> Open:
    """Opens a laboratory whose server nobody may stop; takes what ``Plan`` takes."""
    return lambda **plan: laboratory(tmp_path, Plan(**plan), cluster)


@pytest.fixture
def own(tmp_path: Path) -> Open:
    """Opens a laboratory with a server of its own."""
    return lambda **plan: laboratory(tmp_path, Plan(**plan))
