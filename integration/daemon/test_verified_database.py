"""``sslmode=verify-full``: the daemon over a PostgreSQL with a certificate, by ordinary and replication connections."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trustme

from integration.daemon.conftest import QUICK, Node, bearer
from integration.fixtures.daemon import free_port, running_daemon
from integration.fixtures.postgres import TestDatabase, fresh_cluster, fresh_database, migrate
from integration.fixtures.ws import phoenix
from tests.shell.tls_support import authority, write_certificate
from walstream.errors import DatabaseRefused
from walstream.shell.database.postgres import connect

ROLES = [False, True]


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestDatabase]:
    """A database that is reached by TCP with TLS only, as localhost."""
    directory = tmp_path_factory.mktemp("secured")
    port = free_port()
    with fresh_cluster(directory, {"port": str(port), "listen_addresses": "127.0.0.1"}) as cluster:
        data = cluster.data_dir
        for path in write_certificate(tmp_path_factory.mktemp("server"), "localhost"):
            placed = Path(shutil.copy(path, data))
            placed.chmod(0o600)
            shutil.chown(placed, data.stat().st_uid, data.stat().st_gid)
        cluster.settings.update(ssl="on", ssl_cert_file="cert.pem", ssl_key_file="key.pem")
        with (data / "pg_hba.conf").open("a") as rules:
            rules.write("hostssl all all 127.0.0.1/32 trust\nhostssl replication all 127.0.0.1/32 trust\n")
        cluster.restart()
        with fresh_database(cluster) as database:
            migrate(database.dsn)
            yield database


def dsn(database: TestDatabase, ca: str, *, host: str = "localhost") -> str:
    port = database.cluster.settings["port"]
    return (
        f"host={host} hostaddr=127.0.0.1 port={port} dbname={database.name} user=postgres"
        f" sslmode=verify-full sslrootcert={ca}"
    )


def root_of(ca: trustme.CA, directory: Path) -> str:
    path = directory / "root.pem"
    ca.cert_pem.write_to_path(str(path))
    return str(path)


@pytest.mark.parametrize("replication", ROLES)
def test_the_right_authority_and_host_are_let_through(secured: TestDatabase, tmp_path: Path, replication: bool) -> None:
    opened = connect(dsn(secured, root_of(authority(), tmp_path)), application_name="t", replication=replication)
    assert opened.info.ssl_in_use
    opened.close()


@pytest.mark.parametrize("replication", ROLES)
def test_another_authority_is_refused_with_a_repair(secured: TestDatabase, tmp_path: Path, replication: bool) -> None:
    with pytest.raises(DatabaseRefused, match="certificate verify failed") as caught:
        connect(dsn(secured, root_of(trustme.CA(), tmp_path)), application_name="t", replication=replication)
    assert (caught.value.reason, "sslrootcert" in caught.value.repair) == ("certificate", True)


@pytest.mark.parametrize("replication", ROLES)
def test_a_certificate_for_another_host_is_refused(secured: TestDatabase, tmp_path: Path, replication: bool) -> None:
    wanted = dsn(secured, root_of(authority(), tmp_path), host="db.example.org")
    with pytest.raises(DatabaseRefused, match=r"db\.example\.org") as caught:
        connect(wanted, application_name="t", replication=replication)
    assert caught.value.reason == "certificate"


def test_a_missing_authority_is_refused(secured: TestDatabase) -> None:
    with pytest.raises(DatabaseRefused) as caught:
        connect(dsn(secured, "/nowhere/root.pem"), application_name="t")
    assert caught.value.reason == "certificate"


def test_a_daemon_streams_over_verified_connections(secured: TestDatabase, tmp_path: Path) -> None:
    verified = dsn(secured, root_of(authority(), tmp_path))
    with running_daemon(verified, tmp_path, QUICK) as daemon:
        node = Node(secured, daemon)
        node.table("t")

        async def main() -> None:
            async with phoenix(daemon.websocket_url, apikey=bearer()) as client:
                await client.subscribe("realtime:t", {"event": "*", "schema": "public", "table": "t"})
                secured.execute("insert into t values (1, 'x')")
                await client.changes(1)

        trio.run(main)
        unsafe = secured.query(
            "select a.application_name from pg_stat_activity a left join pg_stat_ssl s using (pid)"
            " where a.application_name like 'walstream%' and not s.ssl"
        )
        assert unsafe == []
        assert (
            secured.scalar("select count(*) from pg_stat_replication r join pg_stat_ssl s using (pid) where s.ssl") == 1
        )


def test_a_daemon_that_cannot_verify_says_why(secured: TestDatabase, tmp_path: Path) -> None:
    with running_daemon(dsn(secured, root_of(trustme.CA(), tmp_path)), tmp_path, QUICK, wait="/live") as daemon:
        body = daemon.wait_for("/ready", 503)
        while b"certificate" not in body:
            body = daemon.wait_for("/ready", 503)
        assert b"certificate verify failed" in body
