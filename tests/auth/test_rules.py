"""Claims that operators require, and lists of revoked tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walstream.auth.rules import Revocations, parse_required, unmet
from walstream.auth.tokens import Claims, Verifier, mint
from walstream.errors import ConfigError, TokenError

SECRET = "super-secret-jwt-token-with-at-least-32-characters-long"
NOW = 1_700_000_000.5


def revoked(text: str, *, token_id: str = "", session: str = "", user: str = "", issued_at: int | None = None) -> bool:
    return Revocations.parse(text).has(token_id=token_id, session=session, user=user, issued_at=issued_at)


def test_entries_of_a_list() -> None:
    text = """
    # leavers
    8b2f
      jti:urn:uuid:1
    urn:uuid:2
    session:s-1
    sub:ann
    sub:bob@100
    sub:bob@50
    sub:eve@example.org
    """
    assert len(Revocations.parse(text)) == 7 - 0
    for token_id in ("8b2f", "urn:uuid:1", "urn:uuid:2"):
        assert revoked(text, token_id=token_id)
    assert revoked(text, session="s-1")
    assert revoked(text, user="ann")
    assert revoked(text, user="ann", issued_at=10**12)
    assert [revoked(text, user="bob", issued_at=at) for at in (99, 100, 101, None)] == [True, True, False, True]
    assert revoked(text, user="eve@example.org", issued_at=5)
    assert not revoked(text)
    assert not revoked(text, token_id="s-1", session="8b2f", user="carl")


@given(st.text(max_size=200), st.text(max_size=10))
def test_any_text_is_a_list(text: str, name: str) -> None:
    assert isinstance(revoked(text, token_id=name, session=name, user=name), bool)


def test_required_claims() -> None:
    required = parse_required(" iss=https://auth.test/a=b , aud = app,")
    assert required == {"iss": "https://auth.test/a=b", "aud": "app"}
    assert parse_required("") == {}
    good = {"iss": "https://auth.test/a=b", "aud": ["other", "app"]}
    assert unmet(good, required) == ""
    assert unmet({**good, "aud": "app"}, required) == ""
    for wrong in ({}, {"iss": "x"}, {**good, "aud": "apple"}, {**good, "aud": None}, {**good, "aud": {"app": 1}}):
        assert unmet(wrong, required) in ("iss", "aud")


@pytest.mark.parametrize("text", ["iss", "=x", "iss=", "iss=x,aud"])
def test_what_is_no_required_claim(text: str) -> None:
    with pytest.raises(ConfigError, match="jwt_claims"):
        parse_required(text)


def test_a_verifier_goes_by_both() -> None:
    verifier = Verifier(SECRET, required={"iss": "us"})
    claims = {"role": "anon", "exp": int(NOW) + 60, "iss": "us", "sub": "ann", "jti": "t", "session_id": "s", "iat": 5}
    token = mint(SECRET, claims)
    found = verifier.verify(token, NOW)
    assert (found.jti, found.session, found.iat) == ("t", "s", 5)
    for entry in ("t", "session:s", "sub:ann@5", "sub:ann"):
        verifier.revocations = Revocations.parse(entry)
        for check in (lambda: verifier.verify(token, NOW), lambda: verifier.check(found, NOW)):
            with pytest.raises(TokenError) as caught:
                check()
            assert caught.value.name == "TokenRevoked"
    verifier.revocations = Revocations.parse("sub:ann@4")
    verifier.check(found, NOW)
    with pytest.raises(TokenError, match="iss"):
        verifier.verify(mint(SECRET, {**claims, "iss": "them"}), NOW)
    verifier.check(Claims("anon"), NOW)
