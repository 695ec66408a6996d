"""Tokens of a running daemon: keys that change, tokens that are revoked or expire, and strings of attackers."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import jwt
import pytest
import trio
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from integration.fixtures.daemon import SECRET, Daemon, running_daemon, token
from integration.fixtures.postgres import TestDatabase
from integration.fixtures.ws import PhoenixClient, phoenix

KEYS = {kid: ec.generate_private_key(ec.SECP256R1()) for kid in ("old", "new")}


def jwks(*kids: str) -> str:
    keys = [{**ECAlgorithm.to_jwk(KEYS[kid].public_key(), as_dict=True), "kid": kid} for kid in kids]
    return json.dumps({"keys": keys})


def signed(kid: str) -> str:
    claims = {"role": "anon", "exp": int(time.time()) + 3600}
    return jwt.encode(claims, KEYS[kid], algorithm="ES256", headers={"kid": kid})


def status(daemon: Daemon, apikey: str) -> int:
    """Of a request that needs a token and nothing else."""
    found, _ = daemon.request("POST", "/api/broadcast/hall/events/e", b"{}", {"authorization": f"Bearer {apikey}"})
    return found


async def let_in(daemon: Daemon, apikey: str, *, seconds: float = 20.0) -> None:
    """Try as a client does until the token is good."""
    with trio.fail_after(seconds):
        while await trio.to_thread.run_sync(status, daemon, apikey) != 202:
            await trio.sleep(0.2)


def test_a_key_set_in_a_file_changes_without_a_restart(prepared: TestDatabase, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text(jwks("old"))
    with running_daemon(prepared.dsn, tmp_path, {"WALSTREAM_JWKS": str(path)}) as daemon:
        assert (status(daemon, signed("old")), status(daemon, signed("new"))) == (202, 401)
        path.write_text("{broken")
        trio.run(let_in, daemon, signed("old"))
        (tmp_path / "next.json").write_text(jwks("new"))
        (tmp_path / "next.json").replace(path)
        trio.run(let_in, daemon, signed("new"))
        assert status(daemon, signed("old")) == 401
        events = [line["event"] for line in daemon.log()]
        assert "keys.changed" in events
        assert SECRET not in daemon.log_path.read_text()


@pytest.fixture
def key_server() -> Iterator[tuple[str, dict[str, str]]]:
    """An address that serves what is in the dict under ``keys``, and counts."""
    serves: dict[str, str] = {"keys": jwks("old"), "requests": "0"}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            serves["requests"] = str(int(serves["requests"]) + 1)
            body = serves["keys"].encode()
            tag = f'"{hash(body)}"'
            is_known = self.headers.get("If-None-Match") == tag
            self.send_response(304 if is_known else 200)
            self.send_header("ETag", tag)
            self.send_header("Cache-Control", "max-age=600")
            self.send_header("Content-Length", "0" if is_known else str(len(body)))
            self.end_headers()
            if not is_known:
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/keys", serves
        server.shutdown()
        thread.join()


def test_a_new_key_at_an_address_is_found_by_the_first_token_that_names_it(
    prepared: TestDatabase, tmp_path: Path, key_server: tuple[str, dict[str, str]]
) -> None:
    address, serves = key_server
    with running_daemon(prepared.dsn, tmp_path, {"WALSTREAM_JWKS": address}) as daemon:
        assert status(daemon, signed("old")) == 202
        serves["keys"] = jwks("old", "new")
        trio.run(let_in, daemon, signed("new"))
        assert status(daemon, signed("old")) == 202
        before = int(serves["requests"])
        for number in range(50):
            assert status(daemon, jwt.encode({"role": "anon"}, KEYS["old"], "ES256", {"kid": f"k{number}"})) == 401
        assert int(serves["requests"]) <= before + 1


async def ended(client: PhoenixClient, topic: str) -> tuple[str, str]:
    """With what a channel ended."""
    text: str = (await client.next("system", topic=topic)).payload["message"]
    with trio.fail_after(5):
        while True:
            frame = await client.next(topic=topic)
            if frame.event in ("phx_close", "phx_error"):
                return text, frame.event


def test_a_revoked_token_ends_its_channels_and_no_other(prepared: TestDatabase, tmp_path: Path) -> None:
    path = tmp_path / "revoked"
    path.write_text("")
    with running_daemon(prepared.dsn, tmp_path, {"WALSTREAM_REVOKED": str(path)}) as daemon:
        ann, bob = token("authenticated", sub="ann", jti="t-1"), token("authenticated", sub="bob")

        async def main() -> None:
            url = daemon.websocket_url
            async with phoenix(url, apikey=token()) as client, phoenix(url, apikey=ann) as other:
                await client.join("realtime:a", access_token=ann)
                await client.join("realtime:b", access_token=bob)
                await other.join("realtime:a")
                path.write_text("t-1\n")
                for one in (client, other):
                    assert await ended(one, "realtime:a") == ("The token has been revoked", "phx_close")
                reply = await other.reply(await other.push("realtime:c", "phx_join", {"config": {}}))
                assert reply["response"] == {"reason": "TokenRevoked: The token has been revoked"}
                assert [frame for frame in await client.drain() if frame.topic == "realtime:b"] == []

        trio.run(main)
        assert (status(daemon, ann), status(daemon, bob)) == (401, 202)
        path.unlink()
        refused = [line for line in daemon.log() if line["event"] == "channel.refused"]
        assert [(line["role"], line["user"], line["topic"]) for line in refused] == [
            ("authenticated", "ann", "realtime:c")
        ]
        assert ann not in daemon.log_path.read_text()


def test_a_token_that_expires_ends_what_it_authorised(prepared: TestDatabase, tmp_path: Path) -> None:
    with running_daemon(prepared.dsn, tmp_path) as daemon:

        async def main() -> None:
            async with phoenix(daemon.websocket_url, apikey=token()) as client:
                short = token("authenticated", seconds=2)
                await client.join("realtime:a", access_token=short)
                await client.join("realtime:b")
                text, event = await ended(client, "realtime:a")
                # In whole seconds, by the daemon's clock.
                assert (text, event) == ("Token has expired 0 seconds ago", "phx_error")
                await client.push("realtime:b", "broadcast", {"type": "broadcast", "event": "e", "payload": {}})
                assert [frame for frame in await client.drain() if frame.topic == "realtime:b"] == []
                reply = await client.reply(await client.push("realtime:a", "phx_join", {"access_token": short}))
                assert reply["response"]["reason"].startswith("InvalidJWTToken: Token has expired")
                await client.join("realtime:a", access_token=token("authenticated"))

        trio.run(main)


def test_required_claims(prepared: TestDatabase, tmp_path: Path) -> None:
    with running_daemon(prepared.dsn, tmp_path, {"WALSTREAM_JWT_CLAIMS": "iss=us,aud=app"}) as daemon:
        assert status(daemon, token(iss="us", aud=["web", "app"])) == 202
        assert status(daemon, token(iss="us")) == status(daemon, token(iss="them", aud="app")) == 401


UPGRADE = {
    "connection": "Upgrade", "upgrade": "websocket", "sec-websocket-version": "13",
    "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
}  # fmt: skip


def attacks() -> list[str]:
    """What is no token of ours, or says too much."""
    good = token()
    header, payload, _ = good.split(".")
    return [
        "", "x", "..", "a.b.c", "é.é.é", f"{header}.{payload}.", f"{header}.{payload}", good[:-4] + "AAAA",
        jwt.encode({"role": "service_role", "exp": 2**40}, "", algorithm="none"),
        jwt.encode({"role": "service_role", "exp": 2**40}, "x" * 40, algorithm="HS256"),
        jwt.encode({"role": "anon", "exp": 2**40}, SECRET, algorithm="HS256", headers={"jku": "http://127.0.0.1/k"}),
        jwt.encode({"role": "anon", "exp": 2**40, "pad": "x" * 12_500}, SECRET, algorithm="HS256"),
        jwt.encode({"role": ["service_role"], "exp": 2**40}, SECRET, algorithm="HS256"),
        "'; drop table realtime.messages; --", "%00" * 20, "\\x00",
    ]  # fmt: skip


def test_tokens_of_attackers_are_refused_at_every_door(prepared: TestDatabase, tmp_path: Path) -> None:
    with running_daemon(prepared.dsn, tmp_path) as daemon:

        async def main() -> None:
            async with phoenix(daemon.websocket_url, apikey=token()) as client:
                for number, attack in enumerate(attacks()):
                    ref = await client.push(f"realtime:{number}", "phx_join", {"config": {}, "access_token": attack})
                    assert (await client.reply(ref))["status"] == "error", attack
                await client.join("realtime:still-here")

        trio.run(main)
        for attack in attacks():
            path = f"/socket/websocket?vsn=2.0.0&apikey={quote(attack)}"
            expected = 431 if len(attack) > 4096 else 401
            assert daemon.request("GET", path, None, UPGRADE)[0] in (401, 414, 431), attack
            if attack.isascii():
                assert status(daemon, attack) == expected, attack
        assert not [line for line in daemon.log() if line.get("event") in ("handler.failed", "http.failed")]


@pytest.mark.parametrize("role", ["postgres", "nobody_of_that_name", "anon; drop table x"])
def test_roles_that_no_client_may_have_come_into_no_private_room(
    prepared: TestDatabase, tmp_path: Path, role: str
) -> None:
    prepared.execute("create policy everybody on realtime.messages for all using (true) with check (true)")
    with running_daemon(prepared.dsn, tmp_path) as daemon:

        async def main() -> None:
            async with phoenix(daemon.websocket_url, apikey=token(role)) as client:
                ref = await client.push("realtime:hall", "phx_join", {"config": {"private": True}})
                assert (await client.reply(ref))["response"]["reason"].startswith("Unauthorized: ")

        trio.run(main)
