"""Official clients over wss and https, with a certificate of an authority that they are told to believe."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.clients.conftest import Served
from integration.clients.official import SUPABASE, changes, official_client
from integration.fixtures.daemon import running_daemon, token
from integration.fixtures.node import eventually
from integration.fixtures.postgres import TestDatabase, fresh_database
from tests.shell.tls_support import authority, write_certificate
from walstream.config import Config
from walstream.shell.commands import daemon_health
from walstream.shell.commands.private_cluster import Cluster


@pytest.fixture(scope="module")
def database(cluster: Cluster, template: str) -> Iterator[TestDatabase]:
    with fresh_database(cluster, template) as fresh:
        yield fresh


@pytest.fixture(scope="module")
def secured(database: TestDatabase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A daemon that speaks TLS."""
    cert, key = write_certificate(tmp_path_factory.mktemp("certificate"))
    environ = {"WALSTREAM_TLS_CERT": cert, "WALSTREAM_TLS_KEY": key}
    with running_daemon(database.dsn, tmp_path_factory.mktemp("daemon"), environ, wait="") as daemon:
        config = Config(listen=f"127.0.0.1:{daemon.port}", tls_cert=cert, tls_key=key)
        eventually(lambda: (daemon_health.fetch(config) or {}).get("status") == "ready")
        yield Served(database, daemon)


@pytest.mark.parametrize("library", SUPABASE)
def test_changes_and_broadcasts_arrive(
    secured: Served, library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root.pem"
    authority().cert_pem.write_to_path(str(root))
    monkeypatch.setenv("NODE_EXTRA_CA_CERTS", str(root))
    monkeypatch.setenv("SSL_CERT_FILE", str(root))
    table = secured.table("id bigint primary key, v text")
    with official_client(library, f"https://localhost:{secured.daemon.port}", token("anon")) as client:
        config: dict[str, object] = {"broadcast": {"self": True}}
        client.join("room", changes(table=table), {"type": "broadcast", "event": "e"}, config=config)
        secured.database.execute(f"insert into public.{table} values (1, repeat('x', 50000))")
        assert len(client.change("room")["new"]["v"]) == 50_000
        client.do("send", "room", event="e", payload={"n": 1})
        client.expect("broadcast", "room")
