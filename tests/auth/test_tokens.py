"""Which tokens verify, under which key, and with which words the others are refused."""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from jwt.utils import base64url_encode

from walstream.auth.tokens import TOKEN_BYTES_MAX, Claims, ExpiredTokenError, Verifier, mint
from walstream.errors import ConfigError, TokenError

SECRET = "super-secret-jwt-token-with-at-least-32-characters-long"
NOW = 1_700_000_000.5
GOOD: dict[str, object] = {"role": "anon", "exp": int(NOW) + 60}

MALFORMED = ("MalformedJWT", "The token provided is not a valid JWT")
SIGNATURE = ("JwtSignatureError", "Failed to validate JWT signature")
SIGNER = ("JwtSignerError", "Failed to generate JWT signer, check your JWT secret or JWKS configuration")
FIELDS = ("InvalidJWTToken", "Fields `role` and `exp` are required in JWT")

RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC_KEYS = {"ES256": ec.generate_private_key(ec.SECP256R1()), "ES384": ec.generate_private_key(ec.SECP384R1())}
ED_KEY = ed25519.Ed25519PrivateKey.generate()
ED448_KEY = ed448.Ed448PrivateKey.generate()
OCT = {"kty": "oct", "kid": "shared", "k": base64url_encode(b"k" * 40).decode()}
JWKS = json.dumps(
    {
        "keys": [
            {**RSAAlgorithm.to_jwk(RSA_KEY.public_key(), as_dict=True), "kid": "rsa"},
            {**RSAAlgorithm.to_jwk(RSA_KEY, as_dict=True), "kid": "rsa-private"},
            {**ECAlgorithm.to_jwk(EC_KEYS["ES256"].public_key(), as_dict=True), "kid": "ES256", "alg": "ES256"},
            {**ECAlgorithm.to_jwk(EC_KEYS["ES384"].public_key(), as_dict=True), "kid": "ES384"},
            {**OKPAlgorithm.to_jwk(ED_KEY.public_key(), as_dict=True), "kid": "ed"},
            {**OKPAlgorithm.to_jwk(ED448_KEY.public_key(), as_dict=True), "kid": "ed448"},
            OCT,
        ]
    }
)
VERIFIER = Verifier(SECRET, JWKS)


def signer_for(kid: str) -> tuple[str, str]:
    text = "Failed to generate JWT signer for key ID (kid) {}, check your JWT secret or JWKS configuration"
    return ("JwtSignerError", text.format(f'"{kid}"'))


def sign(
    key: object, algorithm: str, kid: str | None = None, claims: Mapping[str, object] = GOOD, **header: object
) -> str:
    headers = header if kid is None else {"kid": kid, **header}
    return jwt.PyJWS().encode(json.dumps(claims).encode(), key, algorithm, headers)  # type: ignore[arg-type]  # any kind


def raw(header: object, payload: bytes, signature: bytes = b"") -> str:
    return ".".join(base64url_encode(part).decode() for part in (json.dumps(header).encode(), payload, signature))


def renamed(token: str, algorithm: str) -> str:
    """The token under another algorithm's name, its signature made anew where that is what the name means."""
    _, payload, _ = token.split(".")
    return f"{base64url_encode(json.dumps({'alg': algorithm}).encode()).decode()}.{payload}."


def refusal(token: str, verifier: Verifier = VERIFIER) -> tuple[str, str]:
    with pytest.raises(TokenError) as caught:
        verifier.verify(token, NOW)
    return caught.value.name, caught.value.text


def test_a_minted_token_verifies_and_keeps_its_claims() -> None:
    token = mint(SECRET, {"role": "authenticated", "sub": "u1", "exp": int(NOW) + 1, "team": "é"})
    claims = VERIFIER.verify(token, NOW)
    assert (claims.role, claims.sub, claims.exp) == ("authenticated", "u1", int(NOW) + 1)
    assert json.loads(claims.json) == {"role": "authenticated", "sub": "u1", "exp": int(NOW) + 1, "team": "é"}


def test_nothing_is_minted_without_a_secret() -> None:
    with pytest.raises(TokenError):
        mint("", GOOD)


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
@pytest.mark.parametrize("kid", [None, "unknown", "rsa"])
def test_hmac_tokens_fall_back_to_the_secret(algorithm: str, kid: str | None) -> None:
    secret = SECRET * 2
    assert Verifier(secret, JWKS).verify(sign(secret, algorithm, kid), NOW).role == "anon"


def test_an_hmac_token_with_the_kid_of_a_shared_key_is_checked_with_that_key() -> None:
    assert VERIFIER.verify(sign(b"k" * 40, "HS256", "shared"), NOW).role == "anon"
    assert refusal(sign(SECRET, "HS256", "shared")) == SIGNATURE


@pytest.mark.parametrize(
    ("key", "algorithm", "kid"),
    [
        (RSA_KEY, "RS256", "rsa"),
        (RSA_KEY, "RS384", "rsa"),
        (RSA_KEY, "RS512", "rsa-private"),
        (EC_KEYS["ES256"], "ES256", "ES256"),
        (EC_KEYS["ES384"], "ES384", "ES384"),
        (ED_KEY, "EdDSA", "ed"),
        (ED448_KEY, "EdDSA", "ed448"),
    ],
)
def test_asymmetric_tokens_verify_by_kid(key: object, algorithm: str, kid: str) -> None:
    assert VERIFIER.verify(sign(key, algorithm, kid), NOW).role == "anon"
    assert refusal(sign(key, algorithm)) == SIGNER
    assert refusal(sign(key, algorithm, "gone")) == signer_for("gone")
    assert refusal(sign(key, algorithm, kid), Verifier(SECRET)) == signer_for(kid)


def test_the_newer_names_of_edwards_curves_are_bound_to_their_curve() -> None:
    def named(algorithm: str, kid: str, key: ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey) -> str:
        unsigned = raw({"alg": algorithm, "kid": kid}, json.dumps(GOOD).encode()).rpartition(".")[0]
        return f"{unsigned}.{base64url_encode(key.sign(unsigned.encode())).decode()}"

    assert VERIFIER.verify(named("Ed25519", "ed", ED_KEY), NOW).role == "anon"
    assert VERIFIER.verify(named("Ed448", "ed448", ED448_KEY), NOW).role == "anon"
    assert refusal(named("Ed448", "ed", ED_KEY)) == signer_for("ed")


def test_a_key_serves_only_its_own_algorithm_and_curve() -> None:
    assert refusal(sign(EC_KEYS["ES256"], "ES256", "ES384")) == signer_for("ES384")
    jwks = json.dumps({"keys": [{**json.loads(JWKS)["keys"][0], "alg": "RS256"}]})
    verifier = Verifier("", jwks)
    assert verifier.verify(sign(RSA_KEY, "RS256", "rsa"), NOW).role == "anon"
    assert refusal(sign(RSA_KEY, "RS512", "rsa"), verifier) == signer_for("rsa")


def test_a_public_key_never_serves_as_a_secret() -> None:
    """The classic confusion: an HS256 token signed with the text of a published RSA key."""
    public = json.dumps(RSAAlgorithm.to_jwk(RSA_KEY.public_key(), as_dict=True)).encode()
    unsigned = raw({"alg": "HS256", "kid": "rsa"}, json.dumps(GOOD).encode()).rpartition(".")[0]
    signature = hmac.digest(public, unsigned.encode(), "sha256")
    token = f"{unsigned}.{base64url_encode(signature).decode()}"
    assert refusal(token) == SIGNATURE
    assert refusal(token, Verifier("", JWKS)) == signer_for("rsa")


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "", "PS256", "ES256K", "HS1", "hs256"])
def test_other_algorithms_are_refused(algorithm: str) -> None:
    assert refusal(renamed(mint(SECRET, GOOD), algorithm)) == SIGNER


@pytest.mark.parametrize("header", [{}, {"alg": None}, {"alg": 5}, {"alg": ["HS256"]}])
def test_a_header_without_an_algorithm_is_refused(header: dict[str, object]) -> None:
    assert refusal(raw(header, b"{}")) == SIGNER


@pytest.mark.parametrize(
    "extra",
    [
        {"jwk": {"kty": "oct", "k": base64url_encode(b"mine").decode()}},
        {"jku": "https://example.org/keys"},
        {"x5u": "https://example.org/cert"},
        {"x5c": ["MIIB"]},
        {"b64": False},
    ],
)
def test_a_token_that_brings_its_own_key_or_rules_is_refused(extra: dict[str, object]) -> None:
    assert refusal(sign(SECRET, "HS256", None, GOOD, **extra)) == SIGNER


@pytest.mark.parametrize("crit", [["exp"], ["b64"], [], "b64"])
def test_critical_extensions_are_refused(crit: object) -> None:
    unsigned = raw({"alg": "HS256", "crit": crit, "b64": True}, json.dumps(GOOD).encode()).rpartition(".")[0]
    signature = hmac.digest(SECRET.encode(), unsigned.encode(), "sha256")
    assert refusal(f"{unsigned}.{base64url_encode(signature).decode()}")[0] in ("MalformedJWT", "JwtSignerError")


@pytest.mark.parametrize(
    "token",
    [
        "",
        "x",
        "a.b",
        "a.b.c",
        "a.b.c.d.e",
        "é.é.é",
        "\ud800.a.b",
        raw([], b"{}"),
        raw({"alg": "HS256", "kid": 5}, b"{}"),
        "sb_publishable_abc",
        mint(SECRET, GOOD) + "!",
    ],
)
def test_what_is_no_token_is_malformed(token: str) -> None:
    assert refusal(token) == MALFORMED


@pytest.mark.parametrize("payload", [b"", b"[]", b"1", b"{", b'{"role":"\xff"}', b"[" * 9000])
def test_a_signed_payload_that_is_no_object_is_malformed(payload: bytes) -> None:
    assert refusal(jwt.PyJWS().encode(payload, SECRET)) == MALFORMED


def test_a_huge_token_is_refused_unread() -> None:
    assert refusal(mint(SECRET, {**GOOD, "pad": "x" * TOKEN_BYTES_MAX})) == MALFORMED


def test_a_token_of_another_secret_does_not_verify() -> None:
    assert refusal(mint("x" * 40, GOOD)) == SIGNATURE


def test_without_a_secret_there_is_no_signer() -> None:
    assert refusal(mint(SECRET, GOOD), Verifier(api_keys={"k": "anon"})) == SIGNER


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": GOOD["exp"]},
        {"role": "anon"},
        {"role": "", "exp": GOOD["exp"]},
        {"role": 5, "exp": GOOD["exp"]},
        {"role": None, "exp": GOOD["exp"]},
        {"role": "anon", "exp": "1999999999"},
        {"role": "anon", "exp": True},
        {"role": "anon", "exp": None},
        {"role": ["anon"], "exp": GOOD["exp"]},
        {"role": {"anon": 1}, "exp": GOOD["exp"]},
        {"role": "anon", "exp": [GOOD["exp"]]},
        {"role": "anon", "exp": 10**15 + 1},
        {"role": "anon", "exp": 10**400},
        {"role": "anon", "exp": 1e308},
        {"role": "anon", "exp": -(10**16)},
    ],
)
def test_role_and_exp_are_required(claims: dict[str, object]) -> None:
    assert refusal(mint(SECRET, claims)) == FIELDS


@pytest.mark.parametrize("exp", ["NaN", "Infinity", "-Infinity", "1e999", "1e", "0x10", "01"])
def test_a_time_that_is_no_number_of_json_is_refused(exp: str) -> None:
    payload = b'{"role":"anon","exp":%s}' % exp.encode()
    assert refusal(jwt.PyJWS().encode(payload, SECRET)) in (MALFORMED, FIELDS)


@pytest.mark.parametrize("exp", [0, -1, 1, int(NOW), 0.5, -1e14])
def test_times_that_are_over_are_expired(exp: float) -> None:
    assert refusal(mint(SECRET, {"role": "anon", "exp": exp}))[0] == "InvalidJWTToken"
    assert "expired" in refusal(mint(SECRET, {"role": "anon", "exp": exp}))[1]


@pytest.mark.parametrize(
    ("header", "payload"),
    [
        (b'{"alg":"none","alg":"HS256"}', None),
        (b'{"alg":"HS256","alg":"none"}', None),
        (b'{"alg":"HS256","kid":"a","kid":"b"}', None),
        (b'{"alg":"HS256","x":{"a":1,"a":2}}', None),
        (b'{"alg":"HS256"}', b'{"role":"anon","role":"service_role","exp":1999999999}'),
        (b'{"alg":"HS256"}', b'{"role":"anon","exp":1,"exp":1999999999}'),
        (b'{"alg":"HS256"}', b'{"role":"anon","exp":1999999999,"m":{"a":1,"a":2}}'),
    ],
)
def test_a_member_that_stands_twice_is_refused(header: bytes, payload: bytes | None) -> None:
    """Its signature is good: only what it says is ambiguous."""
    parts = (header, json.dumps(GOOD).encode() if payload is None else payload)
    unsigned = ".".join(base64url_encode(part).decode() for part in parts)
    signature = base64url_encode(hmac.digest(SECRET.encode(), unsigned.encode(), "sha256")).decode()
    assert refusal(f"{unsigned}.{signature}") == MALFORMED


@pytest.mark.parametrize(
    "kid", [{"a": 1}, ["rsa"], 7, True, "../../dev/null", "' or 1=1 --", "rsa\0", "file:///etc/passwd", "RSA", " rsa"]
)
def test_a_key_id_is_a_name_and_nothing_else(kid: object) -> None:
    unsigned = raw({"alg": "RS256", "kid": kid}, json.dumps(GOOD).encode()).rpartition(".")[0]
    found = refusal(f"{unsigned}.{base64url_encode(b'x' * 256).decode()}")
    assert found[0] in ("JwtSignerError", "MalformedJWT")


def test_a_token_inside_a_token_is_not_opened() -> None:
    inner = mint(SECRET, GOOD)
    nested = jwt.PyJWS().encode(inner.encode(), SECRET, headers={"cty": "JWT"})
    assert refusal(nested) == MALFORMED
    assert refusal(jwt.PyJWS().encode(json.dumps(inner).encode(), SECRET)) == MALFORMED


@pytest.mark.parametrize("change", ["+/", "=", "==", "%00", "%2e", ".", "~"])
def test_base64_that_is_not_the_url_kind_is_refused(change: str) -> None:
    token = mint(SECRET, GOOD)
    header, payload, signature = token.split(".")
    for bent in (f"{header}{change}.{payload}.{signature}", f"{header}.{payload}{change}.{signature}"):
        with pytest.raises(TokenError):
            VERIFIER.verify(bent, NOW)


def test_every_other_bit_of_a_signature_counts() -> None:
    token = mint(SECRET, GOOD)
    body, _, signature = token.rpartition(".")
    for at in range(0, len(signature) - 1, 7):
        other = "A" if signature[at] != "A" else "B"
        assert refusal(f"{body}.{signature[:at]}{other}{signature[at + 1 :]}") == SIGNATURE


@pytest.mark.parametrize("size", [TOKEN_BYTES_MAX + 1, 10 * TOKEN_BYTES_MAX])
def test_a_huge_header_or_signature_is_refused_unread(size: int) -> None:
    assert refusal(f"{'a' * size}.b.c") == MALFORMED
    assert refusal(f"{mint(SECRET, GOOD)}{'A' * size}") == MALFORMED


def test_an_unknown_key_id_is_told_to_whoever_keeps_the_keys() -> None:
    verifier, told = Verifier(SECRET, JWKS), []
    verifier.on_unknown_key = lambda: told.append(1)
    assert refusal(sign(RSA_KEY, "RS256", "new"), verifier) == signer_for("new")
    assert told == [1]
    assert refusal(renamed(mint(SECRET, GOOD), "none"), verifier) == SIGNER
    verifier.verify(sign(SECRET, "HS256", "unknown"), NOW)
    assert told == [1]
    newer = json.dumps({"keys": [{**RSAAlgorithm.to_jwk(RSA_KEY.public_key(), as_dict=True), "kid": "new"}]})
    assert verifier.replace_keys(newer) == 1
    assert verifier.verify(sign(RSA_KEY, "RS256", "new"), NOW).role == "anon"
    assert refusal(sign(RSA_KEY, "RS256", "rsa"), verifier) == signer_for("rsa")
    with pytest.raises(ConfigError):
        verifier.replace_keys("{")
    assert verifier.verify(sign(RSA_KEY, "RS256", "new"), NOW).role == "anon"


def test_an_expired_token_says_how_long_ago() -> None:
    token = mint(SECRET, {"role": "anon", "exp": int(NOW) - 42})
    assert refusal(token) == ("InvalidJWTToken", "Token has expired 42 seconds ago")


def test_expiry_is_judged_by_the_callers_clock() -> None:
    token = mint(SECRET, {"role": "anon", "exp": 100})
    assert VERIFIER.verify(token, 99.9).exp == 100
    with pytest.raises(ExpiredTokenError) as caught:
        VERIFIER.verify(token, 100.0)
    assert caught.value.seconds == 0
    with pytest.raises(ExpiredTokenError):
        Claims("anon", exp=100).check(100.0)
    Claims("anon", exp=None).check(1e18)


def test_numbers_of_claims_are_rounded() -> None:
    assert VERIFIER.verify(mint(SECRET, {"role": "anon", "exp": 100.7, "iat": 1.5}), 99.9).exp == 101


def test_iat_must_be_a_number_and_aud_iss_nbf_are_not_checked() -> None:
    assert refusal(mint(SECRET, {**GOOD, "iat": "yesterday"})) == MALFORMED
    ignored = {"aud": "x", "iss": [], "nbf": 9e12, "sub": 7}
    assert VERIFIER.verify(mint(SECRET, {**GOOD, **ignored}), NOW).sub == ""


def test_a_token_may_come_percent_encoded_and_with_spaces() -> None:
    token = mint(SECRET, GOOD)
    assert VERIFIER.verify(f" {token[:9]}\n{token[9:]}%20", NOW).role == "anon"


def test_a_long_kid_comes_back_cut() -> None:
    assert len(refusal(sign(RSA_KEY, "RS256", "k" * 5000))[1]) < 300


def test_opaque_keys_stand_for_roles_and_never_expire() -> None:
    verifier = Verifier(SECRET, api_keys={"sb_secret_1": "service_role", "sb_publishable_1": "anon"})
    assert verifier.verify("sb_secret_1", NOW) == Claims("service_role", json='{"role":"service_role"}')
    assert refusal("sb_secret_2", verifier) == MALFORMED
    assert verifier.verify(mint(SECRET, GOOD), NOW).role == "anon"


def test_an_open_verifier_gives_everybody_its_role_until_there_is_a_key() -> None:
    assert Verifier(open_role="anon").verify("whatever", NOW).role == "anon"
    assert refusal("whatever", Verifier(SECRET, open_role="anon")) == MALFORMED
    assert refusal("whatever", Verifier(api_keys={"k": "anon"}, open_role="anon")) == MALFORMED
    assert refusal("whatever", Verifier()) == MALFORMED


@given(st.text(max_size=80) | st.builds(".".join, st.lists(st.text(max_size=20), min_size=3, max_size=3)))
def test_hostile_text_raises_nothing_but_token_errors(token: str) -> None:
    with pytest.raises(TokenError):
        VERIFIER.verify(token, NOW)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "b64", "jwk"]), json_values)
    | st.fixed_dictionaries({"alg": st.sampled_from(["HS256", "RS256", "ES256", "ES384", "EdDSA", "Ed448"])}).flatmap(
        lambda header: st.sampled_from(["rsa", "ES256", "ed", "shared"]).map(lambda kid: {**header, "kid": kid})
    ),
    st.binary(max_size=20),
    st.binary(max_size=80),
)
def test_hostile_headers_raise_nothing_but_token_errors(header: object, payload: bytes, signature: bytes) -> None:
    with pytest.raises(TokenError):
        VERIFIER.verify(raw(header, payload, signature), NOW)


@given(st.dictionaries(st.sampled_from(["role", "exp", "iat", "sub"]), json_values))
def test_hostile_claims_give_claims_or_token_errors(claims: dict[str, object]) -> None:
    token = jwt.PyJWS().encode(json.dumps(claims).encode(), SECRET)
    try:
        verified = VERIFIER.verify(token, NOW)
    except TokenError:
        return
    assert verified.role == claims["role"]
    assert verified.exp is not None and verified.exp > NOW
