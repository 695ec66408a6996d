"""Limits of a whole daemon, met by real clients: by address and user, behind a proxy, from foreign pages, over REST."""

from __future__ import annotations

import base64
import http.client
import json
import os
from collections.abc import Iterator, Mapping

import pytest
import trio

from integration.daemon.conftest import Node, Start, bearer
from integration.fixtures.daemon import token
from integration.fixtures.node import eventually
from integration.fixtures.postgres import TestDatabase
from integration.fixtures.ws import phoenix
from walstream.config import Config
from walstream.shell.commands import daemon_health

TOKEN = "a-token-for-metrics"


@pytest.fixture(scope="module")
def node(start: Start, shared_database: TestDatabase) -> Iterator[Node]:
    environ = {
        "WALSTREAM_TRUSTED_PROXIES": "127.0.0.1",
        "WALSTREAM_ALLOWED_ORIGINS": "https://app.example.org",
        "WALSTREAM_METRICS_TOKEN": TOKEN,
        "WALSTREAM_MAX_CONNECTIONS_PER_ADDRESS": "3",
        "WALSTREAM_MAX_CONNECTIONS_PER_USER": "2",
        "WALSTREAM_MAX_CONNECTS_PER_SECOND_PER_ADDRESS": "1",
        "WALSTREAM_MAX_REQUESTS_PER_SECOND_PER_KEY": "1",
        "WALSTREAM_MAX_PRESENCE_CALLS": "3",
    }
    with start(shared_database, **environ) as running:
        yield running
        running.assert_unharmed()


def ask(
    node: Node, method: str, path: str, headers: Mapping[str, str], body: bytes = b""
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", node.daemon.port, timeout=10)
    try:
        connection.request(method, path, body, dict(headers))
        response = connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
    finally:
        connection.close()


def refusals(node: Node, reason: str) -> float:
    _, _, body = ask(node, "GET", "/metrics", {"authorization": f"Bearer {TOKEN}"})
    name = f'walstream_refusals_total{{reason="{reason}"}}'
    return next(float(line.split()[-1]) for line in body.decode().splitlines() if line.startswith(name))


async def refused(node: Node, *headers: tuple[str, str], apikey: str = "") -> tuple[int, dict[str, str]]:
    """Status and body with which a handshake is refused."""
    upgrade = {
        "upgrade": "websocket", "connection": "Upgrade", "sec-websocket-version": "13",
        "sec-websocket-key": base64.b64encode(os.urandom(16)).decode(), **dict(headers),
    }  # fmt: skip
    path = f"/realtime/v1/websocket?vsn=2.0.0&apikey={apikey or bearer()}"
    status, _, body = await trio.to_thread.run_sync(ask, node, "GET", path, upgrade)
    return status, json.loads(body)


def behind(address: str) -> tuple[str, str]:
    return ("x-forwarded-for", address)


def test_connections_of_one_address_are_bounded_and_others_come_in(node: Node) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            ready = trio.Event()
            open_ = 0

            async def hold(address: str) -> None:
                nonlocal open_
                async with phoenix(node.daemon.websocket_url, apikey=bearer(), headers=[behind(address)]) as client:
                    await client.heartbeat()
                    open_ += 1
                    await ready.wait()

            for address in ("2001:db8::1", "2001:db8::2", "2001:db8::3"):
                nursery.start_soon(hold, address)
            while open_ < 3:
                await trio.sleep(0.02)
            status, body = await refused(node, behind("2001:db8::4"))
            assert (status, body["error"], body["code"]) == (429, "Too many connected users", "address_connections")
            async with phoenix(node.daemon.websocket_url, apikey=bearer(), headers=[behind("2001:db8:1::1")]) as other:
                await other.heartbeat()
            ready.set()

    trio.run(main)
    assert refusals(node, "address_connections") == 1
    [line] = [line for line in node.daemon.log() if line.get("reason") == "address_connections"]
    assert (line["event"], line["peer"], line["role"]) == ("connection.refused", "2001:db8::4", "anon")


def test_a_user_has_as_many_connections_as_it_may_however_it_is_named(node: Node) -> None:
    ada = token("authenticated", sub="ada")

    async def main() -> None:
        url = node.daemon.websocket_url
        async with (
            phoenix(url, apikey=ada, headers=[behind("192.0.2.1")]),
            phoenix(url, apikey=bearer(), headers=[behind("192.0.2.2")]) as second,
            phoenix(url, apikey=bearer(), headers=[behind("192.0.2.3")]) as third,
        ):
            await second.join("realtime:a", access_token=ada)
            await second.join("realtime:b", access_token=ada)
            reply = await third.reply(await third.push("realtime:a", "phx_join", {"config": {}, "access_token": ada}))
            assert reply["response"]["reason"] == "ConnectionRateLimitReached: Too many connected users"
            status, body = await refused(node, behind("192.0.2.4"), apikey=ada)
            assert (status, body["code"]) == (429, "user_connections")

    trio.run(main)
    eventually(lambda: refusals(node, "user_connections") == 2)


def test_an_address_connects_no_faster_than_it_may(node: Node) -> None:
    async def main() -> None:
        for _ in range(10):
            async with phoenix(node.daemon.websocket_url, apikey=bearer(), headers=[behind("192.0.2.77")]):
                pass
        status, body = await refused(node, behind("192.0.2.77"))
        assert (status, body["error"]) == (429, "Too many joins per second")

    trio.run(main)


def test_a_foreign_page_gets_no_socket_and_an_allowed_one_and_the_console_do(node: Node) -> None:
    async def main() -> None:
        status, body = await refused(node, ("origin", "https://evil.test"), behind("192.0.2.50"))
        assert (status, body["error"]) == (403, "Origin not allowed")
        own = f"http://127.0.0.1:{node.daemon.port}"
        for number, origin in enumerate(("https://app.example.org", own)):
            headers = [("origin", origin), behind(f"192.0.2.{51 + number}")]
            async with phoenix(node.daemon.websocket_url, apikey=bearer(), headers=headers) as client:
                await client.heartbeat()

    trio.run(main)
    [line] = [line for line in node.daemon.log() if line.get("reason") == "origin"]
    assert (line["origin"], line["status"]) == ("https://evil.test", 403)


def test_requests_over_their_rate_are_told_when_to_come_again(node: Node) -> None:
    body = json.dumps({"messages": [{"topic": "t", "event": "e", "payload": {}}]}).encode()
    headers = {"apikey": bearer(), "content-type": "application/json"}
    for left in range(9, -1, -1):
        status, answered, _ = ask(node, "POST", "/api/broadcast", headers, body)
        assert status == 202
        assert int(answered["x-rate-limit-remaining"]) >= left
    statuses = [ask(node, "POST", "/api/broadcast", headers, body) for _ in range(5)]
    refused_ = [(answered, text) for status, answered, text in statuses if status == 429]
    assert refused_
    answered, text = refused_[0]
    assert json.loads(text)["message"] == "Too many requests"
    assert (answered["retry-after"], answered["x-rate-limit"]) == ("1", "1")


def test_presence_calls_above_the_bound_end_the_channel(node: Node) -> None:
    async def main() -> None:
        async with phoenix(node.daemon.websocket_url, apikey=bearer(), headers=[behind("192.0.2.60")]) as client:
            await client.join("realtime:p", config={"presence": {"key": "k", "enabled": True}})
            for _ in range(4):
                await client.push("realtime:p", "presence", {"type": "presence", "event": "track", "payload": {}})
            system = await client.next("system", topic="realtime:p")
            assert system.payload["message"] == "Client presence rate limit exceeded"
            await client.next("phx_error", topic="realtime:p")
            await client.heartbeat()

    trio.run(main)
    assert refusals(node, "presence") == 1


def test_numbers_are_for_those_with_the_token_and_probes_for_all(node: Node) -> None:
    for path in ("/metrics", "/health"):
        assert ask(node, "GET", path, {})[0] == 401
        assert ask(node, "GET", path, {"authorization": f"Bearer {TOKEN}"})[0] == 200
    config = Config(listen=f"127.0.0.1:{node.daemon.port}", metrics_token=TOKEN)
    assert daemon_health.fetch(config) is not None
    assert daemon_health.fetch_metrics(config) is not None
    assert daemon_health.fetch(Config(listen=config.listen)) is None
    for path in ("/live", "/ready"):
        assert ask(node, "GET", path, {})[0] == 200
