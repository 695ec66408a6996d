"""Whether a request may become a WebSocket, by its query and headers alone.

Whether it is a WebSocket handshake at all, on a path that has one, is the shell's edge to say.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, TypeAlias
from urllib.parse import urlsplit

import msgspec

from walstream.auth.tokens import Claims, ExpiredTokenError, Verifier
from walstream.errors import TokenError
from walstream.protocol.phoenix import negotiate

Pairs: TypeAlias = Sequence[tuple[str, str]]

_KEY_MISSING: Final = "API key is missing"
_KEY_EXPIRED: Final = "Token has expired"
_FOREIGN_PAGE: Final = (
    "Without keys only pages of this machine may connect: set WALSTREAM_JWT_SECRET, or serve the page from localhost"
)

_KEPT_BACK: Final = frozenset({"apikey", "authorization", "cookie", "proxy-authorization", "x-api-key"})


class Welcome(msgspec.Struct, frozen=True):
    """Let it in. ``token``: what it presented, "" for nothing; ``claims``: what that says."""

    vsn: str
    claims: Claims
    token: str = ""


class Rejection(msgspec.Struct, frozen=True):
    """Answer with an HTTP status and a JSON body, or none. ``code``: a stable name of the reason, for logs."""

    status: int
    body: bytes = b""
    code: str = ""


def decide(query: Pairs, headers: Pairs, verifier: Verifier, now: float) -> Welcome | Rejection:
    """Decide about a handshake. ``headers``: lower-case names. ``now``: seconds since the epoch.

    The key is looked for in the header ``x-api-key``, then in the query's ``apikey``, where official clients put it,
    then in the headers ``apikey`` and ``authorization``. Unknown parameters are ignored.
    """
    vsn = negotiate(_first(query, "vsn"))
    if vsn is None:
        return Rejection(403, code="UnsupportedVersion")
    token = _key(query, headers) or ""
    found = _claims(token, headers, verifier, now)
    return found if isinstance(found, Rejection) else Welcome(vsn, found, token)


def policy_headers(headers: Pairs, prefix: str = "") -> str:
    """What policies may see of a request as ``request.headers``: JSON object text of those that begin with ``prefix``.

    Of several with one name the first counts. Keys and tokens are left out: they would stand in the database's log.
    """
    found: dict[str, str] = {}
    for name, value in headers:
        if name.startswith(prefix) and name not in _KEPT_BACK:
            found.setdefault(name, value)
    return msgspec.json.encode(found).decode("utf-8")


def authorize(query: Pairs, headers: Pairs, verifier: Verifier, now: float) -> Claims | Rejection:
    """Whose a plain request is. Unlike in a handshake ``authorization`` wins: clients send a person's token there."""
    return _claims(presented_key(query, headers), headers, verifier, now)


def presented_key(query: Pairs, headers: Pairs) -> str:
    """The token or key that a plain request goes by, good or not; "" for none."""
    return _bearer(headers) or _key(query, headers) or ""


def _claims(token: str, headers: Pairs, verifier: Verifier, now: float) -> Claims | Rejection:
    if verifier.open_claims is not None:
        # Any website that a developer visits could otherwise read the database through a daemon without keys.
        origin = _first(headers, "origin")
        if origin is not None and not _is_of_this_machine(origin):
            return _rejection(403, _FOREIGN_PAGE, "ForeignPage")
        return verifier.open_claims
    if not token:
        return _rejection(401, _KEY_MISSING, "MissingAPIKey")
    try:
        return verifier.verify(token, now)
    except ExpiredTokenError as error:
        return _rejection(401, _KEY_EXPIRED, error.name)
    except TokenError as error:
        return _rejection(401, error.text, error.name)


def _key(query: Pairs, headers: Pairs) -> str | None:
    found = (_first(headers, "x-api-key"), _first(query, "apikey"), _first(headers, "apikey"), _bearer(headers))
    return next((key for key in found if key), None)


def _bearer(headers: Pairs) -> str | None:
    authorization = (_first(headers, "authorization") or "").strip()
    scheme, _, credentials = authorization.partition(" ")
    return credentials.strip() if scheme.lower() == "bearer" else None


def _first(pairs: Iterable[tuple[str, str]], name: str) -> str | None:
    return next((value for key, value in pairs if key == name), None)


def _is_of_this_machine(origin: str) -> bool:
    try:
        host = urlsplit(origin).hostname or ""
    except ValueError:
        return False
    return host in ("localhost", "::1") or host.endswith(".localhost") or _is_loopback_address(host)


def _is_loopback_address(host: str) -> bool:
    parts = host.split(".")
    return len(parts) == 4 and parts[0] == "127" and all(part.isascii() and part.isdigit() for part in parts)


def _rejection(status: int, text: str, code: str) -> Rejection:
    return Rejection(status, msgspec.json.encode({"error": text}), code)
