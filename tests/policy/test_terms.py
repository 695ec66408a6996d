"""Values made of claims: what PostgreSQL computes, or nothing. Compared with it in integration/policy."""

from __future__ import annotations

import pytest

from walstream.policy import Viewer
from walstream.policy.terms import (
    BOOL,
    INT2,
    INT4,
    INT8,
    JSON,
    JSONB,
    TEXT,
    UUID,
    Coalesce,
    CurrentUser,
    Document,
    Elements,
    Fixed,
    Listed,
    Member,
    NullIf,
    Parts,
    Path,
    Print,
    Read,
    Resize,
    Scalar,
    Session,
    Setting,
    Term,
    Unsure,
)  # fmt: skip

ID = "aaaaaaaa-1111-4111-8111-aaaaaaaaaaaa"
ALL = Setting("request.jwt.claims")


def session(claims: str) -> Session:
    return Session(Viewer("anon", claims))


def member(key: str | int, oid: int = JSONB, *, as_text: bool = True) -> Member:
    return Member(Read(ALL, oid), key, as_text)


@pytest.mark.parametrize(
    ("term", "claims", "value"),
    [
        (member("a"), '{"a": "x"}', "x"),
        (member("a"), '{"a": true}', "true"),
        (member("a"), '{"a": null}', None),
        (member("a"), "{}", None),
        (member("a"), '"a"', None),
        (member("a"), '{"a": 1.50}', "1.50"),
        (member("a"), '{"a": -0.0}', "0.0"),
        (member("a", JSON), '{"a": -0.0}', "-0.0"),
        (member("a", JSON), '{"a": 1E5}', "1E5"),
        (member(1), '["x", "y"]', "y"),
        (member(-1), '["x", "y"]', "y"),
        (member(2), '["x", "y"]', None),
        (member(0), "{}", None),
        (member("a", as_text=False), '{"a": null}', Document(None, binary=True)),
        (Path(Read(ALL, JSONB), ("a", "b"), as_text=True), '{"a": {"b": "x"}}', "x"),
        (Path(Read(ALL, JSONB), ("a", "b"), as_text=True), '{"a": 1}', None),
        (Read(member("a"), UUID), f'{{"a": "{ID.upper()}"}}', ID),
        (Read(member("a"), INT8), '{"a": " 12 "}', 12),
        (Read(member("a", as_text=False), BOOL), '{"a": true}', True),
        (Read(member("a", as_text=False), INT4), '{"a": 7}', 7),
        (Print(Read(member("a"), INT4)), '{"a": "007"}', "7"),
        (Resize(Read(member("a"), INT8), INT2), '{"a": 32767}', 32767),
        (Coalesce((member("a"), Fixed(TEXT, "z"))), "{}", "z"),
        (NullIf(member("a"), ""), '{"a": ""}', None),
        (Setting("request.jwt.claim.email", nullif=True), "{}", None),
        (Setting("request.jwt.claim.sub"), '{"sub": "x"}', "x"),
        (CurrentUser(), "{}", "anon"),
    ],
)
def test_value(term: Term, claims: str, value: Scalar) -> None:
    assert term(session(claims)) == value


@pytest.mark.parametrize(
    ("term", "claims"),
    [
        (member("a"), ""),
        (member("a"), "{"),
        (member("a"), '{"a": {}}'),
        (member("a"), '{"a": []}'),
        (member("a"), '{"a": 1, "b": 1e5}'),
        (member("a"), '{"a": 1, "b": "\\u0000"}'),
        (member("a"), '{"a": 1, "b": {"\\ud800": 1}}'),
        (member("a"), '{"a": "\\u0000", "a": 1}'),
        (member(0), "1"),
        (Coalesce((Fixed(TEXT, "z"), Print(Read(ALL, UUID)))), "{}"),
        (Path(Read(ALL, JSONB), ("a", "0"), as_text=True), '{"a": [1]}'),
        (Read(member("a"), UUID), '{"a": "x"}'),
        (Read(member("a", as_text=False), BOOL), '{"a": "true"}'),
        (Read(member("a", as_text=False), BOOL), '{"a": null}'),
        (Read(member("a", as_text=False), INT4), '{"a": 1.5}'),
        (Resize(Read(member("a"), INT8), INT2), '{"a": 32768}'),
        (Setting("request.jwt.claim.email"), "{}"),
        (Setting("request.jwt.claim.email", missing_ok=False, nullif=True), "{}"),
        (Setting("app.tenant", nullif=True), "{}"),
    ],
)
def test_unsure(term: Term, claims: str) -> None:
    with pytest.raises(Unsure):
        term(session(claims))


def test_lists() -> None:
    items = Elements(Member(Read(ALL, JSONB), "a"))
    assert items(session('{"a": ["x", 1, null, true]}')) == ("x", "1", None, "true")
    assert items(session("{}")) == ()
    assert Elements(Member(Read(ALL, JSONB), "a"), INT4)(session('{"a": ["1", 2, null]}')) == (1, 2, None)
    for claims in ('{"a": null}', '{"a": {}}', '{"a": [[]]}'):
        with pytest.raises(Unsure):
            items(session(claims))
    parts = Parts(member("a"), ",")
    assert [parts(session(claims)) for claims in ('{"a": "x,,y"}', '{"a": ""}', "{}")] == [("x", "", "y"), (), None]
    assert Listed((Fixed(TEXT, "x"), member("a")))(session("{}")) == ("x", None)
