"""What a token has to satisfy beside its signature and its time: claims that operators require, and not being revoked.

Reading the list of revoked tokens from its file is the shell's work; verifying tokens lives in ``tokens``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from walstream.errors import ConfigError

_REPAIR: Final = "write claim=value,claim=value, such as iss=https://auth.example.org,aud=authenticated"


def parse_required(text: str) -> Mapping[str, str]:
    """Read ``claim=value,claim=value``; a value may contain ``=``. Raises ConfigError."""
    required: dict[str, str] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        claim, equals, value = (part.strip() for part in entry.partition("="))
        if not (claim and equals and value):
            raise ConfigError("jwt_claims: an entry is not claim=value", repair=_REPAIR)
        required[claim] = value
    return required


def unmet(claims: Mapping[str, Any], required: Mapping[str, str]) -> str:
    """The first required claim that a token has not, or has with another value; "" for none.

    Of a list one value has to be the required one (RFC 7519, 4.1.3, for ``aud``).
    """
    for name, value in required.items():
        found = claims.get(name)
        if found != value and not (isinstance(found, list) and value in found):
            return name
    return ""


class Revocations:
    """Tokens that are good for nothing any more, whatever they say of their time."""

    def __init__(self) -> None:
        self._ids: frozenset[str] = frozenset()
        self._sessions: frozenset[str] = frozenset()
        self._users: Mapping[str, float] = {}

    def __len__(self) -> int:
        return len(self._ids) + len(self._sessions) + len(self._users)

    @classmethod
    def parse(cls, text: str) -> Revocations:
        """Read a list, one entry a line: ``<jti>`` or ``jti:<jti>``, ``session:<session_id>``, ``sub:<user>``, or
        ``sub:<user>@<seconds>`` for those of the user that were issued up to then. ``#`` begins a comment line.
        """
        ids, sessions, users = set(), set(), dict[str, float]()
        for line in text.splitlines():
            entry = line.strip()
            if not entry or entry.startswith("#"):
                continue
            kind, colon, value = entry.partition(":")
            if colon and kind == "sub":
                user, until = _user(value.strip())
                users[user] = max(until, users.get(user, 0.0))
            elif colon and kind == "session":
                sessions.add(value.strip())
            else:
                ids.add(value.strip() if colon and kind == "jti" else entry)
        found = cls()
        found._ids, found._sessions, found._users = frozenset(ids), frozenset(sessions), users
        return found

    def has(self, *, token_id: str, session: str, user: str, issued_at: int | None) -> bool:
        """Whether a token of that ``jti``, ``session_id``, ``sub`` and ``iat`` is revoked. "" is none."""
        if (token_id and token_id in self._ids) or (session and session in self._sessions):
            return True
        until = self._users.get(user) if user else None
        return until is not None and (issued_at is None or issued_at <= until)


def _user(text: str) -> tuple[str, float]:
    user, at, seconds = text.rpartition("@")
    if at and seconds.isascii() and seconds.isdecimal() and len(seconds) < 16:
        return user, float(seconds)
    return text, float("inf")
