"""Which handshakes are let in, and with which words the others are refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.channel.channel_support import NOW, VERIFIER, VSN_1, VSN_2, token
from walstream.auth.tokens import Verifier, mint
from walstream.channel.handshake import Rejection, Welcome, decide

OPEN = Verifier(open_role="anon")
Pairs = list[tuple[str, str]]


def refusal(query: Pairs, headers: Pairs | None = None, verifier: Verifier = VERIFIER) -> tuple[int, str]:
    decided = decide(query, headers or [], verifier, NOW)
    assert isinstance(decided, Rejection)
    return decided.status, json.loads(decided.body)["error"]


@pytest.mark.parametrize(
    ("query", "vsn"),
    [
        ([("apikey", "opaque"), ("log_level", "info"), ("vsn", "2.0.0")], VSN_2),
        ([("apikey", "opaque"), ("eventsPerSecond", "10")], VSN_1),
        ([("vsn", "1.0.0"), ("apikey", "opaque")], VSN_1),
    ],
)
def test_the_queries_of_official_clients_are_let_in(query: Pairs, vsn: str) -> None:
    decided = decide(query, [], VERIFIER, NOW)
    assert decided == Welcome(vsn, VERIFIER.verify("opaque", NOW), "opaque")


@pytest.mark.parametrize(
    ("query", "headers"),
    [
        ([("apikey", "bad")], [("x-api-key", "opaque")]),
        ([], [("apikey", "opaque")]),
        ([("apikey", "")], [("authorization", "Bearer opaque")]),
        ([], [("authorization", "bearer  opaque ")]),
    ],
)
def test_keys_may_come_in_headers(query: Pairs, headers: Pairs) -> None:
    assert isinstance(decide(query, headers, VERIFIER, NOW), Welcome)


@pytest.mark.parametrize("vsn", ["", "3.0.0", "x"])
def test_an_unknown_version_has_no_answer_but_the_status(vsn: str) -> None:
    assert decide([("vsn", vsn), ("apikey", "opaque")], [], VERIFIER, NOW) == Rejection(403, b"", "UnsupportedVersion")


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (token(-5), "Token has expired"),
        ("nonsense", "The token provided is not a valid JWT"),
        (mint("x" * 32, {"role": "anon", "exp": int(NOW) + 60}), "Failed to validate JWT signature"),
    ],
)
def test_bad_keys_are_refused_in_the_reference_servers_words(key: str, text: str) -> None:
    assert refusal([("apikey", key)]) == (401, text)


def test_a_key_is_needed() -> None:
    assert refusal([]) == (401, "API key is missing")
    assert refusal([("apikey", "")], [("authorization", "Basic opaque")]) == (401, "API key is missing")


@pytest.mark.parametrize(
    "origin",
    [
        None,
        "http://localhost:5173",
        "http://127.0.0.1:3100",
        "https://[::1]:1",
        "http://app.localhost",
        "http://127.1.2.3",
    ],
)
def test_without_keys_this_machine_may_connect(origin: str | None) -> None:
    headers = [] if origin is None else [("origin", origin)]
    assert decide([], headers, OPEN, NOW) == Welcome(VSN_1, OPEN.verify("", NOW), "")


@pytest.mark.parametrize(
    "origin",
    ["https://example.org", "null", "", "http://127.evil.example.org", "http://[", "http://127.0.0.1.example.org"],
)
def test_without_keys_no_other_website_may_connect(origin: str) -> None:
    status, text = refusal([], [("origin", origin)], OPEN)
    assert status == 403
    assert "WALSTREAM_JWT_SECRET" in text
    assert isinstance(decide([("apikey", "opaque")], [("origin", origin)], VERIFIER, NOW), Welcome)


PAIRS = st.lists(st.tuples(st.sampled_from(["vsn", "apikey", "x-api-key", "authorization", "origin"]), st.text()))


@given(PAIRS, PAIRS, st.sampled_from([VERIFIER, OPEN]))
def test_every_handshake_is_decided(query: Pairs, headers: Pairs, verifier: Verifier) -> None:
    decided = decide(query, headers, verifier, NOW)
    assert isinstance(decided, Welcome) or decided.status in (401, 403)
