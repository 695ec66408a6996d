"""The keys that tokens may be signed with: the shared secret, a key set (RFC 7517), and opaque API keys.

Loading a key set from a file or an address is the shell's work; verifying tokens lives in ``tokens``.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import Any, Final, TypeAlias

import msgspec
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey, Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from jwt.algorithms import Algorithm, ECAlgorithm, HMACAlgorithm, OKPAlgorithm, RSAAlgorithm
from jwt.exceptions import PyJWTError

from walstream.errors import ConfigError

KeyMaterial: TypeAlias = bytes | RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey | Ed448PublicKey

_READERS: Final[Mapping[str, type[Algorithm]]] = {
    "oct": HMACAlgorithm,
    "RSA": RSAAlgorithm,
    "EC": ECAlgorithm,
    "OKP": OKPAlgorithm,
}
_PRIVATE: Final = (RSAPrivateKey, EllipticCurvePrivateKey, Ed25519PrivateKey, Ed448PrivateKey)


class Key(msgspec.Struct, frozen=True):
    """One key of a set. ``algorithm``: the only one it is for, "" for any of its type."""

    kid: str
    type: str  # kty: oct, RSA, EC or OKP
    material: KeyMaterial
    algorithm: str = ""


class KeySet:
    """Keys by ``kid`` and type. Keys of other types, or for encryption only, are passed over."""

    def __init__(self, keys: tuple[Key, ...] = ()) -> None:
        self._keys = {(key.kid, key.type): key for key in keys}

    def __len__(self) -> int:
        return len(self._keys)

    @classmethod
    def parse(cls, text: str) -> KeySet:
        """Read a key set's JSON text; "" is an empty set. Raises ConfigError, also when no key of it can be used."""
        if not text.strip():
            return cls()
        try:
            found = msgspec.json.decode(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"jwks: not JSON: {error}") from error
        listed = found.get("keys") if isinstance(found, dict) else None
        if not isinstance(listed, list):
            raise ConfigError("jwks: not a key set", repair='a key set looks like {"keys": [{"kty": …, "kid": …}]}')
        keys = tuple(key for key in map(_read_key, listed) if key is not None)
        if not keys:
            raise ConfigError("jwks: no usable key", repair="keys need a kid and a kty of oct, RSA, EC or OKP")
        return cls(keys)

    def find(self, kid: str, type_: str) -> Key | None:
        """The key of that id and type."""
        return self._keys.get((kid, type_))


def _read_key(jwk: Any) -> Key | None:
    if not isinstance(jwk, dict) or jwk.get("use", "sig") != "sig":
        return None
    kid, type_, algorithm = jwk.get("kid"), jwk.get("kty"), jwk.get("alg", "")
    reader = _READERS.get(type_) if isinstance(type_, str) else None
    if reader is None or not isinstance(type_, str) or not isinstance(kid, str) or not isinstance(algorithm, str):
        return None
    try:
        material = reader.from_jwk(jwk)
    except (PyJWTError, ValueError, TypeError, KeyError, AttributeError):  # whatever broken members lead to
        return None
    if isinstance(material, _PRIVATE):
        material = material.public_key()
    return Key(kid, type_, material, algorithm)


class ApiKeys:
    """Opaque keys and the roles that they stand for."""

    def __init__(self, roles: Mapping[str, str] | None = None) -> None:
        self._roles = [(key.encode("utf-8"), role) for key, role in (roles or {}).items()]

    def __len__(self) -> int:
        return len(self._roles)

    @classmethod
    def parse(cls, text: str) -> ApiKeys:
        """Read ``key=role,key=role``; a key may contain ``=``. Raises ConfigError."""
        roles: dict[str, str] = {}
        for entry in filter(None, (part.strip() for part in text.split(","))):
            key, equals, role = (part.strip() for part in entry.rpartition("="))
            if not (key and equals and role):
                raise ConfigError("api_keys: an entry is not key=role")
            roles[key] = role
        return cls(roles)

    def role(self, key: str) -> str | None:
        """The role of a key, None for an unknown one. Takes the same time wherever the keys differ."""
        given = key.encode("utf-8", "surrogatepass")
        found = None
        for known, role in self._roles:
            if hmac.compare_digest(known, given):
                found = role
        return found
