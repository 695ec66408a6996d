"""What is read from a key set and from the list of API keys."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walstream.auth.keys import ApiKeys, KeySet
from walstream.errors import ConfigError

OCT = {"kty": "oct", "kid": "a", "k": "c2VjcmV0"}


def test_no_text_is_an_empty_set() -> None:
    assert len(KeySet.parse("")) == 0
    assert KeySet.parse(" \n").find("a", "oct") is None


def test_a_key_is_found_by_id_and_type() -> None:
    keys = KeySet.parse(json.dumps({"keys": [OCT]}))
    key = keys.find("a", "oct")
    assert key is not None
    assert key.material == b"secret"
    assert keys.find("a", "RSA") is None
    assert keys.find("b", "oct") is None


@pytest.mark.parametrize(
    "other",
    [
        None,
        "x",
        {},
        {"kty": "oct", "k": "c2VjcmV0"},
        {**OCT, "kid": 5},
        {**OCT, "kty": ["oct"]},
        {**OCT, "kty": "AKP"},
        {**OCT, "use": "enc"},
        {**OCT, "k": ""},
        {**OCT, "k": 5},
        {"kty": "oct", "kid": "b"},
        {"kty": "RSA", "kid": "b", "n": "AQ", "e": "AQ"},
        {"kty": "EC", "kid": "b", "crv": "P-256", "x": "AQ", "y": "AQ"},
        {"kty": "OKP", "kid": "b", "crv": "X25519", "x": "AQ"},
        {**OCT, "alg": 5},
    ],
)
def test_a_key_that_cannot_be_used_is_passed_over(other: object) -> None:
    assert len(KeySet.parse(json.dumps({"keys": [other, {**OCT, "kid": "good"}]}))) == 1
    with pytest.raises(ConfigError, match="no usable key"):
        KeySet.parse(json.dumps({"keys": [other]}))


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"keys": 5}', "null", "[" * 9999])
def test_what_is_no_key_set_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^jwks: "):
        KeySet.parse(text)


json_values = st.recursive(
    st.none() | st.integers() | st.text(max_size=8) | st.sampled_from(["oct", "RSA", "EC", "OKP", "P-256", "Ed25519"]),
    lambda inner: st.lists(inner, max_size=2),
    max_leaves=3,
)


@given(st.dictionaries(st.sampled_from(["kty", "kid", "k", "n", "e", "d", "p", "crv", "x", "y", "alg"]), json_values))
def test_a_hostile_key_raises_nothing_but_configuration_errors(key: dict[str, object]) -> None:
    assert len(KeySet.parse(json.dumps({"keys": [{"kid": "x", **key}, {**OCT, "kid": "good"}]}))) >= 1


def test_api_keys_are_listed_with_their_roles() -> None:
    keys = ApiKeys.parse(" sb_1=anon, base64= = service_role ,")
    assert (keys.role("sb_1"), keys.role("base64="), keys.role("sb_2")) == ("anon", "service_role", None)
    assert len(ApiKeys.parse("")) == 0


@pytest.mark.parametrize("text", ["key", "=role", "key=", "a=b,c"])
def test_an_entry_without_key_or_role_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^api_keys: "):
        ApiKeys.parse(text)
