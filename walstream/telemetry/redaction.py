"""Taking secrets out of texts that people will read: log lines, and errors that quote what they were given.

Which values are secret is ``config``'s to say; what looks like one is known here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

HIDDEN: Final = "***"

SECRET_LENGTH_MIN: Final = 4
"""Shorter values are no secrets, and would be found inside words."""

_PATTERNS: Final = (
    # A parameter of an address, or a setting of a DSN.
    re.compile(
        r"(\b(?:apikey|api_key|x-api-key|access_token|user_token|token|jwt|password|sslpassword|passwd|secret)=)"
        r"(?!\*\*\*)('(?:[^'\\]|\\.)*'?|[^\s&'\"]+)",
        re.IGNORECASE,
    ),
    re.compile(r"(\b(?:Bearer|Basic)\s+)(?!\*\*\*)([A-Za-z0-9._~+/=-]{4,})", re.IGNORECASE),
    re.compile(r"(://[^\s:/?#@]*:)(?!\*\*\*@)([^\s]*?)(?=@)"),  # credentials of an address
    re.compile(r"()(\beyJ[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]*)?)"),  # a JWT
    re.compile(r"()(\bsb_(?:secret|publishable)_[A-Za-z0-9_-]+)"),
)


class Redactor:
    """Replaces ``secrets``, and whatever looks like a key, a token or a password, by ``***``."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known = sorted({secret for secret in secrets if len(secret) >= SECRET_LENGTH_MIN}, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, known))) if known else None

    def text(self, text: str) -> str:
        """The text without its secrets."""
        if self._known is not None:
            text = self._known.sub(HIDDEN, text)
        for pattern in _PATTERNS:
            text = pattern.sub(rf"\1{HIDDEN}", text)
        return text

    def value(self, value: Any) -> Any:
        """The value with every text in it, keys included, without its secrets."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.value(key): self.value(member) for key, member in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [self.value(member) for member in value]
        return value
