"""The listener over TLS: clients that believe our authority or do not, certificates that change, stalled clients."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
import trustme

from integration.daemon.conftest import Node, Start, bearer
from integration.daemon.test_hostile import close_code, frame, head
from integration.fixtures.daemon import SECRET
from integration.fixtures.node import eventually
from integration.fixtures.postgres import TestDatabase
from integration.fixtures.ws import phoenix
from tests.shell.tls_support import authority, client_context, write_certificate
from walstream.config import Config
from walstream.shell.commands import daemon_health


class Files:
    """The daemon's certificate and key."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.cert, self.key = write_certificate(directory)

    def renew(self, ca: trustme.CA | None = None) -> None:
        """As certbot does."""
        write_certificate(self.directory, ca=ca)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="module")
def node(start: Start, shared_database: TestDatabase, files: Files) -> Iterator[Node]:
    environ = {
        "WALSTREAM_TLS_CERT": files.cert,
        "WALSTREAM_TLS_KEY": files.key,
        "WALSTREAM_HEAD_SECONDS": "1s",
        "WALSTREAM_OUTBOX_BYTES": "4MiB",
    }
    with start(shared_database, wait="", **environ) as running:
        eventually(lambda: running.daemon.is_running and get(running, "/ready")[0] == 200)
        running.table("t")
        yield running
        running.assert_unharmed()


def get(node: Node, path: str, context: ssl.SSLContext | None = None) -> tuple[int, dict[str, str], bytes]:
    """One request over TLS; status 0 where nobody answers."""
    context = context or client_context()
    connection = http.client.HTTPSConnection("localhost", node.daemon.port, timeout=10, context=context)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
    except ConnectionError:
        return 0, {}, b""
    finally:
        connection.close()


def wss(node: Node) -> str:
    return f"wss://localhost:{node.daemon.port}/realtime/v1/websocket"


def metric(node: Node, name: str) -> float:
    body = get(node, "/metrics")[2].decode()
    return next(float(line.split()[-1]) for line in body.splitlines() if line.startswith(name))


def test_changes_of_any_size_arrive_over_wss(node: Node) -> None:
    async def main() -> None:
        async with phoenix(wss(node), apikey=bearer(), ssl_context=client_context()) as client:
            await client.subscribe("realtime:t", {"event": "*", "schema": "public", "table": "t"})
            node.database.execute("insert into t select n, repeat('x', n * 80) from generate_series(1, 200) n")
            changes = await client.changes(200)
            assert [change["record"]["id"] for change in changes] == list(range(1, 201))
            assert [len(change["record"]["v"]) for change in changes] == [n * 80 for n in range(1, 201)]
            node.database.execute("insert into t values (2000, repeat('y', 900000))")
            assert len((await client.changes(1))[0]["record"]["v"]) == 900_000
            await client.heartbeat()

    trio.run(main)
    node.database.execute("truncate t")


def test_broadcasts_go_both_ways(node: Node) -> None:
    async def main() -> None:
        async with (
            phoenix(wss(node), apikey=bearer(), ssl_context=client_context()) as sender,
            phoenix(wss(node), apikey=bearer(), ssl_context=client_context()) as receiver,
        ):
            for client in (sender, receiver):
                await client.join("realtime:room")
            payload = {"type": "broadcast", "event": "e", "payload": {"text": "z" * 500_000}}
            await sender.push("realtime:room", "broadcast", payload)
            assert (await receiver.next("broadcast")).payload["payload"] == payload["payload"]

    trio.run(main)


def test_plain_requests_are_answered_with_headers_for_browsers(node: Node) -> None:
    status, headers, body = get(node, "/health")
    assert (status, json.loads(body)["status"]) == (200, "ready")
    assert headers["strict-transport-security"] == "max-age=31536000"
    assert get(node, "/console")[0] == 200


def test_a_client_of_another_authority_hangs_up(node: Node) -> None:
    before = metric(node, 'walstream_refusals_total{reason="tls"}')
    with pytest.raises(ssl.SSLCertVerificationError):
        get(node, "/live", client_context(trustme.CA()))
    eventually(lambda: metric(node, 'walstream_refusals_total{reason="tls"}') > before)


@pytest.mark.parametrize(
    "sent", [b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"x" * 1000, b"\0" * 70_000, b""]
)
def test_who_speaks_no_tls_or_nothing_is_not_waited_for(node: Node, sent: bytes) -> None:
    began = time.monotonic()
    with node.raw() as connection:
        connection.sendall(sent)
        try:
            while connection.recv(65536):
                pass
        except ConnectionError:
            pass
    assert time.monotonic() - began < 10
    assert get(node, "/live")[0] == 200


def test_a_handshake_that_stalls_half_way_is_not_waited_for(node: Node) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    hello = client_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        hello.do_handshake()
    with node.raw() as connection:
        connection.sendall(outgoing.read())
        try:
            while connection.recv(65536):
                pass
        except ConnectionError:
            pass


def test_old_versions_are_refused(node: Node) -> None:
    context = client_context()
    with pytest.warns(DeprecationWarning, match="TLSv1 is deprecated"):
        context.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match="TLSv1_1 is deprecated"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(ssl.SSLError):
        get(node, "/live", context)
    context = client_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    assert get(node, "/live", context)[0] == 200


def test_a_client_that_does_not_read_is_served_at_its_own_pace(node: Node) -> None:
    raw = socket.create_connection(("127.0.0.1", node.daemon.port), timeout=20)
    with client_context().wrap_socket(raw, server_hostname="localhost") as connection:
        connection.sendall(head())
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += connection.recv(1)
        join = {"config": {"postgres_changes": [{"event": "*", "schema": "public", "table": "t"}]}}
        connection.sendall(frame(json.dumps(["1", "1", "realtime:t", "phx_join", join]).encode()))
        eventually(lambda: metric(node, "walstream_channels") == 1)
        time.sleep(1)
        for number in range(1, 26):
            node.database.execute(
                "insert into t select -n, repeat('x', 1000) from generate_series(%s, %s) n",
                (number * 1000, number * 1000 + 999),
            )
        eventually(lambda: metric(node, "walstream_clients_behind") == 1)
        mark, seen, tail = b'"record":{"id":', 0, b""
        while seen < 25_000:
            data = tail + connection.recv(1 << 16)
            seen += data.count(mark)
            tail = data[-len(mark) + 1 :]
        eventually(lambda: metric(node, "walstream_clients_behind") == 0)
    node.database.execute("truncate t")


def test_a_frame_against_the_rules_is_told_so(node: Node) -> None:
    raw = socket.create_connection(("127.0.0.1", node.daemon.port), timeout=20)
    with client_context().wrap_socket(raw, server_hostname="localhost") as connection:
        connection.sendall(head())
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += connection.recv(1)
        connection.sendall(frame(b"hello", opcode=3))
        assert close_code(connection) == 1002


def serial(node: Node) -> int:
    with (
        socket.create_connection(("127.0.0.1", node.daemon.port), timeout=10) as raw,
        client_context().wrap_socket(raw, server_hostname="localhost") as connection,
    ):
        return int(dict(connection.getpeercert() or {})["serialNumber"], 16)  # type: ignore[arg-type]  # a text


def send_hangup(node: Node) -> None:
    os.kill(node.daemon.pid, signal.SIGHUP)


@pytest.mark.parametrize("told", [lambda node: None, send_hangup], ids=["by itself", "SIGHUP"])
def test_a_new_certificate_is_taken_without_ending_anybody(
    node: Node, files: Files, told: Callable[[Node], None]
) -> None:
    async def main() -> None:
        async with phoenix(wss(node), apikey=bearer(), ssl_context=client_context()) as client:
            before = serial(node)
            files.renew()
            told(node)
            await trio.to_thread.run_sync(eventually, lambda: serial(node) != before)
            await client.heartbeat()

    trio.run(main)


def test_a_certificate_that_cannot_be_used_is_told_and_not_taken(node: Node, files: Files) -> None:
    before = serial(node)
    Path(files.key).write_text("no key")
    send_hangup(node)
    eventually(lambda: any(line["event"] == "certificate.refused" for line in node.daemon.log()))
    assert serial(node) == before
    files.renew(authority())
    eventually(lambda: serial(node) != before)


def test_commands_ask_the_daemon_over_tls(node: Node, files: Files) -> None:
    config = Config(listen=f"127.0.0.1:{node.daemon.port}", tls_cert=files.cert, tls_key=files.key, jwt_secret=SECRET)
    found = daemon_health.fetch(config)
    assert found is not None
    assert found["status"] == "ready"
    other = Files(files.directory.parent)
    assert daemon_health.fetch(Config(listen=config.listen, tls_cert=other.cert, tls_key=other.key)) is None
