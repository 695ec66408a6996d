"""Tokens become claims: signature, expiry against the caller's clock, and what must be inside.

Keys live in ``keys``; which role may do what is PostgreSQL's to say, through the shell.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import unquote

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from jwt.algorithms import Algorithm, ECAlgorithm, HMACAlgorithm, OKPAlgorithm, RSAAlgorithm
from jwt.exceptions import InvalidSignatureError, InvalidTokenError, PyJWTError
from jwt.utils import base64url_decode

from walstream.auth.keys import ApiKeys, Key, KeyMaterial, KeySet
from walstream.auth.rules import Revocations, unmet
from walstream.errors import TokenError

TOKEN_BYTES_MAX: Final = 16 * 1024
NUMBER_MAX: Final = 1e15
"""Seconds since the epoch that a claim may name: what is further is a mistake, and more than clocks can be told."""

KID_SHOWN_MAX: Final = 100  # characters of a token's own key id that go back to the client

_CURVES: Final = {"ES256": "secp256r1", "ES384": "secp384r1", "ES512": "secp521r1"}
_EDWARDS: Final = {
    "EdDSA": (Ed25519PublicKey, Ed448PublicKey),
    "Ed25519": (Ed25519PublicKey,),
    "Ed448": (Ed448PublicKey,),
}
_UNDERSTOOD_NOWHERE: Final = ("crit", "jwk", "jku", "x5u", "x5c", "b64")
"""Header members that let a token bring its own key or its own rules."""

_SIGNER: Final = "Failed to generate JWT signer{}, check your JWT secret or JWKS configuration"
_encode = msgspec.json.Encoder().encode


class Claims(msgspec.Struct, frozen=True):
    """What a verified token says. ``exp`` and ``iat``: seconds since the epoch; without ``exp`` it never expires.

    ``json``: all claims as the token wrote them, for PostgreSQL's ``request.jwt.claims``. ``jti`` and ``session``
    (``session_id``): by which it may be revoked.
    """

    role: str
    sub: str = ""
    exp: int | None = None
    json: str = "{}"
    iat: int | None = None
    jti: str = ""
    session: str = ""

    def check(self, now: float) -> None:
        """Raises ExpiredTokenError from ``exp`` on. ``now``: seconds since the epoch."""
        if self.exp is not None and self.exp <= now:
            raise ExpiredTokenError(int(now) - self.exp)


class ExpiredTokenError(TokenError):
    """A token that was good until ``seconds`` ago."""

    code = "token_expired"

    def __init__(self, seconds: int) -> None:
        super().__init__("InvalidJWTToken", f"Token has expired {seconds} seconds ago")
        self.seconds = seconds


class _Hmac(HMACAlgorithm):
    """HMAC without PyJWT's warning on every use of a short secret; the configuration warns once."""

    def check_key_length(self, key: bytes) -> str | None:
        return None


class _Rsa(RSAAlgorithm):
    """RSA without PyJWT's warning on every use of a short key."""

    def check_key_length(self, key: object) -> str | None:
        return None


_ALGORITHMS: Final[Mapping[str, tuple[str, Algorithm]]] = {
    "HS256": ("oct", _Hmac(HMACAlgorithm.SHA256)),
    "HS384": ("oct", _Hmac(HMACAlgorithm.SHA384)),
    "HS512": ("oct", _Hmac(HMACAlgorithm.SHA512)),
    "RS256": ("RSA", _Rsa(RSAAlgorithm.SHA256)),
    "RS384": ("RSA", _Rsa(RSAAlgorithm.SHA384)),
    "RS512": ("RSA", _Rsa(RSAAlgorithm.SHA512)),
    "ES256": ("EC", ECAlgorithm(ECAlgorithm.SHA256)),
    "ES384": ("EC", ECAlgorithm(ECAlgorithm.SHA384)),
    "ES512": ("EC", ECAlgorithm(ECAlgorithm.SHA512)),
    "EdDSA": ("OKP", OKPAlgorithm()),
    "Ed25519": ("OKP", OKPAlgorithm()),
    "Ed448": ("OKP", OKPAlgorithm()),
}


def _make_jws() -> jwt.PyJWS:
    jws = jwt.PyJWS(algorithms=[])
    for name, (_, algorithm) in _ALGORITHMS.items():
        jws.register_algorithm(name, algorithm)
    return jws


_JWS: Final = _make_jws()


class Verifier:
    """Turns tokens and API keys into claims.

    ``open_role``: the role that everybody gets, whatever they present, while there is no secret, no key set and no
    API key; "" refuses instead. Only for daemons that nobody but this machine can reach.
    """

    def __init__(
        self,
        secret: str = "",
        jwks_text: str = "",
        api_keys: Mapping[str, str] | ApiKeys | None = None,
        *,
        open_role: str = "",
        required: Mapping[str, str] | None = None,
    ) -> None:
        """Raises ConfigError for a key set that cannot be read. ``required``: claims, and what they must be."""
        self.revocations = Revocations()
        self.on_unknown_key: Callable[[], None] = lambda: None
        self._keys = KeySet.parse(jwks_text)
        self.rekey(secret, api_keys if isinstance(api_keys, ApiKeys) else ApiKeys(api_keys), open_role, required or {})

    def rekey(self, secret: str, api_keys: ApiKeys, open_role: str, required: Mapping[str, str]) -> None:
        """Go by another secret, other API keys and other required claims from now on; what was verified stays so."""
        self._required = required
        self._secret = secret.encode("utf-8")
        self._api_keys = api_keys
        keyless = not (self._secret or len(self._keys) or len(self._api_keys))
        self.open_claims = _claims_of_role(open_role) if open_role and keyless else None

    def replace_keys(self, jwks_text: str) -> int:
        """Go by another key set from now on. Returns how many keys it has; raises ConfigError, and keeps the old."""
        self._keys = KeySet.parse(jwks_text)
        return len(self._keys)

    def check(self, claims: Claims, now: float) -> None:
        """Whether claims that were verified once still count. Raises TokenError."""
        claims.check(now)
        if self.revocations.has(token_id=claims.jti, session=claims.session, user=claims.sub, issued_at=claims.iat):
            raise TokenError("TokenRevoked", "The token has been revoked")

    def verify(self, token: str, now: float) -> Claims:
        """The claims of a token or an API key. ``now``: seconds since the epoch. Raises TokenError, nothing else."""
        if self.open_claims is not None:
            return self.open_claims
        role = self._api_keys.role(token.strip())
        if role is not None:
            return _claims_of_role(role)
        if len(token) > TOKEN_BYTES_MAX:
            raise _malformed()
        compact = "".join(unquote(token).split())
        if not compact.isascii() or compact.count(".") != 2:
            raise _malformed()
        claims, said = _read_claims(self._verified_payload(compact), now)
        missing = unmet(said, self._required)
        if missing:
            raise TokenError("InvalidJWTToken", f"Claim `{missing}` is not what this server requires")
        self.check(claims, now)
        return claims

    def _verified_payload(self, compact: str) -> bytes:
        try:
            header = _JWS.get_unverified_header(compact)
        except PyJWTError as error:
            raise _malformed() from error
        algorithm, kid = header.get("alg"), header.get("kid", "")
        if not _is_unambiguous(base64url_decode(compact.partition(".")[0])):
            raise _malformed()
        if not isinstance(algorithm, str) or any(member in header for member in _UNDERSTOOD_NOWHERE):
            raise _signer(kid)
        try:
            decoded = _JWS.decode_complete(compact, self._key(algorithm, kid), algorithms=[algorithm])
        except InvalidSignatureError as error:
            raise TokenError("JwtSignatureError", "Failed to validate JWT signature") from error
        except InvalidTokenError as error:
            raise _malformed() from error
        except (PyJWTError, ValueError, TypeError) as error:  # a key that does not fit its algorithm after all
            raise _signer(kid) from error
        payload: bytes = decoded["payload"]
        return payload

    def _key(self, algorithm: str, kid: str) -> KeyMaterial:
        """The key for a token. Its type is bound to the algorithm, so no public key ever serves as a secret."""
        type_ = _ALGORITHMS.get(algorithm, ("", None))[0]
        key = self._keys.find(kid, type_) if type_ and kid else None
        if key is not None and _fits(key, algorithm):
            return key.material
        if type_ == "oct" and self._secret:
            return self._secret
        if type_ and kid:
            self.on_unknown_key()
        raise _signer(kid)


def mint(secret: str, claims: Mapping[str, object]) -> str:
    """A token signed with HS256."""
    if not secret:
        raise _signer("")
    return _JWS.encode(_encode(dict(claims)), secret.encode("utf-8"), algorithm="HS256")


def _fits(key: Key, algorithm: str) -> bool:
    material = key.material
    if isinstance(material, EllipticCurvePublicKey) and material.curve.name != _CURVES.get(algorithm):
        return False
    if key.type == "OKP":
        return isinstance(material, _EDWARDS[algorithm])
    return key.algorithm in ("", algorithm)


def _read_claims(payload: bytes, now: float) -> tuple[Claims, dict[str, Any]]:
    try:
        text = payload.decode("utf-8")
        claims = msgspec.json.decode(text)
    except (ValueError, RecursionError) as error:
        raise _malformed() from error
    if not isinstance(claims, dict) or not _is_unambiguous(payload):
        raise _malformed()
    exp, role, sub = _number(claims.get("exp")), claims.get("role"), claims.get("sub")
    if exp is not None and exp <= now:
        raise ExpiredTokenError(int(now) - exp)
    if exp is None or not isinstance(role, str) or not role:
        raise TokenError("InvalidJWTToken", "Fields `role` and `exp` are required in JWT")
    iat = _number(claims.get("iat"))
    if "iat" in claims and iat is None:
        raise _malformed()
    return Claims(role, _text(sub), exp, text, iat, _text(claims.get("jti")), _text(claims.get("session_id"))), claims


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _is_unambiguous(text: bytes) -> bool:
    """Whether no member of any object stands twice: readers would not agree on which counts (RFC 8725, 2.4)."""
    try:
        json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        return False
    return True


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a member stands twice")
    return found


def _number(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not -NUMBER_MAX <= value <= NUMBER_MAX:
        return None
    return round(value)


def _claims_of_role(role: str) -> Claims:
    return Claims(role, json=_encode({"role": role}).decode("utf-8"))


def _malformed() -> TokenError:
    return TokenError("MalformedJWT", "The token provided is not a valid JWT")


def _signer(kid: object) -> TokenError:
    named = f' for key ID (kid) "{str(kid)[:KID_SHOWN_MAX]}"' if kid else ""
    return TokenError("JwtSignerError", _SIGNER.format(named))
