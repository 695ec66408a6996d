"""No secret of a daemon is in its log, in what it answers or in what it reports to the database, whatever happens."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from urllib.parse import quote

import pytest
import trio

from integration.daemon.conftest import Node, Start
from integration.fixtures.daemon import running_daemon, token
from integration.fixtures.postgres import TestDatabase
from integration.fixtures.ws import phoenix

PASSWORD = "pg-passw0rd-9f8e7d"
SECRETS = {
    "WALSTREAM_JWT_SECRET": "jwt-secret-1a2b3c-that-is-at-least-32-bytes",
    "WALSTREAM_API_KEYS": "opaque-key-4d5e6f=anon,sb_secret_7a8b9c=service_role",
    "WALSTREAM_CLUSTER_SECRET": "cluster-secret-0f1e2d-that-is-long-enough",
    "WALSTREAM_METRICS_TOKEN": "metrics-token-3c4b5a",
}
HIDDEN = [
    PASSWORD, "jwt-secret-1a2b3c", "opaque-key-4d5e6f", "sb_secret_7a8b9c", "cluster-secret-0f1e2d",
    "metrics-token-3c4b5a",
]  # fmt: skip


@pytest.fixture(scope="module")
def node(start: Start, shared_database: TestDatabase) -> Iterator[Node]:
    shared_database.execute(f"create role keeper superuser login password '{PASSWORD}'")
    dsn = shared_database.cluster.dsn(shared_database.name, "keeper") + f" password='{PASSWORD}'"
    try:
        with start(shared_database, WALSTREAM_DATABASE_URL=dsn, WALSTREAM_LOG_LEVEL="debug", **SECRETS) as running:
            running.table("t")
            yield running
    finally:
        shared_database.execute("drop owned by keeper; drop role keeper")


def assert_hidden(text: str, *further: str) -> None:
    assert text
    for secret in (*HIDDEN, *further):
        assert secret not in text, secret


def test_a_whole_life_with_good_and_bad_clients_shows_no_secret(node: Node) -> None:
    good = token("anon", secret=SECRETS["WALSTREAM_JWT_SECRET"], sub="ada")
    bad = token("anon", secret="another-secret-that-is-at-least-32-bytes")
    expired = token("anon", secret=SECRETS["WALSTREAM_JWT_SECRET"], seconds=-60)

    async def main() -> None:
        for key in (good, "opaque-key-4d5e6f", "sb_secret_7a8b9c"):
            async with phoenix(node.daemon.websocket_url, apikey=key) as client:
                await client.subscribe("realtime:t", {"event": "*", "schema": "public", "table": "t"})
                for given in (bad, expired, f"nonsense {good}"):
                    await client.push("realtime:x", "phx_join", {"config": {}, "access_token": given})
                await client.push("realtime:t", "access_token", {"access_token": bad})
                await client.drain()

    trio.run(main)
    for key in (bad, expired, "unknown-key-abcdef"):
        for path in (f"/realtime/v1/websocket?apikey={quote(key)}&vsn=2.0.0", f"/nowhere?apikey={key}&token={key}"):
            headers = {"authorization": f"Bearer {key}", "upgrade": "websocket", "connection": "upgrade",
                       "sec-websocket-version": "13", "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ=="}  # fmt: skip
            _, body = node.daemon.request("GET", path, headers=headers)
            assert_hidden(body.decode(), key)
        node.daemon.request("POST", "/api/broadcast", b"{}", {"apikey": key})
    node.database.execute("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'keeper'")
    for path in ("/health", "/ready", "/metrics", "/console"):
        _, body = node.daemon.request(
            "GET", path, headers={"authorization": f"Bearer {SECRETS['WALSTREAM_METRICS_TOKEN']}"}
        )
        assert_hidden(body.decode())
    node.daemon.wait_for("/ready")
    reported = json.dumps(node.database.query("select row_to_json(n) from realtime.nodes n"))
    assert_hidden(reported, good, bad)
    assert_hidden(node.daemon.log_path.read_text(encoding="utf-8"), good, bad, expired, "unknown-key-abcdef")


@pytest.mark.parametrize(
    "dsn",
    [
        f"postgresql://u:{PASSWORD}@127.0.0.1:1/db", f"postgres//u:{PASSWORD}@127.0.0.1/db",
        f"postgresql://u:a@{PASSWORD}@127.0.0.1/db", f"postgresql://u:{PASSWORD}/b@127.0.0.1/db",
        f"host=127.0.0.1 port=1 password='{PASSWORD}", f"postgresql://u:{PASSWORD}%zz@127.0.0.1:1/db",
    ],
    ids=range(6),
)  # fmt: skip
def test_a_database_that_cannot_be_reached_shows_no_password(
    start: Start, shared_database: TestDatabase, tmp_path_factory: pytest.TempPathFactory, dsn: str
) -> None:
    directory = tmp_path_factory.mktemp("away")
    body = b"it does not start"
    with running_daemon(dsn, directory, SECRETS, wait="") as daemon, contextlib.suppress(AssertionError):
        daemon.wait_for("/live")  # it ends where it cannot read the DSN at all
        authorization = {"authorization": f"Bearer {SECRETS['WALSTREAM_METRICS_TOKEN']}"}
        _, body = daemon.request("GET", "/health", headers=authorization)
    assert_hidden(body.decode())
    [log] = directory.iterdir()
    assert_hidden(log.read_text(encoding="utf-8"))
