"""REST broadcast: what official clients send becomes broadcasts, everything else the answer that they understand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tests.shell.http_support import Answer, ask
from tests.support import run
from walstream.auth.tokens import Claims, Verifier, mint
from walstream.rooms import Broadcast, RoomKey
from walstream.shell.clients.http_broadcast import json_payload, read_batch, routes

SECRET = "a-secret-that-is-long-enough-for-anybody"
NOW = 1_800_000_000.0
BATCH = "/api/broadcast"


def token(sub: str = "ann", role: str = "authenticated", exp: float = NOW + 60) -> str:
    return mint(SECRET, {"role": role, "sub": sub, "exp": int(exp)})


class Publisher:
    """Remembers what it was given; answers by topic."""

    def __init__(self, **codes: str) -> None:
        self.codes = codes
        self.sent: list[tuple[str, Broadcast, bool | int]] = []
        self.headers: list[dict[str, str]] = []

    async def publish(
        self, claims: Claims, broadcast: Broadcast, *, persist: bool | int = False, headers: str = "{}"
    ) -> str:
        await trio.lowlevel.checkpoint()
        self.headers.append(json.loads(headers))
        self.sent.append((claims.sub, broadcast, persist))
        return self.codes.get(broadcast.room.subtopic, "")

    async def publish_all(self, claims: Claims, broadcasts: Sequence[Broadcast], *, headers: str = "{}") -> list[str]:
        assert len({broadcast.room for broadcast in broadcasts}) == 1
        return [await self.publish(claims, broadcast, headers=headers) for broadcast in broadcasts]


def post(
    target: str, body: Any = b"", publisher: Publisher | None = None, *, headers: dict[str, str] | None = None
) -> Answer:
    """``body``: bytes as they are, or something to be sent as JSON."""
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
    given_headers = {"authorization": f"Bearer {token()}"} if headers is None else headers
    made = routes(publisher or Publisher(), Verifier(SECRET), max_message_bytes=100, clock=lambda: NOW)
    return run(lambda: ask(made, "POST", target, body, given_headers))


@pytest.mark.parametrize("prefix", ["", "/realtime/v1"])
def test_a_batch_is_sent_in_order(prefix: str) -> None:
    publisher = Publisher()
    answer = post(
        prefix + BATCH,
        b'{"messages": [{"topic":"room1","event":"ping","payload": {"n" : 1},"private":false},'
        b' {"id":"m-1","topic":"room1","event":"ping","payload":{"n":2},"private":true},'
        b' {"topic":"room1","event":"pong","payload":{}}]}',
        publisher,
    )
    assert (answer.status, answer.body) == (202, b"")
    public, private = RoomKey("room1"), RoomKey("room1", private=True)
    assert [(sub, b) for sub, b, _ in publisher.sent if not b.room.private] == [
        ("ann", Broadcast(room=public, event="ping", payload=b'{"n" : 1}')),
        ("ann", Broadcast(room=public, event="pong", payload=b"{}")),
    ]
    assert [b for _, b, _ in publisher.sent if b.room.private] == [
        Broadcast(room=private, event="ping", payload=b'{"n":2}', id="m-1")
    ]
    assert answer.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize(
    ("messages", "errors"),
    [
        (None, ["can't be blank"]),
        ([], ["can't be blank"]),
        ("x", ["is invalid"]),
        ([7], ["is invalid"]),
        (
            [{"topic": "t", "event": "e"}, {"topic": "t", "event": "e", "payload": {}}],
            [{"payload": ["can't be blank"]}, {}],
        ),
        (
            [{"topic": " ", "event": 7, "payload": [], "private": "maybe", "id": {}}],
            [
                {
                    "topic": ["can't be blank"], "event": ["is invalid"], "payload": ["is invalid"],
                    "private": ["is invalid"], "id": ["is invalid"],
                }
            ],
        ),
        (
            [{"topic": "t", "event": "e", "payload": {"x": "y" * 100}}],
            [{"payload": ["Payload size exceeds tenant limit"]}],
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_batch_is_told_message_by_message_and_nothing_is_sent(messages: Any, errors: Any) -> None:
    publisher = Publisher()
    answer = post(BATCH, {} if messages is None else {"messages": messages}, publisher)
    assert (answer.status, answer.json) == (422, {"errors": {"messages": errors}})
    assert publisher.sent == []


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b'{"messages": [{"topic": "\xff"}]}', b"[" * 100_000])
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    assert post(BATCH, body).status == 400


def test_a_body_is_bounded_before_it_is_parsed() -> None:
    large = b"x" * (9 * 1024 * 1024)
    assert post(BATCH, large).status == 413
    publisher = Publisher()
    made = routes(publisher, Verifier(SECRET), max_message_bytes=100, clock=lambda: NOW)
    headers = {"authorization": f"Bearer {token()}"}
    parts = [b"x" * 1024 * 1024] * 9
    assert run(lambda: ask(made, "POST", BATCH, parts, headers)).status == 413
    told = {**headers, "content-length": "99999999999999999999999999"}
    assert run(lambda: ask(made, "POST", BATCH, b"", told)).status == 413


def test_too_many_messages_are_refused() -> None:
    answer = post(BATCH, {"messages": [{"topic": "t", "event": "e", "payload": {}}] * 1001})
    assert (answer.status, answer.json) == (
        429, {"message": "Too many messages to broadcast, please reduce the batch size"},
    )  # fmt: skip


def test_what_may_not_be_sent_is_passed_over_and_what_failed_is_told() -> None:
    messages: list[dict[str, Any]] = [
        {"topic": topic, "event": "e", "payload": {}} for topic in ("secret", "open", "stored", "large")
    ]
    publisher = Publisher(secret="unauthorized")
    assert post(BATCH, {"messages": messages}, publisher).status == 202
    assert len(publisher.sent) == 4
    answer = post(BATCH, {"messages": messages}, Publisher(large="payload_size_exceeded", secret="unauthorized"))
    assert (answer.status, answer.json) == (
        422, {"errors": {"messages": [{}, {}, {}, {"payload": ["Payload size exceeds tenant limit"]}]}},
    )  # fmt: skip
    answer = post(BATCH, {"messages": messages}, Publisher(stored="unable_to_connect_to_project"))
    assert (answer.status, answer.json["message"]) == (422, "Tenant database unavailable")


@pytest.mark.parametrize(
    ("headers", "sub"),
    [
        ({"apikey": token("key")}, "key"),
        ({"apikey": "no token", "authorization": f"Bearer {token('person')}"}, "person"),
        ({"apikey": token("key"), "authorization": "Bearer no token"}, None),
        ({"authorization": f"Bearer {token(exp=NOW - 1)}"}, None),
        ({"authorization": f"Basic {token()}"}, None),
        ({}, None),
    ],
)
def test_authorization_wins_over_the_key(headers: dict[str, str], sub: str | None) -> None:
    for target in (BATCH, BATCH + "/t/events/e"):
        publisher = Publisher()
        body = {"messages": [{"topic": "t", "event": "e", "payload": {}}]}
        answer = post(target, body, publisher, headers=headers)
        if sub is None:
            assert (answer.status, answer.json) == (401, {"message": "Unauthorized"})
        else:
            assert [who for who, _, _ in publisher.sent] == [sub]


@pytest.mark.parametrize("prefix", ["", "/realtime/v1"])
def test_one_message_with_its_names_in_the_path(prefix: str) -> None:
    publisher = Publisher()
    target = f"{prefix}{BATCH}/a%2Fb%20%C3%A9/events/ev%20bin%2Fx"
    assert post(target, b' {"n" : 1} ', publisher).status == 202
    bytes_ = {"authorization": f"Bearer {token()}", "content-type": "application/octet-stream"}
    assert post(target + "?private=true", b"\0\xff", publisher, headers=bytes_).status == 202
    assert [b for _, b, _ in publisher.sent] == [
        Broadcast(room=RoomKey("a/b é"), event="ev bin/x", payload=b'{"n" : 1}'),
        Broadcast(room=RoomKey("a/b é", private=True), event="ev bin/x", payload=b"\0\xff", binary=True),
    ]


@pytest.mark.parametrize(
    ("query", "persist"),
    [("", False), ("persist=true", True), ("persist=false", False), ("persist%5Bttl%5D=60", 60), ("persist[ttl]=7", 7)],
)
def test_storing_is_asked_for_in_the_query(query: str, persist: bool | int) -> None:
    publisher = Publisher()
    assert post(f"{BATCH}/t/events/e?{query}", b"{}", publisher).status == 202
    ((_, _, found),) = publisher.sent
    assert (found, type(found)) == (persist, type(persist))


@pytest.mark.parametrize(
    "query",
    ["persist=maybe", "persist[ttl]=0", "persist[ttl]=-1", "persist[ttl]=x", "persist[ttl]=9999999999999"],
)
def test_a_time_that_cannot_be_is_refused(query: str) -> None:
    answer = post(f"{BATCH}/t/events/e?{query}", b"{}")
    assert (answer.status, answer.json["error"]) == (422, "invalid_persist_ttl")


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (BATCH + "/t", 404), (BATCH + "/t/events", 404), (BATCH + "/t/events/", 404), (BATCH + "//events/e", 404),
        (BATCH + "/t/event/e", 404), (BATCH + "/t/events/e/more", 404), (BATCH + "/%FF/events/e", 404),
        (BATCH + "/" + "t" * 1001 + "/events/e", 422),
    ],
)  # fmt: skip
def test_other_paths_are_nothing(target: str, status: int) -> None:
    assert post(target, b"{}").status == status


def test_the_method_is_post() -> None:
    made = routes(Publisher(), Verifier(SECRET), max_message_bytes=100, clock=lambda: NOW)
    assert run(lambda: ask(made, "GET", BATCH + "/t/events/e")).status == 405


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json; charset=utf-8", 202),
        ("application/vnd.x+json", 202),
        ("text/plain", 415),
        ("image/png", 415),
    ],
)
def test_media_types(kind: str, status: int) -> None:
    headers = {"authorization": f"Bearer {token()}", "content-type": kind}
    answer = post(BATCH + "/t/events/e", b"{}", headers=headers)
    assert answer.status == status
    if status == 415:
        assert answer.json == {"error": "Unsupported Media Type. Use application/json or application/octet-stream"}


def test_a_payload_that_is_too_large_is_refused_by_both() -> None:
    answer = post(BATCH + "/t/events/e", {"x": "y" * 100})
    assert (answer.status, answer.json) == (422, {"errors": {"payload": ["Payload size exceeds tenant limit"]}})


@pytest.mark.parametrize(
    ("body", "payload"),
    [
        (b"", b"{}"),
        (b" ", b"{}"),
        (b"[1, 2]", b'{"_json":[1, 2]}'),
        (b'"x"', b'{"_json":"x"}'),
        (b" null ", b'{"_json":null}'),
        (b'{"a":1} ', b'{"a":1}'),
        (b"{", None),
        (b"{} {}", None),
        (b'"\xff"', None),
    ],
)
def test_payloads_of_single_messages(body: bytes, payload: bytes | None) -> None:
    assert json_payload(body) == payload


@pytest.mark.parametrize(
    ("code", "status", "body"),
    [
        ("unauthorized", 403, {"message": "Unauthorized"}),
        ("payload_size_exceeded", 422, {"errors": {"payload": ["Payload size exceeds tenant limit"]}}),
        ("missing_partition", 422, {"message": "Missing messages partition", "error": "missing_partition"}),
        (
            "increase_connection_pool",
            429,
            {"message": "Connection pool exhausted", "error": "increase_connection_pool"},
        ),
        ("rate", 429, {"message": "Too many requests", "error": "rate"}),
        ("payload_invalid: payload.n: no number", 422, {"message": "payload.n: no number", "error": "payload_invalid"}),
        ("something_new", 422, {"message": "something_new", "error": "something_new"}),
    ],
)
def test_codes_of_the_publisher(code: str, status: int, body: object) -> None:
    answer = post(BATCH + "/t/events/e", b"{}", Publisher(t=code))
    assert (answer.status, answer.json) == (status, body)


def test_a_page_of_another_machine_is_refused_while_there_are_no_keys() -> None:
    made = routes(Publisher(), Verifier(open_role="anon"), max_message_bytes=100, clock=lambda: NOW)
    foreign = {"origin": "https://evil.example"}
    assert run(lambda: ask(made, "POST", BATCH + "/t/events/e", b"{}", foreign)).status == 401
    assert run(lambda: ask(made, "POST", BATCH + "/t/events/e", b"{}", {"origin": "http://localhost:1"})).status == 202


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.sampled_from(["topic", "event", "payload", "private", "id"]), inner)
    ),
)


@given(JSON)
def test_any_messages_are_read_or_refused(messages: object) -> None:
    read = read_batch(json.dumps({"messages": messages}).encode(), 50)
    assert not isinstance(read, str)
    broadcasts, errors = read
    assert bool(broadcasts) or bool(errors)
    for broadcast in broadcasts:
        assert broadcast.event
        assert broadcast.room.subtopic
        assert isinstance(json.loads(broadcast.payload), dict)


@given(st.binary())
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    read_batch(body, 50)
    json_payload(body)


@pytest.mark.parametrize("target", ["/api/broadcast/hall/events/say?private=true", "/api/broadcast"])
def test_policies_see_the_headers_but_no_keys(target: str) -> None:
    publisher = Publisher()
    body = {"messages": [{"topic": "hall", "event": "say", "payload": {}}]}
    given = {"authorization": f"Bearer {token()}", "apikey": "k", "x-tenant": "7", "cookie": "c=1"}
    assert post(target, body, publisher, headers=given).status == 202
    (seen,) = publisher.headers
    assert seen["x-tenant"] == "7"
    assert not {"authorization", "apikey", "cookie"} & set(seen)
