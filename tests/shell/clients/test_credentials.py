"""Key sets and lists of revoked tokens that change while the daemon runs, or cannot be read."""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import cast

import pytest
import trio
import trio.testing
from jwt.utils import base64url_encode

from tests.support import run
from walstream.auth.tokens import Verifier, mint
from walstream.errors import ConfigError, TokenError
from walstream.shell.clients.credentials import AGAIN_SECONDS, ASKED_SECONDS, LOOK_SECONDS, KeyKeeper, RevocationWatch
from walstream.shell.clients.key_sets import KeySetSource

NOW = 1_700_000_000.0
FRESH = 300.0


def jwks(*kids: str) -> str:
    return json.dumps({"keys": [{"kty": "oct", "kid": kid, "k": base64url_encode(b"k" * 40).decode()} for kid in kids]})


class FakeSource:
    fresh_seconds = FRESH

    def __init__(self) -> None:
        self.text: str | None = None
        self.fails = False
        self.loads: list[float] = []

    def load(self) -> str | None:
        self.loads.append(self.clock())
        if self.fails:
            raise ConfigError("jwks: cannot fetch it")
        text, self.text = self.text, None
        return text

    clock: Callable[[], float]


def keeping(test: Callable[[FakeSource, Verifier], Awaitable[None]], monkeypatch: pytest.MonkeyPatch) -> None:
    async def run_sync(call: Callable[[], object], **_: object) -> object:
        await trio.lowlevel.checkpoint()
        return call()

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)

    async def main() -> None:
        source, verifier = FakeSource(), Verifier("", jwks("old"))
        began = trio.current_time()
        source.clock = lambda: trio.current_time() - began
        async with trio.open_nursery() as nursery:
            nursery.start_soon(KeyKeeper(verifier, cast("KeySetSource", source)).run)
            await trio.testing.wait_all_tasks_blocked()
            await test(source, verifier)
            nursery.cancel_scope.cancel()

    run(main, autojump=True)


def knows(verifier: Verifier, kid: str) -> bool:
    return verifier._keys.find(kid, "oct") is not None


def refused(verifier: Verifier, kid: str) -> None:
    header, payload, signature = mint("x" * 40, {"role": "anon", "exp": NOW + 60}).split(".")
    header = base64url_encode(json.dumps({"alg": "HS256", "kid": kid}).encode()).decode()
    with pytest.raises(TokenError):
        verifier.verify(f"{header}.{payload}.{signature}", NOW)


def test_a_key_set_is_loaded_again_when_it_is_no_longer_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(source: FakeSource, verifier: Verifier) -> None:
        source.text = jwks("new")
        await trio.sleep(FRESH + 1)
        assert knows(verifier, "new")
        assert not knows(verifier, "old")
        await trio.sleep(2 * FRESH)
        assert source.loads == pytest.approx([FRESH, 2 * FRESH, 3 * FRESH])

    keeping(test, monkeypatch)


def test_an_unknown_key_makes_it_look_at_once_and_then_not_too_often(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(source: FakeSource, verifier: Verifier) -> None:
        await trio.sleep(100)
        source.text = jwks("new")
        refused(verifier, "new")
        await trio.sleep(0.1)
        assert knows(verifier, "new")
        for _ in range(20):
            refused(verifier, "nobody")
            await trio.sleep(1)
        assert source.loads == pytest.approx([100, 100 + ASKED_SECONDS, 100 + 2 * ASKED_SECONDS], abs=0.5)

    keeping(test, monkeypatch)


@pytest.mark.parametrize("bad", ["{", "{}", '{"keys":[]}', None])
def test_what_cannot_be_loaded_leaves_the_old_keys(bad: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(source: FakeSource, verifier: Verifier) -> None:
        source.fails, source.text = bad is None, bad
        await trio.sleep(FRESH + 1)
        assert knows(verifier, "old")
        source.fails, source.text = False, jwks("new")
        await trio.sleep(AGAIN_SECONDS)
        assert knows(verifier, "new")

    keeping(test, monkeypatch)


def test_revoked_tokens_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "revoked"
    path.write_text("# nobody yet\n")
    verifier = Verifier("s" * 40)
    token = mint("s" * 40, {"role": "anon", "exp": NOW + 60, "jti": "t-1"})
    calls: list[int] = []

    async def run_sync(call: Callable[[], object], **_: object) -> object:
        await trio.lowlevel.checkpoint()
        return call()

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
    watch = RevocationWatch(verifier, path, lambda: calls.append(1))
    verifier.verify(token, NOW)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch.run)
            await trio.sleep(LOOK_SECONDS + 1)
            assert calls == []
            path.write_text("t-1\n")
            os.utime(path, (1, 1))
            await trio.sleep(2 * LOOK_SECONDS)
            assert calls == [1]
            with pytest.raises(TokenError, match="revoked"):
                verifier.verify(token, NOW)
            path.unlink()
            await trio.sleep(3 * LOOK_SECONDS)
            assert len(verifier.revocations) == 1
            path.write_text("")
            await trio.sleep(2 * LOOK_SECONDS)
            assert calls == [1, 1]
            verifier.verify(token, NOW)
            nursery.cancel_scope.cancel()

    run(main, autojump=True)


def test_the_daemon_does_not_start_without_its_list(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="revoked"):
        RevocationWatch(Verifier("s"), tmp_path / "absent", lambda: None)
